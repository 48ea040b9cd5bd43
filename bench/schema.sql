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
       -- 42 words of 20,000; the n-th of them is met in proportion to 1/n, as in texts that people write (Zipf's law).
       (SELECT string_agg(substr(md5(n::text), 1, 3 + n % 6), ' ')
        FROM   generate_series(1, 42) AS word,
               LATERAL (SELECT floor(20000 ^ ((hashint8(i * 64 + word) & 16777215) / 16777216.0::float8))::int) AS zipf (n)),
       timestamptz '2026-01-01 00:00:00+00' + i * interval '1 second'
FROM generate_series(1, :rows) AS i;
VACUUM ANALYZE plain;
