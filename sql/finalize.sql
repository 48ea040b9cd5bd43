-- Comments on functions, and a grant. Runs last in CREATE EXTENSION, when every function exists.

COMMENT ON FUNCTION fanout.elasticsearch_validator(text[], oid) IS
    'checks the options of servers and user mappings of fanout_elasticsearch';
COMMENT ON FUNCTION fanout.redis_validator(text[], oid) IS
    'checks the options of servers and user mappings of fanout_redis';

COMMENT ON FUNCTION fanout.index_table IS
    'keeps an index of Elasticsearch or OpenSearch in step with a table; returns the sync''s name';
COMMENT ON FUNCTION fanout.cache_table IS
    'keeps keys of Redis in step with a table; returns the sync''s name';
COMMENT ON FUNCTION fanout.related IS
    'declares that rows of another table belong to documents of a sync: a change there delivers these anew; without columns the foreign keys say which, and where these lead there by ways of several lengths, ways says which of them: all or shortest; '
    'columns: those of the changed rows that matter, the key of the sync''s source unless keys, a query from changed (which has these columns, old and new) to keys, says more';
COMMENT ON FUNCTION fanout.drop_related IS
    'declares no more that rows of a table belong to documents of a sync; returns how many relations there were';
COMMENT ON FUNCTION fanout.propose_relations IS
    'the tables that a sync''s document query reads and that are not declared, how foreign keys relate them, and the statements to declare them';
COMMENT ON FUNCTION fanout.mapping IS
    'the settings, mappings and aliases with which fanout.index_table(), called with the same arguments but those of the target, would create an index';
COMMENT ON FUNCTION fanout.pause IS
    'stops the deliveries of a sync; changes are still captured';
COMMENT ON FUNCTION fanout.resume IS
    'goes on with the deliveries of a paused sync, or of one that is left alone because it brought the worker down';
COMMENT ON FUNCTION fanout.resync IS
    'delivers everything anew; an index is rebuilt behind its alias, without downtime';
COMMENT ON FUNCTION fanout.reconcile IS
    'delivers all keys of the table and all ids of the target: repairs whatever differs';
COMMENT ON FUNCTION fanout.adopt IS
    'makes a sync (NULL: all of yours) that was restored or copied one of this database, and takes over its target; returns how many';
COMMENT ON FUNCTION fanout.drop_sync IS
    'ends a sync: drops its triggers and its state; the target stays unless drop_target';
COMMENT ON FUNCTION fanout.retry IS
    'tries the dead letters of a sync (or the one with this id) anew; returns how many';
COMMENT ON FUNCTION fanout.alter_sync IS
    'changes a sync: NULL leaves as it is, reset names what goes back to its default; returns what that takes (nothing, reconcile, resync), and with dry_run does no more';
COMMENT ON FUNCTION fanout.check IS
    'finds what is wrong with settings, worker, permissions, triggers and targets, and says what to do: one row a check';
COMMENT ON FUNCTION fanout.explain IS
    'why a row is not, or wrongly, in the target: one row a step, with what to do in the last; for the sync''s owner';
COMMENT ON FUNCTION fanout.document IS
    'the document that a sync would send of a row now, by the values of its key columns, of whatever types; NULL if there is no such row; for the sync''s owner';
COMMENT ON FUNCTION fanout.enqueue IS
    'says that a row changed, by the values of its key columns, and of other columns that its Redis key, routing or period is made of: it is delivered, or deleted from the target, as it is then';
COMMENT ON FUNCTION fanout.enqueue_keys IS
    'says that many rows changed, for a key of one column; returns how many';

COMMENT ON SEQUENCE fanout.sync_sync_id_seq IS 'numbers of syncs';
COMMENT ON FUNCTION fanout.wait IS
    'returns when all that was committed before the call is in the sync''s target, searchable or cached; timeout NULL: however long it takes';

-- What the views do not show of it: how a sync was made. There are no secrets in it, and no values of rows.
GRANT SELECT ON fanout.sync, fanout.relation TO pg_monitor;
