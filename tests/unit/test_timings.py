"""What an answer took, and where the time went."""

from __future__ import annotations

from bridge_shared.types.extra import TurnTiming
from bridge_worker.timings import MOST_TURNS, Timings

T1, T2 = (7, 1), (7, 2)


def test_a_turn_is_timed_from_what_was_understood_to_what_is_heard() -> None:
    told: list[TurnTiming] = []
    timings = Timings(told.append)
    timings.recognised(0.25)
    timings.understood(10.0)
    timings.text(10.4)
    timings.text(10.9)  # the second sentence
    timings.audio(T1, 10.5)
    timings.audio(T1, 10.6)
    timings.heard(T1, 0, 10.7)
    timings.heard(T1, 200, 10.8)
    timings.heard(T1, 450, 11.05)
    assert told == [TurnTiming(turn=1, stt_ms=250.0, text_ms=400.0, audio_ms=500.0, heard_ms=600.0)]
    assert list(timings.turns) == told


def test_what_the_agent_says_unasked_is_not_timed() -> None:
    told: list[TurnTiming] = []
    timings = Timings(told.append)
    timings.text(1.0)
    timings.audio(T1, 1.1)
    timings.heard(T1, 100, 1.3)
    assert told == []


def test_the_end_of_the_turn_before_does_not_count_as_the_answer() -> None:
    told: list[TurnTiming] = []
    timings = Timings(told.append)
    timings.understood(10.0)
    timings.heard(T1, 900, 10.1)
    timings.audio(T2, 10.5)
    timings.heard(T1, 950, 10.6)
    assert told == []
    timings.heard(T2, 100, 10.7)
    assert [timing.turn for timing in told] == [2]


def test_what_was_reported_for_one_turn_does_not_stick_to_the_next() -> None:
    told: list[TurnTiming] = []
    timings = Timings(told.append)
    for number, turn in enumerate((T1, T2)):
        if not number:
            timings.recognised(0.2)
        timings.understood(10.0 + number)
        timings.audio(turn, 10.2 + number)
        timings.heard(turn, 100, 10.5 + number)
    assert [timing.stt_ms for timing in told] == [200.0, None]


def test_only_the_newest_turns_are_kept() -> None:
    timings = Timings(lambda timing: None)
    for number in range(MOST_TURNS + 5):
        timings.understood(number)
        timings.audio((7, number), number + 0.1)
        timings.heard((7, number), 50, number + 0.3)
    assert len(timings.turns) == MOST_TURNS
    assert timings.turns[-1].turn == MOST_TURNS + 4
