/*
 * catalog_rows.h
 *		Rows of parameters for statements on our tables.
 */
#ifndef HYBRIDIOT_CATALOG_ROWS_H
#define HYBRIDIOT_CATALOG_ROWS_H

#include "core/catalog.h"

/* So many rows one statement takes, at most. */
#define CATALOG_ROWS_AT_ONCE 500

/* Parameters of a statement as they are put together. */
typedef struct Parameters
{
	int			n;
	Datum		values[CATALOG_MAX_ARGS];
	char		nulls[CATALOG_MAX_ARGS];
} Parameters;

/* The next parameter. Text and names are copied; NULL pointers, and a time of 0, are null. */
extern void Put(Parameters *p, Datum value);
extern void PutNull(Parameters *p);
extern void PutText(Parameters *p, const char *text);
extern void PutName(Parameters *p, const char *text);
extern void PutPointer(Parameters *p, const void *pointer);
extern void PutTime(Parameters *p, TimestampTz at);
/* Null unless known. */
extern void PutInt4(Parameters *p, int32 value, bool known);

/*
 * Run a statement for n rows of parameters: `one' for a row alone, `many', which takes an array in the place of
 * each parameter, for more. What `many' leaves out is done again one by one if each row has to be met.
 */
extern void CatalogExecuteRows(CatalogQuery *one, CatalogQuery *many, Parameters *rows, int n, bool each);

#endif							/* HYBRIDIOT_CATALOG_ROWS_H */
