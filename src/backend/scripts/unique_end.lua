-- Writes down how who has a key came to an end.
-- KEYS  1 the key
-- ARGV  1 the taker, 2 its task, 3 the state: AWAY when the task goes on elsewhere, nothing when the key is free again,
--       4 milliseconds for which that is known, 5 value, 6 traceback
-- RETURNS 1 when it is written down, 0 when somebody else has the key
local holder = redis.call('HGET', KEYS[1], 'holder')
if holder and holder ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
if ARGV[3] ~= '' then
  redis.call('HSET', KEYS[1], 'holder', ARGV[1], 'id', ARGV[2], 'state', ARGV[3], 'value', ARGV[5], 'traceback', ARGV[6])
  redis.call('PEXPIRE', KEYS[1], ARGV[4])
end
return 1
