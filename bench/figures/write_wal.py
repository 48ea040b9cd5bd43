"""WAL: bytes that a transaction writes more because of a sync, and what a bulk statement writes against one without."""

from common import Session, cache_table, copy_table, drop_sync, in_turn, psql, row, wait

VARIANTS = {"plain": "no sync", "paused": "capture alone", "redis": "delivering, what the worker writes included"}


def measure(size):
    session = Session()
    session.run("SET synchronous_commit = off")  # the same bytes, sooner
    for table in ("paused", "redis"):
        copy_table(table)
        cache_table(table)
        wait(table)
    psql("SELECT fanout.pause('paused')")
    transactions = min(2000, size.rows)

    def written(run, table):
        before = session.one("SELECT pg_current_wal_insert_lsn()")
        run(table)
        if table == "redis":
            wait(table)
        return float(session.one("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), %s)", before))

    def single(table):
        # The same rows in the same order, far enough apart not to share a page, and warm: no full-page images.
        step = size.rows // transactions
        for number in range(transactions):
            session.run(f"UPDATE {table} SET stock = stock + 1 WHERE id = {1 + step * number}")

    def bulk(table):
        session.run(f"UPDATE {table} SET stock = stock + 1")

    for table in VARIANTS:
        session.run(f"VACUUM {table}")
        single(table)
    runs = in_turn(
        size.rounds,
        {table: (lambda table=table: written(single, table) / transactions) for table in VARIANTS},
        "bytes a transaction",
    )
    rows = [
        row(
            f"single-row transaction: {words}", "bytes", runs[table], runs["plain"], "no sync", "<= 90", by="difference"
        )
        for table, words in list(VARIANTS.items())[1:]
    ]

    def whole(table):
        session.run(f"VACUUM {table}")
        psql("CHECKPOINT")
        return written(bulk, table) / 1e6

    runs = in_turn(size.few, {table: (lambda table=table: whole(table)) for table in VARIANTS}, "bulk, MB")
    rows += [
        row(f"UPDATE of {size.rows:,} rows: {words}", "MB", runs[table], runs["plain"], "no sync", "<= 1.03")
        for table, words in list(VARIANTS.items())[1:]
    ]
    session.close()
    psql("SELECT fanout.resume('paused')")
    for table in ("paused", "redis"):
        wait(table)
        drop_sync(table)
    return rows
