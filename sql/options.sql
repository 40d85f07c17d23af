-- Options of servers, user mappings, streams and columns: known ones only, with sensible values.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS hybridiot;
RESET client_min_messages;

-- servers
CREATE SERVER no_broker FOREIGN DATA WRAPPER hybridiot_kafka;
CREATE SERVER bad FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (bootstrap_servers '');
CREATE SERVER bad FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (bootstrap_servers 'k:9092', security_protocol 'TLS');
CREATE SERVER bad FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (bootstrap_servers 'k:9092', sasl_mechanism 'GSSAPI');
CREATE SERVER bad FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (bootstrap_servers 'k:9092', plugin_library_paths '/tmp/x.so');
CREATE SERVER bad FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (bootstrap_servers 'k:9092', sasl_kerberos_kinit_cmd 'true');
CREATE SERVER bad FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (bootstrap_servers 'k:9092', isolation_level 'read_uncommitted');
CREATE SERVER bad FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (bootstrap_servers 'k:9092', "fetch.min.bytes" '1');
CREATE SERVER bad FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (bootstrap_servers 'k:9092', fetch_min_bytes 'many');
CREATE SERVER bad FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (bootstrap_servers 'SASL_PLAINTEXT://k:9092');
CREATE SERVER bad FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (bootstrap_servers 'k:9092', security_protocol 'SASL_SSL');
CREATE SERVER bad FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (bootstrap_servers 'k:9092', ssl_ca '');
CREATE SERVER plant FOREIGN DATA WRAPPER hybridiot_kafka
  OPTIONS (bootstrap_servers 'k1:9092,k2:9092', security_protocol 'SASL_SSL', sasl_mechanism 'PLAIN', fetch_min_bytes '1');
CREATE SERVER archive FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (transport 'table');
CREATE SERVER bad FOREIGN DATA WRAPPER hybridiot_amqp;
CREATE SERVER bad FOREIGN DATA WRAPPER hybridiot_amqp OPTIONS (host 'h', port '0');
CREATE SERVER bad FOREIGN DATA WRAPPER hybridiot_amqp OPTIONS (host 'h', peer 'queue');
CREATE SERVER bad FOREIGN DATA WRAPPER hybridiot_amqp OPTIONS (host 'h', connect_timeout '1 month');
CREATE SERVER bad FOREIGN DATA WRAPPER hybridiot_amqp OPTIONS (host 'h', connect_timeout '-1 s');
CREATE SERVER bad FOREIGN DATA WRAPPER hybridiot_amqp OPTIONS (host 'h', bootstrap_servers 'k');

-- user mappings
CREATE USER MAPPING FOR CURRENT_USER SERVER plant OPTIONS (user 'pg', secret 'x');
CREATE USER MAPPING FOR CURRENT_USER SERVER plant OPTIONS (user 'pg', password 'x', password_file '/x');
CREATE USER MAPPING FOR CURRENT_USER SERVER plant OPTIONS (user 'pg', password_file 'plant.pw');
CREATE USER MAPPING FOR CURRENT_USER SERVER plant OPTIONS (user 'pg', password_file '/etc/plant.pw');

-- files are for superusers, or inside the secret directory
CREATE ROLE regress_options;
GRANT USAGE ON FOREIGN SERVER plant TO regress_options;
SET ROLE regress_options;
CREATE USER MAPPING FOR CURRENT_USER SERVER plant OPTIONS (user 'pg', password_file '/etc/plant.pw');
RESET ROLE;
SET hybridiot.secret_directory = '/var/secrets';
SET ROLE regress_options;
CREATE USER MAPPING FOR CURRENT_USER SERVER plant OPTIONS (user 'pg', password_file '/var/secrets/../plant.pw');
CREATE USER MAPPING FOR CURRENT_USER SERVER plant OPTIONS (user 'pg', password_file '/var/secretsx/plant.pw');
CREATE USER MAPPING FOR CURRENT_USER SERVER plant OPTIONS (user 'pg', password_file '.');
CREATE USER MAPPING FOR CURRENT_USER SERVER plant OPTIONS (user 'pg', password_file 'plant.pw');
SET hybridiot.secret_directory = '/';
RESET ROLE;
SET hybridiot.secret_directory = 'secrets';
RESET hybridiot.secret_directory;

-- what the server asks for, the role must have
CREATE FOREIGN TABLE locked (a text) SERVER plant OPTIONS (topic 't');
DROP USER MAPPING FOR CURRENT_USER SERVER plant;
SELECT hybridiot.create_pipeline('locked', 'SELECT a FROM locked');
DROP FOREIGN TABLE locked;

-- networks
SET hybridiot.broker_networks = '10.0.0.0/8, fd00::/8';
SHOW hybridiot.broker_networks;
SET hybridiot.broker_networks = '10.1.2.3/8';
SET hybridiot.broker_networks = 'everywhere';
SET ROLE regress_options;
SET hybridiot.broker_networks = '';
RESET ROLE;
RESET hybridiot.broker_networks;

-- streams and columns
CREATE FOREIGN TABLE bad (a text) SERVER plant;
CREATE FOREIGN TABLE bad (a text) SERVER plant OPTIONS (topic 't', formt 'json');
CREATE FOREIGN TABLE bad (a text) SERVER plant OPTIONS (topic 't', format 'avro');
CREATE FOREIGN TABLE bad (a text) SERVER plant OPTIONS (topic 't', max_future 'soon');
CREATE FOREIGN TABLE bad (a text OPTIONS (path '.x')) SERVER plant OPTIONS (topic 't');
CREATE FOREIGN TABLE bad (a text OPTIONS (path 'x..y')) SERVER plant OPTIONS (topic 't');
CREATE FOREIGN TABLE bad (a text OPTIONS (metadata 'ofset')) SERVER plant OPTIONS (topic 't');
CREATE FOREIGN TABLE bad (a text OPTIONS (metadata 'header:')) SERVER plant OPTIONS (topic 't');
CREATE FOREIGN TABLE bad (a text OPTIONS (metadata 'key', path 'x')) SERVER plant OPTIONS (topic 't');
CREATE FOREIGN TABLE bad (a text OPTIONS (column_name 'x')) SERVER plant OPTIONS (topic 't');
CREATE FOREIGN DATA WRAPPER bad_wrapper HANDLER hybridiot.kafka_handler VALIDATOR hybridiot.kafka_validator OPTIONS (x '1');

-- what only shows when the stream is read
CREATE TABLE archived (partition int, "offset" bigint, "timestamp" timestamptz, key bytea, value bytea, headers jsonb);
CREATE FOREIGN TABLE no_source (a text) SERVER archive OPTIONS (topic 't');
SELECT * FROM no_source;
CREATE FOREIGN TABLE bad_source (a text) SERVER archive OPTIONS (topic 't', source 'nowhere');
SELECT * FROM bad_source;
CREATE FOREIGN TABLE bad_time (a text) SERVER archive OPTIONS (topic 't', source 'archived', event_time 'ts');
SELECT * FROM bad_time;
CREATE FOREIGN TABLE bad_time_type (ts text) SERVER archive OPTIONS (topic 't', source 'archived', event_time 'ts');
SELECT * FROM bad_time_type;
CREATE FOREIGN TABLE bad_metadata (o int OPTIONS (metadata 'offset')) SERVER archive OPTIONS (topic 't', source 'archived');
SELECT * FROM bad_metadata;

-- an AMQP stream can be declared, and not read yet
CREATE SERVER gateway FOREIGN DATA WRAPPER hybridiot_amqp OPTIONS (host '127.0.0.1', port '1');
CREATE FOREIGN TABLE amqp_stream (a text, id text OPTIONS (metadata 'message_id')) SERVER gateway OPTIONS (address 'telemetry', credit '100');
SELECT * FROM amqp_stream;
INSERT INTO amqp_stream VALUES ('x');

DROP SERVER plant CASCADE;
DROP SERVER archive CASCADE;
DROP SERVER gateway CASCADE;
DROP TABLE archived;
DROP ROLE regress_options;
