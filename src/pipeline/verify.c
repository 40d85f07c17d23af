/*
 * verify.c
 *		verify_pipeline(): is what a windowed pipeline wrote what plain SQL makes of its records?
 *
 * A table that has the stream's columns stands in for the stream. verify_oracle.c makes a query of that, and here its
 * rows are compared with those of the target. All of it is one query, read-only, in the caller's snapshot: a worker commits
 * rows, positions, dead letters and the closed boundary together, so any snapshot holds a state that must be right.
 *
 * It runs as the pipeline's owner, restricted, as all that he wrote does: who asks may be a superuser.
 */
#include "postgres.h"

#include "access/relation.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "foreign/foreign.h"
#include "funcapi.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "nodes/nodeFuncs.h"
#include "parser/parsetree.h"
#include "tcop/dest.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/timestamp.h"
#include "utils/typcache.h"

#include "core/compat.h"
#include "core/options.h"
#include "pipeline/pipeline.h"
#include "pipeline/start.h"
#include "pipeline/verify_oracle.h"

/* ---------------------------------------------------------------------------
 * The stream's columns, and the source's
 * ---------------------------------------------------------------------------
 */

typedef struct Mapping
{
	const PipelineDefinition *def;
	const RollupPlan *plan;
	Relation	stream;
	Relation	source;
	AttrNumber	time;			/* event time, in the stream */
	Bitmapset  *used;			/* columns of the stream that the statement uses */
	int			sublevels;		/* while the statement is walked */
} Mapping;

/* The stream's column of this metadata; 0: it has none. */
static AttrNumber
metadata_column(Relation stream, const char *what)
{
	for (int i = 0; i < RelationGetNumberOfAttributes(stream); i++)
	{
		const char *metadata;

		if (TupleDescAttr(RelationGetDescr(stream), i)->attisdropped)
			continue;
		metadata = OptionGet(GetForeignColumnOptions(RelationGetRelid(stream), i + 1), "metadata");
		if (metadata != NULL && strcmp(metadata, what) == 0)
			return i + 1;
	}
	return 0;
}

/* The column that windows are made from. */
static AttrNumber
event_time_column(Relation stream)
{
	const char *column = OptionGet(GetForeignTable(RelationGetRelid(stream))->options, "event_time");

	return column != NULL ? get_attnum(RelationGetRelid(stream), column) : metadata_column(stream, "timestamp");
}

static bool
used_walker(Node *node, Mapping *mapping)
{
	if (node == NULL)
		return false;
	if (IsA(node, Var))
	{
		Var		   *var = (Var *) node;

		if (var->varlevelsup == mapping->sublevels && var->varno == mapping->plan->stream_rti && var->varattno > 0)
			mapping->used = bms_add_member(mapping->used, var->varattno);
		/* Merged columns of joins. */
		else if (var->varlevelsup == mapping->sublevels)
		{
			RangeTblEntry *rte = rt_fetch(var->varno, mapping->plan->feed_tree->rtable);

			if (rte->rtekind == RTE_JOIN && var->varattno > 0 && mapping->sublevels == 0)
				return used_walker(list_nth(rte->joinaliasvars, var->varattno - 1), mapping);
		}
		return false;
	}
	if (IsA(node, Query))
	{
		bool		result;

		mapping->sublevels++;
		result = query_tree_walker((Query *) node, used_walker, mapping, QTW_IGNORE_JOINALIASES);
		mapping->sublevels--;
		return result;
	}
	return expression_tree_walker(node, used_walker, mapping);
}

static char *
source_column(const char *name)
{
	return psprintf("s.%s", quote_identifier(name));
}

/* The source's column of this name, if it is of this type. */
static AttrNumber
find_column(Mapping *mapping, const char *name, Oid type)
{
	AttrNumber	attnum = get_attnum(RelationGetRelid(mapping->source), name);
	Oid			found;

	if (attnum <= 0)
		return 0;
	found = TupleDescAttr(RelationGetDescr(mapping->source), attnum - 1)->atttypid;
	if (found != type)
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("column \"%s\" of \"%s\" is of type %s, and that of stream \"%s\" is of type %s",
						name, RelationGetRelationName(mapping->source), format_type_be(found),
						RelationGetRelationName(mapping->stream), format_type_be(type)),
				 errhint("Let source be a view that casts it.")));
	return attnum;
}

/* A column of the stream, as the source has it. */
static char *
map_column(Mapping *mapping, AttrNumber attnum)
{
	Form_pg_attribute att = TupleDescAttr(RelationGetDescr(mapping->stream), attnum - 1);

	if (att->attisdropped)
		return "NULL::integer";
	if (!bms_is_member(attnum, mapping->used) && attnum != mapping->time)
		return psprintf("NULL::%s", format_type_with_typemod(att->atttypid, att->atttypmod));
	if (find_column(mapping, NameStr(att->attname), att->atttypid) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("\"%s\" has no column \"%s\"", RelationGetRelationName(mapping->source), NameStr(att->attname)),
				 errdetail("The statement of pipeline \"%s\" uses this column of its stream.", mapping->def->name),
				 errhint("Let source be a view that has the stream's columns by their names.")));
	return source_column(NameStr(att->attname));
}

/* Where a record stands in the log: by the name that the stream gives it, or its own. NULL if there is none. */
static char *
map_place(Mapping *mapping, const char *what)
{
	Oid			source = RelationGetRelid(mapping->source);
	AttrNumber	attnum = metadata_column(mapping->stream, what);
	const char *name = attnum != 0 ? get_attname(RelationGetRelid(mapping->stream), attnum, false) : what;
	bool		number = strcmp(what, "partition") == 0 || strcmp(what, "offset") == 0;
	Oid			type;

	if (get_attnum(source, name) <= 0)
		name = what;
	if (get_attnum(source, name) <= 0)
		return NULL;
	type = get_atttype(source, get_attnum(source, name));
	if (number ? type != INT4OID && type != INT8OID && type != INT2OID :
		type != (strcmp(what, "topic") == 0 ? TEXTOID : TIMESTAMPTZOID))
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("column \"%s\" of \"%s\", the %s of records, is of type %s", name,
						RelationGetRelationName(mapping->source), what, format_type_be(type)),
				 errhint("Let source be a view that casts it to %s.",
						 number ? "bigint" : strcmp(what, "topic") == 0 ? "text" : "timestamptz")));
	return source_column(name);
}

static char *
require_place(Mapping *mapping, const char *what)
{
	AttrNumber	attnum = metadata_column(mapping->stream, what);
	char	   *column = map_place(mapping, what);

	if (column == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("\"%s\" has no column for the %s of records", RelationGetRelationName(mapping->source), what),
				 errdetail("Which records pipeline \"%s\" has read and set aside is known by their places in the log.",
						   mapping->def->name),
				 errhint("Let source have a column \"%s\".",
						 attnum != 0 ? get_attname(RelationGetRelid(mapping->stream), attnum, false) : what)));
	return column;
}

/* Event time: a tombstone has none but the log's. */
static char *
map_time(Mapping *mapping)
{
	char	   *column = map_column(mapping, mapping->time);
	char	   *timestamp = map_place(mapping, "timestamp");

	return timestamp == NULL || strcmp(timestamp, column) == 0 ? column : psprintf("coalesce(%s, %s)", column, timestamp);
}

static VerifySource *
map_source(Mapping *mapping, const VerifyProgress *progress)
{
	VerifySource *source = palloc0(sizeof(VerifySource));
	int			ncolumns = RelationGetNumberOfAttributes(mapping->stream);

	mapping->time = event_time_column(mapping->stream);
	(void) query_tree_walker(mapping->plan->feed_tree, used_walker, mapping, QTW_IGNORE_JOINALIASES);

	source->relation = quote_qualified_identifier(get_namespace_name(RelationGetNamespace(mapping->source)),
												  RelationGetRelationName(mapping->source));
	source->columns = palloc(sizeof(char *) * ncolumns);
	for (int i = 0; i < ncolumns; i++)
		source->columns[i] = map_column(mapping, i + 1);
	source->time = map_time(mapping);
	source->partition = require_place(mapping, "partition");
	source->offset = require_place(mapping, "offset");
	source->topic = progress->ntopics > 1 ? require_place(mapping, "topic") : NULL;
	return source;
}

/* ---------------------------------------------------------------------------
 * What to know of the answer
 * ---------------------------------------------------------------------------
 */

typedef struct Joined
{
	const Mapping *mapping;
	List	   *queries;		/* of Query *, the innermost first */
	List	   *tables;			/* Oid of what is read besides the stream */
	List	   *timed;			/* those that are joined as of event time */
} Joined;

/* Relations that an expression reads columns of. */
static bool
tables_walker(Node *node, Joined *joined)
{
	if (node == NULL)
		return false;
	if (IsA(node, Var))
	{
		Var		   *var = (Var *) node;

		if (var->varlevelsup < list_length(joined->queries))
		{
			Query	   *query = list_nth(joined->queries, var->varlevelsup);
			RangeTblEntry *rte = rt_fetch(var->varno, query->rtable);

			if (rte->rtekind == RTE_RELATION)
				joined->timed = list_append_unique_oid(joined->timed, rte->relid);
		}
		return false;
	}
	return expression_tree_walker(node, tables_walker, joined);
}

static bool
is_event_time(const Joined *joined, Node *node)
{
	Var		   *var = (Var *) node;

	return IsA(var, Var) && var->varlevelsup == list_length(joined->queries) - 1 &&
		llast(joined->queries) == joined->mapping->plan->feed_tree &&
		var->varno == joined->mapping->plan->stream_rti && var->varattno == joined->mapping->time;
}

/* range @> event time, or event time <@ range */
static void
note_timed(Joined *joined, OpExpr *op)
{
	char	   *name = get_opname(op->opno);

	if (name == NULL || list_length(op->args) != 2)
		return;
	if (strcmp(name, "@>") == 0 && is_event_time(joined, lsecond(op->args)))
		tables_walker(linitial(op->args), joined);
	else if (strcmp(name, "<@") == 0 && is_event_time(joined, linitial(op->args)))
		tables_walker(lsecond(op->args), joined);
}

static bool
joined_walker(Node *node, Joined *joined)
{
	if (node == NULL)
		return false;
	if (IsA(node, OpExpr))
		note_timed(joined, (OpExpr *) node);
	else if (IsA(node, RangeTblEntry))
	{
		RangeTblEntry *rte = (RangeTblEntry *) node;

		if (rte->rtekind == RTE_RELATION && rte->relid != joined->mapping->def->stream)
			joined->tables = list_append_unique_oid(joined->tables, rte->relid);
		return false;
	}
	else if (IsA(node, Query))
	{
		bool		result;

		joined->queries = lcons(node, joined->queries);
		result = query_tree_walker((Query *) node, joined_walker, joined, QTW_EXAMINE_RTES_BEFORE | QTW_IGNORE_JOINALIASES);
		joined->queries = list_delete_first(joined->queries);
		return result;
	}
	return expression_tree_walker(node, joined_walker, joined);
}

/* Tables are read as they are now, which may not be how the pipeline saw them. */
static void
warn_of_joins(const Mapping *mapping)
{
	Query	   *insert = mapping->plan->finish_tree;
	Query	   *finish = rt_fetch(linitial_node(RangeTblRef, insert->jointree->fromlist)->rtindex, insert->rtable)->subquery;
	Joined		joined = {.mapping = mapping};
	StringInfoData names;
	ListCell   *lc;

	joined_walker((Node *) mapping->plan->feed_tree, &joined);
	joined_walker((Node *) finish, &joined);
	initStringInfo(&names);
	foreach(lc, joined.tables)
		if (!list_member_oid(joined.timed, lfirst_oid(lc)))
			appendStringInfo(&names, "%s\"%s\"", names.len > 0 ? ", " : "", get_rel_name(lfirst_oid(lc)));
	if (names.len > 0)
		ereport(WARNING,
				(errmsg("the statement of pipeline \"%s\" is compared with %s as of now", mapping->def->name, names.data),
				 errdetail("If that has changed since the pipeline read it, there are differences that are no faults."),
				 errhint("With a validity range, as in table.valid @> stream.%s, a join is as of event time.",
						 get_attname(RelationGetRelid(mapping->stream), mapping->time, false))));
}

static void
warn_of_start(const PipelineDefinition *def, const VerifyProgress *progress)
{
	if (StartParse(progress->start_at)->kind == START_LATEST)
		ereport(WARNING,
				(errmsg("pipeline \"%s\" began at the end of its stream, and it is not known where that was", def->name),
				 errhint("Let source be a view of the records that it has read.")));
}

static void
notice_left_out(const PipelineDefinition *def, const VerifyOracle *oracle)
{
	StringInfoData names;
	ListCell   *lc;

	if (oracle->left_out == NIL)
		return;
	initStringInfo(&names);
	foreach(lc, oracle->left_out)
		appendStringInfo(&names, "%s\"%s\"", names.len > 0 ? ", " : "", (char *) lfirst(lc));
	ereport(NOTICE,
			(errmsg("not compared: %s", names.data),
			 errdetail("The statement of pipeline \"%s\" uses volatile functions or the present time for that.", def->name)));
}

/* ---------------------------------------------------------------------------
 * Compare
 * ---------------------------------------------------------------------------
 */

/* How values of a type are compared. */
typedef enum Likeness
{
	LIKE_EQUAL,
	LIKE_TEXT,					/* the type has no order */
	LIKE_CLOSE					/* floating point: a sum depends on the order of what is added */
} Likeness;

static Likeness
likeness(Oid type)
{
	Oid			base = getBaseType(type);

	if (base == FLOAT4OID || base == FLOAT8OID)
		return LIKE_CLOSE;
	return OidIsValid(lookup_type_cache(type, TYPECACHE_LT_OPR)->lt_opr) ? LIKE_EQUAL : LIKE_TEXT;
}

/*
 * Condition: the two rows of a pair agree in column v<number>. Numbers that are not finite have to be the same; in numeric
 * nothing overflows. The largest number that went in stands for what sums lose that come out near zero.
 */
static void
append_close(StringInfo text, int number, Oid type)
{
	char	   *difference = psprintf("abs(x%d::numeric - y%d::numeric)", number, number);

	appendStringInfo(text, " AND (x%d IS NOT DISTINCT FROM y%d OR (%s < 'Infinity' AND %s"
					 " <= %s * greatest(abs(x%d::numeric), abs(y%d::numeric), size::numeric)) IS TRUE)",
					 number, number, difference, difference, getBaseType(type) == FLOAT4OID ? "1e-4" : "1e-9", number, number);
}

/* The oracle's rows and the target's as one set: expected, during, scale, v1, v2, ... */
static void
append_both(StringInfo text, const RollupPlan *plan, const VerifyOracle *oracle, const VerifyProgress *progress, TimestampTz begin)
{
	const char *during = oracle->during != NULL ? oracle->during : "NULL::tstzrange";
	ListCell   *lc;

	appendStringInfo(text, "SELECT true AS expected, r.%s AS during, r.%s AS scale",
					 quote_identifier(oracle->window), quote_identifier(oracle->scale));
	foreach(lc, oracle->columns)
		appendStringInfo(text, ", r.v%d", foreach_current_index(lc) + 1);
	appendStringInfo(text, " FROM %s AS r UNION ALL SELECT false, %s, NULL", quote_identifier(oracle->rows), during);
	foreach(lc, oracle->columns)
		appendStringInfo(text, ", t.%s",
						 quote_identifier(get_attname(plan->target, ((VerifyColumn *) lfirst(lc))->attnum, false)));
	appendStringInfo(text, " FROM %s AS t WHERE (upper(%s) <= %s) IS NOT FALSE",
					 quote_qualified_identifier(get_namespace_name(get_rel_namespace(plan->target)), get_rel_name(plan->target)),
					 during, VerifyTimeText(progress->closed_before));
	if (!TIMESTAMP_NOT_FINITE(begin))
		appendStringInfo(text, " AND (lower(%s) >= %s) IS NOT FALSE", during, VerifyTimeText(begin));
	if (oracle->failed != NULL)
		appendStringInfo(text, " AND NOT %s", oracle->failed);
}

/* SELECT expected, same, during, row, groups in doubt: rows that are there twice have to be there twice. */
static char *
comparison(const RollupPlan *plan, const VerifyOracle *oracle, const VerifyProgress *progress)
{
	const Start *start = StartParse(progress->start_at);
	StringInfoData exact;		/* columns that have to be equal, */
	StringInfoData close;		/* and those that have to be close */
	StringInfoData values;
	StringInfoData alike;
	StringInfoData row;
	StringInfoData text;
	ListCell   *lc;

	initStringInfo(&exact);
	initStringInfo(&close);
	initStringInfo(&values);
	initStringInfo(&alike);
	initStringInfo(&row);
	foreach(lc, oracle->columns)
	{
		VerifyColumn *column = lfirst(lc);
		int			number = foreach_current_index(lc) + 1;

		appendStringInfo(&values, ", v%d", number);
		appendStringInfo(&row, "%sv%d AS %s", number > 1 ? ", " : "", number,
						 quote_identifier(get_attname(plan->target, column->attnum, false)));
		switch (likeness(column->type))
		{
			case LIKE_EQUAL:
				appendStringInfo(&exact, ", v%d", number);
				break;
			case LIKE_TEXT:
				appendStringInfo(&exact, ", v%d::text", number);
				break;
			case LIKE_CLOSE:
				appendStringInfo(&close, "%sv%d", close.len > 0 ? ", " : " ORDER BY ", number);
				appendStringInfo(&values, ", max(v%d) FILTER (WHERE expected) OVER pair AS x%d"
								 ", max(v%d) FILTER (WHERE NOT expected) OVER pair AS y%d", number, number, number, number);
				append_close(&alike, number, column->type);
				break;
		}
	}

	initStringInfo(&text);
	appendStringInfo(&text, "%s SELECT expected, same, during,"
					 " CASE WHEN NOT same THEN (SELECT to_jsonb(r) FROM (SELECT %s) AS r) END, %s"
					 " FROM (SELECT *, pairs = 2%s AS same FROM (SELECT expected, during%s, max(scale) OVER pair AS size, count(*) OVER pair AS pairs"
					 " FROM (SELECT *, row_number() OVER (PARTITION BY expected%s%s) AS n FROM (",
					 oracle->ctes, row.data, oracle->in_doubt != NULL ? oracle->in_doubt : "0::bigint", alike.data, values.data, exact.data, close.data);
	append_both(&text, plan, oracle, progress, start->kind == START_TIME ? start->time : DT_NOBEGIN);
	appendStringInfo(&text, ") AS b) AS n WINDOW pair AS (PARTITION BY n%s)) AS p) AS d", exact.data);
	return text.data;
}

/* Where rows of the comparison go. */
typedef struct Receiver
{
	DestReceiver pub;
	ReturnSetInfo *rsinfo;
	uint64		expected;		/* rows that should be there */
	uint64		differences;
	int64		in_doubt;		/* groups that may rightly differ */
} Receiver;

static void
receiver_startup(DestReceiver *self, int operation, TupleDesc desc)
{
}

static bool
receive(TupleTableSlot *slot, DestReceiver *self)
{
	Receiver   *receiver = (Receiver *) self;
	bool		expected;
	Datum		values[3];
	bool		isnull[3];

	slot_getallattrs(slot);
	expected = DatumGetBool(slot->tts_values[0]);
	receiver->expected += expected;
	if (!slot->tts_isnull[1] && DatumGetBool(slot->tts_values[1]))
		return true;
	receiver->differences++;
	receiver->in_doubt = DatumGetInt64(slot->tts_values[4]);
	values[0] = CStringGetTextDatum(expected ? "missing" : "unexpected");
	isnull[0] = false;
	for (int i = 1; i < 3; i++)
	{
		values[i] = slot->tts_values[i + 1];
		isnull[i] = slot->tts_isnull[i + 1];
	}
	tuplestore_putvalues(receiver->rsinfo->setResult, receiver->rsinfo->setDesc, values, isnull);
	pfree(DatumGetPointer(values[0]));
	return true;
}

static void
receiver_end(DestReceiver *self)
{
}

static void
set_off(const char *setting)
{
	(void) set_config_option(setting, "off", PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
}

/* An error in what the user wrote tells where it was; that of our query, which is longer than a screen, goes. */
static void
rethrow(MemoryContext context)
{
	ErrorData  *error;
	char	   *ours;

	MemoryContextSwitchTo(context);
	error = CopyErrorData();
	FlushErrorState();
	ours = error->context != NULL ? strstr(error->context, "SQL statement \"" VERIFY_BEGINS) : NULL;
	if (ours == error->context)
		error->context = NULL;
	else if (ours != NULL)
		ours[-1] = '\0';
	ReThrowError(error);
}

/* In a scope of the owner's, which takes settings back. */
static void
run(const char *text, Receiver *receiver)
{
	MemoryContext context = CurrentMemoryContext;
	SPIExecuteOptions options = {.read_only = true,.dest = &receiver->pub};
	SPIPlanPtr	plan;
	int			rc;

	/* How many dead letters there are is hard to foresee, and all is read anyway: hashing is never far off. */
	set_off("enable_nestloop");
	set_off("jit");
	plan = SPI_prepare(text, 0, NULL);
	if (plan == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not prepare the comparison: %s", SPI_result_code_string(SPI_result))));
	elog(DEBUG1, "comparison: %s", text);
	PG_TRY();
	{
		rc = SPI_execute_plan_extended(plan, &options);
		if (rc < 0)
			ereport(ERROR,
					(errcode(ERRCODE_INTERNAL_ERROR),
					 errmsg("could not run the comparison: %s", SPI_result_code_string(rc))));
	}
	PG_CATCH();
	{
		rethrow(context);
	}
	PG_END_TRY();
}

/* ---------------------------------------------------------------------------
 * All of it
 * ---------------------------------------------------------------------------
 */

static void
check_rights(Oid relid, const PipelineDefinition *def)
{
	if (pg_class_aclcheck(relid, def->owner, ACL_SELECT) == ACLCHECK_OK ||
		pg_attribute_aclcheck_all(relid, def->owner, ACL_SELECT, ACLMASK_ANY) == ACLCHECK_OK)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("permission denied for table \"%s\"", get_rel_name(relid)),
			 errhint("The owner of the pipeline, \"%s\", needs SELECT on it.", def->owner_name)));
}

static Relation
open_source(Oid relid)
{
	Relation	source = try_relation_open(relid, AccessShareLock);

	if (source == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("relation with OID %u does not exist", relid)));
	switch (source->rd_rel->relkind)
	{
		case RELKIND_RELATION:
		case RELKIND_PARTITIONED_TABLE:
		case RELKIND_VIEW:
		case RELKIND_MATVIEW:
		case RELKIND_FOREIGN_TABLE:
			break;
		default:
			ereport(ERROR,
					(errcode(ERRCODE_WRONG_OBJECT_TYPE),
					 errmsg("\"%s\" is not a table or view", RelationGetRelationName(source))));
	}
	return source;
}

/* As the owner, connected to SPI. */
static void
compare(const PipelineDefinition *def, Relation source, Receiver *receiver)
{
	Relation	stream;
	RollupPlan *plan;
	VerifyProgress *progress = CatalogReadVerifyProgress(def);
	VerifyOracle *oracle;
	Mapping		mapping = {.def = def,.source = source};

	if (StreamWrapper(def->stream) == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("the stream of pipeline \"%s\" does not exist any more", def->name)));
	stream = relation_open(def->stream, AccessShareLock);
	plan = RollupCompile(StatementReanalyze(def->query)->query, def->stream, NULL);
	mapping.plan = plan;
	mapping.stream = stream;
	check_rights(plan->target, def);
	check_rights(RelationGetRelid(source), def);
	oracle = VerifyMakeOracle(def, plan, map_source(&mapping, progress), progress);

	if (progress->closed_before == DT_NOBEGIN)
		ereport(NOTICE,
				(errmsg("pipeline \"%s\" has closed no window yet", def->name)));
	else
	{
		warn_of_joins(&mapping);
		warn_of_start(def, progress);
		notice_left_out(def, oracle);
		run(comparison(plan, oracle, progress), receiver);
		if (receiver->in_doubt > 0)
			ereport(WARNING,
					(errmsg("records of " INT64_FORMAT " groups of pipeline \"%s\" came from several partitions",
							receiver->in_doubt, def->name),
					 errdetail("How their sessions merge depends on the order in which partitions were read, so some differences may be no faults."),
					 errhint("Let producers keep each key in one partition.")));
		ereport(NOTICE,
				(errmsg("pipeline \"%s\": " UINT64_FORMAT " rows of windows until %s compared, " UINT64_FORMAT " differences",
						def->name, receiver->expected, timestamptz_to_str(progress->closed_before), receiver->differences)));
	}
	relation_close(stream, AccessShareLock);
}

PG_FUNCTION_INFO_V1(hybridiot_verify_pipeline);

/* verify_pipeline(name, source) returns what differs between the target and plain SQL over the source */
Datum
hybridiot_verify_pipeline(PG_FUNCTION_ARGS)
{
	PipelineDefinition *def = PipelineToRead(fcinfo);
	Receiver	receiver = {
		.pub = {receive, receiver_startup, receiver_end, receiver_end, DestNone}
	};
	Relation	source;
	RoleScope	scope;

	if (PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("the source may not be null")));
	if (def->kind != PIPELINE_WINDOWED)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("pipeline \"%s\" is not windowed", def->name),
				 errhint("What a pipeline writes row by row can be compared by typing its SELECT over the table.")));
	InitMaterializedSRF(fcinfo, 0);
	receiver.rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	source = open_source(PG_GETARG_OID(1));
	RoleEnter(&scope, def->owner);
	if (SPI_connect() != SPI_OK_CONNECT)
		ereport(ERROR, (errcode(ERRCODE_INTERNAL_ERROR), errmsg("could not connect to SPI")));
	compare(def, source, &receiver);
	SPI_finish();
	RoleLeave(&scope);
	relation_close(source, AccessShareLock);
	return (Datum) 0;
}
