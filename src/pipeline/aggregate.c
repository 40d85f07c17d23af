/*
 * aggregate.c
 *		States of aggregates: begin, transition, combine, final, bytes.
 *
 * Aggregates' own functions are called directly, with an AggState that exists only
 * to answer AggCheckCallContext() and its relatives; what they allocate in the
 * aggregate context lives in the ExprContext that the caller names, a state's home.
 *
 * Nothing here is transactional. When an error leaves any of these functions, a state may have been changed half.
 */
#include "postgres.h"

#include "access/detoast.h"
#include "executor/executor.h"
#include "libpq/pqformat.h"
#include "utils/datum.h"
#include "utils/expandeddatum.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

#include "core/compat.h"
#include "pipeline/aggregate.h"

/* Lengths that stand for nulls in stored states. */
#define STORED_NULL (-1)
#define STORED_NONE (-2)

AggregateRun *
AggregateRunCreate(GroupLayout *layout)
{
	AggregateRun *run = palloc0(sizeof(AggregateRun));

	run->layout = layout;
	run->scratch = CreateStandaloneExprContext();
	run->aggstate = makeNode(AggState);
	run->aggstate->tmpcontext = CreateStandaloneExprContext();
	run->temporary = run->aggstate->tmpcontext->ecxt_per_tuple_memory;

	for (int i = 0; i < layout->naggregates; i++)
	{
		GroupAggregate *aggregate = &layout->aggregates[i];

		InitFunctionCallInfoData(*aggregate->call, &aggregate->transition, aggregate->nargs + 1,
								 aggregate->aggref->inputcollid, (void *) run->aggstate, NULL);
	}
	return run;
}

Datum
AggregateCopyToStay(Datum value, bool byval, int16 len)
{
	if (len == -1 &&
		(VARATT_IS_EXTERNAL_ONDISK(DatumGetPointer(value)) || VARATT_IS_EXTERNAL_INDIRECT(DatumGetPointer(value))))
		return PointerGetDatum(detoast_external_attr((struct varlena *) DatumGetPointer(value)));
	return datumCopy(value, byval, len);
}

void
AggregateBegin(AggregateRun *run, GroupValue *values)
{
	for (int i = 0; i < run->layout->naggregates; i++)
	{
		GroupAggregate *aggregate = &run->layout->aggregates[i];

		values[i].value = (Datum) 0;
		values[i].isnull = values[i].none = aggregate->initial_isnull;
		if (!values[i].isnull)
			values[i].value = datumCopy(aggregate->initial, aggregate->byval, aggregate->len);
	}
}

/* ---------------------------------------------------------------------------
 * Transition
 * ---------------------------------------------------------------------------
 */

/*
 * Keep what a transition function returned, in the arena, and free what it
 * replaces. A function may return its first argument, changed in place, or an expanded object that is
 * already a child of the arena; both stay as they are.
 */
static void
replace_value(GroupAggregate *aggregate, GroupValue *value, MemoryContext arena, Datum result, bool isnull)
{
	Datum		old_value = value->value;
	bool		old_isnull = value->isnull;

	if (aggregate->byval)
	{
		value->value = result;
		value->isnull = isnull;
		return;
	}
	if (!isnull && !old_isnull && DatumGetPointer(result) == DatumGetPointer(old_value))
		return;

	value->isnull = isnull;
	value->value = (Datum) 0;
	if (!isnull)
	{
		if (DatumIsReadWriteExpandedObject(result, false, aggregate->len) &&
			MemoryContextGetParent(DatumGetEOHP(result)->eoh_context) == arena)
			value->value = result;
		else
		{
			MemoryContext old = MemoryContextSwitchTo(arena);

			value->value = AggregateCopyToStay(result, false, aggregate->len);
			MemoryContextSwitchTo(old);
		}
	}
	if (!old_isnull)
	{
		if (DatumIsReadWriteExpandedObject(old_value, false, aggregate->len))
			DeleteExpandedObject(old_value);
		else
			pfree(DatumGetPointer(old_value));
	}
}

/* One row into one aggregate of one group. */
static void
advance_aggregate(AggregateRun *run, GroupAggregate *aggregate, GroupValue *value,
				  const Datum *values, const bool *isnull)
{
	FunctionCallInfo call = aggregate->call;
	MemoryContext arena = run->aggstate->curaggcontext->ecxt_per_tuple_memory;
	Datum		result;

	for (int i = 0; i < aggregate->nargs; i++)
	{
		int			column = aggregate->columns[i];

		if (isnull[column] && aggregate->transition.fn_strict)
			return;
		call->args[i + 1].value = values[column];
		call->args[i + 1].isnull = isnull[column];
	}
	if (aggregate->transition.fn_strict)
	{
		if (value->none)
		{
			MemoryContext old = MemoryContextSwitchTo(arena);

			value->value = AggregateCopyToStay(call->args[1].value, aggregate->byval, aggregate->len);
			value->isnull = value->none = false;
			MemoryContextSwitchTo(old);
			return;
		}
		if (value->isnull)
			return;
	}
	run->aggstate->curpertrans = &aggregate->pertrans;
	call->args[0].value = value->value;
	call->args[0].isnull = value->isnull;
	call->isnull = false;
	result = FunctionCallInvoke(call);
	value->none = false;
	replace_value(aggregate, value, arena, result, call->isnull);
}

void
AggregateAdvance(AggregateRun *run, GroupValue *states, ExprContext *home, const Datum *values, const bool *isnull)
{
	GroupLayout *layout = run->layout;

	run->aggstate->curaggcontext = home;
	for (int i = 0; i < layout->naggregates; i++)
	{
		GroupAggregate *aggregate = &layout->aggregates[i];

		if (aggregate->filter < 0 ||
			(!isnull[aggregate->filter] && DatumGetBool(values[aggregate->filter])))
			advance_aggregate(run, aggregate, &states[i], values, isnull);
	}
}

/* ---------------------------------------------------------------------------
 * Serialise
 * ---------------------------------------------------------------------------
 */

/* A call of one of an aggregate's functions that gets one state and what else it is declared with. */
static Datum
call_with_state(AggregateRun *run, GroupAggregate *aggregate, FmgrInfo *function, int nargs,
				NullableDatum first, NullableDatum second, bool *isnull)
{
	LOCAL_FCINFO(call, FUNC_MAX_ARGS);
	Datum		result;
	bool		any_null = first.isnull || nargs > 1;

	run->aggstate->curpertrans = &aggregate->pertrans;
	InitFunctionCallInfoData(*call, function, nargs, aggregate->aggref->inputcollid, (void *) run->aggstate, NULL);
	call->args[0] = first;
	for (int i = 1; i < nargs; i++)
	{
		call->args[i].value = (Datum) 0;
		call->args[i].isnull = true;
	}
	if (nargs == 2 && !second.isnull)
	{
		call->args[1] = second;
		any_null = first.isnull;
	}
	if (function->fn_strict && any_null)
	{
		*isnull = true;
		return (Datum) 0;
	}
	result = FunctionCallInvoke(call);
	*isnull = call->isnull;
	return result;
}

static const NullableDatum no_datum = {(Datum) 0, true};

/* An internal state as bytes. */
static bytea *
serialise_internal(AggregateRun *run, GroupAggregate *aggregate, Datum value)
{
	NullableDatum state = {value, false};
	bool		isnull;
	Datum		bytes;

	bytes = call_with_state(run, aggregate, &aggregate->serialise, 1, state, no_datum, &isnull);
	if (isnull)
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_NULL_VALUE_NOT_ALLOWED),
				 errmsg("serialisation function of aggregate \"%s\" returned null", get_func_name(aggregate->aggref->aggfnoid))));
	return DatumGetByteaPP(bytes);
}

/*
 * Bytes as an internal state in econtext. What a deserialisation function
 * returns may live in the current context and is only good for combining; a
 * combine function that gets no first state makes one in the aggregate context.
 */
static Datum
deserialise_internal(AggregateRun *run, GroupAggregate *aggregate, bytea *bytes, ExprContext *econtext, bool *isnull)
{
	NullableDatum stored = {PointerGetDatum(bytes), false};
	NullableDatum dummy = {(Datum) 0, false};
	NullableDatum state;

	run->aggstate->curaggcontext = econtext;
	state.value = call_with_state(run, aggregate, &aggregate->deserialise, 2, stored, dummy, &state.isnull);
	return call_with_state(run, aggregate, &aggregate->combine, 2, no_datum, state, isnull);
}

static void
append_item(StringInfo buf, bytea *item)
{
	pq_sendint32(buf, VARSIZE_ANY_EXHDR(item));
	pq_sendbytes(buf, VARDATA_ANY(item), VARSIZE_ANY_EXHDR(item));
}

bytea *
AggregateEncodeKeys(AggregateRun *run, const NullableDatum *keys)
{
	StringInfoData buf;

	pq_begintypsend(&buf);
	for (int i = 0; i < run->layout->nkeys; i++)
	{
		if (keys[i].isnull)
			pq_sendint32(&buf, STORED_NULL);
		else
			append_item(&buf, SendFunctionCall(&run->layout->keys[i].send, keys[i].value));
	}
	return pq_endtypsend(&buf);
}

bytea *
AggregateEncode(AggregateRun *run, const GroupValue *states, ExprContext *home)
{
	StringInfoData buf;

	run->aggstate->curaggcontext = home;
	pq_begintypsend(&buf);
	for (int i = 0; i < run->layout->naggregates; i++)
	{
		GroupAggregate *aggregate = &run->layout->aggregates[i];
		const GroupValue *value = &states[i];

		if (value->isnull)
			pq_sendint32(&buf, value->none ? STORED_NONE : STORED_NULL);
		else if (aggregate->internal)
			append_item(&buf, serialise_internal(run, aggregate, value->value));
		else
			append_item(&buf, SendFunctionCall(&aggregate->serialise,
											   MakeExpandedObjectReadOnly(value->value, false, aggregate->len)));
	}
	return pq_endtypsend(&buf);
}

static void
broken_state(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("stored state of a window is broken")));
}

/* The next item of a stored value, as a NUL-terminated buffer of its own; NULL for a null, whose mark is in *length. */
static StringInfo
next_item(StringInfo from, int32 *length)
{
	StringInfo	item;
	uint32		raw;

	if (from->len - from->cursor < (int) sizeof(uint32))
		broken_state();
	memcpy(&raw, from->data + from->cursor, sizeof(raw));
	from->cursor += sizeof(raw);
	*length = (int32) pg_ntoh32(raw);
	if (*length == STORED_NULL || *length == STORED_NONE)
		return NULL;
	if (*length < 0 || from->len - from->cursor < *length)
		broken_state();
	item = makeStringInfo();
	appendBinaryStringInfo(item, from->data + from->cursor, *length);
	from->cursor += *length;
	return item;
}

static StringInfoData
open_stored(bytea *stored)
{
	StringInfoData buf = {
		.data = VARDATA_ANY(stored),
		.len = VARSIZE_ANY_EXHDR(stored)
	};

	return buf;
}

void
AggregateDecodeKeys(AggregateRun *run, bytea *stored, NullableDatum *keys)
{
	StringInfoData from = open_stored(stored);
	int32		length;

	for (int i = 0; i < run->layout->nkeys; i++)
	{
		GroupKey   *key = &run->layout->keys[i];
		StringInfo	item = next_item(&from, &length);

		keys[i].isnull = item == NULL;
		if (item != NULL)
			keys[i].value = ReceiveFunctionCall(&key->receive, item, key->ioparam, -1);
	}
}

void
AggregateDecode(AggregateRun *run, bytea *stored, GroupValue *states, ExprContext *home)
{
	StringInfoData from = open_stored(stored);
	MemoryContext arena = home->ecxt_per_tuple_memory;

	for (int i = 0; i < run->layout->naggregates; i++)
	{
		GroupAggregate *aggregate = &run->layout->aggregates[i];
		GroupValue *value = &states[i];
		Datum		datum = (Datum) 0;
		bool		isnull = true;
		int32		length;
		StringInfo	item = next_item(&from, &length);

		if (item != NULL && aggregate->internal)
		{
			bytea	   *bytes = palloc(VARHDRSZ + item->len);

			SET_VARSIZE(bytes, VARHDRSZ + item->len);
			memcpy(VARDATA(bytes), item->data, item->len);
			datum = deserialise_internal(run, aggregate, bytes, home, &isnull);
		}
		else if (item != NULL)
		{
			datum = ReceiveFunctionCall(&aggregate->deserialise, item, aggregate->ioparam, -1);
			isnull = false;
		}
		replace_value(aggregate, value, arena, datum, isnull);
		value->none = length == STORED_NONE;
	}
}

/* ---------------------------------------------------------------------------
 * Combine
 * ---------------------------------------------------------------------------
 */

/*
 * As the executor puts partial results together. A combine function is free to spoil its second state, so an internal
 * one that has to stay goes through its bytes.
 */
static void
combine_state(AggregateRun *run, GroupAggregate *aggregate, GroupValue *into, ExprContext *home, const GroupValue *from,
			  bool from_stays)
{
	NullableDatum first = {into->value, into->isnull};
	NullableDatum second = {from->value, from->isnull};
	LOCAL_FCINFO(call, 2);
	Datum		result;

	if (from->none && from->isnull)
		return;
	if (aggregate->combine.fn_strict)
	{
		if (second.isnull)
			return;
		if (into->none)
		{
			MemoryContext old = MemoryContextSwitchTo(home->ecxt_per_tuple_memory);

			into->value = AggregateCopyToStay(second.value, aggregate->byval, aggregate->len);
			into->isnull = into->none = false;
			MemoryContextSwitchTo(old);
			return;
		}
		if (first.isnull)
			return;
	}
	if (aggregate->internal && from_stays && !second.isnull)
	{
		NullableDatum dummy = {(Datum) 0, false};

		second.value = PointerGetDatum(serialise_internal(run, aggregate, second.value));
		run->aggstate->curaggcontext = run->aggstate->tmpcontext;
		second.value = call_with_state(run, aggregate, &aggregate->deserialise, 2, second, dummy, &second.isnull);
	}
	run->aggstate->curaggcontext = home;
	run->aggstate->curpertrans = &aggregate->pertrans;
	InitFunctionCallInfoData(*call, &aggregate->combine, 2, aggregate->aggref->inputcollid, (void *) run->aggstate, NULL);
	call->args[0] = first;
	call->args[1] = second;
	if (!second.isnull && !aggregate->internal)
		call->args[1].value = MakeExpandedObjectReadOnly(second.value, false, aggregate->len);
	result = FunctionCallInvoke(call);
	into->none = false;
	replace_value(aggregate, into, home->ecxt_per_tuple_memory, result, call->isnull);
}

void
AggregateCombine(AggregateRun *run, GroupValue *into, ExprContext *home, const GroupValue *from, bool from_stays)
{
	for (int i = 0; i < run->layout->naggregates; i++)
		combine_state(run, &run->layout->aggregates[i], &into[i], home, &from[i], from_stays);
}

/* ---------------------------------------------------------------------------
 * Final
 * ---------------------------------------------------------------------------
 */

/* A copy of a state that a final function may spoil. */
static NullableDatum
copy_state(AggregateRun *run, GroupAggregate *aggregate, const GroupValue *value)
{
	NullableDatum copy = {(Datum) 0, true};

	if (value->isnull)
		return copy;
	copy.isnull = false;
	if (aggregate->internal)
		copy.value = deserialise_internal(run, aggregate, serialise_internal(run, aggregate, value->value),
										  run->scratch, &copy.isnull);
	else
		copy.value = datumCopy(value->value, aggregate->byval, aggregate->len);
	return copy;
}

Datum
AggregateFinal(AggregateRun *run, const GroupValue *states, ExprContext *home, int number, bool *isnull)
{
	GroupAggregate *aggregate = &run->layout->aggregates[number];
	const GroupValue *value = &states[number];
	NullableDatum state = {value->value, value->isnull};
	Datum		result;

	run->aggstate->curaggcontext = home;
	if (!state.isnull)
		state.value = MakeExpandedObjectReadOnly(state.value, false, aggregate->len);
	if (!aggregate->has_final)
	{
		*isnull = state.isnull;
		return state.value;
	}
	if (aggregate->final_modifies)
		state = copy_state(run, aggregate, value);
	result = call_with_state(run, aggregate, &aggregate->final, aggregate->nfinalargs, state, no_datum, isnull);
	if (aggregate->final_modifies && !*isnull)
	{
		int16		len;
		bool		byval;

		get_typlenbyval(aggregate->aggref->aggtype, &len, &byval);
		result = datumCopy(result, byval, len);
		ResetExprContext(run->scratch);
	}
	return result;
}
