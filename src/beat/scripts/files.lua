-- Makes the entries that come from files what the files say, while the lock is ours. Entries made at run time stay,
-- except where a file has one of the same name.
-- KEYS  1 lock, 2 schedule, 3 disabled, 4 last_run_at, 5 total_run_count, 6 names of the entries from files
-- ARGV  1 token, then name and entry of each
-- RETURNS 1, or 0 when the lock is not ours
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
local wanted = {}
for i = 2, #ARGV, 2 do wanted[ARGV[i]] = true end
for _, name in ipairs(redis.call('SMEMBERS', KEYS[6])) do
  if not wanted[name] then
    for _, key in ipairs({KEYS[2], KEYS[4], KEYS[5]}) do redis.call('HDEL', key, name) end
    redis.call('SREM', KEYS[3], name)
    redis.call('SREM', KEYS[6], name)
  end
end
for i = 2, #ARGV, 2 do
  -- Only what changed, so that nobody is told of news that are none.
  if redis.call('HGET', KEYS[2], ARGV[i]) ~= ARGV[i + 1] then redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1]) end
  redis.call('SADD', KEYS[6], ARGV[i])
end
return 1
