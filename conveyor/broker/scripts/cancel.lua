#!lua flags=allow-oom
-- Cancels a task: at once when it is not running, else by asking its worker to stop it.
--
-- USES      record clock event ready finish mail
-- KEYS
--   KEYS[1]  hash    Q:m, the queue's memory; every other key of the queue is made from its name
--   KEYS[2]  none    Q:absent, never there: so a cluster refuses the script while its slot moves
-- ARGV
--   ARGV[1]  id      the task
-- RETURNS
--   1 cancelled or being stopped, 0 already ended, -1 no such task
-- KEEPS
--   1 one place per id, 7 repeatable, 8 works when memory is full

-- Renewals tell the worker again should this word be lost.
local function ask_worker(id, record)
  redis.call('SETRANGE', Q .. 't:' .. id, 3, string.char(bit.bor(string.byte(record, 4), CANCEL_ASKED)))
  stop_run(id, record)
end

local id = ARGV[1]
local record = load(id)
if not record then return -1 end
local state = state_of(record)
if ENDED_SETS[state] then return 0 end
if state == PROCESSING then
  ask_worker(id, record)
else
  leave_place(id, state)
  redis.call('ZREM', Q .. 'e', id)
  finish(id, record, CANCELLED)
end
return 1
