/*
 * retry.c
 *		Dead letters of windowed pipelines, tried again.
 *
 * In the caller's session and transaction, beside the pipeline's worker. PipelineOfCaller() has locked the definition, so no checkpoint
 * of the worker, no seek and no other caller comes between.
 *
 * Records go into groups of open windows, which the worker has in memory. The last checkpoint is loaded, as the worker would
 * load it after a crash, takes the records, and is followed by one in which no position moves. The worker's memory is then
 * older than the tables, so it is fenced off: what it wants to store next is refused, it loads the groups anew, and reads on from its positions.
 *
 * Finished rows that could not be written are written from the groups that were kept for them.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "core/compat.h"
#include "pipeline/fold.h"
#include "pipeline/retry.h"

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
load_failed_groups(Fold *fold, WindowSpec *spec)
{
	const PipelineDefinition *def = fold->pipeline->def;
	MemoryContext some = AllocSetContextCreate(CurrentMemoryContext, "hybridiot stored groups", ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(some);
	int64	   *ids = palloc_extended(sizeof(int64) * fold->n, MCXT_ALLOC_HUGE);
	WindowGroupRow *rows;
	int			n;
	RoleScope	scope;

	for (int i = 0; i < fold->n; i++)
		ids[i] = fold->places[i].group_id;
	/* Sliding windows that are finished are windows as others are. */
	*spec = fold->rollup->plan->window;
	if (spec->kind == WINDOW_SLIDE)
		spec->kind = WINDOW_TUMBLE;
	FoldRenewGroups(fold, spec);
	if (!fold->rollup->layout_differs)
	{
		rows = CatalogReadFailedGroups(def->id, ids, fold->n, some, &n);
		RoleEnter(&scope, def->owner);
		for (int i = 0; i < n; i++)
			FoldLoadRow(fold, &rows[i]);
		RoleLeave(&scope);
	}
	MemoryContextSwitchTo(old);
	MemoryContextDelete(some);
}

/* Finished rows that could not be written. Returns how many are now. */
static int64
retry_rows(Pipeline *pipeline, TimestampTz since)
{
	Fold		fold = {0};
	int			n;
	DeadLetterPlace *places = CatalogLockRowLetters(pipeline->def->id, since, pipeline->context, &n);
	WindowSpec	spec;
	Emission   *emissions;
	int			nemissions;
	uint64		rows = 0;

	if (n == 0)
		return 0;
	FoldBegin(&fold, pipeline, places, n);
	load_failed_groups(&fold, &spec);
	emissions = all_groups(pipeline->rollup->groups, &nemissions);
	FoldEmit(pipeline, emissions, nemissions, &rows);
	if (nemissions > 0)
		FoldStoreClosed(pipeline, emissions, nemissions);

	qsort(emissions, nemissions, sizeof(Emission), compare_group_ids);
	for (int i = 0; i < n; i++)
	{
		WindowGroup probe = {.id = places[i].group_id};
		Emission	key = {.group = &probe};
		Emission   *emission = bsearch(&key, emissions, nemissions, sizeof(Emission), compare_group_ids);

		fold.goes[i] = emission != NULL && emission->result == EMIT_WRITTEN;
		if (fold.goes[i])
			fold.taken++;
		else if (emission != NULL)
			FoldNoteFailure(&fold, i, RECORD_REJECTED, emission->sqlstate, emission->message);
		else
			FoldNoteFailure(&fold, i, RECORD_REJECTED, 0, "the state of its group is not kept any more");
	}
	FoldSettle(&fold);
	return fold.taken;
}

/* A checkpoint in which no position moves. What the worker has in memory is out of date with it. */
static void
checkpoint(Fold *fold)
{
	Pipeline   *pipeline = fold->pipeline;
	PositionMove *moves = palloc0(sizeof(PositionMove) * Max(fold->npositions, 1));
	uint64		rows;

	RollupCheckMaxGroups(pipeline);
	/* No partition is read here, so time stands still. */
	Assert(pipeline->nparts == 0);
	while (RollupCheckpoint(pipeline, PipelineNow(pipeline), &rows))
		CHECK_FOR_INTERRUPTS();

	/* Positions must be those that the groups go with, even for a caller whose snapshot is older. */
	for (int i = 0; i < fold->npositions; i++)
	{
		moves[i].row = fold->positions[i];
		moves[i].old_offset = fold->positions[i].next_offset;
	}
	if (!CatalogMovePositions(pipeline->def, moves, fold->npositions))
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

/* Groups of open windows as of the last checkpoint. */
static void
load_open(Fold *fold)
{
	FoldRenewGroups(fold, &fold->rollup->plan->window);
	RollupLoadGroups(fold->rollup, fold->pipeline->def);
}

/* Records. Returns how many passed. */
static int64
retry_records(Pipeline *pipeline, TimestampTz since)
{
	Fold		fold = {.load = load_open};
	Rollup	   *rollup = pipeline->rollup;
	int			n;
	DeadLetterPlace *places = CatalogLockDeadLetters(pipeline->def->id, since, pipeline->context, &n);
	bool		any = false;

	if (n == 0)
		return 0;
	FoldBegin(&fold, pipeline, places, n);
	fold.positions = CatalogReadPositions(pipeline->def->id, pipeline->context, &fold.npositions);
	qsort_arg(fold.positions, fold.npositions, sizeof(PositionRow), compare_positions, pipeline->stream);
	fold.closed = Max(rollup->closed,
					  WindowTimeMinus(rollup->watermark, pipeline->def->options.lateness_us));
	FoldRecords(&fold);
	FoldSettle(&fold);
	for (int i = 0; i < n; i++)
		any |= fold.goes[i];
	if (any)
		checkpoint(&fold);
	return fold.taken;
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
