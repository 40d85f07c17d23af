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

#include "core/clock.h"
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

/*
 * Why a worker cannot have a process now; NULL: it can. Who has waited longer goes first, in whatever database, so that
 * nobody waits for ever behind others that come and go. Of our own places the number is known, so as many go ahead
 * as there are; PostgreSQL only tells when asked, so there the first one asks.
 */
static const char *
no_place_for(const WorkerSlot *slot)
{
	int			free = hybridiot_max_workers - running_workers();
	bool		processes = true;

	if (slot->kind == WORKER_MANAGER)
		return NULL;
	for (int i = Shared->nmanagers; i < Shared->nslots; i++)
	{
		WorkerSlot *other = &Shared->slots[i];

		if (other == slot || !SlotIsInQueue(other) ||
			(slot->waiting_ms != 0 && slot->waiting_ms <= other->waiting_ms))
			continue;
		free--;
		processes &= !other->no_process;
	}
	if (free <= 0)
		return "hybridiot.max_workers";
	return processes ? NULL : "max_worker_processes";
}

bool
WorkerLaunch(WorkerSlot *slot, const char *function, const char *type)
{
	BackgroundWorker worker = {0};
	const char *setting;
	char		reason[HYBRIDIOT_REASON_LEN];

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

	setting = no_place_for(slot);
	if (setting == NULL && !RegisterDynamicBackgroundWorker(&worker, NULL))
		setting = "max_worker_processes";
	if (setting)
	{
		slot->no_process = strcmp(setting, "max_worker_processes") == 0;
		snprintf(reason, sizeof(reason), "%s is free; raise %s and restart the server",
				 slot->no_process ? "no background worker slot" : "no worker slot of ours", setting);
		SlotSetState(slot, WORKER_WAITING, reason);
		if (slot->waiting_ms == 0)
			slot->waiting_ms = ClockMonotonicMs();
		return false;
	}
	SpinLockAcquire(&slot->mutex);
	slot->state = WORKER_STARTING;
	slot->reason[0] = '\0';
	if (slot->started_at != 0)
		slot->restarts++;
	slot->started_at = GetCurrentTimestamp();
	SpinLockRelease(&slot->mutex);
	slot->asked_ms = ClockMonotonicMs();
	slot->commit_seen = pg_atomic_read_u64(&slot->last_commit_at);
	if (slot->waiting_ms != 0)
	{
		/* There may be more. */
		slot->waiting_ms = 0;
		WakeQueue();
	}
	return true;
}

/* ---- databases ---- */

/* What the launcher remembers of a database; its manager's slot lives no longer than the manager. */
typedef struct KnownDatabase
{
	Oid			database;		/* key */
	int64		not_before_ms;	/* monotonic: no manager earlier, unless somebody wakes us */
	bool		seen;
} KnownDatabase;

static HTAB *known = NULL;

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

/* Managers that have left give their slots back, and what they had to say of their database is kept. */
static void
collect_managers(int64 now)
{
	for (int i = 0; i < Shared->nmanagers; i++)
	{
		WorkerSlot *slot = &Shared->slots[i];
		KnownDatabase *entry;

		if (slot->kind == WORKER_NONE || slot->pid != 0)
			continue;
		/* A start that never arrived: its fork failed or it was refused. */
		if (slot->state == WORKER_STARTING && now - slot->asked_ms <= LAUNCHER_NAP_MS)
			continue;
		entry = hash_search(known, &slot->database, HASH_FIND, NULL);
		if (entry)
			entry->not_before_ms = slot->not_before_ms;
		SlotFree(slot);
	}
}

/* Databases that are gone take their slots with them. */
static void
forget_databases(List *databases)
{
	HASH_SEQ_STATUS scan;
	KnownDatabase *entry;
	ListCell   *lc;

	hash_seq_init(&scan, known);
	while ((entry = hash_seq_search(&scan)) != NULL)
		entry->seen = false;
	foreach(lc, databases)
	{
		Oid			database = lfirst_oid(lc);
		bool		found;

		entry = hash_search(known, &database, HASH_ENTER, &found);
		if (!found)
			entry->not_before_ms = 0;
		entry->seen = true;
	}
	hash_seq_init(&scan, known);
	while ((entry = hash_seq_search(&scan)) != NULL)
		if (!entry->seen)
			(void) hash_search(known, &entry->database, HASH_REMOVE, NULL);
	for (int i = 0; i < Shared->nslots; i++)
	{
		WorkerSlot *slot = &Shared->slots[i];

		if (slot->kind != WORKER_NONE && slot->pid == 0 &&
			hash_search(known, &slot->database, HASH_FIND, NULL) == NULL)
			SlotFree(slot);
	}
}

/* Returns false when there is no process for a manager. *nap: milliseconds until it is due. */
static bool
keep_manager(KnownDatabase *entry, bool all, int64 now, long *nap)
{
	WorkerSlot *slot = SlotFind(WORKER_MANAGER, entry->database, 0, 0);

	if (slot)
	{
		/* It may have looked just before what woke us, and be on its way out. */
		if (all && slot->pid != 0)
			SlotWake(slot, &slot->reload);
		return true;
	}
	if (DatabaseIsHeld(entry->database))
		return true;
	if (!all && entry->not_before_ms > now)
	{
		*nap = Min(*nap, (long) (entry->not_before_ms - now) + 1);
		return true;
	}
	slot = SlotTake(WORKER_MANAGER, entry->database, 0, 0, "");
	if (slot == NULL)
		return false;
	if (!WorkerLaunch(slot, "ManagerMain", "hybridiot manager"))
	{
		SlotFree(slot);
		return false;
	}
	/* If it ends by an error, not at once again; one that leaves in peace says for how long. */
	slot->not_before_ms = now + LAUNCHER_RETRY_MS;
	return true;
}

/*
 * Start managers where there is none. all: also where the last look found no
 * extension. Returns milliseconds until the next one is due.
 */
static long
start_managers(List *databases, bool all)
{
	static Oid	refused = InvalidOid;	/* where the last look ended for want of a process */
	long		nap = LAUNCHER_NAP_MS;
	int64		now = ClockMonotonicMs();
	int			n = list_length(databases);
	int			first = 0;
	int			i;

	LWLockAcquire(Shared->lock, LW_EXCLUSIVE);
	collect_managers(now);
	forget_databases(databases);

	/* Turn about: who was refused is the first to be asked. */
	for (i = 0; i < n; i++)
		if (list_nth_oid(databases, i) == refused)
			first = i;
	refused = InvalidOid;
	for (i = 0; i < n; i++)
	{
		Oid			database = list_nth_oid(databases, (first + i) % n);
		KnownDatabase *entry = hash_search(known, &database, HASH_FIND, NULL);

		if (keep_manager(entry, all, now, &nap))
			continue;
		/* Others that run may have to be woken all the same; and this one has to be tried again, whoever woke us. */
		entry->not_before_ms = 0;
		if (!OidIsValid(refused))
			refused = database;
		nap = LAUNCHER_RETRY_MS;
	}
	Shared->managers_wait = OidIsValid(refused);
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
	HASHCTL		control = {0};
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
	control.keysize = sizeof(Oid);
	control.entrysize = sizeof(KnownDatabase);
	known = hash_create("hybridiot databases", 64, &control, HASH_ELEM | HASH_BLOBS);
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
