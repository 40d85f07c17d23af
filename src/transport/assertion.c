/*
 * assertion.c
 *		Assertions of a client library that fail: the end of what it was doing, not of the server.
 *
 * Debian builds proton with its assertions on, and some of them can be made to fail by a frame from
 * the network. abort() in a background worker is a crash of the whole server. But a program may leave
 * abort() by a jump out of a handler of SIGABRT, and an assertion fails before harm is done: so
 * whoever calls a library says where to go on then. Everywhere else abort() is what it was.
 */
#include "postgres.h"

#include <setjmp.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "transport/assertion.h"

static sigjmp_buf *volatile way_out = NULL;

static void
aborted(int signal_number)
{
	/* In a helper thread, or outside: abort() goes on when we return, and ends the process. */
	if (way_out && syscall(SYS_gettid) == getpid())
		siglongjmp(*way_out, 1);
}

static void
install_handler(void)
{
	static bool installed = false;
	struct sigaction action = {.sa_handler = aborted,.sa_flags = SA_NODEFER};

	if (!installed)
		sigaction(SIGABRT, &action, NULL);
	installed = true;
}

bool
AssertionSurvive(void (*work) (void *argument), void *argument)
{
	sigjmp_buf	here;
	volatile bool survived = false;

	install_handler();
	PG_TRY();
	{
		way_out = &here;
		if (sigsetjmp(here, 0) == 0)
		{
			work(argument);
			survived = true;
		}
	}
	PG_FINALLY();
	{
		way_out = NULL;
	}
	PG_END_TRY();
	return survived;
}
