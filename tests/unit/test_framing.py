"""bridge_shared.framing: what it builds and where it cuts is what websockets builds and cuts."""

from __future__ import annotations

import secrets
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from bridge_shared.framing import BINARY, TEXT, build, extent, masks

LENGTHS = st.integers(0, 300) | st.sampled_from([125, 126, 127, 65535, 65536, 70000])
MASKS = st.none() | st.binary(min_size=4, max_size=4)


def by_websockets(opcode: Opcode, payload: bytes, mask: bytes | None) -> bytes:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(secrets, "token_bytes", lambda size: mask)
        return Frame(opcode, payload).serialize(mask=mask is not None)


@given(st.booleans(), LENGTHS, MASKS)
def test_a_frame_is_byte_for_byte_what_websockets_writes_with_the_same_mask(
    text: bool, length: int, mask: bytes | None
) -> None:
    payload = bytes(n % 251 for n in range(length))
    theirs = by_websockets(Opcode.TEXT if text else Opcode.BINARY, payload, mask)
    assert build(TEXT if text else BINARY, payload, mask or b"") == theirs


@given(LENGTHS, MASKS, st.integers(0, 20), st.integers(0, 20))
def test_the_extent_of_a_frame_is_found_wherever_it_lies_and_however_little_of_it_is_there(
    length: int, mask: bytes | None, before: int, behind: int
) -> None:
    frame = by_websockets(Opcode.BINARY, bytes(length), mask)
    stream, end = bytes(before) + frame + bytes(behind), before + len(frame)
    whole = end - length, end
    assert extent(stream, before, masked=mask is not None) == whole
    for known in range(1, min(len(frame), 16)):
        found = extent(stream[: before + known], before, masked=mask is not None)
        assert found is not None
        assert found == whole or before + known < found[1] <= whole[0]


@pytest.mark.parametrize("masked", [True, False])
def test_no_frame_begins_with_a_reserved_opcode_or_with_the_masking_of_the_other_side(masked: bool) -> None:
    second = 0x80 if masked else 0
    for first in range(256):
        known = first & 0x0F in list(Opcode)
        assert (extent(bytes([first, second]), 0, masked=masked) is not None) == known
        assert extent(bytes([first, second ^ 0x80]), 0, masked=masked) is None


def test_masks_are_four_bytes_and_do_not_come_again() -> None:
    some = list(islice(masks(), 3000))
    assert {len(mask) for mask in some} == {4}
    assert len(set(some)) > 2990
