-- Upserts of the latest value: only the newest record of each key is delivered, where nobody can tell; tables and dead letters are those of batches of one record.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS hybridiot;
CREATE SCHEMA latest;
SET search_path = latest, public;
SET timezone = 'UTC';
CREATE SERVER latest_log FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (transport 'table');
CREATE TABLE log (partition int, "offset" bigint, "timestamp" timestamptz, key bytea, value bytea, headers jsonb, PRIMARY KEY (partition, "offset"));
CREATE FOREIGN TABLE s (k text, a int, b text, c numeric, pos bigint OPTIONS (metadata 'offset')) SERVER latest_log OPTIONS (topic 't', source 'latest.log');
\set SHOW_CONTEXT never

-- 120 records of 12 keys, one of them null; numbers that are equal and look different
INSERT INTO log
SELECT 0, i, timestamptz '2026-01-01Z' + i * interval '1 s', NULL,
	convert_to(jsonb_build_object('k', CASE WHEN i * 7 % 12 > 0 THEN 'k' || i * 7 % 12 END, 'a', i, 'b', CASE WHEN i % 29 > 0 THEN 'b' || i % 4 END,
		'c', i % 5 + CASE WHEN i % 2 = 0 THEN 0.0 ELSE 0.00 END)::text, 'UTF8')
FROM generate_series(0, 119) AS i;

CREATE TABLE outcome (batch_rows int, rows text, dead text, n bigint, ndead bigint, updates bigint);
CREATE TABLE t (k text PRIMARY KEY, a int, b text, c numeric, n int DEFAULT 0);
CREATE FUNCTION run_with(statement text, ready text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	size int;
	updates bigint;
BEGIN
	TRUNCATE outcome;
	FOREACH size IN ARRAY ARRAY[1, 2, 10000] LOOP
		TRUNCATE t;
		INSERT INTO t VALUES ('k3', -1, 'old', -1, -1);
		EXECUTE ready;
		PERFORM hybridiot.create_pipeline('p', statement, batch_rows => size, enabled => false);
		updates := pg_stat_get_xact_tuples_updated('t'::regclass);
		PERFORM hybridiot.run_pipeline('p');
		INSERT INTO outcome SELECT size, (SELECT string_agg(t::text, E'\n' ORDER BY t::text) FROM t), string_agg(format('%s %s', "offset", sqlstate), ' ' ORDER BY id),
			(SELECT count(*) FROM t), count(*), pg_stat_get_xact_tuples_updated('t'::regclass) - updates FROM hybridiot.dead_letter WHERE pipeline = 'p';
		PERFORM hybridiot.drop_pipeline('p');
	END LOOP;
END $$;
-- Was it looked before, with the largest batch? Then few rows were updated, instead of nearly all.
CREATE FUNCTION same(statement text, ready text DEFAULT '') RETURNS TABLE (n bigint, dead bigint, rows_equal boolean, dead_equal boolean, newest_only boolean) LANGUAGE sql AS $$
	SELECT run_with(statement, ready);
	SELECT min(n), min(ndead), count(DISTINCT coalesce(rows, '')) = 1, count(DISTINCT coalesce(dead, '')) = 1, min(updates) FILTER (WHERE batch_rows = 10000) < 50 FROM outcome;
$$;
CREATE FUNCTION letters() RETURNS text LANGUAGE sql AS $$ SELECT dead FROM outcome WHERE batch_rows = 10000 $$;

-- the newest record says all
\set whole 'ON CONFLICT (k) DO UPDATE SET a = excluded.a, b = excluded.b, c = excluded.c'
SELECT * FROM same('INSERT INTO t (k, a, b, c) SELECT k, a, b, c FROM s WHERE k IS NOT NULL ' || :'whole');
SELECT * FROM t ORDER BY k;
SELECT * FROM same('INSERT INTO t (k, a, b, c) SELECT k, a, b, c FROM s WHERE k IS NOT NULL ON CONFLICT ON CONSTRAINT t_pkey DO UPDATE SET a = excluded.a, b = excluded.b, c = excluded.c');
-- a null key cannot be inserted
SELECT * FROM same('INSERT INTO t (k, a, b, c) SELECT k, a, b, c FROM s ' || :'whole');
-- it keeps what the first record of a new key said, or what the table said
SELECT * FROM same('INSERT INTO t (k, a, b, c) SELECT k, a, b, c FROM s WHERE k IS NOT NULL ON CONFLICT (k) DO UPDATE SET a = excluded.a');
SELECT * FROM t ORDER BY k;
SELECT * FROM same('INSERT INTO t SELECT k, a, b, c, 1 FROM s WHERE k IS NOT NULL ON CONFLICT (k) DO UPDATE SET a = excluded.a, b = ''again'', c = excluded.c, n = 2');
SELECT * FROM t ORDER BY k LIMIT 3;
SELECT * FROM same('INSERT INTO t SELECT k, a, b, c, 1 FROM s WHERE k IS NOT NULL ON CONFLICT (k) DO UPDATE SET a = excluded.n, n = excluded.a');
SELECT * FROM same('INSERT INTO t SELECT k, a, b, c, 1 FROM s WHERE k IS NOT NULL ON CONFLICT (k) DO UPDATE SET a = excluded.n, n = excluded.a, b = excluded.b, c = excluded.c');
-- the newest record is left out by WHERE, or by a join; the order of rows is not that of the records
SELECT * FROM same('INSERT INTO t (k, a, b, c) SELECT k, a, b, c FROM s WHERE k IS NOT NULL AND a % 7 < 3 ' || :'whole');
CREATE TABLE known (k text, extra int);
INSERT INTO known SELECT 'k' || i, i FROM generate_series(1, 9) AS i;
SELECT * FROM same('INSERT INTO t (k, a, b, n) SELECT s.k, s.a, s.b, extra FROM known JOIN s USING (k) ORDER BY s.a DESC ON CONFLICT (k) DO UPDATE SET a = excluded.a, b = excluded.b');
-- casts that come with the target
SELECT * FROM same('INSERT INTO t (k, a, b, c) SELECT k, c * 3, pos, a FROM s WHERE k IS NOT NULL ' || :'whole');

-- bad records: the newest one, older ones; in the SELECT, in a cast, in a constraint
SELECT * FROM same('INSERT INTO t (k, a, b, c) SELECT k, 100 / (a % 30 - 7), b, c FROM s WHERE k IS NOT NULL ' || :'whole');
SELECT letters();
SELECT * FROM same('INSERT INTO t (k, a, b, c) SELECT k, 100 / (115 - a), b, c FROM s WHERE k IS NOT NULL ' || :'whole');
SELECT letters();
SELECT * FROM same('INSERT INTO t (k, a, b, c) SELECT k, a, b, c FROM s WHERE k IS NOT NULL ' || :'whole', 'ALTER TABLE t ALTER b SET NOT NULL');
SELECT letters();
SELECT * FROM same('INSERT INTO t (k, a, b, c) SELECT k, a, b, c FROM s WHERE k IS NOT NULL ON CONFLICT (k) DO UPDATE SET a = excluded.a');
TRUNCATE t;
ALTER TABLE t ALTER b DROP NOT NULL, ALTER k TYPE varchar(2);
SELECT * FROM same('INSERT INTO t (k, a, b, c) SELECT k, a, b, c FROM s WHERE k IS NOT NULL ' || :'whole');
TRUNCATE t;
ALTER TABLE t ALTER k TYPE text;

-- keys of two columns; equal ones that do not look so are not one key, and meet each other in pieces
ALTER TABLE t DROP CONSTRAINT t_pkey, ADD UNIQUE (c, b);
SELECT * FROM same('INSERT INTO t (k, a, b, c) SELECT k, a, b, c FROM s WHERE k IS NOT NULL ON CONFLICT (b, c) DO UPDATE SET a = excluded.a, k = excluded.k');
TRUNCATE t;
ALTER TABLE t DROP CONSTRAINT t_c_b_key, ADD UNIQUE (c);
SELECT * FROM same('INSERT INTO t (k, a, b, c) SELECT k, a, b, c FROM s WHERE k IS NOT NULL ON CONFLICT (c) DO UPDATE SET a = excluded.a, k = excluded.k, b = excluded.b');
TRUNCATE t;
ALTER TABLE t DROP CONSTRAINT t_c_key, ADD PRIMARY KEY (k);

-- ---- where somebody could tell, every record is delivered

\set plain 'INSERT INTO t (k, a, b, c) SELECT k, a, b, c FROM s WHERE k IS NOT NULL '
SELECT * FROM same(:'plain' || 'ON CONFLICT (k) DO UPDATE SET a = excluded.a, n = t.n + 1');
SELECT * FROM same(:'plain' || 'ON CONFLICT (k) DO UPDATE SET a = greatest(excluded.a, 100)');
SELECT * FROM same(:'plain' || 'ON CONFLICT (k) DO UPDATE SET a = excluded.a WHERE excluded.a % 2 = 0');
SELECT * FROM same('INSERT INTO t (k, a, b, c) SELECT k, a, b, c FROM s, generate_series(1, 1 + (a = 50)::int) WHERE k IS NOT NULL ' || :'whole');
CREATE SEQUENCE seq;
SELECT * FROM same('INSERT INTO t (k, a, b, c) SELECT k, a, b, nextval(''latest.seq'') * 0 FROM s WHERE k IS NOT NULL ' || :'whole');
SELECT * FROM same('INSERT INTO t (k, a, b, c) SELECT k, a, b, c FROM s WHERE k IS NOT NULL AND NOT EXISTS (SELECT FROM t WHERE t.a = s.a) ' || :'whole');
SELECT * FROM same('WITH x AS (SELECT * FROM s) INSERT INTO t (k, a, b, c) SELECT k, a, b, c FROM x WHERE k IS NOT NULL ' || :'whole');
-- a trigger, made while there is a plan
CREATE TABLE audit (k text, a int);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO latest.audit VALUES (NEW.k, NEW.a); RETURN NEW; END $$;
SELECT hybridiot.create_pipeline('p', :'plain' || :'whole', enabled => false, batch_rows => 40);
SELECT hybridiot.run_pipeline('p', 40);
CREATE TRIGGER note AFTER INSERT OR UPDATE ON t FOR EACH ROW EXECUTE FUNCTION note();
SELECT hybridiot.run_pipeline('p', 40);
SELECT count(*), min(a), max(a) FROM audit;
DROP TRIGGER note ON t;
SELECT hybridiot.run_pipeline('p');
SELECT count(*) FROM audit;
SELECT k, a FROM t ORDER BY k;
SELECT hybridiot.drop_pipeline('p');
-- another unique index, a policy, CHECK, a computed column
SELECT * FROM same(:'plain' || :'whole', 'CREATE UNIQUE INDEX IF NOT EXISTS other ON t (a)');
DROP INDEX other;
ALTER TABLE t ENABLE ROW LEVEL SECURITY;
SELECT * FROM same(:'plain' || :'whole');
ALTER TABLE t DISABLE ROW LEVEL SECURITY;
SELECT * FROM same(:'plain' || :'whole', 'ALTER TABLE t DROP CONSTRAINT IF EXISTS c, ADD CONSTRAINT c CHECK (a % 50 <> 9)');
SELECT letters();
TRUNCATE t;
ALTER TABLE t DROP CONSTRAINT c, ADD COLUMN inverse int GENERATED ALWAYS AS (100 / nullif(a % 10, 10)) STORED;
SELECT * FROM same(:'plain' || :'whole', 'UPDATE t SET a = 1');
SELECT left(letters(), 40);
ALTER TABLE t DROP COLUMN inverse;
-- an order by what is not inserted; a function that may read the table; NOT NULL that only SET can break
SELECT * FROM same('INSERT INTO t (k, a) SELECT k, a FROM s WHERE k IS NOT NULL ORDER BY pos ON CONFLICT (k) DO UPDATE SET a = excluded.a');
CREATE FUNCTION before(text) RETURNS int LANGUAGE sql STABLE AS 'SELECT a FROM latest.t WHERE k = $1';
SELECT * FROM same('INSERT INTO t (k, a, n) SELECT k, a, latest.before(k) FROM s WHERE k IS NOT NULL ON CONFLICT (k) DO UPDATE SET a = excluded.a, n = excluded.n');
SELECT * FROM same('INSERT INTO t (k, a, n) SELECT k, nullif(a, 61), 0 FROM s WHERE k IS NOT NULL ON CONFLICT (k) DO UPDATE SET n = excluded.a', 'ALTER TABLE t ALTER n SET NOT NULL');
SELECT letters();
ALTER TABLE t ALTER n DROP NOT NULL;
-- a record that hits itself: the stream is scanned again for each row of another table
CREATE TABLE dim (k text, b text);
INSERT INTO dim VALUES ('twice', 'b1'), ('twice', 'b1'), ('once', 'b2');
TRUNCATE t;
SELECT hybridiot.create_pipeline('p', 'INSERT INTO t (k, a) SELECT d.k, q.a FROM dim d, LATERAL (SELECT a FROM s WHERE s.b = d.b LIMIT 1) q ON CONFLICT (k) DO UPDATE SET a = excluded.a', enabled => false);
SELECT hybridiot.run_pipeline('p');
SELECT sqlstate, count(*) > 0 AS some FROM hybridiot.dead_letter WHERE pipeline = 'p' GROUP BY 1;
SELECT hybridiot.drop_pipeline('p');
-- a column that is gone
SELECT * FROM same(:'plain' || :'whole');

DROP SCHEMA latest CASCADE;
DROP SERVER latest_log CASCADE;
