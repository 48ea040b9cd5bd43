"""One UPDATE and one COPY of all rows: how long they take on a table with a sync, against one without."""

from common import Session, cache_table, columns_of, copy_table, drop_sync, in_turn, index_table, psql, row, wait

VARIANTS = {"plain": "no sync", "paused": "capture alone", "opensearch": "delivering to OpenSearch"}


def measure(size):
    session = Session()
    copy_table("paused")
    copy_table("opensearch")
    cache_table("paused")
    index_table("opensearch")
    wait("paused")
    wait("opensearch")

    def update(table):
        if table == "paused":
            psql("SELECT fanout.pause('paused')")
        psql("CHECKPOINT")
        seconds = session.timed(f"UPDATE {table} SET stock = stock + 1, changed_at = now()")
        if table == "paused":
            psql("SELECT fanout.resume('paused')")
        if table != "plain":
            wait(table)
        psql(f"VACUUM {table}")
        return seconds

    # In the folder of the server, which may write there.
    psql("COPY plain TO PROGRAM 'cat > fanout_bench.copy'")

    def copy(variant):
        table = f"copied_{variant}"
        psql(f"CREATE TABLE {table} {columns_of('plain')}")
        if variant != "plain":
            (index_table if variant == "opensearch" else cache_table)(table)
            wait(table)
        if variant == "paused":
            psql(f"SELECT fanout.pause('{table}')")
        psql("CHECKPOINT")
        seconds = session.timed(f"COPY {table} FROM PROGRAM 'cat fanout_bench.copy'")
        if variant != "plain":
            drop_sync(table)
        psql(f"DROP TABLE {table}")
        return seconds

    rows = []
    for what, run in (("UPDATE", update), ("COPY", copy)):
        runs = in_turn(size.few, {table: (lambda table=table: run(table)) for table in VARIANTS}, f"{what}, seconds")
        for table, words in list(VARIANTS.items())[1:]:
            title = f"{what} of {size.rows:,} rows: {words}"
            rows.append(row(title, "s", runs[table], runs["plain"], "no sync", "<= 1.20"))
    session.close()
    drop_sync("paused")
    drop_sync("opensearch")
    psql("COPY (SELECT) TO PROGRAM 'rm fanout_bench.copy'")
    return rows
