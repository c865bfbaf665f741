"""The customer's handlers, run in the customer's event loop.

Sockets, audio and liveness live in a thread of ours; only events and commands cross to the loop in which
`bridge.run()` was called. A handler that blocks its loop delays handlers, never audio.

Each call has two **lanes**, telephony and agent (SDK reference §5.2). Within a lane one handler runs at a
time and events keep their order; the lanes run beside each other, so a handler of one may wait for an event
of the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import inspect
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bridge_shared import logs, metrics
from bridge_shared.types.audiocodes import BridgeErrorEvent
from bridge_worker.crossing import Crossing, LeftBehind

log = logs.get("bridge")

LANE_LENGTH = 1000
"""Events that may wait in a lane; beyond it, the newest are dropped and counted."""

Handler = Callable[..., Any]
Done = Callable[[], None]
First = Callable[[], Awaitable[bool]]
Failed = Callable[[Exception], None]


@dataclass(slots=True)
class Running:
    """A handler at work: its event, its lane (none for `session_end`) and its time limit, None once it has returned."""

    name: str
    lane: Lane | None
    limit: asyncio.Timeout | None


current: contextvars.ContextVar[Running | None] = contextvars.ContextVar("current_handler", default=None)
"""The handler that is running. Tasks that it starts see it too, also when it has returned."""


def _call_of(session: Any) -> dict[str, Any]:
    """By what a line in the log says which call it is about."""
    return {"cid": session.conversation_id, "session_id": session.session_id}


def handling(name: str, lane: Lane) -> bool:
    """Whether a handler of this event in this lane is running and asks this, by itself or by a task that it started."""
    running = current.get()
    return running is not None and running.limit is not None and running.lane is lane and running.name == name


@contextlib.contextmanager
def waiting_for_the_end() -> Iterator[None]:
    """For the methods of `Session` that return when the call is over: a handler that waits for one of them is not
    waited for by the end, and its time does not run. In the customer's loop; outside of handlers it does nothing."""
    running = current.get()
    if running is None or running.lane is None or running.limit is None or running.limit.expired():
        yield
        return
    running.limit.reschedule(None)
    try:
        with running.lane.away():
            yield
    finally:
        if running.limit is not None:
            running.limit.reschedule(asyncio.get_running_loop().time() + running.lane.seconds)


class Handlers:
    """The handlers of one bridge and the loop they belong to.

    Args:
        registry: event name → handlers in order of registration; read at each event, so a late
            registration takes effect for live calls.
        loop: the customer's loop; `run` must run in it.
        seconds: a handler that takes longer is cancelled and reported.
    """

    def __init__(
        self, registry: Mapping[str, Sequence[Handler]], loop: asyncio.AbstractEventLoop, *, seconds: float
    ) -> None:
        self._registry = registry
        self._loop = loop
        self.seconds = seconds
        self._tasks: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Own the lanes until cancelled; handlers that still run are cancelled with it."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            try:
                await asyncio.Event().wait()
            finally:
                self._tasks = None

    def wants(self, event: str) -> bool:
        """Whether any handler is registered for this event. From any thread."""
        return bool(self._registry.get(event))

    def lane(self, session: Any) -> Lane:
        """A new lane for this session. From any thread."""
        return Lane(self, session)

    def post(self, callback: Callable[[], None]) -> bool:
        """Run a callback soon in the customer's loop. False if that loop is gone."""
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:
            return False
        return True

    async def finish(
        self,
        session: Any,
        event: Any,
        *,
        seconds: float,
        skip: Collection[str] = (),
        succeeded: Callable[[str], Awaitable[bool]] | None = None,
    ) -> dict[str, Exception | None]:
        """Run the `session_end` handlers one after the other, from the media thread.

        Args:
            seconds: each handler is cut off after this long, or left behind if it cannot be.
            skip: handlers that have succeeded before, by name.
            succeeded: awaited with the name of each that has succeeded before the next one begins; False: the others
                are not to be run.

        Returns:
            handler name → None for success, otherwise what went wrong. Cancelling it cancels the handler.
        """
        results: dict[str, Exception | None] = {}
        for name, handler in named(self._registry.get("session_end", ())).items():
            if name in skip:
                continue
            results[name] = await self._one(handler, session, "session_end", event, seconds)
            if results[name] is None and succeeded is not None and not await succeeded(name):
                break
        return results

    async def answers(self) -> bool:
        """Whether the customer's loop does what it is given, within a second; from the media thread."""
        try:
            await Crossing(lambda: asyncio.sleep(0)).run(self._loop, 0.0)
        except (LeftBehind, RuntimeError):
            return False
        return True

    async def ask(self, session: Any, name: str, event: Any, *, seconds: float) -> None:
        """Run the handlers of an event and wait for them, from the media thread. One that raises or takes longer than
        `seconds` is reported as `error`; one that cannot be cut off is not waited for. Cancelling it cancels the
        handler."""
        for handler in list(self._registry.get(name, ())):
            await self._one(handler, session, name, event, seconds)

    async def _one(self, handler: Handler, session: Any, name: str, event: Any, seconds: float) -> Exception | None:
        """Run one handler from the media thread, and report it if it fails; what went wrong."""
        try:
            problem = await Crossing(lambda: self._call(handler, session, name, event, seconds)).run(
                self._loop, seconds
            )
            if problem is not None:
                await self._report_across(session, name, problem)
        except LeftBehind as left:
            metrics.handler_errors.labels(event=name).inc()
            log.error(
                "a handler is left behind: it blocks the application's event loop, or will not be cancelled",
                event_name=name,
                handler=handler_name(handler),
                **_call_of(session),
                seconds=seconds,
            )
            self.post(functools.partial(self._report_later, session, name, left))
            return left
        except RuntimeError:
            return RuntimeError("the application's event loop is closed")
        return problem

    async def _report_across(self, session: Any, name: str, problem: Exception) -> None:
        seconds = self.seconds * len(self._registry.get("error", ()))
        try:
            await Crossing(lambda: self._report(session, name, problem)).run(self._loop, seconds)
        except LeftBehind:
            log.error("the handlers of `error` are left behind", event_name=name, **_call_of(session))

    def _report_later(self, session: Any, name: str, problem: Exception) -> None:
        if self._tasks is not None:
            self._tasks.create_task(self._report(session, name, problem))

    async def fire(self, session: Any, name: str, event: Any, lane: Lane | None = None) -> Exception | None:
        """Run all handlers of an event one after the other, in the customer's loop.

        Args:
            lane: where they run; none for those that the end of the call waits for. Closing it stops the rest.

        Returns:
            what the first of them that failed raised.
        """
        first: Exception | None = None
        for handler in list(self._registry.get(name, ())):
            if lane is not None and lane.closed:
                break
            problem = await self._call(handler, session, name, event, self.seconds, lane)
            if problem is not None and name != "error":
                first = first or problem
                await self._report(session, name, problem, lane)
        return first

    async def _call(
        self, handler: Handler, session: Any, name: str, event: Any, seconds: float, lane: Lane | None = None
    ) -> Exception | None:
        running = Running(name, lane, None)
        current.set(running)
        try:
            async with asyncio.timeout(seconds) as limit:
                running.limit = limit
                result = handler(session, event)
                if inspect.iscoroutine(result):
                    await result
        except (Exception, asyncio.CancelledError, SystemExit) as error:
            problem = _problem(error, limit, seconds)
            metrics.handler_errors.labels(event=name).inc()
            log.exception("handler raised", event_name=name, **_call_of(session))
            return problem
        finally:
            running.limit = None
        return None

    async def _report(self, session: Any, name: str, problem: Exception, lane: Lane | None = None) -> None:
        event = BridgeErrorEvent(
            session_id=session.session_id,
            description=f"handler for '{name}' raised: {problem}",
            code="handler_error",
            cause=problem,
            recoverable=True,
        )
        await self.fire(session, "error", event, lane)

    def start(self, lane: Lane) -> bool:
        """Give a lane its task, in the customer's loop. False when handlers run no more."""
        if self._tasks is None:
            return False
        self._tasks.create_task(lane.work())
        return True


@dataclass(frozen=True, slots=True)
class _Queued:
    name: str
    event: Any
    done: Done | None = None
    first: First | None = None
    failed: Failed | None = None


class Lane:
    """Events of one call that are handled one after the other."""

    def __init__(self, handlers: Handlers, session: Any) -> None:
        self._handlers = handlers
        self._session = session
        self._queue: deque[_Queued] = deque()
        self._working = False
        self._overflowed = False
        self._given = self._handled = 0
        """Events put in, by the media thread; and those that are through, in the customer's loop."""
        self._away = 0
        self.closed = False
        """Nothing more is handled but what is running."""
        self.seconds = handlers.seconds
        self._idle: list[Done] = []

    def put(
        self,
        name: str,
        event: Any,
        done: Done | None = None,
        *,
        first: First | None = None,
        failed: Failed | None = None,
    ) -> None:
        """Queue an event, from the media thread.

        Args:
            done: called in the customer's loop when its handlers have returned, or will never run.
            first: awaited in the customer's loop before the handlers; if it returns False they do not run.
            failed: called in the customer's loop when a handler has raised or was cut off.
        """
        if not self._handlers.wants(name) and done is None:
            return
        self._given += 1
        queued = _Queued(name, event, done, first, failed)
        if not self._handlers.post(lambda: self._put(queued)) and done is not None:
            done()

    @property
    def busy(self) -> bool:
        """Whether something is queued or running. From the media thread, which alone puts things in."""
        return not self.closed and self._handled < self._given

    def when_idle(self, done: Done) -> None:
        """Call `done` in the customer's loop once nothing is queued or running here, from the media thread."""
        if not self._handlers.post(lambda: self._when_idle(done)):
            done()

    def close(self) -> None:
        """Handle nothing more but what is running, from the media thread."""
        self._handlers.post(self._close)

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """The running handler waits for the end of the call, so meanwhile the end does not wait for this lane.
        In the customer's loop."""
        self._away += 1
        self._notify()
        try:
            yield
        finally:
            self._away -= 1

    async def work(self) -> None:
        """Handle what is queued, then stop; a new event starts it again. Cancelling it cancels the running handler."""
        done: Done | None = None
        try:
            while self._queue:
                queued = self._queue.popleft()
                done = queued.done
                if queued.first is None or await queued.first():
                    problem = await self._handlers.fire(self._session, queued.name, queued.event, self)
                    if problem is not None and queued.failed is not None:
                        queued.failed(problem)
                self._handled += 1
                if done is not None:
                    done()
                    done = None
        except BaseException:  # cancelled, most likely: nothing that waits will be handled
            self._close()
            raise
        finally:
            if done is not None:
                done()
            self._working = False
            self._notify()

    def _put(self, queued: _Queued) -> None:
        full = len(self._queue) >= LANE_LENGTH
        if full:
            metrics.handler_errors.labels(event="dropped").inc()
            if not self._overflowed:
                self._overflowed = True
                log.error("handlers are too slow, events are dropped", **_call_of(self._session))
        if full or self.closed:
            self._handled += 1
            if queued.failed is not None:
                queued.failed(RuntimeError("too many events wait for handlers, or the call is over"))
            if queued.done is not None:
                queued.done()
            return
        self._queue.append(queued)
        if not self._working:
            self._working = self._handlers.start(self)
            if not self._working:
                self._close()

    def _when_idle(self, done: Done) -> None:
        self._idle.append(done)
        self._notify()

    def _notify(self) -> None:
        if self._working and not self._away:
            return
        waiting, self._idle = self._idle, []
        for done in waiting:
            done()

    def _close(self) -> None:
        self.closed = True
        if self._queue:
            log.warning("the call is over, events are dropped", events=len(self._queue), **_call_of(self._session))
        while self._queue:
            queued = self._queue.popleft()
            if queued.done is not None:
                queued.done()


def _problem(
    error: Exception | asyncio.CancelledError | SystemExit, limit: asyncio.Timeout, seconds: float
) -> Exception:
    """What to say of a handler that failed; a cancellation that was meant for its task passes."""
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise error
        return RuntimeError("something it waited for was cancelled")
    if isinstance(error, SystemExit):  # one call's handler ends neither the process nor the other calls
        return RuntimeError(f"it called sys.exit({error.code!r})")
    if isinstance(error, TimeoutError) and limit.expired():
        return TimeoutError(f"it took longer than {seconds:g} s and was cancelled")
    return error


def handler_name(handler: Handler) -> str:
    """What a handler is called, the same in every process that runs the application: module and qualified name."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    named = handler if hasattr(handler, "__qualname__") else type(handler)
    return f"{named.__module__}.{named.__qualname__}"


def named(handlers: Sequence[Handler]) -> dict[str, Handler]:
    """Handlers by name. A name that several have is counted, so that a new one of another name renames nobody."""
    found: dict[str, Handler] = {}
    times: Counter[str] = Counter()
    for handler in handlers:
        name = handler_name(handler)
        times[name] += 1
        found[name if times[name] == 1 else f"{name}#{times[name]}"] = handler
    return found
