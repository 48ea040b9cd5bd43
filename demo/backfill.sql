-- All of the table is on its way to three targets; wait() returns when it has arrived.
\set ON_ERROR_STOP on
\pset footer off
SELECT pg_sleep(1) \g /dev/null

\echo '-- After the first second:'
\set ECHO queries
SELECT sync, state, percent, rows_done FROM fanout.status ORDER BY sync;

\echo
\timing on
\o /dev/null
SELECT fanout.wait(sync, timeout => '5 minutes') FROM fanout.status;
\o
\timing off
\echo

SELECT sync, kind, server, target, state, lag, pending, dead_letters, rows_done FROM fanout.status ORDER BY sync;
