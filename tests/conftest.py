"""Real Redis servers for the tests.

`redis_url`: one server for the whole run, emptied before each test. `redis_server`: a server of the test's own, to
be killed, paused, restarted or configured as it likes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence

import pytest

from bridge_shared.redis.embedded import EmbeddedRedis


class RedisServer:
    """A server process that keeps its port when it is restarted. It has no persistence: a restart empties it."""

    def __init__(self, options: Sequence[str] = ()) -> None:
        self._redis = EmbeddedRedis(options)
        self.url = self._redis.start_sync()
        self.port = self._redis.port

    @property
    def pid(self) -> int:
        return self._redis.pid

    def command(self, *args: str) -> bytes:
        """One command over a connection of its own; the first read of the reply, as it came."""
        parts = [f"*{len(args)}\r\n", *(f"${len(arg.encode())}\r\n{arg}\r\n" for arg in args)]
        with socket.create_connection(("127.0.0.1", self.port), 5) as s:
            s.sendall("".join(parts).encode())
            return s.recv(65536)

    def pause(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        os.kill(self.pid, signal.SIGKILL)
        self._redis.stop_sync()

    def restart(self, options: Sequence[str] = ()) -> None:
        """A new, empty server on the same port, after `kill`."""
        self._redis = EmbeddedRedis(options, port=self.port)
        self._redis.start_sync()

    def kill_clients(self, kind: str = "normal") -> None:
        """Cut every connection but the one that asks for it."""
        self.command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.resume() if self.pid else None
        self._redis.stop_sync()


@pytest.fixture
def eventually() -> Callable[..., Awaitable[None]]:
    """`await eventually(lambda: condition, seconds)`: returns as soon as the condition (may be async) holds."""

    async def wait(condition: Callable[[], object], seconds: float = 10.0) -> None:
        async with asyncio.timeout(seconds):
            while True:
                holds = condition()
                if asyncio.iscoroutine(holds):
                    holds = await holds
                if holds:
                    return
                await asyncio.sleep(0.005)

    return wait


@pytest.fixture(scope="session")
def _session_redis() -> Iterator[RedisServer]:
    server = RedisServer()
    yield server
    server.stop()


@pytest.fixture
def redis_url(_session_redis: RedisServer) -> str:
    """URL of an empty server shared by the run; its configuration must not be changed."""
    _session_redis.command("FLUSHALL")
    _session_redis.command("SCRIPT", "FLUSH")
    return _session_redis.url


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """A server that belongs to the test: `.url`, `.pause()`, `.resume()`, `.kill()`, `.restart()`, `.command(…)`."""
    server = RedisServer()
    yield server
    server.stop()
