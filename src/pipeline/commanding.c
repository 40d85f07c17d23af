/*
 * commanding.c
 *		Does a statement command devices?
 *
 * A pipeline that does must not run on two servers at once (catalog_origin.c holds it after a promotion). This looks through the
 * statement, its views and rules, and SQL functions that it calls. What it cannot see, in triggers and in functions of
 * other languages, is noted by the first command that is sent (command/send.c).
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_language.h"
#include "catalog/pg_proc.h"
#include "nodes/nodeFuncs.h"
#include "parser/parsetree.h"
#include "rewrite/rewriteHandler.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

#include "core/catalog_command.h"
#include "pipeline/pipeline.h"

#define SEND_COMMAND "send_command"

typedef struct Search
{
	Oid			journal;
	Oid			schema;			/* of our own functions */
	List	   *seen;			/* Oid of functions looked into */
} Search;

static bool search_walker(Node *node, Search *search);

/* In the text of a function as it was typed: names are all there is. */
static bool
raw_walker(Node *node, void *context)
{
	if (node == NULL)
		return false;
	if (IsA(node, FuncCall) && strcmp(strVal(llast(((FuncCall *) node)->funcname)), SEND_COMMAND) == 0)
		return true;
	if (IsA(node, InsertStmt))
	{
		RangeVar   *target = ((InsertStmt *) node)->relation;

		if (target->schemaname && strcmp(target->schemaname, HYBRIDIOT_SCHEMA) == 0 &&
			strcmp(target->relname, "command") == 0)
			return true;
	}
	return raw_expression_tree_walker(node, raw_walker, context);
}

static bool
text_commands(const char *text)
{
	ListCell   *lc;

	foreach(lc, pg_parse_query(text))
	{
		Node	   *stmt = lfirst_node(RawStmt, lc)->stmt;

		if ((IsA(stmt, SelectStmt) || IsA(stmt, InsertStmt) || IsA(stmt, UpdateStmt) ||
			 IsA(stmt, DeleteStmt) || IsA(stmt, MergeStmt)) && raw_walker(stmt, NULL))
			return true;
	}
	return false;
}

static bool
function_commands(Oid function, void *context)
{
	Search	   *search = context;
	HeapTuple	tuple;
	Form_pg_proc proc;
	bool		found = false;

	if (list_member_oid(search->seen, function))
		return false;
	search->seen = lappend_oid(search->seen, function);
	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	if (!HeapTupleIsValid(tuple))
		return false;
	proc = (Form_pg_proc) GETSTRUCT(tuple);
	if (proc->pronamespace == search->schema)
		found = strcmp(NameStr(proc->proname), SEND_COMMAND) == 0;
	else if (proc->prolang == SQLlanguageId)
	{
		bool		isnull;
		Datum		body = SysCacheGetAttr(PROCOID, tuple, Anum_pg_proc_prosqlbody, &isnull);

		if (!isnull)
			found = search_walker(stringToNode(TextDatumGetCString(body)), search);
		else
		{
			body = SysCacheGetAttr(PROCOID, tuple, Anum_pg_proc_prosrc, &isnull);
			found = !isnull && text_commands(TextDatumGetCString(body));
		}
	}
	ReleaseSysCache(tuple);
	return found;
}

static bool
search_walker(Node *node, Search *search)
{
	if (node == NULL)
		return false;
	if (IsA(node, Query))
	{
		Query	   *query = (Query *) node;

		if (query->resultRelation > 0 && OidIsValid(search->journal) &&
			rt_fetch(query->resultRelation, query->rtable)->relid == search->journal)
			return true;
		return query_tree_walker(query, search_walker, search, 0);
	}
	return check_functions_in_node(node, function_commands, search) ||
		expression_tree_walker(node, search_walker, search);
}

bool
StatementCommands(const Statement *statement)
{
	Search		search = {.journal = CatalogJournal()};

	search.schema = get_rel_namespace(search.journal);

	/* Views and rules are seen as the executor will see them. */
	return search_walker((Node *) QueryRewrite(copyObject(statement->query)), &search);
}
