/*
 * amqp_internal.h
 *		What amqp.c, amqp_login.c and amqp_link.c share: connection, links and messages as they keep them.
 */
#ifndef HYBRIDIOT_AMQP_INTERNAL_H
#define HYBRIDIOT_AMQP_INTERNAL_H

#include <proton/condition.h>
#include <proton/connection.h>
#include <proton/connection_driver.h>
#include <proton/delivery.h>
#include <proton/event.h>
#include <proton/link.h>
#include <proton/session.h>

#include "lib/ilist.h"
#include "lib/stringinfo.h"

#include "transport/amqp.h"

/* A message on its way out, until its outcome is known. */
typedef struct Outgoing
{
	dlist_node	node;			/* in connection->outgoing */
	pn_delivery_t *delivery;
	AmqpLink   *link;
	unsigned char tag[AMQP_TAG_LEN];
	uint64		start;			/* its first byte is not before this place in the stream */
	bool		sent;
} Outgoing;

/* A message that was handed to the owner and is not settled yet. */
typedef struct Incoming
{
	dlist_node	node;			/* in connection->incoming */
	uint64		token;
	pn_delivery_t *delivery;
	AmqpLink   *link;
} Incoming;

struct AmqpLink
{
	dlist_node	node;			/* in connection->links, or ->dead */
	AmqpConnection *connection;
	pn_link_t  *link;
	void	   *owner;
	bool		sender;
	bool		open;			/* both ends agree */
	int			in_flight;		/* senders: deliveries without outcome */
	int			window;			/* receivers: credit to keep up */
	int			unsettled;		/* receivers: handed out, not settled */
	StringInfoData message;		/* receivers: what has come of the present one */
	uint64		dropped;		/* receivers: bytes of it beyond the limit */
};

struct AmqpConnection
{
	MemoryContext context;
	MemoryContext event_context;
	AmqpConfig	config;
	Dial	   *dial;			/* until the socket is connected */
	int			fd;
	int			target;
	pn_connection_driver_t driver;
	bool		driving;		/* the driver is initialized */
	struct ssl_st *tls;			/* OpenSSL's part of it; NULL: none */
	pn_session_t *send_session;
	pn_session_t *receive_session;
	bool		open;
	char		product[64];	/* of the peer */
	bool		closed;
	bool		broken;			/* proton's state is not to be trusted any more */
	bool		blocked;		/* the socket did not take all */
	int			max_reads;		/* of the present AmqpProcess() */
	int64		deadline;		/* of connecting */
	int64		next_tick;		/* 0: none */
	uint64		produced;		/* bytes proton has made, as far as we know */
	uint64		bytes_out;		/* of these written */
	uint64		bytes_in;
	uint64		next_token;
	dlist_head	links;
	dlist_head	dead;			/* links whose end was not yet told */
	dlist_head	outgoing;
	dlist_head	incoming;
	AmqpEvent  *events;
	int			nevents;
	int			max_events;
	int			next_event;
};

/* ---- amqp.c ---- */

/* A new event of this kind, all else zero; valid until the next is added. */
extern AmqpEvent *AmqpAddEvent(AmqpConnection *c, AmqpEventKind kind);
/* A copy that lives as long as the events; NULL stays NULL. */
extern const char *AmqpEventText(AmqpConnection *c, const char *text);
/* "name: description" of a proton condition, as long as the events; NULL if it is not set. */
extern const char *AmqpConditionText(AmqpConnection *c, pn_condition_t *condition);
/* The connection is of no more use. Called any number of times; the first reason counts. */
extern void AmqpFail(AmqpConnection *c, const char *reason);
/* Give the socket what proton has, as much as it takes. */
extern void AmqpWriteOut(AmqpConnection *c);

/* ---- amqp_login.c ---- */

/* TLS for a transport that was not bound yet; false: AmqpFail() was called. */
extern bool AmqpSetUpTls(AmqpConnection *c, pn_transport_t *transport);
/* Why the connection was not opened, for people: what the library says, and what that means. As long as the events. */
extern const char *AmqpRefusalText(AmqpConnection *c, const char *reason);

/* ---- amqp_link.c ---- */

/* Deliveries of a link (NULL: of all) get no outcome any more. */
extern void AmqpLoseOutgoing(AmqpConnection *c, AmqpLink *link);
/* All that proton had is written: so are the messages it has taken. */
extern void AmqpMarkSent(AmqpConnection *c);
/* What proton tells of a link: attached, detached, an outcome, bytes of a message. */
extern void AmqpLinkOpened(AmqpConnection *c, AmqpLink *link);
extern void AmqpLinkEnded(AmqpConnection *c, AmqpLink *link, pn_condition_t *condition);
extern void AmqpOutgoingUpdated(AmqpConnection *c, pn_delivery_t *delivery);
extern void AmqpIncomingReadable(AmqpConnection *c, AmqpLink *link, pn_delivery_t *delivery);

#endif							/* HYBRIDIOT_AMQP_INTERNAL_H */
