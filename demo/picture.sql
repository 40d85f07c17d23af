-- One picture of the running application, as lines of text.  First a line for
-- demo/run: "t" when all that was read is applied, closed and answered.  Every
-- number comes from the database, in one snapshot.  Variables: color (0 or 1), alarms
-- (how many to show).
\set QUIET on
\pset format unaligned
\pset tuples_only on
\set esc `printf '\033'`
\if :color
\set bold :esc '[1m'
\set dim :esc '[2m'
\set red :esc '[1;31m'
\set yellow :esc '[33m'
\set green :esc '[32m'
\set off :esc '[0m'
\else
\set bold ''
\set dim ''
\set red ''
\set yellow ''
\set green ''
\set off ''
\endif
BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;

SELECT (SELECT count(*) > 0 FROM reading)
   AND (SELECT coalesce(sum(lag), 1) = 0 FROM hybridiot.position)
   AND (SELECT count(*) = 0 FROM hybridiot.open_window)
   AND (SELECT count(*) = 0 FROM hybridiot.command WHERE state IN ('queued', 'sending', 'sent', 'accepted'));

SELECT format(E'\n %ssensors → gateway → AMQP → bridge → Kafka → PostgreSQL → AMQP → fans%s\n', :'bold', :'off');

SELECT format(' readings %s%s%s in the table, %s/s, lag %s      windows %s%s%s, %s open      %s s',
              :'bold', to_char(count(*), 'FM999,999,999'), :'off',
              count(*) FILTER (WHERE ts > clock_timestamp() - interval '2 s') / 2,
              (SELECT coalesce(sum(lag), 0) FROM hybridiot.position WHERE pipeline = 'readings'),
              :'bold', (SELECT count(*) FROM temp_max), :'off',
              (SELECT coalesce(sum(groups), 0) FROM hybridiot.open_window WHERE pipeline = 'temp_max'),
              coalesce(round(extract(epoch FROM max(ts) - min(ts))), 0))
FROM reading;

SELECT format(' pipelines %s', coalesce(string_agg(format('%s %s%s%s', name,
              CASE WHEN state = 'running' THEN :'green' ELSE :'red' END, state, :'off'), '   ' ORDER BY name), 'none'))
FROM hybridiot.pipeline;

-- One line a press: its newest reading as a bar from 40 to 100 °C with a mark at
-- 80, then the maximum of its last windows; those still open are in brackets.
WITH shown AS (
    SELECT during, row_number() OVER (ORDER BY during DESC) AS age
    FROM (SELECT DISTINCT during FROM temp_max ORDER BY 1 DESC LIMIT 4) w
)
SELECT format(E'\n %s%-8s %5s  40 °C%10s80%4s100 %s%s', :'dim', 'press', 'now', '', '',
              (SELECT string_agg(to_char(lower(during), '  ":"SS  '), '' ORDER BY during) FROM shown), :'off');

WITH shown AS (
    SELECT during, row_number() OVER (ORDER BY during) AS place
    FROM (SELECT DISTINCT during FROM temp_max ORDER BY 1 DESC LIMIT 4) w
), press AS (
    SELECT DISTINCT ON (device) device, temp FROM reading ORDER BY device, ts DESC
), fan AS (
    SELECT DISTINCT ON (device) device, result->>'fan' AS fan FROM hybridiot.command
    WHERE command = 'fan' AND state = 'succeeded' ORDER BY device, replied_at DESC
), closed AS (
    SELECT closed_before FROM hybridiot.pipeline WHERE name = 'temp_max'
), bar AS (
    SELECT device, temp, greatest(0, least(24, round((temp - 40) * 0.4)))::int AS length,
           CASE WHEN temp > 80 THEN :'red' WHEN temp > 70 THEN :'yellow' ELSE :'green' END AS color
    FROM press
)
SELECT format(' %-8s %s%5s  %s%s %s %s', bar.device, bar.color, to_char(temp, 'FM990.0'),
              overlay(rpad(repeat('█', length), 24, '·') PLACING '┃' FROM 17 FOR 1), :'off',
              (SELECT string_agg(CASE WHEN m.max_temp IS NULL THEN repeat(' ', 7)
                                      ELSE format('%s%7s%s', CASE WHEN m.max_temp > 80 THEN :'red' WHEN m.max_temp > 70 THEN :'yellow'
                                                                  ELSE '' END,
                                                  CASE WHEN upper(s.during) <= closed_before THEN to_char(m.max_temp, 'FM990.0') || ' '
                                                       ELSE '(' || to_char(m.max_temp, 'FM990.0') || ')' END, :'off') END, '' ORDER BY place)
               FROM shown s LEFT JOIN temp_max m ON m.during = s.during AND m.device = bar.device LEFT JOIN closed ON true),
              CASE WHEN fan = 'on' THEN :'bold' || 'fan on' || :'off' ELSE '' END)
FROM bar LEFT JOIN fan USING (device) ORDER BY bar.device;

SELECT format(E'\n %s%-8s  %-14s %6s  %-18s %-12s %s%s', :'dim', 'alarm', 'window', 'max', 'command', 'state', 'round trip', :'off');
SELECT line FROM (
    SELECT a.raised_at, a.device, format(' %-8s  %-14s %s%6s%s  %-18s %s%-12s%s %s', a.device,
              to_char(lower(a.during), 'HH24:MI:SS') || '–' || to_char(upper(a.during), ':SS'),
              :'red', to_char(a.max_temp, 'FM990.0'), :'off', c.command || ' ' || c.payload,
              CASE WHEN c.state = 'succeeded' THEN :'green' WHEN c.state IN ('queued', 'sending', 'sent', 'accepted') THEN :'yellow'
                   ELSE :'red' END, c.state, :'off',
              to_char(1000 * extract(epoch FROM c.replied_at - c.sent_at), 'FM999,990') || ' ms') AS line
    FROM alarm a LEFT JOIN hybridiot.command c ON c.id = a.command_id
    ORDER BY a.raised_at DESC, a.device LIMIT :alarms) last
ORDER BY raised_at, device;

SELECT format(E'\n %sdead letters%s', :'dim', :'off');
SELECT format(' %s%-11s%s %s/%s at %s (%s pipelines): %s', :'yellow', reason, :'off', topic, partition, "offset",
              count(DISTINCT pipeline), left(min(message), 25))
FROM hybridiot.dead_letter GROUP BY reason, topic, partition, "offset" ORDER BY min(failed_at) DESC LIMIT 2;

COMMIT;
