"""What the customer's handlers can ask of a live call. Runs in the media thread; `Session` crosses over to it."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Literal

from bridge_shared import logs
from bridge_shared.errors import BridgeError
from bridge_shared.protocol.deepgram import LocalProtocolError
from bridge_shared.types.deepgram import FunctionCall, WarningEvent
from bridge_shared.types.extra import BeforeTransferEvent, TurnTiming
from bridge_worker.caller_side import sendable
from bridge_worker.leaving import Leave

if TYPE_CHECKING:
    from bridge_worker.conversation import Conversation

log = logs.get("worker.commands")

REPEATABLE = {
    "hangup",
    "transfer",
    "handover",
    "config",
    "abortPrompts",
    "startCallRecording",
    "stopCallRecording",
    "pauseCallRecording",
    "resumeCallRecording",
    "expectAnotherBotMessage",
}
"""Activities that go again when it is not known whether they were carried out: twice does no harm."""

REACTION_SECONDS = 2.0
"""An injection that is neither refused nor said by then is taken for accepted: no answer at all is documented
too, and the message would be said twice (Voice Agent reference §4.1)."""

AGAIN_SECONDS = 0.5
GIVE_UP_SECONDS = 5.0
"""How long a refused injection is tried again, once the agent has finished its turn."""

STORED_SECONDS = 2.0
LONGEST_SECONDS = 30.0
INJECTIONS = 64

ROLES = {"inject_agent": "assistant", "inject_user": "user"}


class Injections:
    """Messages put into the agent's or the caller's mouth, one after the other.

    The agent may refuse one because somebody is speaking, and does not say which (SDK reference D1). So the next
    one waits until this one is said, or was refused for as long as it is tried; that becomes a `warning` event.
    """

    def __init__(self, conversation: Conversation) -> None:
        self._c = conversation
        self._waiting: deque[tuple[str, str]] = deque()
        self._current: tuple[str, str] | None = None
        self._outcome: asyncio.Future[Literal["said", "refused", "lost"]] | None = None

    @property
    def busy(self) -> bool:
        """Whether something is still to be said."""
        return self._current is not None

    def put(self, verb: str, text: str) -> None:
        """Have `inject_agent` or `inject_user` sent behind those that wait."""
        if len(self._waiting) >= INJECTIONS:
            return self._give_up("too many of them wait")
        self._waiting.append((verb, text))
        if self._current is None:
            self._current = self._waiting.popleft()
            self._c.tasks.create_task(self._work(self._current))

    def sent(self, verb: str, text: str) -> None:
        """The agent was sent this already, before all others; should it refuse it, it is tried again."""
        if self._current is None:
            self._outcome = self._c.loop.create_future()
            self._current = verb, text
            self._c.tasks.create_task(self._work(self._current, sent=True))

    def said(self, role: str, content: str) -> bool:
        """A text of the conversation, redacted; whether it is what was injected. The agent repeats that, its own maybe
        sentence by sentence."""
        if self._current is None or not content.strip():
            return False
        verb, text = self._current
        text, content = self._c.redacted(text).strip(), content.strip()
        ours = ROLES[verb] == role and (text == content or (role == "assistant" and text.startswith(content)))
        if ours:
            self._came("said")
        return ours

    def refused(self) -> None:
        """The agent refuses what was sent last."""
        if not self._came("refused"):
            self._give_up("it was refused too late to be known again")

    def lost(self) -> None:
        """The agent is gone: what it has not said goes to the next one."""
        self._came("lost")

    def _came(self, outcome: Literal["said", "refused", "lost"]) -> bool:
        if self._outcome is None or self._outcome.done():
            return False
        self._outcome.set_result(outcome)
        return True

    async def _work(self, first: tuple[str, str], *, sent: bool = False) -> None:
        self._current = first
        while self._current is not None:
            await self._inject(*self._current, sent=sent)
            sent = False
            self._current = self._waiting.popleft() if self._waiting else None
        self._c.progress()

    async def _inject(self, verb: str, text: str, *, sent: bool) -> None:
        c = self._c
        last = c.loop.time() + LONGEST_SECONDS
        until: float | None = None
        while (agent := await c.agent.ready_connection()) is not None:
            if not sent or self._outcome is None:
                self._outcome = c.loop.create_future()
                agent.say(getattr(agent.machine, verb)(text))
            sent = False
            try:
                async with asyncio.timeout(REACTION_SECONDS):
                    outcome = await self._outcome
            except TimeoutError:
                return
            if outcome == "said":
                return
            now = c.loop.time()
            if until is None or c.speech.speaking:
                until = min(now + GIVE_UP_SECONDS, last)
            if outcome == "refused" and now + AGAIN_SECONDS > until:
                return self._give_up("it was refused for as long as it was tried")
            await asyncio.sleep(AGAIN_SECONDS)
        log.info("dropped: the call is over", cid=c.cid, command=verb)

    def _give_up(self, why: str) -> None:
        description = f"The agent did not take an injected message: {why}"
        event = WarningEvent(self._c.session.session_id, code="INJECTION_REFUSED", description=description)
        self._c.event("warning", event)


class Commands:
    """The control of one conversation (`bridge_worker.session.Control`).

    How the call is left is written into its record (`leaving`) when that begins, and taken out when it fails.
    """

    def __init__(self, conversation: Conversation) -> None:
        self._c = conversation
        self.loop = conversation.loop
        self._intended = Leave.of(conversation.record.leaving)
        """How the call is being left; at first, as a former owner was asked."""
        conversation.parting = self._intended is not None
        self._leaving: asyncio.Task[None] | None = None
        self._preparing = False
        """A transfer whose `before_transfer` handlers have not returned yet."""
        self._unwritten: dict[str, Any] = {}
        self._writing: asyncio.Task[None] | None = None
        self._refused = False
        """What was written last was refused: the call has ended, or is another worker's."""

    async def agent_command(self, verb: str, *arguments: Any) -> None:
        """Send the agent a message; while it is being reached, wait for it or for the end of the call.

        Cancelling it before the agent is ready sends nothing, unless it is an injection.
        """
        c = self._c
        if verb in ROLES and not c.over:
            c.injections.put(verb, *arguments)
        elif c.over or (agent := await c.agent.ready_connection()) is None:
            log.info("dropped: the call is over", cid=c.cid, command=verb)
        else:
            try:
                agent.say(getattr(agent.machine, verb)(*arguments))
            except LocalProtocolError as error:
                log.info("dropped: the agent does not take it", cid=c.cid, command=verb, why=str(error))
            else:
                if verb.startswith("update_"):
                    c.agent.amendments.asked(verb.removeprefix("update_"), *arguments)

    async def respond(self, call_id: str, name: str, content: str) -> None:
        """Answer a function call of the agent (`FunctionCalls.respond`)."""
        if self._c.over:
            log.info("dropped: the call is over", cid=self._c.cid, command="respond")
        else:
            await self._c.functions.respond(call_id, name, content)

    def idempotency_key(self, call: FunctionCall) -> str:
        """See `Session.idempotency_key`. From any thread."""
        return self._c.functions.key(call)

    def turn_timings(self) -> list[TurnTiming]:
        """See `Session.turn_timings`. From any thread."""
        return list(self._c.timings.turns)

    async def activities(self, activities: list[dict[str, Any]]) -> None:
        """Send activities to VAIC in one envelope. Raises ValueError for what cannot be sent."""
        sendable(activities)
        repeatable = all(activity.get("name") in REPEATABLE for activity in activities)
        self._c.caller.activities(activities, repeatable=repeatable)

    async def hang_up(self, reason: str | None) -> None:
        """Hang up after the last words; returns when the call is over. Cancelling it only stops the waiting."""
        await self.leave(Leave.hang_up(reason))

    async def transfer(self, parameters: dict[str, Any], summary: str) -> None:
        """Store what the next one should know, let the application do the same elsewhere, and transfer after the last
        words; returns when the call is over, or when the transfer has failed. Cancelling it only stops the waiting."""
        await self.leave(Leave.transfer(self._c.cid, parameters, summary))

    async def over(self) -> None:
        """Wait until the call is over and its `session_end` handlers have run."""
        await self._c.closed.wait()

    # ── how the call is left ───────────────────────────────────────────────────────────────────────────

    async def leave(self, leave: Leave) -> None:
        """Leave the call, or wait for whoever does that already: until it is over, or a transfer has failed. A hang-up
        is tried again behind a transfer that failed. Cancelling it only stops the waiting."""
        c = self._c
        while not c.over:
            self.intend(leave)
            leaving = self._leaving
            assert leaving is not None
            await asyncio.wait([leaving])
            if leave.transfers and leaving is self._leaving:
                break
        if c.over:
            await c.closed.wait()

    def intend(self, leave: Leave) -> None:
        """Begin to leave the call, unless that has begun. A hang-up goes before a transfer that is being prepared."""
        if self._c.over:
            return
        if self._leaving is not None and not self._leaving.done():
            if leave.transfers:
                return
            if not self._preparing:
                return self._otherwise(leave)
            self._leaving.cancel()
        self._begin(leave)

    def _otherwise(self, leave: Leave) -> None:
        now = self._intended
        if now is not None and now.transfers and now.otherwise is None:
            now.otherwise = leave
            self._note({"leaving": now.stored()})

    def leaves_by(self, leave: Leave) -> bool:
        """This is how the call is being left already."""
        return self._intended is not None and self._intended.activity == leave.activity

    async def leave_as_asked(self) -> None:
        """Do what a former owner was asked for and died before it was done, if anything. Returns when there is nothing,
        or when it has failed. Cancelling it only stops the waiting."""
        if self._intended is not None and self._leaving is None:
            log.info("left as a former owner was asked", cid=self._c.cid, reason=self._intended.reason)
            self._begin(self._intended)
        while self._leaving is not None and not self._leaving.done():
            await asyncio.wait([self._leaving])

    async def noted(self) -> bool:
        """Wait, for a while, until how the call is left is in its record; False if that is not ours to write any more.
        A Redis that is away keeps nobody from leaving; it is written when it is back. Safe to cancel."""
        if self._writing is not None:
            _, waiting = await asyncio.wait([self._writing], timeout=STORED_SECONDS)
            if waiting:
                log.warning("how the call is left is not stored yet: Redis does not answer", cid=self._c.cid)
        return not self._refused

    @property
    def handoff(self) -> dict[str, Any] | None:
        """What the next one should know, if it is not known to be in the call's record."""
        waits = self._refused or self._unwritten or (self._writing is not None and not self._writing.done())
        return self._c.kept.get("handoff") if waits else None

    def _begin(self, leave: Leave) -> None:
        c = self._c
        self._intended, c.parting, self._preparing = leave, True, leave.transfers
        fields: dict[str, Any] = {"leaving": leave.stored()}
        if leave.transfers and not leave.told:
            fields["handoff"] = {
                "target": leave.detail,
                "reason": leave.why,
                "summary": leave.summary,
                "after": c.lines.last,
            }
        self._note(fields)
        self._leaving = c.tasks.create_task(self._part(leave))

    async def _part(self, leave: Leave) -> None:
        """Prepare a transfer, let the last words be heard, tell VAIC, wait for its `session.end` (Bot API reference §4,
        §7.5)."""
        c, settings = self._c, self._c.worker.settings
        if leave.transfers and not leave.told:
            await self.noted()
            event = BeforeTransferEvent(c.session.session_id, leave.detail, leave.why, leave.summary)
            seconds = settings.before_transfer_timeout
            await c.hosted.handlers.ask(c.session, "before_transfer", event, seconds=seconds)
            leave.told = True
            self._note({"leaving": leave.stored()})
        self._preparing = False
        await c.played_out(settings.last_words_seconds)
        if c.over:
            return
        c.caller.transfer_failed.clear()
        c.leaving = True
        c.caller.activities([leave.activity], repeatable=True)
        patience = settings.transfer_wait_seconds if leave.transfers else settings.hangup_wait_seconds
        await c.within(patience, lambda: c.over or c.caller.peer_ended.is_set() or c.caller.transfer_failed.is_set())
        if c.caller.transfer_failed.is_set() and not c.caller.peer_ended.is_set():
            c.leaving = False
            if leave.otherwise is not None:
                return self._begin(leave.otherwise)
            self._intended, c.parting = None, False
            self._note({"leaving": None})
            log.info("transfer failed, the call goes on", cid=c.cid)
        else:
            c.end(leave.reason, leave.detail)

    def _note(self, fields: dict[str, Any]) -> None:
        """Write fields of the call's record, None deletes one: again and again until Redis has them."""
        c = self._c
        self._unwritten |= fields
        c.kept |= fields
        for name in [name for name, value in c.kept.items() if value is None]:
            del c.kept[name]
        if self._writing is None or self._writing.done():
            self._writing = c.tasks.create_task(self._write())

    async def _write(self) -> None:
        c = self._c
        while self._unwritten:
            fields, self._unwritten = self._unwritten, {}
            try:
                self._refused = not await c.worker.calls.amend(c.cid, we=c.we, fields=fields)
            except BridgeError as error:
                self._unwritten = fields | self._unwritten
                log.debug("how the call is left waits for Redis", cid=c.cid, error=str(error))
                await asyncio.sleep(AGAIN_SECONDS)
