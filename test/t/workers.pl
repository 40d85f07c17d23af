# Workers come and go with databases, the extension, pipelines and settings. A table stands in for the topic: what is
# tested here is who runs when.
use strict;
use warnings;
use Hybridiot::Test;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $node = new_node('workers', conf => "max_worker_processes = 14\n");

sub stream_in
{
	my $database = shift;
	$node->safe_psql($database, <<~'END');
		CREATE TABLE log (partition int, "offset" bigint, "timestamp" timestamptz, key bytea, value bytea, headers jsonb);
		CREATE SERVER archive FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (transport 'table');
		CREATE FOREIGN TABLE telemetry (device text, n int) SERVER archive OPTIONS (topic 't', source 'public.log');
		CREATE TABLE reading (device text, n int);
		INSERT INTO log SELECT 0, i, now(), NULL, convert_to(format('{"device": "d1", "n": %s}', i), 'UTF8') FROM generate_series(1, 100) AS i;
		END
	return;
}

# How many processes of ours are in a database.
my $processes = "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'hybridiot%' AND datname = ";

# ---- the extension and its pipelines

poll_is($node, "SELECT kind || ' ' || state FROM hybridiot.stat_worker", 'manager running', 'CREATE EXTENSION brings a manager');
stream_in('test');
$node->safe_psql('test', "SELECT hybridiot.create_pipeline('p', 'INSERT INTO reading SELECT * FROM telemetry')");
poll_is($node, 'SELECT count(*), sum(n) FROM reading', '100|5050', 'create_pipeline brings a worker');
wait_state($node, 'p', 'running');

$node->safe_psql('test', "BEGIN; SELECT hybridiot.create_pipeline('never', 'SELECT * FROM telemetry'); ROLLBACK");
$node->safe_psql('test', "SELECT hybridiot.pause_pipeline('p')");
poll_is($node, "$processes 'test'", '1', 'pause_pipeline ends it');
is($node->safe_psql('test', 'SELECT state FROM hybridiot.pipeline'), 'paused', 'and says so');
$node->safe_psql('test', q(INSERT INTO log VALUES (0, 101, now(), NULL, '{"n": 101}')));
$node->safe_psql('test', "SELECT hybridiot.resume_pipeline('p')");
poll_is($node, 'SELECT count(*) FROM reading', '101', 'resume_pipeline goes on');

$node->safe_psql('test', q(SELECT hybridiot.alter_pipeline('p', statement => 'INSERT INTO reading SELECT ''altered'', n FROM telemetry')));
$node->safe_psql('test', q(INSERT INTO log VALUES (0, 102, now(), NULL, '{"device": "d1", "n": 102}')));
poll_is($node, 'SELECT device FROM reading WHERE n = 102', 'altered', 'alter_pipeline takes effect while it runs');

# ---- errors: of the moment, of the statement, of the owner

my $pid = worker_pid($node, "pipeline = 'p'");
$node->safe_psql('test', "SELECT pg_terminate_backend($pid)");
poll_is($node, "SELECT pid <> $pid AND restarts > 0 FROM hybridiot.stat_worker WHERE pipeline = 'p'", 't', 'a terminated worker is started again');

my $locker = $node->background_psql('test');
$locker->query_safe("BEGIN; LOCK TABLE reading IN ACCESS EXCLUSIVE MODE");
$node->safe_psql('test', "ALTER DATABASE test SET lock_timeout = '200ms'");
$node->safe_psql('test', q(INSERT INTO log VALUES (0, 103, now(), NULL, '{"device": "d1", "n": 103}')));
wait_state($node, 'p', 'retrying');
like($node->safe_psql('test', "SELECT reason FROM hybridiot.pipeline"), qr/lock timeout/, 'the reason is told');
$locker->query_safe("COMMIT");
$locker->quit;
$node->safe_psql('test', "ALTER DATABASE test RESET lock_timeout");
poll_is($node, 'SELECT count(*) FROM reading WHERE n = 103', '1', 'a lock that was in the way costs nothing but time');
wait_state($node, 'p', 'running');

$node->safe_psql('test', 'ALTER TABLE reading RENAME TO moved');
$node->safe_psql('test', q(INSERT INTO log VALUES (0, 104, now(), NULL, '{"device": "d1", "n": 104}')));
wait_state($node, 'p', 'failed');
like($node->safe_psql('test', "SELECT reason FROM hybridiot.pipeline"), qr/relation "public.reading" does not exist/, 'a statement that is wrong stops with its reason');
is($node->safe_psql('test', "SELECT next_offset FROM hybridiot.position"), '104', 'and the position stays');
$node->safe_psql('test', 'ALTER TABLE moved RENAME TO reading');
$node->safe_psql('test', "SELECT hybridiot.resume_pipeline('p')");
poll_is($node, 'SELECT count(*), count(DISTINCT n) FROM reading', '104|104', 'resumed, it goes on where it stopped');

$node->safe_psql('test', q(
	CREATE ROLE leaver; GRANT SELECT ON telemetry, log TO leaver; CREATE TABLE left_behind (n int); GRANT INSERT ON left_behind TO leaver;
	SET ROLE leaver; SELECT hybridiot.create_pipeline('theirs', 'INSERT INTO left_behind SELECT n FROM telemetry')));
poll_is($node, 'SELECT count(*) FROM left_behind', '104', 'a pipeline of somebody else');
$node->safe_psql('test', 'DROP OWNED BY leaver; DROP ROLE leaver');
$node->safe_psql('test', q(INSERT INTO log VALUES (0, 105, now(), NULL, '{"device": "d1", "n": 105}')));
wait_state($node, 'theirs', 'failed');
is($node->safe_psql('test', 'SELECT count(*) FROM left_behind'), '104', 'does nothing more when its owner is gone');
$node->safe_psql('test', "SELECT hybridiot.drop_pipeline('theirs')");

# ---- sessions beside workers

my ($status, $out, $err) = $node->psql('test', "\\set VERBOSITY verbose\nSELECT hybridiot.run_pipeline('p')");
like($err, qr/ERROR:  55006: pipeline "p" is being run by somebody else/, 'a session cannot run what a worker runs');

# ---- settings

$node->safe_psql('postgres', 'ALTER DATABASE test SET hybridiot.enabled = off');
poll_is($node, "$processes 'test'", '0', 'hybridiot.enabled = off of a database ends its workers');
$node->safe_psql('postgres', 'ALTER DATABASE test RESET hybridiot.enabled');
poll_is($node, "SELECT count(*) FROM hybridiot.stat_worker WHERE state = 'running'", '2', 'and back on brings them back');
$node->append_conf('postgresql.conf', "hybridiot.enabled = off\n");
$node->reload;
poll_is($node, "$processes 'test'", '0', 'off in postgresql.conf does, too');
$node->append_conf('postgresql.conf', "hybridiot.enabled = on\n");
$node->reload;
wait_state($node, 'p', 'running');

# ---- several databases, and what needs them for itself

$node->safe_psql('postgres', 'CREATE DATABASE second');
$node->safe_psql('second', 'CREATE EXTENSION hybridiot');
stream_in('second');
$node->safe_psql('second', "SELECT hybridiot.create_pipeline('p', 'INSERT INTO reading SELECT * FROM telemetry')");
poll_is($node, 'SELECT count(*) FROM reading', '100', 'a second database has workers of its own', 'second');
is($node->safe_psql('test', "SELECT count(*) FROM hybridiot.pipeline"), '1', 'and its own pipelines');

$node->safe_psql('postgres', 'CREATE DATABASE copy TEMPLATE second');
pass('a database with workers can be copied');
poll_is($node, "SELECT count(*) FROM hybridiot.stat_worker WHERE kind = 'pipeline'", '1', 'and its workers come back', 'second');
poll_is($node, 'SELECT state, reason FROM hybridiot.pipeline', 'failed|copied', 'pipelines of a copy wait', 'copy');
is($node->safe_psql('copy', 'SELECT count(*) FROM reading'), '100', 'and do nothing');
$node->safe_psql('copy', "SELECT hybridiot.resume_pipeline('p')");
poll_is($node, 'SELECT state FROM hybridiot.pipeline', 'running', 'until they are resumed', 'copy');
is($node->safe_psql('second', 'SELECT state FROM hybridiot.pipeline'), 'running', 'the original goes on');
$node->safe_psql('postgres', 'ALTER DATABASE copy RENAME TO renamed');
pass('or renamed');
for my $database ('renamed', 'second')
{
	my $began = time;
	$node->safe_psql('postgres', "DROP DATABASE $database");
	ok(time - $began < 4, "$database: workers are gone before DROP DATABASE has to wait for them");
}

# ---- DROP EXTENSION

my $dropper = $node->background_psql('test');
$dropper->query_safe('SET client_min_messages = warning; BEGIN; DROP EXTENSION hybridiot CASCADE');
is($node->safe_psql('postgres', "$processes 'test'"), '0', 'workers are gone before DROP EXTENSION returns');
$dropper->query_safe('ROLLBACK');
$dropper->quit;
poll_is($node, "SELECT count(*) FROM hybridiot.stat_worker WHERE state = 'running'", '2', 'a rolled-back one brings them back');
$node->safe_psql('test', 'DROP EXTENSION hybridiot CASCADE');
is($node->safe_psql('postgres', "$processes 'test'"), '0', 'dropped for good, none is left');
$node->safe_psql('test', 'CREATE EXTENSION hybridiot; DROP TABLE log, reading');
stream_in('test');
poll_is($node, 'SELECT count(*) FROM hybridiot.stat_worker', '1', 'created again, there is a manager again');

# ---- no process to be had

$node->safe_psql('test', "SELECT hybridiot.create_pipeline('many' || i, 'SELECT * FROM telemetry') FROM generate_series(1, 16) AS i");
poll_is($node, "SELECT bool_and(reason LIKE '%raise max_worker_processes%') FROM hybridiot.pipeline WHERE state = 'waiting'", 't',
	'when processes run out, pipelines wait and say what to raise');
$node->safe_psql('test', "SELECT hybridiot.drop_pipeline('many' || i) FROM generate_series(1, 15) AS i");
poll_is($node, "SELECT state FROM hybridiot.pipeline WHERE name = 'many16'", 'running', 'and go on when there is room');
$node->safe_psql('test', "SELECT hybridiot.drop_pipeline('many16')");

# ---- a fast stop in the middle of a batch

$node->safe_psql('test', q(
	CREATE FUNCTION linger() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.06); RETURN NEW; END';
	CREATE TRIGGER linger BEFORE INSERT ON reading FOR EACH ROW EXECUTE FUNCTION linger()));
$node->safe_psql('test', "SELECT hybridiot.create_pipeline('slow', 'INSERT INTO reading SELECT * FROM telemetry')");
poll_is($node, "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'hybridiot pipeline' AND xact_start < now() - interval '0.5 s'", '1', 'a slow batch runs');
my $began = time;
$node->stop('fast');
ok(time - $began < 5, 'a fast stop does not wait for it');
$node->start;
is($node->safe_psql('test', 'SELECT count(*) FROM reading'), '0', 'nothing of the batch is left');
poll_is($node, "SELECT count(*) FROM hybridiot.stat_worker WHERE kind = 'pipeline'", '1', 'workers start with the server');
$node->safe_psql('test', 'DROP TRIGGER linger ON reading');
poll_is($node, 'SELECT count(*), count(DISTINCT n) FROM reading', '100|100', 'and do what was left');

# ---- not preloaded

my $plain = new_node('plain', preload => 0);
$plain->safe_psql('test', q(
	CREATE TABLE log (partition int, "offset" bigint, "timestamp" timestamptz, key bytea, value bytea, headers jsonb);
	INSERT INTO log SELECT 0, i, now(), NULL, convert_to(format('{"n": %s}', i), 'UTF8') FROM generate_series(1, 100) AS i;
	CREATE SERVER archive FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (transport 'table');
	CREATE SERVER gateway FOREIGN DATA WRAPPER hybridiot_amqp OPTIONS (host '127.0.0.1');
	CREATE FOREIGN TABLE telemetry (n int) SERVER archive OPTIONS (topic 't', source 'public.log');
	CREATE TABLE reading (n int);
	SELECT hybridiot.create_pipeline('p', 'INSERT INTO reading SELECT * FROM telemetry')));
is($plain->safe_psql('test', 'SELECT count(*) FROM telemetry'), '100', 'without preloading, streams can be read');
is($plain->safe_psql('test', "SELECT hybridiot.run_pipeline('p')"), '100', 'and pipelines run by hand');
is($plain->safe_psql('test', 'SELECT state, reason FROM hybridiot.pipeline'),
	'waiting|hybridiot is not in shared_preload_libraries', 'the view says why nothing runs by itself');
for my $call ("send_command('d', 'c', server => 'gateway')", "call_device('d', 'c', server => 'gateway')")
{
	($status, $out, $err) = $plain->psql('test', "\\set VERBOSITY verbose\nSELECT hybridiot.$call");
	like($err, qr/ERROR:  55000: .*HINT:  .*shared_preload_libraries/s, "$call needs it");
}

finish();
