# Commands through RabbitMQ 3.10 and its AMQP 1.0 plugin, the awkward peer: it ends the whole session on a
# protocol error, knows no anonymous terminus, and gives nothing back.
use strict;
use warnings;
use Hybridiot::Test;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $rabbit = rabbitmq();
my $prefix = unique('pump');
my ($here, $away) = ("$prefix-1", "$prefix-2");
my $odd = "$prefix Halle/3 \xc3\xbc%";
my $fleet = Hybridiot::Fleet->start('devices', '--port', $rabbit->{port}, '--user', $rabbit->{user}, '--password', $rabbit->{password},
	'--reply-link', 'addressed', '--address', '/queue/command.{device}', '--devices', "$here,$away", '--offline', $away);
my $node = new_node('rabbit', conf => "hybridiot.command_server = 'pumps'");

sub result { return $node->safe_psql('test', $_[0]) }
sub reached { my $id = shift; return scalar grep { $_->{id} eq $id } $fleet->ledger }

sub create_server
{
	my ($name, $addresses, $password) = @_;
	result("CREATE SERVER $name FOREIGN DATA WRAPPER hybridiot_amqp OPTIONS (host '$rabbit->{host}', port '$rabbit->{port}', peer 'broker', $addresses)");
	result("CREATE USER MAPPING FOR CURRENT_USER SERVER $name OPTIONS (user '$rabbit->{user}', password '$password')");
	return;
}

my $reply = "reply_address '/queue/hybridiot.reply.{reply_id}'";
create_server('pumps', "command_address '/queue/command.{device}', $reply", $rabbit->{password});
poll_is($node, q{SELECT state FROM hybridiot.stat_connection WHERE server = 'pumps'}, 'up', 'the connection is up');

# ---------------------------------------------------------------- there and back

is( result("SELECT concat_ws(' ', state, accepted_by, status) FROM hybridiot.call_device('$here', 'run', '{\"on\": true}')"),
	'succeeded broker 200', 'called through the broker');
my $seen = ($fleet->ledger)[-1];
is($seen->{durable}, JSON::PP::true, 'what is stored is durable');
like($seen->{reply_to}, qr{^/queue/hybridiot\.reply\.[0-9a-f-]{36}$}, 'reply-to');
$fleet->command({ online => ["$prefix Halle/3 \x{fc}%"] });
is(result("SELECT state FROM hybridiot.call_device('$odd', 'run')"), 'succeeded', 'a device name is percent-encoded');
my ($status, $out, $err) = $node->psql('test', "SELECT hybridiot.send_command('$here', 'run', mode => 'direct')", extra_params => [ '-v', 'VERBOSITY=verbose' ]);
like($err, qr/0A000.*HINT/s, 'a broker cannot deliver directly');

# ---------------------------------------------------------------- devices that are away

my $id = result("SELECT hybridiot.send_command('$away', 'run', ttl => '5 min')");
poll_is($node, "SELECT concat_ws(' ', state, accepted_by) FROM hybridiot.command WHERE id = '$id'", 'accepted broker', 'the broker keeps it');
is(result("SELECT hybridiot.cancel_command('$id')"), 'too_late', 'and does not give it back');
poll_is($node, "SELECT cause FROM hybridiot.command_event WHERE command_id = '$id' AND state IS NULL",
	'too late to cancel: the broker cannot give it back', 'which is told');
my $short = result("SELECT hybridiot.send_command('$away', 'run', ttl => '1 s', reply_within => '1 s')");
is(result("SELECT state FROM hybridiot.wait_command('$short', '60 s')"), 'timed_out', 'no answer from a device that stays away');

$fleet->command({ online => [$away] });
is(result("SELECT state FROM hybridiot.wait_command('$id', '60 s')"), 'succeeded', 'the device comes, and gets it');
is(reached($id), 1, 'once');
is(result("SELECT state FROM hybridiot.call_device('$away', 'run')"), 'succeeded', 'the next command comes behind it');
is(reached($short), 0, 'what had expired did not come: the broker looks at ttl');

# Queues that it made for these addresses are gone with it (they are not durable), and are made again.
broker('rabbitmq', 'kill9');
poll_is($node, q{SELECT state FROM hybridiot.stat_connection WHERE server = 'pumps'}, 'retrying', 'the broker went away');
my $patient = result("SELECT hybridiot.send_command('$here', 'patient', ttl => '5 min')");
is(result("SELECT state FROM hybridiot.command WHERE id = '$patient'"), 'queued', 'what can wait waits');
broker('rabbitmq', 'start');
is(result("SELECT state FROM hybridiot.wait_command('$patient', '90 s')"), 'succeeded', 'and goes on by itself');
# ---------------------------------------------------------------- a session that it ends

# It knows no anonymous terminus and no such address: the session ends, all of it; we come back, and say why.
create_server('wrong_address', "command_address 'command/{device}', $reply", $rabbit->{password});
poll_is($node, q{SELECT state FROM hybridiot.stat_connection WHERE server = 'wrong_address'}, 'up', 'an address that it does not know does no harm yet');
my $lost = result("SELECT hybridiot.send_command('$here', 'run', server => 'wrong_address', ttl => '3 s')");
poll_is($node, q{SELECT last_error ~ 'amqp:' FROM hybridiot.stat_connection WHERE server = 'wrong_address'}, 't', 'the first command shows it');
is(result("SELECT state FROM hybridiot.wait_command('$lost', '60 s')"), 'expired', 'it has never left');
is(result("SELECT state FROM hybridiot.call_device('$here', 'run')"), 'succeeded', 'the other server is not concerned');
result('DROP SERVER wrong_address CASCADE');

create_server('wrong_password', $reply, 'not this');
secret('not this');
poll_is($node, q{SELECT state || ' ' || (last_error ~* 'authentication failed|unauthorized|sasl|closed') FROM hybridiot.stat_connection WHERE server = 'wrong_password'},
	'retrying true', 'a wrong password is told');
result('DROP SERVER wrong_password CASCADE');

is($fleet->twice, '', 'no id reached a device twice');
is(result(q{SELECT restarts FROM hybridiot.stat_worker WHERE kind = 'amqp'}), 0, 'all that with one worker');
$fleet->stop;
finish();
