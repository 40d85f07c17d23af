/*
 * verify_oracle.c
 *		What a windowed pipeline should have written, as SQL over a table of its records.
 *
 * RollupCompile() has taken the statement apart. Here its parts are put together again, with a table in the place of
 * the stream and PostgreSQL's own GROUP BY in the place of our groups:
 *
 *		records		the table's rows that the pipeline has read and could apply; they stand where the stream stood
 *		feed		the user's FROM and WHERE over them: keys and arguments of aggregates
 *		windows		each row of the feed with each window that it counts in, of those that are closed
 *		groups		the user's aggregates over that, by window and keys
 *		finished	without those whose row could not be written
 *		rows		the user's HAVING, expressions and column list over that
 *
 * Which pairs of record and window were late is not computed again: dead letters say it. All behind RollupCompile() is, by means
 * that share no code with the pipeline, for what is wrong in both is not seen.
 *
 * Parts are made as trees where the user wrote them, and as text where we do. OFFSET 0 and MATERIALIZED keep the
 * planner from asking the user's expressions about records and groups at which they failed.
 */
#include "postgres.h"

#include "catalog/pg_aggregate.h"
#include "catalog/pg_type.h"
#include "lib/stringinfo.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "parser/analyze.h"
#include "parser/parser.h"
#include "parser/parsetree.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/ruleutils.h"
#include "utils/timestamp.h"

#include "core/compat.h"
#include "pipeline/start.h"
#include "pipeline/verify_oracle.h"

/* Names that no user's table, column or WITH has. */
#define CTE_LETTERS "hybridiot letters"
#define CTE_LATE "hybridiot late"
#define CTE_ASIDE "hybridiot aside"
#define CTE_FAILED "hybridiot failed"
#define CTE_FEED "hybridiot feed"
#define CTE_KEYED "hybridiot keyed"
#define CTE_WINDOWS "hybridiot windows"
#define CTE_CLOSED "hybridiot closed"
#define CTE_GROUPS "hybridiot groups"
#define CTE_FINISHED "hybridiot finished"
#define CTE_ROWS "hybridiot rows"
#define COLUMN_WINDOW "hybridiot window"
#define COLUMN_SCALE "hybridiot scale"
#define COLUMN_TOPIC "hybridiot topic"
#define COLUMN_PARTITION "hybridiot partition"
#define COLUMN_OFFSET "hybridiot offset"
#define COLUMN_TIME "hybridiot time"
#define COLUMN_STREAM_TIME "hybridiot stream time"
#define COLUMN_GROUP "hybridiot group"

/* What stands behind the stream's own columns in records, and behind those of the feed. */
static const struct
{
	const char *name;
	Oid			type;
}			extras[] = {
	{COLUMN_TOPIC, TEXTOID},
	{COLUMN_PARTITION, INT8OID},
	{COLUMN_OFFSET, INT8OID},
	{COLUMN_TIME, TIMESTAMPTZOID},
	{COLUMN_STREAM_TIME, TIMESTAMPTZOID}
};

typedef struct Oracle
{
	const PipelineDefinition *def;
	RollupPlan *plan;
	const VerifySource *source;
	const VerifyProgress *progress;
	Start	   *start;
	VerifyOracle *result;
} Oracle;

char *
VerifyTimeText(TimestampTz time)
{
	return psprintf("(timestamptz '2000-01-01 00:00:00+00' + interval '" INT64_FORMAT " microseconds')", time);
}

static char *
length_text(int64 us)
{
	return psprintf("interval '" INT64_FORMAT " microseconds'", us);
}

/* "t1.a = t2.b" for the places of records; t1's as given, and topics only where there are several. */
static char *
same_record(const Oracle *oracle, const char *topic, const char *partition, const char *offset, const char *letter)
{
	return psprintf("%s.partition = %s AND %s.\"offset\" = %s%s", letter, partition, letter, offset,
					oracle->source->topic == NULL ? "" : psprintf(" AND %s.topic = %s", letter, topic));
}

/* ---------------------------------------------------------------------------
 * Records
 * ---------------------------------------------------------------------------
 */

/* Records before the offsets that the pipeline began at are not its own. */
static char *
before_start(const Oracle *oracle)
{
	const Start *start = oracle->start;
	StringInfoData text;

	initStringInfo(&text);
	for (int i = 0; i < start->noffsets; i++)
	{
		appendStringInfo(&text, " AND NOT (p.partition = %d AND %s < " INT64_FORMAT,
						 start->partitions[i], oracle->source->offset, start->offsets[i]);
		if (start->topics[i] != NULL)
			appendStringInfo(&text, " AND p.topic = %s", quote_literal_cstr(start->topics[i]));
		appendStringInfoChar(&text, ')');
	}
	return text.data;
}

/*
 * The table's rows that the pipeline has read, without those that it set aside. Time rose with records that were
 * rejected, but not with those that were undecodable or of the future.
 */
static char *
records_text(const Oracle *oracle, List *names)
{
	const VerifySource *source = oracle->source;
	bool		session = oracle->plan->window.kind == WINDOW_SESSION;
	char	   *own = same_record(oracle, source->topic, source->partition, source->offset, "l");
	StringInfoData text;
	ListCell   *lc;

	initStringInfo(&text);
	/* To be analyzed by itself it needs a relation of that name; our caller takes it away again. */
	appendStringInfoString(&text, "WITH \"" CTE_ASIDE "\" AS (SELECT NULL::text AS topic, 0 AS partition, 0::bigint AS \"offset\","
						   " NULL::text AS reason) SELECT ");
	foreach(lc, names)
		appendStringInfo(&text, "%s AS %s, ", source->columns[foreach_current_index(lc)],
						 quote_identifier(strVal(lfirst(lc))));
	appendStringInfo(&text, "s.\"" COLUMN_TOPIC "\", s.\"" COLUMN_PARTITION "\", s.\"" COLUMN_OFFSET "\","
					 " s.\"" COLUMN_TIME "\", s.\"" COLUMN_STREAM_TIME "\" FROM (SELECT s.*,"
					 " p.topic AS \"" COLUMN_TOPIC "\", p.partition::bigint AS \"" COLUMN_PARTITION "\","
					 " %s::bigint AS \"" COLUMN_OFFSET "\", %s AS \"" COLUMN_TIME "\","
					 " %s AS \"" COLUMN_STREAM_TIME "\"",
					 source->offset, source->time, !session ? "NULL::timestamptz" :
					 psprintf("max(%s) OVER (PARTITION BY p.topic, p.partition ORDER BY %s)", source->time, source->offset));
	appendStringInfo(&text, " FROM %s AS s JOIN %s AS p ON p.partition = %s AND %s < p.next_offset%s",
					 source->relation, CatalogPositionsText(oracle->def), source->partition, source->offset,
					 source->topic == NULL ? "" : psprintf(" AND p.topic = %s", source->topic));
	appendStringInfo(&text, " WHERE NOT EXISTS (SELECT FROM \"" CTE_ASIDE "\" AS l WHERE %s AND l.reason <> 'rejected')%s) AS s"
					 " WHERE NOT EXISTS (SELECT FROM \"" CTE_ASIDE "\" AS l WHERE %s) OFFSET 0",
					 own, before_start(oracle), own);
	return text.data;
}

static Query *
analyze(const char *text)
{
	List	   *parsed = pg_parse_query(text);

	return parse_analyze_fixedparams(linitial_node(RawStmt, parsed), text, NULL, 0, NULL);
}

/* A whole row of the stream would be one of records, which has more columns. */
static bool
whole_row_walker(Node *node, RollupPlan *plan)
{
	if (node == NULL)
		return false;
	if (IsA(node, Var))
		return ((Var *) node)->varno == plan->stream_rti && ((Var *) node)->varattno == 0;
	if (IsA(node, Query))
		return query_tree_walker((Query *) node, whole_row_walker, plan, 0);
	return expression_tree_walker(node, whole_row_walker, plan);
}

/* Put records in the place of the stream, and the places of the records in the place of ctid. */
static char *
feed_text(Oracle *oracle)
{
	Query	   *feed = copyObject(oracle->plan->feed_tree);
	int			rti = oracle->plan->stream_rti;
	RangeTblEntry *stream = rt_fetch(rti, feed->rtable);
	RangeTblEntry *records = makeNode(RangeTblEntry);
	int			ncolumns = list_length(stream->eref->colnames);
	List	   *names = NIL;
	ListCell   *lc;

	if (whole_row_walker((Node *) feed, oracle->plan))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("pipeline \"%s\" cannot be verified: its statement uses whole rows of its stream", oracle->def->name),
				 errhint("Name the columns.")));
	foreach(lc, stream->eref->colnames)
	{
		char	   *name = strVal(lfirst(lc));

		/* Dropped columns have none. */
		names = lappend(names, makeString(name[0] != '\0' ? name :
										  psprintf("hybridiot dropped %d", foreach_current_index(lc) + 1)));
	}
	records->rtekind = RTE_SUBQUERY;
	records->subquery = analyze(records_text(oracle, names));
	records->subquery->cteList = NIL;
	records->alias = makeAlias(stream->eref->aliasname, NIL);
	records->inFromCl = true;
	list_nth_cell(feed->rtable, rti - 1)->ptr_value = records;

	for (int i = 0; i < lengthof(extras); i++)
	{
		Var		   *var = makeVar(rti, ncolumns + i + 1, extras[i].type, -1, get_typcollation(extras[i].type), 0);
		TargetEntry *tle = makeTargetEntry((Expr *) var, list_length(feed->targetList) + 1, pstrdup(extras[i].name), false);

		names = lappend(names, makeString(pstrdup(extras[i].name)));
		if (i == 0)
		{
			tle->resno = 1;
			linitial(feed->targetList) = tle;
		}
		else
			feed->targetList = lappend(feed->targetList, tle);
	}
	records->eref = makeAlias(stream->eref->aliasname, names);
	return pg_get_querydef(feed, false);
}

/* ---------------------------------------------------------------------------
 * Windows
 * ---------------------------------------------------------------------------
 */

/* Condition: the record of feed row f has no letter l of which this is true. */
static char *
not_late(const Oracle *oracle, const char *condition)
{
	return psprintf("NOT EXISTS (SELECT FROM \"" CTE_LATE "\" AS l WHERE %s AND %s)",
					same_record(oracle, "f.\"" COLUMN_TOPIC "\"", "f.\"" COLUMN_PARTITION "\"", "f.\"" COLUMN_OFFSET "\"", "l"),
					condition);
}

/* A number for each group of keys, so that null keys can be joined by it. */
static char *
group_number(const Oracle *oracle)
{
	const GroupLayout *layout = &oracle->plan->layout;
	StringInfoData text;

	if (layout->nkeys == 0)
		return "0";
	initStringInfo(&text);
	appendStringInfoString(&text, "dense_rank() OVER (ORDER BY ");
	for (int i = 0; i < layout->nkeys; i++)
		appendStringInfo(&text, "%sf.c%d", i > 0 ? ", " : "", layout->keys[i].column);
	appendStringInfoChar(&text, ')');
	return text.data;
}

/* Windows that a record's time tells. */
static void
add_aligned(Oracle *oracle, StringInfo text)
{
	const WindowSpec *window = &oracle->plan->window;
	char	   *call = window->kind == WINDOW_TUMBLE ?
		psprintf("hybridiot.tumble(f.\"" COLUMN_TIME "\", %s, %s)", length_text(window->size), VerifyTimeText(window->origin)) :
		psprintf("hybridiot.hop(f.\"" COLUMN_TIME "\", %s, %s)", length_text(window->size), length_text(window->advance));

	appendStringInfo(text, ", \"" CTE_WINDOWS "\" AS (SELECT f.*, w.w AS \"" COLUMN_WINDOW "\""
					 " FROM \"" CTE_FEED "\" AS f CROSS JOIN LATERAL %s AS w(w) WHERE %s)",
					 call, not_late(oracle, "w.w <@ l.during"));
}

/*
 * Windows that end at a record or begin just behind one of the same keys, and hold any. A record that was late
 * for the window that ends at it does not make it; one that was late for all that hold it (its letter's end is included
 * then) makes none. Pairs are found by slots of the windows' size, of which a window touches three at most.
 */
static void
add_sliding(Oracle *oracle, StringInfo text)
{
	char	   *size = length_text(oracle->plan->window.size);
	char	   *slot = "floor(extract(epoch FROM %s) * 1000000 / " INT64_FORMAT ")::bigint";
	char	   *slot_of_time = psprintf(slot, "f.\"" COLUMN_TIME "\"", oracle->plan->window.size);
	char	   *first = psprintf(slot, "lower(a.w)", oracle->plan->window.size);
	char	   *last = psprintf(slot, "upper(a.w)", oracle->plan->window.size);

	appendStringInfo(text, ", \"" CTE_KEYED "\" AS MATERIALIZED (SELECT f.*, %s AS \"" COLUMN_GROUP "\", %s AS slot"
					 " FROM \"" CTE_FEED "\" AS f)", group_number(oracle), slot_of_time);
	appendStringInfo(text, ", \"hybridiot anchors\" AS MATERIALIZED (SELECT a.*, n.slot FROM (SELECT DISTINCT f.\"" COLUMN_GROUP "\", a.w"
					 " FROM \"" CTE_KEYED "\" AS f CROSS JOIN LATERAL (VALUES"
					 " (tstzrange(f.\"" COLUMN_TIME "\" - %s, f.\"" COLUMN_TIME "\", '[]'), false),"
					 " (tstzrange(f.\"" COLUMN_TIME "\" + %s, f.\"" COLUMN_TIME "\" + %s + %s, '[]'), true)) AS a(w, behind) WHERE %s) AS a"
					 " CROSS JOIN LATERAL generate_series(%s, %s) AS n(slot))",
					 size, length_text(1), length_text(1), size,
					 not_late(oracle, "CASE WHEN a.behind THEN upper_inc(l.during) ELSE a.w <@ l.during END"), first, last);
	appendStringInfo(text, ", \"" CTE_WINDOWS "\" AS (SELECT f.*, a.w AS \"" COLUMN_WINDOW "\" FROM \"hybridiot anchors\" AS a"
					 " JOIN \"" CTE_KEYED "\" AS f ON f.\"" COLUMN_GROUP "\" = a.\"" COLUMN_GROUP "\" AND f.slot = a.slot"
					 " AND f.\"" COLUMN_TIME "\" <@ a.w WHERE %s)",
					 not_late(oracle, "a.w <@ l.during"));
}

/*
 * Sessions: the records of each group of keys in the order of their log, one by one. A record joins the sessions that
 * it touches and that are not over for its partition; which it joins may make one of two. So much
 * of a session's fate hangs on the order that gaps between sorted times do not tell it. Records of several partitions are taken in the order of
 * their stream times, as if all partitions had been read in step.
 */
static void
add_sessions(Oracle *oracle, StringInfo text)
{
	char	   *gap = length_text(oracle->plan->window.size);
	char	   *lateness = length_text(oracle->def->options.lateness_us);

	appendStringInfo(text, ", \"" CTE_KEYED "\" AS MATERIALIZED (SELECT f.*, row_number() OVER (PARTITION BY \"" COLUMN_GROUP "\""
					 " ORDER BY \"" COLUMN_STREAM_TIME "\", \"" COLUMN_TOPIC "\", \"" COLUMN_PARTITION "\", \"" COLUMN_OFFSET "\") AS n"
					 " FROM (SELECT f.*, %s AS \"" COLUMN_GROUP "\" FROM \"" CTE_FEED "\" AS f WHERE %s) AS f)",
					 group_number(oracle), not_late(oracle, "true"));
	/* Sessions that are not over are kept as first times, last times, and numbers of the records that began them. */
	appendStringInfo(text, ", \"hybridiot steps\" AS MATERIALIZED (SELECT c.g, s.n, s.own, s.merged FROM (SELECT \"" COLUMN_GROUP "\" AS g,"
					 " array_agg(\"" COLUMN_TIME "\" ORDER BY n) AS times, array_agg(\"" COLUMN_STREAM_TIME "\" - %s ORDER BY n) AS nows"
					 " FROM \"" CTE_KEYED "\" GROUP BY 1) AS c CROSS JOIN LATERAL ("
					 "WITH RECURSIVE steps(n, lo, hi, id, own, merged) AS ("
					 "SELECT 0::bigint, '{}'::timestamptz[], '{}'::timestamptz[], '{}'::bigint[], 0::bigint, '{}'::bigint[]"
					 " UNION ALL SELECT s.n + 1, x.* FROM steps AS s CROSS JOIN LATERAL (SELECT"
					 " array_agg(o.lo) FILTER (WHERE NOT o.touched) || least(min(o.lo) FILTER (WHERE o.touched), c.times[s.n + 1]),"
					 " array_agg(o.hi) FILTER (WHERE NOT o.touched) || greatest(max(o.hi) FILTER (WHERE o.touched), c.times[s.n + 1]),"
					 " array_agg(o.id) FILTER (WHERE NOT o.touched) || coalesce(min(o.id) FILTER (WHERE o.touched), s.n + 1),"
					 " coalesce(min(o.id) FILTER (WHERE o.touched), s.n + 1),"
					 " array_agg(o.id) FILTER (WHERE o.touched)"
					 " FROM (SELECT u.*, c.times[s.n + 1] BETWEEN u.lo - %s AND u.hi + %s AS touched FROM unnest(s.lo, s.hi, s.id) AS u(lo, hi, id)"
					 " WHERE u.hi + %s >= c.nows[s.n + 1]) AS o) AS x WHERE s.n < cardinality(c.times))"
					 " SELECT n, own, merged FROM steps WHERE n > 0) AS s)",
					 lateness, gap, gap, gap);
	/* What was merged, under the number that stayed. */
	appendStringInfoString(text, ", \"hybridiot merges\" AS MATERIALIZED (SELECT s.g, s.own, m.id FROM \"hybridiot steps\" AS s"
						   " CROSS JOIN LATERAL unnest(s.merged) AS m(id) WHERE m.id <> s.own)"
						   ", \"hybridiot roots\" AS MATERIALIZED (WITH RECURSIVE roots AS (SELECT s.g, s.own AS id, s.own AS root"
						   " FROM \"hybridiot steps\" AS s WHERE s.own = s.n AND NOT EXISTS"
						   " (SELECT FROM \"hybridiot merges\" AS m WHERE m.g = s.g AND m.id = s.own)"
						   " UNION ALL SELECT m.g, m.id, r.root FROM roots AS r JOIN \"hybridiot merges\" AS m ON m.g = r.g AND m.own = r.id)"
						   " SELECT * FROM roots)");
	appendStringInfoString(text, ", \"" CTE_WINDOWS "\" AS (SELECT f.*, tstzrange(min(f.\"" COLUMN_TIME "\") OVER session,"
						   " max(f.\"" COLUMN_TIME "\") OVER session, '[]') AS \"" COLUMN_WINDOW "\" FROM \"" CTE_KEYED "\" AS f"
						   " JOIN \"hybridiot steps\" AS s ON s.g = f.\"" COLUMN_GROUP "\" AND s.n = f.n"
						   " JOIN \"hybridiot roots\" AS r ON r.g = s.g AND r.id = s.own"
						   " WINDOW session AS (PARTITION BY r.g, r.root))");
	oracle->result->in_doubt = "(SELECT count(*) FROM (SELECT FROM \"" CTE_KEYED "\" GROUP BY \"" COLUMN_GROUP "\""
		" HAVING (min(\"" COLUMN_TOPIC "\"), min(\"" COLUMN_PARTITION "\")) <> (max(\"" COLUMN_TOPIC "\"), max(\"" COLUMN_PARTITION "\"))) AS k)";
}

static void
add_windows(Oracle *oracle, StringInfo text)
{
	switch (oracle->plan->window.kind)
	{
		case WINDOW_NONE:
			elog(ERROR, "a windowed pipeline has no window");
			break;
		case WINDOW_TUMBLE:
		case WINDOW_HOP:
			add_aligned(oracle, text);
			break;
		case WINDOW_SLIDE:
			add_sliding(oracle, text);
			break;
		case WINDOW_SESSION:
			add_sessions(oracle, text);
			break;
	}
}

/* ---------------------------------------------------------------------------
 * Groups
 * ---------------------------------------------------------------------------
 */

/* A CTE of ours as an entry of a range table. */
static RangeTblEntry *
cte_entry(const char *name, const char *alias, List *colnames)
{
	RangeTblEntry *rte = makeNode(RangeTblEntry);

	rte->rtekind = RTE_CTE;
	rte->ctename = pstrdup(name);
	rte->alias = makeAlias(alias, NIL);
	rte->eref = makeAlias(alias, colnames);
	rte->inFromCl = true;
	return rte;
}

static Node *
first_entry(void)
{
	RangeTblRef *ref = makeNode(RangeTblRef);

	ref->rtindex = 1;
	return (Node *) ref;
}

/* Column of the feed (0-based, as in the layout) in CTE_CLOSED as cte_entry() has it: the window comes first. */
static Var *
feed_var(const Oracle *oracle, int column)
{
	TargetEntry *tle = list_nth_node(TargetEntry, oracle->plan->feed_tree->targetList, column);

	return makeVar(1, column + 1, exprType((Node *) tle->expr), exprTypmod((Node *) tle->expr),
				   exprCollation((Node *) tle->expr), 0);
}

static void
add_key(Query *groups, Var *var, const char *name)
{
	TargetEntry *tle = makeTargetEntry((Expr *) var, list_length(groups->targetList) + 1, pstrdup(name), false);
	SortGroupClause *clause = makeNode(SortGroupClause);

	tle->ressortgroupref = tle->resno;
	clause->tleSortGroupRef = tle->resno;
	groups->targetList = lappend(groups->targetList, tle);
	groups->groupClause = lappend(groups->groupClause, clause);
}

/* The largest finite number that an aggregate of this row gets. */
static char *
scale_of_row(const Oracle *oracle)
{
	const GroupLayout *layout = &oracle->plan->layout;
	StringInfoData text;

	initStringInfo(&text);
	for (int i = 0; i < layout->naggregates; i++)
		for (int k = 0; k < layout->aggregates[i].nargs; k++)
		{
			int			column = layout->aggregates[i].columns[k];
			Oid			type = getBaseType(feed_var(oracle, column)->vartype);

			if (type == FLOAT4OID || type == FLOAT8OID)
				appendStringInfo(&text, "%sCASE WHEN f.c%d NOT IN ('NaN', 'Infinity', '-Infinity') THEN abs(f.c%d)::float8 END",
								 text.len > 0 ? ", " : "greatest(", column, column);
		}
	appendStringInfoString(&text, text.len > 0 ? ")" : "NULL::float8");
	return text.data;
}

/* max() of what scale_of_row() gave; column: its number in the range table entry. */
static Aggref *
largest(int column)
{
	Aggref	   *max = makeNode(Aggref);
	Var		   *var = makeVar(1, column, FLOAT8OID, -1, InvalidOid, 0);

	max->aggfnoid = F_MAX_FLOAT8;
	max->aggtype = FLOAT8OID;
	max->aggargtypes = list_make1_oid(FLOAT8OID);
	max->args = list_make1(makeTargetEntry((Expr *) var, 1, NULL, false));
	max->aggkind = AGGKIND_NORMAL;
	return max;
}

/* SELECT window, keys, aggregates, scale FROM windows WHERE the window is closed GROUP BY window, keys */
static char *
groups_text(Oracle *oracle)
{
	RollupPlan *plan = oracle->plan;
	const GroupLayout *layout = &plan->layout;
	Query	   *groups = makeNode(Query);
	List	   *names = list_make1(makeString(COLUMN_WINDOW));

	for (int i = 1; i < plan->ncolumns; i++)
		names = lappend(names, makeString(psprintf("c%d", i)));
	names = lappend(names, makeString(COLUMN_SCALE));
	groups->commandType = CMD_SELECT;
	groups->hasAggs = true;
	groups->rtable = list_make1(cte_entry(CTE_CLOSED, "f", names));
	groups->jointree = makeFromExpr(list_make1(first_entry()), NULL);

	add_key(groups, makeVar(1, 1, TSTZRANGEOID, -1, InvalidOid, 0), COLUMN_WINDOW);
	for (int i = 0; i < layout->nkeys; i++)
		add_key(groups, feed_var(oracle, layout->keys[i].column), psprintf("k%d", i + 1));
	for (int i = 0; i < layout->naggregates; i++)
	{
		const GroupAggregate *aggregate = &layout->aggregates[i];
		Aggref	   *call = copyObject(list_nth_node(Aggref, plan->aggregates, i));
		ListCell   *lc;

		foreach(lc, call->args)
			lfirst_node(TargetEntry, lc)->expr = (Expr *) feed_var(oracle, aggregate->columns[foreach_current_index(lc)]);
		if (aggregate->filter >= 0)
			call->aggfilter = (Expr *) feed_var(oracle, aggregate->filter);
		groups->targetList = lappend(groups->targetList,
									 makeTargetEntry((Expr *) call, list_length(groups->targetList) + 1,
													 psprintf("a%d", i + 1), false));
	}
	groups->targetList = lappend(groups->targetList,
								 makeTargetEntry((Expr *) largest(list_length(names)), list_length(groups->targetList) + 1,
												 COLUMN_SCALE, false));
	return pg_get_querydef(groups, false);
}

/* Condition: the row of the group with this window and these keys was set aside. */
static char *
failed_text(const Oracle *oracle, char **keys)
{
	const GroupLayout *layout = &oracle->plan->layout;
	StringInfoData text;

	initStringInfo(&text);
	appendStringInfoString(&text, "EXISTS (SELECT FROM \"" CTE_FAILED "\" AS l");
	for (int i = 0; i < layout->nkeys; i++)
		appendStringInfo(&text, "%s%s %s", i == 0 ? " CROSS JOIN LATERAL jsonb_to_record(l.group_keys) AS k(" : ", ",
						 quote_identifier(layout->keys[i].name),
						 format_type_with_typemod(layout->keys[i].type, layout->keys[i].typmod));
	appendStringInfo(&text, "%s WHERE l.during = %s", layout->nkeys > 0 ? ")" : "", keys[0]);
	for (int i = 0; i < layout->nkeys; i++)
		appendStringInfo(&text, " AND k.%s IS NOT DISTINCT FROM %s", quote_identifier(layout->keys[i].name), keys[i + 1]);
	appendStringInfoChar(&text, ')');
	return text.data;
}

static void
add_groups(Oracle *oracle, StringInfo text)
{
	const GroupLayout *layout = &oracle->plan->layout;
	char	  **keys = palloc(sizeof(char *) * (layout->nkeys + 1));
	char	   *begin = oracle->start->kind != START_TIME ? "" :
		psprintf(" AND lower(f.\"" COLUMN_WINDOW "\") >= %s", VerifyTimeText(oracle->start->time));

	keys[0] = "g.\"" COLUMN_WINDOW "\"";
	for (int i = 0; i < layout->nkeys; i++)
		keys[i + 1] = psprintf("g.k%d", i + 1);
	appendStringInfo(text, ", \"" CTE_CLOSED "\" AS (SELECT f.*, %s AS \"" COLUMN_SCALE "\" FROM \"" CTE_WINDOWS "\" AS f"
					 " WHERE upper(f.\"" COLUMN_WINDOW "\") <= %s%s)",
					 scale_of_row(oracle), VerifyTimeText(oracle->progress->closed_before), begin);
	appendStringInfo(text, ", \"" CTE_GROUPS "\" AS MATERIALIZED (%s)", groups_text(oracle));
	appendStringInfo(text, ", \"" CTE_FINISHED "\" AS MATERIALIZED (SELECT g.* FROM \"" CTE_GROUPS "\" AS g WHERE NOT %s)",
					 failed_text(oracle, keys));
}

/* ---------------------------------------------------------------------------
 * Rows
 * ---------------------------------------------------------------------------
 */

/* Would another time, or another run, give another value? */
static bool
changing_walker(Node *node, void *context)
{
	if (node == NULL)
		return false;
	if (IsA(node, SQLValueFunction))
		return true;
	if (IsA(node, FuncExpr))
		switch (((FuncExpr *) node)->funcid)
		{
			case F_NOW:
			case F_TRANSACTION_TIMESTAMP:
			case F_STATEMENT_TIMESTAMP:
				return true;
		}
	if (IsA(node, Query))
		return query_tree_walker((Query *) node, changing_walker, context, 0);
	return expression_tree_walker(node, changing_walker, context);
}

static bool
changing(Node *node)
{
	return contain_volatile_functions(node) || changing_walker(node, NULL);
}

static void
add_column(List **columns, Var *var, const char *name)
{
	*columns = lappend(*columns, makeTargetEntry((Expr *) var, list_length(*columns) + 1, pstrdup(name), false));
}

/*
 * The user's SELECT over finished groups, with CTE_FINISHED in their place and window and scale in two more columns.
 * Expressions that must not run again are nulls; their numbers are returned.
 */
static Bitmapset *
finish_over_groups(Oracle *oracle, Query *finish)
{
	RangeTblEntry *groups = linitial_node(RangeTblEntry, finish->rtable);
	const GroupLayout *layout = &oracle->plan->layout;
	List	   *names = list_make1(makeString(COLUMN_WINDOW));
	Bitmapset  *nulls = NULL;
	ListCell   *lc;

	for (int i = 0; i < layout->nkeys; i++)
		names = lappend(names, makeString(psprintf("k%d", i + 1)));
	for (int i = 0; i < layout->naggregates; i++)
		names = lappend(names, makeString(psprintf("a%d", i + 1)));
	names = lappend(names, makeString(COLUMN_SCALE));
	linitial(finish->rtable) = cte_entry(CTE_FINISHED, groups->eref->aliasname, names);

	if (changing(finish->jointree->quals))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("pipeline \"%s\" cannot be verified: its HAVING clause uses volatile functions or the present time",
						oracle->def->name)));
	foreach(lc, finish->targetList)
	{
		TargetEntry *tle = lfirst_node(TargetEntry, lc);
		Node	   *expr = (Node *) tle->expr;

		if (!changing(expr))
			continue;
		tle->expr = (Expr *) makeNullConst(exprType(expr), exprTypmod(expr), exprCollation(expr));
		nulls = bms_add_member(nulls, tle->resno);
	}
	add_column(&finish->targetList, makeVar(1, 1, TSTZRANGEOID, -1, InvalidOid, 0), COLUMN_WINDOW);
	add_column(&finish->targetList, makeVar(1, list_length(names), FLOAT8OID, -1, InvalidOid, 0), COLUMN_SCALE);
	return nulls;
}

/* May the value of this column of INSERT be compared? */
static bool
comparable(Oracle *oracle, TargetEntry *tle, Bitmapset *nulls, int select_rti)
{
	ListCell   *lc;

	if (IsA(tle->expr, FieldStore) || IsA(tle->expr, SubscriptingRef))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("pipeline \"%s\" cannot be verified: its statement writes parts of columns", oracle->def->name)));
	if (changing((Node *) tle->expr))
		return false;
	foreach(lc, pull_var_clause((Node *) tle->expr, 0))
	{
		Var		   *var = lfirst_node(Var, lc);

		if (var->varno == select_rti && bms_is_member(var->varattno, nulls))
			return false;
	}
	return true;
}

/* What a column of INSERT gets from the user's SELECT, as it is; NULL: it is converted on the way. */
static Node *
selected(TargetEntry *tle, Query *finish, int select_rti)
{
	Var		   *var = (Var *) tle->expr;

	return !IsA(var, Var) || var->varno != select_rti ? NULL :
		(Node *) list_nth_node(TargetEntry, finish->targetList, var->varattno - 1)->expr;
}

/* The group key (0: the window) that a finished column is; -1: none. */
static int
key_of(const Oracle *oracle, Node *expr)
{
	Var		   *var = (Var *) expr;

	return expr != NULL && IsA(var, Var) && var->varno == 1 && var->varlevelsup == 0 &&
		var->varattno <= oracle->plan->layout.nkeys + 1 ? var->varattno - 1 : -1;
}

/* The window, if a column holds one of its ends and its length is known. */
static char *
window_of_end(const Oracle *oracle, Node *expr, const char *column)
{
	FuncExpr   *call = (FuncExpr *) expr;
	WindowKind	kind = oracle->plan->window.kind;
	char	   *size = length_text(oracle->plan->window.size);

	if (expr == NULL || !IsA(call, FuncExpr) || list_length(call->args) != 1 || key_of(oracle, linitial(call->args)) != 0 ||
		(kind != WINDOW_TUMBLE && kind != WINDOW_HOP))
		return NULL;
	if (call->funcid == F_LOWER_ANYRANGE)
		return psprintf("tstzrange(%s, %s + %s)", column, column, size);
	if (call->funcid == F_UPPER_ANYRANGE)
		return psprintf("tstzrange(%s - %s, %s)", column, size, column);
	return NULL;
}

/* What the target's columns tell of window and keys. */
static void
describe_target(Oracle *oracle, Query *insert, Query *finish, int select_rti)
{
	int			nkeys = oracle->plan->layout.nkeys;
	char	  **keys = palloc0(sizeof(char *) * (nkeys + 1));
	ListCell   *lc;

	foreach(lc, insert->targetList)
	{
		TargetEntry *tle = lfirst_node(TargetEntry, lc);
		Node	   *expr = selected(tle, finish, select_rti);
		int			key = key_of(oracle, expr);
		char	   *column = psprintf("t.%s", quote_identifier(get_attname(oracle->plan->target, tle->resno, false)));

		if (key >= 0 && keys[key] == NULL)
			keys[key] = column;
		else if (oracle->result->during == NULL)
			oracle->result->during = window_of_end(oracle, expr, column);
	}
	if (keys[0] != NULL)
		oracle->result->during = keys[0];
	for (int i = 0; i <= nkeys; i++)
		if (keys[i] == NULL)
			return;
	oracle->result->failed = failed_text(oracle, keys);
}

/* Rows that replace rows of other windows leave nothing to compare with. */
static void
check_conflict(const Oracle *oracle, Query *insert, Query *finish, int select_rti)
{
	OnConflictExpr *conflict = insert->onConflict;
	Bitmapset  *keys = NULL;
	ListCell   *lc;

	if (conflict == NULL || conflict->arbiterElems == NIL)
		return;
	foreach(lc, conflict->arbiterElems)
	{
		Var		   *var = (Var *) lfirst_node(InferenceElem, lc)->expr;
		TargetEntry *tle = IsA(var, Var) ? get_tle_by_resno(insert->targetList, var->varattno) : NULL;
		int			key = tle == NULL ? -1 : key_of(oracle, selected(tle, finish, select_rti));

		if (key >= 0)
			keys = bms_add_member(keys, key);
	}
	if (bms_num_members(keys) != oracle->plan->layout.nkeys + 1)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("pipeline \"%s\" cannot be verified: its rows may meet rows of other windows in ON CONFLICT",
						oracle->def->name),
				 errhint("Verify a pipeline whose ON CONFLICT names every group key, window included.")));
}

/* INSERT's column list over the user's SELECT. */
static void
add_rows(Oracle *oracle, StringInfo text)
{
	Query	   *insert = copyObject(oracle->plan->finish_tree);
	int			select_rti = linitial_node(RangeTblRef, insert->jointree->fromlist)->rtindex;
	RangeTblEntry *select = rt_fetch(select_rti, insert->rtable);
	Query	   *finish = select->subquery;
	VerifyOracle *result = oracle->result;
	List	   *compared = NIL;
	Bitmapset  *nulls;
	ListCell   *lc;

	check_conflict(oracle, insert, finish, select_rti);
	describe_target(oracle, insert, finish, select_rti);
	nulls = finish_over_groups(oracle, finish);
	select->eref->colnames = lappend(select->eref->colnames, makeString(COLUMN_WINDOW));
	select->eref->colnames = lappend(select->eref->colnames, makeString(COLUMN_SCALE));
	select->inFromCl = true;
	foreach(lc, insert->targetList)
	{
		TargetEntry *tle = lfirst_node(TargetEntry, lc);
		VerifyColumn *column = palloc(sizeof(VerifyColumn));

		if (!comparable(oracle, tle, nulls, select_rti))
		{
			result->left_out = lappend(result->left_out, get_attname(oracle->plan->target, tle->resno, false));
			continue;
		}
		column->attnum = tle->resno;
		column->type = exprType((Node *) tle->expr);
		result->columns = lappend(result->columns, column);
		tle->resno = list_length(result->columns);
		tle->resname = psprintf("v%d", tle->resno);
		compared = lappend(compared, tle);
	}
	add_column(&compared, makeVar(select_rti, list_length(finish->targetList) - 1, TSTZRANGEOID, -1, InvalidOid, 0), COLUMN_WINDOW);
	add_column(&compared, makeVar(select_rti, list_length(finish->targetList), FLOAT8OID, -1, InvalidOid, 0), COLUMN_SCALE);
	insert->targetList = compared;
	insert->commandType = CMD_SELECT;
	insert->resultRelation = 0;
	insert->onConflict = NULL;
	insert->returningList = NIL;
	appendStringInfo(text, ", \"" CTE_ROWS "\" AS (%s)", pg_get_querydef(insert, false));
	result->rows = CTE_ROWS;
	result->window = COLUMN_WINDOW;
	result->scale = COLUMN_SCALE;
}

VerifyOracle *
VerifyMakeOracle(const PipelineDefinition *def, RollupPlan *plan, const VerifySource *source, const VerifyProgress *progress)
{
	Oracle		oracle = {
		.def = def,
		.plan = plan,
		.source = source,
		.progress = progress,
		.start = StartParse(progress->start_at),
		.result = palloc0(sizeof(VerifyOracle))
	};
	StringInfoData text;

	initStringInfo(&text);
	appendStringInfo(&text, VERIFY_BEGINS " AS MATERIALIZED %s"
					 ", \"" CTE_LATE "\" AS MATERIALIZED (SELECT * FROM \"" CTE_LETTERS "\" WHERE reason = 'late')"
					 ", \"" CTE_ASIDE "\" AS MATERIALIZED (SELECT * FROM \"" CTE_LETTERS "\" WHERE reason <> 'late' AND \"offset\" IS NOT NULL)"
					 ", \"" CTE_FAILED "\" AS MATERIALIZED (SELECT * FROM \"" CTE_LETTERS "\" WHERE reason <> 'late' AND \"offset\" IS NULL)"
					 ", \"" CTE_FEED "\" AS (%s)",
					 CatalogLettersText(def, progress), feed_text(&oracle));
	add_windows(&oracle, &text);
	add_groups(&oracle, &text);
	add_rows(&oracle, &text);
	oracle.result->ctes = text.data;
	return oracle.result;
}
