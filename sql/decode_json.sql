-- What JSON becomes in a column of each type.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS hybridiot;
RESET client_min_messages;
SET timezone = 'UTC';
SET datestyle = 'ISO, MDY';
SET intervalstyle = 'postgres';
SET bytea_output = 'hex';
\set SHOW_CONTEXT never
\pset null '(null)'
CREATE SERVER archive FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (transport 'table');
CREATE TABLE one (partition int, "offset" bigint, "timestamp" timestamptz, key bytea, value bytea, headers jsonb);

CREATE TYPE mood AS ENUM ('calm', 'hot');
CREATE TYPE reading AS (n int, temp numeric(4, 1), tags text[]);
CREATE DOMAIN percent AS int CHECK (VALUE BETWEEN 0 AND 100);
CREATE DOMAIN required AS text NOT NULL;
CREATE DOMAIN blob AS bytea CHECK (length(VALUE) < 4);
CREATE DOMAIN broken AS int CHECK (VALUE / (VALUE - 1) > 0);

-- the value of {"v": value} in a column v of this type, or why it has none
CREATE FUNCTION decoded(type text, value text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  result text;
BEGIN
  EXECUTE format('CREATE FOREIGN TABLE try (v %s) SERVER archive OPTIONS (topic ''t'', source ''public.one'')', type);
  TRUNCATE one;
  INSERT INTO one VALUES (0, 0, now(), NULL, convert_to('{"v": ' || value || '}', 'UTF8'), NULL);
  BEGIN
    EXECUTE 'SELECT v::text FROM try' INTO result;
  EXCEPTION WHEN OTHERS THEN
    result := SQLSTATE || ': ' || replace(SQLERRM, 'undecodable record: column "v"', '');
  END;
  DROP FOREIGN TABLE try;
  RETURN result;
END $$;

-- booleans and numbers
SELECT type, value, decoded(type, value) FROM (VALUES
  ('bool', 'true'), ('bool', 'false'), ('bool', '"yes"'), ('bool', '1'), ('bool', '"maybe"'), ('bool', '2'), ('bool', '[]'),
  ('int2', '-32768'), ('int2', '32768'), ('int2', '1.0'), ('int2', '1e2'), ('int2', 'true'), ('int2', '" 7 "'), ('int2', '""'),
  ('int4', '2147483647'), ('int4', '-2147483649'), ('int4', '"42"'), ('int4', '"4 2"'), ('int4', '{}'),
  ('int8', '9223372036854775807'), ('int8', '-9223372036854775808'), ('int8', '9223372036854775808'), ('int8', '000'),
  ('float4', '1.5'), ('float4', '0.1'), ('float4', '1e39'), ('float4', '"NaN"'), ('float4', '1e-50'),
  ('float8', '-0.0'), ('float8', '12345678901234567890'), ('float8', '0.1e-5'), ('float8', '1e400'), ('float8', '"-Infinity"'), ('float8', 'NaN'),
  ('float8', '4.9e-324'), ('float8', '1e-400'), ('float8', '"1,5"'), ('float8', 'false'),
  ('numeric', '20.50'), ('numeric', '-0.00'), ('numeric', '1e3'), ('numeric', '12345678901234567890.123456789012345678901234567890'),
  ('numeric', '-999999999999999999'), ('numeric', '0.000000000000000001'), ('numeric', '1e-20'), ('numeric', '"NaN"'), ('numeric', '"Infinity"'), ('numeric', '1e200000'),
  ('numeric(5, 2)', '1.235'), ('numeric(5, 2)', '1234.5'), ('numeric', '"12 3"'), ('money', '"$1,234.56"'), ('money', '"?"'),
  ('oid', '4294967295'), ('oid', '4294967296'), ('regclass', '"pg_class"'), ('regclass', '"no_such_table"'), ('regclass', '"a.b.c.d"'),
  ('regtype', '"int4[]"'), ('regtype', '"no such"'), ('regtype', '"((("'), ('regproc', '"no_such"'), ('regrole', '"nobody at all"'), ('aclitem', '"nobody=r/nobody"'),
  ('xid8', '7'), ('pg_lsn', '"16/B374D848"'), ('pg_lsn', '"?"'), ('tid', '"(0,1)"'), ('tid', '"(0"')
) AS t (type, value);

-- text and bytes
SELECT type, value, decoded(type, value) FROM (VALUES
  ('text', '"a"'), ('text', '""'), ('text', '"\u00e9\n\ud83d\ude00\\\/"'), ('text', '"\u0000"'), ('text', '"\ud83d"'), ('text', '17'), ('text', 'true'), ('text', 'null'),
  ('text', '{"a": [1, 2]}'), ('text', '[ ]'),
  ('varchar(3)', '"abc"'), ('varchar(3)', '"abcd"'), ('varchar(3)', '"abc  "'), ('varchar(3)', '"\u00e9\u00e9\u00e9"'), ('varchar(3)', '1234'),
  ('char(3)', '"a"'), ('char(3)', '"\u00e9"'), ('char(3)', '"abcd"'), ('"char"', '"x"'), ('name', '"n"'), ('bit(3)', '"101"'), ('bit(3)', '"1011"'), ('varbit(3)', '"1"'),
  ('bytea', '"\\xdeadBEEF"'), ('bytea', '"\\x"'), ('bytea', '"\\xdead b"'), ('bytea', '"\\xzz"'), ('bytea', '"\\000"'),
  ('bytea', '"3q2+7w=="'), ('bytea', '"3q2-7w"'), ('bytea', '"3q2+7w="'), ('bytea', '"3q2\n+7w=="'), ('bytea', '""'), ('bytea', '"deadbeef"'), ('bytea', '"a"'),
  ('bytea', '"abcd="'), ('bytea', '"ab=c"'), ('bytea', '"not base64!"'), ('bytea', '"YQ"'), ('bytea', '"YWI"'), ('bytea', '1234'), ('bytea', 'true'), ('bytea', '["YQ=="]'),
  ('blob', '"YWI"'), ('blob', '"YWJjZA"'), ('blob', 'null')
) AS t (type, value);

-- dates and times: ISO, and numbers since 1970, in seconds below 10^11 and in milliseconds from there
SELECT type, value, decoded(type, value) FROM (VALUES
  ('timestamptz', '"2026-01-01T00:00:01.5Z"'), ('timestamptz', '"2026-01-01 02:00:00+02"'), ('timestamptz', '"2026-01-01T00:00:00.1234567Z"'), ('timestamptz', '"2026-01-01"'),
  ('timestamptz', '"2026-02-29T00:00:00Z"'), ('timestamptz', '"2026-01-01T24:00:00Z"'), ('timestamptz', '"2026-01-01T00:00:60Z"'), ('timestamptz', '"20260101T000000Z"'),
  ('timestamptz', '1767225601'), ('timestamptz', '1767225601.25'), ('timestamptz', '1767225601000'), ('timestamptz', '1767225601000.5'), ('timestamptz', '1.767225601e12'),
  ('timestamptz', '0'), ('timestamptz', '-1'), ('timestamptz', '99999999999'), ('timestamptz', '100000000000'), ('timestamptz', '-100000000000'), ('timestamptz', '1767225601123456.789'),
  ('timestamptz', '9223372036854775807'), ('timestamptz', '1e300'), ('timestamptz', '99999999999999999999'), ('timestamptz', '"1767225601000"'), ('timestamptz', '"now-ish"'),
  ('timestamptz', '"infinity"'), ('timestamptz', '"294277-01-01T00:00:00Z"'), ('timestamptz', 'true'), ('timestamptz', '[]'), ('timestamptz(0)', '1767225601.75'), ('timestamptz(1)', '"2026-01-01T00:00:00.26Z"'),
  ('timestamp', '"2026-01-01T00:00:01"'), ('timestamp', '"2026-01-01T00:00:01+05"'), ('timestamp', '1767225601000'), ('timestamp(0)', '1767225600500'),
  ('date', '"2026-01-01"'), ('date', '"2026-02-30"'), ('date', '1767225599'), ('date', '1767225600000'), ('date', '-1'), ('date', '"2026-01-01T23:00:00Z"'), ('date', '1e300'),
  ('time', '"12:34:56.7"'), ('time', '"12:34:56Z"'), ('time', '"25:00"'), ('time', '123456'), ('time(0)', '"12:34:56.7"'), ('timetz', '"12:34:56+02"'), ('timetz', '0'),
  ('interval', '"PT1H30M"'), ('interval', '"2 days"'), ('interval', '90'), ('interval', '"soon"'), ('interval', '"999999999999 years"')
) AS t (type, value);

-- the rest, through the type's input function
SELECT type, value, decoded(type, value) FROM (VALUES
  ('uuid', '"00000000-0000-4000-8000-00000000000A"'), ('uuid', '"0000000000004000800000000000000a"'), ('uuid', '"no"'), ('uuid', '7'),
  ('inet', '"10.0.0.1/8"'), ('inet', '"10.0.0.300"'), ('cidr', '"10.0.0.0/8"'), ('cidr', '"10.0.0.1/8"'), ('macaddr', '"08:00:2b:01:02:03"'), ('macaddr', '"?"'), ('macaddr8', '"08:00:2b:01:02:03:04:05"'),
  ('point', '"(1,2)"'), ('point', '[1, 2]'), ('point', '{"x": 1}'),
  ('mood', '"hot"'), ('mood', '"cold"'), ('mood', '1'),
  ('percent', '99'), ('percent', '101'), ('percent', '"x"'), ('percent', 'null'), ('required', '"x"'), ('required', 'null'), ('broken', '3'), ('broken', '1'),
  ('int4range', '"[1,5)"'), ('int4range', '"[5,1)"'), ('int4range', '"[1"'), ('tstzrange', '"[2026-01-01,)"'), ('int4multirange', '"{[1,2],[5,6]}"'), ('int4multirange', '"{[1"'),
  ('tsvector', '"a b:2"'), ('tsvector', '"a:"'), ('tsvector', '"''a"'), ('tsquery', '"a & b"'), ('tsquery', '"a &"'), ('jsonpath', '"$.a"'), ('jsonpath', '"$..."'),
  ('xml', '"<a/>"'), ('xml', '"<a"')
) AS t (type, value);

-- json and jsonb take any value; arrays and composites are filled from JSON, or from PostgreSQL's own text form
SELECT type, value, decoded(type, value) FROM (VALUES
  ('json', '{"b": 1,  "a": "\u00e9"}'), ('json', '"x\"y"'), ('json', '12.0'), ('json', 'null'), ('jsonb', '{"b": 1, "a": [true, null]}'), ('jsonb', '"text"'), ('jsonb', '"\u0000"'), ('jsonb', '1e200000'),
  ('int[]', '[1, null, 3]'), ('int[]', '[[1, 2], [3, 4]]'), ('int[]', '[[1, 2], [3]]'), ('int[]', '[1, "x"]'), ('int[]', '"{1,2}"'), ('int[]', '"{1,"'), ('int[]', '{"a": 1}'), ('int[]', '5'), ('int[]', '[]'),
  ('bool[]', '[true, "off", null]'), ('float8[]', '[ 1.5 ,-2e3,"NaN"]'), ('numeric[]', '[1.50, 1e3]'), ('text[]', '["\u00e9", "\"", 1.0, true]'), ('char(3)[]', '["a", "abc"]'), ('json[]', '["a", 1]'), ('int2vector', '[1, 2]'),
  ('int[]', '[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34]'),
  ('int[]', '[2147483648]'), ('text[]', '["a", "b,c", "", null, {"d": 1}]'), ('timestamptz[]', '["2026-01-01T00:00:00Z"]'), ('bytea[]', '["\\x00ff"]'), ('tsvector[]', '["a", "''b"]'), ('regclass[]', '["no_such_table"]'),
  ('varchar(2)[]', '["ab"]'), ('varchar(2)[]', '["abc"]'), ('numeric(3, 1)[]', '[1.25]'), ('percent[]', '[1, 100]'), ('percent[]', '[1, 101]'), ('mood[]', '["calm"]'), ('mood[]', '["?"]'),
  ('reading', '{"n": 1, "temp": 20.55, "tags": ["a", "b"], "more": 1}'), ('reading', '{}'), ('reading', '"(1,2.0,{x})"'), ('reading', '"(1"'), ('reading', '[1]'), ('reading', '{"n": "x"}'), ('reading', '{"temp": 12345}'), ('reading', '7'),
  ('reading[]', '[{"n": 1}, {"n": 2, "tags": [null]}]'), ('reading[]', '[{"n": []}]')
) AS t (type, value);

-- what is shown of a value is short, and ends at a character's end
SELECT decoded('int', '"' || repeat('é', 1000) || '"');
SELECT decoded('mood', '"' || repeat('x', 1000000) || '"');

-- paths lead through objects; the last of two equal keys counts
CREATE FOREIGN TABLE nested (a int OPTIONS (path 'x.y.a'), b text OPTIONS (path 'x.y.b'), y jsonb OPTIONS (path 'x.y'), x json, other int)
  SERVER archive OPTIONS (topic 't', source 'public.one');
CREATE FUNCTION nested(value text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  result text;
BEGIN
  TRUNCATE one;
  INSERT INTO one VALUES (0, 0, now(), NULL, convert_to(value, 'UTF8'), NULL);
  SELECT n::text FROM nested n INTO result;
  RETURN result;
EXCEPTION WHEN OTHERS THEN
  RETURN SQLSTATE || ': ' || SQLERRM;
END $$;
SELECT value, nested(value) FROM (VALUES
  ('{"x": {"y": {"a": 1, "b": "two"}}, "other": 3}'),
  ('{"other": 3, "x": {"z": {"a": 5}, "y": {"c": {"a": 6}, "b": "two", "a": 1}}}'),
  ('{"x": {"y": {"a": 1, "b": "one"}}, "x": {"y": {"a": 2}}}'),
  ('{"x": {"y": null}}'), ('{"x": null}'), ('{}'), ('{"x": {"y": 5}}'), ('{"x": []}'),
  ('{"x": {"y": {"a": "bad"}}, "x": {"y": {"a": 2}}}'), ('{"x\u002ey": 1, "\u0078": {"y": {"a": 4}}}'),
  ('[]'), ('1'), ('null'), (''), ('{'), ('{"x": 1,}'), ('{"x": 01}'), ('{"x": "' || chr(9) || '"}'), ('{"x": 1} x'), ('{x: 1}')
) AS t (value);
SELECT nested(repeat('{"x": ', 300) || '1' || repeat('}', 300));
TRUNCATE one;
INSERT INTO one VALUES (0, 0, now(), NULL, '\x7b2278223a2022ff227d', NULL);
SELECT * FROM nested;

-- no value throws past the decoder: each is a dead letter that says why, and the good one goes in
CREATE FOREIGN TABLE mixed (i int, c regclass, t regtype, p percent, q broken, r reading, w tsvector[], m mood, v varchar(2), y bytea, j jsonb, z timestamptz, x xml, a aclitem)
  SERVER archive OPTIONS (topic 't', source 'public.one');
TRUNCATE one;
INSERT INTO one SELECT 0, row_number() OVER (), '2026-01-01', NULL, convert_to(value, 'UTF8'), NULL FROM (VALUES
  ('{"i": "x"}'), ('{"c": "nowhere"}'), ('{"c": "a.b.c.d"}'), ('{"t": "((("}'), ('{"p": 101}'), ('{"q": 1}'), ('{"r": {"n": "x"}}'), ('{"r": "("}'), ('{"w": ["''"]}'), ('{"m": "cold"}'),
  ('{"v": "abc"}'), ('{"y": "?"}'), ('{"j": "\u0000"}'), ('{"z": "never"}'), ('{"z": 1e300}'), ('{"x": "<"}'), ('{"a": "nobody=r/nobody"}'), ('{'), ('{"i": 1, "p": 1, "c": "pg_class"}')) AS t (value);
CREATE TABLE good (i int, p int, c text);
SELECT hybridiot.create_pipeline('mixed', 'INSERT INTO good SELECT i, p, c::text FROM mixed', enabled => false);
SELECT hybridiot.run_pipeline('mixed');
TABLE good;
SELECT "offset", reason, sqlstate, message FROM hybridiot.dead_letter WHERE pipeline = 'mixed' ORDER BY "offset";
SELECT hybridiot.drop_pipeline('mixed');

DROP SERVER archive CASCADE;
DROP TABLE one, good;
DROP FUNCTION decoded, nested;
DROP TYPE mood, reading;
DROP DOMAIN percent, required, blob, broken;
