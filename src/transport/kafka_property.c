/*
 * kafka_property.c
 *		Properties of librdkafka: which ones users may set, which ones are ours.
 */
#include "postgres.h"

#include <librdkafka/rdkafka.h>

#include "transport/kafka.h"
#include "transport/kafka_property.h"

#define RECEIVE_BYTES 100000000
#define RECEIVE_MARGIN (1024 * 1024)	/* what surrounds a record in a response */

/*
 * What users may set on a server, beyond the options that have names of their
 * own: nothing that loads code, runs commands, names files, logs, or touches what
 * exactly once depends on.
 */
static const char *const allowed[] = {
	"broker.address.family",
	"broker.address.ttl",
	"client.id",
	"client.rack",
	"connections.max.idle.ms",
	"fetch.error.backoff.ms",
	"fetch.max.bytes",
	"fetch.min.bytes",
	"fetch.wait.max.ms",
	"max.partition.fetch.bytes",
	"metadata.max.age.ms",
	"queued.max.messages.kbytes",
	"queued.min.messages",
	"receive.message.max.bytes",
	"reconnect.backoff.max.ms",
	"reconnect.backoff.ms",
	"socket.connection.setup.timeout.ms",
	"socket.keepalive.enable",
	"socket.max.fails",
	"socket.nagle.disable",
	"socket.receive.buffer.bytes",
	"socket.send.buffer.bytes",
	"socket.timeout.ms",
	"ssl.cipher.suites",
	"ssl.curves.list",
	"ssl.sigalgs.list",
	"topic.metadata.refresh.interval.ms",
	NULL
};

/* Set before the user's properties: may be overridden where the list above has them. */
static const Option defaults[] = {
	{"client.id", "hybridiot"},
	{"queued.min.messages", "100000"},	/* a message takes 300 bytes beside its own */
	{"queued.max.messages.kbytes", "65536"},
	{"fetch.wait.max.ms", "1000"},	/* how often a silent topic is asked; what comes is told at once */
	{"socket.keepalive.enable", "true"},
	{"socket.nagle.disable", "true"},
	{"reconnect.backoff.max.ms", "5000"},
#if RD_KAFKA_VERSION >= KAFKA_QUEUE_BACKOFF_VERSION
	{"fetch.queue.backoff.ms", "2"},	/* the queue is read in large gulps */
#endif
};

/* Set after them: what exactly once needs, and what keeps the library quiet. */
static const Option ours[] = {
	{"group.id", "hybridiot"},	/* for the consumer's queue; never joined, nothing committed */
	{"enable.auto.commit", "false"},
	{"enable.auto.offset.store", "false"},
	{"auto.offset.reset", "error"},
	{"check.crcs", "true"},
	{"isolation.level", "read_committed"},
	{"enable.partition.eof", "true"},
	{"allow.auto.create.topics", "false"},
	{"ssl.endpoint.identification.algorithm", "https"},
	{"log.queue", "true"},
};

bool
KafkaPropertyAllowed(const char *property)
{
	for (int i = 0; allowed[i]; i++)
		if (strcmp(allowed[i], property) == 0)
			return true;
	return false;
}

const char *const *
KafkaAllowedProperties(void)
{
	return allowed;
}

bool
KafkaPropertyCheck(const char *property, const char *value, char *errbuf, size_t errlen)
{
	rd_kafka_conf_t *conf = rd_kafka_conf_new();
	bool		good;

	Assert(KafkaPropertyAllowed(property));
	good = rd_kafka_conf_set(conf, property, value, errbuf, errlen) == RD_KAFKA_CONF_OK;
	rd_kafka_conf_destroy(conf);
	return good;
}

const char *
KafkaLibraryVersion(void)
{
	return rd_kafka_version_str();
}

static void
set_property(rd_kafka_conf_t *conf, const Option *option)
{
	char		message[256];

	if (rd_kafka_conf_set(conf, option->name, option->value, message, sizeof(message)) != RD_KAFKA_CONF_OK)
	{
		rd_kafka_conf_destroy(conf);
		/* The message may quote the value, which may be a secret: say only the name. */
		ereport(ERROR,
				(errcode(ERRCODE_FDW_INVALID_OPTION_NAME),
				 errmsg("librdkafka %s refuses property \"%s\"", rd_kafka_version_str(), option->name)));
	}
}

rd_kafka_conf_t *
KafkaConfCreate(const Option *options, int noptions)
{
	rd_kafka_conf_t *conf = rd_kafka_conf_new();
	char		receive[32];

	for (int i = 0; i < lengthof(defaults); i++)
		set_property(conf, &defaults[i]);

	/* The library's own bound, unless a single record of the size we take would not pass it. */
	snprintf(receive, sizeof(receive), INT64_FORMAT,
			 Min(Max((int64) RECEIVE_BYTES, hybridiot_max_record_size * INT64CONST(1024) + RECEIVE_MARGIN),
				 (int64) PG_INT32_MAX));
	set_property(conf, &(Option) {"receive.message.max.bytes", receive});
	for (int i = 0; i < noptions; i++)
	{
		Option		option = options[i];

		/* Whatever ciphers the user likes, not those without a certificate or without encryption. */
		if (strcmp(option.name, "ssl.cipher.suites") == 0)
			option.value = psprintf("%s:!aNULL:!eNULL", option.value);
		set_property(conf, &option);
	}
	for (int i = 0; i < lengthof(ours); i++)
		set_property(conf, &ours[i]);
	return conf;
}
