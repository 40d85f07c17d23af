/*
 * launcher.h
 *		Starting, stopping and restarting workers.
 */
#ifndef HYBRIDIOT_LAUNCHER_H
#define HYBRIDIOT_LAUNCHER_H

#include "postmaster/bgworker.h"

#include "core/shmem.h"

/* From _PG_init: the one static worker. */
extern void LauncherRegister(void);

extern PGDLLEXPORT void LauncherMain(Datum main_arg);
extern PGDLLEXPORT void ManagerMain(Datum main_arg);

/*
 * Start the worker of a slot, which is taken and has no process. Returns false when
 * PostgreSQL has no place for it; the slot says so. Caller holds Shared->lock exclusively.
 */
extern bool WorkerLaunch(WorkerSlot *slot, const char *function, const char *type);

#endif							/* HYBRIDIOT_LAUNCHER_H */
