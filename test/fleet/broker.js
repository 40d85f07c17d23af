/*
 * broker.js - the fleet as clients of a broker: each device reads its own queue.
 *
 * Every device has a connection of its own, as real ones have, unless `shared`
 * asks for one connection for all (thousands of devices).  Connections that are
 * lost, or broken on purpose, come back while the device is online.
 */
'use strict';

const fs = require('fs');
const rhea = require('./rhea.js');
const { settle, break_off } = require('./device.js');

class Broker {
	constructor(options, fleet) {
		this.options = options;
		this.fleet = fleet;
		this.clients = new Map();		/* device name, or '' when shared -> Client */
	}

	async start() {
		return this.options.port;
	}

	address(device) {
		return this.options.address.replace('{device}', encodeURIComponent(device.name))
			.replace('{tenant}', encodeURIComponent(this.options.tenant || ''));
	}

	client(device) {
		const key = this.options.shared ? '' : device.name;

		if (!this.clients.has(key))
			this.clients.set(key, new Client(key || 'fleet', this));
		return this.clients.get(key);
	}

	/* A device became online or offline. */
	device_changed(device) {
		const client = this.client(device);

		if (device.online)
			client.attach(device);
		else
			client.detach(device);
	}

	top_up_all() {}

	set_credit() {
		throw new Error('credit is the router\'s affair');
	}

	/* Breaks every connection, session or link of the devices; they come back. */
	break_all(what) {
		for (const client of this.clients.values()) {
			for (const receiver of client.receivers.values()) {
				break_off(what, false, receiver);
				if (what !== 'session' && what !== 'link')
					break;
			}
			if (!['drop', 'reset'].includes(what))
				setTimeout(() => client.restart(), 200);
		}
	}

	pause_reading(paused) {
		for (const client of this.clients.values())
			if (client.connection.socket)
				client.connection.socket[paused ? 'pause' : 'resume']();
	}

	async stop() {
		for (const client of this.clients.values())
			client.close();
	}

	state() {
		return { clients: [...this.clients.values()].map((c) => ({ name: c.name, open: c.is_open(), receivers: c.receivers.size })) };
	}
}

/* One connection, its receivers, and its way to send replies. */
class Client {
	constructor(name, broker) {
		this.name = name;
		this.broker = broker;
		this.fleet = broker.fleet;
		this.receivers = new Map();		/* device name -> receiver */
		this.senders = new Map();		/* reply address, or '' when anonymous -> sender */
		this.waiting = [];
		this.connection = null;
	}

	is_open() {
		return this.connection !== null && this.connection.is_open();
	}

	connect() {
		const { options } = this.broker;
		const container = rhea.create_container({ id: `${options.container_id}-${this.name}` });
		const event = (kind, fields) => this.fleet.ledger.event(kind, { client: this.name, ...fields });

		container.on('connection_open', () => event('connected'));
		container.on('connection_close', () => {});
		container.on('connection_error', ({ error }) => event('connection_error', { error: String(error) }));
		container.on('disconnected', ({ error }) => event('disconnected', { error: error ? String(error) : undefined }));
		container.on('session_error', () => {});
		container.on('receiver_open', ({ receiver }) => {
			if (receiver.source && receiver.source.address)
				event('receiver_attached', { address: receiver.source.address });
		});
		container.on('receiver_error', ({ receiver }) => event('receiver_error', { error: String(receiver.error) }));
		container.on('sender_error', ({ sender }) => event('sender_error', { error: String(sender.error) }));
		container.on('protocol_error', (error) => event('protocol_error', { error: String(error) }));
		container.on('error', (error) => event('error', { error: String(error) }));
		container.on('message', (context) => this.receive(context));
		container.on('sendable', () => this.flush());
		for (const outcome of ['accepted', 'rejected', 'released', 'modified'])
			container.on(outcome, ({ delivery }) => event('reply', { ...delivery.info, outcome }));

		const tls = options.tls_ca ? { transport: 'tls', ca: fs.readFileSync(options.tls_ca), servername: options.host } : {};

		this.connection = container.connect({
			host: options.host, port: options.port, username: options.user || 'anonymous', password: options.password,
			tcp_no_delay: true, idle_time_out: options.idle_timeout, session_buffer_size: 65536,
			initial_reconnect_delay: 100, max_reconnect_delay: 1000, all_errors_non_fatal: true,
			sender_options: { treat_modified_as_released: false }, ...tls,
		});
	}

	attach(device) {
		if (this.receivers.has(device.name))
			return;
		if (this.connection === null)
			this.connect();
		const receiver = this.connection.open_receiver({
			source: { address: this.broker.address(device), capabilities: this.broker.options.capabilities },
			credit_window: this.broker.options.credit, autoaccept: false,
		});

		receiver.device = device;
		this.receivers.set(device.name, receiver);
	}

	/* What was not settled goes back to the broker. */
	detach(device) {
		const receiver = this.receivers.get(device.name);

		if (receiver === undefined)
			return;
		this.receivers.delete(device.name);
		if (this.broker.options.shared)
			receiver.close();
		else
			this.close();
	}

	close() {
		if (this.connection === null)
			return;
		this.connection.set_reconnect(false);
		this.connection.close();
		if (this.connection.scheduled_reconnect)
			clearTimeout(this.connection.scheduled_reconnect);
		this.connection = null;
		this.senders.clear();
		this.receivers.clear();
	}

	/* rhea comes back by itself when it lost a connection, not when it ended one. */
	restart() {
		const devices = [...this.receivers.values()].map((receiver) => receiver.device);

		this.close();
		for (const device of devices)
			this.attach(device);
	}

	receive({ message, delivery, receiver }) {
		const { device } = receiver;

		device.receive(message, receiver.source ? receiver.source.address : null, {
			settle: (b) => settle(delivery, b),
			reply: (reply, info) => {
				this.waiting.push({ reply, info });
				this.flush();
			},
			break: (what, gently) => {
				break_off(what, gently, receiver);
				if (!['drop', 'reset'].includes(what))
					setTimeout(() => this.restart(), 200);
			},
			offline: () => this.fleet.set_online([device.name], false),
		});
	}

	/* Replies wait here for a connection and credit, in order. */
	flush() {
		while (this.waiting.length > 0 && this.connection !== null) {
			const { reply, info } = this.waiting[0];
			const address = this.broker.options.reply_link === 'addressed' ? reply.to : '';

			if (!this.senders.has(address))
				this.senders.set(address, this.connection.open_sender({ target: address ? { address } : {} }));
			const sender = this.senders.get(address);
			const { outgoing } = sender.session;

			if (!sender.is_open() || sender.credit === 0)
				return;
			if (sender.credit <= outgoing.next_delivery_id - outgoing.next_pending_delivery) {
				setImmediate(() => this.flush());
				return;
			}
			this.waiting.shift();
			sender.send(reply).info = info;
			this.fleet.ledger.event('reply', { ...info, to: reply.to, outcome: null });
		}
	}
}

module.exports = { Broker };
