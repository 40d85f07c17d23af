/*
 * option_file.c
 *		Files that options name: who may name which, and how they are opened.
 *
 * Superusers may name any file, everybody else those in hybridiot.secret_directory: that is checked when
 * an option is set. When a file is used, a path in that directory may not lead out of it by a
 * link, and only a regular file of a sensible size is taken, so that no pipe, device or directory can
 * make anybody wait. What is wrong with a file can be mended without SQL, so those errors are of class 58: workers
 * try again. Messages name a file as its option does, never with the directory, which is not for all to see.
 */
#include "postgres.h"

#include <fcntl.h>
#include <limits.h>
#include <sys/stat.h>
#include <unistd.h>

#include "miscadmin.h"
#include "storage/fd.h"

#include "core/options.h"

#define MAX_SECRET 4096			/* bytes of a secret */
#define MAX_FILE (1024 * 1024)	/* bytes of a file with certificates */

/* The path that an option's value stands for: relative ones lie in secret_directory. */
static char *
option_path(const char *value)
{
	char	   *result;

	if (is_absolute_path(value))
		result = pstrdup(value);
	else
	{
		if (hybridiot_secret_directory == NULL || hybridiot_secret_directory[0] == '\0')
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("file \"%s\" is named by a relative path, but there is no directory for it", value),
					 errhint("Set hybridiot.secret_directory, or give an absolute path.")));
		result = psprintf("%s/%s", hybridiot_secret_directory, value);
	}
	canonicalize_path(result);
	return result;
}

/* Does a path lie below the directory, as it is written? */
static bool
lies_below(const char *directory, const char *path)
{
	char	   *copy = pstrdup(directory ? directory : "");

	canonicalize_path(copy);
	return copy[0] && !path_contains_parent_reference(path) &&
		path_is_prefix_of_path(copy, path) && strcmp(copy, path) != 0;
}

void
OptionCheckFile(const char *option, const char *value)
{
	if (value[0] == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid value for option \"%s\": \"%s\"", option, value),
				 errhint("It must name a file.")));
	if (lies_below(hybridiot_secret_directory, option_path(value)) || superuser())
		return;
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("permission denied to name a file in option \"%s\"", option),
			 errhint("Only superusers may name files outside hybridiot.secret_directory.")));
}

static void
unusable(const char *value, const char *why)
{
	ereport(ERROR,
			(errcode(ERRCODE_SYSTEM_ERROR),
			 errmsg("file \"%s\" cannot be used: %s", value, why)));
}

static void
not_opened(const char *value)
{
	bool		missing = errno == ENOENT;

	ereport(ERROR,
			(errcode(missing ? ERRCODE_UNDEFINED_FILE : ERRCODE_IO_ERROR),
			 errmsg("could not open file \"%s\": %m", value)));
}

/* Open a file for reading, checked; *path: where it really is. */
static int
open_checked(const char *value, char *path)
{
	char	   *named = option_path(value);
	char		directory[PATH_MAX];
	struct stat status;
	int			fd;

	if (realpath(named, path) == NULL)
		not_opened(value);
	if (lies_below(hybridiot_secret_directory, named) &&
		(realpath(hybridiot_secret_directory, directory) == NULL || !lies_below(directory, path)))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("file \"%s\" leads out of hybridiot.secret_directory", value)));

	/* A pipe would keep us waiting for its writer. */
	fd = OpenTransientFile(path, O_RDONLY | O_NONBLOCK | PG_BINARY);
	if (fd < 0)
		not_opened(value);
	if (fstat(fd, &status) != 0)
		not_opened(value);
	if (!S_ISREG(status.st_mode))
		unusable(value, "it is not a regular file");
	if (status.st_size > MAX_FILE)
		unusable(value, "it is larger than 1 MB");
	return fd;
}

char *
OptionFile(const char *value)
{
	char		path[PATH_MAX];

	CloseTransientFile(open_checked(value, path));
	return pstrdup(path);
}

char *
OptionSecret(const char *value)
{
	char		path[PATH_MAX];
	int			fd = open_checked(value, path);
	char	   *line = palloc0(MAX_SECRET + 1);
	size_t		len = 0;
	ssize_t		got = 0;
	char	   *end;

	while (len <= MAX_SECRET && (got = read(fd, line + len, MAX_SECRET + 1 - len)) > 0)
		len += got;
	if (got < 0)
		ereport(ERROR,
				(errcode(ERRCODE_IO_ERROR), errmsg("could not read file \"%s\": %m", value)));
	CloseTransientFile(fd);

	end = memchr(line, '\n', len);
	if (end == NULL && len > MAX_SECRET)
		unusable(value, "its first line is too long");
	len = end ? end - line : len;
	if (len > 0 && line[len - 1] == '\r')
		len--;
	explicit_bzero(line + len, MAX_SECRET + 1 - len);
	if (strlen(line) != len)
		unusable(value, "its first line holds a zero byte");
	if (len == 0)
		unusable(value, "its first line is empty");
	return line;
}
