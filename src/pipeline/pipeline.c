/*
 * pipeline.c
 *		Opening a pipeline, its positions in memory and in the table.
 *
 * A pipeline lives in one memory context; closing it deletes the context,
 * which also ends the consumer. Positions run ahead in memory and are written by
 * compare-and-set in the transaction that holds what they stand for.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_foreign_table.h"
#include "commands/async.h"
#include "commands/defrem.h"
#include "executor/spi.h"
#include "foreign/foreign.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "nodes/nodes.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "core/catalog_origin.h"
#include "core/clock.h"
#include "core/compat.h"
#include "core/options.h"
#include "core/record.h"
#include "pipeline/bulk.h"
#include "pipeline/latest.h"
#include "pipeline/pipeline.h"
#include "pipeline/rollup.h"
#include "pipeline/start.h"
#include "pipeline/window.h"

/* How long a worker asks brokers before it backs off. */
#define CONNECT_TIMEOUT_MS 5000
#define PARTITION_REFRESH_MS 10000
#define REFRESH_TIMEOUT_MS 1000

#define REPLACED_HINT "Nothing of the new topic was read. hybridiot.seek_pipeline begins to read it, wherever you say."

TimestampTz
PipelineNow(Pipeline *pipeline)
{
	return pipeline->has_clock ? pipeline->clock :
		pipeline->opened_at + (ClockMonotonicMs() - pipeline->opened_ms) * 1000;
}

TimestampTz
PipelineWallClock(Pipeline *pipeline)
{
	return pipeline->has_clock ? pipeline->clock : GetCurrentTimestamp();
}

PartitionState *
PipelinePartition(Pipeline *pipeline, const Record *record)
{
	PartitionState *part =
		&pipeline->parts[pipeline->place[pipeline->topic_base[record->topic] + record->partition]];

	Assert(part->topic == record->topic && part->partition == record->partition);
	return part;
}

/* ---- opening ---- */

static void
append_options(StringInfo text, List *options)
{
	ListCell   *lc;

	foreach(lc, options)
	{
		DefElem    *def = lfirst_node(DefElem, lc);

		appendStringInfo(text, "|%s=%s", def->defname, defGetString(def));
	}
}

/* Everything the pipeline was opened from, as one string to compare. */
static char *
make_signature(const PipelineDefinition *def)
{
	StringInfoData text;
	const PipelineOptions *o = &def->options;
	ForeignTable *table = GetForeignTable(def->stream);
	ForeignServer *server = GetForeignServer(table->serverid);
	char	   *user;
	char	   *password;
	List	   *mapping;
	Relation	rel = table_open(def->stream, AccessShareLock);
	TupleDesc	desc = RelationGetDescr(rel);

	initStringInfo(&text);
	appendStringInfo(&text, "%u %d %d %d %d %s|%s|" INT64_FORMAT " %d " INT64_FORMAT " %d " INT64_FORMAT " " INT64_FORMAT " %d %d %d " INT64_FORMAT " %s",
					 def->owner, def->kind, def->enabled, def->seeks, o->workers, def->query, o->start_at, o->lateness_us, o->emit_changes,
					 o->idle_timeout_us, o->batch_rows, o->batch_delay_us, o->checkpoint_us,
					 o->max_groups, o->max_errors, o->stop_on_error, o->keep_closed_us, o->notify ? o->notify : "");
	append_options(&text, table->options);
	append_options(&text, server->options);
	OptionCredentials(server->serverid, def->owner, &user, &password, &mapping);
	append_options(&text, mapping);
	appendStringInfo(&text, "|%s|%s|%s", password ? password : "", hybridiot_broker_networks, hybridiot_secret_directory);
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (att->attisdropped)
			continue;
		appendStringInfo(&text, "|%s %u %d", NameStr(att->attname), att->atttypid, att->atttypmod);
		append_options(&text, GetForeignColumnOptions(def->stream, att->attnum));
	}
	table_close(rel, AccessShareLock);
	return text.data;
}

/* The owner must still be the role it was. */
static void
check_owner(const PipelineDefinition *def)
{
	char	   *name = GetUserNameFromId(def->owner, true);

	if (name == NULL || strcmp(name, def->owner_name) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("owner \"%s\" of pipeline \"%s\" is not the role it was", def->owner_name, def->name),
				 errhint("Give it an owner with hybridiot.alter_pipeline.")));
}

static void
prepare_statement(Pipeline *pipeline)
{
	RoleScope	scope;

	RoleEnter(&scope, pipeline->def->owner);
	if (SPI_connect() != SPI_OK_CONNECT)
		ereport(ERROR, (errcode(ERRCODE_INTERNAL_ERROR), errmsg("could not connect to SPI")));
	pipeline->plan = SPI_prepare(pipeline->def->query, 0, NULL);
	if (pipeline->plan == NULL || SPI_keepplan(pipeline->plan) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not prepare the statement: %s", SPI_result_code_string(SPI_result))));
	SPI_finish();
	RoleLeave(&scope);
}

Pipeline *
PipelineOpen(int32 id, bool in_session, int member)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "hybridiot pipeline",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	Pipeline   *pipeline = palloc0(sizeof(Pipeline));
	Statement  *statement;

	pipeline->context = context;
	pipeline->in_session = in_session;
	pipeline->def = CatalogReadPipeline(id, context);
	if (pipeline->def == NULL)
	{
		MemoryContextSwitchTo(old);
		MemoryContextDelete(context);
		return NULL;
	}
	check_owner(pipeline->def);
	if (StreamWrapper(pipeline->def->stream) == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("the stream of pipeline \"%s\" does not exist any more", pipeline->def->name)));
	pipeline->member = member;
	pipeline->members = in_session ? 1 : pipeline->def->options.workers;
	pipeline->signature = make_signature(pipeline->def);
	pipeline->stream = StreamOpen(pipeline->def->stream, pipeline->def->owner);
	pipeline->batch = BatchCreate(pipeline->stream, pipeline->def->options.batch_rows);
	pipeline->opened_at = GetCurrentTimestamp();
	pipeline->opened_ms = ClockMonotonicMs();
	pipeline->checkpoint_at = pipeline->opened_at;
	pipeline->failure_gap = PG_INT32_MAX;
	pipeline->errors_in_row = pipeline->errors_stored = pipeline->errors_at_checkpoint =
		CatalogReadErrorsInRow(id, member);

	statement = StatementReanalyze(pipeline->def->query);
	pipeline->is_merge = statement->merges;
	if (StatementCommands(statement))
		CatalogSetCommanding(id, true); /* a function or a view may have changed since */
	if (pipeline->def->kind == PIPELINE_PER_BATCH)
	{
		prepare_statement(pipeline);
		pipeline->bulk = BulkCreate();
		if (!pipeline->stream->compacted)
			pipeline->latest = LatestCreate(pipeline->batch->capacity);
	}
	else
		pipeline->reach_us = RollupReach(statement, pipeline->def);
	MemoryContextSwitchTo(old);

	/* Until here an error would have freed it with the transaction. */
	if (!in_session)
		MemoryContextSetParent(context, TopMemoryContext);
	return pipeline;
}

void
PipelineClose(Pipeline *pipeline)
{
	if (pipeline == NULL)
		return;
	BatchExpose(NULL, 0, 0, NULL);
	if (pipeline->plan)
		SPI_freeplan(pipeline->plan);
	RollupClose(pipeline->rollup);
	MemoryContextDelete(pipeline->context);
}

/* ---- partitions and positions ---- */

static int
find_stored(const PositionRow *rows, int nrows, const char *topic, int32 partition)
{
	for (int i = 0; i < nrows; i++)
		if (rows[i].partition == partition && strcmp(rows[i].topic, topic) == 0)
			return i;
	return -1;
}

bool
PipelineUnchanged(Pipeline *pipeline)
{
	PipelineDefinition *def = CatalogReadPipeline(pipeline->def->id, CurrentMemoryContext);

	if (def == NULL || !def->enabled || def->failure || StreamWrapper(def->stream) == NULL)
		return false;
	return strcmp(make_signature(def), pipeline->signature) == 0;
}

/* Where a partition without a position begins. begun: the pipeline has positions, and this partition is new to it. */
static int64
first_offset(Pipeline *pipeline, const Start *start, bool begun, int topic, int32 partition)
{
	const char *name = pipeline->stream->topics[topic];
	int64		low;
	int64		high;
	int64		offset;

	SourceWatermarks(pipeline->source, topic, partition, CONNECT_TIMEOUT_MS, &low, &high);
	if (begun && start->kind != START_TIME)
		return low;
	switch (start->kind)
	{
		case START_EARLIEST:
			return low;
		case START_LATEST:
			return high;
		case START_TIME:
			return SourceOffsetForTime(pipeline->source, topic, partition,
									   WindowTimeMinus(start->time, pipeline->reach_us), CONNECT_TIMEOUT_MS);
		case START_OFFSETS:
			offset = StartOffset(start, name, partition);
			return offset < 0 ? low : offset;
	}
	pg_unreachable();
}

static void
state_from_row(PartitionState *part, const PositionRow *row)
{
	part->stored_offset = part->next_offset = row->next_offset;
	part->last = row->last;
	part->end_offset = part->stored_end = row->end_offset;
	part->stream_time = row->stream_time;
	part->last_record_at = row->last_record_at;
	part->idle = row->idle;
	part->at_end = false;
	part->changed = false;
}

void
PipelineAssign(Pipeline *pipeline)
{
	KafkaPartition *parts = palloc0(sizeof(KafkaPartition) * Max(pipeline->nparts, 1));

	for (int i = 0; i < pipeline->nparts; i++)
	{
		parts[i].topic = pipeline->parts[i].topic;
		parts[i].partition = pipeline->parts[i].partition;
		parts[i].next_offset = pipeline->parts[i].next_offset;
		parts[i].last = pipeline->parts[i].last;
		/* A position that was moved by hand has left its record behind, or it comes again. */
		if (parts[i].last.offset >= parts[i].next_offset)
			parts[i].last = RECORD_MARK_NONE;
	}
	SourceAssign(pipeline->source, parts, pipeline->nparts);
	pfree(parts);
}

/* In a worker these run in transactions of their own; in a session, in the caller's. */
static PositionRow *
read_positions(Pipeline *pipeline, int *nrows)
{
	PositionRow *rows;

	if (!pipeline->in_session)
		WorkerBegin("reading positions");
	rows = CatalogReadPositions(pipeline->def->id, pipeline->context, nrows);
	if (!pipeline->in_session)
		WorkerCommit();
	MemoryContextSwitchTo(pipeline->context);
	return rows;
}

/* What is known of a topic that was read before must still be true of it. */
static void
topic_replaced(const char *topic, const char *detail, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("topic \"%s\" was deleted and created again", topic),
			 errdetail("%s", detail),
			 errhint("%s", hint)));
}

/* The ids of all topics; one that is not the stored one stops the pipeline. */
static void
check_topic_ids(Pipeline *pipeline, const PositionRow *rows, int nrows)
{
	for (int topic = 0; topic < pipeline->stream->ntopics; topic++)
	{
		const char *name = pipeline->stream->topics[topic];
		char	   *id = SourceTopicId(pipeline->source, topic, CONNECT_TIMEOUT_MS);

		for (int i = 0; i < nrows; i++)
		{
			if (strcmp(rows[i].topic, name) != 0 || rows[i].topic_id == NULL)
				continue;
			if (id == NULL)
				id = rows[i].topic_id;	/* whoever is asked now cannot tell */
			else if (strcmp(id, rows[i].topic_id) != 0)
				topic_replaced(name, psprintf("Its id was %s and is %s.", rows[i].topic_id, id), REPLACED_HINT);
		}
		pipeline->topic_ids[topic] = id;
	}
}

/*
 * How many partitions a topic has. They never get fewer, but brokers may be slow to hear of new ones: those that
 * have a position are waited for. A table has as many as its rows say.
 */
static int32
topic_partitions(Pipeline *pipeline, int topic, const PositionRow *rows, int nrows)
{
	const char *name = pipeline->stream->topics[topic];
	TimestampTz give_up = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), CONNECT_TIMEOUT_MS);
	int32		stored = 0;
	int32		count;

	for (int i = 0; i < nrows; i++)
		if (strcmp(rows[i].topic, name) == 0)
			stored = Max(stored, rows[i].partition + 1);
	while ((count = SourceCountPartitions(pipeline->source, topic, CONNECT_TIMEOUT_MS)) < stored &&
		   !pipeline->stream->source.table)
	{
		if (GetCurrentTimestamp() > give_up)
			topic_replaced(name, psprintf("It had %d partitions and has %d.", stored, count),
						   "Nothing of the new topic was read. hybridiot.seek_pipeline begins to read it, at 'earliest', 'latest' or a timestamp.");
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 250,
						 WaitEventExtensionNew("HybridiotPipeline"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	return count;
}

/* How many partitions each topic has, and where each one's place is kept. */
static int32 *
count_partitions(Pipeline *pipeline)
{
	Stream	   *stream = pipeline->stream;
	int32	   *counts = palloc(sizeof(int32) * stream->ntopics);
	int			nrows;
	PositionRow *rows = read_positions(pipeline, &nrows);

	MemoryContextSwitchTo(pipeline->context);	/* that was a transaction */
	pipeline->topic_base = palloc(sizeof(int) * stream->ntopics);
	pipeline->topic_ids = palloc0(sizeof(char *) * stream->ntopics);
	pipeline->npartitions = 0;
	for (int topic = 0; topic < stream->ntopics; topic++)
	{
		pipeline->topic_base[topic] = pipeline->npartitions;
		counts[topic] = topic_partitions(pipeline, topic, rows, nrows);
		pipeline->npartitions += counts[topic];
	}
	check_topic_ids(pipeline, rows, nrows);
	pipeline->refreshed_at = PipelineNow(pipeline);
	return counts;
}

/* Positions for the partitions that have none, whoever will read them. */
static PositionRow *
first_positions(Pipeline *pipeline, const int32 *counts, int *n)
{
	Stream	   *stream = pipeline->stream;
	Start	   *start = StartParse(pipeline->def->options.start_at);
	PositionRow *fresh = palloc0(sizeof(PositionRow) * Max(pipeline->npartitions, 1));
	int			nrows;
	PositionRow *rows = read_positions(pipeline, &nrows);

	*n = 0;
	for (int topic = 0; topic < stream->ntopics; topic++)
		for (int32 p = 0; p < counts[topic]; p++)
			if (find_stored(rows, nrows, stream->topics[topic], p) < 0)
			{
				fresh[*n].topic = stream->topics[topic];
				fresh[*n].partition = p;
				fresh[(*n)++].next_offset = first_offset(pipeline, start, nrows > 0, topic, p);
			}
	return fresh;
}

/* Make the partitions that this worker reads from their rows: every one of several workers takes each n-th. */
static void
take_partitions(Pipeline *pipeline, const int32 *counts, const PositionRow *rows, int nrows)
{
	pipeline->parts = palloc0(sizeof(PartitionState) * Max(pipeline->npartitions, 1));
	pipeline->place = palloc(sizeof(int) * Max(pipeline->npartitions, 1));
	pipeline->nparts = 0;
	for (int topic = 0; topic < pipeline->stream->ntopics; topic++)
		for (int32 p = 0; p < counts[topic]; p++)
		{
			int			number = pipeline->topic_base[topic] + p;
			PartitionState *part = &pipeline->parts[pipeline->nparts];
			int			stored = find_stored(rows, nrows, pipeline->stream->topics[topic], p);

			/* Sent elsewhere, or dropped, since they were looked for. */
			if (stored < 0)
				ereport(ERROR,
						(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
						 errmsg("positions of pipeline \"%s\" were reset", pipeline->def->name)));
			pipeline->place[number] = -1;
			if (number % pipeline->members != pipeline->member)
				continue;
			pipeline->place[number] = pipeline->nparts++;
			part->topic = topic;
			part->partition = p;
			state_from_row(part, &rows[stored]);
			/* A new position, or a broker or library that can tell more than the one before. */
			part->changed = pipeline->topic_ids[topic] && rows[stored].topic_id == NULL;
		}
}

void
PipelineConnect(Pipeline *pipeline)
{
	MemoryContext old = MemoryContextSwitchTo(pipeline->context);
	PositionRow *rows;
	PositionRow *fresh;
	int			nrows;
	int			nfresh;
	int32	   *counts;

	pipeline->source = SourceOpen(&pipeline->stream->source);
	counts = count_partitions(pipeline);
	fresh = first_positions(pipeline, counts, &nfresh);

	/* Positions and groups are of one moment. */
	if (!pipeline->in_session)
		WorkerBegin("storing first positions");
	MemoryContextSwitchTo(pipeline->context);	/* a transaction begins in its own */
	if (nfresh > 0 && !CatalogAddPositions(pipeline->def, fresh, nfresh))
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("pipeline \"%s\" was sent elsewhere while it started", pipeline->def->name)));
	rows = CatalogReadPositions(pipeline->def->id, pipeline->context, &nrows);
	take_partitions(pipeline, counts, rows, nrows);
	if (pipeline->def->kind == PIPELINE_WINDOWED)
		pipeline->rollup = RollupOpen(pipeline);
	if (!pipeline->in_session)
		WorkerCommit();
	MemoryContextSwitchTo(old);
}

void
PipelineRewind(Pipeline *pipeline)
{
	int			nrows;
	PositionRow *rows = CatalogReadPositions(pipeline->def->id, CurrentMemoryContext, &nrows);

	for (int i = 0; i < pipeline->nparts; i++)
	{
		PartitionState *part = &pipeline->parts[i];
		int			stored = find_stored(rows, nrows, pipeline->stream->topics[part->topic],
										 part->partition);

		if (stored < 0)
			ereport(ERROR,
					(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
					 errmsg("positions of pipeline \"%s\" were reset", pipeline->def->name)));
		state_from_row(part, &rows[stored]);
	}
	BatchReset(pipeline->batch);
	SourceRelease(pipeline->source);
	PipelineAssign(pipeline);
}

bool
PipelinePartitionsAdded(Pipeline *pipeline)
{
	TimestampTz now = PipelineNow(pipeline);
	int			total = 0;

	if (!TimestampDifferenceExceeds(pipeline->refreshed_at, now, PARTITION_REFRESH_MS))
		return false;
	pipeline->refreshed_at = now;
	for (int topic = 0; topic < pipeline->stream->ntopics; topic++)
	{
		const char *known = pipeline->topic_ids[topic];
		int32		count = SourcePartitionsNow(pipeline->source, topic, REFRESH_TIMEOUT_MS);
		char	   *id;

		/* Brokers that do not answer are told by what they do not send. */
		if (count < 0)
			return false;
		total += count;
		id = known ? SourceTopicId(pipeline->source, topic, CONNECT_TIMEOUT_MS) : NULL;
		if (id && strcmp(id, known) != 0)
			topic_replaced(pipeline->stream->topics[topic], psprintf("Its id was %s and is %s.", known, id),
						   REPLACED_HINT);
		if (id)
			pfree(id);
	}
	return total > pipeline->npartitions;
}

static void
raise_fault(Pipeline *pipeline, const KafkaPartition *from)
{
	const char *topic = pipeline->stream->topics[from->topic];

	switch (from->fault)
	{
		case KAFKA_FAULT_NONE:
			break;
		case KAFKA_FAULT_GAP:
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("records of topic \"%s\", partition %d are gone: %s", topic,
							from->partition, from->message),
					 errhint("Nothing was skipped. hybridiot.seek_pipeline goes on behind the gap, or anywhere else.")));
			break;
		case KAFKA_FAULT_REPLACED:
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("topic \"%s\" was deleted and created again", topic),
					 errdetail("In partition %d, %s.", from->partition, from->message),
					 errhint(REPLACED_HINT)));
			break;
		case KAFKA_FAULT_GONE:
			ereport(ERROR,
					(errcode(ERRCODE_CONNECTION_FAILURE),
					 errmsg("topic \"%s\", partition %d is not there: %s", topic,
							from->partition, from->message)));
			break;
		case KAFKA_FAULT_CORRUPT:
			ereport(ERROR,
					(errcode(ERRCODE_DATA_CORRUPTED),
					 errmsg("topic \"%s\", partition %d cannot be read: %s", topic,
							from->partition, from->message),
					 from->readable_from >= 0 ?
					 errhint("Nothing was skipped. If the log cannot be mended, hybridiot.seek_pipeline('%s', '{\"%d\": " INT64_FORMAT "}') goes on with the next record that can be read.",
							 pipeline->def->name, from->partition, from->readable_from) :
					 errhint("Nothing was skipped. If the log cannot be mended, hybridiot.seek_pipeline goes on behind the damage.")));
			break;
		case KAFKA_FAULT_TOO_LARGE:
			ereport(ERROR,
					(errcode(ERRCODE_DATA_CORRUPTED),
					 errmsg("topic \"%s\", partition %d cannot be read: %s", topic,
							from->partition, from->message),
					 errhint("Raise hybridiot.max_record_size and resume the pipeline, or skip the record with hybridiot.seek_pipeline('%s', '{\"%d\": " INT64_FORMAT "}').",
							 pipeline->def->name, from->partition, from->readable_from)));
			break;
		case KAFKA_FAULT_DENIED:
			ereport(ERROR,
					(errcode(ERRCODE_SQLSERVER_REJECTED_ESTABLISHMENT_OF_SQLCONNECTION),
					 errmsg("access to topic \"%s\", partition %d was refused: %s", topic,
							from->partition, from->message)));
			break;
	}
}

void
PipelineHearSource(Pipeline *pipeline)
{
	int			n;
	const KafkaPartition *from = SourceAssignment(pipeline->source, &n);

	Assert(n == pipeline->nparts);
	for (int i = 0; i < n; i++)
	{
		PartitionState *part = &pipeline->parts[i];

		Assert(part->topic == from[i].topic && part->partition == from[i].partition);
		if (from[i].fault != KAFKA_FAULT_NONE)
			raise_fault(pipeline, &from[i]);
		if (from[i].end_offset >= 0)
			part->end_offset = from[i].end_offset;
		part->at_end = from[i].at_end;
	}
}

void
PipelineAdvancePositions(Pipeline *pipeline, int first, int last)
{
	StreamBatch *batch = pipeline->batch;
	int			n;
	const KafkaPartition *from = SourceAssignment(pipeline->source, &n);

	for (int i = first; i < last; i++)
	{
		PartitionState *part = PipelinePartition(pipeline, &batch->records[i]);

		part->next_offset = batch->records[i].offset + 1;
		part->newest = &batch->records[i];
		part->changed = true;
	}
	if (last > first)
		for (int i = 0; i < n; i++)
			if (pipeline->parts[i].newest)
			{
				pipeline->parts[i].last = RecordMarkOf(pipeline->parts[i].newest);
				pipeline->parts[i].newest = NULL;
			}
	if (last < batch->nrecords)
		return;

	/* All that was read is applied: gaps at the end (transaction markers) are passed, too. */
	for (int i = 0; i < n; i++)
		if (from[i].at_end && from[i].next_offset > pipeline->parts[i].next_offset)
		{
			pipeline->parts[i].next_offset = from[i].next_offset;
			pipeline->parts[i].changed = true;
		}
}

void
PipelineWritePositions(Pipeline *pipeline)
{
	PositionMove *moves = palloc(sizeof(PositionMove) * Max(pipeline->nparts, 1));
	int			n = 0;

	for (int i = 0; i < pipeline->nparts; i++)
	{
		PartitionState *part = &pipeline->parts[i];
		PositionMove *move;

		if (!part->changed)
			continue;
		move = &moves[n++];
		move->old_offset = part->stored_offset;
		move->row.topic = pipeline->stream->topics[part->topic];
		move->row.partition = part->partition;
		move->row.next_offset = part->next_offset;
		/* The log is at least as long as what was read of it. */
		move->row.end_offset = part->end_offset < 0 ? -1 : Max(part->end_offset, part->next_offset);
		move->row.stream_time = part->stream_time;
		move->row.last_record_at = part->last_record_at;
		move->row.idle = part->idle;
		move->row.last = part->last;
		move->row.topic_id = pipeline->topic_ids[part->topic];
	}
	/* In this order, which is a seek's, too. */
	if (pipeline->errors_in_row != pipeline->errors_stored)
		CatalogWriteErrorsInRow(pipeline->def->id, pipeline->member, pipeline->errors_in_row);
	if (n > 0 && !CatalogMovePositions(pipeline->def, moves, n))
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("positions of pipeline \"%s\" were moved by somebody else", pipeline->def->name),
				 errdetail("Nothing of this batch was kept.")));
	pfree(moves);
}

void
PipelinePositionsStored(Pipeline *pipeline)
{
	pipeline->errors_stored = pipeline->errors_in_row;
	for (int i = 0; i < pipeline->nparts; i++)
	{
		pipeline->parts[i].stored_offset = pipeline->parts[i].next_offset;
		if (pipeline->parts[i].changed)
			pipeline->parts[i].stored_end = pipeline->parts[i].end_offset;
		pipeline->parts[i].changed = false;
	}
}

void
PipelineNotify(Pipeline *pipeline)
{
	if (pipeline->def->options.notify)
		Async_Notify(pipeline->def->options.notify, pipeline->def->name);
}

void
PipelineRethrow(ErrorData *error)
{
	/* Whoever catches it puts the stack back. */
	error_context_stack = NULL;
	ThrowErrorData(error);
	pg_unreachable();
}
