/*
 * fold.c
 *		Records of dead letters on their way into groups of windows.
 *
 * In the caller's session and transaction, for reopen.c and retry.c, which say what groups there are. Records run through the
 * feed, as those of a batch do. Memory is not transactional, so when some fail, they are looked for with
 * groups that are thrown away, and all is done again without them.
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"

#include "pipeline/fold.h"
#include "pipeline/letters.h"

/* Groups stored at a time. */
#define GROUPS_AT_A_TIME 1000

#define STILL_LATE "its window is over for its partition"

void
FoldBegin(Fold *fold, Pipeline *pipeline, DeadLetterPlace *places, int n)
{
	fold->pipeline = pipeline;
	fold->rollup = pipeline->rollup;
	fold->places = places;
	fold->n = fold->last = n;
	fold->goes = MemoryContextAllocExtended(pipeline->context, sizeof(bool) * Max(n, 1), MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
	fold->fails = MemoryContextAllocExtended(pipeline->context, sizeof(bool) * Max(n, 1), MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
	fold->failures = MemoryContextAllocExtended(pipeline->context, sizeof(DeadLetter) * Max(n, 1), MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
}

void
FoldRenewGroups(Fold *fold, const WindowSpec *spec)
{
	Rollup	   *rollup = fold->rollup;
	bool		changes = fold->pipeline->def->options.emit_changes;
	MemoryContext old;

	if (fold->groups_context != NULL)
		MemoryContextDelete(fold->groups_context);
	fold->groups_context = AllocSetContextCreate(rollup->context, "hybridiot reopened groups", ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(fold->groups_context);
	rollup->groups = fold->closed_windows ? GroupSetCreate(&rollup->plan->layout, spec, true, DT_NOBEGIN) :
		GroupSetCreate(&rollup->plan->layout, spec, changes, rollup->closed);
	MemoryContextSwitchTo(old);
	MemoryContextReset(rollup->letters_context);
	rollup->letters = NULL;
	rollup->nletters = rollup->letters_size = rollup->nlate = rollup->nfailed = 0;
}

void
FoldLoadRow(Fold *fold, const WindowGroupRow *row)
{
	GroupSetLoad(fold->rollup->groups, row->start, row->end, row->id, row->records, row->keys, row->state);
}

/* Number of a record's partition among the positions; -1: it has none. */
static int
position_of(const Fold *fold, const Record *record)
{
	const char *topic = fold->pipeline->stream->topics[record->topic];

	for (int i = 0; i < fold->npositions; i++)
		if (fold->positions[i].partition == record->partition && strcmp(fold->positions[i].topic, topic) == 0)
			return i;
	return -1;
}

/* Is the window of the letter one that holds this time? */
static bool
letter_fits(const WindowSpec *window, const DeadLetterPlace *letter, TimestampTz time)
{
	TimestampTz first;
	TimestampTz last;

	switch (window->kind)
	{
		case WINDOW_NONE:
			break;
		case WINDOW_TUMBLE:
		case WINDOW_HOP:
			WindowStarts(window, time, &first, &last);
			return letter->window_end == letter->window_start + window->size &&
				letter->window_start >= first && letter->window_start <= last &&
				(letter->window_start - first) % window->advance == 0;
		case WINDOW_SLIDE:
			return letter->window_start == WindowTimeMinus(time, window->size);
		case WINDOW_SESSION:
			return letter->window_start == time && letter->window_end == time;
	}
	pg_unreachable();
}

/* A late letter speaks of one window only, or of those that its record missed. False: there it is late still. */
static bool
place_late(Fold *fold, const DeadLetterPlace *letter, RecordPlace *place)
{
	const WindowSpec *window = &fold->rollup->plan->window;
	TimestampTz t = Max(place->when.late, place->when.closed);

	switch (window->kind)
	{
		case WINDOW_NONE:
			break;
		case WINDOW_TUMBLE:
		case WINDOW_HOP:
			place->first = place->last = letter->window_start;
			return fold->closed_windows ||
				(WindowCounts(letter->window_end, t) && letter->window_start >= fold->rollup->begin);
		case WINDOW_SLIDE:
			/* One that counts in some windows is in a slice already; what is left then has a new letter. */
			place->maybe_late = true;
			return letter->window_includes_end && WindowTimePlus(place->when.time, window->size) >= t;
		case WINDOW_SESSION:
			/* Whether it touches a session that is not over is known only in the feed. */
			place->noted = true;
			return true;
	}
	pg_unreachable();
}

/* Where a record that can be decoded goes, or why it goes nowhere. Time does not rise with records that come out of order. */
static void
judge_record(Fold *fold, const DeadLetterPlace *letter, int number)
{
	Pipeline   *pipeline = fold->pipeline;
	Rollup	   *rollup = fold->rollup;
	StreamBatch *batch = pipeline->batch;
	RecordPlace *place = &rollup->places[number];
	TimestampTz time = batch->event_times[number];
	TimestampTz over;

	memset(place, 0, sizeof(RecordPlace));
	if (batch->status[number] != RECORD_GOOD)
		return;
	if (time == DT_NOBEGIN)
	{
		BatchSetError(batch, number, RECORD_REJECTED, ERRCODE_NULL_VALUE_NOT_ALLOWED, "the record has no event time");
		return;
	}
	place->when.time = time;
	place->when.late = place->when.closed = DT_NOBEGIN;
	place->watermark = rollup->watermark;
	if (!fold->closed_windows)
	{
		place->when.part = position_of(fold, &batch->records[number]);
		if (place->when.part >= 0)
			place->when.late = WindowTimeMinus(fold->positions[place->when.part].stream_time,
											   pipeline->def->options.lateness_us);
		place->when.closed = fold->closed;
	}
	place->delivered = RollupPlaceRecord(rollup, place, time, &over);
	if (letter->reason != DEAD_LATE)
		place->maybe_late = !WindowCounts(over, Max(place->when.late, place->when.closed));
	else if (!letter_fits(&rollup->plan->window, letter, time))
		BatchSetError(batch, number, RECORD_LATE, 0, "its window is not one of the statement any more");
	else if (!place_late(fold, letter, place))
		BatchSetError(batch, number, RECORD_LATE, 0, STILL_LATE);
	else
		place->delivered = true;
}

/*
 * Records [first, last) of the batch, whose first letter is from. NULL when they are in their groups; else the fault of a
 * record, and the groups are spoilt.
 */
static ErrorData *
try_records(Fold *fold, int from, int first, int last)
{
	Pipeline   *pipeline = fold->pipeline;
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	ErrorData  *volatile error = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		for (int i = first; i < last; i++)
			judge_record(fold, &fold->places[from + i], i);
		RollupFeed(pipeline, pipeline->batch, first, last);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	if (error != NULL && ErrorClassify(error->sqlerrcode) != ERROR_BAD_RECORD &&
		ErrorClassify(error->sqlerrcode) != ERROR_SPLIT)
		ReThrowError(error);
	return error;
}

void
FoldNoteFailure(Fold *fold, int letter, RecordStatus status, int sqlstate, const char *message)
{
	DeadLetter *failure = &fold->failures[letter];

	/* A late letter speaks of one window, not of its record, and stays what it is. */
	failure->reason = fold->places[letter].reason == DEAD_LATE ? DEAD_LATE : DeadReasonOf(status);
	failure->sqlstate = sqlstate;
	failure->message = MemoryContextStrdup(fold->pipeline->context, message);
}

/* Records [first, last) of the batch, whose first letter is from, that fail by themselves. Returns how many. */
static int
find_failing(Fold *fold, int from, int first, int last)
{
	ErrorData  *error;
	int			middle = first + (last - first) / 2;

	CHECK_FOR_INTERRUPTS();
	FoldRenewGroups(fold, &fold->rollup->plan->window);
	error = try_records(fold, from, first, last);
	if (error == NULL)
		return 0;
	if (last - first == 1)
	{
		FoldNoteFailure(fold, from + first, RECORD_REJECTED, error->sqlerrcode, ErrorMessage(error));
		fold->fails[from + first] = true;
		return 1;
	}
	FreeErrorData(error);
	return find_failing(fold, from, first, middle) + find_failing(fold, from, middle, last);
}

/* What became of a batch of letters that are in their groups now. */
static void
note_batch(Fold *fold, int from, int n)
{
	StreamBatch *batch = fold->pipeline->batch;

	for (int i = 0; i < n; i++)
	{
		const RecordError *error = batch->errors[i];
		const RecordPlace *place = &fold->rollup->places[i];
		bool		late = fold->places[from + i].reason == DEAD_LATE;

		if (batch->status[i] != RECORD_GOOD)
			FoldNoteFailure(fold, from + i, batch->status[i], error ? error->sqlstate : 0, error ? error->message : "it was set aside");
		else if (late && !place->taken)
			FoldNoteFailure(fold, from + i, RECORD_LATE, 0,
						 place->fed && !fold->closed_windows ? STILL_LATE : "the statement leaves the record out");
		else
		{
			fold->goes[from + i] = true;
			/* One that turns out to be late has new letters. */
			if (place->taken || !place->noted)
				fold->taken++;
		}
	}
}

/* A batch of letters. False: some fail by themselves, which is noted; the groups are spoilt. */
static bool
take_batch(Fold *fold, int from, int n)
{
	Pipeline   *pipeline = fold->pipeline;
	StreamBatch *batch = pipeline->batch;
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "hybridiot dead letters", ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	ErrorData  *error;

	LettersToBatch(pipeline, fold->places + from, n);
	for (int i = 0; i < n; i++)
	{
		const DeadLetter *failure = &fold->failures[from + i];

		if (fold->fails[from + i])
			BatchSetError(batch, i, RECORD_REJECTED, failure->sqlstate, failure->message);
	}
	error = try_records(fold, from, 0, n);
	if (error == NULL)
		note_batch(fold, from, n);
	else if (find_failing(fold, from, 0, n) == 0)
		ReThrowError(error);
	BatchReset(batch);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
	return error == NULL;
}

void
FoldRecords(Fold *fold)
{
	int64		before = fold->taken;
	bool		again;

	do
	{
		again = false;
		fold->taken = before;
		fold->load(fold);
		for (int from = fold->first, count; from < fold->last && !again; from += count)
		{
			CHECK_FOR_INTERRUPTS();
			count = LettersAtOnce(fold->pipeline, fold->places + from, fold->last - from);
			again = !take_batch(fold, from, count);
		}
	} while (again);
}

void
FoldSettle(Fold *fold)
{
	int64	   *gone = palloc_extended(sizeof(int64) * Max(fold->n, 1), MCXT_ALLOC_HUGE);
	int64	   *stay = palloc_extended(sizeof(int64) * Max(fold->n, 1), MCXT_ALLOC_HUGE);
	DeadLetter *failures = palloc_extended(sizeof(DeadLetter) * Max(fold->n, 1), MCXT_ALLOC_HUGE);
	int			ngone = 0;
	int			nstay = 0;

	for (int i = 0; i < fold->n; i++)
	{
		if (fold->goes[i])
			gone[ngone++] = fold->places[i].id;
		else
		{
			failures[nstay] = fold->failures[i];
			stay[nstay++] = fold->places[i].id;
		}
	}
	CatalogDeleteDeadLettersById(gone, ngone);
	CatalogDeadLettersFailedAgain(stay, failures, nstay);
}

/* ---------------------------------------------------------------------------
 * Rows of groups
 * ---------------------------------------------------------------------------
 */

void
FoldEmit(Pipeline *pipeline, Emission *emissions, int n, uint64 *rows)
{
	int			done = 0;

	while (done < n)
	{
		CHECK_FOR_INTERRUPTS();
		RollupEmit(pipeline, emissions + done, n - done, rows);
		while (done < n && emissions[done].result != EMIT_LEFT)
			done++;
	}
}

void
FoldStoreClosed(Pipeline *pipeline, const Emission *emissions, int n)
{
	Rollup	   *rollup = pipeline->rollup;
	const PipelineDefinition *def = pipeline->def;
	MemoryContext some = AllocSetContextCreate(CurrentMemoryContext, "hybridiot groups to keep", ALLOCSET_DEFAULT_SIZES);
	WindowGroupRow *rows = palloc(sizeof(WindowGroupRow) * GROUPS_AT_A_TIME);
	int64	   *gone = palloc(sizeof(int64) * GROUPS_AT_A_TIME);

	RollupStoreLayout(rollup, def);
	for (int from = 0; from < n; from += GROUPS_AT_A_TIME)
	{
		int			nrows = 0;
		int			ngone = 0;
		MemoryContext old = MemoryContextSwitchTo(some);
		RoleScope	scope;

		RoleEnter(&scope, def->owner);
		for (int i = from; i < Min(n, from + GROUPS_AT_A_TIME); i++)
		{
			const WindowGroup *group = emissions[i].group;

			if (emissions[i].result != EMIT_WRITTEN)
				continue;
			if (def->options.keep_closed_us > 0 && group->window->over > rollup->kept_after)
				RollupGroupRow(rollup, group, true, group->window->over, &rows[nrows++]);
			else
				gone[ngone++] = group->id;
		}
		RoleLeave(&scope);
		MemoryContextSwitchTo(old);
		CatalogWriteGroups(def->id, rows, nrows);
		CatalogDeleteGroups(def->id, gone, ngone);
		MemoryContextReset(some);
	}
	MemoryContextDelete(some);
}
