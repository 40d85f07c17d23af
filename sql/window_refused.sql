-- What a windowed pipeline cannot run is refused when it is created, with a hint.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS hybridiot;
CREATE SCHEMA window_refused;
SET search_path = window_refused, public;
SET timezone = 'UTC';

CREATE SERVER window_refused FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (transport 'table');
CREATE TABLE log (partition int, "offset" bigint, "timestamp" timestamptz, key bytea, value bytea, headers jsonb);
CREATE FOREIGN TABLE s (device text, ts timestamptz, temp float8, other timestamptz,
	at timestamptz OPTIONS (metadata 'timestamp'))
	SERVER window_refused OPTIONS (topic 'log', source 'window_refused.log', format 'json', event_time 'ts');
CREATE FOREIGN TABLE s2 (device text, ts timestamptz)
	SERVER window_refused OPTIONS (topic 'log', source 'window_refused.log', format 'json', event_time 'ts');
-- without event_time: the log's own timestamp
CREATE FOREIGN TABLE plain (device text, ts timestamptz, at timestamptz OPTIONS (metadata 'timestamp'))
	SERVER window_refused OPTIONS (topic 'log', source 'window_refused.log', format 'json');
CREATE FOREIGN TABLE compacted (key text OPTIONS (metadata 'key'), at timestamptz OPTIONS (metadata 'timestamp'))
	SERVER window_refused OPTIONS (topic 'log', source 'window_refused.log', format 'json', compacted 'true');
CREATE TABLE d (device text PRIMARY KEY, site int);
CREATE TABLE t (during tstzrange NOT NULL, k text, n numeric, PRIMARY KEY (during, k));
CREATE TABLE loose (during tstzrange, k text, n numeric, UNIQUE (during, k));
CREATE TYPE pair AS (a int, b bit(3));
CREATE AGGREGATE no_combine (float8) (sfunc = float8pl, stype = float8);

CREATE FUNCTION try(statement text, emit text DEFAULT 'final', keep_closed interval DEFAULT '0', workers int DEFAULT 1)
RETURNS TABLE (refused text) LANGUAGE plpgsql AS $$
DECLARE state text; message text; detail text; hint text;
BEGIN
	PERFORM hybridiot.create_pipeline('try', statement, emit => emit, keep_closed => keep_closed, workers => workers, enabled => false);
	PERFORM hybridiot.drop_pipeline('try');
	RETURN QUERY VALUES ('accepted');
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
	RETURN QUERY SELECT v FROM (VALUES (state || ': ' || message), ('DETAIL: ' || nullif(detail, '')), ('HINT: ' || nullif(hint, ''))) AS x (v) WHERE v IS NOT NULL;
END $$;
\pset tuples_only on
\pset format unaligned

-- the model of all that follows
SELECT try($$INSERT INTO t SELECT hybridiot.tumble(ts, '10 s'), device, count(*) FROM s GROUP BY 1, 2$$);


-- the statement
SELECT try($$SELECT hybridiot.tumble(ts, '10 s'), device, count(*) FROM s GROUP BY 1, 2$$);
SELECT try($$WITH x AS (SELECT 1) INSERT INTO t SELECT hybridiot.tumble(ts, '10 s'), device, count(*) FROM s GROUP BY 1, 2$$);
SELECT try($$INSERT INTO t SELECT hybridiot.tumble(ts, '10 s'), device, count(*) FROM s GROUP BY 1, 2 UNION ALL SELECT NULL, NULL, NULL$$);
SELECT try($$INSERT INTO t SELECT hybridiot.tumble(ts, '10 s'), device, sum(count(*)) OVER () FROM s GROUP BY 1, 2$$);
SELECT try($$INSERT INTO t SELECT DISTINCT hybridiot.tumble(ts, '10 s'), device, count(*) FROM s GROUP BY 1, 2$$);
SELECT try($$INSERT INTO t SELECT hybridiot.tumble(ts, '10 s'), device, count(*) FROM s GROUP BY 1, 2 ORDER BY 3$$);
SELECT try($$INSERT INTO t SELECT hybridiot.tumble(ts, '10 s'), device, count(*) FROM s GROUP BY 1, 2 LIMIT 1$$);
SELECT try($$INSERT INTO t SELECT hybridiot.tumble(ts, '10 s'), device, count(*) FROM s GROUP BY GROUPING SETS ((1, 2), (1))$$);
SELECT try($$INSERT INTO t SELECT hybridiot.tumble(ts, '10 s'), device, grouping(device) FROM s GROUP BY 1, 2$$);
SELECT try($$INSERT INTO t SELECT hybridiot.tumble(ts, '10 s'), d.site, count(*) FROM s JOIN d USING (device) GROUP BY 1, d.device$$);

-- where the stream stands
SELECT try($$INSERT INTO t SELECT hybridiot.tumble(s.ts, '10 s'), s.device, count(*) FROM s JOIN s2 USING (device) GROUP BY 1, 2$$);
SELECT try($$INSERT INTO t SELECT hybridiot.tumble(s.ts, '10 s'), s.device, count(*) FROM s JOIN s AS again USING (device) GROUP BY 1, 2$$);
SELECT try($$INSERT INTO t SELECT hybridiot.tumble(x.ts, '10 s'), x.device, count(*) FROM (SELECT * FROM s) AS x GROUP BY 1, 2$$);
SELECT try($$INSERT INTO t SELECT hybridiot.tumble(s.ts, '10 s'), d.device, count(*) FROM d LEFT JOIN s USING (device) GROUP BY 1, 2$$);
SELECT try($$INSERT INTO t SELECT hybridiot.tumble(s.ts, '10 s'), d.device, count(*) FROM s FULL JOIN d USING (device) GROUP BY 1, 2$$);
SELECT try($$INSERT INTO t SELECT hybridiot.tumble(j.ts, '10 s'), j.device, count(*) FROM (s JOIN d USING (device)) AS j GROUP BY 1, 2$$);
SELECT try($$INSERT INTO t SELECT hybridiot.tumble(ts, '10 s'), device, count(ctid) FROM s GROUP BY 1, 2$$);
SELECT try($$INSERT INTO t SELECT hybridiot.tumble(at, '10 s'), key, count(*) FROM compacted GROUP BY 1, 2$$);

-- the window
SELECT try($$INSERT INTO t SELECT NULL, device, count(*) FROM s GROUP BY lower(hybridiot.tumble(ts, '10 s')), device$$);
SELECT try($$INSERT INTO t SELECT hybridiot.tumble(ts, '10 s'), device, count(*) FROM s GROUP BY 1, 2, hybridiot.tumble(ts, '20 s')$$);
SELECT try($$INSERT INTO t SELECT hybridiot.tumble(other, '10 s'), device, count(*) FROM s GROUP BY 1, 2$$);
SELECT try($$INSERT INTO t SELECT hybridiot.tumble(at, '10 s'), device, count(*) FROM s GROUP BY 1, 2$$);
SELECT try($$INSERT INTO t SELECT hybridiot.tumble(ts + '1 s', '10 s'), device, count(*) FROM s GROUP BY 1, 2$$);
SELECT try($$INSERT INTO t SELECT hybridiot.tumble(ts, '10 s'), device, count(*) FROM plain GROUP BY 1, 2$$);
SELECT try($$INSERT INTO t SELECT hybridiot.tumble(at, '10 s'), device, count(*) FROM plain GROUP BY 1, 2$$);
SELECT try($$INSERT INTO t SELECT hybridiot.tumble(ts, temp * interval '1 s'), device, count(*) FROM s GROUP BY 1, 2$$);
SELECT try($$INSERT INTO t SELECT hybridiot.tumble(ts, '10 s', other), device, count(*) FROM s GROUP BY 1, 2$$);
SELECT try($$INSERT INTO t SELECT hybridiot.tumble(ts, NULL), device, count(*) FROM s GROUP BY 1, 2$$);
SELECT try($$INSERT INTO t SELECT hybridiot.tumble(ts, '1 month'), device, count(*) FROM s GROUP BY 1, 2$$);
SELECT try($$INSERT INTO t SELECT hybridiot.tumble(ts, '0'), device, count(*) FROM s GROUP BY 1, 2$$);
SELECT try($$INSERT INTO t SELECT hybridiot.tumble(ts, '1 s', 'infinity'), device, count(*) FROM s GROUP BY 1, 2$$);
SELECT try($$INSERT INTO t SELECT hybridiot.tumble(origin => '2024-01-01', ts => ts, size => make_interval(secs => 7)), device, count(*) FROM s GROUP BY 1, 2$$);

-- keys and aggregates
SELECT try($$INSERT INTO t SELECT hybridiot.tumble(ts, '10 s'), NULL, count(*) FROM s GROUP BY 1, ROW(device, temp)$$);
SELECT try($$INSERT INTO t SELECT hybridiot.tumble(ts, '10 s'), temp::int::bit(8)::text, count(*) FROM s GROUP BY 1, temp::int::bit(8)$$);
SELECT try($$INSERT INTO t SELECT hybridiot.tumble(ts, '10 s'), device, count(DISTINCT temp) FROM s GROUP BY 1, 2$$);
SELECT try($$INSERT INTO t SELECT hybridiot.tumble(ts, '10 s'), device, max(temp ORDER BY temp) FROM s GROUP BY 1, 2$$);
SELECT try($$INSERT INTO t SELECT hybridiot.tumble(ts, '10 s'), device, percentile_cont(0.5) WITHIN GROUP (ORDER BY temp) FROM s GROUP BY 1, 2$$);
SELECT try($$INSERT INTO t SELECT hybridiot.tumble(ts, '10 s'), device, rank(1::float8) WITHIN GROUP (ORDER BY temp) FROM s GROUP BY 1, 2$$);
SELECT try($$INSERT INTO t SELECT hybridiot.tumble(ts, '10 s'), jsonb_agg(temp)::text, 1 FROM s GROUP BY 1$$);
SELECT try($$INSERT INTO t SELECT hybridiot.tumble(ts, '10 s'), device, no_combine(temp) FROM s GROUP BY 1, 2$$);

-- volatile functions
SELECT try($$INSERT INTO t SELECT hybridiot.tumble(ts, '10 s'), device, count(*) FROM s WHERE random() < 2 GROUP BY 1, 2$$);
SELECT try($$INSERT INTO t SELECT hybridiot.tumble(ts, '10 s'), random()::text, count(*) FROM s GROUP BY 1, 2$$);
SELECT try($$INSERT INTO t SELECT hybridiot.tumble(ts, '10 s'), device, max(random()) FROM s GROUP BY 1, 2$$);
SELECT try($$INSERT INTO t SELECT hybridiot.tumble(ts, '10 s'), device, count(*) FILTER (WHERE random() < 2) FROM s GROUP BY 1, 2$$);
SELECT try($$INSERT INTO t SELECT hybridiot.tumble(ts, '10 s'), device, random() FROM s GROUP BY 1, 2$$);
SELECT try($$INSERT INTO t SELECT hybridiot.tumble(ts, '10 s'), device, random() FROM s GROUP BY 1, 2 ON CONFLICT (during, k) DO UPDATE SET n = excluded.n$$, emit => 'changes');

-- emit 'changes'
SELECT try($$INSERT INTO t SELECT hybridiot.tumble(ts, '10 s'), device, count(*) FROM s GROUP BY 1, 2 ON CONFLICT (during, k) DO UPDATE SET n = excluded.n$$, emit => 'changes');
SELECT try($$INSERT INTO t SELECT hybridiot.tumble(ts, '10 s'), device, count(*) FROM s GROUP BY 1, 2$$, emit => 'changes');
SELECT try($$INSERT INTO t SELECT hybridiot.tumble(ts, '10 s'), device, count(*) FROM s GROUP BY 1, 2 ON CONFLICT (during, k) DO NOTHING$$, emit => 'changes');
SELECT try($$INSERT INTO t SELECT hybridiot.tumble(ts, '10 s'), device, count(*) FROM s GROUP BY 1, 2 ON CONFLICT ON CONSTRAINT t_pkey DO UPDATE SET n = excluded.n$$, emit => 'changes');
SELECT try($$INSERT INTO t SELECT hybridiot.tumble(ts, '10 s'), device, count(*) FROM s GROUP BY 1, 2 ON CONFLICT (during, k) DO UPDATE SET n = excluded.n WHERE excluded.n > 1$$, emit => 'changes');
SELECT try($$INSERT INTO t SELECT hybridiot.tumble(ts, '10 s'), device, count(*) FROM s GROUP BY 1, 2 ON CONFLICT (during, k) DO UPDATE SET n = t.n + excluded.n$$, emit => 'changes');
SELECT try($$INSERT INTO t SELECT hybridiot.tumble(ts, '10 s'), device, count(*) FROM s GROUP BY 1, 2 ON CONFLICT (during, k) DO UPDATE SET n = (SELECT count(*) FROM d)$$, emit => 'changes');
SELECT try($$INSERT INTO t SELECT hybridiot.tumble(ts, '10 s'), device, count(*) FROM s GROUP BY 1, 2 ON CONFLICT (during, k) DO UPDATE SET k = excluded.k$$, emit => 'changes');
SELECT try($$INSERT INTO t SELECT hybridiot.tumble(ts, '10 s'), device || '', count(*) FROM s GROUP BY 1, device ON CONFLICT (during, k) DO UPDATE SET n = excluded.n$$, emit => 'changes');
SELECT try($$INSERT INTO t SELECT hybridiot.tumble(ts, '10 s'), device, count(*) FROM s GROUP BY 1, 2, temp ON CONFLICT (during, k) DO UPDATE SET n = excluded.n$$, emit => 'changes');
SELECT try($$INSERT INTO loose SELECT hybridiot.tumble(ts, '10 s'), device, count(*) FROM s GROUP BY 1, 2 ON CONFLICT (during, k) DO UPDATE SET n = excluded.n$$, emit => 'changes');
SELECT try($$INSERT INTO t SELECT hybridiot.tumble(ts, '10 s'), device, generate_series(1, 2) FROM s GROUP BY 1, 2 ON CONFLICT (during, k) DO UPDATE SET n = excluded.n$$, emit => 'changes');

-- options
SELECT try($$INSERT INTO t SELECT hybridiot.tumble(ts, '10 s'), device, count(*) FROM s GROUP BY 1, 2$$, keep_closed => '1 h');
SELECT try($$INSERT INTO t SELECT hybridiot.tumble(ts, '10 s'), device, count(*) FROM s GROUP BY 1, 2$$, workers => 2);

-- the owner's rights
CREATE ROLE window_refused_user;
GRANT USAGE ON SCHEMA window_refused TO window_refused_user;
GRANT USAGE ON FOREIGN SERVER window_refused TO window_refused_user;
GRANT SELECT ON s, log TO window_refused_user;
GRANT INSERT, UPDATE, SELECT ON t TO window_refused_user;
CREATE AGGREGATE secret_sum (float8) (sfunc = float8pl, stype = float8, combinefunc = float8pl, initcond = 0);
REVOKE EXECUTE ON FUNCTION secret_sum(float8) FROM PUBLIC;
SET ROLE window_refused_user;
SELECT try($$INSERT INTO t SELECT hybridiot.tumble(ts, '10 s'), device, count(*) FROM s GROUP BY 1, 2 ON CONFLICT (during, k) DO UPDATE SET n = excluded.n$$, emit => 'changes');
SELECT try($$INSERT INTO t SELECT hybridiot.tumble(ts, '10 s'), device, secret_sum(temp) FROM s GROUP BY 1, 2$$);
RESET ROLE;

DROP SCHEMA window_refused CASCADE;
DROP SERVER window_refused CASCADE;
DROP ROLE window_refused_user;
