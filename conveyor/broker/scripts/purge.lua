#!lua flags=allow-oom
-- Removes tasks that wait, a bounded number a call: scheduled, queued and parked ones. Running and
-- ended ones stay.
--
-- USES      record clock event ready finish purge
-- KEYS
--   KEYS[1]  hash    Q:m, the queue's memory; every other key of the queue is made from its name
--   KEYS[2]  none    Q:absent, never there: so a cluster refuses the script while its slot moves
-- ARGV
--   none
-- RETURNS
--   {tasks removed, 1 if there may be more}
-- KEEPS
--   1 one place per id, 5 bounded (100 ids, 1 MiB), 7 repeatable, 8 works when memory is full,
--   9 unusable records set aside

local function remove(id, record)
  redis.call('ZREM', Q .. 'e', id)
  vanish(id, record)
end

empty_lists(function(id, record, reason)
  if not record or state_of(record) ~= QUEUED then
    drop(id, reason)
    return false
  end
  remove(id, record)
  return true
end)

for set, state in pairs({ s = SCHEDULED, parked = PARKED }) do
  empty_set(set, function(id, record, reason)
    if not record or state_of(record) ~= state then
      set_aside(id, reason or 'listed as waiting but is not')
      return false
    end
    remove(id, record)
    return true
  end)
end
return { removed(), is_spent() and 1 or 0 }
