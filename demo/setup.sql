-- The extension, three servers, three syncs. demo/run gives the servers' addresses as variables. At a second run, what is
-- there stays as it is; only addresses are set again, for the ports may have changed.
\set ON_ERROR_STOP on
\pset footer off
SET client_min_messages = warning;
SELECT EXISTS (SELECT FROM pg_foreign_server WHERE srvname = 'search_es') AS again \gset

\set ECHO queries
\if :again
ALTER SERVER search    OPTIONS (SET url :'search_url');
ALTER SERVER search_es OPTIONS (SET url :'search_es_url');
ALTER SERVER cache     OPTIONS (SET url :'cache_url');

SELECT name, kind, source, server, target, created_at::timestamp(0) FROM fanout.sync ORDER BY sync_id;
\else
CREATE EXTENSION IF NOT EXISTS pg_fanout;

CREATE SERVER search    FOREIGN DATA WRAPPER fanout_elasticsearch OPTIONS (url :'search_url');
CREATE SERVER search_es FOREIGN DATA WRAPPER fanout_elasticsearch OPTIONS (url :'search_es_url');
CREATE SERVER cache     FOREIGN DATA WRAPPER fanout_redis         OPTIONS (url :'cache_url');

SELECT fanout.index_table('movie', server => 'search',
                          search_fields => '{title^3,directors^2,actors,genres}');

SELECT fanout.index_table('movie', server => 'search_es', name => 'movie_es',
                          search_fields => '{title^3,directors^2,actors,genres}');

SELECT fanout.cache_table('movie', server => 'cache', name => 'movie_cache',
                          key => 'movie:${id}', ttl => '1 day');
\endif
