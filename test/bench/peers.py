"""Where commands are measured: a server of its own, the router double, and Artemis with a device that is a plain proton
program; gone afterwards.

with Peers() as peers: peers.server.sql("SELECT 1"); peers.exchange("artemis", 100); peers.worker_cpu()
Run as root or as a user; PostgreSQL runs as postgres if root.
"""
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from place import ROOT, TICK, as_postgres, run

class Server:
    def __init__(self, work):
        self.work = work
        run(*as_postgres(f"{ROOT}/test/lib/build", str(ROOT), f"{work}/build"), stderr=subprocess.STDOUT)
        config = [line for line in open(f"{work}/build/env") if "PG_CONFIG=" in line][0].split("=", 1)[1].strip()
        self.bin = os.path.dirname(config)
        self.data = f"{work}/data"
        run(*as_postgres(f"{self.bin}/initdb", "-D", self.data, "-A", "trust", "--no-sync"))
        with open(f"{self.data}/postgresql.conf", "a") as conf:
            conf.write(f"listen_addresses = ''\nunix_socket_directories = '{work}'\n"
                       "shared_preload_libraries = 'hybridiot'\nmax_connections = 200\n"
                       "hybridiot.call_slots = 256\nhybridiot.max_calls_per_role = 256\nmax_wal_size = 8GB\ncheckpoint_timeout = 1h\n")
        run(*as_postgres(f"{self.bin}/pg_ctl", "-D", self.data, "-l", f"{work}/log", "-w", "start"))

    def stop(self):
        subprocess.run(as_postgres(f"{self.bin}/pg_ctl", "-D", self.data, "-m", "fast", "-w", "stop"),
                       stdout=subprocess.DEVNULL)

    def sql(self, *statements):
        commands = [word for text in statements for word in ("-c", text)]
        return run(*as_postgres(f"{self.bin}/psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", self.work,
                                "-d", "postgres", *commands), stderr=subprocess.PIPE).strip()

    def synchronous_commit(self, value):
        self.sql(f"ALTER SYSTEM SET synchronous_commit = {value}", "SELECT pg_reload_conf()")
        time.sleep(0.5)     # the worker has no view that shows its settings


class Peers:
    def __enter__(self):
        # A time limit ends us by this signal: what was started goes, too.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        self.work = tempfile.mkdtemp(prefix="hybridiot-bench-")
        self.server, self.processes, self.ledger = None, [], None
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.terminate()
        if self.server:
            self.server.stop()
        subprocess.run([f"{ROOT}/test/broker/artemis", "stop", f"{self.work}/artemis"], stdout=subprocess.DEVNULL)
        shutil.rmtree(self.work, ignore_errors=True)

    def start(self):
        work = self.work
        os.chmod(work, 0o755)
        if os.getuid() == 0:
            os.chown(work, pwd.getpwnam("postgres").pw_uid, -1)
        self.program = f"{work}/exchange"
        run("gcc", "-O2", "-o", self.program, f"{ROOT}/test/bench/exchange.c", "-lqpid-proton")
        os.mkdir(f"{work}/artemis")
        said = run(f"{ROOT}/test/broker/artemis", "start", f"{work}/artemis")
        artemis = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
        port, user, password = (artemis[f"ARTEMIS_{key}"] for key in ("PORT", "USER", "PASSWORD"))
        self.processes.append(subprocess.Popen([self.program, "127.0.0.1", port, user, password, "device", "bench"]))
        router = self.start_router()
        self.plain = {"artemis": ["127.0.0.1", port, user, password, "store", "bench"],
                      "router": ["127.0.0.1", router, "anonymous", "", "direct", "bench"]}
        self.server = Server(work)
        self.server.sql("CREATE EXTENSION hybridiot",
            f"CREATE SERVER artemis FOREIGN DATA WRAPPER hybridiot_amqp OPTIONS (host '127.0.0.1', port '{port}')",
            f"CREATE USER MAPPING FOR CURRENT_USER SERVER artemis OPTIONS (user '{user}', password '{password}')",
            f"CREATE SERVER router FOREIGN DATA WRAPPER hybridiot_amqp OPTIONS (host '127.0.0.1', port '{router}', peer 'router')")
        while self.server.sql("SELECT count(*) FROM hybridiot.stat_connection WHERE state = 'up'") != "2":
            time.sleep(0.1)

    def start_router(self, name=""):
        modules = run("bash", "-c", f". {ROOT}/test/lib/common.sh; fleet_modules").strip()
        ledger = f"{self.work}/ledger{name}"
        self.ledger = self.ledger or ledger
        fleet = subprocess.Popen(["node", f"{ROOT}/test/fleet/fleet.js", "router", "--until-eof", "--any-device",
                                  "--ledger", ledger], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                 env=dict(os.environ, NODE_PATH=f"{modules}/node_modules"))
        self.processes.append(fleet)
        return str(json.loads(fleet.stdout.readline())["port"])

    def exchange(self, peer, count, in_flight=1):
        """Microseconds a command takes the plain program."""
        return float(run(self.program, *self.plain[peer], str(count), str(in_flight)))

    def pgbench(self, script, *options):
        """What pgbench prints about a script, which sees the seeds of no other."""
        path = f"{self.work}/script"
        with open(path, "w") as file:
            file.write(script)
        return run(*as_postgres(f"{self.server.bin}/pgbench", "-n", "-h", self.work, "-d", "postgres", "-f", path, *options),
                   stderr=subprocess.STDOUT)

    def worker_pid(self):
        return int(self.server.sql("SELECT pid FROM hybridiot.stat_worker WHERE kind = 'amqp'"))

    def worker_cpu(self):
        """Seconds of the AMQP worker so far."""
        fields = open(f"/proc/{self.worker_pid()}/stat").read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICK
