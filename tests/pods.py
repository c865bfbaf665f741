"""Real pods for tests: `bridgectl edge|worker APP` as processes, each with ports and a log of its own.

    async with Pods(redis_url, agent.url, app) as pods:
        edge, worker = await asyncio.gather(pods.edge(), pods.worker())
        ...  # place calls at edge.url
        worker.kill()
        await worker.ended()

Whatever was started is ended with the block, and with the test run, however that ends. If the block fails, the
last lines of every pod's log are printed.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bridge_shared.orphans import dies_with_parent
from bridge_sim.caller import SimulatedCall
from bridge_sim.plan import CallPlan
from harness import free_port

POLL_SECONDS = 0.02
SHOWN_LINES, SHOWN_WIDTH = 40, 500
SETTINGS = ("BRIDGE_", "REDIS_URL", "DEEPGRAM_", "AC_TOKEN", "OTEL_")

APP = """
import asyncio, time
from deepgram_audiocodes_bridge import BridgeConfig, DeepgramBridge

bridge = DeepgramBridge(BridgeConfig(deepgram_api_key="test-key", deepgram_config={{"agent": {{
    "listen": {{"provider": {{"type": "deepgram", "model": "nova-3"}}}},
    "think": {{"provider": {{"type": "open_ai", "model": "gpt-4o-mini"}}, "prompt": "You are the parcel desk.",
              "functions": {functions}}},
    "speak": {{"provider": {{"type": "deepgram", "model": "aura-2-thalia-en"}}}},
}}}}, port=8000))

@bridge.on("session_end")
async def over(session, event):
    print("session_end", event.reason, session.conversation_id, flush=True)

{handlers}
asyncio.run(bridge.run())
print("the application went on after run", flush=True)
"""
"""An application without a greeting; it says when a call and when `run` is over."""

Line = dict[str, Any]


def application(folder: Path, handlers: str = "", *, functions: Sequence[str] = ()) -> Path:
    """A file in that folder with one bridge, the handlers given as source, and a `session_end` handler.

    Args:
        functions: the names of the functions that the agent may call.
    """
    app = folder / "app.py"
    offered = [{"name": name, "description": name} for name in functions]
    app.write_text(APP.format(handlers=handlers, functions=offered))
    return app


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """This process's environment with these settings of ours and no others."""
    return {**{name: value for name, value in os.environ.items() if not name.startswith(SETTINGS)}, **variables}


class Program:
    """A process of ours with its output in files, which ends when the test run does.

    Attributes:
        name: for messages.
        process: its handle; started by `start`.
    """

    def __init__(self, name: str, command: Sequence[str], variables: Mapping[str, str], folder: Path) -> None:
        self.name = name
        self._command, self._variables = list(command), dict(variables)
        self._out, self._err = folder / f"{name}.out", folder / f"{name}.err"
        self.process: subprocess.Popen[bytes]

    def start(self) -> Self:
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                self._command,
                env=environment(self._variables),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
                preexec_fn=dies_with_parent(),
            )
        return self

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    @property
    def stdout(self) -> str:
        """What it has printed so far."""
        return self._out.read_text("utf-8", "replace")

    @property
    def stderr(self) -> str:
        return self._err.read_text("utf-8", "replace")

    @property
    def log(self) -> list[Line]:
        """Its log so far, oldest first."""
        lines = []
        for line in self.stderr.splitlines():
            with contextlib.suppress(ValueError):  # the last line may not be whole yet; others are not ours
                lines.append(json.loads(line))
        return [line for line in lines if isinstance(line, dict)]

    def logged(self, message: str) -> list[Line]:
        """The log lines with this message."""
        return [line for line in self.log if line.get("message") == message]

    def send(self, number: signal.Signals) -> None:
        """Send it a signal; nothing if it has ended."""
        self.process.send_signal(number)

    def terminate(self) -> None:
        """SIGTERM: it drains."""
        self.send(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL; its sockets are gone when this returns."""
        self.process.kill()
        self.process.wait()

    def pause(self) -> None:
        """SIGSTOP: it stands still until `go_on`."""
        self.send(signal.SIGSTOP)

    def go_on(self) -> None:
        self.send(signal.SIGCONT)

    async def ended(self, seconds: float = 30.0) -> int:
        """Wait until it has ended; its exit code, negative if a signal ended it."""
        await self.until(lambda: not self.running, seconds, "its end")
        return int(self.process.returncode)

    async def until_logged(self, message: str, seconds: float = 30.0) -> Line:
        """Wait until it logs this message; that line."""
        await self.until(lambda: self.logged(message), seconds, f"the log line {message!r}")
        return self.logged(message)[0]

    async def until(self, condition: Callable[[], object], seconds: float, what: str) -> None:
        """Wait until the condition, which may be async, holds.

        Raises:
            TimeoutError: it did not in time; the message has the end of the log.
        """
        try:
            async with asyncio.timeout(seconds):
                while True:
                    holds = condition()
                    if asyncio.iscoroutine(holds):
                        holds = await holds
                    if holds:
                        return
                    await asyncio.sleep(POLL_SECONDS)  # another process sets no event
        except TimeoutError:
            raise TimeoutError(f"{self.name}: waited {seconds:g} s for {what}\n{self.tail()}") from None

    def tail(self) -> str:
        """The last lines of what it has said, for a person."""
        lines = [*self.stdout.splitlines()[-SHOWN_LINES:], *self.stderr.splitlines()[-SHOWN_LINES:]]
        state = "running" if self.running else f"ended with {self.process.returncode}"
        return "\n".join([f"--- {self.name} (pid {self.pid}, {state})", *(line[:SHOWN_WIDTH] for line in lines)])

    def close(self) -> None:
        """End it at once if it still runs."""
        if self.running:
            self.kill()


class Pod(Program):
    """One pod.

    Attributes:
        port: where an edge listens for callers.
        admin_port: known once it is ready.
    """

    port = 0
    admin_port = 0

    @property
    def url(self) -> str:
        """Where callers reach this edge."""
        return f"ws://127.0.0.1:{self.port}"

    async def ready(self, seconds: float = 30.0) -> None:
        """Wait until it takes calls.

        Raises:
            TimeoutError, AssertionError: it does not, or has ended; the message has the end of its log.
        """
        await self.administrable(seconds)

        async def ready() -> bool:
            assert self.running, self.tail()
            status, _ = await asyncio.to_thread(self.get, "/readyz")
            return status == http.HTTPStatus.OK

        await self.until(ready, seconds, "being ready")

    async def administrable(self, seconds: float = 30.0) -> None:
        """Wait until its admin port answers; errors as in `ready`."""
        self.admin_port = 0

        def admin() -> bool:
            assert self.running, self.tail()
            return bool(self.logged("admin port open"))

        await self.until(admin, seconds, "its admin port")
        self.admin_port = int(self.logged("admin port open")[-1]["port"])

    async def until_answers(self, path: str, status: int, text: str = "", seconds: float = 30.0) -> str:
        """Wait until its admin port answers so, with this in the body; the body."""
        got: tuple[int, str] = (0, "")

        async def answers() -> bool:
            nonlocal got
            got = await asyncio.to_thread(self.get, path)
            return got[0] == status and text in got[1]

        await self.until(answers, seconds, f"{path} {status} {text}")
        return got[1]

    def get(self, path: str) -> tuple[int, str]:
        """Ask its admin port: status and body; status 0 if nobody answers within 2 s. Blocks."""
        connection = http.client.HTTPConnection("127.0.0.1", self.admin_port, timeout=2)
        with contextlib.closing(connection):
            try:
                connection.request("GET", path)
                answer = connection.getresponse()
                return answer.status, answer.read().decode()
            except OSError:
                return 0, ""

    async def metric(self, name: str) -> float:
        """The sum of a metric over its labels; NaN if it is not there or nobody answers."""
        _, body = await asyncio.to_thread(self.get, "/metrics")
        values = [float(line.rsplit(" ", 1)[1]) for line in body.splitlines() if re.match(rf"{name}[ {{]", line)]
        return sum(values) if values else math.nan

    async def until_metric(self, name: str, value: float, seconds: float = 15.0) -> None:
        """Wait until a metric has at least this value."""

        async def reached() -> bool:
            return await self.metric(name) >= value

        await self.until(reached, seconds, f"{name} {value:g}")


class Pods:
    """The pods of one fleet.

    Args:
        redis_url: where they meet.
        agent_url: of the simulated agent.
        app: the application's file; None: an edge gets its door from the environment.
        variables: settings for all of them.
    """

    def __init__(self, redis_url: str, agent_url: str, app: Path | None, **variables: str) -> None:
        self._app = app
        self._variables = {
            "REDIS_URL": redis_url,
            "DEEPGRAM_URL": agent_url,
            "DEEPGRAM_API_KEY": "test-key",
            "BRIDGE_HOST": "127.0.0.1",
            "BRIDGE_LOG_FORMAT": "json",
            **variables,
        }
        self._folder = tempfile.TemporaryDirectory(prefix="pods-")
        self.all: list[Pod] = []

    async def edge(self, **variables: str) -> Pod:
        """Start an edge on a free port and wait until it is ready."""
        port = int(variables.get("BRIDGE_PORT", 0)) or free_port()
        pod = self.begin("edge", **{**variables, "BRIDGE_PORT": str(port)})
        pod.port = port
        await pod.ready()
        return pod

    async def worker(self, **variables: str) -> Pod:
        """Start a worker and wait until it is ready."""
        pod = self.begin("worker", **variables)
        await pod.ready()
        return pod

    def begin(self, role: str, **variables: str) -> Pod:
        """Start a pod without waiting for it."""
        app = [str(self._app)] if self._app is not None else []
        command = [sys.executable, "-m", "deepgram_audiocodes_bridge.cli", role, *app]
        name = f"{role}-{len(self.all) + 1}"
        pod = Pod(name, command, {**self._variables, **variables}, Path(self._folder.name))
        pod.start()
        self.all.append(pod)
        return pod

    async def stop(self, seconds: float = 20.0) -> list[int]:
        """Drain all that still run, and kill those that have not ended after so long; the exit codes of all."""
        for pod in self.all:
            if pod.running:
                pod.go_on()
                pod.terminate()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                for pod in self.all:
                    await pod.ended(seconds)
        for pod in self.all:
            pod.close()
        return [int(pod.process.returncode) for pod in self.all]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is not None:
                for pod in self.all:
                    print(pod.tail())
        finally:
            for pod in self.all:
                pod.close()
            self._folder.cleanup()


@contextlib.asynccontextmanager
async def calling(edge: Pod, **plan: Any) -> AsyncIterator[SimulatedCall]:
    """A call that has begun at this edge."""
    async with SimulatedCall(edge.url, CallPlan(turn_timeout_s=40, **plan)) as call:
        await call.connect()
        await call.initiate()
        yield call
