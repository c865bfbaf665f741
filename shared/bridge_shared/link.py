"""The two-way, numbered, acknowledged, fenced exchange of frames between the edge and the owner of one call.

Pure: frames and `now` (monotonic seconds) in; events, frames to post and a deadline out. Both sides run this code.

The rules, whole and in one place (the numbers are those of LINK "Sessions"):

* The pair (edge epoch, worker epoch) is the session. Each side is named by its epoch for ever: a pod that takes the
  call anew has a higher one and a new Link. Both numberings start at 1 in each session.
* A session opens when this side learns a higher epoch of the other: from HELLO (2) or from Redis (`reread`). The
  side that learned it first says HELLO every 250 ms until a frame of the session comes back (1). Frames sent
  directly behind a HELLO need not wait for that.
* A frame that is not of this session is dropped. From an older peer: it is told so, GONE, once a second at most (3).
  From a newer peer, or to a newer self: Redis is asked who is who (3, 4). A frame for our former epoch from
  the peer we know only means that our HELLO is still on its way.
* A numbered frame goes again when an ACK shows that it is missing, or 500 ms after the last progress, doubling to
  2 s (5). Nothing goes again before the peer has shown that it is in the session.
* A quiet peer is asked by HELLO after 1 s, which it answers with an ACK; only one that does not answer makes us
  read Redis at 2 s (6). So a call in which nobody speaks costs next to no reads. A side without a peer reads as
  well: it may have been replaced before it met anybody, or a HELLO to it was lost with its sender.
* Every 30 s Redis is read in any case: an edge and an owner that were both replaced keep each other company.

The numbered frames themselves are in `link_out` (what we must still answer for) and `link_in` (what was delivered).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from math import inf
from typing import Any, TypeAlias

from bridge_shared.frames import AUDIO, VERSION, Frame, Kind, check, repeatable
from bridge_shared.link_in import Delivery, Incoming
from bridge_shared.link_out import LinkFull, Outgoing, Sent

__all__ = ["Delivery", "Limits", "Link", "LinkEvent", "LinkFull", "PeerChanged", "Reread", "Side", "repeatable"]

HELLO_EVERY = 0.25
ACK_CONTROL = 0.05  # the shell of the other side may be waiting for this one
ACK_AUDIO = 0.25  # nobody waits, and any frame that goes the other way says the same
RESEND_AFTER, RESEND_MOST = 0.5, 2.0
HOLE_EVERY = 0.05  # for the same hole, both the ACK that shows it and the answer to that
GONE_EVERY = 1.0
PROBE_AFTER, SILENT_AFTER = 1.0, 2.0
VERIFY_EVERY = 30.0
REREAD_AFTER, REREAD_MOST = 0.05, 0.5
REPLAY_SECONDS = 1.0  # of caller audio is retained (LINK "Audio")

_UNSESSIONED = frozenset({Kind.HELLO, Kind.GONE, Kind.COMMAND})


class Side(Enum):
    """Which end of the link this is."""

    EDGE = "edge"
    WORKER = "worker"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one link may hold, per direction.

    Attributes:
        audio_bytes: audio sent and retained. The oldest is given up, counted and skipped.
        control_frames: control sent and not confirmed as done. The next one raises LinkFull.
        held_frames: how far ahead of a gap a received frame is kept; the sender sends the others again.
    """

    audio_bytes: int = 1 << 20
    control_frames: int = 4096
    held_frames: int = 256


@dataclass(frozen=True, slots=True)
class PeerChanged:
    """The other side has a new epoch; a new session is open and what is retained goes again.

    Before anything else, an edge says what becomes of the caller's audio (`Link.replay`; otherwise none goes
    again), and a worker that does not go on with the turn drops it (`Link.drop_audio`; otherwise it goes again).
    What the former peer knew and never had to be told again (stream open, caller lost, last PLAYED) is the
    shell's to repeat.

    Attributes:
        pod: where the other side lives now.
        former: where it lived before, "" if there was none.
        epoch: its epoch.
        first: there was no other side before.
        unknown: (kind, body) of control that the former peer had received, and may have carried out, and
            that is not repeatable. It does not go again.
    """

    pod: str
    former: str
    epoch: int
    first: bool
    unknown: tuple[tuple[int, list[Any]], ...]


@dataclass(frozen=True, slots=True)
class Reread:
    """Read `call:{cid}`: if this side is no longer ours, close silently; otherwise call `Link.reread`.

    Attributes:
        reason: "gone", "silence", "unreachable", "newer peer", "newer self" or "routine".
    """

    reason: str


LinkEvent: TypeAlias = Delivery | PeerChanged | Reread


class Link:
    """One side of the link of one call.

    After every call of any other method, post what `take` returns and arm a timer for `deadline`.

    Attributes:
        epoch: ours.
        peer_epoch: the other side's, 0 while there is none.
        peer_pod: where it lives, "" while unknown.
        connected: a frame of this session has been received.
        resent, fenced, gone: frames sent again, dropped for their epoch, and GONE received.
    """

    def __init__(
        self,
        side: Side,
        cid: str,
        pod: str,
        *,
        epoch: int,
        now: float,
        peer_pod: str = "",
        peer_epoch: int = 0,
        limits: Limits = Limits(),
    ) -> None:
        """Start with what attach or claim returned.

        Args:
            side: which end this is.
            cid: the call.
            pod: our pod, where answers go.
            epoch: our epoch.
            now: monotonic seconds.
            peer_pod: pod of the other side, "" if there is none.
            peer_epoch: its epoch, 0 if there is none. If both are known, `open` the session.
            limits: what may be held.
        """
        self.side, self.cid, self.pod, self.epoch = side, cid, pod, epoch
        self.peer_pod, self.peer_epoch = peer_pod, 0
        self.connected = False
        self.resent = self.fenced = self.gone = 0
        self._limits = limits
        self._out = Outgoing(
            keep=REPLAY_SECONDS if side is Side.EDGE else None,
            audio_bound=limits.audio_bytes,
            control_bound=limits.control_frames,
        )
        self._in = Incoming(bound=limits.held_frames)
        self._session = (-1, -1)  # so that no frame belongs to it: on the wire no number is negative
        self._now = now
        self._heard = now  # last frame of this session, or its beginning

        # What take() hands out.
        self._queue: list[Sent] = []
        self._aside: list[tuple[str, Frame]] = []
        self._hello: str | None = None  # the reason to give
        self._ack = False

        # Moments at which tick() has something to do.
        self._ack_at = inf
        self._hello_at = inf
        self._resend_at = inf
        self._silent_at = -inf  # not before this moment is Redis asked about silence again
        self._verify_at = now + VERIFY_EVERY

        self._armed = now  # when the wait for the first unreceived frame last began
        self._resend_wait = RESEND_AFTER
        self._hole = (0, 0.0)  # start and moment of the hole that we last filled
        self._shown = (0, 0.0)  # start and moment of the hole that we last showed
        self._told_gone = -inf

        self._reread = ""  # the reason, if one is wanted
        self._reread_from = -inf  # not before this moment
        self._reread_wait = REREAD_AFTER

        self._opening = False  # a session has opened; nothing is numbered in it yet
        self._since = -inf  # audio sent before this moment does not go into it
        self._due = -inf  # not before this moment has tick() anything to do: the earliest of those above, or earlier
        if peer_epoch:
            self._enter(peer_pod, peer_epoch, now)
        self._look_ahead()

    @property
    def session(self) -> tuple[int, int]:
        """(edge epoch, worker epoch); -1 twice while there is no other side."""
        return self._session

    @property
    def retained_bytes(self) -> int:
        """Audio of ours that is retained."""
        return self._out.audio_bytes

    @property
    def settled(self) -> bool:
        """Whether the other side has received all that was sent, and done all control of it."""
        return self._out.settled

    @property
    def dropped(self) -> int:
        """Audio frames of ours that were given up before the other side had received them."""
        return self._out.dropped

    @property
    def dropped_bytes(self) -> int:
        """The audio in those."""
        return self._out.dropped_bytes

    @property
    def missed(self) -> int:
        """Audio frames that the other side gave up before we had received them."""
        return self._in.missed

    @property
    def skipped(self) -> int:
        """Frames of kinds unknown to this version, delivered as nothing."""
        return self._in.skipped

    @property
    def held_dropped(self) -> int:
        """Frames that came too far ahead of a gap to be held."""
        return self._in.held_dropped

    # What the shell does.

    def open(self, now: float, reason: str = "") -> None:
        """Say HELLO, and again every 250 ms until a frame of this session comes.

        For a side that knows both epochs, and for a pod that had to create its inbox anew.
        """
        self._now = now
        if self.peer_pod:
            self._hello = reason
            self._hello_at = now + HELLO_EVERY
        self._look_ahead()

    def send(self, kind: int, body: list[Any], now: float) -> None:
        """Send control; it waits if there is no other side yet.

        Raises:
            LinkFull: too many control frames are unconfirmed. The call cannot go on.
            FrameError: the body cannot travel.
        """
        check(kind, body)
        self._now = now
        if self._opening:
            self._settle(now)
        self._post(self._out.control(kind, body, now), now)

    def send_audio(self, kind: int, body: list[Any], nbytes: int, now: float) -> None:
        """Send UP or DOWN, which holds `nbytes` of audio. The oldest retained audio gives way."""
        self._now = now
        if self._opening:
            self._settle(now)
        self._post(self._out.audio(kind, body, nbytes, now), now)

    def replay(
        self, since: float | None, now: float, *, ask: bool = False, understood: list[str] | None = None
    ) -> None:
        """Tell a new owner how the caller's audio continues: the edge's first answer to PeerChanged.

        Sends REPLAY before everything else, then the retained audio of the open utterance.

        Args:
            since: monotonic moment; audio sent from then on goes again. None: none does.
            now: monotonic seconds.
            ask: the open utterance began too long ago; the worker is to ask the caller again.
            understood: transcript entry and text of what was understood last: it may have died with its owner.
        """
        self._now = now
        last = [understood] if understood else []
        if not self._opening:  # too late to be first, or to take audio along that was dropped
            self.send(Kind.REPLAY, ["ask" if ask else 0, *last], now)
            return
        self._since = inf if since is None else since
        ms = 0 if since is None else max(0, round((now - max(since, now - REPLAY_SECONDS)) * 1000))
        self._settle(now, (Kind.REPLAY, ["ask" if ask else ms, *last]))

    def drop_audio(self) -> None:
        """Give up all retained audio. After PeerChanged: none of it goes to the new peer."""
        self._out.drop_audio()

    def done(self, delivery: Delivery, now: float) -> None:
        """The effect of a delivered control frame has happened. Any order; of a past session: ignored."""
        self._now = now
        if delivery.session == self._session and delivery.kind not in AUDIO:
            before = self._in.done
            self._in.finish(delivery.seq)
            if self._in.done > before:
                self._owe_ack(now + (ACK_AUDIO if delivery.kind == Kind.PLAYED else ACK_CONTROL))

    def acknowledge(self) -> None:
        """Confirm with the next `take` what was received and done: the shell is about to stop."""
        self._ack = bool(self.peer_epoch)

    def receive(self, sender: str, frame: Frame, now: float) -> list[LinkEvent]:
        """Take a frame of this call that pod `sender` wrote into our inbox."""
        self._now = now
        if (frame.ee, frame.we) != self._session or frame.kind in _UNSESSIONED:
            events = self._stray(sender, frame, now)
            self._look_ahead()
            return events
        self._heard = now
        self.connected = True
        self._hello_at = inf
        if self._opening:
            self._settle(now)
        out = self._out
        if (frame.rx > out.rx or frame.done > out.done) and out.confirmed(frame.rx, frame.done):
            self._progress(now)
        seq = frame.seq
        if not seq:
            if frame.kind == Kind.ACK and frame.body and frame.rx == out.rx:
                self._fill(frame.body[0], now)
            return []
        deliveries = self._in.receive(self._session, frame)
        if frame.kind in AUDIO and not self._in.held:  # nearly all of them
            if self._ack_at == inf:
                self._owe_ack(now + ACK_AUDIO)
        else:
            self._answer(frame, now)
        return deliveries  # type: ignore[return-value]  # a list of one of its kinds, and a cast costs in each frame

    def tick(self, now: float) -> list[LinkEvent]:
        """Do what is due. Harmless at any moment."""
        self._now = now
        if self._opening:
            self._settle(now)
        if now < self._due:
            return []
        events = self._do_due(now)
        self._look_ahead()
        return events

    def deadline(self) -> float:
        """The moment at which tick() may have something to do. It is never far away: silence has to be noticed."""
        return self._due

    def _do_due(self, now: float) -> list[LinkEvent]:
        self._out.expire(now)
        if now >= self._ack_at:
            self._ack_at, self._ack = inf, True
        if now >= self._resend_at:
            if self.connected:
                self._resend_wait = min(RESEND_MOST, self._resend_wait * 2)
            self._resend(self._out.rx + self._limits.held_frames, now)
        if now >= self._hello_at:
            self.open(now, "no answer")
        elif self.peer_epoch and self._hello_at == inf and now >= self._heard + PROBE_AFTER:
            self.open(now, "quiet")
        if now >= max(self._silent_at, self._heard + SILENT_AFTER):
            self._silent_at = now + SILENT_AFTER
            return self._want_reread("silence", now)
        if now >= self._verify_at:
            return self._want_reread("routine", now)
        return self._reread_due(now)

    def _look_ahead(self) -> None:
        """Find the next moment at which something is due."""
        silent = max(self._silent_at, self._heard + SILENT_AFTER)
        moment = min(self._ack_at, self._resend_at, self._hello_at, self._verify_at, silent)
        if self.peer_epoch and self._hello_at == inf:
            moment = min(moment, self._heard + PROBE_AFTER)
        if self._reread:
            moment = min(moment, self._reread_from)
        self._due = moment

    def take(self) -> list[tuple[str, Frame]]:
        """The frames to post now, with the pod that each goes to. Everything that goes carries our rx and done."""
        if self._opening:
            self._settle(self._now)
        if not (self._queue or self._ack or self._hello is not None or self._aside):
            return []
        frames, self._aside = self._aside, []
        pod, cid, rx, done = self.peer_pod, self.cid, self._in.rx, self._in.done
        ee, we = self._session if self.peer_epoch else self._half_session()
        if self._hello is not None:
            frames.append((pod, Frame(VERSION, cid, ee, we, 0, rx, done, Kind.HELLO, [self.pod, self._hello])))
        for seq, kind, body, _, _ in self._queue:
            frames.append((pod, Frame(VERSION, cid, ee, we, seq, rx, done, kind, body)))
        if self._ack and (self._in.held or not self._queue):
            hole_end = self._in.hole_end
            frames.append((pod, Frame(VERSION, cid, ee, we, 0, rx, done, Kind.ACK, [hole_end] if hole_end else [])))
        if self._queue or self._ack or self._hello is not None:
            self._queue, self._ack, self._hello = [], False, None
            self._ack_at = inf
        return frames

    def reread(self, *, peer_pod: str, peer_epoch: int, now: float) -> list[LinkEvent]:
        """What `call:{cid}` says about the other side; our own side is still ours. An older epoch is not believed."""
        self._now = now
        self._reread = ""
        if peer_epoch > self.peer_epoch:
            event = self._enter(peer_pod, peer_epoch, now)
            self.open(now, "reread")
            return [event]
        if peer_epoch == self.peer_epoch and peer_pod:
            self.peer_pod = peer_pod
        self.open(now, "reread")
        return []

    def dismiss(self, pod: str) -> None:
        """Tell a pod that it is of an older epoch: the one that was this side of the call before us, say."""
        ee, we = self._session if self.peer_epoch else self._half_session()
        self._aside.append((pod, Frame(VERSION, self.cid, ee, we, 0, 0, 0, Kind.GONE, [ee, we])))

    def unreachable(self, now: float) -> list[LinkEvent]:
        """The other side's inbox is gone: Redis refused a write of ours. Frames are kept."""
        self._now = now
        events = self._want_reread("unreachable", now)
        self._look_ahead()
        return events

    # Sessions.

    def _half_session(self) -> tuple[int, int]:
        return (self.epoch, 0) if self.side is Side.EDGE else (0, self.epoch)

    def _enter(self, pod: str, epoch: int, now: float) -> PeerChanged:
        """A session with a peer of a higher epoch; what goes into it is settled when the shell has heard of it."""
        first = not self.peer_epoch
        unknown = () if self.side is Side.EDGE else self._out.give_up_unknown()
        former, self.peer_pod, self.peer_epoch = self.peer_pod, pod, epoch
        self._session = (self.epoch, epoch) if self.side is Side.EDGE else (epoch, self.epoch)
        self.connected = False
        self._in.restart()
        self._ack, self._ack_at, self._hello, self._hello_at, self._resend_at = False, inf, None, inf, inf
        self._heard, self._silent_at = now, -inf
        self._hole = self._shown = (0, 0.0)
        self._reread, self._reread_wait, self._reread_from = "", REREAD_AFTER, -inf
        self._opening = True
        # Audio that a former owner may have heard is not for the next one, unless the edge says so.
        self._since = inf if self.side is Side.EDGE and not first else -inf
        return PeerChanged(pod, former, epoch, first, unknown)

    def _settle(self, now: float, first: tuple[int, list[Any]] | None = None) -> None:
        self._opening = False
        self._queue = self._out.restart(self._since, first, now)
        if self._queue:
            self._arm(now)

    def _stray(self, sender: str, frame: Frame, now: float) -> list[LinkEvent]:
        """A frame that opens a session, asks about one, or belongs to none (LINK "Sessions" 2-4)."""
        if frame.kind == Kind.COMMAND:
            return []  # for the pod, not for a link
        if frame.kind == Kind.GONE:
            self.gone += 1
            return self._want_reread("gone", now)
        ours, theirs = (frame.ee, frame.we) if self.side is Side.EDGE else (frame.we, frame.ee)
        if theirs < self.peer_epoch:
            self.fenced += 1
            if now >= self._told_gone + GONE_EVERY:
                self._told_gone = now
                self.dismiss(sender)
            return []
        if ours > self.epoch:
            self.fenced += 1
            return self._want_reread("newer self", now)
        if frame.kind != Kind.HELLO:
            self.fenced += 1
            return self._want_reread("newer peer", now) if theirs > self.peer_epoch else []
        if theirs == self.peer_epoch == 0:
            return []
        events: list[LinkEvent] = []
        if theirs > self.peer_epoch:
            events.append(self._enter(sender, theirs, now))
            self._hello = "answer"
            if ours != self.epoch:
                self.open(now, "answer")
        elif ours != self.epoch:
            self._hello = "answer"
        else:
            self.peer_pod = sender
            self._ack = True
        if ours == self.epoch:
            self._meet(frame, now)
        return events

    def _meet(self, hello: Frame, now: float) -> None:
        """A HELLO of this very session: the peer is in it, and may have lost what was under way."""
        self.connected = True
        self._heard = now
        self._hello_at = inf
        if self._opening:
            return
        if self._out.confirmed(hello.rx, hello.done):
            self._progress(now)
        if self._out.waiting and now >= self._armed + HOLE_EVERY:
            self._resend(self._out.rx + self._limits.held_frames, now)

    def _want_reread(self, reason: str, now: float) -> list[LinkEvent]:
        self._reread = self._reread or reason
        self._verify_at = now + VERIFY_EVERY
        return self._reread_due(now)

    def _reread_due(self, now: float) -> list[LinkEvent]:
        if not self._reread or now < self._reread_from:
            return []
        event = Reread(self._reread)
        self._reread = ""
        # Frames of a stale session keep coming until the answer is here; Redis need not hear of each.
        calm = now >= self._reread_from + REREAD_MOST
        self._reread_wait = REREAD_AFTER if calm else min(REREAD_MOST, self._reread_wait * 2)
        self._reread_from = now + self._reread_wait
        return [event]

    # Sending, and sending again.

    def _post(self, sent: Sent, now: float) -> None:
        if self.peer_epoch:
            self._queue.append(sent)
            if self._resend_at == inf:
                self._arm(now)

    def _arm(self, now: float) -> None:
        self._armed = now
        self._resend_wait = RESEND_AFTER
        self._resend_at = now + RESEND_AFTER
        self._due = min(self._due, self._resend_at)

    def _progress(self, now: float) -> None:
        if self._out.waiting:
            self._arm(now)
        else:
            self._resend_at = inf
            self._resend_wait = RESEND_AFTER

    def _resend(self, last: int, now: float) -> None:
        """Send what is missing up to `last`, unless it is about to go or the peer would refuse it."""
        self._armed, self._resend_at = now, now + self._resend_wait
        self._due = min(self._due, self._resend_at)
        if self.connected and not self._queue:
            self._queue = self._out.missing(last)
            self.resent += len(self._queue)

    def _fill(self, hole_end: Any, now: float) -> None:
        """The peer holds `hole_end` and not what is before it."""
        start, since = self._hole
        begins = self._out.rx + 1
        if type(hole_end) is int and hole_end > begins and (begins != start or now >= since + HOLE_EVERY):
            self._hole = (begins, now)
            self._resend(hole_end - 1, now)

    # Acknowledging.

    def _owe_ack(self, at: float) -> None:
        if at < self._ack_at:
            self._ack_at = at
            self._due = min(self._due, at)

    def _answer(self, frame: Frame, now: float) -> None:
        """See to it that the peer learns of a numbered frame's arrival in time."""
        if self._in.held:
            start, shown = self._shown
            if self._in.rx + 1 != start or now >= shown + HOLE_EVERY:
                self._shown = (self._in.rx + 1, now)
                self._ack = True
            return
        if frame.kind in AUDIO or frame.kind == Kind.PLAYED:
            self._owe_ack(now + ACK_AUDIO)
        elif repeatable(frame.kind, frame.body):
            self._owe_ack(now + ACK_CONTROL)
        else:
            # The shell may wait until this ACK is written before it acts: then a command that the worker
            # does not know to be received was not carried out, whenever this edge dies.
            self._ack = True
