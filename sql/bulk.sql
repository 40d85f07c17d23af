-- Rows written many at once and rows written by the executor make equal tables, whatever the target looks like.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS hybridiot;
CREATE EXTENSION IF NOT EXISTS pg_walinspect;
CREATE EXTENSION IF NOT EXISTS postgres_fdw;
CREATE SCHEMA bulk;
SET search_path = bulk, public;
SET timezone = 'UTC';
CREATE SERVER bulk_log FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (transport 'table');
CREATE TABLE log (partition int, "offset" bigint, "timestamp" timestamptz, key bytea, value bytea, headers jsonb);
CREATE FOREIGN TABLE s (id int, device text, site int, at timestamptz, val int, wide text)
	SERVER bulk_log OPTIONS (topic 't', source 'bulk.log', event_time 'at', max_future '1000000 h');
-- 80 records: each tenth is wide. Bad for some targets: 11 (the id of 5), 13 (a negative value), 17 (no device), 19 (an
-- unknown site), 23 (no JSON), 31 (a day of no partition), and 13 to 17 follow each other closely.
INSERT INTO log SELECT 0, i, '2026-01-01Z', NULL, convert_to(CASE WHEN i = 23 THEN '{' ELSE jsonb_build_object(
	'id', CASE i WHEN 11 THEN 5 ELSE i END,
	'device', CASE WHEN i <> 17 THEN 'd' || i % 7 END,
	'site', CASE i WHEN 19 THEN 99 ELSE i % 3 END,
	'at', timestamptz '2026-01-01Z' + (i % 4) * interval '1 day' + CASE WHEN i = 31 THEN interval '4 years' ELSE '0' END,
	'val', CASE i WHEN 13 THEN -1 ELSE i * 10 END,
	'wide', CASE WHEN i % 10 = 0 THEN (SELECT string_agg(md5((i * 1000 + k)::text), '') FROM generate_series(1, 300) AS k) END)::text
	END, 'UTF8') FROM generate_series(0, 79) AS i;

-- Runs a statement over the log both ways and in batches of 1, 2 and 10,000; after each run the looks tell what became of the
-- tables, which are then emptied. One row: how many dead letters, whether all was equal, and the first look.
CREATE TABLE began (lsn pg_lsn);
CREATE FUNCTION compare(statement text, tables text[], looks text[], sizes int[] DEFAULT '{1,2,10000}', whose name DEFAULT current_user,
	OUT dead text, OUT equal bool, OUT seen text) LANGUAGE plpgsql AS $$
DECLARE
	look text;
	size int;
	way text;
	name text;
	found text;
	letters text;
BEGIN
	DELETE FROM began;
	INSERT INTO began VALUES (pg_current_wal_lsn());
	equal := true;
	FOREACH size IN ARRAY sizes LOOP
		FOREACH way IN ARRAY '{off,on}'::text[] LOOP
			PERFORM set_config('hybridiot.bulk_insert', way, false);
			EXECUTE format('SET LOCAL ROLE %I', whose);
			PERFORM hybridiot.create_pipeline('bulk', statement, batch_rows => size, enabled => false);
			RESET ROLE;
			PERFORM hybridiot.run_pipeline('bulk');
			SELECT coalesce(string_agg(format('%s %s %s', "offset", coalesce(sqlstate, '-'), message), E'\n' ORDER BY "offset"), '')
				INTO letters FROM hybridiot.dead_letter WHERE pipeline = 'bulk';
			dead := coalesce(dead, letters);
			equal := equal AND dead = letters;
			FOREACH look IN ARRAY looks LOOP
				EXECUTE format('SELECT string_agg(x::text, '' '') FROM (%s) AS x', look) INTO found;
				letters := letters || E'\n' || coalesce(found, 'nothing');
				IF seen IS NULL THEN seen := coalesce(found, 'nothing'); END IF;
			END LOOP;
			IF current_setting('bulk.first', true) IS NULL OR current_setting('bulk.first', true) = '' THEN
				PERFORM set_config('bulk.first', letters, false);
			END IF;
			IF letters <> current_setting('bulk.first') THEN
				equal := false;
				RAISE WARNING 'batches of %, bulk %: % instead of %', size, way, left(letters, 2000), left(current_setting('bulk.first'), 2000);
			END IF;
			PERFORM hybridiot.drop_pipeline('bulk');
			FOREACH name IN ARRAY tables LOOP
				EXECUTE format('DELETE FROM %s', name);
			END LOOP;
		END LOOP;
	END LOOP;
	PERFORM set_config('bulk.first', '', false);
	dead := (SELECT string_agg(left(line, 70), '; ') FROM unnest(string_to_array(dead, E'\n')) AS line);
END $$;
-- Were rows written many at once since?
CREATE FUNCTION at_once() RETURNS bool LANGUAGE sql AS $$
	SELECT coalesce(sum(count), 0) > 0 FROM began, pg_get_wal_stats(lsn, pg_current_wal_lsn(), true)
	WHERE "resource_manager/record_type" LIKE '%MULTI_INSERT%' $$;
\set look 'SELECT count(*), sum(id), sum(val), count(device), sum(length(wide)), md5(string_agg(t::text, $$,$$ ORDER BY id, device)) FROM t'
\set SHOW_CONTEXT never
\pset format unaligned
\pset tuples_only on

-- plain
CREATE TABLE t (id int, device text, site int, at timestamptz, val int, wide text);
SELECT * FROM compare('INSERT INTO t SELECT * FROM s', '{t}', ARRAY[:'look']);
SELECT at_once();
-- some columns, in another order, with defaults; columns that are gone
ALTER TABLE t DROP COLUMN site, ADD COLUMN note text DEFAULT 'none', ADD COLUMN day date DEFAULT ('2026-01-01'::date + (now() = now())::int), ALTER COLUMN val SET DEFAULT 7;
SELECT * FROM compare('INSERT INTO t (wide, device, id) SELECT wide, device, id FROM s', '{t}', ARRAY[:'look']);
SELECT at_once();
-- joins, sorts, sets, sublinks, a WITH that reads
CREATE TABLE site (site int PRIMARY KEY, name text);
INSERT INTO site SELECT i, 'site ' || i FROM generate_series(0, 2) AS i;
SELECT * FROM compare('WITH x AS (SELECT * FROM s WHERE val < 700) INSERT INTO t (id, device, note, val) SELECT id, upper(device), name, v FROM x LEFT JOIN site USING (site), unnest(ARRAY[val, 1]) AS v WHERE id IN (SELECT generate_series(0, 60)) ORDER BY x.at, id',
	'{t}', ARRAY['SELECT count(*), sum(val), md5(string_agg(t::text, $$,$$ ORDER BY id, val, note)) FROM t']);
SELECT at_once();
DROP TABLE t;
-- indexes
CREATE TABLE t (id int, device text, site int, at timestamptz, val int, wide text);
CREATE INDEX ON t (device, at);
CREATE INDEX ON t (upper(device)) WHERE val > 50;
CREATE INDEX ON t USING brin (id);
CREATE INDEX ON t USING hash (device);
SELECT * FROM compare('INSERT INTO t SELECT * FROM s', '{t}', ARRAY[:'look',
	'SELECT count(*) FROM t WHERE upper(device) = $$D1$$ AND val > 50']);
SELECT at_once();
-- unique, NOT NULL, CHECK, a wide value out of line
ALTER TABLE t ADD PRIMARY KEY (id), ALTER device SET NOT NULL, ADD CHECK (val >= 0), ALTER wide SET STORAGE EXTERNAL;
SELECT * FROM compare('INSERT INTO t SELECT * FROM s', '{t}', ARRAY[:'look']);
SELECT at_once();
-- foreign keys, at once and deferred
ALTER TABLE t ADD FOREIGN KEY (site) REFERENCES site;
SELECT * FROM compare('INSERT INTO t SELECT * FROM s', '{t}', ARRAY[:'look']);
ALTER TABLE t DROP CONSTRAINT t_site_fkey, ADD FOREIGN KEY (site) REFERENCES site DEFERRABLE INITIALLY DEFERRED;
SELECT * FROM compare('INSERT INTO t SELECT * FROM s', '{t}', ARRAY[:'look']);
SELECT at_once();
DROP TABLE t;
-- unique at the end of the statement; exclusion
CREATE TABLE t (id int UNIQUE DEFERRABLE, device text, site int, at timestamptz, val int4, wide text, EXCLUDE USING btree (val WITH =));
SELECT * FROM compare('INSERT INTO t SELECT id, device, site, at, val / 20 * 20, wide FROM s WHERE id < 30', '{t}', ARRAY[:'look']);
SELECT at_once();
DROP TABLE t;
-- domains, arrays, rows
CREATE DOMAIN positive AS int CHECK (value >= 0);
CREATE TYPE place AS (site int, device text);
CREATE TABLE t (id positive, val positive, device text[], wide place);
SELECT * FROM compare('INSERT INTO t SELECT id, val, ARRAY[device, wide], ROW(site, device)::place FROM s', '{t}',
	ARRAY['SELECT count(*), md5(string_agg(t::text, $$,$$ ORDER BY id, val)) FROM t']);
SELECT at_once();
DROP TABLE t;
-- generated columns, identities and sequences
CREATE TABLE t (id int, device text GENERATED ALWAYS AS ('x' || val) STORED, val int, wide text GENERATED ALWAYS AS (repeat('y', val)) STORED,
	number int GENERATED ALWAYS AS IDENTITY, serial serial, CHECK (length(device) > 1 AND wide IS NOT NULL));
SELECT * FROM compare('INSERT INTO t (id, val) SELECT id, val FROM s', '{t}',
	ARRAY['SELECT count(*), count(DISTINCT number), count(DISTINCT serial), md5(string_agg(concat(id, device, val, wide), $$,$$ ORDER BY id, val)) FROM t']);
SELECT at_once();
DROP TABLE t;

-- whatever looks at the table sees each row in its time: those are written by the executor
CREATE TABLE t (id int, device text, site int, at timestamptz, val int, wide text);
CREATE FUNCTION rows_before() RETURNS int LANGUAGE plpgsql AS $$ BEGIN RETURN count(*) FROM bulk.t; END $$;
SELECT * FROM compare('INSERT INTO t (id, device, val) SELECT id, device, bulk.rows_before() FROM s', '{t}', ARRAY[:'look']);
ALTER TABLE t ALTER val SET DEFAULT bulk.rows_before();
SELECT * FROM compare('INSERT INTO t (id, device) SELECT id, device FROM s', '{t}', ARRAY[:'look']);
SELECT * FROM compare('INSERT INTO t (id, val) SELECT id, val FROM s WHERE bulk.rows_before() < 40', '{t}', ARRAY[:'look'], '{10000}');
ALTER TABLE t ADD CHECK (bulk.rows_before() < 20);
SELECT dead IS NOT NULL AS dead, equal, seen FROM compare('INSERT INTO t SELECT * FROM s', '{t}', ARRAY[:'look']);
SELECT at_once();
DROP TABLE t;
-- and a function that calls itself immutable is believed
CREATE TABLE t (id int, device text, site int, at timestamptz, val int, wide text);
SELECT * FROM compare('INSERT INTO t SELECT id, lower(device), site, date_trunc($$month$$, at), val, wide FROM s', '{t}', ARRAY[:'look']);
SELECT at_once();

-- triggers: before a row
CREATE TABLE audit (n bigint GENERATED ALWAYS AS IDENTITY, what text);
CREATE FUNCTION before_row() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF new.id % 9 = 0 THEN RETURN NULL; END IF;
	IF new.val < 0 THEN RAISE EXCEPTION 'negative: %', new.val; END IF;
	new.val := (SELECT count(*) FROM bulk.t);
	RETURN new;
END $$;
CREATE TRIGGER before_row BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION before_row();
SELECT * FROM compare('INSERT INTO t SELECT * FROM s', '{t}', ARRAY[:'look']);
SELECT at_once();
DROP TRIGGER before_row ON t;
-- after a row, with conditions, in the order of the rows
CREATE FUNCTION after_row() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF new.val < 0 THEN RAISE EXCEPTION 'negative: %', new.val; END IF;
	INSERT INTO bulk.audit (what) VALUES (concat(tg_table_name, new.id, new.device));
	RETURN NULL;
END $$;
CREATE TRIGGER after_row AFTER INSERT ON t FOR EACH ROW WHEN (new.id % 2 = 1) EXECUTE FUNCTION after_row();
SELECT * FROM compare('INSERT INTO t SELECT * FROM s', '{t,audit}', ARRAY[:'look', 'SELECT string_agg(what, $$,$$ ORDER BY n) FROM audit']);
SELECT at_once();
-- for the statement, with what it wrote
CREATE FUNCTION for_statement() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO bulk.audit (what) SELECT concat(tg_when, id) FROM new_rows;
	RETURN NULL;
END $$;
CREATE FUNCTION once() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO bulk.audit (what) VALUES (tg_when); RETURN NULL; END $$;
CREATE TRIGGER for_statement AFTER INSERT ON t REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION for_statement();
SELECT * FROM compare('INSERT INTO t SELECT * FROM s', '{t,audit}', ARRAY[:'look', 'SELECT what FROM audit ORDER BY what']);
CREATE TRIGGER first BEFORE INSERT ON t FOR EACH STATEMENT EXECUTE FUNCTION once();
CREATE TRIGGER last AFTER INSERT ON t FOR EACH STATEMENT EXECUTE FUNCTION once();
SELECT * FROM compare('INSERT INTO t SELECT * FROM s', '{t,audit}', ARRAY['SELECT what FROM audit ORDER BY n'], '{10000}');
SELECT at_once();
DROP TABLE t;

-- partitions: by range, list and hash, some with other columns in other places; records of no partition
CREATE TABLE t (id int, device text, site int, at timestamptz, val int, wide text) PARTITION BY RANGE (at);
CREATE TABLE t1 PARTITION OF t FOR VALUES FROM ('2026-01-01Z') TO ('2026-01-02Z') PARTITION BY LIST (site);
CREATE TABLE t1a PARTITION OF t1 FOR VALUES IN (0, 1);
CREATE TABLE t1b (wide text, gone int, val int, at timestamptz, site int, device text, id int);
ALTER TABLE t1b DROP COLUMN gone;
ALTER TABLE t1 ATTACH PARTITION t1b FOR VALUES IN (2);
CREATE TABLE t2 PARTITION OF t FOR VALUES FROM ('2026-01-02Z') TO ('2026-01-03Z') PARTITION BY HASH (device);
CREATE TABLE t2a PARTITION OF t2 FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE t2b PARTITION OF t2 FOR VALUES WITH (MODULUS 2, REMAINDER 1);
CREATE TABLE t3 (device text, site int, at timestamptz, val int, wide text, id int, CHECK (val <> 420));
ALTER TABLE t ATTACH PARTITION t3 FOR VALUES FROM ('2026-01-03Z') TO ('2026-01-05Z');
\set look 'SELECT count(*), sum(id), sum(val), count(device), sum(length(wide)), md5(string_agg(concat(t.tableoid::regclass, t), $$,$$ ORDER BY id, device)) FROM t'
SELECT * FROM compare('INSERT INTO t SELECT * FROM s', '{t}', ARRAY[:'look']);
SELECT at_once();
CREATE UNIQUE INDEX ON t2b ((val / 200));
ALTER TABLE t ADD FOREIGN KEY (site) REFERENCES site;
SELECT * FROM compare('INSERT INTO t SELECT id, device, site, $$2026-01-02Z$$::timestamptz, val, wide FROM s', '{t}', ARRAY[:'look']);
SELECT * FROM compare('INSERT INTO t SELECT * FROM s', '{t}', ARRAY[:'look']);
SELECT at_once();
-- a partition that is named itself
SELECT * FROM compare('INSERT INTO t2 SELECT * FROM s', '{t}', ARRAY[:'look'], '{10000}');
SELECT at_once();
-- partitions whose rows cannot wait: a trigger before the row, a CHECK that looks around
CREATE OR REPLACE FUNCTION before_row() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	new.val := (SELECT count(*) FROM bulk.t);
	IF new.id % 9 = 0 THEN RETURN NULL; END IF;
	RETURN new;
END $$;
CREATE TRIGGER before_row BEFORE INSERT ON t1b FOR EACH ROW EXECUTE FUNCTION before_row();
CREATE TRIGGER before_row BEFORE INSERT ON t2a FOR EACH ROW EXECUTE FUNCTION before_row();
ALTER TABLE t3 ADD CHECK (bulk.rows_before() <> 30);
SELECT * FROM compare('INSERT INTO t SELECT * FROM s', '{t}', ARRAY[:'look']);
SELECT at_once();
DROP TRIGGER before_row ON t1b;
DROP TRIGGER before_row ON t2a;
-- triggers after the rows of some partitions, and of all
CREATE TRIGGER after_row AFTER INSERT ON t1a FOR EACH ROW EXECUTE FUNCTION after_row();
CREATE TRIGGER after_row AFTER INSERT ON t3 FOR EACH ROW EXECUTE FUNCTION after_row();
SELECT * FROM compare('INSERT INTO t SELECT * FROM s', '{t,audit}', ARRAY[:'look', 'SELECT string_agg(what, $$,$$ ORDER BY n) FROM audit']);
SELECT at_once();
DROP TRIGGER after_row ON t1a;
DROP TRIGGER after_row ON t3;
CREATE TRIGGER after_row AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION after_row();
SELECT * FROM compare('INSERT INTO t SELECT * FROM s', '{t,audit}', ARRAY[:'look', 'SELECT string_agg(what, $$,$$ ORDER BY n) FROM audit']);
DROP TRIGGER after_row ON t;
CREATE TRIGGER for_statement AFTER INSERT ON t REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION for_statement();
SELECT * FROM compare('INSERT INTO t SELECT * FROM s', '{t,audit}', ARRAY[:'look', 'SELECT what FROM audit ORDER BY what']);
SELECT at_once();
DROP TABLE t;

-- what is elsewhere: a foreign table, and a foreign partition
DO $$ BEGIN
	EXECUTE format('CREATE SERVER here FOREIGN DATA WRAPPER postgres_fdw OPTIONS (dbname %L, port %L, host %L)',
		current_database(), current_setting('port'), trim(split_part(current_setting('unix_socket_directories'), ',', 1)));
	EXECUTE 'CREATE USER MAPPING FOR CURRENT_USER SERVER here OPTIONS (user ' || quote_literal(current_user) || ')';
END $$;
CREATE TABLE remote (id int, device text, site int, at timestamptz, val int CHECK (val >= 0), wide text);
CREATE FOREIGN TABLE t (id int, device text, site int, at timestamptz, val int, wide text) SERVER here OPTIONS (schema_name 'bulk', table_name 'remote');
SELECT equal, seen FROM compare('INSERT INTO t SELECT * FROM s', '{t}', ARRAY['SELECT count(*), sum(id), sum(val) FROM t']);
DROP FOREIGN TABLE t;
CREATE TABLE t (id int, device text, site int, at timestamptz, val int, wide text) PARTITION BY LIST (site);
CREATE TABLE t0 PARTITION OF t FOR VALUES IN (0, 2);
CREATE FOREIGN TABLE t1 PARTITION OF t FOR VALUES IN (1) SERVER here OPTIONS (schema_name 'bulk', table_name 'remote');
SELECT equal, seen FROM compare('INSERT INTO t SELECT * FROM s', '{t}', ARRAY[:'look']);
SELECT at_once();
DROP TABLE t;

-- rules and views
CREATE TABLE t (id int, device text, site int, at timestamptz, val int, wide text);
CREATE RULE also AS ON INSERT TO t DO ALSO NOTIFY nobody;
SELECT * FROM compare('INSERT INTO t SELECT * FROM s', '{t}', ARRAY[:'look']);
DROP RULE also ON t;
CREATE TABLE other (LIKE t);
CREATE RULE instead AS ON INSERT TO t DO INSTEAD INSERT INTO other VALUES (new.*);
SELECT * FROM compare('INSERT INTO t SELECT * FROM s', '{t,other}', ARRAY[:'look', 'SELECT count(*), sum(id) FROM other']);
DROP RULE instead ON t;
CREATE VIEW v AS SELECT id, val, device FROM t WHERE id < 50;
SELECT * FROM compare('INSERT INTO v SELECT id, val, device FROM s', '{t}', ARRAY[:'look']);
CREATE OR REPLACE VIEW v AS SELECT id, val, device FROM t WHERE id < 75 WITH CHECK OPTION;
SELECT * FROM compare('INSERT INTO v SELECT id, val, device FROM s', '{t}', ARRAY[:'look']);
CREATE FUNCTION instead_of() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO bulk.t (id, val) VALUES (new.id, -new.val); RETURN new; END $$;
CREATE TRIGGER instead INSTEAD OF INSERT ON v FOR EACH ROW EXECUTE FUNCTION instead_of();
SELECT * FROM compare('INSERT INTO v SELECT id, val, device FROM s', '{t}', ARRAY[:'look']);
DROP VIEW v;

-- what else an INSERT may say
CREATE UNIQUE INDEX ON t (device);
SELECT * FROM compare('INSERT INTO t (device, val) SELECT device, max(val) FROM s GROUP BY device ON CONFLICT (device) DO UPDATE SET val = greatest(t.val, excluded.val)', '{t}', ARRAY['SELECT device, val FROM t ORDER BY device']);
SELECT * FROM compare('INSERT INTO t (device, val) SELECT device, val FROM s ON CONFLICT DO NOTHING', '{t}', ARRAY['SELECT count(*), count(device) FROM t']);
SELECT * FROM compare('WITH gone AS (DELETE FROM t WHERE device IS NULL RETURNING id) INSERT INTO t (id) SELECT s.id FROM s LEFT JOIN gone ON false', '{t}', ARRAY[:'look'], '{10000}');
SELECT * FROM compare('INSERT INTO t (id, val) SELECT id, val FROM s RETURNING id', '{t}', ARRAY[:'look']);
SELECT at_once();
DROP TABLE t;

-- unlogged: no WAL to tell by
CREATE UNLOGGED TABLE t (id int PRIMARY KEY, device text, site int, at timestamptz, val int, wide text);
\set look 'SELECT count(*), sum(id), sum(val), count(device), sum(length(wide)), md5(string_agg(t::text, $$,$$ ORDER BY id, device)) FROM t'
SELECT * FROM compare('INSERT INTO t SELECT * FROM s', '{t}', ARRAY[:'look']);
DROP TABLE t;

-- rights on columns, and policies that apply to the owner
CREATE ROLE bulk_owner;
GRANT USAGE ON SCHEMA bulk TO bulk_owner;
GRANT USAGE ON FOREIGN SERVER bulk_log TO bulk_owner;
GRANT SELECT ON s, log TO bulk_owner;
CREATE TABLE t (id int, device text, site int, at timestamptz, val int DEFAULT 3, wide text);
GRANT INSERT (id, device) ON t TO bulk_owner;
SELECT * FROM compare('INSERT INTO bulk.t (id, device) SELECT id, device FROM bulk.s', '{t}', ARRAY[:'look'], whose => 'bulk_owner');
SELECT at_once();
GRANT INSERT ON t TO bulk_owner;
SET ROLE bulk_owner;
SELECT hybridiot.create_pipeline('rights', 'INSERT INTO bulk.t (id, val) SELECT id, val FROM bulk.s', enabled => false);
RESET ROLE;
REVOKE INSERT ON t FROM bulk_owner;
GRANT INSERT (id, device) ON t TO bulk_owner;
SET hybridiot.bulk_insert = off;
SELECT hybridiot.run_pipeline('rights');
SET hybridiot.bulk_insert = on;
SELECT hybridiot.run_pipeline('rights');
SELECT hybridiot.drop_pipeline('rights');
GRANT INSERT ON t TO bulk_owner;
ALTER TABLE t ENABLE ROW LEVEL SECURITY;
CREATE POLICY only_site_1 ON t TO bulk_owner WITH CHECK (site = 1 OR id < 4);
SELECT equal, seen FROM compare('INSERT INTO bulk.t SELECT * FROM bulk.s WHERE site = 1 OR id < 4', '{t}', ARRAY[:'look'], whose => 'bulk_owner');
SELECT at_once();
DROP TABLE t;

-- the rows of several flushes, and tables that change between batches
INSERT INTO log SELECT 0, 80 + i, '2026-01-01Z', NULL, convert_to(jsonb_build_object('id', 1000 + i % 2450, 'device', 'd' || i % 31, 'site', i % 3,
	'at', timestamptz '2026-01-01Z', 'val', i)::text, 'UTF8') FROM generate_series(0, 2499) AS i;
CREATE TABLE t (id int, device text, site int, at timestamptz, val int, wide text);
SELECT * FROM compare('INSERT INTO t SELECT * FROM s', '{t}', ARRAY[:'look'], '{700,10000}');
SELECT at_once();
CREATE UNIQUE INDEX ON t (id);
SELECT equal, seen FROM compare('INSERT INTO t SELECT * FROM s', '{t}', ARRAY[:'look'], '{700,10000}');
DROP TABLE t;
CREATE TABLE t (id int, device text, site int, at timestamptz, val int, wide text) PARTITION BY HASH (device);
DO $$ BEGIN FOR i IN 0 .. 19 LOOP EXECUTE format('CREATE TABLE t%s PARTITION OF t FOR VALUES WITH (MODULUS 20, REMAINDER %s)', i, i); END LOOP; END $$;
ALTER TABLE t DROP COLUMN wide;
SELECT * FROM compare('INSERT INTO t SELECT id, device, site, at, val FROM s', '{t}', ARRAY['SELECT count(*), sum(id), sum(val), count(DISTINCT tableoid) FROM t'], '{700,10000}');
SELECT at_once();
SELECT hybridiot.create_pipeline('changes', 'INSERT INTO t (id, device) SELECT id, device FROM s', batch_rows => 100, enabled => false);
SELECT hybridiot.run_pipeline('changes', 1000);
ALTER TABLE t ADD COLUMN late int DEFAULT 5, ALTER id TYPE bigint;
SELECT hybridiot.run_pipeline('changes', 1000);
ALTER TABLE t ADD CHECK (id <> 3300);
ALTER TABLE t DETACH PARTITION t3;
ALTER TABLE t ATTACH PARTITION t3 FOR VALUES WITH (MODULUS 20, REMAINDER 3);
SELECT hybridiot.run_pipeline('changes');
SELECT count(*), sum(id), count(late), count(DISTINCT tableoid) FROM t;
SELECT "offset", sqlstate FROM hybridiot.dead_letter WHERE pipeline = 'changes' ORDER BY 1;

SET client_min_messages = warning;
SELECT hybridiot.drop_pipeline('changes');
DROP SCHEMA bulk CASCADE;
DROP SERVER bulk_log CASCADE;
DROP SERVER here CASCADE;
DROP EXTENSION pg_walinspect;
DROP EXTENSION postgres_fdw;
DROP OWNED BY bulk_owner;
DROP ROLE bulk_owner;
