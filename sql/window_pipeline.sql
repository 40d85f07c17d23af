-- Windowed pipelines: which records count, when windows close, what is written.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS hybridiot;
CREATE SCHEMA window_pipeline;
SET search_path = window_pipeline, public;
SET timezone = 'UTC';
SET datestyle = 'ISO';

CREATE SERVER window_pipeline FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (transport 'table');
CREATE TABLE log (partition int, "offset" bigint, "timestamp" timestamptz, key bytea, value bytea, headers jsonb);
CREATE FOREIGN TABLE s (device text, ts timestamptz, temp float8, part int OPTIONS (metadata 'partition'))
	SERVER window_pipeline OPTIONS (topic 'log', source 'window_pipeline.log', format 'json', event_time 'ts');

-- a record of a partition, at a second of the hour from 2024-01-01 00:00:00 on
CREATE FUNCTION put(partition int, second float8, device text DEFAULT 'a', temp float8 DEFAULT 1) RETURNS void LANGUAGE sql AS $$
	INSERT INTO log SELECT put.partition, (SELECT count(*) FROM log l WHERE l.partition = put.partition), NULL, NULL,
		convert_to(jsonb_build_object('device', device, 'ts', timestamptz '2024-01-01' + second * interval '1 s', 'temp', temp)::text, 'UTF8'), NULL $$;
CREATE FUNCTION forget() RETURNS void LANGUAGE sql AS $$ TRUNCATE log $$;
-- windows as seconds, for people
CREATE FUNCTION sec(during tstzrange) RETURNS text IMMUTABLE STRICT LANGUAGE sql AS $$
	SELECT format('[%s,%s)', extract(epoch FROM lower(during) - '2024-01-01')::int, extract(epoch FROM upper(during) - '2024-01-01')::int) $$;
CREATE FUNCTION sec(at timestamptz) RETURNS numeric IMMUTABLE STRICT LANGUAGE sql AS $$
	SELECT trim_scale(extract(epoch FROM at - '2024-01-01')) $$;
-- run up to the end, the clock standing at a second of that hour
CREATE FUNCTION run(name name, second float8 DEFAULT 0) RETURNS bigint LANGUAGE sql AS $$
	SELECT hybridiot.run_pipeline(name, wall_clock => timestamptz '2024-01-01' + second * interval '1 s') $$;
CREATE VIEW late AS SELECT pipeline, partition AS part, "offset", sec(during) AS during, sec(watermark) AS watermark, cause, group_keys
	FROM hybridiot.dead_letter WHERE reason = 'late' ORDER BY pipeline, partition, "offset";
CREATE VIEW time AS SELECT name, sec(watermark) AS watermark, sec(closed_before) AS closed_before FROM hybridiot.pipeline ORDER BY name;
CREATE VIEW part AS SELECT pipeline, partition AS part, next_offset AS next, sec(stream_time) AS stream_time, idle FROM hybridiot.position ORDER BY 1, 2;

-- A window must never be lost on a jump: the record at 25 closes [10,15), whose row is written.
CREATE TABLE jump (during tstzrange, n bigint);
SELECT hybridiot.create_pipeline('jump', $$ INSERT INTO jump SELECT hybridiot.tumble(ts, '5 s'), count(*) FROM s GROUP BY 1 $$, enabled => false);
SELECT put(0, 10), put(0, 11), put(0, 25);
SELECT run('jump');
SELECT sec(during), n FROM jump;
SELECT sec(during), groups, records FROM hybridiot.open_window WHERE pipeline = 'jump';
SELECT * FROM time;
SELECT hybridiot.drop_pipeline('jump'), forget();

-- The end is excluded; take first, close after: a record in a window's last instant still counts.
CREATE TABLE edge (during tstzrange, n bigint, least float8, most float8);
SELECT hybridiot.create_pipeline('edge', $$ INSERT INTO edge SELECT hybridiot.tumble(ts, '10 s'), count(*), min(temp), max(temp) FROM s GROUP BY 1 $$, enabled => false);
SELECT put(0, 0, temp => 0), put(0, 9.999999, temp => 1);
SELECT run('edge');
SELECT sec(during), n, least, most FROM edge;
SELECT put(0, 10, temp => 2), put(0, 9.999999, temp => 3), put(0, 10, temp => 4);
SELECT run('edge');
SELECT sec(during), n, least, most FROM edge;
SELECT * FROM late;
SELECT hybridiot.drop_pipeline('edge'), forget();

-- Lateness: counts iff end > stream time - lateness; closes when watermark - lateness >= end.
CREATE TABLE lateness (during tstzrange, device text, n bigint, PRIMARY KEY (during, device));
SELECT hybridiot.create_pipeline('lateness', $$ INSERT INTO lateness SELECT hybridiot.tumble(ts, '10 s'), device, count(*) FROM s GROUP BY 1, 2 $$,
	lateness => '5 s', enabled => false);
SELECT put(0, 3), put(0, 14.999999), put(0, 4), put(0, 8, 'b');
SELECT run('lateness');
SELECT sec(during), device, n FROM lateness ORDER BY 1, 2;
SELECT put(0, 15), put(0, 4), put(0, 12), put(0, 4, 'b');
SELECT run('lateness');
SELECT sec(during), device, n FROM lateness ORDER BY 1, 2;
SELECT * FROM late;
SELECT * FROM time;
SELECT hybridiot.drop_pipeline('lateness'), forget();

-- Partitions: each is judged by its own time; the slowest one that is not idle holds the windows open.
CREATE TABLE parts (during tstzrange, n bigint, p int[]);
SELECT hybridiot.create_pipeline('parts', $$ INSERT INTO parts SELECT hybridiot.tumble(ts, '10 s'), count(*), ARRAY[min(part), max(part)] FROM s GROUP BY 1 $$,
	idle_timeout => '30 s', enabled => false);
SELECT put(0, 1), put(1, 2), put(0, 35), put(0, 2);
SELECT run('parts', 100);
SELECT sec(during), n, p FROM parts;
SELECT * FROM part;
SELECT * FROM late;
SELECT * FROM time;
-- partition 1 is behind, not late
SELECT put(1, 3), put(1, 12);
SELECT run('parts', 110);
SELECT sec(during), n, p FROM parts ORDER BY 1;
-- nothing new: partition 0 has been silent for 30 s at 130, partition 1 at 140
SELECT run('parts', 129.999);
SELECT * FROM part;
SELECT run('parts', 130);
SELECT * FROM part;
SELECT sec(during), n, p FROM parts ORDER BY 1;
SELECT put(0, 40);
SELECT run('parts', 139);
SELECT * FROM time;
-- partition 1 is left out: its windows close without it, also [30,40)
SELECT run('parts', 140);
SELECT * FROM part;
SELECT * FROM time;
SELECT sec(during), n, p FROM parts ORDER BY 1;
-- it comes back behind windows closed meanwhile
SELECT put(1, 15), put(1, 45);
SELECT run('parts', 141);
SELECT * FROM late;
SELECT * FROM part;
SELECT hybridiot.drop_pipeline('parts'), forget();

-- Silence closes what is open, and no more: later records of the same time are not late.
CREATE TABLE silence (during tstzrange, n bigint);
SELECT hybridiot.create_pipeline('silence', $$ INSERT INTO silence SELECT hybridiot.tumble(ts, '10 s'), count(*) FROM s GROUP BY 1 $$,
	lateness => '2 s', idle_timeout => '3 s', enabled => false);
SELECT put(0, 5), put(0, 13);
SELECT run('silence', 1000);
SELECT sec(during), n FROM silence;
SELECT run('silence', 1002.999);
SELECT * FROM time;
-- idle at 1003; [10,20) ends 7 s behind the last record, and lateness adds 2 s
SELECT run('silence', 1008.999999);
SELECT sec(during), n FROM silence;
SELECT run('silence', 1009);
SELECT sec(during), n FROM silence;
SELECT * FROM time;
SELECT run('silence', 9999);
SELECT * FROM time;
-- six hours later: a buffer full of old records
SELECT put(0, 20.5), put(0, 21), put(0, 36);
SELECT run('silence', 22600);
SELECT sec(during), n FROM silence;
SELECT * FROM late;
SELECT hybridiot.drop_pipeline('silence'), forget();

-- idle_timeout '0': silence never closes a window; an empty partition holds nothing back
CREATE TABLE never (during tstzrange, n bigint);
SELECT hybridiot.create_pipeline('never', $$ INSERT INTO never SELECT hybridiot.tumble(ts, '10 s'), count(*) FROM s GROUP BY 1 $$,
	idle_timeout => '0', enabled => false);
SELECT put(1, 5), put(1, 12);
SELECT run('never', 100);
SELECT run('never', 1000000);
SELECT sec(during), n FROM never;
SELECT * FROM part;
SELECT hybridiot.drop_pipeline('never'), forget();

-- WHERE, HAVING, FILTER, expressions around aggregates and keys, several uses of one aggregate
CREATE TABLE shape (starts timestamptz, device text, n bigint, hot bigint, mean numeric, label text);
SELECT hybridiot.create_pipeline('shape', $$
	INSERT INTO shape (starts, device, n, hot, mean, label)
	SELECT lower(hybridiot.tumble(ts, '10 s')), upper(device), count(*), count(*) FILTER (WHERE temp > 50),
		round(avg(temp)::numeric, 2), CASE WHEN max(temp) - min(temp) > 10 THEN 'wide' ELSE 'narrow' END
	FROM s WHERE temp IS NOT NULL GROUP BY hybridiot.tumble(ts, '10 s'), upper(device)
	HAVING count(*) > 1 AND max(temp) < 1000 $$, enabled => false);
SELECT put(0, 1, 'a', 40), put(0, 2, 'A', 60), put(0, 3, 'b', 55), put(0, 4, 'c', NULL), put(0, 4, 'c', 1), put(0, 5, 'd', 7), put(0, 6, 'd', 7),
	put(0, 7, 'e', 7), put(0, 7, 'e', 1000), put(0, 10, 'z', 0);
SELECT run('shape');
SELECT sec(starts), device, n, hot, mean, label FROM shape ORDER BY 2;
-- a late record that WHERE leaves out is nothing; time rises with it all the same
SELECT put(0, 30, 'z', NULL), put(0, 11, 'z', NULL), put(0, 12, 'z', 5);
SELECT run('shape');
SELECT * FROM late;
SELECT hybridiot.drop_pipeline('shape'), forget();

-- Joins with tables, keys of several types, null keys; 1.0 and 1.00 are one group
CREATE TABLE device (device text, site numeric, since date);
INSERT INTO device VALUES ('a', 1.0, '2020-01-01'), ('b', 1.00, '2020-01-01'), ('c', NULL, NULL), ('d', 2, '2021-01-01'), ('d', 3, '2022-01-01');
CREATE TABLE joined (during tstzrange, site numeric, since date, n bigint, total float8);
SELECT hybridiot.create_pipeline('joined', $$
	INSERT INTO joined SELECT hybridiot.tumble(s.ts, '10 s'), d.site, d.since, count(*), sum(s.temp)
	FROM s LEFT JOIN device d USING (device) GROUP BY 1, 2, 3 $$, enabled => false);
SELECT put(0, 1, 'a', 1), put(0, 2, 'b', 2), put(0, 3, 'c', 4), put(0, 4, 'nobody', 8), put(0, 5, 'd', 16), put(0, 6, NULL, 32), put(0, 20, 'a', 0), put(0, 3, 'd', 99);
SELECT run('joined');
SELECT sec(during), site, since, n, total FROM joined ORDER BY 2, 3;
-- one dead letter for the record and window, though the join made two rows of it
SELECT part, "offset", during, group_keys - 'site' - 'since' AS other_keys FROM late;
SELECT hybridiot.drop_pipeline('joined'), forget();

-- WITH, sublinks, lateral joins
CREATE TABLE sub (during tstzrange, device text, name text, n bigint);
SELECT hybridiot.create_pipeline('sub', $$
	INSERT INTO sub WITH known AS (SELECT DISTINCT device FROM device)
	SELECT hybridiot.tumble(s.ts, '10 s'), s.device, (SELECT min(x.since)::text FROM device x WHERE x.device = s.device), count(*)
	FROM s CROSS JOIN LATERAL (SELECT s.temp * 2 AS double) AS l
	WHERE l.double > 2 AND s.device IN (SELECT device FROM known) GROUP BY 1, 2 HAVING s.device <> (SELECT max(device) FROM known) $$, enabled => false);
SELECT put(0, 1, 'a', 1), put(0, 2, 'b', 2), put(0, 3, 'b', 3), put(0, 4, 'd', 4), put(0, 5, 'nobody', 8), put(0, 20, 'a', 0);
SELECT run('sub');
SELECT sec(during), device, name, n FROM sub ORDER BY 2;
SELECT hybridiot.drop_pipeline('sub'), forget();

-- Before 1970, with an origin; the log's own timestamp as event time
CREATE FOREIGN TABLE plain (device text, at timestamptz OPTIONS (metadata 'timestamp'))
	SERVER window_pipeline OPTIONS (topic 'log', source 'window_pipeline.log', format 'json');
CREATE TABLE old (during tstzrange, n bigint);
SELECT hybridiot.create_pipeline('old', $$ INSERT INTO old SELECT hybridiot.tumble(at, '7 s', '1969-12-31 23:59:58'), count(*) FROM plain GROUP BY 1 $$, enabled => false);
INSERT INTO log SELECT 0, i, timestamptz '1969-12-31 23:59:50' + i * interval '1 s', NULL, '{}', NULL FROM generate_series(0, 20) AS i;
SELECT run('old');
SELECT * FROM old ORDER BY during;
SELECT hybridiot.drop_pipeline('old'), forget();

-- Undecodable and future records are dead letters and move no time
CREATE TABLE odd (during tstzrange, n bigint);
SELECT hybridiot.create_pipeline('odd', $$ INSERT INTO odd SELECT hybridiot.tumble(ts, '10 s'), count(*) FROM s GROUP BY 1 $$, enabled => false);
SELECT put(0, 1), put(0, 5000), put(0, 2);
INSERT INTO log VALUES (0, 3, NULL, NULL, '{"ts": "2024-01-01 00:01:00Z", "temp": "warm"}', NULL), (0, 4, NULL, NULL, '{"temp": 1}', NULL);
SELECT put(0, 3), put(0, 10);
SELECT run('odd', 0);
SELECT sec(during), n FROM odd;
SELECT "offset", reason, during FROM hybridiot.dead_letter ORDER BY 1;
SELECT * FROM part;
SELECT hybridiot.drop_pipeline('odd'), forget();

-- States go through the table between two runs: by value, by reference, internal, null, never touched
CREATE TABLE kept (during tstzrange, device text, n bigint, s float8, a numeric, v text, x text, b bool, arr float8, none float8);
SELECT hybridiot.create_pipeline('kept', $$
	INSERT INTO kept SELECT hybridiot.tumble(ts, '10 s'), device, count(temp), sum(temp), avg(temp::int), round(variance(temp::numeric), 3)::text, max(device || temp),
		bool_and(temp > 1), stddev(temp), max(temp) FILTER (WHERE temp > 100) FROM s GROUP BY 1, 2 $$, enabled => false);
SELECT put(0, 1, 'a', 1), put(0, 2, 'b', NULL), put(0, 3, NULL, 3);
SELECT run('kept');
SELECT put(0, 4, 'a', 2), put(0, 5, 'b', 5), put(0, 6, NULL, NULL);
SELECT run('kept');
SELECT put(0, 7, 'a', 4), put(0, 8, 'c', NULL), put(0, 10);
SELECT run('kept');
SELECT sec(during), device, n, s, round(a, 4) AS a, v, x, b, round(arr::numeric, 4) AS arr, none FROM kept
EXCEPT ALL
SELECT sec(hybridiot.tumble(ts, '10 s')), device, count(temp), sum(temp), round(avg(temp::int), 4), round(variance(temp::numeric), 3)::text, max(device || temp),
	bool_and(temp > 1), round(stddev(temp)::numeric, 4), max(temp) FILTER (WHERE temp > 100) FROM s GROUP BY hybridiot.tumble(ts, '10 s'), device;
SELECT device, n, s, v, x, b, none FROM kept ORDER BY 1;
SELECT count(*) FROM hybridiot.window_group;
SELECT hybridiot.drop_pipeline('kept'), forget();
SELECT count(*) FROM hybridiot.window_group;

DROP SCHEMA window_pipeline CASCADE;
DROP SERVER window_pipeline CASCADE;
