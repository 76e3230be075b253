#!lua flags=allow-oom
-- Removes a recurring entry; its tasks stay.
--
-- USES      record recurring
-- KEYS
--   KEYS[1]  hash    Q:m, the queue's memory; every other key of the queue is made from its name
--   KEYS[2]  none    Q:absent, never there: so a cluster refuses the script while its slot moves
-- ARGV
--   ARGV[1]  name    the entry
-- RETURNS
--   1 if there was one, 0 if not
-- KEEPS
--   7 repeatable, 8 works when memory is full

return forget_recurring(ARGV[1])
