"""Recorded sentences: they are there, they can be rendered in every format, and they are recognised when heard."""

from __future__ import annotations

import random
from array import array

import pytest

from bridge_shared.protocol.media import FORMATS, media
from bridge_sim import pcm, speech

CALLER = speech.names("caller")
AGENT = speech.names("agent")
MULAW = media("raw/mulaw")
SECOND = b"\xff" * speech.RATE


def on_the_line(sound: bytes, before: int = 5000) -> bytes:
    """With silence around it that is not a whole number of frames."""
    return b"\xff" * before + sound + SECOND


def test_both_speakers_have_their_sentences():
    assert {"greeting_hello", "where_is_my_parcel", "parcel_number", "goodbye", "long_story"} <= set(CALLER)
    assert {"agent_hello", "agent_sorry", "agent_goodbye", "agent_long_answer"} <= set(AGENT)
    assert speech.prompt("agent_hello").text == "Hello, this is the parcel desk. How can I help you?"
    assert speech.prompt("agent_long_answer").seconds > 8
    assert 5 < speech.prompt("long_story").seconds < 8
    with pytest.raises(KeyError, match="goodbye"):
        speech.prompt("good_bye")


@pytest.mark.parametrize("name", [*CALLER, *AGENT])
def test_each_sentence_is_speech_without_silence_around_it_or_a_long_pause_inside(name: str):
    loud = [level >= 2 for level in pcm.levels(speech.prompt(name).ulaw, "mulaw", speech.RATE)]
    assert any(loud[:8])
    assert any(loud[-12:])
    longest = max(len(pause) for pause in "".join(" x"[here] for here in loud).split("x"))
    assert longest * pcm.FRAME_MS < 500  # a pause of 700 ms would end the caller's turn


@pytest.mark.parametrize("token", FORMATS)
@pytest.mark.parametrize("name", ["where_is_my_parcel", "agent_hello"])
def test_a_sentence_lasts_as_long_in_every_format(token: str, name: str):
    fmt = media(token)
    rendered = speech.render(speech.prompt(name), fmt)
    assert fmt.ms(len(rendered)) == pytest.approx(speech.prompt(name).seconds * 1000, abs=1)
    assert len(rendered) % fmt.sample_bytes == 0


@pytest.mark.parametrize("name", CALLER)
@pytest.mark.parametrize("token", [token for token in FORMATS if token.startswith("raw/")])
def test_a_caller_is_recognised_through_every_codec_with_silence_around(name: str, token: str):
    fmt = media(token)
    heard = pcm.convert(speech.render(speech.prompt(name), fmt), (fmt.encoding, fmt.rate), ("mulaw", speech.RATE))
    assert speech.recognise(on_the_line(heard)) is speech.prompt(name)


@pytest.mark.parametrize("name", CALLER)
def test_a_caller_is_recognised_when_packets_are_lost(name: str):
    whole, chance = speech.prompt(name).ulaw, random.Random(name)
    for _ in range(4):
        at = chance.randrange(160, len(whole) - 800)
        for sound in (whole[:at] + whole[at + 800 :], whole[800:], whole[:at] + whole[at - 160 :]):
            assert speech.recognise(on_the_line(sound, chance.randrange(400, 9000))) is speech.prompt(name)


@pytest.mark.parametrize("name", CALLER)
def test_a_caller_is_recognised_when_the_line_is_quiet_and_noisy(name: str):
    chance = random.Random(name)
    samples = array("h", pcm.mulaw_to_linear16(on_the_line(speech.prompt(name).ulaw)))
    noisy = array("h", (int(sample * 0.5) + chance.randint(-50, 50) for sample in samples))
    assert speech.recognise(pcm.linear16_to_mulaw(noisy.tobytes())) is speech.prompt(name)


def test_what_is_not_one_of_the_callers_sentences_is_not_recognised():
    assert speech.recognise(b"") is None
    assert speech.recognise(SECOND) is None
    for name in AGENT:
        assert speech.recognise(on_the_line(speech.prompt(name).ulaw)) is None
    noise = random.Random(1).randbytes(12_000)
    assert speech.recognise(on_the_line(noise)) is None
    for name in CALLER:
        half = speech.prompt(name).ulaw[: len(speech.prompt(name).ulaw) // 2]
        assert speech.recognise(on_the_line(half)) in (None, speech.prompt(name))


def test_any_text_has_a_sound_and_a_known_one_its_recording():
    hello = speech.prompt("agent_hello")
    assert speech.render_text(hello.text.upper(), MULAW) == hello.ulaw
    babble = speech.render_text("Nobody ever recorded this.", MULAW)
    assert MULAW.ms(len(babble)) == 26 * 60
    assert max(pcm.levels(babble, "mulaw", speech.RATE)) > 4
    assert babble == speech.render_text("Nobody ever recorded this.", MULAW)
    assert MULAW.ms(len(speech.render_text("x" * 5000, MULAW))) == 6000
    assert speech.render_text("", MULAW) == b""


def test_an_agent_says_recordings_whole_and_other_texts_sentence_by_sentence():
    assert speech.sentences("Hello, this is the parcel desk. How can I help you?") == (
        "Hello, this is the parcel desk. How can I help you?",
    )
    assert speech.sentences("One. Two! Three? Four") == ("One.", "Two!", "Three?", "Four")
    long_answer = speech.sentences(speech.prompt("agent_long_answer").text)
    assert len(long_answer) == 4
    assert all(speech.find(sentence) for sentence in long_answer)
    assert speech.sentences(" ") == ()


def test_mulaw_survives_linear16_and_back():
    every = bytes(range(256))
    # 0x7F is negative zero, the only code that comes back as another.
    assert pcm.linear16_to_mulaw(pcm.mulaw_to_linear16(every)) == every.replace(b"\x7f", b"\xff")
    assert pcm.mulaw_to_linear16(b"\xff\x7f\x00\x80") == b"\x00\x00\x00\x00\x84\x82\x7c\x7d"
    assert pcm.linear16_to_mulaw(b"\x00\x80\xff\x7f") == b"\x00\x80"


def test_a_sample_keeps_its_value_within_half_a_step_of_its_segment():
    probes = array("h", [*range(-32600, 32600, 97)])
    decoded = array("h", pcm.mulaw_to_linear16(pcm.linear16_to_mulaw(probes.tobytes())))
    for probe, value in zip(probes, decoded, strict=True):
        assert abs(probe - value) <= (abs(probe) + 132) / 32


def test_resampling_keeps_the_duration_and_the_original_samples():
    samples = array("h", [0, 1000, -1000, 300]).tobytes()
    up = array("h", pcm.resample(samples, 8000, 24000))
    assert len(up) == 12
    assert list(up[::3]) == [0, 1000, -1000, 300]
    assert list(up[:4]) == [0, 333, 666, 1000]
    assert pcm.resample(up.tobytes(), 24000, 8000) == samples
    assert len(pcm.resample(samples * 100, 16000, 24000)) == len(samples) * 150


def test_levels_are_comparable_between_encodings():
    loud = speech.prompt("greeting_hello").ulaw
    linear = pcm.mulaw_to_linear16(loud)
    for one, other in zip(pcm.levels(loud, "mulaw", 8000), pcm.levels(linear, "linear16", 8000), strict=True):
        assert one == pytest.approx(other, abs=0.6)
    assert pcm.level(b"\xff" * 160, "mulaw") == pcm.level(b"\x00" * 320, "linear16") == pcm.level(b"", "mulaw") == 0
