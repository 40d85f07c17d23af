/*
 * json_scan.h
 *		A scanner over the bytes of one JSON document.
 *
 * It accepts the grammar of RFC 8259 as PostgreSQL's json input does, tells where values
 * lie, and copies nothing. It knows nothing of columns, throws nothing and allocates
 * nothing, so that it can be fuzzed without a server. That the bytes are valid UTF-8
 * without NULs is the caller's to check.
 */
#ifndef HYBRIDIOT_JSON_SCAN_H
#define HYBRIDIOT_JSON_SCAN_H

typedef enum JsonKind
{
	JSON_KIND_MISSING,			/* not in the document; never set by the scanner */
	JSON_KIND_NULL,
	JSON_KIND_LITERAL,			/* true or false */
	JSON_KIND_NUMBER,
	JSON_KIND_STRING,
	JSON_KIND_ARRAY,
	JSON_KIND_OBJECT
} JsonKind;

/* A value, where it lies in the document. Of a string, what is between its quotes. */
typedef struct JsonPiece
{
	JsonKind	kind;
	bool		escaped;		/* a string with backslashes */
	int32		len;
	const char *bytes;
} JsonPiece;

typedef struct JsonScan
{
	const char *start;
	const char *at;
	const char *end;
	int			depth;			/* objects and arrays that at lies in */
	int			max_depth;
	bool		too_deep;		/* the problem is max_depth, not the grammar */
	const char *problem;		/* what is wrong at "at", once a function returned false */
} JsonScan;

typedef enum JsonStep
{
	JSON_STEP_MEMBER,			/* at a member's key, or at an element */
	JSON_STEP_END,				/* behind the object or array */
	JSON_STEP_BAD
} JsonStep;

extern void JsonScanInit(JsonScan *scan, const char *bytes, int32 len, int max_depth);

/* At a value: pass over it. false: it is none, problem says why. */
extern bool JsonScanValue(JsonScan *scan, JsonPiece *value);

/* At an object: enter it, up to its first member's key. Then pass over key and value, and go on. */
extern JsonStep JsonFirstMember(JsonScan *scan);
extern JsonStep JsonNextMember(JsonScan *scan);
/* At a key: up to its value. */
extern bool JsonScanKey(JsonScan *scan, JsonPiece *key);
/*
 * The same in one comparison if the key is this very name, spelled without escapes; else false, and nothing is passed
 * over. The name must hold nothing that JSON would escape.
 */
extern bool JsonPassKey(JsonScan *scan, const char *name, int32 len);

/* The same with an array and its elements. */
extern JsonStep JsonFirstElement(JsonScan *scan);
extern JsonStep JsonNextElement(JsonScan *scan);

/* Behind the document's value: is there nothing but white space? */
extern bool JsonScanFinish(JsonScan *scan);

/*
 * The text of a string, as UTF-8, into out, which must have room for value->len bytes.
 * Returns its length, or -1 and the problem if it has none: NUL, or half a surrogate pair.
 */
extern int32 JsonUnescape(const JsonPiece *value, char *out, const char **problem);

#endif							/* HYBRIDIOT_JSON_SCAN_H */
