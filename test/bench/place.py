"""Where benchmarks run: a broker and a server of their own, gone afterwards.

with Place("shared_buffers = 256MB") as place: place.topic("create", "t"); place.sql("SELECT 1"); place.cpu()
Run as root or as a user; PostgreSQL runs as postgres if root.
"""
import os
import pathlib
import pwd
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
TICK = os.sysconf("SC_CLK_TCK")
END = ":end of the answer:"
COLUMNS = "device text, ts timestamptz, temp float8, n bigint, ok bool"


def as_postgres(*command):
    return (["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []) + list(command)


def run(*command, **options):
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, **options).stdout


def spread(values, form="%.2f"):
    """Minimum / median / maximum."""
    values = sorted(values)
    return " / ".join(form % v for v in (values[0], statistics.median(values), values[-1]))


def describe(title):
    print(f"{title}; {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}", flush=True)


class Place:
    def __init__(self, *settings):
        self.settings = settings
        self.session = None
        self.data = None

    def __enter__(self):
        # A time limit ends us by this signal: what was started goes, too.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        self.work = tempfile.mkdtemp(prefix="hybridiot-bench-")
        try:
            os.chmod(self.work, 0o755)
            if os.getuid() == 0:
                os.chown(self.work, pwd.getpwnam("postgres").pw_uid, -1)
            self._start_kafka()
            self._start_server()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        if self.session:
            self.session.stdin.close()
            self.session.wait()
        if self.data:
            subprocess.run(as_postgres(f"{self.bin}/pg_ctl", "-D", self.data, "-m", "fast", "-w", "stop"),
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        subprocess.run([f"{ROOT}/test/broker/kafka", "stop", f"{self.work}/kafka"], stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL)
        shutil.rmtree(self.work, ignore_errors=True)

    def _start_kafka(self):
        os.mkdir(f"{self.work}/kafka")
        said = run(f"{ROOT}/test/broker/kafka", "start", f"{self.work}/kafka", stderr=subprocess.DEVNULL)
        self.kafka = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
        self.bootstrap = self.kafka["KAFKA_BOOTSTRAP"]

    def _start_server(self):
        if "HYBRIDIOT_TREE" in os.environ:      # test/run has built it
            config = os.environ["PG_CONFIG"]
        else:
            run(*as_postgres(f"{ROOT}/test/lib/build", str(ROOT), f"{self.work}/build"), stderr=subprocess.STDOUT)
            config = [line for line in open(f"{self.work}/build/env") if "PG_CONFIG=" in line][0].split("=", 1)[1].strip()
        self.bin = os.path.dirname(config)
        self.data = f"{self.work}/data"
        run(*as_postgres(f"{self.bin}/initdb", "-D", self.data, "-A", "trust", "--no-sync"))
        with open(f"{self.data}/postgresql.conf", "a") as conf:
            conf.write("\n".join((f"listen_addresses = ''\nunix_socket_directories = '{self.work}'",
                                  "shared_preload_libraries = 'hybridiot'\nmax_worker_processes = 40",
                                  "shared_buffers = 256MB\nmax_wal_size = 8GB\ncheckpoint_timeout = 1h\nautovacuum = off",
                                  *self.settings)) + "\n")
        run(*as_postgres(f"{self.bin}/pg_ctl", "-D", self.data, "-l", f"{self.work}/log", "-w", "start"))
        self.postmaster = int(open(f"{self.data}/postmaster.pid").readline())
        self.connect()

    def _psql(self, *arguments):
        return as_postgres(f"{self.bin}/psql", "-XqAt", "-v", "ON_ERROR_STOP=1", "-h", self.work, "-d", "postgres", *arguments)

    def connect(self):
        """The session of sql(), anew after a crash."""
        if self.session:
            self.session.kill()
            self.session.wait()
        self.session = subprocess.Popen(self._psql(), text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.DEVNULL)

    def ask(self, query):
        """In a session of its own; None if the server is not there."""
        answer = subprocess.run(self._psql("-c", query), text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        return answer.stdout.strip() if answer.returncode == 0 else None

    def topic(self, *arguments):
        return run(f"{ROOT}/test/broker/topic", *map(str, arguments), env=dict(os.environ, **self.kafka))

    def sql(self, text):
        """In one session, so that asking costs next to nothing."""
        self.session.stdin.write(f"{text};\n\\echo {END}\n")
        self.session.stdin.flush()
        lines = []
        while (line := self.session.stdout.readline()) != END + "\n":
            if not line:
                raise RuntimeError(f"failed: {text}\n" + "".join(open(f"{self.work}/log").readlines()[-5:]))
            lines.append(line)
        return "".join(lines).strip()

    def make_stream(self, topics):
        self.sql("SET client_min_messages = warning; CREATE EXTENSION IF NOT EXISTS hybridiot;"
                 " CREATE SERVER plant FOREIGN DATA WRAPPER hybridiot_kafka"
                 f" OPTIONS (bootstrap_servers '{self.bootstrap}');"
                 f" CREATE FOREIGN TABLE telemetry ({COLUMNS}) SERVER plant OPTIONS (topic '{topics}', event_time 'ts')")

    def server_processes(self):
        children = open(f"/proc/{self.postmaster}/task/{self.postmaster}/children").read().split()
        return [self.postmaster] + [int(pid) for pid in children]

    def cpu(self):
        """CPU seconds so far of the postmaster, its children with all their threads, and those it has buried."""
        total = 0
        for pid in self.server_processes():
            try:
                stat = open(f"/proc/{pid}/stat").read()
            except OSError:
                continue
            words = stat[stat.rindex(")") + 2:].split()
            total += sum(int(words[f - 2]) for f in ((13, 14, 15, 16) if pid == self.postmaster else (13, 14)))
        return total / TICK

    def ingest(self, statement, records, table="target"):
        """Runs a pipeline over all that its topics hold; CPU and wall seconds of emptying it into the table."""
        return self.measured(lambda: self._run_pipeline(statement, records), records, table)

    def _run_pipeline(self, statement, records):
        self.sql(f"SELECT hybridiot.create_pipeline('bench', $${statement}$$)")
        while self.sql("SELECT coalesce(sum(next_offset), 0) FROM hybridiot.position WHERE pipeline = 'bench'") != str(records):
            time.sleep(0.05)
        self.sql("SELECT hybridiot.drop_pipeline('bench')")

    def measured(self, action, records, table="target"):
        """What an action costs that fills an empty table, written to disk included."""
        self.sql(f"TRUNCATE {table}; CHECKPOINT")
        cpu, wall = self.cpu(), time.monotonic()
        action()
        wall = time.monotonic() - wall
        self.sql("CHECKPOINT")
        cpu = self.cpu() - cpu
        count = int(self.sql(f"SELECT count(*) FROM {table}"))
        assert count == records, f"{count} rows instead of {records}"
        return max(cpu, 1 / TICK), wall
