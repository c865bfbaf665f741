"""When the simulated VAIC listens, and what its microphone sends."""

from __future__ import annotations

import pytest

from bridge_shared.protocol.media import FORMATS, media
from bridge_sim.floor import Floor
from bridge_sim.microphone import Microphone

MULAW = media("raw/mulaw")


def test_without_barge_in_the_stream_opens_half_a_second_after_the_greeting() -> None:
    floor = Floor(barge_in=False)
    floor.call_started(0.0)
    floor.play_started(0.2)
    assert floor.tick(10.0) == []
    floor.play_ended(10.0)
    assert floor.tick(10.4) == []
    assert floor.deadline() == 10.5
    assert floor.tick(10.5) == ["open"]


def test_without_a_greeting_the_stream_opens_after_three_seconds() -> None:
    floor = Floor(barge_in=False)
    floor.call_started(1.0)
    assert floor.tick(3.9) == []
    assert floor.tick(4.0) == ["open"]


def test_without_barge_in_the_stream_closes_half_a_second_after_the_bot_begins() -> None:
    floor = Floor(barge_in=False)
    floor.call_started(0.0)
    floor.tick(3.0)
    floor.play_started(5.0)
    floor.play_started(5.3)
    assert floor.tick(5.4) == []
    assert floor.tick(5.5) == ["close"]
    assert not floor.open


def test_a_prompt_shorter_than_half_a_second_leaves_the_stream_open() -> None:
    floor = Floor(barge_in=False)
    floor.call_started(0.0)
    floor.tick(3.0)
    floor.play_started(5.0)
    floor.play_ended(5.3)
    assert floor.tick(9.0) == []
    assert floor.open


def test_a_bot_that_goes_on_at_once_is_not_interrupted_by_an_open_floor() -> None:
    floor = Floor(barge_in=False)
    floor.play_started(0.0)
    floor.play_ended(1.0)
    floor.play_started(1.2)
    assert floor.tick(9.0) == []


def test_with_barge_in_the_stream_opens_at_once_and_never_closes() -> None:
    floor = Floor(barge_in=True)
    floor.call_started(0.0)
    assert floor.tick(0.0) == ["open"]
    floor.play_started(1.0)
    floor.play_ended(4.0)
    assert floor.tick(9.0) == []
    assert floor.open


def test_barge_in_can_be_switched_in_the_middle_of_an_utterance() -> None:
    floor = Floor(barge_in=False)
    floor.play_started(0.0)
    floor.allow_barge_in(True, 1.0)
    assert floor.tick(1.0) == ["open"]
    floor.allow_barge_in(False, 2.0)
    assert floor.tick(2.5) == ["close"]


def test_an_answer_that_takes_two_seconds_is_reported_once() -> None:
    floor = Floor(barge_in=True)
    floor.call_started(0.0)
    assert floor.tick(0.0) == ["open"]
    floor.asked(0.0)
    assert floor.deadline() == 2.0
    assert floor.tick(2.0) == ["late"]
    assert floor.tick(9.0) == []


def test_an_answer_in_time_and_a_new_socket_are_not_complained_of() -> None:
    floor = Floor(barge_in=True)
    floor.asked(0.0)
    floor.acknowledged()
    floor.asked(1.0)
    floor.new_socket()
    assert floor.tick(9.0) == []


@pytest.mark.parametrize("token", FORMATS)
def test_chunks_of_160_ms_come_in_real_time(token: str) -> None:
    mic = Microphone(media(token), 100.0)
    mic.open(100.0)
    mic.acknowledged()
    assert mic.take(100.159) == []
    for number in range(1, 100):
        moment = mic.deadline()
        assert moment == pytest.approx(100 + number * 0.16, abs=1e-3)
        assert mic.take(moment) == [media(token).silence(160)]


def test_the_backlog_goes_out_as_one_chunk_and_is_cut_at_960_ms() -> None:
    for waited, expected in ((0.5, 4000), (3.0, 7680)):
        mic = Microphone(MULAW, 0.0)
        mic.open(0.0)
        assert mic.take(waited) == []
        mic.acknowledged()
        assert [len(chunk) for chunk in mic.take(waited)] == [expected]
        assert [len(chunk) for chunk in mic.take(waited + 0.4)] == [1280, 1280]


def test_the_end_of_the_backlog_is_kept_and_not_its_beginning() -> None:
    mic = Microphone(MULAW, 0.0)
    mic.open(0.0)
    mic.say(b"\x01" * 8000 + b"\x02" * 8000, 0.0)
    mic.take(2.0)
    mic.acknowledged()
    assert mic.take(2.0) == [b"\x02" * 7680]


def test_a_backlog_shorter_than_a_chunk_waits_until_one_is_full() -> None:
    mic = Microphone(MULAW, 0.0)
    mic.open(0.0)
    mic.take(0.05)
    mic.acknowledged()
    assert mic.take(0.05) == []
    assert [len(chunk) for chunk in mic.take(0.16)] == [1280]


def test_speech_stands_in_silence_at_the_moment_it_was_said() -> None:
    mic = Microphone(MULAW, 0.0)
    mic.open(0.0)
    mic.acknowledged()
    assert mic.say(b"\x01" * 800, 0.1) == pytest.approx(0.2)
    heard = b"".join(mic.take(0.32))
    assert heard == b"\xff" * 800 + b"\x01" * 800 + b"\xff" * 960


def test_what_is_said_while_nobody_listens_is_lost() -> None:
    mic = Microphone(MULAW, 0.0)
    mic.say(b"\x01" * 800 + b"\x02" * 800, 0.0)
    mic.open(0.1)
    mic.acknowledged()
    assert mic.take(0.26) == [b"\x02" * 800 + b"\xff" * 480]
    mic.say(b"\x03" * 8000, 0.26)
    mic.close(0.3)
    assert mic.take(2.0) == []


def test_new_words_break_off_the_old_ones() -> None:
    mic = Microphone(MULAW, 0.0)
    mic.open(0.0)
    mic.acknowledged()
    mic.say(b"\x01" * 8000, 0.0)
    mic.say(b"\x02" * 8000, 0.08)
    assert mic.take(0.16) == [b"\x01" * 640 + b"\x02" * 640]


def test_small_chunks_can_be_asked_for() -> None:
    mic = Microphone(MULAW, 0.0, chunk_ms=20)
    mic.open(0.0)
    mic.acknowledged()
    mic.take(0.02)
    assert [len(chunk) for chunk in mic.take(0.1)] == [160] * 4
