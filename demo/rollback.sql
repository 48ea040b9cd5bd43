-- What is rolled back is not sent.
\set ON_ERROR_STOP on
\pset footer off
\set ECHO queries

SELECT sync, delivered FROM fanout.status ORDER BY sync;

BEGIN;
UPDATE movie SET title = 'wrong' WHERE year = 1999;
ROLLBACK;

\o /dev/null
SELECT fanout.wait(sync) FROM fanout.status;
\o
SELECT sync, delivered FROM fanout.status ORDER BY sync;
