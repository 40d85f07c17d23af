/*
 * journal.c
 *		Transactions of the AMQP worker: how they begin and end, the queue, changes of state.
 *
 * Claims (claim.c) are flushed before a byte is handed to the network, whatever the settings say: a
 * command that is found `queued' after a crash has not left. The row of a synchronous call appears
 * with its claim, so if synchronous_commit is off and the row is lost, so is the caller,
 * and nothing will send it again. Changes that only pass by (sent, accepted) are written
 * together with the next that matters, or a moment later. A reply is settled with
 * the peer when the commit that holds it is on disk.
 *
 * Each transaction but what callers ask for (journal_ask.c) is repeated until it works, and what it carries
 * is kept in memory until then. Locks are waited for briefly (lock_timeout); what a locked row keeps from being
 * written is set aside (held.c).
 */
#include "postgres.h"

#include <limits.h>

#include "access/xact.h"
#include "access/xlog.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "command/journal_internal.h"
#include "command/worker.h"
#include "core/clock.h"
#include "core/compat.h"
#include "core/worker.h"

/* Commands read from the queue in one transaction: alone, and when there are several senders. */
#define QUEUE_PAGE 1000
#define SHORT_QUEUE_PAGE 50
/* Commands in memory, at most; most of them wait for their answers. */
#define MAX_COMMANDS 200000
/* How long a passing change may stay unwritten. */
#define LAZY_MS 20
/* After a transaction failed. */
#define RETRY_FIRST_MS 50
#define RETRY_MAX_MS 5000
/* How often what nobody told of is looked for. */
#define POLL_MS 5000
#define TIDY_MS 30000
#define TIDY_LIMIT 1000
/* Unflushed replies are flushed by us after this long. */
#define FLUSH_MS 50

static int64 epoch = 0;			/* this life of the worker */

static dlist_head evidences = DLIST_STATIC_INIT(evidences);
static dlist_head settlements = DLIST_STATIC_INIT(settlements);
static MemoryContext events_context = NULL;
static CommandEvent *events = NULL;
static int	nevents = 0;
static int	max_events = 0;
static int64 lazy_since_ms = 0; /* when the oldest passing change came; 0: none */
static uint64 round = 1;		/* number of the next transaction that writes changes */
static uint64 flushed_round = 0;	/* the last one that is on disk */
static XLogRecPtr written_lsn = InvalidXLogRecPtr;	/* end of the last one */
static bool look_for_held = false;	/* rows may be locked: look before changes are written */
static int64 retry_ms = 0;
static int	backoff_ms = 0;
static int64 next_poll_ms = 0;
static int64 next_tidy_ms = 0;
static bool foreign_seen = false;

static bool queue_unread = false;	/* somebody told of new commands, and there was no room */

/* ---- transactions ---- */

/* Where we were before the transaction; ending one leaves us elsewhere. */
static MemoryContext outside;

void
JournalBegin(CatalogScope *scope, const char *activity)
{
	outside = CurrentMemoryContext;
	WorkerBegin(activity);
	CatalogEnter(scope);
}

/*
 * Commit; flush says whether to wait for the disk. Waiting for standbys is never
 * right here: the network would stand still while one is away.
 */
void
JournalCommit(CatalogScope *scope, bool flush)
{
	int			configured = synchronous_commit;

	CatalogLeave(scope);
	synchronous_commit = flush ? SYNCHRONOUS_COMMIT_LOCAL_FLUSH : SYNCHRONOUS_COMMIT_OFF;
	PG_TRY();
	{
		WorkerCommit();
	}
	PG_FINALLY();
	{
		synchronous_commit = configured;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(outside);
	pg_atomic_write_u64(&MyWorkerSlot->last_commit_at, (uint64) GetCurrentTimestamp());
	if (backoff_ms != 0)
		WorkerSetState(WORKER_RUNNING, NULL);
	backoff_ms = 0;
}

/* With message, whoever asked is told. */
int
JournalRecover(MemoryContext context, const char *doing, char **message)
{
	ErrorData  *error;

	MemoryContextSwitchTo(context);
	error = CopyErrorData();
	FlushErrorState();
	WorkerAbort();
	MemoryContextSwitchTo(context);

	ereport(LOG,
			(errcode(error->sqlerrcode), errmsg("%s failed: %s", doing, error->message),
			 message ? 0 : errdetail("It is tried again.")));
	SlotSetError(MyWorkerSlot, error->message);
	pg_atomic_fetch_add_u64(&MyWorkerSlot->retries, 1);
	if (message)
		*message = error->message;
	return error->sqlerrcode;
}

static void
retry_later(void)
{
	retry_ms = ClockMonotonicMs() + BackoffNext(&backoff_ms, RETRY_FIRST_MS, RETRY_MAX_MS);
	WorkerSetState(WORKER_RETRYING, "the journal cannot be written");
}

/* ---- events ---- */

/* Now, but behind the event before: their order is the story. A clock that is set back begins another. */
TimestampTz
JournalEventTime(void)
{
	static TimestampTz last = 0;
	TimestampTz now = GetCurrentTimestamp();

	if (now <= last && now > last - USECS_PER_SEC)
		now = last + 1;
	last = now;
	return now;
}

static void
add_event(const pg_uuid_t *id, const char *state, const char *cause)
{
	CommandEvent *event;

	if (events_context == NULL)
		events_context = AllocSetContextCreate(TopMemoryContext, "hybridiot events",
											   ALLOCSET_DEFAULT_SIZES);
	if (nevents == max_events)
	{
		max_events = Max(64, max_events * 2);
		events = events ? repalloc(events, max_events * sizeof(CommandEvent)) :
			MemoryContextAlloc(TopMemoryContext, max_events * sizeof(CommandEvent));
	}
	event = &events[nevents++];
	memset(event, 0, sizeof(*event));
	if (id)
	{
		event->has_id = true;
		event->id = *id;
	}
	event->at = JournalEventTime();
	event->state = state;
	event->cause = cause ? MemoryContextStrdup(events_context, cause) : NULL;
	if (lazy_since_ms == 0)
		lazy_since_ms = ClockMonotonicMs();
}

void
JournalAddEvent(const pg_uuid_t *id, const char *state, const char *cause)
{
	if (state != NULL || StrayKeep())
		add_event(id, state, cause);
}

static void
tell_strays(void)
{
	uint64		n = StrayTakeCount();

	if (n > 0)
		add_event(NULL, NULL, psprintf(UINT64_FORMAT " more replies and outcomes changed nothing", n));
}

void
JournalAddEvidence(Evidence *evidence)
{
	dlist_push_tail(&evidences, &evidence->node);
	ChangesUrgent = true;
}

/* ---- the beginning ---- */

void
JournalStart(void)
{
	CatalogScope scope;
	OpenCommand *open;
	int			n;
	int			doubtful;

	/* An error here ends the worker; it is started again with a back-off. */
	JournalBegin(&scope, "reading the journal of commands");
	epoch = CatalogNextEpoch();
	doubtful = CatalogForgetHistory(epoch, true);
	n = CatalogAdoptAccepted(epoch, &open, CurrentMemoryContext);
	for (int i = 0; i < n; i++)
	{
		Command    *command = CommandCreate(&open[i].id, open[i].device, false);

		command->server = open[i].server;
		command->nature.mode = open[i].mode;
		command->nature.offered = true;
		command->result.state = COMMAND_ACCEPTED;
		command->answer_by = open[i].answer_by;
		command->answer_ms = ClockMonotonicMs() + (open[i].answer_by - GetCurrentTimestamp()) / 1000;
		CommandSetTimer(command);
	}
	JournalCommit(&scope, true);
	if (doubtful > 0)
		ereport(LOG, (errmsg("%d commands are in doubt", doubtful)));
}

int64
JournalEpoch(void)
{
	return epoch;
}

char *
JournalReplyId(Oid server)
{
	CatalogScope scope;
	pg_uuid_t	uuid;

	CatalogEnter(&scope);
	CatalogReplyId(server, &uuid);
	CatalogLeave(&scope);
	return UuidText(&uuid);
}

/* ---- the queue ---- */

static void
take_queued(const QueuedCommand *queued, Sender *sender)
{
	Command    *command;
	TimestampTz now = GetCurrentTimestamp();

	if (queued->foreign)
	{
		foreign_seen = true;	/* JournalTidy() ends it */
		next_tidy_ms = 0;
		return;
	}
	if (CommandFind(&queued->id))
		return;
	command = CommandCreate(&queued->id, queued->device, false);
	command->sender = sender;
	command->server = queued->server;
	command->connection = ConnectionFind(queued->server);
	command->nature.peer = command->connection ? command->connection->peer : PEER_BROKER;
	command->nature.mode = queued->mode;
	command->nature.one_way = queued->reply_within_ms == 0;
	command->reply_within_ms = queued->reply_within_ms;
	command->expires_at = queued->expires_at;
	command->expires_ms = ClockMonotonicMs() + (queued->expires_at - now) / 1000;
	command->result.state = COMMAND_QUEUED;
	ConnectionEnqueue(command, false);
	CommandSetTimer(command);
}

/* Senders that we have not heard of yet; one that is nobody comes with rows that were restored. */
static void
find_senders(void)
{
	dlist_iter	iter;
	int			n;

	(void) SenderFind("");
	do
	{
		const char **known;
		char	  **names;
		int			nknown = 0;

		dlist_foreach(iter, &Senders)
			nknown++;
		known = palloc(sizeof(char *) * nknown);
		nknown = 0;
		dlist_foreach(iter, &Senders)
			known[nknown++] = dlist_container(Sender, node, iter.cur)->name;
		n = CatalogNewSenders(known, nknown, &names, CurrentMemoryContext);
		for (int i = 0; i < n; i++)
			(void) SenderFind(names[i]);
	} while (n > 0);
}

/* Read what some senders have in the queue, and note how far. */
static void
read_queues(Sender **senders, int nsenders, int page, uint64 horizon)
{
	QueuePlace *places = palloc(sizeof(QueuePlace) * nsenders);
	int		   *nread = palloc0(sizeof(int) * nsenders);
	QueuedCommand *queued;
	int			n;

	for (int i = 0; i < nsenders; i++)
	{
		Sender	   *sender = senders[i];

		places[i] = (QueuePlace) {sender->name, sender->xid, sender->seq, Min(page, QueueRoom(sender))};
		if (!sender->more)
			sender->horizon = horizon;	/* of the first page: what is behind it has been seen */
	}
	n = CatalogReadQueue(places, nsenders, &queued, CurrentMemoryContext);
	for (int i = 0; i < n; i++)
	{
		Sender	   *sender = senders[queued[i].place];

		take_queued(&queued[i], sender);
		nread[queued[i].place]++;
		sender->xid = queued[i].xid;
		sender->seq = queued[i].seq;
	}
	for (int i = 0; i < nsenders; i++)
	{
		Sender	   *sender = senders[i];

		sender->more = nread[i] == places[i].limit;
		if (sender->more)
			continue;
		sender->xid = sender->horizon;
		sender->seq = 0;
	}
}

/* One page of each sender's queue; all: also of those of whom nothing more is known. */
static void
read_queue_page(bool all)
{
	CatalogScope scope;
	dlist_iter	iter;
	Sender	  **senders;
	uint64		horizon;
	int			n = 0;
	int			page = QueueIsShared() ? SHORT_QUEUE_PAGE : QUEUE_PAGE;

	JournalBegin(&scope, "reading the queue of commands");
	horizon = CatalogQueueHorizon();
	if (all)
		find_senders();
	dlist_foreach(iter, &Senders)
		n++;
	senders = palloc(sizeof(Sender *) * (n + 1));
	n = 0;
	dlist_foreach(iter, &Senders)
	{
		Sender	   *sender = dlist_container(Sender, node, iter.cur);

		if (sender->more ? QueueIsLow(sender) : all)
			senders[n++] = sender;
	}
	if (n > 0)
		read_queues(senders, n, Max(page / n, 10), horizon);
	JournalCommit(&scope, false);
}

static void
read_queue(bool all)
{
	MemoryContext context = CurrentMemoryContext;
	dlist_iter	iter;

	PG_TRY();
	{
		read_queue_page(all);
		if (all)
			queue_unread = false;
	}
	PG_CATCH();
	{
		(void) JournalRecover(context, "reading the queue of commands", NULL);
		dlist_foreach(iter, &Senders)
		{
			Sender	   *sender = dlist_container(Sender, node, iter.cur);

			/* Again, from the beginning. */
			sender->more = false;
			sender->xid = 0;
			sender->seq = 0;
		}
		/* All are looked for again then. */
		queue_unread = false;
		next_poll_ms = ClockMonotonicMs() + BackoffNext(&backoff_ms, RETRY_FIRST_MS, RETRY_MAX_MS);
	}
	PG_END_TRY();
}

static bool
is_full(void)
{
	return hash_get_num_entries(Commands) >= MAX_COMMANDS;
}

void
JournalReadQueue(void)
{
	queue_unread = is_full();
	if (!queue_unread)
		read_queue(true);
}

/* Is there more to read, and room for it? */
static bool
wants_more(void)
{
	dlist_iter	iter;

	if (is_full())
		return false;
	if (queue_unread)
		return true;
	dlist_foreach(iter, &Senders)
	{
		Sender	   *sender = dlist_container(Sender, node, iter.cur);

		if (sender->more && QueueIsLow(sender))
			return true;
	}
	return false;
}

/* ---- changes ---- */

/* A command that was settled long ago, for late evidence. NULL: there is none. */
static Command *
load_command(const Evidence *evidence)
{
	CommandRow *row = CatalogReadCommand(&evidence->id, CurrentMemoryContext);
	Command    *command;

	if (row == NULL)
		return NULL;
	command = CommandCreate(&row->id, row->device, true);
	command->nature.peer = evidence->peer;
	command->nature.mode = row->mode;
	command->nature.one_way = row->one_way;
	command->nature.removed = row->result.state == COMMAND_CANCELLED && row->result.accepted_at != 0;
	command->result.state = row->result.state;
	return command;
}

static void
weigh_evidence(const Evidence *evidence)
{
	Command    *command = CommandFind(&evidence->id);

	if (command == NULL)
		command = load_command(evidence);
	if (command == NULL)
		JournalAddEvent(&evidence->id, NULL, evidence->is_reply ? "a reply to an unknown command came" :
				  "an outcome of an unknown command came");
	else if (evidence->is_reply)
		CommandReply(command, &evidence->reply);
	else
		CommandOutcome(command, evidence->outcome, evidence->condition, evidence->description);
	if (command && command->temporary && !command->dirty)
		CommandForget(command);
}

static int
count_changes(void)
{
	dlist_iter	iter;
	int			n = 0;

	dlist_foreach(iter, &Changes)
		n++;
	return n;
}

/* The rows of all commands that changed, and what becomes of their origins. */
static void
write_rows(void)
{
	int			max = count_changes() + 1;
	CommandUpdate *updates = palloc0(sizeof(CommandUpdate) * max);
	pg_uuid_t  *final = palloc(sizeof(pg_uuid_t) * max);
	pg_uuid_t  *unclaimed = palloc(sizeof(pg_uuid_t) * max);
	int			n = 0;
	int			nfinal = 0;
	int			nunclaimed = 0;
	dlist_iter	iter;

	dlist_foreach(iter, &Changes)
	{
		Command    *command = dlist_container(Command, dirty_node, iter.cur);

		if (command->held)
			continue;
		updates[n].id = command->id;
		updates[n].result = &command->result;
		updates[n++].clear_sent = command->unclaim;
		if (CommandIsSettled(command->result.state, command->nature.one_way))
			final[nfinal++] = command->id;
		else if (command->unclaim)
			unclaimed[nunclaimed++] = command->id;
	}
	CatalogUpdateCommands(updates, n);
	CatalogUnclaim(unclaimed, nunclaimed);
	CatalogDeleteOrigins(final, nfinal);
}

/* Whoever cancelled it; late evidence may have come in between. */
static void
tell_cancellers(Command *command)
{
	const char *answer = command->result.state == COMMAND_CANCELLED ? "cancelled" : "too_late";
	ListCell   *lc;

	foreach(lc, command->cancel_slots)
		CallReply(lfirst(lc), 0, answer, strlen(answer));
	list_free(command->cancel_slots);
	command->cancel_slots = NIL;
}

/* What is written is not news any more. */
static void
change_written(Command *command)
{
	bool		settled = CommandIsSettled(command->result.state, command->nature.one_way);

	dlist_delete(&command->dirty_node);
	command->dirty = false;
	if (command->unclaim && command->request && !settled)
		CommandForgetRequest(command);	/* read again at the next claim */
	command->unclaim = false;
	tell_cancellers(command);
	if (!settled && !command->temporary)
		return;
	CommandWake(&command->id);
	CallTell(command, &command->result);
	CommandForget(command);
}

static void
forget_evidences(void)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &evidences)
	{
		Evidence   *evidence = dlist_container(Evidence, node, iter.cur);

		dlist_delete(&evidence->node);
		MemoryContextDelete(evidence->context);
	}
}

/* Undo what a failed transaction left in memory: commands loaded for evidence, which is kept. */
static void
forget_temporaries(void)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &Changes)
	{
		Command    *command = dlist_container(Command, dirty_node, iter.cur);

		if (command->temporary)
			CommandForget(command);
	}
}

static bool
stays(const CommandEvent *event)
{
	return event->has_id && HeldIs(&event->id);
}

/* Events of commands that are set aside stay; all others are written. */
static void
write_events(void)
{
	CommandEvent *now = events;
	int			n = nevents;

	if (look_for_held)
	{
		now = palloc(sizeof(CommandEvent) * (nevents + 1));
		n = 0;
		for (int i = 0; i < nevents; i++)
			if (!stays(&events[i]))
				now[n++] = events[i];
	}
	CatalogInsertEvents(now, n);
}

/* They are written, but for those that stay. */
static void
forget_events(void)
{
	MemoryContext old = events_context;
	int			n = 0;

	if (old == NULL)
		return;
	if (!look_for_held)
	{
		MemoryContextReset(old);
		nevents = 0;
		return;
	}
	events_context = AllocSetContextCreate(TopMemoryContext, "hybridiot events", ALLOCSET_DEFAULT_SIZES);
	for (int i = 0; i < nevents; i++)
		if (stays(&events[i]))
		{
			events[n] = events[i];
			if (events[n].cause)
				events[n].cause = MemoryContextStrdup(events_context, events[n].cause);
			n++;
		}
	MemoryContextDelete(old);
	nevents = n;
}

/* A reply to a command that is set aside is settled after the transaction that writes it. */
static void
settle_held_later(void)
{
	dlist_head	later = DLIST_STATIC_INIT(later);
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &settlements)
	{
		Settlement *s = dlist_container(Settlement, node, iter.cur);

		if (!HeldIs(&s->command))
			continue;
		s->round = round;
		dlist_delete(&s->node);
		dlist_push_tail(&later, &s->node);
	}
	dlist_foreach_modify(iter, &later)
	{
		dlist_delete(iter.cur);
		dlist_push_tail(&settlements, iter.cur);
	}
}

static void
write_changes(void)
{
	CatalogScope scope;
	dlist_iter	iter;
	dlist_mutable_iter each;
	bool		flush = ChangesUrgent && synchronous_commit != SYNCHRONOUS_COMMIT_OFF;

	JournalBegin(&scope, "writing the journal of commands");
	dlist_foreach(iter, &evidences)
		weigh_evidence(dlist_container(Evidence, node, iter.cur));
	if (look_for_held)
		HeldMark();
	write_rows();
	write_events();
	JournalCommit(&scope, flush);

	written_lsn = XactLastCommitEnd;
	if (flush)
		flushed_round = round;
	round++;
	ChangesUrgent = false;
	lazy_since_ms = 0;
	if (look_for_held)
	{
		HeldSetAside();
		settle_held_later();
		look_for_held = !HeldIsEmpty();
	}
	forget_events();
	forget_evidences();
	dlist_foreach_modify(each, &Changes)
		change_written(dlist_container(Command, dirty_node, each.cur));
}

/* ---- settling replies ---- */

void
JournalSettleLater(Connection *connection, uint64 token, AmqpOutcome outcome, const pg_uuid_t *command)
{
	Settlement *s = MemoryContextAllocZero(TopMemoryContext, sizeof(Settlement));

	if (command)
		s->command = *command;
	s->connection = connection;
	s->token = token;
	s->outcome = outcome;
	s->round = round;
	dlist_push_tail(&settlements, &s->node);
	ChangesUrgent = true;
}

void
JournalForgetConnection(Connection *connection)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &settlements)
	{
		Settlement *s = dlist_container(Settlement, node, iter.cur);

		if (s->connection != connection)
			continue;
		dlist_delete(&s->node);
		pfree(s);
	}
}

static void
settle_replies(void)
{
	dlist_mutable_iter iter;
	static int64 since_ms = 0;	/* unflushed since */

	if (dlist_is_empty(&settlements))
	{
		since_ms = 0;
		return;
	}
	if (flushed_round + 1 < round)
	{
		if (since_ms == 0)
			since_ms = ClockMonotonicMs();
		if (GetFlushRecPtr(NULL) < written_lsn && ClockMonotonicMs() - since_ms >= FLUSH_MS)
			XLogFlush(written_lsn);
		if (GetFlushRecPtr(NULL) >= written_lsn)
			flushed_round = round - 1;
	}
	dlist_foreach_modify(iter, &settlements)
	{
		Settlement *s = dlist_container(Settlement, node, iter.cur);

		if (s->round > flushed_round)
			break;
		since_ms = 0;
		AmqpSettle(s->connection->amqp, s->token, s->outcome);
		dlist_delete(&s->node);
		pfree(s);
	}
}

void
JournalWrite(void)
{
	int64		now = ClockMonotonicMs();
	MemoryContext context = CurrentMemoryContext;
	int			events_before = nevents;

	HeldTryAgain(now);
	if (now >= retry_ms &&
		(ChangesUrgent || (lazy_since_ms != 0 && now - lazy_since_ms >= LAZY_MS)))
	{
		PG_TRY();
		{
			write_changes();
		}
		PG_CATCH();
		{
			bool		locked = JournalRecover(context, "writing the journal of commands", NULL) == ERRCODE_LOCK_NOT_AVAILABLE;

			nevents = events_before;
			HeldUnmark();
			forget_temporaries();
			if (locked && !look_for_held)
				look_for_held = true;	/* and again at once */
			else
				retry_later();
		}
		PG_END_TRY();
	}
	settle_replies();
}

long
JournalTimeout(void)
{
	int64		now = ClockMonotonicMs();
	int64		due = next_poll_ms;

	if (wants_more())
		return 0;
	due = Min(due, ClaimsDueMs());
	if (ChangesUrgent)
		due = Min(due, retry_ms);
	else if (lazy_since_ms != 0)
		due = Min(due, Max(retry_ms, lazy_since_ms + LAZY_MS));
	if (!dlist_is_empty(&settlements))
		due = Min(due, now + FLUSH_MS);
	due = Min(due, HeldDue());
	return (long) Max(0, due - now);
}

/* ---- housekeeping ---- */

static void
tidy(void)
{
	CatalogScope scope;
	MemoryContext context = CurrentMemoryContext;

	PG_TRY();
	{
		JournalBegin(&scope, "tidying the journal of commands");
		if (foreign_seen)
			(void) CatalogForgetHistory(epoch, false);
		/* All that is too old goes, in steps. */
		if (CatalogRemoveCommands(GetCurrentTimestamp() - (int64) hybridiot_command_retention * USECS_PER_SEC,
								  TIDY_LIMIT) == TIDY_LIMIT)
			next_tidy_ms = 0;
		JournalCommit(&scope, false);
		foreign_seen = false;
	}
	PG_CATCH();
	{
		(void) JournalRecover(context, "tidying the journal of commands", NULL);
	}
	PG_END_TRY();
}

void
JournalTidy(void)
{
	int64		now = ClockMonotonicMs();

	if (now >= next_poll_ms)
	{
		next_poll_ms = now + POLL_MS;
		tell_strays();
		JournalReadQueue();
	}
	else if (wants_more())
		read_queue(queue_unread);
	if (now >= next_tidy_ms)
	{
		next_tidy_ms = now + TIDY_MS;
		tidy();
	}
}
