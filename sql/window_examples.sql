-- The examples of docs/explanation/windows.md and docs/howto/windows.md. test/check/examples compares them with the pages;
-- docs/explanation/figures.py draws from them.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS hybridiot;
SET timezone = 'UTC';
SET datestyle = 'ISO';
SET intervalstyle = 'postgres';

CREATE SCHEMA examples;
SET search_path = examples, public;
CREATE SERVER examples FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (transport 'table');
CREATE TABLE log (partition int, "offset" bigint, "timestamp" timestamptz, key bytea, value bytea, headers jsonb);
CREATE FOREIGN TABLE telemetry (
    device text, ts timestamptz, temp float8,
    part int OPTIONS (metadata 'partition'), pos bigint OPTIONS (metadata 'offset')
) SERVER examples OPTIONS (topic 'log', source 'examples.log', event_time 'ts');

-- records of a device, at seconds of 2026, which are their temperatures, too
CREATE FUNCTION put(part int, device text, VARIADIC seconds float8[]) RETURNS void LANGUAGE sql AS $$
  INSERT INTO log SELECT part, (SELECT count(*) FROM log WHERE partition = part) + n - 1, NULL, NULL,
    convert_to(jsonb_build_object('device', device, 'ts', timestamptz '2026-01-01' + s * interval '1 s', 'temp', s)::text, 'UTF8'), NULL
  FROM unnest(seconds) WITH ORDINALITY u (s, n) $$;
-- the pipeline takes what has come, at this second of the clock
CREATE FUNCTION run(pipeline name, clock float8 DEFAULT 0) RETURNS bigint LANGUAGE sql AS $$
  SELECT hybridiot.run_pipeline(pipeline, wall_clock => timestamptz '2026-01-01' + clock * interval '1 s') $$;
-- times and windows as seconds
CREATE FUNCTION sec(at timestamptz) RETURNS numeric LANGUAGE sql AS $$
  SELECT trim_scale(extract(epoch FROM at - '2026-01-01')) $$;
CREATE FUNCTION sec(during tstzrange) RETURNS text LANGUAGE sql AS $$
  SELECT format('[%s, %s%s', sec(lower(during)), sec(upper(during)), CASE WHEN upper_inc(during) THEN ']' ELSE ')' END) $$;

-- the four kinds
CREATE TABLE result (kind text, during tstzrange NOT NULL, device text NOT NULL, readings bigint);
SELECT hybridiot.create_pipeline('tumbling', $$
  INSERT INTO result SELECT 'tumble', hybridiot.tumble(ts, '5 s'), device, count(*) FROM telemetry GROUP BY 2, 3 $$, enabled => false);
SELECT hybridiot.create_pipeline('hopping', $$
  INSERT INTO result SELECT 'hop', w, device, count(*) FROM telemetry, hybridiot.hop(ts, '10 s', '5 s') AS w GROUP BY 2, 3 $$, enabled => false);
SELECT hybridiot.create_pipeline('sliding', $$
  INSERT INTO result SELECT 'slide', hybridiot.slide(ts, '5 s'), device, count(*) FROM telemetry GROUP BY 2, 3 $$, enabled => false);
SELECT hybridiot.create_pipeline('sessions', $$
  INSERT INTO result SELECT 'session', hybridiot.session(ts, '3 s'), device, count(*) FROM telemetry GROUP BY 2, 3 $$, enabled => false);

SELECT put(0, 'press', 1, 3, 4, 9, 11, 12, 20), put(0, 'other', 60);
SELECT run('tumbling'), run('hopping'), run('sliding'), run('sessions');
SELECT kind, sec(during), readings FROM result WHERE device = 'press'
ORDER BY array_position('{tumble,hop,slide,session}', kind), during;

SELECT hybridiot.drop_pipeline(name) FROM hybridiot.pipeline;
TRUNCATE log;

-- stream time, lateness, watermark
CREATE TABLE five_seconds (during tstzrange, readings bigint, least float8, most float8);
SELECT hybridiot.create_pipeline('time', $$
  INSERT INTO five_seconds SELECT hybridiot.tumble(ts, '5 s'), count(*), min(temp), max(temp) FROM telemetry GROUP BY 1 $$,
  lateness => '2 s', enabled => false);

-- one record comes: what becomes of it, and where time stands then
CREATE FUNCTION arrive(pipeline name, part int, at float8, OUT stream_time numeric, OUT late text, OUT watermark numeric, OUT closes text)
LANGUAGE plpgsql AS $$
DECLARE
  letters bigint := (SELECT max(id) FROM hybridiot.dead_letter);
  before timestamptz := (SELECT closed_before FROM hybridiot.pipeline);
BEGIN
  PERFORM put(part, 'press', at);
  PERFORM run(pipeline);
  SELECT sec(p.stream_time) INTO stream_time FROM hybridiot.position p WHERE partition = part;
  SELECT sec(during) INTO late FROM hybridiot.dead_letter WHERE id > coalesce(letters, 0);
  SELECT sec(p.watermark) INTO watermark FROM hybridiot.pipeline p;
  SELECT string_agg(format('%s: %s', sec(during), readings), ', ' ORDER BY during) INTO closes
  FROM five_seconds WHERE upper(during) > coalesce(before, '-infinity');
END $$;

SELECT n, part, at, stream_time, stream_time - 2 AS t, late, watermark, watermark - 2 AS w, closes
FROM (VALUES (1, 0, 1), (2, 1, 2), (3, 0, 6), (4, 1, 4), (5, 0, 3), (6, 0, 8), (7, 0, 4), (8, 1, 3), (9, 1, 7),
      (10, 1, 19), (11, 0, 18), (12, 1, 16)) AS arrival (n, part, at), arrive('time', part, at);
SELECT sec(during), readings, least, most, upper(during) <= closed_before AS final
FROM five_seconds, hybridiot.pipeline ORDER BY during;
SELECT partition, "offset", convert_from(value, 'UTF8')::json->>'temp' AS at, sec(during) AS during, sec(d.watermark) AS watermark, message
FROM hybridiot.dead_letter d WHERE reason = 'late';
SELECT sec(during), groups, records FROM hybridiot.open_window;
SELECT hybridiot.drop_pipeline('time');
TRUNCATE log;

-- hop: it may enter one and miss another
TRUNCATE result;
SELECT hybridiot.create_pipeline('hopping', $$
  INSERT INTO result SELECT 'hop', w, device, count(*) FROM telemetry, hybridiot.hop(ts, '10 s', '5 s') AS w GROUP BY 2, 3 $$, enabled => false);
SELECT put(0, 'press', 1, 7, 12, 6, 40);
SELECT run('hopping');
SELECT sec(during), readings FROM result ORDER BY during;
SELECT "offset", sec(during) AS during FROM hybridiot.dead_letter;
SELECT hybridiot.drop_pipeline('hopping');
TRUNCATE log;

-- session: merging, with what is written before
CREATE TABLE visit (during tstzrange NOT NULL, device text NOT NULL, readings bigint, PRIMARY KEY (during, device));
SELECT hybridiot.create_pipeline('visits', $$
  INSERT INTO visit SELECT hybridiot.session(ts, '5 s'), device, count(*) FROM telemetry GROUP BY 1, 2
  ON CONFLICT (during, device) DO UPDATE SET readings = excluded.readings $$,
  emit => 'changes', lateness => '10 s', enabled => false);
SELECT put(0, 'press', 0, 3, 12, 17.000001);
SELECT run('visits');
SELECT sec(during), readings FROM visit ORDER BY during;
SELECT put(0, 'press', 8);
SELECT run('visits');
SELECT sec(during), readings FROM visit ORDER BY during;
SELECT put(0, 'other', 30), put(0, 'press', 11, 13);
SELECT run('visits');
SELECT device, sec(during), readings, upper(during) <= closed_before AS final FROM visit, hybridiot.pipeline ORDER BY visit.device DESC, during;
SELECT "offset", sec(during) AS during FROM hybridiot.dead_letter;
SELECT hybridiot.drop_pipeline('visits');
TRUNCATE log;

-- session: a key in several partitions
SELECT hybridiot.create_pipeline('sessions', $$
  INSERT INTO result SELECT 'session', hybridiot.session(ts, '5 s'), device, count(*) FROM telemetry GROUP BY 2, 3 $$, enabled => false);
SELECT put(0, 'press', 1, 2), put(1, 'press', 3, 30, 4);
SELECT run('sessions');
SELECT partition, "offset", sec(during) AS during, cause, message FROM hybridiot.dead_letter;
SELECT hybridiot.drop_pipeline('sessions');
TRUNCATE log;

-- slide
TRUNCATE result;
SELECT hybridiot.create_pipeline('sliding', $$
  INSERT INTO result SELECT 'slide', hybridiot.slide(ts, '10 s'), device, count(*) FROM telemetry GROUP BY 2, 3 $$, enabled => false);
SELECT put(0, 'press', 0, 4, 10, 14, 8), put(0, 'other', 100);
SELECT run('sliding');
SELECT sec(during), readings FROM result ORDER BY during;
SELECT "offset", sec(during) AS during FROM hybridiot.dead_letter;
SELECT hybridiot.drop_pipeline('sliding');
TRUNCATE log;

-- silence, and its bound
TRUNCATE five_seconds;
SELECT hybridiot.create_pipeline('silence', $$
  INSERT INTO five_seconds SELECT hybridiot.tumble(ts, '10 s'), count(*), min(temp), max(temp) FROM telemetry GROUP BY 1 $$,
  lateness => '5 s', idle_timeout => '30 s', enabled => false);
SELECT put(0, 'press', 1, 8, 12);
SELECT run('silence', 12);
SELECT run('silence', 41);
SELECT sec(watermark) AS watermark, sec(closed_before) AS closed_before FROM hybridiot.pipeline;
SELECT run('silence', 42);
SELECT sec(watermark) AS watermark, sec(closed_before) AS closed_before FROM hybridiot.pipeline;
SELECT sec(during), readings FROM five_seconds ORDER BY during;
SELECT run('silence', 21600);
SELECT sec(watermark) AS watermark, sec(closed_before) AS closed_before FROM hybridiot.pipeline;
SELECT put(0, 'press', 21, 25, 34, 47);
SELECT run('silence', 21601);
SELECT sec(during), readings FROM five_seconds ORDER BY during;
SELECT sec(during), records FROM hybridiot.open_window ORDER BY during;
SELECT count(*) AS late FROM hybridiot.dead_letter;
SELECT hybridiot.drop_pipeline('silence');
TRUNCATE log;

-- an idle partition that comes back behind a closed window
TRUNCATE five_seconds;
SELECT hybridiot.create_pipeline('idle', $$
  INSERT INTO five_seconds SELECT hybridiot.tumble(ts, '5 s'), count(*), min(temp), max(temp) FROM telemetry GROUP BY 1 $$,
  idle_timeout => '30 s', enabled => false);
SELECT put(0, 'press', 1, 3), put(1, 'other', 2);
SELECT run('idle', 3);
SELECT put(0, 'press', 34);
SELECT run('idle', 34);
SELECT put(1, 'other', 4);
SELECT run('idle', 35);
SELECT sec(during), readings FROM five_seconds ORDER BY during;
SELECT partition, "offset", sec(during) AS during, sec(watermark) AS watermark, cause, message FROM hybridiot.dead_letter;
SELECT hybridiot.drop_pipeline('idle');
TRUNCATE log;

-- the future
SELECT hybridiot.create_pipeline('future', $$
  INSERT INTO five_seconds SELECT hybridiot.tumble(ts, '5 s'), count(*), min(temp), max(temp) FROM telemetry GROUP BY 1 $$, enabled => false);
SELECT put(0, 'press', 1, 3000, 2);
SELECT run('future', 3);
SELECT reason, message FROM hybridiot.dead_letter;
SELECT sec(during), records FROM hybridiot.open_window;
SELECT hybridiot.drop_pipeline('future');
TRUNCATE log;

-- emit 'changes': rows that go, and which are final
CREATE TABLE sparse (during tstzrange NOT NULL, device text NOT NULL, readings bigint, PRIMARY KEY (during, device));
SELECT hybridiot.create_pipeline('sparse', $$
  INSERT INTO sparse SELECT hybridiot.tumble(ts, '10 s'), device, count(*) FROM telemetry GROUP BY 1, 2 HAVING count(*) < 3
  ON CONFLICT (during, device) DO UPDATE SET readings = excluded.readings $$, emit => 'changes', enabled => false);
SELECT put(0, 'a', 1, 2), put(0, 'b', 3);
SELECT run('sparse');
SELECT sec(during), device, readings FROM sparse;
SELECT put(0, 'a', 4), put(0, 'b', 11);
SELECT run('sparse');
SELECT sec(during), device, readings,
  upper(during) <= (SELECT closed_before FROM hybridiot.pipeline WHERE name = 'sparse') AS final FROM sparse ORDER BY during;
SELECT hybridiot.drop_pipeline('sparse');
TRUNCATE log;

-- is it right?
TRUNCATE five_seconds;
SELECT hybridiot.create_pipeline('right', $$
  INSERT INTO five_seconds SELECT hybridiot.tumble(ts, '5 s'), count(*), min(temp), max(temp) FROM telemetry GROUP BY 1 $$,
  lateness => '2 s', enabled => false);
SELECT put(0, 'press', 1, 4, 6, 3, 7, 2, 31, 28);
SELECT run('right');
SELECT sec(during), readings, least, most FROM (
  SELECT hybridiot.tumble(ts, '5 s') AS during, count(*) AS readings, min(temp) AS least, max(temp) AS most FROM telemetry GROUP BY 1
  EXCEPT TABLE five_seconds) AS missing ORDER BY during;
SELECT sec(during) AS late FROM hybridiot.dead_letter;
SELECT sec(during) AS open, records FROM hybridiot.open_window ORDER BY during;
SELECT hybridiot.drop_pipeline('right');
TRUNCATE log;

-- how-to: which lateness
SELECT put(0, 'a', 1, 2, 4, 3, 6, 9, 8, 5, 12, 14, 7, 15, 17, 18, 16, 20), put(1, 'b', 1, 3, 2, 5, 7, 4, 9, 11, 13, 10, 15, 17, 19, 14, 20);
SELECT percentile_disc('{0.5,0.9,0.99,1}'::float8[]) WITHIN GROUP (ORDER BY behind) AS behind
FROM (SELECT max(ts) OVER (PARTITION BY part ORDER BY pos) - ts AS behind FROM telemetry) r;
SELECT lateness, count(*) AS records, count(*) FILTER (WHERE lateness <= needed) AS late
FROM (SELECT max(ts) OVER (PARTITION BY part ORDER BY pos) - upper(hybridiot.tumble(ts, '5 s')) AS needed FROM telemetry) r,
  unnest('{0 s,3 s,5 s}'::interval[]) AS lateness
GROUP BY 1 ORDER BY 1;
SELECT hybridiot.create_pipeline('time', $$
  INSERT INTO five_seconds SELECT hybridiot.tumble(ts, '5 s'), count(*), min(temp), max(temp) FROM telemetry GROUP BY 1 $$, enabled => false);
SELECT run('time', 20);
SELECT pipeline, cause, count(DISTINCT (topic, partition, "offset")) AS records, max(watermark - upper(during)) AS behind
FROM hybridiot.dead_letter WHERE reason = 'late' GROUP BY 1, 2 ORDER BY 3 DESC;
SELECT hybridiot.alter_pipeline('time', lateness => '10 s');
SELECT hybridiot.drop_pipeline('time');
TRUNCATE log;

-- how-to: a dashboard
CREATE TABLE temp_now (during tstzrange NOT NULL, device text NOT NULL, max_temp float8, readings bigint, PRIMARY KEY (during, device))
  WITH (fillfactor = 70);
SELECT hybridiot.create_pipeline('temp_now', $$
  INSERT INTO temp_now (during, device, max_temp, readings)
  SELECT hybridiot.tumble(ts, '10 s'), device, max(temp), count(*) FROM telemetry GROUP BY 1, 2
  ON CONFLICT (during, device) DO UPDATE SET max_temp = excluded.max_temp, readings = excluded.readings $$,
  emit => 'changes', lateness => '5 s', notify => 'windows', enabled => false);
SELECT put(0, 'press-1', 1, 7), put(0, 'press-2', 3), put(0, 'press-1', 12, 18), put(0, 'press-2', 14), put(0, 'press-1', 22, 26), put(0, 'press-2', 21);
SELECT run('temp_now', 26);

CREATE FUNCTION closed_before(name) RETURNS timestamptz STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp LANGUAGE sql AS $$
  SELECT closed_before FROM hybridiot.pipeline WHERE name = $1 $$;
CREATE ROLE grafana LOGIN;
GRANT USAGE ON SCHEMA examples TO grafana;
GRANT SELECT ON temp_now TO grafana;
SET ROLE grafana;

SELECT lower(during) AS time, device || CASE WHEN upper(during) <= closed_before('temp_now') THEN '' ELSE ' (open)' END AS metric, max_temp AS value
FROM temp_now
WHERE during BETWEEN tstzrange('2026-01-01T00:00:00Z', '2026-01-01T00:00:00Z', '[]') AND tstzrange('2026-01-01T06:00:00Z', NULL)
ORDER BY during, device;
SELECT floor(extract(epoch from time)/60)*60 AS "time", device AS metric, max(max_temp) AS value
FROM (SELECT lower(during) AS time, device, max_temp FROM temp_now WHERE upper(during) <= closed_before('temp_now')) final
WHERE time BETWEEN '2026-01-01T00:00:00Z' AND '2026-01-01T06:00:00Z'
GROUP BY 1, 2 ORDER BY 1, 2;
SELECT during, device, max_temp, readings FROM temp_now WHERE upper(during) > closed_before('temp_now') ORDER BY during, device;

RESET ROLE;
SELECT topic, partition, lag, idle, sec(stream_time) AS stream_time FROM hybridiot.position WHERE pipeline = 'temp_now' ORDER BY stream_time;
-- the primary key serves
SET enable_seqscan = off;
SET enable_bitmapscan = off;
EXPLAIN (costs off) SELECT max_temp FROM temp_now
WHERE during BETWEEN tstzrange('2026-01-01T00:00:00Z', '2026-01-01T00:00:00Z', '[]') AND tstzrange('2026-01-01T06:00:00Z', NULL);
SELECT hybridiot.drop_pipeline('temp_now');
DROP SCHEMA examples CASCADE;
DROP ROLE grafana;
