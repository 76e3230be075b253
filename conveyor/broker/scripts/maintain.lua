#!lua flags=allow-oom
-- Moves everything that has come due, and says when the next thing will, and which recurring entries
-- are to be fired; reminds workers of what is ready.
--
-- USES      record clock event ready finish rerun due recurring
-- KEYS
--   KEYS[1]  hash    Q:m, the queue's memory; every other key of the queue is made from its name
--   KEYS[2]  none    Q:absent, never there: so a cluster refuses the script while its slot moves
-- ARGV
--   ARGV[1]  number  most ids to move of each kind
-- RETURNS
--   {server time in ms, ids moved, next due moment in ms or -1, 1 if more is due now, due entries
--   (name, due moment in ms, definition, …: at most 20 and about 1 MiB)}
-- KEEPS
--   1 one place per id, 4 server time, 5 bounded (so many ids and 1 MiB of each kind), 9 unusable
--   records set aside, 10 any number of orchestrators may call it at once

local function give_up_one(id)
  local record, reason = load(id)
  if not record then return set_aside(id, reason) end
  if state_of(record) ~= PARKED then return set_aside(id, 'listed as parked but is not') end
  redis.call('ZREM', Q .. 'e', id)
  fail(id, record, pack_error('UnknownTask', 'no worker knows a task named ' .. name_of(record)))
end

-- The sets of each moment. What is due in one leads to sets further on only, so one pass sees all.
-- What recurs stays where it is until an orchestrator fires it: Lua cannot tell when it is due next.
local SETS = {
  due = { 'l', 'e', 's', 'recurring:due' },
  kept = { 'parked', 'ok', 'failed', 'cancelled', 'recurring:lapse' },
}
local MOVES = {
  l = reap_one, e = expire_one, s = promote_one, parked = give_up_one,
  ok = forget, failed = forget, cancelled = forget,
  ['recurring:lapse'] = forget_recurring,
}

local function head_of(set)
  local head = redis.call('ZRANGE', Q .. set, 0, 0, 'WITHSCORES')
  return math.ceil(tonumber(head[2]) or math.huge)
end

-- Moves up to `limit` of each set of a kind that is due, and keeps when the next is.
local function move_kind(kind, limit)
  if moments[kind] and moments[kind] > now then return 0 end
  local moved, first = 0, math.huge
  for _, set in ipairs(SETS[kind]) do
    local score = head_of(set)
    if score <= now and MOVES[set] then
      moved = moved + move_due(set, limit, MOVES[set])
      score = head_of(set)
    end
    first = math.min(first, score)
  end
  if first < math.huge then redis.call('HSET', M, kind, first)
  elseif moments[kind] then redis.call('HDEL', M, kind) end
  moments[kind] = first
  return moved
end

local function due_entries()
  local due = redis.call('ZRANGEBYSCORE', Q .. 'recurring:due', '-inf', now, 'WITHSCORES', 'LIMIT', 0, 20)
  local entries, bytes = {}, 0
  for i = 1, #due, 2 do
    local definition = redis.call('HGET', Q .. 'recurring', due[i])
    if definition then
      local moment = redis.call('HGET', Q .. 'recurring:since', due[i]) or due[i + 1]
      for _, part in ipairs({ due[i], tonumber(moment), definition }) do entries[#entries + 1] = part end
      bytes = bytes + #definition
      if bytes >= ENOUGH then break end
    else
      forget_recurring(due[i])
      set_aside(due[i], 'listed as recurring but has no definition')
    end
  end
  return entries
end

local was_due = moments.due or 0
local limit = tonumber(ARGV[1])
local moved = move_kind('due', limit) + move_kind('kept', limit)
if moved > 0 then remember_time() end
if was_due <= now then touch_lanes() end
wake_workers(keep_moment)
local first = next_due()
local entries = first <= now and due_entries() or {}
return { now, moved, first < math.huge and first or -1, first <= now and 1 or 0, entries }
