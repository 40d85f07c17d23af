/*
 * network.h
 *		Which networks brokers may be in: hybridiot.broker_networks as a list of CIDR blocks.
 *
 * Plain C: a list may be asked by threads of a client library. It never changes; who made it
 * frees it.
 */
#ifndef HYBRIDIOT_NETWORK_H
#define HYBRIDIOT_NETWORK_H

#include <sys/socket.h>

typedef struct NetworkList NetworkList;

/*
 * Parse a list such as "10.0.0.0/8, ::1/128"; an address alone is a block of one. malloced. NULL: out
 * of memory, or an element that is none, which is then copied to bad.
 */
extern NetworkList *NetworkListParse(const char *text, char *bad, size_t badlen);
/* NULL is allowed. */
extern void NetworkListFree(NetworkList *list);
/* Does the address lie in one of the blocks? Any does if there are none. Thread-safe. */
extern bool NetworkListHolds(const NetworkList *list, const struct sockaddr *address);
/* An address as text, without its port. Thread-safe. */
extern void NetworkAddressText(const struct sockaddr *address, char *text, size_t len);

#endif							/* HYBRIDIOT_NETWORK_H */
