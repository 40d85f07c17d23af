# Kills and broken connections while commands are on their way: what may have left is in doubt and never sent
# again, what has not left goes on, and no device sees an id twice.
use strict;
use warnings;
use Hybridiot::Test;
use IPC::Run;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

my $fleet = start_fleet('router', '--devices', 'press-{1..20}');
my $node = new_node('main', conf => "hybridiot.command_server = 'gateway'\nhybridiot.call_slots = 3");

sub result { return $node->safe_psql('test', $_[0]) }

# Seconds a piece of code takes.
sub seconds
{
	my $code = shift;
	my $began = time;
	$code->();
	return time - $began;
}

# A statement in a session of its own.
sub in_background
{
	my ($sql, $error) = @_;
	return IPC::Run::start([ 'psql', '-X', '-A', '-t', '-d', $node->connstr('test'), '-c', $sql ],
		\undef, '>', \my $out, '2>', $error);
}

result("CREATE SERVER gateway FOREIGN DATA WRAPPER hybridiot_amqp OPTIONS (host '127.0.0.1', port '${\$fleet->port}', peer 'router')");
poll_is($node, 'SELECT state FROM hybridiot.stat_connection', 'up', 'the connection is up');

# ---------------------------------------------------------------- callers

$fleet->command({ behaviour => 'hold' });
my $error = '';
my $call = in_background(q{SELECT hybridiot.call_device('press-1', 'cancelled caller', reply_within => '1 min')}, \$error);
poll_is($node, q{SELECT state FROM hybridiot.command WHERE command = 'cancelled caller'}, 'sent', 'a call is in flight');
my $took = seconds(sub {
	result(q{SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query LIKE '%cancelled caller%' AND pid <> pg_backend_pid()});
	$call->finish;
});
cmp_ok($took, '<', 2, 'pg_cancel_backend frees the caller at once');
like($error, qr/canceling statement due to user request/, 'with the usual error');
my $id = result(q{SELECT id FROM hybridiot.command WHERE command = 'cancelled caller'});
$fleet->command({ settle => $id });
$fleet->command({ reply => $id });
is(result("SELECT state FROM hybridiot.wait_command('$id', '20 s')"), 'succeeded', 'the command goes on, and its result is found by id');

$took = seconds(sub {
	my ($status, $out, $err) = $node->psql('test',
		q{SET statement_timeout = '300ms'; SELECT hybridiot.call_device('press-1', 'timeout', reply_within => '1 min')});
	like($err, qr/statement timeout/, 'statement_timeout ends a call');
});
cmp_ok($took, '<', 3, 'at once');

$call = in_background(q{SELECT hybridiot.call_device('press-1', 'terminated caller', reply_within => '1 min')}, \$error);
poll_is($node, q{SELECT state FROM hybridiot.command WHERE command = 'terminated caller'}, 'sent', 'another call is in flight');
result(q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%terminated caller%' AND pid <> pg_backend_pid()});
$call->finish;
$call = in_background(q{SELECT hybridiot.wait_command(id) FROM hybridiot.command WHERE command = 'terminated caller'}, \$error);
poll_is($node, q{SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%hybridiot.wait_command%' AND wait_event_type = 'Extension'}, 1, 'one waits');
result(q{SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query LIKE '%hybridiot.wait_command%' AND pid <> pg_backend_pid()});
$call->finish;
like($error, qr/canceling statement/, 'and can be cancelled too');

# More calls than slots for a role.
$node->safe_psql('postgres', 'ALTER SYSTEM SET hybridiot.max_calls_per_role = 2');
$node->reload;
poll_is($node, 'SHOW hybridiot.max_calls_per_role', 2, 'two calls of a role at most');
my @calls = map { in_background(qq{SELECT hybridiot.call_device('press-1', 'slot $_', reply_within => '1 min')}, \my $e) } 1, 2;
poll_is($node, q{SELECT count(*) FROM hybridiot.command WHERE command LIKE 'slot %' AND state = 'sent'}, 2, 'two calls are in flight');
my ($status, $out, $err) = $node->psql('test', q{SELECT hybridiot.call_device('press-1', 'slot 3')}, extra_params => [ '-v', 'VERBOSITY=verbose' ]);
like($err, qr/53000.*HINT.*max_calls_per_role/s, 'a third is refused at once');

# And more than slots, which are all in use then: what waits can still be cancelled, and resolved.
result('CREATE ROLE flooder; GRANT USAGE ON FOREIGN SERVER gateway TO flooder');
push @calls, in_background(q{SET ROLE flooder; SELECT hybridiot.call_device('press-1', 'slot 4', reply_within => '1 min')}, \my $e);
poll_is($node, q{SELECT count(*) FROM hybridiot.command WHERE command LIKE 'slot %' AND state = 'sent'}, 3, 'another role takes the last slot');
(undef, undef, $err) = $node->psql('test', q{SET ROLE flooder; SELECT hybridiot.call_device('press-1', 'slot 5')}, extra_params => [ '-v', 'VERBOSITY=verbose' ]);
like($err, qr/53000.*HINT.*call_slots/s, 'and no more');
$fleet->command({ no_credit => 'anonymous' });
my $valve = result(q{SELECT hybridiot.send_command('press-1', 'valve', ttl => '10 min')});
is(result("SELECT hybridiot.cancel_command('$valve')"), 'cancelled', 'a role whose calls all wait can cancel');
result("UPDATE hybridiot.command SET state = 'in_doubt' WHERE id = '$valve'");
result("SELECT hybridiot.resolve_command('$valve', 'executed', repeat('x', 1024))");
is(result("SELECT resolution FROM hybridiot.command WHERE id = '$valve'"), 'executed', 'and resolve');
$fleet->command({ credit => 'anonymous' });
result(q{SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query LIKE '%slot %' AND pid <> pg_backend_pid()});
$_->finish for @calls;
$fleet->command({ behaviour => 'answer' });
for (1 .. 5)
{
	is(result(q{SELECT state FROM hybridiot.call_device('press-2', 'after')}), 'succeeded', "slots are free again ($_)");
}
$node->safe_psql('postgres', 'ALTER SYSTEM RESET hybridiot.max_calls_per_role');
$node->reload;

# ---------------------------------------------------------------- the worker dies

# Between sending and answer.
$fleet->command({ behaviour => 'silent' });
my $accepted = result(q{SELECT hybridiot.send_command('press-3', 'accepted', reply_within => '2 min')});
poll_is($node, "SELECT state FROM hybridiot.command WHERE id = '$accepted'", 'accepted', 'one is accepted');
$fleet->command({ behaviour => 'hold' });
my $sent = result(q{SELECT hybridiot.send_command('press-3', 'sent', reply_within => '2 min')});
poll_is($node, "SELECT state FROM hybridiot.command WHERE id = '$sent'", 'sent', 'one is sent');
$fleet->command({ no_credit => 'anonymous' });
my $queued = result(q{SELECT hybridiot.send_command('press-4', 'queued', ttl => '5 min')});
my $pid = kill_worker($node, "kind = 'amqp'");
poll_is($node, "SELECT state FROM hybridiot.command WHERE id = '$sent'", 'in_doubt', 'what was sent is in doubt');
is(result("SELECT state FROM hybridiot.command WHERE id = '$accepted'"), 'accepted', 'what was accepted still is');
is(result("SELECT state FROM hybridiot.command WHERE id = '$queued'"), 'queued', 'what was queued still is');
$fleet->command({ behaviour => 'answer' });    # before the credit: the command leaves at once
$fleet->command({ credit => 'anonymous' });
is(result("SELECT state FROM hybridiot.wait_command('$queued', '60 s')"), 'succeeded', 'and leaves with the next worker');
poll_is($node, 'SELECT state FROM hybridiot.stat_connection', 'up', 'which is connected');
$fleet->command({ reply => $accepted });
is(result("SELECT state FROM hybridiot.wait_command('$accepted', '20 s')"), 'succeeded', 'a reply to what was accepted in an earlier life');
$fleet->command({ reply => $sent, with => { status => 500 } });
poll_is($node, "SELECT state FROM hybridiot.command WHERE id = '$sent'", 'failed', 'and one to what was in doubt');
is($fleet->twice, '', 'no id reached a device twice');

# The worker ends in good order while somebody waits.
$fleet->command({ behaviour => 'hold' });
$call = IPC::Run::start([ 'psql', '-X', '-A', '-t', '-d', $node->connstr('test'), '-c',
	q{SELECT state FROM hybridiot.call_device('press-1', 'orphan', reply_within => '1 min')} ], \undef, '>', \$out, '2>', \$error);
poll_is($node, q{SELECT state FROM hybridiot.command WHERE command = 'orphan'}, 'sent', 'a call is in flight');
kill 'TERM', worker_pid($node, "kind = 'amqp'");
$took = seconds(sub { $call->finish });
is($out, "in_doubt\n", 'its caller hears that nobody knows');
cmp_ok($took, '<', 3, 'at once');
poll_is($node, q{SELECT state FROM hybridiot.command WHERE command = 'orphan'}, 'in_doubt', 'and so says the journal');

# ---------------------------------------------------------------- kills at random under load

$fleet->command({ behaviour => { as => 'answer', outcome_delay => 5, reply => { delay => 5 } } });
my ($kills, $inside) = (0, 0);
for my $round (1 .. 5)
{
	my $pid = worker_pid($node, "kind = 'amqp'");
	poll_is($node, 'SELECT state FROM hybridiot.stat_connection', 'up', "round $round: connected");
	$node->safe_psql('test', q{INSERT INTO hybridiot.command (device, command, ttl, reply_within)
		SELECT 'press-' || 1 + i % 20, 'load', '2 min', '4 s' FROM generate_series(0, 2999) i});
	sleep 0.02 + rand 0.3;
	$inside++ if result(q{SELECT EXISTS (SELECT FROM hybridiot.command WHERE command = 'load' AND state IN ('sending', 'sent', 'accepted'))}) eq 't';
	if ($round == 5) { kill_postmaster($node) }
	else { kill_worker($node, "kind = 'amqp'") }
	$kills++;
	poll_is($node, q{SELECT count(*) FROM hybridiot.command WHERE command = 'load' AND state NOT IN ('succeeded', 'in_doubt', 'timed_out')},
		0, "round $round: all came to an end");
}
note("$kills kills, $inside while commands were in flight");
cmp_ok($inside, '>=', $kills / 2, 'at least half of the kills hit commands in flight');
is(result(q{SELECT count(*) FROM hybridiot.command WHERE command = 'load'}), 3000 * $kills, 'none is lost');
is($fleet->twice, '', 'no id reached a device twice');
my %reached = map { $_ => 1 } $fleet->ledger_column('id');
is((grep { !$reached{$_} } split /\n/, result(q{SELECT id FROM hybridiot.command WHERE command = 'load' AND state = 'succeeded'})),
	0, 'what succeeded did reach its device');
note('in doubt: ' . result(q{SELECT count(*) FROM hybridiot.command WHERE command = 'load' AND state = 'in_doubt'}));

# ---------------------------------------------------------------- connections break under load

poll_is($node, 'SELECT state FROM hybridiot.stat_connection', 'up', 'connected');
my $restarts = worker_pid($node, "kind = 'amqp'");
my $before = result('SELECT count(*) FROM hybridiot.command');
for my $how (qw(drop reset session link connection), qw(drop reset session link connection))
{
	result(q{INSERT INTO hybridiot.command (device, command, ttl, reply_within)
		SELECT 'press-' || 1 + i % 20, 'broken', '2 min', '3 s' FROM generate_series(0, 499) i});
	sleep rand 0.1;
	$fleet->command({ break => $how });
}
poll_is($node, q{SELECT count(*) FROM hybridiot.command WHERE command = 'broken'
	AND state NOT IN ('succeeded', 'in_doubt', 'timed_out')}, 0, 'all came to an end');
is(result('SELECT count(*) FROM hybridiot.command') - $before, 5000, 'none is lost');
is($fleet->twice, '', 'no id reached a device twice');
is(worker_pid($node, "kind = 'amqp'"), $restarts, 'the same worker all the time');
note('broken: ' . result(q{SELECT string_agg(state || ' ' || n, ', ') FROM
	(SELECT state, count(*) AS n FROM hybridiot.command WHERE command = 'broken' GROUP BY state) s}));

# Each way a connection can end with one command in flight.
for my $behaviour (qw(drop_before reset_before end_session_before detach_before close_before))
{
	$fleet->command({ behaviour => $behaviour });
	is(result(q{SELECT state FROM hybridiot.call_device('press-1', 'one', ttl => '20 s')}), 'in_doubt', "$behaviour: in doubt");
	$fleet->command({ behaviour => 'answer' });
	is(result(q{SELECT state FROM hybridiot.call_device('press-1', 'next', ttl => '20 s')}), 'succeeded', 'and the next one goes well');
}
is($fleet->twice, '', 'no id reached a device twice');

# The socket stops taking: what waits in our own memory can still expire.
$fleet->command({ pause => JSON::PP::true });
result(q{INSERT INTO hybridiot.command (device, command, payload, ttl, reply_within)
	SELECT 'press-1', 'stuck', jsonb_build_object('x', repeat('x', 100000)), '2 s', '3 s' FROM generate_series(1, 250) i});
poll_is($node, q{SELECT count(*) > 0 FROM hybridiot.command WHERE command = 'stuck' AND state IN ('expired', 'undeliverable')}, 't',
	'commands behind a socket that does not take them expire');
$fleet->command({ pause => JSON::PP::false });
poll_is($node, q{SELECT count(*) FROM hybridiot.command WHERE command = 'stuck' AND state IN ('queued', 'sending', 'sent', 'accepted')}, 0,
	'all came to an end');
%reached = map { $_ => 1 } $fleet->ledger_column('id');
is((grep { $reached{$_} } split /\n/, result(q{SELECT id FROM hybridiot.command WHERE command = 'stuck' AND state IN ('expired', 'undeliverable')})),
	0, 'what expired never arrived');

# ---------------------------------------------------------------- locks on the journal

$call = in_background(q{BEGIN; LOCK hybridiot.command IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(2); ROLLBACK}, \$error);
poll_is($node, q{SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND granted AND relation = 'hybridiot.command'::regclass}, 1,
	'somebody locks the journal');
($status, $out, $err) = $node->psql('test', q{SELECT hybridiot.call_device('press-1', 'locked out')}, extra_params => [ '-v', 'VERBOSITY=verbose' ]);
like($err, qr/55P03/, 'a call fails instead of waiting for ever');
$call->finish;
is(result(q{SELECT state FROM hybridiot.call_device('press-1', 'fan')}), 'succeeded', 'and afterwards all is well');

finish();
