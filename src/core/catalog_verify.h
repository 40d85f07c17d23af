/*
 * catalog_verify.h
 *		What our tables say of the records that a windowed pipeline has read, for verify_pipeline().
 */
#ifndef HYBRIDIOT_CATALOG_VERIFY_H
#define HYBRIDIOT_CATALOG_VERIFY_H

#include "core/catalog.h"

/* How far a pipeline is, since it was sent to where it began. */
typedef struct VerifyProgress
{
	TimestampTz closed_before;	/* DT_NOBEGIN: no window was ever closed */
	char	   *start_at;		/* where it began, in the words of seek_pipeline() */
	TimestampTz started_at;		/* when it was sent there; DT_NOBEGIN: when it was created */
	int			ntopics;		/* of its positions */
} VerifyProgress;

/*
 * As the present role, which must see the pipeline, and as of the active snapshot: so what is
 * read here and what the texts below read is one state. Connected to SPI. Strings in the current memory context.
 */
extern VerifyProgress *CatalogReadVerifyProgress(const PipelineDefinition *def);

/* SQL, to stand in FROM: (topic, partition, next_offset) of the pipeline. */
extern char *CatalogPositionsText(const PipelineDefinition *def);

/*
 * SQL, to stand in FROM: (topic, partition, "offset", reason, during, group_keys) of the dead letters of this life of
 * the pipeline. Letters of an earlier start tell of windows that were computed anew since.
 */
extern char *CatalogLettersText(const PipelineDefinition *def, const VerifyProgress *progress);

#endif							/* HYBRIDIOT_CATALOG_VERIFY_H */
