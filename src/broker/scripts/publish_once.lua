-- Sends messages together, once for a marker: whoever asks again, or after another, sends nothing.
-- KEYS  1 the marker, 2.. as each message says
-- ARGV  1 seconds to keep the marker, then the messages, as `receivers` takes them
-- RETURNS 1 when they were sent, 0 when they had been
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
local lists = {}
for n = 2, #KEYS do lists[n] = receivers(KEYS[n], 2 + MESSAGE * (n - 2)) end
redis.call('SET', KEYS[1], '1', 'EX', ARGV[1])
for n = 2, #KEYS do
  local refusal = deliver(lists[n], 2 + MESSAGE * (n - 2))
  if refusal then
    -- Nothing was sent if the first of them is refused; of the others some are sent again.
    redis.call('DEL', KEYS[1])
    return refusal
  end
end
return 1
