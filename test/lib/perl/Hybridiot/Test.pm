# What the TAP tests of test/t share. A test begins with
#
#	use Hybridiot::Test;
#	my $node = new_node('main');
#
# and ends with finish(), which stops what was started, searches the servers' logs (check_log) and is itself
# a check. test/run starts the brokers once for all tests and tells where they are; a test that is run alone
# starts its own.
package Hybridiot::Test;

use strict;
use warnings;
use Cwd;
use Exporter 'import';
use File::Basename;
use File::Find;
use IPC::Run;
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

use Hybridiot::Fleet;

our @EXPORT = qw(
	kafka another_kafka artemis rabbitmq rabbitmqctl broker
	create_topic delete_topic add_partitions configure_topic replace_topic empty_topic offsets
	produce inflate fill start_fill
	new_node copied_node start_fleet write_secret secret
	worker_pid kill_worker kill_postmaster expect_killed
	ask poll_is wait_state wait_caught_up unique finish
);

# Where test/ is, however this file was found.
$ENV{HYBRIDIOT_TREE} ||= Cwd::abs_path(dirname(__FILE__) . '/../../../..');
my $tools = "$ENV{HYBRIDIOT_TREE}/test/broker";

my (@nodes, %killed, @secrets, @own_brokers, @background, $finished);

# ---------------------------------------------------------------- brokers

# A hash of what DIR/env says. Starts the broker unless its address is in the environment already.
sub _environment
{
	my ($kind, $mark) = @_;
	unless ($ENV{$mark})
	{
		my $dir = PostgreSQL::Test::Utils::tempdir($kind);
		push @own_brokers, [ $kind, $dir ];
		for (split /\n/, _run("$tools/$kind", 'start', $dir))
		{
			$ENV{$1} = $2 if /^(\w+)=(.*)$/;
		}
	}
	my %said;
	for (keys %ENV)
	{
		$said{ lc $1 } = $ENV{$_} if /^\U$kind\E_(\w+)$/;
	}
	return \%said;
}

# kafka()->{bootstrap}, {sasl_bootstrap}, {tls_bootstrap}, {ca}, {user}, {password}, {dir}
sub kafka { return _environment('kafka', 'KAFKA_BOOTSTRAP') }

# another_kafka('3.9.2'): a broker of that version for this test alone, told as kafka() tells.
sub another_kafka
{
	local $ENV{HYBRIDIOT_KAFKA_VERSION} = shift;
	my $dir = PostgreSQL::Test::Utils::tempdir('another_kafka');
	push @own_brokers, [ 'kafka', $dir ];
	return { map { /^KAFKA_(\w+)=(.*)$/ ? (lc $1 => $2) : () } split /\n/, _run("$tools/kafka", 'start', $dir) };
}

# artemis()->{host}, {port}, {tls_port}, {ca}, {user}, {password}, {dir}
sub artemis { return _environment('artemis', 'ARTEMIS_PORT') }

# rabbitmq()->{host}, {port}, {user}, {password}, {dir}; for the test that asks alone.
sub rabbitmq { return _environment('rabbitmq', 'RABBITMQ_PORT') }

# What its administrator can do: rabbitmqctl('list_queues', 'name'); returns what it printed.
sub rabbitmqctl { return _run("$tools/rabbitmq", 'ctl', rabbitmq()->{dir}, @_) }

# broker('kafka', 'stop'), 'kill9' or 'start'; on the same ports and data.
sub broker
{
	my ($kind, $command) = @_;
	my $dir = { kafka => \&kafka, artemis => \&artemis, rabbitmq => \&rabbitmq }->{$kind}->()->{dir};
	_run("$tools/$kind", $command, $dir);
	note("$kind: $command");
	return;
}

# Runs a command, dies if it fails, returns what it printed.
sub _run
{
	my (@command) = @_;
	my $input = ref $command[-1] ? ${ pop @command } : '';
	my ($out, $err) = ('', '');
	IPC::Run::run(\@command, \$input, \$out, \$err) or die "@command: $err";
	return $out;
}

# ---------------------------------------------------------------- topics and records

sub _topic
{
	kafka();
	return _run("$tools/topic", @_);
}

# create_topic('t', 4, 'cleanup.policy=compact')
sub create_topic { _topic('create', $_[0], $_[1] // 1, @_[ 2 .. $#_ ]); return $_[0] }
sub delete_topic { _topic('delete', @_); return }
sub add_partitions { _topic('partitions', @_); return }
sub configure_topic { _topic('configure', @_); return }

# Deleted, created again with as many partitions or so many, and filled: replace_topic('t', 100, 4). Faster than a consumer can tell.
sub replace_topic { _topic('replace', @_); return }

# What retention does to all records of a topic: they go, and the offsets do not come back.
sub empty_topic { _topic('empty', @_); return }

# { 0 => [first, end], ... }
sub offsets { return decode_json(_topic('offsets', @_)) }

# produce('t', 'text', { value => ..., key => ..., partition => ..., timestamp => ms, headers => {...} }, undef)
# Text is a value; undef is a tombstone. The last argument may be \'commit', \'abort' or \'die': in one transaction.
sub produce
{
	my ($topic, @records) = @_;
	my @end = ref $records[-1] eq 'SCALAR' ? ('--transaction', ${ pop @records }) : ();
	my $lines = join '', map { encode_json(ref $_ ? $_ : { value => $_ }) . "\n" } @records;
	_topic('produce', $topic, @end, \$lines);
	return;
}

# One batch of records that is small only while it is compressed: inflate('t', 'gzip', 16, 15_000_000)
sub inflate { _topic('inflate', @_); return }

# fill('t', 500_000, rate => 20_000, devices => 100, step => 1, from => 0): see test/broker/topic.
sub fill { _topic(_fill_arguments(@_)); return }

sub _fill_arguments
{
	my ($topic, $count, %options) = @_;
	return ('fill', $topic, $count, map { ("--$_", $options{$_}) } sort keys %options);
}

# The same in the background; $handle->finish waits for its end and dies if it failed.
sub start_fill
{
	kafka();
	my $handle = IPC::Run::start([ "$tools/topic", _fill_arguments(@_) ], \undef, '>&', '/dev/null');
	push @background, $handle;
	return $handle;
}

# ---------------------------------------------------------------- servers

# A started server with the extension preloaded and a database "test" that has it, unless
# preload => 0, extension => 0, start => 0. conf => "lines" are added; init => [...] goes to init().
sub new_node
{
	my ($name, %options) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);
	push @nodes, $node;
	$node->init(@{ $options{init} || [] });
	$node->append_conf('postgresql.conf', <<~'END');
		restart_after_crash = on
		max_connections = 50
		max_worker_processes = 40
		shared_buffers = 32MB
		log_statement = none
		log_min_messages = info
		END
	$node->append_conf('postgresql.conf', "shared_preload_libraries = 'hybridiot'") if $options{preload} // 1;
	$node->append_conf('postgresql.conf', $options{conf}) if $options{conf};
	return $node unless $options{start} // 1;
	$node->start;
	$node->safe_psql('postgres', 'CREATE DATABASE test');
	$node->safe_psql('test', 'CREATE EXTENSION hybridiot') if $options{extension} // 1;
	return $node;
}

# A server made from a backup of another and started: a copy beside it, or with has_streaming => 1 its standby.
# conf => "lines" are added.
sub copied_node
{
	my ($name, $root, $backup, %options) = @_;
	my $conf = delete $options{conf};
	my $node = PostgreSQL::Test::Cluster->new($name);
	push @nodes, $node;
	$node->init_from_backup($root, $backup, %options);
	$node->append_conf('postgresql.conf', $conf) if $conf;
	$node->start;
	return $node;
}

# A file below the data directory that holds a secret; returns its path.
sub write_secret
{
	my ($node, $name, $text) = @_;
	my $file = $node->data_dir . "/$name";
	open(my $out, '>', $file) or die "$file: $!";
	chmod 0600, $file;
	print $out $text, "\n";
	close $out;
	secret($text);
	return $file;
}

# Text that must not be in any log. The brokers' passwords are such already.
sub secret { push @secrets, @_; return }

# start_fleet('router', '--devices', 'a,b'), or ('devices', ...), which are devices of Artemis.
sub start_fleet
{
	my ($mode, @arguments) = @_;
	if ($mode eq 'devices')
	{
		my $artemis = artemis();
		unshift @arguments, '--port', $artemis->{port}, '--user', $artemis->{user},
			'--password', $artemis->{password};
	}
	return Hybridiot::Fleet->start($mode, @arguments);
}

# ---------------------------------------------------------------- kills

# worker_pid($node, "kind = 'pipeline' AND pipeline = 'p'"): waits until there is one.
sub worker_pid
{
	my ($node, $condition) = @_;
	my $query = "SELECT pid FROM hybridiot.stat_worker WHERE pid IS NOT NULL AND $condition LIMIT 1";
	my $until = time + $PostgreSQL::Test::Utils::timeout_default;
	while (time < $until)
	{
		# The server may be on its way back from a crash.
		my ($status, $pid) = ask($node, 'test', $query);
		return $pid if defined $status && $status == 0 && $pid ne '';
		sleep 0.05;
	}
	die "no worker where $condition";
}

# A signal that the logs may then speak of.
sub expect_killed { $killed{$_} = 1 for @_; return }

# SIGKILL; returns the pid. The postmaster restarts all backends after it.
sub kill_worker
{
	my ($node, $condition) = @_;
	my $pid = worker_pid($node, $condition);
	expect_killed($pid);
	kill 'KILL', $pid;
	return $pid;
}

# SIGKILL of the postmaster, and a new start when all its children have left, which they do on their own;
# but for one that was stopped, which gets a signal when the postmaster is gone: kill_postmaster($node, 'CONT', $pid).
sub kill_postmaster
{
	my ($node, $signal, $stopped) = @_;
	my ($pid) = split /\n/, slurp_file($node->data_dir . '/postmaster.pid');
	my @children = split ' ', _children($pid);
	my $until = time + $PostgreSQL::Test::Utils::timeout_default;
	kill 'KILL', $pid;
	kill $signal, $stopped if $stopped;
	for my $child ($pid, @children)
	{
		while (_lives($child))
		{
			die "process $child outlives its postmaster" if time > $until;
			sleep 0.02;
		}
	}
	# A new postmaster takes one that init has not waited for yet for alive.
	sleep 0.02 while -e "/proc/$pid" && time < $until;
	# Until somebody has waited for the dead postmaster, its number looks alive to the next one.
	unlink $node->data_dir . '/postmaster.pid';
	$node->{_pid} = undef;
	$node->start;
	return;
}

# One that nobody has waited for yet is gone all the same.
sub _lives
{
	my $pid = shift;
	open(my $stat, '<', "/proc/$pid/stat") or return 0;
	return <$stat> !~ /\) [ZX] /;
}

sub _children
{
	my $pid = shift;
	my $file = "/proc/$pid/task/$pid/children";
	return -r $file ? slurp_file($file) : '';
}

# ---------------------------------------------------------------- waiting

# psql() for a server that may be on its way back from a crash: nothing instead of an exception (a broken pipe) when
# psql has left before it was told the query.
sub ask
{
	my ($node, $database, $query) = @_;
	return eval { $node->psql($database, $query) };
}

# poll_is($node, $query, $expected, $name): a check that waits for its result and shows the last one if it never came.
sub poll_is
{
	my ($node, $query, $expected, $name, $database) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $until = time + $PostgreSQL::Test::Utils::timeout_default;
	my ($status, $got, $error);
	do
	{
		($status, $got, $error) = ask($node, $database // 'test', $query);
		return pass($name) if defined $status && $status == 0 && $got eq $expected;
		sleep 0.05;
	} while (time < $until);
	diag($error) if $error;
	return is($got, $expected, $name);
}

# wait_state($node, 'p', 'running')
sub wait_state
{
	my ($node, $pipeline, $state) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return poll_is($node, "SELECT state FROM hybridiot.pipeline WHERE name = '$pipeline'",
		$state, "pipeline $pipeline is $state");
}

# Until every position of a pipeline is at the end of its partition, as Kafka itself tells it now.
sub wait_caught_up
{
	my ($node, $pipeline, @topics) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my %end;
	for my $topic (@topics)
	{
		my $offsets = offsets($topic);
		$end{"$topic $_"} = $offsets->{$_}[1] for keys %$offsets;
	}
	my $expected = join "\n", map { "$_ $end{$_}" } sort keys %end;
	return poll_is($node, <<~END, $expected, "pipeline $pipeline has caught up");
		SELECT topic || ' ' || partition || ' ' || next_offset FROM hybridiot.position WHERE pipeline = '$pipeline'
		ORDER BY (topic || ' ' || partition) COLLATE "C"
		END
}

# A name that no other test of this run has used, for topics on the shared broker.
sub unique
{
	my $name = shift;
	(my $test = basename($0, '.pl')) =~ s/\W/-/g;
	return sprintf '%s-%s-%d-%d', $name, $test, $$, int(time * 1000) % 1_000_000_000;
}

# ---------------------------------------------------------------- the end

sub _stop_background
{
	$_->kill_kill for splice @background;
	for (splice @own_brokers)
	{
		my ($kind, $dir) = @$_;
		system("$tools/$kind", 'stop', $dir);
	}
}

# What the logs say that must not be said, and core files.
sub _found
{
	my @logs = grep { -e } map { $_->logfile } @nodes;
	my $found = '';
	if (@logs)
	{
		my @known = map { $_ // () } @ENV{qw(KAFKA_PASSWORD ARTEMIS_PASSWORD RABBITMQ_PASSWORD)};
		my @command = ("$ENV{HYBRIDIOT_TREE}/test/lib/check_log",
			(map { ('--killed', $_) } keys %killed),
			# "hybridiot" is the password of brokers outside test/run, and in every line of a log.
			(map { ('--secret', $_) } grep { $_ ne 'hybridiot' } @known, @secrets), @logs);
		IPC::Run::run(\@command, \undef, '>&', \$found);
	}
	find(sub { $found .= "$File::Find::name\n" if /^core(\.\d+)?$/ && -f }, grep { -d } map { $_->data_dir } @nodes);
	return $found;
}

# The last line of every test.
sub finish
{
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$_->stop('fast') for grep { defined $_->{_pid} } @nodes;
	_stop_background();
	my $found = _found();
	$finished = 1;
	ok($found eq '', 'nothing in the logs that must not be there') or diag($found);
	done_testing();
	return;
}

# A signal ends the test in good order.
$SIG{$_} = sub { die "ended by a signal\n" } for qw(INT TERM HUP);

END
{
	my $status = $?;
	_stop_background();
	unless ($finished)
	{
		diag('finish() was not reached');
		diag(_found());
		$status ||= 1;
	}
	$? = $status;
}

1;
