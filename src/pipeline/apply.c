/*
 * apply.c
 *		Run a batch through a pipeline's statement; find the bad record.
 *
 * Called in an open transaction (of a worker) or subtransaction (of a session),
 * which the caller ends. The statement runs in a subtransaction of its own. When it
 * fails for a reason that lies in a record, the record the scan delivered
 * last is a guess: the ones before it are run, then it alone, and it is bad only if
 * it fails alone. Where the guess fails (a sort, an AFTER trigger) pieces
 * shrink on failure and double on success. Dead letters and positions go into
 * the same transaction. Errors that do not lie in a record are thrown on.
 */
#include "postgres.h"

#include "access/xact.h"
#include "commands/trigger.h"
#include "common/hashfn.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "nodes/parsenodes.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/plancache.h"
#include "utils/resowner.h"

#include "core/compat.h"
#include "pipeline/bulk.h"
#include "pipeline/pipeline.h"

/* Of 64 subtransactions that PostgreSQL keeps at hand per transaction. */
#define MAX_SAVEPOINTS 50

/* Deferred constraints would fire at COMMIT, as somebody else and unattributable. */
static void
constraints_immediate(void)
{
	ConstraintsSetStmt *stmt = makeNode(ConstraintsSetStmt);

	stmt->constraints = NIL;
	stmt->deferred = false;
	AfterTriggerSetState(stmt);
}

static const char *
statement_text(Pipeline *pipeline)
{
	List	   *sources = SPI_plan_get_plan_sources(pipeline->plan);

	return ((CachedPlanSource *) linitial(sources))->query_string;
}

static bool
any_good(StreamBatch *batch, int first, int last)
{
	for (int i = first; i < last; i++)
		if (batch->status[i] == RECORD_GOOD)
			return true;
	return false;
}

static void
run_statement(Pipeline *pipeline, int first, int last, uint64 *rows)
{
	RoleScope	scope;
	uint64		written = 0;

	RoleEnter(&scope, pipeline->def->owner);
	constraints_immediate();
	if (SPI_connect() != SPI_OK_CONNECT)
		ereport(ERROR, (errcode(ERRCODE_INTERNAL_ERROR), errmsg("could not connect to SPI")));
	BatchExpose(pipeline->batch, first, last, statement_text(pipeline));
	InPipeline = true;
	if (!hybridiot_bulk_insert || !BulkExecute(pipeline->bulk, pipeline->plan, &written))
	{
		int			rc = SPI_execute_plan(pipeline->plan, NULL, NULL, false, 0);

		if (rc < 0)
			ereport(ERROR,
					(errcode(ERRCODE_INTERNAL_ERROR),
					 errmsg("could not run the statement: %s", SPI_result_code_string(rc))));
		written = SPI_processed;
	}
	InPipeline = false;
	BatchExpose(NULL, 0, 0, NULL);
	*rows += written;
	SPI_finish();
	RoleLeave(&scope);
}

/*
 * Run records [first, last) in a subtransaction. Returns NULL when all went in,
 * else the error, with nothing of it left but batch->delivered.
 */
static ErrorData *
try_range(Pipeline *pipeline, int first, int last, uint64 *rows)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	ErrorData  *volatile error = NULL;
	uint64		before = *rows;

	if (!any_good(pipeline->batch, first, last))
		return NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		run_statement(pipeline, first, last, rows);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(pipeline->batch->context);
		error = CopyErrorData();
		FlushErrorState();
		InPipeline = false;
		ExposedBatch = NULL;
		*rows = before;
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return error;
}

static void
reject(Pipeline *pipeline, int number, ErrorData *error)
{
	BatchSetError(pipeline->batch, number, RECORD_REJECTED, error->sqlerrcode, error->message);
}

/* ---- what a batch may hold ---- */

typedef struct KeyEntry
{
	int			number;			/* the record that has the key; of the batch being hashed */
	uint32		hash;
	char		status;
} KeyEntry;

static StreamBatch *hashed_batch;

static uint32
key_hash(int number)
{
	const Record *record = &hashed_batch->records[number];

	return record->key_len < 0 ? 0 :
		hash_bytes((const unsigned char *) record->key, record->key_len);
}

static bool
key_equal(int a, int b)
{
	const Record *one = &hashed_batch->records[a];
	const Record *two = &hashed_batch->records[b];

	return one->topic == two->topic && one->key_len == two->key_len &&
		(one->key_len <= 0 || memcmp(one->key, two->key, one->key_len) == 0);
}

#define SH_PREFIX keys
#define SH_ELEMENT_TYPE KeyEntry
#define SH_KEY_TYPE int
#define SH_KEY number
#define SH_HASH_KEY(tb, key) key_hash(key)
#define SH_EQUAL(tb, a, b) key_equal(a, b)
#define SH_STORE_HASH
#define SH_GET_HASH(tb, entry) (entry)->hash
#define SH_SCOPE static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

/* Of a compacted stream only the newest record of each key is delivered. */
static void
supersede_older(StreamBatch *batch, int first)
{
	keys_hash  *hash = keys_create(batch->context, 256, NULL);

	hashed_batch = batch;
	for (int i = batch->nrecords - 1; i >= first; i--)
	{
		bool		found;

		if (batch->status[i] != RECORD_GOOD || batch->records[i].key_len < 0)
			continue;
		(void) keys_insert(hash, i, &found);
		if (found)
			batch->status[i] = RECORD_SUPERSEDED;
	}
	keys_destroy(hash);
}

/*
 * A MERGE looks at the target as it was before the batch: a key that comes
 * twice would be "not matched" twice. So its piece ends before the second one.
 */
static int
first_repeated_key(StreamBatch *batch, int first, int last)
{
	keys_hash  *hash = keys_create(batch->context, 256, NULL);
	int			end = last;

	hashed_batch = batch;
	for (int i = first; i < last; i++)
	{
		bool		found;

		if (batch->status[i] != RECORD_GOOD)
			continue;
		(void) keys_insert(hash, i, &found);
		if (found)
		{
			end = i;
			break;
		}
	}
	keys_destroy(hash);
	return end;
}

/* ---- the search ---- */

typedef struct Search
{
	int			chunk;			/* records to try at once */
	int			alone;			/* suspect to be run by itself; -1: none */
	bool		guessing;		/* the scan's last record is still believed */
	int			savepoints;
} Search;

/* Where the next piece from pos ends. */
static int
piece_end(Pipeline *pipeline, const Search *search, int pos, int last)
{
	int			end = Min(last, pos + search->chunk);

	if (search->alone == pos)
		return pos + 1;
	if (search->alone > pos)
		end = Min(end, search->alone);
	if (pipeline->is_merge && !pipeline->stream->compacted)
		end = first_repeated_key(pipeline->batch, pos, end);
	return end;
}

/* A piece [pos, end) failed with an error that lies in a record: what to try next. Returns the new pos. */
static int
after_failure(Pipeline *pipeline, Search *search, int pos, int end, int last, ErrorData *error)
{
	if (end - pos == 1)
	{
		reject(pipeline, pos, error);
		search->alone = -1;
		if (search->guessing)
			search->chunk = Max(last - end, 1);
		return end;
	}
	if (search->guessing && search->alone < 0)
	{
		search->alone = Min(Max(pipeline->batch->delivered, pos), end - 1);
		return pos;
	}
	search->guessing = false;
	search->alone = -1;
	search->chunk = (end - pos) / 2;
	return pos;
}

static int
after_success(Search *search, int pos, int end, int last)
{
	if (search->alone == pos)
		search->alone = -1;		/* it failed only for want of its predecessors */
	if (search->guessing)
		search->chunk = Max(last - end, 1);
	else
		search->chunk = Min(search->chunk, PG_INT32_MAX / 2) * 2;
	return end;
}

/* Stream times rise with every record whose event time is known, whatever became of it. */
static void
note_times(Pipeline *pipeline, int first, int last)
{
	StreamBatch *batch = pipeline->batch;
	TimestampTz now = PipelineNow(pipeline);

	for (int i = first; i < last; i++)
	{
		PartitionState *part = PipelinePartition(pipeline, &batch->records[i]);

		part->last_record_at = now;
		if (batch->status[i] != RECORD_FUTURE && batch->event_times[i] > part->stream_time)
			part->stream_time = batch->event_times[i];
	}
}

void
PipelineDecode(Pipeline *pipeline)
{
	RoleScope	scope;

	pipeline->batch->delivered = -1;
	RoleEnter(&scope, pipeline->def->owner);
	InPipeline = true;
	BatchDecode(pipeline->batch, 0, PipelineNow(pipeline));
	InPipeline = false;
	RoleLeave(&scope);
}

int
ApplyBatch(Pipeline *pipeline, int first, uint64 *rows)
{
	StreamBatch *batch = pipeline->batch;
	int			last = batch->nrecords;
	int			pos = first;
	Search		search = {.chunk = Max(last - first, 1),.alone = -1,.guessing = true};

	if (first == 0)
	{
		PipelineDecode(pipeline);
		if (pipeline->stream->compacted)
			supersede_older(batch, 0);
	}
	while (pos < last && (search.savepoints < MAX_SAVEPOINTS || pos == first))
	{
		int			end = piece_end(pipeline, &search, pos, last);
		ErrorData  *error = try_range(pipeline, pos, end, rows);

		search.savepoints++;
		if (error == NULL)
			pos = after_success(&search, pos, end, last);
		else
		{
			ErrorClass	class = ErrorClassify(error->sqlerrcode);

			if (class == ERROR_TRY_AGAIN || class == ERROR_STOP)
				PipelineRethrow(error);
			pos = after_failure(pipeline, &search, pos, end, last, error);
		}
	}

	note_times(pipeline, first, pos);
	(void) PipelineWriteDeadRecords(pipeline, first, pos);
	PipelineAdvancePositions(pipeline, first, pos);
	PipelineWritePositions(pipeline);
	PipelineNotify(pipeline);
	return pos;
}
