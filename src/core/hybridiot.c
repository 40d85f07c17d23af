/*
 * hybridiot.c
 *		Loading the library: settings, shared memory, hooks, launcher. Nothing else.
 */
#include "postgres.h"

#include "fmgr.h"
#include "miscadmin.h"

#include "core/compat.h"
#include "core/hooks.h"
#include "core/hybridiot.h"
#include "core/launcher.h"
#include "core/shmem.h"

PG_MODULE_MAGIC_EXT(.name = "hybridiot", .version = HYBRIDIOT_VERSION);

void		_PG_init(void);

void
_PG_init(void)
{
	GucDefine();
	HooksInstall();

	if (!process_shared_preload_libraries_in_progress)
		return;

	ShmemInstall();

	/* pg_upgrade must find a quiet cluster. */
	if (!IsBinaryUpgrade)
		LauncherRegister();
}
