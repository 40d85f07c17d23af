# Very many groups close at once: in steps of one transaction each, with the closed boundary never ahead of the rows, and
# a kill in the middle loses and doubles nothing. A pipeline that max_groups stopped goes on when it is raised.
use strict;
use warnings;
use Hybridiot::Test;
use Test::More;

my $groups = 130_000;
my $node = new_node('close');

# Ten thousand windows of one group each, then one of all the others; a record far behind closes them all. The second
# step waits for a lock that the test holds.
$node->safe_psql('test', <<~"END");
	CREATE SERVER archive FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (transport 'table');
	CREATE TABLE log (partition int, "offset" bigint, "timestamp" timestamptz, key bytea, value bytea, headers jsonb);
	CREATE FOREIGN TABLE telemetry (device int, ts timestamptz) SERVER archive OPTIONS (topic 't', source 'public.log', event_time 'ts');
	INSERT INTO log SELECT 0, i, NULL, NULL, convert_to(format('{"device": %s, "ts": "%s"}', i,
			timestamptz '2024-01-01Z' + CASE WHEN i < 10000 THEN i * interval '1 s' ELSE interval '3 h' + i * interval '1 us' END), 'UTF8'), NULL
		FROM generate_series(0, $groups - 1) i;
	CREATE TABLE closed (during tstzrange, device int, n bigint);
	CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS \$\$ BEGIN
		IF EXISTS (SELECT FROM public.closed) THEN PERFORM pg_advisory_xact_lock(1); END IF; RETURN NULL; END \$\$;
	CREATE TRIGGER wait BEFORE INSERT ON closed FOR EACH STATEMENT EXECUTE FUNCTION wait();
	SELECT hybridiot.create_pipeline('closed', \$\$INSERT INTO closed SELECT hybridiot.tumble(ts, '1 s'), device, count(*) FROM telemetry GROUP BY 1, 2\$\$,
		lateness => '1 d', idle_timeout => '0', checkpoint_interval => '100 ms', max_groups => 80000);
	END

# Stopped first, with nothing lost: the last checkpoint has what it has.
wait_state($node, 'closed', 'failed');
like($node->safe_psql('test', 'SELECT reason FROM hybridiot.pipeline'), qr/^open windows of pipeline "closed" have \d+ groups, and max_groups is 80000. Raise max_groups /,
	'max_groups stops the pipeline, and says how it goes on');
is($node->safe_psql('test', 'SELECT sum(records) FROM hybridiot.open_window'), $node->safe_psql('test', 'SELECT next_offset FROM hybridiot.position'),
	'groups hold the records below its position');
$node->safe_psql('test', q{SELECT hybridiot.alter_pipeline('closed', max_groups => 1000000)});
poll_is($node, 'SELECT sum(groups) FROM hybridiot.open_window', $groups, 'raised, it goes on');

my $lock = $node->background_psql('test');
$lock->query_safe('SELECT pg_advisory_lock(1)');
$node->safe_psql('test', <<~"END");
	INSERT INTO log VALUES (0, $groups, NULL, NULL, '{"device": 0, "ts": "2024-01-03Z"}', NULL)
	END
my $waits = q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'hybridiot pipeline' AND wait_event = 'advisory'};
poll_is($node, $waits, 1, 'the second step has begun');
# All in one snapshot: rows, groups, boundary.
my $step = $node->safe_psql('test', <<~'END');
	SELECT (SELECT count(*) FROM closed), (SELECT count(*) FROM hybridiot.window_group WHERE NOT closed),
		(SELECT count(*) - count(DISTINCT device) FROM closed),
		(SELECT count(*) FROM hybridiot.window_group g, hybridiot.pipeline p WHERE NOT g.closed AND g.window_end <= p.closed_before),
		(SELECT closed_before AT TIME ZONE 'UTC' FROM hybridiot.pipeline)
	END
my ($rows, $left, $double, $ahead, $boundary) = split /\|/, $step;
cmp_ok($rows, '<=', 100_000, 'a step writes no more than a hundred thousand rows');
# The record that closed them is a group, too.
is($rows + $left, $groups + 1, 'every group is a row or still kept');
is("$double $ahead", '0 0', 'the boundary is not ahead of the rows');
is($boundary, '2024-01-01 03:00:00.999999', 'and no window that is half written is behind it');

# Nobody has committed the second step.
my $pid = worker_pid($node, "kind = 'pipeline'");
expect_killed($pid);
kill 'KILL', $pid;
eval { $lock->quit };
poll_is($node, 'SELECT count(*) FROM closed', $groups, 'after a kill all rows are written');
is($node->safe_psql('test', 'SELECT count(DISTINCT device), min(n), max(n), count(DISTINCT during) FROM closed'), "$groups|1|1|10001", 'each once');
poll_is($node, 'SELECT groups, records FROM hybridiot.open_window', '1|1', 'the record that closed them waits in its window');
is($node->safe_psql('test', 'SELECT count(*) FROM hybridiot.window_group'), 1, 'whose group is all that is kept');
is($node->safe_psql('test', q{SELECT closed_before AT TIME ZONE 'UTC', (SELECT count(*) FROM hybridiot.dead_letter) FROM hybridiot.pipeline}), '2024-01-02 00:00:00|0',
	'the boundary has passed them, and nothing was late');
finish();
