"""A live call goes to another worker because this one is to stop: silence no longer than a pause for breath.

    owner                                     taker
      offer `handover` ─── {fleet}:offers ──>   has room
      <──────────────────────────── take        wants it
      grant ─────────────────────────────>      opens an agent connection up to Welcome
      <─────────────────────────── ready        that is good for 8 s
      (waits until nobody speaks)
      go ────────────────────────────────>      claims, sends Settings with the history, goes on
      <─────────────────────────── taken        so that the owner looks, finds itself fenced, and stops

Every word is a COMMAND frame from inbox to inbox and may be lost: each wait has a bound, and a try that comes to
nothing begins anew with an offer. Only the claim decides, and it is a compare-and-swap: whatever is lost or late,
one worker owns the call. Between claim and SettingsApplied the taker keeps what the caller says, so nobody need
take the call back when the caller begins to speak in that moment.

A call that finds no quiet moment in time is offered like an orphan: taken over at once, in mid-sentence. One that is
about to be hung up or transferred is not: what was asked for would be lost with its owner. A taker that waits for
`go` when the owner dies is offered the call as an orphan, and takes that for its `go`.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from bridge_shared import logs, metrics
from bridge_shared.errors import BridgeError
from bridge_shared.protocol.media import media
from bridge_shared.redis.calls import Claimed
from bridge_shared.redis.fleet import Offer
from bridge_worker.agent import Agent

if TYPE_CHECKING:
    from bridge_worker.conversation import Conversation
    from bridge_worker.worker import Hosted, Worker

log = logs.get("worker.handover")

CONNECTS: Final = 10
"""Agent connections that a drain has opened at the same time: neither Deepgram nor the other workers are overrun."""

ANSWER_SECONDS: Final = 1.0
READY_SECONDS: Final = 8.0
"""Deepgram lets a connection wait for its Settings about this long; also how long a taker may need to get one."""

GONE_SECONDS: Final = 3.0
AGAIN_SECONDS: Final = 0.5

FOR_OWNER: Final = frozenset({"take", "ready", "sorry", "taken"})
FOR_TAKER: Final = frozenset({"grant", "go", "thaw"})


@dataclass(frozen=True, slots=True)
class Word:
    """One message of a hand-over: from which pod, about which try."""

    sender: str
    token: str
    verb: str


class Mailbox:
    """The words that came for one side of one call, in order."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Word] = asyncio.Queue()

    def put(self, word: Word) -> None:
        self._queue.put_nowait(word)

    async def next(self, seconds: float, *verbs: str, token: str = "") -> Word | None:
        """The next word of these, of this try if one is named; None if none comes in time. Others are dropped."""
        try:
            async with asyncio.timeout(seconds):
                while True:
                    word = await self._queue.get()
                    if word.verb in verbs and token in ("", word.token):
                        return word
        except TimeoutError:
            return None


class Giving:
    """The owner's side, for one conversation.

    Args:
        connecting: shared by all calls of a drain; held while a taker opens its connection.
    """

    def __init__(self, conversation: Conversation, connecting: asyncio.Semaphore) -> None:
        self._c = conversation
        self._worker = conversation.worker
        self._connecting = connecting
        self.mail = Mailbox()

    async def run(self, quiet_until: float) -> None:
        """Give the call away: at a quiet moment until `quiet_until` (the loop's clock), then at any. Returns when
        it is elsewhere or over. Cancelling it stops the trying; the call stays."""
        c, begun = self._c, self._worker.loop.time()
        while not c.over:
            try:
                if self._worker.loop.time() < quiet_until:
                    async with asyncio.timeout_at(quiet_until):
                        taker = await self._find()
                    if taker is not None:
                        await self._hand(taker, quiet_until)
                elif not c.parting:
                    await self._offer("orphan")
            except TimeoutError:
                continue
            except BridgeError as error:
                log.debug("the call cannot be given away now", cid=c.cid, error=str(error))
            except Exception:  # one call that cannot be given away must not end the pod and its other calls
                log.exception("a call could not be given away", cid=c.cid)
            # a taker that Deepgram refuses says so at once, and must not be asked again at once
            await c.within(AGAIN_SECONDS, lambda: c.over)
        if c.elsewhere:
            metrics.handover_seconds.observe(self._worker.loop.time() - begun)

    async def _find(self) -> Word | None:
        """Another worker with an agent connection for this call."""
        c = self._c
        if not await c.within(READY_SECONDS, lambda: c.over or c.accepted):
            return None
        async with self._connecting:
            if c.over:
                return None
            await self._offer("handover")
            taker = await self.mail.next(ANSWER_SECONDS, "take")
            if taker is None:
                return None
            self._say(taker, "grant")
            answer = await self.mail.next(READY_SECONDS, "ready", "sorry", token=taker.token)
            return answer if answer is not None and answer.verb == "ready" else None

    async def _hand(self, taker: Word, quiet_until: float) -> None:
        c, now = self._c, self._worker.loop.time
        until = min(now() + READY_SECONDS - ANSWER_SECONDS, quiet_until)
        while now() < until and not c.over:
            if await c.until_quiet(until - now()) and await c.stored(ANSWER_SECONDS) and c.quiet:
                self._say(taker, "go")
                await c.within(GONE_SECONDS, lambda: c.over)
                break
        if not c.over:
            self._say(taker, "thaw")

    async def _offer(self, why: Literal["handover", "orphan"]) -> None:
        await self._worker.offer(self._c, why)

    def _say(self, to: Word, verb: str) -> None:
        self._worker.command(to.sender, self._c.cid, to.token, verb)


class Taking:
    """The taker's side, for one offer."""

    def __init__(self, worker: Worker, hosted: Hosted, offer: Offer) -> None:
        self._worker = worker
        self._hosted = hosted
        self._offer = offer
        self._token = secrets.token_hex(8)
        self.mail = Mailbox()

    def orphaned(self) -> None:
        """The owner is dead: what it would have said is not to be waited for."""
        self.mail.put(Word("", self._token, "go"))

    async def run(self) -> tuple[Claimed, Agent] | None:
        """Take the call; returns the claim and an agent that waits for its Settings, or None.

        Cancelling it closes the connection; the owner gives the call to somebody else.
        """
        self._say("take")
        if await self.mail.next(ANSWER_SECONDS * 2, "grant", token=self._token) is None:
            return None
        agent = await self._reach()
        if agent is None:
            self._say("sorry")
            return None
        claimed = None
        try:
            self._say("ready")
            word = await self.mail.next(READY_SECONDS, "go", "thaw", token=self._token)
            if word is not None and word.verb == "go":
                offer = self._offer
                claimed = await self._worker.calls.claim(
                    offer.cid, worker=self._worker.pod, seen_owner=offer.owner, seen_we=offer.we, witness=offer.witness
                )
        finally:
            if claimed is None:
                await agent.close()
        if claimed is None:
            return None
        self._say("taken")
        metrics.handovers.labels(result="taken").inc()
        return claimed, agent

    async def _reach(self) -> Agent | None:
        worker = self._worker
        try:
            record = await worker.calls.read(self._offer.cid)
            if record is None:
                return None
            seconds = min(worker.settings.agent_open_timeout, READY_SECONDS - ANSWER_SECONDS)
            return await worker.reach(self._hosted, media(record.media_format), seconds)
        except BridgeError as failure:
            log.warning("a call cannot be taken", cid=self._offer.cid, error=str(failure))
            return None

    def _say(self, verb: str) -> None:
        self._worker.command(self._offer.owner, self._offer.cid, self._token, verb)
