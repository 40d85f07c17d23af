/*
 * request.c
 *		A command as its sender asks for it: checks, defaults, flat form.
 *
 * Every entry point (send_command, call_device, call_devices, INSERT into the
 * journal) comes through RequestCheck(), in the sender's own session and with
 * his rights; the worker asks nothing any more.
 */
#include "postgres.h"

#include "catalog/pg_foreign_server.h"
#include "foreign/foreign.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/numeric.h"

#include "command/grant.h"
#include "command/request.h"
#include "core/compat.h"
#include "core/options.h"
#include "core/shmem.h"
#include "core/worker.h"

#define MAX_WORD 255			/* bytes of a content type, a key */
#define MAX_PRIORITY 9
#define MAX_TTL_MS INT64CONST(0xffffffff)	/* AMQP's ttl is an uint of milliseconds */

char *
UuidText(const pg_uuid_t *id)
{
	return DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(id)));
}

void
RefuseInPipeline(const char *what)
{
	if (InPipeline)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("%s cannot be used in a pipeline", what),
				 errdetail("A batch may run twice, a call may not."),
				 errhint("Use send_command(); all else is done in a session.")));
}

void
ArgumentsFromCall(FunctionCallInfo fcinfo, int first, CommandArguments *arguments)
{
#define GIVEN(i) (!PG_ARGISNULL(first + (i)))
	if (GIVEN(0))
		arguments->ttl = PG_GETARG_INTERVAL_P(first);
	if (GIVEN(1))
		arguments->reply_within = PG_GETARG_INTERVAL_P(first + 1);
	if (GIVEN(2))
		arguments->server = NameStr(*PG_GETARG_NAME(first + 2));
	if (GIVEN(3))
		arguments->mode = text_to_cstring(PG_GETARG_TEXT_PP(first + 3));
	if (GIVEN(4))
		arguments->body = PG_GETARG_BYTEA_P(first + 4);
	if (GIVEN(5))
		arguments->content_type = text_to_cstring(PG_GETARG_TEXT_PP(first + 5));
	if (GIVEN(6))
		arguments->properties = PG_GETARG_JSONB_P(first + 6);
	if ((arguments->has_priority = GIVEN(7)))
		arguments->priority = PG_GETARG_INT32(first + 7);
	if (GIVEN(8))
		arguments->idempotency_key = text_to_cstring(PG_GETARG_TEXT_PP(first + 8));
#undef GIVEN
}

/* ---- checks ---- */

void
RequestCheckWord(const char *name, const char *value, bool required, size_t max)
{
	if (value == NULL)
	{
		if (required)
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED), errmsg("%s must not be null", name)));
		return;
	}
	if (value[0] == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("%s must not be empty", name)));
	if (strlen(value) > max)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s is longer than %zu bytes", name, max)));
}

/* An AMQP symbol is ASCII. */
static void
check_content_type(const char *value)
{
	RequestCheckWord("content_type", value, false, MAX_WORD);
	for (const char *c = value; c && *c; c++)
		if (*c < ' ' || *c > '~')
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("content_type must consist of printable ASCII characters")));
}

static int64
check_duration(const char *name, Interval *value, bool zero_allowed)
{
	int64		us;
	int64		ms;

	if (value == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED), errmsg("%s must not be null", name)));
	us = IntervalToUs(name, value);
	ms = us / 1000;
	if (us > 0 && ms == 0 && zero_allowed)
		ms = 1;					/* a little is not nothing */
	if (us < 0 || (ms == 0 && !zero_allowed))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 zero_allowed ? errmsg("%s must not be negative", name) :
				 errmsg("%s must be at least one millisecond", name)));
	if (ms > MAX_TTL_MS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must not exceed " INT64_FORMAT " milliseconds", name, MAX_TTL_MS)));
	return ms;
}

static void
check_properties(Jsonb *properties)
{
	JsonbIterator *it;
	JsonbIteratorToken token;
	JsonbValue	value;

	if (properties == NULL)
		return;
	if (!JB_ROOT_IS_OBJECT(properties))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("properties must be a JSON object")));
	it = JsonbIteratorInit(&properties->root);
	(void) JsonbIteratorNext(&it, &value, true);
	while ((token = JsonbIteratorNext(&it, &value, true)) != WJB_DONE)
		if (token == WJB_VALUE && value.type == jbvBinary)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("properties must be strings, numbers, booleans or null"),
					 errdetail("AMQP's application properties do not nest.")));
}

static void
check_size(const CommandArguments *arguments)
{
	Size		size = arguments->payload ? VARSIZE(arguments->payload) :
		arguments->body ? VARSIZE(arguments->body) : 0;

	if (arguments->payload && arguments->body)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("payload and body exclude each other")));
	if (arguments->properties)
		size += VARSIZE(arguments->properties);
	if (size > (Size) hybridiot_max_record_size * 1024)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("the command is larger than hybridiot.max_record_size")));
}

static ForeignServer *
check_server(const char *name)
{
	ForeignServer *server;
	AclResult	acl;

	if (name == NULL)
		name = hybridiot_command_server;
	if (name == NULL || name[0] == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("no server is given for the command"),
				 errhint("Name one in the argument server, or set hybridiot.command_server.")));
	server = GetForeignServerByName(name, false);
	acl = object_aclcheck(ForeignServerRelationId, server->serverid, GetUserId(), ACL_USAGE);
	if (acl != ACLCHECK_OK)
		aclcheck_error(acl, OBJECT_FOREIGN_SERVER, server->servername);
	if (strcmp(OptionWrapperName(server), AMQP_WRAPPER) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("server \"%s\" is not an AMQP server", server->servername),
				 errhint("Commands go through servers of the wrapper \"%s\".", AMQP_WRAPPER)));
	return server;
}

PeerKind
ServerPeer(List *server_options)
{
	const char *peer = OptionGet(server_options, "peer");

	if (peer && strcmp(peer, "router") == 0)
		return PEER_ROUTER;
	if (peer && strcmp(peer, "hono") == 0)
		return PEER_HONO;
	return PEER_BROKER;
}

static CommandMode
check_mode(const char *mode, ForeignServer *server)
{
	PeerKind	peer = ServerPeer(server->options);

	if (mode == NULL)
		mode = OptionGet(server->options, "mode");
	if (mode == NULL)
		mode = peer == PEER_BROKER ? "store" : "direct";
	if (strcmp(mode, "direct") == 0)
	{
		if (peer == PEER_BROKER)
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("server \"%s\" is a broker and cannot deliver in mode direct", server->servername),
					 errdetail("What a broker accepts is stored, not delivered."),
					 errhint("Use mode \"store\".")));
		return MODE_DIRECT;
	}
	if (strcmp(mode, "store") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid mode \"%s\"", mode),
				 errhint("Valid modes are \"direct\" and \"store\".")));
	if (peer == PEER_HONO)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("server \"%s\" is a Hono and cannot deliver in mode store", server->servername),
				 errdetail("What Hono releases may have reached the device, so it cannot be offered again."),
				 errhint("Use mode \"direct\".")));
	return MODE_STORE;
}

/* A random (version 4) uuid: nobody can guess an id that is not his. */
static void
make_uuid(pg_uuid_t *id)
{
	if (!pg_strong_random(id->data, UUID_LEN))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR), errmsg("could not generate random values")));
	id->data[6] = (id->data[6] & 0x0f) | 0x40;
	id->data[8] = (id->data[8] & 0x3f) | 0x80;
}

CommandRequest *
RequestCheck(const CommandArguments *arguments, const char *what)
{
	CommandRequest *request = palloc0(sizeof(CommandRequest));
	ForeignServer *server;

	ShmemRequire(what);
	RequestCheckWord("device", arguments->device, true, MAX_NAME);
	RequestCheckWord("command", arguments->command, true, MAX_NAME);
	request->ttl_ms = check_duration("ttl", arguments->ttl, false);
	request->reply_within_ms = check_duration("reply_within", arguments->reply_within, true);
	server = check_server(arguments->server);
	GrantCheck(server, arguments->device);
	request->mode = check_mode(arguments->mode, server);
	check_size(arguments);
	check_content_type(arguments->content_type);
	check_properties(arguments->properties);
	RequestCheckWord("idempotency_key", arguments->idempotency_key, false, MAX_WORD);
	if (arguments->has_priority &&
		(arguments->priority < 0 || arguments->priority > MAX_PRIORITY))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("priority must be between 0 and %d", MAX_PRIORITY)));

	make_uuid(&request->id);
	request->device = arguments->device;
	request->command = arguments->command;
	request->sender = GetUserNameFromId(GetUserId(), false);
	request->server = server->serverid;
	request->server_name = server->servername;
	request->payload = arguments->payload;
	request->body = arguments->body;
	request->content_type = arguments->content_type;
	request->properties = arguments->properties;
	request->priority = arguments->has_priority ? arguments->priority : -1;
	request->idempotency_key = arguments->idempotency_key;
	request->queued_at = GetCurrentTimestamp();
	request->expires_at = request->queued_at + request->ttl_ms * 1000;
	return request;
}

void
RequestBody(const CommandRequest *request, const char **body, Size *len, const char **content_type)
{
	*content_type = request->content_type;
	if (request->payload)
	{
		char	   *text = JsonbToCString(NULL, &request->payload->root, VARSIZE(request->payload));

		*body = pg_server_to_any(text, strlen(text), PG_UTF8);
		*len = strlen(*body);
		if (*content_type == NULL)
			*content_type = "application/json";
	}
	else if (request->body)
	{
		*body = VARDATA_ANY(request->body);
		*len = VARSIZE_ANY_EXHDR(request->body);
		if (*content_type == NULL)
			*content_type = "application/octet-stream";
	}
	else
	{
		*body = "";
		*len = 0;
	}
}

/* ---- flat form ---- */

static void
pack_bytes(StringInfo buf, const void *bytes, int32 len)
{
	appendBinaryStringInfo(buf, (const char *) &len, sizeof(len));
	if (len > 0)
		appendBinaryStringInfo(buf, bytes, len);
}

/* Strings go with their NUL; a length of -1 is NULL. */
static void
pack_string(StringInfo buf, const char *s)
{
	pack_bytes(buf, s, s ? (int32) strlen(s) + 1 : -1);
}

static void
pack_varlena(StringInfo buf, const void *v)
{
	pack_bytes(buf, v, v ? (int32) VARSIZE(v) : -1);
}

static void *
unpack_bytes(const char **at)
{
	int32		len;
	void	   *copy = NULL;

	memcpy(&len, *at, sizeof(len));
	*at += sizeof(len);
	if (len >= 0)
	{
		copy = palloc(len);
		memcpy(copy, *at, len);
		*at += len;
	}
	return copy;
}

void
RequestPack(StringInfo buf, const CommandRequest *request)
{
	/* Pointers in the copied struct mean nothing to the reader and are replaced there. */
	appendBinaryStringInfo(buf, (const char *) request, sizeof(*request));
	pack_string(buf, request->device);
	pack_string(buf, request->command);
	pack_string(buf, request->sender);
	pack_string(buf, request->server_name);
	pack_varlena(buf, request->payload);
	pack_varlena(buf, request->body);
	pack_string(buf, request->content_type);
	pack_varlena(buf, request->properties);
	pack_string(buf, request->idempotency_key);
}

const char *
RequestUnpack(const char *bytes, CommandRequest *request)
{
	const char *at = bytes;

	memcpy(request, at, sizeof(*request));
	at += sizeof(*request);
	request->device = unpack_bytes(&at);
	request->command = unpack_bytes(&at);
	request->sender = unpack_bytes(&at);
	request->server_name = unpack_bytes(&at);
	request->payload = unpack_bytes(&at);
	request->body = unpack_bytes(&at);
	request->content_type = unpack_bytes(&at);
	request->properties = unpack_bytes(&at);
	request->idempotency_key = unpack_bytes(&at);
	return at;
}

void
ResolutionPack(StringInfo buf, const CommandResolution *resolution)
{
	appendBinaryStringInfo(buf, (const char *) resolution, sizeof(*resolution));
	pack_string(buf, resolution->outcome);
	pack_string(buf, resolution->role);
	pack_string(buf, resolution->note);
}

void
ResolutionUnpack(const char *bytes, CommandResolution *resolution)
{
	const char *at = bytes;

	memcpy(resolution, at, sizeof(*resolution));
	at += sizeof(*resolution);
	resolution->outcome = unpack_bytes(&at);
	resolution->role = unpack_bytes(&at);
	resolution->note = unpack_bytes(&at);
}

void
ResultPack(StringInfo buf, const CommandResult *result)
{
	appendBinaryStringInfo(buf, (const char *) result, sizeof(*result));
	pack_string(buf, result->content_type);
	pack_varlena(buf, result->payload);
	pack_varlena(buf, result->body);
	pack_string(buf, result->condition);
	pack_string(buf, result->description);
}

void
ResultUnpack(const char *bytes, CommandResult *result)
{
	const char *at = bytes;

	memcpy(result, at, sizeof(*result));
	at += sizeof(*result);
	result->content_type = unpack_bytes(&at);
	result->payload = unpack_bytes(&at);
	result->body = unpack_bytes(&at);
	result->condition = unpack_bytes(&at);
	result->description = unpack_bytes(&at);
}
