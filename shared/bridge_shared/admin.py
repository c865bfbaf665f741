"""A pod's admin port: ``/healthz``, ``/readyz`` and ``/metrics``. This is the one door to FastAPI and uvicorn.

The server runs in the loop that it vouches for, the one that moves audio: if that loop is stuck, ``/healthz``
does not answer, and the probe's time-out tells what no answer could.
"""

from __future__ import annotations

import asyncio
import errno
import hmac
import os
import socket
from collections.abc import Callable
from typing import Final

import uvicorn
from fastapi import FastAPI, HTTPException
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from bridge_shared import logs, metrics
from bridge_shared.errors import ConfigError

_log = logs.get("admin")

# How often the loop's punctuality is measured, seconds: as often as pods beat.
_BEAT: Final = 0.25

# Requests of the API at work at once, streams that are followed among them; probes and the scraper are not counted.
_REQUESTS: Final = 100

# Of the body of a request to the API: bytes, more than the longest prompt has in any spelling; seconds for all of it.
_MOST_BODY: Final = 512 * 1024
_BODY_SECONDS: Final = 10.0

# More than requests can be at work, so that there is always one of which nothing is lost.
_CONNECTIONS: Final = 200


class Admin:
    """The admin server of one pod.

    Args:
        port: 0 for a free one; `port` has the real one after `bind`.
        host: the address to listen on.
        ready: None if this pod accepts calls, else the reason why not, for a person.
        healthy: None if this pod works, else the reason; it will be restarted for that.

    Attributes:
        app: the FastAPI application, to which further routes may be added before `run`; see also `beside`.
    """

    def __init__(
        self, port: int, host: str, *, ready: Callable[[], str | None], healthy: Callable[[], str | None]
    ) -> None:
        self.port = port
        self._host = host
        self._ready, self._healthy = ready, healthy
        self._socket: socket.socket | None = None
        self.app: Final = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
        self.app.add_api_route("/healthz", self._healthz)
        self.app.add_api_route("/readyz", self._readyz)
        self.app.add_api_route("/metrics", self._metrics)

    def beside(self) -> FastAPI:
        """One more application on this port, behind our own routes; also while the server runs (error handlers of
        an application that has answered a request would be ignored)."""
        further = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
        self.app.mount("", further)
        return further

    def bind(self) -> int:
        """Take the port, so that a busy one is known before the pod does anything else. Returns the port.

        Raises:
            ConfigError: the port is taken or not allowed, or the host is not an address of this machine.
        """
        if self._socket is None:
            try:
                # create_server would hide a name that cannot be looked up behind the same error as a busy port.
                family, _, _, _, address = socket.getaddrinfo(self._host, self.port, type=socket.SOCK_STREAM)[0]
                self._socket = socket.create_server(address, family=family, backlog=64)
            except OSError as error:
                raise self._unusable(error) from None
            self.port = self._socket.getsockname()[1]
        return self.port

    def close(self) -> None:
        """Give back a port that was bound and never served; nothing otherwise."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def run(self) -> None:
        """Serve until cancelled; binds first if nobody has.

        Cancelling closes the port and every connection; it takes a tenth of a second, or one if a client is slow.
        """
        self.bind()
        assert self._socket is not None
        sockets, self._socket = [self._socket], None
        server = _Server(
            uvicorn.Config(
                _Crowd(self.app),
                log_config=None,
                access_log=False,
                lifespan="off",
                timeout_graceful_shutdown=1,
                http=_Connection,
            )
        )
        beating = asyncio.create_task(self._beat(), name="admin beat")
        try:
            await server.serve_until_cancelled(sockets)
        finally:
            beating.cancel()

    def _unusable(self, error: OSError) -> ConfigError:
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            mend = "Set it to an address of this machine, or to 0.0.0.0 for all of them"
            return ConfigError("BRIDGE_HOST", f"{self._host!r} is no address of this machine", mend)
        problem = f"port {self.port} cannot be used: {os.strerror(error.errno or 0)}"
        return ConfigError("BRIDGE_ADMIN_PORT", problem, "Set it to a free port, or to 0 for any")

    async def _beat(self) -> None:
        """Measure by how much the loop is late, for as long as it runs."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _BEAT
            await asyncio.sleep(_BEAT)
            metrics.loop_lag_seconds.observe(max(0.0, loop.time() - due))

    async def _healthz(self) -> Response:
        return _verdict(self._healthy())

    async def _readyz(self) -> Response:
        return _verdict(self._ready())

    async def _metrics(self) -> Response:
        return Response(metrics.render(), media_type=metrics.CONTENT_TYPE)


class _Connection(H11Protocol):
    """One connection. Of too many the oldest that nobody waits at is broken off, so that a probe always gets in:
    uvicorn's own limit counts those that only stand there, and answers the probe with 503."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._since = self.loop.time()
        if len(self.connections) > _CONNECTIONS:
            others = [c for c in self.connections if isinstance(c, _Connection) and c is not self and c._waits]
            if others:
                min(others, key=lambda c: c._since).transport.abort()

    @property
    def _waits(self) -> bool:
        """We wait for the client: for a request, or for the rest of one."""
        return self.cycle is None or self.cycle.response_complete or self.cycle.more_body


class _Crowd:
    """The application, as long as not too many requests of the API are at work at once: the probes come first."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._at_work = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            return await self._app(scope, receive, send)
        if self._at_work >= _REQUESTS:
            problem = {"detail": f"{_REQUESTS} requests are at work here; try again, or ask another pod"}
            return await JSONResponse(problem, 503, {"Retry-After": "1"})(scope, receive, send)
        self._at_work += 1
        try:
            await self._app(scope, _Body(receive).receive if scope["method"] == "POST" else receive, send)
        finally:
            self._at_work -= 1


class _Body:
    """The body of one request, which FastAPI would wait for without end and keep in memory whatever its length."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._until = asyncio.get_running_loop().time() + _BODY_SECONDS
        self._size, self._whole = 0, False

    async def receive(self) -> Message:
        if self._whole:  # what is waited for now is that the client goes
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._until):
                message = await self._receive()
        except TimeoutError:
            raise HTTPException(408, f"The body did not come within {_BODY_SECONDS:g} s") from None
        self._size += len(message.get("body", b""))
        if self._size > _MOST_BODY:
            raise HTTPException(413, f"The body has more than {_MOST_BODY // 1024} KiB")
        self._whole = not message.get("more_body", False)
        return message


class Door:
    """Middleware that lets nobody without the token to the API: FastAPI would read what they send before it asks who
    they are.

    Args:
        token: the bearer token; None closes the API.
    """

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app = app
        self._expected = f"Bearer {token}".encode() if token is not None else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] == "http" and scope["path"].startswith("/v1/") else None
        await (self._app if refusal is None else refusal)(scope, receive, send)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        if self._expected is None:
            return JSONResponse({"detail": "The admin API is closed: no BRIDGE_ADMIN_TOKEN is set"}, 403)
        if not hmac.compare_digest(Headers(scope=scope).get("Authorization", "").encode("latin-1"), self._expected):
            problem = {"detail": "This needs the bearer token of BRIDGE_ADMIN_TOKEN"}
            return JSONResponse(problem, 401, {"WWW-Authenticate": "Bearer"})
        return None


class _Server(uvicorn.Server):
    """uvicorn in the task of its caller: without its signal handlers, and closed by cancelling.

    `serve` would take the process's signals (`lifecycle.Signals` has them), wake up ten times a second to see
    whether it should stop, and leave its sockets open when cancelled.
    """

    async def serve_until_cancelled(self, sockets: list[socket.socket]) -> None:
        self.config.load()
        self.lifespan = self.config.lifespan_class(self.config)
        await self.startup(sockets=sockets)
        host, port = sockets[0].getsockname()[:2]
        _log.info("admin port open", host=host, port=port)
        try:
            await asyncio.get_running_loop().create_future()  # nobody completes it
        finally:
            await self.shutdown(sockets=sockets)


def _verdict(reason: str | None) -> Response:
    return PlainTextResponse("ok\n" if reason is None else f"{reason}\n", status_code=200 if reason is None else 503)
