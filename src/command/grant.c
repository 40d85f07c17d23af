/*
 * grant.c
 *		Device grants: which devices of a server a role may command.
 *
 * They are checked in the caller's session for its current user, as privileges are:
 * a role has what roles have whose privileges it inherits. The server's owner, and superusers, need none. Each
 * session remembers all grants until one changes, so that a command costs no query.
 */
#include "postgres.h"

#include "catalog/pg_collation.h"
#include "catalog/pg_foreign_server.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/memutils.h"

#include "command/grant.h"
#include "command/request.h"
#include "core/catalog_grant.h"
#include "core/compat.h"
#include "core/options.h"

static DeviceGrant *grants = NULL;
static int	ngrants = 0;
static Oid	grant_table = InvalidOid;
static bool grants_valid = false;

static void
forget_grants(Datum arg, Oid relation)
{
	if (relation == InvalidOid || relation == grant_table)
		grants_valid = false;
}

static void
read_grants(void)
{
	static MemoryContext context = NULL;

	/* Also what was committed since our transaction began, however long it lasts. */
	AcceptInvalidationMessages();
	if (grants_valid)
		return;
	if (context == NULL)
	{
		context = AllocSetContextCreate(CacheMemoryContext, "hybridiot device grants", ALLOCSET_SMALL_SIZES);
		CacheRegisterRelcacheCallback(forget_grants, (Datum) 0);
	}
	MemoryContextReset(context);
	ngrants = 0;
	grant_table = CatalogGrantTable();

	/* What changes while they are read makes them invalid again. */
	grants_valid = true;
	PG_TRY();
	{
		ngrants = CatalogReadGrants(&grants, context);
	}
	PG_CATCH();
	{
		grants_valid = false;
		PG_RE_THROW();
	}
	PG_END_TRY();
}

/* LIKE, without the database's collation: the same everywhere. */
static bool
matches(const text *device, const text *pattern)
{
	return DatumGetBool(DirectFunctionCall2Coll(textlike, C_COLLATION_OID, PointerGetDatum(device), PointerGetDatum(pattern)));
}

static bool
role_is_ours(const char *name)
{
	Oid			role = get_role_oid(name, true);

	return OidIsValid(role) && has_privs_of_role(GetUserId(), role);
}

void
GrantCheck(const ForeignServer *server, const char *device)
{
	bool		granted = true;
	text	   *name = NULL;

	read_grants();
	for (int i = 0; i < ngrants; i++)
	{
		if (strcmp(grants[i].server, server->servername) != 0)
			continue;
		if (name == NULL)
			name = cstring_to_text(device);
		granted = matches(name, grants[i].pattern) && role_is_ours(grants[i].role);
		if (granted)
			return;
	}
	if (!granted && !has_privs_of_role(GetUserId(), server->owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for device \"%s\" on server \"%s\"", device, server->servername),
				 errhint("The server has device grants: see hybridiot.device_grant and hybridiot.grant_devices().")));
}

/* ---- granting ---- */

/* LIKE would raise the same, but only when it comes to the end. */
static void
check_pattern(const char *pattern)
{
	RequestCheckWord("pattern", pattern, true, MAX_NAME);
	for (const char *c = pattern; *c; c++)
		if (*c == '\\' && *++c == '\0')
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_ESCAPE_SEQUENCE),
					 errmsg("the pattern must not end with an escape character"),
					 errhint("Write \"\\\\\" for a backslash.")));
}

/* What both are called with. Raises 22004, 22023, 22025, 42501, 42704, 42809. */
static void
grant_arguments(FunctionCallInfo fcinfo, const char **role, const char **server, const char **pattern)
{
	ForeignServer *found;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s must not be null", PG_ARGISNULL(0) ? "role" : "server")));
	found = GetForeignServerByName(NameStr(*PG_GETARG_NAME(1)), false);
	if (!object_ownercheck(ForeignServerRelationId, found->serverid, GetUserId()))
		aclcheck_error(ACLCHECK_NOT_OWNER, OBJECT_FOREIGN_SERVER, found->servername);
	if (strcmp(OptionWrapperName(found), AMQP_WRAPPER) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("server \"%s\" is not an AMQP server", found->servername)));
	*pattern = PG_ARGISNULL(2) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(2));
	check_pattern(*pattern);
	*role = GetUserNameFromId(PG_GETARG_OID(0), false);
	*server = found->servername;
}

PG_FUNCTION_INFO_V1(hybridiot_grant_devices);

Datum
hybridiot_grant_devices(PG_FUNCTION_ARGS)
{
	const char *role;
	const char *server;
	const char *pattern;

	grant_arguments(fcinfo, &role, &server, &pattern);
	CatalogInsertGrant(role, server, pattern);
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(hybridiot_revoke_devices);

Datum
hybridiot_revoke_devices(PG_FUNCTION_ARGS)
{
	const char *role;
	const char *server;
	const char *pattern;
	int64		left;

	grant_arguments(fcinfo, &role, &server, &pattern);
	if (!CatalogDeleteGrant(role, server, pattern, &left))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("role \"%s\" has no grant for devices \"%s\" on server \"%s\"", role, pattern, server),
				 errhint("See hybridiot.device_grant.")));
	if (left == 0)
		ereport(NOTICE,
				(errmsg("server \"%s\" has no device grants any more", server),
				 errdetail("Every role with USAGE on it may command every device.")));
	PG_RETURN_VOID();
}
