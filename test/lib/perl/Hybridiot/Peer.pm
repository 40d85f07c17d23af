# A running scripted peer (test/peer): an AMQP server that can be wrong in every way.
#
#	my $peer = Hybridiot::Peer->start;
#	$peer->port;
#	$peer->command({ set => { outcome => 'never' } });		what it does from now on: test/peer/peer.py
#	$peer->state->{commands};
#
# It ends with the test, however that ends: it lives as long as its standard input.
package Hybridiot::Peer;

use strict;
use warnings;
use IPC::Open2;
use JSON::PP;

use Hybridiot::Fleet;
our @ISA = ('Hybridiot::Fleet');

sub start
{
	my ($class, @arguments) = @_;
	my $self = bless { buffer => '' }, $class;
	$self->{pid} = open2($self->{out}, $self->{in}, '/usr/bin/python3', "$ENV{HYBRIDIOT_TREE}/test/peer/peer.py", @arguments);
	$self->{in}->autoflush(1);
	$self->{ready} = decode_json($self->_line);
	return $self;
}

# What it does from now on, over its defaults.
sub set { my ($self, %settings) = @_; $self->command({ set => \%settings }); return }

sub state { return $_[0]->command({ state => JSON::PP::true }) }

1;
