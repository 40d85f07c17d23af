/*
 * catalog_grant.h
 *		Device grants as rows of hybridiot.device_grant: which roles may command which
 *		devices of a server, by name.
 *
 * None decides who may grant. All of them enter the catalog themselves.
 */
#ifndef HYBRIDIOT_CATALOG_GRANT_H
#define HYBRIDIOT_CATALOG_GRANT_H

#include "core/catalog.h"

typedef struct DeviceGrant
{
	char	   *role;
	char	   *server;
	text	   *pattern;
} DeviceGrant;

/* All there are now, whatever the transaction's snapshot; in context. Returns how many. */
extern int	CatalogReadGrants(DeviceGrant **grants, MemoryContext context);
/* Oid of the table; its relcache entry is invalidated when a row changes. */
extern Oid	CatalogGrantTable(void);
/* One that is there stays. */
extern void CatalogInsertGrant(const char *role, const char *server, const char *pattern);
/* False: there was none. *left: how many the server still has. */
extern bool CatalogDeleteGrant(const char *role, const char *server, const char *pattern, int64 *left);

/*
 * Grants follow a role or server that gets another name, and go with one that is gone, in this database. Nothing happens
 * where there is no table of grants.
 */
extern void CatalogRenameGrants(bool of_server, const char *old_name, const char *new_name);
extern void CatalogForgetGrants(bool of_server, const char *name);
/* All of a role. */
extern void CatalogDropGrants(const char *role);

#endif							/* HYBRIDIOT_CATALOG_GRANT_H */
