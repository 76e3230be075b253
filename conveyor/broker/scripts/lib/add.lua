-- Adds a new task: queued, or scheduled when it is due later.
-- Needs: record, clock, event, ready.
-- Gives: add_new.

local function moment_of(text, base)
  if text == '' then return 0 end
  if string.sub(text, 1, 1) == '+' then return base + tonumber(string.sub(text, 2)) end
  return tonumber(text)
end

local function store(id, state, record, due, expires)
  local stamped = string.sub(record, 1, 2) .. string.char(state) .. string.sub(record, 4, 4)
    .. struct.pack('<I6', state == QUEUED and now or 0) .. string.sub(record, 11, 34)
    .. struct.pack('<I6I6I6', due, now, expires) .. string.sub(record, 53)
  return redis.call('SET', Q .. 't:' .. id, stamped, 'NX')
end

-- False when something has the id. Texts: "" (now; never), "+ms" (from now; after due), or POSIX ms.
local function add_new(id, due_text, expires_text, record)
  local due = moment_of(due_text, now)
  local expires = moment_of(expires_text, math.max(due, now))
  local state = due > now and SCHEDULED or QUEUED
  if not store(id, state, record, due, expires) then return false end
  if expires > 0 then
    redis.call('ZADD', Q .. 'e', expires, id)
    wake_orchestrator('due', expires)
  end
  if state == QUEUED then
    push_tail(id, record)
  else
    redis.call('ZADD', Q .. 's', due, id)
    wake_orchestrator('due', due)
  end
  tell(state == QUEUED and 'task_queued' or 'task_scheduled', id)
  return true
end
