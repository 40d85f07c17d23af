# DROP EXTENSION, DROP DATABASE and DROP OWNED while workers are in the middle of transactions, with locks on some of what is to be dropped.
use strict;
use warnings;
use Hybridiot::Test;
use Test::More;

my $node = new_node('busy', extension => 0);
for my $turn (1 .. 3)
{
	$node->safe_psql('test', <<~'END');
		SET client_min_messages = warning;
		CREATE EXTENSION hybridiot;
		CREATE SERVER log FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (transport 'table');
		CREATE TABLE log (partition int, "offset" bigint, "timestamp" timestamptz, key bytea, value bytea, headers jsonb,
			PRIMARY KEY (partition, "offset"));
		INSERT INTO log SELECT 0, n, now(), NULL, convert_to(format('{"n": %s}', n), 'UTF8') FROM generate_series(0, 9999) n;
		CREATE FOREIGN TABLE numbers (n int) SERVER log OPTIONS (topic 't', source 'public.log');
		CREATE TABLE number (n int);
		CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_catalog.pg_sleep(0.02); RETURN NULL; END $$;
		CREATE TRIGGER slow AFTER INSERT ON number EXECUTE FUNCTION slow();
		SELECT hybridiot.create_pipeline('p' || i, 'INSERT INTO number SELECT n FROM numbers', batch_rows => 10)
		FROM generate_series(1, 4) i;
		END
	poll_is($node, 'SELECT bool_and(batches > 3) FROM hybridiot.stat_pipeline', 't', 'workers are busy');
	my ($status, $out, $error) = $node->psql('test', 'SET client_min_messages = warning; DROP EXTENSION hybridiot CASCADE');
	is($error, '', 'DROP EXTENSION gets no deadlock with them');
	$node->safe_psql('test', 'DROP TABLE log, number; DROP FUNCTION slow');
}
is($node->safe_psql('postgres', q(SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'hybridiot%' AND datname = 'test')),
	'0', 'no worker is left');
# ---- DROP DATABASE and DROP OWNED while workers are in the middle of a batch

my $busy = q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'hybridiot pipeline' AND wait_event = 'PgSleep' AND datname = };

sub busy_database
{
	my $database = shift;
	$node->safe_psql('postgres', "CREATE DATABASE $database");
	$node->safe_psql($database, <<~"END");
		SET client_min_messages = warning;
		CREATE EXTENSION hybridiot;
		CREATE SERVER log FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (transport 'table');
		CREATE TABLE log (partition int, "offset" bigint, "timestamp" timestamptz, key bytea, value bytea, headers jsonb);
		INSERT INTO log SELECT 0, n, now(), NULL, convert_to(format('{"n": %s}', n), 'UTF8') FROM generate_series(0, 99) n;
		CREATE FOREIGN TABLE numbers (n int) SERVER log OPTIONS (topic 't', source 'public.log');
		CREATE TABLE number (n int);
		CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_catalog.pg_sleep(600); RETURN NULL; END';
		CREATE TRIGGER slow AFTER INSERT ON number EXECUTE FUNCTION slow();
		CREATE ROLE owner_of_$database LOGIN;
		GRANT SELECT ON numbers, log TO owner_of_$database;
		GRANT INSERT ON number TO owner_of_$database;
		SELECT hybridiot.create_pipeline('p', 'INSERT INTO number SELECT n FROM numbers');
		SELECT hybridiot.alter_pipeline('p', owner => 'owner_of_$database');
		END
	poll_is($node, "$busy '$database'", '1', "a batch of $database lasts", 'postgres');
	return;
}

busy_database('dropped');
my $began = time;
$node->safe_psql('postgres', 'DROP DATABASE dropped');
cmp_ok(time - $began, '<', 5, 'DROP DATABASE ends the worker, and does not wait for its batch');

busy_database('disowned');
$began = time;
$node->safe_psql('disowned', 'DROP OWNED BY owner_of_disowned');
cmp_ok(time - $began, '<', 5, 'DROP OWNED does not wait for it, either');
my $pid = $node->safe_psql('postgres', q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'hybridiot pipeline' AND datname = 'disowned'});
$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid, 5000)");
poll_is($node, 'SELECT state, reason FROM hybridiot.pipeline', 'failed|permission denied for table log',
	'without its rights the pipeline stops, with the reason', 'disowned');
is($node->safe_psql('disowned', 'SELECT count(*) FROM number'), 0, 'nothing of the batch is left');

finish();
