# Aggregates of extensions in windows, by what they can do and not by their names: HyperLogLog and t-digest as Debian
# packages them. Their states go through the table and through a restart of the server.
use strict;
use warnings;
use Hybridiot::Test;
use Test::More;

my $node = new_node('aggregates');
$node->safe_psql('test', <<~'END');
	CREATE EXTENSION hll;
	CREATE EXTENSION tdigest;
	CREATE SERVER archive FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (transport 'table');
	CREATE TABLE log (partition int, "offset" bigint, "timestamp" timestamptz, key bytea, value bytea, headers jsonb);
	CREATE FOREIGN TABLE telemetry (device text, ts timestamptz, temp float8, visitor int) SERVER archive
		OPTIONS (topic 't', source 'public.log', event_time 'ts');
	INSERT INTO log SELECT i % 2, i / 2, NULL, NULL, convert_to(jsonb_build_object('device', 'd' || i % 3,
			'ts', timestamptz '2024-01-01Z' + i * interval '10 ms', 'temp', CASE WHEN i % 97 > 0 THEN (i::bigint * 7919 % 10007) / 10.0 END,
			'visitor', i::bigint * 7919 % 1700)::text, 'UTF8'), NULL
		FROM generate_series(0, 8999) i;
	END

# The same aggregates, once in windows and once by plain SQL.
my $columns = <<~'END';
	hybridiot.tumble(ts, '20 s') AS during, device, count(*) AS n,
	hll_add_agg(hll_hash_integer(visitor)) AS visitors, hll_add_agg(hll_hash_integer(visitor), 12) FILTER (WHERE temp > 500) AS hot,
	tdigest_percentile(temp, 100, 0.5) AS median, tdigest_percentile(temp, 100, ARRAY[0.1, 0.99]) AS ends,
	tdigest_percentile_of(temp, 100, 250.0) AS share, tdigest(temp, 100) AS digest
	END
$node->safe_psql('test', <<~"END");
	CREATE TABLE truth AS SELECT $columns FROM telemetry GROUP BY 1, 2;
	CREATE TABLE final AS SELECT * FROM truth LIMIT 0;
	CREATE TABLE seen (LIKE final, PRIMARY KEY (during, device));
	SELECT hybridiot.create_pipeline('final', \$\$INSERT INTO final SELECT $columns FROM telemetry GROUP BY 1, 2\$\$, enabled => false);
	SELECT hybridiot.create_pipeline('seen', \$\$INSERT INTO seen SELECT $columns FROM telemetry GROUP BY 1, 2 ON CONFLICT (during, device) DO UPDATE
		SET n = excluded.n, visitors = excluded.visitors, hot = excluded.hot, median = excluded.median, ends = excluded.ends, share = excluded.share, digest = excluded.digest\$\$,
		emit => 'changes', enabled => false);
	END
my $step = q{SELECT hybridiot.run_pipeline(name, 700, wall_clock => '2024-01-01 00:10Z') FROM (VALUES ('final'), ('seen')) v (name)};
$node->safe_psql('test', $step) for 1 .. 3;
is($node->safe_psql('test', 'SELECT pipeline, groups, records FROM hybridiot.open_window ORDER BY 1, during'),
	"final|3|100\nseen|3|100", 'windows are open, with states of theirs');
cmp_ok($node->safe_psql('test', 'SELECT min(length(state)) FROM hybridiot.window_group'), '>', 500, 'which are sketches');
$node->restart;
$node->safe_psql('test', $step) for 1 .. 10;
$node->safe_psql('test', $step =~ s/00:10Z/00:20Z/r);

for my $table (qw(final seen))
{
	is($node->safe_psql('test', "SELECT count(*) FROM $table"), 15, "$table: all windows are written");
	# A set of hashes does not care in which pieces it came.
	is($node->safe_psql('test', <<~"END"), '', "$table: HyperLogLog is what plain SQL says, bit by bit");
		SELECT during, device, n, visitors::text, hot::text FROM $table EXCEPT SELECT during, device, n, visitors::text, hot::text FROM truth
		END
	# A digest compresses what it has when it is stored: near the ends to a value, in the middle to a per cent or so.
	is($node->safe_psql('test', <<~"END"), 0, "$table: t-digest is as near to the records as plain SQL's");
		SELECT count(*) FROM $table w CROSS JOIN LATERAL (
			SELECT percentile_cont(ARRAY[0.1, 0.5, 0.99]) WITHIN GROUP (ORDER BY temp) AS p, count(*) FILTER (WHERE temp <= 250) / count(temp)::float8 AS share
			FROM telemetry t WHERE t.device = w.device AND t.ts <\@ w.during) x
		WHERE abs(ends[1] - p[1]) > 15 OR abs(median - p[2]) > 15 OR abs(ends[2] - p[3]) > 5 OR abs(w.share - x.share) > 0.015
			OR tdigest_count(digest) <> (SELECT tdigest_count(digest) FROM truth t WHERE (t.during, t.device) = (w.during, w.device)) OR median IS NULL
		END
}
# What cannot be kept is refused, whoever made it.
my ($status, $out, $error) = $node->psql('test', q{SELECT hybridiot.create_pipeline('refused',
	'INSERT INTO final (during, median) SELECT hybridiot.tumble(ts, ''1 s''), tdigest_percentile(DISTINCT temp, 100, 0.5) FROM telemetry GROUP BY 1')});
like($error, qr/aggregate public.tdigest_percentile\(.*\) cannot be used.*DISTINCT.*HINT/s, 'DISTINCT is refused, with a hint');
finish();
