"""Cases for the model and the extension: a statement, options, and a history of records, runs, kills and silence.

A case is made from its seed alone. Times are microseconds since 1970; the generator likes few values, so that ties and
boundaries happen all the time.
"""
import copy
import json
import random
from datetime import datetime, timedelta, timezone
from decimal import ROUND_HALF_UP, Decimal

from windows import Record, Rejected

SECOND = 1000000
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def timestamp(us):
    return (EPOCH + timedelta(microseconds=us)).strftime('%Y-%m-%d %H:%M:%S.%f+00')


def interval(us):
    return f'{us} microseconds'


# ---------------------------------------------------------------- the statement

def number(value):
    """As trim_scale(...)::text prints a numeric."""
    if value is None or isinstance(value, int):
        return None if value is None else str(int(value))
    text = format(value, 'f')
    return text.rstrip('0').rstrip('.') if '.' in text else text


def values(records):
    return [r.v for r in records if r.v is not None]


def mean(records):
    v = values(records)
    return (Decimal(sum(v)) / len(v)).quantize(Decimal('0.000001'), ROUND_HALF_UP) if v else None


def total(v):
    return sum(v) if v else None


def share(record):
    """60 / v: fails for zero, is null for null."""
    if record.v == 0:
        raise Rejected
    return None if record.v is None else 60 // record.v


def known(value):
    return [x for x in value if x is not None]


WHERE = {
    None: lambda r: True,
    'v > 1': lambda r: r.v is not None and r.v > 1,
    'v IS DISTINCT FROM 3': lambda r: r.v != 3,
    'k IS NOT NULL': lambda r: r.k is not None,
    '60 / v > 10': lambda r: (share(r) or 0) > 10,
}

# Those that are never null come first: emit 'changes' needs them.
KEYS = {
    "coalesce(k, '?')": lambda r: r.k or '?',
    "coalesce(k, '?') || '@' || part": lambda r: f"{r.k or '?'}@{r.partition}",
    'coalesce(v % 2, 7)::text': lambda r: str(7 if r.v is None else r.v % 2),
    'k': lambda r: r.k,
    '(v > 4)::text': lambda r: None if r.v is None else ('true' if r.v > 4 else 'false'),
    'site': lambda r: r.site,
}
NEVER_NULL = list(KEYS)[:3]
OF_JOIN = 'site'

# An aggregate's value, and what has to be evaluated for each record on the way.
AGGREGATES = {
    'count(v)': lambda rs: len(values(rs)),
    'sum(v)': lambda rs: total(values(rs)),
    'round(avg(v), 6)': mean,
    'max(v)': lambda rs: max(values(rs), default=None),
    'coalesce(min(v), -1)': lambda rs: min(values(rs), default=-1),
    'max(v) - min(v)': lambda rs: max(values(rs)) - min(values(rs)) if values(rs) else None,
    'bool_and(v > 2)::int': lambda rs: int(all(v > 2 for v in values(rs))) if values(rs) else None,
    'count(*) FILTER (WHERE v > 4)': lambda rs: len([v for v in values(rs) if v > 4]),
    "sum(v) FILTER (WHERE k = 'a')": lambda rs: total(values([r for r in rs if r.k == 'a'])),
    'count(*) FILTER (WHERE k IS NULL)': lambda rs: len([r for r in rs if r.k is None]),
    '2 * count(*) + count(k)': lambda rs: 2 * len(rs) + len([r for r in rs if r.k is not None]),
    'sum(60 / v)': lambda rs: total(known([share(r) for r in rs])),
    'sum(60 / v) FILTER (WHERE v > 0)': lambda rs: total([60 // v for v in values(rs) if v > 0]),
}

HAVING = {
    None: lambda rs: True,
    'count(*) > 1': lambda rs: len(rs) > 1,
    'sum(v) > 5': lambda rs: sum(values(rs)) > 5,
    'max(v) < 8': lambda rs: bool(values(rs)) and max(values(rs)) < 8,
    'count(*) FILTER (WHERE v > 4) = 0': lambda rs: not [v for v in values(rs) if v > 4],
}


TOO_MANY = 2
SITES = {'a': ['north', 'south'], 'b': ['north'], 'c': ['west']}    # the table site, to be joined; some are nowhere


class Row:
    """One of the rows that a join makes of a record."""

    def __init__(self, record, site):
        self.partition, self.offset, self.time, self.k, self.v = (
            record.partition, record.offset, record.time, record.k, record.v)
        self.site = site


class Statement:
    def __init__(self, where, keys, aggregates, having, join, checked):
        self.where_sql, self.keys_sql, self.aggregates_sql, self.having_sql = where, keys, aggregates, having
        self.join = join
        self.checked = checked      # the target refuses rows of more than TOO_MANY records

    def but(self, **changes):
        other = copy.copy(self)
        other.__dict__.update(changes)
        return other

    def rows(self, record):
        """What FROM and WHERE leave of a record, each with its group keys; fails if an expression does."""
        sites = [None] if not self.join else SITES.get(record.k, [])
        rows = [row for row in (Row(record, site) for site in sites) if WHERE[self.where_sql](row)]
        for row in rows:
            for aggregate in self.aggregates_sql:
                AGGREGATES[aggregate]([row])
        return [(row, tuple(KEYS[key](row) for key in self.keys_sql)) for row in rows]

    def refused(self, row):
        return self.checked and int(row[1 + len(self.keys_sql)]) > TOO_MANY

    def row(self, window, taken):
        """The row of a group, or None if HAVING drops it; which records are in it can be told from it."""
        records = [t.row for t in taken]
        if not HAVING[self.having_sql](records):
            return None
        ids = sum((r.offset + 1) ** 3 * (r.partition + 1) for r in records)
        return ([window.text()] + [key or '' for key in taken[0].keys] + [str(len(records)), str(ids)] +
                [number(AGGREGATES[a](records)) or '' for a in self.aggregates_sql])


# ---------------------------------------------------------------- a case

KEEP = 10 ** 9 * SECOND        # keep_closed


class Case:
    """steps: ('put', [Record]), ('run', max_records or None, clock, fate), ('reopen',).

    fate: 'commit', 'rollback' or 'reconnect'.
    """

    target_name = None

    def records(self):
        return [record for step in self.steps if step[0] == 'put' for record in step[1]]

    def count_before(self, partition, offset):
        return len([r for r in self.records() if r.partition == partition and r.offset < offset])

    def window_sql(self):
        size = f"'{interval(self.size)}'"
        return {
            'tumble': f"hybridiot.tumble(ts, {size}, '{timestamp(self.origin)}')",
            'hop': 'w',
            'slide': f'hybridiot.slide(ts, {size})',
            'session': f"hybridiot.session(ts, '{interval(self.gap)}')",
        }[self.kind]

    def target(self):
        """Its table; one of its own has a name."""
        if self.target_name:
            return self.target_name
        if self.emit == 'final' and not self.reopens:
            return 'checked' if self.statement.checked else 'final'
        return f'changes_{len(self.statement.keys_sql)}'

    def columns(self):
        s = self.statement
        return (['during'] + ['k1', 'k2'][:len(s.keys_sql)] + ['n', 'ids'] +
                ['a1', 'a2', 'a3'][:len(s.aggregates_sql)])

    def statement_sql(self):
        s = self.statement
        columns = self.columns()
        number_of_keys = 1 + len(s.keys_sql)
        expressions = ([self.window_sql()] + s.keys_sql +
                       ['count(*)', 'sum((pos + 1) * (pos + 1) * (pos + 1) * (part + 1))'] + s.aggregates_sql)
        sql = f"INSERT INTO {self.target()} ({', '.join(columns)}) SELECT {', '.join(expressions)} FROM {self.stream} AS s"
        if s.join:
            sql += ' JOIN site USING (k)'
        if self.kind == 'hop':
            sql += f", hybridiot.hop(ts, '{interval(self.size)}', '{interval(self.advance)}') AS w"
        if s.where_sql:
            sql += f' WHERE {s.where_sql}'
        sql += f" GROUP BY {', '.join(str(n + 1) for n in range(number_of_keys))}"
        if s.having_sql:
            sql += f' HAVING {s.having_sql}'
        if self.emit == 'changes' or self.reopens:
            sql += (f" ON CONFLICT ({', '.join(columns[:number_of_keys])}) DO UPDATE SET " +
                    ', '.join(f'{c} = excluded.{c}' for c in columns[number_of_keys:]))
        return sql

    def options_sql(self):
        return (f"lateness => '{interval(self.lateness)}', idle_timeout => '{interval(self.idle_timeout)}', "
                f"emit => '{self.emit}', keep_closed => '{interval(KEEP if self.reopens else 0)}', batch_rows => {self.batch_rows}, enabled => false")

    def describe(self):
        lines = [self.statement_sql(), self.options_sql() + f', max_future {self.max_future / SECOND:g} s']
        for step in self.steps:
            if step[0] == 'put':
                lines += [f'  put {r.partition}/{r.offset} {r.kind} at {self.seconds(r.time)} k={r.k} v={r.v}'
                          for r in step[1]]
            elif step[0] == 'reopen':
                lines.append('  reopen all')
            else:
                lines.append(f'  run max_records={step[1]} clock={self.seconds(step[2])} {step[3]}')
        return lines

    def seconds(self, us):
        return None if us is None else f'{(us - self.base) / SECOND:.6f}'.rstrip('0').rstrip('.')


STREAMS = {'near': 20 * SECOND, 'far': 3600 * SECOND}    # max_future of each


def log_row(record):
    """(partition, offset, timestamp, value) as the log holds it."""
    if record.kind == 'tombstone':
        return record.partition, record.offset, timestamp(record.time), None
    value = {}
    if record.time is not None:
        value['ts'] = timestamp(record.time)
    elif record.offset % 2:
        value['ts'] = None
    if record.k is not None:
        value['k'] = record.k
    if record.v is not None or record.partition % 2:
        value['v'] = record.v
    if record.kind == 'undecodable' and record.time is not None:
        value['v'] = 'warm'
    return record.partition, record.offset, None, json.dumps(value)


# ---------------------------------------------------------------- making one

def generate(seed, kinds):
    rng = random.Random(seed)
    case = Case()
    case.seed = seed
    case.kind = rng.choice(kinds)
    case.base = rng.choice([1704067200 * SECOND, -30 * SECOND])
    case.size = rng.choice([1, 2, 3, 5, 7, 10, 20]) * SECOND + rng.choice([0, 0, 0, 1])
    case.advance = rng.choice([case.size, max(case.size // 2, 1), max(case.size // 3, 1), rng.randint(case.size // 4, case.size)])
    case.gap = rng.choice([1, 2, 3, 5, 8]) * SECOND
    case.origin = rng.choice([0, 0, case.base + rng.randint(-40, 40) * SECOND + rng.choice([0, 1])])
    case.lateness = rng.choice([0, 0, 0, 1, SECOND, 2 * SECOND, 5 * SECOND, 10 * SECOND])
    case.idle_timeout = rng.choice([0, SECOND, 5 * SECOND, 30 * SECOND])
    case.batch_rows = rng.choice([1, 2, 3, 7, 1000])
    case.stream = rng.choice(['near', 'far', 'far', 'far'])
    case.max_future = STREAMS[case.stream]
    case.emit = rng.choice(['final', 'changes'])
    case.reopens = case.kind != 'slide' and rng.random() < 0.15
    # A join makes several rows of a record, or none. Not of sessions, where each may have another key and fate.
    join = case.kind != 'session' and rng.random() < 0.2
    keys = [key for key in (NEVER_NULL if case.emit == 'changes' or case.reopens else KEYS) if key != OF_JOIN] + [OF_JOIN] * join
    keys = rng.sample(keys, rng.choice([0, 1, 1, 1, 2]))
    if case.kind == 'session' and rng.random() < 0.6:
        keys = [NEVER_NULL[1]]      # a key lives in one partition
    # The planner may ask WHERE before it joins: one that fails would fail for rows that are not there.
    where = rng.choice([None, None] + [w for w in WHERE if not (join and w and '/' in w)])
    having = rng.choice([None, None, None] + list(HAVING))
    case.statement = Statement(where, keys, rng.sample(list(AGGREGATES), rng.randint(0, 3)), having, join,
                               case.emit == 'final' and not case.reopens and rng.random() < 0.15)
    case.steps = make_steps(rng, case)
    return case


class Feed:
    """Where the records of a partition are in time."""

    def __init__(self, rng, case):
        self.rng, self.case = rng, case
        self.now = case.base + rng.randint(0, 10) * SECOND
        self.offset = 0
        self.records = []

    def next_time(self):
        rng, case = self.rng, self.case
        if case.kind == 'session' and rng.random() < 0.2:
            # just over the gap, and back into it
            if rng.random() < 0.5:
                self.now += case.gap + rng.choice([0, 1, SECOND])
                return self.now
            return self.now - case.lateness - rng.randint(0, case.gap // SECOND) * SECOND - rng.choice([0, 1])
        chance = rng.random()
        if chance < 0.06:
            self.now += rng.randint(20, 200) * SECOND
        elif chance < 0.16:
            return self.now - rng.randint(1, 30) * SECOND
        elif chance < 0.36:
            # at a boundary of a window, of lateness or of a gap, or a microsecond beside it
            step = rng.choice([case.size, case.size, case.gap, case.lateness or case.size, case.advance])
            return (self.now + rng.choice([0, -step, step, -case.lateness, -case.gap, -case.lateness - step]) +
                    rng.choice([0, 0, -1, 1]))
        elif chance < 0.46:
            n = (self.now - case.origin) // case.size + rng.choice([0, 0, 1])
            self.now = max(self.now, case.origin + n * case.size + rng.choice([-1, 0]))
        else:
            self.now += rng.choice([0, 0, 1, 1, 1, 2, 3]) * SECOND
        return self.now

    def record(self, partition, clock):
        rng = self.rng
        chance = rng.random()
        if self.records and chance < 0.06:
            other = rng.choice(self.records)
            record = Record(partition, self.offset, other.kind, other.time, other.k, other.v)
        elif chance < 0.09:
            record = Record(partition, self.offset, 'undecodable', rng.choice([None, self.now + 100 * SECOND]), 'a')
        elif chance < 0.12:
            ahead = clock + self.case.max_future
            record = Record(partition, self.offset, 'good', ahead + rng.choice([-1, 0, 0, 1, 5000 * SECOND]), 'a', 1)
        elif chance < 0.15:
            record = Record(partition, self.offset, 'tombstone', self.next_time())
        else:
            v = rng.choice([None, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
            record = Record(partition, self.offset, 'good', self.next_time(), rng.choice([None, 'a', 'a', 'b', 'c']), v)
        self.offset += rng.choice([1, 1, 1, 1, 3])
        self.records.append(record)
        return record


def make_steps(rng, case):
    feeds = [Feed(rng, case) for _ in range(rng.choice([1, 1, 2, 2, 3, 4]))]
    busy = range(len(feeds))
    clock = case.base + rng.randint(0, 30) * SECOND
    steps = []
    for _ in range(rng.randint(1, 6)):
        chance = rng.random()
        if chance < 0.75:
            if rng.random() < 0.4:
                busy = rng.sample(range(len(feeds)), rng.randint(1, len(feeds)))
            records = []
            for _ in range(rng.randint(1, 7)):
                partition = rng.choice(list(busy))
                records.append(feeds[partition].record(partition, clock))
            steps.append(('put', records))
            clock += rng.choice([0, 0, 1, 3]) * SECOND
        else:
            clock += rng.choice([1, 2, 5, 6, 10, 29, 30, 31, 60, -2]) * SECOND + rng.choice([0, 0, -1])
        for _ in range(rng.choice([0, 1, 1, 1, 1, 2])):
            steps.append(('run', rng.choice([None, None, None, 1, 2, 3, 5]), clock,
                          rng.choice(['commit'] * 20 + ['rollback'] * 4 + ['reconnect'])))
    if case.reopens or rng.random() < 0.5:
        clock += rng.choice([0, 1, 5]) * SECOND
        horizon = max(f.now for f in feeds) + 500 * SECOND
        if case.reopens or rng.random() < 0.5:
            # far behind everything; else some may be from the future
            horizon += 10000 * SECOND
            clock = max(clock, horizon)
        steps.append(('put', [Record(p, f.offset, 'good', horizon, 'z', 5) for p, f in enumerate(feeds)]))
        for f in feeds:
            f.offset += 1
    steps.append(('run', None, clock, 'commit'))
    if case.reopens:
        steps.append(('reopen',))
    return steps


def generate_steady(seed, kinds):
    """One whose outcome does not depend on timing: no silence, no empty partitions, no key in several partitions."""
    case = generate(seed, kinds)
    rng = random.Random(seed)
    case.idle_timeout = 0
    case.reopens = case.statement.checked = False
    if case.kind == 'session':
        case.statement.keys_sql = [NEVER_NULL[1]]
    feeds = [Feed(rng, case) for _ in range(rng.randint(1, 4))]
    records = [Record(p, 0, 'good', case.base) for p in range(len(feeds))]
    for feed in feeds:
        feed.offset = 1
    for _ in range(rng.randint(10, 150)):
        partition = rng.randrange(len(feeds))
        records.append(feeds[partition].record(partition, case.base))
    case.steps = [('put', records)]
    return case


# ---------------------------------------------------------------- making it smaller

def smaller(case):
    """Cases with something less: half of the records or one, a step, an option."""
    def but(**changes):
        other = copy.copy(case)
        other.__dict__.update(changes)
        return other

    places = [(i, j) for i, step in enumerate(case.steps) if step[0] == 'put' for j in range(len(step[1]))]

    def without(gone):
        return [('put', [r for j, r in enumerate(step[1]) if (i, j) not in gone]) if step[0] == 'put' else step
                for i, step in enumerate(case.steps)]

    if case.reopens:
        # The last step but two closes what is to be reopened.
        places = [(i, j) for i, j in places if i < len(case.steps) - 3]
    size = len(places) // 2
    while size >= 1:
        for first in range(0, len(places), size):
            yield but(steps=without(set(places[first:first + size])))
        size //= 2
    for i in range(len(case.steps) - 3 * case.reopens):
        yield but(steps=case.steps[:i] + case.steps[i + 1:])
    for i, step in enumerate(case.steps):
        if step[0] == 'run' and step[3] != 'commit':
            yield but(steps=case.steps[:i] + [step[:3] + ('commit',)] + case.steps[i + 1:])
        if step[0] == 'run' and step[1] is not None:
            yield but(steps=case.steps[:i] + [(step[0], None) + step[2:]] + case.steps[i + 1:])
    s = case.statement
    if s.where_sql:
        yield but(statement=s.but(where_sql=None))
    if s.having_sql:
        yield but(statement=s.but(having_sql=None))
    for i in range(len(s.aggregates_sql)):
        yield but(statement=s.but(aggregates_sql=s.aggregates_sql[:i] + s.aggregates_sql[i + 1:]))
    for i in range(len(s.keys_sql)):
        yield but(statement=s.but(keys_sql=s.keys_sql[:i] + s.keys_sql[i + 1:]))
    if s.checked:
        yield but(statement=s.but(checked=False))
    if s.join and OF_JOIN not in s.keys_sql:
        yield but(statement=s.but(join=False))
    if case.emit == 'changes' and not case.reopens:
        yield but(emit='final')
    for option, plain in (('lateness', 0), ('idle_timeout', 0), ('origin', 0), ('batch_rows', 1000)):
        if getattr(case, option) != plain:
            yield but(**{option: plain})
