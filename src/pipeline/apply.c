/*
 * apply.c
 *		Run a batch through a pipeline's statement; find the bad record.
 *
 * Called in an open transaction (of a worker) or subtransaction (of a session),
 * which the caller ends. The statement runs over pieces of the batch, the first of which is all of it
 * as long as nothing fails, each in a subtransaction of its own. When a piece fails for a
 * reason that lies in a record, smaller ones are tried (see Search). A record is bad only if it
 * fails alone, with all before it applied: it may need what an earlier one of its
 * batch wrote. Pieces go in log order, so what is applied is always a prefix of
 * the batch, and its dead letters and positions go into the same transaction. Errors that do not lie in a record are
 * thrown on.
 */
#include "postgres.h"

#include <math.h>

#include "access/xact.h"
#include "commands/trigger.h"
#include "common/hashfn.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "nodes/parsenodes.h"
#include "utils/memutils.h"
#include "utils/plancache.h"
#include "utils/resowner.h"

#include "core/compat.h"
#include "pipeline/bulk.h"
#include "pipeline/latest.h"
#include "pipeline/letters.h"
#include "pipeline/pipeline.h"

/* Of 64 subtransactions that PostgreSQL keeps at hand per transaction. */
#define MAX_SAVEPOINTS 50

void
ApplyConstraintsImmediate(void)
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

static uint64
execute(Pipeline *pipeline)
{
	uint64		written;
	int			rc;

	if (hybridiot_bulk_insert && BulkExecute(pipeline->bulk, pipeline->plan, &written))
		return written;
	rc = SPI_execute_plan(pipeline->plan, NULL, NULL, false, 0);
	if (rc < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not run the statement: %s", SPI_result_code_string(rc))));
	return SPI_processed;
}

static void
run_statement(Pipeline *pipeline, int first, int last, uint64 *rows)
{
	StreamBatch *batch = pipeline->batch;
	RoleScope	scope;
	int			runs;

	RoleEnter(&scope, pipeline->def->owner);
	ApplyConstraintsImmediate();
	if (SPI_connect() != SPI_OK_CONNECT)
		ereport(ERROR, (errcode(ERRCODE_INTERNAL_ERROR), errmsg("could not connect to SPI")));
	InPipeline = true;
	runs = LatestBegin(pipeline->latest, pipeline->plan, batch, first, last);
	for (int run = 0; run < runs; run++)
	{
		if (run > 0)
			LatestSecond(pipeline->latest, batch, first, last);
		BatchExpose(batch, first, last, statement_text(pipeline));
		*rows += execute(pipeline);
	}
	InPipeline = false;
	BatchExpose(NULL, 0, 0, NULL);
	if (pipeline->latest)
		LatestEnd(batch, first, last);
	SPI_finish();
	RoleLeave(&scope);
}

/*
 * Run records [first, last) in a subtransaction. Returns NULL when all went in,
 * else the error, with nothing of it left but the batch's delivered and deliveries.
 */
static ErrorData *
try_range(Pipeline *pipeline, int first, int last, uint64 *rows)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	ErrorData  *volatile error = NULL;
	uint64		before = *rows;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		StatementTimerBegin();
		run_statement(pipeline, first, last, rows);
		StatementTimerEnd();
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		StatementTimerEnd();
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		InPipeline = false;
		ExposedBatch = NULL;
		if (pipeline->latest)
			LatestEnd(pipeline->batch, first, last);
		*rows = before;
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return error;
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

/* Of a compacted stream only the newest record of each key is delivered, of those that are tried at once. */
static void
skip_older(StreamBatch *batch, int first, int last)
{
	keys_hash  *hash = keys_create(batch->context, 256, NULL);

	hashed_batch = batch;
	for (int i = last - 1; i >= first; i--)
	{
		bool		found = false;

		if (batch->status[i] == RECORD_GOOD && batch->records[i].key_len >= 0)
			(void) keys_insert(hash, i, &found);
		batch->skip[i] = found;
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

/*
 * What a search knows. Two ways lead to a bad record. As long as the record that
 * the scan delivered last is a true guess (the plan pulls records in order, and the error is raised at
 * the row), it is the suspect: those before it are run, then it alone. Otherwise
 * (a sort, a hash table, AFTER triggers, deferred constraints) a piece that failed is halved until one record is left.
 *
 * How much is tried at once follows from how far apart failures have been: what
 * a failed piece wastes and what its start costs are to be about equal.
 */
typedef struct Search
{
	int			suspect;		/* to be run alone, once those before it are in; -1: none */
	bool		alone;			/* else it only has to be the first of its piece */
	int			failed_end;		/* [pos, failed_end) is known to fail as a whole; 0: nothing is */
	int			savepoints;
} Search;

/* A piece that is started costs about as much as so many rows. */
#define START_IN_ROWS 50

static int
chunk_size(Pipeline *pipeline)
{
	double		gap = Max(pipeline->failure_gap, pipeline->since_failure);

	if (gap >= pipeline->batch->capacity)
		return pipeline->batch->capacity;
	/* With a true guess half a chunk is wasted at most once per failure; halving wastes about two. */
	return (int) Max(pipeline->halving ? gap : sqrt(2 * START_IN_ROWS * gap), 1);
}

/* Where the next piece from pos ends. */
static int
piece_end(Pipeline *pipeline, const Search *search, int pos, int last)
{
	int			end = Min(last, pos + Min(chunk_size(pipeline), last - pos));

	if (search->suspect == pos && search->alone)
		return pos + 1;
	if (search->suspect > pos)
		end = Min(last, search->suspect);
	else if (search->failed_end > pos)
		end = pos + Max((search->failed_end - pos) / 2, 1);
	if (pipeline->is_merge && !pipeline->stream->compacted)
		end = first_repeated_key(pipeline->batch, pos, end);
	return end;
}

/* First and last record that the scan may deliver of a piece; false: there is none. */
static bool
good_range(StreamBatch *batch, int pos, int end, int *first, int *last)
{
	*first = -1;
	for (int i = pos; i < end; i++)
		if (batch->status[i] == RECORD_GOOD && !batch->skip[i])
		{
			if (*first < 0)
				*first = i;
			*last = i;
		}
	return *first >= 0;
}

static void
note_failure(Pipeline *pipeline)
{
	pipeline->failure_gap = (Min(pipeline->failure_gap, pipeline->batch->capacity) + pipeline->since_failure) / 2;
	pipeline->since_failure = 0;
}

/* A piece [pos, end) failed with an error that may lie in a record: what to try next. */
static void
after_failure(Pipeline *pipeline, Search *search, int pos, int end, ErrorData *error)
{
	StreamBatch *batch = pipeline->batch;
	int			first = pos;
	int			last = end - 1;

	(void) good_range(batch, pos, end, &first, &last);

	/* It was alone, or the executor saw no other one: then all would have been the same, had it been alone. */
	if (first == last || (batch->deliveries == 1 && batch->delivered == first))
	{
		RejectRecord(pipeline, first, error);
		note_failure(pipeline);
		search->suspect = -1;
		search->failed_end = 0;
		return;
	}

	/* Everything was delivered: that tells nothing. Those before the suspect failed: it told nothing. */
	if (search->suspect > pos)
		pipeline->guess_fails = true;
	if (!pipeline->guess_fails && batch->delivered < last && batch->delivered >= first)
	{
		search->suspect = batch->delivered;
		/* One that is first and came more than once hits itself: alone, it shows. */
		search->alone = ErrorClassify(error->sqlerrcode) != ERROR_SPLIT || batch->delivered == first;
		search->failed_end = 0;
		pipeline->halving = false;
		return;
	}
	search->suspect = -1;
	search->failed_end = end;
	pipeline->halving = true;
}

/* All up to pos is applied or set aside. */
static void
after_success(Pipeline *pipeline, Search *search, int pos, int end)
{
	pipeline->since_failure += end - pos;

	/* It failed only for want of its predecessors, which are in. */
	if (search->suspect >= 0 && search->suspect < end)
	{
		search->suspect = -1;
		note_failure(pipeline);
	}
	if (search->failed_end <= end)
		search->failed_end = 0;
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
	BatchDecode(pipeline->batch, 0, PipelineWallClock(pipeline));
	InPipeline = false;
	RoleLeave(&scope);
}

/* Which of the good records in [pos, end) need not be delivered when these are run at once. */
static void
choose_records(Pipeline *pipeline, int pos, int end)
{
	if (pipeline->stream->compacted)
		skip_older(pipeline->batch, pos, end);
}

int
SearchBatch(Pipeline *pipeline, int first, bool judged, uint64 *rows)
{
	StreamBatch *batch = pipeline->batch;
	int			last = batch->nrecords;
	int			pos = first;
	Search		search = {.suspect = -1};

	while (pos < last && (search.savepoints < MAX_SAVEPOINTS || pos == first))
	{
		int			end = piece_end(pipeline, &search, pos, last);
		int			unused;
		ErrorData  *error = NULL;

		if (judged)
		{
			int			stop = FirstRecordTooMany(pipeline, pos, end);

			/* What comes before it is kept; the next call finds it at its beginning. */
			if (stop == pos && pos > first)
				break;
			if (stop == pos)
				StopAtRecord(pipeline, pos);
			end = stop;
		}
		choose_records(pipeline, pos, end);
		if (good_range(batch, pos, end, &unused, &unused))
		{
			error = try_range(pipeline, pos, end, rows);
			search.savepoints++;
		}
		if (error == NULL)
		{
			after_success(pipeline, &search, pos, end);
			if (judged)
				CountErrorsInRow(pipeline, pos, end);
			pos = end;
			continue;
		}
		switch (ErrorClassify(error->sqlerrcode))
		{
			case ERROR_TRY_AGAIN:
			case ERROR_STOP:
				PipelineRethrow(error);
				break;
			case ERROR_SPLIT:
				if (!LatestWant(pipeline->latest))
					after_failure(pipeline, &search, pos, end, error);
				break;
			case ERROR_BAD_RECORD:
				after_failure(pipeline, &search, pos, end, error);
				break;
		}
		FreeErrorData(error);
	}
	return pos;
}

int
ApplyBatch(Pipeline *pipeline, int first, uint64 *rows)
{
	int			end;

	if (first == 0)
		PipelineDecode(pipeline);
	end = SearchBatch(pipeline, first, true, rows);
	note_times(pipeline, first, end);
	WriteDeadRecords(pipeline, first, end);
	PipelineAdvancePositions(pipeline, first, end);
	PipelineWritePositions(pipeline);
	PipelineNotify(pipeline);
	return end;
}
