-- Answers a remote control request, if the client still waits for it and reads what it gets.
-- KEYS  1 binding set of the reply exchange, 2 the client's reply list
-- ARGV  1 the client's member of the binding set, 2 the reply, 3 seconds until an unread reply goes
-- RETURNS 1 when it was sent
if redis.call('SISMEMBER', KEYS[1], ARGV[1]) == 0 or redis.call('LLEN', KEYS[2]) >= 10000 then return 0 end
redis.call('LPUSH', KEYS[2], ARGV[2])
redis.call('EXPIRE', KEYS[2], ARGV[3])
return 1
