#!lua flags=no-writes
-- Counts a queue's tasks and lists its live workers and what is parked.
--
-- USES      record clock pace
-- KEYS
--   KEYS[1]  hash    Q:m, the queue's memory; every other key of the queue is made from its name
--   KEYS[2]  none    Q:absent, never there: so a cluster refuses the script while its slot moves
-- ARGV
--   none
-- RETURNS
--   {server time in ms, counts (scheduled, queued, processing, success, failed, cancelled, parked),
--   workers (id, what is known, …), parked (id, reason, …: the first 20), memory (field, value, …),
--   runs that ended in the last minute, ms of it that are over}
-- KEEPS
--   5 bounded (1,000 workers)

local function size(set) return redis.call('ZCARD', Q .. set) end

local queued = -(tonumber(redis.call('HGET', M, 'tombstones')) or 0)
for _, lane in ipairs({ 'r', 'a' }) do
  for priority = 0, 9 do queued = queued + redis.call('LLEN', Q .. lane .. ':' .. priority) end
end

local workers = {}
for _, id in ipairs(redis.call('SMEMBERS', Q .. 'w')) do
  local about = redis.call('GET', Q .. 'w:' .. id)
  if about and #workers < 2000 then
    workers[#workers + 1] = id
    workers[#workers + 1] = about
  end
end

local parked = {}
for _, id in ipairs(redis.call('ZRANGE', Q .. 'parked', 0, 19)) do
  parked[#parked + 1] = id
  local reason = redis.pcall('HGET', Q .. 'x:' .. id, 'u')
  parked[#parked + 1] = type(reason) == 'string' and reason or ''
end

local counts = { size('s'), queued + size('parked'), size('l'), size('ok'), size('failed'), size('cancelled'), size('parked') }
local runs, span = recent_ends()
return { now, counts, workers, parked, redis.call('HGETALL', M), runs, span }
