"""Bad input from VAIC is refused or skipped with one line in the log. It ends no call but at most its own."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from bridge_sim import speech
from bridge_sim.caller import SimulatedCall
from bridge_sim.plan import CallPlan
from deepgram_audiocodes_bridge import DeepgramBridge, Session
from harness import configuration
from telephone import Wire, stage, types, wire

Eventually = Callable[..., Awaitable[None]]

SKIPPED = "message from VAIC skipped, more of this kind are only counted"

BAD: dict[str, str | bytes] = {
    "half an object": '{"type": "userStream.start"',
    "no JSON at all": "hello",
    "nothing": "",
    "a list": '[{"type": "userStream.start"}]',
    "a number": "1",
    "null": "null",
    "a string": '"session.end"',
    "no type": "{}",
    "a type that is a number": '{"type": 1}',
    "a type that is null": '{"type": null}',
    "an unknown type": '{"type": "playStream.mark.set"}',
    "a type with a secret in it": '{"type": "call +4930123456"}',
    "a binary frame": b"\x00\xff\x80 audio",
    "binary JSON without sense": b'{"type": "nothing of ours"}',
    "deep nesting": '{"type": "activities", "x": ' + "[" * 2000 + "]" * 2000 + "}",
    "nesting beyond the reader": "[" * 9_000,
    "more brackets than a message may have": "[" * 100_000,
    "a number beyond all numbers": '{"type": "activities", "activities": [], "value": 1e999}',
    "audio that is not base64": '{"type": "userStream.chunk", "audioChunk": "not base64!"}',
    "audio that is a number": '{"type": "userStream.chunk", "audioChunk": 7}',
    "audio that is absent": '{"type": "userStream.chunk"}',
    "a participant that is a list": '{"type": "userStream.start", "participant": ["x"]}',
    "activities that are an object": '{"type": "activities", "activities": {}}',
    "activities that are no objects": '{"type": "activities", "activities": [1, null, "x", {}, {"type": "event"}]}',
    "another conversation": '{"type": "session.end", "conversationId": "somebody-else"}',
    "a second beginning": '{"type": "session.initiate", "conversationId": "other"}',
    "a resume in mid-call": '{"type": "session.resume", "conversationId": "other"}',
    "a validation in mid-call": '{"type": "connection.validate"}',
}


async def still_works(vaic: Wire) -> None:
    """The call goes on: VAIC closes and opens the caller's stream."""
    await vaic.send({"type": "userStream.stop"}, {"type": "userStream.start"})
    await vaic.expect("userStream.stopped", "userStream.started")


async def test_messages_that_make_no_sense_are_skipped_and_the_call_goes_on(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with stage(redis_url) as bridge, wire(bridge.url) as vaic, wire(bridge.url) as other:
        await vaic.begin()
        await other.begin()
        for message in BAD.values():
            await vaic.send(message)
            await still_works(vaic)
        for message in BAD.values():
            await vaic.send(message)
        await still_works(vaic)
        await still_works(other)
        await bridge.event("activity", 2)
        assert [event.activity["name"] for event in bridge.events("activity")] == ["start", "start"]
        assert bridge.events("error") == bridge.events("session_end") == []
    lines = [record for record in caplog.records if record.getMessage() == SKIPPED]
    assert {vars(line)["cid"] for line in lines} == {vaic.cid}
    codes = [vars(line)["code"] for line in lines]
    assert len(codes) == len(set(codes))  # one line per kind
    assert set(codes) == {
        "bad_json",
        "not_object",
        "no_type",
        "unknown_type",
        "binary",
        "too_deep",
        "too_many_values",
        "bad_base64",
        "bad_field",
        "other_call",
        "out_of_order",
    }
    assert [r.getMessage() for r in caplog.records if r.levelno > logging.WARNING] == []


async def test_a_connection_may_begin_with_nonsense(redis_url: str) -> None:
    sensible = {"a second beginning", "a resume in mid-call", "a validation in mid-call"}
    async with stage(redis_url) as bridge, wire(bridge.url) as vaic:
        await vaic.send(*(message for name, message in BAD.items() if name not in sensible))
        await vaic.begin()


async def test_half_a_character_is_mended_rather_than_refused(redis_url: str) -> None:
    async with stage(redis_url) as bridge, wire(bridge.url) as vaic:
        await vaic.begin()
        await vaic.send('{"type": "activities", "activities": [{"type": "message", "text": "cut \\ud83d"}]}')
        event = await bridge.event("activity", 2)
        assert event.activity["text"] == "cut \ufffd"


async def test_a_chunk_outside_a_user_stream_is_skipped(redis_url: str, caplog: pytest.LogCaptureFixture) -> None:
    async with stage(redis_url) as bridge, wire(bridge.url) as vaic:
        await vaic.begin()
        await vaic.send({"type": "userStream.stop"}, vaic.chunk(b"\x07" * 80))
        await vaic.expect("userStream.stopped")
        await vaic.send({"type": "userStream.start"}, vaic.chunk(b"\x08" * 80))
        await vaic.expect("userStream.started")
        agent = await bridge.connection()
        await agent.wait_for(lambda agent: b"\x08" * 80 in agent.heard)
        assert b"\x07" not in agent.heard
    assert [vars(r)["code"] for r in caplog.records if r.getMessage() == SKIPPED] == ["out_of_order"]


async def test_numbers_of_any_size_reach_the_handlers(redis_url: str) -> None:
    async with stage(redis_url) as bridge, wire(bridge.url) as vaic:
        await vaic.begin()
        await vaic.send(vaic.activity("big", value=[2**63, -(2**63), 1e308]), vaic.activity("huge", value=2**70))
        assert (await bridge.event("activity", 2)).activity["value"] == [2**63, -(2**63), 1e308]
        assert (await bridge.event("activity", 3)).activity["value"] == float(2**70)


TOO_BIG = b"\x81\xff" + (16 * 1024 * 1024 + 1).to_bytes(8, "big") + b"\0\0\0\0"
"""The head of a text frame that is longer than any socket takes; its body need not follow (RFC 6455 §5.2)."""


@pytest.mark.parametrize(
    ("frame", "code", "closed"),
    [(TOO_BIG, "too_big", 1009), (b"\x81\x82\0\0\0\0\xff\xfe", "bad_text", 1007)],
    ids=["too big", "not UTF-8"],
)
async def test_a_frame_that_breaks_the_websocket_costs_the_socket_and_not_the_call(
    redis_url: str, caplog: pytest.LogCaptureFixture, frame: bytes, code: str, closed: int
) -> None:
    async with stage(redis_url) as bridge, wire(bridge.url) as other:
        await other.begin()
        async with wire(bridge.url) as vaic:
            await vaic.begin()
            vaic.socket.transport.write(frame)
            assert await vaic.rest() == []
            assert vaic.socket.close_code == closed
        async with wire(bridge.url, vaic.cid) as again:
            await again.resume()
            await again.expect("session.accepted")
            await again.send({"type": "userStream.start"})
            await again.expect("userStream.started")
        await still_works(other)
        assert len(bridge.events("session_start")) == 2
        assert bridge.events("session_end") == []
    assert [vars(r)["code"] for r in caplog.records if r.getMessage() == SKIPPED] == [code]


async def test_a_message_of_more_than_a_mebibyte_is_skipped_and_the_call_lives(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with stage(redis_url) as bridge, wire(bridge.url) as vaic:
        await vaic.begin()
        await vaic.send(vaic.activity("long", value="v" * 1024 * 1024), vaic.activity("short"))
        assert (await bridge.event("activity", 2)).activity["name"] == "short"
        await still_works(vaic)
    assert [vars(r)["code"] for r in caplog.records if r.getMessage() == SKIPPED] == ["too_big"]


async def test_a_message_of_nearly_a_mebibyte_is_taken(redis_url: str) -> None:
    async with stage(redis_url) as bridge, wire(bridge.url) as vaic:
        await vaic.begin()
        await vaic.send(vaic.activity("long", value="v" * (1024 * 1024 - 200)))
        assert len((await bridge.event("activity", 2)).activity["value"]) == 1024 * 1024 - 200


async def test_a_flood_of_activities_ends_its_own_call_only(redis_url: str, eventually: Eventually) -> None:
    flooded = DeepgramBridge(configuration())
    patience = asyncio.Event()

    @flooded.on("activity")
    async def slow(session: Session, event: Any) -> None:
        if event.activity["name"] == "flood":
            await patience.wait()

    async with stage(redis_url, bridge=flooded) as bridge, wire(bridge.url) as vaic, wire(bridge.url) as other:
        await other.begin()
        await vaic.begin()
        many = [{"type": "event", "name": "flood"}] * 64
        for _ in range(70):
            await vaic.send({"type": "activities", "activities": many})
        messages = await vaic.rest()
        assert types(messages) == ["session.error"]
        patience.set()
        await eventually(lambda: [event.reason for event in bridge.events("session_end")] == ["error"])
        await still_works(other)


async def test_a_connection_that_says_nothing_is_closed(redis_url: str) -> None:
    async with stage(redis_url, initiate_timeout=0.2) as bridge, wire(bridge.url) as vaic:
        assert await vaic.rest() == []
        assert bridge.keys() == []


async def test_the_log_of_a_call_holds_neither_what_was_said_nor_who_called_nor_a_token(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    closed = DeepgramBridge(configuration(ac_token="s3cr3t-token", greeting="Good day to you."))
    plan = CallPlan(barge_in=True, start_delay_s=0.0, caller="+4930123456")
    async with stage(redis_url, bridge=closed) as bridge:
        async with wire(bridge.url, token="s3cr3t-token") as vaic:
            await vaic.initiate(supportedMediaFormats=["+4930123456"])
            await vaic.rest()
        async with SimulatedCall(bridge.url, plan, token="s3cr3t-token") as call:
            await call.connect()
            await call.initiate()
            for message in BAD.values():
                if isinstance(message, str):  # a simulated VAIC sends text frames
                    await call.send_raw(message)
            await call.send_raw(json.dumps({"type": "userStream.chunk", "audioChunk": "+4930123456", "caller": "x"}))
            await call.send_dtmf("4711471147114711")
            await call.say("thank_you")
            await call.drop()
            await call.resume()
            await bridge.sessions[call.conversation_id].send_agent_message("Your PIN is quince jelly.")
            await call.hang_up()
        await bridge.event("session_end", 2)
    ours = [record for record in caplog.records if record.name.startswith("deepgram_audiocodes_bridge")]
    text = "\n".join(" ".join(map(str, vars(record).values())) for record in ours)
    assert call.conversation_id in text
    for secret in (
        "4930123456",
        "s3cr3t",
        "4711471147",
        "quince",
        "Good day",
        speech.prompt("thank_you").text,
        "You are",
    ):
        assert secret not in text
