/*
 * session.c
 *		A pipeline that is run by a session, in its transaction: run_pipeline().
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "core/clock.h"
#include "core/compat.h"
#include "pipeline/rollup.h"
#include "pipeline/step.h"

#define SESSION_PATIENCE_MS 30000	/* until a session gives up on the brokers */
#define RELEASE_PATIENCE_MS 5000	/* until a paused worker must have left */

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
		int			limit = (int) Min(StepLimit(pipeline), max_records - total);
		int			n;

		CHECK_FOR_INTERRUPTS();
		n = StepFill(pipeline, limit);
		finished = session_finished(pipeline, ends);
		if (pipeline->batch->nrecords >= limit || SourceIsFull(pipeline->source) ||
			(finished && pipeline->batch->nrecords > 0))
		{
			int			records = pipeline->batch->nrecords;
			int			pending = pipeline->since_checkpoint;

			if (pipeline->rollup == NULL)
				StepApplyBatch(pipeline);
			else if (!StepAdvance(pipeline))
			{
				/* What came since the checkpoint is read again. */
				total -= pending;
				finished = false;
				continue;
			}
			else if (RollupCheckpointUrgent(pipeline))
				StepCheckpoint(pipeline);
			total += records;
			since = ClockMonotonicMs();
		}
		else if (n == 0 && !finished)
			session_wait(pipeline, since);
	}
	if (pipeline->rollup && RollupCheckpointDue(pipeline, PipelineNow(pipeline)))
		StepCheckpoint(pipeline);
	PipelineAdvancePositions(pipeline, 0, 0);
	if (StepPositionsChanged(pipeline))
		StepStorePositions(pipeline);
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
			callback.callback = StepContext;
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
