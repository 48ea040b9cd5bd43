"""es_search() against the same request by a client that keeps its connection and reads the answer."""

import json
import threading
import time

from common import (
    ENGINES,
    Http,
    Memory,
    Session,
    in_turn,
    index_of,
    index_table,
    percentile,
    pgbench,
    psql,
    row,
    say,
    wait,
)

URL = ENGINES["OpenSearch"]
DSL = '{"match":{"tags":"tag7"}}'
SORT = '[{"id":"asc"}]'
PAGE = 10_000


def measure(size):
    index_table("plain", "found")
    wait("found")
    engine = Http(URL)
    engine.ask("POST", f"/{index_of('found')}/_forcemerge?max_num_segments=1")
    path = f"/{index_of('found')}/_search?allow_partial_search_results=false"
    by_score = '[{"_score":{"order":"desc"}},{"id":{"order":"asc","unmapped_type":"long"}}]'
    body = f'{{"size":10,"sort":{by_score},"track_total_hits":true,"query":{DSL}}}'
    request = engine.request("POST", path, body)
    script = f"SELECT rank, id, score, source, total FROM es_search('found', dsl => '{DSL}', size => 10);\n"
    assert len(engine.json("POST", path, body)["hits"]["hits"]) == 10
    assert psql(script.replace("rank, id, score, source, total", "count(*)")) == "10"
    times = 20 * size.probes

    def by_http():
        lags = []
        for _ in range(times):
            begun = time.perf_counter()
            json.loads(engine.send(request)[1])
            lags.append(1000 * (time.perf_counter() - begun))
        return sorted(lags)

    by_sql = lambda: pgbench(script, transactions=times, latencies=True)
    by_http(), by_sql()  # the engine's own caches
    rounds = [
        (by_sql(), by_http()) if turn % 2 else tuple(reversed((by_http(), by_sql()))) for turn in range(size.rounds)
    ]
    rows = []
    for share, goal in ((0.5, "<= 1.15"), (0.99, None)):
        mine, theirs = ([percentile(of[side], share) for of in rounds] for side in (0, 1))
        rows.append(row(f"10 hits, p{int(100 * share)}", "ms", mine, theirs, "HTTP, kept alive", goal))
        say(f"    {rows[-1]['what']:20} {rows[-1]['ours']:8.2f} ms, by HTTP {rows[-1]['peer']:8.2f} ms")

    def http_rate():
        done, end = [], time.perf_counter() + size.seconds

        def work():
            own, count = Http(URL), 0
            while time.perf_counter() < end:
                json.loads(own.send(request)[1])
                count += 1
            done.append(count)

        threads = [threading.Thread(target=work) for _ in range(8)]
        begun = time.perf_counter()
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        return sum(done) / (time.perf_counter() - begun)

    sql_rate = lambda: pgbench(script, clients=8, seconds=size.seconds)
    runs = in_turn(size.rounds, {"HTTP": http_rate, "pg_fanout": sql_rate}, "8 connections, requests/s")
    rows.append(row("8 connections", "requests/s", runs["pg_fanout"], runs["HTTP"], "HTTP, kept alive", ">= 0.85"))

    wanted, peaks = min(100_000, size.rows), []
    page = min(PAGE, wanted)

    def stream_sql():
        session = Session()
        after, count = None, 0
        pid = session.one("SELECT pg_backend_pid()")
        # The page's text reaches the client as the engine's does: nobody turns it into objects twice.
        with Memory(pid) as memory:
            begun = time.perf_counter()
            while count < wanted:
                hits = session.run(
                    "SELECT id, source::text, cursor FROM es_search('found', size => %s, sort => %s, after => %s)",
                    page,
                    SORT,
                    after,
                )
                after, count = hits[-1][2], count + len(hits)
            seconds = time.perf_counter() - begun
        peaks.append(memory.peak)
        session.close()
        return count / seconds

    def stream_http():
        after, count = "", 0
        begun = time.perf_counter()
        while count < wanted:
            text = (
                f'{{"size":{page},"sort":[{{"id":"asc"}}],{after}"track_total_hits":true,"query":{{"match_all":{{}}}}}}'
            )
            hits = json.loads(engine.ask("POST", path, text))["hits"]["hits"]
            after, count = f'"search_after":{json.dumps(hits[-1]["sort"])},', count + len(hits)
        return count / (time.perf_counter() - begun)

    runs = in_turn(size.few, {"HTTP": stream_http, "pg_fanout": stream_sql}, "streamed, rows/s")
    what = f"{wanted:,} hits in pages of {page:,}"
    rows.append(row(what, "rows/s", runs["pg_fanout"], runs["HTTP"], "HTTP, kept alive", ">= 0.8"))
    rows.append(row(f"{what}: peak of the backend", "MB", peaks, by="value", note="private memory (RssAnon)"))
    return rows
