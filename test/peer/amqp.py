"""AMQP 1.0 as bytes, good and bad: written by hand, so that it can be wrong in every way. No client library."""
import struct


# ---------------------------------------------------------------- values

def null():
    return b'\x40'


def boolean(v):
    return b'\x41' if v else b'\x42'


def ubyte(v):
    return b'\x50' + struct.pack('>B', v)


def ushort(v):
    return b'\x60' + struct.pack('>H', v)


def uint(v):
    return b'\x70' + struct.pack('>I', v & 0xffffffff)


def ulong(v):
    return b'\x80' + struct.pack('>Q', v & 0xffffffffffffffff)


def integer(v):
    return b'\x71' + struct.pack('>i', v)


def string(v):
    v = v.encode() if isinstance(v, str) else v
    return b'\xb1' + struct.pack('>I', len(v)) + v


def symbol(v):
    return b'\xb3' + string(v)[1:]


def binary(v):
    return b'\xb0' + struct.pack('>I', len(v)) + v


def uuid(v):
    return b'\x98' + v


def array_of_symbols(names):
    items = b''.join(string(n)[1:] for n in names)
    return b'\xf0' + struct.pack('>II', len(items) + 5, len(names)) + b'\xb3' + items


def compound(code, items):
    body = b''.join(items)
    return code + struct.pack('>II', len(body) + 4, len(items)) + body


def listing(*items):
    return compound(b'\xd0', items)


def mapping(*items):
    return compound(b'\xd1', items)


def described(code, value):
    return b'\x00\x53' + bytes([code]) + value


def decode(data, at=0):
    """The value at a place, and where the next begins. Described values are (descriptor, value)."""
    code = data[at]
    at += 1
    if code == 0:
        descriptor, at = decode(data, at)
        value, at = decode(data, at)
        return (descriptor, value), at
    simple = {0x40: None, 0x41: True, 0x42: False, 0x43: 0, 0x44: 0, 0x45: []}
    if code in simple:
        return simple[code], at
    width = {5: 1, 6: 2, 7: 4, 8: 8, 9: 16}.get(code >> 4)
    if width:
        raw = data[at:at + width]
        return (raw if code == 0x98 else int.from_bytes(raw, 'big')), at + width
    size_len = 1 if code >> 4 in (0xa, 0xc, 0xe) else 4
    size = int.from_bytes(data[at:at + size_len], 'big')
    at += size_len
    raw, end = data[at:at + size], at + size
    if code >> 4 in (0xa, 0xb):
        return (raw if code & 0xf == 0 else raw.decode(errors='replace')), end
    if code >> 4 in (0xe, 0xf):
        return raw, end
    count = int.from_bytes(raw[:size_len], 'big')
    items, inner = [], size_len
    for _ in range(count):
        item, inner = decode(raw, inner)
        items.append(item)
    if code in (0xc1, 0xd1):
        return dict(zip(items[::2], items[1::2])), end
    return items, end


# ---------------------------------------------------------------- frames

SASL_HEADER = b'AMQP\x03\x01\x00\x00'
AMQP_HEADER = b'AMQP\x00\x01\x00\x00'
OPEN, BEGIN, ATTACH, FLOW, TRANSFER, DISPOSITION, DETACH, END, CLOSE = range(0x10, 0x19)
MECHANISMS, INIT, CHALLENGE, RESPONSE, OUTCOME = range(0x40, 0x45)
RECEIVED, ACCEPTED, REJECTED, RELEASED, MODIFIED = range(0x23, 0x28)
ERROR, SOURCE, TARGET = 0x1d, 0x28, 0x29


def frame(payload, channel=0, kind=0):
    return struct.pack('>IBBH', len(payload) + 8, 2, kind, channel) + payload


def performative(code, *fields, channel=0, payload=b'', kind=0):
    return frame(described(code, listing(*fields)) + payload, channel, kind)


def mechanisms(*names):
    return performative(MECHANISMS, array_of_symbols(names), kind=1)


def sasl_outcome(code):
    return performative(OUTCOME, ubyte(code), kind=1)


def open_(max_frame=65536, channel_max=100, idle=0, product=None):
    fields = [string('peer'), null(), uint(max_frame), ushort(channel_max), uint(idle) if idle else null()]
    if product:
        fields += [null(), null(), null(), null(), mapping(symbol('product'), string(product))]
    return performative(OPEN, *fields)


def begin(channel, window=2048):
    return performative(BEGIN, ushort(channel), uint(0), uint(window), uint(2048), channel=channel)


def attach(channel, handle, name, receiver, address=None):
    text = string(address) if address else null()
    return performative(ATTACH, string(name), uint(handle), boolean(receiver), null(), null(), described(SOURCE, listing(text)),
                        described(TARGET, listing(text)), null(), null(), uint(0), channel=channel)


def flow(channel, handle, count, credit, window=2048, incoming=0, drain=False, echo=False):
    return performative(FLOW, uint(incoming), uint(window), uint(0), uint(2048), uint(handle), uint(count), uint(credit), null(),
                        boolean(drain), boolean(echo), channel=channel)


def transfer(channel, handle, number, payload, more=False, settled=False, aborted=False, tag=None):
    tag = struct.pack('>I', number & 0xffffffff) if tag is None else tag
    return performative(TRANSFER, uint(handle), uint(number), binary(tag), uint(0), boolean(settled), boolean(more), null(), null(), null(),
                        boolean(aborted), channel=channel, payload=payload)


def disposition(channel, first, last=None, state=None, settled=True, receiver=True):
    if isinstance(state, int):
        state = described(state, listing())
    return performative(DISPOSITION, boolean(receiver), uint(first), uint(first if last is None else last), boolean(settled),
                        state or null(), channel=channel)


def error(condition, description='no'):
    return described(ERROR, listing(symbol(condition), string(description)))


def rejected(condition, description):
    return described(REJECTED, listing(error(condition, description)))


def detach(channel, handle, why=None):
    return performative(DETACH, uint(handle), boolean(True), why or null(), channel=channel)


def end(channel, why=None):
    return performative(END, why or null(), channel=channel)


def close(why=None):
    return performative(CLOSE, why or null())


# ---------------------------------------------------------------- messages

HEADER, PROPERTIES, APPLICATION, DATA, SEQUENCE, VALUE = 0x70, 0x73, 0x74, 0x75, 0x76, 0x77


def message(correlation=None, message_id=None, content_type=None, status=None, device=None, body=None):
    """All arguments are encoded values."""
    properties = [message_id or null(), null(), null(), null(), null(), correlation or null(), content_type or null()]
    application = []
    if status is not None:
        application += [string('status'), status]
    if device is not None:
        application += [string('device_id'), device]
    return described(PROPERTIES, listing(*properties)) + (described(APPLICATION, mapping(*application)) if application else b'') + (body or b'')


def data(content):
    return described(DATA, binary(content if isinstance(content, bytes) else content.encode()))
