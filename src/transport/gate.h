/*
 * gate.h
 *		Connections that a client library's threads make: to which addresses, and which were refused.
 *
 * The gate stands between the library and connect(). GateConnect() and GateNoteCertificate() are for any thread, the
 * rest is for the main thread; nothing here throws or touches PostgreSQL.
 */
#ifndef HYBRIDIOT_GATE_H
#define HYBRIDIOT_GATE_H

#include <sys/socket.h>

#include "core/hybridiot.h"

typedef struct Gate Gate;

/* Let through what lies in these networks, as hybridiot.broker_networks says them. malloced; NULL: out of memory. */
extern Gate *GateCreate(const char *networks);
/* When no thread can come any more. NULL is allowed. */
extern void GateFree(Gate *gate);

/*
 * connect(), or not. Returns 0, also when it is under way, or an errno; EACCES without a packet sent if
 * the address lies outside. peer: who is meant, host:port.
 */
extern int	GateConnect(Gate *gate, int fd, const struct sockaddr *address, socklen_t len,
						const char *peer);

/*
 * What the verification of a peer's certificate found: an error of OpenSSL's, 0 if none. Returns whether the
 * certificate is good, which is for OpenSSL alone to say; here it is only noted.
 */
extern bool GateNoteCertificate(Gate *gate, int error, const char *peer);
/* What was wrong with the last certificate that was refused; false if none was. */
extern bool GateBadCertificate(Gate *gate, char *text, size_t len);

/* OpenSSL's X509_V_ERR_... as words that follow "the certificate"; NULL for what is rare. Any thread. */
extern const char *CertificateProblem(int error);

/* Is somebody kept out of whose addresses none was let in for a while? Then says who. */
extern bool GateKeepsOut(Gate *gate, char *text, size_t len);

#endif							/* HYBRIDIOT_GATE_H */
