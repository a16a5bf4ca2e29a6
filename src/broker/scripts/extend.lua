-- Keeps leases fresh, by the server's clock.
-- KEYS  1 unacked_index
-- ARGV  1 seconds by which leases end before the visibility timeout, 2.. tags
-- RETURNS for each tag 1 when it is still ours, else 0
local time = redis.call('TIME')
local since = string.format('%.6f', time[1] + time[2] / 1000000 - ARGV[1])
local out = {}
for i = 2, #ARGV do
  if redis.call('ZSCORE', KEYS[1], ARGV[i]) then
    redis.call('ZADD', KEYS[1], 'XX', since, ARGV[i])
    out[i - 1] = 1
  else
    out[i - 1] = 0
  end
end
return out
