"""Notices event loops that do not run: says once per stall where the loop's thread is, counts it, tells `/healthz`.

A thread asks each loop for a sign of life. A loop is silent only while the watchdog's own looks are prompt; if they
are late as well, the whole process stood still (stopped, short of CPU, or C code that keeps Python's lock, such as a
regular expression that never ends), and no stack would show why.

The media loop serves `/healthz` itself: while it is stuck there is no answer, and the probe's time-out tells. What
`reason` adds is the application's loop, which a handler can block for ever while audio goes on.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from typing import Final, Literal

from bridge_shared import logs, metrics

_log = logs.get("watchdog")

LOOK_SECONDS: Final = 0.25
STOOD_SECONDS: Final = 1.0
"""A look that comes later than this says that the whole process stood still."""

FRAMES: Final = 12
"""Innermost frames of a stuck thread that are logged."""

Name = Literal["media", "application"]


@dataclass(eq=False, slots=True)
class _Watched:
    loop: asyncio.AbstractEventLoop
    thread: int
    name: Name
    stall_seconds: float
    stuck_seconds: float
    answered: bool = True
    silent: float = 0.0
    told: bool = False

    def answer(self) -> None:
        """In the loop."""
        self.answered = True


class LoopWatchdog:
    """Watches event loops from a thread of its own, between `start` and `stop`. A daemon: it holds up no end."""

    def __init__(self) -> None:
        self._thread = threading.Thread(target=self._main, name="bridge-loop-watchdog", daemon=True)
        self._over = threading.Event()
        self._changing = threading.Lock()
        self._watched: list[_Watched] = []

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Safe to call twice and without `start`."""
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join()

    def watch(
        self,
        loop: asyncio.AbstractEventLoop,
        thread: int,
        name: Name,
        *,
        stall_seconds: float,
        stuck_seconds: float = 0.0,
    ) -> None:
        """Watch this loop, once however often it is asked, until it is closed; from any thread.

        Args:
            thread: the identity of the thread that runs it.
            stall_seconds: a silence that is logged and counted.
            stuck_seconds: a silence for which `reason` gives the process up; 0: none.
        """
        with self._changing:
            if all(watched.loop is not loop for watched in self._watched):
                self._watched = [*self._watched, _Watched(loop, thread, name, stall_seconds, stuck_seconds)]

    @property
    def reason(self) -> str | None:
        """Why this process should be replaced; None if it should not. Well again when the loop runs again."""
        for watched in self._watched:
            if watched.stuck_seconds and watched.silent >= watched.stuck_seconds:
                return f"the {watched.name}'s event loop has not run for {watched.silent:.0f} s: something blocks it"
        return None

    def _main(self) -> None:
        before = time.monotonic()
        while not self._over.wait(LOOK_SECONDS):
            now = time.monotonic()
            took, before = now - before, now
            if took > STOOD_SECONDS:
                metrics.loop_stalls.labels(loop="all").inc()
                _log.error("the whole process stood still", seconds=round(took, 1))
            for watched in self._watched:
                self._look(watched, min(took, 2 * LOOK_SECONDS))

    def _look(self, watched: _Watched, took: float) -> None:
        if watched.answered or not watched.loop.is_running():
            if watched.told:
                _log.warning(
                    "an event loop runs again after a stall", loop=watched.name, seconds=round(watched.silent, 1)
                )
            watched.silent, watched.told, watched.answered = 0.0, False, False
            try:
                watched.loop.call_soon_threadsafe(watched.answer)
            except RuntimeError:  # closed
                with self._changing:
                    self._watched = [other for other in self._watched if other is not watched]
            return
        watched.silent += took
        if watched.silent >= watched.stall_seconds and not watched.told:
            watched.told = True
            metrics.loop_stalls.labels(loop=watched.name).inc()
            _log.error(
                "an event loop stands still",
                loop=watched.name,
                seconds=round(watched.silent, 1),
                where=_stack(watched.thread),
            )


def _stack(thread: int) -> str:
    """Where a thread is, innermost first: file, line and function of each frame."""
    frame = sys._current_frames().get(thread)
    if frame is None:
        return "unknown"
    frames = traceback.extract_stack(frame)[-FRAMES:]
    return " < ".join(f"{f.filename}:{f.lineno} {f.name}" for f in reversed(frames))
