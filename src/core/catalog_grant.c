/*
 * catalog_grant.c
 *		Device grants as rows.
 *
 * Grants are by name, so that they mean the same in a dump that is restored. What
 * happens to a role in another database's session is not seen here: its grants stay under the name they have.
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "fmgr.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"

#include "core/catalog_grant.h"

int
CatalogReadGrants(DeviceGrant **grants, MemoryContext context)
{
	static CatalogQuery query = {
		.sql = "SELECT role::text, server::text, pattern FROM hybridiot.device_grant"
	};
	CatalogScope scope;
	int			n;

	CatalogEnter(&scope);
	n = (int) CatalogReadNow(&query, NULL);
	*grants = MemoryContextAlloc(context, sizeof(DeviceGrant) * (n + 1));
	for (int i = 0; i < n; i++)
	{
		MemoryContext old = MemoryContextSwitchTo(context);
		bool		isnull;

		(*grants)[i].role = CatalogString(i, 1, context);
		(*grants)[i].server = CatalogString(i, 2, context);
		(*grants)[i].pattern = DatumGetTextPCopy(CatalogColumn(i, 3, &isnull));
		MemoryContextSwitchTo(old);
	}
	CatalogLeave(&scope);
	return n;
}

Oid
CatalogGrantTable(void)
{
	return get_relname_relid("device_grant", get_namespace_oid(HYBRIDIOT_SCHEMA, true));
}

static void
grant_values(Datum *values, const char *role, const char *server, const char *pattern)
{
	values[0] = DirectFunctionCall1(namein, CStringGetDatum(role));
	values[1] = DirectFunctionCall1(namein, CStringGetDatum(server));
	values[2] = CStringGetTextDatum(pattern);
}

void
CatalogInsertGrant(const char *role, const char *server, const char *pattern)
{
	static CatalogQuery query = {
		.sql = "INSERT INTO hybridiot.device_grant (role, server, pattern) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
		.nargs = 3,.argtypes = {NAMEOID, NAMEOID, TEXTOID}
	};
	Datum		values[3];

	grant_values(values, role, server, pattern);
	CatalogRun(&query, values, NULL);
}

bool
CatalogDeleteGrant(const char *role, const char *server, const char *pattern, int64 *left)
{
	static CatalogQuery delete = {
		.sql = "DELETE FROM hybridiot.device_grant WHERE role = $1 AND server = $2 AND pattern = $3",
		.nargs = 3,.argtypes = {NAMEOID, NAMEOID, TEXTOID}
	};
	static CatalogQuery count = {
		.sql = "SELECT pg_catalog.count(*) FROM hybridiot.device_grant WHERE server = $2",
		.nargs = 2,.argtypes = {NAMEOID, NAMEOID}
	};
	CatalogScope scope;
	Datum		values[3];
	bool		isnull;
	bool		done;

	CatalogEnter(&scope);
	grant_values(values, role, server, pattern);
	done = CatalogExecute(&delete, values, NULL, 0) == 1;
	CatalogExecute(&count, values, NULL, 0);
	*left = DatumGetInt64(CatalogColumn(0, 1, &isnull));
	CatalogLeave(&scope);
	return done;
}

/* A database may be without the extension, or have it in an earlier version. */
static bool
has_grants(void)
{
	char	   *version = CatalogVersion();

	return version && strcmp(version, HYBRIDIOT_VERSION) == 0;
}

/* A role may have, or get, what the one before it had under this name. */
void
CatalogRenameGrants(bool of_server, const char *old_name, const char *new_name)
{
	static CatalogQuery of_roles = {
		.sql = "WITH moved AS (DELETE FROM hybridiot.device_grant WHERE role = $1 RETURNING server, pattern)"
		" INSERT INTO hybridiot.device_grant (role, server, pattern) SELECT $2, server, pattern FROM moved ON CONFLICT DO NOTHING",
		.nargs = 2,.argtypes = {NAMEOID, NAMEOID}
	};
	static CatalogQuery of_servers = {
		.sql = "WITH moved AS (DELETE FROM hybridiot.device_grant WHERE server = $1 RETURNING role, pattern)"
		" INSERT INTO hybridiot.device_grant (role, server, pattern) SELECT role, $2, pattern FROM moved ON CONFLICT DO NOTHING",
		.nargs = 2,.argtypes = {NAMEOID, NAMEOID}
	};
	Datum		values[2];

	if (!has_grants())
		return;
	values[0] = DirectFunctionCall1(namein, CStringGetDatum(old_name));
	values[1] = DirectFunctionCall1(namein, CStringGetDatum(new_name));
	CatalogRun(of_server ? &of_servers : &of_roles, values, NULL);
}

void
CatalogForgetGrants(bool of_server, const char *name)
{
	static CatalogQuery of_roles = {
		.sql = "DELETE FROM hybridiot.device_grant WHERE role = $1"
		" AND NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = $1)",
		.nargs = 1,.argtypes = {NAMEOID}
	};
	static CatalogQuery of_servers = {
		.sql = "DELETE FROM hybridiot.device_grant WHERE server = $1"
		" AND NOT EXISTS (SELECT FROM pg_catalog.pg_foreign_server WHERE srvname = $1)",
		.nargs = 1,.argtypes = {NAMEOID}
	};
	Datum		values[1];

	if (!has_grants())
		return;
	values[0] = DirectFunctionCall1(namein, CStringGetDatum(name));
	CatalogRun(of_server ? &of_servers : &of_roles, values, NULL);
}

void
CatalogDropGrants(const char *role)
{
	static CatalogQuery query = {
		.sql = "DELETE FROM hybridiot.device_grant WHERE role = $1",
		.nargs = 1,.argtypes = {NAMEOID}
	};
	Datum		values[1];

	if (!has_grants())
		return;
	values[0] = DirectFunctionCall1(namein, CStringGetDatum(role));
	CatalogRun(&query, values, NULL);
}

PG_FUNCTION_INFO_V1(hybridiot_device_grant_changed);

/*
 * AFTER trigger, by statement, of hybridiot.device_grant: sessions that remember its rows read them anew,
 * whoever wrote them (a restore does it with COPY).
 */
Datum
hybridiot_device_grant_changed(PG_FUNCTION_ARGS)
{
	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("device_grant_changed() is the trigger of hybridiot.device_grant")));
	CacheInvalidateRelcache(((TriggerData *) fcinfo->context)->tg_relation);
	PG_RETURN_POINTER(NULL);
}
