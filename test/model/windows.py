"""The rules of windows, as a model: what a windowed pipeline must write, refuse and remember.

Written from the rules (docs/explanation/windows.md), not from the C code, and with nothing in mind but to be obviously
right: it keeps every record that counted and works everything out anew when it is asked. test/model/property compares
it with the extension. mutants.py breaks its rules one by one, so each rule is a method of its own.

Times are integers: microseconds since 1970-01-01 00:00 UTC.
"""


class Rejected(Exception):
    """A record that the statement cannot take: an expression of its own fails."""


class Record:
    """One record of the log. kind: 'good', 'undecodable' or 'tombstone'; of the last, time is the log's own."""

    def __init__(self, partition, offset, kind, time, k=None, v=None):
        self.partition, self.offset, self.kind, self.time, self.k, self.v = partition, offset, kind, time, k, v


class Partition:
    def __init__(self):
        self.records = []           # the log
        self.read = 0               # how many of them were read
        self.stream_time = None     # the largest event time read
        self.last_came = None       # the clock when the last record was read


class Window:
    """Bounds of a window, and its last instant: the last time at which a record may be in it or prolong it."""

    def __init__(self, start, end, last, bounds):
        self.start, self.end, self.last, self.bounds = start, end, last, bounds

    def text(self):
        return f'{self.bounds[0]}{self.start},{self.end}{self.bounds[1]}'


class Taken:
    """A row of a record that counts: in all of its windows whose last instant is not before since."""

    def __init__(self, row, keys, since):
        self.row, self.keys, self.since = row, keys, since


class Model:
    """spec: kind, size, advance, gap, origin, lateness, idle_timeout, max_future and the statement."""

    def __init__(self, spec):
        self.spec = spec
        self.statement = spec.statement
        self.partitions = []
        self.watermark = None       # as of the last checkpoint
        self.closed = None          # windows whose last instant is before it are closed
        self.idle = []              # which partitions were left out then
        self.taken = []             # every record that counted and may still be in an open window
        self.rows = []              # of closed windows
        self.letters = []           # dead letters
        self.finished = []          # closed groups: (window, [taken])
        self.late = []              # rows that came too late, and for which window: (window, taken)

    # ------------------------------------------------------------ the log

    def put(self, records):
        for record in records:
            while len(self.partitions) <= record.partition:
                self.partitions.append(Partition())
            self.partitions[record.partition].records.append(record)

    def run(self, max_records, clock):
        """Read up to the end, by offset, then partition, as a table is read; then make a checkpoint."""
        waiting = [r for p in self.partitions for r in p.records[p.read:]]
        waiting.sort(key=lambda r: (r.offset, r.partition))
        for record in waiting[:max_records]:
            self.read(record, clock)
        self.checkpoint(clock, bool(waiting[:max_records]))
        return len(waiting[:max_records])

    # ------------------------------------------------------------ one record

    def read(self, record, clock):
        partition = self.partitions[record.partition]
        partition.read += 1
        partition.last_came = clock
        if record.kind == 'undecodable':
            self.undecodable(partition, record)
        elif self.is_future(record, clock):
            self.future(partition, record)
        else:
            self.judge(partition, record)

    def undecodable(self, partition, record):
        self.letter(record, 'undecodable')

    def is_future(self, record, clock):
        return record.time > clock + self.spec.max_future

    def future(self, partition, record):
        self.letter(record, 'future')

    def judge(self, partition, record):
        """Time rises first."""
        self.rise(partition, record)
        self.take(partition, record)

    def rise(self, partition, record):
        partition.stream_time = later(partition.stream_time, record.time)

    def take(self, partition, record):
        try:
            rows = self.statement.rows(record)
        except Rejected:
            self.letter(record, 'rejected')
            return
        for row, keys in rows:
            getattr(self, 'take_' + self.spec.kind)(partition, row, keys)

    def letter(self, record, reason, cause=None, window=None):
        """One for a record and window, however many rows a join made of it."""
        letter = (record.partition, record.offset, reason, cause, window and window.text())
        if letter not in self.letters:
            self.letters.append(letter)

    # ------------------------------------------------------------ late?

    def late_time(self, partition):
        """T: stream time of the record's own partition, less lateness."""
        return partition.stream_time - self.spec.lateness

    def over_for(self, partition, window):
        """Is it over for this partition?"""
        return window.last < self.late_time(partition)

    def is_closed(self, window):
        """Was it closed while the record's partition was left out?"""
        return self.closed is not None and window.last < self.closed

    def late_cause(self, partition, window):
        """None: it counts. Else the cause, which is '' unless it is an exception."""
        if self.over_for(partition, window):
            return ''
        if self.is_closed(window):
            return 'idle'
        return None

    # ------------------------------------------------------------ which windows

    def half_open(self, start):
        """[start, start + size): the last instant is the one before its end."""
        return Window(start, start + self.spec.size, start + self.spec.size - 1, '[)')

    def closed_window(self, start):
        """[start, start + size], both ends included."""
        return Window(start, start + self.spec.size, start + self.spec.size, '[]')

    def session_window(self, first, last):
        """[first, last]; a record a gap behind it still prolongs it."""
        return Window(first, last, last + self.spec.gap, '[]')

    def windows_at(self, time):
        """Windows of a kind that does not depend on other records."""
        if self.spec.kind == 'tumble':
            n = (time - self.spec.origin) // self.spec.size
            return [self.half_open(self.spec.origin + n * self.spec.size)]
        n = time // self.spec.advance
        windows = []
        while n * self.spec.advance + self.spec.size > time:
            windows.append(self.half_open(n * self.spec.advance))
            n -= 1
        return windows

    def take_tumble(self, partition, row, keys):
        """Each (record, window) pair is judged by itself."""
        for window in self.windows_at(row.time):
            cause = self.late_cause(partition, window)
            if cause is None:
                self.taken.append((window, Taken(row, keys, None)))
            else:
                self.letter(row, 'late', cause or None, window)
                self.late.append((window, Taken(row, keys, None)))

    take_hop = take_tumble

    # ------------------------------------------------------------ slide

    def take_slide(self, partition, row, keys):
        """It misses the windows that hold it and end before T, or before what is closed."""
        since = self.late_time(partition)
        cause = None
        if self.closed is not None and self.closed > since:
            since = self.closed
            cause = 'idle'
        if row.time < since:
            missed = self.closed_window(row.time - self.spec.size)   # all of them, or those that end before since
            if since <= row.time + self.spec.size:
                missed = Window(missed.start, since, None, '[)')
            else:
                missed.end = row.time + self.spec.size
            self.letter(row, 'late', cause if row.time >= self.late_time(partition) else None, missed)
        if row.time + self.spec.size >= since:
            self.taken.append((None, Taken(row, keys, since)))

    def slides(self, taken):
        """Windows end at a record or begin just behind one."""
        starts = set()
        for one in taken:
            if one.since <= one.row.time:
                starts.add(one.row.time - self.spec.size)
            starts.add(one.row.time + 1)
        return [self.closed_window(start) for start in starts]

    def is_in_slide(self, taken, window):
        return window.start <= taken.row.time <= window.end and window.end >= taken.since

    # ------------------------------------------------------------ session

    def touches(self, window, time):
        """Within the gap, which is included."""
        return window.start - self.spec.gap <= time <= window.end + self.spec.gap

    def take_session(self, partition, row, keys):
        """What it touches merges with it; what is over for its partition does not. The merged one is judged."""
        touched = [w for w in {id(w): w for w, t in self.taken if t.keys == keys}.values()
                   if self.touches(w, row.time) and not self.over_for(partition, w)]
        merged = self.session_window(min([row.time] + [w.start for w in touched]),
                                     max([row.time] + [w.end for w in touched]))
        cause = self.late_cause(partition, merged)
        if cause is not None:
            alone = self.session_window(row.time, row.time)
            self.letter(row, 'late', cause or self.session_cause(row, keys), alone)
            self.late.append((alone, Taken(row, keys, None)))
            return
        self.taken = [(merged if w in touched else w, t) for w, t in self.taken]
        self.taken.append((merged, Taken(row, keys, None)))

    def session_cause(self, row, keys):
        """Late, perhaps, only because of the order in which partitions were read."""
        others = [t for _, t in self.taken if t.keys == keys and t.row.partition != row.partition]
        return 'session order' if others else None

    # ------------------------------------------------------------ the watermark

    def is_at_end(self, partition):
        return partition.read == len(partition.records)

    def is_idle(self, partition, clock):
        """Read to its end, and silent for the timeout; one that brought no time at all is idle at once."""
        if not self.is_at_end(partition):
            return False
        if partition.stream_time is None:
            return self.empty_is_idle()
        return self.spec.idle_timeout > 0 and partition.last_came + self.spec.idle_timeout <= clock

    def empty_is_idle(self):
        return True

    def silence_bound(self, windows):
        """Silence closes what is open and no more."""
        return max(w.last + 1 for w in windows) + self.spec.lateness

    def silence(self, clock):
        """All are idle: the clock goes on in place of the records."""
        last_came = max((p.last_came for p in self.partitions if p.last_came is not None), default=None)
        largest = max((p.stream_time for p in self.partitions if p.stream_time is not None), default=None)
        windows = [w for w, rows in self.groups()]
        if largest is None or not windows:
            return None
        return min(largest + max(clock - last_came, 0), self.silence_bound(windows))

    def watermark_at(self, clock):
        if not self.partitions:
            return None
        awake = [p for p in self.partitions if not self.is_idle(p, clock)]
        if not awake:
            return self.silence(clock)
        if any(p.stream_time is None for p in awake):
            return None
        return min(p.stream_time for p in awake)

    # ------------------------------------------------------------ closing

    def checkpoint(self, clock, anything_read):
        watermark = self.move(self.watermark, self.watermark_at(clock))
        idle = [self.is_idle(p, clock) for p in self.partitions]
        if watermark is None:
            self.idle = idle
            return
        closed = watermark - self.closing_lateness()
        closing = [(window, taken) for window, taken in self.groups() if window.last < closed]
        # Silence that changes nothing is not told to anybody: it is no step.
        if not anything_read and idle == self.idle and not closing:
            return
        for window, taken in closing:
            self.close(window, taken)
        self.watermark, self.closed, self.idle = watermark, closed, idle
        self.taken = [(w, t) for w, t in self.taken if not self.is_past(w, t)]

    def move(self, old, new):
        """It never goes back."""
        return later(old, new)

    def closing_lateness(self):
        return self.spec.lateness

    def closed_before(self):
        """Windows that end no later are final."""
        distance = {'tumble': 0, 'hop': 0, 'slide': 1, 'session': self.spec.gap + 1}[self.spec.kind]
        return None if self.closed is None else self.closed - distance

    def is_past(self, window, taken):
        """May it be forgotten? Not while a window that is open may hold it."""
        return (window.last if window else taken.row.time + 1 + self.spec.size) < self.closed

    def close(self, window, taken):
        self.finished.append((window, taken))
        row = self.statement.row(window, taken)
        if row is None:
            return
        if self.statement.refused(row):
            self.refused(window)
        else:
            self.rows.append(row)

    def refused(self, window):
        """A finished row that cannot be written is a dead letter without a record."""
        self.letters.append((None, None, 'rejected', None, window.text()))

    # ------------------------------------------------------------ reopening

    def reopen(self):
        """All late records are folded into the closed windows (they are late for none that is open)."""
        for window, taken in self.late:
            if self.spec.kind == 'session':
                touched = [g for g in self.finished
                           if g[1][0].keys == taken.keys and self.touches(g[0], taken.row.time)]
            else:
                touched = [g for g in self.finished if g[1][0].keys == taken.keys and g[0].start == window.start]
            merged = [window] + [w for w, _ in touched]
            if self.spec.kind == 'session':
                window = self.session_window(min(w.start for w in merged), max(w.end for w in merged))
            self.finished = [g for g in self.finished if g not in touched]
            self.finished.append((window, [t for _, inside in touched for t in inside] + [taken]))
        rows = [self.statement.row(window, taken) for window, taken in self.finished]
        self.rows = [row for row in rows if row is not None]
        self.letters = [letter for letter in self.letters if letter[2] != 'late']
        self.late = []

    # ------------------------------------------------------------ what there is

    def groups(self):
        """Open windows and the records of each group in them: [(window, [taken])], not yet closed."""
        groups = {}
        if self.spec.kind == 'slide':
            by_keys = {}
            for _, taken in self.taken:
                by_keys.setdefault(taken.keys, []).append(taken)
            for keys, all_taken in by_keys.items():
                for window in self.slides(all_taken):
                    inside = [t for t in all_taken if self.is_in_slide(t, window)]
                    if inside and not self.is_closed(window):
                        groups[(window.start, keys)] = (window, inside)
        else:
            for window, taken in self.taken:
                which = id(window) if self.spec.kind == 'session' else window.start
                groups.setdefault((which, taken.keys), (window, []))[1].append(taken)
        return list(groups.values())

    def open_rows(self):
        """Rows of open windows as they stand now, for emit 'changes'."""
        rows = [self.statement.row(window, taken) for window, taken in self.groups()]
        return [row for row in rows if row is not None]

    def seen(self):
        """What the database must show."""
        rows = self.rows + (self.open_rows() if self.spec.emit == 'changes' else [])
        open_windows = {}
        for window, taken in self.groups():
            open_windows.setdefault(window.text(), []).extend(taken)
        return {
            'rows': sorted(rows),
            'letters': sorted(self.letters, key=str),
            'open': sorted((text, len(taken)) for text, taken in open_windows.items()),
            'positions': {number: (p.read, p.stream_time) for number, p in enumerate(self.partitions)},
            'watermark': (self.watermark, self.closed_before()),
        }


def later(a, b):
    if a is None or b is None:
        return b if a is None else a
    return max(a, b)
