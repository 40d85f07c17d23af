/*
 * command.c
 *		The AMQP worker: its loop, calls, timers, and the life of a command in memory.
 *
 * One turn of the loop: take what the network tells, take calls and new commands,
 * claim what can leave (one transaction, flushed), hand it to the network, write down
 * what has changed (one transaction), tell those who wait. State in memory may be
 * ahead of the journal, never behind it: what the journal could not take (a lock, a full disk)
 * stays in the list of changes and is tried again, while the network goes on.
 *
 * No user code runs here: the worker touches only the extension's own tables, which
 * carry no triggers but its own, as their owner.
 */
#include "postgres.h"

#include <limits.h>

#include "fmgr.h"
#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "command/worker.h"
#include "core/clock.h"
#include "core/compat.h"
#include "core/worker.h"

/* A lock on the journal that somebody holds costs no more than this at a time. */
#define LOCK_TIMEOUT "250ms"
/* Store mode on a router: offered again after this long, doubled each time. */
#define OFFER_FIRST_MS 500
#define OFFER_MAX_MS 5000

PGDLLEXPORT void CommandWorkerMain(Datum main_arg);

HTAB	   *Commands;
pairingheap *Timers;
dlist_head	Changes = DLIST_STATIC_INIT(Changes);
bool		ChangesUrgent = false;

/* ---- commands in memory ---- */

static int64
due_ms(const Command *command)
{
	switch (command->result.state)
	{
		case COMMAND_QUEUED:
			return command->not_before_ms > ClockMonotonicMs() ?
				Min(command->not_before_ms, command->expires_ms) : command->expires_ms;
		default:
			return command->answer_ms;
	}
}

/* The heap's first is its greatest. */
static int
compare_timers(const pairingheap_node *a, const pairingheap_node *b, void *arg)
{
	int64		x = pairingheap_const_container(Command, timer, a)->timer_ms;
	int64		y = pairingheap_const_container(Command, timer, b)->timer_ms;

	return x < y ? 1 : x > y ? -1 : 0;
}

Command *
CommandFind(const pg_uuid_t *id)
{
	CommandEntry *entry = hash_search(Commands, id, HASH_FIND, NULL);

	return entry ? entry->command : NULL;
}

Command *
CommandCreate(const pg_uuid_t *id, const char *device, bool temporary)
{
	static MemoryContext commands = NULL;
	Command    *command;
	Size		len = strlen(device) + 1;

	if (commands == NULL)
		commands = AllocSetContextCreate(TopMemoryContext, "hybridiot commands", ALLOCSET_DEFAULT_SIZES);
	command = MemoryContextAllocZero(commands, sizeof(Command) + len);
	command->id = *id;
	command->device = memcpy((char *) (command + 1), device, len);
	command->temporary = temporary;
	((CommandEntry *) hash_search(Commands, id, HASH_ENTER, NULL))->command = command;
	return command;
}

/*
 * Where its request is kept until it has left, and its result from then on; most of its life a command
 * has neither, and there can be very many.
 */
MemoryContext
CommandContext(Command *command)
{
	if (command->context == NULL)
		command->context = AllocSetContextCreate(TopMemoryContext, "hybridiot command", ALLOCSET_SMALL_SIZES);
	return command->context;
}

void
CommandForgetRequest(Command *command)
{
	command->request = NULL;
	if (command->context)
		MemoryContextDelete(command->context);
	command->context = NULL;
}

static void
stop_timer(Command *command)
{
	if (command->timed)
		pairingheap_remove(Timers, &command->timer);
	command->timed = false;
}

void
CommandSetTimer(Command *command)
{
	stop_timer(command);
	if (command->temporary || command->unwritten ||
		CommandIsSettled(command->result.state, command->nature.one_way))
		return;
	command->timer_ms = due_ms(command);
	pairingheap_add(Timers, &command->timer);
	command->timed = true;
}

/* Set back by less than a second, it is as it was told to the caller. */
TimestampTz
CommandExpiresAt(const Command *command, TimestampTz now)
{
	TimestampTz left = now + (command->expires_ms - ClockMonotonicMs()) * 1000;

	return command->expires_at - left > USECS_PER_SEC ? left : command->expires_at;
}

void
CommandForget(Command *command)
{
	stop_timer(command);
	QueueRemove(command);
	PaceForget(command);
	if (command->dirty)
		dlist_delete(&command->dirty_node);
	hash_search(Commands, &command->id, HASH_REMOVE, NULL);
	list_free(command->cancel_slots);
	if (command->context)
		MemoryContextDelete(command->context);
	pfree(command);
}

void
CommandForgetIfSettled(Command *command)
{
	if (!command->dirty && CommandIsSettled(command->result.state, command->nature.one_way))
		CommandForget(command);
}

static void
mark_dirty(Command *command)
{
	if (!command->dirty)
		dlist_push_tail(&Changes, &command->dirty_node);
	command->dirty = true;
}

void
CommandChange(Command *command, CommandState state, const char *cause)
{
	if (command->result.state == COMMAND_QUEUED)
		QueueRemove(command);
	command->result.state = state;
	JournalAddEvent(&command->id, CommandStateName(state), cause);
	mark_dirty(command);

	/* What only passes by can wait for a better occasion to be written. */
	if (command->temporary || (state != COMMAND_SENT && state != COMMAND_ACCEPTED) ||
		CommandIsSettled(state, command->nature.one_way))
		ChangesUrgent = true;
	CommandSetTimer(command);
}

/* Back into the queue, at its head; the claim is given back. */
static void
requeue(Command *command, int64 delay_ms, const char *cause)
{
	CommandChange(command, COMMAND_QUEUED, cause);
	command->unclaim = true;
	command->result.sent_at = 0;
	command->not_before_ms = delay_ms > 0 ? ClockMonotonicMs() + delay_ms : 0;
	ConnectionEnqueue(command, true);
	CommandSetTimer(command);
}

void
CommandSent(Command *command)
{
	if (command->result.state != COMMAND_SENDING)
		return;
	command->result.sent_at = GetCurrentTimestamp();
	CommandChange(command, COMMAND_SENT, NULL);
}

static char *
keep_string(Command *command, const char *s)
{
	return s ? MemoryContextStrdup(CommandContext(command), s) : NULL;
}

void
CommandOutcome(Command *command, AmqpOutcome outcome, const char *condition, const char *description)
{
	CommandState next;
	const char *cause;

	if (!StateAfterOutcome(command->result.state, &command->nature, outcome, &next, &cause))
	{
		JournalAddEvent(&command->id, NULL, cause);
		ChangesUrgent = true;
		return;
	}
	if (next == COMMAND_QUEUED)
	{
		requeue(command, Min(OFFER_MAX_MS, OFFER_FIRST_MS << Min(command->offers - 1, 8)), cause);
		return;
	}
	if (next == COMMAND_ACCEPTED)
	{
		command->result.accepted_at = GetCurrentTimestamp();
		command->result.accepted_by = StateAcceptedBy(command->nature.peer);
	}
	if (next == COMMAND_REJECTED)
	{
		command->result.condition = keep_string(command, condition);
		command->result.description = keep_string(command, description);
	}
	CommandChange(command, next, cause);
}

void
CommandLost(Command *command, bool transferred)
{
	CommandState next;
	const char *cause;

	if (!StateAfterLoss(command->result.state, transferred, &next, &cause))
		return;
	if (next == COMMAND_QUEUED)
		requeue(command, 0, cause);
	else
		CommandChange(command, next, cause);
}

static void *
keep_varlena(Command *command, const void *v)
{
	void	   *copy;

	if (v == NULL)
		return NULL;
	copy = MemoryContextAlloc(CommandContext(command), VARSIZE(v));
	memcpy(copy, v, VARSIZE(v));
	return copy;
}

void
CommandReply(Command *command, const Reply *reply)
{
	CommandResult *result = &command->result;
	CommandState next;
	const char *cause;

	ChangesUrgent = true;
	if (reply->device && strcmp(reply->device, command->device) != 0)
	{
		JournalAddEvent(&command->id, NULL, "a reply that names another device came");
		return;
	}
	if (!StateAfterReply(result->state, &command->nature, reply->success, &next, &cause))
	{
		JournalAddEvent(&command->id, NULL, cause);
		return;
	}
	result->replied_at = GetCurrentTimestamp();
	result->has_status = reply->result.has_status;
	result->status = reply->result.status;
	result->content_type = keep_string(command, reply->result.content_type);
	result->payload = keep_varlena(command, reply->result.payload);
	result->body = keep_varlena(command, reply->result.body);
	result->condition = keep_string(command, reply->result.condition);
	result->description = keep_string(command, reply->result.description);
	CommandChange(command, next, cause);
}

/* ---- time ---- */

static void
expire(Command *command)
{
	if (command->nature.mode == MODE_DIRECT && ConnectionIsUp(command))
		CommandChange(command, COMMAND_UNDELIVERABLE, "no credit by the deadline");
	else
		CommandChange(command, COMMAND_EXPIRED, NULL);
}

static void
run_timers(void)
{
	int64		now = ClockMonotonicMs();

	while (!pairingheap_is_empty(Timers))
	{
		Command    *command = pairingheap_container(Command, timer, pairingheap_first(Timers));
		CommandState next;
		const char *cause;

		if (command->timer_ms > now)
			return;
		if (command->result.state == COMMAND_QUEUED)
		{
			if (now >= command->expires_ms)
				expire(command);
			else
				CommandSetTimer(command);	/* only its pause is over */
		}
		else if (StateAfterDeadline(command->result.state, &next, &cause))
			CommandChange(command, next, cause);
		else
			stop_timer(command);
	}
}

static long
timers_timeout(void)
{
	int64		due;

	if (pairingheap_is_empty(Timers))
		return LONG_MAX;
	due = pairingheap_container(Command, timer, pairingheap_first(Timers))->timer_ms;
	return (long) Max(0, due - ClockMonotonicMs());
}

/* ---- calls ---- */

void
CallTell(Command *command, const CommandResult *result)
{
	StringInfoData buf;

	if (command->slot == NULL)
		return;
	initStringInfo(&buf);
	ResultPack(&buf, result);
	appendBinaryStringInfo(&buf, (char *) command->id.data, UUID_LEN);
	CallReply(command->slot, command->slot_index, buf.data, buf.len);
	pfree(buf.data);
	command->slot = NULL;
}

void
CallRefuseCommand(Command *command, int sqlstate, const char *message)
{
	if (command->slot)
		CallRefuse(command->slot, sqlstate, message);
	command->slot = NULL;
}

/* The same command was called for before: tell what became of it, or wait with it. */
void
CallTellKnown(Command *command, const pg_uuid_t *known, bool same)
{
	Command    *other = CommandFind(known);
	CommandRow *row;

	if (!same)
		CallRefuseCommand(command, ERRCODE_UNIQUE_VIOLATION, "the idempotency key was used for another command");
	else if (other && other->slot == NULL &&
			 !CommandIsSettled(other->result.state, other->nature.one_way))
	{
		other->slot = command->slot;
		other->slot_index = command->slot_index;
		command->slot = NULL;
	}
	else if (other == NULL && (row = CatalogReadCommand(known, CurrentMemoryContext)) != NULL &&
			 CommandIsSettled(row->result.state, row->one_way))
	{
		command->id = *known;
		CallTell(command, &row->result);
	}
	else
		CallRefuseCommand(command, ERRCODE_OBJECT_IN_USE, "the command with this idempotency key is in flight");
}

/* A command of a call: into its queue at once, into the journal with the claim. */
static void
take_command(const CommandRequest *request, CallSlot *slot, int i)
{
	Command    *command = CommandCreate(&request->id, request->device, false);
	Connection *connection = ConnectionFind(request->server);
	MemoryContext old = MemoryContextSwitchTo(CommandContext(command));
	StringInfoData buf;

	/* The copy lives as long as the command. */
	initStringInfo(&buf);
	RequestPack(&buf, request);
	command->request = palloc(sizeof(CommandRequest));
	(void) RequestUnpack(buf.data, command->request);
	pfree(buf.data);
	MemoryContextSwitchTo(old);

	command->sender = SenderFind(request->sender);
	command->server = request->server;
	command->connection = connection;
	command->nature.peer = connection ? connection->peer : PEER_BROKER;
	command->nature.mode = request->mode;
	command->nature.one_way = request->reply_within_ms == 0;
	command->reply_within_ms = request->reply_within_ms;
	command->expires_at = request->expires_at;
	command->expires_ms = ClockMonotonicMs() + (request->expires_at - GetCurrentTimestamp()) / 1000;
	command->slot = slot;
	command->slot_index = i;
	command->unwritten = true;
	command->came_ms = ClockMonotonicMs();
	command->result.state = COMMAND_QUEUED;
	ConnectionEnqueue(command, false);
	ClaimAddUnwritten(command);
}

void
CommandTellCancelled(Command *command, CallSlot *slot)
{
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

	command->cancel_slots = lappend(command->cancel_slots, slot);
	MemoryContextSwitchTo(old);
}

/* Is it cancelled, or under way? Then slot is told later. */
static bool
cancel(Command *command, CallSlot *slot)
{
	if (command->result.state == COMMAND_QUEUED && !command->unwritten)
		CommandChange(command, COMMAND_CANCELLED, NULL);
	if (command->result.state != COMMAND_CANCELLED)
		return RemovalBegin(command, slot);
	CommandTellCancelled(command, slot);
	return true;
}

static void
take_cancel(CallSlot *slot, const pg_uuid_t *id)
{
	Command    *command = CommandFind(id);

	if (command == NULL && JournalCancel(slot, id))
		return;
	if ((command == NULL ||
		 (command->result.state == COMMAND_ACCEPTED && command->connection == NULL)) &&
		!JournalLoadStored(slot, id, &command))
		return;
	if (command && cancel(command, slot))
		return;
	CallReply(slot, 0, "too_late", strlen("too_late"));
	if (command && !RemovalIsUnderWay(id))
		CommandForgetIfSettled(command);
}

/* Callers that have left: their commands go on, their slots are free for others. */
static void
drop_abandoned(void)
{
	CallSlot   *slot;

	while ((slot = CallAbandoned()) != NULL)
	{
		HASH_SEQ_STATUS all;
		CommandEntry *entry;

		hash_seq_init(&all, Commands);
		while ((entry = hash_seq_search(&all)) != NULL)
		{
			if (entry->command->slot == slot)
				entry->command->slot = NULL;
			entry->command->cancel_slots = list_delete_ptr(entry->command->cancel_slots, slot);
		}
		RemovalsForgetSlot(slot);
		CallDrop(slot);
	}
}

static void
take_calls(void)
{
	CallSlot   *slot;
	CallKind	kind;
	const char *request;
	Size		len;
	int			n;

	while ((slot = CallTake(&kind, &request, &len, &n)) != NULL)
	{
		pg_uuid_t	id;
		CommandResolution resolution;

		switch (kind)
		{
			case CALL_SEND:
				for (int i = 0; i < n; i++)
				{
					CommandRequest unpacked;

					request = RequestUnpack(request, &unpacked);
					take_command(&unpacked, slot, i);
				}
				CallReleaseRequest(slot);
				break;
			case CALL_CANCEL:
				memcpy(id.data, request, UUID_LEN);
				take_cancel(slot, &id);
				break;
			case CALL_RESOLVE:
				ResolutionUnpack(request, &resolution);
				JournalResolve(slot, &resolution);
				break;
		}
	}
}

/* ---- the loop ---- */

static WaitEventSet *wait_set = NULL;
static int *waited_fds = NULL;
static int	nwaited = -1;

/* Do the sockets in the set still stand for the connections there are? */
static bool
wait_set_is_current(void)
{
	dlist_iter	iter;
	int			n = 0;

	dlist_foreach(iter, &Connections)
	{
		Connection *c = dlist_container(Connection, node, iter.cur);

		/* A descriptor's number may be used again while connecting. */
		if (n >= nwaited || (c->amqp && !c->open) || c->waited != c->amqp ||
			waited_fds[n] != (c->amqp ? AmqpFd(c->amqp) : -1))
			return false;
		n++;
	}
	return n == nwaited;
}

static void
make_wait_set(void)
{
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);
	dlist_iter	iter;
	int			n = 0;

	if (wait_set)
		FreeWaitEventSet(wait_set);
	dlist_foreach(iter, &Connections)
		n++;
	wait_set = CreateWaitEventSet(NULL, n + 2);
	AddWaitEventToSet(wait_set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
	AddWaitEventToSet(wait_set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
	waited_fds = waited_fds ? repalloc(waited_fds, sizeof(int) * (n + 1)) : palloc(sizeof(int) * (n + 1));
	nwaited = n;
	n = 0;
	dlist_foreach(iter, &Connections)
	{
		Connection *c = dlist_container(Connection, node, iter.cur);

		c->waited = c->amqp;
		waited_fds[n] = c->amqp ? AmqpFd(c->amqp) : -1;
		c->wait_position = -1;
		if (waited_fds[n] >= 0)
			c->wait_position = AddWaitEventToSet(wait_set, AmqpEvents(c->amqp), waited_fds[n], NULL, NULL);
		n++;
	}
	MemoryContextSwitchTo(old);
}

static void
wait_for_work(void)
{
	WaitEvent	occurred[16];
	long		timeout = Min(Min(timers_timeout(), RemovalsTimeout()),
						  Min(Min(ConnectionsTimeout(), PacesTimeout()), JournalTimeout()));
	dlist_iter	iter;

	if (!wait_set_is_current())
		make_wait_set();
	else
	{
		dlist_foreach(iter, &Connections)
		{
			Connection *c = dlist_container(Connection, node, iter.cur);

			if (c->amqp && c->wait_position >= 0)
				ModifyWaitEvent(wait_set, c->wait_position, AmqpEvents(c->amqp), NULL);
		}
	}
	(void) WaitEventSetWait(wait_set, Min(timeout, INT_MAX), occurred, lengthof(occurred),
							WaitEventExtensionNew("HybridiotAmqp"));
	ResetLatch(MyLatch);
}

static void
forget_connections(int code, Datum arg)
{
	ConnStatForget(InvalidOid);
}

static void
start(void)
{
	HASHCTL		control = {.keysize = UUID_LEN,.entrysize = sizeof(CommandEntry)};

	SetConfigOption("lock_timeout", LOCK_TIMEOUT, PGC_SUSET, PGC_S_OVERRIDE);

	/* Everything here is found by key; a plan made while the journal was empty must not outlive that. */
	SetConfigOption("enable_seqscan", "off", PGC_USERSET, PGC_S_OVERRIDE);

	/* Nor is any of it worth being compiled. */
	SetConfigOption("jit", "off", PGC_USERSET, PGC_S_OVERRIDE);

	Commands = hash_create("hybridiot commands", 1024, &control, HASH_ELEM | HASH_BLOBS);
	Timers = pairingheap_allocate(compare_timers, NULL);
	before_shmem_exit(forget_connections, (Datum) 0);
	CallServe();
}

void
CommandWorkerMain(Datum main_arg)
{
	MemoryContext turn;

	WorkerAttach(main_arg);
	start();
	turn = AllocSetContextCreate(TopMemoryContext, "hybridiot turn", ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(turn);

	JournalStart();
	(void) WorkerReloadRequested();
	if (!ConnectionsReload())
		proc_exit(0);
	JournalReadQueue();

	for (;;)
	{
		MemoryContextSwitchTo(turn);
		MemoryContextReset(turn);

		WorkerCheck();
		if (WorkerReloadRequested() && !ConnectionsReload())
			proc_exit(0);
		ConnectionsProcess();
		drop_abandoned();
		take_calls();
		if (pg_atomic_read_u32(&MyWorkerSlot->wake) != 0 &&
			pg_atomic_exchange_u32(&MyWorkerSlot->wake, 0) != 0)
			JournalReadQueue();
		ClaimAndSend();
		ConnectionsFlush();
		run_timers();
		RemovalsExpire();
		JournalWrite();
		JournalTidy();
		ConnectionsFlush();
		ConnectionsPublish();
		wait_for_work();
	}
}
