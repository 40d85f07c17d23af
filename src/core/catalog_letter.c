/*
 * catalog_letter.c
 *		Dead letters as rows.
 *
 * They are written and changed many at once, as arrays: a bad record must not cost much more than a good one.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "core/catalog_letter.h"
#include "core/compat.h"
#include "core/record.h"

/* Letters that go into one statement. */
#define MAX_LETTERS 1000
#define MAX_LETTER_BYTES (4 * 1024 * 1024)

static const char *
reason_name(DeadReason reason)
{
	switch (reason)
	{
		case DEAD_UNDECODABLE:
			return "undecodable";
		case DEAD_REJECTED:
			return "rejected";
		case DEAD_LATE:
			return "late";
		case DEAD_FUTURE:
			return "future";
	}
	pg_unreachable();
}

static Datum
bytes_datum(const char *bytes, int32 len)
{
	bytea	   *result = palloc(VARHDRSZ + len);

	SET_VARSIZE(result, VARHDRSZ + len);
	memcpy(VARDATA(result), bytes, len);
	return PointerGetDatum(result);
}

/* ---- arrays ---- */

/* A column of letters. */
typedef struct Column
{
	Oid			type;
	Datum	   *values;
	bool	   *nulls;
} Column;

static void
make_columns(Column *columns, const Oid *types, int ncolumns, int nrows)
{
	for (int i = 0; i < ncolumns; i++)
	{
		columns[i].type = types[i];
		columns[i].values = palloc0(sizeof(Datum) * nrows);
		columns[i].nulls = palloc(sizeof(bool) * nrows);
		memset(columns[i].nulls, true, nrows);
	}
}

static void
put(Column *column, int row, Datum value)
{
	column->values[row] = value;
	column->nulls[row] = false;
}

static void
put_text(Column *column, int row, const char *text)
{
	if (text)
		put(column, row, CStringGetTextDatum(text));
}

static Datum
column_array(const Column *column, int nrows)
{
	int16		len;
	bool		byval;
	char		align;
	int			lower = 1;

	get_typlenbyvalalign(column->type, &len, &byval, &align);
	return PointerGetDatum(construct_md_array(column->values, column->nulls, 1, &nrows, &lower,
											  column->type, len, byval, align));
}

/* ---- writing ---- */

enum
{
	COLUMN_TOPIC, COLUMN_PARTITION, COLUMN_OFFSET, COLUMN_TIMESTAMP, COLUMN_KEY, COLUMN_VALUE, COLUMN_HEADERS,
	COLUMN_REASON, COLUMN_CAUSE, COLUMN_START, COLUMN_END, COLUMN_BOUNDS, COLUMN_WATERMARK, COLUMN_GROUP_KEYS,
	COLUMN_SQLSTATE, COLUMN_MESSAGE, COLUMN_GROUP_ID, COLUMNS
};

static void
put_record(Column *columns, int row, const Record *record)
{
	put(&columns[COLUMN_PARTITION], row, Int32GetDatum(record->partition));
	put(&columns[COLUMN_OFFSET], row, Int64GetDatum(record->offset));
	if (record->timestamp != DT_NOBEGIN)
		put(&columns[COLUMN_TIMESTAMP], row, TimestampTzGetDatum(record->timestamp));
	if (record->key_len >= 0)
		put(&columns[COLUMN_KEY], row, bytes_datum(record->key, record->key_len));
	if (record->value_len >= 0)
		put(&columns[COLUMN_VALUE], row, bytes_datum(record->value, record->value_len));
	if (record->nheaders > 0)
		put(&columns[COLUMN_HEADERS], row, HeadersToJsonb(record));
}

static void
put_letter(Column *columns, int row, const DeadLetter *letter)
{
	put_text(&columns[COLUMN_TOPIC], row, letter->topic);
	if (letter->record)
		put_record(columns, row, letter->record);
	put_text(&columns[COLUMN_REASON], row, reason_name(letter->reason));
	put_text(&columns[COLUMN_CAUSE], row, letter->cause);
	if (letter->window_start != DT_NOBEGIN)
	{
		put(&columns[COLUMN_START], row, TimestampTzGetDatum(letter->window_start));
		put(&columns[COLUMN_END], row, TimestampTzGetDatum(letter->window_end));
		put_text(&columns[COLUMN_BOUNDS], row, letter->window_includes_end ? "[]" : "[)");
	}
	if (letter->watermark != DT_NOBEGIN)
		put(&columns[COLUMN_WATERMARK], row, TimestampTzGetDatum(letter->watermark));
	if (letter->group_keys != (Datum) 0)
		put(&columns[COLUMN_GROUP_KEYS], row, letter->group_keys);
	if (letter->sqlstate != 0)
		put_text(&columns[COLUMN_SQLSTATE], row, unpack_sql_state(letter->sqlstate));
	put_text(&columns[COLUMN_MESSAGE], row, letter->message);
	if (letter->group_id != 0)
		put(&columns[COLUMN_GROUP_ID], row, Int64GetDatum(letter->group_id));
}

static void
write_letters(int32 id, Oid stream, const DeadLetter *letters, int n)
{
	static CatalogQuery query = {
		.sql = "INSERT INTO hybridiot.dead_letter_record (pipeline, stream, topic, partition, \"offset\", \"timestamp\","
		" key, value, headers, reason, cause, during, watermark, group_keys, sqlstate, message, group_id)"
		" SELECT $1, $2::regclass, topic, partition, \"offset\", \"timestamp\", key, value, headers, reason, cause,"
		" CASE WHEN w_start IS NOT NULL THEN pg_catalog.tstzrange(w_start, w_end, w_bounds) END, watermark, group_keys, sqlstate, message, group_id"
		" FROM unnest($3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19)"
		" AS u (topic, partition, \"offset\", \"timestamp\", key, value, headers, reason, cause, w_start, w_end, w_bounds,"
		" watermark, group_keys, sqlstate, message, group_id)",
		.nargs = 19,.argtypes = {INT4OID, OIDOID, TEXTARRAYOID, INT4ARRAYOID, INT8ARRAYOID, TIMESTAMPTZARRAYOID,
			BYTEAARRAYOID, BYTEAARRAYOID, JSONBARRAYOID, TEXTARRAYOID, TEXTARRAYOID, TIMESTAMPTZARRAYOID,
			TIMESTAMPTZARRAYOID, TEXTARRAYOID, TIMESTAMPTZARRAYOID, JSONBARRAYOID, TEXTARRAYOID, TEXTARRAYOID, INT8ARRAYOID}
	};
	static const Oid types[COLUMNS] = {
		TEXTOID, INT4OID, INT8OID, TIMESTAMPTZOID, BYTEAOID, BYTEAOID, JSONBOID, TEXTOID, TEXTOID,
		TIMESTAMPTZOID, TIMESTAMPTZOID, TEXTOID, TIMESTAMPTZOID, JSONBOID, TEXTOID, TEXTOID, INT8OID
	};
	Column		columns[COLUMNS];
	Datum		values[COLUMNS + 2] = {Int32GetDatum(id), ObjectIdGetDatum(stream)};

	make_columns(columns, types, COLUMNS, n);
	for (int i = 0; i < n; i++)
		put_letter(columns, i, &letters[i]);
	for (int i = 0; i < COLUMNS; i++)
		values[i + 2] = column_array(&columns[i], n);
	CatalogExecute(&query, values, NULL, 0);
}

/* How many of the next letters may go into one statement. */
static int
letters_at_once(const DeadLetter *letters, int n)
{
	Size		bytes = 0;
	int			count;

	for (count = 0; count < n && count < MAX_LETTERS; count++)
	{
		const Record *record = letters[count].record;

		if (record)
			bytes += Max(record->key_len, 0) + Max(record->value_len, 0);
		if (bytes > MAX_LETTER_BYTES && count > 0)
			break;
	}
	return count;
}

void
CatalogWriteDeadLetters(int32 id, Oid stream, const DeadLetter *letters, int n)
{
	CatalogScope scope;
	MemoryContext context;

	if (n == 0)
		return;
	CatalogEnter(&scope);
	context = AllocSetContextCreate(CurrentMemoryContext, "hybridiot dead letters", ALLOCSET_DEFAULT_SIZES);
	for (int done = 0; done < n;)
	{
		int			count = letters_at_once(letters + done, n - done);
		MemoryContext old = MemoryContextSwitchTo(context);

		write_letters(id, stream, letters + done, count);
		MemoryContextSwitchTo(old);
		MemoryContextReset(context);
		done += count;
	}
	CatalogLeave(&scope);
}

/* ---- trying them again, and deleting them ---- */

#define PLACE_COLUMNS \
	"id, (coalesce(pg_catalog.octet_length(key), 0) + coalesce(pg_catalog.octet_length(value), 0))::int8," \
	" reason, pg_catalog.lower(during), pg_catalog.upper(during), group_id," \
	" coalesce(pg_catalog.upper_inc(during), false)"

/* Letters of a pipeline that do not belong to a life before its last seek. */
#define LETTERS_OF " FROM hybridiot.dead_letter_record WHERE pipeline = $1 AND cause IS DISTINCT FROM 'seek'"

static DeadReason
reason_of_name(const char *name)
{
	for (DeadReason reason = DEAD_UNDECODABLE; reason <= DEAD_FUTURE; reason++)
		if (strcmp(reason_name(reason), name) == 0)
			return reason;
	ereport(ERROR,
			(errcode(ERRCODE_DATA_CORRUPTED), errmsg("unknown reason \"%s\" of a dead letter", name)));
}

/* The rows of a query for PLACE_COLUMNS. */
static DeadLetterPlace *
lock_places(CatalogQuery *query, Datum *values, MemoryContext context, int *n)
{
	CatalogScope scope;
	DeadLetterPlace *places;

	CatalogEnter(&scope);
	*n = (int) CatalogExecute(query, values, NULL, 0);
	places = MemoryContextAllocHuge(context, sizeof(DeadLetterPlace) * Max(*n, 1));
	for (int i = 0; i < *n; i++)
	{
		DeadLetterPlace *place = &places[i];
		bool		isnull;
		Datum		value;

		place->id = DatumGetInt64(CatalogColumn(i, 1, &isnull));
		place->bytes = DatumGetInt64(CatalogColumn(i, 2, &isnull));
		place->reason = reason_of_name(TextDatumGetCString(CatalogColumn(i, 3, &isnull)));
		value = CatalogColumn(i, 4, &isnull);
		place->window_start = isnull ? DT_NOBEGIN : DatumGetTimestampTz(value);
		value = CatalogColumn(i, 5, &isnull);
		place->window_end = isnull ? DT_NOBEGIN : DatumGetTimestampTz(value);
		value = CatalogColumn(i, 6, &isnull);
		place->group_id = isnull ? 0 : DatumGetInt64(value);
		place->window_includes_end = DatumGetBool(CatalogColumn(i, 7, &isnull));
	}
	CatalogLeave(&scope);
	return places;
}

DeadLetterPlace *
CatalogLockDeadLetters(int32 id, TimestampTz since, MemoryContext context, int *n)
{
	static CatalogQuery query = {
		.sql = "SELECT " PLACE_COLUMNS LETTERS_OF " AND failed_at >= $2 AND \"offset\" IS NOT NULL"
		" ORDER BY topic, partition, \"offset\", id FOR UPDATE SKIP LOCKED",
		.nargs = 2,.argtypes = {INT4OID, TIMESTAMPTZOID}
	};
	Datum		values[] = {Int32GetDatum(id), TimestampTzGetDatum(since)};

	return lock_places(&query, values, context, n);
}

DeadLetterPlace *
CatalogLockRowLetters(int32 id, TimestampTz since, MemoryContext context, int *n)
{
	static CatalogQuery query = {
		.sql = "SELECT " PLACE_COLUMNS LETTERS_OF " AND failed_at >= $2 AND \"offset\" IS NULL"
		" ORDER BY id FOR UPDATE SKIP LOCKED",
		.nargs = 2,.argtypes = {INT4OID, TIMESTAMPTZOID}
	};
	Datum		values[] = {Int32GetDatum(id), TimestampTzGetDatum(since)};

	return lock_places(&query, values, context, n);
}

DeadLetterPlace *
CatalogLockLateLetters(int32 id, Datum during, MemoryContext context, int *n)
{
	static CatalogQuery query = {
		.sql = "SELECT " PLACE_COLUMNS LETTERS_OF " AND reason = 'late' AND during && $2 AND \"offset\" IS NOT NULL"
		" ORDER BY topic, partition, \"offset\", id FOR UPDATE",
		.nargs = 2,.argtypes = {INT4OID, TSTZRANGEOID}
	};
	Datum		values[] = {Int32GetDatum(id), during};

	return lock_places(&query, values, context, n);
}

static void
read_bytes(int row, int column, const char **bytes, int32 *len)
{
	bool		isnull;
	Datum		value = CatalogColumn(row, column, &isnull);
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
read_record(int row, Record *record)
{
	bool		isnull;
	Datum		value;

	memset(record, 0, sizeof(*record));
	record->leader_epoch = -1;
	record->partition = DatumGetInt32(CatalogColumn(row, 2, &isnull));
	record->offset = DatumGetInt64(CatalogColumn(row, 3, &isnull));
	value = CatalogColumn(row, 4, &isnull);
	record->timestamp = isnull ? DT_NOBEGIN : DatumGetTimestampTz(value);
	read_bytes(row, 5, &record->key, &record->key_len);
	read_bytes(row, 6, &record->value, &record->value_len);
	value = CatalogColumn(row, 7, &isnull);
	if (!isnull)
		HeadersFromJsonb(record, DatumGetJsonbPCopy(value));
}

int
CatalogReadDeadLetters(const int64 *ids, int n, MemoryContext context, Record *records, char ***topics)
{
	static CatalogQuery query = {
		.sql = "SELECT r.topic, r.partition, r.\"offset\", r.\"timestamp\", r.key, r.value, r.headers"
		" FROM pg_catalog.unnest($1) WITH ORDINALITY AS u (id, place) JOIN hybridiot.dead_letter_record r ON r.id = u.id"
		" ORDER BY u.place",
		.nargs = 1,.argtypes = {INT8ARRAYOID}
	};
	CatalogScope scope;
	Datum		values[1];
	int			count;

	CatalogEnter(&scope);
	values[0] = CatalogIdArray(ids, n);
	count = (int) CatalogExecute(&query, values, NULL, 0);
	*topics = MemoryContextAlloc(context, sizeof(char *) * Max(count, 1));
	for (int i = 0; i < count; i++)
	{
		MemoryContext old = MemoryContextSwitchTo(context);

		read_record(i, &records[i]);
		(*topics)[i] = CatalogString(i, 1, context);
		MemoryContextSwitchTo(old);
	}
	CatalogLeave(&scope);
	return count;
}

void
CatalogDeleteDeadLettersById(const int64 *ids, int n)
{
	static CatalogQuery query = {
		.sql = "DELETE FROM hybridiot.dead_letter_record WHERE id = ANY ($1)",
		.nargs = 1,.argtypes = {INT8ARRAYOID}
	};
	Datum		values[1];

	if (n == 0)
		return;
	values[0] = CatalogIdArray(ids, n);
	CatalogRun(&query, values, NULL);
}

void
CatalogDeleteRowLetters(int32 id, const int64 *groups, int n)
{
	static CatalogQuery query = {
		.sql = "DELETE FROM hybridiot.dead_letter_record WHERE pipeline = $1 AND group_id = ANY ($2)",
		.nargs = 2,.argtypes = {INT4OID, INT8ARRAYOID}
	};
	Datum		values[2] = {Int32GetDatum(id)};

	if (n == 0)
		return;
	values[1] = CatalogIdArray(groups, n);
	CatalogRun(&query, values, NULL);
}

void
CatalogDeadLettersFailedAgain(const int64 *ids, const DeadLetter *letters, int n)
{
	static CatalogQuery query = {
		.sql = "UPDATE hybridiot.dead_letter_record r SET attempts = r.attempts + 1, failed_at = pg_catalog.clock_timestamp(),"
		" reason = u.reason, sqlstate = u.sqlstate, message = u.message"
		" FROM unnest($1, $2, $3, $4) AS u (id, reason, sqlstate, message) WHERE r.id = u.id",
		.nargs = 4,.argtypes = {INT8ARRAYOID, TEXTARRAYOID, TEXTARRAYOID, TEXTARRAYOID}
	};
	static const Oid types[] = {TEXTOID, TEXTOID, TEXTOID};
	CatalogScope scope;
	Column		columns[3];
	Datum		values[4];

	if (n == 0)
		return;
	CatalogEnter(&scope);
	make_columns(columns, types, 3, n);
	for (int i = 0; i < n; i++)
	{
		put_text(&columns[0], i, reason_name(letters[i].reason));
		if (letters[i].sqlstate != 0)
			put_text(&columns[1], i, unpack_sql_state(letters[i].sqlstate));
		put_text(&columns[2], i, letters[i].message);
	}
	values[0] = CatalogIdArray(ids, n);
	for (int i = 0; i < 3; i++)
		values[i + 1] = column_array(&columns[i], n);
	CatalogExecute(&query, values, NULL, 0);
	CatalogLeave(&scope);
}

int64
CatalogDeleteDeadLetters(int32 id, TimestampTz before)
{
	static CatalogQuery query = {
		.sql = "WITH gone AS (DELETE FROM hybridiot.dead_letter_record WHERE pipeline = $1 AND failed_at < $2 RETURNING group_id),"
		" unwritten AS (DELETE FROM hybridiot.window_group g USING gone WHERE g.pipeline = $1 AND g.id = gone.group_id"
		" AND g.closed AND g.over_at IS NULL)"
		" SELECT pg_catalog.count(*) FROM gone",
		.nargs = 2,.argtypes = {INT4OID, TIMESTAMPTZOID}
	};
	CatalogScope scope;
	Datum		values[] = {Int32GetDatum(id), TimestampTzGetDatum(before)};
	int64		deleted;
	bool		isnull;

	CatalogEnter(&scope);
	(void) CatalogExecute(&query, values, NULL, 0);
	deleted = DatumGetInt64(CatalogColumn(0, 1, &isnull));
	CatalogLeave(&scope);
	return deleted;
}
