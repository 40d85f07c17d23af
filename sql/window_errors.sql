-- Windowed pipelines when something fails; aggregates of users; what runs how often, and as whom.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS hybridiot;
CREATE SCHEMA window_errors;
SET search_path = window_errors, public;
SET timezone = 'UTC';
SET datestyle = 'ISO';

CREATE SERVER window_errors FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (transport 'table');
CREATE TABLE log (partition int, "offset" bigint, "timestamp" timestamptz, key bytea, value bytea, headers jsonb);
CREATE FOREIGN TABLE s (device text, ts timestamptz, temp float8) SERVER window_errors
	OPTIONS (topic 'log', source 'window_errors.log', format 'json', event_time 'ts');
CREATE FUNCTION put(second float8, device text DEFAULT 'a', temp float8 DEFAULT 1) RETURNS void LANGUAGE sql AS $$
	INSERT INTO log SELECT 0, (SELECT count(*) FROM log), NULL, NULL,
		convert_to(jsonb_build_object('device', device, 'ts', timestamptz '2024-01-01' + second * interval '1 s', 'temp', temp)::text, 'UTF8'), NULL $$;
CREATE FUNCTION forget() RETURNS void LANGUAGE sql AS $$ TRUNCATE log $$;
CREATE FUNCTION sec(during tstzrange) RETURNS text IMMUTABLE STRICT LANGUAGE sql AS $$
	SELECT format('[%s,%s)', extract(epoch FROM lower(during) - '2024-01-01')::int, extract(epoch FROM upper(during) - '2024-01-01')::int) $$;
CREATE FUNCTION run(name name) RETURNS bigint LANGUAGE sql AS $$
	SELECT hybridiot.run_pipeline(name, wall_clock => '2024-01-01 00:20') $$;
CREATE VIEW dead AS SELECT topic, partition AS part, "offset", reason, sec(during) AS during, group_keys, sqlstate, message
	FROM hybridiot.dead_letter ORDER BY during, "offset", group_keys;

-- A finished row that fails by itself is a dead letter; the others are written; its state is kept.
CREATE TABLE checked (during tstzrange, device text, n bigint CHECK (n < 3), ratio float8);
SELECT hybridiot.create_pipeline('checked', $$
	INSERT INTO checked SELECT hybridiot.tumble(ts, '10 s'), device, count(*), 1 / min(temp) FROM s GROUP BY 1, 2 $$, enabled => false);
SELECT put(1, 'a'), put(2, 'a'), put(3, 'b'), put(3, 'b'), put(3, 'b'), put(4, 'c'), put(5, 'd', 0), put(6, NULL, 0), put(7, 'e'), put(11), put(25);
SELECT run('checked');
SELECT sec(during), device, n, ratio FROM checked ORDER BY 1, 2;
SELECT * FROM dead;
SELECT id, closed, records FROM hybridiot.window_group ORDER BY id;
SELECT sec(during), groups FROM hybridiot.open_window;
SELECT put(26), put(31);
SELECT run('checked');
SELECT sec(during), device, n, ratio FROM checked ORDER BY 1, 2;
SELECT count(*) FROM dead;
SELECT hybridiot.drop_pipeline('checked'), forget();

-- many of them need more than one transaction's savepoints; in the end all is told
TRUNCATE checked;
SELECT hybridiot.create_pipeline('many', $$
	INSERT INTO checked SELECT hybridiot.tumble(ts, '10 s'), device, count(*), 1 / min(temp) FROM s GROUP BY 1, 2 $$, enabled => false);
DO $$ BEGIN FOR i IN 0 .. 199 LOOP PERFORM window_errors.put(i % 10, 'd' || i, i % 4); END LOOP; END $$;
SELECT put(10);
SELECT run('many');
SELECT count(*), count(DISTINCT device) FROM checked;
SELECT count(*), count(DISTINCT group_keys), min(sqlstate), max(sqlstate) FROM dead;
SELECT hybridiot.drop_pipeline('many'), forget();

-- unless the pipeline is to stop
SELECT hybridiot.create_pipeline('stop', $$
	INSERT INTO checked SELECT hybridiot.tumble(ts, '10 s'), device, count(*), 1 / min(temp) FROM s GROUP BY 1, 2 $$, on_error => 'stop', enabled => false);
SELECT put(1), put(5, 'd', 0), put(11);
SELECT run('stop');
SELECT hybridiot.drop_pipeline('stop');
SELECT hybridiot.create_pipeline('stop', $$
	INSERT INTO checked SELECT hybridiot.tumble(ts, '10 s'), device, count(*), 1 / min(temp) FROM s GROUP BY 1, 2 $$, max_errors => 1, enabled => false);
SELECT run('stop');
SELECT put(12, 'd', 0), put(12, 'e', 0), put(21);
SELECT run('stop');
SELECT hybridiot.drop_pipeline('stop'), forget();

-- A statement or table that is wrong stops the pipeline, and nothing is lost.
TRUNCATE checked;
SELECT hybridiot.create_pipeline('wrong', $$
	INSERT INTO checked SELECT hybridiot.tumble(ts, '10 s'), device, count(*), 1 / min(temp) FROM s GROUP BY 1, 2 $$, enabled => false);
SELECT put(1), put(11);
ALTER TABLE checked RENAME COLUMN ratio TO proportion;
\set VERBOSITY terse
SELECT run('wrong');
\set VERBOSITY default
ALTER TABLE checked RENAME COLUMN proportion TO ratio;
SELECT run('wrong');
SELECT sec(during), device, n, ratio FROM checked;
SELECT hybridiot.drop_pipeline('wrong'), forget();

-- A record that fails in WHERE, a key or an aggregate is a dead letter of its own; it moves time.
TRUNCATE checked;
SELECT hybridiot.create_pipeline('feed', $$
	INSERT INTO checked SELECT hybridiot.tumble(ts, '10 s'), device, count(*), sum(10 / temp) FROM s GROUP BY 1, 2 $$, enabled => false);
SELECT put(1, 'a', 5), put(2, 'a', 0), put(3, 'a', 2), put(4, 'b', 10), put(15, 'b', 0), put(5, 'a'), put(16, 'b', 5), put(25);
SELECT run('feed');
SELECT sec(during), device, n, ratio FROM checked ORDER BY 1, 2;
SELECT * FROM dead;
SELECT hybridiot.drop_pipeline('feed'), forget();

-- What FILTER leaves out is not evaluated.
TRUNCATE checked;
SELECT hybridiot.create_pipeline('guarded', $$
	INSERT INTO checked SELECT hybridiot.tumble(ts, '10 s'), device, count(*), sum(10 / temp) FILTER (WHERE temp <> 0) FROM s GROUP BY 1, 2 $$, enabled => false);
SELECT put(1, 'a', 5), put(2, 'a', 0), put(3, 'b', 0), put(10);
SELECT run('guarded');
SELECT sec(during), device, n, ratio FROM checked ORDER BY 1, 2;
SELECT count(*) FROM dead;
SELECT hybridiot.drop_pipeline('guarded'), forget();

-- Rows of several windows that hit one row: the latest window wins, whatever a checkpoint holds.
CREATE TABLE latest (device text PRIMARY KEY, during tstzrange, n bigint);
SELECT hybridiot.create_pipeline('latest', $$
	INSERT INTO latest SELECT device, hybridiot.tumble(ts, '10 s'), count(*) FROM s GROUP BY 1, 2
	ON CONFLICT (device) DO UPDATE SET during = excluded.during, n = excluded.n $$, enabled => false);
DO $$ BEGIN FOR i IN 0 .. 1000 LOOP PERFORM window_errors.put(i, CASE WHEN i % 5 = 0 AND i < 900 THEN 'b' ELSE 'a' END); END LOOP; END $$;
SELECT run('latest');
SELECT device, sec(during), n FROM latest ORDER BY 1;
SELECT count(*) FROM dead;
SELECT hybridiot.drop_pipeline('latest'), forget();

-- Volatile functions in the outer list run once for each final row; all of it runs as the owner.
CREATE ROLE window_errors_owner;
GRANT USAGE, CREATE ON SCHEMA window_errors TO window_errors_owner;
GRANT SELECT ON s, log TO window_errors_owner;
GRANT USAGE ON FOREIGN SERVER window_errors TO window_errors_owner;
CREATE TABLE sent (id serial, device text, who name, restricted text);
CREATE FUNCTION send(device text) RETURNS int LANGUAGE sql VOLATILE AS $$
	INSERT INTO window_errors.sent (device, who, restricted) VALUES (device, current_user, current_setting('search_path')) RETURNING id $$;
CREATE TABLE alarm (during tstzrange, device text, temp float8, command int);
GRANT ALL ON sent, sent_id_seq, alarm TO window_errors_owner;
SET ROLE window_errors_owner;
SELECT hybridiot.create_pipeline('alarm', $$
	INSERT INTO alarm SELECT hybridiot.tumble(ts, '10 s'), device, max(temp), send(device) FROM s GROUP BY 1, 2 HAVING max(temp) > 80 $$,
	batch_rows => 1, enabled => false);
RESET ROLE;
SELECT put(1, 'a', 81), put(2, 'a', 90), put(3, 'b', 80), put(4, 'c', 99), put(11, 'a', 95), put(12, 'b', 20), put(21);
SELECT run('alarm');
SELECT sec(during), device, temp, command FROM alarm ORDER BY command;
SELECT * FROM sent ORDER BY id;
SELECT hybridiot.drop_pipeline('alarm'), forget();

-- Deferred constraints are checked at once, as the owner, row by row.
CREATE TABLE known (device text PRIMARY KEY);
INSERT INTO known VALUES ('a');
CREATE TABLE deferred (during tstzrange, device text REFERENCES known DEFERRABLE INITIALLY DEFERRED, n bigint);
SELECT hybridiot.create_pipeline('deferred', $$ INSERT INTO deferred SELECT hybridiot.tumble(ts, '10 s'), device, count(*) FROM s GROUP BY 1, 2 $$, enabled => false);
SELECT put(1, 'a'), put(2, 'b'), put(11, 'a');
SELECT run('deferred');
SELECT sec(during), device, n FROM deferred;
SELECT reason, during IS NOT NULL AS during, group_keys, sqlstate FROM dead;
SELECT hybridiot.drop_pipeline('deferred'), forget();

-- max_groups stops the pipeline before memory does; windows that can close do not count.
CREATE TABLE few (during tstzrange, device text, n bigint);
SELECT hybridiot.create_pipeline('few', $$ INSERT INTO few SELECT hybridiot.tumble(ts, '10 s'), device, count(*) FROM s GROUP BY 1, 2 $$,
	max_groups => 2, enabled => false);
DO $$ BEGIN FOR i IN 0 .. 9 LOOP PERFORM window_errors.put(i * 10); END LOOP; END $$;
SELECT put(91, 'b');
SELECT run('few');
SELECT count(*) FROM few;
SELECT put(92, 'c');
SELECT run('few');
SELECT hybridiot.drop_pipeline('few'), forget();

-- States stored in a form that cannot be read any more
SELECT hybridiot.create_pipeline('form', $$ INSERT INTO few SELECT hybridiot.tumble(ts, '10 s'), device, count(*) FROM s GROUP BY 1, 2 $$, enabled => false);
SELECT put(1);
SELECT run('form');
SELECT regexp_replace(layout, 'PostgreSQL \d+', 'PostgreSQL NN') FROM hybridiot.window_layout;
UPDATE hybridiot.window_layout SET layout = 'PostgreSQL 7, state of ages past';
\set VERBOSITY terse
SELECT run('form');
\set VERBOSITY default
SELECT hybridiot.drop_pipeline('form'), forget();

-- Aggregates of users: in SQL, in PL/pgSQL, strict ones, expanded arrays, final functions that spoil their state
CREATE FUNCTION add_sql(float8, float8) RETURNS float8 IMMUTABLE LANGUAGE sql AS 'SELECT coalesce($1, 0) + coalesce($2, 100)';
CREATE AGGREGATE sum_sql (float8) (sfunc = add_sql, stype = float8, combinefunc = add_sql);
CREATE FUNCTION longest(text, text) RETURNS text IMMUTABLE STRICT LANGUAGE plpgsql AS $$ BEGIN RETURN CASE WHEN length($2) > length($1) THEN $2 ELSE $1 END; END $$;
CREATE AGGREGATE longest (text) (sfunc = longest, stype = text, combinefunc = longest);
CREATE AGGREGATE gather (anycompatible) (sfunc = array_append, stype = anycompatiblearray, combinefunc = array_cat);
CREATE FUNCTION half(float8[]) RETURNS float8 IMMUTABLE LANGUAGE sql AS 'SELECT $1[1] / 2';
CREATE AGGREGATE half (float8) (sfunc = float8_accum, stype = float8[], combinefunc = float8_combine, finalfunc = half, finalfunc_modify = read_write, initcond = '{0,0,0}');
CREATE TABLE own (during tstzrange, device text, s float8, l text, g float8[], h float8, av numeric, UNIQUE (during, device));
ALTER TABLE own ALTER during SET NOT NULL, ALTER device SET NOT NULL;
SELECT hybridiot.create_pipeline('own', $$
	INSERT INTO own SELECT hybridiot.tumble(ts, '10 s'), device, sum_sql(temp), longest(device || temp), gather(temp), half(temp), avg(temp::numeric) FROM s GROUP BY 1, 2
	ON CONFLICT (during, device) DO UPDATE SET s = excluded.s, l = excluded.l, g = excluded.g, h = excluded.h, av = excluded.av $$, emit => 'changes', enabled => false);
SELECT put(1, 'a', 1), put(2, 'a', NULL), put(3, 'a', 22.5), put(4, 'b', NULL);
SELECT run('own');
SELECT sec(during), device, s, l, g, h, av FROM own ORDER BY 2;
SELECT put(5, 'a', 7), put(6, 'b', 3);
SELECT run('own');
SELECT sec(during), device, s, l, g, h, av FROM own ORDER BY 2;
SELECT put(7, 'a', 1e-3), put(10, 'z', 0);
SELECT run('own');
SELECT sec(during), device, s, l, g, h, av FROM own WHERE device < 'z'
EXCEPT ALL
SELECT sec(hybridiot.tumble(ts, '10 s')), device, sum_sql(temp), longest(device || temp), gather(temp), half(temp), avg(temp::numeric) FROM s GROUP BY hybridiot.tumble(ts, '10 s'), device;
SELECT hybridiot.drop_pipeline('own'), forget();

-- Changes: a group that no longer passes HAVING leaves the table; a row that fails while its window is open is tried again when it changes
CREATE TABLE now (during tstzrange, device text, n bigint CHECK (n <> 2), PRIMARY KEY (during, device));
SELECT hybridiot.create_pipeline('now', $$
	INSERT INTO now SELECT hybridiot.tumble(ts, '10 s'), device, count(*) FROM s GROUP BY 1, 2 HAVING max(temp) < 10
	ON CONFLICT (during, device) DO UPDATE SET n = excluded.n $$, emit => 'changes', enabled => false);
SELECT put(1, 'a'), put(2, 'b'), put(3, 'c', 11);
SELECT run('now');
SELECT sec(during), device, n FROM now ORDER BY 2;
SELECT put(3, 'a', 12), put(3, 'b');
SELECT run('now');
SELECT sec(during), device, n FROM now ORDER BY 2;
SELECT count(*) FROM dead;
SELECT put(4, 'b'), put(5, 'd'), put(6, 'd');
SELECT run('now');
SELECT sec(during), device, n FROM now ORDER BY 2;
SELECT put(10, 'z');
SELECT run('now');
SELECT sec(during), device, n FROM now ORDER BY 1, 2;
SELECT * FROM dead;
SELECT hybridiot.drop_pipeline('now'), forget();

-- Records set aside are counted once, though a bad one behind them lets all be read again
CREATE TABLE sums (during tstzrange, sum float8);
SELECT hybridiot.create_pipeline('sums', $$
	INSERT INTO sums SELECT hybridiot.tumble(ts, '10 s'), sum(1 / temp) FROM s GROUP BY 1 $$, batch_rows => 3, max_errors => 4, enabled => false);
INSERT INTO log SELECT 0, n, NULL, NULL, 'not json', NULL FROM generate_series(0, 2) n;
SELECT put(1, temp => 0), put(2, temp => 2), put(11);
SELECT run('sums');
SELECT sec(during), sum FROM sums;
SELECT "offset", reason, message FROM dead;
SELECT hybridiot.drop_pipeline('sums'), forget();

DROP SCHEMA window_errors CASCADE;
DROP SERVER window_errors CASCADE;
DROP ROLE window_errors_owner;
