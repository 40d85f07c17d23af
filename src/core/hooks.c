/*
 * hooks.c
 *		Where PostgreSQL tells us that something changes.
 *
 * Two things need telling. Workers of a database must be gone before it, or
 * the extension in it, is dropped (or it is copied or renamed): they are
 * ended and kept away until that transaction ends. And workers must hear, at
 * commit, that servers, mappings, streams or the extension changed. Device grants, which
 * are by name, follow a role or server that is renamed, and go with one that is dropped.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/dependency.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_class.h"
#include "catalog/pg_database.h"
#include "catalog/pg_db_role_setting.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_foreign_table.h"
#include "catalog/pg_user_mapping.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "foreign/foreign.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

#include "core/catalog_grant.h"
#include "core/compat.h"
#include "core/hooks.h"
#include "core/shmem.h"

static object_access_hook_type next_object_access = NULL;
static ProcessUtility_hook_type next_process_utility = NULL;

/* Hold a database if the caller could do the thing that needs it; the statement itself says so if not. */
static void
hold_database(const char *name)
{
	Oid			database = get_database_oid(name, true);

	if (OidIsValid(database) &&
		object_ownercheck(DatabaseRelationId, database, GetUserId()))
		DatabaseHoldUntilEnd(database);
}

/* Names of roles and servers that the present utility statement dropped; in TopMemoryContext. */
static List *dropped_roles = NIL;
static List *dropped_servers = NIL;

static void
note_dropped(List **names, const char *name)
{
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

	*names = lappend(*names, pstrdup(name));
	MemoryContextSwitchTo(old);
}

static void
forget_dropped(List *names, bool of_servers)
{
	ListCell   *lc;

	foreach(lc, names)
		CatalogForgetGrants(of_servers, lfirst(lc));
	list_free_deep(names);
}

/* Others may be freed by the time they are done. */
static bool
may_touch_grants(Node *stmt)
{
	return IsA(stmt, RenameStmt) || IsA(stmt, DropStmt) || IsA(stmt, DropRoleStmt) || IsA(stmt, DropOwnedStmt);
}

/* After such a statement: what does it mean for device grants? */
static void
adjust_grants(Node *stmt)
{
	if (IsA(stmt, RenameStmt))
	{
		RenameStmt *rename = (RenameStmt *) stmt;

		if (rename->renameType == OBJECT_FOREIGN_SERVER)
			CatalogRenameGrants(true, strVal(rename->object), rename->newname);
		else if (rename->renameType == OBJECT_ROLE)
			CatalogRenameGrants(false, rename->subname, rename->newname);
	}
	else if (IsA(stmt, DropOwnedStmt))
	{
		ListCell   *lc;

		/* It takes privileges away, too. */
		foreach(lc, ((DropOwnedStmt *) stmt)->roles)
			CatalogDropGrants(get_rolespec_name(lfirst_node(RoleSpec, lc)));
	}
	forget_dropped(dropped_roles, false);
	forget_dropped(dropped_servers, true);
}

/*
 * DROP EXTENSION locks all that belongs to it before object_access() hears of it, and workers that are in a
 * transaction hold locks on some of that: they must have gone before.
 */
static void
hold_for_drop(DropStmt *stmt)
{
	Oid			extension = InvalidOid;
	ListCell   *lc;

	if (stmt->removeType != OBJECT_EXTENSION)
		return;
	foreach(lc, stmt->objects)
		if (strcmp(strVal(lfirst(lc)), HYBRIDIOT_EXTENSION) == 0)
			extension = CatalogExtension();
	if (OidIsValid(extension) &&
		object_ownercheck(ExtensionRelationId, extension, GetUserId()))
		DatabaseHoldUntilEnd(MyDatabaseId);
}

/* The template that CREATE DATABASE names; NULL: template1, which has no workers. */
static const char *
template_of(CreatedbStmt *stmt)
{
	ListCell   *lc;

	foreach(lc, stmt->options)
	{
		DefElem    *option = lfirst_node(DefElem, lc);

		if (strcmp(option->defname, "template") == 0 && option->arg)
			return defGetString(option);
	}
	return NULL;
}

static void
process_utility(PlannedStmt *pstmt, const char *queryString, bool readOnlyTree,
				ProcessUtilityContext context, ParamListInfo params,
				QueryEnvironment *queryEnv, DestReceiver *dest, QueryCompletion *qc)
{
	Node	   *stmt = pstmt->utilityStmt;
	bool		grants = Shared != NULL && may_touch_grants(stmt);
	List	   *outer_roles = dropped_roles;
	List	   *outer_servers = dropped_servers;

	if (Shared != NULL)
	{
		switch (nodeTag(stmt))
		{
			case T_DropStmt:
				hold_for_drop((DropStmt *) stmt);
				break;
			case T_DropdbStmt:
				hold_database(((DropdbStmt *) stmt)->dbname);
				break;
			case T_CreatedbStmt:
				{
					const char *source = template_of((CreatedbStmt *) stmt);

					if (source)
						hold_database(source);
					WakeAtCommit(WAKE_LAUNCHER);
					break;
				}
			case T_RenameStmt:
				if (((RenameStmt *) stmt)->renameType == OBJECT_DATABASE)
					hold_database(((RenameStmt *) stmt)->subname);
				break;
			case T_AlterDatabaseStmt:
				/* SET TABLESPACE moves the files; connection limits do no harm. */
				hold_database(((AlterDatabaseStmt *) stmt)->dbname);
				break;
			case T_AlterDatabaseSetStmt:
				/* hybridiot.enabled may have been set: workers start with fresh settings. */
				hold_database(((AlterDatabaseSetStmt *) stmt)->dbname);
				WakeAtCommit(WAKE_LAUNCHER | WAKE_RELOAD);
				break;
			default:
				break;
		}
	}

	/* Statements may be nested; what one that failed has left is forgotten here. */
	dropped_roles = NIL;
	dropped_servers = NIL;
	if (next_process_utility)
		next_process_utility(pstmt, queryString, readOnlyTree, context, params,
							 queryEnv, dest, qc);
	else
		standard_ProcessUtility(pstmt, queryString, readOnlyTree, context, params,
								queryEnv, dest, qc);
	if (grants)
		adjust_grants(stmt);
	dropped_roles = outer_roles;
	dropped_servers = outer_servers;
}

/* Is this relation a foreign table (its own row may be on its way out)? */
static bool
is_foreign_table(Oid relid)
{
	return get_rel_relkind(relid) == RELKIND_FOREIGN_TABLE;
}

static void
object_access(ObjectAccessType access, Oid classId, Oid objectId, int subId, void *arg)
{
	if (next_object_access)
		next_object_access(access, classId, objectId, subId, arg);

	if (Shared == NULL || !OidIsValid(MyDatabaseId) ||
		(access != OAT_POST_CREATE && access != OAT_POST_ALTER && access != OAT_DROP))
		return;

	if (access == OAT_DROP && classId == AuthIdRelationId)
		note_dropped(&dropped_roles, GetUserNameFromId(objectId, false));
	else if (access == OAT_DROP && classId == ForeignServerRelationId)
		note_dropped(&dropped_servers, GetForeignServer(objectId)->servername);

	if (classId == ExtensionRelationId)
	{
		if (access == OAT_DROP && objectId == CatalogExtension())
			DatabaseHoldUntilEnd(MyDatabaseId);
		else
			WakeAtCommit(WAKE_LAUNCHER);
	}
	else if (classId == ForeignServerRelationId || classId == UserMappingRelationId ||
			 classId == ForeignTableRelationId)
		WakeAtCommit(WAKE_RELOAD);
	else if (classId == RelationRelationId && is_foreign_table(objectId))
		WakeAtCommit(WAKE_RELOAD);
	else if (classId == DbRoleSettingRelationId)
		WakeAtCommit(WAKE_RELOAD | WAKE_LAUNCHER);
}

void
HooksInstall(void)
{
	next_object_access = object_access_hook;
	object_access_hook = object_access;
	next_process_utility = ProcessUtility_hook;
	ProcessUtility_hook = process_utility;
}
