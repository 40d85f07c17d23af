# Commands through a broker (ActiveMQ Artemis) to devices that read their queues: store mode, presence,
# TTL, login and TLS, and the broker that is not there.
use strict;
use warnings;
use Hybridiot::Test;
use IPC::Run;
use PostgreSQL::Test::Utils;
use Test::More;

my $artemis = artemis();
my $prefix = unique('press');
my @devices = map { "$prefix-$_" } 1 .. 3;
my $fleet = start_fleet('devices', '--devices', join(',', @devices), '--offline', $devices[2]);
my $node = new_node('main', conf => "hybridiot.command_server = 'gateway'");

sub result { return $node->safe_psql('test', $_[0]) }

sub reached
{
	my $id = shift;
	return scalar grep { $_->{id} eq $id } $fleet->ledger;
}

# A server and the owner's login.
sub create_server
{
	my ($name, $port, $options, $mapping) = @_;
	result("CREATE SERVER $name FOREIGN DATA WRAPPER hybridiot_amqp OPTIONS (host '$artemis->{host}', port '$port'"
		. ($options ? ", $options" : '') . ')');
	result("CREATE USER MAPPING FOR CURRENT_USER SERVER $name OPTIONS ($mapping)") if $mapping;
	return;
}

my $login = "user '$artemis->{user}', password '$artemis->{password}'";
create_server('gateway', $artemis->{port}, undef, $login);
poll_is($node, q{SELECT state FROM hybridiot.stat_connection WHERE server = 'gateway'}, 'up', 'the connection is up');

# ---------------------------------------------------------------- store mode

is( result("SELECT concat_ws(' ', state, accepted_by, status) FROM hybridiot.call_device('$devices[0]', 'fan', '{\"on\": true}')"),
	'succeeded broker 200', 'called through the broker');
my $seen = ($fleet->ledger)[-1];
is($seen->{durable}, JSON::PP::true, 'what is stored is durable');
is($seen->{link}, "command/$devices[0]", 'an address of its own for each device');
my ($status, $out, $err) = $node->psql('test', "SELECT hybridiot.send_command('$devices[0]', 'fan', mode => 'direct')");
like($err, qr/cannot deliver in mode direct.*HINT/s, 'a broker cannot deliver directly');

my $id = result("SELECT hybridiot.send_command('$devices[2]', 'fan', ttl => '1 min')");
poll_is($node, "SELECT concat_ws(' ', state, accepted_by) FROM hybridiot.command WHERE id = '$id'", 'accepted broker',
	'for an offline device the broker keeps it');
$fleet->command({ online => [ $devices[2] ] });
is(result("SELECT state FROM hybridiot.wait_command('$id', '30 s')"), 'succeeded', 'executed when the device comes back within the TTL');
is(reached($id), 1, 'once');
$fleet->command({ offline => [ $devices[2] ] });
$id = result("SELECT hybridiot.send_command('$devices[2]', 'fan', ttl => '1 s', reply_within => '2 s')");
is(result("SELECT state FROM hybridiot.wait_command('$id', '30 s')"), 'timed_out', 'no answer from a device that stays away');
$fleet->command({ online => [ $devices[2] ] });
is(result("SELECT state FROM hybridiot.call_device('$devices[2]', 'fan')"), 'succeeded', 'it is back');
is(reached($id), 0, 'and never got what had expired');

is( result("SELECT count(*) FROM hybridiot.call_devices((SELECT array_agg('$prefix-' || 1 + i % 3) FROM generate_series(0, 299) i), 'many')"
		. q{ WHERE state = 'succeeded'}),
	300, 'three hundred at once');
is(result('SELECT links FROM hybridiot.stat_connection'), 4, 'a link for each device, and one for replies');

# Names that are no addresses as they stand.
my $odd = "$prefix/Halle 3 \xc3\xbc%";
$fleet->command({ online => ["$prefix/Halle 3 \x{fc}%"] });
is(result("SELECT state FROM hybridiot.call_device('$odd', 'fan')"), 'succeeded', 'a device name is percent-encoded');

# ---------------------------------------------------------------- idempotency

my $first = result("SELECT hybridiot.send_command('$devices[0]', 'once', '{\"n\": 1}', idempotency_key => 'k')");
is(result("SELECT hybridiot.send_command('$devices[0]', 'once', '{\"n\": 1}', idempotency_key => 'k')"), $first, 'the same key, the same id');
result("SELECT state FROM hybridiot.wait_command('$first', '20 s')");
is(result("SELECT id || ' ' || state FROM hybridiot.call_device('$devices[0]', 'once', '{\"n\": 1}', idempotency_key => 'k')"),
	"$first succeeded", 'a call with it tells what became of it');
($status, $out, $err) = $node->psql('test', "SELECT hybridiot.call_device('$devices[0]', 'once', '{\"n\": 2}', idempotency_key => 'k')");
like($err, qr/idempotency key was used for another command/, 'other arguments are refused');
is(reached($first), 1, 'it reached the device once');
is(result("SELECT id = (SELECT id FROM hybridiot.call_device('$devices[0]', 'call once', idempotency_key => 'c')) FROM hybridiot.call_device('$devices[0]', 'call once', idempotency_key => 'c')"),
	't', 'two calls with one key are one command');

# A lock on the key that somebody holds: the call fails, others go on.
my $other = IPC::Run::start([ 'psql', '-X', '-d', $node->connstr('test'), '-c',
	"BEGIN; SELECT hybridiot.send_command('$devices[0]', 'locked', idempotency_key => 'l'); SELECT pg_sleep(60)" ],
	'>&', '/dev/null');
poll_is($node, q{SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'}, 1, 'somebody holds a key');
($status, $out, $err) = $node->psql('test', "SELECT hybridiot.call_device('$devices[0]', 'locked', idempotency_key => 'l')",
	extra_params => [ '-v', 'VERBOSITY=verbose' ]);
like($err, qr/55P03/, 'a lock in the way: 55P03');
is(result("SELECT state FROM hybridiot.call_device('$devices[1]', 'fan')"), 'succeeded', 'others are not held up');
result(q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'});
$other->finish;

# ---------------------------------------------------------------- login

sub connection
{
	my ($name, $state, $error, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	poll_is($node, "SELECT state || CASE WHEN last_error ~* '$error' THEN '' ELSE ' but ' || last_error END"
		. " FROM hybridiot.stat_connection WHERE server = '$name'", $state, $what);
	return;
}

create_server('wrong_password', $artemis->{port}, undef, "user '$artemis->{user}', password 'not this'");
secret('not this');
connection('wrong_password', 'retrying', 'authentication failed|unauthorized', 'a wrong password is told');
create_server('anonymous', $artemis->{port}, undef, undef);
poll_is($node, q{SELECT state FROM hybridiot.stat_connection WHERE server = 'anonymous'}, 'up', 'anonymous on loopback');
create_server('tls', $artemis->{tls_port}, "tls 'require', ssl_ca '$artemis->{ca}'", $login);
poll_is($node, q{SELECT state FROM hybridiot.stat_connection WHERE server = 'tls'}, 'up', 'TLS with its certificate authority');
is(result("SELECT state FROM hybridiot.call_device('$devices[0]', 'fan', server => 'tls')"), 'succeeded', 'and a command over it');
create_server('no_ca', $artemis->{tls_port}, "tls 'require'", $login);
connection('no_ca', 'retrying', 'certificate|tls|ssl', 'TLS without it');
create_server('plain_to_tls', $artemis->{tls_port}, "connect_timeout '500 ms'", $login);
connection('plain_to_tls', 'retrying', 'in time|closed', 'clear text to a TLS port');
create_server('tls_to_plain', $artemis->{port}, "tls 'require', ssl_ca '$artemis->{ca}', connect_timeout '500 ms'", $login);
connection('tls_to_plain', 'retrying', 'in time|closed|ssl|tls', 'TLS to a plain port');
result("CREATE SERVER unnamed FOREIGN DATA WRAPPER hybridiot_amqp OPTIONS (host 'nowhere.invalid', tls 'disable', sasl_mechanism 'ANONYMOUS')");
connection('unnamed', 'retrying', 'could not connect to "nowhere.invalid"', 'a host that does not exist');
result("CREATE SERVER several FOREIGN DATA WRAPPER hybridiot_amqp OPTIONS (host '127.0.0.1,127.0.0.1', port '1,$artemis->{port}')");
poll_is($node, q{SELECT state FROM hybridiot.stat_connection WHERE server = 'several'}, 'up', 'the second of two hosts');

# A changed option is put into force, a dropped server is left.
result("ALTER USER MAPPING FOR CURRENT_USER SERVER wrong_password OPTIONS (SET password '$artemis->{password}')");
poll_is($node, q{SELECT state FROM hybridiot.stat_connection WHERE server = 'wrong_password'}, 'up', 'the right password helps at once');
for my $name (qw(wrong_password anonymous tls no_ca plain_to_tls tls_to_plain unnamed several))
{
	result("DROP SERVER $name CASCADE");
}
poll_is($node, 'SELECT string_agg(server::text, $$ $$) FROM hybridiot.stat_connection', 'gateway', 'dropped servers are gone');
is(result("SELECT state FROM hybridiot.call_device('$devices[0]', 'fan')"), 'succeeded', 'and the one that stays was not disturbed');
is(result('SELECT restarts FROM hybridiot.stat_worker WHERE kind = $$amqp$$'), 0, 'all that with one worker');

# ---------------------------------------------------------------- the broker goes away

broker('artemis', 'kill9');
connection('gateway', 'retrying', 'refused|closed|reset', 'the broker went away');
$id = result("SELECT hybridiot.send_command('$devices[0]', 'patient', ttl => '2 min')");
my $short = result("SELECT hybridiot.send_command('$devices[0]', 'impatient', ttl => '1 s')");
is(result("SELECT state FROM hybridiot.wait_command('$short', '20 s')"), 'expired', 'what cannot wait expires');
is(result("SELECT state FROM hybridiot.command WHERE id = '$id'"), 'queued', 'what can wait waits');
$node->restart;
poll_is($node, q{SELECT state FROM hybridiot.stat_connection}, 'retrying', 'no broker at the start either');
broker('artemis', 'start');
is(result("SELECT state FROM hybridiot.wait_command('$id', '90 s')"), 'succeeded', 'it goes on by itself');
is(reached($id), 1, 'the device got it once');
is(reached($short), 0, 'and not what had expired');

result('DROP SERVER gateway CASCADE');
poll_is($node, q{SELECT count(*) FROM hybridiot.stat_worker WHERE kind = 'amqp' AND pid IS NOT NULL}, 0, 'without a server there is no worker');

finish();
