/*
 * decode_check.c
 *		The decoders inside a server: against PostgreSQL's own input, and against the clock.
 *
 * A library of test functions, linked with the extension's objects. test/fuzz/run builds and loads it; it is never installed.
 */
#include "postgres.h"

#include <time.h>

#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_type.h"
#include "commands/copy.h"
#include "common/pg_prng.h"
#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "parser/parse_node.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "core/compat.h"
#include "stream/csv_scan.h"
#include "stream/decode.h"
#include "stream/json_scan.h"

#define INPUT_SIZE 600			/* bytes of a mutated input */

/* ---- inputs ---- */

/* Where inputs come from: seeds as they are, then what becomes of them. */
typedef struct Inputs
{
	Datum	   *seeds;			/* bytea */
	int			nseeds;
	const char *const *words;	/* bytes that the format gives a meaning */
	int			nwords;
	void		(*generate) (struct Inputs *inputs);	/* an input that is valid, mostly; NULL: seeds alone */
	int64		given;			/* inputs so far */
	pg_prng_state random;
	int			len;
	char		bytes[INPUT_SIZE + 1];	/* and a NUL */
} Inputs;

static uint32
below(Inputs *inputs, uint32 n)
{
	return pg_prng_uint32(&inputs->random) % n;
}

/* Bytes [from, from + removed) become these. */
static void
replace(Inputs *inputs, int from, int removed, const char *bytes, int len)
{
	if (inputs->len - removed + len > INPUT_SIZE)
		return;
	memmove(inputs->bytes + from + len, inputs->bytes + from + removed, inputs->len - from - removed);
	memcpy(inputs->bytes + from, bytes, len);
	inputs->len += len - removed;
}

static void
take_seed(Inputs *inputs, int number)
{
	bytea	   *seed = DatumGetByteaPP(inputs->seeds[number]);

	inputs->len = Min(VARSIZE_ANY_EXHDR(seed), INPUT_SIZE);
	memcpy(inputs->bytes, VARDATA_ANY(seed), inputs->len);
}

static void
mutate(Inputs *inputs)
{
	int			from = below(inputs, inputs->len + 1);
	int			wanted = below(inputs, 8);
	int			n = Min(wanted, inputs->len - from);
	char		piece[INPUT_SIZE];
	const char *word = inputs->words[below(inputs, inputs->nwords)];

	switch (below(inputs, 8))
	{
		case 0:					/* any byte */
			piece[0] = (char) below(inputs, 256);
			replace(inputs, from, Min(n, 1), piece, 1);
			break;
		case 1:					/* one bit */
			if (from < inputs->len)
				inputs->bytes[from] ^= 1 << below(inputs, 8);
			break;
		case 2:					/* less */
			replace(inputs, from, n, "", 0);
			break;
		case 3:					/* the same elsewhere */
			memcpy(piece, inputs->bytes + from, n);
			replace(inputs, below(inputs, inputs->len + 1), 0, piece, n);
			break;
		case 4:					/* the beginning of it, the end of another */
			{
				bytea	   *other = DatumGetByteaPP(inputs->seeds[below(inputs, inputs->nseeds)]);
				int			len = VARSIZE_ANY_EXHDR(other);
				int			start = below(inputs, len + 1);

				replace(inputs, from, inputs->len - from, VARDATA_ANY(other) + start, len - start);
				break;
			}
		default:				/* a word, in place of something or between */
			replace(inputs, from, below(inputs, 2) ? n : 0, word, (int) strlen(word));
			break;
	}
}

static void
next_input(Inputs *inputs)
{
	if (inputs->given < inputs->nseeds)
		take_seed(inputs, (int) inputs->given);
	else
	{
		int			mutations = below(inputs, 4) + 1;

		if (inputs->generate && below(inputs, 2) == 0)
		{
			inputs->generate(inputs);
			mutations = below(inputs, 3);
		}
		else
			take_seed(inputs, below(inputs, inputs->nseeds));
		while (mutations-- > 0)
			mutate(inputs);
	}
	inputs->bytes[inputs->len] = '\0';
	inputs->given++;
}

/* As both sides would get it: text without NULs, in the server's encoding. */
static bool
is_text(const Inputs *inputs)
{
	return memchr(inputs->bytes, '\0', inputs->len) == NULL &&
		pg_verifymbstr(inputs->bytes, inputs->len, true);
}

static void
start_inputs(Inputs *inputs, ArrayType *seeds, int64 random, const char *const *words, int nwords,
			 void (*generate) (Inputs *inputs))
{
	deconstruct_array(seeds, BYTEAOID, -1, false, TYPALIGN_INT, &inputs->seeds, NULL, &inputs->nseeds);
	inputs->words = words;
	inputs->nwords = nwords;
	inputs->generate = generate;
	inputs->given = 0;
	pg_prng_seed(&inputs->random, (uint64) random);
}

static void
disagree(const Inputs *inputs, const char *ours, const char *theirs)
{
	ereport(ERROR,
			(errmsg("verdicts differ: we say \"%s\", PostgreSQL \"%s\"", ours, theirs),
			 errdetail("Input " INT64_FORMAT ": %s", inputs->given,
					   TextDatumGetCString(DirectFunctionCall2(binary_encode,
															   PointerGetDatum(cstring_to_text_with_len(inputs->bytes, inputs->len)),
															   CStringGetTextDatum("escape"))))));
}

/* ---- JSON ---- */

static void
append(Inputs *inputs, const char *bytes)
{
	replace(inputs, inputs->len, 0, bytes, (int) strlen(bytes));
}

static void
append_one_of(Inputs *inputs, const char *const *choices, int n)
{
	append(inputs, choices[below(inputs, n)]);
}

/* A value of JSON, no deeper than this. */
static void
append_json(Inputs *inputs, int depth)
{
	static const char *const scalars[] = {
		"null", "true", "false", "0", "-0", "7", "-12.50", "1e9", "0.1E-7", "123456789012345678901234567890", "\"\"", "\"abc\"",
		"\"\\u00e9\\n\"", "\"\\ud83d\\ude00\"", "\"\\u0000\"", "\"\xc3\xa9\xe2\x82\xac\"", "\"\\\\\\\"\"", "\"\x7f\""
	};
	static const char *const spaces[] = {"", "", "", " ", "\n", "\t\r\n ", "  "};
	int			kind = depth > 0 ? below(inputs, 4) : 2;
	int			members = below(inputs, 4);

	append_one_of(inputs, spaces, lengthof(spaces));
	if (kind >= 2)
		append_one_of(inputs, scalars, lengthof(scalars));
	else
	{
		append(inputs, kind == 0 ? "{" : "[");
		for (int i = 0; i < members; i++)
		{
			append(inputs, i > 0 ? "," : "");
			append_one_of(inputs, spaces, lengthof(spaces));
			if (kind == 0)
			{
				append_one_of(inputs, scalars + 10, lengthof(scalars) - 10);
				append_one_of(inputs, spaces, lengthof(spaces));
				append(inputs, ":");
			}
			append_json(inputs, depth - 1);
		}
		append_one_of(inputs, spaces, lengthof(spaces));
		append(inputs, kind == 0 ? "}" : "]");
	}
	append_one_of(inputs, spaces, lengthof(spaces));
}

static void
generate_json(Inputs *inputs)
{
	inputs->len = 0;
	append_json(inputs, 5);
}

/* NULL: json's input function takes it; else its words. */
static const char *
json_input_says(FmgrInfo *input, Oid ioparam, char *text)
{
	MemoryContext context = CurrentMemoryContext;
	ErrorSaveContext soft = {T_ErrorSaveContext, false, true, NULL};
	ErrorData  *volatile error = NULL;
	Datum		value;

	PG_TRY();
	{
		if (!InputFunctionCallSafe(input, text, ioparam, -1, (Node *) &soft, &value))
			error = soft.error_data;
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
	}
	PG_END_TRY();
	return error ? error->message : NULL;
}

PG_FUNCTION_INFO_V1(json_agrees);

/* json_agrees(seeds bytea[], inputs bigint, random bigint): what was tried; an error where our scanner and json's input function differ */
Datum
json_agrees(PG_FUNCTION_ARGS)
{
	static const char *const words[] = {
		"{", "}", "[", "]", ",", ":", "\"", "\\", " ", "\t", "\n", "\\u", "\\ud83d", "\\ude00", "\\u0000", "\\n", "\\\"",
		"0", "-", ".", "e", "E+", "1", "12345678901234567890", "true", "false", "null", "\"a\"", "{\"a\": 1}", "[1, 2]",
		"\"a\":", "\x01", "\x7f", "\xc3\xa9", "\xe2\x82\xac", "\xf0\x9f\x98\x80", "\xc2\xa0", "/", "'", "\r"
	};
	Inputs		inputs;
	int64		count = PG_GETARG_INT64(1);
	int64		texts = 0;
	int64		valid = 0;
	MemoryContext scratch = AllocSetContextCreate(CurrentMemoryContext, "scratch", ALLOCSET_DEFAULT_SIZES);
	MemoryContext old;
	FmgrInfo	input;
	Oid			function;
	Oid			ioparam;

	getTypeInputInfo(JSONOID, &function, &ioparam);
	fmgr_info(function, &input);
	start_inputs(&inputs, PG_GETARG_ARRAYTYPE_P(0), PG_GETARG_INT64(2), words, lengthof(words), generate_json);
	old = MemoryContextSwitchTo(scratch);
	while (inputs.given < count)
	{
		JsonScan	scan;
		JsonPiece	value;
		bool		ours;
		const char *theirs;

		if (inputs.given % 1000 == 0)
		{
			MemoryContextReset(scratch);
			CHECK_FOR_INTERRUPTS();
		}
		next_input(&inputs);
		if (!is_text(&inputs))
			continue;
		texts++;
		JsonScanInit(&scan, inputs.bytes, inputs.len, INPUT_SIZE);
		ours = JsonScanValue(&scan, &value) && JsonScanFinish(&scan);
		theirs = json_input_says(&input, ioparam, inputs.bytes);
		if (ours != (theirs == NULL))
			disagree(&inputs, ours ? "valid" : scan.problem, theirs ? theirs : "valid");
		valid += ours;
	}
	MemoryContextSwitchTo(old);
	PG_RETURN_TEXT_P(cstring_to_text(psprintf(INT64_FORMAT " inputs, " INT64_FORMAT " of them text, " INT64_FORMAT " valid",
											  count, texts, valid)));
}

/* ---- CSV ---- */

/* What COPY reads from. Its callback has no argument. */
static Inputs *copy_input;
static int	copy_at;

static int
give_copy(void *out, int min, int max)
{
	int			n = Min(max, copy_input->len - copy_at);

	memcpy(out, copy_input->bytes + copy_at, n);
	copy_at += n;
	return n;
}

/* Does COPY find our fields on the one line of its input? NULL: yes; else its words. With ours NULL: does it find something else than one line? */
static const char *
copy_says(Inputs *inputs, Relation rel, const CsvField *ours, int nours)
{
	MemoryContext context = CurrentMemoryContext;
	const char *volatile said = NULL;

	copy_input = inputs;
	copy_at = 0;
	PG_TRY();
	{
		List	   *options = list_make1(makeDefElem("format", (Node *) makeString("csv"), -1));
		CopyFromState copy = BeginCopyFrom(make_parsestate(NULL), rel, NULL, NULL, false, give_copy, NIL, options);
		char	  **fields;
		int			n;

		if (!NextCopyFromRawFields(copy, &fields, &n))
			said = "no line";
		else
		{
			if (ours && n != nours)
				said = psprintf("%d fields", n);
			for (int i = 0; ours && said == NULL && i < n; i++)
			{
				char	   *text = palloc(ours[i].len + 1);
				int			len = ours[i].len;

				if (ours[i].quoted)
					len = CsvUnquote(&ours[i], text);
				else
					memcpy(text, ours[i].bytes, len);
				text[len] = '\0';
				if ((fields[i] == NULL) != ours[i].null || (fields[i] && strcmp(fields[i], text) != 0))
					said = psprintf("field %d is %s", i + 1, fields[i] ? fields[i] : "null");
			}
			if (said == NULL && NextCopyFromRawFields(copy, &fields, &n))
				said = "more than one line";
		}
		EndCopyFrom(copy);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		said = error->message;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	return said;
}

PG_FUNCTION_INFO_V1(csv_agrees);

/* csv_agrees(rel regclass, seeds bytea[], inputs bigint, random bigint): as json_agrees, for CSV and COPY into rel */
Datum
csv_agrees(PG_FUNCTION_ARGS)
{
	static const char *const words[] = {
		",", ",,", "\"", "\"\"", "\"\"\"", "\n", "\r", "\r\n", "\\", "\\.", "\\N", " ", "a", "\t", "\",\"", "\"\n\"", "\xc3\xa9", "NULL"
	};
	Relation	rel = table_open(PG_GETARG_OID(0), AccessShareLock);
	Inputs		inputs;
	int64		count = PG_GETARG_INT64(2);
	int64		texts = 0;
	int64		valid = 0;
	MemoryContext scratch = AllocSetContextCreate(CurrentMemoryContext, "scratch", ALLOCSET_DEFAULT_SIZES);
	MemoryContext old;

	start_inputs(&inputs, PG_GETARG_ARRAYTYPE_P(1), PG_GETARG_INT64(3), words, lengthof(words), NULL);
	old = MemoryContextSwitchTo(scratch);
	while (inputs.given < count)
	{
		CsvScan		scan;
		CsvField	fields[INPUT_SIZE + 1];
		CsvStep		step;
		int			n = 0;
		const char *theirs;

		MemoryContextReset(scratch);
		CHECK_FOR_INTERRUPTS();
		next_input(&inputs);
		/* To COPY, no bytes are no line, and "\." on a line of its own is the end of its input. */
		if (!is_text(&inputs) || inputs.len == 0 || strstr(inputs.bytes, "\\."))
			continue;
		texts++;
		CsvScanInit(&scan, inputs.bytes, inputs.len);
		while ((step = CsvNextField(&scan, &fields[n])) == CSV_STEP_FIELD)
			n++;
		theirs = copy_says(&inputs, rel, step == CSV_STEP_END ? fields : NULL, n);
		if ((step == CSV_STEP_END) != (theirs == NULL))
			disagree(&inputs, step == CSV_STEP_END ? "valid" : scan.problem, theirs ? theirs : "one line");
		valid += step == CSV_STEP_END;
	}
	MemoryContextSwitchTo(old);
	table_close(rel, AccessShareLock);
	PG_RETURN_TEXT_P(cstring_to_text(psprintf(INT64_FORMAT " inputs, " INT64_FORMAT " of them text, " INT64_FORMAT " valid",
											  count, texts, valid)));
}

/* ---- the clock ---- */

static Decoder *
prepare_for(const DecodeOps *ops, Oid relid)
{
	Relation	rel = table_open(relid, AccessShareLock);
	TupleDesc	desc = RelationGetDescr(rel);
	DecodeColumn *columns = palloc0(sizeof(DecodeColumn) * desc->natts);
	Decoder    *decoder;

	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		columns[i].attnum = i + 1;
		columns[i].name = pstrdup(NameStr(att->attname));
		columns[i].path = palloc(sizeof(char *));
		columns[i].path[0] = pstrdup(NameStr(att->attname));
		columns[i].npath = 1;
		columns[i].typid = att->atttypid;
		columns[i].typmod = att->atttypmod;
	}
	decoder = ops->prepare(columns, desc->natts);
	table_close(rel, AccessShareLock);
	return decoder;
}

PG_FUNCTION_INFO_V1(decode_time);

/* decode_time(rel regclass, format text, payload bytea, times int): nanoseconds of CPU to decode the payload into the columns of rel */
Datum
decode_time(PG_FUNCTION_ARGS)
{
	const DecodeOps *ops = DecodeFormat(text_to_cstring(PG_GETARG_TEXT_PP(1)));
	bytea	   *payload = PG_GETARG_BYTEA_PP(2);
	int			times = PG_GETARG_INT32(3);
	Decoder    *decoder = prepare_for(ops, PG_GETARG_OID(0));
	MemoryContext batch = AllocSetContextCreate(CurrentMemoryContext, "batch", ALLOCSET_DEFAULT_SIZES);
	Datum	   *values = palloc0(sizeof(Datum) * MaxTupleAttributeNumber);
	bool	   *isnull = palloc0(sizeof(bool) * MaxTupleAttributeNumber);
	MemoryContext old = MemoryContextSwitchTo(batch);
	struct timespec start;
	struct timespec end;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &start);
	for (int i = 0; i < times; i++)
	{
		DecodeError error;

		if (i % 10000 == 0)
		{
			MemoryContextReset(batch);
			CHECK_FOR_INTERRUPTS();
		}
		if (!ops->decode(decoder, VARDATA_ANY(payload), VARSIZE_ANY_EXHDR(payload), values, isnull, &error))
			ereport(ERROR, (errcode(error.sqlstate), errmsg("%s", error.message)));
	}
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &end);
	MemoryContextSwitchTo(old);
	PG_RETURN_FLOAT8(((end.tv_sec - start.tv_sec) * 1e9 + (end.tv_nsec - start.tv_nsec)) / times);
}
