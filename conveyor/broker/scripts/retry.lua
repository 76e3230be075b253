#!lua flags=
-- Queues an ended task again, as if it had never run: its counters, error, result, progress and
-- expiry are cleared; its attempts, its data and its start counter stay.
--
-- USES      record clock event ready finish rerun
-- KEYS
--   KEYS[1]  hash    Q:m, the queue's memory; every other key of the queue is made from its name
--   KEYS[2]  none    Q:absent, never there: so a cluster refuses the script while its slot moves
-- ARGV
--   ARGV[1]  id      the task
--   ARGV[2]  bytes   a nonce, by which a repetition of this call is known
-- RETURNS
--   1 queued (also when this very call had queued it), 0 has not ended, -1 no such task
-- KEEPS
--   1 one place per id, 2 the start counter goes on, so tokens of old runs stay stale, 7 repeatable

-- Of a run that succeeded the record itself is the history, until now.
local function keep_success(id, record)
  note_attempt(id, record, 'success', '', read('I6', record, 29))
end

local function as_new(record)
  local flags = bit.band(string.byte(record, 4), bit.bnot(WAITED + CANCEL_ASKED + HURRIED))
  return string.sub(record, 1, 3) .. string.char(flags) .. string.sub(record, 5, 22)
    .. string.rep('\0', 12) .. string.sub(record, 35, 46) .. string.rep('\0', 18)
    .. string.sub(record, 65, length_without_result(record))
end

local id = ARGV[1]
local record = load(id)
if not record then return -1 end
local extra = extras(id)
if redis.call('HGET', extra, 'r') == ARGV[2] then return 1 end
local state = state_of(record)
if not ENDED_SETS[state] then return 0 end
redis.call('ZREM', Q .. ENDED_SETS[state], id)
if state == SUCCESS then keep_success(id, record) end
redis.call('HDEL', extra, 'e', 'p', 'w', 'u')
redis.call('HSET', extra, 'r', ARGV[2])
queue_again(id, as_new(record), push_tail)
wake_workers(wake_orchestrator)
return 1
