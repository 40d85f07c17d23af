-- What came out, as text.  The last line, for demo/run, is "t" when everything
-- that has to hold does.
\set QUIET on
\pset format unaligned
\pset tuples_only on
BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;

-- Each press counts its readings, so the rows themselves say what is missing.
SELECT sum(stored) AS stored, sum(counted) AS counted, sum(counted - different) AS lost, sum(stored - different) AS doubled
FROM (SELECT count(*) AS stored, count(DISTINCT n) AS different, max(n) AS counted FROM reading GROUP BY device) d \gset

-- The oracle is SQL itself: the same GROUP BY over the stored readings, without
-- those the pipeline set aside as late.
WITH plain AS (
    SELECT hybridiot.tumble(ts, '5 s') AS during, device, max(temp) AS max_temp, count(*) AS readings
    FROM reading r
    WHERE NOT EXISTS (SELECT FROM hybridiot.dead_letter l
                      WHERE l.pipeline = 'temp_max' AND l.reason = 'late' AND l.partition = r.part AND l."offset" = r.pos)
    GROUP BY 1, 2
), difference AS (
    (TABLE plain EXCEPT SELECT during, device, max_temp, readings FROM temp_max)
    UNION ALL
    (SELECT during, device, max_temp, readings FROM temp_max EXCEPT TABLE plain)
)
SELECT (SELECT count(*) FROM temp_max) AS windows, (SELECT count(*) FROM difference) AS different \gset

SELECT count(*) AS alarms, count(c.id) AS commands, count(*) FILTER (WHERE c.state = 'succeeded') AS succeeded,
       count(DISTINCT a.device) AS hot
FROM alarm a LEFT JOIN hybridiot.command c ON c.id = a.command_id \gset

SELECT format(E'\n readings      %s stored of %s that the presses counted: %s lost, %s doubled',
              to_char(:stored, 'FM999,999,999'), to_char(:counted, 'FM999,999,999'), :lost, :doubled);
SELECT format(' windows       %s of 5 s and one press; %s differ from plain SQL over the stored readings', :windows, :different);
SELECT format(' alarms        %s, each with its command in the same transaction: %s', :alarms,
              (SELECT string_agg(format('%s %s', n, state), ', ' ORDER BY n DESC)
               FROM (SELECT state, count(*) AS n FROM hybridiot.command GROUP BY state) s));
SELECT format(' round trips   median %s ms, longest %s ms, from sending the command to its answer',
              to_char(percentile_cont(0.5) WITHIN GROUP (ORDER BY ms), 'FM999,990'), to_char(max(ms), 'FM999,990'))
FROM (SELECT 1000 * extract(epoch FROM replied_at - sent_at) AS ms FROM hybridiot.command WHERE state = 'succeeded') c;
SELECT format(' %-13s %s °C at its hottest, %s °C at the end, %s s after its fan went on', device, to_char(hottest, 'FM990.0'),
              to_char(last, 'FM990.0'), round(extract(epoch FROM ended - fan_on)))
FROM (SELECT device, max(temp) AS hottest, (array_agg(temp ORDER BY ts DESC))[1] AS last, max(ts) AS ended
      FROM reading GROUP BY device) r
JOIN (SELECT device, min(replied_at) AS fan_on FROM hybridiot.command WHERE state = 'succeeded' GROUP BY device) f USING (device)
ORDER BY device;
SELECT format(' dead letters  %s', coalesce(string_agg(format('%s %s', n, reason), ', '), 'none'))
FROM (SELECT reason, count(DISTINCT (topic, partition, "offset")) AS n FROM hybridiot.dead_letter GROUP BY reason) d;

SELECT :lost = 0 AND :doubled = 0 AND :different = 0 AND :windows > 0 AND :hot > 0 AND :succeeded = :alarms
   AND (SELECT count(*) = 1 FROM (SELECT DISTINCT topic, partition, "offset" FROM hybridiot.dead_letter WHERE reason = 'undecodable') u);

COMMIT;
