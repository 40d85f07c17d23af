# Leaders move from broker to broker, and brokers go and come back: reconnect, and nothing else. One real broker leads
# everything for ever, so librdkafka's own mock cluster stands in (test/broker/mock.c).
use strict;
use warnings;
use Hybridiot::Test;
use IPC::Run;
use PostgreSQL::Test::Utils;
use Test::More;

my $dir = PostgreSQL::Test::Utils::tempdir('mock');
my $said;
IPC::Run::run([ 'cc', '-o', "$dir/mock", "$ENV{HYBRIDIOT_TREE}/test/broker/mock.c", '-lrdkafka' ], \undef, '>&', \$said) or die $said;
my ($in, $out) = ('', '');
my $mock = IPC::Run::start([ "$dir/mock", 2, 'readings', 4 ], \$in, \$out, '2>', '/dev/null');
$mock->pump until $out =~ /\n/;
my ($bootstrap) = $out =~ /^(\S+)\n/;

# cluster('leader 0 2'), and the like
sub cluster
{
	$out = '';
	$in .= "$_[0]\n";
	$mock->pump until $out =~ /\n/;
	$out eq "ok\n" or die "$_[0]: $out";
	return;
}

my $node = new_node('leaders');
$node->safe_psql('test', <<~"END");
	CREATE SERVER plant FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (bootstrap_servers '$bootstrap');
	CREATE FOREIGN TABLE telemetry (n bigint, ts timestamptz, part int OPTIONS (metadata 'partition'), pos bigint OPTIONS (metadata 'offset'))
		SERVER plant OPTIONS (topic 'readings', event_time 'ts');
	CREATE TABLE reading (n bigint, part int, pos bigint);
	CREATE TABLE total (during tstzrange, n bigint);
	SELECT hybridiot.create_pipeline('readings', 'INSERT INTO reading SELECT n, part, pos FROM telemetry', batch_delay => '5 ms');
	SELECT hybridiot.create_pipeline('totals', 'INSERT INTO total SELECT hybridiot.tumble(ts, ''1 s''), count(*) FROM telemetry GROUP BY 1');
	END

my $number = 0;

# Records come, a hundred into each partition, and arrive.
sub arrive
{
	my $name = shift;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	local $ENV{KAFKA_BOOTSTRAP} = $bootstrap;
	IPC::Run::run([ "$ENV{HYBRIDIOT_TREE}/test/broker/topic", 'fill', 'readings', 400, '--from', $number, '--step', 10 ],
		\undef, '>&', \$said) or die $said;
	$number += 400;
	poll_is($node, 'SELECT count(*), count(DISTINCT n), count(DISTINCT (part, pos)) FROM reading', "$number|$number|$number", $name);
	return;
}

cluster("leader $_ 1") for 0 .. 3;
arrive('all partitions are led by one broker');
cluster("leader $_ 2") for 0 .. 3;
arrive('all leaders have moved to the other');
for my $turn (1 .. 3)
{
	cluster("leader $_ " . (1 + ($_ + $turn) % 2)) for 0 .. 3;
	arrive("leaders move, turn $turn");
}
my $pid = worker_pid($node, "pipeline = 'readings'");
cluster("leader $_ 1") for 0 .. 3;
cluster('down 2');
arrive('a broker that leads nothing is down');
cluster('up 2');
cluster("leader $_ 2") for 0 .. 3;
cluster('down 1');
arrive('the one that led everything is down');
cluster('up 1');
is(worker_pid($node, "pipeline = 'readings'"), $pid, 'the worker is the one that it was');
wait_state($node, $_, 'running') for 'readings', 'totals';
poll_is($node, q(SELECT sum(n) + (SELECT coalesce(sum(records), 0) FROM hybridiot.open_window) FROM total), $number, 'windows count each record once');
is($node->safe_psql('test', 'SELECT count(*) FROM hybridiot.dead_letter'), '0', 'and none is late');
$mock->kill_kill;
finish();
