/*
 * catalog_window.h
 *		Groups of windowed pipelines as rows.
 */
#ifndef HYBRIDIOT_CATALOG_WINDOW_H
#define HYBRIDIOT_CATALOG_WINDOW_H

#include "core/catalog.h"

/* A group as it is stored; the bytes are the writer's business. */
typedef struct WindowGroupRow
{
	int64		id;				/* the writer's number, unique in its pipeline */
	TimestampTz start;
	TimestampTz end;
	bytea	   *keys;
	bytea	   *state;
	int64		records;
	bool		closed;			/* the window is over; kept all the same: */
	TimestampTz over_at;		/* for reopening, since then; DT_NOBEGIN: because its row could not be written */
} WindowGroupRow;

/* What the states of a pipeline depend on, as it was stored with them; NULL: nothing is stored. */
extern char *CatalogReadWindowLayout(int32 pipeline, MemoryContext context);
/* kind: name of the windows' function; size in microseconds. */
extern void CatalogWriteWindowLayout(int32 pipeline, const char *layout, const char *kind, int64 size);

/* Largest id of the pipeline's groups, closed ones too; 0: none. */
extern int64 CatalogLastGroup(int32 pipeline);
/* Start of the earliest open window that has groups (sliding: time of the earliest slice); false: there are none. */
extern bool CatalogEarliestOpen(int32 pipeline, TimestampTz *start);
/* The next groups of open windows behind an id, at most limit, in the order of their ids. Rows and bytes in context. */
extern WindowGroupRow *CatalogReadGroups(int32 pipeline, int64 behind, int limit, MemoryContext context, int *n);
/* Insert or replace. */
extern void CatalogWriteGroups(int32 pipeline, const WindowGroupRow *rows, int n);
extern void CatalogDeleteGroups(int32 pipeline, const int64 *ids, int n);

/* Are groups kept for reopening whose windows were over at this time, or before? */
extern bool CatalogKeepsGroups(int32 pipeline, TimestampTz over_at);
/* Forget groups that are kept for reopening of windows that were over by then, at most limit. Returns how many. */
extern int64 CatalogExpireGroups(int32 pipeline, TimestampTz over_at, int64 limit);
/* Forget all groups of closed windows, whatever they are kept for. */
extern void CatalogDeleteClosedGroups(int32 pipeline);
/*
 * Groups of closed windows that share time with [start, end] and were over no later than until, or of open ones; rows and
 * bytes in context.
 */
extern WindowGroupRow *CatalogReadClosedGroups(int32 pipeline, TimestampTz start, TimestampTz end, TimestampTz until,
											   MemoryContext context, int *n);
extern WindowGroupRow *CatalogReadOpenGroups(int32 pipeline, TimestampTz start, TimestampTz end,
											 MemoryContext context, int *n);
/* Those of these ids whose rows could not be written. */
extern WindowGroupRow *CatalogReadFailedGroups(int32 pipeline, const int64 *ids, int nids, MemoryContext context, int *n);
/* Smallest id of the pipeline's groups; 0: none is below. Who is not its worker gives ids below it. */
extern int64 CatalogFirstGroup(int32 pipeline);

#endif							/* HYBRIDIOT_CATALOG_WINDOW_H */
