-- Group keys of any type and expression; FILTER, HAVING and expressions over aggregates: the rows are those of plain SQL.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS hybridiot;
CREATE SCHEMA window_keys;
CREATE EXTENSION citext SCHEMA window_keys;
SET search_path = window_keys, public;
SET timezone = 'UTC';

CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE TYPE place AS (floor int, room text);
CREATE TYPE bits AS (a int, b bit(3));
CREATE DOMAIN percent AS int CHECK (value BETWEEN 0 AND 100);
CREATE COLLATION blind (provider = icu, locale = 'und-u-ks-level2', deterministic = false);

CREATE SERVER window_keys FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (transport 'table');
CREATE TABLE log (partition int, "offset" bigint, "timestamp" timestamptz, key bytea, value bytea, headers jsonb);
CREATE FOREIGN TABLE s (ts timestamptz, n int, temp float8, word text, decimal numeric, js jsonb, ints int[], mood mood, share percent)
	SERVER window_keys OPTIONS (topic 'log', source 'window_keys.log', format 'json', event_time 'ts');
-- values that are equal and do not look so; every key is null for some
INSERT INTO log SELECT 0, i, NULL, NULL, convert_to(json_build_object(
	'ts', timestamptz '2024-01-01' + i * interval '1 s', 'n', i, 'temp', CASE WHEN i % 7 > 0 THEN i * 37 % 101 END,
	'word', (ARRAY['abc', 'ABC', 'aBc', 'z', 'Z', NULL, '', 'straße', 'STRASSE', 'é'])[i % 10 + 1],
	'decimal', (ARRAY['1.0', '1.00', '1', '-0', '0.000', '1e2', '100', NULL, 'NaN', 'Infinity'])[i % 10 + 1],
	'js', (ARRAY['{"a": 1, "b": [2]}', '{"b": [2], "a": 1.0}', '{"a": 1}', 'null', NULL, '[]', '"x"', '1.0', '1', 'true'])[i * 3 % 10 + 1]::json,
	'ints', (ARRAY['[1, 2]', '[1, 2]', '[2, 1]', '[]', NULL, '[null]', '[null, 1]'])[i % 7 + 1]::json,
	'mood', (ARRAY['sad', 'ok', 'happy', NULL])[i % 4 + 1], 'share', i % 3 * 50)::text, 'UTF8'), NULL
FROM generate_series(0, 399) AS i;

-- One pipeline for each query, in slices, so that keys go through the table where groups are kept; STREAM is the stream.
CREATE FUNCTION compare(query text) RETURNS TABLE (rows bigint, differ bigint, refused text, hint text) LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE 'CREATE TABLE target AS ' || replace(query, 'STREAM', 's') || ' LIMIT 0';
	BEGIN
		PERFORM hybridiot.create_pipeline('keys', 'INSERT INTO target ' || replace(query, 'STREAM', 's'), enabled => false);
	EXCEPTION WHEN OTHERS THEN
		GET STACKED DIAGNOSTICS refused = MESSAGE_TEXT, hint = PG_EXCEPTION_HINT;
		DROP TABLE target;
		RETURN NEXT;
		RETURN;
	END;
	PERFORM hybridiot.run_pipeline('keys', 61, wall_clock => '2024-01-01 01:00') FROM generate_series(1, 7);
	PERFORM hybridiot.run_pipeline('keys', wall_clock => '2024-01-01 02:00');
	SELECT count(*) INTO rows FROM target;
	EXECUTE format('SELECT count(*) FROM ((SELECT * FROM target EXCEPT ALL %1$s) UNION ALL (%1$s EXCEPT ALL SELECT * FROM target)) AS x',
		replace(query, 'STREAM', 's')) INTO differ;
	PERFORM hybridiot.drop_pipeline('keys');
	DROP TABLE target;
	RETURN NEXT;
END $$;

SELECT key, c.* FROM (VALUES
	-- equal values that do not look the same: compared as the type compares
	('word'), ('word COLLATE blind'), ('word::citext'), ('word::char(8)'), ('word::name'), ('decimal'), ('decimal::float8'),
	('js'), ('ints'), ('mood'), ('share'),
	-- expressions
	('n % 5'), ('lower(word)'), ('n IS NULL'), ('CASE WHEN n % 2 = 0 THEN word END'), ('js -> ''a'''), ('js ->> ''a'''), ('ints[1]'), ('coalesce(word, mood::text)'),
	('''constant'''), ('NULL::text'), ('(SELECT max(v) FROM (VALUES (n % 3)) AS v (v))'),
	-- other types
	('n::int2'), ('n % 9 = 0'), ('ts::date'), ('date_trunc(''minute'', ts)::time'), ('make_interval(secs => n % 4)'), ('md5(word)::uuid'), ('int4range(n % 5, 7)'),
	('int4multirange(int4range(n % 5, 7))'), ('(''10.0.0.'' || n % 4)::inet'), ('convert_to(word, ''UTF8'')'), ('(n % 4)::oid'), ('ROW(n % 4, word)::place'),
	('ARRAY[ROW(n % 4, word)::place]'), ('ARRAY[word]'), ('ARRAY[js]'), ('(n % 4)::text::"char"'), ('ts AT TIME ZONE ''Europe/Berlin'' > ''2024-01-01 01:03'''),
	('numrange(decimal, NULL)'),
	-- those that cannot be hashed, or stored
	('(n % 6)::money'), ('(n % 8)::bit(3)'), ('ROW(n, (n % 8)::bit(3))::bits'), ('ARRAY[(n % 8)::bit(3)]'), ('n::text::tsvector'),
	('makeaclitem(10, 10, ''SELECT'', n % 2 = 0)'), ('ARRAY[makeaclitem(10, 10, ''SELECT'', n % 2 = 0)]')
) AS k (key), compare(format('SELECT hybridiot.tumble(ts, ''100 s'') AS during, %s AS k, count(*), max(temp) FROM STREAM GROUP BY 1, 2',
	k.key)) AS c;

-- several keys, in any order, with nothing but nulls, and of long values
SELECT * FROM compare('SELECT mood, decimal * 2 AS d, hybridiot.tumble(ts, ''50 s'') AS w, word COLLATE blind AS b, count(*) FROM STREAM GROUP BY 4, 2, 3, 1');
SELECT * FROM compare('SELECT count(*), max(n) FROM STREAM GROUP BY hybridiot.tumble(ts, ''50 s''), word, NULL::int, js');
SELECT * FROM compare('SELECT hybridiot.tumble(ts, ''50 s'') AS w, repeat(coalesce(word, ''?''), 5000) AS long, count(*) FROM STREAM GROUP BY 1, 2');

-- FILTER, HAVING, expressions over aggregates, and several at a time
SELECT * FROM compare($$ SELECT hybridiot.tumble(ts, '50 s') AS w, word, count(*) FILTER (WHERE temp > 50) AS warm, sum(temp) FILTER (WHERE mood = 'sad') AS sad,
	max(n) FILTER (WHERE temp IS NULL) AS last, count(mood) FILTER (WHERE NULL::bool), max(n) - min(n) AS spread, sum(temp) / nullif(count(temp), 0) AS mean,
	upper(max(word)) || ':' || count(*) AS label, CASE WHEN bool_or(temp > 99) THEN 'hot' ELSE 'cold' END AS heat
	FROM STREAM GROUP BY 1, 2 HAVING count(*) > 4 AND max(temp) FILTER (WHERE n % 2 = 0) > 50 AND word IS NOT NULL $$);
SELECT * FROM compare($$ SELECT lower(hybridiot.tumble(ts, '50 s')) AS begins, n % 3 AS rest, round(regr_slope(temp, n)::numeric, 6) AS slope, round(stddev(temp)::numeric, 6) AS s,
	bit_or(n), every(temp > 0), sum(decimal) FILTER (WHERE decimal < 100), avg(n), round(corr(n, temp)::numeric, 6) AS c
	FROM STREAM WHERE share > 0 GROUP BY hybridiot.tumble(ts, '50 s'), n % 3 $$);
-- the window alone, a HAVING that nothing passes, a WHERE that nothing passes, no aggregate at all
SELECT * FROM compare($$ SELECT hybridiot.tumble(ts, '50 s') AS w, count(*) FROM STREAM GROUP BY 1 $$);
SELECT * FROM compare($$ SELECT hybridiot.tumble(ts, '50 s') AS w, count(*) FROM STREAM GROUP BY 1 HAVING count(*) > 1000 $$);
SELECT * FROM compare($$ SELECT hybridiot.tumble(ts, '50 s') AS w, count(*) FROM STREAM WHERE n < 0 GROUP BY 1 $$);
SELECT * FROM compare($$ SELECT hybridiot.tumble(ts, '50 s') AS w, word FROM STREAM GROUP BY 1, 2 $$);

-- emit 'changes' finds the row of a group as the target's columns compare
CREATE TABLE now (during tstzrange, word text COLLATE blind, decimal numeric, n bigint, PRIMARY KEY (during, word, decimal));
SELECT hybridiot.create_pipeline('now', $$ INSERT INTO now SELECT hybridiot.tumble(ts, '100 s'), word COLLATE blind, decimal, count(*) FROM s
	WHERE word IS NOT NULL AND decimal IS NOT NULL GROUP BY 1, 2, 3 HAVING max(n) < 396
	ON CONFLICT (during, word, decimal) DO UPDATE SET n = excluded.n $$, emit => 'changes', enabled => false);
SELECT count(hybridiot.run_pipeline('now', 61, wall_clock => '2024-01-01 01:00')) FROM generate_series(1, 7);
SELECT count(*), sum(n) FROM now;
SELECT hybridiot.run_pipeline('now', wall_clock => '2024-01-01 02:00');
SELECT during, word COLLATE blind, decimal, n FROM now EXCEPT ALL SELECT hybridiot.tumble(ts, '100 s'), word COLLATE blind, decimal, count(*) FROM s
	WHERE word IS NOT NULL AND decimal IS NOT NULL GROUP BY 1, 2, 3 HAVING max(n) < 396;
SELECT count(*), sum(n) FROM now;
SELECT hybridiot.drop_pipeline('now');

DROP SCHEMA window_keys CASCADE;
DROP SERVER window_keys CASCADE;
