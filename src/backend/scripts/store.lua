-- Stores results and wakes those who wait for them. The first SUCCESS of a task stays: nothing overwrites it.
-- KEYS  result keys
-- ARGV  1 "1" when the caller has looked at what is compressed, else "0"; then, unless that is all, a "1" for each key
--       that somebody may begin to wait for just now, and a "0" for others
--       for each key: time to live in seconds (0 = for ever), record
-- What is refused for one key is not refused for the others: it is told at the end.
-- RETURNS how many were stored, or the first refusal, or "opaque" when a record was replaced that nobody has looked at, or the keys of which
--         somebody should have heard and nobody did, behind the word "unheard"
local function set(key, ttl, record, ...)
  if ttl == '0' then return redis.call('SET', key, record, ...) end
  return redis.call('SET', key, record, 'EX', ttl, ...)
end
local flags, stored, opaque, refusal = ARGV[1], 0, false, nil
local unheard = {'unheard'}
for i = 1, #KEYS do
  local ttl, record = ARGV[2 * i], ARGV[2 * i + 1]
  -- Mostly there is none yet, and one command is enough.
  local new = set(KEYS[i], ttl, record, 'NX')
  if not new then
    local now, why = state(KEYS[i])
    refusal = refusal or why
    opaque = opaque or now == 'opaque'
    if now ~= 'SUCCESS' and not why then
      new = set(KEYS[i], ttl, record)
    end
  end
  if new then
    local heard = redis.pcall('PUBLISH', KEYS[i], record)
    if type(heard) == 'table' then
      refusal = refusal or heard
    elseif heard == 0 and string.byte(flags, i + 1) == 49 then
      unheard[#unheard + 1] = KEYS[i]
    end
    stored = stored + 1
  end
end
if refusal then return refusal end
if opaque and string.byte(flags, 1) ~= 49 then return 'opaque' end
if #unheard > 1 then return unheard end
return stored
