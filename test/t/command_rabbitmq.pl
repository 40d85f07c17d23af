# Commands through RabbitMQ 3.10 and its AMQP 1.0 plugin, the awkward peer: it ends the whole session on a
# protocol error, knows no anonymous terminus, and gives nothing back.
use strict;
use warnings;
use Hybridiot::Test;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

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

# How many messages a queue holds.
sub messages
{
	my $queue = shift;
	return rabbitmqctl('-q', 'list_queues', 'name', 'messages') =~ /^\Q$queue\E\t(\d+)$/m ? $1 : undef;
}

sub wait_for
{
	my ($name, $done) = @_;
	my $until = time + $PostgreSQL::Test::Utils::timeout_default;
	sleep 0.05 until $done->() || time > $until;
	return ok($done->(), $name);
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

# ---------------------------------------------------------------- a queue that nobody made

# With /amq/queue/ it makes none. It accepts what no queue takes, and nobody can tell until the answer is missing.
create_server('nowhere', "command_address '/amq/queue/keep.{device}', $reply", $rabbit->{password});
poll_is($node, q{SELECT state FROM hybridiot.stat_connection WHERE server = 'nowhere'}, 'up', 'a server for queues that are there already');
my $dropped = result("SELECT hybridiot.send_command('$prefix-missing', 'run', server => 'nowhere', ttl => '10 s', reply_within => '1 s')");
my $one_way = result("SELECT hybridiot.send_command('$prefix-missing', 'run', server => 'nowhere', ttl => '10 s', reply_within => '0 s')");
poll_is($node, "SELECT string_agg(accepted_by, ' ') FROM hybridiot.command WHERE id IN ('$dropped', '$one_way')",
	'broker broker', 'no such queue: accepted all the same');

# ---------------------------------------------------------------- an administrator closes all connections

# It ends our sessions and the devices'. What it had stored it still has, each once; who waits for an answer gets it.
$fleet->command({ rule => { command => 'ask', behaviour => 'silent' } });
my $absent = "$prefix-3";
my @stored = split /\n/, result("SELECT hybridiot.send_command('$absent', 'run', ttl => '10 min') FROM generate_series(1, 3)");
my $stored = join ', ', map { "'$_'" } @stored;
my $asked = result("SELECT hybridiot.send_command('$here', 'ask', ttl => '10 min')");
poll_is($node, "SELECT count(*) FROM hybridiot.command WHERE id IN ($stored, '$asked') AND state = 'accepted'", 4, 'three are stored, one waits for its answer');
wait_for('the device has been asked', sub { reached($asked) });
my $since = result(q{SELECT since FROM hybridiot.stat_connection WHERE server = 'pumps'});
rabbitmqctl('close_all_connections', 'maintenance');
poll_is($node, "SELECT state FROM hybridiot.stat_connection WHERE server = 'pumps' AND since > '$since'", 'up', 'its connections are closed: we come back');
is(result("SELECT string_agg(state, ' ') FROM hybridiot.command WHERE id IN ($stored, '$asked')"), join(' ', ('accepted') x 4), 'what was accepted still is');
is(messages("command.$absent"), 3, 'nothing was sent a second time');
# The devices' library does not come back by itself from a session that is ended.
$fleet->command({ offline => [$here] });
$fleet->command({ online => [$here] });
$fleet->command({ reply => $asked, with => { status => 200 } });
is(result("SELECT state FROM hybridiot.wait_command('$asked', '90 s')"), 'succeeded', 'the answer comes, to the same address');
is(result("SELECT state FROM hybridiot.call_device('$here', 'run')"), 'succeeded', 'the next command is answered there too');
$fleet->command({ online => [$absent] });
is(result("SELECT string_agg(w.state, ' ') FROM unnest(ARRAY[$stored]::uuid[]) i, LATERAL hybridiot.wait_command(i, '90 s') w"),
	'succeeded succeeded succeeded', 'what was stored is answered');
is(join(' ', map { reached($_) } $asked, @stored), '1 1 1 1', 'each has reached its device once');

# ---------------------------------------------------------------- it is stopped and started

# A durable queue, which an administrator made, keeps what it holds; one that it made for /queue/ goes, with all that was in it.
rabbitmqctl('eval', qq{rabbit_amqqueue:declare({resource, <<"/">>, queue, <<"keep.$away">>}, true, false, [], none, <<"$rabbit->{user}">>).});
my @kept = split /\n/, result("SELECT hybridiot.send_command('$away', 'run', server => 'nowhere', ttl => '10 min') FROM generate_series(1, 3)");
my $kept = join ', ', map { "'$_'" } @kept;
poll_is($node, "SELECT count(*) FROM hybridiot.command WHERE id IN ($kept) AND state = 'accepted'", 3, 'three are in a durable queue');
is(result("SELECT concat_ws(' ', state, accepted_by) FROM hybridiot.wait_command('$dropped', '60 s')"), 'timed_out broker', 'what no queue took has timed out');
is(result("SELECT state FROM hybridiot.command WHERE id = '$one_way'"), 'accepted', 'or stays accepted where no answer was asked for');
$fleet->command({ offline => ['*'] });
broker('rabbitmq', 'stop');
poll_is($node, q{SELECT state FROM hybridiot.stat_connection WHERE server = 'nowhere'}, 'retrying', 'the broker was stopped');
my $meanwhile = result("SELECT hybridiot.send_command('$away', 'run', server => 'nowhere', ttl => '10 min')");
is(result("SELECT state FROM hybridiot.command WHERE id = '$meanwhile'"), 'queued', 'what comes now waits');
broker('rabbitmq', 'start');
my $keepers = Hybridiot::Fleet->start('devices', '--port', $rabbit->{port}, '--user', $rabbit->{user}, '--password', $rabbit->{password},
	'--reply-link', 'addressed', '--address', '/amq/queue/keep.{device}', '--devices', $away);
is(result("SELECT string_agg(w.state, ' ') FROM unnest(ARRAY[$kept, '$meanwhile']::uuid[]) i, LATERAL hybridiot.wait_command(i, '90 s') w"),
	'succeeded succeeded succeeded succeeded', 'all are answered when it is there again');
is(join(' ', sort map { $_->{id} } $keepers->ledger), join(' ', sort @kept, $meanwhile), 'and each has reached the device once');
$keepers->stop;
$fleet->command({ online => [$here, $away] });
is(result("SELECT state FROM hybridiot.call_device('$here', 'run', ttl => '90 s')"), 'succeeded', 'the other server is back too');
result('DROP SERVER nowhere CASCADE');

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
