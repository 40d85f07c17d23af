# What a real Kafka does that a table cannot show: the present end, seeking, metadata, transactions, tombstones,
# compaction, time and offsets to start at, partitions that are added, credentials.
use strict;
use warnings;
use Hybridiot::Test;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

my $kafka = kafka();
my $node = new_node('kafka');
my $year = 1_767_225_600_000;	# 2026-01-01, in milliseconds

$node->safe_psql('test', <<~"END");
	CREATE SERVER plant FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (bootstrap_servers '$kafka->{bootstrap}');
	CREATE TABLE reading (n bigint, device text, part int, pos bigint);
	END

# stream('name', 'topic', 'options'): with the columns of fill, and where a record stands
sub stream
{
	my ($name, $topic, $options, $server) = @_;
	$options = $options ? ", $options" : '';
	$server //= 'plant';
	$node->safe_psql('test', <<~"END");
		CREATE FOREIGN TABLE $name (n bigint, device text, ts timestamptz, temp float8, ok boolean,
			part int OPTIONS (metadata 'partition'), pos bigint OPTIONS (metadata 'offset'), at timestamptz OPTIONS (metadata 'timestamp'),
			topic text OPTIONS (metadata 'topic'))
			SERVER $server OPTIONS (topic '$topic'$options);
		END
	return;
}

# failed('name', 'sql', state => '22P02', like => qr/.../)
sub failed
{
	my ($name, $sql, $state, $like) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my ($status, $out, $err) = $node->psql('test', "\\set VERBOSITY verbose\n$sql");
	like($err, qr/ERROR:  $state: /, $name);
	like($err, $like, "$name: it says why") if $like;
	return;
}

sub seconds
{
	my $sql = shift;
	my $began = time;
	$node->safe_psql('test', $sql);
	return time - $began;
}

# ---------------------------------------------------------------- a SELECT

my $topic = create_topic(unique('readings'), 4);
stream('telemetry', $topic, "event_time 'ts'");
is($node->safe_psql('test', 'SELECT count(*) FROM telemetry'), '0', 'an empty topic has no rows');
fill($topic, 200_000);
is($node->safe_psql('test', 'SELECT count(*), count(DISTINCT n), min(n), max(n), count(DISTINCT part), min(ts), max(temp), count(*) FILTER (WHERE ok) FROM telemetry'),
	'200000|200000|0|199999|4|2026-01-01 00:00:00+00|119.6|100000', 'a SELECT reads the topic to its present end');
is($node->safe_psql('test', 'SELECT sum(n) FROM telemetry t JOIN (VALUES (\'d7\')) v (device) USING (device)'), '199914000', 'and joins it');

{
	# Records keep coming: the end is the one at the beginning.
	my $more = create_topic(unique('more'), 1);
	stream('more', $more);
	fill($more, 1000);
	my $fill = start_fill($more, 5000, rate => 1000);
	my $began = time;
	cmp_ok($node->safe_psql('test', 'SELECT count(*) FROM more'), '<=', 6000, 'a SELECT ends while records arrive');
	cmp_ok(time - $began, '<', 4, 'and soon');
	$fill->finish;
}

my $whole = seconds('SELECT count(n) FROM telemetry');
my $limit = seconds('SELECT n FROM telemetry LIMIT 5');
note(sprintf 'all: %.3f s, LIMIT 5: %.3f s', $whole, $limit);
is($node->safe_psql('test', 'SELECT count(*) FROM (SELECT n FROM telemetry LIMIT 5) t'), '5', 'LIMIT');
like($node->safe_psql('test', 'EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) SELECT n FROM telemetry LIMIT 5'),
	qr/Foreign Scan on telemetry \(actual rows=5 /, 'LIMIT reads no more than it needs');

# Conditions that say where to begin and end: what is read is counted.
for (
	[ 'part = 2', 50_000, 'partition =', 0 ],
	[ 'part IN (0, 1, 2, 3) AND part > 1 AND part <= 3', 100_000, 'partition <=, partition = ANY, partition >', 0 ],
	[ 'part IN (1, 3) AND pos >= 49999', 2, 'offset >=, partition = ANY', 0 ],
	[ 'part = 1 AND pos = ANY (ARRAY[10, NULL, 13])', 2, 'offset = ANY, partition =', 2 ],
	[ "topic = 'nowhere'", 0, 'topic =', 0 ],
	[ "topic = '$topic' AND part = 0 AND pos = 49999", 1, 'offset =, partition =, topic =', 0 ],
	[ 'pos >= 49990', 40, 'offset >=', 0 ],
	[ 'pos BETWEEN 10 AND 19 AND part = 3', 10, 'offset <=, offset >=, partition =', 0 ],
	[ '17 > pos', 68, 'offset <', 0 ],
	[ "at >= '2026-01-01 00:03:19.000Z'", 1000, 'timestamp >=', 0 ],
	[ "at > '2026-01-01 00:03:19.000Z'::timestamptz AND at < '2026-01-01 00:03:19.500Z'", 499, 'timestamp <, timestamp >', 501 ],
	[ "at >= timestamptz '2026-01-01 00:03:20Z' - interval '1 s' AND part = 0", 250, 'partition =, timestamp >=', 0 ],
	[ 'part = (SELECT 1)', 50_000, 'partition =', 0 ],
	[ 'part = 7', 0, 'partition =', 0 ],
	[ 'pos = NULL::bigint', 0, '', 0 ],
	[ 'part <> 0', 150_000, '', 50_000 ])
{
	my ($condition, $rows, $seeks, $removed) = @$_;
	my $plan = $node->safe_psql('test', "EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) SELECT n FROM telemetry WHERE $condition");
	is($node->safe_psql('test', "SELECT count(*) FROM telemetry WHERE $condition"), $rows, "$condition: rows");
	# The planner puts them in an order of its own.
	my $sought = join ', ', sort split /, /, $plan =~ /Seeks: (.*)/ ? $1 : '';
	is($sought, $seeks, "$condition: the plan says what is sought");
	my ($read) = $plan =~ /Records Read: (\d+)/;
	# A partition that is through may give some more while others are waited for.
	cmp_ok($read // 0, '<=', $rows + $removed + ($condition =~ /> pos/ ? 200 : 0), "$condition: no more is read than that");
}
like($node->safe_psql('test', 'EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) SELECT n FROM telemetry LIMIT 5'), qr/Records Read: (1000|\d{1,3})$/m, 'LIMIT reads one batch');
$node->safe_psql('test', <<~'END');
	CREATE TABLE wanted (partition int, "offset" bigint);
	INSERT INTO wanted VALUES (0, 7), (3, 49999), (1, NULL), (9, 1);
	ANALYZE wanted;
	END
is($node->safe_psql('test', 'SELECT partition, "offset", n FROM wanted w LEFT JOIN telemetry t ON t.part = w.partition AND t.pos = w."offset" ORDER BY 1'),
	"0|7|28\n1||\n3|49999|199999\n9|1|", 'a join that knows where records stand');
like($node->safe_psql('test', 'EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) SELECT n FROM wanted w JOIN telemetry t ON t.part = w.partition AND t.pos = w."offset"'),
	qr/Records Read: 2$/m, 'reads those');
is($node->safe_psql('test', 'SELECT sum(c) FROM (VALUES (0), (2)) v (p), LATERAL (SELECT count(*) AS c FROM telemetry WHERE part = v.p) t'),
	'100000', 'a condition that changes from row to row');

# ---------------------------------------------------------------- metadata

my $letters = create_topic(unique('letters'), 2);
produce($letters,
	{ value => '{"n": 1}', key => 'k1', partition => 1, timestamp => $year + 1500, headers => { site => 's1', 'content-type' => 'application/json' } },
	{ value => '{"n": 2}', partition => 0, timestamp => $year },
	{ value => undef, key => 'k1', partition => 1, timestamp => $year + 2000 },
	{ value => '{"n": null, "sensor": {"temp": 3.5}}', key_base64 => '/w==', partition => 1, timestamp => $year + 2500, headers => { site => '' } });
$node->safe_psql('test', <<~"END");
	CREATE FOREIGN TABLE letters (n int, temp float8 OPTIONS (path 'sensor.temp'), topic text OPTIONS (metadata 'topic'),
		part int OPTIONS (metadata 'partition'), pos bigint OPTIONS (metadata 'offset'), at timestamptz OPTIONS (metadata 'timestamp'),
		key bytea OPTIONS (metadata 'key'), value text OPTIONS (metadata 'value'), headers jsonb OPTIONS (metadata 'headers'),
		site text OPTIONS (metadata 'header:site'), site_bytes bytea OPTIONS (metadata 'header:site'), none text OPTIONS (metadata 'header:none'))
		SERVER plant OPTIONS (topic '$letters');
	CREATE FOREIGN TABLE text_keys (key text OPTIONS (metadata 'key'), pos bigint OPTIONS (metadata 'offset'), n int) SERVER plant OPTIONS (topic '$letters');
	END
produce($letters, { value => '{"n": 3}', partition => 0, timestamp => $year + 3000, headers => [ [ site => 'old' ], [ trace => undef ], [ site => 'new' ], [ 'a:b' => '' ] ] },
	{ value => '{"n": 4}', partition => 0, timestamp => $year + 4000, headers => [ [ site => 'old' ], [ site => undef ] ] });
is($node->safe_psql('test', q(SELECT n, headers, site, site_bytes FROM letters WHERE n > 2 ORDER BY n)),
	'3|{"a:b": "", "site": ["old", "new"], "trace": null}|new|\x6e6577' . "\n" . '4|{"site": ["old", null]}||', 'of headers that come again the last counts; null ones');
is($node->safe_psql('test', q(SELECT n, temp, topic, part, pos, at AT TIME ZONE 'UTC', key, value, headers, site, none FROM letters WHERE n IS NULL OR n < 3 ORDER BY part, pos)),
	join("\n",
		"2||$letters|0|0|2026-01-01 00:00:00||{\"n\": 2}|||",
		"1||$letters|1|0|2026-01-01 00:00:01.5|\\x6b31|{\"n\": 1}|{\"site\": \"s1\", \"content-type\": \"application/json\"}|s1|",
		"||$letters|1|1|2026-01-01 00:00:02|\\x6b31||||",
		"|3.5|$letters|1|2|2026-01-01 00:00:02.5|\\xff|{\"n\": null, \"sensor\": {\"temp\": 3.5}}|{\"site\": \"\"}||"),
	'metadata of every kind, and a tombstone');
failed('a key that is no text', 'SELECT key FROM text_keys', '22021', qr/partition 1, offset 2/);

# Several topics in one stream.
my $second = create_topic(unique('second'), 1);
produce($second, '{"n": 10}', '{"n": 11}');
$node->safe_psql('test', "CREATE FOREIGN TABLE pair (n int, topic text OPTIONS (metadata 'topic'), part int OPTIONS (metadata 'partition'))
	SERVER plant OPTIONS (topic '$letters, $second')");
is($node->safe_psql('test', "SELECT count(*), count(*) FILTER (WHERE topic = '$second'), sum(n) FROM pair"), '8|2|31', 'a list of topics');
like($node->safe_psql('test', "EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) SELECT n FROM pair WHERE topic = '$second'"), qr/Records Read: 2$/m, 'of which a condition takes one');
$node->safe_psql('test', q(CREATE TABLE of_pair (n int, topic text);
	SELECT hybridiot.create_pipeline('pair', 'INSERT INTO of_pair SELECT n, topic FROM pair')));
poll_is($node, 'SELECT count(*), count(DISTINCT topic) FROM of_pair', '8|2', 'a pipeline reads both');
wait_caught_up($node, 'pair', $letters, $second);

# ---------------------------------------------------------------- transactions

my $booked = create_topic(unique('booked'), 1);
stream('booked', $booked);
$node->safe_psql('test', q(CREATE TABLE booking (n bigint, pos bigint);
	SELECT hybridiot.create_pipeline('bookings', 'INSERT INTO booking SELECT n, pos FROM booked')));
produce($booked, '{"n": 1}', '{"n": 2}', \'commit');	# 0, 1 and a marker
produce($booked, '{"n": 3}', '{"n": 4}', \'abort');		# 3, 4 and a marker
poll_is($node, 'SELECT next_offset, lag FROM hybridiot.position WHERE pipeline = \'bookings\'', '6|0', 'a position passes what was aborted');
is($node->safe_psql('test', 'SELECT string_agg(n::text, \',\') FROM booking'), '1,2', 'and nothing of it is taken');
produce($booked, '{"n": 5}', \'commit');
produce($booked, '{"n": 6}');
poll_is($node, q(SELECT string_agg(n || '@' || pos, ',' ORDER BY pos) FROM booking), '1@0,2@1,5@6,6@8', 'gaps are normal');
is($node->safe_psql('test', q(SELECT string_agg(n::text, ',' ORDER BY n) FROM booked)), '1,2,5,6', 'a SELECT sees what was committed');
produce($booked, '{"n": 7}', \'abort');
is($node->safe_psql('test', q(SELECT string_agg(n::text, ',' ORDER BY n) FROM booked)), '1,2,5,6', 'also where the log ends with what was not');
wait_caught_up($node, 'bookings', $booked);
$node->restart;
produce($booked, '{"n": 8}');
poll_is($node, q(SELECT string_agg(n::text, ',' ORDER BY pos) FROM booking), '1,2,5,6,8', 'and after a restart');

# ---------------------------------------------------------------- bad records

my $mixed = create_topic(unique('mixed'), 2);
my @mixed = map { { value => qq({"n": $_, "device": "d$_"}), partition => $_ % 2, timestamp => $year + $_, key => "k$_" } } 0 .. 99;
$mixed[11]{value} = 'not json';
$mixed[20]{value} = '{"n": "eleven"}';
$mixed[21]{value} = undef;
$mixed[30]{value} = '{"n": 9223372036854775808}';
$mixed[31]{value_base64} = '/w==';
$mixed[40]{value} = '{"n": -40, "device": "refused by a constraint"}';
$mixed[41]{value} = '{"n": -41, "device": "refused by a trigger"}';
produce($mixed, @mixed);
stream('mixed', $mixed);
$node->safe_psql('test', <<~'END');
	CREATE TABLE good (n bigint CHECK (n <> -40), device text, part int, pos bigint);
	CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
		IF NEW.n = -41 THEN RAISE 'not this one' USING ERRCODE = 'P0042'; END IF; RETURN NULL; END $$;
	CREATE TRIGGER refuse AFTER INSERT ON good FOR EACH ROW EXECUTE FUNCTION refuse();
	END
failed('a SELECT stops at what cannot be decoded', 'SELECT count(n) FROM mixed', '22\w+', qr/partition [01], offset \d+/);
is($node->safe_psql('test', 'SELECT count(*) FROM mixed'), '100', 'but not if it asks for metadata alone');

for my $rows (1, 2, 10_000)
{
	$node->safe_psql('test', "TRUNCATE good; SELECT hybridiot.create_pipeline('good', 'INSERT INTO good SELECT n, device, part, pos FROM mixed', batch_rows => $rows)");
	poll_is($node, q(SELECT sum(next_offset) FROM hybridiot.position WHERE pipeline = 'good'), '100', "batch_rows $rows: all records are read");
	is($node->safe_psql('test', 'SELECT count(*), count(n), sum(n) FROM good'),
		'94|93|' . (4950 - 11 - 20 - 21 - 30 - 31 - 40 - 41), "batch_rows $rows: bad records stop no others, a tombstone is nulls");
	is($node->safe_psql('test', q(SELECT topic = ') . $mixed . q(', partition, "offset", to_char("timestamp" AT TIME ZONE 'UTC', 'MS'), convert_from(key, 'UTF8'), reason, sqlstate, message <> ''
		FROM hybridiot.dead_letter WHERE pipeline = 'good' ORDER BY partition, "offset")),
		join("\n", 't|0|10|020|k20|undecodable|22P02|t', 't|0|15|030|k30|undecodable|22003|t', 't|0|20|040|k40|rejected|23514|t',
			't|1|5|011|k11|undecodable|22P02|t', 't|1|15|031|k31|undecodable|22021|t', 't|1|20|041|k41|rejected|P0042|t'),
		"batch_rows $rows: dead letters have their true places");
	$node->safe_psql('test', "SELECT hybridiot.drop_pipeline('good')");
}

# ---------------------------------------------------------------- where to start

for (
	[ 'earliest', 100, 0 ],
	[ 'latest', 0, undef ],
	[ '2026-01-01 00:00:00.050Z', 50, 50 ],
	[ '2030-01-01', 0, undef ],
	[ '1970-01-01', 100, 0 ],
	[ '{"0": 17, "1": 4}', 33 + 46, 9 ],
	[ '{"1": 49}', 51, 0 ])
{
	my ($start, $rows, $first) = @$_;
	my $begun = create_topic(unique('begin'), 2);
	fill($begun, 100);
	$node->safe_psql('test', 'DROP FOREIGN TABLE IF EXISTS begun');
	stream('begun', $begun);
	$node->safe_psql('test', "TRUNCATE reading; SELECT hybridiot.create_pipeline('begin', 'INSERT INTO reading SELECT n, device, part, pos FROM begun', start_at => '$start')");
	poll_is($node, q(SELECT coalesce(sum(next_offset), 0) FROM hybridiot.position WHERE pipeline = 'begin'), '100', "start_at $start: read to the end");
	is($node->safe_psql('test', 'SELECT count(*), min(n) FROM reading'), "$rows|" . ($first // ''), "start_at $start: from there on");
	fill($begun, 2, from => 100);
	poll_is($node, 'SELECT count(*) FROM reading', $rows + 2, "start_at $start: and what comes after");
	$node->safe_psql('test', "SELECT hybridiot.drop_pipeline('begin')");
}

# ---------------------------------------------------------------- equal tables, whatever the batches

my $devices = create_topic(unique('devices'), 2, 'cleanup.policy=compact');
srand 5;
my @changes = map { my $key = int rand 20; { key => "k$key", partition => $key % 2, value => rand() < 0.3 ? undef : qq({"site": $_}) } } 1 .. 500;
produce($devices, @changes);
my %left;
$left{ $_->{key} } = $_->{value} for @changes;
my $expected = join "\n", map { "$_|" . ($left{$_} =~ /(\d+)/)[0] } sort grep { defined $left{$_} } keys %left;
for my $compacted ('false', 'true')
{
	for my $rows (1, 2, 10_000)
	{
		$node->safe_psql('test', <<~"END");
			DROP FOREIGN TABLE IF EXISTS device_topic;
			DROP TABLE IF EXISTS device;
			CREATE TABLE device (device text PRIMARY KEY, site int);
			CREATE FOREIGN TABLE device_topic (key text OPTIONS (metadata 'key'), value bytea OPTIONS (metadata 'value'), site int)
				SERVER plant OPTIONS (topic '$devices', compacted '$compacted');
			SELECT hybridiot.create_pipeline('devices', \$\$
				MERGE INTO device d USING device_topic s ON d.device = s.key
				WHEN MATCHED AND s.value IS NULL THEN DELETE
				WHEN MATCHED THEN UPDATE SET site = s.site
				WHEN NOT MATCHED AND s.value IS NOT NULL THEN INSERT (device, site) VALUES (s.key, s.site) \$\$, batch_rows => $rows);
			END
		poll_is($node, q(SELECT sum(next_offset) FROM hybridiot.position WHERE pipeline = 'devices'), '500', "MERGE, compacted $compacted, batch_rows $rows: read");
		is($node->safe_psql('test', 'SELECT device, site FROM device ORDER BY device COLLATE "C"'), $expected,
			"MERGE, compacted $compacted, batch_rows $rows: the newest of each key");
		is($node->safe_psql('test', "SELECT count(*) FROM hybridiot.dead_letter WHERE pipeline = 'devices'"), '0', 'and no dead letters');
		$node->safe_psql('test', "SELECT hybridiot.drop_pipeline('devices')");
	}
}

# Windows and upserts of out-of-order records.
my $mess = create_topic(unique('mess'), 2);
produce($mess, map { { partition => $_ % 2, value => sprintf '{"n": %d, "device": "d%d", "ts": "2026-01-01T00:%02d:%02dZ", "temp": %d}',
			$_, $_ % 3, int($_ / 600), int(($_ % 600) / 10), rand 100 } } map { $_, $_ + 40 } 0 .. 599);
stream('mess', $mess, "event_time 'ts'");
$node->safe_psql('test', <<~'END');
	CREATE TABLE windows (during tstzrange, device text, n bigint, highest float8);
	CREATE TABLE latest (device text PRIMARY KEY, n bigint, pos bigint);
	END
my (%windows, %latest);
for my $rows (1, 2, 10_000)
{
	$node->safe_psql('test', <<~"END");
		TRUNCATE windows, latest;
		SELECT hybridiot.create_pipeline('windows', \$\$INSERT INTO windows SELECT hybridiot.tumble(ts, '5 s'), device, count(*), max(temp) FROM mess GROUP BY 1, 2\$\$,
			lateness => '2 s', idle_timeout => '200 ms', batch_rows => $rows);
		SELECT hybridiot.create_pipeline('latest', \$\$INSERT INTO latest SELECT device || part, n, pos FROM mess
			ON CONFLICT (device) DO UPDATE SET n = excluded.n, pos = excluded.pos\$\$, batch_rows => $rows);
		END
	poll_is($node, q(SELECT min(closed_before) AT TIME ZONE 'UTC' FROM hybridiot.pipeline WHERE name = 'windows'), '2026-01-01 00:01:05', "batch_rows $rows: all windows are closed");
	wait_caught_up($node, 'latest', $mess);
	$windows{ $node->safe_psql('test', 'SELECT * FROM windows ORDER BY during, device') }++;
	$windows{ $node->safe_psql('test', q(SELECT partition, "offset", during FROM hybridiot.dead_letter WHERE pipeline = 'windows' AND reason = 'late' ORDER BY 1, 2)) }++;
	$latest{ $node->safe_psql('test', 'SELECT * FROM latest ORDER BY device') }++;
	is($node->safe_psql('test', q(SELECT (SELECT sum(n) FROM windows) + (SELECT count(*) FROM hybridiot.dead_letter WHERE pipeline = 'windows'))),
		'1200', "batch_rows $rows: every record is in a window, or set aside as late");
	$node->safe_psql('test', q(SELECT hybridiot.drop_pipeline(name) FROM unnest(ARRAY['windows', 'latest']) name));
}
is(scalar keys %windows, 2, 'windows and late records are the same whatever the batches');
is(scalar keys %latest, 1, 'and so are upserted rows');

# ---------------------------------------------------------------- topics that come late, partitions that are added

my $late = unique('late');
stream('late', $late);
$node->safe_psql('test', "TRUNCATE reading; SELECT hybridiot.create_pipeline('late', 'INSERT INTO reading SELECT n, device, part, pos FROM late')");
wait_state($node, 'late', 'retrying');
like($node->safe_psql('test', "SELECT reason FROM hybridiot.pipeline WHERE name = 'late'"), qr/topic "\Q$late\E" does not exist/, 'a topic that is not there is named');
failed('so it is in a session', 'SELECT * FROM late', '08006', qr/topic "\Q$late\E" does not exist/);
create_topic($late, 2);
wait_state($node, 'late', 'running');
fill($late, 10);
poll_is($node, 'SELECT count(*) FROM reading', '10', 'when it comes, all goes on by itself');
add_partitions($late, 5);
fill($late, 20, from => 10);
poll_is($node, 'SELECT count(*), count(DISTINCT n), count(DISTINCT part) FROM reading', '30|30|5', 'partitions that are added are read from their beginning');
wait_caught_up($node, 'late', $late);

# ---------------------------------------------------------------- credentials

my $secrets = $node->data_dir;
write_secret($node, 'right.pw', $kafka->{password});
write_secret($node, 'wrong.pw', 'wrongcanarysecret');
my $safe = create_topic(unique('safe'), 1);
fill($safe, 10);
for (
	[ 'sasl', "bootstrap_servers '$kafka->{sasl_bootstrap}', security_protocol 'SASL_PLAINTEXT', sasl_mechanism 'PLAIN'" ],
	[ 'tls', "bootstrap_servers '$kafka->{tls_bootstrap}', security_protocol 'SASL_SSL', sasl_mechanism 'PLAIN', ssl_ca '$kafka->{ca}'" ])
{
	my ($name, $options) = @$_;
	$node->safe_psql('test', <<~"END");
		CREATE SERVER $name FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS ($options);
		CREATE USER MAPPING FOR CURRENT_USER SERVER $name OPTIONS (user '$kafka->{user}', password_file '$secrets/wrong.pw');
		CREATE TABLE by_$name (n bigint);
		END
	stream("safe_$name", $safe, '', $name);
	$node->safe_psql('test', "SELECT hybridiot.create_pipeline('$name', 'INSERT INTO by_$name SELECT n FROM safe_$name')");
	wait_state($node, $name, 'retrying');
	like($node->safe_psql('test', "SELECT reason FROM hybridiot.pipeline WHERE name = '$name'"), qr/authentication/i, "$name: a wrong password is named as the reason");
	my $began = time;
	my ($status, $out, $err) = $node->psql('test', "\\set VERBOSITY verbose\nSELECT * FROM safe_$name");
	like($err, qr/ERROR:  (08001|08006|28\w+): .*authentication/si, "$name: in a session, too");
	cmp_ok(time - $began, '<', 10, "$name: without waiting for another answer");
	my $views = join "\n", $err, map { $node->safe_psql('test', "SELECT v::text FROM $_ v") }
		qw(hybridiot.pipeline hybridiot.stat_pipeline hybridiot.stat_worker hybridiot.position pg_stat_activity pg_user_mappings pg_foreign_server);
	unlike($views, qr/wrongcanarysecret/, "$name: the secret is in no view");
	$node->safe_psql('test', "ALTER USER MAPPING FOR CURRENT_USER SERVER $name OPTIONS (SET password_file '$secrets/right.pw')");
	poll_is($node, "SELECT count(*) FROM by_$name", '10', "$name: with the right one all goes on by itself");
	is($node->safe_psql('test', "SELECT sum(n) FROM safe_$name"), '45', "$name: a SELECT");
}

# A broker with the wrong certificate, or by a name that is not in it, gets no password.
$node->safe_psql('test', <<~"END");
	CREATE SERVER stranger FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (bootstrap_servers '$kafka->{tls_bootstrap}', security_protocol 'SASL_SSL', sasl_mechanism 'PLAIN');
	CREATE USER MAPPING FOR CURRENT_USER SERVER stranger OPTIONS (user '$kafka->{user}', password_file '$secrets/right.pw');
	CREATE TABLE by_stranger (n bigint);
	END
stream('safe_stranger', $safe, '', 'stranger');
$node->safe_psql('test', "SELECT hybridiot.create_pipeline('stranger', 'INSERT INTO by_stranger SELECT n FROM safe_stranger')");
wait_state($node, 'stranger', 'retrying');
like($node->safe_psql('test', "SELECT reason FROM hybridiot.pipeline WHERE name = 'stranger'"), qr/certificate|SSL/i, 'a certificate of an unknown authority is refused');
failed('a session does not wait for another', 'SET statement_timeout = \'10 s\'; SELECT * FROM safe_stranger', '08001', qr/certificate|SSL/i);

finish();
