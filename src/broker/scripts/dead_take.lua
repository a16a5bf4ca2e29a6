-- Takes a letter out of a dead-letter list, and puts its message at the end of its queue unless it is to be dropped:
-- the letter is in one place at every moment, and whoever comes second does nothing.
-- KEYS  1 dead-letter list, 2 binding set of the message's exchange
-- ARGV  1 the letter, 2 "requeue" or "drop", 3 the message, 4 exchange, 5 routing key, 6 prefix of every key, 7 what
--       follows a queue's name for this priority, 8 separator in bindings
-- RETURNS 1 when it was there
local lists = {}
if ARGV[2] == 'requeue' then lists = lists_of(KEYS[2], ARGV[4], ARGV[5], ARGV[8], ARGV[6], ARGV[7]) end
if redis.call('LREM', KEYS[1], -1, ARGV[1]) == 0 then return 0 end
local refusal = push('LPUSH', lists, ARGV[3])
if refusal then
  redis.call('LPUSH', KEYS[1], ARGV[1])
  return refusal
end
return 1
