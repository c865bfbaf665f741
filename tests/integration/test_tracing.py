"""One trace per call, as a collector sees it: who says what of a call, whatever dies, and nothing that is private."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bridge_shared import tracing
from bridge_shared.tracing import Tracing
from bridge_sim.agent import SimulatedAgent
from bridge_sim.agent_script import AgentScript
from bridge_sim.caller import SimulatedCall
from bridge_sim.plan import CallPlan, CallProblem
from collector import Collector, Seen
from deepgram_audiocodes_bridge import DeepgramBridge
from harness import configuration, running
from pods import Pod, Pods, application

CID = "8f2c1f62-call"
TRACE, CALL = (f"{number:0{digits}x}" for number, digits in zip(tracing.ids("fleet", CID), (32, 16), strict=True))
PLAN = CallPlan(formats=("raw/mulaw",))
SOON = {"OTEL_BSP_SCHEDULE_DELAY": "100"}
LOST = "traces cannot be exported and are lost until they can; calls go on"

TRACKING = """
@bridge.on("function_call_request")
async def track(session, event):
    for call in event.functions:
        await session.respond_to_function_call(call.id, call.name, "in the depot")
"""

FAILING = """
tries = 0

@bridge.on("function_call_request")
async def track(session, event):
    raise KeyError("secret of the application")

@bridge.on("session_end")
async def write(session, event):
    global tries
    tries += 1
    if tries == 1:
        raise ConnectionError("the CRM does not answer")
    print("written", flush=True)
"""

MODULES = """
import sys, threading

@bridge.on("session_start")
async def started(session, event):
    ours = ("opentelemetry.exporter", "bridge_shared.tracing")  # redis-py and FastAPI load others if they are there
    print("modules", sorted(name for name in sys.modules if name.startswith(ours)), flush=True)
    print("threads", [thread.name for thread in threading.enumerate() if "Otel" in thread.name], flush=True)
"""

WITHOUT_THE_EXTRA = """
import sys
sys.modules["opentelemetry"] = None
"""


@pytest.fixture
async def agent() -> AsyncIterator[SimulatedAgent]:
    async with SimulatedAgent(AgentScript(think_s=0.1)) as simulated:
        yield simulated


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as listening:
        yield listening


def only(spans: list[Seen], name: str) -> Seen:
    (span,) = [span for span in spans if span.name == name]
    return span


async def conversation(url: str, *prompts: str) -> None:
    """A call in which these are said and answered; the caller hangs up."""
    async with SimulatedCall(url, PLAN, conversation_id=CID) as call:
        await call.connect()
        await call.initiate()
        for prompt in prompts:
            await call.say(prompt)
            await call.wait_answer()
        await call.hang_up()
    report = call.report()
    assert (report.problem, report.violations) == (None, [])


async def ended(worker: Pod) -> None:
    await worker.until(lambda: "session_end" in worker.stdout, 10, "the finish")


async def test_a_call_is_one_trace_over_edge_and_worker_and_tells_nothing_private(
    redis_url: str, agent: SimulatedAgent, collector: Collector, tmp_path: Path
) -> None:
    app = application(tmp_path, TRACKING, functions=["track_parcel"])
    async with Pods(redis_url, agent.url, app, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url) as pods:
        edge, worker = await asyncio.gather(pods.edge(), pods.worker())
        await conversation(edge.url, "parcel_number")
        await ended(worker)
        assert await pods.stop() == [0, 0]  # what waits for its turn is exported before they end
        assert not edge.logged(LOST) + worker.logged(LOST)
    spans = collector.spans
    assert {span.trace for span in spans} == {TRACE}
    assert sorted(span.name for span in spans) == sorted(
        ["call", "ownership", "agent connect", "function call track_parcel", "turn", "finish"]
    )
    call, ownership = only(spans, "call"), only(spans, "ownership")
    assert (call.id, call.parent) == (CALL, "")
    assert {span.parent for span in spans if span.name in ("ownership", "finish")} == {CALL}
    inside = [span for span in spans if span.name in ("agent connect", "function call track_parcel", "turn")]
    assert {span.parent for span in inside} == {ownership.id}
    assert all(ownership.began_ns <= span.began_ns <= span.ended_ns <= ownership.ended_ns for span in inside)

    assert {span.resource["bridge.role"] for span in spans} == {"edge", "worker"}
    assert {span.resource["service.name"] for span in spans} == {"bridge"}
    assert call.pod.startswith("edge-")
    assert {span.pod for span in spans if span is not call} == {ownership.pod}
    assert ownership.pod.startswith("worker-")

    shown = {name: call.attributes[f"bridge.{name}"] for name in ("conversation_id", "bridge", "media_format")}
    assert shown == {"conversation_id": CID, "bridge": "8000", "media_format": "raw/mulaw"}
    assert call.attributes["bridge.end_reason"] == "session_end"
    assert call.attributes["bridge.end_detail"] == "client-disconnected"
    assert ownership.attributes["bridge.cause"] == "offered"
    assert ownership.attributes["bridge.end_reason"] == "hangup"
    turn = only(spans, "turn")
    assert turn.attributes["bridge.text_ms"] <= turn.attributes["bridge.audio_ms"]
    assert (turn.ended_ns - turn.began_ns) / 1e6 == pytest.approx(turn.attributes["bridge.heard_ms"])
    assert not [span for span in spans if span.error or "bridge.cut_off" in span.attributes]

    exported = b"".join(collector.bodies)
    for private in (b"4930123456", b"Z1", b"in the depot", b"parcel is", b"test-key", b"parcel desk"):
        assert private not in exported


@pytest.mark.slow
async def test_who_takes_a_call_over_goes_on_with_its_trace(
    redis_url: str, agent: SimulatedAgent, collector: Collector, tmp_path: Path
) -> None:
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, **SOON}
    async with Pods(redis_url, agent.url, application(tmp_path), **variables) as pods:
        edge, owner = await asyncio.gather(pods.edge(), pods.worker())
        async with SimulatedCall(edge.url, PLAN, conversation_id=CID) as call:
            await call.connect()
            await call.initiate()
            await call.say("opening_hours")
            await call.wait_answer()
            await owner.until(lambda: collector.named("turn"), 10, "its first spans")
            taker = await pods.worker()
            owner.kill()
            await agent.wait_for(lambda a: len(a.connections) == 2 and a.connections[1].ready, 10)
            await call.say("opening_hours")
            await call.wait_answer()
            await call.hang_up()
        await ended(taker)
        await pods.stop()
    spans = collector.spans
    assert {span.trace for span in spans} == {TRACE}
    ownership = only(spans, "ownership")  # the one of the dead owner died with it; what it had finished is there
    assert (ownership.parent, ownership.attributes["bridge.cause"]) == (CALL, "takeover")
    (before, after) = [span for span in spans if span.name == "turn"]
    assert before.pod != after.pod == ownership.pod
    assert after.parent == ownership.id != before.parent
    assert only(spans, "call").id == CALL


async def test_a_caller_who_comes_back_by_another_edge_is_an_attachment_of_the_same_trace(
    redis_url: str, agent: SimulatedAgent, collector: Collector, tmp_path: Path
) -> None:
    async with Pods(redis_url, agent.url, application(tmp_path), OTEL_EXPORTER_OTLP_ENDPOINT=collector.url) as pods:
        first, second, worker = await asyncio.gather(pods.edge(), pods.edge(), pods.worker())
        async with SimulatedCall(first.url, PLAN, conversation_id=CID) as call:
            await call.connect()
            await call.initiate()
            await call.drop()
            await call.resume(second.url)
            await call.hang_up()
        await ended(worker)
        await pods.stop()
    root, attachment = only(collector.spans, "call"), only(collector.spans, "attachment")
    assert (attachment.trace, attachment.parent) == (TRACE, CALL)
    assert attachment.pod != root.pod == attachment.attributes["bridge.former_edge"]
    assert root.attributes["bridge.end_reason"] in ("socket_lost", "replaced")
    assert attachment.attributes["bridge.end_reason"] == "session_end"


async def test_what_goes_wrong_has_the_status_error_and_a_code(
    redis_url: str, agent: SimulatedAgent, collector: Collector, tmp_path: Path
) -> None:
    app = application(tmp_path, FAILING, functions=["track_parcel"])
    async with Pods(redis_url, agent.url, app, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url) as pods:
        edge, worker = await asyncio.gather(pods.edge(), pods.worker())
        async with SimulatedCall(edge.url, PLAN, conversation_id=CID) as call:
            await call.connect()
            await call.initiate()
            agent.connections[0].drop()
            await agent.wait_for(lambda a: len(a.connections) == 2 and a.connections[1].ready, 10)
            agent.connections[1].call(("track_parcel", "{}"))
            await agent.connections[1].wait_for(lambda a: a.responses, 10)
            await call.hang_up()
        await worker.until(lambda: "written" in worker.stdout, 10, "the second try of the finish")
        await pods.stop()
    first, second = collector.named("agent connect")
    assert "bridge.after" not in first.attributes
    assert second.attributes["bridge.after"] == "connection_closed"
    function = only(collector.spans, "function call track_parcel")
    assert (function.error, function.attributes["error.type"]) == (True, "failed")
    failed, done = collector.named("finish")
    assert (failed.error, failed.attributes["error.type"], failed.attributes["bridge.attempt"]) == (
        True,
        "handlers_failed",
        1,
    )
    assert (done.error, done.attributes["bridge.attempt"]) == (False, 2)
    assert {span.trace for span in collector.spans} == {TRACE}
    exported = b"".join(collector.bodies)
    assert not [private for private in (b"secret", b"CRM", b"KeyError") if private in exported]


async def test_a_call_that_the_agent_refuses_says_by_which_code(
    redis_url: str, collector: Collector, tmp_path: Path
) -> None:
    async with (
        SimulatedAgent(AgentScript(require_token="another key")) as agent,
        Pods(redis_url, agent.url, application(tmp_path), OTEL_EXPORTER_OTLP_ENDPOINT=collector.url) as pods,
    ):
        edge, worker = await asyncio.gather(pods.edge(), pods.worker())
        with pytest.raises(CallProblem):
            await conversation(edge.url)
        await ended(worker)
        await pods.stop()
    call, tried = only(collector.spans, "call"), only(collector.spans, "agent connect")
    assert (call.error, call.attributes["bridge.end_reason"]) == (True, "refused")
    assert call.attributes["bridge.end_detail"] == tried.attributes["error.type"] != ""
    assert (call.trace, tried.error) == (TRACE, True)


@pytest.mark.slow
async def test_pods_that_drain_export_what_they_had_begun(
    redis_url: str, agent: SimulatedAgent, collector: Collector, tmp_path: Path
) -> None:
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "BRIDGE_DRAIN_SECONDS": "10"}
    async with Pods(redis_url, agent.url, application(tmp_path), **variables) as pods:
        drained, other, giver = await asyncio.gather(
            pods.edge(BRIDGE_DRAIN_SECONDS="1"), pods.edge(), pods.worker(BRIDGE_DRAIN_SECONDS="20")
        )
        plan = replace(PLAN, resume_after_s=0.1, resume_url=other.url)
        async with SimulatedCall(drained.url, plan, conversation_id=CID) as call:
            await call.connect()
            await call.initiate()
            taker = await pods.worker()
            giver.terminate()
            assert await giver.ended() == 0
            drained.terminate()
            assert await drained.ended() == 0
            (root,) = collector.named("call")
            assert root.attributes["bridge.cut_off"]
            await other.until(lambda: call.line.report.resume_ms, 10, "the caller's return")
            await call.hang_up()
        await ended(taker)
        await pods.stop()
    given, taken = collector.named("ownership")
    assert (given.attributes["bridge.cause"], given.attributes["bridge.end_reason"]) == ("offered", "fenced")
    assert (taken.attributes["bridge.cause"], taken.attributes["bridge.end_reason"]) == ("handover", "hangup")
    assert [span.attributes.get("bridge.prepared") for span in collector.named("agent connect")] == [False, True]
    assert {(span.trace, span.parent) for span in (given, taken, only(collector.spans, "attachment"))} == {
        (TRACE, CALL)
    }


async def test_pods_with_the_same_sampler_choose_the_same_calls(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": "0.5",
    }.items():
        monkeypatch.setenv(name, value)
    edge, worker = (Tracing.start("fleet", f"{role}-1", role) for role in ("edge", "worker"))
    for number in range(40):
        call, ownership = edge.call(f"call-{number}", 1), worker.part("ownership", f"call-{number}")
        ownership.child("turn").end()
        ownership.end()
        call.end()
    await edge.close()
    await worker.close()
    chosen = [{span.trace for span in collector.named(name)} for name in ("call", "ownership", "turn")]
    assert chosen[0] == chosen[1] == chosen[2]
    assert 5 < len(chosen[0]) < 35


async def test_two_pods_in_one_process_are_told_apart(
    redis_url: str, agent: SimulatedAgent, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "parcel-desk")
    bridge = DeepgramBridge(configuration())
    over = asyncio.Event()
    bridge.on("session_end")(lambda session, event: over.set())
    async with running(bridge, redis_url, agent) as app:
        await conversation(app.url)
        async with asyncio.timeout(10):
            await over.wait()
    spans = collector.spans
    assert {span.trace for span in spans} == {TRACE}
    assert {(span.name, span.resource["bridge.role"]) for span in spans} == {
        ("call", "edge"),
        ("ownership", "worker"),
        ("agent connect", "worker"),
        ("finish", "worker"),
    }
    assert len({span.pod for span in spans}) == 2
    assert {span.resource["service.name"] for span in spans} == {"parcel-desk"}


@pytest.mark.parametrize("answers", ["refuses", "never answers"])
async def test_a_collector_that_is_away_costs_no_call_one_line_and_two_seconds_at_the_end(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path, answers: str
) -> None:
    with socket.socket() as away:
        away.bind(("127.0.0.1", 0))
        if answers == "never answers":
            away.listen()
        url = f"http://127.0.0.1:{away.getsockname()[1]}"
        async with Pods(redis_url, agent.url, application(tmp_path), OTEL_EXPORTER_OTLP_ENDPOINT=url, **SOON) as pods:
            edge, worker = await asyncio.gather(pods.edge(), pods.worker())
            await conversation(edge.url)
            await ended(worker)
            assert await pods.stop(seconds=8) == [0, 0]  # OpenTelemetry itself would try for ten seconds
            for pod in (edge, worker):
                (line,) = [line for line in pod.log if "tracing" in line["logger"]]
                assert (line["level"], line["message"], line["endpoint"]) == ("warning", LOST, url)
                assert not [line for line in pod.log if not line["logger"].startswith("deepgram_audiocodes_bridge")]


async def test_without_an_endpoint_nothing_of_opentelemetry_is_loaded_by_us(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path
) -> None:
    async with Pods(redis_url, agent.url, application(tmp_path, MODULES)) as pods:
        edge, worker = await asyncio.gather(pods.edge(), pods.worker())
        await conversation(edge.url)
        await ended(worker)
        assert "modules ['bridge_shared.tracing']\nthreads []\n" in worker.stdout


async def test_an_endpoint_without_the_extra_is_one_warning_that_says_what_to_install(
    redis_url: str, agent: SimulatedAgent, collector: Collector, tmp_path: Path
) -> None:
    app = application(tmp_path, WITHOUT_THE_EXTRA)
    async with Pods(redis_url, agent.url, app, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url) as pods:
        edge, worker = await asyncio.gather(pods.edge(), pods.worker())
        await conversation(edge.url)
        await ended(worker)
        for pod in (edge, worker):
            (warning,) = [line for line in pod.log if line["logger"].endswith(".tracing")]
            assert warning["level"] == "warning"
            assert "install deepgram-audiocodes-bridge-cluster[otel]" in warning["message"]
    assert collector.spans == []


async def test_a_variable_that_opentelemetry_cannot_use_costs_the_traces_and_no_call(
    redis_url: str, agent: SimulatedAgent, collector: Collector, tmp_path: Path
) -> None:
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_MAX_QUEUE_SIZE": "0"}
    async with Pods(redis_url, agent.url, application(tmp_path), **variables) as pods:
        edge, worker = await asyncio.gather(pods.edge(), pods.worker())
        await conversation(edge.url)
        await ended(worker)
        (line,) = [line for line in worker.log if line["logger"].endswith(".tracing")]
        assert "look at the OTEL_ variables" in line["message"]
