/*
 * catalog_command.h
 *		The journal of commands as rows: hybridiot.command, command_event,
 *		command_origin, command_reply and reply_address.
 *
 * Functions run between CatalogEnter() and CatalogLeave() of the caller, so that
 * a worker's transaction pays for the change of role once. None decides who may
 * do what.
 */
#ifndef HYBRIDIOT_CATALOG_COMMAND_H
#define HYBRIDIOT_CATALOG_COMMAND_H

#include "utils/jsonb.h"
#include "utils/uuid.h"

#include "core/catalog.h"

typedef enum CommandState
{
	COMMAND_QUEUED,
	COMMAND_SENDING,
	COMMAND_SENT,
	COMMAND_ACCEPTED,
	COMMAND_SUCCEEDED,
	COMMAND_FAILED,
	COMMAND_REJECTED,
	COMMAND_UNDELIVERABLE,
	COMMAND_EXPIRED,
	COMMAND_CANCELLED,
	COMMAND_TIMED_OUT,
	COMMAND_IN_DOUBT
} CommandState;

typedef enum CommandMode
{
	MODE_DIRECT,
	MODE_STORE
} CommandMode;

typedef enum AcceptedBy
{
	ACCEPTED_BY_NOBODY,
	ACCEPTED_BY_DEVICE,
	ACCEPTED_BY_HONO,
	ACCEPTED_BY_BROKER
} AcceptedBy;

extern const char *CommandStateName(CommandState state);
extern const char *CommandModeName(CommandMode mode);
extern const char *AcceptedByName(AcceptedBy by);	/* NULL for nobody */
/* ereport 23514 if one of them, each of which may be NULL, is none of the above. */
extern void CommandCheckWords(const char *mode, const char *state, const char *accepted_by);
/* Does the state stay unless late evidence comes? */
extern bool CommandIsSettled(CommandState state, bool one_way);
/* May the device have acted, and nobody knows? */
extern bool CommandIsUncertain(CommandState state);

/* What a sender asked for, checked. */
typedef struct CommandRequest
{
	pg_uuid_t	id;
	const char *device;
	const char *command;
	const char *sender;			/* role */
	Oid			server;
	const char *server_name;
	CommandMode mode;
	Jsonb	   *payload;		/* NULL: none */
	bytea	   *body;			/* NULL: none */
	const char *content_type;	/* NULL: none */
	Jsonb	   *properties;		/* NULL: none */
	int			priority;		/* -1: none */
	int64		ttl_ms;
	int64		reply_within_ms;	/* 0: one-way */
	TimestampTz queued_at;
	TimestampTz expires_at;
	const char *idempotency_key;	/* NULL: none */
} CommandRequest;

/* A command that enters the journal. */
typedef struct NewCommand
{
	const CommandRequest *request;
	CommandState state;
	TimestampTz answer_by;		/* 0: not known yet */
} NewCommand;

/* What became of a command; zero, NULL and nobody where nothing is known. */
typedef struct CommandResult
{
	CommandState state;
	AcceptedBy	accepted_by;
	TimestampTz sent_at;
	TimestampTz accepted_at;
	TimestampTz replied_at;
	bool		has_status;
	int32		status;
	const char *content_type;	/* of the reply */
	Jsonb	   *payload;
	bytea	   *body;
	const char *condition;
	const char *description;
} CommandResult;

/* What a person found out about a command that was uncertain. */
typedef struct CommandResolution
{
	pg_uuid_t	id;
	const char *outcome;		/* 'executed' or 'not_executed' */
	const char *role;			/* whose word it is */
	const char *note;			/* NULL: none */
} CommandResolution;

/* A row of the journal as far as waiting and late evidence need it. */
typedef struct CommandRow
{
	pg_uuid_t	id;
	char	   *device;
	char	   *command;
	char	   *sender;
	char	   *server_name;
	CommandMode mode;
	bool		one_way;
	bool		own;			/* written by the present transaction */
	CommandResult result;
} CommandRow;

/* A queued command, before it is claimed. */
typedef struct QueuedCommand
{
	pg_uuid_t	id;
	Oid			server;
	char	   *device;
	CommandMode mode;
	TimestampTz expires_at;
	int64		reply_within_ms;
	uint64		xid;			/* its place in the queue: transaction, */
	int64		seq;			/* and order within */
	int			place;			/* index of the QueuePlace it was read for */
	bool		foreign;		/* of another database, or restored: not to be sent */
} QueuedCommand;

/* How far a sender's queue was read, and how much is to be read of it. */
typedef struct QueuePlace
{
	const char *sender;
	uint64		xid;			/* behind this place; 0, 0: from its beginning */
	int64		seq;
	int			limit;
} QueuePlace;

/* A command accepted in an earlier life of the worker, still without reply. */
typedef struct OpenCommand
{
	pg_uuid_t	id;
	Oid			server;
	char	   *device;
	CommandMode mode;
	TimestampTz answer_by;
} OpenCommand;

/* A change of a row. Of result, what is set is written, the rest is kept. */
typedef struct CommandUpdate
{
	pg_uuid_t	id;
	const CommandResult *result;
	TimestampTz answer_by;		/* 0: kept */
	bool		clear_sent;		/* back to the queue */
} CommandUpdate;

/* A row of command_event. */
typedef struct CommandEvent
{
	bool		has_id;			/* false: of a reply that names no command */
	pg_uuid_t	id;
	TimestampTz at;
	const char *state;			/* NULL: nothing changed */
	const char *cause;			/* NULL: none */
} CommandEvent;

/*
 * Insert into the journal. False: the idempotency key is taken, nothing was
 * done. answer_by 0: not known yet.
 */
extern bool CatalogInsertCommand(const CommandRequest *request, CommandState state,
								 TimestampTz answer_by);
/* Insert many, none of which has an idempotency key. */
extern void CatalogInsertCommands(const NewCommand *commands, int n);
/*
 * The id that holds the request's idempotency key; false if there is none (any more).
 * *same: it was asked for with the same arguments.
 */
extern bool CatalogFindIdempotent(const CommandRequest *request, pg_uuid_t *id, bool *same);
/* Note where commands that are not final come from, and whose queue they are in. Those that are not queued are claimed by epoch. */
extern void CatalogInsertOrigins(const NewCommand *commands, int n, int64 epoch);
/* A row restored from a dump: it comes from nowhere we know. */
extern void CatalogInsertForeignOrigin(const pg_uuid_t *id);
extern void CatalogDeleteOrigins(const pg_uuid_t *ids, int n);

/* NULL: there is none. Sees what is committed now, whatever the transaction's snapshot. */
extern CommandRow *CatalogReadCommand(const pg_uuid_t *id, MemoryContext context);
/*
 * Note a resolution, and its event, if the command is uncertain; the same words of the same role
 * twice are one. *state: as it is, and stays. False: there is no such command.
 */
extern bool CatalogResolveCommand(const CommandResolution *resolution, CommandState *state);
extern void CatalogUpdateCommands(const CommandUpdate *updates, int n);
/*
 * Lock the rows of these commands, but for those that another session has locked: their ids are put into held, which has
 * room for n. Returns how many. Waits for no row, but for the table.
 */
extern int	CatalogHeldCommands(const pg_uuid_t *ids, int n, pg_uuid_t *held);
extern void CatalogInsertEvents(const CommandEvent *events, int n);

/*
 * Unclaimed commands of each sender behind its place, in order; returns how many. What transactions
 * that are still running queue lies at or behind CatalogQueueHorizon(), taken before.
 */
extern uint64 CatalogQueueHorizon(void);
extern int	CatalogReadQueue(const QueuePlace *places, int nplaces,
							 QueuedCommand **commands, MemoryContext context);
/*
 * Senders in the queue that are not known yet: of those between two known names the first, so ask again
 * until there is none. "" has to be known. Returns how many.
 */
extern int	CatalogNewSenders(const char **known, int nknown, char ***names, MemoryContext context);
/*
 * Claim a queued command; NULL if it is not queued (any more). The row is
 * read in full; content_type etc. live in context.
 */
extern CommandRequest *CatalogClaimCommand(const pg_uuid_t *id, int64 epoch,
										   TimestampTz answer_by, MemoryContext context);
/* Give claims back. */
extern void CatalogUnclaim(const pg_uuid_t *ids, int n);

extern int64 CatalogNextEpoch(void);
/*
 * No history: commands of an older epoch that may have left, and all that come from
 * elsewhere or from nowhere, become in doubt. all: look through the whole journal for
 * rows without origin. Returns how many.
 */
extern int	CatalogForgetHistory(int64 epoch, bool all);
/* Commands that wait for a reply since an earlier epoch; they are ours now. */
extern int	CatalogAdoptAccepted(int64 epoch, OpenCommand **commands, MemoryContext context);

/* This database's reply id for a server; the same for ever, but not in a copy. */
extern void CatalogReplyId(Oid server, pg_uuid_t *id);

/* Oid of the table hybridiot.command; InvalidOid if it is not there. */
extern Oid	CatalogJournal(void);

/* Oids and names of servers of a wrapper. */
extern int	CatalogServers(const char *wrapper, Oid **servers, MemoryContext context);

/* Remove settled commands older than this, and their events; at most limit. Returns how many. */
extern int	CatalogRemoveCommands(TimestampTz before, int limit);

/* Our own inserts, as opposed to a user's: the journal's trigger leaves them alone. */
extern bool CatalogInsertingCommand;

#endif							/* HYBRIDIOT_CATALOG_COMMAND_H */
