/*
 * rollup.c
 *		Windowed pipelines: open from the last checkpoint, take records.
 *
 * Records of a batch run through the feed query; its rows enter groups in
 * memory (aggregate.c), from where rollup_checkpoint.c writes them.
 *
 * Whether a record is late is decided by its own partition's log: stream times rise over all records of the range in
 * offset order first, and each record remembers the time of its partition at its turn, so that the order in which a
 * join returns rows does not matter.
 *
 * Memory is not transactional: on any error the caller closes the rollup and opens it again
 * from the last checkpoint. Partitions in memory change only when a whole range has been taken.
 */
#include "postgres.h"

#include "common/int.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/itemptr.h"
#include "tcop/dest.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/plancache.h"
#include "utils/timestamp.h"

#include "core/compat.h"
#include "core/options.h"
#include "pipeline/rollup_state.h"
#include "pipeline/start.h"

/* Groups read at a time. */
#define GROUPS_AT_A_TIME 10000

/* ---------------------------------------------------------------------------
 * Open
 * ---------------------------------------------------------------------------
 */

/* Parse a compiled text as a statement of ours; saved when it is to be kept. */
static SPIPlanPtr
prepare(const char *text, bool keep)
{
	SPIPlanPtr	plan = SPI_prepare(text, 0, NULL);

	if (plan == NULL || (keep && SPI_keepplan(plan) != 0))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not prepare a statement of the pipeline: %s", SPI_result_code_string(SPI_result)),
				 errdetail("Statement: %s", text)));
	return plan;
}

static void
connect_spi(void)
{
	if (SPI_connect() != SPI_OK_CONNECT)
		ereport(ERROR, (errcode(ERRCODE_INTERNAL_ERROR), errmsg("could not connect to SPI")));
}

const char *
RollupPlanText(SPIPlanPtr plan)
{
	return ((CachedPlanSource *) linitial(SPI_plan_get_plan_sources(plan)))->query_string;
}

/* Why rows are written more than once; NULL: they are not. */
static const char *
rewriting(const PipelineOptions *options)
{
	return options->emit_changes ? "emit 'changes'" : options->keep_closed_us > 0 ? "keep_closed" : NULL;
}

/* Deleting what HAVING leaves out, and finding what is in the way, are not in the statement's own text. */
static void
check_target_rights(Oid target, Oid owner, const char *why)
{
	if (pg_class_aclcheck(target, owner, ACL_SELECT) == ACLCHECK_OK &&
		pg_class_aclcheck(target, owner, ACL_DELETE) == ACLCHECK_OK)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("permission denied for table \"%s\"", get_rel_name(target)),
			 errhint("With %s the pipeline's owner needs SELECT and DELETE on it.", why)));
}

/* What the present role may not use, or the options make impossible. */
static void
check_plan(const RollupPlan *plan, const PipelineOptions *options, Oid owner)
{
	for (int i = 0; i < plan->layout.naggregates; i++)
		GroupAggregateCheckRights(&plan->layout.aggregates[i], owner);
	if (options->keep_closed_us > 0 && plan->window.kind == WINDOW_SLIDE)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("sliding windows cannot be kept for reopening"),
				 errdetail("A late record makes windows of its own, of records that are not kept."),
				 errhint("Leave \"keep_closed\" out. hybridiot.seek_pipeline, or a second pipeline, computes such windows anew.")));
	if (rewriting(options))
		check_target_rights(plan->target, owner, rewriting(options));
}

void
RollupCheck(Statement *statement, const PipelineOptions *options, Oid owner)
{
	RollupPlan *plan;
	RoleScope	scope;

	if (OptionBool(GetForeignTable(statement->stream)->options, "compacted", false))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("a windowed pipeline cannot read a compacted stream"),
				 errdetail("Which records of a key are left out depends on where batches end."),
				 errhint("Create another foreign table over the topic, without the option compacted.")));

	/* As the owner: constants of the statement are computed here, and who asks may be a superuser. */
	RoleEnter(&scope, owner);
	plan = RollupCompile(copyObject(statement->query), statement->stream, rewriting(options));
	check_plan(plan, options, owner);
	connect_spi();
	(void) prepare(plan->feed, false);
	(void) prepare(plan->finish, false);
	if (plan->prune != NULL)
		(void) prepare(plan->prune, false);
	if (plan->retract != NULL)
		(void) prepare(plan->retract, false);
	SPI_finish();
	RoleLeave(&scope);
}

int64
RollupReach(Statement *statement, const PipelineDefinition *def)
{
	RoleScope	scope;
	int64		size;

	RoleEnter(&scope, def->owner);
	size = RollupCompile(copyObject(statement->query), def->stream, rewriting(&def->options))->window.size;
	RoleLeave(&scope);
	return pg_add_s64_overflow(size, def->options.lateness_us, &size) ? PG_INT64_MAX : size;
}

/* Compile the stored text, and keep plans of what comes out, as the owner. */
static void
open_plans(Rollup *rollup, const PipelineDefinition *def, bool rewrites)
{
	RoleScope	scope;

	RoleEnter(&scope, def->owner);
	rollup->plan = RollupCompile(StatementReanalyze(def->query)->query, def->stream, rewriting(&def->options));
	check_plan(rollup->plan, &def->options, def->owner);
	connect_spi();
	rollup->feed = prepare(rollup->plan->feed, true);
	rollup->finish = prepare(rollup->plan->finish, true);
	if (rollup->plan->prune != NULL && rewrites)
		rollup->prune = prepare(rollup->plan->prune, true);
	if (rollup->plan->retract != NULL && rewrites)
		rollup->retract = prepare(rollup->plan->retract, true);
	SPI_finish();
	RoleLeave(&scope);
}

static TupleDesc
describe_keys(const GroupLayout *layout)
{
	TupleDesc	keys = CreateTemplateTupleDesc(layout->nkeys);

	for (int i = 0; i < layout->nkeys; i++)
	{
		TupleDescInitEntry(keys, i + 1, layout->keys[i].name, layout->keys[i].type, layout->keys[i].typmod, 0);
		TupleDescInitEntryCollation(keys, i + 1, layout->keys[i].collation);
	}
	return BlessTupleDesc(keys);
}

/*
 * A start, as text, from which the open windows and no others are computed anew; first: start of the earliest that has
 * groups. Sessions that begin later than the first that is open may be written already.
 */
static const char *
start_of_open(Rollup *rollup, const PipelineDefinition *def, TimestampTz first)
{
	const WindowSpec *window = &rollup->plan->window;
	TimestampTz last;

	if (rollup->closed == DT_NOBEGIN)
		return StartParse(def->options.start_at)->kind == START_LATEST ? timestamptz_to_str(first) : def->options.start_at;
	switch (window->kind)
	{
		case WINDOW_NONE:
		case WINDOW_SESSION:
			break;
		case WINDOW_TUMBLE:
		case WINDOW_HOP:
			WindowStarts(window, rollup->closed, &first, &last);
			break;
		case WINDOW_SLIDE:
			first = WindowTimeMinus(rollup->closed, window->size);
			break;
	}
	return timestamptz_to_str(first);
}

/* States of another major version, of other types or of other windows mean nothing to us. */
static void
check_layout(Rollup *rollup, const PipelineDefinition *def)
{
	char	   *stored = CatalogReadWindowLayout(def->id, CurrentMemoryContext);
	TimestampTz first;

	rollup->layout = psprintf("%s, %s", WindowSpecText(&rollup->plan->window), GroupLayoutText(&rollup->plan->layout));
	rollup->layout_stored = stored != NULL && strcmp(stored, rollup->layout) == 0;
	rollup->layout_differs = stored != NULL && !rollup->layout_stored;
	if (!rollup->layout_stored && CatalogEarliestOpen(def->id, &first))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("open windows of pipeline \"%s\" were stored in a form that cannot be read any more", def->name),
				 errdetail("Stored: %s. Now: %s.", stored ? stored : "unknown", rollup->layout),
				 rollup->plan->window.kind == WINDOW_SESSION ?
				 errhint("hybridiot.seek_pipeline('%s', '%s') reads their records again. Sessions that begin no earlier are written again: delete their rows in the same transaction.",
						 def->name, start_of_open(rollup, def, first)) :
				 errhint("hybridiot.seek_pipeline('%s', '%s') reads their records again; windows that are closed are left alone.",
						 def->name, start_of_open(rollup, def, first))));
}

/* As the owner: types and aggregates may run code of the user's. */
void
RollupLoadGroups(Rollup *rollup, const PipelineDefinition *def)
{
	MemoryContext some = AllocSetContextCreate(CurrentMemoryContext, "hybridiot stored groups", ALLOCSET_DEFAULT_SIZES);
	int64		behind = 0;
	int			n;

	do
	{
		WindowGroupRow *rows = CatalogReadGroups(def->id, behind, GROUPS_AT_A_TIME, some, &n);
		RoleScope	scope;

		RoleEnter(&scope, def->owner);
		for (int i = 0; i < n; i++)
			GroupSetLoad(rollup->groups, rows[i].start, rows[i].end, rows[i].id, rows[i].records,
						 rows[i].keys, rows[i].state);
		RoleLeave(&scope);
		if (n > 0)
			behind = rows[n - 1].id;
		MemoryContextReset(some);
		CHECK_FOR_INTERRUPTS();
	} while (n == GROUPS_AT_A_TIME);
	MemoryContextDelete(some);
	GroupSetLastId(rollup->groups, CatalogLastGroup(def->id));
}

/* Windows that begin before a start in event time are no concern of the pipeline: neither written nor late. */
static TimestampTz
begin_of(const PipelineOptions *options)
{
	Start	   *start = StartParse(options->start_at);

	return start->kind == START_TIME ? start->time : DT_NOBEGIN;
}

static Rollup *
open_rollup(Pipeline *pipeline, bool rewrites)
{
	MemoryContext context = AllocSetContextCreate(pipeline->context, "hybridiot rollup", ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	Rollup	   *rollup = palloc0(sizeof(Rollup));
	WindowProgress progress;

	rollup->context = context;
	open_plans(rollup, pipeline->def, rewrites);
	rollup->keys = describe_keys(&rollup->plan->layout);
	rollup->places = palloc(sizeof(RecordPlace) * Max(pipeline->batch->capacity, 1));
	rollup->encode_context = AllocSetContextCreate(context, "hybridiot state of a group", ALLOCSET_DEFAULT_SIZES);
	rollup->letters_context = AllocSetContextCreate(context, "hybridiot dead letters", ALLOCSET_DEFAULT_SIZES);
	rollup->begin = begin_of(&pipeline->def->options);
	CatalogReadProgress(pipeline->def->id, &progress);
	rollup->watermark = progress.watermark;
	rollup->closed = WindowTimePlus(progress.closed_before, rollup->plan->window.over);
	rollup->kept_after = progress.kept_after;
	/* What is still to be kept is no work for a checkpoint, which would tell of silence that changes nothing. */
	rollup->expire_due = CatalogKeepsGroups(pipeline->def->id, pipeline->def->options.keep_closed_us > 0 ?
											progress.kept_after : DT_NOEND);
	rollup->groups = GroupSetCreate(&rollup->plan->layout, &rollup->plan->window,
									pipeline->def->options.emit_changes, rollup->closed);
	check_layout(rollup, pipeline->def);
	MemoryContextSwitchTo(old);
	return rollup;
}

Rollup *
RollupOpen(Pipeline *pipeline)
{
	Rollup	   *rollup = open_rollup(pipeline, pipeline->def->options.emit_changes);
	MemoryContext old = MemoryContextSwitchTo(rollup->context);

	RollupLoadGroups(rollup, pipeline->def);
	MemoryContextSwitchTo(old);
	return rollup;
}

Rollup *
RollupOpenEmpty(Pipeline *pipeline)
{
	return open_rollup(pipeline, true);
}

void
RollupClose(Rollup *rollup)
{
	if (rollup == NULL)
		return;
	if (rollup->feed != NULL)
		SPI_freeplan(rollup->feed);
	if (rollup->finish != NULL)
		SPI_freeplan(rollup->finish);
	if (rollup->prune != NULL)
		SPI_freeplan(rollup->prune);
	if (rollup->retract != NULL)
		SPI_freeplan(rollup->retract);
	MemoryContextDelete(rollup->context);
}

/* ---------------------------------------------------------------------------
 * Dead letters
 * ---------------------------------------------------------------------------
 */

DeadLetter *
RollupAddLetter(Rollup *rollup, DeadReason reason)
{
	DeadLetter *letter;

	if (rollup->nletters == rollup->letters_size)
	{
		rollup->letters_size = Max(64, rollup->letters_size * 2);
		rollup->letters = rollup->letters == NULL ?
			MemoryContextAlloc(rollup->letters_context, sizeof(DeadLetter) * rollup->letters_size) :
			repalloc(rollup->letters, sizeof(DeadLetter) * rollup->letters_size);
	}
	letter = &rollup->letters[rollup->nletters++];
	memset(letter, 0, sizeof(DeadLetter));
	letter->reason = reason;
	letter->window_start = letter->window_end = letter->watermark = DT_NOBEGIN;
	return letter;
}

static char *
copy_bytes(const char *bytes, int32 len)
{
	char	   *copy;

	if (bytes == NULL || len < 0)
		return NULL;
	copy = palloc(Max(len, 1));
	memcpy(copy, bytes, len);
	return copy;
}

/* A record with all its bytes, in the current memory context. */
static Record *
copy_record(const Record *record)
{
	Record	   *copy = palloc(sizeof(Record));
	RecordHeader *headers = palloc(sizeof(RecordHeader) * Max(record->nheaders, 1));

	*copy = *record;
	copy->key = copy_bytes(record->key, record->key_len);
	copy->value = copy_bytes(record->value, record->value_len);
	for (int i = 0; i < record->nheaders; i++)
	{
		headers[i].name = pstrdup(record->headers[i].name);
		headers[i].value = copy_bytes(record->headers[i].value, record->headers[i].value_len);
		headers[i].value_len = record->headers[i].value_len;
	}
	copy->headers = headers;
	return copy;
}

Datum
RollupKeysAsJson(Rollup *rollup, const NullableDatum *keys)
{
	int			nkeys = rollup->plan->layout.nkeys;
	Datum	   *values = palloc(sizeof(Datum) * Max(nkeys, 1));
	bool	   *isnull = palloc(sizeof(bool) * Max(nkeys, 1));
	HeapTuple	tuple;
	Datum		json;

	for (int i = 0; i < nkeys; i++)
	{
		values[i] = keys[i].value;
		isnull[i] = keys[i].isnull;
	}
	tuple = heap_form_tuple(rollup->keys, values, isnull);
	json = DirectFunctionCall1(row_to_json, HeapTupleGetDatum(tuple));
	return DirectFunctionCall1(jsonb_in, CStringGetDatum(TextDatumGetCString(json)));
}

/* Records that the feed never saw, or that failed in it alone. */
static void
note_dead_records(Pipeline *pipeline, StreamBatch *batch, int first, int last)
{
	static const DeadReason reasons[] = {
		[RECORD_UNDECODABLE] = DEAD_UNDECODABLE,
		[RECORD_FUTURE] = DEAD_FUTURE,
		[RECORD_REJECTED] = DEAD_REJECTED
	};
	Rollup	   *rollup = pipeline->rollup;
	MemoryContext old = MemoryContextSwitchTo(rollup->letters_context);

	for (int i = first; i < last; i++)
	{
		RecordStatus status = batch->status[i];
		DeadLetter *letter;

		if (status != RECORD_UNDECODABLE && status != RECORD_FUTURE && status != RECORD_REJECTED)
			continue;
		letter = RollupAddLetter(rollup, reasons[status]);
		letter->record = copy_record(&batch->records[i]);
		letter->topic = pipeline->stream->topics[batch->records[i].topic];
		if (batch->errors[i] != NULL)
		{
			letter->sqlstate = batch->errors[i]->sqlstate;
			letter->message = pstrdup(batch->errors[i]->message);
		}
	}
	MemoryContextSwitchTo(old);
}

static const struct
{
	const char *cause;
	const char *message;
}			late_texts[] = {
	[GROUP_LATE] = {NULL, "its window was over for its partition"},
	[GROUP_LATE_IDLE] = {"idle", "its window was closed while its partition was idle"},
	[GROUP_LATE_ORDER] = {"session order", "its session was over for its partition, and its key has records in several"}
};

/* A record that came too late for what lies in [start, end) or [start, end]; keys are those of its first row. */
static void
note_late(Pipeline *pipeline, const Record *record, const RecordPlace *place, GroupVerdict verdict,
		  TimestampTz start, TimestampTz end, bool includes_end, const Datum *values, const bool *isnull)
{
	Rollup	   *rollup = pipeline->rollup;
	GroupLayout *layout = &rollup->plan->layout;
	MemoryContext old = MemoryContextSwitchTo(rollup->letters_context);
	NullableDatum *keys = palloc(sizeof(NullableDatum) * Max(layout->nkeys, 1));
	DeadLetter *letter = RollupAddLetter(rollup, DEAD_LATE);

	for (int i = 0; i < layout->nkeys; i++)
	{
		keys[i].value = values[layout->keys[i].column];
		keys[i].isnull = isnull[layout->keys[i].column];
	}
	letter->cause = late_texts[verdict].cause;
	letter->message = late_texts[verdict].message;
	letter->record = copy_record(record);
	letter->topic = pipeline->stream->topics[record->topic];
	letter->window_start = start;
	letter->window_end = end;
	letter->window_includes_end = includes_end;
	letter->watermark = place->watermark;
	letter->group_keys = RollupKeysAsJson(rollup, keys);
	rollup->nlate++;
	MemoryContextSwitchTo(old);
}

/* ---------------------------------------------------------------------------
 * Advance
 * ---------------------------------------------------------------------------
 */

/* Partitions of the pipeline as a range of records moves them, before it is known whether the range can be taken. */
typedef struct Tide
{
	TimestampTz *stream_times;
	bool	   *seen;
	TimestampTz closed;			/* windows that end no later are closed */
} Tide;

/* The watermark at this point of the range, for dead letters to tell. */
static TimestampTz
watermark_now(Pipeline *pipeline, const Tide *tide)
{
	TimestampTz watermark = DT_NOEND;

	for (int i = 0; i < pipeline->nparts; i++)
		if (tide->seen[i] || !pipeline->parts[i].idle)
			watermark = Min(watermark, tide->stream_times[i]);
	return Max(watermark, pipeline->rollup->watermark);
}

bool
RollupPlaceRecord(Rollup *rollup, RecordPlace *place, TimestampTz time, TimestampTz *over)
{
	const WindowSpec *window = &rollup->plan->window;

	switch (window->kind)
	{
		case WINDOW_NONE:
			break;
		case WINDOW_TUMBLE:
		case WINDOW_HOP:
			WindowStarts(window, time, &place->first, &place->last);
			while (place->first < rollup->begin && place->first <= place->last)
				place->first += window->advance;
			*over = place->first + window->size;
			return place->first <= place->last;
		case WINDOW_SLIDE:
			WindowCheckTime(window, time);
			*over = WindowTimePlus(time, 1);
			/* The first window that is wanted may begin just behind the record. */
			return time >= WindowTimeMinus(rollup->begin, 1);
		case WINDOW_SESSION:
			/* A session that begins before the begin is known as such only with its records. */
			WindowCheckTime(window, time);
			*over = WindowTimePlus(time, window->over);
			return true;
	}
	pg_unreachable();
}

/* Let time rise with one record, and see whether it may be late. */
static void
judge_record(Pipeline *pipeline, StreamBatch *batch, int number, Tide *tide)
{
	RecordPlace *place = &pipeline->rollup->places[number];
	TimestampTz time = batch->event_times[number];
	int			part = PipelinePartition(pipeline, &batch->records[number]) - pipeline->parts;
	TimestampTz over;

	place->delivered = place->noted = place->fed = place->taken = false;
	tide->seen[part] = true;
	if (batch->status[number] == RECORD_UNDECODABLE || batch->status[number] == RECORD_FUTURE)
		return;
	tide->stream_times[part] = Max(tide->stream_times[part], time);
	if (batch->status[number] != RECORD_GOOD)
		return;
	if (time == DT_NOBEGIN)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("the record has no event time")));

	place->delivered = RollupPlaceRecord(pipeline->rollup, place, time, &over);
	if (!place->delivered)
		return;
	place->when.time = time;
	place->when.late = WindowTimeMinus(tide->stream_times[part], pipeline->def->options.lateness_us);
	place->when.closed = tide->closed;
	place->when.part = part;
	place->maybe_late = !WindowCounts(over, Max(place->when.late, tide->closed));
	if (place->maybe_late)
		place->watermark = watermark_now(pipeline, tide);
}

static Tide *
judge_records(Pipeline *pipeline, StreamBatch *batch, int first, int last)
{
	Rollup	   *rollup = pipeline->rollup;
	Tide	   *tide = palloc(sizeof(Tide));

	tide->stream_times = palloc(sizeof(TimestampTz) * Max(pipeline->nparts, 1));
	tide->seen = palloc0(sizeof(bool) * Max(pipeline->nparts, 1));
	tide->closed = Max(rollup->closed,
					   WindowTimeMinus(rollup->watermark, pipeline->def->options.lateness_us));
	for (int i = 0; i < pipeline->nparts; i++)
		tide->stream_times[i] = pipeline->parts[i].stream_time;
	for (int i = first; i < last; i++)
		judge_record(pipeline, batch, i, tide);
	return tide;
}

/* Where rows of the feed go. */
typedef struct FeedReceiver
{
	DestReceiver pub;
	Pipeline   *pipeline;
	StreamBatch *batch;
	WindowKind	kind;
} FeedReceiver;

static void
feed_startup(DestReceiver *self, int operation, TupleDesc desc)
{
	RollupPlan *plan = ((FeedReceiver *) self)->pipeline->rollup->plan;

	if (desc->natts != plan->ncolumns)
		elog(ERROR, "feed of the pipeline has %d columns instead of %d", desc->natts, plan->ncolumns);
	for (int i = 0; i < desc->natts; i++)
		if (plan->types[i] != UNKNOWNOID && TupleDescAttr(desc, i)->atttypid != plan->types[i])
			elog(ERROR, "column %d of the pipeline's feed has type %u instead of %u",
				 i, TupleDescAttr(desc, i)->atttypid, plan->types[i]);
}

/* A row of a tumbling or hopping statement. Windows that are over come first. False: it went nowhere. */
static bool
take_row(Pipeline *pipeline, const Record *record, const RecordPlace *place, const Datum *values, const bool *isnull)
{
	const WindowSpec *window = &pipeline->rollup->plan->window;
	TimestampTz start = place->first;

	if (place->maybe_late)
		for (; start <= place->last; start += window->advance)
		{
			TimestampTz end = start + window->size;
			bool		late = !WindowCounts(end, place->when.late);

			if (!late && WindowCounts(end, place->when.closed))
				break;
			if (!place->noted)
				note_late(pipeline, record, place, late ? GROUP_LATE : GROUP_LATE_IDLE, start, end, false, values, isnull);
		}
	if (start > place->last)
		return false;
	GroupSetAdvance(pipeline->rollup->groups, start, place->last, values, isnull);
	return true;
}

/* A row of a sliding statement: late for the windows that hold its record and end before it counts. */
static bool
take_slice_row(Pipeline *pipeline, const Record *record, const RecordPlace *place, const Datum *values, const bool *isnull)
{
	Rollup	   *rollup = pipeline->rollup;
	int64		size = rollup->plan->window.size;
	TimestampTz time = place->when.time;
	TimestampTz from;
	GroupVerdict verdict = GroupSetAdvanceSlice(rollup->groups, &place->when, &from, values, isnull);
	bool		none = from == DT_NOEND;

	/* Windows that begin before the pipeline's begin are nobody's: for them nothing is late. */
	if (verdict != GROUP_TAKEN && !place->noted && time >= rollup->begin &&
		(none || from > WindowTimePlus(rollup->begin, size)))
		note_late(pipeline, record, place, verdict, WindowTimeMinus(time, size),
				  none ? WindowTimePlus(time, size) : from, none, values, isnull);
	return !none;
}

static bool
take_session_row(Pipeline *pipeline, const Record *record, RecordPlace *place, const Datum *values, const bool *isnull)
{
	Rollup	   *rollup = pipeline->rollup;
	TimestampTz time = place->when.time;
	GroupVerdict verdict = GroupSetAdvanceSession(rollup->groups, &place->when, values, isnull);

	if (verdict != GROUP_TAKEN && !place->noted && time >= rollup->begin)
	{
		note_late(pipeline, record, place, verdict, time, time, true, values, isnull);
		place->noted = true;
	}
	return verdict == GROUP_TAKEN;
}

static bool
feed_receive(TupleTableSlot *slot, DestReceiver *self)
{
	FeedReceiver *receiver = (FeedReceiver *) self;
	int			number;
	RecordPlace *place;
	const Record *record;
	bool		taken = false;

	slot_getallattrs(slot);
	number = RecordNumberFromTid((ItemPointer) DatumGetPointer(slot->tts_values[0]));
	place = &receiver->pipeline->rollup->places[number];
	record = &receiver->batch->records[number];
	if (!place->delivered)
		return true;
	switch (receiver->kind)
	{
		case WINDOW_NONE:
			pg_unreachable();
		case WINDOW_TUMBLE:
		case WINDOW_HOP:
			taken = take_row(receiver->pipeline, record, place, slot->tts_values, slot->tts_isnull);
			break;
		case WINDOW_SLIDE:
			taken = take_slice_row(receiver->pipeline, record, place, slot->tts_values, slot->tts_isnull);
			break;
		case WINDOW_SESSION:
			taken = take_session_row(receiver->pipeline, record, place, slot->tts_values, slot->tts_isnull);
			break;
	}
	/* The rows of a record are late together; in sessions each is judged with its key. */
	place->noted |= place->maybe_late && receiver->kind != WINDOW_SESSION;
	place->fed = true;
	place->taken |= taken;
	return true;
}

static void
feed_end(DestReceiver *self)
{
}

void
RollupFeed(Pipeline *pipeline, StreamBatch *batch, int first, int last)
{
	Rollup	   *rollup = pipeline->rollup;
	FeedReceiver receiver = {
		.pub = {feed_receive, feed_startup, feed_end, feed_end, DestNone},
		.pipeline = pipeline,
		.batch = batch,
		.kind = rollup->plan->window.kind
	};
	SPIExecuteOptions options = {.dest = &receiver.pub};
	bool		in_pipeline = InPipeline;
	RoleScope	scope;
	int			rc;

	InPipeline = true;
	PG_TRY();
	{
		RoleEnter(&scope, pipeline->def->owner);
		connect_spi();
		BatchExpose(batch, first, last, RollupPlanText(rollup->feed));
		rc = SPI_execute_plan_extended(rollup->feed, &options);
		if (rc < 0)
			ereport(ERROR,
					(errcode(ERRCODE_INTERNAL_ERROR),
					 errmsg("could not run the feed of the pipeline: %s", SPI_result_code_string(rc))));
		SPI_finish();
		RoleLeave(&scope);
	}
	PG_FINALLY();
	{
		BatchExpose(NULL, 0, 0, NULL);
		InPipeline = in_pipeline;
	}
	PG_END_TRY();
}

/* Stop before memory does. Groups that the next checkpoint closes do not count, so batches may end anywhere. */
void
RollupCheckMaxGroups(Pipeline *pipeline)
{
	Rollup	   *rollup = pipeline->rollup;
	int			max_groups = pipeline->def->options.max_groups;
	int64		open = GroupSetCount(rollup->groups);

	if (open <= max_groups)
		return;
	open -= GroupSetCountUntil(rollup->groups,
							   WindowTimeMinus(RollupWatermark(pipeline, PipelineNow(pipeline)),
											   pipeline->def->options.lateness_us));
	if (open > max_groups)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("open windows of pipeline \"%s\" have " INT64_FORMAT " groups, and max_groups is %d",
						pipeline->def->name, open, max_groups),
				 errhint("Raise max_groups with hybridiot.alter_pipeline, or group by fewer keys, smaller windows or less lateness.")));
}

void
RollupAdvance(Pipeline *pipeline, StreamBatch *batch)
{
	int			first = batch->first;
	int			last = batch->last;
	TimestampTz now = PipelineNow(pipeline);
	Tide	   *tide = judge_records(pipeline, batch, first, last);
	bool		any = false;

	for (int i = first; i < last && !any; i++)
		any = pipeline->rollup->places[i].delivered;
	if (any)
		RollupFeed(pipeline, batch, first, last);
	note_dead_records(pipeline, batch, first, last);

	for (int i = 0; i < pipeline->nparts; i++)
	{
		PartitionState *part = &pipeline->parts[i];

		if (!tide->seen[i])
			continue;
		part->stream_time = tide->stream_times[i];
		part->last_record_at = now;
		part->idle = false;
		part->changed = true;
	}
	pfree(tide->stream_times);
	pfree(tide->seen);
	pfree(tide);
	RollupCheckMaxGroups(pipeline);
}
