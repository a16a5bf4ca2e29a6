-- Keeps leases fresh, by the server's clock.
-- KEYS  1 unacked_index, 2 unacked
-- ARGV  1 seconds by which leases end before the visibility timeout, 2.. tags
-- RETURNS the time, seconds and microseconds; then for each tag 1 when it is still ours, else 0
-- A server whose memory is full refuses ZADD, but not to a script that has written: nothing grows by what is done here.
redis.call('ZREM', KEYS[1], '')
local time = redis.call('TIME')
local since = string.format('%.6f', time[1] + time[2] / 1000000 - ARGV[1])
local out = {tonumber(time[1]), tonumber(time[2])}
for i = 2, #ARGV do
  -- Who takes a message away from us removes it; one that is there and stands in no index has lost its place.
  if redis.call('ZSCORE', KEYS[1], ARGV[i]) or redis.call('HEXISTS', KEYS[2], ARGV[i]) == 1 then
    -- One that was parked meanwhile has more.
    redis.call('ZADD', KEYS[1], 'GT', since, ARGV[i])
    out[i + 1] = 1
  else
    out[i + 1] = 0
  end
end
return out
