-- Mailboxes: a worker blocks on its own, and is told there what to look at.
-- Needs: record.
-- Gives: GONE_MAIL, PARKED_MAIL, forget_worker, mail, stop_run, worker_of.

local MAILBOX_MS = 60000
-- Both are shorter than a token, so they cannot be taken for a run to stop.
local PARKED_MAIL = '\1parked'
local GONE_MAIL = '\1gone'

local function in_hex(bytes)
  return (string.gsub(bytes, '.', function(c) return string.format('%02x', string.byte(c)) end))
end

-- The worker that leased a record last.
local function worker_of(record) return in_hex(string.sub(record, 15, 18)) end

local function mail(worker, what)
  redis.call('ZADD', Q .. 'k:' .. worker, 0, what)
  redis.call('PEXPIRE', Q .. 'k:' .. worker, MAILBOX_MS)
end

-- Asks the worker of a running task to stop this run: another one of the task may follow.
local function stop_run(id, record) mail(worker_of(record), token_of(record) .. id) end

-- Removes all that there is of a worker.
local function forget_worker(worker)
  local bytes = string.gsub(worker, '%x%x', function(hex) return string.char(tonumber(hex, 16)) end)
  redis.call('SREM', Q .. 'w', worker)
  redis.call('DEL', Q .. 'w:' .. worker, Q .. 'k:' .. worker, Q .. 'c:' .. bytes)
end
