# A connection that breaks after a command has left: the command is in doubt, and no reconnect sends it again.
use strict;
use warnings;
use Hybridiot::Test;
use PostgreSQL::Test::Utils;
use Test::More;

my $fleet = start_fleet('router', '--devices', 'press-{1..3}');
my $node = new_node('reconnect', conf => "hybridiot.command_server = 'gateway'");
$node->safe_psql('test', "CREATE SERVER gateway FOREIGN DATA WRAPPER hybridiot_amqp
	OPTIONS (host '127.0.0.1', port '@{[ $fleet->port ]}', peer 'router')");
poll_is($node, 'SELECT state FROM hybridiot.stat_connection', 'up', 'the connection is up');

for my $behaviour (qw(drop_before reset_before close_before))
{
	$fleet->command({ behaviour => $behaviour });
	$node->safe_psql('test', "SELECT hybridiot.send_command('press-1', '$behaviour', ttl => '20 s')");
	poll_is($node, "SELECT state FROM hybridiot.command WHERE command = '$behaviour'", 'in_doubt', "$behaviour: in doubt");
	$fleet->command({ behaviour => 'answer' });
	is($node->safe_psql('test', "SELECT state FROM hybridiot.call_device('press-1', 'next', ttl => '20 s')"), 'succeeded', 'the next one goes well');
}
my %times;
$times{ $_->{id} }++ for $fleet->ledger;
is(scalar(grep { $_ > 1 } values %times), 0, 'no id reached a device twice');
is(scalar(keys %times), 6, 'and each reached it');
$fleet->stop;
finish();
