-- Sends messages together, once for a marker: whoever asks again, or after another, sends nothing.
-- KEYS  1 the marker, 2.. the binding set of each message's exchange
-- ARGV  1 seconds to keep the marker, 2 prefix of every key, 3 separator in bindings, then four for each message:
--       exchange, routing key, what follows a queue's name for its priority, the envelope
-- RETURNS 1 when they were sent, 0 when they had been
if not redis.call('SET', KEYS[1], '1', 'NX', 'EX', ARGV[1]) then return 0 end
for n = 2, #KEYS do
  local at = 4 * (n - 1)
  local queues = route(KEYS[n], ARGV[at], ARGV[at + 1], ARGV[3])
  for i = 1, #queues do redis.call('LPUSH', ARGV[2] .. queues[i] .. ARGV[at + 2], ARGV[at + 3]) end
end
return 1
