/*
 * message.c
 *		libFuzzer on the reader of AMQP messages, without a server.
 *
 * Beside what the sanitizers see: whatever is found lies in the message, a body is not longer than the message, and
 * what the writer makes of it the reader understands.
 */
#include "postgres.h"

#include "transport/amqp_message.h"
#include "utils/memutils.h"

#include "fuzz.h"

static void
check_bytes(const AmqpBytes *bytes, const char *message, size_t len)
{
	if (bytes->data)
		CHECK(bytes->data >= message && bytes->len <= len && bytes->data + bytes->len <= message + len);
}

/* A command with what was found as its texts: as it is written, it is read. */
static void
check_writer(const AmqpIncoming *found)
{
	AmqpProperty properties[3] = {
		{.name = "status",.kind = AMQP_PROPERTY_LONG,.value.number = found->status},
		{.name = "real",.kind = AMQP_PROPERTY_DOUBLE,.value.real = 0.5},
		{.name = "none",.kind = AMQP_PROPERTY_NULL}
	};
	AmqpOutgoing message = {
		.priority = -1,.ttl_ms = 1,.id = "id",.to = "to",.content_type = "text/plain",.creation_ms = found->status,
		.properties = properties,.nproperties = found->body_kind % 4,
		.body = found->body.data,.body_len = found->body.len
	};
	StringInfoData buf;
	AmqpIncoming again;

	initStringInfo(&buf);
	AmqpEncode(&buf, &message);
	CHECK(AmqpDecode(buf.data, buf.len, &again));
	CHECK(again.message_id.len == 2 && again.correlation_id.len == 2 && again.content_type.len == 10);
	CHECK(again.body_kind == AMQP_BODY_DATA && again.body.len == found->body.len);
	CHECK(memcmp(again.body.data, found->body.data, found->body.len) == 0);
	CHECK(!again.has_status || again.status == found->status);
	CHECK(again.has_status == (message.nproperties > 0) && !again.bad_status);
}

int
LLVMFuzzerTestOneInput(const uint8 *data, size_t size)
{
	char	   *copy = malloc(size);	/* to the byte */
	AmqpIncoming found;

	memcpy(copy, data, size);
	(void) AmqpDecode(copy, size, &found);
	check_bytes(&found.message_id, copy, size);
	check_bytes(&found.correlation_id, copy, size);
	check_bytes(&found.content_type, copy, size);
	check_bytes(&found.device_id, copy, size);
	CHECK(found.body.len <= size);
	CHECK(!(found.has_status && found.bad_status));
	check_writer(&found);
	free(copy);
	MemoryContextReset(TopMemoryContext);
	return 0;
}
