/*
 * rollup_compile.h
 *		Take a windowed statement apart: what feeds its groups, what finishes them.
 */
#ifndef HYBRIDIOT_ROLLUP_COMPILE_H
#define HYBRIDIOT_ROLLUP_COMPILE_H

#include "nodes/parsenodes.h"

#include "pipeline/aggregate.h"
#include "pipeline/window.h"

/*
 * A statement taken apart. feed yields one row per record and joined row:
 * column 0 is the record's ctid in the batch, the others are what layout's columns say.
 * finish is the user's INSERT, reading hybridiot.finished_groups() with the columns (window, keys,
 * aggregates) in place of the stream; prune deletes what finish wrote before for
 * groups that HAVING now leaves out; retract deletes the rows of all groups that finished_groups() returns.
 */
typedef struct RollupPlan
{
	WindowSpec	window;
	GroupLayout layout;
	int			ncolumns;
	Oid		   *types;			/* of the feed's columns; UNKNOWNOID: any */
	Oid			target;			/* table the statement writes to */
	char	   *feed;
	char	   *finish;
	char	   *prune;			/* NULL: nothing ever has to go */
	char	   *retract;		/* emit 'changes' of sessions, whose windows change; else NULL */

	/* The same as trees, for who puts something else in the place of the stream and of finished_groups() (verify_oracle.c). */
	int			stream_rti;		/* the stream in feed_tree */
	Query	   *feed_tree;
	List	   *aggregates;		/* of Aggref, as in layout */
	Query	   *finish_tree;	/* the INSERT; range table entry 1 of its subquery is finished_groups() */
} RollupPlan;

/*
 * Compile an analyzed INSERT ... SELECT over this stream (it is changed on the way). ereport 0A000 with a HINT for what a
 * windowed pipeline cannot run, 22023 for windows that do not exist. The result lives in the current memory context; its texts are
 * qualified as the present search_path demands. rewriting: the option by which rows are written more than once, which the
 * statement must bear; NULL: none.
 */
extern RollupPlan *RollupCompile(Query *query, Oid stream, const char *rewriting);

#endif							/* HYBRIDIOT_ROLLUP_COMPILE_H */
