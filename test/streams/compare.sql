-- Hybridiot and Kafka Streams side by side (test/t/streams.pl): topics, what plain SQL says of them, and every difference with
-- the rule that explains it. Times are microseconds since 1970.
CREATE SCHEMA streams;		-- first in the search_path of this database

-- the topics: windows of this size, every advance; sessions of this gap; lateness, which Kafka Streams calls grace
CREATE TABLE topic (topic int PRIMARY KEY, size bigint, advance bigint, gap bigint, lateness bigint);
CREATE TABLE record (topic int, part int, pos int, device text, at bigint, v bigint, PRIMARY KEY (topic, part, pos));
-- what they made of them; Kafka Streams in two ways: 'close' (EmitStrategy.onWindowClose) and 'suppress' (until windows close)
CREATE TABLE streams_row (number bigserial, topic int, kind text, way text, part int, device text, first bigint, last bigint, n bigint, total bigint);
CREATE TABLE ours (topic int, kind text, device text, first bigint, last bigint, n bigint, total bigint);
CREATE TABLE late (topic int, kind text, part int, pos int);

-- ---------------------------------------------------------------- hybridiot

CREATE SERVER streams FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (transport 'table');
CREATE TABLE log (partition int, "offset" bigint, "timestamp" timestamptz, key bytea, value bytea, headers jsonb);
CREATE FOREIGN TABLE stream (device text, ts timestamptz, v bigint) SERVER streams
	OPTIONS (topic 'log', source 'streams.log', format 'json', event_time 'ts');
CREATE TABLE target (during tstzrange, device text, n bigint, total bigint);

-- One topic through one pipeline: all that it holds, and then a day of silence, which closes what is open.
CREATE FUNCTION run(t topic, kind text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	us constant interval := '1 us';
	clock constant timestamptz := '2025-01-01';
BEGIN
	TRUNCATE log, target;
	INSERT INTO log SELECT part, pos, NULL, NULL, convert_to(jsonb_build_object('device', device, 'ts', timestamptz 'epoch' + at * us, 'v', v)::text, 'UTF8'), NULL
		FROM record WHERE record.topic = t.topic;
	PERFORM hybridiot.create_pipeline('streams', format('INSERT INTO target SELECT %s, device, count(*), sum(v) FROM stream %s GROUP BY 1, 2', CASE kind
			WHEN 'tumble' THEN format('hybridiot.tumble(ts, %L)', t.size * us)
			WHEN 'hop' THEN 'w'
			WHEN 'slide' THEN format('hybridiot.slide(ts, %L)', t.size * us)
			WHEN 'session' THEN format('hybridiot.session(ts, %L)', t.gap * us) END,
		CASE kind WHEN 'hop' THEN format(', hybridiot.hop(ts, %L, %L) AS w', t.size * us, t.advance * us) END),
		lateness => t.lateness * us, enabled => false);
	PERFORM hybridiot.run_pipeline('streams', wall_clock => clock);
	PERFORM hybridiot.run_pipeline('streams', wall_clock => clock + interval '1 day');
	INSERT INTO ours SELECT t.topic, kind, device, extract(epoch FROM lower(during)) * 1000000, extract(epoch FROM upper(during)) * 1000000, n, total FROM target;
	INSERT INTO late SELECT DISTINCT t.topic, kind, partition, "offset" FROM hybridiot.dead_letter WHERE pipeline = 'streams';
	PERFORM hybridiot.drop_pipeline('streams');
END $$;

-- ---------------------------------------------------------------- plain SQL

-- stream time, T, and T before the record
CREATE MATERIALIZED VIEW judged AS
	SELECT record.*, max(at) OVER w AS stream_time, max(at) OVER w - lateness AS t, size, advance, gap, lateness,
		max(at) OVER (PARTITION BY topic, part ORDER BY pos ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) - lateness AS t_before
	FROM record JOIN topic USING (topic) WINDOW w AS (PARTITION BY topic, part ORDER BY pos) WITH NO DATA;
CREATE INDEX ON judged (topic, part, t, pos);
CREATE INDEX ON judged (topic, device, at);

-- Partitions taken one by one, or all together as one (part is then −1).
CREATE FUNCTION windows(together bool)
RETURNS TABLE (topic int, kind text, part int, device text, first bigint, last bigint, n bigint, total bigint) LANGUAGE sql AS $$
	SELECT topic, 'tumble', CASE WHEN NOT together THEN part ELSE -1 END AS p, device, w, w + size, count(*), sum(v)
	FROM judged, LATERAL (SELECT at / size * size AS w) AS x
	WHERE w + size > t GROUP BY topic, p, device, w, size
	UNION ALL
	SELECT topic, 'hop', CASE WHEN NOT together THEN part ELSE -1 END AS p, device, w, w + size, count(*), sum(v)
	FROM judged, generate_series((at - size) / advance * advance + advance, at / advance * advance, advance) AS w
	WHERE w + size > t GROUP BY topic, p, device, w, size
$$;

-- Windows that end at a record or begin a step behind one, as long as they are not over for its partition.
-- created: the number of the record in its partition that made it, as far as it can be told.
CREATE FUNCTION slides(together bool, step bigint)
RETURNS TABLE (topic int, part int, device text, first bigint, last bigint, n bigint, total bigint, created int) LANGUAGE sql AS $$
	WITH anchored AS (
		SELECT topic, CASE WHEN NOT together THEN part ELSE -1 END AS p, device, first, first + size AS last, min(pos) AS anchor
		FROM judged, LATERAL (VALUES (at - size), (at + step)) AS w (first)
		WHERE first + size >= t AND at + size >= t GROUP BY 1, 2, 3, 4, 5)
	SELECT topic, p, device, first, last, count(*), sum(v), greatest(anchor, min(pos))
	FROM anchored JOIN judged USING (topic, device)
	WHERE at BETWEEN first AND last AND last >= t AND (together OR p = part)
	GROUP BY topic, p, device, first, last, anchor
$$;

-- Which session a record enters depends on the records before it, so they are taken one after the other. A way of Kafka Streams
-- takes a session for over one step earlier, when last + gap = T; with 'close' a second session of the same bounds overwrites the first.
CREATE FUNCTION sessions(way text)
RETURNS TABLE (topic int, part int, device text, first bigint, last bigint, n bigint, total bigint) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
	r judged;
	merged record;
	taken int[];
BEGIN
	CREATE TEMP TABLE live (id serial, topic int, part int, device text, first bigint, last bigint, n bigint, total bigint);
	CREATE INDEX ON live (topic, part, device);
	FOR r IN SELECT * FROM judged ORDER BY topic, part, pos LOOP
		SELECT least(r.at, min(first)) AS first, greatest(r.at, max(last)) AS last, coalesce(sum(n), 0) + 1 AS n, coalesce(sum(total), 0) + r.v AS total,
			array_agg(id) AS ids INTO merged
		FROM live WHERE topic = r.topic AND part = r.part AND device = r.device AND first - r.gap <= r.at AND last + r.gap >= r.at
			AND CASE WHEN way IS NULL THEN last + r.gap >= r.t ELSE last + r.gap > coalesce(r.t_before, 0) END;
		IF merged.last + r.gap >= r.t THEN
			DELETE FROM live WHERE id = ANY (merged.ids) OR way = 'close' AND topic = r.topic AND part = r.part AND device = r.device
				AND first = merged.first AND last = merged.last;
			INSERT INTO live VALUES (DEFAULT, r.topic, r.part, r.device, merged.first, merged.last, merged.n, merged.total);
		END IF;
	END LOOP;
	RETURN QUERY SELECT topic, part, device, first, last, n, total FROM live;
	DROP TABLE live;
END $$;

-- ---------------------------------------------------------------- the rules of Kafka Streams that are not ours

-- What Kafka Streams makes of each partition. closed_by, closed_at: the record that moved the partition's stream time past it, and
-- that time; null for what is left open. lost: its store had forgotten it by then.
CREATE TABLE model (topic int, kind text, way text, part int, device text, first bigint, last bigint, n bigint, total bigint,
	created int, closed_by int, closed_at bigint, lost bool);
CREATE INDEX ON model (topic, kind, way, part, device, first);

CREATE FUNCTION make_model() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	REFRESH MATERIALIZED VIEW judged;
	ANALYZE;
	INSERT INTO model
	SELECT topic, kind, way, part, device, first, last, n, total FROM windows(false), (VALUES ('close'), ('suppress')) AS w (way)
	UNION ALL
	SELECT topic, 'session', way, part, device, first, last, n, total FROM (VALUES ('close'), ('suppress')) AS w (way), sessions(way);
	INSERT INTO model
	SELECT topic, 'slide', way, part, device, first, last, n, total, created FROM slides(false, 1000), (VALUES ('close'), ('suppress')) AS w (way);

	-- With 'suppress' it comes a step early, where the end is included.
	UPDATE model SET (closed_by, closed_at) = (SELECT pos, stream_time FROM judged j
		WHERE j.topic = model.topic AND j.part = model.part AND j.t >= last + CASE kind WHEN 'session' THEN gap ELSE 0 END
			+ CASE WHEN kind IN ('slide', 'session') AND way = 'close' THEN 1 ELSE 0 END
		ORDER BY t, pos LIMIT 1)
	FROM topic WHERE topic.topic = model.topic;

	-- Rows are found in the store when they close. By then it has forgotten windows that begin too long before the newest one of any
	-- key, and sessions in pieces of a minute.
	UPDATE model SET lost = CASE kind
		WHEN 'tumble' THEN first < closed_at / size * size - size - lateness
		WHEN 'hop' THEN first < closed_at / advance * advance - size - lateness
		WHEN 'slide' THEN first < newest - 2 * size - lateness
		WHEN 'session' THEN last / 60000000 < (closed_at - gap - lateness) / 60000000 END
	FROM topic, (SELECT c.topic, c.part, c.closed_by, max(m.first) AS newest
		FROM (SELECT DISTINCT topic, part, closed_by FROM model WHERE way = 'close') AS c
		LEFT JOIN model m ON m.topic = c.topic AND m.kind = 'slide' AND m.way = 'close' AND m.part = c.part AND m.created <= c.closed_by
		GROUP BY 1, 2, 3) AS x
	WHERE way = 'close' AND topic.topic = model.topic AND x.topic = model.topic AND x.part = model.part AND x.closed_by = model.closed_by;
END $$;

CREATE VIEW modelled AS
	SELECT topic, kind, way, part, device, first, last, n, total FROM model WHERE closed_by IS NOT NULL AND lost IS NOT TRUE;

-- A sliding window that is suppressed is told when T = last, and again with each record that enters it after that.
CREATE VIEW told_again AS
	SELECT * FROM streams_row s WHERE kind = 'slide' AND way = 'suppress'
		AND EXISTS (SELECT FROM judged j WHERE j.topic = s.topic AND j.part = s.part AND j.t = s.last)
		AND EXISTS (SELECT FROM streams_row o WHERE o.number > s.number AND (o.topic, o.kind, o.way, o.part, o.device, o.first) = (s.topic, s.kind, s.way, s.part, s.device, s.first));

-- A sliding window is made of its neighbours as they are when it is first needed. A record that came when the window that ends at it was
-- over already is missing in windows that are made later, or is still in one that begins behind it; and where nothing else is in them,
-- they are not made.
CREATE VIEW of_neighbours AS
	SELECT m.*, s.n AS told_n, s.total AS told_total
	FROM modelled m LEFT JOIN (SELECT * FROM streams_row EXCEPT SELECT * FROM told_again) AS s USING (topic, kind, way, part, device, first, last)
		JOIN topic USING (topic),
		LATERAL (SELECT count(*) FILTER (WHERE at >= first) AS inside, count(*) FILTER (WHERE at < first) AS before,
				coalesce(sum(v) FILTER (WHERE at >= first), 0) AS v_inside, coalesce(sum(v) FILTER (WHERE at < first), 0) AS v_before
			FROM judged j WHERE j.topic = m.topic AND j.part = m.part AND j.device = m.device
				AND at BETWEEN first - topic.size - 1000 AND last AND at < t AND last >= t) AS late
	WHERE m.kind = 'slide' AND CASE WHEN s.n IS NULL
			THEN inside = m.n OR EXISTS (SELECT FROM judged j WHERE j.topic = m.topic AND j.part = m.part AND j.device = m.device AND at = first - 1000 AND at < t)
		ELSE s.n <> m.n AND s.n BETWEEN m.n - inside AND m.n + before AND s.total BETWEEN m.total - v_inside AND m.total + v_before END;

-- What none of these rules explains.
CREATE VIEW unexplained AS
	WITH told AS (
		SELECT topic, kind, way, part, device, first, last, n, total FROM streams_row
		EXCEPT ALL SELECT topic, kind, way, part, device, first, last, n, total FROM told_again
	), expected AS (
		SELECT * FROM modelled
		EXCEPT ALL SELECT topic, kind, way, part, device, first, last, n, total FROM of_neighbours
		UNION ALL SELECT topic, kind, way, part, device, first, last, told_n, told_total FROM of_neighbours WHERE told_n IS NOT NULL)
	SELECT 'only in Kafka Streams' AS what, * FROM (SELECT * FROM told EXCEPT ALL SELECT * FROM expected) AS x
	UNION ALL
	SELECT 'not in Kafka Streams', * FROM (SELECT * FROM expected EXCEPT ALL SELECT * FROM told) AS x;

-- Hybridiot against plain SQL: all partitions together, nothing lost, nothing left open after a long silence. Sessions whose key is
-- in several partitions depend on the order in which these were read; of them no record may be lost or counted twice.
CREATE VIEW several AS SELECT topic, device FROM record GROUP BY topic, device HAVING count(DISTINCT part) > 1;

CREATE FUNCTION wrong(kinds text[])
RETURNS TABLE (what text, topic int, kind text, device text, first bigint, last bigint, n bigint, total bigint) LANGUAGE sql AS $$
	WITH plain AS (
		SELECT topic, kind, device, first, last, n, total FROM windows(true)
		UNION ALL SELECT topic, 'slide', device, first, last, n, total FROM slides(true, 1)
		UNION ALL SELECT topic, 'session', device, first, last, n, total FROM sessions(NULL) WHERE (topic, device) NOT IN (SELECT * FROM several)
		UNION ALL SELECT topic, 'session', device, 0, 0, count(*), sum(v) FROM record
			WHERE (topic, device) IN (SELECT * FROM several) AND (topic, part, pos) NOT IN (SELECT topic, part, pos FROM late WHERE kind = 'session') GROUP BY 1, 3
	), found AS (
		SELECT * FROM ours WHERE kind <> 'session' OR (topic, device) NOT IN (SELECT * FROM several)
		UNION ALL SELECT topic, kind, device, 0, 0, sum(n), sum(total) FROM ours WHERE kind = 'session' AND (topic, device) IN (SELECT * FROM several) GROUP BY 1, 2, 3
	)
	SELECT 'only in hybridiot', * FROM (SELECT * FROM found EXCEPT ALL SELECT * FROM plain WHERE kind = ANY (kinds)) AS x
	UNION ALL
	SELECT 'not in hybridiot', * FROM (SELECT * FROM plain WHERE kind = ANY (kinds) EXCEPT ALL SELECT * FROM found) AS x
$$;

-- How often each rule was needed: rows that are not the same on both sides.
CREATE VIEW explained (rule, rows) AS
	SELECT 'lost by a jump', count(*) FROM model WHERE lost
	UNION ALL SELECT 'sliding windows made of neighbours', count(*) FROM of_neighbours
	UNION ALL SELECT 'silence', count(*) FROM model WHERE closed_by IS NULL
	UNION ALL SELECT 'slide''s step', count(*) FROM (
		SELECT topic, part, device, first, last, n, total FROM slides(false, 1000)
		EXCEPT SELECT topic, part, device, first, last, n, total FROM slides(false, 1)) AS x
	UNION ALL SELECT 'an exact tie', (SELECT count(*) FROM (SELECT topic, part, device, first, last, n, total FROM modelled WHERE kind = 'session'
		EXCEPT SELECT * FROM sessions(NULL)) AS x) + (SELECT count(*) FROM told_again)
	UNION ALL SELECT 'keys in several partitions', count(*) FROM (
		SELECT topic, kind, device, first FROM model WHERE way = 'close' GROUP BY 1, 2, 3, 4 HAVING count(*) > 1) AS x;
