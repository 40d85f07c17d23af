# The clock is set forth and back by a day while all runs: waits go by the monotonic clock, windows by event time, and
# an expired command never revives, nor reaches a device.
use strict;
use warnings;
use Hybridiot::Test;
use IPC::Run;
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

# ---- with devices, whose clock is the true one

my $fleet = start_fleet('router', '--devices', 'press-{1..3}', '--offline', 'press-3', '--rule', '{"device": "press-1", "behaviour": "silent"}');
$node->safe_psql('test', "CREATE SERVER line FOREIGN DATA WRAPPER hybridiot_amqp OPTIONS (host '127.0.0.1', port '${\$fleet->port}', peer 'router')");
poll_is($node, q{SELECT state FROM hybridiot.stat_connection WHERE server = 'line'}, 'up', 'a server with devices');

# A statement in a session of its own.
sub in_background
{
	my %session = (sql => shift, out => '');
	$session{handle} = IPC::Run::start([ 'psql', '-XAtq', '-d', $node->connstr('test'), '-c', $session{sql} ], \undef, '>', \$session{out}, '2>&1');
	return \%session;
}

my $waiting = q{SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND backend_type = 'client backend' AND pid <> pg_backend_pid()};

# Sets the clock while calls wait, and has them and the worker look at it.
sub jump
{
	my $offset = shift;
	set_clock($offset);
	$node->safe_psql('test', 'SELECT pg_reload_conf()');
	$fleet->command({ credit => 'anonymous' });
	is($node->safe_psql('test', q{SELECT state FROM hybridiot.call_device('press-2', 'look', server => 'line', ttl => '1 min')}), 'succeeded', "a call at $offset");
	return;
}

my $call = in_background(q{SELECT state FROM hybridiot.call_device('press-1', 'asked', server => 'line', reply_within => '1 hour')});
poll_is($node, "$queue 'asked'", 'asked accepted', 'a call is in flight');
my $id = $node->safe_psql('test', q{SELECT id FROM hybridiot.command WHERE command = 'asked'});
my $waiter = in_background("SELECT state FROM hybridiot.wait_command('$id', '1 hour')");
poll_is($node, $waiting, 2, 'and waited for');

$fleet->command({ no_credit => 'anonymous' });
$node->safe_psql('test', "SELECT hybridiot.send_command('press-2', 'ahead', server => 'line', ttl => '1 hour', mode => '$_')") for qw(direct store);
poll_is($node, "$queue 'ahead'", 'ahead queued, ahead queued', 'others wait for credit');
jump($day);
poll_is($node, "$queue 'ahead'", 'ahead expired, ahead expired', 'set forth, what was queued is over when it could leave');
is($node->safe_psql('test', $waiting), 2, 'and nobody is told early');

my $short = in_background("SELECT state FROM hybridiot.wait_command('$id', '3 s')");
my $unanswered = in_background(q{SELECT state FROM hybridiot.call_device('press-1', 'unanswered', server => 'line', reply_within => '3 s')});
poll_is($node, q{SELECT state IN ('accepted', 'timed_out') FROM hybridiot.command WHERE command = 'unanswered'}, 't', 'a call that nobody answers');
$node->safe_psql('test', q{SELECT hybridiot.send_command('press-3', 'gone', server => 'line', ttl => '2 s', mode => 'store')});
$fleet->command({ no_credit => 'anonymous' });
$node->safe_psql('test', q{SELECT hybridiot.send_command('press-1', 'kept', server => 'line', ttl => '1 hour', mode => 'store')});
poll_is($node, "$queue 'kept'", 'kept queued', 'and one that waits for credit');
jump(0);
poll_is($node, "$queue 'kept'", 'kept accepted', 'set back, what has time left is sent');
is($node->safe_psql('test', q{SELECT answer_by < clock_timestamp() + '2 hours' FROM hybridiot.command WHERE command = 'kept'}), 't', 'and waits no day longer for its answer');
my ($kept) = grep { $_->{subject} eq 'kept' } $fleet->ledger;
cmp_ok($kept->{ttl}, '<=', 3_600_000, 'nor may it start later than it was to');
cmp_ok($kept->{deadline}, '<', (time + 7200) * 1000, 'by no clock');
poll_is($node, "$queue 'gone'", 'gone expired', 'what waits for a device lives no longer');
poll_is($node, $waiting, 2, 'nobody is told late');
$_->{handle}->finish for $short, $unanswered;
is("$short->{out}$unanswered->{out}", "accepted\ntimed_out\n", 'and each the truth');

$node->safe_psql('test', q{SELECT hybridiot.send_command('press-3', 'come', server => 'line', ttl => '1 hour', mode => 'store')});
$fleet->command({ online => ['press-3'] });
poll_is($node, "$queue 'come'", 'come succeeded', 'the device comes');
$fleet->command({ reply => $id });
poll_is($node, $waiting, 0, 'the answer comes after both jumps');
$_->{handle}->finish for $call, $waiter;
is("$call->{out}$waiter->{out}", "succeeded\nsucceeded\n", 'and is told to who waited');
is(join(' ', sort map { $_->{subject} } $fleet->ledger), 'asked come kept look look unanswered', 'nothing that was over reached a device');
$fleet->stop;

finish();
