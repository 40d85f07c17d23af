/*
 * pipeline.h
 *		A pipeline while it runs, in a worker or in a session.
 */
#ifndef HYBRIDIOT_PIPELINE_H
#define HYBRIDIOT_PIPELINE_H

#include "fmgr.h"
#include "nodes/parsenodes.h"

#include "core/catalog.h"
#include "core/catalog_letter.h"
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
	int64		stored_offset;	/* next offset in the table */
	int64		next_offset;	/* next offset to apply */
	RecordMark	last;			/* the last record before it that was applied */
	const Record *newest;		/* the same, while positions move */
	int64		end_offset;		/* of the log; -1: unknown */
	int64		stored_end;		/* the same, as the table has it */
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
	PartitionState *parts;		/* those that are read here, by topic, then partition */
	int			nparts;
	int			npartitions;	/* of the stream: with those that other workers of the pipeline read */
	int		   *topic_base;		/* place in place[] of each topic's partition 0 */
	int		   *place;			/* place in parts[] of each partition of the stream; -1: read elsewhere */
	int			member;			/* which of the pipeline's workers this is */
	int			members;		/* how many share its partitions; 1 in a session */
	char	  **topic_ids;		/* of each topic; NULL: not known */
	SPIPlanPtr	plan;			/* per batch: the statement */
	struct Bulk *bulk;			/* per batch: how its rows are written (bulk.c) */
	struct Latest *latest;		/* per batch: what newer records overwrite (latest.c); NULL if compacted */
	bool		is_merge;
	bool		in_session;		/* run_pipeline() */
	Rollup	   *rollup;			/* windowed */
	int64		reach_us;		/* windowed: how far before a start in event time reading has to begin */
	bool		has_clock;		/* run_pipeline's wall_clock was given */
	TimestampTz clock;
	TimestampTz opened_at;		/* system's clock, */
	int64		opened_ms;		/* and the monotonic one, when it was opened */
	int			errors_in_row;	/* records set aside since the last good one */
	int			errors_stored;	/* the same, as the table has it */
	int			errors_at_checkpoint;	/* the same, as of the last checkpoint */
	TimestampTz refreshed_at;	/* when partitions were counted last */
	uint64		commits;		/* of this worker since it was opened */
	char	   *signature;		/* of all definitions it was opened from */

	/* per batch, what the search for bad records has learnt (apply.c) */
	bool		guess_fails;	/* the record delivered last was not the bad one */
	bool		halving;		/* the last search had no guess */
	double		failure_gap;	/* records from one failure to the next, lately */
	double		since_failure;	/* records applied since the last one */

	/* windowed, while a bad record is looked for */
	int			piece;			/* records between checkpoints; 0: as configured */
	List	   *rejected;		/* of RejectedRecord, in the pipeline's context */
	TimestampTz checkpoint_at;	/* of the last one */
	int			since_checkpoint;	/* records taken since then */
	int			dead_since_checkpoint;
} Pipeline;

/*
 * The clock of this pipeline, for whatever it waits for: wall_clock if given. Otherwise the system's as it was when the
 * pipeline was opened, and the time that has passed since: nobody can set it.
 */
extern TimestampTz PipelineNow(Pipeline *pipeline);
/* What the system's clock says now (or wall_clock): what is the future of a record. */
extern TimestampTz PipelineWallClock(Pipeline *pipeline);
/* The partition a record belongs to: one that is read here. */
extern PartitionState *PipelinePartition(Pipeline *pipeline, const Record *record);

/* ---- manage.c ---- */

/*
 * The pipeline that the first argument names, locked against changes by others; ereport 22004, 42704, and 42501 when
 * the caller is no member of its owner.
 */
extern PipelineDefinition *PipelineOfCaller(FunctionCallInfo fcinfo);
/* The same without a lock, for who changes nothing. */
extern PipelineDefinition *PipelineToRead(FunctionCallInfo fcinfo);

/* ---- pipeline.c: opening, positions ---- */

/*
 * Open a pipeline from its stored definition, in a context of its own: stream, positions,
 * statement or rollup. member: which of the pipeline's workers asks. In a transaction; no network. NULL when it is gone.
 */
extern Pipeline *PipelineOpen(int32 id, bool in_session, int member);
/*
 * Reach the log: partitions are counted, those without a position get one, whoever will read them, and this
 * worker takes its share. In a worker outside transactions.
 */
extern void PipelineConnect(Pipeline *pipeline);
/*
 * Begin to read. A broker answers in turn, and a question may have to wait for a fetch that waits for records: ask
 * what there is to ask before.
 */
extern void PipelineAssign(Pipeline *pipeline);
/* NULL allowed; never throws. */
extern void PipelineClose(Pipeline *pipeline);
/* Back to the stored positions: in memory and at the source. In a transaction. */
extern void PipelineRewind(Pipeline *pipeline);
/* Does the catalog still say what the pipeline was opened from? In a transaction. */
extern bool PipelineUnchanged(Pipeline *pipeline);
/*
 * Have partitions been added since PipelineConnect()? Asks the broker from time to time. ereport 55000 if a topic is
 * another one by now.
 */
extern bool PipelinePartitionsAdded(Pipeline *pipeline);

/* Take over what the source knows of partitions (ends, progress past gaps); ereport for faults. */
extern void PipelineHearSource(Pipeline *pipeline);
/* Move next_offset past the batch's records [first, last), or past control records where all is read. */
extern void PipelineAdvancePositions(Pipeline *pipeline, int first, int last);
/*
 * Write positions of all changed partitions (compare-and-set); note them as
 * stored with PipelinePositionsStored() once committed. ereport 40001 if another
 * worker moved them.
 */
extern void PipelineWritePositions(Pipeline *pipeline);
extern void PipelinePositionsStored(Pipeline *pipeline);
extern void PipelineNotify(Pipeline *pipeline);

/* Throw a caught error on, without telling its context twice. Needs an outer PG_TRY or the session's main loop. */
extern void PipelineRethrow(ErrorData *error);

/* ---- apply.c ---- */

/*
 * Make all constraints immediate, which checks what is pending: deferred ones would fire at COMMIT, as somebody else and
 * unattributable. A session does it first as the caller, so that what he left pending is not blamed on a record.
 */
extern void ApplyConstraintsImmediate(void);

/*
 * Decode the batch as the pipeline's owner: domains and types of the stream's columns may run code of his. After
 * an error the caller resets InPipeline.
 */
extern void PipelineDecode(Pipeline *pipeline);

/*
 * Run the statement over records [first, nrecords) of the batch, in the open (sub)transaction, finding bad
 * records; writes dead letters and positions. Returns the end of what was applied, which is short
 * of nrecords when the transaction should be committed before going on. *rows: rows written.
 */
extern int	ApplyBatch(Pipeline *pipeline, int first, uint64 *rows);

/*
 * The search within: applies what can be applied of the decoded records [first, nrecords), and marks the rest as rejected.
 * judged: max_errors and on_error count (ereport 55000 when the record at first is one too many). Returns as ApplyBatch().
 */
extern int	SearchBatch(Pipeline *pipeline, int first, bool judged, uint64 *rows);

/* ---- session.c ---- */

/*
 * Run a pipeline in this session and transaction up to the present end of its stream;
 * wall_clock: DT_NOBEGIN for the system's. Returns records read. ereport 55006 while
 * somebody else runs it.
 */
extern int64 PipelineRunInSession(const PipelineDefinition *def, int64 max_records,
								  TimestampTz wall_clock);

/* Set a record aside in a windowed pipeline: found again by its place. */
typedef struct RejectedRecord
{
	int32		topic;
	int32		partition;
	int64		offset;
	RecordError error;
} RejectedRecord;

/* statement.c: parse what the user typed; stream is found, names are resolved. */
typedef struct Statement
{
	PipelineKind kind;
	Query	   *query;			/* analyzed, not rewritten */
	char	   *qualified;		/* pg_get_querydef under pg_catalog */
	Oid			stream;
	bool		merges;			/* it is a MERGE, or has one in WITH */
	List	   *notices;		/* of char *: what the user should know */
} Statement;

extern Statement *StatementAnalyze(const char *text);
/* The same for the stored, qualified text in a worker. */
extern Statement *StatementReanalyze(const char *qualified);

/* commanding.c: does it call send_command() or insert into hybridiot.command, as far as it can be seen? */
extern bool StatementCommands(const Statement *statement);

#endif							/* HYBRIDIOT_PIPELINE_H */
