"""Experiments can be repeated: `CHAOS_REPEATS=3 pytest tests/chaos`."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import pytest
from talking import AGENT

from bridge_sim.agent import SimulatedAgent

REPEATS = int(os.environ.get("CHAOS_REPEATS", "1"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if REPEATS > 1:
        metafunc.fixturenames.append("repeat")
        metafunc.parametrize("repeat", range(REPEATS))


@pytest.fixture
async def agent() -> AsyncIterator[SimulatedAgent]:
    """An agent that takes a real one's time to connect, numbers its answers, and forgets no connection."""
    async with SimulatedAgent(AGENT, remember=10_000) as simulated:
        yield simulated
