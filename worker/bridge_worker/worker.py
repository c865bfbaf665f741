"""The worker pod: it finds calls that look for an owner, claims them, and serves each by a `Conversation`.

When it is told to stop it gives its calls to other workers (`handover`)."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal
from zlib import crc32

from bridge_shared import __version__, logs, metrics, room
from bridge_shared.config import Settings
from bridge_shared.errors import AgentFailed, BridgeError, RedisUnavailable
from bridge_shared.frames import VERSION, Frame, Kind
from bridge_shared.pod import Pod
from bridge_shared.protocol.media import Media
from bridge_shared.redis.calls import CallKeys, Claimed
from bridge_shared.redis.commands import Commands
from bridge_shared.redis.connection import Server
from bridge_shared.redis.fleet import Offer, Offers, PodInfo
from bridge_shared.types.audiocodes import BridgeConfig
from bridge_worker import remote
from bridge_worker.agent import Agent
from bridge_worker.backlog import watch_backlog
from bridge_worker.conversation import CALL_STATES, NOTHING, Conversation, Past, Why
from bridge_worker.finisher import Finisher
from bridge_worker.handlers import Handlers
from bridge_worker.handover import CONNECTS, FOR_OWNER, FOR_TAKER, Giving, Taking, Word
from bridge_worker.pace import Gate
from bridge_worker.redis_memory import watch_memory
from bridge_worker.session import Session
from bridge_worker.sweeper import Sweeper

log = logs.get("worker")

FULL_LOAD_WAIT_SECONDS = 0.02
"""A worker waits this long, times its load, before it claims: so the emptiest is first."""

TIE_SECONDS = 0.004
"""Among workers with the same load chance decides, for each call anew: so that no one gets all of a burst."""

STRANGER_SECONDS = 2.0
"""So often at most it is looked up whether a call that an edge thinks is here, is."""

TURNED_AWAY_WAIT_SECONDS = 0.5
"""And one that Deepgram refuses, or that cannot reach it, so much longer: another may be better off."""

CLOSING_SECONDS = 10.0
KEEP_SECONDS = 60.0
COUNT_SECONDS = 1.0
ORPHAN_ROOM = 1.5
LOOK_SECONDS, STALE_SECONDS = 0.5, 3.0
"""How often the others' agent connections are counted; an older count keeps no call out."""

TRANSCRIPT_SECONDS, AGAIN_SECONDS = 10.0, 0.1

QUIET_SECONDS = 20.0
"""A drain looks this long for a moment in which nobody speaks, at most two thirds of its time."""


@dataclass(frozen=True, slots=True)
class Hosted:
    """A bridge of the customer's file, as far as a worker needs it.

    Attributes:
        name: by which offers name it.
        config: keys, agent configuration.
        handlers: in the customer's loop.
        session: makes the `Session` for a conversation id.
    """

    name: str
    config: BridgeConfig
    handlers: Handlers
    session: Callable[[str], Session]

    def key(self, settings: Settings) -> str:
        """Deepgram's API key: the application's comes first."""
        return self.config.deepgram_api_key or settings.deepgram_key or ""


class Worker:
    """One worker pod. Make it in the event loop it shall live in."""

    def __init__(self, state: Server, media: Server, settings: Settings) -> None:
        self.settings = settings
        self.loop = asyncio.get_running_loop()
        self.state = state
        self._pod = Pod(
            "worker", state, media, settings, self._info, on_command=self._commanded, on_stranger=self._stranger
        )
        self.pod = self._pod.id
        self.calls = self._pod.calls
        self.outbox = self._pod.outbox
        self.tracing = self._pod.tracing
        self.commands = Commands(state, media)
        self.hosted: dict[str, Hosted] = {}
        self.finisher = Finisher(self)
        self.gate = Gate()
        """Every try to reach an agent passes it."""
        self._offers = Offers(state, settings.fleet, self._offered)
        self._conversations: dict[str, Conversation] = {}
        self._claiming: set[str] = set()
        self._asked_at: dict[str, float] = {}
        self._none_claiming = asyncio.Event()
        self._none_claiming.set()
        self._giving: dict[str, Giving] = {}
        self._connecting = asyncio.Semaphore(CONNECTS)
        self._quiet_until = math.inf
        self._taking: dict[str, Taking] = {}
        self.opened = asyncio.Event()
        """Other pods can reach this one."""
        self._draining = False
        self._others: dict[str, int] = {}
        """Live workers beside this one, and how many agent connections each says it has."""
        self._counted_at = -math.inf

    async def run(self) -> None:
        """Be a worker until cancelled; then live conversations are dropped without being ended."""
        await self._pod.inbox.open()
        self.opened.set()
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                start = partial(self._pod.vital.start, tasks)
                start(self._pod.run())
                start(self._offers.run())
                start(self._tick())
                start(self.finisher.run())
                start(Sweeper(self).run())
                start(self._keep())
                start(watch_backlog(self.calls))
                start(watch_memory(self.state))
                if self.settings.agent_limit is not None:
                    start(self._count_agents())
        finally:
            await self.tracing.close()

    def host(self, hosted: Hosted) -> None:
        """Take calls for this bridge from now on."""
        self.hosted[hosted.name] = hosted

    async def unhost(self, name: str, seconds: float) -> None:
        """Take no more calls for this bridge, end the live ones, and wait for that at most this long."""
        hosted = self.hosted.pop(name, None)
        ending = [conversation for conversation in self._conversations.values() if conversation.hosted is hosted]
        for conversation in ending:
            conversation.shut_down()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                for conversation in ending:
                    await conversation.closed.wait()

    async def drain(self, seconds: float) -> None:
        """Take no new calls, and give the live ones to other workers at a quiet moment of each; those that nobody
        takes may come to their end, all within `seconds`; what is left is hung up. Handlers that finish calls of others
        may end, too. Cancelling stops the waiting."""
        self._draining = True
        self.finisher.stop()
        log.info("draining", pod=self.pod, calls=self._pod.load, seconds=seconds)
        self._quiet_until = self.loop.time() + min(QUIET_SECONDS, seconds * 2 / 3)
        for conversation in self._conversations.values():
            self._give(conversation)
        until = self.loop.time() + seconds
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                await self._none_claiming.wait()
        await self._give_away(until)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                await self.finisher.tried()

    async def _give_away(self, until: float) -> None:
        """Wait for the live calls to go, and hang up those that have not by then."""
        if await self._pod.wait_empty(max(0.0, until - self.loop.time())):
            return
        log.warning("ending calls that are still live", calls=self._pod.load)
        for conversation in list(self._conversations.values()):
            metrics.handovers.labels(result="left").inc()
            conversation.shut_down()
        await self._pod.wait_empty(CLOSING_SECONDS)

    def on_drain(self, drain: Callable[[], None]) -> None:
        """Call this when somebody asks the pod to drain (`bridgectl drain`)."""
        self._pod.on_drain = drain

    def not_healthy(self) -> str | None:
        """Why this pod is to be replaced; None = it works."""
        return self._pod.vital.reason

    def not_ready(self) -> str | None:
        """Why this pod takes no calls; None = it does."""
        if self._draining:
            return "draining"
        if not self.hosted:
            return "no bridge yet"
        if self._pod.fleet.away:
            return "Redis does not answer"
        return None

    def _info(self) -> dict[str, Any]:
        return {
            "load": self._pod.load,
            "capacity": self.settings.worker_calls,
            "agents": self._agents,
            "agent_limit": self.settings.agent_limit,
            "draining": self._draining,
            "version": __version__,
            "bridges": sorted(self.hosted),
        }

    # ── claiming ───────────────────────────────────────────────────────────────────────────────────────

    def _offered(self, offer: Offer) -> None:
        if offer.why == "orphan" and (taking := self._taking.get(offer.cid)) is not None:
            taking.orphaned()
        elif self._wanted(offer):
            self._claiming.add(offer.cid)
            self._none_claiming.clear()
            self._tasks.create_task(self._claim(self.hosted[offer.bridge], offer))

    def _wanted(self, offer: Offer) -> bool:
        return (
            not self._draining
            and offer.why in ("new", "orphan", "handover")
            and offer.bridge in self.hosted
            and offer.cid not in self._claiming
            and offer.cid not in self._conversations
            and self._pod.load + len(self._claiming) < self._room(offer.why)
            and self._agent_allowed(offer.why)
        )

    @property
    def _agents(self) -> int:
        """Agent connections that the calls here have or are about to have."""
        calls = self._conversations.values()
        return len(self._taking) + sum(not c.over or c.agent.connection is not None for c in calls)

    def _agent_allowed(self, why: str) -> bool:
        """Whether the fleet's limit has room for one more agent connection, as far as that is known."""
        limit = self.settings.agent_limit
        if limit is None or self.loop.time() - self._counted_at > STALE_SECONDS:
            return True
        agents = {**self._others, self.pod: self._agents + len(self._claiming - self._taking.keys())}
        return room.agents_left(limit, agents, takeover=why != "new") > 0

    async def _count_agents(self) -> None:
        while True:
            with contextlib.suppress(BridgeError):  # the count grows old, and then does not bind
                pods = (await self._pod.fleet.pods()).values()
                alive = (pod for pod in pods if pod.role == "worker" and pod.pod != self.pod and not pod.dead)
                loads = [load for pod in alive if (load := room.load(pod.pod, pod.info)) is not None]
                self._others = {load.pod: load.agents for load in loads}
                self._counted_at = self.loop.time()
            await asyncio.sleep(LOOK_SECONDS)

    def _room(self, why: str) -> float:
        """How many calls may be here: capacity binds new ones, others may go half beyond."""
        return self.settings.worker_calls * (1.0 if why == "new" else ORPHAN_ROOM)

    async def _claim(self, hosted: Hosted, offer: Offer) -> None:
        claimed: Claimed | None = None
        agent: Agent | None = None
        try:
            load = self._pod.load + len(self._claiming) - 1
            chance = crc32(f"{self.pod} {offer.cid}".encode()) / 2**32
            wait = FULL_LOAD_WAIT_SECONDS * load / self.settings.worker_calls + TIE_SECONDS * chance
            await asyncio.sleep(wait + TURNED_AWAY_WAIT_SECONDS * self.gate.turned_away)
            if offer.why == "handover":
                taking = self._taking[offer.cid] = Taking(self, hosted, offer)
                if (taken := await taking.run()) is not None:
                    claimed, agent = taken
            else:
                claimed = await self.calls.claim(
                    offer.cid, worker=self.pod, seen_owner=offer.owner, seen_we=offer.we, witness=offer.witness
                )
            if claimed is None:
                return
        except BridgeError as error:
            log.warning("a call could not be claimed", cid=offer.cid, error=str(error))
            return
        except Exception:  # one odd offer must not end the pod and its other calls
            log.exception("a call could not be taken", cid=offer.cid)
            return
        finally:
            self._taking.pop(offer.cid, None)
            if claimed is None:
                self._claim_over(offer.cid)
        if self.hosted.get(offer.bridge) is hosted:
            await self._serve(hosted, claimed, "handover" if agent is not None else "worker_lost", agent)
            return
        self._claim_over(offer.cid)
        if agent is not None:
            await agent.close()

    def _claim_over(self, cid: str) -> None:
        """The claim came to nothing, or has become a conversation."""
        self._claiming.discard(cid)
        if not self._claiming:
            self._none_claiming.set()

    # ── hand-over ──────────────────────────────────────────────────────────────────────────────────────

    def _give(self, conversation: Conversation) -> None:
        giving = self._giving[conversation.cid] = Giving(conversation, self._connecting)
        self._tasks.create_task(giving.run(self._quiet_until))

    async def offer(self, conversation: Conversation, why: Literal["handover", "orphan"]) -> None:
        """Offer a call of ours to the other workers."""
        c = conversation
        await self._pod.fleet.offer(
            cid=c.cid,
            bridge=c.hosted.name,
            why=why,
            ee=c.caller.attachment[1],
            edge=c.caller.attachment[0],
            owner=self.pod,
            we=c.we,
            witness=c.we,
        )

    async def reach(self, hosted: Hosted, media: Media, seconds: float) -> Agent:
        """An agent connection up to Welcome, at the pace that Deepgram allows. Cancelling closes it.

        Raises:
            AgentFailed: not within `seconds`, or refused.
        """
        until = self.loop.time() + seconds
        try:
            async with asyncio.timeout_at(until):
                await self.gate.enter()
        except TimeoutError as error:
            raise AgentFailed("connect_failed", "Too many tries wait for Deepgram", retryable=True) from error
        try:
            left = until - self.loop.time()
            agent = await Agent.reach(self.settings.deepgram_url, hosted.key(self.settings), media, seconds=left)
        except AgentFailed as failure:
            if failure.retryable:
                self.gate.refused()
            raise
        self.gate.succeeded()
        return agent

    def command(self, pod: str, cid: str, token: str, verb: str) -> None:
        """Send a word of a hand-over to another pod; it may be lost."""
        self.outbox.post(pod, Frame(VERSION, cid, 0, 0, 0, 0, 0, Kind.COMMAND, [token, verb, [], ""]))

    def _stranger(self, sender: str, frame: Frame) -> None:
        """A frame of a call that is not here: an edge takes us for its owner. It may be right, if the reply to our
        claim was lost."""
        cid, now = frame.cid, self.loop.time()
        if frame.kind == Kind.HELLO and cid not in self._claiming and now > self._asked_at.get(cid, 0.0):
            self._asked_at = {cid: until for cid, until in self._asked_at.items() if until > now}
            self._asked_at[cid] = now + STRANGER_SECONDS
            self._tasks.create_task(self._adopt(cid))

    async def _adopt(self, cid: str) -> None:
        try:
            record = await self.calls.read(cid)
        except BridgeError as error:
            log.debug("a call that may be ours cannot be read now", cid=cid, error=str(error))
            return
        if record is None or record.owner != self.pod or record.state == "ended" or cid in self._conversations:
            return
        hosted = self.hosted.get(record.bridge)
        if hosted is None or cid in self._claiming:
            return
        log.warning("this worker owns a call that it does not serve; it does now", cid=cid)
        self._claiming.add(cid)
        self._none_claiming.clear()
        await self._serve(hosted, Claimed(record.we, record.edge, record.ee, record), "worker_lost", None)

    async def answer(self, reply: str, answer: bytes) -> None:
        """Answer whoever sent a command; one that cannot be answered is asked again."""
        with contextlib.suppress(BridgeError):
            await self.commands.answer(reply, answer)

    def _commanded(self, sender: str, frame: Frame) -> None:
        match frame.body:
            case [str(), str(verb), list(), str()] if verb in remote.VERBS:
                self._tasks.create_task(remote.obey(self, self._conversations.get(frame.cid), frame))
            case [str(token), str(verb), *_] if verb in FOR_OWNER:
                if (giving := self._giving.get(frame.cid)) is not None:
                    giving.mail.put(Word(sender, token, verb))
                if verb == "taken" and (conversation := self._conversations.get(frame.cid)) is not None:
                    conversation.caller.look()
            case [str(token), str(verb), *_] if verb in FOR_TAKER:
                if (taking := self._taking.get(frame.cid)) is not None:
                    taking.mail.put(Word(sender, token, verb))

    async def _serve(self, hosted: Hosted, claimed: Claimed, why: Why, agent: Agent | None) -> None:
        cid = claimed.record.cid
        try:
            past = await self._past(cid) if claimed.record.state == "active" else NOTHING
            conversation = self._conversations[cid] = Conversation(self, hosted, claimed, past, why=why, agent=agent)
            agent = None  # it is the conversation's now
            self._pod.know(conversation.caller)
            self._claim_over(cid)
            if self._draining:  # claimed just before
                self._give(conversation)
            try:
                await conversation.run()
            finally:
                del self._conversations[cid]
                self._giving.pop(cid, None)
                self._pod.forget(conversation.caller)
        except Exception as error:
            log.exception("a conversation failed", cid=cid)
            self._claim_over(cid)
            detail = f"the bridge failed: {type(error).__name__}"
            with contextlib.suppress(BridgeError):  # the finisher finds it, and tells the handlers
                await self.calls.end(cid, reason="error", detail=detail, we=claimed.we, report=True)
        finally:
            if agent is not None:
                await agent.close()

    async def _past(self, cid: str) -> Past:
        """What happened under former owners. A call is not given up for a Redis that is away for a moment."""
        until = self.loop.time() + TRANSCRIPT_SECONDS
        while True:
            try:
                lines = await self.calls.transcript(cid)
                return Past(lines, await self.calls.entries(CallKeys.of(cid).functions))
            except RedisUnavailable:
                if self.loop.time() > until:
                    raise
                await asyncio.sleep(AGAIN_SECONDS)

    def session(self, cid: str) -> Session | None:
        """The session of a call that is served here."""
        conversation = self._conversations.get(cid)
        return conversation.session if conversation is not None else None

    def serves(self, cid: str) -> bool:
        """Whether this call has a conversation here."""
        return cid in self._conversations

    async def pods(self) -> dict[str, PodInfo]:
        """The pods of the fleet, as this one sees them."""
        return await self._pod.fleet.pods()

    def alive(self, pod: str) -> bool:
        """Whether this pod takes another one for alive."""
        return self._pod.fleet.watch.counter(pod) is not None and not self._pod.fleet.watch.dead(pod)

    async def _keep(self) -> None:
        """Renew what expires of our calls, and repair what a crash left half done in the indexes."""
        while True:
            await asyncio.sleep(KEEP_SECONDS)
            try:
                for cid in list(self._conversations):
                    await self.calls.touch(cid)
                await self.calls.sweep()
            except BridgeError as error:
                log.warning("calls could not be kept up in Redis, trying again", error=str(error))

    async def _tick(self) -> None:
        """One clock for all calls."""
        every = self.settings.caller_silence_ms / 1000
        due = count_at = self.loop.time()
        while True:
            due = max(due + every, self.loop.time())
            await asyncio.sleep(due - self.loop.time())
            now = self.loop.time()
            for conversation in self._conversations.values():
                conversation.tick(now)
            if now >= count_at:
                count_at = now + COUNT_SECONDS
                states = Counter(conversation.state for conversation in self._conversations.values())
                for state in CALL_STATES:
                    metrics.calls_by_state.labels(state=state).set(states[state])
