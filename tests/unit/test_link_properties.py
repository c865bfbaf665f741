"""A link through any network and any sequence of deaths.

Hypothesis plays both shells, the network and fate: it loses, repeats, delays and reorders frames, lets pods die or
wake up fenced, and lets new ones take the call. What must hold is checked at each delivery, and again when the
network is whole and everybody has had the time to settle.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from bridge_shared.frames import AUDIO, Frame, Kind, pack, repeatable, unpack
from bridge_shared.link import Delivery, Limits, Link, LinkEvent, LinkFull, PeerChanged, Reread, Side

LIMITS = Limits(audio_bytes=600, control_frames=30, held_frames=8)
TURN = [1, 1]


@dataclass
class Pod:
    """A pod, its link, and what its shell remembers for the checks."""

    name: str
    link: Link
    undone: list[Delivery] = field(default_factory=list)
    last: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)  # session: seq and identity delivered
    sent: list[tuple[int, list[Any]]] = field(default_factory=list)  # accepted control
    confirmed: set[int] = field(default_factory=set)  # identities of control known to be received
    confirmed_to: dict[tuple[int, int], int] = field(default_factory=dict)  # session: highest rx seen
    unknown: set[int] = field(default_factory=set)
    numbered: dict[tuple[int, int], dict[int, Frame]] = field(default_factory=dict)  # what went out, per session
    opened: dict[tuple[int, int], tuple[float, float]] = field(default_factory=dict)  # session: when, replay since

    @property
    def epoch(self) -> int:
        return self.link.epoch


@dataclass(eq=False)
class Flying:
    sender: str
    to: str
    data: bytes


def identity(kind: int, body: list[Any]) -> int:
    """The test's own number in a body; ascending in the order in which it was sent."""
    number = body[0] if kind == Kind.UP else body[1]
    assert isinstance(number, int)
    return number


class Network(RuleBasedStateMachine):
    """Redis is the two dictionaries that attach and claim would keep; an inbox is whatever flies to a name."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.flying: list[Flying] = []
        self.pods: dict[str, Pod] = {}  # alive
        self.everyone: dict[str, Pod] = {}
        self.owner, self.we = "", 0
        self.attached, self.ee = "", 0
        self.count = 0
        self.at: dict[int, float] = {}  # identity of audio: when it was sent
        self.times: dict[int, int] = {}  # identity: deliveries anywhere
        self.effects: set[int] = set()
        self.replay: tuple[str, float] = ("none", 0.0)
        self.limits = LIMITS

    # The two shells.

    @property
    def edge(self) -> Pod | None:
        return self.pods.get(self.attached)

    @property
    def worker(self) -> Pod | None:
        return self.pods.get(self.owner)

    def start(self, side: Side) -> None:
        """Attach or claim: the script raises the epoch and tells us the other side, and whom we replace."""
        former = self.attached if side is Side.EDGE else self.owner
        if side is Side.EDGE:
            self.ee += 1
            self.attached = f"edge-{self.ee}"
            link = Link(
                side,
                "c",
                self.attached,
                epoch=self.ee,
                now=self.now,
                peer_pod=self.owner,
                peer_epoch=self.we,
                limits=self.limits,
            )
        else:
            self.we += 1
            self.owner = f"worker-{self.we}"
            link = Link(
                side,
                "c",
                self.owner,
                epoch=self.we,
                now=self.now,
                peer_pod=self.attached,
                peer_epoch=self.ee,
                limits=self.limits,
            )
        pod = self.pods[link.pod] = self.everyone[link.pod] = Pod(link.pod, link)
        if link.peer_epoch:
            link.open(self.now, "test")
        if former:
            link.dismiss(former)
        self.post(pod)

    def post(self, pod: Pod) -> None:
        frames = pod.link.take()
        assert pod.link.take() == []
        for to, frame in frames:
            if frame.seq:
                assert (frame.ee, frame.we) == pod.link.session
                known = pod.numbered.setdefault(pod.link.session, {}).setdefault(frame.seq, frame)
                # A number means one thing for ever; only audio may turn into a SKIP.
                assert (known.kind, known.body) == (frame.kind, frame.body) or (
                    known.kind in AUDIO | {Kind.SKIP} and frame.kind == Kind.SKIP
                )
            self.flying.append(Flying(pod.name, to, pack([frame])))

    def receive(self, flying: Flying) -> None:
        pod = self.pods.get(flying.to)
        if pod is None:
            return
        (frame,) = unpack(flying.data)
        events = pod.link.receive(flying.sender, frame, self.now)
        session = pod.link.session
        if (frame.ee, frame.we) == session:
            known = pod.confirmed_to.get(session, 0)
            for seq in range(known + 1, frame.rx + 1):
                theirs = pod.numbered[session].get(seq)
                if theirs and theirs.kind not in AUDIO | {Kind.SKIP, Kind.REPLAY}:
                    pod.confirmed.add(identity(theirs.kind, theirs.body))
            pod.confirmed_to[session] = max(known, frame.rx)
        if any(isinstance(event, Delivery) for event in events):
            sender = self.everyone[flying.sender]
            peer_epoch = frame.we if pod.link.side is Side.EDGE else frame.ee
            assert peer_epoch == pod.link.peer_epoch == sender.epoch, "a frame of another epoch was delivered"
        self.hear(pod, events)

    def hear(self, pod: Pod, events: list[LinkEvent]) -> None:
        for event in events:
            if isinstance(event, Delivery):
                self.delivered(pod, event)
            elif isinstance(event, PeerChanged):
                self.changed(pod, event)
            else:
                assert isinstance(event, Reread)
                self.reread(pod)
                if pod.name not in self.pods:
                    return
        self.post(pod)

    def reread(self, pod: Pod) -> None:
        mine, peer, epoch = (
            (self.ee, self.owner, self.we) if pod.link.side is Side.EDGE else (self.we, self.attached, self.ee)
        )
        if pod.epoch != mine:
            del self.pods[pod.name]  # fenced: closes silently
        elif epoch:
            self.hear(pod, pod.link.reread(peer_pod=peer, peer_epoch=epoch, now=self.now))

    def changed(self, pod: Pod, event: PeerChanged) -> None:
        assert event.epoch == pod.link.peer_epoch
        pod.undone.clear()
        for kind, body in event.unknown:
            assert pod.link.side is Side.WORKER and not repeatable(kind, body)
            assert identity(kind, body) in pod.confirmed
            pod.unknown.add(identity(kind, body))
        if pod.link.side is Side.EDGE:
            how, ago = self.replay
            since = self.now - ago if how == "since" else inf
            if not event.first:
                pod.opened[pod.link.session] = (self.now, since)
            if how != "silent":
                pod.link.replay(since if how == "since" else None, self.now, ask=how == "ask")
        elif self.replay[0] == "none":
            pod.link.drop_audio()

    def delivered(self, pod: Pod, delivery: Delivery) -> None:
        """Every promise about one session is checked here."""
        assert delivery.session == pod.link.session
        sender = self.everyone[self.sender_of(pod)]
        numbered = sender.numbered[delivery.session]
        frame = numbered[delivery.seq]
        assert (frame.kind, frame.body) == (delivery.kind, delivery.body)
        last_seq, last_number = pod.last.get(delivery.session, (0, 0))
        assert delivery.seq > last_seq, "out of order, or twice"
        for seq in range(last_seq + 1, delivery.seq):
            assert numbered[seq].kind in AUDIO | {Kind.SKIP}, "control was passed over"
        if delivery.kind == Kind.REPLAY:
            assert delivery.seq == 1
            pod.last[delivery.session] = (1, 0)
            pod.undone.append(delivery)
            return
        number = identity(delivery.kind, delivery.body)
        assert number > last_number, "order of sending is not order of delivery"
        pod.last[delivery.session] = (delivery.seq, number)
        self.times[number] = self.times.get(number, 0) + 1
        if delivery.kind in AUDIO:
            if delivery.kind == Kind.UP and delivery.session in sender.opened:
                opened, since = sender.opened[delivery.session]
                assert self.at[number] >= min(opened, since), "caller audio that nobody asked to replay"
            return
        pod.undone.append(delivery)
        if not repeatable(delivery.kind, delivery.body) and self.times[number] > 1:
            assert number not in sender.confirmed, "a command known to be received went out again"

    def done(self, pod: Pod, delivery: Delivery) -> None:
        """What the frame asked for has happened; if the pod dies before, it has not."""
        pod.link.done(delivery, self.now)
        if delivery.kind != Kind.REPLAY:
            self.effects.add(identity(delivery.kind, delivery.body))

    def sender_of(self, pod: Pod) -> str:
        side = "worker" if pod.link.side is Side.EDGE else "edge"
        return f"{side}-{pod.link.peer_epoch}"

    # Rules: what the shells do.

    @initialize(first=st.sampled_from(["edge", "worker first heard", "early frames"]))
    def begin(self, first: str) -> None:
        self.start(Side.EDGE)
        if first == "early frames":
            self.says(self.edge, True)
            self.talks(self.edge, 2)
        self.start(Side.WORKER)
        if first == "worker first heard":
            self.deliver_all()

    def says(self, pod: Pod | None, again: bool) -> None:
        if pod is None:
            return
        self.count += 1
        body = [TURN, self.count, again] if pod.link.side is Side.WORKER else [TURN, self.count]
        try:
            pod.link.send(Kind.ACTIVITY, body, self.now)
        except LinkFull:
            return
        pod.sent.append((Kind.ACTIVITY, body))
        self.post(pod)

    def talks(self, pod: Pod | None, frames: int) -> None:
        if pod is None:
            return
        for _ in range(frames):
            self.count += 1
            self.at[self.count] = self.now
            if pod.link.side is Side.EDGE:
                pod.link.send_audio(Kind.UP, [self.count], 100, self.now)
            else:
                pod.link.send_audio(Kind.DOWN, [TURN, self.count], 100, self.now)
        self.post(pod)

    def anyone(self, who: int) -> Pod | None:
        """Any pod that runs, fenced ones that do not know it yet included."""
        alive = list(self.pods.values())
        return alive[who % len(alive)] if alive else None

    @rule(who=st.integers(0, 3), again=st.booleans())
    def control(self, who: int, again: bool) -> None:
        self.says(self.anyone(who), again)

    @rule(who=st.integers(0, 3), frames=st.integers(1, 12))
    def audio(self, who: int, frames: int) -> None:
        self.talks(self.anyone(who), frames)

    @rule(who=st.integers(0, 3), which=st.integers(0, 50))
    def finish(self, who: int, which: int) -> None:
        pod = self.anyone(who)
        if pod is not None and pod.undone:
            self.done(pod, pod.undone.pop(which % len(pod.undone)))
            self.post(pod)

    @rule(policy=st.tuples(st.sampled_from(["none", "ask", "since", "silent"]), st.floats(0, 1)))
    def decide(self, policy: tuple[str, float]) -> None:
        self.replay = policy

    # Rules: what the network does.

    @precondition(lambda self: self.flying)
    @rule(which=st.integers(0, 200), repeat=st.booleans())
    def deliver(self, which: int, repeat: bool) -> None:
        which %= len(self.flying)
        self.receive(self.flying[which] if repeat else self.flying.pop(which))

    @rule()
    def deliver_all(self) -> None:
        while self.flying:
            self.receive(self.flying.pop(0))

    @precondition(lambda self: self.flying)
    @rule(which=st.integers(0, 200), many=st.integers(1, 20))
    def lose(self, which: int, many: int) -> None:
        first = which % len(self.flying)
        del self.flying[first : first + many]

    @rule(seconds=st.sampled_from([0.01, 0.05, 0.3, 1.0, 2.5]))
    def wait(self, seconds: float) -> None:
        """Time passes and nothing arrives."""
        until = self.now + seconds
        while (moment := min((p.link.deadline() for p in self.pods.values()), default=inf)) <= until:
            self.tick(max(self.now, moment))
        self.now = until

    def tick(self, moment: float) -> None:
        self.now = moment
        for pod in list(self.pods.values()):
            if pod.link.deadline() <= moment:
                self.hear(pod, pod.link.tick(moment))
                assert pod.name not in self.pods or pod.link.deadline() > moment, "tick() does not do what is due"

    # Rules: who dies.

    @rule(side=st.sampled_from(Side), how=st.sampled_from(["dies", "is replaced", "is replaced asleep", "", "", ""]))
    def fate(self, side: Side, how: str) -> None:
        """A pod dies; a new one takes the call at once, later, or while the former one goes on until it learns."""
        former = self.edge if side is Side.EDGE else self.worker
        if former is not None and how in {"dies", "is replaced"}:
            del self.pods[former.name]
        if how.startswith("is replaced") or (former is None and how != "dies"):
            self.start(side)

    # What holds always, and at the end.

    @invariant()
    def memory_is_bounded(self) -> None:
        for pod in self.everyone.values():
            assert pod.link.retained_bytes <= self.limits.audio_bytes

    def teardown(self) -> None:
        """The network is whole, both sides live, every effect happens: all must come to rest."""
        if not self.everyone:
            return
        for side in Side:
            if (self.edge if side is Side.EDGE else self.worker) is None:
                self.start(side)
        until = self.now + 40.0
        while self.now < until:
            for _ in range(1000):
                self.deliver_all()
                for pod in self.pods.values():
                    for delivery in pod.undone:
                        self.done(pod, delivery)
                    pod.undone.clear()
                    self.post(pod)
                if not self.flying:
                    break
            else:
                raise AssertionError("the two sides answer each other for ever")
            self.tick(min(p.link.deadline() for p in self.pods.values()))
        everyone = [pod.link for pod in self.everyone.values()]
        assert sum(link.missed for link in everyone) <= sum(link.dropped for link in everyone), "a gap nobody made"
        assert self.edge is not None and self.worker is not None
        assert set(self.pods) == {self.attached, self.owner}, "a fenced pod has not learned it"
        assert (self.edge.link.peer_pod, self.worker.link.peer_pod) == (self.owner, self.attached)
        for pod in self.pods.values():
            assert pod.link.session == (self.ee, self.we)
            assert pod.link.connected and pod.link.settled
            assert pod.link.retained_bytes == 0
            for kind, body in pod.sent:
                number = identity(kind, body)
                assert self.times.get(number, 0) >= 1, "control was lost"
                assert number in self.effects | pod.unknown, "control was forgotten before it was done"


Network.TestCase.settings = settings(
    derandomize=True, deadline=None, max_examples=500, stateful_step_count=60, database=None
)


class TestAnyNetworkAndAnySequenceOfDeaths(Network.TestCase):  # type: ignore[misc]
    """Runs the machine above."""


@settings(derandomize=True, deadline=None, max_examples=40, database=None)
@given(seed=st.integers(0, 2**32))
def test_a_call_of_half_a_minute_over_a_bad_network(seed: int) -> None:
    """Steady audio both ways, so that windows fill, holes open behind holes and audio is given up by age."""
    fate = Random(seed)
    loss, late, mortality = fate.choice([0.0, 0.03, 0.3]), fate.choice([0.05, 0.5]), fate.choice([0.0, 0.003])
    network = Network()
    network.limits = fate.choice([LIMITS, Limits()])
    network.begin(fate.choice(["edge", "worker first heard", "early frames"]))
    for step in range(1000):
        network.talks(network.edge, 1)
        if step % 50 < 25:
            network.talks(network.worker, 1)
        if fate.random() < 0.1:
            network.control(fate.randrange(4), fate.random() < 0.5)
        network.wait(0.03)
        outage = step % 300 > 250
        for flying in [] if outage else list(network.flying):
            luck = fate.random()
            if luck < late:
                continue
            network.flying.remove(flying)
            if luck - late > loss:
                network.receive(flying)
            if fate.random() < 0.02:
                network.flying.append(flying)
        if fate.random() < 0.5:
            network.finish(fate.randrange(4), fate.randrange(50))
        if fate.random() < mortality:
            network.decide((fate.choice(["none", "ask", "since", "silent"]), fate.random()))
            network.fate(fate.choice(list(Side)), fate.choice(["dies", "is replaced", "is replaced asleep"]))
        elif step % 20 == 0:
            network.fate(fate.choice(list(Side)), "")
        network.memory_is_bounded()
    network.teardown()
