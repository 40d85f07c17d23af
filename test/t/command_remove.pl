# Cancel by removal: a command that waits in a queue of Artemis is taken out of it again, through the
# broker's management address; `cancelled' means that one was removed, and no device gets it.
use strict;
use warnings;
use Hybridiot::Test;
use IPC::Run;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $artemis = artemis();
my $prefix = unique('valve');
my ($away, $here, @racing) = map { "$prefix-$_" } 1 .. 12;
my $fleet = start_fleet('devices', '--devices', "$prefix-{1..12}", '--offline', "$prefix-*");
my $node = new_node('remove', conf => "hybridiot.command_server = 'gateway'");

sub result { return $node->safe_psql('test', $_[0]) }
sub state_of { return result("SELECT state FROM hybridiot.command WHERE id = '$_[0]'") }
sub cancel { return result("SELECT hybridiot.cancel_command('$_[0]')") }
sub reached { my $id = shift; return scalar grep { $_->{id} eq $id } $fleet->ledger }

# Words of the last event of a command, which may be written a moment later.
sub last_event_is
{
	my ($id, $pattern, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return poll_is($node, "SELECT CASE WHEN cause ~ \$p\$$pattern\$p\$ THEN 'as it should be' ELSE cause END
		FROM hybridiot.command_event WHERE command_id = '$id' ORDER BY at DESC LIMIT 1", 'as it should be', $name);
}

# Sent, and in the broker's queue.
sub stored
{
	my ($device, $options) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $id = result("SELECT hybridiot.send_command('$device', 'open', ttl => '2 min'" . ($options ? ", $options" : '') . ')');
	poll_is($node, "SELECT state FROM hybridiot.command WHERE id = '$id'", 'accepted', 'the broker keeps it');
	return $id;
}

sub in_background
{
	my ($sql, $out) = @_;
	return IPC::Run::start([ 'psql', '-XAtq', '-d', $node->connstr('test'), '-c', $sql ], '<', \undef, '>', $out, '2>&1');
}

result("CREATE SERVER gateway FOREIGN DATA WRAPPER hybridiot_amqp OPTIONS (host '$artemis->{host}', port '$artemis->{port}')");
result("CREATE USER MAPPING FOR CURRENT_USER SERVER gateway OPTIONS (user '$artemis->{user}', password '$artemis->{password}')");
poll_is($node, q{SELECT state FROM hybridiot.stat_connection}, 'up', 'the connection is up');

# ---------------------------------------------------------------- one that nobody has read

my $id = stored($away);
is(cancel($id), 'cancelled', 'taken out of the queue');
is(state_of($id), 'cancelled', 'and its state says so');
last_event_is($id, q{^removed from the broker's queue$}, 'and its events say how');
is(cancel($id), 'cancelled', 'twice makes no difference');
my $one_way = stored($away, "reply_within => '0'");
my @out;
my @both = map { in_background("SELECT hybridiot.cancel_command('$one_way')", \$out[$_]) } 0 .. 1;
$_->finish for @both;
is("@out", "cancelled\n cancelled\n", 'two at once, of one that wants no reply: both are told');

# An accepted command outlives the worker that sent it.
my $older = stored($away);
kill_worker($node, q{kind = 'amqp'});
poll_is($node, q{SELECT state FROM hybridiot.stat_connection WHERE state = 'up' AND since > (SELECT max(at) FROM hybridiot.command_event)},
	'up', 'another worker');
is(cancel($older), 'cancelled', 'one of an earlier worker');

# Whoever waits for it is told.
my $call = in_background("SELECT state FROM hybridiot.call_device('$away', 'called', ttl => '2 min')", \my $called);
poll_is($node, q{SELECT state FROM hybridiot.command WHERE command = 'called'}, 'accepted', 'somebody waits');
is(cancel(result(q{SELECT id FROM hybridiot.command WHERE command = 'called'})), 'cancelled', 'another cancels');
$call->finish;
is($called, "cancelled\n", 'and the caller knows');

# In doubt: the removal proves that nobody had it.
my $doubtful = stored($away, "reply_within => '0'");
result("UPDATE hybridiot.command SET state = 'in_doubt' WHERE id = '$doubtful'");
is(cancel($doubtful), 'cancelled', 'nor need one be in doubt any more');
is(state_of($doubtful), 'cancelled', 'its state says so');

$fleet->command({ online => [$away] });
is(result("SELECT state FROM hybridiot.call_device('$away', 'next')"), 'succeeded', 'the device comes back');
is(scalar(grep { $_->{device} eq $away } $fleet->ledger), 1, 'and gets none of them');
$fleet->command({ offline => [$away] });

# ---------------------------------------------------------------- one that a device holds

$fleet->command({ behaviour => 'hold' });
$fleet->command({ online => [$here] });
my $held = stored($here);
my $until = time + $PostgreSQL::Test::Utils::timeout_default;
select(undef, undef, undef, 0.05) until reached($held) || time > $until;
is(cancel($held), 'too_late', 'what a device holds cannot be taken from it');
last_event_is($held, q{^too late to cancel: it is not in the broker's queue, or a device holds it$}, 'and that is told');
is(state_of($held), 'accepted', 'it stays what it was');
$fleet->command({ settle => $held, as => 'answer' });
$fleet->command({ reply => $held, with => {} });
is(result("SELECT state FROM hybridiot.wait_command('$held', '30 s')"), 'succeeded', 'and its reply counts');
is(cancel($held), 'too_late', 'then it is over');

# A device that takes it, answers, and loses its connection before it has settled: evidence wins.
$fleet->command({ behaviour => 'answer_held' });
my $acted = result("SELECT hybridiot.send_command('$here', 'acted', ttl => '2 min')");
is(result("SELECT state FROM hybridiot.wait_command('$acted', '30 s')"), 'succeeded', 'it answers before it has settled');
$fleet->command({ offline => [$here] });
is(cancel($acted), 'too_late', 'then it is not cancelled though the broker has it again');
is(state_of($acted), 'succeeded', 'it was done');

# ---------------------------------------------------------------- devices and cancels race

$fleet->command({ behaviour => 'answer' });
my @race = map { stored($_) } @racing;
my %told;
my @cancels = map { in_background("SELECT hybridiot.cancel_command('$_')", \$told{$_}) } @race;
$fleet->command({ online => \@racing });
$_->finish for @cancels;
poll_is($node, q{SELECT count(*) FROM hybridiot.command WHERE state NOT IN ('cancelled', 'succeeded')}, 0, 'all are over');
# The queue of a device that got nothing is known to be empty when the next command has come through.
result("SELECT state FROM hybridiot.call_device('$_', 'after')") for @racing;
my @wrong = grep {
	$told{$_} !~ /^(cancelled|too_late)$/ || ($told{$_} =~ /cancelled/) != !reached($_) || ($told{$_} =~ /cancelled/) != (state_of($_) eq 'cancelled')
} @race;
is("@wrong", '', 'each was either cancelled or reached its device: ' . join ' ', map { s/\n//r } values %told);

# ---------------------------------------------------------------- who may not manage

result("CREATE SERVER guest FOREIGN DATA WRAPPER hybridiot_amqp OPTIONS (host '$artemis->{host}', port '$artemis->{port}')");
$id = stored($away, "server => 'guest'");
is(cancel($id), 'too_late', 'who may not manage the broker cannot take it back');
last_event_is($id, '^too late to cancel: the broker (refused|does not let us manage its queues): ', 'and is told why');
is(cancel($id), 'too_late', 'every time');
result('DROP SERVER guest CASCADE');
poll_is($node, q{SELECT count(*) FROM hybridiot.stat_connection}, 1, 'that server is gone');

# ---------------------------------------------------------------- a broker that does not answer

$id = stored($away);
is(result(q{SELECT state FROM hybridiot.stat_connection}), 'up', 'the connection is up');
my $broker = slurp_file("$artemis->{dir}/pid");
my $began = time;
kill 'STOP', $broker;
my $leaver = in_background("SELECT hybridiot.cancel_command('$id') -- leaves", \my $left);
my $stayer = in_background("SELECT hybridiot.cancel_command('$id')", \my $stayed);
poll_is($node, q{SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT hybridiot.cancel_command%' AND state = 'active'}, 2, 'two wait');
result(q{SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query LIKE '%-- leaves' AND pid <> pg_backend_pid()});
$leaver->finish;
like($left, qr/canceling statement/, 'a caller can leave');
$stayer->finish;
is($stayed, "too_late\n", 'no answer in time: too late');
last_event_is($id, '^too late to cancel: the broker (did not answer|took no request) in time$', 'and that is told');
is(state_of($id), 'accepted', 'nobody knows better yet');
kill 'CONT', $broker;
cmp_ok(time - $began, '<', 30, 'long before anything else gave up');
poll_is($node, "SELECT state FROM hybridiot.command WHERE id = '$id'", 'cancelled', 'the answer still counts when it comes late');

# ---------------------------------------------------------------- a broker that goes away

$id = stored($away);
kill 'STOP', $broker;
$stayer = in_background("SELECT hybridiot.cancel_command('$id')", \$stayed);
poll_is($node, q{SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT hybridiot.cancel_command%' AND state = 'active'}, 1, 'one waits');
broker('artemis', 'kill9');
$stayer->finish;
is($stayed, "too_late\n", 'the connection is lost: too late');
is(cancel($id), 'too_late', 'without one, too');
last_event_is($id, '^too late to cancel: there is no connection to the broker$', 'and that is told');
broker('artemis', 'start');
poll_is($node, q{SELECT state FROM hybridiot.stat_connection}, 'up', 'up again');
# It may not be ready for such requests yet.
poll_is($node, "SELECT hybridiot.cancel_command('$id')", 'cancelled', 'the broker had kept it, and gives it back');
$fleet->command({ online => [$away] });
is(result("SELECT state FROM hybridiot.call_device('$away', 'last')"), 'succeeded', 'the device is there');
is(reached($id), 0, 'and never got it');

# ---------------------------------------------------------------- a worker that dies in the middle

# It has asked, and the broker does as it was asked when nobody is there to hear of it: no answer comes, and nobody was told that it was cancelled.
$fleet->command({ offline => [$away] });
$id = stored($away);
my $one_way_too = stored($away, "reply_within => '0'");
my $written = result('SELECT bytes_out FROM hybridiot.stat_connection');
$broker = slurp_file("$artemis->{dir}/pid");
kill 'STOP', $broker;
my @asked = map { in_background("SELECT hybridiot.cancel_command('$_')", \$out[ $_ eq $id ]) } $id, $one_way_too;
poll_is($node, "SELECT bytes_out > $written + 400 FROM hybridiot.stat_connection", 't', 'the broker was asked');
result("UPDATE hybridiot.command SET answer_by = now() WHERE id = '$id'");
kill_worker($node, q{kind = 'amqp'});
$_->finish for @asked;
unlike("@out", qr/cancelled/, 'nobody is told that anything was cancelled');
kill 'CONT', $broker;
poll_is($node, "SELECT state FROM hybridiot.command WHERE id = '$id'", 'timed_out', 'no answer came, as far as anybody can know');
poll_is($node, q{SELECT state FROM hybridiot.stat_connection}, 'up', 'the next worker is connected');
poll_is($node, "SELECT count(*) FROM hybridiot.command_event WHERE cause = 'a reply to an unknown command came'", 2, "the broker's answers are nobody's");
is(state_of($one_way_too), 'accepted', 'the broker had taken the other');
is(cancel($one_way_too), 'too_late', 'it is there no more');
last_event_is($one_way_too, q{^too late to cancel: it is not in the broker's queue}, 'which is told');
$fleet->command({ online => [$away] });
is(result("SELECT state FROM hybridiot.call_device('$away', 'after all')"), 'succeeded', 'the device comes');
is(reached($id) + reached($one_way_too), 0, 'and got neither');
finish();
