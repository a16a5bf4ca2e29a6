-- Finds held messages whose lease has run out, by the server's clock.
-- KEYS  1 unacked, 2 unacked_index
-- ARGV  1 visibility timeout in seconds, 2 how many
-- RETURNS a flat list: tag, stored value ("" when there is none)
local time = redis.call('TIME')
local tags = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', time[1] + time[2] / 1000000 - ARGV[1], 'LIMIT', 0, ARGV[2])
local out = {}
for i = 1, #tags do
  out[#out + 1] = tags[i]
  out[#out + 1] = redis.call('HGET', KEYS[1], tags[i]) or ''
end
return out
