/*
 * source.c
 *		One face for both kinds of log: a Kafka topic, or a table that stands in for one.
 *
 * A table is read with SQL, as the role whose rights count, in the order of offset and
 * partition, so that what a poll returns does not depend on how much it may
 * return. Rows are copied and stay until SourceRelease(). Whoever made that table chose the types of its
 * columns, so each is cast to the one that is read here.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "core/clock.h"
#include "core/compat.h"
#include "core/record.h"
#include "core/worker.h"
#include "stream/source.h"

struct Source
{
	const SourceConfig *config;
	KafkaConsumer *consumer;	/* NULL: a table */
	MemoryContext context;		/* the source's own */
	MemoryContext rows;			/* of what a table gave */
	MemoryContextCallback close;
	KafkaPartition *parts;
	int			nparts;
	int			nheld;			/* records handed out since SourceRelease() */
	int64		held_bytes;
};

/* One question to a broker takes at most this long before interrupts are looked at. */
#define ASK_SLICE_MS 250

static void
close_consumer(void *arg)
{
	Source	   *source = arg;
	KafkaConsumer *consumer = source->consumer;

	source->consumer = NULL;
	KafkaConsumerDestroy(consumer);
}

Source *
SourceOpen(const SourceConfig *config)
{
	Source	   *source = palloc0(sizeof(Source));

	source->config = config;
	source->context = AllocSetContextCreate(CurrentMemoryContext, "hybridiot source",
											ALLOCSET_SMALL_SIZES);
	source->rows = AllocSetContextCreate(source->context, "hybridiot source rows",
										 ALLOCSET_DEFAULT_SIZES);
	if (!config->table)
	{
		source->consumer = KafkaConsumerCreate(config->options, config->noptions);
		source->close.func = close_consumer;
		source->close.arg = source;
		MemoryContextRegisterResetCallback(source->context, &source->close);
	}
	return source;
}

void
SourceClose(Source *source)
{
	if (source)
		MemoryContextDelete(source->context);
}

int
SourceFd(Source *source)
{
	return source->consumer ? KafkaConsumerFd(source->consumer) : -1;
}

void
SourceLeave(Source *source)
{
	if (source->consumer)
		KafkaConsumerLeave(source->consumer);
}

void
SourceDrainFd(Source *source)
{
	if (source->consumer)
		KafkaConsumerDrainFd(source->consumer);
}

const char *
SourceError(Source *source)
{
	return source->consumer ? KafkaConsumerError(source->consumer) : "";
}

/* ---- questions to a broker ---- */

static void
ask_failed(Source *source, KafkaResult result, const char *topic)
{
	const char *error = KafkaConsumerError(source->consumer);
	const char *hint = KafkaErrorHint(source->consumer);

	switch (result)
	{
		case KAFKA_OK:
			break;
		case KAFKA_AGAIN:
		case KAFKA_BROKEN:
			ereport(ERROR,
					(errcode(ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION),
					 errmsg("could not reach the brokers of topic \"%s\"", topic),
					 error[0] ? errdetail("%s", error) : 0,
					 hint ? errhint("%s", hint) : 0));
			break;
		case KAFKA_UNKNOWN:
			ereport(ERROR,
					(errcode(ERRCODE_CONNECTION_FAILURE),
					 errmsg("topic \"%s\" does not exist", topic),
					 errhint("Create the topic, or correct the option \"topic\" of the stream.")));
			break;
		case KAFKA_DENIED:
			ereport(ERROR,
					(errcode(ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION),
					 errmsg("brokers refused access to topic \"%s\"", topic),
					 error[0] ? errdetail("%s", error) : 0,
					 hint ? errhint("%s", hint) : 0));
			break;
	}
}

/* Repeat a question in slices until it is answered or the time is up. */
#define ASK(source, topic_name, timeout_ms, call) \
	do { \
		int64		ask_end_ = ClockMonotonicMs() + (timeout_ms); \
		KafkaResult ask_result_; \
		while ((ask_result_ = (call)) == KAFKA_AGAIN && ClockMonotonicMs() < ask_end_) \
			CHECK_FOR_INTERRUPTS(); \
		CHECK_FOR_INTERRUPTS(); \
		ask_failed((source), ask_result_, (topic_name)); \
	} while (0)

/* ---- a table ---- */

/* Where SPI runs for a table: in the caller's transaction, or in one of its own. */
typedef struct TableScope
{
	bool		own_transaction;
	RoleScope	role;
	MemoryContext context;
} TableScope;

static void
table_enter(Source *source, TableScope *scope)
{
	scope->context = CurrentMemoryContext;
	scope->own_transaction = !IsTransactionState();
	if (scope->own_transaction)
		WorkerBegin("reading the source table");
	RoleEnter(&scope->role, source->config->userid);
	if (SPI_connect() != SPI_OK_CONNECT)
		ereport(ERROR, (errcode(ERRCODE_INTERNAL_ERROR), errmsg("could not connect to SPI")));
	/* Beside parallel workers all see what the statement's own snapshot shows. */
	PushActiveSnapshot(IsInParallelMode() ? GetActiveSnapshot() : GetLatestSnapshot());
}

static void
table_leave(TableScope *scope)
{
	PopActiveSnapshot();
	SPI_finish();
	RoleLeave(&scope->role);
	if (scope->own_transaction)
		WorkerCommit();
	MemoryContextSwitchTo(scope->context);
}

static void
table_query(Source *source, const char *sql, int nargs, Oid *types, Datum *values)
{
	char	   *text = psprintf(sql, source->config->source);

	if (SPI_execute_with_args(text, nargs, types, values, NULL, true, 0) != SPI_OK_SELECT)
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not read source table %s", source->config->source)));
}

/* First column of the first row; fallback when it is null. */
static int64
single_value(int column, int64 fallback)
{
	bool		isnull;
	Datum		value = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, column, &isnull);

	return isnull ? fallback : DatumGetInt64(value);
}

int32
SourceCountPartitions(Source *source, int topic, int timeout_ms)
{
	const char *name = source->config->topics[topic];
	int32		n = 0;
	TableScope	scope;

	if (source->consumer)
	{
		ASK(source, name, timeout_ms,
			KafkaCountPartitions(source->consumer, name, ASK_SLICE_MS, &n));
		return n;
	}
	/* A table holds one topic. */
	if (topic > 0)
		return 0;
	table_enter(source, &scope);
	table_query(source, "SELECT max(partition::int4)::int8 + 1 FROM %s", 0, NULL, NULL);
	n = (int32) single_value(1, 0);
	table_leave(&scope);
	return n;
}

int32
SourcePartitionsNow(Source *source, int topic, int timeout_ms)
{
	const char *name = source->config->topics[topic];
	int32		n = 0;
	KafkaResult result;

	if (source->consumer == NULL)
		return SourceCountPartitions(source, topic, timeout_ms);
	if (KafkaConsumerError(source->consumer)[0])
		return -1;				/* they are away */
	result = KafkaCountPartitions(source->consumer, name, timeout_ms, &n);
	if (result == KAFKA_AGAIN)
		return -1;
	ask_failed(source, result, name);
	return n;
}

void
SourceWatermarks(Source *source, int topic, int32 partition, int timeout_ms,
				 int64 *low, int64 *high)
{
	const char *name = source->config->topics[topic];
	TableScope	scope;
	Oid			types[] = {INT4OID};
	Datum		values[] = {Int32GetDatum(partition)};

	if (source->consumer)
	{
		ASK(source, name, timeout_ms,
			KafkaWatermarks(source->consumer, name, partition, ASK_SLICE_MS, low, high));
		return;
	}
	table_enter(source, &scope);
	table_query(source, "SELECT min(\"offset\"::int8), max(\"offset\"::int8) + 1 FROM %s WHERE partition = $1",
				1, types, values);
	*low = single_value(1, 0);
	*high = single_value(2, 0);
	table_leave(&scope);
}

int64
SourceOffsetForTime(Source *source, int topic, int32 partition, TimestampTz when, int timeout_ms)
{
	const char *name = source->config->topics[topic];
	int64		offset = 0;
	int64		high;
	TableScope	scope;
	Oid			types[] = {INT4OID, TIMESTAMPTZOID};
	Datum		values[] = {Int32GetDatum(partition), TimestampTzGetDatum(when)};

	if (source->consumer)
	{
		int64		ms = (when - SetEpochTimestamp()) / 1000;

		ASK(source, name, timeout_ms,
			KafkaOffsetForTime(source->consumer, name, partition, ms, ASK_SLICE_MS, &offset));
		return offset;
	}
	table_enter(source, &scope);
	table_query(source, "SELECT min(\"offset\"::int8) FILTER (WHERE \"timestamp\" >= $2), max(\"offset\"::int8) + 1"
				" FROM %s WHERE partition = $1", 2, types, values);
	high = single_value(2, 0);
	offset = single_value(1, high);
	table_leave(&scope);
	return offset;
}

char *
SourceTopicId(Source *source, int topic, int timeout_ms)
{
	const char *name = source->config->topics[topic];
	char	   *id = NULL;

	if (source->consumer)
		ASK(source, name, timeout_ms, KafkaTopicId(source->consumer, name, ASK_SLICE_MS, &id));
	return id;
}

void
SourceAssign(Source *source, const KafkaPartition *parts, int nparts)
{
	MemoryContext old;

	if (source->consumer)
	{
		KafkaResult result = KafkaAssign(source->consumer,
										 (const char *const *) source->config->topics,
										 source->config->ntopics, parts, nparts);

		ask_failed(source, result, source->config->topics[0]);
		return;
	}
	old = MemoryContextSwitchTo(source->context);
	if (source->parts)
		pfree(source->parts);
	source->parts = palloc0(sizeof(KafkaPartition) * Max(nparts, 1));
	if (nparts > 0)
		memcpy(source->parts, parts, sizeof(KafkaPartition) * nparts);
	source->nparts = nparts;
	for (int i = 0; i < nparts; i++)
	{
		source->parts[i].end_offset = -1;
		source->parts[i].at_end = false;
		source->parts[i].fault = KAFKA_FAULT_NONE;
	}
	MemoryContextSwitchTo(old);
}

const KafkaPartition *
SourceAssignment(Source *source, int *nparts)
{
	if (source->consumer)
		return KafkaAssignment(source->consumer, nparts);
	*nparts = source->nparts;
	return source->parts;
}

static void
table_bytes(HeapTuple row, int column, const char **bytes, int32 *len)
{
	bool		isnull;
	Datum		value = SPI_getbinval(row, SPI_tuptable->tupdesc, column, &isnull);
	bytea	   *copy;

	*bytes = NULL;
	*len = -1;
	if (isnull)
		return;
	copy = DatumGetByteaPCopy(value);
	*bytes = VARDATA(copy);
	*len = VARSIZE(copy) - VARHDRSZ;
}

static void
table_record(HeapTuple row, Record *record)
{
	TupleDesc	desc = SPI_tuptable->tupdesc;
	bool		isnull;
	Datum		value;

	memset(record, 0, sizeof(*record));
	record->leader_epoch = -1;
	record->partition = DatumGetInt32(SPI_getbinval(row, desc, 1, &isnull));
	record->offset = DatumGetInt64(SPI_getbinval(row, desc, 2, &isnull));
	value = SPI_getbinval(row, desc, 3, &isnull);
	record->timestamp = isnull ? DT_NOBEGIN : DatumGetTimestampTz(value);
	table_bytes(row, 4, &record->key, &record->key_len);
	table_bytes(row, 5, &record->value, &record->value_len);
	value = SPI_getbinval(row, desc, 6, &isnull);
	if (!isnull)
		HeadersFromJsonb(record, DatumGetJsonbPCopy(value));
}

static KafkaPartition *
table_partition(Source *source, int32 partition)
{
	for (int i = 0; i < source->nparts; i++)
		if (source->parts[i].partition == partition)
			return &source->parts[i];
	return NULL;
}

static void
table_fault(KafkaPartition *part, KafkaFault fault, const char *message)
{
	part->fault = fault;
	part->readable_from = -1;
	strlcpy(part->message, message, sizeof(part->message));
}

/* Ends of all assigned partitions, as of now. */
static void
table_ends(Source *source)
{
	for (int i = 0; i < source->nparts; i++)
	{
		KafkaPartition *part = &source->parts[i];
		Oid			types[] = {INT4OID};
		Datum		values[] = {Int32GetDatum(part->partition)};

		table_query(source, "SELECT max(\"offset\"::int8) + 1 FROM %s WHERE partition = $1",
					1, types, values);
		part->end_offset = single_value(1, 0);
		part->at_end = part->next_offset >= part->end_offset;

		/* No rows at all: what was read may be deleted. */
		if (part->end_offset > 0 && part->end_offset < part->next_offset &&
			part->last.offset >= 0 && part->fault == KAFKA_FAULT_NONE)
			table_fault(part, KAFKA_FAULT_GAP,
						psprintf("the log ends at " INT64_FORMAT ", before the position " INT64_FORMAT "; the table was replaced",
								 part->end_offset, part->next_offset));
	}
}

/* Is it a record to be delivered, not the one of before? */
static bool
table_take(Source *source, KafkaPartition *part, const Record *record)
{
	const char *contradiction = RecordMarkContradicted(&part->last, record);

	if (contradiction)
		table_fault(part, KAFKA_FAULT_REPLACED,
					psprintf("the record at offset " INT64_FORMAT " is not of the log that was read before: %s",
							 record->offset, contradiction));
	if (part->fault != KAFKA_FAULT_NONE || record->offset < part->next_offset)
		return false;
	part->next_offset = record->offset + 1;
	source->held_bytes += RecordBytes(record);
	return true;
}

#define TABLE_COLUMNS \
	"s.partition::int4, s.\"offset\"::int8, s.\"timestamp\"::timestamptz, s.key::bytea, s.value::bytea, s.headers::jsonb"

/* Rows from the positions on, and those that were the last ones before them. */
static void
table_rows(Source *source, int max)
{
	Datum	   *partitions = palloc(sizeof(Datum) * source->nparts);
	Datum	   *nexts = palloc(sizeof(Datum) * source->nparts);
	Datum	   *lasts = palloc(sizeof(Datum) * source->nparts);
	Oid			types[] = {INT4ARRAYOID, INT8ARRAYOID, INT8ARRAYOID, INT8OID};
	Datum		values[4];

	for (int i = 0; i < source->nparts; i++)
	{
		partitions[i] = Int32GetDatum(source->parts[i].partition);
		nexts[i] = Int64GetDatum(source->parts[i].next_offset);
		lasts[i] = Int64GetDatum(source->parts[i].last.offset);
	}
	values[0] = PointerGetDatum(construct_array(partitions, source->nparts, INT4OID, 4, true, TYPALIGN_INT));
	values[1] = PointerGetDatum(construct_array(nexts, source->nparts, INT8OID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
	values[2] = PointerGetDatum(construct_array(lasts, source->nparts, INT8OID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
	values[3] = Int64GetDatum((int64) max + source->nparts);
	/* By an index on (partition, "offset"), if there is one, a batch costs what it holds, and not what the table does. */
	table_query(source, "SELECT r.* FROM unnest($1, $2, $3) AS p (partition, next, last) CROSS JOIN LATERAL ("
				"SELECT " TABLE_COLUMNS " FROM %1$s s WHERE s.partition = p.partition AND s.\"offset\" = p.last AND p.last < p.next"
				" UNION ALL"
				" (SELECT " TABLE_COLUMNS " FROM %1$s s WHERE s.partition = p.partition AND s.\"offset\" >= p.next ORDER BY s.\"offset\" LIMIT $4)"
				") AS r (partition, \"offset\") ORDER BY r.\"offset\", r.partition LIMIT $4", 4, types, values);
}

static int
table_poll(Source *source, Record *records, int max)
{
	TableScope	scope;
	int			n = 0;

	/* Also the rows that were only looked at. */
	if (source->nheld == 0)
		MemoryContextReset(source->rows);

	/* SPI's memory is given back at the end. */
	table_enter(source, &scope);
	table_rows(source, max);
	for (uint64 i = 0; i < SPI_processed && n < max && !SourceIsFull(source); i++)
	{
		MemoryContext old = MemoryContextSwitchTo(source->rows);

		table_record(SPI_tuptable->vals[i], &records[n]);
		if (table_take(source, table_partition(source, records[n].partition), &records[n]))
			n++;
		MemoryContextSwitchTo(old);
	}
	for (int i = 0; i < source->nparts; i++)
		for (int k = n - 1; k >= 0; k--)
			if (records[k].partition == source->parts[i].partition)
			{
				source->parts[i].last = RecordMarkOf(&records[k]);
				break;
			}
	table_ends(source);
	table_leave(&scope);
	source->nheld += n;
	return n;
}

int
SourcePoll(Source *source, Record *records, int max, int timeout_ms)
{
	if (source->consumer)
		return KafkaConsume(source->consumer, records, max, timeout_ms);
	return source->nparts > 0 && max > 0 ? table_poll(source, records, max) : 0;
}

bool
SourceIsFull(Source *source)
{
	return source->consumer ? KafkaIsFull(source->consumer) : source->held_bytes >= HYBRIDIOT_BATCH_BYTES;
}

void
SourceRelease(Source *source)
{
	if (source->consumer)
		KafkaRelease(source->consumer);
	else
	{
		MemoryContextReset(source->rows);
		source->nheld = 0;
		source->held_bytes = 0;
	}
}
