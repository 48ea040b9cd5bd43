"""PGSync: the same table, rows, servers and load."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from common import DATABASE, REDIS_AT, Failed, Http, Process, drop_slots, psql
from rivals import INDEX, URL, Setting, contest

STACK = Path(__file__).parents[2] / "stack"
COLUMNS = ["id", "name", "price", "stock", "active", "tags", "note", "changed_at"]


class PgSync:
    name = "PGSync"
    load_goal = ">= 5"
    # An option and what is in the environment.
    settings = {
        "its defaults": Setting(("--daemon", {}), "<= 0.0333"),
        "polls ten times as often": Setting(
            ("--daemon", {"POLL_TIMEOUT": "0.01", "REDIS_POLL_INTERVAL": "0.001", "POLL_INTERVAL": "0.01"}), "<= 0.25"
        ),
        "reads the WAL": Setting(("--wal", {}), "<= 1"),
    }

    def __init__(self, folder):
        self.folder = folder
        self.programs = Path(sys.executable).parent
        schema = [
            {"database": DATABASE, "index": INDEX, "nodes": {"table": "theirs", "schema": "public", "columns": COLUMNS}}
        ]
        Path(folder, "schema.json").write_text(json.dumps(schema))
        engine = urlsplit(URL)
        # What is not set is as PGSync has it. It can't speak to this Elasticsearch, a bare core without `GET /`.
        self.environment = {
            "PG_HOST": os.environ["PGHOST"],
            "PG_PORT": os.environ["PGPORT"],
            "PG_USER": os.environ["PGUSER"],
            "PG_PASSWORD": "unused",
            "OPENSEARCH": "true",
            "ELASTICSEARCH": "false",
            "ELASTICSEARCH_HOST": engine.hostname,
            "ELASTICSEARCH_PORT": str(engine.port),
            "REDIS_HOST": REDIS_AT.hostname,
            "REDIS_PORT": str(REDIS_AT.port),
            "REDIS_DB": "14",
            "CHECKPOINT_PATH": folder,
        }

    def command(self, program, *arguments):
        return [sys.executable, str(self.programs / program), "--config", f"{self.folder}/schema.json", *arguments]

    def bootstrap(self, *arguments):
        done = subprocess.run(
            self.command("bootstrap", *arguments),
            env=os.environ | self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise Failed(f"bootstrap of PGSync: {done.stdout[-2000:]} {done.stderr[-2000:]}")

    def prepare(self):
        self.bootstrap()
        self.make_index()

    def make_index(self):
        engine = Http(URL)
        engine.ask("DELETE", f"/{INDEX}")
        engine.ask("PUT", f"/{INDEX}", psql("SELECT fanout.mapping('plain')"))

    def start(self, first, how):
        option, more = how
        return Process(self.command("pgsync", option), self.environment | more, self.folder)

    def reset(self):
        self.bootstrap("--teardown")
        for checkpoint in Path(self.folder).glob(".*"):
            checkpoint.unlink()
        self.prepare()


def restart():
    subprocess.run([STACK / "restart", "postgres"], check=True, capture_output=True)


def measure(size):
    # Its replication slot needs it; what is measured beside it runs on the same server.
    psql("ALTER SYSTEM SET wal_level = logical", "postgres")
    restart()
    try:
        with tempfile.TemporaryDirectory() as folder:
            return contest(size, PgSync(folder))
    finally:
        for process in list(Process.running):
            process.stop()
        drop_slots()
        psql("ALTER SYSTEM RESET wal_level", "postgres")
        restart()
