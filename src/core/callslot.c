/*
 * callslot.c
 *		Synchronous calls between sessions and the AMQP worker.
 *
 * Who may change a slot follows from its state: FILLING and REQUESTED belong to
 * the caller, TAKEN to the worker, DONE, FAILED and LOST to the caller again.
 * The two moments when both may act (the worker takes while the caller leaves, the
 * worker answers while the caller leaves) are decided under the slot's spinlock;
 * payloads are allocated and freed outside it by the side that owns the slot.
 *
 * Half of the slots are for calls, the other half for what only asks the worker something (cancel, resolve). Such a
 * request and its answer are short and lie in the slot itself. So neither slots nor memory
 * that calls have taken can keep anybody from cancelling.
 */
#include "postgres.h"

#include <limits.h>

#include "access/xact.h"
#include "common/hashfn.h"
#include "miscadmin.h"
#include "storage/condition_variable.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "storage/shmem.h"
#include "storage/spin.h"
#include "utils/memutils.h"
#include "utils/wait_event.h"

#include "core/callslot.h"
#include "core/clock.h"
#include "core/compat.h"
#include "core/connstat.h"
#include "core/shmem.h"

/* All payloads of all slots together. */
#define MAX_AREA (UINT64CONST(512) * 1024 * 1024)
/* What the requests of one role may take of it. */
#define MAX_AREA_OF_ROLE (MAX_AREA / 4)
#define NCONDITIONS 64
/* Bytes of a request to cancel or to resolve, with a note of its greatest length. */
#define MAX_ASKED 2048

typedef struct Answer
{
	dsa_pointer data;
	Size		len;
} Answer;

struct CallSlot
{
	slock_t		mutex;
	CallState	state;
	CallKind	kind;
	Oid			database;
	Oid			role;
	Latch	   *latch;			/* the caller's; NULL: abandoned */
	bool		taken;
	int			n;				/* requests */
	int			answered;
	dsa_pointer request;
	Size		request_len;
	dsa_pointer answers;		/* Answer[n] */
	int			sqlstate;
	char		message[HYBRIDIOT_REASON_LEN];	/* or the answer, where the request is in asked */
	Size		message_len;
	char		asked[MAX_ASKED];
};

typedef struct CallShared
{
	LWLock		lock;			/* taking a slot; creating the area */
	int			tranche;		/* of the area's own locks */
	dsa_handle	area;			/* DSM_HANDLE_INVALID until first used */
	ConditionVariable conditions[NCONDITIONS];
	int			nslots;			/* the first half for calls */
	CallSlot	slots[FLEXIBLE_ARRAY_MEMBER];
} CallShared;

static CallShared *calls = NULL;
static dsa_area *area = NULL;
static CallSlot *my_call = NULL;	/* a session has at most one */

static Size
calls_size(void)
{
	return add_size(offsetof(CallShared, slots), mul_size(hybridiot_call_slots * 2, sizeof(CallSlot)));
}

Size
CallShmemSize(void)
{
	return add_size(calls_size(), ConnStatShmemSize());
}

/* The caller holds AddinShmemInitLock. */
void
CallShmemInit(bool found)
{
	Size		size = calls_size();

	calls = ShmemInitStruct("hybridiot calls", size, &found);
	if (!found)
	{
		memset(calls, 0, size);
		LWLockInitialize(&calls->lock, LWLockNewTrancheId());
		calls->tranche = LWLockNewTrancheId();
		calls->area = DSM_HANDLE_INVALID;
		for (int i = 0; i < NCONDITIONS; i++)
			ConditionVariableInit(&calls->conditions[i]);
		calls->nslots = hybridiot_call_slots * 2;
		for (int i = 0; i < calls->nslots; i++)
			SpinLockInit(&calls->slots[i].mutex);
	}
	LWLockRegisterTranche(calls->lock.tranche, "hybridiot calls");
	LWLockRegisterTranche(calls->tranche, "hybridiot call payloads");
	ConnStatShmemInit(found);
}

/* ---- both sides ---- */

static void
attach_area(void)
{
	MemoryContext old;

	if (area)
		return;
	old = MemoryContextSwitchTo(TopMemoryContext);
	LWLockAcquire(&calls->lock, LW_EXCLUSIVE);
	if (calls->area == DSM_HANDLE_INVALID)
	{
		area = dsa_create(calls->tranche);
		dsa_set_size_limit(area, MAX_AREA);
		dsa_pin(area);
		calls->area = dsa_get_handle(area);
	}
	else
		area = dsa_attach(calls->area);
	dsa_pin_mapping(area);
	LWLockRelease(&calls->lock);
	MemoryContextSwitchTo(old);
}

/* Give payloads and slot back; only by the side that owns the slot. */
static void
free_slot(CallSlot *slot)
{
	if (DsaPointerIsValid(slot->answers))
	{
		Answer	   *answers = dsa_get_address(area, slot->answers);

		for (int i = 0; i < slot->n; i++)
			if (DsaPointerIsValid(answers[i].data))
				dsa_free(area, answers[i].data);
		dsa_free(area, slot->answers);
	}
	if (DsaPointerIsValid(slot->request))
		dsa_free(area, slot->request);
	SpinLockAcquire(&slot->mutex);
	slot->answers = InvalidDsaPointer;
	slot->request = InvalidDsaPointer;
	slot->latch = NULL;
	slot->state = CALL_FREE;
	SpinLockRelease(&slot->mutex);
}

static void
wake_worker(void)
{
	WorkerSlot *worker = SlotFind(WORKER_AMQP, MyDatabaseId, 0, 0);

	if (worker)
		SlotWake(worker, NULL);
}

/* ---- the caller's side ---- */

void
CallEnd(CallSlot *slot)
{
	bool		mine;

	SpinLockAcquire(&slot->mutex);
	mine = slot->state != CALL_TAKEN;
	if (mine)
		slot->state = CALL_FILLING; /* the worker does not look at it any more */
	else
		slot->latch = NULL;		/* the worker frees it */
	SpinLockRelease(&slot->mutex);
	my_call = NULL;
	if (mine)
		free_slot(slot);
	else
		wake_worker();
}

static void
give_up(void)
{
	if (my_call)
		CallEnd(my_call);
}

static void
at_exit(int code, Datum arg)
{
	give_up();
}

static void
at_transaction_end(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_ABORT)
		give_up();
}

static void
at_subtransaction_end(SubXactEvent event, SubTransactionId id, SubTransactionId parent, void *arg)
{
	if (event == SUBXACT_EVENT_ABORT_SUB)
		give_up();
}

static bool
is_call(const CallSlot *slot)
{
	return slot - calls->slots < calls->nslots / 2;
}

static void
refuse(bool call, bool role)
{
	if (!call)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_RESOURCES),
				 errmsg(role ? "this role is cancelling or resolving too many commands at once" :
						"too many commands are being cancelled or resolved at once"),
				 errhint("Try again later.")));
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_RESOURCES),
			 errmsg(role ? "this role has too many synchronous calls in flight" :
					"too many synchronous calls are in flight"),
			 errhint("Try again later, use send_command(), or raise %s.",
					 role ? "hybridiot.max_calls_per_role" : "hybridiot.call_slots")));
}

/*
 * A free slot, now FILLING, for a request of len bytes. What is used up raises 53000: the
 * slots, or the role's share of slots or memory.
 */
static CallSlot *
take_free_slot(CallKind kind, Oid role, Size len)
{
	CallSlot   *found = NULL;
	int			used_by_role = 0;
	Size		bytes_of_role = len;
	bool		call = kind == CALL_SEND;
	bool		enough_slots;
	bool		enough_memory;

	LWLockAcquire(&calls->lock, LW_EXCLUSIVE);
	for (int i = 0; i < calls->nslots; i++)
	{
		CallSlot   *slot = &calls->slots[i];

		if (is_call(slot) != call)
			continue;
		if (slot->state == CALL_FREE)
			found = found ? found : slot;
		else if (slot->role == role)
		{
			used_by_role++;
			bytes_of_role += slot->request_len;
		}
	}
	enough_slots = used_by_role < hybridiot_max_calls_per_role;
	enough_memory = bytes_of_role <= MAX_AREA_OF_ROLE;
	if (found && enough_slots && enough_memory)
	{
		found->kind = kind;
		found->role = role;
		found->database = MyDatabaseId;
		found->latch = MyLatch;
		found->taken = false;
		found->answered = 0;
		found->n = 0;
		found->request_len = len;
		found->sqlstate = 0;
		found->message_len = 0;
		found->state = CALL_FILLING;
		my_call = found;
	}
	LWLockRelease(&calls->lock);

	if (found == NULL || !enough_slots)
		refuse(call, found != NULL);
	if (!enough_memory)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_RESOURCES),
				 errmsg("the synchronous calls of this role are too large together"),
				 errdetail("At most %d MB of requests may be in flight for a role.",
						   (int) (MAX_AREA_OF_ROLE / 1024 / 1024)),
				 errhint("Call fewer devices at a time, or use send_command().")));
	return found;
}

/* A call's requests go to the shared area, with room for the answers. */
static void
hand_over(CallSlot *slot, const char *request, Size len, int n)
{
	slot->request = dsa_allocate_extended(area, len, DSA_ALLOC_NO_OOM);
	slot->answers = dsa_allocate_extended(area, sizeof(Answer) * n, DSA_ALLOC_NO_OOM | DSA_ALLOC_ZERO);
	if (!DsaPointerIsValid(slot->request) || !DsaPointerIsValid(slot->answers))
	{
		CallEnd(slot);
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_RESOURCES),
				 errmsg("the shared memory of synchronous calls is used up"),
				 errhint("Try again later, or use send_command().")));
	}
	memcpy(dsa_get_address(area, slot->request), request, len);
}

CallSlot *
CallBegin(CallKind kind, Oid role, const char *request, Size len, int n)
{
	static bool registered = false;
	CallSlot   *slot;

	Assert(my_call == NULL);
	if (!registered)
	{
		RegisterXactCallback(at_transaction_end, NULL);
		RegisterSubXactCallback(at_subtransaction_end, NULL);
		before_shmem_exit(at_exit, (Datum) 0);
		registered = true;
	}
	attach_area();
	slot = take_free_slot(kind, role, len);
	if (is_call(slot))
		hand_over(slot, request, len, n);
	else
	{
		Assert(n == 1 && len <= MAX_ASKED);
		memcpy(slot->asked, request, len);
	}
	slot->n = n;

	SpinLockAcquire(&slot->mutex);
	slot->state = CALL_REQUESTED;
	SpinLockRelease(&slot->mutex);
	wake_worker();
	return slot;
}

CallState
CallGetState(CallSlot *slot)
{
	CallState	state;

	SpinLockAcquire(&slot->mutex);
	state = slot->state;
	SpinLockRelease(&slot->mutex);
	return state;
}

bool
CallWasTaken(CallSlot *slot)
{
	return slot->taken;
}

CallState
CallWait(CallSlot *slot, long timeout_ms)
{
	int64		until = ClockMonotonicMs() + timeout_ms;

	for (;;)
	{
		CallState	state = CallGetState(slot);
		int64		left = until - ClockMonotonicMs();

		if (state != CALL_REQUESTED && state != CALL_TAKEN)
			return state;
		if (left <= 0)
			return state;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 (long) Min(left, INT_MAX), WaitEventExtensionNew("HybridiotCall"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

const char *
CallAnswer(CallSlot *slot, int i, Size *len)
{
	Answer	   *answers;

	if (!is_call(slot))
	{
		*len = slot->message_len;
		return slot->message;
	}
	answers = dsa_get_address(area, slot->answers);
	if (!DsaPointerIsValid(answers[i].data))
		return NULL;
	*len = answers[i].len;
	return dsa_get_address(area, answers[i].data);
}

int
CallError(CallSlot *slot, char **message)
{
	*message = pstrdup(slot->message);
	return slot->sqlstate;
}

/* ---- the worker's side ---- */

static void
finish(CallSlot *slot, CallState state)
{
	Latch	   *latch;

	SpinLockAcquire(&slot->mutex);
	latch = slot->latch;
	if (latch)
		slot->state = state;
	SpinLockRelease(&slot->mutex);
	if (latch)
		SetLatch(latch);
	else
		free_slot(slot);
}

static void
lose_calls(int code, Datum arg)
{
	for (int i = 0; i < calls->nslots; i++)
	{
		CallSlot   *slot = &calls->slots[i];

		if (slot->state == CALL_TAKEN && slot->database == MyDatabaseId)
			finish(slot, CALL_LOST);
	}
}

void
CallServe(void)
{
	attach_area();
	before_shmem_exit(lose_calls, (Datum) 0);
}

CallSlot *
CallTake(CallKind *kind, const char **request, Size *len, int *n)
{
	for (int i = 0; i < calls->nslots; i++)
	{
		CallSlot   *slot = &calls->slots[i];
		bool		taken = false;

		if (slot->state != CALL_REQUESTED || slot->database != MyDatabaseId)
			continue;
		SpinLockAcquire(&slot->mutex);
		if (slot->state == CALL_REQUESTED)
		{
			slot->state = CALL_TAKEN;
			slot->taken = taken = true;
		}
		SpinLockRelease(&slot->mutex);
		if (!taken)
			continue;
		*kind = slot->kind;
		*request = is_call(slot) ? dsa_get_address(area, slot->request) : slot->asked;
		*len = slot->request_len;
		*n = slot->n;
		return slot;
	}
	return NULL;
}

void
CallReleaseRequest(CallSlot *slot)
{
	dsa_free(area, slot->request);
	slot->request = InvalidDsaPointer;
}

CallSlot *
CallAbandoned(void)
{
	for (int i = 0; i < calls->nslots; i++)
	{
		CallSlot   *slot = &calls->slots[i];

		if (slot->state == CALL_TAKEN && slot->latch == NULL && slot->database == MyDatabaseId)
			return slot;
	}
	return NULL;
}

void
CallDrop(CallSlot *slot)
{
	free_slot(slot);
}

static void
keep_answer(CallSlot *slot, int i, const char *answer, Size len)
{
	Answer	   *answers = dsa_get_address(area, slot->answers);
	dsa_pointer data = dsa_allocate_extended(area, len, DSA_ALLOC_NO_OOM);

	if (!DsaPointerIsValid(data))
		return;
	memcpy(dsa_get_address(area, data), answer, len);
	answers[i].data = data;
	answers[i].len = len;
}

void
CallReply(CallSlot *slot, int i, const char *answer, Size len)
{
	Assert(slot->state == CALL_TAKEN);
	if (is_call(slot))
		keep_answer(slot, i, answer, len);
	else
	{
		Assert(len <= sizeof(slot->message));
		memcpy(slot->message, answer, len);
		slot->message_len = len;
	}
	if (++slot->answered == slot->n)
		finish(slot, slot->sqlstate ? CALL_FAILED : CALL_DONE);
}

void
CallRefuse(CallSlot *slot, int sqlstate, const char *message)
{
	slot->sqlstate = sqlstate;
	strlcpy(slot->message, message, sizeof(slot->message));
	if (++slot->answered == slot->n)
		finish(slot, CALL_FAILED);
}

/* ---- waiting for rows of the journal ---- */

static ConditionVariable *
condition_of(const pg_uuid_t *id)
{
	return &calls->conditions[hash_bytes(id->data, UUID_LEN) % NCONDITIONS];
}

void
CommandSleepBegin(const pg_uuid_t *id)
{
	ConditionVariablePrepareToSleep(condition_of(id));
}

bool
CommandSleep(const pg_uuid_t *id, long timeout_ms)
{
	return !ConditionVariableTimedSleep(condition_of(id), timeout_ms,
										WaitEventExtensionNew("HybridiotCommand"));
}

void
CommandSleepEnd(void)
{
	ConditionVariableCancelSleep();
}

void
CommandWake(const pg_uuid_t *id)
{
	ConditionVariableBroadcast(condition_of(id));
}
