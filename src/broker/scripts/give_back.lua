-- Gives back messages that were never started, as they came, to be delivered next.
-- KEYS  1 unacked, 2 unacked_index, 3 queue key
-- ARGV  1 routing key, as JSON text without its quotes, 2.. tags
-- RETURNS how many were given back; what is not ours any more is left alone
-- First what can be refused: a script that fails stops where it is.
redis.call('LLEN', KEYS[3])
local tail, given = ',"","' .. ARGV[1] .. '"]', 0
for i = 2, #ARGV do
  local held = redis.call('HGET', KEYS[1], ARGV[i])
  if held and string.sub(held, -string.len(tail)) == tail then
    redis.call('HDEL', KEYS[1], ARGV[i])
    redis.call('ZREM', KEYS[2], ARGV[i])
    redis.call('RPUSH', KEYS[3], string.sub(held, 2, -string.len(tail) - 1))
    given = given + 1
  end
end
return given
