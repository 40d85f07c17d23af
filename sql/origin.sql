-- Where pipelines come from: which of them command devices, what is held, and how the hold ends.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS hybridiot;
CREATE ROLE regress_origin_owner;
CREATE ROLE regress_origin_other;
CREATE SCHEMA origin AUTHORIZATION regress_origin_owner;
SET search_path = origin;
CREATE SERVER origin_log FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (transport 'table');
CREATE SERVER origin_gateway FOREIGN DATA WRAPPER hybridiot_amqp OPTIONS (host '127.0.0.1', port '1', peer 'router');
GRANT USAGE ON FOREIGN SERVER origin_log, origin_gateway TO regress_origin_owner;
\set SHOW_CONTEXT never

SET ROLE regress_origin_owner;
CREATE TABLE log (partition int, "offset" bigint, "timestamp" timestamptz, key bytea, value bytea, headers jsonb);
CREATE FOREIGN TABLE telemetry (device text, n int) SERVER origin_log OPTIONS (topic 't', source 'origin.log');
CREATE TABLE reading (device text, n int);
CREATE TABLE alarm (device text, n int);
CREATE TABLE passed (device text, n int, command uuid);
CREATE VIEW passing AS SELECT device, n FROM passed;
CREATE RULE pass AS ON INSERT TO passing DO INSTEAD
  INSERT INTO passed VALUES (new.device, new.n, hybridiot.send_command(new.device, 'fan', server => 'origin_gateway'));
CREATE FUNCTION tell(device text) RETURNS uuid BEGIN ATOMIC SELECT hybridiot.send_command(device, 'fan', server => 'origin_gateway'); END;
CREATE FUNCTION tell_again(device text) RETURNS uuid LANGUAGE sql AS 'SELECT origin.tell(device)';
CREATE FUNCTION tell_text(device text) RETURNS uuid LANGUAGE sql AS $$ SELECT hybridiot.send_command(device, 'fan', server => 'origin_gateway') $$;
CREATE FUNCTION tell_insert(device text) RETURNS void LANGUAGE sql AS $$ INSERT INTO hybridiot.command (device, command, server) VALUES (device, 'fan', 'origin_gateway') $$;
CREATE FUNCTION quiet(device text) RETURNS text BEGIN ATOMIC SELECT upper(device); END;
CREATE FUNCTION tell_of_alarm() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF new.n > 100 THEN
    PERFORM hybridiot.send_command(new.device, 'fan', server => 'origin_gateway', ttl => '1 hour');
  END IF;
  RETURN new;
END $$;
CREATE TRIGGER tell_of_alarm BEFORE INSERT ON alarm FOR EACH ROW EXECUTE FUNCTION tell_of_alarm();

-- what the statement shows
SELECT count(hybridiot.create_pipeline(name, statement, enabled => false)) FROM (VALUES
  ('plain', 'INSERT INTO reading SELECT device, n FROM telemetry'),
  ('quiet', 'INSERT INTO reading SELECT quiet(device), n FROM telemetry'),
  ('calls', 'SELECT hybridiot.send_command(device, ''fan'', server => ''origin_gateway'') FROM telemetry'),
  ('inserts', 'INSERT INTO hybridiot.command (device, command, server) SELECT device, ''fan'', ''origin_gateway'' FROM telemetry'),
  ('with', 'WITH c AS (INSERT INTO hybridiot.command (device, command, server) SELECT device, ''fan'', ''origin_gateway'' FROM telemetry RETURNING device) INSERT INTO reading SELECT device, 1 FROM c'),
  ('where', 'INSERT INTO reading SELECT device, n FROM telemetry WHERE hybridiot.send_command(device, ''fan'') IS NOT NULL'),
  ('rule', 'INSERT INTO passing SELECT device, n FROM telemetry'),
  ('atomic', 'SELECT tell(device) FROM telemetry'),
  ('text', 'SELECT tell_text(device) FROM telemetry'),
  ('insert in text', 'SELECT tell_insert(device) FROM telemetry'),
  ('trigger', 'INSERT INTO alarm SELECT device, n FROM telemetry')) AS t (name, statement);
RESET ROLE;
SELECT name, commands FROM hybridiot.pipeline_definition WHERE owner_name = 'regress_origin_owner' ORDER BY id;

-- what only the first command shows, in the transaction that queues it
SET ROLE regress_origin_owner;
INSERT INTO log VALUES (0, 0, now(), NULL, '{"device": "d", "n": 1}');
SELECT hybridiot.run_pipeline('trigger');
RESET ROLE;
SELECT commands FROM hybridiot.pipeline_definition WHERE name = 'trigger';
SET ROLE regress_origin_owner;
INSERT INTO log VALUES (0, 1, now(), NULL, '{"device": "d", "n": 101}');
BEGIN;
SELECT hybridiot.run_pipeline('trigger');
RESET ROLE;
SELECT commands FROM hybridiot.pipeline_definition WHERE name = 'trigger';
ROLLBACK;
RESET ROLE;
SELECT commands FROM hybridiot.pipeline_definition WHERE name = 'trigger';
SET ROLE regress_origin_owner;
SELECT hybridiot.run_pipeline('trigger');
RESET ROLE;
SELECT commands FROM hybridiot.pipeline_definition WHERE name = 'trigger';

-- a new statement is looked at anew, other changes do not matter; a function that changed is seen when the pipeline starts
SET ROLE regress_origin_owner;
SET client_min_messages = warning;
SELECT hybridiot.alter_pipeline('trigger', batch_rows => 10);
SELECT hybridiot.alter_pipeline('calls', 'INSERT INTO reading SELECT device, n FROM telemetry');
CREATE OR REPLACE FUNCTION quiet(device text) RETURNS text LANGUAGE sql AS $$ SELECT hybridiot.send_command(device, 'fan', server => 'origin_gateway')::text $$;
SELECT hybridiot.run_pipeline('quiet', 0);
RESET ROLE;
SELECT name, commands FROM hybridiot.pipeline_definition WHERE name IN ('trigger', 'calls', 'quiet') ORDER BY name;

SELECT current_database() AS here \gset
-- everybody knows where he is; what has another origin, or none, is resumed together, by those who may
SELECT count(*), bool_and(o.system_id = c.system_identifier AND o.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND o.timeline = 1 AND o.instance IS NOT NULL)
FROM hybridiot.pipeline_origin o JOIN hybridiot.pipeline_definition d ON d.id = o.pipeline, pg_control_system() c WHERE d.owner_name = 'regress_origin_owner';
ALTER DATABASE :"here" SET hybridiot.enabled = off;
UPDATE hybridiot.pipeline_definition SET enabled = true WHERE name IN ('plain', 'calls', 'with', 'rule', 'text');
UPDATE hybridiot.pipeline_definition SET failure = 'copied' WHERE name = 'calls';
UPDATE hybridiot.pipeline_definition SET failure = 'promoted' WHERE name = 'with';
DELETE FROM hybridiot.pipeline_origin WHERE pipeline = (SELECT id FROM hybridiot.pipeline_definition WHERE name = 'rule');
UPDATE hybridiot.pipeline_origin SET instance = gen_random_uuid() WHERE pipeline = (SELECT id FROM hybridiot.pipeline_definition WHERE name = 'text');
SELECT name, state, reason FROM hybridiot.pipeline WHERE name IN ('calls', 'with') ORDER BY name;
SET ROLE regress_origin_other;
SELECT hybridiot.resume_all();
SET ROLE regress_origin_owner;
SELECT hybridiot.resume_all();
SELECT hybridiot.resume_all();
RESET ROLE;
SELECT d.name, d.enabled, d.failure, o.instance = (SELECT instance FROM hybridiot.pipeline_origin p JOIN hybridiot.pipeline_definition q ON q.id = p.pipeline WHERE q.name = 'plain') AS here
FROM hybridiot.pipeline_definition d JOIN hybridiot.pipeline_origin o ON o.pipeline = d.id WHERE d.name IN ('calls', 'with', 'rule', 'text', 'atomic') ORDER BY 1;

-- an older version of the extension says what to do
CREATE DATABASE regress_origin_old;
\c regress_origin_old
SET client_min_messages = warning;
CREATE EXTENSION hybridiot VERSION '0.1.0';
\set SHOW_CONTEXT never
SELECT hybridiot.pause_pipeline('p');
ALTER EXTENSION hybridiot UPDATE;
SELECT hybridiot.pause_pipeline('p');
SELECT hybridiot.resume_all();
\c :here
DROP DATABASE regress_origin_old;

SET client_min_messages = warning;
SELECT hybridiot.drop_pipeline(name) FROM hybridiot.pipeline WHERE owner = 'regress_origin_owner';
DELETE FROM hybridiot.command_origin;
DELETE FROM hybridiot.command WHERE sender = 'regress_origin_owner';
ALTER DATABASE :"here" RESET hybridiot.enabled;
DROP SCHEMA origin CASCADE;
DROP SERVER origin_log CASCADE;
DROP SERVER origin_gateway CASCADE;
DROP ROLE regress_origin_owner, regress_origin_other;
