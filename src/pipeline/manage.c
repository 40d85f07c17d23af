/*
 * manage.c
 *		Creating, changing, dropping, pausing and resuming pipelines: SQL functions.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_authid.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "foreign/foreign.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

#include "core/catalog_origin.h"
#include "core/compat.h"
#include "core/options.h"
#include "pipeline/pipeline.h"
#include "pipeline/rollup.h"
#include "pipeline/seek.h"
#include "pipeline/start.h"

#define MAX_BATCH_ROWS 1000000
#define MAX_WORKERS 256

/* Arguments of create_pipeline and alter_pipeline, in their common order. */
enum
{
	ARG_NAME, ARG_STATEMENT, ARG_START_AT, ARG_LATENESS, ARG_EMIT, ARG_IDLE_TIMEOUT,
	ARG_BATCH_ROWS, ARG_BATCH_DELAY, ARG_CHECKPOINT_INTERVAL, ARG_WORKERS, ARG_MAX_GROUPS,
	ARG_MAX_ERRORS, ARG_ON_ERROR, ARG_KEEP_CLOSED, ARG_NOTIFY, ARG_ENABLED, ARG_OWNER
};

static void
out_of_range(const char *option, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("\"%s\" is out of range", option),
			 errhint("%s", hint)));
}

static void
set_interval(FunctionCallInfo fcinfo, int arg, const char *name, int64 *us)
{
	if (PG_ARGISNULL(arg))
		return;
	*us = IntervalToUs(name, PG_GETARG_INTERVAL_P(arg));
	if (*us < 0)
		out_of_range(name, "It may not be negative.");
}

static void
set_count(FunctionCallInfo fcinfo, int arg, const char *name, int min, int max, int *value)
{
	if (PG_ARGISNULL(arg))
		return;
	*value = PG_GETARG_INT32(arg);
	if (*value < min || *value > max)
		out_of_range(name, psprintf("Valid values are %d to %d.", min, max));
}

/* One of two words. Returns whether it is the second; fallback if it was not given. */
static bool
get_word(FunctionCallInfo fcinfo, int arg, const char *name, const char *first,
		 const char *second, bool fallback)
{
	char	   *value;

	if (PG_ARGISNULL(arg))
		return fallback;
	value = text_to_cstring(PG_GETARG_TEXT_PP(arg));
	if (strcmp(value, first) != 0 && strcmp(value, second) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid value for \"%s\": \"%s\"", name, value),
				 errhint("Valid values are: %s, %s.", first, second)));
	return strcmp(value, second) == 0;
}

/* Take over what was given; what was not keeps its value. */
static void
set_options(FunctionCallInfo fcinfo, PipelineOptions *options)
{
	if (!PG_ARGISNULL(ARG_START_AT))
	{
		options->start_at = text_to_cstring(PG_GETARG_TEXT_PP(ARG_START_AT));
		(void) StartParse(options->start_at);
	}
	set_interval(fcinfo, ARG_LATENESS, "lateness", &options->lateness_us);
	options->emit_changes = get_word(fcinfo, ARG_EMIT, "emit", "final", "changes", options->emit_changes);
	set_interval(fcinfo, ARG_IDLE_TIMEOUT, "idle_timeout", &options->idle_timeout_us);
	set_count(fcinfo, ARG_BATCH_ROWS, "batch_rows", 1, MAX_BATCH_ROWS, &options->batch_rows);
	set_interval(fcinfo, ARG_BATCH_DELAY, "batch_delay", &options->batch_delay_us);
	set_interval(fcinfo, ARG_CHECKPOINT_INTERVAL, "checkpoint_interval", &options->checkpoint_us);
	set_count(fcinfo, ARG_WORKERS, "workers", 1, MAX_WORKERS, &options->workers);
	set_count(fcinfo, ARG_MAX_GROUPS, "max_groups", 1, PG_INT32_MAX, &options->max_groups);
	set_count(fcinfo, ARG_MAX_ERRORS, "max_errors", 0, PG_INT32_MAX, &options->max_errors);
	options->stop_on_error = get_word(fcinfo, ARG_ON_ERROR, "on_error", "dead_letter", "stop",
									  options->stop_on_error);
	set_interval(fcinfo, ARG_KEEP_CLOSED, "keep_closed", &options->keep_closed_us);
	if (!PG_ARGISNULL(ARG_NOTIFY))
	{
		/* An empty name takes it away: NULL means unchanged to alter_pipeline(). */
		options->notify = pstrdup(NameStr(*PG_GETARG_NAME(ARG_NOTIFY)));
		if (options->notify[0] == '\0')
			options->notify = NULL;
	}
}

/*
 * Does the owner have what typing the statement needs? EXPLAIN plans it and starts
 * the executor, which checks all rights, and runs nothing.
 */
static void
check_by_explaining(const char *qualified, Oid owner)
{
	RoleScope	scope;
	char	   *text = psprintf("EXPLAIN %s", qualified);

	RoleEnter(&scope, owner);
	if (SPI_connect() != SPI_OK_CONNECT)
		ereport(ERROR, (errcode(ERRCODE_INTERNAL_ERROR), errmsg("could not connect to SPI")));
	if (SPI_execute(text, false, 0) < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not plan the statement: %s", SPI_result_code_string(SPI_result))));
	SPI_finish();
	RoleLeave(&scope);
}

static void
take_statement(PipelineDefinition *def, Statement *statement)
{
	ListCell   *lc;

	check_by_explaining(statement->qualified, def->owner);
	if (statement->kind == PIPELINE_WINDOWED)
		RollupCheck(statement, &def->options, def->owner);
	if (statement->kind == PIPELINE_WINDOWED && def->options.workers > 1)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("a windowed pipeline has one worker"),
				 errdetail("Its windows hold records of all partitions."),
				 errhint("Leave \"workers\" at 1.")));
	if (statement->kind != PIPELINE_WINDOWED && def->options.keep_closed_us > 0)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("\"keep_closed\" is for statements that group by windows"),
				 errhint("Leave it out.")));
	def->kind = statement->kind;
	def->query = statement->qualified;
	def->stream = statement->stream;

	/* Options of stream, server and columns must fit together, too. */
	(void) StreamOpen(def->stream, def->owner);

	ereport(NOTICE,
			(errmsg("pipeline \"%s\" is %s and reads stream \"%s\"", def->name,
					def->kind == PIPELINE_WINDOWED ? "windowed" : "per batch",
					get_rel_name(def->stream))));
	foreach(lc, statement->notices)
		ereport(NOTICE,
				(errmsg("%s", (char *) lfirst(lc)),
				 errhint("Tables may depend on where batches end; use a window, or ON CONFLICT.")));
}

static char *
required_name(FunctionCallInfo fcinfo)
{
	if (PG_ARGISNULL(ARG_NAME))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("the name of a pipeline may not be null")));
	return pstrdup(NameStr(*PG_GETARG_NAME(ARG_NAME)));
}

static PipelineDefinition *
pipeline_of_caller(FunctionCallInfo fcinfo, bool lock)
{
	char	   *name = required_name(fcinfo);
	PipelineDefinition *def = CatalogReadPipelineByName(name, lock, CurrentMemoryContext);

	/* Others' pipelines are not there, as far as the caller can tell from the views. */
	if (def == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("pipeline \"%s\" does not exist", name)));
	if (!has_privs_of_role(GetUserId(), def->owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for pipeline \"%s\"", name),
				 errhint("Only members of its owner may do this.")));
	return def;
}

PipelineDefinition *
PipelineOfCaller(FunctionCallInfo fcinfo)
{
	return pipeline_of_caller(fcinfo, true);
}

PipelineDefinition *
PipelineToRead(FunctionCallInfo fcinfo)
{
	return pipeline_of_caller(fcinfo, false);
}

/* ---- SQL functions ---- */

PG_FUNCTION_INFO_V1(hybridiot_create_pipeline);

/* create_pipeline(name, statement, options...) */
Datum
hybridiot_create_pipeline(PG_FUNCTION_ARGS)
{
	PipelineDefinition *def = palloc0(sizeof(PipelineDefinition));
	PipelineOptions *options = &def->options;
	Statement  *statement;

	def->name = required_name(fcinfo);
	if (def->name[0] == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME), errmsg("the name of a pipeline may not be empty")));
	if (PG_ARGISNULL(ARG_STATEMENT))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("the statement of a pipeline may not be null")));

	/* As the defaults of the SQL function: an explicit NULL means the default, too. */
	options->start_at = "earliest";
	options->idle_timeout_us = 30 * USECS_PER_SEC;
	options->batch_rows = 10000;
	options->batch_delay_us = 100 * 1000;
	options->checkpoint_us = USECS_PER_SEC;
	options->workers = 1;
	options->max_groups = 1000000;
	options->max_errors = 1000;
	set_options(fcinfo, options);

	def->owner = GetUserId();
	def->owner_name = GetUserNameFromId(def->owner, false);
	def->statement = text_to_cstring(PG_GETARG_TEXT_PP(ARG_STATEMENT));
	def->enabled = PG_ARGISNULL(ARG_ENABLED) || PG_GETARG_BOOL(ARG_ENABLED);
	statement = StatementAnalyze(def->statement);
	take_statement(def, statement);
	CatalogInsertPipeline(def);
	CatalogTakeOrigin(def->id);
	CatalogSetCommanding(def->id, StatementCommands(statement));
	WakeAtCommit(WAKE_RELOAD);
	PG_RETURN_VOID();
}

/* Do offsets of the one stream mean anything for the other? One that is gone does not object. */
static bool
same_server(Oid one, Oid other)
{
	return one == other || StreamWrapper(one) == NULL ||
		GetForeignTable(one)->serverid == GetForeignTable(other)->serverid;
}

PG_FUNCTION_INFO_V1(hybridiot_alter_pipeline);

/* alter_pipeline(name, options..., owner): NULL means unchanged */
Datum
hybridiot_alter_pipeline(PG_FUNCTION_ARGS)
{
	PipelineDefinition *def = PipelineOfCaller(fcinfo);
	Statement  *statement;
	Oid			stream;
	bool		windowed = def->kind == PIPELINE_WINDOWED;
	bool		retyped = !PG_ARGISNULL(ARG_STATEMENT);
	bool		restarted = !PG_ARGISNULL(ARG_START_AT);

	set_options(fcinfo, &def->options);
	if (!PG_ARGISNULL(ARG_ENABLED))
		def->enabled = PG_GETARG_BOOL(ARG_ENABLED);
	if (!PG_ARGISNULL(ARG_OWNER))
	{
		Oid			owner = PG_GETARG_OID(ARG_OWNER);

		if (!is_member_of_role(GetUserId(), owner))
			ereport(ERROR,
					(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
					 errmsg("permission denied to give pipeline \"%s\" to role \"%s\"",
							def->name, GetUserNameFromId(owner, false)),
					 errhint("One must be a member of the new owner.")));
		if (superuser_arg(owner) && !superuser())
			ereport(ERROR,
					(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
					 errmsg("permission denied to give pipeline \"%s\" to a superuser", def->name)));
		def->owner = owner;
		def->owner_name = GetUserNameFromId(owner, false);
	}

	stream = def->stream;
	if (retyped)
	{
		def->statement = text_to_cstring(PG_GETARG_TEXT_PP(ARG_STATEMENT));
		statement = StatementAnalyze(def->statement);
		if ((windowed || statement->kind == PIPELINE_WINDOWED) && !restarted)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("a new statement of a windowed pipeline needs \"start_at\""),
					 errhint("Its windows have to be computed anew: say from where.")));
	}
	else
		statement = StatementReanalyze(def->query);
	take_statement(def, statement);
	if (!restarted && !same_server(stream, def->stream))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("a stream of another server needs \"start_at\""),
				 errdetail("Offsets of one server mean nothing to another."),
				 errhint("Say where to begin there.")));

	CatalogUpdatePipeline(def);
	if (retyped)
		CatalogSetCommanding(def->id, StatementCommands(statement));
	SlotForgetBackoff(def->id);
	if (restarted)
		PipelineRestart(def);
	WakeAtCommit(WAKE_RELOAD);
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(hybridiot_drop_pipeline);

/* drop_pipeline(name) */
Datum
hybridiot_drop_pipeline(PG_FUNCTION_ARGS)
{
	PipelineDefinition *def = PipelineOfCaller(fcinfo);
	uint64		letters = CatalogDeletePipeline(def->id);

	if (letters > 0)
		ereport(NOTICE,
				(errmsg("dead letters of pipeline \"%s\" were dropped with it: " UINT64_FORMAT,
						def->name, letters)));
	WakeAtCommit(WAKE_RELOAD);
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(hybridiot_pause_pipeline);

/* pause_pipeline(name) */
Datum
hybridiot_pause_pipeline(PG_FUNCTION_ARGS)
{
	CatalogSetEnabled(PipelineOfCaller(fcinfo)->id, false);
	WakeAtCommit(WAKE_RELOAD);
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(hybridiot_resume_pipeline);

/* resume_pipeline(name) */
Datum
hybridiot_resume_pipeline(PG_FUNCTION_ARGS)
{
	PipelineDefinition *def = PipelineOfCaller(fcinfo);

	CatalogSetEnabled(def->id, true);
	CatalogTakeOrigin(def->id);
	SlotForgetBackoff(def->id);
	WakeAtCommit(WAKE_RELOAD);
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(hybridiot_resume_all);

/* resume_all() returns how many pipelines go on */
Datum
hybridiot_resume_all(PG_FUNCTION_ARGS)
{
	int32	   *ids;
	int			n = CatalogResumeAll(GetUserId(), &ids);

	for (int i = 0; i < n; i++)
		SlotForgetBackoff(ids[i]);
	WakeAtCommit(WAKE_RELOAD);
	PG_RETURN_INT32(n);
}

PG_FUNCTION_INFO_V1(hybridiot_run_pipeline);

/* run_pipeline(name, max_records, wall_clock) returns the number of records read */
Datum
hybridiot_run_pipeline(PG_FUNCTION_ARGS)
{
	PipelineDefinition *def = PipelineOfCaller(fcinfo);
	int64		max_records = PG_ARGISNULL(1) ? PG_INT64_MAX : PG_GETARG_INT64(1);
	TimestampTz wall_clock = PG_ARGISNULL(2) ? DT_NOBEGIN : PG_GETARG_TIMESTAMPTZ(2);

	if (max_records < 0)
		out_of_range("max_records", "It may not be negative.");
	if (!PG_ARGISNULL(2) && TIMESTAMP_NOT_FINITE(wall_clock))
		out_of_range("wall_clock", "It must be a finite time.");
	PG_RETURN_INT64(PipelineRunInSession(def, max_records, wall_clock));
}
