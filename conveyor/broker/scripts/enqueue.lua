#!lua flags=
-- Adds tasks: each becomes queued, or scheduled when it is due later.
--
-- USES      record clock ready finish
-- KEYS
--   KEYS[1]  hash    Q:m, the queue's memory; every other key of the queue is made from its name
--   KEYS[2]  none    Q:absent, never there: so a cluster refuses the script while its slot moves
-- ARGV
--   ARGV[1]  string  what to do if an id exists: "return", "error" (the same here) or "replace_ended"
--   ARGV[2]  ids     four arguments a task from here on: id; due ("" now, "+ms" from now, or POSIX ms);
--                    expires ("" never, "+ms" after due, or POSIX ms); record with its times zero
-- RETURNS
--   server time in ms, then for each task 1 if it was created, the record that already has its id, or
--   0 if what has its id is no record
-- KEEPS
--   1 one place per id, 4 server time, 5 bounded (the caller sends at most 100 tasks or 1 MiB),
--   7 repeating it adds nothing: the same call under the same id is ours, also where it has ended
--   and left no record

local function moment(text, base)
  if text == '' then return 0 end
  if string.sub(text, 1, 1) == '+' then return base + tonumber(string.sub(text, 2)) end
  return tonumber(text)
end

local function same_call(record, existing) return call_of(record) == call_of(existing) end

local some_are_gone = redis.call('EXISTS', Q .. 'gone') == 1

local function is_gone(id, record)
  local created = some_are_gone and redis.call('ZSCORE', Q .. 'gone', mark_of(id, record))
  return created and tonumber(created) > now - RESEND_MS
end

local function replace_if_ended(id, record)
  local existing = load(id)
  local set = existing and ENDED_SETS[state_of(existing)]
  if ARGV[1] ~= 'replace_ended' or not set or same_call(record, existing) then return end
  redis.call('ZREM', Q .. set, id)
  remove_record(id)
end

local function store(id, state, record, due, expires)
  local stamped = string.sub(record, 1, 2) .. string.char(state) .. string.sub(record, 4, 4)
    .. struct.pack('<I6', state == QUEUED and now or 0) .. string.sub(record, 11, 34)
    .. struct.pack('<I6I6I6', due, now, expires) .. string.sub(record, 53)
  return redis.call('SET', Q .. 't:' .. id, stamped, 'NX')
end

local function add(id, due_text, expires_text, record)
  if is_gone(id, record) then return 1 end
  replace_if_ended(id, record)
  local due = moment(due_text, now)
  local expires = moment(expires_text, math.max(due, now))
  local state = due > now and SCHEDULED or QUEUED
  if not store(id, state, record, due, expires) then
    local existing = load(id)
    return existing and same_call(record, existing) and 1 or existing or 0
  end
  if expires > 0 then
    redis.call('ZADD', Q .. 'e', expires, id)
    wake_orchestrator('due', expires)
  end
  if state == QUEUED then
    push_tail(id, record)
  else
    redis.call('ZADD', Q .. 's', due, id)
    wake_orchestrator('due', due)
  end
  return 1
end

local reply = { now }
for i = 2, #ARGV, 4 do reply[#reply + 1] = add(ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]) end
wake_workers(wake_orchestrator)
return reply
