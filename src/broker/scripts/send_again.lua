-- Sends a message once more whose sending was not answered, unless it is there: among the newest of its list, or held by somebody.
-- What was taken and acknowledged meanwhile cannot be seen.
-- KEYS  1 its list, 2 unacked
-- ARGV  1 the envelope, 2 what no other message contains, 3 how many of the newest are looked at, 4 the most that are held, and
--       5 the bytes of one, where those are looked through
-- RETURNS 1 when it was sent, 0 when it was there
-- First what can be refused for good. A user may have no right to look further: then it is sent.
redis.call('LLEN', KEYS[1])
if type(redis.pcall('LPOS', KEYS[1], ARGV[1], 'MAXLEN', ARGV[3])) == 'number' then return 0 end
local tags, held = {}, redis.pcall('HLEN', KEYS[2])
if type(held) == 'number' and held <= tonumber(ARGV[4]) then
  tags = redis.pcall('HKEYS', KEYS[2])
  if tags.err then tags = {} end
end
for i = 1, #tags do
  local size = redis.pcall('HSTRLEN', KEYS[2], tags[i])
  if type(size) == 'number' and size <= tonumber(ARGV[5]) then
    local held = redis.call('HGET', KEYS[2], tags[i])
    if held and string.find(held, ARGV[2], 1, true) then return 0 end
  end
end
redis.call('LPUSH', KEYS[1], ARGV[1])
return 1
