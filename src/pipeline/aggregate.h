/*
 * aggregate.h
 *		Groups in memory: find by window and keys, transition, serialise, final.
 *
 * A GroupSet holds the groups of one pipeline. Aggregates' own functions are
 * called directly, as the executor's Agg node would call them, but the
 * transition values outlive the transaction: nothing in them may point to
 * what a transaction owns. User code runs in here, so callers are the pipeline's owner when they call
 * anything that is not said to be free of it.
 */
#ifndef HYBRIDIOT_AGGREGATE_H
#define HYBRIDIOT_AGGREGATE_H

#include "executor/nodeAgg.h"
#include "fmgr.h"
#include "lib/ilist.h"
#include "lib/pairingheap.h"
#include "nodes/execnodes.h"

#include "core/hybridiot.h"

/* A group key: a column of the feed, other than the window. */
typedef struct GroupKey
{
	const char *name;			/* for people */
	Oid			type;
	int32		typmod;
	Oid			collation;
	int			column;			/* 0-based column of the feed */
	int16		len;
	bool		byval;
	FmgrInfo	hash;
	FmgrInfo	equal;
	FmgrInfo	send;
	FmgrInfo	receive;
	Oid			ioparam;
} GroupKey;

/* An aggregate of the statement. */
typedef struct GroupAggregate
{
	Aggref	   *aggref;
	int			nargs;
	int		   *columns;		/* 0-based columns of the feed, one per argument */
	int			filter;			/* column of the FILTER condition; -1: none */

	Oid			transtype;
	int16		len;
	bool		byval;
	Datum		initial;
	bool		initial_isnull;
	FmgrInfo	transition;
	FunctionCallInfo call;		/* of the transition function */

	bool		has_final;
	FmgrInfo	final;
	int			nfinalargs;
	bool		final_modifies; /* the final function spoils the state it is given */

	/* internal states: the aggregate's own functions; others: the type's */
	bool		internal;
	FmgrInfo	serialise;
	FmgrInfo	deserialise;
	FmgrInfo	combine;
	Oid			ioparam;

	AggStatePerTransData pertrans;	/* what AggGetAggref() looks at */
} GroupAggregate;

typedef struct GroupLayout
{
	int			nkeys;
	GroupKey   *keys;
	int			naggregates;
	GroupAggregate *aggregates;
} GroupLayout;

/* One aggregate's transition value in one group. */
typedef struct GroupValue
{
	Datum		value;
	bool		isnull;
	bool		none;			/* a strict transition function has seen no input yet */
} GroupValue;

/* Memory of windows that were opened about the same time, and go about the same time. */
typedef struct GroupArena
{
	ExprContext *econtext;		/* its per-tuple memory holds groups and states */
	int			nwindows;
	int64		ngroups;		/* ever created in it */
} GroupArena;

struct WindowGroup;

typedef struct GroupWindow
{
	TimestampTz start;
	TimestampTz end;
	GroupArena *arena;
	pairingheap_node heap_node;
	dlist_head	groups;			/* in order of their ids */
	int			ngroups;
} GroupWindow;

typedef struct WindowGroup
{
	GroupWindow *window;
	dlist_node	node;			/* in its window */
	dlist_node	changed_node;	/* in the set's list, while changed */
	uint32		hash;
	bool		changed;		/* since the last checkpoint */
	bool		stored;			/* the table has a row of it */
	bool		written;		/* emit 'changes': the target has its row as it is now */
	bool		pending;		/* emit 'changes': its row is for the next transaction */
	int64		id;
	int64		records;
	NullableDatum *keys;
	GroupValue *values;
} WindowGroup;

typedef struct GroupSet GroupSet;

/*
 * Fill what the catalogs say of an aggregate or a key: types, functions. The columns are the
 * caller's. ereport 0A000 with a HINT for what a window cannot keep: DISTINCT, ORDER BY, ordered sets, states that
 * cannot be serialised or combined, keys that cannot be hashed. Everything in the current memory context.
 */
extern void GroupAggregatePrepare(GroupAggregate *aggregate, Aggref *aggref);
extern void GroupKeyPrepare(GroupKey *key, Oid type, int32 typmod, Oid collation, Oid eqop);

/* 42501 unless the role may call the aggregate, and the aggregate's owner its parts. */
extern void GroupAggregateCheckRights(const GroupAggregate *aggregate, Oid role);

/* What a stored state depends on, as text; a state stored under another text cannot be read. */
extern char *GroupLayoutText(const GroupLayout *layout);

/* A new, empty set; lives in a child of the current memory context until that goes. */
extern GroupSet *GroupSetCreate(GroupLayout *layout);

extern int64 GroupSetCount(const GroupSet *set);
/* The window that ends first, of those that have groups; NULL: none. */
extern GroupWindow *GroupSetEarliest(const GroupSet *set);
/* Windows that end no later than this, in the order of their ends; palloc'd. */
extern GroupWindow **GroupSetWindowsUntil(const GroupSet *set, TimestampTz end, int *n);
/* Latest end of all windows that were open since the set was last empty. */
extern TimestampTz GroupSetLatestEnd(const GroupSet *set);

/*
 * Take one feed row into the group of [start, end) that its key columns name, making it if need
 * be. Scratch memory is reset here.
 */
extern void GroupSetAdvance(GroupSet *set, TimestampTz start, TimestampTz end,
							const Datum *values, const bool *isnull);

/* Groups changed since they were last marked; in the order of change. */
extern dlist_head *GroupSetChanged(GroupSet *set);
extern void GroupSetMarkStored(GroupSet *set, WindowGroup *group);
/* Forget a group; the window goes with its last one. */
extern void GroupSetRemove(GroupSet *set, WindowGroup *group);

/* Result of an aggregate, in the current memory context; the state stays as it is. */
extern Datum GroupFinal(GroupSet *set, WindowGroup *group, int aggregate, bool *isnull);

/* What is stored of a group, in the current memory context. */
extern bytea *GroupEncodeKeys(GroupSet *set, const WindowGroup *group);
extern bytea *GroupEncodeState(GroupSet *set, const WindowGroup *group);
/* Put a stored group back; it counts as stored and not changed. ereport XX001 if the bytes are broken. */
extern void GroupSetLoad(GroupSet *set, TimestampTz start, TimestampTz end, int64 id, int64 records,
						 bytea *keys, bytea *state);
/* Ids given to new groups go on behind this one. */
extern void GroupSetLastId(GroupSet *set, int64 id);

#endif							/* HYBRIDIOT_AGGREGATE_H */
