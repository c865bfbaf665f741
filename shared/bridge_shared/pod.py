"""A pod: one process of one role in the fleet, reachable by its inbox.

Edge and worker are both a `Pod` with something on top. It reads the inbox and hands each frame to the call
it belongs to, writes frames to other pods' inboxes, keeps the pod's heartbeat, and counts its calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

from bridge_shared import logs, metrics
from bridge_shared.config import Settings
from bridge_shared.errors import BridgeError
from bridge_shared.frames import Frame, Kind
from bridge_shared.redis.calls import Calls
from bridge_shared.redis.commands import Commands
from bridge_shared.redis.connection import Server
from bridge_shared.redis.fleet import Fleet
from bridge_shared.redis.inboxes import Inbox, Outbox
from bridge_shared.tracing import Tracing
from bridge_shared.vital import Vital

log = logs.get("pod")

Role = Literal["edge", "worker"]


class Taker(Protocol):
    """A call as the pod sees it."""

    cid: str

    def on_frame(self, sender: str, frame: Frame) -> None: ...

    def on_unreachable(self) -> None:
        """Frames for the other side found no inbox: it is gone."""

    def on_inbox_lost(self) -> None:
        """The inbox was lost, and frames with it."""


class Pod:
    """Membership of one process in the fleet.

    Args:
        role: `edge` or `worker`.
        state: Redis with call state and transcripts.
        media: Redis with the inboxes; usually the same.
        info: what the others are told about this pod (load, capacity, draining, bridges …).
        on_beat: called after each look at the other pods.
        on_command: called with each COMMAND frame about a call, and the pod that sent it.
        on_stranger: called with each frame of a call that is not here, and the pod that sent it.

    Attributes:
        tracing: records what its calls do; whoever runs the pod closes it, after the last of them.
        vital: the tasks that this pod cannot do without; whoever runs the pod adds its own.
        on_drain: called when somebody asks this pod to drain, as SIGTERM would.
    """

    def __init__(
        self,
        role: Role,
        state: Server,
        media: Server,
        settings: Settings,
        info: Callable[[], Mapping[str, Any]],
        on_beat: Callable[[], None] | None = None,
        on_command: Callable[[str, Frame], None] | None = None,
        on_stranger: Callable[[str, Frame], None] | None = None,
    ) -> None:
        self.role = role
        self.id = f"{role}-{socket.gethostname()[:40]}-{uuid.uuid4().hex[:8]}"
        self.settings = settings
        self.loop = asyncio.get_running_loop()
        self.tracing = Tracing.start(settings.fleet, self.id, role)
        self.calls = Calls(state, settings.fleet, transcript_ttl=settings.transcript_ttl)
        self.fleet = Fleet(state, settings.fleet, self.id, role)
        self.inbox = Inbox(media, self.id, self._deliver, lost=self._inbox_lost)
        self.outbox = Outbox(media, self.id, self._unreachable, linger=settings.linger_ms / 1000)
        self.vital = Vital()
        self._info = info
        self._on_beat = on_beat
        self._on_command = on_command
        self._on_stranger = on_stranger
        self.on_drain: Callable[[], None] | None = None
        self._commands = Commands(state)
        self._takers: dict[str, Taker] = {}
        self._empty = asyncio.Event()
        self._empty.set()
        # from the start: a pod without a call must not look like a pod that is not there
        metrics.calls_live.labels(role=role).set(0)

    @property
    def load(self) -> int:
        """Calls here now."""
        return len(self._takers)

    def know(self, taker: Taker) -> None:
        """Hand the frames of this call to `taker`; a former taker of the same call gets no more."""
        self._takers[taker.cid] = taker
        self._empty.clear()
        metrics.calls_live.labels(role=self.role).set(len(self._takers))

    def forget(self, taker: Taker) -> None:
        """The call has nothing to do here any more."""
        if self._takers.get(taker.cid) is taker:
            del self._takers[taker.cid]
            metrics.calls_live.labels(role=self.role).set(len(self._takers))
        if not self._takers:
            self._empty.set()

    def takers(self) -> list[Taker]:
        """The calls that are here now."""
        return list(self._takers.values())

    def taker(self, cid: str) -> Taker | None:
        return self._takers.get(cid)

    async def run(self) -> None:
        """Be part of the fleet until cancelled; then leave it. The inbox must have been opened."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                self.vital.start(tasks, self.inbox.run())
                self.vital.start(tasks, self.outbox.run())
                self.vital.start(tasks, self.fleet.run(lambda: dict(self._info()), on_beat=self._on_beat))
        finally:
            # within a second, or the others find out by themselves
            with contextlib.suppress(TimeoutError, BridgeError):
                async with asyncio.timeout(1.0):
                    await self.fleet.leave()
                    await self.inbox.close()

    async def wait_empty(self, seconds: float) -> bool:
        """Wait until no call is here, at most this long. Cancelling it changes nothing."""
        try:
            async with asyncio.timeout(seconds):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True

    def _deliver(self, sender: str, frames: list[Frame]) -> None:
        take: Callable[[str, Frame], None]
        for frame in frames:
            if frame.kind == Kind.COMMAND:
                take = self._command
            elif (taker := self._takers.get(frame.cid)) is not None:
                take = taker.on_frame
            elif self._on_stranger is not None:
                take = self._on_stranger
            else:
                continue
            try:
                take(sender, frame)
            except Exception:
                log.exception("a frame could not be handled", cid=frame.cid, kind=frame.kind)

    def _command(self, sender: str, frame: Frame) -> None:
        match frame.body:
            case [_, "drain", _, str(reply)] if not frame.cid and self.on_drain is not None:
                self.on_drain()
                self._tasks.create_task(self._answer(reply, b"ok"))
            case _ if self._on_command is not None:
                self._on_command(sender, frame)

    async def _answer(self, reply: str, answer: bytes) -> None:
        with contextlib.suppress(BridgeError):  # who asked is told that there was no answer
            await self._commands.answer(reply, answer)

    def _inbox_lost(self) -> None:
        for taker in list(self._takers.values()):
            taker.on_inbox_lost()

    def _unreachable(self, pod: str, frames: list[Frame]) -> None:
        log.debug("inbox of another pod is gone", peer=pod)
        for cid in {frame.cid for frame in frames}:
            if (taker := self._takers.get(cid)) is not None:
                taker.on_unreachable()
