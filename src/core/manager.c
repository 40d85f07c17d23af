/*
 * manager.c
 *		One manager per database: its pipelines' workers and its AMQP worker.
 *
 * The manager compares what the catalog says should run with what the slots say
 * does run, and starts or stops the difference. Workers that ended by an error are
 * started again after a back-off of 1 s to 60 s, which a commit of that
 * worker resets. A worker that outlives its manager is simply found in its
 * slot by the next one.
 */
#include "postgres.h"

#include <signal.h>

#include "access/xact.h"
#include "commands/dbcommands.h"
#include "executor/spi.h"
#include "foreign/foreign.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "core/catalog_origin.h"
#include "core/clock.h"
#include "core/compat.h"
#include "core/launcher.h"
#include "core/worker.h"

#define MANAGER_NAP_MS 10000
/* While something waits for a process that others than we may give back. */
#define QUEUE_NAP_MS 1000
#define BACKOFF_FIRST_MS 1000
#define BACKOFF_MAX_MS 60000

/* A database without the extension is looked at again after this long, if nothing wakes the launcher. */
#define ABSENT_NAP_MS 3600000

static void
leave_alone(int ms)
{
	SpinLockAcquire(&MyWorkerSlot->mutex);
	MyWorkerSlot->not_before_ms = ClockMonotonicMs() + ms;
	SpinLockRelease(&MyWorkerSlot->mutex);
}

/* End what runs in this database besides us, when it should not. */
static void
stop_slot(WorkerSlot *slot)
{
	slot->stop = true;
	if (slot->pid == 0)
	{
		slot->state = WORKER_STOPPED;
		slot->waiting_ms = 0;
	}
	else if (!slot->session)
		SlotWake(slot, NULL);
}

static void
stop_all(void)
{
	LWLockAcquire(Shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < Shared->nslots; i++)
		if (Shared->slots[i].database == MyDatabaseId &&
			Shared->slots[i].kind != WORKER_NONE &&
			Shared->slots[i].kind != WORKER_MANAGER)
			stop_slot(&Shared->slots[i]);
	LWLockRelease(Shared->lock);
}

/* Does somebody run this pipeline with run_pipeline(), all partitions of it? Caller holds the lock. */
static bool
session_has_pipeline(int32 pipeline)
{
	for (int i = 0; i < Shared->nslots; i++)
		if (SlotOfPipeline(&Shared->slots[i], MyDatabaseId, pipeline) && Shared->slots[i].session)
			return true;
	return false;
}

/*
 * Start a worker if it is not there and its back-off has passed. Returns
 * milliseconds until it should be looked at again.
 */
static long
keep_running(WorkerKind kind, int32 object, int32 member, const char *name,
			 const char *function, const char *type)
{
	int64		now = ClockMonotonicMs();
	WorkerSlot *slot;
	long		nap = MANAGER_NAP_MS;

	LWLockAcquire(Shared->lock, LW_EXCLUSIVE);
	/* A session that runs the pipeline has all its partitions: nobody else of it waits for a process. */
	if (kind == WORKER_PIPELINE && session_has_pipeline(object))
	{
		slot = SlotFind(kind, MyDatabaseId, object, member);
		if (slot && slot->pid == 0 && slot->state == WORKER_WAITING)
		{
			slot->state = WORKER_STOPPED;
			slot->waiting_ms = 0;
		}
	}
	slot = DatabaseIsHeld(MyDatabaseId) || (kind == WORKER_PIPELINE && session_has_pipeline(object)) ? NULL :
		SlotTake(kind, MyDatabaseId, object, member, name);
	if (slot == NULL)
		nap = QUEUE_NAP_MS;
	else if (slot->pid != 0)
		slot->stop = false;
	else if (slot->state == WORKER_STARTING)
	{
		/* One that was asked for and never came: fork failed, or killed early. */
		if (now - slot->asked_ms > MANAGER_NAP_MS)
			slot->state = WORKER_STOPPED;
		nap = QUEUE_NAP_MS;
	}
	else if (slot->not_before_ms > now)
		nap = (long) (slot->not_before_ms - now) + 1;
	else
	{
		/* Did it commit anything since its last start? Then the count begins anew. */
		if (pg_atomic_read_u64(&slot->last_commit_at) != slot->commit_seen)
			slot->backoff_ms = 0;
		if (WorkerLaunch(slot, function, type))
			slot->not_before_ms = now + BackoffNext(&slot->backoff_ms, BACKOFF_FIRST_MS, BACKOFF_MAX_MS);
		else
			nap = QUEUE_NAP_MS;
	}
	LWLockRelease(Shared->lock);
	return nap;
}

/* Stop workers of pipelines that are not to run, free slots of those that are gone. */
static void
stop_others(const EnabledPipeline *wanted, int nwanted, bool want_amqp)
{
	LWLockAcquire(Shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < Shared->nslots; i++)
	{
		WorkerSlot *slot = &Shared->slots[i];
		bool		keep = false;

		if (slot->database != MyDatabaseId || slot->session)
			continue;
		if (slot->kind == WORKER_PIPELINE)
		{
			for (int k = 0; k < nwanted && !keep; k++)
				keep = wanted[k].id == slot->object && slot->member < wanted[k].workers;
		}
		else if (slot->kind == WORKER_AMQP)
			keep = want_amqp;
		else
			continue;
		if (!keep)
			stop_slot(slot);
	}
	LWLockRelease(Shared->lock);
}

/* Is the extension here, and of the version that we can work with? */
static bool
extension_fits(void)
{
	char	   *version = CatalogVersion();

	if (version == NULL)
		return false;
	if (strcmp(version, HYBRIDIOT_VERSION) == 0)
		return true;
	ereport(LOG,
			(errmsg("no worker starts in database \"%s\": its extension \"%s\" is version %s, and the library is %s",
					get_database_name(MyDatabaseId), HYBRIDIOT_EXTENSION, version, HYBRIDIOT_VERSION),
			 errhint("Run ALTER EXTENSION hybridiot UPDATE.")));
	return false;
}

/* One look at what should run. False: the extension is not here (any more). */
static bool
manage(MemoryContext context, long *nap)
{
	EnabledPipeline *pipelines = NULL;
	int			n = 0;
	int			most = 0;
	bool		want_amqp = false;
	bool		present;

	WorkerBegin("managing workers");
	present = extension_fits();
	if (present)
	{
		CatalogHoldCopies();
		pipelines = CatalogEnabledPipelines(context, &n);
		want_amqp = CatalogHasAmqpServer();
	}
	WorkerCommit();
	if (!present)
		return false;

	*nap = MANAGER_NAP_MS;
	stop_others(pipelines, n, want_amqp);
	for (int i = 0; i < n; i++)
		most = Max(most, pipelines[i].workers);

	/* Each pipeline gets its first worker before any gets a second. */
	for (int member = 0; member < most; member++)
		for (int i = 0; i < n; i++)
			if (member < pipelines[i].workers)
				*nap = Min(*nap, keep_running(WORKER_PIPELINE, pipelines[i].id, member, pipelines[i].name,
											  "PipelineWorkerMain", "hybridiot pipeline"));
	if (want_amqp)
		*nap = Min(*nap, keep_running(WORKER_AMQP, 0, 0, "",
									  "CommandWorkerMain", "hybridiot amqp"));
	return true;
}

void
ManagerMain(Datum main_arg)
{
	MemoryContext context;

	WorkerAttach(main_arg);
	context = AllocSetContextCreate(TopMemoryContext, "hybridiot manager",
									ALLOCSET_DEFAULT_SIZES);
	for (;;)
	{
		long		nap;

		WorkerCheck();
		(void) WorkerReloadRequested();
		if (!hybridiot_enabled)
		{
			stop_all();
			leave_alone(ABSENT_NAP_MS);
			proc_exit(0);
		}

		MemoryContextSwitchTo(context);
		MemoryContextReset(context);
		if (!manage(context, &nap))
		{
			stop_all();
			LWLockAcquire(Shared->lock, LW_EXCLUSIVE);
			SlotFreeDatabase(MyDatabaseId);
			LWLockRelease(Shared->lock);
			leave_alone(ABSENT_NAP_MS);
			proc_exit(0);
		}

		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 nap, WaitEventExtensionNew("HybridiotManager"));
		ResetLatch(MyLatch);
	}
}
