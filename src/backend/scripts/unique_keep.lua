-- Says that those who have keys still live.
-- KEYS  the keys
-- ARGV  1 milliseconds until that must be said again, then the taker of each key
-- RETURNS how many are still theirs
local kept = 0
for i = 1, #KEYS do
  local has = redis.call('HMGET', KEYS[i], 'holder', 'state')
  if has[1] == ARGV[i + 1] and has[2] == 'HELD' then
    kept = kept + redis.call('PEXPIRE', KEYS[i], ARGV[1])
  end
end
return kept
