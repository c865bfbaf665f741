"""Sessions and handlers, as §4 to §6, §12.3 and §13 of the SDK reference promise them to an application."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve

from bridge_shared import config
from bridge_shared.lifecycle import MediaThread
from bridge_sim.agent import AgentConnection, AgentScript, Faults, SimulatedAgent
from bridge_sim.caller import SimulatedCall
from bridge_sim.plan import CallPlan, CallProblem
from deepgram_audiocodes_bridge import BridgeConfig, DeepgramBridge, Session, SessionEndEvent
from deepgram_audiocodes_bridge.process import command
from harness import AGENT, Running, configuration, free_port, running
from sdk import EVENTS, WELCOME, Notes, calling, ended

QUICK = AgentScript(think_s=0)
TRACK = {"name": "track_parcel", "description": "state of a parcel", "parameters": {"type": "object", "properties": {}}}


def make_bridge(**fields: Any) -> DeepgramBridge:
    """A bridge whose agent may call a function."""
    think = {**AGENT["agent"]["think"], "functions": [TRACK]}
    return DeepgramBridge(configuration(deepgram_config={"agent": {**AGENT["agent"], "think": think}}, **fields))


class Stage:
    """A bridge at work, the agent behind it and what its handlers are told."""

    def __init__(self, app: Running, agent: SimulatedAgent, notes: Notes) -> None:
        self.app, self.agent, self.notes = app, agent, notes

    @property
    def connection(self) -> AgentConnection:
        return self.agent.connections[-1]

    async def closed(self) -> None:
        """Wait until the latest call is over in every respect."""
        control, media = self.notes.session._control, self.app.process.media
        assert control is not None
        await asyncio.wrap_future(media.submit(control.over()))


@contextlib.asynccontextmanager
async def stage(redis_url: str, bridge: DeepgramBridge, **settings: Any) -> AsyncIterator[Stage]:
    notes = Notes(bridge)
    async with SimulatedAgent(QUICK) as agent, running(bridge, redis_url, agent, **settings) as app:
        yield Stage(app, agent, notes)


# ── §5.1: how handlers are called ──────────────────────────────────────────────────────────────────────────────────


async def test_handlers_of_every_kind_are_called_with_session_and_event_in_the_order_of_registration(
    redis_url: str,
) -> None:
    bridge = make_bridge()
    called: list[tuple[str, type, type]] = []

    def note(name: str, session: object, event: object) -> None:
        called.append((name, type(session), type(event)))

    class Callee:
        def __call__(self, session: object, event: object) -> None:
            note("object", session, event)

        async def method(self, session: object, event: object) -> None:
            await asyncio.sleep(0)
            note("method", session, event)

    @bridge.on("session_end")
    @bridge.on("session_end")
    def plain(session: object, event: object) -> str:
        note("plain", session, event)
        return "ignored"

    @bridge.on("session_end")
    async def coroutine(session: object, event: object) -> None:
        await asyncio.sleep(0.01)  # the others would overtake it if they were not called one after the other
        note("coroutine", session, event)

    bridge.on("session_end")(lambda session, event: note("lambda", session, event))
    assert bridge.on("session_end")(Callee()) is not None
    bridge.on("session_end")(Callee().method)
    bridge.on("no_such_event")(lambda session, event: note("never", session, event))
    assert callable(plain)
    async with stage(redis_url, bridge) as s:
        async with calling(s.app.url) as call:
            bridge.on("session_end")(lambda session, event: note("late", session, event))
            await call.hang_up()
        await s.notes.wait("session_end")
        await asyncio.sleep(0)
    kinds = ["plain", "plain", "coroutine", "lambda", "object", "method"]
    names = [name for name, _, _ in called]
    assert names[: len(kinds)] == kinds
    assert names[len(kinds) :] == ["late"]
    assert {session for _, session, _ in called} == {Session}
    assert all(issubclass(event, SessionEndEvent) for _, _, event in called)


async def test_a_handler_that_raises_is_reported_and_nothing_else_stops(redis_url: str) -> None:
    bridge = make_bridge()
    called: list[str] = []
    mistake = ValueError("no such customer")

    @bridge.on("session_start")
    def raising(session: Session, event: object) -> None:
        raise mistake

    @bridge.on("session_start")
    async def cancelled(session: Session, event: object) -> None:
        raise asyncio.CancelledError  # as from a task of its own that was cancelled

    @bridge.on("error")
    def raising_too(session: Session, event: object) -> None:
        called.append("first error handler")
        raise KeyError("x")

    bridge.on("session_start")(lambda session, event: called.append("last"))
    async with stage(redis_url, bridge) as s, calling(s.app.url) as call:
        await s.notes.wait("activity")
        s.connection.say("agent_welcome")
        await s.notes.wait("conversation_text")
        await call.hang_up()
        await s.notes.wait("session_end")
    assert called == ["first error handler", "first error handler", "last"]
    first, second = s.notes.of("error")
    assert first.description == "handler for 'session_start' raised: no such customer"
    assert (first.code, first.recoverable, first.cause) == ("handler_error", True, mistake)
    assert first.session_id == s.notes.session.session_id
    assert (second.code, second.recoverable) == ("handler_error", True)
    assert isinstance(second.cause, Exception)
    assert s.notes.of("session_end")[0].reason == "hangup"


async def test_a_handler_that_hangs_is_stopped_and_reported_and_the_call_goes_on(redis_url: str) -> None:
    bridge = make_bridge()
    bridge.on("session_start")(lambda session, event: asyncio.sleep(3600))
    async with stage(redis_url, bridge, handler_timeout=0.3) as s, calling(s.app.url) as call:
        s.connection.say("agent_welcome")
        await s.notes.wait("conversation_text")
        assert s.notes.of("error") == []
        error = await s.notes.wait("error")
        await s.notes.wait("activity")
        await s.notes.wait("agent_audio_done")
        await call.hang_up()
        await s.notes.wait("session_end")
    assert (error.code, error.recoverable) == ("handler_error", True)
    assert "0.3 s" in error.description
    assert s.notes.names.index("error") < s.notes.names.index("activity")  # which came when the handler was stopped


async def test_a_session_end_handler_that_hangs_holds_up_nobody_for_ever(redis_url: str) -> None:
    bridge = make_bridge()
    bridge.on("session_end")(lambda session, event: asyncio.sleep(3600))
    async with stage(redis_url, bridge, finish_timeout=0.3) as s:
        async with calling(s.app.url) as call:
            await call.hang_up()
        error = await s.notes.wait("error")
    assert error.code == "handler_error"
    assert s.notes.names.count("session_end") == 1  # the one that succeeded is not run again


# ── §5.2: order and lanes ──────────────────────────────────────────────────────────────────────────────────────────


async def test_no_activity_comes_before_the_session_start_handlers_have_finished(redis_url: str) -> None:
    bridge = make_bridge()
    order: list[str] = []

    @bridge.on("session_start")
    async def begin(session: Session, event: Any) -> None:
        order.append("begun")
        assert session.is_active
        assert session.conversation_id == event.conversation_id
        assert session.media_format == event.media_format == "raw/mulaw"
        await asyncio.sleep(0.3)  # the activities come meanwhile; nothing tells that they wait
        order.append("finished")

    bridge.on("activity")(lambda session, event: order.append(event.activity["name"]))
    async with stage(redis_url, bridge) as s, calling(s.app.url) as call:
        await call.send_dtmf("12")
        await s.notes.wait("activity", 2)
    assert order == ["begun", "finished", "start", "DTMF"]


async def test_a_session_start_handler_may_wait_for_what_the_agent_says(redis_url: str) -> None:
    bridge = DeepgramBridge(configuration(greeting=WELCOME))
    greeted = asyncio.Event()
    order: list[str] = []

    @bridge.on("session_start")
    async def begin(session: Session, event: object) -> None:
        order.append("begun")
        await greeted.wait()
        order.append("greeted")

    @bridge.on("conversation_text")
    def text(session: Session, event: Any) -> None:
        order.append(event.content)
        assert [line.content for line in session.get_transcript()] == [WELCOME]
        greeted.set()

    async with stage(redis_url, bridge) as s, calling(s.app.url):
        await s.notes.wait("activity")
    assert order == ["begun", WELCOME, "greeted"]


async def test_handlers_of_one_lane_never_overlap_and_the_lanes_do(redis_url: str) -> None:
    bridge = make_bridge()
    lanes = {"activity": 0, "warning": 0, "agent_thinking": 0}
    together = 0
    seen: list[object] = []

    def handler(name: str) -> Callable[[Session, Any], Awaitable[None]]:
        async def handle(session: Session, event: Any) -> None:
            nonlocal together
            lanes[name] += 1
            assert lanes[name] == 1
            assert lanes["warning"] + lanes["agent_thinking"] <= 1
            together = max(together, sum(lanes.values()))
            await asyncio.sleep(0.05)  # so that two that overlap are seen to
            lanes[name] -= 1
            seen.append(event.activity["value"] if name == "activity" else (name, event))

        return handle

    async with stage(redis_url, bridge) as s, calling(s.app.url) as call:
        await s.notes.wait("activity")
        for name in lanes:
            bridge.on(name)(handler(name))
        for number in range(4):
            await s.connection.send_json({"type": "Warning", "code": str(number), "description": ""})
            await s.connection.send_json({"type": "AgentThinking", "content": str(number)})
            await call.send_dtmf(str(number))
        await s.notes.wait("activity", 5)
        await s.notes.wait("agent_thinking", 4)
        await call.hang_up()
        await s.notes.wait("session_end")
    assert s.notes.of("error") == []
    assert together == 2
    assert [value for value in seen if isinstance(value, str)] == ["0", "1", "2", "3"]
    agents = [
        (name, getattr(event, "code", "") or getattr(event, "content", "")) for name, event in filter(_pair, seen)
    ]
    assert agents == [(name, str(number)) for number in range(4) for name in ("warning", "agent_thinking")]


def _pair(value: object) -> bool:
    return isinstance(value, tuple)


async def test_a_handler_that_blocks_its_loop_does_not_delay_the_audio(redis_url: str) -> None:
    bridge = make_bridge()
    bridge.on("session_start")(lambda session, event: time.sleep(0.5))
    bridge.on("conversation_text")(lambda session, event: time.sleep(2))
    with MediaThread("simulators") as elsewhere:  # the loop of the test is the one that is blocked
        agent = SimulatedAgent(QUICK)

        async def place(url: str) -> SimulatedCall:
            async with calling(url) as call:
                agent.connections[0].say("agent_in_transit")
                await call.wait_interruptible()
                await agent.connections[0].wait_for(lambda connection: not connection.busy)
                await call.hang_up()
            return call

        async def there(work: Any) -> Any:
            return await asyncio.wrap_future(elsewhere.submit(work))

        await there(agent.start())
        async with running(bridge, redis_url, agent) as app:
            notes = Notes(bridge)
            call: SimulatedCall = await there(place(app.url))
            await notes.wait("session_end")
        await there(agent.stop())
    report, connection = call.report(), agent.connections[0]
    assert (report.problem, report.violations, report.gaps) == (None, [], [])
    assert connection.problems == []
    assert max(later - earlier for (earlier, _), (later, _) in itertools.pairwise(connection.frames)) < 1.2


# ── §6, §13.4: the end, exactly once ───────────────────────────────────────────────────────────────────────────────


async def test_a_caller_who_hangs_up_ends_the_session(redis_url: str) -> None:
    async with stage(redis_url, make_bridge()) as s:
        async with calling(s.app.url) as call:
            await s.notes.wait("activity")
            s.connection.say("agent_welcome")
            await s.notes.wait("conversation_text")
            await call.hang_up()
        end = await s.notes.wait("session_end")
        await ended(s.closed())
        record = await s.app.calls("read", call.conversation_id)
    start = s.notes.of("session_start")[0]
    assert (end.session_id, end.reason) == (start.session_id, "hangup")
    assert 0 < end.duration_ms < 5000
    assert start.started_at.endswith("+00:00")
    assert end.ended_at.endswith("+00:00")
    assert (record.reason, record.detail, record.finish) == ("hangup", "client-disconnected", "done")
    assert s.notes.names.count("session_end") == 1


@pytest.mark.parametrize("formats", [("raw/lpcm16_24",), ()], ids=["no_common_format", "no_formats"])
async def test_a_call_that_is_refused_at_once_ends_with_hangup_and_lasted_no_time(
    redis_url: str, formats: tuple[str, ...]
) -> None:
    async with stage(redis_url, make_bridge()) as s:
        report = await SimulatedCall(s.app.url, CallPlan(formats=formats)).run()
        end = await s.notes.wait("session_end")
    assert report.problem == "the bot sent session.error: No common media format"
    assert (end.reason, end.duration_ms) == ("hangup", 0)
    assert s.notes.names == ["session_end"]


async def test_a_caller_who_hangs_up_before_the_agent_is_ready_leaves_nothing_behind(redis_url: str) -> None:
    async with stage(redis_url, make_bridge()) as s, SimulatedCall(s.app.url, CallPlan()) as call:
        s.agent.script = AgentScript(faults=Faults(slow_settings_s=2))
        await call.connect()
        placing = asyncio.create_task(call.initiate())
        await s.agent.wait_for(lambda agent: agent.connections and agent.connections[0].settings)
        await call.hang_up()
        with pytest.raises(CallProblem):
            await placing
        await s.connection.wait_for(lambda connection: connection.closed)
        record = await s.app.calls("read", call.conversation_id)
    assert (record.state, record.finish) == ("ended", "none")
    assert s.notes.names == []


async def test_a_caller_who_is_lost_and_does_not_come_back_ends_the_session(redis_url: str) -> None:
    async with stage(redis_url, make_bridge(), lost_seconds=1.0) as s, calling(s.app.url) as call:
        await s.notes.wait("activity")
        await call.drop()
        end = await s.notes.wait("session_end")
        await s.connection.wait_for(lambda connection: connection.closed)
    (error,) = s.notes.of("error")
    assert (error.code, error.recoverable) == ("audiocodes_error", False)
    assert end.reason == "error"
    assert s.notes.names[-2:] == ["error", "session_end"]


async def test_a_caller_whose_edge_falls_silent_ends_the_session_as_well(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stage(redis_url, make_bridge(), lost_seconds=1.0) as s, calling(s.app.url):
        await s.notes.wait("activity")
        edge = s.app.process.edge
        assert edge is not None
        monkeypatch.setattr(edge.outbox, "post", lambda pod, frame: None)  # as good as dead
        end = await s.notes.wait("session_end")
    assert (end.reason, s.notes.of("error")[0].code) == ("error", "audiocodes_error")


async def test_a_caller_who_is_lost_and_comes_back_goes_on_in_the_same_session(redis_url: str) -> None:
    async with stage(redis_url, make_bridge(), lost_seconds=1.0) as s, calling(s.app.url) as call:
        await s.notes.wait("activity")
        await call.drop()
        await call.resume()
        s.connection.say("agent_welcome")
        await s.notes.wait("agent_audio_done")  # by then the time of the loss would have run out
        await asyncio.sleep(0.3)  # with the 0.9 s of that sentence more than `lost_seconds`
        await call.hang_up()
        end = await s.notes.wait("session_end")
        assert len(s.agent.connections) == 1
    assert end.reason == "hangup"
    assert s.notes.names.count("session_start") == s.notes.names.count("session_end") == 1
    assert s.notes.of("error") == []


async def test_a_sentence_in_which_the_caller_was_lost_goes_on_when_he_is_back(redis_url: str, eventually: Any) -> None:
    async with stage(redis_url, make_bridge()) as s, calling(s.app.url, barge_in=True) as call:
        await s.notes.wait("activity")
        s.connection.say("agent_long_answer")
        await call.wait_interruptible()
        await call.drop()
        before = sum(len(played.data) for played in call.report().heard)
        await call.resume()
        await s.notes.wait("agent_audio_done", seconds=30)
        after = sum(len(played.data) for played in call.report().heard) - before

        async def heard_whole() -> bool:
            lines = await s.app.calls("transcript", call.conversation_id)
            return all(line.heard_ms is not None and not line.interrupted for line in lines if line.role == "assistant")

        await eventually(heard_whole)
        await call.hang_up()
    whole = s.connection.record.spoken_bytes
    assert before < whole / 2
    # what was heard after the last report of the former socket is heard again, but not the sentence from its beginning
    assert whole - 200 <= before + after < whole + before


async def test_what_must_not_be_kept_reaches_neither_redis_nor_handlers(redis_url: str) -> None:
    bridge = make_bridge(redact=lambda text: text.replace("hours", "[gone]"))
    async with stage(redis_url, bridge, redact="eight|six") as s, calling(s.app.url) as call:
        await call.say("opening_hours")
        await call.wait_answer()
        lines = await s.app.calls("transcript", call.conversation_id)
        await call.hang_up()
    kept = [
        "What are your opening [gone], please?",
        "We are open from [redacted] to [redacted], Monday to Friday.",
    ]
    assert [line.content for line in lines] == [content for _, content in s.notes.texts] == kept


async def test_what_an_answer_took_is_told_and_kept(redis_url: str) -> None:
    bridge = make_bridge()
    told: list[Any] = []
    bridge.on("turn_timing")(lambda session, event: told.append((event, session.turn_timings)))
    async with stage(redis_url, bridge) as s, calling(s.app.url) as call:
        await call.say("thank_you")
        await call.wait_answer()
        await call.hang_up()
    ((event, kept),) = told
    assert kept == [event.timing]
    assert 0 <= event.timing.text_ms <= event.timing.audio_ms


async def test_an_application_that_hangs_up_ends_the_session_with_its_reason(redis_url: str) -> None:
    async with stage(redis_url, make_bridge()) as s, calling(s.app.url) as call:
        await ended(s.notes.session.end_session("all done"))
        assert s.notes.names[-1] == "session_end"
        assert not s.notes.session.is_active
        await call.wait_end()
    report = call.report()
    (hangup,) = report.activities
    assert (hangup["name"], hangup["activityParams"]) == ("hangup", {"hangupReason": "all done"})
    assert (report.end, report.violations) == ("bot-disconnected", [])
    assert [end.reason for end in s.notes.of("session_end")] == ["ended"]


async def test_a_transfer_ends_the_session(redis_url: str) -> None:
    async with stage(redis_url, make_bridge()) as s, calling(s.app.url) as call:
        headers = [{"name": "X-Ticket", "value": "4711"}]
        transfer = s.notes.session.transfer("tel:+49301", handover_reason="a person", transfer_sip_headers=headers)
        await ended(transfer)
        assert [end.reason for end in s.notes.of("session_end")] == ["transfer"]
    (activity,) = call.report().activities
    assert (activity["name"], call.report().end) == ("transfer", "transferred")
    assert activity["activityParams"] == {
        "transferTarget": "tel:+49301",
        "handoverReason": "a person",
        "transferSipHeaders": [*headers, {"name": "X-Conversation-Id", "value": call.conversation_id}],
    }


async def test_a_transfer_that_fails_returns_with_the_session_active(redis_url: str) -> None:
    async with stage(redis_url, make_bridge()) as s, calling(s.app.url, transfer_fails=True) as call:
        for _ in range(2):
            await ended(s.notes.session.transfer("tel:+49301"))
            assert s.notes.session.is_active
        s.connection.say("agent_welcome")
        await s.notes.wait("conversation_text")
        assert s.notes.of("session_end") == []
        await ended(s.notes.session.end_session())
    assert [end.reason for end in s.notes.of("session_end")] == ["ended"]
    assert call.report().end == "bot-disconnected"


async def test_a_transfer_that_vaic_does_not_answer_ends_the_session_in_time(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge_sim.line.Line._carry_out", lambda line, activity, now: None)
    async with stage(redis_url, make_bridge(), transfer_wait_seconds=0.5, hangup_wait_seconds=0.5) as s:
        async with calling(s.app.url):
            await ended(s.notes.session.transfer("tel:+49301"))
        async with calling(s.app.url):
            await s.notes.wait("session_start", 2)
            await ended(s.notes.session.end_session())
    assert [end.reason for end in s.notes.of("session_end")] == ["transfer", "ended"]


async def test_a_caller_who_hangs_up_before_the_hangup_is_out_does_not_end_it_twice(
    redis_url: str, eventually: Any
) -> None:
    async with stage(redis_url, make_bridge()) as s, calling(s.app.url) as call:
        s.connection.say("agent_hours")
        await call.wait_interruptible()
        ending = asyncio.create_task(s.notes.session.end_session())  # it lets the agent finish its sentence first
        worker = s.app.process.worker
        assert worker is not None
        await eventually(lambda: worker._conversations[call.conversation_id].parting)
        await call.hang_up()
        await ended(ending)
    assert len(s.notes.of("session_end")) == 1


async def test_who_waits_for_an_agent_when_the_caller_hangs_up_is_freed_before_the_end(redis_url: str) -> None:
    bridge = make_bridge()
    order: list[str] = []

    @bridge.on("activity")
    async def ask(session: Session, event: Any) -> None:
        if event.activity["name"] == "DTMF":
            order.append("waits")
            await session.update_prompt("Be brief.")  # held until there is an agent again
            order.append("freed")

    bridge.on("session_end")(lambda session, event: order.append(event.reason))
    async with stage(redis_url, bridge) as s, calling(s.app.url) as call:
        s.agent.script = AgentScript(faults=Faults(refuse_handshakes=1000))
        s.connection.drop()
        await s.agent.wait_for(lambda agent: agent.refused)
        await call.send_dtmf("1")
        await s.agent.wait_for(lambda agent: agent.refused >= 3)
        assert (order, s.notes.session.is_active) == (["waits"], True)
        await call.hang_up()
        await s.notes.wait("session_end")
    assert order == ["waits", "freed", "hangup"]
    assert s.notes.of("error") == []


async def test_a_bridge_that_is_cancelled_hangs_up_and_every_session_ends(redis_url: str) -> None:
    async with stage(redis_url, make_bridge()) as s, calling(s.app.url) as one, calling(s.app.url) as other:
        await s.notes.wait("session_start", 2)
        s.app.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await ended(s.app.task)
        assert [end.reason for end in s.notes.of("session_end")] == ["ended", "ended"]
        await one.wait_end()
        await other.wait_end()
    for call in (one, other):
        assert (call.report().end, call.report().violations) == ("bot-disconnected", [])


# ── control inside handlers ────────────────────────────────────────────────────────────────────────────────────────


async def warn(s: Stage) -> None:
    await s.connection.send_json({"type": "Warning", "code": "X", "description": ""})


async def think(s: Stage) -> None:
    await s.connection.send_json({"type": "AgentThinking", "content": "hm"})


async def talk(s: Stage) -> None:
    s.connection.say("agent_welcome")


async def ask(s: Stage) -> None:
    s.connection.call(("track_parcel", "{}"))


async def update(s: Stage) -> None:
    await s.notes.session.update_prompt("Be brief.")


async def barge(s: Stage) -> None:
    await s.connection.barge()


async def nothing(s: Stage) -> None:
    pass


TRIGGERS: dict[str, Callable[[Stage], Awaitable[None]]] = {
    "session_start": nothing,
    "activity": nothing,
    "conversation_text": talk,
    "user_started_speaking": barge,
    "agent_thinking": think,
    "agent_audio_done": talk,
    "function_call_request": ask,
    "prompt_updated": update,
    "warning": warn,
    "error": warn,  # whose handler raises
}


@pytest.mark.parametrize("method", ["end_session", "transfer"])
@pytest.mark.parametrize("event", TRIGGERS)
async def test_every_handler_may_end_the_call_and_finds_it_ended(redis_url: str, event: str, method: str) -> None:
    bridge = make_bridge()
    found: list[tuple[bool, bool]] = []

    async def leave(session: Session, _: object) -> None:
        arguments = ("tel:+49301",) if method == "transfer" else ()
        if not found:
            found.append((False, False))
            await getattr(session, method)(*arguments)
            found[0] = (session.is_active, "session_end" in s.notes.names)

    if event == "error":
        bridge.on("warning")(lambda session, event: 1 / 0)
    bridge.on(event)(leave)
    plan = CallPlan(start_delay_s=0.0)
    # a handler may wait for the end longer than it may run: the agent's last sentence takes 0.9 s
    async with stage(redis_url, bridge, handler_timeout=0.6) as s, SimulatedCall(s.app.url, plan) as call:
        await call.connect()
        with contextlib.suppress(CallProblem):  # hung up as soon as it was taken, so that it never looked taken
            await call.initiate()
            await TRIGGERS[event](s)
        await call.wait_end()
        await s.notes.wait("session_end")
    assert found == [(False, True)]
    assert [end.reason for end in s.notes.of("session_end")] == ["ended" if method == "end_session" else "transfer"]
    assert s.notes.names[-1] == "session_end"
    assert call.report().violations == []


async def test_a_task_that_a_handler_started_may_end_the_call_when_the_handler_has_returned(redis_url: str) -> None:
    bridge = make_bridge()
    tasks: list[asyncio.Task[None]] = []
    returned = asyncio.Event()
    bridge.on("activity")(lambda session, event: returned.set())  # comes when `session_start` is done with

    @bridge.on("session_start")
    async def begin(session: Session, event: object) -> None:
        async def later() -> None:
            await returned.wait()
            await session.end_session()

        tasks.append(asyncio.create_task(later()))

    async with stage(redis_url, bridge) as s, calling(s.app.url) as call:
        await call.wait_end()
        await ended(tasks[0])
    assert [end.reason for end in s.notes.of("session_end")] == ["ended"]


CONTROLS: dict[str, tuple[Any, ...]] = {
    "send_agent_message": ("x",),
    "send_user_message": ("x",),
    "update_prompt": ("x",),
    "update_speak": ({},),
    "update_think": ({},),
    "respond_to_function_call": ("i", "n", "c"),
    "send_activity": ({"type": "event", "name": "x"},),
    "transfer": ("tel:1",),
    "end_session": (),
    "play_url": ("https://x",),
    "send_dtmf": ("1",),
    "send_meta_data": ({},),
    "abort_prompts": (),
    "expect_another_bot_message": (),
    "apply_config": ({},),
    "start_call_recording": (),
    "stop_call_recording": (),
    "pause_call_recording": (),
    "resume_call_recording": (),
}


async def test_a_session_that_ends_can_be_read_and_not_be_controlled(redis_url: str) -> None:
    bridge = make_bridge()
    raised: list[str] = []
    read: list[Any] = []

    async def try_all(session: Session) -> None:
        for method, arguments in CONTROLS.items():
            with pytest.raises(RuntimeError) as error:
                await getattr(session, method)(*arguments)
            raised.append(str(error.value))

    @bridge.on("session_end")
    async def end(session: Session, event: object) -> None:
        read.append((session.is_active, session.media_format, session.conversation_id))
        read.append([(line.role, line.content) for line in session.get_transcript()])
        await try_all(session)

    async with stage(redis_url, bridge) as s:
        async with calling(s.app.url) as call:
            await s.notes.session.send_user_message("Thank you very much for your help.")
            await s.notes.wait("conversation_text", 2)
            await call.hang_up()
        await s.notes.wait("session_end")
        session = s.notes.session
        await ended(s.closed())
    assert read[0] == (False, "raw/mulaw", call.conversation_id)
    assert read[1] == [("user", "Thank you very much for your help."), ("assistant", WELCOME)]
    assert raised == [f"cannot call {method}: session is ending" for method in CONTROLS]
    raised.clear()
    await try_all(session)
    assert raised == [f"cannot call {method}: session is ended" for method in CONTROLS]


async def test_nothing_is_told_after_the_end_of_the_session(redis_url: str) -> None:
    bridge = make_bridge()
    begun, over = asyncio.Event(), asyncio.Event()

    @bridge.on("agent_thinking")
    async def slow(session: Session, event: object) -> None:
        begun.set()
        await over.wait()
        raise ValueError("too late to tell anybody")

    async with stage(redis_url, bridge) as s:
        async with calling(s.app.url) as call:
            await s.notes.wait("activity")
            await think(s)  # whose second handler waits behind the first
            await warn(s)  # which waits behind both
            await ended(begun.wait())
            await call.hang_up()
        await s.notes.wait("session_end")
        over.set()
        await ended(s.closed())
    assert s.notes.names == ["session_start", "activity", "session_end"]


# ── embedding: Session.serve ───────────────────────────────────────────────────────────────────────────────────────


class Server:
    """A WebSocket server of the application's own; `sessions` are those that `Session.serve` has returned."""

    def __init__(self) -> None:
        self.url = ""
        self.sessions: list[Session] = []
        self.tasks: list[asyncio.Task[Session]] = []
        self.done = asyncio.Event()


@contextlib.asynccontextmanager
async def embedded(
    redis_url: str, agent: SimulatedAgent, bridge: DeepgramBridge, **settings: Any
) -> AsyncIterator[Server]:
    made = Server()
    command(config.load(redis_url=redis_url, deepgram_url=agent.url, host="127.0.0.1", **settings))

    async def route(socket: ServerConnection) -> None:
        made.tasks.append(asyncio.create_task(Session.serve(socket, bridge)))
        with contextlib.suppress(asyncio.CancelledError):
            made.sessions.append(await made.tasks[-1])
        made.done.set()

    async with serve(route, "127.0.0.1", 0, close_timeout=1) as server:
        made.url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield made


async def test_a_socket_of_the_applications_own_server_is_driven_to_the_end_of_its_call(redis_url: str) -> None:
    bridge = DeepgramBridge(configuration(ac_token="not asked for here"))
    notes = Notes(bridge)
    async with SimulatedAgent(QUICK) as agent, embedded(redis_url, agent, bridge) as server:
        async with calling(server.url) as call:
            await notes.session.send_agent_message(WELCOME)
            await notes.wait("agent_audio_done")
            await call.hang_up()
        await ended(server.done.wait())
    assert server.sessions == [notes.session]
    assert [line.content for line in server.sessions[0].get_transcript()] == [WELCOME]
    assert server.sessions[0].conversation_id == call.conversation_id
    assert notes.names[-1] == "session_end"
    assert call.report().violations == []


async def test_the_agent_speaks_in_the_format_that_the_application_names_on_its_own_server_too(redis_url: str) -> None:
    bridge = DeepgramBridge(configuration(play_media_format="raw/lpcm16"))
    notes = Notes(bridge)
    async with SimulatedAgent(QUICK) as agent, embedded(redis_url, agent, bridge) as server:
        async with calling(server.url, formats=("raw/mulaw", "raw/lpcm16")) as call:
            await notes.session.send_agent_message(WELCOME)
            await notes.wait("agent_audio_done")
            await call.hang_up()
        await ended(server.done.wait())
    assert server.sessions[0].media_format == call.report().media_format == "raw/mulaw"
    assert [stream.media_format for stream in call.report().heard] == ["raw/lpcm16"]


async def test_sockets_that_come_and_go_all_have_their_handlers(redis_url: str) -> None:
    bridge = DeepgramBridge(configuration())
    notes = Notes(bridge)
    async with SimulatedAgent(QUICK) as agent, embedded(redis_url, agent, bridge) as server:
        async with calling(server.url) as first, calling(server.url) as second:
            await first.hang_up()
            await notes.wait("session_end")
            async with calling(server.url) as third:
                await second.hang_up()
                await third.hang_up()
                await notes.wait("session_end", 3)
        await ended(server.done.wait())
        async with calling(server.url) as alone:  # the pods have stopped meanwhile, and start again
            await alone.hang_up()
        await notes.wait("session_end", 4)
    assert notes.names.count("session_start") == 4


async def test_a_dropped_socket_is_waited_for_and_then_the_finished_session_is_returned(redis_url: str) -> None:
    bridge = DeepgramBridge(configuration())
    notes = Notes(bridge)
    async with (
        SimulatedAgent(QUICK) as agent,
        embedded(redis_url, agent, bridge, lost_seconds=1.0) as server,
        calling(server.url) as call,
    ):
        await notes.session.send_agent_message(WELCOME)
        await notes.wait("conversation_text")
        await call.drop()
        await ended(server.done.wait())
    assert notes.of("session_end")[0].reason == "error"
    assert [line.content for line in server.sessions[0].get_transcript()] == [WELCOME]


async def test_a_call_whose_socket_the_application_lets_go_of_ends_when_nobody_comes_back(redis_url: str) -> None:
    bridge = DeepgramBridge(configuration())
    notes = Notes(bridge)
    async with SimulatedAgent(QUICK) as agent, embedded(redis_url, agent, bridge, lost_seconds=1.0) as server:
        async with calling(server.url), calling(server.url) as other:
            server.tasks[0].cancel()
            end = await notes.wait("session_end")
            await other.hang_up()
        await notes.wait("session_end", 2)
    assert (end.reason, notes.of("error")[0].code) == ("error", "audiocodes_error")
    assert end.session_id == notes.of("session_start")[0].session_id


async def test_an_agent_that_refuses_ends_an_embedded_session_too(redis_url: str) -> None:
    bridge = DeepgramBridge(configuration(deepgram_api_key="wrong"))
    notes = Notes(bridge)
    async with (
        SimulatedAgent(AgentScript(require_token="right")) as agent,
        embedded(redis_url, agent, bridge) as server,
    ):
        report = await SimulatedCall(server.url, CallPlan()).run()
        await ended(server.done.wait())
    assert report.end == "refused"
    assert notes.names == ["error", "session_end"]
    assert server.sessions == [notes.session]


# ── several bridges, and the smallest application ──────────────────────────────────────────────────────────────────


@contextlib.asynccontextmanager
async def two_bridges(
    redis_url: str, agent: SimulatedAgent, *bridges: DeepgramBridge, port: int | None
) -> AsyncIterator[None]:
    process = command(config.load(redis_url=redis_url, deepgram_url=agent.url, host="127.0.0.1", port=port))
    loop, opened = asyncio.get_running_loop(), asyncio.Semaphore(0)
    process.on_open = lambda _door: loop.call_soon_threadsafe(opened.release)
    running = asyncio.gather(*(bridge.run() for bridge in bridges))
    try:
        async with asyncio.timeout(10):
            for _ in bridges:
                await opened.acquire()
        yield
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@pytest.mark.parametrize("one_port", [False, True], ids=["own_ports", "one_port_by_path"])
async def test_two_bridges_in_one_process_have_their_own_callers_and_handlers(redis_url: str, one_port: bool) -> None:
    ports = (free_port(), free_port())
    common = free_port()
    sales = DeepgramBridge(configuration(port=ports[0], greeting="Sales."))
    support = DeepgramBridge(configuration(port=ports[1], greeting="Support."))
    notes = Notes(sales), Notes(support)
    async with (
        SimulatedAgent(QUICK) as agent,
        two_bridges(redis_url, agent, sales, support, port=common if one_port else None),
    ):
        for number in (0, 1):
            own, by_path = f"ws://127.0.0.1:{ports[number]}", f"ws://127.0.0.1:{common}/{ports[number]}"
            async with calling(by_path if one_port else own) as call:
                await notes[number].wait("conversation_text")
                await call.hang_up()
            await notes[number].wait("session_end")
    assert [note.texts for note in notes] == [[("assistant", "Sales.")], [("assistant", "Support.")]]
    assert [note.names.count("session_start") for note in notes] == [1, 1]


async def test_deepgrams_own_smallest_application_runs(redis_url: str) -> None:
    shown: list[str] = []
    bridge = DeepgramBridge(
        BridgeConfig(
            deepgram_api_key="key",
            deepgram_config={
                "agent": {
                    "listen": {"provider": {"type": "deepgram", "model": "flux-general-en"}},
                    "think": {
                        "provider": {"type": "open_ai", "model": "gpt-4o-mini"},
                        "prompt": "You are a helpful assistant.",
                    },
                    "speak": {"provider": {"type": "deepgram", "model": "aura-2-thalia-en"}},
                    "greeting": "Hello! How can I help you today?",
                }
            },
            port=8000,
        )
    )

    @bridge.on("session_start")
    async def on_start(session: Session, event: Any) -> None:
        shown.append(f"call from {event.caller}")

    @bridge.on("conversation_text")
    async def on_text(session: Session, event: Any) -> None:
        shown.append(f"{event.role}: {event.content}")

    @bridge.on("session_end")
    async def on_end(session: Session, event: Any) -> None:
        shown.append(f"{event.reason}: {len(session.get_transcript())} lines")

    notes = Notes(bridge, *EVENTS)
    async with SimulatedAgent(QUICK) as agent, running(bridge, redis_url, agent) as app:
        async with calling(app.url) as call:
            await notes.wait("conversation_text")
            await call.say("thank_you")
            await notes.wait("conversation_text", 3)
            await call.hang_up()
        await notes.wait("session_end")
    assert shown == [
        "call from +4930123456",
        "assistant: Hello! How can I help you today?",
        "user: Thank you very much for your help.",
        f"assistant: {WELCOME}",
        "hangup: 3 lines",
    ]
    assert notes.of("error") == []
