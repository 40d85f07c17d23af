/*
 * record.h
 *		Parts of a record as SQL values.
 */
#ifndef HYBRIDIOT_RECORD_H
#define HYBRIDIOT_RECORD_H

#include "utils/jsonb.h"

#include "core/hybridiot.h"

/*
 * Headers as a jsonb object: text as a string, other bytes as '\x...' in hex,
 * a null header as null, a name that comes more than once as an array.
 */
extern Datum HeadersToJsonb(const Record *record);

/* The way back, as far as there is one: a record's headers, which was without, in the current memory context. */
extern void HeadersFromJsonb(Record *record, Jsonb *headers);

/* Bytes as text of the server's encoding; NULL if they are not valid in it. palloc'd. */
extern char *BytesAsText(const char *bytes, int32 len);

#endif							/* HYBRIDIOT_RECORD_H */
