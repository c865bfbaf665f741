"""The rules of a link, one by one: two real links and a wire in the test's hands. Time is a number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bridge_shared.frames import Frame, FrameError, Kind
from bridge_shared.link import Delivery, Limits, Link, LinkFull, PeerChanged, Reread, Side

E1, E2 = 1001, 1002
W1, W2 = 2001, 2002
DTMF = [[W1, 1], [{"name": "sendDtmf"}], False]
HANGUP = [[W1, 2], [{"name": "hangup"}], True]


class Wire:
    """An edge and a worker that know each other, and what passes between them."""

    def __init__(self, limits: Limits | None = None, *, knows: bool = True) -> None:
        limits = limits or Limits()
        self.now = 100.0
        self.edge = Link(Side.EDGE, "c", "edge-1", epoch=E1, now=self.now, limits=limits)
        self.worker = Link(
            Side.WORKER, "c", "worker-1", epoch=W1, now=self.now, peer_pod="edge-1", peer_epoch=E1, limits=limits
        )
        self.at_edge: list[object] = []
        self.at_worker: list[object] = []
        self.passed: list[Frame] = []
        if knows:
            self.worker.open(self.now)
            self.carry()
            self.at_edge.clear()
            self.passed.clear()

    def carry(self, lose: Callable[[Frame], bool] = lambda frame: False) -> None:
        """Take and give until neither has anything to say at this moment."""
        moved = True
        while moved:
            moved = False
            for one, other, heard in (
                (self.edge, self.worker, self.at_worker),
                (self.worker, self.edge, self.at_edge),
            ):
                for pod, frame in one.take():
                    moved = True
                    self.passed.append(frame)
                    if pod == other.pod and not lose(frame):
                        heard.extend(other.receive(one.pod, frame, self.now))

    def wait(self, seconds: float, lose: Callable[[Frame], bool] = lambda frame: False) -> None:
        """Let time pass, from deadline to deadline."""
        until = self.now + seconds
        while True:
            moment = min(self.edge.deadline(), self.worker.deadline())
            if moment > until:
                break
            self.now = max(self.now, moment)
            self.at_edge += self.edge.tick(self.now)
            self.at_worker += self.worker.tick(self.now)
            self.carry(lose)
        self.now = until

    def kinds(self) -> list[int]:
        return [frame.kind for frame in self.passed]


def bodies(events: list[object]) -> list[list[Any]]:
    return [event.body for event in events if isinstance(event, Delivery)]


def everything(frame: Frame) -> bool:
    return True


def from_edge(frame: Frame) -> bool:
    return frame.kind in {Kind.UP, Kind.USTREAM, Kind.PLAYED, Kind.END, Kind.SKIP}


# Opening a session.


def test_the_side_that_knows_both_epochs_says_hello_and_the_other_adopts_it():
    wire = Wire(knows=False)
    wire.worker.open(wire.now, "claimed")
    wire.carry()
    assert wire.at_edge == [PeerChanged("worker-1", "", W1, True, ())]
    assert wire.at_worker == []
    assert wire.edge.session == wire.worker.session == (E1, W1)
    assert wire.edge.connected and wire.worker.connected
    assert [f.body for f in wire.passed if f.kind == Kind.HELLO] == [["worker-1", "claimed"], ["edge-1", "answer"]]


def test_hello_is_said_every_250_ms_until_a_frame_of_the_session_comes():
    wire = Wire(knows=False)
    wire.worker.open(wire.now)
    wire.carry(lose=everything)
    wire.wait(0.99, lose=everything)
    assert wire.kinds() == [Kind.HELLO] * 4
    wire.wait(0.02)
    assert wire.edge.connected and wire.worker.connected
    wire.passed.clear()
    wire.wait(0.9)
    assert Kind.HELLO not in wire.kinds()


def test_frames_directly_behind_a_hello_need_no_second_round():
    wire = Wire(knows=False)
    wire.worker.open(wire.now)
    wire.worker.send(Kind.ACCEPT, ["raw/mulaw"], wire.now)
    for _, frame in wire.worker.take():
        wire.at_edge += wire.edge.receive("worker-1", frame, wire.now)
    assert bodies(wire.at_edge) == [["raw/mulaw"]]


def test_frames_sent_before_there_is_a_peer_wait_and_keep_their_order():
    wire = Wire(knows=False)
    wire.edge.send(Kind.USTREAM, [True, None], wire.now)
    wire.edge.send_audio(Kind.UP, [b"a"], 1, wire.now)
    wire.edge.send(Kind.USTREAM, [False, None], wire.now)
    assert wire.edge.take() == []
    wire.worker.open(wire.now)
    wire.carry()
    assert bodies(wire.at_worker) == [[True, None], [b"a"], [False, None]]


def test_an_edge_that_attaches_to_a_running_call_opens_the_session_itself():
    wire = Wire()
    wire.edge = Link(Side.EDGE, "c", "edge-2", epoch=E2, now=wire.now, peer_pod="worker-1", peer_epoch=W1)
    wire.edge.open(wire.now, "resumed")
    wire.carry()
    assert wire.at_worker == [PeerChanged("edge-2", "edge-1", E2, False, ())]
    assert wire.edge.session == wire.worker.session == (E2, W1)


def test_both_numberings_begin_again_in_a_new_session():
    wire = Wire()
    for _ in range(3):
        wire.edge.send_audio(Kind.UP, ["old"], 1, wire.now)
        wire.worker.send_audio(Kind.DOWN, [[W1, 1], "old"], 1, wire.now)
    wire.carry()
    wire.edge = Link(Side.EDGE, "c", "edge-2", epoch=E2, now=wire.now, peer_pod="worker-1", peer_epoch=W1)
    wire.edge.open(wire.now)
    wire.edge.send_audio(Kind.UP, ["new"], 1, wire.now)
    wire.worker.send_audio(Kind.DOWN, [[W1, 1], "lost with the former edge"], 1, wire.now)
    wire.worker.take()
    wire.at_edge.clear()
    wire.at_worker.clear()
    wire.carry()
    assert wire.at_worker[1:] == [Delivery((E2, W1), 1, Kind.UP, ["new"])]
    assert wire.at_edge[-1:] == [Delivery((E2, W1), 4, Kind.DOWN, [[W1, 1], "lost with the former edge"])]


def test_hello_in_an_open_session_is_answered_with_an_ack():
    wire = Wire()
    wire.edge.open(wire.now)
    wire.carry()
    assert wire.kinds() == [Kind.HELLO, Kind.ACK]


def test_two_sides_that_each_know_only_the_others_former_epoch_find_each_other():
    """Both pods took the call anew at the same moment; each HELLO names a past epoch of its reader."""
    wire = Wire(knows=False)
    wire.edge = Link(Side.EDGE, "c", "edge-1", epoch=E2, now=wire.now, peer_pod="worker-1", peer_epoch=W1)
    wire.worker = Link(Side.WORKER, "c", "worker-1", epoch=W2, now=wire.now, peer_pod="edge-1", peer_epoch=E1)
    wire.edge.open(wire.now)
    wire.worker.open(wire.now)
    wire.carry()
    assert wire.edge.session == wire.worker.session == (E2, W2)
    assert wire.edge.connected and wire.worker.connected


def test_redis_may_name_the_new_peer_before_its_hello_does():
    wire = Wire()
    event = wire.edge.reread(peer_pod="worker-2", peer_epoch=W2, now=wire.now)
    assert event == [PeerChanged("worker-2", "worker-1", W2, False, ())]
    assert not wire.edge.connected
    assert [(pod, f.kind, f.we) for pod, f in wire.edge.take()] == [("worker-2", Kind.HELLO, W2)]


def test_a_frame_without_a_session_is_not_delivered_to_a_side_without_one():
    wire = Wire(knows=False)
    for epochs in ((0, 0), (E1, 0)):
        assert wire.edge.receive("worker-1", Frame(1, "c", *epochs, 1, 0, 0, Kind.CLOSE, ["x"]), wire.now) == []


def test_an_older_answer_of_redis_is_not_believed():
    wire = Wire()
    wire.edge.reread(peer_pod="worker-2", peer_epoch=W2, now=wire.now)
    assert wire.edge.reread(peer_pod="worker-1", peer_epoch=W1, now=wire.now) == []
    assert (wire.edge.peer_pod, wire.edge.peer_epoch) == ("worker-2", W2)


# Order, loss, repetition.


def test_a_frame_that_comes_twice_is_delivered_once():
    wire = Wire()
    wire.edge.send(Kind.LOST, [], wire.now)
    ((_, frame),) = wire.edge.take()
    assert len(wire.worker.receive("edge-1", frame, wire.now)) == 1
    assert wire.worker.receive("edge-1", frame, wire.now) == []


def test_frames_that_overtake_each_other_are_delivered_in_order():
    wire = Wire()
    for n in range(4):
        wire.edge.send(Kind.PLAYED, [[W1, n], 0, "playing"], wire.now)
    frames = [frame for _, frame in wire.edge.take()]
    for n in (2, 3, 1, 0):
        wire.at_worker += wire.worker.receive("edge-1", frames[n], wire.now)
    assert [body[0][1] for body in bodies(wire.at_worker)] == [0, 1, 2, 3]


def test_a_hole_is_shown_at_once_and_filled_at_once():
    wire = Wire()
    for n in range(5):
        wire.edge.send_audio(Kind.UP, [n], 1, wire.now)
    wire.carry(lose=lambda frame: frame.kind == Kind.UP and frame.seq in (2, 3) and not wire.edge.resent)
    assert bodies(wire.at_worker) == [[0], [1], [2], [3], [4]]
    assert wire.edge.resent == 2


def test_the_same_hole_is_not_filled_twice_within_50_ms():
    wire = Wire()
    for n in range(3):
        wire.edge.send_audio(Kind.UP, [n], 1, wire.now)
    wire.edge.take()
    hole = Frame(1, "c", E1, W1, 0, 0, 0, Kind.ACK, [3])
    for _ in range(4):
        wire.edge.receive("worker-1", hole, wire.now)
    assert len(wire.edge.take()) == wire.edge.resent == 2
    wire.edge.receive("worker-1", hole, wire.now + 0.05)
    assert len(wire.edge.take()) == 2


def test_a_lost_frame_goes_again_after_half_a_second_and_then_ever_later():
    wire = Wire()
    wire.edge.send(Kind.END, ["x", None], wire.now)
    wire.carry()
    wire.wait(0.2)
    wire.passed.clear()
    start = wire.now
    times: list[float] = []

    def lose(frame: Frame) -> bool:
        if frame.kind == Kind.PLAYED:
            times.append(round(wire.now - start, 3))
        return frame.kind == Kind.PLAYED

    wire.edge.send(Kind.PLAYED, [[W1, 1], 0, "playing"], wire.now)
    wire.carry(lose)
    # Only the timer: the worker stays silent, so nothing but its own clock tells the edge.
    while wire.now < start + 9:
        wire.now = wire.edge.deadline()
        wire.edge.tick(wire.now)
        for _, frame in wire.edge.take():
            lose(frame)
    assert times[:6] == [0.0, 0.5, 1.5, 3.5, 5.5, 7.5]


def test_progress_resets_the_patience_of_the_sender():
    wire = Wire()
    wire.edge.send(Kind.LOST, [], wire.now)
    wire.carry(lose=from_edge)
    for _ in range(3):
        wire.now = wire.edge.deadline()
        wire.edge.tick(wire.now)
        wire.edge.take()
    wire.edge.send(Kind.BACK, [], wire.now)
    wire.edge.receive("worker-1", Frame(1, "c", E1, W1, 0, 1, 0, Kind.ACK, []), wire.now)
    wire.edge.take()
    wire.edge.tick(wire.edge.deadline())  # may come too early to do anything
    assert not wire.edge.take()
    assert wire.edge.deadline() == pytest.approx(wire.now + 0.5)


def test_more_than_256_frames_ahead_of_a_gap_are_not_held_and_come_again():
    wire = Wire()
    for n in range(400):
        wire.edge.send(Kind.PLAYED, [[W1, n], 0, "playing"], wire.now)
    wire.carry(lose=lambda frame: frame.seq == 1 and not wire.edge.resent)
    assert wire.worker.held_dropped == 400 - 256
    wire.wait(1.0)
    assert [body[0][1] for body in bodies(wire.at_worker)] == list(range(400))


def test_nothing_goes_again_before_the_peer_has_shown_that_it_is_there():
    wire = Wire(knows=False)
    wire.worker.open(wire.now)
    wire.worker.send(Kind.ACCEPT, ["raw/mulaw"], wire.now)
    wire.carry(lose=everything)
    wire.wait(1.2, lose=everything)
    assert wire.kinds().count(Kind.ACCEPT) == 1
    wire.wait(0.6)
    assert bodies(wire.at_edge) == [["raw/mulaw"]]


def test_a_hello_in_an_open_session_makes_the_other_side_send_what_is_missing():
    """The reader of an inbox that was emptied says so; it need not wait for a timer that has grown to 2 s."""
    wire = Wire()
    wire.edge.send(Kind.END, [None, None], wire.now)
    wire.carry(lose=from_edge)
    wire.now += 0.1
    wire.worker.open(wire.now, "inbox was gone")
    wire.carry()
    assert bodies(wire.at_worker) == [[None, None]]


# Acknowledging and forgetting.


def test_silence_is_broken_by_one_bare_ack_within_50_ms_of_control():
    wire = Wire()
    wire.edge.send(Kind.LOST, [], wire.now)
    wire.edge.send(Kind.BACK, [], wire.now)
    wire.carry()
    assert wire.worker.take() == []
    assert wire.worker.deadline() == pytest.approx(wire.now + 0.05)
    wire.wait(0.05)
    assert [(f.kind, f.rx, f.done) for f in wire.passed[2:]] == [(Kind.ACK, 2, 0)]


def test_audio_alone_is_acknowledged_within_250_ms():
    wire = Wire()
    for n in range(50):
        wire.edge.send_audio(Kind.UP, [n], 1, wire.now)
        wire.carry()
        wire.wait(0.02)
    assert wire.kinds().count(Kind.ACK) == pytest.approx(4, abs=1)
    assert wire.edge.resent == 0


def test_every_frame_carries_what_was_received_and_done():
    wire = Wire()
    wire.edge.send(Kind.LOST, [], wire.now)
    wire.carry()
    (delivery,) = wire.at_worker
    assert isinstance(delivery, Delivery)
    wire.worker.done(delivery, wire.now)
    wire.worker.send(Kind.CUT, [[W1, 1]], wire.now)
    ((_, frame),) = wire.worker.take()
    assert (frame.rx, frame.done) == (1, 1)
    wire.now += 0.1
    wire.worker.tick(wire.now)
    assert not wire.worker.take()  # no bare ACK is owed any more


def test_done_is_the_number_up_to_which_all_are_done():
    wire = Wire()
    for _ in range(3):
        wire.edge.send(Kind.LOST, [], wire.now)
    wire.carry()
    one, two, three = wire.at_worker
    dones = []
    for delivery in (two, three, two, one):
        assert isinstance(delivery, Delivery)
        wire.worker.done(delivery, wire.now)
        wire.worker.send(Kind.CUT, [[W1, 1]], wire.now)
        dones.append(wire.worker.take()[0][1].done)
    assert dones == [0, 0, 0, 3]


def test_audio_counts_as_done_when_it_is_delivered():
    wire = Wire()
    wire.edge.send_audio(Kind.UP, [b"x"], 1, wire.now)
    wire.carry()
    wire.wait(0.25)
    assert (wire.passed[-1].rx, wire.passed[-1].done) == (1, 1)
    assert wire.edge.settled


def test_control_is_kept_until_it_is_done():
    wire = Wire()
    wire.edge.send(Kind.END, [None, None], wire.now)
    wire.carry()
    wire.wait(0.1)
    assert not wire.edge.settled
    (delivery,) = wire.at_worker
    assert isinstance(delivery, Delivery)
    wire.worker.done(delivery, wire.now)
    wire.wait(0.1)
    assert wire.edge.settled


def test_a_command_that_must_not_be_repeated_is_acknowledged_before_the_edge_can_act_on_it():
    wire = Wire()
    wire.worker.send(Kind.ACTIVITY, DTMF, wire.now)
    for _, frame in wire.worker.take():
        assert len(wire.edge.receive("worker-1", frame, wire.now)) == 1
    assert [(f.kind, f.rx, f.done) for _, f in wire.edge.take()] == [(Kind.ACK, 1, 0)]


def test_an_acknowledgement_of_frames_that_were_never_sent_is_ignored():
    wire = Wire()
    wire.edge.send(Kind.LOST, [], wire.now)
    wire.edge.take()
    wire.edge.receive("worker-1", Frame(1, "c", E1, W1, 0, 9, 9, Kind.ACK, []), wire.now)
    wire.edge.receive("worker-1", Frame(1, "c", E1, W1, 0, 0, 1, Kind.ACK, [77]), wire.now)
    assert not wire.edge.settled


def test_a_kind_that_is_not_known_is_delivered_as_nothing_and_counted():
    wire = Wire()
    wire.edge.send(99, ["from a newer version"], wire.now)
    wire.edge.send(Kind.LOST, [], wire.now)
    wire.carry()
    assert [event.kind for event in wire.at_worker if isinstance(event, Delivery)] == [Kind.LOST]
    assert wire.worker.skipped == 1
    assert isinstance(wire.at_worker[0], Delivery)
    wire.worker.done(wire.at_worker[0], wire.now)
    wire.wait(0.1)
    assert wire.edge.settled


# Audio that is given up.


def test_audio_that_no_longer_fits_is_given_up_counted_and_skipped():
    wire = Wire(Limits(audio_bytes=300))
    for n in range(10):
        wire.worker.send_audio(Kind.DOWN, [[W1, 1], n], 100, wire.now)
    wire.worker.send(Kind.TURNEND, [[W1, 1]], wire.now)
    wire.carry(lose=lambda frame: frame.kind == Kind.DOWN and wire.worker.resent == 0)
    assert wire.worker.retained_bytes == 0
    assert bodies(wire.at_edge) == [[[W1, 1], 7], [[W1, 1], 8], [[W1, 1], 9], [[W1, 1]]]
    assert (wire.worker.dropped, wire.worker.dropped_bytes, wire.edge.missed) == (7, 700, 7)


def test_agent_audio_is_kept_until_it_has_arrived():
    wire = Wire()
    wire.worker.send_audio(Kind.DOWN, [[W1, 1], b"x"], 100, wire.now)
    wire.carry(lose=lambda frame: frame.kind == Kind.DOWN)
    wire.wait(0.49)
    assert wire.worker.retained_bytes == 100
    wire.wait(0.4)
    assert wire.worker.retained_bytes == 0
    assert wire.worker.dropped == 0


def test_caller_audio_is_kept_for_a_second_whether_it_arrived_or_not():
    wire = Wire()
    for _ in range(100):
        wire.edge.send_audio(Kind.UP, [b"x" * 160], 160, wire.now)
        wire.carry()
        wire.wait(0.02)
    assert wire.edge.retained_bytes == pytest.approx(50 * 160, abs=160)
    assert wire.edge.dropped == 0
    wire.wait(3.0)
    assert wire.edge.retained_bytes == 0


def test_caller_audio_older_than_a_second_is_skipped_and_what_follows_is_not_held_up():
    wire = Wire()
    wire.edge.send_audio(Kind.UP, [b"old"], 3, wire.now)
    wire.carry(lose=from_edge)
    wire.wait(1.1, lose=everything)
    wire.edge.send(Kind.END, [None, None], wire.now)
    wire.carry(lose=from_edge)
    wire.wait(2.5)
    assert bodies(wire.at_worker) == [[None, None]]
    assert (wire.edge.dropped, wire.worker.missed) == (1, 1)


def test_audio_that_overtook_a_skip_is_delivered_all_the_same():
    wire = Wire()
    held = Frame(1, "c", E1, W1, 3, 0, 0, Kind.UP, [b"three"])
    skip = Frame(1, "c", E1, W1, 1, 0, 0, Kind.SKIP, [4])
    after = Frame(1, "c", E1, W1, 5, 0, 0, Kind.UP, [b"five"])
    for frame in (after, held, skip):
        wire.at_worker += wire.worker.receive("edge-1", frame, wire.now)
    assert bodies(wire.at_worker) == [[b"three"], [b"five"]]
    assert wire.worker.missed == 3


def test_a_skip_whose_beginning_is_known_passes_the_rest():
    """The sender had not heard how far we were."""
    wire = Wire()
    for n in (1, 2):
        wire.worker.receive("edge-1", Frame(1, "c", E1, W1, n, 0, 0, Kind.UP, [n]), wire.now)
    skip = Frame(1, "c", E1, W1, 1, 0, 0, Kind.SKIP, [4])
    assert wire.worker.receive("edge-1", skip, wire.now) == []
    (delivery,) = wire.worker.receive("edge-1", Frame(1, "c", E1, W1, 5, 0, 0, Kind.UP, [5]), wire.now)
    assert isinstance(delivery, Delivery) and delivery.body == [5]


def test_control_beyond_its_bound_is_refused_aloud():
    wire = Wire(Limits(control_frames=3))
    for _ in range(3):
        wire.edge.send(Kind.LOST, [], wire.now)
    with pytest.raises(LinkFull, match="3 control frames wait"):
        wire.edge.send(Kind.BACK, [], wire.now)
    wire.carry()
    assert [event.kind for event in wire.at_worker if isinstance(event, Delivery)] == [Kind.LOST] * 3


def test_a_body_that_cannot_travel_is_refused_and_takes_no_number():
    wire = Wire()
    with pytest.raises(FrameError):
        wire.worker.send(Kind.ACTIVITY, [[W1, 1], [object()], True], wire.now)
    wire.worker.send(Kind.CLOSE, ["over"], wire.now)
    wire.carry()
    assert bodies(wire.at_edge) == [["over"]]


# Epochs.


def claim(wire: Wire, pod: str = "worker-2", epoch: int = W2) -> list[object]:
    """A new owner says HELLO to the edge; the shell of the edge has not answered PeerChanged yet."""
    wire.worker = Link(Side.WORKER, "c", pod, epoch=epoch, now=wire.now, peer_pod="edge-1", peer_epoch=E1)
    wire.worker.open(wire.now, "orphan")
    wire.at_worker.clear()
    events: list[object] = []
    for _, frame in wire.worker.take():
        events += wire.edge.receive(pod, frame, wire.now)
    return events


def test_a_frame_of_a_former_owner_is_dropped_and_it_is_told_so_once_a_second():
    wire = Wire()
    former = wire.worker
    claim(wire)
    wire.carry()
    for _ in range(3):
        former.send_audio(Kind.DOWN, [[W1, 1], b"stale"], 5, wire.now)
    stale = [frame for _, frame in former.take()]
    for frame in stale:
        assert wire.edge.receive("worker-1", frame, wire.now) == []
    assert wire.edge.fenced == 3
    ((pod, gone),) = wire.edge.take()
    assert (pod, gone.kind, gone.body) == ("worker-1", Kind.GONE, [E1, W2])
    assert former.receive("edge-1", gone, wire.now) == [Reread("gone")]
    wire.edge.receive("worker-1", stale[0], wire.now + 0.9)
    assert wire.edge.take() == []
    wire.edge.receive("worker-1", stale[0], wire.now + 1.0)
    assert [f.kind for _, f in wire.edge.take()] == [Kind.GONE]


def test_a_hello_of_a_former_owner_does_not_bring_it_back():
    wire = Wire()
    hello = Frame(1, "c", E1, W1, 0, 0, 0, Kind.HELLO, ["worker-1", ""])
    claim(wire)
    assert wire.edge.receive("worker-1", hello, wire.now) == []
    assert wire.edge.peer_epoch == W2


def test_a_frame_of_a_newer_owner_makes_us_ask_redis_and_is_not_delivered():
    wire = Wire()
    newer = Frame(1, "c", E1, W2, 1, 0, 0, Kind.CLOSE, ["x"])
    assert wire.edge.receive("worker-2", newer, wire.now) == [Reread("newer peer")]
    assert wire.edge.peer_epoch == W1


def test_a_frame_for_a_newer_self_makes_us_ask_redis():
    wire = Wire()
    hello = Frame(1, "c", E2, W1, 0, 0, 0, Kind.HELLO, ["worker-1", ""])
    assert wire.edge.receive("worker-1", hello, wire.now) == [Reread("newer self")]


def test_a_frame_of_the_peer_for_our_former_epoch_is_dropped_without_ado():
    wire = Wire()
    late = Frame(1, "c", E1 - 1, W1, 9, 0, 0, Kind.CLOSE, ["x"])
    assert wire.edge.receive("worker-1", late, wire.now) == []
    assert wire.edge.take() == []
    assert wire.edge.fenced == 1


def test_redis_is_not_asked_for_each_frame_that_makes_us_wonder():
    wire = Wire()
    asked: list[float] = []
    start = wire.now
    for n in range(200):
        now = start + n * 0.01
        newer = Frame(1, "c", E1, W2, n, 0, 0, Kind.SPEECH, ["started", ""])
        if wire.edge.receive("worker-2", newer, now):
            asked.append(round(now - start, 2))
            wire.edge.reread(peer_pod="worker-1", peer_epoch=W1, now=now)  # a replica that lags behind
    assert asked == pytest.approx([0.0, 0.05, 0.15, 0.35, 0.75, 1.25, 1.75], abs=0.02)


def test_a_wish_to_ask_redis_that_came_too_early_is_not_forgotten():
    wire = Wire()
    gone = Frame(1, "c", E1, W2, 0, 0, 0, Kind.GONE, [E1, W2])
    assert wire.edge.receive("edge-2", gone, wire.now) == [Reread("gone")]
    assert wire.edge.receive("edge-2", gone, wire.now + 0.01) == []
    assert wire.edge.tick(wire.edge.deadline()) == [Reread("gone")]


def test_a_refused_write_makes_us_ask_redis():
    wire = Wire()
    assert wire.worker.unreachable(wire.now) == [Reread("unreachable")]


def test_a_command_is_for_the_pod_and_no_business_of_the_link():
    wire = Wire()
    command = Frame(1, "c", 0, 0, 0, 0, 0, Kind.COMMAND, ["id", "hangup", [], "reply:id"])
    assert wire.worker.receive("edge-1", command, wire.now) == []
    assert wire.worker.take() == []


# Silence.


def test_a_call_in_which_nobody_speaks_costs_next_to_no_reads():
    wire = Wire()
    wire.wait(29.9)
    assert wire.at_edge == wire.at_worker == []
    assert len(wire.passed) <= 30 * 2 * 2


def test_redis_is_asked_every_half_minute_lest_two_fenced_sides_keep_each_other_company():
    wire = Wire()
    wire.wait(61.0)
    assert wire.at_edge == wire.at_worker == [Reread("routine")] * 2


def test_whoever_takes_a_side_over_dismisses_its_predecessor():
    wire = Wire()
    link = Link(Side.EDGE, "c", "edge-2", epoch=E2, now=wire.now, peer_pod="worker-1", peer_epoch=W1)
    link.dismiss("edge-1")
    ((pod, gone),) = link.take()
    assert (pod, gone.body) == ("edge-1", [E2, W1])
    assert wire.edge.receive("edge-2", gone, wire.now) == [Reread("gone")]


def test_a_long_gap_is_skipped_in_one_frame():
    wire = Wire()
    for n in range(1000):
        wire.edge.send_audio(Kind.UP, [n], 1, wire.now)
    wire.carry(lose=from_edge)
    wire.wait(1.1, lose=everything)
    wire.edge.send(Kind.LOST, [], wire.now)
    wire.passed.clear()
    wire.wait(2.0)
    assert [(f.seq, f.body) for f in wire.passed if f.kind == Kind.SKIP] == [(1, [1000])]
    assert bodies(wire.at_worker) == [[]]


def test_a_side_that_has_met_nobody_asks_redis_too():
    """It may have been replaced meanwhile, or the HELLO to it was lost together with the pod that said it."""
    wire = Wire(knows=False)
    wire.now = wire.edge.deadline()
    assert wire.edge.tick(wire.now) == [Reread("silence")]
    assert wire.edge.reread(peer_pod="", peer_epoch=0, now=wire.now) == []
    assert wire.edge.take() == []
    assert wire.edge.deadline() == wire.now + 2.0


def test_a_peer_that_does_not_answer_makes_us_ask_redis_after_2_s_and_say_hello():
    wire = Wire()
    wire.wait(1.9, lose=everything)
    assert wire.at_edge == []
    wire.wait(0.2, lose=everything)
    assert wire.at_edge == [Reread("silence")]
    assert wire.kinds().count(Kind.HELLO) == 2 * 5
    wire.wait(4.0, lose=everything)
    assert wire.at_edge == [Reread("silence")] * 3


# A new owner, a new edge.


def test_commands_the_edge_may_have_carried_out_go_again_only_if_that_does_no_harm():
    wire = Wire()
    unheard = [[W1, 3], [{"name": "sendDtmf"}], False]
    wire.worker.send(Kind.ACTIVITY, DTMF, wire.now)
    wire.worker.send(Kind.ACTIVITY, HANGUP, wire.now)
    wire.carry()
    wire.worker.send(Kind.ACTIVITY, unheard, wire.now)
    wire.carry(lose=everything)
    wire.edge = Link(Side.EDGE, "c", "edge-2", epoch=E2, now=wire.now, peer_pod="worker-1", peer_epoch=W1)
    wire.edge.open(wire.now)
    wire.at_edge.clear()
    wire.carry()
    assert wire.at_worker == [PeerChanged("edge-2", "edge-1", E2, False, ((Kind.ACTIVITY, DTMF),))]
    assert bodies(wire.at_edge) == [HANGUP, unheard]


def test_what_the_caller_sent_goes_to_the_new_owner_unless_it_was_done():
    wire = Wire()
    for n in range(3):
        wire.edge.send(Kind.ACTIVITY, [[E1, n], {"type": "event", "name": "DTMF"}], wire.now)
    wire.carry()
    assert isinstance(wire.at_worker[0], Delivery)
    wire.worker.done(wire.at_worker[0], wire.now)
    wire.wait(0.05)
    (changed,) = claim(wire)
    assert changed == PeerChanged("worker-2", "worker-1", W2, False, ())
    wire.carry()
    assert [body[0] for body in bodies(wire.at_worker)] == [[E1, 1], [E1, 2]]
    assert [event.seq for event in wire.at_worker if isinstance(event, Delivery)] == [1, 2]


def test_done_of_a_past_session_confirms_nothing_in_this_one():
    wire = Wire()
    wire.worker.send(Kind.CUT, [[W1, 1]], wire.now)
    wire.carry()
    (former,) = wire.at_edge
    assert isinstance(former, Delivery)
    claim(wire)
    wire.worker.send(Kind.CUT, [[W2, 1]], wire.now)
    wire.carry()
    wire.edge.done(former, wire.now)
    wire.wait(0.2)
    assert not wire.worker.settled


def speak(wire: Wire, seconds: float) -> None:
    for _ in range(round(seconds * 10)):
        wire.edge.send_audio(Kind.UP, [round(wire.now, 1)], 1600, wire.now)
        wire.carry()
        wire.wait(0.1)


def test_the_open_utterance_is_replayed_whole_behind_replay_and_before_all_else():
    wire = Wire()
    wire.edge.send(Kind.USTREAM, [True, None], wire.now)
    speak(wire, 2.0)
    claim(wire)
    wire.edge.replay(wire.now - 0.55, wire.now)
    wire.edge.send_audio(Kind.UP, ["live"], 1600, wire.now)
    wire.carry()
    assert bodies(wire.at_worker) == [[550], [True, None], [101.5], [101.6], [101.7], [101.8], [101.9], ["live"]]
    first = wire.at_worker[0]
    assert isinstance(first, Delivery) and (first.kind, first.seq) == (Kind.REPLAY, 1)


@pytest.mark.parametrize(("ask", "says"), [(True, "ask"), (False, 0)])
def test_without_an_utterance_to_replay_the_new_owner_hears_nothing_old(ask: bool, says: object):
    wire = Wire()
    speak(wire, 2.0)
    claim(wire)
    wire.edge.replay(None, wire.now, ask=ask)
    wire.carry()
    assert bodies(wire.at_worker) == [[says]]


def test_a_shell_that_says_nothing_about_replay_replays_nothing():
    wire = Wire()
    speak(wire, 0.5)
    wire.wait(0.25)
    wire.edge.send_audio(Kind.UP, ["unheard"], 1600, wire.now)
    wire.carry(lose=from_edge)
    claim(wire)
    wire.edge.send(Kind.LOST, [], wire.now)
    wire.carry()
    assert bodies(wire.at_worker) == [[]]
    assert wire.edge.dropped == 1
    assert wire.edge.retained_bytes == 0


def test_what_was_replayed_may_be_replayed_again_when_the_new_owner_dies_too():
    wire = Wire()
    speak(wire, 0.5)
    claim(wire)
    wire.edge.replay(100.0, wire.now)
    wire.carry()
    claim(wire, "worker-3", W2 + 1)
    wire.edge.replay(100.0, wire.now)
    wire.carry()
    assert bodies(wire.at_worker) == [[500], [100.0], [100.1], [100.2], [100.3], [100.4]]


def attach(wire: Wire) -> list[object]:
    wire.edge = Link(Side.EDGE, "c", "edge-2", epoch=E2, now=wire.now, peer_pod="worker-1", peer_epoch=W1)
    wire.edge.open(wire.now)
    wire.at_edge.clear()
    events: list[object] = []
    for _, frame in wire.edge.take():
        events += wire.worker.receive("edge-2", frame, wire.now)
    return events


def play(wire: Wire) -> None:
    """One frame that arrives and two that do not, with the end of the turn behind them."""
    wire.worker.send_audio(Kind.DOWN, [[W1, 1], 1], 100, wire.now)
    wire.carry()
    wire.wait(0.3)
    for n in (2, 3):
        wire.worker.send_audio(Kind.DOWN, [[W1, 1], n], 100, wire.now)
    wire.worker.send(Kind.TURNEND, [[W1, 1]], wire.now)
    wire.carry(lose=everything)


def test_agent_audio_that_did_not_arrive_goes_to_the_new_edge():
    wire = Wire()
    play(wire)
    attach(wire)
    wire.carry()
    assert bodies(wire.at_edge) == [[[W1, 1], 2], [[W1, 1], 3], [[W1, 1]]]


def test_agent_audio_of_a_turn_that_is_not_continued_does_not_go_to_the_new_edge():
    wire = Wire()
    play(wire)
    attach(wire)
    wire.worker.drop_audio()
    wire.worker.send(Kind.CUT, [[W1, 1]], wire.now)
    wire.carry()
    assert [event.kind for event in wire.at_edge if isinstance(event, Delivery)] == [Kind.TURNEND, Kind.CUT]
    assert (wire.worker.retained_bytes, wire.worker.dropped) == (0, 2)
