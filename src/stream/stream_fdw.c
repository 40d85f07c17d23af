/*
 * stream_fdw.c
 *		The foreign-data wrappers: a stream as a foreign table.
 *
 * A scan delivers one of two things. While a pipeline runs its statement, the
 * scan of that statement delivers the pipeline's batch, and any other scan of
 * a stream is refused: it would not be repeatable. In a session, a scan reads
 * the topic from its oldest record to the end as it was when the scan began, through a
 * consumer of its own that lives in the query's memory context; it waits for
 * the network on its latch, interruptibly. Record numbers travel as ctid.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/reloptions.h"
#include "access/sysattr.h"
#include "access/table.h"
#include "commands/defrem.h"
#include "commands/explain.h"
#include "executor/executor.h"
#include "foreign/fdwapi.h"
#include "foreign/foreign.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "optimizer/cost.h"
#include "optimizer/optimizer.h"
#include "optimizer/pathnode.h"
#include "optimizer/planmain.h"
#include "optimizer/restrictinfo.h"
#include "parser/parsetree.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "core/clock.h"
#include "core/compat.h"
#include "core/options.h"
#include "core/record.h"
#include "core/worker.h"
#include "stream/seek.h"
#include "stream/stream.h"

#define SESSION_BATCH 1000
#define ASK_TIMEOUT_MS 30000	/* until a session gives up on the brokers */
#define GUESSED_ROWS 10000
#define STARTUP_COST 10
#define SEEK_COST 50			/* to ask the brokers anew and wait for the first records, once for each row of the outer side */

StreamBatch *ExposedBatch = NULL;

void
BatchExpose(StreamBatch *batch, int first, int last, const char *query_string)
{
	if (batch)
	{
		batch->first = batch->cursor = first;
		batch->last = last;
		batch->delivered = -1;
		batch->deliveries = 0;
		batch->query_string = query_string;
		batch->estate = NULL;
	}
	ExposedBatch = batch;
}

/* ---- planning ---- */

static void
get_rel_size(PlannerInfo *root, RelOptInfo *baserel, Oid foreigntableid)
{
	baserel->rows = clamp_row_est(GUESSED_ROWS *
								  clauselist_selectivity(root, baserel->baserestrictinfo, 0,
														 JOIN_INNER, NULL));
}

static void
get_paths(PlannerInfo *root, RelOptInfo *baserel, Oid foreigntableid)
{
	Cost		row_cost = cpu_tuple_cost + cpu_operator_cost * 10;
	ListCell   *lc;

	add_path(baserel, (Path *)
			 create_foreignscan_path(root, baserel, NULL, baserel->rows, 0, STARTUP_COST,
									 STARTUP_COST + GUESSED_ROWS * row_cost,
									 NIL, baserel->lateral_relids, NULL, NIL, NIL));

	/* A pipeline's batch is in memory: seeks spare it nothing. */
	if (InPipeline)
		return;
	foreach(lc, SeekOuterRelids(root, baserel, foreigntableid))
	{
		Relids		outer = lfirst(lc);
		double		rows = get_baserel_parampathinfo(root, baserel, outer)->ppi_rows;

		add_path(baserel, (Path *)
				 create_foreignscan_path(root, baserel, NULL, rows, 0, SEEK_COST, SEEK_COST + rows * row_cost,
										 NIL, outer, NULL, NIL, NIL));
	}
}

static ForeignScan *
get_plan(PlannerInfo *root, RelOptInfo *baserel, Oid foreigntableid, ForeignPath *best_path,
		 List *tlist, List *scan_clauses, Plan *outer_plan)
{
	List	   *seeks;
	List	   *values;
	Bitmapset  *used = NULL;
	bool		payload = false;
	int			attno = -1;

	scan_clauses = extract_actual_clauses(scan_clauses, false);
	values = SeekFind(root, baserel, foreigntableid, scan_clauses, &seeks);

	/* The payload need not be read where only metadata is asked for. */
	pull_varattnos((Node *) baserel->reltarget->exprs, baserel->relid, &used);
	pull_varattnos((Node *) scan_clauses, baserel->relid, &used);
	while ((attno = bms_next_member(used, attno)) >= 0)
	{
		AttrNumber	attnum = attno + FirstLowInvalidHeapAttributeNumber;

		if (attnum == 0 ||
			(attnum > 0 &&
			 OptionGet(GetForeignColumnOptions(foreigntableid, attnum), "metadata") == NULL))
			payload = true;
	}

	return make_foreignscan(tlist, scan_clauses, baserel->relid, values,
							list_make2(seeks, makeBoolean(payload)), NIL, NIL, outer_plan);
}

/* ---- scanning a topic in a session ---- */

typedef struct SessionScan
{
	Source	   *source;
	int64	   *ends;			/* per partition of the assignment: read below it */
	bool		exhausted;
	MemoryContext context;		/* all of this, and the batch */
} SessionScan;

typedef struct StreamScan
{
	Stream	   *stream;
	StreamBatch *batch;			/* the pipeline's, or the session's own */
	bool		exposed;
	SessionScan *session;		/* NULL until the first row is asked for */
	List	   *seeks;			/* see seek.h */
	List	   *values;			/* ExprStates of their other sides */
	bool		payload;
	int64		records_read;	/* by this scan in a session, over all its rescans */
	MemoryContext context;		/* of a session's scan, once the stream is open */
} StreamScan;

/* Partitions worth reading, with their first offset; ends as of now. */
static void
session_assign(StreamScan *scan, const SeekRange *range)
{
	SessionScan *session = scan->session;
	Stream	   *stream = scan->stream;
	List	   *parts = NIL;
	KafkaPartition *assignment;
	int			nparts;
	ListCell   *lc;

	for (int topic = 0; topic < stream->ntopics && !range->nothing; topic++)
	{
		int32		n;

		if (!SeekTakesTopic(range, stream->topics[topic]))
			continue;
		n = SourceCountPartitions(session->source, topic, ASK_TIMEOUT_MS);
		for (int32 p = 0; p < n; p++)
		{
			KafkaPartition *part;
			int64		low;
			int64		high;

			if (!SeekTakesPartition(range, p))
				continue;
			SourceWatermarks(session->source, topic, p, ASK_TIMEOUT_MS, &low, &high);
			low = Max(low, range->low);
			high = Min(high, range->high);
			if (low < high && !TIMESTAMP_IS_NOBEGIN(range->since))
				low = Max(low, SourceOffsetForTime(session->source, topic, p, range->since,
												   ASK_TIMEOUT_MS));
			if (low >= high)
				continue;
			part = palloc0(sizeof(KafkaPartition));
			part->topic = topic;
			part->partition = p;
			part->next_offset = low;
			part->last = RECORD_MARK_NONE;
			part->end_offset = high;
			parts = lappend(parts, part);
		}
	}

	nparts = list_length(parts);
	session->exhausted = nparts == 0;
	session->ends = palloc(sizeof(int64) * Max(nparts, 1));
	assignment = palloc(sizeof(KafkaPartition) * Max(nparts, 1));
	foreach(lc, parts)
	{
		assignment[foreach_current_index(lc)] = *(KafkaPartition *) lfirst(lc);
		session->ends[foreach_current_index(lc)] = ((KafkaPartition *) lfirst(lc))->end_offset;
	}
	if (!session->exhausted)
		SourceAssign(session->source, assignment, nparts);
}

/* Connect, and be ready to read from the beginning, with bounds as they are now. */
static void
session_start(ForeignScanState *node, StreamScan *scan)
{
	MemoryContext context = AllocSetContextCreate(scan->context, "hybridiot session scan",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	SeekRange	range;

	scan->session = palloc0(sizeof(SessionScan));
	scan->session->context = context;
	scan->batch = BatchCreate(scan->stream, SESSION_BATCH);
	scan->batch->payload_wanted = scan->payload && scan->stream->payload_columns;
	scan->session->source = SourceOpen(&scan->stream->source);
	SeekEvaluate(scan->seeks, scan->values, node->ss.ps.ps_ExprContext, &range);
	session_assign(scan, &range);
	MemoryContextSwitchTo(old);
}

/* Where the record stands, for messages. */
static void
record_context(StreamScan *scan, const Record *record, char *text, size_t len)
{
	snprintf(text, len, "stream \"%s\", topic \"%s\", partition %d, offset " INT64_FORMAT,
			 scan->stream->name, scan->stream->topics[record->topic],
			 record->partition, record->offset);
}

/* How many offsets are still to be passed, all in all; 0: the scan is through. Throws for what stops a partition. */
static int64
session_left(StreamScan *scan)
{
	SessionScan *session = scan->session;
	int			nparts;
	const KafkaPartition *parts = SourceAssignment(session->source, &nparts);
	int64		left = 0;

	for (int i = 0; i < nparts; i++)
	{
		if (parts[i].next_offset >= session->ends[i] || parts[i].at_end)
			continue;
		left += session->ends[i] - parts[i].next_offset;
		if (parts[i].fault != KAFKA_FAULT_NONE)
			ereport(ERROR,
					(errcode(parts[i].fault == KAFKA_FAULT_CORRUPT || parts[i].fault == KAFKA_FAULT_TOO_LARGE ?
							 ERRCODE_DATA_CORRUPTED : ERRCODE_CONNECTION_FAILURE),
					 errmsg("could not read topic \"%s\", partition %d: %s",
							scan->stream->topics[parts[i].topic], parts[i].partition,
							parts[i].message)));
	}
	return left;
}

/*
 * A partition gave records beyond the scan's end in it, and has more of them: read the others alone.
 * Nothing that was polled may be in use.
 */
static void
session_leave_behind(SessionScan *session)
{
	int			nparts;
	const KafkaPartition *parts = SourceAssignment(session->source, &nparts);
	KafkaPartition *rest = palloc(sizeof(KafkaPartition) * Max(nparts, 1));
	int64	   *ends = palloc(sizeof(int64) * Max(nparts, 1));
	int			n = 0;
	bool		beyond = false;

	for (int i = 0; i < nparts; i++)
	{
		beyond = beyond || parts[i].next_offset > session->ends[i];
		if (parts[i].next_offset >= session->ends[i] || parts[i].at_end)
			continue;
		rest[n] = parts[i];
		ends[n++] = session->ends[i];
	}
	if (beyond && n > 0)
	{
		memcpy(session->ends, ends, sizeof(int64) * n);
		SourceAssign(session->source, rest, n);
	}
	pfree(rest);
	pfree(ends);
}

/* Sleep until the source has something, the time is up, or an interrupt comes. */
static void
session_wait(SessionScan *session)
{
	int			fd = SourceFd(session->source);

	if (fd < 0)
		return;
	/* A wait-event set of our own would outlive an error before PostgreSQL 17. */
	(void) WaitLatchOrSocket(MyLatch, WL_LATCH_SET | WL_SOCKET_READABLE | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
							 fd, 1000, WaitEventExtensionNew("HybridiotScan"));
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
}

/* The next records into the session's batch; false: that was all. */
static bool
session_fetch(StreamScan *scan)
{
	SessionScan *session = scan->session;
	StreamBatch *batch = scan->batch;
	MemoryContext old = MemoryContextSwitchTo(session->context);
	int64		give_up = ClockMonotonicMs() + ASK_TIMEOUT_MS;

	BatchReset(batch);
	SourceRelease(session->source);
	session_leave_behind(session);
	while (!session->exhausted)
	{
		int64		left;

		CHECK_FOR_INTERRUPTS();
		left = session_left(scan);
		if (left == 0)
		{
			session->exhausted = true;
			break;
		}
		SourceDrainFd(session->source);
		batch->nrecords = SourcePoll(session->source, batch->records, (int) Min(batch->capacity, left), 0);
		scan->records_read += batch->nrecords;
		if (batch->nrecords > 0)
			break;
		if (ClockMonotonicMs() > give_up)
			ereport(ERROR,
					(errcode(ERRCODE_CONNECTION_FAILURE),
					 errmsg("brokers of stream \"%s\" do not answer", scan->stream->name),
					 SourceError(session->source)[0] ? errdetail("%s", SourceError(session->source)) : 0));
		else
			session_wait(session);
	}
	if (batch->nrecords > 0)
		BatchDecode(batch, 0, DT_NOEND);
	batch->cursor = 0;
	batch->last = batch->nrecords;
	MemoryContextSwitchTo(old);
	return batch->nrecords > 0;
}

/* Is a record beyond the end that the scan set out to read? */
static bool
beyond_end(StreamScan *scan, const Record *record)
{
	int			nparts;
	const KafkaPartition *parts = SourceAssignment(scan->session->source, &nparts);

	for (int i = 0; i < nparts; i++)
		if (parts[i].topic == record->topic && parts[i].partition == record->partition)
			return record->offset >= scan->session->ends[i];
	return true;
}

/* ---- executor callbacks ---- */

/* Would a row of the batch be one of the table as it is now? */
static bool
same_columns(TupleDesc batch, TupleDesc table)
{
	if (batch->natts != table->natts)
		return false;
	for (int i = 0; i < batch->natts; i++)
	{
		Form_pg_attribute one = TupleDescAttr(batch, i);
		Form_pg_attribute other = TupleDescAttr(table, i);

		if (one->attisdropped != other->attisdropped ||
			(!one->attisdropped && (one->atttypid != other->atttypid || one->atttypmod != other->atttypmod)))
			return false;
	}
	return true;
}

/* Deliver the pipeline's batch, if this is the scan of its statement. */
static void
take_exposed(ForeignScanState *node, StreamScan *scan)
{
	Relation	rel = node->ss.ss_currentRelation;
	EState	   *estate = node->ss.ps.state;
	StreamBatch *batch = ExposedBatch;

	/* Only the pipeline's own statement, known by the address of its text, and once. */
	if (batch == NULL || batch->stream->relid != RelationGetRelid(rel) || batch->estate != NULL ||
		estate->es_sourceText != batch->query_string)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("stream \"%s\" cannot be scanned here", RelationGetRelationName(rel)),
				 errdetail("A pipeline reads its own stream once, in its own statement."),
				 errhint("Use a table that another pipeline fills.")));

	/* The records were decoded before the table was locked. */
	if (!same_columns(batch->stream->tupdesc, RelationGetDescr(rel)))
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("columns of stream \"%s\" were changed while its records were read",
						RelationGetRelationName(rel))));
	batch->estate = estate;
	batch->cursor = batch->first;
	scan->batch = batch;
	scan->stream = batch->stream;
	scan->exposed = true;
}

static void
open_in_session(ForeignScanState *node, StreamScan *scan)
{
	EState	   *estate = node->ss.ps.state;
	Oid			userid = SCAN_CHECK_AS_USER((ForeignScan *) node->ss.ps.plan, estate);
	MemoryContext old;

	scan->context = AllocSetContextCreate(estate->es_query_cxt, "hybridiot scan", ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(scan->context);
	scan->stream = StreamOpen(RelationGetRelid(node->ss.ss_currentRelation),
							  OidIsValid(userid) ? userid : GetUserId());
	MemoryContextSwitchTo(old);
}

static void
begin_scan(ForeignScanState *node, int eflags)
{
	ForeignScan *plan = (ForeignScan *) node->ss.ps.plan;
	EState	   *estate = node->ss.ps.state;
	Oid			relid = RelationGetRelid(node->ss.ss_currentRelation);
	const char *wrapper = StreamWrapper(relid);
	StreamScan *scan;

	if (wrapper == NULL || strcmp(wrapper, KAFKA_WRAPPER) != 0)
		(void) StreamOpen(relid, GetUserId());	/* says why not */

	scan = palloc0(sizeof(StreamScan));
	node->fdw_state = scan;
	scan->seeks = linitial(plan->fdw_private);
	scan->payload = boolVal(lsecond(plan->fdw_private));
	scan->values = ExecInitExprList(plan->fdw_exprs, (PlanState *) node);

	/* A row that is checked again (EvalPlanQual) mostly brings its own tuple: nothing is scanned until it is asked for. */
	if ((eflags & EXEC_FLAG_EXPLAIN_ONLY) || estate->es_epq_active != NULL)
		return;
	if (InPipeline)
		take_exposed(node, scan);
	else
		open_in_session(node, scan);
}

static TupleTableSlot *
deliver(StreamScan *scan, int number, TupleTableSlot *slot)
{
	StreamBatch *batch = scan->batch;
	int			natts = scan->stream->tupdesc->natts;

	memcpy(slot->tts_values, batch->values + (Size) number * natts, sizeof(Datum) * natts);
	memcpy(slot->tts_isnull, batch->isnull + (Size) number * natts, sizeof(bool) * natts);
	ExecStoreVirtualTuple(slot);
	ItemPointerSet(&slot->tts_tid, number, 1);
	batch->delivered = number;
	batch->deliveries++;
	return slot;
}

static TupleTableSlot *
iterate_exposed(StreamScan *scan, TupleTableSlot *slot)
{
	StreamBatch *batch = scan->batch;

	while (batch->cursor < batch->last)
	{
		int			number = batch->cursor++;

		if (batch->status[number] == RECORD_GOOD && !batch->skip[number])
			return deliver(scan, number, slot);
	}
	return slot;
}

static TupleTableSlot *
iterate_scan(ForeignScanState *node)
{
	StreamScan *scan = node->fdw_state;
	TupleTableSlot *slot = node->ss.ss_ScanTupleSlot;

	ExecClearTuple(slot);
	if (scan->exposed)
		return iterate_exposed(scan, slot);

	if (scan->stream == NULL)
	{
		/* A subquery of a row that is checked again. */
		if (InPipeline)
			ereport(ERROR,
					(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
					 errmsg("a row was changed by somebody else while the batch was applied to it")));
		open_in_session(node, scan);
	}
	if (scan->session == NULL)
		session_start(node, scan);
	for (;;)
	{
		StreamBatch *batch = scan->batch;

		while (batch->cursor < batch->last)
		{
			int			number = batch->cursor++;
			char		place[256];

			if (beyond_end(scan, &batch->records[number]))
				continue;
			if (batch->status[number] == RECORD_GOOD)
				return deliver(scan, number, slot);
			record_context(scan, &batch->records[number], place, sizeof(place));
			ereport(ERROR,
					(errcode(batch->errors[number]->sqlstate),
					 errmsg("undecodable record: %s", batch->errors[number]->message),
					 errdetail("It stands at %s.", place),
					 errhint("Select only metadata columns to look at it, or leave it out by conditions on partition and offset. A pipeline would set it aside as a dead letter.")));
		}
		if (!session_fetch(scan))
			return slot;
	}
}

static void
session_close(StreamScan *scan)
{
	if (scan->session == NULL)
		return;
	/* The source goes with it. */
	MemoryContextDelete(scan->session->context);
	scan->session = NULL;
	scan->batch = NULL;
}

static void
rescan(ForeignScanState *node)
{
	StreamScan *scan = node->fdw_state;

	/*
	 * A topic is read again from the start: bounds may have other values now. Not over the same connection: a
	 * broker answers in turn, and what is asked would wait for fetches that wait for records.
	 */
	if (scan->exposed)
		scan->batch->cursor = scan->batch->first;
	else
		session_close(scan);
}

static void
end_scan(ForeignScanState *node)
{
	StreamScan *scan = node->fdw_state;

	if (scan == NULL)
		return;
	if (scan->exposed)
		scan->batch->estate = NULL;
	else if (scan->context)
	{
		session_close(scan);
		MemoryContextDelete(scan->context);
	}
}

static void
explain_scan(ForeignScanState *node, ExplainState *es)
{
	StreamScan *scan = node->fdw_state;
	ForeignTable *table = GetForeignTable(RelationGetRelid(node->ss.ss_currentRelation));

	ExplainPropertyText("Topic", OptionGet(table->options, "topic"), es);
	SeekExplain(scan->seeks, es);
	if (es->analyze && !scan->exposed)
		ExplainPropertyInteger("Records Read", NULL, scan->records_read, es);
}

/* Called for every write to a stream while it is planned. */
static List *
plan_modify(PlannerInfo *root, ModifyTable *plan, Index resultRelation, int subplan_index)
{
	RangeTblEntry *rte = planner_rt_fetch(resultRelation, root);

	if (plan->operation == CMD_INSERT)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot insert into stream \"%s\"", get_rel_name(rte->relid)),
				 errhint("Publishing to streams is not supported yet.")));
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("cannot change stream \"%s\"", get_rel_name(rte->relid)),
			 errhint("A log is only read: UPDATE and DELETE have no meaning for it.")));
	return NIL;
}

/* ---- SQL functions ---- */

static Datum
make_handler(void)
{
	FdwRoutine *routine = makeNode(FdwRoutine);

	routine->GetForeignRelSize = get_rel_size;
	routine->GetForeignPaths = get_paths;
	routine->GetForeignPlan = get_plan;
	routine->BeginForeignScan = begin_scan;
	routine->IterateForeignScan = iterate_scan;
	routine->ReScanForeignScan = rescan;
	routine->EndForeignScan = end_scan;
	routine->ExplainForeignScan = explain_scan;
	routine->PlanForeignModify = plan_modify;
	return PointerGetDatum(routine);
}

PG_FUNCTION_INFO_V1(hybridiot_kafka_handler);
Datum
hybridiot_kafka_handler(PG_FUNCTION_ARGS)
{
	PG_RETURN_DATUM(make_handler());
}

PG_FUNCTION_INFO_V1(hybridiot_amqp_handler);
Datum
hybridiot_amqp_handler(PG_FUNCTION_ARGS)
{
	PG_RETURN_DATUM(make_handler());
}

/* The name of an option as the library's property. */
static void
property_name(const char *option, char *property, size_t len)
{
	strlcpy(property, option, len);
	for (char *c = property; *c; c++)
		if (*c == '_')
			*c = '.';
}

static bool
kafka_extra_allowed(const char *name)
{
	char		property[128];

	property_name(name, property, sizeof(property));
	return strchr(name, '.') == NULL && KafkaPropertyAllowed(property);
}

static bool
kafka_extra_check(const char *name, const char *value, char *errbuf, size_t errlen)
{
	char		property[128];

	property_name(name, property, sizeof(property));
	return KafkaPropertyCheck(property, value, errbuf, errlen);
}

PG_FUNCTION_INFO_V1(hybridiot_kafka_validator);

/* kafka_validator(options, catalog): HV00D for unknown options, 22023 for bad values, 42501 for files */
Datum
hybridiot_kafka_validator(PG_FUNCTION_ARGS)
{
	static const OptionExtras extras = {
		.allowed = kafka_extra_allowed,
		.check = kafka_extra_check,
		.names = KafkaAllowedProperties
	};

	OptionsValidate(KAFKA_WRAPPER, untransformRelOptions(PG_GETARG_DATUM(0)),
					PG_GETARG_OID(1), &extras);
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(hybridiot_amqp_validator);

/* amqp_validator(options, catalog): as kafka_validator */
Datum
hybridiot_amqp_validator(PG_FUNCTION_ARGS)
{
	OptionsValidate(AMQP_WRAPPER, untransformRelOptions(PG_GETARG_DATUM(0)),
					PG_GETARG_OID(1), NULL);
	PG_RETURN_VOID();
}
