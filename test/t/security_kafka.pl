# Connecting for real: TLS, SASL and client certificates that work, those that must not, and what each says; brokers
# outside hybridiot.broker_networks; secrets that must be nowhere.
use strict;
use warnings;
use Hybridiot::Test;
use IO::Select;
use IO::Socket::INET;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $kafka = kafka();
my $tls = "$kafka->{dir}/tls";
my $node = new_node('security_kafka', conf => "max_worker_processes = 60\nhybridiot.max_workers = 50\n");
my $topic = create_topic(unique('safe'), 1);
fill($topic, 10);

my $base = $node->data_dir;
write_secret($node, 'right.pw', $kafka->{password});
write_secret($node, 'wrong.pw', 'canary-of-a-file-c41d');
chomp(my $key_password = slurp_file("$tls/client.pw"));
secret($key_password, 'canary-of-a-mapping-77e0');

# Server options, mapping options.
my %sasl = (sasl => "security_protocol 'SASL_PLAINTEXT'", tls => "security_protocol 'SASL_SSL', ssl_ca '$kafka->{ca}'");
my $plain = "sasl_mechanism 'PLAIN'";
my $user = "user '$kafka->{user}'";
my $right = "$user, password_file '$base/right.pw'";
my $certificate = "ssl_key '$tls/client.key', ssl_key_password_file '$tls/client.pw'";
my @good = (
	[ 'clear', $kafka->{bootstrap}, '', '' ],
	[ 'plain', $kafka->{sasl_bootstrap}, "$sasl{sasl}, $plain", $right ],
	[ 'plain_tls', $kafka->{tls_bootstrap}, "$sasl{tls}, $plain", $right ],
	[ 'ciphers', $kafka->{tls_bootstrap}, "$sasl{tls}, $plain, ssl_cipher_suites 'DEFAULT:aNULL'", $right ],
	[ 'mutual', $kafka->{mutual_bootstrap}, "security_protocol 'SSL', ssl_ca '$kafka->{ca}', ssl_certificate '$tls/client.pem'", $certificate ],
);
my $scram = qr/SCRAM-SHA-\d+.*HINT:  librdkafka before 2\.6\.1 fails SCRAM against Kafka 4/s;
my $hint = qr/HINT:  A broker that hangs up may expect TLS or SASL, or not, or a client's certificate/;
my @bad = (
	[ 'wrong_password', $kafka->{tls_bootstrap}, "$sasl{tls}, $plain", "$user, password_file '$base/wrong.pw'", qr/refused access.*Invalid username or password/s ],
	[ 'wrong_password_clear', $kafka->{sasl_bootstrap}, "$sasl{sasl}, $plain", "$user, password 'canary-of-a-mapping-77e0'", qr/refused access.*Invalid username or password/s ],
	[ 'unknown_user', $kafka->{tls_bootstrap}, "$sasl{tls}, $plain", "user 'nobody', password_file '$base/right.pw'", qr/refused access.*Invalid username or password/s ],
	[ 'unknown_authority', $kafka->{tls_bootstrap}, "security_protocol 'SASL_SSL', $plain", $right, qr/the certificate of broker \S+ is not of an authority in ssl_ca/ ],
	[ 'expired', $kafka->{expired_bootstrap}, "$sasl{tls}, $plain", $right, qr/the certificate of broker \S+ has expired/ ],
	[ 'elsewhere', $kafka->{elsewhere_bootstrap}, "$sasl{tls}, $plain", $right, qr/the certificate of broker \S+ is for another host/ ],
	[ 'clear_to_tls', $kafka->{tls_bootstrap}, '', '', $hint ],
	[ 'clear_to_sasl', $kafka->{sasl_bootstrap}, '', '', $hint ],
	[ 'tls_to_clear', $kafka->{sasl_bootstrap}, "$sasl{tls}, $plain", $right, qr/SSL handshake failed.*$hint/s ],
	[ 'no_certificate', $kafka->{mutual_bootstrap}, "security_protocol 'SSL', ssl_ca '$kafka->{ca}'", '', qr/alert.*$hint/s ],
	[ 'wrong_key_password', $kafka->{mutual_bootstrap}, "security_protocol 'SSL', ssl_ca '$kafka->{ca}', ssl_certificate '$tls/client.pem'",
		"ssl_key '$tls/client.key', ssl_key_password_file '$base/wrong.pw'", qr/ssl\.key\.location failed.*HINT:  The files/s ],
	[ 'other_mechanism', $kafka->{bootstrap}, "$sasl{sasl}, $plain", $right, qr/refused access.*SASL PLAIN mechanism handshake failed/s ],
);

# Debian 12's library fails SCRAM with this broker; a newer one does not.
my $version = $node->safe_psql('test', <<~"END");
	SELECT string_agg(lpad(p, 3, '0'), '.') FROM regexp_split_to_table('@{[ (run_command([ '/usr/bin/python3', '-c', 'import ctypes; k = ctypes.CDLL("librdkafka.so.1"); k.rd_kafka_version_str.restype = ctypes.c_char_p; print(k.rd_kafka_version_str().decode())' ]))[0] ]}', '[.]') p
	END
for my $mechanism ('SCRAM-SHA-256', 'SCRAM-SHA-512')
{
	my $case = [ lc $mechanism =~ tr/-/_/r, $kafka->{tls_bootstrap}, "$sasl{tls}, sasl_mechanism '$mechanism'", $right, $scram ];
	push @{ $version lt '002.006.001' ? \@bad : \@good }, $case;
}

# A broker that it gets on with.
my $older = another_kafka('3.9.2');
{
	local $ENV{KAFKA_BOOTSTRAP} = $older->{bootstrap};
	create_topic($topic, 1);
	fill($topic, 10);
}
push @good, [ "older_$_", $older->{tls_bootstrap}, "security_protocol 'SASL_SSL', ssl_ca '$older->{ca}', sasl_mechanism 'SCRAM-SHA-$_'",
	"user '$older->{user}', password_file '$older->{dir}/password'" ] for '256', '512';

for (@good, @bad)
{
	my ($name, $bootstrap, $server, $mapping) = @$_;
	$server = $server && ", $server";
	$node->safe_psql('test', <<~"END");
		CREATE SERVER $name FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (bootstrap_servers '$bootstrap'$server);
		CREATE USER MAPPING FOR CURRENT_USER SERVER $name @{[ $mapping && "OPTIONS ($mapping)" ]};
		CREATE FOREIGN TABLE s_$name (n bigint) SERVER $name OPTIONS (topic '$topic');
		CREATE TABLE t_$name (n bigint);
		SELECT hybridiot.create_pipeline('$name', 'INSERT INTO t_$name SELECT n FROM s_$name');
		END
}
is($node->safe_psql('test', "SELECT sum(n) FROM s_$_->[0]"), '45', "$_->[0]: a SELECT") for @good;
my $said = '';
for (@bad)
{
	my ($name, $like) = @$_[ 0, 4 ];
	my $began = time;
	my ($status, $out, $err) = $node->psql('test', "\\set VERBOSITY verbose\nSELECT * FROM s_$name");
	like($err, qr/ERROR:  08001: .*$like/s, "$name: a SELECT says what is wrong");
	cmp_ok(time - $began, '<', 10, 'at once');
	$said .= $err;
}
poll_is($node, "SELECT count(*), sum(n) FROM t_$_->[0]", '10|45', "$_->[0]: a pipeline") for @good;
for (@bad)
{
	my $name = $_->[0];
	# What may heal where the brokers are is tried again; what only SQL can heal is not (security_options.pl).
	poll_is($node, "SELECT state, reason <> '' FROM hybridiot.pipeline WHERE name = '$name'", 'retrying|t', "$name: its pipeline tries again and has a reason");
	my $pattern = { expired => 'has expired', elsewhere => 'is for another host', unknown_authority => 'not of an authority', wrong_password => 'Invalid username or password' }->{$name};
	poll_is($node, "SELECT reason ~ '$pattern' FROM hybridiot.pipeline WHERE name = '$name'", 't', "$name: which says it") if $pattern;
}

# ---------------------------------------------------------------- secrets

# Who looks at everything, everywhere.
my $views = $node->safe_psql('test', <<~'END');
	SELECT string_agg(format('SELECT %L, v::text FROM %s v', c.oid::regclass, c.oid::regclass), ' UNION ALL ')
	FROM pg_class c WHERE c.relkind IN ('r', 'v') AND c.relnamespace IN ('hybridiot'::regnamespace, 'pg_catalog'::regnamespace)
	  AND (c.relnamespace = 'hybridiot'::regnamespace OR c.relname IN ('pg_stat_activity', 'pg_settings', 'pg_file_settings', 'pg_foreign_server', 'pg_user_mappings', 'pg_locks', 'pg_prepared_statements'))
	END
$node->safe_psql('test', 'CREATE ROLE reader; GRANT pg_read_all_stats, pg_read_all_settings TO reader');
$said .= $node->safe_psql('test', $views);
my $mine = $node->safe_psql('test', 'SELECT umoptions FROM pg_user_mapping');
like($mine, qr/canary-of-a-mapping-77e0/, 'a password in a mapping is in its catalog, for superusers: that is why files are better');
unlike($mine, qr/canary-of-a-file-c41d|\Q$key_password\E/, 'one in a file is not');
my $seen = $node->safe_psql('test', 'SET ROLE reader; SELECT umoptions FROM pg_user_mappings');
unlike($seen, qr/canary/, 'others do not see mappings');
my ($postmaster) = split /\n/, slurp_file("$base/postmaster.pid");
for my $pid ($postmaster, split ' ', slurp_file("/proc/$postmaster/task/$postmaster/children"))
{
	$said .= slurp_file("/proc/$pid/$_") for grep { -r "/proc/$pid/$_" } 'cmdline', 'environ', 'comm';
}
my @catalog = split /\n/, $said;
is_deeply([ grep { /canary-of-a-file|\Q$key_password\E/ || (/canary-of-a-mapping/ && !/pg_user_mappings\|/) } @catalog ], [], 'no message, view or process title has a secret');
cmp_ok(length $said, '>', 20_000, 'and there was much to look at');

# The log of finish(), at its most talkative.
$node->append_conf('postgresql.conf', "log_min_messages = debug5\n");
$node->reload;
$node->safe_psql('test', "SELECT hybridiot.pause_pipeline('wrong_password'), hybridiot.pause_pipeline('wrong_password_clear'), hybridiot.pause_pipeline('mutual')");
$node->safe_psql('test', "SELECT hybridiot.resume_pipeline('wrong_password'), hybridiot.resume_pipeline('wrong_password_clear'), hybridiot.resume_pipeline('mutual')");
wait_state($node, 'mutual', 'running');
wait_state($node, $_, 'retrying') for 'wrong_password', 'wrong_password_clear';
$node->psql('test', "SELECT * FROM s_$_") for 'wrong_password', 'wrong_password_clear', 'wrong_key_password', 'mutual';
$node->append_conf('postgresql.conf', "log_min_messages = info\n");
$node->reload;
$node->safe_psql('test', "SELECT hybridiot.drop_pipeline('$_->[0]')") for @bad;

# ---------------------------------------------------------------- networks

# Somebody at the address that the broker advertises, who counts.
my ($port) = $kafka->{moved_bootstrap} =~ /:(\d+)/;
my $stranger = IO::Socket::INET->new(LocalAddr => '127.0.0.2', LocalPort => $port, Listen => 50, ReuseAddr => 1) or die "127.0.0.2:$port: $!";
my $visitors = IO::Select->new($stranger);

sub visits
{
	my $n = 0;
	while ($visitors->can_read($_[0] // 0)) { my $visitor = $stranger->accept; $n++ }
	return $n;
}
sub networks
{
	$node->safe_psql('test', "ALTER SYSTEM SET hybridiot.broker_networks = '$_[0]'");
	$node->reload;
	return;
}

networks('127.0.0.1/32');
$node->safe_psql('test', <<~"END");
	CREATE SERVER moved FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (bootstrap_servers '$kafka->{moved_bootstrap}');
	CREATE FOREIGN TABLE moved (n bigint) SERVER moved OPTIONS (topic '$topic');
	CREATE TABLE by_moved (n bigint);
	SELECT hybridiot.create_pipeline('moved', 'INSERT INTO by_moved SELECT n FROM moved');
	END
my $outside = "broker 127.0.0.2:$port has the address 127.0.0.2, which is not in hybridiot.broker_networks";
my $began = time;
my ($status, $out, $err) = $node->psql('test', "\\set VERBOSITY verbose\nSELECT * FROM moved");
like($err, qr/ERROR:  08001: .*\Q$outside\E.*HINT:  A superuser may add the network/s, 'a SELECT names the broker that is outside, and the setting');
cmp_ok(time - $began, '<', 8, 'soon');
poll_is($node, "SELECT state, reason ~ '$outside' FROM hybridiot.pipeline WHERE name = 'moved'", 'retrying|t', 'so does a pipeline');
is(visits(), 0, 'an advertised address outside gets no connection');
is($node->safe_psql('test', "SELECT sum(n) FROM s_clear"), '45', 'brokers inside are read');

# A pipeline that runs, whose brokers' network is taken away and given back.
wait_state($node, 'clear', 'running');
networks('10.0.0.0/8, ::1/128');
poll_is($node, "SELECT state, reason ~ 'broker $kafka->{bootstrap} has the address 127.0.0.1, which is not in' FROM hybridiot.pipeline WHERE name = 'clear'", 'retrying|t', 'a reload takes effect on a running pipeline');
fill($topic, 5, from => 10);
is($node->safe_psql('test', 'SELECT count(*) FROM t_clear'), '10', 'which reads nothing more');
networks('127.0.0.0/8');
poll_is($node, 'SELECT count(*) FROM t_clear', '15', 'until a reload lets it');
wait_state($node, 'clear', 'running');
my $until = time + 30;
my $came = 0;
$came = visits(0.2) until $came || time > $until;
cmp_ok($came, '>', 0, 'the advertised address is connected to when it is inside');
close $stranger;
$node->safe_psql('test', "SELECT hybridiot.drop_pipeline('moved')");

# AMQP goes the same way.
my $artemis = artemis();
networks('127.0.0.2/32');
$node->safe_psql('test', <<~"END");
	CREATE SERVER gateway FOREIGN DATA WRAPPER hybridiot_amqp OPTIONS (host '$artemis->{host}', port '$artemis->{port}');
	CREATE USER MAPPING FOR CURRENT_USER SERVER gateway OPTIONS (user '$artemis->{user}', password '$artemis->{password}');
	END
poll_is($node, "SELECT state, last_error FROM hybridiot.stat_connection WHERE server = 'gateway'",
	qq(retrying|could not connect to "127.0.0.1" port $artemis->{port}: its address 127.0.0.1 is not in hybridiot.broker_networks), 'an AMQP peer outside is not connected to');
networks('127.0.0.1/32');
poll_is($node, "SELECT state FROM hybridiot.stat_connection WHERE server = 'gateway'", 'up', 'inside it is');
networks('127.0.0.2/32');
poll_is($node, "SELECT state FROM hybridiot.stat_connection WHERE server = 'gateway'", 'retrying', 'a reload ends a connection that is outside now');

finish();
