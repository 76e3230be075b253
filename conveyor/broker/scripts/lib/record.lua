-- The packed record: its layout, and how to load one. records.py holds the same table for Python.
--
-- offset size field            offset size field             offset size field
--      1    1 version              29    6 ended                 65    4 retry limit
--      2    1 priority             35    6 due                   69    4 error retry limit
--      3    1 state                41    6 created               73    4 stall retry limit
--      4    1 flags                47    6 expires (0: never)    77    4 stall timeout
--      5    6 queued               53    4 error retries         81    4 acknowledgement interval
--     11    4 starts  } token      57    4 stall retries         85    6 retain success
--     15    8 nonce   }            61    4 interruptions         91    6 retain failed
--     23    6 started                                            97    2 length of name
-- Offsets count from 1; times and durations are ms.              99    4 length of payload
-- After the header: name, payload (opaque), and once it succeeded the result (opaque).
-- Gives: extras, has_flag, length_without_result, name_of, read, read_extras, set_aside, state_of,
-- token_of.

local VERSION, HEADER = 1, 102
local SCHEDULED, QUEUED, PROCESSING, SUCCESS, FAILED, CANCELLED, PARKED = 0, 1, 2, 3, 4, 5, 6
local REMOVE_ON_SUCCESS, REMOVE_ON_FAILED, WAITED, CANCEL_ASKED, ASYNC, HURRIED = 1, 2, 4, 8, 16, 32
local UNLIMITED = 4294967295
local FOREVER = 281474976710655

local Q = string.sub(KEYS[1], 1, -2)
local M = KEYS[1]

local function read(format, record, offset)
  return (struct.unpack('<' .. format, record, offset))
end

local function state_of(record) return string.byte(record, 3) end
local function token_of(record) return string.sub(record, 11, 22) end
local function has_flag(record, flag) return bit.band(string.byte(record, 4), flag) ~= 0 end

local function length_without_result(record)
  return HEADER + read('I2', record, 97) + read('I4', record, 99)
end

local function name_of(record)
  return string.sub(record, HEADER + 1, HEADER + read('I2', record, 97))
end

-- How many bytes of records this call has read, and about how many one loop may.
local loaded, ENOUGH = 0, 1048576

-- A record that can be used, or nil and the reason why not.
local function load(id)
  local record = redis.pcall('GET', Q .. 't:' .. id)
  if not record then return nil, 'missing' end
  if type(record) ~= 'string' then
    if string.sub(record.err, 1, 9) ~= 'WRONGTYPE' then error(record.err) end
    return nil, 'not a record'
  end
  loaded = loaded + #record
  if #record < HEADER then return nil, 'truncated' end
  if string.byte(record, 1) ~= VERSION then return nil, 'unknown version' end
  if #record < length_without_result(record) then return nil, 'truncated' end
  return record
end

-- Takes an unusable id out of circulation and keeps the reason, for people to see.
local function set_aside(id, reason)
  redis.call('HINCRBY', M, 'broken', 1)
  if redis.call('HLEN', Q .. 'broken') < 1000 then redis.call('HSET', Q .. 'broken', id, reason) end
end

-- The key of the hash beside a record. What is no hash there is of no use: it is dropped, and noted.
local function extras(id)
  local key = Q .. 'x:' .. id
  local kind = redis.call('TYPE', key).ok
  if kind ~= 'hash' and kind ~= 'none' then
    redis.call('DEL', key)
    set_aside(id, 'what lay beside the record was no hash')
  end
  return key
end

-- What the hash beside a record holds, for scripts that only read.
local function read_extras(id)
  local all = redis.pcall('HGETALL', Q .. 'x:' .. id)
  return all.err and {} or all
end
