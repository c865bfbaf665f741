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

from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request, Response

from bridge_shared import logs

log = logs.get("edge.door")

Authenticate = Callable[[ServerConnection, Request], Awaitable[Response | None]]

AUTHENTICATE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Door:
    """What one bridge asks of the edge.

    Attributes:
        bridge: its name, by which workers know it; empty: the caller's path says which, or there is only one.
        host, port: where it listens.
        formats: media formats it takes, most wanted first.
        tokens: any of these as `Authorization: Bearer …` opens the door; empty = no token is asked.
        authenticate: the customer's own check, already safe to await here; it alone decides if given.
    """

    bridge: str
    host: str
    port: int
    formats: tuple[str, ...]
    tokens: tuple[str, ...] = ()
    authenticate: Authenticate | None = None

    @property
    def open(self) -> bool:
        """Whether everybody may come in."""
        return not self.tokens and self.authenticate is None

    async def check(self, connection: ServerConnection, request: Request) -> Response | None:
        """None lets the caller in, a response refuses the upgrade. Cancelling it refuses nothing and is harmless."""
        if self.authenticate is not None:
            return await self._ask_customer(connection, request)
        if self.tokens and not self._token_fits(request):
            log.warning("upgrade refused", remote=str(connection.remote_address), bridge=self.bridge)
            return connection.respond(HTTPStatus.UNAUTHORIZED, "Unauthorized\n")
        return None

    async def _ask_customer(self, connection: ServerConnection, request: Request) -> Response | None:
        assert self.authenticate is not None
        try:
            async with asyncio.timeout(AUTHENTICATE_SECONDS):
                refusal = await self.authenticate(connection, request)
            if refusal is not None and not isinstance(refusal, Response):
                raise TypeError(f"authenticate must return None or a websockets Response, not {type(refusal).__name__}")
        except Exception:
            log.exception("authenticate failed, the caller is refused", bridge=self.bridge)
            return connection.respond(HTTPStatus.INTERNAL_SERVER_ERROR, "Internal Server Error\n")
        return refusal

    def _token_fits(self, request: Request) -> bool:
        # get_all: a header given twice must not raise, and says nothing clear
        given = request.headers.get_all("Authorization")
        if len(given) != 1:
            return False
        value = given[0].encode("latin-1", "surrogateescape")  # the bytes that came, as websockets 15 to 17 show them
        # every token is compared, so that the time taken says nothing
        return any([hmac.compare_digest(value, f"Bearer {token}".encode()) for token in self.tokens])
