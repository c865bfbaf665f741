"""`DeepgramBridge`: what an application makes, hangs its handlers on, and runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bridge_worker.session import Session, SessionState
from deepgram_audiocodes_bridge import checks
from deepgram_audiocodes_bridge.process import process
from deepgram_audiocodes_bridge.types import BridgeConfig

__all__ = ["AsyncEventEmitter", "DeepgramBridge", "Session", "SessionState"]


class AsyncEventEmitter:
    """Keeps handlers by event name."""

    def __init__(self) -> None:
        self._handlers: dict[str, list[Callable[..., Any]]] = {}
        self._checked = False
        """Whether handlers have been looked at: when the bridge begins to run, for only then is there a log."""

    def on(self, event: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Register a handler: `@bridge.on("session_start")`, or `bridge.on("session_start")(handler)`.

        A handler is called as `handler(session, event)`; it may be a plain function or a coroutine function.
        Several handlers of one event run in the order of registration. One registered while calls are live
        takes effect for them too. An unknown event never fires; the log warns of it when the bridge runs.

        Returns:
            a decorator that gives the function back unchanged.
        """

        def register(handler: Callable[..., Any]) -> Callable[..., Any]:
            # a new list instead of an append: the media thread may be reading the old one
            if self._checked:
                if event not in self._handlers:
                    checks.warn_of_event(event)
                checks.warn_of_handler(event, handler)
            self._handlers[event] = [*self._handlers.get(event, ()), handler]
            return handler

        return register

    def _check_handlers(self) -> None:
        """Warn once of handlers that will never run, or cannot."""
        if self._checked:
            return
        self._checked = True
        for event, handlers in self._handlers.items():
            checks.warn_of_event(event)
            for handler in handlers:
                checks.warn_of_handler(event, handler)


class DeepgramBridge(AsyncEventEmitter):
    """Connects AudioCodes callers with one Deepgram Voice Agent configuration.

    Args:
        config: nothing of it is used or checked before `run`.
    """

    def __init__(self, config: BridgeConfig) -> None:
        super().__init__()
        self._config = config

    async def run(self) -> None:
        """Take calls until the process is told to stop (SIGTERM or Ctrl-C: live calls are drained first).

        Alone this is the whole cluster in one process; under `bridgectl` it is the role that was asked for.
        Several bridges may run in one event loop. Cancelling it takes no more calls, hangs up the live ones
        of this bridge, runs their `session_end` handlers (bounded), and then raises `CancelledError`.

        Raises:
            ConfigError: a setting or a value of the configuration cannot be used. Uncaught, it ends the program
                with one sentence on standard error and exit code 2.
        """
        await process().serve(self)

    async def _serve(self, session: Session, socket: Any) -> Session:
        return await process().serve_socket(self, session, socket)
