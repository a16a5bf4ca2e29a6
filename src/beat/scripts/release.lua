-- Gives the lock back, if it is still ours, and tells those who wait for it.
-- KEYS  1 lock, 2 a key that they watch; the lock itself changes with every renewal
-- ARGV  1 token
-- RETURNS how many keys were removed
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[2], '', 'PX', 1000)
return redis.call('DEL', KEYS[1])
