-- How fast runs end: how many did in each slice of ten seconds, for a minute.
-- Needs: record, clock.
-- Gives: note_ends, recent_ends.

local PACE, SLICE_MS, SLICES = Q .. 'pace', 10000, 6

local function slice_now() return math.floor(now / SLICE_MS) end

local function note_ends(count)
  local slice = slice_now()
  if redis.call('HINCRBY', PACE, slice, count) > count then return end
  for _, old in ipairs(redis.call('HKEYS', PACE)) do
    if tonumber(old) <= slice - SLICES then redis.call('HDEL', PACE, old) end
  end
  redis.call('PEXPIRE', PACE, SLICE_MS * SLICES)
end

-- How many runs have ended in the last minute, and in how many ms of it.
local function recent_ends()
  local first, ended = slice_now() - SLICES + 1, 0
  local slices = redis.call('HGETALL', PACE)
  for i = 1, #slices, 2 do
    if tonumber(slices[i]) >= first then ended = ended + slices[i + 1] end
  end
  return ended, now - first * SLICE_MS
end
