"""A stand-in for an OpenTelemetry collector: OTLP over HTTP on loopback, every span kept.

with Collector() as collector:
    ...  # pods with OTEL_EXPORTER_OTLP_ENDPOINT=collector.url
    collector.spans
"""

from __future__ import annotations

import http.server
import threading
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


@dataclass(frozen=True)
class Seen:
    """A span as it was exported. `resource` says by whom."""

    name: str
    trace: str
    id: str
    parent: str
    began_ns: int
    ended_ns: int
    error: bool
    attributes: dict[str, Any] = field(repr=False)
    resource: dict[str, Any] = field(repr=False)

    @property
    def pod(self) -> str:
        return str(self.resource["service.instance.id"])


class Collector:
    """Listens until the block ends. `bodies` are the requests as they came."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.path == "/v1/traces" and self.headers["Content-Type"] == "application/x-protobuf":
                    collector.bodies.append(body)
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    @property
    def spans(self) -> list[Seen]:
        """All that has come so far, in order of the beginning."""
        seen = []
        for body in list(self.bodies):
            for of_pod in ExportTraceServiceRequest.FromString(body).resource_spans:
                resource = _plain(of_pod.resource.attributes)
                for scope in of_pod.scope_spans:
                    seen += [
                        Seen(
                            span.name,
                            span.trace_id.hex(),
                            span.span_id.hex(),
                            span.parent_span_id.hex(),
                            span.start_time_unix_nano,
                            span.end_time_unix_nano,
                            span.status.code == span.status.STATUS_CODE_ERROR,
                            _plain(span.attributes),
                            resource,
                        )
                        for span in scope.spans
                    ]
        return sorted(seen, key=lambda span: span.began_ns)

    def named(self, name: str) -> list[Seen]:
        return [span for span in self.spans if span.name == name]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _plain(attributes: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in attributes}
