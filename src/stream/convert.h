/*
 * convert.h
 *		From the text of one value to the Datum of a column.
 *
 * What any format needs once it has found a value's text: the type's input rules, typmod, domain,
 * and an error that is returned and not thrown. Texts are valid UTF-8, whatever the server's encoding, and
 * not NUL-terminated.
 */
#ifndef HYBRIDIOT_CONVERT_H
#define HYBRIDIOT_CONVERT_H

#include "stream/decode.h"

/* What a text is, where the same bytes may mean different things. */
typedef enum ConvertForm
{
	CONVERT_INPUT,				/* as a user would write it for the type's input function */
	CONVERT_STRING,				/* a JSON string: the same, but base64 or \x and hexadecimal digits for bytea */
	CONVERT_NUMBER,				/* a JSON number: for dates and timestamps, since 1970 */
	CONVERT_LITERAL,			/* true or false */
	CONVERT_JSON,				/* a JSON array or object; any JSON value where ConverterTakesJson() */
	CONVERT_BYTES				/* any bytes, for bytea, as they are */
} ConvertForm;

typedef struct Converter Converter;

/* Made once per column, in the current memory context. May throw: no such type, no input function. */
extern Converter *ConverterCreate(const char *column, Oid typid, int32 typmod);

/* The column is json or jsonb (or a domain over it): give it each value as JSON text. */
extern bool ConverterTakesJson(const Converter *converter);

/*
 * Convert one value; by-reference Datums are allocated in the current memory context. false: the value is at
 * fault and *error says how. Throws only what is no fault of the value.
 * Domains and types of extensions run code of users, in a subtransaction.
 */
extern bool Convert(Converter *converter, ConvertForm form, const char *text, int32 len,
					Datum *value, DecodeError *error);

/* May the column be NULL? Only a domain can object. */
extern bool ConvertNull(Converter *converter, DecodeError *error);

/* Fill *error for a value of this column, of which a beginning is shown. Always false. */
extern bool ConvertRefuse(const Converter *converter, const char *text, int32 len,
						  int sqlstate, const char *reason, DecodeError *error);

#endif							/* HYBRIDIOT_CONVERT_H */
