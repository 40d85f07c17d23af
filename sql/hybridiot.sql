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
	kind pg_catalog.text NOT NULL CHECK (kind OPERATOR(pg_catalog.=) ANY (ARRAY['per batch', 'windowed'])),
	statement pg_catalog.text NOT NULL,
	query pg_catalog.text NOT NULL,
	stream pg_catalog.regclass NOT NULL,
	enabled pg_catalog.bool NOT NULL,
	failure pg_catalog.text,
	seeks pg_catalog.int4 NOT NULL DEFAULT 0,
	start_at pg_catalog.text NOT NULL,
	lateness pg_catalog.interval NOT NULL,
	emit pg_catalog.text NOT NULL CHECK (emit OPERATOR(pg_catalog.=) ANY (ARRAY['final', 'changes'])),
	idle_timeout pg_catalog.interval NOT NULL,
	batch_rows pg_catalog.int4 NOT NULL,
	batch_delay pg_catalog.interval NOT NULL,
	checkpoint_interval pg_catalog.interval NOT NULL,
	workers pg_catalog.int4 NOT NULL,
	max_groups pg_catalog.int4 NOT NULL,
	max_errors pg_catalog.int4 NOT NULL,
	on_error pg_catalog.text NOT NULL CHECK (on_error OPERATOR(pg_catalog.=) ANY (ARRAY['dead_letter', 'stop'])),
	keep_closed pg_catalog.interval NOT NULL,
	notify pg_catalog.name,
	commands pg_catalog.bool NOT NULL DEFAULT false
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
	last_offset pg_catalog.int8,
	last_timestamp pg_catalog.timestamptz,
	last_size pg_catalog.int8,
	last_crc pg_catalog.int8,
	leader_epoch pg_catalog.int8,
	topic_id pg_catalog.text,
	PRIMARY KEY (pipeline, topic, partition)
) WITH (fillfactor = 50);
COMMENT ON TABLE hybridiot.pipeline_position IS 'first offset not yet applied, per pipeline and partition; read hybridiot.position instead';

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

CREATE TABLE hybridiot.pipeline_progress (
	pipeline pg_catalog.int4 PRIMARY KEY REFERENCES hybridiot.pipeline_definition ON DELETE CASCADE,
	watermark pg_catalog.timestamptz,
	closed_before pg_catalog.timestamptz,
	kept_after pg_catalog.timestamptz NOT NULL DEFAULT '-infinity'
) WITH (fillfactor = 50);
COMMENT ON TABLE hybridiot.pipeline_progress IS 'event time of windowed pipelines; read hybridiot.pipeline instead';

CREATE TABLE hybridiot.dead_letter_record (
	id pg_catalog.int8 GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	pipeline pg_catalog.int4 NOT NULL REFERENCES hybridiot.pipeline_definition ON DELETE CASCADE,
	stream pg_catalog.regclass NOT NULL,
	topic pg_catalog.text,
	partition pg_catalog.int4,
	"offset" pg_catalog.int8,
	"timestamp" pg_catalog.timestamptz,
	key pg_catalog.bytea,
	value pg_catalog.bytea,
	headers pg_catalog.jsonb,
	reason pg_catalog.text NOT NULL CHECK (reason OPERATOR(pg_catalog.=) ANY (ARRAY['undecodable', 'rejected', 'late', 'future'])),
	cause pg_catalog.text,
	during pg_catalog.tstzrange,
	watermark pg_catalog.timestamptz,
	group_keys pg_catalog.jsonb,
	sqlstate pg_catalog.text,
	message pg_catalog.text,
	failed_at pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	attempts pg_catalog.int4 NOT NULL DEFAULT 1,
	group_id pg_catalog.int8
);
CREATE INDEX dead_letter_record_pipeline_idx ON hybridiot.dead_letter_record (pipeline, id);
COMMENT ON TABLE hybridiot.dead_letter_record IS 'records that could not be applied; read hybridiot.dead_letter instead';

CREATE TABLE hybridiot.pipeline_errors (
	pipeline pg_catalog.int4 NOT NULL REFERENCES hybridiot.pipeline_definition ON DELETE CASCADE,
	member pg_catalog.int4 NOT NULL,
	in_row pg_catalog.int4 NOT NULL,
	PRIMARY KEY (pipeline, member)
) WITH (fillfactor = 50);
COMMENT ON TABLE hybridiot.pipeline_errors IS 'records that each worker of a pipeline has set aside in a row, for max_errors';

CREATE TABLE hybridiot.pipeline_origin (
	pipeline pg_catalog.int4 PRIMARY KEY REFERENCES hybridiot.pipeline_definition ON DELETE CASCADE,
	system_id pg_catalog.int8 NOT NULL,
	timeline pg_catalog.int4,
	database pg_catalog.oid NOT NULL,
	instance pg_catalog.uuid
);
COMMENT ON TABLE hybridiot.pipeline_origin IS
'where pipelines were created or resumed: elsewhere they are copies and wait to be resumed. Not dumped: what is restored has no origin';

SELECT pg_catalog.pg_extension_config_dump('hybridiot.pipeline_definition', '');
SELECT pg_catalog.pg_extension_config_dump('hybridiot.pipeline_definition_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('hybridiot.pipeline_position', '');
SELECT pg_catalog.pg_extension_config_dump('hybridiot.pipeline_progress', '');
SELECT pg_catalog.pg_extension_config_dump('hybridiot.pipeline_errors', '');
SELECT pg_catalog.pg_extension_config_dump('hybridiot.seek_record', '');
SELECT pg_catalog.pg_extension_config_dump('hybridiot.seek_record_id_seq', '');
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

CREATE FUNCTION hybridiot.resume_all() RETURNS pg_catalog.int4
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'hybridiot_resume_all';
COMMENT ON FUNCTION hybridiot.resume_all() IS
'lets all pipelines of yours that are failed or held (copied, promoted) go on from their positions, not those that were paused by hand; returns how many';

CREATE FUNCTION hybridiot.seek_pipeline(name pg_catalog.name, "position" pg_catalog.text) RETURNS pg_catalog.void
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'hybridiot_seek_pipeline';
COMMENT ON FUNCTION hybridiot.seek_pipeline(pg_catalog.name, pg_catalog.text) IS
'moves a pipeline, when the transaction commits, to earliest, latest, a timestamp, or offsets such as {"0": 17, "topic/1": 4}, of which partitions that are not named stay. Rows it wrote stay. A windowed pipeline forgets its open windows; a timestamp is event time there. Clears a failure; recorded in hybridiot.seek. Raises 22023 for a bad position, 42704, 42501';

CREATE FUNCTION hybridiot.run_pipeline(
	name pg_catalog.name,
	max_records pg_catalog.int8 DEFAULT NULL,
	wall_clock pg_catalog.timestamptz DEFAULT NULL
) RETURNS pg_catalog.int8
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'hybridiot_run_pipeline';
COMMENT ON FUNCTION hybridiot.run_pipeline(pg_catalog.name, pg_catalog.int8, pg_catalog.timestamptz) IS
'runs a pipeline in this session and transaction up to the present end of its stream, or max_records further; wall_clock stands in for the clock. Returns the number of records read. Raises 55006 while a worker has the pipeline';

CREATE FUNCTION hybridiot.verify_pipeline(
	name pg_catalog.name,
	source pg_catalog.regclass
) RETURNS TABLE (difference pg_catalog.text, during pg_catalog.tstzrange, "row" pg_catalog.jsonb)
LANGUAGE C STABLE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'hybridiot_verify_pipeline';
COMMENT ON FUNCTION hybridiot.verify_pipeline(pg_catalog.name, pg_catalog.regclass) IS
'runs a windowed pipeline''s statement over a table that has the records of its stream, with their partition and offset, and returns how the target differs in closed windows: rows that are missing there, and unexpected ones. Late and failed ones, as dead letters say, are left out. Read-only, one snapshot, as the owner, who needs SELECT on both. Needs membership in the owner (42501); 42704 if there is no such pipeline, 42703 and 42804 for columns of the source, 0A000 for what cannot be compared';

CREATE FUNCTION hybridiot.retry_dead_letters(
	name pg_catalog.name,
	since pg_catalog.timestamptz DEFAULT NULL
) RETURNS pg_catalog.int8
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'hybridiot_retry_dead_letters';
COMMENT ON FUNCTION hybridiot.retry_dead_letters(pg_catalog.name, pg_catalog.timestamptz) IS
'runs a pipeline''s statement over its dead letters again, or those with failed_at >= since, in log order and in this transaction; may be called while its worker runs. A windowed one takes records into windows that are open for them, and writes finished rows that failed. Deletes letters that pass and returns how many; the others count one more attempt. Needs membership in the owner (42501); 42704 if there is no such pipeline';

CREATE FUNCTION hybridiot.delete_dead_letters(name pg_catalog.name, before pg_catalog.timestamptz) RETURNS pg_catalog.int8
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'hybridiot_delete_dead_letters';
COMMENT ON FUNCTION hybridiot.delete_dead_letters(pg_catalog.name, pg_catalog.timestamptz) IS
'deletes dead letters of a pipeline with failed_at < before (infinity: all) and returns how many; 22004 for NULL. Needs membership in the owner (42501); 42704 if there is no such pipeline';

CREATE FUNCTION hybridiot.reopen_window(name pg_catalog.name, during pg_catalog.tstzrange) RETURNS pg_catalog.int8
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'hybridiot_reopen_window';
COMMENT ON FUNCTION hybridiot.reopen_window(pg_catalog.name, pg_catalog.tstzrange) IS
'folds late records of closed windows that overlap during into corrected rows, in this transaction, and returns how many; their dead letters go. Needs keep_closed. Raises 55000 for windows that are open or not kept any more, 22023 for an empty or unbounded range, 0A000 for statements that command devices, 42809 for pipelines without windows, 42704, 42501';

CREATE FUNCTION hybridiot.pipeline_slots(
	OUT pipeline pg_catalog.int4, OUT pid pg_catalog.int4, OUT state pg_catalog.text, OUT reason pg_catalog.text,
	OUT started_at pg_catalog.timestamptz, OUT restarts pg_catalog.int4,
	OUT records pg_catalog.int8, OUT rows pg_catalog.int8, OUT dead_letters pg_catalog.int8, OUT late pg_catalog.int8,
	OUT batches pg_catalog.int8, OUT retries pg_catalog.int8, OUT last_commit_at pg_catalog.timestamptz,
	OUT last_error pg_catalog.text, OUT last_error_at pg_catalog.timestamptz, OUT stats_reset pg_catalog.timestamptz
) RETURNS SETOF pg_catalog.record
LANGUAGE C VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'hybridiot_pipeline_slots';
COMMENT ON FUNCTION hybridiot.pipeline_slots() IS 'what workers of each pipeline do and counted together; read the views instead';
CREATE FUNCTION hybridiot.worker_slots(
	OUT pid pg_catalog.int4, OUT kind pg_catalog.text, OUT state pg_catalog.text,
	OUT started_at pg_catalog.timestamptz, OUT restarts pg_catalog.int4, OUT pipeline pg_catalog.int4
) RETURNS SETOF pg_catalog.record
LANGUAGE C VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'hybridiot_worker_slots';
COMMENT ON FUNCTION hybridiot.worker_slots() IS 'workers of this database that run; read hybridiot.stat_worker instead';
CREATE FUNCTION hybridiot.preloaded() RETURNS pg_catalog.bool
LANGUAGE C STABLE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'hybridiot_preloaded';
COMMENT ON FUNCTION hybridiot.preloaded() IS 'is hybridiot in shared_preload_libraries, so that workers can run';

-- ---------------------------------------------------------------------------
-- Windows: functions, state
-- ---------------------------------------------------------------------------

CREATE FUNCTION hybridiot.tumble(
	ts pg_catalog.timestamptz,
	size pg_catalog.interval,
	origin pg_catalog.timestamptz DEFAULT '1970-01-01 00:00:00+00'
) RETURNS pg_catalog.tstzrange
LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'hybridiot_tumble';
COMMENT ON FUNCTION hybridiot.tumble(pg_catalog.timestamptz, pg_catalog.interval, pg_catalog.timestamptz) IS
'the window [origin + n * size, origin + (n + 1) * size) that holds ts; days are 24 hours, months and years raise 22023; NULL for NULL';

CREATE FUNCTION hybridiot.hop(
	ts pg_catalog.timestamptz,
	size pg_catalog.interval,
	advance pg_catalog.interval
) RETURNS SETOF pg_catalog.tstzrange
LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'hybridiot_hop';
COMMENT ON FUNCTION hybridiot.hop(pg_catalog.timestamptz, pg_catalog.interval, pg_catalog.interval) IS
'every window [n * advance, n * advance + size) since the Unix epoch that holds ts, in order; 0 < advance <= size or 22023; no row for NULL';

CREATE FUNCTION hybridiot.slide(ts pg_catalog.timestamptz, size pg_catalog.interval) RETURNS pg_catalog.tstzrange
LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'hybridiot_slide';
COMMENT ON FUNCTION hybridiot.slide(pg_catalog.timestamptz, pg_catalog.interval) IS
'windows of this size that end at a record or begin a microsecond behind one, both ends included; in GROUP BY of a pipeline only, 0A000 elsewhere';

CREATE FUNCTION hybridiot.session(ts pg_catalog.timestamptz, gap pg_catalog.interval) RETURNS pg_catalog.tstzrange
LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'hybridiot_session';
COMMENT ON FUNCTION hybridiot.session(pg_catalog.timestamptz, pg_catalog.interval) IS
'the session that ts belongs to: records of a key no further than gap from the next, from the first to the last; in GROUP BY of a pipeline only, 0A000 elsewhere';

-- A pipeline's own statement reads its groups through this function, as the pipeline's owner; everybody else gets 0A000.
CREATE FUNCTION hybridiot.finished_groups() RETURNS SETOF pg_catalog.record
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'hybridiot_finished_groups';
COMMENT ON FUNCTION hybridiot.finished_groups() IS
'groups of windows while a pipeline writes them; raises 0A000 when anybody else calls it';

CREATE TABLE hybridiot.window_group (
	pipeline pg_catalog.int4 NOT NULL REFERENCES hybridiot.pipeline_definition ON DELETE CASCADE,
	id pg_catalog.int8 NOT NULL,
	window_start pg_catalog.timestamptz NOT NULL,
	window_end pg_catalog.timestamptz NOT NULL,
	keys pg_catalog.bytea NOT NULL,
	state pg_catalog.bytea NOT NULL,
	records pg_catalog.int8 NOT NULL,
	closed pg_catalog.bool NOT NULL,
	over_at pg_catalog.timestamptz,
	PRIMARY KEY (pipeline, id)
) WITH (fillfactor = 70);
CREATE INDEX window_group_closed_idx ON hybridiot.window_group (pipeline, over_at) WHERE closed;
COMMENT ON TABLE hybridiot.window_group IS
'states of groups as of the last checkpoint. Closed ones are kept for reopen_window(), or, without over_at, because their row could not be written. Read hybridiot.open_window instead';

CREATE TABLE hybridiot.window_layout (
	pipeline pg_catalog.int4 PRIMARY KEY REFERENCES hybridiot.pipeline_definition ON DELETE CASCADE,
	layout pg_catalog.text NOT NULL,
	kind pg_catalog.text NOT NULL DEFAULT 'tumble',
	size_us pg_catalog.int8
);
COMMENT ON TABLE hybridiot.window_layout IS 'what the stored states of a pipeline depend on: its windows, PostgreSQL''s major version, types of keys and states';

SELECT pg_catalog.pg_extension_config_dump('hybridiot.window_group', '');
SELECT pg_catalog.pg_extension_config_dump('hybridiot.window_layout', '');

-- Groups of tumbling and hopping windows, and sessions, are stored as they are. Sliding windows are put together from slices,
-- the records of a key at one time: one window ends at each, one begins just behind it.
CREATE VIEW hybridiot.open_window WITH (security_barrier) AS
SELECT d.name AS pipeline, w.during, pg_catalog.count(*) AS groups, pg_catalog.sum(w.records)::pg_catalog.int8 AS records
FROM hybridiot.pipeline_definition d
JOIN (
	SELECT g.pipeline, pg_catalog.tstzrange(g.window_start, g.window_end,
		CASE WHEN l.kind OPERATOR(pg_catalog.=) 'session' THEN '[]' ELSE '[)' END) AS during, g.records
	FROM hybridiot.window_group g JOIN hybridiot.window_layout l ON l.pipeline OPERATOR(pg_catalog.=) g.pipeline
	WHERE NOT g.closed AND l.kind OPERATOR(pg_catalog.<>) 'slide'
	UNION ALL
	SELECT a.pipeline, pg_catalog.tstzrange(a.starts, a.starts OPERATOR(pg_catalog.+) a.size, '[]'), pg_catalog.sum(g.records)
	FROM (
		SELECT DISTINCT g.pipeline, g.keys, s.starts, l.size
		FROM hybridiot.window_group g
		JOIN (SELECT pipeline, size_us OPERATOR(pg_catalog.*) '1 microsecond'::pg_catalog.interval AS size
			FROM hybridiot.window_layout WHERE kind OPERATOR(pg_catalog.=) 'slide') l
			ON l.pipeline OPERATOR(pg_catalog.=) g.pipeline
		CROSS JOIN LATERAL (VALUES
			(CASE WHEN g.window_end OPERATOR(pg_catalog.=) g.window_start THEN g.window_start OPERATOR(pg_catalog.-) l.size END),
			(g.window_start OPERATOR(pg_catalog.+) '1 microsecond'::pg_catalog.interval)) AS s (starts)
		WHERE NOT g.closed AND s.starts IS NOT NULL
	) a
	JOIN hybridiot.window_group g ON g.pipeline OPERATOR(pg_catalog.=) a.pipeline AND g.keys OPERATOR(pg_catalog.=) a.keys
		AND NOT g.closed
		AND g.window_start OPERATOR(pg_catalog.>=) a.starts
		AND g.window_start OPERATOR(pg_catalog.<=) (a.starts OPERATOR(pg_catalog.+) a.size)
		AND g.window_end OPERATOR(pg_catalog.<=) (a.starts OPERATOR(pg_catalog.+) a.size)
	LEFT JOIN hybridiot.pipeline_progress p ON p.pipeline OPERATOR(pg_catalog.=) a.pipeline
	WHERE p.closed_before IS NULL OR a.starts OPERATOR(pg_catalog.+) a.size OPERATOR(pg_catalog.>) p.closed_before
	GROUP BY a.pipeline, a.keys, a.starts, a.size
) w ON w.pipeline OPERATOR(pg_catalog.=) d.id
WHERE pg_catalog.pg_has_role(d.owner, 'MEMBER')
GROUP BY d.name, w.during;
COMMENT ON VIEW hybridiot.open_window IS 'windows that are not closed, as of the last checkpoint of their pipeline';
GRANT SELECT ON hybridiot.open_window TO PUBLIC;

-- ---------------------------------------------------------------------------
-- Commands: journal, functions, views
-- ---------------------------------------------------------------------------

CREATE FUNCTION hybridiot.role_sees(sender pg_catalog.name) RETURNS pg_catalog.bool
LANGUAGE C STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'hybridiot_role_sees';
COMMENT ON FUNCTION hybridiot.role_sees(pg_catalog.name) IS 'may the current user see commands of this sender: is he it, or a member of it';

CREATE FUNCTION hybridiot.command_insert() RETURNS pg_catalog.trigger
LANGUAGE C AS 'MODULE_PATHNAME', 'hybridiot_command_insert';
REVOKE ALL ON FUNCTION hybridiot.command_insert() FROM PUBLIC;
COMMENT ON FUNCTION hybridiot.command_insert() IS 'makes INSERT into hybridiot.command do what send_command() does';

-- mode, state and accepted_by are the extension's own words: its code writes them and its trigger checks what is restored.
-- A CHECK here would be read anew from its text for every statement of the AMQP worker.
CREATE TABLE hybridiot.command (
	id pg_catalog.uuid PRIMARY KEY,
	device pg_catalog.text NOT NULL,
	command pg_catalog.text NOT NULL,
	sender pg_catalog.name NOT NULL,
	server pg_catalog.name NOT NULL,
	mode pg_catalog.text NOT NULL,
	state pg_catalog.text NOT NULL,
	accepted_by pg_catalog.text,
	payload pg_catalog.jsonb,
	body pg_catalog.bytea,
	content_type pg_catalog.text,
	properties pg_catalog.jsonb,
	priority pg_catalog.int4,
	ttl pg_catalog.interval NOT NULL DEFAULT '10 s',
	reply_within pg_catalog.interval NOT NULL DEFAULT '30 s',
	queued_at pg_catalog.timestamptz NOT NULL,
	sent_at pg_catalog.timestamptz,
	accepted_at pg_catalog.timestamptz,
	replied_at pg_catalog.timestamptz,
	expires_at pg_catalog.timestamptz NOT NULL,
	answer_by pg_catalog.timestamptz,
	status pg_catalog.int4,
	result pg_catalog.jsonb,
	result_body pg_catalog.bytea,
	condition pg_catalog.text,
	description pg_catalog.text,
	resolution pg_catalog.text,
	resolved_by pg_catalog.name,
	resolved_at pg_catalog.timestamptz,
	idempotency_key pg_catalog.text
) WITH (fillfactor = 70);
COMMENT ON TABLE hybridiot.command IS
'the journal of commands; INSERT of the request columns does what send_command() does, all else is written by the AMQP worker. You see your own and those of roles you are a member of';
CREATE UNIQUE INDEX command_idempotency_key ON hybridiot.command (sender, server, device, idempotency_key)
	WHERE idempotency_key IS NOT NULL;
CREATE INDEX command_queued_at ON hybridiot.command USING brin (queued_at) WITH (autosummarize = on);

CREATE TRIGGER command_insert BEFORE INSERT ON hybridiot.command
	FOR EACH ROW EXECUTE FUNCTION hybridiot.command_insert();
COMMENT ON TRIGGER command_insert ON hybridiot.command IS 'makes INSERT do what send_command() does';

ALTER TABLE hybridiot.command ENABLE ROW LEVEL SECURITY;
CREATE POLICY command_read ON hybridiot.command FOR SELECT USING (hybridiot.role_sees(sender));
CREATE POLICY command_insert ON hybridiot.command FOR INSERT WITH CHECK (true);
COMMENT ON POLICY command_read ON hybridiot.command IS 'commands of your own, and of roles you are a member of';
COMMENT ON POLICY command_insert ON hybridiot.command IS 'the trigger decides';
GRANT SELECT ON hybridiot.command TO PUBLIC;
GRANT INSERT (device, command, server, mode, payload, body, content_type, properties, priority, ttl, reply_within,
	idempotency_key) ON hybridiot.command TO PUBLIC;

CREATE TABLE hybridiot.command_event (
	command_id pg_catalog.uuid,
	at pg_catalog.timestamptz NOT NULL,
	state pg_catalog.text,
	cause pg_catalog.text
);
COMMENT ON TABLE hybridiot.command_event IS
'what happened to commands: each change of state, and what changed nothing (second replies, late outcomes; state is null then)';
CREATE INDEX command_event_command_id ON hybridiot.command_event (command_id);
CREATE INDEX command_event_at ON hybridiot.command_event USING brin (at) WITH (autosummarize = on);
ALTER TABLE hybridiot.command_event ENABLE ROW LEVEL SECURITY;
CREATE POLICY command_event_read ON hybridiot.command_event FOR SELECT
	USING (EXISTS (SELECT FROM hybridiot.command c WHERE c.id OPERATOR(pg_catalog.=) command_id));
COMMENT ON POLICY command_event_read ON hybridiot.command_event IS 'events of commands you see';
GRANT SELECT ON hybridiot.command_event TO PUBLIC;

-- The worker's queue, and what says whether a row of the journal is of this very database's present life.
CREATE TABLE hybridiot.command_origin (
	command_id pg_catalog.uuid PRIMARY KEY,
	system_id pg_catalog.int8 NOT NULL,
	timeline pg_catalog.int4 NOT NULL,
	database pg_catalog.oid NOT NULL,
	instance pg_catalog.uuid,
	epoch pg_catalog.int8,
	server pg_catalog.oid NOT NULL,
	sender pg_catalog.name NOT NULL,
	queued_xid pg_catalog.xid8 NOT NULL DEFAULT pg_catalog.pg_current_xact_id(),
	seq pg_catalog.int8 GENERATED ALWAYS AS IDENTITY
) WITH (fillfactor = 70);
COMMENT ON TABLE hybridiot.command_origin IS
'commands that are not final: where they were queued, and which life of the worker took them. Not dumped: what is restored has no origin and ends in doubt';
CREATE INDEX command_origin_queue ON hybridiot.command_origin (sender, queued_xid, seq) WHERE epoch IS NULL;

CREATE TABLE hybridiot.command_reply (
	command_id pg_catalog.uuid PRIMARY KEY,
	content_type pg_catalog.text NOT NULL
);
COMMENT ON TABLE hybridiot.command_reply IS 'content types of replies that are not application/json';

CREATE TABLE hybridiot.reply_address (
	server pg_catalog.oid PRIMARY KEY,
	system_id pg_catalog.int8 NOT NULL,
	timeline pg_catalog.int4 NOT NULL,
	database pg_catalog.oid NOT NULL,
	instance pg_catalog.uuid,
	reply_id pg_catalog.uuid NOT NULL DEFAULT pg_catalog.gen_random_uuid()
);
COMMENT ON TABLE hybridiot.reply_address IS
'the id in the address that replies come to, the same for as long as this database lives; a copy gets its own';

CREATE SEQUENCE hybridiot.command_epoch;
COMMENT ON SEQUENCE hybridiot.command_epoch IS 'counts the lives of the AMQP worker';

-- Which devices a role may command. By name, so that it means the same where it is restored.
CREATE TABLE hybridiot.device_grant (
	role pg_catalog.name NOT NULL,
	server pg_catalog.name NOT NULL,
	pattern pg_catalog.text NOT NULL,
	PRIMARY KEY (server, role, pattern)
);
COMMENT ON TABLE hybridiot.device_grant IS
'devices that roles may command, as patterns of LIKE; a server without any is open to all roles with USAGE on it. Written by grant_devices() and revoke_devices()';
GRANT SELECT ON hybridiot.device_grant TO PUBLIC;

CREATE FUNCTION hybridiot.device_grant_changed() RETURNS pg_catalog.trigger
LANGUAGE C AS 'MODULE_PATHNAME', 'hybridiot_device_grant_changed';
REVOKE ALL ON FUNCTION hybridiot.device_grant_changed() FROM PUBLIC;
COMMENT ON FUNCTION hybridiot.device_grant_changed() IS 'makes sessions read hybridiot.device_grant anew';
CREATE TRIGGER device_grant_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON hybridiot.device_grant
	FOR EACH STATEMENT EXECUTE FUNCTION hybridiot.device_grant_changed();
COMMENT ON TRIGGER device_grant_changed ON hybridiot.device_grant IS 'makes sessions read the table anew';

SELECT pg_catalog.pg_extension_config_dump('hybridiot.device_grant', '');

SELECT pg_catalog.pg_extension_config_dump('hybridiot.command', '');
SELECT pg_catalog.pg_extension_config_dump('hybridiot.command_event', '');
SELECT pg_catalog.pg_extension_config_dump('hybridiot.command_reply', '');

CREATE TYPE hybridiot.command_result AS (
	id pg_catalog.uuid,
	device pg_catalog.text,
	command pg_catalog.text,
	state pg_catalog.text,
	accepted_by pg_catalog.text,
	status pg_catalog.int4,
	content_type pg_catalog.text,
	payload pg_catalog.jsonb,
	body pg_catalog.bytea,
	condition pg_catalog.text,
	description pg_catalog.text,
	sent_at pg_catalog.timestamptz,
	replied_at pg_catalog.timestamptz
);
COMMENT ON TYPE hybridiot.command_result IS
'what became of a command; payload is the reply''s body if it is JSON, body if it is not';

CREATE FUNCTION hybridiot.send_command(
	device pg_catalog.text,
	command pg_catalog.text,
	payload pg_catalog.jsonb DEFAULT NULL,
	ttl pg_catalog.interval DEFAULT '10 s',
	reply_within pg_catalog.interval DEFAULT '30 s',
	server pg_catalog.name DEFAULT NULL,
	mode pg_catalog.text DEFAULT NULL,
	body pg_catalog.bytea DEFAULT NULL,
	content_type pg_catalog.text DEFAULT NULL,
	properties pg_catalog.jsonb DEFAULT NULL,
	priority pg_catalog.int4 DEFAULT NULL,
	idempotency_key pg_catalog.text DEFAULT NULL
) RETURNS pg_catalog.uuid
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'hybridiot_send_command';
COMMENT ON FUNCTION hybridiot.send_command(pg_catalog.text, pg_catalog.text, pg_catalog.jsonb, pg_catalog.interval,
	pg_catalog.interval, pg_catalog.name, pg_catalog.text, pg_catalog.bytea, pg_catalog.text, pg_catalog.jsonb, pg_catalog.int4, pg_catalog.text) IS
'queues a command, which leaves at COMMIT; returns its id. ttl says until when it may start, from the call; reply_within how long an answer counts (0: none is asked for). Raises 42501 without USAGE on the server, 0A000 for a mode its peer does not have, 22023 and 22004 for bad arguments, 23505 for an idempotency_key used with others';

CREATE FUNCTION hybridiot.call_device(
	device pg_catalog.text,
	command pg_catalog.text,
	payload pg_catalog.jsonb DEFAULT NULL,
	ttl pg_catalog.interval DEFAULT '10 s',
	reply_within pg_catalog.interval DEFAULT '30 s',
	server pg_catalog.name DEFAULT NULL,
	mode pg_catalog.text DEFAULT NULL,
	body pg_catalog.bytea DEFAULT NULL,
	content_type pg_catalog.text DEFAULT NULL,
	properties pg_catalog.jsonb DEFAULT NULL,
	priority pg_catalog.int4 DEFAULT NULL,
	idempotency_key pg_catalog.text DEFAULT NULL
) RETURNS hybridiot.command_result
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'hybridiot_call_device';
COMMENT ON FUNCTION hybridiot.call_device(pg_catalog.text, pg_catalog.text, pg_catalog.jsonb, pg_catalog.interval,
	pg_catalog.interval, pg_catalog.name, pg_catalog.text, pg_catalog.bytea, pg_catalog.text, pg_catalog.jsonb, pg_catalog.int4, pg_catalog.text) IS
'sends a command now and waits for what becomes of it; not undone by ROLLBACK. The device''s answer or silence is the result''s state; raises for mistakes as send_command() does, 53000 when too many calls are in flight, 55000 without a worker and in a pipeline';

CREATE FUNCTION hybridiot.call_devices(
	devices pg_catalog.text[],
	command pg_catalog.text,
	payload pg_catalog.jsonb DEFAULT NULL,
	payloads pg_catalog.jsonb[] DEFAULT NULL,
	ttl pg_catalog.interval DEFAULT '10 s',
	reply_within pg_catalog.interval DEFAULT '30 s',
	server pg_catalog.name DEFAULT NULL,
	mode pg_catalog.text DEFAULT NULL,
	body pg_catalog.bytea DEFAULT NULL,
	content_type pg_catalog.text DEFAULT NULL,
	properties pg_catalog.jsonb DEFAULT NULL,
	priority pg_catalog.int4 DEFAULT NULL,
	idempotency_key pg_catalog.text DEFAULT NULL
) RETURNS SETOF hybridiot.command_result
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'hybridiot_call_devices';
COMMENT ON FUNCTION hybridiot.call_devices(pg_catalog.text[], pg_catalog.text, pg_catalog.jsonb, pg_catalog.jsonb[], pg_catalog.interval,
	pg_catalog.interval, pg_catalog.name, pg_catalog.text, pg_catalog.bytea, pg_catalog.text, pg_catalog.jsonb, pg_catalog.int4, pg_catalog.text) IS
'call_device() for several devices, all in flight at once; a row for each, in their order. payloads, if given, has one for each device';

CREATE FUNCTION hybridiot.wait_command(id pg_catalog.uuid, timeout pg_catalog.interval DEFAULT NULL)
RETURNS hybridiot.command_result
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'hybridiot_wait_command';
COMMENT ON FUNCTION hybridiot.wait_command(pg_catalog.uuid, pg_catalog.interval) IS
'waits until a command will not change by itself any more, or the timeout passes (NULL: without limit), and returns what is known then. Raises 55000 in the transaction that queued it and in a pipeline, 42704 for a command you do not see';

CREATE FUNCTION hybridiot.wait_commands(ids pg_catalog.uuid[], timeout pg_catalog.interval DEFAULT NULL)
RETURNS SETOF hybridiot.command_result
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'hybridiot_wait_commands';
COMMENT ON FUNCTION hybridiot.wait_commands(pg_catalog.uuid[], pg_catalog.interval) IS
'wait_command() for several; a row for each, in their order, when all are settled or the timeout passes';

CREATE FUNCTION hybridiot.cancel_command(id pg_catalog.uuid) RETURNS pg_catalog.text
LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'hybridiot_cancel_command';
COMMENT ON FUNCTION hybridiot.cancel_command(pg_catalog.uuid) IS
'cancels a command at once, not at COMMIT: cancelled if it can no longer leave, too_late if it may have left. Raises 55000 in the transaction that queued it (ROLLBACK undoes that), without a worker and in a pipeline, 55P03 if a lock on the journal is in the way, 42704 for a command you do not see';

CREATE FUNCTION hybridiot.resolve_command(id pg_catalog.uuid, outcome pg_catalog.text, note pg_catalog.text) RETURNS pg_catalog.void
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'hybridiot_resolve_command';
COMMENT ON FUNCTION hybridiot.resolve_command(pg_catalog.uuid, pg_catalog.text, pg_catalog.text) IS
'notes what you found out about a command that is in_doubt or timed_out: executed or not_executed, and a note (may be null) for its event; at once, not at COMMIT. The state stays. Another resolution replaces the one before. Raises 55000 for commands in other states, without a worker and in a pipeline, 22023 for another outcome, 42704 for a command you do not see';

CREATE FUNCTION hybridiot.grant_devices(role pg_catalog.regrole, server pg_catalog.name, pattern pg_catalog.text) RETURNS pg_catalog.void
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'hybridiot_grant_devices';
COMMENT ON FUNCTION hybridiot.grant_devices(pg_catalog.regrole, pg_catalog.name, pg_catalog.text) IS
'lets a role command the devices of an AMQP server whose names match the pattern, as LIKE does (% and _, case counts). From the first grant on, a role needs one beside USAGE on the server; its owner and superusers do not. Only the server''s owner grants (42501); 22025 and 22023 for a bad pattern, 22004, 42704, 42809';

CREATE FUNCTION hybridiot.revoke_devices(role pg_catalog.regrole, server pg_catalog.name, pattern pg_catalog.text) RETURNS pg_catalog.void
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'hybridiot_revoke_devices';
COMMENT ON FUNCTION hybridiot.revoke_devices(pg_catalog.regrole, pg_catalog.name, pg_catalog.text) IS
'takes back what grant_devices() gave with the same pattern; 42704 if there is no such grant. Without its last grant a server is open again to all roles with USAGE on it, which a NOTICE tells. Raises what grant_devices() raises';

CREATE FUNCTION hybridiot.connection_stat(
	OUT server pg_catalog.name, OUT kind pg_catalog.text, OUT state pg_catalog.text, OUT since pg_catalog.timestamptz,
	OUT sessions pg_catalog.int4, OUT links pg_catalog.int4, OUT bytes_in pg_catalog.int8, OUT bytes_out pg_catalog.int8,
	OUT credit pg_catalog.int4, OUT in_flight pg_catalog.int4, OUT last_error pg_catalog.text
) RETURNS SETOF pg_catalog.record
LANGUAGE C VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'hybridiot_connection_stat';
COMMENT ON FUNCTION hybridiot.connection_stat() IS 'rows of hybridiot.stat_connection';

CREATE VIEW hybridiot.stat_connection WITH (security_barrier) AS
SELECT server, kind, state, since, sessions, links, bytes_in, bytes_out, credit, in_flight, last_error
FROM hybridiot.connection_stat();
COMMENT ON VIEW hybridiot.stat_connection IS
'connections of this database through servers you may use; state is connecting, up or retrying (goes on by itself)';
GRANT SELECT ON hybridiot.stat_connection TO PUBLIC;

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
		WHEN s.state OPERATOR(pg_catalog.=) ANY (ARRAY['running', 'retrying']) THEN s.state
		WHEN s.last_error IS NOT NULL AND s.state OPERATOR(pg_catalog.=) 'stopped' THEN 'retrying'
		ELSE 'waiting'
	END AS state,
	CASE
		WHEN d.failure IS NOT NULL THEN d.failure
		WHEN NOT d.enabled THEN NULL
		WHEN s.reason IS NOT NULL THEN s.reason
		WHEN s.state OPERATOR(pg_catalog.=) ANY (ARRAY['running', 'retrying']) THEN NULL
		WHEN s.state OPERATOR(pg_catalog.=) 'stopped' THEN s.last_error
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
	CASE WHEN p.end_offset IS NOT NULL
		THEN GREATEST(p.end_offset OPERATOR(pg_catalog.-) p.next_offset, 0::pg_catalog.int8) END AS lag,
	p.stream_time, p.idle
FROM hybridiot.pipeline_position p JOIN hybridiot.pipeline_definition d ON d.id OPERATOR(pg_catalog.=) p.pipeline
WHERE pg_catalog.pg_has_role(d.owner, 'MEMBER');
COMMENT ON VIEW hybridiot.position IS
'first offset not yet applied per pipeline and partition, the log''s end as last heard, and the largest event time seen';

CREATE VIEW hybridiot.seek WITH (security_barrier) AS
SELECT d.name AS pipeline, r.sought_at, r.sought_by, r.position, r.previous
FROM hybridiot.seek_record r JOIN hybridiot.pipeline_definition d ON d.id OPERATOR(pg_catalog.=) r.pipeline
WHERE pg_catalog.pg_has_role(d.owner, 'MEMBER');
COMMENT ON VIEW hybridiot.seek IS
'positions that were set by hand, with seek_pipeline() or a new start_at: when, by whom, to what, and what they were before';

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
SELECT w.pid, w.kind, d.name AS pipeline, w.state, w.started_at, w.restarts
FROM hybridiot.worker_slots() w LEFT JOIN hybridiot.pipeline_definition d ON d.id OPERATOR(pg_catalog.=) w.pipeline;
COMMENT ON VIEW hybridiot.stat_worker IS 'workers of this database that run now';

GRANT SELECT ON hybridiot.pipeline, hybridiot.position, hybridiot.seek, hybridiot.dead_letter, hybridiot.stat_pipeline,
	hybridiot.stat_worker TO PUBLIC;
