/*
 * group_internal.h
 *		What group.c and timeline.c share.
 */
#ifndef HYBRIDIOT_GROUP_INTERNAL_H
#define HYBRIDIOT_GROUP_INTERNAL_H

#include "pipeline/group.h"

struct grouptable_hash;
struct windowtable_hash;
struct timelinetable_hash;

struct GroupSet
{
	MemoryContext context;
	GroupLayout *layout;
	const WindowSpec *spec;
	AggregateRun *run;
	bool		track_shown;
	struct grouptable_hash *groups; /* tumbling, hopping: by window and keys */
	struct windowtable_hash *windows;	/* likewise, by start */
	struct timelinetable_hash *timelines;	/* sessions, slices: by keys */
	pairingheap *by_over;
	dlist_head	all;			/* windows */
	GroupWindow *last_window;	/* the one asked for last */
	GroupArena *arena;			/* where new windows go; NULL: make one */
	TimestampTz latest_over;
	TimestampTz closed;			/* as of the last checkpoint: what was over then is written */
	int64		ngroups;
	int64		last_id;
	dlist_head	changed;
	int64	   *gone;			/* ids of stored groups that are no more */
	int			ngone;
	int			gone_size;
	WindowGroup probe;			/* a group to look for; its keys */
	NullableDatum *probe_keys;
};

/* Hash of the probe's keys. */
extern uint32 GroupHashProbe(GroupSet *set);
/* Are these the same keys? */
extern bool GroupSameKeys(GroupSet *set, const NullableDatum *a, const NullableDatum *b);
/* Take the probe's keys from a row of the feed. */
extern void GroupProbe(GroupSet *set, const Datum *values, const bool *isnull);
/* Keys of the probe that stay, in the current memory context, at keys. */
extern void GroupCopyProbe(GroupSet *set, NullableDatum *keys);
/* A window on the heap, in no table. */
extern GroupWindow *GroupNewWindow(GroupSet *set, TimestampTz start, TimestampTz end, TimestampTz over);
/* A group in this window with its states at their beginning; keys NULL: the probe's, copied. */
extern WindowGroup *GroupNew(GroupSet *set, GroupWindow *window, NullableDatum *keys);
/* It differs from what is stored. */
extern void GroupTouch(GroupSet *set, WindowGroup *group);
/* Its id is to be deleted from the table at the next checkpoint, if it is there. */
extern void GroupGone(GroupSet *set, const WindowGroup *group);
/* The time at which the window is over is now earlier than the heap has it. */
extern void GroupWindowMoved(GroupSet *set, GroupWindow *window);
extern void GroupWindowLeaveHeap(GroupSet *set, GroupWindow *window);

extern GroupArena *GroupNewArena(GroupSet *set);

/* When no window can need the slice any more. */
static inline TimestampTz
SliceGoneAt(const GroupSet *set, const GroupWindow *slice)
{
	return WindowTimePlus(slice->start, set->spec->size + 2);
}

/* timeline.c: forget a group that has one. */
extern void TimelineRemove(GroupSet *set, WindowGroup *group);
/* timeline.c: a stored session or slice of the probe's keys. */
extern WindowGroup *TimelineLoad(GroupSet *set, TimestampTz start, TimestampTz end);

#endif							/* HYBRIDIOT_GROUP_INTERNAL_H */
