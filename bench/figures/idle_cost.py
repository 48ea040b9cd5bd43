"""What a worker costs that has nothing to do, against PostgreSQL's own background processes."""

import time

from common import (
    Session,
    cache_table,
    cpu_seconds,
    index_table,
    private_memory,
    psql,
    row,
    say,
    wait,
    wake_ups,
    worker_pid,
)

OWN = """backend_type IN
    ('checkpointer', 'background writer', 'walwriter', 'autovacuum launcher', 'logical replication launcher')"""


def measure(size):
    session = Session()
    seconds = 20 if size.name in ("full", "long") else 5 if size.name == "quick" else 2
    many = 100 if size.name in ("full", "long") else 10
    index_table("plain", "idle")
    wait("idle")
    rows = []
    for syncs in (1, many):
        if syncs > 1:
            for number in range(2, syncs + 1):
                psql(
                    f"CREATE TABLE small_{number} (id int PRIMARY KEY, name text);"
                    f"INSERT INTO small_{number} VALUES (1, 'one')"
                )
                cache_table(f"small_{number}")
            for number in range(2, syncs + 1):
                wait(f"small_{number}")
        time.sleep(3)
        pid = worker_pid()
        own = [pid for pid, in session.run(f"SELECT pid FROM pg_stat_activity WHERE {OWN}")]
        launcher = session.one("SELECT pid FROM pg_stat_activity WHERE backend_type = 'pg_fanout launcher'")
        before = [cpu_seconds(one) for one in (pid, launcher, *own)]
        woken = wake_ups(pid)
        time.sleep(seconds)
        woken = (wake_ups(pid) - woken) / seconds
        used = [after - was for after, was in zip([cpu_seconds(one) for one in (pid, launcher, *own)], before)]
        memory = private_memory(pid)
        what = f"{syncs} sync{'s' if syncs > 1 else ''}"
        rows += [
            row(
                f"{what}: CPU",
                "ms/s",
                [1000 * used[0] / seconds],
                [1000 * sum(used[2:]) / seconds],
                "PostgreSQL's own background processes",
                by="difference",
                note=f"over {seconds} s; launcher {1000 * used[1] / seconds:.1f} ms/s",
            ),
            row(
                f"{what}: wake-ups",
                "1/s",
                [woken],
                goal="<= 3",
                by="value",
                note="all threads; fanout.heartbeat is 1 s",
            ),
            row(f"{what}: private memory", "MB", [memory], goal="<= 15", by="value"),
        ]
        for one in rows[-3:]:
            say(f"    {one['what']:28} {one['ours']:10.2f} {one['unit']}")
    session.close()
    return rows
