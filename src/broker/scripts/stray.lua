-- Finds held messages that stand in no index, which nobody would restore: who took them died in between, or the server
-- evicted the index. Those that stood in none at the last look either get a place; their lease begins now.
-- KEYS  1 unacked, 2 unacked_index
-- ARGV  1 how many are looked at, by chance, 2.. tags that stood in no index at the last look
-- RETURNS how many were given a place, whether there are more messages than places, and the tags that were found
--       without one
local noted = 0
if #ARGV > 1 then
  local time = redis.call('TIME')
  local now = string.format('%.6f', time[1] + time[2] / 1000000)
  for i = 2, #ARGV do
    if redis.call('HEXISTS', KEYS[1], ARGV[i]) == 1 then
      noted = noted + redis.call('ZADD', KEYS[2], 'NX', now, ARGV[i])
    end
  end
end
local out = {noted, redis.call('HLEN', KEYS[1]) > redis.call('ZCARD', KEYS[2]) and 1 or 0}
for _, tag in ipairs(redis.call('HRANDFIELD', KEYS[1], ARGV[1])) do
  if not redis.call('ZSCORE', KEYS[2], tag) then out[#out + 1] = tag end
end
return out
