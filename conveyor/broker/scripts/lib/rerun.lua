-- What follows a run that did not succeed: its entry in the history, and another run or the end.
-- Needs: record, clock, event, ready, finish.
-- Gives: after_error, after_interruption, after_stall, arm_expiry, cancelled_instead, has_begun,
-- note_attempt, queue_again, release.

local ERROR, TIMEOUT, STALL = 'error', 'timeout', 'stall'
local INTERRUPTION, CANCELLATION = 'interrupted', 'cancelled'
local KEPT_ATTEMPTS = 10

-- What is no number there is of no use, and makes way.
local function count_run(id, extra)
  local count = redis.pcall('HINCRBY', extra, 'n', 1)
  if type(count) == 'number' then return count end
  set_aside(id, 'its runs were counted by no number')
  redis.call('HSET', extra, 'n', 1)
  return 1
end

-- `attempts` is a ring of the last runs in the task's hash: a0 to a9, `n` counts them all.
local function note_attempt(id, record, outcome, error, ended)
  local extra = extras(id)
  local count = count_run(id, extra)
  redis.call('HSET', extra, 'a' .. (count - 1) % KEPT_ATTEMPTS,
    struct.pack('<I6I6c4B', read('I6', record, 23), ended or now, string.sub(record, 15, 18), #outcome) .. outcome .. error)
  if error ~= '' then redis.call('HSET', extra, 'e', error) end
end

local function with_counters(record, errors, stalls, interruptions)
  return string.sub(record, 1, 52) .. struct.pack('<I4I4I4', errors, stalls, interruptions)
    .. string.sub(record, 65, length_without_result(record))
end

local function has_begun(record)
  return read('I4', record, 53) + read('I4', record, 57) + read('I4', record, 61) > 0
end

local function queue_again(id, record, push, event)
  local changed = string.sub(record, 1, 2) .. string.char(QUEUED) .. string.sub(record, 4, 4)
    .. struct.pack('<I6', now) .. string.sub(record, 11)
  redis.call('SET', Q .. 't:' .. id, changed)
  push(id, record)
  tell(event or 'task_queued', id, changed)
end

local function schedule_again(id, record, delay)
  local due = now + delay
  local changed = string.sub(record, 1, 2) .. string.char(SCHEDULED) .. string.sub(record, 4, 34)
    .. struct.pack('<I6', due) .. string.sub(record, 41)
  redis.call('SET', Q .. 't:' .. id, changed)
  redis.call('ZADD', Q .. 's', due, id)
  wake_orchestrator('due', due)
  tell('task_scheduled', id, changed)
end

local function run_again(id, record, delay)
  if delay > 0 then schedule_again(id, record, delay) else queue_again(id, record, push_tail) end
end

local function within(count, limit) return limit == UNLIMITED or count < limit end

local function may_retry(record, limit_offset, count_offset)
  local retries = read('I4', record, 53) + read('I4', record, 57)
  return within(retries, read('I4', record, 65))
    and within(read('I4', record, count_offset), read('I4', record, limit_offset))
end

-- Every way out of a run but success passes here: a cancelled task is not run again.
local function cancelled_instead(id, record)
  if not has_flag(record, CANCEL_ASKED) then return false end
  note_attempt(id, record, CANCELLATION, '')
  finish(id, record, CANCELLED)
  return true
end

-- A run that raised, or took too long: both are errors, and only the history tells them apart.
local function after_error(id, record, outcome, error, delay, retryable)
  if cancelled_instead(id, record) then return end
  note_attempt(id, record, outcome, error)
  tell('task_error', id, record)
  if not retryable or not may_retry(record, 69, 53) then return fail(id, record, error) end
  local errors = read('I4', record, 53) + 1
  run_again(id, with_counters(record, errors, read('I4', record, 57), read('I4', record, 61)), delay)
end

-- After its first stall a task is next in line, after later ones it waits: a task that kills its
-- process must not starve the rest.
local function after_stall(id, record, error)
  if cancelled_instead(id, record) then return end
  note_attempt(id, record, STALL, error)
  tell('task_stalled', id, record)
  if not may_retry(record, 73, 57) then return fail(id, record, error) end
  local stalls = read('I4', record, 57) + 1
  local counted = with_counters(record, read('I4', record, 53), stalls, read('I4', record, 61))
  if stalls == 1 then return queue_again(id, counted, push_head) end
  schedule_again(id, counted, math.min(1000 * 2 ^ (stalls - 2), 60000))
end

-- Whatever its limits of either kind, without a retry a task runs at most once.
local function at_most_once(record)
  return read('I4', record, 65) == 0 or (read('I4', record, 69) == 0 and read('I4', record, 73) == 0)
end

local function after_interruption(id, record, error)
  if cancelled_instead(id, record) then return end
  note_attempt(id, record, INTERRUPTION, error)
  if at_most_once(record) then return fail(id, record, error) end
  queue_again(id, with_counters(record, read('I4', record, 53), read('I4', record, 57), read('I4', record, 61) + 1),
    push_head)
end

-- A lease stopped the clock of a task that expires unless it has begun.
local function arm_expiry(id, record)
  local expires = read('I6', record, 47)
  if expires == 0 or has_begun(record) then return end
  redis.call('ZADD', Q .. 'e', expires, id)
  wake_orchestrator('due', expires)
end

-- Not begun, so nothing is counted; the head keeps its place.
local function release(id, record)
  if cancelled_instead(id, record) then return end
  arm_expiry(id, record)
  queue_again(id, record, push_head)
end
