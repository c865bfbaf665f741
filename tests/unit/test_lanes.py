"""bridge_worker.handlers: two threads, as in a worker. The events come from the media thread, handlers run in the
loop of the test, which is the customer's."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from bridge_shared import metrics
from bridge_shared.lifecycle import MediaThread
from bridge_shared.types.audiocodes import BridgeErrorEvent
from bridge_worker.crossing import LeftBehind
from bridge_worker.handlers import LANE_LENGTH, Handlers, Lane, current, handler_name, named, waiting_for_the_end


@dataclass(frozen=True)
class Call:
    """What handlers get as their session, as far as lanes know it."""

    session_id: str = "s-1"
    conversation_id: str = "c-1"


@dataclass
class App:
    """An application with its handlers, and the thread that its events come from."""

    media: MediaThread
    registry: dict[str, list[Callable[..., Any]]] = field(default_factory=dict)
    log: list[Any] = field(default_factory=list)
    seconds: float = 30.0

    def __post_init__(self) -> None:
        self.handlers = Handlers(self.registry, asyncio.get_running_loop(), seconds=self.seconds)
        self.running = asyncio.create_task(self.handlers.run())

    def on(self, event: str, *handlers: Callable[..., Any]) -> None:
        self.registry[event] = [*self.registry.get(event, []), *handlers]

    def lane(self, session_id: str = "s-1") -> Lane:
        return self.handlers.lane(Call(session_id))

    def put(self, lane: Lane, name: str, *events: Any) -> None:
        for event in events:
            self.media.call(lane.put, name, event)

    async def done(self, lane: Lane, name: str, event: Any = None) -> None:
        """Put an event and wait until it is done."""
        done = asyncio.Event()
        self.media.call(lane.put, name, event, done.set)
        await done.wait()

    async def idle(self, lane: Lane) -> None:
        done = asyncio.Event()
        self.media.call(lane.when_idle, done.set)
        await done.wait()

    async def media_has_run(self) -> None:
        """All that was asked of the media thread before has happened, and what it posted here as well."""

        async def nothing() -> None: ...

        await asyncio.wrap_future(self.media.submit(nothing()))
        await asyncio.sleep(0)

    async def finish(self, seconds: float = 30.0, skip: set[str] | None = None) -> dict[str, Exception | None]:
        work = self.handlers.finish(Call(), "the end", seconds=seconds, skip=skip or set())
        return await asyncio.wrap_future(self.media.submit(work))

    async def stop(self) -> None:
        self.running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.running


@pytest.fixture
def media() -> Iterator[MediaThread]:
    with MediaThread() as thread:
        yield thread


@pytest.fixture
async def app(media: MediaThread) -> AsyncIterator[App]:
    app = App(media)
    yield app
    await app.stop()


# ── where and in which order ───────────────────────────────────────────────────────────────────────────────


async def test_handlers_run_in_the_customers_loop(app: App):
    loop, thread = asyncio.get_running_loop(), threading.current_thread()

    async def handler(_session: Any, _event: Any) -> None:
        app.log.append((asyncio.get_running_loop() is loop, threading.current_thread() is thread))

    app.on("activity", handler, lambda _s, _e: app.log.append(threading.current_thread() is thread))
    await app.done(app.lane(), "activity")
    assert app.log == [(True, True), True]


async def test_a_handler_that_blocks_its_loop_does_not_hold_up_the_media_thread(app: App):
    let_go = threading.Event()

    def handler(_session: Any, _event: Any) -> None:
        app.media.call(let_go.set)  # only another thread can do this while we block
        app.log.append(let_go.wait(20))

    app.on("activity", handler)
    await app.done(app.lane(), "activity")
    assert app.log == [True]


async def test_events_of_a_lane_keep_their_order_and_their_handlers_never_overlap(app: App):
    async def slow(_session: Any, event: int) -> None:
        app.log.append(("begins", event))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        app.log.append(("ends", event))

    app.on("a", slow)
    app.on("b", slow)
    lane = app.lane()
    for number in range(50):
        app.put(lane, "ab"[number % 2], number)
    await app.idle(lane)
    assert app.log == [(what, number) for number in range(50) for what in ("begins", "ends")]


async def test_handlers_of_one_event_run_one_after_the_other_as_they_were_registered(app: App):
    async def first(_session: Any, _event: Any) -> None:
        await asyncio.sleep(0)
        app.log.append("first")

    app.on("activity", first, lambda _s, _e: app.log.append("second"))
    await app.done(app.lane(), "activity")
    assert app.log == ["first", "second"]


async def test_a_handler_of_one_lane_may_wait_for_an_event_of_the_other(app: App):
    agent_spoke = asyncio.Event()

    async def waits(_session: Any, _event: Any) -> None:
        await agent_spoke.wait()
        app.log.append("waited")

    app.on("session_start", waits)
    app.on("conversation_text", lambda _s, _e: agent_spoke.set())
    telephony, agent = app.lane(), app.lane()
    app.put(telephony, "session_start", None)
    await app.media_has_run()
    app.put(agent, "conversation_text", None)
    await app.idle(telephony)
    assert app.log == ["waited"]


async def test_a_handler_that_hangs_holds_up_no_other_call(app: App):
    forever = asyncio.Event()

    async def handler(session: Call, _event: Any) -> None:
        if session.session_id == "hangs":
            await forever.wait()
        app.log.append(session.session_id)

    app.on("activity", handler)
    app.put(app.lane("hangs"), "activity", None)
    await app.done(app.lane("other"), "activity")
    assert app.log == ["other"]


async def test_any_callable_is_a_handler(app: App):
    class Object:
        def __call__(self, session: Call, event: Any) -> None:
            app.log.append(("object", session.session_id, event))

        async def method(self, session: Call, event: Any) -> None:
            app.log.append(("method", session.session_id, event))

    def function(session: Call, event: Any) -> str:
        app.log.append(("function", session.session_id, event))
        return "ignored"

    app.on("activity", function, Object(), Object().method, lambda s, e: app.log.append(("lambda", s.session_id, e)))
    await app.done(app.lane(), "activity", 7)
    assert app.log == [(kind, "s-1", 7) for kind in ("function", "object", "method", "lambda")]


async def test_a_handler_that_is_registered_late_hears_of_live_calls(app: App):
    lane = app.lane()
    await app.done(lane, "activity", 1)
    app.on("activity", lambda _s, event: app.log.append(event))
    await app.done(lane, "activity", 2)
    assert app.log == [2]


async def test_a_handler_knows_the_lane_that_it_runs_in(app: App):
    def handler(_session: Any, _event: Any) -> None:
        running = current.get()
        assert running is not None
        app.log.append(running.lane)

    app.on("activity", handler)
    lanes = [app.lane(), app.lane()]
    for lane in lanes:
        await app.done(lane, "activity")
    assert app.log == lanes
    assert current.get() is None


async def test_it_is_known_which_events_are_wanted(app: App):
    app.on("activity", print)
    assert app.handlers.wants("activity")
    assert not app.handlers.wants("conversation_text")


# ── what goes wrong ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("how", ["plain", "coroutine"])
async def test_a_handler_that_raises_is_reported_and_the_others_still_run(app: App, how: str):
    problem = ValueError("no such parcel")

    def plain(_session: Any, _event: Any) -> None:
        raise problem

    async def coroutine(_session: Any, _event: Any) -> None:
        raise problem

    app.on("activity", plain if how == "plain" else coroutine, lambda _s, event: app.log.append(event))
    app.on("error", lambda _s, event: app.log.append(event))
    lane = app.lane()
    await app.done(lane, "activity", 1)
    expected = BridgeErrorEvent(
        session_id="s-1",
        description="handler for 'activity' raised: no such parcel",
        code="handler_error",
        cause=problem,
        recoverable=True,
    )
    assert app.log == [expected, 1]
    await app.done(lane, "activity", 2)
    assert app.log[-1] == 2


async def test_an_error_handler_that_raises_is_logged_only(app: App, caplog: pytest.LogCaptureFixture):
    def bad(_session: Any, _event: Any) -> None:
        raise ValueError("bad")

    app.on("error", bad, lambda _s, event: app.log.append(event))
    with caplog.at_level(logging.ERROR):
        await app.done(app.lane(), "error", "the error")
    assert app.log == ["the error"]
    assert [record.message for record in caplog.records] == ["handler raised"]


async def test_a_handler_that_takes_too_long_is_cancelled_and_reported(media: MediaThread):
    app = App(media, seconds=0.02)

    async def hangs(_session: Any, _event: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            app.log.append("cancelled")

    app.on("activity", hangs)
    app.on("error", lambda _s, event: app.log.append((event.description, type(event.cause))))
    lane = app.lane()
    await app.done(lane, "activity")
    text = "handler for 'activity' raised: it took longer than 0.02 s and was cancelled"
    assert app.log == ["cancelled", (text, TimeoutError)]
    app.on("after", lambda _s, event: app.log.append(event))
    await app.done(lane, "after", "goes on")
    assert app.log[-1] == "goes on"
    await app.stop()


async def test_a_time_out_of_the_handlers_own_is_told_in_its_own_words(app: App):
    def fails(_session: Any, _event: Any) -> None:
        raise TimeoutError("the database is slow")

    app.on("activity", fails)
    app.on("error", lambda _s, event: app.log.append(event.description))
    await app.done(app.lane(), "activity")
    assert app.log == ["handler for 'activity' raised: the database is slow"]


async def test_a_handler_that_awaited_something_cancelled_is_reported_and_the_lane_goes_on(app: App):
    async def handler(_session: Any, event: int) -> None:
        app.log.append(event)
        if event == 1:
            gone = asyncio.ensure_future(asyncio.Event().wait())
            gone.cancel()
            await gone

    app.on("activity", handler)
    app.on("error", lambda _s, event: app.log.append(event.code))
    lane = app.lane()
    app.put(lane, "activity", 1, 2)
    await app.done(lane, "activity", 3)
    assert app.log == [1, "handler_error", 2, 3]


async def test_too_many_waiting_events_are_dropped_newest_first_and_counted(app: App, caplog: pytest.LogCaptureFixture):
    go = asyncio.Event()

    async def handler(_session: Any, event: int) -> None:
        await go.wait()
        app.log.append(event)

    before = metrics.registry.get_sample_value("bridge_handler_errors_total", {"event": "dropped"}) or 0
    app.on("activity", handler)
    lane = app.lane()
    app.put(lane, "activity", 0)
    await app.media_has_run()
    await asyncio.sleep(0)  # the first one is running, and waits no longer
    app.put(lane, "activity", *range(1, LANE_LENGTH + 1))
    with caplog.at_level(logging.ERROR):
        await app.done(lane, "activity", LANE_LENGTH + 1)  # done at once: it will never run
    go.set()
    await app.idle(lane)
    assert app.log == list(range(LANE_LENGTH + 1))
    assert metrics.registry.get_sample_value("bridge_handler_errors_total", {"event": "dropped"}) == before + 1
    assert len(caplog.records) == 1


# ── done ───────────────────────────────────────────────────────────────────────────────────────────────────


async def test_an_event_is_done_when_its_last_handler_has_returned(app: App):
    async def handler(_session: Any, _event: Any) -> None:
        await asyncio.sleep(0)
        app.log.append("handled")

    app.on("activity", handler, handler)
    done = asyncio.Event()
    app.media.call(app.lane().put, "activity", None, lambda: (app.log.append("done"), done.set()))
    await done.wait()
    assert app.log == ["handled", "handled", "done"]


async def test_an_event_that_nobody_wants_is_done_in_its_turn(app: App):
    go = asyncio.Event()

    async def handler(_session: Any, _event: Any) -> None:
        await go.wait()
        app.log.append("handled")

    app.on("activity", handler)
    lane = app.lane()
    app.put(lane, "activity", None)
    app.media.call(lane.put, "unwanted", None, lambda: app.log.append("done"))
    await app.media_has_run()
    assert app.log == []
    go.set()
    await app.idle(lane)
    assert app.log == ["handled", "done"]


async def test_events_of_a_closed_lane_are_done_and_never_handled(app: App):
    go, running = asyncio.Event(), asyncio.Event()

    async def handler(_session: Any, event: int) -> None:
        running.set()
        await go.wait()
        app.log.append(event)

    app.on("activity", handler)
    lane = app.lane()
    app.put(lane, "activity", 1)
    await running.wait()
    app.media.call(lane.put, "activity", 2, lambda: app.log.append("2 is done"))
    app.media.call(lane.close)
    await app.done(lane, "activity", 3)
    assert app.log == ["2 is done"]
    go.set()
    await app.idle(lane)
    assert app.log == ["2 is done", 1]


async def test_when_handlers_are_stopped_the_running_one_is_cancelled_and_everything_is_done(app: App):
    running = asyncio.Event()

    async def handler(_session: Any, event: int) -> None:
        running.set()
        try:
            await asyncio.Event().wait()
        finally:
            app.log.append(f"{event} is cancelled")

    app.on("activity", handler)
    lane = app.lane()
    app.media.call(lane.put, "activity", 1, lambda: app.log.append("1 is done"))
    app.media.call(lane.put, "activity", 2, lambda: app.log.append("2 is done"))
    app.media.call(lane.when_idle, lambda: app.log.append("idle"))
    await running.wait()
    await app.media_has_run()
    await app.stop()
    assert sorted(app.log) == ["1 is cancelled", "1 is done", "2 is done", "idle"]
    await app.done(lane, "activity", 3)
    await app.idle(lane)
    assert len(app.log) == 4


async def test_when_the_customers_loop_is_closed_everything_is_done_in_the_media_thread(media: MediaThread):
    loop = asyncio.new_event_loop()
    loop.close()
    handlers = Handlers({"activity": [print], "session_end": [print]}, loop, seconds=1)
    lane = handlers.lane(Call())
    log: list[str] = []

    async def put() -> None:
        lane.put("activity", None, lambda: log.append("done"))
        lane.when_idle(lambda: log.append("idle"))
        lane.close()
        log.append(str(handlers.post(print)))

    await asyncio.wrap_future(media.submit(put()))
    assert log == ["done", "idle", "False"]
    work = handlers.finish(Call(), None, seconds=1)
    (problem,) = (await asyncio.wrap_future(media.submit(work))).values()
    assert str(problem) == "the application's event loop is closed"


# ── idle, and away ─────────────────────────────────────────────────────────────────────────────────────────


async def test_a_lane_is_idle_once_all_that_was_put_before_is_handled(app: App):
    app.on("activity", lambda _s, event: app.log.append(event))
    lane = app.lane()
    await app.idle(lane)
    app.put(lane, "activity", *range(20))
    await app.idle(lane)
    assert app.log == list(range(20))


async def test_a_handler_that_waits_for_the_end_of_the_call_does_not_hold_it_up(app: App):
    ended, back = asyncio.Event(), asyncio.Event()

    async def hangs_up(_session: Any, _event: Any) -> None:
        with waiting_for_the_end():
            await ended.wait()
        await back.wait()
        app.log.append("returned")

    app.on("activity", hangs_up)
    lane = app.lane()
    app.put(lane, "activity", None)
    await app.idle(lane)
    assert app.log == []
    ended.set()
    await app.media_has_run()
    waiting = asyncio.create_task(app.idle(lane))
    await app.media_has_run()
    assert not waiting.done()  # it is back, and counts again
    back.set()
    await waiting
    assert app.log == ["returned"]


async def test_the_time_of_a_handler_does_not_run_while_it_is_away_and_begins_anew_afterwards(media: MediaThread):
    app = App(media, seconds=0.02)
    loop = asyncio.get_running_loop()

    async def handler(_session: Any, event: str) -> None:
        with waiting_for_the_end():
            waited = asyncio.Event()
            loop.call_later(0.06, waited.set)
            await waited.wait()
        app.log.append(event)
        await asyncio.Event().wait()

    app.on("activity", handler)
    app.on("error", lambda _s, event: app.log.append(type(event.cause)))
    await app.done(app.lane(), "activity", "came back")
    assert app.log == ["came back", TimeoutError]
    await app.stop()


async def test_a_task_that_a_handler_left_behind_may_wait_for_the_end_too(app: App):
    go = asyncio.Event()

    async def waits() -> None:
        await go.wait()
        with waiting_for_the_end():
            app.log.append("waits")

    tasks: list[asyncio.Task[None]] = []
    app.on("activity", lambda _s, _e: tasks.append(asyncio.create_task(waits())))
    await app.done(app.lane(), "activity")
    go.set()
    await tasks[0]
    with waiting_for_the_end():  # outside of any handler
        app.log.append("waits")
    assert app.log == ["waits", "waits"]


async def test_a_closed_lane_lets_the_running_handler_return_and_starts_no_other(app: App):
    go, running = asyncio.Event(), asyncio.Event()

    async def handler(_session: Any, _event: Any) -> None:
        running.set()
        await go.wait()
        app.log.append("first")

    app.on("activity", handler, lambda _s, _e: app.log.append("second"))
    lane = app.lane()
    app.put(lane, "activity", None)
    await running.wait()
    app.media.call(lane.close)
    await app.media_has_run()
    go.set()
    await app.idle(lane)
    assert app.log == ["first"]


# ── session_end ────────────────────────────────────────────────────────────────────────────────────────────


async def crm(_session: Any, _event: Any) -> None: ...


def broken(_session: Any, _event: Any) -> None:
    raise ValueError("CRM is down")


async def test_the_finish_tells_of_each_handler_what_came_of_it(app: App):
    app.on("session_end", crm, broken, lambda _s, event: app.log.append(event))
    app.on("error", lambda _s, event: app.log.append(event.description))
    results = await app.finish()
    assert [repr(problem) for problem in results.values()] == ["None", "ValueError('CRM is down')", "None"]
    assert [name.rpartition(".")[2] for name in results][:2] == ["crm", "broken"]
    assert app.log == ["handler for 'session_end' raised: CRM is down", "the end"]


async def test_a_handler_that_has_succeeded_is_not_run_again(app: App):
    app.on("session_end", lambda _s, event: app.log.append(event), crm)
    first = await app.finish()
    again = await app.finish(skip={next(iter(first))})
    assert list(again) == [handler_name(crm)]
    assert app.log == ["the end"]


async def test_a_finish_handler_that_hangs_is_cut_off_and_the_next_one_runs(app: App):
    async def hangs(_session: Any, _event: Any) -> None:
        await asyncio.Event().wait()

    app.on("session_end", hangs, crm)
    results = await app.finish(seconds=0.02)
    assert list(map(repr, results.values())) == [
        "TimeoutError('it took longer than 0.02 s and was cancelled')",
        "None",
    ]


async def test_a_finish_handler_that_blocks_its_loop_is_left_behind_and_what_it_did_late_is_known(
    app: App, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("bridge_worker.crossing.CUT_OFF_SECONDS", 0.02)
    let_go = threading.Event()
    app.on("session_end", lambda _s, _e: app.log.append(let_go.wait(10)), lambda _s, _e: app.log.append("next"))
    app.on("error", lambda _s, event: app.log.append(event.code))
    failures = metrics.handler_errors.labels(event="session_end")
    before = failures._value.get()
    future = app.media.submit(app.handlers.finish(Call(), None, seconds=0.02))
    future.add_done_callback(lambda _future: let_go.set())
    blocking, waiting = (await asyncio.wrap_future(future)).values()
    assert isinstance(blocking, LeftBehind) and isinstance(waiting, LeftBehind)
    assert failures._value.get() == before + 2
    await app.media_has_run()
    assert (blocking.work.over, blocking.work.results) == (True, [None])
    assert (waiting.work.over, waiting.work.results) == (True, []), "what nobody waits for any more does not begin"
    assert app.log == [True, "handler_error", "handler_error"]


async def test_the_next_handler_begins_when_the_success_of_the_one_before_is_recorded_and_only_if_it_is_ours(app: App):
    async def succeeded(name: str) -> bool:
        app.log.append(name.rpartition(".")[2])
        return len(app.log) < 4

    def one(_session: Any, _event: Any) -> None:
        app.log.append("runs")

    app.on("session_end", one, one, one)
    work = app.handlers.finish(Call(), None, seconds=1, succeeded=succeeded)
    await asyncio.wrap_future(app.media.submit(work))
    assert app.log == ["runs", f"{one.__name__}", "runs", f"{one.__name__}#2"]


async def test_it_is_known_whether_the_customers_loop_answers(app: App, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("bridge_worker.crossing.CUT_OFF_SECONDS", 0.02)
    assert await asyncio.wrap_future(app.media.submit(app.handlers.answers()))
    assert app.media.submit(app.handlers.answers()).result(10) is False  # this blocks the customer's loop


async def test_cancelling_the_finish_cancels_the_handler(app: App):
    running, cancelled = asyncio.Event(), asyncio.Event()

    async def hangs(_session: Any, _event: Any) -> None:
        running.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    app.on("session_end", hangs, lambda _s, _e: app.log.append("next"))
    future = app.media.submit(app.handlers.finish(Call(), None, seconds=30))
    await running.wait()
    future.cancel()
    await cancelled.wait()
    await app.media_has_run()
    assert app.log == []


def test_the_name_of_a_handler_is_the_same_in_every_process():
    class Crm:
        def __call__(self, _session: Any, _event: Any) -> None: ...

        def write(self, _session: Any, _event: Any) -> None: ...

    assert handler_name(crm) == f"{__name__}.crm"
    assert handler_name(Crm()) == handler_name(Crm())
    assert handler_name(Crm().write) == handler_name(Crm().write)
    assert handler_name(functools.partial(crm, key=1)) == handler_name(crm)


def test_one_more_handler_renames_no_other():
    before, after = named([crm, crm]), named([broken, crm, crm])
    assert len(before) == 2
    assert set(after) == {*before, handler_name(broken)}
