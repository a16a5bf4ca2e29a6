-- Takes the lock, or renews it. Tells the time as well: beats on several machines go by this one clock.
-- KEYS  1 lock
-- ARGV  1 token, 2 lifetime in ms
-- RETURNS 2 when it was taken, 1 when it was renewed, 0 when another has it; for how many ms; seconds; microseconds
local holder, time = redis.call('GET', KEYS[1]), redis.call('TIME')
local held = 0
if holder == ARGV[1] then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  held = 1
elseif not holder then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
  held = 2
end
return {held, redis.call('PTTL', KEYS[1]), tonumber(time[1]), tonumber(time[2])}
