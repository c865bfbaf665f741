"""One call at its owner: the agent on one side, the link to the caller's edge on the other, handlers beside.

    edge ── link ──> microphone ──> agent
    edge <── link <── speech <───── agent ──> transcript, handlers

The life of a conversation is `run`: reach the agent, accept, talk until something ends the call, end it in
Redis (the first reason stands), run the `session_end` handlers. A conversation that learns that another
worker owns the call now stops without a word: no end, no handlers, no "final" writes.

Neighbours keep this file to that story: `agent_side` has an agent on the line whatever becomes of its connections,
`agent_events` says what each of its events does; `caller_side` has the link to the edge; `function_calls` what the
agent has the application do; `commands` what handlers can ask for; `ending` how a call ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from bridge_shared import logs, metrics
from bridge_shared.errors import BridgeError, RedisUnavailable
from bridge_shared.frames import Kind
from bridge_shared.protocol.media import media
from bridge_shared.redis.calls import CallKeys, Claimed, Line
from bridge_shared.redis.transcripts import Entry, FencedStream
from bridge_shared.types.audiocodes import SessionStartEvent
from bridge_worker.agent import Agent
from bridge_worker.agent_events import AgentEvents
from bridge_worker.agent_side import UTTERANCE_SECONDS, AgentSide
from bridge_worker.caller_side import CallerSide
from bridge_worker.commands import Commands, Injections
from bridge_worker.ending import Ending, carry_out, lanes_idle
from bridge_worker.function_calls import FunctionCalls
from bridge_worker.handlers import handling
from bridge_worker.redaction import Redaction
from bridge_worker.remote import Elsewhere
from bridge_worker.session import SessionState
from bridge_worker.session_data import SessionData
from bridge_worker.speech import Speech
from bridge_worker.timings import Timings

if TYPE_CHECKING:
    from bridge_worker.worker import Hosted, Worker

T = TypeVar("T")
Why = Literal["worker_lost", "handover"]
"""How a call came to another worker."""

log = logs.get("worker.conversation")

CALL_STATES = ("offered", "active", "ending")
"""The agent is being reached; they talk; it is over and its last things are being done."""

LAST_FRAMES_SECONDS = 2.0
QUIET_LOOK_SECONDS = 0.05
GREETING_SECONDS = 5.0
"""An agent that has said nothing yet may be about to greet."""

END_TRIES_SECONDS = 30.0
AGAIN_SECONDS = 0.25
VAIC_BEHIND_SECONDS = 0.5
"""VAIC plays what it gets a network's delay later than our clock says; by then its `playFinished` is here, too."""


@dataclass(frozen=True, slots=True)
class Past:
    """What happened in a call under former owners: what was said, and the records of its function calls."""

    said: Sequence[Line] = ()
    called: Sequence[Entry] = ()


NOTHING = Past()


class _Over(Exception):
    """Stops whatever a conversation still does when it has ended."""


class Conversation:
    """Serves one claimed call.

    Args:
        worker: the pod.
        hosted: the bridge whose configuration and handlers apply.
        claimed: what the claim returned; its epoch is this conversation's.
        past: what happened under former owners. A call that is active already is taken over: its agent is
            replaced, and nobody is greeted.
        why: how such a call came here.
        agent: for such a call, one that waits for its settings already.
    """

    def __init__(
        self,
        worker: Worker,
        hosted: Hosted,
        claimed: Claimed,
        past: Past = NOTHING,
        *,
        why: Why = "worker_lost",
        agent: Agent | None = None,
    ) -> None:
        record = claimed.record
        self.cid = record.cid
        self.we = claimed.we
        self.worker = worker
        self.loop = worker.loop
        self.hosted = hosted
        self.record = record
        self.media = media(record.media_format)
        self.play = media(record.play_format or record.media_format)
        self.speech = Speech(claimed.we, self.play)
        self.lines = FencedStream(
            worker.state,
            CallKeys.of(self.cid).transcript,
            claimed.we,
            history=[(line.id, line.fields) for line in past.said],
            on_fenced=self.fenced,
        )
        self.redacted = Redaction(worker.settings.redact, hosted.config.redact)
        self.functions = FunctionCalls(self, past.called)
        self.why: Why = why
        self.claimed_at = self.loop.time()
        self.caller_spoke_at = -math.inf
        """When the caller began to speak, as long as it is not known what was said."""
        self.closed = asyncio.Event()
        """The call has ended and its `session_end` handlers have run."""
        self.accepted = record.state == "active"
        self.parting = False
        """Somebody has asked for the end or a transfer; first the last words are heard."""
        self.leaving = False
        """VAIC was asked to hang up or to transfer, and `session.end` is the answer to that."""

        self.session = hosted.session(self.cid)
        self.control = Commands(self)
        self.session._begin(record.session_id, self.cid, self.media.token, self.control)
        self._data = record.raw.get("data", "")
        self.kept: dict[str, Any] = {}
        """What this owner has written into the call's record, to write it again should Redis lose it."""
        self._data_waits = False
        self._keeping = asyncio.Lock()
        telephony = self.telephony = hosted.handlers.lane(self.session)
        self.session._data = SessionData(self._data, self._keep_soon, lambda: handling("activity", telephony))
        self.session._start = record.start
        self.agent_lane = hosted.handlers.lane(self.session)

        self.caller = CallerSide(self, claimed)
        self.agent = AgentSide(self, agent)
        self.injections = Injections(self)
        self.events = AgentEvents(self, past.said)
        self.timings = Timings(self.events.timed)
        self._over: asyncio.Future[Ending | None] = self.loop.create_future()
        self._progress = asyncio.Event()
        self.active_at = 0.0
        """When the call was accepted, on this loop's clock."""
        cause = "offered" if not self.accepted else "handover" if why == "handover" else "takeover"
        self.span = worker.tracing.part(
            "ownership", self.cid, epoch=self.we, cause=cause, bridge=hosted.name, media_format=self.media.token
        )

    async def run(self) -> None:
        """Serve the call to its end. Cancelling it drops the call without ending it: another worker may take it."""
        self.caller.open()
        try:
            async with asyncio.TaskGroup() as tasks:
                self.tasks = tasks
                tasks.create_task(self.lines.run())
                tasks.create_task(self.functions.run())
                talk = tasks.create_task(self.agent.run())
                ending = await self._over
                talk.cancel()
                self.agent.ready.set()
                if ending is not None:
                    await carry_out(self, ending)
                    self._closed()
                    await self.within(LAST_FRAMES_SECONDS, lambda: self.caller.settled)
                else:
                    await lanes_idle(self)  # they reach the call at its new owner
                raise _Over
        except* _Over:
            pass
        finally:
            self.caller.close()
            if not self._over.done():
                self._over.cancel()
                self.span.set(cut_off=True)
            await self.agent.close()
            self._closed()
            self.span.end()

    def end(self, reason: str, detail: str = "") -> None:
        """Something ends the call. The first reason stands."""
        if not self._over.done():
            self._over.set_result(Ending(reason, detail))
            self.progress()

    @property
    def state(self) -> str:
        """One of `CALL_STATES`."""
        return "ending" if self.over else "active" if self.accepted else "offered"

    @property
    def over(self) -> bool:
        """The end has begun."""
        return self._over.done()

    @property
    def quiet(self) -> bool:
        """Nobody speaks or is about to, and nothing is half done: the call can change hands unheard."""
        now, last = self.loop.time(), next(reversed(self.lines.lines), None)
        return (
            self.accepted
            and self.agent.connection is not None
            and now - self.caller_spoke_at > UTTERANCE_SECONDS
            and not (self.speech.speaking or self.injections.busy or self.parting or self.agent.busy)
            and not self.speech.may_go_on(now)
            and (last[1]["role"] != "user" if last is not None else now - self.active_at > GREETING_SECONDS)
            and not (self.telephony.busy or self.agent_lane.busy)
            and self.caller.settled
        )

    async def stored(self, seconds: float) -> bool:
        """Wait, at most so long each, until the transcript and the function calls are in Redis. Safe to cancel."""
        return await self.lines.flush(seconds) and await self.functions.flush(seconds)

    @property
    def data(self) -> str:
        """`Session.data` as JSON, as of its last change that may be written."""
        return self._data

    def _keep_soon(self, encoded: bytes) -> None:
        """`Session.data` has changed; in the customer's loop."""
        with contextlib.suppress(RuntimeError):  # the media loop is gone, and the call with it
            self.loop.call_soon_threadsafe(self.data_changed, encoded)

    def data_changed(self, encoded: bytes) -> None:
        """`Session.data` is to be written. What a running handler of `activity` set is not in it, but comes when that
        has returned, with the note that it has: an owner that dies before leaves neither, and the next one gets the
        activity again."""
        if self.closed.is_set():
            log.warning("session.data was changed after the call had left this worker, and is not kept", cid=self.cid)
            return
        self._data, self._data_waits = encoded.decode(), True
        if not self._keeping.locked():
            self.tasks.create_task(self.keep_data())

    async def keep_all_data(self) -> None:
        """`keep_data` at the end, when no activity will be handled again: with what a handler set that still runs."""
        if (encoded := self.session.data.encoded) != (self._data.encode() or b"{}"):
            self.data_changed(encoded)
        await self.keep_data()

    @property
    def data_waits(self) -> bool:
        """`Session.data` has changed and is not in Redis yet."""
        return self._data_waits

    async def keep_data(self) -> None:
        """Write `Session.data`, again and again until it is in Redis; with it goes which activity was handled last.
        Cancelling it may leave the last change unwritten."""
        async with self._keeping:
            while self._data_waits:
                self._data_waits = False
                fields = {"data": self._data, "activity": list(self.caller.handled)}
                try:
                    if not await self.worker.calls.amend(self.cid, we=self.we, fields=fields):
                        log.warning("session.data is not kept: the call is over, or elsewhere", cid=self.cid)
                except asyncio.CancelledError:
                    self._data_waits = True
                    raise
                except BridgeError as error:
                    self._data_waits = True
                    log.debug("session.data waits for Redis", cid=self.cid, error=str(error))
                    await asyncio.sleep(AGAIN_SECONDS)

    def shut_down(self) -> None:
        """The pod ends and nobody takes the call: hang up, and end it."""
        self.end("ended", "shutdown")

    def _closed(self) -> None:
        self.agent.ready.set()
        self.telephony.close()
        self.agent_lane.close()
        if not isinstance(self.session._control, Elsewhere):
            self.session._state = SessionState.ENDED
        if not self.closed.is_set():
            metrics.audio_dropped_ms.labels(where="agent_ahead").inc(self.speech.dropped_ms)
            metrics.underruns.inc(self.speech.gaps)
        self.closed.set()

    async def until_quiet(self, seconds: float) -> bool:
        """Wait for a quiet moment, at most so long; whether it has come. Cancelling it changes nothing."""
        until = self.loop.time() + seconds
        while (left := until - self.loop.time()) > 0:
            # looked at again and again, for handlers that return tell nobody
            if await self.within(min(left, QUIET_LOOK_SECONDS), lambda: self.quiet or self.over):
                break
        if not self.quiet or self.over:
            return False
        self.events.agent_rests()
        return True

    async def accept(self) -> None:
        """The agent is there: the call is active, and VAIC and the handlers learn it. Cancelling it may leave that
        undone, for the next owner."""
        if not await self.until_redis(
            lambda: self.worker.calls.activate(self.cid, we=self.we, session_id=self.session.session_id)
        ):
            # ended while the agent was being reached, or no longer ours: `end` below finds out which
            return self.end("hangup", "abandoned")
        self.accepted = True
        self.active_at = self.loop.time()
        self.kept["active_ms"] = str(int(time.time() * 1000))
        self.session._state = SessionState.ACTIVE
        formats = [self.media.token] if self.play == self.media else [self.media.token, self.play.token]
        self.caller.tell(Kind.ACCEPT, formats)
        self.telephony.put(
            "session_start",
            SessionStartEvent(
                session_id=self.session.session_id,
                conversation_id=self.cid,
                caller=self.record.caller or None,
                bot_name=self.record.bot or None,
                media_format=self.media.token,
                started_at=_now(),
            ),
        )
        self.caller.pump()

    def tick(self, now: float) -> None:
        """What comes with time: silence for the agent, and the end of a turn whose end the agent does not tell."""
        self.agent.feed(now)
        if self.speech.expire(now):
            self.events.agent_still()
            self.caller.pump()

    def fenced(self) -> None:
        """Another worker owns the call: stop without a word."""
        if not self._over.done():
            log.info("call belongs to another worker now", cid=self.cid)
            self._over.set_result(None)
            self.span.set(end_reason="fenced")
            self.session._control = Elsewhere(self.worker, self.cid)

    @property
    def elsewhere(self) -> bool:
        """It is over here because another worker has it."""
        return self._over.done() and self._over.result() is None

    async def played_out(self, seconds: float) -> None:
        """Wait, at most this long and a little more, until the caller has heard all that is to be said."""
        await self.within(seconds, lambda: self.over or not (self.speech.speaking or self.injections.busy))
        caller = self.caller
        left = caller.turn_over_at + VAIC_BEHIND_SECONDS - self.loop.time()
        await self.within(
            left, lambda: self.over or caller.play_finished_at > caller.turn_over_at - VAIC_BEHIND_SECONDS
        )

    def progress(self) -> None:
        """Something happened that `within` may be waiting for."""
        self._progress.set()

    async def within(self, seconds: float, condition: Callable[[], bool]) -> bool:
        """Wait until the condition holds, looking whenever the edge or the agent has said something."""
        try:
            async with asyncio.timeout(seconds):
                while not condition():
                    self._progress.clear()
                    await self._progress.wait()
        except TimeoutError:
            return False
        return True

    async def until_redis(self, request: Callable[[], Awaitable[T]]) -> T:
        """Make a request that may be made again, until Redis answers."""
        deadline = self.loop.time() + END_TRIES_SECONDS
        while True:
            try:
                return await request()
            except RedisUnavailable:
                if self.loop.time() > deadline:
                    raise
                await asyncio.sleep(0.25)

    def event(self, name: str, event: Any) -> None:
        """Hand an event of the agent's side to the customer's handlers."""
        self.agent_lane.put(name, event)


def _now() -> str:
    return datetime.now(UTC).isoformat()
