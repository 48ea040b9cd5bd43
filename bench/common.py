"""What the figures of bench/figures share: servers, clients, taking turns, rows of results."""

import json
import math
import os
import re
import signal
import socket
import statistics
import subprocess
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import psycopg2

DATABASE = "fanout_bench"
DATA = "fanout_bench_data"  # the template: the table, and no extension
BATCH = 2000  # documents a bulk request; fanout.batch_documents
CONNECTIONS = 2  # to an engine; the default of the option senders
ENGINES = {"OpenSearch": os.environ["OPENSEARCH_URL"], "Elasticsearch": os.environ["ES_URL"]}
REDIS_AT = urlsplit(os.environ["REDIS_URL"])
REDIS_DATABASE = 15  # one of its own: it is emptied
REDIS = f"{os.environ['REDIS_URL']}/{REDIS_DATABASE}"
RUN = f"bench{int(time.time())}"  # names of indices that no other run has claimed
databases = 0  # how many were made; a new one is a new owner to a target


class Size:
    """How much of everything. `tiny` only tells whether the code runs."""

    def __init__(self, name):
        at = ["tiny", "quick", "full", "long"].index(name)
        self.name = name
        self.long = name == "long"
        self.rows = [5_000, 20_000, 200_000, 200_000][at]
        self.rounds = [2, 3, 5, 5][at]
        self.few = [1, 2, 3, 5][at]  # rounds of what takes long
        self.clients = [(4,), (4,), (1, 4, 16), (1, 4, 16)][at]
        self.seconds = [1, 1, 2, 5][at]  # of a pgbench
        self.probes = [10, 20, 50, 100][at]  # of a round


def say(text):
    print(text, flush=True)


class Failed(Exception):
    """A figure that could not be taken; the others can."""


# --- PostgreSQL -------------------------------------------------------------------------------------------------------


def psql(sql, database=DATABASE):
    """Statements, each in a transaction of its own."""
    command = ["psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", database]
    done = subprocess.run(command, input=sql, capture_output=True, text=True)
    if done.returncode:
        raise Failed(f"{done.stderr.strip()}\n{sql}")
    return done.stdout.strip()


class Session:
    """A connection that commits each statement."""

    def __init__(self, database=DATABASE):
        self.connection = psycopg2.connect(dbname=database)
        self.connection.autocommit = True
        self.cursor = self.connection.cursor()
        self.run("SET client_min_messages = error")

    def run(self, sql, *values):
        self.cursor.execute(sql, values or None)
        return self.cursor.fetchall() if self.cursor.description else self.cursor.rowcount

    def one(self, sql, *values):
        return self.run(sql, *values)[0][0]

    def timed(self, sql, *values):
        begun = time.perf_counter()
        self.run(sql, *values)
        return time.perf_counter() - begun

    def close(self):
        self.connection.close()


def columns_of(table):
    return f"(LIKE {table} INCLUDING ALL) WITH (fillfactor = 80, autovacuum_enabled = off)"


def copy_table(name, rows=None):
    """A table like `plain`, with all of its rows or the first ones."""
    some = "" if rows is None else f"WHERE id <= {rows}"
    psql(f"CREATE TABLE {name} {columns_of('plain')}; INSERT INTO {name} SELECT * FROM plain {some}")
    psql(f"VACUUM ANALYZE {name}")


def index_of(name):
    return f"{RUN}_{databases}_{name}"


def index_table(table, name=None, server="OpenSearch", more=""):
    name = name or table
    target = f"server => '{server}', name => '{name}', index => '{index_of(name)}'"
    psql(f"SELECT fanout.index_table('{table}', {target}{more})")


def cache_table(table, name=None):
    name = name or table
    psql(f"SELECT fanout.cache_table('{table}', server => 'cache', name => '{name}', key => '{name}:${{id}}')")


def wait(name, session=None):
    """Until all that was committed has arrived; seconds."""
    sql = f"SELECT fanout.wait('{name}', timeout => '10 minutes')"
    return session.timed(sql) if session else psql(sql)


def drop_sync(name):
    """And its target; returns when it is gone."""
    psql(f"SELECT fanout.drop_sync('{name}', drop_target => true)")
    until(lambda: psql(f"SELECT count(*) FROM fanout.sync WHERE name = '{name}'") == "0", f"the end of {name}", 120)


def until(true, what, seconds=60, pause=0.02):
    end = time.perf_counter() + seconds
    while not true():
        if time.perf_counter() > end:
            raise Failed(f"waited {seconds} s for {what}")
        time.sleep(pause)


def worker_pid():
    sql = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'pg_fanout worker' AND datname = current_database()"
    until(lambda: psql(sql) != "", "the worker")
    return int(psql(sql))


def fresh_worker():
    """Ends the worker, so that the next one has no memory of what was before."""
    old = worker_pid()
    psql(f"SELECT pg_terminate_backend({old})")
    until(lambda: worker_pid() != old, "another worker")
    time.sleep(0.5)
    return worker_pid()


def data(size):
    """Makes the template with its table."""
    psql(f"DROP DATABASE IF EXISTS {DATA}", "postgres")
    psql(f"CREATE DATABASE {DATA}", "postgres")
    schema = (Path(__file__).parent / "schema.sql").read_text()
    psql(schema.replace(":rows", str(size.rows)), DATA)


def fresh_database():
    global databases
    databases += 1
    drop_database()
    psql(f"CREATE DATABASE {DATABASE} TEMPLATE {DATA}", "postgres")
    servers = "".join(
        f"CREATE SERVER \"{name}\" FOREIGN DATA WRAPPER fanout_elasticsearch OPTIONS (url '{url}');"
        for name, url in ENGINES.items()
    )
    psql(
        f"CREATE EXTENSION pg_fanout; {servers}"
        f"CREATE SERVER cache FOREIGN DATA WRAPPER fanout_redis OPTIONS (url '{REDIS}')"
    )
    Redis().ask("FLUSHDB")


def drop_slots():
    psql(
        f"""SELECT pg_terminate_backend(pid) FROM pg_stat_activity
            WHERE application_name <> 'psql' AND backend_type = 'client backend' AND datname = '{DATABASE}';
             SELECT pg_sleep(0.2);
             SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = '{DATABASE}'""",
        "postgres",
    )


def drop_database():
    """And what its syncs left in the targets."""
    drop_slots()
    psql(f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)", "postgres")
    Redis().ask("FLUSHDB")
    for url in ENGINES.values():
        engine = Http(url)
        for index in engine.json("GET", f"/{RUN}*/_alias"):
            engine.ask("DELETE", f"/{index}")
        engine.ask("POST", "/pg_fanout_control/_refresh")
        for hit in (
            engine.json("POST", "/pg_fanout_control/_search", '{"size":10000,"_source":false}')
            .get("hits", {})
            .get("hits", [])
        ):
            if hit["_id"].startswith(RUN):
                engine.ask("DELETE", f"/pg_fanout_control/_doc/{hit['_id']}")


def pgbench(
    script, clients=1, seconds=None, transactions=None, rate=None, commit="on", protocol="prepared", latencies=False
):
    """TPS, or with `latencies` the milliseconds of each transaction, sorted; with a rate, from when it was due."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "script").write_text(script)
        command = ["pgbench", "-n", "-M", protocol, "-c", str(clients), "-j", str(min(clients, 2)), "-f", "script"]
        command += ["-t", str(transactions)] if transactions else ["-T", str(max(1, math.ceil(seconds)))]
        command += ["-R", str(rate)] if rate else []
        command += ["-l"] if latencies else []
        environment = os.environ | {"PGOPTIONS": f"-c synchronous_commit={commit}"}
        done = subprocess.run([*command, DATABASE], capture_output=True, text=True, env=environment, cwd=folder)
        if done.returncode:
            raise Failed(done.stderr)
        if latencies:
            logs = [line.split() for log in Path(folder).glob("pgbench_log.*") for line in log.read_text().splitlines()]
            return sorted(int(line[2]) / 1000 for line in logs)
        return float(re.search(r"tps = ([0-9.]+)", done.stdout)[1])


class Load:
    """So many updates a second of rows that no probe looks at, for as long as the block runs."""

    def __init__(self, table, rate, first, last):
        self.rate = rate
        self.script = f"\\set id random({first}, {last})\nUPDATE {table} SET changed_at = now() WHERE id = :id;\n"

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory()
        if self.rate:
            script = Path(self.folder.name, "script")
            script.write_text(self.script)
            command = [
                "pgbench",
                "-n",
                "-M",
                "prepared",
                "-c",
                "4",
                "-T",
                "600",
                "-R",
                str(self.rate),
                "-f",
                str(script),
                DATABASE,
            ]
            self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(1)

    def __exit__(self, *_):
        if self.rate:
            self.process.terminate()
            self.process.wait()
        self.folder.cleanup()


# --- targets ----------------------------------------------------------------------------------------------------------


class Http:
    """One kept-alive connection to a search engine: the least that a client in Python does."""

    def __init__(self, url):
        at = urlsplit(url)
        self.host = at.netloc
        self.socket = socket.create_connection((at.hostname, at.port), timeout=120)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.file = self.socket.makefile("rb", 1 << 18)
        self.refusals = 0

    def request(self, method, path, body=b""):
        """The bytes of a request, to be sent many times."""
        body = body.encode() if isinstance(body, str) else body
        kind = "application/x-ndjson" if "_bulk" in path else "application/json"
        head = f"{method} {path} HTTP/1.1\r\nHost: {self.host}\r\nContent-Type: {kind}\r\n"
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body

    def send(self, request):
        self.socket.sendall(request)
        status = int(self.file.readline().split()[1])
        length = 0
        while (line := self.file.readline()) != b"\r\n":
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
            elif name.lower() == b"transfer-encoding":
                length = None
        if length is not None:
            return status, self.file.read(length)
        parts = []
        while size := int(self.file.readline(), 16):
            parts.append(self.file.read(size))
            self.file.readline()
        self.file.readline()
        return status, b"".join(parts)

    def ask(self, method, path, body=b""):
        request = self.request(method, path, body)
        while True:
            status, text = self.send(request)
            if status != 429:
                break
            # Asked for patience, which the worker grants as well.
            self.refusals += 1
            time.sleep(0.1)
        if status >= 400 and status != 404:
            raise Failed(f"{method} {path}: {status} {text[:500]!r}")
        return text

    def json(self, *request):
        return json.loads(self.ask(*request))

    def count(self, index, query=None):
        self.ask("POST", f"/{index}/_refresh")
        body = json.dumps({"query": query}) if query else ""
        return self.json("POST", f"/{index}/_count", body).get("count", 0)

    def stock(self, index, row):
        """Seen before a refresh, as GET of a Redis key is."""
        return self.json("GET", f"/{index}/_doc/{row}?_source_includes=stock").get("_source", {}).get("stock")


class Redis:
    """As much of a client as SET, GET and FLUSHDB take."""

    def __init__(self):
        self.socket = socket.create_connection((REDIS_AT.hostname, REDIS_AT.port), timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.file = self.socket.makefile("rb")
        self.ask("SELECT", str(REDIS_DATABASE))

    def ask(self, *words):
        parts = [word.encode() for word in words]
        self.socket.sendall(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts))
        line = self.file.readline()
        if line[:1] != b"$":
            return line
        length = int(line[1:])
        return None if length < 0 else self.file.read(length + 2)

    def stock(self, name, row):
        value = self.ask("GET", f"{name}:{row}")
        return json.loads(value)["stock"] if value else None


def bulk_bodies(query="SELECT id, row_to_json(plain) FROM plain ORDER BY id"):
    """What the worker would send, serialised beforehand."""
    version = time.time_ns() // 1000
    # As text, which is what the worker sends too.
    lines = [line.split("|", 1) for line in psql(query).split("\n")]
    items = [
        f'{{"index":{{"_id":"{key}","version":{version + at},"version_type":"external_gte"}}}}\n{document}\n'
        for at, (key, document) in enumerate(lines)
    ]
    return [
        (min(BATCH, len(items) - at), "".join(items[at : at + BATCH]).encode()) for at in range(0, len(items), BATCH)
    ]


def send_all(url, index, bodies):
    """A plain client: CONNECTIONS connections, each with the next body as soon as the last was answered. Seconds."""
    left, lock = list(reversed(bodies)), threading.Lock()
    # What the worker asks for, so that the engine has as much to answer.
    keep = "items.*._id,items.*.status,items.*._seq_no,items.*.error"

    def work():
        engine = Http(url)
        while True:
            with lock:
                if not left:
                    return
                count, body = left.pop()
            reply = engine.ask("POST", f"/{index}/_bulk?filter_path={keep}", body)
            if b'"error"' in reply or reply.count(b'"_id"') != count:
                raise Failed(f"a bulk request failed: {reply[:500]!r}")

    begun = time.perf_counter()
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        for done in [pool.submit(work) for _ in range(CONNECTIONS)]:
            done.result()
    return time.perf_counter() - begun


# --- processes --------------------------------------------------------------------------------------------------------


def private_memory(pid):
    """MB that no other process shares."""
    try:
        return int(re.search(r"RssAnon:\s*(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) / 1024
    except (OSError, TypeError):
        return 0.0


def cpu_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wake_ups(pid):
    """How often its threads have gone to sleep."""
    tasks = Path(f"/proc/{pid}/task").glob("*/status")
    return sum(int(re.search(r"\nvoluntary_ctxt_switches:\s*(\d+)", task.read_text())[1]) for task in tasks)


class Process:
    """A program that runs beside; its words go to a file that is shown when something fails."""

    running = []

    def __init__(self, command, environment=None, folder=None):
        self.log = tempfile.NamedTemporaryFile("w+")
        self.process = subprocess.Popen(
            command, stdout=self.log, stderr=self.log, env=os.environ | (environment or {}), cwd=folder
        )
        self.pid = self.process.pid
        Process.running.append(self)

    def check(self):
        if self.process.poll() is not None:
            raise Failed(f"it ended with {self.process.returncode}: {Path(self.log.name).read_text()[-3000:]}")

    def still(self, stopped):
        """It takes no time while the other one is measured."""
        self.process.send_signal(signal.SIGSTOP if stopped else signal.SIGCONT)

    def stop(self):
        self.process.kill()
        self.process.wait()
        Process.running.remove(self)


class Memory:
    """Watches the private memory of a process, or of several, for as long as the block runs."""

    def __init__(self, *pids):
        self.pids, self.peak, self.series = pids, 0.0, []

    def __enter__(self):
        self.going, begun = True, time.perf_counter()

        def watch():
            while self.going:
                now = sum(private_memory(pid) for pid in self.pids)
                self.peak = max(self.peak, now)
                self.series.append((time.perf_counter() - begun, now))
                time.sleep(0.01)

        self.thread = threading.Thread(target=watch)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.going = False
        self.thread.join()


# --- results ----------------------------------------------------------------------------------------------------------


def in_turn(rounds, contenders, told=None):
    """Runs each contender once a round, there and back, so that whatever drifts meets all alike. Values by name."""
    runs = {name: [] for name in contenders}
    for turn in range(rounds):
        for name in list(contenders)[:: 1 if turn % 2 == 0 else -1]:
            runs[name].append(contenders[name]())
            if told:
                say(f"    {told:34} {name:20} {runs[name][-1]:12.2f}")
    return runs


def percentile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(share * len(values)))]


def slope(points):
    """Of the line through the points, both axes logarithmic."""
    x, y = [math.log10(x) for x, _ in points], [math.log10(y) for _, y in points]
    return statistics.linear_regression(x, y).slope


def row(what, unit, ours, peer=None, against="", goal=None, by="ratio", pooled=None, note=""):
    """One line of a table. `ours` and `peer` are the values of the rounds; they are compared within a round (`by` ratio
    or difference), or ours stands for itself (`by` value). `goal` is such as "<= 1.15"; `pooled` is ours and the
    peer's over all rounds, where a round is too short."""
    peer = list(peer or [])
    each = {
        "ratio": lambda: [mine / theirs for mine, theirs in zip(ours, peer)],
        "difference": lambda: [mine - theirs for mine, theirs in zip(ours, peer)],
        "value": lambda: list(ours),
    }[by]()
    figure = pooled[0] / pooled[1] if pooled else statistics.median(each)
    shown = pooled or (statistics.median(ours), statistics.median(peer) if peer else None)
    met = None
    if goal:
        relation, bound = goal.split()
        met = figure >= float(bound) if relation == ">=" else figure <= float(bound)
    short = lambda value: float(f"{value:.4g}")
    return {
        "what": what,
        "unit": unit,
        "by": by,
        "figure": short(figure),
        "low": short(min(each)),
        "high": short(max(each)),
        "goal": goal,
        "met": met,
        "ours": short(shown[0]),
        "against": against,
        "peer": None if shown[1] is None else short(shown[1]),
        "ours_runs": [short(value) for value in ours],
        "peer_runs": [short(value) for value in peer],
        "note": note,
    }
