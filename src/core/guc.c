/*
 * guc.c
 *		Every setting.
 */
#include "postgres.h"

#include <limits.h>

#include "miscadmin.h"
#include "utils/guc.h"

#include "core/hybridiot.h"
#include "core/network.h"

bool		hybridiot_enabled = true;
bool		hybridiot_resume_after_promotion = false;
bool		hybridiot_bulk_insert = true;
int			hybridiot_max_workers = 32;
int			hybridiot_call_slots = 128;
int			hybridiot_max_calls_per_role = 32;
char	   *hybridiot_command_server = NULL;
int			hybridiot_command_retention = 30 * 24 * 3600;
int			hybridiot_max_reply_size = 1024;
int			hybridiot_max_record_size = 16 * 1024;
char	   *hybridiot_broker_networks = NULL;
char	   *hybridiot_secret_directory = NULL;

/* A network that is not understood must not become "any". */
static bool
check_networks(char **value, void **extra, GucSource source)
{
	char		bad[64];
	NetworkList *list = NetworkListParse(*value, bad, sizeof(bad));

	NetworkListFree(list);
	if (list == NULL && bad[0])
		GUC_check_errdetail("\"%s\" is not a network: an address, a slash and the number of bits that count, with no others set.", bad);
	return list != NULL;
}

/* A relative one would move with the server's working directory. */
static bool
check_directory(char **value, void **extra, GucSource source)
{
	if ((*value)[0] == '\0' || is_absolute_path(*value))
		return true;
	GUC_check_errdetail("It must be an absolute path.");
	return false;
}

/*
 * Define all settings. Those that size shared memory exist only when the
 * library is preloaded: later there is nothing left to size.
 */
void
GucDefine(void)
{
	DefineCustomBoolVariable("hybridiot.enabled",
							 "Runs the workers of this database.",
							 "Off stops all of them; also by ALTER DATABASE.",
							 &hybridiot_enabled, true, PGC_SUSET, 0,
							 NULL, NULL, NULL);

	DefineCustomBoolVariable("hybridiot.resume_after_promotion",
							 "Lets pipelines that command devices go on by themselves when a standby is promoted.",
							 "Only for clusters whose manager makes sure that the old primary is gone.",
							 &hybridiot_resume_after_promotion, false, PGC_SUSET, 0,
							 NULL, NULL, NULL);

	DefineCustomBoolVariable("hybridiot.bulk_insert",
							 "Writes the rows of a plain INSERT ... SELECT of a pipeline many at once.",
							 "Off leaves all writing to the executor: the rows are the same, and cost more.",
							 &hybridiot_bulk_insert, true, PGC_USERSET, 0,
							 NULL, NULL, NULL);

	if (process_shared_preload_libraries_in_progress)
	{
		DefineCustomIntVariable("hybridiot.max_workers",
								"Sets the number of workers of all databases together.",
								"Each needs one of max_worker_processes too.",
								&hybridiot_max_workers, 32, 1, 1024,
								PGC_POSTMASTER, 0, NULL, NULL, NULL);
		DefineCustomIntVariable("hybridiot.call_slots",
								"Sets how many synchronous calls may be in flight.",
								"As many commands again may be in the course of being cancelled or resolved.",
								&hybridiot_call_slots, 128, 1, 8192,
								PGC_POSTMASTER, 0, NULL, NULL, NULL);
	}

	DefineCustomIntVariable("hybridiot.max_calls_per_role",
							"Sets how many synchronous calls of one role may be in flight.",
							"As many commands again may be in the course of being cancelled or resolved by it.",
							&hybridiot_max_calls_per_role, 32, 1, 8192,
							PGC_SUSET, 0, NULL, NULL, NULL);
	DefineCustomStringVariable("hybridiot.command_server",
							   "Sets the server that commands go through when none is named.",
							   NULL,
							   &hybridiot_command_server, "",
							   PGC_USERSET, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("hybridiot.command_retention",
							"Sets how long finished commands and their events are kept.",
							NULL,
							&hybridiot_command_retention, 30 * 24 * 3600, 60, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomIntVariable("hybridiot.max_reply_size",
							"Sets the largest reply that is taken from a device.",
							NULL,
							&hybridiot_max_reply_size, 1024, 1, 64 * 1024,
							PGC_SUSET, GUC_UNIT_KB, NULL, NULL, NULL);
	DefineCustomIntVariable("hybridiot.max_record_size",
							"Sets the largest record that is taken from a topic.",
							NULL,
							&hybridiot_max_record_size, 16 * 1024, 1, 512 * 1024,
							PGC_SUSET, GUC_UNIT_KB, NULL, NULL, NULL);
	DefineCustomStringVariable("hybridiot.broker_networks",
							   "Sets the networks that brokers must be in.",
							   "A list of CIDR blocks, for addresses that brokers advertise, too. Empty: any.",
							   &hybridiot_broker_networks, "",
							   PGC_SUSET, 0, check_networks, NULL, NULL);
	DefineCustomStringVariable("hybridiot.secret_directory",
							   "Sets the directory that password files of roles without superuser must lie in.",
							   "Empty: only superusers may name files.",
							   &hybridiot_secret_directory, "",
							   PGC_SUSET, GUC_SUPERUSER_ONLY, check_directory, NULL, NULL);

	MarkGUCPrefixReserved("hybridiot");
}
