"""What one side of a link has sent and must still answer for: numbered, retained, bounded.

Control and audio share one numbering, so the order of sending is the order of delivery. They differ in when they
are forgotten (LINK "Sessions" 7): control when the peer has done it, agent audio when the peer has received it,
caller audio when it is a second old (until then a new owner may ask for it again, received or not). Audio that was
given up before it arrived leaves a gap in the numbering, which is sent as one SKIP. Knows no session and no timer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from heapq import merge
from itertools import chain
from operator import itemgetter
from typing import Any, NamedTuple

from bridge_shared.errors import BridgeError
from bridge_shared.frames import Kind, repeatable


class LinkFull(BridgeError):
    """So many control frames wait for the peer that another one would not be safe. Nothing was sent."""


class Sent(NamedTuple):
    """One numbered frame of ours. `at` is the moment it was first sent, `nbytes` its audio (0 for control)."""

    seq: int
    kind: int
    body: list[Any]
    nbytes: int
    at: float


_END = Sent(0, 0, [], 0, 0.0)


class Outgoing:
    """The numbered frames of one direction.

    Attributes:
        next: the number that the next frame gets.
        rx, done: the peer's, as far as it told us.
        audio_bytes: how much audio is retained.
        dropped, dropped_bytes: audio given up before the peer had received it.
    """

    __slots__ = (
        "_audio",
        "_audio_bound",
        "_control",
        "_control_bound",
        "_keep",
        "audio_bytes",
        "done",
        "dropped",
        "dropped_bytes",
        "next",
        "rx",
    )

    def __init__(self, *, keep: float | None, audio_bound: int, control_bound: int) -> None:
        """Start empty.

        Args:
            keep: seconds that audio is retained after sending, or None: until the peer has received it.
            audio_bound: most bytes of audio retained.
            control_bound: most control frames retained.
        """
        self._keep, self._audio_bound, self._control_bound = keep, audio_bound, control_bound
        self._audio: deque[Sent] = deque()
        self._control: deque[Sent] = deque()
        self.next = 1
        self.rx = self.done = 0
        self.audio_bytes = self.dropped = self.dropped_bytes = 0

    @property
    def waiting(self) -> bool:
        """Whether a frame was sent that the peer has not confirmed to have received."""
        return self.rx < self.next - 1

    @property
    def settled(self) -> bool:
        """Whether the peer has received everything and done all control."""
        return not self._control and not self.waiting

    def control(self, kind: int, body: list[Any], now: float) -> Sent:
        """Number and retain a control frame. Raises LinkFull."""
        if len(self._control) >= self._control_bound:
            raise LinkFull(
                f"{len(self._control)} control frames wait for the peer; the next, of kind {kind}, is refused"
            )
        sent = Sent(self.next, kind, body, 0, now)
        self.next += 1
        self._control.append(sent)
        return sent

    def audio(self, kind: int, body: list[Any], nbytes: int, now: float) -> Sent:
        """Number and retain an audio frame; the oldest audio makes room."""
        sent = Sent(self.next, kind, body, nbytes, now)
        self.next += 1
        self._audio.append(sent)
        self.audio_bytes += nbytes
        if self._keep is not None:
            self.expire(now)
        while self.audio_bytes > self._audio_bound:
            self._forget_oldest()
        return sent

    def expire(self, now: float) -> None:
        """Forget audio that has become too old to be of use."""
        if self._keep is not None:
            horizon = now - self._keep
            while self._audio and self._audio[0].at < horizon:
                self._forget_oldest()

    def drop_audio(self) -> None:
        """Forget all audio: what has not arrived never will."""
        while self._audio:
            self._forget_oldest()

    def confirmed(self, rx: int, done: int) -> bool:
        """Take the peer's word; whether it has received more than we knew. What was never sent cannot be confirmed."""
        if not self.rx <= rx < self.next or not done <= rx:
            return False
        if done > self.done:
            self.done = done
            while self._control and self._control[0].seq <= done:
                self._control.popleft()
        if rx == self.rx:
            return False
        self.rx = rx
        if self._keep is None:
            while self._audio and self._audio[0].seq <= rx:
                self._forget_oldest()
        return True

    def missing(self, last: int) -> list[Sent]:
        """What the peer needs to have everything up to `last`: retained frames, and a SKIP for each gap, all of it."""
        frames: list[Sent] = []
        wanted, last = self.rx + 1, min(last, self.next - 1)
        for sent in chain(self._in_order(), (_END._replace(seq=self.next),)):
            if wanted > last:
                break
            if sent.seq < wanted:
                continue
            if sent.seq > wanted:
                frames.append(Sent(wanted, Kind.SKIP, [sent.seq - 1], 0, 0.0))
            if sent.seq <= last:
                frames.append(sent)
            wanted = sent.seq + 1
        return frames

    def give_up_unknown(self) -> tuple[tuple[int, list[Any]], ...]:
        """Forget and return the control that the peer received, may have done, and that must not be done twice."""
        unknown = [s for s in self._control if s.seq <= self.rx and not repeatable(s.kind, s.body)]
        if unknown:
            self._control = deque(s for s in self._control if s.seq > self.rx or repeatable(s.kind, s.body))
        return tuple((s.kind, s.body) for s in unknown)

    def restart(self, since: float, first: tuple[int, list[Any]] | None, now: float) -> list[Sent]:
        """Begin a new session: number what is retained from 1, in its old order, and return it for sending.

        Args:
            since: audio first sent before this moment is dropped.
            first: kind and body of a control frame that goes before everything.
            now: monotonic seconds.
        """
        self.expire(now)
        while self._audio and self._audio[0].at < since:
            self._forget_oldest()
        kept = [s for s in self._in_order() if s.kind != Kind.REPLAY]  # which spoke to the former owner alone
        audio = {s.seq for s in self._audio}
        self._audio.clear()
        self._control.clear()
        self.next, self.rx, self.done = 1, 0, 0
        sent = [self.control(*first, now)] if first else []
        for old in kept:
            renumbered = old._replace(seq=self.next)
            self.next += 1
            (self._audio if old.seq in audio else self._control).append(renumbered)
            sent.append(renumbered)
        return sent

    def _in_order(self) -> Iterator[Sent]:
        return merge(self._control, self._audio, key=itemgetter(0))

    def _forget_oldest(self) -> None:
        oldest = self._audio.popleft()
        self.audio_bytes -= oldest.nbytes
        if oldest.seq > self.rx:
            self.dropped += 1
            self.dropped_bytes += oldest.nbytes
