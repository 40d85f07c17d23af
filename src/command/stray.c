/*
 * stray.c
 *		Replies and outcomes that change nothing: which of them are kept as events of their own.
 *
 * A peer could make them without end. So many are kept one by one, and then one a
 * second; the rest is counted.
 */
#include "postgres.h"

#include "command/worker.h"
#include "core/clock.h"

#define STRAY_BURST 1000

static int64 full_ms = 0;		/* when STRAY_BURST of them may come again */
static uint64 left_out = 0;

bool
StrayKeep(void)
{
	int64		now = ClockMonotonicMs();

	full_ms = Max(full_ms, now);
	if (full_ms - now >= STRAY_BURST * INT64CONST(1000))
	{
		left_out++;
		return false;
	}
	full_ms += 1000;
	return true;
}

uint64
StrayTakeCount(void)
{
	uint64		n = left_out;

	left_out = 0;
	return n;
}
