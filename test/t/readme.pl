# The first session of README.md, typed as it is printed there, gives what is printed there: real Kafka and Artemis,
# and the demo's device.
use strict;
use warnings;
use Hybridiot::Test;
use IPC::Run;
use PostgreSQL::Test::Utils;
use Test::More;

my ($session) = slurp_file("$ENV{HYBRIDIOT_TREE}/README.md") =~ /^## A first session\n(.*?)^## /ms or die;
my (@typed, @printed, $records);
while ($session =~ /^```(\w*)\n(.*?)^```/msg)
{
	my ($language, $text) = ($1, $2);
	push @typed, $text if $language eq 'sql';
	push @printed, split /\n\n/, $text if $language eq '';
	$records = $1 if $language eq 'sh' && $text =~ /^kcat [^\n]*\n(.*?)^END$/ms;
}
ok(@typed > 4 && @printed > 4 && $records, 'the session is found in README.md');

my $kafka = kafka();
my $artemis = artemis();
my $node = new_node('readme');

# The topic's name is the README's: this test alone uses it while it runs.
eval { delete_topic('iot-temperature') };
create_topic('iot-temperature', 2);
my $sent = IPC::Run::run([ 'kcat', '-P', '-b', $kafka->{bootstrap}, '-t', 'iot-temperature', '-K:' ], \$records);
ok($sent, 'readings are sent');

my $device = IPC::Run::start(
	[
		'/usr/bin/python3', "$ENV{HYBRIDIOT_TREE}/demo/devices.py", '--presses', 3, '--seconds', 0,
		'--gateway', '127.0.0.1:9', '--broker', "amqp://127.0.0.1:$artemis->{port}",
		'--user', $artemis->{user}, '--password-file', "$artemis->{dir}/password"
	],
	\undef, '>&', '/dev/null');

# The brokers of a test have another password.
my $typed = join '', @typed;
$typed =~ s/password 'hybridiot'/password '$artemis->{password}'/;
local $ENV{PGOPTIONS} = '';
my ($out, $err) = ('', '');
my $ended = eval {
	IPC::Run::run(
		[
			$node->installed_command('psql'), '-X', '-P', 'pager=off', '-v', 'ON_ERROR_STOP=1',
			'-h', $node->host, '-p', $node->port, '-d', 'postgres',
			'-v', "kafka=$kafka->{bootstrap}", '-v', "amqp_port=$artemis->{port}"
		],
		\$typed, \$out, \$err, IPC::Run::timeout(120));
};
ok($ended, 'psql takes all of it') or diag($err);
unlike($err, qr/ERROR/, 'without an error') or diag($err);
for my $text (@printed)
{
	chomp $text;
	my ($line) = $text =~ /([^\n]*)/;
	ok(index($out, $text) >= 0, "printed: $line") or diag("expected:\n$text\n\ngot:\n$out");
}

$device->kill_kill(grace => 5);
delete_topic('iot-temperature');
finish();
