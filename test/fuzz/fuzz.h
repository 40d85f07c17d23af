/*
 * fuzz.h
 *		What libFuzzer targets share. They see PostgreSQL's types, and link nothing of it.
 */
#ifndef HYBRIDIOT_FUZZ_H
#define HYBRIDIOT_FUZZ_H

/* port.h puts functions of the server in place of the C library's. */
#undef fprintf

extern int	LLVMFuzzerTestOneInput(const uint8 *data, size_t size);

/* Never switched off. */
#define CHECK(condition) \
	do \
	{ \
		if (!(condition)) \
		{ \
			fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
			abort(); \
		} \
	} while (0)

#endif							/* HYBRIDIOT_FUZZ_H */
