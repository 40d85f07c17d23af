# Bulk: many devices called at once, and who did not answer; very many commands queued by one statement, which leave
# as their peer gives credit, while others watch.
#
# BULK_COMMANDS makes it longer (test/torture/commands: 100,000).
use strict;
use warnings;
use Hybridiot::Test;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $commands = $ENV{BULK_COMMANDS} // 5_000;
my $fleet = start_fleet('router', '--any-device', '--rule', '{"device": "broken-*", "behaviour": "silent"}',
	'--rule', '{"device": "shy-*", "behaviour": "release"}', '--rule', '{"device": "stubborn-*", "behaviour": "fail"}');
my $node = new_node('main', conf => "hybridiot.command_server = 'gateway'");

sub result { return $node->safe_psql('test', $_[0]) }

result("CREATE SERVER gateway FOREIGN DATA WRAPPER hybridiot_amqp OPTIONS (host '127.0.0.1', port '${\$fleet->port}', peer 'router')");
poll_is($node, 'SELECT state FROM hybridiot.stat_connection', 'up', 'the connection is up');

# The worker's largest size so far, in MB; ready is what it has when nothing was sent.
sub largest
{
	my $status = slurp_file('/proc/' . worker_pid($node, "kind = 'amqp'") . '/status');
	return $status =~ /VmHWM:\s+(\d+) kB/ ? $1 / 1024 : die;
}

# ---------------------------------------------------------------- many devices at once

result(q{CREATE TABLE press AS SELECT CASE WHEN i % 100 = 7 THEN 'broken-' WHEN i % 100 = 8 THEN 'shy-' WHEN i % 100 = 9 THEN 'stubborn-'
	ELSE 'press-' END || i AS name FROM generate_series(1, 5000) i});
my $began = time;
result(q{CREATE TABLE answer AS SELECT * FROM hybridiot.call_devices(ARRAY(SELECT name FROM press ORDER BY name), 'fan', '{"on": true}',
	ttl => '1 min', reply_within => '5 s')});
note(sprintf 'call_devices of 5,000: %.1f s', time - $began);
is(result('SELECT count(*) FROM answer'), 5000, 'five thousand are called, and each has its row');
is(result(q{SELECT state || ' ' || count(*) FROM answer GROUP BY state ORDER BY state}),
	"failed 50\nsucceeded 4850\ntimed_out 50\nundeliverable 50", 'whatever its device did');
is(result(q{SELECT array_agg(device) = ARRAY(SELECT name FROM press ORDER BY name) FROM answer}), 't', 'in the order of the devices');
is(result(q{SELECT count(*) FROM answer WHERE payload->>'device' <> device}), 0, 'with its own answer');
is(result(q{SELECT count(*), count(*) FILTER (WHERE device LIKE 'broken-%' OR device LIKE 'shy-%') FROM answer WHERE replied_at IS NULL}),
	'100|100', 'who did not answer, from what the call returns');
is(result(q{SELECT count(*) FROM press p WHERE NOT EXISTS
	(SELECT FROM hybridiot.command c WHERE c.device = p.name AND c.command = 'fan' AND c.replied_at IS NOT NULL)}), 100, 'and from the journal');

# ---------------------------------------------------------------- one statement

my $before = largest();
$fleet->command({ no_credit => 'anonymous' });
$began = time;
result(qq{INSERT INTO hybridiot.command (device, command, payload, ttl, reply_within)
	SELECT 'press-' || i % 1000, 'bulk', jsonb_build_object('n', i), '10 min', '1 min' FROM generate_series(1, $commands) i});
note(sprintf '%d commands by one INSERT: %.1f s', $commands, time - $began);
my $bulk = q{FROM hybridiot.command WHERE command = 'bulk'};
is(result("SELECT count(*) $bulk AND state = 'queued'"), $commands, 'all are queued');
is(result('SELECT in_flight, credit FROM hybridiot.stat_connection'), '0|0', 'without credit none leaves');
$began = time;
$fleet->command({ credit => 'anonymous' });
poll_is($node, "SELECT count(*) > 100 $bulk AND state = 'succeeded'", 't', 'with credit they do');
$fleet->command({ no_credit => 'anonymous' });
poll_is($node, 'SELECT in_flight, credit FROM hybridiot.stat_connection', '0|0', 'what was handed over comes to its end, and no more is handed over');
poll_is($node, "SELECT count(*) $bulk AND state IN ('sending', 'sent', 'accepted')", 0, 'none waits in between');
my %count = split /[|\n]/, result("SELECT state, count(*) $bulk GROUP BY state");
is($count{queued} + $count{succeeded}, $commands, "in mid run the journal says how far it is: $count{succeeded} of $commands");
cmp_ok($count{queued}, '>', 0, 'and it is not over');
$fleet->command({ credit => 'anonymous' });
poll_is($node, "SELECT count(*) $bulk AND state = 'succeeded'", $commands, 'all succeed');
my $took = time - $began;
note(sprintf '%d commands answered in %.1f s: %.0f a second', $commands, $took, $commands / $took);
is($fleet->twice, '', 'none reached its device twice');
my $grown = largest() - $before;
note(sprintf 'largest size of the worker: %.0f MB, %.0f MB more than before', largest(), $grown);
cmp_ok($grown, '<', 100, 'the worker does not hold them all in memory');

# ---------------------------------------------------------------- large ones

# More than one statement of the journal takes: 24 MB.
is(result(q{SELECT state, count(*) FROM hybridiot.call_devices(ARRAY(SELECT 'press-' || i FROM generate_series(1, 24) i), 'large',
	(SELECT jsonb_build_object('x', string_agg(md5(i::text), '')) FROM generate_series(1, 31250) i), ttl => '2 min', reply_within => '2 min') GROUP BY 1}),
	'succeeded|24', 'large ones are called at once');
is(result(q{SELECT count(DISTINCT device), min(length(payload->>'x')), max(length(payload->>'x')) FROM hybridiot.command WHERE command = 'large'}),
	'24|1000000|1000000', 'and each has its row');

finish();
