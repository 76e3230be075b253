#!lua flags=allow-oom
-- Ends leases, each with its outcome, and claims new work in the same round trip.
--
-- USES      record clock event ready finish rerun due mail limit pace
-- KEYS
--   KEYS[1]  hash    Q:m, the queue's memory; every other key of the queue is made from its name
--   KEYS[2]  none    Q:absent, never there: so a cluster refuses the script while its slot moves
-- ARGV
--   ARGV[1]  bytes   the worker's id (4 bytes)
--   ARGV[2]  number  number of this call, from 1: repeating a call returns the tasks it claimed before
--   ARGV[3]  number  most sync tasks to claim
--   ARGV[4]  number  most async tasks to claim
--   ARGV[5]  number  most successful records the queue keeps
--   ARGV[6]  ms      how long a task of unknown name stays parked
--   ARGV[7]  items   five arguments a lease from here on: id; token; outcome (success, error, timeout,
--                    fatal, fatal_timeout, stall, interrupted, cancelled, release, park); its bytes
--                    (result, error or reason); ms until the retry. What is released or interrupted goes to the head
--                    one by one: the last claimed comes first
-- RETURNS
--   {server time in ms, verdicts (one each: 1 accepted, 0 stale, 2 already settled), claimed (id,
--   record, id, record, …; after the record of a task that has run before, what lies beside it, as
--   msgpack), lanes with work left that may be claimed ("", "r", "a" or "ra"), 0 no rate limit, 1
--   there is one, 2 it holds back work}
-- KEEPS
--   1 one place per id, 2 tokens compared item by item, 4 server time, 5 bounded (at most 100 settled,
--   100 and 1 MiB claimed), 7 repeatable, 8 works when memory is full, 9 unusable records set aside

local CLAIM_BYTES, SCAN, MOST_TOLD = 1048576, 200, 100

local outcomes = {}
local parked_for

function outcomes.success(id, record, bytes) finish(id, record, SUCCESS, bytes) end

function outcomes.error(id, record, bytes, delay) after_error(id, record, ERROR, bytes, tonumber(delay), true) end

function outcomes.fatal(id, record, bytes) after_error(id, record, ERROR, bytes, 0, false) end

function outcomes.timeout(id, record, bytes, delay) after_error(id, record, TIMEOUT, bytes, tonumber(delay), true) end

function outcomes.fatal_timeout(id, record, bytes) after_error(id, record, TIMEOUT, bytes, 0, false) end

function outcomes.stall(id, record, bytes) after_stall(id, record, bytes) end

function outcomes.interrupted(id, record, bytes) after_interruption(id, record, bytes) end

function outcomes.release(id, record) release(id, record) end

function outcomes.cancelled(id, record)
  note_attempt(id, record, CANCELLATION, '')
  finish(id, record, CANCELLED)
end

function outcomes.park(id, record, reason)
  if cancelled_instead(id, record) then return end
  redis.call('SETRANGE', Q .. 't:' .. id, 2, string.char(PARKED))
  redis.call('HSET', extras(id), 'u', reason)
  redis.call('ZADD', Q .. 'parked', now + ARGV[6], id)
  wake_orchestrator('kept', now + ARGV[6])
  arm_expiry(id, record)
  tell('task_updated', id)
  parked_for = worker_of(record)
end

-- Another worker may know the name that this one does not: each looks for itself.
local function tell_other_workers(own)
  for _, worker in ipairs(redis.call('SRANDMEMBER', Q .. 'w', MOST_TOLD)) do
    if worker ~= own then mail(worker, PARKED_MAIL) end
  end
end

local ended = 0

local function settle(id, token, outcome, bytes, delay)
  local record = load(id)
  if not record or token_of(record) ~= token then return 0 end
  if state_of(record) ~= PROCESSING then return 2 end
  redis.call('ZREM', Q .. 'l', id)
  outcomes[outcome](id, record, bytes, delay)
  if outcome ~= 'release' and outcome ~= 'park' then ended = ended + 1 end
  return 1
end

local function settle_all()
  local verdicts = {}
  for i = 7, #ARGV, 5 do
    verdicts[#verdicts + 1] = settle(ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4])
  end
  if parked_for then tell_other_workers(parked_for) end
  if ended > 0 then note_ends(ended) end
  if #verdicts > 0 then trim_to_cap(Q .. 'ok', tonumber(ARGV[5])) end
  return verdicts
end

local call = tonumber(ARGV[2])
local claimed, leases, bytes = {}, {}, 0
local read_before = 0
local nonce = ARGV[1] .. struct.pack('<I4', call % 4294967296)

-- A later run is told what the earlier ones left beside the record: data, progress, errors.
local function give(id, record, starts)
  local left = starts > 1 and read_extras(id)
  if left and #left > 0 then record = record .. cmsgpack.pack(left) end
  claimed[#claimed + 1] = id
  claimed[#claimed + 1] = record
  bytes = bytes + #record
end

-- What was read counts as well: of expired and cancelled tasks none may be handed out.
local function has_enough() return math.max(bytes, loaded - read_before) >= CLAIM_BYTES end

-- Leases one queued record, unless it expired waiting. The nonce of the call makes the token unique
-- even where a restored server counts its starts again.
local function lease(id, record)
  local expires = read('I6', record, 47)
  if expires > 0 and not has_begun(record) then
    redis.call('ZREM', Q .. 'e', id)
    if expires <= now then return fail(id, record, pack_error('TaskExpired', 'Task has expired')) end
  end
  local starts = read('I4', record, 11) + 1
  local changed = string.char(PROCESSING) .. string.sub(record, 4, 10)
    .. struct.pack('<I4', starts) .. nonce .. struct.pack('<I6', now)
  redis.call('SETRANGE', Q .. 't:' .. id, 2, changed)
  local leased = string.sub(record, 1, 2) .. changed .. string.sub(record, 29)
  give(id, leased, starts)
  local expiry = now + read('I4', record, 77)
  leases[#leases + 1] = expiry
  leases[#leases + 1] = id
  wake_orchestrator('due', expiry)
  tell('task_processing', id, leased)
end

-- Takes up to `want` from one list; gives how many it took, how many it used up, and how many there
-- were to take.
local function claim_list(key, want)
  local taken = 0
  local ids = redis.call('LRANGE', key, 0, want - 1)
  local used = 0
  for _, id in ipairs(ids) do
    if has_enough() then break end
    local record, reason = load(id)
    if record and state_of(record) == QUEUED then
      if bytes > 0 and bytes + #record > CLAIM_BYTES then break end
      lease(id, record)
      taken = taken + 1
    else
      drop(id, reason)
    end
    used = used + 1
  end
  if used > 0 then redis.call('LPOP', key, used) end
  return taken, used, #ids
end

-- True when the lane still has work.
local function claim_lane(lane, want)
  local scanned = 0
  for priority = 9, 0, -1 do
    local key = Q .. lane .. ':' .. priority
    while true do
      if want <= 0 or scanned >= SCAN or has_enough() then
        if redis.call('LLEN', key) > 0 then return true end
        break
      end
      local asked = math.min(want, 100)
      local taken, used, found = claim_list(key, asked)
      want, scanned = want - taken, scanned + used
      if used < found then return true end
      if found < asked then break end
    end
  end
  return false
end

local LAST = Q .. 'c:' .. ARGV[1]

-- The answer of an earlier call with this number whose reply was lost; what moved on since is left
-- out. An earlier number comes from a connection that was given up: nobody reads the reply.
local function repeated()
  local last = redis.call('GET', LAST)
  local number = last and read('I6', last, 1) or 0
  if number < call then return false end
  if number > call then return true end
  for _, id in ipairs(cmsgpack.unpack(string.sub(last, 7))) do
    local record = load(id)
    if record and state_of(record) == PROCESSING and string.sub(record, 15, 22) == nonce then
      give(id, record, read('I4', record, 11))
    end
  end
  return true
end

local function remember_claim()
  local ids = {}
  for i = 1, #claimed, 2 do ids[#ids + 1] = claimed[i] end
  redis.call('SET', LAST, struct.pack('<I6', call) .. cmsgpack.pack(ids), 'PX', 120000)
end

local limited = points and 1 or 0

-- Without an orchestrator only a claim moves what has come due.
local function move_some()
  local moved = move_due('s', 20, promote_one) + move_due('l', 20, reap_one) + move_due('e', 20, expire_one)
  if moved > 0 then wake_orchestrator('due', now) end
end

local function claim(sync, async)
  move_some()
  read_before = loaded
  local left = ''
  local asks = { { 'r', sync }, { 'a', async } }
  -- Neither lane always takes what the rate limit allows. The ms is as good as a coin; the number of
  -- the call is not, where every other call only settles.
  if points and now % 2 == 0 then asks = { asks[2], asks[1] } end
  local most = most_starts(sync + async)
  for _, ask in ipairs(asks) do
    local lane, want = ask[1], ask[2]
    if want > 0 and claim_lane(lane, math.min(want, most - #leases / 2)) then
      left = left .. lane
      touched[lane] = true
    end
  end
  if #leases > 0 then redis.call('ZADD', Q .. 'l', unpack(leases)) end
  -- Of a queue that is being destroyed nothing is to be left.
  if #leases > 0 or points or hold <= now or hold >= FOREVER then remember_claim() end
  note_starts(#leases / 2)
  if hold <= now then return left end
  if left ~= '' and hold < FOREVER then limited = 2 end
  return ''
end

remember_time()
local verdicts = settle_all()
local left = ''
local sync, async = tonumber(ARGV[3]), tonumber(ARGV[4])
if sync + async > 0 and not repeated() then left = claim(sync, async) end
wake_workers(wake_orchestrator)
return { now, verdicts, claimed, left, limited }
