/*
 * reply.c
 *		A device's reply: which command it answers, and what it says.
 *
 * A reply is foreign bytes. Whatever is wrong with it becomes a condition of the
 * command's result, never an error of the worker.
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "command/reply.h"

/* Bytes of a peer's words that are kept. */
#define MAX_PEER_TEXT 1000

#define CONDITION_SIZE "amqp:link:message-size-exceeded"
#define CONDITION_DECODE "amqp:decode-error"
#define CONDITION_STATUS "hybridiot:invalid-status"

static int
hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return -1;
}

/* String, uuid and binary (of 16 bytes or of text) are the same id. */
static bool
read_id(const AmqpBytes *bytes, pg_uuid_t *id)
{
	const char *at = bytes->data;
	const char *end = at + bytes->len;

	if (bytes->data == NULL)
		return false;
	if (bytes->raw && bytes->len == UUID_LEN)
	{
		memcpy(id->data, bytes->data, UUID_LEN);
		return true;
	}
	if (bytes->len != 36)
		return false;
	for (int i = 0; i < UUID_LEN; i++)
	{
		int			high;
		int			low;

		if ((i == 4 || i == 6 || i == 8 || i == 10) && *at++ != '-')
			return false;
		if (end - at < 2 || (high = hex_digit(at[0])) < 0 || (low = hex_digit(at[1])) < 0)
			return false;
		id->data[i] = (unsigned char) (high << 4 | low);
		at += 2;
	}
	return true;
}

/* Text in the database's encoding; NULL if it is not valid in it. */
static char *
read_text(const char *bytes, size_t len)
{
	MemoryContext context = CurrentMemoryContext;
	char	   *text = NULL;

	if (memchr(bytes, '\0', len) || !pg_verify_mbstr(PG_UTF8, bytes, (int) len, true))
		return NULL;
	text = pnstrdup(bytes, len);
	PG_TRY();
	{
		text = pg_any_to_server(text, (int) len, PG_UTF8);
	}
	PG_CATCH();
	{
		/* No character for it in the database's encoding. */
		MemoryContextSwitchTo(context);
		FlushErrorState();
		text = NULL;
	}
	PG_END_TRY();
	return text;
}

char *
PeerText(const char *text)
{
	size_t		len;
	char	   *result;

	if (text == NULL)
		return NULL;
	len = strnlen(text, MAX_PEER_TEXT);
	if (text[len] != '\0')
		len = pg_encoding_mbcliplen(PG_UTF8, text, (int) len, (int) len);
	result = read_text(text, len);
	if (result == NULL)
		result = pnstrdup(text, len);
	for (char *c = result; *c; c++)
		if ((unsigned char) *c < ' ' || *c == 0x7f ||
			(IS_HIGHBIT_SET(*c) && !pg_verify_mbstr(GetDatabaseEncoding(), result, (int) strlen(result), true)))
			*c = '?';
	return result;
}

static bool
is_json(const char *content_type)
{
	size_t		len;

	if (content_type == NULL)
		return true;
	len = strcspn(content_type, "; ");
	return (len == 16 && pg_strncasecmp(content_type, "application/json", len) == 0) ||
		(len > 5 && pg_strncasecmp(content_type + len - 5, "+json", 5) == 0);
}

/* NULL: the text is not JSON, or more than jsonb holds. */
static Jsonb *
read_json(const char *text)
{
	MemoryContext context = CurrentMemoryContext;
	Jsonb	   *json = NULL;

	/* jsonb_in() touches nothing but memory, so its errors need no subtransaction. */
	PG_TRY();
	{
		json = DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(text)));
	}
	PG_CATCH();
	{
		int			class = ERRCODE_TO_CATEGORY(geterrcode());

		if (class != ERRCODE_DATA_EXCEPTION && class != ERRCODE_PROGRAM_LIMIT_EXCEEDED)
			PG_RE_THROW();
		MemoryContextSwitchTo(context);
		FlushErrorState();
		json = NULL;
	}
	PG_END_TRY();
	return json;
}

static void
read_body(AmqpIncoming *message, CommandResult *result)
{
	if (message->body_kind == AMQP_BODY_NONE || message->body_kind == AMQP_BODY_OTHER ||
		message->body.len == 0)
		return;
	if (is_json(result->content_type))
	{
		char	   *text = read_text(message->body.data, message->body.len);

		if (text)
			result->payload = read_json(text);
	}
	if (result->payload == NULL)
	{
		result->body = palloc(VARHDRSZ + message->body.len);
		SET_VARSIZE(result->body, VARHDRSZ + message->body.len);
		memcpy(VARDATA(result->body), message->body.data, message->body.len);
	}
	else if (result->content_type == NULL)
		result->content_type = "application/json";
}

static void
say(CommandResult *result, const char *condition, const char *description)
{
	result->condition = condition;
	result->description = description;
}

void
ReplyRead(const char *bytes, size_t len, bool oversize, Reply *reply)
{
	AmqpIncoming message;
	CommandResult *result = &reply->result;
	bool		complete;

	memset(reply, 0, sizeof(*reply));
	complete = AmqpDecode(bytes, len, &message);
	reply->has_id = read_id(message.correlation_id.data ? &message.correlation_id : &message.message_id,
							&reply->id);
	if (message.device_id.data)
	{
		reply->device = message.device_id.raw ? NULL :
			read_text(message.device_id.data, message.device_id.len);

		/* What is no text names no device of ours. */
		if (reply->device == NULL)
			reply->device = "";
	}
	if (message.content_type.data)
		result->content_type = read_text(message.content_type.data, message.content_type.len);

	if (oversize)
		say(result, CONDITION_SIZE, "the reply is larger than hybridiot.max_reply_size");
	else if (!complete)
		say(result, CONDITION_DECODE, "the reply is not a valid AMQP message");
	else if (message.bad_status ||
			 (message.has_status && (message.status < PG_INT32_MIN || message.status > PG_INT32_MAX)))
		say(result, CONDITION_STATUS, "the reply's status is not an integer");
	else
	{
		result->has_status = true;
		result->status = message.has_status ? (int32) message.status : 200;
		reply->success = result->status >= 200 && result->status <= 299;
	}
	if (!oversize && complete)
		read_body(&message, result);
}
