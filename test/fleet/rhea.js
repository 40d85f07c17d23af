/*
 * rhea.js - the rhea library, with one defect of version 3.0.5 put right.
 *
 * rhea collects the deliveries settled in one tick and writes one disposition
 * for a run of neighbouring ids.  It does not compare the outcome of the first
 * two, so that an accepted delivery next to a released one comes back to the
 * sender as accepted (or the other way round).  A fleet exists to give exact
 * outcomes, therefore every delivery gets a disposition of its own here.
 *
 * rhea is found by NODE_PATH; see README.md.
 */
'use strict';

const rhea = require('rhea');
const Session = require('rhea/lib/session.js');

const incoming = Object.getPrototypeOf(new Session({ options: {} }, 0).incoming);
const process_all = incoming.process;

incoming.process = function (session) {
	const updated = this.updated;

	if (updated.length < 2)
		return process_all.call(this, session);
	for (const delivery of updated) {
		this.updated = [delivery];
		process_all.call(this, session);
	}
};

module.exports = rhea;
