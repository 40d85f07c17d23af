/*
 * catalog_command.c
 *		The journal of commands as rows.
 *
 * hybridiot.command is what the user sees and is kept for weeks;
 * hybridiot.command_origin holds only the commands that are not final, says where
 * they come from (system, timeline, database, instance, epoch of the worker) and is the
 * worker's queue, so that the journal is never searched for work and its
 * updates, which touch no indexed column, stay heap-only.
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "core/catalog_command.h"
#include "core/catalog_origin.h"
#include "core/catalog_rows.h"
#include "core/compat.h"
#include "core/options.h"

bool		CatalogInsertingCommand = false;

static const char *const state_names[] = {
	[COMMAND_QUEUED] = "queued",
	[COMMAND_SENDING] = "sending",
	[COMMAND_SENT] = "sent",
	[COMMAND_ACCEPTED] = "accepted",
	[COMMAND_SUCCEEDED] = "succeeded",
	[COMMAND_FAILED] = "failed",
	[COMMAND_REJECTED] = "rejected",
	[COMMAND_UNDELIVERABLE] = "undeliverable",
	[COMMAND_EXPIRED] = "expired",
	[COMMAND_CANCELLED] = "cancelled",
	[COMMAND_TIMED_OUT] = "timed_out",
	[COMMAND_IN_DOUBT] = "in_doubt",
};

static const char *const accepted_by_names[] = {
	[ACCEPTED_BY_NOBODY] = NULL,
	[ACCEPTED_BY_DEVICE] = "device",
	[ACCEPTED_BY_HONO] = "hono",
	[ACCEPTED_BY_BROKER] = "broker",
};

const char *
CommandStateName(CommandState state)
{
	return state_names[state];
}

const char *
CommandModeName(CommandMode mode)
{
	return mode == MODE_STORE ? "store" : "direct";
}

const char *
AcceptedByName(AcceptedBy by)
{
	return accepted_by_names[by];
}

bool
CommandIsSettled(CommandState state, bool one_way)
{
	switch (state)
	{
		case COMMAND_QUEUED:
		case COMMAND_SENDING:
		case COMMAND_SENT:
			return false;
		case COMMAND_ACCEPTED:
			return one_way;
		case COMMAND_SUCCEEDED:
		case COMMAND_FAILED:
		case COMMAND_REJECTED:
		case COMMAND_UNDELIVERABLE:
		case COMMAND_EXPIRED:
		case COMMAND_CANCELLED:
		case COMMAND_TIMED_OUT:
		case COMMAND_IN_DOUBT:
			return true;
	}
	pg_unreachable();
}

bool
CommandIsUncertain(CommandState state)
{
	return state == COMMAND_IN_DOUBT || state == COMMAND_TIMED_OUT;
}

static bool
is_one_of(const char *name, const char *const *names, int n)
{
	for (int i = 0; i < n; i++)
		if (names[i] && strcmp(names[i], name) == 0)
			return true;
	return false;
}

static CommandMode
mode_from_name(const char *name)
{
	return strcmp(name, "store") == 0 ? MODE_STORE : MODE_DIRECT;
}

void
CommandCheckWords(const char *mode, const char *state, const char *accepted_by)
{
	if ((mode && strcmp(mode, CommandModeName(mode_from_name(mode))) != 0) ||
		(state && !is_one_of(state, state_names, lengthof(state_names))) ||
		(accepted_by && !is_one_of(accepted_by, accepted_by_names, lengthof(accepted_by_names))))
		ereport(ERROR,
				(errcode(ERRCODE_CHECK_VIOLATION),
				 errmsg("invalid mode, state or accepted_by of a command"),
				 errdetail("mode \"%s\", state \"%s\", accepted_by \"%s\"", mode ? mode : "",
						   state ? state : "", accepted_by ? accepted_by : "")));
}

/* ---- parameters and columns ---- */

static void
put_identity(Parameters *p)
{
	Datum		values[IDENTITY_ARGS];
	char		nulls[IDENTITY_ARGS];

	CatalogIdentity(values, nulls);
	for (int i = 0; i < IDENTITY_ARGS; i++)
	{
		Put(p, values[i]);
		p->nulls[p->n - 1] = nulls[i];
	}
}

static int64
interval_ms(Datum value)
{
	Interval   *interval = DatumGetIntervalP(value);

	return ((int64) interval->month * DAYS_PER_MONTH + interval->day) * (USECS_PER_DAY / 1000) +
		interval->time / 1000;
}

static TimestampTz
column_time(uint64 row, int column)
{
	bool		isnull;
	Datum		value = CatalogColumn(row, column, &isnull);

	return isnull ? 0 : DatumGetTimestampTz(value);
}

static void *
column_varlena(uint64 row, int column, MemoryContext context)
{
	bool		isnull;
	Datum		value = CatalogColumn(row, column, &isnull);
	struct varlena *plain;
	void	   *copy;

	if (isnull)
		return NULL;
	plain = PG_DETOAST_DATUM(value);
	copy = MemoryContextAlloc(context, VARSIZE(plain));
	memcpy(copy, plain, VARSIZE(plain));
	return copy;
}

static void
column_uuid(uint64 row, int column, pg_uuid_t *id)
{
	bool		isnull;

	*id = *DatumGetUUIDP(CatalogColumn(row, column, &isnull));
}

static CommandState
state_from_name(const char *name)
{
	for (int i = 0; i < lengthof(state_names); i++)
		if (strcmp(state_names[i], name) == 0)
			return (CommandState) i;
	ereport(ERROR,
			(errcode(ERRCODE_DATA_CORRUPTED), errmsg("unknown state \"%s\" of a command", name)));
}

/* ---- a sender's side ---- */

#define INSERT_COMMAND \
	"INSERT INTO hybridiot.command (id, device, command, sender, server, mode, state, payload, body," \
	" content_type, properties, priority, ttl, reply_within, queued_at, expires_at, answer_by, idempotency_key)"
#define INSERT_COMMAND_ROW \
	INSERT_COMMAND " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)"
#define INSERT_COMMAND_TYPES \
	UUIDOID, TEXTOID, TEXTOID, NAMEOID, NAMEOID, TEXTOID, TEXTOID, JSONBOID, BYTEAOID, \
	TEXTOID, JSONBOID, INT4OID, INTERVALOID, INTERVALOID, TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID, TEXTOID

static void
put_command(Parameters *p, const CommandRequest *request, CommandState state, TimestampTz answer_by)
{
	Put(p, UUIDPGetDatum(&request->id));
	PutText(p, request->device);
	PutText(p, request->command);
	PutName(p, request->sender);
	PutName(p, request->server_name);
	PutText(p, CommandModeName(request->mode));
	PutText(p, CommandStateName(state));
	PutPointer(p, request->payload);
	PutPointer(p, request->body);
	PutText(p, request->content_type);
	PutPointer(p, request->properties);
	PutInt4(p, request->priority, request->priority >= 0);
	Put(p, IntervalPGetDatum(IntervalFromMs(request->ttl_ms)));
	Put(p, IntervalPGetDatum(IntervalFromMs(request->reply_within_ms)));
	PutTime(p, request->queued_at);
	PutTime(p, request->expires_at);
	PutTime(p, answer_by);
	PutText(p, request->idempotency_key);
}

bool
CatalogInsertCommand(const CommandRequest *request, CommandState state, TimestampTz answer_by)
{
	static CatalogQuery query = {
		.sql = INSERT_COMMAND_ROW " ON CONFLICT (sender, server, device, idempotency_key)"
		" WHERE idempotency_key IS NOT NULL DO NOTHING",
		.nargs = 18,.argtypes = {INSERT_COMMAND_TYPES}
	};
	Parameters	p = {0};
	bool		done = false;

	if (request->idempotency_key == NULL)
	{
		NewCommand	command = {request, state, answer_by};

		CatalogInsertCommands(&command, 1);
		return true;
	}
	put_command(&p, request, state, answer_by);
	CatalogInsertingCommand = true;
	PG_TRY();
	{
		done = CatalogExecute(&query, p.values, p.nulls, 0) == 1;
	}
	PG_FINALLY();
	{
		CatalogInsertingCommand = false;
	}
	PG_END_TRY();
	return done;
}

void
CatalogInsertCommands(const NewCommand *commands, int n)
{
	static CatalogQuery one = {
		.sql = INSERT_COMMAND_ROW,.nargs = 18,.argtypes = {INSERT_COMMAND_TYPES}
	};
	static CatalogQuery many = {
		.sql = INSERT_COMMAND " SELECT pg_catalog.unnest($1), pg_catalog.unnest($2), pg_catalog.unnest($3),"
		" pg_catalog.unnest($4), pg_catalog.unnest($5), pg_catalog.unnest($6), pg_catalog.unnest($7), pg_catalog.unnest($8),"
		" pg_catalog.unnest($9), pg_catalog.unnest($10), pg_catalog.unnest($11), pg_catalog.unnest($12), pg_catalog.unnest($13),"
		" pg_catalog.unnest($14), pg_catalog.unnest($15), pg_catalog.unnest($16), pg_catalog.unnest($17), pg_catalog.unnest($18)"
	};
	Parameters *rows = palloc0(sizeof(Parameters) * n);

	for (int i = 0; i < n; i++)
		put_command(&rows[i], commands[i].request, commands[i].state, commands[i].answer_by);
	CatalogInsertingCommand = true;
	PG_TRY();
	{
		CatalogExecuteRows(&one, &many, rows, n, false);
	}
	PG_FINALLY();
	{
		CatalogInsertingCommand = false;
	}
	PG_END_TRY();
}

bool
CatalogFindIdempotent(const CommandRequest *request, pg_uuid_t *id, bool *same)
{
	static CatalogQuery query = {
		.sql = "SELECT id, (command, mode, payload, body, content_type, properties, priority, ttl, reply_within)"
		" IS NOT DISTINCT FROM ($5, $6, $7, $8, $9, $10, $11, $12, $13)"
		" FROM hybridiot.command WHERE sender = $1 AND server = $2 AND device = $3 AND idempotency_key = $4",
		.nargs = 13,
		.argtypes = {NAMEOID, NAMEOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, JSONBOID, BYTEAOID,
		TEXTOID, JSONBOID, INT4OID, INTERVALOID, INTERVALOID}
	};
	Parameters	p = {0};
	bool		isnull;

	PutName(&p, request->sender);
	PutName(&p, request->server_name);
	PutText(&p, request->device);
	PutText(&p, request->idempotency_key);
	PutText(&p, request->command);
	PutText(&p, CommandModeName(request->mode));
	PutPointer(&p, request->payload);
	PutPointer(&p, request->body);
	PutText(&p, request->content_type);
	PutPointer(&p, request->properties);
	PutInt4(&p, request->priority, request->priority >= 0);
	Put(&p, IntervalPGetDatum(IntervalFromMs(request->ttl_ms)));
	Put(&p, IntervalPGetDatum(IntervalFromMs(request->reply_within_ms)));
	if (CatalogExecute(&query, p.values, p.nulls, 1) != 1)
		return false;
	column_uuid(0, 1, id);
	*same = DatumGetBool(CatalogColumn(0, 2, &isnull));
	return true;
}

#define INSERT_ORIGIN \
	"INSERT INTO hybridiot.command_origin (command_id, system_id, timeline, database, instance, epoch, server, sender)"

static CatalogQuery insert_origin = {
	.sql = INSERT_ORIGIN " VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
	.nargs = IDENTITY_ARGS + 4,.argtypes = {UUIDOID, IDENTITY_TYPES, INT8OID, OIDOID, NAMEOID}
};

/* Does an origin o come from elsewhere than $1 to $4? An instance that was not known is no difference. */
#define ELSEWHERE \
	"((o.system_id, o.timeline, o.database) IS DISTINCT FROM ($1, $2, $3) OR coalesce(o.instance <> $4, false))"

void
CatalogInsertOrigins(const NewCommand *commands, int n, int64 epoch)
{
	static CatalogQuery many = {
		.sql = INSERT_ORIGIN " SELECT pg_catalog.unnest($1), pg_catalog.unnest($2), pg_catalog.unnest($3),"
		" pg_catalog.unnest($4), pg_catalog.unnest($5), pg_catalog.unnest($6), pg_catalog.unnest($7), pg_catalog.unnest($8)"
	};
	Parameters *rows = palloc0(sizeof(Parameters) * n);

	for (int i = 0; i < n; i++)
	{
		const CommandRequest *request = commands[i].request;
		Parameters *p = &rows[i];

		Put(p, UUIDPGetDatum(&request->id));
		put_identity(p);
		if (commands[i].state != COMMAND_QUEUED)
			Put(p, Int64GetDatum(epoch));
		else
			PutNull(p);
		Put(p, ObjectIdGetDatum(request->server));
		PutName(p, request->sender);
	}
	CatalogExecuteRows(&insert_origin, &many, rows, n, false);
}

void
CatalogInsertForeignOrigin(const pg_uuid_t *id)
{
	Parameters	p = {0};

	Put(&p, UUIDPGetDatum(id));
	Put(&p, Int64GetDatum(0));
	Put(&p, Int32GetDatum(0));
	Put(&p, ObjectIdGetDatum(InvalidOid));
	PutNull(&p);
	PutNull(&p);
	Put(&p, ObjectIdGetDatum(InvalidOid));
	PutName(&p, "");
	CatalogExecute(&insert_origin, p.values, p.nulls, 0);
}

void
CatalogDeleteOrigins(const pg_uuid_t *ids, int n)
{
	static CatalogQuery one = {
		.sql = "DELETE FROM hybridiot.command_origin WHERE command_id = $1",
		.nargs = 1,.argtypes = {UUIDOID}
	};
	static CatalogQuery many = {
		.sql = "DELETE FROM hybridiot.command_origin WHERE command_id = ANY($1)",
		.nargs = 1,.argtypes = {UUIDARRAYOID}
	};
	Parameters	p = {0};

	if (n == 0)
		return;
	Put(&p, n == 1 ? UUIDPGetDatum(&ids[0]) : CatalogUuidArray(ids, n));
	CatalogExecute(n == 1 ? &one : &many, p.values, p.nulls, 0);
}

/* ---- reading and changing a row ---- */

CommandRow *
CatalogReadCommand(const pg_uuid_t *id, MemoryContext context)
{
	static CatalogQuery query = {
		.sql = "SELECT c.id, c.device, c.command, c.sender::text, c.server::text, c.mode,"
		" c.reply_within = '0'::pg_catalog.interval, c.xmin, c.state, c.accepted_by, c.sent_at, c.accepted_at, c.replied_at,"
		" c.status, r.content_type, c.result, c.result_body, c.condition, c.description"
		" FROM hybridiot.command c LEFT JOIN hybridiot.command_reply r ON r.command_id = c.id WHERE c.id = $1",
		.nargs = 1,.argtypes = {UUIDOID}
	};
	Datum		values[] = {UUIDPGetDatum(id)};
	CommandRow *row = NULL;
	CommandResult *result;
	char	   *text;
	bool		isnull;

	if (CatalogReadNow(&query, values) == 1)
	{
		row = MemoryContextAllocZero(context, sizeof(CommandRow));
		result = &row->result;
		column_uuid(0, 1, &row->id);
		row->device = CatalogString(0, 2, context);
		row->command = CatalogString(0, 3, context);
		row->sender = CatalogString(0, 4, context);
		row->server_name = CatalogString(0, 5, context);
		row->mode = mode_from_name(CatalogString(0, 6, context));
		row->one_way = DatumGetBool(CatalogColumn(0, 7, &isnull));
		row->own = TransactionIdIsCurrentTransactionId(DatumGetTransactionId(CatalogColumn(0, 8, &isnull)));
		result->state = state_from_name(CatalogString(0, 9, context));
		text = CatalogString(0, 10, context);
		for (int by = 0; text && by < lengthof(accepted_by_names); by++)
			if (accepted_by_names[by] && strcmp(accepted_by_names[by], text) == 0)
				result->accepted_by = (AcceptedBy) by;
		result->sent_at = column_time(0, 11);
		result->accepted_at = column_time(0, 12);
		result->replied_at = column_time(0, 13);
		result->status = DatumGetInt32(CatalogColumn(0, 14, &isnull));
		result->has_status = !isnull;
		result->content_type = CatalogString(0, 15, context);
		result->payload = column_varlena(0, 16, context);
		if (result->payload && result->content_type == NULL)
			result->content_type = "application/json";
		result->body = column_varlena(0, 17, context);
		result->condition = CatalogString(0, 18, context);
		result->description = CatalogString(0, 19, context);
	}
	return row;
}

/* What the journal's columns have no place for; JSON goes without saying. */
static void
insert_replies(const CommandUpdate *updates, int n)
{
	static CatalogQuery one = {
		.sql = "INSERT INTO hybridiot.command_reply (command_id, content_type) VALUES ($1, $2) ON CONFLICT DO NOTHING",
		.nargs = 2,.argtypes = {UUIDOID, TEXTOID}
	};
	static CatalogQuery many = {
		.sql = "INSERT INTO hybridiot.command_reply (command_id, content_type)"
		" SELECT pg_catalog.unnest($1), pg_catalog.unnest($2) ON CONFLICT DO NOTHING"
	};
	Parameters *rows = palloc0(sizeof(Parameters) * n);
	int			nrows = 0;

	for (int i = 0; i < n; i++)
	{
		const CommandResult *result = updates[i].result;

		if (result->replied_at == 0 || result->content_type == NULL ||
			(result->payload && strcmp(result->content_type, "application/json") == 0))
			continue;
		Put(&rows[nrows], UUIDPGetDatum(&updates[i].id));
		PutText(&rows[nrows++], result->content_type);
	}
	CatalogExecuteRows(&one, &many, rows, nrows, false);
	pfree(rows);
}

static void
put_update(Parameters *p, const CommandUpdate *update)
{
	const CommandResult *result = update->result;

	Put(p, UUIDPGetDatum(&update->id));
	PutText(p, CommandStateName(result->state));
	PutText(p, AcceptedByName(result->accepted_by));
	PutTime(p, result->sent_at);
	PutTime(p, result->accepted_at);
	PutTime(p, result->replied_at);
	PutInt4(p, result->status, result->has_status);
	PutPointer(p, result->payload);
	PutPointer(p, result->body);
	PutText(p, result->condition);
	PutText(p, result->description);
	PutTime(p, update->answer_by);
	Put(p, BoolGetDatum(update->clear_sent));
}

/* A row's place is looked up by its key first, so that no plan, whenever it was made, can go through the table. */
#define BY_PLACE(rows) \
	" FROM (SELECT v.*, p.ctid AS place FROM (SELECT " rows " OFFSET 0) v," \
	" LATERAL (SELECT o.ctid FROM hybridiot.command o WHERE o.id = v.id OFFSET 0) p OFFSET 0) u WHERE c.ctid = u.place"

#define UPDATE_COMMAND \
	"UPDATE hybridiot.command c SET state = u.state, accepted_by = coalesce(u.accepted_by, c.accepted_by)," \
	" sent_at = CASE WHEN u.clear THEN NULL ELSE coalesce(u.sent_at, c.sent_at) END," \
	" accepted_at = coalesce(u.accepted_at, c.accepted_at), replied_at = coalesce(u.replied_at, c.replied_at)," \
	" status = coalesce(u.status, c.status), result = coalesce(u.result, c.result)," \
	" result_body = coalesce(u.result_body, c.result_body), condition = coalesce(u.condition, c.condition)," \
	" description = coalesce(u.description, c.description)," \
	" answer_by = CASE WHEN u.clear THEN NULL ELSE coalesce(u.answer_by, c.answer_by) END"

void
CatalogUpdateCommands(const CommandUpdate *updates, int n)
{
	static CatalogQuery one = {
		.sql = UPDATE_COMMAND " FROM (SELECT $2 AS state, $3 AS accepted_by, $4 AS sent_at, $5 AS accepted_at,"
		" $6 AS replied_at, $7 AS status, $8 AS result, $9 AS result_body, $10 AS condition, $11 AS description,"
		" $12 AS answer_by, $13 AS clear) u WHERE c.id = $1",
		.nargs = 13,
		.argtypes = {UUIDOID, TEXTOID, TEXTOID, TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID,
		INT4OID, JSONBOID, BYTEAOID, TEXTOID, TEXTOID, TIMESTAMPTZOID, BOOLOID}
	};
	static CatalogQuery many = {
		.sql = UPDATE_COMMAND BY_PLACE("pg_catalog.unnest($1) AS id, pg_catalog.unnest($2) AS state,"
									   " pg_catalog.unnest($3) AS accepted_by, pg_catalog.unnest($4) AS sent_at,"
									   " pg_catalog.unnest($5) AS accepted_at, pg_catalog.unnest($6) AS replied_at,"
									   " pg_catalog.unnest($7) AS status, pg_catalog.unnest($8) AS result,"
									   " pg_catalog.unnest($9) AS result_body, pg_catalog.unnest($10) AS condition,"
									   " pg_catalog.unnest($11) AS description, pg_catalog.unnest($12) AS answer_by,"
									   " pg_catalog.unnest($13) AS clear")
	};

	/* Rows of parameters take memory of their own: not of all at once. */
	for (int i = 0; i < n; i += CATALOG_ROWS_AT_ONCE)
	{
		int			count = Min(n - i, CATALOG_ROWS_AT_ONCE);
		Parameters *rows = palloc0(sizeof(Parameters) * count);

		for (int j = 0; j < count; j++)
			put_update(&rows[j], &updates[i + j]);
		/* One that somebody else changed meanwhile is not found at its place, and is looked for again. */
		CatalogExecuteRows(&one, &many, rows, count, true);
		pfree(rows);
		insert_replies(&updates[i], count);
	}
}

int
CatalogHeldCommands(const pg_uuid_t *ids, int n, pg_uuid_t *held)
{
	static CatalogQuery query = {
		.sql = "WITH free AS MATERIALIZED ("
		" SELECT id FROM hybridiot.command WHERE id = ANY($1) FOR NO KEY UPDATE SKIP LOCKED)"
		" SELECT id FROM hybridiot.command WHERE id = ANY($1) AND id NOT IN (SELECT id FROM free)",
		.nargs = 1,.argtypes = {UUIDARRAYOID}
	};
	Datum		array = CatalogUuidArray(ids, n);
	bool		isnull;
	int			nheld;

	nheld = (int) CatalogExecute(&query, &array, NULL, 0);
	for (int i = 0; i < nheld; i++)
		held[i] = *DatumGetUUIDP(CatalogColumn(i, 1, &isnull));
	return nheld;
}

static Datum
text_array(Datum *elements, bool *nulls, int n)
{
	int			lower = 1;

	return PointerGetDatum(construct_md_array(elements, nulls, 1, &n, &lower, TEXTOID,
											  -1, false, TYPALIGN_INT));
}

void
CatalogInsertEvents(const CommandEvent *events, int n)
{
	static CatalogQuery query = {
		.sql = "INSERT INTO hybridiot.command_event (command_id, at, state, cause)"
		" SELECT * FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2), pg_catalog.unnest($3), pg_catalog.unnest($4))",
		.nargs = 4,.argtypes = {UUIDARRAYOID, TIMESTAMPTZARRAYOID, TEXTARRAYOID, TEXTARRAYOID}
	};
	Datum	   *ids = palloc(sizeof(Datum) * n);
	Datum	   *times = palloc(sizeof(Datum) * n);
	Datum	   *states = palloc0(sizeof(Datum) * n);
	Datum	   *causes = palloc0(sizeof(Datum) * n);
	bool	   *no_id = palloc0(n);
	bool	   *no_state = palloc0(n);
	bool	   *no_cause = palloc0(n);
	int			lower = 1;
	Parameters	p = {0};

	if (n == 0)
		return;
	for (int i = 0; i < n; i++)
	{
		ids[i] = UUIDPGetDatum(&events[i].id);
		no_id[i] = !events[i].has_id;
		times[i] = TimestampTzGetDatum(events[i].at);
		if (!(no_state[i] = events[i].state == NULL))
			states[i] = CStringGetTextDatum(events[i].state);
		if (!(no_cause[i] = events[i].cause == NULL))
			causes[i] = CStringGetTextDatum(events[i].cause);
	}
	PutPointer(&p, construct_md_array(ids, no_id, 1, &n, &lower, UUIDOID, UUID_LEN, false, TYPALIGN_CHAR));
	PutPointer(&p, construct_array(times, n, TIMESTAMPTZOID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
	Put(&p, text_array(states, no_state, n));
	Put(&p, text_array(causes, no_cause, n));
	CatalogExecute(&query, p.values, p.nulls, 0);
}

/* ---- the worker's queue ---- */

uint64
CatalogQueueHorizon(void)
{
	FullTransactionId next = ReadNextFullTransactionId();
	TransactionId xmin = GetActiveSnapshot()->xmin;
	uint32		epoch = EpochFromFullTransactionId(next);

	if (xmin > XidFromFullTransactionId(next))
		epoch--;
	return U64FromFullTransactionId(FullTransactionIdFromEpochAndXid(epoch, xmin));
}

static Datum
name_array(const char **names, int n)
{
	Datum	   *elements = palloc(sizeof(Datum) * n);

	for (int i = 0; i < n; i++)
		elements[i] = DirectFunctionCall1(namein, CStringGetDatum(names[i]));
	return PointerGetDatum(construct_array(elements, n, NAMEOID, NAMEDATALEN, false, TYPALIGN_CHAR));
}

int
CatalogNewSenders(const char **known, int nknown, char ***names, MemoryContext context)
{
	/* Entries of senders that are known, many of them dead perhaps, are jumped over. */
	static CatalogQuery query = {
		.sql = "WITH gap AS MATERIALIZED (SELECT k.sender AS low, pg_catalog.lead(k.sender) OVER (ORDER BY k.sender) AS high"
		" FROM pg_catalog.unnest($1) k(sender))"
		" SELECT n.sender::pg_catalog.text FROM gap g, LATERAL (SELECT o.sender FROM hybridiot.command_origin o WHERE o.epoch IS NULL"
		" AND o.sender > g.low AND o.sender < g.high ORDER BY o.sender LIMIT 1) n WHERE g.high IS NOT NULL"
		" UNION ALL"
		" SELECT n.sender::pg_catalog.text FROM gap g, LATERAL (SELECT o.sender FROM hybridiot.command_origin o WHERE o.epoch IS NULL"
		" AND o.sender > g.low ORDER BY o.sender LIMIT 1) n WHERE g.high IS NULL",
		.nargs = 1,.argtypes = {NAMEARRAYOID}
	};
	Datum		values[] = {name_array(known, nknown)};
	int			n = (int) CatalogExecute(&query, values, NULL, 0);

	*names = MemoryContextAlloc(context, sizeof(char *) * (n + 1));
	for (int i = 0; i < n; i++)
		(*names)[i] = CatalogString(i, 1, context);
	return n;
}

int
CatalogReadQueue(const QueuePlace *places, int nplaces, QueuedCommand **commands, MemoryContext context)
{
	static CatalogQuery query = {
		/* One from the future was queued before the clock was set back: nobody knows how long ago, so it is over. */
		.sql = "SELECT q.*, p.place FROM ROWS FROM (pg_catalog.unnest($5), pg_catalog.unnest($6), pg_catalog.unnest($7),"
		" pg_catalog.unnest($8)) WITH ORDINALITY p(sender, xid, seq, up_to, place), LATERAL ("
		"SELECT o.command_id, o.server, c.device, c.mode, CASE WHEN c.queued_at <= pg_catalog.clock_timestamp() + '1 s'"
		" THEN c.expires_at ELSE c.expires_at - '100 years'::pg_catalog.interval END, c.reply_within, o.queued_xid, o.seq,"
		" " ELSEWHERE
		" FROM hybridiot.command_origin o JOIN hybridiot.command c ON c.id = o.command_id"
		" WHERE o.epoch IS NULL AND o.sender = p.sender AND (o.queued_xid, o.seq) > (p.xid, p.seq)"
		" ORDER BY o.queued_xid, o.seq LIMIT p.up_to) q ORDER BY p.place, q.queued_xid, q.seq",
		.nargs = IDENTITY_ARGS + 4,.argtypes = {IDENTITY_TYPES, NAMEARRAYOID, XID8ARRAYOID, INT8ARRAYOID, INT4ARRAYOID}
	};
	const char **senders = palloc(sizeof(char *) * nplaces);
	Datum	   *xids = palloc(sizeof(Datum) * nplaces);
	Datum	   *seqs = palloc(sizeof(Datum) * nplaces);
	Datum	   *limits = palloc(sizeof(Datum) * nplaces);
	Parameters	p = {0};
	bool		isnull;
	int			n;

	for (int i = 0; i < nplaces; i++)
	{
		senders[i] = places[i].sender;
		xids[i] = UInt64GetDatum(places[i].xid);
		seqs[i] = Int64GetDatum(places[i].seq);
		limits[i] = Int32GetDatum(places[i].limit);
	}
	put_identity(&p);
	Put(&p, name_array(senders, nplaces));
	PutPointer(&p, construct_array(xids, nplaces, XID8OID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
	PutPointer(&p, construct_array(seqs, nplaces, INT8OID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
	PutPointer(&p, construct_array(limits, nplaces, INT4OID, 4, true, TYPALIGN_INT));
	n = (int) CatalogExecute(&query, p.values, p.nulls, 0);
	*commands = MemoryContextAllocZero(context, sizeof(QueuedCommand) * (n + 1));
	for (int i = 0; i < n; i++)
	{
		QueuedCommand *command = &(*commands)[i];

		column_uuid(i, 1, &command->id);
		command->server = DatumGetObjectId(CatalogColumn(i, 2, &isnull));
		command->device = CatalogString(i, 3, context);
		command->mode = mode_from_name(CatalogString(i, 4, context));
		command->expires_at = column_time(i, 5);
		command->reply_within_ms = interval_ms(CatalogColumn(i, 6, &isnull));
		command->xid = DatumGetUInt64(CatalogColumn(i, 7, &isnull));
		command->seq = DatumGetInt64(CatalogColumn(i, 8, &isnull));
		command->foreign = DatumGetBool(CatalogColumn(i, 9, &isnull));
		command->place = (int) DatumGetInt64(CatalogColumn(i, 10, &isnull)) - 1;
	}
	return n;
}

bool
CatalogResolveCommand(const CommandResolution *resolution, CommandState *state)
{
	static CatalogQuery read = {
		.sql = "SELECT c.state, c.resolution = $2 AND c.resolved_by = $3 AND EXISTS (SELECT FROM hybridiot.command_event e"
		" WHERE e.command_id = c.id AND e.state IS NULL AND e.cause = $4) FROM hybridiot.command c WHERE c.id = $1",
		.nargs = 4,.argtypes = {UUIDOID, TEXTOID, NAMEOID, TEXTOID}
	};
	static CatalogQuery update = {
		.sql = "WITH resolved AS (UPDATE hybridiot.command SET resolution = $2, resolved_by = $3,"
		" resolved_at = pg_catalog.clock_timestamp() WHERE id = $1 RETURNING id, resolved_at)"
		" INSERT INTO hybridiot.command_event (command_id, at, cause) SELECT id, resolved_at, $4 FROM resolved",
		.nargs = 4,.argtypes = {UUIDOID, TEXTOID, NAMEOID, TEXTOID}
	};
	Parameters	p = {0};
	bool		isnull;

	Put(&p, UUIDPGetDatum(&resolution->id));
	PutText(&p, resolution->outcome);
	PutName(&p, resolution->role);
	PutText(&p, psprintf("resolved as %s by %s%s%s", resolution->outcome, resolution->role,
						  resolution->note ? ": " : "", resolution->note ? resolution->note : ""));
	if (CatalogExecute(&read, p.values, p.nulls, 1) != 1)
		return false;
	*state = state_from_name(CatalogString(0, 1, CurrentMemoryContext));
	if (CommandIsUncertain(*state) && !DatumGetBool(CatalogColumn(0, 2, &isnull)))
		CatalogExecute(&update, p.values, p.nulls, 0);
	return true;
}

CommandRequest *
CatalogClaimCommand(const pg_uuid_t *id, int64 epoch, TimestampTz answer_by, MemoryContext context)
{
	static CatalogQuery claim = {
		.sql = "UPDATE hybridiot.command_origin SET epoch = $2 WHERE command_id = $1 AND epoch IS NULL",
		.nargs = 2,.argtypes = {UUIDOID, INT8OID}
	};
	static CatalogQuery update = {
		.sql = "UPDATE hybridiot.command SET state = 'sending', answer_by = $2 WHERE id = $1 AND state = 'queued'"
		" RETURNING device, command, mode, payload, body, content_type, properties, priority, expires_at, queued_at",
		.nargs = 2,.argtypes = {UUIDOID, TIMESTAMPTZOID}
	};
	Datum		claim_values[] = {UUIDPGetDatum(id), Int64GetDatum(epoch)};
	Datum		update_values[] = {UUIDPGetDatum(id), TimestampTzGetDatum(answer_by)};
	CommandRequest *request;
	Datum		value;
	bool		isnull;

	if (CatalogExecute(&claim, claim_values, NULL, 0) != 1 ||
		CatalogExecute(&update, update_values, NULL, 0) != 1)
		return NULL;
	request = MemoryContextAllocZero(context, sizeof(CommandRequest));
	request->id = *id;
	request->device = CatalogString(0, 1, context);
	request->command = CatalogString(0, 2, context);
	request->mode = mode_from_name(CatalogString(0, 3, context));
	request->payload = column_varlena(0, 4, context);
	request->body = column_varlena(0, 5, context);
	request->content_type = CatalogString(0, 6, context);
	request->properties = column_varlena(0, 7, context);
	value = CatalogColumn(0, 8, &isnull);
	request->priority = isnull ? -1 : DatumGetInt32(value);
	request->expires_at = column_time(0, 9);
	request->queued_at = column_time(0, 10);
	return request;
}

void
CatalogUnclaim(const pg_uuid_t *ids, int n)
{
	static CatalogQuery query = {
		.sql = "UPDATE hybridiot.command_origin SET epoch = NULL WHERE command_id = ANY ($1)",
		.nargs = 1,.argtypes = {UUIDARRAYOID}
	};
	Datum		values[1];

	if (n == 0)
		return;
	values[0] = CatalogUuidArray(ids, n);
	CatalogExecute(&query, values, NULL, 0);
}

/* ---- a worker's beginning ---- */

int64
CatalogNextEpoch(void)
{
	static CatalogQuery query = {
		.sql = "SELECT pg_catalog.nextval('hybridiot.command_epoch')"
	};
	bool		isnull;

	CatalogExecute(&query, NULL, NULL, 0);
	return DatumGetInt64(CatalogColumn(0, 1, &isnull));
}

int
CatalogForgetHistory(int64 epoch, bool all)
{
	static CatalogQuery by_origin = {
		.sql = "WITH gone AS MATERIALIZED ("
		" SELECT o.command_id, " ELSEWHERE " AS copied"
		" FROM hybridiot.command_origin o LEFT JOIN hybridiot.command c ON c.id = o.command_id"
		" WHERE " ELSEWHERE " OR (o.epoch <> $5 AND c.state IN ('sending', 'sent')) OR c.id IS NULL),"
		" forget AS (DELETE FROM hybridiot.command_origin o USING gone g WHERE o.command_id = g.command_id),"
		" doubt AS (UPDATE hybridiot.command c SET state = 'in_doubt' FROM gone g WHERE c.id = g.command_id"
		" AND (c.state IN ('queued', 'sending', 'sent') OR (c.state = 'accepted' AND c.reply_within > '0'))"
		" RETURNING c.id, g.copied)"
		" INSERT INTO hybridiot.command_event (command_id, at, state, cause)"
		" SELECT id, pg_catalog.clock_timestamp(), 'in_doubt', CASE WHEN copied THEN 'this database is a copy, or was promoted'"
		" ELSE 'the worker ended while it was on its way' END FROM doubt",
		.nargs = IDENTITY_ARGS + 1,.argtypes = {IDENTITY_TYPES, INT8OID}
	};
	static CatalogQuery without_origin = {
		.sql = "WITH doubt AS (UPDATE hybridiot.command c SET state = 'in_doubt'"
		" WHERE (c.state IN ('queued', 'sending', 'sent') OR (c.state = 'accepted' AND c.reply_within > '0'))"
		" AND NOT EXISTS (SELECT FROM hybridiot.command_origin o WHERE o.command_id = c.id) RETURNING c.id)"
		" INSERT INTO hybridiot.command_event (command_id, at, state, cause)"
		" SELECT id, pg_catalog.clock_timestamp(), 'in_doubt', 'it was restored from a dump' FROM doubt"
	};
	Parameters	p = {0};
	int			n;

	put_identity(&p);
	Put(&p, Int64GetDatum(epoch));
	n = (int) CatalogExecute(&by_origin, p.values, p.nulls, 0);
	if (all)
		n += (int) CatalogExecute(&without_origin, NULL, NULL, 0);
	return n;
}

int
CatalogAdoptAccepted(int64 epoch, OpenCommand **commands, MemoryContext context)
{
	static CatalogQuery query = {
		.sql = "UPDATE hybridiot.command_origin o SET epoch = $1 FROM hybridiot.command c"
		" WHERE c.id = o.command_id AND c.state = 'accepted' AND o.epoch <> $1"
		" RETURNING o.command_id, o.server, c.device, c.mode, c.answer_by",
		.nargs = 1,.argtypes = {INT8OID}
	};
	Datum		values[] = {Int64GetDatum(epoch)};
	bool		isnull;
	int			n = (int) CatalogExecute(&query, values, NULL, 0);

	*commands = MemoryContextAllocZero(context, sizeof(OpenCommand) * (n + 1));
	for (int i = 0; i < n; i++)
	{
		OpenCommand *command = &(*commands)[i];

		column_uuid(i, 1, &command->id);
		command->server = DatumGetObjectId(CatalogColumn(i, 2, &isnull));
		command->device = CatalogString(i, 3, context);
		command->mode = mode_from_name(CatalogString(i, 4, context));
		command->answer_by = column_time(i, 5);
	}
	return n;
}

void
CatalogReplyId(Oid server, pg_uuid_t *id)
{
	static CatalogQuery query = {
		.sql = "INSERT INTO hybridiot.reply_address AS o (server, system_id, timeline, database, instance)"
		" VALUES ($5, $1, $2, $3, $4) ON CONFLICT (server) DO UPDATE SET system_id = $1, timeline = $2, database = $3,"
		" instance = $4, reply_id = CASE WHEN " ELSEWHERE " THEN pg_catalog.gen_random_uuid() ELSE o.reply_id END"
		" RETURNING reply_id",
		.nargs = IDENTITY_ARGS + 1,.argtypes = {IDENTITY_TYPES, OIDOID}
	};
	Parameters	p = {0};

	put_identity(&p);
	Put(&p, ObjectIdGetDatum(server));
	CatalogExecute(&query, p.values, p.nulls, 0);
	column_uuid(0, 1, id);
}

Oid
CatalogJournal(void)
{
	return get_relname_relid("command", get_namespace_oid(HYBRIDIOT_SCHEMA, true));
}

int
CatalogServers(const char *wrapper, Oid **servers, MemoryContext context)
{
	static CatalogQuery query = {
		.sql = "SELECT s.oid FROM pg_catalog.pg_foreign_server s JOIN pg_catalog.pg_foreign_data_wrapper w"
		" ON w.oid = s.srvfdw WHERE w.fdwname = $1 ORDER BY s.oid",
		.nargs = 1,.argtypes = {NAMEOID}
	};
	Parameters	p = {0};
	bool		isnull;
	int			n;

	PutName(&p, wrapper);
	n = (int) CatalogExecute(&query, p.values, p.nulls, 0);
	*servers = MemoryContextAlloc(context, sizeof(Oid) * (n + 1));
	for (int i = 0; i < n; i++)
		(*servers)[i] = DatumGetObjectId(CatalogColumn(i, 1, &isnull));
	return n;
}

int
CatalogRemoveCommands(TimestampTz before, int limit)
{
	static CatalogQuery query = {
		.sql = "WITH old AS (DELETE FROM hybridiot.command WHERE id IN ("
		" SELECT c.id FROM hybridiot.command c WHERE c.queued_at < $1"
		" AND NOT EXISTS (SELECT FROM hybridiot.command_origin o WHERE o.command_id = c.id) LIMIT $2)"
		" RETURNING id), events AS (DELETE FROM hybridiot.command_event e USING old WHERE e.command_id = old.id),"
		" unknown AS (DELETE FROM hybridiot.command_event e WHERE e.at < $1 AND (e.command_id IS NULL"
		" OR NOT EXISTS (SELECT FROM hybridiot.command c WHERE c.id = e.command_id))),"
		" replies AS (DELETE FROM hybridiot.command_reply r USING old WHERE r.command_id = old.id)"
		" SELECT 1 FROM old",
		.nargs = 2,.argtypes = {TIMESTAMPTZOID, INT4OID}
	};
	Datum		values[] = {TimestampTzGetDatum(before), Int32GetDatum(limit)};

	return (int) CatalogExecute(&query, values, NULL, 0);
}
