/* hybridiot: install script. Everything is qualified; nothing is granted that is not said. */

-- complain if the script is sourced in psql rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION hybridiot" to load this file. \quit

CREATE SCHEMA hybridiot;
COMMENT ON SCHEMA hybridiot IS 'hybridiot: streams in, windows, commands out';
GRANT USAGE ON SCHEMA hybridiot TO PUBLIC;

-- ---------------------------------------------------------------------------
-- Streams: foreign-data wrappers
-- ---------------------------------------------------------------------------

CREATE FUNCTION hybridiot.kafka_handler() RETURNS pg_catalog.fdw_handler
LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'hybridiot_kafka_handler';
CREATE FUNCTION hybridiot.kafka_validator(options pg_catalog.text[], catalog pg_catalog.oid) RETURNS pg_catalog.void
LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'hybridiot_kafka_validator';
CREATE FUNCTION hybridiot.amqp_handler() RETURNS pg_catalog.fdw_handler
LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'hybridiot_amqp_handler';
CREATE FUNCTION hybridiot.amqp_validator(options pg_catalog.text[], catalog pg_catalog.oid) RETURNS pg_catalog.void
LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'hybridiot_amqp_validator';
REVOKE ALL ON FUNCTION hybridiot.kafka_handler(), hybridiot.amqp_handler(),
	hybridiot.kafka_validator(pg_catalog.text[], pg_catalog.oid),
	hybridiot.amqp_validator(pg_catalog.text[], pg_catalog.oid) FROM PUBLIC;

COMMENT ON FUNCTION hybridiot.kafka_handler() IS 'handler of the wrapper hybridiot_kafka';
COMMENT ON FUNCTION hybridiot.kafka_validator(pg_catalog.text[], pg_catalog.oid) IS 'checks options of Kafka servers, mappings, streams and columns';
COMMENT ON FUNCTION hybridiot.amqp_handler() IS 'handler of the wrapper hybridiot_amqp';
COMMENT ON FUNCTION hybridiot.amqp_validator(pg_catalog.text[], pg_catalog.oid) IS 'checks options of AMQP servers, mappings, streams and columns';

CREATE FOREIGN DATA WRAPPER hybridiot_kafka
	HANDLER hybridiot.kafka_handler VALIDATOR hybridiot.kafka_validator;
COMMENT ON FOREIGN DATA WRAPPER hybridiot_kafka IS 'streams that are Kafka topics';
CREATE FOREIGN DATA WRAPPER hybridiot_amqp
	HANDLER hybridiot.amqp_handler VALIDATOR hybridiot.amqp_validator;
COMMENT ON FOREIGN DATA WRAPPER hybridiot_amqp IS 'AMQP 1.0 peers: brokers, routers, Eclipse Hono';

-- ---------------------------------------------------------------------------
-- Pipelines: tables, functions, views
-- ---------------------------------------------------------------------------

CREATE TABLE hybridiot.pipeline_definition (
	id pg_catalog.int4 GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	name pg_catalog.name NOT NULL UNIQUE,
	owner pg_catalog.oid NOT NULL,
	owner_name pg_catalog.name NOT NULL,
	kind pg_catalog.text NOT NULL CHECK (kind IN ('per batch', 'windowed')),
	statement pg_catalog.text NOT NULL,
	query pg_catalog.text NOT NULL,
	stream pg_catalog.regclass NOT NULL,
	enabled pg_catalog.bool NOT NULL,
	failure pg_catalog.text,
	start_at pg_catalog.text NOT NULL,
	lateness pg_catalog.interval NOT NULL,
	emit pg_catalog.text NOT NULL CHECK (emit IN ('final', 'changes')),
	idle_timeout pg_catalog.interval NOT NULL,
	batch_rows pg_catalog.int4 NOT NULL,
	batch_delay pg_catalog.interval NOT NULL,
	checkpoint_interval pg_catalog.interval NOT NULL,
	workers pg_catalog.int4 NOT NULL,
	max_groups pg_catalog.int4 NOT NULL,
	max_errors pg_catalog.int4 NOT NULL,
	on_error pg_catalog.text NOT NULL CHECK (on_error IN ('dead_letter', 'stop')),
	keep_closed pg_catalog.interval NOT NULL,
	notify pg_catalog.name
);
COMMENT ON TABLE hybridiot.pipeline_definition IS 'pipelines as they were created; read hybridiot.pipeline instead';

CREATE TABLE hybridiot.pipeline_position (
	pipeline pg_catalog.int4 NOT NULL REFERENCES hybridiot.pipeline_definition ON DELETE CASCADE,
	stream pg_catalog.regclass NOT NULL,
	topic pg_catalog.text NOT NULL,
	partition pg_catalog.int4 NOT NULL,
	next_offset pg_catalog.int8 NOT NULL,
	end_offset pg_catalog.int8,
	stream_time pg_catalog.timestamptz,
	last_record_at pg_catalog.timestamptz,
	idle pg_catalog.bool NOT NULL,
	PRIMARY KEY (pipeline, topic, partition)
) WITH (fillfactor = 50);
COMMENT ON TABLE hybridiot.pipeline_position IS 'first offset not yet applied, per pipeline and partition; read hybridiot.position instead';

CREATE TABLE hybridiot.pipeline_progress (
	pipeline pg_catalog.int4 PRIMARY KEY REFERENCES hybridiot.pipeline_definition ON DELETE CASCADE,
	watermark pg_catalog.timestamptz,
	closed_before pg_catalog.timestamptz
) WITH (fillfactor = 50);
COMMENT ON TABLE hybridiot.pipeline_progress IS 'event time of windowed pipelines; read hybridiot.pipeline instead';

CREATE TABLE hybridiot.dead_letter_record (
	id pg_catalog.int8 GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	pipeline pg_catalog.int4 NOT NULL REFERENCES hybridiot.pipeline_definition,
	stream pg_catalog.regclass NOT NULL,
	topic pg_catalog.text,
	partition pg_catalog.int4,
	"offset" pg_catalog.int8,
	"timestamp" pg_catalog.timestamptz,
	key pg_catalog.bytea,
	value pg_catalog.bytea,
	headers pg_catalog.jsonb,
	reason pg_catalog.text NOT NULL CHECK (reason IN ('undecodable', 'rejected', 'late', 'future')),
	cause pg_catalog.text,
	during pg_catalog.tstzrange,
	watermark pg_catalog.timestamptz,
	group_keys pg_catalog.jsonb,
	sqlstate pg_catalog.text,
	message pg_catalog.text,
	failed_at pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	attempts pg_catalog.int4 NOT NULL DEFAULT 1
);
CREATE INDEX dead_letter_record_pipeline_idx ON hybridiot.dead_letter_record (pipeline, id);
COMMENT ON TABLE hybridiot.dead_letter_record IS 'records that could not be applied; read hybridiot.dead_letter instead';

SELECT pg_catalog.pg_extension_config_dump('hybridiot.pipeline_definition', '');
SELECT pg_catalog.pg_extension_config_dump('hybridiot.pipeline_definition_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('hybridiot.pipeline_position', '');
SELECT pg_catalog.pg_extension_config_dump('hybridiot.pipeline_progress', '');
SELECT pg_catalog.pg_extension_config_dump('hybridiot.dead_letter_record', '');
SELECT pg_catalog.pg_extension_config_dump('hybridiot.dead_letter_record_id_seq', '');

CREATE FUNCTION hybridiot.create_pipeline(
	name pg_catalog.name,
	statement pg_catalog.text,
	start_at pg_catalog.text DEFAULT 'earliest',
	lateness pg_catalog.interval DEFAULT '0',
	emit pg_catalog.text DEFAULT 'final',
	idle_timeout pg_catalog.interval DEFAULT '30 s',
	batch_rows pg_catalog.int4 DEFAULT 10000,
	batch_delay pg_catalog.interval DEFAULT '100 ms',
	checkpoint_interval pg_catalog.interval DEFAULT '1 s',
	workers pg_catalog.int4 DEFAULT 1,
	max_groups pg_catalog.int4 DEFAULT 1000000,
	max_errors pg_catalog.int4 DEFAULT 1000,
	on_error pg_catalog.text DEFAULT 'dead_letter',
	keep_closed pg_catalog.interval DEFAULT '0',
	notify pg_catalog.name DEFAULT NULL,
	enabled pg_catalog.bool DEFAULT true
) RETURNS pg_catalog.void
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'hybridiot_create_pipeline';
COMMENT ON FUNCTION hybridiot.create_pipeline IS
'runs a statement for ever over a stream, exactly once per record; needs what typing the statement needs. Raises 42710 if the name is taken, 0A000 for statements that cannot keep that promise';

CREATE FUNCTION hybridiot.alter_pipeline(
	name pg_catalog.name,
	statement pg_catalog.text DEFAULT NULL,
	start_at pg_catalog.text DEFAULT NULL,
	lateness pg_catalog.interval DEFAULT NULL,
	emit pg_catalog.text DEFAULT NULL,
	idle_timeout pg_catalog.interval DEFAULT NULL,
	batch_rows pg_catalog.int4 DEFAULT NULL,
	batch_delay pg_catalog.interval DEFAULT NULL,
	checkpoint_interval pg_catalog.interval DEFAULT NULL,
	workers pg_catalog.int4 DEFAULT NULL,
	max_groups pg_catalog.int4 DEFAULT NULL,
	max_errors pg_catalog.int4 DEFAULT NULL,
	on_error pg_catalog.text DEFAULT NULL,
	keep_closed pg_catalog.interval DEFAULT NULL,
	notify pg_catalog.name DEFAULT NULL,
	enabled pg_catalog.bool DEFAULT NULL,
	owner pg_catalog.regrole DEFAULT NULL
) RETURNS pg_catalog.void
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'hybridiot_alter_pipeline';
COMMENT ON FUNCTION hybridiot.alter_pipeline IS
'changes what is not NULL; the worker finishes its batch and goes on with the new definition. A new statement of a windowed pipeline needs start_at. Needs membership in the owner (42501); 42704 if there is no such pipeline';

CREATE FUNCTION hybridiot.drop_pipeline(name pg_catalog.name) RETURNS pg_catalog.void
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'hybridiot_drop_pipeline';
COMMENT ON FUNCTION hybridiot.drop_pipeline(pg_catalog.name) IS
'removes a pipeline with its positions, window states and dead letters; the rows it wrote stay';

CREATE FUNCTION hybridiot.pause_pipeline(name pg_catalog.name) RETURNS pg_catalog.void
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'hybridiot_pause_pipeline';
COMMENT ON FUNCTION hybridiot.pause_pipeline(pg_catalog.name) IS
'stops the worker after its batch, when the transaction commits; the position stays';

CREATE FUNCTION hybridiot.resume_pipeline(name pg_catalog.name) RETURNS pg_catalog.void
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'hybridiot_resume_pipeline';
COMMENT ON FUNCTION hybridiot.resume_pipeline(pg_catalog.name) IS
'lets a paused or failed pipeline go on from its position';

CREATE FUNCTION hybridiot.run_pipeline(
	name pg_catalog.name,
	max_records pg_catalog.int8 DEFAULT NULL,
	wall_clock pg_catalog.timestamptz DEFAULT NULL
) RETURNS pg_catalog.int8
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'hybridiot_run_pipeline';
COMMENT ON FUNCTION hybridiot.run_pipeline(pg_catalog.name, pg_catalog.int8, pg_catalog.timestamptz) IS
'runs a pipeline in this session and transaction up to the present end of its stream, or max_records further; wall_clock stands in for the clock. Returns the number of records read. Raises 55006 while a worker has the pipeline';

CREATE FUNCTION hybridiot.pipeline_slots(
	OUT pipeline pg_catalog.int4, OUT pid pg_catalog.int4, OUT state pg_catalog.text, OUT reason pg_catalog.text,
	OUT started_at pg_catalog.timestamptz, OUT restarts pg_catalog.int4,
	OUT records pg_catalog.int8, OUT rows pg_catalog.int8, OUT dead_letters pg_catalog.int8, OUT late pg_catalog.int8,
	OUT batches pg_catalog.int8, OUT retries pg_catalog.int8, OUT last_commit_at pg_catalog.timestamptz,
	OUT last_error pg_catalog.text, OUT last_error_at pg_catalog.timestamptz, OUT stats_reset pg_catalog.timestamptz
) RETURNS SETOF pg_catalog.record
LANGUAGE C VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'hybridiot_pipeline_slots';
COMMENT ON FUNCTION hybridiot.pipeline_slots() IS 'what workers of pipelines do and counted; read the views instead';
CREATE FUNCTION hybridiot.worker_slots(
	OUT pid pg_catalog.int4, OUT kind pg_catalog.text, OUT state pg_catalog.text,
	OUT started_at pg_catalog.timestamptz, OUT restarts pg_catalog.int4
) RETURNS SETOF pg_catalog.record
LANGUAGE C VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'hybridiot_worker_slots';
COMMENT ON FUNCTION hybridiot.worker_slots() IS 'other workers of this database; read hybridiot.stat_worker instead';
CREATE FUNCTION hybridiot.preloaded() RETURNS pg_catalog.bool
LANGUAGE C STABLE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'hybridiot_preloaded';
COMMENT ON FUNCTION hybridiot.preloaded() IS 'is hybridiot in shared_preload_libraries, so that workers can run';

-- ---------------------------------------------------------------------------
-- Windows: functions, state
-- ---------------------------------------------------------------------------

-- ---------------------------------------------------------------------------
-- Commands: journal, functions, views
-- ---------------------------------------------------------------------------

-- ---------------------------------------------------------------------------
-- What can be watched
-- ---------------------------------------------------------------------------

CREATE VIEW hybridiot.pipeline WITH (security_barrier) AS
SELECT d.name, d.owner_name AS owner, d.kind, d.statement,
	pg_catalog.jsonb_build_object(
		'start_at', d.start_at, 'lateness', d.lateness, 'emit', d.emit, 'idle_timeout', d.idle_timeout,
		'batch_rows', d.batch_rows, 'batch_delay', d.batch_delay, 'checkpoint_interval', d.checkpoint_interval,
		'workers', d.workers, 'max_groups', d.max_groups, 'max_errors', d.max_errors, 'on_error', d.on_error,
		'keep_closed', d.keep_closed, 'notify', d.notify, 'enabled', d.enabled) AS options,
	CASE
		WHEN d.failure IS NOT NULL THEN 'failed'
		WHEN NOT d.enabled THEN 'paused'
		WHEN s.state IN ('running', 'retrying') THEN s.state
		WHEN s.last_error IS NOT NULL AND s.state = 'stopped' THEN 'retrying'
		ELSE 'waiting'
	END AS state,
	CASE
		WHEN d.failure IS NOT NULL THEN d.failure
		WHEN NOT d.enabled THEN NULL
		WHEN s.reason IS NOT NULL THEN s.reason
		WHEN s.state IN ('running', 'retrying') THEN NULL
		WHEN s.state = 'stopped' THEN s.last_error
		WHEN NOT hybridiot.preloaded() THEN 'hybridiot is not in shared_preload_libraries'
		ELSE 'its worker is about to start'
	END AS reason,
	p.watermark, p.closed_before
FROM hybridiot.pipeline_definition d
	LEFT JOIN hybridiot.pipeline_slots() s ON s.pipeline OPERATOR(pg_catalog.=) d.id
	LEFT JOIN hybridiot.pipeline_progress p ON p.pipeline OPERATOR(pg_catalog.=) d.id
WHERE pg_catalog.pg_has_role(d.owner, 'MEMBER');
COMMENT ON VIEW hybridiot.pipeline IS
'pipelines you may see; state is running, retrying (goes on by itself), waiting (no worker slot), paused (by hand) or failed (stopped itself, see reason)';

CREATE VIEW hybridiot.position WITH (security_barrier) AS
SELECT d.name AS pipeline, p.stream, p.topic, p.partition, p.next_offset, p.end_offset,
	GREATEST(p.end_offset OPERATOR(pg_catalog.-) p.next_offset, 0::pg_catalog.int8) AS lag, p.stream_time, p.idle
FROM hybridiot.pipeline_position p JOIN hybridiot.pipeline_definition d ON d.id OPERATOR(pg_catalog.=) p.pipeline
WHERE pg_catalog.pg_has_role(d.owner, 'MEMBER');
COMMENT ON VIEW hybridiot.position IS
'first offset not yet applied per pipeline and partition, the log''s end as last heard, and the largest event time seen';

CREATE VIEW hybridiot.dead_letter WITH (security_barrier) AS
SELECT r.id, d.name AS pipeline, r.stream, r.topic, r.partition, r."offset", r."timestamp", r.key, r.value, r.headers,
	r.reason, r.cause, r.during, r.watermark, r.group_keys, r.sqlstate, r.message, r.failed_at, r.attempts
FROM hybridiot.dead_letter_record r JOIN hybridiot.pipeline_definition d ON d.id OPERATOR(pg_catalog.=) r.pipeline
WHERE pg_catalog.pg_has_role(d.owner, 'MEMBER');
COMMENT ON VIEW hybridiot.dead_letter IS
'records that could not be applied, with the reason: undecodable, rejected (by the statement), late, future';

CREATE VIEW hybridiot.stat_pipeline WITH (security_barrier) AS
SELECT d.name AS pipeline, s.records, s.rows, s.dead_letters, s.late, s.batches, s.retries, s.last_commit_at,
	s.last_error, s.last_error_at, s.stats_reset
FROM hybridiot.pipeline_definition d JOIN hybridiot.pipeline_slots() s ON s.pipeline OPERATOR(pg_catalog.=) d.id
WHERE pg_catalog.pg_has_role(d.owner, 'MEMBER');
COMMENT ON VIEW hybridiot.stat_pipeline IS 'what pipelines counted since stats_reset; begins anew with the server';

CREATE VIEW hybridiot.stat_worker WITH (security_barrier) AS
SELECT s.pid, 'pipeline'::pg_catalog.text AS kind, d.name AS pipeline, s.state, s.started_at, s.restarts
FROM hybridiot.pipeline_definition d JOIN hybridiot.pipeline_slots() s ON s.pipeline OPERATOR(pg_catalog.=) d.id
WHERE pg_catalog.pg_has_role(d.owner, 'MEMBER') AND s.pid IS NOT NULL
UNION ALL
SELECT w.pid, w.kind, NULL::pg_catalog.name, w.state, w.started_at, w.restarts
FROM hybridiot.worker_slots() w WHERE w.pid IS NOT NULL;
COMMENT ON VIEW hybridiot.stat_worker IS 'workers of this database that run now';

GRANT SELECT ON hybridiot.pipeline, hybridiot.position, hybridiot.dead_letter, hybridiot.stat_pipeline,
	hybridiot.stat_worker TO PUBLIC;
