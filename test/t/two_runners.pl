# Two who run one pipeline at once: the compare-and-set of positions lets one of them through. Without preloading nobody
# knows of the other, so it is the only fence.
use strict;
use warnings;
use Hybridiot::Test;
use PostgreSQL::Test::Utils;
use Test::More;

my $kafka = kafka();
my $topic = create_topic(unique('two'), 2);
my $node = new_node('two', preload => 0);
$node->safe_psql('test', <<~"END");
	CREATE SERVER plant FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (bootstrap_servers '$kafka->{bootstrap}');
	CREATE FOREIGN TABLE telemetry (n bigint, part int OPTIONS (metadata 'partition'), pos bigint OPTIONS (metadata 'offset'))
	  SERVER plant OPTIONS (topic '$topic');
	CREATE TABLE reading (n bigint, part int, pos bigint);
	SELECT hybridiot.create_pipeline('readings', 'INSERT INTO reading SELECT * FROM telemetry', batch_rows => 100);
	END

# Both find no position at all; then both find the same one.
my $count = 0;
for my $round ('first positions', 'positions that move')
{
	fill($topic, 1000, from => $count);
	$count += 1000;
	my $one = $node->background_psql('test', on_error_stop => 0);
	my $two = $node->background_psql('test', on_error_stop => 0);
	$one->query_safe('BEGIN');
	is($one->query_safe("SELECT hybridiot.run_pipeline('readings')"), 1000, "$round: the first one reads");
	$two->query_until(qr/started/, "\\echo started\nSELECT hybridiot.run_pipeline('readings');\n");
	poll_is($node, "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'", '1', "$round: the second one meets it");
	$one->query_safe('COMMIT');
	$one->quit;
	poll_is($node, "SELECT count(*) FROM pg_stat_activity WHERE state <> 'idle' AND pid <> pg_backend_pid() AND backend_type = 'client backend'", '0', "$round: both are done");
	$two->quit;
	like($two->{stderr}, qr/positions of pipeline "readings" were moved by somebody else/, "$round: the second one is told");
	is($node->safe_psql('test', 'SELECT count(*), count(DISTINCT (part, pos)), count(DISTINCT n) FROM reading'),
		"$count|$count|$count", "$round: each record is there once");
}
is($node->safe_psql('test', "SELECT hybridiot.run_pipeline('readings')"), '0', 'nothing is left to be done');
finish();
