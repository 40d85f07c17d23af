# Bad records where workers matter: what is tried again, halved, stopped; dead letters while a worker runs. Tables stand in for
# topics but for the last part.
use strict;
use warnings;
use Hybridiot::Test;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('letters', conf => "deadlock_timeout = 3s\n");

# Pipeline p_NAME reads log_NAME and fills NAME.
sub pipeline
{
	my ($name, $options) = @_;
	$node->safe_psql('test', <<~"END");
		CREATE TABLE log_$name (partition int, "offset" bigint, "timestamp" timestamptz, key bytea, value bytea, headers jsonb);
		CREATE FOREIGN TABLE s_$name (id int, part int OPTIONS (metadata 'partition'), pos bigint OPTIONS (metadata 'offset'))
			SERVER archive OPTIONS (topic '$name', source 'public.log_$name');
		CREATE TABLE IF NOT EXISTS $name (id int, pos bigint);
		SELECT hybridiot.create_pipeline('p_$name', 'INSERT INTO $name SELECT id, pos FROM s_$name', batch_delay => '0', $options)
		END
	return;
}

sub feed
{
	my ($name, $from, $to) = @_;
	$node->safe_psql('test', qq(INSERT INTO log_$name SELECT 0, i, now(), NULL, convert_to(format('{"id": %s}', i), 'UTF8') FROM generate_series($from, $to) AS i));
	return;
}

my $dead = sub { "SELECT count(*), min(\"offset\"), max(\"offset\") FROM hybridiot.dead_letter WHERE pipeline = 'p_$_[0]'" };
my $count = sub { "SELECT count(*), count(DISTINCT id), min(id), max(id) FROM $_[0]" };

$node->safe_psql('test', <<~'END');
	CREATE SERVER archive FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (transport 'table');
	CREATE TABLE slow (id int, pos bigint);
	CREATE TABLE hungry (LIKE slow);
	CREATE TABLE locked (id int PRIMARY KEY, pos bigint);
	CREATE TABLE shut (LIKE slow);
	CREATE TABLE picky (id int CHECK (id <> 25), pos bigint);
	CREATE FUNCTION tire() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN PERFORM pg_catalog.pg_sleep(CASE WHEN NEW.id >= 100 THEN 60 ELSE 0.2 END); RETURN NEW; END $$;
	CREATE TRIGGER tire BEFORE INSERT ON slow FOR EACH ROW EXECUTE FUNCTION tire();
	CREATE FUNCTION eat() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
			IF (SELECT pg_catalog.count(*) > 2 FROM fresh) THEN RAISE 'out of memory, so to speak' USING ERRCODE = 'out_of_memory'; END IF;
			RETURN NULL;
		END $$;
	CREATE TRIGGER eat AFTER INSERT ON hungry REFERENCING NEW TABLE AS fresh FOR EACH STATEMENT EXECUTE FUNCTION eat();
	CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'shut'; END $$;
	CREATE TRIGGER refuse AFTER INSERT ON shut FOR EACH ROW EXECUTE FUNCTION refuse();
	END

# ---- a real deadlock

my $session = $node->background_psql('test');
$session->query_safe("SET deadlock_timeout = '1min'; BEGIN; INSERT INTO locked VALUES (2, -2)");
pipeline('locked', 'batch_rows => 10');
feed('locked', 1, 3);
# The worker has inserted 1 and waits for 2; now this session waits for 1.
poll_is($node, q(SELECT count(*) > 0 FROM pg_locks WHERE NOT granted), 't', 'the worker waits for a row');
$session->{stdin} .= "INSERT INTO locked VALUES (1, -1);\n";
$session->{run}->pump_nb;
poll_is($node, "SELECT last_error LIKE 'deadlock detected%' FROM hybridiot.stat_pipeline WHERE pipeline = 'p_locked'", 't', 'a deadlock with it');
$session->query_safe('ROLLBACK');
poll_is($node, $count->('locked'), '3|3|1|3', 'is tried again');
$session->quit;

# ---- a batch that takes too long, or too much memory, three times is halved

$node->safe_psql('test', "ALTER DATABASE test SET statement_timeout = '600ms'");
pipeline('slow', 'batch_rows => 4');
pipeline('hungry', 'batch_rows => 4');
feed($_, 1, 8) for 'slow', 'hungry';

# ---- meanwhile: max_errors counts over batches and restarts, and keeps what came before

pipeline('shut', 'batch_rows => 8, max_errors => 30');
feed('shut', 0, 19);
poll_is($node, $dead->('shut'), '20|0|19', 'a trigger that fails for every record');
my $pid = worker_pid($node, "pipeline = 'p_shut'");
$node->safe_psql('test', "SELECT pg_terminate_backend($pid)");
feed('shut', 20, 50);
wait_state($node, 'p_shut', 'failed');
is($node->safe_psql('test', $dead->('shut')), '30|0|29', 'max_errors of them are set aside, before and after a restart');
is($node->safe_psql('test', "SELECT next_offset FROM hybridiot.position WHERE pipeline = 'p_shut'"), '30', 'the position stands at the next one');
is($node->safe_psql('test', "SELECT reason FROM hybridiot.pipeline WHERE name = 'p_shut'"),
	'more than 30 records in a row cannot be applied, the last at topic "shut", partition 0, offset 30: shut', 'which the reason names');
$node->safe_psql('test', "SELECT hybridiot.resume_pipeline('p_shut')");
poll_is($node, $dead->('shut'), '51|0|50', 'resumed, it counts anew');
wait_state($node, 'p_shut', 'running');

# ---- on_error 'stop'

pipeline('picky', "on_error => 'stop'");
feed('picky', 20, 30);
wait_state($node, 'p_picky', 'failed');
is($node->safe_psql('test', $count->('picky')), '5|5|20|24', 'records before the one that stops are applied');
like($node->safe_psql('test', "SELECT reason FROM hybridiot.pipeline WHERE name = 'p_picky'"),
	qr/^record at topic "picky", partition 0, offset 25 cannot be applied: new row .* violates check constraint "picky_id_check": Failing row contains \(25, 25\)$/,
	'the reason names the place and the constraint');
$node->safe_psql('test', "ALTER TABLE picky DROP CONSTRAINT picky_id_check; SELECT hybridiot.resume_pipeline('p_picky')");
poll_is($node, $count->('picky'), '11|11|20|30', 'and it goes on there');

# ---- dead letters are tried again while the worker runs

$node->safe_psql('test', 'DROP TRIGGER refuse ON shut');
$session = $node->background_psql('test');
$session->query_safe('SET statement_timeout = 0; BEGIN');
is($session->query_safe(q(SELECT hybridiot.retry_dead_letters('p_shut'))), '51', 'they pass');
feed('shut', 51, 60);
poll_is($node, 'SELECT count(*), min(id), max(id) FROM shut', '10|51|60', 'the worker goes on meanwhile');
$session->query_safe('COMMIT');
$session->quit;
is($node->safe_psql('test', $count->('shut')), '61|61|0|60', 'each of them once');
is($node->safe_psql('test', q(SELECT hybridiot.retry_dead_letters('p_shut'))), '0', 'none is left');

# ---- the end of the halved ones

poll_is($node, $count->('hungry'), '8|8|1|8', 'what ran out of memory was halved');
poll_is($node, $count->('slow'), '8|8|1|8', 'what was cancelled was halved');
is($node->safe_psql('test', q(SELECT string_agg(format('%s %s', pipeline, retries), ', ' ORDER BY pipeline) FROM hybridiot.stat_pipeline WHERE pipeline IN ('p_slow', 'p_hungry'))),
	'p_hungry 3, p_slow 3', 'after three attempts');
is($node->safe_psql('test', q(SELECT count(*) FROM hybridiot.dead_letter WHERE pipeline IN ('p_slow', 'p_hungry'))), '0', 'and nothing was set aside');
feed('slow', 100, 100);
wait_state($node, 'p_slow', 'failed');
is($node->safe_psql('test', "SELECT reason FROM hybridiot.pipeline WHERE name = 'p_slow'"),
	'record at topic "slow", partition 0, offset 100 cannot be applied: canceling statement due to statement timeout', 'a single record that takes too long stops');
is($node->safe_psql('test', q(SELECT count(*) FROM hybridiot.dead_letter WHERE pipeline = 'p_slow')), '0', 'it is no dead letter');

# ---- from a topic: true offsets, at the row and behind it

my $kafka = kafka();
my $topic = create_topic(unique('letters'), 1);
fill($topic, 20_000);
$node->safe_psql('test', <<~"END");
	ALTER DATABASE test RESET statement_timeout;
	CREATE SERVER plant FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (bootstrap_servers '$kafka->{bootstrap}');
	CREATE FOREIGN TABLE telemetry (n int, device text) SERVER plant OPTIONS (topic '$topic');
	CREATE TABLE at_row (n int CHECK (n % 100 <> 7 AND (n / 100) % 50 <> 3), device text);
	CREATE TABLE behind (LIKE at_row);
	CREATE FUNCTION judge() RETURNS trigger LANGUAGE plpgsql AS \$\$
		BEGIN IF NEW.n % 100 = 7 OR (NEW.n / 100) % 50 = 3 THEN RAISE 'no %', NEW.n; END IF; RETURN NULL; END \$\$;
	CREATE CONSTRAINT TRIGGER judge AFTER INSERT ON behind DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION judge();
	SELECT hybridiot.create_pipeline(t, format('INSERT INTO %I SELECT n, device FROM telemetry', t)) FROM unnest(ARRAY['at_row', 'behind']) AS t;
	END
for my $name ('at_row', 'behind')
{
	wait_caught_up($node, $name, $topic);
	is($node->safe_psql('test', "SELECT count(*), count(DISTINCT n) FROM $name"), '19404|19404', "$name: the good ones");
	is($node->safe_psql('test', qq(SELECT count(*), count(*) FILTER (WHERE ("offset" % 100 = 7 OR ("offset" / 100) % 50 = 3) AND convert_from(value, 'UTF8')::jsonb ->> 'n' = "offset"::text)
		FROM hybridiot.dead_letter WHERE pipeline = '$name')), '596|596', "$name: the bad ones, by offset and value");
}

finish();
