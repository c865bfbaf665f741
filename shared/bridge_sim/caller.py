"""A simulated VAIC that places one call on real sockets, in real time.

`SimulatedCall.run` plays a whole `CallPlan`. For anything else it is a context manager with one coroutine per thing
that a caller, or the network, may do:

    async with SimulatedCall(url, CallPlan()) as call:
        await call.connect()
        await call.initiate()
        await call.say("where_is_my_parcel")
        await call.wait_answer()
        await call.hang_up()
    report = call.report()

The rules live in `line`; here are the socket, the timer and the script.
"""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, Self

from bridge_shared.protocol.audiocodes import Violation
from bridge_shared.protocol.media import media
from bridge_sim import speech
from bridge_sim.line import JSON, Continue, Line
from bridge_sim.plan import CallPlan, CallProblem
from bridge_sim.report import CallEvent, CallReport, Heard
from bridge_sim.wire import Wire

__all__ = ["CallEvent", "CallPlan", "CallProblem", "CallReport", "Heard", "SimulatedCall", "Violation"]

ACCEPT_S: Final = 12.0
"""How long the bot may take to answer session.initiate or .resume; VAIC's own limit is not documented."""
GREETING_S: Final = 3.0
KEYS_S: Final = 5.0
CLOSE_S: Final = 5.0
"""The bot has to close the socket so soon after session.end (§4)."""
GIVE_UP_S: Final = 10.0
INTERRUPT_AFTER_S: Final = 1.0


class SimulatedCall:
    """One call. Everything runs in the task group of its `async with` block (or of `run`), and ends with it.

    Args:
        url: the bot, `ws://` or `wss://`.
        plan: what this VAIC is configured to do and, for `run`, what the caller says.
        conversation_id: a new UUID unless given.
        token: goes out as `Authorization: Bearer`.
        on_event: called in the event loop for everything worth showing; what it raises ends the call.
    """

    def __init__(
        self,
        url: str,
        plan: CallPlan,
        *,
        conversation_id: str | None = None,
        token: str | None = None,
        on_event: Callable[[CallEvent], None] | None = None,
    ) -> None:
        self.conversation_id = conversation_id or str(uuid.uuid4())
        self._url, self._plan, self._token = url, plan, token
        self._tell = on_event or (lambda event: None)
        self.line = Line(plan, self.conversation_id, _stamp, self._tell)
        self._began: float | None = None
        self._wire: Wire | None = None
        self._dropped = False
        self._news = asyncio.Event()
        self._poke = asyncio.Event()
        self._group = asyncio.TaskGroup()
        self._tasks: set[asyncio.Task[None]] = set()

    # ---- the whole call ----------------------------------------------------------------------------------------

    async def run(self) -> CallReport:
        """Play the plan, and report how far it came; a call that goes wrong is reported, not raised.

        Cancelling it drops the connection.
        """
        async with self:
            try:
                await self._play()
            except CallProblem as problem:
                self._fail(str(problem))
                self.line.report.status = problem.status
                await self._leave()
        return self.report()

    async def _play(self) -> None:
        plan = self._plan
        for name in plan.say:
            speech.prompt(name)  # an unknown name is the planner's mistake, and shows before anybody is called
        await self.connect()
        await self.initiate()
        await self.wait_greeting()
        if plan.keys and not self.line.end:
            await self.press(plan.keys)
        for turn, name in enumerate(plan.say):
            if self.line.end:
                raise CallProblem(f"the call was over ({self.line.end}) before turn {turn + 1} of {len(plan.say)}")
            await self.say(name)
            if turn == plan.barge:
                await self.wait_interruptible()
            else:
                await self.wait_answer()
            self.line.report.turns += 1
        if self.line.end or plan.hang_up_after is None:
            await self.wait_end()
        else:
            await self.hang_up()

    async def _leave(self) -> None:
        """Hang up on a bot that disappointed us, so that it is not left with a call that has lost its socket."""
        if self._connected() and not self.line.end and self.line.vaic.state != "new":
            await self.hang_up()

    # ---- piece by piece ----------------------------------------------------------------------------------------

    async def connect(self) -> None:
        """Open the socket, within 10 s. Cancelling is safe, as for every coroutine here: `async with` cleans up.

        Raises:
            CallProblem: as every coroutine here, if it does not succeed in its time.
        """
        self._begin()
        self._take(await Wire.open(self._url, self._token))
        self._tell(CallEvent("connected", self._url))

    async def validate(self) -> bool:
        """Do what the administrator's "validate" button does, on a socket of its own; whether the bot was content."""
        await self.connect()
        self._post(self.line.validate())
        await self._until(lambda: self.line.validated is not None, CLOSE_S, "no answer to connection.validate")
        await self.close()
        return self.line.validated is True

    async def initiate(self) -> None:
        """Place the call and wait, up to 12 s, until the bot takes it. The start activity follows by itself."""
        self._post(self.line.initiate())
        await self._accepted("session.initiate")
        self.line.report.setup_ms = (self._now() - self._begin()) * 1000

    async def wait_greeting(self) -> None:
        """Wait until the greeting has been heard; 3 s after the start activity nobody expects one any more."""
        until_start = max(0.0, self.line.started_at - self._now())
        if await self._within(lambda: self.line.heard_anything, until_start + GREETING_S):
            await self._until(self._quiet, self._plan.turn_timeout_s, "the end of the greeting")

    async def say(self, prompt: str | bytes) -> None:
        """Wait until VAIC listens, then speak; returns with the last sample. Bytes are audio in the agreed format."""
        line, limit = self.line, self._plan.turn_timeout_s
        await self._until(lambda: line.accepted and line.floor.open, limit, "VAIC to listen to the caller")
        if isinstance(prompt, bytes):
            audio, text = prompt, ""
        else:
            known = speech.prompt(prompt)
            audio, text = speech.render(known, media(self.line.vaic.media_format)), known.text
        ends = self.line.say(audio, text, self._now())
        self._poke.set()
        await asyncio.sleep(max(0.0, ends - self._now()))

    async def wait_answer(self) -> None:
        """Wait until what was said last has been answered and the answer has been heard to its end. Being transferred
        is an answer."""
        limit = self._plan.turn_timeout_s
        await self._until(lambda: self.line.answered or self.line.end == "transferred", limit, "an answer")
        # A bot that says goodbye and hangs up has answered, too.
        await self._until(lambda: self._quiet() or bool(self.line.end), limit, "the end of the answer")

    async def wait_interruptible(self) -> None:
        """Wait until the agent has been heard for a second, with its answer if something was said."""

        def talking() -> bool:
            return self.line.answered and self.line.playing_for(self._now()) >= INTERRUPT_AFTER_S

        limit = self._plan.turn_timeout_s
        await self._until(talking, limit, f"the agent to talk for {INTERRUPT_AFTER_S:g} s")

    async def send_dtmf(self, digits: str) -> None:
        """Press keys: one DTMF event with all of them."""
        await self.send_activity({"type": "event", "name": "DTMF", "value": digits})

    async def press(self, keys: str) -> None:
        """Press keys, and hear the answer out if one begins within 5 s."""
        self._post(self.line.press(keys, self._now()))
        if await self._within(lambda: self.line.answered or bool(self.line.end), KEYS_S) and self.line.answered:
            await self.wait_answer()

    async def send_activity(self, activity: JSON) -> None:
        """Send an activity; `id`, `timestamp` and `language` are added where they are missing."""
        self._post(self.line.activity(activity))

    async def send_raw(self, frame: str | bytes) -> None:
        """Send a text frame that this VAIC would not send."""
        self._post(frame.encode() if isinstance(frame, str) else frame)

    async def hang_up(self) -> None:
        """The caller hangs up: session.end, and the bot has 5 s to close the socket."""
        self._post(self.line.hang_up("client-disconnected", "Client Side", self._now()))
        await self._closed_by_bot()

    async def wait_end(self) -> None:
        """Wait until the bot has ended the call, by `hangup` or by transferring it, and closed its socket."""
        await self._within(lambda: bool(self.line.end), self._plan.turn_timeout_s)
        if not self.line.end:
            raise CallProblem(f"the bot did not end the call within {self._plan.turn_timeout_s:g} s")
        await self._closed_by_bot()

    async def drop(self) -> None:
        """Lose the TCP connection without a close frame."""
        wire, self._dropped = self._connection(), True
        wire.abort()
        await self._until(lambda: wire.closed, CLOSE_S, "the connection to drop")

    async def resume(self, url: str | None = None, *, stream: Continue = "fresh") -> None:
        """Go on over a new socket, at the same bot or at another.

        Args:
            url: where, if not at the URL of the call.
            stream: whether a caller who was being heard gets a fresh userStream.start, or chunks simply go on.

        If the old socket is still open, the two overlap, and the bot has 5 s to close the old one.
        """
        self._begin()
        began, old = self._now(), self._wire if self._connected() else None
        self._take(await Wire.open(url or self._url, self._token))
        if old is not None:
            self.line.lost(self._now())
        self._dropped = False
        self._post(self.line.resume(stream))
        await self._accepted("session.resume")
        self.line.report.resume_ms.append((self._now() - began) * 1000)
        if old is not None and not await self._within(lambda: old.closed, CLOSE_S):
            self.line.violation("old_socket_left_open", f"{CLOSE_S:g} s after the call was resumed on a new one")

    async def close(self) -> None:
        """Close the socket in the ordinary way, within 1 s. VAIC does so only when there is no call on it."""
        self._dropped = True
        if self._wire is not None:
            await self._wire.close()

    def report(self) -> CallReport:
        """How the call went so far; final after `run` or the `async with` block."""
        began = self._begin()
        return self.line.final_report(began, self._now())

    # ---- tasks -------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        self._spawn(self._clock())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.close()
        finally:
            for task in self._tasks:
                task.cancel()
            # The group need not know of errors in the block: they shall arrive as they are, not as a group of one.
            # Cancellation it has to know, because that is how it stops the block when one of its tasks has failed.
            cancelled = isinstance(error, asyncio.CancelledError)
            await self._group.__aexit__(kind if cancelled else None, error if cancelled else None, trace)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = self._group.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _clock(self) -> None:
        """Do in time what VAIC does by itself."""
        while True:
            self._send(self.line.tick(self._now()))
            self._announce()
            wait = max(0.0, min(self.line.deadline() - self._now(), 60.0))
            try:
                async with asyncio.timeout(wait):
                    await self._poke.wait()
            except TimeoutError:
                pass  # the deadline is what was waited for
            self._poke.clear()

    def _take(self, wire: Wire) -> None:
        self._wire = wire
        self._spawn(self._serve(wire))

    async def _serve(self, wire: Wire) -> None:
        """One socket from its opening to its end, and what VAIC does when it was not meant to end."""
        how = await wire.run(lambda frame: self._deliver(wire, frame))
        self._announce()
        if wire is not self._wire or self.line.end:
            return
        self.line.lost(self._now())
        self._tell(CallEvent("dropped", how))
        if self._dropped:
            return
        in_call = self.line.vaic.media_format != ""
        if self._plan.resume_after_s is None or not in_call:
            self._fail(f"the socket was lost: {how}")
            self.line.end = "lost"
            self._announce()
        else:
            await self._come_back(self._plan.resume_after_s)

    async def _come_back(self, pause: float) -> None:
        """Resume, as VAIC does after losing its socket, at one address and the other in turn."""
        last = self._now() + GIVE_UP_S
        for url in itertools.cycle((self._plan.resume_url or self._url, self._url)):
            await asyncio.sleep(pause)
            try:
                await self.resume(url)
                return
            except CallProblem as problem:
                if self.line.end or self._now() > last:
                    self._fail(f"the call could not be resumed: {problem}")
                    self.line.end = self.line.end or "lost"
                    self._announce()
                    return

    def _deliver(self, wire: Wire, frame: bytes) -> None:
        if wire is self._wire:  # what an old socket still says is nobody's business
            self._send(self.line.receive(frame, self._now()))
            self._poke.set()
            self._announce()

    # ---- waiting and sending -----------------------------------------------------------------------------------

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _begin(self) -> float:
        if self._began is None:
            self._began = self._now()
        return self._began

    def _quiet(self) -> bool:
        return self.line.quiet(self._now())

    def _connected(self) -> bool:
        return self._wire is not None and not self._wire.closed

    def _connection(self) -> Wire:
        if self._wire is None or self._wire.closed:
            raise CallProblem("there is no connection to the bot")
        return self._wire

    def _post(self, frame: bytes) -> None:
        self._connection().post((frame,))
        self._poke.set()

    def _send(self, frames: list[bytes]) -> None:
        if frames and self._wire is not None and not self._wire.closed:
            self._wire.post(frames)

    def _fail(self, problem: str) -> None:
        self.line.report.problem = self.line.report.problem or problem

    def _announce(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def _within(self, ready: Callable[[], bool], seconds: float) -> bool:
        """Whether it came true in that time."""
        try:
            async with asyncio.timeout(seconds):
                while not ready():
                    await self._news.wait()
        except TimeoutError:
            return ready()
        return True

    async def _until(self, ready: Callable[[], bool], seconds: float, what: str) -> None:
        """Raises CallProblem if it has not come true in that time, or cannot because the call is over."""
        await self._within(lambda: ready() or bool(self.line.end), seconds)
        if ready():
            return
        if self.line.end:
            raise CallProblem(self.line.report.problem or f"the call ended ({self.line.end}) while waiting for {what}")
        raise CallProblem(f"{self._moment()}: waited {seconds:g} s for {what}")

    def _moment(self) -> str:
        turns = self.line.report.turns
        return f"after {turns} turns" if turns else "at the beginning"

    async def _accepted(self, asked: str) -> None:
        await self._until(lambda: self.line.accepted, ACCEPT_S, f"the answer to {asked}")

    async def _closed_by_bot(self) -> None:
        wire = self._wire
        if wire is not None and not await self._within(lambda: wire.closed, CLOSE_S):
            self.line.violation("socket_left_open", f"{CLOSE_S:g} s after session.end")


def _stamp() -> JSON:
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {"id": str(uuid.uuid4()), "timestamp": now}
