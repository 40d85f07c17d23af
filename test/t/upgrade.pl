# ALTER EXTENSION UPDATE leads to the very catalog that CREATE EXTENSION makes, and keeps what is there.
use strict;
use warnings;
use Hybridiot::Test;
use Test::More;

my $node = new_node('upgrade', extension => 0);
$node->safe_psql('test', "CREATE EXTENSION hybridiot VERSION '0.1.0'");
$node->safe_psql('test', q(
	CREATE TABLE log (partition int, "offset" bigint, "timestamp" timestamptz, key bytea, value bytea, headers jsonb);
	CREATE SERVER archive FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (transport 'table');
	CREATE FOREIGN TABLE telemetry (device text, ts timestamptz, n int) SERVER archive OPTIONS (topic 't', source 'public.log', event_time 'ts');
	CREATE TABLE reading (device text, n int);
	CREATE TABLE total (during tstzrange, n bigint);
	INSERT INTO log SELECT 0, i, now(), NULL, convert_to(format('{"device": "d1", "ts": "2026-01-01 00:00:%s", "n": %s}', i, i), 'UTF8') FROM generate_series(1, 50) AS i));

# The script is run with the library that is there: what ran before the new library was installed is in the tables.
$node->safe_psql('test', q(
	INSERT INTO hybridiot.pipeline_definition (name, owner, owner_name, kind, statement, query, stream, enabled, start_at, lateness, emit,
		idle_timeout, batch_rows, batch_delay, checkpoint_interval, workers, max_groups, max_errors, on_error, keep_closed)
	SELECT 'readings', oid, rolname, 'per batch', q, q, 'telemetry'::regclass, true, 'earliest', '0', 'final', '30 s', 10000, '100 ms', '1 s', 1, 1000, 1000, 'dead_letter', '0'
	FROM pg_roles, (VALUES ('INSERT INTO public.reading (device, n) SELECT device, n FROM public.telemetry')) AS t (q) WHERE rolname = current_user;
	INSERT INTO hybridiot.pipeline_position (pipeline, stream, topic, partition, next_offset, idle) SELECT id, stream, 't', 0, 31, false FROM hybridiot.pipeline_definition;
	INSERT INTO hybridiot.dead_letter_record (pipeline, stream, topic, partition, "offset", reason, message) SELECT id, stream, 't', 0, 7, 'rejected', 'once' FROM hybridiot.pipeline_definition));
# Two rows of a closed window that could not be written, and where time stood.
$node->safe_psql('test', q{
	INSERT INTO hybridiot.pipeline_definition (name, owner, owner_name, kind, statement, query, stream, enabled, start_at, lateness, emit,
		idle_timeout, batch_rows, batch_delay, checkpoint_interval, workers, max_groups, max_errors, on_error, keep_closed)
	SELECT 'totals', oid, rolname, 'windowed', q, q, 'telemetry'::regclass, false, 'latest', '5 s', 'final', '30 s', 10000, '100 ms', '1 s', 1, 1000, 1000, 'dead_letter', '0'
	FROM pg_roles, (VALUES ('INSERT INTO public.total (during, n) SELECT hybridiot.tumble(ts, ''00:00:10''::interval), count(*) FROM public.telemetry GROUP BY device, (hybridiot.tumble(ts, ''00:00:10''::interval))')) AS t (q)
	WHERE rolname = current_user;
	INSERT INTO hybridiot.pipeline_progress SELECT id, '2026-01-01 00:01Z', '2026-01-01 00:00:50Z' FROM hybridiot.pipeline_definition WHERE name = 'totals';
	INSERT INTO hybridiot.window_group (pipeline, id, window_start, window_end, keys, state, records, closed)
	SELECT d.id, g, '2026-01-01Z', '2026-01-01 00:00:10Z', int4send(1) || convert_to(chr(96 + g), 'UTF8'), int4send(8) || int8send(g), g, true
	FROM hybridiot.pipeline_definition d, generate_series(1, 2) AS g WHERE d.name = 'totals';
	INSERT INTO hybridiot.dead_letter_record (pipeline, stream, reason, during, message)
	SELECT id, stream, 'rejected', '[2026-01-01Z, 2026-01-01 00:00:10Z)', 'row ' || g FROM hybridiot.pipeline_definition, generate_series(1, 2) AS g WHERE name = 'totals'});
$node->safe_psql('test', 'ALTER EXTENSION hybridiot UPDATE');
poll_is($node, 'SELECT count(*), min(n), max(n) FROM reading', '20|31|50', 'a pipeline goes on at its position');
is($node->safe_psql('test', 'SELECT "offset", message FROM hybridiot.dead_letter WHERE "offset" IS NOT NULL'), '7|once', 'and its dead letters are there');
is($node->safe_psql('test', 'SELECT kept_after, closed_before FROM hybridiot.pipeline_progress'), $node->safe_psql('test', "SELECT '2026-01-01 00:00:55Z'::timestamptz, '2026-01-01 00:00:50Z'::timestamptz"),
	'of what was closed before nothing is kept');
is($node->safe_psql('test', q(SELECT string_agg(format('%s of group %s', message, group_id), ', ' ORDER BY id) FROM hybridiot.dead_letter_record WHERE "offset" IS NULL)),
	'row 1 of group 1, row 2 of group 2', 'letters of rows know their groups');
is($node->safe_psql('test', "SELECT hybridiot.retry_dead_letters('totals')"), 2, 'and are written');
is($node->safe_psql('test', 'SELECT array_agg(n ORDER BY n), (SELECT count(*) FROM hybridiot.window_group) FROM total'), '{1,2}|0', 'as they were');

# ---- the same catalog either way

# Everything that belongs to the extension, as text, without what numbers and the order of columns say.
my $catalog = <<~'END';
	WITH member AS (SELECT classid, objid FROM pg_depend WHERE refclassid = 'pg_extension'::regclass AND deptype = 'e'
		AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'hybridiot'))
	SELECT * FROM (
		SELECT format('%s: %s', pg_describe_object(classid, objid, 0), coalesce(obj_description(objid, classid::regclass::text::name), '-')) AS line FROM member
		UNION ALL
		SELECT format('%s %s %s default %s not null %s comment %s', c.oid::regclass, a.attname, format_type(a.atttypid, a.atttypmod),
			pg_get_expr(d.adbin, d.adrelid), a.attnotnull, col_description(c.oid, a.attnum))
		FROM member JOIN pg_class c ON c.oid = objid AND classid = 'pg_class'::regclass JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
			LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
		UNION ALL
		SELECT format('%s kind %s options %s acl %s rls %s persistence %s', c.oid::regclass, c.relkind, c.reloptions,
			(SELECT string_agg(x::text, ',' ORDER BY x::text) FROM unnest(c.relacl) AS x), c.relrowsecurity, c.relpersistence)
		FROM member JOIN pg_class c ON c.oid = objid AND classid = 'pg_class'::regclass
		UNION ALL
		SELECT format('%s index %s', i.indrelid::regclass, pg_get_indexdef(i.indexrelid)) FROM member JOIN pg_index i ON i.indrelid = objid AND classid = 'pg_class'::regclass
		UNION ALL
		SELECT format('%s constraint %s', c.conrelid::regclass, pg_get_constraintdef(c.oid)) FROM member JOIN pg_constraint c ON c.conrelid = objid AND classid = 'pg_class'::regclass
		UNION ALL
		SELECT format('view %s %s', objid::regclass, pg_get_viewdef(objid)) FROM member JOIN pg_class c ON c.oid = objid AND classid = 'pg_class'::regclass AND c.relkind = 'v'
		UNION ALL
		SELECT format('%s %s acl %s', objid::regprocedure, pg_get_functiondef(objid), (SELECT string_agg(x::text, ',' ORDER BY x::text) FROM unnest(p.proacl) AS x))
		FROM member JOIN pg_proc p ON p.oid = objid AND classid = 'pg_proc'::regclass
		UNION ALL
		SELECT format('dumped %s where %s', r::regclass, w) FROM pg_extension, unnest(extconfig, extcondition) AS u (r, w) WHERE extname = 'hybridiot'
		UNION ALL
		SELECT format('%s trigger %s', t.tgrelid::regclass, pg_get_triggerdef(t.oid)) FROM member JOIN pg_trigger t ON t.tgrelid = objid AND classid = 'pg_class'::regclass AND NOT t.tgisinternal
		UNION ALL
		SELECT format('%s policy %s %s %s %s', polrelid::regclass, polname, polcmd, pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid))
		FROM member JOIN pg_policy ON polrelid = objid AND classid = 'pg_class'::regclass
	) AS lines ORDER BY line COLLATE "C";
	END

$node->safe_psql('postgres', 'CREATE DATABASE fresh');
$node->safe_psql('fresh', 'CREATE EXTENSION hybridiot');
my @upgraded = split /\n/, $node->safe_psql('test', $catalog);
my @fresh = split /\n/, $node->safe_psql('fresh', $catalog);
cmp_ok(scalar @fresh, '>', 200, 'the catalog is told');
my (%upgraded, %fresh);
$upgraded{$_}++ for @upgraded;
$fresh{$_}++ for @fresh;
is_deeply([ grep { !$fresh{$_} } @upgraded ], [], 'the upgrade leaves nothing that a fresh extension has not');
is_deeply([ grep { !$upgraded{$_} } @fresh ], [], 'and a fresh extension has nothing that the upgrade does not make');
is($node->safe_psql('test', "SELECT extversion FROM pg_extension WHERE extname = 'hybridiot'"),
	$node->safe_psql('fresh', "SELECT extversion FROM pg_extension WHERE extname = 'hybridiot'"), 'and the version is the same');

finish();
