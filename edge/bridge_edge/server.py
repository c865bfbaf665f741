"""The edge pod: it listens for VAIC, lets callers in by their door, and serves each by a `Call`."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from http import HTTPStatus
from typing import Any

from websockets.asyncio.server import Server as Listener
from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from bridge_edge.call import Call
from bridge_edge.caller_socket import CallerSocket, Guard
from bridge_edge.door import Door
from bridge_edge.limits import QUEUED_FRAMES
from bridge_edge.oidc import Issuer
from bridge_shared import __version__, logs, room
from bridge_shared.config import Settings
from bridge_shared.errors import BridgeError, ConfigError, RedisUnavailable
from bridge_shared.keepalive import notice_half_open
from bridge_shared.link import Link
from bridge_shared.pod import Pod
from bridge_shared.redis.calls import CallRecord
from bridge_shared.redis.connection import Server

log = logs.get("edge")

MOST_TIMES = 2
"""A message beyond so many times BRIDGE_MAX_MESSAGE_BYTES costs the socket; a smaller one is only skipped."""

PING_SECONDS = 1.0
"""So that something of ours is always under way, and a socket whose other side is gone is noticed within 6 s."""

PONG_SECONDS = 30.0
"""A caller's socket is never closed for a missing pong before 30 s."""

ANNOUNCED_SECONDS, LOOK_SECONDS = 2.0, 0.1
"""How long a caller waits for a worker that announces a bridge for it."""

ROOM_SECONDS, STALE_SECONDS = 0.5, 2.0
"""How often the workers' loads are read; older ones keep no call out."""

DRAIN_ACCEPT_SECONDS = 5.0
"""A draining edge takes calls this long still, until load balancers have seen that it is not ready."""

RESUME_RESERVE = 0.5
"""Above capacity this share of it is let in still, for `session.resume`: an edge that died leaves its calls to us."""

VALIDATION_BODY = b'{"type":"ac-bot-api","success":true}'


@dataclass(slots=True)
class _Port:
    doors: dict[str, Door] = field(default_factory=dict)
    listener: Listener | None = None
    opening: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while it begins to listen: the bridges of one file open their doors at the same time."""


class Edge:
    """One edge pod. Make it in the event loop it shall live in."""

    def __init__(self, state: Server, media: Server, settings: Settings) -> None:
        self.settings = settings
        self.loop = asyncio.get_running_loop()
        self._pod = Pod("edge", state, media, settings, self._info, on_beat=self._watch_owners)
        self.pod = self._pod.id
        self.calls = self._pod.calls
        self.outbox = self._pod.outbox
        self.tracing = self._pod.tracing
        self._ports: dict[tuple[str, int], _Port] = {}
        self._sockets: set[ServerConnection] = set()
        self._draining = False
        self._accepting = True
        self.opened = asyncio.Event()
        """Other pods can reach this one."""
        self._guard = Guard(settings, self.loop)
        self._issuer: Issuer | None = None
        if settings.oidc_issuer is not None and settings.oidc_audience is not None:
            self._issuer = Issuer(
                settings.oidc_issuer,
                settings.oidc_audience,
                refresh_seconds=settings.oidc_refresh_seconds,
                outage_seconds=settings.oidc_outage_seconds,
            )
        self._loads: list[room.Load] = []
        self._loads_at = -math.inf
        self._room_elsewhere = False

    async def run(self) -> None:
        """Be an edge until cancelled; then the listeners close and callers lose their sockets unended,
        so that VAIC resumes their calls elsewhere."""
        await self._pod.inbox.open()
        self.opened.set()
        try:
            async with asyncio.TaskGroup() as tasks:
                start = partial(self._pod.vital.start, tasks)
                start(self._pod.run())
                start(self._read_loads())
                if self._issuer is not None:
                    start(self._issuer.run())
        finally:
            for port in self._ports.values():
                if port.listener is not None:
                    port.listener.close(close_connections=False)
            for socket in self._sockets:
                abort(socket)
            await self.tracing.close()

    async def open(self, door: Door) -> None:
        """Listen for this door's callers; doors of one port are told apart by the path `/<bridge>`.

        Raises:
            ConfigError: the port is taken, or another bridge has this name on this port.
        """
        port = self._ports.setdefault((door.host, door.port), _Port())
        if door.bridge in port.doors:
            raise ConfigError(
                f"bridge {door.bridge!r}", f"is defined twice for port {door.port}", "Give each bridge its own name"
            )
        port.doors[door.bridge] = door
        async with port.opening:
            if port.listener is None:
                port.listener = await self._listen(door, port)
        log.info("AudioCodes Bridge server listening", host=door.host, port=door.port, bridge=door.bridge)
        if door.open and self._issuer is None:
            log.warning("anybody who reaches this port can place calls: no token is set", port=door.port)

    async def close(self, door: Door) -> None:
        """Take the door's callers no longer; those who are in stay."""
        port = self._ports[(door.host, door.port)]
        del port.doors[door.bridge]
        if not port.doors and port.listener is not None:
            port.listener.close(close_connections=False)
            del self._ports[(door.host, door.port)]

    async def drain(self, seconds: float) -> None:
        """Take no new calls and wait for the live ones, at most this long. What is left then is dropped
        by `run` ending. Cancelling stops the waiting only."""
        self._draining = True
        log.info("draining", pod=self.pod, calls=self._pod.load, seconds=seconds)
        accept = min(DRAIN_ACCEPT_SECONDS, seconds) if self._pod.load else 0.0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(accept):
                await self._pod.wait_empty(accept)
        self._accepting = False
        if not await self._pod.wait_empty(max(0.0, seconds - accept)):
            log.warning("calls were still live at the end of the drain", calls=self._pod.load)

    def on_drain(self, drain: Callable[[], None]) -> None:
        """Call this when somebody asks the pod to drain (`bridgectl drain`)."""
        self._pod.on_drain = drain

    def not_healthy(self) -> str | None:
        """Why this pod is to be replaced; None = it works."""
        return self._pod.vital.reason

    def not_ready(self) -> str | None:
        """Why this pod should get no new calls; None = it should."""
        if self._draining:
            return "draining"
        if not self._ports or any(port.listener is None for port in self._ports.values()):
            return "not listening yet"
        # With no other to take new calls this one stays in sight: it refuses them by name, and those who lost their
        # edge come back to it.
        if self.full and self._room_elsewhere:
            return "at capacity"
        if self._pod.fleet.away:
            return "Redis does not answer"
        keyless = self._issuer is not None and not self._issuer.ready
        if keyless and any(door.open for port in self._ports.values() for door in port.doors.values()):
            return "the keys of the token issuer are not known"
        return None

    @property
    def full(self) -> bool:
        return self._pod.load >= self.settings.edge_calls

    def know(self, call: Call) -> None:
        """Hand the frames of this call to `call`; the socket that had it here is closed without ending it."""
        former = self._pod.taker(call.cid)
        self._pod.know(call)
        if isinstance(former, Call):
            former.replaced()

    def forget(self, call: Call) -> None:
        self._pod.forget(call)

    def deserted(self, record: CallRecord | None) -> bool:
        """Whether the edge that this live call was attached to is dead, or is this one and has lost the socket."""
        if record is None:
            return False
        if record.edge == self.pod:
            return self._pod.taker(record.cid) is None
        return self._pod.fleet.watch.dead(record.edge)

    def dead(self, pod: str) -> bool:
        """Whether this pod has watched that one die."""
        return self._pod.fleet.watch.dead(pod)

    def refusal(self, bridge: str) -> str | None:
        """Why no worker will take a new call of this bridge, for a person; None = one may, or nobody knows."""
        if self.loop.time() - self._loads_at > STALE_SECONDS:
            return None
        mine = Counter(taker.owner for taker in self._pod.takers() if isinstance(taker, Call))
        loads = (replace(load, calls=max(load.calls, mine[load.pod])) for load in self._loads)
        return room.refusal(loads, bridge, waiting=mine[""])

    async def _read_loads(self) -> None:
        while True:
            with contextlib.suppress(BridgeError):  # they grow old, and then keep nobody out
                pods = (await self._pod.fleet.pods()).values()
                edges = (pod.info for pod in pods if pod.role == "edge" and not pod.dead and pod.pod != self.pod)
                self._room_elsewhere = room.elsewhere(edges)
                alive = [pod for pod in pods if pod.role == "worker" and not pod.dead]
                loads = [room.load(pod.pod, pod.info) for pod in alive]
                self._loads = [load for load in loads if load is not None]
                if len(self._loads) == len(alive):  # one that cannot be read may have room
                    self._loads_at = self.loop.time()
            await asyncio.sleep(ROOM_SECONDS)

    def _watch_owners(self) -> None:
        """At each beat: calls whose owner is dead are offered to the other workers."""
        for taker in self._pod.takers():
            if isinstance(taker, Call) and taker.owner and self.dead(taker.owner):
                taker.orphaned()

    async def offer(self, cid: str, bridge: str, link: Link, owner: str = "", we: int = 0) -> None:
        """Tell the workers that this call looks for an owner; `owner` and `we`: of the one that it has lost."""
        try:
            await self._pod.fleet.offer(
                cid=cid,
                bridge=bridge,
                why="orphan" if owner else "new",
                ee=link.epoch,
                edge=self.pod,
                owner=owner,
                we=we,
                witness=link.peer_epoch,
            )
        except RedisUnavailable as error:
            log.warning("a call could not be offered, trying again", cid=cid, error=str(error))

    async def bridge(self, door: Door, socket: Any) -> str:
        """The bridge that a caller of this door is for; "" if that cannot be told. An application's door says so
        itself; for a door from the environment the workers' announcements decide, which are waited for a while:
        all workers may just be restarting.

        Raises:
            RedisUnavailable: they cannot be read now.
        """
        if door.bridge:
            return door.bridge
        named, end = _path(getattr(socket, "request", None)), self.loop.time() + ANNOUNCED_SECONDS
        while True:
            bridge = await self._announced(named)
            if bridge or self.loop.time() >= end:
                return bridge
            await asyncio.sleep(LOOK_SECONDS)

    async def _announced(self, named: str) -> str:
        pods = (await self._pod.fleet.pods()).values()
        announced = {
            name for pod in pods if pod.role == "worker" and not pod.dead for name in pod.info.get("bridges", ())
        }
        if named in announced:
            return named
        return announced.pop() if len(announced) == 1 and not named else ""

    def _info(self) -> dict[str, Any]:
        return {
            "load": self._pod.load,
            "capacity": self.settings.edge_calls,
            "draining": self._draining,
            "version": __version__,
            "bridges": sorted({name for port in self._ports.values() for name in port.doors}),
        }

    async def _listen(self, door: Door, port: _Port) -> Listener:
        async def admit(connection: ServerConnection, request: Request) -> Response | None:
            return await self._admit(port, connection, request)

        async def handle(connection: ServerConnection) -> None:
            notice_half_open(connection.transport)
            await self.serve(connection, self._door(port, connection.request))

        try:
            return await serve(
                handle,
                door.host,
                door.port,
                process_request=admit,
                compression=None,
                max_size=MOST_TIMES * self.settings.max_message_bytes,
                max_queue=QUEUED_FRAMES,
                open_timeout=self.settings.handshake_timeout,
                create_connection=partial(CallerSocket, self._guard),  # type: ignore[arg-type]  # called only
                ping_interval=PING_SECONDS,
                ping_timeout=PONG_SECONDS,
                close_timeout=1.0,
                server_header=None,
                logger=logs.stdlib("edge.websocket"),
            )
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES, errno.EADDRNOTAVAIL):
                raise ConfigError(
                    door.port_set_by,
                    f"cannot listen on {door.host}:{door.port} ({os.strerror(error.errno)})",
                    "Choose a free port, or stop what listens there",
                ) from error
            raise

    async def serve(self, socket: Any, door: Door, on_call: Callable[[str], None] | None = None) -> None:
        """Serve one accepted WebSocket to its end, also one that somebody else accepted.

        Args:
            on_call: told the conversation id as soon as the caller has said it.
        """
        self._sockets.add(socket)
        call = Call(self, door, socket, on_call)
        timer = self.loop.call_later(self.settings.initiate_timeout, self._named_a_call, call, socket)
        try:
            await call.run()
        finally:
            timer.cancel()
            self._sockets.discard(socket)

    def _named_a_call(self, call: Call, socket: Any) -> None:
        """Whoever talks without ever beginning or resuming a call must not hold a socket."""
        if not call.cid:
            remote = getattr(socket, "remote_address", None)
            self._guard.refused("no_call", str(remote[0]) if remote else "")
            call.replaced()

    async def _admit(self, port: _Port, connection: ServerConnection, request: Request) -> Response | None:
        remote = str(connection.remote_address[0]) if connection.remote_address else ""
        if not self._accepting:
            self._guard.refused("draining", remote)
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "This edge is shutting down\n")
        if len(self._sockets) >= self.settings.edge_calls * (1 + RESUME_RESERVE):
            self._guard.refused("edge_full", remote)
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "This edge is at its capacity\n")
        try:
            door = self._door(port, request)
        except LookupError:
            self._guard.refused("path", remote)
            known = ", ".join(f"/{name}" for name in sorted(port.doors))
            return connection.respond(HTTPStatus.NOT_FOUND, f"No such bridge. There are: {known}\n")
        refusal = await door.check(connection, request, self._guard.refused, self._issuer)
        if refusal is None and "upgrade" not in request.headers.get("Connection", "").lower():
            # Live Hub may validate with a plain GET first (Bot API reference §1.5)
            headers = Headers({"Content-Type": "application/json", "Content-Length": str(len(VALIDATION_BODY))})
            return Response(HTTPStatus.OK, "OK", headers, VALIDATION_BODY)
        return refusal

    def _door(self, port: _Port, request: Request | None) -> Door:
        if len(port.doors) == 1:
            return next(iter(port.doors.values()))
        return port.doors[_path(request)]


def _path(request: Request | None) -> str:
    """The first part of the URL's path."""
    path = request.path.partition("?")[0] if request is not None else ""
    return path.strip("/").partition("/")[0]


def abort(socket: Any) -> None:
    """Drop a connection without a close frame: VAIC takes that for a fault and resumes the call elsewhere."""
    transport = getattr(socket, "transport", None)
    if transport is not None:
        transport.abort()
