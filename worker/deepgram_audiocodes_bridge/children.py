"""Pods as processes of their own, for `bridgectl up --workers N --edges N`: started, watched, replaced, ended."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bridge_edge.door import Door
from bridge_shared.lifecycle import Signals
from bridge_shared.orphans import dies_with_parent
from deepgram_audiocodes_bridge.process import EXIT_CONFIG, Process
from deepgram_audiocodes_bridge.stage import in_url, reachable, url_of

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
        host, admin: where its admin port listens.
        environment: what differs from ours.
        behind: the edge whose ports are the application's, and by how many this one's port is behind them: it is
            started when they are known.
        pod, doors: its id and where it takes calls, as it has told.
    """

    name: str
    role: str
    host: str
    admin: int
    environment: Mapping[str, str]
    behind: tuple[Child, int] | None = None
    process: subprocess.Popen[bytes] = field(init=False)
    began: float = 0.0
    ready: bool = False
    pod: str = ""
    doors: list[Door] = field(default_factory=list)
    _told: int = -1
    """The end of the pipe in which it tells them."""

    def start(self, app: Path) -> None:
        """Start it. From a thread that lives as long as we do: the child is killed when that ends."""
        self.began, self.ready, self.pod, self.doors = time.monotonic(), False, "", []
        self.close()
        self._told, telling = os.pipe()
        os.set_blocking(self._told, False)
        environment = {**os.environ, **self.environment, "BRIDGE_ADMIN_PORT": str(self.admin)}
        command = [sys.executable, "-m", "deepgram_audiocodes_bridge.cli", self.role, str(app)]
        command += ["--admin-host", self.host, "--tell", str(telling)]
        try:
            # a session of its own: Ctrl-C reaches only us, and we drain them
            self.process = subprocess.Popen(
                command,
                env=environment,
                start_new_session=True,
                preexec_fn=dies_with_parent(),
                pass_fds=(telling,),
            )
        finally:
            os.close(telling)

    @property
    def address(self) -> str:
        """Of its admin port, for somebody on this machine."""
        return f"http://{in_url(reachable(self.host))}:{self.admin}"

    def look(self) -> bool:
        """Whether it has just become ready."""
        if self.ready:
            self._listen()  # an application may open doors again and again: a full pipe would hold up its calls
            return False
        connection = http.client.HTTPConnection(reachable(self.host), self.admin, timeout=LOOK_SECONDS)
        with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/readyz")
            # once more if it has told something: the bridges of an application open their doors one by one
            accepts = connection.getresponse().status == http.HTTPStatus.OK
            self.ready = accepts and not self._listen() and bool(self.pod)
        return self.ready

    def _listen(self) -> bool:
        """Take in what it has told since; whether it was anything."""
        with contextlib.suppress(BlockingIOError):
            lines = os.read(self._told, 65_536).splitlines()
            for line in lines:
                kind, *what = json.loads(line)
                if kind == "pod":
                    (self.pod,) = what
                else:
                    bridge, host, port = what
                    self.doors.append(Door(bridge, host, port, ()))
            return bool(lines)
        return False

    def close(self) -> None:
        """Listen to it no longer."""
        if self._told >= 0:
            os.close(self._told)
            self._told = -1


def tell(process: Process, pipe: int) -> None:
    """In a child: tell our parent the id of the pod and where it takes calls, a line of JSON each."""

    def line(*what: str | int) -> None:
        os.write(pipe, json.dumps(what).encode() + b"\n")  # shorter than what a pipe takes in one piece

    process.on_pod = lambda pod: line("pod", pod)
    process.on_open = lambda door: line("door", door.bridge, door.host, door.port)


class Children:
    """All pods of one `bridgectl up`.

    Args:
        app: the application they run.
        seconds: how long they may take to end after SIGTERM; then they are killed.
    """

    def __init__(self, app: Path, pods: Sequence[Child], seconds: float, say: Say) -> None:
        self._app, self._children, self._seconds, self._say = app, pods, seconds, say
        self._started: list[Child] = []
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
                self._start()
                code = self._watch()
                return self._stop(code)
            finally:
                for child in self._started:
                    if child.process.poll() is None:
                        child.process.kill()
                        child.process.wait()
                    child.close()

    def _start(self) -> None:
        """Start those that need not wait, or no longer."""
        for child in self._children:
            if child in self._started:
                continue
            if child.behind is not None:
                first, by = child.behind
                if not first.ready:
                    continue
                port = max(door.port for door in first.doors) + by
                child.environment = {**child.environment, "BRIDGE_PORT": str(port)}
            child.start(self._app)
            self._started.append(child)
            self._say(f"{child.name}: pid {child.process.pid}, admin {child.address}")

    def _introduce(self) -> None:
        """Say which pod is which, and where calls go."""
        urls = []
        for child in self._children:
            self._say(f"{child.name}: pod {child.pod}")
            for door in child.doors:
                urls.append(url_of(door, child.doors))
                self._say(f"{child.name}: {urls[-1]}")
        for url in urls[:1]:
            self._say(f"A call: bridgectl call --url {url}")

    def _watch(self) -> int:
        """Until told to stop (0) or until a pod has failed (its exit code)."""
        ready = False
        while not self._told:
            self._start()
            for child in self._started:
                if (code := child.process.poll()) is not None:
                    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
                    if code == EXIT_CONFIG or time.monotonic() - child.began < SETTLED_SECONDS:
                        self._say(f"{child.name} {how}: stopping the others")
                        return code or 1
                    child.start(self._app)
                    self._say(f"{child.name} {how}; in its place: pid {child.process.pid}")
                elif child.look() and ready:
                    self._say(f"{child.name} is ready: pod {child.pod}")
            if not ready and all(child.ready for child in self._children):
                ready = True
                self._introduce()
                self._say("All pods are ready. Ctrl-C drains them; kill one, and it is replaced.")
            time.sleep(LOOK_SECONDS)
        return 0

    def _stop(self, code: int) -> int:
        """Drain all of them; the exit code, which is 1 if `code` is 0 but a pod did not end well."""
        for child in self._started:
            if child.process.poll() is None:
                child.process.send_signal(signal.SIGTERM)
        told, end = max(1, self._told), time.monotonic() + self._seconds
        while (alive := [child for child in self._started if child.process.poll() is None]) and time.monotonic() < end:
            if self._told > told:
                break
            time.sleep(LOOK_SECONDS)
        for child in alive:
            child.process.kill()
            child.process.wait()
        if code:
            return abs(code)
        return 1 if any(child.process.returncode for child in self._started) else 0


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(found.getsockname()[1]) for found in sockets]
