"""The worker's private memory at its highest: filling, catching up, and with a target that is down."""

from common import (
    ENGINES,
    Memory,
    Size,
    cache_table,
    copy_table,
    drop_sync,
    fresh_worker,
    index_table,
    private_memory,
    psql,
    row,
    say,
    wait,
)

NOWHERE = "http://127.0.0.1:1"


def filling(table):
    index_table(table, "watched")
    wait("watched")


def catching_up(table):
    psql(f"UPDATE {table} SET stock = stock + 1")
    wait("watched")


def down(table):
    psql(f"""ALTER SERVER "OpenSearch" OPTIONS (SET url '{NOWHERE}')""")
    psql(f"UPDATE {table} SET stock = stock + 1; SELECT pg_sleep(3)")
    psql(f"""ALTER SERVER "OpenSearch" OPTIONS (SET url '{ENGINES["OpenSearch"]}')""")
    wait("watched")


def measure(size: Size):
    # The long form needs more rows than all other figures.
    largest = size.rows * 10 if size.long else size.rows
    if size.long:
        psql(f"""INSERT INTO plain SELECT id + {size.rows} * n, name, price, stock, active, tags, note, changed_at
                 FROM plain, generate_series(1, 9) AS n""")
    small = largest // 10
    copy_table("small", small)
    # A worker needs one sync to be there at all.
    psql("CREATE TABLE anchor (id int PRIMARY KEY)")
    cache_table("anchor")
    rows, plots = [], {}
    turns = min(size.few, 3 if size.long else 2)
    for name, run in (("backfill", filling), ("catch-up", catching_up), ("target down, then back", down)):
        peaks = {}
        for table, count in (("small", small), ("plain", largest)):
            if run is not filling:
                filling(table)
            peaks[table] = []
            for turn in range(turns):
                if turn == 0:
                    pid = fresh_worker()
                at_rest = private_memory(pid)
                with Memory(pid) as memory:
                    run(table)
                peaks[table].append(memory.peak)
                say(f"    {name:24} {count:9,} rows {at_rest:8.1f} MB, peak {memory.peak:8.1f} MB")
                if turn == 0:
                    plots.setdefault(f"{count:,} rows", {})[name] = memory.series
                if run is filling:
                    drop_sync("watched")
            if run is not filling:
                drop_sync("watched")
        rows.append(
            row(
                f"{name}: peak",
                "MB",
                peaks["plain"],
                peaks["small"],
                f"{small:,} rows instead of {largest:,}",
                "<= 1.25",
            )
        )
        if turns > 1:
            rows.append(
                row(
                    f"{name}: the last time of {turns}",
                    "MB",
                    peaks["plain"][-1:],
                    peaks["plain"][:1],
                    "the first time",
                    "<= 1.1",
                )
            )
    drop_sync("anchor")
    lines = plots[f"{largest:,} rows"]
    return rows, {"memory": (f"The worker's private memory, {largest:,} rows", "seconds", "MB", lines, False)}
