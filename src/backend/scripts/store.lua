-- Stores results and wakes those who wait for them. The first SUCCESS of a task stays: nothing overwrites it.
-- KEYS  result keys
-- ARGV  for each key: time to live in seconds (0 = for ever), record
-- RETURNS how many were stored
local stored = 0
for i = 1, #KEYS do
  local ttl, record = tonumber(ARGV[2 * i - 1]), ARGV[2 * i]
  -- The state is the first member of every record, in Python's spacing or in ours.
  local head = redis.call('GETRANGE', KEYS[i], 0, 20)
  if string.sub(head, 1, 20) ~= '{"status": "SUCCESS"' and string.sub(head, 1, 19) ~= '{"status":"SUCCESS"' then
    if ttl > 0 then
      redis.call('SET', KEYS[i], record, 'EX', ttl)
    else
      redis.call('SET', KEYS[i], record)
    end
    redis.call('PUBLISH', KEYS[i], record)
    stored = stored + 1
  end
end
return stored
