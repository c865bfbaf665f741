"""The caller's side of one call: the link to the edge that has the caller's socket, and what comes over it.

The edge may change, die or fall silent; the call may change hands; Redis may lose it all. What that means for the
link is decided in `bridge_shared.link`, and carried out here.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

import orjson

from bridge_shared import logs, metrics
from bridge_shared.errors import BridgeError
from bridge_shared.frames import Frame, Kind
from bridge_shared.grid import on_grid
from bridge_shared.link import Delivery, Link, LinkEvent, LinkFull, PeerChanged, Reread, Side
from bridge_shared.redis.calls import Claimed
from bridge_shared.types.audiocodes import AudioCodesActivity, BridgeErrorEvent, InboundActivityEvent
from bridge_worker.speech import LineHeard, Turn, TurnOver

if TYPE_CHECKING:
    from bridge_worker.conversation import Conversation

log = logs.get("worker.conversation")

SILENT_SECONDS = 2.0
"""An edge that says nothing for so long may have died, and the caller's socket with it."""

START_BYTES = 32 * 1024
"""Of `start` parameters; longer ones are on the session of this worker only."""


class CallerSide:
    """The link of one conversation.

    Args:
        conversation: whose caller it is.
        claimed: says which edge has the caller.

    Attributes:
        cid: the call's id.
        peer_ended: VAIC has sent `session.end`.
        transfer_failed: VAIC has reported that.
        replay: what the edge says about the caller at a takeover: milliseconds of an utterance that go again, or "ask".
        handled: the last activity, as (edge epoch, number), whose effect on `Session.data` is in it.
        turn_over_at, play_finished_at: when, on the loop's clock, a turn ended by our play clock, and by VAIC's word.
    """

    def __init__(self, conversation: Conversation, claimed: Claimed) -> None:
        self._c = conversation
        self._loop, self._worker, self.cid = conversation.loop, conversation.worker, conversation.cid
        now = self._loop.time()
        self._link = Link(
            Side.WORKER,
            self.cid,
            self._worker.pod,
            epoch=claimed.we,
            now=now,
            peer_pod=claimed.edge,
            peer_epoch=claimed.ee,
        )
        self.peer_ended = asyncio.Event()
        self.transfer_failed = asyncio.Event()
        self.replay: int | str | None = None
        self.turn_over_at = self.play_finished_at = -math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._mids = 0
        self.handled = _mid(conversation.record.raw.get("activity", ""))
        self._rereading = False
        self._lost: asyncio.TimerHandle | None = None
        self._lost_by_silence = False
        self._heard_at = now

    @property
    def attachment(self) -> tuple[str, int]:
        """The edge that has the caller, and its epoch."""
        return self._link.peer_pod, self._link.peer_epoch

    @property
    def settled(self) -> bool:
        """The edge has confirmed all that it was told."""
        return self._link.settled

    @property
    def lost(self) -> bool:
        """The caller's socket is lost, and maybe comes back."""
        return self._lost is not None

    # ── frames ─────────────────────────────────────────────────────────────────────────────────────────

    def open(self) -> None:
        """Greet the edge: the call has a new owner."""
        self._link.open(self._loop.time(), "claimed")
        self.pump()

    def close(self) -> None:
        """Nothing happens by itself any more."""
        for timer in (self._timer, self._lost):
            if timer is not None:
                timer.cancel()

    def on_frame(self, sender: str, frame: Frame) -> None:
        """Take one frame of this call from the inbox."""
        self._heard_at = self._loop.time()
        if self._lost_by_silence:
            self._found()
        if events := self._link.receive(sender, frame, self._heard_at):
            self._happened(events)
        self._c.progress()
        self.pump()

    def on_inbox_lost(self) -> None:
        """Frames for this call were lost with the inbox, and maybe the call's state: look, and greet the edge."""
        self._happened([Reread("inbox lost")])
        self._link.open(self._loop.time(), "inbox lost")
        self.pump()

    def on_unreachable(self) -> None:
        """The edge's inbox is gone: it died, and VAIC may come back by another one."""
        self._happened(self._link.unreachable(self._loop.time()))
        self.pump()

    def look(self) -> None:
        """Another worker says that it has the call: ask Redis."""
        self._happened([Reread("taken")])

    def tell(self, kind: Kind, body: list[Any]) -> None:
        """Send a control frame to the edge, behind the speech that is due; `pump` puts it on its way."""
        self._send_speech()
        self._send(kind, body)

    def activities(self, activities: list[dict[str, Any]], *, repeatable: bool) -> None:
        """Send activities to VAIC; see `sendable`."""
        self._mids += 1
        self.tell(Kind.ACTIVITY, [[self._c.we, self._mids], activities, repeatable])
        self.pump()

    def pump(self) -> None:
        """Send what is due now and set the timer to the next deadline."""
        now = self._loop.time()
        self._send_speech()
        if events := self._link.tick(now):
            self._happened(events)
        for pod, frame in self._link.take():
            self._worker.outbox.post(pod, frame)
        due = self._link.deadline()
        if due < self._timer_at or self._timer is None:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = due
            self._timer = self._loop.call_at(on_grid(max(due, now)), self._timer_fired) if due < math.inf else None

    def _send_speech(self) -> None:
        if not (due := self._c.speech.take()):
            return
        now = self._loop.time()
        for kind, body, nbytes in due:
            if nbytes:
                self._link.send_audio(kind, body, nbytes, now)
            else:
                self._send(kind, body)

    def _send(self, kind: Kind, body: list[Any]) -> None:
        try:
            self._link.send(kind, body, self._loop.time())
        except LinkFull as error:
            if not self._c.over:
                log.error("the edge does not confirm anything, the call ends", cid=self.cid, error=str(error))
            self._c.end("error", "overrun")

    def _timer_fired(self) -> None:
        self._timer, self._timer_at = None, math.inf
        if not self._c.closed.is_set():
            self.pump()

    # ── what the edge says ─────────────────────────────────────────────────────────────────────────────

    def _happened(self, events: list[LinkEvent]) -> None:
        for event in events:
            match event:
                case Delivery():
                    self._deliver(event)
                case Reread() if not self._rereading:
                    self._rereading = True
                    self._c.tasks.create_task(self._reread())
                case PeerChanged():
                    self._edge_changed(event)

    def _deliver(self, delivery: Delivery) -> None:
        now, body = self._loop.time(), delivery.body
        match delivery.kind:
            case Kind.UP:
                self._c.agent.hear(body[0])
                return
            case Kind.REPLAY:
                self.replay = body[0]
                if len(body) > 1:
                    self._c.events.understood(*body[1])
            case Kind.ACTIVITY:
                return self._activity((body[0][0], body[0][1]), body[1], delivery)
            case Kind.PLAYED:
                turn = (body[0][0], body[0][1])
                if turn[0] < self._c.we and body[2] != "playing":
                    self._keep_heard_of_former(turn, body[1], whole=body[2] == "finished")
                self._c.timings.heard(turn, body[1], now)
                over = self._c.speech.played(turn, body[1], body[2], now)
                for each in over:
                    self._turn_over(each)
                if not over and body[2] != "playing" and (lines := self._c.speech.corrected(turn, body[1])):
                    self.heard(self._c.events.heard(lines))
            case Kind.USTREAM:
                self._c.agent.stream(body[0])
            case Kind.END:
                self.peer_ended.set()
                if not self._c.leaving:
                    self._c.end("hangup", body[0] or "")
            case Kind.LOST:
                self._wait_for_caller()
            case Kind.BACK:
                self._found()
        self._link.done(delivery, now)

    def _activity(self, mid: tuple[int, int], activity: dict[str, Any], delivery: Delivery) -> None:
        """The effect of an activity is that its handlers have returned; then it is done for the edge too."""
        if mid <= self.handled:  # by a former owner, which died before it could tell the edge
            return self._link.done(delivery, self._loop.time())

        def done() -> None:
            with contextlib.suppress(RuntimeError):  # the media loop is gone, and with it the link
                self._loop.call_soon_threadsafe(self._activity_done, mid, delivery, self._c.session.data.settle())

        name = str(activity.get("name", "")).lower()
        if name == "start" and isinstance(activity.get("parameters"), dict):
            self._c.session._start = activity["parameters"]
            self._c.tasks.create_task(self._keep_start(activity["parameters"]))
        elif name == "playfinished":
            self.play_finished_at = self._loop.time()
        elif name == "transferstatus" and _status(activity) == "failed":
            self.transfer_failed.set()
        self._c.telephony.put(
            "activity",
            InboundActivityEvent(session_id=self._c.session.session_id, activity=cast(AudioCodesActivity, activity)),
            done,
        )

    def _activity_done(self, mid: tuple[int, int], delivery: Delivery, data: bytes | None) -> None:
        self.handled = max(self.handled, mid)
        if data is not None:
            self._c.data_changed(data)
        if self._c.data_waits:
            self._c.tasks.create_task(self._done_when_kept(delivery))
        else:
            self._done(delivery)

    async def _done_when_kept(self, delivery: Delivery) -> None:
        await self._c.keep_data()
        self._done(delivery)

    def _done(self, delivery: Delivery) -> None:
        self._link.done(delivery, self._loop.time())
        self.pump()

    async def _keep_start(self, parameters: dict[str, Any]) -> None:
        start = orjson.dumps(parameters).decode()
        if len(start) > START_BYTES:
            log.warning("the `start` parameters are too long to be kept in Redis", cid=self.cid, characters=len(start))
            return
        self._c.kept["start"] = start
        with contextlib.suppress(BridgeError):  # it is for whoever looks the call up; the call does not need it
            await self._worker.calls.amend(self.cid, we=self._c.we, fields={"start": start})

    def _turn_over(self, over: TurnOver) -> None:
        self.turn_over_at = self._loop.time()
        if over.announce:
            self._c.events.audio_done()
        self.heard(self._c.events.turn_over(over))

    def _keep_heard_of_former(self, turn: Turn, heard_ms: int, *, whole: bool) -> None:
        """The edge tells how much will have been heard of a turn whose owner is gone."""
        self.heard(self._c.events.former_turn(turn, heard_ms, whole=whole))

    def heard(self, lines: Iterable[LineHeard], *, rest: Turn | None = None) -> None:
        """Keep in Redis how much of some lines was heard, and the turn in which the rest is played."""
        self._c.tasks.create_task(self._keep_heard(lines, f"{rest[0]}-{rest[1]}" if rest is not None else ""))

    async def _keep_heard(self, lines: Iterable[LineHeard], rest: str) -> None:
        for line in lines:
            with contextlib.suppress(BridgeError):  # a figure; the lines themselves are safe
                await self._worker.calls.heard(self.cid, line.entry, line.heard_ms, line.interrupted, rest)

    # ── edges and callers come and go ──────────────────────────────────────────────────────────────────

    def _edge_changed(self, event: PeerChanged) -> None:
        self._found()
        if not event.first:
            metrics.resumes.inc()
            self._link.drop_audio()  # for the new edge it has other turn ids
            for turn in self._c.speech.edge_changed(self._loop.time()):
                if text := self._c.events.goes_on(turn):
                    self._send(Kind.SPEECH, ["agent", text, list(turn.turn)])  # before the speech itself
                self.heard(turn.lines, rest=turn.turn)  # should this worker die before that is heard
        for kind, body in event.unknown:
            if kind != Kind.ACTIVITY:  # a report of what the caller says, which nobody asked for
                continue
            names = ", ".join(str(activity.get("name")) for activity in body[1])
            self._c.telephony.put(
                "error",
                BridgeErrorEvent(
                    session_id=self._c.session.session_id,
                    description=f"It is not known whether VAIC carried out: {names}",
                    code="command_unknown",
                    cause=None,
                    recoverable=True,
                ),
            )

    def _wait_for_caller(self) -> None:
        if self._lost is None:
            self._lost = self._loop.call_later(self._worker.settings.lost_seconds, self._caller_lost)

    def _found(self) -> None:
        self._lost_by_silence = False
        if self._lost is not None:
            self._lost.cancel()
            self._lost = None

    def _caller_lost(self) -> None:
        seconds = self._worker.settings.lost_seconds
        event = BridgeErrorEvent(
            session_id=self._c.session.session_id,
            description=f"The caller's connection was lost and not resumed within {seconds:g} s",
            code="audiocodes_error",
            cause=None,
            recoverable=False,
        )
        self._c.telephony.put("error", event)
        self._c.end("error", "lost")

    async def _reread(self) -> None:
        """Ask Redis whose call this is before anything else is said."""
        try:
            record = await self._worker.calls.read(self.cid)
            if self._c.accepted and not self._c.over and (record is None or record.we < self._c.we):
                await self._restore()
                record = await self._worker.calls.read(self.cid)
        except BridgeError as error:
            log.debug("state of the call cannot be read now", cid=self.cid, error=str(error))
            return
        finally:
            self._rereading = False
        if record is None or self._c.over:
            return
        if record.we > self._c.we or (record.owner and record.owner != self._worker.pod):
            return self._c.fenced()
        if record.state == "ended":
            return self._c.end(record.reason, record.detail)
        now = self._loop.time()
        if self._lost is None and now > self._heard_at + SILENT_SECONDS:
            self._lost_by_silence = True  # the edge may be dead; any word of it takes this back
            self._wait_for_caller()
        self._happened(self._link.reread(peer_pod=record.edge, peer_epoch=record.ee, now=now))
        self.pump()

    async def _restore(self) -> None:
        """Redis has lost the call: write what is known here, the transcript too; the edge does the same."""
        log.warning("the call's state is lost in Redis, writing it again", cid=self.cid)
        known = ("bridge", "caller", "bot", "media_format", "play_format", "created_ms", "active_ms", "start")
        fields: dict[str, Any] = {name: self._c.record.raw[name] for name in known if name in self._c.record.raw}
        fields |= {"state": "active", "session_id": self._c.session.session_id}
        fields |= self._c.kept
        if self._c.data:
            fields |= {"data": self._c.data, "activity": list(self.handled)}
        await self._worker.calls.restore(self.cid, fields, owner=self._worker.pod, we=self._c.we)
        self._c.lines.verify()
        self._c.functions.verify()
        self.heard(self._c.events.known())


def sendable(activities: list[dict[str, Any]]) -> None:
    """Raise ValueError for activities that could not be sent: none at all, no dictionaries, no JSON."""
    if not activities or not all(isinstance(activity, dict) for activity in activities):
        raise ValueError("an activity is a dictionary, and there has to be one")
    try:
        orjson.dumps(activities)
    except TypeError as error:
        raise ValueError(f"an activity has to be JSON: {error}") from error


def _mid(stored: str) -> tuple[int, int]:
    """Which activity was handled last, as a former owner wrote it; (0, 0) is none."""
    try:
        epoch, number = orjson.loads(stored)
        return int(epoch), int(number)
    except (ValueError, TypeError):
        return 0, 0


def _status(activity: dict[str, Any]) -> object:
    value = activity.get("value")
    return value.get("status") if isinstance(value, dict) else None
