-- Tables do not depend on where batches and runs end, and equal plain SQL over the records that counted.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS hybridiot;
CREATE SCHEMA window_batches;
SET search_path = window_batches, public;
SET timezone = 'UTC';

CREATE SERVER window_batches FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (transport 'table');
CREATE TABLE log (partition int, "offset" bigint, "timestamp" timestamptz, key bytea, value bytea, headers jsonb, PRIMARY KEY (partition, "offset"));
CREATE FOREIGN TABLE s (device text, ts timestamptz, temp float8, amount numeric,
	part int OPTIONS (metadata 'partition'), pos bigint OPTIONS (metadata 'offset'))
	SERVER window_batches OPTIONS (topic 'log', source 'window_batches.log', format 'json', event_time 'ts');
CREATE TABLE site (device text, site int);
INSERT INTO site SELECT 'd' || i, i % 3 FROM generate_series(0, 8) AS i UNION ALL SELECT 'd1', 7;

-- 1,500 records on 3 partitions: about one a second, up to 12 s out of order, some undecodable, some without a device
INSERT INTO log
SELECT i % 3, i / 3, NULL, NULL, convert_to(CASE
	WHEN i % 97 = 0 THEN '{"device": "d1", "ts": "yesterday-ish"}'
	ELSE jsonb_build_object('device', CASE WHEN i % 31 > 0 THEN 'd' || (i * 7919 % 10) END,
		'ts', timestamptz '2024-01-01' + interval '0.3 s' * i - interval '0.001 s' * (i::bigint * 104729 % 12000),
		'temp', i * 31 % 100, 'amount', round(i / 7.0, 2))::text END, 'UTF8'), NULL
FROM generate_series(0, 1499) AS i;

-- Create, run and drop the same pipeline for a batch size, in runs of so many records; its rows go to result.
CREATE TABLE result (batch_rows int, in_runs_of int, line text);
CREATE TABLE dead (batch_rows int, in_runs_of int, part int, pos bigint, reason text, during tstzrange);
CREATE TABLE open (batch_rows int, in_runs_of int, during tstzrange, records bigint);
CREATE FUNCTION feed(statement text, batch_rows int, in_runs_of int, lateness interval, emit text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	CREATE TABLE target (during tstzrange NOT NULL, k text NOT NULL, n bigint, total float8, amount numeric, UNIQUE (during, k));
	PERFORM hybridiot.create_pipeline('batches', statement, lateness => feed.lateness, emit => feed.emit, batch_rows => feed.batch_rows, enabled => false);
	FOR i IN 0 .. 1500 / in_runs_of LOOP
		PERFORM hybridiot.run_pipeline('batches', in_runs_of, wall_clock => '2024-01-01 00:10');
	END LOOP;
	INSERT INTO result SELECT feed.batch_rows, feed.in_runs_of, t::text FROM target t
		WHERE NOT EXISTS (SELECT FROM hybridiot.open_window o WHERE o.pipeline = 'batches' AND o.during = t.during);
	INSERT INTO dead SELECT feed.batch_rows, feed.in_runs_of, partition, "offset", reason, during FROM hybridiot.dead_letter WHERE pipeline = 'batches';
	INSERT INTO open SELECT feed.batch_rows, feed.in_runs_of, during, records FROM hybridiot.open_window WHERE pipeline = 'batches';
	PERFORM hybridiot.drop_pipeline('batches');
	DROP TABLE target;
END $$;

-- What plain SQL sees: the records as a table.
CREATE TABLE raw AS
SELECT r.device, r.ts, r.temp, r.amount, partition AS part, "offset" AS pos
FROM log, jsonb_to_record(convert_from(value, 'UTF8')::jsonb) AS r (device text, ts timestamptz, temp float8, amount numeric)
WHERE convert_from(value, 'UTF8') NOT LIKE '%ish"%';

-- All ways of cutting the log; then compare them with each other, and with what plain SQL says. The stream is written as STREAM.
CREATE FUNCTION compare(query text, lateness interval DEFAULT '0', emit text DEFAULT 'final')
RETURNS TABLE (rows bigint, dead_letters bigint, late bigint, differ_by_batch bigint, dead_differ bigint, open_differ bigint, differ_from_sql bigint)
LANGUAGE plpgsql AS $$
DECLARE
	statement text := 'INSERT INTO target ' || replace(query, 'STREAM', 's');
BEGIN
	TRUNCATE result, dead, open;
	IF emit = 'changes' THEN
		statement := statement || ' ON CONFLICT (during, k) DO UPDATE SET n = excluded.n, total = excluded.total, amount = excluded.amount';
	END IF;
	PERFORM feed(statement, b, r, compare.lateness, compare.emit) FROM (VALUES (1, 1500), (2, 1500), (10000, 1500), (10000, 100), (7, 101)) AS x (b, r);
	SELECT count(*) INTO rows FROM result WHERE batch_rows = 10000 AND in_runs_of = 1500;
	SELECT count(*), count(*) FILTER (WHERE reason = 'late') INTO dead_letters, late FROM dead WHERE batch_rows = 10000 AND in_runs_of = 1500;
	SELECT count(*) INTO differ_by_batch FROM (SELECT line FROM result GROUP BY line HAVING count(*) <> 5) AS x;
	SELECT count(*) INTO dead_differ FROM (SELECT part, pos, reason, dead.during FROM dead GROUP BY part, pos, reason, dead.during HAVING count(*) <> 5) AS x;
	SELECT count(*) INTO open_differ FROM (SELECT open.during, records FROM open GROUP BY open.during, records HAVING count(*) <> 5) AS x;
	CREATE TABLE target (during tstzrange, k text, n bigint, total float8, amount numeric);
	CREATE TABLE counted AS SELECT * FROM raw WHERE (part, pos) NOT IN (SELECT d.part, d.pos FROM dead d WHERE batch_rows = 1);
	EXECUTE 'INSERT INTO target ' || replace(query, 'STREAM', 'counted AS s');
	DELETE FROM target WHERE during IN (SELECT o.during FROM open o);
	SELECT count(*) INTO differ_from_sql FROM (
		(SELECT t::text FROM target t EXCEPT ALL SELECT line FROM result WHERE batch_rows = 1)
		UNION ALL
		(SELECT line FROM result WHERE batch_rows = 1 EXCEPT ALL SELECT t::text FROM target t)) AS x;
	DROP TABLE target, counted;
	RETURN NEXT;
END $$;

SELECT * FROM compare($$ SELECT hybridiot.tumble(ts, '10 s'), coalesce(device, '?'), count(*), sum(temp), sum(amount) FROM STREAM GROUP BY 1, 2 $$);
SELECT * FROM compare($$ SELECT hybridiot.tumble(ts, '10 s'), coalesce(device, '?'), count(*), sum(temp), sum(amount) FROM STREAM GROUP BY 1, 2 $$, lateness => '8 s');
SELECT * FROM compare($$ SELECT hybridiot.tumble(ts, '1 s'), coalesce(device, '?'), count(*), max(temp), avg(amount) FROM STREAM WHERE temp > 10 GROUP BY 1, 2 $$, lateness => '3 s');
SELECT * FROM compare($$ SELECT hybridiot.tumble(ts, '1 min'), 'all', count(*), min(temp), round(avg(amount), 6) FROM STREAM GROUP BY 1 HAVING count(*) > 5 $$);
-- a join that makes several rows of a record, and none
SELECT * FROM compare($$ SELECT hybridiot.tumble(ts, '7 s', '2024-01-01'), site::text, count(*) FILTER (WHERE temp < 50), sum(temp), max(amount)
	FROM STREAM JOIN site USING (device) GROUP BY 1, site $$, lateness => '2 s');

-- emit 'changes': after the close, the same rows; also with a HAVING that groups fail later on
CREATE TABLE emitted (emit text, line text);
CREATE FUNCTION final_rows(query text, emit text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM compare(query, '4 s', emit);
	INSERT INTO emitted SELECT emit, line FROM result WHERE batch_rows = 2;
END $$;
SELECT * FROM compare($$ SELECT hybridiot.tumble(ts, '10 s'), x.k, count(*), sum(temp), sum(amount)
	FROM STREAM, LATERAL (SELECT coalesce(device, '?') AS k) AS x GROUP BY 1, x.k $$, lateness => '4 s', emit => 'changes');
SELECT * FROM compare($$ SELECT hybridiot.tumble(ts, '10 s'), x.k, count(*), sum(temp), sum(amount)
	FROM STREAM, LATERAL (SELECT coalesce(device, '?') AS k) AS x GROUP BY 1, x.k HAVING max(temp) < 90 $$, lateness => '4 s', emit => 'changes');
SELECT final_rows($$ SELECT hybridiot.tumble(ts, '10 s'), x.k, count(*), sum(temp), sum(amount)
	FROM STREAM, LATERAL (SELECT coalesce(device, '?') AS k) AS x GROUP BY 1, x.k HAVING max(temp) < 90 $$, e) FROM (VALUES ('final'), ('changes')) AS v (e);
SELECT count(*) FROM (SELECT line FROM emitted WHERE emit = 'final' EXCEPT ALL SELECT line FROM emitted WHERE emit = 'changes') AS x;
SELECT count(*) FROM (SELECT line FROM emitted WHERE emit = 'changes' EXCEPT ALL SELECT line FROM emitted WHERE emit = 'final') AS x;

DROP SCHEMA window_batches CASCADE;
DROP SERVER window_batches CASCADE;
