"""What is fuzzed: each machine that reads what others wrote, with the inputs that hypothesis makes for it.

An input is the bytes of one message, so that a corpus can be kept in files. A machine is fed many in a row; whatever
they are, it must neither raise nor answer in a way that its own rules forbid, nor keep more than its bound.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from hypothesis import strategies as st

from bridge_shared.frames import Frame, FrameError, Kind, pack, unpack
from bridge_shared.link import Delivery, Limits, Link, LinkFull, PeerChanged, Reread, Side
from bridge_shared.protocol import audiocodes as vaic
from bridge_shared.protocol import deepgram as dg

Inputs = st.SearchStrategy[bytes]

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("\ud800")
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


class Machine(Protocol):
    """One machine with the shell around it that its events ask for."""

    def feed(self, data: bytes) -> None:
        """Take one input; raises only if the machine is wrong."""

    @property
    def over(self) -> bool:
        """It has ended by its own rules, and says nothing any more."""


def message(kinds: list[str], names: list[str], usual: st.SearchStrategy[Any]) -> Inputs:
    """JSON that is nearly right, JSON that is not, text, and bytes."""
    near = st.builds(
        lambda kind, fields: json.dumps({**fields, "type": kind}).encode(),
        st.sampled_from(kinds) | anything,
        st.dictionaries(st.sampled_from(names), usual | anything, max_size=5),
    )
    cut = st.builds(lambda data, at: data[: at % (len(data) + 1)], near, st.integers(0, 500))
    any_json = anything.map(lambda value: json.dumps(value).encode())
    return st.one_of(near, near, near, cut, any_json, st.binary(max_size=40))


def as_text(data: bytes) -> str | bytes:
    """Text frames are text; what is not UTF-8 could only come in a binary frame."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


# ── VAIC's side of a call ──────────────────────────────────────────────────────────────────────────────────

CID = "fuzz-1"
VAIC = message(
    [
        "connection.validate",
        "session.initiate",
        "session.resume",
        "session.end",
        "userStream.start",
        "userStream.chunk",
        "userStream.stop",
        "activities",
        "playStream.start",
    ],
    [
        "conversationId",
        "caller",
        "botName",
        "audioChunk",
        "activities",
        "participant",
        "supportedMediaFormats",
        "expectAudioMessages",
        "reason",
    ],
    st.sampled_from(
        [CID, "/w==", "f/9", "", True, [], ["raw/mulaw"], [{"type": "event", "name": "start"}], "caller", "a" * 200]
    ),
)


class CallersBot:
    """`audiocodes.Bot` as an edge uses it."""

    def __init__(self) -> None:
        self.machine = vaic.Bot()
        start = {"type": "session.initiate", "conversationId": CID, "expectAudioMessages": True}
        self.feed(json.dumps({**start, "supportedMediaFormats": ["raw/mulaw"]}).encode())

    @property
    def over(self) -> bool:
        return self.machine.state not in {"new", "accepted"}

    def feed(self, data: bytes) -> None:
        bot = self.machine
        for event in bot.receive(as_text(data)):
            match event:
                case vaic.Validate():
                    bot.validated()
                case vaic.Initiate() | vaic.Resume() if event.valid_id:
                    formats = event.formats or ("raw/mulaw",)
                    bot.accepted("raw/mulaw") if "raw/mulaw" in formats else bot.error("no common format")
                case vaic.UserStreamStarted() if bot.state == "accepted":
                    bot.stream_started()
                case vaic.UserStreamStopped() if bot.state == "accepted":
                    bot.stream_stopped()
                case vaic.UserAudio():
                    assert event.data
                case vaic.Skipped():
                    assert len(event.detail) < 160
                case _:
                    pass


# ── the agent's side ───────────────────────────────────────────────────────────────────────────────────────

AGENT = message(
    [
        *("Welcome", "SettingsApplied", "Error", "Warning", "ConversationText", "History", "UserStartedSpeaking"),
        *("AgentThinking", "AgentStartedSpeaking", "AgentAudioDone", "FunctionCallRequest", "FunctionCallCancelled"),
        *("FunctionCallResponse", "PromptUpdated", "ListenUpdated", "InjectionRefused", "LatencyReport", "Nonsense"),
    ],
    [
        *("role", "content", "functions", "function_calls", "id", "name", "arguments", "client_side", "code"),
        *("description", "request_id", "message", "total_latency"),
    ],
    st.sampled_from(
        ["user", "assistant", "Hello.", "f1", "{}", 0.5, True, [{"id": "f1", "name": "look", "arguments": "{}"}]]
    ),
)


class AgentsClient:
    """`deepgram.AgentClient`, opened."""

    def __init__(self) -> None:
        self.machine = dg.AgentClient()
        self.machine.receive('{"type":"Welcome","request_id":"r1"}')
        self.machine.settings({"type": "Settings", "audio": {}, "agent": {}})
        self.machine.receive('{"type":"SettingsApplied"}')

    @property
    def over(self) -> bool:
        return self.machine.state not in {"ready"}

    def feed(self, data: bytes) -> None:
        for event in self.machine.receive(as_text(data)):
            assert isinstance(event, dg.AgentEvent)


# ── the wire between the pods ──────────────────────────────────────────────────────────────────────────────

near_numbers = st.integers(0, 40) | st.sampled_from([2**31, 2**53, 2**63, 2**64 - 1])
bodies = st.one_of(
    st.just([b"audio"]),
    st.just([[1, 1], b"audio"]),
    st.lists(near_numbers | st.text(max_size=4) | st.binary(max_size=4) | st.none() | st.booleans(), max_size=3),
    st.tuples(st.lists(near_numbers, max_size=2), st.text(max_size=4)).map(list),
)
odd_frames = st.builds(
    Frame,
    v=st.just(1),
    cid=st.just(CID),
    ee=st.sampled_from([0, 4, 5, 5, 6]) | near_numbers,
    we=st.sampled_from([0, 6, 7, 7, 8]) | near_numbers,
    seq=near_numbers | st.integers(0, 2**64 - 1),
    rx=near_numbers,
    done=near_numbers,
    kind=st.sampled_from([int(kind) for kind in Kind]) | st.integers(-1, 130),
    body=bodies,
)
session_frames = st.builds(
    lambda seq, rx, kind, body: Frame(1, CID, 5, 7, seq, rx, min(rx, 3), kind, body),
    st.integers(0, 40) | st.integers(0, 5000),
    st.integers(0, 40),
    st.sampled_from([int(kind) for kind in Kind]),
    bodies,
)
ENTRIES: Inputs = st.lists(session_frames | session_frames | odd_frames, min_size=1, max_size=4).map(pack)
"""Of the session that the links below are in, for the most part."""

nearly_frames = st.builds(
    lambda frame, at, value: [*frame[:at], value, *frame[at + 1 :]],
    odd_frames,
    st.integers(0, 8),
    st.integers(-3, 3) | st.text(max_size=3) | st.none() | st.booleans() | st.floats() | st.lists(st.none()),
)
structure = st.lists(
    st.integers(0x80, 0x83) | st.integers(0x90, 0x99) | st.integers(0xC0, 0xDF) | st.integers(0, 9), max_size=20
).map(bytes)
"""Bytes that msgpack takes for maps, arrays, extensions and lengths."""

DAMAGED: Inputs = st.one_of(
    ENTRIES,
    st.lists(nearly_frames, max_size=3).map(pack),
    structure,
    st.builds(
        lambda data, at, by: data[: at % len(data)] + by + data[at % len(data) + 1 :],
        ENTRIES,
        st.integers(0, 99),
        structure,
    ),
    st.builds(lambda data, at: data[: at % len(data)], ENTRIES, st.integers(0, 99)),
    st.binary(max_size=60),
)


class OneLink:
    """A `Link` that hears from pods gone mad; time passes, and its own side goes on to send."""

    LIMITS = Limits(audio_bytes=4096, control_frames=64, held_frames=16)

    def __init__(self, side: Side) -> None:
        self.now, self.side = 100.0, side
        mine, theirs = (5, 7) if side is Side.EDGE else (7, 5)
        self.machine = Link(
            side, CID, "me", epoch=mine, now=self.now, peer_pod="they", peer_epoch=theirs, limits=self.LIMITS
        )
        self.machine.open(self.now, "fuzz")

    @property
    def over(self) -> bool:
        """Another session, or numbers run up so far that nothing below them counts."""
        return self.machine.session != (5, 7) or self.machine._in.rx > 2500

    def feed(self, data: bytes) -> None:
        link = self.machine
        for frame in unpack(data):
            self.hear(link.receive("they", frame, self.now))
            assert all(type(to) is str for to, _ in link.take())
        self.now += 0.05
        if link.deadline() <= self.now:
            self.hear(link.tick(self.now))
            assert link.deadline() > self.now, "tick() does not do what is due"
        link.send_audio(Kind.UP if self.side is Side.EDGE else Kind.DOWN, [b"x" * 100], 100, self.now)
        with contextlib.suppress(LinkFull):
            link.send(Kind.ACTIVITY, [[1, 1], {}, True], self.now)
        for _, mine in link.take():
            pack([mine])
        assert link.retained_bytes <= self.LIMITS.audio_bytes

    def hear(self, events: list[Any]) -> None:
        for event in events:
            match event:
                case Delivery():
                    self.machine.done(event, self.now)
                case Reread():
                    self.hear(self.machine.reread(peer_pod="they", peer_epoch=self.machine.peer_epoch, now=self.now))
                case PeerChanged():
                    pass


class Codec:
    """`frames.unpack` on anything, and `pack` on what it lets through."""

    over = False
    machine = None

    def feed(self, data: bytes) -> None:
        try:
            frames = unpack(data)
        except FrameError:
            return
        for frame in frames:
            assert type(frame.cid) is str and type(frame.body) is list
            assert min(frame.ee, frame.we, frame.seq, frame.rx, frame.done) >= 0
        assert repr(unpack(pack(frames))) == repr(frames)  # a NaN is not equal to itself


@dataclass(frozen=True)
class Target:
    """One machine to fuzz.

    Attributes:
        most: bytes that one machine may keep, whatever it was fed.
    """

    name: str
    what: str
    inputs: Inputs
    machine: Callable[[], Any]
    most: int


TARGETS = [
    Target("vaic", "protocol machine towards VAIC (`audiocodes.Bot`)", VAIC, CallersBot, 16 * 1024),
    Target("agent", "protocol machine towards Deepgram (`deepgram.AgentClient`)", AGENT, AgentsClient, 16 * 1024),
    Target("link-edge", "link, the edge's end", ENTRIES, lambda: OneLink(Side.EDGE), 72 * 1024),
    Target("link-worker", "link, the worker's end", ENTRIES, lambda: OneLink(Side.WORKER), 72 * 1024),
    Target("frames", "frame codec", DAMAGED, Codec, 16 * 1024),
]


def kept(value: object) -> int:
    """Bytes of everything that this object holds, code and classes aside."""
    seen: set[int] = set()
    todo, total = [value], 0
    while todo:
        one = todo.pop()
        if id(one) in seen or isinstance(one, type) or callable(one):
            continue
        seen.add(id(one))
        total += sys.getsizeof(one)
        if isinstance(one, dict):
            todo += [*one.keys(), *one.values()]
        elif isinstance(one, str | bytes | int | float | None):
            continue
        elif hasattr(one, "__iter__") and hasattr(one, "__len__"):
            todo += list(one)
        todo += list(getattr(one, "__dict__", {}).values())
        for kind in type(one).__mro__:
            names = kind.__dict__.get("__slots__", ())
            todo += [getattr(one, name, None) for name in ((names,) if isinstance(names, str) else names)]
    return total
