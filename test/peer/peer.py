#!/usr/bin/python3
"""An AMQP peer that can be wrong in every way: raw sockets, its own bytes (amqp.py), no client library.

    peer.py [--port PORT]

Prints {"ready": true, "port": N}, then takes commands, a JSON object a line, and answers each with {"ok": true, ...}; ends with its
standard input. In good times it accepts whoever logs in anonymously, gives credit, and answers commands. The commands:

    {"set": {...}}      what it does from now on, over the defaults below; links that are open get a new credit
    {"settle": "..."}   outcome of all commands that have none yet, or with "id" of that one
    {"reply": {...}}    a reply, or other frames, now (class Replies), to the command {"id": ...}
    {"say": "..."}      end, detach, close or drain
    {"hang_up": true}   all sockets are closed
    {"bulk": N}         N malformed frames that a connection may survive, in the background
    {"attack": N}       the next N connections: each meets an attack (attacks.py), then is closed
    {"state": true}     what was seen and sent so far
"""
import argparse
import asyncio
import json
import random
import sys

import amqp
import attacks

DEFAULTS = {
    'mechanisms': ['ANONYMOUS'], 'sasl_code': 0, 'silent': None, 'trickle': False, 'max_frame': 65536, 'channel_max': 100, 'window': 2048, 'idle': 0,
    'credit': 100, 'refill': True, 'attach': True, 'read': True, 'outcome': 'accepted', 'replies': ['good'], 'stop_after': None, 'drop_after': None, 'stall': False,
    'product': None, 'removals': {},
}
MANAGEMENT = 'activemq.management'



class Settings:
    def __init__(self):
        self.__dict__.update(DEFAULTS)


class Peer:
    def __init__(self):
        self.settings = Settings()
        self.connections = set()
        self.attacking = 0
        self.random = random.Random(7)
        self.subjects = {}
        self.turn = {stage: 0 for stage in attacks.STAGES}
        self.state = {'connections': 0, 'frames': 0, 'commands': 0, 'ids': [], 'announced': {}, 'outcomes': {}, 'attacks': {},
                      'most_unanswered': 0, 'partial': 0, 'bulk': 0, 'frame_of_message': 0, 'beyond_window': 0, 'removals': 0}

    def next_attack(self, stage):
        self.turn[stage] += 1
        return attacks.STAGES[stage][self.turn[stage] % len(attacks.STAGES[stage])]


class Gone(Exception):
    pass


class Connection:
    def __init__(self, peer, reader, writer):
        self.peer, self.reader, self.writer = peer, reader, writer
        self.settings = peer.settings
        self.number = 0
        self.links = {}                 # (channel, handle) -> [name, address, they receive, count, credit left]
        self.reply_handle, self.reply_name, self.reply_address = 0, '', None
        self.partial = {}
        self.sent, self.may_send, self.may_begin = 0, 0, 0   # frames with messages, and how many they let us send; messages
        self.allowed = asyncio.Event()
        self.size, self.unseen, self.frames = 0, 0, 0     # the last frame's; those with messages since the last window was given; all of them
        self.received = []              # (channel, delivery id, message id) of commands
        self.up = asyncio.Event()       # the link for replies is there,
        self.commanding = asyncio.Event()   # and one for commands

    def next_number(self):
        self.number += 1
        return self.number - 1

    def send(self, data):
        self.writer.write(data)

    async def flush(self):
        await self.writer.drain()

    async def say(self, data):
        if self.settings.trickle:
            for byte in data:
                self.send(bytes([byte]))
                await self.flush()
                await asyncio.sleep(0)
        else:
            self.send(data)
            await self.flush()

    async def read_frame(self):
        head = await self.reader.readexactly(8)
        size = self.size = int.from_bytes(head[:4], 'big')
        return int.from_bytes(head[6:8], 'big'), await self.reader.readexactly(size - 8)

    async def attack(self, stage, times=1):
        """At one of the stages; then there is silence until the other side hangs up."""
        for _ in range(times):
            function = self.peer.next_attack(stage)
            self.peer.state['attacks'][function.__name__] = self.peer.state['attacks'].get(function.__name__, 0) + 1
            for data in function(self, self.peer.random):
                self.peer.state['frames'] += 1
                self.send(data)
        await self.flush()

    async def hold(self):
        """Say nothing more; take what comes."""
        while await self.reader.read(65536):
            pass
        raise Gone

    async def silence(self, stage):
        if self.settings.silent == stage:
            await self.hold()

    async def run(self):
        stage = None
        if self.peer.attacking:
            self.peer.attacking -= 1
            # Every other connection comes up: so whoever is attacked need not wait long for the next.
            stage = 'up' if self.peer.attacking % 4 else self.peer.random.choice(['start', 'sasl', 'open'])
        await self.silence('start')
        if stage == 'start':
            await self.attack(stage)
            return
        await self.reader.readexactly(8)
        await self.say(amqp.SASL_HEADER)
        await self.silence('sasl')
        if stage == 'sasl':
            await self.attack(stage)
            return await self.hold_briefly()
        await self.say(amqp.mechanisms(*self.settings.mechanisms))
        await self.read_frame()
        await self.say(amqp.sasl_outcome(self.settings.sasl_code))
        await self.reader.readexactly(8)
        await self.say(amqp.AMQP_HEADER)
        await self.silence('open')
        if stage == 'open':
            await self.attack(stage)
            return await self.hold_briefly()
        serve = asyncio.ensure_future(self.serve())
        try:
            if stage == 'up':
                await asyncio.wait({serve, asyncio.ensure_future(self.commanding.wait())}, timeout=2, return_when=asyncio.FIRST_COMPLETED)
                if not serve.done() and self.up.is_set():
                    await self.attack(stage)
                    await asyncio.wait({serve}, timeout=0.3)
            else:
                await serve
        finally:
            serve.cancel()

    async def hold_briefly(self):
        try:
            await asyncio.wait_for(self.hold(), 0.3)
        except asyncio.TimeoutError:
            pass

    async def serve(self):
        while True:
            channel, payload = await self.read_frame()
            if not payload:
                continue
            (code, fields), at = amqp.decode(payload)
            fields = fields + [None] * 20
            if code == amqp.OPEN:
                self.peer.state['announced'].update(max_frame=fields[2], channel_max=fields[3], idle=fields[4], hostname=fields[1])
                await self.say(amqp.open_(self.settings.max_frame, self.settings.channel_max, self.settings.idle, self.settings.product))
                await self.silence('begin')
            elif code == amqp.BEGIN:
                self.peer.state['announced'].update(window=fields[2])
                if channel == 1:
                    self.may_send = fields[2]
                await self.say(amqp.begin(channel, self.settings.window))
            elif code == amqp.ATTACH:
                await self.attached(channel, fields)
            elif code == amqp.TRANSFER:
                await self.transferred(channel, fields, payload[at:])
            elif code == amqp.FLOW and channel == 1:
                self.may_send = (fields[0] or 0) + fields[1]
                if fields[4] is not None:
                    self.may_begin = (fields[5] or 0) + fields[6]
                self.allowed.set()
            elif code == amqp.FLOW and (channel, fields[4]) in self.links:
                self.links[channel, fields[4]][3] = fields[5]       # drained: the credit is used up
            elif code == amqp.DISPOSITION:
                word = fields[4][0] if fields[4] else None
                self.peer.state['outcomes'][str(word)] = self.peer.state['outcomes'].get(str(word), 0) + (fields[2] or fields[1]) - fields[1] + 1
            elif code in (amqp.DETACH, amqp.END, amqp.CLOSE):
                await self.say({amqp.DETACH: amqp.detach(channel, fields[0]), amqp.END: amqp.end(channel), amqp.CLOSE: amqp.close()}[code])
                if code == amqp.CLOSE:
                    return

    async def attached(self, channel, fields):
        name, handle, they_receive = fields[0], fields[1], fields[2]
        address = (fields[5] if they_receive else fields[6])[1]
        address = address[0] if address else None
        if not self.settings.attach:
            return
        await self.say(amqp.attach(channel, handle, name, not they_receive, address))
        self.links[channel, handle] = [name, address, they_receive, 0, 0]
        if they_receive:
            self.reply_handle, self.reply_name, self.reply_address = handle, name, address
            self.up.set()
        else:
            self.give_credit(channel, handle)
            self.commanding.set()

    def give_credit(self, channel, handle):
        link = self.links[channel, handle]
        link[4] = self.settings.credit
        self.unseen = 0
        self.send(amqp.flow(channel, handle, link[3], self.settings.credit, self.settings.window, self.frames))

    async def transferred(self, channel, fields, body):
        state = self.peer.state
        handle, number, more = fields[0], fields[1], fields[5]
        state['frame_of_message'] = max(state['frame_of_message'] if self.settings.max_frame < 65536 else 0, self.size)
        self.unseen += 1
        self.frames += 1
        state['beyond_window'] += self.unseen > self.settings.window
        self.partial.setdefault((channel, handle), [number, b''])
        self.partial[channel, handle][1] += body
        if more:
            state['partial'] += 1
            if self.settings.drop_after == 'partial':
                raise Gone
            if self.unseen == self.settings.window and not self.settings.stall:
                self.give_credit(channel, handle)
            return
        number, body = self.partial.pop((channel, handle))
        link = self.links[channel, handle]
        link[3] += 1
        link[4] -= 1
        state['commands'] += 1
        at, found = 0, {}
        while at < len(body):
            (code, section), at = amqp.decode(body, at)
            found[code] = section
        properties = found[amqp.PROPERTIES] + [None] * 13
        command = {'id': properties[0], 'subject': properties[3], 'number': number, 'channel': channel, 'size': len(body)}
        if link[1] == MANAGEMENT:
            await self.manage(command, found)
            return
        self.peer.subjects[command['id']] = command['subject']
        state['ids'].append(command['id'])
        self.received.append(command)
        state['most_unanswered'] = max(state['most_unanswered'], len(self.received))
        if self.settings.drop_after == 'command':
            raise Gone
        await self.settle(command, self.settings.outcome)
        # Beside what is read: it may have to wait for credit.
        asyncio.ensure_future(attempt(self.reply_all(command, self.settings.replies)))
        if self.settings.refill and link[4] <= self.settings.credit // 2:
            self.give_credit(channel, handle)

    async def manage(self, request, found):
        """A request to remove a command; what is answered depends on its subject."""
        await self.say(amqp.disposition(request['channel'], request['number'], state=amqp.ACCEPTED))
        command_id = found[amqp.VALUE][-39:-3]       # ["AMQUserID='ID:...'"]
        self.peer.state['removals'] += 1
        for answer in self.settings.removals.get(self.peer.subjects[command_id], []):
            more = dict(answer)
            through = self
            if more.pop('elsewhere', False):
                through = next(c for c in self.peer.connections if c is not self and c.up.is_set())
            asyncio.ensure_future(attempt(through.reply(dict(request, command=command_id), dict(more, **{'as': 'removal'}))))

    async def settle(self, command, outcome):
        channel, number = command['channel'], command['number']
        states = {'accepted': amqp.ACCEPTED, 'released': amqp.RELEASED, 'modified': amqp.MODIFIED, 'none': None, 'received': None,
                  'rejected': amqp.rejected('amqp:not-allowed', 'not now'), 'unknown': 0x99,
                  'rejected_oddly': amqp.described(amqp.REJECTED, amqp.listing(amqp.error('x' * 3000, b'\xff\xfe\x00bad\x01' * 1000)))}
        if outcome == 'never':
            return
        if outcome == 'detached':       # the outcome comes when the link is gone
            self.send(amqp.detach(channel, 0))
            outcome = 'accepted'
        self.received.remove(command)
        if outcome == 'unsettled':
            await self.say(amqp.disposition(channel, number, state=amqp.ACCEPTED, settled=False))
        else:
            await self.say(amqp.disposition(channel, number, state=states[outcome]))

    async def carefully(self, data, patience=30):
        """A frame, in its time: messages wait for credit and window."""
        if data[8:11] == bytes([0, 0x53, amqp.TRANSFER]):
            while self.sent >= self.may_send or self.number > self.may_begin:
                if self.writer.is_closing():
                    raise Gone
                self.allowed.clear()
                await asyncio.wait_for(self.allowed.wait(), patience)
            self.sent += 1
        await self.say(data)

    async def reply_all(self, command, replies):
        for reply in replies:
            await self.reply(command, reply)

    async def reply(self, command, kind):
        name, more = (kind, {}) if isinstance(kind, str) else (kind['as'], {k: v for k, v in kind.items() if k != 'as'})
        for data in getattr(Replies, name)(self, command, **more):
            await self.carefully(data)

    def carry(self, message, **how):
        return amqp.transfer(1, self.reply_handle, self.next_number(), message, **how)


FRAME = 16_000              # bytes of a message that fit in a frame


class Replies:
    """What a device, or somebody who plays one, may answer: each yields bytes."""

    def good(c, command, body='{"ok": true}', status=200):
        yield c.carry(amqp.message(amqp.string(command['id']), status=amqp.integer(status), body=amqp.data(body)))

    def settled(c, command):
        yield c.carry(amqp.message(amqp.string(command['id']), body=amqp.data('{}')), settled=True)

    def typed(c, command, status, hex):
        """status as bytes of AMQP, or none"""
        yield c.carry(amqp.message(amqp.string(command['id']), status=bytes.fromhex(hex) if hex else None, body=amqp.data('{}')))

    def text(c, command, field):
        """a field that should be text, and is none"""
        bad = amqp.string(b'\xff\xfe\x80')
        fields = {field: bad}
        body = amqp.data(b'\xff\xfe{}') if field == 'body' else amqp.data('{}')
        fields.pop('body', None)
        yield c.carry(amqp.message(amqp.string(command['id']), body=body, **fields))

    def content(c, command, kind, body):
        whole = amqp.message(amqp.string(command['id']), content_type=amqp.symbol(kind) if kind else None, body=bytes.fromhex(body))
        number = c.next_number()
        for at in range(0, len(whole), FRAME):
            yield amqp.transfer(1, c.reply_handle, number, whole[at:at + FRAME], more=at + FRAME < len(whole))

    def cut(c, command):
        yield c.carry(amqp.message(amqp.string(command['id']), body=amqp.data('{"a": 1}'))[:-3])

    def aborted(c, command):
        number = c.next_number()
        whole = amqp.message(amqp.string(command['id']), body=amqp.data('{"aborted": true}'))
        yield amqp.transfer(1, c.reply_handle, number, whole, more=True)
        yield amqp.transfer(1, c.reply_handle, number, b'', aborted=True)

    def in_pieces(c, command):
        number = c.next_number()
        whole = amqp.message(amqp.string(command['id']), body=amqp.data('{"pieces": true}'))
        for at in range(0, len(whole), 7):
            yield amqp.transfer(1, c.reply_handle, number, whole[at:at + 7], more=at + 7 < len(whole))

    def endless(c, command, megabytes):
        number = c.next_number()
        yield amqp.transfer(1, c.reply_handle, number, amqp.message(amqp.string(command['id']), body=b'\x00\x53\x75\xb0\x7f\xff\xff\xff'), more=True)
        for _ in range(megabytes * 1_000_000 // FRAME):
            yield amqp.transfer(1, c.reply_handle, number, bytes(FRAME), more=True)

    def guesses(c, command, count):
        """replies with ids that nobody gave out"""
        for _ in range(count):
            yield c.carry(amqp.message(amqp.uuid(c.peer.random.getrandbits(128).to_bytes(16, 'big')), body=amqp.data('{}')))

    def removal(c, request, says='[1]', id=None, kind='text'):
        """an answer of the broker's management: to the request, to the command, or to nothing that was asked"""
        asked = {'command': request['command'], 'unknown': '00000000-0000-4000-8000-000000000000', None: request['id']}[id]
        said = said_at_length(says)
        body = {'text': amqp.described(amqp.VALUE, amqp.string(said)), 'data': amqp.data(said), 'number': amqp.described(amqp.VALUE, amqp.integer(1)),
                'list': amqp.described(amqp.VALUE, amqp.listing(amqp.integer(1))), 'none': b''}[kind]
        yield c.carry(amqp.message(amqp.string(asked), body=body))

    def again(c, command, count):
        for _ in range(count):
            yield c.carry(amqp.message(amqp.string(command['id']), status=amqp.integer(500)))


def said_at_length(says):
    """["x", N]: so many of them"""
    return says if isinstance(says, str) else says[0] * says[1]


# ---------------------------------------------------------------- control

async def accept(peer, reader, writer):
    connection = Connection(peer, reader, writer)
    peer.state['connections'] += 1
    peer.connections.add(connection)
    try:
        await connection.run()
    except (Gone, OSError, asyncio.IncompleteReadError, asyncio.TimeoutError):
        pass
    finally:
        peer.connections.discard(connection)
        writer.transport.abort() if peer.settings.drop_after else writer.close()


async def obey(peer, command):
    if 'set' in command:
        peer.settings = Settings()
        peer.settings.__dict__.update(command['set'])
        for c in list(peer.connections):
            credit_changed = c.settings.credit != peer.settings.credit
            c.settings = peer.settings
            if credit_changed:
                for (channel, handle), link in c.links.items():
                    if not link[2]:
                        c.give_credit(channel, handle)
            (c.reader._transport.resume_reading if c.settings.read else c.reader._transport.pause_reading)()
    if 'attack' in command:
        peer.attacking = command['attack']
    if 'settle' in command:
        for c in list(peer.connections):
            for one in [one for one in c.received if command.get('id') in (None, one['id'])]:
                await c.settle(one, command['settle'])
    if 'reply' in command:
        for c in list(peer.connections):
            if c.up.is_set():
                asyncio.ensure_future(attempt(c.reply({'id': command.get('id')}, command['reply'])))
    if 'bulk' in command:
        peer.state['bulk'] = 0
        asyncio.ensure_future(bulk(peer, command['bulk']))
    if 'say' in command:
        for c in list(peer.connections):
            if c.up.is_set():
                await c.say(said(c, command['say']))
    if 'hang_up' in command:
        for c in list(peer.connections):
            c.writer.transport.abort()
    return {'ok': True, **peer.state, 'answers': peer.settings.removals} if 'state' in command else {'ok': True}


async def attempt(what):
    """Whatever becomes of the connection."""
    try:
        await what
        return True
    except (Gone, OSError, asyncio.TimeoutError):
        return False


async def bulk(peer, count):
    """So many frames that are wrong but need not end a connection; if one does, the next goes on."""
    async def some(c):
        for i in range(200):
            for data in attacks.BULK[i % len(attacks.BULK)](c, peer.random):
                await c.carefully(data, 1)
                peer.state['bulk'] += 1

    while peer.state['bulk'] < count:
        up = [c for c in peer.connections if c.up.is_set()]
        if not up:
            await asyncio.sleep(0.02)
        elif not await attempt(some(up[0])):
            # It is gone, or its credit is, by what was told of deliveries.
            up[0].writer.transport.abort()
            peer.connections.discard(up[0])


def said(c, what):
    if what == 'drain':
        return amqp.flow(0, 0, c.links[0, 0][3], 5, c.settings.window, c.frames, drain=True)
    return {'end': amqp.end(0, amqp.error('amqp:internal-error', 'the session ends')),
            'detach': amqp.detach(0, 0, amqp.error('amqp:resource-deleted', 'the link ends')),
            'close': amqp.close(amqp.error('amqp:connection:forced', 'the connection ends'))}[what]


async def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument('--port', type=int, default=0)
    peer = Peer()
    server = await asyncio.start_server(lambda r, w: accept(peer, r, w), '127.0.0.1', arguments.parse_args().port, backlog=200)
    print(json.dumps({'ready': True, 'port': server.sockets[0].getsockname()[1]}), flush=True)
    lines = asyncio.StreamReader(limit=2**24)
    await asyncio.get_event_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while True:
        line = await lines.readline()
        if not line:
            break
        try:
            answer = await obey(peer, json.loads(line))
        except Exception as error:                          # pylint: disable=broad-except
            answer = {'ok': False, 'error': repr(error)}
        print(json.dumps(answer), flush=True)


asyncio.run(main())
