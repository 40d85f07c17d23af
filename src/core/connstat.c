/*
 * connstat.c
 *		What AMQP workers tell about their connections, for hybridiot.stat_connection.
 *
 * A fixed array under one lightweight lock. A worker publishes a few times a second at
 * most, so nothing here is on a hot path.
 */
#include "postgres.h"

#include "catalog/pg_foreign_server.h"
#include "fmgr.h"
#include "foreign/foreign.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "core/compat.h"
#include "core/connstat.h"
#include "core/shmem.h"

#define MAX_CONNECTIONS_SHOWN 256

typedef struct ConnStatShared
{
	LWLock		lock;
	ConnectionStat stats[MAX_CONNECTIONS_SHOWN];
} ConnStatShared;

static ConnStatShared *shared = NULL;

Size
ConnStatShmemSize(void)
{
	return sizeof(ConnStatShared);
}

/* The caller holds AddinShmemInitLock. */
void
ConnStatShmemInit(bool found)
{
	shared = ShmemInitStruct("hybridiot connections", sizeof(ConnStatShared), &found);
	if (!found)
	{
		memset(shared, 0, sizeof(ConnStatShared));
		LWLockInitialize(&shared->lock, LWLockNewTrancheId());
	}
	LWLockRegisterTranche(shared->lock.tranche, "hybridiot connections");
}

void
ConnStatPublish(const ConnectionStat *stat)
{
	ConnectionStat *place = NULL;

	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < MAX_CONNECTIONS_SHOWN; i++)
	{
		ConnectionStat *s = &shared->stats[i];

		if (s->database == MyDatabaseId && s->server == stat->server)
		{
			place = s;
			break;
		}
		if (!OidIsValid(s->database) && place == NULL)
			place = s;
	}
	if (place)
	{
		*place = *stat;
		place->database = MyDatabaseId;
	}
	LWLockRelease(&shared->lock);
}

void
ConnStatForget(Oid server)
{
	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < MAX_CONNECTIONS_SHOWN; i++)
	{
		ConnectionStat *s = &shared->stats[i];

		if (s->database == MyDatabaseId && (!OidIsValid(server) || s->server == server))
			s->database = InvalidOid;
	}
	LWLockRelease(&shared->lock);
}

static const char *
state_name(ConnectionState state)
{
	switch (state)
	{
		case CONNECTION_CONNECTING:
			return "connecting";
		case CONNECTION_UP:
			return "up";
		case CONNECTION_RETRYING:
			return "retrying";
	}
	pg_unreachable();
}

PG_FUNCTION_INFO_V1(hybridiot_connection_stat);

/* Connections of this database, through servers that the caller may use. */
Datum
hybridiot_connection_stat(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	ConnectionStat *copy;

	InitMaterializedSRF(fcinfo, 0);
	if (shared == NULL)
		return (Datum) 0;

	copy = palloc(sizeof(shared->stats));
	LWLockAcquire(&shared->lock, LW_SHARED);
	memcpy(copy, shared->stats, sizeof(shared->stats));
	LWLockRelease(&shared->lock);

	for (int i = 0; i < MAX_CONNECTIONS_SHOWN; i++)
	{
		ConnectionStat *s = &copy[i];
		ForeignServer *server;
		Datum		values[11];
		bool		nulls[11] = {0};

		if (s->database != MyDatabaseId ||
			(server = GetForeignServerExtended(s->server, FSV_MISSING_OK)) == NULL ||
			object_aclcheck(ForeignServerRelationId, s->server, GetUserId(), ACL_USAGE) != ACLCHECK_OK)
			continue;
		values[0] = DirectFunctionCall1(namein, CStringGetDatum(server->servername));
		values[1] = CStringGetTextDatum("amqp");
		values[2] = CStringGetTextDatum(state_name(s->state));
		values[3] = TimestampTzGetDatum(s->since);
		values[4] = Int32GetDatum(s->sessions);
		values[5] = Int32GetDatum(s->links);
		values[6] = Int64GetDatum(s->bytes_in);
		values[7] = Int64GetDatum(s->bytes_out);
		values[8] = Int32GetDatum(s->credit);
		values[9] = Int32GetDatum(s->in_flight);
		values[10] = CStringGetTextDatum(s->last_error);
		nulls[10] = s->last_error[0] == '\0';
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}
