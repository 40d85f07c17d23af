/*
 * assertion.h
 *		Assertions of a client library that fail: the end of what it was doing, not of the server.
 */
#ifndef HYBRIDIOT_ASSERTION_H
#define HYBRIDIOT_ASSERTION_H

#include "core/hybridiot.h"

/*
 * Do work(argument); false if an assertion of a library failed in it. What the library was doing
 * then is of no more use, and may be asked for nothing but to be freed, in the same way. Errors of
 * ours pass through. Not nested; for the main thread alone.
 */
extern bool AssertionSurvive(void (*work) (void *argument), void *argument);

#endif							/* HYBRIDIOT_ASSERTION_H */
