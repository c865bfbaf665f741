"""Function calls on their way between the agent, the record in Redis, and the customer's handlers.

    agent ── request ──> ledger ── recorded ──> handlers
    agent <── response ── recorded ── ledger <── answer

What is to be done with a call is decided by the `Ledger`; this carries it out: nothing runs before the request is
recorded, nothing is sent before the answer is, and an owner that has lost the call does neither.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bridge_shared import logs, metrics
from bridge_shared.protocol import deepgram as dg
from bridge_shared.redis.calls import CallKeys, Line
from bridge_shared.redis.transcripts import Entry, FencedStream
from bridge_shared.tracing import Span
from bridge_shared.types.deepgram import FunctionCall, FunctionCallRequestEvent
from bridge_worker.functions import UNKNOWN, Ledger, Note, Record, as_text, redacted
from bridge_worker.recovery import FunctionRecord

if TYPE_CHECKING:
    from bridge_worker.conversation import Conversation

log = logs.get("worker.functions")

RECORD_SECONDS = 1.0
"""A caller is not kept waiting for a Redis that is away for longer: what waits is written when it is back."""

FAILED = '{"error":"This function could not be carried out."}'
TOO_LONG = '{"error":"This function took too long and was stopped."}'
NOBODY = '{"error":"Nobody carries out this function."}'
"""What the agent is told for the application, so that it does not wait for ever. What went wrong is for the
application's own eyes, in its `error` event: the agent would read it out to the caller."""


class FunctionCalls:
    """The function calls of one conversation.

    Args:
        conversation: whose they are.
        entries: what former owners have recorded, in order.
    """

    def __init__(self, conversation: Conversation, entries: Sequence[Entry]) -> None:
        self._c = conversation
        self._ledger = Ledger(conversation.cid, [fields for _, fields in entries])
        self._stream = FencedStream(
            conversation.worker.state,
            CallKeys.of(conversation.cid).functions,
            conversation.we,
            history=entries,
            on_fenced=conversation.fenced,
        )
        self._spans: dict[str, Span] = {}
        """Of the calls that are at work here, by id."""

    async def run(self) -> None:
        """Store the records for ever, through any outage. Cancelling it may leave the last one unstored."""
        await self._stream.run()

    def verify(self) -> None:
        """Redis may have lost something: compare."""
        self._stream.verify()

    async def flush(self, seconds: float) -> bool:
        """Wait, at most so long, until all is recorded. Safe to cancel."""
        return await self._stream.flush(seconds)

    # ── what the agent says ────────────────────────────────────────────────────────────────────────────

    def requested(self, functions: Iterable[Mapping[str, Any]]) -> None:
        """The agent asks for functions: those that a lost agent has asked for already are answered from the record."""
        wanted = []
        for function in functions:
            call = FunctionCall(
                id=function["id"],
                name=function["name"],
                arguments=as_text(function.get("arguments")),
                client_side=bool(function.get("client_side", True)),
            )
            if call.client_side:
                if self._reissued(call):
                    continue
                self._note(self._ledger.request(call.id, call.name, call.arguments, self._c.lines.last))
            wanted.append(call)
        self._carry_out(wanted)

    def cancelled(self, functions: Iterable[Mapping[str, Any]]) -> None:
        """The agent does not want these answers any more."""
        for function in functions:
            if (record := self._ledger.find(str(function.get("id")))) is not None and not record.cancelled:
                self._note(self._ledger.cancel(record))

    def committed(self, item: Mapping[str, Any]) -> None:
        """A `History` item of the agent with function calls: it has taken their answers."""
        if (note := self._ledger.confirm(item, self._c.lines.last)) is not None:
            self._note(note)

    def caller_spoke(self) -> None:
        """What the agent asks for from now on is new."""
        for record in self._ledger.caller_spoke():
            self._note(self._ledger.cancel(record))

    # ── what the application says ──────────────────────────────────────────────────────────────────────

    async def respond(self, call_id: str, name: str, content: str) -> None:
        """Record an answer and give it to the agent; if the agent is being replaced, the next one gets it when it asks
        again. An answer that nobody wants is dropped with a log line. Cancelling it may leave the answer unsent."""
        if why := self._ledger.refusal(call_id, name):
            say = log.warning if why == UNKNOWN else log.info
            return say("an answer to a function call is dropped", cid=self._c.cid, function=name, why=why)
        record = self._ledger.find(call_id)
        assert record is not None
        self._note(self._ledger.answer(record, content, self._c.lines.last))
        if await self._recorded():
            self._send(record)

    def key(self, call: FunctionCall) -> str:
        """See `Session.idempotency_key`. From any thread."""
        return self._ledger.key(call.id, call.name, call.arguments)

    # ── when an agent is lost ──────────────────────────────────────────────────────────────────────────

    def agent_lost(self) -> None:
        """No answer can be given until the next agent asks again."""
        self._ledger.agent_lost()

    def open_calls(self, lines: Sequence[Line], *, caller_speaks: bool) -> list[Record]:
        """The calls that the conversation still waits for. A caller in mid-utterance makes them void."""
        waiting = self._ledger.open_calls(lines)
        if not caller_speaks:
            return waiting
        for record in waiting:
            if record.response is None:
                self._note(self._ledger.cancel(record))
        return []

    def resume(self, waiting: Iterable[Record]) -> None:
        """A new agent is ready. These calls answer what it asks for again; those that a former owner began are
        carried out here."""
        waiting = list(waiting)
        for record in waiting:
            if record.redacted and record.response is None:  # nobody knows any more what it was to be done with
                self._note(self._ledger.cancel(record))
        waiting = [record for record in waiting if not record.cancelled]
        self._ledger.offer(waiting, self._c.loop.time())
        unfinished = [record for record in waiting if record.response is None and not record.at_work]
        metrics.function_calls.labels(outcome="resumed").inc(len(unfinished))
        self._carry_out([FunctionCall(r.id, r.name, r.arguments, True) for r in unfinished])

    def history(self) -> list[FunctionRecord]:
        """The finished calls, for a new agent."""
        return self._ledger.history()

    # ── inside ─────────────────────────────────────────────────────────────────────────────────────────

    def _reissued(self, call: FunctionCall) -> bool:
        again = self._ledger.reissued(call.id, call.name, call.arguments, self._c.loop.time())
        if again is None:
            return False
        record, note = again
        self._note(note)
        metrics.function_calls.labels(outcome="reissued").inc()
        log.info("function call asked for again by a new agent", cid=self._c.cid, function=call.name)
        if record.response is not None:
            self._send(record)
        return True

    def _carry_out(self, calls: Sequence[FunctionCall]) -> None:
        if not calls:
            return
        c, ours = self._c, [call for call in calls if call.client_side]
        for call in ours:
            if (record := self._ledger.find(call.id)) is not None:
                record.at_work = True
                self._spans[call.id] = c.span.child(f"function call {call.name}")
        if ours and not c.hosted.handlers.wants("function_call_request"):
            log.warning("the application has no handler for function_call_request", cid=c.cid)
            return self._answer_for_it(ours, NOBODY)

        def failed(problem: Exception) -> None:  # in the customer's loop
            content = TOO_LONG if isinstance(problem, TimeoutError) else FAILED
            c.loop.call_soon_threadsafe(self._answer_for_it, ours, content)

        event = FunctionCallRequestEvent(session_id=c.session.session_id, functions=tuple(calls))
        c.agent_lane.put("function_call_request", event, first=self._first, failed=failed)

    def _answer_for_it(self, calls: Iterable[FunctionCall], content: str) -> None:
        """The application will not answer these calls, unless it has done so already."""
        for call in calls:
            if not self._c.over and not self._ledger.refusal(call.id, call.name):
                metrics.function_calls.labels(outcome="failed").inc()
                if (span := self._spans.get(call.id)) is not None:
                    span.end(error="failed")
                self._c.tasks.create_task(self.respond(call.id, call.name, content))

    async def _first(self) -> bool:
        """What handlers wait for, in the customer's loop."""
        recorded = self._recorded()
        try:
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(recorded, self._c.loop))
        except RuntimeError:  # the media loop is gone, and the call with it
            recorded.close()
            return False

    async def _recorded(self) -> bool:
        """Wait until all is recorded; False if the call is another worker's."""
        if not await self._stream.flush(RECORD_SECONDS) and not self._stream.fenced:
            log.warning("a function call goes on before it is recorded: Redis does not answer", cid=self._c.cid)
        return not self._stream.fenced

    def _send(self, record: Record) -> None:
        agent, awaited, record.awaited_as = self._c.agent.connection, record.awaited_as, ""
        if agent is None or not awaited or record.cancelled or record.response is None:
            return log.debug("an answer waits for the next agent", cid=self._c.cid, function=record.name)
        try:
            agent.say(agent.machine.function_response(awaited, record.name, record.response))
        except dg.LocalProtocolError as error:
            return log.info("an answer came too late for the agent", cid=self._c.cid, why=str(error))
        self._c.agent.answers.answered(self._c.loop.time())

    def _note(self, note: Note) -> None:
        self._stream.append(redacted(note, self._c.redacted.json))
        if note["kind"] in ("response", "cancelled") and (span := self._spans.pop(note["id"], None)) is not None:
            span.end(cancelled=note["kind"] == "cancelled")
