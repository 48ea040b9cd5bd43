"""The first filling of an index, against a plain client that has the bodies ready."""

import json
import time

from common import (
    ENGINES,
    Failed,
    Http,
    bulk_bodies,
    drop_sync,
    in_turn,
    index_of,
    index_table,
    psql,
    row,
    say,
    send_all,
    wait,
)

TREE = """
CREATE TABLE brand   (id int PRIMARY KEY, name text NOT NULL);
CREATE TABLE article (id bigint PRIMARY KEY, name text NOT NULL, brand_id int NOT NULL REFERENCES brand);
CREATE TABLE variant (id bigint PRIMARY KEY, article_id bigint NOT NULL REFERENCES article, sku text NOT NULL,
                      price numeric(10,2) NOT NULL);
INSERT INTO brand   SELECT i, 'brand ' || i FROM generate_series(1, 100) AS i;
INSERT INTO article SELECT id, name, 1 + id % 100 FROM plain WHERE id <= {articles};
INSERT INTO variant SELECT 3 * a.id + n, a.id, 'sku-' || a.id || '-' || n, 10 + n
                    FROM article a, generate_series(0, 2) AS n;
CREATE INDEX ON variant (article_id);
VACUUM ANALYZE brand, article, variant;
"""
DOCUMENT = """
SELECT a.id, a.name, b.name AS brand,
       (SELECT json_agg(json_build_object('sku', v.sku, 'price', v.price) ORDER BY v.id)
        FROM variant v WHERE v.article_id = a.id) AS variants
FROM   article a JOIN brand b ON b.id = a.brand_id
"""


def filled(server, what, bodies, mapping, rounds, goal, start):
    engine = Http(ENGINES[server])
    wanted = sum(count for count, _ in bodies)
    state = {"turn": 0, "refused": 0, "retried": 0}

    def checked(index, begun):
        rate = wanted / (time.perf_counter() - begun)
        found = engine.count(index)
        if found != wanted:
            raise Failed(f"{found} documents instead of {wanted} in {index}")
        return rate

    def plain():
        state["turn"] += 1
        index = index_of(f"by_hand_{state['turn']}")
        begun = time.perf_counter()
        engine.ask("PUT", f"/{index}", mapping)
        send_all(ENGINES[server], index, bodies)
        engine.ask("POST", f"/{index}/_refresh")
        rate = checked(index, begun)
        engine.ask("DELETE", f"/{index}")
        return rate

    def ours():
        state["turn"] += 1
        name = f"filled_{state['turn']}"
        begun = time.perf_counter()
        start(name)
        wait(name)
        rate = checked(index_of(name), begun)
        state["retried"] += int(psql(f"SELECT retried FROM fanout.status WHERE sync = '{name}'"))
        drop_sync(name)
        return rate

    runs = in_turn(rounds, {"plain": plain, "pg_fanout": ours}, f"{server}, {what}, documents/s")
    note = f"{state['retried']:,} documents were sent twice" if state["retried"] else ""
    return row(
        f"{server}: {what}", "documents/s", runs["pg_fanout"], runs["plain"], "bodies made beforehand", goal, note=note
    )


def measure(size):
    bodies, mapping = bulk_bodies(), psql("SELECT fanout.mapping('plain')")
    say(f"    {sum(len(body) for _, body in bodies) / size.rows:.0f} bytes a document, its line of metadata included")
    rows = []
    for server in ENGINES:
        start = lambda name: index_table("plain", name, server)
        rows.append(filled(server, f"{size.rows:,} rows", bodies, mapping, size.few, ">= 0.85", start))
    articles = size.rows // 4
    psql(TREE.format(articles=articles))

    def start(name):
        psql(f"""BEGIN;
                 SELECT fanout.index_table('article', server => 'OpenSearch', name => '{name}',
                                           index => '{index_of(name)}', document => $${DOCUMENT}$$);
                 SELECT fanout.related('{name}', 'brand'), fanout.related('{name}', 'variant');
                 COMMIT""")

    bodies = bulk_bodies(f"SELECT id, row_to_json(d) FROM ({DOCUMENT}) AS d ORDER BY id")
    start("shape")
    wait("shape")
    # The mapping that the sync gave its index, without what marks it as ours.
    at = next(iter(Http(ENGINES["OpenSearch"]).json("GET", f"/{index_of('shape')}/_mapping").values()))["mappings"]
    tree_mapping = json.dumps({"mappings": {name: at[name] for name in at if name != "_meta"}})
    drop_sync("shape")
    what = f"{articles:,} trees of three tables"
    rows.append(filled("OpenSearch", what, bodies, tree_mapping, size.few, ">= 0.6", start))
    return rows
