# What outlives a connection: replies wait in the queue of the reply address until a worker is there again, and
# when one host of a list is lost, commands go on through the others.
use strict;
use warnings;
use Hybridiot::Test;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

my $artemis = artemis();
my $press = unique('press');
my $fleet = start_fleet('devices', '--devices', $press);
my $node = new_node('replies', conf => "hybridiot.command_server = 'gateway'");

sub result { return $node->safe_psql('test', $_[0]) }

# Sent to a device that keeps its answer for later.
sub taken
{
	my ($command, $within) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$fleet->command({ behaviour => 'silent' });
	my $id = result("SELECT hybridiot.send_command('$press', '$command', reply_within => '$within')");
	my $until = time + $PostgreSQL::Test::Utils::timeout_default;
	sleep 0.02 until (grep { $_->{id} eq $id } $fleet->ledger) || time > $until;
	poll_is($node, "SELECT state FROM hybridiot.command WHERE id = '$id'", 'accepted', "$command: the device has it");
	return $id;
}

# The device answers, and the broker has taken the answer.
sub answers
{
	my ($id, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $until = time + $PostgreSQL::Test::Utils::timeout_default;
	my @said;
	$fleet->command({ reply => $id, with => { payload => { answer => $id } } });
	sleep 0.02 until (@said = grep { $_->{event} eq 'reply' && $_->{id} eq $id && $_->{outcome} } $fleet->events) || time > $until;
	is("@{[ map { $_->{outcome} } @said ]}", 'accepted', $name);
	return;
}

sub answered
{
	my ($id, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is(result("SELECT state || ' ' || (payload ->> 'answer') FROM hybridiot.wait_command('$id', '1 min')"), "succeeded $id", $name);
	return;
}

sub enabled
{
	my ($enabled) = @_;
	$node->safe_psql('test', "ALTER SYSTEM SET hybridiot.enabled = $enabled");
	$node->safe_psql('test', 'SELECT pg_reload_conf()');
	return;
}

sub up { return poll_is($node, q{SELECT state FROM hybridiot.stat_connection WHERE server = 'gateway'}, 'up', 'the connection is up') }

result("CREATE SERVER gateway FOREIGN DATA WRAPPER hybridiot_amqp OPTIONS (host '$artemis->{host}', port '$artemis->{port}')");
result("CREATE USER MAPPING FOR CURRENT_USER SERVER gateway OPTIONS (user '$artemis->{user}', password '$artemis->{password}')");
up();

# ---------------------------------------------------------------- replies that come while nobody reads them

my $id = taken('paused', '10 min');
enabled('off');
poll_is($node, q{SELECT count(*) FROM hybridiot.stat_worker WHERE kind = 'amqp' AND pid IS NOT NULL}, 0, 'the worker is gone');
answers($id, 'the reply address takes a reply without it');
is(result("SELECT state FROM hybridiot.command WHERE id = '$id'"), 'accepted', 'which nobody has read');
enabled('on');
answered($id, 'the next worker takes it');

# A command that ended long ago goes at the next start, and its reply comes after that.
my $removed = taken('removed', '10 ms');
poll_is($node, "SELECT state FROM hybridiot.command WHERE id = '$removed'", 'timed_out', 'one that nobody answered');
result("UPDATE hybridiot.command SET queued_at = queued_at - interval '1 year' WHERE id = '$removed'");
$id = taken('stopped', '10 min');
$node->stop;
answers($id, 'nor needs it the server');
$node->start;
answered($id, 'the next server takes it');
poll_is($node, "SELECT count(*) FROM hybridiot.command WHERE id = '$removed'", 0, 'what is older than the retention is gone');
answers($removed, 'its reply is taken from the broker');
poll_is($node, "SELECT count(*) FROM hybridiot.command_event WHERE command_id = '$removed' AND cause = 'a reply to an unknown command came'", 1,
	'and told');
is(result("SELECT count(*) FROM hybridiot.command WHERE id = '$removed'"), 0, 'it does not come back');

# ---------------------------------------------------------------- connections that are lost

$id = taken('another', '10 min');
result(q{ALTER SERVER gateway OPTIONS (ADD idle_timeout '50 s')});
answers($id, 'a reply while the connection changes');
answered($id, 'is taken by one or the other');
$id = taken('killed', '10 min');
broker('artemis', 'kill9');
poll_is($node, q{SELECT state FROM hybridiot.stat_connection WHERE server = 'gateway'}, 'retrying', 'the broker is gone');
broker('artemis', 'start');
answers($id, 'when it is back the device answers');
answered($id, 'which is taken');
is(result(q{SELECT count(*) FROM hybridiot.command WHERE state <> 'succeeded'}), 0, 'all have been answered');
$fleet->command({ behaviour => 'answer' });
is(result("SELECT state FROM hybridiot.call_device('$press', 'next')"), 'succeeded', 'and the next is');
result('DROP SERVER gateway CASCADE');

# ---------------------------------------------------------------- a list of hosts

my ($first, $second) = map { start_fleet('router', '--devices', 'press-{1..3}') } 1 .. 2;
$first->command({ listen => JSON::PP::false });
result("CREATE SERVER gateway FOREIGN DATA WRAPPER hybridiot_amqp
	OPTIONS (host '127.0.0.1,127.0.0.1', port '@{[ $first->port, $second->port ]}', peer 'router')" =~ s/(\d+) (\d+)/$1,$2/r);
up();
is(result(q{SELECT state FROM hybridiot.call_device('press-1', 'fan')}), 'succeeded', 'the second is used');
is(scalar($second->ledger), 1, 'and has it');

# It is lost while a device holds one command and others wait for credit.
$second->command({ behaviour => 'hold' });
my $held = result(q{SELECT hybridiot.send_command('press-1', 'held')});
poll_is($node, "SELECT state FROM hybridiot.command WHERE id = '$held'", 'sent', 'a device holds one');
$second->command({ no_credit => 'anonymous' });
poll_is($node, 'SELECT credit FROM hybridiot.stat_connection', 0, 'others will wait for credit');
result(q{INSERT INTO hybridiot.command (device, command, expires_at)
	SELECT 'press-' || 1 + i % 3, 'waits', now() + interval '10 min' FROM generate_series(1, 300) i});
$first->command({ listen => JSON::PP::true });
$second->command({ listen => JSON::PP::false });
poll_is($node, q{SELECT count(*) FROM hybridiot.command WHERE command = 'waits' AND state = 'succeeded'}, 300, 'they go on through the first');
is(result("SELECT state FROM hybridiot.command WHERE id = '$held'"), 'in_doubt', 'what the device held is in doubt');
is(result(q{SELECT state || ' ' || (last_error ~ 'closed|reset|refused|ended') FROM hybridiot.stat_connection}), 'up true', 'up, and what happened is told');
is(join(' ', map { $_->{subject} } $second->ledger), 'fan held', 'none of them went to the second');

# A host that takes connections only to close them is as good as closed.
$second->command({ $_->[0] => $_->[1] }) for [ credit => 'anonymous' ], [ behaviour => 'answer' ], [ listen => JSON::PP::true ];
$first->command({ refuse => JSON::PP::true });
$first->command({ break => 'drop' });
is(result(q{SELECT state FROM hybridiot.call_device('press-2', 'after', ttl => '2 min', reply_within => '2 min')}), 'succeeded', 'one that refuses us is left, too');
is(($second->ledger)[-1]{subject}, 'after', 'for the other');
is(result('SELECT last_error FROM hybridiot.stat_connection'), 'amqp:connection:forced: not now', 'and why is told');

my %times;
$times{ $_->{id} }++ for $fleet->ledger, $first->ledger, $second->ledger;
is((grep { $_ > 1 } values %times), 0, 'no id reached a device twice');
is(result(q{SELECT count(*) FROM hybridiot.command WHERE state NOT IN ('succeeded', 'in_doubt')}), 0, 'and none was lost');
$_->stop for $fleet, $first, $second;
finish();
