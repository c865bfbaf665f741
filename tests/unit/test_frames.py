"""The wire: bodies survive, odd input costs nothing but itself, numbers of kinds stay what they are."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge_shared.frames import AUDIO, Frame, FrameError, Kind, check, pack, repeatable, unpack

EPOCHS = st.integers(0, 2**63 - 1)
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
FRAMES = st.builds(
    Frame,
    v=st.just(1),
    cid=st.text(min_size=1, max_size=128),
    ee=EPOCHS,
    we=EPOCHS,
    seq=EPOCHS,
    rx=EPOCHS,
    done=EPOCHS,
    kind=st.integers(0, 127),
    body=st.lists(JSON, max_size=3),
)


def frame(kind: int = Kind.UP, body: list[Any] | None = None, **other: Any) -> Frame:
    return Frame(1, "c", 5, 7, 1, 0, 0, kind, [b"audio"] if body is None else body)._replace(**other)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.lists(FRAMES, max_size=5))
def test_what_is_packed_is_unpacked_the_same(frames: list[Frame]) -> None:
    assert unpack(pack(frames)) == frames


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.binary(max_size=60))
def test_bytes_from_anywhere_are_frames_or_a_frame_error(data: bytes) -> None:
    try:
        frames = unpack(data)
    except FrameError:
        return
    assert all(isinstance(f, Frame) for f in frames)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.lists(FRAMES, min_size=1, max_size=3), st.data())
def test_a_cut_entry_is_a_frame_error(frames: list[Frame], data: st.DataObject) -> None:
    packed = pack(frames)
    with pytest.raises(FrameError, match="not msgpack"):
        unpack(packed[: data.draw(st.integers(0, len(packed) - 1))])


@pytest.mark.parametrize(
    "odd",
    [
        [2, "c", 5, 7, 1, 0, 0, 16, [b"of another version"]],
        [1, "c", 5, 7, 1, 0, 0, 16],
        [1, "c", 5, 7, 1, 0, 0, 16, [], "one more"],
        [1, b"c", 5, 7, 1, 0, 0, 16, []],
        [1, "c", "5", 7, 1, 0, 0, 16, []],
        [1, "c", 5, 7, 1.0, 0, 0, 16, []],
        [1, "c", 5, 7, True, 0, 0, 16, []],
        [1, "c", -1, -1, 1, 0, 0, 16, []],
        [1, "c", 5, 7, 1, 0, 0, 16, {"a": 1}],
        [1, "c", 5, 7, 1, 0, 0, 16, None],
        [],
        None,
        "text",
    ],
)
def test_a_frame_of_another_version_or_shape_is_left_out_and_counted(odd: object) -> None:
    counted: list[int] = []
    good = frame()
    assert unpack(msgpack.packb([good, odd, good]), counted.append) == [good, good]
    assert counted == [1]


def test_a_kind_that_is_not_known_yet_passes() -> None:
    """Whoever understands it may be newer than whoever reads the entry; the link counts it."""
    newer = frame(kind=99, body=["news"])
    counted: list[int] = []
    assert unpack(pack([newer]), counted.append) == [newer]
    assert counted == []


@pytest.mark.parametrize("body", [[object()], [2**70], ["\ud800"], [{"a": {1, 2}}]])
def test_a_body_that_cannot_travel_is_refused_where_it_comes_from(body: list[Any]) -> None:
    with pytest.raises(FrameError, match="kind 5 cannot be packed"):
        check(Kind.ACTIVITY, body)
    with pytest.raises(FrameError, match="cannot be packed"):
        pack([frame(kind=Kind.ACTIVITY, body=body)])


def test_the_numbers_of_kinds_never_change() -> None:
    """They are on the wire between a running N and a starting N-1: add, never renumber."""
    assert {kind.name: kind.value for kind in Kind} == {
        "HELLO": 1,
        "ACK": 2,
        "SKIP": 3,
        "GONE": 4,
        "ACTIVITY": 5,
        "UP": 16,
        "USTREAM": 17,
        "PLAYED": 18,
        "LOST": 19,
        "BACK": 20,
        "END": 21,
        "REPLAY": 22,
        "ACCEPT": 32,
        "REFUSE": 33,
        "DOWN": 34,
        "TURNEND": 35,
        "CUT": 36,
        "SPEECH": 37,
        "CLOSE": 38,
        "COMMAND": 64,
    }
    assert {16, 34} == AUDIO


@pytest.mark.parametrize(
    ("kind", "body", "again"),
    [
        (Kind.ACTIVITY, [[1, 1], [{"name": "hangup"}], True], True),
        (Kind.ACTIVITY, [[1, 1], [{"name": "sendDtmf"}], False], False),
        (Kind.ACTIVITY, [[1, 1], {"type": "event"}], True),
        (Kind.CLOSE, ["over"], True),
        (Kind.ACCEPT, ["raw/mulaw"], True),
        (Kind.CUT, [[1, 1]], True),
        (Kind.SPEECH, ["started", ""], False),
    ],
)
def test_each_kind_of_control_knows_whether_it_may_be_done_twice(kind: Kind, body: list[Any], again: bool) -> None:
    assert repeatable(kind, body) is again
