# A windowed pipeline begins anew while its worker is about to close a window, of which no position tells: what the old
# worker knew must not get into the new start.
use strict;
use warnings;
use Hybridiot::Test;
use Test::More;

my $node = new_node('restart');
$node->safe_psql('test', <<~'END');
	CREATE SERVER log FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (transport 'table');
	CREATE TABLE log (partition int, "offset" bigint, "timestamp" timestamptz, key bytea, value bytea, headers jsonb);
	CREATE FOREIGN TABLE telemetry (n int, at timestamptz OPTIONS (metadata 'timestamp')) SERVER log
		OPTIONS (topic 't', source 'public.log', event_time 'at');
	-- the last record begins a window, which silence then closes after its whole length
	INSERT INTO log SELECT 0, n, date_bin('5 s', now(), '1970-01-01Z') + (n - 59) * interval '1 s', NULL, convert_to(format('{"n": %s}', n), 'UTF8')
		FROM generate_series(0, 59) n;
	CREATE TABLE total (during tstzrange, n bigint, sum bigint);
	SELECT hybridiot.create_pipeline('total',
		'INSERT INTO total SELECT hybridiot.tumble(at, ''5 s''), count(*), sum(n) FROM telemetry GROUP BY 1',
		idle_timeout => '100 ms', checkpoint_interval => '100 ms');
	END
poll_is($node, 'SELECT idle FROM hybridiot.position', 't', 'the partition is idle');
is($node->safe_psql('test', 'SELECT count(*) FROM hybridiot.open_window'), 1, 'and a window is open');

# It closes five seconds later at most.
$node->safe_psql('test', <<~'END');
	BEGIN;
	TRUNCATE total;
	SELECT hybridiot.alter_pipeline('total', start_at => 'earliest');
	SELECT pg_sleep(7);
	COMMIT;
	END
my $expected = $node->safe_psql('test', <<~'END');
	SET TimeZone = 'UTC';
	SELECT hybridiot.tumble("timestamp", '5 s'), count(*), sum("offset") FROM log GROUP BY 1 ORDER BY 1
	END
poll_is($node, q(SET TimeZone = 'UTC'; SELECT * FROM total ORDER BY 1), $expected, 'all windows are there, once');
is($node->safe_psql('test', 'SELECT count(*) FROM hybridiot.dead_letter'), 0, 'no record was late');
finish();
