# Who may command what, where it meets the world: device grants in a dump that is restored, secrets, and sessions that
# hold rows or locks of the journal, which hold up nobody else for longer than the lock lasts.
use strict;
use warnings;
use Hybridiot::Test;
use IPC::Run;
use PostgreSQL::Test::Utils;
use Test::More;

my $canary = 'kanarienvogel-7c1f';
my $fleet = start_fleet('router', '--devices', 'press-{1..3}', '--devices', 'oven-1', '--user', 'pg', '--password', $canary);
my $node = new_node('main', conf => "hybridiot.command_server = 'gateway'");

sub result { return $node->safe_psql('test', $_[0]) }

# The SQLSTATE of a statement that fails as one role; 'none' if it works.
sub sqlstate
{
	my ($role, $sql, $database) = @_;
	my ($status, $out, $err) = $node->psql($database // 'test', "SET ROLE $role; $sql", extra_params => [ '-v', 'VERBOSITY=sqlstate' ]);
	return $err =~ /ERROR:  (\w{5})/ ? $1 : $status == 0 ? 'none' : $err;
}

# A statement in a session of its own, with its output.
sub in_background
{
	my ($sql) = @_;
	my %session = (out => '', err => '');
	$session{handle} = IPC::Run::start([ 'psql', '-X', '-A', '-t', '-v', 'VERBOSITY=sqlstate', '-d', $node->connstr('test'), '-c', $sql ],
		\undef, '>', \$session{out}, '2>', \$session{err});
	return \%session;
}

# Somebody does this in a transaction and leaves it open until let_go().
sub hold
{
	my ($sql) = @_;
	my $session = in_background("BEGIN; $sql; SELECT pg_sleep(3600)");
	poll_is($node, q{SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'}, 1, "held open: $sql");
	return $session;
}

sub let_go
{
	my ($session) = @_;
	result(q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'});
	$session->{handle}->finish;
	return;
}

result(<<~"END");
	CREATE ROLE operator;
	CREATE ROLE colleague;
	CREATE SERVER gateway FOREIGN DATA WRAPPER hybridiot_amqp OPTIONS (host '127.0.0.1', port '${\$fleet->port}', peer 'router', tls 'disable');
	CREATE USER MAPPING FOR CURRENT_USER SERVER gateway OPTIONS (user 'pg', password '$canary');
	GRANT USAGE ON FOREIGN SERVER gateway TO operator, colleague;
	SELECT hybridiot.grant_devices('operator', 'gateway', 'press-%');
	SELECT hybridiot.grant_devices('colleague', 'gateway', '%');
	END
poll_is($node, 'SELECT state FROM hybridiot.stat_connection', 'up', 'the connection is up');
my $worker = worker_pid($node, "kind = 'amqp'");

# ---------------------------------------------------------------- grants

my $call = q{SELECT state FROM hybridiot.call_device('DEVICE', 'granted', ttl => '20 s')};
sub call { my ($device) = @_; (my $sql = $call) =~ s/DEVICE/$device/; return $sql }
is(result('SET ROLE operator; ' . call('press-1')), 'succeeded', 'a device that is granted answers');
is(sqlstate('operator', call('oven-1')), '42501', 'one that is not is refused');
is(result('SET ROLE colleague; ' . call('oven-1')), 'succeeded', 'to this role');

my $dump = PostgreSQL::Test::Utils::tempdir('dump') . '/test.sql';
command_ok([ 'pg_dump', '-f', $dump, $node->connstr('test') ], 'pg_dump');
$node->safe_psql('postgres', 'CREATE DATABASE restored');
command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', $dump, $node->connstr('restored') ], 'restore');
poll_is($node, 'SELECT state FROM hybridiot.stat_connection', 'up', 'the restored database is connected', 'restored');
is($node->safe_psql('restored', q{SELECT string_agg(concat_ws(' ', role, server, pattern), ', ' ORDER BY role) FROM hybridiot.device_grant}),
	'colleague gateway %, operator gateway press-%', 'grants are in the dump');
is($node->safe_psql('restored', 'SET ROLE operator; ' . call('press-1')), 'succeeded', 'and in force');
is(sqlstate('operator', call('oven-1'), 'restored'), '42501', 'for what they do not grant, too');

# Sessions remember grants until they change, in whatever session.
my $session = in_background(<<~"END");
	DO \$\$ BEGIN
		SET ROLE operator;
		FOR i IN 1 .. 6000 LOOP
			BEGIN
				PERFORM hybridiot.send_command('oven-1', 'remembered', ttl => '1 h');
				RETURN;
			EXCEPTION WHEN insufficient_privilege THEN
				NULL;
			END;
			PERFORM set_config('application_name', 'was refused', false), pg_sleep(0.02);
		END LOOP;
		RAISE EXCEPTION 'never granted';
	END \$\$
	END
poll_is($node, q{SELECT count(*) FROM pg_stat_activity WHERE application_name = 'was refused'}, 1, 'a session is refused');
result(q{SELECT hybridiot.grant_devices('operator', 'gateway', 'oven-1')});
$session->{handle}->finish;
is($session->{err}, '', 'until another one grants');
result(q{SELECT hybridiot.revoke_devices('operator', 'gateway', 'oven-1')});
$node->safe_psql('restored', 'DROP EXTENSION hybridiot CASCADE');

# ---------------------------------------------------------------- secrets

secret($canary);
my @relations = split /\n/, result(q{SELECT c.oid::regclass FROM pg_class c WHERE relnamespace = 'hybridiot'::regnamespace AND relkind IN ('r', 'v')});
my $everything = join ' UNION ALL ', map { "SELECT '$_' AS relation FROM $_ r WHERE r::text LIKE '%' || \$1 || '%'" } @relations, 'pg_stat_activity';
cmp_ok(scalar(@relations), '>', 15, 'many relations are looked through');
result("PREPARE look AS $everything; SELECT 1");
is(result("PREPARE look AS $everything; EXECUTE look('kanarien' || 'vogel')"), '', 'no relation of ours shows the password');
my ($status, $out, $err) = $node->psql('test', "ALTER USER MAPPING FOR CURRENT_USER SERVER gateway OPTIONS (ADD passwort 'x')");
unlike($err, qr/$canary/, 'nor does an error about a mapping');
isnt($status, 0, 'which was refused');
is(result(q{SET ROLE operator; SELECT count(*) FROM pg_user_mappings WHERE umoptions::text LIKE '%kanarien%'}), 0, 'nor what others see of it');

# ---------------------------------------------------------------- rows that are held

# By whoever may: one's own commands, and a key of one's own.
$fleet->command({ no_credit => 'anonymous' });
my $cancelled = result(q{SET ROLE operator; SELECT hybridiot.send_command('press-1', 'cancelled', ttl => '10 min')});
$session = hold("SET ROLE operator; SELECT hybridiot.cancel_command('$cancelled');"
	. q{ SELECT hybridiot.send_command('press-1', 'key', idempotency_key => 'k')});
is(result("SELECT state FROM hybridiot.command WHERE id = '$cancelled'"), 'cancelled', 'a cancel takes effect before its transaction ends');
$fleet->command({ credit => 'anonymous' });
is(result('SET ROLE colleague; ' . call('press-1')), 'succeeded', 'others command, while that transaction is open');
is(result(q{SET ROLE colleague; SELECT state FROM hybridiot.call_device('press-1', 'key', idempotency_key => 'k')}), 'succeeded',
	'also with the same key, which is theirs');
is(sqlstate('operator', q{SELECT hybridiot.call_device('press-1', 'key', idempotency_key => 'k')}), '55P03', 'its own role hears of the lock');
let_go($session);

# A superuser's row lock: that command waits for it, others do not.
$fleet->command({ no_credit => 'anonymous' });
my $stuck = result(q{SET ROLE operator; SELECT hybridiot.send_command('press-1', 'stuck', ttl => '10 min')});
$session = hold("SELECT FROM hybridiot.command WHERE id = '$stuck' FOR UPDATE");
$fleet->command({ credit => 'anonymous' });
is(result('SET ROLE colleague; ' . call('press-2')), 'succeeded', 'the row of a queued command is held: others are called');
is(result("SELECT state FROM hybridiot.command WHERE id = '$stuck'"), 'queued', 'it waits');
let_go($session);
is(result("SELECT state FROM hybridiot.wait_command('$stuck', '60 s')"), 'succeeded', 'and leaves when its row is free');

# Rows of what is on its way, and of what ended: what comes for them waits, unsettled, until they are free.
$fleet->command({ behaviour => 'silent' });
my $late = result(q{SET ROLE operator; SELECT id FROM hybridiot.call_device('press-1', 'late', reply_within => '10 ms')});
$fleet->command({ behaviour => 'hold' });
my $caller = in_background(q{SET ROLE operator; SELECT state FROM hybridiot.call_device('press-1', 'on its way', reply_within => '5 min')});
poll_is($node, q{SELECT state FROM hybridiot.command WHERE command = 'on its way'}, 'sent', 'one is on its way');
my $way = result(q{SELECT id FROM hybridiot.command WHERE command = 'on its way'});
$fleet->command({ behaviour => 'answer' });
$session = hold("SELECT FROM hybridiot.command WHERE id IN ('$late', '$way') FOR UPDATE");
my $log = -s $node->logfile;
$fleet->command({ settle => $way });
$fleet->command({ reply => $way, with => {} });
$fleet->command({ reply => $late, with => { status => $_ } }) for 200, 500;
is(result('SET ROLE colleague; ' . call('press-2')), 'succeeded', 'their rows are held: others are answered') for 1 .. 10;
is(scalar(() = slurp_file($node->logfile, $log) =~ /writing the journal of commands failed/g), 1, 'and the lock is met once');
is(result("SELECT string_agg(state, ' ' ORDER BY queued_at) FROM hybridiot.command WHERE id IN ('$late', '$way')"), 'timed_out sent', 'they stay');
is(result("SELECT count(*) FROM hybridiot.command_event WHERE command_id IN ('$late', '$way') AND (state IN ('accepted', 'succeeded') AND command_id = '$way' OR state IS NULL)"),
	0, 'nor do their events tell');
sub settled { return join ' ', map { $_->{outcome} // () } grep { $_->{event} eq 'reply' && $_->{id} =~ /$late|$way/ } $fleet->events }
is(settled(), '', 'and their replies are not settled');
let_go($session);
$caller->{handle}->finish;
is($caller->{out}, "SET\nsucceeded\n", 'the caller hears what came when its row is free');
poll_is($node, "SELECT state FROM hybridiot.command WHERE id = '$late'", 'succeeded', 'so does who asks for the other: its first reply counts');
is(result("SELECT count(*) FROM hybridiot.command_event WHERE command_id = '$late' AND cause = 'a second reply came'"), 1, 'and no other');
my $until = time + $PostgreSQL::Test::Utils::timeout_default;
select(undef, undef, undef, 0.05) until settled() eq 'accepted accepted accepted' || time > $until;
is(settled(), 'accepted accepted accepted', 'all are settled then');

# ---------------------------------------------------------------- the table that is held

$fleet->command({ no_credit => 'anonymous' });
my $queued = result(q{SET ROLE operator; SELECT hybridiot.send_command('press-1', 'queued', ttl => '10 min')});
my $colleagues = result(q{SET ROLE colleague; SELECT hybridiot.send_command('press-1', 'queued', ttl => '10 min')});
my @flood = map { result(q{SET ROLE operator; SELECT hybridiot.send_command('press-1', 'flood', ttl => '10 min')}) } 1 .. 6;
result('ALTER SYSTEM SET hybridiot.max_calls_per_role = 2');
$node->reload;
poll_is($node, 'SHOW hybridiot.max_calls_per_role', 2, 'two at once of a role');
$session = hold('LOCK TABLE hybridiot.command IN SHARE MODE');
my @flooding = map { in_background("SET ROLE operator; SELECT hybridiot.cancel_command('$_')") } @flood;
is(sqlstate('colleague', "SELECT hybridiot.cancel_command('$colleagues')"), '55P03', 'a cancel among the many of another role');
$_->{handle}->finish for @flooding;
my %refusals = map { $_->{err} =~ /ERROR:  (\w{5})/ ? ($1 => 1) : ($_->{out} . $_->{err} => 1) } @flooding;
is(join(' ', sort keys %refusals), '53000 55P03', 'who may not have more than some under way');
result('ALTER SYSTEM RESET hybridiot.max_calls_per_role');
$node->reload;
is(sqlstate('colleague', call('press-1')), '55P03', 'the journal is locked against writing: a call fails');
is(result("SELECT state FROM hybridiot.wait_command('$queued', '10 ms')"), 'queued', 'and what only reads does not');
is(sqlstate('operator', "SELECT hybridiot.cancel_command('$queued')"), '55P03', 'a cancel does not say what it cannot know');
let_go($session);
is(result("SELECT state FROM hybridiot.wait_command('$queued', '60 s')"), 'cancelled', 'and is done when the lock is gone');

$queued = result(q{SET ROLE operator; SELECT hybridiot.send_command('press-1', 'altered', ttl => '10 min')});
$session = hold('ALTER TABLE hybridiot.command ADD COLUMN remark text');
my @waiting = map { in_background($_) } "SELECT hybridiot.wait_command('$queued', '1 min')",
	"SELECT hybridiot.cancel_command('$queued')", "SELECT hybridiot.resolve_command('$queued', 'executed', NULL)",
	"SET ROLE colleague; " . call('press-2');
$fleet->command({ credit => 'anonymous' });
$_->{handle}->finish for @waiting;
is(join(' ', map { $_->{err} =~ /ERROR:  (\w{5})/ ? $1 : $_->{out} . $_->{err} } @waiting), '55P03 55P03 55P03 55P03',
	'ALTER TABLE that is not committed: whatever is called fails with the lock, and does not hang');
let_go($session);
is(result("SELECT state FROM hybridiot.wait_command('$queued', '60 s')"), 'succeeded', 'what was queued leaves afterwards');
is(result('SET ROLE colleague; ' . call('press-2')), 'succeeded', 'and calls work');
is(worker_pid($node, "kind = 'amqp'"), $worker, 'with the same worker');
is($fleet->twice, '', 'no id reached a device twice');

finish();
