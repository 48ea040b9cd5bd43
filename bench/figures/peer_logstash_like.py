"""Polling for rows whose updated_at is later than the last one seen: how fresh, and what it misses."""

import time

from common import (
    DATABASE,
    Http,
    Session,
    copy_table,
    drop_sync,
    index_of,
    index_table,
    percentile,
    psql,
    row,
    say,
    until,
    wait,
)
from rivals import INDEX, URL, python


def measure(size):
    count = max(2000, size.rows // 10)
    for table in ("ours", "theirs"):
        copy_table(table, count)
        psql(f"CREATE INDEX ON {table} (changed_at)")
    engine, session, late = Http(URL), Session(), Session()
    engine.ask("PUT", f"/{INDEX}", psql("SELECT fanout.mapping('plain')"))
    index_table("ours", "ours")
    wait("ours")
    process = python("polling_reader.py", DATABASE, URL, INDEX, "1")
    until(lambda: process.check() or engine.count(INDEX) == count, "the reader to fill its index", 120, 0.2)
    rows, number = [], 0

    def probe(index, table, id):
        nonlocal number
        number += 1
        wanted, begun = 2_000_000 + number, time.perf_counter()
        session.run(f"UPDATE {table} SET stock = %s, changed_at = now() WHERE id = %s", wanted, id)
        until(lambda: engine.stock(index, id) == wanted, f"row {id}", 30, 0.001)
        return 1000 * (time.perf_counter() - begun)

    probes = max(5, size.probes // 4)
    lags = {"ours": [], "theirs": []}
    for _ in range(2):
        for side, index in (("ours", index_of("ours")), ("theirs", INDEX)):
            of = []
            for at in range(probes):
                # At moments that have nothing to do with the poll's.
                time.sleep(0.13 * (at % 7))
                of.append(probe(index, side, 1 + at))
            lags[side].append(percentile(of, 0.5))
    rows.append(row("lag, p50", "ms", lags["ours"], lags["theirs"], "polling every second", "<= 1"))

    deleted, out_of_order, same_second = (range(start, start + 50) for start in (1001, 1101, 1201))

    def wrong(index):
        left = engine.count(index, {"terms": {"id": list(deleted)}})
        stale = [
            50
            - engine.count(index, {"bool": {"filter": [{"terms": {"id": list(ids)}}, {"term": {"stock": 3_000_000}}]}})
            for ids in (out_of_order, same_second)
        ]
        return [left, *stale]

    for table in ("ours", "theirs"):
        session.run(f"DELETE FROM {table} WHERE id = ANY (%s)", list(deleted))
        # A transaction that began earlier and commits later: its updated_at is the time of its beginning.
        late.run("BEGIN")
        late.run(f"UPDATE {table} SET stock = 3000000, changed_at = now() WHERE id = ANY (%s)", list(out_of_order))
        time.sleep(0.1)
        session.run(f"UPDATE {table} SET changed_at = now() WHERE id = 999")
        time.sleep(2.2)
        late.run("COMMIT")
        time.sleep(1.2)
        # updated_at in whole seconds, as timestamp(0) has it: changes of a second that was read already. (The
        # reader sees only that the value is no later.)
        second = session.one("SELECT date_trunc('second', now()) + '1 hour'")
        for half in (same_second[:25], same_second[25:]):
            session.run(f"UPDATE {table} SET stock = 3000000, changed_at = %s WHERE id = ANY (%s)", second, list(half))
            time.sleep(1.2)
    time.sleep(2.5)
    wait("ours")
    for what, ours, theirs in zip(
        (
            "50 deleted rows: still found",
            "50 rows of a transaction that commits late: not seen",
            "50 rows with one updated_at, in two statements: not seen",
        ),
        wrong(index_of("ours")),
        wrong(INDEX),
    ):
        rows.append(row(what, "documents", [ours], [theirs], "polling every second", "<= 0", by="difference"))
    for one in rows:
        say(f"    {one['what']:60} {one['ours']:10.2f}, polling {one['peer']:10.2f} {one['unit']}")
    process.stop()
    drop_sync("ours")
    return rows
