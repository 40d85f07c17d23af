/*
 * call.c
 *		The session's side of synchronous calls: call_device(), call_devices(),
 *		cancel_command(), resolve_command() through shared slots; wait_command(s)() on the journal.
 *
 * The session checks, hands over and waits on its latch, so that cancel and
 * terminate work at once. What it handed over goes on without it: a call is not
 * undone by ROLLBACK, and its result can be found by id.
 */
#include "postgres.h"

#include <limits.h>

#include "catalog/pg_foreign_server.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "foreign/foreign.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/proc.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/uuid.h"

#include "command/grant.h"
#include "command/request.h"
#include "core/callslot.h"
#include "core/clock.h"
#include "core/compat.h"
#include "core/options.h"
#include "core/shmem.h"

/* How long a worker may need to come by. */
#define PICK_UP_MS 5000
/* How much later than the worker's our own deadline is. */
#define GRACE_MS 5000
/* A sleeper looks again after this long even if nobody wakes him. */
#define LOOK_AGAIN_MS 5000
/* How long a lock on the journal may be in the way, unless the session's own lock_timeout is shorter. */
#define LOCK_WAIT "5s"

/* ---- results ---- */

#define RESULT_COLUMNS 13

static void
result_values(const pg_uuid_t *id, const char *device, const char *command,
			  const CommandResult *result, Datum *values, bool *nulls)
{
	int			n = 0;

#define PUT(present, value) \
	do { nulls[n] = !(present); values[n] = nulls[n] ? (Datum) 0 : (value); n++; } while (0)
#define PUT_TEXT(s) PUT((s) != NULL, CStringGetTextDatum(s))
	PUT(true, UUIDPGetDatum(id));
	PUT_TEXT(device);
	PUT_TEXT(command);
	PUT_TEXT(CommandStateName(result->state));
	PUT_TEXT(AcceptedByName(result->accepted_by));
	PUT(result->has_status, Int32GetDatum(result->status));
	PUT_TEXT(result->content_type);
	PUT(result->payload != NULL, JsonbPGetDatum(result->payload));
	PUT(result->body != NULL, PointerGetDatum(result->body));
	PUT_TEXT(result->condition);
	PUT_TEXT(result->description);
	PUT(result->sent_at != 0, TimestampTzGetDatum(result->sent_at));
	PUT(result->replied_at != 0, TimestampTzGetDatum(result->replied_at));
	Assert(n == RESULT_COLUMNS);
#undef PUT_TEXT
#undef PUT
}

static Datum
result_datum(FunctionCallInfo fcinfo, const pg_uuid_t *id, const char *device, const char *command,
			 const CommandResult *result)
{
	TupleDesc	tupdesc;
	Datum		values[RESULT_COLUMNS];
	bool		nulls[RESULT_COLUMNS];

	if (get_call_result_type(fcinfo, NULL, &tupdesc) != TYPEFUNC_COMPOSITE)
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR), errmsg("return type must be a row type")));
	tupdesc = BlessTupleDesc(tupdesc);
	result_values(id, device, command, result, values, nulls);
	return HeapTupleGetDatum(heap_form_tuple(tupdesc, values, nulls));
}

static void
result_put(FunctionCallInfo fcinfo, const pg_uuid_t *id, const char *device, const char *command,
		   const CommandResult *result)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	Datum		values[RESULT_COLUMNS];
	bool		nulls[RESULT_COLUMNS];

	result_values(id, device, command, result, values, nulls);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

static CommandRow *
read_row(const pg_uuid_t *id)
{
	CatalogScope scope;
	MemoryContext context = CurrentMemoryContext;
	CommandRow *row;

	CatalogEnter(&scope);
	if (LockTimeout == 0 || LockTimeout > GRACE_MS)
		(void) set_config_option("lock_timeout", LOCK_WAIT, PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_SAVE, true, 0, false);
	row = CatalogReadCommand(id, context);
	CatalogLeave(&scope);
	return row;
}

/* ---- calls ---- */

static void
refuse_without_worker(void)
{
	char		reason[HYBRIDIOT_REASON_LEN] = "";
	WorkerSlot *slot;

	LWLockAcquire(Shared->lock, LW_SHARED);
	slot = SlotFind(WORKER_AMQP, MyDatabaseId, 0, 0);
	if (slot && slot->state == WORKER_WAITING)
		strlcpy(reason, slot->reason, sizeof(reason));
	LWLockRelease(Shared->lock);
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("no AMQP worker serves this database"),
			 reason[0] ? errdetail("It waits: %s.", reason) : 0,
			 errhint("See hybridiot.stat_worker, hybridiot.enabled and the server's log.")));
}

/*
 * Wait until the worker has answered. Afterwards the slot is DONE, or LOST, or our own deadline
 * has passed; everything else was raised.
 */
static CallState
wait_for_answer(CallSlot *slot, int64 timeout_ms)
{
	CallState	state = CallWait(slot, PICK_UP_MS);

	if (state == CALL_REQUESTED)
	{
		CallEnd(slot);
		refuse_without_worker();
	}
	if (state == CALL_TAKEN)
		state = CallWait(slot, (long) Min(timeout_ms, LONG_MAX));
	if (state == CALL_FAILED)
	{
		char	   *message;
		int			sqlstate = CallError(slot, &message);

		CallEnd(slot);
		ereport(ERROR, (errcode(sqlstate), errmsg("%s", message)));
	}
	return state;
}

/* The answer of a worker that did not answer: what the journal says. */
static void
result_from_journal(const pg_uuid_t *id, CommandResult *result)
{
	CommandRow *row = read_row(id);

	if (row == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the AMQP worker ended before it took the call"),
				 errhint("Nothing was sent. Try again.")));
	*result = row->result;
	if (result->state == COMMAND_SENDING || result->state == COMMAND_SENT)
	{
		result->state = COMMAND_IN_DOUBT;
		result->description = "the AMQP worker ended or does not answer";
	}
}

static int64
longest_wait(const CommandRequest *request)
{
	return request->ttl_ms + GRACE_MS +
		(request->reply_within_ms > 0 ? request->reply_within_ms : request->ttl_ms);
}

/* Send n commands through one slot and wait for all; results are palloc'd. */
static CommandResult *
call(CommandRequest **requests, int n)
{
	CommandResult *results = palloc0(sizeof(CommandResult) * n);
	int64		longest = 0;
	StringInfoData packed;
	CallSlot   *slot;
	CallState	state;

	PreventCommandDuringRecovery("call_device()");
	if (!hybridiot_enabled)
		refuse_without_worker();
	initStringInfo(&packed);
	for (int i = 0; i < n; i++)
	{
		RequestPack(&packed, requests[i]);
		longest = Max(longest, longest_wait(requests[i]));
	}
	slot = CallBegin(CALL_SEND, GetUserId(), packed.data, packed.len, n);
	state = wait_for_answer(slot, longest);
	for (int i = 0; i < n; i++)
	{
		Size		len;
		const char *answer = state == CALL_DONE || state == CALL_LOST ? CallAnswer(slot, i, &len) : NULL;

		if (answer)
		{
			ResultUnpack(answer, &results[i]);
			memcpy(&requests[i]->id, answer + len - UUID_LEN, UUID_LEN);
		}
		else
			result_from_journal(&requests[i]->id, &results[i]);
	}
	CallEnd(slot);
	return results;
}

PG_FUNCTION_INFO_V1(hybridiot_call_device);

Datum
hybridiot_call_device(PG_FUNCTION_ARGS)
{
	CommandArguments arguments = {0};
	CommandRequest *request;
	CommandResult *result;

	RefuseInPipeline("call_device()");
	if (!PG_ARGISNULL(0))
		arguments.device = text_to_cstring(PG_GETARG_TEXT_PP(0));
	if (!PG_ARGISNULL(1))
		arguments.command = text_to_cstring(PG_GETARG_TEXT_PP(1));
	if (!PG_ARGISNULL(2))
		arguments.payload = PG_GETARG_JSONB_P(2);
	ArgumentsFromCall(fcinfo, 3, &arguments);

	request = RequestCheck(&arguments, "call_device()");
	result = call(&request, 1);
	PG_RETURN_DATUM(result_datum(fcinfo, &request->id, request->device, request->command, result));
}

/* The payload of each device: from payloads, which then must be as many, or the common one. */
static void
check_payloads(int ndevices, bool common, bool each, int npayloads)
{
	if (common && each)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("payload and payloads exclude each other")));
	if (each && npayloads != ndevices)
		ereport(ERROR,
				(errcode(ERRCODE_ARRAY_SUBSCRIPT_ERROR),
				 errmsg("there are %d payloads for %d devices", npayloads, ndevices)));
}

PG_FUNCTION_INFO_V1(hybridiot_call_devices);

Datum
hybridiot_call_devices(PG_FUNCTION_ARGS)
{
	CommandArguments arguments = {0};
	CommandRequest **requests;
	CommandResult *results;
	Datum	   *devices;
	bool	   *device_nulls;
	int			n;
	Datum	   *payloads = NULL;
	bool	   *payload_nulls = NULL;
	int			npayloads = 0;

	RefuseInPipeline("call_devices()");
	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED), errmsg("devices must not be null")));
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(0), TEXTOID, -1, false, TYPALIGN_INT,
					  &devices, &device_nulls, &n);
	if (!PG_ARGISNULL(3))
		deconstruct_array(PG_GETARG_ARRAYTYPE_P(3), JSONBOID, -1, false, TYPALIGN_INT,
						  &payloads, &payload_nulls, &npayloads);
	check_payloads(n, !PG_ARGISNULL(2), !PG_ARGISNULL(3), npayloads);
	InitMaterializedSRF(fcinfo, 0);
	if (n == 0)
		return (Datum) 0;

	if (!PG_ARGISNULL(1))
		arguments.command = text_to_cstring(PG_GETARG_TEXT_PP(1));
	if (!PG_ARGISNULL(2))
		arguments.payload = PG_GETARG_JSONB_P(2);
	ArgumentsFromCall(fcinfo, 4, &arguments);

	requests = palloc(sizeof(CommandRequest *) * n);
	for (int i = 0; i < n; i++)
	{
		arguments.device = device_nulls[i] ? NULL : TextDatumGetCString(devices[i]);
		if (payloads)
			arguments.payload = payload_nulls[i] ? NULL : DatumGetJsonbP(payloads[i]);
		requests[i] = RequestCheck(&arguments, "call_devices()");
	}
	results = call(requests, n);
	for (int i = 0; i < n; i++)
		result_put(fcinfo, &requests[i]->id, requests[i]->device, requests[i]->command, &results[i]);
	return (Datum) 0;
}

/* ---- waiting for what was queued ---- */

static bool
role_sees(const char *sender)
{
	Oid			role = get_role_oid(sender, true);

	return OidIsValid(role) ? is_member_of_role(GetUserId(), role) : superuser();
}

/* The row, if the current user may see it and act through its server. */
static CommandRow *
read_own_row(const pg_uuid_t *id)
{
	CommandRow *row = read_row(id);
	ForeignServer *server;

	if (row == NULL || !role_sees(row->sender))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("command \"%s\" does not exist", UuidText(id))));
	server = GetForeignServerByName(row->server_name, true);
	if (server)
	{
		AclResult	acl = object_aclcheck(ForeignServerRelationId, server->serverid, GetUserId(), ACL_USAGE);

		if (acl != ACLCHECK_OK)
			aclcheck_error(acl, OBJECT_FOREIGN_SERVER, server->servername);
		GrantCheck(server, row->device);
	}
	return row;
}

static void
refuse_own(const CommandRow *row, const char *what, const char *hint)
{
	if (row->own && row->result.state == COMMAND_QUEUED)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("%s cannot be used in the transaction that queued the command", what),
				 errdetail("A command leaves when its transaction commits."),
				 errhint("%s", hint)));
}

/* Sleep until the command is settled or the (monotonic) time is there; the row as it is then. */
static CommandRow *
wait_for(const pg_uuid_t *id, int64 until, const char *what)
{
	for (;;)
	{
		CommandRow *row;
		int64		left;

		CommandSleepBegin(id);
		row = read_own_row(id);
		refuse_own(row, what, "Commit first, then wait.");
		left = until - ClockMonotonicMs();
		if (CommandIsSettled(row->result.state, row->one_way) || left <= 0)
		{
			CommandSleepEnd();
			return row;
		}
		(void) CommandSleep(id, (long) Min(left, LOOK_AGAIN_MS));
		CHECK_FOR_INTERRUPTS();
	}
}

static int64
wait_until(FunctionCallInfo fcinfo, const char *what)
{
	int64		timeout_us;

	RefuseInPipeline(what);
	ShmemRequire(what);
	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED), errmsg("id must not be null")));
	if (PG_ARGISNULL(1))
		return PG_INT64_MAX;
	timeout_us = IntervalToUs("timeout", PG_GETARG_INTERVAL_P(1));
	if (timeout_us < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("timeout must not be negative")));
	return ClockMonotonicMs() + timeout_us / 1000;
}

PG_FUNCTION_INFO_V1(hybridiot_wait_command);

Datum
hybridiot_wait_command(PG_FUNCTION_ARGS)
{
	int64		until = wait_until(fcinfo, "wait_command()");
	CommandRow *row = wait_for(PG_GETARG_UUID_P(0), until, "wait_command()");

	PG_RETURN_DATUM(result_datum(fcinfo, &row->id, row->device, row->command, &row->result));
}

PG_FUNCTION_INFO_V1(hybridiot_wait_commands);

Datum
hybridiot_wait_commands(PG_FUNCTION_ARGS)
{
	int64		until = wait_until(fcinfo, "wait_commands()");
	Datum	   *ids;
	bool	   *nulls;
	int			n;

	deconstruct_array(PG_GETARG_ARRAYTYPE_P(0), UUIDOID, UUID_LEN, false, TYPALIGN_CHAR,
					  &ids, &nulls, &n);
	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < n; i++)
	{
		CommandRow *row;

		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED), errmsg("id must not be null")));
		row = wait_for(DatumGetUUIDP(ids[i]), until, "wait_commands()");
		result_put(fcinfo, &row->id, row->device, row->command, &row->result);
	}
	return (Datum) 0;
}

/* ---- cancel, resolve ---- */

/*
 * A request to the worker, which alone changes the journal and knows what can still leave. It takes
 * effect at once, whatever becomes of the caller's transaction. Returns the answer, palloc'd.
 */
static char *
ask_worker(CallKind kind, const char *request, Size len)
{
	CallSlot   *slot;
	CallState	state;
	Size		answer_len;
	const char *answer;
	char	   *result = NULL;

	if (!hybridiot_enabled)
		refuse_without_worker();
	slot = CallBegin(kind, GetUserId(), request, len, 1);
	state = wait_for_answer(slot, GRACE_MS);
	answer = state == CALL_DONE ? CallAnswer(slot, 0, &answer_len) : NULL;
	if (answer)
		result = pnstrdup(answer, answer_len);
	CallEnd(slot);
	if (state == CALL_TAKEN)
		ereport(ERROR,
				(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
				 errmsg("the AMQP worker has not answered in time"),
				 errdetail("It could not write the journal of commands, and goes on trying."),
				 errhint("See pg_locks for locks on hybridiot.command, and the server's log.")));
	if (result == NULL)
		refuse_without_worker();
	return result;
}

PG_FUNCTION_INFO_V1(hybridiot_cancel_command);

Datum
hybridiot_cancel_command(PG_FUNCTION_ARGS)
{
	pg_uuid_t  *id = PG_GETARG_UUID_P(0);
	CommandRow *row;
	const char *answer;

	RefuseInPipeline("cancel_command()");
	ShmemRequire("cancel_command()");
	row = read_own_row(id);
	refuse_own(row, "cancel_command()", "ROLLBACK, and it was never queued.");
	if (row->result.state == COMMAND_CANCELLED)
		PG_RETURN_TEXT_P(cstring_to_text("cancelled"));
	/* What a broker stored it may give back. */
	if (row->result.state != COMMAND_QUEUED &&
		(row->mode != MODE_STORE ||
		 (row->result.state != COMMAND_ACCEPTED && row->result.state != COMMAND_IN_DOUBT)))
		PG_RETURN_TEXT_P(cstring_to_text("too_late"));
	answer = ask_worker(CALL_CANCEL, (const char *) id->data, UUID_LEN);

	/* Somebody else may have been faster. */
	if (read_own_row(id)->result.state == COMMAND_CANCELLED)
		answer = "cancelled";
	PG_RETURN_TEXT_P(cstring_to_text(answer));
}

/* id, outcome and note of resolve_command(). */
static CommandResolution
resolution_arguments(FunctionCallInfo fcinfo)
{
	CommandResolution resolution = {0};

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s must not be null", PG_ARGISNULL(0) ? "id" : "outcome")));
	resolution.id = *PG_GETARG_UUID_P(0);
	resolution.outcome = text_to_cstring(PG_GETARG_TEXT_PP(1));
	if (strcmp(resolution.outcome, "executed") != 0 && strcmp(resolution.outcome, "not_executed") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid outcome \"%s\"", resolution.outcome),
				 errhint("Valid outcomes are \"executed\" and \"not_executed\".")));
	if (!PG_ARGISNULL(2))
		resolution.note = text_to_cstring(PG_GETARG_TEXT_PP(2));
	RequestCheckWord("note", resolution.note, false, MAX_NAME);
	resolution.role = GetUserNameFromId(GetUserId(), false);
	return resolution;
}

PG_FUNCTION_INFO_V1(hybridiot_resolve_command);

Datum
hybridiot_resolve_command(PG_FUNCTION_ARGS)
{
	CommandResolution resolution;
	CommandRow *row;
	StringInfoData packed;

	RefuseInPipeline("resolve_command()");
	ShmemRequire("resolve_command()");
	resolution = resolution_arguments(fcinfo);
	row = read_own_row(&resolution.id);
	refuse_own(row, "resolve_command()", "ROLLBACK, and it was never queued.");
	if (!CommandIsUncertain(row->result.state))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("command \"%s\" is in state \"%s\"", UuidText(&row->id), CommandStateName(row->result.state)),
				 errdetail("Only what is in doubt or has timed out can be resolved."),
				 CommandIsSettled(row->result.state, row->one_way) ? 0 :
				 errhint("Wait for it with wait_command(), or cancel it.")));
	initStringInfo(&packed);
	ResolutionPack(&packed, &resolution);
	(void) ask_worker(CALL_RESOLVE, packed.data, packed.len);
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(hybridiot_role_sees);

/* Does the current user see commands of this sender? For policies; never raises. */
Datum
hybridiot_role_sees(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(role_sees(NameStr(*PG_GETARG_NAME(0))));
}
