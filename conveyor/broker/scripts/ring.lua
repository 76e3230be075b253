#!lua flags=allow-oom
-- Adds a marker, for another that blocks on it: also when memory is full, where a plain ZADD is refused.
--
-- USES      record
-- KEYS
--   KEYS[1]  hash    Q:m, the queue's memory; every other key of the queue is made from its name
--   KEYS[2]  none    Q:absent, never there: so a cluster refuses the script while its slot moves
-- ARGV
--   ARGV[1]  string  which: "r", "a" or "o"
--   ARGV[2]  string  what it says
-- RETURNS
--   1 if it is new, 0 if it was there
-- KEEPS
--   7 repeatable, 8 works when memory is full

return redis.call('ZADD', Q .. 'k:' .. ARGV[1], 0, ARGV[2])
