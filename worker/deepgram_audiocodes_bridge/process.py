"""This process as part of the cluster: which roles it has, and how it starts and ends.

`Process` is what every `bridge.run()` of an application joins. It owns the media thread with the pods in it
(edge, worker or both), the embedded Redis and the simulated agent where they are needed, and the signals.

    python app.py           both roles, everything that is missing is made up
    bridgectl up APP        the same, with a demonstration call (`local`)
    bridgectl edge|worker   one role, nothing is made up
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request, Response

from bridge_edge.door import Door
from bridge_edge.server import Edge
from bridge_shared import api, config, logs
from bridge_shared.admin import Admin
from bridge_shared.config import Settings
from bridge_shared.errors import ConfigError, RedisUnavailable
from bridge_shared.lifecycle import MediaThread, Signals
from bridge_shared.loop_watchdog import LoopWatchdog
from bridge_shared.redis.calls import Calls
from bridge_shared.redis.commands import Commands
from bridge_shared.redis.connection import Server, connect
from bridge_shared.redis.embedded import EmbeddedRedis
from bridge_shared.redis.fleet import Fleet
from bridge_shared.remote import Remote
from bridge_sim.agent import SimulatedAgent
from bridge_worker.handlers import Handlers
from bridge_worker.session import Session
from bridge_worker.worker import Hosted, Worker
from deepgram_audiocodes_bridge import checks
from deepgram_audiocodes_bridge.checks import bridge_name
from deepgram_audiocodes_bridge.sockets import CrossedSocket
from deepgram_audiocodes_bridge.types import BridgeConfig

if TYPE_CHECKING:
    from deepgram_audiocodes_bridge.bridge import DeepgramBridge

T = TypeVar("T")
log = logs.get("bridge")

STOP_SECONDS = 5.0
CANCELLED_SECONDS = 10.0
"""How long the calls of a cancelled bridge may take to end."""

LOOK_SECONDS = 1.0
"""How often the application's loop wakes up, so that no signal goes unnoticed (see `Signals`)."""

MEDIA_STALL_SECONDS, APP_STALL_SECONDS = 1.0, 3.0
"""A loop that has not run for so long is logged. Handlers may block theirs, for a while."""

REACH_AGAIN_SECONDS = 0.5
"""Between two tries to reach a Redis at the start, which take 2.5 s each."""

STUCK_SECONDS = 5.0
"""An application that has not noticed the end of the drain by then blocks its loop; the process ends without it."""

EXIT_CONFIG = 2

SIMULATED_KEY = "simulated"
"""In place of an API key: calls are answered by the simulated agent."""

_process: Process | None = None
_commanded: Settings | None = None
_lock = threading.Lock()


def process() -> Process:
    """The process that bridges join: as `command` said, or made from the environment.

    Raises:
        ConfigError: a setting cannot be used.
    """
    global _process
    with _lock:
        if _commanded is None:
            _explain_uncaught()
        if _process is None or _process.over:
            _process = Process(_commanded or config.load())
        return _process


def command(settings: Settings) -> Process:
    """Called by `bridgectl` before it runs the application: use these settings."""
    global _process, _commanded
    with _lock:
        _commanded = settings
        _process = Process(settings)
        return _process


def commanded() -> bool:
    """Whether `bridgectl` runs the application, and reports errors itself."""
    return _commanded is not None


@dataclass(slots=True)
class _Embedded:
    """A bridge without a door of its own, while the application gives it sockets."""

    handlers: Handlers
    task: asyncio.Task[None]
    sockets: int = 0


def _explain_uncaught() -> None:
    """Have `python app.py` end as under `bridgectl` when a setting cannot be used: one sentence, exit code 2.

    Not by raising SystemExit in `run`: out of a task it tears the application's loop down around its other bridges.
    """
    before = sys.excepthook
    if getattr(before, "__module__", "") == __name__:
        return

    def explain(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        first = error
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        if isinstance(first, ConfigError):
            print(f"error: {first}", file=sys.stderr)
            raise SystemExit(EXIT_CONFIG)
        before(kind, error, trace)

    sys.excepthook = explain


class Process:
    """The pods of this process.

    Args:
        settings: `role` None means both edge and worker.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.media = MediaThread()
        self.redis_url = settings.redis_url or ""
        self.simulated: SimulatedAgent | None = None
        self.on_open: Callable[[Door], None] | None = None
        """Called in the media thread when a door has opened."""
        self.on_pod: Callable[[str], None] | None = None
        """Called in the media thread with the id of a pod that has started."""
        self.over = False
        self.joined = 0
        """How many bridges have ever joined."""
        self.admin_host = settings.host
        self.admin_port = settings.admin_port
        """Where the admin port is; the real one once a door is open."""
        self.edge: Edge | None = None
        self.worker: Worker | None = None
        self.state: Server
        self._servers: list[Server] = []
        self._redis: EmbeddedRedis | None = None
        self._present = 0
        self._starting: concurrent.futures.Future[None] | None = None
        self._drained: concurrent.futures.Future[None] = concurrent.futures.Future()
        self.draining = asyncio.Event()
        """In the media thread: no more calls are taken."""
        self._main: asyncio.Task[None] | None = None
        self._admin: asyncio.Task[None] | None = None
        self._watchdog = LoopWatchdog()
        self._waiting = ""
        """What the start waits for, for a person."""
        self._draining: asyncio.Task[None] | None = None
        self._signals = Signals(self._on_signal)
        self._beside: set[asyncio.Task[None]] = set()
        self._expected: dict[str, Session] = {}
        """Sessions made by `Session.serve`, by conversation id, until a worker here claims the call."""
        self._embedded: dict[str, _Embedded] = {}
        """Bridges of `Session.serve`, by name."""

    # ── for the application's loop ─────────────────────────────────────────────────────────────────────

    async def serve(self, bridge: DeepgramBridge) -> None:
        """Take calls for a bridge until the process has drained. See `DeepgramBridge.run`."""
        checks.check_call(bridge._config)
        checks.check_door(bridge._config)
        await self.start()
        if self.settings.role != "edge":  # which runs no handlers
            bridge._check_handlers()
        self.joined += 1
        self._present += 1
        handlers = Handlers(bridge._handlers, asyncio.get_running_loop(), seconds=self.settings.handler_timeout)
        door = self._door(bridge._config)
        try:
            async with asyncio.TaskGroup() as tasks:
                lanes = tasks.create_task(handlers.run())
                try:
                    await self._cross(self._join(bridge, handlers, door))
                    await self._until_drained()
                finally:
                    if not self._drained.done():
                        await self._cross(self._leave(door))
                    lanes.cancel()
        except BaseExceptionGroup as group:
            if len(group.exceptions) == 1:
                raise group.exceptions[0] from None
            raise
        finally:
            self._present -= 1
            if not self._present:
                await self.stop()

    async def serve_socket(self, bridge: DeepgramBridge, session: Session, socket: Any) -> Session:
        """Drive one call on a socket that somebody else accepted. See `Session.serve`."""
        checks.check_call(bridge._config)
        self._present += 1
        try:
            await self.start()
            bridge._check_handlers()
            if self.edge is None or self.worker is None:
                raise ConfigError("BRIDGE_ROLE", "Session.serve needs both roles in this process", "Unset it")
            async with self._embedding(bridge) as handlers:
                crossed = CrossedSocket(socket, asyncio.get_running_loop())
                return await self._cross(self._drive(bridge, handlers, session, crossed))
        finally:
            self._present -= 1
            if not self._present:
                await self.stop()

    @contextlib.asynccontextmanager
    async def _embedding(self, bridge: DeepgramBridge) -> AsyncIterator[Handlers]:
        """The handlers of a bridge; they run for as long as any of its sockets is driven."""
        name = bridge_name(bridge._config)
        if (embedded := self._embedded.get(name)) is None:
            handlers = Handlers(bridge._handlers, asyncio.get_running_loop(), seconds=self.settings.handler_timeout)
            task = asyncio.create_task(handlers.run(), name=f"handlers of {name}")
            embedded = self._embedded[name] = _Embedded(handlers, task)
        embedded.sockets += 1
        try:
            yield embedded.handlers
        finally:
            embedded.sockets -= 1
            if not embedded.sockets:
                del self._embedded[name]
                hosted = self.worker.hosted.get(name) if self.worker is not None else None
                if self.worker is not None and hosted is not None and hosted.handlers is embedded.handlers:
                    del self.worker.hosted[name]
                embedded.task.cancel()
                await asyncio.wait([embedded.task])

    async def serve_door(self, door: Door) -> None:
        """Be an edge that no application describes, until the process has drained."""
        await self.start()
        assert self.edge is not None
        try:
            await self._cross(self.edge.open(door))
            await self._until_drained()
        finally:
            await self.stop()

    async def start(self) -> None:
        """Start the pods; the first caller does it, the others wait for it.

        Raises:
            ConfigError, RedisUnavailable: it cannot start; everything is put back.
        """
        self._watchdog.watch(
            asyncio.get_running_loop(),
            threading.get_ident(),
            "application",
            stall_seconds=APP_STALL_SECONDS,
            stuck_seconds=self.settings.app_stuck_seconds,
        )
        if self._starting is not None:
            return await asyncio.wrap_future(self._starting)
        self._starting = concurrent.futures.Future()
        try:
            if not commanded() and not logging.getLogger().handlers:
                # a plain `python app.py` that set up no logging should still say what goes on
                logs.configure(self.settings.log_level, self.settings.log_format)
            self.prepare()
            await self._attend(asyncio.wrap_future(self.media.submit(self._open())))
            self._signals.install()
        except BaseException as error:
            self._starting.set_exception(error)
            self._starting.exception()  # seen: the others may not have come
            await self.stop()
            raise
        self._starting.set_result(None)

    def prepare(self) -> None:
        """Start the thread, and an embedded Redis if there is no other. In the main thread, for the server
        dies with the thread that started it."""
        if not self.media.loop.is_running():
            self.media.start()
            self._watchdog.watch(self.media.loop, self.media.ident, "media", stall_seconds=MEDIA_STALL_SECONDS)
            self._watchdog.start()
        if not self.redis_url:
            if self.settings.role is not None:
                raise ConfigError("REDIS_URL", "is not set", "Set it to the Redis that all pods share")
            self._redis = EmbeddedRedis()
            self.redis_url = self._redis.start_sync()

    async def stop(self) -> None:
        """End what is left in the media thread, then the embedded Redis. Bounded; safe to call twice."""
        self.over = True
        self._signals.restore()
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """`stop` without a loop."""
        self.over = True
        with contextlib.suppress(RuntimeError, TimeoutError):  # stopped already; or it will be cancelled now
            self.media.submit(self._end()).result(STOP_SECONDS)
        self._watchdog.stop()
        self.media.stop(STOP_SECONDS)
        if self._redis is not None:
            self._redis.stop_sync()
            self._redis = None

    async def _until_drained(self) -> None:
        await self._attend(asyncio.wrap_future(self._drained))

    async def _attend(self, future: asyncio.Future[None]) -> None:
        """Wait for what may take long, awake for signals."""
        while not future.done():
            await asyncio.wait([future], timeout=LOOK_SECONDS)
        future.result()

    async def _cross(self, work: Coroutine[Any, Any, T]) -> T:
        return await asyncio.wrap_future(self.media.submit(work))

    @property
    def embedded(self) -> bool:
        """Whether Redis was started by us, and ends with us."""
        return self._redis is not None

    def _on_signal(self) -> None:
        self.media.call(self.drain)

    # ── in the media thread ────────────────────────────────────────────────────────────────────────────

    async def simulate(self) -> str:
        """Start the simulated agent; returns its URL."""
        if self.simulated is None:
            self.simulated = SimulatedAgent(record=False)
            await self.simulated.start()
        return self.simulated.url

    def background(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something beside the pods, until it is done or the process drains; what it raises is logged."""
        task = asyncio.create_task(work)
        self._beside.add(task)
        task.add_done_callback(self._background_done)

    def _background_done(self, task: asyncio.Task[None]) -> None:
        self._beside.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("something beside the pods failed", exc_info=error)

    async def _open(self) -> None:
        settings = self.settings
        role = settings.role
        admin = Admin(self.admin_port, self.admin_host, ready=self._not_ready, healthy=self._not_healthy)
        self.admin_port = admin.bind()
        self._admin = asyncio.create_task(admin.run(), name="admin")
        self._admin.add_done_callback(self._ended)
        media = self.state = await self._reach(self.redis_url, f"bridge-{role or 'up'}", "REDIS_URL")
        if settings.media_redis_url is not None:
            media = await self._reach(settings.media_redis_url, "bridge-media", "BRIDGE_MEDIA_REDIS_URL")
        if role != "worker":
            self.edge = Edge(self.state, media, settings)
            self.edge.on_drain(self.drain)
        if role != "edge":
            self.worker = Worker(self.state, media, settings)
            self.worker.on_drain(self.drain)
        calls = Calls(self.state, settings.fleet, transcript_ttl=settings.transcript_ttl)
        token = settings.admin_token
        api.add(
            admin.beside(),
            calls,
            Remote(calls, Commands(self.state, media)),
            Fleet(self.state, settings.fleet, "admin", "edge"),
            token.get_secret_value() if token is not None else None,
        )
        self._main = asyncio.create_task(self._run(), name="pods")
        self._main.add_done_callback(self._ended)
        for pod in (self.edge, self.worker):
            if pod is not None:
                opened = asyncio.create_task(pod.opened.wait())
                await asyncio.wait([opened, self._main], return_when=asyncio.FIRST_COMPLETED)
                opened.cancel()
                if self.on_pod is not None:
                    self.on_pod(pod.pod)
        if self._main.done():
            self._main.result()

    async def _reach(self, url: str, name: str, setting: str) -> Server:
        """Connect to a Redis. A pod waits for one that does not answer, since all are started together; where a
        person waits for the process (both roles in it) that is taken for a wrong setting at once."""
        seconds = self.settings.redis_wait_seconds if self.settings.role is not None else 0.0
        begun = self.media.loop.time()
        while True:
            try:
                server = await connect(url, name=name, setting=setting)
            except RedisUnavailable as error:
                waited = self.media.loop.time() - begun
                problem = str(error).removeprefix(f"{setting}: ").rstrip(".")
                if waited >= seconds:
                    problem += f"; waited {waited:.0f} s for it" if seconds else ""
                    raise ConfigError(setting, problem, "Start that Redis, or name one that runs") from error
                if not self._waiting:
                    log.warning("waiting for Redis", setting=setting, seconds=seconds, cause=problem)
                self._waiting = f"waiting for Redis ({setting}: {problem})"
                await asyncio.sleep(REACH_AGAIN_SECONDS)
                continue
            if self._waiting:
                log.info("Redis answers", setting=setting)
                self._waiting = ""
            self._servers.append(server)
            return server

    async def _run(self) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                for pod in (self.edge, self.worker):
                    if pod is not None:
                        tasks.create_task(pod.run())
        finally:
            if self.simulated is not None:
                await self.simulated.stop()
            for server in self._servers:
                await server.close()

    def _ended(self, task: asyncio.Task[None]) -> None:
        """The pods or the admin port run no longer: after a drain, or because something failed that must not."""
        error = None if task.cancelled() else task.exception()
        if self._drained.done():
            return
        if error is not None:
            self._drained.set_exception(error)
        else:
            self._drained.set_result(None)

    async def _join(self, bridge: DeepgramBridge, handlers: Handlers, door: Door) -> None:
        if self.worker is not None:
            await self._simulate_if_keyless(bridge._config)
            self.worker.host(self._hosted(bridge, handlers))
        if self.edge is not None:
            await self.edge.open(door)
            if self.on_open is not None:
                self.on_open(door)

    async def _drive(
        self, bridge: DeepgramBridge, handlers: Handlers, session: Session, socket: CrossedSocket
    ) -> Session:
        """Serve one socket of the application's until its call is over."""
        edge, worker, config = self.edge, self.worker, bridge._config
        assert edge is not None and worker is not None
        await self._simulate_if_keyless(config)
        if (name := bridge_name(config)) not in worker.hosted:
            worker.host(self._hosted(bridge, handlers))
        served, called = session, ""

        def on_call(cid: str) -> None:
            nonlocal served, called
            if (live := worker.session(cid)) is not None:
                served = live
            else:
                called = cid
                self._expected[cid] = session

        try:
            formats, play = tuple(config.preferred_media_formats), config.play_media_format
            await edge.serve(socket, Door(name, "", 0, formats, play_format=play), on_call=on_call)
            if served._control is not None:
                await served._control.over()
        finally:
            self._expected.pop(called, None)
        return served

    async def _leave(self, door: Door) -> None:
        if self.edge is not None:
            await self.edge.close(door)
        if self.worker is not None:
            await self.worker.unhost(door.bridge, CANCELLED_SECONDS)

    async def _simulate_if_keyless(self, config: BridgeConfig) -> None:
        settings = self.settings
        key = config.deepgram_api_key or settings.deepgram_key or SIMULATED_KEY
        if key != SIMULATED_KEY or settings.origin("deepgram_url") != "default":
            return
        if settings.role is not None:
            log.error("DEEPGRAM_API_KEY is not set: calls will be refused by Deepgram")
            return
        assert self.worker is not None
        if not commanded():  # otherwise `bridgectl up` says so
            log.warning("DEEPGRAM_API_KEY IS NOT SET: A SIMULATED AGENT ANSWERS THE CALLS")
        self.settings = settings.model_copy(update={"deepgram_url": await self.simulate()})
        self.worker.settings = self.settings

    def drain(self) -> None:
        """Stop taking calls, let the live ones end, then let every `run()` return. In the media thread."""
        self.draining.set()
        if self._draining is None:
            self._draining = asyncio.create_task(self._drain(), name="drain")

    async def _drain(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for pod in (self.edge, self.worker):
                if pod is not None:
                    tasks.create_task(pod.drain(self.settings.drain_seconds))
        await self._end()
        await asyncio.sleep(STUCK_SECONDS)  # the application returns from `run`, and `stop` cancels this
        log.error("the application's event loop is blocked, ending without it")
        os._exit(1)

    async def _end(self) -> None:
        """End the pods and what runs beside them, in order: each closes what it has opened. The admin port answers
        until then."""
        for tasks in ([*self._beside, self._main], [self._admin]):
            ending = [task for task in tasks if task is not None]
            for task in ending:
                task.cancel()
            if ending:
                await asyncio.wait(ending)

    def _not_healthy(self) -> str | None:
        for pod in (self.edge, self.worker):
            if pod is not None and (reason := pod.not_healthy()) is not None:
                return reason
        if self._main is not None and self._main.done() and not self.draining.is_set():
            return "the pod has stopped, and the application goes on without it"
        return self._watchdog.reason

    def _not_ready(self) -> str | None:
        if self._main is None:
            return self._waiting or "starting"
        if self._main.done():
            return "stopped"
        reasons = [pod.not_ready() for pod in (self.edge, self.worker) if pod is not None]
        return next((reason for reason in reasons if reason is not None), None)

    # ── what the application's configuration means here ────────────────────────────────────────────────

    def _hosted(self, bridge: DeepgramBridge, handlers: Handlers) -> Hosted:
        def session(cid: str) -> Session:
            return self._expected.pop(cid, None) or Session(None, bridge)

        return Hosted(bridge_name(bridge._config), bridge._config, handlers, session)

    def _door(self, config: BridgeConfig) -> Door:
        tokens = (*((config.ac_token,) if config.ac_token is not None else ()), *self.settings.ac_tokens)
        return Door(
            bridge=bridge_name(config),
            host=config.host if self.settings.origin("host") == "default" else self.settings.host,
            port=self.settings.port or checks.port_number(config),
            port_set_by="BRIDGE_PORT" if self.settings.port else checks.setting(config, "port"),
            formats=tuple(config.preferred_media_formats),
            tokens=() if config.authenticate is not None else tokens,
            authenticate=self._authenticate(config),
            authenticate_seconds=self.settings.authenticate_timeout,
            play_format=config.play_media_format,
        )

    def _authenticate(self, config: BridgeConfig) -> Any:
        """The customer's callback, run in the customer's loop."""
        if (callback := config.authenticate) is None:
            return None
        loop = asyncio.get_running_loop()

        async def ask(connection: ServerConnection, request: Request) -> Response | None:
            async def call() -> Response | None:
                return await callback(connection, request)

            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(call(), loop))

        return ask
