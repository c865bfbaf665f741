"""What a caller hears, and when: VAIC's play queue drained in real time (pure; Bot API reference §6 and §8.4).

Streams are played one after the other at the rate of their own format. A stream that runs dry before its `stop` is
silent until more comes: an underrun. `stop` ends a stream but plays what is there; only `discard` throws away.
Times are monotonic seconds, durations milliseconds.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Final, Literal

from bridge_shared.protocol.media import Media

SEAM_MS: Final = 0.5
"""A chunk that comes this soon after the last sample was played joins on seamlessly."""

Status = Literal["finished", "interrupted"]


@dataclass(slots=True)
class Played:
    """One play stream as the caller heard it."""

    stream_id: str
    media: Media
    data: bytearray = field(default_factory=bytearray)
    """What was received; cut down to what was heard once the stream is over."""
    runs: list[tuple[float, int]] = field(default_factory=list)
    """Where sound began, at first and after each underrun: (moment, offset in `data`)."""
    gaps: list[float] = field(default_factory=list)
    """The length of each underrun."""
    stopped: bool = False
    status: Status | None = None
    ended_at: float = 0.0

    @property
    def ms(self) -> float:
        return self.media.ms(len(self.data))


class PlayClock:
    """The queue of one call. Every method takes `now` and returns the streams that are over by then."""

    def __init__(self) -> None:
        self.streams: list[Played] = []
        """All streams so far, in order."""
        self.max_lead_ms = 0.0
        self._queue: deque[Played] = deque()
        self._dry_at: float | None = None  # since when the head has had nothing to play

    @property
    def busy(self) -> bool:
        """Something is playing, queued, or may still come in the open stream: the bot has the floor."""
        return bool(self._queue)

    def start(self, stream_id: str, media: Media, now: float) -> list[Played]:
        """The bot opened a stream."""
        over = self.tick(now)
        stream = Played(stream_id, media)
        self.streams.append(stream)
        self._queue.append(stream)
        if len(self._queue) == 1:
            self._dry_at = now
        return over

    def chunk(self, data: bytes, now: float) -> list[Played]:
        """Audio for the open stream."""
        over = self.tick(now)
        if not self._queue or not data:  # no queue: the rest of a stream that was discarded
            return over
        stream = self._queue[-1]
        if stream is self._queue[0] and self._dry_at is not None:
            gap = (now - self._dry_at) * 1000
            if not stream.data:
                stream.runs.append((now, 0))
            elif gap > SEAM_MS:
                stream.gaps.append(gap)
                stream.runs.append((now, len(stream.data)))
            self._dry_at = None
        stream.data += data
        self.max_lead_ms = max(self.max_lead_ms, self.lead_ms(now))
        return over

    def stop(self, now: float) -> list[Played]:
        """The bot closed its stream, or its socket was lost: what is there is played to the end."""
        over = self.tick(now)
        if self._queue:
            self._queue[-1].stopped = True
            if len(self._queue) == 1 and self._dry_at is not None:
                self._dry_at = now  # it waited for more until now
            over += self.tick(now)
        return over

    def discard(self, now: float) -> list[Played]:
        """Silence at once (barge-in, abortPrompts): everything queued is over, the open stream is ignored from here."""
        over = self.tick(now)
        for stream in self._queue:
            del stream.data[self._heard(stream, now) :]
            stream.status, stream.ended_at = "interrupted", now
            over.append(stream)
        self._queue.clear()
        self._dry_at = None
        return over

    def tick(self, now: float) -> list[Played]:
        """Play on until `now`."""
        over: list[Played] = []
        while self._queue:
            head = self._queue[0]
            if self._dry_at is None:
                end = self._end_of(head)
                if now < end:
                    break
                self._dry_at = end
            if not head.stopped:
                break
            head.status, head.ended_at = "finished", self._dry_at
            over.append(head)
            self._queue.popleft()
            if self._queue and self._queue[0].data:
                self._queue[0].runs.append((self._dry_at, 0))
                self._dry_at = None
        return over

    def deadline(self) -> float:
        """When `tick` will report a stream over, unless something else happens first."""
        if not self._queue or not self._queue[0].stopped:
            return math.inf
        return self._end_of(self._queue[0]) if self._dry_at is None else self._dry_at

    def lead_ms(self, now: float) -> float:
        """How much has been received and not been heard."""
        return sum(stream.media.ms(len(stream.data) - self._heard(stream, now)) for stream in self._queue)

    def _end_of(self, stream: Played) -> float:
        began, offset = stream.runs[-1]
        return began + stream.media.ms(len(stream.data) - offset) / 1000

    def _heard(self, stream: Played, now: float) -> int:
        """Bytes of the stream heard by `now`."""
        if not stream.runs:
            return 0
        began, offset = stream.runs[-1]
        return min(len(stream.data), offset + stream.media.nbytes((now - began) * 1000))
