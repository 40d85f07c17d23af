/*
 * kafka.c
 *		librdkafka behind a small face: consumers that read from offsets of ours.
 *
 * This file and kafka_property.c alone include the library's headers. Nothing here touches SPI or the
 * catalog, and no thread of the library ever runs PostgreSQL's code: signals are
 * blocked while threads are made, logs and errors come through queues that the main thread
 * polls, and callbacks only copy text; those that run on the library's threads are the gate's. Consumers are destroyed at the
 * latest before the process gives up shared memory, because the library's threads must not
 * outlive that.
 */
#include "postgres.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <librdkafka/rdkafka.h>

#include "lib/ilist.h"
#include "storage/ipc.h"
#include "utils/timestamp.h"

#include "core/clock.h"
#include "transport/gate.h"
#include "transport/kafka.h"
#include "transport/kafka_property.h"

#define CONSUME_MAX 10000		/* messages taken from the library at once */
#define NUDGE_EVERY 10000		/* records between two nudges */
#define ENDS_EVERY_MS 200		/* how often ends of partitions are looked up */
#define PROBE_EVERY_MS 1000		/* how often brokers that were away are asked */
#define PROBE_TIMEOUT_MS 100
#define DESTROY_TIMEOUT_MS 2000
#define ERROR_LEN 512
#define ANSWER_MS 1000			/* for a broker to answer what needs no waiting */

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

	char	  **topics;
	int			ntopics;
	KafkaPartition *parts;
	int			nparts;
	int		  **places;			/* per topic and partition: place in parts, or -1 */
	int		   *nplaces;

	rd_kafka_message_t **held;	/* handed out, until KafkaRelease() */
	int			nheld;
	int			held_size;
	RecordHeader **headers;		/* likewise, malloced, one per record that has any */
	int			nheaders;
	int			headers_size;
};

static dlist_head consumers = DLIST_STATIC_INIT(consumers);

/* ---- errors ---- */

/* Librdkafka before 2.6.1 repeats its nonce in SCRAM, which Kafka 4 refuses. */
#define SCRAM_MENDED 0x02060100

static void
set_fault(KafkaPartition *part, KafkaFault fault, const char *message)
{
	part->fault = fault;
	strlcpy(part->message, message, sizeof(part->message));
}

/* A partition is not there any more: told as an error of the client, which names it in its text only. */
static void
note_gone(KafkaConsumer *consumer, const char *reason)
{
	for (int i = 0; i < consumer->nparts; i++)
	{
		KafkaPartition *part = &consumer->parts[i];
		char		name[300];	/* a topic's name has 249 bytes at most */

		snprintf(name, sizeof(name), "%s [%d]: ", consumer->topics[part->topic], part->partition);
		if (part->fault == KAFKA_FAULT_NONE && strncmp(reason, name, strlen(name)) == 0)
			set_fault(part, KAFKA_FAULT_GONE, reason + strlen(name));
	}
}

/* Does the library's message look as if the listener expects something else? Only for brokers that never answered. */
static bool
looks_misspoken(const char *reason)
{
	return strstr(reason, "security.protocol") || strstr(reason, "SSL alert") ||
		strstr(reason, "in state UP");
}

static void
note_error(rd_kafka_t *handle, int err, const char *reason, void *opaque)
{
	KafkaConsumer *consumer = opaque;

	switch (err)
	{
		case RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART:
		case RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC:
		case RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION:
			note_gone(consumer, reason);
			strlcpy(consumer->error, reason, ERROR_LEN);
			break;
		case RD_KAFKA_RESP_ERR__TRANSPORT:
		case RD_KAFKA_RESP_ERR__RESOLVE:
			/* One broker of several: no trouble yet. */
			strlcpy(consumer->transport_error, reason, ERROR_LEN);
			break;
		case RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN:
			if (consumer->verdict != KAFKA_AGAIN)
				break;			/* it was told why */
			strlcpy(consumer->error, consumer->transport_error[0] ? consumer->transport_error : reason,
					ERROR_LEN);
			if (!consumer->answered && looks_misspoken(consumer->error))
			{
				consumer->misspoken = true;
				consumer->verdict = KAFKA_BROKEN;
			}
			break;
		case RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED:
			/* No group of ours is ever used. */
			break;
		case RD_KAFKA_RESP_ERR__AUTHENTICATION:
			consumer->scram_refused = strstr(reason, "SCRAM") != NULL;
			consumer->verdict = KAFKA_DENIED;
			strlcpy(consumer->error, reason, ERROR_LEN);
			break;
		case RD_KAFKA_RESP_ERR__SSL:
			consumer->verdict = KAFKA_BROKEN;
			if (strstr(reason, "certificate verify failed") &&
				GateBadCertificate(consumer->gate, consumer->error, ERROR_LEN))
				break;
			consumer->misspoken = !consumer->answered;
			/* FALLTHROUGH */
		default:
			strlcpy(consumer->error, reason, ERROR_LEN);
			break;
	}
}

/* Logs say less than errors do; taken from the queue and dropped. */
static void
drop_log(const rd_kafka_t *handle, int level, const char *facility, const char *message)
{
}

static void
note_progress(KafkaConsumer *consumer)
{
	consumer->error[0] = '\0';
	consumer->transport_error[0] = '\0';
	consumer->verdict = KAFKA_AGAIN;
	consumer->scram_refused = false;
	consumer->kept_out = false;
	consumer->misspoken = false;
	consumer->answered = true;
}

/* Each connection is made here, on a thread of the library. */
static int
connect_through_gate(int fd, const struct sockaddr *address, int len, const char *id, void *opaque)
{
	KafkaConsumer *consumer = opaque;

	return GateConnect(consumer->gate, fd, address, (socklen_t) len, id);
}

/* Likewise, each certificate of a chain is seen here. The verdict is OpenSSL's. */
static int
note_certificate(rd_kafka_t *handle, const char *broker, int32_t broker_id, int *error, int depth,
				 const char *bytes, size_t size, char *errstr, size_t errlen, void *opaque)
{
	KafkaConsumer *consumer = opaque;

	return GateNoteCertificate(consumer->gate, *error, broker);
}

/* A broker that we do not let the library connect to: that others answer does not help its partitions. */
static void
hear_gate(KafkaConsumer *consumer)
{
	if (!GateKeepsOut(consumer->gate, consumer->error, ERROR_LEN))
		return;
	consumer->kept_out = true;
	consumer->verdict = KAFKA_BROKEN;
}

const char *
KafkaConsumerError(KafkaConsumer *consumer)
{
	return consumer->error;
}

const char *
KafkaErrorHint(KafkaConsumer *consumer)
{
	if (consumer->scram_refused && rd_kafka_version() < SCRAM_MENDED)
		return "librdkafka before 2.6.1 fails SCRAM against Kafka 4 though the password is right; use a newer library, or PLAIN over TLS.";
	if (consumer->kept_out)
		return "A superuser may add the network to hybridiot.broker_networks; or correct bootstrap_servers, or what the broker advertises.";
	if (consumer->misspoken)
		return "A broker that hangs up may expect TLS or SASL, or not, or a client's certificate: see options security_protocol and ssl_certificate.";
	return NULL;
}

static KafkaResult
result_of(KafkaConsumer *consumer, rd_kafka_resp_err_t err)
{
	switch (err)
	{
		case RD_KAFKA_RESP_ERR_NO_ERROR:
			note_progress(consumer);
			return KAFKA_OK;
		case RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART:
		case RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC:
		case RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION:
		case RD_KAFKA_RESP_ERR_TOPIC_EXCEPTION:
			return KAFKA_UNKNOWN;
		case RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED:
		case RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED:
		case RD_KAFKA_RESP_ERR_SASL_AUTHENTICATION_FAILED:
		case RD_KAFKA_RESP_ERR__AUTHENTICATION:
			if (!consumer->error[0])
				strlcpy(consumer->error, rd_kafka_err2str(err), ERROR_LEN);
			return KAFKA_DENIED;
		case RD_KAFKA_RESP_ERR__FATAL:
			strlcpy(consumer->error, rd_kafka_err2str(err), ERROR_LEN);
			return KAFKA_BROKEN;
		default:
			hear_gate(consumer);
			if (!consumer->error[0] && consumer->transport_error[0])
				strlcpy(consumer->error, consumer->transport_error, ERROR_LEN);
			else if (!consumer->error[0])
				strlcpy(consumer->error, rd_kafka_err2str(err), ERROR_LEN);
			return consumer->verdict;
	}
}

/* ---- life ---- */

static void
destroy_all(int code, Datum arg)
{
	while (!dlist_is_empty(&consumers))
		KafkaConsumerDestroy(dlist_container(KafkaConsumer, node, dlist_head_node(&consumers)));
}

static rd_kafka_conf_t *
make_conf(const Option *options, int noptions)
{
	rd_kafka_conf_t *conf = KafkaConfCreate(options, noptions);

	rd_kafka_conf_set_error_cb(conf, note_error);
	rd_kafka_conf_set_log_cb(conf, drop_log);
	rd_kafka_conf_set_connect_cb(conf, connect_through_gate);
	(void) rd_kafka_conf_set_ssl_cert_verify_cb(conf, note_certificate);
	return conf;
}

/* False: out of memory. */
static bool
keep_credentials(KafkaConsumer *consumer, const Option *options, int noptions)
{
	const char *user = "";
	const char *password = "";

	for (int i = 0; i < noptions; i++)
		if (strcmp(options[i].name, "sasl.username") == 0)
			user = options[i].value;
		else if (strcmp(options[i].name, "sasl.password") == 0)
			password = options[i].value;
	consumer->user = strdup(user);
	consumer->password = strdup(password);
	return consumer->user && consumer->password;
}

static void
forget_credentials(KafkaConsumer *consumer)
{
	if (consumer->password)
		explicit_bzero(consumer->password, strlen(consumer->password));
	free(consumer->user);
	free(consumer->password);
}

KafkaConsumer *
KafkaConsumerCreate(const Option *options, int noptions)
{
	static bool registered = false;
	rd_kafka_conf_t *conf = make_conf(options, noptions);
	KafkaConsumer *consumer = calloc(1, sizeof(KafkaConsumer));
	char		message[256] = "out of memory";
	sigset_t	all;
	sigset_t	before;

	if (consumer)
		consumer->fd = -1;
	if (consumer && keep_credentials(consumer, options, noptions))
	{
		consumer->verdict = KAFKA_AGAIN;
		rd_kafka_conf_set_opaque(conf, consumer);
		consumer->gate = GateCreate(hybridiot_broker_networks);
		consumer->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
		if (consumer->fd < 0)
			snprintf(message, sizeof(message), "eventfd: %s", strerror(errno));
		else if (consumer->gate)
		{
			sigfillset(&all);
			pthread_sigmask(SIG_SETMASK, &all, &before);
			consumer->handle = rd_kafka_new(RD_KAFKA_CONSUMER, conf, message, sizeof(message));
			pthread_sigmask(SIG_SETMASK, &before, NULL);
		}
	}
	if (consumer == NULL || consumer->handle == NULL)
	{
		if (consumer)
		{
			if (consumer->fd >= 0)
				close(consumer->fd);
			forget_credentials(consumer);
			GateFree(consumer->gate);
		}
		free(consumer);
		rd_kafka_conf_destroy(conf);
		ereport(ERROR,
				(errcode(ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION),
				 errmsg("could not create a Kafka consumer: %s", message),
				 strncmp(message, "ssl.", 4) == 0 ?
				 errhint("The files of options ssl_ca, ssl_certificate, ssl_key and ssl_key_password_file must be in PEM and fit together.") : 0));
	}

	/* From here on the handle owns conf. */
	rd_kafka_set_log_queue(consumer->handle, NULL);
	consumer->messages = rd_kafka_queue_get_consumer(consumer->handle);
	consumer->events = rd_kafka_queue_get_main(consumer->handle);
	{
		static const uint64 one = 1;

		rd_kafka_queue_io_event_enable(consumer->messages, consumer->fd, &one, sizeof(one));
		rd_kafka_queue_io_event_enable(consumer->events, consumer->fd, &one, sizeof(one));
	}
	dlist_push_tail(&consumers, &consumer->node);
	if (!registered)
	{
		on_shmem_exit(destroy_all, 0);	/* not before_shmem_exit(): run_pipeline() has a cleanup there */
		registered = true;
	}
	return consumer;
}

static void
free_assignment(KafkaConsumer *consumer)
{
	for (int i = 0; i < consumer->ntopics; i++)
	{
		free(consumer->topics[i]);
		free(consumer->places[i]);
	}
	free(consumer->topics);
	free(consumer->places);
	free(consumer->nplaces);
	free(consumer->parts);
	consumer->topics = NULL;
	consumer->places = NULL;
	consumer->nplaces = NULL;
	consumer->parts = NULL;
	consumer->ntopics = consumer->nparts = 0;
}

/* The end of a handle, for who waits for it. Never freed if nobody waited long enough. */
typedef struct Ending
{
	rd_kafka_t *handle;
	int			fd;				/* readable once the handle is gone */
} Ending;

static void *
end_handle(void *arg)
{
	Ending	   *ending = arg;
	static const uint64 one = 1;

	/* No group was joined: nothing to tell a coordinator that may be away. */
	rd_kafka_destroy_flags(ending->handle, RD_KAFKA_DESTROY_F_NO_CONSUMER_CLOSE);
	(void) !write(ending->fd, &one, sizeof(one));
	return NULL;
}

/*
 * Destroy a handle, but do not wait for ever: the library may, when a topic was deleted under its
 * consumer (its issues 3007, 3954 and 4362), and a worker has to end. False: what is left behind is idle
 * threads that know nothing of ours but the gate, and end with the process.
 */
static bool
destroy_handle(rd_kafka_t *handle)
{
	Ending	   *ending = malloc(sizeof(Ending));
	int64		deadline = ClockMonotonicMs() + DESTROY_TIMEOUT_MS;
	int64		left;
	pthread_t	thread;
	sigset_t	all;
	sigset_t	before;
	int			failed = ENOMEM;

	if (ending)
	{
		ending->handle = handle;
		ending->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
		sigfillset(&all);
		pthread_sigmask(SIG_SETMASK, &all, &before);
		failed = ending->fd < 0 ? errno : pthread_create(&thread, NULL, end_handle, ending);
		pthread_sigmask(SIG_SETMASK, &before, NULL);
	}
	if (failed)
	{
		if (ending && ending->fd >= 0)
			close(ending->fd);
		free(ending);
		rd_kafka_destroy_flags(handle, RD_KAFKA_DESTROY_F_NO_CONSUMER_CLOSE);
		return true;
	}
	while ((left = deadline - ClockMonotonicMs()) > 0)
	{
		struct pollfd done = {.fd = ending->fd,.events = POLLIN};

		if (poll(&done, 1, (int) left) > 0)
		{
			pthread_join(thread, NULL);
			close(ending->fd);
			free(ending);
			return true;
		}
	}
	pthread_detach(thread);
	ereport(LOG,
			(errmsg("a Kafka consumer did not end within %d ms and was left behind", DESTROY_TIMEOUT_MS)));
	return false;
}

void
KafkaConsumerDestroy(KafkaConsumer *consumer)
{
	bool		ended;

	if (consumer == NULL)
		return;
	dlist_delete(&consumer->node);
	KafkaRelease(consumer);
	rd_kafka_queue_io_event_enable(consumer->messages, -1, NULL, 0);
	rd_kafka_queue_io_event_enable(consumer->events, -1, NULL, 0);
	rd_kafka_queue_destroy(consumer->messages);
	rd_kafka_queue_destroy(consumer->events);
	ended = destroy_handle(consumer->handle);
	close(consumer->fd);
	free_assignment(consumer);
	forget_credentials(consumer);
	free(consumer->held);
	free(consumer->headers);
	if (!ended)
		return;					/* its threads may still look at the gate */
	GateFree(consumer->gate);
	free(consumer);
}

int
KafkaConsumerFd(KafkaConsumer *consumer)
{
	return consumer->fd;
}

void
KafkaConsumerDrainFd(KafkaConsumer *consumer)
{
	uint64		value;

	while (read(consumer->fd, &value, sizeof(value)) == sizeof(value))
		 /* one read empties an eventfd */ ;
}

/* ---- questions ---- */

KafkaResult
KafkaCountPartitions(KafkaConsumer *consumer, const char *topic, int timeout_ms, int32 *npartitions)
{
	rd_kafka_topic_t *handle;
	const struct rd_kafka_metadata *metadata = NULL;
	rd_kafka_resp_err_t err;

	(void) rd_kafka_poll(consumer->handle, 0);
	handle = rd_kafka_topic_new(consumer->handle, topic, NULL);
	if (handle == NULL)
		return result_of(consumer, rd_kafka_last_error());
	err = rd_kafka_metadata(consumer->handle, 0, handle, &metadata, timeout_ms);
	rd_kafka_topic_destroy(handle);
	*npartitions = 0;
	if (err == RD_KAFKA_RESP_ERR_NO_ERROR)
	{
		if (metadata->topic_cnt != 1)
			err = RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART;
		else
		{
			err = metadata->topics[0].err;
			*npartitions = metadata->topics[0].partition_cnt;
		}
		rd_kafka_metadata_destroy(metadata);
	}
	(void) rd_kafka_poll(consumer->handle, 0);
	return result_of(consumer, err);
}

/* How long a broker may hold a fetch for records to come, in ms. */
static int
longest_fetch(KafkaConsumer *consumer)
{
	char		value[32] = "";
	size_t		len = sizeof(value);

	(void) rd_kafka_conf_get(rd_kafka_conf(consumer->handle), "fetch.wait.max.ms", value, &len);
	return atoi(value);
}

/* Times that mean no time. */
#define AT_BEGINNING RD_KAFKA_OFFSET_BEGINNING
#define AT_END RD_KAFKA_OFFSET_END

/*
 * First offset at or after a time. The library's own question for both ends waits without limit for a leader that
 * cannot be reached, whatever time-out it is given; this one does not.
 */
static rd_kafka_resp_err_t
list_offset(KafkaConsumer *consumer, const char *topic, int32 partition, int64 when_ms, int timeout_ms,
			int64 *offset)
{
	rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(1);
	rd_kafka_resp_err_t err;

	/* The broker answers in order, and may be holding a fetch: who asks again sooner is never answered. */
	timeout_ms = Max(timeout_ms, longest_fetch(consumer) + ANSWER_MS);
	rd_kafka_topic_partition_list_add(list, topic, partition)->offset = when_ms;
	err = rd_kafka_offsets_for_times(consumer->handle, list, timeout_ms);
	if (err == RD_KAFKA_RESP_ERR_NO_ERROR)
		err = list->elems[0].err;
	*offset = list->elems[0].offset;
	rd_kafka_topic_partition_list_destroy(list);
	return err;
}

KafkaResult
KafkaWatermarks(KafkaConsumer *consumer, const char *topic, int32 partition, int timeout_ms,
				int64 *low, int64 *high)
{
	rd_kafka_resp_err_t err = list_offset(consumer, topic, partition, AT_BEGINNING, timeout_ms, low);

	if (err == RD_KAFKA_RESP_ERR_NO_ERROR)
		err = list_offset(consumer, topic, partition, AT_END, timeout_ms, high);
	return result_of(consumer, err);
}

KafkaResult
KafkaOffsetForTime(KafkaConsumer *consumer, const char *topic, int32 partition, int64 when_ms,
				   int timeout_ms, int64 *offset)
{
	rd_kafka_resp_err_t err = list_offset(consumer, topic, partition, Max(when_ms, 0), timeout_ms, offset);

	/* No record is that young: the end. */
	if (err == RD_KAFKA_RESP_ERR_NO_ERROR && *offset < 0)
		err = list_offset(consumer, topic, partition, AT_END, timeout_ms, offset);
	return result_of(consumer, err);
}

/* ---- assignment ---- */

/* Copy topics and partitions, with the way back from a message to its place. False: out of memory. */
static bool
keep_assignment(KafkaConsumer *consumer, const char *const *topics, int ntopics,
				const KafkaPartition *parts, int nparts)
{
	free_assignment(consumer);
	consumer->topics = calloc(ntopics + 1, sizeof(char *));
	consumer->places = calloc(ntopics + 1, sizeof(int *));
	consumer->nplaces = calloc(ntopics + 1, sizeof(int));
	consumer->parts = calloc(nparts + 1, sizeof(KafkaPartition));
	if (!consumer->topics || !consumer->places || !consumer->nplaces || !consumer->parts)
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
		part->end_offset = -1;
		consumer->places[part->topic][part->partition] = i;
	}
	consumer->nparts = nparts;
	return true;
}

KafkaResult
KafkaAssign(KafkaConsumer *consumer, const char *const *topics, int ntopics,
			const KafkaPartition *parts, int nparts)
{
	rd_kafka_topic_partition_list_t *list;
	rd_kafka_resp_err_t err;

	if (!keep_assignment(consumer, topics, ntopics, parts, nparts))
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
	consumer->ends_at = 0;

	/* Drop the old assignment first, so that nothing fetched for it comes through. */
	(void) rd_kafka_assign(consumer->handle, NULL);
	if (nparts == 0)
		return KAFKA_OK;
	list = rd_kafka_topic_partition_list_new(nparts);
	for (int i = 0; i < nparts; i++)
		rd_kafka_topic_partition_list_add(list, topics[parts[i].topic], parts[i].partition)->offset =
			parts[i].next_offset;
	err = rd_kafka_assign(consumer->handle, list);
	rd_kafka_topic_partition_list_destroy(list);
	return result_of(consumer, err);
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

/* The log does not have our offset: tell the gap in numbers. */
static void
set_gap(KafkaConsumer *consumer, KafkaPartition *part)
{
	int64		low = -1;
	int64		high = -1;
	char		message[256];

	if (list_offset(consumer, consumer->topics[part->topic], part->partition, AT_BEGINNING, 1000, &low) ||
		list_offset(consumer, consumer->topics[part->topic], part->partition, AT_END, 1000, &high))
		low = high = -1;
	if (low > part->next_offset)
		snprintf(message, sizeof(message), "offsets " INT64_FORMAT " to " INT64_FORMAT " are not in the log any more, which begins at " INT64_FORMAT,
				 part->next_offset, low - 1, low);
	else if (high >= 0 && high < part->next_offset)
		snprintf(message, sizeof(message), "the log ends at " INT64_FORMAT ", before the position " INT64_FORMAT "; the topic was cut or created again",
				 high, part->next_offset);
	else
		snprintf(message, sizeof(message), "offset " INT64_FORMAT " is not in the log", part->next_offset);
	set_fault(part, KAFKA_FAULT_GAP, message);
}

/* A message that is no record: the end of a partition, or an error. */
static void
take_notice(KafkaConsumer *consumer, const rd_kafka_message_t *message, KafkaPartition *part)
{
	const char *text = rd_kafka_message_errstr(message);

	if (part == NULL)
	{
		note_error(consumer->handle, message->err, text, consumer);
		return;
	}
	switch (message->err)
	{
		case RD_KAFKA_RESP_ERR__PARTITION_EOF:
			note_progress(consumer);
			part->at_end = true;
			part->next_offset = Max(part->next_offset, message->offset);
			part->end_offset = part->next_offset;
			break;
		case RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET:
		case RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE:
			set_gap(consumer, part);
			break;
		case RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART:
		case RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC:
		case RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION:
			set_fault(part, KAFKA_FAULT_GONE, text);
			break;
		case RD_KAFKA_RESP_ERR__BAD_MSG:
		case RD_KAFKA_RESP_ERR__BAD_COMPRESSION:
		case RD_KAFKA_RESP_ERR_INVALID_MSG:
		case RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE:
			set_fault(part, KAFKA_FAULT_CORRUPT, text);
			break;
		case RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED:
			set_fault(part, KAFKA_FAULT_DENIED, text);
			break;
		default:
			note_error(consumer->handle, message->err, text, consumer);
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

static void
take_record(KafkaConsumer *consumer, const rd_kafka_message_t *message, const KafkaPartition *part,
			Record *record)
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
	take_headers(consumer, message, record);
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
	if (rd_kafka_metadata(consumer->handle, 0, NULL, &metadata, PROBE_TIMEOUT_MS) ==
		RD_KAFKA_RESP_ERR_NO_ERROR)
	{
		rd_kafka_metadata_destroy(metadata);
		note_progress(consumer);
	}
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
	if (message->err)
		take_notice(consumer, message, part);
	else if (part == NULL || message->offset < part->next_offset)
		 /* of an older assignment, or delivered again */ ;
	else if (message->len > (size_t) hybridiot_max_record_size * 1024)
		set_fault(part, KAFKA_FAULT_CORRUPT,
				  psprintf("the record at offset " INT64_FORMAT " has %zu bytes, more than hybridiot.max_record_size",
						   (int64) message->offset, message->len));
	else if (part->fault == KAFKA_FAULT_NONE)
	{
		take_record(consumer, message, part, record);
		part->next_offset = message->offset + 1;
		part->at_end = false;
		return true;
	}
	return false;
}

int
KafkaConsume(KafkaConsumer *consumer, Record *records, int max, int timeout_ms)
{
	const rd_kafka_topic_t *last_handle = NULL;
	int			last_topic = -1;
	int			n = 0;
	ssize_t		got;

	(void) rd_kafka_poll(consumer->handle, 0);
	max = Min(max, CONSUME_MAX);
	if (!grow((void **) &consumer->held, &consumer->held_size, consumer->nheld + max,
			  sizeof(rd_kafka_message_t *)))
		ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));

	/* Who gets nothing goes to sleep, and the queue wakes us only when it was empty: empty it. */
	do
	{
		rd_kafka_message_t **messages = consumer->held + consumer->nheld;

		got = rd_kafka_consume_batch_queue(consumer->messages, timeout_ms, messages, max);
		consumer->nheld += Max(got, 0);
		for (ssize_t i = 0; i < got; i++)
		{
			KafkaPartition *part = find_partition(consumer, messages[i], &last_handle, &last_topic);

			if (take_message(consumer, messages[i], part, &records[n]))
				n++;
			else
			{
				rd_kafka_message_destroy(messages[i]);
				messages[i] = NULL;
			}
		}
		if (n == 0)
			consumer->nheld -= Max(got, 0);
	} while (n == 0 && got > 0 && got == max);

	nudge(consumer, n);
	if (n > 0)
		note_progress(consumer);
	else if (consumer->error[0])
		probe(consumer);
	hear_gate(consumer);
	look_up_ends(consumer);
	return n;
}

void
KafkaRelease(KafkaConsumer *consumer)
{
	for (int i = 0; i < consumer->nheld; i++)
		if (consumer->held[i])
			rd_kafka_message_destroy(consumer->held[i]);
	consumer->nheld = 0;
	for (int i = 0; i < consumer->nheaders; i++)
		free(consumer->headers[i]);
	consumer->nheaders = 0;
}
