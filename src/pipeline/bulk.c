/*
 * bulk.c
 *		Write the rows of a plain INSERT ... SELECT many at once, as COPY does.
 *
 * PostgreSQL plans the statement and checks its rights, and its executor runs the SELECT with all casts, defaults and
 * joins. Only the loop of the topmost node, ModifyTable, is exchanged for one of ours: rows are
 * routed to their partitions and checked one by one, as ever, but held back and written with table_multi_insert(),
 * which costs less. Then come index entries and AFTER triggers, row by row.
 *
 * That is right only where nobody can see that a row came later than its time. So the conditions are
 * those of COPY (CopyFrom() in PostgreSQL's copyfrom.c): no BEFORE ROW or INSTEAD OF triggers, no foreign
 * table, no transition tables on a partitioned one, and no volatile function, which could look at
 * the table, in the statement or (stricter than COPY) in a CHECK. A partition that
 * does not fulfil them gets its rows one by one. What is not a plain INSERT ... SELECT
 * (ON CONFLICT, RETURNING, WITH that writes, checks of policies and views) is left to the executor as it is.
 *
 * Errors are thrown, as by the executor; the caller's subtransaction takes all back.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/tableam.h"
#include "access/tupconvert.h"
#include "catalog/pg_class.h"
#include "catalog/pg_trigger.h"
#include "commands/trigger.h"
#include "executor/execPartition.h"
#include "executor/executor.h"
#include "executor/nodeModifyTable.h"
#include "executor/tuptable.h"
#include "foreign/fdwapi.h"
#include "miscadmin.h"
#include "nodes/plannodes.h"
#include "optimizer/optimizer.h"
#include "utils/memutils.h"
#include "utils/plancache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "core/compat.h"
#include "pipeline/bulk.h"
#include "stream/stream.h"

/* Rows are held back up to so many of them, and so many bytes. */
#define MAX_ROWS 1000
#define MAX_BYTES (1024 * 1024)

struct Bulk
{
	MemoryContext context;
	int			generation;		/* of the plan that was judged; -1: none */
	bool		plain;			/* the judgement */

	/* Slots cost more to make than to fill: they are kept while the target's rows look the same. */
	MemoryContext slot_context;
	TupleDesc	desc;
	const TupleTableSlotOps *slot_ops;
	TupleTableSlot *slots[MAX_ROWS];
	int			nslots;
};

/* A table that gets rows: the target, or one of its partitions. */
typedef struct BulkTable
{
	ResultRelInfo *info;
	TupleConversionMap *map;	/* from the target's row to this one's; NULL: they are alike */
	bool		one_by_one;		/* its rows cannot be held back */
	bool		kept_slots;		/* the bulk's slots fit its rows */
	TupleTableSlot *slot;		/* of a table whose rows go one by one */
	int			nrows;			/* held back */
	int			size;			/* of the arrays */
	TupleTableSlot **slots;
	int		   *records;		/* each row's number in the batch */
} BulkTable;

/* One run of the statement. */
typedef struct BulkRun
{
	Bulk	   *bulk;
	ModifyTableState *state;
	EState	   *estate;
	StreamBatch *batch;
	List	   *tables;			/* of BulkTable */
	BulkTable  *root;			/* the target; NULL if it is partitioned */
	const TupleTableSlotOps *slot_ops;	/* of the bulk's slots, once a table needed them */
	int			nrows;			/* held back, of all tables */
	int			nkept;			/* of the bulk's slots in use */
	Size		bytes;
} BulkRun;

/* Of the statement that runs; a loop has no other way to know. */
static Bulk *running = NULL;

Bulk *
BulkCreate(void)
{
	Bulk	   *bulk = palloc0(sizeof(Bulk));

	bulk->context = CurrentMemoryContext;
	bulk->generation = -1;
	return bulk;
}

/* ---- what can be written many at once ---- */

/* Can a CHECK of this table look at what was written before? */
static bool
checks_look_around(Relation rel)
{
	TupleConstr *constr = rel->rd_att->constr;

	for (int i = 0; constr && i < constr->num_check; i++)
		if (contain_volatile_functions(stringToNode(constr->check[i].ccbin)))
			return true;
	return false;
}

/*
 * AFTER ROW triggers of users run in the order of the rows. With several partitions that would become the order
 * of partitions.
 */
static bool
order_matters(const TriggerDesc *triggers)
{
	for (int i = 0; i < triggers->numtriggers; i++)
	{
		const Trigger *trigger = &triggers->triggers[i];

		if (TRIGGER_FOR_ROW(trigger->tgtype) && TRIGGER_FOR_AFTER(trigger->tgtype) &&
			TRIGGER_FOR_INSERT(trigger->tgtype) && !trigger->tgisinternal)
			return true;
	}
	return false;
}

static bool
rows_can_wait(ResultRelInfo *info, bool partition)
{
	const TriggerDesc *triggers = info->ri_TrigDesc;

	if (triggers && (triggers->trig_insert_before_row || triggers->trig_insert_instead_row ||
					 (partition && order_matters(triggers))))
		return false;
	return info->ri_FdwRoutine == NULL && !checks_look_around(info->ri_RelationDesc);
}

/* As far as the plan tells. */
static bool
plan_is_plain(CachedPlanSource *source, CachedPlan *plan)
{
	PlannedStmt *statement;
	ModifyTable *modify;
	ListCell   *lc;

	if (list_length(plan->stmt_list) != 1 || list_length(source->query_list) != 1)
		return false;
	statement = linitial_node(PlannedStmt, plan->stmt_list);
	if (statement->commandType != CMD_INSERT || statement->utilityStmt || statement->hasReturning ||
		statement->hasModifyingCTE || !IsA(statement->planTree, ModifyTable))
		return false;
	modify = (ModifyTable *) statement->planTree;
	if (modify->operation != CMD_INSERT || modify->onConflictAction != ONCONFLICT_NONE ||
		modify->withCheckOptionLists != NIL || modify->returningLists != NIL)
		return false;
	foreach(lc, outerPlan(modify)->targetlist)
		if (lfirst_node(TargetEntry, lc)->resjunk)
			return false;

	/* Defaults and policies are in the rewritten query. A sequence does not look at tables. */
	return !contain_volatile_functions_not_nextval((Node *) linitial(source->query_list));
}

/* As far as the opened target tells. */
static bool
target_is_plain(ModifyTableState *state)
{
	ResultRelInfo *info = state->rootResultRelInfo;
	char		kind = info->ri_RelationDesc->rd_rel->relkind;

	if (kind != RELKIND_RELATION && kind != RELKIND_PARTITIONED_TABLE)
		return false;
	if (kind == RELKIND_PARTITIONED_TABLE && info->ri_TrigDesc && info->ri_TrigDesc->trig_insert_new_table)
		return false;
	return rows_can_wait(info, kind == RELKIND_PARTITIONED_TABLE) && info->ri_WithCheckOptions == NIL &&
		info->ri_projectReturning == NULL;
}

/* ---- rows that wait ---- */

/* Are the kept slots of use for such rows? If not, forget them. */
static void
fit_slots(Bulk *bulk, TupleDesc desc, const TupleTableSlotOps *ops)
{
	MemoryContext old;

	if (bulk->slot_context == NULL)
		bulk->slot_context = AllocSetContextCreate(bulk->context, "hybridiot bulk slots", ALLOCSET_DEFAULT_SIZES);
	else if (bulk->desc && bulk->slot_ops == ops && equalTupleDescs(bulk->desc, desc))
		return;
	bulk->nslots = 0;
	bulk->desc = NULL;
	MemoryContextReset(bulk->slot_context);
	old = MemoryContextSwitchTo(bulk->slot_context);
	bulk->desc = CreateTupleDescCopyConstr(desc);
	bulk->slot_ops = ops;
	MemoryContextSwitchTo(old);
}

/* A kept slot; what an error left in it is cleared when it is filled. */
static TupleTableSlot *
kept_slot(Bulk *bulk, int number)
{
	if (number == bulk->nslots)
	{
		MemoryContext old = MemoryContextSwitchTo(bulk->slot_context);

		bulk->slots[number] = MakeSingleTupleTableSlot(bulk->desc, bulk->slot_ops);
		bulk->nslots++;
		MemoryContextSwitchTo(old);
	}
	return bulk->slots[number];
}

/* Where the next row of a table waits. */
static TupleTableSlot *
next_slot(BulkRun *run, BulkTable *table)
{
	if (table->nrows == table->size)
	{
		int			size = table->size ? table->size * 2 : 64;

		table->slots = table->slots ? repalloc(table->slots, sizeof(TupleTableSlot *) * size) :
			palloc(sizeof(TupleTableSlot *) * size);
		table->records = table->records ? repalloc(table->records, sizeof(int) * size) :
			palloc(sizeof(int) * size);
		for (int i = table->size; i < size; i++)
			table->slots[i] = NULL;
		table->size = size;
	}
	if (table->kept_slots)
		table->slots[table->nrows] = kept_slot(run->bulk, run->nkept++);
	else if (table->slots[table->nrows] == NULL)
		table->slots[table->nrows] = table_slot_create(table->info->ri_RelationDesc, &run->estate->es_tupleTable);
	return table->slots[table->nrows];
}

/* Copy a row, by its values alone: whatever it was, it becomes one allocation of the other slot's kind. */
static void
fill_slot(TupleTableSlot *slot, TupleTableSlot *from)
{
	int			natts = slot->tts_tupleDescriptor->natts;

	slot_getallattrs(from);
	ExecClearTuple(slot);
	memcpy(slot->tts_values, from->tts_values, sizeof(Datum) * natts);
	memcpy(slot->tts_isnull, from->tts_isnull, sizeof(bool) * natts);
	ExecStoreVirtualTuple(slot);
	ExecMaterializeSlot(slot);
}

/* Index entries and AFTER triggers of a row that is in its table. */
static void
after_row(BulkRun *run, ResultRelInfo *info, TupleTableSlot *slot)
{
	List	   *recheck = NIL;

	if (info->ri_NumIndices > 0)
		recheck = ExecInsertIndexTuples(info, slot, run->estate, false, false, NULL, NIL, false);
	ExecARInsertTriggers(run->estate, info, slot, recheck, run->state->mt_transition_capture);
	list_free(recheck);
}

/* What a row that waits takes, where that can be told. */
static Size
row_size(TupleTableSlot *slot)
{
	return TTS_IS_HEAPTUPLE(slot) || TTS_IS_BUFFERTUPLE(slot) ? ((HeapTupleTableSlot *) slot)->tuple->t_len : 0;
}

static void
flush_table(BulkRun *run, BulkTable *table)
{
	ResultRelInfo *info = table->info;
	int			delivered = run->batch->delivered;
	MemoryContext old;

	/* It may leave memory behind. */
	old = MemoryContextSwitchTo(GetPerTupleMemoryContext(run->estate));
	table_multi_insert(info->ri_RelationDesc, table->slots, table->nrows, run->estate->es_output_cid, 0, NULL);
	MemoryContextSwitchTo(old);
	for (int i = 0; i < table->nrows; i++)
	{
		/* If it fails, it is this record's fault. */
		run->batch->delivered = table->records[i];
		if (info->ri_NumIndices > 0 || info->ri_TrigDesc)
			after_row(run, info, table->slots[i]);
		ExecClearTuple(table->slots[i]);
	}
	run->batch->delivered = delivered;
	run->estate->es_processed += table->nrows;
	table->nrows = 0;
}

static void
flush(BulkRun *run)
{
	ListCell   *lc;

	foreach(lc, run->tables)
	{
		BulkTable  *table = lfirst(lc);

		if (table->nrows > 0)
			flush_table(run, table);
	}
	run->nrows = run->nkept = 0;
	run->bytes = 0;
	ResetPerTupleExprContext(run->estate);
}

/* ---- one row ---- */

static BulkTable *
open_table(BulkRun *run, ResultRelInfo *info)
{
	BulkTable  *table = (BulkTable *) info->ri_CopyMultiInsertBuffer;

	if (table)
		return table;
	table = palloc0(sizeof(BulkTable));
	table->info = info;
	if (info->ri_RelationDesc->rd_rel->relhasindex && info->ri_IndexRelationDescs == NULL)
		ExecOpenIndices(info, false);
	if (info != run->state->rootResultRelInfo)
		table->map = ExecGetRootToChildMap(info, run->estate);
	table->one_by_one = !rows_can_wait(info, run->state->mt_partition_tuple_routing != NULL);
	if (table->one_by_one)
		table->slot = table_slot_create(info->ri_RelationDesc, &run->estate->es_tupleTable);
	else if (table->map == NULL)
	{
		/* Partitions that look like the target share its slots. */
		const TupleTableSlotOps *ops = table_slot_callbacks(info->ri_RelationDesc);

		if (run->slot_ops == NULL)
			fit_slots(run->bulk, RelationGetDescr(run->state->rootResultRelInfo->ri_RelationDesc), ops);
		run->slot_ops = run->slot_ops ? run->slot_ops : ops;
		table->kept_slots = ops == run->slot_ops;
	}
	/* PostgreSQL keeps this pointer for COPY; there is no COPY here. */
	info->ri_CopyMultiInsertBuffer = (struct CopyMultiInsertBuffer *) table;
	run->tables = lappend(run->tables, table);
	return table;
}

/*
 * Generated columns and constraints. spare: a slot that may be written to; what is returned is that one if there
 * are generated columns, else the row itself.
 */
static TupleTableSlot *
check_row(BulkRun *run, ResultRelInfo *info, TupleTableSlot *row, TupleTableSlot *spare, bool check_partition)
{
	Relation	rel = info->ri_RelationDesc;
	TupleConstr *constr = rel->rd_att->constr;

	if (constr && constr->has_generated_stored)
	{
		if (row != spare)
			fill_slot(spare, row);
		row = spare;
		row->tts_tableOid = RelationGetRelid(rel);
		ExecComputeStoredGenerated(info, run->estate, row, CMD_INSERT);
	}
	/* Checks may ask for it. */
	row->tts_tableOid = RelationGetRelid(rel);
	if (info->ri_FdwRoutine)
		return row;
	if (constr)
		ExecConstraints(info, row, run->estate);
	if (check_partition && rel->rd_rel->relispartition)
		ExecPartitionCheck(info, row, run->estate, true);
	return row;
}

/* Into a partition whose rows cannot wait. */
static void
insert_row(BulkRun *run, BulkTable *table, TupleTableSlot *row, TupleTableSlot *plan_slot)
{
	ResultRelInfo *info = table->info;
	bool		triggers = info->ri_TrigDesc && info->ri_TrigDesc->trig_insert_before_row;

	/* What came before must be there to be seen. */
	flush(run);
	if (table->map == NULL)
	{
		fill_slot(table->slot, row);
		row = table->slot;
	}
	row->tts_tableOid = RelationGetRelid(info->ri_RelationDesc);
	if (triggers && !ExecBRInsertTriggers(run->estate, info, row))
		return;
	row = check_row(run, info, row, row, triggers);
	if (info->ri_FdwRoutine)
	{
		row = info->ri_FdwRoutine->ExecForeignInsert(run->estate, info, row, plan_slot);
		if (row == NULL)
			return;
		row->tts_tableOid = RelationGetRelid(info->ri_RelationDesc);
	}
	else
		table_tuple_insert(info->ri_RelationDesc, row, run->estate->es_output_cid, 0, NULL);
	after_row(run, info, row);
	run->estate->es_processed++;
}

static void
take_row(BulkRun *run, TupleTableSlot *row)
{
	ModifyTableState *state = run->state;
	TupleTableSlot *plan_slot = row;
	BulkTable  *table = run->root;
	TupleTableSlot *slot;

	if (table == NULL)
	{
		ResultRelInfo *root = state->rootResultRelInfo;

		row->tts_tableOid = RelationGetRelid(root->ri_RelationDesc);
		table = open_table(run, ExecFindPartition(state, root, state->mt_partition_tuple_routing, row, run->estate));
		if (table->map)
			row = execute_attr_map_slot(table->map->attrMap, row, table->info->ri_PartitionTupleSlot);
		if (table->one_by_one)
		{
			insert_row(run, table, row, plan_slot);
			return;
		}
	}
	slot = next_slot(run, table);
	row = check_row(run, table->info, row, slot, run->root != NULL);
	if (row != slot)
		fill_slot(slot, row);
	table->records[table->nrows++] = run->batch->delivered;
	run->nrows++;
	run->bytes += row_size(slot);
	if (run->nrows >= MAX_ROWS || run->bytes >= MAX_BYTES)
		flush(run);
}

/* ---- the statement ---- */

/* In the place of ExecModifyTable(). */
static TupleTableSlot *
bulk_modify(PlanState *node)
{
	ModifyTableState *state = castNode(ModifyTableState, node);
	ResultRelInfo *root = state->rootResultRelInfo;
	BulkRun		run = {
		.bulk = running,
		.state = state,
		.estate = node->state,
		.batch = ExposedBatch
	};
	ListCell   *lc;

	if (state->mt_done)
		return NULL;
	ExecBSInsertTriggers(run.estate, root);
	if (state->mt_partition_tuple_routing == NULL)
		run.root = open_table(&run, root);
	for (;;)
	{
		TupleTableSlot *row;

		CHECK_FOR_INTERRUPTS();
		ResetPerTupleExprContext(run.estate);
		row = ExecProcNode(outerPlanState(state));
		if (TupIsNull(row))
			break;
		take_row(&run, row);
	}
	flush(&run);
	foreach(lc, run.tables)
	{
		BulkTable  *table = lfirst(lc);

		table->info->ri_CopyMultiInsertBuffer = NULL;
		if (!table->one_by_one)
			table_finish_bulk_insert(table->info->ri_RelationDesc, 0);
	}
	ExecASInsertTriggers(run.estate, root, state->mt_transition_capture);
	state->mt_done = true;
	return NULL;
}

static uint64
run_plan(Bulk *bulk, CachedPlanSource *source, CachedPlan *plan)
{
	PlannedStmt *statement = linitial_node(PlannedStmt, plan->stmt_list);
	QueryDesc  *query;
	PlanState  *top;
	uint64		rows;

	PushActiveSnapshot(GetTransactionSnapshot());
	CommandCounterIncrement();
	UpdateActiveSnapshotCommandId();
	query = CreateQueryDesc(statement, source->query_string, GetActiveSnapshot(), InvalidSnapshot,
							None_Receiver, NULL, NULL, 0);
	ExecutorStart(query, 0);
	top = query->planstate;
	if (target_is_plain(castNode(ModifyTableState, top)))
	{
		running = bulk;
		ExecSetExecProcNode(top, bulk_modify);
	}
	ExecutorRun(query, ForwardScanDirection, 0);
	rows = query->estate->es_processed;
	ExecutorFinish(query);
	ExecutorEnd(query);
	FreeQueryDesc(query);
	PopActiveSnapshot();
	CommandCounterIncrement();
	return rows;
}

bool
BulkExecute(Bulk *bulk, SPIPlanPtr plan, uint64 *rows)
{
	CachedPlanSource *source = linitial(SPI_plan_get_plan_sources(plan));
	CachedPlan *cached = GetCachedPlan(source, NULL, CurrentResourceOwner, NULL);

	if (bulk->generation != cached->generation)
	{
		bulk->plain = plan_is_plain(source, cached);
		bulk->generation = cached->generation;
	}
	if (bulk->plain)
		*rows = run_plan(bulk, source, cached);
	ReleaseCachedPlan(cached, CurrentResourceOwner);
	return bulk->plain;
}
