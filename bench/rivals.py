"""What the figures named peer_… share: another program that feeds an index from a table beside ours."""

import sys
import time
from pathlib import Path
from typing import NamedTuple

from common import (
    ENGINES,
    RUN,
    Failed,
    Http,
    Memory,
    Process,
    Session,
    copy_table,
    drop_sync,
    in_turn,
    index_of,
    index_table,
    percentile,
    pgbench,
    psql,
    row,
    say,
    until,
    wait,
    worker_pid,
)

URL = ENGINES["OpenSearch"]
INDEX = f"{RUN}_theirs"
HERE = Path(__file__).parent


class Setting(NamedTuple):
    """One way to run a peer: what its start() makes of it, and the goal of the lag against it."""

    how: object
    goal: str


def python(script, *arguments):
    return Process([sys.executable, str(HERE / "peers" / script), *arguments])


def contest(size, rival):
    """`rival` has: name, prepare(), start(first, how) -> Process, reset(), load_goal (of filling and catching up), and settings:
    {name: Setting}, the first of which is used for all but the lag."""
    count = size.rows // 4
    rounds = max(1, size.few - 1)
    for table in ("ours", "theirs", "bare"):
        copy_table(table, count)
    engine, session, rows = Http(URL), Session(), []
    default = next(iter(rival.settings.values()))

    def put(*arguments, **more):
        rows.append(row(*arguments, **more))
        say("    {what:44} {ours:12.2f}, {name} {peer:12.2f} {unit}".format(name=rival.name, **rows[-1]))

    # --- the first filling
    rival.prepare()

    def fill_ours():
        begun = time.perf_counter()
        index_table("ours", "ours")
        wait("ours")
        rate = count / (time.perf_counter() - begun)
        drop_sync("ours")
        return rate

    def fill_theirs():
        begun = time.perf_counter()
        process = rival.start(True, default.how)

        def all_there():
            process.check()
            return engine.count(INDEX) == count

        until(all_there, f"{rival.name} to fill its index", 300, 0.2)
        rate = count / (time.perf_counter() - begun)
        process.stop()
        rival.reset()
        return rate

    runs = in_turn(rounds, {"ours": fill_ours, "theirs": fill_theirs}, "first filling, documents/s")
    put(
        f"first filling, {count:,} rows",
        "documents/s",
        runs["ours"],
        runs["theirs"],
        f"{rival.name}, its start included",
        rival.load_goal,
    )

    # --- from here on both run
    index_table("ours", "ours")
    wait("ours")
    process = rival.start(True, default.how)
    until(lambda: process.check() or engine.count(INDEX) == count, f"{rival.name} to fill its index", 300, 0.2)
    number, lost = 0, 0

    def probe(index, table, id, may_be_lost=False):
        nonlocal number, lost
        number += 1
        wanted, begun = 2_000_000 + number, time.perf_counter()
        session.run(f"UPDATE {table} SET stock = %s, changed_at = now() WHERE id = %s", wanted, id)
        while engine.stock(index, id) != wanted:
            if time.perf_counter() - begun > 60:
                process.check()
                lost += 1
                if not may_be_lost or lost > 2:
                    raise Failed(f"row {id} did not arrive in {index} within 60 s")
                break
            time.sleep(0.0005)
        return 1000 * (time.perf_counter() - begun)

    # The first one is not counted: it waits for whatever starting still takes.
    probe(INDEX, "theirs", 1)
    probe(index_of("ours"), "ours", 1)
    for told, setting in rival.settings.items():
        if setting != default:
            process.stop()
            process = rival.start(False, setting.how)
            probe(INDEX, "theirs", 1, may_be_lost=True)
        rounds_of, lost = {"ours": [], "theirs": []}, 0
        for _ in range(size.few + 1):
            for side, index in (("theirs", INDEX), ("ours", index_of("ours"))):
                process.still(side == "ours")
                of = []
                for at in range(size.probes):
                    of.append(probe(index, side, 2 + at, may_be_lost=side == "theirs"))
                    time.sleep(0.01)
                rounds_of[side].append(of)
        process.still(False)
        for share in (0.5, 0.99):
            each = [[percentile(of, share) for of in rounds_of[side]] for side in ("ours", "theirs")]
            note = f"{lost} of the changes had not arrived in the index of {rival.name} after 60 s" if lost else ""
            put(f"lag, p{int(share * 100)}, {told}", "ms", *each, rival.name, setting.goal, note=note)
    if len(rival.settings) > 1:
        process.stop()
        process = rival.start(False, default.how)
        # It has to follow again before the next figure.
        probe(INDEX, "theirs", 1)

    # --- catching up, and what it takes
    peaks = {"ours": [], "theirs": []}

    def catch_up(side, index):
        nonlocal number
        number += 1
        process.still(side == "ours")
        with Memory(worker_pid() if side == "ours" else process.pid) as memory:
            psql(f"UPDATE {side} SET stock = {2_000_000 + number}, changed_at = now()")
            begun = time.perf_counter()
            until(
                lambda: engine.count(index, {"term": {"stock": 2_000_000 + number}}) == count,
                f"{count} rows in {index}",
                300,
                0.1,
            )
            seconds = time.perf_counter() - begun
        peaks[side].append(memory.peak)
        process.still(False)
        psql(f"VACUUM {side}")
        return count / seconds

    runs = in_turn(
        rounds,
        {"ours": lambda: catch_up("ours", index_of("ours")), "theirs": lambda: catch_up("theirs", INDEX)},
        "catching up, documents/s",
    )
    put(f"catching up with {count:,} rows", "documents/s", runs["ours"], runs["theirs"], rival.name, rival.load_goal)
    put("its process while it does", "MB", peaks["ours"], peaks["theirs"], f"{rival.name}, RssAnon", "<= 1")

    # --- what writers pay
    script = lambda table: (
        f"\\set id random(1, {count})\n\\set stock random(1, 1000)\n"
        f"UPDATE {table} SET stock = :stock, changed_at = now() WHERE id = :id;\n"
    )

    def write(table):
        process.still(table == "ours")
        rate = pgbench(script(table), clients=4, seconds=size.seconds)
        process.still(False)
        if table == "ours":
            wait("ours")
        return rate

    runs = in_turn(
        size.few,
        {table: (lambda table=table: write(table)) for table in ("bare", "ours", "theirs")},
        "single-row UPDATEs, TPS",
    )
    put("single-row UPDATEs, 4 clients", "TPS", runs["ours"], runs["theirs"], rival.name, ">= 1")
    put("single-row UPDATEs without a sync", "TPS", runs["bare"], runs["theirs"], rival.name)
    process.stop()
    session.close()
    drop_sync("ours")
    return rows
