# Random streams through windowed pipelines, compared with a model of the rules (test/model): in sessions, thousands; and by workers
# that are killed, dozens.
#
#	HYBRIDIOT_SEED=1234 HYBRIDIOT_CASES=1     the case with that seed again
#	HYBRIDIOT_CASES=100000                    many, by chance
# Without either, the same cases each time: CI is no place for chance.
use strict;
use warnings;
use Hybridiot::Test;
use IPC::Run;
use Test::More;

my $cases = $ENV{HYBRIDIOT_CASES} || 2000;
my $node = new_node('window_property', conf => "fsync = off\nautovacuum = off\n");
my @command = ("$ENV{HYBRIDIOT_TREE}/test/model/property", '--dsn', $node->connstr('test'), '--cases', $cases);
my $seed = $ENV{HYBRIDIOT_SEED} // ($ENV{HYBRIDIOT_CASES} ? undef : 980462764);
push @command, '--seed', $seed if defined $seed;
push @command, '--mutants', '--sieges', 3 if $cases >= 1000;

# It prints checks and comments, and an end.
my $ended = 0;
IPC::Run::run(\@command, \undef, '>', \my $out, '2>&1');
my @comments;
for (split /\n/, $out)
{
	if (/^(not )?ok - (.*)/)
	{
		ok(!$1, $2) or diag(join "\n", @comments);
		note($_) for splice @comments;
	}
	elsif (/^# end$/) { $ended = 1 }
	elsif (/^# killed (\d+)$/) { expect_killed($1) }
	else { push @comments, s/^# //r }
}
ok($ended, 'the comparison came to its end') or diag(join "\n", @comments);
finish();
