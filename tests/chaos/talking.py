"""Callers who talk while something goes wrong."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from bridge_sim.agent import AgentScript
from bridge_sim.caller import SimulatedCall
from bridge_sim.plan import CallPlan
from bridge_sim.report import CallReport
from pods import Pod, application

TRIES, PATIENCE_SECONDS = 4, 8.0
SENTENCES = ("thank_you", "opening_hours", "greeting_hello", "change_address")

CONNECT_SECONDS = 0.25
"""What a real agent takes to be ready."""

SAFE_SECONDS = 0.25
"""A line that the agent emitted so long before a pod died is never lost."""

AGENT = AgentScript(open_delay_s=CONNECT_SECONDS, numbered=True)
"""No two of its answers are the same."""

COMMANDS = """
import contextlib

@bridge.on("conversation_text")
async def command(session, event):
    if event.role == "assistant":
        with contextlib.suppress(RuntimeError):  # the call is over
            await session.send_meta_data({"line": event.content})
"""
"""One command that must not be carried out twice for each answer of the agent."""


def talking_application(folder: Path) -> Path:
    """An application that gives VAIC a command for each answer of the agent."""
    return application(folder, COMMANDS)


class Talk:
    """Callers who talk until they are told to stop."""

    def __init__(self, urls: tuple[str, ...]) -> None:
        self._urls = urls
        self._loop = asyncio.get_running_loop()
        self.stop = asyncio.Event()
        self.calls: list[SimulatedCall] = []
        self.turns = 0
        self.repeated = 0
        """Times that a caller had to say something again."""
        self.waits: list[float] = []
        """Seconds from the end of what a caller said, for the first time, to the first sound that he heard then."""
        self.faults: list[tuple[float, float]] = []
        """From when to when, on the loop's clock, something was broken."""
        self._turned = asyncio.Event()

    @property
    def reports(self) -> list[CallReport]:
        return [call.report() for call in self.calls]

    @contextlib.contextmanager
    def fault(self, *, after: float = 0.5) -> Iterator[None]:
        """Something is broken in this block and for `after` seconds: what the agent emits meanwhile may be lost."""
        began = self._loop.time()
        yield
        self.faults.append((began - SAFE_SECONDS, self._loop.time() + after))

    async def another_turn(self, seconds: float = 60) -> None:
        """Wait until as many turns are over as there are callers."""
        turns = self.turns
        async with asyncio.timeout(seconds):
            while self.turns < turns + len(self.calls):
                self._turned.clear()
                await self._turned.wait()

    async def _ask(self, call: SimulatedCall, sentence: str) -> None:
        """Say it, and again like a person who gets no answer: what is said while nobody can hear it is lost."""
        asked: float | None = None
        for _ in range(TRIES):
            await call.say(sentence)
            asked = self._loop.time() if asked is None else asked
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE_SECONDS):
                    await call.wait_answer()
                self.waits.append(_heard_after(call, asked) - asked)
                return
            self.repeated += 1
        raise AssertionError(f"{call.conversation_id}: {TRIES} times unanswered")

    async def begun(self, callers: int) -> None:
        """Wait until so many callers have had an answer."""
        while sum(bool(report.answer_ms) for report in self.reports) < callers:
            self._turned.clear()
            await self._turned.wait()

    async def caller(self, number: int) -> None:
        """One call; if its socket is lost it goes on at the next of the edges."""
        url, other = self._urls[number % len(self._urls)], self._urls[(number + 1) % len(self._urls)]
        plan = CallPlan(turn_timeout_s=45, resume_after_s=0.1, resume_url=other)
        async with SimulatedCall(url, plan) as call:
            self.calls.append(call)
            await call.connect()
            await call.initiate()
            for sentence in itertools.cycle(SENTENCES):
                await self._ask(call, sentence)
                self.turns += 1
                self._turned.set()
                if self.stop.is_set():
                    break
            await call.hang_up()


def _heard_after(call: SimulatedCall, moment: float) -> float:
    """When sound of the agent first began at the caller's ear after that moment of the loop's clock; that moment if it
    had begun before."""
    runs = [at for stream in call.line.clock.streams for at, _ in stream.runs]
    return min((at for at in runs if at >= moment), default=moment)


@contextlib.asynccontextmanager
async def talk(callers: int, *urls: str) -> AsyncIterator[Talk]:
    """So many callers, who have all had an answer when the block begins; when it ends each finishes its turn and
    hangs up."""
    talking = Talk(urls)
    async with asyncio.TaskGroup() as tasks:
        for number in range(callers):
            tasks.create_task(talking.caller(number))
        async with asyncio.timeout(60):
            await talking.begun(callers)
        yield talking
        talking.stop.set()


def busiest(workers: list[Pod]) -> Pod:
    """The worker that has most of the calls: a fault that befalls an idle one shows nothing."""
    return max(workers, key=lambda worker: len(worker.logged("agent connected")))
