-- A row comes and goes.
\set ON_ERROR_STOP on
\pset footer off
DELETE FROM movie WHERE id = 1000001;
\set ECHO queries

INSERT INTO movie (id, imdb_id, title, year, genres, directors, writers, actors, languages, countries, studios, oscars)
VALUES (1000001, 'none', 'The Xylophone of Debrecen', 2026, '{Drama}', '{Nobody}', '{}', '{}', '{}', '{}', '{}', 0);

\o /dev/null
SELECT fanout.wait(sync) FROM fanout.status;
\o
SELECT id, title, redis_get('cache', 'movie:1000001')::jsonb->>'title' AS cached
FROM   es_rows(NULL::movie, 'movie', 'xylophone debrecen', size => 1);

DELETE FROM movie WHERE id = 1000001;

\o /dev/null
SELECT fanout.wait(sync) FROM fanout.status;
\o
SELECT count(*) AS found, redis_get('cache', 'movie:1000001') IS NULL AS gone_from_redis
FROM   es_search('movie', '+xylophone +debrecen');
