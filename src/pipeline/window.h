/*
 * window.h
 *		Which windows a time belongs to, late or not, open or closed (windows.md §1, §2).
 *
 * Pure arithmetic on microseconds: no I/O, no memory, nothing remembered.
 * Times are TimestampTz; DT_NOBEGIN stands for "none yet".
 */
#ifndef HYBRIDIOT_WINDOW_H
#define HYBRIDIOT_WINDOW_H

#include "pipeline/pipeline.h"

typedef enum WindowKind
{
	WINDOW_NONE,				/* not a window function of ours */
	WINDOW_TUMBLE,
	WINDOW_HOP,
	WINDOW_SLIDE,
	WINDOW_SESSION
} WindowKind;

/* What kind of windows an SQL function stands for. */
extern WindowKind WindowFunctionKind(Oid funcid);

/* The tumbling windows of a pipeline: [origin + n·size, origin + (n+1)·size). */
typedef struct WindowSpec
{
	int64		size;			/* > 0 */
	TimestampTz origin;
} WindowSpec;

/*
 * Length of an interval that sizes windows; a day is 24 hours. ereport 22023 for
 * months and years, and for what is not positive. what: its name in the message.
 */
extern int64 WindowLength(const Interval *interval, const char *what);

/* Start of the window that holds ts; ereport 22008 when it or its end is out of range. */
extern TimestampTz WindowStart(const WindowSpec *spec, TimestampTz ts);

/* [start, end) as a tstzrange, palloc'd. */
extern Datum WindowRange(TimestampTz start, TimestampTz end);

/* time − us and time + us that stay in range and leave DT_NOBEGIN alone. */
extern TimestampTz WindowTimeMinus(TimestampTz time, int64 us);
extern TimestampTz WindowTimePlus(TimestampTz time, int64 us);

/* A record counts in a window iff the window is not over for its own partition: T = stream time − lateness. */
static inline bool
WindowCounts(TimestampTz end, TimestampTz t)
{
	return end > t;
}

/* A window closes when W = watermark − lateness reaches its end. */
static inline bool
WindowCloses(TimestampTz end, TimestampTz w)
{
	return w >= end;
}

/* What is open, as far as time has to know. */
typedef struct WindowSpan
{
	bool		open;			/* any window at all */
	TimestampTz earliest_end;
	TimestampTz latest_end;
} WindowSpan;

/* Is this partition left out of the watermark at this clock? */
extern bool WindowPartitionIdle(const PartitionState *part, int64 idle_timeout, TimestampTz now);

/* The watermark at this clock; never before old. */
extern TimestampTz WindowWatermark(const PartitionState *parts, int nparts, TimestampTz old,
								   const WindowSpan *span, const PipelineOptions *options, TimestampTz now);

/* The next clock at which silence alone makes a partition idle or closes a window; DT_NOEND: never. */
extern TimestampTz WindowNextDeadline(const PartitionState *parts, int nparts, const WindowSpan *span,
									  const PipelineOptions *options, TimestampTz now);

#endif							/* HYBRIDIOT_WINDOW_H */
