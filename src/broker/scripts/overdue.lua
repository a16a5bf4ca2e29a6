-- Finds held messages whose lease has run out, by the server's clock.
-- KEYS  1 unacked, 2 unacked_index
-- ARGV  1 visibility timeout in seconds, 2 how many of them are passed over, 3 how many are looked at, 4 bytes that are not
--       exceeded by more than one message, 5 a time after which nothing is taken for left behind, or ""
-- RETURNS -1 when it is later than that; else 1 when there are more, or 0; then a flat list: tag, stored value ("" when there is
--       none), SHA-1 of the value
local time = redis.call('TIME')
if ARGV[5] ~= '' and time[1] + time[2] / 1000000 > tonumber(ARGV[5]) then return {-1} end
local due, most = time[1] + time[2] / 1000000 - ARGV[1], tonumber(ARGV[3])
local tags = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', due, 'LIMIT', ARGV[2], most + 1)
local out, bytes = {#tags > most and 1 or 0}, 0
for i = 1, math.min(#tags, most) do
  local held = redis.call('HGET', KEYS[1], tags[i]) or ''
  bytes = bytes + #held
  if i > 1 and bytes > tonumber(ARGV[4]) then
    out[1] = 1
    break
  end
  out[#out + 1] = tags[i]
  out[#out + 1] = held
  out[#out + 1] = held == '' and '' or redis.sha1hex(held)
end
return out
