"""What becomes of the function calls of a conversation, over agents that are lost and owners that die."""

from __future__ import annotations

from typing import Any

import pytest

from bridge_shared.redis.calls import Line
from bridge_worker.functions import REISSUE_SECONDS, Ledger, Note, Record, canonical, idempotency_key, redacted

ASKED = Line("7-1", "user", "Where is it?", "", "7-0", None, False)
ANSWERED = Line("7-2", "assistant", "In the depot.", "", "7-1", None, False)


class Book:
    """A ledger and its notes."""

    def __init__(self, *former: Note) -> None:
        self.notes: list[Note] = list(former)
        self.ledger = Ledger("c-1", former)

    def request(self, call_id: str, name: str = "track", arguments: str = '{"no":1}', after: str = "7-1") -> Record:
        self.notes.append(self.ledger.request(call_id, name, arguments, after))
        return self.record(call_id)

    def answer(self, call_id: str, content: str = "there", after: str = "7-1") -> None:
        self.notes.append(self.ledger.answer(self.record(call_id), content, after))

    def cancel(self, call_id: str) -> None:
        self.notes.append(self.ledger.cancel(self.record(call_id)))

    def record(self, call_id: str) -> Record:
        record = self.ledger.find(call_id)
        assert record is not None
        return record

    def offer(self, *lines: Line, now: float = 0.0) -> None:
        self.ledger.agent_lost()
        self.ledger.offer(self.ledger.open_calls(lines), now)

    def reissued(self, call_id: str, name: str = "track", arguments: str = '{"no":1}', now: float = 1.0) -> Any:
        found = self.ledger.reissued(call_id, name, arguments, now)
        return found[0] if found is not None else None

    def next_owner(self) -> Book:
        """The same, as the next owner knows it from the notes."""
        return Book(*self.notes)


def test_a_call_that_an_agent_asks_for_again_is_answered_from_its_record() -> None:
    book = Book()
    book.request("a")
    book.answer("a")
    book.offer(ASKED)
    assert book.reissued("b").response == "there"
    assert book.record("b") is book.record("a")


def test_a_call_whose_arguments_were_redacted_is_known_again_by_its_key_when_they_come_in_full() -> None:
    def hidden(text: str) -> str:
        return text.replace("4711", "[gone]")

    book = Book()
    book.request("a", arguments='{"no":4711}')
    book.answer("a", "4711 is there")
    item = {"type": "History", "function_calls": [{"id": "x", "arguments": {"no": 4711}, "response": "4711"}]}
    notes = [redacted(note, hidden) for note in [*book.notes, book.ledger.confirm(item, "7-2") or {}]]
    assert "4711" not in str(notes)
    assert redacted({"kind": "cancelled", "id": "a"}, hidden) == {"kind": "cancelled", "id": "a"}
    later = Book(*notes)
    later.offer(ASKED)
    assert later.reissued("b", arguments='{"no":4712}') is None
    assert later.reissued("c", arguments='{"no": 4711}').response == "[gone] is there"


def test_a_record_answers_one_request_only() -> None:
    book = Book()
    book.request("a")
    book.offer(ASKED)
    assert book.reissued("b") is not None
    assert book.reissued("c") is None


@pytest.mark.parametrize(
    "other", [{"name": "book"}, {"arguments": '{"no":2}'}, {"now": REISSUE_SECONDS + 0.1}], ids=["name", "args", "late"]
)
def test_what_is_not_the_same_or_comes_too_late_is_a_call_of_its_own(other: dict[str, Any]) -> None:
    book = Book()
    book.request("a")
    book.offer(ASKED)
    assert book.reissued("b", **other) is None


def test_arguments_are_the_same_however_they_are_written() -> None:
    assert canonical('{"b": 1, "a": [2]}') == canonical('{"a":[2],"b":1}')
    assert canonical("") == canonical("{}") == "{}"
    assert canonical("not json ") == "not json"


def test_after_the_caller_has_spoken_again_every_call_is_new_and_the_one_that_nobody_answered_is_void() -> None:
    book = Book()
    book.request("a")
    book.offer(ASKED)
    (void,) = book.ledger.caller_spoke()
    assert void.id == "a"
    assert book.reissued("b") is None


def test_a_call_whose_answer_was_spoken_is_not_open_any_more() -> None:
    book = Book()
    book.request("a")
    book.answer("a")
    assert book.ledger.open_calls([ASKED]) == [book.record("a")]
    assert book.ledger.open_calls([ASKED, ANSWERED]) == []


def test_what_the_agent_says_while_it_waits_does_not_answer_a_call() -> None:
    book = Book()
    book.request("a")
    assert book.ledger.open_calls([ASKED, ANSWERED]) == [book.record("a")]  # "one moment, please"


def test_a_request_that_came_before_the_callers_own_text_is_open_behind_it() -> None:
    book = Book()
    book.request("a", after="")
    assert book.ledger.open_calls([ASKED]) == [book.record("a")]
    assert book.ledger.open_calls([ASKED, ANSWERED, Line("7-3", "user", "And now?", "", "7-1", None, False)]) == []


def test_the_next_owner_knows_what_the_former_one_knew() -> None:
    book = Book()
    book.request("a")
    book.request("b", name="book")
    book.answer("a")
    book.cancel("b")
    book.offer(ASKED)
    found = book.ledger.reissued("c", "track", '{"no":1}', 1.0)
    assert found is not None
    book.notes.append(found[1])
    former, heir = book.ledger, book.next_owner().ledger
    assert [(r.id, r.key, r.response, r.cancelled) for r in heir.records] == [
        (r.id, r.key, r.response, r.cancelled) for r in former.records
    ]
    assert heir.find("c") is heir.find("a")
    assert not any(record.at_work or record.awaited_as for record in heir.records)


def test_notes_that_make_no_sense_are_skipped() -> None:
    nonsense: list[Note] = [{}, {"kind": "response", "id": "?"}, {"kind": "history", "item": "{"}, {"kind": "new"}]
    assert Ledger("c-1", nonsense).records == []


def test_an_answer_is_wanted_once_and_not_for_a_cancelled_or_unknown_call() -> None:
    book = Book()
    book.request("a")
    book.request("b")
    assert book.ledger.refusal("a", "track") == ""
    book.answer("a")
    book.cancel("b")
    assert [book.ledger.refusal(*call) for call in (("a", "track"), ("b", "track"), ("?", "track"))] == [
        "it was answered before",
        "it was cancelled",
        "no such call",
    ]
    assert book.ledger.refusal("a", "book") == "no such call"


def test_the_same_work_has_the_same_key_whoever_does_it_and_the_same_wish_twice_has_two() -> None:
    book = Book()
    first = book.request("a").key
    assert len(first) == 32
    assert book.next_owner().record("a").key == first
    assert book.request("b").key != first
    assert book.request("c", name="book").key != idempotency_key("c-1", "track", '{"no":1}')


def test_a_call_that_is_asked_for_again_after_it_was_cancelled_has_the_key_it_had() -> None:
    book = Book()
    first = book.request("a").key
    book.cancel("a")
    assert book.request("b").key == first


def test_a_finished_call_is_told_to_a_new_agent_once_as_the_agent_committed_it() -> None:
    book = Book()
    book.request("a")
    book.answer("a", after="7-1")
    (told,) = book.ledger.history()
    assert told.after == "7-1"
    (call,) = told.item["function_calls"]
    assert call == {"id": "a", "name": "track", "client_side": True, "arguments": '{"no":1}', "response": "there"}
    item = {"type": "History", "function_calls": [{**call, "thought_signature": "x"}]}
    note = book.ledger.confirm(item, "7-1")
    assert note is not None
    assert [record.item for record in book.ledger.history()] == [item]
    assert book.ledger.confirm(item, "7-9") is None  # a new agent may echo what it was told


def test_an_open_call_without_an_answer_and_a_cancelled_one_are_not_told() -> None:
    book = Book()
    book.request("a")
    book.request("b")
    book.answer("b")
    book.cancel("b")
    assert book.ledger.history() == []
