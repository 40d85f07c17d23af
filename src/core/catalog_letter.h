/*
 * catalog_letter.h
 *		Dead letters as rows.
 */
#ifndef HYBRIDIOT_CATALOG_LETTER_H
#define HYBRIDIOT_CATALOG_LETTER_H

#include "core/catalog.h"

/* A record that is set aside; bytes are copied by nobody, they must live until it is written. */
typedef struct DeadLetter
{
	DeadReason	reason;
	const char *cause;			/* NULL, "idle", "session order" */
	const char *topic;			/* NULL: a finished row without record */
	const Record *record;		/* NULL: likewise */
	TimestampTz window_start;	/* DT_NOBEGIN: no window */
	TimestampTz window_end;
	bool		window_includes_end;
	TimestampTz watermark;		/* DT_NOBEGIN: none */
	Datum		group_keys;		/* jsonb; 0: none */
	int64		group_id;		/* of a finished row: the group that is kept; 0: none */
	int			sqlstate;		/* 0: none */
	const char *message;
} DeadLetter;

extern void CatalogWriteDeadLetters(int32 id, Oid stream, const DeadLetter *letters, int n);

/* A letter to be tried again. */
typedef struct DeadLetterPlace
{
	int64		id;
	int64		bytes;			/* of key and value */
	DeadReason	reason;
	TimestampTz window_start;	/* DT_NOBEGIN: no window */
	TimestampTz window_end;
	bool		window_includes_end;
	int64		group_id;		/* of a finished row; 0: none */
} DeadLetterPlace;

/*
 * The letters of a pipeline from failed_at "since" on (DT_NOBEGIN: all), locked until the
 * transaction ends: those that hold a record, in log order, or those of finished rows. What others have locked is left
 * out, and what a seek has left behind in a windowed pipeline.
 */
extern DeadLetterPlace *CatalogLockDeadLetters(int32 id, TimestampTz since, MemoryContext context, int *n);
extern DeadLetterPlace *CatalogLockRowLetters(int32 id, TimestampTz since, MemoryContext context, int *n);
/* The late ones whose windows share time with the range (a tstzrange), in log order; waits for who has locked them. */
extern DeadLetterPlace *CatalogLockLateLetters(int32 id, Datum during, MemoryContext context, int *n);
/* Their records, in the order of ids, with what they point to in context; topic numbers are left to the caller. */
extern int	CatalogReadDeadLetters(const int64 *ids, int n, MemoryContext context, Record *records, char ***topics);
extern void CatalogDeleteDeadLettersById(const int64 *ids, int n);
/* Those that tell of these groups' rows. */
extern void CatalogDeleteRowLetters(int32 id, const int64 *groups, int n);
/* One more attempt, with the reason, SQLSTATE and message of letters[i] for ids[i]. */
extern void CatalogDeadLettersFailedAgain(const int64 *ids, const DeadLetter *letters, int n);
/* Those that failed before that time ('infinity': all), with the groups that are kept for them. Returns how many. */
extern int64 CatalogDeleteDeadLetters(int32 id, TimestampTz before);

#endif							/* HYBRIDIOT_CATALOG_LETTER_H */
