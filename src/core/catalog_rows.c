/*
 * catalog_rows.c
 *		Rows of parameters for statements on our tables: put together one by one, executed many at a time.
 */
#include "postgres.h"

#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

#include "core/catalog_rows.h"

void
Put(Parameters *p, Datum value)
{
	Assert(p->n < CATALOG_MAX_ARGS);
	p->values[p->n] = value;
	p->nulls[p->n++] = ' ';
}

void
PutNull(Parameters *p)
{
	Put(p, (Datum) 0);
	p->nulls[p->n - 1] = 'n';
}

void
PutText(Parameters *p, const char *text)
{
	if (text)
		Put(p, CStringGetTextDatum(text));
	else
		PutNull(p);
}

void
PutName(Parameters *p, const char *text)
{
	Put(p, DirectFunctionCall1(namein, CStringGetDatum(text)));
}

void
PutPointer(Parameters *p, const void *pointer)
{
	if (pointer)
		Put(p, PointerGetDatum(pointer));
	else
		PutNull(p);
}

void
PutTime(Parameters *p, TimestampTz at)
{
	if (at != 0)
		Put(p, TimestampTzGetDatum(at));
	else
		PutNull(p);
}

void
PutInt4(Parameters *p, int32 value, bool known)
{
	if (known)
		Put(p, Int32GetDatum(value));
	else
		PutNull(p);
}

/* So many bytes one statement takes as arrays. */
#define ROW_BYTES_AT_ONCE (16 * 1024 * 1024)

/* Elements of a column of arrays. */
typedef struct ElementType
{
	int16		len;
	bool		byval;
	char		align;
} ElementType;

/* How many of the next rows make a statement: always one, even if it is larger. */
static int
rows_at_once(const ElementType *types, int ncolumns, const Parameters *rows, int n)
{
	Size		bytes = 0;
	int			i;

	for (i = 0; i < Min(n, CATALOG_ROWS_AT_ONCE); i++)
	{
		for (int column = 0; column < ncolumns; column++)
			if (types[column].len == -1 && rows[i].nulls[column] == ' ')
				bytes += VARSIZE_ANY(DatumGetPointer(rows[i].values[column]));
		if (bytes > ROW_BYTES_AT_ONCE && i > 0)
			break;
	}
	return i;
}

static Datum
column_array(const Parameters *rows, int n, int column, Oid type, ElementType element)
{
	Datum	   *values = palloc(sizeof(Datum) * n);
	bool	   *nulls = palloc(sizeof(bool) * n);
	ArrayType  *array;
	int			lower = 1;

	for (int i = 0; i < n; i++)
	{
		values[i] = rows[i].values[column];
		nulls[i] = rows[i].nulls[column] == 'n';
	}
	array = construct_md_array(values, nulls, 1, &n, &lower, type, element.len, element.byval, element.align);
	pfree(values);
	pfree(nulls);
	return PointerGetDatum(array);
}

void
CatalogExecuteRows(CatalogQuery *one, CatalogQuery *many, Parameters *rows, int n, bool each)
{
	ElementType types[CATALOG_MAX_ARGS];
	int			count;

	for (int column = 0; n > 1 && column < one->nargs; column++)
	{
		get_typlenbyvalalign(one->argtypes[column], &types[column].len, &types[column].byval, &types[column].align);
		if (many->plan == NULL)
			many->argtypes[column] = get_array_type(one->argtypes[column]);
	}
	many->nargs = one->nargs;
	for (int i = 0; i < n; i += count)
	{
		Parameters	p = {0};

		count = n == 1 ? 1 : rows_at_once(types, one->nargs, &rows[i], n - i);
		if (count > 1)
		{
			uint64		done;

			for (int column = 0; column < one->nargs; column++)
				Put(&p, column_array(&rows[i], count, column, one->argtypes[column], types[column]));
			done = CatalogExecute(many, p.values, p.nulls, 0);
			for (int column = 0; column < one->nargs; column++)
				pfree(DatumGetPointer(p.values[column]));
			if (!each || done == count)
				continue;
		}
		for (int j = i; j < i + count; j++)
			CatalogExecute(one, rows[j].values, rows[j].nulls, 0);
	}
}
