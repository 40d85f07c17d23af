/*
 * mock.c
 *		librdkafka's own mock cluster as a process of its own, for what one real broker cannot show: leaders that move.
 *
 *	mock BROKERS TOPIC PARTITIONS
 *
 * Prints the bootstrap servers, then obeys lines from standard input and answers each with "ok":
 *	leader PARTITION BROKER			from now on that broker (1, 2, ...) leads the partition
 *	down BROKER | up BROKER			connections are closed and refused, or taken again
 * Ends with its standard input.
 */
#include <stdio.h>
#include <stdlib.h>

#include <librdkafka/rdkafka.h>
#include <librdkafka/rdkafka_mock.h>

int
main(int argc, char **argv)
{
	char		message[256];
	char		line[256];
	rd_kafka_t *handle;
	rd_kafka_mock_cluster_t *cluster;
	int			brokers;

	if (argc != 4)
	{
		fprintf(stderr, "usage: mock BROKERS TOPIC PARTITIONS\n");
		return 2;
	}
	brokers = atoi(argv[1]);
	handle = rd_kafka_new(RD_KAFKA_PRODUCER, rd_kafka_conf_new(), message, sizeof(message));
	cluster = handle ? rd_kafka_mock_cluster_new(handle, brokers) : NULL;
	if (cluster == NULL ||
		rd_kafka_mock_topic_create(cluster, argv[2], atoi(argv[3]), brokers) != RD_KAFKA_RESP_ERR_NO_ERROR)
	{
		fprintf(stderr, "mock: no cluster\n");
		return 1;
	}
	printf("%s\n", rd_kafka_mock_cluster_bootstraps(cluster));
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin))
	{
		int			a;
		int			b;
		rd_kafka_resp_err_t err = RD_KAFKA_RESP_ERR__INVALID_ARG;

		if (sscanf(line, "leader %d %d", &a, &b) == 2)
			err = rd_kafka_mock_partition_set_leader(cluster, argv[2], a, b);
		else if (sscanf(line, "down %d", &a) == 1)
			err = rd_kafka_mock_broker_set_down(cluster, a);
		else if (sscanf(line, "up %d", &a) == 1)
			err = rd_kafka_mock_broker_set_up(cluster, a);
		printf("%s\n", err ? rd_kafka_err2str(err) : "ok");
		fflush(stdout);
	}
	rd_kafka_mock_cluster_destroy(cluster);
	rd_kafka_destroy(handle);
	return 0;
}
