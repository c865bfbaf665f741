"""Connections to Redis with our own rules: dedicated, no retries of the client's, and a watchdog.

`Wire` is one connection used by one task: send, then read the reply. Where it goes to, it asks a `Topology` at every
connect, and tells it when a server could not be reached or was the wrong one.

Why not the client's pool: redis-py retries a command ten times by itself (one XADD became two entries while the
caller saw one id), its 5 s socket time-out turns a blocking read into a silent reconnect loop, a full pool delays a
heartbeat, and a command costs four times the CPU (measurements.md). So `Retry(NoBackoff(), 0)`, no socket time-out,
and a deadline here for every reply that is owed. RESP2 everywhere: one shape of reply, and no HELLO that an old
proxy would not know.

This file is where redis-py's errors become ours: `RedisUnavailable` (the outcome is unknown, or the server cannot
work now: ask again) and `RedisRefused` (asking again will not help).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol

from hiredis import pack_command
from redis import exceptions
from redis.asyncio.connection import Connection, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from bridge_shared import logs, metrics
from bridge_shared.errors import BridgeError, RedisRefused, RedisUnavailable
from bridge_shared.redis.replies import Replies, take_over
from bridge_shared.redis.scripts import Script

log = logs.get("redis")

CONNECT_SECONDS: Final = 1.5
"""Reaching the server, TLS, AUTH and a PING. A server that is paused completes the TCP handshake but not this."""

REPLY_SECONDS: Final = 1.0
"""The longest wait for the reply to a command that does not block."""

STALL_GRACE_SECONDS: Final = 0.3
"""When the watchdog itself comes late, this process stood still; replies may lie unread in the socket's buffer."""

BACKOFF_SECONDS: Final = (0.05, 0.5)
"""First and longest pause between two attempts to connect; each is drawn from the upper half of its step."""


@dataclass(eq=False, slots=True)
class Place:
    """One server. A topology has one object for it as long as it is in use.

    Attributes:
        arguments: keyword arguments of redis-py's connection.
        check: what is to be made sure of on connecting: that the server takes itself for a primary; that its cluster
            is whole. Otherwise only that it answers.
        wires: those that go there.
    """

    arguments: dict[str, Any] = field(repr=False)
    tls: bool = False
    check: Literal["", "primary", "cluster"] = ""
    wires: set[Wire] = field(default_factory=set, repr=False)

    @property
    def address(self) -> str:
        return f"{self.arguments['host']}:{self.arguments['port']}"

    def leave(self) -> None:
        """Close every connection to it: it is not the one to ask any more."""
        for wire in tuple(self.wires):
            wire.drop()


class Topology(Protocol):
    """Knows which server to ask for a key. A lone server ignores the key; a cluster does not."""

    async def locate(self, key: str) -> Place:
        """The primary that owns `key` now. Asked at every connect, so a failover is followed.

        Raises:
            RedisUnavailable: nobody there to ask, or nobody owns it now.
            RedisRefused: we are not let in.
        """

    async def primaries(self) -> list[Place]:
        """Every primary, looked up anew. Errors as in `locate`."""

    def doubt(self, place: Place, error: BridgeError) -> bool:
        """`place` could not be reached, broke off, or said that it is the wrong one (`Misplaced`).

        Returns:
            whether the connection that heard this should be closed and made anew elsewhere.
        """

    async def watch(self) -> None:
        """What must be looked after beside the connections, until cancelled; may return at once."""


@dataclass(frozen=True, slots=True)
class Lone:
    """One server at a fixed address."""

    place: Place

    async def locate(self, key: str) -> Place:
        return self.place

    async def primaries(self) -> list[Place]:
        return [self.place]

    def doubt(self, place: Place, error: BridgeError) -> bool:
        return True  # behind a name or a virtual address the next connection may reach another server

    async def watch(self) -> None:
        return


def pack(*args: str | bytes | int) -> bytes:
    """One command in RESP."""
    return pack_command(args)  # type: ignore[arg-type,no-any-return]  # its stub means a tuple of one


ASKING: Final = pack("ASKING")
_CHECKS: Final = {"": pack("PING"), "primary": pack("ROLE"), "cluster": pack("CLUSTER", "INFO")}


# What a server says when it cannot do now what it could do a moment ago. Those without a class
# of their own in redis-py keep their first word.
_OUTAGE_WORDS: Final = ("NOREPLICAS", "MISCONF", "BUSY ", "LOADING")
# What it says when it is no longer the one to ask; ClusterDownError includes MASTERDOWN.
_MISPLACED_CLASSES: Final = (exceptions.ReadOnlyError, exceptions.ClusterDownError, exceptions.AskError)


class Misplaced(RedisUnavailable):
    """The wrong server was asked, so nothing was carried out: READONLY, MASTERDOWN, UNBLOCKED, CLUSTERDOWN, MOVED, ASK.

    Attributes:
        host, port: which server it named instead (MOVED, ASK); an empty host means its own. Port 0: none.
        asking: that one is to be asked for this key only, and only after ASKING: the slot is moving there.
        place: the server named, once the topology has been told.
    """

    def __init__(self, text: str, host: str = "", port: int = 0, *, asking: bool = False) -> None:
        super().__init__(text)
        self.host, self.port, self.asking = host, port, asking
        self.place: Place | None = None


class TryAgain(RedisUnavailable):
    """TRYAGAIN: of the keys of one command some have moved to another server and some have not. Nothing was done."""


class ScriptMissing(RedisRefused):
    """NOSCRIPT: the server does not hold this script (new, emptied, failed over, SCRIPT FLUSH)."""


class StreamIdTooSmall(RedisRefused):
    """XADD with an id that is not above the stream's last one: a duplicate, or a fence."""


def translate(error: BaseException) -> BridgeError:
    """Our error for one of redis-py's, chained by the caller."""
    if isinstance(error, BridgeError):
        return error
    if isinstance(error, exceptions.AuthenticationError):
        return RedisRefused(f"Redis refused the user name or password: {error}")
    if isinstance(error, exceptions.NoScriptError):
        return ScriptMissing(str(error))
    text = str(error)
    if isinstance(error, exceptions.AskError):
        moved = isinstance(error, exceptions.MovedError)
        return Misplaced(f"{'MOVED' if moved else 'ASK'} {text}", error.host, error.port, asking=not moved)
    if isinstance(error, _MISPLACED_CLASSES) or text.startswith("UNBLOCKED"):
        return Misplaced(f"{type(error).__name__}: {text}")
    if isinstance(error, exceptions.TryAgainError):
        return TryAgain(text)
    if isinstance(error, exceptions.ResponseError) and not isinstance(error, exceptions.OutOfMemoryError):
        if text.startswith(_OUTAGE_WORDS):
            return RedisUnavailable(text)
        if "equal or smaller" in text:
            return StreamIdTooSmall(text)
        return RedisRefused(text)
    return RedisUnavailable(f"{type(error).__name__}: {text}")


def count(error: BridgeError) -> None:
    """Add `error` to the metric that an alert watches. A script that is not there yet is sent: no error."""
    if isinstance(error, ScriptMissing):
        return
    metrics.redis_errors.labels(kind="unavailable" if isinstance(error, RedisUnavailable) else "refused").inc()


class Backoff:
    """Pauses that double from 50 to 500 ms, jittered so that a fleet does not return in step."""

    def __init__(self) -> None:
        self._step = 0.0

    def reset(self) -> None:
        self._step = 0.0

    async def sleep(self) -> None:
        """Wait for the next pause. Safe to cancel."""
        first, longest = BACKOFF_SECONDS
        self._step = min(max(first, self._step * 2), longest)
        await asyncio.sleep(random.uniform(self._step / 2, self._step))


class Wire:
    """One dedicated connection. Used by one task at a time, except that one may send while another reads.

    After any failure it is closed; `open` connects again.

    Attributes:
        opened: counts the connections made, so that a user can tell that it is talking over a new one.
        place: where it goes or went last.
        deadline: when it is closed unless `expect` sets another, in the loop's time. Infinite: no reply is owed.
    """

    def __init__(self, topology: Topology, name: str, *, key: str = "") -> None:
        self.name = name
        self._topology, self._key = topology, key
        self._connection: Connection | None = None  # while it is made
        self._replies: Replies | None = None  # once it is
        self._loop: asyncio.AbstractEventLoop
        self.opened = 0
        self.place: Place | None = None
        # Where the next connection goes if a server said ASK; on such a one every command follows an ASKING.
        self._asked: Place | None = None
        self._asking = False
        self.deadline = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf

    @property
    def connected(self) -> bool:
        """Whether there is a connection, also while it is logged in."""
        if self._replies is not None:
            return self._replies.open
        return self._connection is not None and bool(self._connection.is_connected)

    @property
    def writable(self) -> bool:
        """Whether `write` would put commands on their way."""
        return self._replies is not None and self._replies.open and not self._replies.full

    async def open(self) -> None:
        """Connect unless connected; bounded by `CONNECT_SECONDS`.

        Raises:
            RedisUnavailable: nobody there, or nobody who answers.
            RedisRefused: the server does not let us in.

        Cancelling closes what was begun.
        """
        if self.connected:
            return
        await self.close()
        self._loop = asyncio.get_running_loop()
        place, self._asked = self._asked, None
        self._asking = place is not None
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                if place is None:
                    place = await self._topology.locate(self._key)
                await self._connect(place)
        except BaseException as error:
            self.drop()
            if not isinstance(error, Exception):
                raise
            if isinstance(error, TimeoutError):
                ours: BridgeError = RedisUnavailable(f"no answer within {CONNECT_SECONDS} s of connecting")
            else:
                ours = translate(error)
            if place is not None:
                self._topology.doubt(place, ours)
            if ours is error:
                raise
            raise ours from error
        self.opened += 1

    async def _connect(self, place: Place) -> None:
        connection = (SSLConnection if place.tls else Connection)(
            **place.arguments,
            protocol=2,
            decode_responses=False,
            socket_timeout=None,
            socket_connect_timeout=CONNECT_SECONDS,
            retry=Retry(NoBackoff(), 0),
            client_name=self.name or None,
            driver_info=None,
        )
        # Already now, so that the attempt ends when somebody else finds out that this is not the place.
        self._connection, self.place = connection, place
        place.wires.add(self)
        await connection.connect()  # type: ignore[no-untyped-call]
        # A real answer, or a paused server would be sent everything again at every attempt.
        await connection.send_packed_command(_CHECKS[place.check], check_health=False)
        with contextlib.suppress(exceptions.NoPermissionError):
            reply = await connection.read_response()
            if place.check == "primary" and reply[0] != b"master":
                raise Misplaced(f"{place.address} is a {reply[0].decode()} now")
            if place.check == "cluster" and b"cluster_state:ok" not in reply:
                raise Misplaced(f"{place.address} says that the cluster is down")
        self._replies = await take_over(connection, asking=self._asking, refused=self._refused, lost=self._lost)

    def write(self, *commands: bytes) -> None:
        """Write packed commands, whether or not there is room for them: for who knows how many are unanswered.

        Raises:
            RedisUnavailable: the connection is closed.
        """
        replies = self._replies
        if replies is None or not replies.open:
            raise RedisUnavailable("the connection is closed")
        if self._asking:
            commands = tuple(ASKING + command for command in commands)
        replies.write(commands[0] if len(commands) == 1 else b"".join(commands))

    async def send(self, *commands: bytes) -> None:
        """Write packed commands; waits only when the socket's buffer is full. Cancelling closes the connection.

        Raises:
            RedisUnavailable: the connection broke. What arrived is unknown.
        """
        self.write(*commands)
        if self._replies is not None and self._replies.full:
            await self._replies.drained()

    async def reply(self) -> Any:
        """The next reply, as the server sent it. Cancelling closes the connection: its replies would be out of step.

        Raises:
            RedisUnavailable: the connection broke (`connected` is then False), or the server cannot do this now.
            RedisRefused: the reply was an error; the connection goes on.
        """
        if self._replies is None:
            raise RedisUnavailable("the connection is closed")
        return await self._replies.next()

    async def listen(self, hear: Callable[[Any], bool], resumed: Callable[[], None] | None = None) -> None:
        """Give each reply to `hear` the moment it is read, without a task in between, until that returns False.

        Args:
            hear: an error that leaves the connection as it was comes as an exception object. What it raises closes
                the connection and is raised here.
            resumed: called when the connection is `writable` again.

        Raises:
            RedisUnavailable: the connection broke.

        Cancelling closes the connection.
        """
        if self._replies is None:
            raise RedisUnavailable("the connection is closed")
        await self._replies.listen(hear, resumed)

    async def call(self, *args: str | bytes | int, seconds: float = REPLY_SECONDS) -> Any:
        """One command and its reply, connecting first if need be. Errors as in `open` and `reply`.

        Args:
            seconds: how long the reply may take; for a blocking command, more than it blocks.

        Cancelling closes the connection; whether the command was carried out is then unknown.
        """
        await self.open()
        self.expect(seconds)
        try:
            await self.send(pack(*args))
            return await self.reply()
        finally:
            self.deadline = math.inf

    async def calls(self, *commands: bytes, seconds: float = REPLY_SECONDS) -> list[Any]:
        """Several packed commands in one write. A reply that is an error is returned in its place, not raised.

        Raises:
            RedisUnavailable: the connection broke before the last reply.

        Cancelling closes the connection.
        """
        await self.open()
        self.expect(seconds)
        replies: list[Any] = []
        try:
            await self.send(*commands)
            for _ in commands:
                try:
                    replies.append(await self.reply())
                except (RedisUnavailable, RedisRefused) as error:
                    if not self.connected:
                        raise
                    replies.append(error)
            return replies
        finally:
            self.deadline = math.inf

    async def script(self, script: Script, keys: Sequence[str], args: Sequence[str | bytes | int] = ()) -> Any:
        """Run a script by its hash, or by its text where the server does not hold it yet. As `call` otherwise."""
        try:
            return await self.call("EVALSHA", script.sha, len(keys), *keys, *args)
        except ScriptMissing:
            return await self.call("EVAL", script.source, len(keys), *keys, *args)

    def expect(self, seconds: float) -> None:
        """Close the connection unless within `seconds` this is called again, or `deadline` made infinite.

        One lazy timer instead of a time-out around each read: re-armed only when it fires or must fire earlier.
        """
        self.deadline = self._loop.time() + seconds
        if self._timer_at > self.deadline:
            self._arm(self.deadline)

    def drop(self, error: Exception | None = None) -> None:
        """Close at once, discarding what is unsent; a pending read or write fails with `error`."""
        if self._replies is not None:
            self._replies.close(error or RedisUnavailable("the connection was closed by us"))
        elif self._connection is not None:
            _abort(self._connection)

    async def close(self) -> None:
        """Close for good or before another `open`. Safe to cancel."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_at, self.deadline = None, math.inf, math.inf
        if self.place is not None:
            self.place.wires.discard(self)
        self.drop()
        replies, self._connection, self._replies = self._replies, None, None
        if replies is not None:
            await replies.gone.wait()  # else the socket is still open when the loop ends

    def _arm(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_at(at, self._check)

    def _check(self) -> None:
        due, self._timer, self._timer_at = self._timer_at, None, math.inf
        if self.deadline == math.inf or not self.connected:
            return
        now = self._loop.time()
        if now - due > STALL_GRACE_SECONDS:
            self.deadline = max(self.deadline, now + STALL_GRACE_SECONDS)
        if now < self.deadline:
            self._arm(self.deadline)
            return
        self._lost(RedisUnavailable("no reply in time"))

    def _refused(self, error: exceptions.RedisError) -> BridgeError:
        """Our error for a reply that is one; closes the connection with it if that is of no use any more."""
        if not isinstance(error, exceptions.ResponseError):
            return self._lost(error)
        ours = translate(error)
        ours.__cause__ = error
        if isinstance(ours, Misplaced) and self.place is not None and self._topology.doubt(self.place, ours):
            self._asked = ours.place if ours.asking else None
            self.drop(ours)
        return ours

    def _lost(self, error: Exception) -> BridgeError:
        """Our error for what broke the connection, which is closed with it."""
        ours = translate(error)
        if ours is not error:
            ours.__cause__ = error
        self.drop(ours)
        if self.place is not None:
            self._topology.doubt(self.place, ours)
        return ours


def _abort(connection: Connection) -> None:
    """Close what redis-py still reads. Its disconnect() is a coroutine, which a timer cannot call."""
    writer = connection._writer
    connection._reader = connection._writer = None
    if writer is not None:
        writer.transport.abort()
