/*
 * strain.h
 *		Batches that are too large for their time or memory.
 */
#ifndef HYBRIDIOT_STRAIN_H
#define HYBRIDIOT_STRAIN_H

#include "pipeline/pipeline.h"

/* Records [first, nrecords) of the batch are about to be applied in a transaction; and have been. */
extern void StrainBegin(Pipeline *pipeline, int first);
extern void StrainEnd(Pipeline *pipeline);

/* Records that a batch may have; capacity: as configured. */
extern int	StrainLimit(int capacity);

/*
 * An error came to a worker, which will try the same again. *halved: with half of the records. False: it stands at
 * a single record, at StrainPlace(), which cannot be applied.
 */
extern bool StrainBears(int sqlstate, bool *halved);
extern const char *StrainPlace(void);

#endif							/* HYBRIDIOT_STRAIN_H */
