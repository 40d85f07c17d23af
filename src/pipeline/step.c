/*
 * step.c
 *		The steps of a pipeline, in a worker and in a session: a batch is taken, a checkpoint is made.
 *
 * A step is a transaction in a worker. In a session all is one transaction, the caller's, and a step that must be undone by
 * itself is a subtransaction. The network is touched between steps only. An error that lies in a record is dealt with inside a
 * step (apply.c) or, in windowed pipelines, by replaying from the last checkpoint in
 * smaller and smaller pieces. Any other error ends the step, and is thrown.
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"

#include "core/compat.h"
#include "pipeline/letters.h"
#include "pipeline/rollup.h"
#include "pipeline/step.h"
#include "pipeline/strain.h"

/*
 * A transaction in a worker. In a session all is one transaction, the caller's; a
 * unit that must be undone by itself is a subtransaction there, and who begins one
 * has to end it on errors, too.
 */
typedef struct Unit
{
	bool		subtransaction;
	MemoryContext context;
	ResourceOwner owner;
} Unit;

static void
unit_begin(Pipeline *pipeline, Unit *unit, bool undoable)
{
	unit->context = CurrentMemoryContext;
	unit->owner = CurrentResourceOwner;
	unit->subtransaction = pipeline->in_session && undoable;
	if (!pipeline->in_session)
		WorkerBegin(pipeline->def->name);
	else if (unit->subtransaction)
	{
		BeginInternalSubTransaction(NULL);
		MemoryContextSwitchTo(unit->context);
	}
}

static void
unit_commit(Pipeline *pipeline, Unit *unit)
{
	if (!pipeline->in_session)
	{
		WorkerCommit();
		pipeline->commits++;
	}
	else if (unit->subtransaction)
	{
		ReleaseCurrentSubTransaction();
		CurrentResourceOwner = unit->owner;
	}
	MemoryContextSwitchTo(unit->context);
}

/* Only for undoable ones. */
static void
unit_abort(Pipeline *pipeline, Unit *unit)
{
	InPipeline = false;
	ExposedBatch = NULL;
	if (pipeline->in_session)
	{
		RollbackAndReleaseCurrentSubTransaction();
		CurrentResourceOwner = unit->owner;
	}
	else
		WorkerAbort();
	MemoryContextSwitchTo(unit->context);
}

static void
count(Pipeline *pipeline, int records, uint64 rows, int dead)
{
	WorkerSlot *slot = MyWorkerSlot;

	if (slot == NULL)
		return;
	pg_atomic_fetch_add_u64(&slot->records, records);
	pg_atomic_fetch_add_u64(&slot->rows, rows);
	pg_atomic_fetch_add_u64(&slot->dead_letters, dead);
	pg_atomic_fetch_add_u64(&slot->batches, 1);
	pg_atomic_write_u64(&slot->last_commit_at, (uint64) GetCurrentTimestamp());
}

static int
dead_in(StreamBatch *batch, int first, int last)
{
	int			n = 0;

	for (int i = first; i < last; i++)
		n += batch->status[i] != RECORD_GOOD;
	return n;
}

static void
finish_batch(Pipeline *pipeline)
{
	BatchReset(pipeline->batch);
	SourceRelease(pipeline->source);
}

/* ---- per batch ---- */

void
StepApplyBatch(Pipeline *pipeline)
{
	int			first = 0;

	while (first < pipeline->batch->nrecords)
	{
		Unit		unit;
		uint64		rows = 0;
		int			last;

		StrainBegin(pipeline, first);
		unit_begin(pipeline, &unit, false);
		last = ApplyBatch(pipeline, first, &rows);
		unit_commit(pipeline, &unit);
		StrainEnd(pipeline);
		PipelinePositionsStored(pipeline);
		count(pipeline, last - first, rows, dead_in(pipeline->batch, first, last));
		first = last;
	}
	finish_batch(pipeline);
}

/* Positions that moved without records: only gaps were read. */
void
StepStorePositions(Pipeline *pipeline)
{
	Unit		unit;

	unit_begin(pipeline, &unit, false);
	PipelineWritePositions(pipeline);
	unit_commit(pipeline, &unit);
	PipelinePositionsStored(pipeline);
}

/* ---- windowed ---- */

void
StepCheckpoint(Pipeline *pipeline)
{
	TimestampTz now = PipelineNow(pipeline);
	bool		more = true;

	while (more)
	{
		Unit		unit;
		uint64		rows = 0;

		unit_begin(pipeline, &unit, false);
		/* A seek takes its locks in another order: it comes before or after. */
		if (!CatalogLockPipeline(pipeline->def))
			ereport(ERROR,
					(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
					 errmsg("positions of pipeline \"%s\" were reset", pipeline->def->name)));
		more = RollupCheckpoint(pipeline, now, &rows);

		/* The compare-and-set fences this, too, when windows close by silence and no position moves. */
		if (pipeline->nparts > 0)
			pipeline->parts[0].changed = true;
		PipelineWritePositions(pipeline);
		unit_commit(pipeline, &unit);
		PipelinePositionsStored(pipeline);
		count(pipeline, pipeline->since_checkpoint, rows, pipeline->dead_since_checkpoint);
		pipeline->since_checkpoint = pipeline->dead_since_checkpoint = 0;
	}
	pipeline->checkpoint_at = PipelineNow(pipeline);
	pipeline->errors_at_checkpoint = pipeline->errors_in_row;
}

/* Records that were found to be bad in an earlier attempt. */
static void
mark_rejected(Pipeline *pipeline)
{
	StreamBatch *batch = pipeline->batch;
	ListCell   *lc;

	foreach(lc, pipeline->rejected)
	{
		RejectedRecord *rejected = lfirst(lc);

		for (int i = 0; i < batch->nrecords; i++)
			if (batch->records[i].offset == rejected->offset &&
				batch->records[i].partition == rejected->partition &&
				batch->records[i].topic == rejected->topic)
				BatchSetError(batch, i, RECORD_REJECTED, rejected->error.sqlstate,
							  rejected->error.message);
	}
}

/* Those that a checkpoint has left behind will not come again. */
static void
forget_rejected(Pipeline *pipeline)
{
	ListCell   *lc;

	foreach(lc, pipeline->rejected)
	{
		RejectedRecord *rejected = lfirst(lc);
		Record		place = {.topic = rejected->topic,.partition = rejected->partition};

		if (rejected->offset >= PipelinePartition(pipeline, &place)->stored_offset)
			continue;
		pipeline->rejected = foreach_delete_current(pipeline->rejected, lc);
		pfree(rejected->error.message);
		pfree(rejected);
	}
}

/* Groups and positions as of the last checkpoint, to be replayed in smaller pieces. */
static void
narrow_down(Pipeline *pipeline, ErrorData *error)
{
	StreamBatch *batch = pipeline->batch;
	Unit		unit;

	if (batch->nrecords == 1)
	{
		MemoryContext old = MemoryContextSwitchTo(pipeline->context);
		RejectedRecord *rejected = palloc0(sizeof(RejectedRecord));

		rejected->topic = batch->records[0].topic;
		rejected->partition = batch->records[0].partition;
		rejected->offset = batch->records[0].offset;
		rejected->error.sqlstate = error->sqlerrcode;
		rejected->error.message = ErrorMessage(error);
		pipeline->rejected = lappend(pipeline->rejected, rejected);
		MemoryContextSwitchTo(old);
	}
	pipeline->piece = Max(batch->nrecords / 2, 1);
	pipeline->since_checkpoint = pipeline->dead_since_checkpoint = 0;
	pipeline->errors_in_row = pipeline->errors_at_checkpoint;

	RollupClose(pipeline->rollup);
	pipeline->rollup = NULL;
	unit_begin(pipeline, &unit, false);
	PipelineRewind(pipeline);
	pipeline->rollup = RollupOpen(pipeline);
	unit_commit(pipeline, &unit);
}

/* One batch into the groups. False: a record failed, and reading goes on from the last checkpoint. */
bool
StepAdvance(Pipeline *pipeline)
{
	StreamBatch *batch = pipeline->batch;
	MemoryContext context = CurrentMemoryContext;
	ErrorData  *volatile error = NULL;
	Unit		unit;
	volatile int dead = 0;

	StrainBegin(pipeline, 0);
	unit_begin(pipeline, &unit, true);
	PG_TRY();
	{
		StatementTimerBegin();
		PipelineDecode(pipeline);
		mark_rejected(pipeline);
		batch->first = 0;
		batch->last = batch->nrecords;
		RollupAdvance(pipeline, batch);
		StatementTimerEnd();
		dead = JudgeDeadRecords(pipeline, 0, batch->nrecords);
	}
	PG_CATCH();
	{
		StatementTimerEnd();
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		unit_abort(pipeline, &unit);
	}
	PG_END_TRY();

	if (error)
	{
		ErrorClass	class = ErrorClassify(error->sqlerrcode);

		if (class == ERROR_TRY_AGAIN || class == ERROR_STOP)
			ReThrowError(error);
		narrow_down(pipeline, error);
		FreeErrorData(error);
		return false;
	}

	unit_commit(pipeline, &unit);
	StrainEnd(pipeline);
	PipelineAdvancePositions(pipeline, 0, batch->nrecords);
	pipeline->since_checkpoint += batch->nrecords;
	pipeline->dead_since_checkpoint += dead;
	finish_batch(pipeline);

	if (pipeline->piece > 0)
	{
		StepCheckpoint(pipeline);
		forget_rejected(pipeline);
		pipeline->piece = pipeline->piece >= batch->capacity / 2 ? 0 : pipeline->piece * 2;
	}
	return true;
}

int
StepLimit(Pipeline *pipeline)
{
	int			limit = pipeline->batch->capacity;

	if (pipeline->piece > 0)
		limit = Min(limit, pipeline->piece);
	return pipeline->in_session ? limit : StrainLimit(limit);
}

/* Take what has arrived. Returns the number of records. */
int
StepFill(Pipeline *pipeline, int limit)
{
	StreamBatch *batch = pipeline->batch;
	int			n = 0;

	if (limit > batch->nrecords)
		n = SourcePoll(pipeline->source, batch->records + batch->nrecords,
					   limit - batch->nrecords, 0);
	batch->nrecords += n;
	PipelineHearSource(pipeline);
	return n;
}

/* Has anything moved that the table does not have: a position, or the end of a log? */
bool
StepPositionsChanged(Pipeline *pipeline)
{
	bool		any = false;

	for (int i = 0; i < pipeline->nparts; i++)
	{
		PartitionState *part = &pipeline->parts[i];

		part->changed |= part->end_offset != part->stored_end;
		any |= part->changed;
	}
	return any;
}

/* Error context: which pipeline, stream and record. */
void
StepContext(void *arg)
{
	Pipeline   *pipeline = arg;
	StreamBatch *batch = pipeline->batch;

	if (batch->delivered >= 0 && batch->delivered < batch->nrecords && InPipeline)
		errcontext("pipeline \"%s\", stream \"%s\", partition %d, offset " INT64_FORMAT,
				   pipeline->def->name, pipeline->stream->name,
				   batch->records[batch->delivered].partition,
				   batch->records[batch->delivered].offset);
	else
		errcontext("pipeline \"%s\", stream \"%s\"", pipeline->def->name, pipeline->stream->name);
}
