# pg_upgrade: nothing of ours runs while it does; positions, window states and the journal survive; everything waits in the
# new cluster until it is resumed.
use strict;
use warnings;
use Hybridiot::Test;
use PostgreSQL::Test::Utils;
use Test::More;

my $old = new_node('old', conf => "hybridiot.command_server = 'gateway'\n");
$old->safe_psql('test', <<~'END');
	CREATE SERVER gateway FOREIGN DATA WRAPPER hybridiot_amqp OPTIONS (host '127.0.0.1', port '1', peer 'router');
	CREATE SERVER archive FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (transport 'table');
	CREATE TABLE log (partition int, "offset" bigint, "timestamp" timestamptz, key bytea, value bytea, headers jsonb);
	CREATE FOREIGN TABLE telemetry (n int, ts timestamptz) SERVER archive OPTIONS (topic 't', source 'public.log', event_time 'ts');
	CREATE TABLE reading (n int);
	CREATE TABLE total (during tstzrange, n bigint);
	CREATE FUNCTION arrive(first int, last int) RETURNS void LANGUAGE sql AS $$
		INSERT INTO log SELECT 0, i, now(), NULL, convert_to(format('{"n": %s, "ts": "2026-01-01T00:00:%sZ"}', i, to_char(i, 'FM00')), 'UTF8')
		FROM generate_series(first, last) AS i $$;
	SELECT arrive(0, 25);
	INSERT INTO log VALUES (0, 26, now(), NULL, '{"n": "bad"}');
	SELECT hybridiot.create_pipeline('readings', 'INSERT INTO reading SELECT n FROM telemetry');
	SELECT hybridiot.create_pipeline('totals',
		'INSERT INTO total SELECT hybridiot.tumble(ts, ''10 s''), sum(n) FROM telemetry GROUP BY 1', idle_timeout => '0', checkpoint_interval => '10 ms');
	SELECT hybridiot.send_command('press-1', 'fan', ttl => '1 hour');
	END
my $positions = q{SELECT string_agg(pipeline || ' ' || next_offset, ', ' ORDER BY pipeline) FROM hybridiot.position};
my $states = q{SELECT string_agg(name || ' ' || state || coalesce(' ' || reason, ''), ', ' ORDER BY name) FROM hybridiot.pipeline};
my $windows = 'SELECT lower(during), groups, records FROM hybridiot.open_window ORDER BY 1';
poll_is($old, $positions, 'readings 27, totals 27', 'all is read');
is($old->safe_psql('test', 'SELECT count(*) FROM hybridiot.dead_letter'), 2, 'with a dead letter in each pipeline');
my $open = $old->safe_psql('test', $windows);
like($open, qr/\|1\|6$/, 'a window is open');
$old->safe_psql('test', 'SELECT arrive(27, 30)');
poll_is($old, $positions, 'readings 31, totals 31', 'all is read');
$old->stop;

# ---- binary-upgrade mode

my $log = $old->logfile;
command_ok([ 'pg_ctl', '-w', '-D', $old->data_dir, '-l', $log, '-o', '-b', 'start' ], 'started in binary-upgrade mode');
$old->safe_psql('test', 'SELECT arrive(31, 33)');
is($old->safe_psql('test', 'SELECT hybridiot.preloaded()'), 't', 'the library is loaded');
my $seen = 0;
$seen += $old->safe_psql('test', q{SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'hybridiot%'}) for 1 .. 20;
is($seen, 0, 'and starts no process');
is($old->safe_psql('test', $positions), 'readings 31, totals 31', 'so nothing is read');
command_ok([ 'pg_ctl', '-w', '-D', $old->data_dir, '-m', 'fast', 'stop' ], 'stopped');

# ---- a real one, to the same version

my $new = new_node('new', start => 0, conf => "hybridiot.command_server = 'gateway'\n");
my $bin = $new->config_data('--bindir');
chdir PostgreSQL::Test::Utils::tempdir('upgrade') or die;
command_ok([ 'pg_upgrade', '--no-sync', '-b', $bin, '-B', $bin, '-d', $old->data_dir, '-D', $new->data_dir,
	'-s', $new->host, '-p', $old->port, '-P', $new->port ], 'pg_upgrade');
$new->start;
poll_is($new, $states, 'readings failed copied, totals failed copied', 'in the new cluster all is held');
is($new->safe_psql('test', $positions), 'readings 31, totals 31', 'positions survive');
is($new->safe_psql('test', 'SELECT count(*) FROM hybridiot.dead_letter'), 2, 'dead letters do');
is($new->safe_psql('test', q{SELECT count(*) FROM hybridiot.open_window}), 1, 'and open windows');
poll_is($new, q{SELECT command || ' ' || state FROM hybridiot.command}, 'fan in_doubt', 'a command that was queued is in doubt');
is($new->safe_psql('test', 'SELECT hybridiot.resume_all()'), 2, 'resume_all()');
poll_is($new, $states, 'readings running, totals running', 'lets them go on');
poll_is($new, $positions, 'readings 34, totals 34', 'from where they were');
$new->safe_psql('test', 'SELECT arrive(34, 45)');
poll_is($new, 'SELECT count(*), count(DISTINCT n) FROM reading', '45|45', 'exactly once');
poll_is($new, 'SELECT sum(n), count(*) FROM total', (39 * 40 / 2 - 26) . '|4', 'windows that were open close with all their records');

finish();
