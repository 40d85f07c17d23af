/*
 * aggregate.h
 *		States of aggregates: begin, transition, combine, final, bytes.
 *
 * Aggregates' own functions are called directly, as the executor's Agg node would call them, but the
 * states outlive the transaction: nothing in them may point to
 * what a transaction owns. User code runs in here, so callers are the pipeline's owner.
 */
#ifndef HYBRIDIOT_AGGREGATE_H
#define HYBRIDIOT_AGGREGATE_H

#include "executor/nodeAgg.h"
#include "fmgr.h"
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

	FmgrInfo	combine;
	/* internal states: the aggregate's own functions; others: the type's */
	bool		internal;
	FmgrInfo	serialise;
	FmgrInfo	deserialise;
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

/* One aggregate's state in one group. */
typedef struct GroupValue
{
	Datum		value;
	bool		isnull;
	bool		none;			/* a strict transition function has seen no input yet */
} GroupValue;

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

/* What the functions of a layout's aggregates run in. */
typedef struct AggregateRun
{
	GroupLayout *layout;
	AggState   *aggstate;		/* what transition functions see */
	MemoryContext temporary;	/* scratch of one row; callers are in it, and reset it */
	ExprContext *scratch;		/* copies of states, while a final function spoils them */
} AggregateRun;

/* In the current memory context. */
extern AggregateRun *AggregateRunCreate(GroupLayout *layout);

/*
 * States are arrays of one GroupValue per aggregate; home is the ExprContext whose per-tuple memory they live in.
 * All but AggregateBegin(), which fills the current memory context, are called in run->temporary.
 */
extern void AggregateBegin(AggregateRun *run, GroupValue *states);
/* One row of the feed into the states. */
extern void AggregateAdvance(AggregateRun *run, GroupValue *states, ExprContext *home,
							 const Datum *values, const bool *isnull);
/* One group's states into another's; from_stays: they are used again. */
extern void AggregateCombine(AggregateRun *run, GroupValue *into, ExprContext *home, const GroupValue *from,
							 bool from_stays);
/* Result of an aggregate, in the current memory context, whichever that is; the state stays as it is. */
extern Datum AggregateFinal(AggregateRun *run, const GroupValue *states, ExprContext *home, int number, bool *isnull);

/* What is stored of keys and states, in the current memory context, whichever that is. */
extern bytea *AggregateEncodeKeys(AggregateRun *run, const NullableDatum *keys);
extern bytea *AggregateEncode(AggregateRun *run, const GroupValue *states, ExprContext *home);
/* Put it back; keys lie in the current memory context. ereport XX001 if the bytes are broken. */
extern void AggregateDecodeKeys(AggregateRun *run, bytea *stored, NullableDatum *keys);
extern void AggregateDecode(AggregateRun *run, bytea *stored, GroupValue *states, ExprContext *home);

/* A value that stays must not point to a table's TOAST, which a transaction guards. In the current memory context. */
extern Datum AggregateCopyToStay(Datum value, bool byval, int16 len);

#endif							/* HYBRIDIOT_AGGREGATE_H */
