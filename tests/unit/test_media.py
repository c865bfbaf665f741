"""The eight formats, alignment and WAV headers."""

from __future__ import annotations

import io
import wave

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge_shared.protocol.media import FORMATS, Aligner, Inbound, choose, media, wav_header


@pytest.mark.parametrize(
    ("token", "bytes_per_second", "chunk_160_ms"),
    [
        ("raw/lpcm16", 32_000, 5_120),
        ("raw/lpcm16_8", 16_000, 2_560),
        ("raw/lpcm16_24", 48_000, 7_680),
        ("raw/mulaw", 8_000, 1_280),
        ("wav/mulaw", 8_000, 1_280),
    ],
)
def test_the_arithmetic_is_that_of_the_reference_table(token: str, bytes_per_second: int, chunk_160_ms: int) -> None:
    fmt = media(token)
    assert fmt.bytes_per_second == bytes_per_second
    assert fmt.nbytes(160) == chunk_160_ms
    assert fmt.ms(chunk_160_ms) == 160


def test_there_are_exactly_eight_formats_and_each_knows_its_name() -> None:
    assert len(set(FORMATS)) == 8
    assert [media(token).token for token in FORMATS] == list(FORMATS)
    assert [media(token).wav for token in FORMATS] == [token.startswith("wav/") for token in FORMATS]


def test_an_unknown_format_is_refused_with_the_names_of_the_eight() -> None:
    with pytest.raises(ValueError, match=r"raw/alaw.*raw/mulaw") as caught:
        media("raw/alaw")
    assert all(token in str(caught.value) for token in FORMATS)


def test_silence_is_quiet_in_each_encoding_and_whole_in_samples() -> None:
    assert media("raw/mulaw").silence(10) == b"\xff" * 80
    assert media("raw/lpcm16").silence(0.99) == b"\x00" * 30
    assert media("raw/lpcm16").silence(-5) == b""


def test_short_silence_is_the_same_object_every_time() -> None:
    assert media("raw/mulaw").silence(20) is media("wav/mulaw").silence(20)


def test_the_first_preferred_format_that_is_offered_wins_and_unknown_names_do_not_matter() -> None:
    assert choose(["raw/opus", "raw/mulaw", "raw/lpcm16"], ["raw/lpcm16", "raw/opus", "raw/mulaw"]) == "raw/mulaw"
    assert choose(["raw/mulaw"], ["raw/lpcm16"]) is None
    assert choose([], FORMATS) is None


@pytest.mark.parametrize("token", ["wav/lpcm16", "wav/lpcm16_8", "wav/lpcm16_24"])
def test_the_header_is_read_by_an_independent_reader(token: str) -> None:
    fmt = media(token)
    with wave.open(io.BytesIO(wav_header(fmt) + fmt.silence(100))) as reader:
        assert (reader.getnchannels(), reader.getframerate(), reader.getsampwidth()) == (1, fmt.rate, 2)


def test_the_header_of_mu_law_has_format_code_7_and_no_length() -> None:
    header = wav_header(media("wav/mulaw"))
    assert header[:4] == b"RIFF" and header[4:8] == b"\xff" * 4 and header[8:12] == b"WAVE"
    assert header[20:22] == b"\x07\x00"
    assert header[-8:] == b"data" + b"\xff" * 4


@given(st.lists(st.binary(max_size=7), max_size=8), st.sampled_from(FORMATS))
@settings(derandomize=True, max_examples=200)
def test_alignment_loses_nothing_but_a_trailing_half_sample(chunks: list[bytes], token: str) -> None:
    fmt, whole = media(token), b"".join(chunks)
    aligner = Aligner(fmt)
    parts = [aligner.feed(chunk) for chunk in chunks]
    assert all(len(part) % fmt.sample_bytes == 0 for part in parts)
    assert b"".join(parts) == whole[: len(whole) - len(whole) % fmt.sample_bytes]
    assert aligner.halved == bool(len(whole) % fmt.sample_bytes)


def test_a_reset_forgets_the_half_sample() -> None:
    aligner = Aligner(media("raw/lpcm16"))
    assert aligner.feed(b"abc") == b"ab"
    aligner.reset()
    assert aligner.feed(b"de") == b"de"


@given(st.data(), st.sampled_from(FORMATS))
@settings(derandomize=True, max_examples=200)
def test_a_header_is_stripped_however_it_is_cut(data: st.DataObject, token: str) -> None:
    fmt = media(token)
    audio = bytes(range(1, 61))
    stream = wav_header(fmt) + audio
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=5)))
    inbound = Inbound(fmt)
    edges = zip([0, *cuts], [*cuts, len(stream)], strict=True)
    assert b"".join(inbound.feed(stream[start:stop]) for start, stop in edges) == audio


def test_extra_riff_chunks_before_the_audio_are_skipped_with_their_padding() -> None:
    header = wav_header(media("wav/mulaw"))
    extra = b"LIST" + (3).to_bytes(4, "little") + b"abc\x00"
    assert Inbound(media("wav/mulaw")).feed(header[:-8] + extra + header[-8:] + b"audio") == b"audio"


def test_audio_that_only_resembles_a_header_is_played_whole() -> None:
    inbound = Inbound(media("raw/mulaw"))
    assert inbound.feed(b"RI") == b""
    assert inbound.feed(b"FFabcdWAVY...") == b"RIFFabcdWAVY..."


def test_a_header_without_end_is_dropped_instead_of_played() -> None:
    inbound = Inbound(media("wav/mulaw"))
    assert inbound.feed(b"RIFF\x00\x00\x00\x00WAVEjunk\xff\xff\xff\xff" + bytes(5000)) == b""
    assert inbound.feed(b"audio") == b"audio"


def test_a_header_in_the_middle_of_a_raw_stream_is_audio() -> None:
    inbound = Inbound(media("raw/mulaw"))
    header = wav_header(media("wav/mulaw"))
    inbound.feed(b"audio")
    assert inbound.feed(header) == header


def test_a_header_repeated_in_each_chunk_of_a_wav_stream_is_stripped_each_time() -> None:
    inbound = Inbound(media("wav/lpcm16"))
    header = wav_header(media("wav/lpcm16"))
    assert inbound.feed(header + b"ab") + inbound.feed(header + b"cd") == b"abcd"


def test_a_restarted_stream_may_have_a_header_again_and_drops_the_odd_byte() -> None:
    inbound = Inbound(media("raw/lpcm16"))
    assert inbound.feed(b"abc") == b"ab"
    assert inbound.halved
    inbound.restart()
    assert inbound.feed(wav_header(media("wav/lpcm16")) + b"de") == b"de"


def test_empty_chunks_change_nothing() -> None:
    inbound = Inbound(media("raw/mulaw"))
    assert inbound.feed(b"") == b""
    assert inbound.feed(wav_header(media("wav/mulaw")) + b"x") == b"x"
