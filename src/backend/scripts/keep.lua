-- Keeps what a task has worked out so far, within a bound.
-- KEYS  1 notes of the task
-- ARGV  1 name, 2 value, 3 most bytes, 4 seconds
-- RETURNS 1 when it is kept, 0 when there is no room
local size = tonumber(redis.call('HGET', KEYS[1], '@bytes') or '0')
local old = redis.call('HSTRLEN', KEYS[1], ARGV[1])
size = size - old + string.len(ARGV[2])
if size > tonumber(ARGV[3]) then
  return 0
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2], '@bytes', size)
-- A task that waits for days keeps its notes for as long.
if redis.call('TTL', KEYS[1]) < tonumber(ARGV[4]) then
  redis.call('EXPIRE', KEYS[1], ARGV[4])
end
return 1
