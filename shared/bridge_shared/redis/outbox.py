"""Writing to the inboxes of other pods: one XADD per tick of the event loop and destination.

One server has one connection for it. In a cluster there is one to each node that holds a needed inbox, and when
that breaks, or the node says that an inbox is not there, everything unanswered is routed anew (LINK "Inbox").
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from bridge_shared import logs
from bridge_shared.errors import BridgeError, RedisRefused, RedisUnavailable
from bridge_shared.frames import AUDIO, Frame, FrameError, Kind, pack
from bridge_shared.redis.cluster import Cluster
from bridge_shared.redis.connection import Server
from bridge_shared.redis.pipeline import Outage, Pipeline
from bridge_shared.redis.wire import ASKING, Backoff, Misplaced, Place, Wire
from bridge_shared.redis.wire import pack as resp

log = logs.get("redis")

MAXLEN: Final = 20_000
"""Entries an inbox may hold when its reader does not trim it; at one per tick and sender, minutes."""

OUTBOX_BYTES: Final = 64 * 1024 * 1024
"""What an outbox may hold when Redis does not take it."""

AUDIO_SECONDS: Final = 1.0
"""Audio that could not be written for this long is of no use to anybody; the link skips it."""

DEPTH: Final = 4
"""Writes that may be unanswered. Beyond them frames gather, so that batches grow as Redis gets slower."""

FRAME_OVERHEAD: Final = 96
"""Bytes counted for a frame beside its audio."""

_PATIENT: Final = AUDIO | {int(Kind.ACK), int(Kind.PLAYED)}
"""Kinds that may linger: nobody waits for one of them."""

WORTH_WAITING: Final = 4
"""Fewer frames than that do not pay for a timer and its tick."""

PACE_OF: Final = 16
"""So many frames tell how fast they come."""

_BULKY: Final = frozenset({int(Kind.ACTIVITY), int(Kind.COMMAND), int(Kind.SPEECH)})
"""Other kinds whose bodies may be large, so that they are worth measuring."""

Item = tuple[str, Frame, int, float]
"""Destination, frame, bytes, and when it was posted: 0 while the connection stood."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The frames of one XADD, the command, and the bytes counted for them."""

    pod: str
    frames: list[Frame]
    data: bytes
    size: int


class Outbox:
    """Frames to other pods: queued by `post`, written once per tick of the event loop.

    All frames for one destination in one tick are one XADD, all XADDs for one server one write. Audio, and what is
    as patient, lingers under load: when several more frames will come within `linger` seconds it waits for them, unless
    something else is written before. So nothing waits while there is little to do, and otherwise entries become fewer
    and larger. A batch is kept
    until Redis answered and is written again after a reconnect, so a frame may arrive twice but never out of order.

    Args:
        undeliverable: called in the loop when an inbox does not exist: its reader is gone.
        linger: seconds; 0 writes all in its own tick.
    """

    def __init__(
        self, server: Server, pod: str, undeliverable: Callable[[str, list[Frame]], None], *, linger: float = 0.0
    ) -> None:
        self._pod = pod
        self.linger = linger
        self._undeliverable = undeliverable
        self._lanes: _Lanes | _OneLane
        # The one lane, if there is only one: then posting a frame need not ask for it.
        self._lane: _Lane | None = None
        if server.cluster is None:
            self._lane = _Lane(self, server.dedicated("outbox"))
            self._lanes = _OneLane(self._lane)
        else:
            self._lanes = _Lanes(self, server.cluster, server)
        self._told: set[tuple[str, str]] = set()
        self._held = 0
        self._idle: asyncio.Event | None = None  # while somebody waits for it
        self._dropped_seen = 0
        self.dropped = 0

    @property
    def up(self) -> bool:
        """Whether there is a connection."""
        return any(lane.up for lane in self._lanes.all())

    @property
    def held_bytes(self) -> int:
        """What is queued or unanswered, about."""
        return self._held

    def post(self, pod: str, frame: Frame) -> None:
        """Queue a frame; never waits, never raises. In the loop's thread only.

        Beyond `OUTBOX_BYTES` the oldest audio goes first.
        """
        size = FRAME_OVERHEAD
        if frame.kind in AUDIO and frame.body:
            size += len(frame.body[-1])
        elif frame.kind in _BULKY:
            try:
                size += len(pack([frame]))
            except FrameError as error:
                self.dropped += 1
                self._tell(pod, error)
                return
        lane = self._lane or self._lanes.to(pod)
        self._held += size
        lane.queue.append((pod, frame, size, 0.0 if lane.up else time.monotonic()))
        if self._held > OUTBOX_BYTES:
            self._make_room()
        if frame.kind in _PATIENT:
            lane.soon()
        else:
            lane.news()

    async def run(self) -> None:
        """Write for ever, through any outage. Cancelling closes the connections; nothing else stops it."""
        await self._lanes.run()

    async def flush(self, timeout: float) -> bool:
        """Wait until everything posted is answered; False after `timeout` seconds. Safe to cancel."""
        if not self._held:
            return True
        if self._idle is None:
            self._idle = asyncio.Event()
        try:
            async with asyncio.timeout(timeout):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    # For the lanes

    def pack(self, queue: deque[Item]) -> list[Batch]:
        """Make batches of all that is queued, one for each destination."""
        batches: dict[str, list[Frame]] = {}
        sizes: dict[str, int] = {}
        for pod, frame, size, _ in queue:
            batch = batches.get(pod)
            if batch is None:
                batches[pod], sizes[pod] = [frame], size
            else:
                batch.append(frame)
                sizes[pod] += size
        queue.clear()
        packed = []
        for pod, frames in batches.items():
            try:
                blob = pack(frames)
            except FrameError:
                blob, frames = self._pack_singly(pod, frames)
            data = resp("XADD", f"inbox:{pod}", "NOMKSTREAM", "MAXLEN", "~", MAXLEN, "*", "f", self._pod, "b", blob)
            packed.append(Batch(pod, frames, data, sizes[pod]))
        return packed

    def answered(self, batch: Batch, reply: Any) -> None:
        """Redis has taken a batch, or never will."""
        self._held -= batch.size
        if reply is None:
            try:
                self._undeliverable(batch.pod, batch.frames)
            except Exception as error:  # noqa: BLE001  a fault of one call must not stop the frames of all others
                self._tell(batch.pod, error)
        elif isinstance(reply, BridgeError):
            # Full (OOM), or no stream at all under that name: the link will send again what still matters.
            self.dropped += len(batch.frames)
            self._tell(batch.pod, reply)
        self._note_idle()

    def drop_old_audio(self, queue: deque[Item]) -> None:
        """What gathered during an outage: audio that old would make the agent answer the past."""
        oldest = time.monotonic() - AUDIO_SECONDS
        self._keep(queue, lambda frame, at: frame.kind not in AUDIO or not at or at >= oldest)
        self._note_idle()
        if self.dropped > self._dropped_seen:
            log.warning("frames were dropped while Redis was away", frames=self.dropped - self._dropped_seen)
            self._dropped_seen = self.dropped

    # The inside

    def _note_idle(self) -> None:
        if self._idle is not None and not self._held:
            self._idle.set()
            self._idle = None

    def _pack_singly(self, pod: str, frames: list[Frame]) -> tuple[bytes, list[Frame]]:
        """One call's frame that cannot travel must not take along those of others."""
        good = []
        for frame in frames:
            try:
                pack([frame])
                good.append(frame)
            except FrameError as error:
                self.dropped += 1
                self._tell(pod, error)
        return pack(good), good

    def _tell(self, pod: str, error: Exception) -> None:
        kind = (pod, type(error).__name__)
        if kind not in self._told and len(self._told) < 1000:
            self._told.add(kind)
            log.error("frames could not be delivered", to=pod, exc_info=error)

    def _make_room(self) -> None:
        """Down to nine tenths: the oldest audio first, then, as the link re-sends control frames, the oldest."""
        goal = OUTBOX_BYTES * 9 // 10
        for lane in self._lanes.all():
            self._keep(lane.queue, lambda frame, _: frame.kind not in AUDIO or self._held <= goal)
        for lane in self._lanes.all():
            self._keep(lane.queue, lambda _, __: self._held <= goal)

    def _keep(self, queue: deque[Item], keep: Callable[[Frame, float], bool]) -> None:
        kept = []
        for item in queue:
            if keep(item[1], item[3]):
                kept.append(item)
            else:
                self._held -= item[2]
                self.dropped += 1
        queue.clear()
        queue.extend(kept)


class _Lane(Pipeline):
    """Frames for the inboxes on one server.

    Attributes:
        packed: what goes first: batches that were written on a former connection and not answered.
        queue: what was posted since.
        asking: destinations that this node knows only if asked with ASKING: their slot is moving to it.
    """

    def __init__(self, outbox: Outbox, wire: Wire, outage: Outage | None = None) -> None:
        super().__init__(wire, depth=DEPTH, outage=outage)
        self._outbox = outbox
        self._linger = outbox.linger
        self._pace, self._posted_at = outbox.linger, 0.0
        """Seconds between two frames that may linger, lately."""
        self._timer: asyncio.TimerHandle | None = None
        self._sent: deque[Batch | None] = deque()  # None: the reply to ASKING, which says nothing
        self.packed: deque[Batch] = deque()
        self.queue: deque[Item] = deque()
        self.asking: set[str] = set()

    def soon(self) -> None:
        """There is news that may linger."""
        if not self._linger:
            return self.news()
        now = time.monotonic()
        self._pace += (min(now - self._posted_at, self._linger) - self._pace) / PACE_OF
        self._posted_at = now
        if self._timer is not None or self._due:
            return
        if self._pace * WORTH_WAITING < self._linger:
            self._timer = self._loop.call_later(self._linger, self._lingered)
        else:
            self.news()

    def _lingered(self) -> None:
        self._timer = None
        self.news()

    def connected(self) -> None:
        self._outbox.drop_old_audio(self.queue)

    def take(self) -> tuple[bytes, int]:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        parts: list[bytes] = []
        while self.packed:
            self._send(self.packed.popleft(), parts)
        if self.queue:
            for batch in self._outbox.pack(self.queue):
                self._send(batch, parts)
        return b"".join(parts), len(parts)

    def _send(self, batch: Batch, parts: list[bytes]) -> None:
        if batch.pod in self.asking:
            parts.append(ASKING)
            self._sent.append(None)
        parts.append(batch.data)
        self._sent.append(batch)

    def answered(self, reply: Any) -> None:
        batch = self._sent.popleft()
        if batch is None:
            return
        if isinstance(reply, Misplaced):
            # Not here. All of this lane's frames are routed anew, so that those for one destination stay in order.
            self._sent.appendleft(batch)
            raise reply
        self._outbox.answered(batch, reply)

    def broken(self, error: BridgeError) -> None:
        while self._sent:
            batch = self._sent.pop()
            if batch is not None:
                self.packed.appendleft(batch)
        if self.queue and not self.queue[0][3]:
            now = time.monotonic()
            aging = [(pod, frame, size, at or now) for pod, frame, size, at in self.queue]
            self.queue.clear()
            self.queue.extend(aging)


class _Room:
    """Where frames for one destination wait while its node is looked up. Looks like a lane that is down."""

    up = False

    def __init__(self, news: asyncio.Event) -> None:
        self.packed: deque[Batch] = deque()
        self.queue: deque[Item] = deque()
        self.news = self.soon = news.set


class _OneLane:
    """The lane to one server, in the shape of several."""

    def __init__(self, lane: _Lane) -> None:
        self._lane = lane

    def all(self) -> list[_Lane]:
        return [self._lane]

    def to(self, pod: str) -> _Lane:
        return self._lane

    async def run(self) -> None:
        await self._lane.run()


class _Lanes:
    """In a cluster: a lane to each node that holds a needed inbox, until its connection breaks."""

    def __init__(self, outbox: Outbox, cluster: Cluster, server: Server) -> None:
        self._outbox, self._cluster, self._server = outbox, cluster, server
        self._lanes: dict[Place, _Lane] = {}
        # Where the frames for each destination go, and those of them that still wait.
        self._routes: dict[str, _Lane | _Room] = {}
        self._rooms: dict[str, _Room] = {}
        # Destinations that are to be looked for elsewhere than the map of slots says, because a node said ASK.
        self._asked: dict[str, Place] = {}
        self._outages: dict[str, Outage] = {}
        self._news = asyncio.Event()
        self._trouble = False

    def all(self) -> list[_Lane | _Room]:
        return [*self._lanes.values(), *self._rooms.values()]

    def to(self, pod: str) -> _Lane | _Room:
        """Where to queue frames for `pod`."""
        return self._routes.get(pod) or self._room(pod)

    def _room(self, pod: str) -> _Room:
        room = self._rooms.get(pod)
        if room is None:
            room = self._rooms[pod] = self._routes[pod] = _Room(self._news)
        return room

    async def run(self) -> None:
        backoff = Backoff()
        async with asyncio.TaskGroup() as tasks:
            while True:
                await self._news.wait()
                self._news.clear()
                if self._trouble:
                    self._trouble = False
                    await backoff.sleep()
                else:
                    backoff.reset()
                for pod in list(self._rooms):
                    try:
                        place = self._asked.get(pod) or await self._cluster.locate(f"inbox:{pod}")
                    except (RedisUnavailable, RedisRefused) as error:
                        self._outage("the cluster").begin(error)
                        self._trouble = True
                        self._news.set()
                        break
                    self._outage("the cluster").end()
                    lane = self._lanes.get(place)
                    if lane is None:
                        wire = self._server.dedicated("outbox", node=place)
                        lane = self._lanes[place] = _Lane(self._outbox, wire, self._outage(place.address))
                        tasks.create_task(self._drive(place, lane))
                    self._move_in(pod, lane)

    def _move_in(self, pod: str, lane: _Lane) -> None:
        room = self._rooms.pop(pod)
        self._routes[pod] = lane
        if pod in self._asked:
            lane.asking.add(pod)
        lane.packed.extend(room.packed)
        lane.queue.extend(room.queue)
        if lane.up:
            self._outbox.drop_old_audio(lane.queue)
        lane.news()

    async def _drive(self, place: Place, lane: _Lane) -> None:
        """One lane's life; what it leaves behind is routed anew."""
        try:
            await lane.live()
        except BridgeError as error:
            del self._lanes[place]
            for pod in lane.asking:
                self._asked.pop(pod, None)
            if isinstance(error, Misplaced) and error.asking and error.place is not None and lane.packed:
                self._asked[lane.packed[0].pod] = error.place  # the one that it was said of
            self._routes = {pod: other for pod, other in self._routes.items() if other is not lane}
            for batch in lane.packed:
                self._room(batch.pod).packed.append(batch)
            for item in lane.queue:
                self._room(item[0]).queue.append(item)
            self._trouble = True
            self._news.set()

    def _outage(self, node: str) -> Outage:
        return self._outages.setdefault(node, Outage(f"outbox to {node}"))
