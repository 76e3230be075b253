#!lua flags=allow-oom
-- Pauses a queue, resumes it, or sets or clears its rate limit; workers are told at once.
--
-- USES      record clock event ready
-- KEYS
--   KEYS[1]  hash    Q:m, the queue's memory; every other key of the queue is made from its name
--   KEYS[2]  none    Q:absent, never there: so a cluster refuses the script while its slot moves
-- ARGV
--   ARGV[1]  string  "pause", "resume" or "limit"
--   ARGV[2]  number  for "limit": most starts, or 0 for no limit
--   ARGV[3]  ms      for "limit": in any window of so long
-- RETURNS
--   1 changed, 0 it was so before
-- KEEPS
--   4 server time, 5 bounded, 7 repeatable, 8 works when memory is full; the starts that are noted
--   outlive another limit, so that setting it again and again allows no more of them

-- What a claim found no longer holds: the next one looks for itself.
local function let_go()
  redis.call('HDEL', M, 'hold')
  hold = 0
  touch_lanes()
  wake_workers(wake_orchestrator)
end

local function is_paused() return redis.call('HEXISTS', M, 'paused') == 1 end

local verbs = {}

function verbs.pause()
  redis.call('HSET', M, 'hold', FOREVER)
  local changed = redis.call('HSETNX', M, 'paused', now)
  if changed == 1 then tell('queue_paused') end
  return changed
end

function verbs.resume()
  local was_paused = redis.call('HDEL', M, 'paused')
  let_go()
  if was_paused == 1 then tell('queue_resumed') end
  return was_paused
end

function verbs.limit()
  local limit = ARGV[2] ~= '0' and ARGV[2] .. ':' .. ARGV[3] or false
  if redis.call('HGET', M, 'limit') == limit then return 0 end
  if limit then
    redis.call('HSET', M, 'limit', limit)
  else
    redis.call('HDEL', M, 'limit')
    redis.call('DEL', Q .. 'starts')
  end
  if not is_paused() then let_go() end
  local told = limit and cmsgpack.pack({ points = tonumber(ARGV[2]), duration = ARGV[3] / 1000 })
  tell('queue_rate_limit_updated', nil, nil, told)
  return 1
end

return verbs[ARGV[1]]()
