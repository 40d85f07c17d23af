/*
 * kafka_read.c
 *		Records from where we say: assignment, consuming, and whether it is still the log that was read before.
 *
 * A topic may be deleted and created again at any time, under a running consumer too, and the library goes on in the new log
 * as if it were the old one. So reading begins at the last record of before, which has to be the same; and whatever may hide such
 * a change makes it begin there again. The library asks for metadata by itself when a fetch fails or a connection
 * is lost, before it goes on; and while nobody empties its queue it does not fetch at all.
 */
#include "postgres.h"

#include "datatype/timestamp.h"
#include "utils/timestamp.h"

#include "core/clock.h"
#include "core/record.h"
#include "transport/kafka_internal.h"
#include "transport/kafka_property.h"

#define CONSUME_MAX 1000		/* messages taken from the library at once */
#define CORRUPT_TRIES 3			/* what came damaged from the network is there when asked for again */
#define NUDGE_EVERY 10000		/* records between two nudges */
#define ENDS_EVERY_MS 200		/* how often ends of partitions are looked up */
#define PROBE_EVERY_MS 1000		/* how often brokers that were away are asked */
#define PROBE_TIMEOUT_MS 100
#define RANGE_TIMEOUT_MS 3000

/* ---- assignment ---- */

void
KafkaFreeAssignment(KafkaConsumer *consumer)
{
	for (int i = 0; i < consumer->ntopics; i++)
	{
		free(consumer->topics[i]);
		free(consumer->places[i]);
	}
	free(consumer->topics);
	free(consumer->places);
	free(consumer->nplaces);
	free(consumer->newest);
	free(consumer->tries);
	free(consumer->parts);
	consumer->topics = NULL;
	consumer->places = NULL;
	consumer->nplaces = NULL;
	consumer->newest = NULL;
	consumer->tries = NULL;
	consumer->parts = NULL;
	consumer->ntopics = consumer->nparts = 0;
}

/* Copy topics and partitions, with the way back from a message to its place. False: out of memory. */
static bool
keep_assignment(KafkaConsumer *consumer, const char *const *topics, int ntopics,
				const KafkaPartition *parts, int nparts)
{
	KafkaFreeAssignment(consumer);
	consumer->topics = calloc(ntopics + 1, sizeof(char *));
	consumer->places = calloc(ntopics + 1, sizeof(int *));
	consumer->nplaces = calloc(ntopics + 1, sizeof(int));
	consumer->parts = calloc(nparts + 1, sizeof(KafkaPartition));
	consumer->newest = calloc(nparts + 1, sizeof(rd_kafka_message_t *));
	consumer->tries = calloc(nparts + 1, sizeof(int));
	if (!consumer->topics || !consumer->places || !consumer->nplaces || !consumer->parts ||
		!consumer->newest || !consumer->tries)
		return false;
	consumer->ntopics = ntopics;
	for (int i = 0; i < ntopics; i++)
		if ((consumer->topics[i] = strdup(topics[i])) == NULL)
			return false;
	for (int i = 0; i < nparts; i++)
		consumer->nplaces[parts[i].topic] = Max(consumer->nplaces[parts[i].topic], parts[i].partition + 1);
	for (int i = 0; i < ntopics; i++)
	{
		consumer->places[i] = malloc(sizeof(int) * (consumer->nplaces[i] + 1));
		if (!consumer->places[i])
			return false;
		for (int k = 0; k < consumer->nplaces[i]; k++)
			consumer->places[i][k] = -1;
	}
	for (int i = 0; i < nparts; i++)
	{
		KafkaPartition *part = &consumer->parts[i];

		part->topic = parts[i].topic;
		part->partition = parts[i].partition;
		part->next_offset = parts[i].next_offset;
		part->last = parts[i].last;
		part->end_offset = -1;
		consumer->places[part->topic][part->partition] = i;
	}
	consumer->nparts = nparts;
	return true;
}

static void
fill_record(const rd_kafka_message_t *message, const KafkaPartition *part, Record *record);

/* The marks of what was handed out, before the bytes go. */
static void
mark_newest(KafkaConsumer *consumer)
{
	for (int i = 0; i < consumer->nparts; i++)
		if (consumer->newest[i])
		{
			Record		record;

			fill_record(consumer->newest[i], &consumer->parts[i], &record);
			consumer->parts[i].last = RecordMarkOf(&record);
			consumer->newest[i] = NULL;
		}
}

/* Fetch all partitions anew, each from the last record that is known of it. */
static rd_kafka_resp_err_t
begin_again(KafkaConsumer *consumer)
{
	rd_kafka_topic_partition_list_t *list;
	rd_kafka_resp_err_t err;

	mark_newest(consumer);
	consumer->doubtful = false;
	consumer->left_at = ClockMonotonicMs();
	KafkaQuestionEnds(consumer);

	/* Drop the old assignment first, so that nothing fetched for it comes through. */
	(void) rd_kafka_assign(consumer->handle, NULL);
	if (consumer->nparts == 0)
		return RD_KAFKA_RESP_ERR_NO_ERROR;
	list = rd_kafka_topic_partition_list_new(consumer->nparts);
	for (int i = 0; i < consumer->nparts; i++)
	{
		KafkaPartition *part = &consumer->parts[i];

		part->at_end = false;
		rd_kafka_topic_partition_list_add(list, consumer->topics[part->topic], part->partition)->offset =
			part->last.offset >= 0 ? part->last.offset : part->next_offset;
	}
	err = rd_kafka_assign(consumer->handle, list);
	rd_kafka_topic_partition_list_destroy(list);
	consumer->doubtful = err != RD_KAFKA_RESP_ERR_NO_ERROR;
	return err;
}

KafkaResult
KafkaAssign(KafkaConsumer *consumer, const char *const *topics, int ntopics,
			const KafkaPartition *parts, int nparts)
{
	if (!keep_assignment(consumer, topics, ntopics, parts, nparts))
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
	consumer->ends_at = 0;
	return KafkaResultOf(consumer, begin_again(consumer));
}

const KafkaPartition *
KafkaAssignment(KafkaConsumer *consumer, int *nparts)
{
	*nparts = consumer->nparts;
	return consumer->parts;
}

/* ---- consuming ---- */

static KafkaPartition *
find_partition(KafkaConsumer *consumer, const rd_kafka_message_t *message,
			   const rd_kafka_topic_t **last_handle, int *last_topic)
{
	int			place;

	if (message->rkt == NULL)
		return NULL;
	if (message->rkt != *last_handle)
	{
		const char *name = rd_kafka_topic_name(message->rkt);

		*last_handle = message->rkt;
		*last_topic = -1;
		for (int i = 0; i < consumer->ntopics; i++)
			if (strcmp(consumer->topics[i], name) == 0)
				*last_topic = i;
	}
	if (*last_topic < 0 || message->partition < 0 || message->partition >= consumer->nplaces[*last_topic])
		return NULL;
	place = consumer->places[*last_topic][message->partition];
	return place < 0 ? NULL : &consumer->parts[place];
}

/*
 * The log does not have the offset that was asked for: is there a gap, was it cut, or is only the last record of before gone?
 */
static void
judge_range(KafkaConsumer *consumer, KafkaPartition *part)
{
	int64		low;
	int64		high;
	char		message[256];

	/* An answer would wait behind a fetch that waits for records. Everything is assigned again in any case. */
	(void) rd_kafka_assign(consumer->handle, NULL);
	consumer->doubtful = true;
	if (KafkaWatermarks(consumer, consumer->topics[part->topic], part->partition, RANGE_TIMEOUT_MS, &low, &high) != KAFKA_OK)
		return;					/* nobody knows yet */
	if (low > part->next_offset)
	{
		snprintf(message, sizeof(message), "offsets " INT64_FORMAT " to " INT64_FORMAT " are not in the log any more, which begins at " INT64_FORMAT,
				 part->next_offset, low - 1, low);
		KafkaSetFault(part, KAFKA_FAULT_GAP, message);
	}
	else if (high < part->next_offset)
	{
		snprintf(message, sizeof(message), "the log ends at " INT64_FORMAT ", before the position " INT64_FORMAT "; the topic was cut or created again",
				 high, part->next_offset);
		KafkaSetFault(part, KAFKA_FAULT_GAP, message);
	}
	else if (part->last.offset >= 0)
	{
		/* Retention took it, and just it; or the log has grown since, and will show whether it is the same. */
		if (part->last.offset < low)
			part->last.offset = -1;
	}
	else
	{
		snprintf(message, sizeof(message), "offset " INT64_FORMAT " was not in the log; the topic was cut or created again",
				 part->next_offset);
		KafkaSetFault(part, KAFKA_FAULT_GAP, message);
	}
}

/* A batch came damaged. It is fetched again before that is taken for what the log has. */
static void
judge_damage(KafkaConsumer *consumer, KafkaPartition *part, const char *text)
{
	if (++consumer->tries[part - consumer->parts] < CORRUPT_TRIES)
		consumer->doubtful = true;
	else
		KafkaSetFault(part, KAFKA_FAULT_CORRUPT, text);
}

/* A message that is no record: the end of a partition, or an error. */
static void
take_notice(KafkaConsumer *consumer, const rd_kafka_message_t *message, KafkaPartition *part)
{
	const char *text = rd_kafka_message_errstr(message);

	if (part == NULL)
	{
		KafkaNoteError(consumer->handle, message->err, text, consumer);
		return;
	}
	switch (message->err)
	{
		case RD_KAFKA_RESP_ERR__PARTITION_EOF:
			KafkaNoteProgress(consumer);
			if (message->offset < part->next_offset)
			{
				/* A leader may not know for a moment how far its log is committed: it is asked. */
				judge_range(consumer, part);
				break;
			}
			part->at_end = true;
			part->next_offset = message->offset;
			part->end_offset = part->next_offset;
			break;
		case RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET:
		case RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE:
			judge_range(consumer, part);
			break;
		case RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART:
		case RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC:
		case RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION:
			KafkaSetFault(part, KAFKA_FAULT_GONE, text);
			break;
		case RD_KAFKA_RESP_ERR__BAD_MSG:
		case RD_KAFKA_RESP_ERR__BAD_COMPRESSION:
		case RD_KAFKA_RESP_ERR_INVALID_MSG:
		case RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE:
			judge_damage(consumer, part, text);
			break;
		case RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED:
			KafkaSetFault(part, KAFKA_FAULT_DENIED, text);
			break;
		default:
			KafkaNoteError(consumer->handle, message->err, text, consumer);
			break;
	}
}

static bool
grow(void **array, int *size, int needed, size_t element)
{
	int			wanted = Max(*size, 1024);
	void	   *larger;

	if (needed <= *size)
		return true;
	while (wanted < needed)
		wanted *= 2;
	larger = realloc(*array, element * wanted);
	if (larger == NULL)
		return false;
	*array = larger;
	*size = wanted;
	return true;
}

static void
take_headers(KafkaConsumer *consumer, const rd_kafka_message_t *message, Record *record)
{
	rd_kafka_headers_t *headers;
	RecordHeader *list;
	size_t		n;

	if (rd_kafka_message_headers(message, &headers) != RD_KAFKA_RESP_ERR_NO_ERROR)
		return;
	n = Min(rd_kafka_header_cnt(headers), HYBRIDIOT_MAX_HEADERS);
	if (n == 0)
		return;
	list = malloc(sizeof(RecordHeader) * n);
	if (list == NULL ||
		!grow((void **) &consumer->headers, &consumer->headers_size, consumer->nheaders + 1,
			  sizeof(RecordHeader *)))
	{
		free(list);
		ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
	}
	consumer->headers[consumer->nheaders++] = list;
	for (size_t i = 0; i < n; i++)
	{
		const void *value = NULL;
		size_t		len = 0;

		(void) rd_kafka_header_get_all(headers, i, &list[i].name, &value, &len);
		list[i].value = value;
		list[i].value_len = (int32) len;
	}
	record->headers = list;
	record->nheaders = (int32) n;
}

/* All but its headers. */
static void
fill_record(const rd_kafka_message_t *message, const KafkaPartition *part, Record *record)
{
	rd_kafka_timestamp_type_t type;
	int64		ms = rd_kafka_message_timestamp(message, &type);

	record->topic = part->topic;
	record->partition = part->partition;
	record->offset = message->offset;
	/* Producers may write any number: nanoseconds in place of milliseconds do not fit. */
	if (type == RD_KAFKA_TIMESTAMP_NOT_AVAILABLE || ms < 0)
		record->timestamp = DT_NOBEGIN;
	else if (ms >= (END_TIMESTAMP / USECS_PER_SEC) * 1000)
		record->timestamp = DT_NOEND;
	else
		record->timestamp = ms * 1000 - (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * USECS_PER_DAY;
	record->key = message->key;
	record->key_len = message->key ? (int32) message->key_len : -1;
	record->value = message->payload;
	record->value_len = message->payload ? (int32) message->len : -1;
	record->headers = NULL;
	record->nheaders = 0;
#if RD_KAFKA_VERSION >= 0x020100ff
	record->leader_epoch = rd_kafka_message_leader_epoch(message);
#else
	record->leader_epoch = -1;
#endif
}

/* Brokers that were away cannot be heard coming back while a topic is silent: ask. */
static void
probe(KafkaConsumer *consumer)
{
	const struct rd_kafka_metadata *metadata;
	int64		now = ClockMonotonicMs();

	if (now - consumer->probed_at < PROBE_EVERY_MS)
		return;
	consumer->probed_at = now;
	KafkaQuestionBegins(consumer);
	if (rd_kafka_metadata(consumer->handle, 0, NULL, &metadata, PROBE_TIMEOUT_MS) ==
		RD_KAFKA_RESP_ERR_NO_ERROR)
	{
		rd_kafka_metadata_destroy(metadata);
		KafkaNoteProgress(consumer);
		/* They were away, and the library's own first question may have come between ours. */
		consumer->doubtful = true;
	}
	KafkaQuestionEnds(consumer);
}

/*
 * Full queues make the library's threads stop fetching; before 2.2 (which has fetch.queue.backoff.ms) they then look
 * again once a second only, whatever was taken meanwhile. So either the queue holds a second's
 * work, which is hundreds of megabytes, or somebody wakes them. Telling the library credentials, though the same as
 * before, is the one call that does, and does no more.
 */
static void
nudge(KafkaConsumer *consumer, int taken)
{
	consumer->since_nudge += taken;
	if (consumer->since_nudge < NUDGE_EVERY)
		return;
	consumer->since_nudge = 0;
#if RD_KAFKA_VERSION < KAFKA_QUEUE_BACKOFF_VERSION
	{
		rd_kafka_error_t *error = rd_kafka_sasl_set_credentials(consumer->handle, consumer->user, consumer->password);

		if (error)
			rd_kafka_error_destroy(error);
	}
#endif
}

static void
look_up_ends(KafkaConsumer *consumer)
{
	int64		now = ClockMonotonicMs();

	if (now - consumer->ends_at < ENDS_EVERY_MS)
		return;
	consumer->ends_at = now;
	for (int i = 0; i < consumer->nparts; i++)
	{
		KafkaPartition *part = &consumer->parts[i];
		int64_t		low;
		int64_t		high;

		/*
		 * What the last fetch said; no network. It counts transactions that are still open,
		 * which the end of a partition does not.
		 */
		if (!part->at_end &&
			rd_kafka_get_watermark_offsets(consumer->handle, consumer->topics[part->topic],
										   part->partition, &low, &high) == RD_KAFKA_RESP_ERR_NO_ERROR &&
			high >= 0)
			part->end_offset = Max(high, part->next_offset);
	}
}

/* Is it a record to be delivered? Then take it; else note what it says. */
static bool
take_message(KafkaConsumer *consumer, const rd_kafka_message_t *message, KafkaPartition *part,
			 Record *record)
{
	const char *contradiction;
	char		text[256];

	if (message->err)
	{
		if (part == NULL || part->fault == KAFKA_FAULT_NONE)
			take_notice(consumer, message, part);
		return false;
	}
	if (part == NULL)
		return false;			/* of an older assignment */
	if (part->fault != KAFKA_FAULT_NONE)
	{
		if (part->readable_from < 0)
			part->readable_from = message->offset;
		return false;
	}
	if (message->offset < part->next_offset && message->offset != part->last.offset)
		return false;			/* delivered again */

	fill_record(message, part, record);
	contradiction = RecordMarkContradicted(&part->last, record);
	if (contradiction)
	{
		snprintf(text, sizeof(text), "the record at offset " INT64_FORMAT " is not of the log that was read before: %s",
				 record->offset, contradiction);
		KafkaSetFault(part, KAFKA_FAULT_REPLACED, text);
		return false;
	}
	if (message->offset < part->next_offset)
		return false;			/* it is still there, as it was */
	if (RecordBytes(record) > hybridiot_max_record_size * INT64CONST(1024))
	{
		snprintf(text, sizeof(text), "the record at offset " INT64_FORMAT " has " INT64_FORMAT " bytes, more than hybridiot.max_record_size",
				 record->offset, RecordBytes(record));
		KafkaSetFault(part, KAFKA_FAULT_TOO_LARGE, text);
		part->readable_from = record->offset + 1;
		return false;
	}
	take_headers(consumer, message, record);
	part->next_offset = message->offset + 1;
	part->at_end = false;
	part->last.leader_epoch = record->leader_epoch;
	consumer->newest[part - consumer->parts] = message;
	consumer->tries[part - consumer->parts] = 0;
	consumer->held_bytes += RecordBytes(record);
	return true;
}

/* What the library gave: records are kept, the rest is heard and destroyed. Behind a doubt nothing is taken. */
static int
take_messages(KafkaConsumer *consumer, rd_kafka_message_t **messages, int n, Record *records)
{
	const rd_kafka_topic_t *last_handle = NULL;
	int			last_topic = -1;
	int			taken = 0;

	consumer->nheld += n;
	for (int i = 0; i < n; i++)
	{
		KafkaPartition *part = find_partition(consumer, messages[i], &last_handle, &last_topic);

		if (!consumer->doubtful && take_message(consumer, messages[i], part, &records[taken]))
			taken++;
		else
		{
			rd_kafka_message_destroy(messages[i]);
			messages[i] = NULL;
		}
	}
	if (taken == 0)
		consumer->nheld -= n;
	return taken;
}

bool
KafkaIsFull(KafkaConsumer *consumer)
{
	return consumer->held_bytes >= HYBRIDIOT_BATCH_BYTES;
}

int
KafkaConsume(KafkaConsumer *consumer, Record *records, int max, int timeout_ms)
{
	int			n = 0;
	int			wanted;
	ssize_t		got;

	(void) rd_kafka_poll(consumer->handle, 0);
	consumer->doubtful |= ClockMonotonicMs() - consumer->left_at > ALONE_MS;

	/* Who gets nothing goes to sleep, and the queue wakes us only when it was empty: empty it. */
	do
	{
		rd_kafka_message_t **messages;

		wanted = KafkaIsFull(consumer) ? 0 : Min(max - n, CONSUME_MAX);
		if (wanted == 0)
			break;
		if (!grow((void **) &consumer->held, &consumer->held_size, consumer->nheld + wanted,
				  sizeof(rd_kafka_message_t *)))
			ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
		messages = consumer->held + consumer->nheld;
		got = rd_kafka_consume_batch_queue(consumer->messages, n > 0 ? 0 : timeout_ms, messages, wanted);

		/* Looked at after the queue: what came before the request was fetched before it, too. */
		if (!KafkaIsDoubtful(consumer))
			n += take_messages(consumer, messages, (int) Max(got, 0), records + n);
		else
		{
			for (ssize_t i = 0; i < got; i++)
				rd_kafka_message_destroy(messages[i]);
			/* This is no progress: brokers may be away. */
			if (begin_again(consumer) != RD_KAFKA_RESP_ERR_NO_ERROR)
				break;
			got = wanted;
		}
	} while (got == wanted || consumer->doubtful);
	consumer->left_at = ClockMonotonicMs();

	nudge(consumer, n);
	if (n > 0)
		KafkaNoteProgress(consumer);
	else if (consumer->error[0])
		probe(consumer);
	KafkaHearGate(consumer);
	look_up_ends(consumer);
	return n;
}

void
KafkaRelease(KafkaConsumer *consumer)
{
	mark_newest(consumer);
	for (int i = 0; i < consumer->nheld; i++)
		if (consumer->held[i])
			rd_kafka_message_destroy(consumer->held[i]);
	consumer->nheld = 0;
	consumer->held_bytes = 0;
	for (int i = 0; i < consumer->nheaders; i++)
		free(consumer->headers[i]);
	consumer->nheaders = 0;
}
