/*
 * stream.h
 *		A foreign table read as a log: its columns, its source, a batch of its records.
 */
#ifndef HYBRIDIOT_STREAM_H
#define HYBRIDIOT_STREAM_H

#include "access/tupdesc.h"
#include "nodes/execnodes.h"

#include "core/hybridiot.h"
#include "stream/decode.h"
#include "stream/source.h"

/* Columns filled from the record rather than its payload. */
typedef enum MetadataKind
{
	META_TOPIC,
	META_PARTITION,
	META_OFFSET,
	META_TIMESTAMP,
	META_KEY,
	META_VALUE,
	META_HEADERS,
	META_HEADER
} MetadataKind;

typedef struct MetadataColumn
{
	int			attnum;
	MetadataKind kind;
	const char *header;			/* META_HEADER: its name */
	Oid			typid;
} MetadataColumn;

/* An open stream; lives in the memory context it was opened in. */
typedef struct Stream
{
	Oid			relid;
	char	   *name;			/* for messages, unqualified */
	TupleDesc	tupdesc;
	char	  **topics;
	int			ntopics;
	const DecodeOps *ops;
	Decoder    *decoder;
	MetadataColumn *metadata;
	int			nmetadata;
	AttrNumber	event_time;		/* column; 0: the record's timestamp */
	int64		max_future_us;
	bool		compacted;
	bool		payload_columns;	/* the payload has to be decoded at all */
	SourceConfig source;
} Stream;

/*
 * Read the catalogs; userid: whose user mapping and rights are used. Needs a
 * transaction. ereport 0A000 for an AMQP stream, 42703/42804 for columns that do not fit.
 */
extern Stream *StreamOpen(Oid relid, Oid userid);
/* Is this relation a stream, of whichever wrapper? NULL if not, else the wrapper's name. */
extern const char *StreamWrapper(Oid relid);

typedef enum RecordStatus
{
	RECORD_GOOD,
	RECORD_UNDECODABLE,
	RECORD_FUTURE,
	RECORD_REJECTED,			/* failed in the statement by itself */
	RECORD_LATE					/* not used in per-batch pipelines */
} RecordStatus;

/* Why a record is not good. */
typedef struct RecordError
{
	int			sqlstate;
	char	   *message;		/* valid in the server encoding; no longer than RECORD_MESSAGE_LEN */
} RecordError;

#define RECORD_MESSAGE_LEN 2000

/*
 * The records applied in one transaction. Record numbers are 0-based places in
 * records[]; the scan delivers those with status RECORD_GOOD in [first, last) that are not to be skipped,
 * in order, with ctid (number, 1).
 */
typedef struct StreamBatch
{
	Stream	   *stream;
	MemoryContext context;		/* of Datums and messages; reset by BatchReset */
	bool		payload_wanted; /* false: payload columns stay null, undecoded */
	int			capacity;
	int			nrecords;
	Record	   *records;
	RecordStatus *status;
	RecordError **errors;		/* NULL, or why not good */
	bool	   *skip;			/* not delivered this time, though good: a newer record does for it */
	TimestampTz *event_times;	/* DT_NOBEGIN where there is none */
	Datum	   *values;			/* capacity × natts */
	bool	   *isnull;

	/* of the scan */
	int			first;
	int			last;
	int			cursor;			/* next record number to look at */
	int			delivered;		/* last record number delivered; -1: none */
	int			deliveries;		/* how many were */
	const char *query_string;	/* pointer of the statement that may scan it */
	EState	   *estate;			/* of the scan that took it */
} StreamBatch;

extern StreamBatch *BatchCreate(Stream *stream, int capacity);	/* in the current context */
extern void BatchReset(StreamBatch *batch);
/* Note why a record is not good; the message is copied, and cut at RECORD_MESSAGE_LEN. */
extern void BatchSetError(StreamBatch *batch, int number, RecordStatus status,
						  int sqlstate, const char *message);
/*
 * Decode records[from .. nrecords): fills values, event_times, status. now: the
 * clock, for max_future; DT_NOEND: no record is of the future. Needs a transaction.
 */
extern void BatchDecode(StreamBatch *batch, int from, TimestampTz now);

/*
 * Let the scans of one statement read records [first, last) of this batch: the statement whose source
 * text is at query_string (compared by address, so nobody else's). NULL batch: none. While
 * InPipeline, any other scan of a stream raises 0A000.
 */
extern void BatchExpose(StreamBatch *batch, int first, int last, const char *query_string);
extern StreamBatch *ExposedBatch;

/* Record number from the ctid that the scan gave. */
#define RecordNumberFromTid(tid) ((int) ItemPointerGetBlockNumber(tid))

#endif							/* HYBRIDIOT_STREAM_H */
