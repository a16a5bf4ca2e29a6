-- Reads messages that we hold, and gives their leases a new beginning, by the server's clock.
-- KEYS  1 unacked, 2 unacked_index
-- ARGV  1 seconds by which leases end before the visibility timeout, 2 bytes that are not exceeded by more than one message,
--       3.. tags
-- RETURNS for each tag what is held, or nothing when it is not ours any more; for the first of them when the others would
--       be too much at once
-- A server whose memory is full refuses ZADD, but not to a script that has written: nothing grows by what is done here.
redis.call('ZREM', KEYS[2], '')
local time = redis.call('TIME')
local since = string.format('%.6f', time[1] + time[2] / 1000000 - ARGV[1])
local out, bytes = {}, 0
for i = 3, #ARGV do
  local held = redis.call('HGET', KEYS[1], ARGV[i])
  if held then
    bytes = bytes + #held
    if i > 3 and bytes > tonumber(ARGV[2]) then break end
    redis.call('ZADD', KEYS[2], 'XX', since, ARGV[i])
  end
  out[i - 2] = held
end
return out
