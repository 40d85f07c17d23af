/*
 * start.c
 *		Where a pipeline begins to read: the words of start_at.
 */
#include "postgres.h"

#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/numeric.h"
#include "utils/timestamp.h"

#include "pipeline/start.h"

static void
bad_start(const char *text)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid position \"%s\"", text),
			 errhint("Use 'earliest', 'latest', a timestamp, or offsets by partition such as '{\"0\": 17, \"1\": 4}'.")));
}

static void
parse_offsets(Start *start, const char *text)
{
	Jsonb	   *jsonb = DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(text)));
	JsonbIterator *it;
	JsonbValue	value;
	JsonbIteratorToken token;
	int			n;

	if (!JB_ROOT_IS_OBJECT(jsonb))
		bad_start(text);
	n = JB_ROOT_COUNT(jsonb);
	start->topics = palloc0(sizeof(char *) * (n + 1));
	start->partitions = palloc(sizeof(int32) * (n + 1));
	start->offsets = palloc(sizeof(int64) * (n + 1));

	it = JsonbIteratorInit(&jsonb->root);
	while ((token = JsonbIteratorNext(&it, &value, true)) != WJB_DONE)
	{
		if (token == WJB_KEY)
		{
			char	   *end;
			char	   *key = pnstrdup(value.val.string.val, value.val.string.len);
			char	   *slash = strrchr(key, '/');
			char	   *number = slash ? slash + 1 : key;
			long		partition = strtol(number, &end, 10);

			if (!isdigit((unsigned char) *number) || *end || partition > PG_INT32_MAX)
				bad_start(text);
			if (slash)
			{
				*slash = '\0';
				start->topics[start->noffsets] = key;
			}
			start->partitions[start->noffsets] = (int32) partition;
		}
		else if (token == WJB_VALUE)
		{
			int64		offset;

			if (value.type != jbvNumeric)
				bad_start(text);
			offset = DatumGetInt64(DirectFunctionCall1(numeric_int8, NumericGetDatum(value.val.numeric)));
			if (offset < 0)
				bad_start(text);
			start->offsets[start->noffsets++] = offset;
		}
	}
}

Start *
StartParse(const char *text)
{
	Start	   *start = palloc0(sizeof(Start));

	if (strcmp(text, "earliest") == 0)
		start->kind = START_EARLIEST;
	else if (strcmp(text, "latest") == 0)
		start->kind = START_LATEST;
	else if (text[0] == '{')
	{
		start->kind = START_OFFSETS;
		parse_offsets(start, text);
	}
	else if (text[0] == '\0')
		bad_start(text);
	else
	{
		start->kind = START_TIME;
		start->time = DatumGetTimestampTz(DirectFunctionCall3(timestamptz_in,
															  CStringGetDatum(text),
															  ObjectIdGetDatum(InvalidOid),
															  Int32GetDatum(-1)));
		if (TIMESTAMP_NOT_FINITE(start->time))
			bad_start(text);
	}
	return start;
}

int64
StartOffset(const Start *start, const char *topic, int32 partition)
{
	for (int i = 0; i < start->noffsets; i++)
		if (start->partitions[i] == partition &&
			(start->topics[i] == NULL || strcmp(start->topics[i], topic) == 0))
			return start->offsets[i];
	return -1;
}
