"""WebSocket frames as bytes: where one ends in a stream, and how one is built (RFC 6455 §5.2). Pure."""

from __future__ import annotations

import os
from collections.abc import Iterator

try:
    from websockets.speedups import apply_mask
except ImportError:  # no wheel for this machine
    from websockets.utils import apply_mask

__all__ = ["BINARY", "TEXT", "WHOLE", "apply_mask", "build", "extent", "masks"]

TEXT, BINARY = WHOLE = 0x81, 0x82
"""How a frame begins that is a whole message: FIN, no reserved bit, the opcode."""

_LENGTH = 0x7F
_MASKED = 0x80
_RANDOM_BYTES = 4096


def extent(data: bytes, at: int, *, masked: bool) -> tuple[int, int] | None:
    """Where the payload of the frame that begins at `at` begins, and where it ends: beyond `data` if it is not whole.
    While not even its length is known, both are how far `data` must reach for more to be said.

    Args:
        masked: whether frames that come this way have to be: those of a client (§5.1).

    Returns:
        None: no frame begins like that, its masking or its opcode is forbidden.
    """
    known = len(data) - at
    if known < 2:
        return at + 2, at + 2
    second = data[at + 1]
    if data[at] & 0x07 > 2 or (second >= _MASKED) is not masked:  # opcodes 0 to 2 and 8 to 10
        return None
    length = second & _LENGTH
    body = at + 2
    if length > 125:
        body += 2 if length == 126 else 8
        if len(data) < body:
            return body, body
        length = int.from_bytes(data[at + 2 : body], "big")
    if masked:
        body += 4
    return body, body + length


def build(first: int, payload: bytes, mask: bytes = b"") -> bytes:
    """A whole message as one frame.

    Args:
        first: `TEXT` or `BINARY`.
        mask: four bytes that nobody can predict, if a client sends it (§5.3); none if a server does.
    """
    length, masked = len(payload), _MASKED if mask else 0
    if length < 126:
        head = bytes((first, masked | length))
    elif length < 65536:
        head = bytes((first, masked | 126)) + length.to_bytes(2, "big")
    else:
        head = bytes((first, masked | 127)) + length.to_bytes(8, "big")
    return head + mask + apply_mask(payload, mask) if mask else head + payload


def masks() -> Iterator[bytes]:
    """Masks without end, for one connection: the system's randomness (§10.3), a thousand of them at a time."""
    while True:
        random = os.urandom(_RANDOM_BYTES)
        for at in range(0, _RANDOM_BYTES, 4):
            yield random[at : at + 4]
