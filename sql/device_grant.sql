-- Device grants: which devices of a server a role may command, at every entry point.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS hybridiot;
CREATE ROLE regress_grant_owner;
CREATE ROLE regress_grant_press;
CREATE ROLE regress_grant_member IN ROLE regress_grant_press;
CREATE ROLE regress_grant_heir NOINHERIT IN ROLE regress_grant_press;
CREATE ROLE regress_grant_nobody;
RESET client_min_messages;
GRANT USAGE ON FOREIGN DATA WRAPPER hybridiot_amqp, hybridiot_kafka TO regress_grant_owner;
SET ROLE regress_grant_owner;
-- Nobody listens at this port: what is queued stays queued.
CREATE SERVER gateway FOREIGN DATA WRAPPER hybridiot_amqp OPTIONS (host '127.0.0.1', port '1', peer 'router');
CREATE SERVER other FOREIGN DATA WRAPPER hybridiot_amqp OPTIONS (host '127.0.0.1', port '1', peer 'router');
CREATE SERVER records FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (transport 'table');
GRANT USAGE ON FOREIGN SERVER gateway, other TO regress_grant_press, regress_grant_nobody, regress_grant_heir;
RESET ROLE;
DO $$ BEGIN
	FOR i IN 1 .. 600 LOOP
		EXIT WHEN EXISTS (SELECT FROM hybridiot.stat_worker WHERE kind = 'amqp');
		PERFORM pg_sleep(0.05);
	END LOOP;
END $$;
SET hybridiot.command_server = 'gateway';

-- who may grant: the server's owner; and what
SET ROLE regress_grant_press;
SELECT hybridiot.grant_devices('regress_grant_press', 'gateway', '%');
SELECT hybridiot.revoke_devices('regress_grant_press', 'gateway', '%');
INSERT INTO hybridiot.device_grant VALUES ('regress_grant_press', 'gateway', '%');
DELETE FROM hybridiot.device_grant;
SET ROLE regress_grant_owner;
SELECT hybridiot.grant_devices(NULL, 'gateway', '%');
SELECT hybridiot.grant_devices('regress_grant_press', NULL, '%');
SELECT hybridiot.grant_devices('regress_grant_press', 'gateway', NULL);
SELECT hybridiot.grant_devices('regress_grant_press', 'gateway', '');
SELECT hybridiot.grant_devices('regress_grant_press', 'gateway', repeat('x', 1025));
SELECT hybridiot.grant_devices('regress_grant_press', 'gateway', 'press\');
SELECT hybridiot.grant_devices('regress_grant_press', 'gateway', 'press\\\');
SELECT hybridiot.grant_devices('regress_grant_press', 'nowhere', '%');
SELECT hybridiot.grant_devices('regress_grant_press', 'records', '%');
SELECT hybridiot.grant_devices('regress_grant_missing', 'gateway', '%');
SELECT hybridiot.grant_devices('-', 'gateway', '%');
SELECT hybridiot.grant_devices(0, 'gateway', '%');
SELECT hybridiot.revoke_devices('regress_grant_press', 'gateway', 'press-%');
SELECT * FROM hybridiot.device_grant;

-- without grants every role with USAGE commands every device
SET ROLE regress_grant_nobody;
SELECT hybridiot.send_command('press-1', 'fan', ttl => '1 h') IS NOT NULL AS sent;
SET ROLE regress_grant_owner;
SELECT hybridiot.grant_devices('regress_grant_press', 'gateway', 'press-_');
SELECT hybridiot.grant_devices('regress_grant_press', 'gateway', 'press-_');
SELECT hybridiot.grant_devices('regress_grant_press', 'gateway', 'Über\_%');
SET ROLE regress_grant_nobody;
SELECT * FROM hybridiot.device_grant ORDER BY pattern COLLATE "C";
SELECT hybridiot.send_command('press-1', 'fan', ttl => '1 h');
SELECT hybridiot.send_command('press-1', 'fan', server => 'other', ttl => '1 h') IS NOT NULL AS sent;

-- patterns are LIKE's: characters, not bytes; case counts
RESET ROLE;
CREATE FUNCTION try(statement text) RETURNS text LANGUAGE plpgsql AS
	$$ BEGIN EXECUTE statement; RETURN 'yes'; EXCEPTION WHEN OTHERS THEN RETURN SQLSTATE; END $$;
SET ROLE regress_grant_press;
SELECT device, try(format('SELECT hybridiot.send_command(%L, ''fan'', ttl => ''1 h'')', device)) AS may
FROM unnest(ARRAY['press-1', 'press-ü', 'press-', 'press-12', 'Press-1', ' press-1', 'Über_1', 'Über_', 'ÜberX1', 'über_1']) AS device;
RESET ROLE;

-- role by entry point: one by one, in bulk, through a view of somebody else, on what is queued already
CREATE VIEW journal AS SELECT device, command, ttl FROM hybridiot.command;
GRANT SELECT, INSERT ON journal TO PUBLIC;
CREATE FUNCTION definer(device text) RETURNS uuid SECURITY DEFINER LANGUAGE sql AS
	$$ SELECT hybridiot.send_command(device, 'definer', ttl => '1 h') $$;
ALTER FUNCTION definer(text) OWNER TO regress_grant_press;
CREATE TABLE entry (name text, statement text);
INSERT INTO entry VALUES
	('1 send', $$ SELECT hybridiot.send_command('DEVICE', 'matrix', ttl => '1 h') $$),
	('2 call', $$ SELECT hybridiot.call_device('DEVICE', 'matrix', ttl => '1 ms') $$),
	('3 calls', $$ SELECT hybridiot.call_devices(ARRAY['press-2', 'DEVICE'], 'matrix', ttl => '1 ms') $$),
	('4 insert', $$ INSERT INTO hybridiot.command (device, command, ttl) SELECT 'DEVICE', 'matrix', '1 h' $$),
	('5 view', $$ INSERT INTO journal (device, command, ttl) VALUES ('DEVICE', 'matrix', '1 h') $$),
	('6 definer', $$ SELECT definer('DEVICE') $$);
GRANT SELECT ON entry TO PUBLIC;
CREATE TABLE outcome (role name DEFAULT current_user, entry text, may text);
GRANT SELECT, INSERT ON outcome TO PUBLIC;
PREPARE attempt AS INSERT INTO outcome (entry, may)
	SELECT d || ' ' || name, try(replace(statement, 'DEVICE', d)) FROM entry, unnest(ARRAY['press-1', 'oven-1']) AS d;
SET ROLE regress_grant_owner;
EXECUTE attempt;
SET ROLE regress_grant_press;
EXECUTE attempt;
SET ROLE regress_grant_member;
EXECUTE attempt;
SET ROLE regress_grant_heir;
EXECUTE attempt;
SET ROLE regress_grant_nobody;
EXECUTE attempt;
RESET ROLE;
EXECUTE attempt;
SELECT entry, CASE role WHEN current_user THEN 'superuser' ELSE replace(role, 'regress_grant_', '') END AS role, may FROM outcome
ORDER BY entry COLLATE "C", role <> current_user, role COLLATE "C" \crosstabview entry role may
-- what was let in has the caller as its sender, but for the function that lends its owner's rights
SELECT DISTINCT CASE sender WHEN current_user THEN 'superuser' ELSE sender END AS sender, command, device FROM hybridiot.command
WHERE command IN ('matrix', 'definer') AND state = 'queued' ORDER BY 1, 2, 3;

-- what is queued already: without the grant its sender has no hand on it any more
SET ROLE regress_grant_press;
SELECT hybridiot.send_command('press-3', 'later', ttl => '1 h') AS id \gset
SET ROLE regress_grant_owner;
SELECT hybridiot.grant_devices('regress_grant_nobody', 'gateway', 'oven-%');
SELECT hybridiot.revoke_devices('regress_grant_press', 'gateway', 'press-_');
SET ROLE regress_grant_press;
SELECT hybridiot.wait_command(:'id', '0');
SELECT hybridiot.wait_commands(ARRAY[:'id'::uuid], '0');
SELECT hybridiot.cancel_command(:'id');
SELECT hybridiot.resolve_command(:'id', 'executed', NULL);
SELECT state FROM hybridiot.command WHERE id = :'id';
SET ROLE regress_grant_owner;
SELECT hybridiot.grant_devices('regress_grant_press', 'gateway', '%');
SET ROLE regress_grant_press;
SELECT hybridiot.cancel_command(:'id');
-- one's own transaction
RESET ROLE;
BEGIN;
SELECT hybridiot.revoke_devices('regress_grant_press', 'gateway', '%');
SET LOCAL ROLE regress_grant_press;
SELECT try($$ SELECT hybridiot.send_command('press-1', 'fan', ttl => '1 h') $$);
ROLLBACK;
SET ROLE regress_grant_press;
SELECT try($$ SELECT hybridiot.send_command('press-1', 'fan', ttl => '1 h') $$);
RESET ROLE;
-- rows written by hand, as a restore does
BEGIN;
DELETE FROM hybridiot.device_grant;
COPY hybridiot.device_grant FROM stdin;
regress_grant_press	gateway	oven-%
\.
SET LOCAL ROLE regress_grant_press;
SELECT try($$ SELECT hybridiot.send_command('press-1', 'fan', ttl => '1 h') $$), try($$ SELECT hybridiot.send_command('oven-1', 'fan', ttl => '1 h') $$);
ROLLBACK;

-- names change: grants follow
ALTER ROLE regress_grant_press RENAME TO regress_grant_punch;
ALTER SERVER gateway RENAME TO gate;
SELECT * FROM hybridiot.device_grant ORDER BY role, pattern COLLATE "C";
SET hybridiot.command_server = 'gate';
SET ROLE regress_grant_member;
SELECT try($$ SELECT hybridiot.send_command('press-1', 'fan', ttl => '1 h') $$) AS member;
SET ROLE regress_grant_nobody;
SELECT try($$ SELECT hybridiot.send_command('press-1', 'fan', ttl => '1 h') $$) AS nobody;
RESET ROLE;
-- and go with a role, or with all that it owns and may
DROP OWNED BY regress_grant_nobody;
SELECT DISTINCT role FROM hybridiot.device_grant;
BEGIN;
CREATE ROLE regress_grant_passing;
SELECT hybridiot.grant_devices('regress_grant_passing', 'gate', 'x');
SAVEPOINT before;
DROP ROLE regress_grant_passing;
SELECT role FROM hybridiot.device_grant WHERE pattern = 'x';
ROLLBACK TO before;
SELECT role FROM hybridiot.device_grant WHERE pattern = 'x';
DROP ROLE regress_grant_punch;
ROLLBACK;
-- the last one
SELECT hybridiot.revoke_devices('regress_grant_punch', 'gate', 'Über\_%');
SELECT hybridiot.revoke_devices('regress_grant_punch', 'gate', '%');
-- and with the server
SELECT hybridiot.grant_devices('regress_grant_punch', 'gate', 'a'), hybridiot.grant_devices('regress_grant_punch', 'other', 'b');
DO $$ BEGIN EXECUTE 'DROP SERVER gate CASCADE'; END $$;
SELECT server FROM hybridiot.device_grant;
SET client_min_messages = warning;
DROP OWNED BY regress_grant_owner CASCADE;
SELECT server FROM hybridiot.device_grant;

DEALLOCATE attempt;
RESET hybridiot.command_server;
DROP VIEW journal;
DROP TABLE entry, outcome;
DROP FUNCTION try(text), definer(text);
DROP EXTENSION hybridiot CASCADE;
DROP OWNED BY regress_grant_punch, regress_grant_member, regress_grant_heir, regress_grant_nobody CASCADE;
DROP ROLE regress_grant_owner, regress_grant_punch, regress_grant_member, regress_grant_heir, regress_grant_nobody;
