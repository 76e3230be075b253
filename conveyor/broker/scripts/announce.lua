#!lua flags=allow-oom
-- Tells listeners of a worker what the server cannot see for itself.
--
-- USES      record clock event
-- KEYS
--   KEYS[1]  hash    Q:m, the queue's memory; every other key of the queue is made from its name
--   KEYS[2]  none    Q:absent, never there: so a cluster refuses the script while its slot moves
-- ARGV
--   ARGV[1]  string  the event, such as "worker_paused"
--   ARGV[2]  string  the worker's id in hex
-- RETURNS
--   server time in ms
-- KEEPS
--   4 server time, 8 works when memory is full; changes nothing but what is heard

tell(ARGV[1], nil, nil, redis.call('GET', Q .. 'w:' .. ARGV[2]), ARGV[2])
return now
