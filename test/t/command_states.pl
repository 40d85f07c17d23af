# The state table of a command, row by row, against the router double: what the peer says, what the device
# answers, in time, late, twice, wrongly or never; and what is on the wire.
use strict;
use warnings;
use Hybridiot::Test;
use PostgreSQL::Test::Utils;
use Test::More;

my $fleet = start_fleet('router', '--devices', 'press-{1..9}', '--offline', 'press-9');
my $node = new_node('main');
$node->safe_psql('test', <<~END);
	CREATE SERVER gateway FOREIGN DATA WRAPPER hybridiot_amqp
		OPTIONS (host '127.0.0.1', port '${\$fleet->port}', peer 'router', tenant 'plant 1');
	ALTER DATABASE test SET hybridiot.command_server = 'gateway';
	END
poll_is($node, 'SELECT state FROM hybridiot.stat_connection', 'up', 'the connection is up');

# A device that behaves, a name of its own for each call: press-1 to press-8 in turn.
my $next = 0;

sub behave
{
	my $behaviour = shift;
	my $device = 'press-' . (1 + $next++ % 8);
	$fleet->command({ clear_rules => JSON::PP::true });
	$fleet->command({ rule => { device => $device, behaviour => $behaviour } });
	return $device;
}

sub result
{
	my ($sql) = @_;
	return $node->safe_psql('test', $sql);
}

# outcome($behaviour, $expected, $name, more arguments): state and what the peer said.
sub outcome
{
	my ($behaviour, $expected, $name, $more) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $device = behave($behaviour);
	is( result("SELECT concat_ws(' ', state, accepted_by, status, condition) FROM hybridiot.call_device('$device', 'fan', "
			. "'{\"on\": true}', reply_within => '1 s'" . ($more ? ", $more" : '') . ')'),
		$expected, $name);
	return $device;
}

# events($id): states it went through, and what was noted beside them in parentheses.
sub events_of
{
	my $id = shift;
	return result("SELECT string_agg(coalesce(state, '(' || cause || ')'), ' ' ORDER BY at) FROM hybridiot.command_event WHERE command_id = '$id'");
}

# send($behaviour, ...): queue one, return its id.
sub queue
{
	my ($device, $more) = @_;
	return result("SELECT hybridiot.send_command('$device', 'fan', '{\"on\": true}'" . ($more ? ", $more" : '') . ')');
}

sub state_of
{
	my $id = shift;
	return result("SELECT concat_ws(' ', state, status) FROM hybridiot.command WHERE id = '$id'");
}

sub reached
{
	my $id = shift;
	return scalar grep { $_ eq $id } $fleet->ledger_column('id');
}

# ---------------------------------------------------------------- what a peer can say

outcome('answer', 'succeeded device 200', 'accepted and answered');
outcome('fail', 'failed device 500', 'a status that is not 2xx');
outcome({ reply => { status => 204 } }, 'succeeded device 204', 'another 2xx');
outcome({ reply => { status => undef } }, 'succeeded device 200', 'no status means 200');
outcome({ reply => { status => 404, status_type => $_ } }, 'failed device 404', "status as $_")
	for qw(uint long short);
outcome({ reply => { status => 200, status_type => 'string' } }, 'failed device hybridiot:invalid-status',
	'a status that is no integer is not taken for one');
outcome('early', 'succeeded 200', 'a reply overtakes the outcome');
outcome('silent', 'timed_out device', 'accepted, no reply');
outcome('reject', 'rejected amqp:not-allowed', 'rejected, with its condition');
outcome('release', 'undeliverable', 'released by a router was not executed');
outcome('modify', 'in_doubt', 'modified');
outcome('bare', 'in_doubt', 'settled without a state');
outcome('hold', 'in_doubt', 'no outcome by the answer deadline');
outcome('answer_held', 'succeeded 200', 'an answer without an outcome');
outcome('gone', 'in_doubt', 'the device goes while it has the command');
$fleet->command({ online => ['press-*'] });
$fleet->command({ offline => ['press-9'] });
my $device = behave('silent');
is(result("SELECT state FROM hybridiot.call_device('$device', 'fan', reply_within => '0')"), 'accepted',
	'one-way: accepted is final');
is(($fleet->ledger)[-1]{reply_to}, undef, 'one-way: no reply is asked for');

# ---------------------------------------------------------------- offline devices

my $began = time;
is(result(q{SELECT state FROM hybridiot.call_device('press-9', 'fan', ttl => '1 min', reply_within => '1 min')}),
	'undeliverable', 'direct to an offline device is undeliverable');
cmp_ok(time - $began, '<', 5, 'at once');

# Store mode on a router: the journal is the store.
my $id = queue('press-9', "mode => 'store', ttl => '1 min'");
poll_is($node, "SELECT count(*) >= 2 FROM hybridiot.command_event WHERE command_id = '$id' AND state = 'queued' AND cause = 'released'",
	't', 'store: offered again and again');
is(state_of($id), 'queued', 'and queued between');
$fleet->command({ online => ['press-9'] });
is(result("SELECT state FROM hybridiot.wait_command('$id', '20 s')"), 'succeeded', 'executed when the device comes back');
is(reached($id), 1, 'once');
$fleet->command({ offline => ['press-9'] });
$id = queue('press-9', "mode => 'store', ttl => '1 s'");
is(result("SELECT state FROM hybridiot.wait_command('$id', '20 s')"), 'expired', 'after the TTL it has expired');
$fleet->command({ online => ['press-9'] });
is(result(q{SELECT state FROM hybridiot.call_device('press-9', 'fan')}), 'succeeded', 'the device is back');
is(reached($id), 0, 'and never got it');
$fleet->command({ offline => ['press-9'] });

# ---------------------------------------------------------------- cancel

$id = queue('press-9', "mode => 'store', ttl => '1 min'");
is(result("SELECT hybridiot.cancel_command('$id')"), 'cancelled', 'a command that has not left can be cancelled');
is(state_of($id), 'cancelled', 'and is');
is(result("SELECT hybridiot.cancel_command('$id')"), 'cancelled', 'twice makes no difference');
$device = behave('hold');
$id = queue($device);
poll_is($node, "SELECT state FROM hybridiot.command WHERE id = '$id'", 'sent', 'sent, and held by the device');
is(result("SELECT hybridiot.cancel_command('$id')"), 'too_late', 'what was handed over cannot be cancelled');
$fleet->command({ settle => $id });
$fleet->command({ reply => $id });
is(result("SELECT state FROM hybridiot.wait_command('$id', '20 s')"), 'succeeded', 'and goes on');

# No credit: the anonymous link is open, and nothing may be sent.
$fleet->command({ no_credit => 'anonymous' });
$id = queue('press-1', "ttl => '1 min'");
my $short = queue('press-1', "ttl => '1 s'");
my $stored = queue('press-1', "ttl => '1 s', mode => 'store'");
is(result("SELECT state FROM hybridiot.wait_command('$short', '20 s')"), 'undeliverable', 'direct: no credit by the deadline');
is(result("SELECT state FROM hybridiot.wait_command('$stored', '20 s')"), 'expired', 'store: expired');
is(result("SELECT hybridiot.cancel_command('$id')"), 'cancelled', 'one that waits for credit can be cancelled');
$fleet->command({ credit => 'anonymous' });
is(result(q{SELECT state FROM hybridiot.call_device('press-2', 'fan')}), 'succeeded', 'credit comes back');
is(reached($_), 0, 'nothing of it arrived') for $id, $short, $stored;

# ---------------------------------------------------------------- replies: late, second, wrong, retyped

for my $form (qw(uuid_id binary_id text_id upper_id message_id))
{
	outcome($form, 'succeeded device 200', "a reply's id as $form");
}
for my $form (qw(unknown_id garbage_id no_id))
{
	outcome($form, 'timed_out device', "$form answers nothing");
}
is(result(q{SELECT count(*) FROM hybridiot.command_event WHERE cause = 'a reply to an unknown command came'}), 1,
	'a reply to an unknown command is kept as an event');
is(result(q{SELECT count(*) FROM hybridiot.command_event WHERE command_id IS NULL}), 2, 'and those that name none');
outcome('other_device', 'timed_out device', 'a reply that names another device is not taken');
is(result(q{SELECT count(*) FROM hybridiot.command_event WHERE cause = 'a reply that names another device came'}), 1,
	'but kept as an event');

$device = behave('contradict');
$id = queue($device);
is(result("SELECT concat_ws(' ', state, status) FROM hybridiot.wait_command('$id', '20 s')"), 'succeeded 200', 'the first reply wins');
poll_is($node, "SELECT count(*) FROM hybridiot.command_event WHERE command_id = '$id' AND cause = 'a second reply came'", 1,
	'the second is an event');
is(state_of($id), 'succeeded 200', 'and changes nothing');

# late($behaviour, $state, $with, $expected): evidence that comes after the end.
sub late
{
	my ($behaviour, $state, $with, $expected) = @_;
	my $device = behave($behaviour);
	my $id = queue($device, "reply_within => '500 ms'");
	is(result("SELECT state FROM hybridiot.wait_command('$id', '20 s')"), $state, "$state");
	$fleet->command({ reply => $id, with => $with });
	poll_is($node, "SELECT concat_ws(' ', state, status) FROM hybridiot.command WHERE id = '$id'", $expected,
		"and then a late reply: $expected");
	is(reached($id), 1, 'the device got it once');
	return;
}
late('silent', 'timed_out', {}, 'succeeded 200');
late('silent', 'timed_out', { status => 500 }, 'failed 500');
late('hold', 'in_doubt', {}, 'succeeded 200');
late('reject', 'rejected', {}, 'succeeded 200');
late('release', 'undeliverable', { status => 409 }, 'failed 409');

# Late outcomes.
for ([ 'reject', 'rejected' ], [ 'release', 'undeliverable' ], [ 'modify', 'in_doubt' ])
{
	my ($as, $expected) = @$_;
	$device = behave('hold');
	$id = queue($device, "reply_within => '300 ms'");
	is(result("SELECT state FROM hybridiot.wait_command('$id', '20 s')"), 'in_doubt', 'in doubt');
	$fleet->command({ settle => $id, as => $as });
	poll_is($node, "SELECT state FROM hybridiot.command WHERE id = '$id'", $expected, "and then a late outcome: $as");
}
$device = behave({ as => 'silent', reply => { delay => 200 }, outcome => 'never' });
$id = queue($device);
is(result("SELECT state FROM hybridiot.wait_command('$id', '20 s')"), 'succeeded', 'a reply before any outcome');
$fleet->command({ settle => $id });
poll_is($node, "SELECT count(*) FROM hybridiot.command_event WHERE command_id = '$id' AND cause = 'outcome accepted came late'", 1,
	'the outcome then is only an event');

# ---------------------------------------------------------------- bodies

$device = behave({ reply => { payload => { temp => 21.5, ok => JSON::PP::true } } });
is(result("SELECT payload FROM hybridiot.call_device('$device', 'read')"), '{"ok": true, "temp": 21.5}', 'a JSON reply is its payload');
$device = behave({ reply => { body => 'twenty-one', content_type => 'text/plain' } });
is(result("SELECT content_type || ' ' || convert_from(body, 'UTF8') FROM hybridiot.call_device('$device', 'read')"),
	'text/plain twenty-one', 'another is its body');
is(result('SELECT w.content_type FROM hybridiot.command c, hybridiot.wait_command(c.id) w ORDER BY c.queued_at DESC LIMIT 1'),
	'text/plain', 'and keeps its content type in the journal');
$device = behave({ reply => { body => '{"broken', content_type => 'application/json' } });
is(result("SELECT convert_from(body, 'UTF8') FROM hybridiot.call_device('$device', 'read')"), '{"broken', 'JSON that is none is a body');
$device = behave({ reply => { body => '"\\u0000"', content_type => 'application/json' } });
is(result("SELECT payload IS NULL AND body IS NOT NULL FROM hybridiot.call_device('$device', 'read')"), 't', 'and JSON that jsonb does not hold');
$device = behave({ reply => { body_kind => $_, payload => { a => 1 } } })
	and is(result("SELECT payload FROM hybridiot.call_device('$device', 'read')"), '{"a": 1}', "a body of kind $_")
	for qw(split value);
$device = behave({ reply => { body_kind => 'none' } });
is(result("SELECT state || coalesce(payload::text, ' -') FROM hybridiot.call_device('$device', 'read')"), 'succeeded -', 'no body at all');
$device = behave({ reply => { body_size => 1_000_000, content_type => 'text/plain' } });
is(result("SELECT length(body) FROM hybridiot.call_device('$device', 'read')"), 1_000_000, 'a reply just below the limit');
$device = behave({ reply => { body_size => 3_000_000 } });
is(result("SELECT state || ' ' || condition FROM hybridiot.call_device('$device', 'read')"),
	'failed amqp:link:message-size-exceeded', 'one above it');
is(result(q{SELECT state FROM hybridiot.call_device('press-1', 'fan')}), 'succeeded', 'and the connection lives');

# ---------------------------------------------------------------- on the wire

$fleet->command({ clear_rules => JSON::PP::true });
result(q{SELECT state FROM hybridiot.call_device('press-1', 'set', '{"v": [1, "zwei"]}', ttl => '7 s', priority => 8,
	properties => '{"a": 1, "b": "x", "c": true, "d": 2.5, "e": null}')});
my $seen = ($fleet->ledger)[-1];
is($seen->{id_type}, 'string', 'message-id is a string');
is($seen->{correlation_id}, $seen->{id}, 'correlation-id is the same');
is($seen->{to}, 'command/press-1', 'to');
is($seen->{subject}, 'set', 'subject');
is($seen->{body_kind}, 'data', 'one data section');
is($seen->{body}, '{"v": [1, "zwei"]}', 'body');
is($seen->{content_type}, 'application/json', 'content-type');
cmp_ok($seen->{ttl}, '<=', 7000, 'ttl is what is left of it');
cmp_ok($seen->{ttl}, '>', 5000, 'and not more was lost than time passed');
cmp_ok(abs($seen->{deadline} - $seen->{created} - 7000), '<=', 1, 'absolute-expiry-time');
is($seen->{durable}, JSON::PP::false, 'direct is not durable');
is($seen->{priority}, 8, 'priority');
is_deeply($seen->{properties}, { a => 1, b => 'x', c => JSON::PP::true, d => 2.5, e => undef }, 'application properties');
like($seen->{reply_to}, qr/^hybridiot\.reply\.[0-9a-f-]{36}$/, 'reply-to');
my $reply_to = $seen->{reply_to};
result(q{SELECT state FROM hybridiot.call_device('press-1', 'nothing')});
is(($fleet->ledger)[-1]{body_kind}, 'data', 'without a body there is an empty data section');
result(q{SELECT state FROM hybridiot.call_device('press-1', 'bytes', body => '\x00ff', content_type => 'image/png')});
is_deeply(($fleet->ledger)[-1]{body}, { base64 => 'AP8=' }, 'bytes as they are');

# ---------------------------------------------------------------- transactions

my $before = scalar($fleet->ledger);
$node->safe_psql('test', q{BEGIN; SELECT hybridiot.send_command('press-1', 'fan'); ROLLBACK});
$node->safe_psql('test', q{BEGIN; SAVEPOINT s; SELECT hybridiot.send_command('press-1', 'fan'); ROLLBACK TO s;
	SELECT hybridiot.send_command('press-2', 'kept'); COMMIT});
poll_is($node, q{SELECT state FROM hybridiot.command WHERE command = 'kept'}, 'succeeded', 'what was committed is executed');
my @new = ($fleet->ledger)[ $before .. scalar($fleet->ledger) - 1 ];
is(join(' ', map { $_->{subject} } @new), 'kept', 'what was rolled back reached no one');
is( result(q{BEGIN; SELECT state FROM hybridiot.call_device('press-1', 'autonomous'); ROLLBACK;
	SELECT count(*) FROM hybridiot.command WHERE command = 'autonomous'}), "succeeded\n1", 'a call is not undone by ROLLBACK');

# Many at once.
is( result(q{SELECT count(*), count(DISTINCT id) FROM hybridiot.call_devices(
	(SELECT array_agg('press-' || 1 + i % 8) FROM generate_series(0, 999) i), 'many') WHERE state = 'succeeded'}),
	'1000|1000', 'call_devices: a thousand in one call');
result(q{INSERT INTO hybridiot.command (device, command) SELECT 'press-' || 1 + i % 8, 'bulk' FROM generate_series(0, 4999) i});
poll_is($node, q{SELECT count(*) FROM hybridiot.command WHERE command = 'bulk' AND state = 'succeeded'}, 5000, 'five thousand by INSERT');
is($fleet->twice, '', 'no id reached a device twice');
is(result('SELECT count(*) FROM hybridiot.command_origin'), 0, 'nothing is left in the queue');

# ---------------------------------------------------------------- the reply address lives as long as the database

$node->restart;
poll_is($node, 'SELECT state FROM hybridiot.stat_connection', 'up', 'up again after a restart');
$fleet->command({ behaviour => 'answer' });
result(q{SELECT state FROM hybridiot.call_device('press-1', 'fan')});
is(($fleet->ledger)[-1]{reply_to}, $reply_to, 'the reply address is the same after a restart');

finish();
