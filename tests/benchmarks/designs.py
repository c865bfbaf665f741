"""What is measured: the product as separate pods, and the peers of `baseline`, each as real processes."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from bridge_shared.orphans import dies_with_parent
from bridge_shared.redis.embedded import find_server

HERE = Path(__file__).parent
START_SECONDS = 20.0


class Process:
    """A child with pipes, which dies with this process.

    Args:
        name: of its role in the tables.
        command: what is run; `python FILE …` for our own.
    """

    def __init__(self, name: str, command: Sequence[str], variables: Mapping[str, str] | None = None) -> None:
        self.name = name
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  closed by `stop`
        keep = {name: value for name, value in os.environ.items() if not name.startswith(("BRIDGE_", "REDIS_", "AC_"))}
        self._child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**keep, **(variables or {})},
            start_new_session=True,
            preexec_fn=dies_with_parent(),
        )
        self.pid = self._child.pid

    def line(self) -> str:
        """Its next line. Raises RuntimeError with its errors if it has ended."""
        assert self._child.stdout is not None
        line = self._child.stdout.readline().decode()
        if not line:
            raise RuntimeError(f"{self.name} has ended: {self.errors()}")
        return line.strip()

    def expect_running(self) -> None:
        """Raises RuntimeError with its errors if it has ended: what was measured is worth nothing then."""
        if self._child.poll() is not None:
            raise RuntimeError(f"{self.name} has ended with {self._child.returncode}: {self.errors()}")

    def ready(self) -> str:
        """Wait for its line `ready …`; returns what follows."""
        while not (line := self.line()).startswith("ready"):
            pass
        return line.removeprefix("ready").strip()

    def tell(self, word: str) -> None:
        """Write a line to its standard input."""
        assert self._child.stdin is not None
        self._child.stdin.write(word.encode() + b"\n")
        self._child.stdin.flush()

    def errors(self) -> str:
        """The end of its standard error."""
        self._errors.seek(0)
        return self._errors.read().decode("utf-8", "replace")[-2000:]

    def kill(self) -> None:
        """End it at once, as a node's failure would."""
        self._child.kill()
        self._child.wait()

    def end_input(self, seconds: float) -> None:
        """Close its standard input and wait for it."""
        assert self._child.stdin is not None
        self._child.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(seconds)

    def stop(self) -> None:
        """End it: asked, then made to."""
        if self._child.poll() is None:
            self._child.terminate()
            try:
                self._child.wait(5)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout, self._errors):
            if pipe is not None:
                pipe.close()


@dataclass
class Design:
    """A running bridge.

    Attributes:
        urls: where callers connect, one for each edge.
        parts: its processes, by the role that they are counted under.
        redis_port: where its Redis listens; 0 without one.
        add: start one more pod of a role and wait until it is ready; only the product can.
    """

    urls: list[str] = field(default_factory=list)
    parts: list[Process] = field(default_factory=list)
    redis_port: int = 0
    add: Callable[[str], Process] | None = None


def free_port() -> int:
    """A port of the loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def redis_server() -> Iterator[tuple[Process, int]]:
    """A Redis without persistence, as `bridgectl up` starts it."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        command = [find_server(), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        server = Process("redis", [*command, "--dir", folder, "--maxmemory-policy", "noeviction"])
        try:
            while "eady to accept" not in server.line():
                pass
            yield server, port
        finally:
            server.stop()


@contextlib.contextmanager
def product(
    agent_url: str, *, edges: int = 1, workers: int = 1, variables: Mapping[str, str] | None = None
) -> Iterator[Design]:
    """The bridge as it ships: edge and worker pods and a Redis."""
    made = Design()
    with redis_server() as (server, redis_port):
        made.parts.append(server)
        made.redis_port = redis_port
        common = {
            "REDIS_URL": f"redis://127.0.0.1:{redis_port}/0",
            "DEEPGRAM_URL": agent_url,
            "DEEPGRAM_API_KEY": "load",
            "BRIDGE_HOST": "127.0.0.1",
            "BRIDGE_OPEN_DOOR": "true",
            "BRIDGE_WORKER_CALLS": "2000",
            "BRIDGE_EDGE_CALLS": "2000",
            "BRIDGE_LOG_FORMAT": "json",
            **(variables or {}),
        }
        bridgectl = [sys.executable, "-m", "deepgram_audiocodes_bridge.cli"]

        def begin(role: str) -> tuple[Process, int]:
            port, admin = free_port(), free_port()
            own = {**common, "BRIDGE_ADMIN_PORT": str(admin)}
            if role == "edge":
                own["BRIDGE_PORT"] = str(port)
                made.urls.append(f"ws://127.0.0.1:{port}")
            made.parts.append(Process(role, [*bridgectl, role, str(HERE / "app.py")], own))
            return made.parts[-1], admin

        def add(role: str) -> Process:
            process, admin = begin(role)
            _until_ready(process, admin)
            return process

        made.add = add
        try:
            begun = [begin(role) for role in ["worker"] * workers + ["edge"] * edges]
            for process, admin in begun:
                _until_ready(process, admin)
            yield made
        finally:
            for part in reversed(made.parts[1:]):
                part.stop()


@contextlib.contextmanager
def peer(file: str, agent_url: str, options: Sequence[str] = ()) -> Iterator[Design]:
    """A bridge of `baseline`."""
    process = Process(
        "bridge", [sys.executable, str(HERE / "baseline" / file), "--port", "0", "--agent-url", agent_url, *options]
    )
    try:
        yield Design([f"ws://127.0.0.1:{process.ready()}"], [process])
    finally:
        process.stop()


def _until_ready(process: Process, admin: int) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        url = f"http://127.0.0.1:{admin}/readyz"
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=1) as answer:
            if answer.status == 200:
                return
        time.sleep(0.05)
    raise RuntimeError(f"{process.name} was not ready within {START_SECONDS} s: {process.errors()}")


DESIGNS: dict[str, Callable[[str], Any]] = {
    "product": product,
    "product, no linger": functools.partial(product, variables={"BRIDGE_LINGER_MS": "0"}),
    "plain, asyncio": functools.partial(peer, "plain.py"),
    "plain, uvloop": functools.partial(peer, "plain.py", options=("--uvloop",)),
    "relay": functools.partial(peer, "relay.py"),
}
"""Name → what starts it with an agent's address. `relay` is the lower bound and no bridge."""
