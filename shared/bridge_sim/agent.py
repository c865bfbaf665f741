"""A simulated Deepgram Voice Agent: a strict server on a real socket that hears, answers, and fails as scripted.

    async with SimulatedAgent(AgentScript(think_s=0)) as agent:
        ...  # connect to agent.url
        await agent.connections[0].wait_for(lambda c: ("user", "Where is my parcel?") in c.texts)

What it says and understands is recorded speech (`bridge_sim.speech`), so that a test can follow a sentence from the
caller's mouth to the agent's ear and back. `AgentScript` says how it behaves, `Faults` what goes wrong.
"""

from __future__ import annotations

import asyncio
import http
from collections.abc import Callable
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import urlsplit

import orjson
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.http11 import Request, Response

from bridge_sim.agent_connection import AgentConnection
from bridge_sim.agent_script import ANSWERS, CALLS, AgentScript, Faults
from bridge_sim.changes import Changes

__all__ = ["ANSWERS", "CALLS", "AgentConnection", "AgentScript", "Faults", "SimulatedAgent", "serve_forever"]

PATH = "/v1/agent/converse"
MOST_CONNECTIONS = 50
"""So many connections are remembered unless told otherwise."""

_T = TypeVar("_T")

# The bodies of §1.3.
_REFUSALS = {
    401: ("INVALID_AUTH", "Invalid credentials."),
    402: ("ASR_PAYMENT_REQUIRED", "Project does not have enough credits."),
    403: ("INSUFFICIENT_PERMISSIONS", "The project may not use this."),
    404: ("NOT_FOUND", "There is nothing here."),
    429: ("TOO_MANY_REQUESTS", "Too many requests. Please try again later."),
}


class SimulatedAgent:
    """The server.

    Args:
        script: how it behaves; may be replaced at any time, for the connections that come after.
        host, port: where it listens; port 0 takes a free one.
        record: keep the audio and frames of each connection (at most 8 MiB each way). Off for load tests.
        remember: so many connections; the oldest closed ones are forgotten first.

    Attributes:
        connections: the last ones, oldest first.
        total: how many were served since the start.
        refused: how many upgrades were refused.
    """

    def __init__(
        self,
        script: AgentScript | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        record: bool = True,
        remember: int = MOST_CONNECTIONS,
    ) -> None:
        self.script = AgentScript() if script is None else script
        self.connections: list[AgentConnection] = []
        self.total = 0
        self.refused = 0
        self._host, self._port, self._record, self._remember = host, port, record, remember
        self._changes = Changes()
        self._server: Server | None = None
        self._faulty_handshakes = 0

    @property
    def port(self) -> int:
        """The port it listens on, once started."""
        return self._port

    @property
    def url(self) -> str:
        return f"ws://{self._host}:{self._port}{PATH}"

    async def start(self) -> None:
        """Listen. Cancelling leaves nothing open. Raises OSError if the port is taken."""
        self._server = await serve(
            self._serve,
            self._host,
            self._port,
            process_request=self._admit,
            process_response=_name_the_request,
            compression=None,
            ping_interval=None,  # pings are the client's affair here, and this is one timer less per connection
            close_timeout=1,
            # As many as a load test opens at once; the default of 100 would make the rest wait a second.
            backlog=1024,
        )
        self._port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Close every connection with 1001 and stop listening. Cancelling stops only the wait for that."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self._server = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def wait_for(self, predicate: Callable[[SimulatedAgent], _T], timeout: float = 5.0) -> _T:
        """Wait until the predicate gives something true about this agent, and return that. Safe to cancel.

        Raises:
            TimeoutError: it did not within `timeout` seconds; the message has the state of the connections.
        """
        return await self._changes.wait_for(
            lambda: predicate(self), timeout, lambda: f"{self.connections!r}, {self.refused} refused"
        )

    async def _admit(self, socket: ServerConnection, request: Request) -> Response | None:
        script = self.script
        if script.open_delay_s:
            await asyncio.sleep(script.open_delay_s)
        if self._faulty_handshakes < script.faults.refuse_handshakes:
            self._faulty_handshakes += 1
            return self._refuse(socket, script.faults.refuse_status)
        if urlsplit(request.path).path != PATH:
            return self._refuse(socket, 404)
        if script.require_token is not None and not _authorised(request, script.require_token):
            return self._refuse(socket, 401)
        return None

    def _refuse(self, socket: ServerConnection, status: int) -> Response:
        self.refused += 1
        self._changes.notify()
        code, message = _REFUSALS.get(status, ("INTERNAL_SERVER_ERROR", "Something went wrong."))
        body = orjson.dumps({"err_code": code, "err_msg": message, "request_id": str(socket.id)})
        response = socket.respond(http.HTTPStatus(status), body.decode())
        del response.headers["Content-Type"]
        response.headers["Content-Type"] = "application/json"
        response.headers["dg-error"] = message
        response.headers["dg-request-id"] = str(socket.id)
        return response

    async def _serve(self, socket: ServerConnection) -> None:
        connection = AgentConnection(socket, self.script, self.total, keep=self._record, changed=self._changes.notify)
        self.total += 1
        self.connections.append(connection)
        self._forget()
        await connection.serve()

    def _forget(self) -> None:
        excess = len(self.connections) - self._remember
        if excess > 0:
            gone = [connection for connection in self.connections if connection.closed][:excess]
            self.connections = [connection for connection in self.connections if connection not in gone]


def _authorised(request: Request, token: str) -> bool:
    """The scheme is compared without regard to case, as SDKs differ in it (§1.2)."""
    scheme, _, credential = request.headers.get("Authorization", "").partition(" ")
    return scheme.lower() in ("token", "bearer") and credential.strip() == token


def _name_the_request(socket: ServerConnection, request: Request, response: Response) -> None:
    response.headers["dg-request-id"] = str(socket.id)


async def serve_forever(
    port: int, host: str = "127.0.0.1", script: AgentScript | None = None, *, record: bool = False
) -> None:
    """Serve until cancelled; then every connection is closed."""
    async with SimulatedAgent(script, host, port, record=record):
        await asyncio.get_running_loop().create_future()
