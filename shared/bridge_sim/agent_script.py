"""How a simulated agent behaves: what it answers, how fast, and what goes wrong. Pure data and one pure decision."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeAlias

from bridge_sim import speech

ANSWERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "greeting_hello": ("agent_good_morning",),
        "where_is_my_parcel": ("agent_found", "agent_in_transit"),
        "parcel_number": ("agent_moment", "agent_in_transit"),
        "opening_hours": ("agent_hours",),
        "change_address": ("agent_address",),
        "thank_you": ("agent_welcome",),
        "speak_to_a_person": ("agent_person",),
        "goodbye": ("agent_goodbye",),
        "long_story": ("agent_long_answer",),
    }
)
"""What the agent says to each of the caller's recorded sentences: names of recorded sentences, or any text."""

CALLS: Mapping[str, tuple[tuple[str, str], ...]] = MappingProxyType(
    {
        "parcel_number": (("track_parcel", '{"number":"Z1"}'),),
        "speak_to_a_person": (("speak_to_a_person", '{"why":"The caller asked for a person."}'),),
    }
)
"""Functions (name, arguments) called for a sentence, before anything is said, if the settings offer them."""


@dataclass(frozen=True, slots=True)
class Faults:
    """What goes wrong.

    Attributes:
        refuse_handshakes: so many upgrades are refused first, with `refuse_status`.
        connections: the faults below befall only so many connections, the first ones; None means all.
        after_s: when the next four happen, counted in seconds from SettingsApplied.
        error_code: an `Error` with this code. Alone it leaves the socket open.
        close_code: the socket is closed with this code; 1006 breaks it off, 1005 closes without a code.
        stall: the agent says nothing more, and answers pings.
        freeze: it reads nothing more either, so that pings stay unanswered.
        drop_after_s: TCP is broken off so many seconds after SettingsApplied.
        slow_settings_s: how long SettingsApplied takes.
        warning_code: a `Warning` with this code comes before SettingsApplied.
        no_audio_done: no AgentAudioDone after an interruption.
        late_audio_frames: so many frames of the interrupted speech come after UserStartedSpeaking.
        latency_flood: so many LatencyReports before each sentence.
        unknown_messages: messages of an unknown type and unknown fields among the others.
    """

    refuse_handshakes: int = 0
    refuse_status: int = 503
    connections: int | None = None
    after_s: float = 0.0
    error_code: str | None = None
    close_code: int | None = None
    stall: bool = False
    freeze: bool = False
    drop_after_s: float | None = None
    slow_settings_s: float = 0.0
    warning_code: str | None = None
    no_audio_done: bool = False
    late_audio_frames: int = 0
    latency_flood: int = 0
    unknown_messages: bool = False


NO_FAULTS = Faults()


@dataclass(frozen=True, slots=True)
class AgentScript:
    """A simulated agent's behaviour; times are seconds.

    Attributes:
        think_s: between the end of the caller's turn and the answer.
        open_delay_s: how long the upgrade takes.
        strict: see `AgentServer`.
        require_token: the one API key or JWT accepted; None accepts everything.
        idle_timeout_s: without a client message for so long the session ends with CLIENT_MESSAGE_TIMEOUT.
        idle_audio_only: only audio counts for that, as one report of the live service has it (§5.1).
        session_s: the longest session; the warning comes after 23/24 of it (2 h and 1 h 55).
        burst: sizes in bytes of the audio frames, in turn; odd on purpose.
        speed: how many times faster than real time the speech is sent.
        echo: every audio frame is sent back at once, as `audio.output` wants it, and nothing is said or understood. For
            load tests.
        answers, calls: see ANSWERS and CALLS.
        speculative: function calls are requested before the caller's text is confirmed (§4.4, rule 3).
        numbered: each answer begins with a number of its own ("#17 We are open."), which is not spoken: so no two
            answers are the same, and none that is lost or doubled stays unnoticed.
        reissue_cancelled: a call that the caller's interruption cancelled is made again after it, under a new id.
        faults: see Faults.
    """

    think_s: float = 0.2
    open_delay_s: float = 0.0
    strict: bool = True
    require_token: str | None = None
    idle_timeout_s: float = 10.0
    idle_audio_only: bool = False
    session_s: float = 7200.0
    burst: tuple[int, ...] = (1279, 3201, 777, 4001, 961)
    speed: float = 5.0
    echo: bool = False
    answers: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: ANSWERS)
    calls: Mapping[str, tuple[tuple[str, str], ...]] = field(default_factory=lambda: CALLS)
    speculative: bool = False
    numbered: bool = False
    reissue_cancelled: bool = False
    faults: Faults = NO_FAULTS


@dataclass(frozen=True, slots=True)
class Say:
    """Sentences, each announced and spoken by itself."""

    sentences: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Call:
    """Functions to call (name, arguments), and then to say what they returned."""

    functions: tuple[tuple[str, str], ...]


Reply: TypeAlias = Say | Call


def reply_to(script: AgentScript, said: str, history: Sequence[Mapping[str, Any]], functions: Collection[str]) -> Reply:
    """What the agent does about an utterance.

    Args:
        said: the utterance, as recognised or injected.
        history: the conversation before it, oldest first: the seeded context and what was said since (§3.7).
        functions: the names of the functions that the settings offer.
    """
    if "what did i say first" in said.casefold():
        first = next((item["content"] for item in history if item.get("role") == "user"), None)
        return Say(("You have said nothing yet.",) if first is None else (f"You first said: {first}",))
    known = speech.find(said)
    if known is None or known.name not in script.answers:
        return say("agent_sorry")
    calls = tuple(call for call in script.calls.get(known.name, ()) if call[0] in functions)
    return Call(calls) if calls else say(*script.answers[known.name])


_numbers = itertools.count(1)


def number(reply: Say) -> Say:
    """The same with a number before each sentence, never used before in this process."""
    return Say(tuple(f"#{next(_numbers)} {sentence}" for sentence in reply.sentences))


def spoken(sentence: str) -> str:
    """What of a sentence is heard: all but its number."""
    return re.sub(r"^#\d+ ", "", sentence)


def say(*answers: str) -> Say:
    """Names of recorded sentences, or texts, as the sentences to speak."""
    texts = (speech.prompt(answer).text if speech.known(answer) else answer for answer in answers)
    return Say(tuple(sentence for text in texts for sentence in speech.sentences(text)))
