/*
 * strain.c
 *		Batches that are too large for their time or memory.
 *
 * A batch that is cancelled (57014, as by statement_timeout) or lacks memory (53200) three times is halved. If it
 * is a single record, the pipeline stops: to try for ever would be to stand still without a word. After a
 * while of smaller batches larger ones are tried. All this is kept while a worker closes the pipeline and opens it again.
 */
#include "postgres.h"

#include "pipeline/strain.h"

#define FAILURES 3				/* until a batch is halved */
#define COMMITS 64				/* until twice as many records are tried */

static int	records;			/* in the transaction that is open, or failed last; 0: none */
static char place[384];			/* of the first of them */
static int	failures;			/* of that kind in a row */
static int	limit;				/* records a batch may have; 0: as configured */
static int	commits;			/* since the limit was set */

void
StrainBegin(Pipeline *pipeline, int first)
{
	const Record *record = &pipeline->batch->records[first];

	records = pipeline->batch->nrecords - first;
	snprintf(place, sizeof(place), "topic \"%s\", partition %d, offset " INT64_FORMAT,
			 pipeline->stream->topics[record->topic], record->partition, record->offset);
}

void
StrainEnd(Pipeline *pipeline)
{
	records = failures = 0;
	if (limit == 0 || ++commits < COMMITS)
		return;
	commits = 0;
	limit = limit < pipeline->batch->capacity / 2 ? limit * 2 : 0;
}

int
StrainLimit(int capacity)
{
	return limit > 0 ? Min(limit, capacity) : capacity;
}

bool
StrainBears(int sqlstate, bool *halved)
{
	*halved = false;
	if ((sqlstate != ERRCODE_QUERY_CANCELED && sqlstate != ERRCODE_OUT_OF_MEMORY) || records == 0 ||
		++failures < FAILURES)
		return true;
	if (records == 1)
		return false;
	limit = records / 2;
	failures = commits = 0;
	*halved = true;
	return true;
}

const char *
StrainPlace(void)
{
	return place;
}
