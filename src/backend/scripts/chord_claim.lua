-- Keeps the right to end a chord a little longer, or takes it back when it ran out and nobody else has it.
-- KEYS  1 claim (.c), 2 size (.s)
-- ARGV  1 the claim, 2 seconds
-- RETURNS 1 when the caller has it
local holder = redis.call('GET', KEYS[1])
if holder == ARGV[1] or (not holder and redis.call('EXISTS', KEYS[2]) == 1) then
  redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
  return 1
end
return 0
