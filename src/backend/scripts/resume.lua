-- Writes down what a task waits for, and takes the message of a task that is put down. Whoever takes it sends it and
-- says so (`sent`); who comes again with the same name, having died before, takes it again.
-- KEYS  1 notes of the task, 2 tasks that are put down
-- ARGV  1 id, 2 name, 3 value
-- RETURNS {1 when the value is new and 0 when there was one, the message or nothing}
if redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('ZREM', KEYS[2], ARGV[1])
  return {-1, false}
end
local new = redis.call('HSETNX', KEYS[1], ARGV[2], ARGV[3])
local message = redis.call('HGET', KEYS[1], '@parked')
if message then
  redis.call('HDEL', KEYS[1], '@parked')
  redis.call('HSET', KEYS[1], '@sending', message, '@by', ARGV[2])
elseif new == 0 and redis.call('HGET', KEYS[1], '@by') == ARGV[2] then
  -- Nobody else: what two write down at once is sent once.
  message = redis.call('HGET', KEYS[1], '@sending')
end
redis.call('ZREM', KEYS[2], ARGV[1])
return {new, message}
