"""One call at its owner: the agent on one side, the link to the caller's edge on the other, handlers beside.

    edge ── link ──> microphone ──> agent
    edge <── link <── speech <───── agent ──> transcript, handlers

The life of a conversation is `run`: reach the agent, accept, talk until something ends the call, end it in
Redis (the first reason stands), run the `session_end` handlers. A conversation that learns that another
worker owns the call now stops without a word: no end, no handlers, no "final" writes.

Two neighbours keep this file to that story: `agent_events` says what each event of the agent does, and
`commands` what the customer's handlers can ask for.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import orjson

from bridge_shared import logs, metrics
from bridge_shared.errors import AgentFailed, BridgeError, Fenced, RedisUnavailable
from bridge_shared.frames import Frame, Kind
from bridge_shared.link import Delivery, Link, LinkEvent, LinkFull, PeerChanged, Reread, Side
from bridge_shared.protocol import deepgram as dg
from bridge_shared.protocol.media import media
from bridge_shared.redis.calls import CallKeys, Claimed, Ended, Line
from bridge_shared.redis.transcripts import Entry, FencedStream
from bridge_shared.types.audiocodes import (
    AudioCodesActivity,
    BridgeErrorEvent,
    InboundActivityEvent,
    SessionEndEvent,
    SessionEndReason,
    SessionStartEvent,
)
from bridge_worker import agent_settings
from bridge_worker.agent import Agent
from bridge_worker.agent_events import AgentEvents
from bridge_worker.commands import Commands, Injections
from bridge_worker.function_calls import FunctionCalls
from bridge_worker.microphone import Microphone
from bridge_worker.session import SessionState
from bridge_worker.speech import LineHeard, Speech, Turn, TurnOver
from bridge_worker.watchdog import AnswerWatch

if TYPE_CHECKING:
    from bridge_worker.worker import Hosted, Worker

T = TypeVar("T")
Why = Literal["worker_lost", "handover"]
"""How a call came to another worker."""

log = logs.get("worker.conversation")

RECONNECTS = 4
"""Agent connections that may fail in a row before the call is given up."""

SETTLED_SECONDS = 60.0
"""A connection that lasted this long shows that the agent works: the budget is whole again."""

FIRST_BACKOFF, LONGEST_BACKOFF = 0.2, 2.0
LANES_SECONDS = 2.0
LINES_SECONDS = 5.0
LAST_FRAMES_SECONDS = 2.0
REPLAY_SECONDS = 0.5
"""For the edge to say, at a takeover, whether the caller is speaking."""

WELCOMED_SECONDS = 7.0
"""How long a connection without its Settings is kept: Deepgram lets it wait a little longer."""

QUIET_LOOK_SECONDS = 0.05
LEAD_IN_MS = 200
"""The edge says again so much of what came before; more than that is an utterance."""

UTTERANCE_SECONDS = 60.0
"""A caller who began to speak is waited for this long; what is not a word by then was a noise."""

GREETING_SECONDS = 5.0
"""An agent that has said nothing yet may be about to greet."""

UNHEARD_SECONDS = 2.0
TOLD_SECONDS = 0.8
"""For a refusal to reach the edge before its own patience ends."""

END_TRIES_SECONDS = 30.0
SILENT_SECONDS = 2.0
"""An edge that says nothing for so long may have died, and the caller's socket with it."""

TIMER_GRAIN = 0.0005
"""uvloop rounds to milliseconds, and a timer that fires early would fire again at once."""

VAIC_BEHIND_SECONDS = 0.5
"""VAIC plays what it gets a network's delay later than our clock says; by then its `playFinished` is here, too."""

OURS = {"connect_failed", "connection_closed", "disconnected", "agent_stalled", "reader_error"}
"""Codes of failures that Deepgram has no code for."""


@dataclass(frozen=True, slots=True)
class Ending:
    """Why a call ends: one of the SDK's four reasons, and a word or sentence more."""

    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Past:
    """What happened in a call under former owners: what was said, and the records of its function calls."""

    said: Sequence[Line] = ()
    called: Sequence[Entry] = ()


NOTHING = Past()


class _Over(Exception):
    """Stops whatever a conversation still does when it has ended."""


class Conversation:
    """Serves one claimed call.

    Args:
        worker: the pod.
        hosted: the bridge whose configuration and handlers apply.
        claimed: what the claim returned; its epoch is this conversation's.
        past: what happened under former owners. A call that is active already is taken over: its agent is
            replaced, and nobody is greeted.
        why: how such a call came here.
        agent: for such a call, one that waits for its settings already.
    """

    def __init__(
        self,
        worker: Worker,
        hosted: Hosted,
        claimed: Claimed,
        past: Past = NOTHING,
        *,
        why: Why = "worker_lost",
        agent: Agent | None = None,
    ) -> None:
        record = claimed.record
        self.cid = record.cid
        self.we = claimed.we
        self.worker = worker
        self.loop = worker.loop
        self.hosted = hosted
        self.record = record
        self.media = media(record.media_format)
        self.speech = Speech(claimed.we, self.media)
        self.lines = FencedStream(
            worker.state,
            CallKeys.of(self.cid).transcript,
            claimed.we,
            history=[(line.id, line.fields) for line in past.said],
            on_fenced=self.fenced,
        )
        self.functions = FunctionCalls(self, past.called)
        self._why: Why = why
        self._prepared = agent
        self.agent: Agent | None = None
        self.ready = asyncio.Event()
        """Nobody need wait for the agent: it takes messages now, or the call is over."""
        self.caller_spoke_at = -math.inf
        """When the caller began to speak, as long as it is not known what was said."""
        self.peer_ended = asyncio.Event()
        """VAIC has sent `session.end`."""
        self.transfer_failed: asyncio.Event = asyncio.Event()
        self.closed = asyncio.Event()
        """The call has ended and its `session_end` handlers have run."""
        self.accepted = record.state == "active"
        self.parting = False
        """Somebody has asked for the end or a transfer; first the last words are heard."""
        self.leaving = False
        """VAIC was asked to hang up or to transfer, and `session.end` is the answer to that."""

        self.session = hosted.session(self.cid)
        self.session._begin(record.session_id, self.cid, self.media.token, Commands(self))
        self.telephony = hosted.handlers.lane(self.session)
        self.agent_lane = hosted.handlers.lane(self.session)

        now = self.loop.time()
        self._microphone = Microphone(self.media, now)
        self._link = Link(
            Side.WORKER, self.cid, worker.pod, epoch=claimed.we, now=now, peer_pod=claimed.edge, peer_epoch=claimed.ee
        )
        self.injections = Injections(self)
        self._events = AgentEvents(self, past.said)
        self._answers = AnswerWatch(worker.settings.agent_stall_seconds)
        self._over: asyncio.Future[Ending | None] = self.loop.create_future()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._mids = 0
        self._rereading = False
        self._lost: asyncio.TimerHandle | None = None
        self._lost_by_silence = False
        self._heard_at = now
        self._progress = asyncio.Event()
        self._active_at = 0.0
        self._turn_over_at = self._play_finished_at = -math.inf
        self._settings: Mapping[str, Any] = hosted.config.deepgram_config or {}
        """The agent's, as the application has amended them in this call."""
        for kind, value in (record.settings or {}).get("amended", ()):
            self._settings = agent_settings.amended(self._settings, kind, value)
        self._amended: list[tuple[str, Any]] = list((record.settings or {}).get("amended", ()))
        self._unheard: deque[bytes] = deque()
        """Caller audio that waits for a new agent, the newest two seconds."""
        self._unheard_bytes = 0
        self._replay: int | str | None = None
        """What the edge says about the caller at a takeover: milliseconds of an utterance that go again, or "ask"."""
        self._asked: deque[tuple[str, Any]] = deque()
        """Amendments that the agent has not confirmed."""

    async def run(self) -> None:
        """Serve the call to its end. Cancelling it drops the call without ending it: another worker may take it."""
        self._link.open(self.loop.time(), "claimed")
        self.pump()
        try:
            async with asyncio.TaskGroup() as tasks:
                self.tasks = tasks
                tasks.create_task(self.lines.run())
                tasks.create_task(self.functions.run())
                talk = tasks.create_task(self._talk())
                ending = await self._over
                talk.cancel()
                self.ready.set()
                if ending is not None:
                    await self._end(ending)
                    self._closed()
                    await self.within(LAST_FRAMES_SECONDS, lambda: self._link.settled)
                raise _Over
        except* _Over:
            pass
        finally:
            for timer in (self._timer, self._lost):
                if timer is not None:
                    timer.cancel()
            if not self._over.done():
                self._over.cancel()
            if self._prepared is not None:
                await self._prepared.close()
            self._closed()

    def end(self, reason: str, detail: str = "") -> None:
        """Something ends the call. The first reason stands."""
        if not self._over.done():
            self._over.set_result(Ending(reason, detail))
            self.progress()

    @property
    def over(self) -> bool:
        """The end has begun."""
        return self._over.done()

    @property
    def attachment(self) -> tuple[str, int]:
        """The edge that has the caller, and its epoch."""
        return self._link.peer_pod, self._link.peer_epoch

    @property
    def quiet(self) -> bool:
        """Nobody speaks or is about to, and nothing is half done: the call can change hands unheard."""
        now, last = self.loop.time(), next(reversed(self.lines.lines), None)
        return (
            self.accepted
            and self.agent is not None
            and now - self.caller_spoke_at > UTTERANCE_SECONDS
            and not (self.speech.speaking or self.injections.busy or self.parting or self._asked)
            and not (self.agent.machine.calling or self._answers.calling)
            and (last[1]["role"] != "user" if last is not None else now - self._active_at > GREETING_SECONDS)
            and not (self.telephony.busy or self.agent_lane.busy)
            and self._link.settled
        )

    async def stored(self, seconds: float) -> bool:
        """Wait, at most so long each, until the transcript and the function calls are in Redis. Safe to cancel."""
        return await self.lines.flush(seconds) and await self.functions.flush(seconds)

    def look(self) -> None:
        """Another worker says that it has the call: ask Redis."""
        self._happened([Reread("taken")])

    def shut_down(self) -> None:
        """The pod ends and nobody takes the call: hang up, and end it."""
        self.end("ended", "shutdown")

    def _closed(self) -> None:
        self.ready.set()
        self.telephony.close()
        self.agent_lane.close()
        self.session._state = SessionState.ENDED
        if not self.closed.is_set():
            metrics.audio_dropped_ms.labels(where="agent_ahead").inc(self.speech.dropped_ms)
        self.closed.set()

    # ── the agent ──────────────────────────────────────────────────────────────────────────────────────

    async def _talk(self) -> None:
        """Reach the agent, accept the call, and keep an agent on the line until the call ends."""
        try:
            agent = await (self._take_over() if self.accepted else self._begin())
            failures = 0
            while True:
                began = self.loop.time()
                failure = await self._listen(agent)
                if self._prepared is not None:
                    failures = 0
                    agent = await self._replace_agent(None)
                    self._events.renewed()
                    continue
                metrics.agent_errors.labels(code=failure.code).inc()
                failures = 1 if self.loop.time() - began > SETTLED_SECONDS else failures + 1
                if failures > _tries(failure):
                    raise failure
                metrics.agent_reconnects.inc()
                log.warning("agent lost, connecting again", cid=self.cid, code=failure.code, tries=failures)
                self._agent_gone()
                agent = await self._replace_agent(failure, failures)
                self._events.reconnected(failure)
        except AgentFailed as failure:
            self._agent_failed(failure)
        except Fenced:
            self.fenced()
        except Exception as error:
            log.exception("the agent's side failed", cid=self.cid)
            description = f"The bridge failed ({type(error).__name__}: {error})"
            self._agent_failed(AgentFailed("reader_error", description, retryable=False, cause=error))

    async def _begin(self) -> Agent:
        """Reach the agent of a new call, and accept it."""
        # the edge counts as well, and gives up without a word of why
        patience = self.worker.settings.accept_timeout
        agent = await self._open(None, max(patience - TOLD_SECONDS, patience / 2))
        try:
            await self._accept()
        except BaseException:
            await agent.close()
            raise
        return agent

    async def _take_over(self) -> Agent:
        """Reach a new agent for a call that another worker had."""
        if self._why == "worker_lost":
            metrics.takeovers.inc()
        log.info("call taken over", cid=self.cid, session_id=self.session.session_id, why=self._why)
        self.session._state = SessionState.ACTIVE
        self._active_at = self.loop.time() - _seconds_since(self.record.active_at)
        self._events.taken_over(self._why)
        await self.within(REPLAY_SECONDS, lambda: self._replay is not None or self.over)
        return await self._replace_agent(None, replay=self._replay)

    async def _replace_agent(
        self, failure: AgentFailed | None, failures: int = 0, replay: int | str | None = None
    ) -> Agent:
        """A new agent that goes on with the conversation, and the right party speaking next (DESIGN §7).

        Args:
            replay: what the edge says about the caller at a takeover.
        """
        in_utterance = replay == "ask" or (isinstance(replay, int) and replay > LEAD_IN_MS)
        recovery, waiting = self._events.recover(caller_speaks=in_utterance)
        history = list(recovery.history)
        agent, self._prepared = self._prepared, None
        if agent is not None:
            try:
                message = agent_settings.build(self._settings, self.media, history=history)
                await agent.apply(message, seconds=self.worker.settings.agent_open_timeout)
            except AgentFailed as again:
                metrics.agent_errors.labels(code=again.code).inc()
                agent, failure = None, again
        if agent is None:
            agent = await self._open(history, self.worker.settings.lost_seconds, after=failure, failures=failures)
        self.functions.resume(waiting)
        if replay == "ask":
            agent.say(agent.machine.inject_agent(self.worker.settings.ask_again))
        elif recovery.caller_says:
            agent.say(agent.machine.inject_user(recovery.caller_says))
        elif recovery.agent_says:
            agent.say(agent.machine.inject_agent(recovery.agent_says))
        return agent

    async def _open(
        self, history: list[dict[str, Any]] | None, seconds: float, after: AgentFailed | None = None, failures: int = 0
    ) -> Agent:
        """Connect, trying again within `seconds` as long as that may help; so many connections in a row were lost
        before, the last one by `after`."""
        settings = self.worker.settings
        message = agent_settings.build(self._settings, self.media, history=history)
        key = self.hosted.key(settings)
        deadline = self.loop.time() + seconds
        pause, failure, tries = min(FIRST_BACKOFF * 2 ** max(0, failures - 1), LONGEST_BACKOFF), after, 0
        while True:
            at_once = failure is None or (dg.retry_for(failure.code) is dg.Retry.AT_ONCE and failures + tries <= 1)
            if not at_once:
                await asyncio.sleep(min(pause * random.uniform(0.5, 1.0), deadline - self.loop.time()))
                pause = min(pause * 2, LONGEST_BACKOFF)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(deadline):
                    await self.worker.gate.enter()
            left = deadline - self.loop.time()
            if left <= 0:
                raise failure or AgentFailed("connect_failed", "The agent was not ready in time", retryable=True)
            try:
                limit = min(settings.agent_open_timeout, left)
                agent = await Agent.open(settings.deepgram_url, key, message, self.media, seconds=limit)
                self.worker.gate.succeeded()
                return agent
            except AgentFailed as again:
                metrics.agent_errors.labels(code=again.code).inc()
                failure, tries = again, tries + 1
                if again.retryable and again.code in OURS:
                    self.worker.gate.refused()
                if not again.retryable or (again.code not in OURS and tries > _tries(again)):
                    raise

    async def _roll_over(self, agent: Agent) -> None:
        """Replace a connection that has become old, before Deepgram ends it at two hours (Voice Agent reference §7.4).
        The next one is opened first, and the two change places when nobody speaks."""
        settings = self.worker.settings
        await asyncio.sleep(settings.agent_session_seconds)
        while self.agent is agent:
            with contextlib.suppress(AgentFailed):  # there is time; and the loss of the old one is repaired as any
                following = await self.worker.reach(self.hosted, self.media, settings.agent_open_timeout)
                try:
                    quiet = await self.until_quiet(WELCOMED_SECONDS) and self.agent is agent
                except asyncio.CancelledError:
                    await following.close()
                    raise
                if quiet:
                    self._prepared = following
                    self.agent = None  # what the caller says now waits for the next one
                    self.ready.clear()
                    return await agent.close()
                await following.close()
            await asyncio.sleep(LONGEST_BACKOFF)

    async def until_quiet(self, seconds: float) -> bool:
        """Wait for a quiet moment, at most so long; whether it has come. Cancelling it changes nothing."""
        until = self.loop.time() + seconds
        while (left := until - self.loop.time()) > 0:
            # looked at again and again, for handlers that return tell nobody
            if await self.within(min(left, QUIET_LOOK_SECONDS), lambda: self.quiet or self.over):
                break
        return self.quiet and not self.over

    async def _accept(self) -> None:
        if not await self._until_redis(
            lambda: self.worker.calls.activate(self.cid, we=self.we, session_id=self.session.session_id)
        ):
            # ended while the agent was being reached, or no longer ours: `end` below finds out which
            return self.end("hangup", "abandoned")
        self.accepted = True
        self._active_at = self.loop.time()
        self.session._state = SessionState.ACTIVE
        self.tell(Kind.ACCEPT, [self.media.token])
        self.telephony.put(
            "session_start",
            SessionStartEvent(
                session_id=self.session.session_id,
                conversation_id=self.cid,
                caller=self.record.caller or None,
                bot_name=self.record.bot or None,
                media_format=self.media.token,
                started_at=_now(),
            ),
        )
        self.pump()

    async def _listen(self, agent: Agent) -> AgentFailed:
        """Serve one agent connection until it is lost; returns why."""
        self.agent = agent
        now = self.loop.time()
        self._microphone = Microphone(self.media, now, stream_open=self._microphone.is_open)
        while self._unheard:
            audio = self._unheard.popleft()
            self._microphone.audio(len(audio), now)
            agent.hear(audio)
        self._unheard_bytes = 0
        for kind, value in self._asked:  # unconfirmed when the former connection broke
            agent.say(getattr(agent.machine, f"update_{kind}")(value))
        self.ready.set()
        self._answers.connected()
        writer = self.tasks.create_task(agent.write())
        roll_over = self.tasks.create_task(self._roll_over(agent))
        watch = self.tasks.create_task(agent.watch(self._answers))
        try:
            async for event in agent.events():
                self._answers.saw(event, self.loop.time())
                self._events.happened(event)
                self.pump()
                self.progress()
        except AgentFailed as failure:
            self.tasks.create_task(agent.close())  # a peer that does not answer must not delay the next one
            return failure
        except BaseException:
            await agent.close()
            raise
        finally:
            if not self.over:
                self.ready.clear()
            self.agent = None
            writer.cancel()
            roll_over.cancel()
            watch.cancel()
            self.injections.lost()
            self.functions.agent_lost()
            if agent.unsent:
                log.info("messages to the agent went with its connection", cid=self.cid, messages=agent.unsent)
        return AgentFailed("disconnected", "The agent closed the connection", retryable=True)

    async def ready_agent(self) -> Agent | None:
        """The agent as soon as it takes messages; None when the call is over. Cancelling it changes nothing."""
        await self.ready.wait()
        return self.agent

    def asked(self, kind: str, value: Any) -> None:
        """The agent was sent an amendment of its settings; until it confirms it, it may have to go again."""
        self._asked.append((kind, value))

    def confirmed(self, kind: str) -> None:
        """The agent confirms the oldest amendment of this kind: later connections begin with it."""
        for asked in self._asked:
            if asked[0] == kind:
                self._asked.remove(asked)
                self._settings = agent_settings.amended(self._settings, *asked)
                self._amended.append(asked)
                self.tasks.create_task(self._keep_amended())
                return

    async def _keep_amended(self) -> None:
        """Amendments go with the call to its next owner, all but those with a secret in them (DESIGN §6)."""
        kept = [asked for asked in self._amended if not agent_settings.secret(asked[1])]
        with contextlib.suppress(BridgeError):  # the next amendment writes them all again
            await self.worker.calls.amend(self.cid, we=self.we, fields={"settings": {"amended": kept}})

    def answered_function(self) -> None:
        """The agent was given the response to a function call; what it says next is owed now."""
        self._answers.answered(self.loop.time())

    def _agent_gone(self) -> None:
        """No more of the turn will come: what is with the edge is played out, and the turn ends there."""
        self.speech.done(announce=False)
        self.pump()

    def _agent_failed(self, failure: AgentFailed) -> None:
        log.error("agent failed for good", cid=self.cid, code=failure.code, description=failure.description)
        event = BridgeErrorEvent(
            session_id=self.session.session_id,
            description=failure.description,
            code=failure.code,
            cause=failure.cause,
            recoverable=False,
        )
        self.agent_lane.put("error", event)
        self.end("error", f"{failure.code}: {failure.description}")

    def feed_silence(self, now: float) -> None:
        """Give the agent the silence that is due; called on one clock for all calls."""
        if self.agent is not None and (silence := self._microphone.silence(now)):
            self.agent.hear(silence)

    # ── the edge ───────────────────────────────────────────────────────────────────────────────────────

    def on_frame(self, sender: str, frame: Frame) -> None:
        """Take one frame of this call from the inbox."""
        self._heard_at = self.loop.time()
        if self._lost_by_silence:
            self._found()
        self._happened(self._link.receive(sender, frame, self._heard_at))
        self.progress()
        self.pump()

    def on_inbox_lost(self) -> None:
        """Frames for this call were lost with the inbox, and maybe the call's state: look, and greet the edge."""
        self._happened([Reread("inbox lost")])
        self._link.open(self.loop.time(), "inbox lost")
        self.pump()

    def on_unreachable(self) -> None:
        """The edge's inbox is gone: it died, and VAIC may come back by another one."""
        self._happened(self._link.unreachable(self.loop.time()))
        self.pump()

    def tell(self, kind: Kind, body: list[Any]) -> None:
        """Send a control frame to the edge, behind the speech that is due; `pump` puts it on its way."""
        self._send_speech()
        self._send(kind, body)

    def activities(self, activities: list[dict[str, Any]], *, repeatable: bool) -> None:
        """Send activities to VAIC."""
        self._mids += 1
        self.tell(Kind.ACTIVITY, [[self.we, self._mids], activities, repeatable])
        self.pump()

    def pump(self) -> None:
        """Send what is due now and set the timer to the next deadline."""
        now = self.loop.time()
        self._send_speech()
        self._happened(self._link.tick(now))
        for pod, frame in self._link.take():
            self.worker.outbox.post(pod, frame)
        due = self._link.deadline()
        if due < self._timer_at or self._timer is None:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = due
            self._timer = self.loop.call_at(max(due, now) + TIMER_GRAIN, self._timer_fired) if due < math.inf else None

    def _send_speech(self) -> None:
        now = self.loop.time()
        for kind, body, nbytes in self.speech.take():
            if nbytes:
                self._link.send_audio(kind, body, nbytes, now)
            else:
                self._send(kind, body)

    def _send(self, kind: Kind, body: list[Any]) -> None:
        try:
            self._link.send(kind, body, self.loop.time())
        except LinkFull as error:
            if not self.over:
                log.error("the edge does not confirm anything, the call ends", cid=self.cid, error=str(error))
            self.end("error", "overrun")

    def _timer_fired(self) -> None:
        self._timer, self._timer_at = None, math.inf
        if not self.closed.is_set():
            self.pump()

    def _happened(self, events: list[LinkEvent]) -> None:
        for event in events:
            match event:
                case Delivery():
                    self._deliver(event)
                case Reread() if not self._rereading:
                    self._rereading = True
                    self.tasks.create_task(self._reread())
                case PeerChanged():
                    self._edge_changed(event)

    def _deliver(self, delivery: Delivery) -> None:
        now, body = self.loop.time(), delivery.body
        match delivery.kind:
            case Kind.UP:
                self._microphone.audio(len(body[0]), now)
                if self.agent is not None:
                    self.agent.hear(body[0])
                else:
                    self._keep_unheard(body[0])
                return
            case Kind.REPLAY:
                self._replay = body[0]
                if len(body) > 1:
                    self._events.understood(*body[1])
            case Kind.ACTIVITY:
                return self._activity(body[1], delivery)
            case Kind.PLAYED:
                turn = (body[0][0], body[0][1])
                if turn[0] < self.we and body[2] != "playing":
                    self._keep_heard_of_former(turn, body[1], whole=body[2] == "finished")
                for over in self.speech.played(turn, body[1], body[2], now):
                    self._turn_over(over)
            case Kind.USTREAM:
                self._microphone.stream(body[0])
            case Kind.END:
                self.peer_ended.set()
                if not self.leaving:
                    self.end("hangup", body[0] or "")
            case Kind.LOST:
                self._wait_for_caller()
            case Kind.BACK:
                self._found()
        self._link.done(delivery, now)

    def _activity(self, activity: dict[str, Any], delivery: Delivery) -> None:
        """The effect of an activity is that its handlers have returned; then it is done for the edge too."""

        def done() -> None:
            with contextlib.suppress(RuntimeError):  # the media loop is gone, and with it the link
                self.loop.call_soon_threadsafe(self._activity_done, delivery)

        name = str(activity.get("name", "")).lower()
        if name == "start" and isinstance(activity.get("parameters"), dict):
            self.tasks.create_task(self._keep_start(activity["parameters"]))
        elif name == "playfinished":
            self._play_finished_at = self.loop.time()
        elif name == "transferstatus" and _status(activity) == "failed":
            self.transfer_failed.set()
        self.telephony.put(
            "activity",
            InboundActivityEvent(session_id=self.session.session_id, activity=cast(AudioCodesActivity, activity)),
            done,
        )

    def _activity_done(self, delivery: Delivery) -> None:
        self._link.done(delivery, self.loop.time())
        self.pump()

    async def _keep_start(self, parameters: dict[str, Any]) -> None:
        with contextlib.suppress(BridgeError):  # it is for whoever looks the call up; the call does not need it
            await self.worker.calls.amend(self.cid, we=self.we, fields={"start": orjson.dumps(parameters).decode()})

    def _turn_over(self, over: TurnOver) -> None:
        self._turn_over_at = self.loop.time()
        if over.announce:
            self._events.audio_done()
        self._events.heard(over.lines)
        self.tasks.create_task(self._keep_heard(over.lines))

    def _keep_unheard(self, audio: bytes) -> None:
        self._unheard.append(audio)
        self._unheard_bytes += len(audio)
        while self._unheard_bytes > self.media.nbytes(UNHEARD_SECONDS * 1000):
            dropped = len(self._unheard.popleft())
            self._unheard_bytes -= dropped
            metrics.audio_dropped_ms.labels(where="no_agent").inc(self.media.ms(dropped))

    def _keep_heard_of_former(self, turn: Turn, heard_ms: int, *, whole: bool) -> None:
        """The edge tells how much will have been heard of a turn whose owner is gone."""
        lines = self._events.former_turn(turn, heard_ms, whole=whole)
        self.tasks.create_task(self._keep_heard(lines))

    async def _keep_heard(self, lines: Iterable[LineHeard]) -> None:
        for line in lines:
            with contextlib.suppress(RedisUnavailable):  # a figure; the lines themselves are safe
                await self.worker.calls.heard(self.cid, line.entry, line.heard_ms, line.interrupted)

    def _edge_changed(self, event: PeerChanged) -> None:
        self._found()
        if not event.first:
            metrics.resumes.inc()
            self._link.drop_audio()  # for the new edge it has other turn ids
            self.speech.edge_changed(self.loop.time())
        for _kind, body in event.unknown:
            names = ", ".join(str(activity.get("name")) for activity in body[1])
            self.telephony.put(
                "error",
                BridgeErrorEvent(
                    session_id=self.session.session_id,
                    description=f"It is not known whether VAIC carried out: {names}",
                    code="command_unknown",
                    cause=None,
                    recoverable=True,
                ),
            )

    def _wait_for_caller(self) -> None:
        if self._lost is None:
            self._lost = self.loop.call_later(self.worker.settings.lost_seconds, self._caller_lost)

    def _found(self) -> None:
        self._lost_by_silence = False
        if self._lost is not None:
            self._lost.cancel()
            self._lost = None

    def _caller_lost(self) -> None:
        seconds = self.worker.settings.lost_seconds
        event = BridgeErrorEvent(
            session_id=self.session.session_id,
            description=f"The caller's connection was lost and not resumed within {seconds:g} s",
            code="audiocodes_error",
            cause=None,
            recoverable=False,
        )
        self.telephony.put("error", event)
        self.end("error", "lost")

    async def _reread(self) -> None:
        """Ask Redis whose call this is before anything else is said."""
        try:
            record = await self.worker.calls.read(self.cid)
            if self.accepted and not self.over and (record is None or record.we < self.we):
                await self._restore()
                record = await self.worker.calls.read(self.cid)
        except BridgeError as error:
            log.debug("state of the call cannot be read now", cid=self.cid, error=str(error))
            return
        finally:
            self._rereading = False
        if record is None or self._over.done():
            return
        if record.we > self.we or (record.owner and record.owner != self.worker.pod):
            return self.fenced()
        if record.state == "ended":
            return self.end(record.reason, record.detail)
        now = self.loop.time()
        if self._lost is None and now > self._heard_at + SILENT_SECONDS:
            self._lost_by_silence = True  # the edge may be dead; any word of it takes this back
            self._wait_for_caller()
        self._happened(self._link.reread(peer_pod=record.edge, peer_epoch=record.ee, now=now))
        self.pump()

    async def _restore(self) -> None:
        """Redis has lost the call: write what is known here, the transcript too; the edge does the same."""
        log.warning("the call's state is lost in Redis, writing it again", cid=self.cid)
        known = ("bridge", "caller", "bot", "media_format", "created_ms", "active_ms", "start")
        fields = {name: self.record.raw[name] for name in known if name in self.record.raw}
        fields |= {"state": "active", "session_id": self.session.session_id}
        await self.worker.calls.restore(self.cid, fields, owner=self.worker.pod, we=self.we)
        self.lines.verify()
        self.functions.verify()

    def fenced(self) -> None:
        """Another worker owns the call: stop without a word."""
        if not self._over.done():
            log.info("call belongs to another worker now", cid=self.cid)
            self._over.set_result(None)

    # ── the end ────────────────────────────────────────────────────────────────────────────────────────

    async def _end(self, ending: Ending) -> None:
        began = self.loop.time()
        duration_ms = round((began - self._active_at) * 1000) if self.accepted else 0
        await self._lanes_idle()
        self.session._state = SessionState.ENDING
        self.telephony.close()
        self.agent_lane.close()
        if not await self.lines.flush(LINES_SECONDS):
            log.error("transcript lines could not be stored", cid=self.cid)
        try:
            ended = await self._until_redis(lambda: self._end_in_redis(ending))
        except Fenced:
            return self.fenced()
        except BridgeError as error:
            log.error("the end of the call could not be recorded", cid=self.cid, error=str(error))
            ended = Ended(True, ending.reason, ending.detail, "owed")
        ending = Ending(ended.reason, ended.detail)
        letting_go = self.tasks.create_task(self._let_go(ending, knows=not ended.first))
        metrics.calls_total.labels(outcome=ending.reason).inc()
        log.info(
            "session ended",
            cid=self.cid,
            session_id=self.session.session_id,
            reason=ending.reason,
            duration_ms=duration_ms,
        )
        event = SessionEndEvent(
            session_id=self.session.session_id,
            reason=cast(SessionEndReason, ending.reason),
            duration_ms=duration_ms,
            ended_at=_now(),
        )
        if ended.finish == "owed":
            await self.worker.finisher.finish(self.cid, self.hosted, self.session, event)
        await letting_go

    async def _let_go(self, ending: Ending, *, knows: bool) -> None:
        """Have VAIC end the call if it does not know yet, and then let its socket go: VAIC takes a socket that is
        closed before `session.end` for a fault, and comes back (Bot API reference §3, §4)."""
        settings = self.worker.settings
        if self.accepted and self._lost is None and not knows and not self.leaving:
            if ending.reason == "error" and settings.failover_target is not None:
                parameters = {"transferTarget": settings.failover_target}
                activity = {"type": "event", "name": "transfer", "activityParams": parameters}
                await self._ask_to_end(activity, settings.transfer_wait_seconds)
            await self._ask_to_end({"type": "event", "name": "hangup"}, settings.hangup_wait_seconds)
        self.tell(Kind.CLOSE if self.accepted else Kind.REFUSE, [ending.detail or ending.reason])
        self.pump()

    async def _ask_to_end(self, activity: dict[str, Any], seconds: float) -> None:
        if not self.peer_ended.is_set():
            self.transfer_failed.clear()
            self.activities([activity], repeatable=True)
            await self.within(seconds, lambda: self.peer_ended.is_set() or self.transfer_failed.is_set())

    async def _end_in_redis(self, ending: Ending) -> Ended:
        """The first reason stands; whoever's it is, the handlers run here."""
        calls, pod = self.worker.calls, self.worker.pod
        ended = await calls.end(
            self.cid,
            reason=ending.reason,
            detail=ending.detail,
            last=self.lines.last,
            we=self.we,
            finisher=pod,
            report=ending.reason == "error",
        )
        if ended.first or ended.finish != "owed":
            return ended
        claimed = await calls.claim_finish(self.cid, worker=pod, seen_finisher="")
        return ended if claimed is not None else Ended(False, ended.reason, ended.detail, "done")

    async def _lanes_idle(self) -> None:
        """Let the handlers finish what was queued before the end, bounded."""
        waiting = 2
        idle = asyncio.Event()

        def lane_idle() -> None:  # in the customer's loop
            self.loop.call_soon_threadsafe(one_idle)

        def one_idle() -> None:
            nonlocal waiting
            waiting -= 1
            if not waiting:
                idle.set()

        for lane in (self.telephony, self.agent_lane):
            lane.when_idle(lane_idle)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LANES_SECONDS):
                await idle.wait()

    async def played_out(self, seconds: float) -> None:
        """Wait, at most this long and a little more, until the caller has heard all that is to be said."""
        await self.within(seconds, lambda: self.over or not (self.speech.speaking or self.injections.busy))
        end = self._turn_over_at + VAIC_BEHIND_SECONDS
        left = end - self.loop.time()
        await self.within(left, lambda: self.over or self._play_finished_at > self._turn_over_at - VAIC_BEHIND_SECONDS)

    def progress(self) -> None:
        """Something happened that `within` may be waiting for."""
        self._progress.set()

    async def within(self, seconds: float, condition: Callable[[], bool]) -> bool:
        """Wait until the condition holds, looking whenever the edge or the agent has said something."""
        try:
            async with asyncio.timeout(seconds):
                while not condition():
                    self._progress.clear()
                    await self._progress.wait()
        except TimeoutError:
            return False
        return True

    async def _until_redis(self, request: Callable[[], Awaitable[T]]) -> T:
        """Make a request that may be made again, until Redis answers."""
        deadline = self.loop.time() + END_TRIES_SECONDS
        while True:
            try:
                return await request()
            except RedisUnavailable:
                if self.loop.time() > deadline:
                    raise
                await asyncio.sleep(0.25)

    def event(self, name: str, event: Any) -> None:
        """Hand an event of the agent's side to the customer's handlers."""
        self.agent_lane.put(name, event)


def _tries(failure: AgentFailed) -> int:
    """How many connections in a row may fail like this before the call is given up (Voice Agent reference §5.4)."""
    if not failure.retryable:
        return 0
    if failure.code in OURS:
        return RECONNECTS
    return {dg.Retry.NO: 0, dg.Retry.ONCE: 1, dg.Retry.LIMITED: 2}.get(dg.retry_for(failure.code), RECONNECTS)


def _seconds_since(moment: str) -> float:
    """Seconds from an ISO 8601 moment to now, by the wall clock; 0 if there is none."""
    if not moment:
        return 0.0
    return max(0.0, (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds())


def _now() -> str:
    return datetime.now(UTC).isoformat()


def _status(activity: dict[str, Any]) -> object:
    value = activity.get("value")
    return value.get("status") if isinstance(value, dict) else None
