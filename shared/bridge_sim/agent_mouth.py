"""The speaking half of a simulated agent: one turn after the other, faster than real time, until it is interrupted."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from bridge_shared.protocol.deepgram import FunctionResponse
from bridge_shared.protocol.media import Media
from bridge_sim import speech
from bridge_sim.agent_line import Line
from bridge_sim.agent_script import AgentScript, Call, Faults, Reply, say, spoken


@dataclass(slots=True, eq=False)
class Turn:
    """One thing the agent does before it listens again.

    Attributes:
        reply: what it is.
        think_s: how long it takes to begin.
        calls: by id, the functions requested, each with its `response` once that is there.
        cut: the caller has interrupted; whatever comes next in it must not be sent.
        wake: set when `cut` or a response changes what the turn waits for.
        unsent: the rest of the sentence being sent.
        audible: some of it has been sent as audio.
    """

    reply: Reply
    think_s: float = 0.0
    calls: dict[str, dict[str, Any]] = field(default_factory=dict)
    cut: bool = False
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    unsent: bytes = b""
    audible: bool = False

    def unanswered(self) -> list[dict[str, Any]]:
        return [call for call in self.calls.values() if "response" not in call]


class Mouth:
    """Speaks on a line, in the format given.

    Attributes:
        functions: by name, the functions that the settings offer.
        cancelled: the calls of the last turn that an interruption cancelled, as (name, arguments).
        announce: send AgentStartedSpeaking, which the live service calls experimental (§4.2).
    """

    def __init__(self, line: Line, script: AgentScript, faults: Faults, changed: Callable[[], None]) -> None:
        self.media: Media | None = None
        self.functions: Mapping[str, Mapping[str, Any]] = {}
        self.cancelled: tuple[tuple[str, str], ...] = ()
        self.announce = False
        self._line, self._script, self._faults, self._changed = line, script, faults, changed
        self._sizes = itertools.cycle(script.burst)
        self._waiting: asyncio.Queue[Turn] = asyncio.Queue()
        self._turn: Turn | None = None
        self._asking: list[Turn] = []  # requested something and not yet got all of it; a turn may ask before it begins
        self._clock = asyncio.get_running_loop().time
        self._heard_until = 0.0

    @property
    def busy(self) -> bool:
        """In mid-turn by the agent's own clock: what it has sent would still be playing (§4.1)."""
        return self._turn is not None or not self._waiting.empty() or self._clock() < self._heard_until

    def put(self, turn: Turn) -> None:
        """Have this done after everything that was asked for before."""
        self._waiting.put_nowait(turn)

    async def run(self) -> None:
        """Speak for ever. Cancelling falls silent at once."""
        while True:
            self._turn = await self._waiting.get()
            await self._perform(self._turn)
            self._turn = None
            self._changed()

    async def interrupt(self) -> None:
        """Stop speaking and forget what was to be said (§6), with late frames and the final mark as scripted."""
        while not self._waiting.empty():
            self._waiting.get_nowait()
        self._heard_until = self._clock()
        pending = [call for turn in self._asking for call in turn.unanswered()]
        self._asking.clear()
        turn = self._turn
        interrupted = turn is not None and not turn.cut
        if turn is not None:
            turn.cut = True
            turn.wake.set()
        if pending:
            self.cancelled = tuple((call["name"], call["arguments"]) for call in pending)
            await self._line.send(self._line.server.function_cancelled(pending))
        if turn is None or not interrupted:
            return
        for _ in range(self._faults.late_audio_frames):
            await self._line.send_audio(self._next_frame(turn))
        if turn.audible and not self._faults.no_audio_done:
            await self._line.send(self._line.server.audio_done())

    def answered(self, response: FunctionResponse) -> None:
        """The client has answered a call."""
        for turn in self._asking:
            if response.id in turn.calls:
                turn.calls[response.id]["response"] = response.content
                turn.wake.set()

    async def request(self, turn: Turn, functions: Sequence[tuple[str, str]]) -> None:
        """Ask for these functions (name, arguments) in one message; what is not the client's to answer is run here."""
        for name, arguments in functions:
            ours = "endpoint" not in self.functions.get(name, {})
            call: dict[str, Any] = {
                "id": f"call_{uuid4().hex[:12]}",
                "name": name,
                "arguments": arguments,
                "client_side": ours,
            }
            turn.calls[call["id"]] = call
        self._asking.append(turn)
        await self._line.send(self._line.server.function_request(dict(call) for call in turn.calls.values()))
        for call in turn.calls.values():
            if not call["client_side"]:
                call["response"] = '{"state":"done"}'
                await self._line.send(self._line.server.function_done(call["id"], call["name"], call["response"]))

    async def _perform(self, turn: Turn) -> None:
        if await self._pause(turn, turn.think_s):
            return
        reply = turn.reply
        if isinstance(reply, Call):
            if not turn.calls:
                await self.request(turn, reply.functions)
            while turn.unanswered() and not turn.cut:
                turn.wake.clear()
                await turn.wake.wait()
            if turn.cut:
                return
            self._asking = [other for other in self._asking if other is not turn]
            calls = list(turn.calls.values())
            await self._line.history({"function_calls": calls})
            reply = say(*(call["response"][:300] for call in calls if call["response"].strip()))
        await self._say(turn, reply.sentences)

    async def _say(self, turn: Turn, sentences: Sequence[str]) -> None:
        assert self.media is not None  # set before the first turn, from the settings
        if turn.cut:
            return
        if self.announce:
            await self._line.send(self._line.server.agent_started(turn.think_s + 0.05, 0.05, turn.think_s))
        for sentence in sentences:
            for _ in range(self._faults.latency_flood):
                await self._line.send(self._line.server.latency_report(stt_latency=0.08))
            if turn.cut:
                return
            await self._line.text("assistant", sentence)
            turn.unsent = speech.render_text(spoken(sentence), self.media)
            while turn.unsent and not turn.cut:
                frame = self._next_frame(turn)
                seconds = self.media.ms(len(frame)) / 1000
                self._heard_until = max(self._heard_until, self._clock()) + seconds
                turn.audible = True
                await self._line.send_audio(frame)
                self._changed()
                await self._pause(turn, seconds / self._script.speed)
            if turn.cut:
                return
        await self._line.send(self._line.server.audio_done())

    def _next_frame(self, turn: Turn) -> bytes:
        size = next(self._sizes)
        frame, turn.unsent = turn.unsent[:size], turn.unsent[size:]
        # A late frame after the end of a sentence: there is always some audio on its way.
        return frame or b"\xff" * 161

    async def _pause(self, turn: Turn, seconds: float) -> bool:
        """Whether the turn was cut meanwhile."""
        if seconds > 0 and not turn.cut:
            turn.wake.clear()
            try:
                async with asyncio.timeout(seconds):
                    await turn.wake.wait()
            except TimeoutError:
                return turn.cut
        return turn.cut
