/*
 * amqp_message.h
 *		AMQP 1.0 messages as bytes: writing commands, reading replies.
 *
 * Reading trusts nothing: every length is checked against what is there, nothing
 * recurses, and sections that are not needed are skipped by their size. No network,
 * no client library, no SPI.
 */
#ifndef HYBRIDIOT_AMQP_MESSAGE_H
#define HYBRIDIOT_AMQP_MESSAGE_H

#include "lib/stringinfo.h"

#include "core/hybridiot.h"

typedef enum AmqpPropertyKind
{
	AMQP_PROPERTY_NULL,
	AMQP_PROPERTY_BOOL,
	AMQP_PROPERTY_LONG,
	AMQP_PROPERTY_DOUBLE,
	AMQP_PROPERTY_STRING
} AmqpPropertyKind;

typedef struct AmqpProperty
{
	const char *name;
	AmqpPropertyKind kind;
	union
	{
		bool		boolean;
		int64		number;
		double		real;
		const char *string;
	}			value;
} AmqpProperty;

/* A message to be written. NULL strings and zero times are left out. */
typedef struct AmqpOutgoing
{
	bool		durable;
	int			priority;		/* -1: the protocol's default */
	uint32		ttl_ms;
	const char *id;				/* message-id and correlation-id */
	const char *to;
	const char *subject;
	const char *reply_to;
	const char *content_type;
	int64		creation_ms;	/* Unix epoch */
	int64		expiry_ms;		/* Unix epoch */
	const AmqpProperty *properties;
	int			nproperties;
	const char *body;			/* one data section, never absent */
	size_t		body_len;
	bool		text_body;		/* an amqp-value of a string instead */
} AmqpOutgoing;

/* Replaces what is in buf by the encoded message. */
extern void AmqpEncode(StringInfo buf, const AmqpOutgoing *message);

/* An identifier in any of AMQP's forms: text, or bytes of a uuid or binary. */
typedef struct AmqpBytes
{
	const char *data;			/* into the message; NULL: absent */
	size_t		len;
	bool		raw;			/* a uuid or binary, not text */
} AmqpBytes;

typedef enum AmqpBodyKind
{
	AMQP_BODY_NONE,
	AMQP_BODY_DATA,				/* one or more data sections */
	AMQP_BODY_TEXT,				/* an amqp-value that is a string, symbol or binary */
	AMQP_BODY_OTHER				/* any other value or a sequence: not read */
} AmqpBodyKind;

/* What was found in a received message; points into its bytes but for body. */
typedef struct AmqpIncoming
{
	AmqpBytes	message_id;
	AmqpBytes	correlation_id;
	AmqpBytes	content_type;
	AmqpBytes	device_id;		/* application property */
	bool		has_status;		/* integer application property "status" */
	int64		status;
	bool		bad_status;		/* there is one and it is no integer */
	AmqpBodyKind body_kind;
	StringInfoData body;		/* palloc'd */
} AmqpIncoming;

/*
 * Read a message. False: the bytes are not AMQP; what was found before the fault is
 * kept, so that a message cut short at a size limit still tells its ids.
 */
extern bool AmqpDecode(const char *bytes, size_t len, AmqpIncoming *message);

#endif							/* HYBRIDIOT_AMQP_MESSAGE_H */
