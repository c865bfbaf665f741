"""`bridgectl call` against a real bridge: what it counts, what it limits, what it writes."""

from __future__ import annotations

import asyncio
import wave
from pathlib import Path

import pytest

from bridge_sim.agent import SimulatedAgent
from bridge_sim.report import CallEvent
from deepgram_audiocodes_bridge import DeepgramBridge, cli_call
from harness import GREETING, configuration, running


async def test_many_calls_are_added_up_and_never_more_at_a_time_than_asked(redis_url: str):
    totals, live, most = cli_call.Totals(), 0, 0

    def watch(event: CallEvent) -> None:
        nonlocal live, most
        live += {"connected": 1, "ended": -1}.get(event.kind, 0)
        most = max(most, live)

    bridge = DeepgramBridge(configuration())
    async with SimulatedAgent() as agent, running(bridge, redis_url, agent) as app:
        options = cli_call.Options(app.url, calls=3, rate=100, concurrency=2)
        await cli_call.place(options, totals.add, on_event=watch)
    assert totals.problems == {}
    assert (totals.calls, len(totals.setup_ms), most) == (3, 3, 2)


async def test_what_the_caller_heard_is_written_as_a_wav_file(redis_url: str, tmp_path: Path):
    heard = tmp_path / "heard.wav"
    totals = cli_call.Totals()
    bridge = DeepgramBridge(configuration(greeting=GREETING))
    async with SimulatedAgent() as agent, running(bridge, redis_url, agent) as app:
        options = cli_call.Options(app.url, formats=("raw/lpcm16",), wav_out=heard)
        await cli_call.place(options, totals.add)
    assert totals.problems == {}
    with wave.open(str(heard)) as file:
        assert (file.getframerate(), file.getsampwidth(), file.getnchannels()) == (16000, 2, 1)
        assert any(file.readframes(file.getnframes()))


async def test_cancelling_ends_the_calls_under_way(redis_url: str):
    began, reports = asyncio.Event(), []
    bridge = DeepgramBridge(configuration(greeting=GREETING))
    async with SimulatedAgent() as agent, running(bridge, redis_url, agent) as app:
        options = cli_call.Options(app.url, calls=2, rate=100, say=("long_story",))
        placing = asyncio.create_task(cli_call.place(options, reports.append, on_event=lambda event: began.set()))
        await began.wait()
        placing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await placing
    assert reports == []
