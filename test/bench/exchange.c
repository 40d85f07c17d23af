/*
 * exchange.c
 *		A command and its reply by a plain proton program, to measure call_device against.
 *
 *	exchange HOST PORT USER PASSWORD device DEVICE            answers commands until it is ended
 *	exchange HOST PORT USER PASSWORD store DEVICE COUNT [N]   sends COUNT, N (1) in flight, prints microseconds for each
 *	exchange HOST PORT USER PASSWORD direct DEVICE COUNT [N]  the same through a router
 *
 * What is on the wire is what the extension puts there: in mode store a durable message on a link to
 * command/DEVICE, in mode direct another on the anonymous link; the reply on an anonymous link to the
 * reply-to. With the user "anonymous" the login is SASL ANONYMOUS.
 */
#include <proton/connection.h>
#include <proton/delivery.h>
#include <proton/link.h>
#include <proton/message.h>
#include <proton/proactor.h>
#include <proton/sasl.h>
#include <proton/session.h>
#include <proton/transport.h>

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static bool device;
static bool direct;
static char command_address[256];
static char reply_address[256];
static long count;
static long in_flight = 1;
static long sent;
static long answered;
static bool finished;
static pn_link_t *sender;
static pn_link_t *receiver;
static pn_message_t *message;
static struct timespec begun;
static char buffer[65536];

static void
send_message(const char *tag)
{
	size_t		len = sizeof(buffer);

	if (pn_message_encode(message, buffer, &len) != 0)
		exit(2);
	pn_delivery(sender, pn_dtag(tag, strlen(tag)));
	pn_link_send(sender, buffer, len);
	pn_link_advance(sender);
}

static void
put_body(const char *text)
{
	pn_message_set_inferred(message, true);
	pn_data_clear(pn_message_body(message));
	pn_data_put_binary(pn_message_body(message), pn_bytes(strlen(text), text));
}

static void
set_id(pn_message_t *m, const char *id)
{
	pn_data_clear(pn_message_id(m));
	pn_data_put_string(pn_message_id(m), pn_bytes(strlen(id), id));
}

static void
set_correlation_id(pn_message_t *m, const char *id)
{
	pn_data_clear(pn_message_correlation_id(m));
	pn_data_put_string(pn_message_correlation_id(m), pn_bytes(strlen(id), id));
}

static void
send_command(void)
{
	char		id[40];
	char		body[64];

	snprintf(id, sizeof(id), "00000000-0000-4000-8000-%012ld", sent);
	snprintf(body, sizeof(body), "{\"n\": %ld}", ++sent);
	pn_message_clear(message);
	pn_message_set_durable(message, !direct);
	pn_message_set_ttl(message, 10000);
	pn_message_set_address(message, command_address);
	pn_message_set_subject(message, "bench");
	pn_message_set_reply_to(message, reply_address);
	pn_message_set_content_type(message, "application/json");
	set_id(message, id);
	set_correlation_id(message, id);
	put_body(body);
	send_message(id);
}

/* The device's answer to what is in message. */
static void
send_reply(void)
{
	char		to[256];
	char		id[64];
	static long n = 0;
	pn_atom_t	command_id = pn_message_get_id(message);
	pn_data_t  *properties;

	snprintf(to, sizeof(to), "%s", pn_message_get_reply_to(message));
	snprintf(id, sizeof(id), "%.*s", (int) command_id.u.as_bytes.size, command_id.u.as_bytes.start);
	pn_message_clear(message);
	pn_message_set_address(message, to);
	pn_message_set_content_type(message, "application/json");
	set_correlation_id(message, id);
	properties = pn_message_properties(message);
	pn_data_clear(properties);
	pn_data_put_map(properties);
	pn_data_enter(properties);
	pn_data_put_string(properties, pn_bytes(6, "status"));
	pn_data_put_int(properties, 200);
	pn_data_exit(properties);
	put_body("{\"ok\": true}");
	snprintf(id, sizeof(id), "%ld", n++);
	send_message(id);
}

static void
received(pn_delivery_t *delivery)
{
	ssize_t		n;

	if (!pn_delivery_readable(delivery) || pn_delivery_partial(delivery))
		return;
	n = pn_link_recv(receiver, buffer, sizeof(buffer));
	if (n < 0 || pn_message_decode(message, buffer, n) != 0)
		exit(3);
	pn_link_advance(receiver);
	pn_delivery_update(delivery, PN_ACCEPTED);
	pn_delivery_settle(delivery);
	pn_link_flow(receiver, 1);
	if (device)
		send_reply();
	else if (++answered == count)
		finished = true;
	else if (sent < count)
		send_command();
}

static void
open_links(pn_connection_t *connection)
{
	pn_session_t *session = pn_session(connection);
	const char *source = device ? command_address : reply_address;

	pn_session_open(session);
	receiver = pn_receiver(session, "in");
	pn_terminus_set_address(pn_link_source(receiver), source);
	pn_data_put_symbol(pn_terminus_capabilities(pn_link_source(receiver)), pn_bytes(5, "queue"));
	pn_link_open(receiver);
	pn_link_flow(receiver, 100);
	sender = pn_sender(session, "out");
	if (!device && !direct)
	{
		pn_terminus_set_address(pn_link_target(sender), command_address);
		pn_data_put_symbol(pn_terminus_capabilities(pn_link_target(sender)), pn_bytes(5, "queue"));
	}
	else
		pn_terminus_set_type(pn_link_target(sender), PN_TARGET);
	pn_link_open(sender);
}

static void
handle(pn_event_t *event)
{
	switch (pn_event_type(event))
	{
		case PN_CONNECTION_INIT:
			pn_connection_open(pn_event_connection(event));
			open_links(pn_event_connection(event));
			break;
		case PN_LINK_FLOW:
			if (!device && sent == 0 && pn_link_credit(sender) > 0)
				clock_gettime(CLOCK_MONOTONIC, &begun);
			while (!device && sent < in_flight && sent < count && pn_link_credit(sender) > 0)
				send_command();
			break;
		case PN_DELIVERY:
			{
				pn_delivery_t *delivery = pn_event_delivery(event);

				if (pn_delivery_link(delivery) == receiver)
					received(delivery);
				else if (pn_delivery_updated(delivery))
					pn_delivery_settle(delivery);
				break;
			}
		case PN_TRANSPORT_ERROR:
			fprintf(stderr, "%s\n", pn_condition_get_description(pn_transport_condition(pn_event_transport(event))));
			exit(4);
		default:
			break;
	}
}

int
main(int argc, char **argv)
{
	pn_proactor_t *proactor = pn_proactor();
	pn_connection_t *connection = pn_connection();
	pn_transport_t *transport = pn_transport();
	char		address[PN_MAX_ADDR];
	struct timespec now;

	if (argc < 7 || (argc < 8 && strcmp(argv[5], "device") != 0))
		return 1;
	device = strcmp(argv[5], "device") == 0;
	direct = strcmp(argv[5], "direct") == 0;
	snprintf(command_address, sizeof(command_address), "command/%s", argv[6]);
	snprintf(reply_address, sizeof(reply_address), "bench.reply.%d", (int) getpid());
	count = device ? 0 : atol(argv[7]);
	if (argc > 8)
		in_flight = atol(argv[8]);
	message = pn_message();

	pn_connection_set_container(connection, argv[5]);
	if (strcmp(argv[3], "anonymous") == 0)
		pn_sasl_allowed_mechs(pn_sasl(transport), "ANONYMOUS");
	else
	{
		pn_connection_set_user(connection, argv[3]);
		pn_connection_set_password(connection, argv[4]);
		pn_sasl_allowed_mechs(pn_sasl(transport), "PLAIN");
	}
	pn_sasl_set_allow_insecure_mechs(pn_sasl(transport), true);
	pn_proactor_addr(address, sizeof(address), argv[1], argv[2]);
	pn_proactor_connect2(proactor, connection, transport, address);
	while (!finished)
	{
		pn_event_batch_t *batch = pn_proactor_wait(proactor);
		pn_event_t *event;

		while ((event = pn_event_batch_next(batch)) != NULL)
			handle(event);
		pn_proactor_done(proactor, batch);
	}
	clock_gettime(CLOCK_MONOTONIC, &now);
	printf("%.1f\n", ((now.tv_sec - begun.tv_sec) * 1e6 + (now.tv_nsec - begun.tv_nsec) / 1e3) / count);
	return 0;
}
