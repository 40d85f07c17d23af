# A worker that was taken for dead wakes up after its successor has done its work: the compare-and-set of positions
# keeps it out. The successor's part is played by hand, in one transaction: the same records, the same positions.
use strict;
use warnings;
use Hybridiot::Test;
use PostgreSQL::Test::Utils;
use Test::More;

my $kafka = kafka();
my $topic = create_topic(unique('overtaken'), 2);
my $node = new_node('overtaken');
$node->safe_psql('test', <<~"END");
	CREATE SERVER plant FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (bootstrap_servers '$kafka->{bootstrap}');
	CREATE FOREIGN TABLE telemetry (n bigint, part int OPTIONS (metadata 'partition'), pos bigint OPTIONS (metadata 'offset'))
	  SERVER plant OPTIONS (topic '$topic');
	CREATE TABLE reading (n bigint, part int, pos bigint);
	CREATE TABLE gate ();
	CREATE FUNCTION wait_at_gate() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN LOCK TABLE public.gate IN ACCESS SHARE MODE; RETURN NULL; END';
	CREATE TRIGGER wait_at_gate AFTER INSERT ON reading EXECUTE FUNCTION wait_at_gate();
	SELECT hybridiot.create_pipeline('readings', 'INSERT INTO reading SELECT * FROM telemetry');
	END
fill($topic, 1000);
wait_caught_up($node, 'readings', $topic);

# The worker has inserted its rows, and not yet moved its positions.
my $keeper = $node->background_psql('test');
$keeper->query_safe('BEGIN; LOCK TABLE gate');
fill($topic, 1000, from => 1000);
poll_is($node, "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'hybridiot pipeline' AND wait_event_type = 'Lock'", '1',
	'the worker is in the middle of a batch');
$node->safe_psql('test', q(
	BEGIN;
	SET LOCAL session_replication_role = replica;
	INSERT INTO reading SELECT * FROM telemetry t
		WHERE pos >= (SELECT next_offset FROM hybridiot.pipeline_position p WHERE p.partition = t.part);
	UPDATE hybridiot.pipeline_position SET next_offset = 1 + (SELECT max(pos) FROM reading WHERE part = partition);
	COMMIT));
is($node->safe_psql('test', 'SELECT count(*), count(DISTINCT n) FROM reading'), '2000|2000', 'its successor has done its work');
$keeper->query_safe('COMMIT');
$keeper->quit;

poll_is($node, "SELECT retries > 0 AND last_error LIKE 'positions of pipeline \"readings\" were moved by somebody else%' FROM hybridiot.stat_pipeline",
	't', 'the worker is kept out, and says why');
is($node->safe_psql('test', 'SELECT count(*), count(DISTINCT n) FROM reading'), '2000|2000', 'nothing is doubled');
fill($topic, 1000, from => 2000);
poll_is($node, 'SELECT count(*), count(DISTINCT n) FROM reading', '3000|3000', 'it goes on from where its successor left: each record is there once');
finish();
