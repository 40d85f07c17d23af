-- A pipeline's owner whose code tries to become somebody else, in every place that a pipeline reaches; a superuser runs it.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS hybridiot;
CREATE ROLE regress_trojan;
CREATE ROLE regress_trojan_other;
CREATE SCHEMA trojan AUTHORIZATION regress_trojan;
CREATE SERVER trojan_log FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (transport 'table');
GRANT USAGE ON FOREIGN SERVER trojan_log TO regress_trojan;
SET ROLE regress_trojan;
SET search_path = trojan;

-- What is tried, and what came of it.
CREATE TABLE attempt (statement text);
INSERT INTO attempt VALUES
  ('RESET ROLE'), ('SET ROLE NONE'), ('SET ROLE regress_trojan_other'), ('RESET SESSION AUTHORIZATION'), ('SET SESSION AUTHORIZATION DEFAULT'), ('RESET ALL'),
  ('SELECT set_config(''role'', ''none'', false)'), ('SELECT set_config(''session_authorization'', session_user, true)'),
  ('DISCARD ALL'), ('COMMIT'), ('ALTER ROLE regress_trojan SUPERUSER'), ('GRANT pg_execute_server_program TO regress_trojan'),
  ('CREATE TEMP TABLE t (a int)'),
  ('DECLARE c CURSOR WITH HOLD FOR SELECT 1'), ('PREPARE p AS SELECT 1'), ('LISTEN trojan'), ('LOAD ''auto_explain'''),
  ('COPY attempt TO PROGRAM ''true'''), ('SELECT pg_read_file(''postgresql.conf'')'), ('SELECT rolpassword FROM pg_authid'),
  ('SET hybridiot.broker_networks = '''''), ('SET hybridiot.secret_directory = ''/'''), ('SHOW hybridiot.secret_directory'),
  ('INSERT INTO hybridiot.pipeline_progress VALUES (1)'), ('UPDATE hybridiot.pipeline_definition SET owner = 10'), ('UPDATE hybridiot.pipeline_position SET next_offset = 0'),
  ('DELETE FROM hybridiot.dead_letter_record'), ('SELECT hybridiot.finished_groups()'), ('SELECT hybridiot.run_pipeline(''trojan'')'),
  ('SELECT hybridiot.alter_pipeline(''trojan'', owner => 10::regrole)'),
  ('CREATE EVENT TRIGGER e ON ddl_command_end EXECUTE FUNCTION trojan.trigger()'),
  ('SET CONSTRAINTS ALL DEFERRED'), ('SELECT pg_advisory_unlock_all()'), ('SET search_path = trojan, pg_catalog'), ('SET session_replication_role = replica');
-- Asleep while this file, in a session that is a superuser's, builds it.
CREATE TABLE armed (since timestamptz);
CREATE TABLE outcome (place text, statement text, state text, who name);

CREATE FUNCTION escape(place text) RETURNS bool LANGUAGE plpgsql AS $$
DECLARE
  statement text;
BEGIN
  IF NOT EXISTS (SELECT FROM trojan.armed) OR EXISTS (SELECT FROM trojan.outcome o WHERE o.place = escape.place) THEN
    RETURN true;
  END IF;
  FOR statement IN SELECT a.statement FROM trojan.attempt a LOOP
    BEGIN
      EXECUTE statement;
      INSERT INTO trojan.outcome VALUES (place, statement, 'done', current_user);
    EXCEPTION WHEN OTHERS THEN
      INSERT INTO trojan.outcome VALUES (place, statement, SQLSTATE, current_user);
    END;
  END LOOP;
  RETURN true;
END $$;
CREATE FUNCTION quiet_escape(place text) RETURNS bool LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN RETURN trojan.escape(place); END $$;
CREATE FUNCTION trigger() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM trojan.escape(TG_NAME); RETURN NEW; END $$;
CREATE FUNCTION step(state int, value int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN PERFORM trojan.escape('aggregate step'); RETURN state + value; END $$;
CREATE FUNCTION ending(state int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN PERFORM trojan.escape('aggregate end'); RETURN state; END $$;
CREATE FUNCTION merge(a int, b int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN PERFORM trojan.escape('aggregate merge'); RETURN a + b; END $$;
CREATE AGGREGATE total(int) (sfunc = trojan.step, stype = int, initcond = 0, finalfunc = trojan.ending, combinefunc = trojan.merge, parallel = safe);
CREATE FUNCTION more(int, int) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN PERFORM trojan.escape('operator'); RETURN true; END $$;
CREATE OPERATOR >>> (leftarg = int, rightarg = int, function = trojan.more);
CREATE TYPE kind AS ENUM ('a');
CREATE FUNCTION to_kind(int) RETURNS trojan.kind LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN PERFORM trojan.escape('cast'); RETURN 'a'; END $$;
CREATE CAST (int AS trojan.kind) WITH FUNCTION trojan.to_kind(int) AS ASSIGNMENT;
CREATE FUNCTION kind_to_json(trojan.kind) RETURNS json LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN PERFORM trojan.escape('cast to json'); RETURN '1'; END $$;
CREATE CAST (trojan.kind AS json) WITH FUNCTION trojan.kind_to_json(trojan.kind);
CREATE DOMAIN checked AS int CHECK (trojan.escape('domain'));

CREATE TABLE log (partition int, "offset" bigint, "timestamp" timestamptz, key bytea, value bytea, headers jsonb);
INSERT INTO log VALUES (0, 0, '2026-01-01', NULL, '{"n": 1}', NULL), (0, 1, '2026-01-02', NULL, '{"n": 2}', NULL), (0, 2, '2026-01-01', NULL, '{"n": 3}', NULL);
CREATE FOREIGN TABLE stream (n checked, at timestamptz OPTIONS (metadata 'timestamp')) SERVER trojan_log OPTIONS (topic 't', source 'trojan.log');

CREATE TABLE target (n int, k trojan.kind, d bool DEFAULT trojan.escape('default'), g bool GENERATED ALWAYS AS (trojan.quiet_escape('generated')) STORED,
  CHECK (trojan.escape('check')));
CREATE INDEX ON target (quiet_escape('index'));
CREATE TRIGGER before BEFORE INSERT ON target FOR EACH ROW EXECUTE FUNCTION trigger();
CREATE TRIGGER after AFTER INSERT ON target FOR EACH ROW EXECUTE FUNCTION trigger();
CREATE TRIGGER "after statement" AFTER INSERT ON target EXECUTE FUNCTION trigger();
CREATE CONSTRAINT TRIGGER "constraint" AFTER INSERT ON target DEFERRABLE INITIALLY IMMEDIATE FOR EACH ROW EXECUTE FUNCTION trigger();
ALTER TABLE target ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY policy ON target WITH CHECK (trojan.escape('policy'));
CREATE VIEW seen AS SELECT n FROM stream WHERE escape('view');
CREATE TABLE totals (during tstzrange, k trojan.kind, total int);
SELECT hybridiot.create_pipeline('trojan', 'INSERT INTO target (n, k) SELECT n, n::int FROM stream WHERE n::int >>> 0', enabled => false);
SELECT hybridiot.create_pipeline('trojan windows', 'INSERT INTO totals SELECT hybridiot.tumble(at, ''1 s''), n::int::trojan.kind, total(n::int) FROM stream GROUP BY 1, 2', enabled => false);
RESET ROLE;

-- SET CONSTRAINTS is the one that would have an effect later; it gets a pipeline of its own below.
DELETE FROM trojan.attempt WHERE statement LIKE 'SET CONSTRAINTS%';
INSERT INTO trojan.armed VALUES (now());
SELECT hybridiot.run_pipeline('trojan');
SELECT hybridiot.run_pipeline('trojan windows');
SELECT hybridiot.alter_pipeline('trojan', batch_rows => 5);
SELECT hybridiot.alter_pipeline('trojan windows', lateness => '1 s');
SELECT count(*) FROM trojan.target;
SELECT string_agg(DISTINCT place, ', ' ORDER BY place) AS places FROM trojan.outcome;
SELECT DISTINCT who FROM trojan.outcome;
-- each has one fate everywhere
SELECT statement, string_agg(DISTINCT state, ', ') AS state FROM trojan.outcome GROUP BY statement ORDER BY statement COLLATE "C";
SELECT current_user = session_user AS myself, current_setting('search_path') AS search_path, rolsuper AS super FROM pg_roles WHERE rolname = 'regress_trojan';
SELECT relname FROM pg_class WHERE relnamespace = pg_my_temp_schema();
SELECT name FROM pg_prepared_statements;
SELECT name FROM pg_cursors WHERE is_holdable;

TRUNCATE trojan.armed;

\set VERBOSITY terse
-- deferred by whatever is reached first, even while the record is decoded
SET ROLE regress_trojan;
CREATE TABLE pending (n int);
CREATE CONSTRAINT TRIGGER late AFTER INSERT ON pending DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION trigger();
CREATE FUNCTION defer() RETURNS bool LANGUAGE plpgsql AS $$ BEGIN SET CONSTRAINTS ALL DEFERRED; INSERT INTO trojan.pending VALUES (1); RETURN true; END $$;
CREATE DOMAIN deferring AS int CHECK (trojan.defer());
CREATE FOREIGN TABLE deferring_stream (n deferring, at timestamptz OPTIONS (metadata 'timestamp')) SERVER trojan_log OPTIONS (topic 't', source 'trojan.log');
CREATE TABLE plain (n int);
SELECT hybridiot.create_pipeline('deferring', 'INSERT INTO plain SELECT n FROM deferring_stream', enabled => false);
SELECT hybridiot.create_pipeline('deferring where', 'INSERT INTO plain SELECT n FROM stream WHERE trojan.defer()', enabled => false);
CREATE FUNCTION deferring_size() RETURNS interval LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN PERFORM trojan.defer(); RETURN '1 s'; END $$;
SELECT hybridiot.create_pipeline('deferring size', 'INSERT INTO totals SELECT hybridiot.tumble(at, trojan.deferring_size()), NULL::trojan.kind, count(*) FROM stream GROUP BY 1, 2', enabled => false);
RESET ROLE;
TRUNCATE trojan.outcome;
INSERT INTO trojan.armed VALUES (now());
SELECT hybridiot.run_pipeline('deferring');
SELECT hybridiot.run_pipeline('deferring where');
SELECT count(*) FROM trojan.outcome;
TRUNCATE trojan.armed;

-- names that stand in front of ours, and of PostgreSQL's, in the search path of who calls
SET ROLE regress_trojan;
CREATE TABLE shadow (name text);
CREATE FUNCTION note(text) RETURNS void LANGUAGE sql AS 'INSERT INTO trojan.shadow VALUES ($1)';
CREATE FUNCTION same(int, int) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN PERFORM trojan.note('int = int'); RETURN $1 OPERATOR(pg_catalog.=) $2; END $$;
CREATE FUNCTION same(text, text) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN PERFORM trojan.note('text = text'); RETURN $1 OPERATOR(pg_catalog.=) $2; END $$;
CREATE FUNCTION same(name, name) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN PERFORM trojan.note('name = name'); RETURN $1 OPERATOR(pg_catalog.=) $2; END $$;
CREATE FUNCTION same(bigint, bigint) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN PERFORM trojan.note('bigint = bigint'); RETURN $1 OPERATOR(pg_catalog.=) $2; END $$;
CREATE OPERATOR = (leftarg = int, rightarg = int, function = same);
CREATE OPERATOR = (leftarg = text, rightarg = text, function = same);
CREATE OPERATOR = (leftarg = name, rightarg = name, function = same);
CREATE OPERATOR = (leftarg = bigint, rightarg = bigint, function = same);
CREATE FUNCTION pg_has_role(oid, text) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN PERFORM trojan.note('pg_has_role'); RETURN true; END $$;
CREATE FUNCTION unnest(anyarray) RETURNS SETOF anyelement LANGUAGE plpgsql AS $$ BEGIN PERFORM trojan.note('unnest'); RETURN QUERY SELECT * FROM pg_catalog.unnest($1); END $$;
CREATE FUNCTION max(bigint) RETURNS bigint LANGUAGE plpgsql AS $$ BEGIN PERFORM trojan.note('max'); RETURN $1; END $$;
SELECT hybridiot.drop_pipeline(name) FROM hybridiot.pipeline WHERE name::text LIKE 'deferring%';
INSERT INTO log VALUES (0, 3, '2026-01-03', NULL, '{"n": 4}', NULL);
RESET ROLE;
TRUNCATE trojan.shadow;
SET search_path = trojan, pg_catalog, public;
SELECT hybridiot.run_pipeline('trojan') > 0 AS ran;
SELECT hybridiot.run_pipeline('trojan windows') > 0 AS ran;
SELECT pg_catalog.count(*) > 0 AS some FROM hybridiot.pipeline;
SELECT pg_catalog.count(*) > 0 AS some FROM hybridiot.position;
SELECT pg_catalog.count(*) > 0 AS some FROM hybridiot.dead_letter;
SELECT pg_catalog.count(*) >= 0 AS some FROM hybridiot.open_window;
SELECT pg_catalog.count(*) >= 0 AS some FROM hybridiot.stat_pipeline;
SELECT hybridiot.alter_pipeline('trojan', max_errors => 5);
SELECT hybridiot.pause_pipeline('trojan');
RESET search_path;
SELECT * FROM trojan.shadow;

-- others' pipelines: not to be seen, changed, taken or given away
SET search_path = trojan;
SET ROLE regress_trojan_other;
CREATE FUNCTION pg_temp.leak(text) RETURNS bool LANGUAGE plpgsql COST 0.0001 AS $$ BEGIN RAISE WARNING 'leaked: %', $1; RETURN true; END $$;
SELECT name FROM hybridiot.pipeline WHERE pg_temp.leak(statement) OR pg_temp.leak(name::text);
SELECT message FROM hybridiot.dead_letter WHERE pg_temp.leak(convert_from(value, 'UTF8')) OR pg_temp.leak(message);
SELECT topic FROM hybridiot.position WHERE pg_temp.leak(topic);
SELECT pipeline FROM hybridiot.stat_pipeline WHERE pg_temp.leak(pipeline::text) OR pg_temp.leak(last_error);
SELECT hybridiot.alter_pipeline('trojan', batch_rows => 1);
SELECT hybridiot.alter_pipeline('trojan', owner => 'regress_trojan_other');
SELECT hybridiot.alter_pipeline('trojan', statement => 'SELECT 1');
SELECT hybridiot.resume_pipeline('trojan');
SELECT hybridiot.run_pipeline('trojan');
SELECT hybridiot.drop_pipeline('trojan');
DROP FUNCTION pg_temp.leak(text);
RESET ROLE;
CREATE TABLE public.trojan_super (n int);
SELECT hybridiot.create_pipeline('super', 'INSERT INTO public.trojan_super SELECT n FROM trojan.stream', enabled => false);
SET ROLE regress_trojan;
SELECT hybridiot.alter_pipeline('super', statement => 'INSERT INTO trojan.plain SELECT 1 FROM trojan.stream');
SELECT hybridiot.alter_pipeline('super', owner => 'regress_trojan');
SELECT hybridiot.alter_pipeline('trojan', owner => (SELECT oid FROM pg_roles WHERE rolsuper ORDER BY oid LIMIT 1)::regrole) IS NULL;
SELECT hybridiot.alter_pipeline('trojan', owner => 'regress_trojan_other');

-- the owner of a stream that somebody else's pipeline reads cannot make it read what he may not
RESET ROLE;
CREATE TABLE public.trojan_secret AS SELECT * FROM trojan.log;
SET ROLE regress_trojan;
ALTER FOREIGN TABLE stream OPTIONS (SET source 'public.trojan_secret');
RESET ROLE;
SELECT hybridiot.run_pipeline('super');
SELECT count(*) FROM trojan.stream;
GRANT SELECT ON public.trojan_secret TO regress_trojan;
SELECT count(n) FROM trojan.deferring_stream WHERE false;
SELECT count(*) FROM trojan.stream;

SELECT hybridiot.drop_pipeline(name) FROM hybridiot.pipeline WHERE name IN ('super', 'trojan', 'trojan windows');
RESET search_path;
DROP TABLE public.trojan_super, public.trojan_secret;
DROP SCHEMA trojan CASCADE;
DROP SERVER trojan_log CASCADE;
DROP ROLE regress_trojan, regress_trojan_other;
