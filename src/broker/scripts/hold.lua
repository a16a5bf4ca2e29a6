-- Writes a message down as unacknowledged that was in no queue: it is delivered when nobody keeps it fresh any more.
-- KEYS  1 unacked, 2 unacked_index
-- ARGV  1 tag, 2 what is held: [envelope, exchange, routing key], 3 seconds by which leases end
--       before the visibility timeout
-- RETURNS 1
local time = redis.call('TIME')
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('ZADD', KEYS[2], string.format('%.6f', time[1] + time[2] / 1000000 - ARGV[3]), ARGV[1])
return 1
