/*
 * aggregate.c
 *		Groups in memory: find by window and keys, transition, serialise, final.
 *
 * Transition functions are called directly, with an AggState that exists only
 * to answer AggCheckCallContext() and its relatives; what they allocate in the
 * aggregate context lives in the arena of the group's window. An arena is shared by
 * windows that were opened one after the other while they are small, so that a
 * million windows of one group do not take a million memory contexts, and it is
 * freed as a whole with its last window, so that closing does not walk states.
 *
 * Nothing here is transactional. When an error leaves any of these functions,
 * the set may have taken a part of a row: its owner throws it away and loads
 * the last checkpoint.
 */
#include "postgres.h"

#include "access/detoast.h"
#include "executor/executor.h"
#include "libpq/pqformat.h"
#include "port/pg_bitutils.h"
#include "utils/datum.h"
#include "utils/expandeddatum.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

#include "core/compat.h"
#include "pipeline/aggregate.h"

/* An arena takes new windows until this many groups were made in it. */
#define ARENA_GROUPS 64

/* Lengths that stand for nulls in stored states. */
#define STORED_NULL (-1)
#define STORED_NONE (-2)

typedef struct GroupEntry
{
	WindowGroup *group;
	uint32		hash;
	char		status;
} GroupEntry;

typedef struct WindowEntry
{
	TimestampTz start;
	GroupWindow *window;
	char		status;
} WindowEntry;

static inline uint32
hash_time(TimestampTz time)
{
	return murmurhash32((uint32) ((uint64) time >> 32) * 31 + (uint32) time);
}

struct grouptable_hash;
static bool same_group(struct grouptable_hash *table, const WindowGroup *a, const WindowGroup *b);

#define SH_PREFIX grouptable
#define SH_ELEMENT_TYPE GroupEntry
#define SH_KEY_TYPE WindowGroup *
#define SH_KEY group
#define SH_HASH_KEY(table, key) ((key)->hash)
#define SH_EQUAL(table, a, b) same_group(table, a, b)
#define SH_STORE_HASH
#define SH_GET_HASH(table, entry) ((entry)->hash)
#define SH_SCOPE static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

#define SH_PREFIX windowtable
#define SH_ELEMENT_TYPE WindowEntry
#define SH_KEY_TYPE TimestampTz
#define SH_KEY start
#define SH_HASH_KEY(table, key) hash_time(key)
#define SH_EQUAL(table, a, b) ((a) == (b))
#define SH_SCOPE static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

struct GroupSet
{
	MemoryContext context;
	GroupLayout *layout;
	grouptable_hash *groups;
	windowtable_hash *windows;
	pairingheap *by_end;
	GroupWindow *last_window;	/* the one asked for last */
	GroupArena *arena;			/* where new windows go; NULL: make one */
	TimestampTz latest_end;
	int64		last_id;
	dlist_head	changed;
	AggState   *aggstate;		/* what transition functions see */
	ExprContext *scratch;		/* copies of states, while a final function spoils them */
	WindowGroup		probe;			/* a group to look for */
	NullableDatum *probe_keys;
};

/* ---------------------------------------------------------------------------
 * The set
 * ---------------------------------------------------------------------------
 */

static int
compare_ends(const pairingheap_node *a, const pairingheap_node *b, void *arg)
{
	TimestampTz enda = pairingheap_const_container(GroupWindow, heap_node, a)->end;
	TimestampTz endb = pairingheap_const_container(GroupWindow, heap_node, b)->end;

	/* the heap keeps the greatest on top; ours is the earliest */
	return enda < endb ? 1 : enda > endb ? -1 : 0;
}

GroupSet *
GroupSetCreate(GroupLayout *layout)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "hybridiot groups", ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	GroupSet   *set = palloc0(sizeof(GroupSet));

	set->context = context;
	set->layout = layout;
	set->groups = grouptable_create(context, 1024, set);
	set->windows = windowtable_create(context, 16, NULL);
	set->by_end = pairingheap_allocate(compare_ends, NULL);
	set->latest_end = DT_NOBEGIN;
	dlist_init(&set->changed);
	set->probe_keys = palloc0(sizeof(NullableDatum) * Max(layout->nkeys, 1));
	set->probe.keys = set->probe_keys;
	set->scratch = CreateStandaloneExprContext();
	set->aggstate = makeNode(AggState);
	set->aggstate->tmpcontext = CreateStandaloneExprContext();

	for (int i = 0; i < layout->naggregates; i++)
	{
		GroupAggregate *aggregate = &layout->aggregates[i];

		InitFunctionCallInfoData(*aggregate->call, &aggregate->transition, aggregate->nargs + 1,
								 aggregate->aggref->inputcollid, (void *) set->aggstate, NULL);
	}
	MemoryContextSwitchTo(old);
	return set;
}

int64
GroupSetCount(const GroupSet *set)
{
	return set->groups->members;
}

GroupWindow *
GroupSetEarliest(const GroupSet *set)
{
	if (pairingheap_is_empty(set->by_end))
		return NULL;
	return pairingheap_container(GroupWindow, heap_node, pairingheap_first(set->by_end));
}

static int
compare_windows(const void *a, const void *b)
{
	const GroupWindow *wa = *(GroupWindow *const *) a;
	const GroupWindow *wb = *(GroupWindow *const *) b;

	return wa->end < wb->end ? -1 : wa->end > wb->end;
}

GroupWindow **
GroupSetWindowsUntil(const GroupSet *set, TimestampTz end, int *n)
{
	GroupWindow *earliest = GroupSetEarliest(set);
	GroupWindow **windows;
	windowtable_iterator iterator;
	WindowEntry *entry;

	*n = 0;
	if (earliest == NULL || earliest->end > end)
		return NULL;
	windows = palloc_extended(sizeof(GroupWindow *) * set->windows->members, MCXT_ALLOC_HUGE);
	windowtable_start_iterate(set->windows, &iterator);
	while ((entry = windowtable_iterate(set->windows, &iterator)) != NULL)
		if (entry->window->end <= end)
			windows[(*n)++] = entry->window;
	qsort(windows, *n, sizeof(GroupWindow *), compare_windows);
	return windows;
}

TimestampTz
GroupSetLatestEnd(const GroupSet *set)
{
	return set->latest_end;
}

void
GroupSetLastId(GroupSet *set, int64 id)
{
	set->last_id = Max(set->last_id, id);
}

static GroupArena *
arena_for_new_window(GroupSet *set)
{
	if (set->arena == NULL || set->arena->ngroups >= ARENA_GROUPS)
	{
		MemoryContext old = MemoryContextSwitchTo(set->context);

		set->arena = palloc0(sizeof(GroupArena));
		set->arena->econtext = CreateStandaloneExprContext();
		MemoryContextSwitchTo(old);
	}
	set->arena->nwindows++;
	return set->arena;
}

static void
leave_arena(GroupSet *set, GroupArena *arena)
{
	if (--arena->nwindows > 0)
		return;
	if (set->arena == arena)
		set->arena = NULL;
	FreeExprContext(arena->econtext, true);
	pfree(arena);
}

static GroupWindow *
find_window(GroupSet *set, TimestampTz start, TimestampTz end)
{
	WindowEntry *entry;
	bool		found;

	if (set->last_window != NULL && set->last_window->start == start)
		return set->last_window;

	entry = windowtable_insert(set->windows, start, &found);
	if (!found)
	{
		GroupWindow *window = MemoryContextAllocZero(set->context, sizeof(GroupWindow));

		window->start = start;
		window->end = end;
		window->arena = arena_for_new_window(set);
		dlist_init(&window->groups);
		pairingheap_add(set->by_end, &window->heap_node);
		set->latest_end = Max(set->latest_end, end);
		entry->window = window;
	}
	set->last_window = entry->window;
	return entry->window;
}

static void
remove_window(GroupSet *set, GroupWindow *window)
{
	pairingheap_remove(set->by_end, &window->heap_node);
	windowtable_delete(set->windows, window->start);
	if (set->last_window == window)
		set->last_window = NULL;
	leave_arena(set, window->arena);
	pfree(window);
	if (pairingheap_is_empty(set->by_end))
		set->latest_end = DT_NOBEGIN;
}

static bool
same_group(struct grouptable_hash *table, const WindowGroup *a, const WindowGroup *b)
{
	GroupSet   *set = table->private_data;

	if (a->window != b->window)
		return false;
	for (int i = 0; i < set->layout->nkeys; i++)
	{
		GroupKey   *key = &set->layout->keys[i];

		if (a->keys[i].isnull != b->keys[i].isnull)
			return false;
		if (!a->keys[i].isnull &&
			!DatumGetBool(FunctionCall2Coll(&key->equal, key->collation, a->keys[i].value, b->keys[i].value)))
			return false;
	}
	return true;
}

/* By-reference values that stay must not point to a table's TOAST, which a transaction guards. */
static Datum
copy_to_stay(Datum value, bool byval, int16 len)
{
	if (len == -1 &&
		(VARATT_IS_EXTERNAL_ONDISK(DatumGetPointer(value)) || VARATT_IS_EXTERNAL_INDIRECT(DatumGetPointer(value))))
		return PointerGetDatum(detoast_external_attr((struct varlena *) DatumGetPointer(value)));
	return datumCopy(value, byval, len);
}

/* A new group as the probe says, with its states at their beginning. */
static WindowGroup *
make_group(GroupSet *set)
{
	GroupLayout *layout = set->layout;
	GroupWindow *window = set->probe.window;
	MemoryContext old = MemoryContextSwitchTo(window->arena->econtext->ecxt_per_tuple_memory);
	Size		header = MAXALIGN(sizeof(WindowGroup)) + MAXALIGN(layout->nkeys * sizeof(NullableDatum));
	WindowGroup *group = palloc0(header + layout->naggregates * sizeof(GroupValue));

	group->window = window;
	group->hash = set->probe.hash;
	group->keys = (NullableDatum *) ((char *) group + MAXALIGN(sizeof(WindowGroup)));
	group->values = (GroupValue *) ((char *) group + header);
	for (int i = 0; i < layout->nkeys; i++)
	{
		group->keys[i].isnull = set->probe_keys[i].isnull;
		if (!group->keys[i].isnull)
			group->keys[i].value = copy_to_stay(set->probe_keys[i].value, layout->keys[i].byval, layout->keys[i].len);
	}
	for (int i = 0; i < layout->naggregates; i++)
	{
		GroupAggregate *aggregate = &layout->aggregates[i];
		GroupValue *value = &group->values[i];

		value->isnull = value->none = aggregate->initial_isnull;
		if (!value->isnull)
			value->value = datumCopy(aggregate->initial, aggregate->byval, aggregate->len);
	}
	dlist_push_tail(&window->groups, &group->node);
	window->ngroups++;
	window->arena->ngroups++;
	MemoryContextSwitchTo(old);
	return group;
}

/* The group of the probe's keys in this window, made if it is not there. */
static WindowGroup *
find_group(GroupSet *set, GroupWindow *window, bool *created)
{
	GroupLayout *layout = set->layout;
	uint32		hash = hash_time(window->start);
	GroupEntry *entry;
	bool		found;

	for (int i = 0; i < layout->nkeys; i++)
	{
		GroupKey   *key = &layout->keys[i];

		hash = pg_rotate_left32(hash, 1);
		if (!set->probe_keys[i].isnull)
			hash ^= DatumGetUInt32(FunctionCall1Coll(&key->hash, key->collation, set->probe_keys[i].value));
	}
	set->probe.hash = murmurhash32(hash);
	set->probe.window = window;

	entry = grouptable_lookup_hash(set->groups, &set->probe, set->probe.hash);
	*created = entry == NULL;
	if (entry == NULL)
	{
		WindowGroup *group = make_group(set);

		entry = grouptable_insert_hash(set->groups, group, group->hash, &found);
		Assert(!found);
		entry->group = group;
	}
	return entry->group;
}

void
GroupSetRemove(GroupSet *set, WindowGroup *group)
{
	GroupWindow *window = group->window;

	grouptable_delete(set->groups, group);
	dlist_delete(&group->node);
	if (group->changed)
		dlist_delete(&group->changed_node);
	if (--window->ngroups == 0)
		remove_window(set, window);
}

dlist_head *
GroupSetChanged(GroupSet *set)
{
	return &set->changed;
}

void
GroupSetMarkStored(GroupSet *set, WindowGroup *group)
{
	if (group->changed)
		dlist_delete(&group->changed_node);
	group->changed = false;
	group->stored = true;
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

			value->value = copy_to_stay(result, false, aggregate->len);
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
advance_aggregate(GroupSet *set, GroupAggregate *aggregate, GroupValue *value,
				  const Datum *values, const bool *isnull)
{
	FunctionCallInfo call = aggregate->call;
	MemoryContext arena = set->aggstate->curaggcontext->ecxt_per_tuple_memory;
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

			value->value = copy_to_stay(call->args[1].value, aggregate->byval, aggregate->len);
			value->isnull = value->none = false;
			MemoryContextSwitchTo(old);
			return;
		}
		if (value->isnull)
			return;
	}
	set->aggstate->curpertrans = &aggregate->pertrans;
	call->args[0].value = value->value;
	call->args[0].isnull = value->isnull;
	call->isnull = false;
	result = FunctionCallInvoke(call);
	value->none = false;
	replace_value(aggregate, value, arena, result, call->isnull);
}

void
GroupSetAdvance(GroupSet *set, TimestampTz start, TimestampTz end, const Datum *values, const bool *isnull)
{
	GroupLayout *layout = set->layout;
	MemoryContext old = MemoryContextSwitchTo(set->aggstate->tmpcontext->ecxt_per_tuple_memory);
	WindowGroup *group;
	bool		created;

	for (int i = 0; i < layout->nkeys; i++)
	{
		set->probe_keys[i].value = values[layout->keys[i].column];
		set->probe_keys[i].isnull = isnull[layout->keys[i].column];
	}
	group = find_group(set, find_window(set, start, end), &created);
	if (created)
		group->id = ++set->last_id;
	if (!group->changed)
	{
		group->changed = true;
		dlist_push_tail(&set->changed, &group->changed_node);
	}
	group->written = false;
	group->records++;

	set->aggstate->curaggcontext = group->window->arena->econtext;
	for (int i = 0; i < layout->naggregates; i++)
	{
		GroupAggregate *aggregate = &layout->aggregates[i];

		if (aggregate->filter < 0 ||
			(!isnull[aggregate->filter] && DatumGetBool(values[aggregate->filter])))
			advance_aggregate(set, aggregate, &group->values[i], values, isnull);
	}
	MemoryContextSwitchTo(old);
	ResetExprContext(set->aggstate->tmpcontext);
}

/* ---------------------------------------------------------------------------
 * Serialise
 * ---------------------------------------------------------------------------
 */

/* A call of one of an aggregate's functions that gets one state and what else it is declared with. */
static Datum
call_with_state(GroupSet *set, GroupAggregate *aggregate, FmgrInfo *function, int nargs,
				NullableDatum first, NullableDatum second, bool *isnull)
{
	LOCAL_FCINFO(call, FUNC_MAX_ARGS);
	Datum		result;
	bool		any_null = first.isnull || nargs > 1;

	set->aggstate->curpertrans = &aggregate->pertrans;
	InitFunctionCallInfoData(*call, function, nargs, aggregate->aggref->inputcollid, (void *) set->aggstate, NULL);
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
serialise_internal(GroupSet *set, GroupAggregate *aggregate, Datum value)
{
	NullableDatum state = {value, false};
	bool		isnull;
	Datum		bytes;

	bytes = call_with_state(set, aggregate, &aggregate->serialise, 1, state, no_datum, &isnull);
	if (isnull)
		elog(ERROR, "serialisation function of aggregate %u returned null", aggregate->aggref->aggfnoid);
	return DatumGetByteaPP(bytes);
}

/*
 * Bytes as an internal state in econtext. What a deserialisation function
 * returns may live in the current context and is only good for combining; a
 * combine function that gets no first state makes one in the aggregate context.
 */
static Datum
deserialise_internal(GroupSet *set, GroupAggregate *aggregate, bytea *bytes, ExprContext *econtext, bool *isnull)
{
	NullableDatum stored = {PointerGetDatum(bytes), false};
	NullableDatum dummy = {(Datum) 0, false};
	NullableDatum state;

	set->aggstate->curaggcontext = econtext;
	state.value = call_with_state(set, aggregate, &aggregate->deserialise, 2, stored, dummy, &state.isnull);
	return call_with_state(set, aggregate, &aggregate->combine, 2, no_datum, state, isnull);
}

static void
append_item(StringInfo buf, bytea *item)
{
	pq_sendint32(buf, VARSIZE_ANY_EXHDR(item));
	pq_sendbytes(buf, VARDATA_ANY(item), VARSIZE_ANY_EXHDR(item));
}

bytea *
GroupEncodeKeys(GroupSet *set, const WindowGroup *group)
{
	StringInfoData buf;

	pq_begintypsend(&buf);
	for (int i = 0; i < set->layout->nkeys; i++)
	{
		if (group->keys[i].isnull)
			pq_sendint32(&buf, STORED_NULL);
		else
			append_item(&buf, SendFunctionCall(&set->layout->keys[i].send, group->keys[i].value));
	}
	return pq_endtypsend(&buf);
}

bytea *
GroupEncodeState(GroupSet *set, const WindowGroup *group)
{
	StringInfoData buf;

	set->aggstate->curaggcontext = group->window->arena->econtext;
	pq_begintypsend(&buf);
	for (int i = 0; i < set->layout->naggregates; i++)
	{
		GroupAggregate *aggregate = &set->layout->aggregates[i];
		GroupValue *value = &group->values[i];

		if (value->isnull)
			pq_sendint32(&buf, value->none ? STORED_NONE : STORED_NULL);
		else if (aggregate->internal)
			append_item(&buf, serialise_internal(set, aggregate, value->value));
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
GroupSetLoad(GroupSet *set, TimestampTz start, TimestampTz end, int64 id, int64 records,
			 bytea *keys, bytea *state)
{
	GroupLayout *layout = set->layout;
	MemoryContext old = MemoryContextSwitchTo(set->aggstate->tmpcontext->ecxt_per_tuple_memory);
	StringInfoData from = open_stored(keys);
	StringInfo	item;
	int32		length;
	WindowGroup *group;
	MemoryContext arena;
	bool		created;

	for (int i = 0; i < layout->nkeys; i++)
	{
		item = next_item(&from, &length);
		set->probe_keys[i].isnull = item == NULL;
		if (item != NULL)
			set->probe_keys[i].value = ReceiveFunctionCall(&layout->keys[i].receive, item,
														   layout->keys[i].ioparam, -1);
	}
	group = find_group(set, find_window(set, start, end), &created);
	if (!created)
		broken_state();
	group->id = id;
	group->records = records;
	group->stored = true;
	GroupSetLastId(set, id);
	arena = group->window->arena->econtext->ecxt_per_tuple_memory;

	from = open_stored(state);
	for (int i = 0; i < layout->naggregates; i++)
	{
		GroupAggregate *aggregate = &layout->aggregates[i];
		GroupValue *value = &group->values[i];
		Datum		datum = (Datum) 0;
		bool		isnull = true;

		item = next_item(&from, &length);
		if (item != NULL && aggregate->internal)
		{
			bytea	   *bytes = palloc(VARHDRSZ + item->len);

			SET_VARSIZE(bytes, VARHDRSZ + item->len);
			memcpy(VARDATA(bytes), item->data, item->len);
			datum = deserialise_internal(set, aggregate, bytes, group->window->arena->econtext, &isnull);
		}
		else if (item != NULL)
		{
			datum = ReceiveFunctionCall(&aggregate->deserialise, item, aggregate->ioparam, -1);
			isnull = false;
		}
		replace_value(aggregate, value, arena, datum, isnull);
		value->none = length == STORED_NONE;
	}
	MemoryContextSwitchTo(old);
	ResetExprContext(set->aggstate->tmpcontext);
}

/* ---------------------------------------------------------------------------
 * Final
 * ---------------------------------------------------------------------------
 */

/* A copy of a state that a final function may spoil. */
static NullableDatum
copy_state(GroupSet *set, GroupAggregate *aggregate, const GroupValue *value)
{
	NullableDatum copy = {(Datum) 0, true};

	if (value->isnull)
		return copy;
	copy.isnull = false;
	if (aggregate->internal)
		copy.value = deserialise_internal(set, aggregate, serialise_internal(set, aggregate, value->value),
										  set->scratch, &copy.isnull);
	else
		copy.value = datumCopy(value->value, aggregate->byval, aggregate->len);
	return copy;
}

Datum
GroupFinal(GroupSet *set, WindowGroup *group, int number, bool *isnull)
{
	GroupAggregate *aggregate = &set->layout->aggregates[number];
	GroupValue *value = &group->values[number];
	NullableDatum state = {value->value, value->isnull};
	Datum		result;

	set->aggstate->curaggcontext = group->window->arena->econtext;
	if (!state.isnull)
		state.value = MakeExpandedObjectReadOnly(state.value, false, aggregate->len);
	if (!aggregate->has_final)
	{
		*isnull = state.isnull;
		return state.value;
	}
	if (aggregate->final_modifies)
		state = copy_state(set, aggregate, value);
	result = call_with_state(set, aggregate, &aggregate->final, aggregate->nfinalargs, state, no_datum, isnull);
	if (aggregate->final_modifies && !*isnull)
	{
		int16		len;
		bool		byval;

		get_typlenbyval(aggregate->aggref->aggtype, &len, &byval);
		result = datumCopy(result, byval, len);
		ResetExprContext(set->scratch);
	}
	return result;
}
