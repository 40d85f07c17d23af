/*
 * amqp_message.c
 *		AMQP 1.0 messages as bytes: writing commands, reading replies.
 *
 * A message is a row of sections, each a described value: 0x00, a ulong that
 * names the section, and a list, map or binary (AMQP 1.0 part 3.2). Compound
 * values carry their size in bytes, so what is of no interest is skipped
 * without looking inside.
 */
#include "postgres.h"

#include "port/pg_bswap.h"

#include "transport/amqp_message.h"

#define SECTION_HEADER 0x70
#define SECTION_PROPERTIES 0x73
#define SECTION_APPLICATION_PROPERTIES 0x74
#define SECTION_DATA 0x75
#define SECTION_SEQUENCE 0x76
#define SECTION_VALUE 0x77

/* Constructors that we write or look at. */
#define AMQP_DESCRIBED 0x00
#define AMQP_NULL 0x40
#define AMQP_TRUE 0x41
#define AMQP_FALSE 0x42
#define AMQP_UINT0 0x43
#define AMQP_ULONG0 0x44
#define AMQP_LIST0 0x45
#define AMQP_UBYTE 0x50
#define AMQP_BYTE 0x51
#define AMQP_SMALLUINT 0x52
#define AMQP_SMALLULONG 0x53
#define AMQP_SMALLINT 0x54
#define AMQP_SMALLLONG 0x55
#define AMQP_BOOL 0x56
#define AMQP_USHORT 0x60
#define AMQP_SHORT 0x61
#define AMQP_UINT 0x70
#define AMQP_INT 0x71
#define AMQP_ULONG 0x80
#define AMQP_LONG 0x81
#define AMQP_DOUBLE 0x82
#define AMQP_TIMESTAMP 0x83
#define AMQP_UUID 0x98
#define AMQP_VBIN8 0xa0
#define AMQP_STR8 0xa1
#define AMQP_SYM8 0xa3
#define AMQP_VBIN32 0xb0
#define AMQP_STR32 0xb1
#define AMQP_SYM32 0xb3
#define AMQP_LIST8 0xc0
#define AMQP_MAP8 0xc1
#define AMQP_LIST32 0xd0
#define AMQP_MAP32 0xd1

/* Described values inside described values: more than anybody needs. */
#define MAX_DESCRIPTORS 8

/* ---- writing ---- */

static void
put_byte(StringInfo buf, uint8 byte)
{
	appendStringInfoCharMacro(buf, (char) byte);
}

static void
put_32(StringInfo buf, uint32 value)
{
	value = pg_hton32(value);
	appendBinaryStringInfo(buf, (char *) &value, sizeof(value));
}

static void
put_64(StringInfo buf, uint64 value)
{
	value = pg_hton64(value);
	appendBinaryStringInfo(buf, (char *) &value, sizeof(value));
}

static void
put_section(StringInfo buf, uint8 section)
{
	put_byte(buf, AMQP_DESCRIBED);
	put_byte(buf, AMQP_SMALLULONG);
	put_byte(buf, section);
}

static void
put_bytes(StringInfo buf, uint8 constructor, const char *bytes, size_t len)
{
	put_byte(buf, constructor);
	put_32(buf, (uint32) len);
	appendBinaryStringInfo(buf, bytes, (int) len);
}

static void
put_text(StringInfo buf, uint8 constructor, const char *text)
{
	if (text)
		put_bytes(buf, constructor, text, strlen(text));
	else
		put_byte(buf, AMQP_NULL);
}

static void
put_timestamp(StringInfo buf, int64 ms)
{
	if (ms != 0)
	{
		put_byte(buf, AMQP_TIMESTAMP);
		put_64(buf, (uint64) ms);
	}
	else
		put_byte(buf, AMQP_NULL);
}

/* Begin a list or map of count elements; its size is filled in by end_compound(). */
static int
begin_compound(StringInfo buf, uint8 constructor, uint32 count)
{
	int			start;

	put_byte(buf, constructor);
	start = buf->len;
	put_32(buf, 0);
	put_32(buf, count);
	return start;
}

static void
end_compound(StringInfo buf, int start)
{
	uint32		size = pg_hton32((uint32) (buf->len - start - sizeof(uint32)));

	memcpy(buf->data + start, &size, sizeof(size));
}

static void
put_property(StringInfo buf, const AmqpProperty *property)
{
	put_text(buf, AMQP_STR32, property->name);
	switch (property->kind)
	{
		case AMQP_PROPERTY_NULL:
			put_byte(buf, AMQP_NULL);
			break;
		case AMQP_PROPERTY_BOOL:
			put_byte(buf, property->value.boolean ? AMQP_TRUE : AMQP_FALSE);
			break;
		case AMQP_PROPERTY_LONG:
			put_byte(buf, AMQP_LONG);
			put_64(buf, (uint64) property->value.number);
			break;
		case AMQP_PROPERTY_DOUBLE:
			{
				uint64		bits;

				memcpy(&bits, &property->value.real, sizeof(bits));
				put_byte(buf, AMQP_DOUBLE);
				put_64(buf, bits);
				break;
			}
		case AMQP_PROPERTY_STRING:
			put_text(buf, AMQP_STR32, property->value.string);
			break;
	}
}

void
AmqpEncode(StringInfo buf, const AmqpOutgoing *message)
{
	int			start;

	resetStringInfo(buf);

	put_section(buf, SECTION_HEADER);
	start = begin_compound(buf, AMQP_LIST32, 3);
	put_byte(buf, message->durable ? AMQP_TRUE : AMQP_FALSE);
	if (message->priority >= 0)
	{
		put_byte(buf, AMQP_UBYTE);
		put_byte(buf, (uint8) message->priority);
	}
	else
		put_byte(buf, AMQP_NULL);
	put_byte(buf, AMQP_UINT);
	put_32(buf, message->ttl_ms);
	end_compound(buf, start);

	put_section(buf, SECTION_PROPERTIES);
	start = begin_compound(buf, AMQP_LIST32, 10);
	put_text(buf, AMQP_STR32, message->id);
	put_byte(buf, AMQP_NULL);	/* user-id */
	put_text(buf, AMQP_STR32, message->to);
	put_text(buf, AMQP_STR32, message->subject);
	put_text(buf, AMQP_STR32, message->reply_to);
	put_text(buf, AMQP_STR32, message->id);
	put_text(buf, AMQP_SYM32, message->content_type);
	put_byte(buf, AMQP_NULL);	/* content-encoding */
	put_timestamp(buf, message->expiry_ms);
	put_timestamp(buf, message->creation_ms);
	end_compound(buf, start);

	if (message->nproperties > 0)
	{
		put_section(buf, SECTION_APPLICATION_PROPERTIES);
		start = begin_compound(buf, AMQP_MAP32, 2 * message->nproperties);
		for (int i = 0; i < message->nproperties; i++)
			put_property(buf, &message->properties[i]);
		end_compound(buf, start);
	}

	put_section(buf, message->text_body ? SECTION_VALUE : SECTION_DATA);
	put_bytes(buf, message->text_body ? AMQP_STR32 : AMQP_VBIN32, message->body, message->body_len);
}

/* ---- reading ---- */

typedef struct Reader
{
	const unsigned char *at;
	const unsigned char *end;
} Reader;

/* One value as it lies in the message. */
typedef struct Value
{
	uint8		constructor;
	const unsigned char *data;
	size_t		len;			/* of data */
} Value;

static bool
take(Reader *reader, size_t len, const unsigned char **data)
{
	if ((size_t) (reader->end - reader->at) < len)
		return false;
	*data = reader->at;
	reader->at += len;
	return true;
}

static uint64
big_endian(const unsigned char *data, size_t len)
{
	uint64		value = 0;

	for (size_t i = 0; i < len; i++)
		value = value << 8 | data[i];
	return value;
}

/*
 * Take one value, descriptors before it dropped. The constructor's high nibble tells
 * how wide the value is or how wide its size is (AMQP 1.0 part 1.2).
 */
static bool
take_value(Reader *reader, Value *value)
{
	const unsigned char *data;
	size_t		width;
	Value		descriptor;

	for (int depth = 0;; depth++)
	{
		if (!take(reader, 1, &data))
			return false;
		value->constructor = *data;
		if (value->constructor != AMQP_DESCRIBED)
			break;
		if (depth == MAX_DESCRIPTORS ||
			reader->at == reader->end || *reader->at == AMQP_DESCRIBED ||
			!take_value(reader, &descriptor))
			return false;
	}

	switch (value->constructor >> 4)
	{
		case 0x4:
			width = 0;
			break;
		case 0x5:
			width = 1;
			break;
		case 0x6:
			width = 2;
			break;
		case 0x7:
			width = 4;
			break;
		case 0x8:
			width = 8;
			break;
		case 0x9:
			width = 16;
			break;
		case 0xa:
		case 0xc:
		case 0xe:
			if (!take(reader, 1, &data))
				return false;
			width = *data;
			break;
		case 0xb:
		case 0xd:
		case 0xf:
			if (!take(reader, 4, &data))
				return false;
			width = big_endian(data, 4);
			break;
		default:
			return false;
	}
	value->len = width;
	return take(reader, width, &value->data);
}

/* Look into a list or map: how many elements, and a reader over them. */
static bool
open_compound(const Value *value, bool map, Reader *reader, uint32 *count)
{
	size_t		width;

	if (value->constructor == AMQP_LIST0 && !map)
	{
		*count = 0;
		reader->at = reader->end = value->data;
		return true;
	}
	if (value->constructor == (map ? AMQP_MAP8 : AMQP_LIST8))
		width = 1;
	else if (value->constructor == (map ? AMQP_MAP32 : AMQP_LIST32))
		width = 4;
	else
		return false;
	if (value->len < width)
		return false;
	*count = (uint32) big_endian(value->data, width);
	reader->at = value->data + width;
	reader->end = value->data + value->len;
	return true;
}

static AmqpBytes
value_bytes(const Value *value)
{
	AmqpBytes	result = {NULL, 0, false};

	switch (value->constructor)
	{
		case AMQP_STR8:
		case AMQP_STR32:
		case AMQP_SYM8:
		case AMQP_SYM32:
			result.data = (const char *) value->data;
			result.len = value->len;
			break;
		case AMQP_UUID:
		case AMQP_VBIN8:
		case AMQP_VBIN32:
			result.data = (const char *) value->data;
			result.len = value->len;
			result.raw = true;
			break;
		default:
			break;
	}
	return result;
}

/* An integer of any of AMQP's integer types. */
static bool
value_integer(const Value *value, int64 *result)
{
	switch (value->constructor)
	{
		case AMQP_UINT0:
		case AMQP_ULONG0:
			*result = 0;
			return true;
		case AMQP_BYTE:
		case AMQP_SMALLINT:
		case AMQP_SMALLLONG:
			*result = (int8) value->data[0];
			return true;
		case AMQP_SHORT:
			*result = (int16) big_endian(value->data, 2);
			return true;
		case AMQP_INT:
			*result = (int32) big_endian(value->data, 4);
			return true;
		case AMQP_UBYTE:
		case AMQP_SMALLUINT:
		case AMQP_SMALLULONG:
		case AMQP_USHORT:
		case AMQP_UINT:
		case AMQP_ULONG:
		case AMQP_LONG:
			*result = (int64) big_endian(value->data, value->len);
			return value->constructor == AMQP_LONG || *result >= 0;
		default:
			return false;
	}
}

static bool
read_properties(const Value *section, AmqpIncoming *message)
{
	Reader		reader;
	uint32		count;
	Value		field;

	if (!open_compound(section, false, &reader, &count))
		return false;
	for (uint32 i = 0; i < count; i++)
	{
		if (!take_value(&reader, &field))
			return false;
		if (i == 0)
			message->message_id = value_bytes(&field);
		else if (i == 5)
			message->correlation_id = value_bytes(&field);
		else if (i == 6)
			message->content_type = value_bytes(&field);
	}
	return true;
}

static bool
name_is(const Value *name, const char *word)
{
	AmqpBytes	bytes = value_bytes(name);

	return !bytes.raw && bytes.len == strlen(word) && memcmp(bytes.data, word, bytes.len) == 0;
}

static bool
read_application_properties(const Value *section, AmqpIncoming *message)
{
	Reader		reader;
	uint32		count;
	Value		name;
	Value		value;

	if (!open_compound(section, true, &reader, &count))
		return false;
	for (uint32 i = 0; i + 1 < count; i += 2)
	{
		if (!take_value(&reader, &name) || !take_value(&reader, &value))
			return false;
		if (name_is(&name, "status"))
		{
			message->has_status = value_integer(&value, &message->status);
			message->bad_status = !message->has_status;
		}
		else if (name_is(&name, "device_id"))
			message->device_id = value_bytes(&value);
	}
	return true;
}

static bool
read_section(uint64 section, const Value *value, AmqpIncoming *message)
{
	AmqpBytes	bytes = value_bytes(value);

	switch (section)
	{
		case SECTION_PROPERTIES:
			return read_properties(value, message);
		case SECTION_APPLICATION_PROPERTIES:
			return read_application_properties(value, message);
		case SECTION_DATA:
			if (bytes.data == NULL)
				return false;
			message->body_kind = AMQP_BODY_DATA;
			appendBinaryStringInfo(&message->body, bytes.data, (int) bytes.len);
			return true;
		case SECTION_VALUE:
			message->body_kind = AMQP_BODY_OTHER;
			if (value->constructor == AMQP_NULL)
				message->body_kind = AMQP_BODY_NONE;
			else if (bytes.data)
			{
				message->body_kind = AMQP_BODY_TEXT;
				appendBinaryStringInfo(&message->body, bytes.data, (int) bytes.len);
			}
			return true;
		case SECTION_SEQUENCE:
			message->body_kind = AMQP_BODY_OTHER;
			return true;
		default:
			return true;		/* header, annotations, footer */
	}
}

bool
AmqpDecode(const char *bytes, size_t len, AmqpIncoming *message)
{
	Reader		reader;

	memset(message, 0, sizeof(*message));
	initStringInfo(&message->body);
	reader.at = (const unsigned char *) bytes;
	reader.end = reader.at + len;

	while (reader.at < reader.end)
	{
		Value		descriptor;
		Value		value;
		int64		section;

		if (*reader.at != AMQP_DESCRIBED)
			return false;
		reader.at++;
		if (reader.at == reader.end || *reader.at == AMQP_DESCRIBED ||
			!take_value(&reader, &descriptor))
			return false;
		if (!value_integer(&descriptor, &section))
			section = -1;		/* a symbolic descriptor: not a section we know */
		if (!take_value(&reader, &value) || !read_section(section, &value, message))
			return false;
	}
	return true;
}
