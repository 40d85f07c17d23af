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
	int			sqlstate;		/* 0: none */
	const char *message;
} DeadLetter;

extern void CatalogWriteDeadLetters(int32 id, Oid stream, const DeadLetter *letters, int n);

/* A letter to be tried again. */
typedef struct DeadLetterPlace
{
	int64		id;
	int64		bytes;			/* of key and value */
} DeadLetterPlace;

/*
 * The letters of a pipeline that hold a record, from failed_at "since" on (DT_NOBEGIN: all), in log order, locked until the
 * transaction ends. What others have locked is left out.
 */
extern DeadLetterPlace *CatalogLockDeadLetters(int32 id, TimestampTz since, MemoryContext context, int *n);
/* Their records, in the order of ids, with what they point to in context; topic numbers are left to the caller. */
extern int	CatalogReadDeadLetters(const int64 *ids, int n, MemoryContext context, Record *records, char ***topics);
extern void CatalogDeleteDeadLettersById(const int64 *ids, int n);
/* One more attempt, with the reason, SQLSTATE and message of letters[i] for ids[i]. */
extern void CatalogDeadLettersFailedAgain(const int64 *ids, const DeadLetter *letters, int n);
/* Those that failed before that time ('infinity': all). Returns how many. */
extern int64 CatalogDeleteDeadLetters(int32 id, TimestampTz before);

#endif							/* HYBRIDIOT_CATALOG_LETTER_H */
