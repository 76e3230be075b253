-- Events: what happens to tasks, workers and the queue, told to listeners as it happens.
-- Needs: record, clock.
-- Gives: publish, tell.
--
-- A queue that nobody listens to costs one more field of its memory: `unheard` says that a script
-- counted the subscriptions and found none. A listener removes it once it has subscribed, so none is
-- overlooked, and one that is gone costs a single count. No field, as in a new queue, means: count.

local EVENTS = Q .. 'events'
-- Bytes above which a record goes without its call and result; as many have room beside it, and a
-- value that finds none is left empty, but for the error.
local LARGE = 32768

local listened

-- What is told must never undo what was done: where the server forbids it, the reason is kept for
-- people to see.
local function publish(channel, message)
  local heard = redis.pcall('SPUBLISH', channel, message)
  if type(heard) == 'table' then set_aside(channel, heard.err) end
end

-- Counted at most once a call, and not at all by a call with nothing to tell.
local function somebody_listens()
  if listened == nil then
    local listeners = unheard and 0 or redis.pcall('PUBSUB', 'SHARDNUMSUB', EVENTS)[2]
    listened = (listeners or 0) > 0
    if listeners == 0 and not unheard then redis.call('HSET', M, 'unheard', 1) end
  end
  return listened
end

local function without_call(record)
  local options = HEADER + read('I2', record, 97)
  if options + 2 > #record then return string.sub(record, 1, options) end
  return string.sub(record, 1, options + 2 + read('I2', record, options + 1))
end

local function described(id, record)
  record = record or redis.call('GET', Q .. 't:' .. id) or ''
  local extra, room = read_extras(id), LARGE
  for i = 1, #extra, 2 do
    local size = extra[i] == 'e' and 0 or #extra[i + 1]
    if size > room then extra[i + 1] = '' else room = room - size end
  end
  return #record > LARGE and without_call(record) or record, extra
end

-- Tells of a task by its id, with the record as it is now (nil: as it is kept), or, without an id, of
-- a worker or the queue. `data` is what the event brings, encoded.
local function tell(event, id, record, data, worker)
  if not somebody_listens() then return end
  local extra = {}
  if id then record, extra = described(id, record) end
  if data and #data > LARGE then data = '' end
  local message = { event, now, id or false, record or false, extra, data or false, worker or false }
  publish(EVENTS, cmsgpack.pack(message))
end
