-- Makes the entries that come from files what the files say, while the lock is ours. Entries made at run time stay,
-- except where a file has one of the same name. What was disabled stays so, also while a beat without its file sends.
-- KEYS  1 lock, 2 schedule, 3 last_run_at, 4 total_run_count, 5 names of the entries from files
-- ARGV  1 token, then name and entry of each
-- RETURNS 1, or 0 when the lock is not ours
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
local wanted = {}
for i = 2, #ARGV, 2 do wanted[ARGV[i]] = true end
for _, name in ipairs(redis.call('SMEMBERS', KEYS[5])) do
  if not wanted[name] then
    for key = 2, 4 do redis.call('HDEL', KEYS[key], name) end
    redis.call('SREM', KEYS[5], name)
  end
end
for i = 2, #ARGV, 2 do
  -- Only what changed, so that nobody is told of news that are none.
  if redis.call('HGET', KEYS[2], ARGV[i]) ~= ARGV[i + 1] then redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1]) end
  redis.call('SADD', KEYS[5], ARGV[i])
end
return 1
