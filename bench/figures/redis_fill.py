"""The first filling of Redis, against what Redis takes and against what PostgreSQL gives."""

import re
import subprocess
import time

from common import REDIS_AT, REDIS_DATABASE, Failed, Redis, cache_table, drop_sync, in_turn, psql, row, wait


def measure(size):
    bytes_each = int(psql("SELECT avg(octet_length(row_to_json(plain)::text))::int FROM plain"))
    redis = Redis()

    def ours():
        redis.ask("FLUSHDB")
        begun = time.perf_counter()
        cache_table("plain", "filled")
        wait("filled")
        rate = size.rows / (time.perf_counter() - begun)
        found = int(redis.ask("DBSIZE")[1:])
        if found < size.rows:
            raise Failed(f"{found} keys instead of {size.rows}")
        drop_sync("filled")
        return rate

    def pipelined():
        redis.ask("FLUSHDB")
        # One connection, as the worker has, and a hundred commands under way.
        command = [
            "redis-benchmark",
            "-h",
            REDIS_AT.hostname,
            "-p",
            str(REDIS_AT.port),
            "--dbnum",
            str(REDIS_DATABASE),
            "-t",
            "set",
            "-n",
            str(size.rows),
            "-r",
            str(size.rows),
            "-d",
            str(bytes_each),
            "-c",
            "1",
            "-P",
            "100",
            "--csv",
        ]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return float(re.search(r'"SET","([0-9.]+)"', told)[1])

    def read():
        begun = time.perf_counter()
        psql("COPY (SELECT row_to_json(plain) FROM plain) TO PROGRAM 'cat > /dev/null'")
        return size.rows / (time.perf_counter() - begun)

    runs = in_turn(size.rounds, {"SET": pipelined, "COPY": read, "pg_fanout": ours}, "keys/s")
    what = f"{size.rows:,} values of {bytes_each} bytes"
    return [
        row(what, "keys/s", runs["pg_fanout"], runs["SET"], "redis-benchmark, pipelined SET", ">= 0.30"),
        row(what, "rows/s", runs["pg_fanout"], runs["COPY"], "COPY (SELECT row_to_json) by PostgreSQL", ">= 0.80"),
    ]
