-- Marks a task as revoked that nobody has started: without a record, or PENDING, RECEIVED, RETRY or REJECTED.
-- KEYS  1 result key
-- ARGV  1 time to live in seconds (0 = for ever), 2 record, 3 "1" when the caller has looked at what is compressed
-- RETURNS 1 when it was stored, or "opaque" when it was not because nobody has looked
local now, refusal = state(KEYS[1])
if refusal then return refusal end
if now == 'opaque' then
  if ARGV[3] ~= '1' then return 'opaque' end
elseif now and now ~= 'PENDING' and now ~= 'RECEIVED' and now ~= 'RETRY' and now ~= 'REJECTED' then
  return 0
end
if tonumber(ARGV[1]) > 0 then
  redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[1])
else
  redis.call('SET', KEYS[1], ARGV[2])
end
redis.call('PUBLISH', KEYS[1], ARGV[2])
return 1
