/*
 * journal_ask.c
 *		What callers ask of the journal about commands that are not in memory: to cancel
 *		one, to resolve it, and what is known of it.
 *
 * A transaction each, tried once: whoever asked is told if it fails.
 */
#include "postgres.h"

#include "foreign/foreign.h"
#include "utils/timestamp.h"

#include "command/journal_internal.h"
#include "command/worker.h"

bool
JournalCancel(CallSlot *slot, const pg_uuid_t *id)
{
	MemoryContext context = CurrentMemoryContext;
	CatalogScope scope;
	CommandRequest *request;
	char	   *message;
	int			sqlstate;
	volatile bool answered = true;

	PG_TRY();
	{
		JournalBegin(&scope, "cancelling a command");
		request = CatalogClaimCommand(id, JournalEpoch(), 0, context);
		if (request)
		{
			CommandResult result = {.state = COMMAND_CANCELLED};
			CommandUpdate update = {.id = *id,.result = &result,.clear_sent = true};
			CommandEvent event = {true, *id, JournalEventTime(), CommandStateName(COMMAND_CANCELLED), NULL};

			CatalogUpdateCommands(&update, 1);
			CatalogDeleteOrigins(id, 1);
			CatalogInsertEvents(&event, 1);
		}
		JournalCommit(&scope, true);
		if (request)
		{
			CommandWake(id);
			CallReply(slot, 0, "cancelled", strlen("cancelled"));
		}
		else
			answered = false;
	}
	PG_CATCH();
	{
		sqlstate = JournalRecover(context, "cancelling a command", &message);
		CallRefuse(slot, sqlstate, message);
	}
	PG_END_TRY();
	return answered;
}

void
JournalResolve(CallSlot *slot, const CommandResolution *resolution)
{
	MemoryContext context = CurrentMemoryContext;
	CatalogScope scope;
	CommandState state;
	bool		known;
	char	   *message;
	int			sqlstate;

	PG_TRY();
	{
		JournalBegin(&scope, "resolving a command");
		known = CatalogResolveCommand(resolution, &state);
		JournalCommit(&scope, true);
		if (known && CommandIsUncertain(state))
			CallReply(slot, 0, "resolved", strlen("resolved"));
		else
			CallRefuse(slot, ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
					   known ? psprintf("the command is %s meanwhile", CommandStateName(state)) :
					   "the command was removed meanwhile");
	}
	PG_CATCH();
	{
		sqlstate = JournalRecover(context, "resolving a command", &message);
		CallRefuse(slot, sqlstate, message);
	}
	PG_END_TRY();
}

bool
JournalLoadStored(CallSlot *slot, const pg_uuid_t *id, Command **loaded)
{
	MemoryContext context = CurrentMemoryContext;
	CatalogScope scope;
	CommandRow *volatile row = NULL;
	volatile Oid server = InvalidOid;
	Command    *command;
	char	   *message;
	int			sqlstate = 0;

	*loaded = NULL;
	PG_TRY();
	{
		JournalBegin(&scope, "reading a command that is to be cancelled");
		row = CatalogReadCommand(id, context);
		if (row)
			server = get_foreign_server_oid(row->server_name, true);
		JournalCommit(&scope, false);
	}
	PG_CATCH();
	{
		sqlstate = JournalRecover(context, "reading a command that is to be cancelled", &message);
	}
	PG_END_TRY();
	if (sqlstate != 0)
	{
		CallRefuse(slot, sqlstate, message);
		return false;
	}

	if (row == NULL || (row->result.state != COMMAND_ACCEPTED && row->result.state != COMMAND_IN_DOUBT))
		return true;
	command = CommandFind(id);
	if (command == NULL && !CommandIsSettled(row->result.state, row->one_way))
		return true;			/* it has just changed */
	if (command == NULL)
	{
		command = CommandCreate(id, row->device, false);
		command->nature.mode = row->mode;
		command->nature.one_way = row->one_way;
		command->result.state = row->result.state;
	}
	command->server = server;
	command->connection = ConnectionFind(server);
	if (command->connection)
		command->nature.peer = command->connection->peer;
	*loaded = command;
	return true;
}
