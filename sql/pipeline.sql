-- Pipelines that run their statement over batches: what is accepted, exactly once, bad records, batch ends.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS hybridiot;
CREATE SCHEMA pipeline;
SET search_path = pipeline, public;
SET timezone = 'UTC';
CREATE SERVER pipeline_log FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (transport 'table');
CREATE SERVER pipeline_amqp FOREIGN DATA WRAPPER hybridiot_amqp OPTIONS (host '127.0.0.1');
CREATE TABLE log (partition int, "offset" bigint, "timestamp" timestamptz, key bytea, value bytea, headers jsonb);
CREATE FOREIGN TABLE telemetry (
    device text, ts timestamptz, temp float8,
    part int OPTIONS (metadata 'partition'), pos bigint OPTIONS (metadata 'offset')
) SERVER pipeline_log OPTIONS (topic 't', source 'pipeline.log', event_time 'ts');
CREATE FOREIGN TABLE other (device text) SERVER pipeline_log OPTIONS (topic 't', source 'pipeline.log');
CREATE FOREIGN TABLE amqp_stream (device text) SERVER pipeline_amqp OPTIONS (address 'a');
CREATE TABLE reading (device text, ts timestamptz, temp float8, part int, pos bigint, PRIMARY KEY (part, pos));
CREATE TABLE device (device text PRIMARY KEY, site int);
RESET client_min_messages;
\set SHOW_CONTEXT never

-- what a statement may be
SELECT hybridiot.create_pipeline('p', 'SELECT 1; SELECT 2');
SELECT hybridiot.create_pipeline('p', '');
SELECT hybridiot.create_pipeline('p', 'INSERT INTO reading VALUES (1');
SELECT hybridiot.create_pipeline('p', 'CREATE TABLE x (a int)');
SELECT hybridiot.create_pipeline('p', 'INSERT INTO reading SELECT * FROM reading');
SELECT hybridiot.create_pipeline('p', 'INSERT INTO reading SELECT * FROM nowhere');
SELECT hybridiot.create_pipeline('p', 'UPDATE device d SET site = 1 FROM telemetry t WHERE t.device = d.device');
SELECT hybridiot.create_pipeline('p', 'WITH s AS (SELECT * FROM telemetry), u AS (UPDATE device d SET site = 1 FROM s WHERE s.device = d.device RETURNING d.*) INSERT INTO device SELECT device FROM u');
SELECT hybridiot.create_pipeline('p', 'INSERT INTO telemetry SELECT * FROM telemetry');
SELECT hybridiot.create_pipeline('p', 'INSERT INTO device SELECT a.device FROM telemetry a JOIN other b USING (device)');
SELECT hybridiot.create_pipeline('p', 'INSERT INTO device SELECT a.device FROM telemetry a JOIN telemetry b USING (device)');
SELECT hybridiot.create_pipeline('p', 'INSERT INTO device SELECT device FROM amqp_stream');
SELECT hybridiot.create_pipeline(NULL, 'SELECT * FROM telemetry');
SELECT hybridiot.create_pipeline('', 'SELECT * FROM telemetry');
SELECT hybridiot.create_pipeline('p', NULL);
SELECT hybridiot.create_pipeline('p', 'SELECT $1 FROM telemetry');
SELECT hybridiot.create_pipeline('p', 'SELECT * FROM telemetry', batch_rows => 0);
SELECT hybridiot.create_pipeline('p', 'SELECT * FROM telemetry', lateness => '-1 s');
SELECT hybridiot.create_pipeline('p', 'SELECT * FROM telemetry', lateness => '1 month');
SELECT hybridiot.create_pipeline('p', 'SELECT * FROM telemetry', emit => 'all');
SELECT hybridiot.create_pipeline('p', 'SELECT * FROM telemetry', on_error => 'skip');
SELECT hybridiot.create_pipeline('p', 'SELECT * FROM telemetry', start_at => 'first');
SELECT hybridiot.create_pipeline('p', 'SELECT * FROM telemetry', start_at => '{"0": -1}');
SELECT hybridiot.create_pipeline('p', 'SELECT * FROM telemetry', start_at => '{"x": 1}');
SELECT hybridiot.create_pipeline('p', 'SELECT * FROM telemetry', workers => 0);
SELECT hybridiot.create_pipeline('p', 'SELECT * FROM telemetry', workers => 257);
SELECT hybridiot.create_pipeline('p', 'SELECT * FROM telemetry', keep_closed => '1 h');
SELECT count(*) FROM hybridiot.pipeline;

-- kinds and notices
BEGIN;
SELECT hybridiot.create_pipeline('agg', 'INSERT INTO device SELECT device, count(*) FROM telemetry GROUP BY device', enabled => false);
SELECT hybridiot.create_pipeline('upsert', 'INSERT INTO device SELECT device, count(*) FROM telemetry GROUP BY device ON CONFLICT (device) DO UPDATE SET site = device.site + excluded.site', enabled => false);
SELECT hybridiot.create_pipeline('odd', 'INSERT INTO device SELECT DISTINCT device, row_number() OVER () FROM telemetry LIMIT 5', enabled => false);
SELECT hybridiot.create_pipeline('win', $$INSERT INTO device SELECT device, count(*) FROM telemetry GROUP BY device, hybridiot.tumble(ts, '5 s')$$, enabled => false);
SELECT hybridiot.create_pipeline('both', 'WITH gone AS (DELETE FROM device WHERE site = 0 RETURNING device) INSERT INTO reading SELECT t.* FROM telemetry t LEFT JOIN gone USING (device)', enabled => false);
SELECT name, kind, state FROM hybridiot.pipeline ORDER BY name;
SELECT hybridiot.create_pipeline('agg', 'SELECT * FROM telemetry');
ROLLBACK;

-- names are resolved when the pipeline is created
SELECT hybridiot.create_pipeline('readings', 'INSERT INTO reading SELECT * FROM telemetry', enabled => false);
SELECT query LIKE '%INSERT INTO pipeline.reading (device, ts, temp, part, pos)%FROM pipeline.telemetry%' AS qualified FROM hybridiot.pipeline_definition WHERE name = 'readings';

INSERT INTO log
SELECT i % 2, i / 2, timestamptz '2026-01-01Z' + i * interval '1 s', convert_to('d' || i % 4, 'UTF8'),
	convert_to(format('{"device": "d%s", "ts": "%s", "temp": %s}', i % 4, timestamptz '2026-01-01Z' + i * interval '1 s', i), 'UTF8')
FROM generate_series(0, 19) AS i;
SET search_path = pg_catalog;
SELECT hybridiot.run_pipeline('readings', 5);
SELECT hybridiot.run_pipeline('readings');
SELECT hybridiot.run_pipeline('readings');
SET search_path = pipeline, public;
SELECT part, count(*), min(pos), max(pos), sum(temp) FROM reading GROUP BY part ORDER BY part;
SELECT pipeline, stream, topic, partition, next_offset, end_offset, lag, stream_time FROM hybridiot.position;

-- a rolled-back run never was
BEGIN;
INSERT INTO log VALUES (0, 100, now(), NULL, '{"device": "d9", "ts": "2026-01-01T01:00:00Z"}');
SELECT hybridiot.run_pipeline('readings');
ROLLBACK;
SELECT count(*) FROM reading;
SELECT next_offset FROM hybridiot.position WHERE partition = 0;

-- bad records are set aside, with their place, and cost the others nothing
INSERT INTO log VALUES
  (0, 10, now(), 'k', 'not json', '{"h": "1"}'),
  (0, 11, now(), NULL, '{"device": "d1", "ts": "2026-01-01T00:01:00Z", "temp": "hot"}', NULL),
  (0, 12, now(), NULL, '{"device": "d1", "ts": null, "temp": 1}', NULL),
  (0, 13, now(), NULL, '{"device": "d1", "ts": "infinity", "temp": 1}', NULL),
  (0, 14, now(), NULL, '{"device": "d1", "ts": "9999-01-01T00:00:00Z", "temp": 1}', NULL),
  (0, 15, now(), NULL, '{"device": "d1\\u0000", "ts": "2026-01-01T00:01:00Z", "temp": 1}', NULL),
  (0, 16, now(), NULL, '[]', NULL),
  (0, 17, now(), NULL, '{"device": "good", "ts": "2026-01-01T00:01:00Z", "temp": 1}', NULL),
  (0, 18, now(), NULL, '\xff', NULL),
  (0, 19, '2026-01-01 00:02:00Z', 'tombstone', NULL, NULL);
SELECT hybridiot.run_pipeline('readings');
SELECT topic, partition, "offset", key, value, headers, reason, sqlstate, message, attempts FROM hybridiot.dead_letter WHERE pipeline = 'readings' ORDER BY "offset";
SELECT device, ts, temp, pos FROM reading WHERE part = 0 AND pos >= 10;
SELECT next_offset, stream_time FROM hybridiot.position WHERE partition = 0;

-- rejected ones: a constraint, a trigger that fires at the end, a deferred constraint, an error of the user's own
CREATE TABLE strict (device text, temp float8 CHECK (temp <> 3), pos bigint, UNIQUE (temp) DEFERRABLE INITIALLY DEFERRED);
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NEW.temp = 8 THEN RAISE EXCEPTION 'no eights' USING ERRCODE = 'MY001'; END IF;
  RETURN NULL;
END $$;
CREATE TRIGGER refuse AFTER INSERT ON strict FOR EACH ROW EXECUTE FUNCTION refuse();
CREATE TABLE outcome (rows int, reason text, "offset" bigint, sqlstate text, message text, batch_rows int);
CREATE FUNCTION run_with(statement text, target regclass) RETURNS TABLE (batch_rows int, n bigint, digest text, dead bigint) LANGUAGE plpgsql AS $$
BEGIN
  FOREACH batch_rows IN ARRAY ARRAY[1, 2, 10000] LOOP
    EXECUTE format('TRUNCATE %s', target);
    PERFORM set_config('client_min_messages', 'warning', true);
    PERFORM hybridiot.create_pipeline('p', statement, batch_rows => run_with.batch_rows, enabled => false);
    PERFORM hybridiot.run_pipeline('p');
    EXECUTE format('SELECT count(*), md5(string_agg(x::text, E''\n'' ORDER BY x::text)) FROM %s x', target) INTO n, digest;
    SELECT count(*) INTO dead FROM hybridiot.dead_letter WHERE pipeline = 'p';
    INSERT INTO outcome SELECT 0, d.reason, d."offset", d.sqlstate, d.message, run_with.batch_rows FROM hybridiot.dead_letter d WHERE pipeline = 'p' AND reason = 'rejected';
    PERFORM hybridiot.drop_pipeline('p');
    RETURN NEXT;
  END LOOP;
END $$;
CREATE FUNCTION same(statement text, target regclass) RETURNS TABLE (n bigint, dead bigint, equal boolean) LANGUAGE sql AS
  'SELECT min(n), min(dead), count(DISTINCT digest) = 1 AND count(DISTINCT n) = 1 AND count(DISTINCT dead) = 1 FROM run_with(statement, target)';

INSERT INTO log
SELECT 2, i, timestamptz '2026-01-01Z' + i * interval '1 s', convert_to('d' || i % 4, 'UTF8'),
	convert_to(format('{"device": "d%s", "ts": "%s", "temp": %s}', i % 4, timestamptz '2026-01-01Z' + i * interval '1 s', i % 50), 'UTF8')
FROM generate_series(0, 99) AS i;
SELECT * FROM same('INSERT INTO strict SELECT device, temp, pos FROM telemetry WHERE part = 2', 'strict');
SELECT batch_rows, sqlstate, split_part(message, ': ', 1) AS message, count(*), min("offset"), max("offset") FROM outcome GROUP BY 1, 2, 3 ORDER BY 1, 2, 3;
TRUNCATE outcome;

-- every kind of statement gives equal tables wherever batches end
CREATE TABLE latest (device text PRIMARY KEY, temp float8, n bigint DEFAULT 1);
SELECT * FROM same('INSERT INTO reading SELECT * FROM telemetry', 'reading');
SELECT * FROM same('INSERT INTO latest (device, temp) SELECT device, temp FROM telemetry WHERE device IS NOT NULL ON CONFLICT (device) DO UPDATE SET temp = excluded.temp, n = latest.n + 1', 'latest');
SELECT * FROM latest ORDER BY device;
SELECT * FROM same('INSERT INTO latest (device, temp) SELECT device, temp FROM telemetry WHERE device IS NOT NULL ON CONFLICT (device) DO NOTHING', 'latest');
SELECT * FROM same('MERGE INTO latest l USING telemetry t ON l.device = t.device WHEN MATCHED AND t.temp = 20 THEN DELETE WHEN MATCHED THEN UPDATE SET temp = t.temp, n = l.n + 1 WHEN NOT MATCHED AND t.device IS NOT NULL THEN INSERT VALUES (t.device, t.temp)', 'latest');
SELECT * FROM latest ORDER BY device;
SELECT * FROM same('WITH t AS (SELECT * FROM telemetry WHERE temp IS NOT NULL) INSERT INTO reading SELECT * FROM t ORDER BY temp DESC', 'reading');
CREATE TABLE seen (pos bigint);
CREATE FUNCTION keep(pos bigint) RETURNS void LANGUAGE sql SET search_path = pipeline AS 'INSERT INTO seen VALUES (pos)';
SELECT * FROM same('SELECT pipeline.keep(pos) FROM telemetry WHERE part = 2', 'seen');
SELECT * FROM same('WITH x AS (INSERT INTO seen SELECT pos FROM telemetry RETURNING pos) SELECT count(*) FROM x', 'seen');

-- a record that needs what an earlier one of its batch wrote is not bad
CREATE TABLE node (id int PRIMARY KEY, parent int REFERENCES node);
SELECT * FROM same('INSERT INTO node SELECT pos, CASE WHEN pos > 0 THEN pos - 1 END FROM telemetry WHERE part = 2', 'node');

-- rows leave as well: DELETE ... USING
INSERT INTO seen SELECT generate_series(0, 200);
SELECT hybridiot.create_pipeline('p', 'DELETE FROM seen s USING telemetry t WHERE s.pos = t.pos AND t.part = 2', enabled => false);
SELECT hybridiot.run_pipeline('p');
SELECT count(*), min(pos) FROM seen;
SELECT hybridiot.drop_pipeline('p');

-- a compacted topic as a table, tombstones included
CREATE TABLE device_log (LIKE log);
CREATE FOREIGN TABLE device_topic (key text OPTIONS (metadata 'key'), value bytea OPTIONS (metadata 'value'), site int)
  SERVER pipeline_log OPTIONS (topic 'devices', compacted 'true', source 'pipeline.device_log');
INSERT INTO device_log VALUES (0, 0, now(), 'a', '{"site": 1}'), (0, 1, now(), 'b', '{"site": 2}'), (0, 2, now(), 'a', '{"site": 3}'),
  (0, 3, now(), 'b', NULL), (0, 4, now(), 'c', NULL), (0, 5, now(), 'c', '{"site": 5}'), (0, 6, now(), NULL, '{"site": 6}');
SELECT * FROM same($$MERGE INTO device d USING device_topic s ON d.device = s.key
  WHEN MATCHED AND s.value IS NULL THEN DELETE
  WHEN MATCHED THEN UPDATE SET site = s.site
  WHEN NOT MATCHED AND s.value IS NOT NULL AND s.key IS NOT NULL THEN INSERT (device, site) VALUES (s.key, s.site)$$, 'device');
SELECT * FROM device ORDER BY device;

-- on_error and max_errors stop, and move nothing
SELECT hybridiot.create_pipeline('stops', 'INSERT INTO reading SELECT * FROM telemetry WHERE part = 0', on_error => 'stop', enabled => false);
TRUNCATE reading;
SELECT hybridiot.run_pipeline('stops');
SELECT count(*) FROM hybridiot.position WHERE pipeline = 'stops';
SELECT hybridiot.drop_pipeline('stops');
SELECT hybridiot.create_pipeline('stops', 'INSERT INTO reading SELECT * FROM telemetry WHERE part = 0', max_errors => 0, enabled => false);
SELECT hybridiot.run_pipeline('stops');
SELECT hybridiot.alter_pipeline('stops', max_errors => 7);
SELECT hybridiot.run_pipeline('stops');
SELECT hybridiot.drop_pipeline('stops');

-- what is wrong with the statement stops it, too
SELECT hybridiot.create_pipeline('stops', 'INSERT INTO seen SELECT pos FROM telemetry', enabled => false);
ALTER TABLE seen RENAME TO unseen;
SELECT hybridiot.run_pipeline('stops');
ALTER TABLE unseen RENAME TO seen;
-- only the pipeline's own scan sees a stream
CREATE FUNCTION peek() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM count(*) FROM pipeline.telemetry; RETURN NEW; END $$;
CREATE TRIGGER peek BEFORE INSERT ON seen FOR EACH ROW EXECUTE FUNCTION peek();
SELECT hybridiot.run_pipeline('stops');
DROP TRIGGER peek ON seen;
SELECT hybridiot.run_pipeline('stops') > 100 AS ran;
SELECT hybridiot.drop_pipeline('stops');

-- where to begin
SELECT hybridiot.create_pipeline('from', 'SELECT * FROM telemetry', start_at => '{"0": 18, "2": 99}', enabled => false);
SELECT hybridiot.run_pipeline('from');
SELECT hybridiot.alter_pipeline('from', start_at => 'latest');
SELECT hybridiot.run_pipeline('from');
SELECT hybridiot.alter_pipeline('from', start_at => '2026-01-01 00:01:35Z');
SELECT hybridiot.run_pipeline('from');
SELECT partition, next_offset FROM hybridiot.position WHERE pipeline = 'from' ORDER BY partition;
-- partitions that come later are read from their beginning
SELECT hybridiot.alter_pipeline('from', start_at => 'latest');
SELECT hybridiot.run_pipeline('from');
INSERT INTO log VALUES (3, 5, now(), NULL, '{"device": "x", "ts": "2026-01-01T00:00:00Z"}');
SELECT hybridiot.run_pipeline('from');

-- changing
SELECT hybridiot.alter_pipeline('nobody', batch_rows => 5);
SELECT hybridiot.drop_pipeline('nobody');
SELECT hybridiot.pause_pipeline('nobody');
SELECT hybridiot.resume_pipeline(NULL);
SELECT hybridiot.run_pipeline('nobody');
SELECT hybridiot.run_pipeline('from', -1);
SELECT hybridiot.run_pipeline('from', wall_clock => 'infinity');
SELECT hybridiot.alter_pipeline('from', statement => 'SELECT device FROM telemetry', batch_rows => 7, lateness => '3 s');
SELECT statement, options ->> 'batch_rows' AS batch_rows, options ->> 'lateness' AS lateness, options ->> 'start_at' AS start_at FROM hybridiot.pipeline WHERE name = 'from';
SELECT hybridiot.alter_pipeline('from', statement => $$INSERT INTO seen SELECT count(*) FROM telemetry GROUP BY hybridiot.tumble(ts, '5 s')$$);
SELECT hybridiot.alter_pipeline('from', statement => $$INSERT INTO seen SELECT count(*) FROM telemetry GROUP BY hybridiot.tumble(ts, '5 s')$$, start_at => 'earliest');
SELECT kind FROM hybridiot.pipeline WHERE name = 'from';
SELECT hybridiot.drop_pipeline('from');
SELECT count(*) FROM hybridiot.position WHERE pipeline = 'from';

-- others
CREATE ROLE regress_engineer;
CREATE ROLE regress_stranger;
GRANT USAGE ON SCHEMA pipeline TO regress_engineer, regress_stranger;
SET ROLE regress_engineer;
SELECT hybridiot.create_pipeline('mine', 'INSERT INTO pipeline.reading SELECT * FROM pipeline.telemetry', enabled => false);
RESET ROLE;
GRANT SELECT ON telemetry, log TO regress_engineer;
SET ROLE regress_engineer;
SELECT hybridiot.create_pipeline('mine', 'INSERT INTO pipeline.reading SELECT * FROM pipeline.telemetry', enabled => false);
RESET ROLE;
GRANT INSERT ON reading TO regress_engineer;
SET ROLE regress_engineer;
SELECT hybridiot.create_pipeline('mine', 'INSERT INTO pipeline.reading SELECT * FROM pipeline.telemetry', enabled => false);
SELECT name, owner FROM hybridiot.pipeline;
SELECT hybridiot.alter_pipeline('mine', owner => 'postgres');
SELECT hybridiot.drop_pipeline('readings');
SELECT count(*) FROM hybridiot.dead_letter;
SELECT * FROM hybridiot.pipeline_definition;
RESET ROLE;
SET ROLE regress_stranger;
SELECT name FROM hybridiot.pipeline;
SELECT hybridiot.pause_pipeline('mine');
SELECT hybridiot.run_pipeline('mine');
SELECT * FROM hybridiot.position;
SELECT * FROM hybridiot.stat_pipeline;
RESET ROLE;
-- the worker acts as the owner, restricted, whoever starts it
CREATE FUNCTION trojan() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  NEW.device := current_user || ' ' || current_setting('search_path');
  RETURN NEW;
END $$;
CREATE TRIGGER trojan BEFORE INSERT ON reading FOR EACH ROW EXECUTE FUNCTION trojan();
SELECT hybridiot.run_pipeline('mine') > 0 AS ran;
SELECT DISTINCT device FROM reading;
CREATE OR REPLACE FUNCTION trojan() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN SET ROLE postgres; RETURN NEW; END $$;
INSERT INTO log VALUES (3, 6, now(), NULL, '{"device": "x", "ts": "2026-01-01T00:00:00Z"}');
SELECT hybridiot.run_pipeline('mine');
CREATE OR REPLACE FUNCTION trojan() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN CREATE TEMP TABLE t (a int); RETURN NEW; END $$;
SELECT hybridiot.run_pipeline('mine');
SELECT hybridiot.drop_pipeline('mine');

SET client_min_messages = warning;
-- what the caller left pending is no record's fault
CREATE TABLE parent (id int PRIMARY KEY);
CREATE TABLE child (id int REFERENCES parent DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE pending (device text);
SELECT hybridiot.create_pipeline('pending', 'INSERT INTO pending SELECT device FROM other', enabled => false);
BEGIN;
INSERT INTO child VALUES (1);
SELECT hybridiot.run_pipeline('pending');
ROLLBACK;
SELECT count(*) FROM hybridiot.dead_letter WHERE pipeline = 'pending';

SELECT hybridiot.drop_pipeline(name) FROM hybridiot.pipeline;
DROP SCHEMA pipeline CASCADE;
DROP SERVER pipeline_log CASCADE;
DROP SERVER pipeline_amqp CASCADE;
DROP ROLE regress_engineer, regress_stranger;
