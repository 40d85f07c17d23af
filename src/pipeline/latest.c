/*
 * latest.c
 *		An upsert of the latest value: leave out what a newer record of the batch overwrites.
 *
 *		INSERT INTO latest SELECT device, ts, temp FROM s WHERE temp > 0
 *		ON CONFLICT (device) DO UPDATE SET ts = excluded.ts, temp = excluded.temp
 *
 * refuses two rows of one key in one run (21000), and to run it piece by piece between them is slow. But what the first of them
 * writes nobody can see once the second is in. So the SELECT is run first, with each record's number beside its row;
 * of the records that gave a row for the same key only the newest is then delivered to the statement. If
 * a column keeps what the first record of a new key said (it is not in SET, or is set to something else than what is
 * inserted), the oldest is delivered in one run of the statement, and the newest in a second one.
 *
 * That is right where nobody can tell: no triggers, rules, policies, CHECKs, other unique indexes, computed columns or
 * partitions, no parent; no volatile functions, and none of users that may read tables; no ORDER BY; SET made of
 * excluded and constants, without WHERE. A record is only left out if its row could have been inserted and updated, and
 * fits into every index, so that batches of any size set aside the same records; and keys are the same
 * only if they look the same to the last bit. What is not covered meets 21000, and pieces.
 *
 * The first 21000 switches it on, and batches without such keys off again: then to look is a waste.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/sysattr.h"
#include "access/table.h"
#include "access/transam.h"
#include "catalog/index.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "parser/parsetree.h"
#include "tcop/dest.h"
#include "tcop/tcopprot.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/plancache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "core/compat.h"
#include "pipeline/latest.h"

#define USELESS_RUNS 16			/* that left nothing out, until it is switched off */

/* What becomes of a record. */
typedef enum Role
{
	ROLE_FIRST_RUN,
	ROLE_SECOND_RUN,
	ROLE_LEFT_OUT
} Role;

struct Latest
{
	MemoryContext context;		/* of the probe and its columns; reset when it is made anew */
	bool		wanted;
	int			useless;
	uint8	   *roles;			/* Role of each record */

	/* of the plan's generation: -1, none */
	int			generation;
	PlannedStmt *probe;			/* NULL: it is no such statement */
	bool		complete;		/* the newest record says all */
	int			nkeys;
	int		   *keys;			/* places of the conflict key in the probe's row, from 0 */
	int			nrequired;
	int		   *required;		/* places that may not be null */
	int			number;			/* place of the record's number */
};

Latest *
LatestCreate(int capacity)
{
	Latest	   *latest = palloc0(sizeof(Latest));

	latest->context = AllocSetContextCreate(CurrentMemoryContext, "hybridiot latest", ALLOCSET_DEFAULT_SIZES);
	latest->roles = palloc(capacity);
	latest->generation = -1;
	return latest;
}

bool
LatestWant(Latest *latest)
{
	if (latest == NULL || latest->wanted)
		return false;
	latest->useless = 0;
	return latest->wanted = true;
}

/* ---- is it such a statement? ---- */

/* The SELECT of INSERT ... SELECT; NULL if there is none. */
static RangeTblEntry *
find_select(Query *insert, int *rti)
{
	Node	   *from;

	if (list_length(insert->jointree->fromlist) != 1 || insert->jointree->quals != NULL)
		return NULL;
	from = linitial(insert->jointree->fromlist);
	if (!IsA(from, RangeTblRef))
		return NULL;
	*rti = ((RangeTblRef *) from)->rtindex;
	return rt_fetch(*rti, insert->rtable)->rtekind == RTE_SUBQUERY ? rt_fetch(*rti, insert->rtable) : NULL;
}

/* Place of the stream in the SELECT; 0: its rows are not those of the stream, or not alone. */
static int
find_stream(Query *select, Oid stream)
{
	int			rti = 0;
	ListCell   *lc;

	if (select->setOperations || select->groupClause || select->groupingSets || select->havingQual || select->hasAggs ||
		select->hasWindowFuncs || select->distinctClause || select->limitCount || select->limitOffset ||
		select->rowMarks || select->cteList || select->hasSubLinks || select->sortClause)
		return 0;
	foreach(lc, select->targetList)
		if (lfirst_node(TargetEntry, lc)->resjunk)
			return 0;
	for (int i = 1; i <= list_length(select->rtable); i++)
	{
		RangeTblEntry *rte = rt_fetch(i, select->rtable);

		if (rte->rtekind == RTE_RELATION && rte->relid == stream)
			rti = i;
	}
	return rti;
}

static bool
reads_walker(Node *node, Oid *relid)
{
	if (node == NULL)
		return false;
	if (IsA(node, Query))
	{
		ListCell   *lc;

		foreach(lc, ((Query *) node)->rtable)
			if (lfirst_node(RangeTblEntry, lc)->rtekind == RTE_RELATION && lfirst_node(RangeTblEntry, lc)->relid == *relid)
				return true;
		return query_tree_walker((Query *) node, reads_walker, relid, 0);
	}
	return expression_tree_walker(node, reads_walker, relid);
}

/* Functions of users that are stable may read the target, which others of the batch have not written yet. */
static bool
reads_tables(Oid function, void *context)
{
	return function >= FirstNormalObjectId && func_volatile(function) != PROVOLATILE_IMMUTABLE;
}

static bool
user_function_walker(Node *node, void *context)
{
	if (node == NULL)
		return false;
	if (check_functions_in_node(node, reads_tables, context))
		return true;
	if (IsA(node, Query))
		return query_tree_walker((Query *) node, user_function_walker, context, 0);
	return expression_tree_walker(node, user_function_walker, context);
}

static Bitmapset *
conflict_key(const OnConflictExpr *conflict)
{
	Bitmapset  *key = NULL;
	ListCell   *lc;

	if (OidIsValid(conflict->constraint))
	{
		Relation	index = index_open(get_constraint_index(conflict->constraint), AccessShareLock);

		for (int i = 0; i < IndexRelationGetNumberOfKeyAttributes(index); i++)
			key = bms_add_member(key, index->rd_index->indkey.values[i]);
		index_close(index, NoLock);
		return key;
	}
	foreach(lc, conflict->arbiterElems)
	{
		InferenceElem *elem = lfirst_node(InferenceElem, lc);

		if (!IsA(elem->expr, Var))
			return NULL;
		key = bms_add_member(key, ((Var *) elem->expr)->varattno);
	}
	return key;
}

/* Nothing but the key is unique; no index computes anything, or has a row that may be too large for it. */
static bool
indexes_are_plain(Relation rel, const Bitmapset *key)
{
	List	   *indexes = RelationGetIndexList(rel);
	bool		plain = true;
	ListCell   *lc;

	foreach(lc, indexes)
	{
		Relation	index = index_open(lfirst_oid(lc), AccessShareLock);
		Bitmapset  *columns = NULL;

		for (int i = 0; i < IndexRelationGetNumberOfKeyAttributes(index); i++)
			columns = bms_add_member(columns, index->rd_index->indkey.values[i]);
		for (int i = 0; i < IndexRelationGetNumberOfAttributes(index); i++)
			plain &= bms_is_member(index->rd_index->indkey.values[i], key) ||
				(index->rd_index->indkey.values[i] > 0 && TupleDescAttr(RelationGetDescr(index), i)->attlen > 0);
		plain &= !bms_is_member(0, columns) && RelationGetIndexPredicate(index) == NIL &&
			((!index->rd_index->indisunique && !index->rd_index->indisexclusion) || bms_equal(columns, key));
		index_close(index, NoLock);
	}
	return plain;
}

static bool
table_is_plain(Relation rel, const Bitmapset *key)
{
	TupleConstr *constr = rel->rd_att->constr;

	return rel->rd_rel->relkind == RELKIND_RELATION && !rel->rd_rel->relispartition &&
		!has_superclass(RelationGetRelid(rel)) &&
		rel->trigdesc == NULL && rel->rd_rules == NULL && !rel->rd_rel->relrowsecurity &&
		(constr == NULL || (constr->num_check == 0 && !constr->has_generated_stored && !HasGeneratedVirtual(constr))) &&
		indexes_are_plain(rel, key);
}

static Node *
strip(Expr *expr)
{
	while (IsA(expr, RelabelType))
		expr = ((RelabelType *) expr)->arg;
	return (Node *) expr;
}

/* The same whatever the record is, and whatever tables hold: now(), but no function of a user's. */
static bool
is_constant(Node *node)
{
	return IsA(node, Const) || IsA(node, SQLValueFunction) ||
		(IsA(node, FuncExpr) && ((FuncExpr *) node)->args == NIL && ((FuncExpr *) node)->funcid < FirstNormalObjectId);
}

static TargetEntry *
entry_of(List *entries, int attnum)
{
	ListCell   *lc;

	foreach(lc, entries)
		if (lfirst_node(TargetEntry, lc)->resno == attnum)
			return lfirst(lc);
	return NULL;
}

/* May SET be so; and does it, with what is inserted, depend on the newest record alone? */
static bool
set_is_plain(const OnConflictExpr *conflict, List *inserted, const Bitmapset *key, TupleDesc desc, bool *complete)
{
	*complete = true;
	for (int attnum = 1; attnum <= desc->natts; attnum++)
	{
		TargetEntry *set = entry_of(conflict->onConflictSet, attnum);
		TargetEntry *insert = entry_of(inserted, attnum);
		Node	   *to = set ? strip(set->expr) : NULL;
		Node	   *from = insert ? strip(insert->expr) : NULL;

		if (to && IsA(to, Var) && ((Var *) to)->varno == conflict->exclRelIndex && ((Var *) to)->varattno > 0)
		{
			if (((Var *) to)->varattno == attnum)
				continue;
			/* A record may fail here that is only left out. */
			if (TupleDescAttr(desc, attnum - 1)->attnotnull)
				return false;
			*complete = false;
		}
		else if (to && IsA(to, Const) && ((Const *) to)->constisnull && TupleDescAttr(desc, attnum - 1)->attnotnull)
			return false;
		else if (to && is_constant(to))
			*complete &= from && equal(to, from);
		else if (to)
			return false;
		else if (!bms_is_member(attnum, key))
			*complete &= from == NULL || is_constant(from);
		if (to && bms_is_member(attnum, key))
			return false;
	}
	return true;
}

/* ---- the probe ---- */

/* Make SELECT of INSERT ... SELECT, with the same columns, in the table's order, and the record's number behind them. */
static Query *
make_probe(Query *insert, RangeTblEntry *source, int source_rti, int stream_rti)
{
	Query	   *select = source->subquery;
	AttrNumber	column = list_length(select->targetList) + 1;
	AttrNumber	resno = 0;
	ListCell   *lc;

	select->targetList = lappend(select->targetList,
								 makeTargetEntry((Expr *) makeVar(stream_rti, SelfItemPointerAttributeNumber, TIDOID, -1, InvalidOid, 0),
												 column, pstrdup("ctid"), false));
	source->eref->colnames = lappend(source->eref->colnames, makeString(pstrdup("ctid")));
	foreach(lc, insert->targetList)
		lfirst_node(TargetEntry, lc)->resno = ++resno;
	insert->targetList = lappend(insert->targetList,
								 makeTargetEntry((Expr *) makeVar(source_rti, column, TIDOID, -1, InvalidOid, 0),
												 resno + 1, pstrdup("ctid"), false));
	insert->commandType = CMD_SELECT;
	insert->resultRelation = 0;
	insert->onConflict = NULL;
	return insert;
}

/* Places of the columns that matter, in the row of the probe. */
static void
note_places(Latest *latest, Relation rel, List *inserted, const Bitmapset *key)
{
	ListCell   *lc;

	latest->nkeys = latest->nrequired = 0;
	latest->number = list_length(inserted);
	latest->keys = palloc(sizeof(int) * (list_length(inserted) + 1));
	latest->required = palloc(sizeof(int) * (list_length(inserted) + 1));
	foreach(lc, inserted)
	{
		int			attnum = lfirst_node(TargetEntry, lc)->resno;

		if (bms_is_member(attnum, key))
			latest->keys[latest->nkeys++] = foreach_current_index(lc);
		if (TupleDescAttr(rel->rd_att, attnum - 1)->attnotnull)
			latest->required[latest->nrequired++] = foreach_current_index(lc);
	}
}

/* Look at a plan for the first time. The locks on its tables are held. */
static void
judge(Latest *latest, CachedPlanSource *source, Oid stream)
{
	Query	   *insert;
	RangeTblEntry *select;
	OnConflictExpr *conflict;
	Bitmapset  *key;
	Relation	rel;
	Oid			relid;
	int			select_rti;
	int			stream_rti;
	bool		plain;

	latest->probe = NULL;
	MemoryContextReset(latest->context);
	if (list_length(source->query_list) != 1)
		return;
	insert = copyObject(linitial_node(Query, source->query_list));
	conflict = insert->onConflict;
	if (insert->commandType != CMD_INSERT || conflict == NULL || conflict->action != ONCONFLICT_UPDATE ||
		conflict->onConflictWhere || conflict->arbiterWhere || insert->returningList || insert->cteList ||
		insert->withCheckOptions || (select = find_select(insert, &select_rti)) == NULL ||
		(stream_rti = find_stream(select->subquery, stream)) == 0 || (key = conflict_key(conflict)) == NULL ||
		contain_volatile_functions((Node *) insert) || user_function_walker((Node *) insert, NULL))
		return;
	relid = rt_fetch(insert->resultRelation, insert->rtable)->relid;
	if (reads_walker((Node *) select->subquery, &relid))
		return;

	rel = table_open(relid, NoLock);
	plain = table_is_plain(rel, key) &&
		set_is_plain(conflict, insert->targetList, key, RelationGetDescr(rel), &latest->complete);
	if (plain)
		note_places(latest, rel, insert->targetList, key);
	table_close(rel, NoLock);
	if (plain && latest->nkeys == bms_num_members(key))
		latest->probe = pg_plan_query(make_probe(insert, select, select_rti, stream_rti), source->query_string, 0, NULL);
}

/* ---- the rows of the probe ---- */

/* Records of one conflict key. */
typedef struct KeyRecords
{
	int			oldest;
	int			newest;
} KeyRecords;

typedef struct KeyEntry
{
	int			place;			/* in the probe's arrays */
	uint32		hash;
	char		status;
} KeyEntry;

typedef struct Probe
{
	DestReceiver receiver;
	Latest	   *latest;
	StreamBatch *batch;
	struct latest_hash *hash;
	Datum	   *keys;			/* nkeys of each */
	KeyRecords *records;
	int			nplaces;
	bool	   *seen;			/* by record number */
	bool		confused;		/* a record without number, or with two rows: leave nothing out */
	int			nleft_out;
} Probe;

static Probe *probing;			/* a hash table has no other way to know */
static TupleDesc probing_desc;

static uint32
key_hash(int place)
{
	uint32		hash = 0;

	for (int i = 0; i < probing->latest->nkeys; i++)
	{
		Form_pg_attribute att = TupleDescAttr(probing_desc, probing->latest->keys[i]);

		hash = hash_combine(hash, datum_image_hash(probing->keys[place * probing->latest->nkeys + i], att->attbyval, att->attlen));
	}
	return hash;
}

static bool
key_equal(int a, int b)
{
	int			nkeys = probing->latest->nkeys;

	for (int i = 0; i < nkeys; i++)
	{
		Form_pg_attribute att = TupleDescAttr(probing_desc, probing->latest->keys[i]);

		if (!datum_image_eq(probing->keys[a * nkeys + i], probing->keys[b * nkeys + i], att->attbyval, att->attlen))
			return false;
	}
	return true;
}

#define SH_PREFIX latest
#define SH_ELEMENT_TYPE KeyEntry
#define SH_KEY_TYPE int
#define SH_KEY place
#define SH_HASH_KEY(tb, key) key_hash(key)
#define SH_EQUAL(tb, a, b) key_equal(a, b)
#define SH_STORE_HASH
#define SH_GET_HASH(tb, entry) (entry)->hash
#define SH_SCOPE static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

static void
leave_out(Probe *probe, int number)
{
	probe->latest->roles[number] = ROLE_LEFT_OUT;
	probe->nleft_out++;
}

/* One more record of a key, which may be older than those before: a join can turn the order around. */
static void
add_record(Probe *probe, KeyRecords *records, int number)
{
	int			oldest = Min(records->oldest, number);
	int			newest = Max(records->newest, number);

	/* Of those that there were, which is neither any more? */
	if (records->oldest != oldest && records->oldest != newest)
		leave_out(probe, records->oldest);
	if (records->newest != oldest && records->newest != newest && records->newest != records->oldest)
		leave_out(probe, records->newest);
	if (number != oldest && number != newest)
		leave_out(probe, number);
	records->oldest = oldest;
	records->newest = newest;
}

static bool
receive_row(TupleTableSlot *slot, DestReceiver *self)
{
	Probe	   *probe = (Probe *) self;
	Latest	   *latest = probe->latest;
	Datum	   *keys = probe->keys + (Size) probe->nplaces * latest->nkeys;
	KeyEntry   *entry;
	int			number;
	bool		found;

	slot_getallattrs(slot);
	if (slot->tts_isnull[latest->number])
	{
		probe->confused = true;
		return false;
	}
	number = RecordNumberFromTid((ItemPointer) DatumGetPointer(slot->tts_values[latest->number]));
	if (probe->seen[number])
	{
		probe->confused = true;
		return false;
	}
	probe->seen[number] = true;

	/* It cannot be inserted: the statement is to say so. */
	for (int i = 0; i < latest->nrequired; i++)
		if (slot->tts_isnull[latest->required[i]])
			return true;
	for (int i = 0; i < latest->nkeys; i++)
	{
		if (slot->tts_isnull[latest->keys[i]])
			return true;
		keys[i] = slot->tts_values[latest->keys[i]];
	}
	probing_desc = slot->tts_tupleDescriptor;
	entry = latest_insert(probe->hash, probe->nplaces, &found);
	if (found)
	{
		add_record(probe, &probe->records[entry->place], number);
		return true;
	}
	for (int i = 0; i < latest->nkeys; i++)
	{
		Form_pg_attribute att = TupleDescAttr(probing_desc, latest->keys[i]);
		MemoryContext old = MemoryContextSwitchTo(GetMemoryChunkContext(probe));

		keys[i] = datumCopy(keys[i], att->attbyval, att->attlen);
		MemoryContextSwitchTo(old);
	}
	probe->records[probe->nplaces].oldest = probe->records[probe->nplaces].newest = number;
	probe->nplaces++;
	return true;
}

static void
start_rows(DestReceiver *self, int operation, TupleDesc desc)
{
}

static void
end_rows(DestReceiver *self)
{
}

static Probe *
make_receiver(Latest *latest, StreamBatch *batch, int first, int last)
{
	Probe	   *probe = palloc0(sizeof(Probe));

	probe->receiver.receiveSlot = receive_row;
	probe->receiver.rStartup = start_rows;
	probe->receiver.rShutdown = end_rows;
	probe->receiver.rDestroy = end_rows;
	probe->receiver.mydest = DestNone;
	probe->latest = latest;
	probe->batch = batch;
	probe->hash = latest_create(CurrentMemoryContext, 256, NULL);
	probe->keys = palloc(sizeof(Datum) * Max(latest->nkeys, 1) * (last - first));
	probe->records = palloc(sizeof(KeyRecords) * (last - first));
	probe->seen = palloc0(sizeof(bool) * last);
	return probe;
}

static void
run_probe(Latest *latest, Probe *probe, const char *query_string)
{
	QueryDesc  *query;

	CommandCounterIncrement();
	PushCopiedSnapshot(GetTransactionSnapshot());
	UpdateActiveSnapshotCommandId();
	query = CreateQueryDesc(latest->probe, query_string, GetActiveSnapshot(), InvalidSnapshot,
							&probe->receiver, NULL, NULL, 0);
	ExecutorStart(query, 0);
	ExecutorRun(query, ForwardScanDirection, 0);
	ExecutorFinish(query);
	ExecutorEnd(query);
	FreeQueryDesc(query);
	PopActiveSnapshot();
}

/* With roles of all records; returns how often the statement has to run. */
static int
settle(Latest *latest, const Probe *probe, StreamBatch *batch, int first, int last)
{
	int			runs = 1;

	latest->useless = probe->nplaces > 0 && probe->nleft_out == 0 ? latest->useless + 1 : 0;
	if (latest->useless >= USELESS_RUNS)
		latest->wanted = false;
	if (probe->confused)
		return 1;
	for (int i = 0; i < probe->nplaces; i++)
	{
		KeyRecords *records = &probe->records[i];

		if (records->oldest == records->newest)
			continue;
		latest->useless = 0;
		if (latest->complete)
			latest->roles[records->oldest] = ROLE_LEFT_OUT;
		else
		{
			latest->roles[records->newest] = ROLE_SECOND_RUN;
			runs = 2;
		}
	}
	for (int i = first; i < last; i++)
		batch->skip[i] = latest->roles[i] != ROLE_FIRST_RUN;
	return runs;
}

int
LatestBegin(Latest *latest, SPIPlanPtr plan, StreamBatch *batch, int first, int last)
{
	CachedPlanSource *source;
	CachedPlan *cached;
	int			runs = 1;

	if (latest == NULL || !latest->wanted || last - first < 2)
		return 1;
	source = linitial(SPI_plan_get_plan_sources(plan));
	cached = GetCachedPlan(source, NULL, CurrentResourceOwner, NULL);
	if (latest->generation != cached->generation)
	{
		MemoryContext old = MemoryContextSwitchTo(latest->context);

		judge(latest, source, batch->stream->relid);
		latest->generation = cached->generation;
		MemoryContextSwitchTo(old);
	}
	if (latest->probe)
	{
		MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "hybridiot probe", ALLOCSET_DEFAULT_SIZES);
		MemoryContext old = MemoryContextSwitchTo(context);

		memset(latest->roles + first, ROLE_FIRST_RUN, last - first);
		probing = make_receiver(latest, batch, first, last);
		BatchExpose(batch, first, last, source->query_string);
		run_probe(latest, probing, source->query_string);
		runs = settle(latest, probing, batch, first, last);
		MemoryContextSwitchTo(old);
		MemoryContextDelete(context);
	}
	ReleaseCachedPlan(cached, CurrentResourceOwner);
	return runs;
}

void
LatestSecond(Latest *latest, StreamBatch *batch, int first, int last)
{
	for (int i = first; i < last; i++)
		batch->skip[i] = latest->roles[i] != ROLE_SECOND_RUN;
}

void
LatestEnd(StreamBatch *batch, int first, int last)
{
	memset(batch->skip + first, false, sizeof(bool) * (last - first));
}
