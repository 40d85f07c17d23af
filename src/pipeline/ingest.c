/*
 * ingest.c
 *		The pipeline worker: poll -> batch -> apply -> position, one COMMIT.
 *
 * The same steps run in a session (run_pipeline), where a unit of work is a
 * subtransaction instead of a transaction. The network is touched between
 * units only. An error that lies in a record is dealt with inside a
 * unit (apply.c) or, in windowed pipelines, by replaying from the last checkpoint in
 * smaller and smaller pieces. Any other error ends the unit; what it means is
 * decided at one place, pipeline_error(): try again after a back-off with everything opened anew from the
 * stored positions, or stop with the reason.
 */
#include "postgres.h"

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "access/xact.h"
#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "core/clock.h"
#include "core/compat.h"
#include "pipeline/letters.h"
#include "pipeline/pipeline.h"
#include "pipeline/rollup.h"
#include "pipeline/strain.h"

#define BACKOFF_FIRST_MS 1000
#define BACKOFF_MAX_MS 60000
#define LONGEST_NAP_MS 10000
#define TROUBLED_NAP_MS 1000	/* while brokers are away: they are asked from time to time */
#define TRIM_AFTER 10000		/* records */
#define TABLE_NAP_MS 250		/* a table cannot tell that it grew */
#define SESSION_PATIENCE_MS 30000	/* until a session gives up on the brokers */
#define RELEASE_PATIENCE_MS 5000	/* until a paused worker must have left */

extern PGDLLEXPORT void PipelineWorkerMain(Datum main_arg);

static int	backoff_ms = 0;		/* of this worker; a commit resets it */

/* ---- units of work ---- */

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
		backoff_ms = 0;
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

static void
apply_batch(Pipeline *pipeline)
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
static void
store_positions(Pipeline *pipeline)
{
	Unit		unit;

	unit_begin(pipeline, &unit, false);
	PipelineWritePositions(pipeline);
	unit_commit(pipeline, &unit);
	PipelinePositionsStored(pipeline);
}

/* ---- windowed ---- */

static void
checkpoint(Pipeline *pipeline)
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
static bool
advance(Pipeline *pipeline)
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
		checkpoint(pipeline);
		forget_rejected(pipeline);
		pipeline->piece = pipeline->piece >= batch->capacity / 2 ? 0 : pipeline->piece * 2;
	}
	return true;
}

/* ---- the loop of a worker ---- */

typedef struct Loop
{
	WaitEventSet *waits;
	int64		first_at;		/* monotonic ms: when the oldest record of the batch came */
	bool		troubled;		/* the source had an error when last heard */
	int64		taken;			/* records since memory was given back */
	int64		trimmed_at;		/* monotonic ms: when that was */
} Loop;

static int
batch_limit(Pipeline *pipeline)
{
	int			limit = pipeline->batch->capacity;

	if (pipeline->piece > 0)
		limit = Min(limit, pipeline->piece);
	return pipeline->in_session ? limit : StrainLimit(limit);
}

/* Take what has arrived. Returns the number of records. */
static int
fill_batch(Pipeline *pipeline, int limit)
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

/* Say in the view that brokers are away, or back. */
static void
report_trouble(Pipeline *pipeline, Loop *loop)
{
	const char *error = SourceError(pipeline->source);

	if (error[0] && !loop->troubled)
	{
		WorkerSetState(WORKER_RETRYING, error);
		SlotSetError(MyWorkerSlot, error);
		pg_atomic_fetch_add_u64(&MyWorkerSlot->retries, 1);
	}
	else if (!error[0] && loop->troubled)
		WorkerSetState(WORKER_RUNNING, NULL);
	loop->troubled = error[0] != '\0';
}

/* Has anything moved that the table does not have: a position, or the end of a log? */
static bool
positions_changed(Pipeline *pipeline)
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

static int64
ms_until(TimestampTz when, TimestampTz now)
{
	if (when <= now)
		return 0;
	if (when == DT_NOEND)
		return LONGEST_NAP_MS;
	return TimestampDifferenceMilliseconds(now, when) + 1;
}

/* When the next checkpoint may be, if there is something to write by then. */
static TimestampTz
next_checkpoint(Pipeline *pipeline)
{
	return TimestampTzPlusMilliseconds(pipeline->checkpoint_at, pipeline->def->options.checkpoint_us / 1000);
}

/* Work that is due though no record came. Returns milliseconds until there may be more. */
static int64
idle_work(Pipeline *pipeline, Loop *loop)
{
	const PipelineOptions *options = &pipeline->def->options;
	int64		nap = LONGEST_NAP_MS;

	if (pipeline->batch->nrecords > 0)
		return Max(loop->first_at + options->batch_delay_us / 1000 - ClockMonotonicMs(), 0);

	PipelineAdvancePositions(pipeline, 0, 0);
	if (pipeline->rollup)
	{
		TimestampTz now = PipelineNow(pipeline);

		if (next_checkpoint(pipeline) <= now && RollupCheckpointDue(pipeline, now))
		{
			checkpoint(pipeline);
			now = PipelineNow(pipeline);
		}
		/* What becomes due sooner waits for the checkpoint. */
		nap = Min(nap, ms_until(RollupCheckpointDue(pipeline, now) ? next_checkpoint(pipeline) :
								Max(next_checkpoint(pipeline), RollupNextDeadline(pipeline, now)), now));
	}
	else if (positions_changed(pipeline))
		store_positions(pipeline);
	if (SourceFd(pipeline->source) < 0)
		nap = Min(nap, TABLE_NAP_MS);
	if (loop->troubled)
		nap = Min(nap, TROUBLED_NAP_MS);
	return nap;
}

static void
wait_for_work(Pipeline *pipeline, Loop *loop, int64 nap)
{
	WaitEvent	event;

	SourceLeave(pipeline->source);
	if (nap > 0)
		(void) WaitEventSetWait(loop->waits, (long) Min(nap, LONGEST_NAP_MS), &event, 1,
								WaitEventExtensionNew("HybridiotPipeline"));
	ResetLatch(MyLatch);
	SourceDrainFd(pipeline->source);
}

static bool
batch_is_due(Pipeline *pipeline, Loop *loop)
{
	StreamBatch *batch = pipeline->batch;

	return batch->nrecords >= batch_limit(pipeline) || SourceIsFull(pipeline->source) ||
		(batch->nrecords > 0 &&
		 ClockMonotonicMs() - loop->first_at >= pipeline->def->options.batch_delay_us / 1000);
}

static bool
still_the_same(Pipeline *pipeline)
{
	bool		same;

	WorkerBegin("reading definitions");
	/* We may have been woken before the messages that tell of changed options were sent. */
	InvalidateSystemCaches();
	same = PipelineUnchanged(pipeline);
	WorkerCommit();
	return same;
}

static void
take_batch(Pipeline *pipeline)
{
	const PipelineOptions *options = &pipeline->def->options;

	if (pipeline->rollup == NULL)
	{
		apply_batch(pipeline);
		return;
	}
	if (advance(pipeline) && pipeline->piece == 0)
	{
		TimestampTz now = PipelineNow(pipeline);

		if (RollupCheckpointUrgent(pipeline) ||
			(now - pipeline->checkpoint_at >= options->checkpoint_us && RollupCheckpointDue(pipeline, now)))
			checkpoint(pipeline);
	}
}

/* Who has caught up with a backlog holds a hundred megabytes that the C library would keep for the next one. */
static void
give_back_memory(Loop *loop)
{
	int64		now = ClockMonotonicMs();

	if (loop->taken < TRIM_AFTER || now - loop->trimmed_at < LONGEST_NAP_MS)
		return;
	loop->taken = 0;
	loop->trimmed_at = now;
#ifdef __GLIBC__
	(void) malloc_trim(0);
#endif
}

/* Until the definition changes. Errors are thrown. */
static void
run_loop(Pipeline *pipeline, Loop *loop)
{
	for (;;)
	{
		int			n;

		WorkerCheck();
		if (WorkerReloadRequested() && !still_the_same(pipeline))
			return;
		if (PipelinePartitionsAdded(pipeline))
			return;

		n = fill_batch(pipeline, batch_limit(pipeline));
		loop->taken += n;
		if (n > 0 && n == pipeline->batch->nrecords)
			loop->first_at = ClockMonotonicMs();
		report_trouble(pipeline, loop);
		if (batch_is_due(pipeline, loop))
			take_batch(pipeline);
		else if (n == 0)
		{
			give_back_memory(loop);
			wait_for_work(pipeline, loop, idle_work(pipeline, loop));
		}
	}
}

/* Error context: which pipeline, stream and record. */
static void
pipeline_context(void *arg)
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

/* Stop: the reason is a row, and the manager leaves the pipeline alone until it is resumed. */
static bool
stop_with_reason(const char *reason, int32 seeks)
{
	bool		stopped;

	WorkerBegin("stopping");
	stopped = CatalogSetFailure(MyWorkerSlot->object, seeks, reason);
	WakeAtCommit(WAKE_RELOAD);
	WorkerCommit();
	return stopped;
}

/*
 * What an error means. Returns false when the worker must leave. seeks: as the pipeline was opened with; -1: it was
 * not. Who was sent elsewhere meanwhile goes there.
 */
static bool
pipeline_error(ErrorData *error, int32 seeks)
{
	char		reason[HYBRIDIOT_REASON_LEN];
	bool		halved;
	bool		bears = StrainBears(error->sqlerrcode, &halved);

	if (!bears)
		snprintf(reason, sizeof(reason), "record at %s cannot be applied: %s", StrainPlace(), error->message);
	else
		snprintf(reason, sizeof(reason), "%s%s%s%s%s%s", error->message,
				 error->detail ? " (" : "", error->detail ? error->detail : "", error->detail ? ")" : "",
				 error->hint ? ". " : "", error->hint ? error->hint : "");
	reason[pg_mbcliplen(reason, (int) strlen(reason), sizeof(reason) - 1)] = '\0';
	SlotSetError(MyWorkerSlot, reason);

	if (!bears || ErrorClassify(error->sqlerrcode) != ERROR_TRY_AGAIN)
	{
		return !stop_with_reason(reason, seeks);
	}
	if (halved)
		backoff_ms = 0;
	pg_atomic_fetch_add_u64(&MyWorkerSlot->retries, 1);
	WorkerSetState(WORKER_RETRYING, reason);
	return true;
}

/* Wait out the back-off; a changed definition ends it. */
static void
back_off(void)
{
	int64		end = ClockMonotonicMs() + BackoffNext(&backoff_ms, BACKOFF_FIRST_MS, BACKOFF_MAX_MS);

	for (;;)
	{
		int64		left = end - ClockMonotonicMs();

		WorkerCheck();
		if (left <= 0 || WorkerReloadRequested())
			return;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, (long) left,
						 WaitEventExtensionNew("HybridiotBackoff"));
		ResetLatch(MyLatch);
	}
}

static Pipeline *
open_for_worker(void)
{
	Pipeline   *pipeline;

	WorkerBegin("opening");
	pipeline = OidIsValid(CatalogExtension()) ? PipelineOpen(MyWorkerSlot->object, false, MyWorkerSlot->member) : NULL;
	WorkerCommit();
	return pipeline;
}

/* Open, run until something changes, close. False: nothing left to do here. */
static bool
serve(MemoryContext context)
{
	Pipeline   *volatile pipeline = NULL;
	ErrorData  *volatile error = NULL;
	ErrorContextCallback callback;
	ErrorContextCallback *callbacks = error_context_stack;
	Loop		loop = {.trimmed_at = ClockMonotonicMs()};
	bool		go_on = true;
	int32		seeks;

	PG_TRY();
	{
		pipeline = open_for_worker();
		if (pipeline == NULL || !pipeline->def->enabled || pipeline->def->failure)
			go_on = false;
		else
		{
			callback.callback = pipeline_context;
			callback.arg = pipeline;
			callback.previous = error_context_stack;
			error_context_stack = &callback;

			PipelineConnect(pipeline);
			PipelineAssign(pipeline);
			MemoryContextSwitchTo(TopMemoryContext);
			loop.waits = CreateWaitEventSet(NULL, 3);
			AddWaitEventToSet(loop.waits, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
			AddWaitEventToSet(loop.waits, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
			if (SourceFd(pipeline->source) >= 0)
				AddWaitEventToSet(loop.waits, WL_SOCKET_READABLE, SourceFd(pipeline->source), NULL, NULL);
			MemoryContextSwitchTo(context);
			WorkerSetState(WORKER_RUNNING, NULL);
			run_loop(pipeline, &loop);
		}
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		EmitErrorReport();
		FlushErrorState();
	}
	PG_END_TRY();

	error_context_stack = callbacks;
	InPipeline = false;
	if (error)
		WorkerAbort();
	if (loop.waits)
		FreeWaitEventSet(loop.waits);
	seeks = pipeline ? pipeline->def->seeks : -1;
	PipelineClose(pipeline);
	MemoryContextSwitchTo(context);
	if (error)
	{
		go_on = pipeline_error(error, seeks);
		if (go_on)
			back_off();
	}
	return go_on;
}

void
PipelineWorkerMain(Datum main_arg)
{
	MemoryContext context;

	WorkerAttach(main_arg);

	/* Rows and position are lost together, and Kafka has the records: no need to wait for the disk. */
	SetConfigOption("synchronous_commit", "off", PGC_USERSET, PGC_S_SESSION);
	context = AllocSetContextCreate(TopMemoryContext, "hybridiot worker", ALLOCSET_DEFAULT_SIZES);
	do
	{
		MemoryContextSwitchTo(context);
		MemoryContextReset(context);
	} while (serve(context));
	proc_exit(0);
}

/* ---- in a session ---- */

/* Has everything below the ends been read? */
static bool
session_finished(Pipeline *pipeline, const int64 *ends)
{
	int			n;
	const KafkaPartition *from = SourceAssignment(pipeline->source, &n);

	for (int i = 0; i < n; i++)
	{
		/* A log that ends before what was read of it: the source is about to say so. */
		bool		cut = SourceFd(pipeline->source) >= 0 && ends[i] < pipeline->parts[i].stored_offset;

		if ((from[i].next_offset < ends[i] || cut) && !from[i].at_end)
			return false;
	}
	return true;
}

static void
session_wait(Pipeline *pipeline, int64 since)
{
	int			fd = SourceFd(pipeline->source);

	if (ClockMonotonicMs() - since > SESSION_PATIENCE_MS)
		ereport(ERROR,
				(errcode(ERRCODE_CONNECTION_FAILURE),
				 errmsg("brokers of stream \"%s\" do not answer", pipeline->stream->name),
				 SourceError(pipeline->source)[0] ? errdetail("%s", SourceError(pipeline->source)) : 0));
	if (fd >= 0)
		(void) WaitLatchOrSocket(MyLatch, WL_LATCH_SET | WL_SOCKET_READABLE | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
								 fd, 1000, WaitEventExtensionNew("HybridiotRunPipeline"));
	ResetLatch(MyLatch);
	SourceDrainFd(pipeline->source);
}

static int64
run_to_end(Pipeline *pipeline, int64 max_records)
{
	int64	   *ends = palloc(sizeof(int64) * Max(pipeline->nparts, 1));
	int64		total = 0;
	int64		since = ClockMonotonicMs();
	bool		finished = pipeline->nparts == 0;

	for (int i = 0; i < pipeline->nparts; i++)
	{
		int64		low;

		SourceWatermarks(pipeline->source, pipeline->parts[i].topic, pipeline->parts[i].partition,
						 SESSION_PATIENCE_MS, &low, &ends[i]);
	}
	PipelineAssign(pipeline);
	while (!finished && total < max_records)
	{
		int			limit = (int) Min(batch_limit(pipeline), max_records - total);
		int			n;

		CHECK_FOR_INTERRUPTS();
		n = fill_batch(pipeline, limit);
		finished = session_finished(pipeline, ends);
		if (pipeline->batch->nrecords >= limit || SourceIsFull(pipeline->source) ||
			(finished && pipeline->batch->nrecords > 0))
		{
			int			records = pipeline->batch->nrecords;
			int			pending = pipeline->since_checkpoint;

			if (pipeline->rollup == NULL)
				apply_batch(pipeline);
			else if (!advance(pipeline))
			{
				/* What came since the checkpoint is read again. */
				total -= pending;
				finished = false;
				continue;
			}
			else if (RollupCheckpointUrgent(pipeline))
				checkpoint(pipeline);
			total += records;
			since = ClockMonotonicMs();
		}
		else if (n == 0 && !finished)
			session_wait(pipeline, since);
	}
	if (pipeline->rollup && RollupCheckpointDue(pipeline, PipelineNow(pipeline)))
		checkpoint(pipeline);
	PipelineAdvancePositions(pipeline, 0, 0);
	if (positions_changed(pipeline))
		store_positions(pipeline);
	return total;
}

/* An error leaves the units of work that it breaks off rolled back: the rest is the caller's transaction. */
static int64
run_in_units(Pipeline *pipeline, int64 max_records)
{
	int			level = GetCurrentTransactionNestLevel();
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	int64		total = 0;

	PG_TRY();
	{
		PipelineConnect(pipeline);
		total = run_to_end(pipeline, max_records);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		while (GetCurrentTransactionNestLevel() > level)
			RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		CurrentResourceOwner = owner;
		ReThrowError(error);
	}
	PG_END_TRY();
	return total;
}

/* What run_pipeline() has open, to be closed on errors, too. */
static Pipeline *session_pipeline = NULL;

/* Close it and give back its slot. */
static void
end_session_run(int code, Datum arg)
{
	WorkerSlot *slot = MyWorkerSlot;

	InPipeline = false;
	PipelineClose(session_pipeline);
	session_pipeline = NULL;
	if (slot == NULL)
		return;
	MyWorkerSlot = NULL;
	LWLockAcquire(Shared->lock, LW_EXCLUSIVE);
	SpinLockAcquire(&slot->mutex);
	slot->pid = 0;
	slot->latch = NULL;
	slot->session = false;
	slot->state = WORKER_STOPPED;
	SpinLockRelease(&slot->mutex);
	LWLockRelease(Shared->lock);
	WakeNow(MyDatabaseId, WAKE_RELOAD);
}

/*
 * Take the slot of a pipeline's first worker, if none of its slots is in use: workers on their way here will leave,
 * and the manager starts no other. Caller holds the lock. 53000 when there is no slot to be had.
 */
static bool
try_slot(const PipelineDefinition *def)
{
	WorkerSlot *slot;

	for (int i = 0; i < Shared->nslots; i++)
		if (SlotOfPipeline(&Shared->slots[i], MyDatabaseId, def->id) && Shared->slots[i].pid != 0)
			return false;
	slot = SlotTake(WORKER_PIPELINE, MyDatabaseId, def->id, 0, def->name);
	if (slot == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_RESOURCES),
				 errmsg("no worker slot is free for pipeline \"%s\"", def->name),
				 errhint("Raise hybridiot.max_workers and restart the server.")));
	for (int i = 0; i < Shared->nslots; i++)
		if (SlotOfPipeline(&Shared->slots[i], MyDatabaseId, def->id))
			Shared->slots[i].generation++;
	SpinLockAcquire(&slot->mutex);
	slot->pid = MyProcPid;
	slot->latch = MyLatch;
	slot->session = true;
	slot->state = WORKER_RUNNING;
	SpinLockRelease(&slot->mutex);
	MyWorkerSlot = slot;
	return true;
}

/* Keep workers and other sessions off this pipeline; 55006 if one is there. */
static void
claim_slot(const PipelineDefinition *def)
{
	int64		end = ClockMonotonicMs() + RELEASE_PATIENCE_MS;

	if (Shared == NULL)
		return;
	for (;;)
	{
		bool		taken;

		LWLockAcquire(Shared->lock, LW_EXCLUSIVE);
		taken = try_slot(def);
		LWLockRelease(Shared->lock);
		if (taken)
			return;
		if (def->enabled || ClockMonotonicMs() > end)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_IN_USE),
					 errmsg("pipeline \"%s\" is being run by somebody else", def->name),
					 errhint("Pause it with hybridiot.pause_pipeline first.")));

		/* It was paused and is about to leave. */
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 20,
						 WaitEventExtensionNew("HybridiotRunPipeline"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

/* Run a pipeline in this session up to the present end; wall_clock: DT_NOBEGIN for the system's. */
int64
PipelineRunInSession(const PipelineDefinition *def, int64 max_records, TimestampTz wall_clock)
{
	int64		total = 0;
	ErrorContextCallback callback;

	if (InPipeline || MyWorkerSlot != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("run_pipeline cannot be called while a pipeline runs")));
	ApplyConstraintsImmediate();
	claim_slot(def);
	PG_ENSURE_ERROR_CLEANUP(end_session_run, (Datum) 0);
	{
		Pipeline   *pipeline = session_pipeline = PipelineOpen(def->id, true, 0);

		if (pipeline != NULL)
		{
			callback.callback = pipeline_context;
			callback.arg = pipeline;
			callback.previous = error_context_stack;
			error_context_stack = &callback;
			pipeline->has_clock = wall_clock != DT_NOBEGIN;
			pipeline->clock = wall_clock;
			total = run_in_units(pipeline, max_records);
			error_context_stack = callback.previous;
		}
	}
	PG_END_ENSURE_ERROR_CLEANUP(end_session_run, (Datum) 0);
	end_session_run(0, (Datum) 0);
	return total;
}
