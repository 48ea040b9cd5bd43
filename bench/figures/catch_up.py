"""All rows changed in one statement: how fast the index has them, against a plain client that overwrites them."""

import time

from common import ENGINES, Http, bulk_bodies, drop_sync, in_turn, index_of, index_table, psql, row, send_all, wait


def measure(size):
    rows = []
    mapping = psql("SELECT fanout.mapping('plain')")
    for server, url in ENGINES.items():
        engine = Http(url)
        engine.ask("PUT", f"/{index_of('by_hand')}", mapping)
        send_all(url, index_of("by_hand"), bulk_bodies())
        index_table("plain", "caught", server)
        wait("caught")

        def plain():
            bodies = bulk_bodies()  # with higher versions
            begun = time.perf_counter()
            send_all(url, index_of("by_hand"), bodies)
            engine.ask("POST", f"/{index_of('by_hand')}/_refresh")
            return size.rows / (time.perf_counter() - begun)

        def ours():
            psql("UPDATE plain SET stock = stock + 1, changed_at = now()")
            begun = time.perf_counter()
            wait("caught")
            rate = size.rows / (time.perf_counter() - begun)
            psql("VACUUM plain")
            return rate

        runs = in_turn(size.few, {"plain": plain, "pg_fanout": ours}, f"{server}, documents/s")
        what = f"{server}: {size.rows:,} rows changed in one statement"
        rows.append(row(what, "documents/s", runs["pg_fanout"], runs["plain"], "bodies made beforehand", ">= 0.80"))
        drop_sync("caught")
    return rows
