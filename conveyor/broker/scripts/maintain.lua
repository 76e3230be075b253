#!lua flags=allow-oom
-- Moves everything that has come due, and says when the next thing will; reminds workers of what is
-- ready.
--
-- USES      record clock ready finish rerun due
-- KEYS
--   KEYS[1]  hash    Q:m, the queue's memory; every other key of the queue is made from its name
--   KEYS[2]  none    Q:absent, never there: so a cluster refuses the script while its slot moves
-- ARGV
--   ARGV[1]  number  most ids to move of each kind
-- RETURNS
--   {server time in ms, ids moved, next due moment in ms or -1, 1 if more is due now}
-- KEEPS
--   1 one place per id, 4 server time, 5 bounded (so many ids and 1 MiB of each kind), 9 unusable
--   records set aside, 10 any number of orchestrators may call it at once

-- A marker may have gone to a worker that died, or was stopped, before it claimed.
local function remind_workers()
  local lists = { r = {}, a = {} }
  for priority = 0, 9 do
    for lane, keys in pairs(lists) do keys[priority + 1] = Q .. lane .. ':' .. priority end
  end
  for lane, keys in pairs(lists) do
    if not touched[lane] and redis.call('EXISTS', unpack(keys)) > 0 then touched[lane] = true end
  end
  wake_workers()
end

local limit = tonumber(ARGV[1])
if next_due and next_due > now then
  remind_workers()
  return { now, 0, next_due, 0 }
end

remember_time()
local moved, first = move_everything(limit)
remind_workers()
if first < math.huge then redis.call('HSET', M, 'due', first) else redis.call('HDEL', M, 'due') end
return { now, moved, first < math.huge and first or -1, first <= now and 1 or 0 }
