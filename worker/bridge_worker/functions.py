"""The function calls of one conversation: what became of each, and which of them answers a re-issue.

Pure. Every change is a note, a flat dict of strings that goes to `call:{cid}:functions`; a ledger that is given the
notes of former owners knows what they knew:

| kind | says | other fields |
|---|---|---|
| `request` | the agent asked, before handlers hear of it | id, name, arguments, key, after, redacted |
| `response` | the application answered, before the agent hears of it | id, content, after |
| `cancelled` | the answer is not wanted any more | id |
| `reissued` | a new agent asked again, under the id `as` | id, as |
| `history` | the agent has taken the answer: its own `History` item, as JSON | item, after |

`after` is the last entry of the transcript at that moment; `redacted` is there if the arguments are not the agent's
own, because something was taken out of them.

**A re-issue.** A broken agent cannot be answered any more, and the new one asks for the same again, under
a new id. A call that was open at the break answers one such re-issue: the same name and canonical arguments, before
the caller speaks again, within 30 s. So its work is not done again because an agent was lost.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from bridge_shared.redis.calls import Line
from bridge_worker.recovery import FunctionRecord, order

UNKNOWN = "no such call"

REISSUE_SECONDS = 30.0
"""After a new agent was ready, so long may it ask again for what was asked before."""

Note = dict[str, str]


@dataclass(slots=True, eq=False)
class Record:
    """One client-side call.

    Attributes:
        id: what handlers know it by; the first agent's id.
        key: see `idempotency_key`.
        arguments: as received; `canonical(arguments)` compares.
        after: the transcript entry before it.
        response: the answer, None while there is none; `answered_after`: the transcript entry before that.
        confirmed: an agent has put it into its `History`.
        awaited_as: the id under which the present agent awaits the answer, empty if it does not.
        at_work: its handlers were started by this owner.
        redacted: a former owner has it in full, the arguments here lack what is not to be kept.
    """

    id: str
    name: str
    arguments: str
    key: str
    after: str
    response: str | None = None
    answered_after: str = ""
    confirmed: bool = False
    cancelled: bool = False
    awaited_as: str = ""
    at_work: bool = False
    redacted: bool = False


class Ledger:
    """All calls of one conversation.

    Args:
        cid: the conversation's id.
        notes: of former owners, in order. What makes no sense is skipped.
    """

    def __init__(self, cid: str, notes: Iterable[Mapping[str, str]] = ()) -> None:
        self._cid = cid
        self._records: dict[str, Record] = {}
        self._by_id: dict[str, Record] = {}
        self._items: list[FunctionRecord] = []
        self._confirmed: set[str] = set()
        self._offered: list[Record] = []
        self._offered_until = 0.0
        for note in notes:
            self._take(note)

    @property
    def records(self) -> list[Record]:
        """Every call, oldest first."""
        return list(self._records.values())

    def find(self, call_id: str) -> Record | None:
        """The call that an agent or a handler means by this id."""
        return self._by_id.get(call_id)

    def key(self, call_id: str, name: str, arguments: str) -> str:
        """The idempotency key of a call; of one that is not recorded, that of the first of its kind."""
        record = self.find(call_id)
        return record.key if record is not None else idempotency_key(self._cid, name, arguments)

    # ── what happens ───────────────────────────────────────────────────────────────────────────────────

    def request(self, call_id: str, name: str, arguments: str, after: str) -> Note:
        """The agent asks for something new."""
        taken = {record.key for record in self._records.values() if not record.cancelled}
        number = 0
        while (key := idempotency_key(self._cid, name, arguments, number)) in taken:
            number += 1
        note = self._take(
            {"kind": "request", "id": call_id, "name": name, "arguments": arguments, "key": key, "after": after}
        )
        self._records[call_id].awaited_as = call_id
        return note

    def refusal(self, call_id: str, name: str) -> str:
        """Why an answer to this call is dropped; empty if it is wanted."""
        record = self.find(call_id)
        if record is None or record.name != name:
            return UNKNOWN
        if record.cancelled:
            return "it was cancelled"
        return "it was answered before" if record.response is not None else ""

    def answer(self, record: Record, content: str, after: str) -> Note:
        """The application answers a call for which nothing speaks against it (`refusal`)."""
        return self._take({"kind": "response", "id": record.id, "content": content, "after": after})

    def cancel(self, record: Record) -> Note:
        """The answer is not wanted any more. Should the same be asked for again, it has the same key."""
        record.awaited_as = ""
        return self._take({"kind": "cancelled", "id": record.id})

    def confirm(self, item: Mapping[str, Any], after: str) -> Note | None:
        """A `History` item of the agent with function calls; None if it says nothing new (an echo of the context)."""
        ids = _ids(item)
        if ids and ids <= self._confirmed:
            return None
        return self._take({"kind": "history", "item": orjson.dumps(item).decode(), "after": after})

    # ── when an agent is lost ──────────────────────────────────────────────────────────────────────────

    def agent_lost(self) -> None:
        """No answer can be given until a new agent asks again."""
        for record in self._records.values():
            record.awaited_as = ""
        self._offered = []

    def open_calls(self, lines: Sequence[Line]) -> list[Record]:
        """The calls that the conversation waits for: neither cancelled, nor overtaken by what was said since.

        A request may come before the text of the caller that caused it (Voice Agent reference §4.4), so one line of
        the caller does not overtake it.
        """
        return [record for record in self._records.values() if _is_open(record, lines)]

    def offer(self, records: Iterable[Record], now: float) -> None:
        """A new agent is ready: these calls answer what it asks for again."""
        self._offered = list(records)
        self._offered_until = now + REISSUE_SECONDS

    def reissued(self, call_id: str, name: str, arguments: str, now: float) -> tuple[Record, Note] | None:
        """The record that answers this request of a new agent, or None: it is a call of its own."""
        if now > self._offered_until:
            self._offered = []
        for record in self._offered:
            if record.name == name and not record.cancelled and self._same(record, arguments):
                self._offered.remove(record)
                record.awaited_as = call_id
                return record, self._take({"kind": "reissued", "id": record.id, "as": call_id})
        return None

    def caller_spoke(self) -> list[Record]:
        """What is asked for from now on is new. Returns the calls that are void by that: unanswered, and no agent
        awaits them."""
        offered, self._offered = self._offered, []
        return [record for record in offered if record.response is None and not record.cancelled]

    # ── what a new agent is told ───────────────────────────────────────────────────────────────────────

    def history(self) -> list[FunctionRecord]:
        """The finished calls, as items for `agent.context.messages`, in order."""
        unconfirmed = [
            FunctionRecord(record.answered_after, _item(record))
            for record in self._records.values()
            if record.response is not None and not record.confirmed and not record.cancelled
        ]
        return sorted([*self._items, *unconfirmed], key=lambda function: order(function.after))

    # ── inside ─────────────────────────────────────────────────────────────────────────────────────────

    def _same(self, record: Record, arguments: str) -> bool:
        """These are the arguments of that call. Of redacted ones the key still tells."""
        if not record.redacted:
            return canonical(record.arguments) == canonical(arguments)
        numbers = range(len(self._records))
        return record.key in {idempotency_key(self._cid, record.name, arguments, number) for number in numbers}

    def _take(self, note: Mapping[str, str]) -> Note:
        get = note.get
        record = self._by_id.get(get("id", ""))
        match get("kind"):
            case "request":
                made = Record(get("id", ""), get("name", ""), get("arguments", ""), get("key", ""), get("after", ""))
                made.redacted = "redacted" in note
                self._records[made.id] = self._by_id[made.id] = made
            case "response" if record is not None:
                record.response, record.answered_after = get("content", ""), get("after", "")
            case "cancelled" if record is not None:
                record.cancelled = True
            case "reissued" if record is not None:
                self._by_id[get("as", "")] = record
            case "history":
                self._confirm(get("item", ""), get("after", ""))
        return dict(note)

    def _confirm(self, text: str, after: str) -> None:
        try:
            item = orjson.loads(text)
        except orjson.JSONDecodeError:
            return
        ids = _ids(item)
        self._items.append(FunctionRecord(after, item))
        self._confirmed |= ids
        for call_id in ids:
            if (record := self._by_id.get(call_id)) is not None:
                record.confirmed = True


def redacted(note: Note, redact: Callable[[str], str]) -> Note:
    """A note as it may be stored. `redact`: takes out of JSON, or of any text, what is not to be kept."""
    kept = note | {name: redact(note[name]) for name in ("arguments", "content") if name in note}
    if "item" in note:
        item = orjson.loads(note["item"])
        for call in item["function_calls"]:
            for name in {"arguments", "response"} & call.keys():
                said = as_text(call[name])
                call[name] = call[name] if redact(said) == said else redact(said)
        kept["item"] = orjson.dumps(item).decode()
    return kept if kept.get("arguments") == note.get("arguments") else {**kept, "redacted": "1"}


def as_text(arguments: Any) -> str:
    """Arguments as JSON text, also from an agent that sends them as an object (Voice Agent reference §4.4)."""
    if isinstance(arguments, str):
        return arguments or "{}"
    return orjson.dumps(arguments if arguments is not None else {}).decode()


def canonical(arguments: str) -> str:
    """Arguments in the one spelling that all equal ones share: JSON with sorted keys. What is no JSON stays itself."""
    try:
        return orjson.dumps(orjson.loads(arguments), option=orjson.OPT_SORT_KEYS).decode()
    except orjson.JSONDecodeError:
        return arguments.strip() or "{}"


def idempotency_key(cid: str, name: str, arguments: str, number: int = 0) -> str:
    """The same for the same work, whichever agent asks for it and whichever worker does it.

    Args:
        number: how often the conversation has asked for this before, cancelled calls not counted.
    """
    parts = orjson.dumps([cid, name, canonical(arguments), number])
    return hashlib.sha256(parts).hexdigest()[:32]


def _is_open(record: Record, lines: Sequence[Line]) -> bool:
    if record.cancelled:
        return False
    since = [line.role for line in lines if order(line.id) > order(record.after)]
    answered = record.response is not None and any(
        line.role == "assistant" and order(line.id) > order(record.answered_after) for line in lines
    )
    return since.count("user") <= 1 and not answered


def _item(record: Record) -> dict[str, Any]:
    call = {
        "id": record.id,
        "name": record.name,
        "client_side": True,
        "arguments": record.arguments,
        "response": record.response,
    }
    return {"type": "History", "function_calls": [call]}


def _ids(item: Any) -> set[str]:
    calls = item.get("function_calls") if isinstance(item, Mapping) else None
    return {str(call.get("id")) for call in calls or () if isinstance(call, Mapping)}
