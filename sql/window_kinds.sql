-- Hopping, sliding and session windows: which records count, when windows close, what is written.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS hybridiot;
CREATE SCHEMA window_kinds;
SET search_path = window_kinds, public;
SET timezone = 'UTC';
SET datestyle = 'ISO';

CREATE SERVER window_kinds FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (transport 'table');
CREATE TABLE log (partition int, "offset" bigint, "timestamp" timestamptz, key bytea, value bytea, headers jsonb);
CREATE FOREIGN TABLE s (device text, ts timestamptz, temp float8)
	SERVER window_kinds OPTIONS (topic 'log', source 'window_kinds.log', format 'json', event_time 'ts');

-- records of a partition, at seconds from 2024-01-01 00:00:00 on
CREATE FUNCTION put(partition int, device text, VARIADIC seconds float8[]) RETURNS void LANGUAGE sql AS $$
	INSERT INTO log SELECT put.partition, (SELECT count(*) FROM log l WHERE l.partition = put.partition) + n - 1, NULL, NULL,
		convert_to(jsonb_build_object('device', device, 'ts', timestamptz '2024-01-01' + s * interval '1 s', 'temp', s)::text, 'UTF8'), NULL
	FROM unnest(seconds) WITH ORDINALITY u (s, n) $$;
CREATE FUNCTION forget() RETURNS void LANGUAGE sql AS $$ TRUNCATE log $$;
CREATE FUNCTION sec(at timestamptz) RETURNS numeric IMMUTABLE STRICT LANGUAGE sql AS $$
	SELECT trim_scale(extract(epoch FROM at - '2024-01-01')) $$;
CREATE FUNCTION sec(during tstzrange) RETURNS text IMMUTABLE STRICT LANGUAGE sql AS $$
	SELECT format('[%s,%s%s', window_kinds.sec(lower(during)), window_kinds.sec(upper(during)), CASE WHEN upper_inc(during) THEN ']' ELSE ')' END) $$;
CREATE FUNCTION run(name name, second float8 DEFAULT 0, max_records bigint DEFAULT NULL) RETURNS bigint LANGUAGE sql AS $$
	SELECT hybridiot.run_pipeline(name, max_records, timestamptz '2024-01-01' + second * interval '1 s') $$;
CREATE VIEW late AS SELECT partition AS part, "offset", sec(during) AS during, sec(watermark) AS watermark, cause, group_keys
	FROM hybridiot.dead_letter WHERE reason = 'late' ORDER BY pipeline, partition, "offset", dead_letter.during;
CREATE VIEW time AS SELECT sec(watermark) AS watermark, sec(closed_before) AS closed_before FROM hybridiot.pipeline ORDER BY name;
CREATE VIEW open AS SELECT sec(during), groups, records FROM hybridiot.open_window ORDER BY during;
-- what is written, and whether it is final
CREATE TABLE t (during tstzrange NOT NULL, device text NOT NULL, n bigint, least float8, most float8, PRIMARY KEY (during, device));
CREATE VIEW rows AS SELECT sec(during) AS during, device, n, least, most, upper(t.during) <= (SELECT closed_before FROM hybridiot.pipeline) AS final
	FROM t ORDER BY t.during, device;

-- Hop: a record counts in every window that holds it; it may enter one and miss another.
SELECT hybridiot.create_pipeline('p', $$
	INSERT INTO t SELECT w, device, count(*), min(temp), max(temp) FROM s, hybridiot.hop(ts, '10 s', '5 s') AS w GROUP BY w, device $$, enabled => false);
SELECT put(0, 'a', 1, 7, 12), put(0, 'b', 9);
SELECT run('p');
SELECT * FROM rows;
SELECT * FROM open;
SELECT put(0, 'a', 6, 3, 40);
SELECT run('p');
SELECT * FROM rows;
SELECT * FROM late;
SELECT * FROM time;
-- the statement over the stream by hand says the same, but for what was late
SELECT sec(w), device, count(*) FROM s, hybridiot.hop(ts, '10 s', '5 s') AS w WHERE upper(w) <= '2024-01-01 00:00:40' GROUP BY w, device ORDER BY w, device;
SELECT hybridiot.drop_pipeline('p'), forget();
TRUNCATE t;

-- The same as a join, with the window in expressions and in HAVING.
CREATE TABLE place (device text PRIMARY KEY, site text);
INSERT INTO place VALUES ('a', 'x'), ('b', 'y');
CREATE TABLE sites (from_second numeric, site text, n bigint);
SELECT hybridiot.create_pipeline('p', $$
	INSERT INTO sites SELECT sec(lower(w)), site, count(*) FROM s JOIN place USING (device) CROSS JOIN LATERAL hybridiot.hop(ts, '10 s', '5 s') AS w
	WHERE temp > 1 GROUP BY site, w HAVING lower(w) >= '2024-01-01' AND count(*) FILTER (WHERE temp > 2) > 0 $$, enabled => false);
SELECT put(0, 'a', 1, 2, 3), put(0, 'b', 9, 40), put(0, 'c', 41);
SELECT run('p');
SELECT * FROM sites ORDER BY 1, 2;
SELECT hybridiot.drop_pipeline('p'), forget();

-- Session: two merge iff their distance is no more than the gap, also when a late record connects them.
SELECT hybridiot.create_pipeline('p', $$
	INSERT INTO t SELECT hybridiot.session(ts, '5 s'), device, count(*), min(temp), max(temp) FROM s GROUP BY 1, 2 $$, lateness => '10 s', enabled => false);
SELECT put(0, 'a', 0, 3, 8, 13.000001, 20), put(0, 'b', 10);
SELECT run('p');
SELECT * FROM open;
SELECT put(0, 'a', 13), put(0, 'b', 9, 12);
SELECT run('p');
SELECT * FROM open;
SELECT * FROM rows;
-- the end is included: the session that ends at 20 counts up to stream time - lateness = 25, and is closed behind it
SELECT put(0, 'c', 35), put(0, 'a', 20), put(0, 'c', 35.000001), put(0, 'a', 21), put(0, 'b', 2);
SELECT run('p');
SELECT * FROM rows;
SELECT * FROM late;
SELECT * FROM open;
SELECT * FROM time;
SELECT hybridiot.drop_pipeline('p'), forget();
TRUNCATE t;

-- The merged session is judged: a record that is late alone counts if it touches one that is not over.
SELECT hybridiot.create_pipeline('p', $$
	INSERT INTO t SELECT hybridiot.session(ts, '5 s'), device, count(*), min(temp), max(temp) FROM s GROUP BY 1, 2 $$, enabled => false);
SELECT put(0, 'a', 10, 14), put(0, 'b', 16), put(0, 'a', 9), put(0, 'b', 9, 40);
SELECT run('p');
SELECT * FROM rows;
SELECT * FROM late;
SELECT hybridiot.drop_pipeline('p'), forget();
TRUNCATE t;

-- Rows are judged in the order of their records, whatever order a join returns them in; a record that several keys meet may be late for one.
CREATE TABLE member (device text, team text);
INSERT INTO member SELECT n::text, n::text FROM generate_series(1, 3000) n;
INSERT INTO member VALUES ('z', 'x'), ('b', 'y'), ('a', 'x'), ('a', 'z');
ANALYZE member;
SET enable_nestloop = off;
SET enable_hashjoin = off;
SELECT hybridiot.create_pipeline('p', $$
	INSERT INTO t SELECT hybridiot.session(ts, '5 s'), team, count(*), min(temp), max(temp) FROM s JOIN member USING (device) GROUP BY 1, 2 $$, enabled => false);
SELECT put(0, 'z', 10, 14), put(0, 'b', 16), put(0, 'a', 9), put(0, 'd', 40);
SELECT run('p');
RESET enable_nestloop;
RESET enable_hashjoin;
SELECT * FROM rows;
SELECT * FROM late;
SELECT hybridiot.drop_pipeline('p'), forget();
TRUNCATE t;

-- The newest session of each device: rows that hit each other are written one after the other.
CREATE TABLE newest (device text PRIMARY KEY, during tstzrange, n bigint);
SELECT hybridiot.create_pipeline('p', $$
	INSERT INTO newest SELECT device, hybridiot.session(ts, '1 s'), count(*) FROM s GROUP BY 1, 2
	ON CONFLICT (device) DO UPDATE SET during = excluded.during, n = newest.n + excluded.n $$, enabled => false);
SELECT put(0, 'b', 0), put(0, 'a', 0, 10, 20, 30), put(0, 'c', 31, 100);
SELECT run('p');
SELECT device, sec(during), n FROM newest ORDER BY 1;
SELECT hybridiot.drop_pipeline('p'), forget();

-- A row that fails keeps its window, its end included.
SELECT hybridiot.create_pipeline('p', $$
	INSERT INTO t SELECT hybridiot.session(ts, '1 s'), NULLIF(device, 'a'), count(*), min(temp), max(temp) FROM s GROUP BY 1, device $$, enabled => false);
SELECT put(0, 'a', 0), put(0, 'b', 0, 100);
SELECT run('p');
SELECT * FROM rows;
SELECT sec(during), reason, group_keys, sqlstate FROM hybridiot.dead_letter;
SELECT hybridiot.drop_pipeline('p'), forget();
TRUNCATE t;

-- A key in several partitions: what is over for one merges no more with its records; the dead letter says why.
SELECT hybridiot.create_pipeline('p', $$
	INSERT INTO t SELECT hybridiot.session(ts, '5 s'), device, count(*), min(temp), max(temp) FROM s GROUP BY 1, 2 $$, enabled => false);
SELECT put(0, 'a', 1, 2), put(1, 'a', 3, 30), put(0, 'a', 8);
SELECT run('p');
SELECT put(1, 'a', 4);
SELECT run('p');
SELECT * FROM open;
SELECT * FROM late;
SELECT hybridiot.drop_pipeline('p'), forget();

-- Emit changes: what was written of a session under other bounds goes.
SELECT hybridiot.create_pipeline('p', $$
	INSERT INTO t SELECT hybridiot.session(ts, '5 s'), device, count(*), min(temp), max(temp) FROM s GROUP BY 1, 2 HAVING count(*) > 1
	ON CONFLICT (during, device) DO UPDATE SET n = excluded.n, least = excluded.least, most = excluded.most $$,
	emit => 'changes', lateness => '1 min', enabled => false);
SELECT put(0, 'a', 0, 1, 10, 11), put(0, 'b', 3);
SELECT run('p');
SELECT * FROM rows;
SELECT put(0, 'a', 6), put(0, 'b', 5);
SELECT run('p');
SELECT * FROM rows;
SELECT put(0, 'a', -4);
SELECT run('p');
SELECT * FROM rows;
SELECT put(0, 'a', 100, 101);
SELECT run('p');
SELECT * FROM rows;
SELECT * FROM hybridiot.window_group WHERE closed;
SELECT count(*) FROM hybridiot.window_group;
SELECT hybridiot.drop_pipeline('p'), forget();
TRUNCATE t;

-- Slide: windows end at a record or begin just behind one, both ends included.
SELECT hybridiot.create_pipeline('p', $$
	INSERT INTO t SELECT hybridiot.slide(ts, '10 s'), device, count(*), min(temp), max(temp) FROM s GROUP BY 1, 2 $$, enabled => false);
SELECT put(0, 'a', 0, 4, 10), put(0, 'b', 9), put(0, 'a', 14);
SELECT run('p');
SELECT * FROM rows;
SELECT * FROM open;
SELECT * FROM time;
-- one that is late for some windows and not for others
SELECT put(0, 'a', 8, 3), put(0, 'b', 100);
SELECT run('p');
SELECT * FROM rows;
SELECT * FROM late;
SELECT * FROM open;
SELECT count(*) FROM hybridiot.window_group;
SELECT hybridiot.drop_pipeline('p'), forget();
TRUNCATE t;

-- From a start in event time on: windows that begin before it are neither written nor missed.
SELECT put(0, 'a', 15, 12, 24, 13, 60);
UPDATE log SET "timestamp" = (convert_from(value, 'UTF8')::jsonb ->> 'ts')::timestamptz;
SELECT hybridiot.create_pipeline('p', $$
	INSERT INTO t SELECT hybridiot.slide(ts, '10 s'), device, count(*), min(temp), max(temp) FROM s GROUP BY 1, 2 $$,
	start_at => '2024-01-01 00:00:10+00', enabled => false);
SELECT run('p');
SELECT * FROM rows;
SELECT * FROM late;
SELECT hybridiot.drop_pipeline('p'), forget();
TRUNCATE t;

-- A jump closes all in the order in which they are over: a late record counts behind an earlier one, and a window that both ends at
-- one record and begins behind another is written once.
SELECT hybridiot.create_pipeline('p', $$
	INSERT INTO t SELECT hybridiot.slide(ts, '5 s'), device, count(*), min(temp), max(temp) FROM s GROUP BY 1, 2 $$, enabled => false);
SELECT put(0, 'a', 130, 131.999999, 130.000001, 250), put(1, 'b', 20, 25.000001, 26, 250);
SELECT run('p');
SELECT * FROM rows;
SELECT * FROM time;
SELECT hybridiot.drop_pipeline('p'), forget();
TRUNCATE t;

-- Silence closes what is open and no more, whatever the kind.
SELECT hybridiot.create_pipeline(k, format($$
	INSERT INTO t SELECT hybridiot.%1$s(ts, '10 s'), '%1$s', count(*), min(temp), max(temp) FROM s GROUP BY 1 $$, k),
	lateness => '5 s', idle_timeout => '30 s', enabled => false) FROM unnest('{slide,session}'::text[]) k;
SELECT put(0, 'a', 0, 1);
SELECT run(k, 1), run(k, 47) FROM unnest('{slide,session}'::text[]) k;
SELECT sec(during), device, n FROM t ORDER BY during, device;
SELECT name, sec(watermark), sec(closed_before) FROM hybridiot.pipeline ORDER BY name;
SELECT run(k, 20000) FROM unnest('{slide,session}'::text[]) k;
SELECT sec(during), device, n FROM t ORDER BY during, device;
SELECT name, sec(watermark), sec(closed_before) FROM hybridiot.pipeline ORDER BY name;
-- the gateway comes back: only what lies behind what was closed is late
SELECT put(0, 'a', 12.5, 5, 30);
SELECT run(k, 20001) FROM unnest('{slide,session}'::text[]) k;
SELECT pipeline, "offset", sec(during), cause FROM hybridiot.dead_letter ORDER BY 1, 2;
SELECT hybridiot.drop_pipeline(name) FROM hybridiot.pipeline ORDER BY name;
SELECT forget();
TRUNCATE t;

-- Random streams against plain SQL: any batch size, any place of a checkpoint, both ways to emit. One partition, no late records.
CREATE TABLE reading (device text, ts timestamptz);
CREATE FUNCTION slides(size interval) RETURNS TABLE (during tstzrange, device text, n bigint) LANGUAGE sql AS $$
	SELECT w.during, w.device, count(*) FROM (
		SELECT tstzrange(ts - size, ts, '[]') AS during, device FROM reading
		UNION SELECT tstzrange(ts + '1 microsecond', ts + '1 microsecond' + size, '[]'), device FROM reading) w
	JOIN reading r ON r.device = w.device AND r.ts <@ w.during GROUP BY 1, 2 $$;
CREATE FUNCTION sessions(gap interval) RETURNS TABLE (during tstzrange, device text, n bigint) LANGUAGE sql AS $$
	SELECT tstzrange(min(ts), max(ts), '[]'), device, count(*) FROM (
		SELECT device, ts, count(*) FILTER (WHERE opens) OVER (PARTITION BY device ORDER BY ts) AS s FROM (
			SELECT device, ts, COALESCE(ts - lag(ts) OVER (PARTITION BY device ORDER BY ts) > gap, true) AS opens FROM reading) o) n
	GROUP BY device, s $$;
CREATE FUNCTION hops(size interval) RETURNS TABLE (during tstzrange, device text, n bigint) LANGUAGE sql AS $$
	SELECT w, device, count(*) FROM reading, hybridiot.hop(ts, size, size / 3) w GROUP BY 1, 2 $$;
CREATE FUNCTION compare(kind text, emit text, seed float8) RETURNS TABLE (difference text, during text, device text, n bigint) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
	target text := format('t_%s_%s', kind, emit);
	size interval := CASE kind WHEN 'session' THEN '2 s' ELSE '6 s' END;
BEGIN
	PERFORM setseed(seed);
	TRUNCATE log, reading;
	INSERT INTO reading SELECT chr(97 + (random() * 3)::int), timestamptz '2024-01-01' + (n / 3 + (random() * 20)::int) * interval '1 s'
		FROM generate_series(1, 400) n;
	INSERT INTO log SELECT 0, row_number() OVER () - 1, NULL, NULL, convert_to(to_jsonb(r)::text, 'UTF8'), NULL FROM reading r;
	EXECUTE format('CREATE TABLE %I (during tstzrange NOT NULL, device text NOT NULL, n bigint, PRIMARY KEY (during, device))', target);
	PERFORM hybridiot.create_pipeline(target, format('INSERT INTO %I SELECT %s, device, count(*) FROM s%s GROUP BY 1, 2 %s', target,
		CASE kind WHEN 'hop' THEN 'w' ELSE format('hybridiot.%s(ts, %L)', kind, size) END,
		CASE kind WHEN 'hop' THEN ', hybridiot.hop(ts, ''6 s'', ''2 s'') w' ELSE '' END,
		CASE emit WHEN 'changes' THEN 'ON CONFLICT (during, device) DO UPDATE SET n = excluded.n' ELSE '' END),
		emit => emit, lateness => '20 s', batch_rows => 1 + (random() * 30)::int, enabled => false);
	FOR i IN 1 .. 40 LOOP
		PERFORM hybridiot.run_pipeline(target, (random() * 20)::int);
	END LOOP;
	PERFORM hybridiot.run_pipeline(target);
	RETURN QUERY EXECUTE format($q$
		WITH closed AS (SELECT closed_before FROM hybridiot.pipeline WHERE name = %1$L),
			found AS (SELECT * FROM %1$I WHERE upper(during) <= (SELECT closed_before FROM closed)),
			should AS (SELECT * FROM %2$ss(%4$L) WHERE upper(during) <= (SELECT closed_before FROM closed))
		(SELECT 'missing', sec(x.during), x.device, x.n FROM (TABLE should EXCEPT ALL TABLE found) x)
		UNION ALL (SELECT 'unexpected', sec(x.during), x.device, x.n FROM (TABLE found EXCEPT ALL TABLE should) x)
		UNION ALL SELECT 'open', NULL, NULL, NULL WHERE (SELECT count(*) FROM found) < 8
		UNION ALL (SELECT 'not shown', sec(o.during), NULL, o.groups FROM hybridiot.open_window o WHERE pipeline = %1$L
			AND %3$L = 'changes' AND o.groups <> (SELECT count(*) FROM %1$I r WHERE r.during = o.during))
		ORDER BY 1, 2, 3$q$, target, kind, emit, size);
	PERFORM hybridiot.drop_pipeline(target);
	EXECUTE format('DROP TABLE %I', target);
END $$;
SELECT kind, emit, seed, d.* FROM unnest('{hop,slide,session}'::text[]) kind, unnest('{final,changes}'::text[]) emit,
	generate_series(0.1, 0.9, 0.2) seed, compare(kind, emit, seed) d;

-- What these windows cannot stand in.
CREATE FUNCTION try(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	message text;
	hint text;
BEGIN
	PERFORM hybridiot.create_pipeline('refused', statement, enabled => false);
	PERFORM hybridiot.drop_pipeline('refused');
	RETURN 'accepted';
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, hint = PG_EXCEPTION_HINT;
	RETURN format(E'%s: %s\nHINT: %s', SQLSTATE, message, hint);
END $$;
\pset tuples_only on
\pset format unaligned
SELECT try($$INSERT INTO t SELECT w, device, count(*) FROM s, hybridiot.hop(ts, '10 s', '11 s') w GROUP BY 1, 2$$);
SELECT try($$INSERT INTO t SELECT w, device, count(*) FROM s, hybridiot.hop(ts, '1 day', '1 s') w GROUP BY 1, 2$$);
SELECT try($$INSERT INTO t SELECT w, device, count(*) FROM s, hybridiot.hop(ts + '1 s', '10 s', '5 s') w GROUP BY 1, 2$$);
SELECT try($$INSERT INTO t SELECT w, device, count(*) FROM s, hybridiot.hop(ts, '10 s', '5 s') w WHERE lower(w) > '2024-01-01' GROUP BY 1, 2$$);
SELECT try($$INSERT INTO t SELECT w, device, count(w) FROM s, hybridiot.hop(ts, '10 s', '5 s') w GROUP BY 1, 2$$);
SELECT try($$INSERT INTO t SELECT w, device, count(*) FROM s CROSS JOIN hybridiot.hop(ts, '10 s', '5 s') w JOIN place USING (device) GROUP BY 1, 2$$);
SELECT try($$INSERT INTO t SELECT w, device, count(*) FROM s, hybridiot.hop(ts, '10 s', '5 s') WITH ORDINALITY w (w, n) GROUP BY 1, 2$$);
SELECT try($$INSERT INTO t SELECT v, device, count(*) FROM s, hybridiot.hop(ts, '10 s', '5 s') v, hybridiot.hop(ts, '20 s', '5 s') w GROUP BY 1, 2$$);
SELECT try($$INSERT INTO t SELECT hybridiot.tumble(ts, '10 s'), device, count(*) FROM s, hybridiot.hop(ts, '20 s', '5 s') w GROUP BY 1, 2$$);
SELECT try($$INSERT INTO t SELECT hybridiot.session(ts, '10 s'), device, count(*) FROM s WHERE lower(hybridiot.session(ts, '10 s')) > '2024-01-01' GROUP BY 1, 2$$);
SELECT try($$INSERT INTO t SELECT hybridiot.session(ts, '10 s'), device, count(hybridiot.session(ts, '10 s')) FROM s GROUP BY 1, 2$$);
SELECT try($$INSERT INTO t SELECT hybridiot.session(ts, '20 s'), device, count(*) FROM s GROUP BY hybridiot.session(ts, '10 s'), 2$$);
SELECT try($$INSERT INTO t SELECT hybridiot.slide(ts, '10 s'), upper(hybridiot.slide(ts, '10 s'))::text, count(*) FROM s GROUP BY hybridiot.slide(ts, '10 s')$$);
SELECT try($$INSERT INTO t SELECT hybridiot.session(ts, '1 month'), device, count(*) FROM s GROUP BY 1, 2$$);
SELECT try($$INSERT INTO t SELECT hybridiot.session(ts, '2000000 days'), device, count(*) FROM s GROUP BY 1, 2$$);
SELECT try($$INSERT INTO t SELECT hybridiot.session(ts, '0'), device, count(*) FROM s GROUP BY 1, 2$$);
SELECT try($$INSERT INTO t SELECT hybridiot.session(gap => '10 s', ts => ts), device, count(*) FROM s GROUP BY 1, 2$$);
SELECT hybridiot.session(now(), '10 s');
SELECT hybridiot.slide(now(), '10 s');
\pset tuples_only off
\pset format aligned

DROP SCHEMA window_kinds CASCADE;
