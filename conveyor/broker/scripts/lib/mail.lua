-- Mailboxes: a worker blocks on its own, and is told there what to look at.
-- Needs: record.
-- Gives: PARKED_MAIL, mail, worker_of.

local MAILBOX_MS = 60000
-- No task has such an id, so it cannot be taken for one to stop.
local PARKED_MAIL = '\1parked'

local function in_hex(bytes)
  return (string.gsub(bytes, '.', function(c) return string.format('%02x', string.byte(c)) end))
end

-- The worker that leased a record last.
local function worker_of(record) return in_hex(string.sub(record, 15, 18)) end

local function mail(worker, what)
  redis.call('ZADD', Q .. 'k:' .. worker, 0, what)
  redis.call('PEXPIRE', Q .. 'k:' .. worker, MAILBOX_MS)
end
