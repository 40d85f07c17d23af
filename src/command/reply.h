/*
 * reply.h
 *		A device's reply: which command it answers, and what it says.
 */
#ifndef HYBRIDIOT_REPLY_H
#define HYBRIDIOT_REPLY_H

#include "command/request.h"
#include "transport/amqp_message.h"

typedef struct Reply
{
	bool		has_id;			/* false: it names no command */
	pg_uuid_t	id;
	const char *device;			/* NULL: it names none */
	bool		success;
	CommandResult result;		/* status, body, condition; not the state */
} Reply;

/*
 * Read a reply. oversize: the bytes are only its beginning. Everything is palloc'd. What the
 * device sent wrong is told in result.condition; raises only for lack of memory and the like.
 */
extern void ReplyRead(const char *bytes, size_t len, bool oversize, Reply *reply);

/*
 * What a peer says, as text of this database, palloc'd: what is no text in it is replaced, and
 * it is cut to a sensible length. NULL for NULL.
 */
extern char *PeerText(const char *text);

#endif							/* HYBRIDIOT_REPLY_H */
