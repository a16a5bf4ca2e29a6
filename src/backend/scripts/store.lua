-- Stores results and wakes those who wait for them. The first SUCCESS of a task stays: nothing overwrites it.
-- KEYS  result keys
-- ARGV  1 a digit: 1 when the caller has looked at what is compressed, 2 more when the message of each task is here as well
--       and goes when its record is stored, which is small; then, unless that is all, a "1" for each key that somebody may
--       begin to wait for just now, and a "0" for others
--       for each key: time to live in seconds (0 = for ever), record
-- What is refused for one key is not refused for the others: it is told at the end.
-- RETURNS how many were stored, or the first refusal, or "opaque" when a record was replaced that nobody has looked at, or the keys of which
--         somebody should have heard and nobody did, behind the word "unheard"
local flags, stored, opaque, refusal = ARGV[1], 0, false, nil
local how = string.byte(flags, 1) - 48
local looked, makes_room = how % 2 == 1, how >= 2
local function set(key, ttl, record, ...)
  if ttl == '0' then return redis.pcall('SET', key, record, ...) end
  return redis.pcall('SET', key, record, 'EX', ttl, ...)
end
-- What to do about a refusal. A server whose memory is full refuses to store, but not to a script that has written: what makes
-- room would wait for ever for a queue that has filled the memory itself.
local function refused(answer, ...)
  if makes_room and string.find(answer.err, 'OOM', 1, true) then
    redis.pcall('ZREM', KEYS[1], '')
    answer = set(...)
    if not answer or not answer.err then return answer end
  end
  return nil, answer
end
local unheard = {'unheard'}
for i = 1, #KEYS do
  local ttl, record = ARGV[2 * i], ARGV[2 * i + 1]
  -- Mostly there is none yet, and one command is enough.
  local new, why = set(KEYS[i], ttl, record, 'NX'), nil
  if new and new.err then new, why = refused(new, KEYS[i], ttl, record, 'NX') end
  if not new and not why then
    local now
    now, why = state(KEYS[i])
    opaque = opaque or now == 'opaque'
    if now ~= 'SUCCESS' and not why then
      new = set(KEYS[i], ttl, record)
      if new.err then new, why = refused(new, KEYS[i], ttl, record) end
    end
  end
  -- Nothing overtakes what is put off.
  if why and string.find(why.err, 'OOM', 1, true) then return why end
  refusal = refusal or why
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
if opaque and not looked then return 'opaque' end
if #unheard > 1 then return unheard end
return stored
