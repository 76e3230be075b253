-- Moves what has come due, a bounded number a call: promotes, expires, reaps.
-- Needs: record, clock, event, ready, finish, rerun.
-- Gives: expire_one, move_due, pack_error, promote_one, reap_one.

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

local function expire_one(id)
  local record = load(id)
  local expires = record and read('I6', record, 47) or 0
  if expires == 0 or expires > now then return end
  local state = state_of(record)
  if state ~= QUEUED and state ~= SCHEDULED and state ~= PARKED then return end
  leave_place(id, state)
  fail(id, record, pack_error('TaskExpired', 'Task has expired'))
end

-- A lease that has run out is given notice first: after the server has hung, whoever reaps may come
-- before those that renew. A fraction marks a lease under notice.
local NOTICE_MS = 500.5

local function under_notice(expiry) return expiry % 1 > 0 end

-- A lease last renewed before the server's silence is given a whole new one.
local function silenced(record, expiry)
  local gap = tonumber(memory[2])
  if under_notice(expiry) then expiry = expiry - NOTICE_MS end
  return gap and expiry - read('I4', record, 77) <= gap
end

-- Its worker is a stranger now: with another token, what it says of the run is refused as stale.
local function without_its_call(record)
  return string.sub(record, 1, 18) .. '\0\0\0\0' .. string.sub(record, 23)
end

local function reap_one(id, expiry)
  local record, reason = load(id)
  if not record then return set_aside(id, reason) end
  if state_of(record) ~= PROCESSING then return set_aside(id, 'leased but not processing') end
  if silenced(record, expiry) then
    redis.call('ZADD', Q .. 'l', now + read('I4', record, 77), id)
  elseif not under_notice(expiry) then
    redis.call('ZADD', Q .. 'l', now + NOTICE_MS, id)
  else
    after_stall(id, without_its_call(record), pack_error('TaskStalled', 'its worker died or went silent'))
  end
end
