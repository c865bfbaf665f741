"""The caller's microphone: speech and silence cut into chunks as VAIC sends them (pure; Bot API reference §5.2).

Sound passes in real time whether anybody listens or not. From `open` on it is kept, at most 960 ms of it, until the bot
acknowledges the stream; then all of it goes out as one chunk, and after that chunks of equal length as they fill.
Times are monotonic seconds.
"""

from __future__ import annotations

import math
from typing import Final

from bridge_shared.protocol.media import Media

BACKLOG_MS: Final = 960


class Microphone:
    """The sound of one call in the agreed format, from `now` on."""

    def __init__(self, media: Media, now: float, chunk_ms: int = 160) -> None:
        self.media = media
        self._began = now
        self._chunk = media.nbytes(chunk_ms)
        self._quiet = b"\xff" if media.encoding == "mulaw" else b"\x00"
        self._speech, self._speech_at = b"", 0
        self._at = 0  # how much of the time line has passed, in bytes
        self._kept = bytearray()
        self._open = self._flowing = self._first = False

    def say(self, audio: bytes, now: float) -> float:
        """Begin to speak, breaking off what was being said. Returns the moment when the last sample is spoken."""
        self._pass(now)
        self._speech, self._speech_at = audio, self._at
        return now + self.media.ms(len(audio)) / 1000

    def open(self, now: float) -> None:
        """userStream.start was sent: sound is kept from here on."""
        self._pass(now)
        self._kept.clear()
        self._open, self._flowing, self._first = True, False, True

    def acknowledged(self) -> None:
        """The bot is ready: chunks may go out, the kept sound first."""
        self._flowing = self._open

    def close(self, now: float) -> None:
        """Nobody listens any more; what was not sent is lost."""
        self._pass(now)
        self._kept.clear()
        self._open = self._flowing = False

    def take(self, now: float) -> list[bytes]:
        """The chunks that are due."""
        self._pass(now)
        if not self._flowing or len(self._kept) < self._chunk:
            return []
        size = len(self._kept) if self._first else self._chunk
        self._first = False
        whole = len(self._kept) // size * size
        chunks = [bytes(self._kept[at : at + size]) for at in range(0, whole, size)]
        del self._kept[:whole]
        return chunks

    def deadline(self) -> float:
        """When the next chunk is full."""
        if not self._flowing:
            return math.inf
        return self._began + self.media.ms(self._at + self._chunk - len(self._kept)) / 1000

    def _pass(self, now: float) -> None:
        """Let the time line run until `now`, and keep its sound if the stream is open."""
        # The hair added keeps a rounded deadline from coming one sample too early.
        until = max(self._at, int((now - self._began) * self.media.rate + 1e-3) * self.media.sample_bytes)
        if self._open:
            self._kept += self._sound(self._at, until)
            if not self._flowing:
                del self._kept[: -self.media.nbytes(BACKLOG_MS)]
        self._at = until

    def _sound(self, start: int, stop: int) -> bytes:
        first, last = self._speech_at, self._speech_at + len(self._speech)
        spoken = self._speech[max(0, start - first) : max(0, stop - first)]
        before = max(0, min(stop, first) - start)
        after = max(0, stop - max(start, last))
        return self._quiet * before + spoken + self._quiet * after
