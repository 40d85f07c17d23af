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

#include "core/catalog_window.h"
#include "pipeline/rollup_state.h"

/* Groups written at a time. */
#define GROUPS_AT_A_TIME 10000
/* Groups whose rows one checkpoint writes, so that catching up does not make one endless transaction. */
#define GROUPS_PER_STEP 100000
/* Dead letters that may wait for a checkpoint. */
#define LETTERS_TO_KEEP 10000

WindowSpan
RollupSpan(const Rollup *rollup)
{
	GroupWindow *earliest = GroupSetEarliest(rollup->groups);
	WindowSpan	span = {earliest != NULL, DT_NOEND, DT_NOBEGIN};

	if (earliest != NULL)
	{
		span.earliest_end = earliest->end;
		span.latest_end = GroupSetLatestEnd(rollup->groups);
	}
	return span;
}

TimestampTz
RollupWatermark(Pipeline *pipeline, TimestampTz now)
{
	WindowSpan	span = RollupSpan(pipeline->rollup);

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
	GroupWindow *earliest = GroupSetEarliest(rollup->groups);

	if (!dlist_is_empty(GroupSetChanged(rollup->groups)) || rollup->nletters > 0)
		return true;
	for (int i = 0; i < pipeline->nparts; i++)
		if (pipeline->parts[i].changed)
			return true;
	if (idle_changes(pipeline, now))
		return true;
	return earliest != NULL &&
		WindowCloses(earliest->end, WindowTimeMinus(RollupWatermark(pipeline, now), pipeline->def->options.lateness_us));
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
	WindowSpan	span = RollupSpan(pipeline->rollup);

	return WindowNextDeadline(pipeline->parts, pipeline->nparts, &span, &pipeline->def->options, now);
}

/* What one checkpoint does. */
typedef struct Checkpoint
{
	Pipeline   *pipeline;
	Rollup	   *rollup;
	bool		changes;		/* emit 'changes' */
	TimestampTz boundary;		/* windows that end no later close: watermark - lateness */
	Emission   *emissions;		/* groups to be written, in the order of their windows and ids */
	int			nemissions;
	int			size;
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
			repalloc(checkpoint->emissions, sizeof(Emission) * checkpoint->size);
	}
	memset(&checkpoint->emissions[checkpoint->nemissions], 0, sizeof(Emission));
	checkpoint->emissions[checkpoint->nemissions++].group = group;
}

static int
compare_emissions(const void *a, const void *b)
{
	const WindowGroup *ga = ((const Emission *) a)->group;
	const WindowGroup *gb = ((const Emission *) b)->group;

	if (ga->window->end != gb->window->end)
		return ga->window->end < gb->window->end ? -1 : 1;
	return ga->id < gb->id ? -1 : ga->id > gb->id;
}

static bool
closes(const Checkpoint *checkpoint, const WindowGroup *group)
{
	return WindowCloses(group->window->end, checkpoint->boundary);
}

/* Groups of windows that close, and with emit 'changes' all others that changed. */
static void
collect(Checkpoint *checkpoint)
{
	GroupSet   *groups = checkpoint->rollup->groups;
	GroupWindow **windows;
	int			nwindows;
	dlist_iter	iter;

	windows = GroupSetWindowsUntil(groups, checkpoint->boundary, &nwindows);
	for (int i = 0; i < nwindows; i++)
		dlist_foreach(iter, &windows[i]->groups)
		{
			if (checkpoint->nemissions == GROUPS_PER_STEP)
			{
				checkpoint->more = true;
				break;
			}
			add_emission(checkpoint, dlist_container(WindowGroup, node, iter.cur));
		}
	if (checkpoint->changes)
		dlist_foreach(iter, GroupSetChanged(groups))
		{
			WindowGroup *group = dlist_container(WindowGroup, changed_node, iter.cur);

			if (!closes(checkpoint, group))
				add_emission(checkpoint, group);
		}
	if (checkpoint->nemissions > 1)
		qsort(checkpoint->emissions, checkpoint->nemissions, sizeof(Emission), compare_emissions);
}

/* Write what is to be written; with emit 'changes' a closing group may already be there as it is. */
static void
emit(Checkpoint *checkpoint, uint64 *rows)
{
	Emission   *stale = palloc(sizeof(Emission) * Max(checkpoint->nemissions, 1));
	int			n = 0;

	for (int i = 0; i < checkpoint->nemissions; i++)
	{
		if (checkpoint->emissions[i].group->written)
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

static void
fill_row(Rollup *rollup, const WindowGroup *group, bool closed, WindowGroupRow *row)
{
	row->id = group->id;
	row->start = group->window->start;
	row->end = group->window->end;
	row->keys = GroupEncodeKeys(rollup->groups, group);
	row->state = GroupEncodeState(rollup->groups, group);
	row->records = group->records;
	row->closed = closed;
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
	fill_row(rollup, group, true, &row);
	RoleLeave(&scope);
	letter->window_start = group->window->start;
	letter->window_end = group->window->end;
	letter->watermark = rollup->watermark;
	letter->sqlstate = emission->sqlstate;
	letter->message = pstrdup(emission->message);
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

/* Forget closed groups; what failed while its window is open is tried again when it changes or closes. */
static void
settle(Checkpoint *checkpoint)
{
	Rollup	   *rollup = checkpoint->rollup;
	int64	   *gone = palloc(sizeof(int64) * Max(checkpoint->nemissions, 1));
	int			ngone = 0;

	for (int i = 0; i < checkpoint->nemissions; i++)
	{
		Emission   *emission = &checkpoint->emissions[i];
		WindowGroup *group = emission->group;

		group->pending = emission->result == EMIT_LEFT;
		if (group->pending)
		{
			checkpoint->more = true;
			continue;
		}
		group->written = emission->result == EMIT_WRITTEN;
		if (group->written)
			rollup->rows_failed = 0;
		if (!closes(checkpoint, group))
			continue;
		if (!group->written)
			note_failed_row(checkpoint, emission);
		else if (group->stored)
			gone[ngone++] = group->id;
		GroupSetRemove(rollup->groups, group);
		emission->group = NULL;
	}
	CatalogDeleteGroups(checkpoint->pipeline->def->id, gone, ngone);
	pfree(gone);
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
	int			n = 0;
	bool		any = false;

	RoleEnter(&scope, def->owner);
	dlist_foreach_modify(iter, GroupSetChanged(rollup->groups))
	{
		WindowGroup *group = dlist_container(WindowGroup, changed_node, iter.cur);
		MemoryContext old = MemoryContextSwitchTo(some);

		fill_row(rollup, group, false, &rows[n++]);
		MemoryContextSwitchTo(old);
		any = true;
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
	if (any && !rollup->layout_stored)
	{
		CatalogWriteWindowLayout(def->id, rollup->layout);
		rollup->layout_stored = true;
	}
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

/* Windows that end no later than this are final, all of them. */
static void
save_progress(Checkpoint *checkpoint, TimestampTz old_watermark)
{
	Rollup	   *rollup = checkpoint->rollup;
	GroupWindow *earliest = GroupSetEarliest(rollup->groups);
	TimestampTz closed_before = checkpoint->boundary;

	if (earliest != NULL && earliest->end <= closed_before)
		closed_before = earliest->end - 1;
	closed_before = Max(closed_before, rollup->closed_before);
	if (closed_before == rollup->closed_before && rollup->watermark == old_watermark)
		return;
	rollup->closed_before = closed_before;
	CatalogWriteProgress(checkpoint->pipeline->def->id, rollup->watermark, rollup->closed_before);
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
		.changes = pipeline->def->options.emit_changes
	};

	rollup->watermark = RollupWatermark(pipeline, now);
	checkpoint.boundary = WindowTimeMinus(rollup->watermark, pipeline->def->options.lateness_us);
	for (int i = 0; i < pipeline->nparts; i++)
	{
		PartitionState *part = &pipeline->parts[i];
		bool		idle = WindowPartitionIdle(part, pipeline->def->options.idle_timeout_us, now);

		part->changed |= part->idle != idle;
		part->idle = idle;
	}

	*rows = 0;
	collect(&checkpoint);
	emit(&checkpoint, rows);
	settle(&checkpoint);
	save_groups(&checkpoint);
	save_letters(pipeline);
	save_progress(&checkpoint, old_watermark);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
	return checkpoint.more;
}
