-- Sends messages together, once for a marker: whoever asks again, or after another, sends nothing.
-- KEYS  1 the marker, 2.. the binding set of each message's exchange
-- ARGV  1 seconds to keep the marker, 2 prefix of every key, 3 separator in bindings, then four for each message:
--       exchange, routing key, what follows a queue's name for its priority, the envelope
-- RETURNS 1 when they were sent, 0 when they had been
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
local lists = {}
for n = 2, #KEYS do
  local at = 4 * (n - 1)
  lists[n] = lists_of(KEYS[n], ARGV[at], ARGV[at + 1], ARGV[3], ARGV[2], ARGV[at + 2])
end
redis.call('SET', KEYS[1], '1', 'EX', ARGV[1])
for n = 2, #KEYS do
  for i = 1, #lists[n] do redis.call('LPUSH', lists[n][i], ARGV[4 * (n - 1) + 3]) end
end
return 1
