/*
 * pace.c
 *		How many commands of a sender may be on their way to a peer while others send, too.
 *
 * What a peer has taken it works off in order, so whoever comes later waits for all of it, however fair
 * the order was in which it left. So each sender has a window on each connection: commands that were handed
 * over and have no outcome yet. It follows the delay from handing over to outcome, as TCP Vegas does
 * (Brakmo, O'Malley, Peterson, SIGCOMM 1994): the quickest outcome lately tells how long the way is, and what
 * takes longer than twice that has waited in a queue. Each outcome widens the window by one or
 * narrows it by a half; so it doubles or halves in the time of one delay. Whoever sends alone has no window.
 *
 * A device may be slow, or never tell. So a command counts only as long as it may have waited in a queue;
 * what lasts longer takes nobody's place and says nothing about the peer. Hence a window
 * always opens again, and no outcome is needed for that.
 */
#include "postgres.h"

#include <limits.h>

#include "command/worker.h"
#include "core/clock.h"

#define MIN_WINDOW 8
#define MAX_WINDOW 500
/* How long a command counts: several times the way, and this at least. */
#define PATIENCE_WAYS 4
#define MIN_PATIENCE_US 50000
/* The quickest outcome is that of the present and the last period; a way may become longer. */
#define PERIOD_US 5000000

/* What a sender has on its way to a peer. */
struct Pace
{
	dlist_node	node;			/* in connection->paces */
	Connection *connection;
	Sender	   *sender;
	dlist_head	on_way;			/* commands, the first to leave first */
	int			count;
	double		window;
};

static int64
quickest(const Connection *c)
{
	if (c->quickest_us[0] == 0 || c->quickest_us[1] == 0)
		return Max(c->quickest_us[0], c->quickest_us[1]);
	return Min(c->quickest_us[0], c->quickest_us[1]);
}

static void
note_delay(Connection *c, int64 delay, int64 now)
{
	if (now - c->quickest_since_us >= PERIOD_US)
	{
		c->quickest_us[1] = c->quickest_us[0];
		c->quickest_us[0] = 0;
		c->quickest_since_us = now;
	}
	if (c->quickest_us[0] == 0 || delay < c->quickest_us[0])
		c->quickest_us[0] = Max(1, delay);
}

static int64
patience(const Connection *c)
{
	return Max(MIN_PATIENCE_US, PATIENCE_WAYS * quickest(c));
}

static Pace *
pace_of(Connection *c, const Sender *sender)
{
	dlist_iter	iter;

	dlist_foreach(iter, &c->paces)
	{
		Pace	   *pace = dlist_container(Pace, node, iter.cur);

		if (pace->sender == sender)
			return pace;
	}
	return NULL;
}

void
PaceForget(Command *command)
{
	if (command->pace == NULL)
		return;
	dlist_delete(&command->pace_node);
	command->pace->count--;
	command->pace = NULL;
}

/* What has lasted too long does not count any more. */
static void
drop_slow(Pace *pace)
{
	int64		before = ClockMonotonicUs() - patience(pace->connection);

	while (pace->count > 0)
	{
		Command    *command = dlist_container(Command, pace_node, dlist_head_node(&pace->on_way));

		if (command->left_us > before)
			return;
		PaceForget(command);
	}
}

int
PaceRoom(Connection *c, const Sender *sender)
{
	Pace	   *pace;

	if (!QueueIsShared())
		return INT_MAX;
	if ((pace = pace_of(c, sender)) == NULL)
		return MIN_WINDOW;
	drop_slow(pace);
	return Max(0, (int) pace->window - pace->count);
}

void
PaceSent(Command *command)
{
	Connection *c = command->connection;
	Pace	   *pace = pace_of(c, command->sender);

	if (pace == NULL)
	{
		pace = MemoryContextAllocZero(c->context, sizeof(Pace));
		pace->connection = c;
		pace->sender = command->sender;
		pace->window = MIN_WINDOW;
		dlist_init(&pace->on_way);
		dlist_push_tail(&c->paces, &pace->node);
	}
	PaceForget(command);
	command->pace = pace;
	command->left_us = ClockMonotonicUs();
	dlist_push_tail(&pace->on_way, &command->pace_node);
	pace->count++;
}

void
PaceOutcome(Command *command)
{
	Pace	   *pace = command->pace;
	int64		now = ClockMonotonicUs();
	int64		delay = now - command->left_us;
	bool		needed;

	if (pace == NULL)
		return;
	needed = pace->count * 2 >= pace->window;
	PaceForget(command);
	note_delay(pace->connection, delay, now);
	if (delay > 2 * quickest(pace->connection))
		pace->window = Max(MIN_WINDOW, pace->window - 0.5);
	else if (needed)
		pace->window = Min(MAX_WINDOW, pace->window + 1);
}

void
PacesForget(Connection *c)
{
	dlist_iter	iter;

	dlist_foreach(iter, &c->paces)
	{
		Pace	   *pace = dlist_container(Pace, node, iter.cur);

		while (pace->count > 0)
			PaceForget(dlist_container(Command, pace_node, dlist_head_node(&pace->on_way)));
	}
}

long
PacesTimeout(void)
{
	dlist_iter	ci;
	dlist_iter	pi;
	int64		due = PG_INT64_MAX;

	if (!QueueIsShared())
		return LONG_MAX;
	dlist_foreach(ci, &Connections)
	{
		Connection *c = dlist_container(Connection, node, ci.cur);

		dlist_foreach(pi, &c->paces)
		{
			Pace	   *pace = dlist_container(Pace, node, pi.cur);

			if (pace->sender->queued > 0 && pace->count >= (int) pace->window)
				due = Min(due, dlist_container(Command, pace_node, dlist_head_node(&pace->on_way))->left_us + patience(c));
		}
	}
	if (due == PG_INT64_MAX)
		return LONG_MAX;
	return (long) Max(0, (due - ClockMonotonicUs()) / 1000 + 1);
}
