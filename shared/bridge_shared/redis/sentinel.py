"""Redis Sentinel: which server is the primary, and how a failover is noticed.

Sentinels are asked in turn, the one that answered last first. What they say is checked: a server that does not take
itself for a primary is not used (`Place.check`). They are asked every second as well, because a former primary that
was cut off or stood still goes on accepting writes until it is told, for about 10 s, and they are all lost:
the moment another is found to be primary, every connection to the former one is closed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Final

from redis import exceptions

from bridge_shared import logs
from bridge_shared.errors import BridgeError, RedisRefused, RedisUnavailable
from bridge_shared.redis.wire import Lone, Place, Wire

log = logs.get("redis")

ASK_SECONDS: Final = 0.4
"""How long one sentinel may take to answer."""

WATCH_SECONDS: Final = 1.0
"""How often they are asked whether the primary is still the same."""

Address = tuple[str, int]


class Sentinel:
    """The topology of a primary that sentinels watch over.

    Args:
        sentinels: all of them.
        name: what they call the primary.
        arguments: of connections to the primary, beside host and port. Sentinels are asked without user and
            password, and with these if they insist.
    """

    def __init__(
        self, sentinels: Sequence[Address], name: str, arguments: Mapping[str, Any], *, tls: bool = False
    ) -> None:
        self._name, self._arguments, self._tls = name, dict(arguments), tls
        self._login = {key: arguments[key] for key in ("username", "password") if arguments.get(key)}
        common = {key: value for key, value in arguments.items() if key not in ("username", "password", "db")}
        self._sentinels = deque(Place({**common, "host": host, "port": port}, tls=tls) for host, port in sentinels)
        self._places: dict[Address, Place] = {}

    async def locate(self, key: str) -> Place:
        """Cancelling gives up the question."""
        causes: list[BridgeError] = []
        for _ in range(len(self._sentinels)):
            sentinel = self._sentinels[0]
            self._sentinels.rotate(-1)  # now, for we may be cancelled, and would ask the same silent one each time
            try:
                async with asyncio.timeout(ASK_SECONDS):
                    address = await self._ask(sentinel)
            except TimeoutError:
                causes.append(RedisUnavailable(f"{sentinel.address} is silent"))
            except (RedisUnavailable, RedisRefused) as error:
                causes.append(error)
            else:
                self._sentinels.rotate(1)
                return self._place(address)
        if all(isinstance(cause.__cause__, exceptions.AuthenticationError) for cause in causes):
            raise causes[-1]
        raise RedisUnavailable(f"no sentinel knows the primary: {'; '.join(map(str, causes))}")

    async def primaries(self) -> list[Place]:
        return [await self.locate("")]

    def doubt(self, place: Place, error: BridgeError) -> bool:
        """This sentinel may not know yet what another does."""
        self._sentinels.rotate(-1)
        return True

    async def watch(self) -> None:
        """Look for a new primary every second. Cancelling stops it."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            try:
                place = await self.locate("")
                if len(self._places) > 1:
                    await self._confirm(place)
            except (RedisUnavailable, RedisRefused):
                continue  # whoever needs the primary says so

    async def _confirm(self, place: Place) -> None:
        """Leave every other server, once `place` has said that it is the primary."""
        wire = Wire(Lone(place), "")
        try:
            await wire.open()
        finally:
            await wire.close()
        for address, other in list(self._places.items()):
            if other is not place:
                log.info("Redis has another primary now", former=other.address, primary=place.address)
                del self._places[address]
                other.leave()

    async def _ask(self, sentinel: Place) -> Address:
        wire = Wire(Lone(sentinel), "")
        try:
            reply = await wire.call("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._name)
        except RedisRefused as error:
            if not isinstance(error.__cause__, exceptions.AuthenticationError) or not self._login:
                raise
            if self._login.items() <= sentinel.arguments.items():
                raise
            sentinel.arguments.update(self._login)
            return await self._ask(sentinel)
        finally:
            await wire.close()
        if reply is None:
            raise RedisUnavailable(f"it knows no primary named {self._name!r}")
        return reply[0].decode(), int(reply[1])

    def _place(self, address: Address) -> Place:
        place = self._places.get(address)
        if place is None:
            host, port = address
            arguments = {**self._arguments, "host": host, "port": port}
            place = self._places[address] = Place(arguments, tls=self._tls, check="primary")
        return place
