"""A bad network, built instead of patched: a TCP load balancer whose lines can be stalled, slowed and cut."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import shutil
import socket
import subprocess
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

CHUNK = 65536
CLONE_NEWNET = 0x40000000
CONNECT_SECONDS = 0.5


class Balancer:
    """Listens on a loopback port and hands each connection to the next backend that answers.

    With one backend it is a proxy for that line. All faults apply to the connections that are open and to those
    that come.

    Args:
        backends: ports on 127.0.0.1, asked in turn; may be changed at any time.
    """

    def __init__(self, backends: Iterable[int]) -> None:
        self.backends = list(backends)
        self.delay_s = 0.0
        """Every piece of data is held back this long, in both directions."""
        self.port = 0
        self.connections = 0
        """How many were handed to a backend so far."""
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._next = 0
        self._lines: set[asyncio.StreamWriter] = set()
        self._callers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        self.flow()
        await self._server.wait_closed()

    def stall(self) -> None:
        """Nothing gets through any more, and nobody is told: a cable is pulled."""
        self._flowing.clear()

    def flow(self) -> None:
        """What was held back goes through."""
        self._flowing.set()

    def cut(self) -> None:
        """Every open connection is reset, in both directions."""
        for writer in list(self._lines):
            writer.transport.abort()

    def cut_callers(self) -> None:
        """Every caller's connection is reset; the backends are not told, and get no more."""
        self.stall()
        for writer in list(self._callers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._lines.add(writer)
        self._callers.add(writer)
        try:
            far = await self._connect()
            if far is None:
                return
            far_reader, far_writer = far
            self._lines.add(far_writer)
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._pump(reader, far_writer))
                    tasks.create_task(self._pump(far_reader, writer))
            finally:
                self._lines.discard(far_writer)
                far_writer.transport.abort()
        finally:
            self._lines.discard(writer)
            self._callers.discard(writer)
            writer.transport.abort()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        for _ in range(len(self.backends)):
            port = self.backends[self._next % len(self.backends)]
            self._next += 1
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(CONNECT_SECONDS):
                    line = await asyncio.open_connection("127.0.0.1", port)
                self.connections += 1
                return line
        return None

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                await self._flowing.wait()
                writer.write(data)
                await writer.drain()
        await self._flowing.wait()  # while it is stalled, nobody is told of an end either
        writer.transport.abort()


class Namespace:
    """A host of its own on a cable to this one: a network namespace with one end of a veth pair. Needs root and `ip`.

    Attributes:
        here, there: the addresses of the two ends.
    """

    here, there = "10.213.77.1", "10.213.77.2"

    def __init__(self) -> None:
        self.name = f"far-{os.getpid()}"
        self._cable = f"cable{os.getpid()}"[:15]

    @staticmethod
    def possible() -> bool:
        """Whether this machine lets us make one."""
        if shutil.which("ip") is None or os.geteuid() != 0:
            return False
        name = f"try-{os.getpid()}"
        made = subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode == 0
        if made:
            subprocess.run(["ip", "netns", "del", name], check=True)
        return made

    def __enter__(self) -> Self:
        try:
            self._ip("netns", "add", self.name)
            self._ip("link", "add", self._cable, "type", "veth", "peer", "name", "far", "netns", self.name)
            self._ip("address", "add", f"{self.here}/30", "dev", self._cable)
            self._ip("link", "set", self._cable, "up")
            self._ip("-n", self.name, "address", "add", f"{self.there}/30", "dev", "far")
            self._ip("-n", self.name, "link", "set", "far", "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["ip", "link", "del", self._cable], capture_output=True)  # it may not be there any more
        subprocess.run(["ip", "netns", "del", self.name], capture_output=True)

    def connect(self, port: int) -> socket.socket:
        """A connection from there to a port here. Blocks."""
        return ThreadPoolExecutor(1).submit(self._connect, port).result(10)

    def pull(self) -> None:
        """From now on nothing comes back from there, and nobody is told."""
        self._ip("-n", self.name, "route", "add", "blackhole", f"{self.here}/32")

    def _connect(self, port: int) -> socket.socket:
        libc = ctypes.CDLL(None, use_errno=True)
        with Path(f"/run/netns/{self.name}").open() as file:  # of this thread only, which ends with its executor
            if libc.setns(file.fileno(), CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")
        return socket.create_connection((self.here, port), 5)

    def _ip(self, *arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True)
