/*
 * amqp_link.c
 *		Links of an AMQP connection, and the messages on them: commands out, replies in.
 *
 * Whether a delivery may have reached the peer when a connection is lost is
 * decided by counting bytes: everything proton had produced before the
 * delivery was handed over comes before its first byte in the stream. If not
 * more than that was written to the socket, nothing of it was.
 */
#include "postgres.h"

#include <proton/condition.h>
#include <proton/disposition.h>
#include <proton/session.h>
#include <proton/terminus.h>

#include "utils/memutils.h"

#include "transport/amqp_internal.h"

/* Output kept in proton at most, before the socket is asked to take it. */
#define MAX_UNWRITTEN (64 * 1024)
/* What a message over the limit may bring besides before the connection is given up. */
#define MAX_DROPPED (UINT64CONST(64) * 1024 * 1024)

static void
forget_outgoing(Outgoing *out)
{
	dlist_delete(&out->node);
	out->link->in_flight--;
	if (!out->link->connection->broken)
		pn_delivery_set_context(out->delivery, NULL);
	pfree(out);
}

/* Deliveries of a link (NULL: of all) get no outcome any more. */
void
AmqpLoseOutgoing(AmqpConnection *c, AmqpLink *link)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &c->outgoing)
	{
		Outgoing   *out = dlist_container(Outgoing, node, iter.cur);
		AmqpEvent  *event;

		if (link && out->link != link)
			continue;
		event = AmqpAddEvent(c, AMQP_EVENT_LOST);
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

static void
end_link(AmqpLink *link)
{
	pn_link_set_context(link->link, NULL);
	pn_link_close(link->link);
	pn_link_free(link->link);
}

/* Its memory goes when all events are taken. */
static void
bury_link(AmqpConnection *c, AmqpLink *link)
{
	link->link = NULL;
	link->open = false;
	dlist_delete(&link->node);
	dlist_push_tail(&c->dead, &link->node);
}

/* ---- what proton tells ---- */

void
AmqpLinkEnded(AmqpConnection *c, AmqpLink *link, pn_condition_t *condition)
{
	AmqpEvent  *event;
	const char *text = AmqpConditionText(c, condition);

	AmqpLoseOutgoing(c, link);
	forget_incoming(c, link);
	event = AmqpAddEvent(c, AMQP_EVENT_LINK_CLOSED);
	event->link = link;
	event->text = text ? text : AmqpEventText(c, "the peer ended the link");
	end_link(link);
	bury_link(c, link);
}

void
AmqpLinkOpened(AmqpConnection *c, AmqpLink *link)
{
	pn_terminus_t *terminus = link->sender ? pn_link_remote_target(link->link) :
		pn_link_remote_source(link->link);

	/* An attach without terminus is a refusal; the detach that says why follows. */
	if (pn_terminus_get_type(terminus) == PN_UNSPECIFIED)
		return;
	link->open = true;
	AmqpAddEvent(c, AMQP_EVENT_LINK_OPEN)->link = link;
	if (!link->sender)
		pn_link_flow(link->link, link->window);
}

static void
tell_sent(AmqpConnection *c, Outgoing *out)
{
	AmqpEvent  *event = AmqpAddEvent(c, AMQP_EVENT_SENT);

	out->sent = true;
	event->link = out->link;
	memcpy(event->tag, out->tag, AMQP_TAG_LEN);
}

void
AmqpOutgoingUpdated(AmqpConnection *c, pn_delivery_t *delivery)
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
				condition = AmqpEventText(c, pn_condition_get_name(why));
				description = AmqpEventText(c, pn_condition_get_description(why));
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
	event = AmqpAddEvent(c, AMQP_EVENT_OUTCOME);
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
	Incoming   *in;
	AmqpEvent  *event;
	char	   *copy;

	/* Proton counts credit, and does not insist on it. */
	if (link->unsettled >= link->window)
	{
		AmqpFail(c, "the peer sent more messages than it had credit for");
		return;
	}
	in = MemoryContextAlloc(c->context, sizeof(Incoming));
	copy = MemoryContextAllocHuge(c->event_context, link->message.len + 1);
	memcpy(copy, link->message.data, link->message.len);
	in->token = ++c->next_token;
	in->delivery = delivery;
	in->link = link;
	dlist_push_tail(&c->incoming, &in->node);
	link->unsettled++;

	event = AmqpAddEvent(c, AMQP_EVENT_MESSAGE);
	event->link = link;
	event->bytes = copy;
	event->len = link->message.len;
	event->oversize = link->dropped > 0;
	event->token = in->token;
	resetStringInfo(&link->message);
	link->dropped = 0;
	pn_link_advance(link->link);
}

void
AmqpIncomingReadable(AmqpConnection *c, AmqpLink *link, pn_delivery_t *delivery)
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
		top_up(link);
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
		AmqpFail(c, "the peer sent a message without end");
		return;
	}
	if (!pn_delivery_partial(delivery))
		message_complete(c, link, delivery);
}

/* All that proton had is written: so are the messages it has taken. */
void
AmqpMarkSent(AmqpConnection *c)
{
	dlist_iter	iter;

	dlist_foreach(iter, &c->outgoing)
	{
		Outgoing   *out = dlist_container(Outgoing, node, iter.cur);

		if (!out->sent && !pn_delivery_buffered(out->delivery))
			tell_sent(c, out);
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
	link->connection = c;
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
	/* The peer was faster; the event that says so is on its way. */
	if (link->link == NULL)
		return;
	AmqpLoseOutgoing(c, link);
	forget_incoming(c, link);
	if (!c->broken)
		end_link(link);

	/* Events that were not taken yet may name it. */
	bury_link(c, link);
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
		AmqpFlush(c);
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
