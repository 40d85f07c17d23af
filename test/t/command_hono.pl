# Eclipse Hono's command and control contract on the wire, field by field: what is written, what is read, and
# what the outcomes of its protocol adapters mean. The router double plays Hono, with the devices behind it.
use strict;
use warnings;
use Hybridiot::Test;
use PostgreSQL::Test::Utils;
use Test::More;

my $odd = "Halle 3/\x{fc}%+";
my $fleet = start_fleet('router', '--address', 'command/{tenant}/{device}', '--link-address', 'command/{tenant}',
	'--devices', 'press-{1..3}', '--offline', 'press-3');
$fleet->command({ online => [$odd] });
my $node = new_node('hono', conf => "hybridiot.command_server = 'hono'");

sub result { return $node->safe_psql('test', $_[0]) }
sub property { return { as => 'answer', reply => { properties => { tenant_id => 'DEFAULT' }, @_ } } }

sub attached
{
	my ($event, $pattern) = @_;
	return scalar grep { $_->{event} eq $event && ($_->{address} // 'anonymous') =~ $pattern } $fleet->events;
}

# outcome($behaviour, $expected, $name, $within): state, who accepted, and what was said.
sub outcome
{
	my ($behaviour, $expected, $name, $within) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$fleet->command({ behaviour => $behaviour });
	is( result(q{SELECT concat_ws(' ', state, accepted_by, status, condition, description)}
			. q{ FROM hybridiot.call_device('press-1', 'fan', '{"on": true}', reply_within => '} . ($within // '1 min') . q{')}),
		$expected, $name);
	return;
}

sub create_server
{
	my ($name, $tenant) = @_;
	result("CREATE SERVER $name FOREIGN DATA WRAPPER hybridiot_amqp"
		. " OPTIONS (host '127.0.0.1', port '@{[ $fleet->port ]}', peer 'hono', tenant '$tenant')");
	poll_is($node, "SELECT state FROM hybridiot.stat_connection WHERE server = '$name'", 'up', "the connection of $name is up");
	return;
}

create_server('hono', 'DEFAULT');

# ---------------------------------------------------------------- what a command is on the wire

my $id = result(q{SELECT id FROM hybridiot.call_device('press-1', 'set', '{"v": [1, "zwei"]}', ttl => '30 s', properties => '{"a": 1}')});
my $seen = ($fleet->ledger)[-1];
is($seen->{link}, 'command/DEFAULT', 'one link for the whole tenant');
is($seen->{to}, 'command/DEFAULT/press-1', 'to');
like($seen->{reply_to}, qr{^command_response/DEFAULT/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$}, 'reply-to');
is($seen->{id}, $id, 'message-id');
is($seen->{id_type}, 'string', 'which is a string');
is($seen->{correlation_id}, $id, 'correlation-id is the same');
is($seen->{subject}, 'set', 'subject');
is($seen->{content_type}, 'application/json', 'content-type');
is($seen->{body_kind}, 'data', 'one data section');
is($seen->{body}, '{"v": [1, "zwei"]}', 'body');
is_deeply($seen->{properties}, { a => 1 }, 'application properties are the caller\'s');
is($seen->{durable}, JSON::PP::false, 'nothing of it is stored');
cmp_ok(abs($seen->{deadline} - $seen->{created} - 30000), '<=', 1, 'absolute-expiry-time');
my $reply_to = $seen->{reply_to};
is(attached('receiver_attached', qr/^\Q$reply_to\E$/), 1, 'replies are read from there');

result(q{SELECT state FROM hybridiot.call_device('press-2', 'bytes', body => '\x00ff', content_type => 'image/png')});
$seen = ($fleet->ledger)[-1];
is_deeply($seen->{body}, { base64 => 'AP8=' }, 'bytes as they are');
is($seen->{content_type}, 'image/png', 'with their content type');
is($seen->{reply_to}, $reply_to, 'one reply address for all');
result(q{SELECT state FROM hybridiot.call_device('press-1', 'nothing')});
$seen = ($fleet->ledger)[-1];
is($seen->{body_kind}, 'data', 'without a body there is an empty data section');
is($seen->{content_type}, undef, 'and no content type');

is(result(q{SELECT concat_ws(' ', state, accepted_by) FROM hybridiot.call_device('press-1', 'beep', reply_within => '0')}),
	'accepted hono', 'one-way: accepted is final');
$seen = ($fleet->ledger)[-1];
is($seen->{reply_to}, undef, 'and no reply is asked for');
is($seen->{correlation_id}, $seen->{id}, 'it has a correlation-id all the same');
is(attached('sender_attached', qr/^command\/DEFAULT$/), 1, 'all through one link');
is(attached('sender_attached', qr/^(?!command\/DEFAULT$)/), 0, 'and no other');

# ---------------------------------------------------------------- what is read

outcome(property(), 'succeeded hono 200', 'status, device_id and tenant_id');
outcome(property(status => 204, body_kind => 'none', content_type => undef), 'succeeded hono 204', 'another 2xx, without a body');
outcome(property(status => 404), 'failed hono 404', 'another status');
outcome(property(status => undef), 'succeeded hono 200', 'no status means 200');
outcome(property(status => '200', status_type => 'string'), 'failed hono hybridiot:invalid-status the reply\'s status is not an integer',
	'a status that is no integer is not taken for one');
outcome(property(device_id => undef), 'succeeded hono 200', 'no device_id');
outcome(property(device_id => 'press-2'), 'timed_out hono', 'the device_id of another', '2 s');
is(result(q{SELECT count(*) FROM hybridiot.command_event WHERE cause = 'a reply that names another device came'}), 1, 'which is told');
outcome(property(status => 503, content_type => 'application/vnd.eclipse-hono-delivery-failure-notification+json', payload => { error => 'timed out' }),
	'failed hono 503', 'a delivery failure notification');
is(result(q{SELECT result FROM hybridiot.command ORDER BY queued_at DESC LIMIT 1}), '{"error": "timed out"}', 'its text is the result');

# ---------------------------------------------------------------- what the outcomes mean

outcome('silent', 'timed_out hono', 'accepted is by hono, and no reply came', '2 s');
outcome('release', 'in_doubt', 'released: the device may have had it');
outcome('modify', 'in_doubt', 'modified');
outcome({ as => 'reject', condition => 'hono:bad-request', description => 'the device does not know it' },
	'rejected hono:bad-request the device does not know it', 'rejected, with its condition');
outcome('bare', 'in_doubt', 'settled without a state');
$fleet->command({ behaviour => 'answer' });
is(result(q{SELECT state FROM hybridiot.call_device('press-3', 'fan')}), 'in_doubt', 'a device that is not connected');
is((grep { $_->{device} eq 'press-3' } $fleet->ledger), 0, 'though it got nothing');

# ---------------------------------------------------------------- modes, and what has left

for my $sql (q{SELECT hybridiot.send_command('press-1', 'fan', mode => 'store')}, q{SELECT hybridiot.call_device('press-1', 'fan', mode => 'store')})
{
	my ($status, $out, $err) = $node->psql('test', $sql, extra_params => [ '-v', 'VERBOSITY=verbose' ]);
	like($err, qr/ERROR:  0A000: .*cannot deliver in mode store.*HINT:  Use mode "direct"/s, 'mode store is refused');
}
$fleet->command({ behaviour => 'hold' });
$id = result(q{SELECT hybridiot.send_command('press-1', 'held')});
poll_is($node, "SELECT state FROM hybridiot.command WHERE id = '$id'", 'sent', 'a device holds one');
is(result("SELECT hybridiot.cancel_command('$id')"), 'too_late', 'what has left is not given back');
$fleet->command({ settle => $id, as => 'answer' });
$fleet->command({ reply => $id, with => {} });
is(result("SELECT state FROM hybridiot.wait_command('$id', '30 s')"), 'succeeded', 'and goes on');
$fleet->command({ no_credit => 'command/DEFAULT' });
$id = result(q{SELECT hybridiot.send_command('press-1', 'waits', ttl => '1 min')});
is(result("SELECT hybridiot.cancel_command('$id')"), 'cancelled', 'one that waits for credit has not');
$fleet->command({ credit => 'command/DEFAULT' });
$fleet->command({ behaviour => 'answer' });

# ---------------------------------------------------------------- names that are no addresses as they stand

create_server('werk', "Werk 1/\xc3\xa4%");
my $bytes = "Halle 3/\xc3\xbc%+";
is( result("SELECT concat_ws(' ', state, status) FROM hybridiot.call_device('$bytes', 'fan', server => 'werk')"),
	'succeeded 200', 'a tenant and a device with odd names');
$seen = ($fleet->ledger)[-1];
is($seen->{link}, 'command/Werk%201%2F%C3%A4%25', 'the link');
is($seen->{to}, 'command/Werk%201%2F%C3%A4%25/Halle%203%2F%C3%BC%25%2B', 'to');
like($seen->{reply_to}, qr{^command_response/Werk%201%2F%C3%A4%25/[0-9a-f-]{36}$}, 'reply-to');
is($seen->{device}, $odd, 'which is that device');

result("CREATE SERVER homeless FOREIGN DATA WRAPPER hybridiot_amqp OPTIONS (host '127.0.0.1', port '1', peer 'hono')");
poll_is($node, q{SELECT last_error FROM hybridiot.stat_connection WHERE server = 'homeless'}, 'server "homeless" is a Hono and has no tenant',
	'no tenant');

is($fleet->twice, '', 'no id reached a device twice');
is(result(q{SELECT restarts FROM hybridiot.stat_worker WHERE kind = 'amqp'}), 0, 'all that with one worker');
$fleet->stop;
finish();
