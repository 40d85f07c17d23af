# Partitions of a real topic that are empty, silent or added later, a restart in the middle of windows; and what silence does in
# a worker: it tells listeners, and does not burn the processor.
use strict;
use warnings;
use Hybridiot::Test;
use Test::More;
use Time::HiRes qw(sleep time);

my $topic = create_topic(unique('silence'), 3);
my $node = new_node('silence');
my $kafka = kafka();

# record(partition => second, ...)
my $ms = 1_704_067_200_000;    # 2024-01-01
sub record
{
	my @records;
	while (my ($partition, $second) = splice @_, 0, 2)
	{
		push @records, { value => sprintf('{"s": %s}', $second), partition => $partition, timestamp => $ms + 1000 * $second };
	}
	produce($topic, @records);
}

# Partition 2 is empty; partition 1 is behind.
record(0 => 1, 1 => 2, 0 => 12);
$node->safe_psql('test', <<~"END");
	CREATE SERVER plant FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (bootstrap_servers '$kafka->{bootstrap}');
	CREATE FOREIGN TABLE seconds (s int, part int OPTIONS (metadata 'partition'), at timestamptz OPTIONS (metadata 'timestamp')) SERVER plant OPTIONS (topic '$topic');
	CREATE TABLE strict (during tstzrange, n bigint, sum bigint);
	CREATE TABLE quiet (LIKE strict);
	SELECT hybridiot.create_pipeline('strict', 'INSERT INTO strict SELECT hybridiot.tumble(at, ''10 s''), count(*), sum(s) FROM seconds GROUP BY 1',
		idle_timeout => '0', checkpoint_interval => '50 ms');
	SELECT hybridiot.create_pipeline('quiet', 'INSERT INTO quiet SELECT hybridiot.tumble(at, ''10 s''), count(*), sum(s) FROM seconds GROUP BY 1',
		idle_timeout => '500 ms', checkpoint_interval => '50 ms');
	END
my $time = q{SELECT extract(epoch FROM watermark - '2024-01-01Z')::float8 FROM hybridiot.pipeline WHERE name = 'strict'};
my $closed = q{SELECT extract(epoch FROM lower(during) - '2024-01-01Z')::int, n, sum FROM strict ORDER BY 1};
poll_is($node, 'SELECT sum(records) FROM hybridiot.open_window WHERE pipeline = \'strict\'', 3, 'records are in windows');
poll_is($node, $time, 2, 'the slowest partition makes the watermark; the empty one does not hold it');
poll_is($node, q{SELECT string_agg(idle::text, ' ' ORDER BY partition) FROM hybridiot.position WHERE pipeline = 'quiet'}, 'true true true', 'with a time-out, silent partitions are idle');
poll_is($node, 'SELECT n, sum FROM quiet', '2|3', 'and the window that their time has passed is closed');
is($node->safe_psql('test', $closed), '', 'without one it is not');

# A new partition, found by the restart, begins behind the others: for it nothing is late, and it holds the watermark.
add_partitions($topic, 4);
record(3 => 5, 3 => 13);
$node->restart;
wait_caught_up($node, 'strict', $topic);
is($node->safe_psql('test', $time), 2, 'a restart and a new partition do not move the watermark');
record(0 => 40, 1 => 30);
poll_is($node, $closed, '0|3|8', 'the first window is closed with the record of the new partition');
is($node->safe_psql('test', $time), 13, 'which holds the watermark now');
record(3 => 25, 3 => 14);
poll_is($node, $closed, "0|3|8\n10|2|25", 'until it goes on');
record(2 => 19, 2 => 22, 2 => 50, 1 => 50, 0 => 50, 3 => 50);
poll_is($node, $closed, "0|3|8\n10|2|25\n20|2|47\n30|1|30\n40|1|40", 'the partition that was empty joins');
is($node->safe_psql('test', q{SELECT partition, cause, extract(epoch FROM lower(during) - '2024-01-01Z')::int FROM hybridiot.dead_letter WHERE pipeline = 'strict' ORDER BY partition}),
	"2|idle|10\n3||10", 'what came behind closed windows is late: of the empty partition because it was left out, of the other by its own time');
poll_is($node, q{SELECT (SELECT sum(n) FROM strict) + (SELECT sum(records) FROM hybridiot.open_window WHERE pipeline = 'strict') + 2},
	15, 'every record is in a window, or set aside');

# A table that stands in for a topic is enough for the rest.
$node->safe_psql('test', <<~'END');
	SELECT hybridiot.drop_pipeline(name) FROM unnest(ARRAY['strict', 'quiet']) name;
	CREATE SERVER archive FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (transport 'table');
	CREATE TABLE log (partition int, "offset" bigint, "timestamp" timestamptz, key bytea, value bytea, headers jsonb);
	CREATE FOREIGN TABLE archived (s int, at timestamptz OPTIONS (metadata 'timestamp')) SERVER archive OPTIONS (topic 't', source 'public.log');
	INSERT INTO log VALUES (0, 0, '2024-01-01Z', NULL, '{"s": 1}', NULL);
	CREATE TABLE shown (during tstzrange PRIMARY KEY, n bigint);
	END
my $listener = $node->background_psql('test');
$listener->query_safe('LISTEN changed');
my $heard = '';
sub heard
{
	my ($times, $name) = @_;
	my $until = time + $PostgreSQL::Test::Utils::timeout_default;
	while (($heard =~ s/(Asynchronous notification "changed")/$1/g || 0) < $times && time < $until)
	{
		$heard .= $listener->query('SELECT 1') . "\n";
		sleep 0.05;
	}
	return is($heard =~ s/(Asynchronous notification "changed")/$1/g || 0, $times, $name);
}
$node->safe_psql('test', q{SELECT hybridiot.create_pipeline('shown',
	'INSERT INTO shown SELECT hybridiot.tumble(at, ''3 s''), count(*) FROM archived GROUP BY 1 ON CONFLICT (during) DO UPDATE SET n = excluded.n',
	emit => 'changes', idle_timeout => '100 ms', checkpoint_interval => '50 ms', notify => 'changed')});
heard(1, 'a listener is told of a new row');
my $row = $node->safe_psql('test', 'SELECT ctid, * FROM shown');
is($node->safe_psql('test', 'SELECT count(*) FROM hybridiot.open_window'), 1, 'its window is open');
heard(2, 'and when silence closes the window');
is($node->safe_psql('test', q{SELECT upper(during) <= closed_before FROM shown, hybridiot.pipeline}), 't', 'so it is final now');
is($node->safe_psql('test', 'SELECT ctid, * FROM shown'), $row, 'though the row is as it was');
$listener->quit;

# Silence could close the window, but the next checkpoint is an hour away.
$node->safe_psql('test', q{SELECT hybridiot.drop_pipeline('shown');
	SELECT hybridiot.create_pipeline('waits', 'INSERT INTO shown SELECT hybridiot.tumble(at, ''1 ms''), count(*) FROM archived GROUP BY 1',
		idle_timeout => '1 ms', checkpoint_interval => '1 h')});
my $pid = worker_pid($node, "kind = 'pipeline' AND pipeline = 'waits'");
wait_state($node, 'waits', 'running');
sub ticks
{
	open(my $stat, '<', "/proc/$pid/stat") or die "$pid: $!";
	my @words = split ' ', <$stat> =~ s/.*\) //r;
	return $words[11] + $words[12];
}
sleep 1;
my ($began, $before) = (time, ticks());
sleep 1;
cmp_ok((ticks() - $before) / 100 / (time - $began), '<', 0.3, 'a worker that waits for its next checkpoint sleeps');
finish();
