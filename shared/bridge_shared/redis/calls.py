"""What Redis knows about calls, and the scripts that change it.

| key | type | content | lives |
|---|---|---|---|
| `call:{cid}` | hash | `CallRecord`, field by field | 4 h from the last `touch`, then as the transcript |
| `call:{cid}:transcript` | stream | per utterance, id `<we>-<seq>`: role, content, at, turn | `BRIDGE_TRANSCRIPT_TTL` |
| `call:{cid}:heard` | hash | entry id → `<heard_ms> <0 or 1: interrupted>[ <turn of the rest>]` | as the transcript |
| `call:{cid}:functions` | stream | requests and responses of function calls, ids likewise | until the finish is done |
| `{fleet}:calls` | zset | live calls → time of entry, ms | 4 h from the last entry or touch |
| `{fleet}:ended` | zset | calls owed their finish → time of the next try, ms; infinity: given up | 31 days |

Braces are literal: one call lies in one hash slot, the fleet in another. No script spans both, so

* a call is created first and indexed then; a crash in between leaves an offered call that nobody was told of and
  that expires; `touch` indexes again;
* a call is ended first (`finish` = owed), then enters `{fleet}:ended`, then leaves `{fleet}:calls`; whoever finds an
  ended call in the index (`sweep`, or a repeated `end`) takes the remaining steps;
* a finish is recorded in the call first, then leaves `{fleet}:ended`; whoever finds it there is told that it is done.
  One that is given up is marked in the call first, then put at the end of time; whoever finds it due does that.

Changes that must not be made twice carry a token, so that they can be asked for again when the outcome is unknown.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Literal

import orjson

from bridge_shared.errors import CallUnknown, Fenced, RedisRefused
from bridge_shared.redis import scripts
from bridge_shared.redis.connection import Server

State = Literal["offered", "active", "ended"]
Reason = Literal["transfer", "hangup", "error", "ended"]
Finish = Literal["", "none", "owed", "done", "given_up"]

LIVE_SECONDS: Final = 4 * 3600
"""Safety TTL of a live call: more than Deepgram's 2 h limit of a session, twice."""

FINISH_SECONDS: Final = 25 * 3600
"""An ended call whose finish is owed stays at least this long: finishing is retried for 24 h."""

ENDED_INDEX_SECONDS: Final = 31 * 24 * 3600
"""`{fleet}:ended` expires this long after its last change."""

_CID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")

SOME: Final = 1000
"""Entries of a long stream that are looked at in one go."""

YOUNG_MS: Final = 10_000
"""Index entries younger than this are not swept: their call may be being written."""

SUMMARY: Final = (
    "state reason detail bridge caller bot media_format play_format created_ms active_ms ended_ms session_id last "
    "finish finished_ms finish_attempts finisher owner we end_token handoff"
)
"""What is left of a call when its finish is done, beside which handlers succeeded."""


@dataclass(frozen=True, slots=True)
class CallRecord:
    """One call as it stands in Redis. Fields that are not there are empty; unreadable numbers are 0.

    Attributes:
        reason: one of the SDK's four, once ended; `detail` says more in a word or a code.
        media_format: of the caller's audio.
        play_format: of the agent's, if that is another; empty: the same.
        ee: epoch of the attachment `edge`; `we`: epoch of the owner `owner`. 0: there has been none.
        created_at: ISO 8601, UTC, by Redis's clock; so `active_at`, `ended_at`.
        start: the parameters of the conversation's start, from `session.initiate` and the `start` activity.
        settings: the agent's settings as amended, without secrets; None: never amended.
        finish: "" while live; `none`: nothing is owed because the call was never active.
        tries: how often the finish was begun, by whomever; `tries_reopened`: of these, before it was opened again.
        finish_error: what failed in its last try; empty when it is done.
        handled: the handlers whose success is recorded.
        raw: every field as stored.
    """

    cid: str
    state: str
    reason: str
    detail: str
    bridge: str
    caller: str = field(repr=False)
    bot: str
    media_format: str
    play_format: str
    edge: str
    ee: int
    owner: str
    we: int
    created_at: str
    active_at: str
    ended_at: str
    start: dict[str, Any] = field(repr=False)
    settings: dict[str, Any] | None = field(repr=False)
    session_id: str
    finish: str
    finisher: str
    tries: int
    tries_reopened: int
    finish_error: str
    handled: frozenset[str]
    raw: dict[str, str] = field(repr=False)

    @property
    def leaving(self) -> dict[str, Any] | None:
        """How the call is to be hung up or transferred, as its owner has written it; None unless that was asked for."""
        return _json(self.raw.get("leaving"))

    @property
    def duration_ms(self) -> int:
        """From active to ended, by Redis's clock; 0 unless both have been."""
        active, ended = _int(self.raw.get("active_ms")), _int(self.raw.get("ended_ms"))
        return max(0, ended - active) if active and ended else 0


@dataclass(frozen=True, slots=True)
class Attached:
    """What `attach` found.

    Attributes:
        status: `created`, `attached`; or, nothing having changed: `unknown`, `ended`, `live` (asked to create a call
            that is live).
        ee: our new epoch; with `live` or `ended` the stored one.
        owner, we: the other side, empty and 0 if there is none yet.
        former_edge, former_ee: whom we replaced; send it GONE.
    """

    status: Literal["created", "attached", "unknown", "ended", "live"]
    ee: int = 0
    owner: str = ""
    we: int = 0
    record: CallRecord | None = None
    former_edge: str = ""
    former_ee: int = 0


@dataclass(frozen=True, slots=True)
class Claimed:
    """A claim that won: our epoch, and the edge to say HELLO to."""

    we: int
    edge: str
    ee: int
    record: CallRecord


@dataclass(frozen=True, slots=True)
class Ended:
    """How the call ended.

    Attributes:
        first: whether it was this request that ended it; if not, `reason` and `detail` are the first one's.
        finish: `owed` if handlers must hear of it, `none` if the call was never active.
    """

    first: bool
    reason: str
    detail: str
    finish: str


@dataclass(frozen=True, slots=True)
class Line:
    """One utterance. `heard_ms` is None until it is known how much of it the caller heard.

    `rest`: the turn in which the part behind `heard_ms` is played, since the caller came back by another edge; it is
    empty when there is none, or when that is over.
    """

    id: str
    role: str
    content: str
    at: str
    turn: str
    heard_ms: int | None = None
    interrupted: bool = False
    rest: str = ""

    @property
    def fields(self) -> dict[str, str]:
        """The fields of its entry."""
        return {"role": self.role, "content": self.content, "at": self.at, "turn": self.turn}


@dataclass(frozen=True, slots=True)
class CallKeys:
    """The keys of one call, all in its slot."""

    call: str
    transcript: str
    heard: str
    functions: str
    commands: str

    @classmethod
    def of(cls, cid: str) -> CallKeys:
        """
        Raises:
            CallUnknown: no call can have this id. A brace in it would move the keys to another slot.
        """
        if not _CID.fullmatch(cid):
            raise CallUnknown(cid)
        call = f"call:{{{cid}}}"
        return cls(call, f"{call}:transcript", f"{call}:heard", f"{call}:functions", f"{call}:commands")


class Calls:
    """Every question and change about calls. Errors everywhere: `RedisUnavailable`, `RedisRefused`.

    Cancelling any of these gives up the wait; the change may have been made. All may be asked again.
    """

    def __init__(self, server: Server, fleet: str, *, transcript_ttl: int) -> None:
        """`fleet`: the name without braces. `transcript_ttl`: seconds from the end of the call, 0 = none."""
        self._server = server
        self._retention = transcript_ttl
        self._index = f"{{{fleet}}}:calls"
        self._ended = f"{{{fleet}}}:ended"
        self._offers = f"{{{fleet}}}:offers"

    # Beginning, attaching, owning

    async def attach(self, cid: str, *, edge: str, witness: int = 0, new: Mapping[str, Any] | None) -> Attached:
        """Make `edge` the holder of the caller's socket, with an epoch above every earlier one.

        Args:
            witness: the highest edge epoch of this call that the edge has seen.
            new: for `session.initiate`, the call's first fields (`bridge`, `caller`, `bot`, `media_format`, ...);
                None for a resume.
        """
        keys, token = CallKeys.of(cid), secrets.token_hex(8)
        if new is not None:
            first, _ = _fields(new)
            reply = await self._server.script_again(
                scripts.CREATE, [keys.call], [edge, witness, token, LIVE_SECONDS, *first]
            )
        else:
            reply = await self._server.script_again(scripts.ATTACH, [keys.call], [edge, witness, token, LIVE_SECONDS])
        status = _text(reply[0])
        record = _record(cid, reply[1]) if len(reply) > 1 else None
        if status in ("created", "attached"):
            await self._server.script_again(scripts.INDEX, [self._index], [cid, LIVE_SECONDS])
        former = (_text(reply[2]), _int(reply[3])) if len(reply) > 3 else ("", 0)
        return Attached(
            status,  # type: ignore[arg-type]  # the words of the two scripts
            ee=record.ee if record else 0,
            owner=record.owner if record else "",
            we=record.we if record else 0,
            record=record,
            former_edge=former[0],
            former_ee=former[1],
        )

    async def claim(self, cid: str, *, worker: str, seen_owner: str, seen_we: int, witness: int = 0) -> Claimed | None:
        """Become the owner, if it is still `seen_owner` with `seen_we` ("" and 0: nobody).

        From then on the former owner's transcript and function entries are refused by Redis.

        Args:
            witness: the highest worker epoch of this call that anyone has seen.

        Returns:
            None: somebody else was first, or the call has ended or is unknown.
        """
        keys = CallKeys.of(cid)
        reply = await self._server.script_again(
            scripts.CLAIM,
            [keys.call, keys.transcript, keys.functions],
            [worker, seen_owner, seen_we, witness, secrets.token_hex(8), LIVE_SECONDS],
        )
        if reply is None:
            return None
        record = _record(cid, reply)
        return Claimed(record.we, record.edge, record.ee, record)

    async def activate(self, cid: str, *, we: int, session_id: str) -> bool:
        """The agent is ready: the call becomes active. False: it has ended, or is not ours any more."""
        return bool(await self._server.script_again(scripts.ACTIVATE, [CallKeys.of(cid).call], [we, session_id]))

    async def amend(self, cid: str, *, we: int, fields: Mapping[str, Any]) -> bool:
        """Write fields of a live call as its owner; None deletes one, a dict or list is stored as JSON.

        Returns:
            False: it has ended, or is not ours any more; nothing was written.
        """
        kept, gone = _fields(fields)
        return bool(
            await self._server.script_again(scripts.AMEND, [CallKeys.of(cid).call], [we, len(gone), *gone, *kept])
        )

    async def touch(self, cid: str) -> bool:
        """Renew the safety TTLs of a live call and see that it is indexed; once a minute by whoever holds it."""
        keys = CallKeys.of(cid)
        live = await self._server.script_again(
            scripts.TOUCH, [keys.call, keys.transcript, keys.heard, keys.functions], [LIVE_SECONDS]
        )
        if live:
            await self._server.script_again(scripts.INDEX, [self._index], [cid, LIVE_SECONDS])
        return bool(live)

    async def restore(
        self,
        cid: str,
        fields: Mapping[str, Any],
        *,
        owner: str = "",
        we: int = 0,
        edge: str = "",
        ee: int = 0,
    ) -> str:
        """Write what we know about a live call into a Redis that lost it.

        The higher epoch of each side stands; other fields are only filled in where they are missing; an ended call
        is left alone. So edge and worker may both do this, in any order. `fields["state"]` may be `active`.

        Returns:
            the state afterwards.
        """
        given, _ = _fields(fields)
        state = _text(
            await self._server.script_again(
                scripts.RESTORE, [CallKeys.of(cid).call], [LIVE_SECONDS, owner, we, edge, ee, *given]
            )
        )
        if state != "ended":
            await self._server.script_again(scripts.INDEX, [self._index], [cid, LIVE_SECONDS])
        return state

    # Ending, finishing

    async def end(
        self,
        cid: str,
        *,
        reason: str,
        detail: str,
        last: str = "",
        we: int | None = None,
        ee: int | None = None,
        finisher: str = "",
        report: bool = False,
    ) -> Ended:
        """End the call unless it has ended; the first reason stands.

        Args:
            reason: one of the SDK's four.
            detail: a word or a code, for people and logs (`lost`, `abandoned`, Deepgram's code).
            last: id of the last transcript entry, which a finisher waits for.
            we: end it only as owner with this epoch.
            ee: end it only if the attachment has this epoch still.
            finisher: who runs the handlers next; that is the first try.
            report: handlers hear of the end even if the call was never active.

        Raises:
            Fenced: `we` was given and somebody else owns the call now, or `ee` and somebody else has the caller.
            CallUnknown: there is no such call.
        """
        keys = CallKeys.of(cid)
        status, *rest = await self._server.script_again(
            scripts.END,
            [keys.call, keys.transcript, keys.heard, keys.functions],
            [
                reason,
                detail,
                last,
                "" if we is None else we,
                finisher,
                secrets.token_hex(8),
                max(self._retention, FINISH_SECONDS),
                self._retention,
                SUMMARY,
                int(report),
                "" if ee is None else ee,
            ],
        )
        if status == b"fenced":
            raise Fenced(cid)
        if status == b"unknown":
            raise CallUnknown(cid)
        stands, why, finish = map(_text, rest)
        await self._file(cid, finish)
        return Ended(status == b"first", stands, why, finish)

    async def due(self, page: int = 1000) -> list[str]:
        """All calls whose finish is owed and due, longest due first. Of what leaves the list meanwhile others may take
        the place, and be missed until the next time."""
        found: list[str] = []
        while True:
            part = await self._server.script_again(scripts.DUE, [self._ended], [page, 0, len(found)])
            found += map(_text, part)
            if len(part) < page:
                return list(dict.fromkeys(found))

    async def claim_finish(self, cid: str, *, worker: str, seen_finisher: str) -> CallRecord | None:
        """Become the finisher, if it is still `seen_finisher`; raises the epoch first unless `worker` is the owner.

        Returns:
            the call, with the handlers that have succeeded already (`handled`). None: somebody else is at it, or
            nothing is owed; in the latter case it is taken off the list.
        """
        keys = CallKeys.of(cid)
        reply = await self._server.script_again(
            scripts.CLAIM_FINISH,
            [keys.call, keys.transcript, keys.functions],
            [worker, seen_finisher, secrets.token_hex(8), FINISH_SECONDS],
        )
        if reply is None:
            record = await self.read(cid)
            if record is None or record.finish in ("done", "none"):
                await self._server.execute_again("ZREM", self._ended, cid)
            return None
        return _record(cid, reply)

    async def handled(self, cid: str, handler: str, *, finisher: str) -> bool:
        """Record that a handler has succeeded. False: somebody else finishes the call now."""
        return bool(await self._server.script_again(scripts.HANDLED, [CallKeys.of(cid).call], [finisher, handler]))

    async def keep_data(self, cid: str, data: bytes, *, finisher: str) -> bool:
        """Write `Session.data` of an ended call. False: somebody else finishes it now, or it is finished."""
        return await self._keep(cid, "data", data, finisher)

    async def keep_handoff(self, cid: str, handoff: Mapping[str, Any], *, finisher: str) -> bool:
        """Write what was to be stored before a transfer, if the call has ended meanwhile. False: as in `keep_data`."""
        return await self._keep(cid, "handoff", orjson.dumps(handoff), finisher)

    async def _keep(self, cid: str, name: str, value: bytes, finisher: str) -> bool:
        return bool(await self._server.script_again(scripts.KEEP, [CallKeys.of(cid).call], [finisher, name, value]))

    async def failed(self, cid: str, error: str, *, finisher: str) -> None:
        """Note what failed in the last try of the finish, for people; kept until it is done, if it is ours still."""
        await self._server.script_again(scripts.FINISH_FAILED, [CallKeys.of(cid).call], [finisher, error])

    async def release_finish(self, cid: str, *, finisher: str) -> None:
        """Leave the finish to others, if it is ours still."""
        await self._server.script_again(scripts.RELEASE_FINISH, [CallKeys.of(cid).call], [finisher])

    async def postpone(self, cid: str, seconds: float) -> None:
        """The next try of the finish is due in `seconds`."""
        await self._server.script_again(
            scripts.POSTPONE, [self._ended], [cid, int(seconds * 1000), ENDED_INDEX_SECONDS]
        )

    async def give_up(self, cid: str) -> None:
        """No more tries: marked in the call, listed by `unfinished`, until `reopen`."""
        if await self._finished(cid, "given_up", ()):
            await self._server.script_again(scripts.POSTPONE, [self._ended], [cid, "inf", ENDED_INDEX_SECONDS])

    async def reopen(self, cid: str) -> bool:
        """Try the finish again, now and then for as long as a new one. False: there is nothing to finish."""
        keys = CallKeys.of(cid)
        owed = await self._server.script_again(
            scripts.REOPEN_FINISH, [keys.call, keys.transcript, keys.heard], [FINISH_SECONDS]
        )
        if owed:
            await self._server.script_again(scripts.POSTPONE, [self._ended], [cid, 0, ENDED_INDEX_SECONDS])
        return bool(owed)

    async def finished(self, cid: str, handlers: Iterable[str] = ()) -> None:
        """The finish is done: the call shrinks to its summary and leaves `{fleet}:ended`.

        Args:
            handlers: those whose success is still to be recorded.
        """
        await self._finished(cid, "done", handlers)
        await self._server.execute_again("ZREM", self._ended, cid)

    async def unfinished(self) -> dict[str, float]:
        """Calls owed their finish → seconds until the next try by our clock; infinity: given up."""
        flat = await self._server.execute_again("ZRANGE", self._ended, 0, -1, "WITHSCORES")
        now = time.time() * 1000
        return {_text(flat[i]): (float(flat[i + 1]) - now) / 1000 for i in range(0, len(flat), 2)}

    async def count_unfinished(self) -> tuple[int, int]:
        """How many calls are owed their finish, and for how many it was given up. Costs the same however many."""
        owed = await self._server.execute("ZCOUNT", self._ended, "-inf", "(inf")
        given_up = await self._server.execute("ZCOUNT", self._ended, "inf", "inf")
        return int(owed), int(given_up)

    async def sweep(self) -> int:
        """Repair what a crash left between the two slots; once a minute by anybody.

        Returns:
            how many index entries were put right.
        """
        repaired = 0
        for cid, (state, finish) in await self._states(
            await self._server.script_again(scripts.DUE, [self._index], [-1, YOUNG_MS, 0])
        ):
            if state is None:
                await self._server.execute_again("ZREM", self._index, cid)
            elif state == b"ended":
                await self._file(cid, _text(finish))
            else:
                continue
            repaired += 1
        start = 0
        # in portions: a day without a CRM owes many, and heart beats share the connection
        while some := await self._server.execute_again("ZRANGE", self._ended, start, start + SOME - 1):
            for cid, (_, finish) in await self._states(some):
                stays = finish in (b"owed", b"given_up")
                if stays or not await self._server.execute_again("ZREM", self._ended, cid):
                    start += 1
                else:
                    repaired += 1
        return repaired

    async def forget(self, cid: str) -> bool:
        """Delete everything about a call, live or not, its offers too; frames in inboxes are gone when they have been
        read, or a minute after their reader died. False: there was nothing."""
        keys = CallKeys.of(cid)
        there = await self._server.execute_again(
            "DEL", keys.call, keys.transcript, keys.heard, keys.functions, keys.commands
        )
        await self._server.execute_again("ZREM", self._index, cid)
        await self._server.execute_again("ZREM", self._ended, cid)
        await self._forget_offers(cid)
        return bool(there)

    async def _forget_offers(self, cid: str) -> None:
        since = "-"
        while entries := await self._server.execute_again("XRANGE", self._offers, since, "+", "COUNT", SOME):
            of_call = [entry for entry, fields in entries if _pairs(fields).get("cid") == cid]
            if of_call:
                await self._server.execute_again("XDEL", self._offers, *of_call)
            since = f"({_text(entries[-1][0])}"

    # Reading

    async def read(self, cid: str) -> CallRecord | None:
        """The call, or None if there is none."""
        flat = await self._server.execute_again("HGETALL", CallKeys.of(cid).call)
        return _record(cid, flat) if b"state" in flat[::2] else None

    async def readable(self, cid: str) -> CallRecord | None:
        """As `read`, for what a list names: None also if no call can have this id, or something else than a call stands
        under it. One odd key is to hide no other call."""
        try:
            return await self.read(cid)
        except CallUnknown:
            return None
        except RedisRefused as error:
            if not _wrong_type(error):
                raise
            return None

    async def live(self) -> list[str]:
        """The calls in the index, oldest first."""
        return [_text(cid) for cid in await self._server.execute_again("ZRANGE", self._index, 0, -1)]

    async def live_page(self, limit: int, after: tuple[int, str] = (0, "")) -> list[tuple[int, str]]:
        """At most so many calls in the index, oldest first, as (time of entry in ms, cid): those behind `after`, which
        need not be there any more."""
        since, _ = after
        found: list[tuple[int, str]] = []
        offset = 0
        while len(found) < limit:  # more than one round if many are of the same millisecond
            flat = await self._server.execute_again(
                "ZRANGE", self._index, since, "+inf", "BYSCORE", "LIMIT", offset, limit, "WITHSCORES"
            )
            some = [(int(float(flat[i + 1])), _text(flat[i])) for i in range(0, len(flat), 2)]
            found += [each for each in some if each > after]
            offset += len(some)
            if len(some) < limit:
                break
        return found[:limit]

    async def live_count(self) -> int:
        """How many calls are in the index."""
        return int(await self._server.execute_again("ZCARD", self._index))

    async def transcript(self, cid: str, after: str = "") -> list[Line]:
        """The utterances in order, with what is known about how much of each was heard.

        Args:
            after: id of the one behind which to begin; it need not be there any more.
        """
        keys = CallKeys.of(cid)
        entries = await self._server.execute_again("XRANGE", keys.transcript, f"({after}" if after else "-", "+")
        if not entries:
            return []
        try:
            heard = _pairs(await self._server.execute_again("HGETALL", keys.heard))
        except RedisRefused:  # something else stands under that name: the figures are lost, the lines are not
            heard = {}
        lines = []
        for entry, flat in entries:
            fields = _pairs(flat)
            ms, cut, rest = (*heard.get(_text(entry), "").split(" "), "", "")[:3]
            lines.append(
                Line(
                    id=_text(entry),
                    role=fields.get("role", ""),
                    content=fields.get("content", ""),
                    at=fields.get("at", ""),
                    turn=fields.get("turn", ""),
                    heard_ms=_int(ms) if ms else None,
                    interrupted=cut == "1",
                    rest=rest,
                )
            )
        return lines

    async def entries(self, key: str) -> list[tuple[str, dict[str, str]]]:
        """All entries of a fenced stream, as `FencedStream` takes them for its history."""
        return [
            (_text(entry), _pairs(flat)) for entry, flat in await self._server.execute_again("XRANGE", key, "-", "+")
        ]

    async def heard(self, cid: str, entry_id: str, heard_ms: int, interrupted: bool, rest: str = "") -> None:
        """Record how much of an utterance the caller heard; overwrites what was known before. `rest`: as in `Line`."""
        keys = CallKeys.of(cid)
        value = f"{int(heard_ms)} {int(interrupted)} {rest}".rstrip()
        await self._server.script_again(scripts.HEARD, [keys.call, keys.heard], [entry_id, value])

    # The inside

    async def _states(self, members: Sequence[bytes]) -> list[tuple[str, list[bytes | None]]]:
        """State and finish of many calls, asked for by the hundred."""
        found: list[tuple[str, list[bytes | None]]] = []
        for start in range(0, len(members), 100):
            cids = [_text(member) for member in members[start : start + 100]]
            found += zip(
                cids,
                await asyncio.gather(*map(self._state, cids)),
                strict=True,
            )
        return found

    async def _state(self, cid: str) -> list[bytes | None]:
        try:
            state: list[bytes | None] = await self._server.execute_again("HMGET", f"call:{{{cid}}}", "state", "finish")
        except RedisRefused as error:
            if not _wrong_type(error):
                raise
            return [None, None]
        return state

    async def _file(self, cid: str, finish: str) -> None:
        """The two index steps after an end, in the order that a crash between them can be repaired from."""
        if finish == "owed":
            await self._server.script_again(scripts.INDEX, [self._ended], [cid, ENDED_INDEX_SECONDS])
        await self._server.execute_again("ZREM", self._index, cid)

    async def _finished(self, cid: str, finish: Finish, handlers: Iterable[str]) -> bool:
        keys = CallKeys.of(cid)
        return bool(
            await self._server.script_again(
                scripts.FINISHED,
                [keys.call, keys.transcript, keys.heard, keys.functions, keys.commands],
                [finish, self._retention, SUMMARY, *handlers],
            )
        )


def now_iso() -> str:
    """This moment by our clock, as transcripts write it: ISO 8601, UTC, milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _iso(ms: int) -> str:
    if not 0 < ms < 253402300800000:  # the year 10000
        return ""
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _wrong_type(error: RedisRefused) -> bool:
    return "WRONGTYPE" in str(error)


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return "" if value is None else str(value)


def _int(value: Any) -> int:
    try:
        return int(value or 0)
    except ValueError:
        return 0


def _pairs(flat: Sequence[Any]) -> dict[str, str]:
    return {_text(flat[i]): _text(flat[i + 1]) for i in range(0, len(flat) - 1, 2)}


def _json(text: str | None) -> dict[str, Any] | None:
    """A stored JSON object; None if there is none or it is not one."""
    if not text:
        return None
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def _fields(given: Mapping[str, Any]) -> tuple[list[str | bytes], list[str]]:
    """Fields as alternating names and values, and the names of those to delete."""
    kept: list[str | bytes] = []
    gone: list[str] = []
    for name, value in given.items():
        if value is None:
            gone.append(name)
        elif isinstance(value, str | bytes):
            kept += (name, value)
        elif isinstance(value, bool | int | float | dict | list | tuple):
            kept += (name, orjson.dumps(value))
        else:
            raise TypeError(f"field {name!r} of a call cannot hold a {type(value).__name__}")
    return kept, gone


def _record(cid: str, flat: Sequence[Any]) -> CallRecord:
    raw = _pairs(flat)
    get = raw.get
    return CallRecord(
        cid=cid,
        state=get("state", ""),
        reason=get("reason", ""),
        detail=get("detail", ""),
        bridge=get("bridge", ""),
        caller=get("caller", ""),
        bot=get("bot", ""),
        media_format=get("media_format", ""),
        play_format=get("play_format", ""),
        edge=get("edge", ""),
        ee=_int(get("ee")),
        owner=get("owner", ""),
        we=_int(get("we")),
        created_at=_iso(_int(get("created_ms"))),
        active_at=_iso(_int(get("active_ms"))),
        ended_at=_iso(_int(get("ended_ms"))),
        start=_json(get("start")) or {},
        settings=_json(get("settings")),
        session_id=get("session_id", ""),
        finish=get("finish", ""),
        finisher=get("finisher", ""),
        tries=_int(get("finish_attempts")),
        tries_reopened=_int(get("finish_reopened")),
        finish_error=get("finish_error", ""),
        handled=frozenset(name.removeprefix("handled:") for name in raw if name.startswith("handled:")),
        raw=raw,
    )
