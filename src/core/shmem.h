/*
 * shmem.h
 *		What processes share: worker slots, counters, call slots.
 *
 * Fixed size, no pointers between processes but latches (which live in shared
 * memory). Without shared_preload_libraries there is none of it:
 * ShmemAttached() says so, and what needs a worker raises 55000.
 */
#ifndef HYBRIDIOT_SHMEM_H
#define HYBRIDIOT_SHMEM_H

#include "port/atomics.h"
#include "storage/condition_variable.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/s_lock.h"
#include "storage/spin.h"

#include "core/hybridiot.h"
#include "core/instance.h"

typedef enum WorkerKind
{
	WORKER_NONE,				/* the slot is free */
	WORKER_MANAGER,
	WORKER_PIPELINE,
	WORKER_AMQP
} WorkerKind;

typedef enum WorkerState
{
	WORKER_STOPPED,				/* no process; the slot keeps counters */
	WORKER_STARTING,			/* asked for, not attached yet */
	WORKER_RUNNING,
	WORKER_RETRYING,			/* goes on by itself after a back-off */
	WORKER_WAITING				/* PostgreSQL has no process for it */
} WorkerState;

/*
 * One process of ours, or the place it left. kind, database, object, member and name
 * change under SharedState->lock, held exclusively; strings and times under the slot's
 * mutex; the rest is atomic.
 */
typedef struct WorkerSlot
{
	slock_t		mutex;
	WorkerKind	kind;
	Oid			database;
	int32		object;			/* id of the pipeline; 0 for others */
	int32		member;			/* which of its workers, from 0; 0 for others */
	NameData	name;			/* of the pipeline */
	pid_t		pid;			/* 0: nobody */
	Latch	   *latch;			/* of that process */
	bool		session;		/* held by run_pipeline(), not by a worker */
	uint32		generation;		/* goes up with each start; a late-comer of an older one leaves */
	WorkerState state;
	TimestampTz started_at;
	int64		asked_ms;		/* monotonic, as all times in ms: when it was asked for */
	int64		not_before_ms;	/* back-off: do not start again earlier */
	int64		waiting_ms;		/* since when it waits for a process; 0: it does not */
	bool		no_process;		/* for one of PostgreSQL's, that is, not of ours */
	uint64		commit_seen;	/* last_commit_at when it was started last */
	int			backoff_ms;
	int			restarts;
	bool		stop;			/* leave at the next chance: paused or dropped */
	char		reason[HYBRIDIOT_REASON_LEN];

	pg_atomic_uint32 reload;	/* definitions, options or settings changed: read them again */
	pg_atomic_uint32 wake;		/* there is work (a command was queued) */

	/* statistics; kept while the slot is */
	pg_atomic_uint64 records;
	pg_atomic_uint64 rows;
	pg_atomic_uint64 dead_letters;
	pg_atomic_uint64 late;
	pg_atomic_uint64 batches;
	pg_atomic_uint64 retries;
	pg_atomic_uint64 last_commit_at;	/* TimestampTz; 0: never */
	TimestampTz last_error_at;	/* 0: never */
	TimestampTz stats_reset;
	char		last_error[HYBRIDIOT_REASON_LEN];
} WorkerSlot;

/* A database that must have no worker while somebody drops or copies it. */
#define MAX_DATABASE_HOLDS 8

typedef struct DatabaseHold
{
	Oid			database;		/* InvalidOid: free */
	pid_t		pid;			/* of the backend that holds */
} DatabaseHold;

typedef struct SharedState
{
	LWLock	   *lock;			/* kinds and names of slots, holds */
	pid_t		launcher_pid;
	Latch	   *launcher_latch;
	pg_atomic_uint32 launcher_wake; /* look at the databases again */
	char		instance[INSTANCE_ID_LEN + 1];	/* this server's id; empty: its file cannot be had yet */
	DatabaseHold holds[MAX_DATABASE_HOLDS];
	ConditionVariable changed;	/* a worker came or went */
	bool		managers_wait;	/* there are databases whose manager finds no process */
	int			nmanagers;		/* slots in front that are for managers, and for nobody else */
	int			nslots;
	WorkerSlot	slots[FLEXIBLE_ARRAY_MEMBER];
} SharedState;

/* NULL when the library is not preloaded. */
extern SharedState *Shared;

extern void ShmemInstall(void); /* from _PG_init */

/* ereport 55000 with the HINT that names shared_preload_libraries. */
extern void ShmemRequire(const char *what);

/*
 * Find a slot, under the lock or not (a slot that is found may change
 * unless the lock is held). NULL if there is none.
 */
extern WorkerSlot *SlotFind(WorkerKind kind, Oid database, int32 object, int32 member);
/*
 * Find or take a slot; NULL when all are taken by somebody who runs or waits. One that only keeps counters is given
 * to another, the one that may start first. Caller holds the lock exclusively.
 */
extern WorkerSlot *SlotTake(WorkerKind kind, Oid database, int32 object, int32 member, const char *name);
/* Is this a slot of that pipeline, whichever of its workers has it? */
extern bool SlotOfPipeline(const WorkerSlot *slot, Oid database, int32 pipeline);
/* Free all slots of a database that nobody sits in. Caller holds the lock exclusively. */
extern void SlotFreeDatabase(Oid database);
/* Give a slot back. Caller holds the lock exclusively. */
extern void SlotFree(WorkerSlot *slot);
extern void SlotSetState(WorkerSlot *slot, WorkerState state, const char *reason);
/* Has the slot a place in the queue for processes, with a manager that will use it? Caller holds the lock. */
extern bool SlotIsInQueue(const WorkerSlot *slot);
/* There may be a free process: wake the manager of the worker that has waited longest. Caller holds the lock. */
extern void WakeQueue(void);
/* Let workers of this database's pipeline start again at once: somebody did something about it. */
extern void SlotForgetBackoff(int32 pipeline);
extern void SlotSetError(WorkerSlot *slot, const char *message);
/* Set the latch of whoever is in the slot, after setting the flag. */
extern void SlotWake(WorkerSlot *slot, pg_atomic_uint32 *flag);

/*
 * Keep a database free of workers until the present transaction ends: ends
 * those it has and waits until they are gone. ereport 53400 when too many databases are held.
 */
extern void DatabaseHoldUntilEnd(Oid database);
/* Is the database held by anybody? Caller holds the lock. */
extern bool DatabaseIsHeld(Oid database);

/* Bits for WakeAtCommit(). */
#define WAKE_RELOAD		0x01	/* definitions, servers or mappings changed */
#define WAKE_COMMAND	0x02	/* a command was queued */
#define WAKE_LAUNCHER	0x04	/* a database or the extension came, went or changed */

/* Wake this database's workers when the present transaction commits; nothing happens on rollback. */
extern void WakeAtCommit(uint32 what);
/* The same at once. */
extern void WakeNow(Oid database, uint32 what);
/* Only the launcher's latch, if it is there. */
extern void WakeLauncher(void);

#endif							/* HYBRIDIOT_SHMEM_H */
