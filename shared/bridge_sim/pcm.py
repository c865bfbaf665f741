"""Samples: between 8-bit µ-law and 16-bit linear, between rates, and how loud they are.

Everything is little-endian and mono. µ-law is G.711 with the customary bias of 132. The work is done by
`bytes.translate` and slices: the standard library lost `audioop`, and a loop over samples is a hundred times slower.
"""

from __future__ import annotations

import sys
from array import array
from functools import cache
from typing import Literal

Encoding = Literal["mulaw", "linear16"]

FRAME_MS = 20
"""The length of the frames that levels are taken of."""


def _decode(code: int) -> int:
    code = ~code & 0xFF
    magnitude = (((code & 0x0F) << 3) + 132 << (code >> 4 & 7)) - 132
    return -magnitude if code & 0x80 else magnitude


_VALUES = [_decode(code) for code in range(256)]
_LOW = bytes(value & 0xFF for value in _VALUES)
_HIGH = bytes(value >> 8 & 0xFF for value in _VALUES)
# Loudness on one scale for both encodings: |sample| / 256, which a byte can hold.
_LOUD_MULAW = bytes(abs(value) >> 8 for value in _VALUES)
_LOUD_HIGH = bytes(byte if byte < 128 else 255 - byte for byte in range(256))


def mulaw_to_linear16(data: bytes) -> bytes:
    """Twice as many bytes."""
    out = bytearray(2 * len(data))
    out[0::2] = data.translate(_LOW)
    out[1::2] = data.translate(_HIGH)
    return bytes(out)


@cache
def _codes() -> bytes:
    """The µ-law code of every 16-bit pattern."""
    codes = bytearray(65536)
    for pattern in range(65536):
        value = pattern - 65536 if pattern & 0x8000 else pattern
        biased = min(abs(value), 32635) + 132
        exponent = biased.bit_length() - 8
        codes[pattern] = ~((0x80 if value < 0 else 0) | exponent << 4 | biased >> exponent + 3 & 0x0F) & 0xFF
    return bytes(codes)


def linear16_to_mulaw(data: bytes) -> bytes:
    """Half as many bytes; an odd last byte is no sample and is left out."""
    patterns = _native("H", data)
    codes = _codes()
    return bytes([codes[pattern] for pattern in patterns])


def _native(kind: str, data: bytes) -> array[int]:
    samples = array(kind)
    samples.frombytes(data[: len(data) // 2 * 2])
    if sys.byteorder == "big":
        samples.byteswap()
    return samples


def resample(data: bytes, source: int, target: int) -> bytes:
    """Linear samples at another rate (Hz), by linear interpolation. Good enough for speech from a telephone line."""
    if source == target:
        return data
    samples = _native("h", data)
    if source % target == 0:
        out = samples[:: source // target]
    else:
        last = len(samples) - 1
        out = array("h")
        for index in range(len(samples) * target // source):
            position, fraction = divmod(index * source, target)
            here = samples[position]
            there = samples[min(position + 1, last)]
            out.append(here + (there - here) * fraction // target)
    if sys.byteorder == "big":
        out.byteswap()
    return out.tobytes()


def convert(data: bytes, source: tuple[Encoding, int], target: tuple[Encoding, int]) -> bytes:
    """Samples of one (encoding, rate) as another."""
    if source == target:
        return data
    linear = mulaw_to_linear16(data) if source[0] == "mulaw" else data
    linear = resample(linear, source[1], target[1])
    return linear16_to_mulaw(linear) if target[0] == "mulaw" else linear


def level(frame: bytes, encoding: Encoding) -> float:
    """The mean of |sample| / 256, from 0 (nothing above the noise of the line) to 127. Costs about a microsecond."""
    loud = frame.translate(_LOUD_MULAW) if encoding == "mulaw" else frame[1::2].translate(_LOUD_HIGH)
    return sum(loud) / len(loud) if loud else 0.0


def levels(data: bytes, encoding: Encoding, rate: int) -> list[float]:
    """The level of each whole `FRAME_MS` of the data."""
    size = rate * FRAME_MS // 1000 * (1 if encoding == "mulaw" else 2)
    return [level(data[at : at + size], encoding) for at in range(0, len(data) - size + 1, size)]
