"""One experiment: a cluster, callers who talk, something that goes wrong, and a judgement.

async with experiment(redis_url, agent, tmp_path, "worker SIGKILL", "0 dropped") as e:
    with e.fault():
        busiest(e.workers).kill()
    await e.another_turn()
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

from judging import judge
from talking import Talk, talk, talking_application

from bridge_sim.agent import SimulatedAgent
from pods import Pod, Pods

CALLS = 6


@dataclass
class Experiment:
    """A cluster under load."""

    agent: SimulatedAgent
    pods: Pods
    edges: list[Pod]
    workers: list[Pod]
    talking: Talk

    def fault(self, *, after: float = 0.5) -> contextlib.AbstractContextManager[None]:
        """Something is broken in this block, see `Talk.fault`."""
        return self.talking.fault(after=after)

    async def another_turn(self) -> None:
        """Wait until as many turns are over as there are callers."""
        await self.talking.another_turn()


def _urls(edges: list[Pod]) -> list[str]:
    return [edge.url for edge in edges]


@contextlib.asynccontextmanager
async def experiment(
    redis_url: str,
    agent: SimulatedAgent,
    folder: Path,
    name: str,
    promise: str,
    *,
    edges: int = 1,
    workers: int = 2,
    calls: int = CALLS,
    urls: Callable[[list[Pod]], list[str]] = _urls,
    **settings: str,
) -> AsyncIterator[Experiment]:
    """Callers who have all had an answer talk in this block, and are judged when it is over.

    Args:
        name, promise: for the table.
        urls: where they call, given the edges.
        settings: of every pod.
    """
    async with Pods(redis_url, agent.url, talking_application(folder), **settings) as pods:
        started = await asyncio.gather(*(pods.edge() for _ in range(edges)), *(pods.worker() for _ in range(workers)))
        async with talk(calls, *urls(started[:edges])) as talking:
            yield Experiment(agent, pods, started[:edges], started[edges:], talking)
        await judge(redis_url, talking, agent, pods, f"{name}, {calls} calls", promise)
