-- Conditions on metadata columns become seeks: what is read, and that the rows are right.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS hybridiot;
RESET client_min_messages;
SET timezone = 'UTC';
SET datestyle = 'ISO, MDY';
\set SHOW_CONTEXT never
CREATE SERVER archive FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (transport 'table');
-- three partitions of 2,000 records, a second apart
CREATE TABLE log (partition int, "offset" bigint, "timestamp" timestamptz, key bytea, value bytea, headers jsonb);
INSERT INTO log SELECT p, n, timestamptz '2026-01-01Z' + n * interval '1 s', NULL, convert_to('{"n": ' || n || '}', 'UTF8'), NULL
  FROM generate_series(0, 2) AS p, generate_series(0, 1999) AS n;
CREATE INDEX ON log (partition, "offset");
ANALYZE log;
CREATE FOREIGN TABLE s (n int, topic text OPTIONS (metadata 'topic'), part int OPTIONS (metadata 'partition'), pos bigint OPTIONS (metadata 'offset'),
  at timestamptz OPTIONS (metadata 'timestamp')) SERVER archive OPTIONS (topic 't', source 'public.log');

CREATE FUNCTION look(query text, OUT rows bigint, OUT read bigint, OUT seeks text) LANGUAGE plpgsql AS $$
DECLARE
  plan jsonb;
BEGIN
  EXECUTE 'EXPLAIN (ANALYZE, FORMAT JSON, TIMING OFF, COSTS OFF) ' || query INTO plan;
  rows := (plan #>> '{0,Plan,Actual Rows}')::numeric;
  SELECT sum(r[1]::bigint) INTO read FROM regexp_matches(plan::text, '"Records Read": (\d+)', 'g') r;
  seeks := substring(plan::text FROM '"Seeks": "([^"]*)"');
END $$;

SELECT condition, l.* FROM (VALUES
  ('true'), ('part = 1'), ('part >= 1 AND part < 2'), ('1 = part'), ('part = 1::smallint'), ('part = 7'), ('part = -1'), ('part <> 1'),
  ('pos = 5'), ('pos BETWEEN 10 AND 19'), ('pos >= 1999'), ('pos > 9223372036854775806'), ('pos < 0'), ('part = 2 AND pos >= 1990'), ('pos > 5 AND pos < 5'),
  ('part IN (0, 2) AND pos < 10'), ('part IN (0, 2) AND part IN (2, 1) AND pos < 10'), ('part = ANY (ARRAY[1, NULL, 99999999999]) AND pos < 10'),
  ('pos IN (3, 7, NULL) AND part = 0'), ('pos = ANY (NULL::bigint[])'), ('part = ANY (ARRAY[NULL]::int[])'), ('part = ANY (''{}''::int[])'), ('pos = ANY (ARRAY[5, 9]::smallint[])'),
  ('pos NOT IN (1, 2) AND part = 0 AND pos < 10'), ('part > ANY (ARRAY[1]) AND pos < 10'), ('part = 1 OR pos < 5'), ('part IS NULL'), ('NOT part = 0 AND pos < 10'), ('part = NULL'), ('part::numeric = 1 AND pos < 10'),
  ('at >= ''2026-01-01 00:33:10Z'''), ('at > ''2026-01-01 00:33:10Z'' AND part = 0'), ('at = ''2026-01-01 00:33:10Z'' AND part = 0'), ('at < ''2026-01-01 00:00:10Z'''), ('at >= ''infinity'''), ('at > ''-infinity'' AND pos < 10'),
  ('at >= date ''2026-01-02'''), ('at >= timestamp ''2026-01-01 00:33:19'''), ('at >= date ''infinity'''), ('at IN (''2026-01-01 00:33:10Z'', ''2026-01-01 00:33:18Z'') AND part = 0'),
  ('at > now() - interval ''1 s'' AND at > now() + interval ''1000 years'''), ('at > clock_timestamp() AND pos < 10'),
  ('topic = ''t'' AND pos < 10'), ('topic = ''u'''), ('topic IN (''u'', ''t'') AND pos < 10'), ('topic > ''u'' AND pos < 10'), ('topic = ANY (''{}''::text[])')
) AS c (condition), LATERAL look('SELECT n FROM s WHERE ' || condition) AS l;

-- whatever is read, the rows are those of the table
SELECT count(*), sum(n), min(at), max(at) FROM s WHERE part IN (0, 1) AND pos BETWEEN 10 AND 19 AND at > '2026-01-01 00:00:12Z';

-- LIMIT stops early; only metadata needs no payload
SELECT * FROM look('SELECT n FROM s LIMIT 5');
SELECT * FROM look('SELECT pos FROM s WHERE part = 1 ORDER BY pos DESC LIMIT 1');

-- parameters, of prepared statements and of joins
PREPARE tail(int, bigint) AS SELECT count(*), min(n) FROM s WHERE part = $1 AND pos >= $2;
EXECUTE tail(1, 1990);
EXECUTE tail(NULL, 1990);
SET plan_cache_mode = force_generic_plan;
EXPLAIN (COSTS OFF) EXECUTE tail(1, 1990);
EXECUTE tail(1, 1990);
RESET plan_cache_mode;
CREATE TABLE wanted (partition int, "offset" bigint);
INSERT INTO wanted VALUES (0, 17), (2, 1999), (1, NULL), (5, 1);
ANALYZE wanted;
SELECT * FROM look('SELECT n FROM wanted w JOIN s ON s.part = w.partition AND s.pos = w."offset"');
SELECT w.*, s.n FROM wanted w LEFT JOIN s ON s.part = w.partition AND s.pos = w."offset" ORDER BY 1, 2;
SELECT * FROM look('SELECT w.*, l.n FROM wanted w, LATERAL (SELECT n FROM s WHERE s.part = w.partition AND s.pos <= w."offset" ORDER BY pos DESC LIMIT 3) l');
SELECT w.partition, l.n FROM wanted w, LATERAL (SELECT n FROM s WHERE s.part = w.partition AND s.pos BETWEEN w."offset" - 1 AND w."offset" ORDER BY pos DESC) l ORDER BY 1, 2;
SELECT * FROM look('SELECT (SELECT n FROM s WHERE s.part = 0 AND s.pos = g) FROM generate_series(1, 3) g');
-- not for a large other side
EXPLAIN (COSTS OFF) SELECT count(*) FROM log l JOIN s ON s.part = l.partition AND s.pos = l."offset";

-- whole rows, system columns, outer joins, order
SELECT s, s.ctid, s.tableoid::regclass FROM s WHERE part = 1 AND pos < 2 ORDER BY pos DESC;
SELECT count(*), count(a.n), count(b.n) FROM (SELECT * FROM s WHERE part = 0 AND pos < 5) a FULL JOIN (SELECT * FROM s WHERE part = 1 AND pos BETWEEN 3 AND 9) b USING (n);
SELECT xmin FROM s WHERE pos = 1;

DROP SERVER archive CASCADE;
DROP TABLE log, wanted;
DROP FUNCTION look;
