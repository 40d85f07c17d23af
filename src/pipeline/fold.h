/*
 * fold.h
 *		Records of dead letters on their way into groups of windows.
 */
#ifndef HYBRIDIOT_FOLD_H
#define HYBRIDIOT_FOLD_H

#include "pipeline/rollup_state.h"

typedef struct Fold
{
	Pipeline   *pipeline;
	Rollup	   *rollup;
	void		(*load) (struct Fold *fold);	/* renew the groups, and load what records may go into */
	bool		closed_windows; /* every record counts in the window of its letter */

	DeadLetterPlace *places;	/* of all letters */
	int			n;
	int			first;			/* those that are taken together: [first, last) */
	int			last;
	bool	   *goes;			/* the letter is not needed any more */
	DeadLetter *failures;		/* of those that stay: why */
	bool	   *fails;			/* the feed fails for it */
	int64		taken;			/* letters whose records are in their groups, or left out by the statement */
	MemoryContext groups_context;

	/* not with closed_windows: */
	PositionRow *positions;
	int			npositions;
	TimestampTz closed;			/* windows that are over at this time are closed */
} Fold;

/* pipeline->rollup is empty; places are those of all letters, in the order in which they are to be taken. */
extern void FoldBegin(Fold *fold, Pipeline *pipeline, DeadLetterPlace *places, int n);

/* No groups, of windows of this kind, and nothing noted of records that went into them. */
extern void FoldRenewGroups(Fold *fold, const WindowSpec *spec);
/* A stored group; the caller is the owner. */
extern void FoldLoadRow(Fold *fold, const WindowGroupRow *row);

/*
 * Take the records of letters [first, last) into groups that load() has loaded; it is called first, and may lower last. What fails by itself is left out. ereport
 * for what is no fault of a record.
 */
extern void FoldRecords(Fold *fold);

/* Why a letter stays. */
extern void FoldNoteFailure(Fold *fold, int letter, RecordStatus status, int sqlstate, const char *message);
/* Letters that are done with go, the others count one more attempt. */
extern void FoldSettle(Fold *fold);

/* Write rows of all these groups, whatever it takes. */
extern void FoldEmit(Pipeline *pipeline, Emission *emissions, int n, uint64 *rows);
/* Store groups of closed windows that were written, if they are to be kept; else they go. */
extern void FoldStoreClosed(Pipeline *pipeline, const Emission *emissions, int n);

#endif							/* HYBRIDIOT_FOLD_H */
