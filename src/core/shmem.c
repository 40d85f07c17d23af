/*
 * shmem.c
 *		Shared memory: worker slots with their counters, databases held free.
 *
 * A slot belongs to one worker (or to a session in run_pipeline()) while its
 * pid is set, and keeps the counters of that pipeline afterwards. A SIGKILL
 * of anything that is attached makes the postmaster start over with fresh
 * shared memory, so nothing here has to survive a crash.
 */
#include "postgres.h"

#include <signal.h>

#include "access/xact.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "storage/shmem.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "core/callslot.h"
#include "core/compat.h"
#include "core/shmem.h"

SharedState *Shared = NULL;

static shmem_request_hook_type next_shmem_request = NULL;
static shmem_startup_hook_type next_shmem_startup = NULL;

/* What this transaction asked for, to be done when it ends. */
static uint32 wake_pending = 0;
static bool holds_pending = false;

/*
 * Managers have slots of their own, so that many databases and many pipelines do not keep each other out; and
 * no more than half of PostgreSQL's processes, so that there are some for workers.
 */
static int
manager_slot_count(void)
{
	return Max(max_worker_processes / 2, 1);
}

/* Slots are more than workers, so that those who pause keep their counters, and those who wait their place. */
static int
slot_count(void)
{
	return manager_slot_count() + hybridiot_max_workers * 4;
}

static Size
shared_size(void)
{
	return add_size(offsetof(SharedState, slots),
					mul_size(slot_count(), sizeof(WorkerSlot)));
}

static void
shmem_request(void)
{
	if (next_shmem_request)
		next_shmem_request();
	RequestAddinShmemSpace(shared_size());
	RequestAddinShmemSpace(CallShmemSize());
	RequestNamedLWLockTranche("hybridiot", 1);
}

static void
shmem_startup(void)
{
	bool		found;

	if (next_shmem_startup)
		next_shmem_startup();

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	Shared = ShmemInitStruct("hybridiot workers", shared_size(), &found);
	if (!found)
	{
		memset(Shared, 0, shared_size());
		Shared->lock = &(GetNamedLWLockTranche("hybridiot"))->lock;
		Shared->nmanagers = manager_slot_count();
		Shared->nslots = slot_count();
		pg_atomic_init_u32(&Shared->launcher_wake, 0);
		(void) InstanceLoad(Shared->instance);
		ConditionVariableInit(&Shared->changed);
		for (int i = 0; i < Shared->nslots; i++)
		{
			WorkerSlot *slot = &Shared->slots[i];

			SpinLockInit(&slot->mutex);
			pg_atomic_init_u32(&slot->reload, 0);
			pg_atomic_init_u32(&slot->wake, 0);
			pg_atomic_init_u64(&slot->records, 0);
			pg_atomic_init_u64(&slot->rows, 0);
			pg_atomic_init_u64(&slot->dead_letters, 0);
			pg_atomic_init_u64(&slot->late, 0);
			pg_atomic_init_u64(&slot->batches, 0);
			pg_atomic_init_u64(&slot->retries, 0);
			pg_atomic_init_u64(&slot->last_commit_at, 0);
		}
	}
	CallShmemInit(found);
	LWLockRelease(AddinShmemInitLock);
}

void
ShmemInstall(void)
{
	next_shmem_request = shmem_request_hook;
	shmem_request_hook = shmem_request;
	next_shmem_startup = shmem_startup_hook;
	shmem_startup_hook = shmem_startup;
}

void
ShmemRequire(const char *what)
{
	if (Shared == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("%s needs hybridiot to be preloaded", what),
				 errhint("Add hybridiot to shared_preload_libraries and restart the server.")));
}

WorkerSlot *
SlotFind(WorkerKind kind, Oid database, int32 object, int32 member)
{
	if (Shared == NULL)
		return NULL;
	for (int i = 0; i < Shared->nslots; i++)
	{
		WorkerSlot *slot = &Shared->slots[i];

		if (slot->kind == kind && slot->database == database && slot->object == object &&
			slot->member == member)
			return slot;
	}
	return NULL;
}

bool
SlotOfPipeline(const WorkerSlot *slot, Oid database, int32 pipeline)
{
	return slot->kind == WORKER_PIPELINE && slot->database == database && slot->object == pipeline;
}

static void
slot_reset(WorkerSlot *slot)
{
	SpinLockAcquire(&slot->mutex);
	slot->latch = NULL;
	slot->pid = 0;
	slot->session = false;
	slot->state = WORKER_STOPPED;
	slot->started_at = 0;
	slot->asked_ms = 0;
	slot->not_before_ms = 0;
	slot->waiting_ms = 0;
	slot->commit_seen = 0;
	slot->backoff_ms = 0;
	slot->restarts = 0;
	slot->stop = false;
	slot->reason[0] = '\0';
	slot->last_error[0] = '\0';
	slot->last_error_at = 0;
	slot->stats_reset = GetCurrentTimestamp();
	SpinLockRelease(&slot->mutex);
	pg_atomic_write_u32(&slot->reload, 0);
	pg_atomic_write_u32(&slot->wake, 0);
	pg_atomic_write_u64(&slot->records, 0);
	pg_atomic_write_u64(&slot->rows, 0);
	pg_atomic_write_u64(&slot->dead_letters, 0);
	pg_atomic_write_u64(&slot->late, 0);
	pg_atomic_write_u64(&slot->batches, 0);
	pg_atomic_write_u64(&slot->retries, 0);
	pg_atomic_write_u64(&slot->last_commit_at, 0);
}

WorkerSlot *
SlotTake(WorkerKind kind, Oid database, int32 object, int32 member, const char *name)
{
	WorkerSlot *slot = SlotFind(kind, database, object, member);
	int			first = kind == WORKER_MANAGER ? 0 : Shared->nmanagers;
	int			last = kind == WORKER_MANAGER ? Shared->nmanagers : Shared->nslots;

	Assert(LWLockHeldByMeInMode(Shared->lock, LW_EXCLUSIVE));

	for (int i = first; slot == NULL && i < last; i++)
		if (Shared->slots[i].kind == WORKER_NONE)
			slot = &Shared->slots[i];

	/* None is free: take one that only keeps counters. */
	if (slot == NULL)
		for (int i = first; i < last; i++)
		{
			WorkerSlot *other = &Shared->slots[i];

			if (other->pid == 0 && other->state == WORKER_STOPPED &&
				(slot == NULL || other->not_before_ms < slot->not_before_ms))
				slot = other;
		}
	if (slot == NULL)
		return NULL;

	if (slot->kind != kind || slot->database != database || slot->object != object || slot->member != member)
	{
		slot_reset(slot);
		slot->generation++;
		slot->kind = kind;
		slot->database = database;
		slot->object = object;
		slot->member = member;
	}
	namestrcpy(&slot->name, name);
	return slot;
}

void
SlotFree(WorkerSlot *slot)
{
	Assert(LWLockHeldByMeInMode(Shared->lock, LW_EXCLUSIVE));
	Assert(slot->pid == 0);
	slot_reset(slot);
	slot->generation++;
	slot->kind = WORKER_NONE;
	slot->database = InvalidOid;
	slot->object = 0;
	slot->member = 0;
}

void
SlotFreeDatabase(Oid database)
{
	for (int i = 0; i < Shared->nslots; i++)
	{
		WorkerSlot *slot = &Shared->slots[i];

		if (slot->kind != WORKER_NONE && slot->database == database && slot->pid == 0)
			SlotFree(slot);
	}
}

void
SlotSetState(WorkerSlot *slot, WorkerState state, const char *reason)
{
	SpinLockAcquire(&slot->mutex);
	slot->state = state;
	strlcpy(slot->reason, reason ? reason : "", HYBRIDIOT_REASON_LEN);
	SpinLockRelease(&slot->mutex);
}

bool
SlotIsInQueue(const WorkerSlot *slot)
{
	WorkerSlot *manager;

	if (slot->kind == WORKER_NONE || slot->pid != 0 || slot->state != WORKER_WAITING ||
		slot->waiting_ms == 0 || DatabaseIsHeld(slot->database))
		return false;
	manager = SlotFind(WORKER_MANAGER, slot->database, 0, 0);
	return manager != NULL && manager->pid != 0;
}

void
WakeQueue(void)
{
	WorkerSlot *first = NULL;
	WorkerSlot *manager;

	for (int i = Shared->nmanagers; i < Shared->nslots; i++)
	{
		WorkerSlot *slot = &Shared->slots[i];

		if (SlotIsInQueue(slot) && (first == NULL || slot->waiting_ms < first->waiting_ms))
			first = slot;
	}
	manager = first ? SlotFind(WORKER_MANAGER, first->database, 0, 0) : NULL;
	if (manager)
		SlotWake(manager, &manager->reload);
}

void
SlotForgetBackoff(int32 pipeline)
{
	if (Shared == NULL)
		return;
	LWLockAcquire(Shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < Shared->nslots; i++)
	{
		WorkerSlot *slot = &Shared->slots[i];

		if (!SlotOfPipeline(slot, MyDatabaseId, pipeline))
			continue;
		slot->backoff_ms = 0;
		slot->not_before_ms = 0;
	}
	LWLockRelease(Shared->lock);
}

void
SlotSetError(WorkerSlot *slot, const char *message)
{
	TimestampTz now = GetCurrentTimestamp();

	SpinLockAcquire(&slot->mutex);
	strlcpy(slot->last_error, message, HYBRIDIOT_REASON_LEN);
	slot->last_error_at = now;
	SpinLockRelease(&slot->mutex);
}

void
SlotWake(WorkerSlot *slot, pg_atomic_uint32 *flag)
{
	Latch	   *latch;

	if (flag)
		pg_atomic_write_u32(flag, 1);
	pg_memory_barrier();
	SpinLockAcquire(&slot->mutex);
	latch = slot->pid != 0 ? slot->latch : NULL;
	SpinLockRelease(&slot->mutex);

	/* Latches of processes live as long as shared memory: a stale one only wakes a stranger. */
	if (latch)
		SetLatch(latch);
}

void
WakeLauncher(void)
{
	/* Read once: it may be leaving. */
	Latch	   *latch = *(Latch *volatile *) &Shared->launcher_latch;

	if (latch)
		SetLatch(latch);
}

void
WakeNow(Oid database, uint32 what)
{
	if (Shared == NULL)
		return;
	if (what & WAKE_LAUNCHER)
	{
		pg_atomic_write_u32(&Shared->launcher_wake, 1);
		pg_memory_barrier();
		WakeLauncher();
	}
	if ((what & (WAKE_RELOAD | WAKE_COMMAND)) == 0)
		return;
	for (int i = 0; i < Shared->nslots; i++)
	{
		WorkerSlot *slot = &Shared->slots[i];

		if (slot->database != database || slot->kind == WORKER_NONE)
			continue;
		if (what & WAKE_RELOAD)
			SlotWake(slot, &slot->reload);
		if ((what & WAKE_COMMAND) && slot->kind == WORKER_AMQP)
			SlotWake(slot, &slot->wake);
	}
}

/* Holds end and wake-ups go out when the transaction ends. */
static void
at_transaction_end(XactEvent event, void *arg)
{
	if (event != XACT_EVENT_COMMIT && event != XACT_EVENT_ABORT &&
		event != XACT_EVENT_PREPARE)
		return;

	if (holds_pending)
	{
		LWLockAcquire(Shared->lock, LW_EXCLUSIVE);
		for (int i = 0; i < MAX_DATABASE_HOLDS; i++)
			if (Shared->holds[i].pid == MyProcPid)
				Shared->holds[i].database = InvalidOid;
		LWLockRelease(Shared->lock);
		holds_pending = false;
		WakeNow(InvalidOid, WAKE_LAUNCHER);
	}
	if (wake_pending != 0 && event != XACT_EVENT_ABORT)
		WakeNow(MyDatabaseId, wake_pending);
	wake_pending = 0;
}

static void
register_transaction_end(void)
{
	static bool registered = false;

	if (!registered)
	{
		RegisterXactCallback(at_transaction_end, NULL);
		registered = true;
	}
}

void
WakeAtCommit(uint32 what)
{
	if (Shared == NULL)
		return;
	register_transaction_end();
	wake_pending |= what;
}

bool
DatabaseIsHeld(Oid database)
{
	for (int i = 0; i < MAX_DATABASE_HOLDS; i++)
		if (Shared->holds[i].database == database)
			return true;
	return false;
}

/* Tell every worker of a database to end; returns how many are still there. */
static int
terminate_workers(Oid database)
{
	int			alive = 0;

	for (int i = 0; i < Shared->nslots; i++)
	{
		WorkerSlot *slot = &Shared->slots[i];

		if (slot->kind == WORKER_NONE || slot->database != database ||
			slot->pid == 0 || slot->session)
			continue;
		alive++;
		kill(slot->pid, SIGTERM);
	}
	return alive;
}

void
DatabaseHoldUntilEnd(Oid database)
{
	int			place = -1;

	if (Shared == NULL)
		return;
	register_transaction_end();

	LWLockAcquire(Shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < MAX_DATABASE_HOLDS; i++)
	{
		DatabaseHold *hold = &Shared->holds[i];

		/* One whose backend is gone counts for nothing. */
		if (OidIsValid(hold->database) && BackendPidGetProc(hold->pid) == NULL)
			hold->database = InvalidOid;
		if (hold->database == database && hold->pid == MyProcPid)
		{
			LWLockRelease(Shared->lock);
			return;
		}
		if (!OidIsValid(hold->database))
			place = i;
	}
	if (place < 0)
	{
		LWLockRelease(Shared->lock);
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("too many databases are being dropped or copied at once"),
				 errhint("Try again in a moment.")));
	}
	Shared->holds[place].database = database;
	Shared->holds[place].pid = MyProcPid;
	holds_pending = true;
	LWLockRelease(Shared->lock);

	/* Nobody new can attach; wait for those who are there. */
	ConditionVariablePrepareToSleep(&Shared->changed);
	for (;;)
	{
		int			alive;

		LWLockAcquire(Shared->lock, LW_SHARED);
		alive = terminate_workers(database);
		LWLockRelease(Shared->lock);
		if (alive == 0)
			break;
		ConditionVariableTimedSleep(&Shared->changed, 1000,
									WaitEventExtensionNew("HybridiotWorkersEnd"));
	}
	ConditionVariableCancelSleep();
}
