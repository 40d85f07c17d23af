# Sourced after common.sh: a server with the functions of decode_check.c, below $work, out of a built tree.
# shellcheck shell=bash disable=SC2154 # work and root are theirs who source it

include="-I$root/src -I$("${PG_CONFIG:-pg_config}" --includedir-server) -D_GNU_SOURCE"

sql() { psql -X -q -A -t -v ON_ERROR_STOP=1 -h "$work" -d postgres "$@"; }

start_server() {
	local bin
	bin=$("$PG_CONFIG" --bindir)
	# shellcheck disable=SC2086 # several arguments
	gcc -O2 -fPIC -shared -Wall -Wl,-Bsymbolic $include -o "$work/decode_check.so" "$root/test/fuzz/decode_check.c" "$root"/src/*/*.o \
		-lrdkafka -lqpid-proton
	"$bin/initdb" -D "$work/data" -A trust --encoding=UTF8 --no-locale --no-sync
	"$bin/pg_ctl" -D "$work/data" -o "-k $work -c listen_addresses=" -l "$work/log" -w start
	sql -v lib="$work/decode_check.so" <<-'END'
		CREATE FUNCTION json_agrees(seeds bytea[], inputs bigint, random bigint) RETURNS text LANGUAGE c AS :'lib', 'json_agrees';
		CREATE FUNCTION csv_agrees(rel regclass, seeds bytea[], inputs bigint, random bigint) RETURNS text LANGUAGE c AS :'lib', 'csv_agrees';
		CREATE FUNCTION decode_time(rel regclass, format text, payload bytea, times int) RETURNS float8 LANGUAGE c AS :'lib', 'decode_time';
		CREATE FUNCTION seeds(dir text) RETURNS bytea[] LANGUAGE sql AS
			$$ SELECT array_agg(pg_read_binary_file(dir || '/' || f) ORDER BY f) FROM pg_ls_dir(dir) f $$;
		CREATE TABLE copied (a text);
	END
}

end_server() {
	[ ! -f "$work/data/postmaster.pid" ] || "$("$PG_CONFIG" --bindir)/pg_ctl" -D "$work/data" -m immediate stop >/dev/null || true
	rm -rf "$work"
}
