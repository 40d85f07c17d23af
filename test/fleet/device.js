/*
 * device.js - a simulated device: records a command, then behaves.
 *
 * The device does not know how it is connected.  Whoever connects it (broker.js
 * or router.js) hands over each command together with an object `via`:
 *
 *   settle(behaviour)      give the command its outcome
 *   reply(message, reply)  send a message towards its `to`
 *   break(what, gently)    drop | reset | session | link | connection
 *   offline()              the device leaves
 */
'use strict';

const { id_text, reply_message } = require('./behaviour.js');

/* A received message as plain values. */
function read_command(device, message, link) {
	const sections = message.body;
	let body = sections;
	let body_kind = 'value';

	if (sections && sections.typecode !== undefined) {
		body_kind = sections.typecode === 0x75 ? 'data' : 'sequence';
		body = sections.multiple && body_kind === 'data' ? Buffer.concat(sections.content) : sections.content;
	}
	else if (sections === undefined)
		body_kind = 'none';
	return {
		id: id_text(message.message_id),
		id_type: Buffer.isBuffer(message.message_id) ? 'bytes' : typeof message.message_id,
		device,
		subject: message.subject === undefined ? null : message.subject,
		body: plain(body),
		body_kind,
		at: Date.now(),
		deadline: message.absolute_expiry_time === undefined ? null : Number(message.absolute_expiry_time),
		created: message.creation_time === undefined ? null : Number(message.creation_time),
		ttl: message.ttl === undefined ? null : message.ttl,
		durable: message.durable === true,
		priority: message.priority === undefined ? null : message.priority,
		delivery_count: message.delivery_count || 0,
		to: message.to === undefined ? null : message.to,
		reply_to: message.reply_to === undefined ? null : message.reply_to,
		correlation_id: id_text(message.correlation_id),
		content_type: message.content_type === undefined ? null : message.content_type,
		properties: plain(message.application_properties || {}),
		link,
	};
}

/* Values that JSON can say: text where the bytes are text, else base64. */
function plain(value) {
	if (value === undefined || value === null)
		return null;
	if (Buffer.isBuffer(value)) {
		const text = value.toString('utf8');

		return Buffer.from(text, 'utf8').equals(value) ? text : { base64: value.toString('base64') };
	}
	if (Array.isArray(value))
		return value.map(plain);
	if (value instanceof Date)
		return value.getTime();
	if (typeof value === 'object')
		return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, plain(v)]));
	return value;
}

class Device {
	constructor(name, fleet) {
		this.name = name;
		this.fleet = fleet;
		this.online = false;
		this.ready = true;			/* gives credit; this and the next two: router only */
		this.unsettled = new Set();	/* deliveries it has and has not settled */
		this.waiting = [];			/* deliveries it has no credit for */
		this.seen = new Set();		/* ids, when remember_ids is on */
	}

	/* Record, then behave.  Nothing leaves before the ledger has the line. */
	receive(message, link, via) {
		const { fleet } = this;
		const command = read_command(this.name, message, link);
		let behaviour = fleet.rules.find(this.name, command.subject || '');

		if (fleet.options.check_expiry && this.is_expired(command))
			behaviour = fleet.expired;
		else if (fleet.options.remember_ids && this.seen.has(command.id))
			behaviour = fleet.repeated;
		if (fleet.options.remember_ids)
			this.seen.add(command.id);
		fleet.ledger.command({ ...command, behaviour: behaviour.name, acts: behaviour.acts });
		fleet.remember(command, via);
		this.behave(command, behaviour, via);
	}

	is_expired(command) {
		return command.deadline !== null ? command.at >= command.deadline :
			command.ttl !== null && command.created !== null && command.at >= command.created + command.ttl;
	}

	behave(command, b, via) {
		const { ledger } = this.fleet;
		const { reply } = b;

		if (reply && reply.early)
			this.schedule_replies(command, reply, via);
		if (b.break !== null && b.when === 'before') {
			ledger.event('break', { id: command.id, device: this.name, break: b.break, when: 'before' });
			via.break(b.break, false);
		}
		else
			after(b.outcome_delay, () => {
				if (b.outcome !== 'never') {
					via.settle(b);
					ledger.event('outcome', { id: command.id, device: this.name, outcome: b.outcome });
				}
				if (b.offline)
					setImmediate(() => via.offline());
				if (b.break !== null)
					setImmediate(() => {
						ledger.event('break', { id: command.id, device: this.name, break: b.break, when: 'after' });
						via.break(b.break, true);
					});
			});
		if (reply && !reply.early)
			this.schedule_replies(command, reply, via, b.break === null ? b.outcome_delay : 0);
	}

	/*
	 * A reply is sent from a later turn of the loop than the outcome: rhea
	 * writes transfers before dispositions within one.
	 */
	schedule_replies(command, reply, via, base = 0) {
		if (command.reply_to === null) {
			this.fleet.ledger.event('no_reply_to', { id: command.id, device: this.name });
			return;
		}
		for (let i = 0; i < reply.times; i++) {
			const options = i > 0 && reply.again ? { ...reply, ...reply.again } : reply;
			const wait = base + reply.delay + i * reply.gap;

			setImmediate(() => after(wait, () => {
				via.reply(reply_message(options, command), { id: command.id, device: this.name, resend: options.resend });
			}));
		}
	}
}

function after(ms, action) {
	if (ms > 0)
		setTimeout(action, ms);
	else
		action();
}

/* Gives a rhea delivery the outcome a behaviour asks for. */
function settle(delivery, b) {
	const error = { condition: b.condition || 'amqp:not-allowed', description: b.description || 'refused by the device' };

	switch (b.outcome) {
	case 'accepted': return delivery.accept();
	case 'released': return delivery.release();
	case 'rejected': return delivery.reject(error);
	case 'modified': return delivery.modified({
		delivery_failed: b.delivery_failed === true, undeliverable_here: b.undeliverable_here === true });
	case 'none': return delivery.update(true);
	default: throw new Error(`unknown outcome "${b.outcome}"`);
	}
}

/* Closes the socket: at once, or when what was written has left. */
function drop(connection, gently) {
	const { socket } = connection;
	const abort = () => {
		connection.abort_socket(socket);
		socket.on('error', () => {});
	};

	if (!gently) {
		abort();
		return;
	}
	socket.removeAllListeners('data');
	socket.resume();
	socket.end(abort);
}

/* Breaks a rhea connection, session or link in the way asked for. */
function break_off(what, gently, link) {
	const { connection, session } = link;
	const error = { condition: 'amqp:internal-error', description: 'ended by the fleet' };

	switch (what) {
	case 'drop': drop(connection, gently); break;
	case 'reset':
		connection.socket.resetAndDestroy();
		connection._disconnected();
		break;
	case 'session': session.close(error); break;
	case 'link': link.close(error); break;
	case 'connection': connection.close({ ...error, condition: 'amqp:connection:forced' }); break;
	default: throw new Error(`unknown break "${what}"`);
	}
}

module.exports = { Device, settle, break_off };
