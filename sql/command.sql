-- Commands without a broker: what is refused, who may do what, what the journal takes.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS hybridiot;
CREATE ROLE regress_operator;
CREATE ROLE regress_colleague IN ROLE regress_operator;
CREATE ROLE regress_stranger;
CREATE SCHEMA AUTHORIZATION regress_operator;
GRANT pg_read_server_files TO regress_operator;
RESET client_min_messages;

-- Nobody listens at this port: what is queued stays queued.
CREATE SERVER gateway FOREIGN DATA WRAPPER hybridiot_amqp OPTIONS (host '127.0.0.1', port '1', peer 'router');
CREATE SERVER broker FOREIGN DATA WRAPPER hybridiot_amqp OPTIONS (host '127.0.0.1', port '1');
CREATE SERVER hono FOREIGN DATA WRAPPER hybridiot_amqp OPTIONS (host '127.0.0.1', port '1', peer 'hono');
CREATE SERVER records FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (transport 'table');
GRANT USAGE ON FOREIGN SERVER gateway, broker, hono, records TO regress_operator;
-- The worker is there.
DO $$ BEGIN
	FOR i IN 1 .. 600 LOOP
		EXIT WHEN EXISTS (SELECT FROM hybridiot.stat_worker WHERE kind = 'amqp');
		PERFORM pg_sleep(0.05);
	END LOOP;
END $$;
SET ROLE regress_operator;

-- no server
SELECT hybridiot.send_command('press-1', 'fan');
SELECT hybridiot.send_command('press-1', 'fan', server => 'nowhere');
SELECT hybridiot.send_command('press-1', 'fan', server => 'records');
SET hybridiot.command_server = 'gateway';

-- arguments
SELECT hybridiot.send_command(NULL, 'fan');
SELECT hybridiot.send_command('', 'fan');
SELECT hybridiot.send_command('press-1', NULL);
SELECT hybridiot.send_command('press-1', '');
SELECT hybridiot.send_command(repeat('x', 2000), 'fan');
SELECT hybridiot.send_command('press-1', 'fan', ttl => NULL);
SELECT hybridiot.send_command('press-1', 'fan', ttl => '0');
SELECT hybridiot.send_command('press-1', 'fan', ttl => '-1 s');
SELECT hybridiot.send_command('press-1', 'fan', ttl => '999 us');
SELECT hybridiot.send_command('press-1', 'fan', ttl => '50 days');
SELECT hybridiot.send_command('press-1', 'fan', ttl => '1 month');
SELECT hybridiot.send_command('press-1', 'fan', reply_within => NULL);
SELECT hybridiot.send_command('press-1', 'fan', reply_within => '-1 s');
SELECT hybridiot.send_command('press-1', 'fan', '{}', body => 'x');
SELECT hybridiot.send_command('press-1', 'fan', body => 'x', content_type => 'täxt');
SELECT hybridiot.send_command('press-1', 'fan', properties => '[1]');
SELECT hybridiot.send_command('press-1', 'fan', properties => '{"a": {"b": 1}}');
SELECT hybridiot.send_command('press-1', 'fan', properties => '{"a": []}');
SELECT hybridiot.send_command('press-1', 'fan', priority => 10);
SELECT hybridiot.send_command('press-1', 'fan', priority => -1);
SELECT hybridiot.send_command('press-1', 'fan', idempotency_key => '');
SELECT hybridiot.send_command('press-1', 'fan', mode => 'later');
SELECT hybridiot.send_command('press-1', 'fan', mode => 'direct', server => 'broker');
SELECT hybridiot.send_command('press-1', 'fan', mode => 'store', server => 'hono');
SELECT hybridiot.send_command('press-1', 'fan', to_jsonb(repeat('x', 17 * 1024 * 1024)));
SELECT hybridiot.call_device('press-1', 'fan', ttl => '0');
SELECT hybridiot.call_devices(NULL, 'fan');
SELECT hybridiot.call_devices(ARRAY['a', NULL], 'fan');
SELECT hybridiot.call_devices(ARRAY['a', 'b'], 'fan', payloads => ARRAY['{}'::jsonb]);
SELECT hybridiot.call_devices(ARRAY['a'], 'fan', payload => '{}', payloads => ARRAY['{}'::jsonb]);
SELECT * FROM hybridiot.call_devices('{}', 'fan');
SELECT hybridiot.wait_command(NULL);
SELECT hybridiot.wait_command('00000000-0000-4000-8000-000000000000', '-1 s');
SELECT hybridiot.wait_command('00000000-0000-4000-8000-000000000000');
SELECT hybridiot.wait_commands(ARRAY[NULL::uuid]);
SELECT * FROM hybridiot.wait_commands('{}');
SELECT hybridiot.cancel_command('00000000-0000-4000-8000-000000000000');
SELECT hybridiot.cancel_command(NULL);

-- times that make no sense, at every entry point; infinity is no interval at all before PostgreSQL 17
CREATE FUNCTION pg_temp.try(statement text) RETURNS text LANGUAGE plpgsql AS
	$$ BEGIN EXECUTE statement; RETURN 'yes'; EXCEPTION WHEN invalid_datetime_format THEN RETURN '22023'; WHEN OTHERS THEN RETURN SQLSTATE; END $$;
SELECT parameter || ' ' || value AS time, entry, pg_temp.try(format(template, parameter, value)) AS refused
FROM unnest(ARRAY['ttl', 'reply_within']) WITH ORDINALITY AS p (parameter, i),
	unnest(ARRAY['NULL', '''-1 us''', '''-1 s''', '''0''', '''999 us''', '''4294967296 ms''', '''1 month''', '''178000000 years''', '''infinity''', '''-infinity'''])
		WITH ORDINALITY AS v (value, j),
	(VALUES ('send', 'SELECT hybridiot.send_command(''press-1'', ''time'', %s => %s)'),
		('call', 'SELECT hybridiot.call_device(''press-1'', ''time'', %s => %s)'),
		('calls', 'SELECT hybridiot.call_devices(ARRAY[''press-1''], ''time'', %s => %s)'),
		('insert', 'INSERT INTO hybridiot.command (device, command, %s) VALUES (''press-1'', ''time'', %s)')) AS e (entry, template)
WHERE parameter = 'ttl' OR value NOT IN ('''0''', '''999 us''')
ORDER BY i, j \crosstabview time entry refused
-- but 0, which asks for no answer; what is more than that is more
BEGIN;
SELECT hybridiot.send_command('press-1', 'time', ttl => '1 ms', reply_within => t) IS NOT NULL AS sent FROM unnest(ARRAY['0', '1 us']::interval[]) AS t;
INSERT INTO hybridiot.command (device, command, ttl, reply_within) VALUES ('press-1', 'time', '1.5 ms', '0.7 ms');
SELECT ttl, reply_within FROM hybridiot.command ORDER BY reply_within;
ROLLBACK;
DROP FUNCTION pg_temp.try(text);

-- a command is queued at COMMIT, and never by ROLLBACK
BEGIN;
SELECT hybridiot.send_command('press-1', 'rolled back') AS id \gset
SELECT hybridiot.wait_command(:'id');
ROLLBACK;
BEGIN;
SELECT hybridiot.send_command('press-1', 'rolled back') AS id \gset
SELECT hybridiot.cancel_command(:'id');
ROLLBACK;
SELECT count(*) FROM hybridiot.command;
SELECT hybridiot.send_command('press-1', 'fan', '{"on": true}', ttl => '1 h', properties => '{"a": 1}', priority => 7) AS id \gset
SELECT device, command, sender, server, mode, state, payload, properties, priority, ttl, reply_within,
	expires_at - queued_at AS lives, sent_at, answer_by FROM hybridiot.command;
SELECT state, cause FROM hybridiot.command_event;
SELECT state FROM hybridiot.wait_command(:'id', '100 ms');
SELECT hybridiot.cancel_command(:'id');
SELECT state FROM hybridiot.wait_command(:'id');
SELECT state FROM hybridiot.command_event ORDER BY at;

-- INSERT does the same
INSERT INTO hybridiot.command (device, command, payload, ttl) VALUES ('press-2', 'fan', '{"on": false}', '1 h')
	RETURNING device, sender, server, mode, state, ttl, reply_within, id IS NOT NULL AS has_id;
INSERT INTO hybridiot.command (device, command, mode, server, ttl) SELECT 'press-' || i, 'bulk', 'store', 'broker', '1 h'
	FROM generate_series(1, 3) i;
SELECT count(*), min(state) FROM hybridiot.command WHERE command = 'bulk';
INSERT INTO hybridiot.command (device, command, ttl) VALUES ('press-2', 'fan', '0');
INSERT INTO hybridiot.command (device, command, ttl) VALUES ('press-2', 'fan', NULL);
INSERT INTO hybridiot.command (device, command, mode, server) VALUES ('press-2', 'fan', 'direct', 'broker');

-- and nothing else can be written
INSERT INTO hybridiot.command (id, device, command) VALUES (gen_random_uuid(), 'press-2', 'forged');
INSERT INTO hybridiot.command (device, command, state) VALUES ('press-2', 'forged', 'succeeded');
INSERT INTO hybridiot.command (device, command, sender) VALUES ('press-2', 'forged', 'postgres');
INSERT INTO hybridiot.command (device, command, queued_at) VALUES ('press-2', 'forged', now());
INSERT INTO hybridiot.command (device, command, result) VALUES ('press-2', 'forged', '1');
UPDATE hybridiot.command SET state = 'succeeded';
DELETE FROM hybridiot.command;
TRUNCATE hybridiot.command;
INSERT INTO hybridiot.command (device, command) VALUES ('press-2', 'fan') ON CONFLICT (id) DO UPDATE SET state = 'sent';
INSERT INTO hybridiot.command (device, command, ttl) VALUES ('press-2', 'fan', '1 h') ON CONFLICT DO NOTHING;
SELECT id AS any FROM hybridiot.command LIMIT 1 \gset
MERGE INTO hybridiot.command c USING (SELECT 1) s ON c.id = :'any' WHEN MATCHED THEN UPDATE SET state = 'sent';
MERGE INTO hybridiot.command c USING (SELECT 1) s ON c.id = :'any' WHEN MATCHED THEN DELETE;
MERGE INTO hybridiot.command c USING (SELECT 1) s ON false WHEN NOT MATCHED THEN INSERT (id, device, command) VALUES (gen_random_uuid(), 'press-2', 'forged');
COPY hybridiot.command (id, device, command) FROM '/dev/null';
COPY hybridiot.command (device, command, ttl) FROM '/dev/null';
SELECT FROM hybridiot.command FOR UPDATE;
SELECT FROM hybridiot.command FOR KEY SHARE;
BEGIN;
LOCK TABLE hybridiot.command IN SHARE MODE;
ROLLBACK;
BEGIN;
LOCK TABLE hybridiot.command IN ROW EXCLUSIVE MODE;
ROLLBACK;
CREATE TABLE regress_operator.refers (id uuid REFERENCES hybridiot.command);
CREATE RULE mine AS ON INSERT TO hybridiot.command DO INSTEAD NOTHING;
CREATE POLICY mine ON hybridiot.command USING (true);
ALTER TABLE hybridiot.command DISABLE ROW LEVEL SECURITY;
CREATE INDEX mine ON hybridiot.command (device);
CREATE TEMP TABLE child () INHERITS (hybridiot.command);
SET session_replication_role = replica;
CREATE TRIGGER mine BEFORE INSERT ON hybridiot.command FOR EACH ROW EXECUTE FUNCTION hybridiot.command_insert();
ALTER TABLE hybridiot.command DISABLE TRIGGER ALL;
INSERT INTO hybridiot.command_event VALUES (NULL, now(), 'sent');
INSERT INTO hybridiot.command_origin (command_id) VALUES (NULL);
SELECT * FROM hybridiot.command_origin;
SELECT * FROM hybridiot.reply_address;
SELECT nextval('hybridiot.command_epoch');
SELECT hybridiot.command_insert();

-- idempotency keys
SELECT hybridiot.send_command('press-1', 'once', '{"a": 1}', ttl => '1 h', idempotency_key => 'k') AS id \gset
SELECT hybridiot.send_command('press-1', 'once', '{"a": 1}', ttl => '1 h', idempotency_key => 'k') = :'id' AS same;
SELECT hybridiot.send_command('press-1', 'once', '{"a": 2}', ttl => '1 h', idempotency_key => 'k');
SELECT hybridiot.send_command('press-1', 'once', '{"a": 1}', ttl => '1 h', idempotency_key => 'k', server => 'broker') = :'id' AS same;
SELECT hybridiot.send_command('press-2', 'once', '{"a": 1}', ttl => '1 h', idempotency_key => 'k') = :'id' AS same;
INSERT INTO hybridiot.command (device, command, payload, ttl, idempotency_key) VALUES ('press-1', 'once', '{"a": 1}', '1 h', 'k');
INSERT INTO hybridiot.command (device, command, payload, ttl, idempotency_key) VALUES ('press-1', 'once', '{"a": 3}', '1 h', 'k');
INSERT INTO hybridiot.command (device, command, payload, ttl, idempotency_key) VALUES ('press-1', 'once', '{"a": 1}', '1 h', 'l');
SELECT count(*) FROM hybridiot.command WHERE command = 'once';

-- who sees what: the sender and his members
RESET ROLE;
SET ROLE regress_colleague;
SELECT count(*) > 5 AS sees FROM hybridiot.command;
SELECT count(*) > 5 AS sees FROM hybridiot.command_event;
SELECT state FROM hybridiot.wait_command(:'id', '0');
SELECT hybridiot.cancel_command(:'id');
RESET ROLE;
SET ROLE regress_stranger;
SELECT count(*) FROM hybridiot.command;
SELECT count(*) FROM hybridiot.command_event;
SELECT count(*) FROM hybridiot.stat_connection;

-- without USAGE on the server: 42501 from everything
SELECT hybridiot.send_command('press-1', 'fan');
SELECT hybridiot.call_device('press-1', 'fan');
SELECT hybridiot.call_devices(ARRAY['press-1'], 'fan');
INSERT INTO hybridiot.command (device, command) VALUES ('press-1', 'fan');
\set VERBOSITY sqlstate
SELECT hybridiot.wait_command(:'id');
SELECT hybridiot.cancel_command(:'id');
\set VERBOSITY default
RESET ROLE;
GRANT regress_operator TO regress_stranger;
REVOKE USAGE ON FOREIGN SERVER gateway FROM regress_operator;
SET ROLE regress_stranger;
SELECT hybridiot.wait_command(:'id');
SELECT hybridiot.wait_commands(ARRAY[:'id'::uuid]);
SELECT hybridiot.cancel_command(:'id');
RESET ROLE;

-- what is restored comes from nowhere and is in doubt; what was final stays
INSERT INTO hybridiot.command (id, device, command, sender, server, mode, state, queued_at, expires_at)
	SELECT ('00000000-0000-4000-8000-00000000000' || i)::uuid, 'old', 'old', 'somebody', 'gateway', 'direct', s, now(), now()
	FROM unnest(ARRAY['queued', 'sending', 'sent', 'accepted', 'succeeded', 'timed_out']) WITH ORDINALITY AS s (s, i);
INSERT INTO hybridiot.command (id, device, command, sender, server, mode, state, queued_at, expires_at)
	VALUES (gen_random_uuid(), 'old', 'old', 'somebody', 'gateway', 'direct', 'lost', now(), now());
SELECT s AS was, c.state FROM unnest(ARRAY['queued', 'sending', 'sent', 'accepted', 'succeeded', 'timed_out']) WITH ORDINALITY AS s (s, i)
	CROSS JOIN LATERAL hybridiot.wait_command(('00000000-0000-4000-8000-00000000000' || i)::uuid, '60 s') AS c;

-- what a person found out about those: noted at once, whatever becomes of the transaction; the state stays
UPDATE hybridiot.command SET sender = 'regress_operator' WHERE device = 'old';
GRANT USAGE ON FOREIGN SERVER gateway TO regress_operator;
REVOKE regress_operator FROM regress_stranger;
SET ROLE regress_colleague;
SELECT hybridiot.resolve_command(NULL, 'executed', 'x');
SELECT hybridiot.resolve_command('00000000-0000-4000-8000-000000000001', NULL, 'x');
SELECT hybridiot.resolve_command('00000000-0000-4000-8000-000000000001', 'done', 'x');
SELECT hybridiot.resolve_command('00000000-0000-4000-8000-000000000001', 'executed', '');
SELECT hybridiot.resolve_command('00000000-0000-4000-8000-000000000001', 'executed', repeat('x', 1025));
SELECT hybridiot.resolve_command('00000000-0000-4000-8000-000000000000', 'executed', 'x');
SELECT hybridiot.resolve_command('00000000-0000-4000-8000-000000000005', 'executed', 'x');
BEGIN;
SELECT hybridiot.send_command('press-1', 'rolled back') AS own \gset
SELECT hybridiot.resolve_command(:'own', 'executed', 'x');
ROLLBACK;
BEGIN;
SELECT hybridiot.resolve_command('00000000-0000-4000-8000-000000000001', 'executed', 'the press is down: looked at it');
ROLLBACK;
SELECT state, resolution, resolved_by, resolved_at > queued_at AS later FROM hybridiot.command WHERE id = '00000000-0000-4000-8000-000000000001';
RESET ROLE;
SET ROLE regress_operator;
-- said again; said by somebody else; corrected, twice
SELECT hybridiot.resolve_command('00000000-0000-4000-8000-000000000006', 'not_executed', NULL);
SELECT hybridiot.resolve_command('00000000-0000-4000-8000-000000000006', 'not_executed', NULL);
SELECT hybridiot.resolve_command('00000000-0000-4000-8000-000000000001', 'executed', 'the press is down: looked at it');
SELECT hybridiot.resolve_command('00000000-0000-4000-8000-000000000001', 'not_executed', 'it was the other press');
SELECT hybridiot.resolve_command('00000000-0000-4000-8000-000000000001', 'not_executed', 'it was the other press');
SELECT id, state, resolution, resolved_by FROM hybridiot.command WHERE resolution IS NOT NULL ORDER BY id;
SELECT right(command_id::text, 1) AS id, state, cause FROM hybridiot.command_event WHERE cause LIKE 'resolved%' ORDER BY command_id, at;
RESET ROLE;
SET ROLE regress_stranger;
SELECT hybridiot.resolve_command('00000000-0000-4000-8000-000000000001', 'executed', 'x');
RESET ROLE;
UPDATE hybridiot.command SET sender = 'somebody' WHERE device = 'old';
REVOKE USAGE ON FOREIGN SERVER gateway FROM regress_operator;

-- a dropped role's commands are seen by superusers only, and nothing fails
SELECT DISTINCT hybridiot.role_sees('somebody');
SET ROLE regress_operator;
SELECT hybridiot.role_sees('somebody'), hybridiot.role_sees('regress_operator'), hybridiot.role_sees(NULL);
RESET ROLE;

-- every column that the manual names, and no other
SELECT string_agg(attname, ', ' ORDER BY attnum) FROM pg_attribute WHERE attrelid = 'hybridiot.command'::regclass AND attnum > 0;
SELECT string_agg(attname, ', ' ORDER BY attnum) FROM pg_attribute WHERE attrelid = 'hybridiot.command_event'::regclass AND attnum > 0;
SELECT string_agg(attname, ', ' ORDER BY attnum) FROM pg_attribute WHERE attrelid = 'hybridiot.stat_connection'::regclass AND attnum > 0;

DROP SERVER gateway, broker, hono, records;
RESET hybridiot.command_server;
SET client_min_messages = warning;
DROP EXTENSION hybridiot CASCADE;
DROP SCHEMA regress_operator;
DROP ROLE regress_stranger, regress_colleague, regress_operator;
