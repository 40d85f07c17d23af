/*
 * stream.c
 *		A foreign table read as a log: its options, and batches of its records.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/relation.h"
#include "access/table.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "commands/defrem.h"
#include "common/int.h"
#include "foreign/foreign.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "utils/varlena.h"

#include "core/compat.h"
#include "core/options.h"
#include "core/record.h"
#include "stream/stream.h"

#define DEFAULT_MAX_FUTURE_US (5 * USECS_PER_MINUTE)

const char *
StreamWrapper(Oid relid)
{
	const char *wrapper;

	if (get_rel_relkind(relid) != RELKIND_FOREIGN_TABLE)
		return NULL;
	wrapper = OptionWrapperName(GetForeignServer(GetForeignTable(relid)->serverid));
	if (strcmp(wrapper, KAFKA_WRAPPER) != 0 && strcmp(wrapper, AMQP_WRAPPER) != 0)
		return NULL;
	return wrapper;
}

/* ---- how to reach the log ---- */

static void
add_option(SourceConfig *config, const char *name, const char *value)
{
	if (value == NULL)
		return;
	config->options = config->options ?
		repalloc(config->options, sizeof(Option) * (config->noptions + 1)) :
		palloc(sizeof(Option));
	config->options[config->noptions].name = pstrdup(name);
	config->options[config->noptions].value = pstrdup(value);
	config->noptions++;
}

/* What the server asks for, the role must have: there is nobody else's identity to fall back to. */
static void
require_credentials(ForeignServer *server, Oid userid, const char *user, const char *password, List *mapping)
{
	const char *protocol = OptionGet(server->options, "security_protocol");
	const char *missing = NULL;

	OptionCheckMechanism(server->options);
	if (protocol && strncmp(protocol, "SASL_", 5) == 0 && (user == NULL || password == NULL))
		missing = "user and password";
	else if (OptionGet(server->options, "ssl_certificate") && !OptionGet(mapping, "ssl_key"))
		missing = "ssl_key";
	if (missing)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION),
				 errmsg("role \"%s\" has no %s for server \"%s\"", GetUserNameFromId(userid, false), missing,
						server->servername),
				 errhint("Create a user mapping for it, or for PUBLIC, with these options.")));
}

/* The client's properties from the server's options and the role's mapping. */
static void
kafka_options(SourceConfig *config, ForeignServer *server, Oid userid)
{
	char	   *user;
	char	   *password;
	List	   *mapping;
	ListCell   *lc;
	const char *value;

	add_option(config, "bootstrap.servers", OptionGet(server->options, "bootstrap_servers"));
	add_option(config, "security.protocol", OptionGet(server->options, "security_protocol"));
	add_option(config, "sasl.mechanism", OptionGet(server->options, "sasl_mechanism"));
	if ((value = OptionGet(server->options, "ssl_ca")) != NULL)
		add_option(config, "ssl.ca.location", OptionFile(value));
	if ((value = OptionGet(server->options, "ssl_certificate")) != NULL)
		add_option(config, "ssl.certificate.location", OptionFile(value));

	foreach(lc, server->options)
	{
		DefElem    *def = lfirst_node(DefElem, lc);
		char	   *property = pstrdup(def->defname);

		for (char *c = property; *c; c++)
			if (*c == '_')
				*c = '.';
		if (KafkaPropertyAllowed(property))
			add_option(config, property, defGetString(def));
	}

	OptionCredentials(server->serverid, userid, &user, &password, &mapping);
	require_credentials(server, userid, user, password, mapping);
	add_option(config, "sasl.username", user);
	add_option(config, "sasl.password", password);
	if (password)
		explicit_bzero(password, strlen(password));
	if ((value = OptionGet(mapping, "ssl_key")) != NULL)
		add_option(config, "ssl.key.location", OptionFile(value));
	if ((value = OptionGet(mapping, "ssl_key_password_file")) != NULL)
		add_option(config, "ssl.key.password", OptionSecret(value));
}

/* Who reads needs rights on the table, and so does the stream's owner, who could make others' pipelines read anything. */
static void
table_source(SourceConfig *config, const char *name, const char *source, Oid owner)
{
	Oid			relid;

	if (source == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FDW_OPTION_NAME_NOT_FOUND),
				 errmsg("stream \"%s\" needs the option \"source\"", name),
				 errdetail("Its server has transport 'table'.")));
	config->table = true;
	relid = RangeVarGetRelid(makeRangeVarFromNameList(stringToQualifiedNameList(source, NULL)),
							 NoLock, false);
	if (pg_class_aclcheck(relid, owner, ACL_SELECT) != ACLCHECK_OK)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("the owner of stream \"%s\" may not read its source", name),
				 errhint("GRANT SELECT ON it to the owner of the stream.")));
	config->source = quote_qualified_identifier(get_namespace_name(get_rel_namespace(relid)),
												get_rel_name(relid));
}

static void
source_config(Stream *stream, ForeignTable *table, ForeignServer *server, Oid owner, Oid userid)
{
	SourceConfig *config = &stream->source;
	const char *transport = OptionGet(server->options, "transport");
	List	   *topics = OptionSplit(OptionGet(table->options, "topic"));
	ListCell   *lc;

	if (topics == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
				 errmsg("stream \"%s\" names no topic", stream->name)));
	config->userid = userid;
	config->topics = palloc(sizeof(char *) * list_length(topics));
	foreach(lc, topics)
		config->topics[config->ntopics++] = lfirst(lc);
	stream->topics = config->topics;
	stream->ntopics = config->ntopics;

	if (transport && strcmp(transport, "table") == 0)
		table_source(config, stream->name, OptionGet(table->options, "source"), owner);
	else
		kafka_options(config, server, userid);
}

/* ---- columns ---- */

static MetadataKind
metadata_kind(const char *value)
{
	if (strcmp(value, "topic") == 0)
		return META_TOPIC;
	if (strcmp(value, "partition") == 0)
		return META_PARTITION;
	if (strcmp(value, "offset") == 0)
		return META_OFFSET;
	if (strcmp(value, "timestamp") == 0)
		return META_TIMESTAMP;
	if (strcmp(value, "key") == 0)
		return META_KEY;
	if (strcmp(value, "value") == 0)
		return META_VALUE;
	if (strcmp(value, "headers") == 0)
		return META_HEADERS;
	return META_HEADER;
}

static bool
metadata_type_fits(MetadataKind kind, Oid typid)
{
	switch (kind)
	{
		case META_TOPIC:
			return typid == TEXTOID;
		case META_PARTITION:
			return typid == INT4OID || typid == INT8OID;
		case META_OFFSET:
			return typid == INT8OID;
		case META_TIMESTAMP:
			return typid == TIMESTAMPTZOID;
		case META_KEY:
		case META_VALUE:
		case META_HEADER:
			return typid == TEXTOID || typid == BYTEAOID;
		case META_HEADERS:
			return typid == JSONBOID;
	}
	pg_unreachable();
}

static void
add_metadata(Stream *stream, Form_pg_attribute att, const char *value)
{
	MetadataColumn *column = &stream->metadata[stream->nmetadata++];

	column->attnum = att->attnum;
	column->kind = metadata_kind(value);
	column->header = column->kind == META_HEADER ? pstrdup(value + strlen("header:")) : NULL;
	column->typid = att->atttypid;
	if (!metadata_type_fits(column->kind, column->typid))
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("column \"%s\" of stream \"%s\" cannot hold metadata \"%s\"",
						NameStr(att->attname), stream->name, value),
				 errhint("topic is text, partition int, offset bigint, timestamp timestamptz, headers jsonb; key, value and header:NAME are text or bytea. Cast it in the query.")));
}

static void
add_payload(DecodeColumn *column, Form_pg_attribute att, const char *path)
{
	char	   *copy;
	char	   *rest = NULL;

	column->attnum = att->attnum;
	column->name = pstrdup(NameStr(att->attname));
	column->typid = att->atttypid;
	column->typmod = att->atttypmod;
	if (path == NULL)
	{
		column->path = palloc(sizeof(char *));
		column->path[column->npath++] = pstrdup(column->name);
		return;
	}
	column->path_given = true;
	copy = pstrdup(path);
	column->path = palloc(sizeof(char *) * (strlen(path) + 1));
	for (char *part = strtok_r(copy, ".", &rest); part; part = strtok_r(NULL, ".", &rest))
		column->path[column->npath++] = part;
}

static void
open_columns(Stream *stream, ForeignTable *table)
{
	int			natts = stream->tupdesc->natts;
	DecodeColumn *columns = palloc0(sizeof(DecodeColumn) * (natts + 1));
	int			ncolumns = 0;
	const char *event_time = OptionGet(table->options, "event_time");

	stream->metadata = palloc0(sizeof(MetadataColumn) * (natts + 1));
	for (int i = 0; i < natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(stream->tupdesc, i);
		List	   *options;
		const char *metadata;

		if (att->attisdropped)
			continue;
		options = GetForeignColumnOptions(stream->relid, att->attnum);
		metadata = OptionGet(options, "metadata");
		if (metadata)
			add_metadata(stream, att, metadata);
		else
			add_payload(&columns[ncolumns++], att, OptionGet(options, "path"));

		if (event_time && strcmp(event_time, NameStr(att->attname)) == 0)
		{
			stream->event_time = att->attnum;
			if (att->atttypid != TIMESTAMPTZOID)
				ereport(ERROR,
						(errcode(ERRCODE_DATATYPE_MISMATCH),
						 errmsg("event_time column \"%s\" of stream \"%s\" is not of type timestamptz",
								event_time, stream->name)));
		}
	}
	if (event_time && stream->event_time == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("stream \"%s\" has no column \"%s\" for its event_time",
						stream->name, event_time)));

	stream->payload_columns = ncolumns > 0;
	stream->ops = DecodeFormat(OptionGet(table->options, "format"));
	if (ncolumns > 0)
		stream->decoder = stream->ops->prepare(columns, ncolumns);
}

Stream *
StreamOpen(Oid relid, Oid userid)
{
	Stream	   *stream = palloc0(sizeof(Stream));
	Relation	rel = table_open(relid, AccessShareLock);
	const char *wrapper;
	ForeignTable *table;
	ForeignServer *server;

	stream->relid = relid;
	stream->name = pstrdup(RelationGetRelationName(rel));
	stream->tupdesc = CreateTupleDescCopy(RelationGetDescr(rel));

	wrapper = StreamWrapper(relid);
	if (wrapper == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" is not a stream", stream->name)));
	if (strcmp(wrapper, AMQP_WRAPPER) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("stream \"%s\" cannot be read: AMQP streams are not supported yet",
						stream->name),
				 errhint("Bridge the address to a Kafka topic, as demo/ shows.")));

	table = GetForeignTable(relid);
	server = GetForeignServer(table->serverid);
	stream->max_future_us = OptionIntervalUs(table->options, "max_future", DEFAULT_MAX_FUTURE_US);
	stream->compacted = OptionBool(table->options, "compacted", false);
	source_config(stream, table, server, rel->rd_rel->relowner, userid);
	open_columns(stream, table);
	table_close(rel, AccessShareLock);
	return stream;
}

/* ---- batches ---- */

StreamBatch *
BatchCreate(Stream *stream, int capacity)
{
	StreamBatch *batch = palloc0(sizeof(StreamBatch));
	Size		cells = (Size) capacity * Max(stream->tupdesc->natts, 1);

	batch->stream = stream;
	batch->payload_wanted = stream->payload_columns;
	batch->capacity = capacity;
	batch->context = AllocSetContextCreate(CurrentMemoryContext, "hybridiot batch",
										   ALLOCSET_DEFAULT_SIZES);
	batch->records = MemoryContextAllocHuge(CurrentMemoryContext, sizeof(Record) * capacity);
	batch->status = palloc0(sizeof(RecordStatus) * capacity);
	batch->errors = palloc0(sizeof(RecordError *) * capacity);
	batch->skip = palloc0(sizeof(bool) * capacity);
	batch->event_times = palloc(sizeof(TimestampTz) * capacity);
	batch->values = MemoryContextAllocHuge(CurrentMemoryContext, sizeof(Datum) * cells);
	batch->isnull = MemoryContextAllocHuge(CurrentMemoryContext, sizeof(bool) * cells);
	return batch;
}

void
BatchReset(StreamBatch *batch)
{
	memset(batch->errors, 0, sizeof(RecordError *) * batch->nrecords);
	memset(batch->skip, 0, sizeof(bool) * batch->nrecords);
	memset(batch->status, 0, sizeof(RecordStatus) * batch->nrecords);
	batch->nrecords = 0;
	MemoryContextReset(batch->context);
}

void
BatchSetError(StreamBatch *batch, int number, RecordStatus status, int sqlstate, const char *message)
{
	RecordError *error = MemoryContextAlloc(batch->context, sizeof(RecordError));
	int			len = pg_mbcliplen(message, (int) strlen(message), RECORD_MESSAGE_LEN);

	error->sqlstate = sqlstate;
	error->message = MemoryContextAlloc(batch->context, len + 1);
	memcpy(error->message, message, len);
	error->message[len] = '\0';
	batch->status[number] = status;
	batch->errors[number] = error;
}

static bool
bytes_value(const char *bytes, int32 len, Oid typid, Datum *value, bool *isnull)
{
	*isnull = bytes == NULL || len < 0;
	if (*isnull)
		return true;
	if (typid == BYTEAOID)
	{
		bytea	   *copy = palloc(VARHDRSZ + len);

		SET_VARSIZE(copy, VARHDRSZ + len);
		memcpy(VARDATA(copy), bytes, len);
		*value = PointerGetDatum(copy);
		return true;
	}
	if (!pg_verifymbstr(bytes, len, true) || memchr(bytes, '\0', len))
		return false;
	*value = PointerGetDatum(cstring_to_text_with_len(bytes, len));
	return true;
}

static bool
metadata_value(StreamBatch *batch, const Record *record, const MetadataColumn *column,
			   Datum *value, bool *isnull)
{
	*isnull = false;
	switch (column->kind)
	{
		case META_TOPIC:
			*value = CStringGetTextDatum(batch->stream->topics[record->topic]);
			return true;
		case META_PARTITION:
			*value = column->typid == INT4OID ? Int32GetDatum(record->partition) :
				Int64GetDatum((int64) record->partition);
			return true;
		case META_OFFSET:
			*value = Int64GetDatum(record->offset);
			return true;
		case META_TIMESTAMP:
			*value = TimestampTzGetDatum(record->timestamp);
			*isnull = record->timestamp == DT_NOBEGIN;
			return true;
		case META_KEY:
			return bytes_value(record->key, record->key_len, column->typid, value, isnull);
		case META_VALUE:
			return bytes_value(record->value, record->value_len, column->typid, value, isnull);
		case META_HEADERS:
			*isnull = record->nheaders == 0;
			if (!*isnull)
				*value = HeadersToJsonb(record);
			return true;
		case META_HEADER:
			for (int i = record->nheaders - 1; i >= 0; i--)
				if (strcmp(record->headers[i].name, column->header) == 0)
					return bytes_value(record->headers[i].value, record->headers[i].value_len,
									   column->typid, value, isnull);
			*isnull = true;
			return true;
	}
	pg_unreachable();
}

/* Event time of a decoded record; false: it has none that can be used. */
static bool
event_time(StreamBatch *batch, int number, const Datum *values, const bool *isnull)
{
	Stream	   *stream = batch->stream;
	const Record *record = &batch->records[number];
	TimestampTz when = record->timestamp;

	if (stream->event_time != 0 && record->value_len >= 0 && batch->payload_wanted)
	{
		if (isnull[stream->event_time - 1])
		{
			BatchSetError(batch, number, RECORD_UNDECODABLE, ERRCODE_NULL_VALUE_NOT_ALLOWED,
						  "event time is null");
			return false;
		}
		when = DatumGetTimestampTz(values[stream->event_time - 1]);
		if (TIMESTAMP_NOT_FINITE(when))
		{
			BatchSetError(batch, number, RECORD_UNDECODABLE, ERRCODE_DATETIME_VALUE_OUT_OF_RANGE,
						  "event time is infinite");
			return false;
		}
	}
	batch->event_times[number] = when;
	return true;
}

static void
decode_record(StreamBatch *batch, int number, TimestampTz now)
{
	Stream	   *stream = batch->stream;
	const Record *record = &batch->records[number];
	int			natts = stream->tupdesc->natts;
	Datum	   *values = batch->values + (Size) number * natts;
	bool	   *isnull = batch->isnull + (Size) number * natts;
	TimestampTz limit;

	memset(isnull, true, natts);
	batch->status[number] = RECORD_GOOD;
	batch->errors[number] = NULL;
	batch->event_times[number] = DT_NOBEGIN;

	for (int i = 0; i < stream->nmetadata; i++)
	{
		const MetadataColumn *column = &stream->metadata[i];
		int			place = column->attnum - 1;

		if (!metadata_value(batch, record, column, &values[place], &isnull[place]))
		{
			char		message[DECODE_MESSAGE_LEN];

			snprintf(message, sizeof(message), "column \"%s\": bytes are not valid text",
					 NameStr(TupleDescAttr(stream->tupdesc, place)->attname));
			BatchSetError(batch, number, RECORD_UNDECODABLE,
						  ERRCODE_CHARACTER_NOT_IN_REPERTOIRE, message);
			return;
		}
	}
	if (batch->payload_wanted && record->value_len >= 0)
	{
		DecodeError error;

		if (!stream->ops->decode(stream->decoder, record->value, record->value_len,
								 values, isnull, &error))
		{
			BatchSetError(batch, number, RECORD_UNDECODABLE, error.sqlstate, error.message);
			return;
		}
	}
	if (!event_time(batch, number, values, isnull))
		return;
	if (pg_add_s64_overflow(now, stream->max_future_us, &limit))
		limit = END_TIMESTAMP - 1;
	if (now != DT_NOEND && batch->event_times[number] != DT_NOBEGIN && batch->event_times[number] > limit)
	{
		char		message[DECODE_MESSAGE_LEN];

		snprintf(message, sizeof(message), "event time %s is more than max_future ahead of the clock",
				 timestamptz_to_str(batch->event_times[number]));
		BatchSetError(batch, number, RECORD_FUTURE, ERRCODE_DATETIME_VALUE_OUT_OF_RANGE, message);
	}
}

void
BatchDecode(StreamBatch *batch, int from, TimestampTz now)
{
	MemoryContext old = MemoryContextSwitchTo(batch->context);

	Assert(batch->nrecords <= batch->capacity);
	for (int number = from; number < batch->nrecords; number++)
		decode_record(batch, number, now);
	MemoryContextSwitchTo(old);
}
