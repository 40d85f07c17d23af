/*
 * grant.h
 *		Device grants: which devices of a server a role may command.
 */
#ifndef HYBRIDIOT_GRANT_H
#define HYBRIDIOT_GRANT_H

#include "foreign/foreign.h"

/* Raise 42501 if the server has device grants, and none for the current user that matches the device. */
extern void GrantCheck(const ForeignServer *server, const char *device);

#endif							/* HYBRIDIOT_GRANT_H */
