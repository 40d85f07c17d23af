# A running device fleet (test/fleet): simulated devices behind a broker, or a router double.
#
#	my $fleet = Hybridiot::Fleet->start('router', '--devices', 'press-{1..3}');
#	$fleet->port;									where the router listens
#	$fleet->command({ behaviour => 'silent' });		dies unless the fleet says ok; returns its answer
#	$fleet->ledger;									list of the commands that reached a device
#	$fleet->ledger_column('id');					one plain text field of them; fast where they are very many
#	$fleet->twice;									ids that reached a device more than once, as text
#	$fleet->stop;
#
# It ends with the test, however that ends: it lives as long as its standard input.
package Hybridiot::Fleet;

use strict;
use warnings;
use File::Temp;
use IO::Select;
use IPC::Open2;
use JSON::PP;
use PostgreSQL::Test::Utils;

my $seconds = 30;

sub start
{
	my ($class, $mode, @arguments) = @_;
	my $dir = PostgreSQL::Test::Utils::tempdir('fleet');
	my $self = bless {
		ledger_file => "$dir/ledger.jsonl",
		events_file => "$dir/events.jsonl",
		buffer => ''
	}, $class;
	$self->{pid} = open2(
		$self->{out}, $self->{in}, 'node', "$ENV{HYBRIDIOT_TREE}/test/fleet/fleet.js",
		$mode, '--until-eof', '--ledger', $self->{ledger_file}, '--events', $self->{events_file}, @arguments);
	$self->{in}->autoflush(1);
	my $ready = $self->_line;
	die "the fleet is not ready: $ready" unless decode_json($ready)->{ready};
	$self->{ready} = decode_json($ready);
	return $self;
}

# One line of its standard output, in time.
sub _line
{
	my $self = shift;
	my $select = IO::Select->new($self->{out});
	while ($self->{buffer} !~ /\n/)
	{
		$select->can_read($seconds) or die "no word from the fleet in $seconds s";
		sysread($self->{out}, $self->{buffer}, 65536, length $self->{buffer})
			or die 'the fleet has ended';
	}
	$self->{buffer} =~ s/^(.*)\n// or die;
	return $1;
}

sub port { return $_[0]{ready}{port} }
sub pid { return $_[0]{pid} }

sub command
{
	my ($self, $command) = @_;
	print { $self->{in} } encode_json($command), "\n";
	my $answer = decode_json($self->_line);
	die 'the fleet refused ' . encode_json($command) . ": $answer->{error}" unless $answer->{ok};
	return $answer;
}

# What is said in a file that only grows; each line is read once. A line may be half written.
sub _records
{
	my ($self, $file) = @_;
	my $known = $self->{read}{$file} //= { at => 0, records => [] };
	if (-e $file)
	{
		open my $in, '<', $file or die "$file: $!";
		seek $in, $known->{at}, 0;
		while (my $line = <$in>)
		{
			last unless $line =~ /\n\z/;
			push @{ $known->{records} }, decode_json($line);
			$known->{at} += length $line;
		}
	}
	return @{ $known->{records} };
}

sub ledger { return $_[0]->_records($_[0]{ledger_file}) }
sub events { return $_[0]->_records($_[0]{events_file}) }

sub ledger_column
{
	my ($self, $field) = @_;
	return () unless -e $self->{ledger_file};
	return slurp_file($self->{ledger_file}) =~ /^\{(?:.*?,)?"$field":"([^"\\]*)".*\n/mg;
}

sub twice
{
	my $self = shift;
	my %times;
	$times{$_}++ for $self->ledger_column('id');
	return join ' ', grep { $times{$_} > 1 } keys %times;
}

sub stop
{
	my $self = shift;
	return unless $self->{pid};
	close $self->{in};
	waitpid($self->{pid}, 0);
	$self->{pid} = undef;
	return $? >> 8;
}

sub kill9
{
	my $self = shift;
	kill 'KILL', $self->{pid};
	close $self->{in};
	waitpid($self->{pid}, 0);
	$self->{pid} = undef;
}

sub DESTROY
{
	my $self = shift;
	local ($?, $@);
	$self->stop;
}

1;
