-- Takes a key of tasks of which one is to run, unless another has it, or has ended with a result that counts.
-- KEYS  1 the key
-- ARGV  1 the taker, 2 its task, 3 milliseconds until it must have said that it lives, 4 states that count, each between commas
-- RETURNS nothing when it is the taker's now, otherwise taker, task, state, value and traceback of who has it
local has = redis.call('HMGET', KEYS[1], 'holder', 'id', 'state', 'value', 'traceback')
local holder, state = has[1], has[3]
if holder and holder ~= ARGV[1] then
  local goes_on = state == 'AWAY' and has[2] == ARGV[2]
  local counts = state == 'HELD' or state == 'AWAY' or string.find(ARGV[4], ',' .. state .. ',', 1, true)
  if counts and not goes_on then return has end
end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'holder', ARGV[1], 'id', ARGV[2], 'state', 'HELD')
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return false
