-- Stands before the scripts that publish: where an exchange sends a routing key (`kombu.transport.virtual.exchange`).
-- Types of exchanges are not in Redis: a binding with a pattern is a topic's, one without is direct.

-- AMQP's limit; a longer key fits no topic.
local LONGEST_KEY = 255

-- Whether a routing key fits the key that a queue is bound with: `*` is one word, `#` is anything, dots included.
-- kombu's pattern is made from that key and says the same; this walk takes no more than the product of both lengths.
local function fits(bound, key)
  local parts = {}
  for word in string.gmatch(bound .. '.', '([^.]*)%.') do
    if #parts > 0 then parts[#parts + 1] = '.' end
    parts[#parts + 1] = word
  end
  local at, from, again, later = 1, 1, nil, nil
  while from <= #key do
    local part, ahead = parts[at], nil
    if part == '#' then
      again, later, ahead = at, from, from
    elseif part == '*' then
      local stop = string.find(key, '.', from, true) or #key + 1
      if stop > from then ahead = stop end
    elseif part and string.sub(key, from, from + #part - 1) == part then
      ahead = from + #part
    end
    if ahead then
      at, from = at + 1, ahead
    elseif again then
      later = later + 1
      at, from = again + 1, later
    else
      return false
    end
  end
  while parts[at] == '#' or parts[at] == '' do at = at + 1 end
  return at > #parts
end

-- The queues behind an exchange. None is bound: the list of the routing key, where somebody can find the message.
local function route(bindings, exchange, key, sep)
  if exchange == '' then return {key} end
  local queues, seen = {}, {}
  for _, member in ipairs(redis.call('SMEMBERS', bindings)) do
    local first = string.find(member, sep, 1, true)
    local second = first and string.find(member, sep, first + #sep, true)
    if second then
      local bound, queue = string.sub(member, 1, first - 1), string.sub(member, second + #sep)
      local bound_to = bound == key
      if second > first + #sep then bound_to = #key <= LONGEST_KEY and fits(bound, key) end
      if bound_to and queue ~= '' and not seen[queue] then
        seen[queue] = true
        queues[#queues + 1] = queue
      end
    end
  end
  if #queues == 0 then queues[1] = key end
  return queues
end


-- The lists of those queues, each looked at: a script that fails stops where it is, and a list that is none, or is not for
-- this user to read, is found out before a message leaves the place where it was.
local function lists_of(bindings, exchange, key, sep, prefix, suffix)
  local lists = route(bindings, exchange, key, sep)
  for i = 1, #lists do
    lists[i] = prefix .. lists[i] .. suffix
    redis.call('LLEN', lists[i])
  end
  return lists
end

-- Pushes a message to lists, to all or to none; the refusal if there is one: a user may read a list that is not his to write.
local function push(command, lists, message)
  for i = 1, #lists do
    local pushed = redis.pcall(command, lists[i], message)
    if type(pushed) == 'table' then
      for j = 1, i - 1 do redis.pcall('LREM', lists[j], command == 'RPUSH' and -1 or 1, message) end
      return pushed
    end
  end
end

-- A message in the arguments of a script, from `at` on: exchange, routing key, the envelope, prefix of every key, what follows
-- a queue's name for its priority, separator in bindings, and the channel, if it is told to everybody.
local MESSAGE = 7

-- The lists that it goes to; `nil` when it is told to everybody. Nothing is sent yet.
local function receivers(bindings, at)
  if ARGV[at + 6] ~= '' then return nil end
  return lists_of(bindings, ARGV[at], ARGV[at + 1], ARGV[at + 5], ARGV[at + 3], ARGV[at + 4])
end

-- The refusal, if it cannot be sent.
local function deliver(lists, at)
  if lists then return push('LPUSH', lists, ARGV[at + 2]) end
  redis.call('PUBLISH', ARGV[at + 6], ARGV[at + 2])
end
