-- Recurring entries: what the queue keeps of one.
-- Needs: record.
-- Gives: forget_recurring.

-- Whatever is known of a recurring entry.
local function forget_recurring(name)
  redis.call('ZREM', Q .. 'recurring:due', name)
  redis.call('ZREM', Q .. 'recurring:lapse', name)
  redis.call('HDEL', Q .. 'recurring:since', name)
  redis.call('HDEL', Q .. 'recurring:last', name)
  return redis.call('HDEL', Q .. 'recurring', name)
end
