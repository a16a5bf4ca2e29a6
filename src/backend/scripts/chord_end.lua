-- Ends a chord: its parts go, and late copies of them find that it is done. Only for the one who has the claim.
-- KEYS  1 claim (.c), 2 results (.j), 3 tasks added later (.t), 4 size (.s), 5 counted already (.d), 6 run (.r)
-- ARGV  1 the claim, 2 seconds to remember that it is done
-- RETURNS 1 when it ended
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6])
redis.call('SET', KEYS[1], 'done', 'EX', ARGV[2])
return 1
