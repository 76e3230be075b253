-- Ends a task: final record, its retention, and the word to those who wait for it or listen.
-- Needs: record, clock, event.
-- Gives: RESEND_MS, call_of, fail, finish, forget, mark_of, remove_record, trim_to_cap, vanish.

local ENDED_SETS = { [SUCCESS] = 'ok', [FAILED] = 'failed', [CANCELLED] = 'cancelled' }
local ENDED_EVENTS = { [SUCCESS] = 'task_success', [FAILED] = 'task_fail', [CANCELLED] = 'task_cancelled' }
local INLINE_OUTCOME = 65536

local function remove_record(id)
  redis.call('DEL', Q .. 't:' .. id, Q .. 'x:' .. id)
end

-- How long after its creation a task may be sent again because the reply was lost.
local RESEND_MS = 10000

-- What identifies a call: everything between header and result, which under a custom id has a nonce.
local function call_of(record) return string.sub(record, HEADER + 1, length_without_result(record)) end

local function mark_of(id, record) return id .. ' ' .. string.sub(redis.sha1hex(call_of(record)), 1, 16) end

-- A task that ends without a record while it may be sent again is remembered, lest it run twice.
local function remember_gone(id, record)
  local created = read('I6', record, 41)
  if created <= now - RESEND_MS then return end
  redis.call('ZADD', Q .. 'gone', created, mark_of(id, record))
  redis.call('PEXPIRE', Q .. 'gone', RESEND_MS)
  local old = redis.call('ZRANGEBYSCORE', Q .. 'gone', '-inf', now - RESEND_MS, 'LIMIT', 0, 2)
  if #old > 0 then redis.call('ZREM', Q .. 'gone', unpack(old)) end
end

-- Removes an ended task whose time is over; few end and go so soon that the whole record is needed.
local function forget(id)
  local head = redis.pcall('GETRANGE', Q .. 't:' .. id, 0, 45)
  if type(head) == 'string' and #head == 46 then
    -- Sent again after its record was deleted by hand: another life.
    if string.byte(head) == VERSION and not ENDED_SETS[state_of(head)] then return end
    if read('I6', head, 41) > now - RESEND_MS then
      local record = load(id)
      if record then remember_gone(id, record) end
    end
  end
  remove_record(id)
end

local function tell_waiters(waiters, message)
  local packed = cmsgpack.pack(message)
  for waiter in string.gmatch(waiters or '', '[^,]+') do publish(Q .. 'd:' .. waiter, packed) end
end

-- A small outcome travels with the wake-up, and so does one whose record is gone.
local function publish_outcome(id, record, removed)
  local extra, message = extras(id), { id }
  local waiters = redis.call('HGET', extra, 'w')
  redis.call('HDEL', extra, 'w')
  if removed or #record <= INLINE_OUTCOME then
    message = { id, record, read_extras(id) }
  end
  tell_waiters(waiters, message)
end

-- Removes a task that has no outcome: those who wait for it are told to look.
local function vanish(id, record)
  local waiters = has_flag(record, WAITED) and redis.call('HGET', extras(id), 'w')
  remember_gone(id, record)
  remove_record(id)
  tell_waiters(waiters, { id })
end

local function trim_to_cap(set, cap)
  local excess = math.min(redis.call('ZCARD', set) - cap, 100)
  if excess <= 0 then return end
  local oldest = redis.call('ZPOPMIN', set, excess)
  for i = 1, #oldest, 2 do forget(oldest[i]) end
end

local function finish(id, record, state, result)
  local flags = string.byte(record, 4)
  local final = string.sub(record, 1, 2) .. string.char(state, flags) .. string.sub(record, 5, 28)
    .. struct.pack('<I6', now) .. string.sub(record, 35, length_without_result(record)) .. (result or '')
  local retain = read('I6', record, state == SUCCESS and 85 or 91)
  local removed = retain == 0 or (state == SUCCESS and has_flag(record, REMOVE_ON_SUCCESS))
    or (state == FAILED and has_flag(record, REMOVE_ON_FAILED))
  if has_flag(record, WAITED) then publish_outcome(id, final, removed) end
  tell(ENDED_EVENTS[state], id, final)
  tell('task_complete', id, final)
  redis.call('HINCRBY', M, ENDED_SETS[state], 1)
  if removed then
    remember_gone(id, record)
    return remove_record(id)
  end
  redis.call('SET', Q .. 't:' .. id, final)
  local until_when = retain == FOREVER and '+inf' or now + retain
  redis.call('ZADD', Q .. ENDED_SETS[state], until_when, id)
  if retain ~= FOREVER then wake_orchestrator('kept', until_when) end
end

local function fail(id, record, error)
  redis.call('HSET', extras(id), 'e', error)
  finish(id, record, FAILED)
end
