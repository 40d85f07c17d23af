/*
 * callslot.h
 *		Synchronous calls between sessions and the AMQP worker: slots in shared
 *		memory, payloads in a dynamic shared area, two latches.
 *
 * A slot goes FREE -> FILLING (caller) -> REQUESTED -> TAKEN (worker) -> DONE -> FREE
 * (caller). A caller that leaves early abandons it and wakes the worker, which frees it. A
 * worker that ends marks its slots LOST. Slots and payloads live until the postmaster
 * starts over; nothing here survives a crash.
 */
#ifndef HYBRIDIOT_CALLSLOT_H
#define HYBRIDIOT_CALLSLOT_H

#include "storage/latch.h"
#include "utils/dsa.h"
#include "utils/uuid.h"

#include "core/hybridiot.h"

typedef enum CallKind
{
	CALL_SEND,					/* send commands and wait for what becomes of them */
	/* These are short, and have slots of their own: */
	CALL_CANCEL,				/* cancel a command */
	CALL_RESOLVE				/* note what was found out about an uncertain one */
} CallKind;

typedef enum CallState
{
	CALL_FREE,
	CALL_FILLING,
	CALL_REQUESTED,
	CALL_TAKEN,
	CALL_DONE,
	CALL_FAILED,				/* the worker refused: sqlstate, message */
	CALL_LOST					/* the worker ended */
} CallState;

typedef struct CallSlot CallSlot;

extern Size CallShmemSize(void);
extern void CallShmemInit(bool found);

/* ---- the caller's side ---- */

/*
 * Take a slot and hand over n requests (packed, one after the other; CALL_SEND only). ereport 53000 when
 * the slots of that sort, or the role's share of them or of their memory, are used up. The slot is given up by itself when
 * the caller's (sub)transaction aborts or its process ends.
 */
extern CallSlot *CallBegin(CallKind kind, Oid role, const char *request, Size len, int n);
/*
 * Wait until it is answered, or timeout_ms pass; interruptible. Returns the state. Throws on cancel,
 * after which the slot is given up.
 */
extern CallState CallWait(CallSlot *slot, long timeout_ms);
extern CallState CallGetState(CallSlot *slot);
/* Did the worker take it? */
extern bool CallWasTaken(CallSlot *slot);
/* The answer to request i (CALL_DONE), or NULL; lives until CallEnd(). */
extern const char *CallAnswer(CallSlot *slot, int i, Size *len);
/* SQLSTATE and message of CALL_FAILED; in the caller's memory context. */
extern int	CallError(CallSlot *slot, char **message);
extern void CallEnd(CallSlot *slot);

/* ---- the worker's side ---- */

/* Attach; slots that are TAKEN become LOST when this process exits. */
extern void CallServe(void);
/*
 * The next slot that asks for this database; NULL if none does. What the caller filled in
 * is at *request until CallReleaseRequest().
 */
extern CallSlot *CallTake(CallKind *kind, const char **request, Size *len, int *n);
extern void CallReleaseRequest(CallSlot *slot);
/*
 * A slot of ours whose caller has left; NULL if there is none. Forget it everywhere, then
 * CallDrop() it.
 */
extern CallSlot *CallAbandoned(void);
extern void CallDrop(CallSlot *slot);
/* Answer request i; the last one wakes the caller. */
extern void CallReply(CallSlot *slot, int i, const char *answer, Size len);
/* Instead of an answer: the whole call fails with this, when all others are answered. */
extern void CallRefuse(CallSlot *slot, int sqlstate, const char *message);

/* ---- waiting for rows of the journal ---- */

/*
 * Sessions that wait for a command sleep on one of a fixed number of condition variables,
 * chosen by its id; who is woken looks again.
 */
extern void CommandSleepBegin(const pg_uuid_t *id);
/* False when timeout_ms passed. */
extern bool CommandSleep(const pg_uuid_t *id, long timeout_ms);
extern void CommandSleepEnd(void);
extern void CommandWake(const pg_uuid_t *id);

#endif							/* HYBRIDIOT_CALLSLOT_H */
