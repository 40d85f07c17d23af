/*
 * server.c
 *		As much of a PostgreSQL server as the transport room needs: memory contexts, over malloc; no errors. The sanitizers see each
 *		piece of memory by itself, and what is left when a context was deleted.
 *
 * Strings and StringInfo come from libpgcommon.
 */
#include "postgres.h"

#include "lib/ilist.h"
#include "utils/memutils.h"

#include "fuzz.h"

typedef struct Context
{
	dlist_node	node;			/* in parent->children */
	dlist_head	children;
	dlist_head	pieces;
} Context;

/* Before each piece of memory. */
typedef struct Piece
{
	dlist_node	node;
	Size		size;
} Piece;

static Context top = {
	.children = DLIST_STATIC_INIT(top.children),.pieces = DLIST_STATIC_INIT(top.pieces)
};

MemoryContext TopMemoryContext = (MemoryContext) &top;
MemoryContext CurrentMemoryContext = (MemoryContext) &top;

Size		fuzz_allocated = 0;

sigjmp_buf *PG_exception_stack = NULL;
ErrorContextCallback *error_context_stack = NULL;

void
pg_re_throw(void)
{
	CHECK(false);
}

MemoryContext
AllocSetContextCreateInternal(MemoryContext parent, const char *name, Size min, Size init, Size max)
{
	Context    *context = malloc(sizeof(Context));

	dlist_init(&context->children);
	dlist_init(&context->pieces);
	dlist_push_tail(&((Context *) parent)->children, &context->node);
	return (MemoryContext) context;
}

void *
MemoryContextAlloc(MemoryContext context, Size size)
{
	Piece	   *piece = malloc(sizeof(Piece) + size);

	CHECK(size <= MaxAllocHugeSize);
	fuzz_allocated += size;
	piece->size = size;
	dlist_push_tail(&((Context *) context)->pieces, &piece->node);
	return piece + 1;
}

void *
MemoryContextAllocHuge(MemoryContext context, Size size)
{
	return MemoryContextAlloc(context, size);
}

void *
MemoryContextAllocZero(MemoryContext context, Size size)
{
	return memset(MemoryContextAlloc(context, size), 0, size);
}

char *
MemoryContextStrdup(MemoryContext context, const char *string)
{
	return strcpy(MemoryContextAlloc(context, strlen(string) + 1), string);
}

void
pfree(void *pointer)
{
	Piece	   *piece = (Piece *) pointer - 1;

	fuzz_allocated -= piece->size;
	dlist_delete(&piece->node);
	free(piece);
}

void
MemoryContextReset(MemoryContext context)
{
	Context    *c = (Context *) context;
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &c->children)
		MemoryContextDelete((MemoryContext) dlist_container(Context, node, iter.cur));
	dlist_foreach_modify(iter, &c->pieces)
		pfree(dlist_container(Piece, node, iter.cur) + 1);
}

void
MemoryContextDelete(MemoryContext context)
{
	MemoryContextReset(context);
	dlist_delete(&((Context *) context)->node);
	free(context);
}

void *
palloc(Size size)
{
	return MemoryContextAlloc(CurrentMemoryContext, size);
}

void *
palloc0(Size size)
{
	return MemoryContextAllocZero(CurrentMemoryContext, size);
}

/* The piece stays in its context, wherever we are. */
void *
repalloc(void *pointer, Size size)
{
	Piece	   *old = (Piece *) pointer - 1;
	Piece	   *piece = malloc(sizeof(Piece) + size);

	memcpy(piece + 1, pointer, Min(size, old->size));
	piece->size = size;
	fuzz_allocated += size;
	dlist_insert_after(&old->node, &piece->node);
	pfree(pointer);
	return piece + 1;
}

char *
pstrdup(const char *string)
{
	return MemoryContextStrdup(CurrentMemoryContext, string);
}
