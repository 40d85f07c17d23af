-- Joins with tables inside windows: what a record meets when it is taken is what counts.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS hybridiot;
CREATE EXTENSION IF NOT EXISTS btree_gist;
CREATE SCHEMA window_join;
SET search_path = window_join, public;
SET timezone = 'UTC';
SET datestyle = 'ISO';
\set VERBOSITY terse
\set SHOW_CONTEXT never

CREATE SERVER window_join FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (transport 'table');
CREATE TABLE log (partition int, "offset" bigint, "timestamp" timestamptz, key bytea, value bytea, headers jsonb);
CREATE FOREIGN TABLE telemetry (device text, ts timestamptz, temp float8) SERVER window_join
	OPTIONS (topic 'log', source 'window_join.log', format 'json', event_time 'ts');
CREATE FUNCTION put(second float8, device text, temp float8) RETURNS void LANGUAGE sql AS $$
	INSERT INTO log SELECT 0, (SELECT count(*) FROM log), NULL, NULL,
		convert_to(json_build_object('device', device, 'ts', timestamptz '2024-01-01' + second * interval '1 s', 'temp', temp)::text, 'UTF8'), NULL $$;
CREATE FUNCTION forget() RETURNS void LANGUAGE sql AS $$ TRUNCATE log $$;
CREATE FUNCTION run(name name) RETURNS bigint LANGUAGE sql AS $$ SELECT hybridiot.run_pipeline(name, wall_clock => '2024-01-01 00:20') $$;
CREATE FUNCTION sec(during tstzrange) RETURNS text IMMUTABLE STRICT LANGUAGE sql AS $$
	SELECT format('[%s,%s)', extract(epoch FROM lower(during) - '2024-01-01')::int, extract(epoch FROM upper(during) - '2024-01-01')::int) $$;

-- A table that changes in the middle of a window: records taken before met the old row, those taken behind the new one.
CREATE TABLE device (device text PRIMARY KEY, site int);
INSERT INTO device VALUES ('a', 1), ('b', 1);
CREATE TABLE site_max (during tstzrange, site int, most float8, n bigint);
SELECT hybridiot.create_pipeline('site_max', $$
	INSERT INTO site_max SELECT hybridiot.tumble(t.ts, '10 s'), d.site, max(t.temp), count(*)
	FROM telemetry t JOIN device d USING (device) GROUP BY 1, 2 $$, lateness => '5 s', enabled => false);
SELECT put(1, 'a', 20), put(2, 'b', 30), put(3, 'new', 99), run('site_max');
UPDATE device SET site = 2 WHERE device = 'a';
INSERT INTO device VALUES ('new', 1);
SELECT put(4, 'a', 25), put(5, 'b', 21), put(6, 'new', 50), run('site_max');
DELETE FROM device WHERE device = 'b';
SELECT put(7, 'b', 77), put(15, 'a', 0), run('site_max');
SELECT sec(during), site, most, n FROM site_max ORDER BY 2;
-- A late record meets the table, too: one without a partner is nothing at all.
SELECT put(40, 'a', 0), put(16, 'a', 1), put(16, 'nobody', 1), run('site_max');
SELECT partition, "offset", sec(during), group_keys FROM hybridiot.dead_letter;
-- Read again, all records meet the table as it is now.
TRUNCATE site_max;
SELECT hybridiot.seek_pipeline('site_max', 'earliest');
SELECT run('site_max');
SELECT sec(during), site, most, n FROM site_max ORDER BY 1, 2;
SELECT hybridiot.drop_pipeline('site_max'), forget();

-- A validity range: as of event time, whenever the record comes, and whenever the table changes.
CREATE TABLE calibration (device text, shift float8, valid tstzrange, EXCLUDE USING gist (device WITH =, valid WITH &&));
INSERT INTO calibration VALUES ('a', 100, '[2024-01-01 00:00:00,2024-01-01 00:00:05)'), ('a', 200, '[2024-01-01 00:00:05,)'), ('b', 1000, '(,)');
CREATE TABLE calibrated (during tstzrange, device text, least float8, most float8, n bigint);
CREATE FUNCTION compare() RETURNS SETOF calibrated LANGUAGE sql AS $$
	SELECT * FROM window_join.calibrated EXCEPT ALL
	SELECT hybridiot.tumble(t.ts, '10 s'), t.device, min(t.temp + c.shift), max(t.temp + c.shift), count(*)
	FROM window_join.telemetry t JOIN window_join.calibration c ON c.device = t.device AND c.valid @> t.ts GROUP BY 1, 2 $$;
SELECT hybridiot.create_pipeline('calibrated', $$
	INSERT INTO calibrated SELECT hybridiot.tumble(t.ts, '10 s'), t.device, min(t.temp + c.shift), max(t.temp + c.shift), count(*)
	FROM telemetry t JOIN calibration c ON c.device = t.device AND c.valid @> t.ts GROUP BY 1, 2 $$, lateness => '20 s', enabled => false);
SELECT put(6, 'a', 1), put(4, 'a', 2), put(5, 'a', 3), put(7, 'b', 4), put(12, 'a', 5), run('calibrated');
-- what will hold from 00:00:20 on is known now: records that come later see it, whenever they are from
UPDATE calibration SET valid = '[2024-01-01 00:00:05,2024-01-01 00:00:20)' WHERE shift = 200;
INSERT INTO calibration VALUES ('a', 300, '[2024-01-01 00:00:20,)');
SELECT put(21, 'a', 6), put(8, 'a', 7), put(19, 'a', 8), put(4.9, 'a', 9), put(60, 'b', 10), run('calibrated');
SELECT sec(during), device, least, most, n FROM calibrated ORDER BY 1, 2;
SELECT * FROM compare();
TRUNCATE calibrated;
SELECT hybridiot.seek_pipeline('calibrated', 'earliest');
SELECT run('calibrated');
SELECT count(*) FROM calibrated;
SELECT * FROM compare();
SELECT hybridiot.drop_pipeline('calibrated'), forget();

-- Partitioned history: what was written before, by hand or by another pipeline. A partition attached or detached meanwhile counts from then on.
CREATE TABLE history (device text, at timestamptz, temp float8) PARTITION BY RANGE (at);
CREATE TABLE history_old PARTITION OF history FOR VALUES FROM ('2023-01-01') TO ('2024-01-01');
CREATE TABLE history_new PARTITION OF history FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');
INSERT INTO history SELECT d, timestamptz '2023-12-31 23:59:00' + i * interval '1 s', i FROM generate_series(0, 59) i, (VALUES ('a'), ('b')) v (d);
CREATE TABLE compared (during tstzrange, device text, n bigint, before float8, above bigint);
SELECT hybridiot.create_pipeline('compared', $$
	INSERT INTO compared SELECT hybridiot.tumble(t.ts, '10 s'), t.device, count(*), max(h.mean), count(*) FILTER (WHERE t.temp > h.mean)
	FROM telemetry t CROSS JOIN LATERAL (SELECT avg(x.temp) AS mean FROM history x WHERE x.device = t.device AND x.at >= t.ts - interval '1 min' AND x.at < t.ts) h
	GROUP BY 1, 2 $$, enabled => false);
SELECT put(0, 'a', 29), put(0, 'b', 30), put(1, 'a', 31), run('compared');
INSERT INTO history VALUES ('a', '2024-01-01 00:00:00', 1000);
SELECT put(2, 'a', 31), run('compared');
ALTER TABLE history DETACH PARTITION history_old;
SELECT put(3, 'a', 31), put(3, 'b', 31), put(10, 'c', 0), run('compared');
SELECT sec(during), device, n, before, above FROM compared ORDER BY 2;
SELECT hybridiot.drop_pipeline('compared'), forget();

-- A view, a function in FROM, a VALUES list, a join of joins; outer joins that keep the stream's rows
CREATE TABLE area (site int, area text);
INSERT INTO area VALUES (1, 'north'), (2, 'south'), (2, 'coast');
CREATE VIEW place AS SELECT d.device, d.site, a.area FROM device d JOIN area a USING (site) WHERE a.area <> 'nowhere';
CREATE FUNCTION zones(temp float8) RETURNS TABLE (zone text, weight int) IMMUTABLE LANGUAGE sql AS $$
	SELECT z, w FROM (VALUES ('any', 1), (CASE WHEN temp > 50 THEN 'hot' ELSE 'cold' END, 2)) v (z, w) $$;
CREATE TABLE placed (during tstzrange, area text, zone text, name text, n bigint, weight bigint);
SELECT hybridiot.create_pipeline('placed', $$
	INSERT INTO placed SELECT hybridiot.tumble(t.ts, '10 s'), p.area, z.zone, v.name, count(*), sum(z.weight)
	FROM telemetry t LEFT JOIN place p ON p.device = t.device CROSS JOIN LATERAL zones(t.temp) z
		LEFT JOIN (VALUES (1, 'one'), (2, 'two')) v (site, name) ON v.site = p.site
	GROUP BY 1, 2, 3, 4 $$, enabled => false);
INSERT INTO device VALUES ('b', 1);
SELECT put(1, 'a', 60), put(2, 'b', 40), put(3, 'nobody', 0), run('placed');
-- the view changes its meaning in the middle of the window
CREATE OR REPLACE VIEW place AS SELECT d.device, d.site, 'everywhere' AS area FROM device d;
SELECT put(4, 'a', 60), put(10, 'a', 60), run('placed');
SELECT sec(during), area, zone, name, n, weight FROM placed ORDER BY 2, 3, 4;
SELECT hybridiot.drop_pipeline('placed'), forget();

-- A table that is not there, or may not be read, stops the pipeline where it stood; mended, it goes on and nothing is lost.
CREATE TABLE gone (device text, site int);
INSERT INTO gone VALUES ('a', 1);
SELECT hybridiot.create_pipeline('gone', $$
	INSERT INTO site_max SELECT hybridiot.tumble(t.ts, '10 s'), d.site, max(t.temp), count(*) FROM telemetry t JOIN gone d USING (device) GROUP BY 1, 2 $$, enabled => false);
TRUNCATE site_max;
SELECT put(1, 'a', 1), run('gone');
ALTER TABLE gone RENAME TO away;
SELECT put(2, 'a', 2), put(11, 'a', 0);
\set VERBOSITY sqlstate
SELECT run('gone');
\set VERBOSITY terse
ALTER TABLE away RENAME TO gone;
SELECT run('gone');
SELECT sec(during), site, most, n FROM site_max;
SELECT hybridiot.drop_pipeline('gone'), forget();

DROP SCHEMA window_join CASCADE;
DROP SERVER window_join CASCADE;
