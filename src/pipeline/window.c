/*
 * window.c
 *		Which windows a time belongs to, late or not, open or closed.
 *
 * Kafka Streams' rules (windows.md §1, §2). The extension asks the same
 * functions that SQL can call, so a statement typed over a table and the
 * pipeline made of it agree by construction.
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "common/int.h"
#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"
#include "utils/typcache.h"

#include "core/compat.h"
#include "pipeline/window.h"

/* Times and lengths can be added without overflow. */
#define LONGEST_WINDOW (INT64CONST(365250) * USECS_PER_DAY)

PG_FUNCTION_INFO_V1(hybridiot_tumble);
PG_FUNCTION_INFO_V1(hybridiot_hop);
PG_FUNCTION_INFO_V1(hybridiot_slide);
PG_FUNCTION_INFO_V1(hybridiot_session);

static const char *const kind_names[] = {
	[WINDOW_TUMBLE] = "tumble",
	[WINDOW_HOP] = "hop",
	[WINDOW_SLIDE] = "slide",
	[WINDOW_SESSION] = "session"
};

const char *
WindowKindName(WindowKind kind)
{
	Assert(kind != WINDOW_NONE);
	return kind_names[kind];
}

WindowKind
WindowFunctionKind(Oid funcid)
{
	char	   *name;

	if (get_func_namespace(funcid) != get_namespace_oid(HYBRIDIOT_SCHEMA, true))
		return WINDOW_NONE;
	name = get_func_name(funcid);
	for (WindowKind kind = WINDOW_TUMBLE; name != NULL && kind < lengthof(kind_names); kind++)
		if (strcmp(name, kind_names[kind]) == 0)
			return kind;
	return WINDOW_NONE;
}

int64
WindowLength(const Interval *interval, const char *what)
{
	int64		length;

	if (interval->month != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s of windows must not be given in months or years", what),
				 errhint("Months differ in length; use days, which are 24 hours here, or smaller units.")));
	if (pg_mul_s64_overflow((int64) interval->day, USECS_PER_DAY, &length) ||
		pg_add_s64_overflow(length, interval->time, &length))
		ereport(ERROR,
				(errcode(ERRCODE_INTERVAL_FIELD_OVERFLOW),
				 errmsg("%s of windows is out of range", what)));
	if (length <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s of windows must be greater than zero", what)));
	if (length > LONGEST_WINDOW)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s of windows must not be greater than a thousand years", what)));
	return length;
}

void
WindowCheckAdvance(int64 size, int64 advance)
{
	if (advance > size)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("advance of windows must not be greater than their size"),
				 errhint("Records between the windows would belong to none.")));
}

/* Start of the step of this size that holds ts: floor division, also before the origin. */
static TimestampTz
floor_to_step(TimestampTz ts, int64 size, TimestampTz origin)
{
	int64		distance;
	int64		rest;
	TimestampTz start;

	if (TIMESTAMP_NOT_FINITE(ts) || TIMESTAMP_NOT_FINITE(origin) ||
		pg_sub_s64_overflow(ts, origin, &distance))
		goto out_of_range;
	rest = distance % size;
	if (rest < 0)
		rest += size;
	if (pg_sub_s64_overflow(ts, rest, &start) || !IS_VALID_TIMESTAMP(start))
		goto out_of_range;
	return start;

out_of_range:
	ereport(ERROR,
			(errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE),
			 errmsg("the window of this time is out of range")));
}

/* End of a window that begins at start. */
static TimestampTz
window_end(TimestampTz start, int64 size)
{
	TimestampTz end;

	if (pg_add_s64_overflow(start, size, &end) || !IS_VALID_TIMESTAMP(end))
		ereport(ERROR,
				(errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE),
				 errmsg("the window of this time is out of range")));
	return end;
}

/* The first of hopping windows that hold ts is the first to begin after ts − size. */
static TimestampTz
first_hop(TimestampTz ts, int64 size, int64 advance, TimestampTz origin)
{
	return floor_to_step(WindowTimeMinus(ts, size), advance, origin) + advance;
}

void
WindowStarts(const WindowSpec *spec, TimestampTz ts, TimestampTz *first, TimestampTz *last)
{
	*last = floor_to_step(ts, spec->advance, spec->origin);
	*first = spec->kind == WINDOW_TUMBLE ? *last : first_hop(ts, spec->size, spec->advance, spec->origin);
	(void) window_end(*last, spec->size);
}

void
WindowCheckTime(const WindowSpec *spec, TimestampTz ts)
{
	if (TIMESTAMP_NOT_FINITE(ts) || ts - spec->size < MIN_TIMESTAMP || ts + spec->size + spec->over >= END_TIMESTAMP)
		ereport(ERROR,
				(errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE),
				 errmsg("the window of this time is out of range")));
}

void
WindowSpecComplete(WindowSpec *spec)
{
	if (spec->kind == WINDOW_TUMBLE)
		spec->advance = spec->size;
	spec->over = spec->kind == WINDOW_SLIDE ? 1 : spec->kind == WINDOW_SESSION ? spec->size + 1 : 0;
}

char *
WindowSpecText(const WindowSpec *spec)
{
	switch (spec->kind)
	{
		case WINDOW_TUMBLE:
			return psprintf("tumble " INT64_FORMAT " " INT64_FORMAT, spec->size, spec->origin);
		case WINDOW_HOP:
			return psprintf("hop " INT64_FORMAT " " INT64_FORMAT, spec->size, spec->advance);
		default:
			return psprintf("%s " INT64_FORMAT, WindowKindName(spec->kind), spec->size);
	}
}

Datum
WindowRange(TimestampTz start, TimestampTz end, bool includes_end)
{
	TypeCacheEntry *type = lookup_type_cache(TSTZRANGEOID, TYPECACHE_RANGE_INFO);
	RangeBound	lower = {.val = TimestampTzGetDatum(start),.inclusive = true,.lower = true};
	RangeBound	upper = {.val = TimestampTzGetDatum(end),.inclusive = includes_end};

	return RangeTypePGetDatum(make_range(type, &lower, &upper, false, NULL));
}

char *
WindowText(TimestampTz start, TimestampTz end, bool includes_end)
{
	Oid			output;
	bool		varlena;

	getTypeOutputInfo(TSTZRANGEOID, &output, &varlena);
	return OidOutputFunctionCall(output, WindowRange(start, end, includes_end));
}

TimestampTz
WindowTimeMinus(TimestampTz time, int64 us)
{
	TimestampTz result;

	if (TIMESTAMP_NOT_FINITE(time))
		return time;
	if (pg_sub_s64_overflow(time, us, &result) || result < MIN_TIMESTAMP)
		return DT_NOBEGIN;
	return result;
}

TimestampTz
WindowTimePlus(TimestampTz time, int64 us)
{
	TimestampTz result;

	if (TIMESTAMP_NOT_FINITE(time))
		return time;
	if (pg_add_s64_overflow(time, us, &result) || result >= END_TIMESTAMP)
		return END_TIMESTAMP - 1;
	return result;
}

/*
 * Idle: read to its end and silent for the timeout; read to its end and
 * empty: at once, whatever the timeout, for there is nothing it could hold back.
 */
bool
WindowPartitionIdle(const PartitionState *part, int64 idle_timeout, TimestampTz now)
{
	if (!part->at_end)
		return false;
	if (part->stream_time == DT_NOBEGIN)
		return true;
	return idle_timeout > 0 && WindowTimePlus(part->last_record_at, idle_timeout) <= now;
}

/* What silence is measured by, over all partitions. */
typedef struct Silence
{
	bool		all_idle;
	bool		unread;			/* a partition that is not idle has brought nothing yet */
	TimestampTz smallest;		/* stream time of those not idle */
	TimestampTz largest;		/* stream time of all */
	TimestampTz last_record_at;
} Silence;

static Silence
look_at(const PartitionState *parts, int nparts, int64 idle_timeout, TimestampTz now)
{
	Silence		s = {nparts > 0, false, DT_NOEND, DT_NOBEGIN, DT_NOBEGIN};

	for (int i = 0; i < nparts; i++)
	{
		const PartitionState *part = &parts[i];

		s.largest = Max(s.largest, part->stream_time);
		s.last_record_at = Max(s.last_record_at, part->last_record_at);
		if (WindowPartitionIdle(part, idle_timeout, now))
			continue;
		s.all_idle = false;
		if (part->stream_time == DT_NOBEGIN)
			s.unread = true;
		s.smallest = Min(s.smallest, part->stream_time);
	}
	return s;
}

TimestampTz
WindowWatermark(const PartitionState *parts, int nparts, TimestampTz old,
				const WindowSpan *span, const PipelineOptions *options, TimestampTz now)
{
	Silence		s = look_at(parts, nparts, options->idle_timeout_us, now);
	TimestampTz watermark;

	if (s.all_idle)
	{
		/* Silence closes what is open and no more, so that who comes back later with a buffer is not late. */
		if (!span->open || s.largest == DT_NOBEGIN)
			return old;
		watermark = WindowTimePlus(s.largest, Max(now - s.last_record_at, 0));
		watermark = Min(watermark, WindowTimePlus(span->latest_over, options->lateness_us));
	}
	else if (s.unread || nparts == 0)
		return old;
	else
		watermark = s.smallest;
	return Max(old, watermark);
}

TimestampTz
WindowNextDeadline(const PartitionState *parts, int nparts, const WindowSpan *span,
				   const PipelineOptions *options, TimestampTz now)
{
	Silence		s = look_at(parts, nparts, options->idle_timeout_us, now);
	TimestampTz deadline = DT_NOEND;

	for (int i = 0; i < nparts; i++)
		if (parts[i].at_end && options->idle_timeout_us > 0 &&
			!WindowPartitionIdle(&parts[i], options->idle_timeout_us, now))
			deadline = Min(deadline, WindowTimePlus(parts[i].last_record_at, options->idle_timeout_us));

	if (s.all_idle && span->open && s.largest != DT_NOBEGIN)
	{
		TimestampTz needed = WindowTimePlus(span->earliest_over, options->lateness_us);

		deadline = Min(deadline, WindowTimePlus(s.last_record_at, Max(needed - s.largest, 0)));
	}
	return deadline;
}

/* tumble(ts timestamptz, size interval, origin timestamptz) RETURNS tstzrange */
Datum
hybridiot_tumble(PG_FUNCTION_ARGS)
{
	int64		size = WindowLength(PG_GETARG_INTERVAL_P(1), "size");
	TimestampTz start = floor_to_step(PG_GETARG_TIMESTAMPTZ(0), size, PG_GETARG_TIMESTAMPTZ(2));

	PG_RETURN_DATUM(WindowRange(start, window_end(start, size), false));
}

/* Where a call of hop() stands: the windows still to be returned begin at next, last the last. */
typedef struct HopState
{
	TimestampTz next;
	TimestampTz last;
	int64		size;
	int64		advance;
} HopState;

/* hop(ts timestamptz, size interval, advance interval) RETURNS SETOF tstzrange */
Datum
hybridiot_hop(PG_FUNCTION_ARGS)
{
	FuncCallContext *funcctx;
	HopState   *hop;

	if (SRF_IS_FIRSTCALL())
	{
		TimestampTz ts = PG_GETARG_TIMESTAMPTZ(0);
		int64		size = WindowLength(PG_GETARG_INTERVAL_P(1), "size");
		int64		advance = WindowLength(PG_GETARG_INTERVAL_P(2), "advance");
		TimestampTz epoch = SetEpochTimestamp();

		WindowCheckAdvance(size, advance);
		funcctx = SRF_FIRSTCALL_INIT();
		hop = MemoryContextAlloc(funcctx->multi_call_memory_ctx, sizeof(HopState));
		hop->size = size;
		hop->advance = advance;
		hop->last = floor_to_step(ts, advance, epoch);
		hop->next = first_hop(ts, size, advance, epoch);
		funcctx->user_fctx = hop;
	}
	funcctx = SRF_PERCALL_SETUP();
	hop = funcctx->user_fctx;
	if (hop->next <= hop->last)
	{
		TimestampTz start = hop->next;

		hop->next += hop->advance;
		SRF_RETURN_NEXT(funcctx, WindowRange(start, window_end(start, hop->size), false));
	}
	SRF_RETURN_DONE(funcctx);
}

/* Which records share such a window depends on the records around them, so a function of one time cannot tell. */
static void
only_in_pipelines(const char *name)
{
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("%s() has a meaning in a pipeline only", name),
			 errhint("Outside a pipeline use hybridiot.tumble() or hybridiot.hop(), or a window function of SQL.")));
}

/* slide(ts timestamptz, size interval) RETURNS tstzrange */
Datum
hybridiot_slide(PG_FUNCTION_ARGS)
{
	only_in_pipelines("slide");
	PG_RETURN_NULL();
}

/* session(ts timestamptz, gap interval) RETURNS tstzrange */
Datum
hybridiot_session(PG_FUNCTION_ARGS)
{
	only_in_pipelines("session");
	PG_RETURN_NULL();
}
