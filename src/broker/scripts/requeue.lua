-- Gives a message back, if it is still held under that tag: repeated after a lost reply it does nothing.
-- KEYS  1 unacked, 2 unacked_index, 3 queue key
-- ARGV  1 tag, 2 the envelope, 3 "head" (behind everything) or "tail" (delivered next)
-- RETURNS 1 when it was given back
-- First what can be refused: a script that fails stops where it is.
redis.call('LLEN', KEYS[3])
if redis.call('HDEL', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call(ARGV[3] == 'head' and 'LPUSH' or 'RPUSH', KEYS[3], ARGV[2])
return 1
