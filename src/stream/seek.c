/*
 * seek.c
 *		Conditions on metadata columns as seeks: where in the log a scan begins and ends.
 *
 * Taken are comparisons of partition, offset and timestamp with something known before the scan, and
 * those and topic being equal to it or to one of an array. Of a timestamp only a lower bound helps: a log need not be
 * in the order of its timestamps, but the broker knows the first record that is not older.
 */
#include "postgres.h"

#include "access/stratnum.h"
#include "catalog/pg_am.h"
#include "catalog/pg_type.h"
#include "foreign/foreign.h"
#include "lib/stringinfo.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/clauses.h"
#include "optimizer/optimizer.h"
#include "optimizer/paths.h"
#include "optimizer/restrictinfo.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/date.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

#include "core/compat.h"
#include "core/options.h"
#include "stream/seek.h"

/* What a condition bounds. */
typedef enum SeekKind
{
	SEEK_TOPIC,
	SEEK_PARTITION,
	SEEK_OFFSET,
	SEEK_TIMESTAMP
} SeekKind;

/* Names of the metadata, as the enum. */
static const char *const kinds[] = {"topic", "partition", "offset", "timestamp"};

/* How: a B-tree strategy, or to be one of an array. */
#define SEEK_ANY 0
static const char *const operators[] = {"= ANY", "<", "<=", "=", ">=", ">"};

/* ---- planning ---- */

static bool
column_kind(Oid relid, AttrNumber attnum, SeekKind *kind)
{
	const char *metadata;

	if (attnum <= 0)
		return false;
	metadata = OptionGet(GetForeignColumnOptions(relid, attnum), "metadata");
	for (int i = 0; metadata && i < lengthof(kinds); i++)
		if (strcmp(metadata, kinds[i]) == 0)
		{
			*kind = (SeekKind) i;
			return true;
		}
	return false;
}

/* Can values of this type be compared to the column here? */
static bool
type_fits(SeekKind kind, Oid typid)
{
	switch (kind)
	{
		case SEEK_TOPIC:
			return typid == TEXTOID;
		case SEEK_PARTITION:
		case SEEK_OFFSET:
			return typid == INT2OID || typid == INT4OID || typid == INT8OID;
		case SEEK_TIMESTAMP:
			return typid == TIMESTAMPTZOID || typid == TIMESTAMPOID || typid == DATEOID;
	}
	pg_unreachable();
}

/* Place of an operator in a B-tree order; false if it has none (<>) */
static bool
btree_strategy(Oid opno, int *strategy)
{
	List	   *entries = BTREE_INTERPRETATION(opno);
	ListCell   *lc;

	foreach(lc, entries)
	{
		*strategy = BTREE_STRATEGY(lfirst(lc));
		if (*strategy >= BTLessStrategyNumber && *strategy <= BTGreaterStrategyNumber)
			return true;
	}
	return false;
}

static bool
is_column(RelOptInfo *rel, Node *node)
{
	return IsA(node, Var) && ((Var *) node)->varno == rel->relid && ((Var *) node)->varlevelsup == 0;
}

/* Take a clause apart: column, operator, collation, other side. */
static bool
take_apart(RelOptInfo *rel, Expr *clause, Var **column, Oid *opno, Oid *collation, Expr **value)
{
	List	   *args;

	if (IsA(clause, OpExpr))
	{
		args = ((OpExpr *) clause)->args;
		*opno = ((OpExpr *) clause)->opno;
		*collation = ((OpExpr *) clause)->inputcollid;
	}
	else if (IsA(clause, ScalarArrayOpExpr) && ((ScalarArrayOpExpr *) clause)->useOr)
	{
		args = ((ScalarArrayOpExpr *) clause)->args;
		*opno = ((ScalarArrayOpExpr *) clause)->opno;
		*collation = ((ScalarArrayOpExpr *) clause)->inputcollid;
	}
	else
		return false;
	if (list_length(args) != 2)
		return false;
	if (is_column(rel, linitial(args)))
	{
		*column = linitial(args);
		*value = lsecond(args);
	}
	else if (IsA(clause, OpExpr) && is_column(rel, lsecond(args)))
	{
		*column = lsecond(args);
		*value = linitial(args);
		*opno = get_commutator(*opno);
	}
	else
		return false;
	return OidIsValid(*opno);
}

/* Does the clause bound where to read? Then tell what, how, and the other side. */
static bool
clause_seeks(PlannerInfo *root, RelOptInfo *rel, Oid relid, Expr *clause, SeekKind *kind, int *strategy,
			 Expr **value)
{
	Var		   *column;
	Oid			opno;
	Oid			collation;
	Oid			typid;

	if (!take_apart(rel, clause, &column, &opno, &collation, value) ||
		!column_kind(relid, column->varattno, kind) ||
		!btree_strategy(opno, strategy))
		return false;
	typid = exprType((Node *) *value);
	if (IsA(clause, ScalarArrayOpExpr))
	{
		if (*strategy != BTEqualStrategyNumber)
			return false;
		*strategy = SEEK_ANY;
		typid = get_element_type(typid);
	}
	if (*kind == SEEK_TOPIC &&
		(*strategy > BTEqualStrategyNumber || *strategy == BTLessStrategyNumber ||
		 *strategy == BTLessEqualStrategyNumber || !get_collation_isdeterministic(collation)))
		return false;
	return type_fits(*kind, typid) &&
		!bms_is_member(rel->relid, pull_varnos(root, (Node *) *value)) &&
		!contain_volatile_functions((Node *) *value) &&
		!contain_subplans((Node *) *value);
}

List *
SeekFind(PlannerInfo *root, RelOptInfo *rel, Oid relid, List *clauses, List **seeks)
{
	List	   *values = NIL;
	ListCell   *lc;

	*seeks = NIL;
	foreach(lc, clauses)
	{
		SeekKind	kind;
		int			strategy;
		Expr	   *value;

		if (clause_seeks(root, rel, relid, lfirst(lc), &kind, &strategy, &value))
		{
			*seeks = lappend_int(lappend_int(*seeks, kind), strategy);
			values = lappend(values, value);
		}
	}
	return values;
}

static bool
member_is_column(PlannerInfo *root, RelOptInfo *rel, EquivalenceClass *ec, EquivalenceMember *em, void *arg)
{
	return is_column(rel, (Node *) em->em_expr) && ((Var *) em->em_expr)->varattno == *(AttrNumber *) arg;
}

List *
SeekOuterRelids(PlannerInfo *root, RelOptInfo *rel, Oid relid)
{
	List	   *clauses = list_copy(rel->joininfo);
	List	   *result = NIL;
	ListCell   *lc;
	SeekKind	kind;
	int			strategy;
	Expr	   *value;

	for (AttrNumber attnum = 1; rel->has_eclass_joins && attnum <= rel->max_attr; attnum++)
		if (column_kind(relid, attnum, &kind))
			clauses = list_concat(clauses,
								  generate_implied_equalities_for_column(root, rel, member_is_column, &attnum,
																		 rel->lateral_referencers));
	foreach(lc, clauses)
	{
		RestrictInfo *clause = lfirst_node(RestrictInfo, lc);
		Relids		outer;
		ListCell   *known;

		if (!join_clause_is_movable_to(clause, rel) ||
			!clause_seeks(root, rel, relid, clause->clause, &kind, &strategy, &value))
			continue;
		outer = bms_del_member(bms_union(clause->clause_relids, rel->lateral_relids), rel->relid);
		foreach(known, result)
			if (bms_equal(lfirst(known), outer))
			break;
		if (known == NULL && !bms_is_empty(outer))
			result = lappend(result, outer);
	}
	return result;
}

/* ---- scanning ---- */

static void
narrow(int64 *low, int64 *high, int strategy, int64 value)
{
	switch (strategy)
	{
		case BTLessStrategyNumber:
			*high = Min(*high, value);
			break;
		case BTLessEqualStrategyNumber:
			*high = Min(*high, value == PG_INT64_MAX ? value : value + 1);
			break;
		case BTEqualStrategyNumber:
			*low = Max(*low, value);
			*high = Min(*high, value == PG_INT64_MAX ? value : value + 1);
			break;
		case BTGreaterEqualStrategyNumber:
			*low = Max(*low, value);
			break;
		case BTGreaterStrategyNumber:
			*low = Max(*low, value == PG_INT64_MAX ? value : value + 1);
			break;
	}
}

static int64
number(Oid typid, Datum value)
{
	int			overflow;

	switch (typid)
	{
		case INT2OID:
			return DatumGetInt16(value);
		case INT4OID:
			return DatumGetInt32(value);
		case DATEOID:
			return date2timestamptz_opt_overflow(DatumGetDateADT(value), &overflow);
		case TIMESTAMPOID:
			return timestamp2timestamptz_opt_overflow(DatumGetTimestamp(value), &overflow);
		default:
			return DatumGetInt64(value);	/* timestamptz, too */
	}
}

static void
apply_seek(SeekRange *range, SeekKind kind, int strategy, Oid typid, Datum value)
{
	int64		whenever = PG_INT64_MAX;

	switch (kind)
	{
		case SEEK_TOPIC:
			range->topics = lappend(range->topics, list_make1(TextDatumGetCString(value)));
			break;
		case SEEK_PARTITION:
			narrow(&range->partition_low, &range->partition_high, strategy, number(typid, value));
			break;
		case SEEK_OFFSET:
			narrow(&range->low, &range->high, strategy, number(typid, value));
			break;
		case SEEK_TIMESTAMP:
			narrow(&range->since, &whenever, strategy, number(typid, value));
			break;
	}
}

/* One of an array: of topics and partitions the list counts, of offsets and timestamps what they lie between. */
static void
apply_any(SeekRange *range, SeekKind kind, ArrayType *array)
{
	Oid			typid = ARR_ELEMTYPE(array);
	int16		len;
	bool		byval;
	char		align;
	Datum	   *elements;
	bool	   *nulls;
	int			n;
	List	   *list = NIL;
	int64		low = PG_INT64_MAX;
	int64		high = PG_INT64_MIN;

	get_typlenbyvalalign(typid, &len, &byval, &align);
	deconstruct_array(array, typid, len, byval, align, &elements, &nulls, &n);
	for (int i = 0; i < n; i++)
	{
		int64		value;

		if (nulls[i])
			continue;
		if (kind == SEEK_TOPIC)
		{
			list = lappend(list, TextDatumGetCString(elements[i]));
			continue;
		}
		value = number(typid, elements[i]);
		low = Min(low, value);
		high = Max(high, value);
		if (kind == SEEK_PARTITION && value >= 0 && value <= PG_INT32_MAX)
			list = lappend_int(list, (int) value);
	}
	if (kind == SEEK_TOPIC)
		range->topics = lappend(range->topics, list);
	else if (low > high)
		range->nothing = true;
	else if (kind == SEEK_PARTITION)
		range->partitions = lappend(range->partitions, list);
	else if (kind == SEEK_OFFSET)
	{
		narrow(&range->low, &range->high, BTGreaterEqualStrategyNumber, low);
		narrow(&range->low, &range->high, BTLessEqualStrategyNumber, high);
	}
	else
		range->since = Max(range->since, low);
}

void
SeekEvaluate(List *seeks, List *values, ExprContext *econtext, SeekRange *range)
{
	ListCell   *lc;
	int			i = 0;

	memset(range, 0, sizeof(SeekRange));
	range->partition_high = range->high = PG_INT64_MAX;
	range->since = DT_NOBEGIN;
	foreach(lc, values)
	{
		ExprState  *state = lfirst(lc);
		SeekKind	kind = list_nth_int(seeks, i++);
		int			strategy = list_nth_int(seeks, i++);
		bool		isnull;
		Datum		value = ExecEvalExprSwitchContext(state, econtext, &isnull);

		if (isnull)
			range->nothing = true;
		else if (strategy == SEEK_ANY)
			apply_any(range, kind, DatumGetArrayTypeP(value));
		else
			apply_seek(range, kind, strategy, exprType((Node *) state->expr), value);
	}
	if (range->low >= range->high || range->partition_low >= range->partition_high)
		range->nothing = true;
	/* A timestamp beyond PostgreSQL's last is shown as infinity. */
	range->since = Min(range->since, END_TIMESTAMP - 1);
}

bool
SeekTakesTopic(const SeekRange *range, const char *topic)
{
	ListCell   *lc;
	ListCell   *name;

	foreach(lc, range->topics)
	{
		foreach(name, (List *) lfirst(lc))
			if (strcmp(lfirst(name), topic) == 0)
			break;
		if (name == NULL)
			return false;
	}
	return true;
}

bool
SeekTakesPartition(const SeekRange *range, int32 partition)
{
	ListCell   *lc;

	if (partition < range->partition_low || partition >= range->partition_high)
		return false;
	foreach(lc, range->partitions)
		if (!list_member_int(lfirst(lc), partition))
		return false;
	return true;
}

void
SeekExplain(List *seeks, ExplainState *es)
{
	StringInfoData text;

	initStringInfo(&text);
	for (int i = 0; i + 1 < list_length(seeks); i += 2)
		appendStringInfo(&text, "%s%s %s", text.len ? ", " : "",
						 kinds[list_nth_int(seeks, i)], operators[list_nth_int(seeks, i + 1)]);
	if (text.len)
		ExplainPropertyText("Seeks", text.data, es);
	pfree(text.data);
}
