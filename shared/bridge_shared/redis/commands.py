"""A COMMAND (LINK) from whoever is no pod, and its two small keys: who has begun it, and its answer.

| key | type | content | lives |
|---|---|---|---|
| `call:{cid}:commands` | hash | id → by the owner of which epoch it was begun, or 0: it is given up | 10 min |
| `reply:<id>` | list | the answer, for whoever asked | 30 s |
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any, Final

from bridge_shared.errors import Fenced, RedisUnavailable
from bridge_shared.frames import VERSION, Frame, Kind, pack
from bridge_shared.redis import scripts
from bridge_shared.redis.calls import CallKeys
from bridge_shared.redis.connection import Server
from bridge_shared.redis.outbox import MAXLEN

MARK_SECONDS: Final = 600
"""Longer than anybody waits for an answer, and than a pod can stand still and be alive."""

MARKS: Final = 200
"""Of one call; beyond that those that are old enough go."""

ANSWER_SECONDS: Final = 30


class Commands:
    """Both sides of a command. Errors as in `Server.execute`.

    Args:
        media: where the inboxes are, if that is another server.
    """

    def __init__(self, server: Server, media: Server | None = None) -> None:
        self._server = server
        self._media = media or server

    async def ask(
        self, pod: str, verb: str, seconds: float, *, cid: str = "", arguments: Sequence[Any] = (), command: str = ""
    ) -> bytes | None:
        """Have a pod do something.

        Args:
            cid: the call that it is about; "" for the pod itself.
            command: its id, the same when it is asked again; a new one unless given.

        Returns:
            its answer; None if it did not come within `seconds`, or the pod has no inbox. Cancelling: as unanswered.
        """
        command = command or secrets.token_hex(8)
        reply = f"reply:{command}"
        frame = Frame(VERSION, cid, 0, 0, 0, 0, 0, Kind.COMMAND, [command, verb, list(arguments), reply])
        entry = await self._media.execute(
            "XADD", f"inbox:{pod}", "NOMKSTREAM", "MAXLEN", "~", MAXLEN, "*", "f", "", "b", pack([frame])
        )
        return None if entry is None else await self.wait_answer(reply, seconds)

    async def begin(self, cid: str, command: str, *, we: int) -> int | None:
        """Mark `command` as begun by the owner of this epoch, unless it has been or was given up.

        Returns:
            None: it has not; from now on it has. Otherwise the epoch of who has begun it, 0 if it was given up.
            Cancelling: it may have been marked.

        Raises:
            Fenced: another owns the call.
        """
        by = await self._mark(cid, command, we)
        if by == b"moved":
            raise Fenced(cid)
        return None if by == b"first" else int(by)

    async def give_up(self, cid: str, command: str) -> int:
        """Nobody is to begin `command` any more. Returns the epoch of who has, 0 if nobody. Cancelling: it may have
        been given up."""
        by = await self._mark(cid, command, 0)
        return 0 if by == b"first" else int(by)

    async def _mark(self, cid: str, command: str, we: int) -> bytes:
        keys = CallKeys.of(cid)
        arguments: list[str | int] = [command, we, secrets.token_hex(8), MARK_SECONDS, MARKS]
        by: bytes = await self._server.script_again(scripts.BEGIN_COMMAND, [keys.call, keys.commands], arguments)
        return by

    async def answer(self, reply_key: str, answer: bytes) -> None:
        """Answer whoever waits at `reply_key`. Cancelling: it may have been answered."""
        await self._server.script_again(scripts.ANSWER, [reply_key], [ANSWER_SECONDS, answer])

    async def wait_answer(self, reply_key: str, seconds: float) -> bytes | None:
        """The answer, or None after `seconds`. Safe to cancel, though an answer that came just then is lost."""
        reply = await self._server.blocking("BLPOP", reply_key, str(seconds), seconds=seconds)
        if reply is None:
            return None
        if not isinstance(reply, list) or len(reply) != 2 or not isinstance(reply[1], bytes):
            raise RedisUnavailable("BLPOP gave no pair")
        return reply[1]
