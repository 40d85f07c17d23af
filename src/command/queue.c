/*
 * queue.c
 *		The order in which commands leave: fair between their senders.
 *
 * Credit is per link, so what waits for credit waits at its link. But whoever queues a
 * hundred thousand commands, for one device or for as many, must not make others wait for
 * them. So the commands that wait lie in lanes, one for each sender and link, and the lanes of a sender on a
 * connection are its share. Shares are served in turn, one command each, as long as there is
 * credit and the sender's window is open (pace.c); so are the lanes of a share. Within a lane it is first come, first served.
 *
 * What lies here is a window on the journal's queue, which each sender has to himself
 * and which is read only so far (journal.c).
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "command/worker.h"
#include "core/clock.h"

/* Queued commands kept in memory: of all senders, and of each at least. */
#define MAX_QUEUED 10000
#define MIN_QUEUED 200

/* Commands of one sender that wait for one link. */
struct Lane
{
	dlist_node	node;			/* in share->lanes, least recently served first */
	dlist_node	link_node;		/* in link->lanes */
	Link	   *link;
	Share	   *share;
	dlist_head	queue;			/* commands, in order; never empty */
	int			queued;
};

/* What a sender has waiting on one connection. */
struct Share
{
	dlist_node	node;			/* in connection->shares */
	Sender	   *sender;
	dlist_head	lanes;			/* never empty */
};

dlist_head	Senders = DLIST_STATIC_INIT(Senders);
static HTAB *senders_by_name = NULL;
static int	waiting_senders = 0;	/* with queued > 0 */

/* ---- senders ---- */

/* Known for as long as the worker lives: there are not more of them than roles. */
Sender *
SenderFind(const char *name)
{
	Sender	   *sender;
	bool		found;
	char		key[NAMEDATALEN] = "";

	if (senders_by_name == NULL)
	{
		HASHCTL		control = {.keysize = NAMEDATALEN,.entrysize = sizeof(Sender)};

		senders_by_name = hash_create("hybridiot senders", 64, &control, HASH_ELEM | HASH_STRINGS);
	}
	strlcpy(key, name, NAMEDATALEN);
	sender = hash_search(senders_by_name, key, HASH_ENTER, &found);
	if (!found)
	{
		memset((char *) sender + NAMEDATALEN, 0, sizeof(Sender) - NAMEDATALEN);
		dlist_push_tail(&Senders, &sender->node);
	}
	return sender;
}

/* How many queued commands of one sender are kept in memory. */
static int
limit_per_sender(void)
{
	return Max(MIN_QUEUED, MAX_QUEUED / Max(1, waiting_senders));
}

int
QueueRoom(const Sender *sender)
{
	return Max(0, limit_per_sender() - sender->queued);
}

bool
QueueIsLow(const Sender *sender)
{
	return sender->queued < limit_per_sender() / 2;
}

bool
QueueIsShared(void)
{
	dlist_iter	iter;
	int			n = 0;
	int64		now;

	if (waiting_senders > 1)
		return true;
	now = ClockMonotonicMs();
	dlist_foreach(iter, &Senders)
	{
		Sender	   *sender = dlist_container(Sender, node, iter.cur);

		n += sender->queued > 0 || (sender->served_ms != 0 && now - sender->served_ms < 1000);
		if (n > 1)
			return true;
	}
	return false;
}

/* ---- waiting ---- */

static Lane *
lane_for(Link *link, Sender *sender)
{
	Connection *c = link->connection;
	dlist_iter	iter;
	Lane	   *lane;
	Share	   *share = NULL;

	dlist_foreach(iter, &link->lanes)
	{
		lane = dlist_container(Lane, link_node, iter.cur);
		if (lane->share->sender == sender)
			return lane;
	}
	dlist_foreach(iter, &c->shares)
	{
		share = dlist_container(Share, node, iter.cur);
		if (share->sender == sender)
			break;
		share = NULL;
	}
	if (share == NULL)
	{
		share = MemoryContextAllocZero(c->context, sizeof(Share));
		share->sender = sender;
		dlist_init(&share->lanes);
		dlist_push_tail(&c->shares, &share->node);
	}
	lane = MemoryContextAllocZero(c->context, sizeof(Lane));
	lane->link = link;
	lane->share = share;
	dlist_init(&lane->queue);
	dlist_push_tail(&share->lanes, &lane->node);
	dlist_push_tail(&link->lanes, &lane->link_node);
	return lane;
}

void
QueueAdd(Command *command, Link *link, bool first)
{
	Lane	   *lane;

	Assert(!command->waits);
	command->waits = true;
	if (command->sender->queued++ == 0)
		waiting_senders++;
	if (link == NULL)
		return;
	lane = lane_for(link, command->sender);
	if (first)
		dlist_push_head(&lane->queue, &command->queue_node);
	else
		dlist_push_tail(&lane->queue, &command->queue_node);
	lane->queued++;
	link->queued++;
	command->lane = lane;
}

void
QueueRemove(Command *command)
{
	Lane	   *lane = command->lane;
	Share	   *share;

	if (!command->waits)
		return;
	command->waits = false;
	if (--command->sender->queued == 0)
		waiting_senders--;
	if (lane == NULL)
		return;
	command->sender->served_ms = ClockMonotonicMs();
	command->lane = NULL;
	dlist_delete(&command->queue_node);
	lane->link->queued--;
	lane->queued--;

	share = lane->share;
	dlist_delete(&lane->node);
	if (lane->queued > 0)
	{
		dlist_push_tail(&share->lanes, &lane->node);
		return;
	}
	dlist_delete(&lane->link_node);
	pfree(lane);
	if (!dlist_is_empty(&share->lanes))
		return;
	dlist_delete(&share->node);
	pfree(share);
}

Link *
QueueLink(const Command *command)
{
	return command->lane ? command->lane->link : NULL;
}

/* ---- who leaves next ---- */

/* A lane with something that may leave. */
typedef struct Source
{
	Link	   *link;
	dlist_head *queue;
	dlist_node *next;			/* NULL: nothing more */
} Source;

/* A share's lanes, while it is its turn again and again. */
typedef struct Turn
{
	Source	   *sources;
	int			n;
	int			next;
	int			room;			/* so many more may leave */
} Turn;

/* The first command at or behind a place in a lane that may leave now; NULL if there is none. */
static dlist_node *
ready(dlist_head *queue, dlist_node *at, int64 now)
{
	for (;; at = dlist_next_node(queue, at))
	{
		Command    *command = dlist_container(Command, queue_node, at);

		/* What the journal does not know yet comes first. */
		if (command->not_before_ms <= now && !command->dirty)
			return at;
		if (!dlist_has_next(queue, at))
			return NULL;
	}
}

/* The lanes of a share whose links take something now. */
static void
collect(Connection *c, Share *share, int64 now, uint64 round, Turn *turn)
{
	dlist_iter	iter;
	int			nlanes = 0;

	turn->n = turn->next = 0;
	if ((turn->room = PaceRoom(c, share->sender)) == 0)
		return;
	dlist_foreach(iter, &share->lanes)
		nlanes++;
	turn->sources = palloc(sizeof(Source) * nlanes);
	dlist_foreach(iter, &share->lanes)
	{
		Lane	   *lane = dlist_container(Lane, node, iter.cur);
		Link	   *link = lane->link;
		dlist_node *first;

		if (link->round != round)
		{
			link->round = round;
			link->room = link->amqp ? AmqpSendable(c->amqp, link->amqp) : 0;
		}
		if (link->room > 0 && (first = ready(&lane->queue, dlist_head_node(&lane->queue), now)) != NULL)
			turn->sources[turn->n++] = (Source) {link, &lane->queue, first};
	}
}

/* The next command of a share; NULL: no more can leave. */
static Command *
take(Turn *turn, int64 now)
{
	while (turn->n > 0 && turn->room > 0)
	{
		Source	   *source = &turn->sources[turn->next % turn->n];
		Command    *command;

		if (source->next == NULL || source->link->room == 0)
		{
			*source = turn->sources[--turn->n];
			continue;
		}
		command = dlist_container(Command, queue_node, source->next);
		source->next = dlist_has_next(source->queue, source->next) ?
			ready(source->queue, dlist_next_node(source->queue, source->next), now) : NULL;
		source->link->room--;
		turn->room--;
		turn->next++;
		return command;
	}
	return NULL;
}

int
QueueSendable(Command **commands, int max)
{
	static uint64 round = 0;
	static uint32 first = 0;	/* whose turn it is */
	dlist_iter	ci;
	dlist_iter	si;
	int64		now = ClockMonotonicMs();
	Turn	   *turns;
	int			nturns = 0;
	int			n = 0;
	int			before;

	dlist_foreach(ci, &Connections)
		dlist_foreach(si, &dlist_container(Connection, node, ci.cur)->shares)
			nturns++;
	if (nturns == 0)
		return 0;
	turns = palloc(sizeof(Turn) * nturns);
	nturns = 0;
	round++;
	dlist_foreach(ci, &Connections)
	{
		Connection *c = dlist_container(Connection, node, ci.cur);

		if (!c->replies || c->leaving)
			continue;
		dlist_foreach(si, &c->shares)
		{
			collect(c, dlist_container(Share, node, si.cur), now, round, &turns[nturns]);
			nturns += turns[nturns].n > 0;
		}
	}
	if (nturns == 0)
		return 0;
	do
	{
		before = n;
		for (int i = 0; i < nturns && n < max; i++)
		{
			int			whose = (first + i) % nturns;
			Command    *command = take(&turns[whose], now);

			if (command)
				commands[n++] = command;
			if (n == max)
				first = whose + 1;
		}
	} while (n > before && n < max);
	return n;
}
