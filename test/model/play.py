"""Plays cases in PostgreSQL: what the extension makes of them, in the model's own terms."""
import json

import psycopg2

from cases import SITES, STREAMS, TOO_MANY, interval, log_row, timestamp

SETUP = """
CREATE EXTENSION IF NOT EXISTS hybridiot;
CREATE SERVER model FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (transport 'table');
CREATE TABLE log (partition int, "offset" bigint, "timestamp" timestamptz, key bytea, value bytea, headers jsonb,
	PRIMARY KEY (partition, "offset"));
CREATE TABLE site (k text, site text);
CREATE TABLE seen (step int, run bigint, what jsonb);
CREATE FUNCTION us(at timestamptz) RETURNS bigint IMMUTABLE STRICT PARALLEL SAFE LANGUAGE sql AS
	$$ SELECT (extract(epoch FROM at) * 1000000)::bigint $$;
CREATE FUNCTION bounds(during tstzrange) RETURNS text IMMUTABLE STRICT PARALLEL SAFE LANGUAGE sql AS
	$$ SELECT concat(CASE WHEN lower_inc(during) THEN '[' ELSE '(' END, us(lower(during)), ',', us(upper(during)),
		CASE WHEN upper_inc(during) THEN ']' ELSE ')' END) $$;
-- What there is to be seen of a pipeline, but for the target.
CREATE FUNCTION state(name text) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN RETURN jsonb_build_object(
	'letters', (SELECT jsonb_agg(jsonb_build_array(partition, "offset", reason, cause, bounds(during)))
		FROM hybridiot.dead_letter l WHERE l.pipeline = state.name),
	'open', (SELECT jsonb_agg(jsonb_build_array(bounds(during), records)) FROM hybridiot.open_window o WHERE o.pipeline = state.name),
	'positions', (SELECT jsonb_object_agg(partition, jsonb_build_array(next_offset, us(stream_time)))
		FROM hybridiot.position p WHERE p.pipeline = state.name),
	'watermark', (SELECT jsonb_build_array(us(watermark), us(closed_before)) FROM hybridiot.pipeline p WHERE p.name = state.name)); END $$;
"""

TARGET = """
CREATE TABLE {name} (during tstzrange{null}, k1 text{null1}, k2 text{null2}, n bigint, ids numeric,
	a1 numeric, a2 numeric, a3 numeric{key});
CREATE FUNCTION rows_{name}() RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN RETURN (SELECT jsonb_agg(jsonb_build_array(
	bounds(during), k1, k2, n, ids, trim_scale(a1)::text, trim_scale(a2)::text, trim_scale(a3)::text)) FROM {name}); END $$;
"""


class Player:
    def __init__(self, dsn):
        self.dsn = dsn
        self.connection = None
        self.played = 0
        self.connect()

    def connect(self):
        if self.connection:
            self.connection.close()
        self.connection = psycopg2.connect(self.dsn)
        self.connection.autocommit = True
        self.cursor = self.connection.cursor()
        self.cursor.execute("SET timezone = 'UTC'; SET client_min_messages = warning")

    def query(self, sql):
        self.cursor.execute(sql)
        return self.cursor.fetchone()[0]

    def setup(self):
        self.cursor.execute(SETUP)
        for stream, max_future in STREAMS.items():
            self.create_stream(stream, 'log', max_future)
        self.cursor.execute('INSERT INTO site VALUES ' + ', '.join(
            f"('{k}', '{site}')" for k, sites in SITES.items() for site in sites))
        self.create_target('final', None)
        self.create_target('checked', None)
        self.cursor.execute(f'ALTER TABLE checked ADD CHECK (n <= {TOO_MANY})')
        for keys in range(3):
            self.create_target(f'changes_{keys}', keys)

    def create_stream(self, name, log, max_future):
        self.cursor.execute(f"""CREATE FOREIGN TABLE {name} (k text, v int, ts timestamptz,
            part int OPTIONS (metadata 'partition'), pos bigint OPTIONS (metadata 'offset'))
            SERVER model OPTIONS (topic '{log}', source 'public.{log}', format 'json', event_time 'ts',
                max_future '{interval(max_future)}')""")

    def create_target(self, name, keys):
        """keys: how many the primary key has beside the window; None: there is none."""
        null = ['' if keys is None or keys < n else ' NOT NULL' for n in range(3)]
        key = '' if keys is None else f", PRIMARY KEY ({', '.join(['during', 'k1', 'k2'][:keys + 1])})"
        self.cursor.execute(TARGET.format(name=name, null=null[0], null1=null[1], null2=null[2], key=key))

    # ------------------------------------------------------------ a case

    def play(self, case):
        """What was to be seen after each committed run: [(records read, {...})]. Or an error's text."""
        scripts = self.scripts(case)
        self.played += 1
        try:
            for i, script in enumerate(scripts):
                if i > 0:
                    self.connect()
                self.cursor.execute(script)
            return [(run, self.plain(case, what)) for run, what in json.loads(self.cursor.fetchone()[0] or '[]')]
        except psycopg2.Error as error:
            self.connect()
            return str(error).strip()

    def scripts(self, case):
        """One round trip for all of it, unless sessions end on the way. Every step is a transaction of its own."""
        parts = ['BEGIN; SELECT hybridiot.drop_pipeline(name) FROM hybridiot.pipeline;'
                 f'{self.empty()} log; {self.empty()} seen; {self.empty()} {case.target()};'
                 f"SELECT hybridiot.create_pipeline('p', $${case.statement_sql()}$$, {case.options_sql()}); COMMIT;"]
        scripts = []
        for number, step in enumerate(case.steps):
            if step[0] == 'put':
                if step[1]:
                    parts.append(self.put(step[1]))
                continue
            if step[0] == 'reopen':
                parts.append(f"""BEGIN; SELECT hybridiot.reopen_window(name, tstzrange('1900-01-01', closed_before, '[]'))
                    FROM hybridiot.pipeline; INSERT INTO seen VALUES ({number}, NULL, {self.what(case)}); COMMIT;""")
                continue
            _, max_records, clock, fate = step
            run = (f"hybridiot.run_pipeline('p', {'NULL' if max_records is None else max_records}, "
                   f"'{timestamp(clock)}')")
            if fate == 'rollback':
                parts.append(f'BEGIN; SELECT {run}; ROLLBACK;')
                continue
            parts.append(f'BEGIN; INSERT INTO seen VALUES ({number}, {run});'
                         f'UPDATE seen SET what = {self.what(case)} WHERE step = {number}; COMMIT;')
            if fate == 'reconnect':
                scripts.append(''.join(parts))
                parts = []
        parts.append("SELECT jsonb_agg(jsonb_build_array(run, what) ORDER BY step)::text FROM seen;")
        return scripts + [''.join(parts)]

    def empty(self):
        """TRUNCATE now and then: DELETE is faster, and leaves dead rows."""
        return 'TRUNCATE' if self.played % 100 == 0 else 'DELETE FROM'

    @staticmethod
    def put(records, log='log'):
        rows = []
        for partition, offset, at, value in map(log_row, records):
            at = f"'{at}'" if at else 'NULL'
            value = "convert_to('" + value + "', 'UTF8')" if value is not None else 'NULL'
            rows.append(f'({partition}, {offset}, {at}, NULL, {value}, NULL)')
        return f"BEGIN; INSERT INTO {log} VALUES {', '.join(rows)} ON CONFLICT DO NOTHING; COMMIT;"

    @staticmethod
    def what(case):
        return f"state('p') || jsonb_build_object('rows', rows_{case.target()}())"

    @staticmethod
    def plain(case, what):
        """In the model's terms."""
        nkeys, naggregates = len(case.statement.keys_sql), len(case.statement.aggregates_sql)
        rows = []
        for during, k1, k2, n, ids, a1, a2, a3 in what['rows'] or []:
            rows.append([during] + [k or '' for k in (k1, k2)[:nkeys]] + [str(n), str(ids)] +
                        [a or '' for a in (a1, a2, a3)[:naggregates]])
        return {
            'rows': sorted(rows),
            'letters': sorted([tuple(letter) for letter in what['letters'] or []], key=str),
            'open': sorted(tuple(one) for one in what['open'] or []),
            'positions': {int(p): (case.count_before(int(p), offset), stream_time)
                          for p, (offset, stream_time) in (what['positions'] or {}).items()},
            'watermark': tuple(what['watermark']),
        }
