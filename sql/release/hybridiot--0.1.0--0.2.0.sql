/* hybridiot: from 0.1.0 to 0.2.0. What it makes is what the install script makes, which test/t/upgrade.pl checks. */

-- complain if the script is sourced in psql rather than via ALTER EXTENSION
\echo Use "ALTER EXTENSION hybridiot UPDATE TO '0.2.0'" to load this file. \quit
