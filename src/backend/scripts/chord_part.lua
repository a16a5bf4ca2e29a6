-- Counts a finished member of a chord's header, once, and gives the one who completes it the right to go on.
-- The keys and what is in them are those of Celery 5.7, so that Python workers and ours count together.
-- KEYS  1 results (.j), 2 tasks added later (.t), 3 size (.s), 4 counted already (.d), 5 nested handles, 6 claim (.c)
-- ARGV  1 what is counted, "<task id>:<place>", 2 its entry, 3 its place or "+inf", 4 seconds to keep (0 = for ever),
--       5 seconds that a claim holds, 6 a claim of the caller's own, 7 whether the results are in the order of places
-- RETURNS "late" (it went on already), "wait" (not complete), "taken" (complete, and somebody else is at it),
--         "mine" (complete: the caller goes on)
-- A part of a chord that is done is counted nevertheless, for a minute: a client that applies a frozen chord again sends
-- the first parts before it says (by its size) that the chord begins anew, and a quick worker has them done by then.
local holder = redis.call('GET', KEYS[6])
local late = holder == 'done'
local ordered = ARGV[7] == '1'
if redis.call('SADD', KEYS[4], ARGV[1]) == 1 then
  if ordered then redis.call('ZADD', KEYS[1], ARGV[3], ARGV[2]) else redis.call('RPUSH', KEYS[1], ARGV[2]) end
end
local keep = tonumber(ARGV[4])
if late then
  if keep > 0 then
    redis.call('EXPIRE', KEYS[1], 60)
    redis.call('EXPIRE', KEYS[4], 60)
  end
  return 'late'
end
if keep > 0 then
  for i = 1, 5 do redis.call('EXPIRE', KEYS[i], keep) end
end
local size = redis.call('GET', KEYS[3])
if not size then return 'wait' end
local ready = redis.call(ordered and 'ZCARD' or 'LLEN', KEYS[1])
if ready ~= tonumber(size) + tonumber(redis.call('GET', KEYS[2]) or 0) then return 'wait' end
-- Who asks again, because the answer was lost, has it already.
if holder and holder ~= ARGV[6] then return 'taken' end
redis.call('SET', KEYS[6], ARGV[6], 'EX', ARGV[5])
return 'mine'
