/*
 * reopen.c
 *		Dead letters of windowed pipelines, tried again; late records folded into windows that are closed.
 *
 * Both happen in the caller's session and transaction, beside the pipeline's worker. PipelineOfCaller() has locked the
 * definition, so no checkpoint of the worker, no seek and no other caller comes between.
 *
 * reopen_window() works on groups of closed windows, which the worker does not have in memory, and touches only
 * to forget them. It loads those of the windows, lets the late records run through the feed into them, and writes the rows of
 * groups that changed as emit 'changes' would. Groups that it makes get ids below zero: those above are the worker's to give.
 *
 * retry_dead_letters() works on groups of open windows, which the worker has in memory. It loads the last
 * checkpoint, as the worker would after a crash, takes the records, and makes a checkpoint in which no position moves. The worker's memory is then
 * older than the tables, so it is fenced off: what it wants to store next is refused, it loads the groups anew, and reads on from its positions.
 *
 * Records that fail are not fatal here. Memory is not transactional, so what fails is looked for with
 * groups that are thrown away, and all is done again without it.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/rangetypes.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"
#include "utils/typcache.h"

#include "core/catalog_origin.h"
#include "core/compat.h"
#include "pipeline/letters.h"
#include "pipeline/reopen.h"
#include "pipeline/rollup_state.h"

/* Groups stored at a time. */
#define GROUPS_AT_A_TIME 1000

#define STILL_LATE "its window is over for its partition"

typedef struct TimeSpan
{
	TimestampTz start;
	TimestampTz end;
} TimeSpan;

/* Letters that hold records, on their way into groups. */
typedef struct Letters
{
	Pipeline   *pipeline;
	Rollup	   *rollup;
	bool		reopening;		/* into closed windows; else into open ones */
	DeadLetterPlace *places;
	int			n;
	bool	   *goes;			/* the letter is not needed any more */
	int64		taken;			/* letters whose records are in their groups, or left out by the statement */
	DeadLetter *failures;		/* of those that stay: why */
	bool	   *fails;			/* the feed fails for it */
	MemoryContext groups_context;

	TimeSpan   *windows;		/* reopening: those of the letters, each once, in their order; sessions: spans of records */
	int			nwindows;
	int64	   *open;			/* reopening: sessions that are open, by id */
	int			nopen;
	int			open_size;
	WindowSpec	finished;		/* retrying rows: of their groups */
	PositionRow *positions;		/* retrying records */
	int			npositions;
	TimestampTz closed;			/* retrying: windows that are over at this time are closed */
} Letters;

static void
begin_letters(Letters *letters, Pipeline *pipeline, DeadLetterPlace *places, int n)
{
	letters->pipeline = pipeline;
	letters->rollup = pipeline->rollup;
	letters->places = places;
	letters->n = n;
	letters->goes = MemoryContextAllocExtended(pipeline->context, sizeof(bool) * Max(n, 1), MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
	letters->fails = MemoryContextAllocExtended(pipeline->context, sizeof(bool) * Max(n, 1), MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
	letters->failures = MemoryContextAllocExtended(pipeline->context, sizeof(DeadLetter) * Max(n, 1), MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
}

/* ---------------------------------------------------------------------------
 * Records into groups
 * ---------------------------------------------------------------------------
 */

/* No groups, and nothing noted of records that went into them. */
static void
renew_groups(Letters *letters, const WindowSpec *spec)
{
	Rollup	   *rollup = letters->rollup;
	bool		changes = letters->pipeline->def->options.emit_changes;
	MemoryContext old;

	if (letters->groups_context != NULL)
		MemoryContextDelete(letters->groups_context);
	letters->groups_context = AllocSetContextCreate(rollup->context, "hybridiot reopened groups", ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(letters->groups_context);
	rollup->groups = letters->reopening ? GroupSetCreate(&rollup->plan->layout, spec, true, DT_NOBEGIN) :
		GroupSetCreate(&rollup->plan->layout, spec, changes, rollup->closed);
	MemoryContextSwitchTo(old);
	MemoryContextReset(rollup->letters_context);
	rollup->letters = NULL;
	rollup->nletters = rollup->letters_size = rollup->nlate = rollup->nfailed = 0;
}

static void
add_open(Letters *letters, int64 id)
{
	if (letters->nopen == letters->open_size)
	{
		letters->open_size = Max(64, letters->open_size * 2);
		letters->open = letters->open == NULL ?
			MemoryContextAlloc(letters->pipeline->context, sizeof(int64) * letters->open_size) :
			repalloc_huge(letters->open, sizeof(int64) * letters->open_size);
	}
	letters->open[letters->nopen++] = id;
}

/* As the owner. */
static void
load_row(Letters *letters, const WindowGroupRow *row)
{
	GroupSetLoad(letters->rollup->groups, row->start, row->end, row->id, row->records, row->keys, row->state);
}

/* The groups that are stored of a closed window. */
static void
load_closed_window(Letters *letters, const TimeSpan *window)
{
	const PipelineDefinition *def = letters->pipeline->def;
	MemoryContext some = AllocSetContextCreate(CurrentMemoryContext, "hybridiot stored groups", ALLOCSET_DEFAULT_SIZES);
	int			n;
	WindowGroupRow *rows = CatalogReadClosedGroups(def->id, window->start, window->end, window->end, some, &n);
	RoleScope	scope;

	RoleEnter(&scope, def->owner);
	for (int i = 0; i < n; i++)
		if (rows[i].start == window->start && rows[i].end == window->end)
			load_row(letters, &rows[i]);
	RoleLeave(&scope);
	MemoryContextDelete(some);
}

/*
 * Sessions within the gap of late records in this span, but for those that came with the span before. Open ones, too:
 * a record that touches one cannot be folded in.
 */
static void
load_sessions(Letters *letters, const TimeSpan *span, const TimeSpan *before)
{
	const PipelineDefinition *def = letters->pipeline->def;
	int64		gap = letters->rollup->plan->window.size;
	TimestampTz start = WindowTimeMinus(span->start, gap);
	TimestampTz end = WindowTimePlus(span->end, gap);
	MemoryContext some = AllocSetContextCreate(CurrentMemoryContext, "hybridiot stored sessions", ALLOCSET_DEFAULT_SIZES);
	int			n[2];
	WindowGroupRow *rows[] = {
		CatalogReadClosedGroups(def->id, start, end, DT_NOEND, some, &n[0]),
		CatalogReadOpenGroups(def->id, start, end, some, &n[1])
	};
	RoleScope	scope;

	RoleEnter(&scope, def->owner);
	for (int open = 0; open < 2; open++)
		for (int i = 0; i < n[open]; i++)
		{
			if (before != NULL && rows[open][i].start <= WindowTimePlus(before->end, gap))
				continue;
			load_row(letters, &rows[open][i]);
			if (open)
				add_open(letters, rows[open][i].id);
		}
	RoleLeave(&scope);
	MemoryContextDelete(some);
}

static void
load_groups(Letters *letters)
{
	Rollup	   *rollup = letters->rollup;

	renew_groups(letters, &rollup->plan->window);
	letters->nopen = 0;
	if (!letters->reopening)
		RollupLoadGroups(rollup, letters->pipeline->def);
	for (int i = 0; i < letters->nwindows; i++)
	{
		if (rollup->plan->window.kind == WINDOW_SESSION)
			load_sessions(letters, &letters->windows[i], i > 0 ? &letters->windows[i - 1] : NULL);
		else
			load_closed_window(letters, &letters->windows[i]);
	}
}

/* Number of a record's partition among the positions; -1: it has none. */
static int
position_of(const Letters *letters, const Record *record)
{
	const char *topic = letters->pipeline->stream->topics[record->topic];

	for (int i = 0; i < letters->npositions; i++)
		if (letters->positions[i].partition == record->partition && strcmp(letters->positions[i].topic, topic) == 0)
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
place_late(Letters *letters, const DeadLetterPlace *letter, RecordPlace *place)
{
	const WindowSpec *window = &letters->rollup->plan->window;
	TimestampTz t = Max(place->when.late, place->when.closed);

	switch (window->kind)
	{
		case WINDOW_NONE:
			break;
		case WINDOW_TUMBLE:
		case WINDOW_HOP:
			place->first = place->last = letter->window_start;
			return letters->reopening ||
				(WindowCounts(letter->window_end, t) && letter->window_start >= letters->rollup->begin);
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
judge_record(Letters *letters, const DeadLetterPlace *letter, int number)
{
	Pipeline   *pipeline = letters->pipeline;
	Rollup	   *rollup = letters->rollup;
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
	if (!letters->reopening)
	{
		place->when.part = position_of(letters, &batch->records[number]);
		if (place->when.part >= 0)
			place->when.late = WindowTimeMinus(letters->positions[place->when.part].stream_time,
											   pipeline->def->options.lateness_us);
		place->when.closed = letters->closed;
	}
	place->delivered = RollupPlaceRecord(rollup, place, time, &over);
	if (letter->reason != DEAD_LATE)
		place->maybe_late = !WindowCounts(over, Max(place->when.late, place->when.closed));
	else if (!letter_fits(&rollup->plan->window, letter, time))
		BatchSetError(batch, number, RECORD_LATE, 0, "its window is not one of the statement any more");
	else if (!place_late(letters, letter, place))
		BatchSetError(batch, number, RECORD_LATE, 0, STILL_LATE);
	else
		place->delivered = true;
}

/*
 * Records [first, last) of the batch, whose first letter is from. NULL when they are in their groups; else the fault of a
 * record, and the groups are spoilt.
 */
static ErrorData *
try_records(Letters *letters, int from, int first, int last)
{
	Pipeline   *pipeline = letters->pipeline;
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	ErrorData  *volatile error = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		for (int i = first; i < last; i++)
			judge_record(letters, &letters->places[from + i], i);
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

static void
note_failure(Letters *letters, int letter, RecordStatus status, int sqlstate, const char *message)
{
	DeadLetter *failure = &letters->failures[letter];

	/* A late letter speaks of one window, not of its record, and stays what it is. */
	failure->reason = letters->places[letter].reason == DEAD_LATE ? DEAD_LATE : DeadReasonOf(status);
	failure->sqlstate = sqlstate;
	failure->message = MemoryContextStrdup(letters->pipeline->context, message);
}

/* Records [first, last) of the batch, whose first letter is from, that fail by themselves. Returns how many. */
static int
find_failing(Letters *letters, int from, int first, int last)
{
	ErrorData  *error;
	int			middle = first + (last - first) / 2;

	CHECK_FOR_INTERRUPTS();
	renew_groups(letters, &letters->rollup->plan->window);
	error = try_records(letters, from, first, last);
	if (error == NULL)
		return 0;
	if (last - first == 1)
	{
		note_failure(letters, from + first, RECORD_REJECTED, error->sqlerrcode, ErrorMessage(error));
		letters->fails[from + first] = true;
		return 1;
	}
	FreeErrorData(error);
	return find_failing(letters, from, first, middle) + find_failing(letters, from, middle, last);
}

/* What became of a batch of letters that are in their groups now. */
static void
note_batch(Letters *letters, int from, int n)
{
	StreamBatch *batch = letters->pipeline->batch;

	for (int i = 0; i < n; i++)
	{
		const RecordError *error = batch->errors[i];
		const RecordPlace *place = &letters->rollup->places[i];
		bool		late = letters->places[from + i].reason == DEAD_LATE;

		if (batch->status[i] != RECORD_GOOD)
			note_failure(letters, from + i, batch->status[i], error ? error->sqlstate : 0, error ? error->message : "it was set aside");
		else if (late && !place->taken)
			note_failure(letters, from + i, RECORD_LATE, 0,
						 place->fed && !letters->reopening ? STILL_LATE : "the statement leaves the record out");
		else
		{
			letters->goes[from + i] = true;
			/* One that turns out to be late has new letters. */
			if (place->taken || !place->noted)
				letters->taken++;
		}
	}
}

/* A batch of letters. False: some fail by themselves, which is noted; the groups are spoilt. */
static bool
take_batch(Letters *letters, int from, int n)
{
	Pipeline   *pipeline = letters->pipeline;
	StreamBatch *batch = pipeline->batch;
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "hybridiot dead letters", ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	ErrorData  *error;

	LettersToBatch(pipeline, letters->places + from, n);
	for (int i = 0; i < n; i++)
	{
		const DeadLetter *failure = &letters->failures[from + i];

		if (letters->fails[from + i])
			BatchSetError(batch, i, RECORD_REJECTED, failure->sqlstate, failure->message);
	}
	error = try_records(letters, from, 0, n);
	if (error == NULL)
		note_batch(letters, from, n);
	else if (find_failing(letters, from, 0, n) == 0)
		ReThrowError(error);
	BatchReset(batch);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
	return error == NULL;
}

/* All letters into their groups, but those that fail. */
static void
take_letters(Letters *letters)
{
	bool		again;

	do
	{
		again = false;
		letters->taken = 0;
		load_groups(letters);
		for (int from = 0, count; from < letters->n && !again; from += count)
		{
			CHECK_FOR_INTERRUPTS();
			count = LettersAtOnce(letters->pipeline, letters->places + from, letters->n - from);
			again = !take_batch(letters, from, count);
		}
	} while (again);
}

/* Letters that are done with go, the others count one more attempt. */
static void
settle_letters(Letters *letters)
{
	int64	   *gone = palloc_extended(sizeof(int64) * Max(letters->n, 1), MCXT_ALLOC_HUGE);
	int64	   *stay = palloc_extended(sizeof(int64) * Max(letters->n, 1), MCXT_ALLOC_HUGE);
	DeadLetter *failures = palloc_extended(sizeof(DeadLetter) * Max(letters->n, 1), MCXT_ALLOC_HUGE);
	int			ngone = 0;
	int			nstay = 0;

	for (int i = 0; i < letters->n; i++)
	{
		if (letters->goes[i])
			gone[ngone++] = letters->places[i].id;
		else
		{
			failures[nstay] = letters->failures[i];
			stay[nstay++] = letters->places[i].id;
		}
	}
	CatalogDeleteDeadLettersById(gone, ngone);
	CatalogDeadLettersFailedAgain(stay, failures, nstay);
}

/* ---------------------------------------------------------------------------
 * Groups of closed windows
 * ---------------------------------------------------------------------------
 */

/* Write rows of all these groups, whatever it takes. */
static void
emit_all(Pipeline *pipeline, Emission *emissions, int n, uint64 *rows)
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

/* Store the groups that were written, for the next time, if they are to be kept at all. */
static void
store_closed(Pipeline *pipeline, const Emission *emissions, int n)
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

/* What is stored must be of the form that is read now. */
static bool
states_readable(const Rollup *rollup)
{
	return !rollup->layout_differs;
}

/* ---------------------------------------------------------------------------
 * reopen_window()
 * ---------------------------------------------------------------------------
 */

static int
compare_windows(const void *a, const void *b)
{
	const TimeSpan *wa = a;
	const TimeSpan *wb = b;

	if (wa->end != wb->end)
		return wa->end < wb->end ? -1 : 1;
	return wa->start < wb->start ? -1 : wa->start > wb->start;
}

/* Windows of the letters, each once; of records of sessions, spans within the gap. */
static void
find_windows(Letters *letters)
{
	TimeSpan   *windows = palloc_extended(sizeof(TimeSpan) * letters->n, MCXT_ALLOC_HUGE);
	const WindowSpec *spec = &letters->rollup->plan->window;
	int			n = 0;

	for (int i = 0; i < letters->n; i++)
	{
		windows[i].start = letters->places[i].window_start;
		windows[i].end = letters->places[i].window_end;
	}
	qsort(windows, letters->n, sizeof(TimeSpan), compare_windows);
	for (int i = 0; i < letters->n; i++)
	{
		if (n > 0 && spec->kind == WINDOW_SESSION && windows[i].start <= WindowTimePlus(windows[n - 1].end, spec->size))
			windows[n - 1].end = windows[i].end;
		else if (n == 0 || compare_windows(&windows[n - 1], &windows[i]) != 0)
			windows[n++] = windows[i];
	}
	letters->windows = windows;
	letters->nwindows = n;
}

static void
window_is_open(const Letters *letters, TimestampTz start, TimestampTz end)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("window %s of pipeline \"%s\" is still open",
					WindowText(start, end, WindowIncludesEnd(&letters->rollup->plan->window)), letters->pipeline->def->name),
			 errhint("Name a range that ends no later than closed_before in hybridiot.pipeline, or wait until the window is closed.")));
}

/*
 * They must be closed, and their groups must still be there. Of a session that a record touches it is known that it is
 * over no earlier than the record itself, without the gap.
 */
static void
check_windows(const Letters *letters)
{
	const Rollup *rollup = letters->rollup;
	const WindowSpec *spec = &rollup->plan->window;
	const PipelineDefinition *def = letters->pipeline->def;

	for (int i = 0; i < letters->nwindows; i++)
	{
		const TimeSpan *window = &letters->windows[i];
		TimestampTz over = spec->kind == WINDOW_SESSION ? WindowTimePlus(window->start, 1) : window->end;

		if (WindowTimePlus(window->end, spec->over) > rollup->closed)
			window_is_open(letters, window->start, window->end);
		if (over <= rollup->kept_after)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("window %s of pipeline \"%s\" is not kept any more",
							WindowText(window->start, window->end, WindowIncludesEnd(spec)), def->name),
					 errdetail("Kept are windows that end after %s.",
							   timestamptz_to_str(WindowTimeMinus(rollup->kept_after, spec->over))),
					 errhint("Name a range that begins later; or compute the window anew, with hybridiot.seek_pipeline or a second pipeline.")));
	}
}

static int
compare_ids(const void *a, const void *b)
{
	int64		ida = *(const int64 *) a;
	int64		idb = *(const int64 *) b;

	return ida < idb ? -1 : ida > idb;
}

/* Sessions that changed must not be open, nor those that were merged into others. */
static void
check_sessions(Letters *letters, const Emission *emissions, int n, const int64 *merged, int nmerged)
{
	qsort(letters->open, letters->nopen, sizeof(int64), compare_ids);
	for (int i = 0; i < n && letters->nopen > 0; i++)
	{
		const WindowGroup *group = emissions[i].group;
		bool		open = bsearch(&group->id, letters->open, letters->nopen, sizeof(int64), compare_ids) != NULL;

		if (open)
			window_is_open(letters, group->window->start, group->window->end);
	}
	for (int i = 0; i < nmerged && letters->nopen > 0; i++)
		if (bsearch(&merged[i], letters->open, letters->nopen, sizeof(int64), compare_ids) != NULL)
			window_is_open(letters, letters->windows[0].start, letters->windows[letters->nwindows - 1].end);
}

/* Groups that changed; those that are new get ids. */
static Emission *
changed_groups(Letters *letters, int *n)
{
	GroupSet   *groups = letters->rollup->groups;
	int64		id = CatalogFirstGroup(letters->pipeline->def->id);
	Emission   *emissions = palloc_extended(sizeof(Emission) * Max(GroupSetCount(groups), 1), MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
	dlist_iter	iter;

	*n = 0;
	dlist_foreach(iter, GroupSetChanged(groups))
	{
		WindowGroup *group = dlist_container(WindowGroup, changed_node, iter.cur);

		if (!group->stored)
			group->id = --id;
		emissions[(*n)++].group = group;
	}
	return emissions;
}

static void
row_not_written(Letters *letters, const Emission *emission)
{
	const WindowGroup *group = emission->group;
	RoleScope	scope;
	Datum		keys;

	RoleEnter(&scope, letters->pipeline->def->owner);
	keys = RollupKeysAsJson(letters->rollup, group->keys);
	RoleLeave(&scope);
	ereport(ERROR,
			(errcode(emission->sqlstate),
			 errmsg("the corrected row cannot be written: %s", emission->message),
			 errdetail("Window %s, group %s.",
					   WindowText(group->window->start, group->window->end, WindowIncludesEnd(&letters->rollup->plan->window)),
					   DatumGetCString(DirectFunctionCall1(jsonb_out, keys))),
			 errhint("Nothing was changed.")));
}

/* The rows of groups that changed, and the groups for the next time. */
static void
write_corrected(Letters *letters)
{
	Pipeline   *pipeline = letters->pipeline;
	int			n;
	Emission   *emissions = changed_groups(letters, &n);
	int64	   *ids = palloc_extended(sizeof(int64) * Max(n, 1), MCXT_ALLOC_HUGE);
	int			nmerged;
	int64	   *merged = GroupSetTakeGone(pipeline->rollup->groups, &nmerged);
	uint64		rows = 0;

	if (n == 0)
		return;
	check_sessions(letters, emissions, n, merged, nmerged);
	if (pipeline->rollup->retract != NULL)
		rows += RollupRetract(pipeline, emissions, n);
	emit_all(pipeline, emissions, n, &rows);
	for (int i = 0; i < n; i++)
	{
		if (emissions[i].result == EMIT_FAILED)
			row_not_written(letters, &emissions[i]);
		ids[i] = emissions[i].group->id;
	}
	CatalogDeleteGroups(pipeline->def->id, merged, nmerged);
	store_closed(pipeline, emissions, n);
	/* Of rows that could not be written before. */
	CatalogDeleteRowLetters(pipeline->def->id, ids, n);
	CatalogDeleteRowLetters(pipeline->def->id, merged, nmerged);
	PipelineNotify(pipeline);
}

/* Late records of windows that overlap the range. Returns how many are in their groups now. */
static int64
reopen(Pipeline *pipeline, Datum during)
{
	Letters		letters = {.reopening = true};
	int			n;
	DeadLetterPlace *places = CatalogLockLateLetters(pipeline->def->id, during, pipeline->context, &n);

	if (n == 0)
		return 0;
	pipeline->rollup = RollupOpenEmpty(pipeline);
	begin_letters(&letters, pipeline, places, n);
	find_windows(&letters);
	check_windows(&letters);
	if (!states_readable(pipeline->rollup))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("closed windows of pipeline \"%s\" were stored in a form that cannot be read any more", pipeline->def->name),
				 errhint("Compute them anew, with hybridiot.seek_pipeline or a second pipeline.")));
	take_letters(&letters);
	write_corrected(&letters);
	settle_letters(&letters);
	return letters.taken;
}

static void
check_range(Datum during)
{
	RangeType  *range = DatumGetRangeTypeP(during);
	TypeCacheEntry *type = lookup_type_cache(TSTZRANGEOID, TYPECACHE_RANGE_INFO);
	RangeBound	lower;
	RangeBound	upper;
	bool		empty;

	range_deserialize(type, range, &lower, &upper, &empty);
	if (empty || lower.infinite || upper.infinite ||
		TIMESTAMP_NOT_FINITE(DatumGetTimestampTz(lower.val)) || TIMESTAMP_NOT_FINITE(DatumGetTimestampTz(upper.val)))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the range of windows to reopen is %s", empty ? "empty" : "unbounded"),
				 errhint("Name a range that has a beginning and an end.")));
}

/* May windows of this pipeline be reopened at all? */
static void
check_pipeline(const PipelineDefinition *def)
{
	if (InPipeline)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("reopen_window cannot be called while a pipeline runs")));
	if (def->kind != PIPELINE_WINDOWED)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("pipeline \"%s\" has no windows", def->name),
				 errhint("hybridiot.retry_dead_letters tries its dead letters again.")));
	if (def->options.keep_closed_us == 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("pipeline \"%s\" does not keep closed windows", def->name),
				 errhint("Set keep_closed with hybridiot.alter_pipeline; windows that close from then on can be reopened.")));
}

static void
check_commands(const PipelineDefinition *def)
{
	if (CatalogCommanding(def->id))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("windows of pipeline \"%s\" cannot be reopened: it sends commands", def->name),
				 errdetail("A command that was sent cannot be taken back, and would be sent again."),
				 errhint("Let one pipeline write the rows, and another one command.")));
}

PG_FUNCTION_INFO_V1(hybridiot_reopen_window);

/* reopen_window(name, during) returns how many late records were folded in */
Datum
hybridiot_reopen_window(PG_FUNCTION_ARGS)
{
	PipelineDefinition *def = PipelineOfCaller(fcinfo);
	Pipeline   *volatile pipeline = NULL;
	volatile int64 taken = 0;

	check_pipeline(def);
	if (PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("\"during\" may not be null")));
	check_range(PG_GETARG_DATUM(1));
	ApplyConstraintsImmediate();
	PG_TRY();
	{
		pipeline = PipelineOpen(def->id, true, 0);
		if (pipeline != NULL)
		{
			check_commands(def);
			taken = reopen(pipeline, PG_GETARG_DATUM(1));
		}
	}
	PG_FINALLY();
	{
		InPipeline = false;
		PipelineClose(pipeline);
	}
	PG_END_TRY();
	PG_RETURN_INT64(taken);
}

/* ---------------------------------------------------------------------------
 * retry_dead_letters()
 * ---------------------------------------------------------------------------
 */

/* All groups of the set, in the order in which their windows were over. */
static Emission *
all_groups(GroupSet *groups, int *n)
{
	Emission   *emissions = palloc_extended(sizeof(Emission) * Max(GroupSetCount(groups), 1), MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
	GroupWindow *window;
	dlist_iter	iter;

	*n = 0;
	while ((window = GroupSetPop(groups, DT_NOEND)) != NULL)
		dlist_foreach(iter, &window->groups)
			emissions[(*n)++].group = dlist_container(WindowGroup, node, iter.cur);
	return emissions;
}

static int
compare_group_ids(const void *a, const void *b)
{
	int64		ida = ((const Emission *) a)->group->id;
	int64		idb = ((const Emission *) b)->group->id;

	return ida < idb ? -1 : ida > idb;
}

/* The groups that letters speak of, as they were when their rows failed. */
static void
load_failed_groups(Letters *letters)
{
	const PipelineDefinition *def = letters->pipeline->def;
	MemoryContext some = AllocSetContextCreate(CurrentMemoryContext, "hybridiot stored groups", ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(some);
	int64	   *ids = palloc_extended(sizeof(int64) * letters->n, MCXT_ALLOC_HUGE);
	WindowGroupRow *rows;
	int			n;
	RoleScope	scope;

	for (int i = 0; i < letters->n; i++)
		ids[i] = letters->places[i].group_id;
	/* Sliding windows that are finished are windows as others are. */
	letters->finished = letters->rollup->plan->window;
	if (letters->finished.kind == WINDOW_SLIDE)
		letters->finished.kind = WINDOW_TUMBLE;
	renew_groups(letters, &letters->finished);
	if (states_readable(letters->rollup))
	{
		rows = CatalogReadFailedGroups(def->id, ids, letters->n, some, &n);
		RoleEnter(&scope, def->owner);
		for (int i = 0; i < n; i++)
			load_row(letters, &rows[i]);
		RoleLeave(&scope);
	}
	MemoryContextSwitchTo(old);
	MemoryContextDelete(some);
}

/* Finished rows that could not be written. Returns how many are now. */
static int64
retry_rows(Pipeline *pipeline, TimestampTz since)
{
	Letters		letters = {0};
	int			n;
	DeadLetterPlace *places = CatalogLockRowLetters(pipeline->def->id, since, pipeline->context, &n);
	Emission   *emissions;
	int			nemissions;
	uint64		rows = 0;

	if (n == 0)
		return 0;
	begin_letters(&letters, pipeline, places, n);
	load_failed_groups(&letters);
	emissions = all_groups(pipeline->rollup->groups, &nemissions);
	emit_all(pipeline, emissions, nemissions, &rows);
	if (nemissions > 0)
		store_closed(pipeline, emissions, nemissions);

	qsort(emissions, nemissions, sizeof(Emission), compare_group_ids);
	for (int i = 0; i < n; i++)
	{
		WindowGroup probe = {.id = places[i].group_id};
		Emission	key = {.group = &probe};
		Emission   *emission = bsearch(&key, emissions, nemissions, sizeof(Emission), compare_group_ids);

		letters.goes[i] = emission != NULL && emission->result == EMIT_WRITTEN;
		if (letters.goes[i])
			letters.taken++;
		else if (emission != NULL)
			note_failure(&letters, i, RECORD_REJECTED, emission->sqlstate, emission->message);
		else
			note_failure(&letters, i, RECORD_REJECTED, 0, "the state of its group is not kept any more");
	}
	settle_letters(&letters);
	return letters.taken;
}

/* A checkpoint in which no position moves. What the worker has in memory is out of date with it. */
static void
checkpoint(Letters *letters)
{
	Pipeline   *pipeline = letters->pipeline;
	PositionMove *moves = palloc0(sizeof(PositionMove) * Max(letters->npositions, 1));
	uint64		rows;

	RollupCheckMaxGroups(pipeline);
	/* No partition is read here, so time stands still. */
	Assert(pipeline->nparts == 0);
	while (RollupCheckpoint(pipeline, PipelineNow(pipeline), &rows))
		CHECK_FOR_INTERRUPTS();

	/* Positions must be those that the groups go with, even for a caller whose snapshot is older. */
	for (int i = 0; i < letters->npositions; i++)
	{
		moves[i].row = letters->positions[i];
		moves[i].old_offset = letters->positions[i].next_offset;
	}
	if (!CatalogMovePositions(pipeline->def, moves, letters->npositions))
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("positions of pipeline \"%s\" were moved by somebody else", pipeline->def->name)));
	CatalogFence(pipeline->def);
	WakeAtCommit(WAKE_RELOAD);
}

static int
topic_place(const Stream *stream, const char *topic)
{
	int			place = 0;

	while (place < stream->ntopics && strcmp(stream->topics[place], topic) != 0)
		place++;
	return place;
}

/* In the order in which the pipeline's worker numbers its partitions: sessions know where their records came from. */
static int
compare_positions(const void *a, const void *b, void *arg)
{
	const PositionRow *pa = a;
	const PositionRow *pb = b;
	int			ta = topic_place(arg, pa->topic);
	int			tb = topic_place(arg, pb->topic);

	return ta != tb ? ta - tb : pa->partition - pb->partition;
}

/* Records. Returns how many passed. */
static int64
retry_records(Pipeline *pipeline, TimestampTz since)
{
	Letters		letters = {0};
	Rollup	   *rollup = pipeline->rollup;
	int			n;
	DeadLetterPlace *places = CatalogLockDeadLetters(pipeline->def->id, since, pipeline->context, &n);

	if (n == 0)
		return 0;
	begin_letters(&letters, pipeline, places, n);
	letters.positions = CatalogReadPositions(pipeline->def->id, pipeline->context, &letters.npositions);
	qsort_arg(letters.positions, letters.npositions, sizeof(PositionRow), compare_positions, pipeline->stream);
	letters.closed = Max(rollup->closed,
						 WindowTimeMinus(rollup->watermark, pipeline->def->options.lateness_us));
	take_letters(&letters);
	settle_letters(&letters);
	checkpoint(&letters);
	return letters.taken;
}

int64
RetryWindowed(Pipeline *pipeline, TimestampTz since)
{
	int64		passed;

	pipeline->rollup = RollupOpenEmpty(pipeline);
	passed = retry_rows(pipeline, since);
	passed += retry_records(pipeline, since);
	if (passed > 0)
		PipelineNotify(pipeline);
	return passed;
}
