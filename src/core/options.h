/*
 * options.h
 *		Options of servers, user mappings, foreign tables and columns.
 */
#ifndef HYBRIDIOT_OPTIONS_H
#define HYBRIDIOT_OPTIONS_H

#include "foreign/foreign.h"

#include "core/hybridiot.h"

#define KAFKA_WRAPPER "hybridiot_kafka"
#define AMQP_WRAPPER "hybridiot_amqp"

/* Value of an option in a list of DefElem; NULL if it is not there. */
extern const char *OptionGet(List *options, const char *name);
extern bool OptionBool(List *options, const char *name, bool fallback);
/* An interval option in microseconds or milliseconds; the validator has seen it. */
extern int64 OptionIntervalUs(List *options, const char *name, int64 fallback_us);
extern int64 OptionInterval(List *options, const char *name, int64 fallback_ms);
extern int64 OptionInt(List *options, const char *name, int64 fallback);

/* Elements of a comma-separated list, trimmed; palloc'd. */
extern List *OptionSplit(const char *value);

/* An interval given by the user in microseconds: days are 24 hours, months are refused (22023). */
extern int64 IntervalToUs(const char *what, const Interval *interval);
/* Milliseconds as an interval of hours, minutes, seconds; palloc'd. */
extern Interval *IntervalFromMs(int64 ms);

/* Name of the wrapper a server belongs to. */
extern char *OptionWrapperName(ForeignServer *server);

/*
 * User and password of a role on a server, from its user mapping (or PUBLIC's);
 * the password from password or from password_file (read now). NULLs where
 * there is none, or an empty one. palloc'd; explicit_bzero the password when done.
 */
extern void OptionCredentials(Oid server, Oid role, char **user, char **password,
							  List **mapping_options);

/* SASL names its mechanism: the library's own choice would be Kerberos, which runs commands. ereport HV00D if it is missing. */
extern void OptionCheckMechanism(List *server_options);

/* ---- option_file.c ---- */

/* May the current user name this file in this option? ereport 42501 if not, 22023 if it is none. */
extern void OptionCheckFile(const char *option, const char *value);
/*
 * The path of a file that can be read now; relative values lie in secret_directory. ereport 42501 if it leads out of
 * that directory, 58xxx if it cannot be read, is no regular file or too large.
 */
extern char *OptionFile(const char *value);
/* First line of a secret's file, palloc'd; likewise, and 58000 if there is none. */
extern char *OptionSecret(const char *value);

/* What a wrapper takes beyond the fixed options: the client library's own properties. */
typedef struct OptionExtras
{
	bool		(*allowed) (const char *name);	/* name with underscores */
	bool		(*check) (const char *name, const char *value, char *errbuf, size_t errlen);
	const char *const *(*names) (void); /* NULL-terminated, for HINTs */
} OptionExtras;

/*
 * Check untransformed options of an object of the wrapper. catalog: the catalog's OID, as
 * validators get it. ereport HV00D (unknown), 22023 (value), 42501 (file).
 */
extern void OptionsValidate(const char *wrapper, List *options, Oid catalog,
							const OptionExtras *extras);

#endif							/* HYBRIDIOT_OPTIONS_H */
