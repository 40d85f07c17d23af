/*
 * options.c
 *		Options of servers, user mappings, foreign tables and columns: what there
 *		is, who may say it, what values make sense.
 *
 * An option is checked here, by name and by value, before any client library
 * sees it: a client's configuration can load code. Files: see option_file.c.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/reloptions.h"
#include "catalog/pg_attribute.h"
#include "catalog/pg_foreign_data_wrapper.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_foreign_table.h"
#include "catalog/pg_user_mapping.h"
#include "commands/defrem.h"
#include "common/int.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "core/compat.h"
#include "core/options.h"

typedef enum OptionType
{
	OPT_TEXT,
	OPT_NAME,					/* text that may not be empty */
	OPT_BOOL,
	OPT_INTERVAL,
	OPT_COUNT,					/* whole number > 0 */
	OPT_PORTS,					/* list of ports */
	OPT_BROKERS,				/* list of host:port */
	OPT_CHOICE,
	OPT_FILE,
	OPT_PATH,					/* dotted path inside a payload */
	OPT_METADATA
} OptionType;

typedef struct OptionRule
{
	const char *wrapper;
	Oid			catalog;
	const char *name;
	OptionType	type;
	bool		required;
	const char *choices;		/* OPT_CHOICE: separated by spaces */
} OptionRule;

#define BROKERS_HINT "Brokers are host:port, separated by commas; an IPv6 address stands in square brackets."

#define K KAFKA_WRAPPER
#define A AMQP_WRAPPER

static const OptionRule rules[] = {
	{K, ForeignServerRelationId, "bootstrap_servers", OPT_BROKERS},
	{K, ForeignServerRelationId, "security_protocol", OPT_CHOICE, false, "PLAINTEXT SSL SASL_PLAINTEXT SASL_SSL"},
	{K, ForeignServerRelationId, "sasl_mechanism", OPT_CHOICE, false, "PLAIN SCRAM-SHA-256 SCRAM-SHA-512"},
	{K, ForeignServerRelationId, "ssl_ca", OPT_FILE},
	{K, ForeignServerRelationId, "ssl_certificate", OPT_FILE},
	{K, ForeignServerRelationId, "transport", OPT_CHOICE, false, "kafka table"},

	{K, UserMappingRelationId, "user", OPT_NAME},
	{K, UserMappingRelationId, "password", OPT_TEXT},
	{K, UserMappingRelationId, "password_file", OPT_FILE},
	{K, UserMappingRelationId, "ssl_key", OPT_FILE},
	{K, UserMappingRelationId, "ssl_key_password_file", OPT_FILE},

	{K, ForeignTableRelationId, "topic", OPT_NAME, true},
	{K, ForeignTableRelationId, "format", OPT_CHOICE, false, "json csv text raw"},
	{K, ForeignTableRelationId, "event_time", OPT_NAME},
	{K, ForeignTableRelationId, "compacted", OPT_BOOL},
	{K, ForeignTableRelationId, "max_future", OPT_INTERVAL},
	{K, ForeignTableRelationId, "source", OPT_NAME},

	{K, AttributeRelationId, "path", OPT_PATH},
	{K, AttributeRelationId, "metadata", OPT_METADATA},

	{A, ForeignServerRelationId, "host", OPT_NAME, true},
	{A, ForeignServerRelationId, "port", OPT_PORTS},
	{A, ForeignServerRelationId, "peer", OPT_CHOICE, false, "broker router hono"},
	{A, ForeignServerRelationId, "tls", OPT_CHOICE, false, "require disable"},
	{A, ForeignServerRelationId, "ssl_ca", OPT_FILE},
	{A, ForeignServerRelationId, "sasl_mechanism", OPT_CHOICE, false, "PLAIN EXTERNAL ANONYMOUS"},
	{A, ForeignServerRelationId, "connect_timeout", OPT_INTERVAL},
	{A, ForeignServerRelationId, "idle_timeout", OPT_INTERVAL},
	{A, ForeignServerRelationId, "tenant", OPT_NAME},
	{A, ForeignServerRelationId, "command_address", OPT_NAME},
	{A, ForeignServerRelationId, "link_address", OPT_NAME},
	{A, ForeignServerRelationId, "reply_address", OPT_NAME},
	{A, ForeignServerRelationId, "mode", OPT_CHOICE, false, "direct store"},

	{A, UserMappingRelationId, "user", OPT_NAME},
	{A, UserMappingRelationId, "password", OPT_TEXT},
	{A, UserMappingRelationId, "password_file", OPT_FILE},
	{A, UserMappingRelationId, "ssl_certificate", OPT_FILE},
	{A, UserMappingRelationId, "ssl_key", OPT_FILE},
	{A, UserMappingRelationId, "ssl_key_password_file", OPT_FILE},

	{A, ForeignTableRelationId, "address", OPT_NAME, true},
	{A, ForeignTableRelationId, "selector", OPT_NAME},
	{A, ForeignTableRelationId, "format", OPT_CHOICE, false, "json csv text raw"},
	{A, ForeignTableRelationId, "event_time", OPT_NAME},
	{A, ForeignTableRelationId, "max_future", OPT_INTERVAL},
	{A, ForeignTableRelationId, "credit", OPT_COUNT},
	{A, ForeignTableRelationId, "dedupe_horizon", OPT_INTERVAL},
	{A, ForeignTableRelationId, "dedupe_ids", OPT_COUNT},

	{A, AttributeRelationId, "path", OPT_PATH},
	{A, AttributeRelationId, "metadata", OPT_METADATA},
};

#undef K
#undef A

const char *
OptionGet(List *options, const char *name)
{
	ListCell   *lc;

	foreach(lc, options)
	{
		DefElem    *def = lfirst_node(DefElem, lc);

		if (strcmp(def->defname, name) == 0)
			return defGetString(def);
	}
	return NULL;
}

bool
OptionBool(List *options, const char *name, bool fallback)
{
	const char *value = OptionGet(options, name);
	bool		result;

	return value && parse_bool(value, &result) ? result : fallback;
}

int64
IntervalToUs(const char *what, const Interval *interval)
{
	int64		days_us;
	int64		result;

	if (interval->month != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s may not contain months or years", what),
				 errhint("Say it in days, which are 24 hours, or in smaller units.")));
	if (pg_mul_s64_overflow(interval->day, USECS_PER_DAY, &days_us) ||
		pg_add_s64_overflow(days_us, interval->time, &result))
		ereport(ERROR,
				(errcode(ERRCODE_INTERVAL_FIELD_OVERFLOW),
				 errmsg("%s is out of range", what)));
	return result;
}

Interval *
IntervalFromMs(int64 ms)
{
	Interval   *interval = palloc0(sizeof(Interval));

	interval->time = ms * 1000;
	return interval;
}

static int64
parse_interval(const char *what, const char *value)
{
	Interval   *interval =
		DatumGetIntervalP(DirectFunctionCall3(interval_in, CStringGetDatum(value),
											  ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1)));

	return IntervalToUs(what, interval);
}

int64
OptionIntervalUs(List *options, const char *name, int64 fallback_us)
{
	const char *value = OptionGet(options, name);

	return value ? parse_interval(name, value) : fallback_us;
}

int64
OptionInterval(List *options, const char *name, int64 fallback_ms)
{
	const char *value = OptionGet(options, name);

	return value ? parse_interval(name, value) / 1000 : fallback_ms;
}

int64
OptionInt(List *options, const char *name, int64 fallback)
{
	const char *value = OptionGet(options, name);

	return value ? pg_strtoint64(value) : fallback;
}

List *
OptionSplit(const char *value)
{
	List	   *result = NIL;
	char	   *copy = pstrdup(value);
	char	   *rest = NULL;

	for (char *word = strtok_r(copy, ",", &rest); word; word = strtok_r(NULL, ",", &rest))
	{
		char	   *end;

		while (isspace((unsigned char) *word))
			word++;
		end = word + strlen(word);
		while (end > word && isspace((unsigned char) end[-1]))
			*--end = '\0';
		if (*word)
			result = lappend(result, word);
	}
	return result;
}

char *
OptionWrapperName(ForeignServer *server)
{
	return GetForeignDataWrapper(server->fdwid)->fdwname;
}

/* ---- credentials ---- */

/* Options of a role's mapping on a server, or of PUBLIC's; NIL if there is none. */
static List *
mapping_options(Oid server, Oid role)
{
	HeapTuple	tuple;
	Datum		options;
	bool		isnull;
	List	   *result = NIL;

	tuple = SearchSysCache2(USERMAPPINGUSERSERVER, ObjectIdGetDatum(role), ObjectIdGetDatum(server));
	if (!HeapTupleIsValid(tuple))
		tuple = SearchSysCache2(USERMAPPINGUSERSERVER, ObjectIdGetDatum(InvalidOid),
								ObjectIdGetDatum(server));
	if (!HeapTupleIsValid(tuple))
		return NIL;
	options = SysCacheGetAttr(USERMAPPINGUSERSERVER, tuple, Anum_pg_user_mapping_umoptions, &isnull);
	if (!isnull)
		result = untransformRelOptions(options);
	ReleaseSysCache(tuple);
	return result;
}

void
OptionCheckMechanism(List *server_options)
{
	const char *protocol = OptionGet(server_options, "security_protocol");

	if (protocol && strncmp(protocol, "SASL_", 5) == 0 && !OptionGet(server_options, "sasl_mechanism"))
		ereport(ERROR,
				(errcode(ERRCODE_FDW_INVALID_OPTION_NAME),
				 errmsg("option \"%s\" is required", "sasl_mechanism"),
				 errdetail("The server's security_protocol is %s.", protocol)));
}

void
OptionCredentials(Oid server, Oid role, char **user, char **password, List **options)
{
	List	   *mapping = mapping_options(server, role);
	const char *value;

	value = OptionGet(mapping, "user");
	*user = value ? pstrdup(value) : NULL;
	*password = NULL;
	if ((value = OptionGet(mapping, "password")) != NULL)
		*password = value[0] ? pstrdup(value) : NULL;
	else if ((value = OptionGet(mapping, "password_file")) != NULL)
		*password = OptionSecret(value);
	if (options)
		*options = mapping;
}

/* ---- validation ---- */

static void
bad_value(const char *option, const char *value, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid value for option \"%s\": \"%s\"", option, value),
			 errhint("%s", hint)));
}

static void
check_choice(const char *option, const char *value, const char *choices)
{
	List	   *words;
	ListCell   *lc;
	char	   *list = pstrdup(choices);

	for (char *c = list; *c; c++)
		if (*c == ' ')
			*c = ',';
	words = OptionSplit(list);
	foreach(lc, words)
		if (strcmp(lfirst(lc), value) == 0)
		return;
	bad_value(option, value, psprintf("Valid values are: %s.", choices));
}

static void
check_ports(const char *option, const char *value)
{
	ListCell   *lc;
	List	   *ports = OptionSplit(value);

	foreach(lc, ports)
	{
		char	   *end;
		long		port = strtol(lfirst(lc), &end, 10);

		if (*end || port < 1 || port > 65535)
			bad_value(option, value, "A port is a number from 1 to 65535; one for all hosts, or one for each, separated by commas.");
	}
	if (ports == NIL)
		bad_value(option, value, "Give at least one port.");
}

/* host:port only: the library would take a protocol before it, and drop what it does not understand. */
static void
check_brokers(const char *option, const char *value)
{
	ListCell   *lc;
	List	   *brokers = OptionSplit(value);

	foreach(lc, brokers)
	{
		char	   *broker = lfirst(lc);
		char	   *colon = strrchr(broker, ':');
		bool		bracketed = broker[0] == '[';
		size_t		host = strspn(broker, bracketed ? "[]0123456789abcdefABCDEF.:%" :
								  "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ._-");
		char	   *end;
		long		port;

		if (colon == NULL || colon == broker || broker + host < colon ||
			(bracketed && colon[-1] != ']'))
			bad_value(option, value, BROKERS_HINT);
		port = strtol(colon + 1, &end, 10);
		if (strspn(colon + 1, "0123456789") == 0 || *end || port < 1 || port > 65535)
			bad_value(option, value, BROKERS_HINT);
	}
	if (brokers == NIL)
		bad_value(option, value, BROKERS_HINT);
}

static void
check_path(const char *option, const char *value)
{
	size_t		len = strlen(value);

	if (len == 0 || value[0] == '.' || value[len - 1] == '.' || strstr(value, ".."))
		bad_value(option, value, "A path is field names separated by single dots, such as \"sensor.temp\".");
}

static void
check_metadata(const char *wrapper, const char *value)
{
	static const char *const kinds[] = {
		"topic", "partition", "offset", "timestamp", "key", "value", "headers"
	};

	for (int i = 0; i < lengthof(kinds); i++)
		if (strcmp(kinds[i], value) == 0)
			return;
	if (strncmp(value, "header:", 7) == 0 && value[7])
		return;
	if (strcmp(wrapper, AMQP_WRAPPER) == 0 &&
		(strcmp(value, "message_id") == 0 || strcmp(value, "correlation_id") == 0 ||
		 strcmp(value, "subject") == 0 || (strncmp(value, "property:", 9) == 0 && value[9])))
		return;
	bad_value("metadata", value,
			  strcmp(wrapper, AMQP_WRAPPER) == 0 ?
			  "Valid values are: topic, partition, offset, timestamp, key, value, headers, header:NAME, message_id, correlation_id, subject, property:NAME." :
			  "Valid values are: topic, partition, offset, timestamp, key, value, headers, header:NAME.");
}

static void
check_value(const char *wrapper, const OptionRule *rule, const char *value)
{
	bool		dummy;

	switch (rule->type)
	{
		case OPT_TEXT:
			break;
		case OPT_NAME:
			if (value[0] == '\0')
				bad_value(rule->name, value, "It may not be empty.");
			break;
		case OPT_BOOL:
			if (!parse_bool(value, &dummy))
				bad_value(rule->name, value, "Valid values are: true, false.");
			break;
		case OPT_INTERVAL:
			if (parse_interval(rule->name, value) < 0)
				bad_value(rule->name, value, "It may not be negative.");
			break;
		case OPT_COUNT:
			if (pg_strtoint64(value) <= 0)
				bad_value(rule->name, value, "It must be a whole number greater than zero.");
			break;
		case OPT_PORTS:
			check_ports(rule->name, value);
			break;
		case OPT_BROKERS:
			check_brokers(rule->name, value);
			break;
		case OPT_CHOICE:
			check_choice(rule->name, value, rule->choices);
			break;
		case OPT_FILE:
			OptionCheckFile(rule->name, value);
			break;
		case OPT_PATH:
			check_path(rule->name, value);
			break;
		case OPT_METADATA:
			check_metadata(wrapper, value);
			break;
	}
}

static const OptionRule *
find_rule(const char *wrapper, Oid catalog, const char *name)
{
	for (int i = 0; i < lengthof(rules); i++)
		if (rules[i].catalog == catalog && strcmp(rules[i].wrapper, wrapper) == 0 &&
			strcmp(rules[i].name, name) == 0)
			return &rules[i];
	return NULL;
}

static void
unknown_option(const char *wrapper, Oid catalog, const char *name, const OptionExtras *extras)
{
	StringInfoData valid;

	initStringInfo(&valid);
	for (int i = 0; i < lengthof(rules); i++)
		if (rules[i].catalog == catalog && strcmp(rules[i].wrapper, wrapper) == 0)
			appendStringInfo(&valid, "%s%s", valid.len ? ", " : "", rules[i].name);
	if (extras && catalog == ForeignServerRelationId)
		for (const char *const *extra = extras->names(); *extra; extra++)
		{
			size_t		start = valid.len;

			appendStringInfo(&valid, "%s%s", valid.len ? ", " : "", *extra);
			for (char *c = valid.data + start; *c; c++)
				if (*c == '.')
					*c = '_';
		}
	ereport(ERROR,
			(errcode(ERRCODE_FDW_INVALID_OPTION_NAME),
			 errmsg("invalid option \"%s\"", name),
			 valid.len ? errhint("Valid options in this context are: %s.", valid.data) :
			 errhint("There are no valid options in this context.")));
}

void
OptionsValidate(const char *wrapper, List *options, Oid catalog, const OptionExtras *extras)
{
	ListCell   *lc;

	foreach(lc, options)
	{
		DefElem    *def = lfirst_node(DefElem, lc);
		const OptionRule *rule = find_rule(wrapper, catalog, def->defname);
		char		errbuf[256] = "";

		if (rule)
			check_value(wrapper, rule, defGetString(def));
		else if (extras && catalog == ForeignServerRelationId && extras->allowed(def->defname))
		{
			if (!extras->check(def->defname, defGetString(def), errbuf, sizeof(errbuf)))
				ereport(ERROR,
						(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						 errmsg("invalid value for option \"%s\": \"%s\"", def->defname, defGetString(def)),
						 errdetail("%s", errbuf)));
		}
		else
			unknown_option(wrapper, catalog, def->defname, extras);
	}

	for (int i = 0; i < lengthof(rules); i++)
		if (rules[i].required && rules[i].catalog == catalog &&
			strcmp(rules[i].wrapper, wrapper) == 0 && !OptionGet(options, rules[i].name))
			ereport(ERROR,
					(errcode(ERRCODE_FDW_INVALID_OPTION_NAME),
					 errmsg("option \"%s\" is required", rules[i].name)));

	if (catalog == UserMappingRelationId && OptionGet(options, "password") &&
		OptionGet(options, "password_file"))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("options \"password\" and \"password_file\" exclude each other")));
	if (catalog == AttributeRelationId && OptionGet(options, "path") && OptionGet(options, "metadata"))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("options \"path\" and \"metadata\" exclude each other")));
	if (catalog == ForeignServerRelationId && strcmp(wrapper, KAFKA_WRAPPER) == 0 &&
		!OptionGet(options, "bootstrap_servers") &&
		(!OptionGet(options, "transport") || strcmp(OptionGet(options, "transport"), "table") != 0))
		ereport(ERROR,
				(errcode(ERRCODE_FDW_INVALID_OPTION_NAME),
				 errmsg("option \"%s\" is required", "bootstrap_servers")));
	if (catalog == ForeignServerRelationId && strcmp(wrapper, KAFKA_WRAPPER) == 0)
		OptionCheckMechanism(options);
}
