"""What one side of a link has received in a session: delivered once, in order, and how much of it is done.

A frame that comes too early is held until the gap before it is filled or given up by its sender (SKIP); one that
comes again is dropped (LINK "Sessions" 5). Knows no session and no timer.
"""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

from bridge_shared.frames import AUDIO, Frame, Kind

_KNOWN = frozenset(int(kind) for kind in Kind) - {Kind.HELLO, Kind.ACK, Kind.SKIP, Kind.GONE, Kind.COMMAND}


class Delivery(NamedTuple):
    """A frame for the shell. In order and exactly once per session.

    A tuple and not a dataclass like the other events, because there is one for every audio frame.

    Attributes:
        session: (edge epoch, worker epoch).
        seq: its number, which `Link.done` needs.
        kind: a `Kind` that this version knows.
        body: as the kind says.
    """

    session: tuple[int, int]
    seq: int
    kind: int
    body: list[Any]


class Incoming:
    """The numbered frames of the other direction.

    Attributes:
        rx: highest number received without a gap.
        held: frames that came before their predecessors.
        skipped: frames of kinds that this version does not know: delivered as nothing.
        missed: frames that their sender gave up before they arrived.
        held_dropped: frames too far ahead to be held.
    """

    __slots__ = ("_bound", "_finished", "_pending", "held", "held_dropped", "missed", "rx", "skipped")

    def __init__(self, *, bound: int) -> None:
        """Start empty; `bound` is how far ahead of rx a frame may be and still be held."""
        self._bound = bound
        self.rx = 0
        self.held: dict[int, Frame] = {}
        self._pending: deque[int] = deque()  # control delivered and not done, ascending
        self._finished: set[int] = set()  # of these, the ones done while an earlier one is not
        self.skipped = self.missed = self.held_dropped = 0

    @property
    def done(self) -> int:
        """Highest number up to which every control frame has had its effect."""
        return self._pending[0] - 1 if self._pending else self.rx

    @property
    def hole_end(self) -> int:
        """The lowest number held, or 0: what lies between it and rx has not arrived."""
        return min(self.held) if self.held else 0

    def restart(self) -> None:
        """Begin a new session."""
        self.rx = 0
        self.held.clear()
        self._pending.clear()
        self._finished.clear()

    def receive(self, session: tuple[int, int], frame: Frame) -> list[Delivery]:
        """Take a numbered frame of this session; what can be delivered now, in order."""
        seq, ahead = frame.seq, frame.seq - self.rx
        if ahead == 1 and frame.kind in AUDIO and not self.held:  # nearly all of them
            self.rx = seq
            return [Delivery(session, seq, frame.kind, frame.body)]
        if ahead > self._bound:
            self.held_dropped += 1
            return []
        if ahead > 1:
            self.held[seq] = frame
            return []
        # Of frames that come again, only a SKIP may say something new: its sender did not know our rx.
        if ahead < 1 and (frame.kind != Kind.SKIP or _last(frame) <= self.rx):
            return []
        deliveries: list[Delivery] = []
        self._accept(session, frame, deliveries)
        while self.held and (following := self.held.pop(self.rx + 1, None)) is not None:
            self._accept(session, following, deliveries)
        return deliveries

    def finish(self, seq: int) -> None:
        """A delivered control frame has had its effect; they may finish in any order."""
        if self._pending and seq >= self._pending[0]:
            self._finished.add(seq)
        while self._pending and self._pending[0] in self._finished:
            self._finished.discard(self._pending.popleft())

    def _accept(self, session: tuple[int, int], frame: Frame, deliveries: list[Delivery]) -> None:
        if frame.kind == Kind.SKIP:
            self._skip(session, _last(frame), deliveries)
            return
        self.rx = frame.seq
        if frame.kind not in _KNOWN:
            self.skipped += 1
            return
        if frame.kind not in AUDIO:
            self._pending.append(frame.seq)
        deliveries.append(Delivery(session, frame.seq, frame.kind, frame.body))

    def _skip(self, session: tuple[int, int], last: int, deliveries: list[Delivery]) -> None:
        """Pass a range that its sender no longer has. What of it had arrived early is delivered all the same."""
        for seq in sorted(seq for seq in self.held if seq <= last):
            early = self.held.pop(seq, None)
            if early is not None and seq > self.rx:
                self.missed += seq - self.rx - 1
                self._accept(session, early, deliveries)
        if last > self.rx:
            self.missed += last - self.rx
            self.rx = last


def _last(frame: Frame) -> int:
    """The end of a SKIP; one without a usable body passes its own number only."""
    last = frame.body[0] if frame.body else frame.seq
    return last if type(last) is int and last > frame.seq else frame.seq
