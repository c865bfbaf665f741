"""The pods of a fleet: heartbeats, what each says about itself, and calls on offer.

| key | type | content |
|---|---|---|
| `{fleet}:beat` | hash | pod → counter, one up every 250 ms |
| `{fleet}:workers`, `{fleet}:edges` | hash | pod → JSON: load, capacity, agents, draining, version, bridges … |
| `{fleet}:offers` | stream | calls looking for an owner: cid bridge why ee edge owner we witness |

All expire an hour after their last pod. Beside them every pod subscribes to the channel `alive:<pod>`, which the
server closes the moment the process dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import orjson

from bridge_shared import logs, metrics
from bridge_shared.errors import RedisRefused, RedisUnavailable
from bridge_shared.redis import scripts
from bridge_shared.redis.connection import Server
from bridge_shared.redis.liveness import STEP_SECONDS, Watch
from bridge_shared.redis.wire import Backoff, ScriptMissing, Wire, count, pack

log = logs.get("redis")

Role = Literal["edge", "worker"]
Why = Literal["new", "orphan", "handover"]

INFO_SECONDS: Final = 5.0
"""What a pod says about itself is written when it changes, and this often anyhow."""

FLEET_TTL_SECONDS: Final = 3600
"""How long the fleet's keys stay after the last pod wrote them."""

AWAY_SECONDS = 3.0
"""A pod whose heartbeat has not reached Redis for so long should get no new calls."""

SWEEP_SECONDS: Final = 60.0
"""A pod proven silent this long is taken off the lists."""

PING_SECONDS: Final = 1.0
"""How often the liveness subscription is proven to stand."""

OFFER_LOOKBACK_MS: Final = 30_000
"""A worker that starts reads the offers of the last 30 s; stale ones lose their claim."""

OFFERS_MAXLEN: Final = 10_000

BLOCK_MS: Final = 250
WATCHDOG_SECONDS: Final = 1.5


@dataclass(frozen=True, slots=True)
class PodInfo:
    """A pod as the fleet sees it.

    Attributes:
        info: what it says about itself; empty if that cannot be read.
        beat: its counter, None if it has left or was swept.
        silent: seconds for which this observer has proven it silent; 0 unless `Fleet.run` is running here.
        dead: whether this observer takes it for dead.
    """

    pod: str
    role: Role
    info: dict[str, Any]
    beat: int | None
    silent: float
    dead: bool


@dataclass(frozen=True, slots=True)
class Offer:
    """A call that looks for an owner (LINK "Offer"). `owner` and `we` are what the claim must still find."""

    id: str
    cid: str
    bridge: str
    why: str
    ee: int
    edge: str
    owner: str
    we: int
    witness: int


class Fleet:
    """This pod's membership, and its view of the others.

    Attributes:
        watch: who is alive, as observed by `run`.
    """

    def __init__(self, server: Server, fleet: str, pod: str, role: Role, *, subscriptions: bool = True) -> None:
        """`fleet`: the name without braces. `subscriptions`: see `Watch`."""
        self._server, self._pod, self._role = server, pod, role
        tag = f"{{{fleet}}}"
        self._beat, self._workers, self._edges = f"{tag}:beat", f"{tag}:workers", f"{tag}:edges"
        self._offers = f"{tag}:offers"
        self._mine = self._workers if role == "worker" else self._edges
        self._wire = server.dedicated("beat", key=self._beat)
        self.watch = Watch(subscriptions=subscriptions)
        self._beaten_at = -math.inf

    async def run(
        self,
        info: Callable[[], Mapping[str, Any]],
        beat_s: float = STEP_SECONDS,
        on_beat: Callable[[], None] | None = None,
    ) -> None:
        """Beat and observe for ever, through any outage, from the loop it is called in: a stuck loop is a dead pod.

        Args:
            info: what to say about this pod; asked at every beat, must be quick.
            on_beat: called after each look at the others; what it raises is logged.

        Cancelling stops the heartbeat; call `leave` then.
        """
        alive = asyncio.create_task(self._stay_subscribed(), name=f"{self._pod} alive")
        try:
            await self._beats(info, beat_s, on_beat)
        finally:
            alive.cancel()
            try:
                await asyncio.gather(alive, return_exceptions=True)
            finally:
                await self._wire.close()

    @property
    def away(self) -> bool:
        """Whether no heartbeat of this pod has reached Redis for a while."""
        return time.monotonic() > self._beaten_at + AWAY_SECONDS

    async def leave(self) -> None:
        """Take this pod off the lists, after `run` was cancelled. Safe to cancel: others sweep it after a minute."""
        await self._server.script(scripts.SWEEP_POD, [self._beat, self._workers, self._edges], [self._pod, ""])

    async def pods(self) -> dict[str, PodInfo]:
        """Every pod on the lists. Cancelling gives up the wait."""
        beats = _hash(await self._server.execute("HGETALL", self._beat))
        found: dict[str, PodInfo] = {}
        roles: tuple[tuple[Role, str], ...] = (("worker", self._workers), ("edge", self._edges))
        for role, key in roles:
            for pod, text in _hash(await self._server.execute("HGETALL", key)).items():
                beat = int(beats[pod]) if beats.get(pod, "").isdecimal() else None
                found[pod] = PodInfo(pod, role, _info(text), beat, self.watch.silent(pod), self.watch.dead(pod))
        return found

    async def offer(
        self, cid: str, bridge: str, why: Why, ee: int, edge: str, owner: str = "", we: int = 0, witness: int = 0
    ) -> str:
        """Put a call on offer to all workers. Offering it again does no harm. Cancelling gives up the wait."""
        fields: dict[str, str | int] = {
            "cid": cid,
            "bridge": bridge,
            "why": why,
            "ee": ee,
            "edge": edge,
            "owner": owner,
            "we": we,
            "witness": witness,
        }
        flat = [part for pair in fields.items() for part in pair]
        entry = await self._server.script_again(
            scripts.OFFER, [self._offers], [FLEET_TTL_SECONDS, OFFERS_MAXLEN, *flat]
        )
        return str(entry, "ascii")

    async def _beats(
        self, info: Callable[[], Mapping[str, Any]], beat_s: float, on_beat: Callable[[], None] | None
    ) -> None:
        said, said_at = b"", -math.inf
        before = 0
        script_by_text = away = False
        due = time.monotonic()
        while True:
            now = time.monotonic()
            text = _said(info, said)
            say = text if text != said or now - said_at >= INFO_SECONDS else b""
            script = scripts.BEAT
            how = ("EVAL", script.source) if script_by_text else ("EVALSHA", script.sha)
            asked = [pod for pod in self.watch.pods if pod != self._pod]
            commands = [
                pack(*how, 2, self._beat, self._mine, self._pod, say, FLEET_TTL_SECONDS),
                pack("HGETALL", self._beat),
                pack("PUBSUB", "NUMSUB", *(f"alive:{pod}" for pod in asked)),
            ]
            connected, asked_at = self._wire.connected, time.monotonic()
            try:
                replies = await self._wire.calls(*commands)
                if connected:
                    metrics.redis_round_trip_seconds.observe(time.monotonic() - asked_at)
                script_by_text = isinstance(replies[0], ScriptMissing)
                for reply in replies:
                    if isinstance(reply, Exception) and not isinstance(reply, ScriptMissing):
                        raise reply
                if script_by_text:
                    continue
                if say:
                    said, said_at = text, now
                if replies[0] <= before:
                    said_at = -math.inf  # counted anew: what we said is lost, too
                before = replies[0]
                self._beaten_at = time.monotonic()
                if away:
                    log.info("the heartbeat goes on")
                    away = False
                numsub = replies[2]
                self.watch.poll(
                    time.monotonic(),
                    {pod: int(n) for pod, n in _hash(replies[1]).items() if n.isdecimal()},
                    {pod: int(numsub[2 * i + 1]) for i, pod in enumerate(asked)},
                    self._wire.opened,
                )
                await self._sweep()
            except (RedisUnavailable, RedisRefused) as error:
                # Whatever it was (NOREPLICAS from a primary that was cut off), see whether another server is the one.
                self._wire.drop()
                self.watch.failed(time.monotonic())
                count(error)
                if not away:
                    log.warning("the heartbeat does not reach Redis", cause=error)
                    away = True
            if on_beat is not None:
                try:
                    on_beat()
                except Exception:
                    log.exception("a heartbeat's listener failed")
            due = max(due + beat_s, time.monotonic())
            await asyncio.sleep(due - time.monotonic())

    async def _sweep(self) -> None:
        for pod in self.watch.pods:
            if pod != self._pod and self.watch.silent(pod) >= SWEEP_SECONDS:
                counter = self.watch.counter(pod)
                await self._wire.script(
                    scripts.SWEEP_POD,
                    [self._beat, self._workers, self._edges],
                    [pod, "" if counter is None else counter],
                )
                self.watch.forget(pod)

    async def _stay_subscribed(self) -> None:
        """Hold `alive:<pod>` on a connection of its own, pinged so that a half-open one is replaced."""
        wire = self._server.dedicated("alive", key=self._beat)
        backoff = Backoff()
        try:
            while True:
                with contextlib.suppress(RedisUnavailable, RedisRefused):  # the heartbeat beside it has said so
                    await wire.call("SUBSCRIBE", f"alive:{self._pod}")
                    backoff.reset()
                    while True:
                        await asyncio.sleep(PING_SECONDS)
                        # Others look for it where the counters are, and those move with their slot.
                        if not wire.connected or (self._wire.connected and self._wire.place is not wire.place):
                            break
                        await wire.call("PING", seconds=WATCHDOG_SECONDS)
                await wire.close()
                await backoff.sleep()
        finally:
            await wire.close()


class Offers:
    """The reader of `{fleet}:offers`: every worker reads all, each with its own cursor.

    Args:
        on_offer: called in the loop; what it raises is logged.
    """

    def __init__(self, server: Server, fleet: str, on_offer: Callable[[Offer], None]) -> None:
        self._key = f"{{{fleet}}}:offers"
        self._on_offer = on_offer
        self._wire = server.dedicated("offers", key=self._key)
        self._cursor = ""
        self._last = (0, 0)
        self._look_at = 0.0

    async def run(self) -> None:
        """Read for ever, through any outage, from 30 s back. Cancelling stops it between two offers."""
        backoff = Backoff()
        away = False
        try:
            while True:
                try:
                    await self._read(self._wire)
                    backoff.reset()
                    if away:
                        log.info("reading offers again")
                        away = False
                except (RedisUnavailable, RedisRefused) as error:
                    count(error)
                    if not away:
                        log.warning("cannot read offers", cause=error)
                        away = True
                    await backoff.sleep()
        finally:
            await self._wire.close()

    async def _read(self, wire: Wire) -> None:
        if not self._cursor:
            seconds, micros = await wire.call("TIME")
            self._cursor = f"{max(0, int(seconds) * 1000 + int(micros) // 1000 - OFFER_LOOKBACK_MS)}-0"
        if time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + 1.0
            state = await wire.script(scripts.STREAM_STATE, [self._key])
            last = _id(state[0].decode()) if state else (0, 0)
            # Gone, or begun anew behind a clock that went back: everything in it is news.
            if not state or last < self._last:
                self._cursor = "0-0"
            self._last = last
        reply = await wire.call(
            "XREAD",
            "COUNT",
            100,
            "BLOCK",
            BLOCK_MS,
            "STREAMS",
            self._key,
            self._cursor,
            seconds=BLOCK_MS / 1000 + WATCHDOG_SECONDS,
        )
        for entry, flat in reply[0][1] if reply else ():
            self._cursor = entry.decode()
            offer = _offer(self._cursor, _hash(flat))
            if offer is None:
                continue
            try:
                self._on_offer(offer)
            except Exception:
                log.exception("an offer could not be handled", conversation_id=offer.cid)


def _offer(entry: str, fields: Mapping[str, str]) -> Offer | None:
    """The offer, or None if it lacks what every version of this program writes."""
    try:
        return Offer(
            entry,
            fields["cid"],
            fields["bridge"],
            fields["why"],
            int(fields["ee"]),
            fields["edge"],
            fields["owner"],
            int(fields["we"]),
            int(fields["witness"]),
        )
    except (KeyError, ValueError):
        log.warning("an offer cannot be read", entry=entry)
        return None


def _hash(flat: Any) -> dict[str, str]:
    return {
        flat[i].decode("utf-8", "replace"): flat[i + 1].decode("utf-8", "replace") for i in range(0, len(flat) - 1, 2)
    }


def _info(text: str) -> dict[str, Any]:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def _said(info: Callable[[], Mapping[str, Any]], before: bytes) -> bytes:
    """What the pod says now; what it said before if that cannot be had: a fault there must not stop the heart."""
    try:
        return orjson.dumps(dict(info()), default=str, option=orjson.OPT_NON_STR_KEYS)
    except Exception:
        log.exception("what this pod says about itself cannot be read")
        return before or b"{}"


def _id(text: str) -> tuple[int, int]:
    ms, _, seq = text.partition("-")
    return int(ms), int(seq or 0)
