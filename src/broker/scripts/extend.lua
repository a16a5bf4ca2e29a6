-- Keeps leases fresh, by the server's clock.
-- KEYS  1 unacked_index
-- ARGV  tags
-- RETURNS for each tag 1 when it is still ours, else 0
local time = redis.call('TIME')
local now = time[1] .. '.' .. string.format('%06d', time[2])
local out = {}
for i = 1, #ARGV do
  if redis.call('ZSCORE', KEYS[1], ARGV[i]) then
    redis.call('ZADD', KEYS[1], 'XX', now, ARGV[i])
    out[i] = 1
  else
    out[i] = 0
  end
end
return out
