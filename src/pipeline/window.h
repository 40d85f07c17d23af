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

/*
 * The windows of a pipeline. Tumbling and hopping: [origin + n·advance, origin + n·advance + size). Sliding, session: both ends
 * included; size is the session's gap.
 *
 * A window is over at a time, which decides whether it takes records and when it closes: at its end where that is excluded, a
 * microsecond behind it where not, and for sessions after the gap, too.
 */
typedef struct WindowSpec
{
	WindowKind	kind;
	int64		size;			/* > 0 */
	int64		advance;		/* tumbling: size */
	TimestampTz origin;
	int64		over;			/* from a window's end to when it is over */
} WindowSpec;

/* Fill what follows from kind, size and advance. */
extern void WindowSpecComplete(WindowSpec *spec);
/* As text, for people and to tell whether stored groups are of these windows. */
extern char *WindowSpecText(const WindowSpec *spec);
/* The kind's name in SQL. */
extern const char *WindowKindName(WindowKind kind);

static inline bool
WindowIncludesEnd(const WindowSpec *spec)
{
	return spec->kind == WINDOW_SLIDE || spec->kind == WINDOW_SESSION;
}

/*
 * Length of an interval that sizes windows; a day is 24 hours. ereport 22023 for
 * months and years, and for what is not positive. what: its name in the message.
 */
extern int64 WindowLength(const Interval *interval, const char *what);

/* ereport 22023 when hopping windows leave gaps. */
extern void WindowCheckAdvance(int64 size, int64 advance);

/* Starts of the first and the last tumbling or hopping window that hold ts; ereport 22008 when an end is out of range. */
extern void WindowStarts(const WindowSpec *spec, TimestampTz ts, TimestampTz *first, TimestampTz *last);

/* ereport 22008 when the sliding or session window of ts is out of range. */
extern void WindowCheckTime(const WindowSpec *spec, TimestampTz ts);

/* [start, end) or [start, end] as a tstzrange, palloc'd. */
extern Datum WindowRange(TimestampTz start, TimestampTz end, bool includes_end);

/* The same as text, for messages; palloc'd. */
extern char *WindowText(TimestampTz start, TimestampTz end, bool includes_end);

/* time − us and time + us that stay in range and leave DT_NOBEGIN alone. */
extern TimestampTz WindowTimeMinus(TimestampTz time, int64 us);
extern TimestampTz WindowTimePlus(TimestampTz time, int64 us);

/* A record counts in a window iff the window is not over for its own partition: T = stream time − lateness. */
static inline bool
WindowCounts(TimestampTz over, TimestampTz t)
{
	return over > t;
}

/* A window closes when W = watermark − lateness reaches the time at which it is over. */
static inline bool
WindowCloses(TimestampTz over, TimestampTz w)
{
	return w >= over;
}

/* What is open, as far as time has to know. */
typedef struct WindowSpan
{
	bool		open;			/* any window at all */
	TimestampTz earliest_over;
	TimestampTz latest_over;
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
