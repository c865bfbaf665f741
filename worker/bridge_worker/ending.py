"""The end of a call at its owner: the last handlers, the last lines, Redis, VAIC, and the finish."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

from bridge_shared import logs, metrics, tracing
from bridge_shared.errors import BridgeError, Fenced
from bridge_shared.frames import Kind
from bridge_shared.redis.calls import Ended
from bridge_shared.types.audiocodes import SessionEndReason
from bridge_shared.types.extra import FinishEvent
from bridge_worker.finisher import finish_key
from bridge_worker.session import SessionState

if TYPE_CHECKING:
    from bridge_worker.conversation import Conversation

log = logs.get("worker.conversation")

LANES_SECONDS = 2.0
LINES_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Ending:
    """Why a call ends: one of the SDK's four reasons, and a word or sentence more."""

    reason: str
    detail: str = ""


async def carry_out(c: Conversation, ending: Ending) -> None:
    """End the call in Redis, where the first reason stands; let VAIC go, and run the `session_end` handlers.
    Cancelling it leaves the rest to the finisher of any worker."""
    began = c.loop.time()
    duration_ms = round((began - c.active_at) * 1000) if c.accepted else 0
    await lanes_idle(c)
    c.session._state = SessionState.ENDING
    c.telephony.close()
    c.agent_lane.close()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LANES_SECONDS):
            await c.keep_all_data()
    if not await c.lines.flush(LINES_SECONDS):
        log.error("transcript lines could not be stored", cid=c.cid)
    handled: Collection[str] = ()
    try:
        ended, handled = await c.until_redis(lambda: _end_in_redis(c, ending))
    except Fenced:
        return c.fenced()
    except BridgeError as error:
        log.error("the end of the call could not be recorded", cid=c.cid, error=str(error))
        ended = Ended(True, ending.reason, ending.detail, "owed")
    ending = Ending(ended.reason, ended.detail)
    letting_go = c.tasks.create_task(_let_go(c, ending, knows=not ended.first))
    metrics.calls_total.labels(outcome=ending.reason).inc()
    # the detail of a transfer is whom it goes to
    c.span.set(end_reason=ending.reason, end_detail=tracing.word(ending.detail) if ending.reason != "transfer" else "")
    log.info(
        "session ended",
        cid=c.cid,
        session_id=c.session.session_id,
        reason=ending.reason,
        duration_ms=duration_ms,
    )
    event = FinishEvent(
        session_id=c.session.session_id,
        reason=cast(SessionEndReason, ending.reason),
        duration_ms=duration_ms,
        ended_at=_now(),
        attempt=1,
        idempotency_key=finish_key(c.cid),
    )
    if ended.finish == "owed":
        await _keep_handoff(c)
        stored = "" if c.data_waits else c.data
        await c.worker.finisher.finish(c.cid, c.hosted, c.session, event, handled=handled, stored=stored)
    await letting_go


async def _let_go(c: Conversation, ending: Ending, *, knows: bool) -> None:
    """Have VAIC end the call if it does not know yet, and then let its socket go: VAIC takes a socket that is
    closed before `session.end` for a fault, and comes back (Bot API reference §3, §4)."""
    settings = c.worker.settings
    if c.accepted and not c.caller.lost and not knows and not c.leaving:
        if ending.reason == "error" and settings.failover_target is not None:
            parameters = {"transferTarget": settings.failover_target}
            activity = {"type": "event", "name": "transfer", "activityParams": parameters}
            await _ask_to_end(c, activity, settings.transfer_wait_seconds)
        await _ask_to_end(c, {"type": "event", "name": "hangup"}, settings.hangup_wait_seconds)
    c.caller.tell(Kind.CLOSE if c.accepted else Kind.REFUSE, [ending.detail or ending.reason])
    c.caller.pump()


async def _ask_to_end(c: Conversation, activity: dict[str, Any], seconds: float) -> None:
    if not c.caller.peer_ended.is_set():
        c.caller.transfer_failed.clear()
        c.caller.activities([activity], repeatable=True)
        await c.within(seconds, lambda: c.caller.peer_ended.is_set() or c.caller.transfer_failed.is_set())


async def _end_in_redis(c: Conversation, ending: Ending) -> tuple[Ended, Collection[str]]:
    """The first reason stands; whoever's it is, the handlers run here, but for those that have succeeded elsewhere."""
    calls, pod = c.worker.calls, c.worker.pod
    ended = await calls.end(
        c.cid,
        reason=ending.reason,
        detail=ending.detail,
        last=c.lines.last,
        we=c.we,
        finisher=pod,
        report=ending.reason == "error",
    )
    if ended.first or ended.finish != "owed":
        return ended, ()
    record = await calls.read(c.cid)
    if record is not None and record.finisher == pod and record.owner == pod:
        return Ended(True, ended.reason, ended.detail, "owed"), ()  # it was us, and the reply was lost
    claimed = await calls.claim_finish(c.cid, worker=pod, seen_finisher="")
    if claimed is None:
        return Ended(False, ended.reason, ended.detail, "done"), ()
    return ended, claimed.handled


async def _keep_handoff(c: Conversation) -> None:
    """Whoever ended the call was faster than the record of the transfer."""
    if (handoff := c.control.handoff) is not None:
        try:
            await c.worker.calls.keep_handoff(c.cid, handoff, finisher=c.worker.pod)
        except BridgeError as error:
            log.error("what was to be stored before the transfer is lost", cid=c.cid, error=str(error))


async def lanes_idle(c: Conversation) -> None:
    """Let the handlers finish what was queued before the end, bounded."""
    waiting = 2
    idle = asyncio.Event()

    def lane_idle() -> None:  # in the customer's loop
        c.loop.call_soon_threadsafe(one_idle)

    def one_idle() -> None:
        nonlocal waiting
        waiting -= 1
        if not waiting:
            idle.set()

    for lane in (c.telephony, c.agent_lane):
        lane.when_idle(lane_idle)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LANES_SECONDS):
            await idle.wait()


def _now() -> str:
    return datetime.now(UTC).isoformat()
