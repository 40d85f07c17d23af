# Copies of a database, and what is none: a dump restored, a template copied, a base backup started beside its original or
# instead of it, a standby promoted; a server that was stopped, or killed, and started again.
use strict;
use warnings;
use Hybridiot::Test;
use PostgreSQL::Test::Utils;
use Test::More;

my $kafka = kafka();
my $topic = create_topic(unique('copies'), 2);
fill($topic, 10_000);
my $node = new_node('original', init => [ allows_streaming => 1 ], conf => "hybridiot.command_server = 'gateway'\n");

# "orders" shows in its statement that it commands, "trigger" does not; "asleep" was paused by hand.
$node->safe_psql('test', <<~"END");
	CREATE SERVER gateway FOREIGN DATA WRAPPER hybridiot_amqp OPTIONS (host '127.0.0.1', port '1', peer 'router');
	CREATE SERVER plant FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (bootstrap_servers '$kafka->{bootstrap}');
	CREATE FOREIGN TABLE telemetry (n bigint, device text) SERVER plant OPTIONS (topic '$topic');
	CREATE TABLE reading (n bigint);
	CREATE TABLE ordered (n bigint, command uuid);
	CREATE TABLE alarm (n bigint);
	CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS \$\$
		BEGIN
			PERFORM hybridiot.send_command('press-1', 'fan', server => 'gateway', ttl => '1 hour');
			RETURN new;
		END \$\$;
	CREATE TRIGGER tell BEFORE INSERT ON alarm FOR EACH ROW EXECUTE FUNCTION tell();
	SELECT hybridiot.create_pipeline('plain', 'INSERT INTO reading SELECT n FROM telemetry', batch_rows => 100);
	SELECT hybridiot.create_pipeline('orders',
		'INSERT INTO ordered SELECT n, hybridiot.send_command(device, ''fan'', ttl => ''1 hour'') FROM telemetry WHERE n % 5000 = 0');
	SELECT hybridiot.create_pipeline('trigger', 'INSERT INTO alarm SELECT n FROM telemetry WHERE n % 5000 = 1');
	SELECT hybridiot.create_pipeline('asleep', 'SELECT n FROM telemetry', enabled => false);
	END
my $states = q{SELECT string_agg(name || ' ' || state || coalesce(' ' || reason, ''), ', ' ORDER BY name) FROM hybridiot.pipeline};
my $running = 'asleep paused, orders running, plain running, trigger running';
my $copied = 'asleep paused, orders failed copied, plain failed copied, trigger failed copied';
my $promoted = 'asleep paused, orders failed promoted, plain running, trigger failed promoted';
my $counts = 'SELECT (SELECT count(*) FROM reading), (SELECT count(DISTINCT n) FROM reading), (SELECT count(*) FROM ordered), (SELECT count(*) FROM alarm)';
my $commands = q{SELECT string_agg(DISTINCT state, ' ') FROM hybridiot.command};
my $workers = q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'hybridiot pipeline' AND datname = };
wait_caught_up($node, $_, $topic) for qw(plain orders trigger);
is($node->safe_psql('test', $counts), '10000|10000|2|2', 'the original has read the topic');
is($node->safe_psql('test', q{SELECT string_agg(name, ' ' ORDER BY name) FROM hybridiot.pipeline_definition WHERE commands}), 'orders trigger',
	'and knows which pipelines command');

# ---- no copies: the server itself, however it ended

for my $mode ('fast', 'immediate')
{
	$node->restart if $mode eq 'fast';
	$node->stop($mode), $node->start if $mode ne 'fast';
	poll_is($node, $states, $running, "$mode stop and start: no copy");
}
kill_postmaster($node);
poll_is($node, $states, $running, 'the postmaster killed: no copy');
kill_worker($node, "pipeline = 'plain'");
poll_is($node, $states, $running, 'a worker killed: no copy');
is($node->safe_psql('test', $commands), 'queued', 'commands stay queued');

# ---- other databases

my $dump = PostgreSQL::Test::Utils::tempdir('dump') . '/test.sql';
command_ok([ 'pg_dump', '-f', $dump, $node->connstr('test') ], 'pg_dump');

# A copy, whichever: nothing runs, commands are in doubt, until somebody says so; then all goes on from there.
sub is_copy
{
	my ($at, $what, $database) = @_;
	$database //= 'test';
	# The manager looks every ten seconds, and when a server or a mapping changes.
	$at->safe_psql($database, 'CREATE USER MAPPING FOR pg_monitor SERVER plant; DROP USER MAPPING FOR pg_monitor SERVER plant');
	poll_is($at, $states, $copied, "$what: all pipelines are held", $database);
	poll_is($at, $commands, 'in_doubt', 'commands are in doubt', $database);
	is($at->safe_psql('postgres', "$workers '$database'"), 0, 'and no worker runs');
	return;
}

sub goes_on
{
	my ($at, $held, $database) = @_;
	$database //= 'test';
	is($at->safe_psql($database, 'SELECT hybridiot.resume_all()'), $held, "resume_all() resumes $held");
	poll_is($at, $states, $running, 'they run', $database);
	return;
}

# The manager is there before the dump is: it looks on while the rest comes.
$node->safe_psql('postgres', 'CREATE DATABASE restored');
$node->safe_psql('restored', 'CREATE EXTENSION hybridiot');
poll_is($node, 'SELECT kind FROM hybridiot.stat_worker', 'manager', 'a manager is there', 'restored');
command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', $dump, $node->connstr('restored') ], 'restored beside the original');
is_copy($node, 'a dump restored in the same cluster', 'restored');
$node->safe_psql('restored', q{SELECT hybridiot.resume_pipeline('plain')});
poll_is($node, $states, 'asleep paused, orders failed copied, plain running, trigger failed copied', 'resume_pipeline resumes one', 'restored');
$node->safe_psql('restored', q{SELECT hybridiot.alter_pipeline('orders', batch_rows => 500)});
poll_is($node, $states, 'asleep paused, orders failed copied, plain running, trigger failed copied', 'alter_pipeline is no way around it', 'restored');
goes_on($node, 2, 'restored');
is($node->safe_psql('restored', $counts), '10000|10000|2|2', 'from the positions of the dump');
$node->safe_psql('postgres', 'DROP DATABASE restored');

my $other = new_node('other', extension => 0);
command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', $dump, $other->connstr('test') ], 'restored elsewhere');
is_copy($other, 'a dump restored in another cluster');
$other->stop;

my $filler = start_fill($topic, 20_000, from => 10_000, rate => 10_000);
$node->safe_psql('postgres', 'CREATE DATABASE template_copy TEMPLATE test');
is_copy($node, 'a template copy made while workers were busy', 'template_copy');
$filler->finish;
wait_caught_up($node, $_, $topic) for qw(plain orders trigger);
is($node->safe_psql('test', $counts), '30000|30000|6|6', 'the original goes on, exactly once');
goes_on($node, 3, 'template_copy');
poll_is($node, $counts, '30000|30000|6|6', 'and so does the copy, for itself', 'template_copy');
$node->safe_psql('postgres', 'DROP DATABASE template_copy');

# ---- base backups without recovery

$node->backup('base');
my $beside = copied_node('beside', $node, 'base');
is_copy($beside, 'a base backup beside the original');
is($node->safe_psql('test', $states), $running, 'which goes on');
is($beside->safe_psql('test', 'SELECT timeline_id FROM pg_control_checkpoint()'), 1, 'only the instance tells them apart');
$beside->restart;
is_copy($beside, 'started again');
goes_on($beside, 3);
$beside->stop('immediate');
$beside->start;
poll_is($beside, $states, $running, 'resumed, it is an original of its own');
$beside->stop;

# ---- standbys, promoted

my $standby = copied_node('standby', $node, 'base', has_streaming => 1);
my $fenced = copied_node('fenced', $node, 'base', has_streaming => 1, conf => "hybridiot.resume_after_promotion = on\n");
fill($topic, 10_000, from => 30_000);
wait_caught_up($node, $_, $topic) for qw(plain orders trigger);
$node->wait_for_catchup($_, 'replay', $node->lsn('insert')) for 'standby', 'fenced';
my $processes = q{SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'hybridiot%'};
is($standby->safe_psql('test', $processes), 0, 'nothing of ours runs on a standby');
is($standby->safe_psql('test', $counts), '40000|40000|8|8', 'which has the rows');
is($standby->safe_psql('test', $commands), 'queued', 'and the commands');
$node->kill9;
fill($topic, 10_000, from => 40_000);

$standby->promote;
poll_is($standby, $states, $promoted, 'promoted: plain ingest goes on, pipelines that command wait');
wait_caught_up($standby, 'plain', $topic);
is($standby->safe_psql('test', $counts), '50000|50000|8|8', 'exactly once');
poll_is($standby, $commands, 'in_doubt', 'commands that were not final are in doubt');
$standby->restart;
poll_is($standby, $states, $promoted, 'a restart changes nothing of that');
goes_on($standby, 2);
poll_is($standby, $counts, '50000|50000|10|10', 'and they go on where the primary was');

$fenced->promote;
poll_is($fenced, $states, $running, 'promoted with hybridiot.resume_after_promotion: all go on');
poll_is($fenced, $counts, '50000|50000|10|10', 'exactly once');
is($fenced->safe_psql('test', $commands . q{ WHERE command = 'fan' AND queued_at < (SELECT min(at) FROM hybridiot.command_event WHERE state = 'in_doubt')}),
	'in_doubt', 'what the primary may have sent is in doubt all the same');
$_->stop for $standby, $fenced;

# ---- instead of the original, which is gone

my $instead = copied_node('instead', $node, 'base');
is_copy($instead, 'a base backup instead of the original');

finish();
