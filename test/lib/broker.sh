# Sourced by test/broker/*: a broker is one process that lives in one directory.
#
#	DIR/pid			who it is; a number that belongs to somebody else by now is left alone
#	DIR/env			what a test must know, as NAME=VALUE lines
#	DIR/port, ...	the same numbers for scripts; kept, so that a broker restarts on its ports
#	DIR/log			what it printed, all starts one after the other
#	DIR/password	of the only user
#	DIR/tls			a CA of its own (ca.pem), the broker's certificate (server.pem, server.p12), and for what must not
#					work one that has expired and one of another host (expired.pem, elsewhere.pem); a client's certificate
#					and key, whose password is in client.pw (client.pem, client.key)
# shellcheck shell=bash disable=SC2034 # what is set here is used by those who source it

# shellcheck source=test/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

broker_user=hybridiot
java_log=(-Dorg.slf4j.simpleLogger.showDateTime=true "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd HH:mm:ss.SSS")

# usage: what is said at the head of the calling script.
usage() {
	sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0" >&2
	exit 2
}

# Its command line names its directory.
alive() {
	[ -f "$dir/pid" ] && grep -qzF -- "$dir/" "/proc/$(cat "$dir/pid")/cmdline" 2>/dev/null
}

# free_ports N: below the range from which the kernel takes ports for outgoing connections, so
# that none is taken while the broker is down.
free_ports() {
	"$python" - "$1" <<-'EOF'
		import random, socket, sys
		taken = []
		while len(taken) < int(sys.argv[1]):
		    s = socket.socket()
		    try:
		        s.bind(("127.0.0.1", random.randrange(20000, 30000)))
		    except OSError:
		        continue
		    taken.append(s)
		print(*(s.getsockname()[1] for s in taken), sep="\n")
	EOF
}

# certify NAME SUBJECT DAYS EXTENSION: NAME.crt by our CA, for a new NAME.key.
certify() {
	local tls=$dir/tls
	openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "$2" -keyout "$tls/$1.key" -out "$tls/$1.csr"
	openssl x509 -req -in "$tls/$1.csr" -CA "$tls/ca.pem" -CAkey "$tls/ca.key" -CAcreateserial -days "$3" \
		-extfile <(echo "$4") -out "$tls/$1.crt"
	cat "$tls/$1.key" "$tls/$1.crt" "$tls/ca.pem" >"$tls/$1.pem"
}

# make_secrets: the user's password and the certificates.
make_secrets() {
	local tls=$dir/tls names=subjectAltName=DNS:localhost,DNS:127.0.0.1,IP:127.0.0.1
	(
		umask 077
		echo "${HYBRIDIOT_BROKER_PASSWORD:-hybridiot}" >"$dir/password"
	)
	mkdir "$tls"
	openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj '/CN=hybridiot test CA' \
		-keyout "$tls/ca.key" -out "$tls/ca.pem"
	# An address is looked for among the DNS names too by older clients.
	certify server /CN=localhost 30 "$names"
	openssl pkcs12 -export -in "$tls/server.crt" -inkey "$tls/server.key" -certfile "$tls/ca.pem" \
		-passout pass:changeit -out "$tls/server.p12"
	# It was never valid: older openssl cannot write dates of the past.
	certify expired /CN=localhost -1 "$names"
	certify elsewhere /CN=elsewhere.invalid 30 subjectAltName=DNS:elsewhere.invalid
	certify client "/CN=$broker_user" 30 extendedKeyUsage=clientAuth
	(
		umask 077
		openssl rand -hex 16 >"$tls/client.pw"
	)
	openssl pkcs8 -topk8 -in "$tls/client.key" -passout "file:$tls/client.pw" -out "$tls/client.enc"
	mv "$tls/client.enc" "$tls/client.key"
	cat "$tls/client.crt" "$tls/ca.pem" >"$tls/client.pem"
}

# prepare: what a new directory needs before the first start. The caller's configure() writes the rest.
prepare() {
	mkdir -p "$dir"
	if ! (make_secrets && configure) >"$dir/log" 2>&1; then
		cat "$dir/log" >&2
		die "no configuration in $dir"
	fi
	touch "$dir/prepared"
}

# launch READY COMMAND...: in the background, and waits until READY, a function, succeeds.
launch() {
	local ready=$1 pid
	shift
	setsid "$@" >>"$dir/log" 2>&1 </dev/null &
	pid=$!
	echo "$pid" >"$dir/pid"
	for _ in $(seq 600); do
		if "$ready" >/dev/null 2>&1; then return 0; fi
		kill -0 "$pid" 2>/dev/null || break
		sleep 0.1
	done
	tail -n 30 "$dir/log" >&2
	halt KILL
	die "did not start in $dir"
}

# halt SIGNAL: idempotent; whoever does not go within 20 seconds is killed.
halt() {
	local pid
	if alive; then
		pid=$(cat "$dir/pid")
		kill -"$1" "$pid" 2>/dev/null || true
		for _ in $(seq 200); do
			alive || break
			sleep 0.1
		done
		if alive; then kill -KILL "$pid"; fi
		while alive; do sleep 0.1; done
	fi
	rm -f "$dir/pid"
}

# main COMMAND DIR: the caller has defined configure() and run().
main() {
	[ $# = 2 ] || usage
	mkdir -p "$(dirname "$2")"
	dir=$(cd "$(dirname "$2")" && pwd)/$(basename "$2")
	case $1 in
		start)
			[ -f "$dir/prepared" ] || prepare
			if ! alive; then run; fi
			cat "$dir/env"
			;;
		stop) halt TERM ;;
		kill9) halt KILL ;;
		*) usage ;;
	esac
}
