/*
 * state.h
 *		The life of a command as a pure function: state and evidence in, state out.
 */
#ifndef HYBRIDIOT_STATE_H
#define HYBRIDIOT_STATE_H

#include "command/request.h"
#include "transport/amqp.h"

/* What a command is, as far as its life depends on it. */
typedef struct CommandNature
{
	PeerKind	peer;
	CommandMode mode;
	bool		one_way;
	bool		offered;		/* was handed over before (store mode on a router) */
	bool		removed;		/* cancelled by removal from the broker's queue */
} CommandNature;

/*
 * Each returns whether the state changes, and if so to what; cause tells, for the event,
 * why (or, without a change, what came too late).
 */
extern bool StateAfterOutcome(CommandState now, const CommandNature *nature, AmqpOutcome outcome,
							  CommandState *next, const char **cause);
extern bool StateAfterLoss(CommandState now, bool transferred,
						   CommandState *next, const char **cause);
extern bool StateAfterReply(CommandState now, const CommandNature *nature, bool success,
							CommandState *next, const char **cause);
/* May a broker still hold it in a queue, from which it could be removed? */
extern bool StateMayBeRemoved(CommandState now, const CommandNature *nature);
/* Exactly one was removed from the broker's queue, unread. */
extern bool StateAfterRemoval(CommandState now, const CommandNature *nature,
							  CommandState *next, const char **cause);
extern bool StateAfterDeadline(CommandState now, CommandState *next, const char **cause);

/* Who is meant when a peer accepts. */
extern AcceptedBy StateAcceptedBy(PeerKind peer);

#endif							/* HYBRIDIOT_STATE_H */
