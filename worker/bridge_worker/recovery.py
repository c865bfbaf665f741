"""How a conversation goes on with a new agent: what it is told of the past, and who speaks next.

Pure. Deepgram keeps nothing of a session that broke (Voice Agent reference §7): a new agent is given the
conversation so far in `agent.context.messages`, without a greeting, and then somebody has to speak. In order,
the first that applies (the caller in mid-utterance is decided by the edge, before this):

1. a function call is open: what the caller said that caused it is left out of the past and said again as the
   caller's, so that the agent asks for the call again, or uses its result, which is in the past by then;
2. what the caller said last was not answered: likewise;
3. the agent was cut off: what was not heard is left out of the past and said again by the agent;
4. otherwise nobody.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bridge_shared.redis.calls import Line

HISTORY_ITEMS = 200
HISTORY_CHARACTERS = 32_000
"""Of the conversation so far, what a new agent is given; the newest is kept."""

CHARACTERS_PER_SECOND = 15.0
"""Speed of synthesised speech, to tell which sentences fit into what was heard of a line."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """How to go on.

    Attributes:
        history: items for `agent.context.messages`, oldest first.
        caller_says: to be sent as `InjectUserMessage`, if not empty.
        agent_says: to be sent as `InjectAgentMessage`, if not empty.
        again: the transcript entries of which that is the rest.
    """

    history: tuple[dict[str, Any], ...]
    caller_says: str = ""
    agent_says: str = ""
    again: tuple[str, ...] = ()


class Echo:
    """What somebody is made to say, and comes back as a text of the conversation: as a whole, or sentence by sentence.
    It is in the transcript already."""

    def __init__(self, text: str = "") -> None:
        self._left = text.strip()

    def takes(self, content: str) -> bool:
        """Whether this text is (part of) what comes back. The first that is not ends the echo."""
        said = content.strip()
        if said and self._left.startswith(said):
            self._left = self._left[len(said) :].lstrip()
            return True
        self._left = ""
        return False


@dataclass(frozen=True, slots=True)
class FunctionRecord:
    """A finished function call as Deepgram put it into its `History`, and the transcript entry before it."""

    after: str
    item: dict[str, Any]


def recover(
    lines: Sequence[Line],
    functions: Iterable[FunctionRecord] = (),
    *,
    caller_speaks: bool = False,
    call_open: bool = False,
) -> Recovery:
    """Decide how the conversation goes on.

    Args:
        lines: the transcript in order. A line of the agent with `interrupted` was heard for `heard_ms` only;
            one without `heard_ms` counts as heard.
        functions: the finished function calls, in order.
        caller_speaks: the caller is in mid-utterance, and will be answered: nothing is said again.
        call_open: the conversation waits for a function call. What the agent said meanwhile is left out as well.
    """
    past, caller_says, agent_says = list(lines), "", ""
    again: tuple[str, ...] = ()
    if not caller_speaks:
        if call_open and (asked := _last_of_caller(past)):
            past = past[:asked]
        past, caller_says = _unanswered(past)
        agent_says, again = ("", ()) if caller_says else _unheard(past)
    waiting = list(functions)
    items: list[dict[str, Any]] = []
    for line in past:
        while waiting and order(waiting[0].after) < order(line.id):
            items.append(waiting.pop(0).item)
        content = heard_text(line)
        if content:
            items.append({"type": "History", "role": line.role, "content": content})
    items.extend(function.item for function in waiting)
    return Recovery(tuple(newest(items)), caller_says, agent_says, again)


def heard_text(line: Line) -> str:
    """What of a line the caller heard, by whole sentences."""
    if not line.interrupted or line.heard_ms is None:
        return line.content
    room = line.heard_ms / 1000 * CHARACTERS_PER_SECOND
    kept, length = [], 0
    for sentence in _sentences(line.content):
        length += len(sentence)
        if length > room:
            break
        kept.append(sentence)
    return " ".join(kept)


def newest(items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """As many of the newest items as a new agent is given, oldest first."""
    kept: list[dict[str, Any]] = []
    size = 0
    for item in reversed(items[-HISTORY_ITEMS:]):
        size += len(str(item))
        if size > HISTORY_CHARACTERS:
            break
        kept.append(item)
    return kept[::-1]


def _unanswered(lines: list[Line]) -> tuple[list[Line], str]:
    """The lines without what the caller said last, and that, if nobody has answered it."""
    last = len(lines)
    while last and lines[last - 1].role == "user":
        last -= 1
    return lines[:last], " ".join(line.content for line in lines[last:])


def _last_of_caller(lines: Sequence[Line]) -> int:
    """How many lines there are up to the caller's last one, 0 if the caller has said nothing."""
    return next((number for number in range(len(lines), 0, -1) if lines[number - 1].role == "user"), 0)


def _unheard(lines: Sequence[Line]) -> tuple[str, tuple[str, ...]]:
    """What the agent was saying when it was cut off: the unheard sentences of its last turn, and their entries."""
    if not lines or lines[-1].role != "assistant":
        return "", ()
    turn = [line for line in lines if line.turn == lines[-1].turn and line.role == "assistant"]
    rest, entries = [], []
    for line in turn:
        heard = heard_text(line)
        if heard != line.content:
            count = len(_sentences(heard))
            rest.append(" ".join(_sentences(line.content)[count:]))
            entries.append(line.id)
    return " ".join(rest), tuple(entries)


def _sentences(text: str) -> list[str]:
    return [sentence for sentence in re.split(r"(?<=[.!?…])\s+", text.strip()) if sentence]


def order(entry: str) -> tuple[int, int]:
    """Where an entry of the transcript stands; an empty one stands before all."""
    epoch, _, number = entry.partition("-")
    return int(epoch or 0), int(number or 0)
