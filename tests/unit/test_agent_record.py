"""What a simulated agent notes down against a client, and how much of it it keeps."""

from __future__ import annotations

from bridge_shared.protocol.media import media
from bridge_sim import agent_record
from bridge_sim.agent_record import Record

MULAW = media("raw/mulaw")


def test_real_time_and_a_little_more_is_no_problem_for_hours():
    record, now = Record(keep=True), 1000.0
    for _ in range(50 * 3600):
        now += 0.02 / 1.24
        record.hear(b"\xff" * 160, MULAW, now)
    assert record.problems == []


def test_a_tail_of_two_seconds_at_once_is_allowed_and_three_seconds_are_noted_once():
    record = Record(keep=True)
    record.hear(MULAW.silence(1990), MULAW, 1000.0)
    assert record.problems == []
    for _ in range(10):
        record.hear(MULAW.silence(100), MULAW, 1000.0)
    assert record.problems == ["audio came faster than 1.25 times real time by 2.1 s"]


def test_a_client_that_was_too_fast_and_calmed_down_can_be_noted_again():
    record = Record(keep=True)
    for now in (1000.0, 1010.0):
        record.hear(MULAW.silence(2500), MULAW, now)
        record.hear(MULAW.silence(20), MULAW, now + 9)
    assert len(record.problems) == 2


def test_audio_frames_and_notes_are_bounded_and_still_counted():
    record = Record(keep=True)
    for second in range(1100):
        record.hear(MULAW.silence(10_000), MULAW, second * 10.0)
        record.speak(MULAW.silence(10_000))
        record.text("user", str(second), second)
        record.problem(str(second))
    assert len(record.heard) <= agent_record.MOST_AUDIO
    assert len(record.spoken) <= agent_record.MOST_AUDIO
    assert record.heard_bytes == record.spoken_bytes == 1100 * 80_000
    assert len(record.texts) == len(record.problems) == agent_record.MOST_NOTES
    assert record.texts[-1] == ("user", "1099")


def test_nothing_is_kept_when_nothing_is_to_be_kept():
    record = Record(keep=False)
    record.hear(b"", MULAW, 1.0)
    record.hear(MULAW.silence(5000), MULAW, 1.0)
    record.speak(b"\xff")
    assert (record.heard, record.spoken, record.frames, record.problems) == (bytearray(), bytearray(), [], [])
    assert (record.heard_bytes, record.spoken_bytes) == (40_000, 1)
