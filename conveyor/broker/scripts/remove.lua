#!lua flags=allow-oom
-- Removes a task, whatever its state; the worker of a running one is asked to stop it, and the
-- outcome of that run will be refused.
--
-- USES      record clock event ready finish mail
-- KEYS
--   KEYS[1]  hash    Q:m, the queue's memory; every other key of the queue is made from its name
--   KEYS[2]  none    Q:absent, never there: so a cluster refuses the script while its slot moves
-- ARGV
--   ARGV[1]  id      the task
-- RETURNS
--   1 removed, 0 no such task
-- KEEPS
--   1 one place per id, 2 the run's token is no longer current, 7 repeatable, 8 works when memory is
--   full, 9 an unusable record is removed from wherever it may be

local id = ARGV[1]

-- A record that cannot be read does not say where its id is.
local function remove_unusable()
  for _, set in ipairs({ 's', 'l', 'parked', 'ok', 'failed', 'cancelled', 'e' }) do
    redis.call('ZREM', Q .. set, id)
  end
  redis.call('HDEL', Q .. 'broken', id)
  return redis.call('DEL', Q .. 't:' .. id, Q .. 'x:' .. id) > 0 and 1 or 0
end

local record = load(id)
if not record then return remove_unusable() end
local state = state_of(record)
if state == PROCESSING then
  redis.call('ZREM', Q .. 'l', id)
  stop_run(id, record)
elseif ENDED_SETS[state] then
  redis.call('ZREM', Q .. ENDED_SETS[state], id)
else
  leave_place(id, state)
end
redis.call('ZREM', Q .. 'e', id)
redis.call('HDEL', Q .. 'broken', id)
vanish(id, record)
return 1
