-- Ready lists: one per lane (r: sync or unknown, a: async) and priority, with a marker per lane
-- that idle workers block on.
-- Needs: record, clock.
-- Gives: REMIND_MS, bury, drop, lane_of, leave_place, push_head, push_tail, touch_lanes, unbury,
-- wake_workers.

local REMIND_MS = 10000

local touched = {}

local function lane_of(record) return has_flag(record, ASYNC) and 'a' or 'r' end

-- What is hurried goes before every priority.
local function ready_list(record)
  local lane = lane_of(record)
  touched[lane] = true
  return Q .. lane .. ':' .. (has_flag(record, HURRIED) and 9 or string.byte(record, 2))
end

local function push_head(id, record) redis.call('LPUSH', ready_list(record), id) end
local function push_tail(id, record)
  if has_flag(record, HURRIED) then return push_head(id, record) end
  redis.call('RPUSH', ready_list(record), id)
end

-- Has `wake_workers` tell of every lane that has something in it.
local function touch_lanes()
  for _, lane in ipairs({ 'r', 'a' }) do
    local lists = {}
    for priority = 0, 9 do lists[priority + 1] = Q .. lane .. ':' .. priority end
    if redis.call('EXISTS', unpack(lists)) > 0 then touched[lane] = true end
  end
end

-- One marker wakes one worker; whoever claims and leaves work behind adds the next. Should the one
-- that it wakes die before, an orchestrator reminds the others. While nothing may be claimed it reminds
-- them when that is over.
local function wake_workers(tell_orchestrator)
  if not next(touched) then return end
  if hold > now then
    if hold < FOREVER then tell_orchestrator('due', hold) end
    return
  end
  for lane in pairs(touched) do redis.call('ZADD', Q .. 'k:' .. lane, 0, 'ready') end
  tell_orchestrator('due', now + REMIND_MS)
end

-- A queued id that ends without being claimed stays in its list as a tombstone.
local function bury(id)
  redis.call('HINCRBY', Q .. 'tombstones', id, 1)
  redis.call('HINCRBY', M, 'tombstones', 1)
end

-- Takes a task that is not running out of where it waits.
local function leave_place(id, state)
  if state == QUEUED then bury(id) elseif state == SCHEDULED then redis.call('ZREM', Q .. 's', id)
  elseif state == PARKED then redis.call('ZREM', Q .. 'parked', id) end
end

-- Accounts for a list entry that was taken out and was a tombstone; false if it was none.
local function unbury(id)
  if redis.call('HEXISTS', Q .. 'tombstones', id) == 0 then return false end
  if redis.call('HINCRBY', Q .. 'tombstones', id, -1) <= 0 then redis.call('HDEL', Q .. 'tombstones', id) end
  redis.call('HINCRBY', M, 'tombstones', -1)
  return true
end

-- The same of one that was dropped: if it is no tombstone it never should have been there.
local function drop(id, reason)
  if not unbury(id) then set_aside(id, reason or 'listed as ready but is not') end
end
