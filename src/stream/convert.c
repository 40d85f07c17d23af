/*
 * convert.c
 *		From the text of one value to the Datum of a column.
 *
 * The usual spellings of the usual types are read by fast_input.c; the type's input function
 * takes all others, and finds the words for what is wrong. Arrays and composites
 * given as JSON go through json_populate_record() and a row type of one column.
 *
 * Errors about a value are returned. PostgreSQL's own input functions report them
 * softly or, before 16 all and then a few, throw them in a state that is safe to catch. Whatever can reach code of users (domains,
 * types of extensions, and what contains them) is run in a subtransaction, because such code may
 * leave more behind than memory when it throws.
 */
#include "postgres.h"

#include <math.h>

#include "access/htup_details.h"
#include "access/transam.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "common/int.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "nodes/makefuncs.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/date.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"
#include "utils/typcache.h"

#include "core/compat.h"
#include "core/worker.h"
#include "stream/convert.h"
#include "stream/fast_input.h"
#include "stream/json_scan.h"

#define SHOWN_LEN 48			/* bytes of a value in a message */
#define REASON_LEN 160
#define KEPT_BUFFER (64 * 1024) /* a larger one is given back after use */
#define FAST_ELEMENTS 1000000	/* a larger array may be too large: json_populate_record() finds the words */
#define SECONDS_BELOW INT64CONST(100000000000)	/* epoch numbers: 10^11, March 1973 in ms, the year 5138 in s */

struct Converter
{
	const char *column;
	Oid			typid;			/* of the column */
	Oid			base;			/* without domains */
	int32		typmod;			/* of base */
	bool		is_domain;
	bool		structured;		/* array or composite: JSON goes through json_populate_record() */
	bool		user_code;		/* converting to base may run code of users */
	bool		to_server;		/* the server's encoding is not UTF-8 */
	FmgrInfo	input;
	Oid			ioparam;
	StringInfoData buffer;		/* a value's text, NUL-terminated */
	MemoryContext context;
	void	   *domain_cache;

	/* for arrays whose elements fast_input() may know */
	struct Converter *element;	/* NULL: not such an array */
	int16		element_len;
	bool		element_byval;
	char		element_align;

	/* for structured types */
	MemoryContext populate_context; /* what populate remembers; reset when it threw */
	FmgrInfo	populate;
	Node	   *populate_call;
	TupleDesc	populate_row;	/* one column, "f" */
	Datum		populate_null;	/* a row of it */
};

/* ---- preparing ---- */

/* May the input of this type run code that is not PostgreSQL's own? */
static bool
may_run_user_code(Oid typid)
{
	Oid			element = get_element_type(typid);
	Oid			input;
	Oid			ioparam;

	if (OidIsValid(element))
		return may_run_user_code(element);
	getTypeInputInfo(typid, &input, &ioparam);
	switch (input)
	{
		case F_DOMAIN_IN:
		case F_RECORD_IN:
		case F_RANGE_IN:
		case F_MULTIRANGE_IN:
		case F_ARRAY_IN:
			return true;
		default:
			return input >= FirstGenbkiObjectId;
	}
}

static void
start_populate(Converter *converter)
{
	MemoryContextReset(converter->populate_context);
	fmgr_info_cxt(F_JSON_POPULATE_RECORD, &converter->populate, converter->populate_context);
	fmgr_info_set_expr(converter->populate_call, &converter->populate);
}

static void
prepare_populate(Converter *converter)
{
	bool		isnull = true;
	Datum		nothing = (Datum) 0;
	HeapTuple	row;
	Const	   *base = makeConst(RECORDOID, -1, InvalidOid, -1, (Datum) 0, true, false);

	converter->populate_context = AllocSetContextCreate(converter->context, "hybridiot populate",
														ALLOCSET_SMALL_SIZES);
	converter->populate_row = CreateTemplateTupleDesc(1);
	TupleDescInitEntry(converter->populate_row, 1, "f", converter->base, converter->typmod, 0);
	converter->populate_row = BlessTupleDesc(converter->populate_row);
	row = heap_form_tuple(converter->populate_row, &nothing, &isnull);
	converter->populate_null = HeapTupleGetDatum(row);

	/* The function asks its call for the type of its first argument, and the row for the rest. */
	converter->populate_call = (Node *) makeFuncExpr(F_JSON_POPULATE_RECORD, RECORDOID,
													 list_make1(base), InvalidOid, InvalidOid,
													 COERCE_EXPLICIT_CALL);
	start_populate(converter);
}

/* Elements of a domain are not for fast_input(). */
static void
prepare_elements(Converter *converter)
{
	Oid			typid = get_element_type(converter->base);

	/* A vector does not begin at 1. */
	if (!OidIsValid(typid) || getBaseType(typid) != typid ||
		get_array_type(typid) != converter->base)
		return;
	converter->element = ConverterCreate(converter->column, typid, converter->typmod);
	get_typlenbyvalalign(typid, &converter->element_len, &converter->element_byval, &converter->element_align);
}

Converter *
ConverterCreate(const char *column, Oid typid, int32 typmod)
{
	Converter  *converter = palloc0(sizeof(Converter));
	Oid			input;

	converter->column = pstrdup(column);
	converter->context = CurrentMemoryContext;
	converter->typid = typid;
	converter->typmod = typmod;
	converter->base = getBaseTypeAndTypmod(typid, &converter->typmod);
	converter->is_domain = converter->base != typid;
	converter->to_server = GetDatabaseEncoding() != PG_UTF8 && GetDatabaseEncoding() != PG_SQL_ASCII;
	converter->structured = OidIsValid(get_element_type(converter->base)) ||
		get_typtype(converter->base) == TYPTYPE_COMPOSITE;
	converter->user_code = may_run_user_code(converter->base);
	getTypeInputInfo(converter->base, &input, &converter->ioparam);
	fmgr_info(input, &converter->input);
	initStringInfo(&converter->buffer);
	if (converter->structured)
		prepare_populate(converter);
	prepare_elements(converter);
	return converter;
}

bool
ConverterTakesJson(const Converter *converter)
{
	return converter->base == JSONOID || converter->base == JSONBOID;
}

/* ---- errors ---- */

static inline bool
is_ascii(const char *text, int32 len)
{
	for (int32 i = 0; i < len; i++)
		if (IS_HIGHBIT_SET(text[i]))
			return false;
	return true;
}

/* The text is in the server's encoding here. NULL: it cannot be shown. */
static bool
refuse(const Converter *converter, const char *text, int32 len, int sqlstate, const char *reason,
	   DecodeError *error)
{
	char		shown[SHOWN_LEN + 6];
	int			n = text ? pg_mbcliplen(text, len, SHOWN_LEN) : 0;
	int			reason_len = pg_mbcliplen(reason, strlen(reason), REASON_LEN);

	snprintf(shown, sizeof(shown), "\"%.*s%s\"", n, text ? text : "", n < len ? "..." : "");

	/* Most of PostgreSQL's own messages end with the value. */
	if (text == NULL || strstr(reason, shown))
		return DecodeRefuse(error, sqlstate, "column \"%s\": %.*s", converter->column, reason_len, reason);
	return DecodeRefuse(error, sqlstate, "column \"%s\" cannot take %s: %.*s",
						converter->column, shown, reason_len, reason);
}

bool
ConvertRefuse(const Converter *converter, const char *text, int32 len, int sqlstate,
			  const char *reason, DecodeError *error)
{
	bool		shown = !converter->to_server || is_ascii(text, len);

	return refuse(converter, shown ? text : NULL, shown ? len : 0, sqlstate, reason, error);
}

/* One try at what may throw. */
typedef struct Attempt
{
	Converter  *converter;
	char	   *text;			/* NUL-terminated */
	int32		len;
	Datum		value;
	bool		isnull;
	ErrorData  *error;			/* one that was not thrown */
} Attempt;

/*
 * Is what a step threw the value's fault? Names that do not exist (42) and what cannot be
 * taken (0A) are, too, when PostgreSQL's own input says so (regclass, aclitem, tsvector).
 * Code of users says such things of itself.
 */
static bool
value_at_fault(int sqlstate, bool user_code)
{
	int			class = ERRCODE_TO_CATEGORY(sqlstate);

	return ErrorClassify(sqlstate) == ERROR_BAD_RECORD ||
		sqlstate == ERRCODE_SYNTAX_ERROR || sqlstate == ERRCODE_CARDINALITY_VIOLATION ||
		(!user_code && (class == ERRCODE_SYNTAX_ERROR_OR_ACCESS_RULE_VIOLATION ||
						class == ERRCODE_FEATURE_NOT_SUPPORTED));
}

/*
 * Run a step; an error about the value is returned, copied to the current memory context, others are
 * thrown on. user_code: in a subtransaction, but for parallel mode, which has none (a
 * session's own scan beside parallel workers; there an error in code of users ends
 * the statement as any other does).
 */
static ErrorData *
attempt(void (*step) (Attempt *), Attempt *what, bool user_code)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	ErrorData  *volatile error = NULL;

	if (user_code && IsInParallelMode())
	{
		step(what);
		return what->error;
	}
	if (user_code)
	{
		BeginInternalSubTransaction(NULL);
		MemoryContextSwitchTo(context);
	}
	PG_TRY();
	{
		step(what);
		if (user_code)
			ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		if (user_code)
			RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	if (error && !value_at_fault(error->sqlerrcode, user_code))
		ReThrowError(error);
	return error ? error : what->error;
}

/* ---- steps ---- */

static void
step_input(Attempt *what)
{
	Converter  *converter = what->converter;
	ErrorSaveContext soft = {T_ErrorSaveContext, false, true, NULL};

	if (!InputFunctionCallSafe(&converter->input, what->text, converter->ioparam, converter->typmod,
							   (Node *) &soft, &what->value))
		what->error = soft.error_data;
}

static void
step_populate(Attempt *what)
{
	Converter  *converter = what->converter;
	StringInfoData json;
	Datum		row;
	HeapTupleHeader header;
	HeapTupleData tuple;

	initStringInfo(&json);
	appendStringInfoString(&json, "{\"f\":");
	appendBinaryStringInfo(&json, what->text, what->len);
	appendStringInfoChar(&json, '}');
	row = FunctionCall3(&converter->populate, converter->populate_null,
						PointerGetDatum(cstring_to_text_with_len(json.data, json.len)),
						BoolGetDatum(false));
	pfree(json.data);
	header = DatumGetHeapTupleHeader(row);
	tuple.t_len = HeapTupleHeaderGetDatumLength(header);
	ItemPointerSetInvalid(&tuple.t_self);
	tuple.t_tableOid = InvalidOid;
	tuple.t_data = header;
	what->value = heap_getattr(&tuple, 1, converter->populate_row, &what->isnull);
}

static void
step_domain(Attempt *what)
{
	Converter  *converter = what->converter;

	domain_check(what->value, what->isnull, converter->typid, &converter->domain_cache,
				 converter->context);
}

static void
step_encoding(Attempt *what)
{
	what->text = pg_any_to_server(what->text, what->len, PG_UTF8);
}

/* ---- converting ---- */

/* The value's text with a NUL behind it, in the converter's buffer. */
static char *
terminated(Converter *converter, const char *text, int32 len)
{
	StringInfo	buffer = &converter->buffer;

	if (buffer->maxlen > KEPT_BUFFER && len < KEPT_BUFFER)
	{
		MemoryContext old = MemoryContextSwitchTo(converter->context);

		pfree(buffer->data);
		initStringInfo(buffer);
		MemoryContextSwitchTo(old);
	}
	resetStringInfo(buffer);
	appendBinaryStringInfo(buffer, text, len);
	return buffer->data;
}

/* Run a step on a text; what it finds wrong goes to *error. */
static bool
try_step(Converter *converter, void (*step) (Attempt *), const char *text, int32 len, bool user_code,
		 Datum *value, DecodeError *error)
{
	Attempt		what = {converter, terminated(converter, text, len), len};
	ErrorData  *failed = attempt(step, &what, user_code);

	*value = what.value;
	if (failed == NULL)
		return true;
	if (step == step_populate)
		start_populate(converter);
	(void) refuse(converter, text, len, failed->sqlerrcode, failed->message, error);
	FreeErrorData(failed);
	return false;
}

/*
 * Seconds or milliseconds since 1970, as a JSON number, to a timestamp in UTC. Which of the two, the size
 * says: nobody's readings are of the year 5138, and hardly any of January 1970.
 */
static bool
epoch_timestamp(Converter *converter, const char *text, int32 len, Timestamp *value)
{
	int64		number;
	double		us;

	if (FastInteger(text, len, &number))
	{
		int64		unit = number < SECONDS_BELOW && number > -SECONDS_BELOW ? USECS_PER_SEC : 1000;

		if (pg_mul_s64_overflow(number, unit, value))
			return false;
	}
	else
	{
		us = strtod(terminated(converter, text, len), NULL);
		us = rint(us * (fabs(us) < SECONDS_BELOW ? USECS_PER_SEC : 1000.0));
		if (!FLOAT8_FITS_IN_INT64(us))
			return false;
		*value = (int64) us;
	}
	return !pg_sub_s64_overflow(*value,
								(POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * USECS_PER_DAY,
								value) &&
		IS_VALID_TIMESTAMP(*value);
}

static bool
from_epoch(Converter *converter, const char *text, int32 len, Datum *value, DecodeError *error)
{
	Timestamp	when;
	int64		days;

	if (!epoch_timestamp(converter, text, len, &when))
		return refuse(converter, text, len, ERRCODE_DATETIME_VALUE_OUT_OF_RANGE,
					  "seconds or milliseconds since 1970 are out of range", error);
	if (converter->base == DATEOID)
	{
		days = when / USECS_PER_DAY - (when % USECS_PER_DAY < 0 ? 1 : 0);
		*value = DateADTGetDatum((DateADT) days);
	}
	else
	{
		*value = TimestampGetDatum(when);
		if (converter->typmod >= 0)
			*value = converter->base == TIMESTAMPOID ?
				DirectFunctionCall2(timestamp_scale, *value, Int32GetDatum(converter->typmod)) :
				DirectFunctionCall2(timestamptz_scale, *value, Int32GetDatum(converter->typmod));
	}
	return true;
}

/* bytea from JSON: a string in base64, or with hexadecimal digits behind \x. */
static bool
from_json_bytes(Converter *converter, ConvertForm form, const char *text, int32 len, Datum *value,
				DecodeError *error)
{
	if (form != CONVERT_STRING)
		return refuse(converter, text, len, ERRCODE_INVALID_TEXT_REPRESENTATION,
					  "bytes are written as a string", error);
	if (len >= 2 && text[0] == '\\' && text[1] == 'x')
		return try_step(converter, step_input, text, len, false, value, error);
	return FastBase64(text, len, value) ||
		refuse(converter, text, len, ERRCODE_INVALID_TEXT_REPRESENTATION,
			   "bytes are written in base64, or as hexadecimal digits behind \"\\x\"", error);
}

/* char(n) from no more than n characters, all ASCII: blanks up to n. */
static bool
fast_bpchar(const char *chars, int32 len, int32 typmod, Datum *value)
{
	int32		width = typmod - (int32) VARHDRSZ;
	text	   *padded;

	if (len > width || !is_ascii(chars, len))
		return false;
	padded = palloc(typmod);
	SET_VARSIZE(padded, typmod);
	memcpy(VARDATA(padded), chars, len);
	memset(VARDATA(padded) + len, ' ', width - len);
	*value = PointerGetDatum(padded);
	return true;
}

/* What needs no input function. false: it has to be asked. */
static inline bool
fast_input(Converter *converter, const char *text, int32 len, Datum *value)
{
	int64		integer;
	double		float8;
	float		float4;
	Timestamp	timestamp;
	DateADT		date;
	pg_uuid_t	uuid;

	switch (converter->base)
	{
		case BPCHAROID:
			if (converter->typmod >= (int32) VARHDRSZ)
				return fast_bpchar(text, len, converter->typmod, value);
			 /* FALLTHROUGH */
		case TEXTOID:
		case VARCHAROID:
			if (converter->typmod >= (int32) VARHDRSZ && len > converter->typmod - (int32) VARHDRSZ)
				return false;
			*value = PointerGetDatum(cstring_to_text_with_len(text, len));
			return true;
		case BOOLOID:
			if (len == 4 && memcmp(text, "true", 4) == 0)
				*value = BoolGetDatum(true);
			else if (len == 5 && memcmp(text, "false", 5) == 0)
				*value = BoolGetDatum(false);
			else
				return false;
			return true;
		case INT2OID:
			if (!FastInteger(text, len, &integer) || integer < PG_INT16_MIN || integer > PG_INT16_MAX)
				return false;
			*value = Int16GetDatum((int16) integer);
			return true;
		case INT4OID:
			if (!FastInteger(text, len, &integer) || integer < PG_INT32_MIN || integer > PG_INT32_MAX)
				return false;
			*value = Int32GetDatum((int32) integer);
			return true;
		case INT8OID:
			if (!FastInteger(text, len, &integer))
				return false;
			*value = Int64GetDatum(integer);
			return true;
		case FLOAT8OID:
			if (!FastFloat8(text, len, &float8))
				return false;
			*value = Float8GetDatum(float8);
			return true;
		case FLOAT4OID:
			if (!FastFloat4(text, len, &float4))
				return false;
			*value = Float4GetDatum(float4);
			return true;
		case NUMERICOID:
			return converter->typmod < 0 && FastNumeric(text, len, value);
		case TIMESTAMPTZOID:
		case TIMESTAMPOID:
			if (converter->typmod >= 0 ||
				!FastTimestamp(text, len, converter->base == TIMESTAMPTZOID, &timestamp))
				return false;
			*value = TimestampGetDatum(timestamp);
			return true;
		case DATEOID:
			if (!FastDate(text, len, &date))
				return false;
			*value = DateADTGetDatum(date);
			return true;
		case UUIDOID:
			if (!FastUuid(text, len, &uuid))
				return false;
			*value = PointerGetDatum(memcpy(palloc(sizeof(uuid)), &uuid, sizeof(uuid)));
			return true;
		default:
			return false;
	}
}

/*
 * A flat JSON array of scalars that fast_input() knows, to what json_populate_record() makes of
 * it. false: that has to be asked.
 */
static bool
fast_array(Converter *converter, const char *text, int32 len, Datum *value)
{
	int			room = 32;
	Datum	   *elements = palloc(sizeof(Datum) * room);
	bool	   *nulls = palloc(sizeof(bool) * room);
	int			n = 0;
	int			first = 1;
	JsonScan	scan;
	JsonPiece	piece;
	JsonStep	step;

	JsonScanInit(&scan, text, len, HYBRIDIOT_JSON_DEPTH);
	for (step = JsonFirstElement(&scan); step == JSON_STEP_MEMBER; step = JsonNextElement(&scan), n++)
	{
		if (n == room)
		{
			room *= 2;
			elements = repalloc_huge(elements, sizeof(Datum) * room);
			nulls = repalloc_huge(nulls, sizeof(bool) * room);
		}
		if (n == FAST_ELEMENTS || !JsonScanValue(&scan, &piece) || piece.kind >= JSON_KIND_ARRAY ||
			(piece.kind == JSON_KIND_STRING && piece.escaped))
			return false;
		nulls[n] = piece.kind == JSON_KIND_NULL;
		if (!nulls[n] && !fast_input(converter->element, piece.bytes, piece.len, &elements[n]))
			return false;
	}
	if (step == JSON_STEP_BAD)
		return false;
	*value = PointerGetDatum(n == 0 ? construct_empty_array(converter->element->base) :
							 construct_md_array(elements, nulls, 1, &n, &first, converter->element->base,
												converter->element_len, converter->element_byval,
												converter->element_align));
	pfree(elements);
	pfree(nulls);
	return true;
}

/* What the form decides, before the text does. true: *done is the result. */
static inline bool
convert_form(Converter *converter, ConvertForm form, const char *text, int32 len, Datum *value,
			 DecodeError *error, bool *done)
{
	if (form == CONVERT_INPUT)
		return false;
	if (form == CONVERT_BYTES)
	{
		*value = PointerGetDatum(cstring_to_text_with_len(text, len));
		*done = true;
		return true;
	}
	switch (converter->base)
	{
		case JSONOID:
			/* The scanner has found it valid. */
			if (form != CONVERT_JSON)
				return false;
			*value = PointerGetDatum(cstring_to_text_with_len(text, len));
			*done = true;
			return true;
		case BYTEAOID:
			*done = from_json_bytes(converter, form, text, len, value, error);
			return true;
		case TIMESTAMPTZOID:
		case TIMESTAMPOID:
		case DATEOID:
			if (form != CONVERT_NUMBER)
				return false;
			*done = from_epoch(converter, text, len, value, error);
			return true;
		case TIMEOID:
		case TIMETZOID:
			if (form != CONVERT_NUMBER)
				return false;
			/* The input function would read 123456 as 12:34:56. */
			*done = refuse(converter, text, len, ERRCODE_INVALID_TEXT_REPRESENTATION,
						   "a time of day is written as a string", error);
			return true;
		default:
			if (form != CONVERT_JSON || !converter->structured)
				return false;
			*done = (converter->element != NULL && *text == '[' && fast_array(converter, text, len, value)) ||
				 try_step(converter, step_populate, text, len, converter->user_code, value, error);
			return true;
	}
}

static bool
check_domain(Converter *converter, const char *text, int32 len, Datum value, bool isnull,
			 DecodeError *error)
{
	Attempt		what = {converter, NULL, 0, value, isnull};
	ErrorData  *failed = attempt(step_domain, &what, true);

	if (failed == NULL)
		return true;
	(void) refuse(converter, text, len, failed->sqlerrcode, failed->message, error);
	FreeErrorData(failed);
	return false;
}

/* Bring a text into the server's encoding, if a character does not exist there, say so. */
static bool
to_server(Converter *converter, const char **text, int32 *len, DecodeError *error)
{
	Attempt		what = {NULL, unconstify(char *, *text), *len};
	ErrorData  *failed = attempt(step_encoding, &what, false);

	if (failed)
	{
		(void) refuse(converter, NULL, 0, failed->sqlerrcode, failed->message, error);
		FreeErrorData(failed);
		return false;
	}
	if (what.text != *text)
	{
		*text = what.text;
		*len = (int32) strlen(what.text);
	}
	return true;
}

bool
Convert(Converter *converter, ConvertForm form, const char *text, int32 len,
		Datum *value, DecodeError *error)
{
	bool		done;

	if (converter->to_server && form != CONVERT_BYTES && !is_ascii(text, len) &&
		!to_server(converter, &text, &len, error))
		return false;
	if (!convert_form(converter, form, text, len, value, error, &done))
		done = fast_input(converter, text, len, value) ||
			try_step(converter, step_input, text, len, converter->user_code, value, error);
	return done &&
		(!converter->is_domain ||
		 check_domain(converter, form == CONVERT_BYTES ? NULL : text, form == CONVERT_BYTES ? 0 : len,
					  *value, false, error));
}

bool
ConvertNull(Converter *converter, DecodeError *error)
{
	return !converter->is_domain ||
		check_domain(converter, "null", 4, (Datum) 0, true, error);
}
