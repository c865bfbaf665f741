"""The agent's side of one call: an agent on the line from the first to the last, whatever becomes of its connections.

A connection that breaks, stalls or becomes too old is replaced by one that knows the conversation so far; what the
caller says meanwhile is kept for it. What the agent's events do is in `agent_events`.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from bridge_shared import logs, metrics
from bridge_shared.errors import AgentFailed, BridgeError, Fenced
from bridge_shared.protocol import deepgram as dg
from bridge_shared.types.audiocodes import BridgeErrorEvent
from bridge_worker import agent_settings
from bridge_worker.agent import Agent, count
from bridge_worker.agent_settings import Amendments
from bridge_worker.microphone import Microphone
from bridge_worker.redial import LONGEST_BACKOFF, open_agent, tries_for
from bridge_worker.session import SessionState
from bridge_worker.watchdog import AnswerWatch

if TYPE_CHECKING:
    from bridge_worker.conversation import Conversation

log = logs.get("worker.conversation")

SETTLED_SECONDS = 60.0
"""A connection that lasted this long shows that the agent works: the budget is whole again."""

REPLAY_SECONDS = 0.5
"""For the edge to say, at a takeover, whether the caller is speaking."""

WELCOMED_SECONDS = 7.0
"""How long a connection without its Settings is kept: Deepgram lets it wait a little longer."""

LEAD_IN_MS = 200
"""The edge says again so much of what came before; more than that is an utterance."""

UTTERANCE_SECONDS = 60.0
"""A caller who began to speak is waited for this long; what is not a word by then was a noise."""

KEEP_AGAIN_SECONDS = 0.25
TOLD_SECONDS = 0.8
"""For a refusal to reach the edge before its own patience ends."""


class AgentSide:
    """Keeps an agent on the line of one conversation.

    Args:
        conversation: whose agent it is.
        prepared: for a call that was taken over, a connection that waits for its settings already.

    Attributes:
        connection: the present one; None while there is none that takes messages.
        ready: nobody need wait for the agent: it takes messages now, or the call is over.
    """

    def __init__(self, conversation: Conversation, prepared: Agent | None) -> None:
        self._c = conversation
        self._loop, self._worker = conversation.loop, conversation.worker
        self._cid, self._media = conversation.cid, conversation.media
        self._prepared = prepared
        self.connection: Agent | None = None
        self.ready = asyncio.Event()
        self.answers = AnswerWatch(self._worker.settings.agent_stall_seconds)
        kept = (conversation.record.settings or {}).get("amended", ())
        self.amendments = Amendments(conversation.hosted.config.deepgram_config or {}, kept)
        self._microphone = Microphone(self._media, self._loop.time())

    async def run(self) -> None:
        """Reach the agent, accept the call, and keep an agent on the line until the call ends, or cannot go on.
        Cancelling it closes the connection."""
        try:
            agent = await (self._take_over() if self._c.accepted else self._begin())
            failures = 0
            while True:
                began = self._loop.time()
                failure = await self._listen(agent)
                if self._prepared is not None:
                    failures = 0
                    agent = await self._replace_agent(None)
                    self._c.events.renewed()
                    continue
                count(failure)
                failures = 1 if self._loop.time() - began > SETTLED_SECONDS else failures + 1
                if failures > tries_for(failure):
                    raise failure
                metrics.agent_reconnects.inc()
                log.warning("agent lost, connecting again", cid=self._cid, code=failure.code, tries=failures)
                self._gone()
                agent = await self._replace_agent(failure, failures)
                self._c.events.reconnected(failure)
        except AgentFailed as failure:
            self._failed(failure)
        except Fenced:
            self._c.fenced()
        except Exception as error:
            log.exception("the agent's side failed", cid=self._cid)
            description = f"The bridge failed ({type(error).__name__}: {error})"
            self._failed(AgentFailed("reader_error", description, retryable=False, cause=error))

    @property
    def busy(self) -> bool:
        """The agent waits for something of ours: a function's answer, or amended settings that it is to confirm."""
        calling = self.answers.calling or (self.connection is not None and self.connection.machine.calling)
        return calling or bool(self.amendments.waiting)

    async def ready_connection(self) -> Agent | None:
        """The agent as soon as it takes messages; None when the call is over. Cancelling it changes nothing."""
        await self.ready.wait()
        return self.connection

    def hear(self, audio: bytes) -> None:
        """Audio of the caller: for the agent or, the newest two seconds of it, for the next one."""
        if dropped_ms := self._microphone.audio(audio):
            where = "no_agent" if self.connection is None else "caller_late"
            metrics.audio_dropped_ms.labels(where=where).inc(dropped_ms)
        self.feed(self._loop.time())

    def stream(self, is_open: bool) -> None:
        """The caller's stream was opened or closed: while it is closed the agent hears silence."""
        self._microphone.stream(is_open)

    def feed(self, now: float) -> None:
        """Give the agent what it is to hear now."""
        if self.connection is not None:
            for audio in self._microphone.due(now):
                self.connection.hear(audio)

    def confirmed(self, kind: str) -> None:
        """The agent confirms the oldest amendment of this kind: later connections begin with it."""
        if self.amendments.confirmed(kind):
            self._c.tasks.create_task(self._keep_amendments())

    async def _keep_amendments(self) -> None:
        """They go with the call to its next owner: written again and again until Redis has the newest."""
        while True:
            fields = {"settings": {"amended": self.amendments.to_keep()}}
            self._c.kept |= fields
            try:
                await self._worker.calls.amend(self._cid, we=self._c.we, fields=fields)
            except BridgeError as error:
                log.debug("amended settings wait for Redis", cid=self._cid, error=str(error))
                await asyncio.sleep(KEEP_AGAIN_SECONDS)
                continue
            if fields["settings"]["amended"] == self.amendments.to_keep():
                return

    async def close(self) -> None:
        """Close what was prepared and never used. Cancelling it breaks the connection off."""
        if self._prepared is not None:
            await self._prepared.close()

    # ── inside ─────────────────────────────────────────────────────────────────────────────────────────

    async def _begin(self) -> Agent:
        """Reach the agent of a new call, and accept it."""
        # the edge counts as well, and gives up without a word of why
        patience = self._worker.settings.accept_timeout
        agent = await self._open(None, max(patience - TOLD_SECONDS, patience / 2))
        try:
            await self._c.accept()
        except BaseException:
            await agent.close()
            raise
        return agent

    async def _take_over(self) -> Agent:
        """Reach a new agent for a call that another worker had."""
        if self._c.why == "worker_lost":
            metrics.takeovers.inc()
        log.info("call taken over", cid=self._cid, session_id=self._c.session.session_id, why=self._c.why)
        self._c.session._state = SessionState.ACTIVE
        self._c.active_at = self._loop.time() - _seconds_since(self._c.record.active_at)
        self._c.events.taken_over(self._c.why)
        await self._c.control.leave_as_asked()  # what was accepted comes before any more talk
        await self._c.within(REPLAY_SECONDS, lambda: self._c.caller.replay is not None or self._c.over)
        if self._c.why == "worker_lost" and self._c.caller.replay is not None:
            self._c.events.owner_lost()
        agent = await self._replace_agent(None, replay=self._c.caller.replay)
        metrics.takeover_seconds.labels(why=self._c.why).observe(self._loop.time() - self._c.claimed_at)
        return agent

    async def _replace_agent(
        self, failure: AgentFailed | None, failures: int = 0, replay: int | str | None = None
    ) -> Agent:
        """A new agent that goes on with the conversation, and the right party speaking next (`recovery.py`).

        Args:
            replay: what the edge says about the caller at a takeover.
        """
        if replay is None and self._loop.time() - self._c.caller_spoke_at < UTTERANCE_SECONDS:
            replay = "ask"  # only the lost agent heard how the caller began
            self._c.caller_spoke_at = -math.inf
        in_utterance = replay == "ask" or (isinstance(replay, int) and replay > LEAD_IN_MS)
        recovery, waiting = self._c.events.recover(caller_speaks=in_utterance)
        history = list(recovery.history)
        agent, self._prepared = self._prepared, None
        if agent is not None:
            try:
                message = self._settings(history)
                with self._traced("", prepared=True):
                    await agent.apply(message, seconds=self._worker.settings.agent_open_timeout)
                self._tell_connected(agent)
            except AgentFailed as again:
                count(again)
                agent, failure = None, again
        if agent is None:
            agent = await self._open(history, self._worker.settings.lost_seconds, failure, failures)
        self._c.functions.resume(waiting)
        if replay == "ask":
            self._inject(agent, "inject_agent", self._worker.settings.ask_again)
        elif recovery.caller_says:
            self._inject(agent, "inject_user", recovery.caller_says)
        elif recovery.agent_says:
            self._inject(agent, "inject_agent", recovery.agent_says)
        return agent

    def _inject(self, agent: Agent, verb: str, text: str) -> None:
        """Before anything of the caller, and again if it is refused."""
        agent.say(getattr(agent.machine, verb)(text))
        self._c.injections.sent(verb, text)

    async def _open(
        self, history: list[dict[str, Any]] | None, seconds: float, after: AgentFailed | None = None, failures: int = 0
    ) -> Agent:
        message = self._settings(history)
        with self._traced(after.code if after is not None else ""):
            agent = await open_agent(
                self._worker, self._c.hosted, self._media, message, seconds=seconds, after=after, failures=failures
            )
        self._tell_connected(agent)
        return agent

    def _settings(self, history: list[dict[str, Any]] | None) -> dict[str, Any]:
        return agent_settings.build(self.amendments.settings, self._media, self._c.play, history=history)

    def _tell_connected(self, agent: Agent) -> None:
        log.info("agent connected", cid=self._cid, request_id=agent.machine.request_id)

    @contextlib.contextmanager
    def _traced(self, after: str, *, prepared: bool = False) -> Iterator[None]:
        span = self._c.span.child("agent connect", after=after, prepared=prepared)
        try:
            yield
            span.end()
        except AgentFailed as failure:
            span.end(error=failure.code)
            raise
        finally:
            span.end(cut_off=True)

    async def _roll_over(self, agent: Agent) -> None:
        """Replace a connection that has become old, before Deepgram ends it at two hours (Voice Agent reference §5.3).
        The next one is opened first, and the two change places when nobody speaks."""
        settings = self._worker.settings
        await asyncio.sleep(settings.agent_session_seconds)
        while self.connection is agent:
            with contextlib.suppress(AgentFailed):  # there is time; and the loss of the old one is repaired as any
                following = await self._worker.reach(self._c.hosted, self._media, settings.agent_open_timeout)
                try:
                    quiet = await self._c.until_quiet(WELCOMED_SECONDS) and self.connection is agent
                except asyncio.CancelledError:
                    await following.close()
                    raise
                if quiet:
                    self._prepared = following
                    self.connection = None  # what the caller says now waits for the next one
                    self.ready.clear()
                    return await agent.close()
                await following.close()
            await asyncio.sleep(LONGEST_BACKOFF)

    async def _listen(self, agent: Agent) -> AgentFailed:
        """Serve one agent connection until it is lost; returns why."""
        self.connection = agent
        self._microphone.connected(self._loop.time())
        self.feed(self._loop.time())
        for kind, value in self.amendments.waiting:  # unconfirmed when the former connection broke
            agent.say(getattr(agent.machine, f"update_{kind}")(value))
        self.ready.set()
        self.answers.connected()
        writer = self._c.tasks.create_task(agent.write())
        roll_over = self._c.tasks.create_task(self._roll_over(agent))
        watch = self._c.tasks.create_task(agent.watch(self.answers))
        try:
            await agent.listen(self._heard)
        except AgentFailed as failure:
            self._c.tasks.create_task(agent.close())  # a peer that does not answer must not delay the next one
            return failure
        except BaseException:
            await agent.close()
            raise
        finally:
            if not self._c.over:
                self.ready.clear()
            self.connection = None
            writer.cancel()
            roll_over.cancel()
            watch.cancel()
            self._c.injections.lost()
            self._c.functions.agent_lost()
            if agent.unsent:
                log.info("messages to the agent went with its connection", cid=self._cid, messages=agent.unsent)

    def _heard(self, event: dg.AgentEvent) -> None:
        self.answers.saw(event, self._loop.time())
        self._c.events.happened(event)
        self._c.caller.pump()
        self._c.progress()

    def _gone(self) -> None:
        """No more of the turn will come: what is with the edge is played out, and the turn ends there."""
        self._c.events.agent_gone()
        self._c.speech.done(self._loop.time(), announce=False)
        self._c.caller.pump()

    def _failed(self, failure: AgentFailed) -> None:
        log.error("agent failed for good", cid=self._cid, code=failure.code, description=failure.description)
        event = BridgeErrorEvent(
            session_id=self._c.session.session_id,
            description=failure.description,
            code=failure.code,
            cause=failure.cause,
            recoverable=False,
        )
        self._c.agent_lane.put("error", event)
        self._c.end("error", f"{failure.code}: {failure.description}")


def _seconds_since(moment: str) -> float:
    """Seconds from an ISO 8601 moment to now, by the wall clock; 0 if there is none."""
    if not moment:
        return 0.0
    return max(0.0, (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds())
