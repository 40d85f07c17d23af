/*
 * rollup_checkpoint.c
 *		The transaction that makes a windowed pipeline's memory durable.
 *
 * One checkpoint holds the states of groups that changed, rows of windows that
 * closed (or, with emit 'changes', of groups that changed), dead letters, the
 * watermark and the closed boundary; its caller adds positions and commits. A
 * window's end is passed by the boundary in the transaction that wrote the
 * last of its rows, never before.
 *
 * Which windows may take no more records is decided by the watermark as stored, not by
 * the boundary: catching up writes a backlog of closed windows in several
 * transactions, and none of them may grow meanwhile.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "pipeline/rollup_state.h"

/* Groups written at a time. */
#define GROUPS_AT_A_TIME 10000
/* Groups whose rows one checkpoint writes, so that catching up does not make one endless transaction. */
#define GROUPS_PER_STEP 100000
/* Groups of closed windows stored at a time. */
#define GROUPS_KEPT_AT_A_TIME 1000
/* Dead letters that may wait for a checkpoint. */
#define LETTERS_TO_KEEP 10000

/* The windows that are open. */
static WindowSpan
span_of(const Rollup *rollup)
{
	WindowSpan	span = {.earliest_over = DT_NOEND,.latest_over = DT_NOBEGIN};

	span.open = GroupSetNextOver(rollup->groups, &span.earliest_over);
	if (span.open)
		span.latest_over = GroupSetLatestOver(rollup->groups);
	return span;
}

TimestampTz
RollupWatermark(Pipeline *pipeline, TimestampTz now)
{
	WindowSpan	span = span_of(pipeline->rollup);

	return WindowWatermark(pipeline->parts, pipeline->nparts, pipeline->rollup->watermark,
						   &span, &pipeline->def->options, now);
}

static bool
idle_changes(Pipeline *pipeline, TimestampTz now)
{
	for (int i = 0; i < pipeline->nparts; i++)
		if (pipeline->parts[i].idle !=
			WindowPartitionIdle(&pipeline->parts[i], pipeline->def->options.idle_timeout_us, now))
			return true;
	return false;
}

bool
RollupCheckpointDue(Pipeline *pipeline, TimestampTz now)
{
	Rollup	   *rollup = pipeline->rollup;
	TimestampTz over;

	if (!dlist_is_empty(GroupSetChanged(rollup->groups)) || rollup->nletters > 0 || rollup->expire_due)
		return true;
	for (int i = 0; i < pipeline->nparts; i++)
		if (pipeline->parts[i].changed)
			return true;
	if (idle_changes(pipeline, now))
		return true;
	return GroupSetNextOver(rollup->groups, &over) &&
		WindowCloses(over, WindowTimeMinus(RollupWatermark(pipeline, now), pipeline->def->options.lateness_us));
}

bool
RollupCheckpointUrgent(Pipeline *pipeline)
{
	return GroupSetCount(pipeline->rollup->groups) > pipeline->def->options.max_groups ||
		pipeline->rollup->nletters > LETTERS_TO_KEEP;
}

TimestampTz
RollupNextDeadline(Pipeline *pipeline, TimestampTz now)
{
	WindowSpan	span = span_of(pipeline->rollup);

	return WindowNextDeadline(pipeline->parts, pipeline->nparts, &span, &pipeline->def->options, now);
}

/* A window that closes, off the heap, with its n emissions from the given one on. */
typedef struct Closing
{
	GroupWindow *window;
	int			emission;
	int			n;
	TimestampTz over;
	bool		first;			/* the first window of a slice, which stays */
	bool		passed;			/* that is written */
} Closing;

/* What one checkpoint does. */
typedef struct Checkpoint
{
	Pipeline   *pipeline;
	Rollup	   *rollup;
	bool		changes;		/* emit 'changes' */
	bool		slides;
	TimestampTz boundary;		/* windows that are over at this time close: watermark - lateness */
	TimestampTz kept_after;		/* states of closed windows that were over later are kept */
	Emission   *emissions;		/* groups to be written: those that close, in the order of their windows and ids; others */
	int			nemissions;
	int			size;
	Closing    *closings;
	int			nclosings;
	int			closings_size;
	int			nclosing;		/* emissions of theirs */
	GroupArena *arena;			/* of sliding windows that are put together */
	TimestampTz next_over;		/* of the first window that should have closed, if there is more */
	bool		more;			/* another checkpoint has work at once */
} Checkpoint;

static void
add_emission(Checkpoint *checkpoint, WindowGroup *group)
{
	if (checkpoint->nemissions == checkpoint->size)
	{
		checkpoint->size = Max(256, checkpoint->size * 2);
		checkpoint->emissions = checkpoint->emissions == NULL ?
			palloc(sizeof(Emission) * checkpoint->size) :
			repalloc_huge(checkpoint->emissions, sizeof(Emission) * checkpoint->size);
	}
	memset(&checkpoint->emissions[checkpoint->nemissions], 0, sizeof(Emission));
	checkpoint->emissions[checkpoint->nemissions++].group = group;
}

static Closing *
add_closing(Checkpoint *checkpoint, GroupWindow *window)
{
	Closing    *closing;

	if (checkpoint->nclosings == checkpoint->closings_size)
	{
		checkpoint->closings_size = Max(64, checkpoint->closings_size * 2);
		checkpoint->closings = checkpoint->closings == NULL ?
			palloc(sizeof(Closing) * checkpoint->closings_size) :
			repalloc_huge(checkpoint->closings, sizeof(Closing) * checkpoint->closings_size);
	}
	closing = &checkpoint->closings[checkpoint->nclosings++];
	closing->window = window;
	closing->emission = checkpoint->nemissions;
	closing->n = 0;
	closing->first = closing->passed = false;
	closing->over = window->over;
	return closing;
}

static int
compare_emissions(const void *a, const void *b)
{
	const WindowGroup *ga = ((const Emission *) a)->group;
	const WindowGroup *gb = ((const Emission *) b)->group;

	if (ga->window->over != gb->window->over)
		return ga->window->over < gb->window->over ? -1 : 1;
	if (ga->window->start != gb->window->start)
		return ga->window->start < gb->window->start ? -1 : 1;
	return ga->id < gb->id ? -1 : ga->id > gb->id;
}

/* Groups of windows that close, up to a number that one transaction can take. */
static void
collect_closing(Checkpoint *checkpoint)
{
	GroupSet   *groups = checkpoint->rollup->groups;
	GroupWindow *window;
	dlist_iter	iter;

	while (checkpoint->nemissions < GROUPS_PER_STEP && checkpoint->nclosings < GROUPS_PER_STEP &&
		   (window = GroupSetPop(groups, checkpoint->boundary)) != NULL)
	{
		Closing    *closing = add_closing(checkpoint, window);

		CHECK_FOR_INTERRUPTS();
		if (checkpoint->slides)
		{
			WindowGroup *group = SlideClosing(groups, checkpoint->arena, window, &closing->first);

			if (group != NULL)
				add_emission(checkpoint, group);
		}
		else
			dlist_foreach(iter, &window->groups)
			{
				if (checkpoint->nemissions == GROUPS_PER_STEP)
					break;
				add_emission(checkpoint, dlist_container(WindowGroup, node, iter.cur));
			}
		closing->n = checkpoint->nemissions - closing->emission;
	}
	checkpoint->nclosing = checkpoint->nemissions;
}

/* With emit 'changes', groups that changed and stay open. */
static void
collect_changed(Checkpoint *checkpoint)
{
	GroupSet   *groups = checkpoint->rollup->groups;
	dlist_iter	iter;
	ListCell   *lc;

	if (checkpoint->slides)
		foreach(lc, SlideChanged(groups, checkpoint->arena, checkpoint->boundary, GROUPS_PER_STEP))
			add_emission(checkpoint, lfirst(lc));
	else
		dlist_foreach(iter, GroupSetChanged(groups))
		{
			WindowGroup *group = dlist_container(WindowGroup, changed_node, iter.cur);

			if (!WindowCloses(group->window->over, checkpoint->boundary))
				add_emission(checkpoint, group);
		}
	if (checkpoint->nemissions - checkpoint->nclosing > 1)
		qsort(checkpoint->emissions + checkpoint->nclosing, checkpoint->nemissions - checkpoint->nclosing,
			  sizeof(Emission), compare_emissions);
}

/* Take what is finished by now off the target under bounds that it has no more. */
static void
retract(Checkpoint *checkpoint, uint64 *rows)
{
	bool		any = false;

	if (checkpoint->rollup->retract == NULL)
		return;
	for (int i = 0; i < checkpoint->nemissions && !any; i++)
	{
		WindowGroup *group = checkpoint->emissions[i].group;

		for (GroupShown *shown = group->shown; shown != NULL && !any; shown = shown->next)
			any = shown->start != group->window->start || shown->end != group->window->end;
	}
	if (any)
		*rows += RollupRetract(checkpoint->pipeline, checkpoint->emissions, checkpoint->nemissions);
}

/*
 * Write what is to be written. With emit 'changes' a closing group may already be there as it is. Windows that begin
 * before the pipeline's begin are nobody's.
 */
static void
emit(Checkpoint *checkpoint, uint64 *rows)
{
	Emission   *stale = palloc_extended(sizeof(Emission) * Max(checkpoint->nemissions, 1), MCXT_ALLOC_HUGE);
	int			n = 0;

	for (int i = 0; i < checkpoint->nemissions; i++)
	{
		WindowGroup *group = checkpoint->emissions[i].group;

		group->written |= group->window->start < checkpoint->rollup->begin;
		if (group->written)
			checkpoint->emissions[i].result = EMIT_WRITTEN;
		else
			stale[n++] = checkpoint->emissions[i];
	}
	if (n > 0)
		RollupEmit(checkpoint->pipeline, stale, n, rows);
	n = 0;
	for (int i = 0; i < checkpoint->nemissions; i++)
		if (!checkpoint->emissions[i].group->written)
			checkpoint->emissions[i] = stale[n++];
	pfree(stale);
}

void
RollupGroupRow(Rollup *rollup, const WindowGroup *group, bool closed, TimestampTz over_at, WindowGroupRow *row)
{
	MemoryContext here = MemoryContextSwitchTo(rollup->encode_context);
	bytea	   *keys = GroupEncodeKeys(rollup->groups, group);
	bytea	   *state = GroupEncodeState(rollup->groups, group);

	MemoryContextSwitchTo(here);
	row->keys = DatumGetByteaPCopy(PointerGetDatum(keys));
	row->state = DatumGetByteaPCopy(PointerGetDatum(state));
	MemoryContextReset(rollup->encode_context);
	/* Sliding windows that are put together have none. */
	row->id = group->id != 0 ? group->id : GroupSetNextId(rollup->groups);
	row->start = group->window->start;
	row->end = group->window->end;
	row->records = group->records;
	row->closed = closed;
	row->over_at = over_at;
}

void
RollupStoreLayout(Rollup *rollup, const PipelineDefinition *def)
{
	if (rollup->layout_stored)
		return;
	/* What is kept in another form nobody can read any more. */
	if (rollup->layout_differs)
		CatalogDeleteClosedGroups(def->id);
	CatalogWriteWindowLayout(def->id, rollup->layout, WindowKindName(rollup->plan->window.kind),
							 rollup->plan->window.size);
	rollup->layout_stored = true;
}

/* A finished row that fails by itself: its state is kept, and what is known of it. */
static void
note_failed_row(Checkpoint *checkpoint, const Emission *emission)
{
	Pipeline   *pipeline = checkpoint->pipeline;
	Rollup	   *rollup = checkpoint->rollup;
	WindowGroup *group = emission->group;
	int			max_errors = pipeline->def->options.max_errors;
	WindowGroupRow row;
	MemoryContext old = MemoryContextSwitchTo(rollup->letters_context);
	DeadLetter *letter = RollupAddLetter(rollup, DEAD_REJECTED);
	RoleScope	scope;

	RoleEnter(&scope, pipeline->def->owner);
	letter->group_keys = RollupKeysAsJson(rollup, group->keys);
	RollupGroupRow(rollup, group, true, DT_NOBEGIN, &row);
	RoleLeave(&scope);
	letter->window_start = group->window->start;
	letter->window_end = group->window->end;
	letter->window_includes_end = WindowIncludesEnd(&rollup->plan->window);
	letter->watermark = rollup->watermark;
	letter->sqlstate = emission->sqlstate;
	letter->message = pstrdup(emission->message);
	letter->group_id = row.id;
	RollupStoreLayout(rollup, pipeline->def);
	CatalogWriteGroups(pipeline->def->id, &row, 1);
	MemoryContextSwitchTo(old);

	rollup->nfailed++;
	rollup->rows_failed++;
	if (pipeline->def->options.stop_on_error || rollup->rows_failed > max_errors)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 pipeline->def->options.stop_on_error ?
				 errmsg("the row of a finished window cannot be written: %s", emission->message) :
				 errmsg("more than %d rows of finished windows in a row cannot be written, the last: %s",
						max_errors, emission->message),
				 errdetail("Window from %s, group %s.", timestamptz_to_str(group->window->start),
						   DatumGetCString(DirectFunctionCall1(jsonb_out, letter->group_keys)))));
}

/* Is this a group whose state is kept when its window closes? */
static bool
is_kept(const Checkpoint *checkpoint, const Emission *emission)
{
	return emission->result == EMIT_WRITTEN && emission->group->window->over > checkpoint->kept_after &&
		emission->group->window->start >= checkpoint->rollup->begin;
}

/* States of groups that close now, for reopen_window(). */
static void
keep_groups(Checkpoint *checkpoint)
{
	Rollup	   *rollup = checkpoint->rollup;
	const PipelineDefinition *def = checkpoint->pipeline->def;
	MemoryContext some;
	WindowGroupRow rows[GROUPS_KEPT_AT_A_TIME];
	RoleScope	scope;
	int			n = 0;

	if (def->options.keep_closed_us == 0)
		return;
	some = AllocSetContextCreate(CurrentMemoryContext, "hybridiot groups to keep", ALLOCSET_DEFAULT_SIZES);
	for (int i = 0; i < checkpoint->nclosing; i++)
	{
		Emission   *emission = &checkpoint->emissions[i];

		if (is_kept(checkpoint, emission))
		{
			MemoryContext old = MemoryContextSwitchTo(some);

			if (n == 0)
				RoleEnter(&scope, def->owner);
			RollupGroupRow(rollup, emission->group, true, emission->group->window->over, &rows[n++]);
			MemoryContextSwitchTo(old);
		}
		if (n == GROUPS_KEPT_AT_A_TIME || (n > 0 && i == checkpoint->nclosing - 1))
		{
			RoleLeave(&scope);
			RollupStoreLayout(rollup, def);
			CatalogWriteGroups(def->id, rows, n);
			MemoryContextReset(some);
			n = 0;
		}
	}
	MemoryContextDelete(some);
}

/* A group of a window that closes: false if its row is left for the next transaction. */
static bool
settle_closing(Checkpoint *checkpoint, Emission *emission)
{
	if (emission->result == EMIT_LEFT)
		return false;
	if (emission->result == EMIT_FAILED)
		note_failed_row(checkpoint, emission);
	else
		checkpoint->rollup->rows_failed = 0;
	return true;
}

/*
 * Windows that close go, in their order. What is left of the first that could not be written whole, and all behind it, go
 * back to be closed in the next transaction.
 */
static void
settle_closings(Checkpoint *checkpoint)
{
	GroupSet   *groups = checkpoint->rollup->groups;
	int64	   *gone = palloc_extended(sizeof(int64) * Max(checkpoint->nclosing, 1), MCXT_ALLOC_HUGE);
	int			ngone = 0;
	bool		left = false;

	for (int i = 0; i < checkpoint->nclosings; i++)
	{
		Closing    *closing = &checkpoint->closings[i];
		bool		closed = false;

		for (int k = closing->emission; k < closing->emission + closing->n; k++)
		{
			Emission   *emission = &checkpoint->emissions[k];
			WindowGroup *group = emission->group;

			if (!settle_closing(checkpoint, emission))
				left = true;
			else if (!checkpoint->slides)
			{
				if (group->stored && emission->result == EMIT_WRITTEN && !is_kept(checkpoint, emission))
					gone[ngone++] = group->id;
				closed = GroupSetRemove(groups, group);
			}
		}
		if (checkpoint->slides && left)
			SlideLeave(groups, closing->window, closing->first);
		else if (checkpoint->slides)
		{
			SlidePass(groups, closing->window, closing->first);
			closing->passed = closing->first;
		}
		else if (!closed)
			GroupSetPutBack(groups, closing->window);
	}
	CatalogDeleteGroups(checkpoint->pipeline->def->id, gone, ngone);
	pfree(gone);
	checkpoint->more = GroupSetNextOver(groups, &checkpoint->next_over) &&
		WindowCloses(checkpoint->next_over, checkpoint->boundary);
}

/* Groups that stay open; what failed is tried again when it changes or closes. */
static void
settle_changed(Checkpoint *checkpoint)
{
	GroupSet   *groups = checkpoint->rollup->groups;

	for (int i = checkpoint->nclosing; i < checkpoint->nemissions; i++)
	{
		Emission   *emission = &checkpoint->emissions[i];
		WindowGroup *group = emission->group;

		if (checkpoint->slides)
		{
			/* It waits for the next checkpoint: its slices' other windows are written again with it. */
			if (emission->result == EMIT_LEFT)
				SlidePending(groups, group);
			continue;
		}
		group->pending = emission->result == EMIT_LEFT;
		group->written = emission->result == EMIT_WRITTEN;
		checkpoint->more |= group->pending;
		GroupSetShown(groups, group);
	}
}

/*
 * Slices whose window was written, when others that are over at the same time were not: the stored boundary cannot
 * tell them apart.
 */
static void
mark_passed(Checkpoint *checkpoint)
{
	if (!checkpoint->slides || !checkpoint->more)
		return;
	for (int i = 0; i < checkpoint->nclosings; i++)
	{
		Closing    *closing = &checkpoint->closings[i];

		if (closing->passed && closing->over >= checkpoint->next_over)
			SlideTouch(checkpoint->rollup->groups, closing->window);
	}
}

/* States of the groups that changed and stay. */
static void
save_groups(Checkpoint *checkpoint)
{
	Rollup	   *rollup = checkpoint->rollup;
	const PipelineDefinition *def = checkpoint->pipeline->def;
	MemoryContext some = AllocSetContextCreate(CurrentMemoryContext, "hybridiot groups to store", ALLOCSET_DEFAULT_SIZES);
	WindowGroupRow *rows = palloc(sizeof(WindowGroupRow) * GROUPS_AT_A_TIME);
	dlist_mutable_iter iter;
	RoleScope	scope;
	int64	   *gone;
	int			ngone;
	int			n = 0;

	gone = GroupSetTakeGone(rollup->groups, &ngone);
	CatalogDeleteGroups(def->id, gone, ngone);
	pfree(gone);
	if (!dlist_is_empty(GroupSetChanged(rollup->groups)))
		RollupStoreLayout(rollup, def);
	RoleEnter(&scope, def->owner);
	dlist_foreach_modify(iter, GroupSetChanged(rollup->groups))
	{
		WindowGroup *group = dlist_container(WindowGroup, changed_node, iter.cur);
		MemoryContext old = MemoryContextSwitchTo(some);

		RollupGroupRow(rollup, group, false, DT_NOBEGIN, &rows[n++]);
		MemoryContextSwitchTo(old);
		if (group->pending)
			group->stored = true;
		else
			GroupSetMarkStored(rollup->groups, group);
		if (n == GROUPS_AT_A_TIME)
		{
			RoleLeave(&scope);
			CatalogWriteGroups(def->id, rows, n);
			MemoryContextReset(some);
			n = 0;
			RoleEnter(&scope, def->owner);
		}
	}
	RoleLeave(&scope);
	CatalogWriteGroups(def->id, rows, n);
	MemoryContextDelete(some);
	pfree(rows);
}

static void
save_letters(Pipeline *pipeline)
{
	Rollup	   *rollup = pipeline->rollup;

	if (rollup->nletters == 0)
		return;
	CatalogWriteDeadLetters(pipeline->def->id, pipeline->def->stream, rollup->letters, rollup->nletters);
	if (MyWorkerSlot != NULL)
	{
		/* Those of records that are bad by themselves are counted with their batch. */
		pg_atomic_fetch_add_u64(&MyWorkerSlot->dead_letters, rollup->nlate + rollup->nfailed);
		pg_atomic_fetch_add_u64(&MyWorkerSlot->late, rollup->nlate);
	}
	MemoryContextReset(rollup->letters_context);
	rollup->letters = NULL;
	rollup->nletters = rollup->letters_size = rollup->nlate = rollup->nfailed = 0;
}

/* Windows that are over no later than this are written, all of them; and states are kept from here on. */
static void
save_progress(Checkpoint *checkpoint, TimestampTz old_watermark)
{
	Rollup	   *rollup = checkpoint->rollup;
	TimestampTz closed = checkpoint->boundary;
	TimestampTz over;
	WindowProgress progress;

	if (GroupSetNextOver(rollup->groups, &over) && over <= closed)
		closed = over - 1;
	closed = Max(closed, rollup->closed);
	if (closed == rollup->closed && rollup->watermark == old_watermark && checkpoint->kept_after == rollup->kept_after)
		return;
	rollup->closed = closed;
	rollup->kept_after = checkpoint->kept_after;
	progress.watermark = rollup->watermark;
	progress.closed_before = WindowTimeMinus(closed, rollup->plan->window.over);
	progress.kept_after = rollup->kept_after;
	CatalogWriteProgress(checkpoint->pipeline->def->id, &progress);
}

/* A step of forgetting what is kept no longer. */
static void
expire_groups(Checkpoint *checkpoint)
{
	Rollup	   *rollup = checkpoint->rollup;

	if (rollup->expire_due || (checkpoint->pipeline->def->options.keep_closed_us > 0 && checkpoint->kept_after != rollup->kept_after))
		rollup->expire_due = CatalogExpireGroups(checkpoint->pipeline->def->id, checkpoint->kept_after,
												 GROUPS_PER_STEP) == GROUPS_PER_STEP;
}

bool
RollupCheckpoint(Pipeline *pipeline, TimestampTz now, uint64 *rows)
{
	Rollup	   *rollup = pipeline->rollup;
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "hybridiot checkpoint", ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	TimestampTz old_watermark = rollup->watermark;
	Checkpoint	checkpoint = {
		.pipeline = pipeline,
		.rollup = rollup,
		.changes = pipeline->def->options.emit_changes,
		.slides = rollup->plan->window.kind == WINDOW_SLIDE,
		.arena = SlideBegin(rollup->groups)
	};
	RoleScope	scope;

	rollup->watermark = RollupWatermark(pipeline, now);
	checkpoint.boundary = WindowTimeMinus(rollup->watermark, pipeline->def->options.lateness_us);
	checkpoint.kept_after = Max(rollup->kept_after,
								WindowTimeMinus(checkpoint.boundary, pipeline->def->options.keep_closed_us));
	for (int i = 0; i < pipeline->nparts; i++)
	{
		PartitionState *part = &pipeline->parts[i];
		bool		idle = WindowPartitionIdle(part, pipeline->def->options.idle_timeout_us, now);

		part->changed |= part->idle != idle;
		part->idle = idle;
	}

	*rows = 0;
	/* Combining states runs code of the owner's. */
	RoleEnter(&scope, pipeline->def->owner);
	collect_closing(&checkpoint);
	if (checkpoint.changes)
		collect_changed(&checkpoint);
	RoleLeave(&scope);
	retract(&checkpoint, rows);
	emit(&checkpoint, rows);
	keep_groups(&checkpoint);
	settle_closings(&checkpoint);
	settle_changed(&checkpoint);
	mark_passed(&checkpoint);
	SlideEnd(rollup->groups, checkpoint.arena);
	save_groups(&checkpoint);
	save_letters(pipeline);
	expire_groups(&checkpoint);
	save_progress(&checkpoint, old_watermark);
	/* A window that closes is news even if no row of it changes: now it is final. */
	if (*rows > 0 || checkpoint.nclosing > 0)
		PipelineNotify(pipeline);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
	return checkpoint.more;
}
