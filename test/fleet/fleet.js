#!/usr/bin/env node
/*
 * fleet.js - simulated devices for the tests: clients of a broker, or behind
 * a router double.
 *
 *   fleet.js devices --port 5672 --devices 'press-{1..3}' --ledger l.jsonl
 *   fleet.js router  --devices 'press-{1..3}' --ledger l.jsonl
 *
 * Prints one JSON line when it is ready, then reads control commands, one JSON
 * object a line, from standard input (and from the control port), and answers
 * each with a line.  README.md documents every option.
 */
'use strict';

const fs = require('fs');
const http = require('http');
const readline = require('readline');
const { parseArgs } = require('util');
const { Ledger } = require('./ledger.js');
const { Device } = require('./device.js');
const { Rules, resolve, matches, reply_message, REPLY_DEFAULTS } = require('./behaviour.js');
const { Broker } = require('./broker.js');
const { Router } = require('./router.js');

/* Options of the command line; the same words, with _ for -, are keys of --config. */
const OPTIONS = {
	'config': { type: 'string' },
	'devices': { type: 'string', multiple: true },
	'offline': { type: 'string', multiple: true },
	'any-device': { type: 'boolean' },
	'behaviour': { type: 'string' },
	'rule': { type: 'string', multiple: true },
	'ledger': { type: 'string' },
	'events': { type: 'string' },
	'fsync': { type: 'boolean' },
	'check-expiry': { type: 'boolean' },
	'remember-ids': { type: 'boolean' },
	'control-port': { type: 'string' },
	'until-eof': { type: 'boolean' },
	'host': { type: 'string' },
	'port': { type: 'string' },
	'user': { type: 'string' },
	'password': { type: 'string' },
	'anonymous': { type: 'boolean' },
	'no-anonymous': { type: 'boolean' },
	'address': { type: 'string' },
	'tenant': { type: 'string' },
	'link-address': { type: 'string' },
	'credit': { type: 'string' },
	'no-credit': { type: 'string', multiple: true },
	'idle-timeout': { type: 'string' },
	'max-frame-size': { type: 'string' },
	'container-id': { type: 'string' },
	'shared': { type: 'boolean' },
	'reply-link': { type: 'string' },
	'tls-cert': { type: 'string' },
	'tls-key': { type: 'string' },
	'tls-ca': { type: 'string' },
	'tls-client-ca': { type: 'string' },
};

const DEFAULTS = {
	devices: [], offline: [], rules: [], behaviour: 'answer', host: '127.0.0.1', address: 'command/{device}',
	no_credit: [], idle_timeout: 60000, max_frame_size: 65536, container_id: 'fleet', reply_link: 'anonymous',
	schedule: [],
};

const NUMBERS = ['port', 'control_port', 'credit', 'idle_timeout', 'max_frame_size'];

function fail(message) {
	process.stderr.write(`fleet: ${message}\n`);
	process.exit(2);
}

/* 'a,b,press-{1..3}' to names. */
function expand_names(words) {
	const names = [];

	for (const word of [].concat(words).flatMap((w) => w.split(',')).filter((w) => w !== '')) {
		const range = /^(.*)\{(\d+)\.\.(\d+)\}(.*)$/.exec(word);

		if (range === null)
			names.push(word);
		else
			for (let i = Number(range[2]); i <= Number(range[3]); i++)
				names.push(range[1] + i + range[4]);
	}
	return names;
}

function json_or_word(text) {
	return /^\s*\{/.test(text) ? JSON.parse(text) : text;
}

function read_options(argv) {
	const { values, positionals } = parseArgs({ args: argv, options: OPTIONS, allowPositionals: true });
	const options = { ...DEFAULTS };

	if (values.config !== undefined)
		Object.assign(options, JSON.parse(/^\s*\{/.test(values.config) ? values.config : fs.readFileSync(values.config, 'utf8')));
	for (const [key, value] of Object.entries(values))
		options[key.replace(/-/g, '_')] = value;
	for (const key of NUMBERS)
		if (options[key] !== undefined)
			options[key] = Number(options[key]);
	options.mode = positionals[0];
	if (!['devices', 'router'].includes(options.mode) || positionals.length !== 1)
		fail('the first argument is "devices" or "router"');
	if (options.mode === 'devices' && !options.port)
		fail('"devices" needs --port of the broker');
	options.port = options.port || 0;
	options.credit = options.credit || (options.mode === 'router' ? 250 : 10);
	options.anonymous = options.anonymous === undefined ? options.user === undefined : options.anonymous;
	if (options.no_anonymous)
		options.anonymous = false;
	options.devices = expand_names(options.devices);
	options.offline = expand_names(options.offline);
	options.behaviour = json_or_word(options.behaviour);
	options.rules = options.rules.concat([].concat(options.rule || []).map((r) => JSON.parse(r)));
	return options;
}

class Fleet {
	constructor(options) {
		this.options = options;
		this.ledger = new Ledger(options.ledger, options.events, options.fsync);
		this.rules = new Rules(options.rules, options.behaviour);
		this.expired = resolve({ as: 'reject', name: 'expired', condition: 'device:expired', description: 'the deadline has passed' });
		this.repeated = resolve({ as: 'silent', name: 'repeated', acts: false });
		this.devices = new Map();
		this.commands = new Map();		/* id -> { command, via }, the last 100,000 */
		this.transport = options.mode === 'router' ? new Router(options, this) : new Broker(options, this);
	}

	async start() {
		const port = await this.transport.start();

		for (const name of this.options.devices)
			this.device(name);
		this.set_online(this.options.devices.filter((name) => !this.options.offline.some((p) => matches(p, name))), true);
		for (const step of this.options.schedule)
			setTimeout(() => this.control(step.do), step.after);
		return port;
	}

	/* The device of that name; one nobody named is offline, unless any is welcome. */
	device(name) {
		let device = this.devices.get(name);

		if (device === undefined) {
			device = new Device(name, this);
			device.online = this.options.mode === 'router' && this.options.any_device === true;
			this.devices.set(name, device);
		}
		return device;
	}

	remember(command, via) {
		this.commands.set(command.id, { command, via });
		if (this.commands.size > 100000)
			this.commands.delete(this.commands.keys().next().value);
	}

	/* Devices by names or patterns; a plain name is created when missing. */
	select(words) {
		const names = new Set();

		for (const word of expand_names(words)) {
			if (word.includes('*'))
				[...this.devices.keys()].filter((name) => matches(word, name)).forEach((name) => names.add(name));
			else
				names.add(word);
		}
		return [...names].map((name) => this.device(name));
	}

	set_online(words, online) {
		for (const device of this.select(words)) {
			if (device.online === online)
				continue;
			device.online = online;
			this.ledger.event(online ? 'online' : 'offline', { device: device.name });
			this.transport.device_changed(device);
		}
	}

	known(id) {
		const entry = this.commands.get(id);

		if (entry === undefined)
			throw new Error(`no command "${id}" has come`);
		return entry;
	}

	/* One control command; what it returns is sent back with "ok". */
	async control(c) {
		/* Members of a JSON object have no order. */
		const verb = Object.keys(c).find((key) => key !== 'with' && key !== 'as');

		switch (verb) {
		case 'online': return this.set_online(c.online, true);
		case 'offline': return this.set_online(c.offline, false);
		case 'ready':
		case 'unready':
			for (const device of this.select(c[verb])) {
				device.ready = verb === 'ready';
				this.transport.device_changed(device);
			}
			return undefined;
		case 'behaviour': this.rules.fallback = resolve(c.behaviour); return undefined;
		case 'rule': return this.rules.add(c.rule);
		case 'clear_rules': return this.rules.clear();
		case 'check_expiry':
		case 'remember_ids': this.options[verb] = c[verb]; return undefined;
		case 'credit': return this.transport.set_credit(c.credit, true);
		case 'no_credit': return this.transport.set_credit(c.no_credit, false);
		case 'settle': {
			const entry = this.known(c.settle);

			entry.via.settle(resolve(c.as || 'answer'));
			return this.ledger.event('outcome', { id: c.settle, device: entry.command.device, late: true });
		}
		case 'reply': return this.control_reply(c);
		case 'await_in_hand': return { in_hand: await this.await_in_hand(c.await_in_hand) };
		case 'break': return this.transport.break_all(c.break);
		case 'pause': return this.transport.pause_reading(c.pause);
		case 'refuse': return this.transport.set_refusing(c.refuse);
		case 'listen': return c.listen ? this.transport.start() : this.transport.stop();
		case 'state':
			return { state: { commands: this.ledger.commands, online: [...this.devices.values()].filter((d) => d.online).map((d) => d.name),
				...this.transport.state() } };
		case 'quit':
			setImmediate(() => this.quit());
			return undefined;
		default: throw new Error(`unknown control command "${verb}"`);
		}
	}

	/* Until so many commands are with devices at once, 5 s at most. */
	async await_in_hand(count) {
		const until = Date.now() + 5000;

		while (this.transport.in_hand() < count && Date.now() < until)
			await new Promise((resolve) => setTimeout(resolve, 1));
		return this.transport.in_hand();
	}

	/* A reply by hand: to a command that came, or to nothing at all. */
	control_reply(c) {
		const reply = { ...REPLY_DEFAULTS, ...(c.with || {}) };

		if (typeof c.reply === 'string') {
			const entry = this.known(c.reply);

			return entry.via.reply(reply_message(reply, entry.command), { id: c.reply, device: entry.command.device, resend: reply.resend });
		}
		if (this.options.mode !== 'router')
			throw new Error('a reply to no command is sent by the router only');
		const command = { device: null, subject: null, body: null, ...c.reply };

		return this.transport.reply(reply_message(reply, command), { id: command.id || null, device: command.device, resend: reply.resend });
	}

	async quit() {
		await Promise.race([this.transport.stop(), new Promise((resolve) => setTimeout(resolve, 500))]);
		process.exit(0);
	}
}

async function answer(fleet, text) {
	try {
		return { ok: true, ...(await fleet.control(JSON.parse(text)) || {}) };
	} catch (e) {
		return { ok: false, error: e.message };
	}
}

function serve_control(fleet, port) {
	const server = http.createServer((request, response) => {
		let text = '';

		request.on('data', (chunk) => { text += chunk; });
		request.on('end', async () => {
			const result = await answer(fleet, request.method === 'GET' ? '{"state": true}' : text);

			response.writeHead(result.ok ? 200 : 400, { 'content-type': 'application/json' });
			response.end(JSON.stringify(result) + '\n');
		});
	});

	return new Promise((resolve, reject) => {
		server.on('error', reject);
		server.listen(port, '127.0.0.1', () => resolve(server.address().port));
	});
}

/* Lines are answered in order, one after the other. */
function read_control(fleet, until_eof) {
	let last = Promise.resolve();
	const lines = readline.createInterface({ input: process.stdin });

	lines.on('line', (line) => {
		if (line.trim() !== '')
			last = last.then(() => answer(fleet, line)).then((result) => process.stdout.write(JSON.stringify(result) + '\n'));
	});
	lines.on('close', () => {
		if (until_eof)
			last.then(() => fleet.quit());
	});
}

async function main() {
	let options;
	let fleet;

	try {
		options = read_options(process.argv.slice(2));
		fleet = new Fleet(options);
	} catch (e) {
		fail(e.message);
	}
	const port = await fleet.start();
	const ready = { ready: true, mode: options.mode, port, pid: process.pid };

	if (options.control_port !== undefined)
		ready.control_port = await serve_control(fleet, options.control_port);
	for (const signal of ['SIGTERM', 'SIGINT'])
		process.on(signal, () => fleet.quit());
	process.stdout.on('error', () => {});
	process.stdout.write(JSON.stringify(ready) + '\n');
	read_control(fleet, options.until_eof);
	setInterval(() => {}, 2 ** 30);		/* stay, also while every device is offline */
}

main().catch((e) => fail(e.message));
