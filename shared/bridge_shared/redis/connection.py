"""The way in: `connect` gives a `Server`, and everything else in this folder works on one.

A server has one connection for commands (all of a pod's share it, pipelined; in a cluster, one to each node) and
hands out dedicated ones for whatever must not wait behind them: inbox, outbox, heartbeat, offers, blocking waits.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from redis import exceptions

from bridge_shared import logs
from bridge_shared.errors import BridgeError, ConfigError, RedisRefused, RedisUnavailable
from bridge_shared.redis.cluster import Cluster, Node
from bridge_shared.redis.requests import ClusterNodes, OneServer, Requests, key_of
from bridge_shared.redis.scripts import Script
from bridge_shared.redis.url import topology
from bridge_shared.redis.wire import REPLY_SECONDS, Backoff, Lone, Place, ScriptMissing, Topology, Wire

log = logs.get("redis")

REACH_SECONDS: Final = 2.5
"""How long `connect` goes on trying before it gives up."""

AGAIN_SECONDS: Final = 2.5
"""How long something whose outcome is unknown is asked for again before the caller is told."""

OLDEST: Final = (7, 0)
"""Scripts are written for Redis 7.0; Valkey reports 7.2."""


class Server:
    """A Redis that answered: one server, one behind sentinels, or a cluster.

    Made by `connect`; belongs to the event loop it was made in.

    Attributes:
        url: as given, with the password.
        cluster: its nodes, if it is one.
        on_connect: called, in the loop, each time a command connection stands anew, in a cluster also when one was
            lost; what was acknowledged before may have been lost by then (failover, restart).
    """

    def __init__(self, url: str, where: Topology, name: str) -> None:
        self.url = url
        self.cluster = where if isinstance(where, Cluster) else None
        self.on_connect: set[Callable[[], None]] = set()
        self._topology, self._name = where, name
        self._commands: Requests
        if self.cluster is not None:
            self._commands = ClusterNodes(self.cluster, f"{name}:commands", self._changed)
        else:
            self._commands = OneServer(Wire(where, f"{name}:commands"), self._changed)
        self._watch = asyncio.get_running_loop().create_task(where.watch(), name=f"{name} watch")

    async def close(self) -> None:
        """Close the command connections; dedicated ones belong to those who asked for them. Safe to cancel."""
        self._watch.cancel()
        await asyncio.gather(self._watch, self._commands.close(), return_exceptions=True)

    async def execute(self, *args: str | bytes | int) -> Any:
        """One command over the shared connection, as the server replies (bytes, ints, lists), within 1 s.

        Never carried out twice. Must not block in the server: it would hold up everybody's (`blocking` may). In a
        cluster it goes to the node of its first key, and without a key to any.

        Raises:
            RedisUnavailable: no reply; the outcome is unknown. Or the server cannot do it now.
            RedisRefused: the reply was an error.

        Cancelling gives up the wait; the command may be carried out nevertheless.
        """
        return await self._commands.execute(*args)

    async def script(self, script: Script, keys: Sequence[str], args: Sequence[str | bytes | int] = ()) -> Any:
        """Run a script by its hash, or by its text where the server does not hold it yet. Errors as in `execute`."""
        try:
            return await self.execute("EVALSHA", script.sha, len(keys), *keys, *args)
        except ScriptMissing:
            return await self.execute("EVAL", script.source, len(keys), *keys, *args)

    async def execute_again(self, *args: str | bytes | int) -> Any:
        """`execute` for what may be carried out twice: asked for again, for `AGAIN_SECONDS`, while unavailable."""
        return await self._ask_again(lambda: self.execute(*args))

    async def script_again(self, script: Script, keys: Sequence[str], args: Sequence[str | bytes | int] = ()) -> Any:
        """`script` for what may be carried out twice: asked for again, for `AGAIN_SECONDS`, while unavailable."""
        return await self._ask_again(lambda: self.script(script, keys, args))

    async def _ask_again(self, ask: Callable[[], Awaitable[Any]]) -> Any:
        end, backoff = time.monotonic() + AGAIN_SECONDS, Backoff()
        while True:
            try:
                return await ask()
            except RedisUnavailable:
                if time.monotonic() >= end:
                    raise
            await backoff.sleep()

    async def memory_used(self) -> float | None:
        """The share of `maxmemory` that the fullest primary has used, 0 to 1; None: no limit, or hidden from us.

        Raises:
            RedisUnavailable, RedisRefused: it could not be asked now.
        """
        try:
            async with asyncio.timeout(REACH_SECONDS):
                places = await self._topology.primaries()
                all_facts = [await _facts(self._topology, place, f"{self._name}:memory") for place in places]
        except TimeoutError as error:
            raise RedisUnavailable(f"Redis did not say within {REACH_SECONDS} s how full it is") from error
        return max((share for facts in all_facts if (share := _memory_used(facts)) is not None), default=None)

    async def blocking(self, *args: str | bytes | int, seconds: float) -> Any:
        """One command that blocks in the server for up to `seconds`, on a connection made for it.

        Cancelling closes that connection.
        """
        wire = self.dedicated("blocking", key=key_of(args))
        try:
            return await wire.call(*args, seconds=seconds + REPLY_SECONDS)
        finally:
            await wire.close()

    def dedicated(self, purpose: str, *, key: str = "", node: Place | None = None) -> Wire:
        """A connection for one user, not yet open, named `<pod>:<purpose>` in CLIENT LIST.

        Args:
            key: the key it is for, so that it goes to the node that owns it, and follows it.
            node: the node of the cluster that it is for; it does not go anywhere else.
        """
        where = self._topology if self.cluster is None or node is None else Node(self.cluster, node)
        return Wire(where, f"{self._name}:{purpose}", key=key)

    def _changed(self) -> None:
        for callback in tuple(self.on_connect):
            try:
                callback()
            except Exception:
                log.exception("a listener for new connections failed")


async def connect(url: str, *, name: str, setting: str = "REDIS_URL") -> Server:
    """Reach the server and see that it can be relied on; tries for 3 s. Of a cluster, every primary must answer.

    Args:
        url: see `url.py`.
        name: the pod; connections carry it in CLIENT LIST.
        setting: the environment variable that `url` came from, for error messages.

    Raises:
        ConfigError: the URL, the password, the version (7.0 at least) or the eviction policy will not do.
        RedisUnavailable: no answer in time.

    Cancelling closes what was opened.
    """
    where = topology(url, setting)
    # A client's name may hold no spaces or control characters.
    name = re.sub(r"[^!-~]", "_", name)
    for facts in await _reach(where, f"{name}:check", setting):
        _check(facts, setting, cluster=isinstance(where, Cluster))
    return Server(url, where, name)


async def _reach(where: Topology, name: str, setting: str) -> list[dict[str, str]]:
    """What INFO says on every primary; empty if it is forbidden to this user or hidden by a hosted service."""
    backoff = Backoff()
    cause: BridgeError | None = None
    try:
        async with asyncio.timeout(REACH_SECONDS):
            while True:
                try:
                    return [await _facts(where, place, name) for place in await where.primaries()]
                except RedisRefused as error:
                    if isinstance(error.__cause__, exceptions.AuthenticationError):
                        raise ConfigError(
                            setting, "Redis refused the user name or password", "Put the right ones into the URL"
                        ) from error
                    if str(error).startswith("DENIED"):
                        raise ConfigError(
                            setting,
                            "this Redis has no password and so answers only clients on its own machine",
                            "Set a password for it, or protected-mode no",
                        ) from error
                    if "cluster support disabled" in str(error):
                        raise ConfigError(
                            setting,
                            "this server is not part of a cluster",
                            "Write redis:// instead of redis+cluster://",
                        ) from error
                    raise
                except RedisUnavailable as error:
                    cause = error
                    await backoff.sleep()
    except TimeoutError:
        raise RedisUnavailable(f"{setting}: no Redis answered within {REACH_SECONDS} s: {cause}") from cause


async def _facts(where: Topology, place: Place, name: str) -> dict[str, str]:
    wire = Wire(Lone(place), name)
    facts: dict[str, str] = {}
    try:
        for section in ("server", "memory"):
            info = await wire.call("INFO", section)
            text = info.decode("utf-8", "replace") if isinstance(info, bytes) else ""
            facts |= dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    except RedisRefused:
        if not wire.connected:
            raise
        return {}
    except RedisUnavailable as error:
        where.doubt(place, error)
        raise
    finally:
        await wire.close()
    return facts


def _memory_used(facts: dict[str, str]) -> float | None:
    used, limit = facts.get("used_memory", ""), facts.get("maxmemory", "")
    # Hosted services leave lines out, or put words there.
    return int(used) / int(limit) if used.isdecimal() and limit.isdecimal() and int(limit) else None


def _check(facts: dict[str, str], setting: str, *, cluster: bool = False) -> None:
    mode = facts.get("redis_mode")
    if mode == "sentinel":
        raise ConfigError(setting, "this is a sentinel", "Write redis+sentinel://host:port,…/name")
    if mode == "cluster" and not cluster:
        raise ConfigError(setting, "this is a node of a cluster", "Write redis+cluster://host:port")
    version = facts.get("redis_version", "")
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers and (int(numbers[1]), int(numbers[2])) < OLDEST:
        raise ConfigError(setting, f"this is Redis {version}", "Use Redis 7.0 or newer, or Valkey")
    policy = facts.get("maxmemory_policy")
    if policy is None:
        log.warning("Redis hides its eviction policy; it must be noeviction", setting=setting)
    elif policy != "noeviction":
        raise ConfigError(
            setting,
            f"this Redis evicts keys when memory is short (maxmemory-policy {policy}), which would end live calls",
            "Set maxmemory-policy to noeviction",
        )
