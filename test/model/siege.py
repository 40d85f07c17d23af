"""Plays cases with real workers, which are killed meanwhile, each kill a crash of the whole server.

The records go into the log bit by bit. In these cases (generate_steady) nothing depends on timing, so in the end there
must be what the model says of all records at once.
"""
import os
import random
import signal
import time

import psycopg2

from cases import generate_steady, interval
from windows import Model

LOST = (None, '57P01', '57P02', '57P03')    # errors of a connection that goes down with the server
PATIENCE = 60                   # seconds until pipelines must be where the model is


class Siege:
    def __init__(self, player, seed, kinds, pipelines):
        self.player = player
        self.rng = random.Random(seed)
        self.cases = [generate_steady(seed + n, kinds) for n in range(pipelines)]

    def sql(self, sql):
        """Again and again while the server comes back from a crash; whatever is sent may have been done before."""
        end = time.monotonic() + PATIENCE
        while True:
            try:
                self.player.cursor.execute(sql)
                return self.player.cursor.fetchall() if self.player.cursor.description else None
            except psycopg2.Error as error:
                if error.pgcode not in LOST or time.monotonic() > end:
                    raise
                self.reconnect(end)

    def reconnect(self, end):
        while True:
            try:
                self.player.connect()
                return
            except psycopg2.OperationalError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.05)

    def begin(self, number, case):
        name = f'siege_{number}'
        case.target_name, case.stream = f'{name}_target', f'{name}_stream'
        self.sql(f"""DO $$ BEGIN PERFORM hybridiot.drop_pipeline(name) FROM hybridiot.pipeline WHERE name = '{name}'; END $$;
            DROP FOREIGN TABLE IF EXISTS {case.stream}; DROP FUNCTION IF EXISTS rows_{case.target_name};
            DROP TABLE IF EXISTS {case.target_name}, {name}_log; CREATE TABLE {name}_log (LIKE log INCLUDING INDEXES)""")
        self.player.create_stream(case.stream, f'{name}_log', case.max_future)
        self.player.create_target(case.target_name, None if case.emit == 'final' else len(case.statement.keys_sql))
        self.sql(self.player.put([r for r in case.records() if r.offset == 0], f'{name}_log'))
        options = case.options_sql().replace('enabled => false', 'enabled => true')
        self.sql(f"SELECT hybridiot.create_pipeline('{name}', $${case.statement_sql()}$$, {options}, batch_delay => '0', "
                 f"checkpoint_interval => '{interval(self.rng.choice([1000, 50000, 300000]))}')")

    def kill(self):
        """One worker that works, a while after it began; the server starts again by itself."""
        end = time.monotonic() + PATIENCE
        session, pids = self.session(), []
        while not pids:
            if time.monotonic() > end:
                return False
            pids = self.sql("SELECT pid FROM hybridiot.stat_worker WHERE kind = 'pipeline' AND state = 'running'")
        time.sleep(self.rng.choice([0, 0.02, 0.1, 0.4]))
        pid = self.rng.choice(pids)[0]
        print(f'# killed {pid}', flush=True)
        os.kill(pid, signal.SIGKILL)
        while self.session() == session:
            time.sleep(0.01)
        return True

    def session(self):
        return self.sql('SELECT pg_backend_pid()')

    def feed(self, kills):
        """Everybody's records, in so many parts and one more, with a kill behind each part but the last."""
        left = {n: case.records() for n, case in enumerate(self.cases)}
        done = 0
        for part in range(kills + 1):
            for number, records in left.items():
                size = len(records) if part == kills else self.rng.randint(0, len(records))
                if size:
                    self.sql(self.player.put(records[:size], f'siege_{number}_log'))
                del records[:size]
            if part < kills:
                done += self.kill()
        return done

    def expected(self, case):
        model = Model(case)
        model.put(case.records())
        model.run(None, int(time.time() * 1000000))
        return model.seen()

    def outcome(self, number, case, end):
        """What must be there, and what is, once it is that or the patience ended."""
        expected = self.expected(case)
        while True:
            what = self.sql(f"SELECT state('siege_{number}') || jsonb_build_object('rows', rows_{case.target()}())")[0][0]
            got = self.player.plain(case, what)
            if got == expected or time.monotonic() > end:
                return case, expected, got
            time.sleep(0.05)

    def run(self, kills):
        """(kills done, [(case, expected, got)])"""
        for number, case in enumerate(self.cases):
            self.begin(number, case)
        done = self.feed(kills)
        end = time.monotonic() + PATIENCE
        outcomes = [self.outcome(number, case, end) for number, case in enumerate(self.cases)]
        for number in range(len(self.cases)):
            self.sql(f"""DO $$ BEGIN
                PERFORM hybridiot.drop_pipeline(name) FROM hybridiot.pipeline WHERE name = 'siege_{number}'; END $$""")
        return done, outcomes
