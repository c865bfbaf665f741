"""Redis Cluster: which node owns a key's slot, and how that is found out again.

The map comes from CLUSTER SLOTS (of all versions; CLUSTER SHARDS is 7.0's) and is looked up anew before the next use
once it is in doubt: a node could not be reached, or said MOVED or CLUSTERDOWN. The node that MOVED names is asked
first, for it knows.

Commands that touch several keys touch those of one slot only, so while a slot moves to another node they may have to
wait (TRYAGAIN) until all of its keys have.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from redis.crc import key_slot

from bridge_shared.errors import BridgeError, RedisRefused, RedisUnavailable
from bridge_shared.redis.wire import Lone, Misplaced, Place, Wire

LOOK_SECONDS: Final = 0.5
"""How long one node may take to say what it knows of the slots."""

WATCH_SECONDS: Final = 1.0
"""How often the map is looked up while there is trouble."""

TROUBLE_SECONDS: Final = 10.0
"""How long there is trouble after the last doubt."""

Address = tuple[str, int]


class Cluster:
    """The topology of a cluster, shared by all connections of a server.

    Args:
        seeds: nodes to ask first; any will do.
        arguments: of every connection, beside host and port.
    """

    def __init__(self, seeds: Sequence[Address], arguments: Mapping[str, Any], *, tls: bool = False) -> None:
        self._seeds, self._arguments, self._tls = tuple(seeds), dict(arguments), tls
        self._places: dict[Address, Place] = {}
        # Ranges of slots by their first, each with its last and its owner.
        self._firsts: list[int] = []
        self._ranges: list[tuple[int, Place]] = []
        # Whom to ask next, the last one who answered in front.
        self._nodes: deque[Address] = deque(seeds)
        self._doubtful = True
        self._trouble_until = 0.0
        self._looking = asyncio.Lock()

    async def locate(self, key: str) -> Place:
        """Cancelling gives up the look. Commands without a key go to any node."""
        if self._doubtful:
            async with self._looking:
                if self._doubtful:  # whoever looked before us has not cleared it up
                    await self._look()
        slot = key_slot(key.encode())
        at = bisect_right(self._firsts, slot) - 1
        if not key and self._ranges:
            return self._ranges[0][1]
        if at < 0 or slot > self._ranges[at][0]:
            self._doubtful = True
            raise RedisUnavailable(f"no node of the cluster owns slot {slot}")
        return self._ranges[at][1]

    async def primaries(self) -> list[Place]:
        """Those that own slots."""
        self._doubtful = True
        await self.locate("")
        return list(dict.fromkeys(place for _, place in self._ranges))

    def doubt(self, place: Place, error: BridgeError) -> bool:
        self._trouble_until = time.monotonic() + TROUBLE_SECONDS
        if isinstance(error, Misplaced) and error.port:
            address = (error.host or place.arguments["host"], error.port)
            error.place = self._place(address)
            if error.asking:  # the map stands as long as the slot is on its way
                return True
            self._ask(address, last=False)
        elif not self._doubtful:
            # Others may know better than the one that answered last, and any better than this one.
            self._nodes.rotate(-1)
            self._ask((place.arguments["host"], place.arguments["port"]), last=True)
        self._doubtful = True
        return True

    async def watch(self) -> None:
        """Look again every second while there is trouble, for others may wait in vain for a node that was replaced."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            if time.monotonic() < self._trouble_until:
                self._doubtful = True
                with contextlib.suppress(RedisUnavailable, RedisRefused):  # whoever needs a node says so
                    await self.locate("")

    def _place(self, address: Address) -> Place:
        place = self._places.get(address)
        if place is None:
            host, port = address
            arguments = {**self._arguments, "host": host, "port": port}
            place = self._places[address] = Place(arguments, tls=self._tls, check="cluster")
        return place

    def _ask(self, address: Address, *, last: bool) -> None:
        """Put a node at an end of the queue of those to be asked."""
        if address in self._nodes:
            self._nodes.remove(address)
        (self._nodes.append if last else self._nodes.appendleft)(address)

    async def _look(self) -> None:
        self._doubtful = False
        cause: Exception | None = None
        try:
            for _ in range(len(self._nodes)):
                address = self._nodes[0]
                self._nodes.rotate(-1)  # now, for we may be cancelled, and would ask the same silent node each time
                wire = Wire(Lone(Place({**self._arguments, "host": address[0], "port": address[1]}, tls=self._tls)), "")
                try:
                    async with asyncio.timeout(LOOK_SECONDS):
                        self._adopt(address, await wire.call("CLUSTER", "SLOTS"))
                except (TimeoutError, RedisUnavailable, RedisRefused) as error:
                    cause = error
                    continue
                finally:
                    await wire.close()
                return
        except BaseException:
            self._doubtful = True
            raise
        self._doubtful = True
        if isinstance(cause, RedisRefused):
            raise cause
        raise RedisUnavailable(f"no node of the cluster answers: {cause or 'no reply in time'}") from cause

    def _adopt(self, said_by: Address, reply: Any) -> None:
        owners: list[tuple[int, int, Address]] = []
        replicas: list[Address] = []
        try:
            for first, last, owner, *others in reply:
                owners.append((int(first), int(last), _address(owner, said_by)))
                replicas += (_address(other, said_by) for other in others)
        except (TypeError, ValueError, IndexError) as error:
            raise RedisUnavailable("CLUSTER SLOTS cannot be read") from error
        if not owners:
            raise RedisUnavailable("this node belongs to no cluster yet")
        owners.sort()
        former = {place for _, place in self._ranges}
        self._firsts = [first for first, _, _ in owners]
        self._ranges = [(last, self._place(address)) for _, last, address in owners]
        for place in former.difference(place for _, place in self._ranges):
            place.leave()
        primaries = {address for _, _, address in owners}
        for address, place in list(self._places.items()):
            # A node that has no slot yet may be the target of ASK.
            if address not in primaries and not place.wires:
                del self._places[address]
        known = dict.fromkeys((said_by, *primaries, *replicas, *self._seeds))
        kept = [address for address in self._nodes if address in known and address != said_by]
        self._nodes = deque(dict.fromkeys((said_by, *kept, *known)))


@dataclass(frozen=True, slots=True)
class Node:
    """One node of a cluster, as the topology of a connection that serves many keys there."""

    cluster: Cluster
    place: Place

    async def locate(self, key: str) -> Place:
        return self.place

    async def primaries(self) -> list[Place]:
        return [self.place]

    def doubt(self, place: Place, error: BridgeError) -> bool:
        """MOVED and ASK are about one key; the connection is as good as before for all others."""
        self.cluster.doubt(place, error)
        return not (isinstance(error, Misplaced) and error.port)

    async def watch(self) -> None:
        return


def _address(node: Any, said_by: Address) -> Address:
    """Host and port of a node in CLUSTER SLOTS; a host that is not known to it is its own."""
    host, port = node[0], int(node[1])
    if isinstance(host, bytes):
        host = host.decode()
    return (said_by[0] if host in (None, "", "?") else str(host), port)
