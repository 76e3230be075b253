-- Empties a queue's lists and sets, a bounded number of ids a call.
-- Needs: record, clock, ready, finish.
-- Gives: empty_lists, empty_set, is_spent, removed.

local room, gone = 100, 0

local function is_spent() return room <= 0 or loaded >= ENOUGH end
local function removed() return gone end

-- Has `remove` told of each id, its record if that can be used, or else the reason why not; gives how
-- many were looked at.
local function empty(ids, remove)
  for i, id in ipairs(ids) do
    if is_spent() then return i - 1 end
    room = room - 1
    local record, reason = load(id)
    if remove(id, record, reason) then gone = gone + 1 end
  end
  return #ids
end

local function empty_lists(remove)
  for priority = 9, 0, -1 do
    for _, lane in ipairs({ 'r', 'a' }) do
      local key = Q .. lane .. ':' .. priority
      if is_spent() then return end
      local used = empty(redis.call('LRANGE', key, 0, room - 1), remove)
      if used > 0 then redis.call('LPOP', key, used) end
    end
  end
end

local function empty_set(set, remove)
  if is_spent() then return end
  local ids = redis.call('ZRANGE', Q .. set, 0, room - 1)
  local used = empty(ids, remove)
  for i = 1, used do redis.call('ZREM', Q .. set, ids[i]) end
end
