# A peer that is broken or means harm, and devices that do: malformed frames of every sort, limits that are not kept, replies
# that are none. The worker lives, its memory is bounded, other servers' commands go on.
use strict;
use warnings;
use Hybridiot::Peer;
use Hybridiot::Test;
use IPC::Run;
use PostgreSQL::Test::Utils;
use Test::More;

my $peer = Hybridiot::Peer->start;
my $friend = Hybridiot::Peer->start;
my $node = new_node('hostile', conf => "hybridiot.command_server = 'gateway'");

sub result { return $node->safe_psql('test', $_[0]) }

sub create_server
{
	my ($name, $port, $more) = @_;
	result("CREATE SERVER $name FOREIGN DATA WRAPPER hybridiot_amqp OPTIONS (host '127.0.0.1', port '$port'"
		. (($more // '') =~ /peer/ ? '' : ", peer 'router'") . ", connect_timeout '2 s'" . ($more // '') . ')');
	return;
}

# kB of memory that is the worker's own.
sub memory
{
	my $status = slurp_file('/proc/' . worker_pid($node, "kind = 'amqp'") . '/status');
	return $status =~ /^RssAnon:\s+(\d+)/m ? $1 : die;
}

sub is_up { return poll_is($node, "SELECT state FROM hybridiot.stat_connection WHERE server = '$_[0]'", 'up', $_[1]) }

# All connections to the peer are closed, and there is a new one.
sub connect_anew
{
	$peer->set(@_);
	my $so_far = $peer->state->{connections};
	$peer->command({ hang_up => JSON::PP::true });
	until ($peer->state->{connections} > $so_far) { select(undef, undef, undef, 0.02) }
	return is_up('gateway', 'connected anew');
}

# A call, and what came of it.
sub call
{
	my ($more) = @_;
	return result(q{SELECT concat_ws(' ', state, status, condition) FROM hybridiot.call_device('d', 'c', reply_within => '20 s'} . ($more // '') . ')');
}

create_server('gateway', $peer->port);
create_server('other', $friend->port);
is_up($_, "$_ is up") for 'gateway', 'other';
is(call(), 'succeeded 200', 'the peer can behave');
my $pid = worker_pid($node, "kind = 'amqp'");

# ---------------------------------------------------------------- attacks

is_deeply([ @{ $peer->state->{announced} }{qw(max_frame channel_max window idle)} ], [ 16384, 7, 1024, 30000 ],
	'frame size, channels, window and idle time-out are announced');

# Many servers, so that their waits between two tries run side by side.
my $before = memory();
create_server("victim_$_", $peer->port) for 1 .. 20;
is_up('victim_20', 'twenty more connections');
# A command that is offered again and again, so that each has a link for commands too.
$peer->set(outcome => 'released', replies => []);
result("SELECT hybridiot.send_command('d', 'c', server => 'victim_$_', mode => 'store', ttl => '1 h')") for 1 .. 20;
$peer->command({ attack => 600 });
$peer->command({ hang_up => JSON::PP::true });
my $others = 0;
while ($peer->state->{connections} < 600 + 21)
{
	is(result(q{SELECT state FROM hybridiot.call_device('d', 'c', server => 'other')}), 'succeeded', 'others are not disturbed')
		if $others++ % 40 == 0;
	select(undef, undef, undef, 0.05);
}
my $state = $peer->state;
note(join ' ', map { "$_=$state->{attacks}{$_}" } sort keys %{ $state->{attacks} });
is(scalar(keys %{ $state->{attacks} }), 30, 'every attack was tried');
$peer->set(credit => 101);
is_up("victim_$_", "connection $_ is up again") for 1, 20;
is_up('gateway', 'and the first');
# One that is up may still be under attack.
my $usable = call();
for (my $tries = 0; $usable ne 'succeeded 200' && $tries < 100; $tries++) { $usable = call() }
is($usable, 'succeeded 200', 'it is usable');
is(worker_pid($node, "kind = 'amqp'"), $pid, 'the worker is the same');
cmp_ok(memory() - $before, '<', 60_000, 'and not much larger');
result("DROP SERVER victim_$_") for 1 .. 20;

# What a connection may survive.
$peer->command({ bulk => 100_000 });
until ($peer->state->{bulk} >= 100_000) { select(undef, undef, undef, 0.1) }
pass('100,000 malformed frames');
note('connections: ' . $peer->state->{connections});
connect_anew();
is(call(), 'succeeded 200', 'it is usable');
is(worker_pid($node, "kind = 'amqp'"), $pid, 'the worker is the same');
cmp_ok(memory() - $before, '<', 60_000, 'and not much larger');

# ---------------------------------------------------------------- replies that are none, or odd

# What comes of a reply: state, status, condition, content type, payload or body.
sub answered
{
	my ($reply, $expected, $name, $within) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$peer->set(replies => ref $reply eq 'ARRAY' ? $reply : [$reply]);
	return is( result(q{SELECT concat_ws(' ', state, status, condition, content_type, payload::text, encode(body, 'escape'))
		FROM hybridiot.call_device('d', 'c', reply_within => '} . ($within // '20 s') . q{')}), $expected, $name);
}

my $invalid = 'failed hybridiot:invalid-status application/json {}';
for (
	[ 'absent', '', 'succeeded 200' ], [ 'ubyte', '50c8', 'succeeded 200' ], [ 'byte', '5132', 'failed 50' ],
	[ 'ushort', '6000cc', 'succeeded 204' ], [ 'short', '610194', 'failed 404' ], [ 'uint', '70000000c8', 'succeeded 200' ],
	[ 'smalluint', '52c8', 'succeeded 200' ], [ 'uint0', '43', 'failed 0' ], [ 'int', '7100000190', 'failed 400' ], [ 'smallint', '549c', 'failed -100' ],
	[ 'ulong', '8000000000000000c8', 'succeeded 200' ], [ 'smallulong', '53c8', 'succeeded 200' ], [ 'ulong0', '44', 'failed 0' ],
	[ 'long', '8100000000000000c8', 'succeeded 200' ], [ 'smalllong', '5564', 'failed 100' ],
	map { [ @$_, undef ] } [ 'null', '40' ], [ 'a boolean', '41' ], [ 'another boolean', '5601' ], [ 'float', '7243480000' ], [ 'double', '824069000000000000' ],
	[ 'a character', '73000000c8' ], [ 'a timestamp', '8300000000000000c8' ], [ 'a decimal', '74220000c8' ], [ 'text', 'a103323030' ], [ 'a symbol', 'a303323030' ],
	[ 'bytes', 'a003323030' ], [ 'a list', '45' ], [ 'a map', 'c10100' ], [ 'a huge ulong', '80ffffffffffffffff' ], [ 'a long beyond an int', '810000000100000000' ])
{
	my ($type, $hex, $expected) = @$_;
	answered({ as => 'typed', status => '', hex => $hex }, $expected ? "$expected application/json {}" : $invalid, "status: $type");
}

my $json = '7b2261223a20317d';    # {"a": 1}
for (
	[ 'one data section', undef, "005375a008$json", 'succeeded 200 application/json {"a": 1}' ],
	[ 'a value of text', undef, "005377a108$json", 'succeeded 200 application/json {"a": 1}' ],
	[ 'a value of bytes', 'text/plain', "005377a008$json", 'succeeded 200 text/plain {"a": 1}' ],
	[ 'null', undef, '00537740', 'succeeded 200' ], [ 'a map', undef, '005377c10100', 'succeeded 200' ], [ 'a sequence', undef, '00537645', 'succeeded 200' ],
	[ 'nothing', undef, '', 'succeeded 200' ], [ 'JSON with parameters', 'application/json; charset=utf-8', "005375a008$json", 'succeeded 200 application/json; charset=utf-8 {"a": 1}' ],
	[ 'JSON of its own', 'application/vnd.x+JSON', "005375a008$json", 'succeeded 200 application/vnd.x+JSON {"a": 1}' ],
	[ 'JSON with a NUL', undef, '005375a00322' . '0022', 'succeeded 200 "\000"' ], [ 'JSON without end', undef, '005375a0025b5b', 'succeeded 200 [[' ],
	[ 'JSON too deep', undef, '005375b00000ea60' . '5b' x 60000, 'succeeded 200 ' . '[' x 60000 ],
	[ 'a section nobody knows', undef, '005379c10100', 'succeeded 200' ])
{
	my ($what, $type, $hex, $expected) = @$_;
	answered({ as => 'content', kind => $type, body => $hex }, $expected, "body: $what");
}
answered({ as => 'text', field => 'content_type' }, 'succeeded 200 application/json {}', 'a content type that is no text is none');
answered({ as => 'text', field => 'body' }, 'succeeded 200 \377\376{}', 'a body that is no text is bytes');
answered({ as => 'text', field => 'device' }, 'timed_out', 'a device that is no text is not ours', '300 ms');
answered({ as => 'text', field => 'message_id' }, 'succeeded 200 application/json {}', 'a message id does not matter beside a correlation id');
answered('cut', 'failed amqp:decode-error', 'cut short');
answered('settled', 'succeeded 200 application/json {}', 'a reply that is settled already');
answered([ 'aborted', 'good' ], 'succeeded 200 application/json {"ok": true}', 'one that is aborted, and one that is not');
answered('aborted', 'timed_out', 'one that is aborted is none', '300 ms');
answered('in_pieces', 'succeeded 200 application/json {"pieces": true}', 'in frames of seven bytes');
answered([ 'good', { as => 'again', count => 100 } ], 'succeeded 200 application/json {"ok": true}', 'the first of a hundred');

$before = memory();
answered({ as => 'endless', megabytes => 80 }, 'timed_out', 'one without end', '5 s');
poll_is($node, q{SELECT last_error FROM hybridiot.stat_connection WHERE server = 'gateway'}, 'the peer sent a message without end', 'which ends the connection');
cmp_ok(memory() - $before, '<', 20_000, 'and takes no memory');
is_up('gateway', 'it is up again');

# Ids that are guessed. Each is counted; most are not kept one by one.
result('CREATE TABLE guessing AS SELECT clock_timestamp() AS at');
$peer->set;
my $guesses = $ENV{HOSTILE_GUESSES} // 100_000;
my $began = time;
$peer->command({ reply => { as => 'guesses', count => 0 + $guesses } });
my $patience = time + ($ENV{HOSTILE_GUESSES} ? 1800 : 0);
my $counted = qq{SELECT sum(CASE WHEN cause ~ '^\\d+ more' THEN substring(cause, '^\\d+')::int WHEN state IS NULL THEN 1 END) >= $guesses
	FROM hybridiot.command_event WHERE at > (SELECT at FROM guessing)};
select(undef, undef, undef, 1) until result($counted) eq 't' || time > $patience;
poll_is($node, $counted, 't', "$guesses replies to ids that nobody gave out are counted");
$began = time - $began;
note("$guesses guesses: $began s, ", memory() - $before, ' kB');
is(result(qq{SELECT count(*) < 2000 + $began FROM hybridiot.command_event WHERE state IS NULL AND at > (SELECT at FROM guessing)}), 't', 'and do not fill the disk');
is(call(), 'succeeded 200', 'it is usable');
cmp_ok(memory() - $before, '<', 20_000, 'and took no memory');

# ---------------------------------------------------------------- limits of the peer's

connect_anew(max_frame => 512);
my $big = q{, payload => jsonb_build_object('x', repeat('x', 100000))};
is(call($big), 'succeeded 200', 'a large command in small frames');
cmp_ok($peer->state->{frame_of_message}, '<=', 512, 'no larger than the peer takes');
connect_anew(window => 2, max_frame => 512);
is(call($big), 'succeeded 200', 'a window of two frames');
cmp_ok($peer->state->{beyond_window}, '==', 0, 'is kept');
connect_anew(trickle => JSON::PP::true);
is(call(), 'succeeded 200', 'byte by byte');

# ---------------------------------------------------------------- silence

sub says
{
	my ($server, $error, $name) = @_;
	return poll_is($node, "SELECT state || ': ' || last_error FROM hybridiot.stat_connection WHERE server = '$server'", "retrying: $error", $name);
}
my $late = 'the connection could not be established in time';
for ([ 'start', "the peer does not answer in AMQP without TLS on port @{[ $peer->port ]}: see options port and tls ($late)" ], [ 'sasl', $late ], [ 'open', $late ], [ 'begin', 'the peer did not open the link for replies in time' ])
{
	my ($stage, $error) = @$_;
	$peer->set(silent => $stage);
	create_server("silent_$stage", $peer->port);
	result("ALTER SERVER silent_$stage OPTIONS (SET connect_timeout '300 ms')");
	says("silent_$stage", $error, "silence from stage $stage on");
}
create_server('quiet', $peer->port, ", idle_timeout '500 ms'");
$peer->set;
is_up('quiet', 'a peer that is there');
$peer->set(read => JSON::PP::false);
poll_is($node, q{SELECT last_error ~ 'resource-limit-exceeded|timeout|idle' FROM hybridiot.stat_connection WHERE server = 'quiet'}, 't', 'and then is not');
$peer->set;
is(worker_pid($node, "kind = 'amqp'"), $pid, 'the worker is the same through all that');
is(result(q{SELECT state FROM hybridiot.call_device('d', 'c', server => 'other')}), 'succeeded', 'and so is the other connection');


# ---------------------------------------------------------------- removals that are none

# A broker, it says, that answers when a command is to be cancelled; and another server, through which the same broker answers, too.
# `cancelled' is what one was removed of: our request, answered once, through the connection that asked.
$friend->set(product => 'apache-activemq-artemis', replies => [], removals => {
	'one' => [ {} ], 'one, then none' => [ {}, { says => '[0]' } ],
	'none' => [ { says => '[0]' } ], 'none, then one' => [ { says => '[0]' }, {} ], 'two' => [ { says => '[2]' } ], 'a negative number' => [ { says => '[-1]' } ],
	'a huge number' => [ { says => '[18446744073709551617]' } ], 'a fraction' => [ { says => '[1.0]' } ], 'more than one number' => [ { says => '[1,1]' } ], 'a list in a list' => [ { says => '[[1]]' } ],
	'text' => [ { says => '["1"]' } ], 'truth' => [ { says => '[true]' } ], 'nothing' => [ { says => '' } ], 'endless text' => [ { says => [ '[', 14000 ] } ], 'a zero byte' => [ { says => "[1]\0" } ],
	'bytes' => [ { kind => 'data' } ], 'a number' => [ { kind => 'number' } ], 'a list' => [ { kind => 'list' } ], 'no body' => [ { kind => 'none' } ],
	'to no request' => [ { id => 'unknown' } ], 'to the command' => [ { id => 'command' } ], 'through another server' => [ { elsewhere => JSON::PP::true } ], 'no answer' => [] });
$friend->command({ hang_up => JSON::PP::true });
create_server($_, $friend->port, ', peer \'broker\'') for 'store', 'elsewhere';
is_up($_, "$_ is up") for 'store', 'elsewhere';
my %ends = map { $_ => 'too_late accepted' } keys %{ $friend->command({ state => JSON::PP::true })->{answers} };
$ends{$_} = 'cancelled cancelled' for 'one', 'one, then none';
$ends{'to the command'} = 'too_late succeeded';    # as any device could
result("SELECT hybridiot.send_command('d', '$_', server => 'store', ttl => '10 min')") for sort keys %ends;
poll_is($node, q{SELECT count(*) FROM hybridiot.command WHERE server = 'store' AND state = 'accepted'}, scalar(keys %ends), 'the broker has them');
my %canceller = map {
	my %c = (out => '');
	$c{handle} = IPC::Run::start([ 'psql', '-XAtq', '-d', $node->connstr('test'), '-c', "SELECT hybridiot.cancel_command(id) FROM hybridiot.command WHERE server = 'store' AND command = '$_'" ], \undef, '>', \$c{out}, '2>&1');
	$_ => \%c;
} sort keys %ends;
for (sort keys %ends)
{
	$canceller{$_}{handle}->finish;
	(my $told = $canceller{$_}{out}) =~ s/\s+$//;
	is($told . ' ' . result("SELECT state FROM hybridiot.command WHERE server = 'store' AND command = '$_'"), $ends{$_}, "the answer to a removal: $_");
}
is($friend->state->{removals}, scalar(keys %ends), 'each was asked for once');
is(result(q{SELECT max(length(cause)) < 1100 FROM hybridiot.command_event}), 't', 'no event grows with what was said');
is(worker_pid($node, "kind = 'amqp'"), $pid, 'the worker is the same');

finish();
