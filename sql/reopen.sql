-- Late records after the close: states that are kept, reopen_window(), dead letters of windowed pipelines tried again.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS hybridiot;
CREATE SCHEMA reopen;
SET search_path = reopen, public;
SET timezone = 'UTC';
SET datestyle = 'ISO';
\set SHOW_CONTEXT never

CREATE SERVER reopen FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (transport 'table');
CREATE TABLE log (partition int, "offset" bigint, "timestamp" timestamptz, key bytea, value bytea, headers jsonb);
CREATE FOREIGN TABLE s (device text, ts timestamptz, temp float8) SERVER reopen
	OPTIONS (topic 'log', source 'reopen.log', format 'json', event_time 'ts');
-- a record at a second from 2024-01-01 00:00:00 on
CREATE FUNCTION put(second float8, device text DEFAULT 'a', temp float8 DEFAULT 1, partition int DEFAULT 0) RETURNS void LANGUAGE sql AS $$
	INSERT INTO log SELECT put.partition, (SELECT count(*) FROM log l WHERE l.partition = put.partition), NULL, NULL,
		convert_to(jsonb_build_object('device', device, 'ts', timestamptz '2024-01-01' + second * interval '1 s', 'temp', temp)::text, 'UTF8'), NULL $$;
CREATE FUNCTION sec(during tstzrange) RETURNS text IMMUTABLE STRICT LANGUAGE sql AS $$
	SELECT format('[%s,%s)', extract(epoch FROM lower(during) - '2024-01-01')::int, extract(epoch FROM upper(during) - '2024-01-01')::int) $$;
CREATE FUNCTION secs(first float8, last float8) RETURNS tstzrange IMMUTABLE STRICT LANGUAGE sql AS $$
	SELECT tstzrange('2024-01-01' :: timestamptz + first * interval '1 s', '2024-01-01' :: timestamptz + last * interval '1 s') $$;
CREATE FUNCTION run(name name) RETURNS bigint LANGUAGE sql AS $$
	SELECT hybridiot.run_pipeline(name, wall_clock => '2024-01-01 00:20') $$;
CREATE VIEW dead AS SELECT partition AS part, "offset", reason, cause, sec(during) AS during, group_keys, sqlstate, message, attempts
	FROM hybridiot.dead_letter ORDER BY partition, "offset", dead_letter.during;
CREATE VIEW kept AS SELECT sec(tstzrange(window_start, window_end, '[]')) AS during, count(*) AS groups, sum(records) AS records,
	count(over_at) AS for_reopening FROM hybridiot.window_group WHERE closed GROUP BY window_start, window_end ORDER BY window_start;
CREATE TABLE total (during tstzrange NOT NULL, device text NOT NULL, n bigint, sum float8, average float8, PRIMARY KEY (during, device));
CREATE VIEW rows AS SELECT sec(during) AS during, device, n, sum, round(average::numeric, 3) AS average FROM total ORDER BY total.during, device;
CREATE FUNCTION forget() RETURNS void LANGUAGE sql AS $$ TRUNCATE log, total $$;

-- ---- states of closed windows are kept, and forgotten when their time has come

SELECT hybridiot.create_pipeline('p', $$
	INSERT INTO total SELECT hybridiot.tumble(ts, '10 s'), device, count(*), sum(temp), avg(temp::numeric) FROM s GROUP BY 1, 2
	ON CONFLICT (during, device) DO UPDATE SET n = excluded.n, sum = excluded.sum, average = excluded.average $$,
	keep_closed => '30 s', enabled => false);
SELECT put(1), put(2, 'b', 2), put(11, 'a', 3), put(21), put(1, 'a', 7), put(2, 'c', 4), put(12, 'a', 5), put(3, 'b', 1), put(31);
SELECT run('p');
SELECT * FROM rows;
SELECT * FROM dead;
SELECT * FROM kept;
SELECT sec(during), groups, records FROM hybridiot.open_window;

-- ---- late records are folded in: into groups that are there, and into a new one

SELECT hybridiot.reopen_window('p', secs(0, 10));
SELECT * FROM rows;
SELECT * FROM dead;
SELECT * FROM kept;
-- once: there are no more
SELECT hybridiot.reopen_window('p', secs(0, 10));
-- again, with what came later still; a range that only touches the window is enough; ROLLBACK takes it back
SELECT put(4, 'c', 8), put(5, 'a', 9);
SELECT run('p');
BEGIN;
SELECT hybridiot.reopen_window('p', secs(9, 12));
SELECT * FROM rows;
ROLLBACK;
SELECT * FROM rows;
SELECT hybridiot.reopen_window('p', secs(0, 20));
SELECT * FROM rows;
SELECT * FROM rows
EXCEPT ALL SELECT sec(hybridiot.tumble(ts, '10 s')), device, count(*), sum(temp), round(avg(temp::numeric), 3) FROM s GROUP BY hybridiot.tumble(ts, '10 s'), device;
SELECT * FROM dead;
-- the worker goes on where it was, and what was made here does not stand in its way
SELECT put(35, 'e'), put(41, 'f'), put(51, 'f');
SELECT run('p');
SELECT * FROM rows WHERE during IN ('[20,30)', '[30,40)', '[40,50)');
SELECT * FROM kept;

-- ---- what cannot be reopened

SELECT put(6, 'a'), put(33, 'a'), put(55, 'a');
SELECT run('p');
SELECT * FROM dead;
-- kept no longer
SELECT hybridiot.reopen_window('p', secs(0, 10));
SELECT hybridiot.reopen_window('p', secs(0, 50));
SELECT hybridiot.reopen_window('p', secs(10, 50));
-- not closed yet: late for one partition, while the other holds the window open
SELECT hybridiot.alter_pipeline('p', idle_timeout => '0');
SELECT put(52, 'p', 1, 1), put(99), put(53, 'late');
SELECT run('p');
SELECT hybridiot.reopen_window('p', secs(50, 60));
SELECT hybridiot.reopen_window('p', 'empty');
SELECT hybridiot.reopen_window('p', tstzrange('2024-01-01', NULL));
SELECT hybridiot.reopen_window('p', '[-infinity, 2024-01-01)');
SELECT hybridiot.reopen_window('p', NULL);
SELECT hybridiot.reopen_window('nobody', secs(0, 10));
CREATE ROLE reopen_stranger;
GRANT USAGE ON SCHEMA reopen TO reopen_stranger;
SET ROLE reopen_stranger;
SELECT hybridiot.reopen_window('p', secs(0, 10));
RESET ROLE;
CREATE TABLE plain (device text, ts timestamptz);
SELECT hybridiot.create_pipeline('batches', 'INSERT INTO plain SELECT device, ts FROM s', enabled => false);
SELECT hybridiot.reopen_window('batches', secs(0, 10));
SELECT hybridiot.alter_pipeline('batches', keep_closed => '1 h');
SELECT hybridiot.drop_pipeline('batches');
-- a statement must bear that its rows are written again
SELECT hybridiot.create_pipeline('no', $$ INSERT INTO total SELECT hybridiot.tumble(ts, '10 s'), device, count(*) FROM s GROUP BY 1, 2 $$, keep_closed => '1 h', enabled => false);
SELECT hybridiot.create_pipeline('no', $$ INSERT INTO total SELECT hybridiot.tumble(ts, '10 s'), device, count(*) FROM s GROUP BY 1, 2
	ON CONFLICT (during, device) DO UPDATE SET n = total.n + excluded.n $$, keep_closed => '1 h', enabled => false);
SELECT hybridiot.alter_pipeline('p', keep_closed => '-1 s');
-- without keep_closed nothing is kept; what was is forgotten, and does not come back with it
SELECT hybridiot.alter_pipeline('p', keep_closed => '0');
SELECT hybridiot.reopen_window('p', secs(30, 40));
SELECT run('p');
SELECT * FROM kept;
SELECT hybridiot.alter_pipeline('p', keep_closed => '1 h');
SELECT put(34, 'a');
SELECT run('p');
SELECT hybridiot.reopen_window('p', secs(30, 40));
SELECT hybridiot.drop_pipeline('p'), forget();

-- a statement that commands, as its worker found out
SELECT hybridiot.create_pipeline('p', $$
	INSERT INTO total SELECT hybridiot.tumble(ts, '10 s'), device, count(*) FROM s GROUP BY 1, 2
	ON CONFLICT (during, device) DO UPDATE SET n = excluded.n $$, keep_closed => '1 h', enabled => false);
UPDATE hybridiot.pipeline_definition SET commands = true;
SELECT hybridiot.reopen_window('p', secs(0, 10));
SELECT hybridiot.drop_pipeline('p'), forget();

-- ---- HAVING: a row goes, or comes

SELECT hybridiot.create_pipeline('p', $$
	INSERT INTO total SELECT hybridiot.tumble(ts, '10 s'), device, count(*), sum(temp) FROM s GROUP BY 1, 2 HAVING sum(temp) BETWEEN 2 AND 9
	ON CONFLICT (during, device) DO UPDATE SET n = excluded.n, sum = excluded.sum $$, keep_closed => '1 h', enabled => false);
SELECT put(1, 'goes', 5), put(2, 'comes', 1), put(3, 'stays', 4), put(11), put(4, 'goes', 5), put(4, 'comes', 1), put(5, 'never', 1);
SELECT run('p');
SELECT * FROM rows;
SELECT hybridiot.reopen_window('p', secs(0, 10));
SELECT * FROM rows;
SELECT put(6, 'never', 2), put(7, 'goes', -3);
SELECT run('p'), hybridiot.reopen_window('p', secs(0, 10));
SELECT * FROM rows;
SELECT hybridiot.drop_pipeline('p'), forget();

-- ---- records and rows that fail

CREATE TABLE known (device text PRIMARY KEY);
INSERT INTO known VALUES ('a'), ('b'), ('c');
ALTER TABLE total ADD CONSTRAINT small CHECK (n < 4);
SELECT hybridiot.create_pipeline('p', $$
	INSERT INTO total SELECT hybridiot.tumble(ts, '10 s'), device, count(*), sum(60 / temp) FROM s JOIN known USING (device) GROUP BY 1, 2
	ON CONFLICT (during, device) DO UPDATE SET n = excluded.n, sum = excluded.sum $$, keep_closed => '1 h', enabled => false);
SELECT put(1, 'a', 1), put(2, 'b', 2), put(21);
SELECT put(3, 'a', 3), put(4, 'b', 4), put(4, 'b', 5), put(4, 'c', 6), put(12, 'a', 10), put(13, 'b', 12);
SELECT run('p');
-- the statement leaves out one, and fails for another
DELETE FROM known WHERE device = 'c';
UPDATE hybridiot.dead_letter_record SET value = convert_to(replace(convert_from(value, 'UTF8'), '"temp": 4', '"temp": 0'), 'UTF8');
UPDATE hybridiot.dead_letter_record SET value = convert_to(replace(convert_from(value, 'UTF8'), '"temp": 12', '"temp": "x"'), 'UTF8');
SELECT hybridiot.reopen_window('p', secs(0, 20));
SELECT * FROM rows;
SELECT * FROM dead;
-- a corrected row that cannot be written: nothing is changed
SELECT put(5, 'a'), put(5, 'a'), put(5, 'a'), put(5, 'b');
SELECT run('p');
SELECT hybridiot.reopen_window('p', secs(0, 20));
SELECT * FROM rows;
SELECT count(*), max(attempts) FROM dead;
ALTER TABLE total DROP CONSTRAINT small;
SELECT hybridiot.reopen_window('p', secs(0, 20));
SELECT * FROM rows;
SELECT hybridiot.drop_pipeline('p'), forget();

-- ---- finished rows that failed are written when they can be, by retry_dead_letters() and with late records

ALTER TABLE total ADD CONSTRAINT small CHECK (n < 2);
SELECT hybridiot.create_pipeline('p', $$
	INSERT INTO total SELECT hybridiot.tumble(ts, '10 s'), device, count(*), sum(temp) FROM s GROUP BY 1, 2
	ON CONFLICT (during, device) DO UPDATE SET n = excluded.n, sum = excluded.sum $$, enabled => false);
SELECT put(1, 'a'), put(2, 'a'), put(3, 'b'), put(3, 'b'), put(4, 'c'), put(11, 'd'), put(11, 'd'), put(21);
SELECT run('p');
SELECT * FROM rows;
SELECT * FROM dead;
SELECT * FROM kept;
SELECT hybridiot.retry_dead_letters('p');
SELECT during, group_keys, message, attempts FROM dead;
ALTER TABLE total DROP CONSTRAINT small;
ALTER TABLE total ADD CONSTRAINT not_b CHECK (device <> 'b');
SELECT hybridiot.alter_pipeline('p', keep_closed => '1 h');
SELECT hybridiot.retry_dead_letters('p');
SELECT * FROM rows;
SELECT during, group_keys, message, attempts FROM dead;
SELECT * FROM kept;
SELECT put(5, 'b');
SELECT run('p');
ALTER TABLE total DROP CONSTRAINT not_b;
-- the boundary is where it was when keep_closed was set
SELECT hybridiot.reopen_window('p', secs(0, 10));
-- a letter that is deleted takes the state with it
SELECT hybridiot.delete_dead_letters('p', 'infinity');
SELECT * FROM kept;
SELECT hybridiot.drop_pipeline('p'), forget();

ALTER TABLE total ADD CONSTRAINT small CHECK (n <> 2);
SELECT hybridiot.create_pipeline('p', $$
	INSERT INTO total SELECT hybridiot.tumble(ts, '10 s'), device, count(*), sum(temp) FROM s GROUP BY 1, 2
	ON CONFLICT (during, device) DO UPDATE SET n = excluded.n, sum = excluded.sum $$, keep_closed => '1 h', enabled => false);
SELECT put(1, 'a'), put(2, 'a'), put(11, 'd'), put(3, 'a');
SELECT run('p');
SELECT * FROM kept;
SELECT hybridiot.reopen_window('p', secs(0, 10));
SELECT * FROM rows;
SELECT * FROM kept;
SELECT * FROM dead;
SELECT hybridiot.drop_pipeline('p'), forget();
ALTER TABLE total DROP CONSTRAINT small;

-- ---- retry_dead_letters(): records

-- rejected, undecodable and of the future; then what they need is there. Two partitions, so that windows are open for one of them
CREATE FUNCTION strict(temp float8) RETURNS float8 STABLE LANGUAGE plpgsql AS $$
	BEGIN
		IF temp = 13 THEN RAISE 'no luck'; END IF;
		RETURN temp;
	END $$;
SELECT hybridiot.create_pipeline('p', $$
	INSERT INTO total SELECT hybridiot.tumble(ts, '10 s'), device, count(*), sum(reopen.strict(temp)) FROM s WHERE device <> 'nobody' GROUP BY 1, 2
	ON CONFLICT (during, device) DO UPDATE SET n = excluded.n, sum = excluded.sum $$, idle_timeout => '0', enabled => false);
SELECT put(1, 'a', 13), put(12, 'a', 13), put(13, 'a', 1), put(14, 'nobody', 13), put(15, 'b', 13), put(26, 'a', 2);
SELECT put(11, 'p', 1, 1), put(19, 'p', 13, 1), put(1, 'p', 1, 1);
INSERT INTO log SELECT 1, 3, NULL, NULL, 'no json', NULL;
SELECT put(2000, 'f', 13, 1), put(4, 'a', 5, 1);
SELECT run('p');
SELECT * FROM rows;
SELECT part, "offset", reason, during, message, attempts FROM dead;
SELECT sec(during), groups, records FROM hybridiot.open_window ORDER BY during;
-- they fail again, one by one, and nothing else does
SELECT hybridiot.retry_dead_letters('p');
SELECT part, "offset", reason, during, message, attempts FROM dead;
SELECT sec(during), groups, records FROM hybridiot.open_window ORDER BY during;
-- now they pass where their windows are open for their partitions, and are late elsewhere
CREATE OR REPLACE FUNCTION strict(temp float8) RETURNS float8 STABLE LANGUAGE sql AS 'SELECT temp';
UPDATE hybridiot.dead_letter_record SET value = convert_to('{"device": "q", "ts": "2024-01-01 00:00:18Z", "temp": 3}', 'UTF8') WHERE reason = 'undecodable';
BEGIN;
SELECT hybridiot.retry_dead_letters('p');
SELECT sec(during), groups, records FROM hybridiot.open_window ORDER BY during;
ROLLBACK;
SELECT hybridiot.retry_dead_letters('p');
SELECT part, "offset", reason, during, group_keys, message, attempts FROM dead;
SELECT sec(during), groups, records FROM hybridiot.open_window ORDER BY during;
SELECT partition, next_offset FROM hybridiot.position ORDER BY 1;
SELECT * FROM rows;
-- nothing passes now
SELECT hybridiot.retry_dead_letters('p');
-- with more lateness, a late record of a window that is not closed yet counts
SELECT hybridiot.alter_pipeline('p', lateness => '20 s');
SELECT hybridiot.retry_dead_letters('p');
SELECT part, "offset", reason, during, group_keys, message, attempts FROM dead;
SELECT put(100), put(100, 'a', 1, 1);
SELECT run('p');
SELECT * FROM rows;

-- letters from before a seek are not tried again: their records are read again, or lie before the start
SELECT hybridiot.seek_pipeline('p', 'latest');
SELECT "offset", reason, cause FROM dead;
SELECT hybridiot.retry_dead_letters('p');
SELECT hybridiot.alter_pipeline('p', keep_closed => '1 h');
SELECT hybridiot.reopen_window('p', secs(0, 100));
SELECT hybridiot.drop_pipeline('p'), forget();

-- emit 'changes': what is tried again is seen at once
SELECT hybridiot.create_pipeline('p', $$
	INSERT INTO total SELECT hybridiot.tumble(ts, '10 s'), device, count(*), sum(1 / temp) FROM s GROUP BY 1, 2
	ON CONFLICT (during, device) DO UPDATE SET n = excluded.n, sum = excluded.sum $$, emit => 'changes', keep_closed => '1 h', enabled => false);
SELECT put(1, 'a', 1), put(2, 'a', 0), put(3, 'b', 0);
SELECT run('p');
UPDATE hybridiot.dead_letter_record SET value = convert_to(replace(convert_from(value, 'UTF8'), '"temp": 0', '"temp": 2'), 'UTF8');
SELECT hybridiot.retry_dead_letters('p');
SELECT * FROM rows;
SELECT put(11), put(4, 'a', 4);
SELECT run('p');
SELECT hybridiot.reopen_window('p', secs(0, 10));
SELECT * FROM rows;
SELECT hybridiot.drop_pipeline('p'), forget();

-- ---- hopping windows: a letter is of one window; folding it in touches no other

CREATE TABLE hops (during tstzrange NOT NULL, device text NOT NULL, n bigint, list text, PRIMARY KEY (during, device));
CREATE FUNCTION append(text, float8) RETURNS text IMMUTABLE LANGUAGE sql AS $$ SELECT concat_ws(' ', $1, $2::text) $$;
CREATE FUNCTION append(text, text) RETURNS text IMMUTABLE LANGUAGE sql AS $$ SELECT concat_ws(' ', $1, $2) $$;
CREATE AGGREGATE listed (float8) (sfunc = append, stype = text, combinefunc = append);
SELECT hybridiot.create_pipeline('p', $$
	INSERT INTO hops SELECT w, device, count(*), listed(temp) FROM s, hybridiot.hop(ts, '10 s', '5 s') AS w GROUP BY 1, 2
	ON CONFLICT (during, device) DO UPDATE SET n = excluded.n, list = excluded.list $$, keep_closed => '1 h', enabled => false);
SELECT put(1, 'a', 1), put(7, 'a', 7), put(12, 'a', 12), put(3, 'a', 3), put(8, 'a', 8), put(9, 'b', 9), put(17, 'a', 17), put(22), put(11, 'a', 11);
SELECT run('p');
SELECT sec(during) AS during, device, n, list FROM hops ORDER BY hops.during, device;
SELECT "offset", during FROM dead;
SELECT hybridiot.reopen_window('p', secs(-5, 5));
SELECT sec(during) AS during, device, n, list FROM hops ORDER BY hops.during, device;
SELECT "offset", during FROM dead;
SELECT hybridiot.reopen_window('p', secs(-5, 20));
SELECT sec(during) AS during, device, n, list FROM hops ORDER BY hops.during, device;
SELECT count(*) FROM dead;
-- the same as SQL says
SELECT sec(during), device, n FROM hops
EXCEPT ALL SELECT sec(w), device, count(*) FROM s, hybridiot.hop(ts, '10 s', '5 s') AS w GROUP BY w, device;
-- a rejected record that comes back may count in one window and be late for the other
SELECT hybridiot.drop_pipeline('p'), forget();
TRUNCATE hops;
SELECT hybridiot.create_pipeline('p', $$
	INSERT INTO hops SELECT w, device, count(*), listed(1 / temp) FROM s, hybridiot.hop(ts, '10 s', '5 s') AS w GROUP BY 1, 2
	ON CONFLICT (during, device) DO UPDATE SET n = excluded.n, list = excluded.list $$, idle_timeout => '0', enabled => false);
SELECT put(7, 'a', 0), put(11, 'a', 1), put(1, 'b', 1, 1);
SELECT run('p');
UPDATE hybridiot.dead_letter_record SET value = convert_to(replace(convert_from(value, 'UTF8'), '"temp": 0', '"temp": 0.5'), 'UTF8');
SELECT hybridiot.retry_dead_letters('p');
SELECT "offset", reason, during, group_keys FROM dead;
SELECT sec(during), groups, records FROM hybridiot.open_window ORDER BY during;
SELECT hybridiot.retry_dead_letters('p');
SELECT hybridiot.alter_pipeline('p', lateness => '2 s');
SELECT hybridiot.retry_dead_letters('p');
SELECT "offset", reason, during, attempts FROM dead;
SELECT put(40), put(40, 'b', 1, 1);
SELECT run('p');
SELECT sec(during) AS during, device, n, list FROM hops WHERE device = 'a' AND upper(during) <= '2024-01-01 00:00:20Z' ORDER BY hops.during;
SELECT hybridiot.drop_pipeline('p'), forget();

-- ---- sessions: a late record extends one, merges two, or is one of its own; rows under old bounds go

CREATE TABLE visit (during tstzrange NOT NULL, device text NOT NULL, n bigint, sum float8, PRIMARY KEY (during, device));
CREATE VIEW visits AS SELECT sec(during) AS during, device, n, sum FROM visit ORDER BY visit.during, device;
SELECT hybridiot.create_pipeline('p', $$
	INSERT INTO visit SELECT hybridiot.session(ts, '5 s'), device, count(*), sum(temp) FROM s GROUP BY 1, 2
	ON CONFLICT (during, device) DO UPDATE SET n = excluded.n, sum = excluded.sum $$, keep_closed => '1 h', enabled => false);
SELECT put(1, 'a', 1), put(3, 'a', 3), put(12, 'a', 12), put(20, 'a', 20), put(50, 'a', 50), put(52, 'b', 52), put(70);
SELECT put(8, 'a', 8), put(2, 'b', 2), put(30, 'a', 30), put(34, 'a', 34), put(51, 'a', 51), put(16, 'a', 16);
SELECT run('p');
SELECT * FROM visits;
SELECT "offset", during FROM dead;
-- in the middle of one; its bounds stay
SELECT hybridiot.reopen_window('p', secs(51, 52));
SELECT * FROM visits;
-- merged: three become one, with two records between them
SELECT hybridiot.reopen_window('p', secs(8, 20));
SELECT * FROM visits;
-- of its own, from two records, and of another key
SELECT hybridiot.reopen_window('p', secs(0, 40));
SELECT * FROM visits;
SELECT * FROM kept;
SELECT count(*) FROM dead;
-- extended again, to the left and to the right
SELECT put(25, 'a', 25), put(0, 'b', 0), put(7, 'b', 7);
SELECT run('p');
SELECT hybridiot.reopen_window('p', secs(0, 40));
SELECT * FROM visits;
SELECT * FROM kept;
-- the gap is not over yet for the other partition
SELECT hybridiot.alter_pipeline('p', idle_timeout => '0');
SELECT put(71, 'p', 1, 1), put(100), put(67, 'c'), put(102);
SELECT run('p');
SELECT "offset", during FROM dead;
SELECT hybridiot.reopen_window('p', secs(60, 70));
SELECT put(78, 'p', 1, 1);
SELECT run('p');
SELECT hybridiot.reopen_window('p', secs(60, 70));
SELECT * FROM visits WHERE device = 'c';
SELECT hybridiot.drop_pipeline('p'), forget();
TRUNCATE visit;
-- a session that is open joins in: no
SELECT hybridiot.create_pipeline('p', $$
	INSERT INTO visit SELECT hybridiot.session(ts, '5 s'), device, count(*), sum(temp) FROM s GROUP BY 1, 2
	ON CONFLICT (during, device) DO UPDATE SET n = excluded.n, sum = excluded.sum $$, keep_closed => '1 h', enabled => false);
SELECT put(1, 'a', 1), put(20, 'a', 20), put(5, 'a', 5), put(16, 'a', 16), put(12, 'a', 12), put(8, 'a', 8);
SELECT run('p');
SELECT * FROM visits;
SELECT "offset", during FROM dead;
SELECT hybridiot.reopen_window('p', secs(0, 10));
SELECT put(40);
SELECT run('p');
SELECT hybridiot.reopen_window('p', secs(0, 10));
SELECT * FROM visits;
SELECT hybridiot.drop_pipeline('p'), forget();
TRUNCATE visit;
-- a row that failed is written with the session that takes it in
ALTER TABLE visit ADD CONSTRAINT many CHECK (n <> 2);
SELECT hybridiot.create_pipeline('p', $$
	INSERT INTO visit SELECT hybridiot.session(ts, '5 s'), device, count(*), sum(temp) FROM s GROUP BY 1, 2
	ON CONFLICT (during, device) DO UPDATE SET n = excluded.n, sum = excluded.sum $$, keep_closed => '1 h', enabled => false);
SELECT put(1, 'a', 1), put(2, 'a', 2), put(9, 'a', 9), put(30), put(6, 'a', 6), put(50, 'c', 1), put(51, 'c', 1), put(70);
SELECT run('p');
SELECT * FROM visits;
SELECT "offset", reason, during FROM dead;
SELECT hybridiot.reopen_window('p', secs(0, 20));
SELECT * FROM visits;
SELECT "offset", reason, during FROM dead;
ALTER TABLE visit DROP CONSTRAINT many;
SELECT hybridiot.retry_dead_letters('p');
SELECT * FROM visits;
SELECT count(*) FROM dead;
SELECT put(54, 'c', 1);
SELECT run('p');
SELECT hybridiot.reopen_window('p', secs(50, 60));
SELECT * FROM visits;
SELECT hybridiot.drop_pipeline('p'), forget();
TRUNCATE visit;
-- retried: a late record that touches a session that is not over by now
SELECT hybridiot.create_pipeline('p', $$
	INSERT INTO visit SELECT hybridiot.session(ts, '5 s'), device, count(*), sum(1 / temp) FROM s GROUP BY 1, 2
	ON CONFLICT (during, device) DO UPDATE SET n = excluded.n, sum = excluded.sum $$, idle_timeout => '0', enabled => false);
SELECT put(1, 'a', 1), put(4, 'a', 0), put(8, 'a', 1), put(20, 'a', 1), put(7, 'a', 1), put(3, 'b', 1, 1);
SELECT run('p');
SELECT "offset", reason, during FROM dead;
SELECT hybridiot.retry_dead_letters('p');
SELECT hybridiot.alter_pipeline('p', lateness => '8 s');
UPDATE hybridiot.dead_letter_record SET value = convert_to(replace(convert_from(value, 'UTF8'), '"temp": 0', '"temp": 2'), 'UTF8');
SELECT hybridiot.retry_dead_letters('p');
SELECT "offset", reason, during, attempts FROM dead;
SELECT put(60), put(60, 'b', 1, 1);
SELECT run('p');
SELECT * FROM visits;
SELECT hybridiot.drop_pipeline('p'), forget();
TRUNCATE visit;

-- ---- sliding windows are not kept; their finished rows and rejected records are tried again

SELECT hybridiot.create_pipeline('p', $$
	INSERT INTO visit SELECT hybridiot.slide(ts, '5 s'), device, count(*), sum(temp) FROM s GROUP BY 1, 2
	ON CONFLICT (during, device) DO UPDATE SET n = excluded.n, sum = excluded.sum $$, keep_closed => '1 h', enabled => false);
ALTER TABLE visit ADD CONSTRAINT many CHECK (n <> 2);
SELECT hybridiot.create_pipeline('p', $$
	INSERT INTO visit SELECT hybridiot.slide(ts, '5 s'), device, count(*), sum(1 / temp) FROM s GROUP BY 1, 2
	ON CONFLICT (during, device) DO UPDATE SET n = excluded.n, sum = excluded.sum $$, idle_timeout => '0', enabled => false);
SELECT put(1, 'a', 1), put(3, 'a', 1), put(5, 'a', 0), put(6, 'a', 1), put(20), put(2, 'a', 1), put(5, 'p', 1, 1);
SELECT run('p');
SELECT * FROM visits;
SELECT "offset", reason, during FROM dead;
UPDATE hybridiot.dead_letter_record SET value = convert_to(replace(convert_from(value, 'UTF8'), '"temp": 0', '"temp": 0.5'), 'UTF8');
ALTER TABLE visit DROP CONSTRAINT many;
SELECT hybridiot.retry_dead_letters('p');
SELECT * FROM visits;
SELECT "offset", reason, during, attempts FROM dead;
SELECT hybridiot.alter_pipeline('p', lateness => '16 s');
SELECT hybridiot.retry_dead_letters('p');
SELECT "offset", reason, during, attempts FROM dead;
SELECT put(60), put(60, 'b', 1, 1);
SELECT run('p');
SELECT * FROM visits WHERE device = 'a' AND n > 1;
SELECT hybridiot.drop_pipeline('p'), forget();

-- ---- many groups: windows go in steps, and nothing is left out between them

SELECT hybridiot.create_pipeline('p', $$
	INSERT INTO total SELECT hybridiot.tumble(ts, '10 s'), device, count(*), sum(temp) FROM s GROUP BY 1, 2
	ON CONFLICT (during, device) DO UPDATE SET n = excluded.n, sum = excluded.sum $$, keep_closed => '1 h', enabled => false);
INSERT INTO log SELECT 0, i, NULL, NULL, convert_to(format('{"device": "%s", "ts": "%s", "temp": 1}',
	i % 26000, timestamptz '2024-01-01' + i / 26000 * interval '10 s'), 'UTF8'), NULL FROM generate_series(0, 3 * 26000) AS i;
SELECT put(21, '1', 2), put(1, '2', 3), put(11, 'new', 4), put(12, 'new', 5);
SELECT run('p');
SELECT hybridiot.reopen_window('p', secs(0, 30));
SELECT * FROM rows WHERE n > 1 OR device = 'new';
SELECT * FROM kept;
SELECT count(*) FROM dead;
SELECT hybridiot.drop_pipeline('p'), forget();

-- all of it as the pipeline's owner, restricted
CREATE ROLE reopen_owner;
GRANT USAGE, CREATE ON SCHEMA reopen TO reopen_owner;
GRANT SELECT ON s, log TO reopen_owner;
GRANT USAGE ON FOREIGN SERVER reopen TO reopen_owner;
CREATE TABLE seen (who name, path text);
CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN INSERT INTO reopen.seen VALUES (current_user, current_setting('search_path')); RETURN NEW; END $$;
CREATE TRIGGER see BEFORE INSERT ON total FOR EACH ROW EXECUTE FUNCTION see();
GRANT ALL ON seen, total TO reopen_owner;
SET ROLE reopen_owner;
SELECT hybridiot.create_pipeline('p', $$
	INSERT INTO total SELECT hybridiot.tumble(ts, '10 s'), device, count(*) FROM s GROUP BY 1, 2
	ON CONFLICT (during, device) DO UPDATE SET n = excluded.n $$, keep_closed => '1 h', enabled => false);
RESET ROLE;
SELECT put(1), put(11), put(2);
SELECT run('p');
SELECT hybridiot.reopen_window('p', secs(0, 10));
SELECT * FROM rows;
SELECT * FROM seen;
REVOKE DELETE ON total FROM reopen_owner;
SELECT put(3);
SELECT run('p');
SELECT hybridiot.drop_pipeline('p'), forget();

DROP SCHEMA reopen CASCADE;
DROP SERVER reopen CASCADE;
DROP ROLE reopen_owner, reopen_stranger;
