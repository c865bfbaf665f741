"""Acting on a live call from anywhere: the command goes to the inbox of the call's owner, which carries it out once.

| verb | arguments | does |
|---|---|---|
| `hangup` | reason or None | hangs up after the last words |
| `transfer` | `activityParams` of a transfer | transfers after the last words |
| `agent` | verb of the agent (`inject_agent`, `inject_user`, `update_prompt` …), its arguments | tells the agent |
| `activities` | list of activities | sends them to VAIC in one envelope |
| `respond` | id, name, content | answers a function call |

An answer says that the owner has begun, not that the caller has heard it; a hang-up or transfer is in the call's record
by then, for the next owner. Who begins marks the command with its epoch first. Whoever waited in vain marks it as given
up, so that an owner that wakes up later does not do what was refused.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import Any, Final

from bridge_shared.errors import CallOver, CallUnknown, CommandRefused
from bridge_shared.redis.calls import Calls
from bridge_shared.redis.commands import Commands

TRIES: Final = 3
ANSWER_SECONDS: Final = 2.0
PAUSE_SECONDS: Final = 0.3
"""Between tries: a call that changes hands just now has another owner soon."""

OK, MOVED, REFUSED = b"ok", b"moved", b"refused "
NOT_KNOWN: Final = "the worker that began it is gone, and it is not known whether it was carried out"


class Remote:
    """Sends commands to calls, whoever owns them.

    Args:
        calls: to find the owner.
        commands: the way to its inbox.
    """

    def __init__(self, calls: Calls, commands: Commands) -> None:
        self._calls, self._commands = calls, commands

    async def send(self, cid: str, verb: str, *arguments: Any) -> None:
        """Have the owner of a live call do this, once; returns when it has begun. Cancelling it gives up the wait:
        it may be done.

        Raises:
            CallUnknown: there is no such call.
            CallOver: it has ended.
            CommandRefused: the owner will not do it, or none answers; the message says why. It is not done later
                either, unless the message says that this is not known.
            RedisUnavailable: Redis does not answer.
        """
        command = secrets.token_hex(8)
        for attempt in range(TRIES):
            if attempt:
                await asyncio.sleep(PAUSE_SECONDS)
            record = await self._calls.read(cid)
            if record is None:
                raise CallUnknown(cid)
            if record.state == "ended":
                raise CallOver(cid)
            if record.state != "active" or not record.owner:
                continue
            answer = await self._commands.ask(
                record.owner, verb, ANSWER_SECONDS, cid=cid, arguments=list(arguments), command=command
            )
            if answer == OK:
                return
            if answer is not None and answer.startswith(REFUSED):
                raise CommandRefused(cid, answer.removeprefix(REFUSED).decode())
        begun = await self._commands.give_up(cid, command)
        if not begun:
            raise CommandRefused(cid, "no worker that owns it answers; try again")
        record = await self._calls.read(cid)
        if record is None or record.we != begun:
            raise CommandRefused(cid, NOT_KNOWN)
