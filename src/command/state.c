/*
 * state.c
 *		The life of a command as a pure function.
 *
 * The rule behind all cases: a command that may have left is never sent
 * again, nobody is told a guess, and evidence from the device wins over what was
 * concluded without it.
 */
#include "postgres.h"

#include "command/state.h"

AcceptedBy
StateAcceptedBy(PeerKind peer)
{
	switch (peer)
	{
		case PEER_BROKER:
			return ACCEPTED_BY_BROKER;
		case PEER_ROUTER:
			return ACCEPTED_BY_DEVICE;
		case PEER_HONO:
			return ACCEPTED_BY_HONO;
	}
	pg_unreachable();
}

/* What an outcome says about a command that waits for one. */
static CommandState
meaning(const CommandNature *nature, AmqpOutcome outcome, const char **cause)
{
	switch (outcome)
	{
		case AMQP_ACCEPTED:
			*cause = NULL;
			return COMMAND_ACCEPTED;
		case AMQP_REJECTED:
			*cause = NULL;
			return COMMAND_REJECTED;
		case AMQP_RELEASED:
			*cause = "released";
			if (nature->peer == PEER_HONO)
				return COMMAND_IN_DOUBT;
			if (nature->peer == PEER_ROUTER && nature->mode == MODE_STORE)
				return COMMAND_QUEUED;
			return COMMAND_UNDELIVERABLE;
		case AMQP_MODIFIED:
			*cause = "modified";
			return COMMAND_IN_DOUBT;
		case AMQP_NO_STATE:
			*cause = "settled without a state";
			return COMMAND_IN_DOUBT;
	}
	pg_unreachable();
}

bool
StateAfterOutcome(CommandState now, const CommandNature *nature, AmqpOutcome outcome,
				  CommandState *next, const char **cause)
{
	CommandState told = meaning(nature, outcome, cause);

	switch (now)
	{
		case COMMAND_SENDING:
		case COMMAND_SENT:
			*next = told;
			return true;
		case COMMAND_IN_DOUBT:
			/* Late, but certain: it was not executed. It is not offered again either. */
			if (told == COMMAND_QUEUED)
				told = COMMAND_UNDELIVERABLE;
			*next = told;
			if (told == COMMAND_REJECTED || told == COMMAND_UNDELIVERABLE)
				return true;
			break;
		case COMMAND_QUEUED:
		case COMMAND_ACCEPTED:
		case COMMAND_SUCCEEDED:
		case COMMAND_FAILED:
		case COMMAND_REJECTED:
		case COMMAND_UNDELIVERABLE:
		case COMMAND_EXPIRED:
		case COMMAND_CANCELLED:
		case COMMAND_TIMED_OUT:
			break;
	}
	if (*cause == NULL)
		*cause = outcome == AMQP_ACCEPTED ? "outcome accepted came late" : "outcome rejected came late";
	return false;
}

bool
StateAfterLoss(CommandState now, bool transferred, CommandState *next, const char **cause)
{
	if (now != COMMAND_SENDING && now != COMMAND_SENT)
		return false;
	*next = transferred ? COMMAND_IN_DOUBT : COMMAND_QUEUED;
	*cause = transferred ? "the connection was lost before an outcome came" :
		"the connection was lost before a byte of it was written";
	return true;
}

bool
StateAfterReply(CommandState now, const CommandNature *nature, bool success,
				CommandState *next, const char **cause)
{
	*next = success ? COMMAND_SUCCEEDED : COMMAND_FAILED;
	*cause = NULL;
	switch (now)
	{
		case COMMAND_SENDING:
		case COMMAND_SENT:
		case COMMAND_TIMED_OUT:
		case COMMAND_IN_DOUBT:
		case COMMAND_REJECTED:
		case COMMAND_UNDELIVERABLE:
			return true;
		case COMMAND_ACCEPTED:
			if (!nature->one_way)
				return true;
			*cause = "a reply came though none was asked for";
			return false;
		case COMMAND_QUEUED:
			/* Released, it is said, and yet somebody answers: it must not leave again. */
			if (nature->offered)
				return true;
			*cause = "a reply came before it was sent";
			return false;
		case COMMAND_SUCCEEDED:
		case COMMAND_FAILED:
			*cause = "a second reply came";
			return false;
		case COMMAND_CANCELLED:
			/* A device had it, did it, and gave it back to the broker all the same. */
			if (nature->removed)
				return true;
			*cause = "a reply came though it was never sent";
			return false;
		case COMMAND_EXPIRED:
			*cause = "a reply came though it was never sent";
			return false;
	}
	pg_unreachable();
}

bool
StateMayBeRemoved(CommandState now, const CommandNature *nature)
{
	return nature->peer == PEER_BROKER && nature->mode == MODE_STORE &&
		(now == COMMAND_ACCEPTED || now == COMMAND_IN_DOUBT);
}

bool
StateAfterRemoval(CommandState now, const CommandNature *nature, CommandState *next, const char **cause)
{
	if (!StateMayBeRemoved(now, nature))
		return false;
	*next = COMMAND_CANCELLED;
	*cause = "removed from the broker's queue";
	return true;
}

bool
StateAfterDeadline(CommandState now, CommandState *next, const char **cause)
{
	switch (now)
	{
		case COMMAND_SENDING:
		case COMMAND_SENT:
			*next = COMMAND_IN_DOUBT;
			*cause = "no outcome by the answer deadline";
			return true;
		case COMMAND_ACCEPTED:
			*next = COMMAND_TIMED_OUT;
			*cause = "no reply by the answer deadline";
			return true;
		case COMMAND_QUEUED:
		case COMMAND_SUCCEEDED:
		case COMMAND_FAILED:
		case COMMAND_REJECTED:
		case COMMAND_UNDELIVERABLE:
		case COMMAND_EXPIRED:
		case COMMAND_CANCELLED:
		case COMMAND_TIMED_OUT:
		case COMMAND_IN_DOUBT:
			return false;
	}
	pg_unreachable();
}
