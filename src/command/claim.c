/*
 * claim.c
 *		Commands are claimed before they leave: the intent is written, and flushed, and only
 *		then a byte is handed to the network.
 *
 * Many in one transaction; what cannot be claimed together is claimed one by one. The
 * row of a call's command appears with its claim, or as queued if it cannot leave yet.
 */
#include "postgres.h"

#include "access/xact.h"
#include "portability/instr_time.h"
#include "storage/proc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "command/journal_internal.h"
#include "command/worker.h"
#include "core/clock.h"
#include "core/worker.h"

/* Commands claimed in one transaction, */
#define MAX_CLAIMS 500
/* and when there are several senders, in about this time, so that none waits long for another's. */
#define MIN_CLAIMS 16
#define CLAIMS_US 2000
/* How long claims are tried one by one, after they failed together. */
#define SINGLE_CLAIMS_MS 500
#define KEY_LOCK_MS 50
/* How long a call's command that waits for its turn need not be written, as it may leave soon. */
#define UNWRITTEN_MS 20
/* After a claim failed. */
#define RETRY_FIRST_MS 50
#define RETRY_MAX_MS 5000

static List *unwritten = NIL;	/* commands of calls; in TopMemoryContext */
static int64 due_ms = 0;		/* monotonic: when some of them are to be written */
/* What one claim took lately, with its share of the flush. */
static double claim_us = 100;

int64
ClaimsDueMs(void)
{
	return unwritten == NIL ? PG_INT64_MAX : due_ms;
}

void
ClaimAddUnwritten(Command *command)
{
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

	unwritten = lappend(unwritten, command);
	due_ms = 0;
	MemoryContextSwitchTo(old);
}

/*
 * When an answer is due. A one-way command waits for its outcome as long as it could
 * have waited to be sent.
 */
static TimestampTz
answer_deadline(const Command *command, TimestampTz now)
{
	int64		within = command->reply_within_ms * 1000;

	if (command->nature.one_way)
		return Max(CommandExpiresAt(command, now), now + 1000000);
	if (command->nature.mode == MODE_STORE)
		return CommandExpiresAt(command, now) + within;
	return now + within;
}

/* Whoever holds the same idempotency key in an open transaction is waited for only for a moment. */
static bool
insert_command(const CommandRequest *request, CommandState state, TimestampTz answer_by)
{
	int			configured = LockTimeout;
	volatile bool inserted = false;

	LockTimeout = KEY_LOCK_MS;
	PG_TRY();
	{
		inserted = CatalogInsertCommand(request, state, answer_by);
	}
	PG_FINALLY();
	{
		LockTimeout = configured;
	}
	PG_END_TRY();
	return inserted;
}

/*
 * A call's command, to be written: claimed if it can leave now. What has an idempotency key is written at once. False: it
 * was known before.
 */
static bool
write_call(Command *command, bool sending, TimestampTz answer_by, NewCommand *rows, int *nrows)
{
	const CommandRequest *request = command->request;
	NewCommand	row = {request, sending ? COMMAND_SENDING : COMMAND_QUEUED, sending ? answer_by : 0};
	pg_uuid_t	known;
	bool		same;

	if (request->idempotency_key == NULL)
	{
		rows[(*nrows)++] = row;
		return true;
	}
	if (CatalogFindIdempotent(request, &known, &same))
	{
		CallTellKnown(command, &known, same);
		return false;
	}
	if (!insert_command(request, row.state, row.answer_by))
		ereport(ERROR,
				(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
				 errmsg("the idempotency key is being used by another transaction")));
	CatalogInsertOrigins(&row, 1, JournalEpoch());
	return true;
}

/* One claim. False: there is nothing to send, the command is no more ours. */
static bool
claim(Command *command, TimestampTz answer_by, NewCommand *rows, int *nrows)
{
	CommandRequest *request;

	if (command->unwritten)
		return write_call(command, true, answer_by, rows, nrows);
	request = CatalogClaimCommand(&command->id, JournalEpoch(), answer_by, CommandContext(command));
	if (request)
		command->request = request;
	return request != NULL;
}

/*
 * Claim n commands in one transaction, and write those of calls that cannot leave yet.
 * Commands that are gone are set to NULL. Raises what the journal raises; nothing is changed in memory
 * then.
 */
static void
claim_batch(Command **commands, int n, Command **waiting, int nwaiting)
{
	CatalogScope scope;
	TimestampTz now = JournalEventTime();
	TimestampTz *answer_by = palloc(sizeof(TimestampTz) * (n + 1));
	bool	   *gone = palloc0(n + nwaiting + 1);
	CommandEvent *claimed = palloc0(sizeof(CommandEvent) * 2 * (n + nwaiting + 1));
	int			nclaimed = 0;
	NewCommand *rows = palloc(sizeof(NewCommand) * (n + nwaiting + 1));
	int			nrows = 0;
	bool		flush = synchronous_commit != SYNCHRONOUS_COMMIT_OFF;
	const char *queued = CommandStateName(COMMAND_QUEUED);
	const char *sending = CommandStateName(COMMAND_SENDING);

	JournalBegin(&scope, "claiming commands");
	for (int i = 0; i < n; i++)
	{
		Command    *command = commands[i];

		answer_by[i] = answer_deadline(command, now);
		gone[i] = !claim(command, answer_by[i], rows, &nrows);
		if (gone[i])
			continue;
		if (command->unwritten)
			claimed[nclaimed++] = (CommandEvent) {true, command->id, command->request->queued_at, queued, NULL};
		else
			flush = true;		/* it could be sent again after a crash */
		claimed[nclaimed++] = (CommandEvent) {true, command->id, now, sending, NULL};
	}
	for (int i = 0; i < nwaiting; i++)
	{
		gone[n + i] = !write_call(waiting[i], false, 0, rows, &nrows);
		if (!gone[n + i])
			claimed[nclaimed++] = (CommandEvent) {true, waiting[i]->id, waiting[i]->request->queued_at, queued, NULL};
	}
	CatalogInsertCommands(rows, nrows);
	CatalogInsertOrigins(rows, nrows, JournalEpoch());
	CatalogInsertEvents(claimed, nclaimed);
	JournalCommit(&scope, flush);

	for (int i = 0; i < n; i++)
	{
		Command    *command = commands[i];

		command->unwritten = false;
		if (gone[i])
		{
			CommandForget(command);
			commands[i] = NULL;
			continue;
		}
		command->result.state = COMMAND_SENDING;
		command->answer_by = answer_by[i];
		command->answer_ms = ClockMonotonicMs() + (answer_by[i] - now) / 1000;
	}
	for (int i = 0; i < nwaiting; i++)
	{
		waiting[i]->unwritten = false;
		if (gone[n + i])
			CommandForget(waiting[i]);
		else
			CommandSetTimer(waiting[i]);
	}
}

/* A claim that cannot be made: a call is told, a queued command is tried again later. */
static void
claim_failed(Command *command, int sqlstate, const char *message)
{
	if (command->unwritten)
	{
		CallRefuseCommand(command, sqlstate, message);
		CommandForget(command);
		return;
	}
	command->not_before_ms = ClockMonotonicMs() + BackoffNext(&command->claim_backoff_ms,
															  RETRY_FIRST_MS, RETRY_MAX_MS);
	CommandSetTimer(command);
}

/* Not tried: what the journal does not know stays with the unwritten, the rest waits where it waits. */
static void
claim_later(Command *command)
{
	if (command->unwritten)
		ClaimAddUnwritten(command);
}

/* As claim_batch(); an error is told by its SQLSTATE. */
static int
try_claim(Command **commands, int n, Command **waiting, int nwaiting, char **message)
{
	MemoryContext context = CurrentMemoryContext;
	volatile int sqlstate = 0;

	PG_TRY();
	{
		claim_batch(commands, n, waiting, nwaiting);
	}
	PG_CATCH();
	{
		sqlstate = JournalRecover(context, "claiming commands", message);
	}
	PG_END_TRY();
	return sqlstate;
}

static bool
has_key(const Command *command)
{
	return command->unwritten && command->request->idempotency_key;
}

/*
 * Claim; what cannot be claimed together is claimed one by one, so that one lock in the
 * way does not keep the others. If all of them are in its way, that would take too long.
 */
static void
claim_all(Command **commands, int n, Command **waiting, int nwaiting)
{
	int64		until = ClockMonotonicMs() + SINGLE_CLAIMS_MS;
	char	   *message = NULL;
	int			sqlstate = try_claim(commands, n, waiting, nwaiting, &message);

	if (sqlstate == 0)
		return;
	if (n + nwaiting == 1)
	{
		claim_failed(n == 1 ? commands[0] : waiting[0], sqlstate, message);
		if (n == 1)
			commands[0] = NULL;
		return;
	}
	for (int i = 0; i < n; i++)
	{
		if (ClockMonotonicMs() < until)
			claim_all(&commands[i], 1, NULL, 0);
		else
		{
			claim_later(commands[i]);
			commands[i] = NULL;
		}
	}
	for (int i = 0; i < nwaiting; i++)
	{
		if (ClockMonotonicMs() < until)
			claim_all(NULL, 0, &waiting[i], 1);
		else
			claim_later(waiting[i]);
	}
}

/* The last look before the first byte. */
static void
send_claimed(Command *command)
{
	if (GetCurrentTimestamp() >= command->expires_at || ClockMonotonicMs() >= command->expires_ms)
	{
		QueueRemove(command);
		CommandChange(command, COMMAND_EXPIRED, NULL);
	}
	else if (ConnectionSend(command))
		CommandSetTimer(command);
	else
	{
		QueueRemove(command);
		CommandLost(command, false);
	}
}

/* How many claims make a transaction: while several send, no more than a moment's. */
static int
claims_at_once(void)
{
	if (!QueueIsShared())
		return MAX_CLAIMS;
	return Min(MAX_CLAIMS, Max(MIN_CLAIMS, (int) (CLAIMS_US / claim_us)));
}

/* Of the calls' commands that cannot leave now, some to be written; the rest stays. */
static int
take_waiting(Command **waiting, int max)
{
	List	   *rest = NIL;
	int			n = 0;
	bool		shared = QueueIsShared();
	int64		now = ClockMonotonicMs();
	ListCell   *lc;
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

	due_ms = PG_INT64_MAX;
	foreach(lc, unwritten)
	{
		Command    *command = lfirst(lc);

		if (command->claiming)
			continue;
		if (shared && now < command->came_ms + UNWRITTEN_MS)
		{
			rest = lappend(rest, command);
			due_ms = Min(due_ms, command->came_ms + UNWRITTEN_MS);
		}
		else if (n < max)
			waiting[n++] = command;
		else
		{
			rest = lappend(rest, command);
			due_ms = now;
		}
	}
	MemoryContextSwitchTo(old);
	list_free(unwritten);
	unwritten = rest;
	return n;
}

/*
 * Commands of calls with an idempotency key, which another transaction may hold, are claimed behind the others,
 * which then need not be claimed one by one because of them. Their order is the same afterwards.
 */
static void
claim_apart(Command **commands, int n, Command **waiting, int nwaiting)
{
	Command   **sorted = palloc(sizeof(Command *) * (n + nwaiting + 1));
	Command   **sorted_waiting = sorted + n;
	int		   *place = palloc(sizeof(int) * (n + 1));
	int			done[2] = {0, 0};
	int			end = 0;
	int			end_waiting = 0;

	for (int keyed = 0; keyed <= 1; keyed++)
	{
		for (int i = 0; i < n; i++)
			if (has_key(commands[i]) == (keyed == 1))
			{
				place[end] = i;
				sorted[end++] = commands[i];
			}
		for (int i = 0; i < nwaiting; i++)
			if (has_key(waiting[i]) == (keyed == 1))
				sorted_waiting[end_waiting++] = waiting[i];
		if (keyed == 0)
		{
			done[0] = end;
			done[1] = end_waiting;
		}
	}
	if (done[0] + done[1] > 0)
		claim_all(sorted, done[0], sorted_waiting, done[1]);
	if (end + end_waiting > done[0] + done[1])
		claim_all(sorted + done[0], end - done[0], sorted_waiting + done[1], end_waiting - done[1]);
	for (int i = 0; i < n; i++)
		commands[place[i]] = sorted[i];
}

void
ClaimAndSend(void)
{
	int			max = claims_at_once();
	Command   **commands = palloc(sizeof(Command *) * max);
	Command   **waiting = palloc(sizeof(Command *) * max);
	int			n = QueueSendable(commands, max);
	int			nwaiting;
	instr_time	begun;
	instr_time	took;

	if (n == 0 && unwritten == NIL)
		return;
	for (int i = 0; i < n; i++)
		commands[i]->claiming = true;
	nwaiting = take_waiting(waiting, Max(max - n, MIN_CLAIMS));
	for (int i = 0; i < n; i++)
		commands[i]->claiming = false;
	if (n + nwaiting == 0)
		return;

	INSTR_TIME_SET_CURRENT(begun);
	claim_apart(commands, n, waiting, nwaiting);
	INSTR_TIME_SET_CURRENT(took);
	INSTR_TIME_SUBTRACT(took, begun);
	claim_us = claim_us * 0.8 + INSTR_TIME_GET_DOUBLE(took) * 1e6 / (n + nwaiting) * 0.2;
	for (int i = 0; i < n; i++)
		if (commands[i])
			send_claimed(commands[i]);
}
