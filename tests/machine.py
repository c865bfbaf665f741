"""The rendered chart on this machine: each pod of it as a process, with the commands, variables, files and probes that
the manifests say.

    async with Machine(template(values)) as machine:
        await machine.start()
        assert await machine.helm_test() == 0
        await machine.scale("bridge-worker", 4)

What is different from a cluster: ports and folders are free ones of this machine, a Service is the address of its
first ready pod, and there is no limit on CPU or memory. The application is the image's, by the Dockerfile.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import socket
import sys
import tempfile
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bridge_shared.redis.embedded import find_server
from harness import free_port
from pods import Program
from rendered import ROOT, Object, container, environment, named, pods, secret_values

BINARIES = {
    "bridgectl": [sys.executable, "-m", "deepgram_audiocodes_bridge.cli"],
    "python": [sys.executable],
}


class LocalPod(Program):
    """One pod as a process.

    Attributes:
        ports: name of each container port -> the port here.
    """

    def __init__(self, name: str, pod: Object, command: list[str], variables: dict[str, str], folder: Path) -> None:
        super().__init__(name, command, variables, folder)
        self._only = container(pod)
        self._grace = pod["spec"].get("terminationGracePeriodSeconds", 30)
        self.ports: dict[str, int] = {}

    async def passes(self, probe: str) -> bool:
        """Whether this probe succeeds now; one that is not defined always does."""
        check = self._only.get(probe)
        return check is None or await asyncio.to_thread(self._ask, check)

    def _ask(self, check: Object) -> bool:
        try:
            if "httpGet" in check:
                get = check["httpGet"]
                url = f"http://127.0.0.1:{self.ports[get['port']]}{get['path']}"
                urllib.request.urlopen(url, timeout=check.get("timeoutSeconds", 1)).close()
            elif "tcpSocket" in check:
                socket.create_connection(("127.0.0.1", self.ports[check["tcpSocket"]["port"]]), 1).close()
            else:
                return self._pong()
        except OSError:
            return False
        return True

    def _pong(self) -> bool:
        """What `valkey-cli -e ping` says; the client itself need not be here."""
        with socket.create_connection(("127.0.0.1", self.ports["redis"]), 1) as connection:
            connection.sendall(f"AUTH {self._variables['REDISCLI_AUTH']}\r\nPING\r\n".encode())
            answers = b""
            while answers.count(b"\n") < 2:
                if not (more := connection.recv(1024)):
                    return False
                answers += more
        return answers == b"+OK\r\n+PONG\r\n"

    async def until_ready(self) -> None:
        """As the kubelet: first the start-up probe, then the readiness probe; for as long as it would wait.

        Raises:
            TimeoutError, AssertionError: it did not become ready, or has ended.
        """
        for probe in ("startupProbe", "readinessProbe"):
            check = self._only.get(probe, {})
            seconds = max(20.0, check.get("periodSeconds", 10) * check.get("failureThreshold", 3))

            async def passed(probe: str = probe) -> bool:
                assert self.running, self.tail()
                return await self.passes(probe)

            await self.until(passed, seconds, f"its {probe}")

    async def stop(self) -> int:
        """As the kubelet: the preStop command, SIGTERM, and an end within the grace period; the exit code.

        Raises:
            TimeoutError: Kubernetes would have killed it.
        """
        async with asyncio.timeout(self._grace):
            if before := self._only.get("lifecycle", {}).get("preStop"):
                word, *rest = before["exec"]["command"]
                process = await asyncio.create_subprocess_exec(*BINARIES[word], *rest)
                assert await process.wait() == 0
            self.terminate()
            return await self.ended(self._grace)


class Machine:
    """The pods of a rendered chart. `objects` are what `template` gives."""

    def __init__(self, objects: list[Object]) -> None:
        self._objects = objects
        self._secrets = secret_values(objects)
        self._folder = tempfile.TemporaryDirectory(prefix="machine-")
        self._services: dict[str, str] = {}
        self.running: dict[str, list[LocalPod]] = {}
        """Of each Deployment and StatefulSet."""
        self._numbers = 0

    async def start(self) -> None:
        """Start as many pods as the manifests say, each after those whose Service it needs, and wait for all."""
        for name in ("bridge-redis", "bridge-agent", "bridge-worker", "bridge-edge"):
            owner = next(o for o in self._objects if o["kind"] in ("Deployment", "StatefulSet") and _name(o) == name)
            await self.scale(name, owner["spec"]["replicas"])

    async def scale(self, name: str, replicas: int) -> list[int]:
        """What `kubectl scale` does; returns the exit codes of the pods that ended."""
        there = self.running.setdefault(name, [])
        new = [self._begin(name, pods(self._objects)[name]) for _ in range(replicas - len(there))]
        there += new
        await asyncio.gather(*(pod.until_ready() for pod in new))
        self._publish(name)
        leaving, self.running[name] = there[: len(there) - replicas], there[max(0, len(there) - replicas) :]
        return await asyncio.gather(*(pod.stop() for pod in leaving))

    async def helm_test(self) -> tuple[int, str]:
        """Run the test pod; its exit code and what it printed."""
        pod = self._begin("bridge-test", named(self._objects, "Pod", "bridge-test"))
        self.running["bridge-test"] = [pod]
        return await pod.ended(60), pod.stdout + pod.stderr

    def token(self) -> str:
        return self._secrets["bridge-access", "ac-token"]

    @property
    def redis_url(self) -> str:
        return f"redis://:{self._secrets['bridge-redis', 'password']}@{self._services['bridge-redis:6379']}/0"

    def edges(self) -> list[str]:
        """Where callers reach each edge."""
        return [f"ws://127.0.0.1:{pod.ports['calls']}" for pod in self.running["bridge-edge"]]

    def _begin(self, name: str, pod: Object) -> LocalPod:
        self._numbers += 1
        folder = Path(self._folder.name) / f"{name}-{self._numbers}"
        folder.mkdir()
        only = container(pod)
        ports = {port["name"]: free_port() for port in only.get("ports", [])}
        here = {str(port["containerPort"]): str(ports[port["name"]]) for port in only.get("ports", [])}
        paths = self._mounts(pod, folder)

        def moved(text: str) -> str:
            """A word of the manifest with this machine's ports, folders and addresses."""
            text = here.get(text, text)
            for address, address_here in self._services.items():
                text = re.sub(rf"(?<=[/@]){re.escape(address)}\b", address_here, text)
            if mount := next((path for path in paths if text == path or text.startswith(f"{path}/")), None):
                text = f"{paths[mount]}{text.removeprefix(mount)}"
            return "127.0.0.1" if text == "0.0.0.0" else text

        variables = environment(pod, self._secrets)
        words = [re.sub(r"\$\((\w+)\)", lambda m: variables[m[1]], word) for word in only["command"]]
        word, *arguments = map(moved, words)
        if word == "valkey-server":
            command = [find_server(), *arguments, "--port", here["6379"], "--bind", "127.0.0.1"]
        else:
            command = [*BINARIES[word], *arguments]
        settings = {n: moved(value) for n, value in variables.items()}
        if name in ("bridge-edge", "bridge-worker"):
            settings["BRIDGE_HOST"] = "127.0.0.1"
        local = LocalPod(folder.name, pod, command, settings, folder)
        local.ports = ports
        local.start()
        return local

    def _mounts(self, pod: Object, folder: Path) -> dict[str, Path]:
        """Path in the container -> folder here, filled as its volume says."""
        sources = {volume["name"]: volume for volume in pod["spec"].get("volumes", [])}
        found = {mount["mountPath"]: folder / mount["name"] for mount in container(pod)["volumeMounts"]}
        for here in found.values():
            here.mkdir()
            if "configMap" in (source := sources.get(here.name, {})):
                for file, text in named(self._objects, "ConfigMap", source["configMap"]["name"])["data"].items():
                    for path, path_here in found.items():
                        text = re.sub(rf"(?<=\s){re.escape(path)}$", str(path_here), text, flags=re.MULTILINE)
                    (here / file).write_text(text)
        if "/app" not in found:
            found["/app"] = _image_app(folder / "image")
        return found

    def _publish(self, name: str) -> None:
        """Services lead to a pod of this owner from now on."""
        labels = pods(self._objects)[name]["metadata"]["labels"]
        for o in self._objects:
            if o["kind"] != "Service" or not o["spec"]["selector"].items() <= labels.items():
                continue
            for port in o["spec"]["ports"]:
                address = f"{_name(o)}:{port['port']}"
                self._services[address] = f"127.0.0.1:{self.running[name][0].ports[port['targetPort']]}"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        everything = [pod for local in self.running.values() for pod in local]
        if error is not None:
            for pod in everything:
                print(pod.tail())
        for pod in everything:
            pod.close()
        with contextlib.suppress(OSError):
            self._folder.cleanup()


def _image_app(folder: Path) -> Path:
    """What the Dockerfile puts into /app."""
    [(source, target)] = re.findall(r"^COPY (\S+) /app/(\S+)$", (ROOT / "deploy" / "Dockerfile").read_text(), re.M)
    folder.mkdir()
    shutil.copy(ROOT / source, folder / target)
    return folder


def _name(o: Object) -> Any:
    return o["metadata"]["name"]
