#!lua flags=allow-oom
-- Registers a process to be told when tasks end; those that have ended are answered at once.
--
-- USES      record clock event ready finish
-- KEYS
--   KEYS[1]  hash    Q:m, the queue's memory; every other key of the queue is made from its name
--   KEYS[2]  none    Q:absent, never there: so a cluster refuses the script while its slot moves
-- ARGV
--   ARGV[1]  string  name of the process, whose channel is Q:d:<name>
--   ARGV[2]  flag    1: their worker has no room left but for what its runs wait for, so sync tasks
--                    among them go to the head, before every priority, now and whenever they are queued
--   ARGV[3]  ids     one argument a task from here on
-- RETURNS
--   for each id 1 (will be told), {record, extras} (has ended), or false (no such task); the last ids
--   are left out when there is too much to read: ask for them again
-- KEEPS
--   1 one place per id, 5 bounded (at most 100 ids, 1 MiB), 7 repeatable, 8 works when memory is full

local function change_flags(id, record, flag)
  local flags = string.char(bit.bor(string.byte(record, 4), flag))
  redis.call('SETRANGE', Q .. 't:' .. id, 3, flags)
  return string.sub(record, 1, 3) .. flags .. string.sub(record, 5)
end

local function hurry(id, record)
  if has_flag(record, ASYNC) or has_flag(record, HURRIED) then return end
  local hurried = change_flags(id, record, HURRIED)
  if state_of(record) == QUEUED then
    bury(id)
    push_head(id, hurried)
  end
end

local function register(id, record)
  local extra = extras(id)
  local waiters = redis.call('HGET', extra, 'w')
  if not waiters then
    redis.call('HSET', extra, 'w', ARGV[1])
  elseif not string.find(',' .. waiters .. ',', ',' .. ARGV[1] .. ',', 1, true) then
    redis.call('HSET', extra, 'w', waiters .. ',' .. ARGV[1])
  end
  record = change_flags(id, record, WAITED)
  if ARGV[2] == '1' then hurry(id, record) end
end

local reply = {}
for i = 3, #ARGV do
  if loaded >= ENOUGH then break end
  local record = load(ARGV[i])
  if not record then
    reply[#reply + 1] = false
  elseif ENDED_SETS[state_of(record)] then
    reply[#reply + 1] = { record, read_extras(ARGV[i]) }
  else
    register(ARGV[i], record)
    reply[#reply + 1] = 1
  end
end
wake_workers(wake_orchestrator)
return reply
