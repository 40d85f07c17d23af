/*
 * kafka_property.h
 *		The configuration of a Kafka client; for transport/kafka*.c only.
 */
#ifndef HYBRIDIOT_KAFKA_PROPERTY_H
#define HYBRIDIOT_KAFKA_PROPERTY_H

#include "core/hybridiot.h"

struct rd_kafka_conf_s;

/* The first version of the library with fetch.queue.backoff.ms. */
#define KAFKA_QUEUE_BACKOFF_VERSION 0x020200ff

/*
 * Our defaults, then the options (properties by their own names, checked already), then what nobody may change. No
 * callbacks. ereport HV00D if the library refuses one.
 */
extern struct rd_kafka_conf_s *KafkaConfCreate(const Option *options, int noptions);

#endif							/* HYBRIDIOT_KAFKA_PROPERTY_H */
