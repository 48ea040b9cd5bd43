-- All of the table is on its way to three targets; wait() returns when it has arrived.
\set ON_ERROR_STOP on
\pset footer off
SELECT pg_sleep(1) \g /dev/null
SELECT count(*) > 0 AS fed_by_another FROM fanout.status
WHERE state = 'blocked' AND last_error LIKE '%another owner%' \gset

\if :fed_by_another
\set ECHO queries
\echo '-- Another PostgreSQL of this stack (another version, other data) fed these targets. From now on this one does:'
SELECT sync, state, last_error FROM fanout.status ORDER BY sync;
SELECT fanout.adopt();
\endif
\set ECHO none

\echo '-- How far it is:'
\set ECHO queries
SELECT sync, state, percent, rows_done FROM fanout.status ORDER BY sync;

\timing on
\o /dev/null
SELECT fanout.wait(sync, timeout => '5 minutes') FROM fanout.status;
\o
\timing off
\echo

SELECT sync, kind, server, target, state, lag, pending, dead_letters, rows_done FROM fanout.status ORDER BY sync;
