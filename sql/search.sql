-- What the search functions are for, and who may call them.

COMMENT ON FUNCTION es_search(text, text, jsonb, jsonb, text[], integer, text, jsonb, text[], boolean, double precision, jsonb) IS
    'ranked hits of the index that a sync feeds; needs SELECT on its table and USAGE on its server, and uses the caller''s user mapping. '
    'query: what a visitor typed, bounded so that no text fails; dsl, filter: the engine''s own query language; '
    'fields: where to look for query; size: 1 to 10000; after: the cursor of the last row, for the next page; '
    'highlight: fields whose marked passages are wanted, as HTML; source: false leaves the documents out; min_score: drops hits below it; options: default_operator, highlight, minimum_should_match, source, timeout, track_scores, track_total_hits';
COMMENT ON FUNCTION es_search_index(text, text, text, jsonb, jsonb, text[], integer, text, jsonb, text[], boolean, double precision, jsonb) IS
    'as es_search(), for any index, alias or pattern on a foreign server; grant EXECUTE to whom you trust with all that the server''s user mapping can read';
COMMENT ON FUNCTION es_count(text, text, jsonb, jsonb, text[], jsonb) IS
    'how many documents a search with these arguments finds, exactly';
COMMENT ON FUNCTION es_rows(anyelement, text, text, jsonb, jsonb, text[], integer, text, jsonb, double precision, jsonb) IS
    'the rows of the table that the sync is fed from, in rank order, as es_rows(NULL::product, ''product'', ''shoes''); '
    'read as the caller, with row-level security; rows that are gone are left out';
COMMENT ON FUNCTION fanout.search_support(internal) IS
    'planner support: the search functions return about as many rows as their argument size';

REVOKE EXECUTE ON FUNCTION es_search_index(text, text, text, jsonb, jsonb, text[], integer, text, jsonb, text[], boolean, double precision, jsonb) FROM PUBLIC;
