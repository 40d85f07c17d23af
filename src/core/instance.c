/*
 * instance.c
 *		Which server is this: an id in a file that base backups leave out.
 *
 * A base backup that is started without recovery has the system id, the timeline and the
 * databases of its original. What it has not are the files in pg_stat_tmp: PostgreSQL itself keeps
 * nothing there since 15 and removes nothing, at start, crash or stop, but backups and pg_rewind leave out what
 * extensions put there. So a server whose file is not there, or does not say what pipelines remember, is not the
 * one that they ran on.
 *
 * The postmaster reads the file, or makes it, before any process can ask. If it cannot, the
 * server starts all the same, the launcher tries again, and no worker starts until it is done.
 */
#include "postgres.h"

#include <unistd.h>

#include "common/string.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/fd.h"

#include "core/instance.h"

#define INSTANCE_FILE PG_STAT_TMP_DIR "/hybridiot.instance"

/* Is this what uuid_out() writes? */
static bool
is_uuid(const char *id)
{
	if (strlen(id) != INSTANCE_ID_LEN)
		return false;
	for (int i = 0; i < INSTANCE_ID_LEN; i++)
		if ((i == 8 || i == 13 || i == 18 || i == 23) ? id[i] != '-' : strchr("0123456789abcdef", id[i]) == NULL)
			return false;
	return true;
}

/* True: id is what the file says. False: there is none that says anything, or *failed. */
static bool
read_file(char *id, bool *failed)
{
	FILE	   *file = AllocateFile(INSTANCE_FILE, "r");
	char		line[INSTANCE_ID_LEN + 2];
	bool		read;

	*failed = false;
	if (file == NULL)
	{
		if (errno != ENOENT)
		{
			*failed = true;
			ereport(LOG,
					(errcode_for_file_access(), errmsg("could not open file \"%s\": %m", INSTANCE_FILE)));
		}
		return false;
	}
	read = fgets(line, sizeof(line), file) != NULL;
	*failed = ferror(file) != 0;
	if (*failed)
		ereport(LOG,
				(errcode_for_file_access(), errmsg("could not read file \"%s\": %m", INSTANCE_FILE)));
	FreeFile(file);
	if (*failed || !read)
		return false;
	(void) pg_strip_crlf(line);
	if (!is_uuid(line))
		return false;
	strcpy(id, line);
	return true;
}

static void
make_id(char *id)
{
	uint8		random[16];

	if (!pg_strong_random(random, sizeof(random)))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR), errmsg("could not generate random values")));
	random[6] = (random[6] & 0x0f) | 0x40;
	random[8] = (random[8] & 0x3f) | 0x80;
	for (int i = 0; i < sizeof(random); i++)
		id += sprintf(id, i == 4 || i == 6 || i == 8 || i == 10 ? "-%02x" : "%02x", random[i]);
}

/* On disk before anybody remembers it. */
static bool
write_file(const char *id)
{
	const char *temporary = INSTANCE_FILE ".tmp";
	FILE	   *file = AllocateFile(temporary, "w");
	bool		written;

	written = file && fprintf(file, "%s\n", id) > 0;
	if (file && FreeFile(file) != 0)
		written = false;
	if (!written)
	{
		ereport(LOG,
				(errcode_for_file_access(), errmsg("could not write file \"%s\": %m", temporary)));
		if (file)
			(void) unlink(temporary);
		return false;
	}
	return durable_rename(temporary, INSTANCE_FILE, LOG) == 0;
}

bool
InstanceLoad(char *id)
{
	char		found[INSTANCE_ID_LEN + 1];
	bool		failed;

	if (!read_file(found, &failed))
	{
		if (failed)
			return false;
		make_id(found);
		if (!write_file(found))
			return false;
	}
	strcpy(id, found);
	return true;
}
