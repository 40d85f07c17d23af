#!/bin/bash
# Installs what is missing, and nothing that is there; a later run takes no time:
#
#   test/lib/install.sh demo|test|versions ...
#
# demo: what building, the brokers and the demo need. test: that and what the tests
# need. versions: what test/versions needs. Packages come by apt, with sudo unless root;
# the brokers' jars, the fleet's modules and pgspot by Maven, npm and pip, into $HYBRIDIOT_CACHE.
set -euo pipefail
# shellcheck source=test/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

packages=()

# need COMMAND PACKAGE: a command may have come from elsewhere than the package.
need() { command -v "$1" >/dev/null || packages+=("$2"); }

# need_package PACKAGE...
need_package() {
	local package
	for package; do
		[ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || packages+=("$package")
	done
}

# The major version of PG_CONFIG, or else the one that the distribution has.
postgresql_major() {
	local config=${PG_CONFIG:-pg_config} major=
	if command -v "$config" >/dev/null; then
		major=$("$config" --version | sed 's/[^0-9]*\([0-9]*\).*/\1/')
	elif command -v apt-cache >/dev/null; then
		major=$(apt-cache depends postgresql 2>/dev/null | sed -n 's/.*Depends: postgresql-\([0-9]*\)$/\1/p')
	fi
	echo "${major:-15}"
}

needed_by() {
	local major erlang
	case $1 in
		demo)
			major=$(postgresql_major)
			need gcc gcc
			need make make
			need_package "postgresql-$major" "postgresql-server-dev-$major" librdkafka-dev libqpid-proton11-dev \
				kcat python3-qpid-proton python3-confluent-kafka
			need java default-jre-headless
			need javac default-jdk-headless
			need openssl openssl
			if [ ! -d "$kafka_jars" ] || [ ! -d "$artemis_jars" ]; then need mvn maven; fi
			;;
		test)
			needed_by demo
			need_package libipc-run-perl python3-psycopg2 "postgresql-$(postgresql_major)-hll" "postgresql-$(postgresql_major)-tdigest"
			need node nodejs
			need shellcheck shellcheck
			if [ ! -x "$pgspot/bin/pgspot" ]; then need_package python3-venv; fi
			need clang clang
			if ! compgen -G "$(clang -print-resource-dir 2>/dev/null)/lib/linux/libclang_rt.fuzzer-*" >/dev/null; then
				need_package libclang-rt-dev
			fi
			mapfile -t erlang < <(rabbitmq_needs)
			need_package "${erlang[@]}"
			if [ ! -d "$(fleet_modules)" ]; then need npm npm; fi
			if [ ! -d "$HYBRIDIOT_CACHE/kafka-$kafka_scram_version" ] || [ ! -d "$streams_jars" ]; then need mvn maven; fi
			;;
		versions)
			need debootstrap debootstrap
			need unshare util-linux
			;;
		*) die "what is $1?" ;;
	esac
}

# jars DIR GROUP:ARTIFACT:VERSION...: with all that they depend on, by Maven.
jars() {
	local dir=$1 coordinate group artifact version
	shift
	[ ! -d "$dir" ] || return 0
	{
		echo '<project><modelVersion>4.0.0</modelVersion><groupId>hybridiot</groupId><artifactId>brokers</artifactId>'
		echo '<version>1</version><packaging>pom</packaging><dependencies>'
		for coordinate; do
			IFS=: read -r group artifact version <<<"$coordinate"
			echo "<dependency><groupId>$group</groupId><artifactId>$artifact</artifactId><version>$version</version></dependency>"
		done
		echo '</dependencies></project>'
	} >"$work/pom.xml"
	mvn -B -q -f "$work/pom.xml" -DoutputDirectory="$work/lib" \
		org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies >"$work/mvn.log" 2>&1 || {
		cat "$work/mvn.log" >&2
		die "no ${dir##*/}"
	}
	mv "$work/lib" "$dir"
}

# The broker's program, compiled again when it changed.
compile_artemis() {
	local dir=$artemis_jars/classes source=$root/test/broker/Artemis.java
	if ! cmp -s "$source" "$dir/Artemis.java"; then
		rm -rf "$dir"
		mkdir "$dir"
		javac -d "$dir" -cp "$artemis_jars/*" "$source"
		cp "$source" "$dir/"
	fi
}

# What RabbitMQ's package needs of Erlang.
rabbitmq_needs() {
	apt-cache depends rabbitmq-server 2>/dev/null | grep -oE 'erlang-[a-z-]+' | grep -v hipe | sort -u
}

# The package is only unpacked: installed, it would start a broker for all the world to see.
install_rabbitmq() {
	[ ! -d "$rabbitmq" ] || return 0
	mkdir "$work/rabbitmq"
	(cd "$work/rabbitmq" && apt-get download -qq rabbitmq-server && dpkg -x ./rabbitmq-server_*.deb .)
	mv "$work/rabbitmq/usr/lib/rabbitmq" "$rabbitmq"
}

install_fleet() {
	local dir
	dir=$(fleet_modules)
	[ ! -d "$dir" ] || return 0
	mkdir "$work/fleet"
	cp "$root"/test/fleet/package*.json "$work/fleet/"
	npm ci --loglevel=error --no-progress --no-fund --no-audit --prefix "$work/fleet" >/dev/null
	mv "$work/fleet" "$dir"
}

# A virtual environment knows its own path, so it is made in place; what broke off is not there.
install_pgspot() {
	[ ! -x "$pgspot/bin/pgspot" ] || return 0
	rm -rf "$pgspot"
	if ! { "$python" -m venv "$pgspot" && "$pgspot/bin/pip" install -q --disable-pip-version-check "pgspot==$pgspot_version"; } >"$work/pgspot.log" 2>&1; then
		cat "$work/pgspot.log" >&2
		rm -rf "$pgspot"
		die 'no pgspot'
	fi
}

for what; do needed_by "$what"; done
if [ ${#packages[@]} -gt 0 ]; then
	echo "installing ${packages[*]}"
	as_root apt-get update -qq
	as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}"
fi

umask 022
mkdir -p "$HYBRIDIOT_CACHE"
# One at a time; what is not complete is not there.
exec 9>"$HYBRIDIOT_CACHE/.lock"
flock 9
work=$(mktemp -d "$HYBRIDIOT_CACHE/.new.XXXXXX")
trap 'rm -rf "$work"' EXIT
for what; do
	case $what in
		demo | test)
			jars "$kafka_jars" "org.apache.kafka:kafka_2.13:$kafka_version" org.slf4j:slf4j-simple:1.7.36
			jars "$artemis_jars" "org.apache.artemis:artemis-server:$artemis_version" \
				"org.apache.artemis:artemis-amqp-protocol:$artemis_version" org.slf4j:slf4j-simple:2.0.17
			compile_artemis
			;;&
		test)
			jars "$HYBRIDIOT_CACHE/kafka-$kafka_scram_version" "org.apache.kafka:kafka_2.13:$kafka_scram_version" \
				org.slf4j:slf4j-simple:1.7.36
			jars "$streams_jars" "org.apache.kafka:kafka-streams-test-utils:$kafka_version" org.slf4j:slf4j-simple:1.7.36
			install_fleet
			install_rabbitmq
			install_pgspot
			;;
	esac
done
