"""Callers that send nonsense beside callers who talk: nobody else notices, and no pod dies of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from experiment import experiment
from figures import note
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as connect_websocket
from websockets.exceptions import ConnectionClosed

from bridge_sim.agent import SimulatedAgent
from pods import Pod

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

FUZZERS, MESSAGES, PER_SOCKET, ANSWER_SECONDS = 4, 5000, 200, 0.5
PATIENCE_SECONDS = 20.0
FREQUENCY = (20, 20, 20, 20, 20, 20, 20, 1)
"""How often each kind of message comes; an end now and then, for nothing is read after it."""

MOST_MIB = 60.0
"""By how much the edge may have grown; allocators keep what they once had."""

VALUES: tuple[Any, ...] = (None, True, -1, 2**70, 1e308, "", "x" * 5000, "\ud800", "\x00", [], {}, [[]], {"a": {}})


def _messages(cid: str) -> list[dict[str, Any]]:
    """One of each kind that VAIC sends, in order."""
    activity = {"type": "event", "name": "start", "parameters": {"locale": "en"}}
    return [
        {
            "type": "session.initiate",
            "conversationId": cid,
            "botName": "fuzz",
            "caller": "+49301",
            "expectAudioMessages": True,
            "supportedMediaFormats": ["raw/mulaw"],
        },
        {"type": "activities", "conversationId": cid, "activities": [activity]},
        {"type": "userStream.start", "conversationId": cid},
        {"type": "userStream.chunk", "conversationId": cid, "audioChunk": "f39/f39/"},
        {"type": "userStream.stop", "conversationId": cid},
        {"type": "session.resume", "conversationId": cid},
        {"type": "connection.validate"},
        {"type": "session.end", "conversationId": cid, "reasonCode": "client-disconnected", "reason": "x"},
    ]


def _mutated(dice: random.Random, message: dict[str, Any]) -> str | bytes:
    """The message with something wrong: a field, its JSON, its characters, or the kind of frame."""
    message = dict(message)
    for _ in range(dice.randrange(3)):
        message[dice.choice([*message, "unknown"])] = dice.choice(VALUES)
    text = json.dumps(message)
    match dice.randrange(5):
        case 0:
            return text[: dice.randrange(len(text))]
        case 1:
            at = dice.randrange(len(text))
            return text[:at] + chr(dice.randrange(0xD7FF)) + text[at + 1 :]
        case 2:
            return dice.randbytes(dice.randrange(200))
        case 3:
            return text * dice.randrange(1, 4)
        case _:
            return text


async def _fuzz(url: str, dice: random.Random, answers: Counter[str]) -> None:
    """Send so many messages over one socket after the other, and count what the edge answers."""
    sent = 0
    while sent < MESSAGES:
        messages = _messages(str(uuid.UUID(int=dice.getrandbits(128))))
        async with connect_websocket(url, proxy=None, close_timeout=1, max_size=None) as socket:
            accepted = asyncio.Event()
            reading = asyncio.create_task(_read(socket, answers, accepted))
            try:
                if dice.random() < 0.5:  # nonsense in mid-call; otherwise from the beginning
                    await socket.send(json.dumps(messages[0]))
                    async with asyncio.timeout(PATIENCE_SECONDS):
                        await accepted.wait()
                with contextlib.suppress(ConnectionClosed):
                    for _ in range(PER_SOCKET):
                        sent += 1
                        await socket.send(_mutated(dice, dice.choices(messages, FREQUENCY)[0]))
                await asyncio.wait([reading], timeout=ANSWER_SECONDS)
            finally:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)


async def _read(socket: ClientConnection, answers: Counter[str], accepted: asyncio.Event) -> None:
    with contextlib.suppress(ConnectionClosed):
        async for message in socket:
            kind = json.loads(message)["type"]
            answers[kind] += 1
            if kind == "session.accepted":
                accepted.set()
    answers["closed by the edge"] += 1


def _mib(pod: Pod) -> float:
    """Its resident memory."""
    pages = int(Path(f"/proc/{pod.pid}/statm").read_text().split()[1])
    return pages * 4096 / 2**20


@pytest.mark.gate
async def test_twenty_thousand_mutated_messages_end_no_pod_and_disturb_no_caller(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path
) -> None:
    name = f"{FUZZERS * MESSAGES} mutated messages from others"
    answers: Counter[str] = Counter()
    async with experiment(redis_url, agent, tmp_path, name, "0 crashes, 0 calls disturbed") as e:
        edge, before = e.edges[0], _mib(e.edges[0])
        await asyncio.gather(*(_fuzz(edge.url, random.Random(seed), answers) for seed in range(FUZZERS)))
        await e.another_turn()
        grown = _mib(edge) - before
        assert all(pod.running for pod in e.pods.all)
        assert not any(line for pod in e.pods.all for line in pod.log if line.get("exception"))
        assert [len(report.resume_ms) for report in e.talking.reports] == [0] * len(e.talking.calls)
        assert grown < MOST_MIB
        assert answers["session.accepted"] and answers["closed by the edge"]  # they got as far as having calls
    note(f"{name}: what it cost the edge", "memory bounded", grown_mib=grown, **answers)
