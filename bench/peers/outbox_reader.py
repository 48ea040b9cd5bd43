"""The usual reader of an outbox table: takes what is there, sends it with the official client, pauses."""

import sys
import time

import psycopg2
from opensearchpy import OpenSearch, helpers

TAKE = """
WITH taken AS (SELECT id FROM outbox ORDER BY id LIMIT 2000)
DELETE FROM outbox USING taken WHERE outbox.id = taken.id RETURNING outbox.id, outbox.key, outbox.document
"""


def main(database, url, index, pause, fill):
    engine = OpenSearch(url, timeout=60)
    connection = psycopg2.connect(dbname=database)

    def send(rows):
        # Of several changes of a row the last one counts.
        last = {key: document for _, key, document in rows}
        actions = [
            (
                {"_op_type": "index", "_index": index, "_id": key, "_source": document}
                if document
                else {"_op_type": "delete", "_index": index, "_id": key}
            )
            for key, document in last.items()
        ]
        for ok, item in helpers.streaming_bulk(engine, actions, chunk_size=2000, raise_on_error=False):
            if not ok and item.get("delete", {}).get("status") != 404:
                raise RuntimeError(item)

    if fill == "fill":
        with connection, connection.cursor("filling") as cursor:
            cursor.itersize = 2000
            cursor.execute("SELECT id, to_jsonb(theirs) FROM theirs")
            actions = ({"_index": index, "_id": key, "_source": document} for key, document in cursor)
            for _ in helpers.parallel_bulk(engine, actions, chunk_size=2000, thread_count=2):
                pass
    while True:
        # Sent before the deletion commits: at least once.
        with connection, connection.cursor() as cursor:
            cursor.execute(TAKE)
            rows = sorted(cursor.fetchall())
            if rows:
                send(rows)
        if not rows:
            time.sleep(float(pause))


main(*sys.argv[1:])
