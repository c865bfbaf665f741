"""The eight audio formats of the Bot API, and the little arithmetic they need (Bot API reference §2.2).

Durations are milliseconds, sizes are bytes of audio without any WAV header, linear samples are little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal, cast

MediaFormat = Literal[
    "raw/mulaw",
    "wav/mulaw",
    "raw/lpcm16",
    "wav/lpcm16",
    "raw/lpcm16_8",
    "wav/lpcm16_8",
    "raw/lpcm16_24",
    "wav/lpcm16_24",
]
Encoding = Literal["mulaw", "linear16"]

FORMATS: Final[tuple[MediaFormat, ...]] = (
    "raw/lpcm16",
    "wav/lpcm16",
    "raw/lpcm16_8",
    "wav/lpcm16_8",
    "raw/lpcm16_24",
    "wav/lpcm16_24",
    "raw/mulaw",
    "wav/mulaw",
)
"""What Live Hub offered in a captured call, in its order (§2.1)."""

_CODINGS: Final[dict[str, tuple[Encoding, int]]] = {
    "mulaw": ("mulaw", 8_000),
    "lpcm16": ("linear16", 16_000),  # 16 kHz, although the token does not say so (§8.3, mistake 5)
    "lpcm16_8": ("linear16", 8_000),
    "lpcm16_24": ("linear16", 24_000),
}
_CACHED_SILENCE: Final = 65_536


@dataclass(frozen=True, slots=True)
class Media:
    """One format: how its samples are coded and how much of it makes a second."""

    token: MediaFormat
    encoding: Encoding
    rate: int
    """Samples per second."""
    wav: bool
    """Each stream begins with a RIFF/WAVE header."""
    sample_bytes: int
    bytes_per_second: int

    def nbytes(self, ms: float) -> int:
        """The bytes of `ms` milliseconds, rounded down to whole samples; never negative."""
        return max(0, int(ms * self.rate / 1000)) * self.sample_bytes

    def ms(self, nbytes: int) -> float:
        """How long `nbytes` bytes last, in milliseconds."""
        return nbytes * 1000 / self.bytes_per_second

    def silence(self, ms: float) -> bytes:
        """`ms` milliseconds of silence in whole samples; the same object again for a small repeated length."""
        # 0xFF is the quiet mu-law byte (0x7F is negative zero, 0x00 and 0x80 are full-scale clicks).
        quiet, size = (b"\xff" if self.encoding == "mulaw" else b"\x00"), self.nbytes(ms)
        return _cached(quiet, size) if size <= _CACHED_SILENCE else quiet * size


@lru_cache(maxsize=64)
def _cached(byte: bytes, size: int) -> bytes:
    return byte * size


def _media(token: MediaFormat) -> Media:
    container, _, coding = token.partition("/")
    encoding, rate = _CODINGS[coding]
    size = 1 if encoding == "mulaw" else 2
    return Media(token, encoding, rate, container == "wav", size, rate * size)


_MEDIA: Final[dict[str, Media]] = {token: _media(token) for token in FORMATS}


def media(token: str) -> Media:
    """The format of that name.

    Raises:
        ValueError: it is none of the eight; the message names them.
    """
    found = _MEDIA.get(token)
    if found is None:
        raise ValueError(f"{token!r} is not a media format; the eight are {', '.join(FORMATS)}")
    return found


def choose(preferred: Sequence[str], offered: Sequence[str]) -> MediaFormat | None:
    """The first preferred format that the peer offers too, or None. Names that are no format are passed over."""
    return next((cast(MediaFormat, token) for token in preferred if token in _MEDIA and token in offered), None)


def wav_header(media: Media) -> bytes:
    """A RIFF/WAVE header for a stream whose length is not known: both lengths are 0xFFFFFFFF.

    Mu-law has format code 7 and the extended `fmt ` chunk (with its empty extension) that every code but 1 asks for.
    """
    linear = media.encoding == "linear16"
    fmt = struct.pack(
        "<HHIIHH",
        1 if linear else 7,
        1,
        media.rate,
        media.bytes_per_second,
        media.sample_bytes,
        media.sample_bytes * 8,
    )
    if not linear:
        fmt += b"\x00\x00"
    head = struct.pack("<4sI4s4sI", b"RIFF", 0xFFFFFFFF, b"WAVE", b"fmt ", len(fmt))
    return head + fmt + struct.pack("<4sI", b"data", 0xFFFFFFFF)


class Aligner:
    """Turns chunks of any size into whole samples; at most one byte is carried over."""

    __slots__ = ("_carry", "_size")

    def __init__(self, media: Media) -> None:
        self._size = media.sample_bytes
        self._carry = b""

    def feed(self, data: bytes) -> bytes:
        """Everything up to the last whole sample, which may be nothing."""
        if self._carry:
            data = self._carry + data
            self._carry = b""
        rest = len(data) % self._size
        if rest:
            self._carry = data[-rest:]
            return data[:-rest]
        return data

    @property
    def halved(self) -> bool:
        """Whether a part of a sample is being carried over."""
        return bool(self._carry)

    def reset(self) -> None:
        """Forget the carried byte: what follows is another piece of audio."""
        self._carry = b""


_HEADER_LIMIT: Final = 4096


class Inbound:
    """Turns the chunks of one incoming stream into headerless audio in whole samples.

    A stream whose first bytes are a RIFF/WAVE header loses it, however it is cut into chunks. Whether `wav/*` repeats
    the header is not documented (§2.2), so in those formats every chunk that begins with one loses it.
    """

    __slots__ = ("_align", "_first", "_head", "_wav")

    def __init__(self, media: Media) -> None:
        self._align = Aligner(media)
        self._wav = media.wav
        self.restart()

    @property
    def halved(self) -> bool:
        """Whether the last chunk ended in the middle of a sample."""
        return self._align.halved

    def restart(self) -> None:
        """A new stream begins: what was carried over is dropped, and a header may come again."""
        self._align.reset()
        self._head = b""
        self._first = True

    def feed(self, chunk: bytes) -> bytes:
        """The audio of this chunk; empty while nothing is whole yet."""
        if self._head or ((self._first or self._wav) and chunk[:1] == b"R"):
            chunk = self._unwrap(self._head + chunk)
        elif chunk:
            self._first = False
        return self._align.feed(chunk)

    def _unwrap(self, data: bytes) -> bytes:
        """The audio behind the header that `data` begins with; nothing as long as that cannot be told."""
        self._head = b""
        if not (b"RIFF".startswith(data[:4]) and b"WAVE".startswith(data[8:12])):
            self._first = False
            return data
        start = _audio_start(data)
        if start is None:
            if len(data) <= _HEADER_LIMIT:
                self._head = data
                return b""
            start = len(data)  # a header without end: noise if it were played
        self._first = False
        self._align.reset()
        return data[start:]


def _audio_start(data: bytes) -> int | None:
    """Where the content of the RIFF chunk `data` begins, or None if that is not there yet."""
    at = 12
    while len(data) >= at + 8:
        name, size = struct.unpack_from("<4sI", data, at)
        if name == b"data":
            return at + 8
        at += 8 + size + size % 2  # RIFF chunks are padded to even lengths
    return None
