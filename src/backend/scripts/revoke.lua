-- Marks a task as revoked that nobody has started: without a record, or PENDING, RECEIVED, RETRY or REJECTED.
-- KEYS  1 result key
-- ARGV  1 time to live in seconds (0 = for ever), 2 record
-- RETURNS 1 when it was stored
local head = redis.call('GETRANGE', KEYS[1], 0, 63)
if head ~= '' then
  -- The state is the first member of every record.
  local state = string.match(head, '^{%s*"status":%s*"(%u+)"')
  if state ~= 'PENDING' and state ~= 'RECEIVED' and state ~= 'RETRY' and state ~= 'REJECTED' then return 0 end
end
if tonumber(ARGV[1]) > 0 then
  redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[1])
else
  redis.call('SET', KEYS[1], ARGV[2])
end
redis.call('PUBLISH', KEYS[1], ARGV[2])
return 1
