/*
 * group.h
 *		Groups in memory: found by window and keys, closed in the order of time.
 *
 * A GroupSet holds the groups of one pipeline. Tumbling and hopping windows are shared by their groups. A session
 * has one group. Sliding windows are not kept: a group is then a slice, the records of one key at one time, and
 * windows are put together from slices when they are asked for.
 *
 * Nothing here is transactional. When an error leaves any of these functions, the set may have taken a part of a
 * row: its owner throws it away and loads the last checkpoint. Callers are the pipeline's owner where aggregates or keys are
 * touched, as in aggregate.h.
 */
#ifndef HYBRIDIOT_GROUP_H
#define HYBRIDIOT_GROUP_H

#include "lib/ilist.h"
#include "lib/pairingheap.h"

#include "pipeline/aggregate.h"
#include "pipeline/window.h"

/* Memory of windows that were opened about the same time, and go about the same time. */
typedef struct GroupArena
{
	ExprContext *econtext;		/* its per-tuple memory holds groups and states */
	int			nwindows;
	int64		ngroups;		/* ever created in it */
} GroupArena;

typedef struct GroupWindow
{
	TimestampTz start;			/* slice: its records' time */
	TimestampTz end;			/* slice: it counts in windows that end no earlier and are not written */
	TimestampTz over;			/* session: rises as it grows; slice: when its next window is over */
	TimestampTz heap_over;		/* as the heap has it: no later than over */
	GroupArena *arena;
	pairingheap_node heap_node;
	bool		in_heap;
	bool		first_taken;	/* slice: popped for its first window, which is not settled */
	dlist_node	node;			/* in the set's list of all */
	dlist_head	groups;			/* in order of their ids */
	int			ngroups;
} GroupWindow;

/* Bounds under which the target has a session's row. */
typedef struct GroupShown
{
	TimestampTz start;
	TimestampTz end;
	struct GroupShown *next;
} GroupShown;

/* All groups of one key, in the order of their starts: sessions, slices. */
typedef struct Timeline
{
	NullableDatum *keys;
	uint32		hash;
	uint32		round;			/* of RollupEmit(): in which its key was seen last */
	bool		tangled;		/* sessions that overlap: their key lives in several partitions */
	int			n;
	int			size;
	struct WindowGroup **groups;
} Timeline;

/* A session's records came from several partitions. */
#define GROUP_PARTS (-1)

typedef struct WindowGroup
{
	GroupWindow *window;
	Timeline   *timeline;		/* of a session or slice, or of the slices that a sliding window is made of */
	dlist_node	node;			/* in its window */
	dlist_node	changed_node;	/* in the set's list, while changed */
	uint32		hash;
	bool		changed;		/* since the last checkpoint */
	bool		stored;			/* the table has a row of it */
	bool		written;		/* emit 'changes': the target has its row as it is now */
	bool		pending;		/* emit 'changes': its row is for the next transaction */
	GroupShown *shown;			/* sessions with emit 'changes': rows of it in the target */
	int			part;			/* sessions: the partition of its records, or GROUP_PARTS */
	int64		id;
	int64		records;
	NullableDatum *keys;
	GroupValue *values;
} WindowGroup;

typedef struct GroupSet GroupSet;

/*
 * A new, empty set; lives in a child of the current memory context until that goes. track_shown: sessions remember their
 * rows. closed: windows that are over at this time have been written, should groups be loaded.
 */
extern GroupSet *GroupSetCreate(GroupLayout *layout, const WindowSpec *spec, bool track_shown, TimestampTz closed);

extern int64 GroupSetCount(const GroupSet *set);
/* Groups that go when windows until this boundary close. */
extern int64 GroupSetCountUntil(const GroupSet *set, TimestampTz boundary);
/* The time at which the next window is over; false: none is open. */
extern bool GroupSetNextOver(GroupSet *set, TimestampTz *over);
/* The time at which all are over that were open since the set was last empty. */
extern TimestampTz GroupSetLatestOver(const GroupSet *set);

/* The next window that is over at this boundary, in the order of that time, off the heap; NULL: none. */
extern GroupWindow *GroupSetPop(GroupSet *set, TimestampTz boundary);
/* A window that was popped is not done with. */
extern void GroupSetPutBack(GroupSet *set, GroupWindow *window);

/* Take one feed row into the groups of tumbling or hopping windows that begin at first to last, making them if need be. */
extern void GroupSetAdvance(GroupSet *set, TimestampTz first, TimestampTz last, const Datum *values, const bool *isnull);

/* Groups changed since they were last marked; in the order of change. */
extern dlist_head *GroupSetChanged(GroupSet *set);
extern void GroupSetMarkStored(GroupSet *set, WindowGroup *group);
/* Forget a group; true: its window went with it. */
extern bool GroupSetRemove(GroupSet *set, WindowGroup *group);
/* A number for a group that is stored and not in the set. */
extern int64 GroupSetNextId(GroupSet *set);
/* Ids given to new groups go on behind this one. */
extern void GroupSetLastId(GroupSet *set, int64 id);
/* Stored groups that are no more (merged sessions, passed slices) since the last call; palloc'd. */
extern int64 *GroupSetTakeGone(GroupSet *set, int *n);

/* Result of an aggregate, in the current memory context; the state stays as it is. */
extern Datum GroupFinal(GroupSet *set, WindowGroup *group, int aggregate, bool *isnull);

/* What is stored of a group, in the current memory context. */
extern bytea *GroupEncodeKeys(GroupSet *set, const WindowGroup *group);
extern bytea *GroupEncodeState(GroupSet *set, const WindowGroup *group);
/* Put a stored group back; it counts as stored and not changed. ereport XX001 if the bytes are broken. */
extern void GroupSetLoad(GroupSet *set, TimestampTz start, TimestampTz end, int64 id, int64 records,
						 bytea *keys, bytea *state);

/* ---- timeline.c: sessions, slices ---- */

/* Rows of the session under other bounds have been taken off the target; the one of now is there if it was written. */
extern void GroupSetShown(GroupSet *set, WindowGroup *group);

/* What became of a row. */
typedef enum GroupVerdict
{
	GROUP_TAKEN,
	GROUP_LATE,
	GROUP_LATE_IDLE,			/* behind what was closed meanwhile */
	GROUP_LATE_ORDER			/* late, and its key's records come from several partitions */
} GroupVerdict;

/* What a row of the feed is judged by. */
typedef struct RowTime
{
	TimestampTz time;			/* of its record */
	TimestampTz late;			/* stream time of its partition at its turn, less lateness */
	TimestampTz closed;			/* windows that are over at this time are closed */
	int			part;
} RowTime;

/* Take one feed row into the session that it touches, merging those it connects. */
extern GroupVerdict GroupSetAdvanceSession(GroupSet *set, const RowTime *when, const Datum *values, const bool *isnull);

/*
 * Take one feed row into the slice of its time, for windows that end at *from or later; from is DT_NOEND when there
 * are none, and nothing is taken. Late for some if *from is behind its time.
 */
extern GroupVerdict GroupSetAdvanceSlice(GroupSet *set, const RowTime *when, TimestampTz *from,
										 const Datum *values, const bool *isnull);

/* Memory for sliding windows that are put together; NULL allowed in SlideEnd(). */
extern GroupArena *SlideBegin(GroupSet *set);
extern void SlideEnd(GroupSet *set, GroupArena *arena);
/*
 * The window that is over when the slice was popped, put together in arena; NULL: there is none. first: it ends at the slice, which is on the
 * heap again with its second one; else the slice is done with after it.
 */
extern WindowGroup *SlideClosing(GroupSet *set, GroupArena *arena, GroupWindow *slice, bool *first);
/* The window is written, or there was none. Without first the slice is gone. */
extern void SlidePass(GroupSet *set, GroupWindow *slice, bool first);
/* It is left for another time; so are all that were popped later. */
extern void SlideLeave(GroupSet *set, GroupWindow *slice, bool first);
/* What the slice has passed has to be stored. */
extern void SlideTouch(GroupSet *set, GroupWindow *slice);
/*
 * Windows that changed slices belong to and that are not over at this boundary, as a List of WindowGroup in arena. Behind
 * the limit the slices of further keys stay pending.
 */
extern List *SlideChanged(GroupSet *set, GroupArena *arena, TimestampTz boundary, int limit);
/* A window of SlideChanged() could not be written: its changed slices stay so. */
extern void SlidePending(GroupSet *set, WindowGroup *window);

#endif							/* HYBRIDIOT_GROUP_H */
