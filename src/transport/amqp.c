/*
 * amqp.c
 *		AMQP 1.0 connections: the only file that includes proton's headers.
 *
 * Proton does the protocol and nothing else here: sockets are ours, waiting is
 * the owner's. What proton tells is first written down as AmqpEvents, and
 * only handed out when no call of the library is on the stack, so that an
 * ereport never jumps across its frames.
 *
 * Whether a delivery may have reached the peer when a connection is lost is
 * decided by counting bytes: everything proton had produced before the
 * delivery was handed over comes before its first byte in the stream. If not
 * more than that was written to the socket, nothing of it was.
 *
 * A session that the peer ends takes its links with it without a word on
 * them, and what led to it (RabbitMQ ends one for a protocol error) concerns the
 * whole conversation; so the connection is given up with it.
 */
#include "postgres.h"

#include <limits.h>
#include <sys/socket.h>
#include <unistd.h>

#include <proton/condition.h>
#include <proton/connection.h>
#include <proton/connection_driver.h>
#include <proton/delivery.h>
#include <proton/disposition.h>
#include <proton/event.h>
#include <proton/link.h>
#include <proton/logger.h>
#include <proton/sasl.h>
#include <proton/session.h>
#include <proton/ssl.h>
#include <proton/terminus.h>
#include <proton/transport.h>

#include "lib/ilist.h"
#include "storage/latch.h"
#include "utils/memutils.h"

#include "core/clock.h"
#include "transport/amqp.h"

/* Proton 0.37 has no limits of its own. */
#define MAX_FRAME (64 * 1024)
#define MAX_CHANNEL 7
#define SESSION_WINDOW (16 * MAX_FRAME)
/* Output kept in proton at most, before the socket is asked to take it. */
#define MAX_UNWRITTEN (64 * 1024)
/* Reads of one AmqpProcess() call, so that a flood does not starve the owner. */
#define MAX_READS 16
/* What a message over the limit may bring besides before the connection is given up. */
#define MAX_DROPPED (UINT64CONST(64) * 1024 * 1024)

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
	pn_session_t *send_session;
	pn_session_t *receive_session;
	bool		open;
	bool		closed;
	bool		blocked;		/* the socket did not take all */
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

/* ---- events ---- */

static AmqpEvent *
add_event(AmqpConnection *c, AmqpEventKind kind)
{
	AmqpEvent  *event;

	if (c->nevents == c->max_events)
	{
		c->max_events = Max(64, c->max_events * 2);
		c->events = c->events ? repalloc(c->events, c->max_events * sizeof(AmqpEvent)) :
			MemoryContextAlloc(c->context, c->max_events * sizeof(AmqpEvent));
	}
	event = &c->events[c->nevents++];
	memset(event, 0, sizeof(*event));
	event->kind = kind;
	return event;
}

static const char *
event_text(AmqpConnection *c, const char *text)
{
	return text ? MemoryContextStrdup(c->event_context, text) : NULL;
}

/* "name: description" of a proton condition; NULL if it is not set. */
static const char *
condition_text(AmqpConnection *c, pn_condition_t *condition)
{
	const char *name;
	const char *description;
	MemoryContext old;
	char	   *result;

	if (condition == NULL || !pn_condition_is_set(condition))
		return NULL;
	name = pn_condition_get_name(condition);
	description = pn_condition_get_description(condition);
	old = MemoryContextSwitchTo(c->event_context);
	result = description && *description ?
		psprintf("%s: %s", name ? name : "error", description) : pstrdup(name ? name : "error");
	MemoryContextSwitchTo(old);
	return result;
}

static void
forget_outgoing(Outgoing *out)
{
	dlist_delete(&out->node);
	out->link->in_flight--;
	pn_delivery_set_context(out->delivery, NULL);
	pfree(out);
}

/* Deliveries of a link (NULL: of all) get no outcome any more. */
static void
lose_outgoing(AmqpConnection *c, AmqpLink *link)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &c->outgoing)
	{
		Outgoing   *out = dlist_container(Outgoing, node, iter.cur);
		AmqpEvent  *event;

		if (link && out->link != link)
			continue;
		event = add_event(c, AMQP_EVENT_LOST);
		event->link = out->link;
		memcpy(event->tag, out->tag, AMQP_TAG_LEN);
		event->transferred = c->bytes_out > out->start;
		forget_outgoing(out);
	}
}

static void
forget_incoming(AmqpConnection *c, AmqpLink *link)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &c->incoming)
	{
		Incoming   *in = dlist_container(Incoming, node, iter.cur);

		if (in->link != link)
			continue;
		dlist_delete(&in->node);
		pfree(in);
	}
}

/* The connection is of no more use. Called any number of times; the first reason counts. */
static void
fail(AmqpConnection *c, const char *reason)
{
	AmqpEvent  *event;

	if (c->closed)
		return;
	c->closed = true;
	c->open = false;
	lose_outgoing(c, NULL);
	event = add_event(c, AMQP_EVENT_CLOSED);
	event->text = event_text(c, reason);
	if (c->fd >= 0)
		close(c->fd);
	c->fd = -1;
	DialFree(c->dial);
	c->dial = NULL;
}

/* ---- what proton tells ---- */

static void
link_ended(AmqpConnection *c, AmqpLink *link, pn_condition_t *condition)
{
	AmqpEvent  *event;
	const char *text = condition_text(c, condition);

	lose_outgoing(c, link);
	forget_incoming(c, link);
	event = add_event(c, AMQP_EVENT_LINK_CLOSED);
	event->link = link;
	event->text = text ? text : event_text(c, "the peer ended the link");
	pn_link_set_context(link->link, NULL);
	pn_link_close(link->link);
	pn_link_free(link->link);
	link->link = NULL;
	link->open = false;
	dlist_delete(&link->node);
	dlist_push_tail(&c->dead, &link->node);
}

static void
link_opened(AmqpConnection *c, AmqpLink *link)
{
	pn_terminus_t *terminus = link->sender ? pn_link_remote_target(link->link) :
		pn_link_remote_source(link->link);

	/* An attach without terminus is a refusal; the detach that says why follows. */
	if (pn_terminus_get_type(terminus) == PN_UNSPECIFIED)
		return;
	link->open = true;
	add_event(c, AMQP_EVENT_LINK_OPEN)->link = link;
	if (!link->sender)
		pn_link_flow(link->link, link->window);
}

static void
tell_sent(AmqpConnection *c, Outgoing *out)
{
	AmqpEvent  *event = add_event(c, AMQP_EVENT_SENT);

	out->sent = true;
	event->link = out->link;
	memcpy(event->tag, out->tag, AMQP_TAG_LEN);
}

static void
outgoing_updated(AmqpConnection *c, pn_delivery_t *delivery)
{
	Outgoing   *out = pn_delivery_get_context(delivery);
	AmqpOutcome outcome;
	const char *condition = NULL;
	const char *description = NULL;
	AmqpEvent  *event;

	if (out == NULL)
	{
		if (pn_delivery_settled(delivery))
			pn_delivery_settle(delivery);
		return;
	}
	switch (pn_delivery_remote_state(delivery))
	{
		case PN_ACCEPTED:
			outcome = AMQP_ACCEPTED;
			break;
		case PN_REJECTED:
			{
				pn_condition_t *why = pn_disposition_condition(pn_delivery_remote(delivery));

				outcome = AMQP_REJECTED;
				condition = event_text(c, pn_condition_get_name(why));
				description = event_text(c, pn_condition_get_description(why));
				break;
			}
		case PN_RELEASED:
			outcome = AMQP_RELEASED;
			break;
		case PN_MODIFIED:
			outcome = AMQP_MODIFIED;
			break;
		default:
			if (!pn_delivery_settled(delivery))
				return;			/* "received" and the like: not the end */
			outcome = AMQP_NO_STATE;
			break;
	}
	if (!out->sent)
		tell_sent(c, out);
	event = add_event(c, AMQP_EVENT_OUTCOME);
	event->link = out->link;
	memcpy(event->tag, out->tag, AMQP_TAG_LEN);
	event->outcome = outcome;
	event->condition = condition;
	event->text = description;
	forget_outgoing(out);
	pn_delivery_settle(delivery);
}

/* Keep the credit of a receiver up; what is not settled yet counts. */
static void
top_up(AmqpLink *link)
{
	int			missing = link->window - pn_link_credit(link->link) - link->unsettled;

	if (missing > 0 && missing >= link->window / 2)
		pn_link_flow(link->link, missing);
}

static void
message_complete(AmqpConnection *c, AmqpLink *link, pn_delivery_t *delivery)
{
	Incoming   *in = MemoryContextAlloc(c->context, sizeof(Incoming));
	AmqpEvent  *event;
	char	   *copy = MemoryContextAllocHuge(c->event_context, link->message.len + 1);

	memcpy(copy, link->message.data, link->message.len);
	in->token = ++c->next_token;
	in->delivery = delivery;
	in->link = link;
	dlist_push_tail(&c->incoming, &in->node);
	link->unsettled++;

	event = add_event(c, AMQP_EVENT_MESSAGE);
	event->link = link;
	event->bytes = copy;
	event->len = link->message.len;
	event->oversize = link->dropped > 0;
	event->token = in->token;
	resetStringInfo(&link->message);
	link->dropped = 0;
	pn_link_advance(link->link);
}

static void
incoming_readable(AmqpConnection *c, AmqpLink *link, pn_delivery_t *delivery)
{
	char		chunk[8192];
	ssize_t		n;

	if (pn_link_current(link->link) != delivery)
		return;
	if (pn_delivery_aborted(delivery))
	{
		resetStringInfo(&link->message);
		link->dropped = 0;
		pn_delivery_settle(delivery);
		return;
	}
	while ((n = pn_link_recv(link->link, chunk, sizeof(chunk))) > 0)
	{
		size_t		room = c->config.max_message_size - link->message.len;
		size_t		kept = Min((size_t) n, room);

		appendBinaryStringInfo(&link->message, chunk, (int) kept);
		link->dropped += n - kept;
	}
	if (link->dropped > MAX_DROPPED)
	{
		fail(c, "the peer sent a message without end");
		return;
	}
	if (!pn_delivery_partial(delivery))
		message_complete(c, link, delivery);
}

static void
dispatch_event(AmqpConnection *c, pn_event_t *event)
{
	AmqpLink   *link = pn_event_link(event) ? pn_link_get_context(pn_event_link(event)) : NULL;
	const char *text;

	switch (pn_event_type(event))
	{
		case PN_CONNECTION_REMOTE_OPEN:
			c->open = true;
			(void) add_event(c, AMQP_EVENT_OPEN);
			break;
		case PN_CONNECTION_REMOTE_CLOSE:
			text = condition_text(c, pn_connection_remote_condition(pn_event_connection(event)));
			fail(c, text ? text : "the peer closed the connection");
			break;
		case PN_SESSION_REMOTE_CLOSE:
			text = condition_text(c, pn_session_remote_condition(pn_event_session(event)));
			fail(c, text ? text : "the peer ended the session");
			break;
		case PN_LINK_REMOTE_OPEN:
			if (link)
				link_opened(c, link);
			break;
		case PN_LINK_REMOTE_CLOSE:
		case PN_LINK_REMOTE_DETACH:
			if (link)
				link_ended(c, link, pn_link_remote_condition(link->link));
			break;
		case PN_LINK_FLOW:
			/* Whoever drains wants its credit back if nothing is there; what is, leaves on new credit. */
			if (link && link->sender && pn_link_get_drain(link->link))
				pn_link_drained(link->link);
			break;
		case PN_DELIVERY:
			if (link && link->sender)
				outgoing_updated(c, pn_event_delivery(event));
			else if (link)
				incoming_readable(c, link, pn_event_delivery(event));
			break;
		case PN_TRANSPORT_ERROR:
			text = condition_text(c, pn_transport_condition(pn_event_transport(event)));
			fail(c, text ? text : "protocol error");
			break;
		case PN_TRANSPORT_CLOSED:
			fail(c, "the connection ended");
			break;
		default:
			break;
	}
}

static void
dispatch(AmqpConnection *c)
{
	pn_event_t *event;

	while (!c->closed && (event = pn_connection_driver_next_event(&c->driver)) != NULL)
		dispatch_event(c, event);
}

/* ---- the socket ---- */

static void
fail_errno(AmqpConnection *c, const char *what)
{
	char		text[128];

	snprintf(text, sizeof(text), "%s: %s", what, strerror(errno));
	fail(c, text);
}

/* All that proton had is written: so are the messages it has taken. */
static void
mark_sent(AmqpConnection *c)
{
	dlist_iter	iter;

	dlist_foreach(iter, &c->outgoing)
	{
		Outgoing   *out = dlist_container(Outgoing, node, iter.cur);

		if (!out->sent && !pn_delivery_buffered(out->delivery))
			tell_sent(c, out);
	}
}

static void
write_out(AmqpConnection *c)
{
	while (!c->closed)
	{
		pn_bytes_t	buffer = pn_connection_driver_write_buffer(&c->driver);
		ssize_t		n;

		c->produced = c->bytes_out + buffer.size;
		if (buffer.size == 0)
		{
			c->blocked = false;
			mark_sent(c);
			return;
		}
		n = send(c->fd, buffer.start, buffer.size, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (n > 0)
		{
			c->bytes_out += n;
			(void) pn_connection_driver_write_done(&c->driver, n);
		}
		else if (n < 0 && errno == EINTR)
			continue;
		else if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
		{
			c->blocked = true;
			return;
		}
		else
			fail_errno(c, "could not send");
	}
}

static void
read_in(AmqpConnection *c)
{
	for (int i = 0; i < MAX_READS && !c->closed; i++)
	{
		pn_rwbytes_t buffer = pn_connection_driver_read_buffer(&c->driver);
		ssize_t		n;

		if (buffer.size == 0)
			return;
		n = recv(c->fd, buffer.start, buffer.size, MSG_DONTWAIT);
		if (n > 0)
		{
			c->bytes_in += n;
			pn_connection_driver_read_done(&c->driver, n);
			dispatch(c);
			if ((size_t) n < buffer.size)
				return;
		}
		else if (n == 0)
		{
			/* Proton knows better when this happened during SASL or TLS. */
			pn_connection_driver_read_close(&c->driver);
			if (!c->open)
				dispatch(c);
			fail(c, "the peer closed the connection");
		}
		else if (errno == EAGAIN || errno == EWOULDBLOCK)
			return;
		else if (errno != EINTR)
			fail_errno(c, "could not receive");
	}
}

/* ---- connecting ---- */

/* TLS of the transport; false: said why. */
static bool
set_up_tls(AmqpConnection *c, pn_transport_t *transport)
{
	const AmqpConfig *config = &c->config;
	pn_ssl_domain_t *domain = pn_ssl_domain(PN_SSL_MODE_CLIENT);
	const char *problem = NULL;

	if (domain == NULL)
		problem = "TLS is not available";
	else if (config->ssl_ca && pn_ssl_domain_set_trusted_ca_db(domain, config->ssl_ca) != 0)
		problem = "could not read the file of option \"ssl_ca\"";
	else if (config->ssl_certificate &&
			 pn_ssl_domain_set_credentials(domain, config->ssl_certificate, config->ssl_key,
										   config->ssl_key_password) != 0)
		problem = "could not use the files of options \"ssl_certificate\" and \"ssl_key\"";
	else if (pn_ssl_domain_set_peer_authentication(domain, PN_SSL_VERIFY_PEER_NAME, NULL) != 0 ||
			 pn_ssl_init(pn_ssl(transport), domain, NULL) != 0 ||
			 pn_ssl_set_peer_hostname(pn_ssl(transport), config->targets[c->target].host) != 0)
		problem = "could not set up TLS";
	if (domain)
		pn_ssl_domain_free(domain);
	if (problem)
		fail(c, problem);
	return problem == NULL;
}

/* The socket is connected: begin the protocol. */
static void
begin_protocol(AmqpConnection *c)
{
	const AmqpConfig *config = &c->config;
	pn_connection_t *connection;
	pn_transport_t *transport;
	pn_sasl_t  *sasl;

	if (pn_connection_driver_init(&c->driver, NULL, NULL) != 0)
	{
		fail(c, "out of memory");
		return;
	}
	c->driving = true;
	connection = c->driver.connection;
	transport = c->driver.transport;

	/* Frames hold secrets; whoever wants a trace has tcpdump. */
	pn_logger_reset_mask(pn_transport_logger(transport), PN_SUBSYSTEM_ALL, PN_LEVEL_ALL);

	pn_connection_set_container(connection, config->container);
	pn_connection_set_hostname(connection, config->targets[c->target].host);
	if (config->user)
		pn_connection_set_user(connection, config->user);
	if (config->password)
		pn_connection_set_password(connection, config->password);

	pn_transport_set_max_frame(transport, MAX_FRAME);
	pn_transport_set_channel_max(transport, MAX_CHANNEL);
	pn_transport_set_idle_timeout(transport, config->idle_timeout_ms);
	if (config->tls && !set_up_tls(c, transport))
		return;
	sasl = pn_sasl(transport);
	pn_sasl_allowed_mechs(sasl, config->mechanism);
	pn_sasl_set_allow_insecure_mechs(sasl, config->allow_clear_text);
	pn_connection_driver_bind(&c->driver);

	pn_connection_open(connection);
	c->send_session = pn_session(connection);
	pn_session_set_incoming_capacity(c->send_session, SESSION_WINDOW);
	pn_session_open(c->send_session);
	c->receive_session = pn_session(connection);
	pn_session_set_incoming_capacity(c->receive_session, SESSION_WINDOW);
	pn_session_open(c->receive_session);
}

static void
proceed_dial(AmqpConnection *c)
{
	DialResult	result = DialProceed(c->dial);

	c->target = DialTargetIndex(c->dial);
	switch (result)
	{
		case DIAL_BUSY:
			break;
		case DIAL_FAILED:
			fail(c, DialError(c->dial));
			break;
		case DIAL_DONE:
			c->fd = DialTakeFd(c->dial);
			DialFree(c->dial);
			c->dial = NULL;
			begin_protocol(c);
			break;
	}
}

static const char *
copy_string(const char *s)
{
	return s ? pstrdup(s) : NULL;
}

AmqpConnection *
AmqpConnect(const AmqpConfig *config, int first)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext, "hybridiot amqp connection",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	AmqpConnection *c = palloc0(sizeof(AmqpConnection));
	DialTarget *targets = palloc(sizeof(DialTarget) * config->ntargets);

	c->context = context;
	c->event_context = AllocSetContextCreate(context, "hybridiot amqp events",
											 ALLOCSET_DEFAULT_SIZES);
	c->config = *config;
	for (int i = 0; i < config->ntargets; i++)
	{
		targets[i].host = pstrdup(config->targets[i].host);
		targets[i].port = config->targets[i].port;
	}
	c->config.targets = targets;
	c->config.ssl_ca = copy_string(config->ssl_ca);
	c->config.ssl_certificate = copy_string(config->ssl_certificate);
	c->config.ssl_key = copy_string(config->ssl_key);
	c->config.ssl_key_password = copy_string(config->ssl_key_password);
	c->config.mechanism = copy_string(config->mechanism);
	c->config.user = copy_string(config->user);
	c->config.password = copy_string(config->password);
	c->config.container = copy_string(config->container);
	c->fd = -1;
	dlist_init(&c->links);
	dlist_init(&c->dead);
	dlist_init(&c->outgoing);
	dlist_init(&c->incoming);
	c->deadline = ClockMonotonicMs() + config->connect_timeout_ms;
	c->target = first;
	c->dial = DialStart(targets, config->ntargets, first);
	proceed_dial(c);
	MemoryContextSwitchTo(old);
	return c;
}

static void
wipe(const char *secret)
{
	if (secret)
		explicit_bzero(unconstify(char *, secret), strlen(secret));
}

void
AmqpFree(AmqpConnection *c)
{
	if (c == NULL)
		return;
	if (c->driving)
	{
		if (c->open && !c->closed)
		{
			pn_connection_close(c->driver.connection);
			write_out(c);
		}
		pn_connection_driver_destroy(&c->driver);
	}
	if (c->fd >= 0)
		close(c->fd);
	DialFree(c->dial);
	wipe(c->config.password);
	wipe(c->config.ssl_key_password);
	MemoryContextDelete(c->context);
}

/* ---- driving ---- */

int
AmqpFd(const AmqpConnection *c)
{
	return c->dial ? DialFd(c->dial) : c->fd;
}

uint32
AmqpEvents(const AmqpConnection *c)
{
	if (c->dial)
		return DialEvents(c->dial);
	return WL_SOCKET_READABLE | (c->blocked ? WL_SOCKET_WRITEABLE : 0);
}

long
AmqpTimeout(const AmqpConnection *c)
{
	int64		now = ClockMonotonicMs();
	int64		until = c->open ? c->next_tick : c->deadline;

	if (c->closed || c->next_event < c->nevents)
		return 0;
	if (!c->open && c->next_tick != 0)
		until = Min(until, c->next_tick);
	return until == 0 ? LONG_MAX : (long) Max(0, until - now);
}

/* Everything told was taken: its memory can go. */
static void
forget_events(AmqpConnection *c)
{
	dlist_mutable_iter iter;

	if (c->next_event < c->nevents)
		return;
	c->nevents = c->next_event = 0;
	MemoryContextReset(c->event_context);
	dlist_foreach_modify(iter, &c->dead)
	{
		AmqpLink   *link = dlist_container(AmqpLink, node, iter.cur);

		dlist_delete(&link->node);
		pfree(link->message.data);
		pfree(link);
	}
}

void
AmqpProcess(AmqpConnection *c)
{
	MemoryContext old;

	if (c->closed)
		return;
	forget_events(c);
	old = MemoryContextSwitchTo(c->context);
	if (c->dial)
		proceed_dial(c);
	if (c->driving && !c->closed)
	{
		int64		now = ClockMonotonicMs();

		c->next_tick = pn_transport_tick(c->driver.transport, now);
		read_in(c);

		/* Writing can end things too (an idle time-out, a refusal we answer). */
		do
		{
			dispatch(c);
			write_out(c);
		} while (!c->closed && pn_connection_driver_has_event(&c->driver));
	}
	if (!c->closed && !c->open && ClockMonotonicMs() >= c->deadline)
		fail(c, "the connection could not be established in time");
	MemoryContextSwitchTo(old);
}

void
AmqpFlush(AmqpConnection *c)
{
	MemoryContext old;

	if (!c->driving || c->closed)
		return;
	old = MemoryContextSwitchTo(c->context);
	write_out(c);
	MemoryContextSwitchTo(old);
}

bool
AmqpNextEvent(AmqpConnection *c, AmqpEvent *event)
{
	if (c->next_event == c->nevents)
		return false;
	*event = c->events[c->next_event++];
	return true;
}

int
AmqpTarget(const AmqpConnection *c)
{
	return c->target;
}

void
AmqpCount(AmqpConnection *c, AmqpCounters *counters)
{
	dlist_iter	iter;

	memset(counters, 0, sizeof(*counters));
	counters->bytes_in = c->bytes_in;
	counters->bytes_out = c->bytes_out;
	if (c->closed)
		return;
	counters->sessions = c->open ? 2 : 0;
	dlist_foreach(iter, &c->links)
	{
		AmqpLink   *link = dlist_container(AmqpLink, node, iter.cur);

		counters->links++;
		counters->in_flight += link->in_flight;
		if (link->sender && link->open)
			counters->credit += Max(0, pn_link_credit(link->link));
	}
}

/* ---- links ---- */

static AmqpLink *
open_link(AmqpConnection *c, bool sender, const char *address, bool queue)
{
	AmqpLink   *link = MemoryContextAllocZero(c->context, sizeof(AmqpLink));
	MemoryContext old = MemoryContextSwitchTo(c->context);
	pn_terminus_t *terminus;
	char		name[64];
	static uint64 count = 0;

	initStringInfo(&link->message);
	MemoryContextSwitchTo(old);
	link->sender = sender;

	/* Names must differ between the two sessions of any connection of ours to this peer. */
	snprintf(name, sizeof(name), "%s-" UINT64_FORMAT, sender ? "command" : "reply", ++count);
	if (sender)
	{
		link->link = pn_sender(c->send_session, name);
		terminus = pn_link_target(link->link);
		pn_link_set_snd_settle_mode(link->link, PN_SND_UNSETTLED);
		pn_terminus_set_address(pn_link_source(link->link), c->config.container);
	}
	else
	{
		link->link = pn_receiver(c->receive_session, name);
		terminus = pn_link_source(link->link);
		pn_terminus_set_address(pn_link_target(link->link), address);
	}
	pn_link_set_rcv_settle_mode(link->link, PN_RCV_FIRST);
	if (address)
		pn_terminus_set_address(terminus, address);
	else
		pn_terminus_set_type(terminus, PN_TARGET);
	if (queue && address)
	{
		pn_data_t  *capabilities = pn_terminus_capabilities(terminus);

		pn_data_put_symbol(capabilities, pn_bytes(5, "queue"));
	}
	pn_link_set_context(link->link, link);
	pn_link_open(link->link);
	dlist_push_tail(&c->links, &link->node);
	return link;
}

AmqpLink *
AmqpOpenSender(AmqpConnection *c, const char *address, bool queue)
{
	return open_link(c, true, address, queue);
}

AmqpLink *
AmqpOpenReceiver(AmqpConnection *c, const char *address, bool queue, int credit)
{
	AmqpLink   *link = open_link(c, false, address, queue);

	link->window = credit;
	return link;
}

void
AmqpCloseLink(AmqpConnection *c, AmqpLink *link)
{
	lose_outgoing(c, link);
	forget_incoming(c, link);
	pn_link_set_context(link->link, NULL);
	pn_link_close(link->link);
	pn_link_free(link->link);
	dlist_delete(&link->node);
	pfree(link->message.data);
	pfree(link);
}

void
AmqpLinkSetOwner(AmqpLink *link, void *owner)
{
	link->owner = owner;
}

void *
AmqpLinkOwner(const AmqpLink *link)
{
	return link->owner;
}

bool
AmqpLinkIsOpen(const AmqpLink *link)
{
	return link->open;
}

int
AmqpLinkInFlight(const AmqpLink *link)
{
	return link->in_flight;
}

/* ---- messages ---- */

int
AmqpSendable(const AmqpConnection *c, const AmqpLink *link)
{
	if (c->closed || c->blocked || !link->open)
		return 0;
	return Max(0, pn_link_credit(link->link));
}

void
AmqpSend(AmqpConnection *c, AmqpLink *link, const unsigned char *tag,
		 const char *bytes, size_t len)
{
	Outgoing   *out = MemoryContextAllocZero(c->context, sizeof(Outgoing));

	Assert(AmqpSendable(c, link) > 0);
	memcpy(out->tag, tag, AMQP_TAG_LEN);
	out->link = link;
	out->start = c->produced;
	out->delivery = pn_delivery(link->link, pn_dtag((const char *) tag, AMQP_TAG_LEN));
	pn_delivery_set_context(out->delivery, out);
	dlist_push_tail(&c->outgoing, &out->node);
	link->in_flight++;
	pn_link_send(link->link, bytes, len);
	pn_link_advance(link->link);

	/* Not more is kept here than the socket takes. */
	if (pn_session_outgoing_bytes(c->send_session) >= MAX_UNWRITTEN)
	{
		MemoryContext old = MemoryContextSwitchTo(c->context);

		write_out(c);
		MemoryContextSwitchTo(old);
	}
}

void
AmqpSettle(AmqpConnection *c, uint64 token, AmqpOutcome outcome)
{
	dlist_iter	iter;

	if (c->closed)
		return;
	dlist_foreach(iter, &c->incoming)
	{
		Incoming   *in = dlist_container(Incoming, node, iter.cur);
		AmqpLink   *link = in->link;

		if (in->token != token)
			continue;
		pn_delivery_update(in->delivery, outcome == AMQP_ACCEPTED ? PN_ACCEPTED :
						   outcome == AMQP_REJECTED ? PN_REJECTED : PN_RELEASED);
		pn_delivery_settle(in->delivery);
		dlist_delete(&in->node);
		pfree(in);
		link->unsettled--;
		top_up(link);
		return;
	}
}
