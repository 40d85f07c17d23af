# SIGKILL of pipelines' workers and of the postmaster at random instants, while records arrive: nothing is lost and
# nothing doubled. While it goes on, in one snapshot: the rows in the table are exactly the records below the
# positions, and windows are what plain SQL says of the records below theirs.
#
# KILL_RECORDS, KILL_WORKERS, KILL_POSTMASTERS make it shorter or longer, KILL_SEED repeats a run as far as chance can
# be repeated.
use strict;
use warnings;
use Hybridiot::Test;
use IPC::Run;
use List::Util qw(shuffle sum0);
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

my $records = $ENV{KILL_RECORDS} // 500_000;
my %wanted = (worker => $ENV{KILL_WORKERS} // 50, postmaster => $ENV{KILL_POSTMASTERS} // 10);
my $kills = $wanted{worker} + $wanted{postmaster};
my $seed = $ENV{KILL_SEED} // (int(time * 1000) ^ $$) % 1_000_000;
srand $seed;
note("seed $seed");

my $slot_seconds = 3;			# between two kills; a restart takes half of it
my $check_seconds = 2;
my @pipelines = qw(raw closed open);

my $topic = create_topic(unique('kill'), 4);
# A partition without records is idle, and windows would close without those that are on their way.
fill($topic, 4, devices => 50);
my $node = new_node('kill', conf => <<~'END');
	max_parallel_workers_per_gather = 0
	max_wal_size = 4GB
	work_mem = 64MB
	END

# ---------------------------------------------------------------- what is run, and how it is checked

# Records of partition p are n = p, p + 4, p + 8, ...: so sums are known for every position. There is no unique index on
# what must not be doubled. Statement triggers make transactions last, and fail now and then for a reason
# that means "again".
my $kafka = kafka();
$node->safe_psql('test', <<~"END");
	CREATE SERVER plant FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (bootstrap_servers '$kafka->{bootstrap}');
	CREATE FOREIGN TABLE telemetry (n bigint, device text, ts timestamptz, temp float8, ok boolean,
		part int OPTIONS (metadata 'partition'), pos bigint OPTIONS (metadata 'offset'))
		SERVER plant OPTIONS (topic '$topic', event_time 'ts');
	CREATE TABLE raw (part int, pos bigint, n bigint, device text, ts timestamptz, temp float8, ok boolean);
	CREATE INDEX ON raw (part, pos);
	CREATE INDEX ON raw (device, ts);
	CREATE TABLE closed (during tstzrange, device text, n bigint, highest float8, total numeric);
	CREATE TABLE open (during tstzrange, device text, n bigint, highest float8, total numeric, PRIMARY KEY (during, device));

	CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS \$\$
		BEGIN
			PERFORM pg_catalog.pg_sleep(pg_catalog.random() * 0.2);
			IF pg_catalog.random() < 0.01 THEN
				RAISE 'again' USING ERRCODE = 'serialization_failure';
			END IF;
			RETURN NULL;
		END \$\$;
	CREATE TRIGGER before BEFORE INSERT ON raw EXECUTE FUNCTION slow();
	CREATE TRIGGER after AFTER INSERT ON raw EXECUTE FUNCTION slow();
	CREATE TRIGGER before BEFORE INSERT ON closed EXECUTE FUNCTION slow();
	CREATE TRIGGER after AFTER INSERT ON closed EXECUTE FUNCTION slow();
	CREATE TRIGGER before BEFORE INSERT ON open EXECUTE FUNCTION slow();
	CREATE TRIGGER after AFTER INSERT ON open EXECUTE FUNCTION slow();

	-- rows are exactly the records below the positions
	CREATE VIEW wrong_raw AS
	SELECT coalesce(p.partition, r.part) AS partition, p.next_offset, r.rows, r.offsets, r.numbers
	FROM (SELECT * FROM hybridiot.position WHERE pipeline = 'raw') p
		FULL JOIN (SELECT part, count(*) AS rows, sum(pos) AS offsets, sum(n) AS numbers FROM raw GROUP BY part) r
		ON r.part = p.partition
	WHERE coalesce(r.rows, 0) IS DISTINCT FROM p.next_offset
		OR coalesce(r.offsets, 0) IS DISTINCT FROM p.next_offset * (p.next_offset - 1) / 2
		OR coalesce(r.numbers, 0) IS DISTINCT FROM 4 * (p.next_offset * (p.next_offset - 1) / 2) + p.partition * p.next_offset;

	-- windows of the records below a pipeline's positions, as far as the table of records goes
	CREATE FUNCTION expected(name) RETURNS TABLE (during tstzrange, device text, n bigint, highest float8, total numeric)
	LANGUAGE sql STABLE BEGIN ATOMIC
		SELECT hybridiot.tumble(r.ts, '500 ms'), r.device, count(*), max(r.temp), sum(r.n)
		FROM raw r JOIN hybridiot.position p ON p.pipeline = \$1 AND p.partition = r.part AND r.pos < p.next_offset
		GROUP BY 1, 2;
	END;
	-- event time up to which a table of windows can be compared: records come in its order
	CREATE FUNCTION horizon(name) RETURNS timestamptz LANGUAGE sql STABLE BEGIN ATOMIC
		SELECT CASE WHEN bool_and(r.next_offset >= p.next_offset) THEN 'infinity' ELSE min(r.stream_time) END
		FROM hybridiot.position r JOIN hybridiot.position p USING (partition) WHERE r.pipeline = 'raw' AND p.pipeline = \$1
		HAVING count(*) = 4 AND count(r.stream_time) = 4;
	END;
	CREATE VIEW expected_closed AS SELECT * FROM expected('closed')
		WHERE upper(during) <= least((SELECT horizon('closed')), (SELECT closed_before FROM hybridiot.pipeline WHERE name = 'closed'));
	CREATE VIEW expected_open AS SELECT * FROM expected('open') WHERE upper(during) <= (SELECT horizon('open'));
	CREATE VIEW found_closed AS SELECT * FROM closed WHERE upper(during) <= (SELECT horizon('closed'));
	CREATE VIEW found_open AS SELECT * FROM open WHERE upper(during) <= (SELECT horizon('open'));
	CREATE VIEW wrong AS
		SELECT 'dead letter' AS what, d::text AS w FROM hybridiot.dead_letter d
		UNION ALL SELECT 'raw', w::text FROM wrong_raw w
		UNION ALL SELECT 'closed: missing', w::text FROM (SELECT * FROM expected_closed EXCEPT ALL SELECT * FROM found_closed) w
		UNION ALL SELECT 'closed: too many', w::text FROM (SELECT * FROM found_closed EXCEPT ALL SELECT * FROM expected_closed) w
		UNION ALL SELECT 'open: missing', w::text FROM (SELECT * FROM expected_open EXCEPT ALL SELECT * FROM found_open) w
		UNION ALL SELECT 'open: too many', w::text FROM (SELECT * FROM found_open EXCEPT ALL SELECT * FROM expected_open) w;
	CREATE VIEW compared AS
		SELECT (SELECT count(*) FROM raw) AS records, (SELECT count(*) FROM found_closed) AS closed, (SELECT count(*) FROM found_open) AS open;
	END
$node->safe_psql('test', $_) for (
	q(SELECT hybridiot.create_pipeline('raw', 'INSERT INTO raw SELECT part, pos, n, device, ts, temp, ok FROM telemetry',
		batch_rows => 2000, batch_delay => '20 ms')),
	q(SELECT hybridiot.create_pipeline('closed', $$INSERT INTO closed
		SELECT hybridiot.tumble(ts, '500 ms'), device, count(*), max(temp), sum(n) FROM telemetry GROUP BY 1, 2$$,
		batch_rows => 2000, batch_delay => '20 ms', checkpoint_interval => '50 ms')),
	q(SELECT hybridiot.create_pipeline('open', $$INSERT INTO open
		SELECT hybridiot.tumble(ts, '500 ms'), device, count(*), max(temp), sum(n) FROM telemetry GROUP BY 1, 2
		ON CONFLICT (during, device) DO UPDATE SET n = excluded.n, highest = excluded.highest, total = excluded.total$$,
		emit => 'changes', batch_rows => 2000, batch_delay => '20 ms', checkpoint_interval => '50 ms')));

# ---------------------------------------------------------------- checks while it runs

my %check = (next => time, done => 0, broken => 0, wrong => 0, compared => 0);

# Look after the check that runs, or start the next one. Servers go away under it: then it counts for nothing.
sub check
{
	if ($check{harness})
	{
		my $goes_on = $check{harness}->pumpable && eval { $check{harness}->pump_nb; $check{harness}->pumpable };
		return if $goes_on && time < $check{give_up};
		# Its server went away in the middle of a word.
		$check{harness}->kill_kill if $goes_on;
		my $whole = eval { $check{harness}->finish };
		delete $check{harness};
		my ($rows, $closed, $open) = $check{out} =~ /^compared (\d+) (\d+) (\d+)$/m;
		return $check{broken}++ unless $whole && defined $open;
		$check{out} =~ s/^compared .*\n//m;
		$check{done}++;
		$check{compared} += $closed + $open;
		if ($check{out} =~ /\S/)
		{
			$check{wrong}++;
			diag("wrong after $rows records:\n" . join "\n", grep { defined } (split /\n/, $check{out})[ 0 .. 9 ]);
		}
	}
	return if time < $check{next};
	$check{next} = time + $check_seconds;
	$check{give_up} = time + 10;
	@check{qw(out err)} = ('', '');
	my @question = map { ('-c', $_) } (
		'BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY',
		'SET LOCAL enable_nestloop = off',
		'SELECT what, w FROM wrong LIMIT 10',
		q(SELECT 'compared ' || records || ' ' || closed || ' ' || open FROM compared),
		'COMMIT');
	$check{harness} = IPC::Run::start([ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr('test'), @question ],
		\undef, '>', \$check{out}, '2>', \$check{err});
	return;
}

sub check_until
{
	my $until = shift;
	do { check(); sleep 0.02 } while time < $until;
	return;
}

# ---------------------------------------------------------------- kills

my (%done, %inside);

# Stop it at once, see whether it is in a transaction, kill it (or the postmaster above it).
sub strike
{
	my $what = shift;
	my $pipeline = $pipelines[ rand @pipelines ];
	my ($pid, $answer, $timed_out);
	# One that is at work again after the last kill, at an instant of chance.
	do
	{
		$pid = worker_pid($node, "kind = 'pipeline' AND pipeline = '$pipeline'
			AND (SELECT s.last_commit_at > started_at + interval '200 ms' FROM hybridiot.stat_pipeline s WHERE s.pipeline = stat_worker.pipeline)");
		sleep rand 0.4;
	} until kill 'STOP', $pid;
	# A stopped process may hold what the question needs.
	$node->psql('test', "SELECT xact_start IS NOT NULL FROM pg_stat_activity WHERE pid = $pid",
		stdout => \$answer, stderr => \my $error, timeout => 3, timed_out => \$timed_out);
	expect_killed($pid);
	if ($what eq 'worker')
	{
		kill 'KILL', $pid;
	}
	else
	{
		# Half of the time it wakes up after its postmaster is gone.
		kill_postmaster($node, rand() < 0.5 ? 'KILL' : 'CONT', $pid);
	}
	$done{$what}++;
	$inside{$what}++ if ($answer // '') eq 't';
	return;
}

my $rate = $records / ($kills * $slot_seconds);
my $began = time;
my $fill = start_fill($topic, $records - 4, from => 4, rate => $rate, devices => 50, step => 1);
my $number = 0;
for my $what (shuffle(map { ($_) x $wanted{$_} } sort keys %wanted))
{
	check_until($began + $slot_seconds * ($number++ + rand));
	strike($what);
}
my $struck = time;
ok($fill->pumpable, 'records arrived until the last kill');
$fill->finish or die 'not all records were sent';
$began = sprintf '%.0f', $struck - $began;

my $inside = sum0 values %inside;
note("$kills kills in $began s; inside a transaction: " . ($inside{worker} // 0) . " of $wanted{worker} of a worker, "
	. ($inside{postmaster} // 0) . " of $wanted{postmaster} of the postmaster");
is("$done{worker} $done{postmaster}", "$wanted{worker} $wanted{postmaster}", 'all kills were made');
cmp_ok($inside, '>=', $kills / 2, 'at least half of the kills fell inside a transaction');

# ---------------------------------------------------------------- the end

poll_is($node, 'SELECT 1', '1', 'the server is back from the last kill');
$node->safe_psql('test', "DROP TRIGGER before ON $_; DROP TRIGGER after ON $_") for @pipelines;
wait_caught_up($node, $_, $topic) for @pipelines;
# The last windows are closed by silence.
$node->safe_psql('test', "SELECT hybridiot.alter_pipeline('$_', idle_timeout => '500 ms')") for qw(closed open);
poll_is($node, 'SELECT count(DISTINCT during) FROM closed', int(($records + 499) / 500), 'all windows are closed');
$check{next} = 9e99;
check_until(time + 0.1) while $check{harness};
$node->safe_psql('test', 'ANALYZE raw, closed, open');

note("$check{done} checks, $check{broken} broken off by a kill, $check{compared} rows of windows compared");
cmp_ok($check{done}, '>=', 3, 'checks were made while it ran');
cmp_ok($check{compared}, '>', 0, 'with windows in them');
is($check{wrong}, 0, 'in every snapshot rows were the records below the positions, and windows what SQL says of them');

is($node->safe_psql('test', 'SELECT * FROM wrong LIMIT 10'), '', 'so they are at the end');
is($node->safe_psql('test', q{SELECT v.* FROM unnest('{closed,open}'::name[]) AS p (name), hybridiot.verify_pipeline(p.name, 'raw') AS v LIMIT 10}), '',
	'which verify_pipeline says, too');
is($node->safe_psql('test', 'SELECT count(*), count(DISTINCT (part, pos)), count(DISTINCT n) FROM raw'),
	"$records|$records|$records", 'nothing is lost, nothing doubled');
is($node->safe_psql('test', 'SELECT count(*) FROM ((TABLE closed EXCEPT ALL TABLE open) UNION ALL (TABLE open EXCEPT ALL TABLE closed)) d'),
	'0', 'final rows and changed rows ended equal');
is($node->safe_psql('test', 'SELECT sum(n), sum(total) FROM closed'), $records . '|' . $records * ($records - 1) / 2, 'windows hold every record once');
is($node->safe_psql('test', q(SELECT string_agg(DISTINCT state, ',') FROM hybridiot.pipeline)), 'running', 'pipelines run');
finish();
