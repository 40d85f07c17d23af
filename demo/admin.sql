-- What the administrator does once: a role, a database, the extension, and the
-- right to use its two wrappers.  Everything else is in demo.sql, typed by that
-- role, which is no superuser.
\set ON_ERROR_STOP on
\getenv password HYBRIDIOT_BROKER_PASSWORD

CREATE ROLE engineer LOGIN PASSWORD :'password';
CREATE DATABASE plant OWNER engineer;
\connect plant
CREATE EXTENSION hybridiot;
GRANT USAGE ON FOREIGN DATA WRAPPER hybridiot_kafka, hybridiot_amqp TO engineer;
