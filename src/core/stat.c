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
	bool		stop;
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
	copy->stop = slot->stop;
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
	WorkerSlot *manager = SlotFind(WORKER_MANAGER, MyDatabaseId, 0, 0);

	if (manager == NULL)
		return Shared->managers_wait ?
			"no process is free for the manager of this database; raise max_worker_processes and restart the server" : NULL;
	for (int i = Shared->nmanagers; i < Shared->nslots; i++)
		if (Shared->slots[i].pid == 0 && Shared->slots[i].state != WORKER_WAITING)
			return NULL;
	return "all worker slots are taken by others; raise hybridiot.max_workers and restart the server";
}

/* What all workers of a pipeline do and counted. */
typedef struct PipelineStat
{
	int			nslots;
	SlotCopy	shown;			/* of the one that is worst off */
	uint64		records;
	uint64		rows;
	uint64		dead_letters;
	uint64		late;
	uint64		batches;
	uint64		retries;
	uint64		last_commit_at;
} PipelineStat;

/* Of several workers the view shows the one that is worst off. */
static int
severity(const SlotCopy *copy)
{
	switch (copy->state)
	{
		case WORKER_WAITING:
			return 5;
		case WORKER_RETRYING:
			return 4;
		case WORKER_STOPPED:
			/* One that is not to run any more says nothing. */
			return copy->stop ? 0 : copy->last_error[0] ? 3 : 2;
		case WORKER_STARTING:
			return 2;
		case WORKER_RUNNING:
			return 1;
	}
	pg_unreachable();
}

static void
add_slot(PipelineStat *stat, WorkerSlot *slot)
{
	SlotCopy	copy;
	SlotCopy   *shown = &stat->shown;

	copy_slot(slot, &copy);
	if (stat->nslots++ == 0)
		*shown = copy;
	else
	{
		SlotCopy	other = *shown;

		if (severity(&copy) > severity(shown))
			*shown = copy;
		else
			other = copy;
		shown->restarts += other.restarts;
		shown->stats_reset = Min(shown->stats_reset, other.stats_reset);
		if (other.last_error_at > shown->last_error_at)
		{
			shown->last_error_at = other.last_error_at;
			strlcpy(shown->last_error, other.last_error, HYBRIDIOT_REASON_LEN);
		}
	}
	stat->records += pg_atomic_read_u64(&slot->records);
	stat->rows += pg_atomic_read_u64(&slot->rows);
	stat->dead_letters += pg_atomic_read_u64(&slot->dead_letters);
	stat->late += pg_atomic_read_u64(&slot->late);
	stat->batches += pg_atomic_read_u64(&slot->batches);
	stat->retries += pg_atomic_read_u64(&slot->retries);
	stat->last_commit_at = Max(stat->last_commit_at, pg_atomic_read_u64(&slot->last_commit_at));
}

PG_FUNCTION_INFO_V1(hybridiot_pipeline_slots);

/*
 * pipeline_slots() returns a row per pipeline of this database that has a slot: what its workers do and what they
 * counted together; and one for each pipeline that is without because slots ran out. Callers see only what
 * CatalogVisiblePipelines() lists.
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
		PipelineStat stat = {0};
		SlotCopy   *shown = &stat.shown;
		const char *missing = NULL;
		Datum		values[16];
		bool		nulls[16] = {0};
		int			c = 0;

		LWLockAcquire(Shared->lock, LW_SHARED);
		for (int k = 0; k < Shared->nslots; k++)
			if (SlotOfPipeline(&Shared->slots[k], MyDatabaseId, ids[i]))
				add_slot(&stat, &Shared->slots[k]);
		if (stat.nslots == 0)
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
		if (stat.nslots == 0)
			continue;

		values[c++] = Int32GetDatum(ids[i]);
		values[c] = Int32GetDatum(shown->pid);
		nulls[c++] = shown->pid == 0 || shown->session;
		set_text(values, nulls, c++, worker_state_name(shown->state));
		set_text(values, nulls, c++, shown->reason);
		set_time(values, nulls, c++, shown->started_at);
		values[c++] = Int32GetDatum(shown->restarts);
		values[c++] = Int64GetDatum(stat.records);
		values[c++] = Int64GetDatum(stat.rows);
		values[c++] = Int64GetDatum(stat.dead_letters);
		values[c++] = Int64GetDatum(stat.late);
		values[c++] = Int64GetDatum(stat.batches);
		values[c++] = Int64GetDatum(stat.retries);
		set_time(values, nulls, c++, (TimestampTz) stat.last_commit_at);
		set_text(values, nulls, c++, shown->last_error);
		set_time(values, nulls, c++, shown->last_error_at);
		set_time(values, nulls, c++, shown->stats_reset);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

static int
compare_ids(const void *a, const void *b)
{
	int32		one = *(const int32 *) a;
	int32		two = *(const int32 *) b;

	return one < two ? -1 : one > two;
}

PG_FUNCTION_INFO_V1(hybridiot_worker_slots);

/*
 * worker_slots() returns the workers of this database that run, with the id of their pipeline, which must be
 * one that CatalogVisiblePipelines() lists.
 */
Datum
hybridiot_worker_slots(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	bool		with_pipeline;
	int32	   *ids;
	int			n;

	InitMaterializedSRF(fcinfo, 0);
	if (Shared == NULL)
		return (Datum) 0;
	ids = CatalogVisiblePipelines(GetUserId(), CurrentMemoryContext, &n);

	/* The function of 0.1.0 has no column for the pipeline, and told of others only. */
	with_pipeline = rsinfo->setDesc->natts > 5;
	for (int i = 0; i < Shared->nslots; i++)
	{
		WorkerSlot *slot = &Shared->slots[i];
		WorkerKind	kind = slot->kind;
		SlotCopy	copy;
		Datum		values[6];
		bool		nulls[6] = {0};

		if (slot->database != MyDatabaseId || kind == WORKER_NONE)
			continue;
		if (kind == WORKER_PIPELINE &&
			(!with_pipeline || !bsearch(&slot->object, ids, n, sizeof(int32), compare_ids)))
			continue;
		copy_slot(slot, &copy);
		if (copy.pid == 0 || copy.session)
			continue;
		values[0] = Int32GetDatum(copy.pid);
		set_text(values, nulls, 1, worker_kind_name(kind));
		set_text(values, nulls, 2, worker_state_name(copy.state));
		set_time(values, nulls, 3, copy.started_at);
		values[4] = Int32GetDatum(copy.restarts);
		values[5] = Int32GetDatum(slot->object);
		nulls[5] = kind != WORKER_PIPELINE;
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
