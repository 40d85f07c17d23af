#!/usr/bin/python3
"""The bridge: AMQP messages become Kafka records, at least once.

A message is settled only after Kafka has acknowledged its record: accepted if
it was written, released (so that the broker gives it again) if not.  The
device's name is the record's key, so that the readings of one device stay in
order; the application properties become headers, the body is not touched.

On SIGTERM it takes no more messages, waits for Kafka, settles and closes.
"""
import argparse
import signal
import sys

from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import AdminClient, NewTopic
from proton import Delivery
from proton.handlers import MessagingHandler
from proton.reactor import Container

POLL = 0.005                        # seconds between two looks at Kafka's acknowledgements
CREDIT = 500                        # messages taken from the broker and not yet settled


class Bridge(MessagingHandler):
    def __init__(self, options):
        super().__init__(prefetch=0, auto_accept=False, auto_settle=False)
        self.options = options
        self.producer = Producer({'bootstrap.servers': options.kafka, 'enable.idempotence': True, 'linger.ms': 5})
        self.connected = 0              # how often: what came over an earlier connection cannot be settled
        self.unsettled = 0
        self.stopping = False
        self.draining = False

    def on_start(self, event):
        self.connection = event.container.connect(self.options.broker, user=self.options.user, password=self.options.password,
                                                  allow_insecure_mechs=True)
        self.receiver = event.container.create_receiver(self.connection, self.options.address)
        event.container.schedule(POLL, self)

    def on_link_opened(self, event):
        self.connected += 1
        self.unsettled = 0
        event.receiver.flow(CREDIT)
        print('reading', self.options.address, flush=True)

    def on_message(self, event):
        message, delivery, connected = event.message, event.delivery, self.connected
        properties = message.properties or {}
        self.unsettled += 1

        def acknowledged(error, _record):
            if connected == self.connected:
                self.settle(delivery, error)

        while True:
            try:
                self.producer.produce(self.options.topic, key=properties.get('device_id'), value=bytes(message.body),
                                      headers=[(k, str(v).encode()) for k, v in properties.items() if k != 'device_id'],
                                      on_delivery=acknowledged)
                return
            except BufferError:
                self.producer.poll(0.1)

    def settle(self, delivery, error):
        if error is not None:
            print('Kafka did not take a record:', error, flush=True)
        delivery.update(Delivery.RELEASED if error is not None else Delivery.ACCEPTED)
        delivery.settle()
        self.unsettled -= 1
        if not self.stopping:
            self.receiver.flow(1)

    def on_timer_task(self, event):
        self.producer.poll(0)
        if not self.stopping:
            event.container.schedule(POLL, self)
            return
        if not self.draining:
            self.draining = True
            self.receiver.drain(0)      # what is on its way still counts; nothing new is sent
        if self.receiver.credit > 0 or self.unsettled > 0:
            event.container.schedule(POLL, self)
        else:
            self.connection.close()

    def stop(self, *_):
        self.stopping = True


def create_topic(options):
    """The topic is created if it is missing; one that is there is taken as it is."""
    admin = AdminClient({'bootstrap.servers': options.kafka})
    try:
        admin.create_topics([NewTopic(options.topic, options.partitions, 1)])[options.topic].result(30)
    except KafkaException as e:
        if e.args[0].name() != 'TOPIC_ALREADY_EXISTS':
            sys.exit(f'bridge: {e}')


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--broker', required=True, metavar='URL', help='AMQP broker, amqp://HOST:PORT')
    parser.add_argument('--user')
    parser.add_argument('--password-file', type=lambda path: open(path).read().strip(), dest='password')
    parser.add_argument('--address', default='telemetry')
    parser.add_argument('--kafka', required=True, metavar='HOST:PORT', help='bootstrap servers')
    parser.add_argument('--topic', default='iot-temperature')
    parser.add_argument('--partitions', type=int, default=3)
    parser.add_argument('--create-topic', action='store_true', help='create the topic and leave')
    options = parser.parse_args()
    create_topic(options)
    if options.create_topic:
        return
    bridge = Bridge(options)
    for s in (signal.SIGTERM, signal.SIGINT):
        signal.signal(s, bridge.stop)
    Container(bridge).run()


if __name__ == '__main__':
    main()
