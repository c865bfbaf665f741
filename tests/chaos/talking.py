"""Callers who talk while something goes wrong, and what must be true of their calls afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import statistics
from collections import Counter
from collections.abc import AsyncIterator

from figures import note

from bridge_shared.redis.calls import Calls
from bridge_shared.redis.connection import connect
from bridge_sim.agent import SimulatedAgent
from bridge_sim.caller import SimulatedCall
from bridge_sim.plan import CallPlan
from bridge_sim.report import CallReport

TRIES, PATIENCE_SECONDS = 4, 8.0
SENTENCES = ("thank_you", "opening_hours", "greeting_hello", "change_address")


class Talk:
    """Callers who talk until they are told to stop."""

    def __init__(self, urls: tuple[str, ...]) -> None:
        self._urls = urls
        self.stop = asyncio.Event()
        self.calls: list[SimulatedCall] = []
        self.turns = 0
        self.repeated = 0
        """Times that a caller had to say something again."""
        self._turned = asyncio.Event()

    @property
    def reports(self) -> list[CallReport]:
        return [call.report() for call in self.calls]

    async def _ask(self, call: SimulatedCall, sentence: str) -> None:
        """Say it, and again like a person who gets no answer: what is said while nobody can hear it is lost."""
        for _ in range(TRIES):
            await call.say(sentence)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE_SECONDS):
                    return await call.wait_answer()
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


async def check(
    redis_url: str, talking: Talk, agent: SimulatedAgent, experiment: str, *, every_line: bool = True
) -> None:
    """Nobody was dropped, no line is there twice, and the figures are noted.

    Args:
        every_line: all that the agent emitted is there. False where a pod died or was fenced: what was emitted in
            the quarter of a second before, or to a pod that stood still, may be missing.
    """
    assert [(r.problem, r.violations) for r in talking.reports] == [(None, [])] * len(talking.calls)
    server = await connect(redis_url, name="test")
    try:
        calls = Calls(server, "fleet", transcript_ttl=3600)
        stored = Counter(
            [
                (line.role, line.content)
                for report in talking.reports
                for line in await calls.transcript(report.conversation_id)
            ]
        )
    finally:
        await server.close()
    emitted = Counter(text for connection in agent.connections for text in connection.texts)
    assert not stored - emitted  # doubled
    if every_line:
        assert not emitted - stored  # lost
    answers = [ms for report in talking.reports for ms in report.answer_ms]
    figures = {"p50": statistics.median(answers), "max": max(answers), "turns": len(answers)}
    note(
        f"{experiment}: answer time in ms",
        **figures,
        repeated=talking.repeated,
        lines_missing=(emitted - stored).total(),
    )
