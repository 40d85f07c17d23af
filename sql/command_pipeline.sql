-- Commands in pipelines: send_command() works there, within the batch; calls are refused, wherever they hide.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS hybridiot;
CREATE ROLE regress_pipeliner;
CREATE SCHEMA command_pipeline AUTHORIZATION regress_pipeliner;
SET search_path = command_pipeline;
CREATE SERVER log FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (transport 'table');
CREATE SERVER gateway FOREIGN DATA WRAPPER hybridiot_amqp OPTIONS (host '127.0.0.1', port '1', peer 'router');
GRANT USAGE ON FOREIGN SERVER log, gateway TO regress_pipeliner;
RESET client_min_messages;
\set SHOW_CONTEXT never
SET ROLE regress_pipeliner;
CREATE TABLE record (partition int, "offset" bigint, "timestamp" timestamptz, key bytea, value bytea, headers jsonb);
CREATE FOREIGN TABLE telemetry (device text, temp float8) SERVER log OPTIONS (topic 't', source 'command_pipeline.record');
CREATE TABLE reading (device text, temp float8, command_id uuid);
INSERT INTO record SELECT 0, i, now(), NULL, convert_to(format('{"device": "press-%s", "temp": %s}', i, 20 * i), 'UTF8'), NULL
	FROM generate_series(0, 4) i;

-- queued in the transaction that writes the row, as the pipeline's owner
SELECT hybridiot.create_pipeline('react', $$
	INSERT INTO reading SELECT device, temp,
		CASE WHEN temp > 50 THEN hybridiot.send_command(device, 'fan', '{"on": true}', server => 'gateway', ttl => '1 h') END
	FROM telemetry $$, enabled => false);
RESET ROLE;
BEGIN;
SELECT hybridiot.run_pipeline('react');
SELECT count(*) FROM hybridiot.command;
ROLLBACK;
SELECT count(*) FROM hybridiot.command;
SELECT hybridiot.run_pipeline('react');
SET ROLE regress_pipeliner;
SELECT r.device, r.temp, c.device AS commanded, c.sender, c.state FROM reading r LEFT JOIN hybridiot.command c ON c.id = r.command_id ORDER BY 1;

-- a bad record takes its command with it
INSERT INTO record VALUES (0, 5, now(), NULL, '{"device": "", "temp": 99}', NULL), (0, 6, now(), NULL, '{"device": "press-6", "temp": 99}', NULL);
SELECT hybridiot.run_pipeline('react');
SELECT count(*) FROM reading;
SELECT device, count(*) FROM hybridiot.command GROUP BY device ORDER BY device;
SELECT "offset", reason, sqlstate, message FROM hybridiot.dead_letter;

-- calls are refused: in the statement, in a function, in a trigger's function
SELECT hybridiot.create_pipeline('call', $$ SELECT hybridiot.call_device(device, 'fan', server => 'gateway') FROM telemetry $$, enabled => false);
SELECT hybridiot.run_pipeline('call');
SELECT hybridiot.create_pipeline('call_many', $$ SELECT hybridiot.call_devices(ARRAY[device], 'fan', server => 'gateway') FROM telemetry $$, enabled => false);
SELECT hybridiot.run_pipeline('call_many');
SELECT hybridiot.create_pipeline('wait', $$ SELECT hybridiot.wait_command(gen_random_uuid()) FROM telemetry $$, enabled => false);
SELECT hybridiot.run_pipeline('wait');
SELECT hybridiot.create_pipeline('wait_many', $$ SELECT hybridiot.wait_commands(ARRAY[gen_random_uuid()]) FROM telemetry $$, enabled => false);
SELECT hybridiot.run_pipeline('wait_many');
SELECT hybridiot.create_pipeline('cancel', $$ SELECT hybridiot.cancel_command(gen_random_uuid()) FROM telemetry $$, enabled => false);
SELECT hybridiot.run_pipeline('cancel');
SELECT hybridiot.create_pipeline('resolve', $$ SELECT hybridiot.resolve_command(gen_random_uuid(), 'executed', NULL) FROM telemetry $$, enabled => false);
SELECT hybridiot.run_pipeline('resolve');
CREATE TABLE watched (device text);
CREATE FUNCTION watch() RETURNS trigger LANGUAGE plpgsql AS
	$$ BEGIN PERFORM hybridiot.call_device(NEW.device, 'fan', server => 'gateway'); RETURN NEW; END $$;
CREATE TRIGGER watch AFTER INSERT ON watched FOR EACH ROW EXECUTE FUNCTION watch();
SELECT hybridiot.create_pipeline('trigger', $$ INSERT INTO watched SELECT device FROM telemetry $$, enabled => false);
SELECT hybridiot.run_pipeline('trigger');
SELECT count(*) FROM watched;

-- Reactions are the owner's: his USAGE and his grants decide, whoever runs the pipeline, and whoever owns the trigger that sends.
RESET ROLE;
SET client_min_messages = warning;
SELECT hybridiot.drop_pipeline('trigger');
CREATE ROLE regress_table_owner;
GRANT USAGE ON SCHEMA command_pipeline TO regress_table_owner;
CREATE TABLE alarm (device text);
CREATE FUNCTION alarm() RETURNS trigger LANGUAGE plpgsql AS
	$$ BEGIN PERFORM hybridiot.send_command(NEW.device, 'alarm', server => 'gateway', ttl => '1 h'); RETURN NEW; END $$;
CREATE TRIGGER alarm AFTER INSERT ON alarm FOR EACH ROW EXECUTE FUNCTION alarm();
ALTER TABLE alarm OWNER TO regress_table_owner;
ALTER FUNCTION alarm() OWNER TO regress_table_owner;
GRANT INSERT ON alarm TO regress_pipeliner;
RESET client_min_messages;
SET ROLE regress_pipeliner;
SELECT hybridiot.create_pipeline('alarm', $$ INSERT INTO alarm SELECT device FROM telemetry WHERE device ~ '^(oven|kiln)' $$, enabled => false);
RESET ROLE;
SELECT hybridiot.grant_devices('regress_pipeliner', 'gateway', 'oven-_');
SELECT hybridiot.grant_devices('regress_table_owner', 'gateway', 'kiln-_');
INSERT INTO record SELECT 1, i, now(), NULL, convert_to(format('{"device": "%s"}', d), 'UTF8'), NULL
	FROM unnest(ARRAY['oven-1', 'kiln-2']) WITH ORDINALITY AS d (d, i);
SELECT hybridiot.run_pipeline('alarm');
SELECT hybridiot.grant_devices('regress_pipeliner', 'gateway', 'kiln-2');
SELECT hybridiot.run_pipeline('alarm');
-- a trigger that lends its owner's rights commands as its owner
GRANT USAGE ON FOREIGN SERVER gateway TO regress_table_owner;
ALTER FUNCTION alarm() SECURITY DEFINER;
INSERT INTO record VALUES (1, 4, now(), NULL, '{"device": "kiln-3"}', NULL);
SELECT hybridiot.run_pipeline('alarm');
INSERT INTO record VALUES (1, 5, now(), NULL, '{"device": "oven-5"}', NULL);
SELECT hybridiot.run_pipeline('alarm');
ALTER FUNCTION alarm() SECURITY INVOKER;
REVOKE USAGE ON FOREIGN SERVER gateway FROM regress_pipeliner;
SELECT hybridiot.run_pipeline('alarm');
SELECT device, sender FROM hybridiot.command WHERE command = 'alarm' ORDER BY device;

SET client_min_messages = warning;
SELECT hybridiot.drop_pipeline(name) FROM hybridiot.pipeline;
RESET ROLE;
DROP SCHEMA command_pipeline CASCADE;
DROP SERVER gateway, log CASCADE;
DROP EXTENSION hybridiot CASCADE;
DROP OWNED BY regress_pipeliner, regress_table_owner;
DROP ROLE regress_pipeliner, regress_table_owner;
