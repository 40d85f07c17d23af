/*
 * network.c
 *		Which networks brokers may be in: a list of CIDR blocks, and whether an address lies in one.
 *
 * Nothing here touches PostgreSQL's memory or its error handling, so that a client library's
 * thread may ask before it connects.
 */
#include "postgres.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdlib.h>

#include "core/network.h"

#define SEPARATORS ", \t\n"

typedef struct Network
{
	int			family;			/* AF_INET, AF_INET6 */
	unsigned char address[16];
	int			bits;
} Network;

struct NetworkList
{
	int			n;
	Network		networks[FLEXIBLE_ARRAY_MEMBER];
};

/* The bytes of an address; an IPv4 address may come in IPv6's clothes. NULL: neither. */
static const unsigned char *
address_bytes(const struct sockaddr *address, int *family)
{
	*family = address->sa_family;
	if (address->sa_family == AF_INET)
		return (const unsigned char *) &((const struct sockaddr_in *) address)->sin_addr;
	if (address->sa_family == AF_INET6)
	{
		const struct in6_addr *six = &((const struct sockaddr_in6 *) address)->sin6_addr;

		if (!IN6_IS_ADDR_V4MAPPED(six))
			return six->s6_addr;
		*family = AF_INET;
		return six->s6_addr + 12;
	}
	return NULL;
}

static bool
same_bits(const unsigned char *a, const unsigned char *b, int bits)
{
	int			whole = bits / 8;
	int			mask = 0xFF00 >> (bits % 8);

	return memcmp(a, b, whole) == 0 &&
		(bits % 8 == 0 || ((a[whole] ^ b[whole]) & mask & 0xFF) == 0);
}

/* "10.0.0.0/8": no bits may be set behind the prefix, which would be a slip of somebody. */
static bool
parse_network(char *text, Network *network)
{
	static const unsigned char zero[16];
	unsigned char rest[16];
	char	   *slash = strchr(text, '/');
	int			width;

	if (slash)
		*slash = '\0';
	network->family = strchr(text, ':') ? AF_INET6 : AF_INET;
	width = network->family == AF_INET6 ? 128 : 32;
	network->bits = width;
	if (inet_pton(network->family, text, network->address) != 1)
		return false;
	if (slash)
	{
		char	   *end;
		long		bits = strtol(slash + 1, &end, 10);

		if (slash[1] < '0' || slash[1] > '9' || *end || bits > width)
			return false;
		network->bits = (int) bits;
	}
	memcpy(rest, network->address, sizeof(rest));
	for (int bit = 0; bit < network->bits; bit++)
		rest[bit / 8] &= ~(0x80 >> (bit % 8));
	return memcmp(rest, zero, width / 8) == 0;
}

NetworkList *
NetworkListParse(const char *text, char *bad, size_t badlen)
{
	char	   *copy = strdup(text);
	NetworkList *list = malloc(offsetof(NetworkList, networks) +
							   sizeof(Network) * (strlen(text) / 2 + 1));
	char	   *rest = NULL;

	bad[0] = '\0';
	if (copy && list)
	{
		list->n = 0;
		for (char *word = strtok_r(copy, SEPARATORS, &rest); word; word = strtok_r(NULL, SEPARATORS, &rest))
		{
			strlcpy(bad, word, badlen);
			if (!parse_network(word, &list->networks[list->n]))
				break;
			list->n++;
			bad[0] = '\0';
		}
	}
	if (copy == NULL || list == NULL || bad[0])
	{
		free(list);
		list = NULL;
	}
	free(copy);
	return list;
}

void
NetworkListFree(NetworkList *list)
{
	free(list);
}

bool
NetworkListHolds(const NetworkList *list, const struct sockaddr *address)
{
	int			family;
	const unsigned char *bytes = address_bytes(address, &family);

	if (list->n == 0)
		return true;
	for (int i = 0; bytes && i < list->n; i++)
		if (list->networks[i].family == family &&
			same_bits(list->networks[i].address, bytes, list->networks[i].bits))
			return true;
	return false;
}

void
NetworkAddressText(const struct sockaddr *address, char *text, size_t len)
{
	int			family;
	const unsigned char *bytes = address_bytes(address, &family);

	if (bytes == NULL || inet_ntop(family, bytes, text, (socklen_t) len) == NULL)
		strlcpy(text, "unknown", len);
}
