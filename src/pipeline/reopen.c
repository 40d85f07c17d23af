/*
 * reopen.c
 *		Late records folded into windows that are closed.
 *
 * In the caller's session and transaction, beside the pipeline's worker. PipelineOfCaller() has locked the
 * definition, so no checkpoint of the worker, no seek and no other caller comes between. Groups of closed windows are not in the worker's memory; it touches
 * them only to forget them.
 *
 * Groups of the windows are loaded, late records run into them through the feed, and rows of groups that changed are written as emit 'changes' would. Windows
 * go in steps, so that there are not too many groups in memory. Groups that are made here get ids below zero: those
 * above are the worker's to give.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/rangetypes.h"
#include "utils/timestamp.h"
#include "utils/typcache.h"

#include "core/catalog_origin.h"
#include "core/compat.h"
#include "pipeline/fold.h"

/* A step ends with the window that brings more groups than these. */
#define GROUPS_PER_STEP 50000

/* A window with late records; of sessions, a span of records that are near enough to meet in one. */
typedef struct LateWindow
{
	TimestampTz start;
	TimestampTz end;
	int			last;			/* letters of it and of those before */
} LateWindow;

typedef struct Reopening
{
	Fold		fold;
	LateWindow *windows;		/* in the order of their ends */
	int			nwindows;
	int			from;			/* of this step: [from, to) */
	int			to;
	int64	   *open;			/* sessions that are open, by id */
	int			nopen;
	int			open_size;
} Reopening;

/* ---------------------------------------------------------------------------
 * Groups of closed windows
 * ---------------------------------------------------------------------------
 */

static void
add_open(Reopening *own, int64 id)
{
	if (own->nopen == own->open_size)
	{
		own->open_size = Max(64, own->open_size * 2);
		own->open = own->open == NULL ?
			MemoryContextAlloc(own->fold.pipeline->context, sizeof(int64) * own->open_size) :
			repalloc_huge(own->open, sizeof(int64) * own->open_size);
	}
	own->open[own->nopen++] = id;
}

/* The groups that are stored of a closed window. */
static void
load_closed_window(Fold *fold, const LateWindow *window)
{
	const PipelineDefinition *def = fold->pipeline->def;
	MemoryContext some = AllocSetContextCreate(CurrentMemoryContext, "hybridiot stored groups", ALLOCSET_DEFAULT_SIZES);
	int			n;
	WindowGroupRow *rows = CatalogReadClosedGroups(def->id, window->start, window->end, window->end, some, &n);
	RoleScope	scope;

	RoleEnter(&scope, def->owner);
	for (int i = 0; i < n; i++)
		if (rows[i].start == window->start && rows[i].end == window->end)
			FoldLoadRow(fold, &rows[i]);
	RoleLeave(&scope);
	MemoryContextDelete(some);
}

/*
 * Sessions within the gap of late records in this span, but for those that came with the span before. Open ones, too:
 * a record that touches one cannot be folded in.
 */
static void
load_sessions(Reopening *own, const LateWindow *span, const LateWindow *before)
{
	const PipelineDefinition *def = own->fold.pipeline->def;
	int64		gap = own->fold.rollup->plan->window.size;
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
			FoldLoadRow(&own->fold, &rows[open][i]);
			if (open)
				add_open(own, rows[open][i].id);
		}
	RoleLeave(&scope);
	MemoryContextDelete(some);
}

/* Groups of the next windows. */
static void
load_step(Fold *fold)
{
	Reopening  *own = (Reopening *) fold;
	const WindowSpec *spec = &fold->rollup->plan->window;

	FoldRenewGroups(fold, spec);
	own->nopen = 0;
	for (own->to = own->from; own->to < own->nwindows; own->to++)
	{
		const LateWindow *window = &own->windows[own->to];

		if (GroupSetCount(fold->rollup->groups) > GROUPS_PER_STEP)
			break;
		if (spec->kind == WINDOW_SESSION)
			load_sessions(own, window, own->to > own->from ? window - 1 : NULL);
		else
			load_closed_window(fold, window);
	}
	fold->last = own->windows[own->to - 1].last;
}

/* ---------------------------------------------------------------------------
 * Windows with late records
 * ---------------------------------------------------------------------------
 */

static int
compare_windows(const void *a, const void *b)
{
	const LateWindow *wa = a;
	const LateWindow *wb = b;

	if (wa->end != wb->end)
		return wa->end < wb->end ? -1 : 1;
	return wa->start < wb->start ? -1 : wa->start > wb->start;
}

/* A letter's window, and its place among the letters. */
typedef struct LetterWindow
{
	int			window;
	int			place;
} LetterWindow;

static int
compare_letters(const void *a, const void *b)
{
	const LetterWindow *la = a;
	const LetterWindow *lb = b;

	return la->window != lb->window ? la->window - lb->window : la->place - lb->place;
}

/* The window of a letter. */
static int
window_of(const Reopening *own, const DeadLetterPlace *letter)
{
	bool		spans = own->fold.rollup->plan->window.kind == WINDOW_SESSION;
	LateWindow	key = {letter->window_start, letter->window_end};
	int			low = 0;
	int			high = own->nwindows;

	while (low < high)
	{
		int			middle = low + (high - low) / 2;
		const LateWindow *window = &own->windows[middle];

		if (spans ? window->end < letter->window_end : compare_windows(window, &key) < 0)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

/* Letters in the order of their windows, and in log order within one. */
static void
sort_letters(Reopening *own)
{
	Fold	   *fold = &own->fold;
	LetterWindow *order = palloc_extended(sizeof(LetterWindow) * fold->n, MCXT_ALLOC_HUGE);
	DeadLetterPlace *places = palloc_extended(sizeof(DeadLetterPlace) * fold->n, MCXT_ALLOC_HUGE);

	for (int i = 0; i < fold->n; i++)
	{
		order[i].window = window_of(own, &fold->places[i]);
		order[i].place = i;
	}
	qsort(order, fold->n, sizeof(LetterWindow), compare_letters);
	for (int i = 0; i < fold->n; i++)
	{
		places[i] = fold->places[order[i].place];
		own->windows[order[i].window].last = i + 1;
	}
	fold->places = places;
	pfree(order);
}

/* Windows of the letters, each once; sessions may meet where records are within the gap of each other, on both sides. */
static void
find_windows(Reopening *own)
{
	Fold	   *fold = &own->fold;
	const WindowSpec *spec = &fold->rollup->plan->window;
	LateWindow *windows = palloc_extended(sizeof(LateWindow) * fold->n, MCXT_ALLOC_HUGE);
	int			n = 0;

	for (int i = 0; i < fold->n; i++)
	{
		windows[i].start = fold->places[i].window_start;
		windows[i].end = fold->places[i].window_end;
	}
	qsort(windows, fold->n, sizeof(LateWindow), compare_windows);
	for (int i = 0; i < fold->n; i++)
	{
		if (n > 0 && spec->kind == WINDOW_SESSION && windows[i].start <= WindowTimePlus(windows[n - 1].end, spec->size))
			windows[n - 1].end = windows[i].end;
		else if (n == 0 || compare_windows(&windows[n - 1], &windows[i]) != 0)
			windows[n++] = windows[i];
	}
	own->windows = windows;
	own->nwindows = n;
	sort_letters(own);
}

static void
window_is_open(const Reopening *own, TimestampTz start, TimestampTz end)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("window %s of pipeline \"%s\" is still open",
					WindowText(start, end, WindowIncludesEnd(&own->fold.rollup->plan->window)), own->fold.pipeline->def->name),
			 errhint("Name a range that ends no later than closed_before in hybridiot.pipeline, or wait until the window is closed.")));
}

/*
 * They must be closed, and their groups must still be there. Of a session that a record touches it is known that it is
 * over no earlier than the record itself, without the gap.
 */
static void
check_windows(const Reopening *own)
{
	const Rollup *rollup = own->fold.rollup;
	const WindowSpec *spec = &rollup->plan->window;
	const PipelineDefinition *def = own->fold.pipeline->def;

	for (int i = 0; i < own->nwindows; i++)
	{
		const LateWindow *window = &own->windows[i];
		TimestampTz over = spec->kind == WINDOW_SESSION ? WindowTimePlus(window->start, 1) : window->end;

		if (WindowTimePlus(window->end, spec->over) > rollup->closed)
			window_is_open(own, window->start, window->end);
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
check_sessions(Reopening *own, const Emission *emissions, int n, const int64 *merged, int nmerged)
{
	qsort(own->open, own->nopen, sizeof(int64), compare_ids);
	for (int i = 0; i < n && own->nopen > 0; i++)
	{
		const WindowGroup *group = emissions[i].group;
		bool		open = bsearch(&group->id, own->open, own->nopen, sizeof(int64), compare_ids) != NULL;

		if (open)
			window_is_open(own, group->window->start, group->window->end);
	}
	for (int i = 0; i < nmerged && own->nopen > 0; i++)
		if (bsearch(&merged[i], own->open, own->nopen, sizeof(int64), compare_ids) != NULL)
			window_is_open(own, own->windows[own->from].start, own->windows[own->to - 1].end);
}

/* ---------------------------------------------------------------------------
 * reopen_window()
 * ---------------------------------------------------------------------------
 */

/* Groups that changed; those that are new get ids. */
static Emission *
changed_groups(Reopening *own, int *n)
{
	GroupSet   *groups = own->fold.rollup->groups;
	int64		id = CatalogFirstGroup(own->fold.pipeline->def->id);
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
row_not_written(Reopening *own, const Emission *emission)
{
	const WindowGroup *group = emission->group;
	RoleScope	scope;
	Datum		keys;

	RoleEnter(&scope, own->fold.pipeline->def->owner);
	keys = RollupKeysAsJson(own->fold.rollup, group->keys);
	RoleLeave(&scope);
	ereport(ERROR,
			(errcode(emission->sqlstate),
			 errmsg("the corrected row cannot be written: %s", emission->message),
			 errdetail("Window %s, group %s.",
					   WindowText(group->window->start, group->window->end, WindowIncludesEnd(&own->fold.rollup->plan->window)),
					   DatumGetCString(DirectFunctionCall1(jsonb_out, keys))),
			 errhint("Nothing was changed.")));
}

/* The rows of groups that changed, and the groups for the next time. */
static void
write_corrected(Reopening *own)
{
	Pipeline   *pipeline = own->fold.pipeline;
	int			n;
	Emission   *emissions = changed_groups(own, &n);
	int64	   *ids = palloc_extended(sizeof(int64) * Max(n, 1), MCXT_ALLOC_HUGE);
	int			nmerged;
	int64	   *merged = GroupSetTakeGone(pipeline->rollup->groups, &nmerged);
	uint64		rows = 0;

	if (n == 0)
		return;
	check_sessions(own, emissions, n, merged, nmerged);
	if (pipeline->rollup->retract != NULL)
		rows += RollupRetract(pipeline, emissions, n);
	FoldEmit(pipeline, emissions, n, &rows);
	for (int i = 0; i < n; i++)
	{
		if (emissions[i].result == EMIT_FAILED)
			row_not_written(own, &emissions[i]);
		ids[i] = emissions[i].group->id;
	}
	CatalogDeleteGroups(pipeline->def->id, merged, nmerged);
	FoldStoreClosed(pipeline, emissions, n);
	/* Of rows that could not be written before. */
	CatalogDeleteRowLetters(pipeline->def->id, ids, n);
	CatalogDeleteRowLetters(pipeline->def->id, merged, nmerged);
}

/* Late records of windows that overlap the range. Returns how many are in their groups now. */
static int64
reopen(Pipeline *pipeline, Datum during)
{
	Reopening	own = {.fold = {.load = load_step,.closed_windows = true}};
	int			n;
	DeadLetterPlace *places = CatalogLockLateLetters(pipeline->def->id, during, pipeline->context, &n);
	MemoryContext step;

	if (n == 0)
		return 0;
	pipeline->rollup = RollupOpenEmpty(pipeline);
	FoldBegin(&own.fold, pipeline, places, n);
	find_windows(&own);
	check_windows(&own);
	if (pipeline->rollup->layout_differs)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("closed windows of pipeline \"%s\" were stored in a form that cannot be read any more", pipeline->def->name),
				 errhint("Compute them anew, with hybridiot.seek_pipeline or a second pipeline.")));
	step = AllocSetContextCreate(CurrentMemoryContext, "hybridiot reopened windows", ALLOCSET_DEFAULT_SIZES);
	for (; own.from < own.nwindows; own.from = own.to, own.fold.first = own.fold.last)
	{
		MemoryContext old = MemoryContextSwitchTo(step);

		FoldRecords(&own.fold);
		write_corrected(&own);
		MemoryContextSwitchTo(old);
		MemoryContextReset(step);
	}
	MemoryContextDelete(step);
	FoldSettle(&own.fold);
	if (own.fold.taken > 0)
		PipelineNotify(pipeline);
	return own.fold.taken;
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
