/*
 * catalog_origin.c
 *		Where pipelines come from: what is held in a copy of a database, and who may run.
 *
 * The origin lies beside each pipeline, not once in a database: while a dump is being restored, pipelines and all
 * else arrive one by one, with a manager looking on. It is not dumped, so what is restored has none. Nothing here
 * trusts that the manager has looked before: a pipeline that is not at home is not in the list of those to run.
 */
#include "postgres.h"

#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/uuid.h"

#include "core/catalog_origin.h"
#include "core/shmem.h"

/* What an origin o has of $1 to $4; null: not known when it was written, which is no difference. */
#define AT_HOME \
	"((o.system_id, o.database) = ($1, $3) AND NOT coalesce(o.timeline <> $2 OR o.instance <> $4, false))"
#define UPSERT_ORIGIN \
	" ON CONFLICT (pipeline) DO UPDATE SET system_id = $1, timeline = $2, database = $3, instance = $4"

void
CatalogIdentity(Datum *values, char *nulls)
{
	values[0] = Int64GetDatum((int64) GetSystemIdentifier());
	values[1] = Int32GetDatum((int32) GetWALInsertionTimeLine());
	values[2] = ObjectIdGetDatum(MyDatabaseId);
	memset(nulls, ' ', IDENTITY_ARGS);
	if (Shared && Shared->instance[0])
		values[3] = DirectFunctionCall1(uuid_in, CStringGetDatum(Shared->instance));
	else
	{
		values[3] = (Datum) 0;
		nulls[3] = 'n';
	}
}

void
CatalogHoldCopies(void)
{
	static CatalogQuery query = {
		.sql = "WITH judged AS (SELECT d.id,"
		" CASE WHEN (o.system_id, o.database) IS DISTINCT FROM ($1, $3) THEN 'copied'"
		" WHEN o.timeline <> $2 THEN CASE WHEN d.commands AND NOT $5 THEN 'promoted' END"
		" WHEN o.instance <> $4 THEN 'copied' END AS reason"
		" FROM hybridiot.pipeline_definition d LEFT JOIN hybridiot.pipeline_origin o ON o.pipeline = d.id"
		" WHERE (o.system_id, o.timeline, o.database, o.instance) IS DISTINCT FROM ($1, $2, $3, $4)),"
		" ours AS (UPDATE hybridiot.pipeline_origin o SET timeline = $2, instance = $4 FROM judged j"
		" WHERE o.pipeline = j.id AND j.reason IS NULL),"
		" held AS (UPDATE hybridiot.pipeline_definition d SET failure = j.reason FROM judged j"
		" WHERE d.id = j.id AND j.reason IS NOT NULL AND d.enabled AND d.failure IS NULL RETURNING d.failure)"
		" SELECT failure, count(*) FROM held GROUP BY failure ORDER BY failure",
		.nargs = IDENTITY_ARGS + 1,.argtypes = {IDENTITY_TYPES, BOOLOID}
	};
	CatalogScope scope;
	Datum		values[IDENTITY_ARGS + 1];
	char		nulls[IDENTITY_ARGS + 2] = "     ";
	int			n;

	CatalogEnter(&scope);
	CatalogIdentity(values, nulls);
	values[IDENTITY_ARGS] = BoolGetDatum(hybridiot_resume_after_promotion);
	n = (int) CatalogExecute(&query, values, nulls, 0);
	for (int i = 0; i < n; i++)
	{
		bool		isnull;
		char	   *reason = CatalogString(i, 1, CurrentMemoryContext);
		int64		count = DatumGetInt64(CatalogColumn(i, 2, &isnull));

		ereport(LOG,
				(errmsg("pipelines of this database are held as \"%s\": " INT64_FORMAT, reason, count),
				 strcmp(reason, "copied") == 0 ?
				 errdetail("This database, or this server, is a copy of the one that they ran on.") :
				 errdetail("This server was promoted, and they command devices."),
				 errhint("If nobody else runs them, call hybridiot.resume_all().")));
	}
	CatalogLeave(&scope);
}

EnabledPipeline *
CatalogEnabledPipelines(MemoryContext context, int *n)
{
	static CatalogQuery query = {
		.sql = "SELECT d.id, d.name::text, d.workers FROM hybridiot.pipeline_definition d"
		" JOIN hybridiot.pipeline_origin o ON o.pipeline = d.id"
		" WHERE d.enabled AND d.failure IS NULL AND " AT_HOME " ORDER BY d.id",
		.nargs = IDENTITY_ARGS,.argtypes = {IDENTITY_TYPES}
	};
	CatalogScope scope;
	Datum		values[IDENTITY_ARGS];
	char		nulls[IDENTITY_ARGS + 1] = "    ";
	EnabledPipeline *pipelines;

	CatalogEnter(&scope);
	CatalogIdentity(values, nulls);
	*n = (int) CatalogExecute(&query, values, nulls, 0);
	pipelines = MemoryContextAlloc(context, sizeof(EnabledPipeline) * (*n + 1));
	for (int i = 0; i < *n; i++)
	{
		bool		isnull;

		pipelines[i].id = DatumGetInt32(CatalogColumn(i, 1, &isnull));
		pipelines[i].name = CatalogString(i, 2, context);
		pipelines[i].workers = DatumGetInt32(CatalogColumn(i, 3, &isnull));
	}
	CatalogLeave(&scope);
	return pipelines;
}

void
CatalogTakeOrigin(int32 id)
{
	static CatalogQuery query = {
		.sql = "INSERT INTO hybridiot.pipeline_origin (pipeline, system_id, timeline, database, instance)"
		" VALUES ($5, $1, $2, $3, $4)" UPSERT_ORIGIN,
		.nargs = IDENTITY_ARGS + 1,.argtypes = {IDENTITY_TYPES, INT4OID}
	};
	CatalogScope scope;
	Datum		values[IDENTITY_ARGS + 1];
	char		nulls[IDENTITY_ARGS + 2] = "     ";

	CatalogEnter(&scope);
	CatalogIdentity(values, nulls);
	values[IDENTITY_ARGS] = Int32GetDatum(id);
	CatalogExecute(&query, values, nulls, 0);
	CatalogLeave(&scope);
}

int
CatalogResumeAll(Oid role, int32 **ids)
{
	static CatalogQuery query = {
		.sql = "WITH resumed AS (UPDATE hybridiot.pipeline_definition d SET failure = NULL"
		" WHERE d.enabled AND pg_catalog.pg_has_role($5, d.owner, 'USAGE') AND (d.failure IS NOT NULL OR NOT EXISTS"
		" (SELECT FROM hybridiot.pipeline_origin o WHERE o.pipeline = d.id AND " AT_HOME ")) RETURNING d.id),"
		" counts_anew AS (DELETE FROM hybridiot.pipeline_errors e USING resumed r WHERE e.pipeline = r.id)"
		" INSERT INTO hybridiot.pipeline_origin (pipeline, system_id, timeline, database, instance)"
		" SELECT id, $1, $2, $3, $4 FROM resumed" UPSERT_ORIGIN " RETURNING pipeline",
		.nargs = IDENTITY_ARGS + 1,.argtypes = {IDENTITY_TYPES, OIDOID}
	};
	CatalogScope scope;
	MemoryContext context = CurrentMemoryContext;
	Datum		values[IDENTITY_ARGS + 1];
	char		nulls[IDENTITY_ARGS + 2] = "     ";
	int			n;

	CatalogEnter(&scope);
	CatalogIdentity(values, nulls);
	values[IDENTITY_ARGS] = ObjectIdGetDatum(role);
	n = (int) CatalogExecute(&query, values, nulls, 0);
	*ids = MemoryContextAlloc(context, sizeof(int32) * (n + 1));
	for (int i = 0; i < n; i++)
	{
		bool		isnull;

		(*ids)[i] = DatumGetInt32(CatalogColumn(i, 1, &isnull));
	}
	CatalogLeave(&scope);
	return n;
}

void
CatalogSetCommanding(int32 id, bool commanding)
{
	static CatalogQuery query = {
		.sql = "UPDATE hybridiot.pipeline_definition SET commands = $2 WHERE id = $1 AND commands <> $2",
		.nargs = 2,.argtypes = {INT4OID, BOOLOID}
	};
	Datum		values[] = {Int32GetDatum(id), BoolGetDatum(commanding)};

	CatalogRun(&query, values, NULL);
}

bool
CatalogCommanding(int32 id)
{
	static CatalogQuery query = {
		.sql = "SELECT 1 FROM hybridiot.pipeline_definition WHERE id = $1 AND commands",
		.nargs = 1,.argtypes = {INT4OID}
	};
	Datum		values[] = {Int32GetDatum(id)};

	return CatalogRun(&query, values, NULL) == 1;
}
