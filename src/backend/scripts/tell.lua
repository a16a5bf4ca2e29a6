-- Tells once more of results that nobody heard of.
-- KEYS  result keys
for i = 1, #KEYS do
  local record = redis.call('GET', KEYS[i])
  if record then redis.call('PUBLISH', KEYS[i], record) end
end
