/*
 * clock.h
 *		The clock that nobody can set back, for time-outs.
 */
#ifndef HYBRIDIOT_CLOCK_H
#define HYBRIDIOT_CLOCK_H

#include <time.h>

/* Milliseconds of the monotonic clock; only differences mean something. */
static inline int64
ClockMonotonicMs(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64) now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static inline int64
ClockMonotonicUs(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64) now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

#endif							/* HYBRIDIOT_CLOCK_H */
