"""The door: who may place a call through this edge, and which bridge answers.

A door stands for one `BridgeConfig` of the customer's file, as far as the edge needs it. It decides before
the WebSocket exists (HTTP 401 during the upgrade, never accept-then-close; Bot API reference §1.3).
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Protocol

from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request, Response

from bridge_edge.oidc import Issuer, TokenRefused
from bridge_shared import logs, metrics

log = logs.get("edge.door")

Authenticate = Callable[[ServerConnection, Request], Awaitable[Response | None]]


class Refused(Protocol):
    """Counts a refusal and logs it."""

    def __call__(self, reason: str, remote: str, **more: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Door:
    """What one bridge asks of the edge.

    Attributes:
        bridge: its name, by which workers know it; empty: the caller's path says which, or there is only one.
        host, port: where it listens.
        port_set_by: the name of what gave the port, for the error if it is taken.
        formats: media formats it takes, most wanted first.
        play_format: what its agent speaks in if the caller's side offers it; None: the format of the call.
        tokens: any of these as `Authorization: Bearer …` opens the door; empty = no token is asked.
        authenticate: the customer's own check, already safe to await here; it alone decides if given.
        authenticate_seconds: how long it may take.
    """

    bridge: str
    host: str
    port: int
    formats: tuple[str, ...]
    tokens: tuple[str, ...] = ()
    authenticate: Authenticate | None = None
    authenticate_seconds: float = 5.0
    play_format: str | None = None
    port_set_by: str = "BRIDGE_PORT"

    @property
    def open(self) -> bool:
        """Whether everybody may come in, unless tokens of an issuer are asked for."""
        return not self.tokens and self.authenticate is None

    async def check(
        self, connection: ServerConnection, request: Request, refused: Refused, issuer: Issuer | None = None
    ) -> Response | None:
        """None lets the caller in, a response refuses the upgrade. Cancelling it refuses nothing and is harmless.

        Args:
            refused: told why somebody stays out.
            issuer: a token of it opens the door as well as one of `tokens`.
        """
        if self.authenticate is not None:
            return await self._ask_customer(self.authenticate, connection, request, refused)
        if not self.tokens and issuer is None:
            return None
        given = _bearer(request)
        if given is not None and self._token_fits(given):
            return None
        why, status = "shows no token that fits", HTTPStatus.UNAUTHORIZED
        if issuer is not None and given is not None:
            try:
                await issuer.check(given.decode("ascii", "replace"))
                return None
            except TokenRefused as error:
                why = f"its token {error}"
                if error.ours:
                    status = HTTPStatus.SERVICE_UNAVAILABLE
        reason = "token" if status is HTTPStatus.UNAUTHORIZED else "no_keys"
        refused(reason, _address(connection), bridge=self.bridge, why=why)
        response = connection.respond(status, f"{status.phrase}\n")
        if status is HTTPStatus.UNAUTHORIZED:
            response.headers["WWW-Authenticate"] = "Bearer"
        return response

    async def _ask_customer(
        self, authenticate: Authenticate, connection: ServerConnection, request: Request, refused: Refused
    ) -> Response | None:
        try:
            async with asyncio.timeout(self.authenticate_seconds):
                refusal = await authenticate(connection, request)
            if refusal is not None and not isinstance(refusal, Response):
                raise TypeError(f"authenticate must return None or a websockets Response, not {type(refusal).__name__}")
        except Exception:
            metrics.calls_refused.labels(reason="authenticate_failed").inc()
            log.exception("authenticate failed, the caller is refused", bridge=self.bridge)
            return connection.respond(HTTPStatus.INTERNAL_SERVER_ERROR, "Internal Server Error\n")
        if refusal is not None:
            refused("authenticate", _address(connection), bridge=self.bridge, status=str(refusal.status_code))
        return refusal

    def _token_fits(self, given: bytes) -> bool:
        # every token is compared, so that the time taken says nothing
        return any([hmac.compare_digest(given, token.encode()) for token in self.tokens])


def _bearer(request: Request) -> bytes | None:
    """The token that the caller shows, in the bytes that came."""
    # get_all: a header given twice must not raise, and says nothing clear
    given = request.headers.get_all("Authorization")
    if len(given) != 1:
        return None
    value = given[0].encode("latin-1", "surrogateescape")  # the bytes that came, as websockets 15 to 17 show them
    scheme, _, token = value.partition(b" ")
    return token if scheme == b"Bearer" and token else None


def _address(connection: ServerConnection) -> str:
    return str(connection.remote_address[0]) if connection.remote_address else ""
