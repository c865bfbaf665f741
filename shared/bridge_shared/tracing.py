"""One OpenTelemetry trace per call, over all pods that had a part in it.

    call                             at the edge that made the call: from session.initiate to the end of its socket
    ├── attachment                   at an edge that VAIC came back to
    ├── ownership                    at each worker that had the call
    │   ├── agent connect
    │   ├── turn                     from what the agent understood to what the caller hears
    │   └── function call NAME
    └── finish                       each try

No pod tells another about the trace: its id, and that of the span `call`, follow from the fleet and the call's id
alone. So whoever takes a call over goes on with the same trace, whatever has died.

Nothing is traced unless `OTEL_EXPORTER_OTLP_ENDPOINT` (or `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`) is set: without it we
import no module of OpenTelemetry, and a span costs one comparison. All else is said by OpenTelemetry's own variables.
Spans never hold what was said, who called, or a function's arguments.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from typing import TYPE_CHECKING, Final, Self

from bridge_shared import logs

if TYPE_CHECKING:
    from bridge_shared.tracing_sdk import Recorder, Recording

log = logs.get("tracing")

ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
CLOSE_SECONDS: Final = 2.0
"""How long the end of a pod may wait for its last spans to be exported."""

Value = str | bool | int | float

_WORD: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_missing_said = False


def ids(fleet: str, cid: str) -> tuple[int, int]:
    """The ids of a call's trace and of its span `call`: the same in every pod."""
    digest = hashlib.sha256(f"{fleet}\0{cid}".encode()).digest()
    return int.from_bytes(digest[:16], "big"), int.from_bytes(digest[16:24], "big")


def word(detail: str) -> str:
    """Of a detail of ours only the code in front of it (`lost`, `agent_stalled: The agent did …`); "" if it is anything
    else, as it may then be a telephone number or what an application says."""
    code = detail.partition(": ")[0]
    return code if _WORD.fullmatch(code) else ""


def wanted() -> bool:
    """Whether the environment says where traces go."""
    off = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    other = os.environ.get("OTEL_TRACES_EXPORTER", "").strip().lower() == "none"
    return not off and not other and any(os.environ.get(name) for name in ENDPOINTS)


class Span:
    """Something that takes a while in a call. Without a recording it does nothing."""

    __slots__ = ("_children", "_parent", "_recording")

    def __init__(self, recording: Recording | None = None, parent: Tracing | Span | None = None) -> None:
        self._recording = recording
        self._parent = parent
        self._children: dict[Span, None] = {}
        if parent is not None:
            parent._children[self] = None

    def child(self, name: str, *, began_ns: int | None = None, **attributes: Value) -> Span:
        """Begin something inside this, now or at that time; it ends with this at the latest."""
        if self._recording is None:
            return NOTHING
        return Span(self._recording.child(name, began_ns, _named(attributes)), self)

    def set(self, **attributes: Value) -> None:
        """Add attributes: `end_reason="lost"` is recorded as `bridge.end_reason`. Empty strings are left out."""
        if self._recording is not None:
            self._recording.set(_named(attributes))

    def end(self, *, error: str = "", ended_ns: int | None = None, **attributes: Value) -> None:
        """It is over, now or at that time, and so is everything inside it. Only the first end counts.

        Args:
            error: a code, if it went wrong.
        """
        recording, self._recording = self._recording, None
        if recording is None:
            return
        for child in list(self._children):
            child.end(cut_off=True)
        recording.end(_named(attributes), error, ended_ns)
        if self._parent is not None:
            self._parent._children.pop(self, None)


NOTHING: Final = Span()
"""The span of whatever is not traced."""


class Tracing:
    """The traces of one pod. Made by `start`; used in one thread.

    Args:
        recorder: None: nothing is traced.
    """

    def __init__(self, fleet: str = "", recorder: Recorder | None = None) -> None:
        self._fleet = fleet
        self._recorder = recorder
        self._children: dict[Span, None] = {}

    @classmethod
    def start(cls, fleet: str, pod: str, role: str) -> Self:
        """Begin to trace, if the environment says where traces go. What keeps it from that is one line in the log."""
        if not wanted():
            return cls()
        try:
            from bridge_shared.tracing_sdk import Recorder
        except ImportError as error:
            _say_missing(error)
            return cls()
        try:
            return cls(fleet, Recorder(fleet, pod, role))
        except Exception:  # a wrong variable of OpenTelemetry's must not cost calls
            log.exception("calls are not traced: OpenTelemetry does not start; look at the OTEL_ variables")
            return cls()

    def call(self, cid: str, began_ns: int, **attributes: Value) -> Span:
        """The span `call` itself: once for each call, at the edge that made it."""
        return self._span("call", cid, began_ns, attributes, root=True)

    def part(self, name: str, cid: str, *, began_ns: int | None = None, **attributes: Value) -> Span:
        """Begin a part of a call, in whatever pod."""
        return self._span(name, cid, began_ns, attributes, root=False)

    def _span(self, name: str, cid: str, began_ns: int | None, attributes: dict[str, Value], *, root: bool) -> Span:
        if self._recorder is None:
            return NOTHING
        attributes["conversation_id"] = cid
        recording = self._recorder.begin(name, ids(self._fleet, cid), root, began_ns, _named(attributes))
        return Span(recording, self) if recording is not None else NOTHING

    async def close(self) -> None:
        """End what is open, marked as cut off, and export what is left, within `CLOSE_SECONDS`. Cancelling it leaves
        the rest unexported."""
        if self._recorder is None:
            return
        for span in list(self._children):
            span.end(cut_off=True)
        recorder, self._recorder = self._recorder, None
        await recorder.close(CLOSE_SECONDS)


def now_ns() -> int:
    """The moment, as spans count it."""
    return time.time_ns()


def _named(attributes: dict[str, Value]) -> dict[str, Value]:
    return {f"bridge.{name}": value for name, value in attributes.items() if value != ""}


def _say_missing(error: ImportError) -> None:
    global _missing_said
    if not _missing_said:
        _missing_said = True
        log.warning(
            "calls are not traced although an endpoint is set: OpenTelemetry is missing; "
            "install deepgram-audiocodes-bridge-cluster[otel]",
            missing=str(error),
        )
