-- Moves what has come due, a bounded number a call: promotes, expires, reaps, gives up, trims.
-- Needs: record, clock, ready, finish, rerun.

local function pack_error(kind, message) return cmsgpack.pack({ kind, message, '' }) end

local function take_due(set, limit)
  local ids = redis.call('ZRANGEBYSCORE', Q .. set, '-inf', now, 'LIMIT', 0, limit)
  if #ids > 0 then redis.call('ZREM', Q .. set, unpack(ids)) end
  return ids
end

local function promote(limit)
  local ids = take_due('s', limit)
  for _, id in ipairs(ids) do
    local record, reason = load(id)
    if not record then
      set_aside(id, reason)
    elseif state_of(record) ~= SCHEDULED then
      set_aside(id, 'listed as scheduled but is not')
    else
      redis.call('SETRANGE', Q .. 't:' .. id, 2, string.char(QUEUED) .. string.sub(record, 4, 4) .. struct.pack('<I6', now))
      push_tail(id, record)
    end
  end
  return #ids
end

local function leave_place(id, state)
  if state == QUEUED then bury(id) elseif state == SCHEDULED then redis.call('ZREM', Q .. 's', id)
  elseif state == PARKED then redis.call('ZREM', Q .. 'parked', id) end
end

local function expire(limit)
  local ids = take_due('e', limit)
  for _, id in ipairs(ids) do
    local record = load(id)
    local state = record and state_of(record)
    if state == QUEUED or state == SCHEDULED or state == PARKED then
      leave_place(id, state)
      fail(id, record, pack_error('TaskExpired', 'Task has expired'))
    end
  end
  return #ids
end

-- A lease last renewed before the server's silence is given a whole new one.
local function silenced(record, expired_at)
  local gap = tonumber(memory[3])
  return gap and expired_at - read('I4', record, 77) <= gap
end

local function reap(limit)
  local due = redis.call('ZRANGEBYSCORE', Q .. 'l', '-inf', now, 'WITHSCORES', 'LIMIT', 0, limit)
  for i = 1, #due, 2 do
    local id, record, reason = due[i], load(due[i])
    if record and state_of(record) == PROCESSING and silenced(record, tonumber(due[i + 1])) then
      redis.call('ZADD', Q .. 'l', now + read('I4', record, 77), id)
    else
      redis.call('ZREM', Q .. 'l', id)
      if not record then
        set_aside(id, reason)
      elseif state_of(record) ~= PROCESSING then
        set_aside(id, 'leased but not processing')
      else
        after_stall(id, record, pack_error('TaskStalled', 'its worker died or went silent'))
      end
    end
  end
  return #due / 2
end

local function give_up_parked(limit)
  local ids = take_due('parked', limit)
  for _, id in ipairs(ids) do
    local record = load(id)
    if record and state_of(record) == PARKED then
      redis.call('ZREM', Q .. 'e', id)
      fail(id, record, pack_error('UnknownTask', 'no worker knows a task named ' .. name_of(record)))
    end
  end
  return #ids
end

local function trim(limit)
  local removed = 0
  for _, set in pairs(ENDED_SETS) do
    local ids = take_due(set, limit)
    for _, id in ipairs(ids) do remove_record(id) end
    removed = removed + #ids
  end
  return removed
end

-- The next moment at which something here comes due, or nil.
local function earliest()
  local first
  for _, set in ipairs({ 's', 'e', 'l', 'ok', 'failed', 'cancelled', 'parked' }) do
    local head = redis.call('ZRANGE', Q .. set, 0, 0, 'WITHSCORES')
    local score = tonumber(head[2])
    if score and score ~= math.huge and (not first or score < first) then first = score end
  end
  return first
end
