/*
 * amqp_login.c
 *		TLS of an AMQP connection, and why a peer did not let us in.
 *
 * Proton says "certificate verify failed" of every certificate and "mech=none" of every
 * mechanism. What people need is which option to look at.
 */
#include "postgres.h"

#include <openssl/ssl.h>

#include <proton/ssl.h>
#include <proton/transport.h>

#include "utils/memutils.h"

#include "transport/amqp_internal.h"
#include "transport/gate.h"

/* ---- TLS ---- */

/* The last that was made in this process. */
static SSL *made = NULL;

static void
note_made(void *parent, void *ptr, CRYPTO_EX_DATA *data, int index, long argl, void *argp)
{
	made = parent;
}

/*
 * Proton hides OpenSSL's object, which alone knows what is wrong with a certificate. OpenSSL tells
 * whoever has data of his own in such objects that there is a new one.
 */
static bool
init_tls(pn_transport_t *transport, pn_ssl_domain_t *domain, SSL **tls)
{
	static bool watching = false;
	bool		ok;

	if (!watching)
		watching = SSL_get_ex_new_index(0, NULL, note_made, NULL, NULL) >= 0;
	made = NULL;
	ok = pn_ssl_init(pn_ssl(transport), domain, NULL) == 0;
	*tls = made;
	return ok;
}

bool
AmqpSetUpTls(AmqpConnection *c, pn_transport_t *transport)
{
	const AmqpConfig *config = &c->config;
	pn_ssl_domain_t *domain = pn_ssl_domain(PN_SSL_MODE_CLIENT);
	const char *problem = NULL;

	if (domain == NULL)
		problem = "TLS is not available";
	else if (config->ssl_ca && pn_ssl_domain_set_trusted_ca_db(domain, config->ssl_ca) != 0)
		problem = "could not read the file of option \"ssl_ca\"";
	else if (config->ssl_certificate &&
			 pn_ssl_domain_set_credentials(domain, config->ssl_certificate, config->ssl_key,
										   config->ssl_key_password) != 0)
		problem = "could not use the files of options \"ssl_certificate\", \"ssl_key\" and \"ssl_key_password_file\": they must be in PEM, and fit together";
	else if (pn_ssl_domain_set_peer_authentication(domain, PN_SSL_VERIFY_PEER_NAME, NULL) != 0 ||
			 !init_tls(transport, domain, &c->tls) ||
			 pn_ssl_set_peer_hostname(pn_ssl(transport), config->targets[c->target].host) != 0)
		problem = "could not set up TLS";
	if (domain)
		pn_ssl_domain_free(domain);
	if (problem)
		AmqpFail(c, problem);
	return problem == NULL;
}

/* ---- refusals ---- */

/* What was found wrong with the peer's certificate; NULL: nothing known. */
static const char *
certificate_text(AmqpConnection *c)
{
	long		error = c->tls ? SSL_get_verify_result(c->tls) : X509_V_OK;
	const char *host = c->config.targets[c->target].host;
	const char *problem;

	if (error == X509_V_OK)
		return NULL;

	/* Proton looks at the name itself. */
	problem = CertificateProblem(error == X509_V_ERR_APPLICATION_VERIFICATION ?
								 X509_V_ERR_HOSTNAME_MISMATCH : error);
	return problem ? psprintf("the certificate of \"%s\" %s", host, problem) :
		psprintf("the certificate of \"%s\" is not good: %s", host, X509_verify_cert_error_string(error));
}

static bool
says_any(const char *reason, const char *const *words)
{
	for (; *words; words++)
		if (strstr(reason, *words))
			return true;
	return false;
}

/* In TLS, before there is AMQP. */
static const char *
tls_meaning(AmqpConnection *c, const char *reason)
{
	static const char *const strange[] = {"wrong version number", "packet length too long", "unknown protocol", "http request", NULL};
	static const char *const alerts[] = {"alert certificate", "certificate required", "alert bad certificate",
		"alert unsupported certificate", "alert unknown ca", NULL};
	static const char *const endings[] = {"unexpected eof", "aborted", "closed", "reset", "handshake failure", NULL};
	bool		certified = c->config.ssl_certificate != NULL;

	if (c->bytes_in == 0 || says_any(reason, strange))
		return psprintf("the peer does not answer in TLS on port %d: see options port and tls",
						c->config.targets[c->target].port);
	if (strstr(reason, "certificate verify failed"))
		return certificate_text(c);
	if (says_any(reason, alerts))
		return certified ? "the peer refused the client's certificate: see ssl_certificate of the user mapping" :
			"the peer asks for a client's certificate: see ssl_certificate of the user mapping";
	if (says_any(reason, endings))
		return certified ? "the peer hung up, as if it did not trust the client's certificate: see ssl_certificate of the user mapping" :
			"the peer hung up, as if it expected a client's certificate: see ssl_certificate of the user mapping";
	return NULL;
}

/* What it means; NULL: it says enough. */
static const char *
refusal_meaning(AmqpConnection *c, const char *reason)
{
	const AmqpConfig *config = &c->config;

	if (strstr(reason, "mech=none"))
		return psprintf("the peer does not offer SASL mechanism %s: see option sasl_mechanism, and the user mapping", config->mechanism);
	if (strstr(reason, "Authentication failed"))
		return strcmp(config->mechanism, "PLAIN") == 0 ? "the peer refused user and password" :
			strcmp(config->mechanism, "EXTERNAL") == 0 ? "the peer refused the client's certificate as a login" :
			"the peer refused an anonymous login: it may expect a user mapping";
	if (c->tls)
		return tls_meaning(c, reason);
	if (!config->tls && (c->bytes_in == 0 || strstr(reason, "protocol header")))
		return psprintf("the peer does not answer in AMQP without TLS on port %d: see options port and tls",
						config->targets[c->target].port);
	return NULL;
}

const char *
AmqpRefusalText(AmqpConnection *c, const char *reason)
{
	MemoryContext old = MemoryContextSwitchTo(c->event_context);
	const char *meaning = refusal_meaning(c, reason);
	const char *result = meaning ? psprintf("%s (%s)", meaning, reason) : reason;

	MemoryContextSwitchTo(old);
	return result;
}
