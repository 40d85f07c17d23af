/*
 * held.c
 *		Changes of commands whose rows somebody has locked: they are set aside, so that those of others are
 *		written, and tried again.
 *
 * Only a superuser can lock a row of the journal. The first change that meets such a lock costs all of them
 * a lock_timeout. From then on, until no row is held, locks are looked for before anything is written. What
 * belongs to a command that is set aside waits with it: its events, and the settlement of its reply.
 */
#include "postgres.h"

#include "command/worker.h"
#include "core/catalog_command.h"
#include "core/clock.h"

#define HELD_RETRY_MS 250

static dlist_head held = DLIST_STATIC_INIT(held);
static int64 retry_ms = 0;		/* monotonic; they are tried again then */

bool
HeldIsEmpty(void)
{
	return dlist_is_empty(&held);
}

bool
HeldIs(const pg_uuid_t *id)
{
	Command    *command = CommandFind(id);

	return command && command->held;
}

int64
HeldDue(void)
{
	return dlist_is_empty(&held) ? PG_INT64_MAX : retry_ms;
}

void
HeldTryAgain(int64 now)
{
	dlist_mutable_iter iter;

	if (now < HeldDue())
		return;
	dlist_foreach_modify(iter, &held)
	{
		Command    *command = dlist_container(Command, dirty_node, iter.cur);

		command->held = false;
		dlist_delete(&command->dirty_node);
		dlist_push_tail(&Changes, &command->dirty_node);
	}
	ChangesUrgent = true;
}

void
HeldMark(void)
{
	dlist_iter	iter;
	pg_uuid_t  *ids;
	pg_uuid_t  *locked;
	int			n = 0;

	dlist_foreach(iter, &Changes)
		n++;
	if (n == 0)
		return;
	ids = palloc(sizeof(pg_uuid_t) * n);
	locked = palloc(sizeof(pg_uuid_t) * n);
	n = 0;
	dlist_foreach(iter, &Changes)
		ids[n++] = dlist_container(Command, dirty_node, iter.cur)->id;
	n = CatalogHeldCommands(ids, n, locked);
	for (int i = 0; i < n; i++)
		CommandFind(&locked[i])->held = true;
}

void
HeldUnmark(void)
{
	dlist_iter	iter;

	dlist_foreach(iter, &Changes)
		dlist_container(Command, dirty_node, iter.cur)->held = false;
}

void
HeldSetAside(void)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &Changes)
	{
		Command    *command = dlist_container(Command, dirty_node, iter.cur);

		if (!command->held)
			continue;

		/* The evidence that it was loaded for has been weighed, and is not kept. */
		command->temporary = false;
		dlist_delete(&command->dirty_node);
		dlist_push_tail(&held, &command->dirty_node);
	}
	retry_ms = ClockMonotonicMs() + HELD_RETRY_MS;
}
