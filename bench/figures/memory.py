"""The worker's private memory at its highest: filling, catching up, and with a target that is down."""

from common import (
    REDIS,
    Memory,
    Size,
    cache_table,
    drop_sync,
    fresh_worker,
    index_table,
    private_memory,
    psql,
    row,
    say,
    wait,
)

NOWHERE = "redis://127.0.0.1:1"
TIMES = 2


def narrow_table(name, rows):
    """Narrow, so that ten times as many take no longer than they must; what waits is keys."""
    psql(f"""CREATE TABLE {name} (id bigint PRIMARY KEY, stock int, name text) WITH (fillfactor = 50);
             INSERT INTO {name} SELECT i, i % 1000, 'product ' || i FROM generate_series(1, {rows}) AS i""")
    psql(f"VACUUM ANALYZE {name}")


def filling(table, into):
    into(table, "watched")
    wait("watched")


def catching_up(table, _into):
    psql(f"UPDATE {table} SET stock = stock + 1")
    wait("watched")


def down(table, _into):
    psql(f"ALTER SERVER cache OPTIONS (SET url '{NOWHERE}')")
    psql(f"UPDATE {table} SET stock = stock + 1; SELECT pg_sleep(3)")
    psql(f"ALTER SERVER cache OPTIONS (SET url '{REDIS}')")
    wait("watched")


def peaks(run, table, into, times):
    """Of a worker that is new before the first time; and how it went on that first time."""
    if run is not filling:
        filling(table, into)
    found, series = [], None
    for time in range(times):
        if time == 0:
            pid = fresh_worker()
        with Memory(pid) as memory:
            run(table, into)
        found.append(memory.peak)
        series = series or memory.series
        say(f"    {run.__name__:12} {table:12} peak {memory.peak:6.1f} MB, then {private_memory(pid):6.1f} MB")
        if run is filling:
            drop_sync("watched")
    if run is not filling:
        drop_sync("watched")
    return found, series


def measure(size: Size):
    few, many = size.rows, size.rows * 10
    narrow_table("few", few)
    narrow_table("many", many)
    # A worker needs one sync to be there at all.
    psql("CREATE TABLE anchor (id int PRIMARY KEY)")
    cache_table("anchor")
    rows, lines = [], {}
    for name, run in (("backfill", filling), ("catch-up", catching_up), ("target down, then back", down)):
        small, _ = peaks(run, "few", cache_table, TIMES)
        large, lines[f"Redis, {name}"] = peaks(run, "many", cache_table, 1)
        rows.append(
            row(f"{name}: peak", "MB", large, small[:1], f"{few:,} rows instead of {many:,}", "<= 1.25", note="Redis")
        )
        rows.append(row(f"{name}: the last time of {TIMES}", "MB", small[-1:], small[:1], "the first time", "<= 1.1"))
    for name, run in (("backfill", filling), ("catch-up", catching_up)):
        found, lines[f"OpenSearch, {name}"] = peaks(run, "plain", index_table, 1)
        rows.append(row(f"{name} of OpenSearch, {few:,} rows: peak", "MB", found, by="value"))
    drop_sync("anchor")
    return rows, {"memory": ("The worker's private memory", "seconds", "MB", lines, False)}
