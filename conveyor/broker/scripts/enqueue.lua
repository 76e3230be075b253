#!lua flags=
-- Adds tasks: each becomes queued, or scheduled when it is due later.
--
-- USES      record clock event ready finish add
-- KEYS
--   KEYS[1]  hash    Q:m, the queue's memory; every other key of the queue is made from its name
--   KEYS[2]  none    Q:absent, never there: so a cluster refuses the script while its slot moves
-- ARGV
--   ARGV[1]  string  what to do if an id exists: "return", "error" (the same here) or "replace_ended"
--   ARGV[2]  ids     four arguments a task from here on: id; due ("" now, "+ms" from now, or POSIX ms);
--                    expires ("" never, "+ms" after due, or POSIX ms); record with its times zero
-- RETURNS
--   server time in ms, then for each task 1 if it was created, the record that already has its id
--   (without its result), or 0 if what has its id is no record
-- KEEPS
--   1 one place per id, 4 server time, 5 bounded (the caller sends at most 100 tasks or 1 MiB),
--   7 repeating it adds nothing: the same call under the same id is ours, also where it has ended
--   and left no record

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
  forget(id)
end

local function add(id, due_text, expires_text, record)
  if is_gone(id, record) then return 1 end
  replace_if_ended(id, record)
  if add_new(id, due_text, expires_text, record) then return 1 end
  local existing = load(id)
  if not existing then return 0 end
  return same_call(record, existing) and 1 or string.sub(existing, 1, length_without_result(existing))
end

local reply = { now }
for i = 2, #ARGV, 4 do reply[#reply + 1] = add(ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]) end
wake_workers(wake_orchestrator)
return reply
