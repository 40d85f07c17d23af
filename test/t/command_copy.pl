# Nothing is ever sent from the past: a dump restored, a database copied as a template, a base backup promoted, or started
# beside the original.
# Commands that were not final there are in doubt, final ones stay, and no copy takes the original's replies.
use strict;
use warnings;
use Hybridiot::Test;
use PostgreSQL::Test::Utils;
use Test::More;

my $fleet = start_fleet('router', '--devices', 'press-{1..3}');
my $node = new_node('main', init => [ allows_streaming => 1 ], conf => "hybridiot.command_server = 'gateway'");
my $server = "CREATE SERVER gateway FOREIGN DATA WRAPPER hybridiot_amqp OPTIONS (host '127.0.0.1', port '${\$fleet->port}', peer 'router')";
$node->safe_psql('test', $server);
poll_is($node, 'SELECT state FROM hybridiot.stat_connection', 'up', 'the connection is up');

my $states = q{SELECT string_agg(command || ' ' || state, ', ' ORDER BY command) FROM hybridiot.command};
my $original = 'accepted accepted, done succeeded, queued queued, sent sent';
my $copied = 'accepted in_doubt, done succeeded, queued in_doubt, sent in_doubt';

$node->safe_psql('test', q{SELECT hybridiot.call_device('press-1', 'done')});
$fleet->command({ behaviour => 'silent' });
$node->safe_psql('test', q{SELECT hybridiot.send_command('press-1', 'accepted', reply_within => '10 min')});
poll_is($node, q{SELECT state FROM hybridiot.command WHERE command = 'accepted'}, 'accepted', 'one is accepted');
$fleet->command({ behaviour => 'hold' });
$node->safe_psql('test', q{SELECT hybridiot.send_command('press-1', 'sent', reply_within => '10 min')});
poll_is($node, q{SELECT state FROM hybridiot.command WHERE command = 'sent'}, 'sent', 'one is sent');
$fleet->command({ no_credit => 'anonymous' });
$node->safe_psql('test', q{SELECT hybridiot.send_command('press-2', 'queued', ttl => '10 min')});
is($node->safe_psql('test', $states), $original, 'and one is queued');
my ($reply_to) = map { $_->{reply_to} } grep { $_->{subject} eq 'done' } $fleet->ledger;

# ---------------------------------------------------------------- copies

my $dump = PostgreSQL::Test::Utils::tempdir('dump') . '/test.sql';
command_ok([ 'pg_dump', '-f', $dump, $node->connstr('test') ], 'pg_dump');
$node->safe_psql('postgres', 'CREATE DATABASE restored');
command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', $dump, $node->connstr('restored') ], 'restore');
poll_is($node, $states, $copied, 'restored from a dump: in doubt, at once', 'restored');
is($node->safe_psql('restored', q{SELECT count(*) FROM hybridiot.command_event WHERE state = 'queued'}), 4, 'with its events');

$node->backup('copy');
my $promoted = PostgreSQL::Test::Cluster->new('promoted');
$promoted->init_from_backup($node, 'copy', has_streaming => 1);
$promoted->start;
is($promoted->safe_psql('test', $states), $original, 'a standby has the rows');
is($promoted->safe_psql('test', q{SELECT count(*) FROM hybridiot.stat_worker WHERE kind = 'amqp'}), 0, 'and no AMQP worker');
$promoted->promote;
poll_is($promoted, $states, $copied, 'promoted: in doubt');
poll_is($promoted, 'SELECT state FROM hybridiot.stat_connection', 'up', 'the promoted server is connected');
$promoted->stop;

my $beside = copied_node('beside', $node, 'copy');
poll_is($beside, $states, $copied, 'a base backup started beside the original: in doubt');
poll_is($beside, 'SELECT state FROM hybridiot.stat_connection', 'up', 'it is connected');
is($beside->safe_psql('test', q{SELECT count(*) FROM hybridiot.command_event WHERE state = 'in_doubt' AND cause LIKE '%copy%'}), 3, 'its events say why');
$beside->stop;

$node->safe_psql('postgres', 'CREATE DATABASE copied TEMPLATE test');
poll_is($node, $states, $copied, 'copied as a template: in doubt', 'copied');

# The original lost its worker for the copy, and what was sent with it; the rest is as it was.
poll_is($node, $states, 'accepted accepted, done succeeded, queued queued, sent in_doubt', 'the original goes on');

# ---------------------------------------------------------------- who gets what

$fleet->command({ behaviour => 'answer' });
$fleet->command({ credit => 'anonymous' });
poll_is($node, q{SELECT state FROM hybridiot.command WHERE command = 'queued'}, 'succeeded', 'the original sends what it had queued');
my @seen = grep { $_->{subject} eq 'queued' } $fleet->ledger;
is(scalar(@seen), 1, 'and nobody else did');
for my $database (qw(copied restored))
{
	poll_is($node, q{SELECT state FROM hybridiot.stat_connection}, 'up', "$database is connected", $database);
	is($node->safe_psql($database, q{SELECT state FROM hybridiot.call_device('press-3', 'own')}), 'succeeded', 'and commands on its own');
}
my %addresses = map { $_->{reply_to} => 1 } grep { $_->{subject} eq 'own' } $fleet->ledger;
is(scalar(keys %addresses), 2, 'replies come to an address of its own');
ok(!$addresses{$reply_to}, "and not to the original's");

# ---------------------------------------------------------------- gone before they are gone

$node->safe_psql('postgres', 'DROP DATABASE copied');
$node->safe_psql('restored', 'DROP EXTENSION hybridiot CASCADE');
is($node->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'hybridiot amqp' AND datname <> 'test'}), 0,
	'DROP DATABASE and DROP EXTENSION leave no worker');
is($node->safe_psql('test', q{SELECT state FROM hybridiot.call_device('press-1', 'fan')}), 'succeeded', 'the original still works');

finish();
