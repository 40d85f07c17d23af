# Closed windows are reopened, and dead letters tried again, while the pipeline's worker runs: nothing that it has in memory is lost
# or counted twice, two callers come one after the other, and a kill in between takes all of it back. A table stands in for the topic.
use strict;
use warnings;
use Hybridiot::Test;
use Test::More;

my $node = new_node('reopen');
$node->safe_psql('test', <<~'END');
	CREATE SERVER archive FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (transport 'table');
	CREATE TABLE log (partition int, "offset" bigint, "timestamp" timestamptz, key bytea, value bytea, headers jsonb, PRIMARY KEY (partition, "offset"));
	CREATE FOREIGN TABLE s (device text, n int, ts timestamptz OPTIONS (metadata 'timestamp')) SERVER archive
		OPTIONS (topic 't', source 'public.log', event_time 'ts');
	CREATE TABLE total (during tstzrange NOT NULL, device text NOT NULL, n bigint, sum bigint, PRIMARY KEY (during, device));
	CREATE FUNCTION strict(n int) RETURNS int STABLE LANGUAGE plpgsql AS $$ BEGIN IF n % 10 = 7 THEN RAISE 'seven'; END IF; RETURN n; END $$;
	CREATE SEQUENCE n;
	-- records of two devices, one for each second
	CREATE FUNCTION feed(first int, last int) RETURNS void LANGUAGE sql AS $$
		INSERT INTO log SELECT 0, (SELECT count(*) FROM log) + row_number() OVER () - 1, timestamptz '2026-01-01Z' + s * interval '1 s', NULL,
			convert_to(format('{"device": "d%s", "n": %s}', s % 2, nextval('n')), 'UTF8') FROM generate_series(first, last) s $$;
	SELECT hybridiot.create_pipeline('p', 'INSERT INTO total SELECT hybridiot.tumble(ts, ''10 s''), device, count(*), sum(strict(n)) FROM s GROUP BY 1, 2
		ON CONFLICT (during, device) DO UPDATE SET n = excluded.n, sum = excluded.sum',
		idle_timeout => '0', keep_closed => '1 h', batch_delay => '0', checkpoint_interval => '500 ms');
	END

my $differences = <<~'END';
	SET TimeZone = 'UTC';
	WITH must AS (SELECT hybridiot.tumble(ts, '10 s') AS during, device, count(*) AS n, sum(n) AS sum FROM s GROUP BY 1, 2)
	SELECT count(*) FROM (SELECT * FROM must WHERE upper(during) <= (SELECT closed_before FROM hybridiot.pipeline)) m
		FULL JOIN total t USING (during, device, n, sum) WHERE m.device IS NULL OR t.device IS NULL
	END
my $read = "SELECT next_offset = (SELECT count(*) FROM log) FROM hybridiot.position";
my $letters = "SELECT reason, count(*) FROM hybridiot.dead_letter GROUP BY 1 ORDER BY 1";

# ---- records that were rejected go into windows that the worker has in memory

$node->safe_psql('test', 'SELECT feed(0, 99)');
poll_is($node, $read, 't', 'all is read');
poll_is($node, $letters, 'rejected|10', 'some are rejected');
is($node->safe_psql('test', $differences) > 0, 1, 'and missed');
$node->safe_psql('test', 'CREATE OR REPLACE FUNCTION strict(n int) RETURNS int STABLE LANGUAGE sql AS $$ SELECT n $$');
my $session = $node->background_psql('test');
my $other = $node->background_psql('test');
$session->query_safe('BEGIN');
is($session->query_safe("SELECT hybridiot.retry_dead_letters('p')"), 1, 'one has a window that is open');
# The worker has taken records of that window, and would store it without the one that was tried again.
$node->safe_psql('test', 'SELECT feed(95, 99)');
$session->query_safe('COMMIT');
$node->safe_psql('test', 'SELECT feed(95, 99)');
poll_is($node, $read, 't', 'the worker reads on');
$node->safe_psql('test', 'SELECT feed(110, 119)');
poll_is($node, $read, 't', 'and on');
poll_is($node, $letters, 'late|9', 'the others are late');
poll_is($node, q(SET TimeZone = 'UTC'; SELECT count(*), sum(n) FROM total WHERE lower(during) = '2026-01-01 00:01:30Z'), '2|20', 'its window has all records');

# ---- late records, with two callers at once

$session->query_safe('BEGIN');
is($session->query_safe("SELECT hybridiot.reopen_window('p', '[2026-01-01Z, 2026-01-01 00:00:45Z)')"), 5, 'late records are folded in');
$other->{stdin} .= "SELECT 'folded ' || hybridiot.reopen_window('p', '[2026-01-01Z, 2026-01-01 00:01:40Z)');\n";
$other->{run}->pump_nb;
poll_is($node, "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%folded%'", 1, 'a second caller waits');
$node->safe_psql('test', 'SELECT feed(120, 129), feed(3, 3)');
$session->query_safe('COMMIT');
$other->{run}->pump until $other->{stdout} =~ /folded (\d+)\n/;
is($1, 4, 'and folds in the rest');
poll_is($node, $read, 't', 'the worker goes on');
is($node->safe_psql('test', "SELECT hybridiot.reopen_window('p', '[2026-01-01Z, 2026-01-01 00:01:40Z)')"), 1, 'what came meanwhile is folded in, too');
is($node->safe_psql('test', $differences), 0, 'all rows are right');
is($node->safe_psql('test', $letters), '', 'and no letter is left');

# ---- a kill takes it back; the next one finds all as it was

$node->safe_psql('test', 'SELECT feed(1, 20)');
poll_is($node, $letters, 'late|20', 'more come late');
$session->query_safe('BEGIN');
is($session->query_safe("SELECT hybridiot.reopen_window('p', '[2026-01-01Z, 2026-01-01 00:00:30Z)')"), 20, 'they are folded in');
kill_worker($node, "pipeline = 'p'");
$_->{run}->kill_kill for $session, $other;
poll_is($node, $letters, 'late|20', 'a crash takes it back');
is($node->safe_psql('test', "SELECT hybridiot.reopen_window('p', '[2026-01-01Z, 2026-01-01 00:00:30Z)')"), 20, 'and it can be done again');
$node->safe_psql('test', 'SELECT feed(130, 145)');
poll_is($node, $read, 't', 'the worker goes on');
poll_is($node, $differences, 0, 'all rows are right');
finish();
