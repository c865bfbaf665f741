"""A primary behind sentinels, and a cluster: real `redis-server` processes, to be killed, frozen and moved about.

Beside them, two pods that do everything at once that pods do with Redis, so that a test can say what an incident
cost them.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bridge_shared.errors import RedisUnavailable
from bridge_shared.frames import Frame, Kind
from bridge_shared.orphans import dies_with_parent
from bridge_shared.redis.calls import CallKeys, Calls
from bridge_shared.redis.connection import Server, connect
from bridge_shared.redis.fleet import Fleet, Offers
from bridge_shared.redis.inboxes import Inbox
from bridge_shared.redis.outbox import Outbox
from bridge_shared.redis.transcripts import FencedStream

PASSWORD = "p@ss:w/rd%"
QUOTED = "p%40ss%3Aw%2Frd%25"
READY_SECONDS = 20.0
RESEND_SECONDS = 0.5


def binary() -> str:
    """The path of redis-server; without one the test is skipped, in CI it fails."""
    path = shutil.which("redis-server")
    if path is None:
        said = "needs a redis-server on PATH (Debian: apt-get install redis-server)"
        pytest.fail(said) if os.environ.get("CI") == "true" else pytest.skip(said)
    return path


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class Process:
    """One redis-server, with or without a configuration file. Keeps its port and folder when started again."""

    def __init__(self, folder: str, options: list[str], *, sentinel: str = "") -> None:
        self.port = free_port()
        self._folder = Path(tempfile.mkdtemp(dir=folder))
        arguments = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder), *options]
        if sentinel:
            path = self._folder / "sentinel.conf"
            path.write_text(f"port {self.port}\nbind 127.0.0.1\ndir {self._folder}\n{sentinel}")
            arguments = [str(path), "--sentinel"]
        else:
            arguments += ["--save", "", "--appendonly", "no", "--repl-diskless-sync-delay", "0"]
        self._command = [binary(), *arguments]
        self.start()

    def start(self) -> None:
        with Path(self._folder, "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=dies_with_parent(),
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def pause(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        if self.running:
            os.kill(self.pid, signal.SIGKILL)
        self._process.wait()

    def command(self, *args: str, password: str = "") -> Any:
        """One command, as redis-cli would print it raw; what is not there or refuses is an OSError."""
        line = [str(Path(binary()).with_name("redis-cli")), "-p", str(self.port), "--no-auth-warning", "-e"]
        if password:
            line += ["-a", password]
        done = subprocess.run([*line, *args], capture_output=True, text=True, timeout=5)
        if done.returncode:
            raise OSError(f"{args}: {done.stdout} {done.stderr}")
        return done.stdout.strip()


def until(condition: Callable[[], object], what: str, seconds: float = READY_SECONDS) -> None:
    """Wait for other processes; what is not there yet may raise OSError."""
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError):
            if condition():
                return
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.02)


class Sentinels:
    """A primary, two replicas and three sentinels, all behind `PASSWORD`."""

    def __init__(self, folder: str) -> None:
        login = ["--requirepass", PASSWORD, "--masterauth", PASSWORD]
        first = Process(folder, login)
        self.servers = [first]
        self.sentinels: list[Process] = []
        try:
            for _ in range(2):
                self.servers.append(Process(folder, [*login, "--replicaof", "127.0.0.1", str(first.port)]))
            until(lambda: all("master_link_status:up" in self.info(s) for s in self.servers[1:]), "replicas")
            text = f'''requirepass "{PASSWORD}"
sentinel monitor mymaster 127.0.0.1 {first.port} 2
sentinel auth-pass mymaster "{PASSWORD}"
sentinel down-after-milliseconds mymaster 600
sentinel failover-timeout mymaster 6000
sentinel parallel-syncs mymaster 2
'''
            self.sentinels = [Process(folder, [], sentinel=text) for _ in range(3)]
            self.settle()
        except BaseException:
            self.stop()
            raise

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{s.port}" for s in self.sentinels)
        return f"redis+sentinel://:{QUOTED}@{hosts}/mymaster/0"

    def info(self, server: Process) -> str:
        return str(server.command("INFO", "replication", password=PASSWORD))

    def primary(self) -> Process:
        """Whom most sentinels name."""
        named = [
            s.command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster", password=PASSWORD).split()[1]
            for s in self.sentinels
        ]
        port = int(max(named, key=named.count))
        return next(s for s in self.servers if s.port == port)

    def settle(self) -> None:
        """Start what was killed, and wait until everybody knows everybody."""
        for server in self.servers:
            if not server.running:
                server.start()

        def settled() -> bool:
            primary = self.primary()
            for server in self.servers:
                if server is not primary and "role:master" in self.info(server):
                    # The sentinels would see to that as well, after ten seconds.
                    server.command("REPLICAOF", "127.0.0.1", str(primary.port), password=PASSWORD)
            for sentinel in self.sentinels:
                flat = sentinel.command("SENTINEL", "MASTER", "mymaster", password=PASSWORD).split("\n")
                facts = dict(zip(flat[::2], flat[1::2], strict=False))
                if (facts["num-slaves"], facts["num-other-sentinels"], facts["flags"]) != ("2", "2", "master"):
                    return False
                if "down" in sentinel.command("SENTINEL", "REPLICAS", "mymaster", password=PASSWORD).split("\n"):
                    return False
            said = self.info(primary)
            return "role:master" in said and said.count("state=online") == 2

        until(settled, "sentinels that know each other and two replicas", 30)

    def stop(self) -> None:
        for process in [*self.sentinels, *self.servers]:
            process.kill()


class ClusterServers:
    """Three primaries and three replicas."""

    def __init__(self, folder: str) -> None:
        options = ["--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf", "--cluster-node-timeout", "500"]
        self.servers: list[Process] = []
        try:
            for _ in range(6):
                self.servers.append(Process(folder, [*options, "--cluster-port", str(free_port())]))
            until(lambda: all(s.command("PING") == "PONG" for s in self.servers), "six servers")
            first = self.servers[0]
            for n, server in enumerate(self.servers):
                server.command("CLUSTER", "SET-CONFIG-EPOCH", str(n + 1))
                bus = server._command[server._command.index("--cluster-port") + 1]
                first.command("CLUSTER", "MEET", "127.0.0.1", str(server.port), bus)
            self.ids = {server.port: server.command("CLUSTER", "MYID") for server in self.servers}
            for n, (low, high) in enumerate([(0, 5460), (5461, 10922), (10923, 16383)]):
                self.servers[n].command("CLUSTER", "ADDSLOTSRANGE", str(low), str(high))
            until(lambda: all(len(self.nodes(s)) == 6 for s in self.servers), "nodes that know each other")
            for n in range(3):
                replica, primary = self.servers[n + 3], self.servers[n]
                until(
                    lambda replica=replica, primary=primary: replica.command(
                        "CLUSTER", "REPLICATE", self.ids[primary.port]
                    ),
                    "a replica",
                )
            self.settle()
        except BaseException:
            self.stop()
            raise

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{s.port}" for s in self.servers[3:5])

    def nodes(self, server: Process) -> list[list[str]]:
        return [line.split() for line in server.command("CLUSTER", "NODES").splitlines()]

    def owner(self, key: str) -> Process:
        """The primary of a key's slot, as most see it."""
        living = [server for server in self.servers if server.running]
        slot = int(living[0].command("CLUSTER", "KEYSLOT", key))
        for server in living:
            for line in self.nodes(server):
                if "myself" in line[2] and "master" in line[2] and _has(line[8:], slot):
                    return server
        raise OSError(f"nobody owns {slot}")

    def elsewhere(self, key: str, former: Process) -> bool:
        """Whether another than `former` owns its slot now."""
        try:
            return self.owner(key) is not former
        except OSError:
            return False

    def replica(self, primary: Process) -> Process:
        """One of its replicas."""
        for line in self.nodes(primary):
            if line[3] == self.ids[primary.port]:
                return next(s for s in self.servers if self.ids[s.port] == line[0])
        raise AssertionError("it has none")

    def other(self, key: str) -> Process:
        """Some other primary."""
        owner = self.owner(key)
        for server in self.servers:
            mine = next(line for line in self.nodes(server) if "myself" in line[2])
            if server is not owner and "master" in mine[2]:
                return server
        raise AssertionError("there is only one primary")

    def settle(self) -> None:
        """Start what was killed, and wait until every primary has its replica and all agree."""
        for server in self.servers:
            if not server.running:
                server.start()

        def settled() -> bool:
            for server in self.servers:
                if "cluster_state:ok" not in server.command("CLUSTER", "INFO"):
                    return False
                if any("fail" in line[2] or "handshake" in line[2] for line in self.nodes(server)):
                    return False
                said = server.command("INFO", "replication")
                if "role:master" in said and "connected_slaves:0" in said:
                    return False
                if "role:slave" in said and "master_link_status:up" not in said:
                    return False
            return True

        until(settled, "a cluster that is well", 30)

    def move(self, key: str, *, close: bool = True) -> Process:
        """Move the slot of `key` with all that is in it to another primary; that one.

        Args:
            close: False leaves the slot half moved: its keys are with the new one, and it belongs to the old one.
        """
        old, new = self.owner(key), self.other(key)
        slot = old.command("CLUSTER", "KEYSLOT", key)
        new.command("CLUSTER", "SETSLOT", slot, "IMPORTING", self.ids[old.port])
        old.command("CLUSTER", "SETSLOT", slot, "MIGRATING", self.ids[new.port])
        while keys := old.command("CLUSTER", "GETKEYSINSLOT", slot, "100").splitlines():
            old.command("MIGRATE", "127.0.0.1", str(new.port), "", "0", "2000", "KEYS", *keys)
        if close:
            self.close(slot, old, new)
        return new

    def close(self, slot: str, old: Process, new: Process) -> None:
        for server in (new, old):
            server.command("CLUSTER", "SETSLOT", slot, "NODE", self.ids[new.port])

    def stop(self) -> None:
        for process in self.servers:
            process.kill()


def _has(ranges: list[str], slot: int) -> bool:
    for text in ranges:
        low, _, high = text.partition("-")
        if low.isdecimal() and int(low) <= slot <= int(high or low):
            return True
    return False


@contextlib.contextmanager
def started(kind: type[Sentinels] | type[ClusterServers]) -> Iterator[Any]:
    """The servers, until the block ends."""
    binary()
    with tempfile.TemporaryDirectory(prefix="bridge-redis-") as folder:
        servers = kind(folder)
        try:
            yield servers
        finally:
            servers.stop()


class TestPod:
    """A pod that does with Redis what pods do.

    Attributes:
        strict: frames are sent once, so the inboxes alone must see that they arrive and stay in order.
        dead: whom it ever took for dead.
    """

    __test__ = False

    def __init__(self, server: Server, fleet: str, role: Any, *, strict: bool) -> None:
        self.server, self.pod, self.strict = server, f"{role}-{fleet}", strict
        self.calls = Calls(server, fleet, transcript_ttl=3600)
        self.fleet = Fleet(server, fleet, self.pod, role)
        self.inbox = Inbox(server, self.pod, self._deliver, lost=self._inbox_lost)
        self.outbox = Outbox(server, self.pod, lambda to, frames: self.undelivered.extend(f.seq for f in frames))
        self.offers = Offers(server, fleet, lambda offer: self.offered.append(offer.cid))
        # The other side's frames: when each was delivered in order, and those that came too early.
        self.got: list[float] = []
        self._early: set[int] = set()
        # Ours: how many the other side has, and when the oldest of the others was sent.
        self.confirmed = 0
        self._sent_at = 0.0
        self.duplicates = 0
        self.resent = 0
        self.lost = 0
        self.undelivered: list[int] = []
        self.offered: list[str] = []
        self.dead: set[str] = set()
        self._tasks: list[asyncio.Task[Any]] = []
        self.posted = 0
        self.beats: list[float] = []

    async def start(self) -> None:
        await self.inbox.open()
        for work in (
            self.inbox.run(),
            self.outbox.run(),
            self.offers.run(),
            self.fleet.run(lambda: {"load": 1}, on_beat=self._look),
        ):
            self.spawn(work)

    def spawn(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._tasks.append(task)
        return task

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        ended = await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.server.close()
        faults = [e for e in ended if isinstance(e, Exception)]
        if faults:
            raise ExceptionGroup("tasks of a pod failed", faults)

    def post(self, to: str) -> None:
        """A control frame with the next number. What Redis has lost is sent again, as the link does it."""
        if self.posted == self.confirmed:
            self._sent_at = time.monotonic()
        self.posted += 1
        self._send(to, self.posted)
        self.resend(to)

    def resend(self, to: str) -> None:
        if self.strict or time.monotonic() - self._sent_at < RESEND_SECONDS:
            return
        self._sent_at = time.monotonic()
        for seq in range(self.confirmed + 1, self.posted + 1):
            self.resent += 1
            self._send(to, seq)

    def _send(self, to: str, seq: int) -> None:
        self.outbox.post(to, Frame(1, "call", 1, 1, seq, len(self.got), 0, int(Kind.TURNEND), [[1, 1]]))

    def _deliver(self, sender: str, frames: list[Frame]) -> None:
        for frame in frames:
            if frame.rx > self.confirmed:
                self.confirmed, self._sent_at = frame.rx, time.monotonic()
            if frame.seq <= len(self.got) or frame.seq in self._early:
                self.duplicates += 1
                continue
            assert frame.seq == len(self.got) + 1 or not self.strict, "out of order"
            self._early.add(frame.seq)
            while len(self.got) + 1 in self._early:
                self._early.discard(len(self.got) + 1)
                self.got.append(time.monotonic())

    def _inbox_lost(self) -> None:
        self.lost += 1

    def _look(self) -> None:
        if self.fleet.watch._at is not None:
            self.beats.append(self.fleet.watch._at)
        self.dead.update(pod for pod in self.fleet.watch.pods if self.fleet.watch.dead(pod))


class Traffic:
    """Two pods with a call: frames both ways, a transcript, offers, commands; all of it all the time."""

    def __init__(self, tag: str, edge: TestPod, worker: TestPod) -> None:
        self.edge, self.worker = edge, worker
        self.cid = f"call-{tag}"
        self.tag = f"{{{tag}}}"
        self.said = 0
        self.refused = 0
        self.answers: list[float] = []
        self._more = asyncio.Event()
        self._on = True
        self._tasks: list[asyncio.Task[None]] = []
        self.stream: FencedStream

    async def begin(self) -> None:
        """The call becomes active, and everybody starts to talk."""
        calls = self.edge.calls
        attached = await calls.attach(self.cid, edge=self.edge.pod, new={"bridge": "main", "caller": "+1"})
        assert attached.status == "created"
        claimed = await self.worker.calls.claim(self.cid, worker=self.worker.pod, seen_owner="", seen_we=0)
        assert claimed is not None and claimed.edge == self.edge.pod
        assert await self.worker.calls.activate(self.cid, we=claimed.we, session_id="s")
        self.we = claimed.we
        self.stream = FencedStream(self.worker.server, CallKeys.of(self.cid).transcript, claimed.we)
        self.worker.spawn(self.stream.run())
        self._tasks = [asyncio.create_task(self._talk()), asyncio.create_task(self._ask())]

    async def _talk(self) -> None:
        while self._on:
            self.edge.post(self.worker.pod)
            self.worker.post(self.edge.pod)
            if self.edge.posted % 10 == 0:
                self.stream.append({"role": "user", "content": f"line {self.said}"})
                self.said += 1
            await asyncio.sleep(0.01)

    async def _ask(self) -> None:
        while self._on:
            try:
                assert await self.edge.calls.touch(self.cid)
                self.answers.append(time.monotonic())
            except RedisUnavailable:
                self.refused += 1
            await asyncio.sleep(0.01)

    async def more(self, eventually: Any, frames: int = 100, seconds: float = 20.0) -> None:
        """Until each side got so many frames that were posted from now on, and the transcript goes on."""
        edge, worker, line, asked = self.edge.posted, self.worker.posted, self.said, len(self.answers)
        await eventually(
            lambda: (
                worker + frames <= len(self.edge.got)
                and edge + frames <= len(self.worker.got)
                and self.said - self.stream.pending > line
                and len(self.answers) > asked
            ),
            seconds,
        )

    async def end(self, eventually: Any) -> None:
        """Stop talking; everything that was said must have arrived once and in order, and the call ends."""
        self._on = False
        await asyncio.gather(*self._tasks)
        assert await self.edge.outbox.flush(10)
        assert await self.worker.outbox.flush(10)

        def all_there() -> bool:
            self.edge.resend(self.worker.pod)
            self.worker.resend(self.edge.pod)
            return len(self.worker.got) == self.edge.posted and len(self.edge.got) == self.worker.posted

        await eventually(all_there, 10)
        assert (self.edge.inbox.failed, self.worker.inbox.failed) == (0, 0)
        assert await self.stream.flush(10)
        lines = await self.worker.calls.transcript(self.cid)
        assert [line.content for line in lines] == [f"line {n}" for n in range(self.said)]
        assert [line.id for line in lines] == [f"{self.we}-{n + 1}" for n in range(self.said)]
        for pod in (self.edge, self.worker):
            assert pod.dead == set(), "a living pod was taken for dead"
            assert set(await pod.fleet.pods()) == {self.edge.pod, self.worker.pod}
        await self.edge.fleet.offer(self.cid, "main", "orphan", 1, self.edge.pod)
        await eventually(lambda: self.cid in self.worker.offered and self.cid in self.edge.offered, 10)
        ended = await self.worker.calls.end(self.cid, reason="ended", detail="", we=self.we)
        assert ended.first and ended.finish == "owed"
        assert await self.worker.calls.due() == [self.cid]
        assert await self.worker.calls.live() == []

    def report(self, what: str) -> str:
        """The longest silence of each kind since the call began, in seconds."""
        gaps = {
            "edge got frames after": self.edge.got,
            "worker": self.worker.got,
            "commands": self.answers,
            "heartbeat": self.worker.beats,
        }
        words = [
            f"{name} {max((b - a for a, b in itertools.pairwise(times)), default=0.0):.2f} s"
            for name, times in gaps.items()
        ]
        doubled, resent = (sum(getattr(pod, n) for pod in (self.edge, self.worker)) for n in ("duplicates", "resent"))
        words.append(f"{self.refused} commands refused, {resent} frames sent again, {doubled} came twice")
        return f"{what}: {', '.join(words)}"


@contextlib.asynccontextmanager
async def traffic(url: str, *, strict: bool = False) -> AsyncIterator[Traffic]:
    """Two pods of a fleet of their own on this Redis, in the middle of a call. `strict`: see `TestPod`."""
    tag = secrets.token_hex(4)
    pods = [TestPod(await connect(url, name=f"{role}-{tag}"), tag, role, strict=strict) for role in ("edge", "worker")]
    try:
        for pod in pods:
            await pod.start()
        call = Traffic(tag, *pods)
        await call.begin()
        yield call
    finally:
        for pod in pods:
            await pod.stop()
