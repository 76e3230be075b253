-- How fast runs end: how many did in each slice of ten seconds, for a minute.
-- Needs: record, clock.
-- Gives: note_ends, recent_ends.

local PACE, SLICE_MS, SLICES = Q .. 'pace', 10000, 6

local function slice_now() return math.floor(now / SLICE_MS) end

-- What is no count there is of no use, and makes way.
local function add_to(slice, count)
  local counted = redis.pcall('HINCRBY', PACE, slice, count)
  if type(counted) == 'number' then return counted end
  redis.call('DEL', PACE)
  return redis.call('HINCRBY', PACE, slice, count)
end

local function note_ends(count)
  local slice = slice_now()
  if add_to(slice, count) > count then return end
  for _, old in ipairs(redis.call('HKEYS', PACE)) do
    if (tonumber(old) or 0) <= slice - SLICES then redis.call('HDEL', PACE, old) end
  end
  redis.call('PEXPIRE', PACE, SLICE_MS * SLICES)
end

-- How many runs have ended in the last minute, and in how many ms of it.
local function recent_ends()
  local first, ended = slice_now() - SLICES + 1, 0
  local slices = redis.pcall('HGETALL', PACE)
  for i = 1, #slices, 2 do
    if (tonumber(slices[i]) or 0) >= first then ended = ended + (tonumber(slices[i + 1]) or 0) end
  end
  return ended, now - first * SLICE_MS
end
