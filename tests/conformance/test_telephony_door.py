"""Who may place a call: decided during the HTTP upgrade, never after it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import pytest
from websockets.asyncio.server import ServerConnection
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from bridge_edge import server
from bridge_shared import metrics
from bridge_sim.caller import CallProblem, SimulatedCall
from bridge_sim.plan import CallPlan
from deepgram_audiocodes_bridge import DeepgramBridge
from harness import configuration
from telephone import PATIENCE, stage, wire

Eventually = Callable[..., Awaitable[None]]

UPGRADE = (
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Extensions: permessage-deflate",
)


async def http(url: str, *headers: str | bytes, path: str = "/") -> tuple[str, dict[str, str], bytes]:
    """One request by hand: status line, headers and, unless it was upgraded, the body of the answer."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        lines = [header if isinstance(header, bytes) else header.encode() for header in headers]
        writer.write(b"\r\n".join([f"GET {path} HTTP/1.1".encode(), b"Host: bridge", *lines, b"", b""]))
        async with asyncio.timeout(PATIENCE):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            found = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:])}
            body = b"" if " 101 " in head[0] else await reader.read()
    finally:
        writer.close()
    return head[0], found, body


def refusals(reason: str) -> float:
    """How many were refused for that reason so far."""
    return metrics.calls_refused.labels(reason=reason)._value.get()


def door_of(authenticate: Callable[..., object]) -> DeepgramBridge:
    return DeepgramBridge(configuration(ac_token="not asked for", authenticate=authenticate))


@pytest.mark.parametrize(
    "given",
    [
        [],
        ["Authorization: Bearer wrong"],
        ["Authorization: Bearer secret2"],
        ["Authorization: Bearer secre"],
        ["Authorization: bearer secret"],
        ["Authorization: secret"],
        ["Authorization: Basic secret"],
        ["Authorization:"],
        [b"Authorization: Bearer secret\xff"],
        ["Authorization: Bearer secret", "Authorization: Bearer secret"],
        ["Authorization: Bearer wrong", "Authorization: Bearer secret"],
        ["X-Authorization: Bearer secret"],
    ],
    ids=str,
)
async def test_an_upgrade_without_the_token_is_answered_401(redis_url: str, given: list[str | bytes]) -> None:
    closed = DeepgramBridge(configuration(ac_token="secret"))
    async with stage(redis_url, bridge=closed) as bridge:
        before = refusals("token")
        status, headers, body = await http(bridge.url, *UPGRADE, *given)
        assert status == "HTTP/1.1 401 Unauthorized"
        assert refusals("token") == before + 1
        assert body == b"Unauthorized\n"
        assert headers["content-length"] == str(len(body))


async def test_the_token_opens_the_door(redis_url: str) -> None:
    closed = DeepgramBridge(configuration(ac_token="sécret"))
    async with stage(redis_url, bridge=closed) as bridge:
        status, headers, _ = await http(bridge.url, *UPGRADE, "Authorization: Bearer sécret")
        assert status.startswith("HTTP/1.1 101")
        assert "sec-websocket-extensions" not in headers  # frames come as they are: no compression


async def test_each_of_several_tokens_opens_the_door_during_a_rotation(redis_url: str) -> None:
    closed = DeepgramBridge(configuration(ac_token="from the file"))
    async with stage(redis_url, bridge=closed, ac_token="old,new") as bridge:
        for token in ("old", "new", "from the file"):
            async with wire(bridge.url, token=token) as vaic:
                await vaic.begin()
        with pytest.raises(CallProblem) as refused:
            await SimulatedCall(bridge.url, CallPlan(), token="old,new").connect()
        assert refused.value.status == 401


async def test_a_door_without_a_lock_says_so_at_the_start(redis_url: str, caplog: pytest.LogCaptureFixture) -> None:
    async with stage(redis_url):
        pass
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING] == [
        "anybody who reaches this port can place calls: no token is set"
    ]
    caplog.clear()
    async with stage(redis_url, bridge=DeepgramBridge(configuration(ac_token="secret"))):
        pass
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []


async def test_authenticate_decides_alone_and_sees_the_request(redis_url: str) -> None:
    seen: list[tuple[type, type, str]] = []
    loop = asyncio.get_running_loop()

    async def everybody(connection: ServerConnection, request: Request) -> Response | None:
        assert asyncio.get_running_loop() is loop  # the application's own
        seen.append((type(connection), type(request), request.path))
        return None

    async with (
        stage(redis_url, bridge=door_of(everybody)) as bridge,
        wire(f"{bridge.url}/any/path?tenant=7") as vaic,  # ac_token does not count
    ):
        await vaic.begin()
    [(connection, request, path)] = seen
    assert issubclass(connection, ServerConnection)
    assert (request, path) == (Request, "/any/path?tenant=7")


async def test_a_refusal_of_authenticate_is_sent_as_it_is(redis_url: str) -> None:
    async def nobody(connection: ServerConnection, request: Request) -> Response | None:
        return Response(418, "Teapot", Headers({"X-Why": "tea", "Content-Length": "5"}), b"short")

    async with stage(redis_url, bridge=door_of(nobody)) as bridge:
        status, headers, body = await http(bridge.url, *UPGRADE)
        assert (status, headers["x-why"], body) == ("HTTP/1.1 418 Teapot", "tea", b"short")


async def _raises(connection: ServerConnection, request: Request) -> Response | None:
    raise LookupError("no database")


def _plain(connection: ServerConnection, request: Request) -> Response | None:
    return None


async def _nonsense(connection: ServerConnection, request: Request) -> str:
    return "yes"


async def _hangs(connection: ServerConnection, request: Request) -> Response | None:
    return await asyncio.get_running_loop().create_future()


@pytest.mark.parametrize("authenticate", [_raises, _plain, _nonsense, _hangs])
async def test_an_authenticate_that_fails_is_answered_500(
    redis_url: str, caplog: pytest.LogCaptureFixture, authenticate: Callable[..., object]
) -> None:
    async with stage(redis_url, bridge=door_of(authenticate), authenticate_timeout=0.3) as bridge:
        before = refusals("authenticate_failed")
        status, _, _ = await http(bridge.url, *UPGRADE)
        assert status == "HTTP/1.1 500 Internal Server Error"
        assert bridge.keys() == []
        assert refusals("authenticate_failed") == before + 1
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == [
        "authenticate failed, the caller is refused"
    ]


async def test_a_plain_get_is_answered_as_the_validation_of_live_hub_wants_it(redis_url: str) -> None:
    async with stage(redis_url) as bridge:
        status, headers, body = await http(bridge.url, path="/bot?x=1")
        assert status == "HTTP/1.1 200 OK"
        assert headers["content-type"] == "application/json"
        assert body == b'{"type":"ac-bot-api","success":true}'


async def test_a_plain_get_needs_the_token_too(redis_url: str) -> None:
    async with stage(redis_url, bridge=DeepgramBridge(configuration(ac_token="secret"))) as bridge:
        assert (await http(bridge.url))[0] == "HTTP/1.1 401 Unauthorized"
        assert (await http(bridge.url, "Authorization: Bearer secret"))[0] == "HTTP/1.1 200 OK"


async def test_what_is_not_http_is_turned_away(redis_url: str) -> None:
    async with stage(redis_url) as bridge:
        parts = urlsplit(bridge.url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        writer.write(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 not for you\r\n\r\n")
        async with asyncio.timeout(PATIENCE):
            await reader.read()
        writer.close()
        async with wire(bridge.url) as vaic:
            await vaic.begin()


async def test_an_edge_at_its_capacity_refuses_calls_and_keeps_room_for_those_that_come_back(redis_url: str) -> None:
    async with stage(redis_url, edge_calls=2) as bridge, wire(bridge.url) as lost, wire(bridge.url) as live:
        await lost.begin()
        await live.begin()
        async with wire(bridge.url) as third:
            before = refusals("edge_full")
            assert (await http(bridge.url, *UPGRADE))[0].startswith("HTTP/1.1 503")  # beyond the reserve of half
            assert refusals("edge_full") == before + 1
            await third.initiate()
            assert "capacity" in (await third.expect("session.error"))["reason"]
            assert refusals("edge_full") == before + 2
            await third.rest()  # its place is free when the edge has closed it
        async with wire(bridge.url, lost.cid) as back:
            await back.resume()
            await back.expect("session.accepted")


async def test_an_edge_that_drains_lets_live_calls_end_and_takes_no_new_ones(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    monkeypatch.setattr(server, "DRAIN_ACCEPT_SECONDS", 0.1)
    async with stage(redis_url, drain_seconds=20.0) as bridge, wire(bridge.url) as vaic:
        await vaic.begin()
        edge = bridge.app.process.edge
        assert edge is not None
        bridge.app.process.media.call(bridge.app.process.drain)
        await eventually(lambda: edge.not_ready() == "draining" and not edge._accepting)
        assert (await http(bridge.url, *UPGRADE))[0] == "HTTP/1.1 503 Service Unavailable"
        await vaic.send({"type": "userStream.stop"})
        await vaic.expect("userStream.stopped")
        assert await vaic.hang_up() == []
        async with asyncio.timeout(PATIENCE):
            await bridge.app.task  # everybody has gone: run() returns
        assert [event.reason for event in bridge.events("session_end")] == ["hangup"]


async def test_callers_that_a_drain_leaves_over_lose_their_socket_without_a_close_frame(redis_url: str) -> None:
    async with stage(redis_url, role="edge", accept_timeout=5.0, drain_seconds=0.0) as bridge, wire(bridge.url) as vaic:
        await vaic.initiate()
        bridge.app.process.media.call(bridge.app.process.drain)
        assert await vaic.rest() == []
        assert vaic.socket.close_code == 1006  # VAIC resumes at another edge
