#!/usr/bin/python3
"""Self-test of the fleet: every behaviour, seen from the other side.

The peer is qpid-proton (package python3-qpid-proton), which shares no code
with the fleet.  Router mode is tested whole.  Device mode is tested against a
broker when one is given:

    selftest.py [--rhea DIR] [--broker HOST:PORT] [NAME ...]

--rhea is a node_modules directory that holds rhea (default: $NODE_PATH).
Prints one line per test and "N passed, N failed"; exits 1 if any failed.
"""
import argparse
import json
import os
import select
import subprocess
import sys
import tempfile
import time
import traceback
import uuid

from proton import Delivery, Endpoint, Message
from proton.handlers import MessagingHandler
from proton.reactor import AtLeastOnce, Container

HERE = os.path.dirname(os.path.abspath(__file__))
OPTIONS = None
REPLY_TO = 'reply/selftest'


class Fleet:
    """A running fleet.js; control() sends a command and waits for its answer."""

    def __init__(self, mode='router', *args, **config):
        self.dir = tempfile.TemporaryDirectory(prefix='fleet-selftest-')
        self.ledger_path = os.path.join(self.dir.name, 'ledger')
        self.events_path = os.path.join(self.dir.name, 'events')
        env = dict(os.environ)
        if OPTIONS.rhea:
            env['NODE_PATH'] = OPTIONS.rhea
        config.setdefault('devices', ['d1', 'd2'])
        self.process = subprocess.Popen(
            ['node', os.path.join(HERE, 'fleet.js'), mode, '--until-eof', '--ledger', self.ledger_path,
             '--events', self.events_path, '--config', json.dumps(config), *args],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env=env)
        self.ready = self._line()
        self.port = self.ready['port']

    def _line(self):
        if not select.select([self.process.stdout], [], [], 10)[0]:
            raise AssertionError('fleet does not answer')
        return json.loads(self.process.stdout.readline())

    def control(self, **command):
        self.process.stdin.write((json.dumps(command) + '\n').encode())
        self.process.stdin.flush()
        answer = self._line()
        assert answer['ok'], answer
        return answer

    def ledger(self):
        with open(self.ledger_path) as f:
            return [json.loads(line) for line in f]

    def events(self, kind=None, **fields):
        with open(self.events_path) as f:
            rows = [json.loads(line) for line in f]
        return [r for r in rows if kind in (None, r['event']) and all(r.get(k) == v for k, v in fields.items())]

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.process.stdin.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.dir.cleanup()


class Peer(MessagingHandler):
    """What the extension is to the router: senders, a reply receiver, outcomes kept as they come."""

    def __init__(self, port, user=None, password=None, reply_to=REPLY_TO, credit=10):
        super().__init__(prefetch=0, auto_accept=False, auto_settle=False)
        self.replies = []
        self.log = []
        self.closed = []
        self.container = Container(self)
        self.container.timeout = 0.05
        self.container.start()
        self.connection = self.container.connect(
            f'amqp://127.0.0.1:{port}', user=user, password=password, reconnect=False,
            sasl_enabled=True, allow_insecure_mechs=True, allowed_mechs='PLAIN' if user else 'ANONYMOUS')
        self.accept_replies = True
        self.until(lambda: self.closed or self.connection.state & Endpoint.REMOTE_ACTIVE, 'connection open')
        self.receiver = None
        if reply_to and not self.closed:
            self.receiver = self.container.create_receiver(self.connection, reply_to)
            self.receiver.flow(credit)
            self.until(lambda: self.receiver.state & Endpoint.REMOTE_ACTIVE, 'reply link open')
        self.senders = {}

    def on_message(self, event):
        self.replies.append(event.message)
        self.log.append('reply')
        if self.accept_replies:
            event.delivery.update(Delivery.ACCEPTED)
            event.delivery.settle()

    def on_accepted(self, event):
        self.log.append('outcome')

    def on_transport_error(self, event):
        self.closed.append(('transport', event.transport.condition and event.transport.condition.name))

    def on_disconnected(self, event):
        self.closed.append(('disconnected', None))

    def on_session_remote_close(self, event):
        self.closed.append(('session', event.session.remote_condition.name if event.session.remote_condition else None))

    def on_link_remote_close(self, event):
        self.closed.append(('link', event.link.remote_condition.name if event.link.remote_condition else None))

    def on_connection_remote_close(self, event):
        self.closed.append(('connection', event.connection.remote_condition.name if event.connection.remote_condition else None))

    def turn(self):
        self.container.process()

    def until(self, condition, what, timeout=5.0):
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f'never happened: {what}')
            self.turn()

    def stay(self, seconds):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.turn()

    def sender(self, address=None):
        if address not in self.senders:
            s = self.container.create_sender(self.connection, address, options=[AtLeastOnce()])
            self.senders[address] = s
            self.until(lambda: s.state & Endpoint.REMOTE_ACTIVE or self.closed, 'sender open')
        return self.senders[address]

    def send(self, device='d1', command='fan', body=b'{"on": true}', link=None, wait_credit=True, **fields):
        s = self.sender(link)
        if wait_credit:
            self.until(lambda: s.credit > 0, 'credit')
        command_id = str(uuid.uuid4())
        fields.setdefault('reply_to', REPLY_TO)
        m = Message(id=command_id, address=f'command/{device}', subject=command, body=body, correlation_id=command_id,
                    inferred=True, **fields)
        d = s.send(m)
        d.command_id = command_id
        return d

    def outcome(self, delivery, timeout=5.0):
        self.until(lambda: delivery.settled or delivery.remote_state, 'outcome', timeout)
        return delivery.remote_state

    def reply(self, n=1, timeout=5.0):
        self.until(lambda: len(self.replies) >= n, f'reply {n}', timeout)
        return self.replies[n - 1]

    def close(self):
        self.connection.close()
        self.stay(0.2)


TESTS = []


def test(f):
    TESTS.append(f)
    return f


def ask(behaviour, **config):
    """One command to one device with one behaviour: (fleet, peer, delivery)."""
    fleet = Fleet(behaviour=behaviour, **config)
    peer = Peer(fleet.port)
    return fleet, peer, peer.send()


@test
def ledger_line():
    with Fleet() as fleet:
        peer = Peer(fleet.port)
        d = peer.send(ttl=5.0, expiry_time=2000000000.5, creation_time=1700000000.25, durable=True, priority=7,
                      content_type='application/json', properties={'n': 1, 's': 'x'})
        assert peer.outcome(d) == Delivery.ACCEPTED
        line, = fleet.ledger()
        expected = dict(seq=1, id=d.command_id, id_type='string', device='d1', subject='fan', body='{"on": true}',
                        body_kind='data', deadline=2000000000500, created=1700000000250, ttl=5000, durable=True, priority=7,
                        to='command/d1', reply_to=REPLY_TO, correlation_id=d.command_id, content_type='application/json',
                        properties={'n': 1, 's': 'x'}, link='anonymous', behaviour='answer', acts=True, delivery_count=0)
        assert {k: line[k] for k in expected} == expected, line
        assert abs(line['at'] / 1000 - time.time()) < 10


@test
def ledger_before_outcome():
    fleet, peer, d = ask({'outcome_delay': 400})
    with fleet:
        peer.until(lambda: len(fleet.ledger()) == 1, 'ledger line')
        assert not d.remote_state and not d.settled
        assert peer.outcome(d) == Delivery.ACCEPTED


@test
def answer():
    fleet, peer, d = ask('answer')
    with fleet:
        r = peer.reply()
        assert d.remote_state == Delivery.ACCEPTED and d.settled
        assert r.correlation_id == d.command_id and isinstance(r.correlation_id, str)
        assert r.properties == {'status': 200, 'device_id': 'd1'}, r.properties
        assert type(r.properties['status']).__name__ in ('int32', 'int'), type(r.properties['status'])
        assert json.loads(bytes(r.body)) == {'device': 'd1', 'command': 'fan', 'echo': {'on': True}}
        assert r.content_type == 'application/json' and r.address == REPLY_TO
        assert peer.log[0] == 'outcome', peer.log
        peer.until(lambda: fleet.events('reply', outcome='accepted'), 'reply accepted')


@test
def answer_with_status_and_payload():
    fleet, peer, d = ask({'reply': {'status': 503, 'payload': {'why': 'stuck'}, 'content_type': None, 'device_id': None,
                                    'properties': {'extra': 'yes'}}})
    with fleet:
        r = peer.reply()
        assert r.properties == {'status': 503, 'extra': 'yes'} and json.loads(bytes(r.body)) == {'why': 'stuck'}
        assert r.content_type in (None, '', 'None'), r.content_type        # proton 0.37 says 'None'


@test
def answer_without_status_or_body():
    fleet, peer, d = ask({'reply': {'status': None, 'body_kind': 'none'}})
    with fleet:
        r = peer.reply()
        assert 'status' not in r.properties and r.body is None


@test
def answer_types():
    for kind, name in (('uint', 'uint'), ('long', 'int'), ('short', 'short'), ('ubyte', 'ubyte'), ('string', 'str')):
        fleet, peer, d = ask({'reply': {'status': 201, 'status_type': kind}})
        with fleet:
            status = peer.reply().properties['status']
            assert type(status).__name__ == name and str(int(status)) == '201', (kind, type(status), status)


@test
def answer_bodies():
    for reply, seen in (({'body': 'text'}, b'text'), ({'body_base64': '/wA='}, b'\xff\x00'), ({'body_size': 300000}, b'x' * 300000),
                        ({'body': 'word', 'body_kind': 'value'}, 'word')):
        fleet, peer, d = ask({'reply': reply})
        with fleet:
            body = peer.reply().body
            assert (body if isinstance(body, str) else bytes(body)) == seen, reply


@test
def late():
    fleet, peer, d = ask({'as': 'late', 'reply': {'delay': 500}})
    with fleet:
        start = time.monotonic()
        assert peer.outcome(d) == Delivery.ACCEPTED and not peer.replies
        peer.reply()
        assert time.monotonic() - start > 0.4


@test
def early():
    fleet, peer, d = ask('early')
    with fleet:
        peer.reply()
        assert not d.remote_state
        assert peer.outcome(d) == Delivery.ACCEPTED


@test
def twice_and_contradict():
    for behaviour, second in (('twice', 200), ('contradict', 500)):
        fleet, peer, d = ask(behaviour)
        with fleet:
            peer.reply(2)
            assert [r.properties['status'] for r in peer.replies] == [200, second]
            assert {r.correlation_id for r in peer.replies} == {d.command_id}


@test
def ids():
    raw = lambda d: uuid.UUID(d.command_id)
    for behaviour, expected in (
            ('uuid_id', lambda d, r: r.correlation_id == raw(d)),
            ('binary_id', lambda d, r: bytes(r.correlation_id) == raw(d).bytes and not isinstance(r.correlation_id, uuid.UUID)),
            ('text_id', lambda d, r: bytes(r.correlation_id) == d.command_id.encode()),
            ('upper_id', lambda d, r: r.correlation_id == d.command_id.upper()),
            ('unknown_id', lambda d, r: uuid.UUID(r.correlation_id) != raw(d)),
            ('garbage_id', lambda d, r: r.correlation_id == 'not-an-id'),
            ('no_id', lambda d, r: r.correlation_id is None and r.id is None),
            ('message_id', lambda d, r: r.correlation_id is None and r.id == d.command_id),
            ('other_device', lambda d, r: r.correlation_id == d.command_id and r.properties['device_id'] == 'somebody-else')):
        fleet, peer, d = ask(behaviour)
        with fleet:
            r = peer.reply()
            assert expected(d, r), (behaviour, r.correlation_id, r.id)


@test
def silent():
    fleet, peer, d = ask('silent')
    with fleet:
        assert peer.outcome(d) == Delivery.ACCEPTED
        peer.stay(0.3)
        assert not peer.replies


@test
def outcomes():
    for behaviour, state in (('release', Delivery.RELEASED), ('reject', Delivery.REJECTED), ('modify', Delivery.MODIFIED)):
        fleet, peer, d = ask(behaviour)
        with fleet:
            assert peer.outcome(d) == state and d.settled
            assert fleet.ledger()[0]['acts'] is False
            if behaviour == 'reject':
                assert d.remote.condition.name == 'amqp:not-allowed'
    fleet, peer, d = ask({'as': 'reject', 'condition': 'device:jammed', 'description': 'belt is stuck'})
    with fleet:
        peer.outcome(d)
        assert (d.remote.condition.name, d.remote.condition.description) == ('device:jammed', 'belt is stuck')
    fleet, peer, d = ask({'as': 'modify', 'undeliverable_here': True})
    with fleet:
        peer.outcome(d)
        assert d.remote.undeliverable and not d.remote.failed


@test
def gone():
    fleet, peer, d = ask('gone')
    with fleet:
        assert peer.outcome(d) == Delivery.MODIFIED and d.remote.failed
        peer.stay(0.1)
        assert peer.outcome(peer.send()) == Delivery.RELEASED


@test
def bare():
    fleet, peer, d = ask('bare')
    with fleet:
        peer.until(lambda: d.settled, 'settled')
        assert not d.remote_state


@test
def hold_and_settle_later():
    fleet, peer, d = ask('hold')
    with fleet:
        peer.until(lambda: fleet.ledger(), 'ledger line')
        peer.stay(0.3)
        assert not d.remote_state and not d.settled
        fleet.control(**{'settle': d.command_id, 'as': 'reject'})
        assert peer.outcome(d) == Delivery.REJECTED
        fleet.control(**{'reply': d.command_id, 'with': {'status': 299}})
        assert peer.reply().properties['status'] == 299


@test
def answer_held():
    fleet, peer, d = ask('answer_held')
    with fleet:
        peer.reply()
        assert not d.remote_state and not d.settled


@test
def breaks_before():
    for behaviour, seen in (('drop_before', 'disconnected'), ('reset_before', 'disconnected'), ('end_session_before', 'session'),
                            ('detach_before', 'link'), ('close_before', 'connection')):
        fleet, peer, d = ask(behaviour)
        with fleet:
            peer.until(lambda: any(k == seen for k, _ in peer.closed), f'{behaviour}: {seen}')
            assert not d.remote_state, behaviour
            assert len(fleet.ledger()) == 1


@test
def breaks_after():
    for behaviour, seen in (('drop_after', 'disconnected'), ('end_session_after', 'session'), ('detach_after', 'link'),
                            ('close_after', 'connection')):
        fleet, peer, d = ask(behaviour)
        with fleet:
            peer.until(lambda: any(k == seen for k, _ in peer.closed), f'{behaviour}: {seen}')
            assert d.remote_state == Delivery.ACCEPTED, behaviour


@test
def break_then_reply_over_a_new_connection():
    fleet, peer, d = ask({'break': 'drop', 'when': 'before', 'reply': {'delay': 500}})
    with fleet:
        peer.until(lambda: peer.closed, 'drop')
        again = Peer(fleet.port)
        assert again.reply().correlation_id == d.command_id


@test
def break_by_control():
    for what, seen in (('drop', 'disconnected'), ('reset', 'disconnected'), ('session', 'session'), ('link', 'link'),
                       ('connection', 'connection')):
        fleet, peer, d = ask('hold')
        with fleet:
            peer.until(lambda: fleet.ledger(), 'ledger line')
            fleet.control(**{'break': what})
            peer.until(lambda: any(k == seen for k, _ in peer.closed), f'{what}: {seen}')
            assert not d.remote_state


@test
def waiting_for_what_is_in_hand():
    fleet, peer, d = ask('hold')
    with fleet:
        peer.until(lambda: fleet.ledger(), 'ledger line')
        assert fleet.control(await_in_hand=1)['in_hand'] == 1
        fleet.control(settle=d.command_id)
        assert fleet.control(await_in_hand=0)['in_hand'] == 0
        peer.send('d1')
        peer.until(lambda: len(fleet.ledger()) == 2, 'another ledger line')
        assert fleet.control(await_in_hand=1)['in_hand'] == 1
        fleet.control(**{'break': 'drop'})      # whoever would hear the outcome is gone
        assert fleet.control(await_in_hand=0)['in_hand'] == 0


@test
def offline_is_released_at_once():
    with Fleet(offline=['d2']) as fleet:
        peer = Peer(fleet.port)
        start = time.monotonic()
        assert peer.outcome(peer.send('d2')) == Delivery.RELEASED
        assert peer.outcome(peer.send('nobody')) == Delivery.RELEASED
        assert time.monotonic() - start < 1
        assert not fleet.ledger()
        fleet.control(online=['d2'])
        assert peer.outcome(peer.send('d2')) == Delivery.ACCEPTED
        fleet.control(offline=['d*'])
        assert peer.outcome(peer.send('d2')) == Delivery.RELEASED
        assert len(fleet.ledger()) == 1


@test
def named_sender_to_an_absent_device_has_no_credit():
    with Fleet(offline=['d1']) as fleet:
        peer = Peer(fleet.port)
        s = peer.sender('command/d1')
        peer.stay(0.3)
        assert s.credit == 0
        fleet.control(online=['d1'])
        peer.until(lambda: s.credit > 0, 'credit')
        assert peer.outcome(peer.send(link='command/d1')) == Delivery.ACCEPTED
        assert fleet.ledger()[0]['link'] == 'command/d1'
        fleet.control(offline=['d1'])
        peer.stay(0.2)
        assert s.credit > 0, 'credit stays when the device has left'
        assert peer.outcome(peer.send(link='command/d1')) == Delivery.RELEASED
        assert len(fleet.ledger()) == 1


@test
def device_without_credit_gives_no_outcome_and_ttl_is_not_acted_on():
    with Fleet() as fleet:
        peer = Peer(fleet.port)
        fleet.control(unready=['d1'])
        d = peer.send(ttl=0.1, expiry_time=time.time() + 0.1)
        peer.stay(0.4)
        assert not d.remote_state and not d.settled and not fleet.ledger()
        fleet.control(ready=['d1'])
        assert peer.outcome(d) == Delivery.ACCEPTED
        line, = fleet.ledger()
        assert line['at'] > line['deadline'], 'delivered late'


@test
def device_leaves_with_unsettled_commands():
    with Fleet(behaviour='hold') as fleet:
        peer = Peer(fleet.port)
        held = peer.send()
        peer.until(lambda: fleet.ledger(), 'ledger line')
        fleet.control(unready=['d1'])
        waiting = peer.send()
        peer.until(lambda: fleet.events('waiting'), 'waiting')
        fleet.control(offline=['d1'])
        assert peer.outcome(held) == Delivery.MODIFIED and held.remote.failed
        assert peer.outcome(waiting) == Delivery.RELEASED
        assert len(fleet.ledger()) == 1


@test
def waiting_message_arrives_though_its_link_is_closed():
    with Fleet() as fleet:
        peer = Peer(fleet.port)
        fleet.control(unready=['d1'])
        peer.send()
        peer.stay(0.2)
        peer.sender().close()
        peer.stay(0.2)
        fleet.control(ready=['d1'])
        peer.until(lambda: fleet.ledger(), 'ledger line')


@test
def credit_withheld():
    with Fleet(no_credit=['anonymous']) as fleet:
        peer = Peer(fleet.port)
        s = peer.sender()
        peer.stay(0.3)
        assert s.credit == 0
        fleet.control(credit='anonymous')
        peer.until(lambda: s.credit > 0, 'credit')
        fleet.control(no_credit='anonymous')
        peer.until(lambda: s.credit == 0, 'credit taken back')
        fleet.control(credit='anonymous')
        assert peer.outcome(peer.send()) == Delivery.ACCEPTED


@test
def credit_is_given_again():
    with Fleet(credit=4) as fleet:
        peer = Peer(fleet.port, credit=100)
        for _ in range(50):
            assert peer.outcome(peer.send()) == Delivery.ACCEPTED
        peer.reply(50)
        assert len(fleet.ledger()) == 50


@test
def outcomes_of_one_burst_are_not_mixed_up():
    rules = [{'device': 'd2', 'behaviour': 'release'}, {'command': 'bad', 'behaviour': 'reject'}]
    with Fleet(rules=rules) as fleet:
        peer = Peer(fleet.port, credit=1000)
        peer.sender()
        peer.until(lambda: peer.sender().credit >= 90, 'credit')
        expected = []
        for i in range(90):
            expected.append((Delivery.ACCEPTED, Delivery.RELEASED, Delivery.REJECTED)[i % 3])
            expected[-1] = (peer.send(('d1', 'd2', 'd1')[i % 3], ('fan', 'fan', 'bad')[i % 3]), expected[-1])
        for d, state in expected:
            assert peer.outcome(d) == state, (d.remote_state, state)


@test
def rules():
    with Fleet(rules=[{'device': 'd*', 'command': 'fan', 'times': 2, 'behaviour': 'reject'}]) as fleet:
        peer = Peer(fleet.port)
        assert [peer.outcome(peer.send()) for _ in range(3)] == [Delivery.REJECTED, Delivery.REJECTED, Delivery.ACCEPTED]
        fleet.control(rule={'device': 'd2', 'behaviour': 'release'})
        assert peer.outcome(peer.send('d2')) == Delivery.RELEASED
        assert peer.outcome(peer.send('d1')) == Delivery.ACCEPTED
        fleet.control(clear_rules=True)
        fleet.control(behaviour='modify')
        assert peer.outcome(peer.send('d2')) == Delivery.MODIFIED


@test
def schedule():
    with Fleet(offline=['d1'], schedule=[{'after': 300, 'do': {'online': ['d1']}}, {'after': 900, 'do': {'offline': ['d1']}}]) as fleet:
        peer = Peer(fleet.port)
        s = peer.sender('command/d1')
        peer.until(lambda: s.credit > 0, 'credit')
        assert peer.outcome(peer.send()) == Delivery.ACCEPTED
        peer.until(lambda: fleet.events('offline'), 'offline')
        assert peer.outcome(peer.send()) == Delivery.RELEASED


@test
def check_expiry_and_remember_ids():
    with Fleet(check_expiry=True, remember_ids=True) as fleet:
        peer = Peer(fleet.port)
        d = peer.send(expiry_time=time.time() - 1)
        assert peer.outcome(d) == Delivery.REJECTED and d.remote.condition.name == 'device:expired'
        d = peer.send(ttl=0.05, creation_time=time.time() - 10)
        assert peer.outcome(d) == Delivery.REJECTED
        s = peer.sender()
        m = Message(id='same', address='command/d1', subject='fan', body=b'1')
        for _ in range(2):
            assert peer.outcome(s.send(m)) == Delivery.ACCEPTED
        assert [(r['behaviour'], r['acts']) for r in fleet.ledger()] == [
            ('expired', False), ('expired', False), ('answer', True), ('repeated', False)]


@test
def reply_outcomes_are_seen():
    for state, name in ((Delivery.RELEASED, 'released'), (Delivery.MODIFIED, 'modified'), (Delivery.REJECTED, 'rejected'), (0, 'none')):
        with Fleet() as fleet:
            peer = Peer(fleet.port)
            peer.accept_replies = False
            kept = []
            peer.on_message = lambda event: kept.append(event.delivery)
            peer.send()
            peer.until(lambda: kept, 'reply')
            assert not fleet.events('reply', outcome=name)
            if state:
                kept[0].update(state)
            kept[0].settle()
            peer.until(lambda: fleet.events('reply', outcome=name), f'reply {name}')


@test
def reply_without_consumer_or_credit():
    with Fleet() as fleet:
        peer = Peer(fleet.port, reply_to=None)
        d = peer.send()
        assert peer.outcome(d) == Delivery.ACCEPTED
        peer.until(lambda: fleet.events('reply', outcome='released', cause='nobody there'), 'reply released')
        slow = Peer(fleet.port, credit=0)
        peer.send()
        slow.stay(0.3)
        peer.stay(0.1)
        assert not slow.replies
        slow.receiver.flow(1)
        slow.reply()


@test
def reply_resent_after_its_consumer_went():
    with Fleet(behaviour={'reply': {'resend': True}}) as fleet:
        peer = Peer(fleet.port)
        peer.accept_replies = False
        d = peer.send()
        peer.reply()
        peer.close()
        peer.until(lambda: fleet.events('reply', outcome='modified', cause='consumer gone'), 'consumer gone')
        again = Peer(fleet.port)
        assert again.reply().correlation_id == d.command_id


@test
def reply_to_nothing():
    with Fleet() as fleet:
        peer = Peer(fleet.port)
        fleet.control(reply={'reply_to': REPLY_TO, 'id': str(uuid.uuid4())}, **{'with': {'status': 200, 'body': '{}'}})
        assert bytes(peer.reply().body) == b'{}'


@test
def no_reply_to():
    with Fleet() as fleet:
        peer = Peer(fleet.port)
        assert peer.outcome(peer.send(reply_to=None)) == Delivery.ACCEPTED
        peer.until(lambda: fleet.events('no_reply_to'), 'event')


@test
def link_address_and_escaped_names():
    with Fleet(address='command/{tenant}/{device}', link_address='command/{tenant}', devices=['press 1/a']) as fleet:
        peer = Peer(fleet.port)
        s = peer.sender('command/acme')
        peer.until(lambda: s.credit > 0, 'credit')
        m = Message(id='1', address='command/acme/press%201%2Fa', body=b'')
        assert peer.outcome(s.send(m)) == Delivery.ACCEPTED
        assert fleet.ledger()[0]['device'] == 'press 1/a'
        assert peer.outcome(s.send(Message(id='2', address='elsewhere/x', body=b''))) == Delivery.RELEASED


@test
def any_device():
    with Fleet('router', '--any-device', devices=[]) as fleet:
        peer = Peer(fleet.port)
        assert peer.outcome(peer.send('whoever')) == Delivery.ACCEPTED


@test
def dynamic_reply_address():
    with Fleet() as fleet:
        peer = Peer(fleet.port, reply_to=None)
        r = peer.container.create_receiver(peer.connection, dynamic=True)
        r.flow(5)
        peer.until(lambda: r.remote_source.address, 'dynamic address')
        d = peer.send(reply_to=r.remote_source.address)
        assert peer.reply().correlation_id == d.command_id


@test
def logins():
    with Fleet(user='pg', password='geheim') as fleet:
        peer = Peer(fleet.port, user='pg', password='geheim')
        assert peer.outcome(peer.send()) == Delivery.ACCEPTED
        for user, password in (('pg', 'wrong'), (None, None)):
            bad = Peer(fleet.port, user=user, password=password)
            assert bad.closed, (user, bad.closed)
        assert [e['ok'] for e in fleet.events('login')] == [True, False]
    with Fleet(user='pg', password='geheim', anonymous=True) as fleet:
        peer = Peer(fleet.port)
        assert peer.outcome(peer.send()) == Delivery.ACCEPTED


@test
def listening_again_on_the_same_port():
    with Fleet() as fleet:
        peer = Peer(fleet.port)
        fleet.control(listen=False)
        peer.until(lambda: peer.closed, 'dropped')
        nobody = None
        try:
            nobody = Peer(fleet.port)
        except AssertionError:
            pass
        assert nobody is None or nobody.closed
        fleet.control(listen=True)
        assert (lambda p: p.outcome(p.send()))(Peer(fleet.port)) == Delivery.ACCEPTED


@test
def paused_reading():
    with Fleet() as fleet:
        peer = Peer(fleet.port)
        peer.sender()
        peer.until(lambda: peer.sender().credit > 0, 'credit')
        fleet.control(pause=True)
        d = peer.send()
        peer.stay(0.3)
        assert not fleet.ledger()
        fleet.control(pause=False)
        assert peer.outcome(d) == Delivery.ACCEPTED


@test
def control_port():
    from urllib.request import Request, urlopen
    with Fleet('router', '--control-port', '0') as fleet:
        url = f'http://127.0.0.1:{fleet.ready["control_port"]}/'
        assert json.load(urlopen(Request(url, b'{"offline": ["d1"]}')))['ok']
        assert json.load(urlopen(url))['state']['online'] == ['d2']


@test
def bad_words_are_refused():
    for args in (['nonsense'], ['router', '--behaviour', 'dance'], ['router', '--behaviour', '{"outcome": "maybe"}'], ['devices']):
        env = dict(os.environ, NODE_PATH=OPTIONS.rhea or '')
        r = subprocess.run(['node', os.path.join(HERE, 'fleet.js'), *args], env=env, capture_output=True, timeout=10)
        assert r.returncode == 2 and r.stderr.startswith(b'fleet: '), (args, r)
    with Fleet() as fleet:
        fleet.process.stdin.write(b'{"dance": 1}\nnot json\n')
        fleet.process.stdin.flush()
        assert not fleet._line()['ok'] and not fleet._line()['ok']


def broker_fleet(**config):
    host, port = OPTIONS.broker.rsplit(':', 1)
    config.setdefault('address', f'selftest.{uuid.uuid4().hex[:8]}.' + '{device}')
    return Fleet('devices', '--host', host, '--port', port, **config), config['address']


class BrokerPeer(Peer):
    """Sends to a device's queue through the broker."""

    def __init__(self, template):
        self.template = template
        super().__init__(int(OPTIONS.broker.rsplit(':', 1)[1]), reply_to=f'selftest.reply.{uuid.uuid4().hex}')

    def send(self, device='d1', **fields):
        address = self.template.replace('{device}', device)
        s = self.sender(address)
        self.until(lambda: s.credit > 0, 'credit')
        command_id = str(uuid.uuid4())
        d = s.send(Message(id=command_id, address=address, subject='fan', body=b'{"on": true}', inferred=True,
                           correlation_id=command_id, reply_to=self.receiver.source.address, durable=True, **fields))
        d.command_id = command_id
        return d


def broker_answers():
    for options in ({}, {'shared': True}, {'reply_link': 'addressed'}):
        fleet, template = broker_fleet(**options)
        with fleet:
            peer = BrokerPeer(template)
            d = peer.send()
            r = peer.reply()
            assert r.correlation_id == d.command_id and r.properties['status'] == 200
            assert d.remote_state == Delivery.ACCEPTED and fleet.ledger()[0]['id'] == d.command_id


def broker_offline_then_online():
    for options in ({}, {'shared': True}):
        fleet, template = broker_fleet(offline=['d1'], **options)
        with fleet:
            peer = BrokerPeer(template)
            d = peer.send()
            assert peer.outcome(d) == Delivery.ACCEPTED
            peer.stay(0.3)
            assert not fleet.ledger()
            fleet.control(online=['d1'])
            assert peer.reply().correlation_id == d.command_id
            fleet.control(offline=['d1'])
            peer.send()
            peer.stay(0.5)
            assert len(fleet.ledger()) == 1
            fleet.control(online=['d1'])
            peer.reply(2)


def broker_outcomes():
    fleet, template = broker_fleet(rules=[{'times': 1, 'behaviour': 'release'}, {'times': 1, 'behaviour': 'modify'}])
    with fleet:
        peer = BrokerPeer(template)
        d = peer.send()
        assert peer.reply().correlation_id == d.command_id
        assert [r['behaviour'] for r in fleet.ledger()] == ['release', 'modify', 'answer'], 'the broker gives it again'
        fleet.control(rule={'times': 1, 'behaviour': 'reject'})
        peer.send()
        peer.until(lambda: len(fleet.ledger()) == 4, 'rejected one')
        peer.stay(0.3)
        assert len(fleet.ledger()) == 4, 'a rejected one does not come again'


def broker_breaks():
    for options in ({}, {'shared': True}):
        for behaviour in ('drop_before', 'reset_before', 'end_session_before', 'detach_before', 'close_before', 'drop_after',
                          'detach_after', 'close_after'):
            fleet, template = broker_fleet(rules=[{'times': 1, 'behaviour': behaviour}], credit=1, **options)
            with fleet:
                peer = BrokerPeer(template)
                first, second = peer.send(), peer.send()
                peer.until(lambda: any(r.correlation_id == second.command_id for r in peer.replies), f'answer after {behaviour}', 15)
                seen = lambda: [r['id'] for r in fleet.ledger()].count(first.command_id)
                if behaviour.endswith('before'):
                    peer.until(lambda: seen() == 2, f'{behaviour}: the broker gives it again')
                else:
                    peer.stay(0.3)
                    assert seen() == 1, f'{behaviour}: it came again'


def broker_is_away():
    """The fleet starts before the broker, as far as it can see: a closed port that opens later."""
    import socket
    import threading
    probe = socket.socket()
    probe.bind(('127.0.0.1', 0))
    port = probe.getsockname()[1]
    template = f'selftest.{uuid.uuid4().hex[:8]}.' + '{device}'
    with Fleet('devices', '--port', str(port), address=template) as fleet:
        peer = BrokerPeer(template)
        d = peer.send()
        probe.listen()

        def forward(a, b):
            try:
                while data := a.recv(65536):
                    b.sendall(data)
            except OSError:
                pass
            b.close()

        def serve():
            while True:
                try:
                    a = probe.accept()[0]
                except OSError:
                    return
                b = socket.create_connection(('127.0.0.1', int(OPTIONS.broker.rsplit(':', 1)[1])))
                for pair in ((a, b), (b, a)):
                    threading.Thread(target=forward, args=pair, daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        peer.until(lambda: any(r.correlation_id == d.command_id for r in peer.replies), 'answer', 15)
        probe.close()


def main():
    global OPTIONS
    parser = argparse.ArgumentParser()
    parser.add_argument('--rhea', default=os.environ.get('NODE_PATH'))
    parser.add_argument('--broker')
    parser.add_argument('names', nargs='*')
    OPTIONS = parser.parse_args()
    tests = TESTS + ([broker_answers, broker_offline_then_online, broker_outcomes, broker_breaks, broker_is_away] if OPTIONS.broker else [])
    failed = passed = 0
    for f in tests:
        if OPTIONS.names and f.__name__ not in OPTIONS.names:
            continue
        try:
            f()
            passed += 1
            print(f'ok      {f.__name__}', flush=True)
        except Exception:
            failed += 1
            print(f'FAILED  {f.__name__}', flush=True)
            traceback.print_exc()
    print(f'{passed} passed, {failed} failed')
    sys.exit(failed > 0)


if __name__ == '__main__':
    main()
