/*
 * worker.h
 *		What every worker does: start, signals, transactions, back-off, becoming another role.
 */
#ifndef HYBRIDIOT_WORKER_H
#define HYBRIDIOT_WORKER_H

#include "core/hybridiot.h"
#include "core/shmem.h"

/* The slot this process sits in; NULL in sessions (but see run_pipeline). */
extern WorkerSlot *MyWorkerSlot;

/*
 * First call of a worker's main function: takes its slot (main_arg), sets signal handlers,
 * connects to the slot's database as the bootstrap superuser. Leaves the
 * process (exit 0) when the slot was given to somebody else meanwhile.
 */
extern void WorkerAttach(Datum main_arg);

/* CHECK_FOR_INTERRUPTS, and re-reads the configuration when told; call between transactions. */
extern void WorkerCheck(void);
/* True once after the slot's reload flag was set. */
extern bool WorkerReloadRequested(void);
extern void WorkerSetState(WorkerState state, const char *reason);

/* StartTransactionCommand with an active snapshot and a statement time; and its end. */
extern void WorkerBegin(const char *activity);
extern void WorkerCommit(void);
/* After an error was caught: abort, report idle, free what the transaction held. */
extern void WorkerAbort(void);

/*
 * Act as a role: SECURITY_RESTRICTED_OPERATION, search_path pg_catalog, pg_temp,
 * every setting changed meanwhile undone at the end.
 */
typedef struct RoleScope
{
	Oid			userid;
	int			sec_context;
	int			nestlevel;
} RoleScope;

extern void RoleEnter(RoleScope *scope, Oid role);
extern void RoleLeave(RoleScope *scope);

/*
 * statement_timeout for what a worker runs: PostgreSQL's main loop, which watches it elsewhere, is not there. Nothing
 * in sessions. End it in the error path, too.
 */
extern void StatementTimerBegin(void);
extern void StatementTimerEnd(void);

/* What an SQLSTATE means for a pipeline (ingest.md §4). */
typedef enum ErrorClass
{
	ERROR_TRY_AGAIN,
	ERROR_SPLIT,				/* 21000: two records hit one row */
	ERROR_BAD_RECORD,
	ERROR_STOP
} ErrorClass;

extern ErrorClass ErrorClassify(int sqlerrcode);

/* Next wait of an exponential back-off with jitter. *state starts at 0. */
extern int	BackoffNext(int *state_ms, int first_ms, int max_ms);

/* True in one of our workers while it runs statements of a pipeline, where synchronous calls are refused. */
extern bool InPipeline;

#endif							/* HYBRIDIOT_WORKER_H */
