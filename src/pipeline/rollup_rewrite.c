/*
 * rollup_rewrite.c
 *		Windowed statements whose rows are written again and again: emit 'changes', keep_closed.
 *
 * ON CONFLICT has to find a group's row by the window and the keys, and to replace it whole. Then the same columns find a
 * row that has to go.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_attribute.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "parser/parsetree.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/ruleutils.h"
#include "utils/syscache.h"
#include "utils/typcache.h"

#include "core/compat.h"
#include "pipeline/rollup_compile_state.h"

static void
refuse_changes(Compile *compile, const char *detail, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("this statement cannot be used with %s", compile->rewriting),
			 errdetail_internal("%s", detail),
			 errhint("%s", hint)));
}

/* A SET expression may read excluded, and nothing that changes from one time to the next. */
static bool
only_excluded_walker(Node *node, OnConflictExpr *conflict)
{
	if (node == NULL)
		return false;
	if (IsA(node, Var) && ((Var *) node)->varno != conflict->exclRelIndex)
		return true;
	if (IsA(node, SubLink))
		return true;
	return expression_tree_walker(node, only_excluded_walker, conflict);
}

/* The finish column that an INSERT column gets as it is; 0: none. */
static int
finished_column_of(Compile *compile, Query *finish, TargetEntry *tle)
{
	Var		   *var = (Var *) tle->expr;
	TargetEntry *source;

	if (!IsA(var, Var) || var->varno != linitial_node(RangeTblRef, compile->insert->jointree->fromlist)->rtindex)
		return 0;
	source = list_nth(finish->targetList, var->varattno - 1);
	var = (Var *) source->expr;
	return IsA(var, Var) && var->varno == FINISHED_RTI && var->varlevelsup == 0 ? var->varattno : 0;
}

static bool
column_is_not_null(Oid relid, AttrNumber attnum)
{
	HeapTuple	tuple = SearchSysCache2(ATTNUM, ObjectIdGetDatum(relid), Int16GetDatum(attnum));
	bool		result;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for attribute %d of relation %u", attnum, relid);
	result = ((Form_pg_attribute) GETSTRUCT(tuple))->attnotnull;
	ReleaseSysCache(tuple);
	return result;
}

/*
 * ON CONFLICT's columns must be the window and the keys, each as it is. Returns the conditions that
 * find a group's row in the target (range table entry 2 of the prune query).
 */
static List *
check_conflict_columns(Compile *compile, Query *finish, Bitmapset **columns)
{
	static const char *hint = "ON CONFLICT must name a column for the window and one for each other group key, and nothing else.";
	OnConflictExpr *conflict = compile->insert->onConflict;
	List	   *quals = NIL;
	Bitmapset  *covered = NULL;
	ListCell   *lc;

	foreach(lc, conflict->arbiterElems)
	{
		Var		   *var = (Var *) lfirst_node(InferenceElem, lc)->expr;
		TargetEntry *tle = NULL;
		TypeCacheEntry *type;
		Node	   *key;
		int			column;

		if (!IsA(var, Var) || var->varattno <= 0)
			refuse_changes(compile, "ON CONFLICT names an expression.", hint);
		tle = get_tle_by_resno(compile->insert->targetList, var->varattno);
		column = tle != NULL ? finished_column_of(compile, finish, tle) : 0;
		if (column == 0 || column > list_length(compile->keys))
			refuse_changes(compile, psprintf("Column \"%s\" of ON CONFLICT is not a group key of the same type.",
									get_attname(compile->plan->target, var->varattno, false)), hint);
		if (!column_is_not_null(compile->plan->target, var->varattno))
			refuse_changes(compile, psprintf("Column \"%s\" of ON CONFLICT may be null.",
									get_attname(compile->plan->target, var->varattno, false)),
						   "Declare the columns of ON CONFLICT NOT NULL: null conflicts with nothing.");
		covered = bms_add_member(covered, column);
		*columns = bms_add_member(*columns, var->varattno);

		key = list_nth(compile->keys, column - 1);
		type = lookup_type_cache(var->vartype, TYPECACHE_EQ_OPR);
		quals = lappend(quals,
						make_opclause(type->eq_opr, BOOLOID, false,
									  (Expr *) makeVar(2, var->varattno, var->vartype, var->vartypmod, var->varcollid, 0),
									  (Expr *) RollupFinishedColumn(key, column, 0),
									  InvalidOid, var->varcollid));
	}
	if (bms_num_members(covered) != list_length(compile->keys))
		refuse_changes(compile, "ON CONFLICT does not name every group key.", hint);
	return quals;
}

/* Written again and again, a row must end as it would if it had been written once. */
static List *
check_changes(Compile *compile, Query *finish)
{
	OnConflictExpr *conflict = compile->insert->onConflict;
	Bitmapset  *columns = NULL;
	List	   *quals;
	ListCell   *lc;

	if (conflict == NULL || conflict->action != ONCONFLICT_UPDATE)
		refuse_changes(compile, "It has no ON CONFLICT ... DO UPDATE.",
					   "A window's row is written each time it changes; add ON CONFLICT (...) DO UPDATE, or leave the option out.");
	if (OidIsValid(conflict->constraint))
		refuse_changes(compile, "ON CONFLICT names a constraint.", "Name its columns instead.");
	if (conflict->arbiterWhere != NULL || conflict->onConflictWhere != NULL)
		refuse_changes(compile, "ON CONFLICT has a WHERE clause.", "Use HAVING to keep some of the groups.");
	if (finish->hasTargetSRFs)
		refuse_changes(compile, "The SELECT list returns several rows for a group.", "Leave the option out.");
	if (contain_volatile_functions((Node *) finish->targetList) ||
		contain_volatile_functions(finish->jointree->quals))
		refuse_changes(compile, "It uses volatile functions, which would run at each change.", "Leave the option out.");

	quals = check_conflict_columns(compile, finish, &columns);
	foreach(lc, conflict->onConflictSet)
	{
		TargetEntry *tle = lfirst_node(TargetEntry, lc);

		if (only_excluded_walker((Node *) tle->expr, conflict) || contain_volatile_functions((Node *) tle->expr))
			refuse_changes(compile, "SET uses something other than excluded.",
						   "Set columns from excluded only: a change replaces the row of its window.");
		columns = bms_add_member(columns, tle->resno);
	}
	foreach(lc, compile->insert->targetList)
	{
		TargetEntry *tle = lfirst_node(TargetEntry, lc);

		if (!bms_is_member(tle->resno, columns))
			refuse_changes(compile, psprintf("Column \"%s\" is not in SET.", get_attname(compile->plan->target, tle->resno, false)),
						   "Set every column that is inserted, from excluded.");
	}
	return quals;
}

/* DELETE FROM target USING finished_groups() WHERE these conditions, which find the rows of groups, hold. */
static char *
make_delete(Compile *compile, Query *finish, List *quals)
{
	Query	   *delete = makeNode(Query);
	RangeTblEntry *target = copyObject(rt_fetch(compile->insert->resultRelation, compile->insert->rtable));

	target->inFromCl = false;
	delete->commandType = CMD_DELETE;
	delete->querySource = QSRC_ORIGINAL;
	delete->canSetTag = true;
	delete->rtable = list_make2(copyObject(linitial(finish->rtable)), target);
	delete->resultRelation = 2;
	delete->jointree = makeFromExpr(list_make2(RollupReference(2), RollupReference(FINISHED_RTI)),
									(Node *) make_ands_explicit(quals));
	delete->hasSubLinks = finish->hasSubLinks;
	delete->hasRecursive = finish->hasRecursive;
	delete->cteList = copyObject(finish->cteList);
	return pg_get_querydef(delete, false);
}

/* (having) IS NOT TRUE */
static Node *
having_fails(Query *finish)
{
	BooleanTest *fails = makeNode(BooleanTest);

	fails->arg = (Expr *) copyObject(finish->jointree->quals);
	fails->booltesttype = IS_NOT_TRUE;
	fails->location = -1;
	return (Node *) fails;
}

void
RollupCompileRewriting(Compile *compile, Query *finish)
{
	RollupPlan *plan = compile->plan;
	List	   *quals = check_changes(compile, finish);

	if (plan->window.kind == WINDOW_SESSION)
		plan->retract = make_delete(compile, finish, copyObject(quals));
	if (finish->jointree->quals != NULL)
		plan->prune = make_delete(compile, finish, lappend(quals, having_fails(finish)));
}
