#!lua flags=allow-oom
-- Releases parked tasks whose names a worker knows.
--
-- USES      record clock event ready finish rerun
-- KEYS
--   KEYS[1]  hash    Q:m, the queue's memory; every other key of the queue is made from its name
--   KEYS[2]  none    Q:absent, never there: so a cluster refuses the script while its slot moves
-- ARGV
--   ARGV[1]  number  how many parked tasks to pass over: start at 0, go on with what is returned
--   ARGV[2]  number  how many to release at most
--   ARGV[3]  string  only those of this lane ("r" or "a"), or "" for both
--   ARGV[4]  names   one argument a task name from here on
--                    (whoever asks claims next: no marker wakes those that do not know the names,
--                    but an orchestrator reminds them, should the one that asked have died)
-- RETURNS
--   {where to go on, or -1 when all were looked at; how many were released}
-- KEEPS
--   1 one place per id, 5 bounded (100 ids, 1 MiB), 9 unusable records set aside

local known = {}
for i = 4, #ARGV do known[ARGV[i]] = true end

local start = tonumber(ARGV[1])
local ids = redis.call('ZRANGE', Q .. 'parked', start, start + 99)
local kept, released, most = 0, 0, tonumber(ARGV[2])
for _, id in ipairs(ids) do
  if loaded >= ENOUGH or released == most then break end
  local record, reason = load(id)
  if not record or state_of(record) ~= PARKED then
    redis.call('ZREM', Q .. 'parked', id)
    set_aside(id, reason or 'listed as parked but is not')
  elseif known[name_of(record)] and (ARGV[3] == '' or lane_of(record) == ARGV[3]) then
    redis.call('ZREM', Q .. 'parked', id)
    redis.call('HDEL', extras(id), 'u')
    queue_again(id, record, push_tail, 'task_updated')
    released = released + 1
  else
    kept = kept + 1
  end
end
if released > 0 then wake_orchestrator('due', now + REMIND_MS) end
local more = #ids == 100 or loaded >= ENOUGH or released == most
return { more and start + kept or -1, released }
