/*
 * worker.h
 *		What the files of the AMQP worker share: connections, links, and the commands
 *		that are not settled.
 *
 * command.c has the loop and the life of a command, queue.c the order in which they leave, pace.c how many at
 * once, connection.c the connections and what they tell, removal.c what is taken back from a broker, server.c what they depend on,
 * claim.c what is written before they leave, journal.c every other transaction. All of it is one process's
 * memory; the journal follows it.
 */
#ifndef HYBRIDIOT_COMMAND_WORKER_H
#define HYBRIDIOT_COMMAND_WORKER_H

#include "lib/ilist.h"
#include "lib/pairingheap.h"
#include "utils/hsearch.h"

#include "command/reply.h"
#include "command/state.h"
#include "core/callslot.h"
#include "core/connstat.h"
#include "transport/amqp.h"

#define MAX_ADDRESS 1024		/* bytes of an address, with its NUL */

typedef struct Connection Connection;
typedef struct Link Link;
typedef struct Lane Lane;
typedef struct Share Share;
typedef struct Pace Pace;

/* A role that sends, and how far its part of the journal's queue was read. */
typedef struct Sender
{
	char		name[NAMEDATALEN];	/* key of the hash */
	dlist_node	node;			/* in Senders */
	int			queued;			/* commands in memory that wait */
	int64		served_ms;		/* monotonic: when one left last */
	bool		more;			/* there is more to read, from here on: */
	uint64		xid;
	int64		seq;
	uint64		horizon;		/* where the next look begins when this one has come to its end */
} Sender;

/* A command that may still change by itself. */
typedef struct Command
{
	pg_uuid_t	id;				/* key of the hash */
	MemoryContext context;		/* of its request until it has left, then of its result; NULL: neither is there */
	Oid			server;
	Connection *connection;		/* NULL: the server is gone, or cannot be used */
	Sender	   *sender;			/* NULL: accepted in an earlier life */
	bool		waits;			/* to leave, */
	Lane	   *lane;			/* here; NULL: nowhere, it has no way */
	dlist_node	queue_node;
	Pace	   *pace;			/* it counts as on its way, */
	dlist_node	pace_node;
	int64		left_us;		/* monotonic; since then */
	char	   *device;
	CommandNature nature;
	int64		reply_within_ms;
	TimestampTz expires_at;		/* by the clock on the wall */
	int64		expires_ms;		/* by the one nobody can set */
	int64		answer_ms;		/* monotonic; while SENDING, SENT or ACCEPTED */
	TimestampTz answer_by;
	int64		not_before_ms;	/* monotonic; offered again not earlier */
	int			offers;
	int			claim_backoff_ms;
	bool		claiming;
	bool		timed;			/* in the heap */
	int64		timer_ms;		/* its place there */
	pairingheap_node timer;

	CommandRequest *request;	/* while it may have to be sent; NULL: read at the claim */
	bool		unwritten;		/* the journal has no row of it yet */
	int64		came_ms;		/* monotonic; of an unwritten one */
	CallSlot   *slot;			/* somebody waits for it; NULL: nobody */
	int			slot_index;
	List	   *cancel_slots;	/* of those who cancelled it and wait for the word; in TopMemoryContext */

	CommandResult result;		/* state, and what the journal does not know yet */
	bool		dirty;			/* is in the list of changes */
	bool		unclaim;		/* the claim must be given back */
	bool		held;			/* somebody has locked its row; it is set aside (held.c), */
	bool		temporary;		/* settled long ago, loaded for late evidence */
	dlist_node	dirty_node;
} Command;

/* What the hash of commands holds. */
typedef struct CommandEntry
{
	pg_uuid_t	id;
	Command    *command;
} CommandEntry;

/* One link of a connection, and the commands that will leave through it. */
struct Link
{
	char		address[MAX_ADDRESS];	/* key of the connection's hash; "": the anonymous terminus */
	dlist_node	node;			/* in connection->links, least recently used first */
	Connection *connection;
	AmqpLink   *amqp;			/* NULL: not open */
	int64		opened_ms;		/* monotonic */
	int64		retry_ms;		/* monotonic: not opened again earlier */
	int			backoff_ms;
	dlist_head	lanes;			/* of the senders whose commands wait for it */
	int			queued;			/* commands in them */
	uint64		round;			/* of QueueSendable(): in it, */
	int			room;			/* so many more may leave */
};

struct Connection
{
	dlist_node	node;
	MemoryContext context;
	Oid			server;
	char	   *name;
	char	   *fingerprint;	/* all that the configuration says; another one: connect anew */
	bool		seen;			/* by the present reload */
	bool		leaving;		/* configuration changed: closed when nothing is in flight */
	int64		leave_by_ms;
	PeerKind	peer;
	char	   *tenant;
	char	   *command_address;
	char	   *link_address;	/* NULL: the anonymous terminus */
	char	   *reply_address;	/* complete */
	AmqpConfig	config;
	AmqpConnection *amqp;		/* NULL: waiting to try again */
	bool		open;
	AmqpLink   *reply_link;
	bool		replies;		/* the reply link is open: commands may leave */
	AmqpLink   *management;		/* to the broker's management address; NULL: never needed */
	int64		up_by_ms;		/* monotonic; it is given up if there are no replies by then */
	int			next_target;
	int64		retry_ms;
	int			backoff_ms;
	HTAB	   *links_by_address;
	dlist_head	links;
	dlist_head	shares;			/* of the senders with commands that wait */
	dlist_head	paces;			/* of the senders that have sent */
	int64		quickest_us[2]; /* from handing over to outcome, in this period and the last; 0: none came */
	int64		quickest_since_us;	/* monotonic: when this one began */
	int			nlinks;			/* of them open */
	int64		full_ms;		/* monotonic; there was no room for another, which is looked at again then */
	int64		next_link_ms;	/* monotonic; a closed one that is needed is tried then */
	AmqpCounters past;			/* of connections that are gone: bytes */
	ConnectionStat stat;
	bool		stat_dirty;
	AmqpConnection *waited;		/* what is in the wait-event set of it, */
	int			wait_position;	/* and where; -1: nothing */
};

/* Evidence about a command that is not in memory; the journal has to be asked. */
typedef struct Evidence
{
	dlist_node	node;
	MemoryContext context;
	bool		is_reply;
	pg_uuid_t	id;
	PeerKind	peer;
	AmqpOutcome outcome;
	const char *condition;
	const char *description;
	Reply		reply;
} Evidence;

/* A reply to be settled with the peer when its commit is on disk. */
typedef struct Settlement
{
	dlist_node	node;
	Connection *connection;
	uint64		token;
	AmqpOutcome outcome;
	pg_uuid_t	command;		/* zero: none */
	uint64		round;			/* journal transaction that has to be there first */
} Settlement;

/* ---- command.c ---- */

extern HTAB *Commands;
extern pairingheap *Timers;
extern dlist_head Changes;		/* commands with something to write */
extern bool ChangesUrgent;

extern Command *CommandFind(const pg_uuid_t *id);
/* A new one, in the hash. */
extern Command *CommandCreate(const pg_uuid_t *id, const char *device, bool temporary);
/* The context of its request or result. */
extern MemoryContext CommandContext(Command *command);
/* It has left, or will be read again at the next claim. */
extern void CommandForgetRequest(Command *command);
/* Drop from memory; out of all lists. */
extern void CommandForget(Command *command);
/* Its next deadline changed. */
extern void CommandSetTimer(Command *command);
/* When its time to start is over, by the clock as it is now: that may have been set back since the call. */
extern TimestampTz CommandExpiresAt(const Command *command, TimestampTz now);
/* A settled one that was loaded for a while, if nothing of it is to be written. */
extern void CommandForgetIfSettled(Command *command);
/* It is cancelled; whoever asked for that is told when it is written. */
extern void CommandTellCancelled(Command *command, CallSlot *slot);
/* A change of state: note it for the journal. cause may be NULL. */
extern void CommandChange(Command *command, CommandState state, const char *cause);
/* Evidence about a command in memory. */
extern void CommandOutcome(Command *command, AmqpOutcome outcome,
						   const char *condition, const char *description);
extern void CommandReply(Command *command, const Reply *reply);
extern void CommandLost(Command *command, bool transferred);
extern void CommandSent(Command *command);

/* ---- server.c ---- */

/* All about a server, in context; inside a transaction. Raises what the administrator has to hear. */
extern Connection *ServerRead(Oid server, MemoryContext context);
/* Replace a placeholder by what it stands for; palloc'd. */
extern char *AddressFillIn(const char *template, const char *placeholder, const char *value);
/* Percent-encode a name for use in an address; palloc'd. */
extern char *AddressEncode(const char *text);

/* ---- connection.c ---- */

extern dlist_head Connections;

/* Compare servers with what is connected. False: there is no server (any more). */
extern bool ConnectionsReload(void);
extern Connection *ConnectionFind(Oid server);
/* Connect what should be and can be tried again; drive all; hand their events to command.c. */
extern void ConnectionsProcess(void);
extern void ConnectionsPublish(void);
/* Before waiting: nothing that was asked of a connection stays behind. */
extern void ConnectionsFlush(void);
/* Milliseconds until something here is due. */
extern long ConnectionsTimeout(void);
/* Where a device's commands are sent; "": to the anonymous terminus. palloc'd. */
extern char *ConnectionLinkAddress(const Connection *c, const char *device);
/* Let a queued command wait for its link, behind those of its sender that do already (or before). */
extern void ConnectionEnqueue(Command *command, bool first);
/* Is the way open, so that lack of credit is the peer's answer? */
extern bool ConnectionIsUp(const Command *command);
/* Hand over a claimed command; false if it cannot leave now (nothing of it was sent). */
extern bool ConnectionSend(Command *command);

/* ---- queue.c ---- */

extern dlist_head Senders;

extern Sender *SenderFind(const char *name);
/* link NULL: there is no way yet; it is only counted. */
extern void QueueAdd(Command *command, Link *link, bool first);
/* Nothing happens if it does not wait. */
extern void QueueRemove(Command *command);
/* The link it waits for; NULL if it does not wait. */
extern Link *QueueLink(const Command *command);
/* Commands that can leave now, at most max, those of different senders in turn; they stay where they wait. */
extern int	QueueSendable(Command **commands, int max);
/* How many more commands of a sender may be read. */
extern int	QueueRoom(const Sender *sender);
/* Is it time to read more of them? */
extern bool QueueIsLow(const Sender *sender);
/* Have several senders something to send, now or a moment ago? */
extern bool QueueIsShared(void);

/* ---- pace.c ---- */

/* How many more commands of a sender may leave now. */
extern int	PaceRoom(Connection *c, const Sender *sender);
/* It was handed over. */
extern void PaceSent(Command *command);
/* Its outcome came. */
extern void PaceOutcome(Command *command);
/* It counts no more; nothing happens if it does not. */
extern void PaceForget(Command *command);
/* So do all of a connection. */
extern void PacesForget(Connection *c);
/* Milliseconds until a full window opens by itself. */
extern long PacesTimeout(void);

/* ---- removal.c ---- */

/*
 * Ask the broker to take a command out of its queue and tell slot what came of it. False: that
 * cannot even be tried (an event may say why), and nobody is told.
 */
extern bool RemovalBegin(Command *command, CallSlot *slot);
extern bool RemovalIsUnderWay(const pg_uuid_t *command);
/* Hand over requests that wait for the management link. */
extern void RemovalsSend(Connection *c);
/* False: it is no event of the management link. */
extern bool RemovalTakeEvent(Connection *c, const AmqpEvent *event);
/* A message on the reply address: false if it is no answer to one of our requests. */
extern bool RemovalTakeAnswer(const Connection *c, const pg_uuid_t *request, const char *bytes, size_t len);
extern void RemovalsDisconnected(Connection *c);
/* A caller has left. */
extern void RemovalsForgetSlot(CallSlot *slot);
extern void RemovalsExpire(void);
/* Milliseconds until RemovalsExpire() has something to do. */
extern long RemovalsTimeout(void);

/* ---- claim.c ---- */

/* A call's command: the journal has no row of it yet. */
extern void ClaimAddUnwritten(Command *command);
/* Claim what can leave and send it; write the commands of calls. */
extern void ClaimAndSend(void);
/* Monotonic: when commands of calls that the journal does not know yet are to be written; PG_INT64_MAX: there are none. */
extern int64 ClaimsDueMs(void);

/* ---- journal.c ---- */

/* The beginning of a worker: epoch, no history, what still waits for a reply. */
extern void JournalStart(void);
/* Look for new commands in the queue. */
extern void JournalReadQueue(void);
/* Write all changes, if they are urgent or old enough; then tell those who wait. */
extern void JournalWrite(void);
/* Milliseconds until something here is due. */
extern long JournalTimeout(void);
/* state NULL: nothing changed. Of those only so many are kept one by one. */
extern void JournalAddEvent(const pg_uuid_t *id, const char *state, const char *cause);
extern void JournalAddEvidence(Evidence *evidence);
/* Settle a reply when everything that is known now is written and on disk. command: whose; NULL: nobody's. */
extern void JournalSettleLater(Connection *connection, uint64 token, AmqpOutcome outcome, const pg_uuid_t *command);
extern void JournalForgetConnection(Connection *connection);
/* This database's reply id for a server, as text, palloc'd; inside a transaction. */
extern char *JournalReplyId(Oid server);
/* A command that is not in memory: if it is still queued, it is cancelled. False: it is not, and the slot is not answered. */
extern bool JournalCancel(CallSlot *slot, const pg_uuid_t *id);
/* Note what a person found out about a command, and answer the slot. */
extern void JournalResolve(CallSlot *slot, const CommandResolution *resolution);
/*
 * A command that a broker may still hold, from the journal; NULL if it is none. What is settled is forgotten by
 * CommandForgetIfSettled(). False: the journal could not be read, and the slot was told.
 */
extern bool JournalLoadStored(CallSlot *slot, const pg_uuid_t *id, Command **loaded);
/* Housekeeping: restored rows, retention; does nothing more than every few seconds. */
extern void JournalTidy(void);

/* ---- held.c ---- */

/* In the transaction that writes changes: mark those of rows that are held, and lock the others. */
extern void HeldMark(void);
/* It failed. */
extern void HeldUnmark(void);
/* It did not: take what is marked out of the list of changes. */
extern void HeldSetAside(void);
extern bool HeldIsEmpty(void);
extern bool HeldIs(const pg_uuid_t *id);
/* Back into the list of changes, if it is time. */
extern void HeldTryAgain(int64 now);
/* When that is; monotonic. */
extern int64 HeldDue(void);

/* ---- stray.c ---- */

/* May one more event of what changed nothing be kept? If not it is counted. */
extern bool StrayKeep(void);
/* How many were not, since the last time. */
extern uint64 StrayTakeCount(void);

/* ---- calls (command.c) ---- */

/* Tell whoever waits for the command what became of it. */
extern void CallTell(Command *command, const CommandResult *result);
/* Whoever waits for the command gets an error instead. */
extern void CallRefuseCommand(Command *command, int sqlstate, const char *message);
/* A call for a command that the journal knows already (idempotency key). */
extern void CallTellKnown(Command *command, const pg_uuid_t *known, bool same);

#endif							/* HYBRIDIOT_COMMAND_WORKER_H */
