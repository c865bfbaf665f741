"""The play queue of the simulated VAIC, in plain arithmetic."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge_shared.protocol.media import media
from bridge_sim.playclock import PlayClock

MULAW = media("raw/mulaw")


def sound(ms: int) -> bytes:
    return b"\x01" * MULAW.nbytes(ms)


def ids(over: list) -> list:
    return [(stream.stream_id, stream.status, stream.ms) for stream in over]


def test_a_stream_is_over_when_its_last_sample_was_heard_and_not_when_it_was_stopped() -> None:
    clock = PlayClock()
    clock.start("a", MULAW, 10.0)
    clock.chunk(sound(1000), 10.0)
    assert clock.stop(10.2) == []
    assert clock.deadline() == 11.0
    assert clock.tick(10.9) == []
    assert clock.busy
    assert ids(clock.tick(11.0)) == [("a", "finished", 1000)]
    assert not clock.busy
    assert clock.deadline() == math.inf


def test_the_play_clock_starts_with_the_first_chunk_and_that_wait_is_no_gap() -> None:
    clock = PlayClock()
    clock.start("a", MULAW, 10.0)
    clock.chunk(sound(100), 12.0)
    clock.stop(12.0)
    (stream,) = clock.tick(13.0)
    assert stream.runs == [(12.0, 0)] and stream.gaps == []
    assert stream.ended_at == pytest.approx(12.1)


def test_running_dry_in_the_middle_of_a_stream_is_a_gap_of_that_length() -> None:
    clock = PlayClock()
    clock.start("a", MULAW, 0.0)
    clock.chunk(sound(100), 0.0)
    clock.chunk(sound(100), 0.25)
    clock.stop(0.3)
    (stream,) = clock.tick(1.0)
    assert stream.gaps == [pytest.approx(150)]
    assert stream.runs == [(0.0, 0), (0.25, 800)]
    assert stream.ended_at == pytest.approx(0.35)


def test_audio_in_time_makes_no_gap() -> None:
    clock = PlayClock()
    clock.start("a", MULAW, 0.0)
    for index in range(20):
        clock.chunk(sound(100), index * 0.1)
    assert clock.streams[0].gaps == []


def test_waiting_for_the_stop_is_no_gap_but_delays_the_end() -> None:
    clock = PlayClock()
    clock.start("a", MULAW, 0.0)
    clock.chunk(sound(100), 0.0)
    (stream,) = clock.stop(5.0)
    assert stream.gaps == [] and stream.ended_at == 5.0


def test_the_next_stream_is_queued_behind_the_one_that_plays() -> None:
    clock = PlayClock()
    clock.start("a", MULAW, 0.0)
    clock.chunk(sound(500), 0.0)
    clock.stop(0.1)
    clock.start("b", MULAW, 0.1)
    clock.chunk(sound(200), 0.1)
    clock.stop(0.2)
    assert ids(clock.tick(2.0)) == [("a", "finished", 500), ("b", "finished", 200)]
    assert clock.streams[1].runs == [(0.5, 0)]
    assert clock.streams[1].ended_at == pytest.approx(0.7)


def test_each_stream_is_played_at_the_rate_of_its_own_format() -> None:
    clock = PlayClock()
    for token, size in (("raw/mulaw", 8_000), ("raw/lpcm16_24", 48_000)):
        clock.start(token, media(token), 0.0)
        clock.chunk(bytes(size), 0.0)
        clock.stop(0.0)
    assert [stream.ended_at for stream in clock.tick(5.0)] == [1.0, 2.0]


def test_discarding_reports_how_much_was_heard_and_drops_the_rest() -> None:
    clock = PlayClock()
    clock.start("a", MULAW, 0.0)
    clock.chunk(sound(1000), 0.0)
    clock.stop(0.1)
    clock.start("b", MULAW, 0.1)
    clock.chunk(sound(1000), 0.1)
    assert ids(clock.discard(0.3)) == [("a", "interrupted", 300), ("b", "interrupted", 0)]
    assert not clock.busy
    assert clock.lead_ms(0.3) == 0


def test_after_a_discard_the_rest_of_the_open_stream_is_ignored_and_the_next_one_is_played() -> None:
    clock = PlayClock()
    clock.start("a", MULAW, 0.0)
    clock.chunk(sound(1000), 0.0)
    clock.discard(0.3)
    assert clock.chunk(sound(500), 0.4) == []
    assert clock.stop(0.5) == []
    clock.start("b", MULAW, 0.6)
    clock.chunk(sound(100), 0.6)
    assert ids(clock.stop(0.8)) == [("b", "finished", 100)]


def test_discarding_nothing_reports_nothing() -> None:
    assert PlayClock().discard(1.0) == []


def test_an_empty_stream_is_over_when_it_is_stopped() -> None:
    clock = PlayClock()
    clock.start("a", MULAW, 0.0)
    (stream,) = clock.stop(0.5)
    assert (stream.status, stream.ms, stream.ended_at) == ("finished", 0, 0.5)


def test_the_lead_is_what_was_received_and_not_heard() -> None:
    clock = PlayClock()
    clock.start("a", MULAW, 0.0)
    clock.chunk(sound(300), 0.0)
    assert clock.lead_ms(0.1) == pytest.approx(200)
    clock.chunk(sound(300), 0.1)
    assert clock.max_lead_ms == pytest.approx(500)
    assert clock.lead_ms(9.0) == 0


@given(
    st.lists(
        st.tuples(st.sampled_from(["start", "chunk", "chunk", "stop", "discard", "tick"]), st.integers(0, 400)),
        max_size=40,
    )
)
@settings(derandomize=True, max_examples=200, deadline=None)
def test_sound_and_gaps_together_fill_the_time_of_every_stream(steps: list) -> None:
    """Each stream ends once; what it played and how long it ran dry add up; streams never overlap."""
    clock, now, over, open_stream = PlayClock(), 0.0, [], False
    for index, (step, ms) in enumerate(steps):
        now += ms / 1000
        match step:
            case "start" if not open_stream:
                over += clock.start(str(index), MULAW, now)
                open_stream = True
            case "chunk" if open_stream:
                over += clock.chunk(sound(ms), now)
            case "stop" if open_stream:
                over += clock.stop(now)
                open_stream = False
            case "discard":
                over += clock.discard(now)
            case _:
                over += clock.tick(now)
    if open_stream:
        over += clock.stop(now)
    over += clock.tick(now + 1000)
    assert [stream.stream_id for stream in over] == [stream.stream_id for stream in clock.streams]
    free = 0.0
    for stream in over:
        assert stream.ended_at >= free
        if stream.runs:
            assert stream.runs[0][0] >= free - 1e-9
            spent = (stream.ended_at - stream.runs[0][0]) * 1000
            assert spent >= stream.ms + sum(stream.gaps) - 1
            assert len(stream.runs) == len(stream.gaps) + 1
        free = stream.ended_at
