/*
 * rollup_emit.c
 *		Write finished groups through the pipeline's own statement.
 *
 * The finish query reads groups from hybridiot.finished_groups(), a function that
 * has something to return only while RollupEmit() runs the very statement
 * whose scan asks, so it is harmless in everybody's hands.
 *
 * All rows are written at once. If that fails because of a row, the groups are
 * cut in two until the row stands alone; a statement that says that two rows
 * hit one is cut between windows first, or so that each key comes once. Each try is a subtransaction, and a
 * transaction takes no more than MAX_SAVEPOINTS of them; what is left then waits for the next
 * one, which the caller knows from EMIT_LEFT.
 */
#include "postgres.h"

#include "access/xact.h"
#include "commands/trigger.h"
#include "executor/executor.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "tcop/dest.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

#include "core/compat.h"
#include "pipeline/letters.h"
#include "pipeline/rollup_state.h"

/* PostgreSQL keeps 64 subtransactions of a transaction at hand; beyond that everybody's snapshots get slower. */
#define MAX_SAVEPOINTS 50

/* What hybridiot.finished_groups() returns, to whom. */
typedef struct Finishing
{
	Rollup	   *rollup;
	const Emission *emissions;
	int			from;
	int			to;
	bool		shown;			/* under the bounds that the target has, not those of now */
	const char *query_string;	/* text of the statement that may ask, by address */
} Finishing;

static Finishing *finishing = NULL;

PG_FUNCTION_INFO_V1(hybridiot_finished_groups);

typedef struct Emitter
{
	Pipeline   *pipeline;
	Rollup	   *rollup;
	Emission   *emissions;
	int			savepoints;
	uint64		rows;
} Emitter;

/* Run one of the statements over groups [from, to). */
static uint64
run_statement(Rollup *rollup, SPIPlanPtr plan, const Emission *emissions, int from, int to)
{
	Finishing	own = {rollup, emissions, from, to, plan == rollup->retract, RollupPlanText(plan)};
	SPIExecuteOptions options = {.dest = None_Receiver};
	int			rc;

	finishing = &own;
	rc = SPI_execute_plan_extended(plan, &options);
	finishing = NULL;
	if (rc < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not run the statement: %s", SPI_result_code_string(rc))));
	return SPI_processed;
}

/* The user's statement over groups [from, to), as the owner; constraints are checked here, not at COMMIT as somebody else. */
static uint64
write_rows(Emitter *emitter, int from, int to)
{
	Rollup	   *rollup = emitter->rollup;
	ConstraintsSetStmt *immediate = makeNode(ConstraintsSetStmt);
	RoleScope	scope;
	uint64		rows = 0;

	RoleEnter(&scope, emitter->pipeline->def->owner);
	AfterTriggerSetState(immediate);
	if (SPI_connect() != SPI_OK_CONNECT)
		ereport(ERROR, (errcode(ERRCODE_INTERNAL_ERROR), errmsg("could not connect to SPI")));
	if (rollup->prune != NULL)
		rows += run_statement(rollup, rollup->prune, emitter->emissions, from, to);
	rows += run_statement(rollup, rollup->finish, emitter->emissions, from, to);
	SPI_finish();
	RoleLeave(&scope);
	return rows;
}

/* Try groups [from, to) in a subtransaction. NULL when they are written; else what failed, and nothing is written. */
static ErrorData *
try_rows(Emitter *emitter, int from, int to)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	ErrorData  *volatile error = NULL;
	volatile uint64 rows = 0;

	emitter->savepoints++;
	BeginInternalSubTransaction(NULL);
	PG_TRY();
	{
		rows = write_rows(emitter, from, to);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		finishing = NULL;
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	if (error == NULL)
		emitter->rows += rows;
	return error;
}

static void emit_range(Emitter *emitter, int from, int to);

/*
 * End of the groups from "from" on, before "to", that are of one window or, where each group has its own, of which no two have the
 * same key.
 */
static int
end_of_run(const Emission *emissions, int from, int to)
{
	static uint32 round = 0;
	int			next = from;

	round++;
	for (; next < to; next++)
	{
		WindowGroup *group = emissions[next].group;

		if (group->timeline == NULL ? group->window != emissions[from].group->window : group->timeline->round == round)
			break;
		if (group->timeline != NULL)
			group->timeline->round = round;
	}
	return next;
}

/* Groups [from, to) in runs that are unlikely to hit one row twice; false if they are one run. */
static bool
emit_by_runs(Emitter *emitter, int from, int to)
{
	int			next = end_of_run(emitter->emissions, from, to);

	if (next == to)
		return false;
	for (; from < to; from = next)
	{
		next = end_of_run(emitter->emissions, from, to);
		emit_range(emitter, from, next);
	}
	return true;
}

static void
emit_range(Emitter *emitter, int from, int to)
{
	ErrorData  *error;
	ErrorClass	class;
	int			middle;

	/* The left halves come first, so everything behind what is left is left, too. */
	while (from < to && emitter->savepoints < MAX_SAVEPOINTS)
	{
		CHECK_FOR_INTERRUPTS();
		error = try_rows(emitter, from, to);
		if (error == NULL)
		{
			for (int i = from; i < to; i++)
				emitter->emissions[i].result = EMIT_WRITTEN;
			return;
		}
		class = ErrorClassify(error->sqlerrcode);
		if (class != ERROR_BAD_RECORD && class != ERROR_SPLIT)
			ReThrowError(error);
		if (to - from == 1)
		{
			emitter->emissions[from].result = EMIT_FAILED;
			emitter->emissions[from].sqlstate = error->sqlerrcode;
			emitter->emissions[from].message = ErrorMessage(error);
			FreeErrorData(error);
			return;
		}
		FreeErrorData(error);
		if (class == ERROR_SPLIT && emit_by_runs(emitter, from, to))
			return;
		middle = from + (to - from) / 2;
		emit_range(emitter, from, middle);
		from = middle;
	}
}

void
RollupEmit(Pipeline *pipeline, Emission *emissions, int n, uint64 *rows)
{
	Emitter		emitter = {.pipeline = pipeline,.rollup = pipeline->rollup,.emissions = emissions};
	bool		in_pipeline = InPipeline;

	for (int i = 0; i < n; i++)
		emissions[i].result = EMIT_LEFT;
	InPipeline = true;
	PG_TRY();
	{
		emit_range(&emitter, 0, n);
	}
	PG_FINALLY();
	{
		finishing = NULL;
		InPipeline = in_pipeline;
	}
	PG_END_TRY();
	*rows += emitter.rows;
}

/* Rows of sessions under bounds that they have no more. No subtransaction: what fails here fails again. */
uint64
RollupRetract(Pipeline *pipeline, Emission *emissions, int n)
{
	Rollup	   *rollup = pipeline->rollup;
	bool		in_pipeline = InPipeline;
	volatile uint64 rows = 0;
	RoleScope	scope;

	InPipeline = true;
	PG_TRY();
	{
		RoleEnter(&scope, pipeline->def->owner);
		ApplyConstraintsImmediate();
		if (SPI_connect() != SPI_OK_CONNECT)
			ereport(ERROR, (errcode(ERRCODE_INTERNAL_ERROR), errmsg("could not connect to SPI")));
		rows = run_statement(rollup, rollup->retract, emissions, 0, n);
		SPI_finish();
		RoleLeave(&scope);
	}
	PG_FINALLY();
	{
		finishing = NULL;
		InPipeline = in_pipeline;
	}
	PG_END_TRY();
	return rows;
}

/* One group as a row of the function, in the current memory context. */
static void
group_as_row(Rollup *rollup, WindowGroup *group, TimestampTz start, TimestampTz end, bool keys_only,
			 Datum *values, bool *isnull)
{
	GroupLayout *layout = &rollup->plan->layout;
	int			column = 0;

	values[column] = WindowRange(start, end, WindowIncludesEnd(&rollup->plan->window));
	isnull[column++] = false;
	for (int i = 0; i < layout->nkeys; i++, column++)
	{
		values[column] = group->keys[i].value;
		isnull[column] = group->keys[i].isnull;
	}
	for (int i = 0; i < layout->naggregates; i++, column++)
	{
		/* What deletes a row looks at its window and keys only. */
		isnull[column] = keys_only;
		values[column] = keys_only ? (Datum) 0 : GroupFinal(rollup->groups, group, i, &isnull[column]);
	}
}

/* finished_groups() RETURNS SETOF record */
Datum
hybridiot_finished_groups(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	Finishing  *own = finishing;
	int			ncolumns;
	Datum	   *values;
	bool	   *isnull;
	MemoryContext row;
	MemoryContext old;

	if (own == NULL || rsinfo == NULL || !IsA(rsinfo, ReturnSetInfo) || rsinfo->econtext->ecxt_estate == NULL ||
		rsinfo->econtext->ecxt_estate->es_sourceText != own->query_string)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("finished_groups() can be called by a windowed pipeline only"),
				 errhint("Read the table that the pipeline writes to, or hybridiot.open_window.")));
	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);

	ncolumns = 1 + own->rollup->plan->layout.nkeys + own->rollup->plan->layout.naggregates;
	if (rsinfo->setDesc->natts != ncolumns)
		elog(ERROR, "finished_groups() was asked for %d columns and has %d", rsinfo->setDesc->natts, ncolumns);
	values = palloc(sizeof(Datum) * ncolumns);
	isnull = palloc(sizeof(bool) * ncolumns);
	row = AllocSetContextCreate(CurrentMemoryContext, "hybridiot finished group", ALLOCSET_SMALL_SIZES);
	for (int i = own->from; i < own->to; i++)
	{
		WindowGroup *group = own->emissions[i].group;
		GroupShown	now = {group->window->start, group->window->end, NULL};

		CHECK_FOR_INTERRUPTS();
		for (const GroupShown *bounds = own->shown ? group->shown : &now; bounds != NULL; bounds = bounds->next)
		{
			if (own->shown && bounds->start == now.start && bounds->end == now.end)
				continue;
			old = MemoryContextSwitchTo(row);
			group_as_row(own->rollup, group, bounds->start, bounds->end, own->shown, values, isnull);
			MemoryContextSwitchTo(old);
			tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, isnull);
			MemoryContextReset(row);
		}
	}
	MemoryContextDelete(row);
	return (Datum) 0;
}
