/*
 * launcher.c
 *		One launcher per cluster: a manager for every database that has the
 *		extension.
 *
 * The launcher connects to no database. It looks at pg_database and starts a
 * manager in each one that takes connections and is no template; a manager that finds
 * no extension leaves, and is not started again until something changes: the
 * launcher is woken at the commit of CREATE EXTENSION, CREATE DATABASE and the like (hooks.c).
 */
#include "postgres.h"

#include <signal.h>

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "miscadmin.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/proc.h"
#include "tcop/tcopprot.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "core/compat.h"
#include "core/launcher.h"
#include "core/worker.h"

/* How long a database without the extension is left alone if nothing wakes us. */
#define LAUNCHER_NAP_MS 10000

/* How soon a manager that failed is started again. */
#define LAUNCHER_RETRY_MS 2000

void
LauncherRegister(void)
{
	BackgroundWorker worker = {0};

	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = 1;
	strlcpy(worker.bgw_library_name, HYBRIDIOT_LIBRARY, BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, "LauncherMain", BGW_MAXLEN);
	strlcpy(worker.bgw_name, "hybridiot launcher", BGW_MAXLEN);
	strlcpy(worker.bgw_type, "hybridiot launcher", BGW_MAXLEN);
	RegisterBackgroundWorker(&worker);
}

static int
running_workers(void)
{
	int			n = 0;

	for (int i = 0; i < Shared->nslots; i++)
		if (Shared->slots[i].kind != WORKER_NONE && !Shared->slots[i].session &&
			Shared->slots[i].kind != WORKER_MANAGER &&
			(Shared->slots[i].pid != 0 || Shared->slots[i].state == WORKER_STARTING))
			n++;
	return n;
}

bool
WorkerLaunch(WorkerSlot *slot, const char *function, const char *type)
{
	BackgroundWorker worker = {0};
	const char *full = NULL;
	const char *setting = NULL;

	Assert(slot->pid == 0);

	slot->generation++;
	slot->stop = false;
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	strlcpy(worker.bgw_library_name, HYBRIDIOT_LIBRARY, BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, function, BGW_MAXLEN);
	strlcpy(worker.bgw_type, type, BGW_MAXLEN);
	if (NameStr(slot->name)[0])
		snprintf(worker.bgw_name, BGW_MAXLEN, "%s %s", type, NameStr(slot->name));
	else
		strlcpy(worker.bgw_name, type, BGW_MAXLEN);
	worker.bgw_main_arg = Int32GetDatum((int32) (slot - Shared->slots));
	memcpy(worker.bgw_extra, &slot->generation, sizeof(slot->generation));

	if (slot->kind != WORKER_MANAGER && running_workers() >= hybridiot_max_workers)
	{
		full = "no worker slot of ours is free";
		setting = "hybridiot.max_workers";
	}
	else if (!RegisterDynamicBackgroundWorker(&worker, NULL))
	{
		full = "no background worker slot is free";
		setting = "max_worker_processes";
	}

	if (full)
	{
		char		reason[HYBRIDIOT_REASON_LEN];

		snprintf(reason, sizeof(reason), "%s; raise %s and restart the server", full, setting);
		SlotSetState(slot, WORKER_WAITING, reason);
		return false;
	}
	SpinLockAcquire(&slot->mutex);
	slot->state = WORKER_STARTING;
	slot->started_at = GetCurrentTimestamp();
	SpinLockRelease(&slot->mutex);
	return true;
}

/* Databases that may have the extension, in the current memory context. */
static List *
list_databases(void)
{
	List	   *result = NIL;
	MemoryContext context = CurrentMemoryContext;
	Relation	rel;
	TableScanDesc scan;
	HeapTuple	tuple;

	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	rel = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(rel, 0, NULL);
	while (HeapTupleIsValid(tuple = heap_getnext(scan, ForwardScanDirection)))
	{
		Form_pg_database database = (Form_pg_database) GETSTRUCT(tuple);
		MemoryContext old;

		/* A DROP that broke off leaves a database that takes no connections. */
		if (!database->datallowconn || database->datistemplate || database_is_invalid_form(database))
			continue;
		old = MemoryContextSwitchTo(context);
		result = lappend_oid(result, database->oid);
		MemoryContextSwitchTo(old);
	}
	table_endscan(scan);
	table_close(rel, AccessShareLock);
	CommitTransactionCommand();
	MemoryContextSwitchTo(context);
	return result;
}

/*
 * Start managers where there is none. all: also where the last look found no
 * extension. Returns milliseconds until the next one is due.
 */
static long
start_managers(List *databases, bool all)
{
	long		nap = LAUNCHER_NAP_MS;
	TimestampTz now = GetCurrentTimestamp();
	ListCell   *lc;

	LWLockAcquire(Shared->lock, LW_EXCLUSIVE);

	/* Databases that are gone take their slots with them. */
	for (int i = 0; i < Shared->nslots; i++)
	{
		WorkerSlot *slot = &Shared->slots[i];

		if (slot->kind != WORKER_NONE && slot->pid == 0 &&
			!list_member_oid(databases, slot->database))
			SlotFree(slot);
	}

	foreach(lc, databases)
	{
		Oid			database = lfirst_oid(lc);
		WorkerSlot *slot;

		if (DatabaseIsHeld(database))
			continue;
		slot = SlotTake(WORKER_MANAGER, database, 0, "");
		if (slot == NULL)
			break;
		if (slot->pid != 0)
		{
			/* It may have looked just before what woke us, and be on its way out. */
			if (all)
				SlotWake(slot, &slot->reload);
			continue;
		}
		/* A start that never arrived: its fork failed or it was refused. */
		if (slot->state == WORKER_STARTING &&
			!TimestampDifferenceExceeds(slot->started_at, now, LAUNCHER_NAP_MS))
			continue;
		if (!all && slot->not_before > now)
		{
			nap = Min(nap, TimestampDifferenceMilliseconds(now, slot->not_before) + 1);
			continue;
		}
		/* If it ends by an error, not at once again; one that leaves in peace says for how long. */
		slot->not_before = TimestampTzPlusMilliseconds(now, LAUNCHER_RETRY_MS);
		WorkerLaunch(slot, "ManagerMain", "hybridiot manager");
	}
	LWLockRelease(Shared->lock);
	return nap;
}

static void
launcher_exit(int code, Datum arg)
{
	Shared->launcher_latch = NULL;
	Shared->launcher_pid = 0;
}

void
LauncherMain(Datum main_arg)
{
	MemoryContext context;
	bool		all = true;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);

	Shared->launcher_pid = MyProcPid;
	Shared->launcher_latch = MyLatch;
	before_shmem_exit(launcher_exit, 0);

	context = AllocSetContextCreate(TopMemoryContext, "hybridiot launcher",
									ALLOCSET_DEFAULT_SIZES);
	for (;;)
	{
		long		nap;

		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
			all = true;
		}
		if (pg_atomic_exchange_u32(&Shared->launcher_wake, 0))
			all = true;

		MemoryContextSwitchTo(context);
		MemoryContextReset(context);
		/* What is a copy cannot be told before. */
		if (Shared->instance[0] == '\0' && !InstanceLoad(Shared->instance))
			nap = LAUNCHER_RETRY_MS;
		else
		{
			nap = start_managers(list_databases(), all);
			all = false;
		}

		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 nap, WaitEventExtensionNew("HybridiotLauncher"));
		ResetLatch(MyLatch);
	}
}
