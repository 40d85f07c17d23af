-- Positions set by hand: seek_pipeline, and a new start_at
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS hybridiot;
CREATE SCHEMA seeking;
SET search_path = seeking;
SET timezone = 'UTC';
\set VERBOSITY terse
\set SHOW_CONTEXT never
CREATE TABLE log (partition int, "offset" bigint, "timestamp" timestamptz, key bytea, value bytea, headers jsonb);
-- three partitions, a record a second each, offsets from 100 on: n is the second
INSERT INTO log SELECT p, 100 + i, timestamptz '2026-01-01Z' + i * interval '1 s', NULL,
	convert_to(format('{"n": %s, "ts": "%s"}', i, timestamptz '2026-01-01Z' + i * interval '1 s'), 'UTF8'), NULL
FROM generate_series(0, 2) AS p, generate_series(0, 59) AS i;
CREATE SERVER archive FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (transport 'table');
CREATE FOREIGN TABLE stream (n int, ts timestamptz, part int OPTIONS (metadata 'partition'), pos bigint OPTIONS (metadata 'offset'))
	SERVER archive OPTIONS (topic 't', source 'seeking.log', event_time 'ts');
CREATE TABLE reading (part int, pos bigint, n int);
SELECT hybridiot.create_pipeline('p', 'INSERT INTO reading SELECT part, pos, n FROM stream', enabled => false);

-- before it ever ran, the words become its start
SELECT hybridiot.seek_pipeline('p', '{"0": 158}');
SELECT options ->> 'start_at' AS start_at FROM hybridiot.pipeline;
SELECT hybridiot.run_pipeline('p');
SELECT part, count(*), min(pos), max(pos) FROM reading GROUP BY 1 ORDER BY 1;

-- offsets: partitions that are not named stay
TRUNCATE reading;
SELECT hybridiot.seek_pipeline('p', '{"1": 150, "t/2": 155}');
SELECT partition, next_offset, end_offset FROM hybridiot.position ORDER BY 1;
SELECT hybridiot.run_pipeline('p');
SELECT part, count(*), min(pos), max(pos) FROM reading GROUP BY 1 ORDER BY 1;

-- earliest, latest, a timestamp (of records)
TRUNCATE reading;
SELECT hybridiot.seek_pipeline('p', 'latest');
SELECT count(*) FROM hybridiot.position;
SELECT hybridiot.run_pipeline('p');
SELECT hybridiot.seek_pipeline('p', '2026-01-01 00:00:57Z');
SELECT hybridiot.run_pipeline('p');
SELECT part, min(pos) FROM reading GROUP BY 1 ORDER BY 1;
SELECT hybridiot.seek_pipeline('p', 'earliest');
SELECT hybridiot.run_pipeline('p');

-- in one transaction with other things, and undone with them
TRUNCATE reading;
BEGIN;
SELECT hybridiot.seek_pipeline('p', '{"0": 159}');
SELECT hybridiot.run_pipeline('p');
ROLLBACK;
SELECT count(*) FROM reading;
SELECT partition, next_offset FROM hybridiot.position ORDER BY 1;

-- recorded, with what was there before
SELECT pipeline, sought_by = current_user AS by_me, sought_at <= now() AS then, position, previous FROM hybridiot.seek ORDER BY sought_at;
SELECT hybridiot.alter_pipeline('p', start_at => 'latest');
SELECT position, previous FROM hybridiot.seek ORDER BY sought_at DESC LIMIT 1;

-- mistakes
SELECT hybridiot.run_pipeline('p');
SELECT hybridiot.seek_pipeline('p', NULL);
SELECT hybridiot.seek_pipeline(NULL, 'latest');
SELECT hybridiot.seek_pipeline('nobody', 'latest');
SELECT hybridiot.seek_pipeline('p', 'yesterday noonish');
SELECT hybridiot.seek_pipeline('p', 'infinity');
SELECT hybridiot.seek_pipeline('p', '');
SELECT hybridiot.seek_pipeline('p', '{"7": 1}');
SELECT hybridiot.seek_pipeline('p', '{"u/0": 1}');
SELECT hybridiot.seek_pipeline('p', '{"0": -1}');
SELECT hybridiot.seek_pipeline('p', '{"0": "1"}');
SELECT hybridiot.seek_pipeline('p', '{"": 1}');
SELECT hybridiot.seek_pipeline('p', '{"t/": 1}');
SELECT hybridiot.seek_pipeline('p', '{"99999999999": 1}');
SELECT hybridiot.seek_pipeline('p', '{"0": 1');
SELECT partition, next_offset FROM hybridiot.position ORDER BY 1;
CREATE ROLE seeking_stranger;
SET ROLE seeking_stranger;
SELECT hybridiot.seek_pipeline('p', 'earliest');
SELECT count(*) FROM hybridiot.seek;
RESET ROLE;

-- a failure is cleared
UPDATE hybridiot.pipeline_definition SET failure = 'records are gone';
SELECT hybridiot.seek_pipeline('p', '{"0": 159}');
SELECT state, reason FROM hybridiot.pipeline;
SELECT hybridiot.drop_pipeline('p');
SELECT count(*) FROM hybridiot.seek;

-- windows: a time is event time; what begins before it is neither written nor late, and the first window is whole
CREATE TABLE total (during tstzrange, n bigint, records bigint);
SELECT hybridiot.create_pipeline('w', $$
	INSERT INTO total SELECT hybridiot.tumble(ts, '10 s'), sum(n), count(*) FROM stream GROUP BY 1 $$, lateness => '3 s', enabled => false);
SELECT hybridiot.run_pipeline('w', wall_clock => '2026-01-01 01:00Z');
SELECT hybridiot.run_pipeline('w', wall_clock => '2026-01-01 02:00Z');
SELECT lower(during), n, records FROM total ORDER BY during;
TRUNCATE total;
SELECT hybridiot.seek_pipeline('w', '2026-01-01 00:00:35Z');
SELECT watermark, closed_before FROM hybridiot.pipeline;
SELECT hybridiot.run_pipeline('w', wall_clock => '2026-01-01 01:00Z');
SELECT hybridiot.run_pipeline('w', wall_clock => '2026-01-01 02:00Z');
SELECT lower(during), n, records FROM total ORDER BY during;
SELECT count(*) FROM hybridiot.dead_letter;
-- the middle of open windows: nothing of them is left behind
TRUNCATE total;
SELECT hybridiot.seek_pipeline('w', 'earliest');
SELECT hybridiot.run_pipeline('w', 40, wall_clock => '2026-01-01 00:00:13Z');
SELECT during, groups, records FROM hybridiot.open_window ORDER BY 1;
SELECT hybridiot.seek_pipeline('w', '{"0": 120, "1": 120}');
SELECT hybridiot.seek_pipeline('w', '{"0": 120, "1": 120, "2": 120}');
SELECT count(*) FROM hybridiot.open_window;
SELECT partition, next_offset, stream_time FROM hybridiot.position ORDER BY 1;
SELECT hybridiot.run_pipeline('w', wall_clock => '2026-01-01 01:00Z');
SELECT hybridiot.run_pipeline('w', wall_clock => '2026-01-01 02:00Z');
SELECT lower(during), n, records FROM total ORDER BY during;
SELECT count(*) FROM hybridiot.dead_letter;
-- start_at says the same when it is created
TRUNCATE total;
SELECT hybridiot.drop_pipeline('w');
SELECT hybridiot.create_pipeline('w', $$
	INSERT INTO total SELECT hybridiot.tumble(ts, '10 s'), sum(n), count(*) FROM stream GROUP BY 1 $$, start_at => '2026-01-01 00:00:40Z', enabled => false);
SELECT hybridiot.run_pipeline('w', wall_clock => '2026-01-01 01:00Z');
SELECT hybridiot.run_pipeline('w', wall_clock => '2026-01-01 02:00Z');
SELECT lower(during), n, records FROM total ORDER BY during;

-- the same for other windows, in the middle of some: rows from there on are those that were there before
CREATE TABLE overlapping (during tstzrange, n bigint, records bigint);
CREATE FUNCTION again(query text, at timestamptz) RETURNS TABLE (before bigint, rows bigint, lost bigint, others bigint, dead bigint) LANGUAGE plpgsql AS $$
BEGIN
	PERFORM hybridiot.create_pipeline('o', 'INSERT INTO seeking.overlapping ' || query, lateness => '3 s', enabled => false);
	PERFORM hybridiot.run_pipeline('o', wall_clock => timestamptz '2026-01-01 01:00Z' + i * interval '1 h') FROM generate_series(0, 1) i;
	CREATE TABLE first AS SELECT * FROM seeking.overlapping;
	TRUNCATE seeking.overlapping;
	PERFORM hybridiot.seek_pipeline('o', at::text);
	PERFORM hybridiot.run_pipeline('o', wall_clock => timestamptz '2026-01-01 01:00Z' + i * interval '1 h') FROM generate_series(0, 1) i;
	RETURN QUERY SELECT (SELECT count(*) FROM first), (SELECT count(*) FROM seeking.overlapping),
		(SELECT count(*) FROM (SELECT * FROM first WHERE lower(during) >= at EXCEPT ALL SELECT * FROM seeking.overlapping) x),
		(SELECT count(*) FROM (SELECT * FROM seeking.overlapping EXCEPT ALL SELECT * FROM first WHERE lower(during) >= at) x),
		(SELECT count(*) FROM hybridiot.dead_letter WHERE pipeline = 'o');
	PERFORM hybridiot.drop_pipeline('o');
	DROP TABLE first;
	TRUNCATE seeking.overlapping;
END $$;
SELECT * FROM again('SELECT w, sum(n), count(*) FROM stream, hybridiot.hop(ts, ''10 s'', ''4 s'') AS w WHERE n % 10 < 6 GROUP BY w', '2026-01-01 00:00:35Z');
SELECT * FROM again('SELECT hybridiot.slide(ts, ''4 s''), sum(n), count(*) FROM stream WHERE n % 10 < 6 GROUP BY 1', '2026-01-01 00:00:33.5Z');
SELECT * FROM again('SELECT hybridiot.session(ts, ''2 s''), sum(n), count(*) FROM stream WHERE n % 10 < 6 GROUP BY 1', '2026-01-01 00:00:33Z');

-- another stream: offsets of one server mean nothing to another
SELECT hybridiot.create_pipeline('p', 'INSERT INTO reading SELECT part, pos, n FROM stream', enabled => false);
SELECT hybridiot.run_pipeline('p');
CREATE FOREIGN TABLE sibling (n int, part int OPTIONS (metadata 'partition'), pos bigint OPTIONS (metadata 'offset'))
	SERVER archive OPTIONS (topic 't', source 'seeking.log');
CREATE SERVER elsewhere FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (transport 'table');
CREATE FOREIGN TABLE stranger (n int, part int OPTIONS (metadata 'partition'), pos bigint OPTIONS (metadata 'offset'))
	SERVER elsewhere OPTIONS (topic 't', source 'seeking.log');
SELECT hybridiot.alter_pipeline('p', statement => 'INSERT INTO reading SELECT part, pos, n FROM sibling');
SELECT hybridiot.run_pipeline('p');
SELECT hybridiot.alter_pipeline('p', statement => 'INSERT INTO reading SELECT part, pos, n FROM stranger');
SELECT hybridiot.alter_pipeline('p', statement => 'INSERT INTO reading SELECT part, pos, n FROM stranger', start_at => '{"0": 158, "1": 159, "2": 160}');
SELECT hybridiot.run_pipeline('p');

SELECT hybridiot.drop_pipeline(name) FROM hybridiot.pipeline ORDER BY name;
DROP SCHEMA seeking CASCADE;
DROP SERVER archive, elsewhere CASCADE;
DROP ROLE seeking_stranger;
