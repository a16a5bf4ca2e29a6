-- Notes what is revoked, for workers that are not there to hear it, and tells what was noted.
-- KEYS  1 the ids, by the second of this server's clock in which they were revoked
-- ARGV  1 how many are kept, 2 for how many seconds, 3.. ids to note
-- RETURNS the ids, oldest first, when there are none to note
local now = tonumber(redis.call('TIME')[1])
for i = 3, #ARGV do
  redis.call('ZADD', KEYS[1], now, ARGV[i])
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[2])
redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -1 - ARGV[1])
if #ARGV > 2 then
  redis.call('EXPIRE', KEYS[1], ARGV[2])
  return 0
end
return redis.call('ZRANGE', KEYS[1], 0, -1)
