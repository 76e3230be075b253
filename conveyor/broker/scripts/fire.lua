#!lua flags=
-- Fires a recurring entry: adds the tasks of the moments that have come, and keeps the next one.
--
-- USES      record clock event ready finish add
-- KEYS
--   KEYS[1]  hash    Q:m, the queue's memory; every other key of the queue is made from its name
--   KEYS[2]  none    Q:absent, never there: so a cluster refuses the script while its slot moves
-- ARGV
--   ARGV[1]  name    the entry
--   ARGV[2]  ms      the moment at which it was seen to be due
--   ARGV[3]  sha1    of the definition that was seen, in hex
--   ARGV[4]  ms      the moment at which it is due next
--   ARGV[5]  string  "allow", or "skip": no task is added while the one before has not ended; or
--                    "postpone": nothing is fired, and whoever looks again sees the same moment
--   ARGV[6]  ids     four arguments a moment from here on: id; the moment in POSIX ms; expires ("" never,
--                    "+ms" from now, or POSIX ms); record with its times zero
-- RETURNS
--   tasks added, or -1 when somebody else has fired it, or it was changed or removed meanwhile
-- KEEPS
--   1 one place per id, 4 server time, 5 bounded (the caller sends at most 100 tasks or 1 MiB), 7 a
--   compare and set: repeating it adds nothing, 10 any number of orchestrators may call it at once

local name = ARGV[1]
local due = tonumber(redis.call('HGET', Q .. 'recurring:since', name) or redis.call('ZSCORE', Q .. 'recurring:due', name))
local definition = redis.call('HGET', Q .. 'recurring', name) or ''
if due ~= tonumber(ARGV[2]) or redis.sha1hex(definition) ~= ARGV[3] then return -1 end

-- `last` is the moment and the id of the last task, "ms id".
local last = redis.call('HGET', Q .. 'recurring:last', name)

local function must_wait()
  if ARGV[5] ~= 'skip' or not last then return false end
  local record = load(string.match(last, ' (.*)'))
  return record and not ENDED_SETS[state_of(record)]
end

local added = 0
for i = 6, #ARGV, 4 do
  if not must_wait() then
    if add_new(ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]) then added = added + 1 end
    last = ARGV[i + 1] .. ' ' .. ARGV[i]
  end
end
if last then redis.call('HSET', Q .. 'recurring:last', name, last) end
if ARGV[5] == 'postpone' then redis.call('HSET', Q .. 'recurring:since', name, ARGV[2])
else redis.call('HDEL', Q .. 'recurring:since', name) end
redis.call('ZADD', Q .. 'recurring:due', ARGV[4], name)
wake_orchestrator('due', tonumber(ARGV[4]))
wake_workers(wake_orchestrator)
return added
