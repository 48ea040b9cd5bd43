-- What es_search() finds, joined with the rows of the table.
\set ON_ERROR_STOP on
\pset footer off
\set ECHO queries

\echo '-- Ranked hits, beside columns that come from the table as it is now:'
SELECT h.rank, round(h.score::numeric, 2) AS score, m.title, m.year, m.directors[1] AS director, m.oscars
FROM   es_search('movie', '"lord of the rings"', size => 5) AS h
JOIN   movie AS m ON m.id = h.id::bigint
ORDER  BY h.rank;

\echo '-- A filter in the engine''s own query language, an order, and the passage that matched:'
SELECT m.title, m.year, m.metacritic, h.highlight->'actors'->>0 AS actor, h.total
FROM   es_search('movie', '"ian mckellen"', fields => '{actors}', highlight => '{actors}', size => 5,
                 filter => '{"range": {"year": {"gte": 1995}}}', sort => '[{"metacritic": "desc"}]') AS h
JOIN   movie AS m ON m.id = h.id::bigint
ORDER  BY h.rank;

\echo '-- Facets: what was found, counted by SQL:'
SELECT genre, count(*) AS films, round(avg(m.critics_rating), 1) AS critics
FROM   es_search('movie', 'love', fields => '{title}', size => 1000, source => false) AS h
JOIN   movie AS m ON m.id = h.id::bigint, unnest(m.genres) AS genre
GROUP  BY genre ORDER BY films DESC LIMIT 5;

\echo '-- Rows of the table''s own type, in rank order; this time from the index in Elasticsearch:'
SELECT id, title, year, oscars
FROM   es_rows(NULL::movie, 'movie_es', '"star wars" episode', options => '{"default_operator": "and"}', size => 6);

\echo '-- Nothing that a visitor types is an error:'
SELECT count(*) FROM es_search('movie', '((( "casablanca OR title:[1 TO *~9');

\echo '-- The cached row, as any client of Redis gets it with GET movie:132863:'
SELECT redis_get('cache', 'movie:132863')::jsonb->>'title' AS title, redis_ttl('cache', 'movie:132863') AS lives_for;
