"""bridge_worker.speech: turns, credit, the gate after a barge-in, and what the caller heard of each line."""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Callable
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge_edge.playout import Played, Playout, SendChunk, StartStream
from bridge_shared.frames import Kind
from bridge_shared.protocol.media import FORMATS, Aligner, Media, media
from bridge_worker.speech import (
    CREDIT_MS,
    FRESH_SECONDS,
    GATE_SECONDS,
    STILL_SECONDS,
    UNSPOKEN_SECONDS,
    WAITING_BYTES,
    GoesOn,
    LineHeard,
    Speech,
    Turn,
    TurnOver,
)

MULAW = media("raw/mulaw")
LINEAR = media("raw/lpcm16")
T1, T2, T3 = (5, 1), (5, 2), (5, 3)
NOW = 1000.0


def sound(ms: float, form: Media = MULAW) -> bytes:
    """Audio in which a lost, doubled or moved piece shows."""
    size = form.nbytes(ms)
    return b"".join(i.to_bytes(4, "little") for i in range(size // 4 + 1))[:size]


class Worker:
    """The shell around a speech: what it sent, in order."""

    def __init__(self, form: Media = MULAW) -> None:
        self.media = form
        self.speech = Speech(5, form)
        self.sent: dict[Turn, bytearray] = defaultdict(bytearray)
        self.order: list[tuple[str, Turn]] = []
        self.ended: set[Turn] = set()

    def flush(self) -> None:
        for kind, body, nbytes in self.speech.take():
            turn = tuple(body[0])
            assert kind is Kind.CUT or turn not in self.ended, "something was sent of a turn that had ended"
            if kind is Kind.DOWN:
                assert nbytes == len(body[1]) > 0
                assert nbytes % self.media.sample_bytes == 0
                self.sent[turn] += body[1]
                if self.order[-1:] == [("DOWN", turn)]:
                    continue
            else:
                assert nbytes == 0
                self.ended.add(turn)
            self.order.append((kind.name, turn))

    def audio(self, data: bytes, now: float = NOW) -> None:
        self.speech.audio(data, now)
        self.flush()

    def done(self) -> bool:
        known = self.speech.done(NOW)
        self.flush()
        return known

    def cut(self, now: float = NOW) -> None:
        self.speech.cut(now)
        self.flush()

    def played(self, turn: Turn, heard_ms: int, state: str = "playing") -> list[TurnOver]:
        over = self.speech.played(turn, heard_ms, state, NOW)
        self.flush()
        return over

    def sent_ms(self, turn: Turn) -> float:
        return self.media.ms(len(self.sent[turn]))


# ── another edge ───────────────────────────────────────────────────────────────────────────────────────────


def another_edge(worker: Worker, now: float = NOW) -> None:
    worker.speech.edge_changed(now)
    worker.flush()


@pytest.mark.parametrize("heard", [0, 250, 400, 1234])
def test_at_another_edge_a_turn_goes_on_where_the_last_report_left_it(heard: int):
    worker = Worker()
    worker.audio(sound(5000))
    worker.played(T1, heard)
    another_edge(worker)
    for more in range(0, 5000, 250):
        worker.played(T2, more)
    assert worker.sent[T2] == sound(5000)[MULAW.nbytes(heard) :]


@pytest.mark.parametrize(
    "heard, unheard", [(0, "abcd"), (299, "abcd"), (300, "cd"), (1299, "cd"), (1300, "d"), (1500, "d")]
)
def test_at_another_edge_it_is_known_of_which_lines_something_is_to_be_heard_yet(heard: int, unheard: str):
    worker = Worker()
    worker.speech.line("a")  # shares its audio with the next
    worker.speech.line("b")
    worker.audio(sound(300))
    worker.speech.line("c")
    worker.audio(sound(1000))
    worker.speech.line("d")
    if heard > 1300:
        worker.audio(sound(1000))
    worker.played(T1, heard)
    (turn,) = worker.speech.edge_changed(NOW)
    assert (turn.former, turn.turn) == (T1, T2)
    assert "".join(line.entry for line in turn.lines) == unheard
    begins = {"a": 0, "b": 0, "c": 300, "d": 1300}
    assert [line.heard_ms for line in turn.lines] == [max(0, heard - begins[entry]) for entry in unheard]


def test_of_a_turn_that_was_heard_as_far_as_it_goes_no_line_is_to_be_heard_at_another_edge():
    worker = Worker()
    worker.speech.line("a")
    worker.audio(sound(300))
    worker.played(T1, 300)
    assert worker.speech.edge_changed(NOW) == [GoesOn(T1, T2, ())]


def test_a_turn_that_goes_on_at_another_edge_is_reported_whole():
    worker = Worker()
    worker.speech.line("5-1")
    worker.audio(sound(1000))
    worker.speech.line("5-2")
    worker.audio(sound(1000))
    worker.done()
    worker.played(T1, 1500)
    another_edge(worker)
    assert worker.order[-1] == ("TURNEND", T2)
    (over,) = worker.played(T2, 500, "finished")
    assert over.lines == (LineHeard("5-1", 1000, False), LineHeard("5-2", 1000, False))
    assert over.announce
    assert not worker.speech.speaking


def test_a_turn_that_was_cut_after_it_went_on_counts_what_was_heard_at_both_edges():
    worker = Worker()
    worker.speech.line("5-1")
    worker.audio(sound(3000))
    worker.played(T1, 1000)
    another_edge(worker)
    worker.cut()
    (over,) = worker.played(T2, 500, "cut")
    assert over.lines == (LineHeard("5-1", 1500, True),)


def test_audio_that_comes_after_the_change_belongs_to_the_turn_that_goes_on():
    worker = Worker()
    worker.audio(sound(500))
    another_edge(worker)
    worker.audio(sound(300))
    worker.done()
    assert worker.sent[T2] == sound(500) + sound(300)
    assert worker.order[-1] == ("TURNEND", T2)


def test_a_turn_of_which_nothing_was_told_for_long_is_cut_at_another_edge():
    worker = Worker()
    worker.speech.line("5-1")
    worker.audio(sound(1000))
    worker.done()
    another_edge(worker, NOW + FRESH_SECONDS + 0.1)
    assert worker.order[-1] == ("CUT", T1)
    (over,) = worker.played(T1, 0, "cut")
    assert over.lines == (LineHeard("5-1", 0, True),)


def test_an_answer_that_had_just_begun_goes_on_at_another_edge_though_its_text_came_long_after_the_turn_before():
    worker = Worker()
    worker.audio(sound(200))
    worker.done()
    worker.played(T1, 200, "finished")
    worker.speech.begin()  # the text is first
    worker.speech.line("5-2")
    worker.audio(sound(500), NOW + 60)
    another_edge(worker, NOW + 60.2)
    assert worker.sent[T3] == sound(500)


def test_a_turn_of_which_only_the_text_has_come_is_not_cut_at_another_edge():
    worker = Worker()
    worker.speech.begin()
    another_edge(worker, NOW + 60)
    worker.audio(sound(300), NOW + 60.5)
    assert worker.sent[T2] == sound(300)


def test_a_turn_that_was_cut_stays_cut_at_another_edge():
    worker = Worker()
    worker.audio(sound(1000))
    worker.cut()
    another_edge(worker)
    assert worker.order[-2:] == [("CUT", T1), ("CUT", T1)]
    worker.played(T1, 0, "cut")
    assert not worker.speech.speaking


# ── credit ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("token", FORMATS)
@pytest.mark.parametrize("frame_ms", [20, 333, 5000])
def test_the_edge_is_given_at_most_two_seconds_more_than_was_heard(token: str, frame_ms: int):
    form = media(token)
    worker = Worker(form)
    data, size = sound(10_000, form), form.nbytes(frame_ms)
    for at in range(0, len(data), size):
        worker.audio(data[at : at + size])
    worker.done()
    for heard in range(0, 10_250, 250):
        assert worker.sent_ms(T1) <= heard + CREDIT_MS
        assert worker.sent_ms(T1) >= min(10_000, heard + CREDIT_MS - 400)
        worker.played(T1, heard + 250)
    assert worker.sent[T1] == data


def test_all_audio_arrives_in_order_and_the_end_behind_the_last_of_it():
    worker = Worker()
    worker.audio(sound(5000))
    worker.done()
    assert worker.order == [("DOWN", T1)]
    for heard in range(0, 5001, 250):
        worker.played(T1, heard)
    assert worker.sent[T1] == sound(5000)
    assert worker.order == [("DOWN", T1), ("TURNEND", T1)]


def test_a_turn_that_fits_ends_at_once():
    worker = Worker()
    worker.audio(sound(1000))
    worker.done()
    assert worker.order == [("DOWN", T1), ("TURNEND", T1)]


def test_a_later_turn_waits_until_all_of_the_earlier_one_was_sent():
    worker = Worker()
    for _ in range(2):
        worker.audio(sound(3000))
        worker.done()
    assert worker.order == [("DOWN", T1)]
    worker.played(T1, 1500)
    assert worker.order == [("DOWN", T1), ("TURNEND", T1), ("DOWN", T2)]
    worker.played(T1, 3000, "finished")
    worker.played(T2, 1500)
    assert worker.order[-1] == ("TURNEND", T2)
    assert worker.sent[T2] == sound(3000)


def test_a_report_that_says_less_than_an_earlier_one_takes_no_credit_away():
    worker = Worker()
    worker.audio(sound(10_000))
    worker.played(T1, 3000)
    worker.played(T1, 1000)
    worker.played(T1, 3500)
    assert worker.sent_ms(T1) == 5200


def test_an_edge_that_knows_less_than_the_one_before_takes_nothing_back():
    worker = Worker()
    worker.speech.line("a")
    worker.audio(sound(10_000))
    worker.played(T1, 3000)
    worker.cut()
    (over,) = worker.played(T1, 0, "cut")
    assert over.lines == (LineHeard("a", 3000, True),)


# ── turns ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_turns_are_numbered_from_one_within_the_epoch():
    worker = Worker()
    assert worker.speech.turn == (5, 0)
    for expected in (T1, T2, T3):
        worker.audio(sound(20))
        assert worker.speech.turn == expected
        assert worker.done()


def test_text_begins_the_turn_that_its_audio_belongs_to():
    worker = Worker()
    assert worker.speech.begin() == T1
    assert worker.speech.begin() == T1
    worker.audio(sound(20))
    assert list(worker.sent) == [T1]


def test_an_end_without_a_turn_is_told_at_once():
    worker = Worker()
    assert not worker.done()
    assert not worker.order


def test_the_end_of_a_turn_is_announced_only_if_the_agent_said_so():
    worker = Worker()
    worker.audio(sound(100))
    worker.done()
    (over,) = worker.played(T1, 100, "finished")
    assert over == TurnOver(T1, "finished", (), announce=True)
    worker.audio(sound(100))
    worker.cut()
    (over,) = worker.played(T2, 40, "cut")
    assert over == TurnOver(T2, "cut", (), announce=False)


def test_it_speaks_until_the_edge_has_reported_the_end():
    worker = Worker()
    assert not worker.speech.speaking
    worker.audio(sound(100))
    worker.done()
    assert not worker.played(T1, 100)
    assert worker.speech.speaking
    worker.played(T1, 100, "finished")
    assert not worker.speech.speaking
    assert worker.played(T1, 100, "finished") == []


def test_reports_on_turns_of_a_former_owner_are_ignored():
    worker = Worker()
    worker.audio(sound(100))
    assert worker.played((4, 9), 5000, "cut") == []
    assert worker.speech.speaking


def test_a_turn_without_audio_ends_too():
    worker = Worker()
    worker.speech.line("a")
    worker.done()
    assert worker.order == [("TURNEND", T1)]
    (over,) = worker.played(T1, 0, "finished")
    assert over.lines == (LineHeard("a", 0, False),)


# ── bytes that are no whole samples ────────────────────────────────────────────────────────────────────────


def test_half_a_sample_is_carried_over_to_the_next_frame():
    worker = Worker(LINEAR)
    data = sound(100, LINEAR)
    for at in range(0, len(data), 33):
        worker.audio(data[at : at + 33])
    worker.done()
    assert worker.sent[T1] == data


@pytest.mark.parametrize("end", ["done", "cut"])
def test_half_a_sample_is_not_carried_over_into_the_next_turn(end: str):
    worker = Worker(LINEAR)
    worker.audio(sound(100, LINEAR) + b"\x55")
    worker.done() if end == "done" else worker.cut()
    worker.audio(sound(100, LINEAR), NOW + 2)
    assert worker.sent[T2] == sound(100, LINEAR)


def test_half_a_sample_alone_is_no_turn_and_does_not_spoil_the_next():
    worker = Worker(LINEAR)
    worker.audio(b"\x55")
    assert not worker.done()
    worker.audio(sound(100, LINEAR))
    assert worker.sent[T1] == sound(100, LINEAR)


# ── too much ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("token", FORMATS)
def test_at_most_a_minute_or_a_mebibyte_waits_and_the_tail_is_counted(token: str):
    form = media(token)
    worker = Worker(form)
    bound = min(WAITING_BYTES, form.nbytes(60_000))
    frame = bytes(form.nbytes(1_111))
    frames = 80
    for _ in range(frames):
        worker.audio(frame)
    worker.done()
    given_ms = frames * form.ms(len(frame))
    kept_ms = given_ms - worker.speech.dropped_ms
    assert form.ms(bound) <= kept_ms <= form.ms(bound) + CREDIT_MS
    heard = 0
    while not worker.played(T1, heard, "finished" if heard >= kept_ms else "playing"):
        heard += 250
    assert worker.sent_ms(T1) == pytest.approx(kept_ms)
    assert worker.order[-1] == ("TURNEND", T1)


def test_of_a_frame_that_does_not_fit_the_beginning_is_kept():
    worker = Worker()
    worker.audio(sound(100_000))
    assert worker.speech.dropped_ms == 40_000
    worker.done()
    for heard in range(0, 60_001, 250):
        worker.played(T1, heard)
    assert worker.sent[T1] == sound(100_000)[: MULAW.nbytes(60_000)]


@pytest.mark.parametrize("how", ["heard", "cut", "ended by the edge"])
def test_what_no_longer_waits_makes_room(how: str):
    worker = Worker()
    worker.audio(sound(60_000))
    if how == "heard":
        for heard in range(0, 60_001, 250):
            worker.played(T1, heard)
    elif how == "cut":
        worker.cut()
    else:
        worker.played(T1, 100, "cut")
    worker.audio(sound(60_000), NOW + 2)
    assert worker.speech.dropped_ms == 0


# ── barge-in ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_cut_names_the_latest_turn_and_drops_all_that_waited():
    worker = Worker()
    for _ in range(3):
        worker.audio(sound(5000))
        worker.done()
    worker.cut()
    assert worker.order == [("DOWN", T1), ("CUT", T3)]
    before = dict(worker.sent)
    worker.played(T1, 900, "cut")
    worker.played(T2, 0, "cut")
    worker.played(T3, 0, "cut")
    assert worker.sent == before
    assert not worker.speech.speaking


def test_what_was_not_taken_yet_is_not_sent_after_a_cut():
    speech = Speech(5, MULAW)
    speech.audio(sound(1000), NOW)
    speech.cut(NOW)
    assert [kind for kind, _, _ in speech.take()] == [Kind.CUT]


def test_a_cut_is_harmless_when_nothing_was_said():
    worker = Worker()
    worker.cut()
    assert not worker.order
    worker.audio(sound(100), NOW + GATE_SECONDS)
    worker.done()
    worker.played(T1, 100, "finished")
    worker.cut()
    assert ("CUT", T1) not in worker.order


def test_after_a_cut_the_agents_audio_is_dropped_for_a_time():
    worker = Worker()
    worker.audio(sound(100))
    worker.cut()
    worker.audio(sound(100), NOW + 0.1)
    worker.audio(sound(100), NOW + GATE_SECONDS - 0.01)
    assert worker.speech.turn == T1
    worker.audio(sound(100), NOW + GATE_SECONDS)
    assert worker.speech.turn == T2
    assert worker.sent[T2] == sound(100)


@pytest.mark.parametrize("sign", ["begin", "sign_of_turn"])
def test_a_sign_of_a_new_turn_opens_the_gate(sign: str):
    worker = Worker()
    worker.audio(sound(100))
    worker.cut()
    getattr(worker.speech, sign)()
    worker.audio(sound(100), NOW + 0.1)
    assert worker.sent[T2] == sound(100)


def test_a_new_turn_is_sent_before_the_edge_has_answered_the_cut():
    worker = Worker()
    worker.audio(sound(5000))
    worker.cut()
    worker.speech.begin()
    worker.audio(sound(5000), NOW + 0.1)
    assert worker.order == [("DOWN", T1), ("CUT", T1), ("DOWN", T2)]
    assert [over.turn for over in worker.played(T1, 700, "cut")] == [T1]
    worker.played(T2, 1000)
    assert worker.sent_ms(T2) == 2800


def test_the_end_of_a_cut_turn_ends_nothing_else():
    worker = Worker()
    worker.audio(sound(5000))
    worker.cut()
    assert not worker.done()
    assert worker.order == [("DOWN", T1), ("CUT", T1)]


# ── lines ──────────────────────────────────────────────────────────────────────────────────────────────────


def spoken(worker: Worker, *lines: tuple[str, float]) -> None:
    for entry, ms in lines:
        worker.speech.line(entry)
        worker.audio(sound(ms))


def test_all_lines_of_a_finished_turn_were_heard():
    worker = Worker()
    spoken(worker, ("a", 800), ("b", 700))
    worker.done()
    (over,) = worker.played(T1, 1500, "finished")
    assert over.lines == (LineHeard("a", 800, False), LineHeard("b", 700, False))


@pytest.mark.parametrize(
    ("heard", "expected"),
    [
        (0, [("a", 0, True), ("b", 0, True), ("c", 0, True)]),
        (300, [("a", 300, True), ("b", 0, True), ("c", 0, True)]),
        (799, [("a", 799, False), ("b", 0, True), ("c", 0, True)]),
        (900, [("a", 800, False), ("b", 100, True), ("c", 0, True)]),
        (1600, [("a", 800, False), ("b", 700, False), ("c", 100, True)]),
        (1800, [("a", 800, False), ("b", 700, False), ("c", 300, False)]),
    ],
)
def test_a_cut_is_told_line_by_line(heard: int, expected: list[tuple[str, int, bool]]):
    worker = Worker()
    spoken(worker, ("a", 800), ("b", 700), ("c", 300))
    worker.cut()
    (over,) = worker.played(T1, heard, "cut")
    assert [(line.entry, line.heard_ms, line.interrupted) for line in over.lines] == expected


def test_a_line_whose_audio_had_not_come_when_the_turn_was_cut_is_interrupted():
    worker = Worker()
    spoken(worker, ("a", 800))
    worker.speech.line("b")
    worker.cut()
    (over,) = worker.played(T1, 800, "cut")
    assert over.lines == (LineHeard("a", 800, False), LineHeard("b", 0, True))


def test_lines_that_come_together_share_the_audio_behind_them():
    worker = Worker()
    worker.speech.line("a")
    spoken(worker, ("b", 1000))
    worker.cut()
    (over,) = worker.played(T1, 500, "cut")
    assert over.lines == (LineHeard("a", 0, False), LineHeard("b", 500, True))


def test_a_turn_that_was_heard_whole_before_its_cut_has_no_interrupted_line():
    worker = Worker()
    spoken(worker, ("a", 800))
    worker.speech.line("b")
    worker.done()
    worker.cut()
    (over,) = worker.played(T1, 800, "cut")
    assert over.lines == (LineHeard("a", 800, False), LineHeard("b", 0, False))


def test_an_earlier_turn_without_a_last_report_was_heard_if_a_later_one_plays():
    worker = Worker()
    spoken(worker, ("a", 500))
    worker.done()
    spoken(worker, ("b", 500))
    worker.done()
    (over,) = worker.played(T2, 100)
    assert over == TurnOver(T1, "finished", (LineHeard("a", 500, False),), announce=True)


def test_an_earlier_turn_without_a_last_report_that_was_cut_was_not_heard():
    worker = Worker()
    spoken(worker, ("a", 1000))
    worker.done()
    spoken(worker, ("b", 1000))
    worker.played(T1, 250)
    worker.cut()  # the caller comes back by an edge that knows only the last turn
    first, second = worker.played(T2, 0, "cut")
    assert first == TurnOver(T1, "cut", (LineHeard("a", 250, True),), announce=True)
    assert second == TurnOver(T2, "cut", (LineHeard("b", 0, True),), announce=False)


# ── a worker and an edge ───────────────────────────────────────────────────────────────────────────────────


class Both:
    """A speech and a playout with a way of 20 to 80 ms between them, in simulated time."""

    def __init__(self, form: Media) -> None:
        self.media = form
        self.speech = Speech(5, form)
        self.playout = Playout(form, prefix="1", lead_ms=300, chunk_ms=100, hold_until=NOW + 1.0)
        self.now = NOW
        self.down: dict[Turn, int] = defaultdict(int)
        self.played: dict[Turn, bytearray] = defaultdict(bytearray)
        self.over: list[TurnOver] = []
        self._open: Turn = (0, 0)
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self._arrives = {"down": NOW, "up": NOW}
        self._on_the_way: set[int] = set()

    def at(self, when: float, what: Callable[[], None]) -> int:
        number = next(self._numbers)
        heapq.heappush(self._due, (when, number, what))
        return number

    def run(self) -> None:
        """Until nothing is left to happen."""
        for _ in range(20_000):
            deadline = self.playout.deadline(self.now)
            if self._due and self._due[0][0] <= deadline:
                when, _, what = heapq.heappop(self._due)
                self.now = max(self.now, when)
                what()
            elif deadline < math.inf:
                self.now = max(self.now, deadline)
            else:
                return
            self._poll()
            self._send()
        raise AssertionError("it never comes to rest")

    def _post(self, direction: str, what: Callable[[], None]) -> None:
        jitter = next(self._numbers) * 37 % 61 / 1000
        self._arrives[direction] = max(self._arrives[direction], self.now + 0.02 + jitter)
        self._on_the_way.add(self.at(self._arrives[direction], what))

    def _send(self) -> None:
        for kind, body, _ in self.speech.take():
            turn = tuple(body[0])
            if kind is Kind.DOWN:
                self._post("down", lambda t=turn, data=body[1]: self.playout.audio(t, data, self.now))
                self.down[turn] += len(body[1])
                held = self.media.ms(self.down[turn] - len(self.played[turn]))
                assert held <= CREDIT_MS
            elif kind is Kind.TURNEND:
                self._post("down", lambda t=turn: self.playout.end(t))
            else:
                self._post("down", lambda t=turn: self.playout.cut(t, self.now))

    def _poll(self) -> None:
        for action in self.playout.poll(self.now):
            if isinstance(action, Played):
                self._post("up", lambda report=action: self._heard(report))
            elif isinstance(action, StartStream):
                self._open = action.turn
            elif isinstance(action, SendChunk):
                self.played[self._open] += action.data

    def _heard(self, report: Played) -> None:
        self.over += self.speech.played(report.turn, report.heard_ms, report.state, self.now)

    def another_edge(self) -> None:
        """The edge is gone with all that was on the way, and there is another one."""
        self._due = [item for item in self._due if item[1] not in self._on_the_way]
        heapq.heapify(self._due)
        self.playout = Playout(self.media, prefix="2", lead_ms=300, chunk_ms=100)
        self.speech.edge_changed(self.now)


@pytest.mark.parametrize("token", FORMATS)
def test_a_long_turn_made_in_no_time_is_heard_whole_and_without_a_gap(token: str):
    both = Both(media(token))
    data = sound(21_000, both.media)

    def speak() -> None:
        both.speech.line("a")
        for at in range(0, len(data), 4099):
            both.speech.audio(data[at : at + 4099], both.now)
        both.speech.done(both.now)

    both.at(NOW, speak)
    both.run()
    assert both.played[T1] == data
    assert len(both.playout.gaps) == 0
    assert both.over == [TurnOver(T1, "finished", (LineHeard("a", 21_000, False),), announce=True)]
    assert both.now <= NOW + 1.0 + 21.0 + 0.1


def test_a_turn_that_was_heard_and_brings_nothing_new_is_over_though_nobody_says_so():
    worker = Worker()
    worker.speech.line("a")
    worker.audio(sound(300))
    worker.played(T1, 200)
    assert not worker.speech.expire(NOW + 60)
    worker.played(T1, 300)
    assert not worker.speech.expire(NOW + STILL_SECONDS - 0.01)
    assert worker.speech.expire(NOW + STILL_SECONDS)
    worker.flush()
    assert worker.order[-1] == ("TURNEND", T1)
    assert worker.played(T1, 300, "finished") == [
        TurnOver(T1, "finished", (LineHeard("a", 300, False),), announce=False)
    ]


def test_a_turn_of_which_no_audio_has_come_is_waited_for_but_not_for_ever():
    worker = Worker()
    worker.speech.line("a")
    assert not worker.speech.expire(NOW)
    assert not worker.speech.expire(NOW + UNSPOKEN_SECONDS - 0.01)
    assert worker.speech.expire(NOW + UNSPOKEN_SECONDS)


def test_late_audio_of_a_turn_that_was_cut_stays_unheard_behind_its_agent_audio_done():
    worker = Worker()
    worker.audio(sound(300))
    worker.cut()
    assert not worker.done()
    worker.audio(sound(300), NOW + GATE_SECONDS - 0.01)
    assert T2 not in worker.sent
    worker.audio(sound(300), NOW + GATE_SECONDS)
    assert worker.sent[T2] == sound(300)


def test_the_agent_audio_done_of_a_turn_that_was_cut_is_that_of_the_next_if_it_comes_behind_audio():
    worker = Worker()
    worker.audio(sound(300))
    worker.cut()
    worker.speech.begin()
    worker.audio(sound(300))
    assert worker.done()
    assert worker.order[-1] == ("TURNEND", T2)


WAITS = st.one_of(st.just(0.0), st.floats(0, 3, allow_nan=False))
AGENT = st.one_of(
    st.tuples(st.just("audio"), st.integers(2, 60_000)),
    st.tuples(st.just("line"), st.just(0)),
    st.tuples(st.just("done"), st.just(0)),
    st.tuples(st.just("caller speaks"), st.just(0)),
    st.tuples(st.just("sign"), st.just(0)),
)


@settings(derandomize=True, deadline=None, max_examples=600)
@given(st.sampled_from(FORMATS), st.lists(st.tuples(WAITS, AGENT), max_size=20))
def test_whatever_agent_and_caller_do_every_turn_ends_once_and_nothing_is_stuck(
    token: str, steps: list[tuple[float, tuple[str, int]]]
):
    both = Both(media(token))
    speech = both.speech
    made: dict[Turn, bytearray] = defaultdict(bytearray)
    lines: dict[Turn, list[str]] = defaultdict(list)
    cut_to: Turn = (0, 0)
    gate = audio_at = 0.0
    owed: list[float] = []
    is_open = False
    align = Aligner(both.media)
    announcements = 0

    def do(what: str, amount: int) -> None:
        nonlocal announcements, cut_to, gate, audio_at, is_open
        owed[:] = [until for until in owed if until > both.now]
        if what == "audio":
            data = bytes(i * 7 % 251 for i in range(amount))
            speech.audio(data, both.now)
            if both.now < gate:
                return
            if not is_open and both.now >= audio_at + GATE_SECONDS:
                align.reset()
            if samples := align.feed(data):
                made[speech.turn] += samples
                is_open, audio_at = True, both.now
        elif what == "caller speaks":
            if is_open:
                owed.append(both.now + GATE_SECONDS)
            speech.cut(both.now)
            cut_to, gate, is_open = speech.turn, both.now + GATE_SECONDS, False
            align.reset()
        elif what == "done" and owed and not (is_open and made[speech.turn]):
            owed.pop(0)  # it is that of a turn that was cut
            assert not speech.done(both.now)
        else:
            gate = 0.0
            if not is_open and what != "done":
                align.reset()
            is_open = what == "line" or (is_open and what != "done")
            if what == "done":
                announcements += speech.done(both.now)
            elif what == "sign":
                speech.sign_of_turn()
            else:
                turn = speech.begin()
                lines[turn].append(f"{turn[1]}-{len(lines[turn])}")
                speech.line(lines[turn][-1])

    moment = NOW
    for wait, (what, amount) in [*steps, (0.01, ("done", 0))]:
        moment += wait
        both.at(moment, lambda w=what, a=amount: do(w, a))
    both.run()
    both.at(both.now + STILL_SECONDS, lambda: both.speech.expire(both.now) and None)
    both.run()

    assert not speech.speaking
    assert not both.playout.speaking
    assert speech.dropped_ms == 0
    assert [over.turn for over in both.over] == [(5, number) for number in range(1, speech.turn[1] + 1)]
    assert sum(over.announce for over in both.over) == announcements
    for over in both.over:
        whole = bytes(made[over.turn])
        assert [line.entry for line in over.lines] == lines[over.turn]
        if over.state == "finished":
            assert both.played[over.turn] == whole
            assert not any(line.interrupted for line in over.lines)
        else:
            assert over.turn <= cut_to
            assert whole.startswith(both.played[over.turn])
            heard = sum(line.heard_ms for line in over.lines)
            assert heard <= both.media.ms(len(both.played[over.turn])) + 0.5 * len(over.lines) + 1


@settings(derandomize=True, deadline=None, max_examples=600)
@given(
    st.sampled_from(FORMATS),
    st.lists(st.tuples(WAITS, AGENT | st.sampled_from([("another edge", 0), ("time", 0)])), max_size=20),
)
def test_however_often_the_edge_changes_and_the_agent_is_still_every_line_is_reported_and_nothing_is_stuck(
    token: str, steps: list[tuple[float, tuple[str, int]]]
):
    both = Both(media(token))
    speech = both.speech
    lines: list[str] = []
    announcements = 0

    def do(what: str, amount: int) -> None:
        nonlocal announcements
        if what == "audio":
            speech.audio(bytes(amount), both.now)
        elif what == "caller speaks":
            speech.cut(both.now)
        elif what == "done":
            announcements += speech.done(both.now)
        elif what == "sign":
            speech.sign_of_turn()
        elif what == "another edge":
            both.another_edge()
        elif what == "time":
            speech.expire(both.now)
        else:
            speech.begin()
            lines.append(str(len(lines)))
            speech.line(lines[-1])

    moment = NOW
    for wait, (what, amount) in [*steps, (0.01, ("done", 0))]:
        moment += wait
        both.at(moment, lambda w=what, a=amount: do(w, a))
    both.run()
    both.at(both.now + STILL_SECONDS, lambda: both.speech.expire(both.now) and None)
    both.run()

    assert not speech.speaking
    assert not both.playout.speaking
    told = [line.entry for over in both.over for line in over.lines]
    assert list(dict.fromkeys(told)) == lines
    assert len(told) == len(lines) or any(what == "time" for _, (what, _) in steps)
    assert sum(over.announce for over in both.over) == announcements
