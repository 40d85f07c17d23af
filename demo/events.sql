-- The same story as lines for a log: what has happened so far, oldest first.
-- demo/run prints the lines that are new.  The first line is as in picture.sql.
\set QUIET on
\pset format unaligned
\pset tuples_only on
BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;

SELECT (SELECT count(*) > 0 FROM reading)
   AND (SELECT coalesce(sum(lag), 1) = 0 FROM hybridiot.position)
   AND (SELECT count(*) = 0 FROM hybridiot.open_window)
   AND (SELECT count(*) = 0 FROM hybridiot.command WHERE state IN ('queued', 'sending', 'sent', 'accepted'));

SELECT format('%s  %s', to_char(at, 'HH24:MI:SS.MS'), line) FROM (
    SELECT upper(during) AS at, format('window %s–%s is final, hottest %s at %s °C', to_char(lower(during), 'HH24:MI:SS'),
           to_char(upper(during), ':SS'), (array_agg(device ORDER BY max_temp DESC))[1], to_char(max(max_temp), 'FM990.0')) AS line
    FROM temp_max WHERE upper(during) <= (SELECT closed_before FROM hybridiot.pipeline WHERE name = 'temp_max') GROUP BY during
    UNION ALL
    SELECT raised_at, format('ALARM %s %s °C in the window %s–%s', device, to_char(max_temp, 'FM990.0'),
           to_char(lower(during), 'HH24:MI:SS'), to_char(upper(during), ':SS')) FROM alarm
    UNION ALL
    SELECT replied_at, format('command %s %s to %s: %s, status %s, %s after %s ms', command, payload, device, state, status, result,
           to_char(1000 * extract(epoch FROM replied_at - sent_at), 'FM999,990')) FROM hybridiot.command WHERE replied_at IS NOT NULL
    UNION ALL
    SELECT min(failed_at), format('dead letter %s: %s/%s at %s, pipelines %s', reason, topic, partition, "offset",
           string_agg(pipeline, ', ' ORDER BY pipeline)) FROM hybridiot.dead_letter
    GROUP BY reason, topic, partition, "offset" HAVING count(*) >= 3 OR min(failed_at) < clock_timestamp() - interval '2 s') e
ORDER BY at, line;

COMMIT;
