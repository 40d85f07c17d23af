/*
 * connstat.h
 *		What AMQP workers tell about their connections, for hybridiot.stat_connection.
 */
#ifndef HYBRIDIOT_CONNSTAT_H
#define HYBRIDIOT_CONNSTAT_H

#include "core/hybridiot.h"

typedef enum ConnectionState
{
	CONNECTION_CONNECTING,
	CONNECTION_UP,
	CONNECTION_RETRYING			/* down; the next try comes by itself */
} ConnectionState;

typedef struct ConnectionStat
{
	Oid			database;		/* InvalidOid: free */
	Oid			server;
	ConnectionState state;
	TimestampTz since;
	int			sessions;
	int			links;
	int64		bytes_in;
	int64		bytes_out;
	int			credit;
	int			in_flight;
	char		last_error[HYBRIDIOT_REASON_LEN];
} ConnectionStat;

extern Size ConnStatShmemSize(void);
extern void ConnStatShmemInit(bool found);

/* Publish this database's connection to a server; silently nothing when all places are taken. */
extern void ConnStatPublish(const ConnectionStat *stat);
/* Forget one connection of this database (InvalidOid: all of them). */
extern void ConnStatForget(Oid server);

#endif							/* HYBRIDIOT_CONNSTAT_H */
