"""How a conversation goes on with a new agent."""

from __future__ import annotations

from bridge_shared.redis.calls import Line
from bridge_worker.recovery import HISTORY_CHARACTERS, HISTORY_ITEMS, Echo, FunctionRecord, heard_text, recover


def line(number: int, role: str, content: str, turn: int = 1, heard_ms: int | None = None, cut: bool = False) -> Line:
    return Line(f"7-{number}", role, content, "2026-01-01T00:00:00.000+00:00", f"7-{turn}", heard_ms, cut)


def said(role: str, content: str) -> dict[str, str]:
    return {"type": "History", "role": role, "content": content}


def test_a_conversation_in_which_all_was_answered_and_heard_goes_on_in_silence() -> None:
    lines = [line(1, "assistant", "Hello."), line(2, "user", "Hi."), line(3, "assistant", "Yes?", turn=2)]
    recovery = recover(lines)
    assert recovery.history == (said("assistant", "Hello."), said("user", "Hi."), said("assistant", "Yes?"))
    assert not recovery.caller_says
    assert not recovery.agent_says


def test_what_the_caller_said_unanswered_is_left_out_of_the_past_and_said_again() -> None:
    recovery = recover([line(1, "assistant", "Hello."), line(2, "user", "Where is"), line(3, "user", "my parcel?")])
    assert recovery.history == (said("assistant", "Hello."),)
    assert recovery.caller_says == "Where is my parcel?"


def test_sentences_that_were_not_heard_are_left_out_of_the_past_and_said_again() -> None:
    lines = [
        line(1, "user", "Where?", turn=0),
        line(2, "assistant", "In the depot.", heard_ms=1200),
        line(3, "assistant", "It comes tomorrow.", heard_ms=300, cut=True),
        line(4, "assistant", "Anything else?", heard_ms=0, cut=True),
    ]
    recovery = recover(lines)
    assert recovery.history == (said("user", "Where?"), said("assistant", "In the depot."))
    assert recovery.agent_says == "It comes tomorrow. Anything else?"


def test_a_line_of_several_sentences_keeps_those_that_fit_into_what_was_heard() -> None:
    cut = line(1, "assistant", "One moment please. I am looking it up. It takes a while.", heard_ms=1500, cut=True)
    assert heard_text(cut) == "One moment please."
    assert recover([cut]).agent_says == "I am looking it up. It takes a while."


def test_an_earlier_interruption_is_not_repeated_but_its_unheard_part_stays_out() -> None:
    lines = [
        line(1, "assistant", "Hello there. How are you?", heard_ms=1000, cut=True),
        line(2, "user", "Stop."),
        line(3, "assistant", "Of course.", turn=2),
    ]
    recovery = recover(lines)
    assert recovery.history == (
        said("assistant", "Hello there."),
        said("user", "Stop."),
        said("assistant", "Of course."),
    )
    assert not recovery.agent_says


def test_a_finished_function_call_stands_between_the_lines_that_it_was_made_between() -> None:
    lines = [line(1, "user", "Track it.", turn=0), line(2, "assistant", "In transit.")]
    call = {"type": "History", "function_calls": [{"id": "c1", "name": "track", "response": '{"state":"in transit"}'}]}
    items = recover(lines, [FunctionRecord("7-1", call)]).history
    assert [item.get("role", "call") for item in items] == ["user", "call", "assistant"]
    assert items[1] is call


def test_the_newest_items_are_kept_when_there_are_too_many() -> None:
    lines = [line(n, "assistant", f"Line {n}.", turn=n) for n in range(1, 1000)]
    history = recover(lines).history
    assert len(history) == HISTORY_ITEMS
    assert history[-1]["content"] == "Line 999."
    long = [line(n, "assistant", "x" * 1000, turn=n) for n in range(1, 100)]
    assert sum(len(str(item)) for item in recover(long).history) <= HISTORY_CHARACTERS


def test_nothing_said_yet_is_nothing_to_recover() -> None:
    assert recover([]).history == ()


def test_what_is_said_again_is_known_by_its_entries() -> None:
    lines = [
        line(1, "user", "Where?", turn=0),
        line(2, "assistant", "In the depot.", heard_ms=1200),
        line(3, "assistant", "It comes tomorrow.", heard_ms=300, cut=True),
        line(4, "assistant", "Anything else?", heard_ms=0, cut=True),
    ]
    assert recover(lines).again == ("7-3", "7-4")
    assert recover(lines[:2]).again == ()


def test_an_echo_may_come_as_a_whole_or_by_sentence_and_ends_with_the_first_other_text() -> None:
    whole, parts, other = (Echo("It comes tomorrow. Anything else?") for _ in range(3))
    assert whole.takes("It comes tomorrow. Anything else?")
    assert not whole.takes("Anything else?")
    assert parts.takes("It comes tomorrow.")
    assert parts.takes("Anything else?")
    assert not parts.takes("Anything else?")
    assert not other.takes("Hello.")
    assert not other.takes("It comes tomorrow.")
    assert not Echo().takes("")
