#!lua flags=no-writes
-- Lists recurring entries by the moment at which they are due.
--
-- USES      record
-- KEYS
--   KEYS[1]  hash    Q:m, the queue's memory; every other key of the queue is made from its name
--   KEYS[2]  none    Q:absent, never there: so a cluster refuses the script while its slot moves
-- ARGV
--   ARGV[1]  number  how many to pass over: start at 0, go on with what is returned
-- RETURNS
--   {where to go on, or -1 after the last; entries (name, due moment in ms, definition, "ms id" of the
--   last task or "", 1 if code declares it, …)}
-- KEEPS
--   5 bounded (100 entries, about 1 MiB)

local start = tonumber(ARGV[1])
local due = redis.call('ZRANGE', Q .. 'recurring:due', start, start + 99, 'WITHSCORES')
local entries, bytes = {}, 0
for i = 1, #due, 2 do
  local name = due[i]
  local definition = redis.call('HGET', Q .. 'recurring', name) or ''
  local parts = {
    name, tonumber(due[i + 1]), definition, redis.call('HGET', Q .. 'recurring:last', name) or '',
    redis.call('ZSCORE', Q .. 'recurring:lapse', name) and 1 or 0,
  }
  for _, part in ipairs(parts) do entries[#entries + 1] = part end
  bytes = bytes + #definition
  if bytes >= ENOUGH then break end
end
local seen = #entries / 5
return { (seen == 100 or bytes >= ENOUGH) and start + seen or -1, entries }
