-- What a windowed pipeline keeps between runs: of groups that changed, within max_groups, whatever fails.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS hybridiot;
CREATE SCHEMA window_state;
SET search_path = window_state, public;
SET timezone = 'UTC';
SET datestyle = 'ISO';
\set VERBOSITY terse
\set SHOW_CONTEXT never

CREATE SERVER window_state FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (transport 'table');
CREATE TABLE log (partition int, "offset" bigint, "timestamp" timestamptz, key bytea, value bytea, headers jsonb);
CREATE FOREIGN TABLE s (device text, ts timestamptz, temp float8, pos bigint OPTIONS (metadata 'offset')) SERVER window_state
	OPTIONS (topic 'log', source 'window_state.log', format 'json', event_time 'ts');
-- records of devices first to last, one each at a second of 2024-01-01
CREATE FUNCTION put(second float8, first int, last int, temp float8 DEFAULT 1) RETURNS void LANGUAGE sql AS $$
	INSERT INTO log SELECT 0, (SELECT count(*) FROM log) + i - first, NULL, NULL,
		convert_to(json_build_object('device', 'd' || i, 'ts', timestamptz '2024-01-01' + second * interval '1 s', 'temp', temp)::text, 'UTF8'), NULL
	FROM generate_series(first, last) AS i $$;
CREATE FUNCTION forget() RETURNS void LANGUAGE sql AS $$ TRUNCATE log $$;
CREATE FUNCTION run(name name, records bigint DEFAULT NULL) RETURNS bigint LANGUAGE sql AS $$
	SELECT hybridiot.run_pipeline(name, records, wall_clock => '2024-01-01 00:20') $$;

-- A checkpoint writes the groups that changed, and no others.
CREATE TABLE total (during tstzrange, device text, n bigint, sum float8);
SELECT hybridiot.create_pipeline('total', 'INSERT INTO total SELECT hybridiot.tumble(ts, ''10 s''), device, count(*), sum(temp) FROM s GROUP BY 1, 2', enabled => false);
CREATE TABLE before AS SELECT id, ctid AS place, xmin::text AS by FROM hybridiot.window_group;
CREATE FUNCTION written() RETURNS TABLE (added bigint, changed bigint, removed bigint, kept bigint) LANGUAGE plpgsql AS $$
BEGIN
	SELECT count(*) FILTER (WHERE b.id IS NULL), count(*) FILTER (WHERE b.by <> g.xmin::text), count(*) FILTER (WHERE g.id IS NULL), count(*) FILTER (WHERE b.by = g.xmin::text)
		INTO added, changed, removed, kept FROM before b FULL JOIN hybridiot.window_group g USING (id);
	TRUNCATE before;
	INSERT INTO before SELECT id, ctid, xmin::text FROM hybridiot.window_group;
	RETURN NEXT;
END $$;
SELECT put(1, 1, 2000), run('total');
SELECT * FROM written();
SELECT put(2, 101, 103), put(3, 101, 101), run('total');
SELECT * FROM written();
-- nothing new, nothing written
SELECT run('total');
SELECT * FROM written();
-- a new window beside the old one; then the old one closes
SELECT put(9, 5, 5), put(19, 2001, 2010), put(19, 7, 7), run('total');
SELECT * FROM written();
SELECT count(*), sum(n), sum(sum) FROM total;
SELECT count(*), min(window_start), sum(records) FROM hybridiot.window_group;
-- the same within one run, at every batch
SELECT hybridiot.alter_pipeline('total', batch_rows => 1);
SELECT put(20, 1, 20), run('total');
SELECT * FROM written();
SELECT hybridiot.drop_pipeline('total'), forget();

-- max_groups stops the pipeline before memory does. Raised, it goes on, and nothing is lost.
CREATE TABLE few (during tstzrange, device text, n bigint);
SELECT hybridiot.create_pipeline('few', 'INSERT INTO few SELECT hybridiot.tumble(ts, ''10 s''), device, count(*) FROM s GROUP BY 1, 2', max_groups => 100, batch_rows => 30, enabled => false);
SELECT put(1, 1, 90), put(2, 81, 120), put(3, 1, 10), put(10, 1, 1);
SELECT run('few');
SELECT count(*) FROM hybridiot.window_group;
SELECT next_offset FROM hybridiot.position;
SELECT run('few', 60);
SELECT run('few');
SELECT hybridiot.alter_pipeline('few', max_groups => 109);
SELECT run('few');
SELECT next_offset FROM hybridiot.position;
SELECT hybridiot.alter_pipeline('few', max_groups => 110);
SELECT run('few');
SELECT count(*), sum(n) FROM few;
SELECT groups FROM hybridiot.open_window;
SELECT hybridiot.drop_pipeline('few'), forget();

-- A transition function that fails for a record spoils no group: the record is a dead letter, the others count.
CREATE FUNCTION add_carefully(state float8[], value float8) RETURNS float8[] IMMUTABLE LANGUAGE plpgsql AS $$
BEGIN
	state := ARRAY[state[1] + value, state[2] + 1];
	IF value = 13 THEN RAISE EXCEPTION 'no % here', value USING ERRCODE = '22023'; END IF;
	RETURN state;
END $$;
CREATE FUNCTION add_states(float8[], float8[]) RETURNS float8[] IMMUTABLE LANGUAGE sql AS 'SELECT ARRAY[$1[1] + $2[1], $1[2] + $2[2]]';
CREATE AGGREGATE careful (float8) (sfunc = add_carefully, stype = float8[], combinefunc = add_states, initcond = '{0,0}');
CREATE TABLE careful (during tstzrange, device text, n bigint, first numeric, s float8[], last numeric);
-- aggregates before and behind it are called before it fails, and must not keep the record either
SELECT hybridiot.create_pipeline('careful', $$ INSERT INTO careful SELECT hybridiot.tumble(ts, '10 s'), device, count(*), avg(pos), careful(temp), sum(pos) FROM s GROUP BY 1, 2 $$,
	batch_rows => 50, enabled => false);
DO $$ BEGIN FOR i IN 0 .. 149 LOOP PERFORM window_state.put(i / 5.0, i % 3, i % 3, i * 7 % 20); END LOOP; END $$;
SELECT run('careful', 70);
SELECT run('careful');
SELECT count(*), min(sqlstate), min(message), max(message) FROM hybridiot.dead_letter;
SELECT count(*), sum(n) FROM careful;
SELECT during, device, n, first, s, last FROM careful EXCEPT ALL
SELECT hybridiot.tumble(ts, '10 s'), device, count(*), avg(pos), careful(temp), sum(pos) FROM s WHERE temp <> 13 GROUP BY 1, 2;
-- the same with windows that are seen while they are open
TRUNCATE careful;
SELECT hybridiot.drop_pipeline('careful');
ALTER TABLE careful ADD UNIQUE (during, device), ALTER during SET NOT NULL, ALTER device SET NOT NULL;
SELECT hybridiot.create_pipeline('careful', $$ INSERT INTO careful SELECT hybridiot.tumble(ts, '10 s'), device, count(*), avg(pos), careful(temp), sum(pos) FROM s GROUP BY 1, 2
	ON CONFLICT (during, device) DO UPDATE SET n = excluded.n, first = excluded.first, s = excluded.s, last = excluded.last $$, emit => 'changes', enabled => false);
SELECT run('careful');
SELECT during, device, n, first, s, last FROM careful EXCEPT ALL
SELECT hybridiot.tumble(ts, '10 s'), device, count(*), avg(pos), careful(temp), sum(pos) FROM s WHERE temp <> 13 GROUP BY 1, 2;
SELECT count(*), sum(n) FROM careful;
SELECT hybridiot.drop_pipeline('careful'), forget();

-- A transition function that fails for another reason stops the pipeline where it stood; mended, it goes on.
CREATE TABLE switch (on_ bool);
CREATE FUNCTION add_if_on(state float8, value float8) RETURNS float8 STABLE LANGUAGE plpgsql AS $$
BEGIN
	IF NOT (SELECT on_ FROM window_state.switch) THEN RAISE EXCEPTION 'switched off' USING ERRCODE = '55000'; END IF;
	RETURN state + value;
END $$;
CREATE AGGREGATE sum_if_on (float8) (sfunc = add_if_on, stype = float8, combinefunc = float8pl, initcond = '0');
INSERT INTO switch VALUES (true);
SELECT hybridiot.create_pipeline('switched', 'INSERT INTO total SELECT hybridiot.tumble(ts, ''10 s''), device, count(*), sum_if_on(temp) FROM s GROUP BY 1, 2', batch_rows => 5, enabled => false);
TRUNCATE total;
SELECT put(1, 1, 8), run('switched');
UPDATE switch SET on_ = false;
SELECT put(2, 1, 8), put(10, 1, 1);
SELECT run('switched');
SELECT sum(records) FROM hybridiot.open_window;
UPDATE switch SET on_ = true;
SELECT run('switched');
SELECT count(*), sum(n), sum(sum) FROM total;
SELECT count(*) FROM hybridiot.dead_letter;
SELECT hybridiot.drop_pipeline('switched'), forget();

-- A final row that a constraint refuses: its state stays, the boundary passes, and later windows go on.
CREATE TABLE strict (during tstzrange, device text, n bigint CHECK (n < 3));
SELECT hybridiot.create_pipeline('strict', 'INSERT INTO strict SELECT hybridiot.tumble(ts, ''10 s''), device, count(*) FROM s GROUP BY 1, 2', enabled => false);
SELECT put(1, 1, 3), put(2, 1, 2), put(3, 1, 1), put(11, 1, 3), put(31, 9, 9), run('strict');
SELECT lower(during), count(*), sum(n) FROM strict GROUP BY 1 ORDER BY 1;
SELECT reason, during, group_keys, sqlstate FROM hybridiot.dead_letter;
SELECT closed, count(*), sum(records) FROM hybridiot.window_group GROUP BY 1 ORDER BY 1;
SELECT closed_before FROM hybridiot.pipeline WHERE name = 'strict';
-- not written a second time, nor counted as open, after a restart
SELECT put(32, 9, 9), run('strict');
SELECT count(*) FROM hybridiot.dead_letter;
SELECT during, groups, records FROM hybridiot.open_window;
SELECT hybridiot.drop_pipeline('strict'), forget();
SELECT count(*) FROM hybridiot.window_group;

-- States that cannot be read any more: the hint goes back to the open windows, whatever their kind, and to no others.
CREATE TABLE again (kind text, during tstzrange, n bigint, sum bigint);
CREATE FOREIGN TABLE numbers (n int, ts timestamptz OPTIONS (metadata 'timestamp')) SERVER window_state OPTIONS (topic 'log', source 'window_state.log', format 'json');
CREATE FUNCTION tell(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE hint text;
BEGIN
	EXECUTE statement;
	RETURN NULL;
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS hint = PG_EXCEPTION_HINT;
	RETURN hint;
END $$;
INSERT INTO log SELECT i % 2, i / 2, timestamptz '2024-01-01' + interval '0.7 s' * (i - i * 7 % 4) + CASE WHEN i > 40 THEN interval '7 s' ELSE '0' END,
	NULL, convert_to(json_build_object('n', i)::text, 'UTF8'), NULL FROM generate_series(0, 99) i;
CREATE FUNCTION lose(kind text, call text, records int) RETURNS text LANGUAGE plpgsql AS $$
DECLARE hint text;
	truth text;
	source text := CASE WHEN kind = 'hop' THEN 'numbers, ' || call || ' AS w' ELSE 'numbers' END;
	key text := CASE WHEN kind = 'hop' THEN 'w' ELSE call END;
BEGIN
	-- without a loss,
	PERFORM hybridiot.create_pipeline('again', format('INSERT INTO again SELECT %L::text, %s, count(*), sum(n) FROM %s GROUP BY 2', kind, key, source), lateness => '3 s', enabled => false);
	PERFORM window_state.run('again'), hybridiot.run_pipeline('again', wall_clock => '2024-01-01 02:00');
	truth := (SELECT string_agg(a::text, E'\n' ORDER BY a) FROM again a);
	-- and with one
	TRUNCATE again;
	PERFORM hybridiot.seek_pipeline('again', 'earliest');
	PERFORM window_state.run('again', records);
	UPDATE hybridiot.window_layout SET layout = 'PostgreSQL 7, state of ages past';
	hint := window_state.tell('SELECT window_state.run(''again'')');
	EXECUTE 'SELECT ' || substring(hint FROM 'hybridiot.seek_pipeline\([^)]*\)');
	IF hint ~ 'delete their rows' THEN
		DELETE FROM again a WHERE lower(a.during) >= (substring(hint FROM ', ''([^'']*)''\)'))::timestamptz;
	END IF;
	PERFORM window_state.run('again'), hybridiot.run_pipeline('again', wall_clock => '2024-01-01 02:00');
	hint := hint || ' ' || (SELECT count(*) FROM hybridiot.dead_letter) || CASE WHEN truth = (SELECT string_agg(a::text, E'\n' ORDER BY a) FROM again a) THEN ' as without it' ELSE ' WRONG' END;
	PERFORM hybridiot.drop_pipeline('again');
	TRUNCATE again;
	RETURN hint;
END $$;
SELECT records, kind, lose(kind, call, records) FROM (VALUES (6), (37), (60), (90)) r (records), (VALUES (1, 'tumble', 'hybridiot.tumble(ts, ''5 s'')'), (2, 'hop', 'hybridiot.hop(ts, ''6 s'', ''2 s'')'),
	(3, 'slide', 'hybridiot.slide(ts, ''4 s'')'), (4, 'session', 'hybridiot.session(ts, ''2 s'')')) v (n, kind, call) ORDER BY records, n;
SELECT forget();

DROP SCHEMA window_state CASCADE;
DROP SERVER window_state CASCADE;
