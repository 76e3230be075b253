#!lua flags=
-- Keeps a recurring entry: a new one, a changed one, or one that goes on as it is.
--
-- USES      record clock
-- KEYS
--   KEYS[1]  hash    Q:m, the queue's memory; every other key of the queue is made from its name
--   KEYS[2]  none    Q:absent, never there: so a cluster refuses the script while its slot moves
-- ARGV
--   ARGV[1]  name    the entry
--   ARGV[2]  bytes   its definition: opaque but for its rhythm (see recurrence.py)
--   ARGV[3]  ms      the moment at which it is due next if it is new or has another rhythm than
--                    before, or "" to be asked for it only then
--   ARGV[4]  ms      how long it is kept unless it is declared again; 0: until it is removed
--   ARGV[5]  string  "replace", or "keep": whatever definition is there stays, and an entry that is
--                    kept until it is removed stays one
-- RETURNS
--   {server time in ms, 1 if it is kept, 0 if ARGV[3] is needed}
-- KEEPS
--   4 server time, 7 repeatable

local name, definition, next_moment, lapse = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local known = redis.call('HGET', Q .. 'recurring', name)
local due = known and redis.call('ZSCORE', Q .. 'recurring:due', name)
local keeps = due and ARGV[5] == 'keep'

-- Whatever else has changed, the next moment stays.
local function same_rhythm()
  local length = read('I2', definition, 1)
  return string.sub(known, 1, 2) == string.sub(definition, 1, 2)
    and string.sub(known, 5, 4 + length) == string.sub(definition, 5, 4 + length)
end

if not keeps then
  if not due or not same_rhythm() then
    if next_moment == '' then return { now, 0 } end
    redis.call('HDEL', Q .. 'recurring:since', name)
    redis.call('ZADD', Q .. 'recurring:due', next_moment, name)
    wake_orchestrator('due', tonumber(next_moment))
  end
  if known ~= definition then redis.call('HSET', Q .. 'recurring', name, definition) end
end

if lapse == 0 then
  redis.call('ZREM', Q .. 'recurring:lapse', name)
elseif not keeps or redis.call('ZSCORE', Q .. 'recurring:lapse', name) then
  redis.call('ZADD', Q .. 'recurring:lapse', now + lapse, name)
  wake_orchestrator('kept', now + lapse)
end
return { now, 1 }
