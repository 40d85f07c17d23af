/*
 * record.c
 *		Parts of a record as SQL values.
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
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
