/*
 * catalog.h
 *		Access to the extension's own tables.
 *
 * Only catalog*.c name those tables. Every access runs as the extension's
 * owner with search_path pg_catalog, so that neither the caller's rights nor
 * his path matter; who may do what is checked by the caller before.
 */
#ifndef HYBRIDIOT_CATALOG_H
#define HYBRIDIOT_CATALOG_H

#include "executor/spi.h"
#include "utils/uuid.h"

#include "core/hybridiot.h"

/* Who we were before CatalogEnter(). */
typedef struct CatalogScope
{
	Oid			userid;
	int			sec_context;
	int			nestlevel;
} CatalogScope;

/* OID of the extension; InvalidOid if it is not there. */
extern Oid	CatalogExtension(void);
/* Version of the extension in this database, palloc'd; NULL if it is not there. The library goes with HYBRIDIOT_VERSION only. */
extern char *CatalogVersion(void);
/* Owner of the extension; ereport 55000 if the extension is not there, or of another version than the library. */
extern Oid	CatalogOwner(void);

/*
 * Become the extension's owner and connect to SPI; needs a transaction and an
 * active snapshot is pushed. On an error the (sub)transaction's abort undoes it all.
 */
extern void CatalogEnter(CatalogScope *scope);
extern void CatalogLeave(CatalogScope *scope);

#define CATALOG_MAX_ARGS 40

/* A statement on our tables: written once, planned once per session. */
typedef struct CatalogQuery
{
	const char *sql;
	int			nargs;
	Oid			argtypes[CATALOG_MAX_ARGS];
	SPIPlanPtr	plan;			/* NULL until first used */
} CatalogQuery;

/*
 * Run it inside CatalogEnter()/CatalogLeave(). nulls as in SPI_execute_plan (NULL: none
 * is null). Returns SPI_processed; rows are in SPI_tuptable. ereport XX000 when SPI says no.
 */
extern uint64 CatalogExecute(CatalogQuery *query, Datum *values, const char *nulls, long limit);

/* The same for a SELECT; it sees what is committed now, whatever the transaction's snapshot. */
extern uint64 CatalogReadNow(CatalogQuery *query, Datum *values);

/* CatalogEnter(), the statement, CatalogLeave(): for those of which only the number of rows matters. */
extern uint64 CatalogRun(CatalogQuery *query, Datum *values, const char *nulls);

/* An int8[], in the current memory context. */
extern Datum CatalogIdArray(const int64 *ids, int n);
/* A uuid[], likewise. */
extern Datum CatalogUuidArray(const pg_uuid_t *ids, int n);

/* Column of the current SPI_tuptable by 1-based number; by-reference results live in SPI's context. */
extern Datum CatalogColumn(uint64 row, int column, bool *isnull);
/* The same as a string copied into context; NULL for null. */
extern char *CatalogString(uint64 row, int column, MemoryContext context);

/*
 * A pipeline as it is stored. Strings belong to the context given when it was
 * read.
 */
typedef struct PipelineOptions
{
	char	   *start_at;
	int64		lateness_us;
	bool		emit_changes;
	int64		idle_timeout_us;	/* 0: silence never closes a window */
	int			batch_rows;
	int64		batch_delay_us;
	int64		checkpoint_us;
	int			workers;
	int			max_groups;
	int			max_errors;
	bool		stop_on_error;
	int64		keep_closed_us;
	char	   *notify;			/* NULL: none */
} PipelineOptions;

typedef struct PipelineDefinition
{
	int32		id;
	char	   *name;
	Oid			owner;
	char	   *owner_name;
	PipelineKind kind;
	char	   *statement;		/* as typed */
	char	   *query;			/* fully qualified */
	Oid			stream;			/* the foreign table it reads */
	bool		enabled;
	char	   *failure;		/* why it stopped itself; NULL: it did not */
	int32		seeks;			/* how often positions or groups were set by others than its worker */
	PipelineOptions options;
} PipelineDefinition;

/* One partition's place, as stored. */
typedef struct PositionRow
{
	char	   *topic;
	int32		partition;
	int64		next_offset;
	int64		end_offset;		/* -1: not known */
	TimestampTz stream_time;	/* DT_NOBEGIN: no record seen */
	TimestampTz last_record_at; /* clock when the last record was read; DT_NOBEGIN */
	bool		idle;
	RecordMark	last;			/* the last record applied */
	char	   *topic_id;		/* NULL: not known */
} PositionRow;

/* A position's move, for the compare-and-set. */
typedef struct PositionMove
{
	PositionRow row;			/* what it becomes */
	int64		old_offset;		/* what it must be now */
} PositionMove;

extern PipelineDefinition *CatalogReadPipeline(int32 id, MemoryContext context);	/* NULL if gone */
/* lock: the row is locked against a second change until the end of the transaction. NULL if there is none. */
extern PipelineDefinition *CatalogReadPipelineByName(const char *name, bool lock, MemoryContext context);
/* Sets def->id. 42710 if the name is taken. */
extern void CatalogInsertPipeline(PipelineDefinition *def);
extern void CatalogUpdatePipeline(PipelineDefinition *def);
/* With its positions, dead letters and groups; returns how many dead letters went. */
extern uint64 CatalogDeletePipeline(int32 id);
extern void CatalogSetEnabled(int32 id, bool enabled);	/* also clears the failure */
/* False if the pipeline was sent elsewhere since it had that count of seeks (-1: never mind), or is gone. */
extern bool CatalogSetFailure(int32 id, int32 seeks, const char *reason);
/* Lock the definition in share mode until the transaction ends; false if the pipeline was sought or dropped meanwhile. */
extern bool CatalogLockPipeline(const PipelineDefinition *def);

extern PositionRow *CatalogReadPositions(int32 id, MemoryContext context, int *n);
/*
 * Positions, event time and groups: the pipeline begins anew at its start_at. Dead letters of a windowed one stay, with
 * cause 'seek': they are not tried again.
 */
extern void CatalogForgetProgress(int32 id);
/* Whatever a worker has in memory is not to be stored any more: it loads anew what is in the tables. Raises def->seeks. */
extern void CatalogFence(PipelineDefinition *def);
/*
 * Add positions (topic, partition, next_offset) to those that are there already, which stay as they are. False if
 * the pipeline was sought meanwhile: the definition's count is compared and locked.
 */
extern bool CatalogAddPositions(const PipelineDefinition *def, const PositionRow *rows, int n);
/* Set positions that are there to other offsets, with nothing known of what was read before them. */
extern void CatalogResetPositions(int32 id, const PositionRow *rows, int n);
/* Note that positions are set by hand, and by whom; previous: jsonb, or 0. Raises def->seeks. */
extern void CatalogRecordSeek(PipelineDefinition *def, const char *role, const char *position, Datum previous);
/* Compare-and-set all of them; false if one was not what it must be (nothing is said of the others: abort). */
extern bool CatalogMovePositions(const PipelineDefinition *def, const PositionMove *moves, int n);

/* Records set aside in a row, as the last commit of a worker of the pipeline left it. */
extern int	CatalogReadErrorsInRow(int32 id, int member);
extern void CatalogWriteErrorsInRow(int32 id, int member, int in_row);

/* Event time of a windowed pipeline; DT_NOBEGIN: none yet. */
typedef struct WindowProgress
{
	TimestampTz watermark;
	TimestampTz closed_before;	/* windows that were over by then are final */
	TimestampTz kept_after;		/* states of those that were over later are kept */
} WindowProgress;

/* In the same transaction as rows and positions. */
extern void CatalogReadProgress(int32 id, WindowProgress *progress);
extern void CatalogWriteProgress(int32 id, const WindowProgress *progress);

/* Is there any server of the AMQP wrapper in this database? In a transaction. */
extern bool CatalogHasAmqpServer(void);

/* ids, in order, of all pipelines whose owner's rights the role has. */
extern int32 *CatalogVisiblePipelines(Oid role, MemoryContext context, int *n);

#endif							/* HYBRIDIOT_CATALOG_H */
