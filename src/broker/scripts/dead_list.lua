-- Looks at a dead-letter list, the oldest letter first, without sending what is large.
-- KEYS  1 dead-letter list
-- ARGV  1 how many to pass over, 2 how many, 3 longest letter that is given whole, in bytes
-- RETURNS a flat list: handle, bytes, the letter as far as that goes. A handle is made of what a letter begins with,
--       so that it is the same however many letters came or went
local out = {}
local length = redis.call('LLEN', KEYS[1])
local from, count = tonumber(ARGV[1]), tonumber(ARGV[2])
for n = from + 1, math.min(from + count, length) do
  local letter = redis.call('LINDEX', KEYS[1], -n)
  out[#out + 1] = string.sub(redis.sha1hex(#letter .. ':' .. string.sub(letter, 1, 4096)), 1, 12)
  out[#out + 1] = #letter
  out[#out + 1] = string.sub(letter, 1, tonumber(ARGV[3]))
end
return out
