# The blocks of the manual, typed to the letter by a role that is not superuser, on a real Kafka over TLS with
# SASL, a real Artemis, and devices that answer.
use strict;
use warnings;
use Hybridiot::Test;
use PostgreSQL::Test::Utils;
use Test::More;

my $kafka = kafka();
my $artemis = artemis();
my $node = new_node('manual');

# What the administrator does.
mkdir $node->data_dir . '/secrets';
write_secret($node, 'secrets/plant.pw', $kafka->{password});
$node->append_conf('postgresql.conf', "hybridiot.secret_directory = '" . $node->data_dir . "/secrets'\n"
	. "hybridiot.command_server = 'gateway'");
$node->reload;
$node->safe_psql('test', <<~'END');
	CREATE ROLE engineer LOGIN;
	GRANT USAGE ON FOREIGN DATA WRAPPER hybridiot_kafka, hybridiot_amqp TO engineer;
	GRANT CREATE ON SCHEMA public TO engineer;
	END

# Names of topics are those of the manual: this test alone uses them.
for my $topic ('iot-temperature', 'devices')
{
	eval { delete_topic($topic) };
}
create_topic('iot-temperature', 2);
create_topic('devices', 1, 'cleanup.policy=compact');

# type($name, $sql): as the engineer; returns what was said.
sub type
{
	my ($name, $sql) = @_;
	my ($status, $out, $err) = $node->psql('test', $sql,
		extra_params => [ '-U', 'engineer' ], on_error_stop => 1);
	is($status, 0, $name) or diag($err);
	return $out;
}

sub refused
{
	my ($name, $sql, $state, $hint) = @_;
	my ($status, $out, $err) = $node->psql('test', "\\set VERBOSITY verbose\n$sql", extra_params => [ '-U', 'engineer' ]);
	like($err, qr/ERROR:  $state: .*HINT:  $hint/s, $name);
	return;
}

type('servers, credentials, streams', <<~'END');
	CREATE SERVER plant FOREIGN DATA WRAPPER hybridiot_kafka
	  OPTIONS (bootstrap_servers 'k1:9092,k2:9092', security_protocol 'SASL_SSL', sasl_mechanism 'PLAIN');
	CREATE USER MAPPING FOR CURRENT_USER SERVER plant OPTIONS (user 'pg', password_file 'plant.pw');

	CREATE FOREIGN TABLE telemetry (
	    device  text,
	    ts      timestamptz,
	    temp    float8 OPTIONS (path 'sensor.temp'),          -- default: the column's own name
	    site    text   OPTIONS (metadata 'header:site'),
	    part    int    OPTIONS (metadata 'partition'),
	    pos     bigint OPTIONS (metadata 'offset')
	) SERVER plant OPTIONS (topic 'iot-temperature', format 'json', event_time 'ts');
	END

# The manual's names are not ours: where the broker really is, and whose certificate it has.
$node->safe_psql('test', "ALTER SERVER plant OPTIONS (SET bootstrap_servers '$kafka->{tls_bootstrap}', ADD ssl_ca '$kafka->{ca}')");
type('the user of this broker', "ALTER USER MAPPING FOR CURRENT_USER SERVER plant OPTIONS (SET user '$kafka->{user}')");

type('tables', <<~"END");
	CREATE TABLE reading (device text, ts timestamptz, temp float8, site_id int);
	CREATE TABLE device (device text PRIMARY KEY, site_id int);
	CREATE TABLE site_max (during tstzrange, site_id int, max_temp float8, n bigint);
	CREATE TABLE site_now (during tstzrange, site_id int, max_temp float8, PRIMARY KEY (during, site_id));
	CREATE TABLE alarm (during tstzrange, device text, max_temp float8, command_id uuid);
	CREATE SERVER gateway FOREIGN DATA WRAPPER hybridiot_amqp OPTIONS (host '$artemis->{host}', port '$artemis->{port}');
	CREATE USER MAPPING FOR CURRENT_USER SERVER gateway OPTIONS (user '$artemis->{user}', password '$artemis->{password}');
	END

type('a per-batch pipeline', <<~'END');
	-- enrich, filter, route: any SQL
	SELECT hybridiot.create_pipeline('readings', $$
	  INSERT INTO reading (device, ts, temp, site_id)
	  SELECT t.device, t.ts, t.temp, d.site_id FROM telemetry t LEFT JOIN device d USING (device) WHERE t.temp IS NOT NULL $$);
	END
type('a compacted topic as a table', <<~'END');
	-- a compacted topic as a table, tombstones included
	CREATE FOREIGN TABLE device_topic (key text OPTIONS (metadata 'key'), value bytea OPTIONS (metadata 'value'), site_id int)
	  SERVER plant OPTIONS (topic 'devices', compacted 'true');
	SELECT hybridiot.create_pipeline('devices', $$
	  MERGE INTO device d USING device_topic s ON d.device = s.key
	  WHEN MATCHED AND s.value IS NULL THEN DELETE
	  WHEN MATCHED THEN UPDATE SET site_id = s.site_id
	  WHEN NOT MATCHED AND s.value IS NOT NULL THEN INSERT (device, site_id) VALUES (s.key, s.site_id) $$);
	END
type('windows, final rows only', <<~'END');
	-- windows, joined with a table, final rows only
	SELECT hybridiot.create_pipeline('site_max', $$
	  INSERT INTO site_max (during, site_id, max_temp, n)
	  SELECT hybridiot.tumble(t.ts, '10 s'), d.site_id, max(t.temp), count(*)
	  FROM telemetry t JOIN device d USING (device) GROUP BY 1, 2 HAVING count(*) > 3 $$, lateness => '5 s');
	END
type('windows, updated while open', <<~'END');
	-- the same, visible and updated while the window is open
	SELECT hybridiot.create_pipeline('site_now', $$
	  INSERT INTO site_now (during, site_id, max_temp)
	  SELECT hybridiot.tumble(t.ts, '10 s'), d.site_id, max(t.temp)
	  FROM telemetry t JOIN device d USING (device) GROUP BY 1, 2
	  ON CONFLICT (during, site_id) DO UPDATE SET max_temp = excluded.max_temp $$, emit => 'changes');
	END
type('a reaction', <<~'END');
	-- react: one command per hot device and window, queued in the transaction that writes the alarm
	SELECT hybridiot.create_pipeline('too_hot', $$
	  INSERT INTO alarm (during, device, max_temp, command_id)
	  SELECT hybridiot.tumble(ts, '10 s'), device, max(temp), hybridiot.send_command(device, 'fan', '{"on": true}', ttl => '10 s')
	  FROM telemetry GROUP BY 1, 2 HAVING max(temp) > 80 $$);
	END
type('a stream for later', <<~'END');
	CREATE FOREIGN TABLE iot_temperature_max (window_start timestamptz, device text, max_temp float8)
	  SERVER plant OPTIONS (topic 'iot-temperature-max');
	END
refused('publishing comes later', <<~'END', '0A000', 'Publishing to streams is not supported yet');
	-- topic in, topic out: iot_temperature_max is a stream too
	SELECT hybridiot.create_pipeline('max_out', $$
	  INSERT INTO iot_temperature_max (window_start, device, max_temp)
	  SELECT lower(hybridiot.tumble(ts, '5 s')), device, max(temp) FROM telemetry GROUP BY hybridiot.tumble(ts, '5 s'), device $$);
	END
type('hopping windows', <<~'END');
	CREATE TABLE hop_max (during tstzrange, max_temp float8);
	SELECT hybridiot.create_pipeline('hops', $$
	  INSERT INTO hop_max (during, max_temp) SELECT w, max(t.temp) FROM telemetry t, hybridiot.hop(ts, '10 s', '5 s') AS w GROUP BY w $$);
	END

# Devices, then readings: three devices of two sites, 12 s of them, one of them hot.
my $fleet = start_fleet('devices', '--devices', 'press-{1..3}');
produce('devices', { key => 'press-1', value => '{"site_id": 1}' }, { key => 'press-2', value => '{"site_id": 1}' },
	{ key => 'press-3', value => '{"site_id": 1}' }, { key => 'gone', value => '{"site_id": 9}' },
	{ key => 'press-3', value => '{"site_id": 2}' }, { key => 'gone', value => undef });
poll_is($node, q(SELECT string_agg(device || ' ' || site_id, ',' ORDER BY device) FROM device),
	'press-1 1,press-2 1,press-3 2', 'the devices are there, and what was deleted is not');

my @records;
for my $second (0 .. 29)
{
	for my $device (1 .. 3)
	{
		my $temp = $device == 2 && $second == 5 ? 85 : 20 + $device + $second / 10;
		push @records, { key => "press-$device", partition => $device % 2, headers => { site => "s$device" },
			value => sprintf('{"device": "press-%d", "ts": "2026-01-01T00:00:%02dZ", "sensor": {"temp": %s}}', $device, $second, $temp) };
	}
}
produce('iot-temperature', @records);

poll_is($node, 'SELECT count(*), sum(site_id) FROM reading', '90|120', 'readings are enriched');
is(type('the topic as it stands', 'SELECT count(*), count(DISTINCT part), min(site), max(temp) FROM telemetry'), '90|2|s1|85', 'read by hand');
is(type('once, up to now', 'INSERT INTO reading SELECT device, ts, temp FROM telemetry; SELECT count(*) FROM reading'), '180', 'and copied by hand');
poll_is($node, q(SELECT extract(second FROM lower(during))::int, site_id, max_temp FROM site_now ORDER BY 1, 2),
	"0|1|85\n0|2|23.9\n10|1|23.9\n10|2|24.9\n20|1|24.9\n20|2|25.9", 'windows are visible while they are open');
# Silence closes what is open, after idle_timeout.
poll_is($node, q(SELECT extract(second FROM lower(during))::int, site_id, max_temp, n FROM site_max ORDER BY 1, 2),
	"0|1|85|20\n0|2|23.9|10\n10|1|23.9|20\n10|2|24.9|10\n20|1|24.9|20\n20|2|25.9|10", 'final rows come when windows close');
poll_is($node, q(SELECT extract(epoch FROM lower(during) - '2026-01-01Z')::int, max_temp FROM hop_max ORDER BY 1),
	"-5|23.4\n0|85\n5|85\n10|24.9\n15|25.4\n20|25.9\n25|25.9", 'hopping ones, too');
poll_is($node, 'SELECT device, max_temp FROM alarm', 'press-2|85', 'one alarm');
poll_is($node, q(SELECT c.device, c.command, c.sender, c.state, c.status FROM alarm a JOIN hybridiot.command c ON c.id = a.command_id),
	'press-2|fan|engineer|succeeded|200', 'its command was executed and answered');
is(scalar(grep { $_->{device} eq 'press-2' } $fleet->ledger), 1, 'the device got it once');

is(type('call a device', q(SELECT (hybridiot.call_device('press-1', 'status')).state)), 'succeeded', 'a synchronous call is answered');
like(type('views', q(SELECT name, state FROM hybridiot.pipeline ORDER BY 1;
	SELECT count(*) > 0 FROM hybridiot.position; SELECT count(*) FROM hybridiot.dead_letter;
	SELECT count(*) FROM hybridiot.open_window; SELECT count(*) > 0 FROM hybridiot.command_event;
	SELECT count(*) FROM hybridiot.stat_pipeline; SELECT server, state FROM hybridiot.stat_connection;
	SELECT count(*) > 5 FROM hybridiot.stat_worker)), qr/^devices\|running.*^gateway\|/ms, 'everything can be watched');

$fleet->stop;
finish();
