-- Formats beside JSON: csv, text, raw.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS hybridiot;
RESET client_min_messages;
SET timezone = 'UTC';
SET datestyle = 'ISO, MDY';
\set SHOW_CONTEXT never
\pset null '(null)'
CREATE SERVER archive FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (transport 'table');
CREATE TABLE one (partition int, "offset" bigint, "timestamp" timestamptz, key bytea, value bytea, headers jsonb);

-- the row of a stream when its topic holds this one record, or why it has none
CREATE FUNCTION decoded(stream text, value bytea) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  result text;
BEGIN
  TRUNCATE one;
  INSERT INTO one VALUES (0, 0, now(), NULL, value, NULL);
  EXECUTE format('SELECT s::text FROM %I s', stream) INTO result;
  RETURN result;
EXCEPTION WHEN OTHERS THEN
  RETURN SQLSTATE || ': ' || SQLERRM;
END $$;

-- csv: COPY's rules; fields belong to the payload columns in their order
CREATE FOREIGN TABLE csv (device text, pos bigint OPTIONS (metadata 'offset'), ts timestamptz, temp numeric(5, 2), note text)
  SERVER archive OPTIONS (topic 't', source 'public.one', format 'csv', event_time 'ts');
SELECT value, decoded('csv', convert_to(value, 'UTF8')) FROM (VALUES
  ('d1,2026-01-01T00:00:00Z,20.5,fine'),
  (E'd1,2026-01-01T00:00:00Z,20.5,fine\n'), (E'd1,2026-01-01T00:00:00Z,20.5,fine\r\n'), (E'd1,2026-01-01T00:00:00Z,20.5,fine\r'),
  ('"d1","2026-01-01T00:00:00Z","20.5","fine"'),
  ('d1,2026-01-01T00:00:00Z,,'), ('"",2026-01-01T00:00:00Z,,""'), (',2026-01-01T00:00:00Z,, '),
  (E'd1,2026-01-01T00:00:00Z,1,"two\nlines, and ""quotes"""'), ('d"1",2026-01-01T00:00:00Z,1,a"b,c"d""e'), ('d1,2026-01-01T00:00:00Z,1,""""'), ('d1,2026-01-01T00:00:00Z,1,"a""b"'),
  ('d1,2026-01-01T00:00:00Z,1,\N'), ('d1,2026-01-01T00:00:00Z,1,\.'), ('d1,2026-01-01T00:00:00Z,1,é'),
  ('d1,2026-01-01T00:00:00Z,20.5'), ('d1,2026-01-01T00:00:00Z,20.5,fine,more'), (''), (E'\n'),
  (E'd1,2026-01-01T00:00:00Z,1,a\nd2,2026-01-01T00:00:00Z,1,a'), (E'd1,2026-01-01T00:00:00Z,1,a\n\n'), ('d1,2026-01-01T00:00:00Z,1,"a'), ('d1,2026-01-01T00:00:00Z,1,"a""'),
  ('d1,2026-01-01T00:00:00Z,twenty,a'), ('d1,2026-01-01T00:00:00Z,1234.5,a'), ('d1,,1,a'), ('d1,1767225600000,1,a'), ('d1,2026-01-01T00:00:00Z, 7 ,a')
) AS t (value);
SELECT decoded('csv', '\x64312cff2c2c'), decoded('csv', '\x6431002c2c2c'), decoded('csv', NULL);
CREATE DOMAIN required AS text NOT NULL;
CREATE FOREIGN TABLE csv_types (a int[], b bool, c jsonb, d bytea, e required) SERVER archive OPTIONS (topic 't', source 'public.one', format 'csv');
SELECT value, decoded('csv_types', convert_to(value, 'UTF8')) FROM (VALUES
  ('"{1,2}",t,"{""a"": 1}",\x00ff,x'), (',,,,'), ('{1,,,,x'), ('"{1",,,,x'), (',,,YWI=,x')
) AS t (value);

-- text: the payload is one value of any type
CREATE FOREIGN TABLE as_text (v text) SERVER archive OPTIONS (topic 't', source 'public.one', format 'text');
CREATE FOREIGN TABLE as_numeric (v numeric, pos bigint OPTIONS (metadata 'offset')) SERVER archive OPTIONS (topic 't', source 'public.one', format 'text');
CREATE FOREIGN TABLE as_json (v jsonb) SERVER archive OPTIONS (topic 't', source 'public.one', format 'text');
CREATE FOREIGN TABLE as_plain_json (v json) SERVER archive OPTIONS (topic 't', source 'public.one', format 'text');
CREATE FOREIGN TABLE as_time (v timestamptz) SERVER archive OPTIONS (topic 't', source 'public.one', format 'text', event_time 'v');
CREATE FOREIGN TABLE as_bytes (v bytea) SERVER archive OPTIONS (topic 't', source 'public.one', format 'text');
SELECT stream, value, decoded(stream, value) FROM (VALUES
  ('as_text', convert_to(E'line\nline, "é"\n', 'UTF8')), ('as_text', ''), ('as_text', '\xff'), ('as_text', '\x00'), ('as_text', NULL),
  ('as_numeric', '20.50'), ('as_numeric', ''), ('as_numeric', E'1\n'), ('as_numeric', '1;'),
  ('as_json', '{"a": 1}'), ('as_json', '{"a": '), ('as_plain_json', '{"a":  1}'), ('as_plain_json', '{"a": '), ('as_plain_json', ''), ('as_time', '2026-01-01T00:00:00Z'), ('as_time', 'infinity'), ('as_time', '1767225600'),
  ('as_bytes', convert_to('\x00ff', 'UTF8')), ('as_bytes', 'ab'), ('as_bytes', convert_to('\x0', 'UTF8'))
) AS t (stream, value);

-- raw: the payload's bytes
CREATE DOMAIN short AS bytea CHECK (length(VALUE) < 4);
CREATE FOREIGN TABLE as_raw (v bytea) SERVER archive OPTIONS (topic 't', source 'public.one', format 'raw');
CREATE FOREIGN TABLE as_short (v short) SERVER archive OPTIONS (topic 't', source 'public.one', format 'raw');
SELECT stream, value, decoded(stream, value) FROM (VALUES
  ('as_raw', '\x00ff7b'::bytea), ('as_raw', ''), ('as_raw', NULL), ('as_short', '\x00ff'), ('as_short', '\x00ff00ff')
) AS t (stream, value);

-- combinations that make no sense
CREATE FOREIGN TABLE bad_text (a text, b text, c text OPTIONS (metadata 'key')) SERVER archive OPTIONS (topic 't', source 'public.one', format 'text');
SELECT * FROM bad_text;
CREATE FOREIGN TABLE bad_raw (a text) SERVER archive OPTIONS (topic 't', source 'public.one', format 'raw');
SELECT * FROM bad_raw;
CREATE FOREIGN TABLE bad_path (a text, b text OPTIONS (path 'x.y')) SERVER archive OPTIONS (topic 't', source 'public.one', format 'csv');
SELECT * FROM bad_path;
SELECT hybridiot.create_pipeline('bad', 'SELECT * FROM bad_path');
CREATE FOREIGN TABLE bad_format (a text) SERVER archive OPTIONS (topic 't', source 'public.one', format 'CSV');
-- no payload column at all is fine
CREATE FOREIGN TABLE keys (key text OPTIONS (metadata 'key'), pos bigint OPTIONS (metadata 'offset')) SERVER archive OPTIONS (topic 't', source 'public.one', format 'raw');
SELECT decoded('keys', '\xff');

-- in a pipeline
TRUNCATE one;
INSERT INTO one SELECT 0, n, '2026-01-01', NULL, convert_to('d' || n || ',' || CASE n WHEN 3 THEN 'x' ELSE '2026-01-01' END || ',1,"line' || E'\n' || n || '"', 'UTF8'), NULL FROM generate_series(1, 5) n;
CREATE TABLE target (device text, ts timestamptz, temp numeric, note text);
SELECT hybridiot.create_pipeline('csv', 'INSERT INTO target SELECT device, ts, temp, note FROM csv', enabled => false);
SELECT hybridiot.run_pipeline('csv');
SELECT device, note FROM target ORDER BY device;
SELECT "offset", reason, sqlstate, message FROM hybridiot.dead_letter WHERE pipeline = 'csv';
SELECT hybridiot.drop_pipeline('csv');

DROP SERVER archive CASCADE;
DROP TABLE one, target;
DROP FUNCTION decoded;
DROP DOMAIN required, short;
