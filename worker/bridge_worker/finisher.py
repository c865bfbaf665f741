"""The finish: the work that is owed after a call, whoever ended it and whoever died.

When a call ends it is entered in `{fleet}:ended` before anything is done for it. The owner finishes its
calls at once, with the session that the application knows. Calls that nobody finishes (refused before they
had an owner, or whose owner died) are found there by the other workers and finished with a session made from
what Redis holds. The success of each handler is recorded before the next one begins, so that a repeated finish
runs only what has failed. It is repeated where it was tried, with the same session, as long as that worker lives;
elsewhere if a handler there could not be cut off.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bridge_shared import logs, metrics
from bridge_shared.errors import BridgeError, RedisUnavailable
from bridge_shared.redis.calls import CallRecord
from bridge_shared.types.deepgram import ConversationTextEvent
from bridge_shared.types.extra import FinishEvent
from bridge_worker.crossing import Crossing, LeftBehind
from bridge_worker.finish_notes import FinishNotes
from bridge_worker.session import Session, SessionState
from bridge_worker.session_data import SessionData

if TYPE_CHECKING:
    from bridge_worker.worker import Hosted, Worker

log = logs.get("worker.finisher")

LOOK_SECONDS = 1.0
OWNER_FIRST_SECONDS = 2.0
"""A call that ended without a finisher is left to its owner this long."""

AT_ONCE = 50
"""So many adopted calls are finished beside each other: one that takes long keeps no other waiting."""

KEPT = 1000
"""So many calls that wait for their next try are remembered with the session that the application knows."""

PAUSES_SECONDS = (1, 5, 30, 120, 600, *[3600] * 23)
"""Between the tries of a finish: about a day in all."""


class Finisher:
    """Finishes calls for one worker."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._running: set[str] = set()
        self._adopting: set[str] = set()
        self._stopped = False
        self._none_adopting = asyncio.Event()
        self._none_adopting.set()
        self._seen: dict[str, float] = {}
        """When each call that is owed its finish was first seen here."""
        self._kept: dict[str, _Kept] = {}
        """The calls that have to be tried again, oldest first."""
        self._bridges: dict[str, str] = {}
        """Which bridge each of those is of, as far as that was read: those of no bridge here are not read again."""

        self._unreadable: set[str] = set()
        """Those of them that could not be read, and were logged."""

    async def run(self) -> None:
        """Look for calls that nobody finishes, until cancelled. Cancelling it lets a running finish be repeated
        by another worker."""
        async with asyncio.TaskGroup() as self._tasks:
            while True:
                await asyncio.sleep(LOOK_SECONDS)
                try:
                    await self._look()
                except RedisUnavailable as error:
                    log.debug("calls owed their finish cannot be looked up now", error=str(error))
                except BridgeError:
                    log.exception("calls owed their finish cannot be looked up, trying again")

    def stop(self) -> None:
        """Adopt nothing more."""
        self._stopped = True

    async def tried(self) -> None:
        """Wait until what was adopted is tried. Cancelling it stops the waiting."""
        await self._none_adopting.wait()

    async def _look(self) -> None:
        """Adopt the calls that are due and nobody's, the longest due first."""
        worker, now = self._worker, self._worker.loop.time()
        due = await worker.calls.due()
        self._seen = {cid: self._seen.get(cid, now) for cid in due}
        self._unreadable &= self._seen.keys()
        self._bridges = {cid: bridge for cid, bridge in self._bridges.items() if cid in self._seen}
        for cid in due:
            if len(self._adopting) >= AT_ONCE or self._stopped:
                return
            if cid in self._adopting or self._bridges.get(cid, "") not in ("", *worker.hosted):
                continue
            try:
                await self._look_at(cid)
            except RedisUnavailable:
                raise
            except BridgeError as error:
                if cid not in self._unreadable:
                    self._unreadable.add(cid)
                    log.error("a call that is owed its finish cannot be read", cid=cid, error=str(error))

    async def _look_at(self, cid: str) -> None:
        worker = self._worker
        record = await worker.calls.read(cid)
        if record is None or record.finish != "owed":
            await self._over(cid, record)
        elif record.bridge not in worker.hosted:
            self._bridges[cid] = record.bridge
            if record.finisher == worker.pod and not self._others(record):  # the bridge has left this process
                await worker.calls.release_finish(cid, finisher=worker.pod)
        elif not self._others(record) and not self._stopped:
            self._adopting.add(cid)
            self._none_adopting.clear()
            self._tasks.create_task(self._adopted(worker.hosted[record.bridge], record))

    async def _over(self, cid: str, record: CallRecord | None) -> None:
        """A call in the list that owes nothing: whoever finished it or gave it up has died before the last step."""
        if record is not None and record.finish == "given_up":
            await self._worker.calls.give_up(cid)
        else:
            await self._worker.calls.finished(cid)

    async def _adopted(self, hosted: Hosted, record: CallRecord) -> None:
        try:
            await self._adopt(hosted, record)
        except RedisUnavailable as error:
            log.debug("a call could not be finished now", cid=record.cid, error=str(error))
        except Exception:  # one odd call must end neither the pod nor the finish of others
            log.exception("a call could not be finished", cid=record.cid)
        finally:
            self._adopting.discard(record.cid)
            if not self._adopting:
                self._none_adopting.set()

    async def finish(
        self,
        cid: str,
        hosted: Hosted,
        session: Session,
        event: FinishEvent,
        *,
        handled: Collection[str] = (),
        stored: str = "",
    ) -> None:
        """Run the `session_end` handlers of a call whose finish is ours, and record the success of each at once.

        Args:
            handled: handlers that have succeeded before.
            stored: `Session.data` as Redis has it, as far as is known.
        """
        settings = self._worker.settings
        self._running.add(cid)
        span = self._worker.tracing.part("finish", cid, attempt=event.attempt)
        notes = FinishNotes(self._worker, cid, session.data, stored)
        try:
            async with asyncio.TaskGroup() as tasks:
                writing = tasks.create_task(notes.run())
                results = await hosted.handlers.finish(
                    session, event, seconds=settings.finish_timeout, skip=handled, succeeded=notes.succeeded
                )
                if any(problem is not None for problem in results.values()):
                    await notes.flush()
                writing.cancel()
        except BaseException:
            span.end(cut_off=True)
            raise
        finally:
            self._running.discard(cid)
        failed = {name: problem for name, problem in results.items() if problem is not None}
        metrics.finishes.labels(result="failed" if failed else "done").inc()
        span.end(error="handlers_failed" if failed else "", handlers=len(results), failed=len(failed))
        if notes.others:
            return log.warning("another worker finishes the call now", cid=cid)
        self._keep(cid, session, results)
        try:
            if not failed:
                await self._worker.calls.finished(cid, notes.missing)
                self._kept.pop(cid, None)
                return
            for name in notes.missing:
                await self._worker.calls.handled(cid, name, finisher=self._worker.pod)
            await self._again(cid, failed)
        except BridgeError as error:
            names = sorted(failed)
            log.error("the finish could not be recorded, trying again", cid=cid, failed=names, error=str(error))

    def _keep(self, cid: str, session: Session, results: Mapping[str, Exception | None]) -> None:
        """Remember a call until its finish is done; the oldest is forgotten if they are too many."""
        done = frozenset(name for name, problem in results.items() if problem is None)
        left = {name: problem.work for name, problem in results.items() if isinstance(problem, LeftBehind)}
        if (before := self._kept.pop(cid, None)) is not None:
            done |= before.succeeded
        self._kept[cid] = _Kept(session, done, left)
        while len(self._kept) > KEPT:
            del self._kept[next(iter(self._kept))]

    async def _again(self, cid: str, failed: Mapping[str, Exception]) -> None:
        """Set the next try, later each time, for a day. It may be anybody's if a handler of this one could not be cut
        off.

        Args:
            failed: the handlers, and how.
        """
        calls, names = self._worker.calls, sorted(failed)
        record = await calls.read(cid)
        if record is None:
            log.info("the call was forgotten while its session_end handlers failed", cid=cid, handlers=names)
            self._kept.pop(cid, None)
            return
        if _tries(record) > len(PAUSES_SECONDS):
            log.error("session_end handlers failed for the last time", cid=cid, handlers=names)
            await self._give_up(cid, record.tries)
            return await self._note(cid, failed)
        pause = _pause(record)
        log.error(
            "session_end handlers failed, they will be run again", cid=cid, handlers=names, next_try_s=float(pause)
        )
        await calls.postpone(cid, pause)
        await self._note(cid, failed)
        if any(isinstance(problem, LeftBehind) for problem in failed.values()):
            await calls.release_finish(cid, finisher=self._worker.pod)

    async def _note(self, cid: str, failed: Mapping[str, Exception]) -> None:
        """Leave a word for `bridgectl unfinished`: kinds of errors only, for their texts may hold what is secret."""
        error = ", ".join(f"{name}: {type(problem).__name__}" for name, problem in sorted(failed.items()))
        try:
            await self._worker.calls.failed(cid, error, finisher=self._worker.pod)
        except BridgeError as away:  # the finish does not depend on it
            log.debug("what failed is not noted", cid=cid, error=str(away))

    async def _give_up(self, cid: str, tries: int) -> None:
        log.error("the finish is given up", cid=cid, tries=tries)
        self._kept.pop(cid, None)
        await self._worker.calls.give_up(cid)

    async def _adopt(self, hosted: Hosted, seen: CallRecord) -> None:
        worker, calls, cid = self._worker, self._worker.calls, seen.cid
        if not await hosted.handlers.answers():
            log.debug("a finish is left to others: the application's event loop is blocked", cid=cid)
            return await calls.release_finish(cid, finisher=worker.pod)
        record = await calls.claim_finish(cid, worker=worker.pod, seen_finisher=seen.finisher)
        if record is None:
            return None
        if _tries(record) > len(PAUSES_SECONDS) + 1:
            return await self._give_up(cid, record.tries - 1)
        # a handler may take this process down: then the next one is not to follow at once
        await calls.postpone(cid, _pause(record))
        log.info("finishing a call", cid=cid, reason=record.reason)
        kept = self._kept.get(cid)
        succeeded = kept.succeeded if kept is not None else frozenset()
        for name in succeeded - record.handled:
            await calls.handled(cid, name, finisher=worker.pod)
        stored = record.raw.get("data", "")
        session = kept.session if kept is not None else await self._session(hosted, record)
        if kept is None or seen.finisher != worker.pod:  # the newest data is of another worker's try
            session._data = SessionData(stored)
        event = FinishEvent(
            session_id=session.session_id,
            reason=record.reason or "error",  # type: ignore[arg-type]
            duration_ms=record.duration_ms,
            ended_at=record.ended_at,
            attempt=record.tries,
            idempotency_key=finish_key(cid),
        )
        await self.finish(cid, hosted, session, event, handled=record.handled | succeeded, stored=stored)

    def _others(self, record: CallRecord) -> bool:
        """Whether somebody else, or another task here, is to finish this call."""
        worker, kept = self._worker, self._kept.get(record.cid)
        if record.cid in self._running or worker.serves(record.cid) or (kept is not None and not kept.over):
            return True
        if record.finisher:
            return record.finisher != worker.pod and worker.alive(record.finisher)
        return (
            record.owner not in ("", worker.pod) and worker.loop.time() - self._seen[record.cid] < OWNER_FIRST_SECONDS
        )

    async def _session(self, hosted: Hosted, record: CallRecord) -> Session:
        session = hosted.session(record.cid)
        session._begin(record.session_id, record.cid, record.media_format or None, None)  # type: ignore[arg-type]
        session._start = record.start
        session._state = SessionState.ENDED
        session._transcript.extend(
            ConversationTextEvent(session_id=session.session_id, role=line.role, content=line.content)  # type: ignore[arg-type]
            for line in await self._worker.calls.transcript(record.cid)
        )
        return session


@dataclass(frozen=True, slots=True)
class _Kept:
    """A call whose finish was tried here: the session that the application knows, the handlers that have succeeded, and
    those that could not be cut off."""

    session: Session
    done: frozenset[str]
    left: dict[str, Crossing[Exception | None]]

    @property
    def over(self) -> bool:
        """None of its handlers is running."""
        return all(work.over for work in self.left.values())

    @property
    def succeeded(self) -> frozenset[str]:
        """The handlers that have, be it when nobody waited for them any more. Redis may not know all of them."""
        return self.done | {name for name, work in self.left.items() if work.results == [None]}


def _tries(record: CallRecord) -> int:
    """How often the finish was begun since it was owed, or owed again."""
    return record.tries - record.tries_reopened


def _pause(record: CallRecord) -> float:
    """How long to wait before the try after this one."""
    return PAUSES_SECONDS[min(max(_tries(record), 1), len(PAUSES_SECONDS)) - 1]


def finish_key(cid: str) -> str:
    """The idempotency key of a call's finish."""
    return f"{cid}:session_end"
