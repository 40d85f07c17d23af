/*
 * timeline.c
 *		Groups of one key in the order of time: sessions, and slices of sliding windows.
 *
 * A session is a group with a window of its own, which grows and merges. Two sessions merge iff a record lies within
 * the gap of both (windows.md section 1).
 *
 * Sliding windows of size s are anchored at records: one ends at each record's time t, [t - s, t]; one begins just
 * behind it, [t + 1, t + 1 + s], if any record lies in it. Kept are slices: the states of all records of a
 * key at one time. A window is put together from its slices when it is written, so a record costs one transition, however many windows
 * hold it. A record that is late for some windows and not for others goes to a slice of its own, which counts from a certain end on.
 *
 * The first slice of each time is on the heap, twice: as long as the window that ends at it is not written, then
 * until the window that begins behind it is over. Then nothing needs it, and all slices of its time go.
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "core/compat.h"
#include "pipeline/group_internal.h"

typedef struct TimelineEntry
{
	Timeline   *timeline;
	uint32		hash;
	char		status;
} TimelineEntry;

struct timelinetable_hash;
static bool same_timeline(struct timelinetable_hash *table, const Timeline *a, const Timeline *b);

#define SH_PREFIX timelinetable
#define SH_ELEMENT_TYPE TimelineEntry
#define SH_KEY_TYPE Timeline *
#define SH_KEY timeline
#define SH_HASH_KEY(table, key) ((key)->hash)
#define SH_EQUAL(table, a, b) same_timeline(table, a, b)
#define SH_STORE_HASH
#define SH_GET_HASH(table, entry) ((entry)->hash)
#define SH_SCOPE static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

static bool
same_timeline(struct timelinetable_hash *table, const Timeline *a, const Timeline *b)
{
	return GroupSameKeys(table->private_data, a->keys, b->keys);
}

/* ---------------------------------------------------------------------------
 * Timelines
 * ---------------------------------------------------------------------------
 */

/* The timeline of the probe's keys; NULL if there is none and none is to be made. */
static Timeline *
find_timeline(GroupSet *set, bool make)
{
	Timeline	probe = {.keys = set->probe_keys,.hash = murmurhash32(GroupHashProbe(set))};
	TimelineEntry *entry;
	bool		found;

	if (set->timelines == NULL)
		set->timelines = timelinetable_create(set->context, 1024, set);
	entry = timelinetable_lookup_hash(set->timelines, &probe, probe.hash);
	if (entry == NULL && make)
	{
		MemoryContext old = MemoryContextSwitchTo(set->context);
		Timeline   *timeline = palloc0(MAXALIGN(sizeof(Timeline)) + sizeof(NullableDatum) * set->layout->nkeys);

		timeline->hash = probe.hash;
		timeline->keys = (NullableDatum *) ((char *) timeline + MAXALIGN(sizeof(Timeline)));
		GroupCopyProbe(set, timeline->keys);
		timeline->size = 4;
		timeline->groups = palloc(sizeof(WindowGroup *) * timeline->size);
		MemoryContextSwitchTo(old);
		entry = timelinetable_insert_hash(set->timelines, timeline, timeline->hash, &found);
		Assert(!found);
		entry->timeline = timeline;
	}
	return entry == NULL ? NULL : entry->timeline;
}

static void
free_timeline(GroupSet *set, Timeline *timeline)
{
	timelinetable_delete(set->timelines, timeline);
	for (int i = 0; i < set->layout->nkeys; i++)
		if (!timeline->keys[i].isnull && !set->layout->keys[i].byval)
			pfree(DatumGetPointer(timeline->keys[i].value));
	pfree(timeline->groups);
	pfree(timeline);
}

static inline TimestampTz
start_of(const Timeline *timeline, int i)
{
	return timeline->groups[i]->window->start;
}

/* Number of groups that start no later than this. */
static int
count_until(const Timeline *timeline, TimestampTz time)
{
	int			low = 0;
	int			high = timeline->n;

	/* Records mostly come in order. */
	if (high > 0 && start_of(timeline, high - 1) <= time)
		return high;
	while (low < high)
	{
		int			middle = low + (high - low) / 2;

		if (start_of(timeline, middle) <= time)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

static void
insert_group(Timeline *timeline, int at, WindowGroup *group)
{
	if (timeline->n == timeline->size)
	{
		timeline->size *= 2;
		timeline->groups = repalloc_huge(timeline->groups, sizeof(WindowGroup *) * timeline->size);
	}
	memmove(&timeline->groups[at + 1], &timeline->groups[at], sizeof(WindowGroup *) * (timeline->n - at));
	timeline->groups[at] = group;
	timeline->n++;
	group->timeline = timeline;
}

static int
place_of(const Timeline *timeline, const WindowGroup *group)
{
	int			at = count_until(timeline, group->window->start) - 1;

	while (timeline->groups[at] != group)
		at--;
	return at;
}

void
TimelineRemove(GroupSet *set, WindowGroup *group)
{
	Timeline   *timeline = group->timeline;
	int			at = place_of(timeline, group);

	timeline->n--;
	memmove(&timeline->groups[at], &timeline->groups[at + 1], sizeof(WindowGroup *) * (timeline->n - at));
	if (timeline->n == 0)
		free_timeline(set, timeline);
}

/* A group of this timeline with a window of its own. */
static WindowGroup *
new_group(GroupSet *set, Timeline *timeline, TimestampTz start, TimestampTz end, TimestampTz over)
{
	WindowGroup *group = GroupNew(set, GroupNewWindow(set, start, end, over), timeline->keys);

	group->timeline = timeline;
	group->id = GroupSetNextId(set);
	set->ngroups++;
	return group;
}

/* ---------------------------------------------------------------------------
 * Sessions
 * ---------------------------------------------------------------------------
 */

/* Neighbours that overlap make the ends go out of order. */
static void
note_overlap(Timeline *timeline, int at)
{
	if ((at > 0 && timeline->groups[at - 1]->window->end >= start_of(timeline, at)) ||
		(at + 1 < timeline->n && start_of(timeline, at + 1) <= timeline->groups[at]->window->end))
		timeline->tangled = true;
}

static WindowGroup *
new_session(GroupSet *set, Timeline *timeline, TimestampTz start, TimestampTz end)
{
	TimestampTz over = WindowTimePlus(end, set->spec->over);
	WindowGroup *group = new_group(set, timeline, start, end, over);
	int			at = count_until(timeline, start);

	insert_group(timeline, at, group);
	set->latest_over = Max(set->latest_over, over);
	note_overlap(timeline, at);
	return group;
}

/* One session takes another in. */
static void
absorb(GroupSet *set, WindowGroup *into, WindowGroup *other)
{
	GroupShown *shown;

	into->window->start = Min(into->window->start, other->window->start);
	into->window->end = Max(into->window->end, other->window->end);
	into->records += other->records;
	if (other->part != into->part)
		into->part = GROUP_PARTS;
	AggregateCombine(set->run, into->values, into->window->arena->econtext, other->values, false);
	while ((shown = other->shown) != NULL)
	{
		other->shown = shown->next;
		shown->next = into->shown;
		into->shown = shown;
	}
	GroupGone(set, other);
	(void) GroupSetRemove(set, other);
}

/* Its start moved to the left. */
static void
restore_order(Timeline *timeline, WindowGroup *group)
{
	int			at = timeline->n - 1;

	while (timeline->groups[at] != group)
		at--;
	for (; at > 0 && start_of(timeline, at - 1) > start_of(timeline, at); at--)
	{
		timeline->groups[at] = timeline->groups[at - 1];
		timeline->groups[at - 1] = group;
	}
	note_overlap(timeline, at);
}

/*
 * Sessions of the timeline that a record connects: those it touches that are not over, neither for its partition nor closed. In the
 * order of their starts, the last first.
 */
static List *
touched_sessions(GroupSet *set, Timeline *timeline, const RowTime *when)
{
	TimestampTz from = WindowTimeMinus(when->time, set->spec->size);
	List	   *touched = NIL;

	for (int i = count_until(timeline, WindowTimePlus(when->time, set->spec->size)) - 1; i >= 0; i--)
	{
		GroupWindow *window = timeline->groups[i]->window;

		if (window->end < from)
		{
			if (!timeline->tangled)
				break;
			continue;
		}
		if (window->over > when->late && window->over > when->closed)
			touched = lappend(touched, timeline->groups[i]);
	}
	return touched;
}

/* Why a record that connects nothing may not open a session. */
static GroupVerdict
judge_alone(const Timeline *timeline, const RowTime *when, TimestampTz over)
{
	if (over <= when->late)
	{
		for (int i = 0; timeline != NULL && i < timeline->n; i++)
			if (timeline->groups[i]->part != when->part)
				return GROUP_LATE_ORDER;
		return GROUP_LATE;
	}
	return over <= when->closed ? GROUP_LATE_IDLE : GROUP_TAKEN;
}

static WindowGroup *
extend_session(GroupSet *set, Timeline *timeline, List *touched, TimestampTz time)
{
	WindowGroup *group = llast(touched);
	ListCell   *lc;

	foreach(lc, touched)
		if (lfirst(lc) != group)
			absorb(set, group, lfirst(lc));
	if (time < group->window->start)
		group->window->start = time;
	group->window->end = Max(group->window->end, time);
	group->window->over = WindowTimePlus(group->window->end, set->spec->over);
	set->latest_over = Max(set->latest_over, group->window->over);
	if (timeline->n > 1)
		restore_order(timeline, group);
	return group;
}

GroupVerdict
GroupSetAdvanceSession(GroupSet *set, const RowTime *when, const Datum *values, const bool *isnull)
{
	MemoryContext old = MemoryContextSwitchTo(set->run->temporary);
	GroupVerdict verdict = GROUP_TAKEN;
	Timeline   *timeline;
	List	   *touched;

	GroupProbe(set, values, isnull);
	timeline = find_timeline(set, false);
	touched = timeline == NULL ? NIL : touched_sessions(set, timeline, when);
	if (touched == NIL)
		verdict = judge_alone(timeline, when, WindowTimePlus(when->time, set->spec->over));
	if (verdict == GROUP_TAKEN)
	{
		WindowGroup *group;

		timeline = find_timeline(set, true);
		group = touched != NIL ? extend_session(set, timeline, touched, when->time) :
			new_session(set, timeline, when->time, when->time);
		GroupTouch(set, group);
		group->part = group->records == 0 || group->part == when->part ? when->part : GROUP_PARTS;
		group->records++;
		AggregateAdvance(set->run, group->values, group->window->arena->econtext, values, isnull);
	}
	MemoryContextSwitchTo(old);
	MemoryContextReset(set->run->temporary);
	return verdict;
}

void
GroupSetShown(GroupSet *set, WindowGroup *group)
{
	GroupShown *shown = group->shown;
	bool		there = group->written;

	if (!set->track_shown)
		return;
	/* A row that could not be written anew is still there as it was, unless its bounds have changed. */
	while (shown != NULL)
	{
		GroupShown *next = shown->next;

		there |= shown->start == group->window->start && shown->end == group->window->end;
		pfree(shown);
		shown = next;
	}
	group->shown = NULL;
	if (!there)
		return;
	group->shown = MemoryContextAlloc(set->context, sizeof(GroupShown));
	group->shown->start = group->window->start;
	group->shown->end = group->window->end;
	group->shown->next = NULL;
}

/* ---------------------------------------------------------------------------
 * Slices
 * ---------------------------------------------------------------------------
 */

/* The window that ends at this slice is not written yet, and the slice counts in it. */
static inline bool
ends_window(const GroupWindow *slice)
{
	return slice->end == slice->start;
}

/* First slice of this time, or where it would be. */
static int
first_at(const Timeline *timeline, TimestampTz time)
{
	return time == DT_NOBEGIN ? 0 : count_until(timeline, time - 1);
}

/* A window has appeared: the one that ends at the slice, or one that begins behind a neighbour or behind it. */
static void
raise_latest(GroupSet *set, const Timeline *timeline, const GroupWindow *slice)
{
	int64		size = set->spec->size;
	int			before = first_at(timeline, slice->start) - 1;
	int			behind = count_until(timeline, slice->start);

	if (ends_window(slice))
		set->latest_over = Max(set->latest_over, WindowTimePlus(slice->start, 1));
	if (before >= 0 && Max(slice->start, slice->end) <= WindowTimePlus(start_of(timeline, before), 1 + size))
		set->latest_over = Max(set->latest_over, WindowTimePlus(start_of(timeline, before), size + 2));
	if (behind < timeline->n && start_of(timeline, behind) <= WindowTimePlus(slice->start, 1 + size))
		set->latest_over = Max(set->latest_over, SliceGoneAt(set, slice));
}

/* The slice of this time that counts in windows from this end on; made if it is not there, or in any case. */
static WindowGroup *
find_slice(GroupSet *set, Timeline *timeline, TimestampTz time, TimestampTz from, bool make)
{
	int			first = first_at(timeline, time);
	int			at = first;
	WindowGroup *group;
	GroupWindow *slice;

	while (at < timeline->n && start_of(timeline, at) == time && timeline->groups[at]->window->end < from)
		at++;
	if (!make && at < timeline->n && start_of(timeline, at) == time && timeline->groups[at]->window->end == from)
		return timeline->groups[at];

	group = new_group(set, timeline, time, from, DT_NOEND);
	slice = group->window;
	slice->over = ends_window(slice) ? WindowTimePlus(time, 1) : SliceGoneAt(set, slice);
	GroupWindowMoved(set, slice);
	insert_group(timeline, at, group);
	/* Only the first of its time is on the heap. */
	if (at > first)
		GroupWindowLeaveHeap(set, slice);
	else if (at + 1 < timeline->n && start_of(timeline, at + 1) == time)
		GroupWindowLeaveHeap(set, timeline->groups[at + 1]->window);
	raise_latest(set, timeline, slice);
	return group;
}

GroupVerdict
GroupSetAdvanceSlice(GroupSet *set, const RowTime *when, TimestampTz *from, const Datum *values, const bool *isnull)
{
	TimestampTz late = Max(when->time, when->late);
	MemoryContext old;
	WindowGroup *group;

	*from = Max(late, when->closed);
	if (*from > WindowTimePlus(when->time, set->spec->size))
		*from = DT_NOEND;
	else
	{
		old = MemoryContextSwitchTo(set->run->temporary);
		GroupProbe(set, values, isnull);
		group = find_slice(set, find_timeline(set, true), when->time, *from, false);
		GroupTouch(set, group);
		group->records++;
		AggregateAdvance(set->run, group->values, group->window->arena->econtext, values, isnull);
		MemoryContextSwitchTo(old);
		MemoryContextReset(set->run->temporary);
	}
	return *from == when->time ? GROUP_TAKEN : late > when->time ? GROUP_LATE : GROUP_LATE_IDLE;
}

WindowGroup *
TimelineLoad(GroupSet *set, TimestampTz start, TimestampTz end)
{
	Timeline   *timeline = find_timeline(set, true);
	WindowGroup *group;

	if (set->spec->kind == WINDOW_SLIDE)
	{
		/* The window that ends there may be written already. */
		if (end == start && WindowTimePlus(start, 1) <= set->closed)
			end = start + 1;
		return find_slice(set, timeline, start, end, true);
	}
	group = new_session(set, timeline, start, end);
	/* The target may have a row of it; whether it has is known only when it is written again. */
	group->written = true;
	GroupSetShown(set, group);
	group->written = false;
	return group;
}

/* ---------------------------------------------------------------------------
 * Sliding windows
 * ---------------------------------------------------------------------------
 */

GroupArena *
SlideBegin(GroupSet *set)
{
	return set->spec->kind == WINDOW_SLIDE ? GroupNewArena(set) : NULL;
}

void
SlideEnd(GroupSet *set, GroupArena *arena)
{
	if (arena == NULL)
		return;
	FreeExprContext(arena->econtext, true);
	pfree(arena);
}

/* The window that begins here, put together; NULL if no record counts in it. */
static WindowGroup *
put_together(GroupSet *set, GroupArena *arena, Timeline *timeline, TimestampTz start)
{
	TimestampTz end = WindowTimePlus(start, set->spec->size);
	WindowGroup *group = NULL;
	MemoryContext old;

	for (int i = first_at(timeline, start); i < timeline->n && start_of(timeline, i) <= end; i++)
	{
		WindowGroup *slice = timeline->groups[i];

		CHECK_FOR_INTERRUPTS();
		if (slice->window->end > end)
			continue;
		if (group == NULL)
		{
			old = MemoryContextSwitchTo(arena->econtext->ecxt_per_tuple_memory);
			group = palloc0(sizeof(WindowGroup));
			group->window = palloc0(sizeof(GroupWindow));
			group->window->start = start;
			group->window->end = end;
			group->window->over = WindowTimePlus(end, set->spec->over);
			group->window->arena = arena;
			group->timeline = timeline;
			group->keys = timeline->keys;
			group->values = palloc(sizeof(GroupValue) * Max(set->layout->naggregates, 1));
			AggregateBegin(set->run, group->values);
			MemoryContextSwitchTo(old);
		}
		group->records += slice->records;
		old = MemoryContextSwitchTo(set->run->temporary);
		AggregateCombine(set->run, group->values, arena->econtext, slice->values, true);
		MemoryContextSwitchTo(old);
		MemoryContextReset(set->run->temporary);
	}
	return group;
}

/* Does a window end here that is not written? */
static bool
window_ends_at(const Timeline *timeline, TimestampTz time)
{
	int			at = first_at(timeline, time);

	return at < timeline->n && start_of(timeline, at) == time && ends_window(timeline->groups[at]->window);
}

static WindowGroup *
only_group(GroupWindow *slice)
{
	return dlist_container(WindowGroup, node, dlist_head_node(&slice->groups));
}

WindowGroup *
SlideClosing(GroupSet *set, GroupArena *arena, GroupWindow *slice, bool *first)
{
	Timeline   *timeline = only_group(slice)->timeline;

	*first = ends_window(slice) && !slice->first_taken;
	if (*first)
	{
		/* Its second window may be over before others that close in this step. */
		slice->first_taken = true;
		slice->over = SliceGoneAt(set, slice);
		GroupSetPutBack(set, slice);
		return put_together(set, arena, timeline, WindowTimeMinus(slice->start, set->spec->size));
	}
	/* The window behind it may be the one that ends at another record. */
	if (window_ends_at(timeline, WindowTimePlus(slice->start, 1 + set->spec->size)))
		return NULL;
	return put_together(set, arena, timeline, WindowTimePlus(slice->start, 1));
}

void
SlidePass(GroupSet *set, GroupWindow *slice, bool first)
{
	Timeline   *timeline = only_group(slice)->timeline;
	TimestampTz time = slice->start;
	int			at = first_at(timeline, time);

	if (first)
	{
		slice->first_taken = false;
		slice->end = time + 1;
		return;
	}
	for (int n = count_until(timeline, time) - at; n > 0; n--)
	{
		WindowGroup *group = timeline->groups[at];

		GroupGone(set, group);
		(void) GroupSetRemove(set, group);
	}
}

void
SlideLeave(GroupSet *set, GroupWindow *slice, bool first)
{
	if (first)
	{
		slice->first_taken = false;
		slice->over = WindowTimePlus(slice->start, 1);
		GroupWindowMoved(set, slice);
	}
	else if (!slice->in_heap)
		GroupSetPutBack(set, slice);
}

void
SlideTouch(GroupSet *set, GroupWindow *slice)
{
	GroupTouch(set, only_group(slice));
}

static int
compare_times(const void *a, const void *b)
{
	TimestampTz ta = *(const TimestampTz *) a;
	TimestampTz tb = *(const TimestampTz *) b;

	return ta < tb ? -1 : ta > tb;
}

/* Number of slices of the time of slice at. */
static int
same_time(const Timeline *timeline, int at)
{
	int			n = 1;

	while (at + n < timeline->n && start_of(timeline, at + n) == start_of(timeline, at))
		n++;
	return n;
}

static bool
any_changed(const Timeline *timeline, int from, int n)
{
	for (int i = from; i < from + n; i++)
		if (timeline->groups[i]->changed)
			return true;
	return false;
}

/*
 * Starts of the timeline's windows that hold changed slices, or begin behind one, and are not over at this boundary; in starts, which has
 * room for two a slice. Returns their number. One walk: a window is concerned iff the last changed slice before
 * its end, or the first one behind its start, lies in it.
 */
static int
changed_windows(GroupSet *set, const Timeline *timeline, TimestampTz boundary, TimestampTz *starts)
{
	int64		size = set->spec->size;
	TimestampTz last = DT_NOBEGIN;
	int			ahead = 0;
	int			count = 0;
	int			n;

	for (int at = 0; at < timeline->n; at += n)
	{
		const GroupWindow *slice = timeline->groups[at]->window;
		TimestampTz time = slice->start;
		bool		changed;

		n = same_time(timeline, at);
		changed = any_changed(timeline, at, n);
		if (changed)
			last = time;
		for (ahead = Max(ahead, at + n); ahead < timeline->n && !timeline->groups[ahead]->changed;)
			ahead++;
		if (ends_window(slice) && time + 1 > boundary && last >= time - size)
			starts[count++] = time - size;
		if (SliceGoneAt(set, slice) > boundary &&
			(changed || (ahead < timeline->n && start_of(timeline, ahead) <= time + 1 + size)))
			starts[count++] = time + 1;
	}
	return count;
}

static int
compare_timelines(const ListCell *a, const ListCell *b)
{
	const void *ta = ((WindowGroup *) lfirst(a))->timeline;
	const void *tb = ((WindowGroup *) lfirst(b))->timeline;

	return ta < tb ? -1 : ta > tb;
}

static List *
put_changed_together(GroupSet *set, GroupArena *arena, Timeline *timeline, TimestampTz boundary)
{
	TimestampTz *starts = palloc_extended(sizeof(TimestampTz) * 2 * timeline->n, MCXT_ALLOC_HUGE);
	int			n = changed_windows(set, timeline, boundary, starts);
	List	   *windows = NIL;

	qsort(starts, n, sizeof(TimestampTz), compare_times);
	for (int i = 0; i < n; i++)
	{
		WindowGroup *window = i > 0 && starts[i] == starts[i - 1] ? NULL : put_together(set, arena, timeline, starts[i]);

		if (window != NULL)
			windows = lappend(windows, window);
	}
	pfree(starts);
	return windows;
}

List *
SlideChanged(GroupSet *set, GroupArena *arena, TimestampTz boundary, int limit)
{
	List	   *slices = NIL;
	List	   *windows = NIL;
	Timeline   *timeline = NULL;
	dlist_iter	iter;
	ListCell   *lc;

	dlist_foreach(iter, &set->changed)
		slices = lappend(slices, dlist_container(WindowGroup, changed_node, iter.cur));
	list_sort(slices, compare_timelines);
	foreach(lc, slices)
	{
		WindowGroup *slice = lfirst(lc);
		bool		next = slice->timeline != timeline;

		slice->pending = list_length(windows) >= limit && next;
		if (slice->pending || !next)
			continue;
		timeline = slice->timeline;
		windows = list_concat(windows, put_changed_together(set, arena, timeline, boundary));
	}
	return windows;
}

void
SlidePending(GroupSet *set, WindowGroup *window)
{
	Timeline   *timeline = window->timeline;

	for (int i = first_at(timeline, window->window->start); i < timeline->n && start_of(timeline, i) <= window->window->end; i++)
		timeline->groups[i]->pending = timeline->groups[i]->changed;
}
