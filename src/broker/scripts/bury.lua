-- Moves a held message to a dead-letter list, if it is still held under that tag.
-- KEYS  1 unacked, 2 unacked_index, 3 dead-letter list
-- ARGV  1 tag, "" for a message that is held nowhere, 2 the dead letter, 3 longest list
-- RETURNS 1 when it is in the list now; 'full' and how many letters that pushed out of it, the oldest
-- First what can be refused: a script that fails stops where it is.
redis.call('LLEN', KEYS[3])
if ARGV[1] ~= '' then
  if redis.call('HDEL', KEYS[1], ARGV[1]) == 0 then return 0 end
  redis.call('ZREM', KEYS[2], ARGV[1])
-- Sent once more, because the answer was lost. A user may have no right to look.
elseif type(redis.pcall('LPOS', KEYS[3], ARGV[2], 'MAXLEN', 1000)) == 'number' then
  return 1
end
local over = redis.call('LPUSH', KEYS[3], ARGV[2]) - ARGV[3]
if over <= 0 then return 1 end
redis.call('LTRIM', KEYS[3], 0, tonumber(ARGV[3]) - 1)
return {'full', over}
