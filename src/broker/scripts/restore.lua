-- Moves an overdue message back to its queues, unless somebody was quicker: it must be unchanged and still overdue.
-- KEYS  1 unacked, 2 unacked_index, 3 binding set of its exchange, or a dead-letter list
-- ARGV  1 tag, 2 SHA-1 of the value that was seen, "" when there was none, 3 visibility timeout in seconds, 4 what to push,
--       5 longest dead-letter list, 0 when it goes to queues, 6 exchange, 7 routing key, 8 prefix of every key, 9 what
--       follows a queue's name for this priority, 10 separator in bindings
-- RETURNS 1 when it was moved; more by as many letters as it pushed out of a dead-letter list, the oldest
local held = redis.call('HGET', KEYS[1], ARGV[1])
if ARGV[2] == '' then
  -- an index without a message: nothing to restore
  if not held then redis.call('ZREM', KEYS[2], ARGV[1]) end
  return 0
end
if not held or redis.sha1hex(held) ~= ARGV[2] then return 0 end
local score = redis.call('ZSCORE', KEYS[2], ARGV[1])
local time = redis.call('TIME')
if score and tonumber(score) > time[1] + time[2] / 1000000 - ARGV[3] then return 0 end
-- First what can be refused.
local dies, lists = ARGV[5] ~= '0', nil
if dies then redis.call('LLEN', KEYS[3]) else lists = lists_of(KEYS[3], ARGV[6], ARGV[7], ARGV[10], ARGV[8], ARGV[9]) end
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
local refusal = push(dies and 'LPUSH' or 'RPUSH', dies and {KEYS[3]} or lists, ARGV[4])
if refusal then
  -- It stays where it was.
  redis.call('HSET', KEYS[1], ARGV[1], held)
  if score then redis.call('ZADD', KEYS[2], score, ARGV[1]) end
  return refusal
end
local over = dies and redis.call('LLEN', KEYS[3]) - ARGV[5] or 0
if over > 0 then
  redis.call('LTRIM', KEYS[3], 0, tonumber(ARGV[5]) - 1)
  return 1 + over
end
return 1
