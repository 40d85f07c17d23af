/*
 * amqp.c
 *		AMQP 1.0 connections: from connecting to the end, and what proton tells.
 *
 * Proton does the protocol and nothing else here: sockets are ours, waiting is
 * the owner's. What proton tells is first written down as AmqpEvents, and
 * only handed out when no call of the library is on the stack, so that an
 * ereport never jumps across its frames.
 *
 * A session that the peer ends takes its links with it without a word on
 * them, and what led to it (RabbitMQ ends one for a protocol error) concerns the
 * whole conversation; so the connection is given up with it.
 */
#include "postgres.h"

#include <limits.h>
#include <sys/socket.h>
#include <unistd.h>

#include <proton/logger.h>
#include <proton/sasl.h>
#include <proton/transport.h>

#include "storage/latch.h"
#include "utils/memutils.h"

#include "core/clock.h"
#include "transport/amqp_internal.h"
#include "transport/assertion.h"

/* Proton 0.37 has no limits of its own. */
#define MAX_FRAME (16 * 1024)
#define MAX_CHANNEL 7
/* In frames, of which a reply is one, however short: they should not be what replies wait for. */
#define SESSION_WINDOW (1024 * MAX_FRAME)

/* ---- events ---- */

AmqpEvent *
AmqpAddEvent(AmqpConnection *c, AmqpEventKind kind)
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

const char *
AmqpEventText(AmqpConnection *c, const char *text)
{
	return text ? MemoryContextStrdup(c->event_context, text) : NULL;
}

/* "name: description" of a proton condition; NULL if it is not set. */
const char *
AmqpConditionText(AmqpConnection *c, pn_condition_t *condition)
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

/* The connection is of no more use. Called any number of times; the first reason counts. */
void
AmqpFail(AmqpConnection *c, const char *reason)
{
	AmqpEvent  *event;

	if (c->closed)
		return;
	if (c->driving && !c->open)
		reason = AmqpRefusalText(c, reason);
	c->closed = true;
	c->open = false;
	AmqpLoseOutgoing(c, NULL);
	event = AmqpAddEvent(c, AMQP_EVENT_CLOSED);
	event->text = AmqpEventText(c, reason);
	if (c->fd >= 0)
		close(c->fd);
	c->fd = -1;
	DialFree(c->dial);
	c->dial = NULL;
}

/* ---- what proton tells ---- */

/* A foreign map: of what is longer or no text, nothing is known. */
static void
read_product(AmqpConnection *c, pn_data_t *properties)
{
	bool		is_key = true;
	bool		wanted = false;

	pn_data_rewind(properties);
	if (!pn_data_next(properties) || pn_data_type(properties) != PN_MAP || !pn_data_enter(properties))
		return;
	for (; pn_data_next(properties); is_key = !is_key)
	{
		pn_bytes_t	text = {0};

		if (pn_data_type(properties) == PN_SYMBOL)
			text = pn_data_get_symbol(properties);
		else if (pn_data_type(properties) == PN_STRING)
			text = pn_data_get_string(properties);
		if (is_key)
			wanted = text.size == strlen("product") && memcmp(text.start, "product", text.size) == 0;
		else if (wanted && text.size < sizeof(c->product))
		{
			memcpy(c->product, text.start, text.size);
			c->product[text.size] = '\0';
		}
	}
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
			read_product(c, pn_connection_remote_properties(pn_event_connection(event)));
			(void) AmqpAddEvent(c, AMQP_EVENT_OPEN);
			break;
		case PN_CONNECTION_REMOTE_CLOSE:
			text = AmqpConditionText(c, pn_connection_remote_condition(pn_event_connection(event)));
			AmqpFail(c, text ? text : "the peer closed the connection");
			break;
		case PN_SESSION_REMOTE_CLOSE:
			text = AmqpConditionText(c, pn_session_remote_condition(pn_event_session(event)));
			AmqpFail(c, text ? text : "the peer ended the session");
			break;
		case PN_SESSION_REMOTE_OPEN:
			/* What peers open could be without end, and is nothing to us. */
			if (pn_session_state(pn_event_session(event)) & PN_LOCAL_UNINIT)
				AmqpFail(c, "the peer opened a session of its own");
			break;
		case PN_LINK_REMOTE_OPEN:
			if (link)
				AmqpLinkOpened(c, link);
			else if (pn_link_state(pn_event_link(event)) & PN_LOCAL_UNINIT)
				AmqpFail(c, "the peer opened a link of its own");
			break;
		case PN_LINK_REMOTE_CLOSE:
		case PN_LINK_REMOTE_DETACH:
			if (link)
				AmqpLinkEnded(c, link, pn_link_remote_condition(link->link));
			break;
		case PN_LINK_FLOW:
			/* Whoever drains wants its credit back if nothing is there; what is, leaves on new credit. */
			if (link && link->sender && pn_link_get_drain(link->link))
				pn_link_drained(link->link);
			break;
		case PN_DELIVERY:
			if (link && link->sender)
				AmqpOutgoingUpdated(c, pn_event_delivery(event));
			else if (link)
				AmqpIncomingReadable(c, link, pn_event_delivery(event));
			break;
		case PN_TRANSPORT_ERROR:
			text = AmqpConditionText(c, pn_transport_condition(pn_event_transport(event)));
			AmqpFail(c, text ? text : "protocol error");
			break;
		case PN_TRANSPORT_CLOSED:
			AmqpFail(c, "the connection ended");
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
	AmqpFail(c, text);
}

void
AmqpWriteOut(AmqpConnection *c)
{
	while (!c->closed)
	{
		pn_bytes_t	buffer = pn_connection_driver_write_buffer(&c->driver);
		ssize_t		n;

		c->produced = c->bytes_out + buffer.size;
		if (buffer.size == 0)
		{
			c->blocked = false;
			AmqpMarkSent(c);
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
	for (int i = 0; i < c->max_reads && !c->closed; i++)
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
			AmqpFail(c, "the peer closed the connection");
		}
		else if (errno == EAGAIN || errno == EWOULDBLOCK)
			return;
		else if (errno != EINTR)
			fail_errno(c, "could not receive");
	}
}

/* ---- connecting ---- */

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
		AmqpFail(c, "out of memory");
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
	if (config->tls && !AmqpSetUpTls(c, transport))
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
			AmqpFail(c, DialError(c->dial));
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

static void
free_driver(void *argument)
{
	AmqpConnection *c = argument;

	if (c->open && !c->closed)
	{
		pn_connection_close(c->driver.connection);
		AmqpWriteOut(c);
	}
	pn_connection_driver_destroy(&c->driver);
}

void
AmqpFree(AmqpConnection *c)
{
	if (c == NULL)
		return;
	if (c->driving)
		(void) AssertionSurvive(free_driver, c);
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

/* Have proton do something; if it cannot go on, the connection is lost. */
static void
drive(AmqpConnection *c, void (*work) (void *argument))
{
	if (AssertionSurvive(work, c))
		return;
	c->broken = true;
	AmqpFail(c, "the peer sent what the client library cannot take");
}

static void
process(void *argument)
{
	AmqpConnection *c = argument;

	c->next_tick = pn_transport_tick(c->driver.transport, ClockMonotonicMs());
	read_in(c);

	/* Writing can end things too (an idle time-out, a refusal we answer). */
	do
	{
		dispatch(c);
		AmqpWriteOut(c);
	} while (!c->closed && pn_connection_driver_has_event(&c->driver));

	/* Bytes that are no frame end proton's reading, now and then without a word on it. */
	if (!c->closed && pn_connection_driver_read_closed(&c->driver))
		AmqpFail(c, "the peer sent what is not AMQP");
}

static void
flush(void *argument)
{
	AmqpWriteOut((AmqpConnection *) argument);
}

void
AmqpProcess(AmqpConnection *c, int max_reads)
{
	MemoryContext old;

	if (c->closed)
		return;
	c->max_reads = max_reads;
	forget_events(c);
	old = MemoryContextSwitchTo(c->context);
	if (c->dial)
		proceed_dial(c);
	if (c->driving && !c->closed)
		drive(c, process);
	if (!c->closed && !c->open && ClockMonotonicMs() >= c->deadline)
		AmqpFail(c, "the connection could not be established in time");
	MemoryContextSwitchTo(old);
}

void
AmqpFlush(AmqpConnection *c)
{
	MemoryContext old;

	if (!c->driving || c->closed)
		return;
	old = MemoryContextSwitchTo(c->context);
	drive(c, flush);
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

const char *
AmqpProduct(const AmqpConnection *c)
{
	return c->product;
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
