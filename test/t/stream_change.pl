# Columns of a stream change while records of it are on their way: the batch that was decoded for the old ones is never
# run with the new ones.
use strict;
use warnings;
use Hybridiot::Test;
use Test::More;

my $node = new_node('change');

# Every other record is bad, so that a batch takes several transactions, and each of them a while.
$node->safe_psql('test', <<~'END');
	CREATE SERVER log FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (transport 'table');
	CREATE TABLE log (partition int, "offset" bigint, "timestamp" timestamptz, key bytea, value bytea, headers jsonb);
	INSERT INTO log SELECT 0, n, now(), NULL, convert_to(format('{"n": %s}', n), 'UTF8') FROM generate_series(0, 149) n;
	CREATE FOREIGN TABLE numbers (n int) SERVER log OPTIONS (topic 't', source 'public.log');
	CREATE TABLE even (n text);
	CREATE FUNCTION check_even() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		PERFORM pg_catalog.pg_sleep(0.02);
		IF NEW.n::int % 2 = 1 THEN RAISE 'odd'; END IF;
		RETURN NEW;
	END $$;
	CREATE TRIGGER check_even BEFORE INSERT ON even FOR EACH ROW EXECUTE FUNCTION check_even();
	SELECT hybridiot.create_pipeline('even', 'INSERT INTO even SELECT n FROM numbers');
	END

for my $change ('ALTER n TYPE text', 'ADD more text', 'DROP more', 'ALTER n TYPE bigint')
{
	poll_is($node, "SELECT DISTINCT wait_event FROM pg_stat_activity WHERE backend_type = 'hybridiot pipeline'", 'PgSleep',
		'a batch is being applied');
	$node->safe_psql('test', "ALTER FOREIGN TABLE numbers $change");
	pass("$change, meanwhile");
}
poll_is($node, "SELECT next_offset FROM hybridiot.position WHERE pipeline = 'even'", '150', 'all was read');
is($node->safe_psql('test', 'SELECT count(*), count(DISTINCT n), sum(n::int) FROM even'), '75|75|5550', 'every good record once');
is($node->safe_psql('test', 'SELECT count(*), count(DISTINCT "offset"), min(reason), max(reason) FROM hybridiot.dead_letter'),
	'75|75|rejected|rejected', 'every bad one, too');
wait_state($node, 'even', 'running');
finish();
