# Fairness: who queues very many commands does not make others wait, whatever stands between; and what a role may
# have in flight is bounded.
use strict;
use warnings;
use Hybridiot::Test;
use PostgreSQL::Test::Utils;
use Test::More;

my $fleet = start_fleet('router', '--any-device');
my $node = new_node('fair', conf => "hybridiot.command_server = 'gateway'\n");
my ($out, $err);
$node->safe_psql('test', "CREATE SERVER gateway FOREIGN DATA WRAPPER hybridiot_amqp OPTIONS (host '127.0.0.1', port '@{[ $fleet->port ]}', peer 'router');
	CREATE ROLE flooder LOGIN; CREATE ROLE other_flooder LOGIN; CREATE ROLE victim LOGIN;
	GRANT USAGE ON FOREIGN SERVER gateway TO flooder, other_flooder, victim");
poll_is($node, 'SELECT state FROM hybridiot.stat_connection', 'up', 'the connection is up');

sub as
{
	my ($role, $sql) = @_;
	return $node->safe_psql('test', $sql, extra_params => [ '-U', $role ]);
}

# How many commands of the flood were reached before the victim's last.
sub before_victim
{
	my ($flood, $victim) = @_;
	my $n = 0;
	my $floods = 0;
	for ($fleet->ledger_column('subject'))
	{
		$floods++ if /^$flood/;
		$n = $floods if $_ eq $victim;
	}
	return $n;
}

# ---------------------------------------------------------------- one device each, and one link for all

my $flood = 30_000;
$fleet->command({ no_credit => 'anonymous' });
is(as('victim', q{SELECT count(*) FROM hybridiot.command}), 0, 'nothing is there');
as('flooder', qq{INSERT INTO hybridiot.command (device, command, ttl, reply_within)
	SELECT 'press-' || i % 10, 'flood', '10 min', '0' FROM generate_series(1, $flood) i});
as('victim', q{SELECT hybridiot.send_command('press-1', 'victim', ttl => '10 min')});
$fleet->command({ credit => 'anonymous' });
poll_is($node, q{SELECT state FROM hybridiot.command WHERE command = 'victim'}, 'succeeded', 'who came after a flood is served');
cmp_ok(before_victim('flood', 'victim'), '<', $flood / 10, 'long before it is over');

# Calls of many devices wait for credit too, and the journal is not written for seconds because of them.
my $call = start_psql('flooder', q{SELECT count(*) FROM hybridiot.call_devices(ARRAY(SELECT 'press-' || i FROM generate_series(1, 5000) i), 'called', ttl => '5 min', reply_within => '1 min')
	WHERE state = 'succeeded'});
poll_is($node, q{SELECT count(*) > 0 FROM hybridiot.command WHERE command = 'called'}, 't', 'five thousand are called');
is(as('victim', q{SELECT state FROM hybridiot.call_device('press-1', 'victim call', ttl => '1 min', reply_within => '1 min')}),
	'succeeded', 'a call beside the flood');
$call->{handle}->finish;
is(${ $call->{out} }, "5000\n", 'and all of the flooder\'s were answered');
cmp_ok(before_victim('called', 'victim call'), '<', 4000, 'the other did not wait for them');

poll_is($node, q{SELECT count(*) FROM hybridiot.command WHERE command = 'flood' AND state <> 'accepted'}, 0, 'the flood came to its end');
is((grep { $_ eq 'flood' } $fleet->ledger_column('subject')), $flood, 'complete');

# ---------------------------------------------------------------- in order

$fleet->command({ no_credit => 'anonymous' });
for my $role (qw(flooder other_flooder))
{
	as($role, qq{INSERT INTO hybridiot.command (device, command, ttl, reply_within) SELECT 'press-1', '$role ' || i, '10 min', '0' FROM generate_series(1, 3000) i});
}
$fleet->command({ credit => 'anonymous' });
poll_is($node, q{SELECT count(*) FROM hybridiot.command WHERE command ~ 'flooder ' AND state = 'accepted'}, 6000, 'two floods');
for my $role (qw(flooder other_flooder))
{
	my @order = map { /^$role (\d+)$/ ? $1 : () } $fleet->ledger_column('subject');
	is_deeply(\@order, [ 1 .. 3000 ], "commands of $role reached their device in the order they were queued");
}
my @mixed = map { /^(\w+) \d+$/ ? $1 : () } $fleet->ledger_column('subject');
my $first_half = grep { $_ eq 'other_flooder' } @mixed[ 0 .. 2999 ];
cmp_ok($first_half, '>', 1000, 'and those of the other left beside them');

# ---------------------------------------------------------------- many wait for their answers

# What was accepted and waits for an answer does not keep others from being sent.
$fleet->command({ behaviour => 'silent' });
as('flooder', q{INSERT INTO hybridiot.command (device, command, ttl, reply_within) SELECT 'press-1', 'unanswered', '10 min', '10 min' FROM generate_series(1, 12000)});
poll_is($node, q{SELECT count(*) FROM hybridiot.command WHERE command = 'unanswered' AND state = 'accepted'}, 12000, 'twelve thousand wait for an answer');
$fleet->command({ behaviour => 'answer' });
my $id = as('victim', q{SELECT hybridiot.send_command('press-2', 'among them', ttl => '5 min')});
is(as('victim', "SELECT state FROM hybridiot.wait_command('$id', '60 s')"), 'succeeded', 'and others are still served');

# ---------------------------------------------------------------- bounds

my $large = q{SELECT count(*) FROM hybridiot.call_devices(ARRAY(SELECT 'press-' || i FROM generate_series(1, 20) i), 'large', body => decode(repeat('00', 8000000), 'hex'))};
(undef, $out, $err) = $node->psql('test', $large, extra_params => [ '-U', 'flooder', '-v', 'VERBOSITY=verbose' ]);
like($err, qr/53000.*too large together.*HINT/s, 'calls of a role have a share of the memory');
is(as('victim', q{SELECT state FROM hybridiot.call_device('press-1', 'small')}), 'succeeded', 'others can call');

# ---------------------------------------------------------------- a server that can be used only later

$node->safe_psql('test', "CREATE SERVER later FOREIGN DATA WRAPPER hybridiot_amqp OPTIONS (host '127.0.0.1', port '@{[ $fleet->port ]}', peer 'router', sasl_mechanism 'PLAIN')");
$id = $node->safe_psql('test', q{SELECT hybridiot.send_command('press-1', 'patient', server => 'later', ttl => '5 min')});
poll_is($node, q{SELECT last_error ~ 'user mapping' FROM hybridiot.stat_connection WHERE server = 'later'}, 't', 'a server without its user');
poll_is($node, 'SELECT count(*) FROM hybridiot.command_origin WHERE epoch IS NULL', 1, 'a command waits for it');
$node->safe_psql('test', q{ALTER SERVER later OPTIONS (SET sasl_mechanism 'ANONYMOUS')});
is($node->safe_psql('test', "SELECT state FROM hybridiot.wait_command('$id', '60 s')"), 'succeeded', 'and leaves when it can be used');

# ---------------------------------------------------------------- what a peer has in its hands

# A device that tells no outcome. Alone its sender hands over all that he has; beside another no more than a window, and
# goes on when the oldest has lasted 50 ms. By the worker's clock, so a slow machine makes only the first of these bounds tighter.
$fleet->command({ rule => { device => 'mute', behaviour => 'hold' } });
$node->safe_psql('test', "CREATE SERVER nowhere FOREIGN DATA WRAPPER hybridiot_amqp OPTIONS (host '127.0.0.1', port '1', peer 'router');
	CREATE ROLE holder LOGIN; GRANT USAGE ON FOREIGN SERVER gateway, nowhere TO holder, victim");

sub hold
{
	my ($name, $n) = @_;
	as('holder', qq{INSERT INTO hybridiot.command (device, command, ttl, reply_within) SELECT 'mute', '$name', '10 min', '10 min' FROM generate_series(1, $n) i});
	poll_is($node, qq{SELECT count(*) FROM hybridiot.command WHERE command = '$name' AND state = 'sent'}, $n, "$n $name without an outcome");
	return $node->safe_psql('test', qq{SELECT extract(epoch FROM max(sent_at) - min(sent_at)) FROM hybridiot.command WHERE command = '$name'});
}

cmp_ok(hold('alone', 2000), '<', 12, 'alone a sender does not wait for outcomes');
$id = as('victim', q{SELECT hybridiot.send_command('press-1', 'waits', server => 'nowhere', ttl => '10 min')});
cmp_ok(hold('beside another', 200), '>', 1, 'beside another he has a window, which opens though no outcome comes');
is(as('victim', q{SELECT state FROM hybridiot.call_device('press-1', 'after the silent', ttl => '1 min')}), 'succeeded', 'the other is served');
is(as('victim', "SELECT hybridiot.cancel_command('$id')"), 'cancelled', 'nobody waits any more');

$fleet->stop;
finish();

sub start_psql
{
	my ($role, $sql) = @_;
	my $result = '';
	my $handle = IPC::Run::start([ 'psql', '-X', '-A', '-t', '-U', $role, '-d', $node->connstr('test'), '-c', $sql ], \undef, '>', \$result);
	return { handle => $handle, out => \$result };
}
