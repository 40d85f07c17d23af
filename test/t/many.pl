# Many pipelines in many databases: exactly once for each of them, asleep when there is nothing to do; and when
# processes or slots run out they wait in a queue, say which setting would help, and each gets its turn.
use strict;
use warnings;
use Hybridiot::Test;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

# ---------------------------------------------------------------- 20 pipelines, 3 databases, one topic

my $kafka = kafka();
my $topic = create_topic(unique('many'), 4);
my $node = new_node('many', conf => "max_worker_processes = 30\n");
my %pipelines = (test => 7, second => 7, third => 6);
fill($topic, 5_000);
for my $database (sort keys %pipelines)
{
	$node->safe_psql('postgres', "CREATE DATABASE $database") if $database ne 'test';
	$node->safe_psql($database, <<~"END");
		SET client_min_messages = warning;
		CREATE EXTENSION IF NOT EXISTS hybridiot;
		CREATE SERVER plant FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (bootstrap_servers '$kafka->{bootstrap}');
		CREATE FOREIGN TABLE telemetry (n bigint) SERVER plant OPTIONS (topic '$topic');
		CREATE TABLE reading (pipeline int, n bigint);
		SELECT hybridiot.create_pipeline('p' || i, format('INSERT INTO reading SELECT %s, n FROM telemetry', i), batch_rows => 500)
		FROM generate_series(1, $pipelines{$database}) AS i;
		END
}
my $filler = start_fill($topic, 10_000, from => 5_000, rate => 10_000);
kill_worker($node, "pipeline = 'p1' AND kind = 'pipeline'");
$filler->finish;
for my $database (sort keys %pipelines)
{
	poll_is($node, 'SELECT count(*), count(DISTINCT (pipeline, n)), count(DISTINCT pipeline), sum(n)::bigint / count(DISTINCT pipeline) FROM reading',
		join('|', 15_000 * $pipelines{$database}, 15_000 * $pipelines{$database}, $pipelines{$database}, 15_000 * 14_999 / 2),
		"$pipelines{$database} pipelines in $database read the topic exactly once, though one was killed", $database);
	poll_is($node, q{SELECT count(*), bool_and(state = 'running' AND reason IS NULL) FROM hybridiot.pipeline}, "$pipelines{$database}|t",
		'and run', $database);
}

# Processor time and wake-ups of all of them, while nothing arrives.
sub spent
{
	my ($ticks, $switches) = (0, 0);
	for my $pid (split /\n/, $node->safe_psql('postgres', q{SELECT pid FROM pg_stat_activity WHERE backend_type IN ('hybridiot pipeline', 'hybridiot manager')}))
	{
		my @stat = split ' ', slurp_file("/proc/$pid/stat") =~ s/^.*\) //r;
		$ticks += $stat[11] + $stat[12];
		$switches += $1 if slurp_file("/proc/$pid/task/$pid/status") =~ /^voluntary_ctxt_switches:\s*(\d+)/m;
	}
	return ($ticks, $switches);
}
poll_is($node, q{SELECT bool_and(lag = 0) FROM hybridiot.position}, 't', 'all has been read', $_) for sort keys %pipelines;
my $since = time;
my ($ticks, $switches) = spent();
$node->psql('postgres', 'SELECT 1') while time < $since + 3;
my ($ticks_after, $switches_after) = spent();
my $seconds = time - $since;
note(sprintf 'idle for %.1f s: %d ticks, %d wake-ups of 23 processes', $seconds, $ticks_after - $ticks, $switches_after - $switches);
cmp_ok(($ticks_after - $ticks) / 100 / $seconds / 20, '<', 0.02, 'an idle worker uses next to no processor');
cmp_ok(($switches_after - $switches) / $seconds / 20, '<', 10, 'because it sleeps');
$node->stop;

# ---------------------------------------------------------------- a queue for four places

# At most 4 workers, in 16 slots; at most 5 managers.
my $small = new_node('small', conf => "max_worker_processes = 11\nhybridiot.max_workers = 4\n");

sub stream_in
{
	my ($database, $pipelines) = @_;
	$small->safe_psql('postgres', "CREATE DATABASE $database") if $database ne 'test';
	$small->safe_psql($database, <<~"END");
		SET client_min_messages = warning;
		CREATE EXTENSION IF NOT EXISTS hybridiot;
		CREATE TABLE log (partition int, "offset" bigint, "timestamp" timestamptz, key bytea, value bytea, headers jsonb);
		INSERT INTO log SELECT 0, i, now(), NULL, convert_to(format('{"n": %s}', i), 'UTF8') FROM generate_series(1, 100) AS i;
		CREATE SERVER archive FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (transport 'table');
		CREATE FOREIGN TABLE telemetry (n int) SERVER archive OPTIONS (topic 't', source 'public.log');
		CREATE TABLE reading (pipeline int, n int);
		SELECT hybridiot.create_pipeline('p' || i, format('INSERT INTO reading SELECT %s, n FROM telemetry', i)) FROM generate_series(1, $pipelines) AS i;
		END
	return;
}
my $by_state = q{SELECT string_agg(state || ' ' || n, ', ' ORDER BY state) FROM (SELECT state, count(*) AS n FROM hybridiot.pipeline GROUP BY state) AS s};
my $reasons = q{SELECT string_agg(DISTINCT reason, '; ') FROM hybridiot.pipeline WHERE state = 'waiting'};
my $ours = 'no worker slot of ours is free; raise hybridiot.max_workers and restart the server';

stream_in('test', 6);
poll_is($small, $by_state, 'running 4, waiting 2', 'four run, two wait');
is($small->safe_psql('test', $reasons), $ours, 'and say what to raise');
stream_in('second', 2);
poll_is($small, $reasons, $ours, 'so do those of another database, behind them', 'second');
stream_in('third', 2);
poll_is($small, $reasons, $ours, 'and of a third', 'third');

# Who ends goes to the end of the queue; so after six ends all ten have had their turn, though four of them came back in between.
my $done = q{SELECT count(DISTINCT pipeline) FROM reading};
my $all_done = sub { my $n = 0; $n += $small->safe_psql($_, $done) for qw(test second third); return $n };
poll_is($small, $done, 4, 'four have read');
my $turns = 4;
for my $turn (5 .. 10)
{
	my ($pid) = $small->safe_psql('postgres', q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'hybridiot pipeline' ORDER BY backend_start LIMIT 1});
	$small->safe_psql('postgres', "SELECT pg_terminate_backend($pid, 5000)");
	my $until = time + $PostgreSQL::Test::Utils::timeout_default;
	$turns = $all_done->() while $turns < $turn && time < $until;
	last if $turns < $turn;
}
is($turns, 10, 'each gets its turn, in the order of the queue');
is($small->safe_psql($_, 'SELECT count(*) = count(DISTINCT (pipeline, n)) FROM reading'), 't', "$_: exactly once") for qw(test second third);
poll_is($small, q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'hybridiot pipeline'}, 4, 'and there are never more than four');

# ---- more pipelines than slots

$small->safe_psql('third', q{SELECT hybridiot.create_pipeline('more' || i, 'SELECT n FROM telemetry') FROM generate_series(1, 30) AS i});
poll_is($small, $reasons, "all worker slots are taken by others; raise hybridiot.max_workers and restart the server; $ours",
	'more pipelines than slots: those without one wait, too, and say so', 'third');
my ($status, $out, $error) = $small->psql('third', q{SELECT hybridiot.run_pipeline('more30')});
like($error, qr/no worker slot is free for pipeline "more30"\nHINT:  Raise hybridiot.max_workers/, 'run_pipeline finds none, either');
stream_in('fourth', 1);
poll_is($small, 'SELECT state FROM hybridiot.pipeline', 'waiting', 'a database that comes late waits', 'fourth');
poll_is($small, 'SELECT kind FROM hybridiot.stat_worker', 'manager', 'but has its manager', 'fourth');
$small->safe_psql('third', q{SELECT hybridiot.drop_pipeline('more' || i) FROM generate_series(1, 30) AS i});
$small->safe_psql($_, q{SELECT hybridiot.pause_pipeline(name) FROM hybridiot.pipeline}) for qw(test second third);
poll_is($small, 'SELECT count(*) FROM reading', '100', 'when there is room it goes on', 'fourth');

# ---- more databases than managers

$small->safe_psql('fourth', q{SELECT hybridiot.pause_pipeline('p1')});
stream_in('fifth', 1);
poll_is($small, 'SELECT count(*) FROM reading', '100', 'a fifth database has the fifth manager', 'fifth');
stream_in('sixth', 1);
poll_is($small, q{SELECT state || ': ' || reason FROM hybridiot.pipeline},
	'waiting: no process is free for the manager of this database; raise max_worker_processes and restart the server',
	'a sixth one waits for its manager, and says what to raise', 'sixth');
$small->safe_psql('postgres', 'DROP DATABASE second');
poll_is($small, 'SELECT count(*) FROM reading', '100', 'which comes when another database is gone', 'sixth');

# ---- none of PostgreSQL's processes

$small->safe_psql('sixth', q{SELECT hybridiot.pause_pipeline('p1')});
$small->safe_psql('fifth', q{SELECT hybridiot.pause_pipeline('p1')});
$small->append_conf('postgresql.conf', "max_worker_processes = 8\nhybridiot.max_workers = 20\n");
$small->restart;
$small->safe_psql('test', q{SELECT hybridiot.resume_pipeline('p' || i) FROM generate_series(1, 6) AS i});
poll_is($small, $reasons, 'no background worker slot is free; raise max_worker_processes and restart the server', 'no process of PostgreSQL: they wait');
my ($running) = $small->safe_psql('test', $by_state) =~ /running (\d+)/;
cmp_ok($running // 0, '>', 0, 'though some run');
my $waiting = $small->safe_psql('test', q{SELECT string_agg(quote_literal(name), ',') FROM hybridiot.pipeline WHERE state = 'waiting'});
$small->safe_psql('test', q{SELECT hybridiot.pause_pipeline(name) FROM hybridiot.pipeline WHERE state = 'running'});
poll_is($small, "SELECT count(*) > 0 FROM hybridiot.pipeline WHERE state = 'running' AND name IN ($waiting)", 't', 'and go on when there is room');

finish();
