/*
 * server.c
 *		An AMQP server as its options and its owner's mapping describe it: who stands
 *		there, how to log in, which addresses.
 *
 * What is read becomes a Connection that is not connected yet. All of it needs a
 * transaction, and raises what the administrator has to hear.
 */
#include "postgres.h"

#include <arpa/inet.h>
#include <limits.h>

#include "foreign/foreign.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"

#include "command/worker.h"
#include "core/compat.h"
#include "core/options.h"

#define DEFAULT_PORT 5672
#define DEFAULT_TLS_PORT 5671
#define CONNECT_TIMEOUT_MS 10000
#define IDLE_TIMEOUT_MS 60000

char *
AddressFillIn(const char *template, const char *placeholder, const char *value)
{
	StringInfoData buf;
	size_t		len = strlen(placeholder);

	initStringInfo(&buf);
	while (*template)
	{
		if (strncmp(template, placeholder, len) == 0)
		{
			appendStringInfoString(&buf, value);
			template += len;
		}
		else
			appendStringInfoChar(&buf, *template++);
	}
	return buf.data;
}

/* RFC 3986: everything but unreserved characters, of the UTF-8 form. */
char *
AddressEncode(const char *text)
{
	StringInfoData buf;
	const char *utf8 = pg_server_to_any(text, strlen(text), PG_UTF8);

	initStringInfo(&buf);
	for (; *utf8; utf8++)
	{
		unsigned char c = (unsigned char) *utf8;

		if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
			strchr("-._~", c))
			appendStringInfoChar(&buf, (char) c);
		else
			appendStringInfo(&buf, "%%%02X", c);
	}
	return buf.data;
}

static bool
is_loopback(const char *host)
{
	struct in_addr address;

	return strcmp(host, "localhost") == 0 || strcmp(host, "::1") == 0 ||
		(inet_pton(AF_INET, host, &address) == 1 && (ntohl(address.s_addr) >> 24) == 127);
}

static void
read_targets(List *options, AmqpConfig *config, bool *loopback)
{
	List	   *hosts = OptionSplit(OptionGet(options, "host"));
	const char *port_option = OptionGet(options, "port");
	List	   *ports = port_option ? OptionSplit(port_option) : NIL;
	const char *tls = OptionGet(options, "tls");
	DialTarget *targets = palloc0(sizeof(DialTarget) * Max(1, list_length(hosts)));
	int			n = 0;
	ListCell   *lc;

	*loopback = true;
	foreach(lc, hosts)
	{
		targets[n].host = lfirst(lc);
		if (!is_loopback(targets[n].host))
			*loopback = false;
		n++;
	}
	config->tls = tls ? strcmp(tls, "require") == 0 : !*loopback;
	for (int i = 0; i < n; i++)
	{
		if (ports == NIL)
			targets[i].port = config->tls ? DEFAULT_TLS_PORT : DEFAULT_PORT;
		else
			targets[i].port = atoi(list_nth(ports, Min(i, list_length(ports) - 1)));
	}
	config->targets = targets;
	config->ntargets = n;
}

/*
 * What may be used to log in. Nothing secret goes over a wire in clear text, and nobody is
 * let in anonymously, unless the user says so or both ends are on this machine.
 */
static void
read_mechanism(const char *name, List *options, AmqpConfig *config, bool loopback)
{
	const char *given = OptionGet(options, "sasl_mechanism");

	config->mechanism = given ? given :
		config->user ? "PLAIN" : config->ssl_certificate ? "EXTERNAL" : "ANONYMOUS";
	config->allow_clear_text = !config->tls && (given != NULL || loopback);
	if (strcmp(config->mechanism, "PLAIN") == 0 && !config->tls && !config->allow_clear_text)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION),
				 errmsg("server \"%s\" would send a password in clear text", name),
				 errhint("Set option tls to \"require\", or sasl_mechanism to \"PLAIN\" if that is meant.")));
	if (strcmp(config->mechanism, "PLAIN") == 0 && (config->user == NULL || config->password == NULL))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION),
				 errmsg("the owner of server \"%s\" has no user mapping with user and password", name)));
	if (strcmp(config->mechanism, "ANONYMOUS") == 0 && given == NULL && !loopback)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION),
				 errmsg("the owner of server \"%s\" has no user mapping", name),
				 errhint("Create one, or set option sasl_mechanism to \"ANONYMOUS\" if that is meant.")));
}

static void
read_addresses(Connection *c, List *options)
{
	const char *reply = OptionGet(options, "reply_address");
	const char *link = OptionGet(options, "link_address");
	const char *command = OptionGet(options, "command_address");
	const char *tenant = OptionGet(options, "tenant");
	const char *reply_id = JournalReplyId(c->server);

	if (tenant == NULL && c->peer == PEER_HONO)
		ereport(ERROR,
				(errcode(ERRCODE_FDW_OPTION_NAME_NOT_FOUND),
				 errmsg("server \"%s\" is a Hono and has no tenant", c->name),
				 errhint("Set option tenant.")));
	c->tenant = AddressEncode(tenant ? tenant : "");
	c->command_address = AddressFillIn(command ? command :
								 c->peer == PEER_HONO ? "command/{tenant}/{device}" : "command/{device}",
								 "{tenant}", c->tenant);
	if (link == NULL)
		link = c->peer == PEER_BROKER ? c->command_address :
			c->peer == PEER_HONO ? "command/{tenant}" : NULL;
	c->link_address = link ? AddressFillIn(link, "{tenant}", c->tenant) : NULL;
	if (reply == NULL)
		reply = c->peer == PEER_HONO ? "command_response/{tenant}/{reply_id}" : "hybridiot.reply.{reply_id}";
	c->reply_address = AddressFillIn(AddressFillIn(reply, "{tenant}", c->tenant), "{reply_id}", reply_id);

	/* No copy of this database has the same name. */
	c->config.container = psprintf("hybridiot-%s", reply_id);
}

/* One string of everything the connection depends on, to see changes. */
static char *
fingerprint(const Connection *c)
{
	const AmqpConfig *g = &c->config;
	StringInfoData buf;

#define ADD(s) appendStringInfo(&buf, "%s|", (s) ? (s) : "-")
	initStringInfo(&buf);
	for (int i = 0; i < g->ntargets; i++)
		appendStringInfo(&buf, "%s:%d|", g->targets[i].host, g->targets[i].port);
	ADD(g->ssl_ca);
	ADD(g->ssl_certificate);
	ADD(g->ssl_key);
	ADD(g->ssl_key_password);
	ADD(g->mechanism);
	ADD(g->user);
	ADD(g->password);
	ADD(c->command_address);
	ADD(c->link_address);
	ADD(c->reply_address);
	ADD(hybridiot_broker_networks);
	appendStringInfo(&buf, "%d|%d|%d|%d|%d|%zu", g->tls, g->allow_clear_text, g->connect_timeout_ms,
					 g->idle_timeout_ms, c->peer, g->max_message_size);
#undef ADD
	return buf.data;
}

static const char *
file_option(List *options, const char *name)
{
	const char *value = OptionGet(options, name);

	return value ? OptionFile(value) : NULL;
}

Connection *
ServerRead(Oid oid, MemoryContext context)
{
	MemoryContext old = MemoryContextSwitchTo(context);
	ForeignServer *server = GetForeignServer(oid);
	Connection *c = palloc0(sizeof(Connection));
	AmqpConfig *config = &c->config;
	List	   *mapping;
	const char *key_password;
	bool		loopback;
	char	   *user;
	char	   *password;

	c->context = context;
	c->server = oid;
	c->name = pstrdup(server->servername);
	c->peer = ServerPeer(server->options);
	read_targets(server->options, config, &loopback);
	OptionCredentials(oid, server->owner, &user, &password, &mapping);
	config->user = user;
	config->password = password;
	config->ssl_ca = file_option(server->options, "ssl_ca");
	config->ssl_certificate = file_option(mapping, "ssl_certificate");
	config->ssl_key = file_option(mapping, "ssl_key");
	key_password = OptionGet(mapping, "ssl_key_password_file");
	config->ssl_key_password = key_password ? OptionSecret(key_password) : NULL;
	read_mechanism(c->name, server->options, config, loopback);
	config->connect_timeout_ms = (int) Min(INT_MAX, OptionInterval(server->options, "connect_timeout",
																   CONNECT_TIMEOUT_MS));
	config->idle_timeout_ms = (int) Min(INT_MAX, OptionInterval(server->options, "idle_timeout",
																IDLE_TIMEOUT_MS));
	config->max_message_size = (size_t) hybridiot_max_reply_size * 1024;
	read_addresses(c, server->options);
	c->fingerprint = fingerprint(c);
	MemoryContextSwitchTo(old);
	return c;
}
