-- Publishes the message of an entry and writes down that it ran, in one step, and only while the lock is ours, the
-- entry is what we know and nobody else has run it since: no due time is sent twice, and asking again after a lost
-- reply does nothing.
-- KEYS  1 lock, 2 schedule, 3 disabled, 4 last_run_at, 5 total_run_count, 6 as the message says; without one none is sent
--       and only last_run_at is set
-- ARGV  1 token, 2 name, 3 the entry as we know it, 4 last_run_at as we know it, or '', 5 the new one,
--       6.. the message, as `receivers` takes it
-- RETURNS 1 when it was done, 0 when the lock is not ours, -1 when something is not as we know it
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if redis.call('HGET', KEYS[2], ARGV[2]) ~= ARGV[3] then return -1 end
if (redis.call('HGET', KEYS[4], ARGV[2]) or '') ~= ARGV[4] then return -1 end
if KEYS[6] then
  if redis.call('SISMEMBER', KEYS[3], ARGV[2]) == 1 then return -1 end
  -- First what can fail: a queue key that holds no list.
  local refusal = deliver(receivers(KEYS[6], 6), 6)
  if refusal then return refusal end
  redis.pcall('HINCRBY', KEYS[5], ARGV[2], 1)
end
redis.call('HSET', KEYS[4], ARGV[2], ARGV[5])
return 1
