/*
 * hybridiot.h
 *		The words of the design as types, limits and settings.
 *
 * Every room may include this file. Times are TimestampTz (microseconds since
 * 2000-01-01 UTC) unless a name ends in _ms or _us.
 */
#ifndef HYBRIDIOT_H
#define HYBRIDIOT_H

#include "datatype/timestamp.h"
#include "nodes/pg_list.h"
#include "utils/palloc.h"

#define HYBRIDIOT_VERSION "0.2.0"
#define HYBRIDIOT_SCHEMA "hybridiot"
#define HYBRIDIOT_EXTENSION "hybridiot"
#define HYBRIDIOT_LIBRARY "hybridiot"

/* Limits that no setting moves. */
#define HYBRIDIOT_MAX_HEADERS 1024	/* headers of one record */
#define HYBRIDIOT_REASON_LEN 512	/* bytes of a reason kept in shared memory */
#define HYBRIDIOT_JSON_DEPTH 256	/* nesting the JSON decoder follows */
#define HYBRIDIOT_BATCH_BYTES (64 * 1024 * 1024)	/* a batch that holds so many bytes of records is full */

/*
 * One record of a log, as a source hands it out. The bytes belong to the
 * source and stay until SourceRelease(). They are not NUL-terminated.
 */
typedef struct RecordHeader
{
	const char *name;			/* NUL-terminated */
	const char *value;			/* NULL: a null header */
	int32		value_len;
} RecordHeader;

typedef struct Record
{
	int32		topic;			/* index into the source's topic list */
	int32		partition;
	int64		offset;
	TimestampTz timestamp;		/* the log's own; DT_NOBEGIN: none */
	const char *key;
	int32		key_len;		/* -1: null */
	const char *value;
	int32		value_len;		/* -1: null, a tombstone */
	const RecordHeader *headers;
	int32		nheaders;
	int32		leader_epoch;	/* -1: not known */
} Record;

/* What is kept of a record, to tell later whether a log is still the one that had it. */
typedef struct RecordMark
{
	int64		offset;			/* -1: no record is known */
	TimestampTz timestamp;
	int64		size;			/* bytes of key and value */
	uint32		crc;			/* of key and value */
	int32		leader_epoch;	/* -1: not known */
} RecordMark;

/* A name and a value, as options and client properties are. */
typedef struct Option
{
	const char *name;
	const char *value;
} Option;

/* What kind of statement a pipeline runs. */
typedef enum PipelineKind
{
	PIPELINE_PER_BATCH,
	PIPELINE_WINDOWED
} PipelineKind;

/* Why a record was set aside. */
typedef enum DeadReason
{
	DEAD_UNDECODABLE,
	DEAD_REJECTED,
	DEAD_LATE,
	DEAD_FUTURE
} DeadReason;

/* Settings (guc.c). */
extern bool hybridiot_enabled;
extern bool hybridiot_resume_after_promotion;
extern bool hybridiot_bulk_insert;
extern int	hybridiot_max_workers;
extern int	hybridiot_call_slots;
extern int	hybridiot_max_calls_per_role;
extern char *hybridiot_command_server;
extern int	hybridiot_command_retention;	/* seconds */

extern int	hybridiot_max_reply_size;	/* kB */
extern int	hybridiot_max_record_size;	/* kB */
extern char *hybridiot_broker_networks;
extern char *hybridiot_secret_directory;

extern void GucDefine(void);

#endif							/* HYBRIDIOT_H */
