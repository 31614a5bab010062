"""The Lua scripts of `store_redis`: each runs alone on the server, reads first and writes only when nothing refuses.

Lua's numbers hold times and sequence numbers exactly (below 2 ** 53); codes of cards and terminals are 64 bits wide and
stay bytes. Times that are part of a string go through `%.0f`.
"""

COMMIT = """
local P, place = KEYS[1], 0
local function take() place = place + 1 return ARGV[place] end
local retention, loading, source, rows = tonumber(take()), take() == '1', take(), take()
local version, after = take(), tonumber(take())
local num_events, num_states, num_lines, num_expected = tonumber(take()), tonumber(take()), tonumber(take()), tonumber(take())
local totals = redis.call('HMGET', P .. 'totals', 'last', 'oldest', 'newest', 'floor')
local before, floor = tonumber(totals[1] or '0'), tonumber(totals[4] or nil)

local results, fresh, seen, known_cards = {}, {}, {}, {}
local known, relabelled, expired = 0, 0, 0
for n = 1, num_events do
  local e = {n = n, id = take(), content = take(), digest = take(), label = take(), answer = take(), extra = take()}
  e.time, e.customer, e.terminal = struct.unpack('<i8', e.content), e.content:sub(9, 16), e.content:sub(17, 24)
  if loading and floor and e.time < floor then
    expired = expired + 1
  else
    local kept = seen[e.id] or redis.call('GETRANGE', P .. 'i:' .. e.id, 0, loading and 49 or -1)
    if kept == '' then
      fresh[#fresh + 1] = e
      if loading then seen[e.id] = string.rep('\\0', 32) .. e.digest .. e.label end
    elseif kept:sub(33, 48) ~= e.digest then
      return {'reused', e.id}
    else
      known, known_cards[e.customer] = known + 1, true
      results[n] = {struct.unpack('<i8', kept), kept:sub(50)}
      if e.label ~= '\\0' and e.label ~= kept:sub(49, 49) then relabelled = relabelled + 1 end
    end
  end
end

local states, lines, newest = {}, {}, {}
for n = 1, num_states do local customer = take() states[customer] = take() end
for n = 1, num_lines do lines[n] = {take(), take(), take(), take()} end
if #fresh > 0 then
  for n = 1, num_expected do
    local held, revision = redis.call('GETRANGE', P .. take(), 0, 7), tonumber(take())
    if (held == '' and 0 or struct.unpack('<i8', held)) ~= revision then return {'stale'} end
  end
end
for _, e in ipairs(fresh) do
  if not loading and known_cards[e.customer] then return {'mixed'} end
end
for _, e in ipairs(fresh) do
  local last = newest[e.customer]
  if not last then
    local held = redis.call('GETRANGE', P .. 'c:' .. e.customer, 8, 15)
    last = math.max(held == '' and e.time or struct.unpack('<i8', held), floor or e.time)
  end
  if e.time < last then return {'late', e.id, e.time, last} end
  newest[e.customer] = e.time
end
if after and after < before then
  for _, e in ipairs(fresh) do
    local record = redis.call('GETRANGE', P .. 'c:' .. e.customer, -33, -1)
    if #record == 33 and struct.unpack('<i8', record, 25) > after then return {'moved', e.id} end
  end
end
local name = version:sub(1, 1) == '\\1' and #fresh > 0 and version:sub(2)
if name then
  for _, e in ipairs(fresh) do
    if not states[e.customer] then return {'stateless', e.id} end
  end
  local upto = tonumber(redis.call('HGET', P .. 'versions', name) or '0')
  if upto ~= before then return {'behind', upto, before} end
end

local tick = redis.call('INCR', P .. 'clock')
local clock = struct.pack('<i8', tick)
local function append(key, e, other, seq)
  local record = e.content:sub(1, 8) .. other .. e.content:sub(25, 32) .. seq .. e.label
  local held = redis.call('GETRANGE', key, 8, 15)
  if held == '' then
    redis.call('SET', key, clock .. e.content:sub(1, 8) .. record)
    return
  end
  local latest = math.max(struct.unpack('<i8', held), e.time)
  redis.call('SETRANGE', key, 0, clock .. struct.pack('<i8', latest))
  local size = redis.call('APPEND', key, record)
  if retention and size > 16 + 33 * 32 then
    local edge = latest - retention
    if struct.unpack('<i8', redis.call('GETRANGE', key, 16 + 33 * 15, 23 + 33 * 15)) < edge then
      local all, first = redis.call('GET', key), 17
      while struct.unpack('<i8', all, first) < edge do first = first + 33 end
      redis.call('SET', key, all:sub(1, 16) .. all:sub(first))
    end
  end
end

local last = before
local oldest, latest = tonumber(totals[2] or nil), tonumber(totals[3] or nil)
for _, e in ipairs(fresh) do
  last = last + 1
  local seq = struct.pack('<i8', last)
  redis.call('SET', P .. 'i:' .. e.id, seq .. e.content:sub(1, 24) .. e.digest .. e.label .. e.answer)
  local extra = e.extra:sub(1, 1) == '\\1' and {'x', e.extra:sub(2)} or {}
  redis.call('XADD', P .. 'log', last .. '-0', 'e', e.content .. e.label, 'i', e.id, unpack(extra))
  append(P .. 'c:' .. e.customer, e, e.terminal, seq)
  append(P .. 't:' .. e.terminal, e, e.customer, seq)
  oldest, latest = math.min(oldest or e.time, e.time), math.max(latest or e.time, e.time)
  if name then redis.call('HSET', P .. 's:' .. name, e.customer, states[e.customer]) end
  results[e.n] = last
  if lines[e.n] then
    local number = redis.call('HINCRBY', P .. 'totals', 'decisions', 1)
    local l = lines[e.n]
    redis.call('XADD', P .. 'decisions', number .. '-0', 'l', l[1], 'v', l[2], 'd', l[3], 'r', l[4])
  end
end
if #fresh > 0 then
  redis.call('HSET', P .. 'totals', 'last', last, 'oldest', string.format('%.0f', oldest), 'newest', string.format('%.0f', latest))
  redis.call('HINCRBY', P .. 'totals', 'count', #fresh)
end
if name then redis.call('HSET', P .. 'versions', name, last) end
if loading then
  redis.call('HSET', P .. 'sources', source, rows)
  return {'ok', {#fresh, 0, known, relabelled, expired}}
end
return {'ok', results, tick}
"""
"""-> ok, a result for each event (its number, or number and answer of one known) and the revision of the pasts with them,
or the counts of a load; else why nothing was written."""

CATCH_UP = """
local P, version, after, upto = KEYS[1], ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local stage, size, seconds, complete = P .. 'stage:' .. ARGV[4], tonumber(ARGV[5]), ARGV[6], ARGV[7] == '1'
local held = tonumber(redis.call('HGET', P .. 'versions', version) or '0')
if held ~= after then return {'behind', held, after} end
local last = tonumber(redis.call('HGET', P .. 'totals', 'last') or '0')
if upto > last then return {'beyond', last} end
if redis.call('HLEN', stage) ~= size then return {'lost'} end
local key = complete and P .. 's:' .. version or stage
if complete and after == 0 then
  redis.call('DEL', key)
  if size > 0 then redis.call('RENAME', stage, key) redis.call('PERSIST', key) end
elseif complete and size > 0 then
  local cursor = '0'
  repeat
    local found = redis.call('HSCAN', stage, cursor, 'COUNT', 1000)
    cursor = found[1]
    for n = 1, #found[2], 2 do redis.call('HSET', key, found[2][n], found[2][n + 1]) end
  until cursor == '0'
  redis.call('UNLINK', stage)
end
for n = 8, #ARGV, 2 do redis.call('HSET', key, ARGV[n], ARGV[n + 1]) end
if complete then
  redis.call('HSET', P .. 'versions', version, upto)
  return {'ok', 0}
end
redis.call('EXPIRE', stage, seconds)
return {'ok', redis.call('HLEN', stage)}
"""
"""Put a slice of states on the stage, or at last all of them in place -> ok and the stage's size; else why nothing was
written. A stage that its writer leaves goes by itself."""

LABEL = """
local P, id, label, at = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local kept = redis.call('GETRANGE', P .. 'i:' .. id, 0, 48)
if kept == '' then return 'unknown' end
local seq, time = struct.unpack('<i8i8', kept)
if time < tonumber(redis.call('HGET', P .. 'totals', 'floor') or '-1e18') then return 'unknown' end
local before = kept:sub(49, 49)
if before == label then return 'same' end
local clock = struct.pack('<i8', redis.call('INCR', P .. 'clock'))
redis.call('SETRANGE', P .. 'i:' .. id, 48, label)
redis.call('HSET', P .. 'fraud', seq, label)
redis.call('RPUSH', P .. 'labels', kept:sub(9, 32) .. before .. label .. at .. id)
for _, key in ipairs({P .. 'c:' .. kept:sub(17, 24), P .. 't:' .. kept:sub(25, 32)}) do
  local all = redis.call('GET', key) or ''
  local low, high = 0, (#all - 16) / 33 - 1
  while low <= high do
    local middle = math.floor((low + high) / 2)
    local found = struct.unpack('<i8', all, 17 + 33 * middle + 24)
    if found == seq then
      redis.call('SETRANGE', key, 16 + 33 * middle + 32, label)
      redis.call('SETRANGE', key, 0, clock)
      break
    elseif found < seq then low = middle + 1 else high = middle - 1 end
  end
end
return 'changed'
"""
"""-> changed, same or unknown."""

DROP = """
local P, floor, oldest, dropped = KEYS[1], tonumber(ARGV[1]), ARGV[2], 0
local held = tonumber(redis.call('HGET', P .. 'totals', 'floor') or nil)
if not held or floor > held then redis.call('HSET', P .. 'totals', 'floor', string.format('%.0f', floor)) end
for n = 3, #ARGV, 3 do
  local here = redis.call('XDEL', P .. 'log', ARGV[n] .. '-0')
  redis.call('HDEL', P .. 'fraud', ARGV[n])
  if here == 1 then
    local key, left = P .. 'i:' .. ARGV[n + 1], tonumber(ARGV[n + 2])
    if left > 0 then redis.call('PEXPIRE', key, left) else redis.call('DEL', key) end
    dropped = dropped + 1
  end
end
if dropped > 0 and redis.call('HINCRBY', P .. 'totals', 'count', -dropped) == 0 then
  redis.call('HDEL', P .. 'totals', 'oldest', 'newest')
elseif oldest ~= '' then
  redis.call('HSET', P .. 'totals', 'oldest', oldest)
end
return dropped
"""
"""Forget events: (seq, id, milliseconds to keep the id) each -> how many were there."""

TRIM = """
local all, before, kept = redis.call('GET', KEYS[1]), tonumber(ARGV[1]), {}
if not all then return 0 end
for first = 17, #all, 33 do
  if struct.unpack('<i8', all, first) >= before then kept[#kept + 1] = all:sub(first, first + 32) end
end
if #kept == 0 then redis.call('DEL', KEYS[1])
elseif 16 + 33 * #kept < #all then
  redis.call('SET', KEYS[1], struct.pack('<i8', redis.call('INCR', KEYS[2])) .. all:sub(9, 16) .. table.concat(kept))
end
return 0
"""
"""Cut a past to its events from a time on."""
