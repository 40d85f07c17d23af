/*
 * csv.c
 *		libFuzzer on the CSV scanner, without a server.
 *
 * Against a second reading of COPY's rules, byte by byte and with nothing clever.
 */
#include "postgres.h"

#include "stream/csv_scan.h"

#include "fuzz.h"

typedef struct Plain
{
	const char *at;
	const char *end;
	bool		ended;
	char	   *text;			/* of the field */
	int			len;
	bool		null;
} Plain;

/* The next field; 1: there is one, 0: there is none, -1: refused. */
static int
plain_field(Plain *plain)
{
	bool		inside = false;
	bool		quoted = false;

	if (plain->ended)
		return 0;
	plain->len = 0;
	for (; plain->at < plain->end; plain->at++)
	{
		char		c = *plain->at;

		if (inside)
		{
			if (c == '"' && plain->at + 1 < plain->end && plain->at[1] == '"')
				plain->text[plain->len++] = *plain->at++;
			else if (c == '"')
				inside = false;
			else
				plain->text[plain->len++] = c;
		}
		else if (c == '"')
			inside = quoted = true;
		else if (c == ',' || c == '\n' || c == '\r')
			break;
		else
			plain->text[plain->len++] = c;
	}
	if (inside)
		return -1;
	plain->null = plain->len == 0 && !quoted;
	if (plain->at < plain->end && *plain->at == ',')
	{
		plain->at++;
		return 1;
	}
	plain->ended = true;
	if (plain->at < plain->end && *plain->at == '\r' && plain->at + 2 == plain->end && plain->at[1] == '\n')
		return 1;
	return plain->at == plain->end || plain->at + 1 == plain->end ? 1 : -1;
}

int
LLVMFuzzerTestOneInput(const uint8 *data, size_t size)
{
	const char *bytes = (const char *) data;
	Plain		plain = {bytes, bytes + size, false, malloc(size + 1)};
	CsvScan		scan;
	CsvField	field;
	CsvStep		step;
	int			next;

	CsvScanInit(&scan, bytes, (int32) size);
	do
	{
		step = CsvNextField(&scan, &field);
		next = plain_field(&plain);
		CHECK(step == (next == 1 ? CSV_STEP_FIELD : next == 0 ? CSV_STEP_END : CSV_STEP_BAD));
		if (step == CSV_STEP_FIELD)
		{
			char	   *out = malloc(field.len);	/* to the byte: one too many is seen */
			int32		len = field.len;

			CHECK(field.bytes >= bytes && field.bytes + field.len <= bytes + size);
			if (field.quoted)
				len = CsvUnquote(&field, out);
			CHECK(len == plain.len && field.null == plain.null);
			CHECK(memcmp(field.quoted ? out : field.bytes, plain.text, len) == 0);
			free(out);
		}
	} while (step == CSV_STEP_FIELD);
	CHECK(step == CSV_STEP_END || (scan.problem != NULL && scan.at >= bytes && scan.at <= bytes + size));
	free(plain.text);
	return 0;
}
