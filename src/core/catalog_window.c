/*
 * catalog_window.c
 *		Groups of windowed pipelines as rows.
 *
 * One statement writes or deletes many groups: they travel as arrays, in pieces
 * that stay far below the limits of an array. Rows are found by (pipeline, id) only, so
 * that an update stays on its page and no index grows with the keys.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "core/catalog_window.h"

/* A statement takes this many groups, or this many bytes of them. */
#define GROUPS_PER_STATEMENT 10000
#define BYTES_PER_STATEMENT (16 * 1024 * 1024)

char *
CatalogReadWindowLayout(int32 pipeline, MemoryContext context)
{
	static CatalogQuery query = {
		.sql = "SELECT layout FROM hybridiot.window_layout WHERE pipeline = $1",
		.nargs = 1,.argtypes = {INT4OID}
	};
	CatalogScope scope;
	Datum		values[] = {Int32GetDatum(pipeline)};
	char	   *layout = NULL;

	CatalogEnter(&scope);
	if (CatalogExecute(&query, values, NULL, 1) == 1)
		layout = CatalogString(0, 1, context);
	CatalogLeave(&scope);
	return layout;
}

void
CatalogWriteWindowLayout(int32 pipeline, const char *layout, const char *kind, int64 size)
{
	static CatalogQuery query = {
		.sql = "INSERT INTO hybridiot.window_layout (pipeline, layout, kind, size_us) VALUES ($1, $2, $3, $4)"
		" ON CONFLICT (pipeline) DO UPDATE SET layout = excluded.layout, kind = excluded.kind, size_us = excluded.size_us",
		.nargs = 4,.argtypes = {INT4OID, TEXTOID, TEXTOID, INT8OID}
	};
	Datum		values[] = {Int32GetDatum(pipeline), CStringGetTextDatum(layout), CStringGetTextDatum(kind),
	Int64GetDatum(size)};

	CatalogRun(&query, values, NULL);
}

int64
CatalogLastGroup(int32 pipeline)
{
	static CatalogQuery query = {
		.sql = "SELECT COALESCE(pg_catalog.max(id), 0) FROM hybridiot.window_group WHERE pipeline = $1",
		.nargs = 1,.argtypes = {INT4OID}
	};
	CatalogScope scope;
	Datum		values[] = {Int32GetDatum(pipeline)};
	int64		id;
	bool		isnull;

	CatalogEnter(&scope);
	CatalogExecute(&query, values, NULL, 1);
	id = DatumGetInt64(CatalogColumn(0, 1, &isnull));
	CatalogLeave(&scope);
	return id;
}

bool
CatalogEarliestOpen(int32 pipeline, TimestampTz *start)
{
	static CatalogQuery query = {
		.sql = "SELECT pg_catalog.min(window_start) FROM hybridiot.window_group WHERE pipeline = $1 AND NOT closed",
		.nargs = 1,.argtypes = {INT4OID}
	};
	CatalogScope scope;
	Datum		values[] = {Int32GetDatum(pipeline)};
	bool		isnull;

	CatalogEnter(&scope);
	CatalogExecute(&query, values, NULL, 1);
	*start = DatumGetTimestampTz(CatalogColumn(0, 1, &isnull));
	CatalogLeave(&scope);
	return !isnull;
}

/* A bytea column, whole and in context. */
static bytea *
column_bytes(uint64 row, int column, MemoryContext context)
{
	bool		isnull;
	Datum		value = CatalogColumn(row, column, &isnull);
	MemoryContext old = MemoryContextSwitchTo(context);
	bytea	   *bytes = DatumGetByteaPCopy(value);

	MemoryContextSwitchTo(old);
	return bytes;
}

/* The rows of a query for GROUP_COLUMNS. */
static WindowGroupRow *
read_groups(CatalogQuery *query, Datum *values, MemoryContext context, int *n)
{
	CatalogScope scope;
	WindowGroupRow *rows;
	bool		isnull;

	CatalogEnter(&scope);
	*n = (int) CatalogExecute(query, values, NULL, 0);
	rows = MemoryContextAllocExtended(context, sizeof(WindowGroupRow) * (*n + 1), MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
	for (int i = 0; i < *n; i++)
	{
		Datum		over_at = CatalogColumn(i, 8, &isnull);

		rows[i].over_at = isnull ? DT_NOBEGIN : DatumGetTimestampTz(over_at);
		rows[i].id = DatumGetInt64(CatalogColumn(i, 1, &isnull));
		rows[i].start = DatumGetTimestampTz(CatalogColumn(i, 2, &isnull));
		rows[i].end = DatumGetTimestampTz(CatalogColumn(i, 3, &isnull));
		rows[i].keys = column_bytes(i, 4, context);
		rows[i].state = column_bytes(i, 5, context);
		rows[i].records = DatumGetInt64(CatalogColumn(i, 6, &isnull));
		rows[i].closed = DatumGetBool(CatalogColumn(i, 7, &isnull));
	}
	CatalogLeave(&scope);
	return rows;
}

#define GROUP_COLUMNS "id, window_start, window_end, keys, state, records, closed, over_at"

WindowGroupRow *
CatalogReadGroups(int32 pipeline, int64 behind, int limit, MemoryContext context, int *n)
{
	static CatalogQuery query = {
		.sql = "SELECT " GROUP_COLUMNS " FROM hybridiot.window_group"
		" WHERE pipeline = $1 AND id > $2 AND NOT closed ORDER BY pipeline, id LIMIT $3",
		.nargs = 3,.argtypes = {INT4OID, INT8OID, INT8OID}
	};
	Datum		values[] = {Int32GetDatum(pipeline), Int64GetDatum(behind), Int64GetDatum(limit)};

	return read_groups(&query, values, context, n);
}

/* One statement's worth of groups. */
static void
write_some(int32 pipeline, const WindowGroupRow *rows, int n)
{
	static CatalogQuery query = {
		.sql = "INSERT INTO hybridiot.window_group AS g (pipeline, id, window_start, window_end, keys, state, records, closed, over_at)"
		" SELECT $1, u.id, u.window_start, u.window_end, u.keys, u.state, u.records, u.closed, NULLIF(u.over_at, '-infinity')"
		" FROM ROWS FROM (pg_catalog.unnest($2), pg_catalog.unnest($3), pg_catalog.unnest($4), pg_catalog.unnest($5),"
		" pg_catalog.unnest($6), pg_catalog.unnest($7), pg_catalog.unnest($8), pg_catalog.unnest($9))"
		" AS u (id, window_start, window_end, keys, state, records, closed, over_at)"
		" ON CONFLICT (pipeline, id) DO UPDATE"
		" SET window_start = excluded.window_start, window_end = excluded.window_end,"
		" state = excluded.state, records = excluded.records, closed = excluded.closed, over_at = excluded.over_at",
		.nargs = 9,
		.argtypes = {INT4OID, INT8ARRAYOID, TIMESTAMPTZARRAYOID, TIMESTAMPTZARRAYOID, BYTEAARRAYOID,
		BYTEAARRAYOID, INT8ARRAYOID, BOOLARRAYOID, TIMESTAMPTZARRAYOID}
	};
	Datum	   *columns[8];
	Datum		values[9];

	for (int c = 0; c < 8; c++)
		columns[c] = palloc(sizeof(Datum) * n);
	for (int i = 0; i < n; i++)
	{
		columns[0][i] = Int64GetDatum(rows[i].id);
		columns[1][i] = TimestampTzGetDatum(rows[i].start);
		columns[2][i] = TimestampTzGetDatum(rows[i].end);
		columns[3][i] = PointerGetDatum(rows[i].keys);
		columns[4][i] = PointerGetDatum(rows[i].state);
		columns[5][i] = Int64GetDatum(rows[i].records);
		columns[6][i] = BoolGetDatum(rows[i].closed);
		columns[7][i] = TimestampTzGetDatum(rows[i].over_at);
	}
	values[0] = Int32GetDatum(pipeline);
	values[1] = PointerGetDatum(construct_array(columns[0], n, INT8OID, sizeof(int64), FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
	values[2] = PointerGetDatum(construct_array(columns[1], n, TIMESTAMPTZOID, sizeof(int64), FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
	values[3] = PointerGetDatum(construct_array(columns[2], n, TIMESTAMPTZOID, sizeof(int64), FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
	values[4] = PointerGetDatum(construct_array(columns[3], n, BYTEAOID, -1, false, TYPALIGN_INT));
	values[5] = PointerGetDatum(construct_array(columns[4], n, BYTEAOID, -1, false, TYPALIGN_INT));
	values[6] = PointerGetDatum(construct_array(columns[5], n, INT8OID, sizeof(int64), FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
	values[7] = PointerGetDatum(construct_array(columns[6], n, BOOLOID, sizeof(bool), true, TYPALIGN_CHAR));
	values[8] = PointerGetDatum(construct_array(columns[7], n, TIMESTAMPTZOID, sizeof(int64), FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
	CatalogExecute(&query, values, NULL, 0);
}

void
CatalogWriteGroups(int32 pipeline, const WindowGroupRow *rows, int n)
{
	CatalogScope scope;
	MemoryContext context;
	MemoryContext old;

	if (n == 0)
		return;
	CatalogEnter(&scope);
	context = AllocSetContextCreate(CurrentMemoryContext, "hybridiot groups to write", ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(context);
	for (int from = 0, to; from < n; from = to)
	{
		Size		bytes = 0;

		for (to = from; to < n && to - from < GROUPS_PER_STATEMENT && bytes < BYTES_PER_STATEMENT; to++)
			bytes += VARSIZE_ANY(rows[to].keys) + VARSIZE_ANY(rows[to].state);
		write_some(pipeline, rows + from, to - from);
		MemoryContextReset(context);
	}
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
	CatalogLeave(&scope);
}

void
CatalogDeleteGroups(int32 pipeline, const int64 *ids, int n)
{
	static CatalogQuery query = {
		.sql = "DELETE FROM hybridiot.window_group WHERE pipeline = $1 AND id = ANY ($2)",
		.nargs = 2,.argtypes = {INT4OID, INT8ARRAYOID}
	};
	Datum		values[2] = {Int32GetDatum(pipeline)};

	if (n == 0)
		return;
	values[1] = CatalogIdArray(ids, n);
	CatalogRun(&query, values, NULL);
}

/* ---- groups of closed windows ---- */

bool
CatalogKeepsGroups(int32 pipeline, TimestampTz over_at)
{
	static CatalogQuery query = {
		.sql = "SELECT 1 FROM hybridiot.window_group WHERE pipeline = $1 AND closed AND over_at <= $2 LIMIT 1",
		.nargs = 2,.argtypes = {INT4OID, TIMESTAMPTZOID}
	};
	Datum		values[] = {Int32GetDatum(pipeline), TimestampTzGetDatum(over_at)};

	return CatalogRun(&query, values, NULL) > 0;
}

int64
CatalogExpireGroups(int32 pipeline, TimestampTz over_at, int64 limit)
{
	static CatalogQuery query = {
		.sql = "DELETE FROM hybridiot.window_group WHERE pipeline = $1 AND id = ANY (ARRAY(SELECT id FROM hybridiot.window_group"
		" WHERE pipeline = $1 AND closed AND over_at <= $2 ORDER BY over_at LIMIT $3))",
		.nargs = 3,.argtypes = {INT4OID, TIMESTAMPTZOID, INT8OID}
	};
	Datum		values[] = {Int32GetDatum(pipeline), TimestampTzGetDatum(over_at), Int64GetDatum(limit)};

	return (int64) CatalogRun(&query, values, NULL);
}

void
CatalogDeleteClosedGroups(int32 pipeline)
{
	static CatalogQuery query = {
		.sql = "DELETE FROM hybridiot.window_group WHERE pipeline = $1 AND closed",
		.nargs = 1,.argtypes = {INT4OID}
	};
	Datum		values[] = {Int32GetDatum(pipeline)};

	CatalogRun(&query, values, NULL);
}

WindowGroupRow *
CatalogReadClosedGroups(int32 pipeline, TimestampTz start, TimestampTz end, TimestampTz until,
						MemoryContext context, int *n)
{
	static CatalogQuery query = {
		.sql = "SELECT " GROUP_COLUMNS " FROM hybridiot.window_group WHERE pipeline = $1 AND closed"
		" AND (over_at BETWEEN $2 AND $4 OR over_at IS NULL) AND window_end >= $2 AND window_start <= $3 ORDER BY id",
		.nargs = 4,.argtypes = {INT4OID, TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID}
	};
	Datum		values[] = {
		Int32GetDatum(pipeline), TimestampTzGetDatum(start), TimestampTzGetDatum(end), TimestampTzGetDatum(until)
	};

	return read_groups(&query, values, context, n);
}

WindowGroupRow *
CatalogReadOpenGroups(int32 pipeline, TimestampTz start, TimestampTz end, MemoryContext context, int *n)
{
	static CatalogQuery query = {
		.sql = "SELECT " GROUP_COLUMNS " FROM hybridiot.window_group WHERE pipeline = $1 AND NOT closed"
		" AND window_end >= $2 AND window_start <= $3 ORDER BY id",
		.nargs = 3,.argtypes = {INT4OID, TIMESTAMPTZOID, TIMESTAMPTZOID}
	};
	Datum		values[] = {Int32GetDatum(pipeline), TimestampTzGetDatum(start), TimestampTzGetDatum(end)};

	return read_groups(&query, values, context, n);
}

WindowGroupRow *
CatalogReadFailedGroups(int32 pipeline, const int64 *ids, int nids, MemoryContext context, int *n)
{
	static CatalogQuery query = {
		.sql = "SELECT " GROUP_COLUMNS " FROM hybridiot.window_group WHERE pipeline = $1 AND id = ANY ($2)"
		" AND closed AND over_at IS NULL ORDER BY id",
		.nargs = 2,.argtypes = {INT4OID, INT8ARRAYOID}
	};
	Datum		values[2] = {Int32GetDatum(pipeline)};

	values[1] = CatalogIdArray(ids, nids);
	return read_groups(&query, values, context, n);
}

int64
CatalogFirstGroup(int32 pipeline)
{
	static CatalogQuery query = {
		.sql = "SELECT LEAST(pg_catalog.min(id), 0) FROM hybridiot.window_group WHERE pipeline = $1",
		.nargs = 1,.argtypes = {INT4OID}
	};
	CatalogScope scope;
	Datum		values[] = {Int32GetDatum(pipeline)};
	int64		id;
	bool		isnull;

	CatalogEnter(&scope);
	CatalogExecute(&query, values, NULL, 1);
	id = DatumGetInt64(CatalogColumn(0, 1, &isnull));
	CatalogLeave(&scope);
	return id;
}
