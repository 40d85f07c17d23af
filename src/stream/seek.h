/*
 * seek.h
 *		Conditions on metadata columns as seeks: where in the log a scan begins and ends.
 *
 * Found while planning, evaluated when the scan begins. They only spare reading: every condition is checked
 * again on the rows.
 */
#ifndef HYBRIDIOT_SEEK_H
#define HYBRIDIOT_SEEK_H

#include "commands/explain.h"
#include "nodes/execnodes.h"
#include "nodes/pathnodes.h"

#include "core/hybridiot.h"

/*
 * The clauses that bound where to read. Returned are their other sides, expressions without columns
 * of the stream; *seeks gets two integers for each: what is bounded, and how.
 */
extern List *SeekFind(PlannerInfo *root, RelOptInfo *rel, Oid relid, List *clauses, List **seeks);

/* Sets of relations whose rows, if they were known, would bound where to read (Relids). */
extern List *SeekOuterRelids(PlannerInfo *root, RelOptInfo *rel, Oid relid);

/* What of the log can hold rows that pass. */
typedef struct SeekRange
{
	bool		nothing;		/* no row can: a bound is null, or contradicts another */
	int64		partition_low;
	int64		partition_high;
	int64		low;			/* offsets: from low to below high */
	int64		high;
	TimestampTz since;			/* DT_NOBEGIN: whenever */
	List	   *topics;			/* lists of names, each of which must hold the topic's */
	List	   *partitions;		/* the same of numbers (int) */
} SeekRange;

/* values: ExprStates of what SeekFind() returned. In the current memory context. */
extern void SeekEvaluate(List *seeks, List *values, ExprContext *econtext, SeekRange *range);
extern bool SeekTakesTopic(const SeekRange *range, const char *topic);
extern bool SeekTakesPartition(const SeekRange *range, int32 partition);

extern void SeekExplain(List *seeks, ExplainState *es);

#endif							/* HYBRIDIOT_SEEK_H */
