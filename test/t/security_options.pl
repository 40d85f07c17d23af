# What options may say, and who may say it: every property that librdkafka has, files by role and place, credentials of
# one's own; and who a worker is.
use strict;
use warnings;
use Hybridiot::Test;
use POSIX qw(mkfifo);
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $node = new_node('security_options');
my $base = PostgreSQL::Test::Utils::tempdir('files');
mkdir "$base/secrets";
$node->append_conf('postgresql.conf', "hybridiot.secret_directory = '$base/secrets'\n");
$node->reload;

# verdict(statement): its SQLSTATE, with "+" if it has a HINT; ok if it works. It leaves nothing behind.
$node->safe_psql('test', <<~'END');
	CREATE ROLE engineer;
	GRANT USAGE ON FOREIGN DATA WRAPPER hybridiot_kafka, hybridiot_amqp TO engineer;
	GRANT CREATE ON SCHEMA public TO engineer;
	CREATE FUNCTION verdict(statement text) RETURNS text LANGUAGE plpgsql AS $$
	DECLARE hint text;
	BEGIN
	  EXECUTE statement;
	  RAISE SQLSTATE 'ZZ000';
	EXCEPTION WHEN OTHERS THEN
	  GET STACKED DIAGNOSTICS hint = PG_EXCEPTION_HINT;
	  RETURN CASE WHEN SQLSTATE = 'ZZ000' THEN 'ok' ELSE SQLSTATE || CASE WHEN hint <> '' THEN '+' ELSE '' END END;
	END $$;
	END

my $super = $node->safe_psql('test', 'SELECT current_user');

sub verdict
{
	my ($role, $statement) = @_;
	return $node->safe_psql('test', "SET ROLE $role; SELECT verdict(\$v\$$statement\$v\$)");
}

# ---------------------------------------------------------------- every property that the library has

my @approved = qw(
	broker.address.family broker.address.ttl client.id client.rack connections.max.idle.ms fetch.error.backoff.ms fetch.max.bytes
	fetch.min.bytes fetch.wait.max.ms max.partition.fetch.bytes metadata.max.age.ms queued.max.messages.kbytes queued.min.messages
	receive.message.max.bytes reconnect.backoff.max.ms reconnect.backoff.ms socket.connection.setup.timeout.ms
	socket.keepalive.enable socket.max.fails socket.nagle.disable socket.receive.buffer.bytes socket.send.buffer.bytes
	socket.timeout.ms ssl.cipher.suites ssl.curves.list ssl.sigalgs.list topic.metadata.refresh.interval.ms);
my %accepted = map { tr/./_/r => 1 } @approved, qw(security.protocol sasl.mechanism);

my $library = <<~'END';
	import ctypes, sys
	kafka, libc = ctypes.CDLL("librdkafka.so.1"), ctypes.CDLL(None)
	libc.fdopen.restype = ctypes.c_void_p
	kafka.rd_kafka_conf_new.restype = ctypes.c_void_p
	if len(sys.argv) > 1:
	    kafka.rd_kafka_conf_set(ctypes.c_void_p(kafka.rd_kafka_conf_new()), b"plugin.library.paths", sys.argv[1].encode(), None, ctypes.c_size_t(0))
	    sys.exit()
	out = ctypes.c_void_p(libc.fdopen(1, b"w"))
	kafka.rd_kafka_conf_properties_show(out)
	libc.fflush(out)
	kafka.rd_kafka_conf_dump.restype = ctypes.POINTER(ctypes.c_char_p)
	n = ctypes.c_size_t()
	for conf in kafka.rd_kafka_conf_dump(ctypes.c_void_p(kafka.rd_kafka_conf_new()), ctypes.byref(n)),:
	    for i in range(0, n.value, 2):
	        print(conf[i].decode(), "|", flush=True)
	END
my ($shown, $error) = run_command([ '/usr/bin/python3', '-c', $library ]);
my %property = map { $_ => 1 } $shown =~ /^\s*([a-z][\w.]*)\s*\|/mg;
# Three that take no text have the names of options of ours, which go to the library under other names.
delete @property{qw(ssl_ca ssl_certificate ssl_key)};
cmp_ok(scalar keys %property, '>', 150, 'the library tells its properties');
ok($property{$_}, "$_ is one") for @approved, 'plugin.library.paths', 'sasl.kerberos.kinit.cmd', 'enable.auto.commit', 'debug';

# probe(role, how to name it): what each property gets as an option of a server, as a map.
sub probe
{
	my ($role, $name) = @_;
	my $list = join ',', map { "('$_')" } sort keys %property;
	my $rows = $node->safe_psql('test', <<~"END");
		SET ROLE $role;
		SELECT p, verdict(format('CREATE SERVER probe FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (transport ''table'', %I ''no such value'')', $name)),
		  verdict(format('CREATE USER MAPPING FOR CURRENT_USER SERVER mapped OPTIONS (%I ''1'')', $name)),
		  verdict(format('CREATE FOREIGN TABLE probe (a text OPTIONS (%I ''1'')) SERVER mapped OPTIONS (topic ''t'')', $name)),
		  verdict(format('CREATE FOREIGN TABLE probe (a text) SERVER mapped OPTIONS (topic ''t'', %I ''1'')', $name))
		FROM (VALUES $list) v (p);
		END
	return map { my ($p, @got) = split /\|/; ($p => \@got) } split /\n/, $rows;
}

$node->safe_psql('test', "CREATE SERVER mapped FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (bootstrap_servers 'k:9092'); GRANT USAGE ON FOREIGN SERVER mapped TO engineer");
my %free_text = map { $_ => 1 } qw(client.id client.rack ssl.cipher.suites ssl.curves.list ssl.sigalgs.list);
for my $role ($super, 'engineer')
{
	for my $name ('p', q(replace(p, '.', '_')))
	{
		my %got = probe($role, $name);
		my (@wrong, $allowed);
		for my $p (sort keys %property)
		{
			my $as = $name eq 'p' ? $p : $p =~ tr/./_/r;
			my $expected = !$accepted{$as} ? 'HV00D+' : $free_text{$p} ? 'ok' : '22023';
			$expected = 'HV00D+' if $as eq 'bootstrap_servers' && $name eq 'p';
			next if $p eq 'bootstrap.servers' && $name ne 'p';
			$allowed++ if $expected ne 'HV00D+';
			push @wrong, "$as as an option of a server: $got{$p}[0], not $expected" unless $got{$p}[0] =~ /^\Q$expected\E/;
			push @wrong, "$as elsewhere: @{$got{$p}}[1 .. 3]" if grep { $_ ne 'HV00D+' } @{ $got{$p} }[ 1 .. 3 ];
		}
		is_deeply(\@wrong, [], "$role, $name: all properties but the approved ones are refused, with a hint");
		is($allowed // 0, $name eq 'p' ? 0 : scalar keys %accepted, 'and those alone are taken');
	}
}

# A plug-in is loaded as soon as the library is told of it. This one leaves a trace.
open(my $source, '>', "$base/trap.c") or die;
print $source "#include <fcntl.h>\n__attribute__((constructor)) static void trap(void) { creat(\"$base/sprung\", 0600); }\n";
close $source;
system('gcc', '-shared', '-fPIC', '-o', "$base/trap.so", "$base/trap.c") == 0 or die;
is(verdict($super, "CREATE SERVER probe FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (bootstrap_servers 'k:9092', $_ '$base/trap.so')"), 'HV00D+', "$_ loads nothing")
	for 'plugin_library_paths', '"plugin.library.paths"';
ok(!-e "$base/sprung", 'the library was not told of it');
run_command([ '/usr/bin/python3', '-c', $library, "$base/trap.so" ]);
ok(-e "$base/sprung", 'which would have loaded it');

# ---------------------------------------------------------------- files: role, option, place

$node->safe_psql('test', <<~'END');
	CREATE SERVER amqp FOREIGN DATA WRAPPER hybridiot_amqp OPTIONS (host 'h');
	GRANT USAGE ON FOREIGN SERVER amqp TO engineer;
	END
my %place = (
	inside => 'x.pem', 'inside, absolute' => "$base/secrets/x.pem", deeper => 'a/b', outside => '/etc/passwd', upwards => '../x.pem',
	'upwards and down' => "$base/secrets/../secrets/x.pem", sibling => "$base/secretsx/x.pem", 'the directory' => '.',
	'the directory, absolute' => "$base/secrets", nothing => '');
my %engineer = (inside => 'ok', 'inside, absolute' => 'ok', deeper => 'ok', nothing => '22023+');
my @option = (
	(map { "CREATE SERVER probe FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (bootstrap_servers 'k:1', $_ '%s')" } qw(ssl_ca ssl_certificate)),
	"CREATE SERVER probe FOREIGN DATA WRAPPER hybridiot_amqp OPTIONS (host 'h', ssl_ca '%s')",
	(map { "CREATE USER MAPPING FOR CURRENT_USER SERVER mapped OPTIONS ($_ '%s')" } qw(password_file ssl_key ssl_key_password_file)),
	(map { "CREATE USER MAPPING FOR CURRENT_USER SERVER amqp OPTIONS ($_ '%s')" } qw(password_file ssl_certificate ssl_key ssl_key_password_file)));
for my $role ($super, 'engineer')
{
	my (@statement, @expected);
	for my $option (@option)
	{
		for my $place (sort keys %place)
		{
			# Newer versions of PostgreSQL resolve the dots before anybody looks.
			next if $place eq 'upwards and down' && $role eq 'engineer';
			push @statement, sprintf $option, $place{$place};
			push @expected, $place eq 'nothing' ? '22023+' : $role ne 'engineer' ? 'ok' : $engineer{$place} // '42501+';
		}
	}
	my $n = @statement;
	my @got = split /\n/, $node->safe_psql('test', "SET ROLE $role; SELECT verdict(s) FROM unnest(ARRAY[" . join(', ', map { "\$v\$$_\$v\$" } @statement) . ']) WITH ORDINALITY AS u (s, i) ORDER BY i');
	my @wrong = map { $got[$_] eq $expected[$_] ? () : "$statement[$_]: $got[$_], not $expected[$_]" } 0 .. $n - 1;
	is_deeply(\@wrong, [], "$role: files by option and place, $n cases");
}
$node->safe_psql('test', 'ALTER SYSTEM RESET hybridiot.secret_directory');
is(verdict($super, "SET hybridiot.secret_directory = 'secrets'"), '22023', 'the directory has an absolute path');
is(verdict('engineer', "SET hybridiot.secret_directory = '/'"), '42501', 'and is not for everybody to set');
is(verdict('engineer', 'SHOW hybridiot.secret_directory'), '42501', 'or to see');

# What a superuser said stays in force for whom it was said, who cannot say anything beside it.
$node->safe_psql('test', <<~'END');
	CREATE SERVER given FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (bootstrap_servers 'k:1', ssl_ca '/outside/ca.pem');
	ALTER SERVER given OWNER TO engineer;
	CREATE USER MAPPING FOR engineer SERVER given OPTIONS (user 'u', password_file '/outside/pw');
	END
is(verdict('engineer', "ALTER SERVER given OPTIONS (ADD fetch_min_bytes '1')"), '42501+', 'the owner of a server with a file of a superuser cannot alter it');
is(verdict('engineer', "ALTER SERVER given OPTIONS (DROP ssl_ca)"), 'ok', 'but for taking that away');
is(verdict('engineer', "ALTER USER MAPPING FOR engineer SERVER given OPTIONS (SET user 'v')"), '42501+', 'nor can the role of such a mapping');

# ---------------------------------------------------------------- files as they are when they are used

$node->safe_psql('test', <<~'END');
	CREATE SERVER locked FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (bootstrap_servers '127.0.0.1:1', security_protocol 'SASL_PLAINTEXT', sasl_mechanism 'PLAIN');
	GRANT USAGE ON FOREIGN SERVER locked TO engineer;
	SET ROLE engineer;
	CREATE FOREIGN TABLE telemetry (n int) SERVER locked OPTIONS (topic 't');
	CREATE TABLE reading (n int);
	CREATE USER MAPPING FOR engineer SERVER locked OPTIONS (user 'u', password_file 'pw');
	END
my $opening = q(SELECT hybridiot.create_pipeline('p', 'INSERT INTO reading SELECT n FROM telemetry'));
my $file = "$base/secrets/pw";

sub contents
{
	my ($text, $mode) = @_;
	unlink $file;
	open(my $out, '>', $file) or die;
	print $out $text;
	close $out;
	chmod $mode // 0600, $file;
}
mkdir "$base/secrets/directory";
for (
	[ 'missing', '58P01', sub { } ],
	[ 'good', 'ok', sub { contents("password\n") } ],
	[ 'without a line end', 'ok', sub { contents('password') } ],
	[ 'with two lines', 'ok', sub { contents("password\r\nmore\n") } ],
	[ 'empty', '58000', sub { contents('') } ],
	[ 'an empty line', '58000', sub { contents("\nmore\n") } ],
	[ 'a zero byte', '58000', sub { contents("pass\0word\n") } ],
	[ 'a long line', '58000', sub { contents('x' x 5000) } ],
	[ 'huge', '58000', sub { contents("password\n" . 'x' x 2_000_000) } ],
	[ 'unreadable', '58030', sub { contents("password\n", 0) } ],
	[ 'a directory', '58000', sub { symlink 'directory', $file } ],
	[ 'a pipe', '58000', sub { mkfifo($file, 0600) } ],
	[ 'a link inside', 'ok', sub { contents("password\n"); rename $file, "$base/secrets/other"; symlink 'other', $file } ],
	[ 'a link to a device', '42501', sub { symlink '/dev/zero', $file } ],
	[ 'a link outwards', '42501', sub { symlink '/etc/passwd', $file } ],
	[ 'a broken link', '58P01', sub { symlink 'nowhere', $file } ])
{
	my ($name, $expected, $make) = @$_;
	unlink $file;
	$make->();
	my $began = time;
	is(verdict('engineer', $opening), $expected, "a password file: $name");
	cmp_ok(time - $began, '<', 2, 'and nobody waits for it');
}
$node->safe_psql('test', "ALTER USER MAPPING FOR engineer SERVER locked OPTIONS (SET password_file '/dev/zero')");
is(verdict('engineer', $opening), '58000', 'a device that a superuser named');

# ---------------------------------------------------------------- credentials of one's own

$node->safe_psql('test', 'DROP USER MAPPING FOR engineer SERVER locked');
is(verdict('engineer', $opening), '28000+', 'without a mapping there is no pipeline where SASL is asked for');
is(verdict('engineer', 'SELECT * FROM telemetry'), '28000+', 'and no scan');
$node->safe_psql('test', "CREATE USER MAPPING FOR PUBLIC SERVER locked OPTIONS (user 'u')");
is(verdict('engineer', $opening), '28000+', 'nor with one that has no password');
$node->safe_psql('test', "ALTER USER MAPPING FOR PUBLIC SERVER locked OPTIONS (ADD password '')");
is(verdict('engineer', $opening), '28000+', 'or an empty one');
$node->safe_psql('test', "ALTER USER MAPPING FOR PUBLIC SERVER locked OPTIONS (SET password 'p')");
is(verdict('engineer', $opening), 'ok', 'credentials that the owner gives to everybody are one\'s own');
is(verdict('engineer', q(CREATE USER MAPPING FOR PUBLIC SERVER locked)), '42501', 'which only the owner can');

$node->safe_psql('test', "SET ROLE engineer; $opening");
wait_state($node, 'p', 'retrying');
$node->safe_psql('test', 'DROP USER MAPPING FOR PUBLIC SERVER locked');
wait_state($node, 'p', 'failed');
like($node->safe_psql('test', 'SELECT reason FROM hybridiot.pipeline'), qr/role "engineer" has no user and password for server "locked"/, 'a pipeline whose credentials went has failed, and says why');

$node->safe_psql('test', <<~"END");
	CREATE SERVER certified FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (bootstrap_servers '127.0.0.1:1', security_protocol 'SSL', ssl_certificate '/etc/hostname');
	CREATE FOREIGN TABLE certified (n int) SERVER certified OPTIONS (topic 't');
	GRANT SELECT ON certified TO engineer;
	END
is(verdict('engineer', 'SELECT * FROM certified'), '28000+', 'a client certificate is of no use without one\'s own key');

# SASL without a mechanism would be Kerberos, which runs commands.
is(verdict($super, "CREATE SERVER probe FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (bootstrap_servers 'k:1', security_protocol 'SASL_SSL')"), 'HV00D', 'SASL names its mechanism');
is(verdict($super, "CREATE SERVER probe FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (bootstrap_servers '$_')"), '22023+', "brokers: '$_'")
	for 'k', 'k:', ':1', 'k:0', 'k:65536', 'k:1x', 'PLAINTEXT://k:1', 'k:1/x', 'k:1 k2:1', '::1:9092', ',';
is(verdict($super, "CREATE SERVER probe FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (bootstrap_servers '$_')"), 'ok', "brokers: '$_'")
	for 'k-1.example:1', 'k1:9092, k2:9092', '[::1]:9092,127.0.0.1:65535';

# ---------------------------------------------------------------- a worker, whose session is a superuser's, as the owner

# sql/trojan.sql has all places; here it is the worker that runs them.
$node->safe_psql('test', <<~'END');
	CREATE SERVER archive FOREIGN DATA WRAPPER hybridiot_kafka OPTIONS (transport 'table');
	GRANT USAGE ON FOREIGN SERVER archive TO engineer;
	SET ROLE engineer;
	CREATE TABLE log (partition int, "offset" bigint, "timestamp" timestamptz, key bytea, value bytea, headers jsonb);
	CREATE TABLE outcome (place text, statement text, state text, who name);
	CREATE TABLE target (n int);
	CREATE TABLE pending (n int);
	CREATE FUNCTION escape(place text) RETURNS bool LANGUAGE plpgsql AS $$
	DECLARE statement text;
	BEGIN
	  FOREACH statement IN ARRAY ARRAY['RESET ROLE', 'SET ROLE NONE', 'RESET SESSION AUTHORIZATION', 'SET SESSION AUTHORIZATION DEFAULT',
	    'SELECT set_config(''role'', ''none'', false)', 'SELECT set_config(''session_authorization'', session_user, false)',
	    'ALTER ROLE engineer SUPERUSER', 'SELECT rolpassword FROM pg_authid', 'COPY log TO PROGRAM ''true''', 'CREATE TEMP TABLE t (a int)',
	    'SET CONSTRAINTS ALL DEFERRED; INSERT INTO public.pending VALUES (1)', 'DECLARE c CURSOR WITH HOLD FOR SELECT 1',
	    'UPDATE hybridiot.pipeline_position SET next_offset = 0'] LOOP
	    BEGIN
	      EXECUTE statement;
	      INSERT INTO public.outcome VALUES (place, statement, 'done', current_user);
	    EXCEPTION WHEN OTHERS THEN
	      INSERT INTO public.outcome VALUES (place, statement, SQLSTATE, current_user);
	    END;
	  END LOOP;
	  PERFORM pg_advisory_unlock_all();
	  RETURN true;
	END $$;
	CREATE FUNCTION trap() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM public.escape(TG_NAME); RETURN NEW; END $$;
	CREATE DOMAIN checked AS int CHECK (public.escape('domain'));
	CREATE TRIGGER before BEFORE INSERT ON target FOR EACH ROW EXECUTE FUNCTION trap();
	CREATE CONSTRAINT TRIGGER late AFTER INSERT ON target DEFERRABLE INITIALLY IMMEDIATE FOR EACH ROW EXECUTE FUNCTION trap();
	CREATE CONSTRAINT TRIGGER later AFTER INSERT ON pending DEFERRABLE INITIALLY IMMEDIATE FOR EACH ROW EXECUTE FUNCTION trap();
	CREATE FOREIGN TABLE trapped (n checked) SERVER archive OPTIONS (topic 't', source 'public.log');
	INSERT INTO log VALUES (0, 0, now(), NULL, '{"n": 1}');
	SELECT hybridiot.create_pipeline('trapped', 'INSERT INTO target SELECT n FROM trapped WHERE public.escape(''where'')');
	END
poll_is($node, 'SELECT count(*) FROM target', '1', 'a pipeline with traps runs');
is($node->safe_psql('test', q(SELECT string_agg(DISTINCT place, ' ' ORDER BY place) FROM outcome)), 'before domain late where', 'all of them were sprung');
is($node->safe_psql('test', q(SELECT string_agg(DISTINCT who || ' ' || state, ', ') FROM outcome)), 'engineer 42501', 'as the owner, and in vain');
is($node->safe_psql('test', q(SELECT count(*) FROM pending)), '0', 'nothing waits for COMMIT');
is($node->safe_psql('test', q(SELECT rolsuper FROM pg_roles WHERE rolname = 'engineer')), 'f', 'whoever tried is no superuser');

# ---------------------------------------------------------------- networks

is(verdict($super, "SET hybridiot.broker_networks = '$_'"), '22023', "networks: '$_'")
	for '10.0.0.0/33', '10.0.0.1/8', '10.0.0.0/-1', '10.0.0.0/', '10.0.0', 'localhost', '::1/129', 'fd00::1/8', '10.0.0.0/8; ::1', '10.0.0.0/8,x';
is(verdict($super, "SET hybridiot.broker_networks = '$_'"), 'ok', "networks: '$_'")
	for '', '10.0.0.0/8', '0.0.0.0/0,::/0', ' 127.0.0.1 , ::1/128 ', 'fd00::/8';
is(verdict('engineer', "SET hybridiot.broker_networks = ''"), '42501', 'networks are a superuser\'s to set');

finish();
