"""Commands from elsewhere for the calls that are served here, and a session's way to a call that is not here any more.

The other half, with the table of commands, is `bridge_shared.remote`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from bridge_shared import logs
from bridge_shared.errors import BridgeError, CallOver, CallUnknown
from bridge_shared.frames import Frame
from bridge_shared.remote import MOVED, OK, REFUSED, Remote
from bridge_shared.types.deepgram import FunctionCall
from bridge_shared.types.extra import TurnTiming

if TYPE_CHECKING:
    from bridge_worker.conversation import Conversation
    from bridge_worker.worker import Worker

log = logs.get("worker.remote")

VERBS = {"hangup", "transfer", "agent", "activities", "respond"}
AGENT_VERBS = {"inject_agent", "inject_user", "update_prompt", "update_speak", "update_think"}


async def obey(worker: Worker, conversation: Conversation | None, frame: Frame) -> None:
    """Carry a command out, once, and answer. Cancelling it leaves whoever asked without an answer."""
    command, verb, arguments, reply = frame.body
    try:
        answer = await _obey(worker, conversation, frame.cid, command, verb, arguments)
    except BridgeError as error:
        log.warning("a command could not be carried out", cid=frame.cid, command=verb, error=str(error))
        return
    except (TypeError, ValueError) as error:
        answer = REFUSED + f"{verb} does not take these arguments: {error}".encode()
    await worker.answer(reply, answer)


async def _obey(
    worker: Worker, c: Conversation | None, cid: str, command: str, verb: str, arguments: list[Any]
) -> bytes:
    if c is None or not c.accepted:
        return MOVED
    if c.over:
        return REFUSED + b"the call is ending"
    if not await worker.commands.first(cid, command):
        return OK  # it was asked again because our answer was lost
    log.info("a command from elsewhere", cid=cid, command=verb)
    control = c.control
    match verb, arguments:
        case "hangup", [None | str() as reason]:
            c.tasks.create_task(control.hang_up(reason))
        case "transfer", [dict() as parameters]:
            c.tasks.create_task(control.transfer(parameters))
        case "agent", [str(what), *rest] if what in AGENT_VERBS:
            await control.agent_command(what, *rest)
        case "activities", [list() as activities] if all(isinstance(a, dict) and "name" in a for a in activities):
            await control.activities(activities)
        case "respond", [str(call_id), str(name), str(content)]:
            await control.respond(call_id, name, content)
        case _:
            return REFUSED + f"{verb} does not take these arguments".encode()
    return OK


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

    async def transfer(self, parameters: dict[str, Any]) -> None:
        """As `hang_up`."""
        await self._send("transfer", parameters)

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
