#!/usr/bin/env python3
"""The measurements of bench/run. Only the standard library; README.md says what each figure is."""

import datetime
import http.client
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

HERE = Path(__file__).parent
DATABASE = "fanout_bench"
ROWS = 200_000
BATCH = 2000  # documents a bulk request; fanout.batch_documents
CONNECTIONS = 2  # to an engine; the default of the option senders
ENGINES = {"OpenSearch": os.environ["OPENSEARCH_URL"], "Elasticsearch": os.environ["ES_URL"]}
REDIS = os.environ["REDIS_URL"] + "/15"  # a database of its own: it is emptied
RUN = f"bench{int(time.time())}"  # names of indices that no other run has claimed


def say(text):
    print(text, flush=True)


def psql(sql, *arguments, database=DATABASE):
    command = ["psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", database, *arguments]
    done = subprocess.run(command, input=sql, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"bench: {done.stderr.strip()}\n{sql}")
    return done.stdout.strip()


class Engine:
    """One connection to a search engine."""

    def __init__(self, url):
        parts = urlsplit(url)
        self.connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=120)
        self.refusals = 0

    def ask(self, method, path, body=None):
        kind = "application/x-ndjson" if path.split("?")[0].endswith("_bulk") else "application/json"
        while True:
            self.connection.request(method, path, body, {"Content-Type": kind} if body else {})
            reply = self.connection.getresponse()
            text = reply.read()
            if reply.status != 429:
                break
            # Asked for patience, which the worker grants as well.
            self.refusals += 1
            time.sleep(0.1)
        if reply.status >= 400 and reply.status != 404:
            raise RuntimeError(f"{method} {path}: {reply.status} {text[:500]!r}")
        return text

    def stock(self, row):
        reply = json.loads(self.ask("GET", f"/{RUN}_lag/_doc/{row}?_source_includes=stock"))
        return reply.get("_source", {}).get("stock")


class Redis:
    """As much of a client as GET and FLUSHDB take."""

    def __init__(self):
        parts = urlsplit(REDIS)
        self.socket = socket.create_connection((parts.hostname, parts.port), timeout=30)
        self.file = self.socket.makefile("rb")
        self.ask("SELECT 15")

    def ask(self, command):
        self.socket.sendall(command.encode() + b"\r\n")
        line = self.file.readline()
        if line[:1] != b"$":
            return line
        length = int(line[1:])
        return None if length < 0 else self.file.read(length + 2)

    def stock(self, row):
        value = self.ask(f"GET lag:{row}")
        return json.loads(value)["stock"] if value else None


# --- writes -----------------------------------------------------------------------------------------------------------

VARIANTS = {
    "plain": "no sync",
    "paused": "capture only (paused)",
    "redis": "sync to Redis",
    "opensearch": "sync to OpenSearch",
}
ROUNDS, SECONDS, CLIENTS = 5, 4, 4


def writes():
    psql(f"""SELECT fanout.cache_table('paused', server => 'cache', key => 'paused:${{id}}');
             SELECT fanout.cache_table('redis', server => 'cache', key => 'redis:${{id}}');
             SELECT fanout.index_table('opensearch', server => 'OpenSearch', index => '{RUN}_writes')""")
    syncs = [table for table in VARIANTS if table != "plain"]
    for sync in syncs:
        psql(f"SELECT fanout.wait('{sync}', timeout => '3 minutes')")
        psql(f"SELECT fanout.pause('{sync}')")
    psql("VACUUM ANALYZE")
    result = []
    with tempfile.TemporaryDirectory() as folder:
        for table in VARIANTS:
            Path(folder, table).write_text(
                f"\\set id random(1, {ROWS})\n\\set stock random(1, 1000)\n"
                f"UPDATE {table} SET stock = :stock, changed_at = now() WHERE id = :id;\n"
            )
        for commit in ("on", "off"):
            runs = {table: [] for table in VARIANTS}
            catch_up = {table: [] for table in ("redis", "opensearch")}
            for turn in range(ROUNDS):
                # There and back, so that whatever drifts meets all alike.
                for table in list(VARIANTS)[:: 1 if turn % 2 == 0 else -1]:
                    # Only the sync that is measured is at work; a paused one is captured, and the worker keeps its backlog.
                    if table in catch_up:
                        psql(f"SELECT fanout.resume('{table}')")
                        psql(f"SELECT fanout.wait('{table}')")
                    psql("CHECKPOINT")
                    time.sleep(0.5)
                    command = ["pgbench", "-n", "-M", "prepared", "-c", str(CLIENTS), "-j", "2", "-T", str(SECONDS)]
                    environment = os.environ | {"PGOPTIONS": f"-c synchronous_commit={commit}"}
                    done = subprocess.run(
                        [*command, "-f", str(Path(folder, table)), DATABASE],
                        capture_output=True, text=True, env=environment, check=True,
                    )
                    runs[table].append(float(re.search(r"tps = ([0-9.]+)", done.stdout)[1]))
                    say(f"  synchronous_commit={commit:4}{table:12}{runs[table][-1]:9.0f} TPS")
                    if table == "paused":
                        psql("SELECT fanout.resume('paused')")
                    begun = time.perf_counter()
                    if table != "plain":
                        psql(f"SELECT fanout.wait('{table}', timeout => '3 minutes')")
                        psql(f"SELECT fanout.pause('{table}')")
                    if table in catch_up:
                        catch_up[table].append(time.perf_counter() - begun)
            for table, words in VARIANTS.items():
                # Each round by itself: what else the machine does changes from minute to minute.
                ratios = [run / base for run, base in zip(runs[table], runs["plain"])]
                late = statistics.median(catch_up[table]) if table in catch_up else None
                result.append({
                    "synchronous_commit": commit, "variant": words, "tps": round(statistics.median(runs[table])),
                    "ratio": round(statistics.median(ratios), 2), "ratios": [round(ratio, 2) for ratio in ratios],
                    "runs": [round(run) for run in runs[table]], "catch_up_s": late and round(late, 2),
                })
    for sync in syncs:
        psql(f"SELECT fanout.drop_sync('{sync}')")
    return result


def writes_table(rows):
    lines = [
        "| synchronous_commit | table | TPS, median | ratio, median (range) | in step after |", "| --- | --- | --- | --- | --- |"
    ]
    for row in rows:
        late = "" if row["catch_up_s"] is None else f"{row['catch_up_s']:.2f} s"
        ratio = f"{row['ratio']:.2f} ({min(row['ratios']):.2f}–{max(row['ratios']):.2f})" if row["ratio"] != 1 else "1"
        lines.append(f"| {row['synchronous_commit']} | {row['variant']} | {row['tps']:,} | {ratio} | {late} |")
    return lines


# --- backfill ---------------------------------------------------------------------------------------------------------

BACKFILLS = 3


def bulk_bodies():
    """What the worker would send, serialised beforehand. Also the mean size of a document."""
    version = time.time_ns() // 1000
    documents = psql("SELECT id || ' ' || row_to_json(plain) FROM plain ORDER BY id")
    lines = [line.split(" ", 1) for line in documents.split("\n")]
    assert len(lines) == ROWS
    items = [
        f'{{"index":{{"_id":"{key}","version":{version + at},"version_type":"external_gte"}}}}\n{document}\n'
        for at, (key, document) in enumerate(lines)
    ]
    bodies = ["".join(items[at : at + BATCH]).encode() for at in range(0, ROWS, BATCH)]
    return bodies, sum(len(document.encode()) for _, document in lines) / ROWS


def send_all(url, index, bodies):
    """A plain client: CONNECTIONS connections, each with the next body as soon as the last was answered. Gives how many
    requests were refused for a while (status 429)."""
    left, lock = list(reversed(bodies)), threading.Lock()
    # What the worker asks for, so that the engine has as much to answer.
    keep = "items.*._id,items.*.status,items.*._seq_no,items.*.error"

    def work():
        engine = Engine(url)
        while True:
            with lock:
                if not left:
                    return engine.refusals
                body = left.pop()
            reply = engine.ask("POST", f"/{index}/_bulk?filter_path={keep}", body)
            if b'"error"' in reply or reply.count(b'"_id"') != BATCH:
                raise RuntimeError(f"a bulk request failed: {reply[:500]!r}")

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        return sum(done.result() for done in [pool.submit(work) for _ in range(CONNECTIONS)])


def backfill():
    bodies, size = bulk_bodies()
    mapping = psql("SELECT fanout.mapping('plain')")
    result = []
    for name, url in ENGINES.items():
        engine = Engine(url)
        rates = {"plain": [], "fanout": []}
        refusals = {"plain": 0, "fanout": 0}
        for turn in range(BACKFILLS):
            for kind in ("plain", "fanout") if turn % 2 == 0 else ("fanout", "plain"):
                index = f"{RUN}_{kind}_{turn}"
                begun = time.perf_counter()
                if kind == "plain":
                    engine.ask("PUT", f"/{index}", mapping)
                    refusals[kind] += send_all(url, index, bodies)
                    engine.ask("POST", f"/{index}/_refresh")
                else:
                    psql(f"SELECT fanout.index_table('plain', server => '{name}', name => 'backfill', index => '{index}')")
                    psql("SELECT fanout.wait('backfill', timeout => '5 minutes')")
                    refusals[kind] += int(psql("SELECT retried FROM fanout.status WHERE sync = 'backfill'"))
                rates[kind].append(ROWS / (time.perf_counter() - begun))
                found = json.loads(engine.ask("GET", f"/{index}/_count"))["count"]
                if found != ROWS:
                    sys.exit(f"bench: {found} documents instead of {ROWS} in {index}")
                if kind == "fanout":
                    psql("SELECT fanout.drop_sync('backfill')")
                delete_index(engine, index)
                say(f"  {name:14}{kind:8}{rates[kind][-1]:9.0f} documents/s")
        plain, ours = statistics.median(rates["plain"]), statistics.median(rates["fanout"])
        result.append({
            "engine": name, "document_bytes": round(size), "fanout_per_s": round(ours), "plain_per_s": round(plain),
            "ratio": round(ours / plain, 3), "refused_requests_plain": refusals["plain"],
            "retried_documents_fanout": refusals["fanout"], "runs": {kind: [round(rate) for rate in of] for kind, of in rates.items()},
        })
    return result


def backfill_table(rows):
    lines = ["| engine | backfill, documents/s | plain client, documents/s | ratio | runs of both |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        runs = "; ".join(", ".join(f"{run:,}" for run in row["runs"][kind]) for kind in ("fanout", "plain"))
        lines.append(
            f"| {row['engine']} | {row['fanout_per_s']:,} | {row['plain_per_s']:,} | {row['ratio']:.2f} | {runs} |"
        )
    return lines


# --- lag --------------------------------------------------------------------------------------------------------------

PROBES, WRITES_A_SECOND = 300, 200


def probe(target, pause):
    """Milliseconds from the moment that the client knows of its commit until `target` has the new value; sorted."""
    writer = subprocess.Popen(
        ["psql", "-X", "-d", DATABASE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    lags = []
    for number in range(PROBES):
        row = 1 + number % 1000
        wanted = 1_000_000 + time.time_ns() // 1000 % 1_000_000_000
        writer.stdin.write(f"UPDATE plain SET stock = {wanted} WHERE id = {row};\n")
        if writer.stdout.readline() != "UPDATE 1\n":
            sys.exit("bench: a probe changed nothing")
        committed = time.perf_counter()
        while target.stock(row) != wanted:
            if time.perf_counter() - committed > 30:
                sys.exit(f"bench: row {row} did not arrive within 30 s")
            time.sleep(0.0002)
        lags.append(1000 * (time.perf_counter() - committed))
        time.sleep(pause)
    writer.stdin.close()
    writer.wait()
    return sorted(lags)


def lag():
    psql(f"""SELECT fanout.cache_table('plain', server => 'cache', name => 'lag_cache', key => 'lag:${{id}}');
             SELECT fanout.index_table('plain', server => 'OpenSearch', name => 'lag_os', index => '{RUN}_lag');
             SELECT fanout.index_table('plain', server => 'Elasticsearch', name => 'lag_es', index => '{RUN}_lag')""")
    for sync in ("lag_cache", "lag_os", "lag_es"):
        psql(f"SELECT fanout.wait('{sync}', timeout => '3 minutes')")
    result = []
    with tempfile.NamedTemporaryFile("w") as script:
        script.write(f"\\set id random(1001, {ROWS})\nUPDATE plain SET changed_at = now() WHERE id = :id;\n")
        script.flush()
        for load in ("idle", "busy"):
            background = None
            if load == "busy":
                background = subprocess.Popen(
                    ["pgbench", "-n", "-M", "prepared", "-c", "2", "-T", "300", "-R", str(WRITES_A_SECOND),
                     "-f", script.name, DATABASE], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                time.sleep(2)
            for name in ("Redis", *ENGINES):
                target = Redis() if name == "Redis" else Engine(ENGINES[name])
                lags = probe(target, 0.01)
                at = lambda share: round(lags[min(len(lags) - 1, int(share * len(lags)))], 2)
                result.append({"target": name, "load": load, "p50_ms": at(0.5), "p99_ms": at(0.99), "max_ms": at(1)})
                say(f"  {load}  {name:14} p50 {at(0.5):7.2f} ms   p99 {at(0.99):7.2f} ms")
            if background:
                background.terminate()
                background.wait()
    for sync in ("lag_cache", "lag_os", "lag_es"):
        psql(f"SELECT fanout.drop_sync('{sync}')")
    return result


def lag_table(rows):
    lines = ["| target | p50, idle | p99, idle | p50, 200 updates/s | p99, 200 updates/s |", "| --- | --- | --- | --- | --- |"]
    for name in ("Redis", *ENGINES):
        idle, busy = ([row for row in rows if (row["target"], row["load"]) == (name, load)][0] for load in ("idle", "busy"))
        cells = [f"{row[figure]:.1f} ms" for row in (idle, busy) for figure in ("p50_ms", "p99_ms")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


# --- around them ------------------------------------------------------------------------------------------------------


def delete_index(engine, index):
    concrete = json.loads(engine.ask("GET", f"/_alias/{index}"))
    for name in [index] if "error" in concrete else concrete:
        engine.ask("DELETE", f"/{name}")
    engine.ask("DELETE", f"/pg_fanout_control/_doc/{index}")


def set_up():
    psql(f"DROP DATABASE IF EXISTS {DATABASE}", database="postgres")
    psql(f"CREATE DATABASE {DATABASE}", database="postgres")
    psql((HERE / "schema.sql").read_text())
    servers = "".join(
        f'CREATE SERVER "{name}" FOREIGN DATA WRAPPER fanout_elasticsearch OPTIONS (url \'{url}\');'
        for name, url in ENGINES.items()
    )
    psql(f"CREATE EXTENSION pg_fanout; {servers}"
         f"CREATE SERVER cache FOREIGN DATA WRAPPER fanout_redis OPTIONS (url '{REDIS}')")
    Redis().ask("FLUSHDB")


def tear_down():
    psql(f"DROP DATABASE IF EXISTS {DATABASE}", database="postgres")
    Redis().ask("FLUSHDB")
    for url in ENGINES.values():
        engine = Engine(url)
        for index in (f"{RUN}_writes", f"{RUN}_lag"):
            delete_index(engine, index)


def surroundings():
    def first_line(*command):
        done = subprocess.run(command, capture_output=True, text=True, cwd=HERE)
        return done.stdout.strip().split("\n")[0]

    def version(url):
        nodes = json.loads(Engine(url).ask("GET", "/_nodes/_local?filter_path=nodes.*.version"))["nodes"]
        return next(iter(nodes.values()))["version"]

    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = re.search(r"MemTotal: *(\d+) kB", Path("/proc/meminfo").read_text())
    return {
        "date": datetime.date.today().isoformat(),
        "commit": first_line("git", "rev-parse", "--short", "HEAD"),
        "build": "release",
        "cores": os.cpu_count(),
        "processor": model[1] if model else "unknown",
        "memory_gb": round(int(memory[1]) / 1024**2) if memory else None,
        "load_before": round(os.getloadavg()[0], 1),
        "PostgreSQL": psql("SHOW server_version", database="postgres").split()[0],
        **{name: version(url) for name, url in ENGINES.items()},
        "Redis": first_line("redis-server", "--version").split("v=")[1].split()[0],
    }


PARTS = {"writes": (writes, writes_table), "backfill": (backfill, backfill_table), "lag": (lag, lag_table)}


def record(part, where, rows, table):
    """Puts a part's figures into results/latest.json and README.md; other parts keep theirs."""
    path = HERE / "results" / "latest.json"
    path.parent.mkdir(exist_ok=True)
    results = json.loads(path.read_text()) if path.exists() else {}
    results[part] = {"where": where, "rows": rows}
    path.write_text(json.dumps(results, indent=1) + "\n")
    machine = (
        f"{where['date']}, commit {where['commit']}, {where['build']} build; {where['cores']} cores ({where['processor']}), "
        f"{where['memory_gb']} GB, load average {where['load_before']}\nbefore and {where['load_after']} after; "
        f"PostgreSQL {where['PostgreSQL']}, OpenSearch {where['OpenSearch']}, Elasticsearch {where['Elasticsearch']}, "
        f"Redis {where['Redis']}. Took {where['seconds']} s."
    )
    block = "\n".join([f"<!-- {part} -->", "", *table, "", machine, "", f"<!-- end of {part} -->"])
    readme = (HERE / "README.md").read_text()
    pattern = f"<!-- {part} -->.*?<!-- end of {part} -->"
    (HERE / "README.md").write_text(re.sub(pattern, lambda _: block, readme, flags=re.DOTALL))


def main():
    chosen = sys.argv[1:] or list(PARTS)
    if not set(chosen) <= set(PARTS):
        sys.exit(f"bench: the parts are: {', '.join(PARTS)}")
    say(f"{ROWS:,} rows are made")
    set_up()
    try:
        for part in chosen:
            say(f"\n{part}")
            measure, table = PARTS[part]
            where, begun = surroundings(), time.perf_counter()
            rows = measure()
            where |= {"seconds": round(time.perf_counter() - begun), "load_after": round(os.getloadavg()[0], 1)}
            say("\n" + "\n".join(table(rows)))
            record(part, where, rows, table(rows))
    finally:
        tear_down()
    say("\nbench/README.md and bench/results/latest.json have these figures now")


main()
