"""What an application keeps of a call."""

from __future__ import annotations

import pytest

from bridge_worker.session_data import MOST_BYTES, SessionData


def test_what_is_set_is_there_and_written_each_time() -> None:
    written: list[bytes] = []
    data = SessionData("", written.append)
    data["digits"] = "47"
    data["digits"] += "11"
    del data["digits"]
    assert dict(data) == {}
    assert written == [b'{"digits":"47"}', b'{"digits":"4711"}', b"{}"]


def test_the_next_owner_has_what_the_former_one_wrote() -> None:
    written: list[bytes] = []
    SessionData("", written.append)["seen"] = {"pages": [1, 2]}
    assert dict(SessionData(written[-1].decode())) == {"seen": {"pages": [1, 2]}}


@pytest.mark.parametrize("stored", ["", "{", "[1]", "null"])
def test_what_is_no_mapping_counts_as_nothing(stored: str) -> None:
    assert dict(SessionData(stored)) == {}


def test_what_json_cannot_hold_is_refused_and_changes_nothing() -> None:
    data = SessionData('{"a":1}')
    for key, value in (("b", object()), (1, "x"), ("b", "x" * MOST_BYTES)):
        with pytest.raises((TypeError, ValueError)):
            data[key] = value  # type: ignore[index]
    assert dict(data) == {"a": 1}


def test_a_value_that_is_changed_after_it_was_set_is_not_the_one_that_is_kept() -> None:
    data = SessionData()
    pages = [1]
    data["pages"] = pages
    pages.append(2)
    assert data["pages"] == [1]


def test_what_is_kept_does_not_show_in_logs() -> None:
    assert "4711" not in repr(SessionData('{"pin":"4711"}'))


def test_what_is_held_is_written_when_it_settles_and_what_others_set_at_once_without_it() -> None:
    written: list[bytes] = []
    held = True
    data = SessionData('{"old":1}', written.append, lambda: held)
    data["digits"] = "4"
    del data["old"]
    assert (dict(data), written) == ({"digits": "4"}, [])
    held = False
    data["said"] = "yes"
    assert dict(data) == {"digits": "4", "said": "yes"}
    assert dict(SessionData(written.pop().decode())) == {"old": 1, "said": "yes"}
    assert dict(SessionData((data.settle() or b"").decode())) == {"digits": "4", "said": "yes"}
    assert data.settle() is None
    del data["said"]
    assert written == [b'{"digits":"4"}']


def test_at_the_end_everything_is_written_by_somebody_else_at_once() -> None:
    before: list[bytes] = []
    after: list[bytes] = []
    data = SessionData("", before.append, lambda: True)
    data["digits"] = "4"
    assert data.written_by(after.append) == b'{"digits":"4"}'
    data["step"] = 1
    assert (before, after) == ([], [b'{"digits":"4","step":1}'])
