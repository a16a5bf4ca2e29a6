-- Stands before the scripts that replace records: the state of what is stored.

-- The state, nil where there is none, '' where it cannot be told, 'opaque' for a record that is compressed. Behind it why the
-- key cannot be looked at: it is no result.
local function state(key)
  local head = redis.pcall('GETRANGE', key, 0, 63)
  if type(head) ~= 'string' then return '', head end
  if head == '' then return nil end
  -- The state is the first member of every record in JSON, in Python's spacing or in ours, and in msgpack.
  local found = string.match(head, '^{%s*"status":%s*"(%u+)"')
  if found then return found end
  if string.sub(head, 1, 19) == '\0celery-compressed\0' then return 'opaque' end
  found = string.match(head, '^.?.?.?.?.?\166status[\160-\191](%u+)')
  if found then return found end
  -- PyYAML sorts the members; text that is a value is not at the beginning of a line.
  if string.find(head, '^%l[%w_]*:') then
    return string.match('\n' .. redis.call('GET', key), '\nstatus: (%u+)\n') or ''
  end
  return ''
end

