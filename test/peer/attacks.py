"""What a hostile or broken peer may send. Each attack is a function of a Connection and a random generator that yields bytes
to be sent; what it is called says what it is. Some are for a certain stage of a connection."""
import struct

import amqp
from amqp import (begin, binary, boolean, described, detach, disposition, end, flow, frame, listing, mapping, null, performative, string, symbol,
                  transfer, ubyte, uint, ulong, ushort)

STAGES = {'start': [], 'sasl': [], 'open': [], 'up': []}
BULK = []


def attack(*stages):
    def add(function):
        for stage in stages:
            STAGES[stage].append(function)
        return function
    return add


def noise(random, longest=300):
    return bytes(random.getrandbits(8) for _ in range(random.randrange(1, longest)))


def value(random, depth=0):
    """Any value of AMQP, of any type."""
    kind = random.randrange(14 if depth < 3 else 11)
    if kind == 0:
        return null()
    if kind == 1:
        return boolean(random.random() < 0.5)
    if kind == 2:
        return ubyte(random.randrange(256))
    if kind == 3:
        return ushort(random.randrange(65536))
    if kind in (4, 5):
        return uint(random.choice([0, 1, 7, 255, 2**31 - 1, 2**31, 2**32 - 1, random.getrandbits(32)]))
    if kind == 6:
        return ulong(random.choice([0, 2**63, 2**64 - 1, random.getrandbits(64)]))
    if kind == 7:
        return string(noise(random, 40))
    if kind == 8:
        return symbol(noise(random, 40))
    if kind == 9:
        return binary(noise(random, 40))
    if kind == 10:
        return b'\x98' + bytes(16)
    if kind == 11:
        return listing(*[value(random, depth + 1) for _ in range(random.randrange(6))])
    if kind == 12:
        return mapping(*[value(random, depth + 1) for _ in range(random.randrange(6))])
    return described(random.choice([0x23, 0x24, 0x25, 0x26, 0x27, 0x28, 0x29, 0x1d, 0x30]), value(random, depth + 1))


# ---------------------------------------------------------------- bytes and frames

@attack('start', 'sasl', 'open', 'up')
def random_bytes(c, random):
    yield noise(random)


@attack('start')
def something_else(c, random):
    yield random.choice([b'HTTP/1.1 400 Bad Request\r\n\r\n', b'\x15\x03\x01\x00\x02\x02\x46', b'\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03' + noise(random),
                         b'220 mail ESMTP\r\n', b'AMQP\x00\x00\x09\x01', b'AMQP\x02\x01\x00\x00', b'AMQ', b'\0' * 8])


@attack('sasl', 'open', 'up')
def wrong_size(c, random):
    yield struct.pack('>IBBH', random.choice([0, 1, 4, 7, 8, 9, 65537, 2**31 - 1, 2**31, 2**32 - 1]), 2, random.choice([0, 1]), 0) + noise(random)


@attack('sasl', 'open', 'up')
def wrong_data_offset(c, random):
    yield struct.pack('>IBBH', 40, random.choice([0, 1, 9, 11, 255]), 0, 0) + bytes(32)


@attack('open', 'up')
def wrong_frame_type(c, random):
    yield frame(described(amqp.OPEN, listing(string('x'))), kind=random.randrange(1, 256))


@attack('open', 'up')
def unknown_performative(c, random):
    yield frame(described(random.choice([0, 0x19, 0x40, 0x70, 0xff]), listing(value(random))))


@attack('up')
def channel_out_of_range(c, random):
    yield performative(random.choice([amqp.FLOW, amqp.TRANSFER, amqp.BEGIN, amqp.END, amqp.ATTACH, amqp.DISPOSITION]), value(random), value(random),
                       channel=random.choice([2, 8, 255, 65535]))


@attack('up')
def a_transfer_without_delivery_id(c, random):
    """Debian's proton has an assertion that this fails."""
    yield transfer(1, c.reply_handle, c.next_number(), b'')
    yield performative(amqp.TRANSFER, uint(c.reply_handle), null(), binary(b'x'), uint(0), boolean(False), boolean(True), channel=1)


@attack('up')
def larger_than_allowed(c, random):
    yield frame(bytes(70000), channel=1)


@attack('up')
def cut_short(c, random):
    whole = transfer(1, c.reply_handle, c.next_number(), amqp.message(body=amqp.data('x')))
    yield frame(whole[8:random.randrange(9, len(whole) - 1)], channel=1)


@attack('up')
def deeply_nested(c, random):
    depth = random.choice([10, 100, 5000])
    nested = random.choice([b'\x00' * depth, b'\x00\x53\x01' * depth, b'\xc0\xff\x01' * depth, b'\xd0\x00\x00\xff\xff\x00\x00\x00\x01' * depth])
    yield frame(random.choice([b'', described(amqp.FLOW, b'')]) + nested, channel=1)


@attack('open', 'up')
def wrong_types(c, random):
    code = random.randrange(0x10, 0x19)
    yield performative(code, *[value(random) for _ in range(random.randrange(14))], channel=random.choice([0, 1]))


@attack('open', 'up')
def not_a_list(c, random):
    yield frame(described(random.randrange(0x10, 0x19), value(random)), channel=random.choice([0, 1]))


@attack('open', 'up')
def no_fields(c, random):
    yield performative(random.randrange(0x10, 0x19), channel=random.choice([0, 1]))


@attack('up')
def a_mutated_frame(c, random):
    good = random.choice([flow(0, 0, 0, 10), transfer(1, c.reply_handle, c.next_number(), amqp.message(body=amqp.data('x'))), disposition(0, 0, 5, amqp.ACCEPTED),
                          detach(0, 0), begin(0), amqp.open_(), amqp.attach(1, 0, 'reply-1', False, 'a'), end(1), amqp.close()])
    bad = bytearray(good)
    for _ in range(random.randrange(1, 5)):
        bad[random.randrange(4, len(bad))] = random.getrandbits(8)
    yield bytes(bad)


# ---------------------------------------------------------------- the protocol

@attack('sasl')
def a_mechanism_nobody_asked_for(c, random):
    yield amqp.mechanisms('SCRAM-SHA-256', 'GSSAPI')


@attack('sasl')
def sasl_out_of_order(c, random):
    yield random.choice([amqp.sasl_outcome(0), performative(amqp.CHALLENGE, binary(noise(random)), kind=1), amqp.open_(), amqp.AMQP_HEADER])


@attack('open')
def begin_without_open(c, random):
    yield begin(0)


@attack('up')
def open_twice(c, random):
    yield amqp.open_()


@attack('up')
def begin_twice(c, random):
    yield begin(random.choice([0, 1]))


@attack('up')
def sessions_of_its_own(c, random):
    for channel in range(2, 8):
        yield performative(amqp.BEGIN, null(), uint(0), uint(100), uint(100), channel=channel)


@attack('up')
def links_of_its_own(c, random):
    for handle in range(10, 60):
        yield amqp.attach(1, handle, f'own-{handle}', random.random() < 0.5, 'a')
        yield transfer(1, handle, c.next_number(), bytes(10000))


@attack('up')
def a_link_attached_twice(c, random):
    yield amqp.attach(1, c.reply_handle + random.choice([0, 1]), c.reply_name, False, 'a')


@attack('up')
def wrong_role(c, random):
    yield amqp.attach(1, 9, c.reply_name, True, 'a')


@attack('up')
def transfer_without_attach(c, random):
    yield transfer(random.choice([0, 1]), random.choice([5, 77, 2**31, 2**32 - 1]), 0, b'x')


@attack('up')
def transfers_to_the_sender(c, random):
    for _ in range(20):
        yield transfer(0, 0, c.next_number(), bytes(16000))


@attack('up')
def more_than_the_window(c, random):
    for _ in range(1100):
        yield transfer(1, c.reply_handle, c.next_number(), bytes(16000), more=True)


@attack('up')
def more_than_the_credit(c, random):
    for _ in range(2000):
        yield transfer(1, c.reply_handle, c.next_number(), b'\x00\x53\x75\xa0\x00')


@attack('up')
def ends_in_any_order(c, random):
    for one in random.sample([detach(0, 0), detach(1, c.reply_handle), end(0), end(1), amqp.close(), detach(0, 0), end(0), amqp.close()], 8):
        yield one


@attack('up')
def after_the_close(c, random):
    yield amqp.close()
    yield transfer(1, c.reply_handle, c.next_number(), b'x')


# ---------------------------------------------------------------- what the connection may survive, many times over

def bulk(function):
    BULK.append(function)
    return function


@bulk
def dispositions_for_unknown_deliveries(c, random):
    first = random.choice([0, 1, 1000, 2**31 - 2, 2**32 - 10])
    yield disposition(0, first, first + random.choice([0, 1, 1000, 2**30, 2**31 - 1]), random.choice([0x23, 0x24, 0x25, 0x26, 0x27, None]), random.random() < 0.5)


@bulk
def odd_flows(c, random):
    yield flow(0, 0, random.choice([0, 5, 2**31, 2**32 - 1]), random.choice([0, 1, 2**31 - 1, 2**31, 2**32 - 1]), random.choice([0, 1, 2048, 2**32 - 1]), drain=random.random() < 0.2)


@bulk
def flows_for_the_receiver(c, random):
    yield flow(1, c.reply_handle, random.getrandbits(32), random.getrandbits(32), echo=random.random() < 0.1)


@bulk
def heartbeats(c, random):
    yield frame(b'')


@bulk
def more_fields_than_there_are(c, random):
    yield performative(amqp.FLOW, null(), uint(2048), uint(0), uint(2048), *[null() for _ in range(20)], channel=random.choice([0, 1]))


@bulk
def messages_that_are_none(c, random):
    yield transfer(1, c.reply_handle, c.next_number(), random.choice([b'', noise(random), b'\x00' * 50, b'\x00\x53\x75\xb0\xff\xff\xff\xff', b'\x00\x53\x73\xd0\x00\x00\x00\x04\xff\xff\xff\xff']), settled=random.random() < 0.5)


@bulk
def messages_with_odd_sections(c, random):
    sections = b''.join(described(random.choice([0x70, 0x71, 0x72, 0x73, 0x74, 0x75, 0x76, 0x77, 0x78, 0x10]), value(random)) for _ in range(random.randrange(5)))
    yield transfer(1, c.reply_handle, c.next_number(), sections, settled=random.random() < 0.5)


@bulk
def aborted_messages(c, random):
    number = c.next_number()
    yield transfer(1, c.reply_handle, number, noise(random), more=True)
    yield transfer(1, c.reply_handle, number, b'', aborted=True)
