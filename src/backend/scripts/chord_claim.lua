-- Keeps the right to end a chord a little longer, or takes it back when it ran out and nobody else has it. Tells the
-- number of this run of the chord, which is the same for whoever comes after: a frozen chord that is applied again has
-- the same group, but its parts are new, and the number counts only as long as it is among them.
-- KEYS  1 claim (.c), 2 size (.s), 3 counted already (.d), 4 number of the run (.r)
-- ARGV  1 the claim, 2 seconds, 3 a new number, 4 seconds to keep it
-- RETURNS the number, or nothing when the caller has the claim no more
local holder = redis.call('GET', KEYS[1])
if holder ~= ARGV[1] and (holder or redis.call('EXISTS', KEYS[2]) == 0) then return false end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
local run = redis.call('GET', KEYS[4])
if run and redis.call('SISMEMBER', KEYS[3], 'run:' .. run) == 1 then return run end
redis.call('SET', KEYS[4], ARGV[3], 'EX', ARGV[4])
redis.call('SADD', KEYS[3], 'run:' .. ARGV[3])
return ARGV[3]
