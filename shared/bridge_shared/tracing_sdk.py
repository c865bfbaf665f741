"""The one door to OpenTelemetry; imported only where traces are wanted (see `tracing`).

A provider of our own for each pod: an application that uses OpenTelemetry itself keeps its global one. Spans go out
in batches from a thread of the SDK's. What goes wrong there is one line in the log, not one per try.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, Status, StatusCode, TraceFlags, set_span_in_context

from bridge_shared import __version__, logs
from bridge_shared.config import redact
from bridge_shared.tracing import ENDPOINTS, Value

log = logs.get("tracing")

SAY_AGAIN_SECONDS = 60.0
"""A collector that comes and goes is worth a line so often at most."""

_TALKERS = (
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.sdk._shared_internal",
    "opentelemetry.sdk.trace.export",
    "urllib3.connectionpool",
)
"""Loggers that say something at each try."""


class Recorder:
    """Records the spans of one pod and exports them.

    Raises:
        Exception: whatever OpenTelemetry says to a variable that it cannot use.
    """

    def __init__(self, fleet: str, pod: str, role: str) -> None:
        ours = {
            "service.name": "bridge",
            "service.version": __version__,
            "service.instance.id": pod,
            "bridge.fleet": fleet,
            "bridge.role": role,
        }
        resource = Resource.create(ours).merge(OTELResourceDetector().detect())  # the environment says it last
        self._exporter = _Exporter()
        self._ids = _Ids()
        self._provider = TracerProvider(resource=resource, id_generator=self._ids, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("bridge", __version__)

    def begin(
        self, name: str, ids: tuple[int, int], root: bool, began_ns: int | None, attributes: Mapping[str, Value]
    ) -> Recording | None:
        """Begin a span of the trace with these ids: the root itself, or a child of it. None: it is not sampled."""
        trace, span = ids
        # every pod asks its sampler what the one that made the call asked: with the same variables they say the same
        if self._provider.sampler.should_sample(Context(), trace, "call").decision is Decision.DROP:
            return None
        if root:
            self._ids.planned = ids
            return self._start(name, Context(), began_ns, attributes)
        flags = TraceFlags(TraceFlags.SAMPLED)
        parent = NonRecordingSpan(SpanContext(trace, span, is_remote=True, trace_flags=flags))
        return self._start(name, set_span_in_context(parent, Context()), began_ns, attributes)

    def child(self, parent: Span, name: str, began_ns: int | None, attributes: Mapping[str, Value]) -> Recording:
        """Begin a span inside another one."""
        return self._start(name, set_span_in_context(parent, Context()), began_ns, attributes)

    def _start(self, name: str, context: Context, began_ns: int | None, attributes: Mapping[str, Value]) -> Recording:
        span = self._tracer.start_span(name, context=context, start_time=began_ns, attributes=attributes)
        return Recording(self, span)

    def end(self, span: Span, ended_ns: int | None) -> None:
        """Put a span into the queue; if that is full, it is lost."""
        with _hushed() as said:
            span.end(ended_ns)
        if said:
            self._exporter.trouble(said[0])

    async def close(self, seconds: float) -> None:
        """Export what is left, at most so long. Cancelling it gives up the wait."""
        loop, closed = asyncio.get_running_loop(), asyncio.Event()

        def shut_down() -> None:
            with _hushed():
                self._provider.shutdown()
            with contextlib.suppress(RuntimeError):  # the loop did not wait for us
                loop.call_soon_threadsafe(closed.set)

        # not one of the loop's own threads: at the process's end those are waited for, however long
        threading.Thread(target=shut_down, name="bridge-tracing-end", daemon=True).start()
        try:
            async with asyncio.timeout(seconds):
                await closed.wait()
        except TimeoutError:
            self._exporter.trouble("the last spans of this pod could not be exported in time")
            self._exporter.shutdown()


class Recording:
    """One span on its way."""

    __slots__ = ("_recorder", "_span")

    def __init__(self, recorder: Recorder, span: Span) -> None:
        self._recorder = recorder
        self._span = span

    def child(self, name: str, began_ns: int | None, attributes: Mapping[str, Value]) -> Recording:
        """Begin a span inside this one."""
        return self._recorder.child(self._span, name, began_ns, attributes)

    def set(self, attributes: Mapping[str, Value]) -> None:
        """Add attributes."""
        self._span.set_attributes(attributes)

    def end(self, attributes: Mapping[str, Value], error: str, ended_ns: int | None) -> None:
        """It is over; `error`: a code, if it went wrong."""
        self._span.set_attributes(attributes)
        if error:
            self._span.set_attribute("error.type", error)
            self._span.set_status(Status(StatusCode.ERROR))
        self._recorder.end(self._span, ended_ns)


class _Ids(RandomIdGenerator):
    """Random ids, but for a span whose ids are planned."""

    def __init__(self) -> None:
        self.planned: tuple[int, int] | None = None

    def generate_trace_id(self) -> int:
        return self.planned[0] if self.planned is not None else super().generate_trace_id()

    def generate_span_id(self) -> int:
        planned, self.planned = self.planned, None
        return planned[1] if planned is not None else super().generate_span_id()


class _Exporter(SpanExporter):
    """OTLP over HTTP, as the environment says, and quiet about it."""

    def __init__(self) -> None:
        _hush_talkers()
        self._otlp = OTLPSpanExporter()
        self._failing = self._over = False
        self._said_at = -SAY_AGAIN_SECONDS

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        with _hushed() as said:
            result = self._otlp.export(spans)
        if result is not SpanExportResult.SUCCESS:
            self.trouble(said[0] if said else "")
        elif self._failing:
            self._failing = False
            log.info("traces are exported again")
        return result

    def trouble(self, why: str) -> None:
        """Spans are lost. Said once, until some have been exported again."""
        now = time.monotonic()
        if not self._failing and now - self._said_at >= SAY_AGAIN_SECONDS:
            self._said_at = now
            endpoint = next((url for name in ENDPOINTS if (url := os.environ.get(name))), "")
            log.warning(
                "traces cannot be exported and are lost until they can; calls go on", endpoint=redact(endpoint), why=why
            )
        self._failing = True

    def shutdown(self) -> None:
        if not self._over:
            self._over = True
            with _hushed():
                self._otlp.shutdown()  # type: ignore[no-untyped-call]

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return True


_here = threading.local()


class _Hush(logging.Filter):
    """Holds back what a library says while it works for us, and for nobody else in this process."""

    def filter(self, record: logging.LogRecord) -> bool:
        said: list[str] | None = getattr(_here, "said", None)
        if said is None:
            return True
        args = record.args if isinstance(record.args, tuple) else ()
        # of an exception only its kind: its text may have the URL with a key in it
        said.append(record.msg % tuple(type(arg).__name__ if isinstance(arg, BaseException) else arg for arg in args))
        return False


_hush = _Hush()


def _hush_talkers() -> None:
    for name in _TALKERS:
        logging.getLogger(name).addFilter(_hush)


@contextlib.contextmanager
def _hushed() -> Iterator[list[str]]:
    """Collects what the libraries say in this thread meanwhile."""
    before, _here.said = getattr(_here, "said", None), []
    try:
        yield _here.said
    finally:
        _here.said = before
