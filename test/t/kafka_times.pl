# Times of records that no clock ever showed: they are set aside, and move no watermark.
use strict;
use warnings;
use Hybridiot::Test;
use Test::More;

my $topic = create_topic(unique('times'), 1, 'message.timestamp.after.max.ms=9223372036854775807');
my $node = new_node('times');
my $kafka = kafka();

my $ms = 1_767_225_600_000;    # 2026-01-01
produce($topic,
	{ value => '{"n": 1}', timestamp => $ms + 1000 },
	{ value => '{"n": 2}', timestamp => $ms * 1_000_000 },      # nanoseconds
	{ value => '{"n": 3}', timestamp => $ms * 1000 },           # microseconds
	{ value => '{"n": 4}', timestamp => 9_223_372_036_854_775_807 },
	{ value => '{"n": 5}', timestamp => $ms + 2000 },
	{ value => '{"n": 6}', timestamp => $ms + 11_000 });

$node->safe_psql('test', <<~"END");
	CREATE SERVER plant FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (bootstrap_servers '$kafka->{bootstrap}');
	CREATE FOREIGN TABLE numbers (n int, at timestamptz OPTIONS (metadata 'timestamp')) SERVER plant OPTIONS (topic '$topic');
	CREATE TABLE total (during tstzrange, sum int);
	SELECT hybridiot.create_pipeline('total', 'INSERT INTO total SELECT hybridiot.tumble(at, ''10 s''), sum(n) FROM numbers GROUP BY 1',
		idle_timeout => '0');
	END
is($node->safe_psql('test', q(SET TimeZone = 'UTC'; SELECT n, at FROM numbers ORDER BY n)), <<~'END' =~ s/\n$//r, 'SELECT shows them');
	1|2026-01-01 00:00:01+00
	2|infinity
	3|57971-02-25 00:00:00+00
	4|infinity
	5|2026-01-01 00:00:02+00
	6|2026-01-01 00:00:11+00
	END
poll_is($node, 'SELECT sum FROM total', '6', 'a window of the others is closed');
is($node->safe_psql('test', q(SELECT string_agg("offset" || ' ' || reason, ', ' ORDER BY "offset") FROM hybridiot.dead_letter)),
	'1 future, 2 future, 3 future', 'these are of the future');
is($node->safe_psql('test', q(SET TimeZone = 'UTC'; SELECT watermark FROM hybridiot.pipeline)), '2026-01-01 00:00:11+00', 'the watermark is not');
finish();
