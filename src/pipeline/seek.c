/*
 * seek.c
 *		Setting a pipeline's positions by hand.
 *
 * No network here: offsets are stored at once; the other words become the pipeline's start_at, its positions go, and
 * the worker finds out what they mean. Every such change is recorded with what was there before, and counted in the
 * definition, by which a worker that was at work meanwhile notices that its positions are not its own any more.
 */
#include "postgres.h"

#include "fmgr.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/json.h"

#include "pipeline/pipeline.h"
#include "pipeline/seek.h"
#include "pipeline/start.h"

/* {"topic": {"0": 17, "1": 4}} as jsonb; 0 if there is none. Rows are in order of topics. */
static Datum
positions_as_json(const PositionRow *rows, int n)
{
	StringInfoData text;

	if (n == 0)
		return (Datum) 0;
	initStringInfo(&text);
	for (int i = 0; i < n; i++)
	{
		if (i == 0 || strcmp(rows[i].topic, rows[i - 1].topic) != 0)
		{
			appendStringInfoString(&text, i == 0 ? "{" : "}, ");
			escape_json(&text, rows[i].topic);
			appendStringInfoString(&text, ": {");
		}
		else
			appendStringInfoString(&text, ", ");
		appendStringInfo(&text, "\"%d\": " INT64_FORMAT, rows[i].partition, rows[i].next_offset);
	}
	appendStringInfoString(&text, "}}");
	return DirectFunctionCall1(jsonb_in, CStringGetDatum(text.data));
}

static void
record_seek(PipelineDefinition *def, const char *position, const PositionRow *rows, int n)
{
	CatalogRecordSeek(def, GetUserNameFromId(GetUserId(), false), position, positions_as_json(rows, n));
}

void
PipelineRestart(PipelineDefinition *def)
{
	int			n;
	PositionRow *rows = CatalogReadPositions(def->id, CurrentMemoryContext, &n);

	record_seek(def, def->options.start_at, rows, n);
	CatalogForgetProgress(def->id);
}

/* Does every partition that is named exist, and is it clear which one is meant? */
static void
check_named(const PipelineDefinition *def, const Start *start, const PositionRow *rows, int n)
{
	for (int i = 0; i < start->noffsets; i++)
	{
		int			found = 0;

		for (int k = 0; k < n; k++)
			found += rows[k].partition == start->partitions[i] &&
				(start->topics[i] == NULL || strcmp(start->topics[i], rows[k].topic) == 0);
		if (found == 0)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 start->topics[i] ?
					 errmsg("pipeline \"%s\" has no partition %d of topic \"%s\"", def->name,
							start->partitions[i], start->topics[i]) :
					 errmsg("pipeline \"%s\" has no partition %d", def->name, start->partitions[i]),
					 errhint("hybridiot.position lists the partitions that it has.")));
		if (found > 1)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("pipeline \"%s\" has partition %d of several topics", def->name, start->partitions[i]),
					 errhint("Name the topic, too: \"topic/%d\".", start->partitions[i])));
	}
}

/* Partitions that are named move; the others stay, which windows that are open forbid. */
static void
seek_offsets(PipelineDefinition *def, const char *position, const Start *start, const PositionRow *rows, int n)
{
	PositionRow *moved = palloc0(sizeof(PositionRow) * n);
	int			nmoved = 0;

	check_named(def, start, rows, n);
	for (int i = 0; i < n; i++)
	{
		int64		offset = StartOffset(start, rows[i].topic, rows[i].partition);

		if (offset >= 0)
		{
			moved[nmoved] = rows[i];
			moved[nmoved++].next_offset = offset;
		}
		else if (def->kind == PIPELINE_WINDOWED)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("no offset is given for topic \"%s\", partition %d", rows[i].topic, rows[i].partition),
					 errdetail("Windows are computed anew from the positions, so all partitions move together."),
					 errhint("Name every partition, or use a timestamp.")));
	}
	record_seek(def, position, rows, n);
	if (def->kind == PIPELINE_WINDOWED)
	{
		CatalogForgetProgress(def->id);
		(void) CatalogAddPositions(def, moved, nmoved);
	}
	else
		CatalogResetPositions(def->id, moved, nmoved);
	CatalogUpdatePipeline(def); /* clears a failure */
}

void
PipelineSeek(PipelineDefinition *def, const char *position)
{
	Start	   *start = StartParse(position);
	int			n;
	PositionRow *rows = CatalogReadPositions(def->id, CurrentMemoryContext, &n);

	if (start->kind == START_OFFSETS && n > 0)
	{
		seek_offsets(def, position, start, rows, n);
		return;
	}
	def->options.start_at = pstrdup(position);
	CatalogUpdatePipeline(def);
	PipelineRestart(def);
}

PG_FUNCTION_INFO_V1(hybridiot_seek_pipeline);

/* seek_pipeline(name, position) */
Datum
hybridiot_seek_pipeline(PG_FUNCTION_ARGS)
{
	PipelineDefinition *def = PipelineOfCaller(fcinfo);

	if (PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("the position of a pipeline may not be null")));
	PipelineSeek(def, text_to_cstring(PG_GETARG_TEXT_PP(1)));
	SlotForgetBackoff(def->id);
	WakeAtCommit(WAKE_RELOAD);
	PG_RETURN_VOID();
}
