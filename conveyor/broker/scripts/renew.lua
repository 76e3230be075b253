#!lua flags=allow-oom
-- Extends leases by each task's stall timeout.
--
-- USES      record clock
-- KEYS
--   KEYS[1]  hash    Q:m, the queue's memory; every other key of the queue is made from its name
--   KEYS[2]  none    Q:absent, never there: so a cluster refuses the script while its slot moves
-- ARGV
--   ARGV[1]  leases  two arguments a lease: id; token
-- RETURNS
--   {one number a lease: 1 extended, 0 lost, 2 extended and the task's cancellation was asked for;
--   since when the queue has been, in ms: what was claimed before that was destroyed}
-- KEEPS
--   2 tokens compared item by item, 4 server time, 5 bounded (at most 100 leases), 8 works when
--   memory is full

local function renew(id, token)
  local record = load(id)
  if not record or token_of(record) ~= token or state_of(record) ~= PROCESSING then return 0 end
  -- Never earlier: notice may have been given for longer than a short lease, and nobody would wake.
  redis.call('ZADD', Q .. 'l', 'GT', now + read('I4', record, 77), id)
  return has_flag(record, CANCEL_ASKED) and 2 or 1
end

remember_time()
local verdicts = {}
for i = 1, #ARGV, 2 do verdicts[#verdicts + 1] = renew(ARGV[i], ARGV[i + 1]) end
return { verdicts, since }
