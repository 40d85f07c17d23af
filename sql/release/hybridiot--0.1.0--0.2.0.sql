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
