/*
 * catalog.c
 *		Pipelines and positions as rows: the only file (with its
 *		catalog_* sisters) that names our own tables.
 *
 * Every statement runs as the extension's owner under pg_catalog, written once
 * with bound parameters and planned once per session. Nothing here decides
 * who may do what.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "access/genam.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "core/catalog.h"
#include "core/compat.h"

Oid
CatalogExtension(void)
{
	return get_extension_oid(HYBRIDIOT_EXTENSION, true);
}

/* Owner and version (palloc'd) of the extension; false if it is not there. */
static bool
read_extension(Oid *owner, char **version)
{
	Relation	rel;
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	rel = table_open(ExtensionRelationId, AccessShareLock);
	ScanKeyInit(&key, Anum_pg_extension_extname, BTEqualStrategyNumber, F_NAMEEQ,
				CStringGetDatum(HYBRIDIOT_EXTENSION));
	scan = systable_beginscan(rel, ExtensionNameIndexId, true, NULL, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		bool		isnull;

		*owner = ((Form_pg_extension) GETSTRUCT(tuple))->extowner;
		*version = TextDatumGetCString(heap_getattr(tuple, Anum_pg_extension_extversion,
													RelationGetDescr(rel), &isnull));
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return HeapTupleIsValid(tuple);
}

char *
CatalogVersion(void)
{
	Oid			owner;
	char	   *version;

	return read_extension(&owner, &version) ? version : NULL;
}

Oid
CatalogOwner(void)
{
	Oid			owner;
	char	   *version;

	if (!read_extension(&owner, &version))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("extension \"%s\" is not installed in this database", HYBRIDIOT_EXTENSION),
				 errhint("Run CREATE EXTENSION hybridiot.")));
	if (strcmp(version, HYBRIDIOT_VERSION) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("extension \"%s\" is version %s in this database, and its library is %s",
						HYBRIDIOT_EXTENSION, version, HYBRIDIOT_VERSION),
				 errhint("Run ALTER EXTENSION hybridiot UPDATE.")));
	return owner;
}

void
CatalogEnter(CatalogScope *scope)
{
	Oid			owner = CatalogOwner();

	GetUserIdAndSecContext(&scope->userid, &scope->sec_context);
	SetUserIdAndSecContext(owner, scope->sec_context | SECURITY_LOCAL_USERID_CHANGE);
	scope->nestlevel = NewGUCNestLevel();
	RestrictSearchPath();
	if (SPI_connect() != SPI_OK_CONNECT)
		ereport(ERROR, (errcode(ERRCODE_INTERNAL_ERROR), errmsg("could not connect to SPI")));
	PushActiveSnapshot(GetTransactionSnapshot());
}

void
CatalogLeave(CatalogScope *scope)
{
	PopActiveSnapshot();
	SPI_finish();
	AtEOXact_GUC(false, scope->nestlevel);
	SetUserIdAndSecContext(scope->userid, scope->sec_context);
}

static uint64
execute(CatalogQuery *query, Datum *values, const char *nulls, bool read_only, long limit)
{
	int			rc;

	if (query->plan == NULL)
	{
		SPIPlanPtr	plan = SPI_prepare(query->sql, query->nargs, query->argtypes);

		if (plan == NULL || SPI_keepplan(plan) != 0)
			ereport(ERROR,
					(errcode(ERRCODE_INTERNAL_ERROR),
					 errmsg("could not prepare a catalog statement: %s",
							SPI_result_code_string(SPI_result)),
					 errdetail("Statement: %s", query->sql)));
		query->plan = plan;
	}
	rc = SPI_execute_plan(query->plan, values, nulls, read_only, limit);
	if (rc < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("catalog statement failed: %s", SPI_result_code_string(rc)),
				 errdetail("Statement: %s", query->sql)));
	return SPI_processed;
}

uint64
CatalogExecute(CatalogQuery *query, Datum *values, const char *nulls, long limit)
{
	/* Each statement sees what the ones before it did. */
	CommandCounterIncrement();
	UpdateActiveSnapshotCommandId();
	return execute(query, values, nulls, false, limit);
}

uint64
CatalogReadNow(CatalogQuery *query, Datum *values)
{
	uint64		rows;

	PushActiveSnapshot(GetLatestSnapshot());
	rows = execute(query, values, NULL, true, 0);
	PopActiveSnapshot();
	return rows;
}

uint64
CatalogRun(CatalogQuery *query, Datum *values, const char *nulls)
{
	CatalogScope scope;
	uint64		rows;

	CatalogEnter(&scope);
	rows = CatalogExecute(query, values, nulls, 0);
	CatalogLeave(&scope);
	return rows;
}

Datum
CatalogIdArray(const int64 *ids, int n)
{
	Datum	   *elements = palloc_extended(sizeof(Datum) * Max(n, 1), MCXT_ALLOC_HUGE);
	Datum		array;

	for (int i = 0; i < n; i++)
		elements[i] = Int64GetDatum(ids[i]);
	array = PointerGetDatum(construct_array(elements, n, INT8OID, sizeof(int64), FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
	pfree(elements);
	return array;
}

Datum
CatalogUuidArray(const pg_uuid_t *ids, int n)
{
	Datum	   *elements = palloc(sizeof(Datum) * n);

	for (int i = 0; i < n; i++)
		elements[i] = UUIDPGetDatum(&ids[i]);
	return PointerGetDatum(construct_array(elements, n, UUIDOID, UUID_LEN, false, TYPALIGN_CHAR));
}

Datum
CatalogColumn(uint64 row, int column, bool *isnull)
{
	Assert(row < SPI_processed);
	return SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, column, isnull);
}

char *
CatalogString(uint64 row, int column, MemoryContext context)
{
	char	   *value = SPI_getvalue(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, column);

	return value ? MemoryContextStrdup(context, value) : NULL;
}

static int64
column_int64(uint64 row, int column, int64 fallback)
{
	bool		isnull;
	Datum		value = CatalogColumn(row, column, &isnull);

	return isnull ? fallback : DatumGetInt64(value);
}

static TimestampTz
column_time(uint64 row, int column)
{
	bool		isnull;
	Datum		value = CatalogColumn(row, column, &isnull);

	return isnull ? DT_NOBEGIN : DatumGetTimestampTz(value);
}

/* ---- pipelines ---- */

#define PIPELINE_COLUMNS \
	"id, name::text, owner, owner_name::text, kind, statement, query, stream::oid, enabled, failure," \
	" start_at, (EXTRACT(epoch FROM lateness) * 1000000)::bigint, emit, (EXTRACT(epoch FROM idle_timeout) * 1000000)::bigint, batch_rows::bigint," \
	" (EXTRACT(epoch FROM batch_delay) * 1000000)::bigint, (EXTRACT(epoch FROM checkpoint_interval) * 1000000)::bigint," \
	" workers::bigint, max_groups::bigint, max_errors::bigint, on_error," \
	" (EXTRACT(epoch FROM keep_closed) * 1000000)::bigint, notify::text, seeks"

static PipelineDefinition *
pipeline_from_row(uint64 row, MemoryContext context)
{
	PipelineDefinition *def = MemoryContextAllocZero(context, sizeof(PipelineDefinition));
	PipelineOptions *options = &def->options;
	char	   *text;
	bool		isnull;

	def->id = DatumGetInt32(CatalogColumn(row, 1, &isnull));
	def->name = CatalogString(row, 2, context);
	def->owner = DatumGetObjectId(CatalogColumn(row, 3, &isnull));
	def->owner_name = CatalogString(row, 4, context);
	text = CatalogString(row, 5, CurrentMemoryContext);
	def->kind = strcmp(text, "windowed") == 0 ? PIPELINE_WINDOWED : PIPELINE_PER_BATCH;
	def->statement = CatalogString(row, 6, context);
	def->query = CatalogString(row, 7, context);
	def->stream = DatumGetObjectId(CatalogColumn(row, 8, &isnull));
	def->enabled = DatumGetBool(CatalogColumn(row, 9, &isnull));
	def->failure = CatalogString(row, 10, context);
	options->start_at = CatalogString(row, 11, context);
	options->lateness_us = column_int64(row, 12, 0);
	text = CatalogString(row, 13, CurrentMemoryContext);
	options->emit_changes = strcmp(text, "changes") == 0;
	options->idle_timeout_us = column_int64(row, 14, 0);
	options->batch_rows = (int) column_int64(row, 15, 0);
	options->batch_delay_us = column_int64(row, 16, 0);
	options->checkpoint_us = column_int64(row, 17, 0);
	options->workers = (int) column_int64(row, 18, 1);
	options->max_groups = (int) column_int64(row, 19, 0);
	options->max_errors = (int) column_int64(row, 20, 0);
	text = CatalogString(row, 21, CurrentMemoryContext);
	options->stop_on_error = strcmp(text, "stop") == 0;
	options->keep_closed_us = column_int64(row, 22, 0);
	options->notify = CatalogString(row, 23, context);
	def->seeks = DatumGetInt32(CatalogColumn(row, 24, &isnull));
	return def;
}

PipelineDefinition *
CatalogReadPipeline(int32 id, MemoryContext context)
{
	static CatalogQuery query = {
		.sql = "SELECT " PIPELINE_COLUMNS " FROM hybridiot.pipeline_definition WHERE id = $1",
		.nargs = 1,.argtypes = {INT4OID}
	};
	CatalogScope scope;
	PipelineDefinition *def = NULL;
	Datum		values[] = {Int32GetDatum(id)};

	CatalogEnter(&scope);
	if (CatalogExecute(&query, values, NULL, 1) == 1)
		def = pipeline_from_row(0, context);
	CatalogLeave(&scope);
	return def;
}

PipelineDefinition *
CatalogReadPipelineByName(const char *name, bool lock, MemoryContext context)
{
	static CatalogQuery read = {
		.sql = "SELECT " PIPELINE_COLUMNS " FROM hybridiot.pipeline_definition WHERE name = $1",
		.nargs = 1,.argtypes = {NAMEOID}
	};
	static CatalogQuery read_locked = {
		.sql = "SELECT " PIPELINE_COLUMNS " FROM hybridiot.pipeline_definition WHERE name = $1 FOR NO KEY UPDATE",
		.nargs = 1,.argtypes = {NAMEOID}
	};
	CatalogScope scope;
	PipelineDefinition *def = NULL;
	NameData	key;
	Datum		values[1];

	namestrcpy(&key, name);
	values[0] = NameGetDatum(&key);
	CatalogEnter(&scope);
	if (CatalogExecute(lock ? &read_locked : &read, values, NULL, 1) == 1)
		def = pipeline_from_row(0, context);
	CatalogLeave(&scope);
	return def;
}

/* Values of the columns that create and alter write, in the order of both statements. */
static int
pipeline_values(const PipelineDefinition *def, NameData *names, Datum *values, char *nulls)
{
	const PipelineOptions *options = &def->options;
	int			n = 0;

	namestrcpy(&names[0], def->name);
	namestrcpy(&names[1], def->owner_name);
	values[n++] = NameGetDatum(&names[0]);
	values[n++] = ObjectIdGetDatum(def->owner);
	values[n++] = NameGetDatum(&names[1]);
	values[n++] = CStringGetTextDatum(def->kind == PIPELINE_WINDOWED ? "windowed" : "per batch");
	values[n++] = CStringGetTextDatum(def->statement);
	values[n++] = CStringGetTextDatum(def->query);
	values[n++] = ObjectIdGetDatum(def->stream);
	values[n++] = BoolGetDatum(def->enabled);
	values[n++] = CStringGetTextDatum(options->start_at);
	values[n++] = Int64GetDatum(options->lateness_us);
	values[n++] = CStringGetTextDatum(options->emit_changes ? "changes" : "final");
	values[n++] = Int64GetDatum(options->idle_timeout_us);
	values[n++] = Int32GetDatum(options->batch_rows);
	values[n++] = Int64GetDatum(options->batch_delay_us);
	values[n++] = Int64GetDatum(options->checkpoint_us);
	values[n++] = Int32GetDatum(options->workers);
	values[n++] = Int32GetDatum(options->max_groups);
	values[n++] = Int32GetDatum(options->max_errors);
	values[n++] = CStringGetTextDatum(options->stop_on_error ? "stop" : "dead_letter");
	values[n++] = Int64GetDatum(options->keep_closed_us);
	memset(nulls, ' ', n + 1);
	nulls[n + 1] = '\0';
	if (options->notify)
	{
		namestrcpy(&names[2], options->notify);
		values[n] = NameGetDatum(&names[2]);
	}
	else
		nulls[n] = 'n';
	return n + 1;
}

#define PIPELINE_ARGTYPES \
	NAMEOID, OIDOID, NAMEOID, TEXTOID, TEXTOID, TEXTOID, OIDOID, BOOLOID, TEXTOID, INT8OID, \
	TEXTOID, INT8OID, INT4OID, INT8OID, INT8OID, INT4OID, INT4OID, INT4OID, TEXTOID, INT8OID, NAMEOID

#define US(n) "pg_catalog.make_interval(secs => " n "::float8 / 1000000)"

void
CatalogInsertPipeline(PipelineDefinition *def)
{
	static CatalogQuery query = {
		.sql = "INSERT INTO hybridiot.pipeline_definition (name, owner, owner_name, kind, statement, query, stream,"
		" enabled, start_at, lateness, emit, idle_timeout, batch_rows, batch_delay, checkpoint_interval,"
		" workers, max_groups, max_errors, on_error, keep_closed, notify)"
		" VALUES ($1, $2, $3, $4, $5, $6, $7::regclass, $8, $9, " US("$10") ", $11, " US("$12") ", $13, " US("$14") ", " US("$15") ","
		" $16, $17, $18, $19, " US("$20") ", $21) ON CONFLICT (name) DO NOTHING RETURNING id",
		.nargs = 21,.argtypes = {PIPELINE_ARGTYPES}
	};
	CatalogScope scope;
	Datum		values[24];
	char		nulls[25];
	NameData	names[3];
	bool		isnull;

	pipeline_values(def, names, values, nulls);
	CatalogEnter(&scope);
	if (CatalogExecute(&query, values, nulls, 0) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("pipeline \"%s\" already exists", def->name)));
	def->id = DatumGetInt32(CatalogColumn(0, 1, &isnull));
	CatalogLeave(&scope);
}

void
CatalogUpdatePipeline(PipelineDefinition *def)
{
	static CatalogQuery query = {
		.sql = "UPDATE hybridiot.pipeline_definition SET name = $1, owner = $2, owner_name = $3, kind = $4,"
		" statement = $5, query = $6, stream = $7::regclass, enabled = $8, start_at = $9, lateness = " US("$10") ", emit = $11,"
		" idle_timeout = " US("$12") ", batch_rows = $13, batch_delay = " US("$14") ", checkpoint_interval = " US("$15") ","
		" workers = $16, max_groups = $17, max_errors = $18, on_error = $19, keep_closed = " US("$20") ","
		" notify = $21, failure = NULL WHERE id = $22",
		.nargs = 22,.argtypes = {PIPELINE_ARGTYPES, INT4OID}
	};
	Datum		values[24];
	char		nulls[25];
	NameData	names[3];
	int			n = pipeline_values(def, names, values, nulls);

	values[n] = Int32GetDatum(def->id);
	nulls[n] = ' ';
	nulls[n + 1] = '\0';
	CatalogRun(&query, values, nulls);
}

uint64
CatalogDeletePipeline(int32 id)
{
	static CatalogQuery letters = {
		.sql = "DELETE FROM hybridiot.dead_letter_record WHERE pipeline = $1",
		.nargs = 1,.argtypes = {INT4OID}
	};
	static CatalogQuery definition = {
		.sql = "DELETE FROM hybridiot.pipeline_definition WHERE id = $1",
		.nargs = 1,.argtypes = {INT4OID}
	};
	CatalogScope scope;
	Datum		values[] = {Int32GetDatum(id)};
	uint64		nletters;

	/* The rest goes by foreign keys, as do dead letters that its worker writes meanwhile. */
	CatalogEnter(&scope);
	nletters = CatalogExecute(&letters, values, NULL, 0);
	CatalogExecute(&definition, values, NULL, 0);
	CatalogLeave(&scope);
	return nletters;
}

void
CatalogSetEnabled(int32 id, bool enabled)
{
	static CatalogQuery query = {
		.sql = "UPDATE hybridiot.pipeline_definition SET enabled = $2, failure = NULL WHERE id = $1",
		.nargs = 2,.argtypes = {INT4OID, BOOLOID}
	};
	/* Who resumes what stopped itself says that it may go on: what was set aside in a row counts anew. */
	static CatalogQuery errors = {
		.sql = "DELETE FROM hybridiot.pipeline_errors e USING hybridiot.pipeline_definition d"
		" WHERE e.pipeline = $1 AND d.id = $1 AND $2 AND d.failure IS NOT NULL",
		.nargs = 2,.argtypes = {INT4OID, BOOLOID}
	};
	CatalogScope scope;
	Datum		values[] = {Int32GetDatum(id), BoolGetDatum(enabled)};

	CatalogEnter(&scope);
	CatalogExecute(&errors, values, NULL, 0);
	CatalogExecute(&query, values, NULL, 0);
	CatalogLeave(&scope);
}

bool
CatalogSetFailure(int32 id, int32 seeks, const char *reason)
{
	static CatalogQuery query = {
		.sql = "UPDATE hybridiot.pipeline_definition SET failure = $2 WHERE id = $1 AND $3 IN (-1, seeks)",
		.nargs = 3,.argtypes = {INT4OID, TEXTOID, INT4OID}
	};
	Datum		values[] = {Int32GetDatum(id), CStringGetTextDatum(reason), Int32GetDatum(seeks)};

	return CatalogRun(&query, values, NULL) == 1;
}

bool
CatalogLockPipeline(const PipelineDefinition *def)
{
	static CatalogQuery query = {
		.sql = "SELECT 1 FROM hybridiot.pipeline_definition WHERE id = $1 AND seeks = $2 FOR SHARE",
		.nargs = 2,.argtypes = {INT4OID, INT4OID}
	};
	Datum		values[] = {Int32GetDatum(def->id), Int32GetDatum(def->seeks)};

	return CatalogRun(&query, values, NULL) == 1;
}

int32 *
CatalogVisiblePipelines(Oid role, MemoryContext context, int *n)
{
	static CatalogQuery query = {
		.sql = "SELECT id FROM hybridiot.pipeline_definition"
		" WHERE pg_catalog.pg_has_role($1, owner, 'MEMBER') ORDER BY id",
		.nargs = 1,.argtypes = {OIDOID}
	};
	CatalogScope scope;
	Datum		values[] = {ObjectIdGetDatum(role)};
	int32	   *ids;

	CatalogEnter(&scope);
	*n = (int) CatalogExecute(&query, values, NULL, 0);
	ids = MemoryContextAlloc(context, sizeof(int32) * (*n + 1));
	for (int i = 0; i < *n; i++)
	{
		bool		isnull;

		ids[i] = DatumGetInt32(CatalogColumn(i, 1, &isnull));
	}
	CatalogLeave(&scope);
	return ids;
}

bool
CatalogHasAmqpServer(void)
{
	static CatalogQuery query = {
		.sql = "SELECT 1 FROM pg_catalog.pg_foreign_server s JOIN pg_catalog.pg_foreign_data_wrapper w"
		" ON w.oid = s.srvfdw WHERE w.fdwname = 'hybridiot_amqp' LIMIT 1"
	};
	CatalogScope scope;
	bool		found;

	CatalogEnter(&scope);
	found = CatalogExecute(&query, NULL, NULL, 1) > 0;
	CatalogLeave(&scope);
	return found;
}

/* ---- positions ---- */

PositionRow *
CatalogReadPositions(int32 id, MemoryContext context, int *n)
{
	static CatalogQuery query = {
		.sql = "SELECT topic, partition, next_offset, end_offset, stream_time, last_record_at, idle,"
		" last_offset, last_timestamp, last_size, last_crc, leader_epoch, topic_id"
		" FROM hybridiot.pipeline_position WHERE pipeline = $1 ORDER BY topic, partition",
		.nargs = 1,.argtypes = {INT4OID}
	};
	CatalogScope scope;
	Datum		values[] = {Int32GetDatum(id)};
	PositionRow *rows;

	CatalogEnter(&scope);
	*n = (int) CatalogExecute(&query, values, NULL, 0);
	rows = MemoryContextAllocZero(context, sizeof(PositionRow) * (*n + 1));
	for (int i = 0; i < *n; i++)
	{
		bool		isnull;

		rows[i].topic = CatalogString(i, 1, context);
		rows[i].partition = DatumGetInt32(CatalogColumn(i, 2, &isnull));
		rows[i].next_offset = column_int64(i, 3, 0);
		rows[i].end_offset = column_int64(i, 4, -1);
		rows[i].stream_time = column_time(i, 5);
		rows[i].last_record_at = column_time(i, 6);
		rows[i].idle = DatumGetBool(CatalogColumn(i, 7, &isnull));
		rows[i].last.offset = column_int64(i, 8, -1);
		rows[i].last.timestamp = column_time(i, 9);
		rows[i].last.size = column_int64(i, 10, 0);
		rows[i].last.crc = (uint32) column_int64(i, 11, 0);
		rows[i].last.leader_epoch = (int32) column_int64(i, 12, -1);
		rows[i].topic_id = CatalogString(i, 13, context);
	}
	CatalogLeave(&scope);
	return rows;
}

void
CatalogForgetProgress(int32 id)
{
	static CatalogQuery positions = {
		.sql = "DELETE FROM hybridiot.pipeline_position WHERE pipeline = $1",
		.nargs = 1,.argtypes = {INT4OID}
	};
	static CatalogQuery progress = {
		.sql = "DELETE FROM hybridiot.pipeline_progress WHERE pipeline = $1",
		.nargs = 1,.argtypes = {INT4OID}
	};
	static CatalogQuery groups = {
		.sql = "DELETE FROM hybridiot.window_group WHERE pipeline = $1",
		.nargs = 1,.argtypes = {INT4OID}
	};
	static CatalogQuery layout = {
		.sql = "DELETE FROM hybridiot.window_layout WHERE pipeline = $1",
		.nargs = 1,.argtypes = {INT4OID}
	};
	/* Their records are read again, or lie before the new start: they count in no window of what comes now. */
	static CatalogQuery letters = {
		.sql = "UPDATE hybridiot.dead_letter_record r SET cause = 'seek', group_id = NULL FROM hybridiot.pipeline_definition d"
		" WHERE r.pipeline = $1 AND d.id = $1 AND d.kind = 'windowed' AND r.cause IS DISTINCT FROM 'seek'",
		.nargs = 1,.argtypes = {INT4OID}
	};
	CatalogScope scope;
	Datum		values[] = {Int32GetDatum(id)};

	CatalogEnter(&scope);
	CatalogExecute(&positions, values, NULL, 0);
	CatalogExecute(&progress, values, NULL, 0);
	CatalogExecute(&groups, values, NULL, 0);
	CatalogExecute(&layout, values, NULL, 0);
	CatalogExecute(&letters, values, NULL, 0);
	CatalogLeave(&scope);
}

void
CatalogFence(PipelineDefinition *def)
{
	static CatalogQuery query = {
		.sql = "UPDATE hybridiot.pipeline_definition SET seeks = seeks + 1 WHERE id = $1 RETURNING seeks",
		.nargs = 1,.argtypes = {INT4OID}
	};
	CatalogScope scope;
	Datum		values[] = {Int32GetDatum(def->id)};
	bool		isnull;

	CatalogEnter(&scope);
	if (CatalogExecute(&query, values, NULL, 0) == 1)
		def->seeks = DatumGetInt32(CatalogColumn(0, 1, &isnull));
	CatalogLeave(&scope);
}

static void
set_nullable(Datum *values, char *nulls, int place, Datum value, bool isnull)
{
	values[place] = value;
	nulls[place] = isnull ? 'n' : ' ';
}

bool
CatalogAddPositions(const PipelineDefinition *def, const PositionRow *rows, int n)
{
	static CatalogQuery insert = {
		.sql = "INSERT INTO hybridiot.pipeline_position (pipeline, stream, topic, partition, next_offset, idle)"
		" VALUES ($1, $2::regclass, $3, $4, $5, false) ON CONFLICT DO NOTHING",
		.nargs = 5,.argtypes = {INT4OID, OIDOID, TEXTOID, INT4OID, INT8OID}
	};
	CatalogScope scope;

	if (!CatalogLockPipeline(def))
		return false;
	CatalogEnter(&scope);
	for (int i = 0; i < n; i++)
	{
		Datum		values[] = {
			Int32GetDatum(def->id), ObjectIdGetDatum(def->stream), CStringGetTextDatum(rows[i].topic),
			Int32GetDatum(rows[i].partition), Int64GetDatum(rows[i].next_offset)
		};

		(void) CatalogExecute(&insert, values, NULL, 0);
	}
	CatalogLeave(&scope);
	return true;
}

void
CatalogResetPositions(int32 id, const PositionRow *rows, int n)
{
	/* A new row knows nothing of what the old one did, whatever columns there are. */
	static CatalogQuery query = {
		.sql = "WITH old AS (DELETE FROM hybridiot.pipeline_position WHERE pipeline = $1 AND topic = $2 AND partition = $3"
		" RETURNING pipeline, stream, topic, partition)"
		" INSERT INTO hybridiot.pipeline_position (pipeline, stream, topic, partition, next_offset, idle)"
		" SELECT pipeline, stream, topic, partition, $4, false FROM old"
		" ON CONFLICT (pipeline, topic, partition) DO UPDATE SET next_offset = excluded.next_offset",
		.nargs = 4,.argtypes = {INT4OID, TEXTOID, INT4OID, INT8OID}
	};
	CatalogScope scope;

	CatalogEnter(&scope);
	for (int i = 0; i < n; i++)
	{
		Datum		values[] = {
			Int32GetDatum(id), CStringGetTextDatum(rows[i].topic), Int32GetDatum(rows[i].partition),
			Int64GetDatum(rows[i].next_offset)
		};

		(void) CatalogExecute(&query, values, NULL, 0);
	}
	CatalogLeave(&scope);
}

void
CatalogRecordSeek(PipelineDefinition *def, const char *role, const char *position, Datum previous)
{
	static CatalogQuery count = {
		.sql = "UPDATE hybridiot.pipeline_definition SET seeks = seeks + 1 WHERE id = $1 RETURNING seeks",
		.nargs = 1,.argtypes = {INT4OID}
	};
	static CatalogQuery record = {
		.sql = "INSERT INTO hybridiot.seek_record (pipeline, sought_by, position, previous) VALUES ($1, $2::name, $3, $4)",
		.nargs = 4,.argtypes = {INT4OID, TEXTOID, TEXTOID, JSONBOID}
	};
	/* Elsewhere, what was set aside in a row counts anew. */
	static CatalogQuery errors = {
		.sql = "DELETE FROM hybridiot.pipeline_errors WHERE pipeline = $1",
		.nargs = 1,.argtypes = {INT4OID}
	};
	CatalogScope scope;
	Datum		values[] = {
		Int32GetDatum(def->id), CStringGetTextDatum(role), CStringGetTextDatum(position), previous
	};
	bool		isnull;

	CatalogEnter(&scope);
	CatalogExecute(&record, values, previous == (Datum) 0 ? "   n" : NULL, 0);
	CatalogExecute(&errors, values, NULL, 0);
	if (CatalogExecute(&count, values, NULL, 0) == 1)
		def->seeks = DatumGetInt32(CatalogColumn(0, 1, &isnull));
	CatalogLeave(&scope);
}

bool
CatalogMovePositions(const PipelineDefinition *def, const PositionMove *moves, int n)
{
	/* A pipeline may have been sent back to where it stood: the offset alone does not tell. */
	static CatalogQuery update = {
		.sql = "UPDATE hybridiot.pipeline_position SET next_offset = $5, end_offset = $6, stream_time = $7,"
		" last_record_at = $8, idle = $9, last_offset = $10, last_timestamp = $11, last_size = $12, last_crc = $13,"
		" leader_epoch = $14, topic_id = $15"
		" WHERE pipeline = $1 AND topic = $2 AND partition = $3 AND next_offset = $4"
		" AND EXISTS (SELECT FROM hybridiot.pipeline_definition WHERE id = $1 AND seeks = $16)",
		.nargs = 16,.argtypes = {INT4OID, TEXTOID, INT4OID, INT8OID, INT8OID, INT8OID, TIMESTAMPTZOID, TIMESTAMPTZOID, BOOLOID,
		INT8OID, TIMESTAMPTZOID, INT8OID, INT8OID, INT8OID, TEXTOID, INT4OID}
	};
	CatalogScope scope;
	bool		all = true;

	CatalogEnter(&scope);
	for (int i = 0; i < n && all; i++)
	{
		const PositionRow *row = &moves[i].row;
		bool		unmarked = row->last.offset < 0;
		Datum		values[16];
		char		nulls[17] = "                ";

		values[0] = Int32GetDatum(def->id);
		values[1] = CStringGetTextDatum(row->topic);
		values[2] = Int32GetDatum(row->partition);
		values[3] = Int64GetDatum(moves[i].old_offset);
		values[4] = Int64GetDatum(row->next_offset);
		set_nullable(values, nulls, 5, Int64GetDatum(row->end_offset), row->end_offset < 0);
		set_nullable(values, nulls, 6, TimestampTzGetDatum(row->stream_time),
					 row->stream_time == DT_NOBEGIN);
		set_nullable(values, nulls, 7, TimestampTzGetDatum(row->last_record_at),
					 row->last_record_at == DT_NOBEGIN);
		values[8] = BoolGetDatum(row->idle);
		set_nullable(values, nulls, 9, Int64GetDatum(row->last.offset), unmarked);
		set_nullable(values, nulls, 10, TimestampTzGetDatum(row->last.timestamp),
					 unmarked || row->last.timestamp == DT_NOBEGIN);
		set_nullable(values, nulls, 11, Int64GetDatum(row->last.size), unmarked);
		set_nullable(values, nulls, 12, Int64GetDatum((int64) row->last.crc), unmarked);
		set_nullable(values, nulls, 13, Int64GetDatum((int64) row->last.leader_epoch), row->last.leader_epoch < 0);
		set_nullable(values, nulls, 14, row->topic_id ? CStringGetTextDatum(row->topic_id) : (Datum) 0,
					 row->topic_id == NULL);
		values[15] = Int32GetDatum(def->seeks);
		all = CatalogExecute(&update, values, nulls, 0) == 1;
	}
	CatalogLeave(&scope);
	return all;
}

/* ---- event time of windowed pipelines ---- */

void
CatalogReadProgress(int32 id, WindowProgress *progress)
{
	static CatalogQuery query = {
		.sql = "SELECT watermark, closed_before, kept_after FROM hybridiot.pipeline_progress WHERE pipeline = $1",
		.nargs = 1,.argtypes = {INT4OID}
	};
	CatalogScope scope;
	Datum		values[] = {Int32GetDatum(id)};

	progress->watermark = progress->closed_before = progress->kept_after = DT_NOBEGIN;
	CatalogEnter(&scope);
	if (CatalogExecute(&query, values, NULL, 1) == 1)
	{
		progress->watermark = column_time(0, 1);
		progress->closed_before = column_time(0, 2);
		progress->kept_after = column_time(0, 3);
	}
	CatalogLeave(&scope);
}

void
CatalogWriteProgress(int32 id, const WindowProgress *progress)
{
	static CatalogQuery query = {
		.sql = "INSERT INTO hybridiot.pipeline_progress AS p (pipeline, watermark, closed_before, kept_after) VALUES ($1, $2, $3, $4)"
		" ON CONFLICT (pipeline) DO UPDATE SET watermark = excluded.watermark, closed_before = excluded.closed_before,"
		" kept_after = excluded.kept_after",
		.nargs = 4,.argtypes = {INT4OID, TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID}
	};
	Datum		values[4] = {Int32GetDatum(id)};
	char		nulls[5] = "    ";

	set_nullable(values, nulls, 1, TimestampTzGetDatum(progress->watermark), progress->watermark == DT_NOBEGIN);
	set_nullable(values, nulls, 2, TimestampTzGetDatum(progress->closed_before), progress->closed_before == DT_NOBEGIN);
	values[3] = TimestampTzGetDatum(progress->kept_after);
	CatalogRun(&query, values, nulls);
}

/* ---- records set aside in a row ---- */

int
CatalogReadErrorsInRow(int32 id, int member)
{
	static CatalogQuery query = {
		.sql = "SELECT in_row FROM hybridiot.pipeline_errors WHERE pipeline = $1 AND member = $2",
		.nargs = 2,.argtypes = {INT4OID, INT4OID}
	};
	CatalogScope scope;
	Datum		values[] = {Int32GetDatum(id), Int32GetDatum(member)};
	int			in_row = 0;
	bool		isnull;

	CatalogEnter(&scope);
	if (CatalogExecute(&query, values, NULL, 1) == 1)
		in_row = DatumGetInt32(CatalogColumn(0, 1, &isnull));
	CatalogLeave(&scope);
	return in_row;
}

void
CatalogWriteErrorsInRow(int32 id, int member, int in_row)
{
	static CatalogQuery query = {
		.sql = "INSERT INTO hybridiot.pipeline_errors (pipeline, member, in_row) VALUES ($1, $2, $3)"
		" ON CONFLICT (pipeline, member) DO UPDATE SET in_row = excluded.in_row",
		.nargs = 3,.argtypes = {INT4OID, INT4OID, INT4OID}
	};
	Datum		values[] = {Int32GetDatum(id), Int32GetDatum(member), Int32GetDatum(in_row)};

	CatalogRun(&query, values, NULL);
}
