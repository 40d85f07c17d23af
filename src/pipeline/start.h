/*
 * start.h
 *		Where a pipeline begins to read: the words of start_at.
 */
#ifndef HYBRIDIOT_START_H
#define HYBRIDIOT_START_H

#include "core/hybridiot.h"

typedef enum StartKind
{
	START_EARLIEST,
	START_LATEST,
	START_TIME,
	START_OFFSETS
} StartKind;

typedef struct Start
{
	StartKind	kind;
	TimestampTz time;			/* START_TIME */
	int			noffsets;		/* START_OFFSETS: partitions that are named */
	char	  **topics;			/* NULL: of whichever topic */
	int32	   *partitions;
	int64	   *offsets;
} Start;

/* Parse 'earliest', 'latest', a timestamp, or '{"0": 17, "topic/1": 4}'; ereport 22023. */
extern Start *StartParse(const char *text);
/* Offset a partition is given by START_OFFSETS; -1: it is not named. */
extern int64 StartOffset(const Start *start, const char *topic, int32 partition);

#endif							/* HYBRIDIOT_START_H */
