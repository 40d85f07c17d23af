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
	bool		path_given;		/* by the option "path"; else it is the column's name */
	Oid			typid;			/* as declared */
	int32		typmod;
} DecodeColumn;

typedef struct Decoder Decoder; /* each format's own */

typedef struct DecodeOps
{
	const char *format;			/* the option's value: "json" */

	/*
	 * Prepare for these columns, which come in the table's order, once per worker or scan, in
	 * the current memory context. ereport HV00D or 42804 for columns that the format
	 * cannot fill.
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
extern const DecodeOps DecodeCsv;	/* decode_csv.c */
extern const DecodeOps DecodeText;	/* decode_text.c */
extern const DecodeOps DecodeRaw;	/* decode_text.c */

/* The format of that name; NULL as name: the default. The validator has seen it. */
extern const DecodeOps *DecodeFormat(const char *name);

/* ---- what decoders share ---- */

/* ereport HV00D if a column has the option "path": the format has no fields with names. */
extern void DecodeRefusePaths(const DecodeOps *ops, const DecodeColumn *columns, int ncolumns);

/* Fill *error; always false. The message is cut at a character's end. */
extern bool DecodeRefuse(DecodeError *error, int sqlstate, const char *format,...) pg_attribute_printf(3, 4);

/* Is the payload UTF-8 without NULs? Fills *error if not. */
extern bool DecodeCheckUtf8(const char *bytes, int32 len, DecodeError *error);

/* Bytes that are used for a moment, over and over; kept in the context it was made in. */
typedef struct DecodeBuffer
{
	char	   *data;
	int32		size;
	MemoryContext context;
} DecodeBuffer;

extern void DecodeBufferInit(DecodeBuffer *buffer);
extern void DecodeBufferGrow(DecodeBuffer *buffer, int32 size);

#define DECODE_BUFFER_KEPT (64 * 1024)	/* a larger one is given back after use */

/* Room for this many bytes. What was in it is lost. */
static inline char *
DecodeBufferReserve(DecodeBuffer *buffer, int32 size)
{
	if (buffer->size < size || (buffer->size > DECODE_BUFFER_KEPT && size <= DECODE_BUFFER_KEPT))
		DecodeBufferGrow(buffer, size);
	return buffer->data;
}

#endif							/* HYBRIDIOT_DECODE_H */
