# A server with a link for each device, and more devices than links: at most 1,000 are open, and each has its turn.
use strict;
use warnings;
use Hybridiot::Test;
use PostgreSQL::Test::Utils;
use Test::More;

my $fleet = start_fleet('router', '--devices', 'press-{1..1500}');
my $node = new_node('links', conf => "hybridiot.command_server = 'gateway'");

sub result { return $node->safe_psql('test', $_[0]) }

result("CREATE SERVER gateway FOREIGN DATA WRAPPER hybridiot_amqp
	OPTIONS (host '127.0.0.1', port '@{[ $fleet->port ]}', peer 'router', link_address 'command/{device}')");
poll_is($node, 'SELECT state FROM hybridiot.stat_connection', 'up', 'the connection is up');

is(result(q{SELECT state || ' ' || count(*) FROM hybridiot.call_devices((SELECT array_agg('press-' || i) FROM generate_series(1, 1500) i), 'all', ttl => '2 min')
	GROUP BY state}), 'succeeded 1500', '1,500 devices at once');
is(result('SELECT links BETWEEN 900 AND 1001 FROM hybridiot.stat_connection'), 't', 'through no more than 1,000 links, and the one for replies');

# Devices that are away need a link, too, to hear when they come.
$fleet->command({ offline => [ map { "press-$_" } 1 .. 1100 ] });
result(q{INSERT INTO hybridiot.command (device, command, mode, ttl) SELECT 'press-' || i, n, 'store', '10 min' FROM generate_series(1, 1100) i, (VALUES ('first'), ('second')) AS c (n)});
poll_is($node, 'SELECT links FROM hybridiot.stat_connection', 1001, 'all links wait for devices that are away');
is(result(qq{SELECT state FROM hybridiot.call_device('press-$_', 'there', ttl => '2 min')}), 'succeeded', 'a device that is there does not wait for them') for 1400, 1500;
is(result(q{SELECT count(*) FROM hybridiot.command WHERE command IN ('first', 'second') AND state = 'queued'}), 2200, 'who do not lose anything');
$fleet->command({ online => ['press-*'] });
poll_is($node, q{SELECT count(*) FROM hybridiot.command WHERE state <> 'succeeded'}, 0, 'and get it when they come');
my %order;
push @{ $order{ $_->{device} } }, $_->{subject} for $fleet->ledger;
is(scalar(grep { "@{$order{$_}}" !~ /^all( first second)?( there)?$/ } keys %order), 0, 'in order');
is($fleet->twice, '', 'once');
$fleet->stop;
finish();
