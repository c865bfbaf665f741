"""Pods as processes of their own, for `bridgectl up --workers N --edges N`: started, watched, replaced, ended."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bridge_shared.lifecycle import Signals
from bridge_shared.orphans import dies_with_parent
from deepgram_audiocodes_bridge.process import EXIT_CONFIG
from deepgram_audiocodes_bridge.stage import in_url

LOOK_SECONDS = 0.1
SETTLED_SECONDS = 5.0
"""A pod that ends sooner has something wrong with it: then all are stopped. A later one is replaced."""

Say = Callable[[str], None]


@dataclass(slots=True, eq=False)
class Child:
    """One pod.

    Attributes:
        name: for the person at the terminal.
        role: of `bridgectl`.
        host, admin: where its admin port is.
        environment: what differs from ours.
    """

    name: str
    role: str
    host: str
    admin: int
    environment: Mapping[str, str]
    process: subprocess.Popen[bytes] = field(init=False)
    began: float = 0.0
    ready: bool = False

    def start(self, app: Path) -> None:
        """Start it. From a thread that lives as long as we do: the child is killed when that ends."""
        self.began, self.ready = time.monotonic(), False
        environment = {**os.environ, **self.environment, "BRIDGE_ADMIN_PORT": str(self.admin)}
        command = [sys.executable, "-m", "deepgram_audiocodes_bridge.cli", self.role, str(app)]
        # a session of its own: Ctrl-C reaches only us, and we drain them
        self.process = subprocess.Popen(command, env=environment, start_new_session=True, preexec_fn=dies_with_parent())

    def look(self) -> bool:
        """Whether it has just become ready."""
        if self.ready:
            return False
        connection = http.client.HTTPConnection(self.host, self.admin, timeout=LOOK_SECONDS)
        with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/readyz")
            self.ready = connection.getresponse().status == http.HTTPStatus.OK
        return self.ready


class Children:
    """All pods of one `bridgectl up`.

    Args:
        app: the application they run.
        seconds: how long they may take to end after SIGTERM; then they are killed.
    """

    def __init__(self, app: Path, pods: Sequence[Child], seconds: float, say: Say) -> None:
        self._app, self._children, self._seconds, self._say = app, pods, seconds, say
        self._told = 0
        """How many signals we were sent."""

    def run(self) -> int:
        """Keep all of them running until told to stop, or until one cannot run. Returns the exit code.

        In the main thread. The first SIGTERM or Ctrl-C drains them all, the second kills them.
        """

        def told() -> None:
            self._told += 1

        with Signals(told, told):
            try:
                for child in self._children:
                    child.start(self._app)
                    self._say(f"{child.name}: pid {child.process.pid}, admin http://{in_url(child.host)}:{child.admin}")
                code = self._watch()
                return self._stop(code)
            finally:
                for child in self._children:
                    if hasattr(child, "process") and child.process.poll() is None:
                        child.process.kill()
                        child.process.wait()

    def _watch(self) -> int:
        """Until told to stop (0) or until a pod has failed (its exit code)."""
        ready = False
        while not self._told:
            for child in self._children:
                if (code := child.process.poll()) is not None:
                    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
                    if code == EXIT_CONFIG or time.monotonic() - child.began < SETTLED_SECONDS:
                        self._say(f"{child.name} {how}: stopping the others")
                        return code or 1
                    child.start(self._app)
                    self._say(f"{child.name} {how}; in its place: pid {child.process.pid}")
                elif child.look() and ready:
                    self._say(f"{child.name} is ready")
            if not ready and all(child.ready for child in self._children):
                ready = True
                self._say("All pods are ready. Ctrl-C drains them; kill one, and it is replaced.")
            time.sleep(LOOK_SECONDS)
        return 0

    def _stop(self, code: int) -> int:
        """Drain all of them; the exit code, which is 1 if `code` is 0 but a pod did not end well."""
        for child in self._children:
            if child.process.poll() is None:
                child.process.send_signal(signal.SIGTERM)
        told, end = max(1, self._told), time.monotonic() + self._seconds
        while (alive := [child for child in self._children if child.process.poll() is None]) and time.monotonic() < end:
            if self._told > told:
                break
            time.sleep(LOOK_SECONDS)
        for child in alive:
            child.process.kill()
            child.process.wait()
        if code:
            return abs(code)
        return 1 if any(child.process.returncode for child in self._children) else 0


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(found.getsockname()[1]) for found in sockets]
