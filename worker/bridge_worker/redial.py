"""How an agent is reached: what is tried again, how often and after which pause (Voice Agent reference §5.4)."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bridge_shared.errors import AgentFailed
from bridge_shared.protocol import deepgram as dg
from bridge_shared.protocol.media import Media
from bridge_worker.agent import Agent, count

if TYPE_CHECKING:
    from bridge_worker.worker import Hosted, Worker

RECONNECTS = 4
"""Agent connections that may fail in a row before the call is given up."""

FIRST_BACKOFF, LONGEST_BACKOFF = 0.2, 2.0

OURS = {"connect_failed", "connection_closed", "disconnected", "agent_stalled", "reader_error"}
"""Codes of failures that Deepgram has no code for."""


def tries_for(failure: AgentFailed) -> int:
    """How many connections in a row may fail like this before the call is given up."""
    if not failure.retryable:
        return 0
    if failure.code in OURS:
        return RECONNECTS
    return {dg.Retry.NO: 0, dg.Retry.ONCE: 1, dg.Retry.LIMITED: 2}.get(dg.retry_for(failure.code), RECONNECTS)


async def open_agent(
    worker: Worker,
    hosted: Hosted,
    media: Media,
    message: Mapping[str, Any],
    *,
    seconds: float,
    after: AgentFailed | None = None,
    failures: int = 0,
) -> Agent:
    """Connect, trying again as long as that may help. Cancelling it closes a half-open connection.

    Args:
        message: the settings.
        seconds: for all tries together.
        after: by what the connection before was lost.
        failures: so many in a row were lost.

    Raises:
        AgentFailed: the last refusal.
    """
    settings, loop = worker.settings, worker.loop
    key = hosted.key(settings)
    deadline = loop.time() + seconds
    pause, failure, tries = min(FIRST_BACKOFF * 2 ** max(0, failures - 1), LONGEST_BACKOFF), after, 0
    while True:
        at_once = failure is None or (dg.retry_for(failure.code) is dg.Retry.AT_ONCE and failures + tries <= 1)
        if not at_once:
            await asyncio.sleep(min(pause * random.uniform(0.5, 1.0), deadline - loop.time()))
            pause = min(pause * 2, LONGEST_BACKOFF)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                await worker.gate.enter()
        left = deadline - loop.time()
        if left <= 0:
            raise failure or AgentFailed("connect_failed", "The agent was not ready in time", retryable=True)
        try:
            limit = min(settings.agent_open_timeout, left)
            agent = await Agent.open(settings.deepgram_url, key, message, media, seconds=limit)
            worker.gate.succeeded()
            return agent
        except AgentFailed as again:
            count(again)
            failure, tries = again, tries + 1
            if again.retryable and again.code in OURS:
                worker.gate.refused()
            if not again.retryable or (again.code not in OURS and tries > tries_for(again)):
                raise
