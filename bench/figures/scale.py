"""The cost of a change as things grow: the slope on logarithmic axes. 0 is no growth, 1 is proportional."""

import time

from common import cache_table, drop_sync, percentile, pgbench, psql, row, say, slope, wait

CHANGES = 5000


def measure(size):
    most = {"tiny": 4, "quick": 5, "full": 6, "long": 7}[size.name]
    rows, lines = [], {}

    def put(what, points, note="", fit=None):
        lines[what] = points
        rows.append(
            row(
                what,
                "slope",
                [slope(points[-fit:] if fit else points)],
                goal="<= 0.05",
                by="value",
                note="; ".join(f"{x:,}: {y:.1f} µs" for x, y in points) + (f"; {note}" if note else ""),
            )
        )
        say(f"    {what:48} {rows[-1]['figure']:6.3f}  {rows[-1]['note']}")

    def median(run, rounds=size.few):
        return percentile([run() for _ in range(rounds)], 0.5)

    # Narrow rows and Redis, so that as little as possible but the extension itself takes time.
    points = []
    for power in range(4 if most > 4 else 3, most + 1):
        table, count = f"rows_{power}", 10**power
        psql(f"""CREATE TABLE {table} (id bigint PRIMARY KEY, stock int NOT NULL)
                     WITH (fillfactor = 50, autovacuum_enabled = off);
                 INSERT INTO {table} SELECT i, 0 FROM generate_series(1, {count}) AS i; VACUUM ANALYZE {table}""")
        cache_table(table)
        wait(table)
        step = max(1, count // CHANGES)
        changes = count // step

        def changed():
            psql(f"UPDATE {table} SET stock = stock + 1 WHERE id % {step} = 0")
            begun = time.perf_counter()
            wait(table)
            return 1e6 * (time.perf_counter() - begun) / changes

        points.append((count, median(changed)))
    put("rows of the table: delivering one of 5,000 changes", points)

    points, count = [], 10**most
    for power in range(3, most + 1):

        def caught_up():
            psql(f"SELECT fanout.pause('{table}')")
            psql(f"UPDATE {table} SET stock = stock + 1 WHERE id <= {10 ** power}")
            time.sleep(0.5)
            begun = time.perf_counter()
            psql(f"SELECT fanout.resume('{table}')")
            wait(table)
            return 1e6 * (time.perf_counter() - begun) / 10**power

        points.append((10**power, median(caught_up, size.few)))
    # The first points are what any delivery takes.
    put("backlog: delivering one change of it", points, fit=3)
    for power in range(4 if most > 4 else 3, most + 1):
        drop_sync(f"rows_{power}")

    script = f"\\set id random(1, {size.rows})\nUPDATE plain SET stock = stock + 1 WHERE id = :id;\n"
    cost = lambda clients: 1e6 * clients / pgbench(script, clients, size.seconds, commit="off")
    points, made = [], 0
    for syncs in (1, 2, 4, 8, 16, 32):
        while made < syncs:
            made += 1
            cache_table("plain", f"one_of_{made}")
            wait(f"one_of_{made}")
            psql(f"SELECT fanout.pause('one_of_{made}')")
        points.append((syncs, median(lambda: cost(1))))
    put("syncs of a table: a writer's transaction", points, "all paused")
    for number in range(1, made + 1):
        drop_sync(f"one_of_{number}")

    with_sync = []
    psql("CREATE TABLE bare (LIKE plain INCLUDING ALL); INSERT INTO bare SELECT * FROM plain; VACUUM ANALYZE bare")
    bare = script.replace("plain", "bare")
    cache_table("plain", "written")
    wait("written")
    psql("SELECT fanout.pause('written')")
    for clients in (1, 4, 16, 64):
        ratios = [
            pgbench(bare, clients, size.seconds, commit="off") / pgbench(script, clients, size.seconds, commit="off")
            for _ in range(size.rounds)
        ]
        with_sync.append((clients, percentile(ratios, 0.5)))
    what = "writers: times as long as without a sync"
    lines[what] = with_sync
    rows.append(
        row(
            what,
            "slope",
            [slope(with_sync)],
            goal="<= 0.05",
            by="value",
            note="; ".join(f"{x}: {y:.3f}" for x, y in with_sync),
        )
    )
    say(f"    {what:48} {rows[-1]['figure']:6.3f}  {rows[-1]['note']}")
    drop_sync("written")
    return rows, {"scale": ("The cost of a change as things grow", "how many", "µs (writers: ratio)", lines, True)}
