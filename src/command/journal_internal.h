/*
 * journal_internal.h
 *		What journal.c, journal_ask.c and claim.c share: the AMQP worker's transactions.
 */
#ifndef HYBRIDIOT_JOURNAL_INTERNAL_H
#define HYBRIDIOT_JOURNAL_INTERNAL_H

#include "core/catalog.h"

extern void JournalBegin(CatalogScope *scope, const char *activity);
/* flush: wait for the disk. */
extern void JournalCommit(CatalogScope *scope, bool flush);
/* In PG_CATCH: say it, undo it. Returns the SQLSTATE; *message (may be NULL) is palloc'd in context. */
extern int	JournalRecover(MemoryContext context, const char *doing, char **message);
/* Now, but behind the event before. */
extern TimestampTz JournalEventTime(void);
/* This life of the worker. */
extern int64 JournalEpoch(void);

#endif							/* HYBRIDIOT_JOURNAL_INTERNAL_H */
