-- Moves an overdue message back to its queues, unless somebody was quicker: it must be unchanged and still overdue.
-- KEYS  1 unacked, 2 unacked_index, 3 binding set of its exchange, or a dead-letter list
-- ARGV  1 tag, 2 the value that was seen, 3 visibility timeout in seconds, 4 what to push, 5 longest dead-letter list,
--       0 when it goes to queues, 6 exchange, 7 routing key, 8 prefix of every key, 9 what follows a queue's name for
--       this priority, 10 separator in bindings
-- RETURNS 1 when it was moved
if ARGV[2] == '' then
  -- an index without a message: nothing to restore
  redis.call('ZREM', KEYS[2], ARGV[1])
  return 0
end
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
local score = redis.call('ZSCORE', KEYS[2], ARGV[1])
local time = redis.call('TIME')
if score and tonumber(score) > time[1] + time[2] / 1000000 - ARGV[3] then return 0 end
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
if ARGV[5] ~= '0' then
  redis.call('LPUSH', KEYS[3], ARGV[4])
  redis.call('LTRIM', KEYS[3], 0, tonumber(ARGV[5]) - 1)
  return 1
end
local queues = route(KEYS[3], ARGV[6], ARGV[7], ARGV[10])
for i = 1, #queues do redis.call('RPUSH', ARGV[8] .. queues[i] .. ARGV[9], ARGV[4]) end
return 1
