/*
 * kafka_internal.h
 *		What kafka.c and kafka_read.c share: the consumer, and what errors of the library mean.
 */
#ifndef HYBRIDIOT_KAFKA_INTERNAL_H
#define HYBRIDIOT_KAFKA_INTERNAL_H

#include <librdkafka/rdkafka.h>

#include "lib/ilist.h"

#include "transport/gate.h"
#include "transport/kafka.h"

#define ERROR_LEN 512

#define ALONE_MS 3000			/* a queue that nobody looked into for so long may have stopped fetching */

struct KafkaConsumer
{
	dlist_node	node;			/* in consumers */
	rd_kafka_t *handle;
	Gate	   *gate;			/* where the library's threads may connect to */
	rd_kafka_queue_t *messages;
	rd_kafka_queue_t *events;
	int			fd;
	char		error[ERROR_LEN];	/* what keeps us from progress; "" if nothing */
	char		transport_error[ERROR_LEN]; /* the last one of a single broker */
	KafkaResult verdict;		/* of a question that has no answer: asking again is of no use if not KAFKA_AGAIN */
	bool		scram_refused;
	char	   *user;			/* as the library has them, for nudge() */
	char	   *password;
	int			since_nudge;	/* records taken */
	bool		kept_out;		/* by our gate */
	bool		answered;		/* a broker did, once */
	bool		misspoken;		/* brokers hang up on us as if they spoke another protocol */
	int64		ends_at;		/* monotonic ms of the last look */
	int64		probed_at;
	int64		left_at;		/* when the queue was last looked into, or waited for */
	uint32		requests_seen;	/* requests for metadata, as of the last look */
	bool		doubtful;		/* the logs may be others by now: begin at their last records again */

	char	  **topics;
	int			ntopics;
	KafkaPartition *parts;
	int			nparts;
	int		  **places;			/* per topic and partition: place in parts, or -1 */
	int		   *nplaces;
	const rd_kafka_message_t **newest;	/* per part: the last one of held, or NULL */
	int		   *tries;			/* per part: corrupt batches since the last record */

	rd_kafka_message_t **held;	/* handed out, until KafkaRelease() */
	int			nheld;
	int			held_size;
	int64		held_bytes;
	RecordHeader **headers;		/* likewise, malloced, one per record that has any */
	int			nheaders;
	int			headers_size;
};

/* ---- kafka.c ---- */

/* Take note of an error that is not of one partition; the library's error callback, too. */
extern void KafkaNoteError(rd_kafka_t *handle, int err, const char *reason, void *opaque);
/* Has our gate kept the library out of where it wanted to go? */
extern void KafkaHearGate(KafkaConsumer *consumer);
/* Brokers answer. */
extern void KafkaNoteProgress(KafkaConsumer *consumer);
extern KafkaResult KafkaResultOf(KafkaConsumer *consumer, rd_kafka_resp_err_t err);
extern void KafkaSetFault(KafkaPartition *part, KafkaFault fault, const char *message);
/* Has the library asked for metadata by itself? Then the logs may be others by now. */
extern bool KafkaIsDoubtful(KafkaConsumer *consumer);
/* Requests of our own are no sign of anything: every question is put between these two. */
extern void KafkaQuestionBegins(KafkaConsumer *consumer);
extern void KafkaQuestionEnds(KafkaConsumer *consumer);

/* ---- kafka_read.c ---- */

extern void KafkaFreeAssignment(KafkaConsumer *consumer);

#endif							/* HYBRIDIOT_KAFKA_INTERNAL_H */
