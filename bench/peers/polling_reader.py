"""What Logstash's JDBC input does, say: every so often the rows that changed after the last one seen."""

import sys
import time

import psycopg2
from opensearchpy import OpenSearch, helpers


def main(database, url, index, pause):
    engine = OpenSearch(url, timeout=60)
    connection = psycopg2.connect(dbname=database)
    connection.autocommit = True
    cursor, seen = connection.cursor(), "-infinity"
    while True:
        begun = time.monotonic()
        cursor.execute(
            "SELECT id, changed_at::text, to_jsonb(theirs) FROM theirs WHERE changed_at > %s ORDER BY changed_at",
            (seen,),
        )
        rows = cursor.fetchall()
        helpers.bulk(
            engine, ({"_index": index, "_id": key, "_source": document} for key, _, document in rows), chunk_size=2000
        )
        seen = rows[-1][1] if rows else seen
        time.sleep(max(0, float(pause) - (time.monotonic() - begun)))


main(*sys.argv[1:])
