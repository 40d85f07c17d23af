/*
 * clock.c
 *		A library to preload: the system's clock is off by what the file $CLOCK_OFFSET says, in seconds. The monotonic
 *		clock is as it is.
 *
 * (libfaketime leaves out what is forked in a signal handler, as PostgreSQL 15 does with its workers.)
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile long *offset;

__attribute__((constructor))
static void
open_file(void)
{
	const char *name = getenv("CLOCK_OFFSET");
	int			file = name ? open(name, O_RDONLY) : -1;
	void	   *address;

	if (file < 0)
		return;
	address = mmap(NULL, sizeof(long), PROT_READ, MAP_SHARED, file, 0);
	if (address != MAP_FAILED)
		offset = address;
	close(file);
}

int
clock_gettime(clockid_t clock, struct timespec *now)
{
	int			result = (int) syscall(SYS_clock_gettime, clock, now);

	if (result == 0 && offset && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
		now->tv_sec += *offset;
	return result;
}

int
gettimeofday(struct timeval *now, void *zone)
{
	struct timespec precise;

	clock_gettime(CLOCK_REALTIME, &precise);
	now->tv_sec = precise.tv_sec;
	now->tv_usec = precise.tv_nsec / 1000;
	return 0;
}

time_t
time(time_t *seconds)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	if (seconds)
		*seconds = now.tv_sec;
	return now.tv_sec;
}
