-- The rate limit: at most so many starts in any window of time, by a list of the last starts.
-- Needs: record, clock.
-- Gives: most_starts, note_starts.

local STARTS = Q .. 'starts'
local points, duration = string.match(memory[6] or '', '^(%d+):(%d+)$')
points, duration = tonumber(points), tonumber(duration)

-- Moments are whole ms, so two of them lie further apart than `duration` once they differ by more.
local function has_left_the_window(start) return now - tonumber(start) > duration end

-- How many of `want` tasks may start now: each beyond the first `points` follows one that has left.
local function most_starts(want)
  if hold > now then return 0 end
  if not points then return want end
  local noted = redis.call('LLEN', STARTS)
  local free = math.max(points - noted, 0)
  if free >= want then return want end
  -- After a higher limit more are noted than count.
  local first = math.max(noted - points, 0)
  for _, start in ipairs(redis.call('LRANGE', STARTS, first, first + want - free - 1)) do
    if not has_left_the_window(start) then break end
    free = free + 1
  end
  return free
end

-- Notes starts, and until when no other is allowed.
local function note_starts(count)
  if not points or hold > now then return end
  local moments = {}
  for i = 1, count do moments[i] = now end
  if count > 0 then
    redis.call('RPUSH', STARTS, unpack(moments))
    redis.call('LTRIM', STARTS, -points, -1)
  end
  local start = redis.call('LINDEX', STARTS, -points)
  if start and not has_left_the_window(start) then
    hold = tonumber(start) + duration + 1
    redis.call('HSET', M, 'hold', hold)
  end
end
