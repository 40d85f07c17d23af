/*
 * kafka.h
 *		What the other rooms may ask of librdkafka. No type of the library
 *		shows here, and nothing here touches SPI or the catalog.
 *
 * All functions are for the main thread of a backend or worker. None throws
 * except where said; a consumer is not tied to a memory context or a
 * transaction, so its owner must call KafkaConsumerDestroy() on every path
 * (PG_FINALLY, before_shmem_exit).
 */
#ifndef HYBRIDIOT_KAFKA_H
#define HYBRIDIOT_KAFKA_H

#include "core/hybridiot.h"

typedef struct KafkaConsumer KafkaConsumer;

typedef enum KafkaResult
{
	KAFKA_OK,
	KAFKA_AGAIN,				/* broker away, time-out: try again later */
	KAFKA_UNKNOWN,				/* no such topic or partition */
	KAFKA_DENIED,				/* authentication or authorization failed */
	KAFKA_BROKEN				/* fatal: this consumer is of no more use */
} KafkaResult;

/* What may be wrong with one partition of the assignment. */
typedef enum KafkaFault
{
	KAFKA_FAULT_NONE,
	KAFKA_FAULT_GAP,			/* the log begins behind, or ends before, our offset */
	KAFKA_FAULT_GONE,			/* topic or partition does not exist any more */
	KAFKA_FAULT_REPLACED,		/* it is not the log any more that was read before */
	KAFKA_FAULT_CORRUPT,		/* CRC or decompression failed, time and again */
	KAFKA_FAULT_TOO_LARGE,		/* a record beyond hybridiot.max_record_size */
	KAFKA_FAULT_DENIED
} KafkaFault;

typedef struct KafkaPartition
{
	int32		topic;			/* index into the topics given at assignment */
	int32		partition;
	int64		next_offset;	/* the next one KafkaConsume() can deliver; past gaps once at_end */
	RecordMark	last;			/* of a record below next_offset, to be found in the log again; kept up to date at KafkaRelease() */
	int64		end_offset;		/* the log's end (last stable) as last heard; -1: not yet */
	bool		at_end;			/* all up to end_offset was delivered */
	KafkaFault	fault;
	int64		readable_from;	/* of a fault: the first offset behind it that can be read, -1 if none is known */
	char		message[320];	/* of the fault, without secrets */
} KafkaPartition;

/*
 * The properties a server's options may set, with dots ("linger.ms" style
 * names are those of librdkafka). Everything else is refused.
 */
extern bool KafkaPropertyAllowed(const char *property);
/* All allowed properties, NULL-terminated, for HINTs. */
extern const char *const *KafkaAllowedProperties(void);
/*
 * Is value acceptable to the library for this property? Returns false and a
 * message (in errbuf) if not. Only for allowed properties.
 */
extern bool KafkaPropertyCheck(const char *property, const char *value,
							   char *errbuf, size_t errlen);

/* The library's version, such as "2.0.2". */
extern const char *KafkaLibraryVersion(void);

/*
 * Create a consumer. options: librdkafka property names. What exactly-once
 * needs is set here and cannot be overridden. ereport(ERROR) on a property the library refuses
 * (HV00D) or when no handle can be had (08001). All signals are blocked while
 * the library makes its threads.
 */
extern KafkaConsumer *KafkaConsumerCreate(const Option *options, int noptions);
/* Ends threads, drops messages. NULL is allowed. Never throws. */
extern void KafkaConsumerDestroy(KafkaConsumer *consumer);

/* File descriptor that becomes readable when there is something to consume or an error to see. */
extern int	KafkaConsumerFd(KafkaConsumer *consumer);
/* Before waiting on that descriptor: what was done since the last poll may have taken too long to trust the queue. */
extern void KafkaConsumerLeave(KafkaConsumer *consumer);
/* Empty that descriptor; call before polling, then poll until nothing comes, then wait. */
extern void KafkaConsumerDrainFd(KafkaConsumer *consumer);
/* The last error heard (broker away, authentication...), "" if none; cleared by progress. */
extern const char *KafkaConsumerError(KafkaConsumer *consumer);

/* What to do about it, where that is known; NULL if not. */
extern const char *KafkaErrorHint(KafkaConsumer *consumer);

/* The following ask the broker and block for timeout_ms at most; call with small values in a loop that checks for interrupts. */
extern KafkaResult KafkaCountPartitions(KafkaConsumer *consumer, const char *topic,
										int timeout_ms, int32 *npartitions);
extern KafkaResult KafkaWatermarks(KafkaConsumer *consumer, const char *topic, int32 partition,
								   int timeout_ms, int64 *low, int64 *high);
/*
 * The topic's id, which no other topic ever has, as text; palloc'd. NULL where the library (before 2.3) or
 * the broker (before 2.8) knows none.
 */
extern KafkaResult KafkaTopicId(KafkaConsumer *consumer, const char *topic, int timeout_ms, char **id);
/* First offset whose record's timestamp is >= when_ms (Unix epoch); the log's end if there is none. */
extern KafkaResult KafkaOffsetForTime(KafkaConsumer *consumer, const char *topic, int32 partition,
									  int64 when_ms, int timeout_ms, int64 *offset);

/*
 * Replace the assignment. topics: names, indexed by parts[i].topic; of parts,
 * topic, partition, next_offset (absolute, >= 0) and last are read. Drops
 * everything fetched but not consumed. What was consumed stays valid until
 * KafkaRelease().
 *
 * Where last is known, reading begins at that record, and no other is delivered unless the log still has it there or has it
 * no more (compaction). The same is done again whenever something happened behind which the topic may have been replaced.
 */
extern KafkaResult KafkaAssign(KafkaConsumer *consumer, const char *const *topics, int ntopics,
							   const KafkaPartition *parts, int nparts);
/* The present assignment with its progress; the array is the consumer's. */
extern const KafkaPartition *KafkaAssignment(KafkaConsumer *consumer, int *nparts);

/*
 * Take up to max records that have arrived, waiting timeout_ms at most (0: not at
 * all). Returns how many; fewer once HYBRIDIOT_BATCH_BYTES are held (KafkaIsFull()). Faults and ends of partitions show in
 * KafkaAssignment(). The records' bytes stay until KafkaRelease(). Records
 * below a partition's next_offset are dropped here.
 */
extern int	KafkaConsume(KafkaConsumer *consumer, Record *records, int max, int timeout_ms);
/* No more is handed out before KafkaRelease(). */
extern bool KafkaIsFull(KafkaConsumer *consumer);
/* Free everything handed out since the last call. */
extern void KafkaRelease(KafkaConsumer *consumer);

#endif							/* HYBRIDIOT_KAFKA_H */
