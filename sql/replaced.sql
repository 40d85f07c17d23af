-- A log that is not the one any more that was read: the last record of each partition tells
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS hybridiot;
CREATE SCHEMA replaced;
SET search_path = replaced;
SET timezone = 'UTC';
\set VERBOSITY default
\set SHOW_CONTEXT never
CREATE TABLE log (partition int, "offset" bigint, "timestamp" timestamptz, key bytea, value bytea, headers jsonb);
CREATE SERVER archive FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (transport 'table');
CREATE FOREIGN TABLE stream (n int, ts timestamptz OPTIONS (metadata 'timestamp'), part int OPTIONS (metadata 'partition'), pos bigint OPTIONS (metadata 'offset'))
	SERVER archive OPTIONS (topic 't', source 'replaced.log');
CREATE TABLE reading (n int, part int, pos bigint);
CREATE FUNCTION write(part int, first int, last int, base int DEFAULT 0) RETURNS void LANGUAGE sql SET search_path = replaced AS
	$$INSERT INTO log SELECT part, i, timestamptz '2026-01-01Z' + i * interval '1 s', NULL, convert_to(format('{"n": %s}', base + i), 'UTF8') FROM generate_series(first, last) AS i$$;
CREATE VIEW known AS SELECT partition, next_offset, last_offset, last_timestamp, last_size, last_crc, leader_epoch, topic_id
	FROM hybridiot.pipeline_position ORDER BY partition;

SELECT hybridiot.create_pipeline('p', 'INSERT INTO reading SELECT n, part, pos FROM stream', enabled => false);
SELECT write(0, 0, 9), write(1, 0, 4);
SELECT hybridiot.run_pipeline('p');
SELECT * FROM known;

-- the same log goes on: with more, with nothing new, with its beginning gone, with its last record gone as compaction does it
SELECT write(0, 10, 11);
SELECT hybridiot.run_pipeline('p');
SELECT hybridiot.run_pipeline('p');
DELETE FROM log WHERE "offset" < 3;
SELECT hybridiot.run_pipeline('p');
SELECT write(0, 12, 12);
DELETE FROM log WHERE partition = 0 AND "offset" = 11;
SELECT hybridiot.run_pipeline('p');
SELECT partition, next_offset, last_offset FROM known;
-- what is at or below the position is not read, wherever it comes from
SELECT write(0, 2, 2, 500);
SELECT write(0, 11, 11, 500);
SELECT hybridiot.run_pipeline('p');
-- batches of one, and pieces of runs, know their last record, too
SELECT hybridiot.alter_pipeline('p', batch_rows => 1);
SELECT write(0, 13, 16);
SELECT hybridiot.run_pipeline('p', 2);
SELECT partition, next_offset, last_offset FROM known;
SELECT hybridiot.run_pipeline('p');
SELECT partition, next_offset, last_offset FROM known;
SELECT count(*), count(DISTINCT (part, pos)), max(n) FROM reading;

-- another log, longer: nothing of it is read
BEGIN;
DELETE FROM log WHERE partition = 0;
SELECT write(0, 0, 30, 1000);
SELECT hybridiot.run_pipeline('p');
ROLLBACK;
-- of the same length
BEGIN;
DELETE FROM log WHERE partition = 0;
SELECT write(0, 0, 16, 1000);
SELECT hybridiot.run_pipeline('p');
ROLLBACK;
-- shorter
BEGIN;
DELETE FROM log WHERE partition = 0;
SELECT write(0, 0, 15);
SELECT hybridiot.run_pipeline('p');
ROLLBACK;
-- one that is empty tells nothing yet
BEGIN;
DELETE FROM log WHERE partition = 1;
SELECT hybridiot.run_pipeline('p');
SELECT write(1, 0, 0);
SELECT hybridiot.run_pipeline('p');
ROLLBACK;
-- what makes a record another one: time, key, value, null or empty, and what moves from key to value
CREATE FUNCTION changed(change text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE message text; detail text;
BEGIN
	BEGIN
		EXECUTE format('UPDATE replaced.log SET %s WHERE partition = 0 AND "offset" = 16', change);
		PERFORM hybridiot.run_pipeline('p');
		RAISE EXCEPTION 'not noticed';
	EXCEPTION WHEN OTHERS THEN
		GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL;
	END;
	RETURN concat_ws(': ', message, nullif(detail, ''));
END $$;
SELECT change, changed(change) FROM unnest(ARRAY['headers = ''{"a": "b"}''', '"timestamp" = "timestamp" + interval ''1 ms''', 'key = ''k''', 'key = ''''',
	'value = NULL', 'value = ''''', 'value = ''{"n":16}''', 'key = substr(value, 1, 3), value = substr(value, 4)', 'value = value']) AS change;
SELECT changed('value = convert_to(''{"n": 17}'', ''UTF8'')');

-- a new start begins with a new log
DELETE FROM log;
SELECT write(0, 0, 3, 1000);
SELECT hybridiot.run_pipeline('p');
TRUNCATE reading;
SELECT hybridiot.alter_pipeline('p', start_at => 'earliest');
SELECT hybridiot.run_pipeline('p');
SELECT min(n), max(n), count(*) FROM reading;
SELECT partition, next_offset, last_offset FROM known;
-- and a position that was set by hand, below its record or above it, is kept
UPDATE hybridiot.pipeline_position SET next_offset = 2;
SELECT hybridiot.run_pipeline('p');
SELECT write(0, 4, 9, 1000);
UPDATE hybridiot.pipeline_position SET next_offset = 7;
SELECT hybridiot.run_pipeline('p');
SELECT partition, next_offset, last_offset FROM known;
SELECT hybridiot.drop_pipeline('p');

-- windows: what is read after a checkpoint is another log, too
CREATE TABLE total (during tstzrange, n bigint);
SELECT hybridiot.create_pipeline('w', 'INSERT INTO total SELECT hybridiot.tumble(ts, ''10 s''), count(*) FROM stream GROUP BY 1', enabled => false);
SELECT hybridiot.run_pipeline('w', wall_clock => '2026-01-01 00:00:10Z');
SELECT partition, next_offset, last_offset FROM known;
BEGIN;
DELETE FROM log;
SELECT write(0, 0, 30, 2000);
SELECT hybridiot.run_pipeline('w', wall_clock => '2026-01-01 00:00:10Z');
ROLLBACK;
SELECT write(0, 10, 12, 1000);
SELECT hybridiot.run_pipeline('w', wall_clock => '2026-01-01 00:10:00Z');
SELECT hybridiot.run_pipeline('w', wall_clock => '2026-01-01 00:20:00Z');
SELECT lower(during), n FROM total ORDER BY 1;
SELECT hybridiot.drop_pipeline('w');

-- batches end when they hold 64 MB: a row a batch is told by its trigger
CREATE TABLE batch (rows bigint);
CREATE FUNCTION count_batch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO replaced.batch SELECT count(*) FROM new; RETURN NULL; END $$;
CREATE TRIGGER count_batch AFTER INSERT ON reading REFERENCING NEW TABLE AS new FOR EACH STATEMENT EXECUTE FUNCTION count_batch();
TRUNCATE log;
INSERT INTO log SELECT 0, i, '2026-01-01Z', NULL, convert_to(format('{"n": %s, "x": "%s"}', i, repeat('x', 15 * 1024 * 1024)), 'UTF8') FROM generate_series(0, 9) AS i;
SELECT hybridiot.create_pipeline('p', 'INSERT INTO reading SELECT n, part, pos FROM stream', enabled => false);
SELECT hybridiot.run_pipeline('p');
SELECT rows FROM batch;
SELECT hybridiot.drop_pipeline('p');

DROP SCHEMA replaced CASCADE;
DROP SERVER archive CASCADE;
