-- Takes messages from queues and writes them down as unacknowledged, in one step: there is no instant at which a
-- message is in neither place (kombu's BRPOP and HSET have one).
-- KEYS  1 unacked, 2 unacked_index, 3.. queue keys in the order to look at
-- ARGV  1 tag prefix, chosen by the caller, 2 how many, 3 earlier prefixes, separated by commas, when replies to them may have
--       been lost. Each try has one of its own: a try that the network held back may come behind the one that took its place,
--       and would write what it takes over what that one holds,
--       4 largest message in bytes, 5 dead-letter list length, 6 bytes after which no further message is
--       taken, 7 prefix of every key, 8 our name as JSON text, 9 seconds by which leases end before the visibility timeout,
--       10 "" or, when the queues are full of what has to wait, a time in UTC (ISO): what is due later waits, 11 so many
--       that wait are taken beyond the others; 0 to take none of them, and others from among the newest only, the oldest of
--       those first, 12.. routing key of each queue key, as JSON text without its quotes
-- RETURNS 1 when nothing is left and news of the next message will come, else 0; then a flat list: for a message what follows
--       the prefix in its tag (the whole tag when it has an earlier prefix), index of its key (less than 0 when it is one of those
--       that wait), the message; for an element that is no message 0, index of its key, why, and behind that, when its id can be
--       told, -2, index of its key, the id, and when its dead letter pushed others out of the list, the oldest, -3, index of its
--       key, how many; for a queue of which
--       nothing can be taken -1, index of its key, why. An error when the server takes no writes now.
-- No cjson for messages: it would change large numbers and fail on deep nesting after the pop. Taking many at once is no faster:
-- what costs is that Lua reads each byte of a text that it makes.
local found, bytes, out = 0, 0, {0}
local most = tonumber(ARGV[6])
local count = tonumber(ARGV[2])
local waiting, by = 0, ARGV[10]
-- Kombu writes a blank there, others do not. An offset that is not UTC, or what has no such header, is for the caller to judge:
-- he finds out that it has to wait.
local function waits(message)
  if by == '' then return false end
  local eta = string.match(message, '"eta": ?"([^"]+)"')
  return eta and eta > by and (string.sub(eta, -6) == '+00:00' or string.sub(eta, -1) == 'Z')
end
-- The id of a message that nobody will read as a whole: producers write it near the end, kombu's property behind the header.
local function id_of(message)
  local tail = string.sub(message, -4096)
  for _, name in ipairs({'"correlation_id"', '"id"'}) do
    local found
    for id in string.gmatch(tail, name .. ': ?"([^"\\]+)"') do found = id end
    if found and string.len(found) < 256 then return found end
  end
end
local time = redis.call('TIME')
local now = time[1] .. '.' .. string.format('%06d', time[2])
local since = ARGV[9] == '0' and now or string.format('%.6f', now - ARGV[9])
for prefix in string.gmatch(ARGV[3], '[^,]+') do
  for n = 1, count + ARGV[11] do
    local held = redis.call('HGET', KEYS[1], prefix .. n)
    if held then
      -- '[' message ',"","' queue '"]': give back the message and the queue it was spliced with
      for i = 3, #KEYS do
        local tail = ',"","' .. ARGV[i + 9] .. '"]'
        if string.sub(held, -string.len(tail)) == tail then
          local message = string.sub(held, 2, -string.len(tail) - 1)
          out[#out + 1] = prefix .. n
          out[#out + 1] = waits(message) and 2 - i or i - 2
          out[#out + 1] = message
          -- It may have lain there for longer than its lease. A server without memory lets only those write who have written.
          redis.call('ZREM', KEYS[2], '')
          redis.call('ZADD', KEYS[2], 'XX', 'GT', since, prefix .. n)
          break
        end
      end
    end
  end
end
if #out > 1 then return out end
-- How many of the lists are there. Lua hands over no more than some 8,000 values at once.
local function there()
  local lists = 0
  for from = 3, #KEYS, 1000 do
    lists = lists + redis.call('EXISTS', unpack(KEYS, from, math.min(from + 999, #KEYS)))
  end
  return lists
end
-- A look that finds nothing is three commands; whoever asked for news of what he reads hears when there is something.
local lists = there()
if lists == 0 then return {1} end
local newest
if by ~= '' and ARGV[11] == '0' then
  -- So many messages, and bytes, are looked at in all.
  local looks, seen = 256, 0
  newest = function(key)
    local due = {}
    for at = 0, looks - 1 do
      local message = redis.pcall('LINDEX', key, at)
      if type(message) ~= 'string' or seen > 1048576 then break end
      looks, seen = looks - 1, seen + string.len(message)
      if not waits(message) then due[#due + 1] = message end
    end
    return due
  end
end
for i = 3, #KEYS do
  local before = found + waiting
  local due = newest and newest(KEYS[i])
  while found < count and bytes < most do
    local message
    if due then
      message = table.remove(due)
      -- Equal messages are one as good as the other.
      if message then redis.call('LREM', KEYS[i], 1, message) end
    else
      message = redis.pcall('RPOP', KEYS[i])
    end
    if type(message) ~= 'string' then
      if type(message) == 'table' and message.err then
        for _, code in ipairs({'READONLY', 'NOREPLICAS', 'MISCONF', 'LOADING', 'MASTERDOWN', 'CLUSTERDOWN', 'TRYAGAIN'}) do
          local at = string.find(message.err, code, 1, true)
          -- No key's fault. What was taken before is told first.
          if at and #out == 1 then return redis.error_reply(string.sub(message.err, at)) end
          if at then return out end
        end
        out[#out + 1] = -1
        out[#out + 1] = i - 2
        out[#out + 1] = message.err
      end
      break
    end
    local has_to_wait = waits(message)
    if has_to_wait then waiting = waiting + 1 else found = found + 1 end
    local size = string.len(message)
    bytes = bytes + size
    if size > tonumber(ARGV[4]) or string.sub(message, 1, 1) ~= '{' or string.sub(message, -1) ~= '}' then
      local why = 'not a message: it is no JSON object'
      if size > tonumber(ARGV[4]) then why = 'the message is larger than the limit of ' .. ARGV[4] .. ' bytes (max_message_bytes)' end
      local dead = ARGV[7] .. cjson.decode('["' .. ARGV[i + 9] .. '"]')[1] .. '.dead'
      local letter = '{"reason":"' .. why .. '","queue":"' .. ARGV[i + 9] .. '","worker":' .. ARGV[8] .. ',"time":' .. now .. '}'
      local kept = redis.pcall('LPUSH', dead, letter .. '\n' .. message)
      if type(kept) == 'table' then
        -- It may not be written, or is no list: the message stays where it was.
        redis.call('RPUSH', KEYS[i], message)
        out[#out + 1] = -1
        out[#out + 1] = i - 2
        out[#out + 1] = 'a dead letter cannot be kept in ' .. dead .. ': ' .. kept.err
        break
      end
      local over = kept - ARGV[5]
      if over > 0 then
        redis.call('LTRIM', dead, 0, tonumber(ARGV[5]) - 1)
        out[#out + 1] = -3
        out[#out + 1] = i - 2
        out[#out + 1] = tostring(over)
      end
      out[#out + 1] = 0
      out[#out + 1] = i - 2
      out[#out + 1] = why
      local id = size > tonumber(ARGV[4]) and id_of(message)
      if id then
        out[#out + 1] = -2
        out[#out + 1] = i - 2
        out[#out + 1] = id
      end
    else
      local number = found + waiting
      local tag = ARGV[1] .. number
      local held = redis.pcall('HSET', KEYS[1], tag, '[' .. message .. ',"","' .. ARGV[i + 9] .. '"]')
      local refusal = type(held) == 'table' and held
      if not refusal then
        local named = redis.pcall('ZADD', KEYS[2], since, tag)
        refusal = type(named) == 'table' and named
        if refusal then redis.call('HDEL', KEYS[1], tag) end
      end
      if refusal then
        -- It cannot be written down, and must not be nowhere. What was taken before is told first.
        redis.call('RPUSH', KEYS[i], message)
        return #out > 1 and out or refusal
      end
      out[#out + 1] = number
      out[#out + 1] = has_to_wait and 2 - i or i - 2
      out[#out + 1] = message
    end
    if has_to_wait and waiting >= tonumber(ARGV[11]) then return out end
  end
  if found >= count or bytes >= most then return out end
  if found + waiting > before then lists = lists - 1 end
  -- The others are empty: mostly one priority is all that is used.
  if lists == 0 then break end
end
-- Taking the last one ended the news that the look above had asked for.
if there() == 0 then out[1] = 1 end
return out
