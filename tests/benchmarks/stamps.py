"""The audio that the load sends: the moment of its sending stands in its first bytes, so that whoever gets it knows
how long it took. µ-law is passed on byte for byte by every design."""

from __future__ import annotations

import struct
import time
from array import array
from typing import Any

_STAMP = struct.Struct("<4sId")
SIZE = _STAMP.size
_MAGIC = b"\x13\x37\xfa\xce"

now = time.monotonic
"""The same in all processes of one machine."""


def stamp(number: int) -> bytes:
    """The first bytes of a piece of audio that is sent now."""
    return _STAMP.pack(_MAGIC, number & 0xFFFFFFFF, now())


def read(data: bytes, at: int = 0) -> tuple[int, float] | None:
    """Number and moment of a piece of audio that begins here; None if none does."""
    if data[at : at + 4] != _MAGIC or len(data) - at < SIZE:
        return None
    _, number, moment = _STAMP.unpack_from(data, at)
    return number, moment


class Delays:
    """How long pieces of audio took, in milliseconds, while that is measured."""

    def __init__(self) -> None:
        self.measuring = False
        self._ms = array("d")

    def note(self, sent_at: float) -> None:
        if self.measuring:
            self._ms.append((now() - sent_at) * 1000)

    def begin(self) -> None:
        self._ms = array("d")
        self.measuring = True

    def end(self) -> dict[str, Any]:
        """Count, p50, p99 and the longest; milliseconds."""
        self.measuring = False
        return summary(self._ms)


def summary(values: Any) -> dict[str, Any]:
    found = sorted(values)
    if not found:
        return {"n": 0}
    last = len(found) - 1
    return {
        "n": len(found),
        "p50": round(found[last // 2], 3),
        "p99": round(found[int(last * 0.99)], 3),
        "max": round(found[last], 3),
    }
