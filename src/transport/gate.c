/*
 * gate.c
 *		Connections that a client library's threads make: to which addresses, and which were refused.
 *
 * A refusal is not the end of the world: a name may have another address, that lies inside, and a
 * broker that does not lead what we read is not needed. So refusals are noted per peer. One
 * that lasts is told to the main thread; one that is not repeated is forgotten.
 */
#include "postgres.h"

#include <pthread.h>

#include "core/clock.h"
#include "core/network.h"
#include "transport/gate.h"

#define MAX_REFUSALS 16
#define TELL_AFTER_MS 1500		/* until then, another of its addresses may do */
#define FORGET_AFTER_MS 30000	/* longer than the library waits between two attempts */

typedef struct Refusal
{
	char		peer[256];		/* "": free */
	char		address[64];
	int64		first_at;		/* monotonic ms */
	int64		last_at;
} Refusal;

struct Gate
{
	NetworkList *networks;
	pthread_mutex_t mutex;		/* for what follows */
	Refusal		refusals[MAX_REFUSALS];
	int			certificate_error;	/* OpenSSL's; 0: none to be told */
	char		certificate_peer[256];
};

Gate *
GateCreate(const char *networks)
{
	Gate	   *gate = calloc(1, sizeof(Gate));
	char		bad[64];

	if (gate == NULL)
		return NULL;
	/* The setting was checked when it was set. */
	gate->networks = NetworkListParse(networks, bad, sizeof(bad));
	if (gate->networks == NULL)
	{
		free(gate);
		return NULL;
	}
	pthread_mutex_init(&gate->mutex, NULL);
	return gate;
}

void
GateFree(Gate *gate)
{
	if (gate == NULL)
		return;
	NetworkListFree(gate->networks);
	pthread_mutex_destroy(&gate->mutex);
	free(gate);
}

/* Where this peer's refusal is, or would be: in place of the one that was repeated least recently. */
static Refusal *
find_refusal(Gate *gate, const char *peer)
{
	Refusal    *place = &gate->refusals[0];

	for (int i = 0; i < MAX_REFUSALS; i++)
	{
		Refusal    *refusal = &gate->refusals[i];

		if (strcmp(refusal->peer, peer) == 0)
			return refusal;
		if (refusal->last_at < place->last_at)
			place = refusal;
	}
	return place;
}

static void
note_attempt(Gate *gate, const char *name, const struct sockaddr *address, bool let_in)
{
	int64		now = ClockMonotonicMs();
	char		peer[sizeof(gate->refusals[0].peer)];
	Refusal    *refusal;
	bool		known;

	strlcpy(peer, name, sizeof(peer));
	pthread_mutex_lock(&gate->mutex);
	refusal = find_refusal(gate, peer);
	known = strcmp(refusal->peer, peer) == 0;
	if (let_in && known)
		memset(refusal, 0, sizeof(Refusal));
	else if (!let_in)
	{
		if (!known || now - refusal->last_at > FORGET_AFTER_MS)
			refusal->first_at = now;
		refusal->last_at = now;
		strlcpy(refusal->peer, peer, sizeof(refusal->peer));
		NetworkAddressText(address, refusal->address, sizeof(refusal->address));
	}
	pthread_mutex_unlock(&gate->mutex);
}

int
GateConnect(Gate *gate, int fd, const struct sockaddr *address, socklen_t len, const char *peer)
{
	bool		let_in = NetworkListHolds(gate->networks, address);

	note_attempt(gate, peer, address, let_in);
	if (!let_in)
		return EACCES;
	return connect(fd, address, len) == 0 || errno == EINPROGRESS ? 0 : errno;
}

bool
GateNoteCertificate(Gate *gate, int error, const char *peer)
{
	if (error == 0)
		return true;
	pthread_mutex_lock(&gate->mutex);
	gate->certificate_error = error;
	strlcpy(gate->certificate_peer, peer, sizeof(gate->certificate_peer));
	pthread_mutex_unlock(&gate->mutex);
	return false;
}

const char *
CertificateProblem(int error)
{
	switch (error)
	{
		case 9:
			return "is not valid yet";
		case 10:
			return "has expired";
		case 18:
			return "signed itself, and is not in ssl_ca";
		case 19:
		case 20:
		case 21:
			return "is not of an authority in ssl_ca";
		case 62:
		case 64:
			return "is for another host";
		default:
			return NULL;
	}
}

bool
GateBadCertificate(Gate *gate, char *text, size_t len)
{
	int			error;

	pthread_mutex_lock(&gate->mutex);
	error = gate->certificate_error;
	if (error != 0 && CertificateProblem(error))
		snprintf(text, len, "the certificate of broker %s %s", gate->certificate_peer,
				 CertificateProblem(error));
	else if (error != 0)
		snprintf(text, len, "the certificate of broker %s is not good: X509 error %d",
				 gate->certificate_peer, error);
	pthread_mutex_unlock(&gate->mutex);
	return error != 0;
}

bool
GateKeepsOut(Gate *gate, char *text, size_t len)
{
	int64		now = ClockMonotonicMs();
	bool		any = false;

	pthread_mutex_lock(&gate->mutex);
	for (int i = 0; i < MAX_REFUSALS && !any; i++)
	{
		Refusal    *refusal = &gate->refusals[i];

		any = refusal->peer[0] && now - refusal->first_at >= TELL_AFTER_MS &&
			now - refusal->last_at <= FORGET_AFTER_MS;
		if (any)
			snprintf(text, len, "broker %s has the address %s, which is not in hybridiot.broker_networks",
					 refusal->peer, refusal->address);
	}
	pthread_mutex_unlock(&gate->mutex);
	return any;
}
