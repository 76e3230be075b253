-- Moves what has come due, a bounded number a call: promotes, expires, reaps, gives up, trims.
-- Needs: record, clock, event, ready, finish, rerun.
-- Gives: expire, forget_recurring, leave_place, move_everything, pack_error, promote, reap.

local function pack_error(kind, message) return cmsgpack.pack({ kind, message, '' }) end

-- Takes what is due out of a set, one by one, until `limit` ids or enough bytes of records are moved.
local function move_due(set, limit, move)
  local due = redis.call('ZRANGEBYSCORE', Q .. set, '-inf', now, 'WITHSCORES', 'LIMIT', 0, limit)
  local before = loaded
  for i = 1, #due, 2 do
    if loaded - before >= ENOUGH then return (i - 1) / 2 end
    redis.call('ZREM', Q .. set, due[i])
    move(due[i], tonumber(due[i + 1]))
  end
  return #due / 2
end

local function promote_one(id)
  local record, reason = load(id)
  if not record then return set_aside(id, reason) end
  if state_of(record) ~= SCHEDULED then return set_aside(id, 'listed as scheduled but is not') end
  redis.call('SETRANGE', Q .. 't:' .. id, 2, string.char(QUEUED) .. string.sub(record, 4, 4) .. struct.pack('<I6', now))
  push_tail(id, record)
  tell('task_queued', id)
end

local function leave_place(id, state)
  if state == QUEUED then bury(id) elseif state == SCHEDULED then redis.call('ZREM', Q .. 's', id)
  elseif state == PARKED then redis.call('ZREM', Q .. 'parked', id) end
end

local function expire_one(id)
  local record = load(id)
  local state = record and state_of(record)
  if state ~= QUEUED and state ~= SCHEDULED and state ~= PARKED then return end
  leave_place(id, state)
  fail(id, record, pack_error('TaskExpired', 'Task has expired'))
end

-- A lease last renewed before the server's silence is given a whole new one.
local function silenced(record, expired_at)
  local gap = tonumber(memory[2])
  return gap and expired_at - read('I4', record, 77) <= gap
end

local function reap_one(id, expired_at)
  local record, reason = load(id)
  if not record then return set_aside(id, reason) end
  if state_of(record) ~= PROCESSING then return set_aside(id, 'leased but not processing') end
  if silenced(record, expired_at) then
    redis.call('ZADD', Q .. 'l', now + read('I4', record, 77), id)
  else
    after_stall(id, record, pack_error('TaskStalled', 'its worker died or went silent'))
  end
end

local function give_up_one(id)
  local record, reason = load(id)
  if not record then return set_aside(id, reason) end
  if state_of(record) ~= PARKED then return set_aside(id, 'listed as parked but is not') end
  redis.call('ZREM', Q .. 'e', id)
  fail(id, record, pack_error('UnknownTask', 'no worker knows a task named ' .. name_of(record)))
end

-- Whatever is known of a recurring entry.
local function forget_recurring(name)
  redis.call('ZREM', Q .. 'recurring:due', name)
  redis.call('ZREM', Q .. 'recurring:lapse', name)
  redis.call('HDEL', Q .. 'recurring:since', name)
  redis.call('HDEL', Q .. 'recurring:last', name)
  return redis.call('HDEL', Q .. 'recurring', name)
end

local function promote(limit) return move_due('s', limit, promote_one) end
local function expire(limit) return move_due('e', limit, expire_one) end
local function reap(limit) return move_due('l', limit, reap_one) end

-- The sets of each moment. What is due in one leads to sets further on only, so one pass sees all.
-- What recurs stays where it is until an orchestrator fires it: Lua cannot tell when it is due next.
local SETS = {
  due = { 'l', 'e', 's', 'recurring:due' },
  kept = { 'parked', 'ok', 'failed', 'cancelled', 'recurring:lapse' },
}
local MOVES = {
  l = reap_one, e = expire_one, s = promote_one, parked = give_up_one,
  ok = forget, failed = forget, cancelled = forget,
  ['recurring:lapse'] = forget_recurring,
}

local function head_of(set)
  local head = redis.call('ZRANGE', Q .. set, 0, 0, 'WITHSCORES')
  return tonumber(head[2]) or math.huge
end

-- Moves up to `limit` of each set of a kind that is due, and keeps when the next is.
local function move_kind(kind, limit)
  if moments[kind] and moments[kind] > now then return 0 end
  local moved, first = 0, math.huge
  for _, set in ipairs(SETS[kind]) do
    local score = head_of(set)
    if score <= now and MOVES[set] then
      moved = moved + move_due(set, limit, MOVES[set])
      score = head_of(set)
    end
    first = math.min(first, score)
  end
  if first < math.huge then redis.call('HSET', M, kind, first)
  elseif moments[kind] then redis.call('HDEL', M, kind) end
  moments[kind] = first
  return moved
end

local function move_everything(limit) return move_kind('due', limit) + move_kind('kept', limit) end
