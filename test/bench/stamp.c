/*
 * stamp.c
 *		Records that say when they were sent, and a plain consumer that prints how late it saw them (test/bench/latency).
 *
 *	stamp send BOOTSTRAP TOPIC RATE COUNT		{"n": 0, "sent": 1767225600123456}, microseconds since 1970
 *	stamp print BOOTSTRAP TOPIC COUNT			one line a record: n, and microseconds since it was sent
 *
 * The consumer says "ready" once it has reached the end of what was there.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <librdkafka/rdkafka.h>

static int64_t
now_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	return (int64_t) now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

static void
set(rd_kafka_conf_t *conf, const char *name, const char *value)
{
	char		message[256];

	if (rd_kafka_conf_set(conf, name, value, message, sizeof(message)) != RD_KAFKA_CONF_OK)
	{
		fprintf(stderr, "%s\n", message);
		exit(1);
	}
}

static rd_kafka_t *
client(rd_kafka_type_t type, rd_kafka_conf_t *conf)
{
	char		message[256];
	rd_kafka_t *handle = rd_kafka_new(type, conf, message, sizeof(message));

	if (handle == NULL)
	{
		fprintf(stderr, "%s\n", message);
		exit(1);
	}
	return handle;
}

static void
send_records(rd_kafka_conf_t *conf, const char *name, int rate, int count)
{
	rd_kafka_t *producer;
	rd_kafka_topic_t *topic;
	int64_t		start;

	set(conf, "linger.ms", "0");
	producer = client(RD_KAFKA_PRODUCER, conf);
	topic = rd_kafka_topic_new(producer, name, NULL);
	start = now_us();
	for (int n = 0; n < count; n++)
	{
		int64_t		due = start + (int64_t) n * 1000000 / rate;
		struct timespec wait = {0};
		char		value[100];

		while (now_us() < due)
		{
			wait.tv_nsec = (due - now_us()) * 1000;
			if (wait.tv_nsec > 0 && wait.tv_nsec < 1000000000)
				nanosleep(&wait, NULL);
		}
		snprintf(value, sizeof(value), "{\"n\": %d, \"sent\": %" PRId64 "}", n, now_us());
		while (rd_kafka_produce(topic, RD_KAFKA_PARTITION_UA, RD_KAFKA_MSG_F_COPY, value, strlen(value),
								NULL, 0, NULL) != 0)
			rd_kafka_poll(producer, 1);
		rd_kafka_poll(producer, 0);
	}
	if (rd_kafka_flush(producer, 30000) != RD_KAFKA_RESP_ERR_NO_ERROR)
		exit(1);
	rd_kafka_topic_destroy(topic);
	rd_kafka_destroy(producer);
}

static void
print_records(rd_kafka_conf_t *conf, const char *name, int count)
{
	rd_kafka_t *consumer;
	rd_kafka_topic_partition_list_t *parts = rd_kafka_topic_partition_list_new(1);

	set(conf, "group.id", "stamp");
	set(conf, "enable.auto.commit", "false");
	set(conf, "enable.partition.eof", "true");
	consumer = client(RD_KAFKA_CONSUMER, conf);
	rd_kafka_poll_set_consumer(consumer);
	rd_kafka_topic_partition_list_add(parts, name, 0)->offset = RD_KAFKA_OFFSET_END;
	rd_kafka_assign(consumer, parts);
	rd_kafka_topic_partition_list_destroy(parts);
	for (int seen = 0; seen < count;)
	{
		rd_kafka_message_t *message = rd_kafka_consumer_poll(consumer, 30000);
		int			n;
		int64_t		sent;
		char		text[100];

		if (message == NULL)
			exit(1);
		if (message->err == RD_KAFKA_RESP_ERR__PARTITION_EOF && seen == 0)
		{
			puts("ready");
			fflush(stdout);
		}
		else if (message->err == RD_KAFKA_RESP_ERR_NO_ERROR)
		{
			snprintf(text, sizeof(text), "%.*s", (int) message->len, (const char *) message->payload);
			if (sscanf(text, "{\"n\": %d, \"sent\": %" SCNd64 "}", &n, &sent) != 2)
				exit(1);
			printf("%d %" PRId64 "\n", n, now_us() - sent);
			fflush(stdout);
			seen++;
		}
		rd_kafka_message_destroy(message);
	}
	rd_kafka_consumer_close(consumer);
	rd_kafka_destroy(consumer);
}

int
main(int argc, char **argv)
{
	rd_kafka_conf_t *conf = rd_kafka_conf_new();

	if (argc < 5)
		return 2;
	set(conf, "bootstrap.servers", argv[2]);
	if (strcmp(argv[1], "send") == 0 && argc == 6)
		send_records(conf, argv[3], atoi(argv[4]), atoi(argv[5]));
	else
		print_records(conf, argv[3], atoi(argv[4]));
	return 0;
}
