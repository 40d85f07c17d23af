# Every step that the table of states has (docs/explanation/commands.md), on a real connection to a scripted peer:
# each is made once, and at the end the pairs of states in the journal's events are those of the table, no more and no fewer.
use strict;
use warnings;
use Hybridiot::Peer;
use Hybridiot::Test;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

my $peer = Hybridiot::Peer->start;
my $hono = Hybridiot::Peer->start;
my $node = new_node('table', conf => "hybridiot.command_server = 'gateway'");

sub result { return $node->safe_psql('test', $_[0]) }
sub is_up { return poll_is($node, "SELECT state FROM hybridiot.stat_connection WHERE server = '$_[0]'", 'up', $_[1]) }

# Queue one, return its id.
sub queue
{
	my ($more) = @_;
	return result(q{SELECT hybridiot.send_command('d', 'c', } . ($more // q{ttl => '1 min'}) . ')');
}

# becomes($id, 'sent accepted', $name): its story so far.
sub becomes
{
	my ($id, $story, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return poll_is($node, "SELECT string_agg(state, ' ' ORDER BY at, ctid) FROM hybridiot.command_event WHERE command_id = '$id' AND state IS NOT NULL",
		"queued $story", $name // "queued $story");
}

# What came is an event, and the state stays.
sub only_event
{
	my ($id, $cause) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $before = result("SELECT state FROM hybridiot.command WHERE id = '$id'");
	poll_is($node, "SELECT count(*) FROM hybridiot.command_event WHERE command_id = '$id' AND state IS NULL AND cause = '$cause'", 1, "only an event: $cause");
	return is(result("SELECT state FROM hybridiot.command WHERE id = '$id'"), $before, "it stays $before");
}

sub settle
{
	my ($id, $outcome) = @_;
	$peer->command({ id => $id, settle => $outcome });
	return;
}

sub reply
{
	my ($id, $status) = @_;
	$peer->command({ id => $id, reply => { as => 'good', status => $status } });
	return;
}

# All connections to the peer are closed, and there is a new one.
sub connect_anew
{
	$peer->set(@_);
	my $so_far = $peer->state->{connections};
	$peer->command({ hang_up => JSON::PP::true });
	until ($peer->state->{connections} > $so_far) { sleep 0.02 }
	return is_up('gateway', 'connected anew');
}

# What the peer said so far was read: a reply that changes nothing was said after it, and is an event now.
my ($answered, $again);

sub was_read
{
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	reply($answered, 200);
	return poll_is($node, "SELECT count(*) FROM hybridiot.command_event WHERE command_id = '$answered' AND cause = 'a second reply came'",
		++$again, $_[0]);
}

sub no_credit
{
	$peer->set(credit => 0, @_);
	return was_read('the credit is taken back');
}

result("CREATE SERVER gateway FOREIGN DATA WRAPPER hybridiot_amqp OPTIONS (host '127.0.0.1', port '${\$peer->port}', peer 'router')");
result("CREATE SERVER hono FOREIGN DATA WRAPPER hybridiot_amqp OPTIONS (host '127.0.0.1', port '${\$hono->port}', peer 'hono', tenant 't')");
is_up($_, "$_ is up") for qw(gateway hono);

$answered = queue();
becomes($answered, 'sending sent accepted succeeded', 'all is well');

# ---------------------------------------------------------------- outcomes, replies, and what comes later

my %status = (succeeded => 200, failed => 400);

for my $end (qw(succeeded failed))
{
	my $status = $status{$end};

	$peer->set(replies => [ { as => 'good', status => $status } ]);
	my $id = queue();
	becomes($id, "sending sent accepted $end");
	reply($id, 600 - $status);
	only_event($id, 'a second reply came');

	$peer->set(outcome => 'never', replies => [ { as => 'good', status => $status } ]);
	$id = queue();
	becomes($id, "sending sent $end", "the reply overtakes the outcome: $end");
	settle($id, 'rejected');
	only_event($id, 'outcome rejected came late');
	reply($id, 600 - $status);
	only_event($id, 'a second reply came');

	for ([ 'rejected', 'rejected' ], [ 'released', 'undeliverable' ], [ 'modified', 'in_doubt' ], [ 'none', 'in_doubt' ])
	{
		my ($outcome, $state) = @$_;
		$peer->set(outcome => $outcome, replies => []);
		$id = queue();
		becomes($id, "sending sent $state", "$outcome: $state");
		reply($id, $status);
		becomes($id, "sending sent $state $end");
	}
}

# Deadlines, side by side: long ones, so that nothing else is late on a slow machine.
my $soon = q{reply_within => '3 s', ttl => '1 min'};

sub taken
{
	my ($outcome, $n) = @_;
	$peer->set(outcome => $outcome, replies => []);
	my $so_far = $peer->state->{commands};
	my @ids = map { queue($soon) } 1 .. $n;
	sleep 0.02 until $peer->state->{commands} == $so_far + $n;
	return @ids;
}

my @silent = taken('accepted', 2);
my @held = taken('never', 3);
for my $end (qw(succeeded failed))
{
	my $id = shift @silent;
	becomes($id, 'sending sent accepted timed_out');
	reply($id, $status{$end});
	becomes($id, "sending sent accepted timed_out $end");
}
for ([ 'rejected', 'rejected' ], [ 'released', 'undeliverable' ])
{
	my ($outcome, $state) = @$_;
	my $id = shift @held;
	becomes($id, 'sending sent in_doubt', 'no outcome by the answer deadline');
	settle($id, $outcome);
	becomes($id, "sending sent in_doubt $state", "and then $outcome");
}
becomes($held[0], 'sending sent in_doubt');
settle($held[0], 'accepted');
only_event($held[0], 'outcome accepted came late');

$peer->set(replies => []);
my $id = queue(q{reply_within => '0'});
becomes($id, 'sending sent accepted', 'one-way: accepted is final');
reply($id, 200);
only_event($id, 'a reply came though none was asked for');

# A peer that lets go of one it was given.
$hono->set(outcome => 'released', replies => []);
becomes(queue(q{server => 'hono'}), 'sending sent in_doubt', 'released by Hono may have been executed');
$peer->set(outcome => 'released', replies => []);
$id = queue(q{mode => 'store', ttl => '1 min'});
poll_is($node, "SELECT string_agg(state, ' ' ORDER BY at, ctid) LIKE 'queued sending sent queued sending sent queued%' FROM hybridiot.command_event
	WHERE command_id = '$id'", 't', 'released by a router: offered again');
$peer->set;
poll_is($node, "SELECT state FROM hybridiot.command WHERE id = '$id'", 'succeeded', 'until it is taken');
for my $end (qw(succeeded failed))
{
	$peer->set(outcome => 'never', replies => []);
	$id = queue(q{mode => 'store', ttl => '1 min'});
	becomes($id, 'sending sent');
	no_credit(outcome => 'never', replies => []);
	settle($id, 'released');
	becomes($id, 'sending sent queued');
	reply($id, $status{$end});
	becomes($id, "sending sent queued $end", "released, and yet somebody answers: $end");
	my $so_far = $peer->state->{commands};
	connect_anew();
	becomes(queue(), 'sending sent accepted succeeded', 'the next one');
	is($peer->state->{commands}, $so_far + 1, 'the one that was answered is not offered again');
}

# ---------------------------------------------------------------- credit

no_credit();
my $expired = queue(q{mode => 'store', ttl => '300 ms'});
my $undeliverable = queue(q{ttl => '300 ms'});
my $cancelled = queue(q{ttl => '1 min'});
my $waiting = queue(q{ttl => '1 min'});
is(result("SELECT hybridiot.cancel_command('$cancelled')"), 'cancelled', 'cancelled');
becomes($cancelled, 'cancelled');
becomes($expired, 'expired');
becomes($undeliverable, 'undeliverable', 'no credit by the deadline');
reply($expired, 200);
reply($cancelled, 200);
only_event($_, 'a reply came though it was never sent') for $expired, $cancelled;
$peer->set(credit => 1);
my @ids = ($waiting, map { queue() } 1 .. 5);
becomes($_, 'sending sent accepted succeeded', 'one credit at a time') for @ids;
is_deeply([ @{ $peer->state->{ids} }[ -6 .. -1 ] ], \@ids, 'in their order');
$peer->set(credit => 5);
$peer->command({ say => 'drain' });
was_read('drained');
$id = queue();
becomes(queue(q{mode => 'store', ttl => '200 ms'}), 'expired', 'nothing leaves');
$peer->set(credit => 2_000_000_000);
becomes($id, 'sending sent accepted succeeded', 'all the credit there is');

# ---------------------------------------------------------------- broken connections

for my $how (qw(end detach close))
{
	$peer->set(outcome => 'never', replies => []);
	$id = queue();
	becomes($id, 'sending sent');
	$peer->command({ say => $how });
	becomes($id, 'sending sent in_doubt', "$how: in doubt");
}
$peer->set(outcome => 'never', replies => []);
$id = queue();
becomes($id, 'sending sent');
connect_anew();
becomes($id, 'sending sent in_doubt', 'dropped: in doubt');
$peer->set(outcome => 'detached', replies => []);
$id = queue();
becomes($id, 'sending sent in_doubt', 'an outcome behind the end of its link');

# One that waits leaves as soon as there is a connection again, not when the worker happens to look.
my @took;
for (1 .. 3)
{
	connect_anew();
	becomes(queue(), 'sending sent accepted succeeded');
	no_credit();
	$id = queue();
	$peer->command({ hang_up => JSON::PP::true });
	$peer->set;
	my $began = time;
	becomes($id, 'sending sent accepted succeeded', 'sent with the next connection');
	push @took, time - $began;
}
cmp_ok((sort { $a <=> $b } @took)[1], '<', 3, 'at once');

# The window is closed on the first, so not a byte of the second is written.
connect_anew(window => 2, max_frame => 512, stall => JSON::PP::true);
my $so_far = $peer->state->{partial};
my $partly = queue(q{jsonb_build_object('x', repeat('x', 100000)), ttl => '1 min'});
becomes($partly, 'sending', 'a large command into a small window');
sleep 0.02 until $peer->state->{partial} >= $so_far + 2;
my $behind = queue();
becomes($behind, 'sending', 'one behind it');
connect_anew();
becomes($partly, 'sending in_doubt', 'partly written: in doubt');
becomes($behind, 'sending queued sending sent accepted succeeded', 'not a byte written: queued, and sent again');

# Lives of all lengths: some end between the claim and the last look.
$peer->set(credit => 100_000, replies => []);
for (1 .. 20)
{
	last if result(q{SELECT count(*) FROM hybridiot.command WHERE state = 'expired' AND command = 'short' AND id IN
		(SELECT command_id FROM hybridiot.command_event WHERE state = 'sending')});
	result(q{INSERT INTO hybridiot.command (device, command, ttl, reply_within, payload)
		SELECT 'd', 'short', (1 + i / 2.0) * interval '1 ms', '0', '{}' FROM generate_series(1, 1000) i});
	poll_is($node, q{SELECT count(*) FROM hybridiot.command WHERE command = 'short' AND state IN ('queued', 'sending', 'sent')}, 0, 'a thousand short lives');
}

# ---------------------------------------------------------------- the server is stopped

$peer->set(outcome => 'accepted', replies => []);
my $accepted = queue();
becomes($accepted, 'sending sent accepted');
$peer->set(outcome => 'never', replies => []);
my $sent = queue();
becomes($sent, 'sending sent');
no_credit(outcome => 'never', replies => []);
my $queued = queue(q{ttl => '5 min'});
my $began = time;
$node->stop('fast');
my $took = time - $began;
cmp_ok($took, '<', 10, 'the server stops at once');
note("in $took s");
$node->start;
is_up('gateway', 'connected');
is(result("SELECT string_agg(state, ' ') FROM (SELECT state FROM hybridiot.command JOIN unnest('{$queued,$sent,$accepted}'::uuid[])
	WITH ORDINALITY AS o (id, n) USING (id) ORDER BY n) s"), 'queued in_doubt accepted', 'queued, sent and accepted are what they should be');
reply($accepted, 200);
becomes($accepted, 'sending sent accepted succeeded');
$peer->set;
becomes($queued, 'sending sent accepted succeeded', 'and the one in the queue leaves');

# ---------------------------------------------------------------- the table

my %table = (
	'' => [qw(queued)],
	queued => [qw(sending expired cancelled undeliverable)],
	sending => [qw(sent queued expired in_doubt)],
	sent => [qw(accepted rejected undeliverable succeeded failed in_doubt)],
	accepted => [qw(succeeded failed timed_out)],
	rejected => [qw(succeeded failed)],
	undeliverable => [qw(succeeded failed)],
	timed_out => [qw(succeeded failed)],
	in_doubt => [qw(succeeded failed rejected undeliverable)],
);
# A router has let go of one of store mode: it is in the queue again, where evidence wins as elsewhere.
push @{ $table{sent} }, 'queued';
push @{ $table{queued} }, qw(succeeded failed);

is( result(q{SELECT string_agg(DISTINCT before || '>' || state, ' ' ORDER BY before || '>' || state) FROM
	(SELECT state COLLATE "C", coalesce(lag(state) OVER (PARTITION BY command_id ORDER BY at, ctid), '') COLLATE "C" AS before
		FROM hybridiot.command_event WHERE state IS NOT NULL) s}),
	join(' ', sort map { my $before = $_; map { "$before>$_" } @{ $table{$before} } } keys %table),
	'every step of the table was made, and no other');

finish();
