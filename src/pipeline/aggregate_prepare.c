/*
 * aggregate_prepare.c
 *		What the catalogs say of group keys and aggregates.
 *
 * Looks up types and functions once, when a pipeline is created or opened, and
 * refuses what groups that outlive a transaction cannot hold. Nothing here
 * changes anything.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_aggregate.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "parser/parse_agg.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/regproc.h"
#include "utils/syscache.h"
#include "utils/typcache.h"

#include "core/compat.h"
#include "pipeline/aggregate.h"

static void
refuse_aggregate(Aggref *aggref, const char *why, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("aggregate %s cannot be used in a windowed pipeline", format_procedure(aggref->aggfnoid)),
			 errdetail_internal("%s", why),
			 errhint("%s", hint)));
}

static bool has_binary_io(Oid type);

/* What a value of this type is made of has a binary form: elements, bounds or columns. */
static bool
parts_have_binary_io(Oid type)
{
	Oid			part = get_base_element_type(type);
	TypeCacheEntry *entry;
	bool		found = true;

	if (OidIsValid(part))
		return has_binary_io(part);
	entry = lookup_type_cache(getBaseType(type), TYPECACHE_RANGE_INFO | TYPECACHE_MULTIRANGE_INFO | TYPECACHE_TUPDESC);
	if (entry->rngelemtype != NULL)
		return has_binary_io(entry->rngelemtype->type_id);
	if (entry->rngtype != NULL)
		return has_binary_io(entry->rngtype->type_id);
	for (int i = 0; entry->tupDesc != NULL && found && i < entry->tupDesc->natts; i++)
		if (!TupleDescAttr(entry->tupDesc, i)->attisdropped)
			found = has_binary_io(TupleDescAttr(entry->tupDesc, i)->atttypid);
	return found;
}

static bool
has_binary_io(Oid type)
{
	HeapTuple	tuple = SearchSysCache1(TYPEOID, ObjectIdGetDatum(getBaseType(type)));
	Form_pg_type form;
	bool		found;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for type %u", type);
	form = (Form_pg_type) GETSTRUCT(tuple);
	found = OidIsValid(form->typsend) && OidIsValid(form->typreceive);
	ReleaseSysCache(tuple);
	return found && parts_have_binary_io(type);
}

/* Send and receive functions of a type, of the base type for domains, whose checks are the user's code. */
static bool
find_binary_io(Oid type, FmgrInfo *send, FmgrInfo *receive, Oid *ioparam)
{
	HeapTuple	tuple;
	Form_pg_type form;

	if (!has_binary_io(type))
		return false;
	tuple = SearchSysCache1(TYPEOID, ObjectIdGetDatum(getBaseType(type)));
	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for type %u", type);
	form = (Form_pg_type) GETSTRUCT(tuple);
	fmgr_info(form->typsend, send);
	fmgr_info(form->typreceive, receive);
	*ioparam = getTypeIOParam(tuple);
	ReleaseSysCache(tuple);
	return true;
}

void
GroupKeyPrepare(GroupKey *key, Oid type, int32 typmod, Oid collation, Oid eqop)
{
	RegProcedure lhs;
	RegProcedure rhs;

	key->type = type;
	key->typmod = typmod;
	key->collation = collation;
	get_typlenbyval(type, &key->len, &key->byval);
	if (get_typtype(getBaseType(type)) == TYPTYPE_PSEUDO)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("a group key of a windowed pipeline cannot be of type %s", format_type_be(type)),
				 errhint("Group by its fields one by one.")));
	/* The operator may be that of all arrays, ranges or composites, whose parts know whether they can be hashed. */
	if (!OidIsValid(eqop) || !get_op_hash_functions(eqop, &lhs, &rhs) ||
		!OidIsValid(lookup_type_cache(type, TYPECACHE_HASH_PROC)->hash_proc))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("a group key of a windowed pipeline cannot be of type %s", format_type_be(type)),
				 errdetail("The type, or a part of it, has no hash function."),
				 errhint("Cast the key to text.")));
	if (!find_binary_io(type, &key->send, &key->receive, &key->ioparam))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("a group key of a windowed pipeline cannot be of type %s", format_type_be(type)),
				 errdetail("The type, or a part of it, has no binary form in which groups could be stored."),
				 errhint("Cast the key to text.")));
	fmgr_info(lhs, &key->hash);
	fmgr_info(get_opcode(eqop), &key->equal);
}

/* Refuse what groups that are kept between batches cannot do. */
static void
check_aggregate(Aggref *aggref, Form_pg_aggregate form)
{
	if (aggref->aggkind != AGGKIND_NORMAL)
		refuse_aggregate(aggref, "An ordered-set aggregate keeps every value of its window.",
						 "Use an aggregate whose state is small, such as an approximate percentile of an extension.");
	if (aggref->aggdistinct != NIL)
		refuse_aggregate(aggref, "DISTINCT inside an aggregate keeps every value of its window.",
						 "Add the column to GROUP BY, or use an approximate count of an extension.");
	if (aggref->aggorder != NIL)
		refuse_aggregate(aggref, "ORDER BY inside an aggregate keeps every value of its window.",
						 "Leave out the ORDER BY, or write the rows to a table and order them there.");
	if (!OidIsValid(form->aggcombinefn))
		refuse_aggregate(aggref, "The aggregate has no combine function, so its states cannot be put together.",
						 "Use an aggregate that can run in parallel queries (COMBINEFUNC).");
	if (form->aggtranstype == INTERNALOID &&
		(!OidIsValid(form->aggserialfn) || !OidIsValid(form->aggdeserialfn)))
		refuse_aggregate(aggref, "The state of the aggregate cannot be serialised, so it cannot be stored.",
						 "Use an aggregate that can run in parallel queries (SERIALFUNC, DESERIALFUNC).");
	if (get_typtype(getBaseType(aggref->aggtype)) == TYPTYPE_PSEUDO)
		refuse_aggregate(aggref, "The result of the aggregate has no type of its own.",
						 "Use an aggregate whose result is of a type that a column can have.");
}

/* The value that a group's state begins with. */
static void
find_initial(GroupAggregate *aggregate, HeapTuple tuple)
{
	Datum		initial;
	Oid			input;
	Oid			ioparam;

	initial = SysCacheGetAttr(AGGFNOID, tuple, Anum_pg_aggregate_agginitval, &aggregate->initial_isnull);
	if (aggregate->initial_isnull)
		return;
	getTypeInputInfo(aggregate->transtype, &input, &ioparam);
	aggregate->initial = OidInputFunctionCall(input, TextDatumGetCString(initial), ioparam, -1);
}

/* How states of this aggregate are stored and put back. */
static void
find_storage(GroupAggregate *aggregate, Form_pg_aggregate form)
{
	Expr	   *expr;

	build_aggregate_transfn_expr(&aggregate->transtype, 1, 0, false, aggregate->transtype,
								 aggregate->aggref->inputcollid, form->aggcombinefn, InvalidOid, &expr, NULL);
	fmgr_info(form->aggcombinefn, &aggregate->combine);
	fmgr_info_set_expr((Node *) expr, &aggregate->combine);
	aggregate->internal = aggregate->transtype == INTERNALOID;
	if (aggregate->internal)
	{
		build_aggregate_serialfn_expr(form->aggserialfn, &expr);
		fmgr_info(form->aggserialfn, &aggregate->serialise);
		fmgr_info_set_expr((Node *) expr, &aggregate->serialise);
		build_aggregate_deserialfn_expr(form->aggdeserialfn, &expr);
		fmgr_info(form->aggdeserialfn, &aggregate->deserialise);
		fmgr_info_set_expr((Node *) expr, &aggregate->deserialise);
		if (aggregate->combine.fn_strict)
			refuse_aggregate(aggregate->aggref, "The combine function of the aggregate is strict.",
							 "Use an aggregate that can run in parallel queries.");
	}
	else if (!find_binary_io(aggregate->transtype, &aggregate->serialise, &aggregate->deserialise,
							 &aggregate->ioparam))
		refuse_aggregate(aggregate->aggref, "The type of the aggregate's state has no binary form in which it could be stored.",
						 "Use an aggregate whose state has send and receive functions.");
}

void
GroupAggregatePrepare(GroupAggregate *aggregate, Aggref *aggref)
{
	HeapTuple	tuple;
	Form_pg_aggregate form;
	Oid			types[FUNC_MAX_ARGS];
	int			ntypes;
	Expr	   *expr;

	tuple = SearchSysCache1(AGGFNOID, ObjectIdGetDatum(aggref->aggfnoid));
	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for aggregate %u", aggref->aggfnoid);
	form = (Form_pg_aggregate) GETSTRUCT(tuple);
	aggregate->aggref = aggref;
	check_aggregate(aggref, form);

	ntypes = get_aggregate_argtypes(aggref, types);
	aggregate->nargs = list_length(aggref->args);
	aggregate->transtype = resolve_aggregate_transtype(aggref->aggfnoid, form->aggtranstype, types, ntypes);
	get_typlenbyval(aggregate->transtype, &aggregate->len, &aggregate->byval);
	find_initial(aggregate, tuple);

	build_aggregate_transfn_expr(types, ntypes, 0, aggref->aggvariadic, aggregate->transtype,
								 aggref->inputcollid, form->aggtransfn, InvalidOid, &expr, NULL);
	fmgr_info(form->aggtransfn, &aggregate->transition);
	fmgr_info_set_expr((Node *) expr, &aggregate->transition);
	aggregate->call = palloc0(SizeForFunctionCallInfo(aggregate->nargs + 1));

	aggregate->has_final = OidIsValid(form->aggfinalfn);
	aggregate->nfinalargs = form->aggfinalextra ? ntypes + 1 : 1;
	aggregate->final_modifies = form->aggfinalmodify != AGGMODIFY_READ_ONLY;
	if (aggregate->has_final)
	{
		build_aggregate_finalfn_expr(types, aggregate->nfinalargs, aggregate->transtype, aggref->aggtype,
									 aggref->inputcollid, form->aggfinalfn, &expr);
		fmgr_info(form->aggfinalfn, &aggregate->final);
		fmgr_info_set_expr((Node *) expr, &aggregate->final);
	}
	find_storage(aggregate, form);
	aggregate->pertrans.aggref = aggref;
	ReleaseSysCache(tuple);
}

static void
check_execute(Oid function, Oid role)
{
	AclResult	result = object_aclcheck(ProcedureRelationId, function, role, ACL_EXECUTE);

	if (result != ACLCHECK_OK)
		aclcheck_error(result, OBJECT_FUNCTION, get_func_name(function));
}

void
GroupAggregateCheckRights(const GroupAggregate *aggregate, Oid role)
{
	HeapTuple	tuple;
	Oid			owner;

	check_execute(aggregate->aggref->aggfnoid, role);

	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(aggregate->aggref->aggfnoid));
	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for function %u", aggregate->aggref->aggfnoid);
	owner = ((Form_pg_proc) GETSTRUCT(tuple))->proowner;
	ReleaseSysCache(tuple);

	check_execute(aggregate->transition.fn_oid, owner);
	if (aggregate->has_final)
		check_execute(aggregate->final.fn_oid, owner);
	if (aggregate->internal)
	{
		check_execute(aggregate->serialise.fn_oid, owner);
		check_execute(aggregate->deserialise.fn_oid, owner);
	}
	check_execute(aggregate->combine.fn_oid, owner);
}

char *
GroupLayoutText(const GroupLayout *layout)
{
	StringInfoData text;

	initStringInfo(&text);
	appendStringInfo(&text, "PostgreSQL %s", PG_MAJORVERSION);
	for (int i = 0; i < layout->nkeys; i++)
		appendStringInfo(&text, ", key %s", format_type_be_qualified(layout->keys[i].type));
	for (int i = 0; i < layout->naggregates; i++)
	{
		GroupAggregate *aggregate = &layout->aggregates[i];

		appendStringInfo(&text, ", %s state %s",
						 format_procedure_qualified(aggregate->aggref->aggfnoid),
						 aggregate->internal ?
						 format_procedure_qualified(aggregate->serialise.fn_oid) :
						 format_type_be_qualified(aggregate->transtype));
	}
	return text.data;
}
