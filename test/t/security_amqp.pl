# TLS and SASL of AMQP servers: what gets in, what must not, and that each refusal says which it was.
use strict;
use warnings;
use Hybridiot::Peer;
use Hybridiot::Test;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('security_amqp', conf => "hybridiot.command_server = 'plain_tls'");
my $base = $node->data_dir;

# ---------------------------------------------------------------- certificates

# What the brokers of the other tests have, too; and one that is not valid yet, one that signed itself, a foreign authority.
my $dir = PostgreSQL::Test::Utils::tempdir('security_amqp');
my $tls = "$dir/tls";
system('bash', '-euc', <<~'END', '-', "$ENV{HYBRIDIOT_TREE}/test/lib/broker.sh", $dir) == 0 or die 'no certificates';
	exec >"$2/log" 2>&1
	. "$1"
	dir=$2 tls=$2/tls
	make_secrets
	openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN=foreign -keyout "$tls/foreign.key" -out "$tls/foreign.pem"
	openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN=localhost -addext subjectAltName=DNS:127.0.0.1 \
		-keyout "$tls/itself.key" -out "$tls/itself.crt"
	openssl x509 -req -in "$tls/client.csr" -CA "$tls/foreign.pem" -CAkey "$tls/foreign.key" -CAcreateserial -days 30 -out "$tls/stranger.crt"
	cp "$tls/server.key" "$tls/future.key"
	printf '[ca]\ndefault_ca=d\n[d]\ndatabase=%s/index\nnew_certs_dir=%s\nserial=%s/serial\ndefault_md=sha256\npolicy=p\nx509_extensions=e\n[p]\ncommonName=supplied\n[e]\nsubjectAltName=DNS:127.0.0.1\n' \
		"$tls" "$tls" "$tls" >"$tls/ca.conf"
	: >"$tls/index"
	echo 77 >"$tls/serial"
	openssl ca -batch -notext -config "$tls/ca.conf" -cert "$tls/ca.pem" -keyfile "$tls/ca.key" -startdate 20490101000000Z -enddate 20491231000000Z \
		-in "$tls/server.csr" -out "$tls/future.crt"
	openssl pkcs8 -in "$tls/client.key" -passin "file:$tls/client.pw" -out "$tls/open.key"
	END
chomp(my $key_password = slurp_file("$tls/client.pw"));
my %canary = map { $_ => "canary-of-$_-51f3" } qw(right wrong);
secret($key_password, values %canary);
write_secret($node, "$_.pw", $canary{$_}) for keys %canary;

# ---------------------------------------------------------------- peers

sub certificate { return ('--tls-cert', "$tls/$_[0].crt", '--tls-key', "$tls/$_[0].key") }
my @login = ('--user', 'device-master', '--password', $canary{right});
my %fleet = (
	plain => [ @login, '--no-anonymous' ],
	anonymous => [],
	tls => [ certificate('server'), @login, '--no-anonymous' ],
	mutual => [ certificate('server'), '--tls-client-ca', "$tls/ca.pem", '--no-anonymous' ],
	(map { $_ => [ certificate($_), @login ] } qw(expired elsewhere future itself)));
$fleet{$_} = start_fleet('router', '--any-device', @{ $fleet{$_} }) for keys %fleet;
my $scram = Hybridiot::Peer->start;
$scram->set(mechanisms => [ 'SCRAM-SHA-256', 'GSSAPI' ]);
my $silent = Hybridiot::Peer->start;
$silent->set(silent => 'start');
my %port = ((map { $_ => $fleet{$_}->port } keys %fleet), scram => $scram->port, silent => $silent->port);

# ---------------------------------------------------------------- the matrix

my $ca = "tls 'require', ssl_ca '$tls/ca.pem'";
my $right = "user 'device-master', password_file '$base/right.pw'";
my $wrong = "user 'device-master', password_file '$base/wrong.pw'";
my $key = "ssl_certificate '$tls/client.pem', ssl_key '$tls/client.key'";
my $open_key = "ssl_certificate '$tls/client.pem', ssl_key '$tls/open.key'";
my $soon = "connect_timeout '1 s'";

# Name, peer, options of the server, of the mapping. '127.1' is loopback, and does not look so.
my @good = (
	[ 'plain_tls', 'tls', $ca, $right ],
	[ 'plain_clear', 'plain', '', $right ],
	[ 'plain_said', 'plain', "host '127.1', tls 'disable', sasl_mechanism 'PLAIN'", $right ],
	[ 'anonymous_clear', 'anonymous', '', '' ],
	[ 'anonymous_said', 'anonymous', "host '127.1', tls 'disable', sasl_mechanism 'ANONYMOUS'", $right ],
	[ 'external', 'mutual', $ca, $open_key ],
	[ 'external_encrypted', 'mutual', $ca, "$key, ssl_key_password_file '$tls/client.pw'" ],
	[ 'external_said', 'mutual', "$ca, sasl_mechanism 'EXTERNAL'", "$open_key, $right" ],
);
my $user_refused = 'the peer refused user and password \(';
my @bad = (
	[ 'wrong_password', 'tls', $ca, $wrong, $user_refused ],
	[ 'wrong_password_clear', 'plain', '', "user 'device-master', password '$canary{wrong}'", $user_refused ],
	[ 'unknown_user', 'tls', $ca, "user 'nobody', password_file '$base/right.pw'", $user_refused ],
	[ 'elsewhere', 'elsewhere', $ca, $right, 'the certificate of "127.0.0.1" is for another host' ],
	[ 'other_name', 'tls', "$ca, host '127.1'", $right, 'the certificate of "127.1" is for another host' ],
	[ 'wrong_authority', 'tls', "tls 'require', ssl_ca '$tls/foreign.pem'", $right, 'the certificate of "127.0.0.1" is not of an authority in ssl_ca' ],
	[ 'no_authority', 'tls', "tls 'require'", $right, 'the certificate of "127.0.0.1" is not of an authority in ssl_ca' ],
	[ 'itself', 'itself', $ca, $right, 'the certificate of "127.0.0.1" signed itself, and is not in ssl_ca' ],
	[ 'expired', 'expired', $ca, $right, 'the certificate of "127.0.0.1" has expired' ],
	[ 'future', 'future', $ca, $right, 'the certificate of "127.0.0.1" is not valid yet' ],
	[ 'no_certificate', 'mutual', $ca, $right, "the peer asks for a client''s certificate: see ssl_certificate" ],
	[ 'strange_certificate', 'mutual', $ca, "ssl_certificate '$tls/stranger.crt', ssl_key '$tls/open.key'", "the peer hung up, as if it did not trust the client''s certificate" ],
	[ 'wrong_key_password', 'mutual', $ca, "$key, ssl_key_password_file '$base/wrong.pw'", 'could not use the files of options "ssl_certificate", "ssl_key" and "ssl_key_password_file"' ],
	[ 'wrong_key', 'mutual', $ca, "ssl_certificate '$tls/client.pem', ssl_key '$tls/foreign.key'", 'could not use the files' ],
	[ 'tls_to_clear', 'plain', "$ca, $soon", $right, "the peer does not answer in TLS on port $port{plain}: see options port and tls" ],
	[ 'tls_to_clear_broken', 'scram', "$ca, $soon", $right, "the peer does not answer in TLS on port $port{scram}: see options port and tls" ],
	[ 'clear_to_tls', 'tls', $soon, $right, "the peer does not answer in AMQP without TLS on port $port{tls}: see options port and tls" ],
	[ 'tls_to_silence', 'silent', "$ca, $soon", $right, "the peer does not answer in TLS on port $port{silent}: see options port and tls .the connection could not be established in time" ],
	[ 'clear_to_silence', 'silent', $soon, $right, "the peer does not answer in AMQP without TLS on port $port{silent}: see options port and tls .the connection could not be established in time" ],
	[ 'no_user', 'plain', '', '', 'the peer does not offer SASL mechanism ANONYMOUS: see option sasl_mechanism, and the user mapping' ],
	[ 'no_external', 'tls', $ca, $open_key, 'the peer does not offer SASL mechanism EXTERNAL' ],
	[ 'no_mechanism', 'scram', '', $right, 'the peer does not offer SASL mechanism PLAIN' ],
	[ 'clear_password', 'plain', "host '127.1', tls 'disable'", $right, 'server "clear_password" would send a password in clear text' ],
	[ 'unsaid_anonymous', 'anonymous', "host '127.1', tls 'disable'", '', 'the owner of server "unsaid_anonymous" has no user mapping' ],
	[ 'no_password', 'plain', '', "user 'device-master'", 'the owner of server "no_password" has no user mapping with user and password' ],
);

for (@good, @bad)
{
	my ($name, $peer, $options, $mapping) = @$_;
	my $host = $options =~ /\bhost\b/ ? '' : "host '127.0.0.1', ";
	$options = $options && ", $options";
	$node->safe_psql('test', <<~"END");
		CREATE SERVER $name FOREIGN DATA WRAPPER hybridiot_amqp OPTIONS (${host}port '$port{$peer}', peer 'router'$options);
		@{[ $mapping && "CREATE USER MAPPING FOR CURRENT_USER SERVER $name OPTIONS ($mapping)" ]}
		END
}
for (@good)
{
	poll_is($node, "SELECT concat_ws(': ', state, last_error) FROM hybridiot.stat_connection WHERE server = '$_->[0]'", 'up', "$_->[0]: is up");
	is($node->safe_psql('test', "SELECT state FROM hybridiot.call_device('d', 'c', server => '$_->[0]')"), 'succeeded', 'and a command passes');
}
for (@bad)
{
	my ($name, $says) = @$_[ 0, 4 ];
	poll_is($node, "SELECT state || CASE WHEN last_error ~ '^$says' THEN '' ELSE ': ' || last_error END FROM hybridiot.stat_connection WHERE server = '$name'",
		'retrying', "$name: says what is wrong");
}

# What the server cannot be asked for.
for my $mechanism ('SCRAM-SHA-256', 'GSSAPI', 'plain')
{
	my ($status, $out, $err) = $node->psql('test', "\\set VERBOSITY verbose\nCREATE SERVER other FOREIGN DATA WRAPPER hybridiot_amqp OPTIONS (host 'h', sasl_mechanism '$mechanism')");
	like($err, qr/ERROR:  22023: invalid value for option "sasl_mechanism": "$mechanism"\nHINT:  Valid values are: PLAIN EXTERNAL ANONYMOUS\./, "sasl_mechanism $mechanism is refused");
}

# Put right, each comes up.
$node->safe_psql('test', <<~"END");
	ALTER USER MAPPING FOR CURRENT_USER SERVER wrong_password OPTIONS (SET password_file '$base/right.pw');
	ALTER SERVER wrong_authority OPTIONS (SET ssl_ca '$tls/ca.pem');
	ALTER SERVER other_name OPTIONS (SET host '127.0.0.1');
	ALTER USER MAPPING FOR CURRENT_USER SERVER wrong_key_password OPTIONS (SET ssl_key_password_file '$tls/client.pw');
	ALTER SERVER tls_to_clear OPTIONS (SET port '$port{tls}');
	ALTER SERVER clear_password OPTIONS (ADD sasl_mechanism 'PLAIN');
	END
poll_is($node, "SELECT state FROM hybridiot.stat_connection WHERE server = '$_'", 'up', "$_: is up when that is put right")
	for qw(wrong_password wrong_authority other_name wrong_key_password tls_to_clear clear_password);

# ---------------------------------------------------------------- secrets

# The log of finish() is searched too. A password in a mapping is in its catalog, for superusers.
my $views = $node->safe_psql('test', <<~'END');
	SELECT string_agg(format('SELECT %L, v::text FROM %s v', c.oid::regclass, c.oid::regclass), ' UNION ALL ')
	FROM pg_class c WHERE c.relkind IN ('r', 'v') AND (c.relnamespace = 'hybridiot'::regnamespace
	  OR c.relname IN ('pg_stat_activity', 'pg_settings', 'pg_foreign_server', 'pg_locks'))
	END
my $said = $node->safe_psql('test', $views);
like($said, qr/the peer refused user and password/, 'what was said is looked at');
unlike($said, qr/canary-of|\Q$key_password\E/, 'and has no secret');
is(scalar(grep { $_->{event} eq 'login' && !$_->{ok} } $fleet{tls}->events) > 0, 1, 'the wrong password was tried');
is($node->safe_psql('test', 'SELECT restarts FROM hybridiot.stat_worker WHERE kind = $$amqp$$'), 0, 'all that with one worker');

finish();
