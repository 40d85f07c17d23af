-- What others' code may be run as, and what odd callers get: a pipeline's owner against whoever runs it.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS hybridiot;
CREATE ROLE regress_trust_owner;
CREATE SCHEMA trust AUTHORIZATION regress_trust_owner;
SET search_path = trust;
CREATE SERVER trust_log FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (transport 'table');
GRANT USAGE ON FOREIGN SERVER trust_log TO regress_trust_owner;
RESET client_min_messages;
\set SHOW_CONTEXT never

-- code of the owner's, in every place that a pipeline reaches
SET ROLE regress_trust_owner;
CREATE TABLE log (partition int, "offset" bigint, "timestamp" timestamptz, key bytea, value bytea, headers jsonb);
CREATE TABLE seen (place text, who text, super bool);
CREATE FUNCTION spy(place text) RETURNS bool LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO trust.seen VALUES (place, current_user, pg_catalog.current_setting('is_superuser')::bool);
  RETURN true;
END $$;
CREATE FUNCTION spying_size(place text) RETURNS interval LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
  PERFORM trust.spy(place);
  RETURN '10 s';
END $$;
CREATE FUNCTION spying_trigger() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM trust.spy(TG_NAME);
  RETURN NEW;
END $$;
CREATE DOMAIN spying AS text CHECK (trust.spy('domain'));
CREATE FOREIGN TABLE telemetry (device spying, ts timestamptz, temp float8)
  SERVER trust_log OPTIONS (topic 't', source 'trust.log', event_time 'ts');
CREATE TABLE reading (device text, ts timestamptz, temp float8 DEFAULT 1 CHECK (trust.spy('check')));
CREATE TRIGGER before BEFORE INSERT ON reading FOR EACH ROW EXECUTE FUNCTION spying_trigger();
CREATE TRIGGER after AFTER INSERT ON reading FOR EACH ROW EXECUTE FUNCTION spying_trigger();
CREATE TABLE highest (during tstzrange, device text, temp float8 CHECK (trust.spy('check of windows')));
INSERT INTO log VALUES (0, 0, now(), NULL, '{"device": "d", "ts": "2026-01-01T00:00:00Z", "temp": 1}'),
  (0, 1, now(), NULL, '{"device": "d", "ts": "2026-01-01T00:01:00Z", "temp": 1}');
SELECT hybridiot.create_pipeline('readings', 'INSERT INTO reading SELECT * FROM telemetry WHERE spy(''where'')', enabled => false);
SELECT hybridiot.create_pipeline('windows', 'INSERT INTO highest SELECT hybridiot.tumble(ts, spying_size(''size'')), device, max(temp) FROM telemetry GROUP BY 1, 2', enabled => false);
RESET ROLE;

-- run, and changed, by a superuser
TRUNCATE seen;
SELECT hybridiot.run_pipeline('readings');
SELECT hybridiot.run_pipeline('windows');
SELECT hybridiot.alter_pipeline('windows', lateness => '1 s');
SELECT DISTINCT place, who FROM seen ORDER BY place;

-- what was deferred would run at COMMIT as somebody else
SET ROLE regress_trust_owner;
CREATE FUNCTION defer() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  SET CONSTRAINTS ALL DEFERRED;
  RETURN NEW;
END $$;
CREATE TABLE deferring (device text);
CREATE TRIGGER before BEFORE INSERT ON deferring FOR EACH ROW EXECUTE FUNCTION defer();
CREATE CONSTRAINT TRIGGER late AFTER INSERT ON deferring DEFERRABLE FOR EACH ROW EXECUTE FUNCTION spying_trigger();
SELECT hybridiot.create_pipeline('deferred', 'INSERT INTO deferring SELECT device FROM telemetry', enabled => false);
RESET ROLE;
SELECT hybridiot.run_pipeline('deferred');
SELECT count(*) FROM deferring;

-- a table that stands in for a topic has columns of any type
SET ROLE regress_trust_owner;
CREATE TABLE numbers (partition int8, "offset" int4, "timestamp" date, key text, value bytea, headers json);
INSERT INTO numbers VALUES (0, 7, '2026-01-01', 'k', '{"a": 1}', '{"h": "v"}');
CREATE FOREIGN TABLE numbered (a int, part int OPTIONS (metadata 'partition'), pos bigint OPTIONS (metadata 'offset'),
  key text OPTIONS (metadata 'key'), h text OPTIONS (metadata 'header:h'))
  SERVER trust_log OPTIONS (topic 't', source 'trust.numbers');
SELECT * FROM numbered;
ALTER TABLE numbers ALTER value TYPE float8 USING 4096;
\set VERBOSITY sqlstate
SELECT * FROM numbered;
ALTER TABLE numbers DROP value, ADD value bytea, ALTER partition TYPE text;
SELECT * FROM numbered;
ALTER TABLE numbers RENAME headers TO nothing;
SELECT * FROM numbered;
\set VERBOSITY default
RESET ROLE;

-- a log whose own time is out of this world moves no watermark
SET ROLE regress_trust_owner;
TRUNCATE log;
INSERT INTO log VALUES (0, 0, '2026-01-01 00:00:01Z', NULL, '{"n": 1}'), (0, 1, 'infinity', NULL, '{"n": 2}'),
  (0, 2, '2026-01-01 00:00:02Z', NULL, '{"n": 3}'), (0, 3, 'infinity', NULL, NULL);
CREATE FOREIGN TABLE untimed (n int, at timestamptz OPTIONS (metadata 'timestamp')) SERVER trust_log OPTIONS (topic 't', source 'trust.log', max_future '106751991 days');
CREATE TABLE total (during tstzrange, sum int);
SELECT hybridiot.create_pipeline('total', 'INSERT INTO total SELECT hybridiot.tumble(at, ''10 s''), sum(n) FROM untimed GROUP BY 1', enabled => false);
SELECT hybridiot.run_pipeline('total', wall_clock => '2026-01-01 00:00:20Z');
SELECT watermark = '2026-01-01 00:00:02Z' AS unmoved FROM hybridiot.pipeline WHERE name = 'total';
SELECT sum FROM total;
SELECT "offset", reason, message FROM hybridiot.dead_letter WHERE pipeline = 'total';
SELECT n FROM untimed ORDER BY n;
RESET ROLE;

-- functions that are not meant for callers
SET ROLE regress_trust_owner;
SELECT hybridiot.kafka_validator('{a=1}', 1417);
SELECT * FROM hybridiot.finished_groups() AS g (a int);
SELECT hybridiot.finished_groups();
SELECT count(*) FROM hybridiot.pipeline_slots() WHERE pid IS NOT NULL;
SELECT hybridiot.run_pipeline(NULL);
SELECT hybridiot.run_pipeline('readings', -1);
SELECT hybridiot.run_pipeline('readings', 0);
SELECT hybridiot.run_pipeline('readings', NULL, 'infinity');
SELECT hybridiot.alter_pipeline(NULL);
SELECT hybridiot.alter_pipeline('readings', owner => 0::regrole);
SELECT hybridiot.drop_pipeline(NULL);
INSERT INTO hybridiot.pipeline_definition DEFAULT VALUES;
UPDATE hybridiot.pipeline_position SET next_offset = 0;
RESET ROLE;
\set VERBOSITY terse
SELECT hybridiot.kafka_validator('{a}', 1417);
SELECT hybridiot.kafka_validator('{NULL}', 1417);
SELECT hybridiot.kafka_validator('{a=1}', 0);

SET client_min_messages = warning;
SELECT hybridiot.drop_pipeline(name) FROM hybridiot.pipeline WHERE owner = 'regress_trust_owner';
DROP SCHEMA trust CASCADE;
DROP SERVER trust_log CASCADE;
DROP ROLE regress_trust_owner;
