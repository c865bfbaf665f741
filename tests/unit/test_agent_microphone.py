"""bridge_worker.microphone: the agent hears the caller, and silence for just the time that no audio covers."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge_shared.protocol.media import FORMATS, media
from bridge_worker.microphone import (
    AHEAD_SECONDS,
    INTAKE,
    LONGEST_SILENCE_SECONDS,
    OPEN_PATIENCE_SECONDS,
    WAITING_SECONDS,
    Microphone,
)

NOW = 1000.0
TICK = 0.1
CHUNK = 0.16  # what VAIC sends in steady state
SPEECH = b"\x5a"


class Agent:
    """What the agent was given, and when. `silence` is asked for at every tick, as for all calls at once."""

    def __init__(self, token: str = "raw/mulaw", *, stream_open: bool = False) -> None:
        self.media = media(token)
        self.microphone = Microphone(self.media, NOW)
        self.microphone.stream(stream_open)
        self.now = NOW
        self.caller = self.silence = self.dropped = 0.0
        self.frames: list[tuple[float, float]] = []  # moment, seconds
        self.surplus = 0.0  # by how much it is ahead of real time, at most
        self.gap = 0.0  # the longest time that nothing covered
        self.untaken = self.most_untaken = 0.0  # what it has and did not take in yet
        self._took_at = NOW
        self._last = NOW

    def audio(self, seconds: float) -> None:
        nbytes = self.media.nbytes(seconds * 1000)
        self.dropped += self.microphone.audio(SPEECH * nbytes) / 1000
        self.tick()

    def tick(self) -> None:
        for data in self.microphone.due(self.now):
            assert len(data) % self.media.sample_bytes == 0
            if data.startswith(SPEECH):
                self.caller += self._given(len(data))
            else:
                assert data == self.media.silence(self.media.ms(len(data)) + 0.001)
                self.silence += self._given(len(data))
        self.gap = max(self.gap, self.now - self._last)

    def run(self, seconds: float, tick: float = TICK) -> None:
        until = self.now + seconds
        while self.now < until - 1e-9:
            self.now += tick
            self.tick()

    def _given(self, nbytes: int) -> float:
        seconds = self.media.ms(nbytes) / 1000
        # audio that is ahead of real time covers the time that follows
        self._last = max(self._last, self.now - seconds) + seconds
        self.frames.append((self.now, seconds))
        self.surplus = max(self.surplus, self.heard - (self.now - NOW))
        self.untaken = max(0.0, self.untaken - INTAKE * (self.now - self._took_at)) + seconds
        self._took_at = self.now
        self.most_untaken = max(self.most_untaken, self.untaken)
        return seconds

    @property
    def heard(self) -> float:
        return sum(seconds for _, seconds in self.frames)


@pytest.mark.parametrize("token", FORMATS)
@pytest.mark.parametrize("tick", [0.1, 0.0333, 0.00007])
def test_a_closed_stream_is_silence_in_real_time(token: str, tick: float):
    agent = Agent(token)
    agent.run(2.0 if tick > 0.001 else 0.05, tick)
    elapsed = agent.now - NOW
    assert elapsed - 1.1 / agent.media.rate <= agent.heard <= elapsed + 1e-9
    assert agent.surplus <= 1e-9
    assert agent.gap <= tick + 0.001


def test_silence_is_not_given_twice_for_the_same_time():
    agent = Agent()
    agent.now += 0.1
    agent.tick()
    agent.tick()
    assert agent.silence == 0.1


@pytest.mark.parametrize("chunk", [0.02, CHUNK, 0.5])
def test_audio_that_comes_in_time_gets_no_silence_beside_it(chunk: float):
    agent = Agent(stream_open=True)
    for _ in range(50):
        agent.run(chunk, chunk / 2)
        agent.audio(chunk)
    assert agent.silence == 0


def test_an_open_stream_that_is_merely_late_gets_no_silence():
    agent = Agent()
    agent.microphone.stream(True)
    for late in (0.5, 0.9, 0.2, 0.8):
        agent.run(late)
        agent.audio(late)
    assert agent.silence == 0
    assert agent.caller == pytest.approx(2.4)


def test_time_whose_audio_was_lost_is_not_owed_once_there_is_audio_again():
    agent = Agent(stream_open=True)
    for _ in range(5):
        agent.run(0.8)
        agent.audio(CHUNK)  # the rest never comes
    assert agent.silence == 0


def test_what_vaic_kept_until_its_start_was_answered_does_not_come_on_top_of_silence():
    agent = Agent()
    agent.run(1.0)
    agent.microphone.stream(True)
    agent.run(0.9)
    agent.audio(0.96)
    agent.run(0.9)
    assert agent.silence == pytest.approx(1.0)


def test_an_open_stream_that_brings_nothing_is_covered_after_a_second():
    agent = Agent(stream_open=True)
    agent.run(OPEN_PATIENCE_SECONDS - 0.01, 0.099)
    assert agent.silence == 0
    agent.run(9.0)
    assert agent.gap <= 1.1 + 0.001
    assert agent.heard >= 8.0


def test_when_the_stream_closes_silence_covers_what_is_missing_at_once():
    agent = Agent(stream_open=True)
    agent.audio(CHUNK)
    agent.run(0.6)
    assert agent.silence == 0
    agent.microphone.stream(False)
    agent.tick()
    assert agent.silence == pytest.approx(0.6 - CHUNK, abs=0.17)
    assert agent.heard == pytest.approx(0.6, abs=0.17)


def test_audio_that_came_early_is_waited_for_before_there_is_silence():
    agent = Agent()
    agent.audio(0.96)
    agent.microphone.stream(False)
    agent.run(0.9)
    assert agent.silence == 0
    agent.run(1.0)
    assert agent.silence == pytest.approx(1.9 - 0.96, abs=0.001)


def test_audio_without_a_start_opens_the_stream():
    agent = Agent()
    assert not agent.microphone.is_open
    agent.audio(CHUNK)
    assert agent.microphone.is_open
    agent.microphone.stream(False)
    assert not agent.microphone.is_open


def test_a_stall_of_ours_is_made_up_for_by_a_second_of_silence_at_most():
    agent = Agent()
    agent.now += 30.0
    agent.tick()
    assert agent.silence == LONGEST_SILENCE_SECONDS
    agent.run(1.0)
    assert agent.silence == pytest.approx(LONGEST_SILENCE_SECONDS + 1.0, abs=0.001)


def test_of_audio_that_was_held_up_for_long_the_newest_part_follows_as_fast_as_the_agent_takes_it_in():
    agent = Agent(stream_open=True)
    agent.audio(CHUNK)
    agent.now += 20.0
    for _ in range(125):
        agent.audio(CHUNK)
    at_once = agent.caller
    assert AHEAD_SECONDS <= at_once <= AHEAD_SECONDS + 2 * CHUNK
    assert agent.dropped == pytest.approx(20.0 - at_once - WAITING_SECONDS, abs=3 * CHUNK)
    agent.run(4.0)
    assert agent.caller == pytest.approx(at_once + WAITING_SECONDS, abs=3 * CHUNK)


def test_a_caller_who_goes_on_talking_behind_held_up_audio_is_soon_heard_without_delay():
    agent = Agent(stream_open=True)
    for _ in range(25):
        agent.audio(CHUNK)
    for _ in range(100):
        agent.run(CHUNK, CHUNK / 2)
        agent.audio(CHUNK)
    assert agent.microphone.due(agent.now) == []
    before = agent.caller
    agent.audio(CHUNK)
    assert agent.caller == pytest.approx(before + CHUNK)


@pytest.mark.parametrize("late", [1.2, 1.5, 5.0])
def test_held_up_audio_that_comes_behind_silence_is_not_a_burst_together_with_it(late: float):
    agent = Agent(stream_open=True)
    agent.audio(CHUNK)
    agent.run(late)
    assert agent.silence > 0
    for _ in range(int(late / CHUNK)):
        agent.audio(CHUNK)
    for _ in range(50):
        agent.run(CHUNK, CHUNK / 2)
        agent.audio(CHUNK)
    assert agent.most_untaken <= AHEAD_SECONDS + CHUNK


def test_one_message_of_minutes_is_cut_to_its_newest_part():
    agent = Agent(stream_open=True)
    agent.audio(130.0)
    assert agent.dropped == pytest.approx(128.0)


def test_what_was_said_while_there_was_no_agent_goes_to_the_next_one():
    microphone = Microphone(media("raw/mulaw"), NOW)
    assert [microphone.audio(bytes([n]) * 8000) for n in range(4)] == [0, 0, 1000, 1000]
    microphone.connected(NOW + 4)
    assert [data[0] for data in microphone.due(NOW + 4)] == [2]
    assert [data[0] for data in microphone.due(NOW + 5)] == [3]


def test_a_new_connection_knows_whether_the_stream_is_open():
    for stream_open, expected in [(True, 0.0), (False, 0.5)]:
        agent = Agent(stream_open=stream_open)
        agent.run(0.5)
        assert agent.silence == pytest.approx(expected)


SPELLS = st.lists(
    st.tuples(
        st.booleans(),  # the stream is open
        st.floats(0, 6, allow_nan=False),  # for this long
        st.lists(st.floats(0, 0.9, allow_nan=False), min_size=1, max_size=8),  # how late its chunks are, in turn
    ),
    max_size=12,
)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(SPELLS, st.sampled_from(FORMATS), st.sampled_from([0.05, 0.1, 0.15]))
def test_the_time_line_is_covered_and_never_by_much_more_than_real_time(
    spells: list[tuple[bool, float, list[float]]], token: str, tick: float
):
    agent = Agent(token)
    events: list[tuple[float, int, float]] = []  # moment, what, seconds
    moment, arrives = NOW, NOW
    for is_open, seconds, lates in spells:
        events.append((moment, 1 if is_open else 2, 0.0))
        if is_open:
            # a stream's own order is kept by TCP: a late chunk holds up those behind it, and the stop
            for number in range(int(seconds / CHUNK)):
                arrives = max(arrives, moment + (number + 1) * CHUNK + lates[number % len(lates)])
                events.append((arrives, 3, CHUNK))
        moment = max(moment + seconds, arrives)
    events += [(NOW + number * tick, 4, 0.0) for number in range(1, int((moment + 3 - NOW) / tick))]
    for agent.now, what, seconds in sorted(events, key=lambda event: event[0]):
        if what == 3:
            agent.audio(seconds)
        elif what == 4:
            agent.tick()
        else:
            agent.microphone.stream(what == 1)
    elapsed = agent.now - NOW
    assert agent.heard <= 1.25 * elapsed + 1.1
    assert agent.surplus <= 1.1
    assert agent.most_untaken <= AHEAD_SECONDS + CHUNK
    assert agent.gap <= 1.0 + tick + 0.001


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.lists(st.floats(0, 0.95, allow_nan=False), min_size=1, max_size=40))
def test_lateness_below_a_second_never_brings_silence_into_an_open_stream(lates: list[float]):
    agent = Agent(stream_open=True)
    arrivals: list[float] = []
    for number, late in enumerate(lates):
        arrivals.append(max([*arrivals[-1:], NOW + (number + 1) * 0.04 + late]))
    for arrival in arrivals:
        while agent.now + TICK < arrival:
            agent.now += TICK
            agent.tick()
        agent.now = max(agent.now, arrival)
        agent.audio(0.04)
        agent.tick()
    assert agent.silence == 0
    assert agent.surplus <= 0.95 + 0.04
