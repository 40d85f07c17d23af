/*
 * rollup_state.h
 *		What a windowed pipeline keeps in memory; for rollup*.c only.
 */
#ifndef HYBRIDIOT_ROLLUP_STATE_H
#define HYBRIDIOT_ROLLUP_STATE_H

#include "core/catalog_window.h"
#include "pipeline/group.h"
#include "pipeline/rollup.h"
#include "pipeline/rollup_compile.h"

/* A record of the batch as time sees it, before the statement's WHERE is asked. */
typedef struct RecordPlace
{
	bool		delivered;		/* its rows go to windows */
	bool		noted;			/* a dead letter says that it was late */
	bool		fed;			/* the feed had a row of it, */
	bool		taken;			/* which went to a window */
	bool		maybe_late;		/* for one of its windows at least */
	TimestampTz first;			/* starts of its windows, tumbling and hopping ones */
	TimestampTz last;
	RowTime		when;
	TimestampTz watermark;		/* when it came; if maybe_late */
} RecordPlace;

struct Rollup
{
	MemoryContext context;
	RollupPlan *plan;
	SPIPlanPtr	feed;
	SPIPlanPtr	finish;
	SPIPlanPtr	prune;			/* NULL: nothing ever has to go */
	SPIPlanPtr	retract;		/* NULL: windows do not change */
	GroupSet   *groups;
	char	   *layout;			/* as it would be stored now */
	bool		layout_stored;
	bool		layout_differs;	/* another one is stored */
	TupleDesc	keys;			/* of group keys without the window, for dead letters */
	RecordPlace *places;		/* one for each record of the batch */
	MemoryContext encode_context;	/* what a send function returns has a kilobyte at least: too much for rows that wait */

	TimestampTz begin;			/* windows that begin before it are left out */

	/* as of the last checkpoint */
	TimestampTz watermark;
	TimestampTz closed;			/* windows that are over at this time have been written */
	TimestampTz kept_after;		/* states of windows that were over later are kept */
	bool		expire_due;		/* there may be states that are kept no longer */

	/* dead letters since the last checkpoint */
	MemoryContext letters_context;
	DeadLetter *letters;
	int			nletters;
	int			letters_size;
	int			nlate;			/* of them: late pairs */
	int			nfailed;		/* of them: finished rows */

	int			rows_failed;	/* finished rows in a row that could not be written */
};

/*
 * Without its groups, and as one that writes rows again, whatever emit says: for who works on groups of closed windows,
 * or loads the open ones himself.
 */
extern Rollup *RollupOpenEmpty(Pipeline *pipeline);
/* Groups as of the last checkpoint into rollup->groups, which is empty. */
extern void RollupLoadGroups(Rollup *rollup, const PipelineDefinition *def);
/*
 * The windows of a record at this time: where they begin, and *over, when the first of them is over. False: it has none.
 */
extern bool RollupPlaceRecord(Rollup *rollup, RecordPlace *place, TimestampTz time, TimestampTz *over);
/* Run the feed over records [first, last), each into what rollup->places says, as the owner; memory is not transactional. */
extern void RollupFeed(Pipeline *pipeline, StreamBatch *batch, int first, int last);
/* ereport 55000 when there are more groups than max_groups allows. */
extern void RollupCheckMaxGroups(Pipeline *pipeline);

/* Group keys as a jsonb object, in the current memory context. */
extern Datum RollupKeysAsJson(Rollup *rollup, const NullableDatum *keys);
/* A dead letter to be filled, with nothing set but its times; texts belong in letters_context. */
extern DeadLetter *RollupAddLetter(Rollup *rollup, DeadReason reason);
/* SPI's text of a saved plan's statement, by whose address its scans are known. */
extern const char *RollupPlanText(SPIPlanPtr plan);

/* ---- rollup_checkpoint.c ---- */

/* A group as it is stored; over_at as in the row. The caller is the owner. */
extern void RollupGroupRow(Rollup *rollup, const WindowGroup *group, bool closed, TimestampTz over_at, WindowGroupRow *row);
/* Store the layout, if it is not, before states are stored that go by it. */
extern void RollupStoreLayout(Rollup *rollup, const PipelineDefinition *def);
/* The watermark as it would be at this clock. */
extern TimestampTz RollupWatermark(Pipeline *pipeline, TimestampTz now);

/* ---- rollup_emit.c ---- */

/* What became of a group whose row was to be written. */
typedef enum EmitResult
{
	EMIT_LEFT,					/* not tried: this transaction holds enough savepoints */
	EMIT_WRITTEN,
	EMIT_FAILED					/* its row fails by itself */
} EmitResult;

typedef struct Emission
{
	WindowGroup *group;
	EmitResult	result;
	int			sqlstate;		/* of a failure */
	char	   *message;
} Emission;

/*
 * Write rows of these groups through the statement, as the owner, in
 * subtransactions of the caller's transaction; *rows grows by what the statement
 * wrote. Throws what is no fault of a row. Messages are in the current memory context.
 */
extern void RollupEmit(Pipeline *pipeline, Emission *emissions, int n, uint64 *rows);
/* Delete rows of sessions under bounds that they have no more, as the owner; returns how many. */
extern uint64 RollupRetract(Pipeline *pipeline, Emission *emissions, int n);

#endif							/* HYBRIDIOT_ROLLUP_STATE_H */
