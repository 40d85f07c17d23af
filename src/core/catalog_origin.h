/*
 * catalog_origin.h
 *		Where pipelines come from: what is held in a copy of a database, and who may run.
 *
 * Each pipeline remembers where it was created or resumed last: system id, timeline, database and
 * instance (instance.h). A pipeline that comes from elsewhere does not run until it is resumed;
 * after a promotion that holds only for those that command devices.
 */
#ifndef HYBRIDIOT_CATALOG_ORIGIN_H
#define HYBRIDIOT_CATALOG_ORIGIN_H

#include "core/catalog.h"

/*
 * What this place is, as parameters of a statement: INT8OID, INT4OID, OIDOID, UUIDOID. nulls has ' ' or 'n' for each; the
 * instance is null while it is not known.
 */
#define IDENTITY_TYPES INT8OID, INT4OID, OIDOID, UUIDOID
#define IDENTITY_ARGS 4
extern void CatalogIdentity(Datum *values, char *nulls);

/*
 * Stop pipelines that come from elsewhere (failure 'copied' or 'promoted'), take over those that may
 * go on after a promotion. In a transaction of the manager, before it starts anything; says in the log what it held.
 */
extern void CatalogHoldCopies(void);
/* A pipeline that a manager should have running: enabled, not failed, and at home here. */
typedef struct EnabledPipeline
{
	int32		id;
	char	   *name;
	int			workers;
} EnabledPipeline;

extern EnabledPipeline *CatalogEnabledPipelines(MemoryContext context, int *n);

/* This is where the pipeline runs from now on: it was created or resumed here. */
extern void CatalogTakeOrigin(int32 id);
/*
 * Resume all pipelines that stopped themselves or are held, of owners whose rights the role has. Returns how many; *ids
 * is theirs.
 */
extern int	CatalogResumeAll(Oid role, int32 **ids);

/* Does the pipeline command devices? Written only if it says something else. */
extern void CatalogSetCommanding(int32 id, bool commanding);
extern bool CatalogCommanding(int32 id);

#endif							/* HYBRIDIOT_CATALOG_ORIGIN_H */
