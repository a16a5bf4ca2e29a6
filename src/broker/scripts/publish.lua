-- Sends a message to the queues behind an exchange.
-- KEYS  1 binding set of the exchange
-- ARGV  1 exchange, 2 routing key, 3 the envelope, 4 prefix of every key, 5 what follows a queue's name for this
--       priority, 6 separator in bindings
-- RETURNS how many queues got it
local lists = lists_of(KEYS[1], ARGV[1], ARGV[2], ARGV[6], ARGV[4], ARGV[5])
return push('LPUSH', lists, ARGV[3]) or #lists
