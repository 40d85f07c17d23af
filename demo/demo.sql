-- The whole application: two servers, one stream, three tables, three pipelines.
-- Typed by the role "engineer", which is no superuser.  Where the brokers are comes
-- from demo/run.
\set ON_ERROR_STOP on
\getenv password HYBRIDIOT_BROKER_PASSWORD

-- Where the readings come from: a Kafka topic is a foreign table.

CREATE SERVER plant FOREIGN DATA WRAPPER hybridiot_kafka
  OPTIONS (bootstrap_servers :'kafka');
CREATE USER MAPPING FOR CURRENT_USER SERVER plant;

CREATE FOREIGN TABLE telemetry (
    device  text,
    ts      timestamptz,
    n       bigint,                                       -- the device counts its readings
    temp    float8 OPTIONS (path 'sensor.temp'),
    site    text   OPTIONS (metadata 'header:site'),
    part    int    OPTIONS (metadata 'partition'),
    pos     bigint OPTIONS (metadata 'offset')
) SERVER plant OPTIONS (topic 'iot-temperature', format 'json', event_time 'ts');

-- Where commands go: each device reads its own queue on the AMQP broker.

CREATE SERVER actuators FOREIGN DATA WRAPPER hybridiot_amqp
  OPTIONS (host '127.0.0.1', port :'amqp_port', peer 'broker');
CREATE USER MAPPING FOR CURRENT_USER SERVER actuators OPTIONS (user 'hybridiot', password :'password');
ALTER DATABASE plant SET hybridiot.command_server = 'actuators';

-- Every reading, as it is.

CREATE TABLE reading (
    device text NOT NULL, ts timestamptz NOT NULL, n bigint NOT NULL, temp float8 NOT NULL, site text, part int, pos bigint,
    PRIMARY KEY (part, pos)
);
SELECT hybridiot.create_pipeline('readings', $$
  INSERT INTO reading (device, ts, n, temp, site, part, pos)
  SELECT device, ts, n, temp, site, part, pos FROM telemetry $$);

-- The maximum per device and 5 seconds, visible while the window is open.

CREATE TABLE temp_max (
    during tstzrange NOT NULL, device text NOT NULL, max_temp float8 NOT NULL, readings bigint NOT NULL,
    PRIMARY KEY (during, device)
);
SELECT hybridiot.create_pipeline('temp_max', $$
  INSERT INTO temp_max (during, device, max_temp, readings)
  SELECT hybridiot.tumble(ts, '5 s'), device, max(temp), count(*)
  FROM telemetry GROUP BY 1, 2
  ON CONFLICT (during, device) DO UPDATE SET max_temp = excluded.max_temp, readings = excluded.readings $$,
  emit => 'changes', lateness => '1 s', idle_timeout => '5 s');

-- React: when a window is final and was too hot, an alarm and a command to that
-- device's fan, in one transaction.

CREATE TABLE alarm (
    during tstzrange NOT NULL, device text NOT NULL, max_temp float8 NOT NULL, command_id uuid NOT NULL,
    raised_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (during, device)
);
SELECT hybridiot.create_pipeline('too_hot', $$
  INSERT INTO alarm (during, device, max_temp, command_id)
  SELECT hybridiot.tumble(ts, '5 s'), device, max(temp), hybridiot.send_command(device, 'fan', '{"on": true}', ttl => '10 s')
  FROM telemetry GROUP BY 1, 2 HAVING max(temp) > 80 $$, lateness => '1 s', idle_timeout => '5 s');
