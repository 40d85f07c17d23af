/*
 * source.h
 *		Where records come from: a Kafka topic, or a table that stands in for one.
 *
 * Both are read the same way: ask for partitions and offsets, assign, poll. A
 * source made of a table runs SPI, inside the caller's transaction or in one of its own when
 * there is none; a Kafka source must be polled outside transactions in
 * workers.
 */
#ifndef HYBRIDIOT_SOURCE_H
#define HYBRIDIOT_SOURCE_H

#include "core/hybridiot.h"
#include "transport/kafka.h"

typedef struct Source Source;

/* How to reach it; made by StreamOpen(), in its context. */
typedef struct SourceConfig
{
	bool		table;			/* transport 'table' */
	char	   *source;			/* then: that table, qualified and quoted */
	Oid			userid;			/* whose rights count */
	Option	   *options;		/* else: librdkafka's properties */
	int			noptions;
	char	  **topics;
	int			ntopics;
} SourceConfig;

extern Source *SourceOpen(const SourceConfig *config);
extern void SourceClose(Source *source);	/* NULL allowed; never throws */
extern int	SourceFd(Source *source);	/* -1: none (a table) */

/*
 * Ask the log. Interruptible; retries inside timeout_ms. ereport 08001/42P01/28000 if it cannot be told.
 */
extern int32 SourceCountPartitions(Source *source, int topic, int timeout_ms);
/* The same without patience: -1 if brokers do not answer now. */
extern int32 SourcePartitionsNow(Source *source, int topic, int timeout_ms);
extern void SourceWatermarks(Source *source, int topic, int32 partition, int timeout_ms, int64 *low, int64 *high);
extern int64 SourceOffsetForTime(Source *source, int topic, int32 partition, TimestampTz when, int timeout_ms);

/* See KafkaTopicId(); a table has none. */
extern char *SourceTopicId(Source *source, int topic, int timeout_ms);

extern void SourceAssign(Source *source, const KafkaPartition *parts, int nparts);
extern const KafkaPartition *SourceAssignment(Source *source, int *nparts);
extern int	SourcePoll(Source *source, Record *records, int max, int timeout_ms);
/* SourcePoll() hands out no more before SourceRelease(): as many bytes are held as a batch may have. */
extern bool SourceIsFull(Source *source);
extern void SourceRelease(Source *source);
extern void SourceDrainFd(Source *source);
extern void SourceLeave(Source *source);	/* before waiting on the descriptor */
extern const char *SourceError(Source *source); /* "" if none */

#endif							/* HYBRIDIOT_SOURCE_H */
