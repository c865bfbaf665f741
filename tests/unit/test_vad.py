"""When speech begins and ends, counted in audio."""

from __future__ import annotations

import random

import pytest

from bridge_shared.protocol.media import media
from bridge_sim import speech
from bridge_sim.vad import Change, Ear, Ended, Started, Vad

LOUD, QUIET = 10.0, 0.5
MULAW = media("raw/mulaw")


def feed(vad: Vad, *levels: float) -> list[Change | None]:
    return [vad.feed(level) for level in levels]


def test_speech_starts_with_the_third_loud_frame_in_a_row():
    vad = Vad()
    assert feed(vad, LOUD, LOUD, QUIET, LOUD, LOUD) == [None] * 5
    assert not vad.speaking
    assert feed(vad, LOUD) == [Change.STARTED]
    assert vad.speaking


def test_speech_ends_after_700_ms_of_silence_and_not_before():
    vad = Vad()
    feed(vad, *[LOUD] * 10)
    assert feed(vad, *[QUIET] * 34) == [None] * 34
    assert vad.speaking
    assert feed(vad, QUIET) == [Change.ENDED]
    assert (vad.speaking, vad.spoken_ms) == (False, 200)


def test_a_short_pause_does_not_end_the_utterance_and_counts_as_part_of_it():
    vad = Vad()
    feed(vad, *[LOUD] * 10, *[QUIET] * 30, *[LOUD] * 10)
    assert feed(vad, *[QUIET] * 34)[-1] is None
    assert vad.feed(QUIET) is Change.ENDED
    assert vad.spoken_ms == 1000


def test_the_next_utterance_begins_afresh():
    vad = Vad()
    feed(vad, *[LOUD] * 10, *[QUIET] * 35)
    assert feed(vad, LOUD, LOUD, LOUD) == [None, None, Change.STARTED]
    assert vad.spoken_ms == 60


@pytest.mark.parametrize("token", ["raw/mulaw", "raw/lpcm16", "raw/lpcm16_8", "raw/lpcm16_24"])
def test_an_utterance_is_heard_in_any_format_and_any_chunking_and_can_be_recognised(token: str):
    fmt = media(token)
    line = fmt.silence(1000) + speech.render(speech.prompt("opening_hours"), fmt) + fmt.silence(1500)
    ear, sizes, at, events = Ear(fmt), random.Random(token), 0, []
    while at < len(line):
        size = sizes.randint(1, 900)
        events += ear.hear(line[at : at + size])
        at += size
    started, ended = events
    assert started == Started()
    assert isinstance(ended, Ended)
    assert ended.spoken_ms == pytest.approx(speech.prompt("opening_hours").seconds * 1000, abs=150)
    assert speech.recognise(ended.ulaw) is speech.prompt("opening_hours")


def test_an_utterance_has_what_came_before_it_was_certain_to_be_one():
    ear, sound = Ear(MULAW), speech.prompt("where_is_my_parcel").ulaw
    _, ended = ear.hear(MULAW.silence(500) + sound + MULAW.silence(1000))
    assert isinstance(ended, Ended)
    assert sound in ended.ulaw


def test_silence_is_never_an_utterance():
    ear = Ear(MULAW)
    assert ear.hear(MULAW.silence(60_000)) == []
    assert not ear.hears_speech


def test_a_line_that_stops_sending_leaves_the_turn_open_until_it_is_ended_by_hand():
    ear = Ear(MULAW)
    sound = speech.prompt("thank_you").ulaw
    assert ear.hear(sound) == [Started()]
    assert ear.hears_speech
    ended = ear.end_turn()
    assert ended is not None
    assert speech.recognise(ended.ulaw) is speech.prompt("thank_you")
    assert ear.end_turn() is None
    assert ear.hear(MULAW.silence(2000)) == []


def test_an_endless_utterance_keeps_only_its_last_half_minute():
    ear = Ear(MULAW)
    for _ in range(100):
        ear.hear(b"\x20" * 8000)
    ended = ear.end_turn()
    assert ended is not None
    assert len(ended.ulaw) == 30 * 8000
    assert ended.spoken_ms == pytest.approx(100_000, abs=100)
