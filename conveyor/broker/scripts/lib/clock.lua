-- Server time that never runs backwards, and the moment orchestrators wake at.
-- Needs: record.
-- Gives: remember_time, wake_orchestrator.

local memory = redis.call('HMGET', M, 'seen', 'due', 'gap')
local time = redis.call('TIME')
local now = math.max(time[1] * 1000 + math.floor(time[2] / 1000), tonumber(memory[1]) or 0)
local next_due = tonumber(memory[2])

local function remember_time() redis.call('HSET', M, 'seen', now) end

-- Makes sure that an orchestrator is awake at `moment`.
local function wake_orchestrator(moment)
  if next_due and next_due <= moment then return end
  next_due = moment
  redis.call('HSET', M, 'due', moment)
  redis.call('ZADD', Q .. 'k:o', 0, 'due')
end
