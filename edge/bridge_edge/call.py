"""One caller at the edge: a WebSocket from VAIC, a link to the worker that owns the call, a playout between them.

    VAIC ── text frames ──> Bot machine ──> link ──> inbox of the worker
    VAIC <── paced chunks ── playout <────── link <── inbox of this edge

Nothing here outlives the socket that another edge could not rebuild: the call itself is in Redis and with
its owner. What the three machines (`protocol.audiocodes.Bot`, `link.Link`, `playout.Playout`) decide, this
shell carries out: one task reads the socket, one writes it, one timer serves all deadlines.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from bridge_edge.door import Door
from bridge_edge.playout import Played, Playout, SendChunk, StartStream, StopStream, Turn
from bridge_shared import logs, metrics
from bridge_shared.errors import BridgeError
from bridge_shared.frames import Frame, Kind
from bridge_shared.link import Delivery, Link, LinkEvent, LinkFull, PeerChanged, Reread, Side
from bridge_shared.protocol import audiocodes as vaic
from bridge_shared.protocol.media import Inbound, Media, choose, media
from bridge_shared.redis.calls import Attached, CallRecord

if TYPE_CHECKING:
    from bridge_edge.server import Edge

log = logs.get("edge.call")

FIRST_MESSAGE_SECONDS = 10.0
OFFER_AGAIN_SECONDS = 0.5
LOOK_SECONDS, LOOK_AGAIN_SECONDS = 2.0, 0.1
"""A call to be resumed is looked for this long: Redis may have been emptied, and its owner is putting it back."""

OWNER_END_SECONDS = 2.0
LAST_FRAMES_SECONDS = 2.0
TIMER_GRAIN = 0.0005
"""uvloop rounds to milliseconds, and a timer that fires early would fire again at once."""

REPLAY_SECONDS = 1.0
"""An utterance that began so long ago at most is replayed to a new owner; of an older one the agent asks again."""

ORPHAN_SECONDS = 20.0
"""A call whose owner is dead waits so long for another one (DESIGN §7)."""

LEAD_IN_SECONDS = 0.2
"""The agent's ear notices speech this much after its beginning."""

BACKLOG_BYTES = 1024 * 1024
"""What may wait for a caller who reads too slowly; beyond it audio is dropped, never anything else."""

EARLY_EVENTS = 64
"""What VAIC may say before its call is accepted; the rest is skipped."""

_BAD_INPUT_LOGGED = 1
_BROKEN_OFF = {1007: ("bad_text", "a text frame that is not UTF-8"), 1009: ("too_big", "a message that is too big")}
_IN_CALL = (vaic.UserAudio, vaic.ActivityReceived, vaic.UserStreamStarted, vaic.UserStreamStopped)
_LEAVE = frozenset({"hangup", "transfer", "handover"})
_FOR_VAIC = frozenset({Kind.DOWN, Kind.TURNEND, Kind.CUT, Kind.SPEECH, Kind.ACTIVITY})


class Call:
    """Serves one WebSocket from its first message to its close."""

    def __init__(
        self, edge: Edge, door: Door, socket: ServerConnection, on_call: Callable[[str], None] | None = None
    ) -> None:
        self._edge = edge
        self._door = door
        self._socket = socket
        self._on_call = on_call
        self._bot = vaic.Bot()
        self._link: Link | None = None
        self._playout: Playout | None = None
        self._inbound: Inbound | None = None
        self._media: Media | None = None
        self._outgoing: deque[tuple[bytes, Delivery | None]] = deque()
        self._backlog = 0
        self._to_write = asyncio.Event()
        self._answer: asyncio.Future[str | None] = edge.loop.create_future()
        """What came of the set-up: None = accepted, otherwise the reason for the refusal."""
        self._over = asyncio.Event()
        """The call needs this socket no longer."""
        self._gone = False
        """The socket is lost: nothing can be said to VAIC."""
        self._flooded = False
        self._early: list[vaic.BotEvent] = []
        """What VAIC said before its call was accepted, in order."""
        self._progress = asyncio.Event()
        """Something was written or confirmed."""
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._activities = 0
        self._rereading = False
        self._ended_by_peer = False
        self._leaving = False
        """VAIC was asked to hang up or to transfer: it needs no other reason for the end."""
        self._speech_open = False
        self._speech_began = 0.0
        self._stream_open = False
        self._bridge = ""
        self._offering = False
        self._turn: Turn = (0, 0)
        """The latest turn of which audio came."""
        self._texts: list[str] = []
        """What the agent is about to say, until its audio tells in which turn."""
        self._turn_texts: dict[Turn, list[str]] = {}
        self._bad: dict[str, int] = {}
        self._understood: list[str] | None = None
        """Transcript entry and text of what the caller said last."""
        self._began = edge.loop.time()
        self.cid = ""
        self._ours = False
        """This socket has created the call, or is attached to it."""

    async def run(self) -> None:
        """Serve the socket until the call needs it no longer; then it is closed.

        Cancelling drops the connection without ending the call, so that VAIC may resume it elsewhere.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                reader = tasks.create_task(self._read())
                writer = tasks.create_task(self._write())
                await self._over.wait()
                reader.cancel()
                if self._flooded:
                    await self._refuse("More messages came than the agent's side takes")
                await self._written()
                writer.cancel()
        finally:
            if self._link is not None:
                if not self._over.is_set():
                    self._tell(Kind.LOST, [])
                self._link.acknowledge()  # so that the owner need not wait for it
                self._post(self._link)
            if self._timer is not None:
                self._timer.cancel()
            self._edge.forget(self)
        await self._socket.close()

    def replaced(self) -> None:
        """VAIC has resumed the call on another socket of this edge: close this one without ending the call."""
        self._over.set()

    def on_frame(self, sender: str, frame: Frame) -> None:
        """Take one frame of this call from the inbox."""
        if self._link is not None and not self._over.is_set():
            if self._gone and not self._ended_by_peer and frame.seq:
                # only what it confirms is of use here; the rest is for the next edge, to be sent again
                frame = frame._replace(seq=0, kind=Kind.ACK, body=[])
            self._happened(self._link.receive(sender, frame, self._edge.loop.time()))
            self._progress.set()
            self._pump()

    def on_inbox_lost(self) -> None:
        """Frames for this call were lost with the inbox, and maybe the call's state: look, and greet the owner."""
        if self._link is not None:
            self._happened([Reread("inbox lost")])
            self._link.open(self._edge.loop.time(), "inbox lost")
            self._pump()

    def on_unreachable(self) -> None:
        """The owner's inbox is gone: ask Redis who owns the call now."""
        if self._link is not None:
            self._happened(self._link.unreachable(self._edge.loop.time()))
            self._pump()

    # ── from VAIC ──────────────────────────────────────────────────────────────────────────────────────

    async def _read(self) -> None:
        try:
            async with asyncio.timeout(FIRST_MESSAGE_SECONDS):
                while self._bot.state == "new":
                    self._take(await self._socket.recv())
            async for message in self._socket:
                self._take(message)
        except TimeoutError:
            metrics.calls_refused.labels(reason="silent").inc()
            log.info("a new connection began no call, closing it", remote=str(self._socket.remote_address))
        except EOFError:
            pass  # a socket of the application's has ended
        except ConnectionClosed as closed:
            # what matters is whether VAIC had ended the call; only our own verdict on a message is worth a line
            if closed.sent is not None and (why := _BROKEN_OFF.get(closed.sent.code)) and not closed.rcvd_then_sent:
                self._skipped(*why)
        await self._socket_gone()

    def _take(self, message: str | bytes) -> None:
        if len(message) > self._edge.settings.max_message_bytes:
            return self._skipped("too_big", f"{len(message)} characters")
        for event in self._bot.receive(message):
            self._heard_from_vaic(event)
        self._pump()

    def _heard_from_vaic(self, event: vaic.BotEvent) -> None:
        if self._playout is None and isinstance(event, _IN_CALL):
            if len(self._early) < EARLY_EVENTS:
                self._early.append(event)
            else:
                self._skipped("too_many", "messages before session.accepted")
            return
        match event:
            case vaic.UserAudio(data=data):
                self._caller_audio(data)
            case vaic.ActivityReceived(activity=activity):
                self._activity(activity)
            case vaic.UserStreamStarted(participant=participant):
                assert self._inbound is not None
                self._send(self._bot.stream_started())
                self._inbound.restart()
                self._stream_open = True
                self._tell(Kind.USTREAM, [True, participant])
            case vaic.UserStreamStopped(participant=participant):
                self._send(self._bot.stream_stopped())
                self._stream_open = False
                self._tell(Kind.USTREAM, [False, participant])
            case vaic.Validate():
                self._send(self._bot.validated())
            case vaic.Initiate():
                self._tasks.create_task(self._set_up(event))
            case vaic.Resume():
                self._tasks.create_task(self._resume(event))
            case vaic.SessionEnd(reason_code=code, reason=reason):
                self._ended_by_peer = True
                if self._playout is not None and self._turn > (0, 0):
                    self._playout.cut(self._turn, self._edge.loop.time())
                    self._act()
                self._tasks.create_task(self._end(code, reason))
            case vaic.Skipped(code=code, detail=detail):
                self._skipped(code, detail)

    def _caller_audio(self, data: bytes) -> None:
        assert self._inbound is not None and self._link is not None
        if samples := self._inbound.feed(data):
            self._link.send_audio(Kind.UP, [samples], len(samples), self._edge.loop.time())

    def _activity(self, activity: dict[str, Any]) -> None:
        assert self._playout is not None and self._link is not None
        if activity.get("name") == "start":
            self._playout.release()
        self._activities += 1
        self._tell(Kind.ACTIVITY, [[self._link.epoch, self._activities], activity])

    def _skipped(self, code: str, detail: str) -> None:
        metrics.bad_input.labels(code=code).inc()
        seen = self._bad[code] = self._bad.get(code, 0) + 1
        if seen <= _BAD_INPUT_LOGGED:
            log.warning(
                "message from VAIC skipped, more of this kind are only counted", cid=self.cid, code=code, detail=detail
            )

    # ── set-up ─────────────────────────────────────────────────────────────────────────────────────────

    async def _set_up(self, initiate: vaic.Initiate) -> None:
        cid = initiate.conversation_id
        if not initiate.valid_id:
            return await self._refuse("conversationId must be 1-128 characters of A-Z a-z 0-9 . _ -", end="")
        self.cid = cid
        if self._on_call is not None:
            self._on_call(cid)
        chosen = choose(self._door.formats, initiate.formats or ())
        fields = {
            "caller": initiate.caller or "",
            "bot": initiate.bot_name or "",
            "media_format": chosen or "",
        }
        deadline = self._edge.loop.time() + self._edge.settings.accept_timeout
        try:
            bridge = self._bridge = fields["bridge"] = await self._edge.bridge(self._door, self._socket)
            if not bridge:
                return await self._refuse("No worker serves this path", end="")
            if self._edge.full:
                metrics.calls_refused.labels(reason="edge_full").inc()
                return await self._refuse("This bridge is at its capacity", end="")
            why = self._edge.refusal(bridge)
            if why is not None and await self._edge.calls.read(cid) is None:  # a live call may come back
                metrics.calls_refused.labels(reason="no_room").inc()
                return await self._refuse(why, end="")
            attached = await self._edge.calls.attach(cid, edge=self._edge.pod, new=fields)
            self._ours = attached.status == "created"
            if attached.status == "live" and self._edge.deserted(attached.record):
                if attached.record is None or attached.record.media_format not in (initiate.formats or ()):
                    return await self._refuse("The conversation is live in another media format", end="")
                return await self._go_on(bridge)
            if attached.status != "created":
                return await self._refuse(f"Conversation {cid} is {attached.status} already", end="")
            if not initiate.expect_audio:
                return await self._refuse("This bot speaks; it needs expectAudioMessages (directTTS)", end="hangup")
            if chosen is None:
                return await self._refuse("No common media format", end="hangup")
            self._attach(attached, chosen)
            await self._accepted_by(deadline, bridge)
        except BridgeError as error:
            log.warning("call could not be set up", cid=cid, error=str(error))
            await self._refuse("The bridge cannot take calls at the moment")

    async def _resume(self, resume: vaic.Resume) -> None:
        cid = resume.conversation_id
        if not resume.valid_id:
            return await self._refuse("Unknown conversation", end="")
        self.cid = cid
        try:
            self._bridge = await self._edge.bridge(self._door, self._socket)
            await self._go_on(self._bridge)
        except BridgeError as error:
            log.warning("call could not be resumed", cid=cid, error=str(error))
            await self._refuse("The bridge cannot take calls at the moment", end="")

    async def _go_on(self, bridge: str) -> None:
        """Take over a call that has lost its socket, or its edge."""
        calls, missing = self._edge.calls, "Conversation not found"
        record = await self._look()
        if record is None or record.bridge != bridge:  # looked at first: attaching takes it from its present edge
            return await self._refuse(missing, end="")
        attached = await calls.attach(self.cid, edge=self._edge.pod, new=None)
        if attached.status != "attached" or (record := attached.record) is None:
            return await self._refuse(missing, end="")
        self._attach(attached, record.media_format)
        if record.state == "active":
            self._accept(record.media_format)
            self._tell(Kind.LOST if self._gone else Kind.BACK, [])
            self._pump()
        else:
            await self._accepted_by(self._edge.loop.time() + self._edge.settings.accept_timeout, bridge)

    async def _look(self) -> CallRecord | None:
        """The call as Redis has it; None if it is not there for a while."""
        until = self._edge.loop.time() + LOOK_SECONDS
        while True:
            record = await self._edge.calls.read(self.cid)
            if record is not None or self._gone or self._edge.loop.time() >= until:
                return record
            await asyncio.sleep(LOOK_AGAIN_SECONDS)

    def _attach(self, attached: Attached, media_format: str) -> None:
        now = self._edge.loop.time()
        self._ours = True
        self._media = media(media_format)
        self._link = Link(
            Side.EDGE,
            self.cid,
            self._edge.pod,
            epoch=attached.ee,
            now=now,
            peer_pod=attached.owner,
            peer_epoch=attached.we,
        )
        self._edge.know(self)
        if attached.former_edge not in ("", self._edge.pod):
            self._link.dismiss(attached.former_edge)
        if attached.we:
            self._link.open(now, "attached")
        self._pump()

    async def _accepted_by(self, deadline: float, bridge: str) -> None:
        """Offer the call until a worker answers; refuse it if none has by then."""
        assert self._link is not None
        if self._gone or self._ended_by_peer:  # while the call was being created
            await self._end_in_redis("hangup" if self._ended_by_peer else "ended", "abandoned")
            return self._over.set()
        try:
            async with asyncio.timeout_at(deadline):
                while not self._answer.done():
                    if not self._link.connected:
                        await self._edge.offer(self.cid, bridge, self._link)
                    await asyncio.wait([self._answer], timeout=OFFER_AGAIN_SECONDS)
        except TimeoutError:
            pass
        if self._gone or self._ended_by_peer:
            return  # whoever noticed that ends the call
        if not self._answer.done():
            reason = "The agent is not ready in time" if self._link.connected else "No worker is free to take the call"
            metrics.calls_refused.labels(reason="agent_slow" if self._link.connected else "no_worker").inc()
            await self._refuse(reason)
        elif (refusal := self._answer.result()) is not None:
            metrics.calls_refused.labels(reason="agent").inc()
            await self._refuse(refusal)

    async def _refuse(self, why: str, *, end: str = "error") -> None:
        """Tell VAIC why there will be no call, and let go of it.

        The call in Redis is ended first with the reason `end`, unless that is empty.
        """
        if end:
            await self._end_in_redis(end, why)
        log.info("call refused", cid=self.cid, why=why)
        self._give_up(why)

    def _give_up(self, why: str) -> None:
        """Let go of VAIC: with the reason, unless it knows one or has gone."""
        if self._bot.state != "ended" and not self._leaving:
            self._send(self._bot.error(why, self.cid or None))
        self._over.set()

    def _accept(self, media_format: str, delivery: Delivery | None = None) -> None:
        assert self._link is not None
        settings, now = self._edge.settings, self._edge.loop.time()
        sound = media(media_format)
        self._inbound = Inbound(sound)
        self._playout = Playout(
            sound,
            prefix=str(self._link.epoch),
            lead_ms=settings.play_lead_ms,
            chunk_ms=settings.play_chunk_ms,
            # a resumed call has begun already: VAIC sends no second `start`
            hold_until=now + settings.start_hold_seconds if delivery is not None else 0.0,
        )
        self._send(self._bot.accepted(media_format), delivery)
        early, self._early = self._early, []
        for event in early:
            self._heard_from_vaic(event)
        for acknowledgement in self._bot.owed():  # of what was skipped because it was too much
            self._send(acknowledgement)

    # ── from the worker ────────────────────────────────────────────────────────────────────────────────

    def _happened(self, events: list[LinkEvent]) -> None:
        for event in events:
            match event:
                case Delivery():
                    self._deliver(event)
                case Reread() if not self._rereading:
                    self._rereading = True
                    self._tasks.create_task(self._reread())
                case PeerChanged(first=False):
                    self._new_owner(event)

    def _new_owner(self, event: PeerChanged) -> None:
        """Another worker has the call: tell it what the former one knew (LINK.md, Audio)."""
        assert self._link is not None
        now = self._edge.loop.time()
        log.info("call has a new owner", cid=self.cid, owner=event.pod)
        in_speech = self._speech_open and self._playout is not None
        fresh = now - self._speech_began <= REPLAY_SECONDS
        since = self._speech_began - LEAD_IN_SECONDS if in_speech and fresh else None
        if not in_speech and not self._edge.dead(
            event.former
        ):  # given away in a pause, in which the caller may just begin
            since = now - LEAD_IN_SECONDS
        self._link.replay(since, now, ask=in_speech and not fresh, understood=self._understood)
        self._tell(Kind.USTREAM, [self._stream_open, None])
        for played in self._playout.forsake(event.epoch) if self._playout is not None else ():
            self._tell(Kind.PLAYED, [list(played.turn), played.heard_ms, played.state])
        if self._gone:
            self._tell(Kind.LOST, [])

    @property
    def owner(self) -> str:
        """The pod that owns the call; "" before there is one."""
        return self._link.peer_pod if self._link is not None else ""

    def orphaned(self) -> None:
        """The owner is dead: offer the call to the other workers until one says HELLO."""
        if self._link is not None and self._link.peer_pod and not self._offering and not self._over.is_set():
            self._offering = True
            self._tasks.create_task(self._offer_orphan(self._link))

    async def _offer_orphan(self, link: Link) -> None:
        owner, epoch = link.peer_pod, link.peer_epoch
        log.warning("the owner of the call is dead", cid=self.cid, owner=owner)
        until = self._edge.loop.time() + ORPHAN_SECONDS
        try:
            while link.peer_epoch == epoch and self._edge.dead(owner) and not self._over.is_set():
                if self._edge.loop.time() >= until:
                    return await self._fail_over("No worker is free to go on with the call")
                await self._edge.offer(self.cid, self._bridge, link, owner, epoch)
                await asyncio.sleep(OFFER_AGAIN_SECONDS)
        finally:
            self._offering = False

    async def _fail_over(self, why: str) -> None:
        """Nobody goes on with the call: transfer the caller to the failover target if there is one, or say why not."""
        settings = self._edge.settings
        if settings.failover_target is None or self._gone or self._bot.state != "accepted":
            return await self._refuse(why)
        log.warning("no worker goes on with the call, transferring it", cid=self.cid)
        await self._end_in_redis("error", why)
        parameters = {"transferTarget": settings.failover_target}
        self._send(self._bot.activities([{"type": "event", "name": "transfer", "activityParams": parameters}]))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(settings.transfer_wait_seconds):
                await self._over.wait()  # VAIC ends the call when the transfer has come about
        self._give_up(why)

    def _deliver(self, delivery: Delivery) -> None:
        now, body = self._edge.loop.time(), delivery.body
        playout, link = self._playout, self._link
        assert link is not None
        if self._bot.state == "ended" and delivery.kind in _FOR_VAIC:  # it crossed VAIC's session.end
            return link.done(delivery, now)
        match delivery.kind:
            case Kind.DOWN if playout:
                self._turn = turn = (body[0][0], body[0][1])
                if self._texts:
                    self._turn_texts.setdefault(turn, []).extend(self._texts)
                    self._texts.clear()
                playout.audio(turn, body[1], now)
                return
            case Kind.TURNEND if playout:
                playout.end(tuple(body[0]))
            case Kind.CUT if playout:
                playout.cut(tuple(body[0]), now)
                self._texts.clear()
                self._turn_texts.clear()
                metrics.cuts.inc()
            case Kind.SPEECH:
                return self._speech(body[0], body[1], body[2:], delivery)
            case Kind.ACTIVITY:
                self._leaving = self._leaving or any(activity.get("name") in _LEAVE for activity in body[1])
                return self._send(self._bot.activities(body[1]), delivery)
            case Kind.ACCEPT if self._playout is None and self._bot.state == "initiated":
                self._accept(body[0], delivery)
                metrics.setup_seconds.observe(now - self._began)
                if not self._answer.done():
                    self._answer.set_result(None)
                return
            case Kind.REFUSE if not self._answer.done():
                self._answer.set_result(body[0])
            case Kind.REFUSE | Kind.CLOSE:
                self._give_up(body[0])
        link.done(delivery, now)

    def _speech(self, kind: str, text: str, entry: list[str], delivery: Delivery) -> None:
        """Report the caller's speech, paired and in the order of the Bot API reference §5.4."""
        bot = self._bot
        match kind:
            case "started" if not self._speech_open:
                self._speech_open = True
                self._speech_began = self._edge.loop.time()
                self._act()  # the cut turn's `playStream.stop` goes out before the report
                self._send(bot.speech_started(), delivery)
                return
            case "recognition":
                self._understood = [*entry, text] if entry else None
                if self._speech_open:
                    self._send(bot.speech_stopped())
                self._speech_open = False
                self._send(bot.recognition(text))
                self._send(bot.committed(), delivery)
                return
            case "agent":
                self._texts.append(text)
        assert self._link is not None
        self._link.done(delivery, self._edge.loop.time())

    async def _reread(self) -> None:
        """Ask Redis whose call this is, before anything else is said."""
        assert self._link is not None
        try:
            record = await self._edge.calls.read(self.cid)
            if self._playout is not None and (record is None or record.ee < self._link.epoch):
                record = await self._restore(self._link.epoch)
        except BridgeError as error:
            log.debug("state of the call cannot be read now", cid=self.cid, error=str(error))
            return
        finally:
            self._rereading = False
        if record is None or record.ee > self._link.epoch:
            log.debug("the call is no longer here", cid=self.cid)
            return self._over.set()
        if record.state == "ended":
            return self._give_up(record.detail or record.reason)
        self._happened(self._link.reread(peer_pod=record.owner, peer_epoch=record.we, now=self._edge.loop.time()))
        self._pump()

    async def _restore(self, epoch: int) -> CallRecord | None:
        """Redis has lost the call: write what is known here; the owner does the same."""
        assert self._media is not None
        fields = {"state": "active", "bridge": self._bridge, "media_format": self._media.token}
        await self._edge.calls.restore(self.cid, fields, edge=self._edge.pod, ee=epoch)
        return await self._edge.calls.read(self.cid)

    # ── the end ────────────────────────────────────────────────────────────────────────────────────────

    async def _end(self, code: str | None, reason: str | None) -> None:
        """VAIC ended the call: the owner ends it in Redis, or we do if it does not answer."""
        if not self._answer.done():
            self._answer.set_result("abandoned")
        self._tell(Kind.END, [code, reason])
        self._pump()
        try:
            async with asyncio.timeout(OWNER_END_SECONDS):
                await self._over.wait()
        except TimeoutError:
            await self._end_in_redis("hangup", code or "")
            self._over.set()

    async def _socket_gone(self) -> None:
        self._gone = True
        self._outgoing.clear()
        if self._ended_by_peer or self._over.is_set():
            return
        if not self._answer.done():
            self._answer.set_result("abandoned")
        if self._playout is not None:
            log.warning("the caller's connection is lost, VAIC may resume the call", cid=self.cid)
            self._tell(Kind.LOST, [])
        elif self._link is not None:
            await self._end_in_redis("ended", "abandoned")
            self._tell(Kind.END, ["abandoned", None])
        self._pump()
        await self._confirmed()
        self._over.set()

    async def _end_in_redis(self, reason: str, detail: str) -> None:
        if self._ours:  # never a call that this socket has only named
            try:
                # a refused initiate is reported to handlers as in the original (SDK reference §14); so is a call
                # whose owner was too slow, for it may have told them of an error already
                owned = self._link is not None and self._link.connected and detail != "abandoned"
                report = reason == "hangup" or owned
                await self._edge.calls.end(self.cid, reason=reason, detail=detail, report=report)
            except BridgeError as error:
                log.warning("the end of the call could not be recorded", cid=self.cid, error=str(error))

    async def _confirmed(self) -> None:
        """Wait, bounded, until the owner has what we told it."""
        await self._within(LAST_FRAMES_SECONDS, lambda: self._link is None or self._link.settled)

    # ── carrying out ───────────────────────────────────────────────────────────────────────────────────

    def _tell(self, kind: Kind, body: list[Any]) -> None:
        if self._link is None:
            return
        try:
            self._link.send(kind, body, self._edge.loop.time())
        except LinkFull as error:
            if not self._flooded:
                log.error("the call cannot go on", cid=self.cid, error=str(error))
            self._flooded = True
            self._over.set()

    def _pump(self) -> None:
        """Do what is due now, post what is to be posted, and set the timer to the next deadline."""
        link, now = self._link, self._edge.loop.time()
        if link is None:
            return
        self._happened(link.tick(now))
        self._act()
        self._post(link)
        due = link.deadline()
        if self._playout is not None:
            due = min(due, self._playout.deadline(now))
        if due < self._timer_at or self._timer is None:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = due
            self._timer = (
                self._edge.loop.call_at(max(due, now) + TIMER_GRAIN, self._timer_fired) if due < math.inf else None
            )

    def _post(self, link: Link) -> None:
        for pod, frame in link.take():
            self._edge.outbox.post(pod, frame)

    def _timer_fired(self) -> None:
        self._timer, self._timer_at = None, math.inf
        if not self._over.is_set():
            self._pump()

    def _act(self) -> None:
        if self._playout is None or self._gone:
            return
        for action in self._playout.poll(self._edge.loop.time()):
            match action:
                case Played(turn=turn, heard_ms=heard_ms, state=state):
                    if state != "playing":
                        self._turn_texts.pop(turn, None)
                    self._tell(Kind.PLAYED, [list(turn), heard_ms, state])
                case _ if self._bot.state != "accepted":
                    pass  # VAIC has ended the call
                case SendChunk(data=data):
                    if self._backlog > BACKLOG_BYTES:
                        assert self._media is not None
                        metrics.audio_dropped_ms.labels(where="caller_slow").inc(self._media.ms(len(data)))
                    else:
                        self._send(self._bot.play_chunk(data))
                case StartStream(stream_id=stream_id, turn=turn):
                    assert self._media is not None
                    text = " ".join(self._turn_texts.pop(turn, ())) or None
                    self._send(self._bot.play_start(stream_id, self._media.token, text))
                case StopStream():
                    self._send(self._bot.play_stop())

    def _send(self, data: bytes, delivery: Delivery | None = None) -> None:
        if self._gone:
            return
        self._outgoing.append((data, delivery))
        self._backlog += len(data)
        self._to_write.set()

    async def _write(self) -> None:
        try:
            while True:
                await self._to_write.wait()
                self._to_write.clear()
                while self._outgoing:
                    data, delivery = self._outgoing[0]
                    await self._socket.send(data, text=True)
                    if not self._outgoing:  # the socket was lost meanwhile, and what waited for it with it
                        break
                    self._outgoing.popleft()
                    self._backlog -= len(data)
                    self._progress.set()
                    if delivery is not None and self._link is not None:
                        self._link.done(delivery, self._edge.loop.time())
                        self._pump()
        except (ConnectionClosed, EOFError):
            self._gone = True
            self._outgoing.clear()
            self._progress.set()  # the reader notices as well, and knows what it means

    async def _written(self) -> None:
        """Wait, bounded, until VAIC has what we sent."""
        await self._within(LAST_FRAMES_SECONDS, lambda: not self._outgoing)

    async def _within(self, seconds: float, condition: Callable[[], bool]) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not condition():
                    self._progress.clear()
                    await self._progress.wait()
