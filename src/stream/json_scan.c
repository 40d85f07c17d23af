/*
 * json_scan.c
 *		A scanner over the bytes of one JSON document.
 *
 * No ereport, no palloc: see json_scan.h. Every function that returns false has set
 * scan->problem and left scan->at where the trouble is.
 */
#include "postgres.h"

#include "port/pg_bitutils.h"

#include "stream/json_scan.h"

static inline bool
refuse(JsonScan *scan, const char *problem)
{
	scan->problem = problem;
	return false;
}

static inline void
skip_space(JsonScan *scan)
{
	const char *at = scan->at;

	while (at < scan->end && (*at == ' ' || *at == '\n' || *at == '\r' || *at == '\t'))
		at++;
	scan->at = at;
}

static inline bool
at_byte(const JsonScan *scan, char byte)
{
	return scan->at < scan->end && *scan->at == byte;
}

static inline bool
is_digit(const char *at, const char *end)
{
	return at < end && *at >= '0' && *at <= '9';
}

static inline int
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

void
JsonScanInit(JsonScan *scan, const char *bytes, int32 len, int max_depth)
{
	scan->start = bytes;
	scan->at = bytes;
	scan->end = bytes + len;
	scan->depth = 0;
	scan->max_depth = max_depth;
	scan->too_deep = false;
	scan->problem = NULL;
	skip_space(scan);
}

/* Behind a backslash: pass over what it escapes. */
static bool
scan_escape(JsonScan *scan)
{
	if (scan->at >= scan->end)
		return refuse(scan, "a string does not end");
	switch (*scan->at)
	{
		case '"':
		case '\\':
		case '/':
		case 'b':
		case 'f':
		case 'n':
		case 'r':
		case 't':
			scan->at++;
			return true;
		case 'u':
			scan->at++;
			for (int i = 0; i < 4; i++, scan->at++)
				if (scan->at >= scan->end || hex_digit(*scan->at) < 0)
					return refuse(scan, "\"\\u\" must be followed by four hexadecimal digits");
			return true;
		default:
			return refuse(scan, "no such escape sequence");
	}
}

#define EACH(byte) (UINT64CONST(0x0101010101010101) * (byte))

/*
 * Pass over what stands for itself in a string: up to a quote, a backslash, a control character or the end. Eight bytes at
 * once: each of the three sums has a high bit at the first such byte, and none below it.
 */
static inline const char *
pass_plain(const char *at, const char *end)
{
#ifndef WORDS_BIGENDIAN
	while (end - at >= 8)
	{
		uint64		word;
		uint64		quotes;
		uint64		backslashes;
		uint64		found;

		memcpy(&word, at, 8);
		quotes = word ^ EACH('"');
		backslashes = word ^ EACH('\\');
		found = ((quotes - EACH(1)) & ~quotes) | ((backslashes - EACH(1)) & ~backslashes) | ((word - EACH(0x20)) & ~word);
		found &= EACH(0x80);
		if (found)
			return at + pg_rightmost_one_pos64(found) / 8;
		at += 8;
	}
#endif
	while (at < end && *at != '"' && *at != '\\' && (unsigned char) *at >= 0x20)
		at++;
	return at;
}

static bool
scan_string(JsonScan *scan, JsonPiece *value)
{
	value->kind = JSON_KIND_STRING;
	value->escaped = false;
	value->bytes = ++scan->at;
	for (;;)
	{
		const char *at = pass_plain(scan->at, scan->end);

		scan->at = at;
		if (at >= scan->end)
			return refuse(scan, "a string does not end");
		if (*at == '"')
			break;
		if (*at != '\\')
			return refuse(scan, "a control character in a string must be escaped");
		value->escaped = true;
		scan->at++;
		if (!scan_escape(scan))
			return false;
	}
	value->len = (int32) (scan->at - value->bytes);
	scan->at++;
	return true;
}

static bool
scan_number(JsonScan *scan, JsonPiece *value)
{
	const char *end = scan->end;
	const char *at = scan->at;
	bool		good = true;

	value->kind = JSON_KIND_NUMBER;
	value->bytes = at;
	if (*at == '-')
		at++;
	if (!is_digit(at, end))
		good = false;
	else if (*at == '0')
		at++;
	else
		while (is_digit(at, end))
			at++;
	if (good && at < end && *at == '.')
	{
		at++;
		good = is_digit(at, end);
		while (is_digit(at, end))
			at++;
	}
	if (good && at < end && (*at == 'e' || *at == 'E'))
	{
		at++;
		if (at < end && (*at == '+' || *at == '-'))
			at++;
		good = is_digit(at, end);
		while (is_digit(at, end))
			at++;
	}
	/* What cannot follow a number, such as a second zero, is refused by whoever expects something else. */
	scan->at = at;
	value->len = (int32) (at - value->bytes);
	return good || refuse(scan, "a number is not complete");
}

static bool
scan_word(JsonScan *scan, JsonPiece *value, const char *word, int32 len, JsonKind kind)
{
	if (scan->end - scan->at < len || memcmp(scan->at, word, len) != 0)
		return refuse(scan, "expected a JSON value");
	value->kind = kind;
	value->bytes = scan->at;
	value->len = len;
	scan->at += len;
	return true;
}

static bool
enter(JsonScan *scan)
{
	if (scan->depth >= scan->max_depth)
	{
		scan->too_deep = true;
		return refuse(scan, "nested too deeply");
	}
	scan->depth++;
	scan->at++;
	skip_space(scan);
	return true;
}

static void
leave(JsonScan *scan)
{
	scan->depth--;
	scan->at++;
}

bool
JsonScanKey(JsonScan *scan, JsonPiece *key)
{
	if (!at_byte(scan, '"'))
		return refuse(scan, "expected a string as key");
	if (!scan_string(scan, key))
		return false;
	skip_space(scan);
	if (!at_byte(scan, ':'))
		return refuse(scan, "expected \":\"");
	scan->at++;
	skip_space(scan);
	return true;
}

bool
JsonPassKey(JsonScan *scan, const char *name, int32 len)
{
	const char *at = scan->at;

	if (scan->end - at < len + 3 || at[0] != '"' || at[len + 1] != '"' || memcmp(at + 1, name, len) != 0)
		return false;
	scan->at += len + 2;
	skip_space(scan);
	if (!at_byte(scan, ':'))
	{
		scan->at = at;
		return false;
	}
	scan->at++;
	skip_space(scan);
	return true;
}

JsonStep
JsonFirstMember(JsonScan *scan)
{
	if (!enter(scan))
		return JSON_STEP_BAD;
	if (at_byte(scan, '}'))
	{
		leave(scan);
		return JSON_STEP_END;
	}
	return JSON_STEP_MEMBER;
}

JsonStep
JsonNextMember(JsonScan *scan)
{
	skip_space(scan);
	if (at_byte(scan, ','))
	{
		scan->at++;
		skip_space(scan);
		return JSON_STEP_MEMBER;
	}
	if (at_byte(scan, '}'))
	{
		leave(scan);
		return JSON_STEP_END;
	}
	(void) refuse(scan, "expected \",\" or \"}\"");
	return JSON_STEP_BAD;
}

static bool
scan_object(JsonScan *scan, JsonPiece *value)
{
	JsonPiece	key;
	JsonPiece	member;
	const char *start = scan->at;
	JsonStep	step;

	for (step = JsonFirstMember(scan); step == JSON_STEP_MEMBER; step = JsonNextMember(scan))
		if (!JsonScanKey(scan, &key) || !JsonScanValue(scan, &member))
			return false;
	value->kind = JSON_KIND_OBJECT;
	value->bytes = start;
	value->len = (int32) (scan->at - start);
	return step == JSON_STEP_END;
}

JsonStep
JsonFirstElement(JsonScan *scan)
{
	if (!enter(scan))
		return JSON_STEP_BAD;
	if (!at_byte(scan, ']'))
		return JSON_STEP_MEMBER;
	leave(scan);
	return JSON_STEP_END;
}

JsonStep
JsonNextElement(JsonScan *scan)
{
	skip_space(scan);
	if (at_byte(scan, ','))
	{
		scan->at++;
		skip_space(scan);
		return JSON_STEP_MEMBER;
	}
	if (at_byte(scan, ']'))
	{
		leave(scan);
		return JSON_STEP_END;
	}
	(void) refuse(scan, "expected \",\" or \"]\"");
	return JSON_STEP_BAD;
}

static bool
scan_array(JsonScan *scan, JsonPiece *value)
{
	JsonPiece	element;
	const char *start = scan->at;
	JsonStep	step;

	for (step = JsonFirstElement(scan); step == JSON_STEP_MEMBER; step = JsonNextElement(scan))
		if (!JsonScanValue(scan, &element))
			return false;
	value->kind = JSON_KIND_ARRAY;
	value->bytes = start;
	value->len = (int32) (scan->at - start);
	return step == JSON_STEP_END;
}

/* Recursion ends at max_depth. */
bool
JsonScanValue(JsonScan *scan, JsonPiece *value)
{
	if (scan->at >= scan->end)
		return refuse(scan, "the document ends too early");
	switch (*scan->at)
	{
		case '"':
			return scan_string(scan, value);
		case '{':
			return scan_object(scan, value);
		case '[':
			return scan_array(scan, value);
		case 't':
			return scan_word(scan, value, "true", 4, JSON_KIND_LITERAL);
		case 'f':
			return scan_word(scan, value, "false", 5, JSON_KIND_LITERAL);
		case 'n':
			return scan_word(scan, value, "null", 4, JSON_KIND_NULL);
		case '-':
		case '0':
		case '1':
		case '2':
		case '3':
		case '4':
		case '5':
		case '6':
		case '7':
		case '8':
		case '9':
			return scan_number(scan, value);
		default:
			return refuse(scan, "expected a JSON value");
	}
}

bool
JsonScanFinish(JsonScan *scan)
{
	skip_space(scan);
	return scan->at == scan->end || refuse(scan, "expected the end of the document");
}

/* ---- escapes ---- */

/* The four digits were checked by the scanner. */
static uint32
four_digits(const char *at)
{
	return hex_digit(at[0]) << 12 | hex_digit(at[1]) << 8 | hex_digit(at[2]) << 4 | hex_digit(at[3]);
}

static char *
put_utf8(char *out, uint32 code)
{
	if (code < 0x80)
		*out++ = (char) code;
	else if (code < 0x800)
	{
		*out++ = (char) (0xC0 | code >> 6);
		*out++ = (char) (0x80 | (code & 0x3F));
	}
	else if (code < 0x10000)
	{
		*out++ = (char) (0xE0 | code >> 12);
		*out++ = (char) (0x80 | (code >> 6 & 0x3F));
		*out++ = (char) (0x80 | (code & 0x3F));
	}
	else
	{
		*out++ = (char) (0xF0 | code >> 18);
		*out++ = (char) (0x80 | (code >> 12 & 0x3F));
		*out++ = (char) (0x80 | (code >> 6 & 0x3F));
		*out++ = (char) (0x80 | (code & 0x3F));
	}
	return out;
}

/* At the digits behind "\u": the character, and how far it reaches (a pair of surrogates is one). */
static const char *
take_unicode(const char *at, const char *end, uint32 *code, const char **problem)
{
	uint32		first = four_digits(at);

	at += 4;
	*code = first;
	if (first == 0)
	{
		*problem = "\\u0000 cannot be converted to text";
		return NULL;
	}
	if (first >= 0xD800 && first <= 0xDBFF)
	{
		uint32		second = end - at >= 6 && at[0] == '\\' && at[1] == 'u' ? four_digits(at + 2) : 0;

		if (second < 0xDC00 || second > 0xDFFF)
		{
			*problem = "a Unicode high surrogate must be followed by a low one";
			return NULL;
		}
		*code = 0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00);
		at += 6;
	}
	else if (first >= 0xDC00 && first <= 0xDFFF)
	{
		*problem = "a Unicode low surrogate must follow a high one";
		return NULL;
	}
	return at;
}

int32
JsonUnescape(const JsonPiece *value, char *out, const char **problem)
{
	const char *at = value->bytes;
	const char *end = at + value->len;
	char	   *to = out;

	while (at < end)
	{
		const char *next = memchr(at, '\\', end - at);
		uint32		code;

		if (next == NULL)
			next = end;
		memcpy(to, at, next - at);
		to += next - at;
		if (next == end)
			break;
		at = next + 2;
		switch (next[1])
		{
			case 'b':
				*to++ = '\b';
				break;
			case 'f':
				*to++ = '\f';
				break;
			case 'n':
				*to++ = '\n';
				break;
			case 'r':
				*to++ = '\r';
				break;
			case 't':
				*to++ = '\t';
				break;
			case 'u':
				at = take_unicode(at, end, &code, problem);
				if (at == NULL)
					return -1;
				to = put_utf8(to, code);
				break;
			default:
				*to++ = next[1];
				break;
		}
	}
	return (int32) (to - out);
}
