/*
 * removal.c
 *		Cancel by removal: a command that waits in a queue of ActiveMQ Artemis is taken
 *		out again, through the broker's management address.
 *
 * The broker is known by the product that it names when the connection is opened. The
 * request names the queue and the command's message id; the answer comes to our reply
 * address and says how many were removed. One means that no device will ever get it.
 * Everything else (none: a device holds it, or has had it; a refusal; no answer in time; a
 * peer that has no such address) is too late.
 *
 * An answer is known by the request's id, which is random and was told to
 * nobody but the broker, and the answer must come through that server; so no device can give it. An answer that comes after the caller
 * was told `too late' still counts: it is evidence.
 */
#include "postgres.h"

#include <limits.h>

#include "utils/memutils.h"

#include "command/worker.h"
#include "core/clock.h"

#define PRODUCT "apache-activemq-artemis"
#define MANAGEMENT_ADDRESS "activemq.management"
/* How long the caller waits: less than his own patience in call.c (GRACE_MS). */
#define ANSWER_MS 3000
/* How long a later answer is still understood. */
#define FORGET_MS 60000

typedef struct Removal
{
	dlist_node	node;			/* in removals */
	pg_uuid_t	request;		/* its message id */
	pg_uuid_t	command;
	Oid			server;			/* an answer must come from it */
	Connection *connection;		/* NULL: it has been sent, or never will be */
	List	   *slots;			/* whoever waits; in TopMemoryContext */
	int64		answer_ms;		/* monotonic */
	int64		forget_ms;
} Removal;

static dlist_head removals = DLIST_STATIC_INIT(removals);

/* Callers are told that it is too late, and the command's events why. */
static void
give_up(Removal *removal, const char *why)
{
	ListCell   *lc;

	if (removal->slots == NIL)
		return;
	JournalAddEvent(&removal->command, NULL, psprintf("too late to cancel: %s", why));
	foreach(lc, removal->slots)
		CallReply(lfirst(lc), 0, "too_late", strlen("too_late"));
	list_free(removal->slots);
	removal->slots = NIL;
}

/* What was loaded only to be removed goes again. */
static void
forget(Removal *removal)
{
	Command    *command = CommandFind(&removal->command);

	dlist_delete(&removal->node);
	if (command && !RemovalIsUnderWay(&command->id))
		CommandForgetIfSettled(command);
	list_free(removal->slots);
	pfree(removal);
}

/* It was never sent, so no answer will come. */
static void
drop(Removal *removal, const char *why)
{
	give_up(removal, why);
	forget(removal);
}

bool
RemovalIsUnderWay(const pg_uuid_t *command)
{
	dlist_iter	iter;

	dlist_foreach(iter, &removals)
		if (memcmp(&dlist_container(Removal, node, iter.cur)->command, command, UUID_LEN) == 0)
			return true;
	return false;
}

/* ---- asking ---- */

/* The last part of a fully qualified name ("address::queue") is the queue. */
static const char *
queue_name(const char *address)
{
	const char *queue = strstr(address, "::");

	return queue ? queue + 2 : address;
}

static void
send_request(Connection *c, Removal *removal, Command *command)
{
	const char *body;
	AmqpProperty properties[] = {
		{.name = "_AMQ_ResourceName",.kind = AMQP_PROPERTY_STRING},
		{.name = "_AMQ_OperationName",.kind = AMQP_PROPERTY_STRING}
	};
	AmqpOutgoing message = {.priority = -1,.ttl_ms = ANSWER_MS};
	StringInfoData buf;

	body = psprintf("[\"AMQUserID='ID:%s'\"]", UuidText(&command->id));
	properties[0].value.string = psprintf("queue.%s", queue_name(ConnectionLinkAddress(c, command->device)));
	properties[1].value.string = "removeMessages";
	message.id = UuidText(&removal->request);
	message.to = MANAGEMENT_ADDRESS;
	message.reply_to = c->reply_address;
	message.properties = properties;
	message.nproperties = lengthof(properties);
	message.body = body;
	message.body_len = strlen(body);
	message.text_body = true;
	initStringInfo(&buf);
	AmqpEncode(&buf, &message);
	AmqpSend(c->amqp, c->management, removal->request.data, buf.data, buf.len);
	removal->connection = NULL;
}

void
RemovalsSend(Connection *c)
{
	dlist_mutable_iter iter;

	if (c->management == NULL || !AmqpLinkIsOpen(c->management))
		return;
	dlist_foreach_modify(iter, &removals)
	{
		Removal    *removal = dlist_container(Removal, node, iter.cur);
		Command    *command;

		if (removal->connection != c)
			continue;
		if (AmqpSendable(c->amqp, c->management) == 0)
			return;
		command = CommandFind(&removal->command);
		if (command == NULL || !StateMayBeRemoved(command->result.state, &command->nature))
			drop(removal, "its state has changed");
		else
			send_request(c, removal, command);
	}
}

bool
RemovalBegin(Command *command, CallSlot *slot)
{
	Connection *c = command->connection;
	dlist_iter	iter;
	Removal    *removal;
	MemoryContext old;
	pg_uuid_t	request;

	if (!StateMayBeRemoved(command->result.state, &command->nature) || !pg_strong_random(request.data, UUID_LEN))
		return false;
	if (c == NULL || c->leaving || !c->replies || strcmp(AmqpProduct(c->amqp), PRODUCT) != 0)
	{
		JournalAddEvent(&command->id, NULL, c && c->replies && !c->leaving ?
						"too late to cancel: the broker cannot give it back" :
						"too late to cancel: there is no connection to the broker");
		return false;
	}

	old = MemoryContextSwitchTo(TopMemoryContext);
	dlist_foreach(iter, &removals)
	{
		/* Two requests would contradict each other: the second finds nothing. */
		removal = dlist_container(Removal, node, iter.cur);
		if (memcmp(&removal->command, &command->id, UUID_LEN) == 0 &&
			removal->answer_ms > ClockMonotonicMs())
		{
			removal->slots = lappend(removal->slots, slot);
			MemoryContextSwitchTo(old);
			return true;
		}
	}
	removal = palloc0(sizeof(Removal));
	removal->request = request;
	removal->command = command->id;
	removal->server = c->server;
	removal->connection = c;
	removal->slots = list_make1(slot);
	removal->answer_ms = ClockMonotonicMs() + ANSWER_MS;
	removal->forget_ms = ClockMonotonicMs() + FORGET_MS;
	dlist_push_tail(&removals, &removal->node);
	MemoryContextSwitchTo(old);

	if (c->management == NULL)
		c->management = AmqpOpenSender(c->amqp, MANAGEMENT_ADDRESS, false);
	RemovalsSend(c);
	return true;
}

/* ---- hearing ---- */

static Removal *
find(const unsigned char *request)
{
	dlist_iter	iter;

	dlist_foreach(iter, &removals)
	{
		Removal    *removal = dlist_container(Removal, node, iter.cur);

		if (memcmp(removal->request.data, request, UUID_LEN) == 0)
			return removal;
	}
	return NULL;
}

/* What was answered, to the byte. */
static bool
says(const AmqpIncoming *message, const char *text)
{
	return message->body.len == (int) strlen(text) && memcmp(message->body.data, text, message->body.len) == 0;
}

/* The broker says that exactly one was removed. */
static void
removed(Removal *removal)
{
	Command    *command = CommandFind(&removal->command);
	CommandState next;
	const char *cause;

	if (command && StateAfterRemoval(command->result.state, &command->nature, &next, &cause))
	{
		ListCell   *lc;

		command->nature.removed = true;
		CommandChange(command, next, cause);
		foreach(lc, removal->slots)
			CommandTellCancelled(command, lfirst(lc));
		list_free(removal->slots);
		removal->slots = NIL;
	}
	else
		give_up(removal, "it was removed from the broker's queue, but something else is known of it");
	forget(removal);
}

bool
RemovalTakeAnswer(const Connection *c, const pg_uuid_t *request, const char *bytes, size_t len)
{
	Removal    *removal = find(request->data);
	AmqpIncoming message;

	if (removal == NULL || removal->server != c->server)
		return false;
	if (!AmqpDecode(bytes, len, &message) || message.body_kind != AMQP_BODY_TEXT)
		drop(removal, "the broker's answer cannot be read");
	else if (says(&message, "[1]"))
		removed(removal);
	else if (says(&message, "[0]"))
		drop(removal, "it is not in the broker's queue, or a device holds it");
	else
		drop(removal, psprintf("the broker answered %s", PeerText(message.body.data)));
	return true;
}

static void
drop_all(Connection *c, const char *why)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &removals)
	{
		Removal    *removal = dlist_container(Removal, node, iter.cur);

		if (removal->connection == c)
			drop(removal, why);
	}
}

bool
RemovalTakeEvent(Connection *c, const AmqpEvent *event)
{
	Removal    *removal;

	if (c->management == NULL || event->link != c->management)
		return false;
	removal = find(event->tag);
	switch (event->kind)
	{
		case AMQP_EVENT_LINK_OPEN:
			RemovalsSend(c);
			break;
		case AMQP_EVENT_LINK_CLOSED:
			c->management = NULL;
			drop_all(c, psprintf("the broker does not let us manage its queues: %s", event->text));
			break;
		case AMQP_EVENT_OUTCOME:
			if (removal && event->outcome != AMQP_ACCEPTED)
				drop(removal, psprintf("the broker refused: %s", event->text ? event->text : "no reason"));
			break;
		case AMQP_EVENT_LOST:
			/* It may have been done; the answer waits in the queue for replies then. */
			if (removal)
				give_up(removal, "the connection was lost before the broker answered");
			break;
		case AMQP_EVENT_OPEN:
		case AMQP_EVENT_CLOSED:
		case AMQP_EVENT_SENT:
		case AMQP_EVENT_MESSAGE:
			break;
	}
	return true;
}

void
RemovalsDisconnected(Connection *c)
{
	c->management = NULL;
	drop_all(c, "the connection was lost");
}

void
RemovalsForgetSlot(CallSlot *slot)
{
	dlist_iter	iter;

	dlist_foreach(iter, &removals)
	{
		Removal    *removal = dlist_container(Removal, node, iter.cur);

		removal->slots = list_delete_ptr(removal->slots, slot);
	}
}

void
RemovalsExpire(void)
{
	int64		now = ClockMonotonicMs();
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &removals)
	{
		Removal    *removal = dlist_container(Removal, node, iter.cur);

		if (now >= removal->answer_ms)
		{
			if (removal->connection)
				drop(removal, "the broker took no request in time");
			else
			{
				give_up(removal, "the broker did not answer in time");
				if (now >= removal->forget_ms)
					forget(removal);
			}
		}
	}
}

long
RemovalsTimeout(void)
{
	int64		now = ClockMonotonicMs();
	long		timeout = LONG_MAX;
	dlist_iter	iter;

	dlist_foreach(iter, &removals)
	{
		Removal    *removal = dlist_container(Removal, node, iter.cur);

		timeout = Min(timeout, (long) Max(0, (removal->slots ? removal->answer_ms : removal->forget_ms) - now));
	}
	return timeout;
}
