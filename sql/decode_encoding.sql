-- Payloads are UTF-8, whatever the database's encoding.
SELECT current_database() AS here \gset
CREATE DATABASE regress_latin1 ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0;
\c regress_latin1
SET client_min_messages = warning;
CREATE EXTENSION hybridiot;
RESET client_min_messages;
SET client_encoding = 'UTF8';
\set SHOW_CONTEXT never
CREATE SERVER archive FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (transport 'table');
CREATE TABLE one (partition int, "offset" bigint, "timestamp" timestamptz, key bytea, value bytea, headers jsonb);
CREATE FOREIGN TABLE as_json ("größe" text, n int, j jsonb, v varchar(3)) SERVER archive OPTIONS (topic 't', source 'public.one');
CREATE FOREIGN TABLE as_csv (a text, b text) SERVER archive OPTIONS (topic 't', source 'public.one', format 'csv');
CREATE FOREIGN TABLE as_text (a text) SERVER archive OPTIONS (topic 't', source 'public.one', format 'text');
CREATE FOREIGN TABLE as_raw (a bytea) SERVER archive OPTIONS (topic 't', source 'public.one', format 'raw');
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
-- e2 82 ac is a euro sign, which LATIN1 lacks
SELECT stream, what, decoded(stream, replace(value, ' ', '')::bytea) FROM (VALUES
  ('as_json', 'a name and a value', '\x7b22 6772c3b6c39f65 223a22 c3bc 227d'),
  ('as_json', 'in escapes', '\x7b22 67725c75303066365c753030646665 223a22 5c7530306663 227d'),
  ('as_json', 'euro', '\x7b22 6772c3b6c39f65 223a22 e282ac 227d'),
  ('as_json', 'euro in an escape', '\x7b22 6772c3b6c39f65 223a22 5c7532306163 227d'),
  ('as_json', 'no number', '\x7b22 6e 223a22 c3bc 227d'),
  ('as_json', 'no number, euro', '\x7b22 6e 223a22 e282ac 227d'),
  ('as_json', 'a bad escape beside it', '\x7b22 76 223a22 c3bc5c75643833 64 227d'),
  ('as_json', 'three characters', '\x7b22 76 223a22 c3bcc3bcc3bc 227d'),
  ('as_json', 'four characters', '\x7b22 76 223a22 c3bcc3bcc3bcc3bc 227d'),
  ('as_json', 'jsonb', '\x7b22 6a 223a7b22 c3bc 223a22 c3bc 227d7d'),
  ('as_json', 'jsonb, euro', '\x7b22 6a 223a7b22 e282ac 223a317d7d'),
  ('as_json', 'LATIN1', '\x7b22 6772f6df65 223a317d'),
  ('as_csv', 'both', '\xc3bc 2c 22c3bc22'), ('as_csv', 'euro', '\xe282ac 2c'), ('as_csv', 'LATIN1', '\xfc 2c'),
  ('as_text', 'text', '\xc3bc'), ('as_text', 'euro', '\xe282ac'), ('as_raw', 'any bytes', '\xe282ac fc 00')
) AS t (stream, what, value);
\c :here
DROP DATABASE regress_latin1;
