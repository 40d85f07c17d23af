/*
 * behaviour.js - what a device does with a command: names, rules, replies.
 *
 * A behaviour is an object of independent parts (outcome, reply, break, each
 * with its own delay).  A name stands for such an object; {"as": name, ...}
 * takes a named one and changes parts of it.  README.md lists them all.
 */
'use strict';

const crypto = require('crypto');
const rhea = require('./rhea.js');

const { types } = rhea;

const DEFAULTS = { outcome: 'accepted', outcome_delay: 0, acts: true, reply: {}, break: null, when: 'after' };

const REPLY_DEFAULTS = {
	status: 200, status_type: 'int', delay: 0, early: false, times: 1, gap: 0,
	id: 'same', id_type: 'string', content_type: 'application/json',
	body_kind: 'data', resend: false,
};

const NAMED = {
	answer: {},
	fail: { reply: { status: 500 } },
	late: { reply: { delay: 1000 } },
	early: { reply: { early: true }, outcome_delay: 200 },
	twice: { reply: { times: 2 } },
	contradict: { reply: { times: 2, again: { status: 500 } } },
	unknown_id: { reply: { id: 'unknown' } },
	garbage_id: { reply: { id: 'garbage' } },
	no_id: { reply: { id: 'none' } },
	message_id: { reply: { id: 'message_id' } },
	uuid_id: { reply: { id_type: 'uuid' } },
	binary_id: { reply: { id_type: 'binary' } },
	text_id: { reply: { id_type: 'text' } },
	upper_id: { reply: { id_type: 'upper' } },
	other_device: { reply: { device_id: 'somebody-else' } },
	silent: { reply: false },
	release: { outcome: 'released', reply: false, acts: false },
	reject: { outcome: 'rejected', reply: false, acts: false },
	modify: { outcome: 'modified', reply: false, acts: false },
	gone: { outcome: 'modified', delivery_failed: true, offline: true, reply: false },
	bare: { outcome: 'none', reply: false },
	hold: { outcome: 'never', reply: false },
	answer_held: { outcome: 'never' },
	drop_before: { break: 'drop', when: 'before', reply: false },
	drop_after: { break: 'drop', reply: false },
	reset_before: { break: 'reset', when: 'before', reply: false },
	end_session_before: { break: 'session', when: 'before', reply: false },
	end_session_after: { break: 'session', reply: false },
	detach_before: { break: 'link', when: 'before', reply: false },
	detach_after: { break: 'link', reply: false },
	close_before: { break: 'connection', when: 'before', reply: false },
	close_after: { break: 'connection', reply: false },
};

const OUTCOMES = ['accepted', 'released', 'rejected', 'modified', 'none', 'never'];
const BREAKS = [null, 'drop', 'reset', 'session', 'link', 'connection'];

/* Behaviour from a name or an object; throws on a word it does not know. */
function resolve(spec) {
	const given = typeof spec === 'string' ? { as: spec } : { ...spec };
	const name = given.as === undefined ? 'answer' : given.as;
	const base = NAMED[name];

	if (base === undefined)
		throw new Error(`unknown behaviour "${name}", one of: ${Object.keys(NAMED).join(', ')}`);
	delete given.as;
	const b = { ...DEFAULTS, ...base, name, ...given };

	b.reply = given.reply === false || (base.reply === false && given.reply === undefined)
		? false : { ...REPLY_DEFAULTS, ...(base.reply || {}), ...(given.reply || {}) };
	if (!OUTCOMES.includes(b.outcome))
		throw new Error(`unknown outcome "${b.outcome}", one of: ${OUTCOMES.join(', ')}`);
	if (!BREAKS.includes(b.break))
		throw new Error(`unknown break "${b.break}", one of: ${BREAKS.slice(1).join(', ')}`);
	return b;
}

/* Pattern with * for any characters, as in a shell. */
function matches(pattern, word) {
	if (pattern === undefined || pattern === '*')
		return true;
	const escaped = pattern.replace(/[.+?^${}()|[\]\\]/g, '\\$&').replace(/\*/g, '.*');

	return new RegExp(`^${escaped}$`).test(word);
}

/* Ordered rules; the first that fits a command tells the behaviour. */
class Rules {
	constructor(rules, fallback) {
		this.list = [];
		this.fallback = resolve(fallback);
		for (const rule of rules)
			this.list.push(Rules.compile(rule));
	}

	static compile(rule) {
		return { device: rule.device, command: rule.command, left: rule.times === undefined ? Infinity : rule.times,
			behaviour: resolve(rule.behaviour) };
	}

	/* Newer rules come first: a test overrides what it started with. */
	add(rule) {
		this.list.unshift(Rules.compile(rule));
	}

	clear() {
		this.list = [];
	}

	find(device, command) {
		for (const rule of this.list) {
			if (rule.left > 0 && matches(rule.device, device) && matches(rule.command, command)) {
				rule.left--;
				return rule.behaviour;
			}
		}
		return this.fallback;
	}
}

function uuid_bytes(text) {
	const hex = text.replace(/-/g, '');

	return /^[0-9a-fA-F]{32}$/.test(hex) ? Buffer.from(hex, 'hex') : Buffer.from(text);
}

/* An id as text, whatever type it came in: uuid and binary forms are the same id. */
function id_text(id) {
	if (id === undefined || id === null)
		return null;
	if (!Buffer.isBuffer(id))
		return String(id);
	if (id.length !== 16)
		return id.toString();
	return id.toString('hex').replace(/^(.{8})(.{4})(.{4})(.{4})/, '$1-$2-$3-$4-');
}

function typed_id(text, type) {
	switch (type) {
	case 'string': return text;
	case 'upper': return text.toUpperCase();
	case 'uuid': return types.wrap_uuid(uuid_bytes(text));
	case 'binary': return types.wrap_binary(uuid_bytes(text));
	case 'text': return types.wrap_binary(Buffer.from(text));
	default: throw new Error(`unknown id_type "${type}"`);
	}
}

function typed_status(status, type) {
	switch (type) {
	case 'int': return types.wrap_int(status);
	case 'uint': return types.wrap_uint(status);
	case 'long': return types.wrap_long(status);
	case 'short': return types.wrap_short(status);
	case 'ubyte': return types.wrap_ubyte(status);
	case 'string': return String(status);
	default: throw new Error(`unknown status_type "${type}"`);
	}
}

function reply_body(reply, command) {
	let bytes;

	if (reply.body !== undefined)
		bytes = Buffer.from(reply.body);
	else if (reply.body_base64 !== undefined)
		bytes = Buffer.from(reply.body_base64, 'base64');
	else if (reply.body_size !== undefined)
		bytes = Buffer.alloc(reply.body_size, 'x');
	else if (reply.payload !== undefined)
		bytes = Buffer.from(JSON.stringify(reply.payload));
	else
		bytes = Buffer.from(JSON.stringify({ device: command.device, command: command.subject, echo: echo(command.body) }));

	switch (reply.body_kind) {
	case 'data': return rhea.message.data_section(bytes);
	case 'split': return rhea.message.data_sections([bytes.subarray(0, bytes.length >> 1), bytes.subarray(bytes.length >> 1)]);
	case 'value': return bytes.toString();
	case 'none': return { collect_sections() {} };
	default: throw new Error(`unknown body_kind "${reply.body_kind}"`);
	}
}

function echo(body) {
	try {
		return typeof body === 'string' ? JSON.parse(body) : null;
	} catch (e) {
		return body;
	}
}

/* The reply to a command, as rhea wants a message. */
function reply_message(reply, command) {
	const message = { to: command.reply_to, creation_time: new Date(), application_properties: {} };
	const device_id = reply.device_id === undefined ? command.device : reply.device_id;
	const id = reply.id === 'unknown' ? crypto.randomUUID() : reply.id === 'garbage' ? 'not-an-id' :
		command.correlation_id || command.id || '';

	if (reply.id === 'message_id')
		message.message_id = typed_id(id, reply.id_type);
	else {
		message.message_id = crypto.randomUUID();
		if (reply.id === 'none')
			delete message.message_id;
		else
			message.correlation_id = typed_id(id, reply.id_type);
	}
	if (command.subject !== null)
		message.subject = command.subject;
	if (reply.content_type !== null)
		message.content_type = reply.content_type;
	if (reply.status !== null)
		message.application_properties.status = typed_status(reply.status, reply.status_type);
	if (device_id !== null)
		message.application_properties.device_id = device_id;
	Object.assign(message.application_properties, reply.properties || {});
	message.body = reply_body(reply, command);
	return message;
}

module.exports = { NAMED, REPLY_DEFAULTS, Rules, resolve, matches, id_text, reply_message };
