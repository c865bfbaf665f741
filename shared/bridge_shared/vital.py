"""Tasks without which a pod only looks alive."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from bridge_shared import logs

_log = logs.get("pod")


class Vital:
    """The tasks of a pod that must run for as long as it does.

    One that fails ends the pod with its task group. One that returns would go unnoticed: the pod keeps its calls, but
    no longer reads offers, say. It is to be drained and replaced, so `/healthz` gives `reason`.

    Attributes:
        reason: which of them has ended while the pod goes on; None: none.
    """

    def __init__(self) -> None:
        self.reason: str | None = None

    def start(self, tasks: asyncio.TaskGroup, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` in this group."""
        tasks.create_task(work, name=getattr(work, "__qualname__", "a task")).add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            return
        error = task.exception()
        how = "has returned" if error is None else f"has failed ({type(error).__name__}: {error})"
        if self.reason is None:
            self.reason = f"{task.get_name()} {how}"
            _log.error("a task that the pod cannot do without has ended", task=task.get_name(), exc_info=error)
