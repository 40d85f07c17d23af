/*
 * dial.h
 *		From a list of hosts to a connected, non-blocking socket, without ever blocking.
 *
 * Names are resolved by a detached helper thread (getaddrinfo has no other way
 * of not blocking), which touches nothing of PostgreSQL and has all signals
 * blocked. A Dial belongs to the main thread; nothing here throws but for
 * lack of memory.
 */
#ifndef HYBRIDIOT_DIAL_H
#define HYBRIDIOT_DIAL_H

#include "core/hybridiot.h"

typedef struct DialTarget
{
	const char *host;
	int			port;
} DialTarget;

typedef struct Dial Dial;

typedef enum DialResult
{
	DIAL_BUSY,					/* wait for DialEvents() on DialFd(), then DialProceed() */
	DIAL_DONE,					/* DialTakeFd() hands the socket over */
	DIAL_FAILED					/* DialError() says why */
} DialResult;

/*
 * Begin: the targets are tried in order from targets[first] on, once around;
 * those with a name that has several addresses with each of them, but for those that are not in
 * hybridiot.broker_networks. The strings are copied.
 */
extern Dial *DialStart(const DialTarget *targets, int ntargets, int first);
/* Go on after the descriptor is ready. */
extern DialResult DialProceed(Dial *dial);
extern int	DialFd(const Dial *dial);
/* WL_SOCKET_READABLE or WL_SOCKET_CONNECTED. */
extern uint32 DialEvents(const Dial *dial);
/* The target that was reached, or is being tried. */
extern int	DialTargetIndex(const Dial *dial);
extern int	DialTakeFd(Dial *dial);
extern const char *DialError(const Dial *dial);
/* NULL is allowed. Closes a socket that was not taken; a helper that still resolves ends by itself. */
extern void DialFree(Dial *dial);

#endif							/* HYBRIDIOT_DIAL_H */
