/*
 * compat.h
 *		The one place where PostgreSQL's versions differ.
 *
 * Macros are named after the newest API; no other file tests PG_VERSION_NUM.
 * Include after postgres.h.
 */
#ifndef HYBRIDIOT_COMPAT_H
#define HYBRIDIOT_COMPAT_H

#if PG_VERSION_NUM < 150000
#error "hybridiot needs PostgreSQL 15 or later"
#endif

#include "common/hashfn.h"
#include "fmgr.h"
#include "utils/guc.h"

/* What is said of variable-length values left postgres.h in 16. */
#if PG_VERSION_NUM >= 160000
#include "varatt.h"
#endif

/* RestrictSearchPath() came with 17: the path that maintenance commands use. */
#if PG_VERSION_NUM < 170000
#define RestrictSearchPath() \
	set_config_option("search_path", "pg_catalog, pg_temp", PGC_USERSET, \
					  PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false)
#endif

/* MarkGUCPrefixReserved() came with 15, but WAIT_EVENT names changed in 17. */
#if PG_VERSION_NUM < 170000
#define WaitEventExtensionNew(name) PG_WAIT_EXTENSION
#endif

/* object_ownercheck() and object_aclcheck() came with 16, for all classes. */
#if PG_VERSION_NUM < 160000
#include "catalog/pg_database.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_proc.h"
#include "utils/acl.h"
static inline bool
object_ownercheck(Oid classid, Oid objectid, Oid roleid)
{
	switch (classid)
	{
		case DatabaseRelationId:
			return pg_database_ownercheck(objectid, roleid);
		case ExtensionRelationId:
			return pg_extension_ownercheck(objectid, roleid);
		default:
			Assert(classid == ForeignServerRelationId);
			return pg_foreign_server_ownercheck(objectid, roleid);
	}
}

static inline AclResult
object_aclcheck(Oid classid, Oid objectid, Oid roleid, AclMode mode)
{
	Assert(classid == ForeignServerRelationId || classid == ProcedureRelationId);
	return classid == ForeignServerRelationId ?
		pg_foreign_server_aclcheck(objectid, roleid, mode) :
		pg_proc_aclcheck(objectid, roleid, mode);
}
#endif

/* create_foreignscan_path() got fdw_restrictinfo in 17 and disabled_nodes in 18. */
#if PG_VERSION_NUM < 170000
#define create_foreignscan_path(root, rel, target, rows, disabled_nodes, startup, total, keys, outer, outerpath, restrictinfo, private) \
	create_foreignscan_path(root, rel, target, rows, startup, total, keys, outer, outerpath, private)
#elif PG_VERSION_NUM < 180000
#define create_foreignscan_path(root, rel, target, rows, disabled_nodes, startup, total, keys, outer, outerpath, restrictinfo, private) \
	create_foreignscan_path(root, rel, target, rows, startup, total, keys, outer, outerpath, restrictinfo, private)
#endif

/* Index interpretations of operators left the btree behind in 18. */
#if PG_VERSION_NUM >= 180000
#define BTREE_INTERPRETATION(opno) get_op_index_interpretation(opno)
#define BTREE_STRATEGY(entry) \
	((int) IndexAmTranslateCompareType(((OpIndexInterpretation *) (entry))->cmptype, BTREE_AM_OID, InvalidOid, true))
#else
#define BTREE_INTERPRETATION(opno) get_op_btree_interpretation(opno)
#define BTREE_STRATEGY(entry) (((OpBtreeInterpretation *) (entry))->strategy)
#endif

/* Who reads the relation of a scan: a view's owner, or the user (checkAsUser moved to RTEPermissionInfo in 16). */
#if PG_VERSION_NUM >= 160000
#define SCAN_CHECK_AS_USER(plan, estate) ((plan)->checkAsUser)
#else
#define SCAN_CHECK_AS_USER(plan, estate) \
	(exec_rt_fetch((plan)->scan.scanrelid, (estate))->checkAsUser)
#endif

/* Wait-event sets belong to a resource owner from 17 on; before, to a memory context. */
#include "storage/latch.h"
#if PG_VERSION_NUM < 170000
#define CreateWaitEventSet(owner, nevents) CreateWaitEventSet(CurrentMemoryContext, nevents)
#endif

/* stringToQualifiedNameList() reports errors softly from 16 on. */
#include "utils/regproc.h"
#if PG_VERSION_NUM < 160000
#define stringToQualifiedNameList(string, escontext) stringToQualifiedNameList(string)
#endif

/* EXPLAIN's header was split in 18. */
#if PG_VERSION_NUM >= 180000
#include "commands/explain_format.h"
#include "commands/explain_state.h"
#endif

/* PG_MODULE_MAGIC_EXT carries name and version from 18 on. */
#ifndef PG_MODULE_MAGIC_EXT
#define PG_MODULE_MAGIC_EXT(...) PG_MODULE_MAGIC
#endif

/* make_range() reports errors softly from 16 on. */
#include "utils/rangetypes.h"
#if PG_VERSION_NUM < 160000
#define make_range(typcache, lower, upper, empty, escontext) \
	make_range(typcache, lower, upper, empty)
#endif

/* flatten_join_alias_vars() takes the planner's state from 16 on; NULL in a parse tree. */
#include "optimizer/optimizer.h"
#if PG_VERSION_NUM < 160000
#define flatten_join_alias_vars(root, query, node) flatten_join_alias_vars(query, node)
#endif

/* 18 has a range table entry for grouping expressions: put them back in place of its columns. */
#if PG_VERSION_NUM >= 180000
#define QueryHasGroupRTE(query) ((query)->hasGroupRTE)
#define RTEIsGroup(rte) ((rte)->rtekind == RTE_GROUP)
#define QueryClearGroupRTE(query) ((query)->hasGroupRTE = false)
#else
#define QueryHasGroupRTE(query) false
#define RTEIsGroup(rte) false
#define QueryClearGroupRTE(query) ((void) 0)
#define flatten_group_exprs(root, query, node) (node)
#endif

/* Virtual generated columns came with 18. */
#if PG_VERSION_NUM >= 180000
#define HasGeneratedVirtual(constr) ((constr)->has_generated_virtual)
#else
#define HasGeneratedVirtual(constr) false
#endif

/* Input functions report bad values softly from 16 on. Before, they throw: whoever calls has to catch. */
#if PG_VERSION_NUM >= 160000
#include "nodes/miscnodes.h"
#else
#define T_ErrorSaveContext T_Invalid
typedef struct ErrorSaveContext
{
	NodeTag		type;
	bool		error_occurred;
	bool		details_wanted;
	ErrorData  *error_data;
} ErrorSaveContext;

static inline bool
InputFunctionCallSafe(FmgrInfo *flinfo, char *str, Oid typioparam, int32 typmod,
					  Node *escontext, Datum *result)
{
	*result = InputFunctionCall(flinfo, str, typioparam, typmod);
	return true;
}
#endif

/* The executor: arguments came and went. The map to a partition's row is made on demand from 16 on. */
#include "executor/executor.h"
#if PG_VERSION_NUM < 180000
#define ExecutorRun(query, direction, count) ExecutorRun(query, direction, count, true)
#endif
#if PG_VERSION_NUM < 160000
#define ExecInsertIndexTuples(info, slot, estate, update, no_dup_err, conflict, arbiters, only_summarizing) \
	ExecInsertIndexTuples(info, slot, estate, update, no_dup_err, conflict, arbiters)
#define ExecGetRootToChildMap(info, estate) ((info)->ri_RootToPartitionMap)
#endif

#endif							/* HYBRIDIOT_COMPAT_H */
