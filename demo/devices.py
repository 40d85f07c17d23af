#!/usr/bin/python3
"""Simulated presses: each has a thermometer and a fan.

Thermometer: a reading every 50 ms, sent to the gateway as one UDP datagram,
"NAME\\n{json}".  A few readings are held back and leave out of order, and one
datagram is torn, as happens in a plant.

Fan: commands come as AMQP messages on the device's own address and are answered
to their reply-to.  The device keeps the two rules every device should: it does
not start what is past its deadline, and does not do the same id twice.

The presses in HOT lose their cooling at some second; only a fan brings the
temperature down again.
"""
import argparse
import json
import random
import signal
import socket
import time
from collections import OrderedDict
from datetime import datetime, timezone

from proton import Message, int32
from proton.handlers import MessagingHandler
from proton.reactor import Container

TICK = 0.05                         # seconds between two readings of a press
SPIN_UP = 0.1                       # seconds a fan needs before it answers
HOT = {'press-3': 4.0, 'press-5': 16.0}     # press -> second at which its cooling fails
TORN = ('press-2', 9.0)             # who sends two thirds of a datagram besides the whole one, and when
REMEMBERED = 1000                   # ids a press remembers


class Press:
    def __init__(self, name, dice):
        self.name = name
        self.dice = dice
        self.temp = 52 + 4 * dice.random()
        self.rest = self.temp
        self.fan = False
        self.sent = 0
        self.done = OrderedDict()

    def step(self, elapsed):
        """One tick of a first-order model: the fan pulls to 45 °C, a fault pushes up."""
        fails_at = HOT.get(self.name)
        if self.fan:
            self.temp += (45 - self.temp) * 0.18 * TICK
        elif fails_at is not None and elapsed > fails_at:
            self.temp += 3.2 * TICK
        else:
            self.temp += (self.rest - self.temp) * 0.5 * TICK
        return self.temp + self.dice.gauss(0, 0.25)

    def command(self, message):
        """Act on a command: (status, payload)."""
        now = time.time()
        if message.expiry_time and now > message.expiry_time:
            return 408, {'error': 'the deadline has passed'}
        if message.id in self.done:
            return self.done[message.id]
        if message.subject != 'fan':
            return 404, {'error': f'no such command: {message.subject}'}
        try:
            self.fan = bool(json.loads(bytes(message.body))['on'])
        except (ValueError, KeyError, TypeError) as e:
            return 400, {'error': str(e)}
        self.done[message.id] = 200, {'fan': 'on' if self.fan else 'off', 'temp': round(self.temp, 1)}
        if len(self.done) > REMEMBERED:
            self.done.popitem(last=False)
        return self.done[message.id]


class Plant(MessagingHandler):
    def __init__(self, options):
        super().__init__(prefetch=10)
        self.options = options
        dice = random.Random(7)
        self.presses = {n: Press(n, random.Random(dice.random())) for n in (f'press-{i + 1}' for i in range(options.presses))}
        self.dice = dice
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        host, port = options.gateway.rsplit(':', 1)
        self.gateway = host, int(port)
        self.held = []                  # (when, datagram) that leave late
        self.torn = False
        self.stopping = False

    def on_start(self, event):
        self.connection = event.container.connect(self.options.broker, user=self.options.user, password=self.options.password,
                                                  allow_insecure_mechs=True)
        self.sender = event.container.create_sender(self.connection, None)
        for name in self.presses:
            event.container.create_receiver(self.connection, self.options.address.replace('{device}', name))
        self.started = self.next = time.monotonic()
        event.container.schedule(TICK, self)

    def on_message(self, event):
        name = event.receiver.source.address.rsplit('/', 1)[1]
        message = event.message
        status, payload = self.presses[name].command(message)
        if message.reply_to:
            reply = Message(address=message.reply_to, correlation_id=message.correlation_id or message.id, inferred=True,
                            content_type='application/json', body=json.dumps(payload).encode(),
                            properties={'status': int32(status), 'device_id': name})
            event.container.schedule(SPIN_UP, Later(lambda: self.sender.send(reply)))

    def on_timer_task(self, event):
        now = time.monotonic()
        elapsed = now - self.started
        if self.stopping or elapsed > self.options.seconds:
            self.sensors_off(event)
            return
        while self.next <= now:
            for press in self.presses.values():
                self.read(press, elapsed)
            self.next += TICK
        while self.held and self.held[0][0] <= now:
            self.socket.sendto(self.held.pop(0)[1], self.gateway)
        event.container.schedule(TICK, self)

    def read(self, press, elapsed):
        press.sent += 1
        reading = {'device': press.name, 'ts': datetime.now(timezone.utc).isoformat(timespec='milliseconds'), 'n': press.sent,
                   'sensor': {'temp': round(press.step(elapsed), 2), 'unit': 'C'}}
        datagram = f'{press.name}\n{json.dumps(reading)}'.encode()
        if not self.torn and press.name == TORN[0] and elapsed > TORN[1]:
            self.torn = True
            self.socket.sendto(datagram[:len(datagram) * 2 // 3], self.gateway)
        if self.dice.random() < 0.005:
            self.held.append((time.monotonic() + 0.6, datagram))
        else:
            self.socket.sendto(datagram, self.gateway)

    def sensors_off(self, event):
        """Readings end; fans listen until the process is told to stop."""
        for _, datagram in self.held:
            self.socket.sendto(datagram, self.gateway)
        self.held.clear()
        if self.stopping:
            self.connection.close()
        else:
            event.container.schedule(TICK, self)

    def stop(self, *_):
        self.stopping = True


class Later(MessagingHandler):
    """A timer task that calls a function."""

    def __init__(self, action):
        super().__init__()
        self.on_timer_task = lambda event: action()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--gateway', required=True, metavar='HOST:PORT', help='UDP address of the gateway')
    parser.add_argument('--broker', required=True, metavar='URL', help='AMQP broker, amqp://HOST:PORT')
    parser.add_argument('--user')
    parser.add_argument('--password-file', type=lambda path: open(path).read().strip(), dest='password')
    parser.add_argument('--address', default='command/{device}')
    parser.add_argument('--presses', type=int, default=6)
    parser.add_argument('--seconds', type=float, default=40, help='how long the thermometers send')
    options = parser.parse_args()
    plant = Plant(options)
    for s in (signal.SIGTERM, signal.SIGINT):
        signal.signal(s, plant.stop)
    Container(plant).run()


if __name__ == '__main__':
    main()
