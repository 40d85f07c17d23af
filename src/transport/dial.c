/*
 * dial.c
 *		From a list of hosts to a connected, non-blocking socket, without ever blocking.
 *
 * The helper thread and the main thread share one Lookup, which has two
 * owners and is freed by the last: so a Dial can be given up while the helper
 * hangs in the resolver. The helper says that it is done by closing its end of
 * a pipe, which a WaitEventSet sees as readable.
 */
#include "postgres.h"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include "storage/latch.h"

#include "core/network.h"
#include "transport/dial.h"

/* What both threads see. malloc'd, because the helper may not touch PostgreSQL's memory. */
typedef struct Lookup
{
	pthread_mutex_t mutex;
	int			owners;
	int			done_fd;		/* the helper's end of the pipe */
	char	   *host;
	char		port[16];
	int			rc;
	struct addrinfo *addresses;
} Lookup;

struct Dial
{
	DialTarget *targets;
	int			ntargets;
	int			current;		/* target being tried */
	int			left;			/* targets not begun yet */
	Lookup	   *lookup;			/* while addresses are looked up, and while they are tried */
	struct addrinfo *next;		/* address to be tried next */
	NetworkList *networks;		/* where addresses must lie */
	int			fd;				/* pipe while looking up, socket while connecting; -1 */
	bool		connecting;
	char		error[256];
};

static void
lookup_release(Lookup *lookup)
{
	bool		last;

	pthread_mutex_lock(&lookup->mutex);
	last = --lookup->owners == 0;
	pthread_mutex_unlock(&lookup->mutex);
	if (!last)
		return;
	if (lookup->addresses)
		freeaddrinfo(lookup->addresses);
	pthread_mutex_destroy(&lookup->mutex);
	free(lookup->host);
	free(lookup);
}

static int
lookup_run(Lookup *lookup, int flags)
{
	struct addrinfo hints = {
		.ai_family = AF_UNSPEC,.ai_socktype = SOCK_STREAM,.ai_flags = flags
	};

	return getaddrinfo(lookup->host, lookup->port, &hints, &lookup->addresses);
}

static void *
lookup_main(void *arg)
{
	Lookup	   *lookup = arg;
	int			done_fd = lookup->done_fd;

	lookup->rc = lookup_run(lookup, AI_ADDRCONFIG);
	close(done_fd);
	lookup_release(lookup);
	return NULL;
}

/* Start the helper; all signals are blocked in it, they are the main thread's. */
static bool
lookup_start_thread(Lookup *lookup)
{
	pthread_attr_t attributes;
	pthread_t	thread;
	sigset_t	all;
	sigset_t	old;
	int			rc;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	pthread_attr_init(&attributes);
	pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
	rc = pthread_create(&thread, &attributes, lookup_main, lookup);
	pthread_attr_destroy(&attributes);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return rc == 0;
}

static void
drop_fd(Dial *dial)
{
	if (dial->fd >= 0)
		close(dial->fd);
	dial->fd = -1;
	dial->connecting = false;
}

static void
drop_lookup(Dial *dial)
{
	if (dial->lookup)
		lookup_release(dial->lookup);
	dial->lookup = NULL;
	dial->next = NULL;
}

static void
say_error(Dial *dial, const char *what)
{
	snprintf(dial->error, sizeof(dial->error), "could not connect to \"%s\" port %d: %s",
			 dial->targets[dial->current].host, dial->targets[dial->current].port, what);
}

/* Begin with the present target. True: addresses are there, or are being looked up. */
static bool
begin_target(Dial *dial)
{
	Lookup	   *lookup = calloc(1, sizeof(Lookup));
	int			fds[2];

	if (lookup == NULL || (lookup->host = strdup(dial->targets[dial->current].host)) == NULL)
	{
		free(lookup);
		say_error(dial, "out of memory");
		return false;
	}
	pthread_mutex_init(&lookup->mutex, NULL);
	lookup->owners = 1;
	snprintf(lookup->port, sizeof(lookup->port), "%d", dial->targets[dial->current].port);
	dial->lookup = lookup;

	/* A numeric address needs no resolver, and so no thread. */
	if (lookup_run(lookup, AI_NUMERICHOST | AI_NUMERICSERV) == 0)
	{
		dial->next = lookup->addresses;
		return true;
	}

	if (pipe2(fds, O_CLOEXEC | O_NONBLOCK) != 0)
	{
		say_error(dial, strerror(errno));
		drop_lookup(dial);
		return false;
	}
	lookup->done_fd = fds[1];
	lookup->owners = 2;
	if (!lookup_start_thread(lookup))
	{
		say_error(dial, "could not start a thread to look up the name");
		close(fds[0]);
		close(fds[1]);
		lookup->owners = 1;
		drop_lookup(dial);
		return false;
	}
	dial->fd = fds[0];
	return true;
}

/* Begin to connect to the next address; false when there is none left. */
static bool
begin_address(Dial *dial)
{
	while (dial->next)
	{
		struct addrinfo *address = dial->next;
		int			on = 1;

		dial->next = address->ai_next;
		if (!NetworkListHolds(dial->networks, address->ai_addr))
		{
			char		text[64];
			char		what[128];

			NetworkAddressText(address->ai_addr, text, sizeof(text));
			snprintf(what, sizeof(what), "its address %s is not in hybridiot.broker_networks", text);
			say_error(dial, what);
			continue;
		}
		dial->fd = socket(address->ai_family,
						  address->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK,
						  address->ai_protocol);
		if (dial->fd < 0)
		{
			say_error(dial, strerror(errno));
			continue;
		}
		(void) setsockopt(dial->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
		if (connect(dial->fd, address->ai_addr, address->ai_addrlen) == 0 ||
			errno == EINPROGRESS)
		{
			dial->connecting = true;
			return true;
		}
		say_error(dial, strerror(errno));
		drop_fd(dial);
	}
	return false;
}

static DialResult
next_attempt(Dial *dial)
{
	for (;;)
	{
		if (begin_address(dial))
			return DIAL_BUSY;
		drop_lookup(dial);
		if (dial->left == 0)
			return DIAL_FAILED;
		dial->left--;
		dial->current = (dial->current + 1) % dial->ntargets;
		if (begin_target(dial) && dial->next == NULL)
			return DIAL_BUSY;	/* being looked up */
	}
}

Dial *
DialStart(const DialTarget *targets, int ntargets, int first)
{
	Dial	   *dial = palloc0(sizeof(Dial));
	char		bad[64];

	dial->networks = NetworkListParse(hybridiot_broker_networks, bad, sizeof(bad));
	if (dial->networks == NULL)
		ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
	dial->targets = palloc(sizeof(DialTarget) * ntargets);
	for (int i = 0; i < ntargets; i++)
	{
		dial->targets[i].host = pstrdup(targets[i].host);
		dial->targets[i].port = targets[i].port;
	}
	dial->ntargets = ntargets;
	dial->left = ntargets;
	dial->current = (first + ntargets - 1) % ntargets;
	dial->fd = -1;
	return dial;
}

DialResult
DialProceed(Dial *dial)
{
	if (dial->fd >= 0 && !dial->connecting)
	{
		char		byte;

		/* End of file on the pipe: the helper is done. */
		if (read(dial->fd, &byte, 1) < 0)
			return DIAL_BUSY;
		drop_fd(dial);
		if (dial->lookup->rc == 0)
			dial->next = dial->lookup->addresses;
		else
			say_error(dial, gai_strerror(dial->lookup->rc));
	}
	else if (dial->connecting)
	{
		int			error = 0;
		socklen_t	len = sizeof(error);

		if (getsockopt(dial->fd, SOL_SOCKET, SO_ERROR, &error, &len) == 0 && error == 0)
			return DIAL_DONE;
		say_error(dial, strerror(error));
		drop_fd(dial);
	}
	return next_attempt(dial);
}

int
DialFd(const Dial *dial)
{
	return dial->fd;
}

uint32
DialEvents(const Dial *dial)
{
	return dial->connecting ? WL_SOCKET_CONNECTED : WL_SOCKET_READABLE;
}

int
DialTargetIndex(const Dial *dial)
{
	return dial->current;
}

int
DialTakeFd(Dial *dial)
{
	int			fd = dial->fd;

	dial->fd = -1;
	dial->connecting = false;
	return fd;
}

const char *
DialError(const Dial *dial)
{
	return dial->error;
}

void
DialFree(Dial *dial)
{
	if (dial == NULL)
		return;
	drop_fd(dial);
	drop_lookup(dial);
	NetworkListFree(dial->networks);
	for (int i = 0; i < dial->ntargets; i++)
		pfree(unconstify(char *, dial->targets[i].host));
	pfree(dial->targets);
	pfree(dial);
}
