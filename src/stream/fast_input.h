/*
 * fast_input.h
 *		The usual spellings of the usual types, read without their input functions.
 *
 * Each function either gives exactly the value that the type's input function gives for this
 * text, and returns true, or returns false: then the input function decides, and finds the words if it is
 * an error. Nothing here throws or depends on settings. What a Datum points to is in the current memory context.
 */
#ifndef HYBRIDIOT_FAST_INPUT_H
#define HYBRIDIOT_FAST_INPUT_H

#include "datatype/timestamp.h"
#include "utils/date.h"
#include "utils/uuid.h"

/* Decimal digits after an optional minus, no more than 18. */
extern bool FastInteger(const char *text, int32 len, int64 *value);

/* Decimal numbers that one correctly rounded operation makes. */
extern bool FastFloat8(const char *text, int32 len, double *value);
extern bool FastFloat4(const char *text, int32 len, float *value);

/*
 * YYYY-MM-DD, then "T" or a space, HH:MM:SS, up to six digits of a second, and Z, +HH or +HH:MM.
 * with_zone: as timestamptz, which must have a zone here; else as timestamp, which ignores it.
 */
extern bool FastTimestamp(const char *text, int32 len, bool with_zone, Timestamp *value);

/* YYYY-MM-DD */
extern bool FastDate(const char *text, int32 len, DateADT *value);

/* 8-4-4-4-12 hexadecimal digits */
extern bool FastUuid(const char *text, int32 len, pg_uuid_t *value);

/* Up to 18 digits, perhaps with a point, as numeric without a typmod. */
extern bool FastNumeric(const char *text, int32 len, Datum *value);

/*
 * Base64 as bytea, whose input function does not know it: the standard alphabet or that of URLs, with
 * or without padding, white space anywhere. false: it is none.
 */
extern bool FastBase64(const char *text, int32 len, Datum *value);

#endif							/* HYBRIDIOT_FAST_INPUT_H */
