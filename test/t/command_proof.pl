# The ledger proof: many sessions command devices in every way there is, roll back, cancel, are ended, while connections
# break and the worker is killed. Then what the devices wrote down before they acted is held against the journal, its
# events, and what each session was told.
#
# PROOF_COMMANDS, PROOF_SESSIONS, PROOF_BREAKS, PROOF_KILLS, PROOF_CRASHES make it longer (test/torture/commands),
# PROOF_SEED repeats a run as far as chance can be repeated.
use strict;
use warnings;
use Hybridiot::Test;
use IPC::Run;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

my $commands = $ENV{PROOF_COMMANDS} // 5000;
my $sessions = $ENV{PROOF_SESSIONS} // 16;
my %wanted = (break => $ENV{PROOF_BREAKS} // 20, kill => $ENV{PROOF_KILLS} // 5, crash => $ENV{PROOF_CRASHES} // 1);
my $seed = $ENV{PROOF_SEED} // (int(time * 1000) ^ $$) % 1_000_000;
srand $seed;
note("seed $seed");

my $dir = PostgreSQL::Test::Utils::tempdir('proof');
# Answers overtake each other: some devices take longer than others.
my @slow = map { { device => "d-$_", behaviour => { as => 'answer', outcome_delay => 2 * $_, reply => { delay => 40 - 2 * $_, resend => JSON::PP::true } } } } 1 .. 16;
my @odd = map { { device => "$_-*", behaviour => $_ } } qw(silent fail reject release);
my $config = JSON::PP::encode_json({ rules => [ @slow, @odd,
	{ device => 'slow-*', behaviour => { as => 'answer', outcome_delay => 300, reply => { delay => 300, resend => JSON::PP::true } } } ] });
my $fleet = start_fleet('router', '--devices', 'd-{1..16}', (map { ('--devices', "$_-{1..3}") } qw(silent fail reject release slow off)),
	'--offline', 'off-*', '--config', $config);

# What is not flushed when its turn comes is not flushed by chance.
my $node = new_node('main', conf => <<~"END");
	hybridiot.command_server = 'gateway'
	hybridiot.max_calls_per_role = 100
	max_connections = 100
	wal_writer_delay = 10s
	log_min_messages = fatal
	END
sub result { return $node->safe_psql('test', $_[0]) }
sub is_up { return poll_is($node, 'SELECT state FROM hybridiot.stat_connection', 'up', $_[0]) }

result("CREATE SERVER gateway FOREIGN DATA WRAPPER hybridiot_amqp OPTIONS (host '127.0.0.1', port '${\$fleet->port}', peer 'router')");
is_up('connected');

# ---------------------------------------------------------------- load

sub start_load
{
	my ($count, $seed, @disturb) = @_;
	unlink "$dir/issued";
	return IPC::Run::start([ '/usr/bin/python3', "$ENV{HYBRIDIOT_TREE}/test/torture/load.py", $node->connstr('test'),
		$count, $sessions, $seed, $dir, @disturb ], \undef, '>', \my $out, '2>&1');
}

sub allow
{
	append_to_file("$dir/allowed.new", $_[0]);
	rename "$dir/allowed.new", "$dir/allowed" or die;
	return;
}

sub issued { return -e "$dir/issued" ? slurp_file("$dir/issued") : 0 }

# What can still change by itself.
my $open = q{state IN ('queued', 'sending', 'sent') OR state = 'accepted' AND reply_within > '0'};

sub settled
{
	return poll_is($node, "SELECT count(*) FROM hybridiot.command WHERE $open", 0, $_[0]);
}

my $began = time;
sub lap { note(sprintf '%.1f s: %s', time - $began, $_[0]); return }
my $load = start_load(int($commands / 10), $seed);
ok($load->finish, 'without faults: all sessions come to their end');
settled('without faults: all commands do');
is(result(q{SELECT count(*) FROM hybridiot.command WHERE state = 'in_doubt'}), 0, 'proof: without faults none is in doubt');
is(result(q{SELECT count(*) FROM hybridiot.command WHERE device LIKE 'd-%' AND ttl = '20 s' AND
	state NOT IN ('succeeded', 'cancelled') AND reply_within > '0'}), 0, 'proof: without faults what has time succeeds');

lap('without faults');

# ---------------------------------------------------------------- faults

my @faults;		# kind, from, until
my $in_hand = $sessions / 4;

sub fault
{
	my ($kind, $code) = @_;
	my $from = time;
	$code->();
	push @faults, [ $kind, $from, time ];
}

sub gone
{
	my $pid = shift;
	sleep 0.001 while kill(0, $pid) && (slurp_file("/proc/$pid/stat") // ') X') !~ /\) [ZX] /;
}

sub is_loaded { $load->pump_nb; return $load->pumpable }

# So that a fault hits something: the devices have commands and have not said what becomes of them. The fleet tells it
# the moment it is so. If there is nothing to hit, that is counted in the end.
sub wait_in_flight { return $fleet->command({ await_in_hand => $in_hand }) }

sub kill_amqp
{
	my $pid = worker_pid($node, "kind = 'amqp'");
	expect_killed($pid);
	wait_in_flight();
	fault('kill', sub { kill 'KILL', $pid; eval { gone($pid) } });
}

# One command, in flight at the instant of the kill, and nothing else that would flush the log.
sub kill_in_flight
{
	my $sql = shift;
	is_up('connected');
	my $before = -s $fleet->{ledger_file};
	my $session = IPC::Run::start([ 'psql', '-X', '-q', '-d', $node->connstr('test'), '-c', $sql ], \undef, '>', \my $out, '2>', \my $err);
	my $pid = worker_pid($node, "kind = 'amqp'");
	my $until = time + $PostgreSQL::Test::Utils::timeout_default;
	sleep 0.001 while -s $fleet->{ledger_file} == $before && time < $until;
	expect_killed($pid);
	fault('kill', sub { kill 'KILL', $pid; eval { gone($pid) } });
	$session->finish;
}

$fleet->command({ rule => { device => 'd-1', command => 'lone', behaviour => 'hold' } });
kill_in_flight(q{SELECT hybridiot.send_command('d-1', 'lone', '{"n": 1}', ttl => '1 min', reply_within => '3 s')});
kill_in_flight(q{SELECT hybridiot.call_device('d-1', 'lone', '{"n": 2}', ttl => '1 min', reply_within => '3 s')});
is_up('connected again');

lap('killed with one in flight');
my $count = $commands - int($commands / 10);
allow(0);
$load = start_load($count, $seed + 1, 'disturb');
my @one_shot = qw(drop_before drop_after reset_before end_session_before end_session_after detach_before detach_after close_before close_after);
my @at_once = qw(drop reset session link connection);
my @plan = sort { $a->[1] <=> $b->[1] } map { my $kind = $_; map { [ $kind, rand ] } 1 .. $wanted{$kind} } keys %wanted;
for my $i (0 .. $#plan)
{
	my $kind = $plan[$i][0];
	my $threshold = $i / @plan * $count;
	# The sessions are never far ahead of the faults, and never wait for them.
	allow(int(($i + 2) / @plan * $count + 100));
	my $until = time + $PostgreSQL::Test::Utils::timeout_default;
	while (issued() < $threshold && is_loaded())
	{
		die 'the sessions do not go on' if time > $until;
		sleep 0.01;
	}
	if ($kind eq 'kill')
	{
		kill_amqp();
		next;
	}
	wait_in_flight();
	if ($kind eq 'crash') { fault('crash', sub { kill_postmaster($node) }) }
	elsif ($i % 8 == 0)
	{
		# Down for a while: short lives end meanwhile.
		fault('listen', sub {
			$fleet->command({ listen => JSON::PP::false });
			sleep 1.2;
			$fleet->command({ listen => JSON::PP::true });
		});
	}
	elsif ($i % 2) { fault('break', sub { $fleet->command({ break => $at_once[ rand @at_once ] }) }) }
	else
	{
		my $behaviour = $one_shot[ rand @one_shot ];
		$fleet->command({ rule => { times => 1, behaviour => $behaviour } });
	}
}
allow($count);
ok($load->finish, 'with faults: all sessions come to their end') or diag(slurp_file("$dir/told") =~ /(.{0,500})\z/s);
lap('all faults');
settled('with faults: all commands do');
lap('settled');
$fleet->command({ clear_rules => JSON::PP::true });
push @faults, map { [ 'break', $_->{at} / 1000, $_->{at} / 1000 ] } grep { $_->{event} eq 'break' } $fleet->events;

# ---------------------------------------------------------------- both sides as tables

append_to_file("$dir/faults", join '', map { join("\t", @$_) . "\n" } @faults);
my $json = q{WITH (FORMAT csv, DELIMITER E'\x01', QUOTE E'\x02')};
my $told_file = "$dir/told";
result(<<~"END");
	CREATE TABLE lines (line jsonb);
	COPY lines FROM '$fleet->{ledger_file}' $json;
	CREATE TABLE ledger AS SELECT (line->>'id')::uuid AS id, line->>'device' AS device, line->>'subject' AS command,
		(line->>'body')::jsonb->>'n' AS n, to_timestamp((line->>'at')::numeric / 1000) AS at,
		(line->>'acts')::boolean AS acts, (line->>'deadline')::numeric AS deadline FROM lines;
	TRUNCATE lines;
	COPY lines FROM '$told_file' $json;
	CREATE TABLE told AS SELECT line->>'n' AS n, line->>'device' AS device, line->>'how' AS how, line->>'outcome' AS outcome,
		line->>'tx' AS tx, (line->>'id')::uuid AS id, line->>'state' AS state, line->>'echo' AS echo, line->>'error' AS error FROM lines;
	CREATE TABLE fault_text (kind text, began float8, ended float8);
	COPY fault_text FROM '$dir/faults';
	CREATE TABLE fault AS SELECT kind, to_timestamp(began) AS began, to_timestamp(ended) AS ended FROM fault_text;
	CREATE TABLE journal AS SELECT *, payload->>'n' AS n FROM hybridiot.command;
	CREATE TABLE story AS SELECT command_id AS id, at, state, cause,
		lag(state) OVER w AS before, lead(at) OVER w AS until, row_number() OVER w AS step, count(*) OVER (PARTITION BY command_id) AS steps
		FROM hybridiot.command_event WHERE state IS NOT NULL WINDOW w AS (PARTITION BY command_id ORDER BY at, ctid);
	CREATE INDEX ON story (id, step);
	-- From the intent until something was known.
	CREATE TABLE flight AS SELECT s.id, s.at AS began, e.at AS ended, e.state, e.cause FROM story s,
		LATERAL (SELECT * FROM story t WHERE t.id = s.id AND t.step > s.step AND t.state <> 'sent' ORDER BY t.step LIMIT 1) e
		WHERE s.state = 'sending';
	CREATE INDEX ON ledger (id); CREATE INDEX ON ledger (n); CREATE INDEX ON journal (n); CREATE INDEX ON journal (id); CREATE INDEX ON told (n);
	CREATE INDEX ON flight (began); CREATE INDEX ON flight (id);
	ANALYZE;
	END

# ---------------------------------------------------------------- one against the other

# A query that must find nothing; shows what it finds.
sub none
{
	my ($name, $query) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $found = result("SELECT count(*), (array_agg(to_json(q)::text))[1:3] FROM ($query) q");
	return ok($found =~ /^0\|/, "proof: $name") || diag($found);
}

none('no command is executed twice', 'SELECT id, count(*), min(at), max(at) FROM ledger WHERE acts GROUP BY id HAVING count(*) > 1');
none('nor under two ids', 'SELECT n, count(DISTINCT id) FROM ledger GROUP BY n HAVING count(DISTINCT id) > 1');
none('what reached a device is in the journal', 'SELECT * FROM ledger l WHERE NOT EXISTS (SELECT FROM journal j WHERE j.id = l.id)');
none('as it was sent', q{SELECT * FROM ledger JOIN journal j USING (id) WHERE ledger.device <> j.device OR ledger.command <> j.command
	OR ledger.n <> j.n OR ledger.deadline <> floor(extract(epoch FROM j.expires_at) * 1000)});
none('no command is lost', q{SELECT * FROM told t WHERE outcome IN ('committed', 'answered') AND NOT EXISTS (SELECT FROM journal j WHERE j.n = t.n)});
none('none of a rolled back transaction, or of a call that was refused, is known anywhere', q{SELECT * FROM told t
	WHERE outcome IN ('rolled_back', 'refused') AND (EXISTS (SELECT FROM journal j WHERE j.n = t.n) OR EXISTS (SELECT FROM ledger l WHERE l.n = t.n))});
none('of a transaction all or none', q{SELECT tx FROM told t LEFT JOIN journal j USING (n)
	WHERE t.outcome = 'unknown' AND t.how IN ('insert', 'send_command') GROUP BY tx HAVING count(j.n) NOT IN (0, count(*))});
none('no number twice in the journal', 'SELECT n FROM journal GROUP BY n HAVING count(*) > 1');
none('none leaves after its deadline', q{SELECT j.n, s.at, j.expires_at, t.state FROM story s JOIN journal j USING (id)
	JOIN story t ON t.id = s.id AND t.step = s.step + 1 WHERE s.state = 'sending' AND s.at > j.expires_at AND t.state NOT IN ('expired', 'queued', 'in_doubt')});
none('none that was cancelled or expired reached a device, but for those it gave back', q{SELECT j.state, l.* FROM journal j JOIN ledger l USING (id)
	WHERE j.state IN ('cancelled', 'expired', 'undeliverable') AND (l.acts OR l.device NOT LIKE 'release-%')});
none('who heard "cancelled" has it so', q{SELECT t.n, t.outcome, j.state FROM told t JOIN journal j USING (n)
	WHERE t.how = 'cancel' AND (t.outcome = 'cancelled') <> (j.state = 'cancelled')});
none('every answer is with its own command', q{SELECT n, state, result FROM journal WHERE replied_at IS NOT NULL AND
	(result #>> '{echo,n}' IS DISTINCT FROM n OR result->>'device' IS DISTINCT FROM device OR result->>'command' IS DISTINCT FROM command)});
none('and with its own caller', q{SELECT t.* FROM told t LEFT JOIN journal j USING (id) WHERE t.outcome = 'answered' AND
	(j.n IS DISTINCT FROM t.n OR t.state IN ('succeeded', 'failed') AND t.echo IS DISTINCT FROM t.n)});
none('no answer without a command', q{SELECT n, state FROM journal j WHERE state IN ('succeeded', 'failed') AND NOT EXISTS (SELECT FROM ledger l WHERE l.id = j.id)});
none('what a caller was told holds, but for what came late', q{SELECT t.n, t.state AS told, j.state FROM told t JOIN journal j USING (id)
	WHERE t.outcome = 'answered' AND t.state <> j.state AND
		NOT (t.state IN ('in_doubt', 'timed_out') AND j.state IN ('succeeded', 'failed', 'rejected', 'undeliverable'))});
none('every story is one that the table of states allows', q{SELECT id, before, state, cause FROM story WHERE (coalesce(before, ''), state) NOT IN (VALUES
	('', 'queued'),
	('queued', 'sending'), ('queued', 'expired'), ('queued', 'cancelled'), ('queued', 'undeliverable'),
	('sending', 'sent'), ('sending', 'queued'), ('sending', 'expired'), ('sending', 'in_doubt'),
	('sent', 'accepted'), ('sent', 'rejected'), ('sent', 'undeliverable'), ('sent', 'queued'), ('sent', 'succeeded'), ('sent', 'failed'), ('sent', 'in_doubt'),
	('accepted', 'succeeded'), ('accepted', 'failed'), ('accepted', 'timed_out'),
	('timed_out', 'succeeded'), ('timed_out', 'failed'), ('rejected', 'succeeded'), ('rejected', 'failed'),
	('undeliverable', 'succeeded'), ('undeliverable', 'failed'),
	('in_doubt', 'succeeded'), ('in_doubt', 'failed'), ('in_doubt', 'rejected'), ('in_doubt', 'undeliverable'))});
none('and ends as the journal says', q{SELECT j.id, j.state, s.state AS told FROM journal j LEFT JOIN story s ON s.id = j.id AND s.step = s.steps
	WHERE s.state IS DISTINCT FROM j.state});
# A peer has ended a link, and commands are handed over until the worker reads that.
none('in doubt is only what was in flight at a fault', q{SELECT * FROM flight WHERE state = 'in_doubt' AND
	NOT EXISTS (SELECT FROM fault WHERE began <= flight.ended AND ended >= flight.began - interval '1 s')});
# The fleet is one process that is late when the machine is busy; what is late because nobody looked at the clock is
# late by as long as a connection is down.
my $allowed = $ENV{PROOF_LATE_MS} // 1000;
none("no device got one later than $allowed ms after its deadline", qq{SELECT n, at, to_timestamp(deadline / 1000) FROM ledger
	WHERE at > to_timestamp((deadline + $allowed) / 1000)});

my ($kills, $hit) = split /\|/, result(q{SELECT count(*), count(*) FILTER (WHERE EXISTS
	(SELECT FROM flight WHERE flight.began <= fault.ended AND flight.ended >= fault.began)) FROM fault});
cmp_ok($hit, '>=', $kills / 2, "at least half of the $kills faults hit commands in flight");

note('faults: ' . result(q{SELECT string_agg(kind || ' ' || n, ', ') FROM (SELECT kind, count(*) AS n FROM fault GROUP BY 1 ORDER BY 1) s}) . "; $hit of them hit commands in flight");
note('in flight at faults: ' . result(q{SELECT count(DISTINCT id) FROM flight JOIN fault ON flight.began <= fault.ended AND flight.ended >= fault.began})
	. '; in doubt meanwhile: ' . result(q{SELECT count(*) FROM flight WHERE state = 'in_doubt'}));
note('commands: ' . result(q{SELECT string_agg(state || ' ' || n, ', ') FROM (SELECT state, count(*) AS n FROM journal GROUP BY 1 ORDER BY 1) s}));
note('told: ' . result(q{SELECT string_agg(how || ' ' || outcome || ' ' || n, ', ') FROM (SELECT how, outcome, count(*) AS n FROM told GROUP BY 1, 2 ORDER BY 1, 2) s}));
note('errors: ' . result(q{SELECT string_agg(coalesce(error, 'lost') || ' ' || n, ', ') FROM (SELECT error, count(*) AS n FROM told WHERE outcome IN ('unknown', 'refused') AND how LIKE 'call%' GROUP BY 1 ORDER BY 1) s}));
note('latest arrival after a deadline, ms: ' . result(q{SELECT max(extract(epoch FROM at) * 1000 - deadline)::numeric(10, 1) FROM ledger} )
	. '; ' . result('SELECT count(*) FROM ledger WHERE extract(epoch FROM at) * 1000 > deadline + 1') . ' arrived after it by more than 1 ms, of ' . result('SELECT count(*) FROM ledger'));
lap('compared');

finish();
