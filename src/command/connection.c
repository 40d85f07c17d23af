/*
 * connection.c
 *		The AMQP worker's connections: one per server, its links, and what the peers tell.
 *
 * A connection that is lost is tried again after 100 ms to 30 s, over the list
 * of hosts. A link to one device's address is opened when a command needs it. When too many are open, one that is
 * idle is given up; if there is none, those that get no credit take turns, so devices that are away do not keep
 * the others from their commands.
 * Nothing here opens a transaction but the reload (what it reads: server.c).
 */
#include "postgres.h"

#include <limits.h>

#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/fmgrprotos.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/numeric.h"
#include "utils/timestamp.h"

#include "command/worker.h"
#include "core/clock.h"
#include "core/compat.h"
#include "core/options.h"
#include "core/worker.h"

#define BACKOFF_FIRST_MS 100
#define BACKOFF_MAX_MS 30000
#define REPLY_CREDIT 500
#define MAX_OPEN_LINKS 1000
/* How long what is in flight may take before a changed configuration is put into force. */
#define LEAVE_MS 5000
/* How often a link is tried again for which there was no room. */
#define LINK_RETRY_MS 100
/* How long one that has no credit keeps its place while others want it. */
#define LINK_TURN_MS 1000
#define PUBLISH_MS 200
/*
 * What is read in one turn, in pieces of 8 kB. All that came is weighed and written in the same turn, so
 * while there are several senders it is little, and none waits long for what comes for another.
 */
#define MANY_READS 16
#define FEW_READS 1

dlist_head	Connections = DLIST_STATIC_INIT(Connections);

static int64 next_publish_ms = 0;

/* ---- states ---- */

static void
set_state(Connection *c, ConnectionState state)
{
	if (c->stat.state != state || c->stat.since == 0)
	{
		c->stat.state = state;
		c->stat.since = GetCurrentTimestamp();
	}
	c->stat_dirty = true;
}

static void
set_error(Connection *c, const char *text)
{
	strlcpy(c->stat.last_error, text, sizeof(c->stat.last_error));
	c->stat_dirty = true;
	SlotSetError(MyWorkerSlot, text);
}

static void
link_gone(Link *link)
{
	if (link->amqp)
		link->connection->nlinks--;
	link->amqp = NULL;
}

/* The connection is gone, or is to go: its links are, and it is tried again later. */
static void
disconnect(Connection *c, const char *why)
{
	dlist_iter	iter;
	AmqpCounters counters;

	if (c->amqp)
	{
		AmqpCount(c->amqp, &counters);
		c->past.bytes_in += counters.bytes_in;
		c->past.bytes_out += counters.bytes_out;

		/* To refuse us, a host may open the connection first, or even the session. */
		c->next_target = (AmqpTarget(c->amqp) + (c->replies ? 0 : 1)) % c->config.ntargets;
		JournalForgetConnection(c);
		AmqpFree(c->amqp);
		c->amqp = NULL;
	}
	c->open = c->replies = false;
	c->reply_link = NULL;
	RemovalsDisconnected(c);
	dlist_foreach(iter, &c->links)
		link_gone(dlist_container(Link, node, iter.cur));
	c->retry_ms = ClockMonotonicMs() + BackoffNext(&c->backoff_ms, BACKOFF_FIRST_MS, BACKOFF_MAX_MS);
	set_state(c, CONNECTION_RETRYING);
	if (why)
	{
		ereport(LOG,
				(errmsg("connection to AMQP server \"%s\" ended: %s", c->name, why)));
		set_error(c, why);
	}
}

static void
open_reply_link(Connection *c)
{
	c->reply_link = AmqpOpenReceiver(c->amqp, c->reply_address, c->peer == PEER_BROKER, REPLY_CREDIT);
}

/* ---- commands on their way ---- */

char *
ConnectionLinkAddress(const Connection *c, const char *device)
{
	return c->link_address ?
		AddressFillIn(c->link_address, "{device}", AddressEncode(device)) : pstrdup("");
}

/* The link to a device; NULL if its address is longer than any peer takes. */
static Link *
link_for(Connection *c, const char *device)
{
	char	   *address = ConnectionLinkAddress(c, device);
	Link	   *link;
	bool		found;

	if (strlen(address) >= MAX_ADDRESS)
	{
		set_error(c, "the address of a device is too long");
		return NULL;
	}
	link = hash_search(c->links_by_address, address, HASH_ENTER, &found);
	if (!found)
	{
		link->connection = c;
		link->amqp = NULL;
		link->opened_ms = 0;
		link->retry_ms = 0;
		link->backoff_ms = 0;
		link->queued = 0;
		link->round = 0;
		dlist_init(&link->lanes);
		dlist_push_tail(&c->links, &link->node);
	}
	return link;
}

/*
 * Too many links: close one that nothing needs, or else the one that has waited longest for credit. False
 * if there is none now.
 */
static bool
make_room(Connection *c, int64 now)
{
	dlist_iter	iter;
	Link	   *leaving = NULL;

	if (c->nlinks < MAX_OPEN_LINKS)
		return true;
	if (now < c->full_ms)
		return false;
	dlist_foreach(iter, &c->links)
	{
		Link	   *link = dlist_container(Link, node, iter.cur);

		/* One that the peer has not answered yet would come back as a link of the peer's own. */
		if (link->amqp == NULL || !AmqpLinkIsOpen(link->amqp) || AmqpLinkInFlight(link->amqp) > 0)
			continue;
		if (link->queued == 0)
		{
			leaving = link;
			break;
		}
		if (now - link->opened_ms >= LINK_TURN_MS && AmqpSendable(c->amqp, link->amqp) == 0 &&
			(leaving == NULL || link->opened_ms < leaving->opened_ms))
			leaving = link;
	}
	if (leaving == NULL)
	{
		c->full_ms = now + LINK_RETRY_MS;
		return false;
	}
	if (leaving->queued > 0)
		leaving->retry_ms = now + LINK_TURN_MS;
	AmqpCloseLink(c->amqp, leaving->amqp);
	link_gone(leaving);
	return true;
}

/* Open it if that makes sense now. */
static void
open_link(Link *link, int64 now)
{
	Connection *c = link->connection;

	if (link->amqp || !c->replies || c->leaving || link->retry_ms > now || !make_room(c, now))
		return;
	link->amqp = AmqpOpenSender(c->amqp, link->address[0] ? link->address : NULL,
								c->peer == PEER_BROKER);
	AmqpLinkSetOwner(link->amqp, link);
	link->opened_ms = now;
	c->nlinks++;
}

void
ConnectionEnqueue(Command *command, bool first)
{
	Link	   *link = command->connection ? link_for(command->connection, command->device) : NULL;

	QueueAdd(command, link, first);
	if (link)
		open_link(link, ClockMonotonicMs());
}

bool
ConnectionIsUp(const Command *command)
{
	Link	   *link = QueueLink(command);

	return link && link->amqp && AmqpLinkIsOpen(link->amqp);
}

/* Links that are neither open nor needed would pile up with the devices. */
static void
drop_link(Link *link)
{
	Connection *c = link->connection;

	dlist_delete(&link->node);
	hash_search(c->links_by_address, link->address, HASH_REMOVE, NULL);
}

static void
open_needed_links(Connection *c, int64 now)
{
	dlist_mutable_iter iter;

	c->next_link_ms = PG_INT64_MAX;
	dlist_foreach_modify(iter, &c->links)
	{
		Link	   *link = dlist_container(Link, node, iter.cur);

		if (link->amqp != NULL)
			continue;
		if (link->queued == 0 && link->retry_ms <= now)
		{
			drop_link(link);
			continue;
		}
		if (link->queued > 0)
			open_link(link, now);
		if (link->amqp == NULL)
			c->next_link_ms = Min(c->next_link_ms, Max(link->retry_ms, now + LINK_RETRY_MS));
	}
}

static AmqpProperty *
message_properties(Jsonb *json, int *n)
{
	AmqpProperty *properties;
	JsonbIterator *it;
	JsonbIteratorToken token;
	JsonbValue	value;

	*n = 0;
	if (json == NULL)
		return NULL;
	properties = palloc0(sizeof(AmqpProperty) * (JB_ROOT_COUNT(json) + 1));
	it = JsonbIteratorInit(&json->root);
	while ((token = JsonbIteratorNext(&it, &value, true)) != WJB_DONE)
	{
		AmqpProperty *p = &properties[*n];

		if (token == WJB_KEY)
		{
			char	   *name = pnstrdup(value.val.string.val, value.val.string.len);

			p->name = pg_server_to_any(name, strlen(name), PG_UTF8);
		}
		if (token != WJB_VALUE)
			continue;
		(*n)++;
		if (value.type == jbvBool)
		{
			p->kind = AMQP_PROPERTY_BOOL;
			p->value.boolean = value.val.boolean;
		}
		else if (value.type == jbvString)
		{
			char	   *s = pnstrdup(value.val.string.val, value.val.string.len);

			p->kind = AMQP_PROPERTY_STRING;
			p->value.string = pg_server_to_any(s, strlen(s), PG_UTF8);
		}
		else if (value.type == jbvNumeric)
		{
			char	   *s = DatumGetCString(DirectFunctionCall1(numeric_out,
																NumericGetDatum(value.val.numeric)));
			char	   *end;

			errno = 0;
			p->value.number = strtoll(s, &end, 10);
			p->kind = AMQP_PROPERTY_LONG;
			if (*end || errno)
			{
				p->kind = AMQP_PROPERTY_DOUBLE;
				p->value.real = strtod(s, NULL);
			}
		}
		else
			p->kind = AMQP_PROPERTY_NULL;
	}
	return properties;
}

static int64
unix_ms(TimestampTz at)
{
	return (at + (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * USECS_PER_DAY) / 1000;
}

static const char *
utf8(const char *text)
{
	return pg_server_to_any(text, strlen(text), PG_UTF8);
}

bool
ConnectionSend(Command *command)
{
	Connection *c = command->connection;
	Link	   *link = QueueLink(command);
	const CommandRequest *request = command->request;
	AmqpOutgoing message = {0};
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz expires_at = CommandExpiresAt(command, now);
	StringInfoData buf;

	if (!c->replies || link == NULL || link->amqp == NULL || AmqpSendable(c->amqp, link->amqp) == 0)
		return false;

	message.id = UuidText(&command->id);
	message.durable = command->nature.mode == MODE_STORE;
	message.priority = request->priority;

	/* Zero would mean for ever. */
	message.ttl_ms = (uint32) Max(1, (expires_at - now) / 1000);
	message.to = AddressFillIn(c->command_address, "{device}", AddressEncode(command->device));
	message.subject = utf8(request->command);
	message.reply_to = command->nature.one_way ? NULL : c->reply_address;
	message.creation_ms = unix_ms(request->queued_at);
	message.expiry_ms = unix_ms(expires_at);
	message.properties = message_properties(request->properties, &message.nproperties);
	RequestBody(request, &message.body, &message.body_len, &message.content_type);

	initStringInfo(&buf);
	AmqpEncode(&buf, &message);
	QueueRemove(command);
	command->offers++;
	command->nature.offered = true;
	AmqpSend(c->amqp, link->amqp, command->id.data, buf.data, buf.len);
	PaceSent(command);
	CommandForgetRequest(command);
	dlist_delete(&link->node);
	dlist_push_tail(&c->links, &link->node);
	return true;
}

/* ---- what the peers tell ---- */

static void
add_outcome_evidence(Connection *c, const AmqpEvent *event)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext, "hybridiot evidence",
												  ALLOCSET_SMALL_SIZES);
	Evidence   *evidence = MemoryContextAllocZero(context, sizeof(Evidence));

	evidence->context = context;
	memcpy(evidence->id.data, event->tag, UUID_LEN);
	evidence->peer = c->peer;
	evidence->outcome = event->outcome;
	if (event->condition)
		evidence->condition = MemoryContextStrdup(context, event->condition);
	if (event->text)
		evidence->description = MemoryContextStrdup(context, event->text);
	JournalAddEvidence(evidence);
}

static void
take_reply(Connection *c, const AmqpEvent *event)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext, "hybridiot evidence",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	Evidence   *evidence = palloc0(sizeof(Evidence));
	Reply	   *reply = &evidence->reply;
	Command    *command;

	evidence->context = context;
	evidence->is_reply = true;
	evidence->peer = c->peer;
	ReplyRead(event->bytes, event->len, event->oversize, reply);
	evidence->id = reply->id;
	MemoryContextSwitchTo(old);

	if (reply->has_id && RemovalTakeAnswer(c, &reply->id, event->bytes, event->len))
		;						/* the broker's own */
	else if (!reply->has_id)
		JournalAddEvent(NULL, NULL, "a reply that names no command came");
	else if ((command = CommandFind(&reply->id)) != NULL)
		CommandReply(command, reply);
	else
	{
		JournalAddEvidence(evidence);
		context = NULL;
	}
	JournalSettleLater(c, event->token, event->oversize ? AMQP_REJECTED : AMQP_ACCEPTED, reply->has_id ? &reply->id : NULL);
	if (context)
		MemoryContextDelete(context);
}

static void close_amqp(Connection *c);

static void
link_closed(Connection *c, const AmqpEvent *event)
{
	Link	   *link = AmqpLinkOwner(event->link);

	if (event->link == c->reply_link)
	{
		/* Without replies nothing may leave; the connection starts over, with its back-off. */
		char	   *why = psprintf("the link for replies ended: %s", event->text);

		c->reply_link = NULL;
		close_amqp(c);
		disconnect(c, why);
		return;
	}
	set_error(c, psprintf("link to \"%s\": %s", link->address, event->text));
	link_gone(link);
	link->retry_ms = ClockMonotonicMs() +
		BackoffNext(&link->backoff_ms, BACKOFF_FIRST_MS, BACKOFF_MAX_MS);
	c->next_link_ms = Min(c->next_link_ms, link->retry_ms);
}

static void
link_opened(Connection *c, const AmqpEvent *event)
{
	if (event->link != c->reply_link)
	{
		((Link *) AmqpLinkOwner(event->link))->backoff_ms = 0;
		return;
	}
	c->replies = true;
	c->next_link_ms = 0;		/* those that waited for this are opened at once */
	c->backoff_ms = 0;
	set_state(c, CONNECTION_UP);
	ereport(LOG, (errmsg("connected to AMQP server \"%s\"", c->name)));
}

/* False: the connection is gone. */
static bool
take_event(Connection *c, AmqpEvent *event)
{
	pg_uuid_t	id;
	Command    *command;

	memcpy(id.data, event->tag, UUID_LEN);
	event->condition = PeerText(event->condition);
	event->text = PeerText(event->text);
	if (RemovalTakeEvent(c, event))
		return true;
	switch (event->kind)
	{
		case AMQP_EVENT_OPEN:
			c->open = true;
			c->up_by_ms = ClockMonotonicMs() + c->config.connect_timeout_ms;
			open_reply_link(c);
			return true;
		case AMQP_EVENT_CLOSED:
			disconnect(c, event->text);
			return false;
		case AMQP_EVENT_LINK_OPEN:
			link_opened(c, event);
			return true;
		case AMQP_EVENT_LINK_CLOSED:
			link_closed(c, event);
			return c->amqp != NULL;
		case AMQP_EVENT_SENT:
			if ((command = CommandFind(&id)) != NULL)
				CommandSent(command);
			return true;
		case AMQP_EVENT_OUTCOME:
			if ((command = CommandFind(&id)) != NULL)
			{
				PaceOutcome(command);
				CommandOutcome(command, event->outcome, event->condition, event->text);
			}
			else
				add_outcome_evidence(c, event);
			return true;
		case AMQP_EVENT_LOST:
			if ((command = CommandFind(&id)) != NULL)
			{
				PaceForget(command);
				CommandLost(command, event->transferred);
			}
			return true;
		case AMQP_EVENT_MESSAGE:
			take_reply(c, event);
			return true;
	}
	pg_unreachable();
}

static void
process(Connection *c, int64 now)
{
	AmqpEvent	event;

	if (c->amqp == NULL)
	{
		if (now < c->retry_ms || c->config.ntargets == 0)
			return;
		set_state(c, c->stat.since == 0 ? CONNECTION_CONNECTING : c->stat.state);
		c->amqp = AmqpConnect(&c->config, c->next_target);
	}
	if (c->replies)
		open_needed_links(c, now);
	AmqpProcess(c->amqp, QueueIsShared() ? FEW_READS : MANY_READS);
	while (AmqpNextEvent(c->amqp, &event))
		if (!take_event(c, &event))
			return;
	RemovalsSend(c);
	if (c->open && !c->replies && now >= c->up_by_ms)
	{
		close_amqp(c);
		disconnect(c, "the peer did not open the link for replies in time");
	}
}

/* ---- coming and going ---- */

Connection *
ConnectionFind(Oid server)
{
	dlist_iter	iter;

	dlist_foreach(iter, &Connections)
	{
		Connection *c = dlist_container(Connection, node, iter.cur);

		if (c->server == server && !c->leaving)
			return c;
	}
	return NULL;
}

/* Close politely; what is in flight becomes LOST. */
static void
close_amqp(Connection *c)
{
	dlist_iter	iter;
	AmqpEvent	event;

	if (c->amqp == NULL)
		return;
	dlist_foreach(iter, &c->links)
	{
		Link	   *link = dlist_container(Link, node, iter.cur);

		if (link->amqp)
			AmqpCloseLink(c->amqp, link->amqp);
		link_gone(link);
	}
	while (AmqpNextEvent(c->amqp, &event))
		if (!take_event(c, &event))
			return;
}

/* Another connection for the commands of one (NULL: for those of its server that have none). */
static void
move_commands(Connection *from, Connection *to, Oid server)
{
	HASH_SEQ_STATUS all;
	CommandEntry *entry;

	hash_seq_init(&all, Commands);
	while ((entry = hash_seq_search(&all)) != NULL)
	{
		Command    *command = entry->command;

		if (command->connection != from || command->server != server)
			continue;
		QueueRemove(command);
		command->connection = to;
		if (to)
			command->nature.peer = to->peer;
		if (command->result.state == COMMAND_QUEUED)
			ConnectionEnqueue(command, false);
	}
}

static void
remove_connection(Connection *c)
{
	close_amqp(c);
	RemovalsDisconnected(c);
	JournalForgetConnection(c);
	AmqpFree(c->amqp);
	c->amqp = NULL;
	dlist_delete(&c->node);

	/* Its commands go to the successor, if there is one. */
	move_commands(c, ConnectionFind(c->server), c->server);
	if (ConnectionFind(c->server) == NULL)
		ConnStatForget(c->server);
	PacesForget(c);
	hash_destroy(c->links_by_address);
	MemoryContextDelete(c->context);
}

static void
add_connection(Connection *c)
{
	HASHCTL		control = {
		.keysize = MAX_ADDRESS,.entrysize = sizeof(Link),.hcxt = c->context
	};

	c->links_by_address = hash_create("hybridiot links", 64, &control, HASH_ELEM | HASH_STRINGS | HASH_CONTEXT);
	dlist_init(&c->links);
	dlist_init(&c->shares);
	dlist_init(&c->paces);
	c->stat.server = c->server;
	c->wait_position = -1;
	c->seen = true;
	set_state(c, CONNECTION_CONNECTING);
	dlist_push_tail(&Connections, &c->node);
	move_commands(NULL, c, c->server);
}

/* A server that cannot even be configured: shown with its error, tried at the next reload. */
static void
show_broken(Oid server, const char *why)
{
	ConnectionStat stat = {
		.server = server,.state = CONNECTION_RETRYING,.since = GetCurrentTimestamp()
	};

	strlcpy(stat.last_error, why, sizeof(stat.last_error));
	ConnStatPublish(&stat);
	SlotSetError(MyWorkerSlot, why);
}

static void
reload_server(Oid server)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext, "hybridiot connection",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext outside = CurrentMemoryContext;
	Connection *fresh = NULL;
	Connection *present = ConnectionFind(server);
	char	   *problem = NULL;

	PG_TRY();
	{
		WorkerBegin("reading the configuration of AMQP servers");
		fresh = ServerRead(server, context);
		WorkerCommit();
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		WorkerAbort();
		ereport(LOG, (errmsg("AMQP server cannot be used: %s", error->message)));
		problem = error->message;
		fresh = NULL;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(outside);

	if (fresh && present && strcmp(fresh->fingerprint, present->fingerprint) == 0)
	{
		present->seen = true;
		MemoryContextDelete(context);
		return;
	}
	if (present)
	{
		present->leaving = true;
		present->leave_by_ms = ClockMonotonicMs() + LEAVE_MS;
	}
	if (fresh)
		add_connection(fresh);
	else
	{
		show_broken(server, problem);
		MemoryContextDelete(context);
	}
}

bool
ConnectionsReload(void)
{
	CatalogScope scope;
	Oid		   *servers;
	int			n;
	dlist_iter	iter;
	MemoryContext outside = CurrentMemoryContext;
	MemoryContext context = AllocSetContextCreate(TopMemoryContext, "hybridiot reload",
												  ALLOCSET_SMALL_SIZES);

	/*
	 * We are woken by the commit that changed something, a moment before its invalidation
	 * messages come; what the caches hold may be what was.
	 */
	InvalidateSystemCaches();
	WorkerBegin("reading the list of AMQP servers");
	CatalogEnter(&scope);
	n = CatalogServers(AMQP_WRAPPER, &servers, context);
	CatalogLeave(&scope);
	WorkerCommit();
	MemoryContextSwitchTo(outside);

	dlist_foreach(iter, &Connections)
		dlist_container(Connection, node, iter.cur)->seen = false;
	for (int i = 0; i < n; i++)
		reload_server(servers[i]);
	dlist_foreach(iter, &Connections)
	{
		Connection *c = dlist_container(Connection, node, iter.cur);

		if (!c->seen && !c->leaving)
		{
			c->leaving = true;
			c->leave_by_ms = 0;
		}
	}
	MemoryContextDelete(context);
	return n > 0;
}

/* ---- all of them ---- */

static bool
may_leave(Connection *c, int64 now)
{
	AmqpCounters counters;

	if (c->amqp == NULL || now >= c->leave_by_ms)
		return true;
	AmqpCount(c->amqp, &counters);
	return counters.in_flight == 0;
}

void
ConnectionsProcess(void)
{
	dlist_mutable_iter iter;
	int64		now = ClockMonotonicMs();

	dlist_foreach_modify(iter, &Connections)
	{
		Connection *c = dlist_container(Connection, node, iter.cur);

		if (c->leaving && may_leave(c, now))
			remove_connection(c);
		else
			process(c, now);
	}
}

void
ConnectionsFlush(void)
{
	dlist_iter	iter;

	dlist_foreach(iter, &Connections)
	{
		Connection *c = dlist_container(Connection, node, iter.cur);

		if (c->amqp)
			AmqpFlush(c->amqp);
	}
}

void
ConnectionsPublish(void)
{
	int64		now = ClockMonotonicMs();
	dlist_iter	iter;
	bool		urgent = false;

	dlist_foreach(iter, &Connections)
		urgent |= dlist_container(Connection, node, iter.cur)->stat_dirty;
	if (!urgent && now < next_publish_ms)
		return;
	next_publish_ms = now + PUBLISH_MS;

	dlist_foreach(iter, &Connections)
	{
		Connection *c = dlist_container(Connection, node, iter.cur);
		AmqpCounters counters = {0};

		if (c->leaving)
			continue;
		if (c->amqp)
			AmqpCount(c->amqp, &counters);
		c->stat.sessions = counters.sessions;
		c->stat.links = counters.links;
		c->stat.bytes_in = c->past.bytes_in + counters.bytes_in;
		c->stat.bytes_out = c->past.bytes_out + counters.bytes_out;
		c->stat.credit = counters.credit;
		c->stat.in_flight = counters.in_flight;
		ConnStatPublish(&c->stat);
		c->stat_dirty = false;
	}
}

long
ConnectionsTimeout(void)
{
	int64		now = ClockMonotonicMs();
	long		timeout = LONG_MAX;
	dlist_iter	iter;

	dlist_foreach(iter, &Connections)
	{
		Connection *c = dlist_container(Connection, node, iter.cur);

		if (c->amqp)
		{
			timeout = Min(timeout, AmqpTimeout(c->amqp));
			if (c->open && !c->replies)
				timeout = Min(timeout, (long) Max(0, c->up_by_ms - now));
		}
		else
			timeout = Min(timeout, (long) Max(0, c->retry_ms - now));
		if (c->replies && c->next_link_ms < PG_INT64_MAX)
			timeout = Min(timeout, (long) Max(0, c->next_link_ms - now));
		if (c->leaving)
			timeout = Min(timeout, 50);
	}
	return timeout;
}
