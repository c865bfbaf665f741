"""Spoken sentences for simulated callers and agents, and an ear that knows the callers' ones again.

The sentences lie in `speech_data`, synthesised once. `recognise` compares loudness envelopes, which survive the codecs,
the silence around and the small losses of a telephone line, and cost a few milliseconds instead of a speech model.
"""

from __future__ import annotations

import csv
import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from itertools import pairwise
from typing import Literal

from bridge_shared.protocol.media import Media
from bridge_sim import pcm

Role = Literal["caller", "agent"]

RATE = 8000
"""Samples per second of the stored speech, which is µ-law."""

_PAUSE = b"\xff" * (RATE // 4)
# Said in one go, with a quarter of a second between the sentences.
_JOINED = {"agent_long_answer": ("agent_left_depot", "agent_in_your_area", "agent_nine_stops", "agent_expect")}

_MS_PER_CHARACTER = 60
_LONGEST_MS = 6000


@dataclass(frozen=True, slots=True)
class Prompt:
    """One recorded sentence: `ulaw` is headerless 8 kHz µ-law without silence around it."""

    name: str
    role: Role
    text: str
    ulaw: bytes

    @property
    def seconds(self) -> float:
        return len(self.ulaw) / RATE


@cache
def _prompts() -> dict[str, Prompt]:
    folder = files("bridge_sim") / "speech_data"
    found: dict[str, Prompt] = {}
    rows = (folder / "prompts.tsv").read_text(encoding="utf-8").splitlines()
    for name, role, text in csv.reader(rows, delimiter="\t", quoting=csv.QUOTE_NONE):
        speaker: Role = "caller" if role == "caller" else "agent"
        found[name] = Prompt(name, speaker, text, (folder / f"{name}.ulaw").read_bytes())
    for name, parts in _JOINED.items():
        texts, sounds = [found[part].text for part in parts], [found[part].ulaw for part in parts]
        found[name] = Prompt(name, "agent", " ".join(texts), _PAUSE.join(sounds))
    return found


def names(role: Role) -> tuple[str, ...]:
    """The names of all sentences of that speaker."""
    return tuple(prompt.name for prompt in _prompts().values() if prompt.role == role)


def prompt(name: str) -> Prompt:
    """Raises KeyError, naming the sentences there are."""
    try:
        return _prompts()[name]
    except KeyError:
        raise KeyError(f"there is no sentence {name!r}; there are {', '.join(_prompts())}") from None


def known(name: str) -> bool:
    """Whether there is a recorded sentence of that name."""
    return name in _prompts()


@cache
def _by_text() -> dict[str, Prompt]:
    return {_plain(prompt.text): prompt for prompt in _prompts().values()}


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


def find(text: str) -> Prompt | None:
    """The recorded sentence with this wording, whatever its punctuation and case."""
    return _by_text().get(_plain(text))


def sentences(text: str) -> tuple[str, ...]:
    """The pieces in which an agent says a text: recorded sentences whole, anything else split where a sentence ends."""
    recorded = find(text)
    if recorded is not None and recorded.name not in _JOINED:
        return (text,)
    return tuple(piece for piece in re.split(r"(?<=[.!?])\s+", text.strip()) if piece)


# ── the mouth ────────────────────────────────────────────────────────────────────────────────────────────────────────


def render(prompt: Prompt, media: Media) -> bytes:
    """The sentence in that format, without a header."""
    return _rendered(prompt.ulaw, media.encoding, media.rate)


def render_text(text: str, media: Media) -> bytes:
    """Sound for any text: its recording if there is one, otherwise babble of about 60 ms per character, at most 6 s."""
    recorded = find(text)
    if recorded is not None:
        return render(recorded, media)
    return _rendered(_babble(text), media.encoding, media.rate)


@lru_cache(maxsize=128)
def _rendered(ulaw: bytes, encoding: pcm.Encoding, rate: int) -> bytes:
    return pcm.convert(ulaw, ("mulaw", RATE), (encoding, rate))


@lru_cache(maxsize=64)
def _babble(text: str) -> bytes:
    """Two vowel-like tones per character, swelling and fading as syllables do. The same text always sounds the same."""
    tones = random.Random(text)
    steps = RATE * _MS_PER_CHARACTER // 1000
    samples = bytearray()
    for character in text[: _LONGEST_MS // _MS_PER_CHARACTER]:
        loud = 7000.0 if character.isalnum() else 0.0
        low, high = tones.uniform(250, 700), tones.uniform(900, 2300)
        for step in range(steps):
            at = step / RATE
            swell = loud * math.sin(math.pi * step / steps)
            value = swell * (math.sin(math.tau * low * at) + 0.5 * math.sin(math.tau * high * at))
            samples += int(value).to_bytes(2, "little", signed=True)
    return pcm.linear16_to_mulaw(bytes(samples))


# ── the ear ──────────────────────────────────────────────────────────────────────────────────────────────────────────

_QUIET = 1.0
"""Levels below this are the line, not speech."""
_VOICED = math.log1p(2.0)
_LOWEST = -1.5
"""In units of the spread: how silence inside a sentence counts."""
_SLIP = 12
"""How many frames the hearing may run ahead or behind: 240 ms of packets lost or doubled."""
_SLIP_COST = 0.3
_WORST = 0.8
"""What a frame that does not fit at all costs: a lost packet played as silence must not outweigh the rest."""
_ALIKE = 0.31
"""Mean cost per frame. The same sentence with 100 ms lost stays below 0.29; another one rarely falls below this."""


def recognise(ulaw: bytes) -> Prompt | None:
    """The caller's sentence heard on an 8 kHz µ-law line, with silence around it; None if it is none of them."""
    heard = _envelope(ulaw)
    best, cost = None, _ALIKE
    for prompt, expected in _envelopes():
        # No more than the line may lose; this spares most comparisons.
        if abs(len(heard) - len(expected)) <= _SLIP:
            difference = _difference(expected, heard)
            if difference < cost:
                best, cost = prompt, difference
    return best


@cache
def _envelopes() -> list[tuple[Prompt, list[float]]]:
    return [(prompt, _envelope(prompt.ulaw)) for prompt in _prompts().values() if prompt.role == "caller"]


def _envelope(ulaw: bytes) -> list[float]:
    """Loudness by frame as an ear takes it (logarithmic), from the first to the last frame of speech, normalised over
    the frames with speech in them, so that neither the volume nor added silence changes it.
    """
    loud = pcm.levels(ulaw, "mulaw", RATE)
    # Over two frames each: where the frames begin in the sound must not matter.
    loud = [(one + other) / 2 for one, other in pairwise(loud)]
    speech = [index for index, value in enumerate(loud) if value >= _QUIET]
    if not speech:
        return []
    logs = [math.log1p(value) for value in loud[speech[0] : speech[-1] + 1]]
    voiced = [value for value in logs if value >= _VOICED] or logs
    mean = sum(voiced) / len(voiced)
    spread = math.sqrt(sum((value - mean) ** 2 for value in voiced) / len(voiced)) or 1.0
    return [max(_LOWEST, (value - mean) / spread) for value in logs]


def _difference(expected: Sequence[float], heard: Sequence[float]) -> float:
    """The cheapest way to lay one envelope along the other, frame by frame, slipping now and then; per frame."""
    never = math.inf
    columns = len(heard)
    ahead = columns - len(expected)
    costs = [never] * (columns + 1)
    for column in range(min(_SLIP, columns) + 1):
        costs[column] = _SLIP_COST * column
    for row, value in enumerate(expected):
        first = max(0, row + min(0, ahead) - _SLIP)
        last = min(columns, row + max(0, ahead) + _SLIP + 1)
        following = [never] * (columns + 1)
        following[first] = left = costs[first] + _SLIP_COST
        for column in range(first, last):
            cost = costs[column] + min(_WORST, abs(value - heard[column]))
            cost = min(cost, costs[column + 1] + 2 * _SLIP_COST, left + 2 * _SLIP_COST)
            following[column + 1] = left = cost
        costs = following
    return costs[columns] / max(len(expected), columns)
