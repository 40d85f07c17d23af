#!/usr/bin/python3
"""The gateway of the plant: datagrams from the sensors become AMQP messages.

It does not look into a reading; what a sensor sent is what the broker gets, with
the device's name and the site as application properties.  Readings wait here
while the broker is away, and one that was on its way when the connection was
lost is sent again: at least once.
"""
import argparse
import signal
import socket
from collections import deque

from proton import Message
from proton.handlers import MessagingHandler
from proton.reactor import Container

POLL = 0.01                         # seconds between two looks at the socket
BUFFER = 100000                     # readings kept while the broker is away; older ones go first


class Gateway(MessagingHandler):
    def __init__(self, options):
        super().__init__()
        self.options = options
        host, port = options.listen.rsplit(':', 1)
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self.socket.bind((host, int(port)))
        self.socket.setblocking(False)
        self.waiting = deque(maxlen=BUFFER)
        self.in_flight = {}             # delivery tag -> message
        self.stopping = False

    def on_start(self, event):
        self.connection = event.container.connect(self.options.broker, user=self.options.user, password=self.options.password,
                                                  allow_insecure_mechs=True)
        self.sender = event.container.create_sender(self.connection, self.options.address)
        event.container.schedule(POLL, self)
        print('listening on', '%s:%d' % self.socket.getsockname(), flush=True)

    def on_timer_task(self, event):
        self.receive()
        self.send()
        if self.stopping and not self.waiting and not self.in_flight:
            self.connection.close()
        else:
            event.container.schedule(POLL, self)

    def receive(self):
        while True:
            try:
                datagram = self.socket.recv(65536)
            except BlockingIOError:
                return
            device, _, payload = datagram.partition(b'\n')
            self.waiting.append(Message(
                body=payload, inferred=True, durable=True, content_type='application/json',
                properties={'device_id': device.decode('utf-8', 'replace'), 'site': self.options.site}))

    def send(self):
        while self.waiting and self.sender.credit > 0:
            message = self.waiting.popleft()
            self.in_flight[self.sender.send(message).tag] = message

    def on_sendable(self, event):
        self.send()

    def on_accepted(self, event):
        self.in_flight.pop(event.delivery.tag, None)

    def on_released(self, event):
        message = self.in_flight.pop(event.delivery.tag, None)
        if message is not None:
            self.waiting.appendleft(message)

    def on_rejected(self, event):
        print('the broker refused a reading:', event.delivery.remote.condition, flush=True)
        self.in_flight.pop(event.delivery.tag, None)

    def on_disconnected(self, event):
        self.waiting.extendleft(reversed(self.in_flight.values()))
        self.in_flight.clear()

    def stop(self, *_):
        self.stopping = True


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--listen', required=True, metavar='HOST:PORT', help='UDP address for the sensors')
    parser.add_argument('--broker', required=True, metavar='URL', help='AMQP broker, amqp://HOST:PORT')
    parser.add_argument('--user')
    parser.add_argument('--password-file', type=lambda path: open(path).read().strip(), dest='password')
    parser.add_argument('--address', default='telemetry')
    parser.add_argument('--site', default='hall-1')
    options = parser.parse_args()
    gateway = Gateway(options)
    for s in (signal.SIGTERM, signal.SIGINT):
        signal.signal(s, gateway.stop)
    Container(gateway).run()


if __name__ == '__main__':
    main()
