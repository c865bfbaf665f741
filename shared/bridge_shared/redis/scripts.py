"""The Lua that changes several keys at once, at the level of Redis 7.0.

Scripts are named by the hash of their text, so two versions of this program can run beside each other. Each touches
the keys of one hash slot only and takes the time from Redis, in milliseconds. ``flags=allow-oom`` marks those that
must work at maxmemory: there a plain HINCRBY or XADD is refused, heartbeats would stop and every pod look dead at
once. Creating a call is not among them: a full Redis takes no new calls.

Epochs: the next one is max(stored + 1, Redis TIME in ms, witness + 1), so it is unique even after a failover that
lost the last claim and after FLUSHALL. They stay below 2^53 and are exact in Lua's doubles.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Final


@dataclass(frozen=True, slots=True)
class Script:
    """A script and the hash by which the server knows it."""

    source: str
    sha: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sha", hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest())


_ALWAYS: Final = "#!lua flags=allow-oom\n"
_IF_ROOM: Final = "#!lua\n"
_READ: Final = "#!lua flags=no-writes,allow-oom\n"

_TIME: Final = """
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local function int(n) return string.format('%.0f', n) end
local function num(s) return tonumber(s or '0') or 0 end
"""

_LAST: Final = """
local function last(key)
  if redis.call('EXISTS', key) == 0 then return false end
  local info = redis.call('XINFO', 'STREAM', key)
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then return info[i + 1] end
  end
end
"""

# Above everything a stream has ever held, too: a failover may have kept the stream and lost the claim.
_FENCE: Final = (
    _LAST
    + """
local function fence(epoch, streams, ttl)
  for _, key in ipairs(streams) do
    local id = last(key)
    if id then epoch = math.max(epoch, num(string.match(id, '^%d+')) + 1) end
  end
  for _, key in ipairs(streams) do
    local id = redis.call('XADD', key, int(epoch) .. '-0', 'fence', '1')
    redis.call('XDEL', key, id)
    if redis.call('PTTL', key) < 0 then redis.call('EXPIRE', key, ttl) end
  end
  return epoch
end
"""
)

# KEYS call · ARGV edge, witness, token, ttl, field, value, ...
# -> created | live | ended, hash
CREATE: Final = Script(
    _IF_ROOM
    + _TIME
    + """
local call = KEYS[1]
local h = redis.call('HMGET', call, 'state', 'edge_token')
if h[1] == 'ended' then return {'ended', redis.call('HGETALL', call)} end
if h[1] and h[2] ~= ARGV[3] then return {'live', redis.call('HGETALL', call)} end
if not h[1] then
  redis.call('DEL', call)
  redis.call('HSET', call, 'state', 'offered', 'edge', ARGV[1], 'ee', int(math.max(1, now, num(ARGV[2]) + 1)),
    'edge_token', ARGV[3], 'owner', '', 'we', '0', 'created_ms', int(now))
  for i = 5, #ARGV, 2 do redis.call('HSET', call, ARGV[i], ARGV[i + 1]) end
  redis.call('EXPIRE', call, ARGV[4])
end
return {'created', redis.call('HGETALL', call)}
"""
)

# KEYS call · ARGV edge, witness, token, ttl
# -> unknown | ended | attached, hash, former edge, its ee
ATTACH: Final = Script(
    _ALWAYS
    + _TIME
    + """
local call = KEYS[1]
local h = redis.call('HMGET', call, 'state', 'edge', 'ee', 'edge_token', 'former_edge', 'former_ee')
if not h[1] then return {'unknown'} end
if h[1] == 'ended' then return {'ended', redis.call('HGETALL', call)} end
if h[4] == ARGV[3] then return {'attached', redis.call('HGETALL', call), h[5] or '', h[6] or '0'} end
redis.call('HSET', call, 'edge', ARGV[1], 'ee', int(math.max(num(h[3]) + 1, now, num(ARGV[2]) + 1)),
  'edge_token', ARGV[3], 'former_edge', h[2] or '', 'former_ee', h[3] or '0')
redis.call('EXPIRE', call, ARGV[4])
return {'attached', redis.call('HGETALL', call), h[2] or '', h[3] or '0'}
"""
)

# KEYS call, transcript, functions · ARGV worker, seen owner, seen we, witness, token, ttl
# -> nil (lost, ended, unknown) | hash
CLAIM: Final = Script(
    _ALWAYS
    + _TIME
    + _FENCE
    + """
local call = KEYS[1]
local h = redis.call('HMGET', call, 'state', 'owner', 'we', 'owner_token')
if not h[1] or h[1] == 'ended' then return false end
if h[4] == ARGV[5] then return redis.call('HGETALL', call) end
if (h[2] or '') ~= ARGV[2] or num(h[3]) ~= num(ARGV[3]) then return false end
local epoch = fence(math.max(num(h[3]) + 1, now, num(ARGV[4]) + 1), {KEYS[2], KEYS[3]}, ARGV[6])
redis.call('HSET', call, 'owner', ARGV[1], 'we', int(epoch), 'owner_token', ARGV[5])
redis.call('EXPIRE', call, ARGV[6])
return redis.call('HGETALL', call)
"""
)

# KEYS call · ARGV we, session id -> 1 | 0
ACTIVATE: Final = Script(
    _ALWAYS
    + _TIME
    + """
local h = redis.call('HMGET', KEYS[1], 'state', 'we')
if not h[1] or h[1] == 'ended' or h[2] ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'state', 'active', 'session_id', ARGV[2])
redis.call('HSETNX', KEYS[1], 'active_ms', int(now))
return 1
"""
)

# KEYS call · ARGV we, number of fields to delete, those, field, value, ... -> 1 | 0
AMEND: Final = Script(
    _IF_ROOM
    + """
local h = redis.call('HMGET', KEYS[1], 'state', 'we')
if not h[1] or h[1] == 'ended' or h[2] ~= ARGV[1] then return 0 end
local gone = tonumber(ARGV[2])
for i = 3, 2 + gone do redis.call('HDEL', KEYS[1], ARGV[i]) end
for i = 3 + gone, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
return 1
"""
)

_SHRINK: Final = """
local function shrink(call, keep)
  local kept = {}
  for name in string.gmatch(keep, '[^ ]+') do kept[name] = true end
  for _, name in ipairs(redis.call('HKEYS', call)) do
    if not kept[name] and string.sub(name, 1, 8) ~= 'handled:' then redis.call('HDEL', call, name) end
  end
end
"""

# KEYS call, transcript, heard, functions
# ARGV reason, detail, last entry, we or '', finisher, token, retention until finished, retention after, summary fields,
#      1 if handlers must hear of it though it was never active, ee or ''
# -> unknown | fenced | (first | ended, reason, detail, finish)
END: Final = Script(
    _ALWAYS
    + _TIME
    + _SHRINK
    + """
local call = KEYS[1]
local h = redis.call('HMGET', call, 'state', 'we', 'reason', 'detail', 'finish', 'end_token', 'ee')
if not h[1] then return {'unknown'} end
if h[1] == 'ended' then
  return {h[6] == ARGV[6] and 'first' or 'ended', h[3] or '', h[4] or '', h[5] or ''}
end
if ARGV[4] ~= '' and h[2] ~= ARGV[4] or ARGV[11] ~= '' and h[7] ~= ARGV[11] then return {'fenced'} end
local owed = h[1] == 'active' or ARGV[10] == '1'
redis.call('HSET', call, 'state', 'ended', 'reason', ARGV[1], 'detail', ARGV[2], 'last', ARGV[3], 'finisher', ARGV[5],
  'finish', owed and 'owed' or 'none', 'end_token', ARGV[6], 'ended_ms', int(now))
if owed and ARGV[5] ~= '' then redis.call('HSET', call, 'finish_attempts', '1') end
if not owed then
  shrink(call, ARGV[9])
  redis.call('DEL', KEYS[4])
  if redis.call('XLEN', KEYS[2]) == 0 then redis.call('DEL', KEYS[2]) end
end
for i = 1, 3 do redis.call('EXPIRE', KEYS[i], owed and ARGV[7] or ARGV[8]) end
return {'first', ARGV[1], ARGV[2], owed and 'owed' or 'none'}
"""
)

# KEYS call, transcript, functions · ARGV worker, seen finisher, token, ttl
# -> nil | hash. Who is not the owner raises the epoch first, so that the owner's late lines are refused.
CLAIM_FINISH: Final = Script(
    _ALWAYS
    + _TIME
    + _FENCE
    + """
local call = KEYS[1]
local h = redis.call('HMGET', call, 'state', 'finish', 'finisher', 'owner', 'we', 'finish_token')
if h[1] ~= 'ended' or h[2] ~= 'owed' then return false end
if h[6] == ARGV[3] then return redis.call('HGETALL', call) end
if (h[3] or '') ~= ARGV[2] then return false end
if h[4] ~= ARGV[1] then
  local epoch = fence(math.max(num(h[5]) + 1, now), {KEYS[2], KEYS[3]}, ARGV[4])
  redis.call('HSET', call, 'owner', ARGV[1], 'we', int(epoch))
end
redis.call('HSET', call, 'finisher', ARGV[1], 'finish_token', ARGV[3])
redis.call('HINCRBY', call, 'finish_attempts', 1)
return redis.call('HGETALL', call)
"""
)

# KEYS call · ARGV finisher, handler -> 1 | 0 (somebody else finishes it now)
HANDLED: Final = Script(
    _ALWAYS
    + _TIME
    + """
if redis.call('HGET', KEYS[1], 'finisher') ~= ARGV[1] then return 0 end
redis.call('HSETNX', KEYS[1], 'handled:' .. ARGV[2], int(now))
return 1
"""
)

# KEYS call · ARGV finisher, field, value -> 1 | 0 (somebody else finishes it now, or it is finished)
KEEP: Final = Script(
    _IF_ROOM
    + """
local h = redis.call('HMGET', KEYS[1], 'finish', 'finisher')
if h[1] ~= 'owed' or h[2] ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], ARGV[2], ARGV[3])
return 1
"""
)

# KEYS call · ARGV finisher, what failed -> 1 | 0 (somebody else finishes it now, or it is finished)
FINISH_FAILED: Final = Script(
    _IF_ROOM
    + """
local h = redis.call('HMGET', KEYS[1], 'finish', 'finisher')
if (h[1] ~= 'owed' and h[1] ~= 'given_up') or h[2] ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'finish_error', ARGV[2])
return 1
"""
)

# KEYS call · ARGV finisher -> 1 | 0. Anybody may claim the finish then.
RELEASE_FINISH: Final = Script(
    _ALWAYS
    + """
if redis.call('HGET', KEYS[1], 'finisher') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'finisher', '')
return 1
"""
)

# KEYS call, transcript, heard, functions, commands
# ARGV finish (done, given_up), retention, summary fields or '', handler, ...
# -> 1 | 0 (no such ended call). Retention counts from the end of the call.
FINISHED: Final = Script(
    _ALWAYS
    + _TIME
    + _SHRINK
    + """
local call = KEYS[1]
local h = redis.call('HMGET', call, 'state', 'ended_ms', 'finish')
if h[1] ~= 'ended' then return 0 end
if h[3] == 'done' then return 1 end
redis.call('HSET', call, 'finish', ARGV[1], 'finished_ms', int(now))
for i = 4, #ARGV do redis.call('HSETNX', call, 'handled:' .. ARGV[i], int(now)) end
if ARGV[1] == 'done' then
  shrink(call, ARGV[3])
  redis.call('DEL', KEYS[4], KEYS[5])
  local until_s = int(math.floor(num(h[2]) / 1000) + num(ARGV[2]))
  for i = 1, 3 do redis.call('EXPIREAT', KEYS[i], until_s) end
end
return 1
"""
)

# KEYS call, transcript, heard · ARGV ttl -> 1 | 0. A job that was given up is owed again, and tried for as long as a
# new one; so long lives what it needs.
REOPEN_FINISH: Final = Script(
    _ALWAYS
    + """
local h = redis.call('HMGET', KEYS[1], 'state', 'finish', 'finish_attempts')
if h[1] ~= 'ended' or (h[2] ~= 'given_up' and h[2] ~= 'owed') then return 0 end
redis.call('HSET', KEYS[1], 'finish', 'owed', 'finish_reopened', h[3] or '0')
for i = 1, 3 do redis.call('EXPIRE', KEYS[i], ARGV[1], 'GT') end
return 1
"""
)

# KEYS call, transcript, heard, functions · ARGV ttl -> 1 live | 0
TOUCH: Final = Script(
    _ALWAYS
    + """
local state = redis.call('HGET', KEYS[1], 'state')
if not state or state == 'ended' then return 0 end
for i = 1, 4 do redis.call('EXPIRE', KEYS[i], ARGV[1]) end
return 1
"""
)

# KEYS call, heard · ARGV entry id, value -> 1 | 0. What was heard lives as long as the call does.
HEARD: Final = Script(
    _ALWAYS
    + """
local left = redis.call('PTTL', KEYS[1])
if left == -2 then return 0 end
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
if left > 0 then redis.call('PEXPIRE', KEYS[2], left) end
return 1
"""
)

# KEYS call · ARGV ttl, owner, we, edge, ee, field, value, ... -> state after it
# Redis lost the call: whoever holds it writes what it knows. The higher epoch of each side stands; other fields
# are only filled in. An ended call is left alone.
RESTORE: Final = Script(
    _ALWAYS
    + _TIME
    + """
local call = KEYS[1]
local h = redis.call('HMGET', call, 'state', 'we', 'ee')
if h[1] == 'ended' then return h[1] end
if num(ARGV[3]) > num(h[2]) then redis.call('HSET', call, 'owner', ARGV[2], 'we', ARGV[3]) end
if num(ARGV[5]) > num(h[3]) then redis.call('HSET', call, 'edge', ARGV[4], 'ee', ARGV[5]) end
for i = 6, #ARGV, 2 do
  if ARGV[i] == 'state' and ARGV[i + 1] == 'active' then redis.call('HSET', call, 'state', 'active')
  else redis.call('HSETNX', call, ARGV[i], ARGV[i + 1]) end
end
for name, value in pairs({state = 'offered', owner = '', we = '0', edge = '', ee = '0', created_ms = int(now)}) do
  redis.call('HSETNX', call, name, value)
end
redis.call('EXPIRE', call, ARGV[1])
return redis.call('HGET', call, 'state')
"""
)

# KEYS call, stream · ARGV we, marker id, ttl, then id, number of fields, field, value, ... of each entry, by id
# -> unknown | fenced | ok. Only the owner may write a stream anew.
REBUILD: Final = Script(
    _ALWAYS
    + """
local we = redis.call('HGET', KEYS[1], 'we')
if not we then return 'unknown' end
if we ~= ARGV[1] then return 'fenced' end
redis.call('DEL', KEYS[2])
local i = 4
while i <= #ARGV do
  local n = tonumber(ARGV[i + 1])
  redis.call('XADD', KEYS[2], ARGV[i], unpack(ARGV, i + 2, i + 1 + 2 * n))
  i = i + 2 + 2 * n
end
redis.call('XDEL', KEYS[2], ARGV[2])
local left = redis.call('PTTL', KEYS[1])
if left > 0 then redis.call('PEXPIRE', KEYS[2], left) else redis.call('EXPIRE', KEYS[2], ARGV[3]) end
return 'ok'
"""
)

# KEYS zset · ARGV cid, ttl -> 1 new | 0. The score is the time, in ms.
INDEX: Final = Script(
    _ALWAYS
    + _TIME
    + """
local new = redis.call('ZADD', KEYS[1], 'NX', int(now), ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[2])
return new
"""
)

# KEYS zset · ARGV cid, delay ms or inf, ttl -> nothing
POSTPONE: Final = Script(
    _ALWAYS
    + _TIME
    + """
local at = ARGV[2] == 'inf' and '+inf' or int(now + num(ARGV[2]))
redis.call('ZADD', KEYS[1], at, ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[3])
return 1
"""
)

# KEYS zset · ARGV limit, slack ms, offset -> members whose score is <= now - slack
DUE: Final = Script(
    _READ
    + _TIME
    + """
return redis.call('ZRANGE', KEYS[1], '-inf', int(now - num(ARGV[2])), 'BYSCORE', 'LIMIT', ARGV[3], ARGV[1])
"""
)

# KEYS beat, info · ARGV pod, info or '', ttl -> the pod's counter
BEAT: Final = Script(
    _ALWAYS
    + """
local n = redis.call('HINCRBY', KEYS[1], ARGV[1], 1)
if ARGV[2] ~= '' then
  redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
  redis.call('EXPIRE', KEYS[1], ARGV[3])
  redis.call('EXPIRE', KEYS[2], ARGV[3])
end
return n
"""
)

# KEYS beat, workers, edges · ARGV pod, the counter it stopped at or '' -> 1 | 0. Removes a pod that is gone.
SWEEP_POD: Final = Script(
    _ALWAYS
    + """
if ARGV[2] ~= '' and redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
for i = 1, 3 do redis.call('HDEL', KEYS[i], ARGV[1]) end
return 1
"""
)

# KEYS offers · ARGV ttl, maxlen, field, value, ... -> id
OFFER: Final = Script(
    _ALWAYS
    + """
local id = redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[2], '*', unpack(ARGV, 3))
redis.call('EXPIRE', KEYS[1], ARGV[1])
return id
"""
)

# KEYS stream · ARGV ttl -> 1 created | 0 was there. Empty, so that only its reader needs to know of it.
OPEN_INBOX: Final = Script(
    _ALWAYS
    + """
local there = redis.call('EXPIRE', KEYS[1], ARGV[1])
if there == 0 then
  redis.call('XDEL', KEYS[1], redis.call('XADD', KEYS[1], '*', 'open', '1'))
  redis.call('EXPIRE', KEYS[1], ARGV[1])
end
return 1 - there
"""
)

# KEYS inbox · ARGV ttl, cursor or '' (no trimming) -> its last-generated id | nil (it is gone)
# Entries of a stream that begins again below the cursor have not been read, so they are not trimmed by it.
TEND_INBOX: Final = Script(
    _ALWAYS
    + _LAST
    + """
if redis.call('EXPIRE', KEYS[1], ARGV[1]) == 0 then return false end
local id = last(KEYS[1])
if ARGV[2] ~= '' then
  local a, b = string.match(id, '(%d+)-(%d+)')
  local c, d = string.match(ARGV[2], '(%d+)-(%d+)')
  a, b, c, d = tonumber(a), tonumber(b), tonumber(c), tonumber(d)
  if a > c or (a == c and b >= d) then
    redis.call('XTRIM', KEYS[1], 'MINID', ARGV[2])
    redis.call('XDEL', KEYS[1], ARGV[2])
  end
end
return id
"""
)

# KEYS call, commands · ARGV command, we or 0 (nobody is to begin it any more), token, ttl, most marks
# -> moved (another owns the call) | first | the epoch of whoever was first. A mark is `<we> <ms> <token>`.
BEGIN_COMMAND: Final = Script(
    _ALWAYS
    + _TIME
    + """
local we = redis.call('HGET', KEYS[1], 'we')
if ARGV[2] == '0' and not we then return 'first' end
if ARGV[2] ~= '0' and we ~= ARGV[2] then return 'moved' end
local mark = redis.call('HGET', KEYS[2], ARGV[1])
if not mark then
  if redis.call('HLEN', KEYS[2]) >= num(ARGV[5]) then
    local all, old = redis.call('HGETALL', KEYS[2]), now - 1000 * num(ARGV[4])
    for i = 1, #all, 2 do
      if num(string.match(all[i + 1], ' (%d+) ')) < old then redis.call('HDEL', KEYS[2], all[i]) end
    end
  end
  mark = ARGV[2] .. ' ' .. int(now) .. ' ' .. ARGV[3]
  redis.call('HSET', KEYS[2], ARGV[1], mark)
end
redis.call('EXPIRE', KEYS[2], ARGV[4])
local by, token = string.match(mark, '^(%d+) %d+ (%w+)$')
return token == ARGV[3] and 'first' or by or '0'
"""
)

# KEYS list · ARGV ttl, answer
ANSWER: Final = Script(
    _ALWAYS
    + """
redis.call('RPUSH', KEYS[1], ARGV[2])
return redis.call('EXPIRE', KEYS[1], ARGV[1])
"""
)

# KEYS stream -> {its last-generated id, entries} | nil (it is gone)
STREAM_STATE: Final = Script(
    _READ
    + _LAST
    + """
local id = last(KEYS[1])
return id and {id, redis.call('XLEN', KEYS[1])}
"""
)
