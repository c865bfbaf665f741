"""What a caller who was let in can do to the calls beside it, by the size and shape of its messages."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode

from bridge_shared import metrics
from bridge_sim.agent import SimulatedAgent
from bridge_sim.agent_script import AgentScript
from bridge_sim.caller import SimulatedCall
from bridge_sim.plan import CallPlan
from pods import Pod, Pods, application
from telephone import Wire, stage, wire

UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: bridge\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)

DEAR = (
    '{"type":"x","x":[' + "[]," * 349_000 + "[]]}",  # lists: each is one more for the garbage collector
    '{"type":"x","x":"' + r"\n" * 500_000 + r'\ud800"}',  # escapes, and something to mend
    '{"type":"x","x":[' + '"ab",' * 209_000 + "1]}",  # strings
)
"""Nearly 1 MiB each, and of all shapes tried those that take longest to read."""

LATE_MS = 250.0
"""The promise for the gaps in other calls' audio."""


async def flood(pod: Pod) -> None:
    """Send the dearest messages over and over, on a new connection whenever one is closed."""
    data = [Frame(Opcode.TEXT, message.encode()).serialize(mask=True) for message in DEAR]
    parts = urlsplit(pod.url)
    while True:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
            try:
                writer.write(UPGRADE)
                await reader.readuntil(b"\r\n\r\n")
                for message in itertools.cycle(data):
                    writer.write(message)
                    await writer.drain()
            finally:
                writer.transport.abort()


@pytest.mark.slow
async def test_a_caller_who_sends_the_dearest_messages_without_pause_holds_up_no_other_call(
    redis_url: str, tmp_path: Path
) -> None:
    plan = CallPlan(say=("opening_hours", "opening_hours"))
    async with (
        SimulatedAgent(AgentScript(think_s=0)) as agent,
        Pods(redis_url, agent.url, application(tmp_path)) as pods,
    ):
        edge, _ = await asyncio.gather(pods.edge(BRIDGE_OPEN_DOOR="true"), pods.worker())
        quiet = await SimulatedCall(edge.url, plan).run()
        hostile = asyncio.create_task(flood(edge))
        try:
            beside = await SimulatedCall(edge.url, plan).run()
        finally:
            hostile.cancel()
            await asyncio.wait([hostile])
    assert beside.problem is None
    assert beside.violations == []
    assert max(beside.gaps, default=0.0) <= LATE_MS
    assert max(beside.answer_ms) <= max(quiet.answer_ms) + LATE_MS


async def test_a_message_counts_as_one_for_each_kib_and_large_ones_are_read_later_and_not_lost(redis_url: str) -> None:
    too_fast = metrics.bad_input.labels(code="too_fast")
    async with stage(redis_url, messages_per_second=1000.0) as bridge, wire(bridge.url) as vaic:
        await vaic.begin()
        before = too_fast._value.get()
        for number in range(5):  # 4500 units; 4000 pass at once
            await vaic.send(vaic.activity("note", value=number, text="x" * 900 * 1024))
        assert (await bridge.event("activity", 6)).activity["value"] == 4
        assert too_fast._value.get() > before


async def hostile(url: str, name: str, sent: Counter[str]) -> None:
    """Be accepted and then attack, as fast as the edge reads; a new call whenever that one is closed."""
    while True:
        with contextlib.suppress(ConnectionClosed, TimeoutError, AssertionError, OSError):
            async with wire(url) as vaic:
                await vaic.begin()
                answers = asyncio.create_task(vaic.rest())  # a caller who does not read is another matter
                try:
                    for number in itertools.count():
                        await vaic.send(*ATTACKS[name](vaic, number))
                        sent[name] += 1
                        await asyncio.sleep(0)  # `send` gives nobody else a turn until TCP is full
                finally:
                    answers.cancel()
                    await asyncio.wait([answers])


ATTACKS: dict[str, Callable[[Wire, int], list[dict[str, Any] | bytes]]] = {
    "activities": lambda vaic, n: [vaic.activity("note", value=n)],
    "keys": lambda vaic, n: [vaic.activity("DTMF", value="0123456789" * 100)],
    "audio faster than real time": lambda vaic, n: [vaic.chunk(b"\x20" * 8000)],
    "large audio": lambda vaic, n: [vaic.chunk(b"\x20" * 700_000)],
    "streams opened and closed": lambda vaic, n: [
        {"type": "userStream.stop", "conversationId": vaic.cid},
        {"type": "userStream.start", "conversationId": vaic.cid},
    ],
    "the call begun again": lambda vaic, n: [{"type": "session.initiate", "conversationId": vaic.cid}],
    "wrong types": lambda vaic, n: [
        {"type": "userStream.chunk", "conversationId": vaic.cid, "audioChunk": n},
        {"type": "activities", "conversationId": vaic.cid, "activities": {"type": "event", "name": [n]}},
        {"type": ["session.end"]},
    ],
    "binary": lambda vaic, n: [bytes(range(256)) * 16],
}


@pytest.mark.slow
async def test_accepted_calls_that_turn_hostile_all_at_once_hold_up_no_other_call(
    redis_url: str, tmp_path: Path
) -> None:
    sent: Counter[str] = Counter()
    async with (
        SimulatedAgent(AgentScript(think_s=0), record=False) as agent,
        Pods(redis_url, agent.url, application(tmp_path)) as pods,
    ):
        edge, worker = await asyncio.gather(pods.edge(BRIDGE_OPEN_DOOR="true"), pods.worker())
        plan = CallPlan(say=("opening_hours",))
        quiet = await SimulatedCall(edge.url, plan).run()
        attacks = [asyncio.create_task(hostile(edge.url, name, sent)) for name in ATTACKS]
        try:
            beside = await SimulatedCall(edge.url, plan).run()
        finally:
            for attack in attacks:
                attack.cancel()
            await asyncio.wait(attacks)
        assert edge.running
        assert worker.running
    assert min(sent[name] for name in ATTACKS) > 5
    assert beside.problem is None
    assert beside.violations == []
    assert max(beside.gaps, default=0.0) <= LATE_MS
    assert max(beside.answer_ms) <= max(quiet.answer_ms) + LATE_MS
