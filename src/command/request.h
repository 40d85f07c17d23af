/*
 * request.h
 *		A command as its sender asks for it: checks, defaults, and the flat form in
 *		which requests and results go through shared memory.
 */
#ifndef HYBRIDIOT_REQUEST_H
#define HYBRIDIOT_REQUEST_H

#include "fmgr.h"
#include "lib/stringinfo.h"
#include "utils/timestamp.h"

#include "core/catalog_command.h"

#define MAX_NAME 1024			/* bytes of a device's or command's name, of a pattern, of a note */

/* What was typed; NULL where nothing, or NULL, was given. */
typedef struct CommandArguments
{
	const char *device;
	const char *command;
	Jsonb	   *payload;
	Interval   *ttl;
	Interval   *reply_within;
	const char *server;
	const char *mode;
	bytea	   *body;
	const char *content_type;
	Jsonb	   *properties;
	bool		has_priority;
	int			priority;
	const char *idempotency_key;
} CommandArguments;

/* As uuid_out() writes it; palloc'd. */
extern char *UuidText(const pg_uuid_t *id);
/* Arguments of an SQL function from number first on: ttl ... idempotency_key, as in send_command(). */
extern void ArgumentsFromCall(FunctionCallInfo fcinfo, int first, CommandArguments *arguments);

/* Raises 22004 for NULL if required, 22023 for what is empty or longer than max bytes. */
extern void RequestCheckWord(const char *name, const char *value, bool required, size_t max);
/*
 * Check all, the current user's rights included, and fill in defaults, id and times. what: the
 * function's name, for errors. Raises 22004, 22023, 42501, 42704, 42809, 54000, 55000, 0A000.
 */
extern CommandRequest *RequestCheck(const CommandArguments *arguments, const char *what);

/* How the peer of an AMQP server is to be understood. */
typedef enum PeerKind
{
	PEER_BROKER,
	PEER_ROUTER,
	PEER_HONO
} PeerKind;

extern PeerKind ServerPeer(List *server_options);
/* Body of the message: the payload's text, the body, or nothing; palloc'd. */
extern void RequestBody(const CommandRequest *request, const char **body, Size *len,
						const char **content_type);

/* Flat form; unpacking copies and returns the bytes behind it. */
extern void RequestPack(StringInfo buf, const CommandRequest *request);
extern const char *RequestUnpack(const char *bytes, CommandRequest *request);
extern void ResolutionPack(StringInfo buf, const CommandResolution *resolution);
extern void ResolutionUnpack(const char *bytes, CommandResolution *resolution);
extern void ResultPack(StringInfo buf, const CommandResult *result);
extern void ResultUnpack(const char *bytes, CommandResult *result);

/* Raise 55000 in a pipeline worker. */
extern void RefuseInPipeline(const char *what);

#endif							/* HYBRIDIOT_REQUEST_H */
