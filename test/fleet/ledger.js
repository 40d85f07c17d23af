/*
 * ledger.js - what the devices saw, on disk before they act on it.
 *
 * The ledger has one JSON line for each command that reached a device, and
 * nothing else, so that "no id twice" is a question about its lines.  What
 * happened afterwards (outcomes, replies, breaks) goes to the event log.
 * Both are written with a blocking write to a descriptor in append mode: a
 * line is with the kernel before the device does anything, and survives a
 * SIGKILL of the fleet.  With fsync it survives the machine too.
 */
'use strict';

const fs = require('fs');

class Ledger {
	constructor(path, eventPath, fsync) {
		this.fd = path ? fs.openSync(path, 'a') : null;
		this.eventFd = eventPath ? fs.openSync(eventPath, 'a') : null;
		this.fsync = fsync;
		this.commands = 0;
	}

	/* A command reached a device.  Throws if it cannot be recorded. */
	command(entry) {
		this.commands++;
		if (this.fd === null)
			return;
		fs.writeSync(this.fd, JSON.stringify({ seq: this.commands, ...entry }) + '\n');
		if (this.fsync)
			fs.fdatasyncSync(this.fd);
	}

	event(kind, fields) {
		if (this.eventFd === null)
			return;
		fs.writeSync(this.eventFd, JSON.stringify({ at: Date.now(), event: kind, ...fields }) + '\n');
	}
}

module.exports = { Ledger };
