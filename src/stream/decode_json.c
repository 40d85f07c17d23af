/*
 * decode_json.c
 *		JSON payloads: one DecodeOps.
 *
 * A payload is scanned once. What lies at a column's path is noted, as a piece of the payload, and
 * converted when the whole document has proven valid; so of duplicate keys the
 * last one wins, whatever the others held, and nothing is allocated for what no column wants.
 *
 * Paths are a tree of nodes, in preorder. Fields mostly come in the order they came in before: each node
 * remembers which of its siblings followed it, so that the usual order costs one
 * comparison a field; any other is found by a hash of the name.
 *
 * The payload is UTF-8, whatever the server's encoding. Names are compared and escapes resolved in UTF-8;
 * a value is brought into the server's encoding at the end.
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "mb/pg_wchar.h"

#include "stream/convert.h"
#include "stream/decode.h"
#include "stream/json_scan.h"

#define NO_NODE (-1)
#define ROOT 0

/* A step of some column's path. */
typedef struct PathNode
{
	const char *name;			/* UTF-8 */
	int32		len;
	uint32		hash;
	bool		plain;			/* nothing in the name is ever escaped */
	int			parent;
	int			end;			/* the first node behind this one's descendants */
	int			follower;		/* the sibling that came behind this one the last time */
	int			first_child;	/* the child that came first the last time; NO_NODE: a leaf */
	int		   *children;		/* by hash, open addressing; NO_NODE where free */
	uint32		mask;
	JsonPiece	piece;			/* what the present record has here */
} PathNode;

typedef struct Column
{
	int			place;			/* in values and isnull */
	int			node;
	bool		takes_json;
	Converter  *converter;
} Column;

struct Decoder
{
	PathNode   *nodes;
	int			nnodes;
	Column	   *columns;
	int			ncolumns;
	DecodeBuffer text;			/* a string without its escapes */
};

/* ---- preparing ---- */

/* Columns in the order of their paths, so that what begins alike stands together. */
static int
compare_paths(const void *a, const void *b)
{
	const DecodeColumn *one = *(const DecodeColumn *const *) a;
	const DecodeColumn *other = *(const DecodeColumn *const *) b;

	for (int i = 0; i < one->npath && i < other->npath; i++)
	{
		int			order = strcmp(one->path[i], other->path[i]);

		if (order != 0)
			return order;
	}
	return one->npath - other->npath;
}

static int
add_node(Decoder *decoder, int parent, const char *name)
{
	PathNode   *node = &decoder->nodes[decoder->nnodes];

	memset(node, 0, sizeof(PathNode));
	node->parent = parent;
	node->name = pg_server_to_any(pstrdup(name), strlen(name), PG_UTF8);
	node->len = (int32) strlen(node->name);
	node->hash = hash_bytes((const unsigned char *) node->name, node->len);
	node->plain = true;
	for (int i = 0; i < node->len; i++)
		if (node->name[i] == '"' || node->name[i] == '\\' || (unsigned char) node->name[i] < 0x20)
			node->plain = false;
	node->first_child = node->follower = NO_NODE;
	return decoder->nnodes++;
}

/* The node of a column's path; its steps are left in nodes, those shared with the column before are its. */
static int
reach_node(Decoder *decoder, const DecodeColumn *column, const DecodeColumn *before,
		   const int *before_nodes, int *nodes)
{
	int			parent = ROOT;
	bool		alike = before != NULL;

	for (int i = 0; i < column->npath; i++)
	{
		alike = alike && i < before->npath && strcmp(before->path[i], column->path[i]) == 0;
		nodes[i] = alike ? before_nodes[i] : add_node(decoder, parent, column->path[i]);
		parent = nodes[i];
	}
	return parent;
}

/* A table of each node's children, no more than half full. */
static void
hash_children(Decoder *decoder)
{
	for (int i = 0; i < decoder->nnodes; i++)
	{
		PathNode   *node = &decoder->nodes[i];
		int			n = 0;
		uint32		size = 2;

		/* In preorder each child begins where its elder sibling ends. */
		node->end = i + 1;
		while (node->end < decoder->nnodes && decoder->nodes[node->end].parent >= i)
			n += decoder->nodes[node->end++].parent == i;
		if (n == 0)
			continue;
		while (size < 2 * (uint32) n)
			size *= 2;
		node->mask = size - 1;
		node->children = palloc(sizeof(int) * size);
		for (uint32 k = 0; k < size; k++)
			node->children[k] = NO_NODE;
		node->first_child = i + 1;
		for (int child = i + 1; child < node->end; child++)
		{
			uint32		place = decoder->nodes[child].hash & node->mask;

			if (decoder->nodes[child].parent != i)
				continue;
			while (node->children[place] != NO_NODE)
				place = (place + 1) & node->mask;
			node->children[place] = child;
		}
	}
}

static Decoder *
json_prepare(const DecodeColumn *columns, int ncolumns)
{
	Decoder    *decoder = palloc0(sizeof(Decoder));
	const DecodeColumn **sorted = palloc(sizeof(DecodeColumn *) * Max(ncolumns, 1));
	int			nsteps = 1;
	int			longest = 1;
	int		   *before;
	int		   *nodes;

	for (int i = 0; i < ncolumns; i++)
	{
		Assert(columns[i].npath > 0);
		sorted[i] = &columns[i];
		nsteps += columns[i].npath;
		longest = Max(longest, columns[i].npath);
	}
	qsort(sorted, ncolumns, sizeof(DecodeColumn *), compare_paths);

	DecodeBufferInit(&decoder->text);
	decoder->nodes = palloc(sizeof(PathNode) * nsteps);
	decoder->columns = palloc(sizeof(Column) * Max(ncolumns, 1));
	decoder->ncolumns = ncolumns;
	before = palloc(sizeof(int) * longest);
	nodes = palloc(sizeof(int) * longest);
	(void) add_node(decoder, NO_NODE, "");
	for (int i = 0; i < ncolumns; i++)
	{
		Column	   *column = &decoder->columns[i];
		int		   *swap = before;

		column->node = reach_node(decoder, sorted[i], i > 0 ? sorted[i - 1] : NULL, before, nodes);
		column->place = sorted[i]->attnum - 1;
		column->converter = ConverterCreate(sorted[i]->name, sorted[i]->typid, sorted[i]->typmod);
		column->takes_json = ConverterTakesJson(column->converter);
		before = nodes;
		nodes = swap;
	}
	hash_children(decoder);
	pfree(sorted);
	pfree(before);
	pfree(nodes);
	return decoder;
}

/* ---- scanning ---- */

static inline bool
has_name(const PathNode *node, const char *name, int32 len)
{
	return node->len == len && memcmp(node->name, name, len) == 0;
}

/* The child that a key names; guess: which one came here the last time. */
static int
find_child(Decoder *decoder, int parent, int *guess, const JsonPiece *key)
{
	const char *name = key->bytes;
	int32		len = key->len;
	PathNode   *node = &decoder->nodes[parent];
	uint32		place;

	if (key->escaped)
	{
		const char *problem;
		char	   *text = DecodeBufferReserve(&decoder->text, len);

		/* What cannot be text is no column's name. */
		len = JsonUnescape(key, text, &problem);
		if (len < 0)
			return NO_NODE;
		name = text;
	}
	if (*guess != NO_NODE && has_name(&decoder->nodes[*guess], name, len))
		return *guess;
	place = hash_bytes((const unsigned char *) name, len) & node->mask;
	for (; node->children[place] != NO_NODE; place = (place + 1) & node->mask)
		if (has_name(&decoder->nodes[node->children[place]], name, len))
			return *guess = node->children[place];
	return NO_NODE;
}

static inline void
forget(Decoder *decoder, int from, int end)
{
	for (int i = from; i < end; i++)
		decoder->nodes[i].piece.kind = JSON_KIND_MISSING;
}

/* At an object with columns in it. As deep as the longest path at most. */
static bool
scan_columns(Decoder *decoder, JsonScan *scan, int parent)
{
	JsonPiece  *piece = &decoder->nodes[parent].piece;
	const char *start = scan->at;
	JsonPiece	key;
	JsonPiece	unwanted;
	JsonStep	step;
	int			last = NO_NODE;

	for (step = JsonFirstMember(scan); step == JSON_STEP_MEMBER; step = JsonNextMember(scan))
	{
		int		   *guess = last == NO_NODE ? &decoder->nodes[parent].first_child : &decoder->nodes[last].follower;
		int			child = *guess;
		PathNode   *node = &decoder->nodes[Max(child, 0)];

		if (child == NO_NODE || !node->plain || !JsonPassKey(scan, node->name, node->len))
		{
			if (!JsonScanKey(scan, &key))
				return false;
			child = find_child(decoder, parent, guess, &key);
		}
		if (child == NO_NODE)
		{
			if (!JsonScanValue(scan, &unwanted))
				return false;
			continue;
		}
		node = &decoder->nodes[child];
		last = child;
		/* The same key again: what the first one held does not count. */
		if (node->piece.kind != JSON_KIND_MISSING)
			forget(decoder, child, node->end);
		if (node->children != NULL && scan->at < scan->end && *scan->at == '{')
		{
			if (!scan_columns(decoder, scan, child))
				return false;
		}
		else if (!JsonScanValue(scan, &node->piece))
			return false;
	}
	if (step == JSON_STEP_BAD)
		return false;
	piece->kind = JSON_KIND_OBJECT;
	piece->bytes = start;
	piece->len = (int32) (scan->at - start);
	return true;
}

static bool
refuse_scan(const JsonScan *scan, DecodeError *error)
{
	int			sqlstate = scan->too_deep ? ERRCODE_STATEMENT_TOO_COMPLEX : ERRCODE_INVALID_TEXT_REPRESENTATION;
	int			place = (int) (scan->at - scan->start);

	if (scan->at < scan->end && *scan->at > ' ' && *scan->at < 0x7F)
		return DecodeRefuse(error, sqlstate, "invalid JSON: %s, at byte %d, \"%c\"", scan->problem, place, *scan->at);
	return DecodeRefuse(error, sqlstate, "invalid JSON: %s, at byte %d", scan->problem, place);
}

static bool
scan_document(Decoder *decoder, const char *bytes, int32 len, DecodeError *error)
{
	JsonScan	scan;
	JsonPiece	whole;

	if (!DecodeCheckUtf8(bytes, len, error))
		return false;
	forget(decoder, ROOT, decoder->nnodes);
	JsonScanInit(&scan, bytes, len, HYBRIDIOT_JSON_DEPTH);
	if (scan.at < scan.end && *scan.at == '{' && decoder->ncolumns > 0)
	{
		if (!scan_columns(decoder, &scan, ROOT) || !JsonScanFinish(&scan))
			return refuse_scan(&scan, error);
		return true;
	}
	if (!JsonScanValue(&scan, &whole) || !JsonScanFinish(&scan))
		return refuse_scan(&scan, error);
	return whole.kind == JSON_KIND_OBJECT ||
		DecodeRefuse(error, ERRCODE_INVALID_TEXT_REPRESENTATION, "payload is not a JSON object");
}

/* ---- values ---- */

/* Nothing lies at the path: NULL, if all above it is an object, NULL or missing itself. */
static bool
convert_missing(Decoder *decoder, const Column *column, DecodeError *error)
{
	for (int i = decoder->nodes[column->node].parent; i != ROOT; i = decoder->nodes[i].parent)
	{
		const PathNode *node = &decoder->nodes[i];

		if (node->piece.kind != JSON_KIND_MISSING && node->piece.kind != JSON_KIND_NULL &&
			node->piece.kind != JSON_KIND_OBJECT)
			return ConvertRefuse(column->converter, node->piece.bytes, node->piece.len,
								 ERRCODE_INVALID_TEXT_REPRESENTATION,
								 "its path leads through what is not a JSON object", error);
	}
	return ConvertNull(column->converter, error);
}

/* Throws nothing about the value; see convert.h. */
static bool
convert_piece(Decoder *decoder, const Column *column, Datum *value, DecodeError *error)
{
	const JsonPiece *piece = &decoder->nodes[column->node].piece;
	const char *text = piece->bytes;
	int32		len = piece->len;
	ConvertForm form = CONVERT_JSON;
	const char *problem;

	if (column->takes_json)
	{
		if (piece->kind == JSON_KIND_STRING)
		{
			text--;				/* with its quotes */
			len += 2;
		}
	}
	else if (piece->kind == JSON_KIND_STRING)
	{
		form = CONVERT_STRING;
		if (piece->escaped)
		{
			char	   *buffer = DecodeBufferReserve(&decoder->text, len);

			len = JsonUnescape(piece, buffer, &problem);
			text = buffer;
			if (len < 0)
				return ConvertRefuse(column->converter, piece->bytes, piece->len,
									 ERRCODE_UNTRANSLATABLE_CHARACTER, problem, error);
		}
	}
	else if (piece->kind == JSON_KIND_NUMBER)
		form = CONVERT_NUMBER;
	else if (piece->kind == JSON_KIND_LITERAL)
		form = CONVERT_LITERAL;
	return Convert(column->converter, form, text, len, value, error);
}

static bool
json_decode(Decoder *decoder, const char *bytes, int32 len, Datum *values, bool *isnull,
			DecodeError *error)
{
	if (!scan_document(decoder, bytes, len, error))
		return false;
	for (int i = 0; i < decoder->ncolumns; i++)
	{
		const Column *column = &decoder->columns[i];
		JsonKind	kind = decoder->nodes[column->node].piece.kind;

		isnull[column->place] = kind == JSON_KIND_MISSING || kind == JSON_KIND_NULL;
		if (isnull[column->place] ?
			!convert_missing(decoder, column, error) :
			!convert_piece(decoder, column, &values[column->place], error))
			return false;
	}
	return true;
}

const DecodeOps DecodeJson = {
	.format = "json",
	.prepare = json_prepare,
	.decode = json_decode,
};
