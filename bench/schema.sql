-- The rows of one table, whose documents are about 450 bytes; figures copy it. bench/common.py puts the number in.
CREATE TABLE plain (
    id         bigint PRIMARY KEY,
    name       text NOT NULL,
    price      numeric(10,2) NOT NULL,
    stock      int NOT NULL,
    active     boolean NOT NULL,
    tags       text[] NOT NULL,
    note       text NOT NULL,
    changed_at timestamptz NOT NULL
) WITH (fillfactor = 80, autovacuum_enabled = off);

INSERT INTO plain
SELECT i, 'product ' || i, (i * 7919 % 100000) / 100.0, i % 1000, i % 7 <> 0, ARRAY['tag' || i % 50, 'tag' || i % 31],
       (SELECT string_agg(substr(md5((i * 31 + word)::text), 1, 3 + word % 6), ' ') FROM generate_series(1, 42) AS word),
       timestamptz '2026-01-01 00:00:00+00' + i * interval '1 second'
FROM generate_series(1, :rows) AS i;
VACUUM ANALYZE plain;
