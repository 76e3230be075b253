-- Server time that never runs backwards, and the moments orchestrators wake at.
-- Needs: record.
-- Gives: keep_moment, next_due, remember_time, since, wake_orchestrator.

-- Two moments, so that an orchestrator looks only where something is due: `due`, of the first lease,
-- expiry or scheduled task; and `kept`, until when the first parked or ended one is kept.
local memory = redis.call('HMGET', M, 'seen', 'gap', 'due', 'kept', 'hold', 'limit', 'unheard', 'since')
local time = redis.call('TIME')
local now = math.max(time[1] * 1000 + math.floor(time[2] / 1000), tonumber(memory[1]) or 0)
local moments = { due = tonumber(memory[3]), kept = tonumber(memory[4]) }
-- Until when nothing is claimed: for ever while the queue is paused, or as its rate limit has it.
local hold = tonumber(memory[5]) or 0
-- Whether nobody was listening when a script last looked.
local unheard = memory[7]

-- Since when the queue has been: what began before that was destroyed with the one before it.
local since = tonumber(memory[8]) or (memory[1] and 0 or now)

local function remember_time()
  redis.call('HSET', M, 'seen', now)
  if not memory[1] then redis.call('HSET', M, 'since', since) end
end

local function next_due()
  return math.min(moments.due or math.huge, moments.kept or math.huge)
end

-- Keeps that something is due at `moment`; true when that is the next thing.
local function keep_moment(kind, moment)
  if moments[kind] and moments[kind] <= moment then return false end
  local earlier = moment < next_due()
  moments[kind] = moment
  redis.call('HSET', M, kind, moment)
  return earlier
end

-- Makes sure that an orchestrator is awake at `moment`.
local function wake_orchestrator(kind, moment)
  if keep_moment(kind, moment) then redis.call('ZADD', Q .. 'k:o', 0, 'due') end
end
