-- Sends a message to the queues behind an exchange.
-- KEYS  1 binding set of the exchange
-- ARGV  1 exchange, 2 routing key, 3 the envelope, 4 prefix of every key, 5 what follows a queue's name for this
--       priority, 6 separator in bindings
-- RETURNS how many queues got it
local queues = route(KEYS[1], ARGV[1], ARGV[2], ARGV[6])
for i = 1, #queues do redis.call('LPUSH', ARGV[4] .. queues[i] .. ARGV[5], ARGV[3]) end
return #queues
