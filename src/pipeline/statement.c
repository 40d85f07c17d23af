/*
 * statement.c
 *		Parse and classify a pipeline's statement: per batch, or windowed.
 *
 * PostgreSQL's own parser and analyzer do the work. The statement is kept as
 * pg_get_querydef gives it under search_path pg_catalog, fully qualified, so
 * that a worker runs the same thing whatever its path. What cannot keep the promise that
 * tables do not depend on where batches end is refused, or draws a NOTICE.
 */
#include "postgres.h"

#include "access/table.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "parser/analyze.h"
#include "parser/parser.h"
#include "parser/parsetree.h"
#include "rewrite/rewriteHandler.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/ruleutils.h"

#include "core/compat.h"
#include "core/options.h"
#include "pipeline/pipeline.h"
#include "pipeline/window.h"

/* What a walk over a statement finds. */
typedef struct Findings
{
	List	   *streams;		/* Oid of each reference, with repetitions */
	bool		windowed;
	bool		merges;			/* also in WITH */
	bool		updates;
	bool		aggregates;
	bool		distinct;
	bool		limit;
	bool		window_functions;
} Findings;

static bool
window_function_walker(Node *node, void *context)
{
	if (node == NULL)
		return false;
	if (IsA(node, FuncExpr) && WindowFunctionKind(((FuncExpr *) node)->funcid) != WINDOW_NONE)
		return true;
	return expression_tree_walker(node, window_function_walker, context);
}

/* Does this query level group by a window? */
static bool
groups_by_window(Query *query)
{
	ListCell   *lc;

	if (query->groupClause == NIL)
		return false;
	foreach(lc, query->groupClause)
	{
		SortGroupClause *clause = lfirst_node(SortGroupClause, lc);
		TargetEntry *entry = get_sortgroupref_tle(clause->tleSortGroupRef, query->targetList);
		Node	   *key = (Node *) entry->expr;

		if (QueryHasGroupRTE(query))
			key = flatten_group_exprs(NULL, query, key);
		if (window_function_walker(key, NULL))
			return true;
	}
	foreach(lc, query->rtable)
	{
		RangeTblEntry *rte = lfirst_node(RangeTblEntry, lc);

		if (rte->rtekind == RTE_FUNCTION && window_function_walker((Node *) rte->functions, NULL))
			return true;
	}
	return false;
}

static void
check_stream(Oid relid)
{
	const char *wrapper = StreamWrapper(relid);

	if (strcmp(wrapper, AMQP_WRAPPER) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("stream \"%s\" cannot be read by a pipeline: AMQP streams are not supported yet",
						get_rel_name(relid)),
				 errhint("Bridge the address to a Kafka topic, as demo/ shows.")));
}

static bool
find_walker(Node *node, Findings *findings)
{
	if (node == NULL)
		return false;
	if (IsA(node, Query))
	{
		Query	   *query = (Query *) node;
		ListCell   *lc;
		int			rti = 0;

		foreach(lc, query->rtable)
		{
			RangeTblEntry *rte = lfirst_node(RangeTblEntry, lc);

			rti++;
			if (rte->rtekind != RTE_RELATION || StreamWrapper(rte->relid) == NULL)
				continue;
			check_stream(rte->relid);
			if (rti == query->resultRelation)
				ereport(ERROR,
						(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						 errmsg("cannot write to stream \"%s\"", get_rel_name(rte->relid)),
						 errhint("Publishing to streams is not supported yet.")));
			findings->streams = lappend_oid(findings->streams, rte->relid);
		}
		findings->windowed |= groups_by_window(query);
		findings->merges |= query->commandType == CMD_MERGE;
		findings->updates |= query->commandType == CMD_UPDATE;
		findings->aggregates |= query->hasAggs || query->groupClause != NIL;
		findings->distinct |= query->distinctClause != NIL;
		findings->limit |= query->limitCount != NULL || query->limitOffset != NULL;
		findings->window_functions |= query->hasWindowFuncs;
		return query_tree_walker(query, find_walker, findings, 0);
	}
	return expression_tree_walker(node, find_walker, findings);
}

/* Streams hidden in views count, too: expand a copy as the executor would. */
static void
count_through_views(Query *query, Findings *findings)
{
	List	   *rewritten = QueryRewrite(copyObject(query));
	Findings	deep = {0};
	ListCell   *lc;

	foreach(lc, rewritten)
		find_walker(lfirst(lc), &deep);
	if (list_length(deep.streams) > list_length(findings->streams))
		findings->streams = deep.streams;
}

static void
refuse_update(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("UPDATE cannot be the statement of a pipeline"),
			 errdetail("Of several records of a batch that match one row it would apply any one."),
			 errhint("Use MERGE.")));
}

static void
check_command(Query *query)
{
	switch (query->commandType)
	{
		case CMD_SELECT:
		case CMD_INSERT:
		case CMD_MERGE:
		case CMD_DELETE:
			return;
		case CMD_UPDATE:
			refuse_update();
			break;
		default:
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("this cannot be the statement of a pipeline"),
					 errhint("Use INSERT ... SELECT, MERGE, DELETE ... USING, or SELECT.")));
	}
}

static void
check_streams(Findings *findings)
{
	if (findings->streams == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the statement reads no stream"),
				 errhint("A stream is a foreign table of the wrapper \"%s\".", KAFKA_WRAPPER)));
	if (list_length(findings->streams) > 1)
	{
		Oid			first = linitial_oid(findings->streams);
		Oid			second = lsecond_oid(findings->streams);

		if (first != second)
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("the statement reads two streams, \"%s\" and \"%s\"",
							get_rel_name(first), get_rel_name(second)),
					 errhint("Joins of streams are not supported yet: let one pipeline write its stream to a table and join with that.")));
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("the statement reads stream \"%s\" more than once", get_rel_name(first)),
				 errhint("Read it once, in FROM, and use the row for everything.")));
	}
}

/* What the user should know of a statement that runs over batches. */
static List *
batch_notices(Query *query, Findings *findings)
{
	List	   *notices = NIL;

	if (findings->aggregates && query->onConflict == NULL)
		notices = lappend(notices, "aggregates are computed over each batch by itself");
	if (findings->distinct)
		notices = lappend(notices, "DISTINCT looks at each batch by itself");
	if (findings->limit)
		notices = lappend(notices, "LIMIT counts in each batch anew");
	if (findings->window_functions)
		notices = lappend(notices, "window functions look at each batch by itself");
	return notices;
}

static char *
qualified_text(Query *query)
{
	int			nestlevel = NewGUCNestLevel();
	char	   *text;

	(void) set_config_option("search_path", "pg_catalog", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	text = pg_get_querydef(copyObject(query), false);
	AtEOXact_GUC(false, nestlevel);
	return text;
}

/* Places in messages are places in the statement, not in the query that calls us. */
static void
statement_context(void *arg)
{
	int			position = geterrposition();

	if (position > 0)
	{
		errposition(0);
		internalerrposition(position);
		internalerrquery(arg);
	}
}

static Query *
analyze(const char *text)
{
	ErrorContextCallback callback = {
		.previous = error_context_stack,
		.callback = statement_context,
		.arg = unconstify(char *, text)
	};
	List	   *parsed;
	Query	   *query;

	error_context_stack = &callback;
	parsed = pg_parse_query(text);
	if (list_length(parsed) != 1)
		ereport(ERROR,
				(errcode(ERRCODE_SYNTAX_ERROR),
				 errmsg("a pipeline has exactly one statement, not %d", list_length(parsed))));
	query = parse_analyze_fixedparams(linitial_node(RawStmt, parsed), text, NULL, 0, NULL);
	error_context_stack = callback.previous;
	return query;
}

static Statement *
classify(Query *query)
{
	Statement  *statement = palloc0(sizeof(Statement));
	Findings	findings = {0};

	check_command(query);
	find_walker((Node *) query, &findings);
	if (findings.updates)
		refuse_update();
	if (!findings.windowed)
		count_through_views(query, &findings);
	check_streams(&findings);

	statement->query = query;
	statement->stream = linitial_oid(findings.streams);
	statement->merges = findings.merges;
	statement->kind = findings.windowed ? PIPELINE_WINDOWED : PIPELINE_PER_BATCH;
	if (statement->kind == PIPELINE_PER_BATCH)
		statement->notices = batch_notices(query, &findings);
	return statement;
}

Statement *
StatementAnalyze(const char *text)
{
	Statement  *statement = classify(analyze(text));

	statement->qualified = qualified_text(statement->query);
	return statement;
}

Statement *
StatementReanalyze(const char *qualified)
{
	int			nestlevel = NewGUCNestLevel();
	Statement  *statement;

	RestrictSearchPath();
	statement = classify(analyze(qualified));
	AtEOXact_GUC(false, nestlevel);
	statement->qualified = pstrdup(qualified);
	return statement;
}
