/*
 * stat.c
 *		The functions behind the views that show what workers do.
 *
 * Counters live in worker slots: they are read here without a lock on the
 * hot path, and begin anew with the server. A role sees its own pipelines
 * and those of roles it is a member of.
 */
#include "postgres.h"

#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "core/catalog.h"
#include "core/compat.h"
#include "core/shmem.h"

static const char *
worker_kind_name(WorkerKind kind)
{
	switch (kind)
	{
		case WORKER_NONE:
			return "none";
		case WORKER_MANAGER:
			return "manager";
		case WORKER_PIPELINE:
			return "pipeline";
		case WORKER_AMQP:
			return "amqp";
	}
	pg_unreachable();
}

static const char *
worker_state_name(WorkerState state)
{
	switch (state)
	{
		case WORKER_STOPPED:
			return "stopped";
		case WORKER_STARTING:
			return "starting";
		case WORKER_RUNNING:
			return "running";
		case WORKER_RETRYING:
			return "retrying";
		case WORKER_WAITING:
			return "waiting";
	}
	pg_unreachable();
}

static void
set_text(Datum *values, bool *nulls, int place, const char *text)
{
	nulls[place] = text == NULL || text[0] == '\0';
	if (!nulls[place])
		values[place] = CStringGetTextDatum(text);
}

static void
set_time(Datum *values, bool *nulls, int place, TimestampTz when)
{
	nulls[place] = when == 0;
	values[place] = TimestampTzGetDatum(when);
}

/* The strings and times of a slot, copied under its mutex. */
typedef struct SlotCopy
{
	pid_t		pid;
	bool		session;
	WorkerState state;
	TimestampTz started_at;
	TimestampTz last_error_at;
	TimestampTz stats_reset;
	int			restarts;
	char		reason[HYBRIDIOT_REASON_LEN];
	char		last_error[HYBRIDIOT_REASON_LEN];
} SlotCopy;

static void
copy_slot(WorkerSlot *slot, SlotCopy *copy)
{
	SpinLockAcquire(&slot->mutex);
	copy->pid = slot->pid;
	copy->session = slot->session;
	copy->state = slot->state;
	copy->started_at = slot->started_at;
	copy->last_error_at = slot->last_error_at;
	copy->stats_reset = slot->stats_reset;
	copy->restarts = slot->restarts;
	strlcpy(copy->reason, slot->reason, HYBRIDIOT_REASON_LEN);
	strlcpy(copy->last_error, slot->last_error, HYBRIDIOT_REASON_LEN);
	SpinLockRelease(&slot->mutex);
}

/* Why a pipeline may have no slot at all; NULL: nobody has looked yet. Caller holds the lock. */
static const char *
no_slot(void)
{
	WorkerSlot *manager = SlotFind(WORKER_MANAGER, MyDatabaseId, 0);

	if (manager == NULL)
		return Shared->managers_wait ?
			"no process is free for the manager of this database; raise max_worker_processes and restart the server" : NULL;
	for (int i = Shared->nmanagers; i < Shared->nslots; i++)
		if (Shared->slots[i].pid == 0 && Shared->slots[i].state != WORKER_WAITING)
			return NULL;
	return "all worker slots are taken by others; raise hybridiot.max_workers and restart the server";
}

PG_FUNCTION_INFO_V1(hybridiot_pipeline_slots);

/*
 * pipeline_slots() returns a row per pipeline slot of this database: what the
 * worker does and what it counted; and one for each pipeline that is without because slots ran
 * out. Callers see only what CatalogVisiblePipelines() lists.
 */
Datum
hybridiot_pipeline_slots(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	int32	   *ids;
	int			n;

	InitMaterializedSRF(fcinfo, 0);
	if (Shared == NULL)
		return (Datum) 0;

	ids = CatalogVisiblePipelines(GetUserId(), CurrentMemoryContext, &n);
	for (int i = 0; i < n; i++)
	{
		WorkerSlot *slot;
		SlotCopy	copy;
		const char *missing = NULL;
		Datum		values[16];
		bool		nulls[16] = {0};
		int			c = 0;

		LWLockAcquire(Shared->lock, LW_SHARED);
		slot = SlotFind(WORKER_PIPELINE, MyDatabaseId, ids[i]);
		if (slot)
			copy_slot(slot, &copy);
		else
			missing = no_slot();
		LWLockRelease(Shared->lock);
		if (missing)
		{
			memset(nulls, true, sizeof(nulls));
			values[0] = Int32GetDatum(ids[i]);
			nulls[0] = false;
			set_text(values, nulls, 2, worker_state_name(WORKER_WAITING));
			set_text(values, nulls, 3, missing);
			tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
		}
		if (slot == NULL)
			continue;

		values[c++] = Int32GetDatum(ids[i]);
		values[c] = Int32GetDatum(copy.pid);
		nulls[c++] = copy.pid == 0 || copy.session;
		set_text(values, nulls, c++, worker_state_name(copy.state));
		set_text(values, nulls, c++, copy.reason);
		set_time(values, nulls, c++, copy.started_at);
		values[c++] = Int32GetDatum(copy.restarts);
		values[c++] = Int64GetDatum(pg_atomic_read_u64(&slot->records));
		values[c++] = Int64GetDatum(pg_atomic_read_u64(&slot->rows));
		values[c++] = Int64GetDatum(pg_atomic_read_u64(&slot->dead_letters));
		values[c++] = Int64GetDatum(pg_atomic_read_u64(&slot->late));
		values[c++] = Int64GetDatum(pg_atomic_read_u64(&slot->batches));
		values[c++] = Int64GetDatum(pg_atomic_read_u64(&slot->retries));
		set_time(values, nulls, c++, (TimestampTz) pg_atomic_read_u64(&slot->last_commit_at));
		set_text(values, nulls, c++, copy.last_error);
		set_time(values, nulls, c++, copy.last_error_at);
		set_time(values, nulls, c++, copy.stats_reset);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

PG_FUNCTION_INFO_V1(hybridiot_worker_slots);

/* worker_slots() returns the manager and the AMQP worker of this database, if they run. */
Datum
hybridiot_worker_slots(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;

	InitMaterializedSRF(fcinfo, 0);
	if (Shared == NULL)
		return (Datum) 0;

	for (int i = 0; i < Shared->nslots; i++)
	{
		WorkerSlot *slot = &Shared->slots[i];
		WorkerKind	kind = slot->kind;
		SlotCopy	copy;
		Datum		values[5];
		bool		nulls[5] = {0};

		if (slot->database != MyDatabaseId || (kind != WORKER_MANAGER && kind != WORKER_AMQP))
			continue;
		copy_slot(slot, &copy);
		values[0] = Int32GetDatum(copy.pid);
		nulls[0] = copy.pid == 0;
		set_text(values, nulls, 1, worker_kind_name(kind));
		set_text(values, nulls, 2, worker_state_name(copy.state));
		set_time(values, nulls, 3, copy.started_at);
		values[4] = Int32GetDatum(copy.restarts);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

PG_FUNCTION_INFO_V1(hybridiot_preloaded);

/* preloaded() tells whether workers can run at all. */
Datum
hybridiot_preloaded(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(Shared != NULL);
}
