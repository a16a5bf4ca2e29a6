-- Reads messages that we hold, and gives their leases a new beginning, by the server's clock.
-- KEYS  1 unacked, 2 unacked_index
-- ARGV  tags
-- RETURNS for each tag what is held, or nothing when it is not ours any more
local time = redis.call('TIME')
local now = time[1] .. '.' .. string.format('%06d', time[2])
local out = {}
for i = 1, #ARGV do
  local held = redis.call('HGET', KEYS[1], ARGV[i])
  if held then redis.call('ZADD', KEYS[2], 'XX', now, ARGV[i]) end
  out[i] = held
end
return out
