"""Agent's audio in another format than the caller's: each `playStream.start` names its own (Bot API reference §2.3)."""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from bridge_shared.protocol.media import FORMATS, media, wav_header
from bridge_sim import speech
from bridge_sim.agent import SimulatedAgent
from conftest import RedisServer
from deepgram_audiocodes_bridge import DeepgramBridge
from harness import AGENT, configuration
from pods import Pods, application, calling
from telephone import Stage, heard, stage, types, wire

MULAW, WIDE = media("raw/mulaw"), media("raw/lpcm16")
OFFERED = ["raw/mulaw", "raw/lpcm16"]
BOTH = {
    "input": {"encoding": "mulaw", "sample_rate": 8000},
    "output": {"encoding": "linear16", "sample_rate": 16000, "container": "none"},
}
"""The agent's `audio` for a caller in µ-law who is spoken to in 16 kHz."""

SAME = {
    "input": {"encoding": "mulaw", "sample_rate": 8000},
    "output": {"encoding": "mulaw", "sample_rate": 8000, "container": "none"},
}
LEAD_MS = 300
"""How far VAIC may be ahead of what the caller hears (`BRIDGE_PLAY_LEAD_MS`)."""

Eventually = Callable[..., Awaitable[None]]


def app(play: Any = "raw/lpcm16", **fields: Any) -> DeepgramBridge:
    return DeepgramBridge(configuration(play_media_format=play, **fields))


async def lines(bridge: Stage, cid: str, eventually: Eventually) -> list[int]:
    """For how long each line of the agent was heard, in milliseconds, once that is known."""
    known: list[int | None] = []

    async def told() -> bool:
        transcript = await bridge.app.calls("transcript", cid)
        known[:] = [line.heard_ms for line in transcript if line.role == "assistant"]
        return bool(known) and None not in known

    await eventually(told)
    return [ms for ms in known if ms is not None]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged of formats that VAIC does not offer."""
    return [text for text in caplog.messages if text.startswith("play_media_format is not offered")]


# ── one call ───────────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_agent_speaks_in_16_khz_to_a_caller_who_speaks_in_mu_law(
    redis_url: str, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    async with stage(redis_url, bridge=app()) as bridge, wire(bridge.url) as vaic:
        assert (await vaic.begin(supportedMediaFormats=OFFERED))["mediaFormat"] == "raw/mulaw"
        agent = await bridge.connection()
        assert agent.settings["audio"] == BOTH
        said = bytes(range(1, 201))
        await vaic.send(vaic.chunk(said))
        await agent.wait_for(lambda agent: said in agent.heard)
        agent.say("It left Hamburg on Monday. It is in Ulm now.")
        messages = await vaic.until("playStream.stop")
        assert types(messages) == ["playStream.start", "playStream.chunk", "playStream.stop"]
        assert messages[0]["mediaFormat"] == "raw/lpcm16"
        assert heard(messages) == bytes(agent.spoken)
        sentences = [speech.render_text(text, WIDE) for _, text in agent.texts]
        assert bytes(agent.spoken) == b"".join(sentences)
        assert await lines(bridge, vaic.cid, eventually) == [round(WIDE.ms(len(sound))) for sound in sentences]
        assert bridge.sessions[vaic.cid].media_format == "raw/mulaw"
        assert bridge.events("session_start")[0].media_format == "raw/mulaw"
        assert agent.problems == []
    assert warnings(caplog) == []


async def test_the_chunks_of_a_play_stream_last_as_long_in_its_own_format(redis_url: str) -> None:
    async with stage(redis_url, bridge=app(), play_chunk_ms=100) as bridge, wire(bridge.url) as vaic:
        await vaic.begin(supportedMediaFormats=OFFERED)
        (await bridge.connection()).say("It left Hamburg on Monday.")
        messages = await vaic.until("playStream.stop")
        sizes = {len(base64.b64decode(m["audioChunk"])) for m in messages if m["type"] == "playStream.chunk"}
        assert max(sizes) == WIDE.nbytes(100)


@pytest.mark.parametrize("token", FORMATS)
async def test_the_agent_may_speak_in_every_format_of_voiceai_connect(redis_url: str, token: str) -> None:
    sound = media(token)
    async with stage(redis_url, bridge=app(token)) as bridge, wire(bridge.url) as vaic:
        assert (await vaic.begin(supportedMediaFormats=list(FORMATS)))["mediaFormat"] == "raw/mulaw"
        agent = await bridge.connection()
        output = {"encoding": sound.encoding, "sample_rate": sound.rate, "container": "none"}
        assert agent.settings["audio"] == {"input": BOTH["input"], "output": output}
        agent.say("Yes.")
        messages = await vaic.until("playStream.stop")
        assert messages[0]["mediaFormat"] == token
        assert heard(messages) == (wav_header(sound) if sound.wav else b"") + bytes(agent.spoken)


async def test_after_a_barge_in_what_was_heard_is_counted_in_the_play_streams_format(
    redis_url: str, eventually: Eventually
) -> None:
    async with stage(redis_url, bridge=app(), play_lead_ms=LEAD_MS) as bridge, wire(bridge.url) as vaic:
        await vaic.begin(supportedMediaFormats=OFFERED)
        agent = await bridge.connection()
        agent.say("agent_long_answer")
        messages = await vaic.until("playStream.chunk")
        while len(heard(messages)) < WIDE.nbytes(1000):
            messages.append(await vaic.next())
        await agent.barge()
        messages += await vaic.until("userStream.speech.started")
        given = WIDE.ms(len(heard(messages)))
        assert given - LEAD_MS - 1 <= sum(await lines(bridge, vaic.cid, eventually)) <= given + 1
        agent.say("Yes.")  # and the next turn is whole again
        again = await vaic.until("playStream.stop")
        assert again[0]["mediaFormat"] == "raw/lpcm16"
        assert heard(again) == speech.render_text("Yes.", WIDE)


async def test_an_agent_connection_that_replaces_a_lost_one_speaks_in_the_same_format(redis_url: str) -> None:
    async with stage(redis_url, bridge=app()) as bridge, wire(bridge.url) as vaic:
        await vaic.begin(supportedMediaFormats=OFFERED)
        (await bridge.connection()).drop()
        agent = await bridge.connection(1)
        assert agent.settings["audio"] == BOTH
        agent.say("Yes.")
        messages = await vaic.until("playStream.stop")
        assert messages[0]["mediaFormat"] == "raw/lpcm16"
        assert heard(messages) == bytes(agent.spoken)


# ── who else gets the call ─────────────────────────────────────────────────────────────────────────────────────


async def test_a_call_goes_on_at_another_edge_in_the_format_that_it_began_in(redis_url: str) -> None:
    async with (
        stage(redis_url, bridge=app()) as bridge,
        stage(redis_url, role="edge") as elsewhere,  # of an application that wants no format
        wire(bridge.url) as old,
        wire(elsewhere.url, old.cid) as new,
    ):
        await old.begin(supportedMediaFormats=OFFERED)
        agent = await bridge.connection()
        agent.say("It left Hamburg on Monday. It is in Ulm now.")
        begun = await old.until("playStream.chunk")
        await new.resume()
        assert (await new.expect("session.accepted"))["mediaFormat"] == "raw/mulaw"
        messages = await new.until("playStream.stop")
        assert messages[0]["mediaFormat"] == "raw/lpcm16"
        former, rest = heard(begun + await old.rest()), heard(messages)
        assert bytes(agent.spoken).startswith(former)
        assert bytes(agent.spoken).endswith(rest)
        assert len(former) + len(rest) >= len(agent.spoken)  # what VAIC had not played goes again
        said = bytes(range(1, 201))
        await new.send({"type": "userStream.start"}, new.chunk(said))
        await agent.wait_for(lambda agent: said in agent.heard)


async def test_a_call_of_which_redis_has_lost_everything_keeps_its_format(
    redis_server: RedisServer, eventually: Eventually
) -> None:
    async with (
        stage(redis_server.url, bridge=app()) as bridge,
        stage(redis_server.url, role="edge") as elsewhere,
        wire(bridge.url) as old,
        wire(elsewhere.url, old.cid) as new,
    ):
        await old.begin(supportedMediaFormats=OFFERED)
        redis_server.command("FLUSHALL")

        async def restored() -> bool:
            record = await bridge.app.calls("read", old.cid)
            return record is not None and bool(record.owner) and bool(record.edge)

        await eventually(restored)
        await new.resume()
        await new.expect("session.accepted")
        await new.send(new.activity("DTMF", value="1"))
        await bridge.event("activity", 2)  # the worker knows the new edge
        (await bridge.connection()).say("Yes.")
        messages = await new.until("playStream.stop")
        assert messages[0]["mediaFormat"] == "raw/lpcm16"
        assert heard(messages) == speech.render_text("Yes.", WIDE)


async def test_a_call_that_is_initiated_again_without_the_play_streams_format_is_refused(
    redis_url: str, eventually: Eventually
) -> None:
    async with stage(redis_url, bridge=app()) as bridge, wire(bridge.url) as vaic:
        await vaic.begin(supportedMediaFormats=OFFERED)
        await vaic.drop()
        edge = bridge.app.process.edge
        assert edge is not None
        await eventually(lambda: not edge.not_ready() and edge._pod.load == 0)
        async with wire(bridge.url, vaic.cid) as again:
            await again.initiate(supportedMediaFormats=["raw/mulaw"])
            assert (await again.expect("session.error"))["reason"] == "The conversation is live in another media format"
        async with wire(bridge.url, vaic.cid) as again:
            await again.begin(supportedMediaFormats=OFFERED)


@pytest.mark.slow
@pytest.mark.parametrize("why", ["killed", "drained"])
async def test_the_next_worker_has_the_agent_speak_in_the_same_format(redis_url: str, tmp_path: Path, why: str) -> None:
    file = application(tmp_path)
    file.write_text(file.read_text().replace("port=8000", "port=8000, play_media_format='raw/lpcm16'"))
    async with SimulatedAgent() as agent, Pods(redis_url, agent.url, file) as pods:
        edge, first = await pods.edge(), await pods.worker()
        async with calling(edge, formats=tuple(OFFERED)) as call:
            await call.say("thank_you")
            await call.wait_answer()
            await pods.worker()
            first.kill() if why == "killed" else first.terminate()
            await agent.wait_for(lambda a: len(a.connections) == 2 and a.connections[1].ready, 20)
            await call.say("goodbye")
            await call.wait_answer()
            await call.hang_up()
        report = call.report()
        assert (report.problem, report.violations, report.media_format) == (None, [], "raw/mulaw")
        assert [connection.settings["audio"] for connection in agent.connections] == [BOTH, BOTH]
        assert {stream.media_format for stream in report.heard} == {"raw/lpcm16"}
        spoken = b"".join(bytes(connection.spoken) for connection in agent.connections)
        assert b"".join(stream.data for stream in report.heard) == spoken


async def test_a_worker_that_does_not_know_of_play_formats_is_understood(
    redis_url: str, eventually: Eventually
) -> None:
    async with stage(redis_url, bridge=app(), role="edge") as edge, wire(edge.url) as vaic:
        await vaic.initiate(supportedMediaFormats=OFFERED)
        await eventually(lambda: edge.keys("call:*"))
        with redis.Redis.from_url(redis_url) as client:  # one of the release before does not look at this field
            assert client.hdel(edge.keys("call:*")[0], "play_format") == 1
        async with stage(redis_url) as worker:
            await vaic.expect("session.accepted")
            await vaic.send(vaic.activity("start"))
            agent = await worker.connection()
            assert agent.settings["audio"] == SAME
            agent.say("Yes.")
            messages = await vaic.until("playStream.stop")
            assert messages[0]["mediaFormat"] == "raw/mulaw"
            assert heard(messages) == bytes(agent.spoken)
            await vaic.hang_up()


# ── when nothing else is wanted, or to be had ──────────────────────────────────────────────────────────────────


async def test_a_format_that_is_not_offered_leaves_the_callers_and_is_told_once(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with stage(redis_url, bridge=app("raw/lpcm16_24")) as bridge, wire(bridge.url) as vaic:
        await vaic.begin(supportedMediaFormats=OFFERED)
        agent = await bridge.connection()
        assert agent.settings["audio"] == SAME
        for _ in range(2):
            agent.say("Yes.")
            messages = await vaic.until("playStream.stop")
            assert messages[0]["mediaFormat"] == "raw/mulaw"
            assert heard(messages) == speech.render_text("Yes.", MULAW)
        await vaic.hang_up()
    assert len(warnings(caplog)) == 1


async def test_what_stands_in_the_applications_audio_block_changes_nothing_as_in_the_original(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    audio = {"output": {"encoding": "linear16", "sample_rate": 16000}}
    bridge = DeepgramBridge(configuration(deepgram_config={**AGENT, "audio": audio}))
    async with stage(redis_url, bridge=bridge) as made, wire(made.url) as vaic:
        await vaic.begin(supportedMediaFormats=OFFERED)
        assert (await made.connection()).settings["audio"] == SAME
        assert (await made.app.calls("read", vaic.cid)).play_format == ""
    assert warnings(caplog) == []
