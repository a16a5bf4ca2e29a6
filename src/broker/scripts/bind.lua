-- Binds a queue that expires (kombu 5.7): the member, and when the exchange's table may go.
-- KEYS  1 binding set, 2 deadlines
-- ARGV  1 member, 2 exchange, 3 lifetime in ms
-- RETURNS 1
local time = redis.call('TIME')
redis.call('SADD', KEYS[1], ARGV[1])
redis.call('ZADD', KEYS[2], 'GT', time[1] * 1000 + math.floor(time[2] / 1000) + tonumber(ARGV[3]), ARGV[2])
return 1
