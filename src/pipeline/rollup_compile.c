/*
 * rollup_compile.c
 *		Take a windowed statement apart: what feeds its groups, what finishes them.
 *
 *		INSERT INTO t SELECT tumble(s.ts, '10 s'), d.site, max(s.temp) * 2
 *		FROM s JOIN d USING (device) WHERE s.temp > 0 GROUP BY 1, 2 HAVING count(*) > 3
 *
 * becomes
 *
 *		feed	SELECT s.ctid, d.site, s.temp FROM s JOIN d USING (device) WHERE s.temp > 0
 *		finish	INSERT INTO t SELECT f.w, f.k1, f.a1 * 2
 *				FROM hybridiot.finished_groups() f(w tstzrange, k1 int, a1 float8, a2 bigint) WHERE f.a2 > 3
 *
 * Both are made as trees, deparsed and planned by PostgreSQL like anything that was typed; nothing hooks the
 * planner. Where 18 has a range table entry for grouping
 * expressions, they are put back first, so that the rest is the same for all versions.
 *
 * What cannot be taken apart is refused here, and only here, with a HINT.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/sysattr.h"
#include "catalog/pg_class.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "foreign/foreign.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "parser/parse_func.h"
#include "parser/parsetree.h"
#include "rewrite/rewriteManip.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/ruleutils.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "utils/typcache.h"

#include "core/compat.h"
#include "core/options.h"
#include "pipeline/rollup_compile_state.h"

/* Windows that one record may belong to. */
#define MAX_HOPS 10000

static void
refuse(const char *message, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("%s", message),
			 errhint("%s", hint)));
}

/* ---------------------------------------------------------------------------
 * Refuse
 * ---------------------------------------------------------------------------
 */

/* The SELECT of an INSERT ... SELECT. */
static RangeTblEntry *
find_select(Query *insert)
{
	RangeTblEntry *found = NULL;
	ListCell   *lc;

	if (insert->commandType == CMD_INSERT)
		foreach(lc, insert->rtable)
		{
			RangeTblEntry *rte = lfirst_node(RangeTblEntry, lc);

			if (rte->rtekind == RTE_SUBQUERY && list_length(insert->jointree->fromlist) == 1 &&
				linitial_node(RangeTblRef, insert->jointree->fromlist)->rtindex == foreach_current_index(lc) + 1)
				found = rte;
		}
	if (found == NULL)
		refuse("a windowed pipeline must be INSERT ... SELECT",
			   "Write the finished windows to a table, and go on from there with a trigger or a query.");
	if (insert->cteList != NIL)
		refuse("WITH in front of INSERT is not possible in a windowed pipeline",
			   "Write WITH behind INSERT INTO, in front of the SELECT.");
	return found;
}

static void
refuse_clauses(Query *select)
{
	if (select->setOperations != NULL)
		refuse("a windowed pipeline cannot use UNION, INTERSECT or EXCEPT",
			   "Create one pipeline for each branch.");
	if (select->hasWindowFuncs)
		refuse("a windowed pipeline cannot use window functions",
			   "Write the finished windows to a table, and use window functions in a query over it.");
	if (select->distinctClause != NIL)
		refuse("a windowed pipeline cannot use DISTINCT",
			   "Leave it out: a group is one row already.");
	if (select->sortClause != NIL)
		refuse("a windowed pipeline cannot use ORDER BY",
			   "Order the rows where you read them.");
	if (select->limitCount != NULL || select->limitOffset != NULL)
		refuse("a windowed pipeline cannot use LIMIT or OFFSET",
			   "Use HAVING to keep some of the groups.");
	if (select->groupingSets != NIL || select->groupDistinct)
		refuse("a windowed pipeline cannot use GROUPING SETS, ROLLUP or CUBE",
			   "Create one pipeline for each grouping.");
	if (select->rowMarks != NIL)
		refuse("a windowed pipeline cannot lock the rows it reads",
			   "Leave out FOR UPDATE and FOR SHARE.");
	if (select->hasModifyingCTE)
		refuse("a windowed pipeline cannot use data-modifying WITH",
			   "Write the finished windows to a table with a trigger that does the rest.");
	if (select->constraintDeps != NIL)
		refuse("a column of a windowed pipeline cannot be used only because it depends on a primary key in GROUP BY",
			   "Add the column to GROUP BY.");
}

static bool
is_stream(const RangeTblEntry *rte)
{
	ForeignServer *server;
	char	   *wrapper;

	if (rte->rtekind != RTE_RELATION || rte->relkind != RELKIND_FOREIGN_TABLE)
		return false;
	server = GetForeignServer(GetForeignTable(rte->relid)->serverid);
	wrapper = OptionWrapperName(server);
	return strcmp(wrapper, KAFKA_WRAPPER) == 0 || strcmp(wrapper, AMQP_WRAPPER) == 0;
}

/* Look at the whole SELECT: streams, system columns of ours. */
static bool
look_walker(Node *node, Compile *compile)
{
	if (node == NULL)
		return false;
	if (IsA(node, Var))
	{
		Var		   *var = (Var *) node;

		if (var->varlevelsup == compile->sublevels && var->varno == compile->stream_rti && var->varattno < 0)
			refuse("a pipeline cannot use system columns of its stream",
				   "Use columns with OPTIONS (metadata 'partition') and (metadata 'offset').");
	}
	else if (IsA(node, RangeTblEntry))
	{
		if (is_stream((RangeTblEntry *) node))
		{
			compile->stream_count++;
			if (((RangeTblEntry *) node)->relid != compile->stream)
				refuse("joins of two streams are not supported yet",
					   "They come in a later version; write one of the streams to a table and join with that.");
		}
		return false;
	}
	else if (IsA(node, Query))
	{
		bool		result;

		compile->sublevels++;
		result = query_tree_walker((Query *) node, look_walker, compile, QTW_EXAMINE_RTES_BEFORE);
		compile->sublevels--;
		return result;
	}
	return expression_tree_walker(node, look_walker, compile);
}

/* Find the stream in FROM; outer joins must not be able to leave it out. */
static void
look_for_stream(Compile *compile, Node *node, bool nullable)
{
	ListCell   *lc;

	if (IsA(node, FromExpr))
	{
		foreach(lc, ((FromExpr *) node)->fromlist)
			look_for_stream(compile, lfirst(lc), nullable);
	}
	else if (IsA(node, JoinExpr))
	{
		JoinExpr   *join = (JoinExpr *) node;

		if (join->alias != NULL)
			refuse("a join in a windowed pipeline cannot have an alias",
				   "Leave out the alias and write the tables' own names before their columns.");
		look_for_stream(compile, join->larg, nullable || join->jointype == JOIN_RIGHT || join->jointype == JOIN_FULL);
		look_for_stream(compile, join->rarg, nullable || join->jointype == JOIN_LEFT || join->jointype == JOIN_FULL);
	}
	else
	{
		int			rti = castNode(RangeTblRef, node)->rtindex;
		RangeTblEntry *rte = rt_fetch(rti, compile->select->rtable);

		if (rte->rtekind != RTE_RELATION || rte->relid != compile->stream)
			return;
		if (nullable)
			refuse("an outer join in a windowed pipeline must not add rows that the stream does not have",
				   "Put the stream on the side of the join that keeps all its rows, as in stream LEFT JOIN table.");
		compile->stream_rti = rti;
	}
}

static void
find_stream(Compile *compile)
{
	look_for_stream(compile, (Node *) compile->select->jointree, false);
	if (compile->stream_rti == 0)
		refuse("the stream of a windowed pipeline must stand directly in FROM",
			   "Take it out of the subquery, WITH or view.");
	(void) query_tree_walker(compile->select, look_walker, compile, QTW_EXAMINE_RTES_BEFORE);
	if (compile->stream_count > 1)
		refuse("the stream of a windowed pipeline must stand in FROM only once",
			   "Write its records to a table, and join the stream with that.");
}

/* ---------------------------------------------------------------------------
 * hop() in FROM
 * ---------------------------------------------------------------------------
 */

static void
refuse_hop(void)
{
	refuse("hop() of a windowed pipeline must be the last item of FROM, by itself",
		   "Write FROM stream, hybridiot.hop(stream.ts, '1 min', '10 s') AS w, with other tables joined in front of it.");
}

static bool
is_reference(Node *node, int rti)
{
	return IsA(node, RangeTblRef) && ((RangeTblRef *) node)->rtindex == rti;
}

/* An entry of the range table that nothing in FROM stands for any more. */
static void
drop_entry(Query *select, int rti)
{
	RangeTblEntry *rte = rt_fetch(rti, select->rtable);

	rte->rtekind = RTE_RESULT;
	rte->functions = NIL;
	rte->joinaliasvars = rte->joinleftcols = rte->joinrightcols = NIL;
	rte->lateral = rte->inFromCl = false;
}

static void
find_hop(Compile *compile)
{
	ListCell   *lc;

	foreach(lc, compile->select->rtable)
	{
		RangeTblEntry *rte = lfirst_node(RangeTblEntry, lc);
		Node	   *call;

		if (rte->rtekind != RTE_FUNCTION)
			continue;
		call = linitial_node(RangeTblFunction, rte->functions)->funcexpr;
		if (!IsA(call, FuncExpr) || WindowFunctionKind(((FuncExpr *) call)->funcid) != WINDOW_HOP)
			continue;
		if (compile->hop != NULL)
			refuse("a windowed pipeline must group by one window only",
				   "Create one pipeline for each size of windows.");
		if (list_length(rte->functions) != 1 || rte->funcordinality)
			refuse_hop();
		compile->hop = (FuncExpr *) call;
		compile->hop_rti = foreach_current_index(lc) + 1;
	}
}

/*
 * Take hop() out of FROM: its windows are made here (windows.md section 3). It may be an item of FROM, or be joined to
 * one as a whole; joins around that one would have to be counted anew.
 */
static void
take_hop_out(Compile *compile)
{
	FromExpr   *from = compile->select->jointree;
	ListCell   *lc;

	find_hop(compile);
	if (compile->hop == NULL)
		return;
	foreach(lc, from->fromlist)
	{
		JoinExpr   *join = lfirst(lc);

		if (is_reference((Node *) join, compile->hop_rti))
		{
			from->fromlist = foreach_delete_current(from->fromlist, lc);
			break;
		}
		if (IsA(join, JoinExpr) && is_reference(join->rarg, compile->hop_rti) && join->jointype == JOIN_INNER)
		{
			from->quals = make_and_qual(from->quals, join->quals);
			lfirst(lc) = join->larg;
			drop_entry(compile->select, join->rtindex);
			break;
		}
	}
	if (lc == NULL)
		refuse_hop();
	drop_entry(compile->select, compile->hop_rti);
}

/* What has to be known of a record before it meets its windows must not ask for them. */
static bool
window_use_walker(Node *node, Compile *compile)
{
	if (node == NULL)
		return false;
	if (IsA(node, FuncExpr))
	{
		WindowKind	kind = WindowFunctionKind(((FuncExpr *) node)->funcid);

		if (kind != WINDOW_NONE && kind != WINDOW_TUMBLE)
			return true;
	}
	if (IsA(node, Var))
	{
		Var		   *var = (Var *) node;

		return compile->hop_rti != 0 && var->varno == compile->hop_rti && var->varlevelsup == compile->sublevels;
	}
	if (IsA(node, Query))
	{
		bool		result;

		compile->sublevels++;
		result = query_tree_walker((Query *) node, window_use_walker, compile, 0);
		compile->sublevels--;
		return result;
	}
	return expression_tree_walker(node, window_use_walker, compile);
}

static void
refuse_window_use(void)
{
	refuse("the window of a windowed pipeline can stand in GROUP BY, in the SELECT list and in HAVING only",
		   "In WHERE, in other group keys and inside aggregates use the event time; write the window as in GROUP BY.");
}

/* ---------------------------------------------------------------------------
 * Window and keys
 * ---------------------------------------------------------------------------
 */

/* An argument of a window that must be known now. */
static Datum
constant_argument(Node *argument, const char *what)
{
	Node	   *value = eval_const_expressions(NULL, argument);

	if (!IsA(value, Const))
		refuse(psprintf("%s of windows must be a constant", what),
			   "Create one pipeline for each size of windows.");
	if (((Const *) value)->constisnull)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s of windows must not be null", what)));
	return ((Const *) value)->constvalue;
}

/* A window's time must be the one that decides what is late: the stream's event time. */
static void
check_event_time(Compile *compile, Node *argument)
{
	const char *column = OptionGet(GetForeignTable(compile->stream)->options, "event_time");
	Var		   *var = (Var *) argument;
	bool		good = false;

	if (IsA(argument, Var) && var->varno == compile->stream_rti && var->varlevelsup == 0 && var->varattno > 0)
	{
		if (column != NULL)
			good = var->varattno == get_attnum(compile->stream, column);
		else
		{
			const char *metadata = OptionGet(GetForeignColumnOptions(compile->stream, var->varattno), "metadata");

			good = metadata != NULL && strcmp(metadata, "timestamp") == 0;
		}
	}
	if (!good)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("windows of a pipeline must be made from the event time of its stream"),
				 column != NULL ?
				 errhint("Use column \"%s\", of type timestamptz, as it is.", column) :
				 errhint("Set the stream's option event_time, or use a column with OPTIONS (metadata 'timestamp').")));
}

/* The windows that a call of tumble(), hop(), slide() or session() makes; defaults and named arguments in place. */
static void
read_window(Compile *compile, FuncExpr *call)
{
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(call->funcid));
	WindowSpec *window = &compile->plan->window;
	List	   *arguments;
	const char *size;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for function %u", call->funcid);
	arguments = expand_function_arguments(copyObject(call->args), false, call->funcresulttype, tuple);
	ReleaseSysCache(tuple);

	window->kind = WindowFunctionKind(call->funcid);
	window->origin = SetEpochTimestamp();
	size = window->kind == WINDOW_SESSION ? "gap" : "size";
	check_event_time(compile, linitial(arguments));
	window->size = WindowLength(DatumGetIntervalP(constant_argument(lsecond(arguments), size)), size);
	if (window->kind == WINDOW_TUMBLE)
		window->origin = DatumGetTimestampTz(constant_argument(lthird(arguments), "origin"));
	if (TIMESTAMP_NOT_FINITE(window->origin))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("origin of windows must be finite")));
	if (window->kind == WINDOW_HOP)
	{
		window->advance = WindowLength(DatumGetIntervalP(constant_argument(lthird(arguments), "advance")), "advance");
		WindowCheckAdvance(window->size, window->advance);
		if (window->size / window->advance > MAX_HOPS)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("a record would belong to more than %d windows", MAX_HOPS),
					 errhint("Use a larger advance.")));
	}
	WindowSpecComplete(window);
}

/* A name by which people know a key; unique among keys. */
static char *
name_key(Compile *compile, TargetEntry *tle)
{
	char	   *name = NULL;
	ListCell   *lc;

	if (!tle->resjunk && tle->resname != NULL && tle->resname[0] != '?')
		name = tle->resname;
	else if (IsA(tle->expr, Var) && ((Var *) tle->expr)->varlevelsup == 0)
	{
		Var		   *var = (Var *) tle->expr;

		name = get_rte_attribute_name(rt_fetch(var->varno, compile->select->rtable), var->varattno);
	}
	foreach(lc, compile->key_names)
		if (name != NULL && strcmp(name, lfirst(lc)) == 0)
			name = NULL;
	return name != NULL ? pstrdup(name) : psprintf("key%d", list_length(compile->key_names));
}

/* The call that makes the window that this expression stands for; NULL: it is none. */
static FuncExpr *
window_call(Compile *compile, Expr *expr)
{
	if (compile->hop != NULL && IsA(expr, Var) && ((Var *) expr)->varno == compile->hop_rti &&
		((Var *) expr)->varattno == 1)
		return compile->hop;
	if (IsA(expr, FuncExpr) && WindowFunctionKind(((FuncExpr *) expr)->funcid) != WINDOW_NONE)
		return (FuncExpr *) expr;
	return NULL;
}

/* Grouping expressions: the window comes first, whatever the user's order. */
static void
find_keys(Compile *compile)
{
	FuncExpr   *window = NULL;
	Expr	   *key = NULL;
	ListCell   *lc;

	compile->key_names = list_make1("during");
	foreach(lc, compile->select->groupClause)
	{
		SortGroupClause *clause = lfirst_node(SortGroupClause, lc);
		TargetEntry *tle = get_sortgroupclause_tle(clause, compile->select->targetList);

		if (window_call(compile, tle->expr) != NULL)
		{
			if (window != NULL)
				refuse("a windowed pipeline must group by one window only",
					   "Create one pipeline for each size of windows.");
			window = window_call(compile, tle->expr);
			key = tle->expr;
			continue;
		}
		compile->key_names = lappend(compile->key_names, name_key(compile, tle));
		compile->keys = lappend(compile->keys, tle->expr);
		compile->key_clauses = lappend(compile->key_clauses, clause);
	}
	if (window == NULL)
		refuse("GROUP BY of a windowed pipeline must hold a window",
			   "Group by tumble(), slide(), session() or the column of hop() itself; expressions of the window may stand in the SELECT list.");
	if (compile->hop != NULL && window != compile->hop)
		refuse("a windowed pipeline must group by one window only",
			   "Create one pipeline for each size of windows.");
	read_window(compile, window);
	compile->keys = lcons(key, compile->keys);
	compile->key_clauses = lcons(NULL, compile->key_clauses);
}

/* ---------------------------------------------------------------------------
 * Feed
 * ---------------------------------------------------------------------------
 */

/* The feed's column of this expression, 0-based; ctid is column 0. */
static int
feed_column(Compile *compile, Node *expr)
{
	ListCell   *lc;

	foreach(lc, compile->feed)
		if (equal(lfirst(lc), expr))
			return foreach_current_index(lc) + 1;
	compile->feed = lappend(compile->feed, expr);
	return list_length(compile->feed);
}

/* An argument is not evaluated for rows that FILTER leaves out: it may fail for just those. */
static Node *
guarded_argument(Aggref *aggref, Node *arg)
{
	CaseExpr   *guard;
	CaseWhen   *when;

	if (aggref->aggfilter == NULL || IsA(arg, Var) || IsA(arg, Const))
		return arg;
	when = makeNode(CaseWhen);
	when->expr = aggref->aggfilter;
	when->result = (Expr *) arg;
	when->location = -1;
	guard = makeNode(CaseExpr);
	guard->casetype = exprType(arg);
	guard->casecollid = exprCollation(arg);
	guard->args = list_make1(when);
	guard->defresult = (Expr *) makeNullConst(exprType(arg), exprTypmod(arg), exprCollation(arg));
	guard->location = -1;
	return (Node *) guard;
}

static void
lay_out(Compile *compile)
{
	GroupLayout *layout = &compile->plan->layout;
	ListCell   *lc;

	layout->nkeys = list_length(compile->keys) - 1;
	layout->keys = palloc0(sizeof(GroupKey) * Max(layout->nkeys, 1));
	for (int i = 0; i < layout->nkeys; i++)
	{
		Node	   *expr = list_nth(compile->keys, i + 1);
		SortGroupClause *clause = list_nth(compile->key_clauses, i + 1);
		GroupKey   *key = &layout->keys[i];

		GroupKeyPrepare(key, exprType(expr), exprTypmod(expr), exprCollation(expr), clause->eqop);
		key->name = list_nth(compile->key_names, i + 1);
		key->column = feed_column(compile, expr);
	}

	layout->naggregates = list_length(compile->aggregates);
	layout->aggregates = palloc0(sizeof(GroupAggregate) * Max(layout->naggregates, 1));
	foreach(lc, compile->aggregates)
	{
		Aggref	   *aggref = lfirst_node(Aggref, lc);
		GroupAggregate *aggregate = &layout->aggregates[foreach_current_index(lc)];
		ListCell   *arg;

		GroupAggregatePrepare(aggregate, aggref);
		aggregate->columns = palloc(sizeof(int) * Max(aggregate->nargs, 1));
		foreach(arg, aggref->args)
			aggregate->columns[foreach_current_index(arg)] =
				feed_column(compile, guarded_argument(aggref, (Node *) lfirst_node(TargetEntry, arg)->expr));
		aggregate->filter = aggref->aggfilter == NULL ? -1 :
			feed_column(compile, (Node *) aggref->aggfilter);
	}
}

/* The user's FROM and WHERE with our target list. */
static char *
make_feed(Compile *compile)
{
	RollupPlan *plan = compile->plan;
	Query	   *feed = copyObject(compile->select);
	Var		   *ctid = makeVar(compile->stream_rti, SelfItemPointerAttributeNumber, TIDOID, -1, InvalidOid, 0);
	ListCell   *lc;

	feed->targetList = list_make1(makeTargetEntry((Expr *) ctid, 1, "record", false));
	feed->groupClause = NIL;
	feed->havingQual = NULL;
	feed->hasAggs = false;

	plan->ncolumns = list_length(compile->feed) + 1;
	plan->types = palloc(sizeof(Oid) * plan->ncolumns);
	plan->types[0] = TIDOID;
	foreach(lc, compile->feed)
	{
		int			column = foreach_current_index(lc) + 1;

		plan->types[column] = exprType(lfirst(lc));
		feed->targetList = lappend(feed->targetList,
								   makeTargetEntry(copyObject(lfirst(lc)), column + 1, psprintf("c%d", column), false));
	}
	if (query_tree_walker(feed, window_use_walker, compile, 0))
		refuse_window_use();
	if (contain_volatile_functions((Node *) feed))
		refuse("a windowed pipeline cannot use volatile functions in FROM, WHERE, group keys or arguments of aggregates",
			   "A batch may run twice; with emit 'final', volatile functions may stand around aggregates in the SELECT list.");
	plan->feed_tree = feed;
	/* What a row of a session is depends on those before it, and a join may return them in any order. */
	return psprintf("%s%s", pg_get_querydef(copyObject(feed), false),
					plan->window.kind == WINDOW_SESSION ? " ORDER BY 1" : "");
}

/* ---------------------------------------------------------------------------
 * Finish
 * ---------------------------------------------------------------------------
 */

Node *
RollupFinishedColumn(Node *expr, int column, int sublevels)
{
	return (Node *) makeVar(FINISHED_RTI, column, exprType(expr), exprTypmod(expr), exprCollation(expr), sublevels);
}

static Node *
replace_aggregate(Compile *compile, Aggref *aggref)
{
	Aggref	   *own = copyObject(aggref);
	int			number = 0;

	if (compile->sublevels > 0)
		IncrementVarSublevelsUp((Node *) own, -compile->sublevels, compile->sublevels);
	while (number < list_length(compile->aggregates) && !equal(list_nth(compile->aggregates, number), own))
		number++;
	if (number == list_length(compile->aggregates))
		compile->aggregates = lappend(compile->aggregates, own);
	return RollupFinishedColumn((Node *) own, list_length(compile->keys) + number + 1, compile->sublevels);
}

/*
 * Put columns of hybridiot.finished_groups() in place of grouping expressions
 * and aggregates. As in the parser, only plain columns are recognised below
 * the statement's own level.
 */
static Node *
finish_mutator(Node *node, Compile *compile)
{
	ListCell   *lc;

	if (node == NULL)
		return NULL;
	if (IsA(node, Aggref) && ((Aggref *) node)->agglevelsup == compile->sublevels)
		return replace_aggregate(compile, (Aggref *) node);
	if (IsA(node, GroupingFunc))
		refuse("a windowed pipeline cannot use GROUPING()", "Create one pipeline for each grouping.");
	if (compile->sublevels == 0 || (IsA(node, Var) && ((Var *) node)->varlevelsup == compile->sublevels))
	{
		Node	   *own = copyObject(node);

		if (compile->sublevels > 0)
			IncrementVarSublevelsUp(own, -compile->sublevels, compile->sublevels);
		foreach(lc, compile->keys)
			if (equal(lfirst(lc), own))
				return RollupFinishedColumn(own, foreach_current_index(lc) + 1, compile->sublevels);
	}
	if (IsA(node, Query))
	{
		Query	   *result;

		compile->sublevels++;
		result = query_tree_mutator((Query *) node, finish_mutator, compile, 0);
		compile->sublevels--;
		return (Node *) result;
	}
	return expression_tree_mutator(node, finish_mutator, compile);
}

/* hybridiot.finished_groups() AS finished (w tstzrange, k1 ..., a1 ...) */
static RangeTblEntry *
make_finished_rte(Compile *compile)
{
	RangeTblEntry *rte = makeNode(RangeTblEntry);
	RangeTblFunction *function = makeNode(RangeTblFunction);
	List	   *name = list_make2(makeString(HYBRIDIOT_SCHEMA), makeString("finished_groups"));
	FuncExpr   *call;
	ListCell   *lc;
	List	   *columns = list_concat_copy(compile->keys, compile->aggregates);

	call = makeFuncExpr(LookupFuncName(name, 0, NULL, false), RECORDOID, NIL, InvalidOid, InvalidOid,
						COERCE_EXPLICIT_CALL);
	call->funcretset = true;
	function->funcexpr = (Node *) call;
	function->funccolcount = list_length(columns);
	foreach(lc, columns)
	{
		Node	   *expr = lfirst(lc);
		int			number = foreach_current_index(lc);
		int			nkeys = list_length(compile->keys);
		char	   *colname = number == 0 ? "w" : number < nkeys ? psprintf("k%d", number) :
			psprintf("a%d", number - nkeys + 1);

		function->funccolnames = lappend(function->funccolnames, makeString(colname));
		function->funccoltypes = lappend_oid(function->funccoltypes, exprType(expr));
		function->funccoltypmods = lappend_int(function->funccoltypmods, exprTypmod(expr));
		function->funccolcollations = lappend_oid(function->funccolcollations, exprCollation(expr));
	}
	rte->rtekind = RTE_FUNCTION;
	rte->functions = list_make1(function);
	rte->alias = makeAlias("finished", NIL);
	rte->eref = makeAlias("finished", copyObject(function->funccolnames));
	rte->inFromCl = true;
	return rte;
}

Node *
RollupReference(int rti)
{
	RangeTblRef *ref = makeNode(RangeTblRef);

	ref->rtindex = rti;
	return (Node *) ref;
}

/* The SELECT over finished groups; aggregates are collected on the way. */
static Query *
make_finish_select(Compile *compile)
{
	Query	   *select = compile->select;
	Query	   *finish = makeNode(Query);
	Node	   *having;
	ListCell   *lc;

	foreach(lc, select->targetList)
	{
		TargetEntry *tle = lfirst_node(TargetEntry, lc);

		if (tle->resjunk)
			continue;
		tle = copyObject(tle);
		tle->expr = (Expr *) finish_mutator((Node *) tle->expr, compile);
		tle->ressortgroupref = 0;
		finish->targetList = lappend(finish->targetList, tle);
	}
	having = finish_mutator(select->havingQual, compile);
	if (window_use_walker((Node *) finish->targetList, compile) || window_use_walker(having, compile))
		refuse_window_use();

	finish->commandType = CMD_SELECT;
	finish->querySource = QSRC_ORIGINAL;
	finish->canSetTag = true;
	finish->hasSubLinks = select->hasSubLinks;
	finish->hasTargetSRFs = select->hasTargetSRFs;
	finish->hasRecursive = select->hasRecursive;
	finish->cteList = copyObject(select->cteList);
	finish->rtable = list_make1(make_finished_rte(compile));
	finish->jointree = makeFromExpr(list_make1(RollupReference(FINISHED_RTI)), having);
	return finish;
}

/* ---------------------------------------------------------------------------
 * All of it
 * ---------------------------------------------------------------------------
 */

/* In 18, columns of the grouping entry become the expressions again, and the entry goes. */
static void
ungroup(Query *select)
{
	select->targetList = (List *) flatten_group_exprs(NULL, select, (Node *) select->targetList);
	select->havingQual = flatten_group_exprs(NULL, select, select->havingQual);
	if (QueryHasGroupRTE(select))
	{
		if (!RTEIsGroup(llast_node(RangeTblEntry, select->rtable)))
			elog(ERROR, "grouping entry is not the last of the range table");
		select->rtable = list_delete_last(select->rtable);
		QueryClearGroupRTE(select);
	}
	select->targetList = (List *) flatten_join_alias_vars(NULL, select, (Node *) select->targetList);
	select->havingQual = flatten_join_alias_vars(NULL, select, select->havingQual);
}

RollupPlan *
RollupCompile(Query *query, Oid stream, const char *rewriting)
{
	Compile		compile = {.insert = query,.stream = stream,.rewriting = rewriting,.plan = palloc0(sizeof(RollupPlan))};
	RollupPlan *plan = compile.plan;
	RangeTblEntry *source = find_select(query);
	Query	   *finish;

	compile.select = source->subquery;
	plan->target = rt_fetch(query->resultRelation, query->rtable)->relid;
	refuse_clauses(compile.select);
	find_stream(&compile);
	ungroup(compile.select);
	take_hop_out(&compile);
	find_keys(&compile);
	finish = make_finish_select(&compile);
	lay_out(&compile);
	plan->feed = make_feed(&compile);

	if (rewriting)
		RollupCompileRewriting(&compile, finish);
	source->subquery = finish;
	plan->stream_rti = compile.stream_rti;
	plan->aggregates = compile.aggregates;
	plan->finish_tree = query;
	plan->finish = pg_get_querydef(copyObject(query), false);
	return plan;
}
