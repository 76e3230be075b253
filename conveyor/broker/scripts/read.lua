#!lua flags=no-writes
-- Reads whole tasks.
--
-- USES      record
-- KEYS
--   KEYS[1]  hash    Q:m, the queue's memory; every other key of the queue is made from its name
--   KEYS[2]  none    Q:absent, never there: so a cluster refuses the script while its slot moves
-- ARGV
--   ARGV[1]  ids     one argument a task
-- RETURNS
--   for each id {record, extras (field, value, …)}, or false when there is no usable record; the last
--   ids are left out when there is too much to read: ask for them again
-- KEEPS
--   5 bounded (at most 100 ids, 1 MiB), 9 unusable records are absent, not errors

local reply = {}
for i, id in ipairs(ARGV) do
  if loaded >= ENOUGH then break end
  local record = load(id)
  reply[i] = record and { record, read_extras(id) } or false
end
return reply
