/*
 * record.c
 *		Parts of a record as SQL values; how a record is known again.
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
#include "port/pg_bswap.h"
#include "port/pg_crc32c.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"

#include "core/record.h"

char *
BytesAsText(const char *bytes, int32 len)
{
	if (!pg_verifymbstr(bytes, len, true) || memchr(bytes, '\0', len) != NULL)
		return NULL;
	return pnstrdup(bytes, len);
}

static void
push_string(JsonbParseState **state, JsonbIteratorToken token, const char *text)
{
	JsonbValue	value;

	value.type = jbvString;
	value.val.string.val = unconstify(char *, text);
	value.val.string.len = (int) strlen(text);
	(void) pushJsonbValue(state, token, &value);
}

static void
push_header_value(JsonbParseState **state, JsonbIteratorToken token, const RecordHeader *header)
{
	char	   *text;

	if (header->value == NULL)
	{
		JsonbValue	null = {.type = jbvNull};

		(void) pushJsonbValue(state, token, &null);
		return;
	}
	text = BytesAsText(header->value, header->value_len);
	if (text == NULL)
	{
		text = palloc(header->value_len * 2 + 3);
		strcpy(text, "\\x");
		text[2 + hex_encode(header->value, header->value_len, text + 2)] = '\0';
	}
	push_string(state, token, text);
}

Datum
HeadersToJsonb(const Record *record)
{
	JsonbParseState *state = NULL;
	JsonbValue *result;

	(void) pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	for (int i = 0; i < record->nheaders; i++)
	{
		const RecordHeader *header = &record->headers[i];
		char	   *name = BytesAsText(header->name, (int32) strlen(header->name));
		int			first = i;
		int			count = 0;

		for (int k = record->nheaders - 1; k >= 0; k--)
			if (strcmp(record->headers[k].name, header->name) == 0)
			{
				first = k;
				count++;
			}
		if (first != i || name == NULL)
			continue;

		push_string(&state, WJB_KEY, name);
		if (count == 1)
		{
			push_header_value(&state, WJB_VALUE, header);
			continue;
		}
		(void) pushJsonbValue(&state, WJB_BEGIN_ARRAY, NULL);
		for (int k = i; k < record->nheaders; k++)
			if (strcmp(record->headers[k].name, header->name) == 0)
				push_header_value(&state, WJB_ELEM, &record->headers[k]);
		(void) pushJsonbValue(&state, WJB_END_ARRAY, NULL);
	}
	result = pushJsonbValue(&state, WJB_END_OBJECT, NULL);
	return JsonbPGetDatum(JsonbValueToJsonb(result));
}

/* Bytes that are no text were written as \\x and hex; text that only looks so stays what it is. */
static void
header_value(RecordHeader *header, const char *text, int len)
{
	char	   *bytes;
	int			n;

	header->value = pnstrdup(text, len);
	header->value_len = len;
	if (len < 4 || len % 2 != 0 || strncmp(header->value, "\\x", 2) != 0 ||
		strspn(header->value + 2, "0123456789abcdef") != len - 2)
		return;
	bytes = palloc(len / 2);
	n = (int) hex_decode(text + 2, len - 2, bytes);
	if (BytesAsText(bytes, n) != NULL)
		return;
	header->value = bytes;
	header->value_len = n;
}

void
HeadersFromJsonb(Record *record, Jsonb *headers)
{
	JsonbIterator *it;
	JsonbValue	value;
	JsonbIteratorToken token;
	char	   *name = NULL;
	RecordHeader *list;

	if (!JB_ROOT_IS_OBJECT(headers))
		return;
	it = JsonbIteratorInit(&headers->root);
	list = palloc(sizeof(RecordHeader) * (VARSIZE(headers) / 4 + 1));
	while ((token = JsonbIteratorNext(&it, &value, false)) != WJB_DONE)
	{
		if (token == WJB_KEY)
			name = pnstrdup(value.val.string.val, value.val.string.len);
		else if ((token == WJB_VALUE || token == WJB_ELEM) && name &&
				 record->nheaders < HYBRIDIOT_MAX_HEADERS)
		{
			RecordHeader *header = &list[record->nheaders++];

			memset(header, 0, sizeof(*header));
			header->name = name;
			if (value.type == jbvString)
				header_value(header, value.val.string.val, value.val.string.len);
		}
	}
	record->headers = list;
}

/* With their length: null and empty differ, and so does a key that ends where another's value begins. */
static void
add_bytes(uint32 *crc, const char *bytes, int32 len)
{
	uint32		portable = pg_hton32((uint32) len);

	COMP_CRC32C(*crc, &portable, sizeof(portable));
	if (len > 0)
		COMP_CRC32C(*crc, bytes, len);
}

RecordMark
RecordMarkOf(const Record *record)
{
	RecordMark	mark = {
		.offset = record->offset,
		.timestamp = record->timestamp,
		.size = RecordBytes(record),
		.leader_epoch = record->leader_epoch
	};

	INIT_CRC32C(mark.crc);
	add_bytes(&mark.crc, record->key, record->key_len);
	add_bytes(&mark.crc, record->value, record->value_len);
	FIN_CRC32C(mark.crc);
	return mark;
}

const char *
RecordMarkContradicted(const RecordMark *mark, const Record *record)
{
	if (record->offset == mark->offset)
	{
		RecordMark	now = RecordMarkOf(record);

		if (now.timestamp != mark->timestamp || now.size != mark->size || now.crc != mark->crc)
			return "another record was applied there";
	}
	else if (record->leader_epoch >= 0 && record->leader_epoch < mark->leader_epoch)
		return "it is of an older leader than what was applied";
	return NULL;
}
