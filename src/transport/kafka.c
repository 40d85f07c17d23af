/*
 * kafka.c
 *		librdkafka behind a small face: the life of a consumer, its errors, questions to brokers.
 *
 * This file, kafka_read.c and kafka_property.c alone include the library's headers. Nothing here touches SPI or the
 * catalog, and no thread of the library ever runs PostgreSQL's code: signals are
 * blocked while threads are made, logs and errors come through queues that the main thread
 * polls, and callbacks only copy text; those that run on the library's threads are the gate's, and one that counts. Consumers are destroyed at the
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

#include "port/atomics.h"
#include "storage/ipc.h"
#include "utils/timestamp.h"

#include "core/clock.h"
#include "transport/gate.h"
#include "transport/kafka_internal.h"
#include "transport/kafka_property.h"

#define DESTROY_TIMEOUT_MS 2000
#define ANSWER_MS 1000			/* for a broker to answer what needs no waiting */
#define METADATA_REQUEST 3		/* in Kafka's protocol */

static dlist_head consumers = DLIST_STATIC_INIT(consumers);

/* Requests for metadata of all consumers of this process, our own ones too. Counted by the library's threads. */
static pg_atomic_uint32 metadata_requests;

/* ---- errors ---- */

/* Librdkafka before 2.6.1 repeats its nonce in SCRAM, which Kafka 4 refuses. */
#define SCRAM_MENDED 0x02060100

void
KafkaSetFault(KafkaPartition *part, KafkaFault fault, const char *message)
{
	part->fault = fault;
	part->readable_from = -1;
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
			KafkaSetFault(part, KAFKA_FAULT_GONE, reason + strlen(name));
	}
}

/* Does the library's message look as if the listener expects something else? Only for brokers that never answered. */
static bool
looks_misspoken(const char *reason)
{
	return strstr(reason, "security.protocol") || strstr(reason, "SSL alert") ||
		strstr(reason, "in state UP");
}

void
KafkaNoteError(rd_kafka_t *handle, int err, const char *reason, void *opaque)
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

void
KafkaNoteProgress(KafkaConsumer *consumer)
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
void
KafkaHearGate(KafkaConsumer *consumer)
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

KafkaResult
KafkaResultOf(KafkaConsumer *consumer, rd_kafka_resp_err_t err)
{
	switch (err)
	{
		case RD_KAFKA_RESP_ERR_NO_ERROR:
			KafkaNoteProgress(consumer);
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
			KafkaHearGate(consumer);
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

/* Runs in a thread of the library. */
static rd_kafka_resp_err_t
count_request(rd_kafka_t *handle, int socket, const char *broker, int32_t broker_id, int16_t api_key,
			  int16_t api_version, int32_t correlation, size_t size, void *opaque)
{
	if (api_key == METADATA_REQUEST)
		(void) pg_atomic_fetch_add_u32(&metadata_requests, 1);
	return RD_KAFKA_RESP_ERR_NO_ERROR;
}

static rd_kafka_resp_err_t
listen_to_requests(rd_kafka_t *handle, const rd_kafka_conf_t *conf, void *opaque, char *errstr, size_t errlen)
{
	return rd_kafka_interceptor_add_on_request_sent(handle, "hybridiot", count_request, NULL);
}

static rd_kafka_conf_t *
make_conf(const Option *options, int noptions)
{
	rd_kafka_conf_t *conf = KafkaConfCreate(options, noptions);

	rd_kafka_conf_set_error_cb(conf, KafkaNoteError);
	rd_kafka_conf_set_log_cb(conf, drop_log);
	(void) rd_kafka_conf_interceptor_add_on_new(conf, "hybridiot", listen_to_requests, NULL);
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
	bool		tried = false;
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
			tried = true;
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
		/*
		 * When rd_kafka_new() fails, conf is still ours, but for its list of interceptors, which the library has
		 * freed in a copy: to destroy conf would free that again. A few kilobytes are left behind.
		 */
		if (!tried)
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
	KafkaFreeAssignment(consumer);
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
KafkaConsumerLeave(KafkaConsumer *consumer)
{
	if (ClockMonotonicMs() - consumer->left_at > ALONE_MS)
		consumer->doubtful = true;
}

void
KafkaConsumerDrainFd(KafkaConsumer *consumer)
{
	uint64		value;

	while (read(consumer->fd, &value, sizeof(value)) == sizeof(value))
		 /* one read empties an eventfd */ ;
	/* Who waited for the queue would have been woken: it was empty, and not left alone. */
	consumer->left_at = ClockMonotonicMs();
}

/* ---- questions ---- */

/* Has the library asked for metadata by itself? */
bool
KafkaIsDoubtful(KafkaConsumer *consumer)
{
	uint32		requests = pg_atomic_read_u32(&metadata_requests);

	if (requests != consumer->requests_seen)
		consumer->doubtful = true;
	consumer->requests_seen = requests;
	return consumer->doubtful;
}

/* Requests of our own are no sign of anything: every question is put between these two. */
void
KafkaQuestionBegins(KafkaConsumer *consumer)
{
	(void) KafkaIsDoubtful(consumer);
}

void
KafkaQuestionEnds(KafkaConsumer *consumer)
{
	consumer->requests_seen = pg_atomic_read_u32(&metadata_requests);
}

KafkaResult
KafkaCountPartitions(KafkaConsumer *consumer, const char *topic, int timeout_ms, int32 *npartitions)
{
	rd_kafka_topic_t *handle;
	const struct rd_kafka_metadata *metadata = NULL;
	rd_kafka_resp_err_t err;

	(void) rd_kafka_poll(consumer->handle, 0);
	KafkaQuestionBegins(consumer);
	handle = rd_kafka_topic_new(consumer->handle, topic, NULL);
	if (handle == NULL)
		return KafkaResultOf(consumer, rd_kafka_last_error());
	err = rd_kafka_metadata(consumer->handle, 0, handle, &metadata, timeout_ms);
	rd_kafka_topic_destroy(handle);
	KafkaQuestionEnds(consumer);
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
	return KafkaResultOf(consumer, err);
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
	KafkaQuestionBegins(consumer);
	err = rd_kafka_offsets_for_times(consumer->handle, list, timeout_ms);
	KafkaQuestionEnds(consumer);
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
	return KafkaResultOf(consumer, err);
}

#if RD_KAFKA_VERSION >= 0x020300ff
static rd_kafka_resp_err_t
id_in_event(rd_kafka_event_t *event, char **id)
{
	const rd_kafka_TopicDescription_t **topics;
	const rd_kafka_Uuid_t *uuid;
	const rd_kafka_error_t *error;
	size_t		n;

	if (rd_kafka_event_error(event) != RD_KAFKA_RESP_ERR_NO_ERROR)
		return rd_kafka_event_error(event);
	topics = rd_kafka_DescribeTopics_result_topics(rd_kafka_event_DescribeTopics_result(event), &n);
	if (n != 1)
		return RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART;
	error = rd_kafka_TopicDescription_error(topics[0]);
	if (error && rd_kafka_error_code(error) != RD_KAFKA_RESP_ERR_NO_ERROR)
		return rd_kafka_error_code(error);
	uuid = rd_kafka_TopicDescription_topic_id(topics[0]);
	if (uuid && (rd_kafka_Uuid_most_significant_bits(uuid) != 0 || rd_kafka_Uuid_least_significant_bits(uuid) != 0))
		*id = pstrdup(rd_kafka_Uuid_base64str(uuid));
	return RD_KAFKA_RESP_ERR_NO_ERROR;
}
#endif

KafkaResult
KafkaTopicId(KafkaConsumer *consumer, const char *topic, int timeout_ms, char **id)
{
	rd_kafka_resp_err_t err = RD_KAFKA_RESP_ERR_NO_ERROR;

	*id = NULL;
#if RD_KAFKA_VERSION >= 0x020300ff
	{
		rd_kafka_TopicCollection_t *names = rd_kafka_TopicCollection_of_topic_names(&topic, 1);
		rd_kafka_AdminOptions_t *options = rd_kafka_AdminOptions_new(consumer->handle, RD_KAFKA_ADMIN_OP_DESCRIBETOPICS);
		rd_kafka_queue_t *answers = rd_kafka_queue_new(consumer->handle);
		rd_kafka_event_t *event;

		KafkaQuestionBegins(consumer);
		(void) rd_kafka_AdminOptions_set_request_timeout(options, timeout_ms, NULL, 0);
		rd_kafka_DescribeTopics(consumer->handle, names, options, answers);
		event = rd_kafka_queue_poll(answers, timeout_ms);
		KafkaQuestionEnds(consumer);
		err = event ? id_in_event(event, id) : RD_KAFKA_RESP_ERR__TIMED_OUT;
		if (event)
			rd_kafka_event_destroy(event);
		rd_kafka_queue_destroy(answers);
		rd_kafka_AdminOptions_destroy(options);
		rd_kafka_TopicCollection_destroy(names);
	}
	if (err == RD_KAFKA_RESP_ERR__UNSUPPORTED_FEATURE || err == RD_KAFKA_RESP_ERR_UNSUPPORTED_VERSION)
		err = RD_KAFKA_RESP_ERR_NO_ERROR;	/* nobody knows */
#endif
	return KafkaResultOf(consumer, err);
}

KafkaResult
KafkaOffsetForTime(KafkaConsumer *consumer, const char *topic, int32 partition, int64 when_ms,
				   int timeout_ms, int64 *offset)
{
	rd_kafka_resp_err_t err = list_offset(consumer, topic, partition, Max(when_ms, 0), timeout_ms, offset);

	/* No record is that young: the end. */
	if (err == RD_KAFKA_RESP_ERR_NO_ERROR && *offset < 0)
		err = list_offset(consumer, topic, partition, AT_END, timeout_ms, offset);
	return KafkaResultOf(consumer, err);
}
