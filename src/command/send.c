/*
 * send.c
 *		A command enters the journal: send_command(), and INSERT into hybridiot.command.
 *
 * Both do the same: check in the sender's session and with his rights, write the
 * row as the extension's owner, note its origin (which puts it into the worker's
 * queue), and wake the worker at COMMIT. ROLLBACK leaves no trace.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "commands/trigger.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/rel.h"
#include "utils/uuid.h"

#include "command/request.h"
#include "core/catalog_origin.h"
#include "core/options.h"
#include "core/shmem.h"
#include "core/worker.h"

/* Columns of hybridiot.command. */
enum
{
	COLUMN_ID = 1,
	COLUMN_DEVICE,
	COLUMN_COMMAND,
	COLUMN_SENDER,
	COLUMN_SERVER,
	COLUMN_MODE,
	COLUMN_STATE,
	COLUMN_ACCEPTED_BY,
	COLUMN_PAYLOAD,
	COLUMN_BODY,
	COLUMN_CONTENT_TYPE,
	COLUMN_PROPERTIES,
	COLUMN_PRIORITY,
	COLUMN_TTL,
	COLUMN_REPLY_WITHIN,
	COLUMN_QUEUED_AT,
	COLUMN_SENT_AT,
	COLUMN_ACCEPTED_AT,
	COLUMN_REPLIED_AT,
	COLUMN_EXPIRES_AT,
	COLUMN_ANSWER_BY,
	COLUMN_STATUS,
	COLUMN_RESULT,
	COLUMN_RESULT_BODY,
	COLUMN_CONDITION,
	COLUMN_DESCRIPTION,
	COLUMN_RESOLUTION,
	COLUMN_RESOLVED_BY,
	COLUMN_RESOLVED_AT,
	COLUMN_IDEMPOTENCY_KEY,
	NCOLUMNS = COLUMN_IDEMPOTENCY_KEY
};

/* Has the sender asked for this before? Raises 23505 if he asked for something else with that key. */
static bool
find_before(const CommandRequest *request, pg_uuid_t *id)
{
	bool		same;

	if (request->idempotency_key == NULL || !CatalogFindIdempotent(request, id, &same))
		return false;
	if (!same)
		ereport(ERROR,
				(errcode(ERRCODE_UNIQUE_VIOLATION),
				 errmsg("idempotency key \"%s\" was used for another command", request->idempotency_key),
				 errdetail("Device \"%s\" on server \"%s\" was sent other arguments with it.",
						   request->device, request->server_name)));
	return true;
}

/*
 * A pipeline that sends is one that commands, though its statement may not show it: that is known no later than
 * its first command. Rolled back, both are; so each subtransaction looks for itself.
 */
static void
note_pipeline(void)
{
	static FullTransactionId seen_in = {0};
	static SubTransactionId seen_in_sub = InvalidSubTransactionId;
	FullTransactionId xid;

	if (!InPipeline || MyWorkerSlot == NULL)
		return;
	xid = GetTopFullTransactionId();
	if (FullTransactionIdEquals(xid, seen_in) && seen_in_sub == GetCurrentSubTransactionId())
		return;
	CatalogSetCommanding(MyWorkerSlot->object, true);
	seen_in = xid;
	seen_in_sub = GetCurrentSubTransactionId();
}

/* Into the worker's queue; the row itself is written by the caller, or by the statement that fired us. */
static void
enqueue(const CommandRequest *request)
{
	NewCommand	command = {request, COMMAND_QUEUED, 0};
	CommandEvent event = {true, request->id, request->queued_at, CommandStateName(COMMAND_QUEUED), NULL};

	note_pipeline();
	CatalogInsertOrigins(&command, 1, 0);
	CatalogInsertEvents(&event, 1);
	WakeAtCommit(WAKE_COMMAND);
}

static void
admit(CommandRequest *request)
{
	CatalogScope scope;
	pg_uuid_t	before;

	CatalogEnter(&scope);
	if (find_before(request, &before))
		request->id = before;
	else if (CatalogInsertCommand(request, COMMAND_QUEUED, 0))
		enqueue(request);
	else if (find_before(request, &before))
		request->id = before;	/* somebody was faster */
	else
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("could not decide about idempotency key \"%s\" due to concurrent update",
						request->idempotency_key)));
	CatalogLeave(&scope);
}

PG_FUNCTION_INFO_V1(hybridiot_send_command);

Datum
hybridiot_send_command(PG_FUNCTION_ARGS)
{
	CommandArguments arguments = {0};
	CommandRequest *request;
	pg_uuid_t  *id;

	if (!PG_ARGISNULL(0))
		arguments.device = text_to_cstring(PG_GETARG_TEXT_PP(0));
	if (!PG_ARGISNULL(1))
		arguments.command = text_to_cstring(PG_GETARG_TEXT_PP(1));
	if (!PG_ARGISNULL(2))
		arguments.payload = PG_GETARG_JSONB_P(2);
	ArgumentsFromCall(fcinfo, 3, &arguments);

	request = RequestCheck(&arguments, "send_command()");
	admit(request);
	id = palloc(sizeof(pg_uuid_t));
	*id = request->id;
	PG_RETURN_UUID_P(id);
}

/* ---- INSERT into the journal ---- */

#define VALUE(column, convert) (nulls[(column) - 1] ? NULL : convert(values[(column) - 1]))

static void
arguments_from_row(const Datum *values, const bool *nulls, CommandArguments *arguments)
{
	arguments->device = VALUE(COLUMN_DEVICE, TextDatumGetCString);
	arguments->command = VALUE(COLUMN_COMMAND, TextDatumGetCString);
	arguments->payload = VALUE(COLUMN_PAYLOAD, DatumGetJsonbP);
	arguments->ttl = VALUE(COLUMN_TTL, DatumGetIntervalP);
	arguments->reply_within = VALUE(COLUMN_REPLY_WITHIN, DatumGetIntervalP);
	arguments->server = VALUE(COLUMN_SERVER, DatumGetCString);	/* a name begins like a string */
	arguments->mode = VALUE(COLUMN_MODE, TextDatumGetCString);
	arguments->body = VALUE(COLUMN_BODY, DatumGetByteaP);
	arguments->content_type = VALUE(COLUMN_CONTENT_TYPE, TextDatumGetCString);
	arguments->properties = VALUE(COLUMN_PROPERTIES, DatumGetJsonbP);
	arguments->has_priority = !nulls[COLUMN_PRIORITY - 1];
	if (arguments->has_priority)
		arguments->priority = DatumGetInt32(values[COLUMN_PRIORITY - 1]);
	arguments->idempotency_key = VALUE(COLUMN_IDEMPOTENCY_KEY, TextDatumGetCString);
}

/* The row as send_command() would have written it. */
static HeapTuple
row_from_request(const CommandRequest *request, TupleDesc tupdesc, Datum *values, bool *nulls)
{
#define SET(column, value) (values[(column) - 1] = (value), nulls[(column) - 1] = false)
	static const int decided_later[] = {
		COLUMN_ACCEPTED_BY, COLUMN_SENT_AT, COLUMN_ACCEPTED_AT, COLUMN_REPLIED_AT, COLUMN_ANSWER_BY,
		COLUMN_STATUS, COLUMN_RESULT, COLUMN_RESULT_BODY, COLUMN_CONDITION, COLUMN_DESCRIPTION,
		COLUMN_RESOLUTION, COLUMN_RESOLVED_BY, COLUMN_RESOLVED_AT
	};

	for (int i = 0; i < lengthof(decided_later); i++)
		nulls[decided_later[i] - 1] = true;
	SET(COLUMN_ID, UUIDPGetDatum(&request->id));
	SET(COLUMN_SENDER, DirectFunctionCall1(namein, CStringGetDatum(request->sender)));
	SET(COLUMN_SERVER, DirectFunctionCall1(namein, CStringGetDatum(request->server_name)));
	SET(COLUMN_MODE, CStringGetTextDatum(CommandModeName(request->mode)));
	SET(COLUMN_STATE, CStringGetTextDatum(CommandStateName(COMMAND_QUEUED)));
	SET(COLUMN_TTL, IntervalPGetDatum(IntervalFromMs(request->ttl_ms)));
	SET(COLUMN_REPLY_WITHIN, IntervalPGetDatum(IntervalFromMs(request->reply_within_ms)));
	SET(COLUMN_QUEUED_AT, TimestampTzGetDatum(request->queued_at));
	SET(COLUMN_EXPIRES_AT, TimestampTzGetDatum(request->expires_at));
	return heap_form_tuple(tupdesc, values, nulls);
#undef SET
}

/* Whatever else may be said of a state: can the command still leave, or be answered in time? */
static bool
is_final(const char *state)
{
	static const CommandState open_states[] = {
		COMMAND_QUEUED, COMMAND_SENDING, COMMAND_SENT, COMMAND_ACCEPTED
	};

	for (int i = 0; i < lengthof(open_states); i++)
		if (strcmp(CommandStateName(open_states[i]), state) == 0)
			return false;
	return true;
}

PG_FUNCTION_INFO_V1(hybridiot_command_insert);

/*
 * BEFORE INSERT trigger of hybridiot.command. A row that brings its id, which only the
 * extension's owner may give, is being restored and taken as it is; if it was not final it
 * comes from nowhere the worker knows, and ends in doubt.
 */
Datum
hybridiot_command_insert(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	HeapTuple	tuple;
	TupleDesc	tupdesc;
	Datum		values[NCOLUMNS];
	bool		nulls[NCOLUMNS];
	CommandArguments arguments = {0};
	CommandRequest *request;
	CatalogScope scope;
	pg_uuid_t	before;
	bool		known;

	if (!CALLED_AS_TRIGGER(fcinfo) || !TRIGGER_FIRED_BEFORE(trigger->tg_event) ||
		!TRIGGER_FIRED_BY_INSERT(trigger->tg_event) || !TRIGGER_FIRED_FOR_ROW(trigger->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("command_insert() is the trigger of hybridiot.command")));
	tuple = trigger->tg_trigtuple;
	if (CatalogInsertingCommand)
		return PointerGetDatum(tuple);

	tupdesc = RelationGetDescr(trigger->tg_relation);
	Assert(tupdesc->natts == NCOLUMNS);
	heap_deform_tuple(tuple, tupdesc, values, nulls);

	if (!nulls[COLUMN_ID - 1])
	{
		const char *state = VALUE(COLUMN_STATE, TextDatumGetCString);

		CommandCheckWords(VALUE(COLUMN_MODE, TextDatumGetCString), state,
						  VALUE(COLUMN_ACCEPTED_BY, TextDatumGetCString));
		if (state && !is_final(state))
		{
			CatalogEnter(&scope);
			CatalogInsertForeignOrigin(DatumGetUUIDP(values[COLUMN_ID - 1]));
			CatalogLeave(&scope);
			WakeAtCommit(WAKE_COMMAND);
		}
		return PointerGetDatum(tuple);
	}

	arguments_from_row(values, nulls, &arguments);
	request = RequestCheck(&arguments, "INSERT into hybridiot.command");
	CatalogEnter(&scope);
	known = find_before(request, &before);
	if (!known)
		enqueue(request);
	CatalogLeave(&scope);
	return PointerGetDatum(known ? NULL : row_from_request(request, tupdesc, values, nulls));
}
