"""bridge_shared.admin: the three addresses, asked over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx
import pytest

from bridge_shared import metrics
from bridge_shared.admin import Admin
from bridge_shared.errors import ConfigError
from bridge_shared.lifecycle import MediaThread


class Pod:
    """Whom the admin server asks."""

    unready: str | None = None
    unhealthy: str | None = None

    def admin(self, port: int = 0, host: str = "127.0.0.1") -> Admin:
        return Admin(port, host, ready=lambda: self.unready, healthy=lambda: self.unhealthy)


@contextlib.asynccontextmanager
async def running(admin: Admin) -> AsyncIterator[httpx.AsyncClient]:
    admin.bind()
    task = asyncio.create_task(admin.run())
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{admin.port}", timeout=30) as client:
            yield client
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_a_pod_that_works_and_accepts_answers_200_on_all_three():
    async with running(Pod().admin()) as client:
        for path in ("/healthz", "/readyz", "/metrics"):
            assert (await client.get(path)).status_code == 200


async def test_a_pod_that_does_not_accept_is_unready_with_the_reason_and_still_healthy():
    pod = Pod()
    pod.unready = "draining"
    async with running(pod.admin()) as client:
        answer = await client.get("/readyz")
        assert (answer.status_code, answer.text) == (503, "draining\n")
        assert (await client.get("/healthz")).status_code == 200
        pod.unready = None
        assert (await client.get("/readyz")).status_code == 200


async def test_a_pod_that_does_not_work_is_unhealthy_with_the_reason():
    pod = Pod()
    pod.unhealthy = "the inbox has not been read for 10 s"
    async with running(pod.admin()) as client:
        answer = await client.get("/healthz")
        assert (answer.status_code, answer.text) == (503, "the inbox has not been read for 10 s\n")


async def test_metrics_are_prometheus_text():
    async with running(Pod().admin()) as client:
        answer = await client.get("/metrics")
        assert answer.headers["content-type"] == metrics.CONTENT_TYPE
        assert "# TYPE bridge_calls_live gauge" in answer.text


async def test_however_many_stand_at_the_port_probes_are_answered_and_only_idle_connections_are_broken_off():
    admin = Pod().admin()
    go = asyncio.Event()

    async def slow() -> str:
        await go.wait()
        return "done"

    admin.app.add_api_route("/v1/slow", slow)
    async with running(admin) as client:
        at_work = [await _asking(admin.port, b"GET /v1/slow HTTP/1.1\r\nHost: x\r\n\r\n") for _ in range(100)]
        idle = [await _asking(admin.port, b"") for _ in range(150)]
        unfinished = b"POST /v1/slow HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"
        idle += [await _asking(admin.port, unfinished) for _ in range(150)]
        assert (await client.get("/healthz")).status_code == 200
        refused = await client.get("/v1/slow")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        go.set()
        for reader, _ in at_work:
            assert b"200 OK" in await asyncio.wait_for(reader.readuntil(b"\r\n"), 10)
        assert (await client.get("/v1/slow")).status_code == 200
        for _, writer in (*at_work, *idle):
            writer.close()


async def _asking(port: int, request: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    await writer.drain()
    return reader, writer


async def test_there_is_nothing_else_to_see():
    async with running(Pod().admin()) as client:
        for path in ("/", "/docs", "/redoc", "/openapi.json", "/v1/calls"):
            answer = await client.get(path)
            assert answer.status_code == 404
            assert "server" not in answer.headers


async def test_routes_can_be_added_before_it_runs():
    admin = Pod().admin()

    async def calls() -> list[str]:
        return ["cid-1"]

    admin.app.add_api_route("/v1/calls", calls)
    async with running(admin) as client:
        assert (await client.get("/v1/calls")).json() == ["cid-1"]


def test_a_port_in_use_is_a_configuration_error_that_names_the_variable():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            ConfigError, match=rf"^BRIDGE_ADMIN_PORT: port {port} cannot be used: Address already in use"
        ):
            Pod().admin(port=port).bind()


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1"])
def test_a_host_that_is_no_address_of_this_machine_is_a_configuration_error_that_names_the_variable(host: str):
    with pytest.raises(ConfigError, match=rf"^BRIDGE_HOST: '{host}' is no address of this machine"):
        Pod().admin(host=host).bind()


def test_the_port_is_taken_before_anything_runs():
    with contextlib.closing(Pod().admin()) as admin:
        port = admin.bind()
        assert port == admin.port != 0
        with pytest.raises(ConfigError):
            Pod().admin(port=port).bind()
    with contextlib.closing(Pod().admin(port=port)) as other:
        assert other.bind() == port


async def test_cancelling_closes_the_port_even_under_an_idle_connection():
    admin = Pod().admin()
    async with running(admin) as client:
        await client.get("/healthz")  # leaves a connection open
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", admin.port)


async def test_signals_stay_with_the_process():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    async with running(Pod().admin()) as client:
        await client.get("/healthz")
        assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


async def test_a_late_loop_is_measured(eventually: Callable[..., Awaitable[None]]):
    def late() -> float:
        samples = {s.labels.get("le", s.name): s.value for m in metrics.loop_lag_seconds.collect() for s in m.samples}
        return samples["+Inf"] - samples["0.25"]

    async with running(Pod().admin()) as client:
        await client.get("/healthz")
        before = late()
        time.sleep(0.6)  # noqa: ASYNC251 - a handler that blocks is the subject
        await eventually(lambda: late() > before)


def test_a_stuck_loop_does_not_answer_and_a_freed_one_does():
    """In a media thread, where a pod runs it: the probe's time-out is the signal."""
    free = threading.Event()
    admin = Pod().admin()
    port = admin.bind()
    with MediaThread() as media, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        media.submit(admin.run())
        assert client.get("/healthz").status_code == 200
        media.call(free.wait)
        with pytest.raises(httpx.ReadTimeout):
            client.get("/healthz", timeout=0.3)
        free.set()
        assert client.get("/healthz").status_code == 200
