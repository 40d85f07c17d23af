/*
 * router.js - the AMQP router double: direct mode, devices simulated inside.
 *
 * Behaves as a router does between a sender and its devices:
 *
 * - anonymous link, nobody there: RELEASED at once; device there: its own
 *   outcome comes through; device there but without credit: no outcome at all,
 *   and the message is delivered later, whatever its TTL says;
 * - link addressed to a device: no credit until the device is there; credit
 *   stays when it has left again, and what is then sent is RELEASED;
 * - replies go to whoever has a receiver on the reply address; nobody there:
 *   the device's reply is RELEASED (kept, if the behaviour says `resend`);
 * - a consumer, device or peer, that goes away with unsettled messages: MODIFIED
 *   with delivery-failed to their sender.
 *
 * Nothing here expires a message.
 */
'use strict';

const fs = require('fs');
const crypto = require('crypto');
const rhea = require('./rhea.js');
const { matches } = require('./behaviour.js');
const { settle, break_off } = require('./device.js');

/* Address template to a function that finds the device in an address. */
function address_matcher(template) {
	const source = template.split(/(\{device\}|\{tenant\})/).map((part) =>
		part === '{device}' ? '([^/]+)' : part === '{tenant}' ? '[^/]+' : part.replace(/[.*+?^${}()|[\]\\]/g, '\\$&')).join('');
	const pattern = new RegExp(`^${source}$`);

	return (address) => {
		const found = pattern.exec(address || '');

		return found ? decodeURIComponent(found[1] === undefined ? '' : found[1]) : null;
	};
}

function unwritten(sender) {
	const { outgoing } = sender.session;

	return outgoing.next_delivery_id - outgoing.next_pending_delivery;
}

class Router {
	constructor(options, fleet) {
		this.options = options;
		this.fleet = fleet;
		this.device_of = address_matcher(options.address);
		this.is_link_address = options.link_address ? address_matcher(options.link_address) : () => null;
		this.connections = new Set();
		this.incoming = new Set();		/* receivers: the peer sends here */
		this.replies = new Map();		/* address -> { senders, waiting, next } */
		this.no_credit = [...options.no_credit];
		this.refusing = false;
		this.container = rhea.create_container({ id: options.container_id });
		this.set_mechanisms();
		this.set_handlers();
	}

	set_mechanisms() {
		const { user, password, anonymous } = this.options;
		const mechanisms = this.container.sasl_server_mechanisms;

		if (anonymous)
			mechanisms.enable_anonymous();
		if (user !== undefined)
			mechanisms.enable_plain((name, secret) => {
				const ok = name === user && secret === password;

				this.fleet.ledger.event('login', { user: name, ok });
				return ok;
			});
	}

	/* Resolves to the port. */
	start() {
		const { options } = this;
		const listen = {
			host: options.host, port: options.port, tcp_no_delay: true, require_sasl: !options.anonymous,
			idle_time_out: options.idle_timeout, max_frame_size: options.max_frame_size,
			session_buffer_size: 65536, receiver_options: { autoaccept: false, credit_window: 0 },
			sender_options: { treat_modified_as_released: false },
			transport: options.tls_cert ? 'tls' : 'tcp',
		};

		if (options.tls_cert) {
			listen.cert = fs.readFileSync(options.tls_cert);
			listen.key = fs.readFileSync(options.tls_key);
			if (options.tls_client_ca) {
				listen.ca = fs.readFileSync(options.tls_client_ca);
				listen.requestCert = true;
				listen.enable_sasl_external = true;
			}
		}
		return new Promise((resolve, reject) => {
			this.server = this.container.listen(listen);
			this.server.on('error', reject);
			this.server.on('listening', () => {
				this.options.port = this.server.address().port;
				resolve(this.options.port);
			});
		});
	}

	set_handlers() {
		const c = this.container;
		const event = (kind, fields) => this.fleet.ledger.event(kind, fields);

		c.on('connection_open', ({ connection }) => {
			if (this.refusing)
				connection.close({ condition: 'amqp:connection:forced', description: 'not now' });
			this.connections.add(connection);
			event('connected', { container: connection.container_id });
		});
		c.on('connection_close', ({ connection }) => this.forget_connection(connection, 'closed'));
		c.on('connection_error', () => {});
		c.on('disconnected', ({ connection, error }) => this.forget_connection(connection, 'lost', error));
		c.on('protocol_error', (error) => event('protocol_error', { error: String(error) }));
		c.on('error', (error) => event('error', { error: String(error) }));
		c.on('session_close', ({ session }) => session.each_link((link) => this.forget_link(link)));
		c.on('session_error', () => {});
		c.on('receiver_open', ({ receiver }) => this.open_incoming(receiver));
		c.on('receiver_close', ({ receiver }) => this.forget_link(receiver));
		c.on('receiver_error', () => {});
		c.on('sender_open', ({ sender }) => this.open_reply_link(sender));
		c.on('sender_close', ({ sender }) => this.forget_link(sender));
		c.on('sender_error', () => {});
		c.on('sendable', ({ sender }) => this.flush(sender.reply_address));
		c.on('message', (context) => this.route(context));
		for (const outcome of ['accepted', 'rejected', 'released', 'modified'])
			c.on(outcome, ({ delivery }) => this.reply_outcome(delivery, outcome));
		c.on('settled', ({ delivery, sender }) => {
			if (sender && delivery.remote_state === undefined)
				this.reply_outcome(delivery, 'none');
		});
	}

	/* The peer opened a sender: anonymous, towards a device, or a common link address. */
	open_incoming(receiver) {
		const address = receiver.target ? receiver.target.address : undefined;

		receiver.set_target({ address, capabilities: receiver.target ? receiver.target.capabilities : undefined });
		receiver.set_source({ address: receiver.source ? receiver.source.address : undefined });
		receiver.address = address || null;
		receiver.for_device = address && this.is_link_address(address) === null ? this.device_of(address) : null;
		receiver.unroutable = Boolean(address) && receiver.for_device === null && this.is_link_address(address) === null;
		this.incoming.add(receiver);
		this.fleet.ledger.event('sender_attached', { address: receiver.address });
		this.top_up(receiver);
	}

	may_have_credit(receiver) {
		if (receiver.unroutable || this.no_credit.some((p) => matches(p, receiver.address || 'anonymous')))
			return false;
		if (receiver.for_device === null || receiver.had_credit)
			return true;
		const device = this.fleet.device(receiver.for_device);

		return device.online && device.ready;
	}

	top_up(receiver) {
		const window = this.options.credit;

		if (!this.may_have_credit(receiver) || receiver.credit > window / 2)
			return;
		receiver.had_credit = true;
		receiver.flow(window - receiver.credit);
	}

	top_up_all() {
		for (const receiver of this.incoming)
			this.top_up(receiver);
	}

	/* Takes back (or gives again) the credit of links whose address fits. */
	set_credit(pattern, allowed) {
		this.no_credit = this.no_credit.filter((p) => p !== pattern);
		if (!allowed)
			this.no_credit.push(pattern);
		for (const receiver of this.incoming) {
			if (!allowed && matches(pattern, receiver.address || 'anonymous')) {
				receiver.credit = 0;
				receiver.issue_flow = true;
				receiver.connection._register();
			}
		}
		this.top_up_all();
	}

	route({ message, delivery, receiver }) {
		const to = receiver.for_device === null ? message.to : receiver.address;
		const name = this.device_of(to);
		const device = name === null ? null : this.fleet.device(name);

		this.top_up(receiver);
		if (device === null || !device.online) {
			this.fleet.ledger.event('unroutable', { to: to === undefined ? null : to });
			delivery.release();
			return;
		}
		const via = this.via(device, delivery, receiver);
		const hand_over = () => {
			device.unsettled.add(delivery);
			device.receive(message, receiver.address || 'anonymous', via);
		};

		if (device.ready)
			hand_over();
		else {
			this.fleet.ledger.event('waiting', { device: name });
			device.waiting.push({ hand_over, delivery });
		}
	}

	via(device, delivery, receiver) {
		return {
			settle: (b) => {
				if (device.unsettled.delete(delivery))
					settle(delivery, b);
			},
			reply: (message, info) => this.reply(message, info),
			break: (what, gently) => {
				break_off(what, gently, receiver);
				if (what === 'drop' && !gently || what === 'reset')
					this.forget_connection(receiver.connection, 'dropped');
			},
			offline: () => this.fleet.set_online([device.name], false),
		};
	}

	/*
	 * A device came or became ready: credit on its links, and what waited for it.
	 * One that left: what it held is MODIFIED, what it never got is RELEASED.
	 */
	device_changed(device) {
		if (!device.online) {
			for (const delivery of device.unsettled)
				settle(delivery, { outcome: 'modified', delivery_failed: true });
			for (const { delivery } of device.waiting)
				delivery.release();
			device.unsettled.clear();
			device.waiting = [];
			return;
		}
		this.top_up_all();
		if (device.ready) {
			const { waiting } = device;

			device.waiting = [];
			for (const { hand_over } of waiting)
				hand_over();
		}
	}

	reply_node(address) {
		if (!this.replies.has(address))
			this.replies.set(address, { senders: [], waiting: [], next: 0 });
		return this.replies.get(address);
	}

	/*
	 * The peer opened a receiver: a reply address, or a dynamic one.  It is used
	 * from the next turn of the loop on: rhea would write a transfer before the
	 * attach it answers with, when credit came together with the peer's attach.
	 */
	open_reply_link(sender) {
		const source = sender.source || {};
		const address = source.dynamic ? `temp.${crypto.randomUUID()}` : source.address;

		sender.set_source({ address, dynamic: source.dynamic === true, capabilities: source.capabilities });
		sender.set_target({ address: sender.target ? sender.target.address : undefined });
		sender.reply_address = address;
		sender.in_flight = new Map();
		this.fleet.ledger.event('receiver_attached', { address });
		this.reply_node(address).senders.push(sender);
		setImmediate(() => {
			sender.attached = true;
			this.flush(address);
		});
	}

	reply(message, info) {
		const address = message.to;
		const node = this.reply_node(address);

		if (node.senders.length === 0 && !info.resend) {
			this.fleet.ledger.event('reply', { id: info.id, device: info.device, to: address, outcome: 'released', cause: 'nobody there' });
			return;
		}
		node.waiting.push({ message, info });
		this.flush(address);
	}

	/*
	 * rhea counts credit down only when it writes, so what it has not yet
	 * written is counted here; another turn of the loop looks again.
	 */
	flush(address) {
		const node = this.reply_node(address);
		let busy = false;

		while (node.waiting.length > 0) {
			const open = node.senders.filter((s) => s.attached && s.is_open() && s.sendable());
			const usable = open.filter((s) => s.credit > unwritten(s));

			busy = open.length > usable.length;
			if (usable.length === 0)
				break;
			const sender = usable[node.next++ % usable.length];
			const { message, info } = node.waiting.shift();
			const delivery = sender.send(message);

			sender.in_flight.set(delivery.id, { delivery, message, info });
			this.fleet.ledger.event('reply', { id: info.id, device: info.device, to: address, outcome: null });
		}
		if (busy && node.waiting.length > 0)
			setImmediate(() => this.flush(address));
	}

	reply_outcome(delivery, outcome) {
		const flight = delivery.link.in_flight;
		const entry = flight && flight.get(delivery.id);

		if (!entry)
			return;
		flight.delete(delivery.id);
		this.fleet.ledger.event('reply', { id: entry.info.id, device: entry.info.device,
			to: delivery.link.reply_address, outcome });
		if (entry.info.resend && (outcome === 'released' || outcome === 'modified'))
			setTimeout(() => this.reply(entry.message, entry.info), 50);
	}

	forget_link(link) {
		this.incoming.delete(link);
		if (link.reply_address === undefined)
			return;
		const node = this.reply_node(link.reply_address);

		node.senders = node.senders.filter((s) => s !== link);
		for (const { message, info } of link.in_flight.values()) {
			this.fleet.ledger.event('reply', { id: info.id, device: info.device, to: link.reply_address, outcome: 'modified',
				cause: 'consumer gone' });
			if (info.resend)
				node.waiting.push({ message, info });
		}
		link.in_flight.clear();
		this.flush(link.reply_address);
	}

	forget_connection(connection, how, error) {
		connection.each_link((link) => this.forget_link(link));
		for (const link of [...this.incoming])
			if (link.connection === connection)
				this.forget_link(link);
		for (const node of this.replies.values())
			for (const sender of node.senders.filter((s) => s.connection === connection))
				this.forget_link(sender);
		if (this.connections.delete(connection))
			this.fleet.ledger.event('disconnected', { how, error: error ? String(error) : undefined });
	}

	/* Commands that are with a device and have no outcome yet, and whose sender is still there to hear it. */
	in_hand() {
		let count = 0;

		for (const device of this.fleet.devices.values())
			for (const delivery of device.unsettled)
				count += this.incoming.has(delivery.link);
		return count;
	}

	/* Breaks every connection, session or link of the peers. */
	break_all(what) {
		if (what === 'session' || what === 'link') {
			for (const receiver of [...this.incoming])
				break_off(what, true, receiver);
			return;
		}
		for (const connection of [...this.connections]) {
			break_off(what, false, { connection });
			if (what !== 'connection')
				this.forget_connection(connection, 'dropped');
		}
	}

	pause_reading(paused) {
		for (const connection of this.connections)
			if (paused)
				connection.socket.pause();
			else
				connection.socket.resume();
	}

	/* As AMQP refuses a connection: it is opened, and closed with the reason. */
	set_refusing(refusing) {
		this.refusing = refusing;
	}

	/* Stops listening and drops everybody; start() listens on the same port again. */
	stop() {
		this.break_all('drop');
		return new Promise((resolve) => this.server.close(resolve));
	}

	state() {
		return {
			port: this.options.port,
			connections: this.connections.size,
			incoming: [...this.incoming].map((r) => ({ address: r.address, credit: r.credit })),
			replies: Object.fromEntries([...this.replies].map(([address, node]) =>
				[address, { consumers: node.senders.length, waiting: node.waiting.length,
					unsettled: node.senders.reduce((n, s) => n + s.in_flight.size, 0) }])),
		};
	}
}

module.exports = { Router };
