#!lua flags=allow-oom
-- Moves everything that has come due, and says when the next thing will; reminds workers of what is
-- ready.
--
-- USES      record clock ready finish rerun due
-- KEYS
--   KEYS[1]  hash    Q:m, the queue's memory; every other key of the queue is made from its name
--   KEYS[2]  none    Q:absent, never there: so a cluster refuses the script while its slot moves
-- ARGV
--   ARGV[1]  number  most ids to move of each kind
-- RETURNS
--   {server time in ms, ids moved, next due moment in ms or -1, 1 if more is due now}
-- KEEPS
--   1 one place per id, 4 server time, 5 bounded (so many ids and 1 MiB of each kind), 9 unusable
--   records set aside, 10 any number of orchestrators may call it at once

local was_due = moments.due or 0
local moved = move_everything(tonumber(ARGV[1]))
if moved > 0 then remember_time() end
if was_due <= now then touch_lanes() end
wake_workers(keep_moment)
local first = next_due()
return { now, moved, first < math.huge and first or -1, first <= now and 1 or 0 }
