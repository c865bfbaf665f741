"""When somebody speaks on a line, and what was said, by audio time alone: no clock, no I/O.

`Vad` decides by the loudness of 20 ms frames. `Ear` cuts a stream of any chunk size into such frames and keeps the
utterance. Both count the audio that arrives: a line that stops sending in mid-utterance leaves the turn open, as with a
real end-of-turn detector (Voice Agent reference §5.1).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum
from typing import Final

from bridge_shared.protocol.media import Aligner, Media
from bridge_sim import pcm
from bridge_sim.speech import RATE

START_MS: Final = 60
END_MS: Final = 700
_LOUD: Final = 2.0
"""A mean amplitude of 512, about -36 dB: above the noise of a line, below the quiet sounds inside a word."""
_BEFORE_MS: Final = 200
"""Kept of what came before speech was certain, since words begin quietly."""
_LONGEST_MS: Final = 30_000


class Change(Enum):
    STARTED = "started"
    ENDED = "ended"


class Vad:
    """Speech starts after `START_MS` of loud frames in a row and ends after `END_MS` of quiet ones.

    Attributes:
        speaking: between the two.
        spoken_ms: the length of the utterance so far, or of the last one, up to its last loud frame.
    """

    __slots__ = ("_loud", "_quiet", "_total", "speaking", "spoken_ms")

    def __init__(self) -> None:
        self.speaking = False
        self.spoken_ms = 0
        self._loud = self._quiet = self._total = 0

    def feed(self, level: float) -> Change | None:
        """The level of the next frame of `pcm.FRAME_MS`, as `pcm.level` measures it."""
        loud = level >= _LOUD
        if not self.speaking:
            self._loud = self._loud + pcm.FRAME_MS if loud else 0
            if self._loud < START_MS:
                return None
            self.speaking, self._quiet = True, 0
            self.spoken_ms = self._total = self._loud
            return Change.STARTED
        self._total += pcm.FRAME_MS
        if loud:
            self._quiet, self.spoken_ms = 0, self._total
            return None
        self._quiet += pcm.FRAME_MS
        return self.end() if self._quiet >= END_MS else None

    def end(self) -> Change:
        """End the utterance now, whatever is heard."""
        self.speaking, self._loud = False, 0
        return Change.ENDED


@dataclass(frozen=True, slots=True)
class Started:
    """Somebody has begun to speak."""


@dataclass(frozen=True, slots=True)
class Ended:
    """An utterance: 8 kHz µ-law with some silence around it, and how long the speech in it is."""

    ulaw: bytes
    spoken_ms: int


class Ear:
    """Listens to one line of audio in one format, without headers."""

    __slots__ = ("_aligner", "_before", "_media", "_rest", "_size", "_utterance", "_vad")

    def __init__(self, media: Media) -> None:
        self._media = media
        self._vad = Vad()
        self._aligner = Aligner(media)
        self._size = media.nbytes(pcm.FRAME_MS)
        self._rest = b""
        self._before: deque[bytes] = deque(maxlen=_BEFORE_MS // pcm.FRAME_MS)
        self._utterance: deque[bytes] = deque(maxlen=_LONGEST_MS // pcm.FRAME_MS)

    @property
    def hears_speech(self) -> bool:
        return self._vad.speaking

    def hear(self, data: bytes) -> list[Started | Ended]:
        """Audio of any length; what it began and ended."""
        found: list[Started | Ended] = []
        data = self._rest + self._aligner.feed(data)
        size = self._size
        whole = len(data) - len(data) % size
        for at in range(0, whole, size):
            frame = data[at : at + size]
            kept = self._utterance if self._vad.speaking else self._before
            kept.append(frame)
            change = self._vad.feed(pcm.level(frame, self._media.encoding))
            if change is Change.STARTED:
                self._utterance.clear()
                self._utterance.extend(self._before)
                self._before.clear()
                found.append(Started())
            elif change is Change.ENDED:
                found.append(self._finish())
        self._rest = data[whole:]
        return found

    def end_turn(self) -> Ended | None:
        """Close an open utterance without waiting for silence; None if nobody speaks."""
        if not self._vad.speaking:
            return None
        self._vad.end()
        return self._finish()

    def _finish(self) -> Ended:
        heard = b"".join(self._utterance)
        self._utterance.clear()
        media = self._media
        return Ended(pcm.convert(heard, (media.encoding, media.rate), ("mulaw", RATE)), self._vad.spoken_ms)
