/*
 * catalog_held.c
 *		Rows of the journal that a session has locked.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/uuid.h"

#include "core/catalog_command.h"

int
CatalogHeldCommands(const pg_uuid_t *ids, int n, pg_uuid_t *held)
{
	static CatalogQuery query = {
		.sql = "WITH free AS MATERIALIZED ("
		" SELECT id FROM hybridiot.command WHERE id = ANY($1) FOR NO KEY UPDATE SKIP LOCKED)"
		" SELECT id FROM hybridiot.command WHERE id = ANY($1) AND id NOT IN (SELECT id FROM free)",
		.nargs = 1,.argtypes = {UUIDARRAYOID}
	};
	Datum	   *elements = palloc(sizeof(Datum) * n);
	Datum		array;
	bool		isnull;
	int			nheld;

	for (int i = 0; i < n; i++)
		elements[i] = UUIDPGetDatum(&ids[i]);
	array = PointerGetDatum(construct_array(elements, n, UUIDOID, UUID_LEN, false, TYPALIGN_CHAR));
	nheld = (int) CatalogExecute(&query, &array, NULL, 0);
	for (int i = 0; i < nheld; i++)
		held[i] = *DatumGetUUIDP(CatalogColumn(i, 1, &isnull));
	return nheld;
}
