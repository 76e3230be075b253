#!lua flags=
-- Keeps what a running task says about itself: its progress or its data.
--
-- USES      record clock event
-- KEYS
--   KEYS[1]  hash    Q:m, the queue's memory; every other key of the queue is made from its name
--   KEYS[2]  none    Q:absent, never there: so a cluster refuses the script while its slot moves
-- ARGV
--   ARGV[1]  id      the task
--   ARGV[2]  token   of the run that speaks
--   ARGV[3]  field   "p" progress or "d" data
--   ARGV[4]  bytes   the encoded value
-- RETURNS
--   1 kept, 0 refused because the run has lost its lease
-- KEEPS
--   2 tokens compared, 7 repeatable

local record = load(ARGV[1])
if not record or token_of(record) ~= ARGV[2] or state_of(record) ~= PROCESSING then return 0 end
redis.call('HSET', extras(ARGV[1]), ARGV[3], ARGV[4])
tell(ARGV[3] == 'p' and 'task_progress_updated' or 'task_updated', ARGV[1], record, ARGV[4])
return 1
