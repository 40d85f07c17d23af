#!/usr/bin/python3
"""Many sessions that command devices in every way there is, and write down what each was told.

  load.py CONNECTION COMMANDS SESSIONS SEED DIR [disturb]

Every command carries a number of its own in its payload ({"n": ...}), which the device's answer repeats. DIR/told gets
a line of JSON for each command: its number, how it was sent, and what its session knows of it:

  committed, rolled_back   a transaction that sent it ended so
  unknown                  the connection was lost, or the statement was cancelled, before anybody said
  refused                  an error that says it was not sent
  answered                 a call returned, with state, id and the number in the answer

Lines of one transaction have the same "tx". DIR/issued holds how many commands were begun so far; at most as many are
begun as DIR/allowed says, if it is there. With "disturb" statements and sessions are ended at random by pg_cancel_backend() and pg_terminate_backend().
"""
import json
import os
import random
import sys
import threading
import time

import psycopg2
from psycopg2.extensions import TRANSACTION_STATUS_IDLE as IDLE

CONNECTION, COMMANDS, SESSIONS, SEED, DIR = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
DISTURB = "disturb" in sys.argv[6:]
PATIENCE = 60
# Too many calls; a lock in the way: whoever is told this has sent nothing.
REFUSED = ("53000", "55P03")

told = open(f"{DIR}/told", "a")
lock = threading.Lock()
issued = 0
allowed = COMMANDS
pids = {}


def connect(name):
    end = time.monotonic() + PATIENCE
    while True:
        try:
            connection = psycopg2.connect(CONNECTION, application_name=name)
            connection.autocommit = True
            return connection
        except psycopg2.OperationalError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


class Session(threading.Thread):
    def __init__(self, number):
        super().__init__()
        self.number, self.last, self.tx = number, 0, 0
        self.rng = random.Random(SEED * 1000 + number)
        self.connection = None
        self.failed = None

    # ---- what a command is

    def device(self):
        kind = self.rng.choices(("d", "silent", "fail", "reject", "release", "slow", "off"), (72, 1, 5, 5, 5, 4, 8))[0]
        return f"{kind}-{self.rng.randint(1, 16 if kind == 'd' else 3)}"

    def numbers(self, count):
        global issued
        first = self.last + 1
        self.last += count
        with lock:
            issued += count
        return [(SEED * 1000 + self.number) * 1_000_000 + first + i for i in range(count)]

    def options(self):
        """ttl, reply_within, mode"""
        mode = "store" if self.rng.random() < 0.3 else "direct"
        short = self.rng.random() < 0.2
        # In store mode an answer may come, and is waited for, until the end of ttl and longer.
        ttl = f"{self.rng.randint(20, 800)} ms" if short else "2 s" if mode == "store" else "20 s"
        return {"ttl": ttl, "within": "0" if self.rng.random() < 0.15 else "3 s", "mode": mode}

    def tell(self, numbers, devices, how, outcome, **more):
        with lock:
            for i, n in enumerate(numbers):
                line = {"n": n, "device": devices[i], "how": how, "outcome": outcome, "tx": f"{SEED}.{self.number}.{self.tx}"}
                line.update({key: value[i] for key, value in more.items()})
                told.write(json.dumps(line) + "\n")
            told.flush()

    # ---- ways to send

    def calls(self, cursor):
        rolled_back = self.rng.random() < 0.1
        hurried = self.rng.random() < 0.03
        several = self.rng.random() < 0.2
        devices = [self.device() for _ in range(self.rng.randint(3, 15) if several else 1)]
        numbers = self.numbers(len(devices))
        options = self.options()
        how = "call_devices" if several else "call_device"
        try:
            if hurried:
                cursor.execute(f"SET statement_timeout = {self.rng.randint(1, 40)}")
            if rolled_back:
                cursor.execute("BEGIN")
            if several:
                cursor.execute("""SELECT id, state, payload #>> '{echo,n}' FROM hybridiot.call_devices(%(devices)s, 'call_devices',
                    payloads => %(payloads)s::jsonb[], ttl => %(ttl)s, reply_within => %(within)s, mode => %(mode)s)""",
                    dict(options, devices=devices, payloads=[json.dumps({"n": n}) for n in numbers]))
            else:
                cursor.execute("""SELECT id, state, payload #>> '{echo,n}' FROM hybridiot.call_device(%(device)s, 'call_device',
                    %(payload)s, ttl => %(ttl)s, reply_within => %(within)s, mode => %(mode)s)""",
                    dict(options, device=devices[0], payload=json.dumps({"n": numbers[0]})))
            rows = cursor.fetchall()
            self.tell(numbers, devices, how, "answered", id=[r[0] for r in rows], state=[r[1] for r in rows],
                      echo=[r[2] for r in rows])
        except psycopg2.Error as error:
            refused = error.pgcode in REFUSED and not several
            self.tell(numbers, devices, how, "refused" if refused else "unknown", error=[error.pgcode] * len(numbers))
            raise
        finally:
            if not self.connection.closed:
                cursor.execute("ROLLBACK; SET statement_timeout = 0" if rolled_back else "SET statement_timeout = 0")

    def transaction(self, cursor):
        """send_command() or INSERT, some of it undone; afterwards perhaps cancelled."""
        insert = self.rng.random() < 0.35
        rolled_back = self.rng.random() < 0.1
        part = self.rng.random() < 0.05     # only a subtransaction is rolled back
        devices = [self.device() for _ in range(self.rng.randint(5, 30) if insert else self.rng.randint(1, 5))]
        numbers = self.numbers(len(devices))
        options = self.options()
        how = "insert" if insert else "send_command"
        kept = numbers[:len(numbers) // 2] if part else numbers
        outcome = "unknown"
        try:
            cursor.execute("BEGIN")
            ids = self.send(cursor, insert, numbers[:len(kept)], devices, options)
            if part:
                cursor.execute("SAVEPOINT s")
                ids += self.send(cursor, insert, numbers[len(kept):], devices[len(kept):], options)
                cursor.execute("ROLLBACK TO s")
            if rolled_back:
                outcome = "rolled_back"
                cursor.execute("ROLLBACK")
            else:
                cursor.execute("COMMIT")
                outcome = "committed"
        except psycopg2.Error:
            if not self.connection.closed:
                cursor.execute("ROLLBACK")      # nothing was committed if there is still a transaction
            raise
        finally:
            n = len(kept)
            self.tell(kept, devices, how, outcome)
            self.tell(numbers[n:], devices[n:], how, "rolled_back")
        if outcome == "committed" and kept and self.rng.random() < 0.3:
            i = self.rng.randrange(len(kept))
            cursor.execute("SELECT hybridiot.cancel_command(%s)", (ids[i],))
            self.tell([kept[i]], [devices[i]], "cancel", cursor.fetchone()[0])

    def send(self, cursor, insert, numbers, devices, options):
        if not numbers:
            return []
        values = dict(options, devices=devices[:len(numbers)], numbers=numbers)
        if insert:
            cursor.execute("""INSERT INTO hybridiot.command (device, command, payload, ttl, reply_within, mode)
                SELECT d, 'insert', jsonb_build_object('n', n), %(ttl)s, %(within)s, %(mode)s
                FROM unnest(%(devices)s, %(numbers)s) AS u(d, n) RETURNING id""", values)
        else:
            cursor.execute("""SELECT hybridiot.send_command(d, 'send_command', jsonb_build_object('n', n), %(ttl)s, %(within)s,
                mode => %(mode)s) FROM unnest(%(devices)s, %(numbers)s) AS u(d, n)""", values)
        return [row[0] for row in cursor.fetchall()]

    # ---- until there were enough

    def run(self):
        try:
            while issued < COMMANDS:
                if issued >= allowed:
                    time.sleep(0.02)
                    continue
                self.tx += 1
                # A cancelled ROLLBACK leaves a transaction behind.
                if self.connection and not self.connection.closed and self.connection.info.transaction_status != IDLE:
                    self.connection.close()
                if self.connection is None or self.connection.closed:
                    self.connection = connect(f"load {self.number}")
                    pids[self.number] = self.connection.get_backend_pid()
                try:
                    with self.connection.cursor() as cursor:
                        (self.calls if self.rng.random() < 0.55 else self.transaction)(cursor)
                except psycopg2.Error as error:
                    # Ended, cancelled, refused, or without a worker; all else is news.
                    if not (self.connection.closed or error.pgcode in (None, "57014", "55000") + REFUSED):
                        raise
                    if error.pgcode in ("55000", "53000"):
                        time.sleep(0.05)
        except Exception as error:      # pylint: disable=broad-except
            self.failed = error


def disturb():
    rng = random.Random(SEED)
    connection = connect("disturber")
    while True:
        time.sleep(rng.uniform(0.05, 0.3))
        function = rng.choice(("pg_cancel_backend", "pg_terminate_backend"))
        try:
            with connection.cursor() as cursor:
                cursor.execute(f"SELECT {function}(pid) FROM pg_stat_activity WHERE pid = %s AND application_name LIKE 'load %%'",
                               (rng.choice(list(pids.values()) or [0]),))
        except psycopg2.Error:
            connection = connect("disturber")


def read_allowed():
    try:
        with open(f"{DIR}/allowed") as file:
            return int(file.read() or 0)
    except FileNotFoundError:
        return COMMANDS


def main():
    global allowed
    parent = os.getppid()
    sessions = [Session(number) for number in range(1, SESSIONS + 1)]
    for session in sessions:
        session.start()
    if DISTURB:
        threading.Thread(target=disturb, daemon=True).start()
    while any(session.is_alive() for session in sessions):
        with open(f"{DIR}/issued.new", "w") as file:
            file.write(str(issued))
        os.rename(f"{DIR}/issued.new", f"{DIR}/issued")
        allowed = read_allowed()
        time.sleep(0.05)
        if os.getppid() != parent:
            os._exit(1)             # whoever started this is gone
    told.close()
    for session in sessions:
        if session.failed:
            print(f"session {session.number}: {session.failed!r}")
    os._exit(any(session.failed for session in sessions))


main()
