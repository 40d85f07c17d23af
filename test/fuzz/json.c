/*
 * json.c
 *		libFuzzer on the JSON scanner, without a server.
 *
 * Beside what the sanitizers see: pieces lie in the document, a piece scanned alone is what it was, an object is the
 * same in one step and member by member, and a string's text is never longer than the string.
 */
#include "postgres.h"

#include "stream/json_scan.h"

#include "fuzz.h"

#define MAX_DEPTH 256

static void
check_string(const JsonPiece *piece)
{
	char	   *out = malloc(piece->len);	/* to the byte: one too many is seen */
	const char *problem = NULL;
	int32		len;

	CHECK(piece->escaped == (piece->len > 0 && memchr(piece->bytes, '\\', piece->len) != NULL));
	len = JsonUnescape(piece, out, &problem);
	CHECK(len >= 0 || problem != NULL);
	CHECK(len <= piece->len);
	CHECK(piece->escaped || (len == piece->len && memcmp(out, piece->bytes, len) == 0));
	free(out);
}

static void check_value(const JsonPiece *piece);

static void
check_object(const JsonPiece *piece)
{
	JsonScan	scan;
	JsonPiece	key;
	JsonPiece	value;
	JsonStep	step;

	JsonScanInit(&scan, piece->bytes, piece->len, MAX_DEPTH);
	for (step = JsonFirstMember(&scan); step == JSON_STEP_MEMBER; step = JsonNextMember(&scan))
	{
		JsonScan	passing = scan;

		CHECK(JsonScanKey(&scan, &key));
		/* asked only for names without escapes */
		CHECK(key.escaped || (JsonPassKey(&passing, key.bytes, key.len) && passing.at == scan.at));
		CHECK(key.kind == JSON_KIND_STRING);
		check_string(&key);
		CHECK(JsonScanValue(&scan, &value));
		CHECK(value.bytes >= piece->bytes && value.bytes + value.len < piece->bytes + piece->len);
		check_value(&value);
	}
	CHECK(step == JSON_STEP_END);
	CHECK(scan.at == scan.end && scan.depth == 0);
}

static void
check_value(const JsonPiece *piece)
{
	JsonScan	scan;
	JsonPiece	again;

	if (piece->kind == JSON_KIND_STRING)
	{
		check_string(piece);
		return;
	}
	JsonScanInit(&scan, piece->bytes, piece->len, MAX_DEPTH);
	CHECK(JsonScanValue(&scan, &again));
	CHECK(JsonScanFinish(&scan));
	CHECK(again.kind == piece->kind && again.bytes == piece->bytes && again.len == piece->len);
	if (piece->kind == JSON_KIND_OBJECT)
		check_object(piece);
}

int
LLVMFuzzerTestOneInput(const uint8 *data, size_t size)
{
	JsonScan	scan;
	JsonPiece	value;

	JsonScanInit(&scan, (const char *) data, (int32) size, MAX_DEPTH);
	if (JsonScanValue(&scan, &value) && JsonScanFinish(&scan))
	{
		CHECK(scan.at == scan.end && scan.depth == 0);
		check_value(&value);
	}
	else
	{
		CHECK(scan.problem != NULL);
		CHECK(scan.at >= scan.start && scan.at <= scan.end);
	}
	return 0;
}
