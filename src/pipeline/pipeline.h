/*
 * pipeline.h
 *		A pipeline while it runs, in a worker or in a session.
 */
#ifndef HYBRIDIOT_PIPELINE_H
#define HYBRIDIOT_PIPELINE_H

#include "nodes/parsenodes.h"

#include "core/catalog.h"
#include "core/shmem.h"
#include "core/worker.h"
#include "stream/stream.h"

typedef struct Rollup Rollup;	/* rollup.c: what a windowed pipeline keeps in memory */

/*
 * A partition of the stream, as the pipeline has it in memory. "stored" is what
 * the last commit wrote; the rest runs ahead of it.
 */
typedef struct PartitionState
{
	int32		topic;			/* index into stream->topics */
	int32		partition;
	int64		stored_offset;	/* next offset in the table; -1: no row yet */
	int64		next_offset;	/* next offset to apply */
	int64		end_offset;		/* of the log; -1: unknown */
	bool		at_end;			/* read to the end as far as known */
	TimestampTz stream_time;	/* DT_NOBEGIN: no record yet */
	TimestampTz last_record_at; /* clock when its last record was read; DT_NOBEGIN: none */
	bool		idle;
	bool		changed;		/* differs from what is stored */
} PartitionState;

typedef struct Pipeline
{
	MemoryContext context;
	PipelineDefinition *def;
	Stream	   *stream;
	Source	   *source;
	StreamBatch *batch;
	PartitionState *parts;
	int			nparts;
	SPIPlanPtr	plan;			/* per batch: the statement */
	Rollup	   *rollup;			/* windowed */
	bool		has_clock;		/* run_pipeline's wall_clock was given */
	TimestampTz clock;
	int			errors_in_row;	/* records set aside since the last good one */
} Pipeline;

/* The clock of this pipeline: wall_clock if given, the system's otherwise. */
extern TimestampTz PipelineNow(Pipeline *pipeline);
/* The partition a record belongs to. */
extern PartitionState *PipelinePartition(Pipeline *pipeline, const Record *record);
/*
 * Write positions of all changed partitions (compare-and-set) and, once committed, note
 * them as stored with PipelinePositionsStored(). ereport 40001 if another worker moved them.
 */
extern void PipelineWritePositions(Pipeline *pipeline);
extern void PipelinePositionsStored(Pipeline *pipeline);
/* Write one dead letter per record of the batch whose status is not good, [first, last). Returns how many. */
extern int	PipelineWriteDeadRecords(Pipeline *pipeline, int first, int last);

/* statement.c: parse what the user typed; stream is found, names are resolved. */
typedef struct Statement
{
	PipelineKind kind;
	Query	   *query;			/* analyzed, not rewritten */
	char	   *qualified;		/* pg_get_querydef under pg_catalog */
	Oid			stream;
	int			stream_rti;		/* where the stream stands in its query's range table (top-level SELECT of it) */
	List	   *notices;		/* of char *: what the user should know */
} Statement;

extern Statement *StatementAnalyze(const char *text);
/* The same for the stored, qualified text in a worker. */
extern Statement *StatementReanalyze(const char *qualified);

#endif							/* HYBRIDIOT_PIPELINE_H */
