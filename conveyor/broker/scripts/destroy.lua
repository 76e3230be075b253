#!lua flags=allow-oom
-- Removes everything of a queue, a bounded number of tasks a call: all tasks, running ones too (their
-- workers are asked to stop them), then what is known of workers, and in the end the queue's memory.
-- Nothing is claimed meanwhile, nor for a while after a call that is not followed by the next.
--
-- USES      record clock event ready finish purge mail
-- KEYS
--   KEYS[1]  hash    Q:m, the queue's memory; every other key of the queue is made from its name
--   KEYS[2]  none    Q:absent, never there: so a cluster refuses the script while its slot moves
-- ARGV
--   none
-- RETURNS
--   1 if there may be more, 0 when nothing of the queue is left
-- KEEPS
--   5 bounded (100 ids, 1 MiB), 7 repeatable, 8 works when memory is full, 9 unusable records are
--   removed as well

local HOLD_MS = 10000
local REST = {
  'recurring', 'recurring:due', 'recurring:since', 'recurring:lapse', 'recurring:last', 'e',
  'tombstones', 'gone', 'broken', 'starts', 'pace', 'k:r', 'k:a', 'k:o', 'm',
}

-- In one message, since its mailbox may be removed before it reads another. All runs before now are
-- gone, and none that begins now or later: nothing is claimed before the queue is.
local function stop_runs_of(worker) mail(worker, GONE_MAIL .. struct.pack('<I6', now)) end

-- A worker that was forgotten may have left something; one that is announced is seen to in the end.
local function forget_worker_of(record)
  local worker = worker_of(record)
  if redis.call('SISMEMBER', Q .. 'w', worker) == 0 then forget_worker(worker) end
end

local function remove(id, record)
  if not record then
    remove_record(id)
  else
    if state_of(record) == PROCESSING then stop_runs_of(worker_of(record)) end
    forget_worker_of(record)
    vanish(id, record)
  end
  return true
end

local function forget_broken()
  if is_spent() then return end
  for _, id in ipairs(redis.call('HRANDFIELD', Q .. 'broken', 100)) do
    remove(id, load(id))
    redis.call('HDEL', Q .. 'broken', id)
  end
end

-- Whoever renews a run that is gone by now learns that it was destroyed, and stops it.
redis.call('HSET', M, 'hold', math.max(hold, now + HOLD_MS), 'since', now)
empty_lists(function(id, record)
  if not record or state_of(record) ~= QUEUED then unbury(id) end
  return remove(id, record)
end)
for _, set in ipairs({ 'l', 's', 'parked', 'ok', 'failed', 'cancelled' }) do empty_set(set, remove) end
local broken = redis.call('EXISTS', Q .. 'broken')
forget_broken()
-- Workers are given until the next call to read what they were told.
if removed() > 0 or broken > 0 then return 1 end
local workers = redis.call('SRANDMEMBER', Q .. 'w', 100)
for _, worker in ipairs(workers) do forget_worker(worker) end
if #workers == 100 then return 1 end
for _, name in ipairs(REST) do redis.call('UNLINK', Q .. name) end
return 0
