/*
 * worker.c
 *		What every worker does: start, signals, transactions, back-off, becoming
 *		another role.
 *
 * A worker is identified by its slot and the slot's generation, which it was
 * given when it was asked for. SIGTERM is PostgreSQL's die(): it ends the worker at
 * the next CHECK_FOR_INTERRUPTS, also inside a statement, whose transaction then
 * never happened.
 */
#include "postgres.h"

#include <signal.h>

#include "access/xact.h"
#include "common/pg_prng.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "core/compat.h"
#include "core/worker.h"

WorkerSlot *MyWorkerSlot = NULL;
bool		InPipeline = false;

/* Leave the slot; whoever waits for that, or manages us, hears of it. */
static void
worker_exit(int code, Datum arg)
{
	WorkerSlot *slot = MyWorkerSlot;
	Oid			database = slot->database;
	WorkerSlot *manager;
	bool		again;

	LWLockReleaseAll();
	LWLockAcquire(Shared->lock, LW_EXCLUSIVE);
	again = slot->kind == WORKER_MANAGER && pg_atomic_exchange_u32(&slot->reload, 0) != 0;
	SpinLockAcquire(&slot->mutex);
	slot->pid = 0;
	slot->latch = NULL;
	slot->session = false;
	slot->state = WORKER_STOPPED;
	/* The launcher woke it and it has not looked again: another one has to. */
	if (again)
		slot->not_before_ms = 0;
	SpinLockRelease(&slot->mutex);
	manager = slot->kind == WORKER_MANAGER ? NULL : SlotFind(WORKER_MANAGER, database, 0, 0);
	if (manager)
	{
		SlotWake(manager, &manager->reload);
		WakeQueue();
	}
	LWLockRelease(Shared->lock);
	MyWorkerSlot = NULL;
	if (manager == NULL)
		WakeLauncher();

	ConditionVariableBroadcast(&Shared->changed);
}

void
WorkerAttach(Datum main_arg)
{
	int32		place = DatumGetInt32(main_arg);
	WorkerSlot *slot = &Shared->slots[place];
	uint32		generation;
	Oid			database;
	bool		mine;

	memcpy(&generation, MyBgworkerEntry->bgw_extra, sizeof(generation));

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);

	LWLockAcquire(Shared->lock, LW_EXCLUSIVE);
	database = slot->database;
	mine = slot->kind != WORKER_NONE && slot->pid == 0 &&
		slot->generation == generation && !DatabaseIsHeld(database);
	if (mine)
	{
		SpinLockAcquire(&slot->mutex);
		slot->pid = MyProcPid;
		slot->latch = MyLatch;
		slot->state = WORKER_RUNNING;
		slot->reason[0] = '\0';
		slot->started_at = GetCurrentTimestamp();
		SpinLockRelease(&slot->mutex);
	}
	/* Refused because the database is held: nobody should wait for us to arrive. */
	else if (slot->pid == 0 && slot->generation == generation && slot->state == WORKER_STARTING)
		slot->state = WORKER_STOPPED;
	LWLockRelease(Shared->lock);
	if (!mine)
	{
		WakeNow(database, WAKE_LAUNCHER | WAKE_RELOAD);
		proc_exit(0);
	}

	MyWorkerSlot = slot;
	before_shmem_exit(worker_exit, 0);

	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(database, InvalidOid, 0);
	pgstat_report_appname(MyBgworkerEntry->bgw_name);
}

void
WorkerCheck(void)
{
	CHECK_FOR_INTERRUPTS();
	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
		pg_atomic_write_u32(&MyWorkerSlot->reload, 1);
	}
	if (MyWorkerSlot->stop)
		proc_exit(0);
}

bool
WorkerReloadRequested(void)
{
	return pg_atomic_read_u32(&MyWorkerSlot->reload) != 0 &&
		pg_atomic_exchange_u32(&MyWorkerSlot->reload, 0) != 0;
}

void
WorkerSetState(WorkerState state, const char *reason)
{
	if (MyWorkerSlot)
		SlotSetState(MyWorkerSlot, state, reason);
}

void
WorkerBegin(const char *activity)
{
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	pgstat_report_activity(STATE_RUNNING, activity);
}

void
WorkerCommit(void)
{
	PopActiveSnapshot();
	CommitTransactionCommand();
	pgstat_report_stat(false);
	pgstat_report_activity(STATE_IDLE, NULL);
}

void
WorkerAbort(void)
{
	AbortCurrentTransaction();
	pgstat_report_stat(false);
	pgstat_report_activity(STATE_IDLE, NULL);
}

void
RoleEnter(RoleScope *scope, Oid role)
{
	GetUserIdAndSecContext(&scope->userid, &scope->sec_context);
	SetUserIdAndSecContext(role, scope->sec_context | SECURITY_RESTRICTED_OPERATION);
	scope->nestlevel = NewGUCNestLevel();
	RestrictSearchPath();
}

void
RoleLeave(RoleScope *scope)
{
	AtEOXact_GUC(false, scope->nestlevel);
	SetUserIdAndSecContext(scope->userid, scope->sec_context);
}

void
StatementTimerBegin(void)
{
	if (MyBgworkerEntry != NULL && StatementTimeout > 0)
		enable_timeout_after(STATEMENT_TIMEOUT, StatementTimeout);
}

void
StatementTimerEnd(void)
{
	if (MyBgworkerEntry != NULL)
		disable_timeout(STATEMENT_TIMEOUT, false);
}

/*
 * ingest.md §4. 08 of the list is a broker's or a foreign server's; 57 is
 * cancel and shutdown, whose FATAL forms never come here.
 */
ErrorClass
ErrorClassify(int sqlerrcode)
{
	char		class[3] = {PGUNSIXBIT(sqlerrcode), PGUNSIXBIT(sqlerrcode >> 6), '\0'};
	static const char *const standard[] = {
		"00", "01", "02", "03", "08", "09", "0A", "0B", "0F", "0L", "0P", "0Z",
		"20", "21", "22", "23", "24", "25", "26", "27", "28", "2B", "2D", "2F",
		"34", "38", "39", "3B", "3D", "3F", "40", "42", "44", "53", "54", "55",
		"57", "58", "72", "F0", "HV", "P0", "XX"
	};
	static const char *const again[] = {"40", "53", "57", "58", "08"};
	static const char *const bad[] = {"22", "23", "44", "54", "P0"};

	if (sqlerrcode == ERRCODE_LOCK_NOT_AVAILABLE)
		return ERROR_TRY_AGAIN;
	for (int i = 0; i < lengthof(again); i++)
		if (strcmp(class, again[i]) == 0)
			return ERROR_TRY_AGAIN;
	if (sqlerrcode == ERRCODE_CARDINALITY_VIOLATION)
		return ERROR_SPLIT;
	for (int i = 0; i < lengthof(bad); i++)
		if (strcmp(class, bad[i]) == 0)
			return ERROR_BAD_RECORD;
	for (int i = 0; i < lengthof(standard); i++)
		if (strcmp(class, standard[i]) == 0)
			return ERROR_STOP;

	/* A class of the user's own: RAISE ... USING ERRCODE. */
	return ERROR_BAD_RECORD;
}

int
BackoffNext(int *state_ms, int first_ms, int max_ms)
{
	*state_ms = *state_ms <= 0 ? first_ms : Min(*state_ms * 2, max_ms);
	return *state_ms / 2 + (int) (pg_prng_double(&pg_global_prng_state) * (*state_ms / 2 + 1));
}
