# The clock is set forth and back by a day while all runs: waits go by the monotonic clock, windows by event time, and
# an expired command never revives.
use strict;
use warnings;
use Hybridiot::Test;
use PostgreSQL::Test::Utils;
use Test::More;

my $day = 24 * 3600;
my $dir = PostgreSQL::Test::Utils::tempdir('clock');
my $library = "$dir/clock.so";
my $file = "$dir/offset";
command_ok([ 'gcc', '-shared', '-fPIC', '-o', $library, "$ENV{HYBRIDIOT_TREE}/test/lib/clock.c" ], 'a clock that can be set');

# How many seconds the clocks of the server's processes are off from now on. They have the file mapped.
sub set_clock
{
	my $offset = shift;
	open(my $out, -e $file ? '+<' : '>', $file) or die "$file: $!";
	syswrite $out, pack('q', $offset);
	close $out;
	return;
}

sub start_with_clock
{
	my ($node) = @_;
	local @ENV{qw(LD_PRELOAD CLOCK_OFFSET)} = ($library, $file);
	$node->start;
	return;
}

set_clock(0);
my $node = new_node('clock', start => 0, conf => "hybridiot.command_server = 'gateway'\n");
start_with_clock($node);
$node->safe_psql('postgres', 'CREATE DATABASE test');
$node->safe_psql('test', <<~'END');
	CREATE EXTENSION hybridiot;
	CREATE SERVER gateway FOREIGN DATA WRAPPER hybridiot_amqp OPTIONS (host '127.0.0.1', port '1', peer 'router');
	CREATE SERVER archive FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (transport 'table');
	CREATE TABLE log (partition int, "offset" bigint, "timestamp" timestamptz, key bytea, value bytea, headers jsonb);
	CREATE FOREIGN TABLE telemetry (n int, ts timestamptz) SERVER archive OPTIONS (topic 't', source 'public.log', event_time 'ts');
	CREATE TABLE reading (n int);
	CREATE TABLE total (during tstzrange, n bigint);
	CREATE FUNCTION arrive(first int, last int) RETURNS void LANGUAGE sql AS $$
		INSERT INTO log SELECT 0, i, '2026-01-01', NULL, convert_to(format('{"n": %s, "ts": "2026-01-01T00:00:%sZ"}', i, to_char(i, 'FM00')), 'UTF8')
		FROM generate_series(first, last) AS i $$;
	SELECT arrive(0, 4);
	SELECT hybridiot.create_pipeline('readings', 'INSERT INTO reading SELECT n FROM telemetry');
	SELECT hybridiot.create_pipeline('totals', 'INSERT INTO total SELECT hybridiot.tumble(ts, ''10 s''), sum(n) FROM telemetry GROUP BY 1',
		idle_timeout => '1 h', checkpoint_interval => '100 ms');
	END
poll_is($node, 'SELECT count(*) FROM reading', 5, 'records are read');
my $queue = q{SELECT string_agg(command || ' ' || state, ', ' ORDER BY queued_at) FROM hybridiot.command WHERE command = };

my $n = 5;
for my $offset ($day, -$day, 0)
{
	my $before = $node->safe_psql('test', 'SELECT extract(epoch FROM clock_timestamp())');
	my $pid = worker_pid($node, "pipeline = 'readings'");
	$node->safe_psql('test', "SELECT hybridiot.send_command('press-1', 'soon$offset', ttl => '2 s')");
	$node->safe_psql('test', "SELECT pg_terminate_backend($pid, 5000)");
	set_clock($offset);
	cmp_ok(abs($node->safe_psql('test', 'SELECT extract(epoch FROM clock_timestamp())') - $before), '>', 80_000, "the clock jumps to $offset");
	$node->safe_psql('test', "SELECT arrive($n, $n)");
	$n++;
	poll_is($node, 'SELECT count(*) FROM reading', $n, 'a worker that ended is started again');
	isnt(worker_pid($node, "pipeline = 'readings'"), $pid, 'another one');
	poll_is($node, q{SELECT records FROM hybridiot.open_window}, $n, 'checkpoints go on, and silence is no longer than it was');
	poll_is($node, "$queue 'soon$offset'", "soon$offset expired", 'a command expires in its own time');
}
is($node->safe_psql('test', 'SELECT count(*) FROM total'), 0, 'no window was closed');
$node->safe_psql('test', "SELECT arrive($n, 12)");
poll_is($node, 'SELECT n FROM total', 45, 'until event time closed it');
is($node->safe_psql('test', 'SELECT count(*) FROM hybridiot.dead_letter'), 0, 'and nothing was late');

# ---- while the server is away

$node->safe_psql('test', q{SELECT hybridiot.send_command('press-1', 'back', ttl => '1 hour')});
$node->stop;
set_clock(-$day);
start_with_clock($node);
poll_is($node, "$queue 'back'", 'back expired', 'a command that was queued before the clock was set back does not live a day longer');
$node->safe_psql('test', q{SELECT hybridiot.send_command('press-1', 'forth', ttl => '1 hour')});
$node->stop;
set_clock($day);
start_with_clock($node);
poll_is($node, "$queue 'forth'", 'forth expired', 'nor one whose time is over');
set_clock(-$day);
$node->safe_psql('test', q{SELECT hybridiot.send_command('press-1', 'now', ttl => '1 hour')});
poll_is($node, q{SELECT string_agg(DISTINCT state, ' ') FROM hybridiot.command WHERE command <> 'now'}, 'expired', 'set back, none revives');
is($node->safe_psql('test', "$queue 'now'"), 'now queued', 'and new ones are taken');
poll_is($node, q{SELECT string_agg(state, ' ') FROM hybridiot.pipeline}, 'running running', 'pipelines run');

finish();
