"""From the UPDATE until the target has it, against one client that commits, writes to the target and reads it."""

import json
import time

from common import (
    ENGINES,
    Failed,
    Http,
    Load,
    Redis,
    Session,
    cache_table,
    copy_table,
    drop_sync,
    index_of,
    index_table,
    percentile,
    row,
    say,
    wait,
)

BATCHES = {"Redis": "lag_redis", "OpenSearch": "lag_os", "Elasticsearch": "lag_es"}
PAUSE = 0.01


def measure(size):
    copy_table("bare")
    session = Session()
    cache_table("plain", "lag_redis")
    for server in ENGINES:
        index_table("plain", BATCHES[server], server)
    for name in BATCHES.values():
        wait(name)
    document = session.one("SELECT row_to_json(plain) FROM plain WHERE id = 1")
    number = 0

    def value():
        nonlocal number
        number += 1
        return 1_000_000 + number

    def ours(target, name, id):
        wanted, begun = value(), time.perf_counter()
        session.run("UPDATE plain SET stock = %s WHERE id = %s", wanted, id)
        while target.stock(name, id) != wanted:
            if time.perf_counter() - begun > 30:
                raise Failed(f"row {id} did not arrive in {name} within 30 s")
            time.sleep(0.0002)
        return 1000 * (time.perf_counter() - begun)

    def bare(target, id, refresh=""):
        wanted, begun = value(), time.perf_counter()
        session.run("UPDATE bare SET stock = %s WHERE id = %s", wanted, id)
        text = json.dumps(document | {"id": id, "stock": wanted})
        if isinstance(target, Redis):
            target.ask("SET", f"bare:{id}", text)
        else:
            target.ask("POST", f"/{index_of('bare')}/_bulk{refresh}", f'{{"index":{{"_id":"{id}"}}}}\n{text}\n')
        if not refresh:
            assert target.stock("bare" if isinstance(target, Redis) else index_of("bare"), id) == wanted
        return 1000 * (time.perf_counter() - begun)

    def searchable(name, id):
        begun = time.perf_counter()
        session.run("UPDATE plain SET stock = %s WHERE id = %s", value(), id)
        session.run("SELECT fanout.wait(%s)", name)
        return 1000 * (time.perf_counter() - begun)

    def compare(what, mine, theirs, p99=True):
        rounds = []
        for turn in range(size.rounds):
            of = {mine: [], theirs: []}
            for probe in range(size.probes):
                # One by one in turn, so that both meet the same moments.
                for run in (mine, theirs) if probe % 2 else (theirs, mine):
                    of[run].append(run(1 + probe))
                    time.sleep(PAUSE)
            rounds.append(of)
        for share, goal in ((0.5, "<= 3"), (0.99, "<= 5"))[: 2 if p99 else 1]:
            each = [[percentile(of[run], share) for of in rounds] for run in (mine, theirs)]
            pooled = [percentile([value for of in rounds for value in of[run]], share) for run in (mine, theirs)]
            rows.append(
                row(
                    f"{what}, p{int(100 * share)}",
                    "ms",
                    *each,
                    "commit + write + read",
                    goal,
                    pooled=pooled if share > 0.9 else None,
                )
            )
            say(f"    {rows[-1]['what']:44} {rows[-1]['ours']:8.2f} ms, bare {rows[-1]['peer']:8.2f} ms")

    rows = []
    for url in ENGINES.values():
        Http(url).ask("PUT", f"/{index_of('bare')}")
    for rate in (0, 200, 2000):
        with Load("plain", rate, 1001, size.rows):
            under = f"at {rate:,} updates/s" if rate else "idle"
            for server, name in BATCHES.items():
                target = Redis() if server == "Redis" else Http(ENGINES[server])
                kept = name if server == "Redis" else index_of(name)
                compare(f"{server}, {under}", lambda id: ours(target, kept, id), lambda id: bare(target, id))
                if not rate and server != "Redis":
                    compare(
                        f"{server}, {under}, found by a search",
                        lambda id: searchable(name, id),
                        lambda id: bare(target, id, "?refresh=true"),
                    )
        for name in BATCHES.values():
            wait(name)
    session.close()
    for name in BATCHES.values():
        drop_sync(name)
    return rows
