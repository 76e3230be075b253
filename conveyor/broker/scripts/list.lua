#!lua flags=no-writes
-- Lists tasks of one status, oldest first: scheduled ones as they come due, queued ones as they will
-- be claimed (priority by priority, then the parked), running ones by their start, ended ones by the
-- moment at which their record is removed.
--
-- USES      record
-- KEYS
--   KEYS[1]  hash    Q:m, the queue's memory; every other key of the queue is made from its name
--   KEYS[2]  none    Q:absent, never there: so a cluster refuses the script while its slot moves
-- ARGV
--   ARGV[1]  string  the status
--   ARGV[2]  number  entries that were looked at before: start at 0, go on with what is returned
--   ARGV[3]  number  tasks to pass over: start with the offset, go on with what is returned
--   ARGV[4]  number  most tasks to return (at most 100)
--   ARGV[5]  ids     from here on what earlier calls returned as met
-- RETURNS
--   {entries looked at or -1 at the end, tasks still to pass over, tasks (id, record, extras, …), ids
--   met that are also tombstones}
-- KEEPS
--   5 bounded (1,000 entries, 100 tasks, 1 MiB), 9 unusable records are absent, not errors

local SCAN, SORTED = 1000, 1000
local SETS = { scheduled = 's', processing = 'l', success = 'ok', failed = 'failed', cancelled = 'cancelled' }
local is_queued = ARGV[1] == 'queued'

local position, skip, want = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local tombstones = is_queued and tonumber(redis.call('HGET', M, 'tombstones')) or 0
local scanned, tasks, met, is_met = 0, {}, {}, {}
for i = 5, #ARGV do is_met[ARGV[i]] = true end

local function set_source(set)
  local key = Q .. set
  return redis.call('ZCARD', key), function(from, to) return redis.call('ZRANGE', key, from, to) end
end

local function list_source(list)
  local key = Q .. list
  return redis.call('LLEN', key), function(from, to) return redis.call('LRANGE', key, from, to) end
end

-- Renewals move a lease, so running tasks are put in the order of their starts, if they are not too many.
local function running_source()
  local count, range = set_source('l')
  if count > SORTED then return count, range end
  local ids, starts = range(0, -1), {}
  for _, id in ipairs(ids) do
    local start = redis.pcall('GETRANGE', Q .. 't:' .. id, 22, 27)
    starts[id] = type(start) == 'string' and #start == 6 and read('I6', start, 1) or 0
  end
  table.sort(ids, function(a, b)
    if starts[a] ~= starts[b] then return starts[a] < starts[b] end
    return a < b
  end)
  return count, function(from, to)
    local some = {}
    for i = from + 1, math.min(to + 1, count) do some[#some + 1] = ids[i] end
    return some
  end
end

-- An id that was cancelled and then enqueued again is claimed where it stands first.
local function is_tombstone(id)
  if tombstones == 0 or redis.call('HEXISTS', Q .. 'tombstones', id) == 0 then return false end
  if is_met[id] then return true end
  local record = load(id)
  if not record or state_of(record) ~= QUEUED then return true end
  is_met[id] = true
  met[#met + 1] = id
  return false
end

local function take(id)
  if skip > 0 then
    skip = skip - 1
    return
  end
  local record = load(id)
  if not record then return end
  tasks[#tasks + 1] = id
  tasks[#tasks + 1] = record
  tasks[#tasks + 1] = read_extras(id)
  want = want - 1
end

local function is_enough() return want <= 0 or scanned >= SCAN or loaded >= ENOUGH end

local function look_at(count, range, base, is_list)
  while position < base + count and not is_enough() do
    local from = position - base
    if skip > 0 and tombstones == 0 then
      local passed = math.min(skip, count - from)
      skip, position = skip - passed, position + passed
    else
      for _, id in ipairs(range(from, from + 99)) do
        if is_enough() then return end
        position, scanned = position + 1, scanned + 1
        if not is_list or not is_tombstone(id) then take(id) end
      end
    end
  end
end

local base = 0
local function look(count, range, is_list)
  if position < base + count then look_at(count, range, base, is_list) end
  base = base + count
end

local function look_at_queued()
  for priority = 9, 0, -1 do
    for _, lane in ipairs({ 'r', 'a' }) do
      local count, range = list_source(lane .. ':' .. priority)
      look(count, range, true)
    end
  end
  look(set_source('parked'))
end

if is_queued then
  look_at_queued()
elseif ARGV[1] == 'processing' then
  look(running_source())
else
  look(set_source(SETS[ARGV[1]]))
end
return { position < base and position or -1, skip, tasks, met }
