/*
 * group.c
 *		Groups in memory: found by window and keys, closed in the order of time.
 *
 * States live in the arena of the group's window. An arena is shared by
 * windows that were opened one after the other while they are small, so that a
 * million windows of one group do not take a million memory contexts, and it is
 * freed as a whole with its last window, so that closing does not walk states.
 *
 * The heap knows when windows are over. Sessions grow at each record; the heap hears of it only when
 * one that has grown comes to the top.
 */
#include "postgres.h"

#include "executor/executor.h"
#include "port/pg_bitutils.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "core/compat.h"
#include "pipeline/group_internal.h"

/* An arena takes new windows until this many groups were made in it. */
#define ARENA_GROUPS 64

typedef struct GroupEntry
{
	WindowGroup *group;
	uint32		hash;
	char		status;
} GroupEntry;

typedef struct WindowEntry
{
	TimestampTz start;
	GroupWindow *window;
	char		status;
} WindowEntry;

static inline uint32
hash_time(TimestampTz time)
{
	return murmurhash32((uint32) ((uint64) time >> 32) * 31 + (uint32) time);
}

static bool same_group(struct grouptable_hash *table, const WindowGroup *a, const WindowGroup *b);

#define SH_PREFIX grouptable
#define SH_ELEMENT_TYPE GroupEntry
#define SH_KEY_TYPE WindowGroup *
#define SH_KEY group
#define SH_HASH_KEY(table, key) ((key)->hash)
#define SH_EQUAL(table, a, b) same_group(table, a, b)
#define SH_STORE_HASH
#define SH_GET_HASH(table, entry) ((entry)->hash)
#define SH_SCOPE static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

#define SH_PREFIX windowtable
#define SH_ELEMENT_TYPE WindowEntry
#define SH_KEY_TYPE TimestampTz
#define SH_KEY start
#define SH_HASH_KEY(table, key) hash_time(key)
#define SH_EQUAL(table, a, b) ((a) == (b))
#define SH_SCOPE static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

static inline bool
shares_windows(const GroupSet *set)
{
	return set->spec->kind == WINDOW_TUMBLE || set->spec->kind == WINDOW_HOP;
}

/* ---------------------------------------------------------------------------
 * The set
 * ---------------------------------------------------------------------------
 */

static int
compare_overs(const pairingheap_node *a, const pairingheap_node *b, void *arg)
{
	const GroupWindow *wa = pairingheap_const_container(GroupWindow, heap_node, a);
	const GroupWindow *wb = pairingheap_const_container(GroupWindow, heap_node, b);

	/* the heap keeps the greatest on top; ours is the earliest */
	if (wa->heap_over != wb->heap_over)
		return wa->heap_over < wb->heap_over ? 1 : -1;
	return wa->start < wb->start ? 1 : wa->start > wb->start ? -1 : 0;
}

GroupSet *
GroupSetCreate(GroupLayout *layout, const WindowSpec *spec, bool track_shown, TimestampTz closed)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "hybridiot groups", ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	GroupSet   *set = palloc0(sizeof(GroupSet));

	set->context = context;
	set->layout = layout;
	set->spec = spec;
	set->run = AggregateRunCreate(layout);
	set->track_shown = track_shown && spec->kind == WINDOW_SESSION;
	set->groups = grouptable_create(context, 1024, set);
	set->windows = windowtable_create(context, 16, NULL);
	set->by_over = pairingheap_allocate(compare_overs, NULL);
	dlist_init(&set->all);
	set->latest_over = DT_NOBEGIN;
	set->closed = closed;
	dlist_init(&set->changed);
	set->probe_keys = palloc0(sizeof(NullableDatum) * Max(layout->nkeys, 1));
	set->probe.keys = set->probe_keys;
	MemoryContextSwitchTo(old);
	return set;
}

int64
GroupSetCount(const GroupSet *set)
{
	return set->ngroups;
}

int64
GroupSetCountUntil(const GroupSet *set, TimestampTz boundary)
{
	int64		n = 0;
	dlist_iter	iter;

	dlist_foreach(iter, (dlist_head *) &set->all)
	{
		GroupWindow *window = dlist_container(GroupWindow, node, iter.cur);

		if ((set->spec->kind == WINDOW_SLIDE ? SliceGoneAt(set, window) : window->over) <= boundary)
			n += window->ngroups;
	}
	return n;
}

int64
GroupSetNextId(GroupSet *set)
{
	return ++set->last_id;
}

void
GroupSetLastId(GroupSet *set, int64 id)
{
	set->last_id = Max(set->last_id, id);
}

/* ---- windows ---- */

/* The window on top of the heap, which then knows when it is over. */
static GroupWindow *
earliest(GroupSet *set)
{
	while (!pairingheap_is_empty(set->by_over))
	{
		GroupWindow *window = pairingheap_container(GroupWindow, heap_node, pairingheap_first(set->by_over));

		if (window->heap_over == window->over)
			return window;
		(void) pairingheap_remove_first(set->by_over);
		window->heap_over = window->over;
		pairingheap_add(set->by_over, &window->heap_node);
	}
	return NULL;
}

bool
GroupSetNextOver(GroupSet *set, TimestampTz *over)
{
	GroupWindow *window = earliest(set);

	/* Slices outlive the windows that they make. */
	if (window == NULL || window->over > set->latest_over)
		return false;
	*over = window->over;
	return true;
}

TimestampTz
GroupSetLatestOver(const GroupSet *set)
{
	return set->latest_over;
}

GroupWindow *
GroupSetPop(GroupSet *set, TimestampTz boundary)
{
	GroupWindow *window = earliest(set);

	if (window == NULL || window->over > boundary)
		return NULL;
	(void) pairingheap_remove_first(set->by_over);
	window->in_heap = false;
	return window;
}

void
GroupSetPutBack(GroupSet *set, GroupWindow *window)
{
	Assert(!window->in_heap);
	window->heap_over = window->over;
	pairingheap_add(set->by_over, &window->heap_node);
	window->in_heap = true;
}

void
GroupWindowLeaveHeap(GroupSet *set, GroupWindow *window)
{
	if (window->in_heap)
		pairingheap_remove(set->by_over, &window->heap_node);
	window->in_heap = false;
}

void
GroupWindowMoved(GroupSet *set, GroupWindow *window)
{
	GroupWindowLeaveHeap(set, window);
	GroupSetPutBack(set, window);
}

GroupArena *
GroupNewArena(GroupSet *set)
{
	MemoryContext old = MemoryContextSwitchTo(set->context);
	GroupArena *arena = palloc0(sizeof(GroupArena));

	arena->econtext = CreateStandaloneExprContext();
	MemoryContextSwitchTo(old);
	return arena;
}

static GroupArena *
arena_for_new_window(GroupSet *set)
{
	if (set->arena == NULL || set->arena->ngroups >= ARENA_GROUPS)
		set->arena = GroupNewArena(set);
	set->arena->nwindows++;
	return set->arena;
}

static void
leave_arena(GroupSet *set, GroupArena *arena)
{
	if (--arena->nwindows > 0)
		return;
	if (set->arena == arena)
		set->arena = NULL;
	FreeExprContext(arena->econtext, true);
	pfree(arena);
}

GroupWindow *
GroupNewWindow(GroupSet *set, TimestampTz start, TimestampTz end, TimestampTz over)
{
	GroupWindow *window = MemoryContextAllocZero(set->context, sizeof(GroupWindow));

	window->start = start;
	window->end = end;
	window->over = over;
	window->arena = arena_for_new_window(set);
	dlist_init(&window->groups);
	dlist_push_tail(&set->all, &window->node);
	GroupSetPutBack(set, window);
	return window;
}

/* The tumbling or hopping window that begins here. */
static GroupWindow *
find_window(GroupSet *set, TimestampTz start)
{
	WindowEntry *entry;
	bool		found;

	if (set->last_window != NULL && set->last_window->start == start)
		return set->last_window;

	entry = windowtable_insert(set->windows, start, &found);
	if (!found)
	{
		TimestampTz end = start + set->spec->size;

		entry->window = NULL;
		entry->window = GroupNewWindow(set, start, end, end);
		set->latest_over = Max(set->latest_over, end);
	}
	set->last_window = entry->window;
	return entry->window;
}

static void
remove_window(GroupSet *set, GroupWindow *window)
{
	GroupWindowLeaveHeap(set, window);
	if (shares_windows(set))
		windowtable_delete(set->windows, window->start);
	if (set->last_window == window)
		set->last_window = NULL;
	dlist_delete(&window->node);
	leave_arena(set, window->arena);
	pfree(window);
	if (dlist_is_empty(&set->all))
		set->latest_over = DT_NOBEGIN;
}

/* ---- groups ---- */

bool
GroupSameKeys(GroupSet *set, const NullableDatum *a, const NullableDatum *b)
{
	for (int i = 0; i < set->layout->nkeys; i++)
	{
		GroupKey   *key = &set->layout->keys[i];

		if (a[i].isnull != b[i].isnull)
			return false;
		if (!a[i].isnull &&
			!DatumGetBool(FunctionCall2Coll(&key->equal, key->collation, a[i].value, b[i].value)))
			return false;
	}
	return true;
}

static bool
same_group(struct grouptable_hash *table, const WindowGroup *a, const WindowGroup *b)
{
	return a->window == b->window && GroupSameKeys(table->private_data, a->keys, b->keys);
}

void
GroupProbe(GroupSet *set, const Datum *values, const bool *isnull)
{
	for (int i = 0; i < set->layout->nkeys; i++)
	{
		set->probe_keys[i].value = values[set->layout->keys[i].column];
		set->probe_keys[i].isnull = isnull[set->layout->keys[i].column];
	}
}

void
GroupCopyProbe(GroupSet *set, NullableDatum *keys)
{
	for (int i = 0; i < set->layout->nkeys; i++)
	{
		GroupKey   *key = &set->layout->keys[i];

		keys[i].isnull = set->probe_keys[i].isnull;
		keys[i].value = keys[i].isnull ? (Datum) 0 :
			AggregateCopyToStay(set->probe_keys[i].value, key->byval, key->len);
	}
}

uint32
GroupHashProbe(GroupSet *set)
{
	uint32		hash = 0;

	for (int i = 0; i < set->layout->nkeys; i++)
	{
		GroupKey   *key = &set->layout->keys[i];

		hash = pg_rotate_left32(hash, 1);
		if (!set->probe_keys[i].isnull)
			hash ^= DatumGetUInt32(FunctionCall1Coll(&key->hash, key->collation, set->probe_keys[i].value));
	}
	return hash;
}

WindowGroup *
GroupNew(GroupSet *set, GroupWindow *window, NullableDatum *keys)
{
	GroupLayout *layout = set->layout;
	MemoryContext old = MemoryContextSwitchTo(window->arena->econtext->ecxt_per_tuple_memory);
	Size		own_keys = keys == NULL ? MAXALIGN(layout->nkeys * sizeof(NullableDatum)) : 0;
	Size		header = MAXALIGN(sizeof(WindowGroup)) + own_keys;
	WindowGroup *group = palloc0(header + layout->naggregates * sizeof(GroupValue));

	group->window = window;
	group->keys = keys;
	if (keys == NULL)
	{
		group->keys = (NullableDatum *) ((char *) group + MAXALIGN(sizeof(WindowGroup)));
		GroupCopyProbe(set, group->keys);
	}
	group->values = (GroupValue *) ((char *) group + header);
	AggregateBegin(set->run, group->values);
	dlist_push_tail(&window->groups, &group->node);
	window->ngroups++;
	window->arena->ngroups++;
	MemoryContextSwitchTo(old);
	return group;
}

/* The group of the probe's keys, which have this hash, in this window; made if it is not there. */
static WindowGroup *
find_group(GroupSet *set, GroupWindow *window, uint32 hash, bool *created)
{
	GroupEntry *entry;
	bool		found;

	set->probe.hash = murmurhash32(hash ^ hash_time(window->start));
	set->probe.window = window;

	entry = grouptable_lookup_hash(set->groups, &set->probe, set->probe.hash);
	*created = entry == NULL;
	if (entry == NULL)
	{
		WindowGroup *group = GroupNew(set, window, NULL);

		group->hash = set->probe.hash;
		entry = grouptable_insert_hash(set->groups, group, group->hash, &found);
		Assert(!found);
		entry->group = group;
		set->ngroups++;
	}
	return entry->group;
}

bool
GroupSetRemove(GroupSet *set, WindowGroup *group)
{
	GroupWindow *window = group->window;

	while (group->shown != NULL)
	{
		GroupShown *next = group->shown->next;

		pfree(group->shown);
		group->shown = next;
	}
	if (group->timeline != NULL)
		TimelineRemove(set, group);
	else
		grouptable_delete(set->groups, group);
	set->ngroups--;
	dlist_delete(&group->node);
	if (group->changed)
		dlist_delete(&group->changed_node);
	if (--window->ngroups > 0)
		return false;
	remove_window(set, window);
	return true;
}

dlist_head *
GroupSetChanged(GroupSet *set)
{
	return &set->changed;
}

void
GroupSetMarkStored(GroupSet *set, WindowGroup *group)
{
	if (group->changed)
		dlist_delete(&group->changed_node);
	group->changed = false;
	group->stored = true;
}

void
GroupTouch(GroupSet *set, WindowGroup *group)
{
	if (!group->changed)
	{
		group->changed = true;
		dlist_push_tail(&set->changed, &group->changed_node);
	}
	group->written = false;
}

void
GroupGone(GroupSet *set, const WindowGroup *group)
{
	if (!group->stored)
		return;
	if (set->ngone == set->gone_size)
	{
		set->gone_size = Max(64, set->gone_size * 2);
		set->gone = set->gone == NULL ?
			MemoryContextAlloc(set->context, sizeof(int64) * set->gone_size) :
			repalloc_huge(set->gone, sizeof(int64) * set->gone_size);
	}
	set->gone[set->ngone++] = group->id;
}

int64 *
GroupSetTakeGone(GroupSet *set, int *n)
{
	int64	   *ids = palloc_extended(sizeof(int64) * Max(set->ngone, 1), MCXT_ALLOC_HUGE);

	*n = set->ngone;
	if (set->ngone > 0)
		memcpy(ids, set->gone, sizeof(int64) * set->ngone);
	set->ngone = 0;
	return ids;
}

void
GroupSetAdvance(GroupSet *set, TimestampTz first, TimestampTz last, const Datum *values, const bool *isnull)
{
	MemoryContext old = MemoryContextSwitchTo(set->run->temporary);
	uint32		hash;

	GroupProbe(set, values, isnull);
	hash = GroupHashProbe(set);
	for (TimestampTz start = first; start <= last; start += set->spec->advance)
	{
		bool		created;
		WindowGroup *group = find_group(set, find_window(set, start), hash, &created);

		if (created)
			group->id = ++set->last_id;
		GroupTouch(set, group);
		group->records++;
		AggregateAdvance(set->run, group->values, group->window->arena->econtext, values, isnull);
	}
	MemoryContextSwitchTo(old);
	MemoryContextReset(set->run->temporary);
}

/* ---------------------------------------------------------------------------
 * Final, stored
 * ---------------------------------------------------------------------------
 */

Datum
GroupFinal(GroupSet *set, WindowGroup *group, int number, bool *isnull)
{
	return AggregateFinal(set->run, group->values, group->window->arena->econtext, number, isnull);
}

bytea *
GroupEncodeKeys(GroupSet *set, const WindowGroup *group)
{
	return AggregateEncodeKeys(set->run, group->keys);
}

/* Behind a session's states stands where its records came from. */
bytea *
GroupEncodeState(GroupSet *set, const WindowGroup *group)
{
	bytea	   *state = AggregateEncode(set->run, group->values, group->window->arena->econtext);
	int32		part = group->part;
	Size		size = VARSIZE(state);

	if (set->spec->kind != WINDOW_SESSION)
		return state;
	state = repalloc(state, size + sizeof(part));
	memcpy((char *) state + size, &part, sizeof(part));
	SET_VARSIZE(state, size + sizeof(part));
	return state;
}

static void
load_part(GroupSet *set, WindowGroup *group, bytea *state)
{
	int32		part = GROUP_PARTS;

	if (set->spec->kind == WINDOW_SESSION && VARSIZE_ANY_EXHDR(state) >= sizeof(part))
		memcpy(&part, (char *) VARDATA_ANY(state) + VARSIZE_ANY_EXHDR(state) - sizeof(part), sizeof(part));
	group->part = part;
}

/* A group of the probe's keys with these bounds, which is not there yet; NULL: it is. */
static WindowGroup *
group_to_load(GroupSet *set, TimestampTz start, TimestampTz end)
{
	GroupWindow *window;
	WindowGroup *group;
	bool		created;

	if (!shares_windows(set))
		return TimelineLoad(set, start, end);
	window = find_window(set, start);
	if (window->end != end)
		return NULL;
	group = find_group(set, window, GroupHashProbe(set), &created);
	return created ? group : NULL;
}

void
GroupSetLoad(GroupSet *set, TimestampTz start, TimestampTz end, int64 id, int64 records,
			 bytea *keys, bytea *state)
{
	MemoryContext old = MemoryContextSwitchTo(set->run->temporary);
	WindowGroup *group;

	AggregateDecodeKeys(set->run, keys, set->probe_keys);
	group = group_to_load(set, start, end);
	if (group == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("stored state of a window is broken")));
	group->id = id;
	group->records = records;
	group->stored = true;
	GroupSetLastId(set, id);
	AggregateDecode(set->run, state, group->values, group->window->arena->econtext);
	load_part(set, group, state);
	MemoryContextSwitchTo(old);
	MemoryContextReset(set->run->temporary);
}
