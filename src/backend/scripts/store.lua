-- Stores results and wakes those who wait for them. The first SUCCESS of a task stays: nothing overwrites it.
-- KEYS  result keys
-- ARGV  for each key: time to live in seconds (0 = for ever), record
-- RETURNS how many were stored
local function set(key, ttl, record, ...)
  if ttl == '0' then return redis.call('SET', key, record, ...) end
  return redis.call('SET', key, record, 'EX', ttl, ...)
end
local stored = 0
for i = 1, #KEYS do
  local ttl, record = ARGV[2 * i - 1], ARGV[2 * i]
  -- Mostly there is none yet, and one command is enough.
  local new = set(KEYS[i], ttl, record, 'NX')
  if not new then
    -- The state is the first member of every record, in Python's spacing or in ours.
    local head = redis.call('GETRANGE', KEYS[i], 0, 20)
    if string.sub(head, 1, 20) ~= '{"status": "SUCCESS"' and string.sub(head, 1, 19) ~= '{"status":"SUCCESS"' then
      new = set(KEYS[i], ttl, record)
    end
  end
  if new then
    redis.call('PUBLISH', KEYS[i], record)
    stored = stored + 1
  end
end
return stored
