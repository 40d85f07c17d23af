/*
 * record.h
 *		Parts of a record as SQL values; how a record is known again.
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

/* Bytes that a record holds: key and value. */
#define RecordBytes(record) ((int64) Max((record)->key_len, 0) + Max((record)->value_len, 0))

#define RECORD_MARK_NONE ((RecordMark) {.offset = -1, .leader_epoch = -1})

/* Reads all bytes of the record: for the last one of a batch, not for each. */
extern RecordMark RecordMarkOf(const Record *record);

/*
 * Does a record that came from a log speak against it being the log that mark was taken from? It is the record at that offset, and
 * another one; or its leader's epoch is older, which in one log never follows a younger one. Returns what is wrong, or NULL.
 */
extern const char *RecordMarkContradicted(const RecordMark *mark, const Record *record);

#endif							/* HYBRIDIOT_RECORD_H */
