# What brokers and their operators do to a log, each with the real Kafka: topics deleted and created again, retention, compaction,
# transactions that end badly, lost and damaged data, records too large. Whatever is read must be of the log that was read before, and
# whatever stops a pipeline must say where.
use strict;
use warnings;
use Hybridiot::Test;
use IPC::Run;
use PostgreSQL::Test::Utils;
use Test::More;

my $kafka = kafka();
my $node = new_node('faults');
$node->safe_psql('test', "CREATE SERVER plant FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (bootstrap_servers '$kafka->{bootstrap}')");

# A topic, its stream, its table and a pipeline between them, all of one name.
sub begin
{
	my ($name, $partitions, @settings) = @_;
	my $topic = create_topic(unique($name), $partitions, @settings);
	$node->safe_psql('test', <<~"END");
		CREATE FOREIGN TABLE ${name}_topic (n bigint, at timestamptz OPTIONS (metadata 'timestamp'), part int OPTIONS (metadata 'partition'), pos bigint OPTIONS (metadata 'offset'))
		  SERVER plant OPTIONS (topic '$topic');
		CREATE TABLE $name (n bigint, part int, pos bigint);
		SELECT hybridiot.create_pipeline('$name', 'INSERT INTO $name SELECT n, part, pos FROM ${name}_topic');
		END
	return $topic;
}

sub resume { $node->safe_psql('test', "SELECT hybridiot.resume_pipeline('$_[0]')"); return }

sub pause
{
	my $name = shift;
	$node->safe_psql('test', "SELECT hybridiot.pause_pipeline('$name')");
	$node->poll_query_until('test', "SELECT count(*) = 0 FROM hybridiot.stat_worker WHERE pipeline = '$name'") or die "$name does not leave";
	return;
}

sub position { return $node->safe_psql('test', "SELECT string_agg(next_offset::text, ',' ORDER BY partition) FROM hybridiot.position WHERE pipeline = '$_[0]'") }

# The pipeline stops for this reason, and nothing moved.
sub stops
{
	my ($name, $reason, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $before = position($name);
	wait_state($node, $name, 'failed');
	like($node->safe_psql('test', "SELECT reason FROM hybridiot.pipeline WHERE name = '$name'"), $reason, $what);
	is(position($name), $before, "$what: the position stays");
	return;
}

sub all_there
{
	my ($name, $count, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	poll_is($node, "SELECT count(*), count(DISTINCT (part, pos)) FROM $name", "$count|$count", $what);
	return;
}

# ---------------------------------------------------------------- a topic deleted and created again

# A library that knows topics' ids needs to look no further.
my $id_tells = qr/was deleted and created again.*Its id was \S+ and is \S+/s;

# Under the running pipeline, faster than its consumer can hear that it was away; the new log is longer, as long, and shorter.
# It may be looked at while it is still short.
for ([ 'longer', 500 ], [ 'equal', 100 ], [ 'shorter', 20 ])
{
	my ($name, $count) = @$_;
	my $reason = qr/partition [01]\b.*(?:the record at offset 49 is not of the log that was read before: another record was applied there|the log ends at \d+, before the position 50)|$id_tells/;
	my $topic = begin($name, 2);
	$node->safe_psql('test', <<~"END");
		CREATE TABLE ${name}_window (during tstzrange, n bigint);
		SELECT hybridiot.create_pipeline('${name}_window', 'INSERT INTO ${name}_window SELECT hybridiot.tumble(at, ''10 s''), count(*) FROM ${name}_topic GROUP BY 1', idle_timeout => '100 ms');
		END
	fill($topic, 100, step => 100);
	all_there($name, 100, "$name: read before the topic is deleted");
	poll_is($node, "SELECT sum(n) FROM ${name}_window", 100, "$name: windows, too");
	replace_topic($topic, $count);
	# The consumer waits for more in a log that is as long; with a record it hears of the new one.
	produce($topic, map { { value => '{"n": 0}', partition => $_ } } 0, 1);
	stops($name, qr/topic "$topic".*(?:$reason)/, "a topic deleted and created again under a running pipeline, $name");
	stops("${name}_window", qr/$reason/, "with windows, $name");
	is($node->safe_psql('test', "SELECT count(*), max(n) FROM $name"), '100|99', "$name: no record of the new log was applied");
	is($node->safe_psql('test', "SELECT sum(n) FROM ${name}_window"), '100', "$name: nor counted");
	resume($name);
	stops($name, qr/$reason/, "$name: resumed as it is, it stops again");
	$node->safe_psql('test', "SELECT hybridiot.alter_pipeline('$name', start_at => 'earliest')");
	poll_is($node, "SELECT count(*) FROM $name", 102 + $count, "$name: with a new start it reads the new log");
	$node->safe_psql('test', "SELECT hybridiot.drop_pipeline(name) FROM unnest(ARRAY['$name', '${name}_window']) name");
}

# While nobody reads; and with fewer partitions.
for ([ 'away_longer', 500, 2, qr/was deleted and created again.*(?:another record was applied there|$id_tells)/s ],
	[ 'away_shorter', 20, 2, qr/the log ends at 10, before the position 50|$id_tells/ ],
	[ 'fewer', 500, 1, qr/was deleted and created again.*It had 2 partitions and has 1/s ])
{
	my ($name, $count, $partitions, $reason) = @$_;
	my $topic = begin($name, 2);
	fill($topic, 100);
	all_there($name, 100, "$name: read before");
	pause($name);
	replace_topic($topic, $count, $partitions);
	my ($status, $out, $err) = $node->psql('test', "SELECT hybridiot.run_pipeline('$name')");
	like($err, $reason, "$name: run_pipeline tells a topic created again");
	resume($name);
	stops($name, $reason, "a topic deleted and created again while nobody read, $name");
	is($node->safe_psql('test', "SELECT max(n) FROM $name"), '99', "$name: nothing of it was applied");
	$node->safe_psql('test', "SELECT hybridiot.drop_pipeline('$name')");
}

# One that is gone for a while.
my $gone = begin('gone', 1);
fill($gone, 10);
all_there('gone', 10, 'read before the topic disappears');
delete_topic($gone);
wait_state($node, 'gone', 'retrying');
like($node->safe_psql('test', "SELECT reason FROM hybridiot.pipeline WHERE name = 'gone'"), qr/topic "$gone"/, 'a topic that disappears is named');
$node->safe_psql('test', "SELECT hybridiot.drop_pipeline('gone')");

# ---------------------------------------------------------------- what is no fault

# Retention takes all that was applied, and no more.
my $kept = begin('kept', 2);
fill($kept, 100);
all_there('kept', 100, 'read before retention');
pause('kept');
empty_topic($kept);
resume('kept');
wait_state($node, 'kept', 'running');
fill($kept, 10, from => 100);
all_there('kept', 110, 'retention of what was applied is no fault');
empty_topic($kept);
fill($kept, 10, from => 110);
all_there('kept', 120, 'nor under a running pipeline');
wait_state($node, 'kept', 'running');

# Partitions that are added, also to a pipeline that began at the end.
add_partitions($kept, 4);
fill($kept, 20, from => 120);
all_there('kept', 140, 'partitions that are added are read from their beginning');

# Other people's consumers come and go in a group that is called as ours.
my @foreign = map { IPC::Run::start([ 'kcat', '-b', $kafka->{bootstrap}, '-G', 'hybridiot', $kept ], \undef, '>', '/dev/null', '2>', '/dev/null') } 1 .. 2;
fill($kept, 100, from => 140);
$_->kill_kill for @foreign;
fill($kept, 100, from => 240);
all_there('kept', 340, 'a foreign group that rebalances is no fault');
is($node->safe_psql('test', "SELECT retries FROM hybridiot.stat_pipeline WHERE pipeline = 'kept'"), '0', 'and nothing was tried again');

# A producer that dies in mid transaction holds the position up until its time-out.
my $dead = begin('dead', 1);
produce($dead, '{"n": 1}', '{"n": 2}', \'commit');
all_there('dead', 2, 'records of a transaction');
produce($dead, '{"n": 3}', '{"n": 4}', \'die');
produce($dead, '{"n": 5}');
poll_is($node, "SELECT next_offset FROM hybridiot.position WHERE pipeline = 'dead'", '3', 'a producer that died: the position waits at the last stable offset');
is($node->safe_psql('test', 'SELECT max(n) FROM dead'), '2', 'and what is behind it waits, too');
poll_is($node, q(SELECT string_agg(n || '@' || pos, ',' ORDER BY pos) FROM dead), '1@0,2@1,5@5', 'when its transaction has timed out, the rest comes');
produce($dead, '{"n": 6}', \'abort');
poll_is($node, "SELECT next_offset FROM hybridiot.position WHERE pipeline = 'dead'", '9', 'the log ends with what was aborted');
pause('dead');
resume('dead');
produce($dead, '{"n": 7}');
poll_is($node, 'SELECT max(n) FROM dead', '7', 'which is no fault at the next start');
wait_state($node, 'dead', 'running');

# ---------------------------------------------------------------- compaction

my $compact = begin('compact', 1, 'cleanup.policy=compact', 'min.cleanable.dirty.ratio=0.01', 'segment.ms=500', 'delete.retention.ms=100', 'max.compaction.lag.ms=600');
srand 7;
my (@changes, %left);
for (1 .. 300)
{
	my $key = 'k' . int rand 20;
	push @changes, { key => $key, value => rand() < 0.3 ? undef : qq({"n": $_}) };
	$left{$key} = $changes[-1]{value};
}
produce($compact, @changes);
all_there('compact', 300, 'a topic before its compaction');
pause('compact');
# The last record applied is one of those that go: a younger one of its key, and one that begins the next segment.
produce($compact, { key => $changes[-1]{key}, value => '{"n": 301}' }, { key => 'k20', value => '{"n": 302}' });
$left{ $changes[-1]{key} } = '{"n": 301}';
$left{k20} = '{"n": 303}';
my $expected = join "\n", map { "$_|" . ($left{$_} =~ /(\d+)/)[0] } sort grep { defined $left{$_} } keys %left;
{
	# Compaction has come when the last record is no more what a reader gets first from there on.
	my $until = time + $PostgreSQL::Test::Utils::timeout_default;
	my ($first, $n) = ('', 0);
	while ($first ne '300' && time < $until)
	{
		$n++;
		# Each new segment makes the one before it ready.
		produce($compact, { key => 'k20', value => '{"n": 303}' });
		$first = $node->safe_psql('test', 'SELECT min(pos) FROM compact_topic WHERE pos >= 299');
	}
	is($first, '300', 'compaction has removed the last record applied');
	my $still = $node->safe_psql('test', 'SELECT count(*) FROM compact_topic WHERE pos < 300');
	cmp_ok($still, '<', 100, "and most of the others ($still are left)");
}
resume('compact');
poll_is($node, 'SELECT max(n) FROM compact', '303', 'which is no fault');
wait_state($node, 'compact', 'running');
pause('compact');

my %tables;
for my $compacted ('true', 'false')
{
	for my $rows (1, 2, 10_000)
	{
		$node->safe_psql('test', <<~"END");
			CREATE TABLE device (device text PRIMARY KEY, n bigint);
			CREATE FOREIGN TABLE device_topic (key text OPTIONS (metadata 'key'), value bytea OPTIONS (metadata 'value'), n bigint)
				SERVER plant OPTIONS (topic '$compact', compacted '$compacted');
			SELECT hybridiot.create_pipeline('device', \$\$
				MERGE INTO device d USING device_topic s ON d.device = s.key
				WHEN MATCHED AND s.value IS NULL THEN DELETE
				WHEN MATCHED THEN UPDATE SET n = s.n
				WHEN NOT MATCHED AND s.value IS NOT NULL THEN INSERT (device, n) VALUES (s.key, s.n) \$\$, batch_rows => $rows, enabled => false);
			SELECT hybridiot.run_pipeline('device');
			END
		my $table = $node->safe_psql('test', 'SELECT device, n FROM device ORDER BY device COLLATE "C"');
		is($table, $expected, "MERGE of a compacted topic, compacted '$compacted', batch_rows $rows: the newest of each key");
		$tables{$table} = 1;
		$node->safe_psql('test', "SELECT hybridiot.drop_pipeline('device'); DROP TABLE device; DROP FOREIGN TABLE device_topic");
	}
}
is(scalar keys %tables, 1, 'and equal tables');

# Records without a key stand for themselves; tombstones without one, too.
my $keyless = begin('keyless', 1);
pause('keyless');
$node->safe_psql('test', "ALTER FOREIGN TABLE keyless_topic OPTIONS (ADD compacted 'true')");
produce($keyless, '{"n": 1}', undef, { key => 'a', value => '{"n": 2}' }, '{"n": 3}', { key => 'a', value => undef }, { key => '', value => '{"n": 4}' }, { key => '', value => '{"n": 5}' });
resume('keyless');
poll_is($node, q(SELECT string_agg(coalesce(n::text, '-') || '@' || pos, ',' ORDER BY pos) FROM keyless), '1@0,-@1,3@3,-@4,5@6', 'null keys in a compacted stream: each stands for itself');

# ---------------------------------------------------------------- large records

my $large = begin('large', 1, 'max.message.bytes=33554432');
produce($large, '{"n": 1}', '{"n": 2, "x": "' . ('x' x 10_000_000) . '"}', '{"n": 3}');
all_there('large', 3, 'a message of 10 MB');
produce($large, '{"n": 4, "x": "' . ('x' x 17_000_000) . '"}', '{"n": 5}');
stops('large', qr/partition 0 cannot be read: the record at offset 3 has 170000\d\d bytes, more than hybridiot.max_record_size.*Raise hybridiot.max_record_size.*seek_pipeline\('large', '\{"0": 4\}'\)/,
	'a message over max_record_size, and what to do');
$node->safe_psql('test', "ALTER SYSTEM SET hybridiot.max_record_size = '20 MB'");
$node->reload;
resume('large');
all_there('large', 5, 'once it is allowed, all goes on');

# A few hundred kilobytes on the wire, 240 MB in memory.
my $bomb = begin('bomb', 1, 'max.message.bytes=33554432');
my $pid = worker_pid($node, "pipeline = 'bomb'");
my $megabytes = sub { slurp_file("/proc/$pid/status") =~ /^$_[0]:\s+(\d+) kB/m ? $1 / 1024 : die "no $_[0]" };
my $before = $megabytes->('VmRSS');
inflate($bomb, 'gzip', 16, 15_000_000);
all_there('bomb', 16, 'a batch that inflates');
is(worker_pid($node, "pipeline = 'bomb'"), $pid, 'its worker lives');
my ($peak, $after) = ($megabytes->('VmHWM'), $megabytes->('VmRSS'));
note(sprintf 'resident: %.0f MB before, %.0f MB at most, %.0f MB after', $before, $peak, $after);
cmp_ok($peak, '<', $before + 240 + 3 * 64, 'what it takes is what the batch inflates to, and what a batch of ours may hold');
cmp_ok($after, '<', $before + 100, 'and it is given back');

# ---------------------------------------------------------------- lost and damaged data

my $lost = begin('lost', 1);
my $regrown = begin('regrown', 1);
my $damaged = begin('damaged', 1);
fill($_, 50) for $lost, $regrown;
# Batches of their own: the second and the last one will be damaged.
produce($damaged, map { { value => qq({"n": $_, "x": "first"}) } } 0 .. 2);
all_there($_, 50, "$_: read before") for 'lost', 'regrown';
all_there('damaged', 3, 'damaged: read before');
pause($_) for 'lost', 'regrown', 'damaged';
produce($damaged, map { { value => qq({"n": $_, "x": "second"}) } } 3 .. 5);
produce($damaged, map { { value => qq({"n": $_, "x": "third"}) } } 6 .. 7);

broker('kafka', 'stop');
my $segment = "$kafka->{dir}/data/$damaged-0/00000000000000000000.log";
my $good = slurp_file($segment);
write_segment($good =~ s/second/zecond/r);
system('rm', '-r', "$kafka->{dir}/data/$_-0") == 0 or die "no data of $_" for $lost, $regrown;
broker('kafka', 'start');
fill($regrown, 60, from => 5000);
resume($_) for 'lost', 'regrown', 'damaged';
stops('lost', qr/topic "$lost", partition 0 are gone: the log ends at 0, before the position 50/, 'a broker that comes back empty');
stops('regrown', qr/the record at offset 49 is not of the log that was read before/, 'a broker that came back empty, and was filled again');
stops('damaged', qr/topic "$damaged", partition 0 cannot be read: .*offset 3 .*CRC.*Nothing was skipped.*seek_pipeline/, 'a corrupt batch: its place, and what to do');
is($node->safe_psql('test', 'SELECT count(*) FROM damaged'), '3', 'nothing behind it was read');
my ($status, $out, $err) = $node->psql('test', 'SELECT count(n) FROM damaged_topic');
like($err, qr/CRC/, 'a SELECT tells it, too');
$node->safe_psql('test', q(CREATE TABLE skipped (LIKE damaged);
	SELECT hybridiot.create_pipeline('skipped', 'INSERT INTO skipped SELECT n, part, pos FROM damaged_topic', start_at => '{"0": 6}')));
all_there('skipped', 2, 'what is behind it can be read from there');

broker('kafka', 'stop');
write_segment($good);
broker('kafka', 'start');
resume('damaged');
all_there('damaged', 8, 'when it is mended, all goes on');

sub write_segment
{
	my $bytes = shift;
	open(my $file, '+<:raw', $segment) or die "$segment: $!";
	print $file $bytes;
	close $file;
	return;
}

finish();
