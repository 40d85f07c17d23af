-- Windows as ordinary functions.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS hybridiot;
RESET client_min_messages;
SET timezone = 'UTC';
SET datestyle = 'ISO';
SET intervalstyle = 'postgres';

-- tumble: aligned to the epoch, end excluded, floor division also before it
SELECT ts, hybridiot.tumble(ts, '10 s')
FROM (VALUES (timestamptz '2024-01-01 00:00:00'), ('2024-01-01 00:00:09.999999'), ('2024-01-01 00:00:10'),
	('1970-01-01 00:00:00'), ('1969-12-31 23:59:59.999999'), ('1969-12-31 23:59:50'), ('1900-02-03 04:05:06.7')) AS v (ts);
SELECT hybridiot.tumble('2024-01-01 00:00:00', '7 s'), hybridiot.tumble('2024-01-01 00:00:00', '7 s', '2024-01-01');
SELECT hybridiot.tumble('2024-01-03 12:00:00', size => '1 day'), hybridiot.tumble('2024-01-03 12:00:00', '1 week');
SELECT hybridiot.tumble('2024-03-31 12:00:00 Europe/Berlin', '1 day') AS "days are 24 hours UTC";
SELECT hybridiot.tumble(NULL, '1 s') IS NULL AS "null of null";
-- weeks begin where one says
SELECT hybridiot.tumble('2024-01-03 12:00:00', '7 days', origin => '2024-01-01');

-- hop: every window that holds the time
SELECT hybridiot.hop('2024-01-01 00:00:25', '30 s', '10 s');
SELECT hybridiot.hop('2024-01-01 00:00:30', '30 s', '10 s');
SELECT hybridiot.hop('1969-12-31 23:59:59', '10 s', '4 s');
SELECT w, count(*) FROM generate_series(timestamptz '2024-01-01', '2024-01-01 00:00:09', '1 s') AS ts,
	hybridiot.hop(ts, '5 s', '5 s') AS w GROUP BY w ORDER BY w;
SELECT count(*) FROM hybridiot.hop(NULL, '5 s', '5 s');

-- what is no window
SELECT hybridiot.tumble('2024-01-01', '1 month');
SELECT hybridiot.tumble('2024-01-01', '1 year 2 s');
SELECT hybridiot.tumble('2024-01-01', '0');
SELECT hybridiot.tumble('2024-01-01', '-5 s');
SELECT hybridiot.tumble('infinity', '5 s');
SELECT hybridiot.tumble('2024-01-01', '5 s', '-infinity');
SELECT hybridiot.tumble('4714-11-24 00:00:01 BC', '1 day', '2000-01-01 12:00');
SELECT hybridiot.tumble('294276-12-31 23:59:59', '100 days');
SELECT hybridiot.hop('2024-01-01', '5 s', '10 s');
SELECT hybridiot.hop('2024-01-01', '5 s', '0');
SELECT hybridiot.slide('2024-01-01', '5 s');
SELECT hybridiot.session('2024-01-01', '5 s');
SELECT * FROM hybridiot.finished_groups() AS f (w tstzrange);
