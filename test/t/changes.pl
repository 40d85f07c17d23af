# What is changed while a pipeline runs: its positions, its workers, its stream's topics, and what its statement names.
use strict;
use warnings;
use Hybridiot::Test;
use Test::More;

my $kafka = kafka();
my $node = new_node('changes');
$node->safe_psql('test', "CREATE SERVER plant FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (bootstrap_servers '$kafka->{bootstrap}')");

sub stream
{
	my ($name, $topic) = @_;
	$node->safe_psql('test', <<~"END");
		CREATE FOREIGN TABLE $name (n bigint, ts timestamptz, topic text OPTIONS (metadata 'topic'), part int OPTIONS (metadata 'partition'),
			pos bigint OPTIONS (metadata 'offset')) SERVER plant OPTIONS (topic '$topic', event_time 'ts');
		END
	return;
}

sub sql { return $node->safe_psql('test', $_[0]) }

sub reason { return sql("SELECT reason FROM hybridiot.pipeline WHERE name = '$_[0]'") }

# ---------------------------------------------------------------- several workers over the partitions

my $wide = create_topic(unique('wide'), 6);
stream('wide', $wide);
fill($wide, 6000);
sql('CREATE TABLE late (n bigint); CREATE TABLE reading (n bigint, part int, pos bigint)');
sql("SELECT hybridiot.create_pipeline('late', 'INSERT INTO late SELECT n FROM wide', start_at => 'latest', workers => 4)");
poll_is($node, "SELECT count(*), sum(next_offset) FROM hybridiot.position WHERE pipeline = 'late'", '6|6000',
	'whoever of several workers comes first decides where all begin');
sql("SELECT hybridiot.create_pipeline('p', 'INSERT INTO reading SELECT n, part, pos FROM wide', workers => 3, batch_rows => 500, batch_delay => '5 ms')");
poll_is($node, "SELECT count(*) FROM hybridiot.stat_worker WHERE pipeline = 'p' AND state = 'running'", '3', 'a pipeline has as many workers as it says');
my $fill = start_fill($wide, 60_000, rate => 12_000, from => 6000);
for my $workers (2, 5, 1, 3)
{
	sql("SELECT hybridiot.alter_pipeline('p', workers => $workers)");
	poll_is($node, "SELECT count(*) FROM hybridiot.stat_worker WHERE pipeline = 'p'", $workers, "$workers workers, while records arrive");
	sql("SELECT pg_terminate_backend(pid) FROM hybridiot.stat_worker WHERE pipeline = 'p' LIMIT 1");
}
$fill->finish;
wait_caught_up($node, 'p', $wide);
is(sql('SELECT count(*), count(DISTINCT (part, pos)), count(DISTINCT n) FROM reading'), '66000|66000|66000', 'every record once, whoever read it');
wait_caught_up($node, 'late', $wide);
is(sql('SELECT count(*), min(n) FROM late'), '60000|6000', 'from where they began');
poll_is($node, "SELECT state FROM hybridiot.pipeline WHERE name = 'p'", 'running', 'and the pipeline is one');
sql("SELECT hybridiot.pause_pipeline('p')");
poll_is($node, "SELECT count(*) FROM hybridiot.stat_worker WHERE pipeline = 'p'", '0', 'paused, all of them leave');
sql("TRUNCATE reading; SELECT hybridiot.seek_pipeline('p', 'earliest')");
is(sql("SELECT hybridiot.run_pipeline('p')"), '66000', 'a session runs all partitions');
sql("SELECT hybridiot.resume_pipeline('p')");
poll_is($node, "SELECT count(*) FROM hybridiot.stat_worker WHERE pipeline = 'p'", '3', 'resumed, all come back');
my ($status, $out, $err) = $node->psql('test', "\\set VERBOSITY verbose\nSELECT hybridiot.run_pipeline('p')");
like($err, qr/ERROR:  55006: /, 'and keep sessions out');
sql("SELECT hybridiot.drop_pipeline(name) FROM hybridiot.pipeline");

# ---------------------------------------------------------------- positions, while it runs

my $topic = create_topic(unique('seek'), 2);
stream('telemetry', $topic);
fill($topic, 20_000, step => 100);
sql('TRUNCATE reading');
sql("SELECT hybridiot.create_pipeline('p', 'INSERT INTO reading SELECT n, part, pos FROM telemetry', batch_rows => 100)");
wait_caught_up($node, 'p', $topic);
for my $turn (1 .. 3)
{
	# In one transaction: whatever the worker has in hand is of before, or of after.
	sql("BEGIN; SELECT hybridiot.seek_pipeline('p', '{\"0\": 2000, \"1\": 9000}'); DELETE FROM reading WHERE part = 0 AND pos >= 2000 OR part = 1 AND pos >= 9000; COMMIT");
}
wait_caught_up($node, 'p', $topic);
is(sql('SELECT count(*), count(DISTINCT n) FROM reading'), '20000|20000', 'sought in mid flight, every record once');
sql("BEGIN; SELECT hybridiot.seek_pipeline('p', '2026-01-01 00:30Z'); TRUNCATE reading; COMMIT");
wait_caught_up($node, 'p', $topic);
is(sql('SELECT count(*), min(n) FROM reading'), '2000|18000', 'a timestamp is one of records');
sql("BEGIN; SELECT hybridiot.seek_pipeline('p', 'latest'); TRUNCATE reading; COMMIT");
wait_caught_up($node, 'p', $topic);
fill($topic, 10, from => 20_000, step => 100);
poll_is($node, 'SELECT count(*), min(n) FROM reading', '10|20000', 'latest is the end as it was then');
sql("SELECT hybridiot.seek_pipeline('p', '{\"1\": 99999999}')");
wait_state($node, 'p', 'failed');
like(reason('p'), qr/log ends at 10005, before the position 99999999/, 'a place that the log has not got stops it, with the place');
sql("SELECT hybridiot.seek_pipeline('p', '{\"1\": 10000}')");
poll_is($node, 'SELECT count(*), count(DISTINCT n) FROM reading', '15|10', 'seek_pipeline is the way on');
is(sql("SELECT count(*), bool_and(sought_by = current_user) FROM hybridiot.seek WHERE pipeline = 'p'"), '7|t', 'and leaves a record');

# ---------------------------------------------------------------- a stream moves to another topic

my ($old, $new) = (create_topic(unique('old'), 2), create_topic(unique('new'), 3));
stream('moving', $old);
sql('CREATE TABLE moved (n bigint, topic text, part int, pos bigint)');
sql("SELECT hybridiot.create_pipeline('moving', 'INSERT INTO moved SELECT n, topic, part, pos FROM moving', start_at => 'latest')");
poll_is($node, "SELECT count(*) FROM hybridiot.position WHERE pipeline = 'moving'", '2', 'it has begun');
fill($old, 3000);
fill($new, 2000, from => 3000);	# before the database knows of it
fill($old, 500, from => 5000);
sql("ALTER FOREIGN TABLE moving OPTIONS (SET topic '$old, $new')");
wait_caught_up($node, 'moving', $old, $new);
is(sql("SELECT count(*), count(DISTINCT n), count(*) FILTER (WHERE topic = '$new') FROM moved"), '5500|5500|2000', 'both topics are read, the new one from its beginning');
sql("ALTER FOREIGN TABLE moving OPTIONS (SET topic '$new')");
fill($new, 500, from => 5500);
fill($old, 500, from => 90_000);
poll_is($node, 'SELECT count(*), max(n) FROM moved', '6000|5999', 'the old one is left behind');
sql("ALTER FOREIGN TABLE moving OPTIONS (SET topic '$new, $old')");
poll_is($node, 'SELECT count(*), count(DISTINCT n) FROM moved', '6500|6500', 'and found again where it was left');

# ---------------------------------------------------------------- what the statement names

sql('TRUNCATE reading');
sql("SELECT hybridiot.alter_pipeline('p', statement => 'INSERT INTO reading SELECT n, part, pos FROM telemetry', start_at => '{\"0\": 10005, \"1\": 10005}')");
my $next = 30_000;

# goes_on('ALTER ...'): it is done between two records, and both arrive.
sub goes_on
{
	my ($change, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	fill($topic, 2, from => $next);
	sql($change);
	fill($topic, 2, from => $next + 2);
	poll_is($node, "SELECT count(DISTINCT n) FROM reading WHERE n >= $next + 2", '2', $name);
	$next += 4;
	return;
}

# stops('ALTER ...', qr/reason/, 'ALTER ...'): it stops with the reason, and goes on when that is undone.
sub stops
{
	my ($change, $reason, $undo, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_caught_up($node, 'p', $topic);
	my $before = sql("SELECT sum(next_offset) FROM hybridiot.position WHERE pipeline = 'p'");
	sql($change);
	fill($topic, 2, from => $next);
	wait_state($node, 'p', 'failed');
	like(reason('p'), $reason, "$name: the reason is told");
	is(sql("SELECT sum(next_offset) FROM hybridiot.position WHERE pipeline = 'p'"), $before, 'the position stays');
	sql("$undo; SELECT hybridiot.resume_pipeline('p')");
	poll_is($node, "SELECT count(*), count(DISTINCT n) FROM reading WHERE n >= $next", '2|2', 'undone, it goes on');
	$next += 2;
	return;
}

goes_on('ALTER TABLE reading ADD more text DEFAULT \'x\'', 'ADD COLUMN of the target');
goes_on('ALTER TABLE reading DROP more', 'DROP COLUMN that the statement does not name');
goes_on('ALTER TABLE reading ALTER n TYPE numeric', 'ALTER COLUMN TYPE');
goes_on('CREATE UNIQUE INDEX reading_place ON reading (part, pos)', 'CREATE INDEX');
goes_on('TRUNCATE reading', 'TRUNCATE');
goes_on('ALTER TABLE reading ENABLE ROW LEVEL SECURITY; VACUUM FULL reading', 'VACUUM FULL');
goes_on("ALTER SERVER plant OPTIONS (ADD client_id 'renamed')", 'ALTER SERVER');
goes_on("CREATE USER MAPPING FOR CURRENT_USER SERVER plant OPTIONS (user 'nobody')", 'CREATE USER MAPPING');
goes_on('DROP USER MAPPING FOR CURRENT_USER SERVER plant', 'DROP USER MAPPING');
goes_on("ALTER FOREIGN TABLE telemetry ADD device text", 'ADD COLUMN of the stream');
goes_on('ALTER FOREIGN TABLE telemetry DROP device', 'DROP COLUMN of the stream');
goes_on("ALTER FOREIGN TABLE telemetry OPTIONS (ADD max_future '1 day')", 'options of the stream');
stops('ALTER TABLE reading RENAME n TO number', qr/column "n" of relation "reading" does not exist/, 'ALTER TABLE reading RENAME number TO n', 'RENAME COLUMN');
stops('ALTER TABLE reading RENAME TO readings', qr/relation "public.reading" does not exist/, 'ALTER TABLE readings RENAME TO reading', 'RENAME');
stops('ALTER TABLE reading DROP pos', qr/column "pos" of relation "reading" does not exist/, 'ALTER TABLE reading ADD pos bigint', 'DROP COLUMN that the statement names');
stops('DROP TABLE reading', qr/relation "public.reading" does not exist/, 'CREATE TABLE reading (n bigint, part int, pos bigint)', 'DROP TABLE');
stops('ALTER FOREIGN TABLE telemetry RENAME n TO number', qr/column telemetry.n does not exist|column "n" does not exist/, 'ALTER FOREIGN TABLE telemetry RENAME number TO n', 'RENAME of a stream\'s column');

# A broker that is not there is no reason to stop.
sql("ALTER SERVER plant OPTIONS (SET bootstrap_servers '127.0.0.1:1')");
wait_state($node, 'p', 'retrying');
sql("ALTER SERVER plant OPTIONS (SET bootstrap_servers '$kafka->{bootstrap}')");
fill($topic, 2, from => $next);
poll_is($node, "SELECT count(DISTINCT n) FROM reading WHERE n >= $next", '2', 'a server that was mended is used at once');
wait_state($node, 'p', 'running');

sql('DROP FOREIGN TABLE telemetry');
wait_state($node, 'p', 'failed');
like(reason('p'), qr/the stream of pipeline "p" does not exist any more/, 'DROP of the stream');
stream('telemetry', $topic);
sql("SELECT hybridiot.alter_pipeline('p', statement => 'INSERT INTO reading SELECT n, part, pos FROM telemetry')");
$next += 2;
goes_on('SELECT 1', 'with a new one it goes on where it was');
is(sql('SELECT count(*) - count(DISTINCT (part, pos)) FROM reading WHERE n < 1000000'), '0', 'nothing twice');

# A pipeline whose definition changes all the time loses nothing and does nothing twice.
my $busy = create_topic(unique('busy'), 3);
stream('busy', $busy);
sql('CREATE TABLE counted (n bigint)');
sql("SELECT hybridiot.create_pipeline('busy', 'INSERT INTO counted SELECT n FROM busy', batch_rows => 200, batch_delay => '1 ms')");
$fill = start_fill($busy, 20_000, rate => 5000);
for my $turn (1 .. 12)
{
	sql("SELECT hybridiot.alter_pipeline('busy', batch_rows => 100 + $turn, workers => 1 + $turn % 3)");
	sql("SELECT hybridiot.pause_pipeline('busy')") if $turn % 4 == 1;
	sql("SELECT hybridiot.resume_pipeline('busy')") if $turn % 4 == 2;
	sql("SELECT hybridiot.alter_pipeline('busy', statement => 'INSERT INTO counted SELECT n + 0 FROM busy')") if $turn % 4 == 3;
}
$fill->finish;
sql("SELECT hybridiot.resume_pipeline('busy')");
wait_caught_up($node, 'busy', $busy);
is(sql('SELECT count(*), count(DISTINCT n) FROM counted'), '20000|20000', 'altered all the time, every record once');
finish();
