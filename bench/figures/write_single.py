"""Single-row UPDATEs: how many transactions a second a table with a sync takes, against the same table without one."""

from common import cache_table, copy_table, drop_sync, in_turn, index_table, percentile, pgbench, psql, row, wait

VARIANTS = {
    "plain": "no sync",
    "paused": "capture alone",
    "redis": "delivering to Redis",
    "opensearch": "delivering to OpenSearch",
}


def settle(table):
    """A sync that is not measured is paused; what is not measured has caught up."""
    if table != "plain":
        psql(f"SELECT fanout.resume('{table}')")
        wait(table)
        psql(f"SELECT fanout.pause('{table}')")
    psql("CHECKPOINT")


def measure(size):
    for table in ("paused", "redis", "opensearch"):
        copy_table(table)
        (index_table if table == "opensearch" else cache_table)(table)
        wait(table)
        psql(f"SELECT fanout.pause('{table}')")
    script = {
        table: f"\\set id random(1, {size.rows})\n\\set stock random(1, 1000)\n"
        f"UPDATE {table} SET stock = :stock, changed_at = now() WHERE id = :id;\n"
        for table in VARIANTS
    }

    def run(table, **how):
        if table in ("redis", "opensearch"):
            psql(f"SELECT fanout.resume('{table}')")
        value = pgbench(script[table], seconds=size.seconds, **how)
        settle(table)
        return value

    rows = []
    for commit in ("on", "off"):
        for clients in size.clients:
            told = f"synchronous_commit {commit}, {clients} clients"
            contenders = {table: (lambda table=table: run(table, clients=clients, commit=commit)) for table in VARIANTS}
            runs = in_turn(min(size.rounds, 4), contenders, told)
            for table, words in list(VARIANTS.items())[1:]:
                goal = ">= 0.95" if table == "paused" else ">= 0.85"
                rows.append(row(f"{told}: {words}", "TPS", runs[table], runs["plain"], "no sync", goal))
            # The same offered load for all: half of what the slowest could do.
            offered = max(10, int(0.5 * min(percentile(of, 0.5) for of in runs.values())))
            if clients == 4:
                contenders = {
                    table: (
                        lambda table=table: percentile(
                            run(table, clients=4, commit=commit, rate=offered, latencies=True), 0.99
                        )
                    )
                    for table in VARIANTS
                }
                # One stall of the disk makes the p99 of a round: more rounds, and the median of each.
                runs = in_turn(size.rounds + 2, contenders, f"p99 at {offered} TPS, {commit}")
                for table, words in list(VARIANTS.items())[1:]:
                    what = f"synchronous_commit {commit}, p99 at {offered:,} TPS: {words}"
                    medians = [percentile(runs[of], 0.5) for of in (table, "plain")]
                    rows.append(row(what, "ms", runs[table], runs["plain"], "no sync", "<= 1.05", pooled=medians))
    for table in ("paused", "redis", "opensearch"):
        drop_sync(table)
    return rows
