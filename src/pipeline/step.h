/*
 * step.h
 *		The steps of a pipeline, in a worker and in a session: a batch is taken, a checkpoint is made.
 */
#ifndef HYBRIDIOT_STEP_H
#define HYBRIDIOT_STEP_H

#include "pipeline/pipeline.h"

/* Records that the next batch may have. */
extern int	StepLimit(Pipeline *pipeline);
/* Take what has arrived into the batch, up to that limit. Returns the number of records. Between transactions. */
extern int	StepFill(Pipeline *pipeline, int limit);

/* Per batch: run the batch through the statement, with its positions, in as many transactions as it takes. */
extern void StepApplyBatch(Pipeline *pipeline);
/* Windowed: take the batch into the groups. False: a record failed, and reading goes on from the last checkpoint. */
extern bool StepAdvance(Pipeline *pipeline);
/* Windowed: make durable what is in memory, in as many transactions as it takes. */
extern void StepCheckpoint(Pipeline *pipeline);

/* Has anything moved that the table does not have: a position, or the end of a log? */
extern bool StepPositionsChanged(Pipeline *pipeline);
/* Positions that moved without records: only gaps were read. */
extern void StepStorePositions(Pipeline *pipeline);

/* An error context callback: which pipeline, stream and record; arg is the pipeline. */
extern void StepContext(void *arg);

#endif							/* HYBRIDIOT_STEP_H */
