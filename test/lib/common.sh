# Sourced by the scripts of test/: where things are, and how to become who is needed.
# shellcheck shell=bash disable=SC2034 # what is set here is used by those who source it
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

# Downloads and what is compiled from them live outside the checkout, where user
# postgres can read them too: its home is not root's.
if [ -z "${HYBRIDIOT_CACHE-}" ]; then
	if [ "$(id -u)" = 0 ]; then
		HYBRIDIOT_CACHE=/var/cache/hybridiot
	else
		HYBRIDIOT_CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/hybridiot
	fi
fi
export HYBRIDIOT_CACHE

kafka_version=${HYBRIDIOT_KAFKA_VERSION:-4.3.1}
# One that librdkafka before 2.6.1 can log in to by SCRAM; HYBRIDIOT_KAFKA_VERSION says which one a script is to run.
kafka_scram_version=3.9.2
artemis_version=2.55.0
pgspot_version=0.9.4
kafka_jars=$HYBRIDIOT_CACHE/kafka-$kafka_version
streams_jars=$HYBRIDIOT_CACHE/kafka-streams-$kafka_version
artemis_jars=$HYBRIDIOT_CACHE/artemis-$artemis_version
# Out of the distribution's package, so that its service is never started.
rabbitmq=$HYBRIDIOT_CACHE/rabbitmq
pgspot=$HYBRIDIOT_CACHE/pgspot-$pgspot_version

# Debian's modules are seen by Debian's own python alone.
python=/usr/bin/python3

die() {
	echo "${0##*/}: $*" >&2
	exit 1
}

as_root() {
	if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# PostgreSQL's programs refuse root. HOME must be one that postgres can read.
as_postgres() {
	if [ "$(id -u)" = 0 ]; then HOME=/var/lib/postgresql runuser -u postgres -- "$@"; else "$@"; fi
}

# copy_tree FROM TO: the sources as they stand, committed or not, without what was built from them.
copy_tree() {
	mkdir -p "$2"
	tar -C "$1" -cf - --exclude=./.git --exclude=./results --exclude=node_modules --exclude=tmp_check \
		--exclude='*.o' --exclude='*.so' --exclude='./hybridiot--*.sql' . | tar -C "$2" -xf -
}

# What npm installs depends on these two files alone.
fleet_modules() {
	echo "$HYBRIDIOT_CACHE/fleet-$(cat "$root"/test/fleet/package*.json | sha256sum | cut -c1-12)"
}

# How pg_regress is run on every version.
regress_options='--temp-instance=tmp_check --temp-config=test/regress.conf --encoding=UTF8 --no-locale'

# count_regress LOG: "PASSED FAILED" of pg_regress's output, which is TAP from PostgreSQL 17 on.
count_regress() {
	awk '/^ok [0-9]/ || /^(test|    ) .* ok +[0-9]+ ms/ { passed++ }
		/^not ok [0-9]/ || /^(test|    ) .* FAILED/ { failed++ }
		END { print passed + 0, failed + 0 }' "$1"
}
