-- verify_pipeline(): what a windowed pipeline wrote against plain SQL over its records.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS hybridiot;
CREATE SCHEMA verify;
SET search_path = verify, public;
SET timezone = 'UTC';
SET datestyle = 'ISO';

CREATE SERVER verify FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (transport 'table');
CREATE TABLE log (partition int, "offset" bigint, "timestamp" timestamptz, key bytea, value bytea, headers jsonb);
CREATE FOREIGN TABLE s (device text, ts timestamptz, temp float8, part int OPTIONS (metadata 'partition'))
	SERVER verify OPTIONS (topic 'log', source 'verify.log', format 'json', event_time 'ts');
-- a record of a partition, at a second from 2024-01-01 on; no time: a tombstone
CREATE FUNCTION put(partition int, second float8, device text DEFAULT 'a', temp float8 DEFAULT 1) RETURNS void LANGUAGE sql AS $$
	INSERT INTO log SELECT put.partition, (SELECT count(*) FROM log l WHERE l.partition = put.partition), '2024-01-01 00:00:05', NULL,
		convert_to(jsonb_build_object('device', device, 'ts', timestamptz '2024-01-01' + second * interval '1 s', 'temp', temp)::text, 'UTF8'), NULL $$;
-- What stands in for the stream. It holds all records that can be read; partition goes by the stream's name for it.
CREATE VIEW raw AS SELECT r.device, r.ts, r.temp, partition AS part, "offset", "timestamp"
	FROM log LEFT JOIN LATERAL jsonb_to_record(convert_from(value, 'UTF8')::jsonb) AS r (device text, ts timestamptz, temp float8) ON true;
CREATE FUNCTION sec(during tstzrange) RETURNS text IMMUTABLE STRICT LANGUAGE sql AS $$
	SELECT format('%s%s,%s%s', CASE WHEN lower_inc(during) THEN '[' ELSE '(' END, trim_scale(extract(epoch FROM lower(during) - '2024-01-01')),
		trim_scale(extract(epoch FROM upper(during) - '2024-01-01')), CASE WHEN upper_inc(during) THEN ']' ELSE ')' END) $$;
CREATE FUNCTION run(name name) RETURNS bigint LANGUAGE sql AS $$
	SELECT hybridiot.run_pipeline(name, wall_clock => timestamptz '2024-01-01 00:01') $$;
CREATE FUNCTION verify(name name, source regclass DEFAULT 'verify.raw') RETURNS TABLE (difference text, window_ text, columns jsonb) LANGUAGE sql AS $$
	SELECT v.difference, verify.sec(v.during), v.row - 'during' FROM hybridiot.verify_pipeline(name, source) AS v ORDER BY v.during, v.difference, v.row $$;
CREATE FUNCTION forget() RETURNS void LANGUAGE sql AS $$ TRUNCATE log $$;

-- Late records, open windows, null keys; the watermark is at 31, where the slower partition is.
CREATE TABLE plain (during tstzrange, device text, n bigint, total float8);
SELECT hybridiot.create_pipeline('plain', $$ INSERT INTO plain SELECT hybridiot.tumble(ts, '10 s'), device, count(*), sum(temp) FROM s GROUP BY 1, 2 $$, enabled => false);
SET client_min_messages = notice;
SELECT * FROM verify('plain');
SELECT put(0, 1), put(0, 2, 'b'), put(1, 3, 'b', 4), put(0, 12), put(1, 15), put(0, 3), put(0, 24, NULL), put(0, 35), put(1, 31, NULL), put(0, 50);
SELECT run('plain');
SELECT partition, "offset", sec(during) FROM hybridiot.dead_letter;
SELECT * FROM verify('plain');
-- records behind the position are not the pipeline's yet
SELECT put(0, 51), put(1, 4);
SELECT * FROM verify('plain');
-- a wrong row, one that is gone, one too many, one that is there twice, one without a window, and one of an open window
BEGIN;
UPDATE plain SET n = n + 1 WHERE device = 'b';
DELETE FROM plain WHERE device IS NULL;
INSERT INTO plain VALUES (tstzrange('2024-01-01', '2024-01-01 00:00:07'), 'x', 1, 1), (NULL, 'y', 1, NULL);
INSERT INTO plain SELECT * FROM plain WHERE during = '["2024-01-01 00:00:10+00","2024-01-01 00:00:20+00")';
INSERT INTO plain VALUES (tstzrange('2024-01-01 00:00:50+00', '2024-01-01 00:01:00+00'), 'z', 1, 1);
SELECT * FROM verify('plain');
ROLLBACK;
-- a record that the source has not, and a dead letter that is gone
BEGIN;
DELETE FROM log WHERE partition = 1 AND "offset" = 0;
SELECT * FROM verify('plain');
ROLLBACK;
BEGIN;
SELECT hybridiot.delete_dead_letters('plain', 'infinity');
SELECT * FROM verify('plain');
ROLLBACK;
-- the stream itself has no offsets; with them it can be read again
SELECT * FROM verify('plain', 's');
ALTER FOREIGN TABLE s ADD pos bigint OPTIONS (metadata 'offset');
SELECT * FROM verify('plain', 's');
ALTER FOREIGN TABLE s DROP pos;
SET client_min_messages = warning;
SELECT hybridiot.drop_pipeline('plain'), forget();

-- Every kind, with records that are late for some windows and not for others.
CREATE FUNCTION kinds() RETURNS TABLE (kind text, rows bigint, late bigint, differences bigint) LANGUAGE plpgsql AS $$
DECLARE
	froms text[] := ARRAY['s', 's, hybridiot.hop(ts, ''5 s'', ''2 s'') AS w', 's', 's'];
	windows text[] := ARRAY['hybridiot.tumble(ts, ''5 s'', ''2024-01-01 00:00:02'')', 'w', 'hybridiot.slide(ts, ''3 s'')', 'hybridiot.session(ts, ''2 s'')'];
BEGIN
	FOR i IN 1 .. 4 LOOP
		kind := substring(windows[i] || froms[i] FROM 'hybridiot.(\w+)');
		CREATE TABLE kinds (during tstzrange, device text, n bigint, total float8);
		PERFORM hybridiot.create_pipeline('kinds', format('INSERT INTO kinds SELECT %s, device, count(*), sum(temp) FROM %s GROUP BY 1, 2', windows[i], froms[i]),
			lateness => '3 s', idle_timeout => '0', batch_rows => i * 7, enabled => false);
		PERFORM hybridiot.run_pipeline('kinds', 50, wall_clock => '2024-01-01 00:02');
		PERFORM hybridiot.run_pipeline('kinds', wall_clock => '2024-01-01 00:02');
		SELECT count(*) INTO rows FROM kinds;
		SELECT count(*) INTO late FROM hybridiot.dead_letter;
		SELECT count(*) INTO differences FROM hybridiot.verify_pipeline('kinds', 'raw');
		RETURN NEXT;
		DELETE FROM kinds WHERE ctid = (SELECT ctid FROM kinds ORDER BY during DESC LIMIT 1);
		UPDATE kinds SET n = n + 1 WHERE ctid = (SELECT ctid FROM kinds ORDER BY during LIMIT 1);
		SELECT count(*) INTO differences FROM hybridiot.verify_pipeline('kinds', 'raw');
		kind := '  with two rows spoilt';
		RETURN NEXT;
		PERFORM hybridiot.drop_pipeline('kinds');
		DROP TABLE kinds;
	END LOOP;
END $$;
-- each device in one partition; most records are near the front of their time, some far behind
SELECT sum(length(put((i % 5 % 3)::int, round((i * 0.4 - ((i * 2654435761) % 1000 / 1000.0) ^ 4 * 12)::numeric, 1)::float8, nullif('d' || i % 5, 'd3'), i % 7)::text)) FROM generate_series(1::bigint, 200) AS i;
SELECT * FROM kinds();
SELECT forget();
-- a session that is over for its partition takes no part any more: 8 joins 10, and 3.5 joins both, past 4
CREATE TABLE sessions (during tstzrange, n bigint);
SELECT hybridiot.create_pipeline('sessions', $$ INSERT INTO sessions SELECT hybridiot.session(ts, '5 s'), count(*) FROM s GROUP BY 1 $$, enabled => false);
SELECT put(0, 4), put(0, 10), put(0, 8), put(0, 3.5), put(0, 20), put(0, 14), put(0, 15), put(0, 40), put(0, 46);
SELECT run('sessions');
SELECT sec(during), n FROM sessions ORDER BY during;
SELECT * FROM verify('sessions');
-- with a key in several partitions, the order in which they are read decides: one is told
TRUNCATE sessions;
SELECT put(1, 44), put(1, 60), put(0, 60);
SELECT hybridiot.seek_pipeline('sessions', 'earliest'), run('sessions');
SELECT sec(during), n FROM sessions ORDER BY during;
UPDATE sessions SET n = n + 1 WHERE lower(during) = '2024-01-01 00:00:15';
SELECT * FROM verify('sessions');
SELECT hybridiot.drop_pipeline('sessions'), forget();

-- Floating point is compared with a tolerance, all else exactly; what has no order as text.
CREATE TABLE floats (during tstzrange, device text, total float8, mean float8, small real, exact numeric, shape json);
SELECT hybridiot.create_pipeline('floats', $$ INSERT INTO floats
	SELECT hybridiot.tumble(ts, '10 s'), device, sum(temp), avg(temp), count(*) / 3.0, sum(temp::numeric), json_build_object('n', count(*)) FROM s GROUP BY 1, 2 $$, enabled => false);
SELECT put(0, 1, 'a', 0.1), put(0, 2, 'a', 0.2), put(0, 3, 'a', -0.3), put(0, 4, 'b', 1e20), put(0, 5, 'c', NULL), put(0, 6, 'd', 7), put(0, 7, 'e', 2), put(0, 11);
SELECT run('floats');
-- so little may be the order of addition
UPDATE floats SET total = 1e-17 WHERE device = 'a';
UPDATE floats SET total = 2.0000000001, small = small * 1.00001 WHERE device = 'e';
SELECT * FROM verify('floats');
UPDATE floats SET total = 2.00000001 WHERE device = 'e';
UPDATE floats SET exact = exact + 1e-30 WHERE device = 'a';
UPDATE floats SET mean = 'Infinity' WHERE device = 'b';
UPDATE floats SET total = 0 WHERE device = 'c';
UPDATE floats SET shape = '{"n" : 2}' WHERE device = 'd';
-- what the sums of a are depends on the order of addition, that is on the plan
SELECT difference, columns ->> 'device' AS device,
	columns - 'device' - 'small' - CASE difference WHEN 'missing' THEN '{mean,total}' ELSE '{}' END::text[] AS columns FROM verify('floats') ORDER BY 2, 1;
SELECT hybridiot.drop_pipeline('floats'), forget();

-- Records that were set aside: undecodable, of the future, rejected; rows that failed. The source may have them or not.
CREATE TABLE aside (during tstzrange, k int, j jsonb, ratio float8);
SELECT hybridiot.create_pipeline('aside', $$ INSERT INTO aside
	SELECT hybridiot.tumble(ts, '10 s'), length(device), to_jsonb(device), 1 / (min(temp) - 3) FROM s WHERE 1 / temp < 10 GROUP BY 1, 2, device HAVING 1 / (max(temp) - 4) < 10 $$, enabled => false);
SELECT put(0, 1), put(0, 2, 'bb', 2), put(0, 3, 'bad', 0), put(0, 4, 'fails', 3), put(0, 5, 'having', 4), put(0, 6, NULL, 3), put(0, 5000, 'future'), put(0, 7, '!'), put(0, 10);
UPDATE log SET value = '{"device": "?", "temp": 1}' WHERE "offset" = 7;
SELECT run('aside');
SELECT "offset", reason, sec(during), group_keys FROM hybridiot.dead_letter ORDER BY 1;
SELECT k, j, ratio FROM aside ORDER BY k;
SELECT * FROM verify('aside');
CREATE VIEW good AS SELECT * FROM raw WHERE "offset" NOT IN (SELECT d."offset" FROM hybridiot.dead_letter AS d WHERE d."offset" IS NOT NULL);
SELECT * FROM verify('aside', 'good');
UPDATE aside SET ratio = -0.5 WHERE k = 2;
SELECT * FROM verify('aside');
-- without the letter, what failed there fails here
BEGIN;
SELECT hybridiot.delete_dead_letters('aside', 'infinity');
SELECT * FROM hybridiot.verify_pipeline('aside', 'good');
ROLLBACK;
SELECT hybridiot.drop_pipeline('aside'), forget();

-- emit 'changes': rows of open windows are in the table, and no concern; nor is what is left of a row that failed later
CREATE TABLE changes (during tstzrange NOT NULL, device text NOT NULL, n numeric(3, 1), UNIQUE (during, device));
SELECT hybridiot.create_pipeline('changes', $$ INSERT INTO changes SELECT hybridiot.tumble(ts, '10 s'), device, 1.5 * sum(temp) FROM s GROUP BY 1, 2 HAVING count(*) < 4
	ON CONFLICT (during, device) DO UPDATE SET n = excluded.n $$, emit => 'changes', enabled => false);
SELECT put(0, 1), put(0, 2, 'b'), put(0, 3, 'b');
SELECT run('changes');
SELECT * FROM verify('changes');
SELECT put(0, 4, 'b'), put(0, 5, 'b'), put(0, 5, 'c', 1), put(0, 12);
SELECT run('changes');
SELECT put(0, 13, 'b', 2), put(0, 14, 'c'), put(0, 14, 'c');
SELECT run('changes');
SELECT put(0, 15, 'c', 1000), put(0, 20);
SELECT run('changes');
SELECT sec(during), device, n FROM changes ORDER BY 1, 2;
SELECT * FROM verify('changes');
UPDATE changes SET n = 99 WHERE device = 'c';
SELECT * FROM verify('changes');
SELECT hybridiot.drop_pipeline('changes'), forget();

-- Joins, sublinks, WITH, lateral: tables are read as they are now, of which one is warned; a validity range is as of event time.
CREATE TABLE device (device text, site numeric);
INSERT INTO device VALUES ('a', 1.0), ('b', 1.00), ('c', NULL), ('d', 2), ('d', 3);
CREATE TABLE valid (device text, valid tstzrange, owner text);
INSERT INTO valid VALUES ('a', '[2024-01-01, 2024-01-01 00:00:02)', 'x'), ('a', '[2024-01-01 00:00:02,)', 'y'), ('b', '(,)', 'z');
CREATE TABLE joined (starts timestamptz, site numeric, kind text, n bigint, devices bigint, at timestamptz DEFAULT now());
SELECT hybridiot.create_pipeline('joined', $$ INSERT INTO joined (n, starts, site, kind, devices)
	WITH known AS (SELECT DISTINCT device FROM device)
	SELECT count(*) FILTER (WHERE l.double > 1), lower(hybridiot.tumble(r.ts, '10 s')), d.site, upper(left(device, 1)), (SELECT count(*) FROM known)
	FROM s AS r (device, ts, degrees) LEFT JOIN device d USING (device) CROSS JOIN LATERAL (SELECT r.degrees * 2 AS double) AS l
	WHERE device <> 'nobody' AND (device IN (SELECT k.device FROM known AS k) OR device = 'e')
	GROUP BY hybridiot.tumble(r.ts, '10 s'), d.site, upper(left(device, 1)) HAVING count(*) > (SELECT min(0) FROM known) $$, enabled => false);
SELECT put(0, 1), put(0, 2, 'b'), put(0, 3, 'c', 0), put(0, 4, 'd'), put(0, 4, 'e'), put(0, 4, 'nobody'), put(0, 5, 'f'), put(0, 10);
SELECT run('joined');
SELECT sec(tstzrange(starts, NULL)), site, kind, n, devices FROM joined ORDER BY site, kind;
SELECT * FROM verify('joined');
UPDATE joined SET n = 9 WHERE kind = 'C';
UPDATE device SET site = 4 WHERE site = 3;
SELECT * FROM verify('joined');
SELECT hybridiot.drop_pipeline('joined'), forget();
CREATE TABLE timed (ends timestamptz, owner text, n bigint);
SELECT hybridiot.create_pipeline('timed', $$ INSERT INTO timed SELECT upper(hybridiot.tumble(ts, '10 s')), v.owner, count(*) FROM s JOIN valid v ON v.device = s.device AND v.valid @> s.ts
	GROUP BY hybridiot.tumble(ts, '10 s'), 2 $$, enabled => false);
SELECT put(0, 1), put(0, 2), put(0, 3), put(0, 4, 'b'), put(0, 10);
SELECT run('timed');
SELECT sec(tstzrange(NULL, ends)), owner, n FROM timed ORDER BY 2;
UPDATE timed SET n = 9 WHERE owner = 'y';
SELECT * FROM verify('timed');
SELECT hybridiot.drop_pipeline('timed'), forget();

-- What nobody can compute again is left out, and never runs: volatile functions, the present time. Without a window in the table, too.
CREATE SEQUENCE calls;
CREATE TABLE partly (id bigint, n bigint, day text, at timestamptz);
SELECT hybridiot.create_pipeline('partly', $$ INSERT INTO partly SELECT nextval('verify.calls'), count(*), 'day ' || extract(day FROM lower(hybridiot.tumble(ts, '1 day'))), now()
	FROM s GROUP BY hybridiot.tumble(ts, '1 day') $$, enabled => false);
SELECT put(0, 1), put(0, 2), put(0, 86400);
SELECT hybridiot.run_pipeline('partly');
SET client_min_messages = notice;
SELECT * FROM verify('partly');
SET client_min_messages = warning;
UPDATE partly SET n = 3;
SELECT * FROM verify('partly');
SELECT last_value FROM calls;
SELECT hybridiot.drop_pipeline('partly'), forget();

-- Tombstones count at the log's time; the log's time as event time; columns that were dropped; a key that is called as ours are.
CREATE FOREIGN TABLE stamped (device text, gone int, at timestamptz OPTIONS (metadata 'timestamp'), "offset" int, "p q" int OPTIONS (metadata 'partition'))
	SERVER verify OPTIONS (topic 'log', source 'verify.log', format 'json');
ALTER FOREIGN TABLE stamped DROP gone;
CREATE VIEW stamped_raw AS SELECT device, "timestamp" AS at, part AS "p q", "offset" FROM raw;
CREATE TABLE tombs (during tstzrange, c1 int, k1 text, n bigint);
SELECT hybridiot.create_pipeline('tombs', $$ INSERT INTO tombs SELECT hybridiot.tumble(ts, '10 s'), part, device, count(*) FROM s GROUP BY 1, 2, 3 $$, enabled => false);
SELECT hybridiot.create_pipeline('stamped', $$ INSERT INTO tombs (during, k1, n) SELECT hybridiot.tumble(at, '1 s'), device, count(*) FROM stamped AS "hybridiot feed" GROUP BY 1, 2 $$, enabled => false);
SELECT put(0, 1), put(0, 2), put(0, 11);
UPDATE log SET value = NULL WHERE "offset" = 1;
SELECT run('tombs');
SELECT sec(during), c1, k1, n FROM tombs ORDER BY 2;
SELECT * FROM verify('tombs');
UPDATE log SET "timestamp" = '2024-01-01 00:00:09' WHERE "offset" = 2;
TRUNCATE tombs;
SELECT run('stamped');
SELECT sec(during), c1, k1, n FROM tombs ORDER BY 3;
SELECT * FROM verify('stamped', 'stamped_raw');
SELECT hybridiot.drop_pipeline('tombs'), hybridiot.drop_pipeline('stamped');

-- Where it began: at a time, at offsets, anew after a seek; letters of an earlier life do not count. At the end: nobody knows.
SELECT forget();
CREATE TABLE began (during tstzrange, n bigint);
SELECT hybridiot.create_pipeline('began', $$ INSERT INTO began SELECT hybridiot.tumble(ts, '10 s'), count(*) FROM s GROUP BY 1 $$, start_at => '2024-01-01 00:00:15+00', enabled => false);
SELECT put(0, 1), put(0, 12), put(0, 21), put(0, 22), put(0, 32), put(0, 27), put(0, 43);
SELECT run('began');
INSERT INTO began VALUES ('[2024-01-01 00:00:00+00,2024-01-01 00:00:10+00)', 1);
SELECT sec(during), n FROM began ORDER BY 1;
SELECT * FROM verify('began');
TRUNCATE began;
SELECT hybridiot.seek_pipeline('began', '{"0": 3}');
SELECT run('began');
SELECT sec(during), n FROM began ORDER BY 1;
SELECT * FROM verify('began');
TRUNCATE began;
SELECT hybridiot.alter_pipeline('began', start_at => 'earliest', lateness => '1 min');
SELECT run('began');
SELECT put(0, 110);
SELECT run('began');
SELECT "offset", sec(during) FROM hybridiot.dead_letter;
SELECT * FROM verify('began');
TRUNCATE began;
SELECT hybridiot.seek_pipeline('began', 'latest');
SELECT run('began');
SELECT put(0, 120), put(0, 191);
SELECT run('began');
SELECT * FROM verify('began') LIMIT 1;
CREATE VIEW behind AS SELECT * FROM raw WHERE "offset" > 7;
SELECT * FROM verify('began', 'behind');
SELECT hybridiot.drop_pipeline('began'), forget();

-- What cannot be compared
\set VERBOSITY terse
SELECT * FROM verify('nobody');
SELECT * FROM hybridiot.verify_pipeline(NULL, 'raw');
SELECT hybridiot.create_pipeline('batch', 'INSERT INTO began (n) SELECT temp FROM s', enabled => false);
SELECT hybridiot.create_pipeline('p', $$ INSERT INTO plain SELECT hybridiot.tumble(ts, '10 s'), device, count(*) FROM s GROUP BY 1, 2 $$, enabled => false);
\set VERBOSITY default
SELECT * FROM hybridiot.verify_pipeline('batch', 'raw');
SELECT * FROM hybridiot.verify_pipeline('p', NULL);
SELECT * FROM hybridiot.verify_pipeline('p', 0);
CREATE INDEX plain_n ON plain (n);
SELECT * FROM hybridiot.verify_pipeline('p', 'plain_n');
CREATE VIEW lacking AS SELECT ts, part, "offset" FROM raw;
SELECT * FROM hybridiot.verify_pipeline('p', 'lacking');
CREATE VIEW otherwise AS SELECT device::varchar, ts, part, "offset" FROM raw;
SELECT * FROM hybridiot.verify_pipeline('p', 'otherwise');
CREATE VIEW placeless AS SELECT device, ts FROM raw;
SELECT * FROM hybridiot.verify_pipeline('p', 'placeless');
CREATE VIEW misplaced AS SELECT device, ts, part, "offset"::text FROM raw;
SELECT * FROM hybridiot.verify_pipeline('p', 'misplaced');
SELECT hybridiot.drop_pipeline('p');
CREATE TABLE latest (device text PRIMARY KEY, during tstzrange, n bigint);
SELECT hybridiot.create_pipeline('p', $$ INSERT INTO latest SELECT device, hybridiot.tumble(ts, '10 s'), count(*) FROM s GROUP BY 1, 2 ON CONFLICT (device) DO UPDATE SET during = excluded.during, n = excluded.n $$, enabled => false);
SELECT * FROM hybridiot.verify_pipeline('p', 'raw');
SELECT hybridiot.drop_pipeline('p');
SELECT hybridiot.create_pipeline('p', $$ INSERT INTO latest SELECT device, hybridiot.tumble(ts, '10 s'), count(s) FROM s GROUP BY 1, 2 $$, enabled => false);
SELECT * FROM hybridiot.verify_pipeline('p', 'raw');
SELECT hybridiot.drop_pipeline('p');
SELECT hybridiot.create_pipeline('p', $$ INSERT INTO latest SELECT device, hybridiot.tumble(ts, '10 s'), count(*) FROM s GROUP BY 1, 2 HAVING random() < 2 $$, enabled => false);
SELECT * FROM hybridiot.verify_pipeline('p', 'raw');
SELECT hybridiot.drop_pipeline('p'), hybridiot.drop_pipeline('batch');
-- A stream that moved to another topic has records with the same offsets: their topic has to be known.
SELECT forget();
TRUNCATE began;
CREATE FOREIGN TABLE moved (ts timestamptz, name text OPTIONS (metadata 'topic'), part int OPTIONS (metadata 'partition'))
	SERVER verify OPTIONS (topic 'one', source 'verify.log', format 'json', event_time 'ts');
SELECT hybridiot.create_pipeline('p', $$ INSERT INTO began SELECT hybridiot.tumble(ts, '10 s'), count(*) FROM moved GROUP BY 1 $$, enabled => false);
SELECT put(0, 1), put(0, 12), put(0, 2);
SELECT run('p');
CREATE TABLE both_topics AS SELECT *, 'one' AS name FROM raw;
ALTER FOREIGN TABLE moved OPTIONS (SET topic 'two');
SELECT forget();
SELECT put(0, 13), put(0, 14), put(0, 15), put(0, 20);
SELECT run('p');
INSERT INTO both_topics SELECT *, 'two' AS name FROM raw;
SELECT topic, next_offset FROM hybridiot.position ORDER BY topic;
SELECT sec(during), n FROM began ORDER BY during;
SELECT * FROM verify('p', 'raw');
SELECT * FROM verify('p', 'both_topics');
SELECT hybridiot.drop_pipeline('p'), forget();

-- It runs as the owner, whoever asks: his rights count, and nobody else's are lent to what he wrote.
CREATE ROLE verify_owner;
CREATE ROLE verify_other;
GRANT USAGE, CREATE ON SCHEMA verify TO verify_owner, verify_other;
GRANT SELECT ON s, log TO verify_owner;
CREATE TABLE owned (during tstzrange, who text, n bigint);
GRANT INSERT ON owned TO verify_owner;
CREATE FUNCTION who() RETURNS text LANGUAGE sql STABLE AS 'SELECT current_user::text';
SET ROLE verify_owner;
SELECT hybridiot.create_pipeline('owned', $$ INSERT INTO verify.owned SELECT hybridiot.tumble(ts, '10 s'), verify.who(), count(*) FROM verify.s GROUP BY 1 $$, enabled => false);
RESET ROLE;
SELECT put(0, 1), put(0, 10), run('owned');
SELECT * FROM hybridiot.verify_pipeline('owned', 'raw');
GRANT SELECT ON owned TO verify_owner;
SELECT * FROM hybridiot.verify_pipeline('owned', 'raw');
GRANT SELECT ON raw TO verify_owner;
SELECT * FROM hybridiot.verify_pipeline('owned', 'raw');
SET ROLE verify_owner;
SELECT * FROM hybridiot.verify_pipeline('owned', 'raw');
SET ROLE verify_other;
SELECT * FROM hybridiot.verify_pipeline('owned', 'raw');
RESET ROLE;
-- in a read-only transaction, too
BEGIN TRANSACTION READ ONLY;
SELECT * FROM hybridiot.verify_pipeline('owned', 'raw');
COMMIT;
SELECT who FROM owned;
SELECT hybridiot.drop_pipeline('owned');

DROP SCHEMA verify CASCADE;
DROP SERVER verify CASCADE;
DROP ROLE verify_owner, verify_other;
