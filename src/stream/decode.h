/*
 * decode.h
 *		From the bytes of a record to the Datums of a row.
 *
 * A format is one DecodeOps in a file of its own. A decoder does not throw for
 * what a record holds: it returns false and says why, so that one bad record
 * costs its batch nothing. No SPI, no catalog.
 */
#ifndef HYBRIDIOT_DECODE_H
#define HYBRIDIOT_DECODE_H

#include "access/tupdesc.h"
#include "fmgr.h"

#include "core/hybridiot.h"

#define DECODE_MESSAGE_LEN 256

/* Why a record could not be decoded. */
typedef struct DecodeError
{
	int			sqlstate;		/* of class 22 mostly */
	char		message[DECODE_MESSAGE_LEN];	/* names column and value, valid in the server encoding */
} DecodeError;

/* A column filled from the payload. */
typedef struct DecodeColumn
{
	int			attnum;			/* 1-based; the Datum goes to values[attnum - 1] */
	const char *name;			/* the column's, for messages */
	char	  **path;			/* field names from the root; at least one */
	int			npath;
	Oid			typid;			/* as declared */
	int32		typmod;
} DecodeColumn;

typedef struct Decoder Decoder; /* each format's own */

typedef struct DecodeOps
{
	const char *format;			/* the option's value: "json" */

	/*
	 * Prepare for these columns, once per worker or scan, in the current
	 * memory context. May throw (22023, 0A000) for columns the format cannot
	 * fill.
	 */
	Decoder    *(*prepare) (const DecodeColumn *columns, int ncolumns);

	/*
	 * Decode one payload (never NULL, not NUL-terminated). Sets values/isnull of its columns only;
	 * a field that is missing or null gives NULL. By-reference Datums
	 * are allocated in the current memory context. Returns false with *error
	 * filled when the record is undecodable. May only throw for what is no
	 * fault of the record (out of memory, interrupts).
	 */
	bool		(*decode) (Decoder *decoder, const char *bytes, int32 len,
						   Datum *values, bool *isnull, DecodeError *error);
} DecodeOps;

extern const DecodeOps DecodeJson;	/* decode_json.c */

#endif							/* HYBRIDIOT_DECODE_H */
