# The same random topics through hybridiot and through Kafka Streams (test/streams/Windows.java, a TopologyTestDriver for each
# partition): final rows of all kinds of windows. Each difference must be one that test/streams/compare.sql has a rule for;
# docs/explanation/windows.md tells them to users. HYBRIDIOT_SEED and HYBRIDIOT_TOPICS choose others.
use strict;
use warnings;
use Hybridiot::Test;
use IPC::Run;
use PostgreSQL::Test::Utils;
use Test::More;

my $seed = $ENV{HYBRIDIOT_SEED} // time;
my $topics = $ENV{HYBRIDIOT_TOPICS} // 30;
note("HYBRIDIOT_SEED=$seed HYBRIDIOT_TOPICS=$topics");
srand($seed);

# One of the arguments.
sub any { return $_[ int rand @_ ] }

# Milliseconds.
my (@topics, @records);
for my $topic (1 .. $topics)
{
	my $unit = any(1, 100, 500, 1000);
	my ($size, $gap, $lateness) = (any(2000, 5000, 7000), any(1000, 2000, 4000), any(0, 0, 1000, 3000, 15_000));
	my $spread = $topic % 5 == 0;
	my ($partitions, $devices) = ($spread ? any(2, 3) : any(1, 1, 2, 3), any(1, 2, 4));
	push @topics, [ $topic, $size, any($size, 1000, 1500, 2000), $gap, $lateness ];
	# 2024-01-01, and somewhere in a day
	my $now = 1_704_067_200_000 + int(rand 86_400) * 1000;
	my @next = (0) x $partitions;
	for my $n (0 .. 25 + rand 40)
	{
		my $device = int rand $devices;
		my $part = ($spread ? int rand $partitions : $device) % $partitions;
		$now += $unit * int(any(0, 0, 1, rand 1000 / $unit, rand 4000 / $unit));
		$now += any($gap, $gap + $lateness, $size + $lateness, 20_000, 100_000) unless int rand 12;
		my $at = $now - $unit * int(any(0, 0, 0, rand 2000 / $unit, rand(2 * $size + $lateness) / $unit));
		push @records, [ $topic, $part, $next[$part]++, "d$device", $at, int rand 100 ];
	}
}

sub copy { my $table = shift; return "COPY $table FROM STDIN;\n" . join('', map { join("\t", @$_) . "\n" } @_) . "\\.\n" }

# Times in microseconds.
sub us { my ($row, @columns) = @_; my @us = @$row; $us[$_] .= '000' for @columns; return \@us }

my $input = '';
my %of;
push @{ $of{ $_->[0] } }, $_ for @records;
for my $topic (@topics)
{
	$input .= join("\t", 'topic', @$topic) . "\n";
	$input .= join("\t", 'record', @$_[ 1, 3 .. 5 ]) . "\n" for @{ $of{ $topic->[0] } };
}
# Files, because servers that are started meanwhile would inherit pipes.
my $dir = PostgreSQL::Test::Utils::tempdir('streams');
append_to_file("$dir/in", $input);
my $streams = IPC::Run::start([ "$ENV{HYBRIDIOT_TREE}/test/streams/windows" ], '<', "$dir/in", '>', "$dir/out", '2>', "$dir/err");

# Those that pipelines can group by.
my @kinds = ('tumble', 'hop', 'slide', 'session');
my $kinds = '{' . join(',', @kinds) . '}';

my $node = new_node('streams');
$node->safe_psql('postgres', 'ALTER DATABASE test SET search_path = streams, public; ALTER DATABASE test SET client_min_messages = warning');
$node->safe_psql('test', slurp_file("$ENV{HYBRIDIOT_TREE}/test/streams/compare.sql"));
$node->safe_psql('test', copy('topic', map { us($_, 1 .. 4) } @topics) . copy('record', map { us($_, 4) } @records));
$node->safe_psql('test', <<~"END");
	SELECT run(t, kind) FROM topic AS t, unnest('$kinds'::text[]) AS kind;
	SELECT make_model();
	END

ok($streams->finish, 'Kafka Streams has taken the topics') or diag(slurp_file("$dir/err"));
my @rows = map { [ split /\t/ ] } split /\n/, slurp_file("$dir/out");
ok(@rows > 50 * $topics, 'and made rows of them');
$node->safe_psql('test', copy('streams_row (topic, kind, way, part, device, first, last, n, total)', map { us($_, 5, 6) } @rows));

# The first topics of which something is not as it should be, in full.
sub none
{
	my ($query, $name) = @_;
	my $found = $node->safe_psql('test', "SELECT * FROM $query ORDER BY topic LIMIT 30");
	return if is($found, '', $name);
	diag("HYBRIDIOT_SEED=$seed HYBRIDIOT_TOPICS=$topics");
	my ($topic) = $found =~ /^[^|]*\|(\d+)/;
	diag($node->safe_psql('test', "SELECT * FROM topic WHERE topic = $topic; SELECT * FROM judged WHERE topic = $topic ORDER BY part, pos"));
	return;
}
none("wrong('$kinds')", 'hybridiot has what plain SQL says');
none('unexplained', 'and Kafka Streams has the same, but for what its rules explain');
my $explained = $node->safe_psql('test', 'SELECT * FROM explained');
note($explained);
unlike($explained, qr/\|0$/m, 'each of the rules was needed');
finish();
