"""Commands from elsewhere for the calls that are served here, and a session's way to a call that is not here any more.

The other half, with the table of commands, is `bridge_shared.remote`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from bridge_shared import logs
from bridge_shared.errors import BridgeError, CallOver, CallUnknown, Fenced
from bridge_shared.frames import Frame
from bridge_shared.remote import MOVED, NOT_KNOWN, OK, REFUSED, Remote
from bridge_shared.types.deepgram import FunctionCall
from bridge_shared.types.extra import TurnTiming
from bridge_worker.leaving import Leave

if TYPE_CHECKING:
    from bridge_worker.conversation import Conversation
    from bridge_worker.worker import Worker

log = logs.get("worker.remote")

Deed = Callable[[], Coroutine[Any, Any, None]]

VERBS = {"hangup", "transfer", "agent", "activities", "respond"}


async def obey(worker: Worker, conversation: Conversation | None, frame: Frame) -> None:
    """Carry a command out, once, and answer. Cancelling it leaves whoever asked without an answer."""
    command, verb, arguments, reply = frame.body
    try:
        answer = await _obey(worker, conversation, frame.cid, command, verb, arguments)
    except BridgeError as error:
        log.warning("a command could not be carried out", cid=frame.cid, command=verb, error=str(error))
        return
    await worker.answer(reply, answer)


async def _obey(
    worker: Worker, c: Conversation | None, cid: str, command: str, verb: str, arguments: list[Any]
) -> bytes:
    if c is None or not c.accepted:
        return MOVED
    if c.over:
        return REFUSED + b"the call is ending"
    try:
        deed = _deed(c, verb, arguments)
    except ValueError as error:
        return REFUSED + str(error).encode()
    if deed is None:
        return REFUSED + f"{verb} does not take these arguments".encode()
    try:
        begun = await worker.commands.begin(cid, command, we=c.we)
    except Fenced:
        return MOVED
    if begun == 0:
        return REFUSED + b"whoever asked for it has given it up"
    if begun != c.we:  # otherwise it was asked again because our answer was lost
        if isinstance(deed, Leave):  # of a former owner, too: twice does no harm
            if deed.transfers and c.parting and not c.control.leaves_by(deed):
                return REFUSED + b"the call is being transferred or hung up already"
            c.control.intend(deed)
        elif begun is not None:
            return REFUSED + NOT_KNOWN.encode()
        log.info("a command from elsewhere", cid=cid, command=verb)
        c.tasks.create_task(_do(c, verb, deed))
    if isinstance(deed, Leave) and not await c.control.noted():
        return MOVED
    return OK  # should this worker die now, the next owner leaves the call as asked


async def _do(c: Conversation, verb: str, deed: Deed | Leave) -> None:
    """A command from elsewhere that fails costs nothing but itself, least of all the call."""
    try:
        await (c.control.leave(deed) if isinstance(deed, Leave) else deed())
    except Exception:
        log.exception("a command from elsewhere failed", cid=c.cid, command=verb)


def _deed(c: Conversation, verb: str, arguments: list[Any]) -> Deed | Leave | None:
    """What is to be done, or None for what nobody does. Raises ValueError for what cannot be done."""
    control = c.control
    match verb, arguments:
        case "hangup", [None | str() as reason]:
            return Leave.hang_up(reason)
        case "transfer", [dict() as parameters]:
            return Leave.transfer(c.cid, parameters)
        case "transfer", [dict() as parameters, str(summary)]:
            return Leave.transfer(c.cid, parameters, summary)
        case "agent", [("inject_agent" | "inject_user" | "update_prompt") as what, str(text)]:
            return lambda: control.agent_command(what, text)
        case "agent", [("update_speak" | "update_think") as what, dict() as block]:
            return lambda: control.agent_command(what, block)
        case "activities", [list() as activities] if all(isinstance(a, dict) and "name" in a for a in activities):
            return lambda: control.activities(activities)
        case "respond", [str(call_id), str(name), str(content)]:
            return lambda: control.respond(call_id, name, content)
    return None


class Elsewhere:
    """The control of a session whose call another worker has now (`bridge_worker.session.Control`)."""

    def __init__(self, worker: Worker, cid: str) -> None:
        self._remote = Remote(worker.calls, worker.commands)
        self._worker, self._cid = worker, cid
        self.loop: asyncio.AbstractEventLoop = worker.loop

    async def agent_command(self, verb: str, *arguments: Any) -> None:
        await self._send("agent", verb, *arguments)

    async def respond(self, call_id: str, name: str, content: str) -> None:
        await self._send("respond", call_id, name, content)

    async def activities(self, activities: list[dict[str, Any]]) -> None:
        await self._send("activities", activities)

    async def hang_up(self, reason: str | None) -> None:
        """Returns when the other worker has begun: the end is not told here."""
        await self._send("hangup", reason)

    async def transfer(self, parameters: dict[str, Any], summary: str) -> None:
        """As `hang_up`. The other worker stores what the next one should know, and has its application prepare it."""
        await self._send("transfer", parameters, *([summary] if summary else []))  # an older worker takes only one

    async def over(self) -> None:
        """The end is not told here."""

    def idempotency_key(self, call: FunctionCall) -> str:
        raise RuntimeError("the call is at another worker now, which carries its function calls out")

    def turn_timings(self) -> list[TurnTiming]:
        return []

    async def _send(self, verb: str, *arguments: Any) -> None:
        try:
            await self._remote.send(self._cid, verb, *arguments)
        except (CallOver, CallUnknown) as error:
            raise RuntimeError(f"cannot {verb}: {error}") from error
