-- What the functions on Redis are for.

COMMENT ON FUNCTION redis_get(text, text) IS
    'the value of a Redis key on a foreign server, as text; NULL if there is no such key';
COMMENT ON FUNCTION redis_mget(text, text[]) IS
    'the values of several Redis keys in one request, one row a key in the order given; value is NULL for a missing key';
COMMENT ON FUNCTION redis_set(text, text, text, interval) IS
    'sets a Redis key at once: ROLLBACK does not undo it; ttl: how long it lives, for ever if left out';
COMMENT ON FUNCTION redis_del(text, text[]) IS
    'deletes Redis keys at once and tells how many there were: ROLLBACK does not undo it';
COMMENT ON FUNCTION redis_ttl(text, text) IS
    'how long a Redis key will live; NULL if it has no expiry or does not exist (redis_get() tells these apart)';
