"""The wire between edge and worker: one frame, and an inbox entry full of them. The only door to msgpack.

A frame is the msgpack array `[v, cid, ee, we, seq, rx, done, kind, body]`; an inbox entry holds an array of
frames of any number of calls. Numbers of kinds are for ever: a running N and a starting N-1 talk to each other
during every rolling deploy, so a kind is added, never renumbered, and an unknown one is skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any, NamedTuple

import msgpack

from bridge_shared.errors import BridgeError

VERSION = 1


class FrameError(BridgeError):
    """An inbox entry that is no array of frames, or a body that cannot travel."""


class Kind(IntEnum):
    """What a frame says; the bodies are those of the table in LINK "Frame"."""

    HELLO = 1  # [pod, reason]           unnumbered; the only frame that opens a session
    ACK = 2  # [] or [lowest held seq] unnumbered; the latter shows a hole: rx+1 … held-1 did not arrive
    SKIP = 3  # [last seq]              the audio from this frame's seq to the last was given up by its sender
    GONE = 4  # [ee, we]                unnumbered; "you are of an older epoch than I know"
    ACTIVITY = 5  # [mid, obj] to the worker, [mid, [obj, …], repeatable] to the edge

    UP = 16  # [bytes]                 caller audio
    USTREAM = 17  # [open, participant]
    PLAYED = 18  # [turn, heard_ms, "playing" | "finished" | "cut"]
    LOST = 19  # []                      the caller's socket is gone
    BACK = 20  # []                      and here again
    END = 21  # [reason_code, reason]
    REPLAY = 22  # [ms | "ask", [entry, text]?]

    ACCEPT = 32  # [format, format of play streams?]; without the latter it is the same
    REFUSE = 33  # [reason]
    DOWN = 34  # [turn, bytes]           agent audio
    TURNEND = 35  # [turn]
    CUT = 36  # [turn]
    SPEECH = 37  # [kind, text]
    CLOSE = 38  # [reason]

    COMMAND = 64  # [id, verb, args, reply key], ee = we = 0; never passes a link


AUDIO: frozenset[int] = frozenset({int(Kind.UP), int(Kind.DOWN)})


class Frame(NamedTuple):
    """One addressed message of one call.

    Attributes:
        v: version of this layout, 1.
        cid: the call.
        ee: epoch of the edge, we: epoch of the worker. Together they name the session; 0 = not known yet.
        seq: number from 1 in this session and direction; 0 = unnumbered.
        rx: highest seq that the sender of this frame has received without a gap.
        done: highest seq up to which every control frame has had its effect at the sender of this frame.
        kind: a `Kind`, or a number that a newer version knows.
        body: as the kind says.
    """

    v: int
    cid: str
    ee: int
    we: int
    seq: int
    rx: int
    done: int
    kind: int
    body: list[Any]


def repeatable(kind: int, body: list[Any]) -> bool:
    """Whether doing this control frame a second time does no harm (LINK "Sessions" 8).

    Commands of the application say so themselves; what the caller sent goes again to a new owner (at least
    once). SPEECH does not: a second `speech.started` would stop the play stream of a resumed caller.
    """
    if kind == Kind.ACTIVITY:
        return len(body) < 3 or bool(body[2])
    return kind != Kind.SPEECH


def pack(frames: Sequence[Frame]) -> bytes:
    """The bytes of one inbox entry.

    Raises:
        FrameError: a body holds what msgpack cannot carry. `check` finds that where the body comes from.
    """
    try:
        packed: bytes = msgpack.packb(frames)
        return packed
    except (TypeError, ValueError, OverflowError) as error:
        raise FrameError(f"a frame of kinds {sorted({f.kind for f in frames})} cannot be packed: {error}") from error


def check(kind: int, body: list[Any]) -> None:
    """Refuse a body that could not be packed, before it shares an inbox entry with frames of other calls.

    Raises:
        FrameError: the body holds an object, a number beyond 64 bits, a lone surrogate or a key that is no string.
    """
    try:
        msgpack.unpackb(msgpack.packb(body))
    except (TypeError, ValueError, OverflowError) as error:
        raise FrameError(f"the body of a frame of kind {kind} cannot be packed: {error}") from error


def unpack(data: bytes, skipped: Callable[[int], None] | None = None) -> list[Frame]:
    """The frames of one inbox entry, in order.

    Frames of another version or shape are left out, so that one odd frame costs nothing but itself.

    Args:
        data: field `b` of the entry.
        skipped: called with the number of frames left out, if there were any.

    Raises:
        FrameError: not a msgpack array at all.
    """
    try:
        entry = msgpack.unpackb(data)
    except (TypeError, ValueError) as error:  # TypeError: a map with an unhashable key
        raise FrameError(f"an inbox entry of {len(data)} bytes is not msgpack: {error}") from error
    if type(entry) is not list:
        raise FrameError(f"an inbox entry of {len(data)} bytes holds a {type(entry).__name__}, not an array of frames")
    frames = [_frame(Frame, raw) for raw in entry if _is_frame(raw)]
    if skipped is not None and len(frames) < len(entry):
        skipped(len(entry) - len(frames))
    return frames


_frame: Callable[[type[Frame], list[Any]], Frame] = tuple.__new__
"""`Frame._make`, without a call of its own for each frame."""


def _is_frame(raw: Any) -> bool:
    if type(raw) is not list or len(raw) != 9:
        return False
    v, cid, ee, we, seq, rx, done, kind, body = raw
    return (
        v == VERSION
        and type(cid) is str
        and type(ee) is type(we) is type(seq) is type(rx) is type(done) is type(kind) is int
        and min(ee, we, seq, rx, done) >= 0
        and type(body) is list
    )
