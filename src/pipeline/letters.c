/*
 * letters.c
 *		Records that are set aside: judged, kept with the reason, tried again.
 *
 * Whoever finds that a record is bad marks it in the batch. Here the options on_error and
 * max_errors are asked whether the pipeline may go on, and dead letters are written, in the transaction that moves the
 * positions. retry_dead_letters() makes records of dead letters again and runs them through the
 * statement as a batch, in the caller's transaction; those that pass are deleted in it. It needs neither
 * the log nor the positions, so it may run beside the pipeline's worker; the row locks on the letters keep
 * a second caller from taking the same ones. How windowed pipelines try theirs again is in retry.c.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "core/compat.h"
#include "pipeline/letters.h"
#include "pipeline/retry.h"

/* Bytes of letters that are tried again at once. */
#define RETRY_BYTES (64 * 1024 * 1024)

/* ---- what is wrong with a record ---- */

static void
name_object(StringInfo text, StringInfo names, const char *what, const char *name)
{
	char	   *quoted;

	if (name == NULL)
		return;
	quoted = psprintf("\"%s\"", name);
	if (strstr(text->data, quoted) == NULL)
		appendStringInfo(names, "%s%s %s", names->len ? ", " : "", what, quoted);
	pfree(quoted);
}

char *
ErrorMessage(const ErrorData *error)
{
	StringInfoData text;
	StringInfoData names;

	initStringInfo(&text);
	initStringInfo(&names);
	appendStringInfoString(&text, error->message ? error->message : "unknown error");
	if (error->detail && error->detail[0])
	{
		appendStringInfo(&text, ": %s", error->detail);
		if (text.data[text.len - 1] == '.')
			text.data[--text.len] = '\0';
	}
	name_object(&text, &names, "constraint", error->constraint_name);
	name_object(&text, &names, "column", error->column_name);
	name_object(&text, &names, "data type", error->datatype_name);
	name_object(&text, &names, "table", error->table_name);
	if (names.len)
		appendStringInfo(&text, " (%s)", names.data);
	pfree(names.data);
	return text.data;
}

void
RejectRecord(Pipeline *pipeline, int number, const ErrorData *error)
{
	char	   *message = ErrorMessage(error);

	BatchSetError(pipeline->batch, number, RECORD_REJECTED, error->sqlerrcode, message);
	pfree(message);
}

/* ---- may the pipeline go on ---- */

int
FirstRecordTooMany(Pipeline *pipeline, int first, int last)
{
	const PipelineOptions *options = &pipeline->def->options;
	int			in_row = pipeline->errors_in_row;

	for (int i = first; i < last; i++)
	{
		if (pipeline->batch->status[i] == RECORD_GOOD)
			in_row = 0;
		else if (++in_row > options->max_errors || options->stop_on_error)
			return i;
	}
	return last;
}

void
StopAtRecord(Pipeline *pipeline, int number)
{
	StreamBatch *batch = pipeline->batch;
	const Record *record = &batch->records[number];
	const char *topic = pipeline->stream->topics[record->topic];
	const char *message = batch->errors[number] ? batch->errors[number]->message : "it was set aside";

	if (pipeline->def->options.stop_on_error)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("record at topic \"%s\", partition %d, offset " INT64_FORMAT " cannot be applied: %s",
						topic, record->partition, record->offset, message)));
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("more than %d records in a row cannot be applied, the last at topic \"%s\", partition %d, offset "
					INT64_FORMAT ": %s", pipeline->def->options.max_errors,
					topic, record->partition, record->offset, message)));
}

void
CountErrorsInRow(Pipeline *pipeline, int first, int last)
{
	for (int i = first; i < last; i++)
		pipeline->errors_in_row = pipeline->batch->status[i] == RECORD_GOOD ? 0 : pipeline->errors_in_row + 1;
}

static int
count_dead(StreamBatch *batch, int first, int last)
{
	int			n = 0;

	for (int i = first; i < last; i++)
		n += batch->status[i] != RECORD_GOOD;
	return n;
}

int
JudgeDeadRecords(Pipeline *pipeline, int first, int last)
{
	int			stop = FirstRecordTooMany(pipeline, first, last);

	if (stop < last)
		StopAtRecord(pipeline, stop);
	CountErrorsInRow(pipeline, first, last);
	return count_dead(pipeline->batch, first, last);
}

/* ---- dead letters ---- */

DeadReason
DeadReasonOf(RecordStatus status)
{
	switch (status)
	{
		case RECORD_GOOD:
			break;
		case RECORD_UNDECODABLE:
			return DEAD_UNDECODABLE;
		case RECORD_FUTURE:
			return DEAD_FUTURE;
		case RECORD_REJECTED:
			return DEAD_REJECTED;
		case RECORD_LATE:
			return DEAD_LATE;
	}
	pg_unreachable();
}

/* Letters of all records of [first, last) that are not good. */
static DeadLetter *
letters_of(Pipeline *pipeline, int first, int last, int *n)
{
	StreamBatch *batch = pipeline->batch;
	DeadLetter *letters;

	*n = count_dead(batch, first, last);
	letters = palloc0(sizeof(DeadLetter) * Max(*n, 1));
	for (int i = first, k = 0; i < last; i++)
	{
		DeadLetter *letter;

		if (batch->status[i] == RECORD_GOOD)
			continue;
		letter = &letters[k++];
		letter->reason = DeadReasonOf(batch->status[i]);
		letter->record = &batch->records[i];
		letter->topic = pipeline->stream->topics[batch->records[i].topic];
		letter->window_start = letter->window_end = letter->watermark = DT_NOBEGIN;
		if (batch->errors[i])
		{
			letter->sqlstate = batch->errors[i]->sqlstate;
			letter->message = batch->errors[i]->message;
		}
	}
	return letters;
}

void
WriteDeadRecords(Pipeline *pipeline, int first, int last)
{
	int			n;
	DeadLetter *letters = letters_of(pipeline, first, last, &n);

	CatalogWriteDeadLetters(pipeline->def->id, pipeline->def->stream, letters, n);
	pfree(letters);
}

/* ---- trying them again ---- */

/* The stream may have had other topics when a letter was written; it keeps its name. */
static int32
topic_number(Stream *stream, const char *topic)
{
	for (int i = 0; i < stream->ntopics; i++)
		if (strcmp(stream->topics[i], topic) == 0)
			return i;
	stream->topics = repalloc(stream->topics, sizeof(char *) * (stream->ntopics + 1));
	stream->source.topics = stream->topics;
	stream->topics[stream->ntopics] = MemoryContextStrdup(GetMemoryChunkContext(stream->topics), topic);
	return stream->ntopics++;
}

void
LettersToBatch(Pipeline *pipeline, const DeadLetterPlace *places, int n)
{
	StreamBatch *batch = pipeline->batch;
	int64	   *ids = palloc(sizeof(int64) * Max(n, 1));
	char	  **topics;

	for (int i = 0; i < n; i++)
		ids[i] = places[i].id;
	batch->nrecords = CatalogReadDeadLetters(ids, n, CurrentMemoryContext, batch->records, &topics);
	/* They are locked, so only this transaction itself can have deleted any. */
	if (batch->nrecords != n)
		ereport(ERROR,
				(errcode(ERRCODE_TRIGGERED_DATA_CHANGE_VIOLATION),
				 errmsg("dead letters of pipeline \"%s\" were deleted while they were tried again", pipeline->def->name)));
	for (int i = 0; i < n; i++)
		batch->records[i].topic = topic_number(pipeline->stream, topics[i]);
	PipelineDecode(pipeline);
}

int
LettersAtOnce(const Pipeline *pipeline, const DeadLetterPlace *places, int n)
{
	int64		bytes = 0;
	int			count = 0;

	while (count < n && count < pipeline->batch->capacity && (count == 0 || bytes + places[count].bytes <= RETRY_BYTES))
		bytes += places[count++].bytes;
	return count;
}

/* Letters as a batch through the statement. Returns how many passed. */
static int64
retry_batch(Pipeline *pipeline, const DeadLetterPlace *places, int n)
{
	StreamBatch *batch = pipeline->batch;
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "hybridiot dead letters", ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	int64	   *passed = palloc(sizeof(int64) * n);
	int64	   *failed = palloc(sizeof(int64) * n);
	DeadLetter *letters;
	int			npassed = 0;
	int			nfailed = 0;
	int			pos = 0;
	uint64		rows = 0;

	LettersToBatch(pipeline, places, n);
	while (pos < n)
		pos = SearchBatch(pipeline, pos, false, &rows);
	for (int i = 0; i < n; i++)
	{
		if (batch->status[i] == RECORD_GOOD)
			passed[npassed++] = places[i].id;
		else
			failed[nfailed++] = places[i].id;
	}
	letters = letters_of(pipeline, 0, n, &nfailed);
	CatalogDeleteDeadLettersById(passed, npassed);
	CatalogDeadLettersFailedAgain(failed, letters, nfailed);
	BatchReset(batch);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
	return npassed;
}

static int64
retry_all(Pipeline *pipeline, TimestampTz since)
{
	int			n;
	DeadLetterPlace *places = CatalogLockDeadLetters(pipeline->def->id, since, pipeline->context, &n);
	int64		passed = 0;

	for (int from = 0, count; from < n; from += count)
	{
		CHECK_FOR_INTERRUPTS();
		count = LettersAtOnce(pipeline, places + from, n - from);
		passed += retry_batch(pipeline, places + from, count);
	}
	if (passed > 0)
		PipelineNotify(pipeline);
	return passed;
}

static int64
retry_dead_letters(const PipelineDefinition *def, TimestampTz since)
{
	Pipeline   *volatile pipeline = NULL;
	volatile int64 passed = 0;

	if (InPipeline)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("retry_dead_letters cannot be called while a pipeline runs")));
	ApplyConstraintsImmediate();
	PG_TRY();
	{
		pipeline = PipelineOpen(def->id, true, 0);
		if (pipeline != NULL)
			passed = def->kind == PIPELINE_WINDOWED ? RetryWindowed(pipeline, since) : retry_all(pipeline, since);
	}
	PG_FINALLY();
	{
		InPipeline = false;
		PipelineClose(pipeline);
	}
	PG_END_TRY();
	return passed;
}

PG_FUNCTION_INFO_V1(hybridiot_retry_dead_letters);

/* retry_dead_letters(name, since) returns how many passed */
Datum
hybridiot_retry_dead_letters(PG_FUNCTION_ARGS)
{
	PipelineDefinition *def = PipelineOfCaller(fcinfo);
	TimestampTz since = PG_ARGISNULL(1) ? DT_NOBEGIN : PG_GETARG_TIMESTAMPTZ(1);

	PG_RETURN_INT64(retry_dead_letters(def, since));
}

PG_FUNCTION_INFO_V1(hybridiot_delete_dead_letters);

/* delete_dead_letters(name, before) returns how many there were */
Datum
hybridiot_delete_dead_letters(PG_FUNCTION_ARGS)
{
	PipelineDefinition *def = PipelineOfCaller(fcinfo);

	if (PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("\"before\" may not be null"),
				 errhint("Use 'infinity' to delete all.")));
	PG_RETURN_INT64(CatalogDeleteDeadLetters(def->id, PG_GETARG_TIMESTAMPTZ(1)));
}
