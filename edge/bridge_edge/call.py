"""One caller at the edge: a WebSocket from VAIC, a link to the worker that owns the call, a playout between them.

    VAIC ── text frames ──> Bot machine ──> link ──> inbox of the worker
    VAIC <── paced chunks ── playout <────── link <── inbox of this edge

Nothing here outlives the socket that another edge could not rebuild: the call itself is in Redis and with
its owner. What the three machines (`protocol.audiocodes.Bot`, `link.Link`, `playout.Playout`) decide, this
shell carries out: one task reads the socket, one writes it (`outgoing`), one timer serves all deadlines. How a
call comes to a socket is in `opening`, what becomes of one whose worker is dead in `ownerless`.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from bridge_edge.door import Door
from bridge_edge.opening import resume, set_up
from bridge_edge.outgoing import Outgoing
from bridge_edge.ownerless import find_owner
from bridge_edge.playout import Played, Playout, SendChunk, StartStream, StopStream, Turn
from bridge_shared import logs, metrics, tracing
from bridge_shared.direct import Direct
from bridge_shared.errors import BridgeError
from bridge_shared.frames import Frame, Kind
from bridge_shared.grid import on_grid
from bridge_shared.link import Delivery, Link, LinkEvent, LinkFull, PeerChanged, Reread, Side
from bridge_shared.protocol import audiocodes as vaic
from bridge_shared.protocol.media import Inbound, Media, media
from bridge_shared.redis.calls import Attached, CallRecord

if TYPE_CHECKING:
    from bridge_edge.server import Edge

log = logs.get("edge.call")

OWNER_END_SECONDS = 2.0
LAST_FRAMES_SECONDS = 2.0
WOKE_SECONDS = 1.0
"""A timer that is so late shows that this process stood still: the call may be elsewhere by now."""

ASK_AGAIN_SECONDS = 0.25
REPLAY_SECONDS = 1.0
"""An utterance that began so long ago at most is replayed to a new owner; of an older one the agent asks again."""

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
        self.edge = edge
        self.door = door
        self.socket = socket
        self.on_call = on_call
        self.bot = vaic.Bot()
        self.link: Link | None = None
        self._playout: Playout | None = None
        self._inbound: Inbound | None = None
        self._media: Media | None = None
        self._play: Media | None = None
        """What the agent's audio is coded in; the caller's is `_media`."""
        self._direct = socket if isinstance(socket, Direct) else None
        self._outgoing = Outgoing(socket, self._written, self._write_failed)
        self.answer: asyncio.Future[str | None] = edge.loop.create_future()
        """What came of the set-up: None = accepted, otherwise the reason for the refusal."""
        self.over = asyncio.Event()
        """The call needs this socket no longer."""
        self.gone = False
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
        self._doubtful = False
        """This process stood still, and it is not known whether the call is still here: VAIC is told nothing."""
        self.ended_by_peer = False
        self._last_words: list[str | None] = []
        """Code and reason of VAIC's `session.end`."""
        self._leaving = False
        """VAIC was asked to hang up or to transfer: it needs no other reason for the end."""
        self._speech_open = False
        self._speech_began = 0.0
        self._stream_open = False
        self._others_logged = False
        self.bridge = ""
        self._search: asyncio.Task[None] | None = None
        """For a new owner."""
        self._turn: Turn = (0, 0)
        """The latest turn of which audio came; its first piece at `_turn_came`."""
        self._turn_came = 0.0
        self._streamed: Turn = (0, 0)
        """Whose play stream was opened last."""
        self._turn_texts: dict[Turn, list[str]] = {}
        """What the agent says in turns whose play stream is not open yet."""
        self._bad: dict[str, int] = {}
        self._understood: list[str] | None = None
        """Transcript entry and text of what the caller said last."""
        self._began = edge.loop.time()
        self.cid = ""
        self.ours = False
        """This socket has created the call, or is attached to it."""
        self._live = False
        """The call was accepted, here or at a former socket: to lose this one does not end it."""
        self.span = tracing.NOTHING
        """From then on, until the socket is done with."""
        self._ended_as: tuple[str, str] | None = None

    async def run(self) -> None:
        """Serve the socket until the call needs it no longer; then it is closed.

        Cancelling drops the connection without ending the call, so that VAIC may resume it elsewhere.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                reader = tasks.create_task(self._read())
                writer = tasks.create_task(self._outgoing.run())
                await self.over.wait()
                reader.cancel()
                if self._flooded:
                    await self.refuse("flooded", "More messages came than the agent's side takes")
                await self.within(LAST_FRAMES_SECONDS, lambda: self._outgoing.empty)  # VAIC has what we sent
                writer.cancel()
        finally:
            if self.link is not None:
                if not self.over.is_set():
                    self.tell(Kind.LOST, [])
                self.link.acknowledge()  # so that the owner need not wait for it
                self._post(self.link)
            if self._timer is not None:
                self._timer.cancel()
            self.edge.forget(self)
            if self._ended_as is not None:
                reason, detail = self._ended_as
                self.span.end(error=reason if reason == "refused" else "", end_reason=reason, end_detail=detail)
            self.span.end(cut_off=True)
        await self.socket.close()

    def replaced(self) -> None:
        """VAIC has resumed the call on another socket of this edge: close this one without ending the call."""
        self.ends("replaced")
        self.over.set()

    def on_frame(self, sender: str, frame: Frame) -> None:
        """Take one frame of this call from the inbox."""
        if self.link is not None and not self.over.is_set():
            gone = self.gone or (self._direct is not None and self._direct.lost)
            elsewhere = not self._awake() or (gone and not self.ended_by_peer)
            if elsewhere and frame.seq:
                # only what it confirms is of use here; the rest is for the next edge, to be sent again
                frame = frame._replace(seq=0, kind=Kind.ACK, body=[])
            if events := self.link.receive(sender, frame, self.edge.loop.time()):
                self._happened(events)
            if self._playout is None and self.link.connected:
                self.go_on()
            self._progress.set()
            self.pump()

    def on_inbox_lost(self) -> None:
        """Frames for this call were lost with the inbox, and maybe the call's state: look, and greet the owner."""
        if self.link is not None:
            self._happened([Reread("inbox lost")])
            self.link.open(self.edge.loop.time(), "inbox lost")
            self.pump()

    def on_unreachable(self) -> None:
        """The owner's inbox is gone: ask Redis who owns the call now."""
        if self.link is not None:
            self._happened(self.link.unreachable(self.edge.loop.time()))
            self.pump()

    # ── from VAIC ──────────────────────────────────────────────────────────────────────────────────────

    async def _read(self) -> None:
        try:
            async with asyncio.timeout(self.edge.settings.initiate_timeout):
                while self.bot.state == "new":
                    self._take(await self.socket.recv())
            if isinstance(self.socket, Direct):
                await self.socket.each(self._take)
            async for message in self.socket:  # one of the application's
                self._take(message)
        except TimeoutError:
            metrics.calls_refused.labels(reason="silent").inc()
            log.info("a new connection began no call, closing it", remote=str(self.socket.remote_address))
        except EOFError:
            pass  # a socket of the application's has ended
        except ConnectionClosed as closed:
            # what matters is whether VAIC had ended the call; only our own verdict on a message is worth a line
            if closed.sent is not None and (why := _BROKEN_OFF.get(closed.sent.code)) and not closed.rcvd_then_sent:
                self._skipped(*why)
        await self._socket_gone()

    def _take(self, message: str | bytes) -> None:
        if len(message) > self.edge.settings.max_message_bytes:
            return self._skipped("too_big", f"{len(message)} characters")
        audio_alone = True
        for event in self.bot.receive(message):
            audio_alone = audio_alone and isinstance(event, vaic.UserAudio)
            self._heard_from_vaic(event)
        if audio_alone and self.link is not None:
            self._post(self.link)
            self._set_timer(self.link.deadline())
        else:
            self.pump()

    def _heard_from_vaic(self, event: vaic.BotEvent) -> None:
        if self._playout is None and isinstance(event, _IN_CALL):
            if len(self._early) < EARLY_EVENTS:
                self._early.append(event)
            else:
                self._skipped("too_many", "messages before session.accepted")
            return
        match event:
            case vaic.UserAudio(data=data, participant=participant):
                if self.bot.is_caller(participant):
                    self._caller_audio(data)
                else:
                    self._other_audio(data)
            case vaic.ActivityReceived(activity=activity):
                self._activity(activity)
            case vaic.UserStreamStarted(participant=participant):
                assert self._inbound is not None
                self.send(self.bot.stream_started())
                if self.bot.is_caller(participant):
                    self._inbound.restart()
                    self._stream_open = True
                    self.tell(Kind.USTREAM, [True, participant])
            case vaic.UserStreamStopped(participant=participant):
                self.send(self.bot.stream_stopped())
                if self.bot.is_caller(participant):
                    self._stream_open = False
                    self.tell(Kind.USTREAM, [False, participant])
            case vaic.Validate():
                self.send(self.bot.validated())
            case vaic.Initiate():
                self._tasks.create_task(set_up(self, event))
            case vaic.Resume():
                self._tasks.create_task(resume(self, event))
            case vaic.SessionEnd(reason_code=code, reason=reason):
                self.ended_by_peer, self._last_words = True, [code, reason]
                self.ends("session_end", tracing.word(code or ""))
                if self._playout is not None and self._turn > (0, 0):
                    self._playout.unsent(self._outgoing.drop_audio(self._turn))
                    self._playout.cut(self._turn, self.edge.loop.time())
                    self._act()
                self._tasks.create_task(self._end(code))
            case vaic.Skipped(code=code, detail=detail):
                self._skipped(code, detail)

    def _caller_audio(self, data: bytes) -> None:
        assert self._inbound is not None and self.link is not None
        if samples := self._inbound.feed(data):
            self.link.send_audio(Kind.UP, [samples], len(samples), self.edge.loop.time())

    def _other_audio(self, data: bytes) -> None:
        """Of somebody beside the caller (agent-assist): two voices in turn in one stream would be none at twice the
        speed."""
        assert self._media is not None
        metrics.audio_dropped_ms.labels(where="other_participant").inc(self._media.ms(len(data)))
        if not self._others_logged:
            self._others_logged = True
            log.warning(
                "a second participant is not heard by the agent; the application need not ask for it", cid=self.cid
            )

    def _activity(self, activity: dict[str, Any]) -> None:
        assert self._playout is not None and self.link is not None
        match activity:
            case {"name": "start"}:
                self._playout.release()
            case {"name": "transferStatus", "value": {"status": "failed"}}:
                self._leaving = False
            case {"name": "playUrlFailed"}:
                self._playout.prompt_failed()
            case {"name": "playFinished", "value": {"playedDurationMS": int() | float() as played_ms, **value}}:
                ended = self._playout.vaic_played(played_ms, str(value.get("status")), self.edge.loop.time())
                if ended is not None:
                    self._outgoing.drop_audio(ended)
        self._activities += 1
        self.tell(Kind.ACTIVITY, [[self.link.epoch, self._activities], activity])

    def _skipped(self, code: str, detail: str) -> None:
        metrics.bad_input.labels(code=code).inc()
        seen = self._bad[code] = self._bad.get(code, 0) + 1
        if seen <= _BAD_INPUT_LOGGED:
            log.warning(
                "message from VAIC skipped, more of this kind are only counted", cid=self.cid, code=code, detail=detail
            )

    # ── set-up ─────────────────────────────────────────────────────────────────────────────────────────

    def attach(self, attached: Attached, media_format: str, play_format: str, *, live: bool = False) -> None:
        """The call is here now: frames from its owner come to this socket. Empty `play_format`: as the other.

        `live`: it has been accepted before.
        """
        now = self.edge.loop.time()
        self.ours, self._live = True, live
        self._media, self._play = media(media_format), media(play_format or media_format)
        self.link = Link(
            Side.EDGE,
            self.cid,
            self.edge.pod,
            epoch=attached.ee,
            now=now,
            peer_pod=attached.owner,
            peer_epoch=attached.we,
        )
        self.edge.know(self)
        if attached.former_edge not in ("", self.edge.pod):
            self.link.dismiss(attached.former_edge)
        if attached.we:
            self.link.open(now, "attached")
        self.pump()

    async def refuse(self, reason: str, why: str, *, end: str = "error") -> None:
        """Tell VAIC why there will be no call, or no more of it, let go of it, and count it by `reason`.

        The call in Redis is ended first with the reason `end`, unless that is empty.
        """
        metrics.calls_refused.labels(reason=reason).inc()
        if end:
            await self.end_in_redis(end, why)
        log.info("call refused", cid=self.cid, why=why)
        self.ends("refused", why)
        self.give_up(why)

    def give_up(self, why: str) -> None:
        """Let go of VAIC: with the reason, unless it knows one or has gone."""
        self.ends("closed")
        if self.bot.state != "ended" and not self._leaving:
            self.send(self.bot.error(why, self.cid or None))
        self.over.set()

    def accept(self, media_format: str, play_format: str, delivery: Delivery | None = None) -> None:
        """Tell VAIC that its call is taken, and begin to play; `delivery`: the worker's word, for a new call. Empty
        `play_format`: as the other."""
        assert self.link is not None
        self._live = True
        settings, now = self.edge.settings, self.edge.loop.time()
        self._inbound = Inbound(media(media_format))
        self._play = media(play_format or media_format)
        self._playout = Playout(
            self._play,
            prefix=str(self.link.epoch),
            lead_ms=settings.play_lead_ms,
            chunk_ms=settings.play_chunk_ms,
            # a resumed call has begun already: VAIC sends no second `start`
            hold_until=now + settings.start_hold_seconds if delivery is not None else 0.0,
        )
        self.send(self.bot.accepted(media_format), delivery)
        early, self._early = self._early, []
        for event in early:
            self._heard_from_vaic(event)
        for acknowledgement in self.bot.owed():  # of what was skipped because it was too much
            self.send(acknowledgement)

    def go_on(self) -> None:
        """Tell VAIC, and the owner, that a live call is here now; nothing if that was done or is of no use any more.

        With the first frame of its owner, and before what that frame says: from then on the owner sends to no other
        edge.
        """
        waits = self._live and self._playout is None and self.bot.state == "initiated"
        if waits and not (self.gone or self.over.is_set()) and self._awake():
            assert self._media is not None and self._play is not None
            self.accept(self._media.token, self._play.token)
            self.tell(Kind.BACK, [])

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
        """Another worker has the call: tell it what the former one knew."""
        assert self.link is not None
        now = self.edge.loop.time()
        log.info("call has a new owner", cid=self.cid, owner=event.pod)
        in_speech = self._speech_open and self._playout is not None
        fresh = now - self._speech_began <= REPLAY_SECONDS
        since = self._speech_began - LEAD_IN_SECONDS if in_speech and fresh else None
        if not in_speech and not self.edge.dead(
            event.former
        ):  # given away in a pause, in which the caller may just begin
            since = now - LEAD_IN_SECONDS
        self.link.replay(since, now, ask=in_speech and not fresh, understood=self._understood)
        self.tell(Kind.USTREAM, [self._stream_open, None])
        for played in self._playout.forsake(event.epoch) if self._playout is not None else ():
            self.tell(Kind.PLAYED, [list(played.turn), played.heard_ms, played.state])
        if self.gone:
            self.tell(Kind.LOST, [])

    @property
    def owner(self) -> str:
        """The pod that owns the call; "" before there is one."""
        return self.link.peer_pod if self.link is not None else ""

    def orphaned(self) -> None:
        """The owner is dead: offer the call to the other workers until one says HELLO."""
        if self.link is None or not self.link.peer_pod or self.over.is_set():
            return
        if self._search is None or self._search.done():
            self._search = self._tasks.create_task(find_owner(self, self.link))

    def _deliver(self, delivery: Delivery) -> None:
        now, body = self.edge.loop.time(), delivery.body
        if self._playout is None:
            self.go_on()
        playout, link = self._playout, self.link
        assert link is not None
        if self.bot.state == "ended" and delivery.kind in _FOR_VAIC:  # it crossed VAIC's session.end
            return link.done(delivery, now)
        match delivery.kind:
            case Kind.DOWN if playout:
                turn = (body[0][0], body[0][1])
                if turn != self._turn:
                    self._turn, self._turn_came = turn, now
                playout.audio(turn, body[1], now)
                return
            case Kind.TURNEND if playout:
                playout.end(tuple(body[0]))
            case Kind.CUT if playout:
                turn = (body[0][0], body[0][1])
                playout.unsent(self._outgoing.drop_audio(turn))
                playout.cut(turn, now)
                self._turn_texts = {turn: texts for turn, texts in self._turn_texts.items() if playout.expects(turn)}
                metrics.cuts.inc()
                if self.edge.settings.abort_prompts:
                    self._act()  # the stream is closed first
                    self.send(self.bot.activities([{"type": "event", "name": "abortPrompts"}]))
            case Kind.SPEECH:
                return self._speech(body[0], body[1], body[2:], delivery)
            case Kind.ACTIVITY:
                self._leaving = self._leaving or any(activity.get("name") in _LEAVE for activity in body[1])
                for activity in body[1]:
                    if playout and (activity.get("name") == "playUrl" or activity.get("type") == "message"):
                        playout.prompt()
                return self.send(self.bot.activities(body[1]), delivery)
            case Kind.ACCEPT if self._playout is None and self.bot.state == "initiated":
                self.accept(body[0], body[1] if len(body) > 1 else "", delivery)
                metrics.setup_seconds.observe(now - self._began)
                self.span.set(setup_ms=round((now - self._began) * 1000, 1))
                if not self.answer.done():
                    self.answer.set_result(None)
                return
            case Kind.REFUSE if not self.answer.done():
                self.answer.set_result(body[0])
            case Kind.REFUSE | Kind.CLOSE:
                self.give_up(body[0])
        link.done(delivery, now)

    def _speech(self, kind: str, text: str, more: list[Any], delivery: Delivery) -> None:
        """Report the caller's speech, paired and in the order of the Bot API reference §5.4."""
        bot = self.bot
        match kind:
            case "started":
                if self._speech_open:  # what it was came to no text
                    self.send(bot.speech_stopped())
                self._speech_open = True
                self._speech_began = self.edge.loop.time()
                self._act()  # the cut turn's `playStream.stop` goes out before the report
                self.send(bot.speech_started(), delivery)
                return
            case "recognition":
                self._understood = [more[0], text] if more else None
                if self._speech_open:
                    self.send(bot.speech_stopped())
                self._speech_open = False
                self.send(bot.recognition(text))
                self.send(bot.committed(), delivery)
                return
            case "agent" if (
                more and self._playout is not None and self._playout.expects(turn := (more[0][0], more[0][1]))
            ):
                self._turn_texts.setdefault(turn, []).append(text)
        assert self.link is not None
        self.link.done(delivery, self.edge.loop.time())

    async def _reread(self) -> None:
        """Ask Redis whose call this is, before anything else is said; after a standstill for as long as that takes."""
        assert self.link is not None
        try:
            while True:
                doubtful = self._doubtful
                try:
                    record = await self.edge.calls.read(self.cid)
                    if self._live and (record is None or record.ee < self.link.epoch):
                        record = await self._restore(self.link.epoch)
                except BridgeError as error:
                    log.debug("state of the call cannot be read now", cid=self.cid, error=str(error))
                    if not self._doubtful or self.over.is_set():
                        return
                    await asyncio.sleep(ASK_AGAIN_SECONDS)
                else:
                    if doubtful or not self._doubtful:  # otherwise it was asked before this process stood still
                        break
        finally:
            self._rereading = False
        self._doubtful = False
        if record is None and not self._live:  # Redis was emptied while the call was being set up
            return self.give_up("The bridge lost the call while it was set up")
        if record is None or record.ee > self.link.epoch:
            log.debug("the call is no longer here", cid=self.cid)
            self.ends("replaced")
            return self.over.set()
        if record.state == "ended":
            return self.give_up(record.detail or record.reason)
        self._happened(self.link.reread(peer_pod=record.owner, peer_epoch=record.we, now=self.edge.loop.time()))
        self.pump()

    async def _restore(self, epoch: int) -> CallRecord | None:
        """Redis has lost the call: write what is known here; the owner does the same."""
        assert self._media is not None and self._play is not None
        fields = {"state": "active", "bridge": self.bridge, "media_format": self._media.token}
        if self._play != self._media:
            fields["play_format"] = self._play.token
        await self.edge.calls.restore(self.cid, fields, edge=self.edge.pod, ee=epoch)
        return await self.edge.calls.read(self.cid)

    # ── the end ────────────────────────────────────────────────────────────────────────────────────────

    def tell_end(self) -> None:
        """Tell the owner that VAIC has ended the call; nothing before the call is attached."""
        self.tell(Kind.END, self._last_words)
        self.pump()

    async def _end(self, code: str | None) -> None:
        """VAIC ended the call: the owner ends it in Redis, or we do if it does not answer."""
        if not self.answer.done():
            self.answer.set_result("abandoned")
        self.tell_end()
        try:
            async with asyncio.timeout(OWNER_END_SECONDS):
                await self.over.wait()
        except TimeoutError:
            await self.end_in_redis("hangup", code or "")
            self.over.set()

    def tell_lost(self) -> None:
        """Tell the owner of a live call that its caller is lost; `pump` puts it on its way."""
        log.warning("the caller's connection is lost, VAIC may resume the call", cid=self.cid)
        self.tell(Kind.LOST, [])

    async def _socket_gone(self) -> None:
        self.gone = True
        self._outgoing.clear()
        if self.ended_by_peer or self.over.is_set():
            return
        self.ends("socket_lost")
        if not self.answer.done():
            self.answer.set_result("abandoned")
        if self._live:
            self.tell_lost()
        elif self.link is not None:
            await self.end_in_redis("ended", "abandoned")
            self.tell(Kind.END, ["abandoned", None])
        self.pump()
        await self._confirmed()
        self.over.set()

    def ends(self, reason: str, detail: str = "") -> None:
        """What the trace says of the end; the first reason stands."""
        self._ended_as = self._ended_as or (reason, detail)

    async def end_in_redis(self, reason: str, detail: str) -> None:
        if self.ours:  # never a call that this socket has only named
            try:
                # a refused initiate is reported to handlers as in the original (SDK reference §14); so is a call
                # whose owner was too slow, for it may have told them of an error already
                owned = self.link is not None and self.link.connected and detail != "abandoned"
                report = reason == "hangup" or owned
                await self.edge.calls.end(self.cid, reason=reason, detail=detail, report=report)
            except BridgeError as error:
                log.warning("the end of the call could not be recorded", cid=self.cid, error=str(error))

    async def _confirmed(self) -> None:
        """Wait, bounded, until the owner has what we told it."""
        await self.within(LAST_FRAMES_SECONDS, lambda: self.link is None or self.link.settled)

    # ── carrying out ───────────────────────────────────────────────────────────────────────────────────

    def tell(self, kind: Kind, body: list[Any]) -> None:
        """Send the owner a control frame; `pump` puts it on its way."""
        if self.link is None:
            return
        try:
            self.link.send(kind, body, self.edge.loop.time())
        except LinkFull as error:
            if not self._flooded:
                log.error("the call cannot go on", cid=self.cid, error=str(error))
            self._flooded = True
            self.over.set()

    def pump(self) -> None:
        """Do what is due now, post what is to be posted, and set the timer to the next deadline."""
        link, now = self.link, self.edge.loop.time()
        if link is None:
            return
        if events := link.tick(now):
            self._happened(events)
        self._act()
        self._post(link)
        due = link.deadline()
        if self._playout is not None:
            due = min(due, self._playout.deadline(now))
        self._set_timer(due)

    def _set_timer(self, due: float) -> None:
        if due < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = due
            self._timer = self.edge.loop.call_at(on_grid(max(due, self.edge.loop.time())), self._timer_fired)

    def _post(self, link: Link) -> None:
        for pod, frame in link.take():
            self.edge.outbox.post(pod, frame)

    def _awake(self) -> bool:
        """False from the moment when this process finds that it stood still until Redis has said whose the call is."""
        if not self._doubtful and self.edge.loop.time() > self._timer_at + WOKE_SECONDS:
            self._doubtful = True
            self._happened([Reread("stood still")])
        return not self._doubtful

    def _timer_fired(self) -> None:
        self._awake()
        self._timer, self._timer_at = None, math.inf
        if not self.over.is_set():
            self.pump()

    def _act(self) -> None:
        if self._playout is None or self.gone or not self._awake():
            return
        if self._playout.gaps:
            for gap in self._playout.gaps:
                metrics.underruns.inc()
                metrics.gap_seconds.observe(gap)
            self._playout.gaps.clear()
        for action in self._playout.poll(self.edge.loop.time()):
            match action:
                case Played(turn=turn, heard_ms=heard_ms, state=state):
                    if state != "playing":
                        self._turn_texts.pop(turn, None)
                    self.tell(Kind.PLAYED, [list(turn), heard_ms, state])
                case _ if self.bot.state != "accepted":
                    pass  # VAIC has ended the call
                case SendChunk(data=data):
                    if self._outgoing.backlog > BACKLOG_BYTES:
                        assert self._play is not None
                        metrics.audio_dropped_ms.labels(where="caller_slow").inc(self._play.ms(len(data)))
                    else:
                        self._outgoing.put(self.bot.play_chunk(data), audio=len(data), turn=self._streamed)
                case StartStream(stream_id=stream_id, turn=turn):
                    assert self._play is not None
                    self._streamed = turn
                    if turn == self._turn:
                        metrics.playout_seconds.observe(self.edge.loop.time() - self._turn_came)
                    text = " ".join(self._turn_texts.pop(turn, ())) or None
                    self.send(self.bot.play_start(stream_id, self._play.token, text))
                case StopStream():
                    self.send(self.bot.play_stop())

    def send(self, data: bytes, delivery: Delivery | None = None) -> None:
        """Send VAIC a message; `delivery`: the worker's frame whose effect it is."""
        if not self.gone:
            self._outgoing.put(data, delivery)

    def _written(self, delivery: Delivery | None) -> None:
        self._progress.set()
        if delivery is not None and self.link is not None:
            self.link.done(delivery, self.edge.loop.time())
            self.pump()

    def _write_failed(self) -> None:
        self.gone = True
        self._progress.set()  # the reader notices as well, and knows what it means

    async def within(self, seconds: float, condition: Callable[[], bool]) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not condition():
                    self._progress.clear()
                    await self._progress.wait()
