/* hybridiot: from 0.1.0 to 0.2.0. What it makes is what the install script makes, which test/t/upgrade.pl checks. */

-- complain if the script is sourced in psql rather than via ALTER EXTENSION
\echo Use "ALTER EXTENSION hybridiot UPDATE TO '0.2.0'" to load this file. \quit

-- ---------------------------------------------------------------------------
-- Copies: pipelines know where they come from, each for itself
-- ---------------------------------------------------------------------------

ALTER TABLE hybridiot.pipeline_definition ADD COLUMN commands pg_catalog.bool NOT NULL DEFAULT false;

CREATE TABLE hybridiot.pipeline_origin (
	pipeline pg_catalog.int4 PRIMARY KEY REFERENCES hybridiot.pipeline_definition ON DELETE CASCADE,
	system_id pg_catalog.int8 NOT NULL,
	timeline pg_catalog.int4,
	database pg_catalog.oid NOT NULL,
	instance pg_catalog.uuid
);
COMMENT ON TABLE hybridiot.pipeline_origin IS
'where pipelines were created or resumed: elsewhere they are copies and wait to be resumed. Not dumped: what is restored has no origin';

-- If 0.1.0 kept another place in mind, this is a copy of that; if none, no worker ever ran.
INSERT INTO hybridiot.pipeline_origin (pipeline, system_id, database)
SELECT d.id, coalesce(e.system_id, c.system_identifier), coalesce(e.database, b.oid)
FROM hybridiot.pipeline_definition d CROSS JOIN pg_catalog.pg_control_system() c
	JOIN pg_catalog.pg_database b ON b.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()
	LEFT JOIN LATERAL (SELECT i.system_id, i.database FROM hybridiot.instance i
		WHERE i.system_id OPERATOR(pg_catalog.<>) c.system_identifier OR i.database OPERATOR(pg_catalog.<>) b.oid LIMIT 1) e ON true;
ALTER EXTENSION hybridiot DROP TABLE hybridiot.instance;
DROP TABLE hybridiot.instance;

CREATE FUNCTION hybridiot.resume_all() RETURNS pg_catalog.int4
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'hybridiot_resume_all';
COMMENT ON FUNCTION hybridiot.resume_all() IS
'lets all pipelines of yours that are failed or held (copied, promoted) go on from their positions, not those that were paused by hand; returns how many';

ALTER TABLE hybridiot.command_origin ADD COLUMN instance pg_catalog.uuid;
ALTER TABLE hybridiot.reply_address ADD COLUMN instance pg_catalog.uuid;

-- ---------------------------------------------------------------------------
-- Bad records
-- ---------------------------------------------------------------------------

CREATE TABLE hybridiot.pipeline_errors (
	pipeline pg_catalog.int4 NOT NULL REFERENCES hybridiot.pipeline_definition ON DELETE CASCADE,
	member pg_catalog.int4 NOT NULL,
	in_row pg_catalog.int4 NOT NULL,
	PRIMARY KEY (pipeline, member)
) WITH (fillfactor = 50);
COMMENT ON TABLE hybridiot.pipeline_errors IS 'records that each worker of a pipeline has set aside in a row, for max_errors';

SELECT pg_catalog.pg_extension_config_dump('hybridiot.pipeline_errors', '');

CREATE FUNCTION hybridiot.retry_dead_letters(
	name pg_catalog.name,
	since pg_catalog.timestamptz DEFAULT NULL
) RETURNS pg_catalog.int8
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'hybridiot_retry_dead_letters';
COMMENT ON FUNCTION hybridiot.retry_dead_letters(pg_catalog.name, pg_catalog.timestamptz) IS
'runs a pipeline''s statement over its dead letters again, or those with failed_at >= since, in log order and in this transaction; may be called while its worker runs. Deletes those that pass and returns how many; the others count one more attempt. Needs membership in the owner (42501); 42704 if there is no such pipeline, 0A000 for windowed ones';

CREATE FUNCTION hybridiot.delete_dead_letters(name pg_catalog.name, before pg_catalog.timestamptz) RETURNS pg_catalog.int8
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'hybridiot_delete_dead_letters';
COMMENT ON FUNCTION hybridiot.delete_dead_letters(pg_catalog.name, pg_catalog.timestamptz) IS
'deletes dead letters of a pipeline with failed_at < before (infinity: all) and returns how many; 22004 for NULL. Needs membership in the owner (42501); 42704 if there is no such pipeline';

-- Positions set by hand.
ALTER TABLE hybridiot.pipeline_definition ADD COLUMN seeks pg_catalog.int4 NOT NULL DEFAULT 0;

CREATE TABLE hybridiot.seek_record (
	id pg_catalog.int8 GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	pipeline pg_catalog.int4 NOT NULL REFERENCES hybridiot.pipeline_definition ON DELETE CASCADE,
	sought_at pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	sought_by pg_catalog.name NOT NULL,
	position pg_catalog.text NOT NULL,
	previous pg_catalog.jsonb
);
CREATE INDEX seek_record_pipeline_idx ON hybridiot.seek_record (pipeline, id);
COMMENT ON TABLE hybridiot.seek_record IS 'positions that were set by hand; read hybridiot.seek instead';

SELECT pg_catalog.pg_extension_config_dump('hybridiot.seek_record', '');
SELECT pg_catalog.pg_extension_config_dump('hybridiot.seek_record_id_seq', '');

CREATE FUNCTION hybridiot.seek_pipeline(name pg_catalog.name, "position" pg_catalog.text) RETURNS pg_catalog.void
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'hybridiot_seek_pipeline';
COMMENT ON FUNCTION hybridiot.seek_pipeline(pg_catalog.name, pg_catalog.text) IS
'moves a pipeline, when the transaction commits, to earliest, latest, a timestamp, or offsets such as {"0": 17, "topic/1": 4}, of which partitions that are not named stay. Rows it wrote stay. A windowed pipeline forgets its open windows; a timestamp is event time there. Clears a failure; recorded in hybridiot.seek. Raises 22023 for a bad position, 42704, 42501';

CREATE VIEW hybridiot.seek WITH (security_barrier) AS
SELECT d.name AS pipeline, r.sought_at, r.sought_by, r.position, r.previous
FROM hybridiot.seek_record r JOIN hybridiot.pipeline_definition d ON d.id OPERATOR(pg_catalog.=) r.pipeline
WHERE pg_catalog.pg_has_role(d.owner, 'MEMBER');
COMMENT ON VIEW hybridiot.seek IS
'positions that were set by hand, with seek_pipeline() or a new start_at: when, by whom, to what, and what they were before';

GRANT SELECT ON hybridiot.seek TO PUBLIC;

-- Several workers a pipeline.
DROP VIEW hybridiot.stat_worker;
DROP FUNCTION hybridiot.worker_slots();
CREATE FUNCTION hybridiot.worker_slots(
	OUT pid pg_catalog.int4, OUT kind pg_catalog.text, OUT state pg_catalog.text,
	OUT started_at pg_catalog.timestamptz, OUT restarts pg_catalog.int4, OUT pipeline pg_catalog.int4
) RETURNS SETOF pg_catalog.record
LANGUAGE C VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'hybridiot_worker_slots';
COMMENT ON FUNCTION hybridiot.worker_slots() IS 'workers of this database that run; read hybridiot.stat_worker instead';
COMMENT ON FUNCTION hybridiot.pipeline_slots() IS 'what workers of each pipeline do and counted together; read the views instead';

CREATE VIEW hybridiot.stat_worker WITH (security_barrier) AS
SELECT w.pid, w.kind, d.name AS pipeline, w.state, w.started_at, w.restarts
FROM hybridiot.worker_slots() w LEFT JOIN hybridiot.pipeline_definition d ON d.id OPERATOR(pg_catalog.=) w.pipeline;
COMMENT ON VIEW hybridiot.stat_worker IS 'workers of this database that run now';

GRANT SELECT ON hybridiot.stat_worker TO PUBLIC;

-- The last record applied, to be found in the log again: null until a pipeline has applied one.
ALTER TABLE hybridiot.pipeline_position
	ADD COLUMN last_offset pg_catalog.int8,
	ADD COLUMN last_timestamp pg_catalog.timestamptz,
	ADD COLUMN last_size pg_catalog.int8,
	ADD COLUMN last_crc pg_catalog.int8,
	ADD COLUMN leader_epoch pg_catalog.int8,
	ADD COLUMN topic_id pg_catalog.text;
