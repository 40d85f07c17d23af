/*
 * amqp.h
 *		What the other rooms may ask of an AMQP 1.0 connection. No type of the client
 *		library shows here, and nothing here touches SPI or the catalog.
 *
 * A connection is driven by its owner: wait for AmqpEvents() on AmqpFd() until
 * AmqpTimeout(), call AmqpProcess(), then take what happened with
 * AmqpNextEvent(). Nothing blocks. Nothing throws but for lack of memory, and
 * then between two calls of the library. For the main thread of a worker only.
 */
#ifndef HYBRIDIOT_AMQP_H
#define HYBRIDIOT_AMQP_H

#include "transport/amqp_message.h"
#include "transport/dial.h"

#define AMQP_TAG_LEN 16			/* a delivery is named by its command's uuid */

typedef struct AmqpConfig
{
	const DialTarget *targets;
	int			ntargets;
	bool		tls;
	const char *ssl_ca;			/* NULL: the system's */
	const char *ssl_certificate;
	const char *ssl_key;
	const char *ssl_key_password;
	const char *mechanism;		/* PLAIN, EXTERNAL or ANONYMOUS */
	bool		allow_clear_text;	/* PLAIN without TLS */
	const char *user;
	const char *password;
	const char *container;		/* our name */
	int			connect_timeout_ms;
	int			idle_timeout_ms;	/* 0: none */
	size_t		max_message_size;	/* of what is received */
} AmqpConfig;

typedef struct AmqpConnection AmqpConnection;
typedef struct AmqpLink AmqpLink;

typedef enum AmqpOutcome
{
	AMQP_ACCEPTED,
	AMQP_REJECTED,
	AMQP_RELEASED,
	AMQP_MODIFIED,
	AMQP_NO_STATE				/* settled without saying */
} AmqpOutcome;

typedef enum AmqpEventKind
{
	AMQP_EVENT_OPEN,			/* the connection is usable; links may be opened */
	AMQP_EVENT_CLOSED,			/* it is gone; text says why; only AmqpFree() is left */
	AMQP_EVENT_LINK_OPEN,
	AMQP_EVENT_LINK_CLOSED,		/* the peer ended or refused it; text says why; the link is invalid */
	AMQP_EVENT_SENT,			/* all bytes of the delivery have left */
	AMQP_EVENT_OUTCOME,			/* of a delivery */
	AMQP_EVENT_LOST,			/* link or connection went before an outcome came */
	AMQP_EVENT_MESSAGE			/* bytes, token: call AmqpSettle() later */
} AmqpEventKind;

/* Strings and bytes live until AmqpNextEvent() is called again. */
typedef struct AmqpEvent
{
	AmqpEventKind kind;
	AmqpLink   *link;
	unsigned char tag[AMQP_TAG_LEN];	/* SENT, OUTCOME, LOST */
	AmqpOutcome outcome;
	bool		transferred;	/* LOST: false if no byte of it was written */
	const char *condition;		/* REJECTED: NULL if none */
	const char *text;			/* description; CLOSED, LINK_CLOSED: what happened */
	const char *bytes;			/* MESSAGE */
	size_t		len;
	bool		oversize;		/* MESSAGE: bytes are only its beginning */
	uint64		token;			/* MESSAGE */
} AmqpEvent;

typedef struct AmqpCounters
{
	int			sessions;
	int			links;
	uint64		bytes_in;
	uint64		bytes_out;
	int			credit;			/* over all sending links */
	int			in_flight;		/* deliveries without outcome */
} AmqpCounters;

/* Begin to connect; the strings of config are copied. first: which target to begin with. */
extern AmqpConnection *AmqpConnect(const AmqpConfig *config, int first);
/* Say good-bye if that can be done at once, close the socket, free all. NULL is allowed. */
extern void AmqpFree(AmqpConnection *connection);

extern int	AmqpFd(const AmqpConnection *connection);	/* -1: none */
extern uint32 AmqpEvents(const AmqpConnection *connection); /* WL_SOCKET_* */
/* Milliseconds until AmqpProcess() must be called though nothing happens on the socket. */
extern long AmqpTimeout(const AmqpConnection *connection);
/* Read, at most so many times, and write what can be; collects events. */
extern void AmqpProcess(AmqpConnection *connection, int max_reads);
/* Write what was asked for since; before waiting. May collect events (AmqpTimeout() is 0 then). */
extern void AmqpFlush(AmqpConnection *connection);
/* Take the next event; false when there is none. */
extern bool AmqpNextEvent(AmqpConnection *connection, AmqpEvent *event);

/* What the peer calls itself (connection property "product"); "" if it does not say. */
extern const char *AmqpProduct(const AmqpConnection *connection);
/* The target that is connected or being tried. */
extern int	AmqpTarget(const AmqpConnection *connection);
extern void AmqpCount(AmqpConnection *connection, AmqpCounters *counters);

/* address NULL: the anonymous terminus. queue: ask for a queue that outlives the link. */
extern AmqpLink *AmqpOpenSender(AmqpConnection *connection, const char *address, bool queue);
extern AmqpLink *AmqpOpenReceiver(AmqpConnection *connection, const char *address, bool queue,
								  int credit);
/* Give a link up; its deliveries end as LOST. Events that are there already may still name it. */
extern void AmqpCloseLink(AmqpConnection *connection, AmqpLink *link);
extern void AmqpLinkSetOwner(AmqpLink *link, void *owner);
extern void *AmqpLinkOwner(const AmqpLink *link);
extern bool AmqpLinkIsOpen(const AmqpLink *link);
/* Deliveries without outcome on this link. */
extern int	AmqpLinkInFlight(const AmqpLink *link);

/*
 * How many messages the link takes now: its credit, or 0 while the socket does not
 * take what was handed over before (a command that waits here may still expire or be cancelled).
 */
extern int	AmqpSendable(const AmqpConnection *connection, const AmqpLink *link);
/* Hand over one message; only while AmqpSendable() > 0. Bytes leave at the latest in AmqpFlush(). */
extern void AmqpSend(AmqpConnection *connection, AmqpLink *link,
					 const unsigned char *tag, const char *bytes, size_t len);

/* Settle a received message: ACCEPTED, REJECTED or RELEASED. A token of a link that is gone does nothing. */
extern void AmqpSettle(AmqpConnection *connection, uint64 token, AmqpOutcome outcome);

#endif							/* HYBRIDIOT_AMQP_H */
