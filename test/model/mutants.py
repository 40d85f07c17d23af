"""Broken models: each breaks one rule. What the extension does must tell every one of them from the model.

A test that lets one pass does not test that rule.
"""
import copy

from windows import Model, Rejected, later

ALL = 'tumble hop slide session'
MUTANTS = []


def broken(rule, kinds=ALL):
    """Registers a model that breaks this rule; kinds: the windows for which one can tell."""
    def register(cls):
        MUTANTS.append((rule, kinds.split(), cls))
        return cls
    return register


@broken('a window counts up to its last instant, and no longer')
class CountsLonger(Model):
    def over_for(self, partition, window):
        return window.last + 1 < self.late_time(partition)


@broken('a record in the last instant of a window still counts')
class CountsShorter(Model):
    def over_for(self, partition, window):
        return window.last <= self.late_time(partition)


@broken('a window closes when the watermark has passed its last instant', 'tumble hop session')
class ClosesEarly(Model):
    def checkpoint(self, clock, anything_read):
        if self.watermark_at(clock) is not None:
            for window, taken in self.groups():
                if window.last == later(self.watermark, self.watermark_at(clock)) - self.spec.lateness:
                    self.close(window, taken)
        super().checkpoint(clock, anything_read)


@broken('a jump of time loses no window')
class LosesOnJump(Model):
    def close(self, window, taken):
        if window.last + 60000000 > self.watermark:
            super().close(window, taken)


@broken('a finished row that is refused is a dead letter')
class RefusedIsNothing(Model):
    def refused(self, window):
        pass


@broken('a window closes later by the lateness')
class ClosesWithoutLateness(Model):
    def closing_lateness(self):
        return 0


@broken('a record may come later by the lateness')
class JudgesWithoutLateness(Model):
    def late_time(self, partition):
        return partition.stream_time


@broken('a record is judged by the time of its own partition')
class JudgesByWatermark(Model):
    def late_time(self, partition):
        return (partition.stream_time if self.watermark is None else self.watermark) - self.spec.lateness


@broken('a record that is late, dropped or rejected raises time')
class RisesWithTakenOnly(Model):
    def judge(self, partition, record):
        before, letters = partition.stream_time, len(self.letters)
        super().judge(partition, record)
        if len(self.letters) > letters or not self.passes(record):
            partition.stream_time = before

    def passes(self, record):
        try:
            return bool(self.statement.rows(record))
        except Rejected:
            return False


@broken('a record that cannot be decoded raises no time')
class UndecodableRises(Model):
    def undecodable(self, partition, record):
        if record.time is not None:
            self.rise(partition, record)
        super().undecodable(partition, record)


@broken('a record from the future raises no time')
class FutureRises(Model):
    def future(self, partition, record):
        self.rise(partition, record)
        super().future(partition, record)


@broken('as far ahead as max_future is not the future')
class FutureIncluded(Model):
    def is_future(self, record, clock):
        return record.time >= clock + self.spec.max_future


@broken('the watermark never goes back')
class WatermarkGoesBack(Model):
    def move(self, old, new):
        return old if new is None else new


@broken('the slowest partition holds the watermark')
class FastestPartition(Model):
    def watermark_at(self, clock):
        times = [p.stream_time for p in self.partitions if p.stream_time is not None and not self.is_idle(p, clock)]
        return max(times) if times else super().watermark_at(clock)


@broken('a partition that was not read yet holds the watermark')
class UnreadIsIdle(Model):
    def is_idle(self, partition, clock):
        return partition.stream_time is None or super().is_idle(partition, clock)


@broken('an empty partition that was read to its end is idle at once')
class EmptyHolds(Model):
    def empty_is_idle(self):
        return False


@broken('silence makes a partition idle')
class NeverIdle(Model):
    def is_idle(self, partition, clock):
        return partition.stream_time is None and super().is_idle(partition, clock)


@broken('a partition with records to be read is not idle')
class IdleBeforeItsEnd(Model):
    def is_at_end(self, partition):
        return True


@broken("an idle_timeout of '0' means never")
class ZeroIsAtOnce(Model):
    def is_idle(self, partition, clock):
        if self.spec.idle_timeout == 0 and partition.stream_time is not None:
            return self.is_at_end(partition)
        return super().is_idle(partition, clock)


@broken('silence closes what is open and no more')
class SilenceUnbounded(Model):
    def silence_bound(self, windows):
        return 1 << 62


@broken('silence waits for the lateness, too')
class SilenceWithoutLateness(Model):
    def silence_bound(self, windows):
        return super().silence_bound(windows) - self.spec.lateness


@broken('in silence the clock goes on in place of the records')
class SilenceStands(Model):
    def silence(self, clock):
        return max((p.stream_time for p in self.partitions if p.stream_time is not None), default=None)


@broken('who comes back behind what was closed is late')
class IdleIsNotLate(Model):
    def is_closed(self, window):
        return False


@broken('a null key is a group')
class NullKeysDropped(Model):
    def take(self, partition, record):
        if record.k is not None:
            super().take(partition, record)


@broken('floor division also before the origin', 'tumble hop')
class Truncates(Model):
    def windows_at(self, time):
        origin = self.spec.origin if self.spec.kind == 'tumble' else 0
        step = self.spec.size if self.spec.kind == 'tumble' else self.spec.advance
        windows = super().windows_at(time)
        if time >= origin or (time - origin) % step == 0:
            return windows
        return [self.half_open(w.start + step) for w in windows]


@broken('windows are aligned to the origin', 'tumble')
class OriginIgnored(Model):
    def windows_at(self, time):
        return [self.half_open(time // self.spec.size * self.spec.size)]


@broken('each window of a record is judged by itself', 'hop')
class LateForAll(Model):
    def take_hop(self, partition, row, keys):
        causes = [self.late_cause(partition, w) for w in self.windows_at(row.time)]
        if all(c is None for c in causes) or all(c is not None for c in causes):
            super().take_hop(partition, row, keys)
        else:
            for window in self.windows_at(row.time):
                self.letter(row, 'late', None, window)


@broken('every window that holds the time', 'hop')
class OneWindow(Model):
    def windows_at(self, time):
        return super().windows_at(time)[:1]


@broken('the gap of sessions is included', 'session')
class GapExcluded(Model):
    def touches(self, window, time):
        return window.start - self.spec.gap < time < window.end + self.spec.gap


@broken('the merged session is judged, not the record', 'session')
class RecordJudged(Model):
    def take_session(self, partition, row, keys):
        alone = self.session_window(row.time, row.time)
        if self.late_cause(partition, alone) is not None:
            self.letter(row, 'late', self.late_cause(partition, alone) or None, alone)
        else:
            super().take_session(partition, row, keys)


@broken('a session that is over never merges again', 'session')
class OverMerges(Model):
    def take_session(self, partition, row, keys):
        self.forgiving = True
        super().take_session(partition, row, keys)

    def over_for(self, partition, window):
        if getattr(self, 'forgiving', False) and any(w is window for w, _ in self.taken):
            return False
        return super().over_for(partition, window)


@broken('of a key in several partitions, late ones say so', 'session')
class NoSessionOrder(Model):
    def session_cause(self, row, keys):
        return None


@broken('sessions of different keys do not merge', 'session')
class KeysMerge(Model):
    def take_session(self, partition, row, keys):
        super().take_session(partition, row, keys[:-1])


@broken('both ends of a sliding window are included', 'slide')
class SlideEndExcluded(Model):
    def is_in_slide(self, taken, window):
        return window.start < taken.row.time <= window.end and window.end >= taken.since


@broken('sliding windows also begin just behind a record', 'slide')
class SlideEndsOnly(Model):
    def slides(self, taken):
        return [w for w in super().slides(taken) if any(t.row.time == w.end for t in taken)]


@broken('just behind is one microsecond', 'slide')
class SlideStep(Model):
    def slides(self, taken):
        times = {t.row.time for t in taken}
        return [self.closed_window(w.start + (999 if w.start - 1 in times else 0)) for w in super().slides(taken)]


@broken('a late record is left out of the windows that are over, and of no others', 'slide')
class SlideAllOrNothing(Model):
    def is_in_slide(self, taken, window):
        return window.start <= taken.row.time <= window.end


@broken('reopening counts every late record', 'tumble hop session')
class ReopensWithoutOne(Model):
    def reopen(self):
        self.late = self.late[:-1]
        super().reopen()


@broken('a late record connects the sessions that it touches', 'session')
class ReopensAlone(Model):
    def reopen(self):
        gap, self.spec = self.spec.gap, copy.copy(self.spec)
        self.spec.gap = -1
        super().reopen()
        self.spec.gap = gap
