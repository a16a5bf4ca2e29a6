-- Sends the body of a chord and ends the chord, in one step: it is sent once, whoever dies when.
-- KEYS  1 claim (.c), 2 results (.j), 3 tasks added later (.t), 4 size (.s), 5 counted already (.d), 6.. queues
-- ARGV  1 the claim, 2 seconds to remember that it is done, 3.. a message for each queue
-- RETURNS "sent", "done" (it was sent before), or "lost" (the claim is somebody else's)
local holder = redis.call('GET', KEYS[1])
if holder == 'done' then return 'done' end
if holder ~= ARGV[1] and not (not holder and redis.call('EXISTS', KEYS[4]) == 1) then return 'lost' end
-- First what can be refused: a script that fails stops where it is, and some would be sent.
for i = 6, #KEYS do redis.call('LLEN', KEYS[i]) end
for i = 6, #KEYS do redis.call('LPUSH', KEYS[i], ARGV[i - 3]) end
redis.call('DEL', KEYS[2], KEYS[3], KEYS[4], KEYS[5])
redis.call('SET', KEYS[1], 'done', 'EX', ARGV[2])
return 'sent'
