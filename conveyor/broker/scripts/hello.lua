#!lua flags=allow-oom
-- Greets a server on every new connection of a worker or orchestrator: notices that it is another
-- one than before (restart, failover), and announces the worker to people.
--
-- USES      record clock event mail
-- KEYS
--   KEYS[1]  hash    Q:m, the queue's memory; every other key of the queue is made from its name
--   KEYS[2]  none    Q:absent, never there: so a cluster refuses the script while its slot moves
-- ARGV
--   ARGV[1]  string  the worker's id in hex, or "" for an orchestrator alone
--   ARGV[2]  ms      how long the announcement holds unless PEXPIRE prolongs it; 0 withdraws it
--   ARGV[3]  bytes   what is known about the worker (opaque)
-- RETURNS
--   server time in ms
-- KEEPS
--   4 server time, 7 repeatable, 8 works when memory is full; a server's silence is not a stall:
--   leases last renewed before it are given anew when they expire (see lib/due.lua)

-- The caller is not dead: what is known of its last claim is what that is answered with again.
local function forget_dead_workers()
  for _, id in ipairs(redis.call('SRANDMEMBER', Q .. 'w', 50)) do
    if id ~= ARGV[1] and redis.call('EXISTS', Q .. 'w:' .. id) == 0 then forget_worker(id) end
  end
end

local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
local known = redis.call('HGET', M, 'run')
if known ~= run then
  redis.call('HSET', M, 'run', run)
  if known and memory[1] then redis.call('HSET', M, 'gap', memory[1]) end
end
remember_time()

if ARGV[1] ~= '' then
  local ttl = tonumber(ARGV[2])
  forget_dead_workers()
  if ttl > 0 then
    redis.call('SET', Q .. 'w:' .. ARGV[1], ARGV[3], 'PX', ttl)
    if redis.call('SADD', Q .. 'w', ARGV[1]) == 1 then tell('worker_started', nil, nil, ARGV[3], ARGV[1]) end
  else
    local about = redis.call('GET', Q .. 'w:' .. ARGV[1])
    if redis.call('SREM', Q .. 'w', ARGV[1]) == 1 then tell('worker_shutdown', nil, nil, about, ARGV[1]) end
    forget_worker(ARGV[1])
  end
end
return now
