-- Views for those who watch over syncs. They run with the extension's rights: each says itself who may see which rows.

CREATE VIEW fanout.dead_letters WITH (security_barrier) AS
SELECT s.name AS sync, d.document_id AS id, d.key, d.status, d.reason, d.attempts, d.first_at, d.last_at
FROM fanout.dead_letter d
JOIN fanout.sync s ON s.sync_id OPERATOR(pg_catalog.=) d.sync_id
WHERE pg_catalog.pg_has_role(s.owner, 'USAGE') OR pg_catalog.pg_has_role('pg_monitor', 'USAGE');
GRANT SELECT ON fanout.dead_letters TO PUBLIC;

COMMENT ON VIEW fanout.dead_letters IS
    'documents that a target refused for good, of the syncs whose owner you are (pg_monitor: of all); see fanout.retry()';
COMMENT ON COLUMN fanout.dead_letters.id IS 'the document''s id in the index, or its Redis key';
COMMENT ON COLUMN fanout.dead_letters.key IS 'the values of the key columns, for fanout.explain() and fanout.document()';
COMMENT ON COLUMN fanout.dead_letters.status IS 'the status that the target answered with, if it has such';
COMMENT ON COLUMN fanout.dead_letters.reason IS 'the target''s own words; they may quote the document';
COMMENT ON COLUMN fanout.dead_letters.attempts IS 'how often it was refused';

CREATE VIEW fanout.relations WITH (security_barrier) AS
SELECT s.name AS sync, r.source, r.columns, r.keys
FROM fanout.relation r
JOIN fanout.sync s ON s.sync_id OPERATOR(pg_catalog.=) r.sync_id
WHERE pg_catalog.pg_has_role(s.owner, 'USAGE') OR pg_catalog.pg_has_role('pg_monitor', 'USAGE');
GRANT SELECT ON fanout.relations TO PUBLIC;

COMMENT ON VIEW fanout.relations IS
    'tables whose rows belong to documents of a sync, of the syncs whose owner you are (pg_monitor: of all); see fanout.related()';
COMMENT ON COLUMN fanout.relations.columns IS 'the columns that are captured, old and new';
COMMENT ON COLUMN fanout.relations.keys IS 'the query from these, called changed, to keys of the sync''s source; NULL: they are the key';
