-- Removes a name from hashes and from a set, in one step.
-- KEYS  hashes, then the set
-- ARGV  1 name
-- RETURNS 1
for i = 1, #KEYS - 1 do redis.call('HDEL', KEYS[i], ARGV[1]) end
redis.call('SREM', KEYS[#KEYS], ARGV[1])
return 1
