-- Reading a stream in a session. A table stands in for the topic.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS hybridiot;
RESET client_min_messages;
SET timezone = 'UTC';
\set SHOW_CONTEXT never
CREATE SERVER archive FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (transport 'table');
CREATE TABLE log (partition int, "offset" bigint, "timestamp" timestamptz, key bytea, value bytea, headers jsonb);
INSERT INTO log VALUES
  (0, 0, '2026-01-01 00:00:00Z', 'd1', '{"device": "d1", "ts": "2026-01-01T00:00:00Z", "sensor": {"temp": 20.5}}', '{"site": "north", "n": ["1", "2"]}'),
  (0, 1, '2026-01-01 00:00:01Z', 'd2', '{"device": "d2", "ts": 1767225601000, "sensor": {"temp": "21"}}', NULL),
  (0, 4, '2026-01-01 00:00:04Z', 'd1', NULL, NULL),
  (1, 7, '2026-01-01 00:00:02Z', NULL, '{"ts": "2026-01-01T00:00:02Z", "device": null}', NULL),
  (1, 8, NULL, '\xff00', '{"device": "d3", "ts": "2026-01-01T00:00:03Z", "sensor": {}}', '{"site": null}');

CREATE FOREIGN TABLE telemetry (
    device text,
    ts     timestamptz,
    temp   float8 OPTIONS (path 'sensor.temp'),
    site   text   OPTIONS (metadata 'header:site'),
    part   int    OPTIONS (metadata 'partition'),
    pos    bigint OPTIONS (metadata 'offset'),
    at     timestamptz OPTIONS (metadata 'timestamp'),
    key    bytea  OPTIONS (metadata 'key'),
    topic  text   OPTIONS (metadata 'topic'),
    hdr    jsonb  OPTIONS (metadata 'headers')
) SERVER archive OPTIONS (topic 'iot-temperature', format 'json', event_time 'ts', source 'public.log');

SELECT * FROM telemetry ORDER BY part, pos;
SELECT ctid, device FROM telemetry LIMIT 2;
SELECT count(*) FROM telemetry a JOIN telemetry b USING (part, pos);
SELECT part, max(temp) FROM telemetry GROUP BY part ORDER BY part;

-- bounds on metadata become seeks; the conditions are checked again
EXPLAIN (COSTS OFF) SELECT * FROM telemetry WHERE part = 0 AND pos >= 1 AND pos < 4 AND temp > 1;
EXPLAIN (COSTS OFF) SELECT * FROM telemetry WHERE at >= '2026-01-01 00:00:02Z' AND 5 > pos;
EXPLAIN (COSTS OFF) SELECT * FROM telemetry WHERE pos <> 3 OR part = 1;
SELECT part, pos FROM telemetry WHERE part = 0 AND pos >= 1 AND pos < 4;
SELECT part, pos FROM telemetry WHERE pos BETWEEN 4 AND 7 ORDER BY 1, 2;
SELECT part, pos FROM telemetry WHERE at > '2026-01-01 00:00:01Z' ORDER BY 1, 2;
SELECT part, pos FROM telemetry WHERE pos = NULL;
SELECT n, (SELECT count(*) FROM telemetry t WHERE t.pos >= g.n) FROM generate_series(0, 8, 4) AS g (n);
PREPARE from_offset(bigint) AS SELECT count(*) FROM telemetry WHERE pos >= $1;
EXECUTE from_offset(4);
EXECUTE from_offset(NULL);
SELECT count(*) FROM telemetry WHERE pos > 9223372036854775806;

-- a record that cannot be decoded stops the look, and can be looked at
INSERT INTO log VALUES (1, 9, NULL, NULL, '{"device": "d4", "ts": "yesterday-ish"}', NULL);
SELECT device FROM telemetry;
SELECT part, pos, key FROM telemetry WHERE pos = 9;
SELECT count(*) FROM telemetry WHERE pos < 9;

-- writing is refused with a reason
INSERT INTO telemetry (device) VALUES ('x');
UPDATE telemetry SET device = 'x';
DELETE FROM telemetry;
COPY telemetry (device) FROM stdin;
\.

-- a role reads with its own rights on the table that stands in
CREATE ROLE regress_reader;
GRANT SELECT ON telemetry TO regress_reader;
SET ROLE regress_reader;
SELECT count(*) FROM telemetry WHERE pos < 9;
RESET ROLE;
GRANT SELECT ON log TO regress_reader;
SET ROLE regress_reader;
SELECT count(*) FROM telemetry WHERE pos < 9;
RESET ROLE;
-- through a view, with the rights of its owner
REVOKE SELECT ON log, telemetry FROM regress_reader;
CREATE VIEW seen AS SELECT * FROM telemetry WHERE pos < 9;
GRANT SELECT ON seen TO regress_reader;
SET ROLE regress_reader;
SELECT count(*) FROM seen;
RESET ROLE;

-- beside parallel workers, which scan the rest
CREATE TABLE many AS SELECT generate_series(1, 1000) AS n;
ANALYZE many;
BEGIN;
SET LOCAL parallel_setup_cost = 0;
SET LOCAL parallel_tuple_cost = 0;
SET LOCAL min_parallel_table_scan_size = 0;
SELECT count(*) FROM telemetry JOIN many ON n = pos WHERE pos < 9;
ROLLBACK;
DROP TABLE many;

DROP VIEW seen;
DROP SERVER archive CASCADE;
DROP TABLE log;
DROP ROLE regress_reader;
