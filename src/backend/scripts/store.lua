-- Stores results and wakes those who wait for them. The first SUCCESS of a task stays: nothing overwrites it.
-- KEYS  result keys
-- ARGV  1 "1" when the caller has looked at what is compressed, then for each key: time to live in seconds (0 = for
--       ever), record
-- RETURNS how many were stored, or "opaque" when a record was replaced that nobody has looked at
local function set(key, ttl, record, ...)
  if ttl == '0' then return redis.call('SET', key, record, ...) end
  return redis.call('SET', key, record, 'EX', ttl, ...)
end
local stored, opaque = 0, false
for i = 1, #KEYS do
  local ttl, record = ARGV[2 * i], ARGV[2 * i + 1]
  -- Mostly there is none yet, and one command is enough.
  local new = set(KEYS[i], ttl, record, 'NX')
  if not new then
    local now = state(KEYS[i])
    opaque = opaque or now == 'opaque'
    if now ~= 'SUCCESS' then
      new = set(KEYS[i], ttl, record)
    end
  end
  if new then
    redis.call('PUBLISH', KEYS[i], record)
    stored = stored + 1
  end
end
if opaque and ARGV[1] ~= '1' then return 'opaque' end
return stored
