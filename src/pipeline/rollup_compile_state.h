/*
 * rollup_compile_state.h
 *		A statement while it is taken apart; for rollup_compile.c and rollup_rewrite.c only.
 */
#ifndef HYBRIDIOT_ROLLUP_COMPILE_STATE_H
#define HYBRIDIOT_ROLLUP_COMPILE_STATE_H

#include "pipeline/rollup_compile.h"

/* Where things are in the finish query. */
#define FINISHED_RTI 1
#define FINISHED_WINDOW 1		/* column of the window; keys follow, then aggregates */

typedef struct Compile
{
	Query	   *insert;
	Query	   *select;
	Oid			stream;
	const char *rewriting;		/* as RollupCompile() was told */
	int			stream_rti;
	int			stream_count;	/* streams anywhere in the SELECT */
	int			hop_rti;		/* hop() in FROM; 0: none */
	FuncExpr   *hop;
	List	   *keys;			/* grouping expressions, the window first */
	List	   *key_names;		/* of char * */
	List	   *key_clauses;	/* of SortGroupClause; NULL for the window */
	List	   *aggregates;		/* of Aggref, each once */
	List	   *feed;			/* expressions of the feed behind ctid, each once */
	int			sublevels;		/* while a tree is walked */
	RollupPlan *plan;
} Compile;

/* A column of hybridiot.finished_groups(), of the type of what it stands for. */
extern Node *RollupFinishedColumn(Node *expr, int column, int sublevels);
extern Node *RollupReference(int rti);

/*
 * Refuse what cannot be written again and again (0A000), and make what then deletes rows: plan->retract, plan->prune. finish is the
 * SELECT over finished groups.
 */
extern void RollupCompileRewriting(Compile *compile, Query *finish);

#endif							/* HYBRIDIOT_ROLLUP_COMPILE_STATE_H */
