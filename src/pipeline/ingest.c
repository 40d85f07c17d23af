/*
 * ingest.c
 *		The pipeline worker: poll -> batch -> apply -> position, one COMMIT.
 *
 * The steps are those of step.c. What an error that ends one means is
 * decided at one place, pipeline_error(): try again after a back-off with everything opened anew from the
 * stored positions, or stop with the reason.
 */
#include "postgres.h"

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "core/clock.h"
#include "core/compat.h"
#include "pipeline/rollup.h"
#include "pipeline/step.h"
#include "pipeline/strain.h"

#define BACKOFF_FIRST_MS 1000
#define BACKOFF_MAX_MS 60000
#define LONGEST_NAP_MS 10000
#define TROUBLED_NAP_MS 1000	/* while brokers are away: they are asked from time to time */
#define TRIM_AFTER 10000		/* records */
#define TABLE_NAP_MS 250		/* a table cannot tell that it grew */

extern PGDLLEXPORT void PipelineWorkerMain(Datum main_arg);

static int	backoff_ms = 0;		/* of this worker; a commit resets it */

/* ---- the loop of a worker ---- */

typedef struct Loop
{
	WaitEventSet *waits;
	int64		first_at;		/* monotonic ms: when the oldest record of the batch came */
	bool		troubled;		/* the source had an error when last heard */
	int64		taken;			/* records since memory was given back */
	int64		trimmed_at;		/* monotonic ms: when that was */
} Loop;

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
			StepCheckpoint(pipeline);
			now = PipelineNow(pipeline);
		}
		/* What becomes due sooner waits for the checkpoint. */
		nap = Min(nap, ms_until(RollupCheckpointDue(pipeline, now) ? next_checkpoint(pipeline) :
								Max(next_checkpoint(pipeline), RollupNextDeadline(pipeline, now)), now));
	}
	else if (StepPositionsChanged(pipeline))
		StepStorePositions(pipeline);
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

	return batch->nrecords >= StepLimit(pipeline) || SourceIsFull(pipeline->source) ||
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
		StepApplyBatch(pipeline);
		return;
	}
	if (StepAdvance(pipeline) && pipeline->piece == 0)
	{
		TimestampTz now = PipelineNow(pipeline);

		if (RollupCheckpointUrgent(pipeline) ||
			(now - pipeline->checkpoint_at >= options->checkpoint_us && RollupCheckpointDue(pipeline, now)))
			StepCheckpoint(pipeline);
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

		n = StepFill(pipeline, StepLimit(pipeline));
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
			callback.callback = StepContext;
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
	if (pipeline && pipeline->commits > 0)
		backoff_ms = 0;
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
