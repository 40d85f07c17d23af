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

-- The trigger checks what is restored; nobody else but the extension's code writes these.
ALTER TABLE hybridiot.command DROP CONSTRAINT command_mode_check, DROP CONSTRAINT command_state_check,
	DROP CONSTRAINT command_accepted_by_check;

ALTER TABLE hybridiot.command_origin ADD COLUMN instance pg_catalog.uuid;
-- Each sender has a queue of his own.
ALTER TABLE hybridiot.command_origin ADD COLUMN sender pg_catalog.name NOT NULL DEFAULT '';
UPDATE hybridiot.command_origin o SET sender = c.sender FROM hybridiot.command c WHERE c.id OPERATOR(pg_catalog.=) o.command_id;
ALTER TABLE hybridiot.command_origin ALTER COLUMN sender DROP DEFAULT;
DROP INDEX hybridiot.command_origin_queue;
CREATE INDEX command_origin_queue ON hybridiot.command_origin (sender, queued_xid, seq) WHERE epoch IS NULL;
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
'runs a pipeline''s statement over its dead letters again, or those with failed_at >= since, in log order and in this transaction; may be called while its worker runs. A windowed one takes records into windows that are open for them, and writes finished rows that failed. Deletes letters that pass and returns how many; the others count one more attempt. Needs membership in the owner (42501); 42704 if there is no such pipeline';

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

-- Windows of all kinds.
ALTER TABLE hybridiot.window_layout ADD COLUMN kind pg_catalog.text NOT NULL DEFAULT 'tumble';
ALTER TABLE hybridiot.window_layout ADD COLUMN size_us pg_catalog.int8;
COMMENT ON TABLE hybridiot.window_layout IS 'what the stored states of a pipeline depend on: its windows, PostgreSQL''s major version, types of keys and states';
COMMENT ON FUNCTION hybridiot.slide(pg_catalog.timestamptz, pg_catalog.interval) IS
'windows of this size that end at a record or begin a microsecond behind one, both ends included; in GROUP BY of a pipeline only, 0A000 elsewhere';
COMMENT ON FUNCTION hybridiot.session(pg_catalog.timestamptz, pg_catalog.interval) IS
'the session that ts belongs to: records of a key no further than gap from the next, from the first to the last; in GROUP BY of a pipeline only, 0A000 elsewhere';
DROP VIEW hybridiot.open_window;
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
-- Closed windows
-- ---------------------------------------------------------------------------

-- What 0.1.0 closed it did not keep.
ALTER TABLE hybridiot.pipeline_progress ADD COLUMN kept_after pg_catalog.timestamptz NOT NULL DEFAULT '-infinity';
UPDATE hybridiot.pipeline_progress p SET kept_after = GREATEST(p.closed_before, p.watermark OPERATOR(pg_catalog.-) d.lateness)
FROM hybridiot.pipeline_definition d
WHERE d.id OPERATOR(pg_catalog.=) p.pipeline AND (p.closed_before IS NOT NULL OR p.watermark IS NOT NULL);

ALTER TABLE hybridiot.window_group ADD COLUMN over_at pg_catalog.timestamptz;
CREATE INDEX window_group_closed_idx ON hybridiot.window_group (pipeline, over_at) WHERE closed;
COMMENT ON TABLE hybridiot.window_group IS
'states of groups as of the last checkpoint. Closed ones are kept for reopen_window(), or, without over_at, because their row could not be written. Read hybridiot.open_window instead';

-- Dead letters of finished rows know their group. 0.1.0 wrote those of a window in the order of its groups.
ALTER TABLE hybridiot.dead_letter_record ADD COLUMN group_id pg_catalog.int8;
UPDATE hybridiot.dead_letter_record r SET group_id = g.id
FROM (SELECT id, pipeline, during, pg_catalog.row_number() OVER (PARTITION BY pipeline, during ORDER BY id) AS place
		FROM hybridiot.dead_letter_record WHERE "offset" IS NULL) l
	JOIN (SELECT id, pipeline, pg_catalog.tstzrange(window_start, window_end) AS during,
			pg_catalog.row_number() OVER (PARTITION BY pipeline, window_start, window_end ORDER BY id) AS place
		FROM hybridiot.window_group WHERE closed) g
	ON g.pipeline OPERATOR(pg_catalog.=) l.pipeline AND g.during OPERATOR(pg_catalog.=) l.during AND g.place OPERATOR(pg_catalog.=) l.place
WHERE r.id OPERATOR(pg_catalog.=) l.id;

CREATE FUNCTION hybridiot.reopen_window(name pg_catalog.name, during pg_catalog.tstzrange) RETURNS pg_catalog.int8
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'hybridiot_reopen_window';
COMMENT ON FUNCTION hybridiot.reopen_window(pg_catalog.name, pg_catalog.tstzrange) IS
'folds late records of closed windows that overlap during into corrected rows, in this transaction, and returns how many; their dead letters go. Needs keep_closed. Raises 55000 for windows that are open or not kept any more, 22023 for an empty or unbounded range, 0A000 for statements that command devices, 42809 for pipelines without windows, 42704, 42501';

CREATE FUNCTION hybridiot.verify_pipeline(
	name pg_catalog.name,
	source pg_catalog.regclass
) RETURNS TABLE (difference pg_catalog.text, during pg_catalog.tstzrange, "row" pg_catalog.jsonb)
LANGUAGE C STABLE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'hybridiot_verify_pipeline';
COMMENT ON FUNCTION hybridiot.verify_pipeline(pg_catalog.name, pg_catalog.regclass) IS
'runs a windowed pipeline''s statement over a table that has the records of its stream, with their partition and offset, and returns how the target differs in closed windows: rows that are missing there, and unexpected ones. Late and failed ones, as dead letters say, are left out. Read-only, one snapshot, as the owner, who needs SELECT on both. Needs membership in the owner (42501); 42704 if there is no such pipeline, 42703 and 42804 for columns of the source, 0A000 for what cannot be compared';

-- ---------------------------------------------------------------------------
-- Commands: who may what, and what people found out
-- ---------------------------------------------------------------------------

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
