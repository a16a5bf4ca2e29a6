-- Puts a task down until one of the things it waits for is there.
-- KEYS  1 notes of the task, 2 tasks that are put down
-- ARGV  1 id, 2 message, 3 seconds, 4 now, then the names of what is waited for
-- RETURNS 1 when it is put down, 0 when something is there already
for i = 5, #ARGV do
  if redis.call('HEXISTS', KEYS[1], ARGV[i]) == 1 then
    return 0
  end
end
redis.call('HSET', KEYS[1], '@parked', ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[3])
-- Those whose notes have gone with time are put down no more. Nothing but this list knows them, and others may have less time:
-- none is taken away that a template put down, which keeps its notes for 30 days.
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', ARGV[4] - math.max(ARGV[3], 2592000))
redis.call('ZADD', KEYS[2], ARGV[4], ARGV[1])
return 1
