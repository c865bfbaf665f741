"""How a pod's event loop and its signals begin and end.

The application's handlers run in the main thread's loop; sockets, links and heartbeats run in the loop of a
`MediaThread`, so that a handler which blocks delays handlers and never audio or liveness.

This is the one door to uvloop.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine
from types import FrameType, TracebackType
from typing import Any, Final, Self, TypeVar

from bridge_shared import logs

if sys.platform == "win32":
    new_event_loop = asyncio.new_event_loop
else:
    from uvloop import new_event_loop

__all__ = ["MediaThread", "Signals", "new_event_loop"]

T = TypeVar("T")
_log = logs.get("lifecycle")


class MediaThread:
    """A thread running one uvloop loop. Made and started by whoever also stops it.

    The thread is not a daemon: a process that forgets `stop` does not end, rather than end with callers cut off.
    """

    def __init__(self, name: str = "bridge-media") -> None:
        self._thread = threading.Thread(target=self._main, name=name)
        self._started = threading.Event()
        self._stop_requested = asyncio.Event()  # touched in the loop only
        # A task submitted behind the last look at what is left would never run, and its future never end.
        self._submitting = threading.Lock()
        self._stopping = False
        self._submitted: set[concurrent.futures.Future[Any]] = set()
        self._grace = 0.0
        self._clean = True
        self.loop: Final = new_event_loop()

    def start(self) -> Self:
        """Returns once the loop runs.

        Raises:
            RuntimeError: it has been started or stopped before.
        """
        if self._stopping:
            raise RuntimeError("the media thread has been stopped")
        self._thread.start()
        self._started.wait()
        return self

    @property
    def ident(self) -> int:
        """The thread's identity (`threading.get_ident`), once it has been started."""
        return self._thread.ident or 0

    def submit(self, coro: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Run `coro` as a task of the loop; from any thread. Await the result with `asyncio.wrap_future`.

        Cancelling the future cancels the task; so does `stop`.

        Raises:
            RuntimeError: the thread does not run, not yet or no longer, so nothing would ever come of it.
                `coro` is closed.
        """
        with self._submitting:
            if self._started.is_set() and not self._stopping:
                future = asyncio.run_coroutine_threadsafe(coro, self.loop)
                # asyncio itself holds tasks weakly: one that waits for something nobody else knows would be
                # collected in the middle, if its submitter let go of the future.
                self._submitted.add(future)
                future.add_done_callback(self._submitted.discard)
                return future
        coro.close()
        raise RuntimeError(f"the media thread has {'been stopped' if self._stopping else 'not been started'}")

    def call(self, function: Callable[..., object], *args: Any) -> None:
        """Call `function` in the loop soon; from any thread and from signal handlers.

        Raises:
            RuntimeError: the thread has been stopped.
        """
        self.loop.call_soon_threadsafe(function, *args)

    def stop(self, timeout: float) -> bool:
        """Cancel what still runs, wait for it up to `timeout` seconds, end the loop and join the thread.

        Give tasks their orderly end before this; what is left is cancelled. Safe to call twice, and after a
        `start` that never happened. Blocks, so a loop of the main thread calls it through `asyncio.to_thread`
        or after its own end.

        Returns:
            False if a task had to be left behind because it ignored its cancellation; it is named in the log.
        """
        if threading.current_thread() is self._thread:
            raise RuntimeError("the media thread cannot wait for its own end")
        with self._submitting:
            self._stopping = True
        if self._thread.ident is None:
            self.loop.close()
            return True
        if self._thread.is_alive():
            self._grace = timeout
            with contextlib.suppress(RuntimeError):  # closed meanwhile: another thread stopped it too
                self.call(self._stop_requested.set)
            self._thread.join()
        return self._clean

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop(timeout=5.0)

    def _main(self) -> None:
        loop = self.loop
        asyncio.set_event_loop(loop)
        loop.set_exception_handler(_report)
        try:
            loop.run_until_complete(self._run())
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            asyncio.set_event_loop(None)
            loop.close()

    async def _run(self) -> None:
        self._started.set()
        await self._stop_requested.wait()
        deadline = self.loop.time() + self._grace
        # Again and again, because a task may start another one while it ends.
        while left := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in left:
                task.cancel()
            done, stubborn = await asyncio.wait(left, timeout=max(0.0, deadline - self.loop.time()))
            for task in done:
                if not task.cancelled() and (error := task.exception()) is not None:
                    _log.error("a task failed while it was being stopped", task=task.get_name(), exc_info=error)
            for task in stubborn:
                self._clean = False
                _log.error("a task ignored its cancellation and was left behind", task=task.get_name())
            if stubborn:
                return


class Signals:
    """SIGTERM or SIGINT drains, a second one kills.

    Uses `signal.signal`, not the loop's own handlers, because the main thread's loop belongs to the application
    and may be blocked: Python still runs these between two byte codes. So the callbacks run in the main thread
    in the middle of anything: they may set flags and use `MediaThread.call`, and must not take locks or log.

    A signal that arrives in the instant between Python's last look and a blocking call is noticed when that call
    returns, so the main thread's loop should have a timer of a second or less.

    Args:
        on_drain: called at the first signal.
        on_kill: called at every later one; by default the process ends there and then with status 1.
    """

    HANDLED: Final = (signal.SIGTERM, signal.SIGINT)

    def __init__(self, on_drain: Callable[[], object], on_kill: Callable[[], object] = lambda: os._exit(1)) -> None:
        self._on_drain, self._on_kill = on_drain, on_kill
        self._previous: dict[int, Any] = {}
        self.received = 0

    def install(self) -> bool:
        """Take the signals over. False, and nothing happens, outside the main thread: there Python refuses it."""
        if threading.current_thread() is not threading.main_thread():
            return False
        for number in self.HANDLED:
            if number not in self._previous:
                self._previous[number] = signal.signal(number, self._handle)
        return True

    def restore(self) -> None:
        """Put back what handled the signals before."""
        while self._previous:
            number, handler = self._previous.popitem()
            # None: the handler was not set from Python, so it cannot be put back from here either.
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def __enter__(self) -> Self:
        self.install()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.restore()

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        self.received += 1
        if self.received == 1:
            self._on_drain()
        else:
            self._on_kill()


def _report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """A task nobody awaits has failed, or a callback has: an error of ours, and the loop goes on."""
    task = context.get("task") or context.get("future")
    name = task.get_name() if isinstance(task, asyncio.Task) else ""
    _log.error(
        "something failed in the media loop", what=context["message"], task=name, exc_info=context.get("exception")
    )
