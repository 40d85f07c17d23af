/*
 * amqp.c
 *		libFuzzer on an AMQP connection: transport/amqp.c and proton, with a peer whose bytes are the input.
 *
 * The first byte says how far the peer behaves (LEVEL_*); then come steps: frames with a header that is right, bytes as
 * they are, and what our side does meanwhile. Beside what the sanitizers see: every command that was handed over ends exactly
 * once, as an outcome or as lost; a message is no longer than allowed; memory stays small; a connection that has ended tells nothing more.
 */
#include "postgres.h"

#include <sys/socket.h>
#include <unistd.h>

#include "storage/latch.h"
#include "utils/memutils.h"

#include "transport/amqp.h"

#include "fuzz.h"

#define MAX_COMMANDS 64
#define MAX_TOKENS 64
#define MAX_MESSAGE 4096
#define MAX_MEMORY (16 * 1024 * 1024)

enum
{
	LEVEL_RAW,					/* its first byte is the input's */
	LEVEL_SASL,					/* logged in */
	LEVEL_OPEN,					/* connection and sessions are open */
	LEVEL_LINKS					/* and the links */
};

/* What the connection is given as its socket; dial.c is not part of this. */
static int	our_end;

/* No TLS here. */
const char *
CertificateProblem(int error)
{
	return NULL;
}

Dial *
DialStart(const DialTarget *targets, int ntargets, int first)
{
	return (Dial *) &our_end;
}

DialResult
DialProceed(Dial *dial)
{
	return DIAL_DONE;
}

int
DialTakeFd(Dial *dial)
{
	return our_end;
}

int
DialFd(const Dial *dial)
{
	return -1;
}

uint32
DialEvents(const Dial *dial)
{
	return 0;
}

int
DialTargetIndex(const Dial *dial)
{
	return 0;
}

const char *
DialError(const Dial *dial)
{
	return "";
}

void
DialFree(Dial *dial)
{
}

/* ---- one run ---- */

typedef struct Run
{
	AmqpConnection *connection;
	int			peer;
	AmqpLink   *sender;
	AmqpLink   *receiver;
	int			sent;
	bool		ended[MAX_COMMANDS];
	uint64		tokens[MAX_TOKENS];
	int			ntokens;
	bool		closed;
} Run;

extern Size fuzz_allocated;

/* Links are named by a number that goes on through all connections of a process. */
static uint64 links = 0;

static void
take_events(Run *run)
{
	AmqpEvent	event;

	while (AmqpNextEvent(run->connection, &event))
	{
		CHECK(!run->closed);
		CHECK(event.text == NULL || strlen(event.text) < MAX_MEMORY);
		switch (event.kind)
		{
			case AMQP_EVENT_OPEN:
				if (run->sender || run->receiver)
					break;
				run->receiver = AmqpOpenReceiver(run->connection, "reply", false, 10);
				run->sender = AmqpOpenSender(run->connection, NULL, false);
				AmqpLinkSetOwner(run->receiver, run);
				AmqpLinkSetOwner(run->sender, run);
				links += 2;
				break;
			case AMQP_EVENT_CLOSED:
				CHECK(event.text != NULL);
				run->closed = true;
				break;
			case AMQP_EVENT_LINK_CLOSED:
				/* As the worker does it: without replies, all links are given up. */
				CHECK(AmqpLinkOwner(event.link) == run && !AmqpLinkIsOpen(event.link));
				if (event.link == run->receiver && run->sender)
					AmqpCloseLink(run->connection, run->sender);
				if (event.link == run->sender || event.link == run->receiver)
					run->sender = NULL;
				if (event.link == run->receiver)
					run->receiver = NULL;
				break;
			case AMQP_EVENT_OUTCOME:
			case AMQP_EVENT_LOST:
				CHECK(event.tag[0] < run->sent && !run->ended[event.tag[0]]);
				run->ended[event.tag[0]] = true;
				break;
			case AMQP_EVENT_MESSAGE:
				CHECK(event.len <= MAX_MESSAGE);
				if (run->ntokens < MAX_TOKENS)
					run->tokens[run->ntokens++] = event.token;
				break;
			case AMQP_EVENT_LINK_OPEN:
				CHECK(AmqpLinkOwner(event.link) == run);
				break;
			case AMQP_EVENT_SENT:
				break;
		}
	}
}

/* Let the connection read and write until it has nothing more to do. */
static void
turn(Run *run)
{
	char		sink[65536];

	for (int i = 0; i < 3; i++)
	{
		AmqpProcess(run->connection, 16);
		take_events(run);
		AmqpFlush(run->connection);
		take_events(run);
		while (recv(run->peer, sink, sizeof(sink), MSG_DONTWAIT) > 0)
			;
	}
	CHECK(fuzz_allocated < MAX_MEMORY);
	CHECK(AmqpTimeout(run->connection) >= 0);
}

static void
give(Run *run, const void *bytes, size_t len)
{
	if (send(run->peer, bytes, len, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
		return;
	turn(run);
}

/* A frame: size, data offset, type, channel, performative. */
static void
give_frame(Run *run, uint8 type, uint8 channel, const void *bytes, size_t len)
{
	char		frame[8 + 65536];
	size_t		size = len + 8;

	frame[0] = (char) (size >> 24);
	frame[1] = (char) (size >> 16);
	frame[2] = (char) (size >> 8);
	frame[3] = (char) size;
	frame[4] = 2;
	frame[5] = (char) type;
	frame[6] = 0;
	frame[7] = (char) channel;
	memcpy(frame + 8, bytes, len);
	give(run, frame, size);
}

#define GIVE_FRAME(run, type, channel, bytes) give_frame(run, type, channel, bytes, sizeof(bytes) - 1)

static void
give_attach(Run *run, uint8 channel, const char *name, bool sender)
{
	char		attach[128];
	int			len = (int) strlen(name);
	int			n = 0;

	/* attach: name, handle, role, two settle modes, source, target */
	memcpy(attach, "\x00\x53\x12\xc0", 4);
	n = 6;
	attach[n++] = '\xa1';
	attach[n++] = (char) len;
	memcpy(attach + n, name, len);
	n += len;
	attach[n++] = '\x43';
	attach[n++] = sender ? '\x42' : '\x41';
	memcpy(attach + n, "\x40\x40\x00\x53\x28\xc0\x04\x01\xa1\x01s\x00\x53\x29\x45\x40\x40\x43", 18);
	n += 18;
	attach[4] = (char) (n - 5);
	attach[5] = 10;
	give_frame(run, 0, channel, attach, n);
}

/* The peer behaves, so far. */
static void
prologue(Run *run, int level)
{
	char		name[64];

	if (level >= LEVEL_SASL)
	{
		give(run, "AMQP\x03\x01\x00\x00", 8);
		GIVE_FRAME(run, 1, 0, "\x00\x53\x40\xc0\x0c\x01\xa3\x09" "ANONYMOUS");
		GIVE_FRAME(run, 1, 0, "\x00\x53\x44\xc0\x03\x01\x50\x00");
		give(run, "AMQP\x00\x01\x00\x00", 8);
	}
	if (level >= LEVEL_OPEN)
	{
		GIVE_FRAME(run, 0, 0, "\x00\x53\x10\xc0\x06\x01\xa1\x03" "foe");
		GIVE_FRAME(run, 0, 0, "\x00\x53\x11\xc0\x09\x04\x60\x00\x00\x43\x52\x7f\x52\x7f");
		GIVE_FRAME(run, 0, 1, "\x00\x53\x11\xc0\x09\x04\x60\x00\x01\x43\x52\x7f\x52\x7f");
	}
	if (level >= LEVEL_LINKS)
	{
		CHECK(run->sender && run->receiver);
		snprintf(name, sizeof(name), "reply-" UINT64_FORMAT, links - 1);
		give_attach(run, 1, name, true);
		snprintf(name, sizeof(name), "command-" UINT64_FORMAT, links);
		give_attach(run, 0, name, false);
		/* flow: credit of 100 on handle 0 of the sending session */
		GIVE_FRAME(run, 0, 0, "\x00\x53\x13\xc0\x0b\x07\x43\x52\x7f\x43\x52\x7f\x43\x43\x52\x64");
		CHECK(AmqpLinkIsOpen(run->sender) && AmqpLinkIsOpen(run->receiver));
		CHECK(AmqpSendable(run->connection, run->sender) == 100);
	}
}

static void
act(Run *run, int what)
{
	unsigned char tag[AMQP_TAG_LEN] = {0};
	static char body[20000];

	switch (what % 4)
	{
		case 0:
		case 1:					/* send a command, small or large */
			if (run->sender == NULL || run->sent == MAX_COMMANDS || AmqpSendable(run->connection, run->sender) == 0)
				break;
			tag[0] = (unsigned char) run->sent++;
			AmqpSend(run->connection, run->sender, tag, body, what % 4 == 0 ? 10 : sizeof(body));
			break;
		case 2:					/* settle what came */
			for (int i = 0; i < run->ntokens; i++)
				AmqpSettle(run->connection, run->tokens[i], what & 4 ? AMQP_ACCEPTED : AMQP_REJECTED);
			run->ntokens = 0;
			break;
		case 3:					/* give a link up */
			if (run->sender && !run->closed)
			{
				AmqpCloseLink(run->connection, run->sender);
				run->sender = NULL;
			}
			break;
	}
	turn(run);
}

int
LLVMFuzzerTestOneInput(const uint8 *data, size_t size)
{
	static const DialTarget target = {"peer", 5672};
	static const AmqpConfig config = {
		.targets = &target,.ntargets = 1,.mechanism = "ANONYMOUS",.allow_clear_text = true,.container = "us",
		.connect_timeout_ms = 10000,.idle_timeout_ms = 60000,.max_message_size = MAX_MESSAGE
	};
	const uint8 *end = data + size;
	Run			run = {0};
	int			fds[2];

	if (size == 0)
		return 0;
	CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds) == 0);
	our_end = fds[0];
	run.peer = fds[1];
	run.connection = AmqpConnect(&config, 0);
	turn(&run);
	prologue(&run, *data++ % 4);

	while (data < end && !run.closed)
	{
		uint8		op = *data++;
		size_t		len = 0;

		if (op % 8 < 6 && end - data >= 2)
		{
			len = Min((size_t) (data[0] << 8 | data[1]), (size_t) (end - data - 2));
			data += 2;
		}
		if (op % 8 < 5)
			give_frame(&run, 0, op >> 3 & 1, data, len);
		else if (op % 8 == 5)
			give(&run, data, len);
		else
			act(&run, op >> 3);
		data += len;
	}
	close(run.peer);
	turn(&run);
	CHECK(run.closed);
	for (int i = 0; i < run.sent; i++)
		CHECK(run.ended[i]);
	AmqpFree(run.connection);
	CHECK(fuzz_allocated == 0);
	return 0;
}
