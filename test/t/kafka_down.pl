# Brokers that are away: at the start, later, for good; and a log that has lost what was to be read next.
use strict;
use warnings;
use Hybridiot::Test;
use PostgreSQL::Test::Utils;
use Test::More;

my $kafka = kafka();
my $topic = create_topic(unique('down'), 2);
my $node = new_node('down');

broker('kafka', 'stop');
$node->safe_psql('test', <<~END);
	CREATE SERVER plant FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (bootstrap_servers '$kafka->{bootstrap}');
	CREATE FOREIGN TABLE telemetry (device text, ts timestamptz, n bigint, part int OPTIONS (metadata 'partition'), pos bigint OPTIONS (metadata 'offset'))
	  SERVER plant OPTIONS (topic '$topic', event_time 'ts');
	CREATE TABLE reading (device text, ts timestamptz, n bigint, part int, pos bigint);
	CREATE TABLE per_second (during tstzrange, n bigint);
	SELECT hybridiot.create_pipeline('readings', 'INSERT INTO reading SELECT * FROM telemetry');
	SELECT hybridiot.create_pipeline('per_second', \$\$INSERT INTO per_second SELECT hybridiot.tumble(ts, '1 s'), count(*) FROM telemetry GROUP BY 1\$\$,
	  idle_timeout => '1 s');
	END

# Away at the start.
wait_state($node, 'readings', 'retrying');
wait_state($node, 'per_second', 'retrying');
like($node->safe_psql('test', "SELECT reason FROM hybridiot.pipeline WHERE name = 'readings'"),
	qr/$topic|refused|broker/i, 'the reason says what is away');
my ($status, $out, $err) = $node->psql('test', "\\set VERBOSITY verbose\nSET statement_timeout = '2 s'; SELECT count(*) FROM telemetry");
like($err, qr/ERROR:  (57014|08001)/, 'a session that reads can be interrupted');

broker('kafka', 'start');
wait_state($node, 'readings', 'running');
fill($topic, 1000, devices => 10);
poll_is($node, 'SELECT count(*), count(DISTINCT n) FROM reading', '1000|1000', 'when it comes, all goes on by itself');

# Going away later, in both manners, while records are on their way.
for my $how ('stop', 'kill9')
{
	my $before = $node->safe_psql('test', 'SELECT count(*) FROM reading');
	broker('kafka', $how);
	wait_state($node, 'readings', 'retrying');
	wait_state($node, 'per_second', 'retrying');
	isnt($node->safe_psql('test', "SELECT coalesce(last_error, '') FROM hybridiot.stat_pipeline WHERE pipeline = 'readings'"),
		'', "$how: the last error is kept");
	broker('kafka', 'start');
	fill($topic, 1000, devices => 10, from => $before);
	my $after = $before + 1000;
	poll_is($node, 'SELECT count(*), count(DISTINCT n), count(DISTINCT (part, pos)) FROM reading',
		"$after|$after|$after", "$how: nothing is lost and nothing comes twice");
	wait_state($node, 'readings', 'running');
	wait_state($node, 'per_second', 'running');
	wait_caught_up($node, 'readings', $topic);
}
poll_is($node, 'SELECT sum(n) FROM per_second', '3000', 'windows have counted each record once');

# Retention has taken what was to be read next.
$node->safe_psql('test', "SELECT hybridiot.pause_pipeline('readings')");
poll_is($node, "SELECT count(*) FROM hybridiot.stat_worker WHERE pipeline = 'readings'", '0', 'the worker of a paused pipeline leaves');
my $next = $node->safe_psql('test', "SELECT next_offset FROM hybridiot.position WHERE pipeline = 'readings' AND partition = 0");
fill($topic, 100, devices => 10, from => 3000);
empty_topic($topic);
fill($topic, 100, devices => 10, from => 3100);
$node->safe_psql('test', "SELECT hybridiot.resume_pipeline('readings')");
wait_state($node, 'readings', 'failed');
my $first = offsets($topic)->{0}[0];
like($node->safe_psql('test', "SELECT reason FROM hybridiot.pipeline WHERE name = 'readings'"),
	qr/partition (?:0 are gone: offsets $next to @{[ $first - 1 ]}|1 are gone: offsets \d+ to \d+) are not in the log any more/, 'it stops with the exact gap');
is($node->safe_psql('test', 'SELECT count(*) FROM reading'), '3000', 'nothing was skipped in silence');
is($node->safe_psql('test', "SELECT next_offset FROM hybridiot.position WHERE pipeline = 'readings' AND partition = 0"), $next, 'and the position has not moved');
$node->safe_psql('test', "SELECT hybridiot.alter_pipeline('readings', start_at => 'earliest')");
poll_is($node, 'SELECT count(*), max(n) FROM reading', '3100|3199', 'a new start goes on behind the gap');
wait_state($node, 'readings', 'running');

finish();
