/*
 * csv_scan.c
 *		A scanner over the bytes of one record in CSV.
 *
 * No ereport, no palloc: see csv_scan.h. The rules are COPY's: quotes may begin and end
 * anywhere in a field; inside, two stand for one, and commas and line breaks for themselves; an empty
 * field without quotes is null. One line break may end the record.
 */
#include "postgres.h"

#include "stream/csv_scan.h"

void
CsvScanInit(CsvScan *scan, const char *bytes, int32 len)
{
	scan->start = bytes;
	scan->at = bytes;
	scan->end = bytes + len;
	scan->ended = false;
	scan->problem = NULL;
}

static CsvStep
refuse(CsvScan *scan, const char *problem)
{
	scan->problem = problem;
	return CSV_STEP_BAD;
}

/* At a line break outside quotes: nothing may follow it. */
static bool
ends_record(CsvScan *scan)
{
	const char *at = scan->at;

	if (*at == '\r' && scan->end - at == 2 && at[1] == '\n')
		at++;
	return at + 1 == scan->end;
}

CsvStep
CsvNextField(CsvScan *scan, CsvField *field)
{
	const char *start = scan->at;
	const char *at = start;
	const char *end = scan->end;
	int			quotes = 0;

	if (scan->ended)
		return CSV_STEP_END;
	for (;;)
	{
		while (at < end && *at != ',' && *at != '"' && *at != '\n' && *at != '\r')
			at++;
		if (at == end || *at != '"')
			break;

		/* Two quotes inside end one quoted piece and begin the next: so only their number counts here. */
		quotes += 2;
		scan->at = at;
		at = memchr(at + 1, '"', end - at - 1);
		if (at == NULL)
			return refuse(scan, "a quoted field does not end");
		at++;
	}
	scan->at = at;

	field->null = at == start;
	field->quoted = quotes > 0;
	field->bytes = start;
	field->len = (int32) (at - start);
	/* Mostly the quotes are around the field, and nowhere in it. */
	if (quotes == 2 && *start == '"' && at[-1] == '"')
	{
		field->quoted = false;
		field->bytes++;
		field->len -= 2;
	}

	if (at < end && *at == ',')
	{
		scan->at++;
		return CSV_STEP_FIELD;
	}
	if (at < end && !ends_record(scan))
		return refuse(scan, "a line break outside quotes");
	scan->ended = true;
	return CSV_STEP_FIELD;
}

int32
CsvUnquote(const CsvField *field, char *out)
{
	const char *end = field->bytes + field->len;
	bool		inside = false;
	char	   *to = out;

	for (const char *at = field->bytes; at < end; at++)
	{
		if (*at != '"')
			*to++ = *at;
		else if (inside && at + 1 < end && at[1] == '"')
			*to++ = *at++;
		else
			inside = !inside;
	}
	return (int32) (to - out);
}
