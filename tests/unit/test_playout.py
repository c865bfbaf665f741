"""bridge_edge.playout: what is sent to VAIC when, and what is reported as heard.

The other end is the simulator's play clock, which knows what a caller really hears of what VAIC was sent.
"""

from __future__ import annotations

import math
from collections import defaultdict
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge_edge.playout import (
    IDLE_CLOSE_SECONDS,
    REPORT_SECONDS,
    Action,
    Played,
    Playout,
    SendChunk,
    StartStream,
    StopStream,
)
from bridge_shared.protocol.media import FORMATS, Media, media
from bridge_sim.playclock import PlayClock

MULAW = media("raw/mulaw")
START = 1000.0  # a monotonic clock begins anywhere
T1, T2, T3 = (7, 1), (7, 2), (7, 3)
Turn = tuple[int, int]


def sound(ms: float, form: Media = MULAW) -> bytes:
    """Audio in which a lost, doubled or moved piece shows."""
    size = form.nbytes(ms)
    return b"".join(i.to_bytes(4, "little") for i in range(size // 4 + 1))[:size]


class Edge:
    """The shell around a playout, and VAIC behind it. Every action is held against the rules of the Bot API."""

    def __init__(self, form: Media = MULAW, *, lead_ms: int = 300, chunk_ms: int = 100, hold: float = 0.0) -> None:
        self.media, self.lead_ms = form, lead_ms
        self.now = START
        self.playout = Playout(form, prefix="7", lead_ms=lead_ms, chunk_ms=chunk_ms, hold_until=START + hold)
        self.caller = PlayClock()
        self.open: Turn | None = None
        self.starts: list[tuple[float, str, Turn]] = []
        self.stops: list[float] = []
        self.chunks: list[tuple[float, Turn, bytes]] = []
        self.sent: dict[Turn, bytearray] = defaultdict(bytearray)
        self.reports: list[tuple[float, Played]] = []
        self.polls = 0

    def audio(self, turn: Turn, data: bytes) -> None:
        self.playout.audio(turn, data, self.now)
        self.poll()

    def end(self, turn: Turn) -> None:
        self.playout.end(turn)
        self.poll()

    def cut(self, turn: Turn) -> None:
        self.playout.cut(turn, self.now)
        self.poll()

    def release(self) -> None:
        self.playout.release()
        self.poll()

    def say(self, turn: Turn, ms: float) -> None:
        """A whole turn at once."""
        self.playout.audio(turn, sound(ms, self.media), self.now)
        self.playout.end(turn)
        self.poll()

    def poll(self) -> None:
        self.polls += 1
        for action in self.playout.poll(self.now):
            self._carry_out(action)
        assert self.playout.deadline(self.now) > self.now, "poll left something undone"

    def run(self, seconds: float, late: float = 0.0) -> None:
        """Let time pass; every timer fires `late`."""
        until = self.now + seconds
        while (due := self.playout.deadline(self.now) + late) <= until:
            self.now = max(self.now, due)
            self.poll()
        self.now = until

    def of(self, turn: Turn) -> list[tuple[int, str]]:
        """What was reported about a turn."""
        return [(report.heard_ms, report.state) for _, report in self.reports if report.turn == turn]

    def heard_ms(self, turn: Turn) -> float:
        """What the caller has heard of a turn by the play clock."""
        self.caller.tick(self.now)
        unheard = self.caller.lead_ms(self.now)
        for other in sorted(self.sent, reverse=True):
            ms = self.media.ms(len(self.sent[other]))
            if other == turn:
                return ms - min(ms, unheard)
            unheard -= min(ms, unheard)
        return 0.0

    def _carry_out(self, action: Action) -> None:
        if isinstance(action, StartStream):
            assert self.open is None, "two streams at once"
            assert action.stream_id not in [known for _, known, _ in self.starts], "a stream id was used twice"
            self.open = action.turn
            self.starts.append((self.now, action.stream_id, action.turn))
            self.caller.start(action.stream_id, self.media, self.now)
        elif isinstance(action, SendChunk):
            assert self.open is not None, "a chunk outside an open stream"
            assert action.data
            assert len(action.data) % self.media.sample_bytes == 0
            self.caller.chunk(action.data, self.now)
            assert self.caller.lead_ms(self.now) <= self.lead_ms + 0.5
            self.chunks.append((self.now, self.open, action.data))
            self.sent[self.open] += action.data
        elif isinstance(action, Played):
            assert action.heard_ms == pytest.approx(self.heard_ms(action.turn), abs=1.5)
            assert not any(known.turn == action.turn and known.state != "playing" for _, known in self.reports)
            self.reports.append((self.now, action))
        else:
            assert self.open is not None, "no stream to stop"
            self.open = None
            self.stops.append(self.now)
            self.caller.stop(self.now)

    @property
    def gaps(self) -> list[float]:
        return [gap for stream in self.caller.streams for gap in stream.gaps]


# ── one turn ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("token", FORMATS)
def test_a_turn_is_one_stream_with_all_its_audio_in_order_and_without_a_gap(token: str):
    edge = Edge(media(token))
    edge.say(T1, 3000)
    edge.run(10)
    assert [turn for _, _, turn in edge.starts] == [T1]
    assert len(edge.stops) == 1
    assert edge.sent[T1] == sound(3000, edge.media)
    assert not edge.gaps
    assert len(edge.playout.gaps) == 0
    assert edge.of(T1)[-1] == (3000, "finished")


def test_speech_begins_at_once():
    edge = Edge()
    edge.audio(T1, sound(1000))
    assert edge.starts[0][0] == START
    assert edge.chunks[0][0] == START


def test_the_stream_is_closed_with_its_last_chunk_and_not_when_that_has_been_played():
    edge = Edge()
    edge.say(T1, 3000)
    edge.run(10)
    assert edge.stops == [edge.chunks[-1][0]]
    assert edge.stops[0] < edge.reports[-1][0] == pytest.approx(START + 3.0, abs=0.001)


def test_an_end_that_comes_after_the_last_chunk_closes_the_stream_at_once():
    edge = Edge()
    edge.audio(T1, sound(200))
    edge.run(0.15)
    assert edge.open == T1
    edge.end(T1)
    assert edge.stops == [edge.now]
    assert edge.of(T1) == []  # 50 ms of it are still to be heard
    edge.run(0.06)
    assert edge.of(T1) == [(200, "finished")]


@pytest.mark.parametrize(("lead_ms", "chunk_ms"), [(300, 100), (300, 300), (20, 10), (1000, 40), (250, 70)])
def test_vaic_never_has_more_than_the_lead_and_never_runs_dry(lead_ms: int, chunk_ms: int):
    edge = Edge(lead_ms=lead_ms, chunk_ms=chunk_ms)
    edge.say(T1, 5000)
    edge.run(10)
    assert edge.caller.max_lead_ms <= lead_ms + 0.2  # the clock counts whole samples
    assert edge.caller.max_lead_ms > lead_ms / 2
    assert not edge.gaps


def test_a_timer_that_is_late_by_less_than_half_the_lead_is_not_heard():
    edge = Edge(lead_ms=300, chunk_ms=300)
    edge.say(T1, 5000)
    edge.run(10, late=0.14)
    assert not edge.gaps


def test_a_chunk_is_what_was_asked_for_but_at_most_half_the_lead():
    for chunk_ms, expected in [(100, 100), (300, 150)]:
        edge = Edge(lead_ms=300, chunk_ms=chunk_ms)
        edge.say(T1, 3000)
        edge.run(5)
        assert {len(data) for _, _, data in edge.chunks} == {MULAW.nbytes(expected)}


def test_a_stall_of_ours_is_not_made_up_for_by_a_burst():
    edge = Edge()
    edge.say(T1, 5000)
    edge.run(1)
    edge.now += 2.0
    before = len(edge.chunks)
    edge.poll()
    assert MULAW.ms(sum(len(data) for _, _, data in edge.chunks[before:])) <= 300
    edge.run(10)
    assert edge.sent[T1] == sound(5000)


def test_less_than_a_chunk_waits_for_more_until_vaic_would_run_dry():
    edge = Edge()
    edge.audio(T1, sound(230))
    assert [len(data) for _, _, data in edge.chunks] == [800, 800]
    edge.run(0.12)
    assert len(edge.chunks) == 2
    edge.run(0.1)
    assert [len(data) for _, _, data in edge.chunks] == [800, 800, 240]
    assert edge.chunks[-1][0] == pytest.approx(START + 0.15)
    assert not edge.gaps


def test_less_than_a_chunk_is_completed_by_what_comes_in_time():
    edge = Edge()
    data = sound(400)
    edge.audio(T1, data[:1840])
    edge.run(0.1)
    edge.audio(T1, data[1840:])
    edge.end(T1)
    edge.run(1)
    assert [len(data) for _, _, data in edge.chunks] == [800, 800, 800, 800]
    assert edge.sent[T1] == data


def test_the_rest_of_an_ended_turn_does_not_wait():
    edge = Edge()
    edge.say(T1, 130)
    assert [len(data) for _, _, data in edge.chunks] == [800, 240]
    assert edge.open is None


def test_a_turn_without_audio_is_finished_without_a_stream():
    edge = Edge()
    edge.end(T1)
    assert edge.of(T1) == [(0, "finished")]
    assert not edge.starts
    assert not edge.playout.speaking


# ── several turns ──────────────────────────────────────────────────────────────────────────────────────────


def test_the_next_turn_is_queued_behind_the_one_that_plays():
    edge = Edge()
    edge.say(T1, 1000)
    edge.say(T2, 1000)
    edge.run(5)
    assert [turn for _, _, turn in edge.starts] == [T1, T2]
    assert [turn for _, turn, _ in edge.chunks] == [T1] * 10 + [T2] * 10
    assert edge.starts[1][0] < START + 1.0  # VAIC has the second before the first is over
    assert not edge.gaps
    assert edge.of(T1)[-1] == (1000, "finished")
    assert edge.of(T2)[-1] == (1000, "finished")
    assert edge.reports[-1][0] == pytest.approx(START + 2.0, abs=0.001)


def test_a_turn_waits_until_the_one_before_it_has_ended():
    edge = Edge()
    edge.audio(T1, sound(100))
    edge.audio(T2, sound(100))
    edge.run(0.5)
    assert [turn for _, _, turn in edge.starts] == [T1]
    edge.end(T1)
    assert [turn for _, _, turn in edge.starts] == [T1, T2]


def test_no_stream_id_is_used_twice_and_all_bear_the_prefix():
    edge = Edge()
    for number in range(1, 6):
        edge.say((7, number), 150)
        edge.run(0.1)
    edge.run(3)
    ids = [stream_id for _, stream_id, _ in edge.starts]
    assert len(set(ids)) == 5
    assert all(stream_id.startswith("7-") for stream_id in ids)


def test_it_speaks_from_the_first_audio_until_the_last_was_heard():
    edge = Edge()
    assert not edge.playout.speaking
    edge.say(T1, 500)
    edge.run(0.49)
    assert edge.playout.speaking
    edge.run(0.02)
    assert not edge.playout.speaking
    assert edge.playout.deadline(edge.now) == math.inf


# ── before the call is answered ────────────────────────────────────────────────────────────────────────────


def test_nothing_is_sent_before_the_start_activity():
    edge = Edge(hold=3.0)
    edge.say(T1, 1000)
    edge.run(1.0)
    assert not edge.starts
    assert not edge.reports
    edge.release()
    assert edge.starts[0][0] == edge.now
    edge.run(5)
    assert edge.of(T1)[-1] == (1000, "finished")


def test_it_does_not_hold_for_longer_than_it_was_told():
    edge = Edge(hold=3.0)
    edge.say(T1, 1000)
    edge.run(10)
    assert edge.starts[0][0] == START + 3.0
    assert edge.sent[T1] == sound(1000)
    assert edge.polls < 40


def test_a_turn_that_is_cut_while_it_is_held_is_never_heard():
    edge = Edge(hold=3.0)
    edge.say(T1, 1000)
    edge.run(1.0)
    edge.cut(T1)
    edge.run(10)
    assert edge.of(T1) == [(0, "cut")]
    assert not edge.starts


# ── a turn that gives nothing for a while ──────────────────────────────────────────────────────────────────


def test_a_stream_that_was_dry_for_a_second_is_closed_and_another_one_opened_if_the_turn_goes_on():
    edge = Edge()
    edge.audio(T1, sound(500))
    edge.run(0.5 + IDLE_CLOSE_SECONDS - 0.01)
    assert edge.open == T1
    edge.run(0.02)
    assert edge.stops == [pytest.approx(START + 0.5 + IDLE_CLOSE_SECONDS)]
    assert edge.playout.speaking
    edge.run(5)
    edge.audio(T1, sound(200))
    edge.end(T1)
    edge.run(1)
    assert [turn for _, _, turn in edge.starts] == [T1, T1]
    assert edge.of(T1)[-1] == (700, "finished")


def test_an_underrun_is_counted_once():
    edge = Edge()
    edge.audio(T1, sound(200))
    edge.run(0.4)
    edge.audio(T1, sound(200))
    edge.audio(T1, sound(200))
    edge.end(T1)
    edge.run(2)
    assert len(edge.playout.gaps) == 1
    assert edge.gaps == [pytest.approx(200)]
    assert edge.of(T1)[-1] == (600, "finished")


def uneven(edge: Edge, turn: Turn, gaps: int) -> None:
    """A turn in pieces of 100 ms, each of which comes 20 ms after the one before has been played."""
    for _ in range(gaps + 1):
        edge.audio(turn, sound(100))
        edge.run(0.12)
    edge.end(turn)
    edge.run(1)


def first_chunk_after(edge: Edge, turn: Turn) -> float:
    """Seconds from now to the first chunk of a turn of which 20 ms come every 20 ms."""
    began = edge.now
    for _ in range(40):
        edge.audio(turn, sound(20))
        edge.run(0.02)
    edge.end(turn)
    edge.run(2)
    return next(at for at, of, _ in edge.chunks if of == turn) - began


def test_after_gaps_a_turn_begins_a_little_later_so_that_it_has_none():
    calm, shaken = Edge(), Edge()
    uneven(shaken, T1, gaps=3)
    assert len(shaken.playout.gaps) == 3
    assert first_chunk_after(shaken, T2) > first_chunk_after(calm, T2) + 0.05


def test_the_allowance_for_gaps_is_bounded_by_the_lead():
    edge = Edge()
    uneven(edge, T1, gaps=50)
    assert first_chunk_after(edge, T2) <= 0.2 + 0.02


def test_an_allowance_is_given_up_again_when_turns_have_no_gaps():
    edge = Edge()
    uneven(edge, T1, gaps=3)
    before = first_chunk_after(edge, T2)
    for number in range(3, 20):
        edge.say((7, number), 200)
        edge.run(1)
    assert first_chunk_after(edge, (7, 20)) < before


def test_a_turn_that_comes_whole_is_not_held_back_by_an_allowance():
    edge = Edge()
    uneven(edge, T1, gaps=3)
    edge.say(T2, 500)
    assert edge.chunks[-1][:2] == (edge.now, T2)


def test_a_pause_between_turns_is_no_underrun():
    edge = Edge()
    edge.say(T1, 200)
    edge.run(1)
    edge.say(T2, 200)
    edge.run(1)
    assert len(edge.playout.gaps) == 0


def test_a_turn_that_has_nothing_to_play_costs_no_timers():
    edge = Edge()
    edge.audio(T1, sound(500))
    edge.run(2)
    before = edge.polls
    edge.run(3600)
    assert edge.polls == before


# ── barge-in ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_cut_closes_the_stream_drops_the_rest_and_tells_what_was_heard():
    edge = Edge()
    edge.say(T1, 5000)
    edge.run(1.0)
    sent = bytes(edge.sent[T1])
    edge.cut(T1)
    assert edge.stops == [edge.now]
    assert edge.of(T1)[-1] == (1000, "cut")
    assert not edge.playout.speaking
    edge.run(10)
    assert edge.sent[T1] == sent == sound(5000)[: len(sent)]
    assert MULAW.ms(len(sent)) <= 1300  # the caller hears at most the lead beyond the cut


def test_audio_that_comes_after_its_cut_is_never_sent_but_counted():
    edge = Edge()
    edge.audio(T1, sound(500))
    edge.cut(T1)
    edge.audio(T1, sound(500))
    edge.end(T1)
    edge.run(2)
    assert len(edge.starts) == 1
    assert edge.playout.late_bytes == 4000
    assert [state for _, state in edge.of(T1)] == ["cut"]


def test_a_cut_is_for_all_turns_up_to_it_and_for_none_after_it():
    edge = Edge()
    for turn in (T1, T2, T3):
        edge.say(turn, 1000)
    edge.run(0.5)
    edge.cut(T2)
    assert edge.of(T1)[-1] == (500, "cut")
    assert edge.of(T2) == [(0, "cut")]
    edge.run(5)
    assert T2 not in edge.sent
    assert edge.sent[T3] == sound(1000)
    assert edge.of(T3)[-1] == (1000, "finished")


def test_a_cut_of_a_turn_that_never_came_is_answered_and_the_turn_is_not_played_when_it_comes():
    edge = Edge()
    edge.cut(T2)
    assert edge.of(T2) == [(0, "cut")]
    edge.say(T1, 100)
    edge.say(T2, 100)
    edge.run(1)
    assert not edge.starts
    assert [report.turn for _, report in edge.reports] == [T2]


def test_a_cut_is_answered_once_however_often_it_comes():
    edge = Edge()
    edge.say(T1, 1000)
    for _ in range(3):
        edge.cut(T1)
        edge.run(0.1)
    assert [state for _, state in edge.of(T1)] == ["cut"]


def test_a_cut_of_a_turn_that_was_heard_is_answered_by_what_was_said_before():
    edge = Edge()
    edge.say(T1, 100)
    edge.run(1)
    edge.cut(T1)
    assert edge.of(T1) == [(100, "finished")]


def test_the_turn_after_a_cut_is_played_behind_what_vaic_still_has():
    edge = Edge()
    edge.say(T1, 5000)
    edge.run(1.0)
    edge.cut(T1)
    edge.say(T2, 500)
    edge.run(3)
    assert edge.of(T2)[-1] == (500, "finished")
    assert not edge.gaps
    assert len(edge.playout.gaps) == 0


def test_audio_of_a_finished_or_ended_turn_is_late():
    edge = Edge()
    edge.say(T1, 100)
    edge.audio(T1, sound(100))
    edge.run(1)
    edge.audio(T1, sound(100))
    edge.run(1)
    assert len(edge.starts) == 1
    assert edge.playout.late_bytes == 1600
    assert edge.sent[T1] == sound(100)


# ── a new owner ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_turn_whose_owner_died_is_played_out_and_makes_way_for_the_next_owner():
    edge = Edge()
    edge.audio(T1, sound(1000))
    edge.run(0.2)
    edge.say((8, 1), 500)
    edge.run(5)
    assert edge.sent[T1] == sound(1000)
    assert edge.sent[(8, 1)] == sound(500)
    assert not edge.gaps
    assert edge.of(T1)[-1] == (1000, "cut")
    assert edge.of((8, 1))[-1] == (500, "finished")


def test_nothing_of_a_former_owner_is_played_once_the_next_one_spoke():
    edge = Edge()
    edge.audio(T1, sound(200))
    edge.say((8, 1), 500)
    edge.audio(T1, sound(200))
    edge.say(T3, 200)
    edge.run(5)
    assert edge.sent[T1] == sound(200)
    assert T3 not in edge.sent


def test_a_turn_that_had_ended_before_its_owner_died_is_finished():
    edge = Edge()
    edge.say(T1, 1000)
    edge.say((8, 1), 500)
    edge.run(5)
    assert edge.of(T1)[-1] == (1000, "finished")


# ── what is reported ───────────────────────────────────────────────────────────────────────────────────────


def test_what_was_heard_is_reported_every_quarter_of_a_second_while_a_turn_plays():
    edge = Edge()
    edge.say(T1, 3000)
    edge.say(T2, 3000)
    edge.run(10)
    times = [START, *(at for at, _ in edge.reports)]
    assert max(after - before for before, after in pairwise(times)) <= REPORT_SECONDS + 0.001
    assert len(edge.reports) <= 26
    for turn in (T1, T2):
        heard = [ms for ms, _ in edge.of(turn)]
        assert heard == sorted(heard)
        assert [state for _, state in edge.of(turn)] == ["playing"] * (len(heard) - 1) + ["finished"]


def test_a_turn_that_has_run_dry_reports_all_of_it_and_then_keeps_quiet_until_it_goes_on():
    edge = Edge()
    edge.audio(T1, sound(600))
    edge.run(5)
    assert edge.of(T1) == [(250, "playing"), (500, "playing"), (600, "playing")]
    edge.audio(T1, sound(600))
    edge.run(0.3)
    assert edge.of(T1)[3:] == [(850, "playing")]


def test_what_was_heard_is_right_after_an_underrun_and_at_a_cut_in_mid_chunk():
    edge = Edge()
    edge.audio(T1, sound(200))
    edge.run(1.0)
    edge.audio(T1, sound(1000))
    edge.run(0.333)
    edge.cut(T1)
    assert edge.of(T1)[-1] == (533, "cut")


def test_of_a_turn_behind_another_nothing_counts_as_heard_before_its_time():
    edge = Edge()
    edge.say(T1, 1000)
    edge.say(T2, 1000)
    edge.run(0.9)
    assert T2 in edge.sent
    edge.cut(T2)
    assert edge.of(T1)[-1] == (900, "cut")
    assert edge.of(T2) == [(0, "cut")]


# ── no busy loop ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("token", FORMATS)
@pytest.mark.parametrize("piece_ms", [7.3, 100, 411.9])
def test_a_driver_that_sleeps_until_each_deadline_wakes_about_as_often_as_there_are_chunks(token: str, piece_ms: float):
    form = media(token)
    edge = Edge(form)
    data = sound(20_000, form)
    size = form.nbytes(piece_ms)
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    for number, piece in enumerate(pieces):  # at 1.5 times real time, with uneven moments
        edge.playout.audio(T1, piece, edge.now)
        edge.poll()
        edge.run(piece_ms / 1500 * (0.5 + number % 3 / 2))
    edge.end(T1)
    edge.run(30)
    assert edge.sent[T1] == data
    assert edge.of(T1)[-1] == (20_000, "finished")
    assert edge.polls - len(pieces) <= 20 * 15


# ── any order of anything ──────────────────────────────────────────────────────────────────────────────────

MOMENTS = st.floats(0, 2.5, allow_nan=False)
LATE = st.floats(0, 0.2, allow_nan=False)
ONE_OWNER = st.one_of(
    st.tuples(st.just("audio"), st.integers(1, 6000)),
    st.tuples(st.just("end"), st.just(0)),
    st.tuples(st.just("cut"), st.just(0)),
    st.tuples(st.just("poll"), st.just(0)),
)


@settings(derandomize=True, deadline=None, max_examples=600)
@given(
    st.lists(st.tuples(MOMENTS, LATE, ONE_OWNER), max_size=25), st.sampled_from(FORMATS), st.sampled_from([0.0, 3.0])
)
def test_every_byte_that_was_not_cut_is_sent_once_and_in_order_and_every_turn_is_reported_over_once(
    steps: list[tuple[float, float, tuple[str, int]]], token: str, hold: float
):
    form = media(token)
    edge = Edge(form, hold=hold)
    made: list[bytearray] = [bytearray()]  # of the turns (7, 1), (7, 2) …
    cut_to: Turn = (0, 0)
    for wait, late, (what, amount) in [*steps, (0.0, 0.0, ("end", 0))]:
        edge.run(wait, late)
        turn = (7, len(made))
        if what == "audio":
            start = len(made[-1])
            made[-1] += bytes((start + i) * 31 % 251 for i in range(amount * form.sample_bytes))
            edge.audio(turn, bytes(made[-1][start:]))
        elif what == "poll":
            edge.poll()
        else:
            made.append(bytearray())
            if what == "end":
                edge.end(turn)
            else:
                edge.cut(turn)
                cut_to = turn
    edge.run(60)
    made.pop()
    assert edge.open is None
    assert not edge.playout.speaking
    assert edge.playout.late_bytes == 0
    order = [turn for _, turn, _ in edge.chunks]
    assert order == sorted(order)
    outcome = {report.turn: report.state for _, report in edge.reports if report.state != "playing"}
    assert list(outcome) == [(7, number) for number in range(1, len(made) + 1)]  # each once, in order
    for turn, data in zip(outcome, made, strict=True):
        if outcome[turn] == "finished":
            assert edge.sent[turn] == data
        else:
            assert turn <= cut_to
            assert data.startswith(edge.sent[turn])


ANYTHING = st.one_of(
    st.tuples(st.just("audio"), st.integers(0, 6000)),
    st.tuples(st.just("end"), st.just(0)),
    st.tuples(st.just("cut"), st.just(0)),
    st.tuples(st.just("release"), st.just(0)),
)
TURNS = st.tuples(st.integers(7, 9), st.integers(1, 3))


@settings(derandomize=True, deadline=None, max_examples=600)
@given(st.lists(st.tuples(MOMENTS, LATE, ANYTHING, TURNS), max_size=25))
def test_no_order_of_turns_breaks_the_rules_of_vaic_or_sends_a_cut_turn(
    steps: list[tuple[float, float, tuple[str, int], Turn]],
):
    edge = Edge(hold=2.0)
    cut: Turn = (0, 0)
    given_bytes = 0
    for wait, late, (what, amount), turn in steps:
        edge.run(wait, late)
        before = len(edge.chunks)
        if what == "audio":
            given_bytes += amount
            edge.audio(turn, bytes(amount))
        elif what == "end":
            edge.end(turn)
        elif what == "cut":
            cut = max(cut, turn)
            edge.cut(turn)
        else:
            edge.release()
        assert all(sent > cut for _, sent, _ in edge.chunks[before:])
    before = len(edge.chunks)
    edge.run(60)
    assert all(sent > cut for _, sent, _ in edge.chunks[before:])
    assert edge.open is None  # a dry stream is closed whatever else is missing
    assert sum(map(len, edge.sent.values())) + edge.playout.late_bytes <= given_bytes


def test_what_did_not_go_to_vaic_after_all_was_not_heard():
    playout = Playout(MULAW, prefix="1", lead_ms=300, chunk_ms=100)
    playout.audio(T1, bytes(MULAW.nbytes(1000)), START)
    chunks = [action for action in playout.poll(START) if isinstance(action, SendChunk)]
    assert len(chunks) > 1
    playout.unsent(len(chunks[-1].data))
    playout.cut(T1, START + 0.3)
    heard_ms = 100 * (len(chunks) - 1)
    assert playout.poll(START + 0.3) == [StopStream(), Played(T1, heard_ms, "cut")]


def test_of_several_turns_that_did_not_go_to_vaic_the_latest_were_not_heard():
    playout = Playout(MULAW, prefix="1", lead_ms=300, chunk_ms=100)
    playout.audio(T1, bytes(MULAW.nbytes(200)), START)
    playout.end(T1)
    playout.audio(T2, bytes(MULAW.nbytes(1000)), START)
    actions = [*playout.poll(START), *playout.poll(START + 0.05)]
    chunks = [action for action in actions if isinstance(action, SendChunk)]
    assert len(chunks) == 3
    playout.unsent(sum(len(chunk.data) for chunk in chunks[1:]))
    playout.cut(T2, START + 0.15)
    played = [action for action in playout.poll(START + 0.15) if isinstance(action, Played)]
    assert played == [Played(T1, 100, "cut"), Played(T2, 0, "cut")]
